"The Counterfactual tab in a browser, with a small untrained model: generated controls, images, bad files, exports."
import io
import json
import struct
import tempfile
import time
import uuid
import zipfile
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import typed

from mfm_app import plausibility
from mfm_app.counterfactual import counterfactual, sample_controls
from mfm_app.images import read_micrograph, read_provenance
from mfm_app.preprocess import rescale
from mfm_app.simulator import synthetic_cells
from mfm_app.ui_counterfactual import ImageSession, doses_of, import_image, treatment_effects
from mfm_app.ui_parts import static_folder
from mfm_app.ui_session import upload_folder

seconds = 1000     # Playwright counts in milliseconds
message, status = (f"#cf-{name} [data-testid=markdown]" for name in ("message", "status"))      # but marks of progress


# The page

@pytest.fixture(autouse=True)
def reset_network(engine): engine.model.net.pause = 0


def open_tab(page, address):
    page.goto(address)
    page.get_by_role("tab", name="Counterfactual").click()
    page.wait_for_selector("#cf-dose .ticks button:visible")
    page.locator("button:visible", has_text="Sampling").click()
    page.wait_for_selector("#cf-steps input")


def start_over(page):
    "The fields as every test expects them, and no image."
    if page.locator("#cf-file button[aria-label=Clear]").count():
        take_cells_from(page, "Your image")
        page.click("#cf-file button[aria-label=Clear]")
    take_cells_from(page, "Generated controls")
    page.get_by_label("Every dose seen in training").uncheck()
    for field, value in dict(cells=2, seed=0, steps=2).items():
        if page.input_value(f"#cf-{field} input") != str(value): set_number(page, field, value)
    if page.input_value("#cf-dose .number") != "0.1": set_dose(page, 0.1)


@pytest.fixture
def tab(lent, address):
    "The Counterfactual tab of a page that the tests share."
    with lent("tab", lambda page: open_tab(page, address)) as page:
        start_over(page)
        yield page


def set_number(page, field, value): typed(page, f"#cf-{field} input", value)


def set_dose(page, dose_um):
    page.fill("#cf-dose .number", str(dose_um))
    page.press("#cf-dose .number", "Tab")


def wait_for_text(page, selector, text):
    script = "([at, text]) => document.querySelector(at).innerText.includes(text)"
    page.wait_for_function(script, arg=[selector, text], timeout=20 * seconds)
    return page.inner_text(selector)


def take_cells_from(page, source):
    if page.get_by_role("tab", name=source).get_attribute("aria-selected") == "true": return
    page.get_by_role("tab", name=source).click()
    page.locator("#cf-field").wait_for(state="visible" if source == "Your image" else "hidden")
    page.wait_for_timeout(200)      # until the server has heard of it


def wait_for_effects(page, prefix="cf-"):
    shown = f"document.querySelector('#{prefix}effects .maps .main-svg')"
    fresh = f"document.querySelector('#{prefix}effects .stale').hidden"
    page.wait_for_function(f"{shown} && {fresh}", timeout=20 * seconds)


def forget_provenance(page): page.evaluate("document.querySelector('#cf-viewer .provenance').textContent = ''")


def treat(page):
    "Treat cells, and wait for the end and for the effect; the line below the viewer."
    forget_provenance(page)
    page.click("#cf-go")
    page.wait_for_function("document.querySelector('#cf-viewer .provenance').textContent", timeout=60 * seconds)
    page.wait_for_function("/step (\\d+) of \\1$/.test(document.querySelector('#cf-viewer .where').textContent)")
    wait_for_effects(page)
    return page.inner_text("#cf-viewer .provenance")


def start(page):
    "Treat cells, and wait for a step on the way."
    page.evaluate("document.querySelector('#cf-viewer .where').textContent = ''")
    page.click("#cf-go")
    under_way = "/step [1-9]/.test(document.querySelector('#cf-viewer .where').textContent)"
    page.wait_for_function(under_way, timeout=20 * seconds)


highest_value = """all => all.map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data
    .reduce((highest, value, i) => i % 4 < 3 ? Math.max(highest, value) : highest, 0))"""


def brightest(page, selector):
    "The brightest value of each canvas."
    return page.locator(selector).evaluate_all(highest_value)


def picture(page, selector): return page.locator(selector).last.evaluate("c => c.toDataURL ? c.toDataURL() : c.src")


def files_left():
    "The files with something in them in the temporary folder."
    return [path for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file() and path.stat().st_size]


# Generated controls

