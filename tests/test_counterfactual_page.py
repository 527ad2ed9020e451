"The Counterfactual tab in a real browser, with a small untrained model: drawn cells, cells somebody brings, bad files, and what is left on disk."
import io
import json
import struct
import tempfile
import uuid
import zipfile
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from conftest import typed
from controllable_net import ControllableNet

from mfm_app.counterfactual import counterfactual
from mfm_app.engine import Engine
from mfm_app.finetune import random_model
from mfm_app.images import read_micrograph, read_provenance
from mfm_app.preprocess import rescale
from mfm_app.simulator import synthetic_cells
from mfm_app.preprocess import sample_controls
from mfm_app.ui_counterfactual import ImageSession, doses_of, effects_shown, receive
from mfm_app.ui_parts import served, uploads

seconds = 1000     # Playwright counts in milliseconds
door, status = (f"#cf-{name} [data-testid=markdown]" for name in ("door", "status"))      # without the marks of progress around them


@pytest.fixture(scope="module")
def engine(own_temporary):
    model = random_model()
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(autouse=True)
def awake(engine): engine.model.net.pause = 0


def opened(page, address):
    page.goto(address)
    page.get_by_role("tab", name="Counterfactual").click()
    page.wait_for_selector("#cf-dose .ticks button:visible")
    page.locator("button:visible", has_text="Sampling").click()
    number(page, "steps", 2)
    return page


@pytest.fixture
def tab(page, address): return opened(page, address)


def number(page, field, value): typed(page, f"#cf-{field} input", value)


def wait_for_text(page, selector, text):
    page.wait_for_function("([at, said]) => document.querySelector(at).innerText.includes(said)", arg=[selector, text], timeout=20 * seconds)
    return page.inner_text(selector)


def cells_from(page, side):
    page.get_by_role("tab", name=side).click()
    page.locator("#cf-field").wait_for(state="visible" if side == "Your image" else "hidden")
    page.wait_for_timeout(200)


def treat(page):
    "Treat cells, and wait for the end and for the effect."
    page.evaluate("document.querySelector('#cf-viewer .provenance').textContent = ''")
    page.click("#cf-go")
    page.wait_for_function("document.querySelector('#cf-viewer .provenance').textContent", timeout=60 * seconds)
    page.wait_for_function("/step (\\d+) of \\1$/.test(document.querySelector('#cf-viewer .where').textContent)")
    page.wait_for_function("document.querySelector('#cf-effects .maps .main-svg') && document.querySelector('#cf-effects .stale').hidden", timeout=20 * seconds)
    return page.inner_text("#cf-viewer .provenance")


def brightest(page, selector):
    "The brightest value of each canvas."
    return page.locator(selector).evaluate_all("all => all.map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.reduce((m, v, i) => i % 4 < 3 ? Math.max(m, v) : m, 0))")


def picture(page, selector): return page.locator(selector).last.evaluate("c => c.toDataURL ? c.toDataURL() : c.src")


def left():
    "What lies in the temporary folder with something in it."
    return [path for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file() and path.stat().st_size]


# Drawn controls

def test_drawn_cells_walk_there_and_back_and_show_what_the_treatment_did(tab):
    assert tab.locator("#cf-viewer .hint").is_visible() and tab.locator("#cf-field").is_hidden()
    number(tab, "cells", 6)
    said = treat(tab)
    assert said.startswith("6 cells, experiment Week1. midpoint in 2 steps each way, 7 network evaluations an image") and "Weights drawn 000000000000" in said
    assert tab.locator("#cf-viewer .pair figcaption").all_text_contents() == ["Original", "Reconstruction (still DMSO)", "stabiliser, 0.1 µM"]
    assert tab.locator("#cf-viewer .cell").count() == 6 and tab.locator("#cf-viewer .cell").first.inner_text() == "seed 0"
    painted = brightest(tab, "#cf-viewer canvas")
    assert len(painted) == 3 + 2 + 2 * 6 and min(painted) > 0
    assert " dB. Originals and regenerated cells differ by DNA" in wait_for_text(tab, "#cf-trip", "Round trip")
    assert wait_for_text(tab, "#cf-effects h3", "Effect") == "Effect of stabiliser, 0.1 µM: counterfactual minus regenerated"
    assert tab.locator("#cf-effects .maps .heatmaplayer").count() >= 3 and tab.locator("#cf-effects .profile .bars path").count() > 5
    assert tab.locator("#cf-effects .switch input").is_enabled()


