"Training: path, timesteps, coupling and loss; label dropout; EMA, schedule, checkpoints and resuming; distillation."
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_flatten

from mfm_app.conditioning import Adaptor, Conditioned, drop_labels
from mfm_app.core import Condition, refusal
from mfm_app.data import Batches, vocabulary
from mfm_app.flow import (Design, couple, couplings, flow_loss, guided, interpolate, minibatch_ot, sample_t, target)
from mfm_app.model import mit
from mfm_app.simulator import synthetic_cells
from mfm_app.training import (distil, ema, ema_gamma, lr_schedule, optimisers, prepare, read_state, start, train,
                              train_step, write_state)

cells = synthetic_cells(8, size=16)
batches = Batches(cells, vocabulary(cells), size=8)
quick = dict(warmup=2, log_every=2, dtype=torch.float32)


def network(width=48):
    torch.manual_seed(0)
    backbone = mit("nano/8", image_size=16, stem="conv", conv_width=8)
    return Conditioned(backbone, Adaptor(width, 3, 2, 1), predicts="image")


def loss_of(net):
    "At fixed points of the path of a batch."
    x1, condition = batches(0)
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): return flow_loss(net.eval(), x1, condition, torch.linspace(0, 0.8, len(x1)), x0).item()


def weights_of(run): return torch.cat([p.detach().flatten() for p in run.net.parameters()])


# Path and loss

@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_the_target_leads_along_the_path_from_any_point_to_any_other(seed, t, to):
    x0, x1 = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at = lambda t: interpolate(x0, x1, torch.tensor([t], dtype=torch.float64))
    torch.testing.assert_close(at(t) + (to - t) * target(x0, x1), at(to))


@pytest.mark.parametrize("coupling", couplings)
def test_the_loss_is_the_mean_square_of_what_the_velocity_is_off_by(coupling):
    x0, x1, t = torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4), torch.rand(8)
    exact = target(couple(x0, x1, coupling), x1)
    assert flow_loss(lambda x, t, c: exact, x1, None, t, x0, Design(coupling=coupling)) == 0
    assert flow_loss(lambda x, t, c: exact + 0.5, x1, None, t, x0, Design(coupling=coupling)) == pytest.approx(0.25)


def test_the_network_is_asked_on_the_path_at_t_under_the_condition():
    x0, x1, t, condition = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.rand(4), Condition(y=torch.arange(4))
    calls = []
    flow_loss(lambda *args: calls.append(args) or torch.zeros_like(x1), x1, condition, t, x0)
    (x, at, under), = calls
    assert torch.equal(x, interpolate(x0, x1, t)) and at is t and under is condition


# Timesteps

@pytest.mark.parametrize("kind, mean", [("uniform", 0.5), ("logit-normal", 0.43), ("cosine", 0.5), ("Uniform", 0.5)])
def test_timesteps_lie_on_the_path_and_lean_where_they_should(kind, mean):
    t = sample_t(20_000, kind, torch.Generator().manual_seed(0))
    assert t.min() >= 0 and t.max() <= 1 and t.mean() == pytest.approx(mean, abs=0.015)


def test_a_fifth_of_the_logit_normal_timesteps_is_uniform():
    t = sample_t(100_000, "logit-normal", torch.Generator().manual_seed(0))
    beyond = 0.2 * 0.01 + 0.8 * (1 - 0.5 * (1 + math.erf((math.log(99) + 0.4) / math.sqrt(2))))
    assert (t > 0.99).float().mean() == pytest.approx(beyond, rel=0.25)


# Coupling