def test_generated_controls_are_inverted_and_sampled_and_show_the_effect(page, address):
    open_tab(page, address)
    assert page.locator("#cf-viewer .hint").is_visible() and page.locator("#cf-field").is_hidden()
    page.click("#cf-export-csv")
    wait_for_text(page, status, "There is nothing to download yet.")
    set_number(page, "steps", 2), set_number(page, "cells", 6)
    line = treat(page)
    assert line.startswith("6 cells, experiment Week1. multistep2 in 2 steps each way, 4 network evaluations an image")
    assert "Weights drawn 000000000000" in line
    captions = page.locator("#cf-viewer .pair figcaption").all_text_contents()
    assert captions == ["Original", "Reconstruction (still DMSO)", "stabiliser, 1 µM"]
    cells = page.locator("#cf-viewer .cell")
    assert cells.count() == 6 and cells.first.inner_text() == "seed 0"
    painted = brightest(page, "#cf-viewer canvas")
    assert len(painted) == 3 + 2 + 2 * 6 and min(painted) > 0
    quality = wait_for_text(page, "#cf-quality", "Reconstruction")
    assert " dB. Originals and reconstructions (inverted, then sampled as control) differ by DNA" in quality
    title = wait_for_text(page, "#cf-effects h3", "Effect")
    assert title == "Effect of stabiliser, 1 µM: counterfactual minus reconstruction"
    assert page.locator("#cf-effects .maps .heatmaplayer").count() >= 3
    assert page.locator("#cf-effects .profile .bars path").count() > 5
    assert page.locator("#cf-effects .switch input").is_enabled()


def test_the_trajectory_is_scrubbed_and_before_slides_over_after(tab):
    set_number(tab, "cells", 1)
    treat(tab)
    where, scrub = tab.locator("#cf-viewer .where"), tab.locator("#cf-viewer .scrub")
    slider = tab.get_by_role("slider", name="How much of the picture shows the cell before").locator("visible=true")
    assert scrub.get_attribute("max") == "4" and where.inner_text() == "sampling, t = 1.00, step 4 of 4"
    end = picture(tab, "#cf-viewer .pair canvas")
    tab.get_by_text("Noisy state").locator("visible=true").click()
    scrub.press("Home")
    assert where.inner_text() == "inverting, t = 1.00, step 0 of 4"
    scrub.press("ArrowRight"), scrub.press("ArrowRight")
    assert where.inner_text().startswith("sampling, t = 0") and picture(tab, "#cf-viewer .pair canvas") != end
    clip = lambda: tab.locator("#cf-viewer .stack canvas").last.evaluate("c => getComputedStyle(c).clipPath")
    assert clip() == "inset(0px 0px 0px 50%)"
    slider.press("ArrowRight")
    assert clip() == "inset(0px 0px 0px 51%)" and slider.get_attribute("aria-valuetext") == "51 % of it before"
    box = slider.bounding_box()
    tab.mouse.click(box["x"] + .2 * box["width"], box["y"] + .5 * box["height"])
    assert 15 <= int(slider.input_value()) <= 25 and clip() == f"inset(0px 0px 0px {slider.input_value()}%)"
    tab.get_by_text("Predicted cell").locator("visible=true").click()


def test_a_dose_of_a_series_is_chosen_and_everything_follows(tab, engine):
    tab.get_by_label("Every dose seen in training").check()
    treat(tab)
    doses = tab.locator("#cf-viewer .alternative")
    assert doses.all_inner_texts() == ["stabiliser, 0.1 µM", "stabiliser, 1 µM"]
    assert min(brightest(tab, "#cf-viewer .alternative canvas")) > 0
    before = picture(tab, "#cf-viewer .pair canvas")
    tab.get_by_role("button", name="stabiliser, 1 µM").press("Enter")
    assert doses.last.get_attribute("aria-pressed") == "true" and doses.first.get_attribute("aria-pressed") == "false"
    assert tab.locator("#cf-viewer .pair figcaption").last.inner_text() == "stabiliser, 1 µM"
    large, small, compared = (picture(tab, f"#cf-viewer .{part} canvas") for part in ("pair", "alternative", "stack"))
    assert before != large == small == compared
    wait_for_text(tab, "#cf-effects h3", "Effect of stabiliser, 1 µM")
    doses.first.click(), doses.last.click(), doses.first.click()      # the last counts, however quickly
    wait_for_text(tab, "#cf-effects h3", "Effect of stabiliser, 0.1 µM")
    engine.model.net.pause = .1
    forget_provenance(tab)
    tab.click("#cf-go")
    tab.wait_for_function("/step [1-3]/.test(document.querySelector('#cf-viewer .where').textContent)")
    doses.last.click()      # before its effect is known
    wait_for_text(tab, "#cf-effects .stale", "of the previous cells")
    wait_for_text(tab, "#cf-viewer .provenance", "2 cells")
    wait_for_text(tab, "#cf-effects h3", "Effect of stabiliser, 1 µM")


# Cells of an image