def test_the_way_is_scrubbed_and_before_slides_over_after(tab):
    number(tab, "cells", 1)
    treat(tab)
    where, scrub, wipe = tab.locator("#cf-viewer .where"), tab.locator("#cf-viewer .scrub"), tab.get_by_role("slider", name="How much of the picture shows the cell before").locator("visible=true")
    assert scrub.get_attribute("max") == "4" and where.inner_text() == "sampling, t = 1.00, step 4 of 4"
    end = picture(tab, "#cf-viewer .pair canvas")
    tab.get_by_text("Noisy state").locator("visible=true").click()
    scrub.press("Home")
    assert where.inner_text() == "inverting, t = 1.00, step 0 of 4"
    scrub.press("ArrowRight"), scrub.press("ArrowRight")
    assert where.inner_text().startswith("sampling, t = 0") and picture(tab, "#cf-viewer .pair canvas") != end
    clip = lambda: tab.locator("#cf-viewer .stack canvas").last.evaluate("c => getComputedStyle(c).clipPath")
    assert clip() == "inset(0px 0px 0px 50%)"
    wipe.press("ArrowRight")
    assert clip() == "inset(0px 0px 0px 51%)" and wipe.get_attribute("aria-valuetext") == "51 % of it before"
    box = wipe.bounding_box()
    tab.mouse.click(box["x"] + .2 * box["width"], box["y"] + .5 * box["height"])
    assert 15 <= int(wipe.input_value()) <= 25 and clip() == f"inset(0px 0px 0px {wipe.input_value()}%)"


def test_a_dose_of_a_series_is_chosen_and_everything_follows(tab, engine):
    number(tab, "cells", 2)
    tab.get_by_label("Every dose the model saw").check()
    treat(tab)
    doses = tab.locator("#cf-viewer .alternative")
    assert doses.all_inner_texts() == ["stabiliser, 0.1 µM", "stabiliser, 1 µM"] and min(brightest(tab, "#cf-viewer .alternative canvas")) > 0
    before = picture(tab, "#cf-viewer .pair canvas")
    tab.get_by_role("button", name="stabiliser, 1 µM").press("Enter")
    assert doses.last.get_attribute("aria-pressed") == "true" and doses.first.get_attribute("aria-pressed") == "false"
    assert tab.locator("#cf-viewer .pair figcaption").last.inner_text() == "stabiliser, 1 µM"
    assert before != picture(tab, "#cf-viewer .pair canvas") == picture(tab, "#cf-viewer .alternative canvas") == picture(tab, "#cf-viewer .stack canvas")
    wait_for_text(tab, "#cf-effects h3", "Effect of stabiliser, 1 µM")
    doses.first.click(), doses.last.click(), doses.first.click()      # the last counts, however quickly
    wait_for_text(tab, "#cf-effects h3", "Effect of stabiliser, 0.1 µM")
    engine.model.net.pause = .1
    tab.evaluate("document.querySelector('#cf-viewer .provenance').textContent = ''")
    tab.click("#cf-go")
    tab.wait_for_function("/step [1-3]/.test(document.querySelector('#cf-viewer .where').textContent)")
    doses.last.click()      # before its effect is known
    wait_for_text(tab, "#cf-effects .stale", "of the cells before")
    wait_for_text(tab, "#cf-viewer .provenance", "2 cells")
    wait_for_text(tab, "#cf-effects h3", "Effect of stabiliser, 1 µM")


# Cells somebody brings

