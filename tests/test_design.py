"The design space: paths and their flows, sources, targets, networks and labels as switches; contradictions; folders."
import json
import math
from dataclasses import replace

import gradio
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mfm_app.conditioning import Adaptor, Conditioned, GivenEmbedding, control_cells
from mfm_app.core import Condition, refusal
from mfm_app.data import Batches, vocabulary
from mfm_app.engine import Engine
from mfm_app.flow import (Design, coefficients, couple, end_margin, flow_loss, from_straight, interpolate, native_t,
                          native_velocity, sample_t, scale_and_clock, slopes, straight_velocity, target, to_straight)
from mfm_app.hub import (build, bundled, design_of, load_model, new_config, read_perturbation_vectors, read_switches,
                         save_model)
from mfm_app.model import build_backbone, parameter_count, token_side, unet_sizes
from mfm_app.sampling import Sampling, generation, integrate, inversion, invert, run, sample
from mfm_app.simulator import synthetic_cells
from mfm_app.training import start, train
from mfm_app.tuning import tune_model
from mfm_app.ui_explore import explore_tab

designs = {
    "linear": Design(), "vp": Design(path="vp"), "vp from control": Design(path="vp", source="control"),
    "brownian 0.1": Design(path="brownian", k=0.1), "brownian 1": Design(path="brownian", k=1.),
    "brownian 3": Design(path="brownian", k=3.), "bridge, its flow": Design(path="brownian", k=.5, source="control"),
    "bridge, walked": Design(path="brownian", k=.5, coupling="ot", prediction="image")}
straightened = {name: d for name, d in designs.items() if not d.bridges}
each_design = pytest.mark.parametrize("design", designs.values(), ids=designs)
each_straightened = pytest.mark.parametrize("design", straightened.values(), ids=straightened)
cells = synthetic_cells(8, size=16)
vocab = vocabulary(cells)


# Paths

@each_design
def test_a_path_begins_at_x0_and_ends_at_x1(design):
    x0, x1, z = torch.randn(3, 4, 3, 2, 2)
    assert torch.equal(interpolate(x0, x1, torch.zeros(4), design, z), x0)
    assert torch.equal(interpolate(x0, x1, torch.ones(4), design, z), x1)


@each_design
@settings(max_examples=30, deadline=None)
@given(st.floats(2 * end_margin, 1 - 2 * end_margin))
def test_the_slopes_are_the_derivatives_of_the_coefficients(design, at):
    t, h = torch.tensor([at], dtype=torch.float64), 1e-6
    ahead, behind = coefficients(design, t + h), coefficients(design, t - h)
    for slope, a, b in zip(slopes(design, t), ahead, behind):
        torch.testing.assert_close(slope, (a - b) / (2 * h), rtol=1e-3, atol=1e-4)


def test_a_bridge_from_noise_has_the_variance_of_its_two_noises():
    t, k = torch.linspace(0, 1, 11), 0.7
    alpha, _, gamma = coefficients(Design(path="brownian", k=k), t)
    torch.testing.assert_close(alpha**2, (1 - t)**2 + k**2 * t * (1 - t))
    assert not gamma.any()