@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A field of 24 cells with channels in another order, a part of it without names, one cell as PNG, five as NPY."
    folder, cells = tmp_path_factory.mktemp("files"), synthetic_cells(24).where(perturbation="DMSO").images
    mosaic = cells[:24].reshape(4, 6, 3, 64, 64).transpose(2, 0, 3, 1, 4).reshape(1, 3, 256, 384)
    field = (rescale(mosaic, 1.5)[0] * 6 + 150)[[2, 0, 1]].astype(np.uint16)
    named = dict(field=(["beta-tubulin", "Hoechst 33342", "phalloidin"], field),
                 odd=(["left", "middle", "right"], field[:, :192, :192]))
    for name, (channels, pixels) in named.items():
        metadata = dict(axes="CYX", Channel=dict(Name=channels), PhysicalSizeX=.2)
        tifffile.imwrite(folder / f"{name}.ome.tif", pixels, photometric="minisblack", metadata=metadata)
    Image.fromarray(cells[0][::-1].transpose(1, 2, 0).copy()).save(folder / "cell.png")      # red is tubulin, blue DNA
    np.save(folder / "five.npy", cells[:5])
    large = np.tile(mosaic[0], (1, 2, 2))[[2, 0, 1]]      # 96 cells in 12 columns, their middles 64 pixels apart
    about = dict(axes="CYX", Channel=dict(Name=named["field"][0]))
    tifffile.imwrite(folder / "large.ome.tif", large, photometric="minisblack", metadata=about)
    y, x = np.indices(large.shape[1:])
    disc, number = np.hypot(y % 64 - 32, x % 64 - 32) < 9.5, y // 64 * 12 + x // 64 + 1
    tifffile.imwrite(folder / "masks.tif", np.where(disc & (number <= 90), number, 0).astype(np.uint16))
    np.save(folder / "other_masks.npy", np.ones((40, 40), int))
    return folder


def upload(page, path):
    take_cells_from(page, "Your image")
    if page.locator("#cf-file button[aria-label=Clear]").count(): page.click("#cf-file button[aria-label=Clear]")
    page.set_input_files("#cf-file input", path)


def choose_channel(page, channel, option):
    page.click(f"#cf-channel-{channel} input")
    page.locator(f"#cf-channel-{channel}").get_by_role("option", name=option).click()


def channels(page): return [page.input_value(f"#cf-channel-{i} input") for i in range(3)]


def wait_for_channels(page, *expected):
    script = """expected => expected.every((value, i) =>
        document.querySelector(`#cf-channel-${i} input`).value === value)"""
    page.wait_for_function(script, arg=expected, timeout=20 * seconds)


def wait_for_chosen(page, n, of=24):
    script = "text => document.querySelector('#cf-field output')?.textContent === text"
    page.wait_for_function(script, arg=f"{n} of {of} nuclei chosen", timeout=20 * seconds)
    page.wait_for_timeout(300)      # until the server has heard of it


def wait_for_change(page, selector, before):
    script = "([at, before]) => document.querySelector(at).src !== before"
    page.wait_for_function(script, arg=[selector, before], timeout=20 * seconds)
    return picture(page, selector)


def test_a_field_is_imported_its_channels_guessed_and_two_of_its_cells_treated(tab, files):
    upload(tab, files / "field.ome.tif")
    rings = tab.locator("#cf-field .nuclei button")
    rings.nth(23).wait_for()
    wait_for_text(tab, "#cf-field .whole figcaption", "field.ome.tif: 24 nuclei found")
    assert channels(tab) == ["2: Hoechst 33342", "3: phalloidin", "1: beta-tubulin"]
    assert tab.inner_text(message) == "" and files_left() == []
    wait_for_chosen(tab, 24)
    tab.get_by_role("button", name="Take none").click()
    wait_for_chosen(tab, 0)
    tab.click("#cf-go")
    wait_for_text(tab, status, "No nucleus is chosen; choose at least one in your image.")
    rings.evaluate_all("rings => [3, 7].forEach(i => rings[i].click())")      # the second before the first is answered
    assert treat(tab).startswith("2 cells, ")
    assert tab.locator("#cf-viewer .cell").all_inner_texts() == ["cell 1", "cell 2"]
    assert rings.nth(3).get_attribute("aria-pressed") == rings.nth(7).get_attribute("aria-pressed") == "true"
    take_cells_from(tab, "Generated controls"), take_cells_from(tab, "Your image")
    rings.first.wait_for()      # it is still there
    wait_for_chosen(tab, 2)
    tab.get_by_role("button", name="Take all").click()
    wait_for_chosen(tab, 24)
    with tab.expect_download() as download: tab.click("#cf-export-npz")
    source = read_provenance(download.value.path())["source"]      # of the two, which are what is shown
    assert source["chosen"] == [3, 7] and source["name"] == "field.ome.tif" and source["channels"] == [1, 2, 0]


def drag_region(page, corner, opposite, key=None):
    "Draw a rectangle on the field from one corner to the other, given as shares of its width and height."
    box = page.locator("#cf-field .frame").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (corner, opposite)]
    if key: page.keyboard.down(key)
    page.mouse.move(*places[0]), page.mouse.down(), page.mouse.move(*places[1], steps=4), page.mouse.up()
    if key: page.keyboard.up(key)