@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A field of 24 cells in 16 bits, its channels in another order; a part of it with names that say nothing; one cell as PNG; five cells as NPY."
    folder, cells = tmp_path_factory.mktemp("files"), synthetic_cells(24).where(perturbation="DMSO").images
    field = rescale(cells[:24].reshape(4, 6, 3, 64, 64).transpose(2, 0, 3, 1, 4).reshape(1, 3, 256, 384), 1.5)[0]
    field = (field * 6 + 150)[[2, 0, 1]].astype(np.uint16)
    for name, said, pixels in (("field", ["beta-tubulin", "Hoechst 33342", "phalloidin"], field), ("odd", ["left", "middle", "right"], field[:, :192, :192])):
        tifffile.imwrite(folder / f"{name}.ome.tif", pixels, photometric="minisblack", metadata=dict(axes="CYX", Channel=dict(Name=said), PhysicalSizeX=.2))
    Image.fromarray(cells[0][::-1].transpose(1, 2, 0).copy()).save(folder / "cell.png")      # red is tubulin, blue DNA
    np.save(folder / "five.npy", cells[:5])
    return folder


def prepare_cells(page, path):
    if page.locator("#cf-field").is_hidden(): cells_from(page, "Your image")
    if page.locator("#cf-file button[aria-label=Clear]").count(): page.click("#cf-file button[aria-label=Clear]")
    page.set_input_files("#cf-file input", path)


def choose(page, channel, option):
    page.click(f"#cf-channel-{channel} input")
    page.locator(f"#cf-channel-{channel}").get_by_role("option", name=option).click()


def channels(page): return [page.input_value(f"#cf-channel-{i} input") for i in range(3)]


def taken(page, n, of=24):
    page.wait_for_function("said => document.querySelector('#cf-field output')?.textContent === said", arg=f"{n} of {of} nuclei taken")
    page.wait_for_timeout(300)


def changes(page, selector, before):
    page.wait_for_function("([at, before]) => document.querySelector(at).src !== before", arg=[selector, before], timeout=20 * seconds)
    return picture(page, selector)


def test_a_field_is_read_its_channels_guessed_and_two_of_its_cells_treated(tab, files):
    prepare_cells(tab, files / "field.ome.tif")
    rings = tab.locator("#cf-field .nuclei button")
    rings.nth(23).wait_for()
    wait_for_text(tab, "#cf-field .whole figcaption", "field.ome.tif: 24 nuclei found")
    assert channels(tab) == ["2: Hoechst 33342", "3: phalloidin", "1: beta-tubulin"] and tab.inner_text(door) == "" and left() == []
    taken(tab, 24)
    tab.get_by_role("button", name="Take none").click()
    taken(tab, 0)
    tab.click("#cf-go")
    wait_for_text(tab, status, "No nucleus is taken; choose at least one in your image.")
    rings.evaluate_all("rings => [3, 7].forEach(i => rings[i].click())")      # the second before the first is answered
    assert treat(tab).startswith("2 cells, ") and tab.locator("#cf-viewer .cell").all_inner_texts() == ["cell 1", "cell 2"]
    assert rings.nth(3).get_attribute("aria-pressed") == rings.nth(7).get_attribute("aria-pressed") == "true"
    cells_from(tab, "Drawn controls"), cells_from(tab, "Your image")
    rings.first.wait_for()      # it is still there
    taken(tab, 2)
    tab.get_by_role("button", name="Take all").click()
    taken(tab, 24)
    with tab.expect_download() as download: tab.click("#cf-take-npz")
    told = read_provenance(download.value.path())      # of the two, which are what is shown
    assert told["source"]["chosen"] == [3, 7] and told["source"]["name"] == "field.ome.tif" and told["source"]["channels"] == [1, 2, 0]