@each_straightened
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 0.99))
def test_every_path_is_the_straight_one_at_another_scale_and_time(design, seed, at):
    x0, x1 = torch.randn(2, 2, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = torch.full((2,), at, dtype=torch.float64)
    xt, ut = interpolate(x0, x1, t, design), target(x0, x1, t, design)
    x, r = to_straight(design, xt, t)
    torch.testing.assert_close(x, interpolate(x0, x1, r))
    for a, b in zip(from_straight(design, x, r), (xt, t)): torch.testing.assert_close(a, b)
    torch.testing.assert_close(straight_velocity(design, ut, x, r), x1 - x0)
    torch.testing.assert_close(native_velocity(design, x1 - x0, x, r), ut)


@each_straightened
def test_the_clock_runs_from_noise_to_image_and_never_back(design):
    r = torch.linspace(0, 1, 101, dtype=torch.float64)
    t = native_t(design, r)
    assert t[0] == 0 and abs(t[-1] - 1) < 1e-9 and (t.diff() > 0).all()
    torch.testing.assert_close(scale_and_clock(design, t)[1], r, atol=1e-9, rtol=0)


def test_the_cosine_timesteps_are_the_clock_of_the_variance_preserving_path():
    t = sample_t(50_000, "cosine", torch.Generator().manual_seed(0))
    uniform = native_t(Design(path="vp"), t)
    assert abs(uniform.mean() - 0.5) < 0.01 and abs(uniform.std() - 1 / math.sqrt(12)) < 0.01


# Two Gaussians: the answer is known

mu, var = 2., 0.25


def exact(design, t, xt):
    "The best prediction of the target, from N(0, 1) to N(mu, var)."
    (a, b, c), (da, db, dc) = coefficients(design, t), slopes(design, t)
    spread = a**2 + b**2 * var + c**2
    if design.is_stochastic: return (mu + b * var / spread * (xt - b * mu) - xt) / (1 - t)
    return db * mu + (da * a + db * b * var + dc * c) / spread * (xt - b * mu)


class Exact:
    "The network of a design that has learned this flow exactly."
    def __init__(self, design): self.design = design
    def __call__(self, x, r, condition):
        t = native_t(self.design, r)[:1].clamp(1e-5, 1 - 1e-5)
        xt = x * scale_and_clock(self.design, t)[0]
        u = exact(self.design, t, xt)
        return u if self.design.bridges else straight_velocity(self.design, u, x, r)


@each_design
def test_the_regressed_velocity_is_the_analytic_one(design):
    g, n = torch.Generator().manual_seed(0), 100_000
    x0, x1, z = torch.randn(n, generator=g), mu + var**.5 * torch.randn(n, generator=g), torch.randn(n, generator=g)
    x0, x1, z = (x.view(-1, 1, 1, 1) for x in (x0, x1, z))
    for at in (0.1, 0.5, 0.9):
        t = torch.tensor([at])
        xt, ut = (f.flatten() for f in (interpolate(x0, x1, t, design, z), target(x0, x1, t, design, z)))
        fitted = np.polynomial.Polynomial.fit(xt.numpy(), ut.numpy(), 1)
        points = torch.linspace(xt.mean() - xt.std(), xt.mean() + xt.std(), 3)
        assert np.allclose(fitted(points.numpy()), exact(design, t, points), atol=0.05)


@each_design
def test_sampling_a_known_flow_gives_the_known_population(design):
    x1 = sample(Exact(design), None, range(4000), (1, 1, 1), Sampling(steps=40), batch=4000)
    assert abs(x1.mean() - mu) < 0.04 and abs(x1.std() - var**.5) < 0.03


@each_straightened
def test_inverting_and_sampling_again_returns_the_image(design):
    x1 = mu + torch.randn(20, 1, 1, 1, dtype=torch.float64)
    there = Sampling("rk4", 40)
    x0 = run(invert(x1, None, there), Exact(design))
    torch.testing.assert_close(run(integrate(x0, None, there), Exact(design)), x1, atol=1e-3, rtol=0)


class Dot(nn.Module):
    "A small network of images with one pixel, linear in the pixel as the best answer is."
    channels, image_size, width = 1, 1, 8
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 2))
    def forward(self, x, cond):
        a, b = self.layers(cond).T
        return (a + b * x.flatten()).view(-1, 1, 1, 1)


class Clock(nn.Module):
    def forward(self, t, condition): return (t[:, None] * torch.arange(8) * math.pi / 2).cos()


trained_paths = {"vp": dict(path="vp"), "brownian": dict(path="brownian", k=.5),
                 "bridge, its flow": dict(path="brownian", k=.5, coupling="ot")}


@pytest.mark.parametrize("choices", trained_paths.values(), ids=trained_paths)
def test_a_network_that_is_trained_on_a_path_generates_its_population(choices):
    torch.manual_seed(0)
    design = Design(**choices, timesteps="uniform")
    net = Conditioned(Dot(), Clock(), design=design)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(500):
        for group in optimiser.param_groups: group["lr"] = 5e-3 * (1 - step / 500)
        x1 = mu + var**.5 * torch.randn(128, 1, 1, 1)
        loss = flow_loss(net, x1, None, sample_t(128), None, design)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x1 = sample(net.eval(), None, range(3000), (1, 1, 1), Sampling(steps=25), batch=3000)
    assert abs(x1.mean() - mu) < 0.12 and abs(x1.std() - var**.5) < 0.12


