"Preparing an image for a model: which channel is which, nuclei at the model's size, matched intensities, and refusals."
import json
import resource
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mfm_app.cli import controls_of
from mfm_app.core import InputError
from mfm_app.features import nuclear_profile
from mfm_app.finetune import random_model
from mfm_app.hub import load_model
from mfm_app.images import Micrograph, digest
from mfm_app.preprocess import (ImportOptions, as_fraction, contains_word, crop_around, guess_channels,
                                match_intensities, max_nuclei, percentiles, prepare_cells, rescale, synonyms)
from mfm_app.simulator import synthetic_cells

names = ["DNA", "Actin", "Tubulin"]
few = settings(max_examples=20)
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5),
                     st.lists(st.integers(), max_size=3), st.just(10**400))
rng = np.random.default_rng(0)
grey, deep = rng.integers(0, 256, (24, 20), dtype=np.uint8), rng.integers(0, 65536, (24, 20), dtype=np.uint16)
three = rng.integers(0, 256, (3, 24, 20), dtype=np.uint8)


def max_difference(a, b): return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


# Channels

cell_painting = ["DNA", "ER", "RNA", "AGP", "Mito"]
cell_painting_dyes = ["ConA 488", "WGA + phalloidin", "MitoTracker Deep Red", "SYTO 14", "Hoechst"]


@pytest.mark.parametrize("file_names, wanted, indices", [
    (["DNA", "Actin", "Tubulin"], names, [0, 1, 2]),
    (["TUBULIN", "dapi", "f_actin"], names, [1, 2, 0]),
    (["w1DAPI", "w2 anti-beta-Tubulin (DM1A)", "w4 Rhodamine-Phalloidin"], names, [0, 2, 1]),
    (["Hoechst 33342", "Alexa Fluor 568 phalloidin", "microtubules"], names, [0, 1, 2]),
    (["DRAQ5"], ["DNA"], [0]), (["H-33342"], ["DNA"], [0]), (["DM1A"], ["Tubulin"], [0]), (["Nuclei"], ["dna"], [0]),
    (cell_painting_dyes, cell_painting, [4, 0, 3, 1, 2]),
    (cell_painting, ["DNA", "Actin"], [0, 3]),
    (["", "", ""], names, [0, 1, 2]),
    (["Channel:0:0", "C=1", "ch 2"], names, [0, 1, 2]),
    (["", ""], names, [None, None, None]),
    (["red", "green", "blue"], names, [None, None, None]),
    (["alpha-actinin", "marker", "fluorescer"], ["Actin", "ER", "DNA"], [None, None, None]),
    (["phalloidin"], ["Actin", "AGP"], [0, None]),
    (["GFP", "Lamin B1"], ["lamin-b1"], [1]),
])
def test_channels_are_guessed_from_the_names_of_stains(file_names, wanted, indices):
    assert guess_channels(file_names, wanted) == indices


@given(st.lists(st.text(max_size=12) | st.sampled_from(["DAPI", "actin", "F-actin", ""]), max_size=6),
       st.lists(st.text(max_size=12) | st.sampled_from(["DNA", "Actin"]), max_size=6))
def test_no_channel_of_a_file_is_guessed_twice(file_names, wanted):
    indices = guess_channels(file_names, wanted)
    matched = [i for i in indices if i is not None]
    assert len(indices) == len(wanted) and len(set(matched)) == len(matched)
    assert set(matched) <= set(range(len(file_names)))


def test_a_short_word_stands_alone_and_punctuation_does_not_matter():
    assert contains_word("H-33342 (far)", "h 33342") and contains_word("mitotracker red", "mito tracker")
    assert not contains_word("marker", "er") and not contains_word("DNA", "")


def test_a_channel_has_the_synonyms_of_its_stain_and_its_own_name_first():
    assert synonyms("Hoechst")[:3] == ["Hoechst", "dna", "dapi"] and synonyms("GFP") == ["GFP"]


# Scale

def test_rescaling_keeps_means_and_removes_what_is_too_fine():
    chequered = np.indices((64, 48)).sum(0)[None, None] % 2 * np.uint8(200)
    small = rescale(chequered, .25)
    assert small.shape == (1, 1, 16, 12) and small.dtype == np.float32 and np.abs(small - 100).max() < 15
    assert rescale(chequered, 1.5).shape == (1, 1, 96, 72)
    assert np.array_equal(rescale(deep[None, None], 1), deep[None, None])


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), 1e-6, 1e6])
def test_a_scale_that_makes_no_sense_is_refused(ask, factor):
    assert isinstance(ask(rescale, three[None], factor), InputError)


