"The same cells, treated otherwise: known answers where there are any, images brought to the model, what leaves again, and the bundled model on real cells."
import io
import json
import os
import resource
import sys
import threading
import time
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from mfm_app.cli import controls_of, evaluate_counterfactuals, main
from mfm_app.core import Condition, InputError
from mfm_app.vocabulary import Perturbation, Vocabulary
from mfm_app.counterfactual import (Treatment, CounterfactualRequest, check_cells, resolve_counterfactual, cosine, counterfactual, kept, recognised, round_trips,
                                    stream, twin_scores)
from mfm_app.effects import Comparison
from mfm_app.engine import Engine
from mfm_app.evaluation import z_score
from mfm_app.features import nuclear_profile, profile
from mfm_app.finetune import random_model
from mfm_app.hub import load_model, save_model
from mfm_app.images import Micrograph, read_micrograph, read_provenance
from mfm_app.sampling import nfe, run, solvers, invert_then_sample
from mfm_app.simulator import synthetic_cells
from mfm_app.preprocess import ImportOptions, prepare_cells, digest, sample_controls, max_nuclei
from mfm_app.export import Export, export_of, formats, profile_table, statistics_table, unique_labels, write_export

names = ["DNA", "Actin", "Tubulin"]
few = settings(max_examples=20)
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5), st.lists(st.integers(), max_size=3), st.just(10**400))
apart = lambda a, b: np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


# There and back, where cells are Gaussian: treated otherwise they are themselves, moved by the difference of the means

spread, means = 0.3, torch.tensor([0., 0.5, -0.4, 0.1], dtype=torch.float64)      # the last one of all cells


def gaussian(x, t, condition):
    which = torch.full((len(x),), -1) if condition is None or condition.y is None else condition.y
    mean, t = means[which].view(-1, 1, 1, 1), t.view(-1, 1, 1, 1).double()
    return mean + (x - t * mean) * (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t)**2)