@each_design
def test_no_answer_has_a_lower_loss_than_the_exact_one(design):
    def loss(change):
        g, n = torch.Generator().manual_seed(0), 50_000
        torch.manual_seed(0)
        x0, x1 = torch.randn(n, 1, 1, 1, generator=g), mu + var**.5 * torch.randn(n, 1, 1, 1, generator=g)
        known = Exact(design)
        return flow_loss(lambda x, r, c: change(known(x, r, c)), x1, None, torch.full((n,), 0.6), x0, design)
    if design.coupling == "ot": return      # pairing 50,000 points takes too long
    best = loss(lambda v: v)
    others = [lambda v: v + .1, lambda v: v - .1, lambda v: 1.1 * v, lambda v: .9 * v]
    assert all(loss(change) > best for change in others)


class ImageOf(nn.Module):
    "A backbone that knows the best prediction of the image at every point of its own path; the vector is the time."
    channels, image_size, width = 1, 1, 1
    def __init__(self, design):
        super().__init__()
        self.design = design
    def forward(self, x, cond):
        a, b, c = coefficients(self.design, cond[:1, 0])
        return mu + b * var / (a**2 + b**2 * var + c**2) * (x - b * mu)


class Time(nn.Module):
    def forward(self, t, condition): return t[:, None]


@each_design
def test_a_network_that_predicts_images_is_sampled_rightly_on_every_path(design):
    design = replace(design, prediction="image")
    net = Conditioned(ImageOf(design), Time(), floor=1e-3, design=design)
    x1 = sample(net, None, range(4000), (1, 1, 1), Sampling(steps=40), batch=4000)
    assert abs(x1.mean() - mu) < 0.04 and abs(x1.std() - var**.5) < 0.03


# Control cells as the source

def test_a_seed_picks_a_control_of_the_experiment_whatever_else_is_asked_for():
    images = torch.arange(6, dtype=torch.uint8).mul(40).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    controls = control_cells(images, torch.tensor([0, 0, 0, 1, 1, 1]))
    rows = Condition(e=torch.tensor([0, 1, 1, -1, 7]))
    x0 = controls(rows, range(5))
    level = ((x0.mean((1, 2, 3)) + 1) * 127.5 / 40).round()
    assert level[0] <= 2 and (level[1:3] >= 3).all() and x0.shape == (5, 3, 4, 4)
    for i in range(5): assert torch.equal(controls(rows[i:i + 1], [i])[0], x0[i])
    assert not torch.equal(x0[1], controls(rows[1:2], [9])[0])


def test_optimal_transport_of_control_cells_stays_within_an_experiment():
    x0, x1 = torch.randn(2, 40, 1, 2, 2)
    e = torch.arange(40) % 3
    marked = x0.clone()
    marked[:, 0, 0, 0] = 100. * e.flip(0)                    # far from the images of its own experiment
    groups = e.flip(0)
    paired = couple(marked, x1, "ot", groups)
    assert torch.equal(paired[:, 0, 0, 0], marked[:, 0, 0, 0])


def test_a_flow_from_control_cells_needs_them():
    x1 = torch.randn(2, 1, 2, 2)
    assert "needs control cells" in refusal(flow_loss, lambda *a: x1, x1, None, design=Design(source="control"))


# Walks

def test_a_walk_follows_from_its_start_alone():
    design = designs["bridge, walked"]
    sampled = lambda seeds, **kw: sample(Exact(design), None, seeds, (1, 4, 4), Sampling(steps=6), **kw)
    together = sampled(range(6))
    assert torch.equal(together, sampled(range(6), batch=2)) and torch.equal(together[3:4], sampled([3]))
    assert together.std() > 0.3


# Contradictions

wrong_designs = {
    "no such path": (dict(path="curved"), "Unknown path 'curved'"),
    "no such source": (dict(source="image"), "Unknown source 'image'"),
    "no such target": (dict(prediction="noise"), "Unknown prediction 'noise'"),
    "a bridge without width": (dict(path="brownian"), "needs a k above 0"),
    "a width without a bridge": (dict(k=.5), "no other path has one"),
    "a negative width": (dict(path="brownian", k=-1.), "k of the Brownian bridge must be a number from 0 to 10"),
    "a width that is no number": (dict(path="brownian", k="wide"), "k of the Brownian bridge must be a number")}


