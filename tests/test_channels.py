"Many channels: which are looked at first, in which colours, how they are blended, and what of them travels."
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from conftest import many

from mfm_app import display, ui_parts
from mfm_app.core import InputError
from mfm_app.data import mark_shown, most_different, name_channels, read_cells, with_shown
from mfm_app.display import Reel, atlas_columns, frame_of
from mfm_app.images import write_ome_tiff
from mfm_app.permalink import channel_view
from mfm_app.sampling import SampleStep
from mfm_app.simulator import synthetic_cells
from mfm_app.ui_session import Session
from mfm_app.viz import (adds_up, channel_rows, colour_table, composite, look_up, picture, rxrx1_picture, show,
                         summary_picture, table_points)
from mfm_app.vocabulary import channel_colours, colour_rgb, default_shown

stains = [dict(name="DNA", colour="blue"), dict(name="Actin", colour="green"), dict(name="Tubulin", colour="red")]
palette = [dict(name=colour, colour=colour) for colour in channel_colours]
several = st.lists(st.sampled_from([c for c in channel_colours if c != "white"]), min_size=1, unique=True)
rng = np.random.default_rng(0)
cells = rng.integers(0, 256, (4, 16, 8, 8), np.uint8)


def equal(n, value=255): return np.full((n, 1, 1), value, np.uint8)


# Blending

def test_six_equal_channels_are_grey_and_not_white():
    six = palette[:6]
    full = composite(equal(6), six, shown=[c["name"] for c in six])[0, 0]
    mean = 255 * np.mean([channel_colours[c["colour"]] for c in six], 0)
    assert np.abs(full - mean).max() <= .5 and full.max() < 160 and np.ptp(full) < 30


@many(60)
@given(several)
def test_no_colours_that_are_averaged_end_in_white(colours):
    pixel = composite(equal(len(colours)), [dict(name=c, colour=c) for c in colours], shown=colours)[0, 0]
    if not adds_up([colour_rgb(c) for c in colours]): assert pixel.min() < 230
    assert len(colours) == 1 or pixel.max() > 80      # nor in darkness


@many(40)
@given(several, st.integers(1, 255))
def test_a_channel_that_is_alone_somewhere_has_its_own_colour_there(colours, value):
    image = np.zeros((len(colours), 1, 1), np.uint8)
    image[0] = value
    expected = 255 * (value / 255) ** .65 * np.array(channel_colours[colours[0]])
    pixel = composite(image, [dict(name=c, colour=c) for c in colours], shown=colours)[0, 0]
    assert np.abs(pixel - expected).max() <= .5


def test_three_channels_are_added_up_as_light_is():
    images = cells[:, :3]
    total = sum((images[:, i, :, :, None] / 255) ** .65 * channel_colours[c["colour"]] for i, c in enumerate(stains))
    assert np.abs(composite(images, stains) - 255 * total.clip(0, 1)).max() <= .5


def test_a_colour_can_be_another_than_the_channels_own():
    pixel = lambda **kwargs: composite(equal(3), stains, shown=["DNA"], **kwargs)[0, 0].tolist()
    assert pixel(colours={"DNA": "#ff8000"}) == [255, 128, 0] and pixel() == [64, 89, 255]


@pytest.mark.parametrize("kwargs", [
    dict(shown=["Golgi"]), dict(contrast={"Golgi": (0, 9)}), dict(colours={"DNA": "bleu"}), dict(one="Golgi"),
    dict(one="DNA", table="jet"), dict(rxrx1=True), dict(grid=(0, 9), table="jet")])
def test_what_cannot_be_shown_is_refused(ask, kwargs):
    assert isinstance(ask(show, cells[:, :3], stains, **kwargs), InputError)


# One channel, side by side, RxRx1

@pytest.mark.parametrize("name", sorted(set(table_points) - {"grey"}))
def test_the_tables_are_those_of_matplotlib(name):
    assert np.abs(colour_table(name) - 255 * colormaps[name](range(256))[:, :3]).max() < 5


def test_one_channel_is_shown_in_grey_or_in_a_table():
    assert (picture(equal(3), stains, one="Actin") == 255).all()
    assert picture(equal(3, 40), stains, one="Actin", contrast={"Actin": (0, 40)}, table="viridis").tolist() == [
        [colour_table("viridis")[255].tolist()]]