def test_light_size_and_channels_can_be_changed(tab, files):
    prepare_cells(tab, files / "field.ome.tif")
    taken(tab, 24)
    tab.get_by_role("button", name="Take none").click()
    tab.locator("#cf-field .nuclei button").first.click()
    taken(tab, 1)
    tab.wait_for_function("document.querySelector('#cf-field .before').naturalWidth === 64")      # the server has heard of it
    before, after = picture(tab, "#cf-field .before"), picture(tab, "#cf-field .after")
    assert before != after
    tab.get_by_label("Match light").uncheck()
    assert changes(tab, "#cf-field .after", after) == picture(tab, "#cf-field .before") == before
    wait_for_text(tab, "#cf-field .after-title", "light left alone")
    tab.focus("#cf-nucleus input"), tab.keyboard.press("Tab")      # passing through changes nothing
    tab.wait_for_timeout(500)
    assert tab.locator("#cf-field .before").evaluate("sheet => [sheet.naturalWidth, sheet.naturalHeight]") == [64, 64]
    number(tab, "nucleus", 40)
    wait_for_text(tab, "#cf-field .notes", "A nucleus is 40 px wide in the file")
    taken(tab, 1)
    assert changes(tab, "#cf-field .before", before)
    number(tab, "nucleus", 0)
    assert wait_for_text(tab, door, "A nucleus must be 3 to 218 pixels wide in the file") and "Traceback" not in tab.inner_text("body")
    whole = picture(tab, "#cf-field .whole img")
    choose(tab, 1, "1: beta-tubulin")
    changes(tab, "#cf-field .whole img", whole)
    assert channels(tab) == ["2: Hoechst 33342", "1: beta-tubulin", "1: beta-tubulin"]
    choose(tab, 0, "3: phalloidin"), choose(tab, 1, "2: Hoechst 33342")      # the second before the first is answered
    tab.wait_for_timeout(1.5 * seconds)
    assert channels(tab) == ["3: phalloidin", "2: Hoechst 33342", "1: beta-tubulin"]


def test_channels_that_nobody_can_guess_are_told_and_one_cell_or_several_are_treated(tab, files):
    prepare_cells(tab, files / "odd.ome.tif")
    wait_for_text(tab, door, "The file has 3 channels and the model needs DNA, Actin, Tubulin; say which is DNA and which Actin and which Tubulin.")
    assert tab.locator("#cf-field .hint").is_visible()
    for i, option in enumerate(["2: middle", "3: right", "1: left"]): choose(tab, i, option)
    wait_for_text(tab, "#cf-field .whole figcaption", "odd.ome.tif: ")
    assert channels(tab) == ["2: middle", "3: right", "1: left"] and tab.inner_text(door) == ""
    prepare_cells(tab, files / "cell.png")
    wait_for_text(tab, "#cf-field .whole figcaption", "cell.png")
    assert channels(tab) == ["3: blue", "2: green", "1: red"] and tab.inner_text(door) == ""
    wait_for_text(tab, "#cf-field .notes", "The image has the size of the model's own cells and is taken as it is.")
    tab.get_by_label("Match light").uncheck()
    wait_for_text(tab, "#cf-field .after-title", "light left alone")
    wait_for_text(tab, "#cf-field .notes", "taken as it is")
    assert treat(tab).startswith("1 cell, ")
    assert tab.locator("#cf-effects .switch input").is_disabled()
    prepare_cells(tab, files / "five.npy")
    wait_for_text(tab, "#cf-field .whole figcaption", "five.npy")
    assert tab.locator("#cf-field .nuclei button").count() == 0 and tab.locator("#cf-field .choose").is_hidden()
    assert treat(tab).startswith("5 cells, ")
    tab.click("#cf-file button[aria-label=Clear]")
    wait_for_text(tab, door, "One cell, several, or a field with many")
    assert tab.locator("#cf-field .hint").is_visible() and left() == []


# Bad files

def png(depth, colour, width, height, rows=b""):
    "A PNG of these fields and pixel rows."
    part = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def saved(write, *args, **kwargs):
    write(out := io.BytesIO(), *args, **kwargs)
    return out.getvalue()