@pytest.mark.parametrize("choices, message", wrong_designs.values(), ids=wrong_designs)
def test_a_design_that_cannot_be_is_refused(choices, message):
    text = refusal(Design, **choices)
    assert message in text and text.count(". ") == 0 and refusal(Design.from_dict, choices) == text


def test_an_unknown_choice_is_refused_and_missing_ones_have_their_defaults():
    assert "Unknown choice of a design 'noise'" in refusal(Design.from_dict, dict(noise=1))
    assert "an object with the choices" in refusal(Design.from_dict, ["path"])
    assert Design.from_dict({}) == Design() and Design.from_dict(designs["vp"].to_dict()) == designs["vp"]
    assert Design(path="VP").path == "vp"


wrong_samplings = {
    "inverting from control": (designs["vp from control"], Sampling(), True, "starts from control cells"),
    "inverting a walk": (designs["bridge, walked"], Sampling(), True, "walks a Brownian bridge at random"),
    "a solver for a walk": (designs["bridge, walked"], Sampling("heun"), False, "heun is a deterministic solver"),
    "a tuned one for a walk": (designs["bridge, walked"], Sampling("tuned"), False, "tuned is a deterministic solver"),
    "a walk for a flow": (designs["vp"], Sampling("bridge"), False, "this model has a flow")}


@pytest.mark.parametrize("design, sampling, inverting, message", wrong_samplings.values(), ids=wrong_samplings)
def test_a_sampler_that_does_not_suit_the_design_is_refused(design, sampling, inverting, message):
    text = refusal(sampling.resolve, design=design, inverting=inverting)
    assert message in text and text.count(". ") == 0


@pytest.mark.parametrize("name", ["linear", "vp", "brownian 1", "bridge, its flow"])
def test_a_design_with_a_flow_takes_every_solver(name):
    for solver in ("euler", "rk4", "multistep2"): Sampling(solver).resolve(design=designs[name])


wrong_switches = {
    "no such switch": (["pth=vp"], "Unknown switch 'pth'"), "no value": (["path"], "written key=value"),
    "an empty value": (["path="], "written key=value"), "twice": (["k=1", "k=2"], "k is given twice"),
    "neither on nor off": (["skips=maybe"], "skips is on or off"), "too much": (["label_dropout=2"], "from 0 to 0.9"),
    "an odd patch": (["patch=3"], "2, 4 or 8"), "no width": (["ema_std=0"], "ema_std must be a number")}


@pytest.mark.parametrize("said, message", wrong_switches.values(), ids=wrong_switches)
def test_a_switch_that_is_none_is_refused(said, message):
    text = refusal(read_switches, said)
    assert message in text and text.count(". ") == 0


contradictions = {
    "guidance without null": (["guidance=2", "label_dropout=0"], "tiny/8", "label_dropout is 0"),
    "skips of a U-Net": (["skips=off"], "unet-nano", "skips is a switch of MiT"),
    "patch of a U-Net": (["patch=4"], "unet-nano", "patch is a switch of MiT"),
    "heads that do not divide": (["heads=5"], "tiny/8", "a multiple of 4 and of the 5 attention heads"),
    "an odd depth": (["depth=3"], "tiny/8", "cannot be halved"),
    "no bridge": (["path=brownian"], "tiny/8", "needs a k above 0")}


@pytest.mark.parametrize("said, backbone, message", contradictions.values(), ids=contradictions)
def test_switches_that_contradict_each_other_are_refused(said, backbone, message):
    text = refusal(lambda: build(new_config(vocab, cells.channels, backbone, 16, switches=read_switches(said))))
    assert message in text and text.count(". ") == 0


# Folders

def model_of(*said, backbone="nano/8"):
    config = new_config(vocab, cells.channels, backbone, 16, switches=read_switches(said))
    if backbone != "unet-pico": config["backbone"]["conv_width"] = 8
    if config.get("control_cells"): config["control_cells"] = 6
    torch.manual_seed(0)
    net = build(config).eval()
    for weight in net.parameters(): nn.init.normal_(weight, std=0.05)
    if net.controls is not None:
        controls = cells.where(perturbation=cells.control)[:6]
        net.controls = control_cells(controls.images, torch.tensor([0, 0, 0, 1, 1, 1]))
    return net, config