@pytest.mark.parametrize("n", [1, 6, 16])
def test_side_by_side_every_channel_has_a_row_and_one_contrast(n):
    rows = np.asarray(show(cells[:3, :n], palette[:n], columns=2, grid=(0, 100)))
    assert rows.shape == (2 * n * 10 - 2, 18, 3)
    for cell, (top, left) in enumerate([(0, 0), (0, 10), (10 * n, 0)]):
        for c in range(n):
            y = top + 10 * c
            assert (rows[y:y + 8, left:left + 8] == look_up(cells[cell, c], "grey", (0, 100))).all()
    assert (rows[10 * n:, 10:] == 255).all() and channel_rows(cells[:, :n], 4).shape == (4 * n, 8, 8, 3)


def rxrx1_by_hand(image):
    "The sum that rxrx1-utils computes, pixel by pixel."
    colours = [(19, 0, 249), (42, 255, 31), (255, 0, 25), (45, 255, 252), (250, 0, 253), (254, 255, 40)]
    ends, out = [51, 107, 64, 191, 89, 191], np.zeros((*image.shape[1:], 3), int)
    for plane, colour, end in zip(image, colours, ends):
        for (y, x), value in np.ndenumerate(plane):
            share = min(1., (value / 255) / ((end - 0) / 255) + 0 / 255)
            out[y, x] += [int(share * part) for part in colour]
    return np.minimum(out, 255)


def test_six_channels_in_the_colours_of_rxrx1():
    assert (rxrx1_picture(cells[0, :6]) == rxrx1_by_hand(cells[0, :6])).all()


@pytest.mark.parametrize("n", [1, 6, 16])
@pytest.mark.parametrize("view", [{}, dict(grid=(0, 255)), dict(one="blue", table="cividis")])
def test_a_summary_has_room_for_any_number_of_channels(n, view):
    rgb = summary_picture(dict(treated=cells, control=cells), dict(treated=cells[0].astype(float) - 100),
                          palette, **view) if n == 16 else \
        summary_picture(dict(treated=cells[:, :n]), dict(treated=cells[0, :n] - 100.), palette[:n], **view)
    assert rgb.ndim == 3 and (rgb[:, [0, -1]] == 255).all() and (rgb[[0, -1]] == 255).all()      # nothing is cut off


# Which are shown first

@pytest.mark.parametrize("names, shown", [
    (["a"], ["a"]), (["a", "b", "c"], ["a", "b", "c"]), (["ER", "Golgi", "Tubulin", "DAPI", "Phalloidin"], None),
    (["a", "b", "c", "Hoechst"], ["a", "b", "Hoechst"])])
def test_without_marks_the_named_stains_are_shown_or_else_the_first(names, shown):
    assert default_shown([dict(name=n) for n in names]) == (shown or ["Tubulin", "DAPI", "Phalloidin"])


