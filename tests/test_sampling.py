"Integrating the flow: known answers where cells are Gaussian, guidance on the perturbation alone, settings, and steps."
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from mfm_app.core import Condition, InputError, noise, refusal
from mfm_app.finetune import random_model
from mfm_app.sampling import (Sampling, VelocityRequest, generation, guided_velocity, integrate, inversion, invert,
                              invert_then_sample, run, sample, screening, with_settings)
from mfm_app.simulator import synthetic_cells
from mfm_app.solvers import grids, solvers, time_grid

few = settings(max_examples=20)
double = torch.float64
solver_names, guidances = st.sampled_from(list(solvers)), st.sampled_from([0, 1, 2.])


# A world with a known answer: the cells of every condition are Gaussian, of one spread. What a condition means for
# the mean is a perturbation's share (the last row: of all cells together), an experiment's and a cell type's.

spread, means = 0.3, torch.tensor([0., 0.5, -0.4, 0.1], dtype=double)
experiment_shifts = torch.tensor([0., 0.25, 0.], dtype=double)
cell_type_shifts = torch.tensor([0., -0.15, 0.], dtype=double)


def mean_of(condition, n):
    "The mean of the cells of each row, (n,)."
    columns = (condition.y, means), (condition.e, experiment_shifts), (condition.c, cell_type_shifts)
    return sum(values[-1].expand(n) if labels is None else values[labels] for labels, values in columns)


def gaussian_velocity(x, t, condition):
    "The exact velocity from standard normal noise to Gaussian cells, E[x1 - x0 | xt]."
    mean, t = mean_of(condition or Condition(), len(x)).view(-1, 1, 1, 1), t.view(-1, 1, 1, 1).double()
    return mean + (x - t * mean) * (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t)**2)


def observed(n, *shape):
    generator = torch.Generator().manual_seed(0)
    return spread * torch.randn((n, *(shape or (3, 8, 8))), generator=generator, dtype=double)


def rows(n, y=None, e=None, c=None):
    label = lambda value: None if value is None else torch.full((n,), value)
    return Condition(label(y), label(e), label(c))


def counterfactuals(x, ys, was=0, **kwargs):
    "The cells sampled again, then under each perturbation; (1 + len(ys), n, C, H, W)."
    n = len(x)
    return run(invert_then_sample(x, rows(n, was), [rows(n, y) for y in ys], Sampling(**kwargs)), gaussian_velocity)


def from_noise(condition, n=4, **kwargs):
    x0 = noise(range(n), (3, 8, 8)).double()
    return run(integrate(x0, condition, Sampling("rk4", 20, **kwargs)), gaussian_velocity)


@pytest.mark.parametrize("cfg_scale", [0, 1, 2.5])
@pytest.mark.parametrize("solver, steps, tolerance",
                         [("euler", 200, .05), ("midpoint", 40, 2e-4), ("heun", 40, 2e-4), ("rk4", 40, 2e-4),
                          ("multistep2", 80, 2e-3), ("multistep3", 80, 3e-3)])
def test_a_counterfactual_moves_by_the_difference_of_means_times_guidance(solver, steps, tolerance, cfg_scale):
    x = observed(4)
    ends = counterfactuals(x, [1, 2], solver=solver, steps=steps, cfg_scale=cfg_scale)
    for end, shift in zip(ends, (0, .5, -.4), strict=True):
        assert torch.allclose(end, x + cfg_scale * shift, rtol=0, atol=tolerance)


@pytest.mark.parametrize("solver, gain", [("euler", 1.8), ("midpoint", 3.5), ("heun", 3.5), ("rk4", 14),
                                          ("multistep2", 3.5), ("multistep3", 7)])
def test_twice_the_steps_reconstruct_better_by_the_order_of_the_solver(solver, gain):
    x = observed(2)
    error = lambda steps: (counterfactuals(x, [], solver=solver, steps=steps)[0] - x).abs().max()
    assert error(24) > gain * error(48)


@few
@given(solver_names, st.integers(3, 6), st.integers(1, 4), st.integers(0, 4), st.sampled_from([0, 1, 3.]),
       array_shapes(min_dims=3, max_dims=3, max_side=5))