@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_optimal_transport_is_the_best_of_all_permutations(seed, n):
    x0, x1 = torch.randn(2, n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    cost = lambda x0: (x1 - x0).square().sum().item()
    best = min(cost(x0[list(order)]) for order in itertools.permutations(range(n)))
    assert cost(minibatch_ot(x0, x1)) == pytest.approx(best, rel=1e-5)


def test_coupling_permutes_the_noise_and_nothing_else():
    x0, x1 = torch.randn(2, 32, 3, 4, 4)
    before = x1.clone()
    paired = couple(x0, x1, "ot")
    assert torch.equal(x1, before) and couple(x0, x1) is x0
    rows = lambda x: sorted(x.flatten(1).tolist())
    assert rows(paired) == rows(x0) and not torch.equal(paired, x0)


def test_optimal_transport_lowers_the_cost():
    x0, x1 = torch.randn(64, 1, 2, 2), 2 + torch.randn(64, 1, 2, 2)
    cost = lambda coupling: (x1 - couple(x0, x1, coupling)).square().mean()
    assert cost("ot") < 0.8 * cost("independent")


def test_equal_noise_gives_equal_pairs():
    x0, x1 = torch.randn(2, 16, 1, 4, 4)
    assert torch.equal(couple(x0, x1, "ot"), couple(x0.clone(), x1.clone(), "OT"))


@pytest.mark.parametrize("coupling", couplings)
def test_a_run_trains_with_either_coupling_and_repeats_from_its_seed(coupling):
    def trained():
        run = start(network())
        torch.manual_seed(1)
        return train(run, batches, 12, design=Design(coupling=coupling, prediction="image"), **quick)
    first, again = trained(), trained()
    assert torch.equal(weights_of(first), weights_of(again)) and loss_of(first.net) < loss_of(network())


def test_the_coupling_changes_what_is_learned():
    def trained(**settings):
        run = start(network())
        torch.manual_seed(1)
        design = Design(**settings, prediction="image") if settings else None
        return weights_of(train(run, batches, 2, design=design, **quick))
    independent, ot = trained(), trained(coupling="ot")
    assert not torch.equal(independent, ot) and torch.equal(independent, trained(coupling="independent"))


@pytest.mark.parametrize("setting, message", [
    (dict(coupling="sinkhorn"), "Unknown coupling 'sinkhorn'"), (dict(coupling=None), "Unknown coupling 'None'"),
    (dict(timesteps="often"), "Unknown distribution of timesteps 'often'"),
    (dict(path="vp"), "The network is of another design than the run: path linear, not vp"),
    (dict(prediction="velocity"), "prediction image, not velocity"),
    (dict(source="control"), "source noise, not control"),
    (dict(cooldown=1.5), "The cooldown must be a number from 0 to 1"), (dict(cooldown=math.nan), "The cooldown")])
def test_a_wrong_setting_is_refused_before_the_first_step(setting, message):
    run, untouched = start(network()), weights_of(start(network()))
    choices = {"prediction": "image"} | {k: v for k, v in setting.items() if k in Design.__dataclass_fields__}
    others = {k: v for k, v in setting.items() if k not in choices}
    assert message in refusal(lambda: train(run, batches, 3, design=Design(**choices), **others))
    assert run.step == 0 and torch.equal(weights_of(run), untouched)


# Guidance

@given(st.floats(-10, 10))
def test_guidance_between_equal_velocities_changes_nothing(cfg_scale):
    v = torch.randn(2, 3, 4, 4)
    assert torch.equal(guided(v, v, cfg_scale), v)


def test_guidance_scales_the_difference():
    null, cond = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(guided(null, cond, 0), null)
    torch.testing.assert_close(guided(null, cond, 1), cond)
    torch.testing.assert_close(guided(null, cond, 3) - null, 3 * (cond - null))


# Label dropout

def test_labels_are_dropped_independently_each_as_often_as_asked():
    n = 20_000
    rows = Condition(torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64),
                     torch.zeros(n, dtype=torch.int64), torch.ones(n))
    dropped = drop_labels(rows)
    gone = torch.stack([dropped.y < 0, dropped.e < 0, dropped.c < 0]).float()
    assert torch.allclose(gone.mean(1), torch.tensor(0.15), atol=0.01)
    assert torch.allclose(torch.corrcoef(gone), torch.eye(3), atol=0.03)
    assert dropped.dose_um is rows.dose_um and (rows.y == 0).all()