def test_the_three_that_differ_most_are_shown_and_said():
    x, y, z = rng.integers(0, 256, (3, 20, 8, 8), np.uint8)
    images = np.stack([x, 255 - x, x // 2, y, 0 * x, z], 1)
    assert most_different(images) == [0, 3, 5] and most_different(images, [2]) == [2, 3, 5]
    channels, notes = mark_shown([dict(name=n, colour="red") for n in "abcdef"], images)
    assert default_shown(channels) == ["a", "d", "f"] and "a, d, f, which differ most" in notes[0]
    assert mark_shown(channels, images[::-1])[0] == channels      # what is marked stays
    assert most_different(np.zeros((2, 4, 8, 8), np.uint8)) == [0, 1, 2]
    drawn = synthetic_cells(4)      # three channels are shown as they are
    assert with_shown(drawn).channels == drawn.channels and with_shown(drawn).notes == drawn.notes


@many(40)
@given(st.lists(st.sampled_from(["DNA", "", "Actin", "ER", "red", "Golgi", "α-tubulin", "GFP", "Cy5"]), max_size=16,
                min_size=1))
def test_every_channel_has_a_colour_of_its_own(names):
    channels, _ = name_channels(names)
    colours = [c["colour"] for c in channels if c["name"] != "red"]      # who is called red is red, and so is the next
    assert all(map(colour_rgb, colours)) and len(set(colours)) == len(colours)


def test_the_colours_of_a_file_are_kept(tmp_path):
    for folder in ("DMSO", "taxol"):
        (tmp_path / "rgb" / folder).mkdir(parents=True)
        (tmp_path / "ome" / folder).mkdir(parents=True)
        Image.fromarray(cells[0, :3].transpose(1, 2, 0)).save(tmp_path / "rgb" / folder / "a.png")
        write_ome_tiff(tmp_path / "ome" / folder / "a.tif", cells[:1, :2], ["red", "H2B-GFP"], None, {})
    colours = lambda folder: [c["colour"] for c in read_cells(tmp_path / folder).channels]
    assert colours("rgb") == ["red", "green", "blue"] and colours("ome")[0] == "red"
    given = name_channels(["", ""], [(255, 0, 0), (255, 200, 200)])[0]
    assert [c["colour"] for c in given] == ["red", "#ffc8c8"]


# Addresses

@pytest.mark.parametrize("text, view", [
    ("DNA@red:0-90", dict(shown=["DNA"], contrast={"DNA": (0, 90)}, colours={"DNA": "red"})),
    ("DNA@%23ff8800", dict(shown=["DNA"], contrast={}, colours={"DNA": "#ff8800"})),
    (";one:Actin", dict(one="Actin", table="grey")),
    ("-;one:Actin:3-9;magma", dict(one="Actin", table="magma", contrast={"Actin": (3, 9)})),
    (";grid", dict(grid=(0, 255), table="grey")), (";grid:0-90;cividis", dict(grid=(0, 90), table="cividis")),
    ("DNA;", dict(shown=["DNA"], contrast={}))])
def test_an_address_says_how_channels_are_shown(text, view):
    assert channel_view(text, ["DNA", "Actin", "Tubulin"]) == view
    show(cells[:, :3], stains, **view)


# What travels

def step(n, size=8, step=1):
    return SampleStep(.5, *rng.integers(0, 256, (2, 2, 4, n, size, size), np.uint8), step, 3)


def run_with(n, shown=3):
    names = [f"c{i}" for i in range(n)]
    return dict(id=f"run {n}", channels=[dict(name=name) for name in names], shown=names[:shown])


def test_a_frame_grows_with_the_channels_shown_and_not_with_those_there_are():
    size = lambda n, shown: len(json.dumps(Reel(run_with(n, shown)).frame(step(n, 32))))
    three, of_six, of_sixteen, six = size(3, 3), size(6, 3), size(16, 3), size(16, 6)
    assert max(three, of_six, of_sixteen) < 1.05 * min(three, of_six, of_sixteen) and 1.8 * three < six < 2.2 * three


def test_what_is_looked_at_later_is_handed_out_then():
    reel, steps = Reel(run_with(6)), [step(6, step=i) for i in range(4)]
    assert all(set(reel.frame(s)) == {"t", "step", "x1_pred"} for s in steps)
    more = reel.look([0, 5], False, [5], [1, 2, 9])
    assert [f["step"] for f in more] == [1, 2] and all(list(f["x1_pred"]) == [5] for f in more)
    assert more[0] == frame_of(steps[1], [5]) and list(reel.frame(steps[3])["x1_pred"]) == [0, 5]
    assert "xt" in reel.look([1], True, [1], [3])[0] and "xt" in reel.frame(steps[3])


def test_of_a_long_run_the_first_steps_give_way(monkeypatch):
    reel, steps = Reel(run_with(3)), [step(3, step=i) for i in range(9)]
    monkeypatch.setattr(display, "max_reel_bytes", 3 * (steps[0].xt.nbytes + steps[0].x1_pred.nbytes))
    for s in steps: reel.frame(s)
    assert list(reel.steps) == [6, 7, 8] and reel.nbytes == display.max_reel_bytes
    assert atlas_columns(64, 256) == 63 and atlas_columns(8, 64) == 8      # WebP ends at 16,383 pixels


def test_steps_are_kept_for_a_visitor_and_as_long_as_there_is_room(monkeypatch):
    one, other = Session(), Session()
    for session, run in ((one, "a"), (other, "b")):
        ui_parts.reel_for(session, run_with(6) | dict(id=run)).frame(step(6))
    query = lambda run, **kwargs: ui_parts.pictures_for(
        dict(run=run, channels=[0], states=False, missing=[4], steps=[1]) | kwargs)
    assert len(json.loads(query("a"))) == len(json.loads(query("b"))) == 1
    other.clear()
    assert query("b") == "null"
    monkeypatch.setattr(ui_parts, "max_held_bytes", 1)
    ui_parts.reel_for(other, run_with(6))
    assert query("a") == "[]"


@pytest.mark.parametrize("query", [
    None, {}, [], dict(run="x"), dict(run=[]), dict(run="a"), dict(channels=[99]), dict(missing=["x"]),
    dict(channels=3), dict(steps=None), dict(steps=[[]])])
def test_a_malformed_question_is_answered_with_nothing(query):
    session = Session()
    ui_parts.reel_for(session, run_with(6) | dict(id="here")).frame(step(6))
    whole = dict(run="here", channels=[0], states=False, missing=[4], steps=[1])
    asked = whole | query if isinstance(query, dict) and query and "run" not in query else query
    assert ui_parts.pictures_for(asked) == "null"