@given(st.integers(-40, 60), st.integers(-40, 60), st.integers(1, 30))
def test_a_crop_shows_what_lies_around_its_centre_and_background_outside(y, x, size):
    crop = crop_around(three, [(y, x)], size)[0]
    background = np.percentile(three.reshape(3, -1), 1, axis=1).astype(np.uint8)
    for i in range(0, size, 7):
        for j in range(0, size, 5):
            a, b = y - size // 2 + i, x - size // 2 + j
            inside = 0 <= a < 24 and 0 <= b < 20
            assert np.array_equal(crop[:, i, j], three[:, a, b] if inside else background)


def test_no_centres_make_no_crops(): assert crop_around(three, np.zeros((0, 2)), 8).shape == (0, 3, 8, 8)


# Intensities

def test_a_fraction_is_of_the_full_scale():
    fraction = lambda values, dtype, **kwargs: as_fraction(Micrograph(np.array([[[values]]], dtype), **kwargs))
    assert fraction([0, 4095], np.uint16, bits=12).tolist() == [[[[0, 1]]]]
    assert fraction([0, 51], np.uint8, bits=8).max() == np.float32(.2)
    assert fraction([.25, .5], np.float32).tolist() == [[[[.25, .5]]]]
    assert fraction([-3e38, 0, 3e38], np.float32).tolist() == [[[[0, .5, 1]]]]


@given(st.sampled_from([np.uint8, np.uint16, np.float32]), st.integers(0, 90), st.integers(120, 255),
       st.integers(0, 99))
def test_matched_intensities_have_the_wanted_percentiles(dtype, low, high, seed):
    images = np.random.default_rng(seed).uniform(5, 240, (3, 2, 40, 40)).astype(dtype)
    if dtype == np.uint16: images *= 200
    matched = match_intensities(images, [(low, high), (10, 200)])
    assert matched.dtype == np.uint8 and np.abs(percentiles(matched) - [(low, high), (10, 200)]).max() < 1.6
    by_brightness = images[:, 0].mean((1, 2)).argsort()
    rises = np.diff(matched[by_brightness, 0].astype(float).mean((1, 2)))
    assert rises.min() > -.5, "one line for all images keeps their order"


def test_a_channel_without_contrast_is_named(ask):
    blank = np.stack([grey, grey * 0 + 7])[None]
    assert "'Actin'" in str(ask(match_intensities, blank, [(0, 255)] * 2, ["DNA", "Actin"]))
    assert "Channel 2" in str(ask(match_intensities, blank, [(0, 255)] * 2))


# Fields of cells

@pytest.fixture(scope="module")
def model():
    "A model of cells of 64 pixels; its network is not asked."
    return random_model()


@pytest.fixture(scope="module")
def control_px(model): return model.config["controls"]["nucleus_px"]