def test_a_molecule_is_dropped_with_its_label():
    rows = Condition(y=torch.zeros(2000, dtype=torch.int64), fp=torch.ones(2000, 4))
    dropped = drop_labels(rows, 0.5)
    gone = dropped.fp.isnan()
    assert torch.equal(gone.all(1), dropped.y < 0) and torch.equal(gone.any(1), gone.all(1))
    assert dropped.e is None and dropped.c is None


def test_nothing_is_dropped_outside_training():
    adaptor = Adaptor(48, 3, 2, 1)
    t, rows = torch.zeros(500), Condition(torch.ones(500, dtype=torch.int64))
    different = lambda: len(adaptor(t, rows).detach().round(decimals=4).unique(dim=0))
    assert adaptor.training and different() == 2
    adaptor.eval()
    assert different() == 1


# EMA

@given(st.floats(0.005, 0.25))
def test_the_exponent_of_the_ema_has_the_width_asked_for(std):
    gamma = ema_gamma(std)
    assert gamma > 0 and math.sqrt((gamma + 1) / ((gamma + 2)**2 * (gamma + 3))) == pytest.approx(std)


def test_the_ema_weighs_steps_by_a_power():
    net, steps, gamma = nn.Linear(1, 1, bias=False), 500, ema_gamma(0.1)
    average, weights = ema(net, 0.1), np.arange(1, 501) ** gamma
    values = np.random.default_rng(0).normal(size=steps).cumsum()
    for value in values:
        net.weight.data.fill_(value)
        average.update_parameters(net)
    assert average.module.weight.item() == pytest.approx((weights * values).sum() / weights.sum(), abs=0.05)


def test_the_first_update_of_the_ema_is_the_network():
    net = nn.Linear(2, 2)
    average = ema(net)
    net.weight.data.fill_(3.)
    average.update_parameters(net)
    assert torch.equal(average.module.weight, net.weight)


# Schedule and optimisers