rng = np.random.default_rng(0)
grain = rng.integers(0, 255, (3, 64, 64), np.uint8)
as_png = lambda image: saved(lambda out: Image.fromarray(image).save(out, "PNG"))
bad_files = {
    "text.png": (b"This is a letter.", "is none of the kinds that are read: PNG, JPEG, TIFF, NPY and NPZ."),
    "short.png": (as_png(grain.transpose(1, 2, 0).copy())[:3000], "begins as PNG, but is damaged or cut short."),
    "short.tif": (saved(tifffile.imwrite, grain, photometric="minisblack")[:6000], "begins as TIFF, but is damaged or cut short."),
    "bomb.png": (png(8, 0, 60_000, 60_000), "claims 1 x 60,000 x 60,000 pixels; up to 64,000,000 values"),
    "dot.png": (as_png(grain[0, :1, :1].copy()), "is 1 by 1 pixels; 8 along each side are needed."),
    "black.png": (as_png(np.zeros((64, 64, 3), np.uint8)), "is the same everywhere: every pixel is 0."),
    "white.png": (as_png(np.full((64, 64, 3), 255, np.uint8)), "is the same everywhere: every pixel is 255."),
    "nan.npy": (saved(np.save, np.full((3, 64, 64), np.nan, np.float32)), "holds NaN or infinity; every pixel must be a finite number."),
    "stack.ome.tif": (saved(tifffile.imwrite, np.stack([grain] * 5), photometric="minisblack", ome=True, metadata=dict(axes="ZCYX")), "is a z-stack of 5 planes; take one plane or project it first."),
    "palette.png": (saved(lambda out: Image.fromarray(grain[0]).convert("P").save(out, "PNG")), "has a palette: its numbers stand for colours"),
    "deep.png": (png(16, 2, 16, 16, rng.bytes(16 * (1 + 16 * 6))), "is a PNG of 16-bit colours"),
    "pickle.npy": (saved(np.save, np.array([dict(a=1)] * 64, dtype=object)), "holds pickled Python objects, which are never opened; save numbers."),
    "two.npy": (saved(np.save, grain[:2]), "The file has 2 channels and the model needs DNA, Actin, Tubulin; say which is DNA"),
    "nothing.png": (b"", "is empty."),
}


def test_a_bad_file_is_refused_in_a_sentence_and_nothing_is_lost(tab, files, tmp_path):
    number(tab, "cells", 2)
    done = treat(tab)
    for name, (content, said) in bad_files.items():
        (tmp_path / name).write_bytes(content)
        prepare_cells(tab, tmp_path / name)
        told = wait_for_text(tab, door, said).strip()
        assert told.startswith("⚠️ ") and len(told.splitlines()) == 1 and len(told) < 350, told
        everything = tab.inner_text("body")
        assert "Traceback" not in everything and tempfile.gettempdir() not in everything and str(tmp_path) not in everything, name
        assert tab.locator("#cf-field .hint").is_visible() and left() == [], name
    assert tab.inner_text("#cf-viewer .provenance") == done      # earlier cells, which can still be taken away
    with tab.expect_download() as download: tab.click("#cf-take-png")
    assert read_provenance(download.value.path())["source"]["kind"] == "drawn"
    tab.click("#cf-go")
    wait_for_text(tab, status, "Bring an image first, or take drawn controls.")
    prepare_cells(tab, files / "field.ome.tif")
    tab.locator("#cf-field .nuclei button").first.wait_for()
    prepare_cells(tab, files / "odd.ome.tif")      # whose channels nobody can guess
    wait_for_text(tab, door, "The file has 3 channels")
    tab.locator("#cf-field .hint").wait_for()      # and not the image before it
    cells_from(tab, "Drawn controls")
    assert treat(tab).startswith("2 cells, ")
    (tmp_path / "program.exe").write_bytes(b"MZ")      # a kind that is not listed is not even sent
    prepare_cells(tab, tmp_path / "program.exe")
    tab.locator(".toast-body.error").wait_for()
    assert "png" in tab.inner_text(".toast-body.error") and left() == []


# What is left on disk