whole = {"vp": ["path=vp"], "bridge": ["path=brownian", "k=0.5", "coupling=ot"], "control": ["source=control"],
         "control, its flow": ["source=control", "path=brownian", "k=0.1", "prediction=velocity"],
         "no skips": ["skips=off", "attention_dropout=0.2"],
         "sizes": ["depth=2", "width=64", "heads=4", "conv_width=8"],
         "labels": ["label_dropout=0.3", "experiment_label=off", "guidance=2"], "patches": ["stem=patch", "patch=4"]}


@pytest.mark.parametrize("said", whole.values(), ids=whole)
def test_a_folder_keeps_its_switches_and_is_sampled_by_them(said, tmp_path):
    net, config = model_of(*said)
    if "stem=patch" in said: config["backbone"].pop("conv_width", None)
    save_model(tmp_path, net, config, torch.float32)
    model = load_model(tmp_path)
    assert model.net.design == net.design == design_of(json.loads((tmp_path / "config.json").read_text()))
    engine = Engine(model, "cpu", torch.float32)
    answer = engine.generate("sweller", seeds=range(2), steps=2)
    assert answer.images.shape == answer.control.shape == (2, 3, 16, 16)
    assert np.array_equal(answer.images, engine.generate("sweller", seeds=range(2), steps=2).images)
    assert answer.request.sampling.cfg_scale == config.get("guidance", 1.)
    with gradio.Blocks() as blocks: explore_tab(engine, blocks)
    sliders = {block.elem_id: block.value for block in blocks.blocks.values() if isinstance(block, gradio.Slider)}
    assert sliders == dict(guidance=config.get("guidance", 1.))
    assert (answer.provenance["solver"] == "bridge") == net.design.is_stochastic
    if net.design.source == "control": assert answer.images[0].std() > 0


def test_a_unet_is_a_model_like_any_other(tmp_path):
    net, config = model_of(backbone="unet-pico")
    save_model(tmp_path, net, config)
    images = Engine(load_model(tmp_path), "cpu", torch.float32).generate("sweller", seeds=[1], steps=2).images
    assert images.shape == (1, 3, 16, 16) and token_side("unet-pico") == 4


def test_a_model_that_starts_from_control_cells_refuses_what_needs_noise(tmp_path):
    net, config = model_of("source=control")
    save_model(tmp_path, net, config)
    model = load_model(tmp_path)
    assert "starts from control cells" in refusal(model.resolve_sampling, inversion, inverting=True)
    assert "starts from control cells" in refusal(tune_model, model)
    assert model.resolve_sampling(generation).solver == "multistep2"


def test_a_config_of_before_means_what_it_meant():
    config = json.loads((bundled / "config.json").read_text(encoding="utf-8"))
    assert "design" not in config and design_of(config) == Design(prediction="image")
    assert load_model(bundled).net.design == Design(prediction="image")


@pytest.mark.parametrize("change, message", [
    (dict(design=dict(path="curved")), "Unknown path 'curved'"), (dict(design=dict(pth="vp")), "Unknown choice"),
    (dict(design=dict(prediction="velocity")), "predicts the velocity, where 'predicts' says image"),
    (dict(design=dict(source="control")), "carries 0"), (dict(control_cells=5), "carries 5"),
    (dict(design="vp"), "must be an object"), (dict(guidance=-1), "The switch guidance must be a number")])
def test_a_folder_with_switches_that_cannot_be_is_refused_by_its_name(change, message, tmp_path):
    net, config = model_of()
    save_model(tmp_path / "odd", net, config)
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | change))
    text = refusal(load_model, tmp_path / "odd")
    assert message in text and "odd" in text


# Networks and labels

@pytest.mark.parametrize("name", unet_sizes)
def test_a_unet_returns_an_image_and_starts_at_zero(name):
    with torch.device("meta"): net = build_backbone(name, image_size=32)
    x, cond = torch.empty(2, 3, 32, 32, device="meta"), torch.empty(2, net.width, device="meta")
    assert net(x, cond).shape == x.shape
    if name == "unet-pico":
        net = build_backbone(name, image_size=32)
        assert not net(torch.randn(2, 3, 32, 32), torch.randn(2, net.width)).any()
        for p in net.parameters(): nn.init.normal_(p, std=0.1)
        net(torch.randn(2, 3, 32, 32), torch.randn(2, net.width)).square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_the_largest_unet_has_the_size_of_the_papers():
    with torch.device("meta"): millions = parameter_count(build_backbone("unet-B", channels=6, image_size=96)) / 1e6
    assert 40 < millions < 70


