"Whether imported cells look like what a model knows: channel order, negatives, size, focus, emptiness, and a question."
import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mfm_app.core import InputError
from mfm_app.counterfactual import counterfactual
from mfm_app.display import reconstruction_note
from mfm_app.engine import Engine
from mfm_app.finetune import random_model
from mfm_app.hub import load_model
from mfm_app.images import Micrograph
from mfm_app.permalink import code_for_counterfactual
from mfm_app.plausibility import (Implausible, distances, features_in_orders, min_controls, orders_of, plausibility,
                                  plausibility_statistics)
from mfm_app.preprocess import ImportOptions, prepare_cells
from mfm_app.simulator import synthetic_cells
from mfm_app.ui_api import control_cells
from mfm_app.ui_counterfactual import ImageSession, cells_from, fidelity_line, import_image, insist_field, insist_on
from mfm_app.ui_session import upload_folder

names = ["DNA", "Actin", "Tubulin"]


def in_order(pixels, order=(0, 1, 2)): return Micrograph(pixels[:, list(order)], names, None, 8, [])


@pytest.fixture(scope="module")
def statistics():
    cells = synthetic_cells(200, seed=5)
    untreated = (cells.table["perturbation"] == "DMSO").to_numpy()
    return plausibility_statistics(cells.images[untreated], cells.images[~untreated][:100], names)


@pytest.fixture(scope="module")
def model(statistics):
    "A model of simulated cells that remembers its controls."
    model = random_model()
    model.config["controls"]["plausibility"] = statistics
    return model


@pytest.fixture(scope="module")
def untreated(): return synthetic_cells(30, seed=6).where(perturbation="DMSO").images


@pytest.fixture(scope="module")
def exchanged(untreated): return np.ascontiguousarray(untreated[:4, [1, 2, 0]])      # as actin, tubulin, DNA


# Real cells

def test_the_bundled_model_questions_wrong_orders_of_channels_and_hardly_a_right_one(real_cells):
    "100 crops that neither model nor calibration have seen, one a file, each in its right and in two wrong orders."
    model, wrong = load_model(), list(permutations(range(3)))[1:]
    unseen = real_cells.where(split="iid", perturbation=real_cells.control).images
    some = unseen[np.random.default_rng(1).permutation(len(unseen))[:100]]
    questioned = lambda image, order: not plausibility(model, image[None, list(order)]).plausible
    assert np.mean([questioned(image, (0, 1, 2)) for image in some]) < .03
    hardest = [questioned(image, (0, 2, 1)) for image in some]
    others = [questioned(image, wrong[i % 4 + 1]) for i, image in enumerate(some)]
    assert np.mean(hardest) > .95 and np.mean(others) > .95


def test_the_percentile_of_unseen_controls_is_spread_evenly(real_cells):
    unseen = real_cells.where(split="iid", perturbation=real_cells.control).images[::6]
    judged = [plausibility(load_model(), unseen[i:i + 16]) for i in range(0, len(unseen) - 15, 16)]
    shares = np.concatenate([j.percentiles for j in judged])
    assert all(j.plausible and "farther from the mean of the training controls" in j.line for j in judged)
    assert np.abs(np.quantile(shares, (.25, .5, .75)) - (25, 50, 75)).max() < 15


# Simulated cells

def test_cells_like_the_controls_are_plausible_whatever_their_gain_and_offset(model, untreated):
    for images in (untreated[:6], (untreated[:6] * .4 + 30).astype(np.uint8)):
        judged = plausibility(model, images)
        assert judged.plausible and judged.percentile < 98 and len(judged.percentiles) == 6


def test_of_many_cells_sixteen_are_looked_at(model, untreated):
    assert len(plausibility(model, untreated[:30]).percentiles) == 16


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_a_wrong_order_is_said_channel_by_channel(model, untreated, order):
    for images in (untreated[:1], untreated[1:5]):
        problem, = plausibility(model, images[:, list(order)]).problems
        assert problem.startswith("The channels look exchanged")
        for name, i in zip(names, order):
            assert (f"taken for {name} looks like {names[i]}" in problem) == (name != names[i])


worse = {
    "looks like a negative": lambda x: 255 - x,
    "out of focus": lambda x: ndimage.gaussian_filter(x, (0, 0, 4, 4)),
    "px wide in a crop of 64": lambda x: np.pad(x[:, :, ::2, ::2], ((0, 0), (0, 0), (16, 16), (16, 16)), "reflect"),
    "highest grey level": lambda x: np.minimum(x.astype(int) * 30 + 40, 255).astype(np.uint8),
    "No nucleus was found": lambda x: np.random.default_rng(0).normal(20, 3, x.shape).astype(np.uint8),
}


@pytest.mark.parametrize("words, spoil", worse.items(), ids=worse)
def test_what_is_wrong_is_said(model, untreated, words, spoil):
    judged = plausibility(model, spoil(untreated[:4]))
    assert words in " ".join(judged.problems) and not judged.plausible and judged.line.startswith(judged.problems[0])


def test_a_nucleus_nearly_as_wide_as_the_image_is_no_nucleus(model, untreated):
    odd = np.random.default_rng(0).integers(0, 60, untreated[:2].shape, dtype=np.uint8) + untreated[:2] // 2
    judged = plausibility(model, odd, scale=.5, nucleus_share=.73)
    assert "A nucleus as wide as 73% of the image is hardly one." in judged.problems


# The order of channels

@pytest.mark.parametrize("channels, orders", [(1, 1), (2, 2), (3, 6), (4, 24), (5, 11)])
def test_the_given_order_comes_first_and_none_twice(channels, orders):
    found = orders_of(channels)
    assert found[0] == tuple(range(channels)) and len(set(found)) == len(found) == orders
    assert all(sorted(order) == list(range(channels)) for order in found)