def posted(address, data):
    "What the queue answers to an upload event with this file in it; no browser would send it."
    config = httpx.get(f"{address}config").json()
    file = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "cf-file")
    call = next(d["id"] for d in config["dependencies"] if [file, "upload"] in d["targets"])
    visitor = uuid.uuid4().hex
    joined = httpx.post(f"{address}gradio_api/queue/join", json=dict(fn_index=call, session_hash=visitor, data=[None, data, True]))
    if joined.status_code != 200: return joined.text
    with httpx.stream("GET", f"{address}gradio_api/queue/data", params=dict(session_hash=visitor), timeout=30) as answers:
        for line in answers.iter_lines():
            if "process_completed" in line: return line


def test_a_path_in_place_of_an_upload_reads_and_deletes_nothing(address, files, engine, tmp_path):
    victim = tmp_path / "private" / "cell.npy"
    victim.parent.mkdir()
    victim.write_bytes((files / "five.npy").read_bytes())
    as_file = lambda path, **more: dict(path=str(path), meta=dict(_type="gradio.FileData"), **more)
    upload = lambda name: httpx.post(f"{address}gradio_api/upload", files=dict(files=(name, (files / "five.npy").read_bytes()))).json()[0]
    assert "taken as it is" in posted(address, as_file(upload("mine.npy"))) and left() == []      # so it would be read
    for sent in (as_file(victim), as_file(victim, is_stream=True), dict(path=str(victim)), as_file(uploads() / ".." / ".." / "private" / "cell.npy"), as_file(victim, url=victim.as_uri()),
                 as_file(served() / "ketcher.html"), as_file(uploads() / "none" / "none.npy"), str(victim), [str(victim)], as_file(tmp_path)):
        told = posted(address, sent)
        assert "picture" not in told, told[:500]
    for path in (victim, served() / "plotly.min.js", uploads() / ".." / "none.npy", tmp_path):      # though Gradio let it pass
        existed = path.exists()
        _, said, *_ = receive(engine, ImageSession(), str(path), True)
        assert said == "⚠️ Only a file that was uploaded here can be read." and path.exists() == existed
    assert victim.read_bytes() == (files / "five.npy").read_bytes() and (served() / "ketcher.html").is_file()


def test_a_series_of_a_molecule_stays_within_its_doses(engine, monkeypatch):
    monkeypatch.setattr(type(engine.vocab), "dose_range", lambda *_: (1 / 3, 29.999))
    doses = doses_of(engine, "molecule", "", 1., True)
    assert len(doses) == 5 and doses[0] == 1 / 3 and doses[-1] == 29.999 and doses == sorted(doses)


def test_a_figure_says_which_treatment_of_a_series_it_shows(engine):
    answer = counterfactual(engine, sample_controls(engine, range(2))[0], "sweller", [1., 10.], steps=1)
    assert [json.loads(effects_shown(engine, answer, i))["provenance"]["shown"] for i in (0, 1)] == ["sweller 1 µM", "sweller 10 µM"]


# Stop, leaving, and fields

def walks(page):
    page.evaluate("document.querySelector('#cf-viewer .where').textContent = ''")
    page.click("#cf-go")
    page.wait_for_function("/step [1-9]/.test(document.querySelector('#cf-viewer .where').textContent)", timeout=20 * seconds)


def ends(page, engine, within):
    page.wait_for_timeout(within)
    rounds = engine.walks.rounds
    page.wait_for_timeout(1 * seconds)
    assert engine.walks.rounds == rounds


def test_stop_and_leaving_end_the_network_calls(tab, engine):
    number(tab, "cells", 1)
    treat(tab)
    engine.model.net.pause = .02
    number(tab, "steps", 200)
    walks(tab)
    tab.click("#cf-stop")
    ends(tab, engine, 2 * seconds)
    assert tab.inner_text("#cf-viewer .provenance") == ""
    tab.click("#cf-take-png")
    wait_for_text(tab, status, "There is nothing to download yet.")      # what is shown is not done, and what was done is not shown
    tab.wait_for_timeout(300)
    walks(tab)
    tab.goto("about:blank")
    ends(tab, engine, 3 * seconds)
    tab.errors.clear()      # what the page left behind says of its connections that they were cut