def test_all_treatments_share_one_inversion(solver, steps, n, treatments, cfg_scale, shape):
    x, calls, sampling = observed(n, *shape), [], Sampling(solver, steps, cfg_scale)
    def counting(x, t, condition):
        calls.append((len(x), t[0].item()))
        return gaussian_velocity(x, t, condition)
    now = [rows(n, 1 + i % 2) for i in range(treatments)]
    ends = run(invert_then_sample(x, rows(n, 0), now, sampling), counting)
    assert ends.shape == (1 + treatments, n, *shape)
    doubled = 1 if cfg_scale in (0, 1) else 2
    back, forward = sampling.nfe(inverting=True) // doubled, sampling.nfe() // doubled
    assert [count for count, _ in calls] == [n * doubled] * back + [(1 + treatments) * n * doubled] * forward
    assert calls[0][1] == 1 and calls[back][1] == 0      # from the image, then from the noise


@few
@given(st.permutations([0, 1, 2]), solver_names, st.integers(3, 5), guidances)
def test_neither_the_order_of_treatments_nor_other_cells_in_the_batch_matter(order, solver, steps, cfg_scale):
    x, how = observed(3), dict(solver=solver, steps=steps, cfg_scale=cfg_scale)
    ends = counterfactuals(x, [0, 1, 2], **how)
    assert torch.equal(counterfactuals(x, order, **how)[1:], ends[1:][list(order)])
    alone = [counterfactuals(x[i:i + 1], [0, 1, 2], **how) for i in range(3)]
    assert torch.equal(torch.cat(alone, 1), ends)


@few
@given(st.integers(0, 2), st.integers(0, 2))
def test_a_counterfactual_can_be_undone(was, now):
    x = observed(2)
    treated = counterfactuals(x, [now], was, solver="rk4", steps=20)[1]
    assert torch.allclose(counterfactuals(treated, [was], now, solver="rk4", steps=20)[1], x, atol=1e-3)


def test_inverting_a_sample_gives_its_noise():
    condition, x0 = rows(4, 1, 1), noise(range(4), (3, 8, 8)).double()
    x1 = run(integrate(x0, condition, Sampling("rk4", 30)), gaussian_velocity)
    assert torch.allclose(run(invert(x1, condition, Sampling("rk4", 30)), gaussian_velocity), x0, atol=2e-3)


# Guidance: the null drops the perturbation alone

@pytest.mark.parametrize("cfg_scale", [0, 1, 3.])
def test_guidance_scales_what_the_perturbation_does_and_nothing_else(cfg_scale):
    "From one noise: the mean of all cells, plus scale times what the perturbation adds, plus the shifts in full."
    plain = from_noise(rows(4, 0))
    for e, c in ((0, 0), (1, 0), (1, 1)):
        shift = experiment_shifts[e] + cell_type_shifts[c]
        for y in (0, 1, 2):
            mean = means[-1] + cfg_scale * (means[y] - means[-1])
            x1 = from_noise(rows(4, y, e, c), cfg_scale=cfg_scale)
            assert torch.allclose(x1, plain + mean + shift, rtol=0, atol=2e-4)


@pytest.mark.parametrize("cfg_scale", [0, 1, 3.])
def test_the_shift_between_experiments_is_not_amplified(cfg_scale):
    first, second = (from_noise(rows(4, 1, e), cfg_scale=cfg_scale) for e in (0, 1))
    assert torch.allclose(second - first, experiment_shifts[1].expand_as(first), atol=2e-4)


def test_counterfactuals_in_another_experiment_keep_its_shift_under_guidance():
    x = observed(2)
    now = [rows(2, 1, e) for e in (0, 1)]
    ends = run(invert_then_sample(x, rows(2, 0, 0), now, Sampling("rk4", 40, 3.)), gaussian_velocity)
    assert torch.allclose(ends[0], x, atol=2e-4)
    assert torch.allclose(ends[1:] - x, torch.stack([3 * means[1] + shift for shift in experiment_shifts[:2]])
                          .view(-1, 1, 1, 1, 1), atol=2e-4)


def request_for(condition, cfg_scale, n=2):
    "The one request for a guided velocity."
    return next(guided_velocity(torch.zeros(n, 3, 8, 8), .5, condition, cfg_scale))


def same(a, b): return (a is None) == (b is None) and (a is None or torch.equal(a, b))
def same_condition(a, b): return all(same(getattr(a, column), getattr(b, column)) for column in Condition.columns)


full = Condition(torch.tensor([1, 2]), torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([3., .1]),
                 torch.ones(2, 8))


def test_guidance_0_keeps_experiment_and_cell_type():
    request = request_for(full, 0)
    assert isinstance(request, VelocityRequest) and len(request.x) == 2
    assert same(request.condition.e, full.e) and same(request.condition.c, full.c)
    assert request.condition.y is request.condition.dose_um is request.condition.fp is None


