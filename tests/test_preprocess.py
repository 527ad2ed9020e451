"Preparing an image for a model: which channel is which, nuclei at the model's size, matched intensities, and refusals."
import json
import resource
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from conftest import many

from mfm_app.channels import (channel_notes, is_foreign, map_channels, match_channels,
                              nuclei_by_picture, wavelength)
from mfm_app.cli import controls_of
from mfm_app.core import InputError
from mfm_app.features import find_nuclei, nuclear_profile, whole_objects
from mfm_app.finetune import random_model
from mfm_app.hub import load_model
from mfm_app.images import Dye, Micrograph, digest, max_labels, read_labels, read_micrograph
from mfm_app.preprocess import (ImportOptions, as_fraction, crop_around, labelled_objects, match_intensities,
                                max_nuclei, percentiles, prepare_cells, rescale)
from mfm_app.simulator import synthetic_cells
from mfm_app.vocabulary import channel_words, contains_word, guess_channels

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
    (["", "", ""], names, [None, None, None]),
    (["Channel:0:0", "C=1", "ch 2"], names, [None, None, None]),
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
    assert channel_words("Hoechst")[:3] == ["Hoechst", "dna", "dapi"] and channel_words("GFP") == ["GFP"]


# Channels that a file does not name after a stain

model_colours = ["blue", "green", "red"]
red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def stained(height=96, width=96):      # (3, H, W) floats from 0 to 1
    "DNA, actin and tubulin of one field: round nuclei, rims, haze."
    y, x = np.mgrid[:height, :width]
    middles = [(a, b) for a in range(25, height - 15, 46) for b in range(25, width - 15, 46)]
    r = np.min([np.hypot(y - a, x - b) for a, b in middles], axis=0)
    planes = np.stack([(r < 9) * .8, np.exp(-((r - 15) / 3) ** 2) * .6, np.exp(-(r / 14) ** 2) * .5])
    return (planes + .05 + np.random.default_rng(0).normal(0, .01, planes.shape)).clip(0, 1)


seen = (stained() * 250).astype(np.uint8)      # DNA, actin, tubulin


def taken(pixels, channel_names, dyes=(), wanted=names, colours=model_colours):
    "For each wanted channel its place in the file, and whether that is a suggestion."
    file = Micrograph(np.asarray(pixels)[None], list(channel_names), None, 8, [], list(dyes))
    found = match_channels(file, list(wanted), list(colours))
    return [found[w].index if w in found else None for w in wanted], [w in found and found[w].suggested for w in wanted]