@given(st.integers(1, 10_000), st.integers(1, 500), st.floats(0, 1))
def test_the_learning_rate_stays_between_zero_and_the_highest(steps, warmup, cooldown):
    rates = [lr_schedule(step, steps, warmup, cooldown) for step in {0, steps // 2, steps - 1, steps}]
    assert all(0 <= rate <= 1 for rate in rates) and lr_schedule(steps, steps, warmup, cooldown) == 0


def test_the_learning_rate_rises_stays_and_falls():
    rates = [lr_schedule(step, 1000, warmup=100, cooldown=0.3) for step in range(1000)]
    assert rates[0] == 0.01 and set(rates[99:701]) == {1.} and rates[850] == pytest.approx(0.5)
    assert np.all(np.diff(rates[:100]) > 0) and np.all(np.diff(rates[701:]) < 0)


def test_muon_has_the_matrices_of_the_blocks_and_every_weight_has_one_optimiser():
    net = network()
    muon, adamw = optimisers(net)
    names = {id(p): name for name, p in net.named_parameters()}
    of = lambda optimiser: {names[id(p)] for group in optimiser.param_groups for p in group["params"]}
    assert all(".blocks." in name and name.endswith("weight") for name in of(muon))
    assert of(muon) | of(adamw) == set(names.values()) and not of(muon) & of(adamw)
    assert len(optimisers(net, "adam")) == 1


@pytest.mark.parametrize("settings, message", [
    (dict(kind="sgd"), "Unknown optimiser 'sgd'"), (dict(lr=0), "The learning rate must be a number"),
    (dict(lr=2), "The learning rate must be a number"), (dict(lr=math.nan), "The learning rate")])
def test_a_wrong_optimiser_is_refused(settings, message): assert message in refusal(optimisers, network(), **settings)


def test_a_frozen_weight_has_no_optimiser():
    net = network()
    for p in net.backbone.parameters(): p.requires_grad_(False)
    (adam,) = optimisers(net, "adam")
    trained = {id(p) for group in adam.param_groups for p in group["params"]}
    assert trained == {id(p) for p in net.adaptor.parameters()}


# Checkpoints

def test_a_resumed_run_goes_on_with_everything_it_had(tmp_path):
    path = tmp_path / "run/state.pt"
    run = train(start(network()), batches, 6, path, **quick)
    resumed = start(network(), path)
    assert (resumed.step, resumed.history, resumed.seconds) == (6, run.history, run.seconds)
    same = lambda a, b: torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    leaves = lambda run: tree_flatten([part.state_dict() for part in run.stateful()])[0]
    assert all(same(a, b) for a, b in zip(leaves(resumed), leaves(run), strict=True))
    train(resumed, batches, 8, path, **quick)
    assert resumed.step == 8 and read_state(path)["step"] == 8
    assert {p.name for p in path.parent.iterdir()} == {"state.pt", "state.previous.pt"}


def test_a_checkpoint_holds_what_a_run_is_and_its_parts_in_order():
    run = start(network())
    state = run.state()
    assert set(state) == {"step", "seconds", "history", "parts", "design", "recent", "seed", "left_out", "about"}
    assert len(state["parts"]) == 4
    assert list(state["parts"][0]) == list(run.net.state_dict())
    assert "n_averaged" in state["parts"][1] and all(set(p) == {"state", "param_groups"} for p in state["parts"][2:])


def test_batches_depend_on_their_number_alone_so_a_resumed_run_sees_the_next():
    seen = []
    def recording(step):
        seen.append(step)
        return batches(step)
    run = train(start(network()), recording, 3, **quick)
    train(run, recording, 5, **quick)
    assert seen == [0, 1, 2, 3, 4]


def test_hooks_are_called_every_so_many_steps_with_a_checkpoint_written(tmp_path):
    path, calls = tmp_path / "state.pt", []
    hook = lambda run: calls.append((run.step, read_state(path)["step"]))
    train(start(network()), batches, 7, path, every={3: hook}, **quick)
    assert calls == [(3, 3), (6, 6)] and read_state(path)["step"] == 7


@pytest.mark.parametrize("written", [b"", b"something else", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, written):
    (tmp_path / "state.pt").write_bytes(written)
    assert "is not a checkpoint of a training run" in refusal(start, network(), tmp_path / "state.pt")


@pytest.mark.parametrize("state", [dict(step=1), dict(step=1, seconds=0., history=[], parts=[]), [1, 2]])
def test_a_checkpoint_of_something_else_is_refused(tmp_path, state):
    write_state(state, tmp_path / "state.pt")
    assert "of another network or optimiser" in refusal(start, network(), tmp_path / "state.pt")


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path):
    write_state(start(network()).state(), tmp_path / "state.pt")
    assert "another network or optimiser" in refusal(start, network(), tmp_path / "state.pt", "adam")


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "state.pt").write_bytes(b"x")
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), MemoryError()):
        def fail(*args, **kwargs): raise error
        monkeypatch.setattr(torch, "load", fail)
        with pytest.raises(type(error)): read_state(tmp_path / "state.pt")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
def test_a_full_disk_is_told_and_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "state.pt"
    write_state(dict(step=1), path)
    (tmp_path / "state.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="the disk may be full"): write_state(dict(weights=torch.ones(100_000)), path)
    assert read_state(path) == dict(step=1) and [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    write_state(dict(step=1), path)
    def full(state, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError): write_state(dict(step=2), path)
    assert read_state(path) == dict(step=1)


# Step

def test_a_step_moves_the_weights_and_the_ema_and_notes_the_loss():
    run = start(network())
    accelerator, before = prepare(run, torch.float32), weights_of(run)
    train_step(run, accelerator, *batches(0), sample_t(8), lr_scale=0.5)
    assert run.step == 1 and len(run.recent) == 1 and not torch.equal(weights_of(run), before)
    assert torch.equal(torch.cat([p.flatten() for p in run.ema.module.parameters()]), weights_of(run))
    assert {group["lr"] for optimiser in run.optimisers for group in optimiser.param_groups} == {0.5e-3}


# Distillation

def test_distillation_fits_the_targets_and_leaves_the_mode_as_it_was():
    rows, targets = torch.eye(4), torch.randn(4, 2)
    student = nn.Linear(4, 2).eval()
    assert distil(student, (rows,), targets, steps=300, lr=0.05) < 0.01 and not student.training
    assert torch.allclose(student(rows), targets, atol=0.1)