def test_treat_again_at_once_treats_the_new_cells(tab, engine):
    engine.model.net.pause, engine.model.net.calls = 0.3, 0
    number(tab, "steps", 20)
    tab.click("#cf-go")
    tab.wait_for_function("/step [1-9]/.test(document.querySelector('#cf-viewer .where').textContent)")
    number(tab, "cells", 3), number(tab, "steps", 3)
    assert treat(tab).startswith("3 cells, experiment ") and "in 3 steps each way" in tab.inner_text("#cf-viewer .provenance")
    assert engine.model.net.calls < 79 and tab.locator("#cf-viewer .cell").count() == 3


def test_what_is_wrong_with_a_field_is_said_at_it(tab, engine):
    def refused(at, said):
        rounds = engine.walks.rounds
        tab.click("#cf-go")
        wait_for_text(tab, at, said)
        tab.wait_for_timeout(300)
        assert engine.walks.rounds == rounds and "Traceback" not in tab.inner_text("body")
        for e in [e for e in tab.errors if "422" in e]: tab.errors.remove(e)      # the browser's own note of the refusal
    for field, wrong, said, right in (("cells", 0, "Cells must be a whole number from 1 to 64, not '0'.", 2), ("seed", -1, "The first seed must be a whole number from 0", 0), ("steps", 0, "Steps must be a whole number from 1 to 200, not '0'.", 2)):
        number(tab, field, wrong)
        refused(f"#cf-{field}", said)
        number(tab, field, right)
    tab.fill("#cf-dose .number", "1e6"), tab.press("#cf-dose .number", "Tab")
    refused("#cf-dose", "0.01 to 10 µM")
    tab.fill("#cf-dose .number", "0.3"), tab.press("#cf-dose .number", "Tab")
    cells_from(tab, "Your image")
    refused(status, "Bring an image first, or take drawn controls.")
    cells_from(tab, "Drawn controls")
    treat(tab)
    assert tab.locator("#cf-viewer .pair figcaption").last.inner_text() == "stabiliser, 0.3 µM" and tab.inner_text(status) == ""


# Taking away

def fetched(page, prefix, kind):
    with page.expect_download() as download: page.click(f"#{prefix}take-{kind}")
    return download.value.suggested_filename, Path(download.value.path())


def taken_away(page, prefix, name, sets, cells, tmp_path):
    "The provenance that each kind of file tells, after a look inside."
    names = {}
    names["ome-tiff"], tiffs = fetched(page, prefix, "ome-tiff")
    with zipfile.ZipFile(tiffs) as archive: archive.extractall(tmp_path / prefix)
    written = sorted((tmp_path / prefix).iterdir())
    held = [read_micrograph(path) for path in written[:sets]]
    assert len(written) > sets and all(m.pixels.shape == (cells, 3, 64, 64) and m.names == ["DNA", "Actin", "Tubulin"] for m in held)
    names["png"], picture = fetched(page, prefix, "png")
    names["npz"], arrays = fetched(page, prefix, "npz")
    with np.load(arrays) as found: assert all((held[i].pixels == found[key]).all() for i, key in enumerate(list(found)[:sets]))
    names["csv"], tables = fetched(page, prefix, "csv")
    with zipfile.ZipFile(tables) as archive:
        assert set(archive.namelist()) == {"profiles.csv", "statistics.csv", "pixels.csv", "provenance.json"} and len(archive.read("profiles.csv").splitlines()) == 1 + 2 * cells
        told = [*map(read_provenance, [written[0], picture, arrays]), json.loads(archive.read("provenance.json"))]
    assert names == {"ome-tiff": f"{name}.ome-tiff.zip", "png": f"{name}.png", "npz": f"{name}.npz", "csv": f"{name}.csv.zip"}
    assert all(t == told[0] for t in told)
    return told[0]