sure, unsure = [False] * 3, [True] * 3
said = {      # of channels in the order tubulin, actin, DNA: names, dyes, places, suggestions
    "stains": (["DM1A", "phalloidin", "DAPI"], [], [2, 1, 0], sure),
    "fluorophores": (["", "", ""], [Dye("DM1A-FITC"), Dye("Phalloidin"), Dye("Hoechst 33342")], [2, 1, 0], sure),
    "names before fluorophores":
        (["tubulin", "actin", "DNA"], [Dye("DAPI"), Dye("DAPI"), Dye("Phalloidin")], [2, 1, 0], sure),
    "lasers": (["561", "488", "405"], [], [2, 1, 0], [False, True, True]),
    "lasers with w": (["w561", "w488", "w405"], [], [2, 1, 0], [False, True, True]),
    "nanometres": (["Ex: 561.000000nm", "488 nm laser", "405nm"], [], [2, 1, 0], [False, True, True]),
    "dyes": (["Cy5", "FITC", "Pacific Blue"], [], [2, 1, 0], [False, True, True]),
    "Alexa dyes": (["AF568", "Alexa Fluor 488", "DAPI"], [], [2, 1, 0], [False, True, True]),
    "emission": (["", "", ""], [Dye("", 600), Dye("", 519), Dye("", 461)], [2, 1, 0], [False, True, True]),
    "excitation": (["", "", ""], [Dye("", None, 561), Dye("", None, 488), Dye("", None, 358)], [2, 1, 0],
                   [False, True, True]),
    "wavelengths and colours": (["561", "488", "405"], [Dye(colour=c) for c in (red, green, blue)], [2, 1, 0], sure),
    "wavelengths before colours": (["561", "488", "405"], [Dye(colour=c) for c in (blue, red, green)], [2, 1, 0],
                                   [False, True, True]),
    "colours": (["", "", ""], [Dye(colour=c) for c in (red, green, blue)], [2, 1, 0], sure),
    "names of colours": (["red", "green", "blue"], [], [2, 1, 0], sure),
    "nearly the colours": (["1", "2", "3"], [Dye(colour=c) for c in ((255, 90, 0), (60, 255, 0), (0, 90, 255))],
                           [2, 1, 0], sure),
    "numbers": (["Channel 1", "Channel 2", "Channel 3"], [], [2, 0, 1], unsure),
    "nothing": (["", "", ""], [], [2, 0, 1], unsure),
    "names alike": (["DNA_damage 1", "DNA_damage 2", "DNA_damage 3"], [], [2, 0, 1], unsure),
    "foreign names": (["left", "middle", "right"], [], [None] * 3, sure),
    "a foreign name": (["Lamin B1", "phalloidin", "DAPI"], [], [2, 1, None], sure),
    "a foreign name in red": (["Lamin B1", "phalloidin", "DAPI"], [Dye(colour=red), Dye(), Dye()], [2, 1, 0],
                              [False, False, True]),
    "one left": (["", "phalloidin", "DAPI"], [], [2, 1, 0], [False, False, True]),
    "grey": (["", "", ""], [Dye(colour=(200, 190, 200))] * 3, [2, 0, 1], unsure),
    "one wavelength for all": (["", "", ""], [Dye("", 405)] * 3, [2, 0, 1], unsure),
    "no violet": (["750", "640", "561"], [], [2, 0, 1], unsure),
}


@pytest.mark.parametrize("file_names, dyes, places, suggested", said.values(), ids=said)
def test_one_rule_says_which_channel_is_which_and_what_is_only_a_suggestion(file_names, dyes, places, suggested):
    assert taken(seen[::-1], file_names, dyes) == (places, suggested)