def field(side, diameter):      # (3, side, side) floats from 0 to 1
    "Nuclei of one width on a loose grid, some brighter than others, each in a cell."
    pitch, grid, rng = int(diameter * 2.5), np.arange(side), np.random.default_rng(0)
    n = side // pitch + 1
    drift, bright = rng.uniform(-.2, .2, (2, n, n)) * diameter, rng.uniform(.6, 1, (n, n))
    row, column = np.meshgrid(grid // pitch, grid // pitch, indexing="ij")
    y = grid[:, None] % pitch - pitch / 2 - drift[0][row, column]
    x = grid % pitch - pitch / 2 - drift[1][row, column]
    r = np.hypot(y, x) / diameter
    dna = 1 / (1 + np.exp((r - .5) * min(diameter * 2, 300)))
    actin = np.exp(-((r - .9) / .15) ** 2) * .7
    tubulin = np.exp(-r ** 2) * (.5 + .4 * np.sin(9 * x / diameter))
    return np.stack([dna * .8, actin, tubulin]) * bright[row, column]


def photographed(intensities, gain=6000., offset=400., noise=20., order=(0, 1, 2), seed=1, um_per_px=None):
    "A 16-bit file of a field."
    grain = np.random.default_rng(seed).normal(0, noise / gain, intensities.shape)
    pixels = (gain * (intensities + grain) + offset).round().clip(0, 65_535).astype(np.uint16)
    return Micrograph(pixels[None, list(order)], [names[i] for i in order], um_per_px, 16, [])


def in_bytes(pixels, channels=names, um_per_px=None, notes=()):
    "An 8-bit file."
    return Micrograph(pixels, list(channels), um_per_px, 8, list(notes))


def width(cells): return 2 * np.sqrt(np.median(nuclear_profile(cells, names)["nucleus_area_px"]) / np.pi)


@pytest.mark.parametrize("side, diameter", [(256, 9), (256, 20), (512, 50), (900, 110)])
def test_nuclei_of_any_width_are_rescaled_to_the_models(model, control_px, side, diameter):
    prepared = prepare_cells(model, photographed(field(side, diameter), um_per_px=.2))
    assert len(prepared.cells) >= 4 and width(prepared.cells) == pytest.approx(control_px, rel=.1)
    px, um_per_px = prepared.options.nucleus_px, prepared.um_per_px
    assert px == pytest.approx(diameter, rel=.1, abs=1.5) and um_per_px == pytest.approx(.2 * px / control_px)
    assert f"{px:g} px wide in the file" in prepared.notes[-1] and f"{um_per_px:.3g}" in prepared.notes[-1]


def test_nuclei_lie_where_they_are_shown_and_in_the_middle_of_their_crops(model, control_px):
    intensities = field(300, 24)[:, :, :190]
    prepared = prepare_cells(model, photographed(intensities))
    for share, cell in zip(prepared.nuclei, prepared.before):
        y, x = (share * intensities.shape[1:]).astype(int)
        nucleus = np.argwhere(intensities[0, y - 14:y + 15, x - 14:x + 15] > .4)
        assert np.abs(nucleus.mean(0) - 14).max() < 1.5
        assert cell[0, 28:36, 28:36].mean() > 2 * cell[0, [0, -1]].mean()
    side = 64 * prepared.options.nucleus_px / control_px
    assert np.allclose(prepared.crop, [side / 300, side / 190])


@few
@given(st.permutations([0, 1, 2]))
def test_the_order_of_channels_does_not_matter_where_they_are_named(model, order):
    intensities = field(200, 20)
    a, b = prepare_cells(model, photographed(intensities)), prepare_cells(model, photographed(intensities, order=order))
    assert [order[i] for i in b.options.channels] == [0, 1, 2] and max_difference(a.cells, b.cells) <= 1


def test_matching_makes_a_field_at_another_gain_and_offset_equal(model):
    intensities, cameras = field(256, 20), ((6000, 400), (18_000, 440))
    a, b = (prepare_cells(model, photographed(intensities, *camera, noise=0)) for camera in cameras)
    assert max_difference(a.cells, b.cells) <= 2 < max_difference(a.before, b.before)


@few
@given(st.floats(.2, 8), st.floats(0, 3000))
def test_gain_and_offset_move_no_nucleus_by_more_than_a_pixel_and_leave_matched_intensities(model, gain, offset):
    intensities, cameras = field(200, 20), ((6000, 400), (6000 * gain, 400 + offset))
    a, b = (prepare_cells(model, photographed(intensities, *camera, noise=0)) for camera in cameras)
    distances = np.linalg.norm(a.nuclei[:, None] - b.nuclei, axis=2)
    assert len(a.nuclei) == len(b.nuclei) and distances.min(1).max() * 200 < 1
    same = [max_difference(cell, other) <= 4 for cell, other in zip(a.cells, b.cells[distances.argmin(1)])]
    assert np.mean(same) > .6      # the others are cropped a pixel aside


@few
@given(st.lists(st.integers(0, 8), min_size=1, max_size=5))
def test_which_cells_are_chosen_does_not_change_their_intensities(model, chosen):
    file = photographed(field(220, 20))
    every, some = prepare_cells(model, file), prepare_cells(model, file, ImportOptions(chosen=tuple(chosen)))
    assert (some.cells == every.cells[chosen]).all() and some.chosen == chosen


def test_matched_cells_have_the_intensities_of_the_controls(model):
    prepared = prepare_cells(model, photographed(field(300, 24)))
    low, high = (np.median(np.percentile(prepared.cells, q, axis=(2, 3)), 0) for q in (1, 99.5))
    assert np.allclose(np.stack([low, high], 1), model.config["controls"]["percentiles"], atol=3)


def test_a_large_field_is_prepared_in_bounded_time_and_memory(model):
    "Bounds for four million pixels; a file may have five times as many."
    tile = photographed(field(1000, 33))
    file = replace(tile, pixels=np.tile(tile.pixels, (1, 1, 2, 2)))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    prepared = prepare_cells(model, file)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert memory < .5e9 and time.process_time() - start < 10
    assert len(prepared.nuclei) == max_nuclei and len(prepared.cells) == 64 and max(prepared.field.shape) <= 768


# Images of single cells

def test_cells_of_the_models_own_size_stay_as_they_are_unless_their_intensities_are_matched(model):
    own = synthetic_cells(4).images[:12]
    file = in_bytes(own, um_per_px=.3, notes=["A note of the file's."])
    untouched, matched = (prepare_cells(model, file, ImportOptions(match=match)) for match in (False, True))
    assert (untouched.cells == own).all() and (matched.before == own).all() and max_difference(matched.cells, own) > 2
    assert untouched.um_per_px == .3 and untouched.options.nucleus_px is None
    assert untouched.notes[0] == "A note of the file's." and "taken as it is" in untouched.notes[1]
    turned = in_bytes(own[:, [2, 0, 1]], ["tub", "Hoechst", "phalloidin"])
    assert (prepare_cells(model, turned, ImportOptions((1, 2, 0), match=False)).cells == own).all()


def test_a_picture_in_the_models_colours_needs_no_names(model):
    own = synthetic_cells(1).images[:3]
    file = in_bytes(own[:, [2, 1, 0]], ["red", "green", "blue"])
    prepared = prepare_cells(model, file, ImportOptions(match=False))
    assert prepared.options.channels == (2, 1, 0) and (prepared.cells == own).all()


def test_of_several_images_each_is_one_cell(model, control_px):
    prepared = prepare_cells(model, in_bytes(synthetic_cells(3, 128).images[:6]))
    assert prepared.cells.shape == (6, 3, 64, 64) and width(prepared.cells) == pytest.approx(control_px, rel=.15)


def test_of_very_many_images_the_first_are_looked_at_with_a_note(model):
    many = np.resize(synthetic_cells(2, 64).images, (max_nuclei + 40, 3, 64, 64))
    prepared = prepare_cells(model, in_bytes(many), ImportOptions(chosen=(0, max_nuclei - 1)))
    assert len(prepared.cells) == 2 and f"{max_nuclei + 40} images" in prepared.notes[0]


# Provenance

files = {"field": lambda: photographed(field(210, 23)), "own size": lambda: in_bytes(synthetic_cells(2).images),
         "several": lambda: in_bytes(synthetic_cells(2, 96).images[:5])}
import_options = {"guessed": ImportOptions(), "chosen": ImportOptions(match=False, chosen=(2, 0)),
                  "given": ImportOptions(nucleus_px=17.3)}


@pytest.mark.parametrize("file", files.values(), ids=files)
@pytest.mark.parametrize("options", import_options.values(), ids=import_options)
def test_the_source_of_prepared_cells_is_enough_to_prepare_them_again(model, file, options):
    first = prepare_cells(model, file(), options, "field.tif")
    record = json.loads(json.dumps(first.source))
    assert record.pop("kind") == "image" and record.pop("name") == "field.tif"
    assert record.pop("sha256") == digest(file().pixels) and record.pop("plausibility") == first.plausibility.line
    again = prepare_cells(model, file(), ImportOptions(**record))
    assert again.cells.tobytes() == first.cells.tobytes()
    assert json.loads(json.dumps(again.source)) == json.loads(json.dumps(first.source | dict(name="")))


# What is refused

own, striped = synthetic_cells(1, 64).images[:2], np.tile(np.uint8([5, 6] * 100), (1, 3, 200, 1))
flat = np.stack([own[0, 0], own[0, 1], 0 * own[0, 2]])[None]
refused = {
    "two channels": (in_bytes(own[:, :2], names[:2]), ImportOptions()),
    "unknown channels": (in_bytes(own[:, [0, 1, 1, 2]], ["a", "b", "c", "d"]), ImportOptions()),
    "two channels given": (in_bytes(own), ImportOptions((0, 1))),
    "a channel beyond": (in_bytes(own), ImportOptions((0, 1, 3))),
    "a negative channel": (in_bytes(own), ImportOptions((0, 1, -1))),
    "a channel as text": (in_bytes(own), ImportOptions((0, 1, "2x"))),
    "no channel": (in_bytes(own), ImportOptions((0, None, 2))),
    "channels as a number": (in_bytes(own), ImportOptions(5)),
    "a tiny nucleus": (in_bytes(own), ImportOptions(nucleus_px=.1)),
    "a huge nucleus": (in_bytes(own), ImportOptions(nucleus_px=1e9)),
    "a nucleus of NaN": (in_bytes(own), ImportOptions(nucleus_px=float("nan"))),
    "a nucleus of zero": (in_bytes(own), ImportOptions(nucleus_px=0)),
    "a nucleus as text": (in_bytes(own), ImportOptions(nucleus_px="20")),
    "none chosen": (in_bytes(own), ImportOptions(chosen=())),
    "a cell beyond": (in_bytes(own), ImportOptions(chosen=(2,))),
    "cells as text": (in_bytes(own), ImportOptions(chosen="ab")),
    "cells as a number": (in_bytes(own), ImportOptions(chosen=1)),
    "half a cell": (in_bytes(own), ImportOptions(chosen=(.5,))),
    "too many cells": (in_bytes(own), ImportOptions(chosen=(0,) * 65)),
    "no nuclei": (in_bytes(striped), ImportOptions()),
    "no contrast": (in_bytes(flat), ImportOptions()),
}


@pytest.mark.parametrize("file, options", refused.values(), ids=refused)
def test_what_cannot_be_prepared_is_refused(ask, model, file, options):
    assert isinstance(ask(prepare_cells, model, file, options), InputError)


def test_a_model_that_knows_nothing_of_its_controls_is_refused_with_the_remedy(ask, model):
    config = model.config
    without = replace(model, config={k: v for k, v in config.items() if k != "controls"})
    assert "mfm evaluate" in str(ask(prepare_cells, without, in_bytes(own)))
    no_nuclei = replace(model, config=config | dict(controls=config["controls"] | dict(nucleus_px=None)))
    assert len(prepare_cells(no_nuclei, in_bytes(own)).cells) == 2
    assert "64 x 64" in str(ask(prepare_cells, no_nuclei, photographed(field(200, 20))))


tuples = st.one_of(st.none(), st.lists(anything, max_size=4).map(tuple), anything)


@given(tuples, anything, tuples)
@example((0, 1, 10**400), 10**400, (10**400,))
@example(np.nan, np.nan, np.nan)
def test_whatever_the_options_are_cells_or_one_line_come_back(ask, model, channels, nucleus_px, chosen):
    result = ask(prepare_cells, model, in_bytes(own), ImportOptions(channels, nucleus_px, True, chosen))
    if isinstance(result, InputError): return
    assert result.cells.dtype == np.uint8 and result.cells.shape[1:] == (3, 64, 64)


# What a model records of its training controls

def test_a_trained_model_says_how_its_controls_look(tmp_path, mfm):
    cells = synthetic_cells(4, 32)
    for i, image in enumerate(cells.images):
        (folder := tmp_path / "own" / cells.table.perturbation[i]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    size = "--backbone", "nano/8", "--image-size", "32", "--batch", "4", "--steps", "1"
    code, _ = mfm("train", "--data", tmp_path / "own", "--out", tmp_path / "run", *size)
    assert code == 0
    trained = load_model(tmp_path / "run/model")
    controls = trained.config["controls"]
    assert np.shape(controls["percentiles"]) == (3, 2) and 4 < controls["nucleus_px"] < 20
    file = in_bytes(cells.images[:2], ["a", "b", "c"])
    assert len(prepare_cells(trained, file, ImportOptions((0, 1, 2))).cells) == 2


def test_the_bundled_model_says_how_its_training_controls_look(real_cells):
    stored, measured = (dict(c) for c in (load_model().config["controls"], controls_of(real_cells)))
    known, again = stored.pop("plausibility"), measured.pop("plausibility")
    assert stored == measured and set(known) == set(again)
    for name in ("centre", "scale", "weights", "distances"):      # sums, in another order on another processor
        assert np.allclose(known[name], again[name], rtol=.02, atol=1e-3), name
    for name, ends in known["ranges"].items(): assert np.allclose(again["ranges"][name], ends, rtol=.02), name