def test_guidance_1_asks_for_the_condition_alone():
    request = request_for(full, 1)
    assert len(request.x) == 2 and same_condition(request.condition, full)


def test_other_guidance_asks_for_the_null_and_the_condition_in_one_request():
    request = request_for(full, 3.)
    null, condition = request.condition[:2], request.condition[2:]
    assert len(request.x) == len(request.t) == 4 and same_condition(condition, full)
    assert same(null.e, full.e) and same(null.c, full.c)
    assert (null.y == -1).all() and null.dose_um.isnan().all() and null.fp.isnan().all()


labels = st.lists(st.integers(0, 1), min_size=3, max_size=3).map(torch.tensor)


@pytest.fixture(scope="module")
def net(): return random_model(synthetic_cells(8, 16)).net


def velocity_of(net, x, condition, cfg_scale):
    "The guided velocity at t = 0.4."
    request = next(running := guided_velocity(x, .4, condition, cfg_scale))
    with torch.no_grad(), pytest.raises(StopIteration) as end:
        running.send(net(request.x, request.t.float(), request.condition))
    return end.value.value


@few
@given(st.floats(0, 8), labels, labels)
@example(3., torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0]))
def test_equal_perturbations_have_equal_velocities_at_any_scale(net, cfg_scale, e, c):
    "No perturbation, written as labels or left out, is its own null, in whichever experiment and cell type."
    x = noise(range(3), net.shape)
    without = Condition(e=e, c=c * 0)
    written = Condition(torch.full((3,), -1), e, c * 0, torch.full((3,), float("nan")))
    plain = velocity_of(net, x, without, 1.)
    for condition in (without, written):
        torch.testing.assert_close(velocity_of(net, x, condition, cfg_scale), plain, rtol=1e-4, atol=1e-4)


@few
@given(st.floats(0, 8), labels)
def test_a_network_blind_to_perturbations_is_not_changed_by_guidance(cfg_scale, e):
    def blind(x, t, condition): return gaussian_velocity(x, t, Condition(e=condition.e, c=condition.c))
    condition, x0 = Condition(torch.tensor([0, 1, 2]), e, e), noise(range(3), (3, 8, 8)).double()
    plain, guided = (run(integrate(x0, condition, Sampling("heun", 4, s)), blind) for s in (1, cfg_scale))
    assert torch.allclose(guided, plain, atol=1e-6)


# Settings

anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5),
                     st.lists(st.integers(), max_size=3), st.just(10**400))
bad_settings = {
    "no steps": dict(steps=0), "many steps": dict(steps=201), "NaN steps": dict(steps=float("nan")),
    "half a step": dict(steps=2.5), "steps as text": dict(steps="10"), "steps as a flag": dict(steps=True),
    "unknown solver": dict(solver="rk5"), "no solver": dict(solver=None), "solver as a number": dict(solver=4),
    "NaN guidance": dict(cfg_scale=float("nan")), "infinite guidance": dict(cfg_scale=float("inf")),
    "negative guidance": dict(cfg_scale=-.1), "much guidance": dict(cfg_scale=8.1), "no guidance": dict(cfg_scale=None),
    "guidance as text": dict(cfg_scale="2"), "guidance as a flag": dict(cfg_scale=True),
}


@pytest.mark.parametrize("wrong", bad_settings.values(), ids=bad_settings)
def test_settings_that_make_no_sense_are_refused(wrong):
    message, (name, _) = refusal(Sampling(**wrong).resolve), *wrong.items()
    assert dict(steps="Steps must be", solver="Unknown solver", cfg_scale="Guidance must be")[name] in message
    message = refusal(sample, gaussian_velocity, None, [0], sampling=Sampling(**wrong))
    assert dict(steps="Steps", solver="solver", cfg_scale="Guidance")[name] in message


@given(st.one_of(st.sampled_from(["euler", "RK4"]), anything), st.one_of(st.integers(1, 200), anything),
       st.one_of(st.floats(0, 8), anything))
@example("Midpoint", 20., np.float32(1))
@example("heun", 10**400, 10**400)
def test_checked_settings_have_plain_types_or_are_refused(ask, solver, steps, cfg_scale):
    result = ask(Sampling(solver, steps, cfg_scale).resolve)
    if isinstance(result, InputError): return
    assert result == Sampling(solver.lower(), steps, cfg_scale, "cosine") == result.resolve()
    assert list(map(type, result.record().values())) == [str, int, float, str]
    assert result.solver in solvers and 1 <= result.steps <= 200 and 0 <= result.cfg_scale <= 8