@settings(max_examples=6)
@given(st.permutations(range(3)))
def test_what_is_measured_in_an_order_is_what_is_measured_of_cells_so_ordered(untreated, order):
    features, _ = features_in_orders(untreated[:2], names, [(0, 1, 2), tuple(order)])
    of_reordered, _ = features_in_orders(untreated[:2, list(order)], names, [(0, 1, 2)])
    assert np.allclose(features[1], of_reordered[0], atol=1e-5)


@pytest.mark.parametrize("channels", [["DNA"], ["Actin", "DNA"]])
def test_models_of_one_channel_or_two_are_judged_as_well(channels, untreated):
    images = synthetic_cells(min_controls, seed=9).where(perturbation="DMSO").images
    pick = [names.index(c) for c in channels]
    known = plausibility_statistics(images[:, pick], images[:0, pick], channels)
    model = random_model()
    model.config |= dict(channels=[dict(name=c, colour="grey") for c in channels], controls=dict(plausibility=known))
    assert plausibility(model, untreated[:4, pick]).plausible
    assert not plausibility(model, 255 - untreated[:4, pick]).plausible


# What a model remembers

def test_a_model_remembers_a_few_hundred_numbers(statistics):
    assert len(json.dumps(statistics)) < 4000 and np.isfinite(statistics["weights"]).all()
    assert statistics["distances"] == sorted(statistics["distances"]) and np.allclose(distances(np.ones((2, 5))), 1)


def test_too_few_controls_are_not_summed_up(untreated):
    assert plausibility_statistics(untreated[:min_controls - 1], untreated[:0], names) is None


damaged = [None, {}, [], "text", dict(centre=1), dict(scale=["a"]), dict(weights=[1.]), dict(distances=None),
           dict(ranges={}), dict(ranges=dict(nucleus_px=3)), dict(centre=[float("nan")] * 97)]


@pytest.mark.parametrize("change", damaged, ids=str)
def test_a_config_with_no_or_damaged_numbers_loads_and_says_that_it_cannot_judge(model, statistics, exchanged, change):
    known = statistics | change if isinstance(change, dict) and change else change
    other = replace(model, config=model.config | dict(controls=model.config["controls"] | dict(plausibility=known)))
    prepared = prepare_cells(other, in_order(exchanged))
    assert prepared.plausibility.percentile is None and "cannot be judged" in prepared.plausibility.line


# A question

def test_implausible_cells_stop_with_a_question_and_pass_if_one_insists(model, exchanged, ask):
    refused = ask(prepare_cells, model, in_order(exchanged))
    assert isinstance(refused, Implausible) and isinstance(refused, InputError)
    assert "channels look exchanged" in str(refused) and "insist=True" in str(refused)
    assert (refused.prepared.before == exchanged).all()      # so that they can be shown
    prepared = prepare_cells(model, in_order(exchanged), ImportOptions(insist=True))
    assert (prepared.cells == refused.prepared.cells).all() and prepared.source["insist"]
    assert prepared.source["plausibility"] == prepared.plausibility.line
    assert prepare_cells(model, in_order(exchanged), ImportOptions((2, 0, 1))).plausibility.plausible


def test_a_program_is_asked_as_well(model, exchanged):
    engine = Engine(model, "cpu", torch.float32)
    with pytest.raises(InputError, match="exchanged"):
        control_cells(engine, None, (in_order(exchanged), "mine.npy"), ImportOptions(), None)
    cells, source, *_ = control_cells(engine, None, (in_order(exchanged), "mine.npy"), ImportOptions(insist=True), None)
    assert len(cells) == 4 and "exchanged" in source["plausibility"]


def uploaded(images):
    path = upload_folder() / "plausibility" / "mine.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images)
    return str(path)


def test_the_page_shows_implausible_cells_asks_and_takes_them_if_one_insists(model, exchanged, own_temporary):
    engine, session = Engine(model, "cpu", torch.float32), ImageSession()
    _, message, field, *_ = import_image(engine, session, uploaded(exchanged), True)
    assert "channels look exchanged" in message and "tick Use it anyway" in message
    assert "channels look exchanged" in json.loads(field)["notes"][0] and insist_field(session).visible
    with pytest.raises(InputError, match="implausible"): cells_from(engine, session, "image", 4, 0, None)
    message, *_ = insist_on(engine, session, True)
    assert message == "" and insist_field(session).visible
    cells, source = cells_from(engine, session, "image", 4, 0, None)
    assert len(cells) == 4 and source["insist"]
    insist_on(engine, session, False)
    with pytest.raises(InputError, match="implausible"): cells_from(engine, session, "image", 4, 0, None)
    _, message, field, *_ = import_image(engine, session, uploaded(exchanged[:, [2, 0, 1]]), True)
    assert message == "" and not insist_field(session).visible
    assert "farther from the mean of the training controls" in json.loads(field)["notes"][0]


def test_beside_the_reconstruction_stands_how_far_the_cells_lie_and_the_code_insists_where_it_must(model, exchanged):
    engine = Engine(model, "cpu", torch.float32)
    prepared = prepare_cells(model, in_order(exchanged), ImportOptions(insist=True), "mine.npy")
    answer = counterfactual(engine, prepared.cells, "sweller", 1., steps=1)
    answer.provenance["source"] = prepared.source
    line = prepared.plausibility.line
    assert line in fidelity_line(answer) and line in reconstruction_note(answer)
    assert "insist=True" in code_for_counterfactual(engine, answer.requests, prepared.source)
    plain = prepare_cells(model, in_order(exchanged), ImportOptions((2, 0, 1)), "mine.npy")
    assert "insist" not in code_for_counterfactual(engine, answer.requests, plain.source)