def test_skips_cost_parameters_and_are_gone_without():
    counts = [parameter_count(build_backbone("nano/8", image_size=32, skips=skips)) for skips in (True, False)]
    assert counts[0] - counts[1] == 2 * (2 * 48 * 48 + 48)


def test_an_experiment_that_is_not_said_changes_nothing():
    adaptor = Adaptor(16, 3, 4, 1, experiment_label=False).eval()
    t = torch.rand(2)
    a, b = (adaptor(t, Condition(y=torch.tensor([0, 1]), e=torch.tensor(e))) for e in ([0, 1], [3, 2]))
    assert torch.equal(a, b) and not any(name.startswith("e.") for name, _ in adaptor.named_parameters())


@pytest.mark.parametrize("dropout", [0., 0.5])
def test_labels_are_dropped_as_often_as_the_switch_says(dropout):
    adaptor, t = Adaptor(8, 3, 1, 1, label_dropout=dropout), torch.zeros(4000)
    label, null = (adaptor.eval()(t[:1], c) for c in (Condition(y=torch.tensor([1])), Condition()))
    vectors = adaptor.train()(t, Condition(y=torch.ones(4000, dtype=torch.int64)))
    is_null = (vectors - null).abs().sum(1) < (vectors - label).abs().sum(1)
    assert abs(is_null.float().mean() - dropout) < 0.03


def test_a_given_embedding_is_read_by_name_and_stays_as_it_is(tmp_path):
    path = tmp_path / "genes.csv"
    pd.DataFrame(dict(perturbation=["b", "a"], u=[1., 3.], v=[0., 2.])).to_csv(path, index=False)
    values = read_perturbation_vectors(path, ["a", "b", "DMSO"], ["DMSO"])
    assert values.tolist() == [[3, 2], [1, 0], [2, 1]]                      # the control has the mean of the others
    embedding = GivenEmbedding(3, 2, 8)
    embedding.set(values)
    assert embedding.given[:-1].mean(0).abs().max() < 1e-6 and "given" not in dict(embedding.named_parameters())
    assert torch.equal(embedding(torch.tensor([-1])), embedding.null[None])
    assert "'c' has no row in genes.csv" in refusal(read_perturbation_vectors, path, ["a", "c"])
    assert "There is no file 'none.csv'" in refusal(read_perturbation_vectors, tmp_path / "none.csv", [])
    (tmp_path / "text.csv").write_text("perturbation,u\na,much\n")
    assert "then numbers alone" in refusal(read_perturbation_vectors, tmp_path / "text.csv", ["a"])


# Training

def test_a_unet_is_trained_by_the_laptops_recipe():
    run = train(start(model_of(backbone="unet-pico")[0]), Batches(cells, vocab, 4), 2, warmup=1, dtype=torch.float32)
    assert run.step == 2 and len(run.optimisers) == 1


trained_designs = ["path=vp"], ["source=control", "coupling=ot"], ["path=brownian", "k=1"]


@pytest.mark.parametrize("said", trained_designs, ids=" ".join)
def test_a_run_of_any_design_trains_and_repeats_from_its_seed(said):
    def losses():
        net, _ = model_of(*said)
        torch.manual_seed(1)
        run = train(start(net), Batches(cells, vocab, 8), 4, log_every=2, warmup=2, dtype=torch.float32)
        return [loss for _, loss, _ in run.history]
    first = losses()
    assert first == losses() and all(map(math.isfinite, first))


def test_a_checkpoint_of_another_design_is_refused(tmp_path):
    path = tmp_path / "run" / "state.pt"
    train(start(model_of()[0]), Batches(cells, vocab, 8), 1, path, warmup=1, dtype=torch.float32)
    text = refusal(start, model_of("path=vp")[0], path)
    assert "is of another design: its path is linear, not vp" in text and "run" in text
    assert start(model_of()[0], path).step == 1