def test_of_more_channels_than_are_wanted_none_is_taken_for_its_wavelength_alone():
    four = [*seen, seen[2] // 2]
    assert taken(four, ["DAPI", "FITC", "TRITC", "Cy5"])[0] == [0, None, None]
    assert taken(four, ["DAPI", "FITC", "TRITC", "BF"])[0] == [0, 1, 2]      # brightfield is no stain


def test_the_picture_suggests_nuclei_and_three_planes_of_one_stain_are_asked_about(ask):
    for order in ([0, 1, 2], [1, 2, 0], [1, 0, 2]):
        assert nuclei_by_picture(seen[order][None], range(3)) == order.index(0)
    planes = Micrograph(np.stack([seen[0], seen[0] + np.uint8(1), seen[0] + np.uint8(2)])[None], [""] * 3, None, 8)
    text = str(ask(map_channels, planes, names, model_colours, None))
    assert "say which is DNA and which Actin and which Tubulin" in text and "channels=" in text
    five = Micrograph(np.stack([*seen[1:], *seen[1:], seen[0]])[None], [""] * 5, None, 8)
    assert "DNA may be channel 5, by the picture" in str(ask(map_channels, five, names, model_colours, None))


def test_the_picture_finds_the_nuclei_of_real_cells(real_cells):
    images = real_cells.images[np.random.default_rng(0).permutation(len(real_cells.images))[:60]]
    suggestions = [nuclei_by_picture(np.roll(image, i, 0)[None], range(3)) for i, image in enumerate(images)]
    right = [s == i % 3 for i, s in enumerate(suggestions) if s is not None]
    assert len(right) > 50 and np.mean(right) > .95
    assert nuclei_by_picture(images[:6], range(3)) == 0


def test_what_was_taken_for_what_and_why_is_in_notes_and_provenance_and_stays_there(model):
    file = photographed(field(200, 20), order=(2, 0, 1))
    first = prepare_cells(model, file)
    words = ("DNA from channel 2 (DNA), by its name", "Actin from channel 3 (Actin), by its name",
             "Tubulin from channel 1 (Tubulin), by its name")
    assert "; ".join(words) + "." in first.notes and first.source["reasons"] == first.options.reasons == words
    again = prepare_cells(model, file, replace(first.options, chosen=(1,)))
    assert again.source["reasons"] == words
    given = prepare_cells(model, file, ImportOptions(channels=(1, 2, 0)))
    assert given.source["reasons"][0] == "DNA from channel 2 (DNA), as given"
    unnamed = prepare_cells(model, replace(file, names=[""] * 3))
    assert [r for r in unnamed.notes if r.startswith("Please check: DNA from channel 2, by the picture")]
    assert all(r.endswith(", a suggestion") for r in unnamed.source["reasons"])
    assert prepare_cells(model, replace(file, names=[""] * 3), unnamed.options).source == unnamed.source


@pytest.mark.parametrize("text, nm", [
    ("405", 405), ("w488", 488), ("AF568 phalloidin", 568), ("Cy5", 650), ("cy-3", 550), ("confGFP", None),
    ("GFP 525/50", 525), ("H-33342", None), ("Exposure 500 ms", None), ("1500", None), ("", None), ("Texas Red", 590)])
def test_a_name_may_be_a_wavelength(text, nm): assert wavelength(text) == nm


def test_a_name_is_foreign_if_it_says_what_is_on_no_list():
    for name in ("", "Channel 2", "w1", "Image 3", "405", "AF488", "Texas Red", "blue", "C=1", "Ex 405 Em 450"):
        assert not is_foreign(name), name
    for name in ("Lamin B1", "LC3", "left", "BF", "GFP-LC3"): assert is_foreign(name), name


stain_names = dict(DNA=["DAPI", "Hoechst 33342", "nuclei", "w1DAPI"],
                   Actin=["phalloidin", "F-actin", "Lifeact-RFP"],
                   Tubulin=["DM1A", "alpha-tubulin", "microtubules"])
lights = dict(DNA=(405, 461, blue), Actin=(488, 519, green), Tubulin=(561, 603, red))      # excitation, emission


@st.composite
def stained_files(draw):
    "A file of DNA, actin and tubulin in any order, of any format, and how it says which is which."
    order = draw(st.permutations(names))
    say = draw(st.sampled_from(["name", "fluorophore", "laser", "light", "colour", ""]))
    kinds = dict(name=["ome", "imagej", "npz"], fluorophore=["ome"], laser=["ome", "imagej", "npz"], light=["ome"],
                 colour=["ome", "imagej", "png", "bmp", "rgb", "planes", "rgb48"])
    kind = draw(st.sampled_from(kinds.get(say, ["ome", "imagej", "npy", "npz", "pages"])))
    if kind in ("png", "bmp", "rgb", "planes", "rgb48"): order = ["Tubulin", "Actin", "DNA"]      # red, green, blue
    pick = {w: draw(st.sampled_from(stain_names[w])) for w in names}
    lasers = {w: draw(st.sampled_from(["{}", "w{}", "{} nm", "Laser {}"])).format(lights[w][0]) for w in names}
    texts = [dict(name=pick, laser=lasers).get(say, {}).get(w, "") for w in order]
    return order, say, kind, texts, [pick[w] for w in order], draw(st.booleans())


def write_stained(folder, order, say, kind, texts, fluors, emission):
    "Write such a file; its path."
    planes = np.stack([seen[names.index(w)] for w in order])
    last, colours = np.moveaxis(planes, 0, -1), [lights[w][2] for w in order]
    path = folder / f"stained.{dict(ome='ome.tif', png='png', bmp='bmp', npy='npy', npz='npz').get(kind, 'tif')}"
    write = lambda array, **kwargs: tifffile.imwrite(path, array, **{"photometric": "minisblack", **kwargs})
    signed = [int.from_bytes(bytes([*c, 255]), "big", signed=True) for c in colours]
    channel = dict(Name=texts) if any(texts) else {}
    if say == "fluorophore": channel["Fluor"] = fluors
    which = "EmissionWavelength" if emission else "ExcitationWavelength"
    if say == "light": channel[which] = [lights[w][emission] for w in order]
    if say == "colour": channel["Color"] = signed
    tables = [np.outer(c, np.arange(256) / 255).astype(np.uint8) for c in colours]
    about = dict(Labels=texts) if any(texts) else dict(mode="composite", LUTs=tables) if say == "colour" else {}
    dict(ome=lambda: write(planes, ome=True, metadata=dict(axes="CYX", Channel=channel)),
         imagej=lambda: write(planes, imagej=True, metadata=dict(axes="CYX", **about)),
         pages=lambda: write(planes, metadata=None), npy=lambda: np.save(path, last if emission else planes),
         npz=lambda: np.savez(path, images=planes, **(dict(channel_names=texts) if any(texts) else {})),
         png=lambda: Image.fromarray(last).save(path), bmp=lambda: Image.fromarray(last).save(path),
         rgb=lambda: write(last, photometric="rgb"), rgb48=lambda: write(last * np.uint16(200), photometric="rgb"),
         planes=lambda: write(planes, photometric="rgb", planarconfig="separate"))[kind]()
    return path


@many(25)
@given(stained_files())
def test_in_every_format_the_right_channel_is_taken_or_it_is_said_to_be_a_suggestion(tmp_path_factory, file):
    order, say, kind, *_ = file
    m = read_micrograph(write_stained(tmp_path_factory.getbasetemp(), *file))
    matches = map_channels(m, names, model_colours, None)
    found, suggested = [match.index for match in matches], [match.suggested for match in matches]
    pixels = seen[[names.index(w) for w in order]]
    assert np.array_equal(m.pixels[0], pixels * np.uint16(200) if kind == "rgb48" else pixels)
    assert found[0] == order.index("DNA") and sorted(found) == [0, 1, 2]
    if say: assert found == [order.index(w) for w in names]
    assert suggested == (unsure if not say else [False, True, True] if say in ("laser", "light") else sure)
    assert ("Please check" in " ".join(channel_notes(matches))) == any(suggested)


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
    assert untouched.notes[0] == "A note of the file's." and "taken as it is" in untouched.notes[-1]
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


# Somebody's own labels

def circles(shape, centres, diameter):
    "A label for each centre, from 1: a disc of that diameter, cut by the edge where it leaves the field."
    labels, (y, x) = np.zeros(shape, np.int32), np.indices(shape)
    for i, (a, b) in enumerate(centres, 1): labels[np.hypot(y - a, x - b) < diameter / 2] = i
    return labels


def spots(shape, centres, diameter):
    "A field with a nucleus of one width at each centre."
    y, x = np.indices(shape)
    r = np.min([np.hypot(y - a, x - b) for a, b in centres], axis=0) / diameter
    dna, noise = 1 / (1 + np.exp((r - .5) * 2 * diameter)), np.random.default_rng(0).normal(0, .01, (3, *shape))
    return photographed(np.stack([dna * .8, np.exp(-((r - .8) / .2) ** 2) * .7, np.exp(-r ** 2) * .6]) + abs(noise))


centres = np.array([(60, 50), (62, 150), (130, 90), (136, 200), (200, 60), (205, 160)])


@pytest.fixture(scope="module")
def six(): return spots((260, 250), centres, 26)


def test_labelled_nuclei_are_taken_where_they_are_and_as_wide_as_they_are(model, six):
    labels = circles((260, 250), centres[[4, 0, 3]], 26) * 100      # three of the six, in an order of their own
    prepared = prepare_cells(model, six, labels=labels, labels_name="masks.npy")
    assert prepared.options.labelled == "nuclei" and prepared.options.nucleus_px == pytest.approx(26, abs=.5)
    assert np.allclose(prepared.nuclei * (260, 250), centres[[4, 0, 3]], atol=.6) and len(prepared.cells) == 3
    assert prepared.source["labels"] == dict(name="masks.npy", sha256=digest(labels), count=3)
    assert prepared.notes[0] == ("The label image has 3 objects, 25.7 px wide in the median, taken for nuclei, since "
                                 f"the nuclei stained inside are {width_inside(six, labels)} px wide.")


def width_inside(file, labels):
    "Median diameter of what `find_nuclei` finds inside the labels."
    found = find_nuclei(file.pixels[0, 0].astype(np.float32))
    return f"{np.median([2 * np.sqrt((found[labels == i] > 0).sum() / np.pi) for i in np.unique(labels)[1:]]):.1f}"


def test_of_labelled_cells_the_nucleus_is_measured_inside_and_the_cell_is_the_middle(model, six):
    shifted = centres + (6, -4)      # a cell is not centred on its nucleus
    whole = prepare_cells(model, six, labels=circles((260, 250), shifted, 52))
    assert whole.options.labelled == "cells" and whole.options.nucleus_px == pytest.approx(26, rel=.08)
    assert np.allclose(whole.nuclei * (260, 250), shifted, atol=.6)
    assert "6 objects, 51.8 px wide in the median, taken for whole cells, since the nuclei" in whole.notes[0]


def test_what_labels_are_of_can_be_said_and_counts(model, six):
    discs = circles((260, 250), centres, 52)
    said = prepare_cells(model, six, ImportOptions(labelled="nuclei"), labels=discs)
    assert said.options.nucleus_px == pytest.approx(52, abs=.5) and "taken for nuclei, as was said" in said.notes[0]
    close = circles((260, 250), centres, 28)
    cells = prepare_cells(model, six, ImportOptions(labelled="cells"), labels=close)
    assert cells.options.labelled == "cells" and cells.options.nucleus_px == pytest.approx(26, rel=.08)


def test_labels_of_what_was_found_give_what_was_found(model):
    file = photographed(field(300, 24))
    found = find_nuclei(file.pixels[0, 0].astype(np.float32))
    assert (prepare_cells(model, file, labels=found).cells == prepare_cells(model, file).cells).all()


def test_labelled_cells_are_prepared_again_from_their_source(model, six):
    labels = circles((260, 250), centres, 52)
    first = prepare_cells(model, six, ImportOptions(chosen=(1, 4)), "f.tif", labels, "m.tif")
    record = json.loads(json.dumps(first.source))
    options = ImportOptions(**{f.name: record[f.name] for f in fields(ImportOptions)})
    again = prepare_cells(model, six, options, "f.tif", labels, "m.tif")
    assert again.cells.tobytes() == first.cells.tobytes() and json.loads(json.dumps(again.source)) == record


def test_what_is_cut_by_the_edge_and_what_is_in_pieces_is_said(model, six):
    labels = circles((260, 250), [*centres, (2, 240)], 26)
    labels[250:252, 120:122] = 2      # a speck, far from its nucleus
    prepared = prepare_cells(model, six, labels=labels)
    assert len(prepared.nuclei) == 6 and np.allclose(prepared.nuclei * (260, 250), centres, atol=.6)
    assert prepared.notes[1:3] == ["1 of 7 labels lie in several pieces; of each the largest was taken.",
                                   "1 of 7 labelled objects are cut by the edge of the field and were left out."]


def test_that_only_the_first_of_many_are_taken_is_said_with_both_counts(model):
    file = photographed(field(620, 20))
    prepared = prepare_cells(model, file)
    found = len(prepared.nuclei)
    said = f"Of {found} cells that can be chosen, 64 at a time are treated: the first 64 were taken."
    assert found > 64 and said in prepared.notes and prepared.chosen == [*range(64)]
    assert said not in prepare_cells(model, file, ImportOptions(chosen=(70, 3))).notes
    y, x = np.indices((620, 620))
    dots = np.where((np.hypot(y % 24 - 12, x % 24 - 12) < 10) & (y < 600) & (x < 600), y // 24 * 25 + x // 24 + 1, 0)
    notes = prepare_cells(model, file, ImportOptions(labelled="nuclei"), labels=dots).notes
    assert dots.max() == 625 and "Of 625 labelled objects, the first 500 can be chosen." in notes


@st.composite
def label_images(draw):
    "Labels of up to 12 rectangles, some apart, some over another, with any numbers."
    h, w = draw(st.integers(8, 48)), draw(st.integers(8, 48))
    labels = np.zeros((h, w), int)
    for number in draw(st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=12)):
        y, x, a, b = (draw(st.integers(0, n - 1)) for n in (h, w, 12, 12))
        labels[y:y + a + 1, x:x + b + 1] = number
    return labels


def written(path, labels, kind, compression):
    "Write a label image in one of the ways in which programs do; its path."
    path = path.with_suffix(f".{kind}")
    if kind == "npy": np.save(path, labels[None] if compression else labels)
    elif kind == "png": Image.fromarray(labels).save(path)
    else: tifffile.imwrite(path, labels, photometric="minisblack", compression=compression)
    return path


@many(25)
@given(label_images(), st.sampled_from(["npy", "tif", "png"]), st.sampled_from([None, "zlib", "lzw"]),
       st.sampled_from([np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64]))
def test_any_label_image_is_read_as_other_readers_read_it(tmp_path_factory, labels, kind, compression, dtype):
    if kind == "png": dtype = np.uint16 if dtype != np.uint8 else dtype
    if kind == "tif" and (dtype == np.int64 or np.dtype(dtype).kind == "f" and compression == "lzw"): dtype = np.int32
    small = np.minimum(labels, 255 if dtype == np.uint8 else 65_535 if dtype == np.uint16 else 2**24).astype(dtype)
    path = written(tmp_path_factory.getbasetemp() / "labels", small, kind, compression)
    independent = dict(npy=np.load, tif=tifffile.imread, png=lambda p: np.asarray(Image.open(p)))[kind](path)
    read = read_labels(path)
    assert read.dtype == np.int32 and np.array_equal(read, independent.reshape(small.shape)) and (read == small).all()


@many(25)
@given(label_images())
def test_objects_have_the_centres_areas_and_edges_that_scipy_finds(labels):
    objects, table = whole_objects(labels)
    numbers = np.unique(labels[labels > 0])
    assert table["label"].tolist() == numbers.tolist()
    assert np.unique(objects[objects > 0]).tolist() == [*range(1, len(numbers) + 1)]
    for i, number in enumerate(numbers, 1):
        pieces, count = ndimage.label(labels == number, np.ones((3, 3)))
        areas = ndimage.sum_labels(pieces > 0, pieces, range(1, count + 1))
        assert table["pieces"][i - 1] == count and table["largest_share"][i - 1] == areas.max() / areas.sum()
        assert (objects == i).sum() == areas.max() and (labels[objects == i] == number).all()
        assert ndimage.label(objects == i, np.ones((3, 3)))[1] == 1
    if 2 * (table["largest_share"] < .9).sum() >= len(table): return
    plane = np.random.default_rng(0).uniform(size=labels.shape)
    seen = labelled_objects(labels, plane, "nuclei").table
    middles = ndimage.center_of_mass(objects > 0, objects, range(1, len(numbers) + 1))
    rim = {*objects[0], *objects[-1], *objects[:, 0], *objects[:, -1]}
    assert np.allclose(seen[["y", "x"]], middles)
    assert seen["touches_border"].tolist() == [i in rim for i in range(1, len(numbers) + 1)]


def test_a_palette_is_of_labels_and_not_of_colours(tmp_path):
    labels = circles((40, 60), [(12, 12), (25, 40)], 14).astype(np.uint8)
    picture = Image.fromarray(labels, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for name in ("labels.png", "labels.tif"):
        picture.save(tmp_path / name)
        assert (read_labels(tmp_path / name) == labels).all()


def test_what_is_no_label_image_is_refused_with_the_reason(tmp_path, ask):
    labels = circles((40, 60), [(12, 12), (25, 40)], 14)
    files = {"mask.npy": labels > 0, "fractions.npy": labels / 7, "negative.npy": labels - 1, "empty.npy": 0 * labels,
             "deep.npy": labels * 2.**40, "stack.npy": np.stack([labels] * 3), "nan.npy": labels * np.nan,
             "complex.npy": labels * 1j, "tiny.npy": labels[:5], "huge.npy": labels * 1e300,
             "many.npy": np.arange(max_labels + 2).reshape(2, -1).repeat(4, 0)}
    said = {"mask": "is a mask", "fractions": "holds fractions", "negative": "holds -1;", "empty": "is 0, background",
            "deep": "labels are 0 to 2,147,483,647", "stack": "is one plane", "nan": "holds fractions", "tiny": "by 5",
            "complex": "holds complex128", "huge": "holds 2e+300", "many": f"holds {max_labels + 1:,} labels",
            "field_seg": "Save masks as PNG/tif", "colours": "is in colours", "rgb": "is in colours",
            "pages": "3 pages", "bits": "is a mask", "lossy": "kind JPEG", "cut": "damaged or cut short",
            "short": "is cut short"}
    for name, array in files.items(): np.save(tmp_path / name, array)
    np.save(tmp_path / "field_seg.npy", dict(masks=labels))
    rgb, grey = np.stack([labels.astype(np.uint8)] * 3, -1), Image.fromarray(labels.astype(np.uint8))
    Image.fromarray(rgb).save(tmp_path / "colours.png")
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([labels] * 3), photometric="minisblack")
    grey.point(lambda v: 255 * (v > 0)).convert("1").save(tmp_path / "bits.png"), grey.save(tmp_path / "lossy.jpg")
    tifffile.imwrite(tmp_path / "whole.tif", labels, photometric="minisblack")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:-90])
    (tmp_path / "whole.tif").unlink()
    (tmp_path / "short.npy").write_bytes((tmp_path / "negative.npy").read_bytes()[:-9])
    assert {path.stem for path in tmp_path.iterdir()} == set(said)
    for path in tmp_path.iterdir(): assert said[path.stem] in str(ask(read_labels, path)), path.name


