"Steps of the flow: weights that are exact where they must be, and solvers fitted to a model, kept in its folder."
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from mfm_app.core import Condition, InputError, noise, refusal
from mfm_app.engine import Engine
from mfm_app.finetune import random_model
from mfm_app.hub import load_model, save_pretrained
from mfm_app.sampling import Sampling, integrate, run, sampling_of_record
from mfm_app.simulator import synthetic_cells
from mfm_app.solvers import TunedSolver, image_weights, max_order, multistep_weights, time_grid
from mfm_app.tuning import tune, tune_model

times = st.lists(st.floats(0, .99), min_size=2, max_size=4, unique_by=lambda t: round(t, 2))


# Multistep methods

@given(times, st.lists(st.floats(-2, 2), min_size=3, max_size=3), st.booleans())
def test_a_step_is_exact_where_the_images_are_a_polynomial_whichever_way_it_goes(times, coefficients, inverting):
    "Against an independent quadrature of dx/ds = D - x over the step."
    *nodes, to = sorted(times, reverse=inverting)
    nodes = nodes[::-1][:max_order]
    s = lambda t: -np.log1p(-t)
    image = lambda u: np.polyval(coefficients[:len(nodes)], u - s(nodes[0]))
    h = s(to) - s(nodes[0])
    exact = quad(lambda u: np.exp(u - s(to)) * image(u), s(nodes[0]), s(to))[0] / -np.expm1(-h)
    weights = image_weights(nodes, to)
    assert sum(weights) == pytest.approx(1, abs=1e-6)
    assert np.dot(weights, [image(s(t)) for t in nodes]) == pytest.approx(exact, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_method_reaches_its_order_after_as_many_steps_and_goes_onto_the_image(order):
    weights = multistep_weights(time_grid(6), order)
    assert [len(w) for w in weights] == [min(i + 1, order) for i in range(5)] + [1]
    back = multistep_weights(time_grid(6, 1, 0), order)
    assert [len(w) for w in back] == [1] + [min(i + 1, order) for i in range(5)]      # nothing to draw on at the image


@pytest.mark.parametrize("t0, t1", [(0, 1), (1, 0), (.3, .7), (.7, .3), (0, .5), (1, .4)])
@pytest.mark.parametrize("solver", ["multistep2", "multistep3"])
def test_from_any_time_to_any_other_twice_the_steps_are_four_times_as_near(solver, t0, t1):
    "Gaussian cells of spread 0.3: the flow scales what it is given by a known factor."
    scale = lambda t: np.sqrt((1 - t)**2 + (.3 * t)**2)
    def velocity(x, t, condition):
        t = t.view(-1, 1, 1, 1).double()
        return x * (t * .09 - (1 - t)) / ((1 - t)**2 + .09 * t**2)
    def error(steps):
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        end = run(integrate(x, None, Sampling(solver, steps), t0, t1), velocity)
        return abs(end.item() - scale(t1) / scale(t0))
    assert error(80) < .01 and error(40) > 3.4 * error(80)


# Solvers fitted to a model

@pytest.fixture(scope="module")
def model():
    model = random_model(synthetic_cells(8, 16))
    for weight in model.net.backbone.parameters(): torch.nn.init.normal_(weight, std=.08)      # a flow that bends
    return model


@pytest.fixture(scope="module")
def tuned(model): return tune_model(model, (4,), (5,), iterations=12, batch=8, pairs=16)


def test_a_tuned_solver_comes_nearer_to_the_flow_than_the_method_it_starts_from(model):
    result = tune(model.net, model.vocab, 4, iterations=40, batch=8, pairs=32)
    assert result.after > result.before + 1 and result.solver.steps == 4
    assert all(weight.requires_grad for weight in model.net.parameters())


def test_a_model_gets_a_solver_for_sampling_and_a_pair_for_both_ways(tuned):
    solvers = [TunedSolver.from_dict(d) for d in tuned["solvers"]]
    assert [(s.steps, s.goes(1, 0)) for s in solvers] == [(4, False), (5, False), (5, True)]
    assert all(abs(sum(w) - 1) < 1e-5 and len(w) <= max_order for s in solvers for w in s.weights)


@pytest.fixture
def folder(model, tuned, tmp_path):
    "A model folder with tuned solvers in its config."
    save_pretrained(model, tmp_path / "mine")
    record = tuned | dict(weights_sha256=load_model(tmp_path / "mine").sha256)
    path = tmp_path / "mine/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(tuned=record)))
    return tmp_path / "mine"


def test_a_model_folder_keeps_its_solvers_and_the_engine_takes_them(folder):
    engine = Engine(load_model(folder), "cpu", torch.float32)
    answer = engine.generate("sweller", seeds=[0, 1], steps=4)
    p = answer.provenance
    assert p["solver"] == "tuned" and p["nfe"] == 4 and p["grid"].startswith("tuned:")
    again = engine.generate("sweller", seeds=[0, 1], sampling=sampling_of_record(p))
    other = engine.generate("sweller", seeds=[0, 1], steps=4, solver="multistep2").images
    assert (again.images == answer.images).all() and (other != answer.images).any()
    assert engine.generate("sweller", seeds=[0], steps=6).provenance["solver"] == "multistep2"
    json.dumps(p)


def test_inverting_takes_tuned_solvers_where_there_is_one_each_way(folder):
    model = load_model(folder)
    assert [model.resolve_sampling(Sampling(steps=n), inverting=True).solver for n in (4, 5)] == ["multistep2", "tuned"]
    x0, rows = noise([1, 2], model.net.shape), Condition(torch.tensor([1, 2]))
    def error(sampling):
        with torch.no_grad():
            x1 = run(integrate(x0, rows, Sampling("midpoint", 40)), model.net)
            return (run(integrate(x1, rows, sampling, 1., 0.), model.net) - x0).square().mean()
    assert error(model.resolve_sampling(Sampling(steps=5), inverting=True)) < error(Sampling("multistep2", 5))


def test_a_tuned_solver_of_other_weights_is_not_used_and_refused_by_name(folder):
    model = load_model(folder)
    model.sha256 = "0" * 64
    assert model.resolve_sampling(Sampling(steps=4)).solver == "multistep2"
    for asked in (Sampling("tuned", 4), Sampling(steps=4, grid="tuned")):
        message = refusal(model.resolve_sampling, asked)
        assert "'mine' was fitted to other weights; fit it again with `mfm tune`" in message


wrong_settings = {
    "steps there is no tuned solver for": (Sampling("tuned", 7), "no tuned solver of 7 steps; it has 4 and 5; choose"),
    "none both ways": (Sampling("tuned", 4), "no tuned solver for both ways of 4 steps; it has 5; choose another"),
    "the grid of a record that is gone": (Sampling("auto", 4, 1., "tuned:01234567"), "as the record names it"),
    "a tuned solver on another grid": (Sampling("tuned", 4, 1., "even"), "A tuned solver has its own times"),
    "another solver on the tuned grid": (Sampling("heun", 4, 1., "tuned"), "choose another solver than heun"),
    "steps too few for an order": (Sampling("multistep3", 2), "multistep3 needs 3 steps or more, not 2"),
    "an unknown grid": (Sampling(grid="sine"), "Unknown time grid 'sine'; 6 are known, such as 'cosine'"),
    "an unknown solver": (Sampling("rk5"), "Unknown solver 'rk5'; 8 are known")}


@pytest.mark.parametrize("sampling, message", wrong_settings.values(), ids=wrong_settings)
def test_settings_that_cannot_be_are_refused_in_one_sentence(folder, sampling, message):
    text = refusal(load_model(folder).resolve_sampling, sampling, inverting="both ways" in message)
    assert message in text and text.count(". ") == 0


numbers = st.one_of(st.none(), st.floats(), st.text(max_size=3),
                    st.lists(st.one_of(st.floats(-2, 2), st.none()), max_size=4),
                    st.lists(st.lists(st.floats(-2, 2), max_size=4), max_size=4))


@settings(max_examples=60)
@given(numbers, numbers)
def test_numbers_that_make_no_solver_are_refused(ask, times, weights):
    result = ask(TunedSolver.from_dict, dict(times=times, weights=weights))
    if not isinstance(result, InputError): assert TunedSolver.from_dict(asdict(result)) == result


@pytest.mark.parametrize("record", [3, dict(solvers=4), dict(solvers=[dict(times=[0, 1])]),
                                    dict(solvers=[dict(times=[0, .6, .5, 1], weights=[[1]] * 3)])])
def test_a_folder_with_broken_solvers_is_refused(folder, record):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(tuned=record)))
    assert "tuned" in refusal(load_model, folder)