def observed(n, *shape): return spread * torch.randn((n, *(shape or (3, 8, 8))), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
def given_to(n, y): return Condition(y=torch.full((n,), y))


def ways(x, ys, was=0, **kwargs):
    n = len(x)
    return run(invert_then_sample(x, given_to(n, was), [given_to(n, y) for y in ys], **kwargs), gaussian)


@pytest.mark.parametrize("cfg_scale", [0, 1, 2.5])
@pytest.mark.parametrize("solver, steps, near", [("euler", 400, .02), ("midpoint", 40, 2e-4), ("heun", 40, 2e-4), ("rk4", 20, 2e-4)])
def test_a_treatment_adds_what_its_mean_differs_and_guidance_so_many_times_that(solver, steps, near, cfg_scale):
    x = observed(4)
    ends = ways(x, [1, 2], solver=solver, steps=steps, cfg_scale=cfg_scale)
    for end, shift in zip(ends, (0, .5, -.4)): assert torch.allclose(end, x + cfg_scale * shift, rtol=0, atol=near)


@pytest.mark.parametrize("solver, gain", [("euler", 1.8), ("midpoint", 3), ("heun", 3), ("rk4", 3)])
def test_twice_the_steps_come_back_nearer_by_what_the_method_promises(solver, gain):
    x = observed(2)
    error = lambda steps: (ways(x, [], solver=solver, steps=steps)[0] - x).abs().max()
    assert error(12) > gain * error(24)


@few
@given(st.sampled_from(list(solvers)), st.integers(1, 6), st.integers(1, 4), st.integers(0, 4), st.sampled_from([0, 1, 3.]), array_shapes(min_dims=3, max_dims=3, max_side=5))
def test_all_treatments_share_one_way_back(solver, steps, n, treatments, cfg_scale, shape):
    x, asked = observed(n, *shape), []
    def counting(x, t, condition):
        asked.append((len(x), t[0].item()))
        return gaussian(x, t, condition)
    ends = run(invert_then_sample(x, given_to(n, 0), [given_to(n, 1 + i % 2) for i in range(treatments)], solver, steps, cfg_scale), counting)
    twice = 1 if cfg_scale in (0, 1) else 2
    back, forth = nfe(solver, steps, to_image=False), nfe(solver, steps)
    assert ends.shape == (1 + treatments, n, *shape)
    assert [rows for rows, _ in asked] == [n * twice] * back + [(1 + treatments) * n * twice] * forth
    assert asked[0][1] == 1 and asked[back][1] == 0      # from the image, then from the noise


@few
@given(st.permutations([0, 1, 2]), st.sampled_from(list(solvers)), st.integers(1, 5), st.sampled_from([0, 1, 2.]))
def test_neither_the_order_of_treatments_nor_the_company_of_other_cells_matters(order, solver, steps, cfg_scale):
    x, how = observed(3), dict(solver=solver, steps=steps, cfg_scale=cfg_scale)
    ends = ways(x, [0, 1, 2], **how)
    assert torch.equal(ways(x, order, **how)[1:], ends[1:][list(order)])
    assert torch.equal(torch.cat([ways(x[i:i + 1], [0, 1, 2], **how) for i in range(3)], 1), ends)


@few
@given(st.integers(0, 2), st.integers(0, 2))
def test_the_way_can_be_undone(was, now):
    x = observed(2)
    there = ways(x, [now], was, solver="rk4", steps=20)[1]
    assert torch.allclose(ways(there, [was], now, solver="rk4", steps=20)[1], x, atol=1e-3)


# Questions to a model

class Watched(torch.nn.Module):
    "A network that counts what it is asked, and can be held."
    def __init__(self, net):
        super().__init__()
        self.net, self.shape, self.rows, self.open = net, net.shape, [], threading.Event()
        self.open.set()

    def forward(self, x, t, condition):
        self.rows.append(len(x))
        assert self.open.wait(60)
        return self.net(x, t, condition)


@pytest.fixture(scope="module")
def engine():
    model = random_model(synthetic_cells(8, 32))
    model.net = Watched(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(autouse=True)
def fresh(engine): engine.model.net.rows.clear()


@pytest.fixture(scope="module")
def cells(): return synthetic_cells(16, 32, 5).where(perturbation="DMSO").images


def asked(engine, cells, *treatments, source={}, **kwargs):
    *moments, answer = stream(engine, cells, CounterfactualRequest(treatments, **kwargs), source)
    return moments, answer


sweller, stabiliser, ethanol = Treatment("sweller", 3.), Treatment("stabiliser", .3), Treatment(molecule="OCC", dose_um=1.)


def test_moments_show_the_originals_going_to_noise_and_the_groups_parting_on_the_way_back(engine, cells):
    moments, answer = asked(engine, cells[:2], sweller, ethanol, steps=5)
    assert [m.step for m in moments] == list(range(11)) and {m.steps for m in moments} == {10}
    assert [m.t for m in moments[:6]][::-1] == pytest.approx([m.t for m in moments[5:]])
    for m in moments:
        assert m.state.shape == m.x1_pred.shape == (4, 2, 3, 32, 32) and m.state.dtype == m.x1_pred.dtype == np.uint8
        assert (m.state[0] == cells[:2]).all() and (m.x1_pred[0] == cells[:2]).all()
    for m in moments[:6]: assert (m.state[1:] == m.state[1]).all()      # one way back for all, to the noise at its end
    assert (moments[0].state == cells[:2]).all() and (moments[-1].x1_pred[2] != moments[-1].x1_pred[3]).any()
    assert (answer.original == cells[:2]).all() and (answer.reconstruction == moments[-1].x1_pred[1]).all() and (answer.treated == moments[-1].x1_pred[2:]).all()


def test_the_control_as_a_treatment_is_the_factual(engine, cells):
    _, answer = asked(engine, cells[:3], sweller, Treatment("dmso", 7.), steps=3)
    assert apart(answer.treated[1], answer.reconstruction) <= 1 < apart(answer.treated[0], answer.reconstruction)
    assert answer.requests[1].dose_um is None and answer.provenance["treatments"][1] == dict(perturbation="DMSO", dose_um=None, molecule=None)


@pytest.mark.parametrize("cfg_scale", [0, 1, 2])
def test_the_factual_is_the_original_with_and_without_guidance(engine, cells, cfg_scale):
    coarse, fine = (asked(engine, cells[:2], Treatment("DMSO"), steps=steps, cfg_scale=cfg_scale)[1].fidelity.psnr for steps in (3, 24))
    assert fine > max(coarse + 6, 40)


def test_a_cell_is_treated_alike_alone_and_in_company_first_and_last(engine, cells):
    together = asked(engine, cells[:3], sweller, ethanol, stabiliser, steps=4)[1]
    turned = asked(engine, cells[:3][::-1], stabiliser, sweller, ethanol, steps=4)[1]
    alone = [asked(engine, cells[i:i + 1], ethanol, steps=4)[1] for i in range(3)]
    assert apart(turned.treated[[1, 2, 0]][:, ::-1], together.treated) <= 1
    for i, answer in enumerate(alone): assert apart(answer.treated[0, 0], together.treated[1, i]) <= 1 and apart(answer.reconstruction[0], together.reconstruction[i]) <= 1


def test_eight_treatments_cost_as_many_network_calls_as_one(engine, cells):
    doses = list(np.geomspace(.5, 50, 8))
    before = engine.walks.rounds
    answer = counterfactual(engine, cells[:2], "sweller", doses, steps=4)
    calls = nfe("midpoint", 4, to_image=False) + nfe("midpoint", 4)
    assert engine.walks.rounds - before == calls == answer.provenance["nfe"]
    assert engine.model.net.rows == [2] * 8 + [2 * 9] * 7
    assert [r.dose_um for r in answer.requests] == doses and len(answer.comparisons) == 8 and all((c.untreated == answer.reconstruction).all() for c in answer.comparisons)
    far = [np.abs(c.treated.astype(int) - c.untreated).mean() for c in answer.comparisons]
    assert len(set(far)) == 8, "every dose has a picture of its own"


def test_two_visitors_are_walked_in_the_same_network_calls(engine, cells):
    net, answers = engine.model.net, {}
    net.open.clear()
    def visit(name, treatment, steps): answers[name] = asked(engine, cells, treatment, steps=steps)[1]
    visitors = [threading.Thread(target=visit, args=a) for a in (("one", sweller, 3), ("other", ethanol, 3))]
    visitors[0].start()
    while not net.rows: time.sleep(.01)         # the first question is out, alone
    visitors[1].start()
    while engine.walks.arrived.empty(): time.sleep(.01)
    net.open.set()
    for visitor in visitors: visitor.join(60)
    rows = list(net.rows)
    assert rows[0] == 16 and 32 in rows and 64 in rows and len(rows) <= nfe("midpoint", 3, to_image=False) + nfe("midpoint", 3) + 2
    for name, treatment in (("one", sweller), ("other", ethanol)):
        alone = asked(engine, cells, treatment, steps=3)[1]
        assert apart(answers[name].treated, alone.treated) <= 1 and apart(answers[name].reconstruction, alone.reconstruction) <= 1


def test_closing_ends_the_walk_and_the_next_question_is_answered(engine, cells):
    running = stream(engine, cells[:2], CounterfactualRequest((sweller,), steps=200))
    next(running), next(running)
    running.close()
    _, answer = asked(engine, cells[:1], ethanol, steps=1)
    assert answer.treated.shape == (1, 1, 3, 32, 32) and len(engine.model.net.rows) < 100


def test_a_molecule_is_as_good_a_treatment_as_a_name(engine, cells):
    _, answer = asked(engine, cells[:2], ethanol, Treatment(molecule="CCO", dose_um=1.), sweller, steps=2)
    assert answer.requests[0].molecule == "CCO" and answer.provenance["treatments"][0] == dict(perturbation=None, dose_um=1., molecule="CCO")
    assert apart(answer.treated[0], answer.treated[1]) <= 1 < apart(answer.treated[0], answer.treated[2])


def repeated(engine, cells, told):
    "The answer that a provenance describes, from the cells it describes."
    return asked(engine, cells, *(Treatment(**t) for t in told["treatments"]), source=told["source"], experiment=told["experiment"], cell_type=told["cell_type"],
                 solver=told["solver"], steps=told["steps"], cfg_scale=told["cfg_scale"])[1]


@pytest.mark.parametrize("how", [dict(), dict(experiment="week2", solver="HEUN", steps=3, cfg_scale=2), dict(experiment="any", cell_type="any", solver="rk4", steps=2)], ids=["plain", "guided", "open"])
def test_a_provenance_is_enough_to_draw_the_very_pictures_again(engine, how):
    how = dict(steps=4) | how
    drawn, source = sample_controls(engine, [3, 1, 4], "Week2")
    _, answer = asked(engine, drawn, Treatment("sweller"), ethanol, Treatment("DMSO"), source=source, **how)
    told = json.loads(json.dumps(answer.provenance))
    assert told == answer.provenance, "JSON keeps all of it"
    where = told["source"]
    again, _ = sample_controls(engine, where["seeds"], where["experiment"])
    assert where["kind"] == "drawn" and digest(again) == told["cells_sha256"] and len(again) == told["cells"]
    other = repeated(engine, again, told)
    for a, b in ((answer.original, other.original), (answer.reconstruction, other.reconstruction), (answer.treated, other.treated)): assert a.tobytes() == b.tobytes()
    same = lambda d: {k: v for k, v in d.items() if k != "seconds"}
    assert same(other.provenance) == same(answer.provenance)
    assert {told["weights_sha256"], told["model"], told["dtype"], told["control"]} == {engine.model.sha256, "drawn", "float32", "DMSO"}


# What is refused

bad_questions = dict(
    nothing_asked=dict(treatments=()), too_many=dict(treatments=(sweller,) * 13), no_treatment=dict(treatments=(None,)), text=dict(treatments="sweller"), none=dict(treatments=None),
    number=dict(treatments=5), unknown=dict(treatments=(Treatment("aspirin"),)), empty=dict(treatments=(Treatment(),)), both=dict(treatments=(Treatment("sweller", 1., "CCO"),)),
    broken_molecule=dict(treatments=(Treatment(molecule="C1CC"),)), no_text=dict(treatments=(Treatment(molecule=3),)), dose_nan=dict(treatments=(Treatment("sweller", float("nan")),)),
    dose_text=dict(treatments=(Treatment("sweller", "1"),)), dose_negative=dict(treatments=(Treatment("sweller", -1.),)), dose_far=dict(treatments=(Treatment("sweller", 1e6),)),
    dose_flag=dict(treatments=(Treatment("sweller", True),)), dose_of_molecule=dict(treatments=(Treatment(molecule="CCO", dose_um=float("inf")),)), second=dict(treatments=(sweller, Treatment("sweller", 0))),
    experiment=dict(treatments=(sweller,), experiment="Week77"), experiment_type=dict(treatments=(sweller,), experiment=7), cell_type=dict(treatments=(sweller,), cell_type="HeLa\nno"),
    no_steps=dict(treatments=(sweller,), steps=0), steps_nan=dict(treatments=(sweller,), steps=float("nan")), many_steps=dict(treatments=(sweller,), steps=201),
    solver=dict(treatments=(sweller,), solver="rk5"), solver_type=dict(treatments=(sweller,), solver=None), guidance=dict(treatments=(sweller,), cfg_scale=float("nan")), guidance_text=dict(treatments=(sweller,), cfg_scale="2"))


@pytest.mark.parametrize("why", bad_questions)
def test_what_cannot_be_asked_is_refused_before_anything_is_computed(ask, engine, cells, why):
    assert isinstance(ask(lambda: next(stream(engine, cells[:2], CounterfactualRequest(**bad_questions[why])))), InputError)
    assert not engine.model.net.rows


@given(anything, anything, anything, anything, anything, st.one_of(st.sampled_from(["euler", "rk4"]), anything), st.one_of(st.integers(1, 200), anything), st.one_of(st.floats(0, 8), anything))
@example("sweller", 3., None, None, None, "midpoint", 20, 1.)
@example("a\nb", 10**400, None, "a\u2028b", None, "midpoint", 20, 1.)
@example(None, None, "C" * 5000, None, None, "midpoint", 20, 1.)
@example("sweller", None, None, "", "", "midpoint", 20., 1)
def test_whatever_is_asked_it_is_filled_in_or_refused_in_one_line(ask, engine, name, dose, molecule, experiment, cell_type, solver, steps, cfg_scale):
    got = ask(resolve_counterfactual, CounterfactualRequest((Treatment(name, dose, molecule),), experiment, cell_type, solver, steps, cfg_scale), 2, engine)
    if isinstance(got, InputError): return
    assert (got[0].perturbation is None) != (got[0].molecule is None) and got[0].solver in solvers and 1 <= got[0].steps <= 200 and 0 <= got[0].cfg_scale <= 8
    assert got[0].experiment in [*engine.vocab.experiments, "any"] and got[0].cell_type in [*engine.vocab.cell_types, "any"]
    assert isinstance(got[0].dose_um, float) or got[0].perturbation == "DMSO"


@given(st.one_of(anything, arrays(st.sampled_from([np.uint8, np.int8, np.float32, np.bool_, "U1"]), array_shapes(min_dims=0, max_dims=5, max_side=4)), st.lists(st.lists(st.integers(0, 255), max_size=3), max_size=3)))
@example([[1], [1, 2]])
def test_what_are_no_cells_of_the_models_is_refused(ask, cells): assert isinstance(ask(check_cells, cells, (3, 32, 32)), InputError)


@pytest.mark.parametrize("wrong", [lambda x: x.astype(float), lambda x: x[0], lambda x: x[:, :2], lambda x: x[:0], lambda x: x[..., :16], lambda x: x.astype(np.int16)])
def test_cells_of_another_kind_are_refused(ask, engine, cells, wrong):
    said = str(ask(counterfactual, engine, wrong(cells), "sweller"))
    assert "(cells, 3, 32, 32)" in said and not engine.model.net.rows


def test_the_experiment_is_that_of_the_controls_before_and_after():
    elsewhere = Vocabulary([Perturbation("DMSO", experiments={"Week1": 1, "Week2": 9}), Perturbation("taxol", doses={1.: 9}, experiments={"Week1": 9})], ["Week1", "Week2"], ["MCF-7"])
    asked = lambda **which: resolve_counterfactual(CounterfactualRequest((Treatment("taxol"), Treatment("dmso")), **which), 1, SimpleNamespace(vocab=elsewhere))
    assert [r.experiment for r in asked()] == ["Week2"] * 2 and [r.experiment for r in asked(experiment="week1")] == ["Week1"] * 2


def test_more_pictures_than_can_be_drawn_at_a_time_are_refused(ask, engine, cells):
    many = np.concatenate([cells] * 4)
    assert resolve_counterfactual(CounterfactualRequest((sweller,) * 8), len(many), engine) and "512" in str(ask(counterfactual, engine, many, "sweller", [1.] * 9))


def test_a_hostile_source_leaves_as_json(engine, cells):
    source = dict(kind="image", name="../../\ud800\0\n<script>'\"$(rm)☃.tif", nested=[dict(a=[None, 1.5, True])])
    _, answer = asked(engine, cells[:1], Treatment("DMSO"), source=source, steps=1)
    assert json.loads(json.dumps(answer.provenance))["source"] == source
    for format in formats: assert write_export(export_of(answer), format)[2]


# Measures of how true it is

def test_a_cell_is_recognised_by_its_own_picture(cells):
    assert recognised(cells, cells) == 1 and recognised(np.roll(cells, 1, 0), cells) == 0 and recognised(cells // 2 + 20, cells) == 1


def test_what_is_kept_is_the_order_of_cells():
    before = pd.DataFrame(dict(a=[1., 2, 3, 4], b=[4., 1, 3, 2], c=[0., 5, 9, 6]))
    assert kept(before ** 3 + 1, before) == pytest.approx(1) and kept(-before, before) == pytest.approx(-1)


def test_a_perfect_guess_at_twins_scores_one_and_none_scores_nothing():
    true = np.random.default_rng(0).normal(0, 9, (5, 3, 8, 8))
    perfect, half, none = (twin_scores(f * true, true) for f in (1, .5, 0))
    assert perfect == pytest.approx(dict(correlation=1, of_means=1, error=0)) and half["correlation"] == pytest.approx(1)
    assert none["correlation"] == none["of_means"] == 0 and none["error"] == pytest.approx(2 * half["error"])


def test_a_direction_has_no_length():
    a = np.array([3., 4.])
    assert cosine(a, 7 * a) == pytest.approx(1) and cosine(a, -a) == pytest.approx(-1) and cosine(a, 0 * a) == 0 == cosine(a, np.array([4., -3.]))


# Images brought to the model

@pytest.fixture(scope="module")
def large():
    "A model of cells of 64 pixels; its network is not asked."
    return Engine(random_model(), "cpu", torch.float32)


def field(side, diameter):      # (3, side, side) floats from 0 to 1
    "Nuclei of one width on a loose grid, some brighter than others, each in a cell."
    pitch, places, rng = int(diameter * 2.5), np.arange(side), np.random.default_rng(0)
    n = side // pitch + 1
    drift, bright = rng.uniform(-.2, .2, (2, n, n)) * diameter, rng.uniform(.6, 1, (n, n))
    row, column = np.meshgrid(places // pitch, places // pitch, indexing="ij")
    y, x = places[:, None] % pitch - pitch / 2 - drift[0][row, column], places % pitch - pitch / 2 - drift[1][row, column]
    r = np.hypot(y, x) / diameter
    dna = 1 / (1 + np.exp((r - .5) * min(diameter * 2, 300)))
    return np.stack([dna * .8, np.exp(-((r - .9) / .15) ** 2) * .7, np.exp(-r ** 2) * (.5 + .4 * np.sin(9 * x / diameter))]) * bright[row, column]


def photographed(light, gain=6000., offset=400., noise=20., order=(0, 1, 2), seed=1, um_per_px=None):
    "A 16-bit file of a field."
    grain = np.random.default_rng(seed).normal(0, noise / gain, light.shape)
    pixels = (gain * (light + grain) + offset).round().clip(0, 65_535).astype(np.uint16)
    return Micrograph(pixels[None, list(order)], [names[i] for i in order], um_per_px, 16, [])


def width(cells): return 2 * np.sqrt(np.median(nuclear_profile(cells, names)["nucleus_area_px"]) / np.pi)


@pytest.mark.parametrize("side, diameter", [(256, 9), (256, 20), (512, 50), (900, 110)])
def test_nuclei_of_any_width_come_back_as_wide_as_the_models(large, side, diameter):
    brought, own = prepare_cells(large, photographed(field(side, diameter), um_per_px=.2)), large.model.config["controls"]["nucleus_px"]
    assert len(brought.cells) >= 4 and width(brought.cells) == pytest.approx(own, rel=.1)
    assert brought.reading.nucleus_px == pytest.approx(diameter, rel=.1, abs=1.5)
    assert brought.um_per_px == pytest.approx(.2 * brought.reading.nucleus_px / own)
    assert f"{brought.reading.nucleus_px:g} px wide in the file" in brought.notes[-1] and f"{brought.um_per_px:.3g}" in brought.notes[-1]


def test_nuclei_lie_where_they_are_drawn_and_in_the_middle_of_their_crops(large):
    light = field(300, 24)[:, :, :190]
    brought = prepare_cells(large, photographed(light))
    for place, cell in zip(brought.nuclei, brought.before):
        y, x = (place * light.shape[1:]).astype(int)
        nucleus = np.argwhere(light[0, y - 14:y + 15, x - 14:x + 15] > .4)
        assert np.abs(nucleus.mean(0) - 14).max() < 1.5
        assert cell[0, 28:36, 28:36].mean() > 2 * cell[0, [0, -1]].mean()
    side = 64 * brought.reading.nucleus_px / large.model.config["controls"]["nucleus_px"]
    assert np.allclose(brought.crop, [side / 300, side / 190])


@few
@given(st.permutations([0, 1, 2]))
def test_the_order_of_channels_does_not_matter_where_names_say(large, order):
    light = field(200, 20)
    a, b = prepare_cells(large, photographed(light)), prepare_cells(large, photographed(light, order=order))
    assert [order[i] for i in b.reading.channels] == [0, 1, 2] and apart(a.cells, b.cells) <= 1


def test_matching_makes_a_field_at_another_gain_and_offset_equal(large):
    light = field(256, 20)
    a, b = (prepare_cells(large, photographed(light, gain, offset, noise=0)) for gain, offset in ((6000, 400), (18_000, 440)))
    assert apart(a.cells, b.cells) <= 2 < apart(a.before, b.before)


@few
@given(st.floats(.2, 8), st.floats(0, 3000))
def test_another_gain_and_offset_move_no_nucleus_by_more_than_a_pixel_and_leave_the_light(large, gain, offset):
    light = field(200, 20)
    a, b = (prepare_cells(large, photographed(light, *how, noise=0)) for how in ((6000, 400), (6000 * gain, 400 + offset)))
    away = np.linalg.norm(a.nuclei[:, None] - b.nuclei, axis=2)
    assert len(a.nuclei) == len(b.nuclei) and away.min(1).max() * 200 < 1
    alike = [apart(cell, other) <= 4 for cell, other in zip(a.cells, b.cells[away.argmin(1)])]      # the others are cut a pixel aside
    assert np.mean(alike) > .6


@few
@given(st.lists(st.integers(0, 8), min_size=1, max_size=5))
def test_the_choice_of_cells_does_not_change_their_light(large, chosen):
    file = photographed(field(220, 20))
    every, some = prepare_cells(large, file), prepare_cells(large, file, ImportOptions(chosen=tuple(chosen)))
    assert (some.cells == every.cells[chosen]).all() and some.chosen == chosen


def test_matched_cells_have_the_light_of_the_controls(large):
    controls = large.model.config["controls"]
    brought = prepare_cells(large, photographed(field(300, 24)))
    low, high = (np.median(np.percentile(brought.cells, q, axis=(2, 3)), 0) for q in (1, 99.5))
    assert np.allclose(np.stack([low, high], 1), controls["percentiles"], atol=3)


def test_cells_of_the_models_own_size_pass_untouched_unless_their_light_is_matched(large):
    own = synthetic_cells(4).images[:12]
    file = Micrograph(own, names, .3, 8, ["A note of the file's."])
    untouched, matched = (prepare_cells(large, file, ImportOptions(match=match)) for match in (False, True))
    assert (untouched.cells == own).all() and (matched.before == own).all() and apart(matched.cells, own) > 2
    assert untouched.um_per_px == .3 and untouched.reading.nucleus_px is None and untouched.notes[0] == "A note of the file's." and "taken as it is" in untouched.notes[1]
    turned = Micrograph(own[:, [2, 0, 1]], ["tub", "Hoechst", "phalloidin"], None, 8, [])
    assert (prepare_cells(large, turned, ImportOptions((1, 2, 0), match=False)).cells == own).all()


def test_a_picture_in_the_models_colours_needs_no_names(large):
    own = synthetic_cells(1).images[:3]
    brought = prepare_cells(large, Micrograph(own[:, [2, 1, 0]], ["red", "green", "blue"], None, 8, []), ImportOptions(match=False))
    assert brought.reading.channels == (2, 1, 0) and (brought.cells == own).all()


@pytest.mark.parametrize("file", [lambda: photographed(field(210, 23)), lambda: Micrograph(synthetic_cells(2).images, names, None, 8, []), lambda: Micrograph(synthetic_cells(2, 96).images[:5], names, None, 8, [])],
                         ids=["field", "own size", "several"])
@pytest.mark.parametrize("reading", [ImportOptions(), ImportOptions(match=False, chosen=(2, 0)), ImportOptions(nucleus_px=17.3)], ids=["guessed", "chosen", "given"])
def test_what_is_noted_of_an_image_is_enough_to_bring_the_very_cells_again(large, file, reading):
    first = prepare_cells(large, file(), reading, "field.tif")
    told = json.loads(json.dumps(first.source))
    assert told.pop("kind") == "image" and told.pop("name") == "field.tif" and told.pop("sha256") == digest(file().pixels)
    again = prepare_cells(large, file(), ImportOptions(**told))
    assert again.cells.tobytes() == first.cells.tobytes() and json.loads(json.dumps(again.source)) == json.loads(json.dumps(first.source | dict(name="")))


def test_of_several_images_each_is_one_cell(large):
    own = synthetic_cells(3, 128).images[:6]
    brought = prepare_cells(large, Micrograph(own, names, None, 8, []))
    assert brought.cells.shape == (6, 3, 64, 64) and width(brought.cells) == pytest.approx(large.model.config["controls"]["nucleus_px"], rel=.15)


def test_of_very_many_images_the_first_are_looked_at_and_that_is_said(large):
    many = np.resize(synthetic_cells(2, 64).images, (max_nuclei + 40, 3, 64, 64))
    brought = prepare_cells(large, Micrograph(many, names, None, 8, []), ImportOptions(chosen=(0, max_nuclei - 1)))
    assert len(brought.cells) == 2 and f"{max_nuclei + 40} images" in brought.notes[0]


own, grey = synthetic_cells(1, 64).images[:2], np.tile(np.uint8([5, 6] * 100), (1, 3, 200, 1))
plain = lambda pixels, called=names: Micrograph(pixels, list(called), None, 8, [])
unbringable = dict(
    two_channels=(plain(own[:, :2], names[:2]), ImportOptions()), unnamed=(plain(own[:, [0, 1, 1, 2]], ["a", "b", "c", "d"]), ImportOptions()), two_given=(plain(own), ImportOptions((0, 1))),
    channel_beyond=(plain(own), ImportOptions((0, 1, 3))), channel_negative=(plain(own), ImportOptions((0, 1, -1))), channel_text=(plain(own), ImportOptions((0, 1, "2x"))), channel_none=(plain(own), ImportOptions((0, None, 2))),
    channels_number=(plain(own), ImportOptions(5)), tiny_nucleus=(plain(own), ImportOptions(nucleus_px=.1)), huge_nucleus=(plain(own), ImportOptions(nucleus_px=1e9)), nucleus_nan=(plain(own), ImportOptions(nucleus_px=float("nan"))),
    nucleus_zero=(plain(own), ImportOptions(nucleus_px=0)), nucleus_text=(plain(own), ImportOptions(nucleus_px="20")), none_chosen=(plain(own), ImportOptions(chosen=())), beyond=(plain(own), ImportOptions(chosen=(2,))),
    chosen_text=(plain(own), ImportOptions(chosen="ab")), chosen_number=(plain(own), ImportOptions(chosen=1)), chosen_half=(plain(own), ImportOptions(chosen=(.5,))), too_many=(plain(own), ImportOptions(chosen=(0,) * 65)),
    no_nuclei=(plain(grey), ImportOptions()), flat=(plain(np.stack([own[0, 0], own[0, 1], 0 * own[0, 2]])[None]), ImportOptions()))


@pytest.mark.parametrize("why", unbringable)
def test_what_cannot_be_brought_is_refused(ask, large, why): assert isinstance(ask(prepare_cells, large, *unbringable[why]), InputError)


def test_a_model_that_knows_nothing_of_its_controls_says_who_does(ask, large):
    silent = SimpleNamespace(model=replace(large.model, config={k: v for k, v in large.model.config.items() if k != "controls"}))
    assert "mfm evaluate" in str(ask(prepare_cells, silent, plain(own)))
    blind = SimpleNamespace(model=replace(large.model, config=large.model.config | dict(controls=large.model.config["controls"] | dict(nucleus_px=None))))
    assert len(prepare_cells(blind, plain(own)).cells) == 2 and "64 x 64" in str(ask(prepare_cells, blind, photographed(field(200, 20))))


@given(st.one_of(st.none(), st.lists(anything, max_size=4).map(tuple), anything), anything, st.one_of(st.none(), st.lists(anything, max_size=4).map(tuple), anything))
@example((0, 1, 10**400), 10**400, (10**400,))
@example(np.nan, np.nan, np.nan)
def test_whatever_is_said_of_an_image_cells_come_of_it_or_one_line(ask, large, channels, nucleus_px, chosen):
    got = ask(prepare_cells, large, plain(own), ImportOptions(channels, nucleus_px, True, chosen))
    assert isinstance(got, InputError) or got.cells.dtype == np.uint8 and got.cells.shape[1:] == (3, 64, 64)


def test_a_field_of_four_thousand_pixels_a_side_is_brought_in_bounded_time_and_memory(large):
    file = photographed(np.tile(field(1000, 33), (1, 4, 4)))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    brought = prepare_cells(large, file)
    assert len(brought.nuclei) == max_nuclei and len(brought.cells) == 64 and max(brought.field.shape) <= 768
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2e9 and time.process_time() - began < 40


# Exported files

hostile = ["CC(=O)Oc1ccccc1C(=O)O 1 µM", "F/C=C/F", r"F/C=C\F", "../../etc/passwd", "..", ".", "", "a" * 5000, "CON",
           "☃ ünï\u202e", "a\0b\nc", "file", "images", "channels", "provenance", "$\\frac$ $_$", "=1+1", "original",
           "x: mean"]


@pytest.fixture(scope="module")
def answer(engine, cells):
    treatments = sweller, Treatment(molecule="F/C=C/F", dose_um=1.), Treatment("sweller", 3.0000001)
    return asked(engine, cells[:7], *treatments, source=dict(kind="image", name="ünï ☃.tif"), steps=2)[1]


@pytest.fixture(scope="module")
def everything(answer): return export_of(answer, um_per_px=.325)


def test_no_two_sets_of_images_share_a_label(answer, everything):
    labels = ["original", "reconstruction", "sweller 3 µM", "F/C=C/F 1 µM", "sweller 3 µM (2)"]
    assert list(everything.images) == labels and list(everything.comparisons) == labels[2:]
    assert (everything.images["sweller 3 µM (2)"] == answer.treated[2]).all()
    assert everything.comparisons["sweller 3 µM (2)"] is answer.comparisons[2]


@given(st.lists(st.sampled_from(["a", "a (2)", "b", ""]), max_size=8),
       st.lists(st.sampled_from(["a", "b"]), unique=True))
def test_labels_are_unique_and_unchanged_where_they_can_be(labels, reserved):
    unique = unique_labels(labels, reserved)
    assert len({*unique, *reserved}) == len(unique) + len(reserved)
    assert all(new.startswith(old) for new, old in zip(unique, labels))
    assert unique_labels(dict.fromkeys(labels)) == list(dict.fromkeys(labels))


def test_an_ome_tiff_holds_pixels_names_size_and_provenance(everything, answer, tmp_path):
    name, media_type, content = write_export(everything, "OME-TIFF")
    with zipfile.ZipFile(io.BytesIO(content)) as archive: archive.extractall(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert (name, media_type) == ("counterfactual.ome-tiff.zip", "application/zip") and len(paths) == 5 + 3
    for path, images in zip(paths, everything.images.values()):
        micrograph = read_micrograph(path)
        assert (micrograph.pixels == images).all() and micrograph.names == names
        assert micrograph.um_per_px == pytest.approx(.325) and read_provenance(path) == answer.provenance
    for path, comparison in zip(paths[5:], answer.comparisons):
        assert np.array_equal(tifffile.imread(path).squeeze(), comparison.map.mean)
        assert read_provenance(path) == answer.provenance


def test_an_npz_holds_every_image_and_every_effect(everything, answer, tmp_path):
    (tmp_path / "all.npz").write_bytes(write_export(everything, "NPZ")[2])
    assert read_provenance(tmp_path / "all.npz") == answer.provenance
    labels = ["sweller 3 µM", "F_C=C_F 1 µM", "sweller 3 µM (2)"]
    with np.load(tmp_path / "all.npz", allow_pickle=False) as arrays:
        assert len(arrays.files) == 5 + 3 * 4 + 2 and arrays["channels"].tolist() == names
        assert (arrays["original"] == answer.original).all()
        for label, images, comparison in zip(labels, answer.treated, answer.comparisons):
            assert (arrays[label] == images).all()
            for part in ("mean", "spread", "p", "significant"):
                assert np.array_equal(arrays[f"{label}: {part}"], getattr(comparison.map, part))


def test_a_png_shows_every_set_and_its_provenance(everything, answer, tmp_path):
    (tmp_path / "all.png").write_bytes(write_export(everything, "PNG")[2])
    assert read_provenance(tmp_path / "all.png") == answer.provenance
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.mode == "RGB" and picture.height > 5 * 64 and len(np.unique(picture)) > 50


def test_tables_agree_with_the_comparisons(everything, answer):
    tables = "profiles", "statistics", "pixels"
    with zipfile.ZipFile(io.BytesIO(write_export(everything, "CSV")[2])) as archive:
        assert set(archive.namelist()) == {*(f"{table}.csv" for table in tables), "provenance.json"}
        assert json.loads(archive.read("provenance.json")) == answer.provenance
        profiles, statistics, pixels = (pd.read_csv(archive.open(f"{table}.csv")) for table in tables)
    assert len(profiles) == 3 * 2 * 7 and len(pixels) == 3 * 3
    assert len(statistics) == 3 * answer.comparisons[0].profiles[0].shape[1]
    for label, comparison in everything.comparisons.items():
        for untreated, table in zip((False, True), comparison.profiles):
            rows = profiles[(profiles.treatment == label) & (profiles.untreated == untreated)]
            assert rows.cell.tolist() == list(range(1, 8)) and np.allclose(rows[list(table)], table, rtol=1e-4)
        rows = statistics[statistics.treatment == label].set_index("feature")
        assert list(rows.index) == list(comparison.table.index)
        for column in ("effect", "low", "high", "p_adjusted"):
            assert np.allclose(rows[column], comparison.table[column], equal_nan=True)
        for i, row in enumerate(pixels[pixels.treatment == label].itertuples()):
            assert row.channel == names[i]
            assert row.mean_change == pytest.approx(comparison.map.mean[i].mean(), abs=1e-6)
            assert row.significant_share == comparison.map.significant[i].mean()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_labels_make_safe_names_and_lose_no_image(cells, tmp_path):
    images = {label: cells[i % 3:i % 3 + 2] for i, label in enumerate(hostile)}
    comparisons = {label: Comparison(treated, cells[4:6], names) for label, treated in list(images.items())[:4]}
    channels = [dict(name=name, colour=colour) for name, colour in zip(names, ("blue", "green", "red"))]
    export = Export("cells", images, comparisons, channels, dict(note="ok"))
    for format in formats:
        name, _, content = write_export(export, format)
        (tmp_path / name).write_bytes(content)
        if not zipfile.is_zipfile(tmp_path / name): continue
        with zipfile.ZipFile(tmp_path / name) as archive: members = archive.namelist()
        assert len(set(map(str.casefold, members))) == len(members)
        for member in members:
            assert 0 < len(member.encode()) <= 255 and not {"/", "\\"} & set(member) and member.isprintable()
    with np.load(tmp_path / "cells.npz", allow_pickle=False) as arrays:
        assert len(arrays.files) == len(hostile) + 4 * 2 + 2      # too few cells for a p
        written = [arrays[name].tobytes() for name in arrays.files if arrays[name].dtype == np.uint8]
        assert sorted(written) == sorted(array.tobytes() for array in images.values())
    with zipfile.ZipFile(tmp_path / "cells.ome-tiff.zip") as archive:
        assert len(archive.namelist()) == len(hostile) + 4
    with zipfile.ZipFile(tmp_path / "cells.csv.zip") as archive:
        table = pd.read_csv(archive.open("pixels.csv"), keep_default_na=False)
        assert set(table.treatment) == set(comparisons)


recording, files_written = [], []


def record_writing(event, args):
    if not recording or event != "open" or not isinstance(args[2], int): return
    if args[2] & (os.O_WRONLY | os.O_RDWR): files_written.append(args[0])


sys.addaudithook(record_writing)


def test_an_export_writes_nothing_to_disk(everything):
    write_export(everything, "PNG")      # what is read or cached once is there now
    recording.append(True)
    try: sizes = [len(write_export(everything, format)[2]) for format in formats]
    finally: recording.clear()
    assert min(sizes) > 1000 and not files_written


def test_cells_are_exported_with_and_without_their_control(ask, engine):
    answers = [engine.generate("sweller", 3., range(3), steps=1, compare=compare) for compare in (True, False)]
    both, alone = map(export_of, answers)
    assert list(both.images) == ["sweller 3 µM", "control"] and (both.images["control"] == answers[0].control).all()
    assert len(profile_table(both)) == 6 and set(statistics_table(both).treatment) == {"sweller 3 µM"}
    assert list(alone.images) == ["sweller 3 µM"] and "the control as well" in str(ask(write_export, alone, "CSV"))
    for format in ("OME-TIFF", "PNG", "NPZ"): assert write_export(alone, format)[2]


def test_one_set_of_images_has_a_plain_name_in_an_npz(engine):
    one = export_of(engine.generate("sweller", 3., range(3), steps=1, compare=False))
    with np.load(io.BytesIO(write_export(one, "NPZ")[2]), allow_pickle=False) as arrays:
        assert set(arrays.files) == {"sweller 3 µM", "images", "channels", "provenance"}
        for name in ("images", "sweller 3 µM"): assert (arrays[name] == one.images["sweller 3 µM"]).all()


@pytest.mark.parametrize("format", ["exe", "csv", None, 3, "PNG\n", ["PNG"]])
def test_another_format_is_refused(ask, everything, format):
    assert "OME-TIFF, PNG, NPZ, CSV" in str(ask(write_export, everything, format))


# From the command line

def test_a_trained_model_says_how_its_controls_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = synthetic_cells(4, 32)
    for i, image in enumerate(drawn.images):
        (folder := tmp_path / "own" / drawn.table.perturbation[i]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    with pytest.raises(SystemExit) as stop: main(["train", "--data", "own", "--out", "run", "--backbone", "nano/8", "--image-size", "32", "--batch", "4", "--steps", "1"])
    assert stop.value.code == 0
    model = load_model(tmp_path / "run/model")
    controls = model.config["controls"]
    assert np.shape(controls["percentiles"]) == (3, 2) and 4 < controls["nucleus_px"] < 20
    assert len(prepare_cells(Engine(model, "cpu", torch.float32), Micrograph(drawn.images[:2], ["a", "b", "c"], None, 8, []), ImportOptions((0, 1, 2))).cells) == 2


@pytest.fixture(scope="module")
def judged():
    "A small model, and what is found of its counterfactuals."
    cells = synthetic_cells(24, 32)
    model, quick = random_model(cells), [("euler", 1), ("midpoint", 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_trips, "__defaults__", (None, quick))
        patch.setattr(CounterfactualRequest.__init__, "__defaults__", (None, None, "midpoint", 2, 1.))
        return model, evaluate_counterfactuals(model, cells, n=4, fewest=8)


def test_counterfactuals_are_judged_by_round_trips_and_shifts(judged):
    model, found = judged
    assert [(r["solver"], r["steps"], r["nfe"]) for r in found["round_trips"]] == [("euler", 1, 2), ("midpoint", 2, 7)] and all(r["psnr"] > 0 for r in found["round_trips"])
    assert found["shifts"] and json.loads(json.dumps(found)) == found
    for s in found["shifts"]:
        assert (s["perturbation"], s["dose_um"]) in {("sweller", 1.), ("sweller", 10.), ("stabiliser", .1), ("stabiliser", 1.)} and s["cells"] == 4 and s["real_cells"] >= 8
        assert len(s["features"]) == len(s["predicted"]) == len(s["real"]) and -1 <= s["cosine"] <= 1 and -1 <= s["kept"] <= 1 and 0 <= s["recognised"] <= 1 and s["ratio"] >= 0
        assert cosine(np.array(s["predicted"]), np.array(s["real"])) == pytest.approx(s["cosine"], abs=.01)


@pytest.mark.parametrize("shifts", [True, False])
def test_the_card_says_what_was_found_whether_or_not_a_shift_could_be_measured(judged, tmp_path, shifts):
    model, found = judged
    found = found if shifts else found | dict(shifts=[])
    save_model(tmp_path / "model", model.net, model.config | dict(quality=dict(counterfactual=found)))
    card = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert f"PSNR by inversion: {found['round_trips'][-1]['psnr']:.1f} dB" in card and ("| sweller 10 µM |" in card) == shifts


def test_without_unseen_controls_nothing_is_judged(ask, judged):
    assert "unseen controls" in str(ask(evaluate_counterfactuals, judged[0], synthetic_cells(4, 32).where(split="train")))


# The bundled model on real cells

@pytest.fixture(scope="module")
def bundled(): return Engine(load_model())


@pytest.fixture(scope="module")
def unseen(real_cells):
    "The controls that `mfm evaluate` asks about, week 4."
    found = real_cells.where(perturbation="DMSO", split="iid").where(experiment="Week4").images
    return found[np.random.default_rng(0).permutation(len(found))[:16]]


@pytest.fixture(scope="module")
def treated(bundled, unseen): return asked(bundled, unseen, Treatment("cyclohexamide", 15.), Treatment("taxol", .3), experiment="Week4")[1]


def test_real_cells_come_back_and_as_near_as_the_card_says(bundled, treated):
    said = bundled.model.config["quality"]["counterfactual"]["round_trips"]
    default = next(r for r in said if (r["solver"], r["steps"]) == (CounterfactualRequest.solver, CounterfactualRequest.steps))
    assert treated.fidelity.psnr > 42 and treated.fidelity.psnr == pytest.approx(default["psnr"], abs=3)


def test_they_shift_where_really_treated_cells_lie_and_as_the_card_says(bundled, treated, real_cells):
    here = real_cells.where(experiment="Week4")
    real = lambda name, dose: here.where(perturbation=name, dose_um=dose).images[:120]
    untreated = profile(here.where(perturbation="DMSO", split="train").images[:150], names)
    for comparison, name, dose, least in zip(treated.comparisons, ("cyclohexamide", "taxol"), (15., .3), (.9, .85)):
        base, there, after, before = z_score(untreated, profile(real(name, dose), names), *comparison.profiles)
        found = cosine(after.mean(0) - before.mean(0), there.mean(0) - base.mean(0))
        said = next(s for s in bundled.model.config["quality"]["counterfactual"]["shifts"] if (s["perturbation"], s["dose_um"]) == (name, dose))
        assert found > least and found == pytest.approx(said["cosine"], abs=.08)


def test_each_is_still_the_cell_it_was(treated): assert min(recognised(images, treated.reconstruction) for images in treated.treated) > .8


def test_its_config_says_how_the_training_controls_look(bundled, real_cells):
    assert bundled.model.config["controls"] == controls_of(real_cells)