def test_labels_that_do_not_belong_to_the_field_are_refused(model, six, ask):
    labels = circles((260, 250), centres, 26)
    wrong = {"is 250 by 100 pixels and the field 250 by 260": labels[:100], "is a mask": labels > 0,
             "one number, 255, in several separate pieces": 255 * (labels > 0),
             "numbers, most of them in several separate pieces": six.pixels[0, 0] >> 8, "is no array": [[1], [1, 2]]}
    for text, own_labels in wrong.items(): assert text in str(ask(prepare_cells, model, six, labels=own_labels)), text
    assert "belongs to one field" in str(ask(prepare_cells, model, in_bytes(own), labels=labels))
    assert "no label image was given" in str(ask(prepare_cells, model, six, ImportOptions(labelled="cells")))
    assert "'nuclei' or of 'cells'" in str(ask(prepare_cells, model, six, ImportOptions(labelled="dna"), labels=labels))
    elsewhere = circles((260, 250), [(20, 100), (240, 220)], 26)
    text = str(ask(prepare_cells, model, six, ImportOptions(labelled="cells"), labels=elsewhere))
    assert text.startswith("No nucleus was found inside the labelled cells")
    given = prepare_cells(model, six, ImportOptions(labelled="cells", nucleus_px=26.), labels=elsewhere)
    assert len(given.cells) == 2


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


@pytest.mark.slow
def test_the_bundled_model_says_how_its_training_controls_look(real_cells):
    stored, measured = (dict(c) for c in (load_model().config["controls"], controls_of(real_cells)))
    known, again = stored.pop("plausibility"), measured.pop("plausibility")
    assert stored == measured and set(known) == set(again)
    for name in ("centre", "scale", "weights", "distances"):      # sums, in another order on another processor
        assert np.allclose(known[name], again[name], rtol=.02, atol=1e-3), name
    for name, ends in known["ranges"].items(): assert np.allclose(again["ranges"][name], ends, rtol=.02), name