def test_a_label_image_says_which_cells_and_a_region_chooses_among_them(tab, files):
    upload(tab, files / "large.ome.tif")
    wait_for_text(tab, "#cf-field .notes", "64 at a time are treated: the first 64 were taken.")
    tab.locator("button:visible", has_text="Label image (optional)").click()
    tab.wait_for_selector("#cf-labels input", state="attached")
    tab.set_input_files("#cf-labels input", files / "other_masks.npy")
    wait_for_text(tab, message, "The label image is 40 by 40 pixels and the field 768 by 512")
    tab.set_input_files("#cf-labels input", files / "masks.tif")      # of the other nothing is left
    wait_for_text(tab, "#cf-field .whole figcaption", "large.ome.tif: 90 labelled nuclei, choose cells")
    notes = wait_for_text(tab, "#cf-field .notes", "The label image has 90 objects, 19.3 px wide in the median")
    assert "Of 90 cells that can be chosen, 64 at a time are treated: the first 64 were taken." in notes
    said = "#cf-field .said"
    place = np.stack([np.arange(90) // 12 * 64 + 32, np.arange(90) % 12 * 64 + 32], 1)      # y and x of each disc
    chosen = lambda: tab.locator("#cf-field .nuclei button").evaluate_all(
        "rings => rings.flatMap((ring, i) => ring.ariaPressed === 'true' ? [i] : [])")
    drag_region(tab, (.01, .01), (.99, .99))
    wait_for_text(tab, said, "90 nuclei lie in the region; 64 at a time are treated: the 64 nearest its middle were "
                             "taken.")
    wait_for_chosen(tab, 64, of=90)
    distances = np.hypot(*(place - (256, 384)).T)
    assert distances[chosen()].max() <= np.delete(distances, chosen()).min()
    drag_region(tab, (.17, .26), (.01, .01))      # 2 by 2 of them
    wait_for_text(tab, said, "4 nuclei lie in the region.")
    assert chosen() == [0, 1, 12, 13]
    drag_region(tab, (.17, .01), (.33, .12), "Shift")
    assert chosen() == [0, 1, 2, 3, 12, 13]
    drag_region(tab, (.01, .13), (.99, .25), "Alt")
    assert chosen() == [0, 1, 2, 3]
    tab.get_by_role("button", name="Nucleus 1", exact=True).click()      # still one by one
    assert chosen() == [1, 2, 3] and tab.locator("#cf-field .region").is_hidden()
    drag_region(tab, (.9, .97), (.99, .99))
    wait_for_text(tab, said, "No nucleus lies in the region; what was chosen stays.")
    tab.get_by_role("button", name="Region", exact=True).press("Enter"), tab.keyboard.press("Escape")
    tab.keyboard.press("Enter")      # the button again: the region in the middle
    for key in ("ArrowLeft", "Shift+ArrowUp", "Alt+Enter", "Enter"): tab.keyboard.press(key)
    middle = np.flatnonzero((abs(place - (.5 * 512, .48 * 768)) < (.25 * 512, .25 * 768)).all(1)).tolist()
    wait_for_text(tab, said, f"{len(middle)} nuclei lie in the region.")
    assert chosen() == middle
    assert files_left() == []
    assert treat(tab).startswith(f"{len(middle)} cells, ")
    with tab.expect_download() as download: tab.click("#cf-export-npz")
    source = read_provenance(download.value.path())["source"]
    assert source["chosen"] == middle and source["labelled"] == "nuclei"
    assert (source["labels"]["name"], source["labels"]["count"]) == ("masks.tif", 90)


def test_intensities_size_and_channels_can_be_changed(tab, files):
    upload(tab, files / "field.ome.tif")
    wait_for_chosen(tab, 24)
    tab.get_by_role("button", name="Take none").click()
    tab.locator("#cf-field .nuclei button").first.click()
    wait_for_chosen(tab, 1)
    tab.wait_for_function("document.querySelector('#cf-field .before').naturalWidth === 64")      # one cell has arrived
    before, after = picture(tab, "#cf-field .before"), picture(tab, "#cf-field .after")
    assert before != after
    tab.get_by_label("Match intensities").uncheck()
    assert wait_for_change(tab, "#cf-field .after", after) == picture(tab, "#cf-field .before") == before
    wait_for_text(tab, "#cf-field .after-title", "intensities not matched")
    tab.focus("#cf-nucleus input"), tab.keyboard.press("Tab")      # passing through changes nothing
    tab.wait_for_timeout(500)
    shape = tab.locator("#cf-field .before").evaluate("sheet => [sheet.naturalWidth, sheet.naturalHeight]")
    assert shape == [64, 64]
    set_number(tab, "nucleus", 40)
    wait_for_text(tab, "#cf-field .notes", "A nucleus is 40 px wide in the file")
    wait_for_chosen(tab, 1)
    assert wait_for_change(tab, "#cf-field .before", before)
    set_number(tab, "nucleus", 0)
    wait_for_text(tab, message, "A nucleus must be 3 to 218 pixels wide in the file")
    assert "Traceback" not in tab.inner_text("body")
    whole = picture(tab, "#cf-field .whole img")
    choose_channel(tab, 1, "1: beta-tubulin")
    wait_for_change(tab, "#cf-field .whole img", whole)
    assert channels(tab) == ["2: Hoechst 33342", "1: beta-tubulin", "1: beta-tubulin"]
    choose_channel(tab, 0, "3: phalloidin")
    choose_channel(tab, 1, "2: Hoechst 33342")      # before the first is answered
    tab.wait_for_timeout(1.5 * seconds)
    assert channels(tab) == ["3: phalloidin", "2: Hoechst 33342", "1: beta-tubulin"]
    tab.get_by_label("Match intensities").check()


def test_a_first_image_of_the_models_own_size_has_no_nuclear_width_and_stays_without(tab, files):
    upload(tab, files / "five.npy")
    wait_for_text(tab, "#cf-field .notes", "taken as it is")
    assert tab.input_value("#cf-nucleus input") == ""
    tab.get_by_label("Match intensities").uncheck()
    wait_for_text(tab, "#cf-field .after-title", "intensities not matched")
    tab.wait_for_timeout(1 * seconds)      # whatever follows has arrived
    assert tab.inner_text(message) == "" and "taken as it is" in tab.inner_text("#cf-field .notes")


def test_channels_that_cannot_be_guessed_are_given_and_one_cell_or_several_are_treated(tab, files):
    upload(tab, files / "odd.ome.tif")
    wait_for_text(tab, message, "The file has 3 channels and the model needs DNA, Actin, Tubulin; "
                                "say which is DNA and which Actin and which Tubulin.")
    assert tab.locator("#cf-field .hint").is_visible()
    for i, option in enumerate(["2: middle", "3: right", "1: left"]): choose_channel(tab, i, option)
    wait_for_text(tab, "#cf-field .whole figcaption", "odd.ome.tif: ")
    assert channels(tab) == ["2: middle", "3: right", "1: left"] and tab.inner_text(message) == ""
    upload(tab, files / "cell.png")
    wait_for_text(tab, "#cf-field .whole figcaption", "cell.png")
    assert channels(tab) == ["3: blue", "2: green", "1: red"] and tab.inner_text(message) == ""
    own_size = "The image has the size of the model's own cells and is taken as it is."
    wait_for_text(tab, "#cf-field .notes", own_size)
    tab.get_by_label("Match intensities").uncheck()
    wait_for_text(tab, "#cf-field .after-title", "intensities not matched")
    wait_for_text(tab, "#cf-field .notes", "taken as it is")
    assert treat(tab).startswith("1 cell, ")
    assert tab.locator("#cf-effects .switch input").is_disabled()
    upload(tab, files / "five.npy")
    wait_for_text(tab, "#cf-field .whole figcaption", "five.npy")
    assert tab.locator("#cf-field .nuclei button").count() == 0 and tab.locator("#cf-field .choose").is_hidden()
    assert treat(tab).startswith("5 cells, ")
    tab.click("#cf-file button[aria-label=Clear]")
    wait_for_text(tab, message, "One cell, several, or a field with many")
    assert tab.locator("#cf-field .hint").is_visible() and files_left() == []
    tab.get_by_label("Match intensities").check()


@pytest.fixture
def remembers_controls(engine, monkeypatch):
    "The model knows how its controls look, so that an image can be implausible."
    cells = synthetic_cells(60, seed=5)
    monkeypatch.setattr(plausibility, "min_controls", 8)
    known = plausibility.plausibility_statistics(cells.images[cells.is_control], cells.images[~cells.is_control][:60],
                                                 ["DNA", "Actin", "Tubulin"])
    monkeypatch.setitem(engine.model.config["controls"], "plausibility", known)


def test_an_implausible_image_is_questioned_and_used_once_somebody_insists(tab, engine, remembers_controls, tmp_path):
    cell = synthetic_cells(30, seed=6).where(perturbation="DMSO").images[0]
    names = dict(axes="CYX", Channel=dict(Name=["DNA", "Actin", "Tubulin"]))      # which are false of one of them
    for name, order in dict(right=[0, 1, 2], exchanged=[1, 2, 0]).items():
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", cell[order], photometric="minisblack", metadata=names)
    upload(tab, tmp_path / "exchanged.ome.tif")
    question = wait_for_text(tab, message, "If it is right all the same, tick Use it anyway.")
    assert question.startswith("⚠️ ") and "channels look exchanged" in question
    assert "channels look exchanged" in tab.inner_text("#cf-field .notes")      # it is shown, but not used
    rounds = engine.scheduler.rounds
    tab.click("#cf-go")
    wait_for_text(tab, status, "Your image looks implausible, as is said at its file; mend that, or tick Use it anyway")
    assert engine.scheduler.rounds == rounds
    insist = tab.get_by_label("Use it anyway")
    insist.check()
    tab.wait_for_function("at => !document.querySelector(at)?.innerText.trim()", arg=message)
    assert treat(tab).startswith("1 cell, ") and tab.inner_text(status) == ""
    assert "channels look exchanged" in wait_for_text(tab, "#cf-quality", "noise is reconstructed as well.")
    with tab.expect_download() as download: tab.click("#cf-export-npz")
    source = read_provenance(download.value.path())["source"]
    assert source["insist"] and "channels look exchanged" in source["plausibility"]
    insist.uncheck()
    wait_for_text(tab, message, "tick Use it anyway")
    upload(tab, tmp_path / "right.ome.tif")
    wait_for_text(tab, "#cf-field .whole figcaption", "right.ome.tif")
    tab.wait_for_function("at => !document.querySelector(at)?.innerText.trim()", arg=message)
    assert "farther from the mean of the training controls" in tab.inner_text("#cf-field .notes") and insist.is_hidden()


# Bad files

def png(depth, colour, width, height, rows=b""):
    "A PNG with this header and these rows."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(write, *args, **kwargs):
    write(out := io.BytesIO(), *args, **kwargs)
    return out.getvalue()


def as_png(image): return saved(lambda out: Image.fromarray(image).save(out, "PNG"))
def as_tiff(pixels, **kwargs): return saved(tifffile.imwrite, pixels, photometric="minisblack", **kwargs)
def as_npy(array): return saved(np.save, array)


rng = np.random.default_rng(0)
grain = rng.integers(0, 255, (3, 64, 64), np.uint8)
palette = saved(lambda out: Image.fromarray(grain[0]).convert("P").save(out, "PNG"))
stack = as_tiff(np.stack([grain] * 5), ome=True, metadata=dict(axes="ZCYX"))
bad_files = {
    "text.png": (b"This is a letter.", "is none of the kinds that are read: PNG, JPEG, BMP, TIFF, NPY and NPZ."),
    "short.png": (as_png(grain.transpose(1, 2, 0).copy())[:3000], "begins as PNG, but is damaged or cut short."),
    "short.tif": (as_tiff(grain)[:6000], "begins as TIFF, but is damaged or cut short."),
    "bomb.png": (png(8, 0, 60_000, 60_000), "claims 1 x 60,000 x 60,000 pixels; up to 64,000,000 values"),
    "dot.png": (as_png(grain[0, :1, :1].copy()), "is 1 by 1 pixels; 8 along each side are needed."),
    "black.png": (as_png(np.zeros((64, 64, 3), np.uint8)), "is the same everywhere: every pixel is 0."),
    "white.png": (as_png(np.full((64, 64, 3), 255, np.uint8)), "is the same everywhere: every pixel is 255."),
    "nan.npy": (as_npy(np.full((3, 64, 64), np.nan, np.float32)),
                "holds NaN or infinity; every pixel must be a finite number."),
    "stack.ome.tif": (stack, "is a z-stack of 5 planes; take one plane or project it first."),
    "palette.png": (palette, "has a palette: its numbers stand for colours"),
    "pickle.npy": (as_npy(np.array([dict(a=1)] * 64, dtype=object)),
                   "holds pickled Python objects, which are never opened; save numbers."),
    "two.npy": (as_npy(grain[:2]),
                "The file has 2 channels and the model needs DNA, Actin, Tubulin; say which is DNA"),
    "nothing.png": (b"", "is empty."),
}


def test_a_bad_file_is_refused_in_a_sentence_and_nothing_is_lost(tab, files, tmp_path):
    done = treat(tab)
    for name, (content, reason) in bad_files.items():
        (tmp_path / name).write_bytes(content)
        upload(tab, tmp_path / name)
        text = wait_for_text(tab, message, reason).strip()
        assert text.startswith("⚠️ ") and len(text.splitlines()) == 1 and len(text) < 350, text
        everything = tab.inner_text("body")
        hidden = "Traceback", tempfile.gettempdir(), str(tmp_path)
        assert not any(words in everything for words in hidden), name
        assert tab.locator("#cf-field .hint").is_visible() and files_left() == [], name
    assert tab.inner_text("#cf-viewer .provenance") == done      # earlier cells, which can still be exported
    with tab.expect_download() as download: tab.click("#cf-export-png")
    assert read_provenance(download.value.path())["source"]["kind"] == "drawn"
    tab.click("#cf-go")
    wait_for_text(tab, status, "Import an image first, or take generated controls.")
    upload(tab, files / "field.ome.tif")
    tab.locator("#cf-field .nuclei button").first.wait_for()
    upload(tab, files / "odd.ome.tif")      # whose channels cannot be guessed
    wait_for_text(tab, message, "The file has 3 channels")
    tab.locator("#cf-field .hint").wait_for()      # and not the image before it
    take_cells_from(tab, "Generated controls")
    assert treat(tab).startswith("2 cells, ")
    (tmp_path / "program.exe").write_bytes(b"MZ")      # a kind that is not listed is not even sent
    upload(tab, tmp_path / "program.exe")
    tab.locator(".toast-body.error").wait_for()
    assert "png" in tab.inner_text(".toast-body.error") and files_left() == []
    tab.goto("about:blank")      # the field keeps showing the file that it did not send


# What is left on disk

def answer_to_upload(address, file):
    "What the queue answers to an upload event with this value; no browser would send it."
    config = httpx.get(f"{address}config").json()
    field = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "cf-file")
    call = next(d["id"] for d in config["dependencies"] if [field, "upload"] in d["targets"])
    session = uuid.uuid4().hex
    request = dict(fn_index=call, session_hash=session, data=[None, file, True])
    joined = httpx.post(f"{address}gradio_api/queue/join", json=request)
    if joined.status_code != 200: return joined.text
    queue = f"{address}gradio_api/queue/data"
    with httpx.stream("GET", queue, params=dict(session_hash=session), timeout=30) as answers:
        return next(line for line in answers.iter_lines() if "process_completed" in line)


def file_data(path, **more): return dict(path=str(path), meta=dict(_type="gradio.FileData"), **more)


def test_a_path_in_place_of_an_upload_reads_and_deletes_nothing(address, files, engine, tmp_path):
    five = (files / "five.npy").read_bytes()
    private = tmp_path / "private" / "cell.npy"
    private.parent.mkdir()
    private.write_bytes(five)
    uploaded = httpx.post(f"{address}gradio_api/upload", files=dict(files=("mine.npy", five))).json()[0]
    assert "taken as it is" in answer_to_upload(address, file_data(uploaded))      # so it would be read
    assert files_left() == []
    uploads, static = upload_folder(), static_folder()
    for file in (file_data(private), file_data(private, is_stream=True), dict(path=str(private)),
                 file_data(uploads / ".." / ".." / "private" / "cell.npy"), file_data(private, url=private.as_uri()),
                 file_data(static / "ketcher.html"), file_data(uploads / "none" / "none.npy"), str(private),
                 [str(private)], file_data(tmp_path)):
        answer = answer_to_upload(address, file)
        assert "picture" not in answer, answer[:500]
    for path in (private, static / "plotly.min.js", uploads / ".." / "none.npy", tmp_path):      # if Gradio let it pass
        existed = path.exists()
        _, text, *_ = import_image(engine, ImageSession(), str(path), True)
        assert text == "⚠️ Only a file that was uploaded here can be read." and path.exists() == existed
    assert private.read_bytes() == five and (static / "ketcher.html").is_file()


# Series

def test_a_series_of_a_molecule_stays_within_its_doses(engine, monkeypatch):
    monkeypatch.setattr(type(engine.vocab), "dose_range", lambda *_: (1 / 3, 29.999))
    doses = doses_of(engine, "molecule", "", 1., True)
    assert len(doses) == 5 and doses[0] == 1 / 3 and doses[-1] == 29.999 and doses == sorted(doses)


def test_a_figure_says_which_treatment_of_a_series_it_shows(engine):
    answer = counterfactual(engine, sample_controls(engine, range(2))[0], "sweller", [1., 10.], steps=1)
    shown = [json.loads(treatment_effects(engine, answer, i))["provenance"]["shown"] for i in (0, 1)]
    assert shown == ["sweller 1 µM", "sweller 10 µM"]


# Stop, leaving, and fields

def calls_end(page, engine, within):
    "Wait until half a second passes without a network call; the last one comes within so many seconds."
    end, rounds = time.monotonic() + within, None
    while rounds != engine.scheduler.rounds:
        assert time.monotonic() < end + .5, "the network is still called"
        rounds = engine.scheduler.rounds
        page.wait_for_timeout(.5 * seconds)


def test_stop_and_leaving_end_the_network_calls(tab, engine):
    set_number(tab, "cells", 1)
    treat(tab)
    engine.model.net.pause = .02
    set_number(tab, "steps", 200)
    start(tab)
    tab.click("#cf-stop")
    calls_end(tab, engine, within=2)
    assert tab.inner_text("#cf-viewer .provenance") == ""
    tab.click("#cf-export-png")
    wait_for_text(tab, status, "There is nothing to download yet.")      # what is shown is not done, and the reverse
    tab.wait_for_timeout(300)
    start(tab)
    tab.goto("about:blank")
    calls_end(tab, engine, within=3)
    tab.errors.clear()      # the page reports that its connections were cut


def test_treating_again_at_once_treats_the_new_cells(tab, engine):
    engine.model.net.pause, engine.model.net.calls = .1, 0
    set_number(tab, "steps", 100)      # 399 network calls
    start(tab)
    set_number(tab, "cells", 3), set_number(tab, "steps", 3)
    engine.model.net.pause = .02
    assert treat(tab).startswith("3 cells, experiment ")
    assert "in 3 steps each way" in tab.inner_text("#cf-viewer .provenance")
    assert engine.model.net.calls < 300 and tab.locator("#cf-viewer .cell").count() == 3


wrong_fields = {      # field -> wrong value, message, right value
    "cells": (0, "Cells must be a whole number from 1 to 64, not '0'.", 2),
    "seed": (-1, "The first seed must be a whole number from 0", 0),
    "steps": (0, "Steps must be a whole number from 1 to 200, not '0'.", 2),
}


def test_what_is_wrong_with_a_field_is_shown_at_it(tab, engine):
    def refused(selector, text):
        rounds = engine.scheduler.rounds
        tab.click("#cf-go")
        wait_for_text(tab, selector, text)
        tab.wait_for_timeout(300)
        assert engine.scheduler.rounds == rounds and "Traceback" not in tab.inner_text("body")
        tab.errors[:] = [e for e in tab.errors if "422" not in e]      # the browser's own note of the refusal
    for field, (wrong, text, right) in wrong_fields.items():
        set_number(tab, field, wrong)
        refused(f"#cf-{field}", text)
        set_number(tab, field, right)
    set_dose(tab, "1e6")
    refused("#cf-dose", "0.01 to 10 µM")
    set_dose(tab, "0.3")
    take_cells_from(tab, "Your image")
    refused(status, "Import an image first, or take generated controls.")
    take_cells_from(tab, "Generated controls")
    treat(tab)
    assert tab.locator("#cf-viewer .pair figcaption").last.inner_text() == "stabiliser, 0.3 µM"
    assert tab.inner_text(status) == ""


# Exports

def downloaded(page, prefix, format):
    with page.expect_download() as download: page.click(f"#{prefix}export-{format}")
    return download.value.suggested_filename, Path(download.value.path())


def exported(page, prefix, name, sets, cells, tmp_path):
    "The provenance that all exported files agree on, after a look inside."
    formats = "ome-tiff", "png", "npz", "csv"
    names, paths = zip(*(downloaded(page, prefix, format) for format in formats))
    assert names == (f"{name}.ome-tiff.zip", f"{name}.png", f"{name}.npz", f"{name}.csv.zip")
    tiffs, picture, arrays, tables = paths
    with zipfile.ZipFile(tiffs) as archive: archive.extractall(tmp_path / prefix)
    written = sorted((tmp_path / prefix).iterdir())
    images = [read_micrograph(path) for path in written[:sets]]
    assert len(written) > sets
    assert all(m.pixels.shape == (cells, 3, 64, 64) and m.names == ["DNA", "Actin", "Tubulin"] for m in images)
    with np.load(arrays) as npz:
        assert all((images[i].pixels == npz[key]).all() for i, key in enumerate(list(npz)[:sets]))
    with zipfile.ZipFile(tables) as archive:
        assert set(archive.namelist()) == {"profiles.csv", "statistics.csv", "pixels.csv", "provenance.json"}
        assert len(archive.read("profiles.csv").splitlines()) == 1 + 2 * cells
        records = [*map(read_provenance, [written[0], picture, arrays]), json.loads(archive.read("provenance.json"))]
    assert all(record == records[0] for record in records)
    return records[0]


def test_exports_hold_the_provenance_that_the_page_shows(tab, chromium, address, tmp_path):
    set_number(tab, "cells", 3), set_number(tab, "seed", 5)
    line = treat(tab)
    record = exported(tab, "cf-", "counterfactual", 3, 3, tmp_path)
    assert record["source"]["seeds"] == [5, 6, 7]
    assert record["treatments"] == [dict(perturbation="stabiliser", dose_um=.1, molecule=None)]
    parts = ("{cells} cells, experiment {experiment}. {solver} in {steps} steps each way, {nfe} network",
             "Weights {model} {weights_sha256:.12}.")
    for part in parts: assert part.format(**record) in line
    assert files_left() == []
    with chromium.new_context() as context:      # a visitor exports nobody else's cells
        other = context.new_page()
        open_tab(other, address)
        other.click("#cf-export-png")
        wait_for_text(other, status, "There is nothing to download yet.")


def test_explore_shows_its_effect_and_exports_it(page, address, tmp_path):
    page.goto(address)
    page.wait_for_selector("#dose .ticks button")
    page.click("#export-png")
    wait_for_text(page, "#status", "There is nothing to download yet.")
    page.locator("button:visible", has_text="Sampling").click()
    for cells, enabled in ((6, True), (4, False)):
        for field, value in (("steps", 2), ("cells", cells)): typed(page, f"#{field} input", value)
        page.click("#generate")
        wait_for_text(page, "#viewer .provenance", f"{cells} cells: stabiliser, 1 µM")
        wait_for_effects(page, prefix="")
        wait_for_text(page, "#effects .note", f"{cells} cells")
        title = "Effect of stabiliser, 1 µM: treated minus DMSO from the same noise"
        assert page.inner_text("#effects h3") == title
        assert page.locator("#effects .switch input").is_enabled() == enabled
    assert "at least 6 cells" in page.inner_text("#effects .switch .why")
    record, line = exported(page, "", "cells", 2, 4, tmp_path), page.inner_text("#viewer .provenance")
    assert record["seeds"] == [0, 1, 2, 3]
    assert (record["perturbation"], record["dose_um"]) == ("stabiliser", 1.)
    assert "{solver} in {steps} steps, {nfe} network evaluations a cell".format(**record) in line
    assert record["weights_sha256"][:12] in line and files_left() == []


# Contrast and keyboard

contrast_ratios = """all => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const solid = colour => (numbers(colour)[3] ?? 1) > .5;
    const linear = v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
    const luminance = colour => {
        const [r, g, b] = numbers(colour).map(linear);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const background = e => {
        for (; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if (solid(colour)) return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    return all.filter(e => e.innerText?.trim() && e.offsetParent).map(e => {
        const pair = [luminance(getComputedStyle(e).color), luminance(background(e))];
        const [high, low] = pair.sort((x, y) => y - x);
        return [(high + .05) / (low + .05), e.innerText];
    });
}"""


def test_all_words_have_contrast_and_all_nuclei_are_reached_by_keyboard(tab, files):
    upload(tab, files / "field.ome.tif")
    ring = tab.get_by_role("button", name="Nucleus 3", exact=True)
    ring.wait_for()
    ring.focus()
    tab.keyboard.press("Space")
    wait_for_chosen(tab, 23)
    tab.wait_for_timeout(500)
    assert ring.get_attribute("aria-pressed") == "false"
    assert ring.evaluate("e => e === document.activeElement")      # the answer does not take the focus away
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.ariaLabel") == "Nucleus 4"
    for dark in (True, False):
        tab.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        tab.wait_for_timeout(400)      # colours fade
        texts = tab.locator("#cf-field :is(figcaption, th, td, li, button, output)").evaluate_all(contrast_ratios)
        assert len(texts) > 20 and all(ratio > 3 for ratio, _ in texts), (dark, [t for t in texts if t[0] <= 3])