def test_settings_are_replaced_one_by_one():
    assert with_settings(inversion) == inversion == Sampling("auto", 19, 1., "auto")
    assert with_settings(inversion, steps=None, solver=None, cfg_scale=None, guidance_scale=None) == inversion
    assert with_settings(generation, steps=3) == Sampling("auto", 3, 1.)
    assert with_settings(inversion, solver="rk4", cfg_scale=2.) == Sampling("rk4", 19, 2.)
    assert generation == screening == Sampling("auto", 12, 1.)


def test_guidance_scale_is_another_name_of_cfg_scale():
    by_either = [with_settings(generation, **{name: 3.}) for name in ("guidance_scale", "cfg_scale")]
    assert by_either == [Sampling(cfg_scale=3.)] * 2
    assert with_settings(generation, guidance_scale=0) == Sampling(cfg_scale=0)
    assert with_settings(generation, guidance_scale=2., cfg_scale=None) == Sampling(cfg_scale=2.)


@pytest.mark.parametrize("both", [dict(guidance_scale=2., cfg_scale=2.), dict(guidance_scale=2., cfg_scale=1.),
                                  dict(guidance_scale=0, cfg_scale=0)])
def test_guidance_under_both_names_is_refused(both):
    assert refusal(with_settings, generation, **both) == "cfg_scale and guidance_scale are one; give one."


@pytest.mark.parametrize("name", ["step", "t0", "power", "seeds", "x" * 1000])
def test_a_setting_there_is_not_is_refused_with_those_there_are(ask, name):
    message = str(ask(with_settings, generation, **{name: 1}))
    assert repr(name[:40]) in message and "it has solver, steps, cfg_scale, grid" in message
    assert ask(with_settings, generation, **{name: None}).args == (message,)


@given(solver_names, st.integers(3, 30), st.sampled_from([0, 1, 1.5]), st.booleans())
def test_the_nfe_is_how_often_the_network_is_asked_for_an_image(solver, steps, cfg_scale, inverting):
    images, sampling = 0, Sampling(solver, steps, cfg_scale)
    def counting(x, t, condition):
        nonlocal images
        images += len(x)
        return torch.zeros_like(x)
    x = torch.zeros(1, 1, 2, 2)
    run((invert if inverting else integrate)(x, rows(1, 0), sampling), counting)
    assert images == sampling.nfe(inverting)


# Times and steps

@given(st.integers(1, 200), st.sampled_from(list(grids)), st.floats(0, 1), st.floats(0, 1))
def test_times_go_one_way_from_end_to_end(steps, grid, t0, t1):
    times = time_grid(steps, t0, t1, grid)
    assert len(times) == steps + 1 and [times[0], times[-1]] == [t0, t1]
    assert (np.diff(times) * np.sign(t1 - t0) >= -1e-12).all()


@pytest.mark.parametrize("grid", grids)
def test_a_grid_from_1_to_0_is_the_same_backwards(grid):
    assert time_grid(10, 1., 0., grid) == pytest.approx(time_grid(10, grid=grid)[::-1])


def test_the_cosine_grid_is_dense_at_both_ends_and_powers_near_the_image():
    bend = {grid: np.diff(time_grid(10, grid=grid), 2) for grid in grids}
    assert (bend["cosine"][:4] > 0).all() and (bend["cosine"][-4:] < 0).all() and np.allclose(bend["even"], 0)
    assert (bend["power1.5"] < 0).all() and (bend["power2.5"] < 0).all()


@few
@given(solver_names, st.integers(3, 6), guidances)
def test_a_step_shows_the_point_and_the_image_it_predicts(solver, steps, cfg_scale):
    shown, x0 = [], noise(range(2), (3, 4, 4)).double()
    end = run(integrate(x0, rows(2, 1), Sampling(solver, steps, cfg_scale)), gaussian_velocity, shown.append)
    assert [s.step for s in shown] == list(range(steps + 1)) and {s.steps for s in shown} == {steps}
    assert [s.t for s in shown] == time_grid(steps)
    assert torch.equal(shown[0].xt, x0) and torch.equal(shown[-1].xt, end) and torch.equal(shown[-1].x1_pred, end)
    assert torch.equal(shown[-2].x1_pred, end)      # the last step goes onto the predicted image


def test_batches_do_not_change_the_cells():
    condition, seeds = rows(5, 1, 1), [4, 0, 3, 1, 2]
    sampled = lambda **kwargs: sample(gaussian_velocity, condition, seeds, (3, 8, 8), Sampling(steps=3), **kwargs)
    assert sampled().shape == (5, 3, 8, 8) and torch.equal(sampled(batch=2), sampled())