def test_what_is_taken_away_tells_what_the_page_says(tab, chromium, address, tmp_path):
    tab.click("#cf-take-csv")
    wait_for_text(tab, status, "There is nothing to download yet.")
    number(tab, "cells", 3), number(tab, "seed", 5)
    said = treat(tab)
    told = taken_away(tab, "cf-", "counterfactual", 3, 3, tmp_path)
    assert told["source"]["seeds"] == [5, 6, 7] and told["treatments"] == [dict(perturbation="stabiliser", dose_um=.1, molecule=None)]
    assert f"{told['cells']} cells, experiment {told['experiment']}. {told['solver']} in {told['steps']} steps each way, {told['nfe']} network" in said
    assert f"Weights {told['model']} {told['weights_sha256'][:12]}." in said and left() == []
    with chromium.new_context() as context:      # nobody else's
        other = opened(context.new_page(), address)
        other.click("#cf-take-png")
        wait_for_text(other, status, "There is nothing to download yet.")


def test_explore_shows_its_effect_and_hands_it_out(page, address, tmp_path):
    page.goto(address)
    page.wait_for_selector("#dose .ticks button")
    page.click("#take-png")
    wait_for_text(page, "#status", "There is nothing to download yet.")
    page.locator("button:visible", has_text="Sampling").click()
    for cells, enabled in ((6, True), (4, False)):
        for field, value in (("steps", 2), ("cells", cells)): typed(page, f"#{field} input", value)
        page.click("#generate")
        wait_for_text(page, "#viewer .provenance", f"{cells} cells: stabiliser, 0.1 µM")
        page.wait_for_function("document.querySelector('#effects .maps .main-svg') && document.querySelector('#effects .stale').hidden", timeout=20 * seconds)
        wait_for_text(page, "#effects .note", f"{cells} cells")
        assert page.inner_text("#effects h3") == "Effect of stabiliser, 0.1 µM: treated minus DMSO from the same noise"
        assert page.locator("#effects .switch input").is_enabled() == enabled
    assert "at least 6 cells" in page.inner_text("#effects .switch .why")
    told, said = taken_away(page, "", "cells", 2, 4, tmp_path), page.inner_text("#viewer .provenance")
    assert told["seeds"] == [0, 1, 2, 3] and (told["perturbation"], told["dose_um"]) == ("stabiliser", .1)
    assert f"{told['solver']} in {told['steps']} steps, {told['nfe']} network evaluations a cell" in said and told["weights_sha256"][:12] in said and left() == []


# For everybody's eyes and hands

contrast = """all => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number), solid = colour => (numbers(colour)[3] ?? 1) > .5;
    const light = colour => { const [r, g, b] = numbers(colour).map(v => (v / 255 <= .04045) ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
    const ground = e => { for (; e; e = e.parentElement) { const colour = getComputedStyle(e).backgroundColor; if (solid(colour)) return colour; } return 'rgb(255, 255, 255)'; };
    return all.filter(e => e.innerText?.trim() && e.offsetParent).map(e => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x); return [(a + .05) / (b + .05), e.innerText]; });
}"""


def test_all_words_can_be_read_and_all_rings_reached_by_keyboard(page, address, files):
    tab = opened(page, f"{address}?__theme=dark")
    prepare_cells(tab, files / "field.ome.tif")
    ring = tab.get_by_role("button", name="Nucleus 3", exact=True)
    ring.wait_for()
    ring.focus()
    tab.keyboard.press("Space")
    taken(tab, 23)
    tab.wait_for_timeout(500)
    assert ring.get_attribute("aria-pressed") == "false" and ring.evaluate("e => e === document.activeElement")      # the answer does not take the focus away
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.ariaLabel") == "Nucleus 4"
    for dark in (True, False):
        tab.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        tab.wait_for_timeout(400)      # colours fade
        seen = tab.locator("#cf-field :is(figcaption, th, td, li, button, output)").evaluate_all(contrast)
        assert len(seen) > 20 and all(ratio > 3 for ratio, _ in seen), (dark, [s for s in seen if s[0] <= 3])
