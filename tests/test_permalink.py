"A view as an address and as Python: nothing is lost on the way, hostile addresses are refused in a sentence, and the code draws the very picture."
import io
import json
import os
from contextlib import chdir
from urllib.parse import parse_qsl, quote, urlsplit
from xml.etree import ElementTree

import gradio as gr
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfm_app import ui_counterfactual, ui_explore, ui_parts, ui_screen
from mfm_app.permalink import View, checked, longest, look_of, python_of_cells, python_of_counterfactual, python_of_screen, read_query, tabs, write_query
from mfm_app.core import InputError
from mfm_app.counterfactual import Treatment, CounterfactualRequest, resolve_counterfactual, counterfactual
from mfm_app.engine import Engine, Request, check
from mfm_app.finetune import random_model
from mfm_app.hub import load_model, save_model
from mfm_app.screen import Folder, Settings, check_settings, screen_into
from mfm_app.simulator import synthetic_cells
from mfm_app.preprocess import ImportOptions, prepare_cells, sample_controls
from mfm_app.images import read_micrograph, read_provenance
from mfm_app.viz import composite

seconds = 1000     # Playwright counts in milliseconds


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with a small model folder in it, where snippets are run."
    home = tmp_path_factory.mktemp("home")
    model = random_model()
    save_model(home / "small", model.net, model.config, torch.float32)
    return home


@pytest.fixture(scope="module")
def engine(home): return Engine(load_model(home / "small"), "cpu", torch.float32)


def run(home, python):
    "What the names of a snippet stand for once it has run."
    names = {}
    with chdir(home): exec(compile(python, "snippet", "exec"), names)
    return names


# An address

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
values = {str: texts, int: st.integers(0, 2**31 - 1), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.just(True)}
views = st.sampled_from(list(tabs)).flatmap(lambda tab: st.builds(View, st.just(tab), st.fixed_dictionaries({}, optional={k: values[kind] for k, kind in tabs[tab].items()})))


@given(views)
def test_a_view_comes_back_from_its_address(view):
    query = write_query(view)
    back = read_query(dict(parse_qsl(query[1:], keep_blank_values=True)))
    assert back == view and query.startswith("?")


def test_what_an_address_leaves_open_is_filled_in_and_then_it_is_the_same_for_ever(engine):
    full = checked(engine, read_query(dict(perturbation="SWELLER")))
    assert full.said["perturbation"] == "sweller" and full.said["dose"] and full.said["experiment"] and full.said["cells"] == 16
    assert checked(engine, read_query(dict(parse_qsl(write_query(full)[1:])))) == full


def test_names_that_are_not_ours_are_left_alone(engine):
    assert read_query(dict(utm_source="letter", __theme="dark", fbclid="x" * 5000)) is None


def test_a_list_too_long_for_an_address_is_left_out():
    assert "list" not in write_query(View("screen", dict(list="C" * (longest + 1), dose=1.)))


odd = st.sampled_from(["NaN", "inf", "-1", "1e400", "0", "9" * 400, "../../etc/passwd", "C:\\secret", "<script>alert(1)</script>", "'; drop table", "\0", "0x10", "１６", " 4 ", "1_0", "null", "[]", "💊" * 900])
hostile = st.dictionaries(st.sampled_from(["tab", *sorted({name for fields in tabs.values() for name in fields})]), odd | st.text(max_size=30) | st.sampled_from(["sweller", "CCO", "explore", "counterfactual", "screen", "euler", "1", "3"]), max_size=6)


@given(hostile)
def test_a_hostile_address_is_a_view_that_can_be_drawn_or_one_sentence(engine, ask, params):
    def view_of(params):
        view = read_query(params)
        return view and checked(engine, view)
    view = ask(view_of, params)
    if isinstance(view, InputError) or view is None: return
    assert view.tab in tabs and set(view.said) <= set(tabs[view.tab])
    if view.said.get("molecule") or view.said.get("perturbation"): assert 1 <= view.said["cells"] <= 64 and 1 <= view.said["steps"] <= 1000 and np.isfinite(view.said["guidance"])


@pytest.mark.parametrize("tab, state, ask, widths", [("explore", ui_parts.Session, ui_explore.reopen, (13, 5)), ("counterfactual", ui_counterfactual.ImageSession, ui_counterfactual.reopen, (16, 5)), ("screen", ui_screen.ScreenSession, ui_screen.reopen, (4, 6))])
@given(params=hostile)
def test_a_tab_says_what_is_wrong_with_an_address_and_changes_nothing(engine, tab, state, ask, widths, params):
    shown = next(ui_parts.reopened(engine, tab, params, widths, lambda view: ask(engine, state(), view)))
    fields, status = shown[:widths[0]], shown[widths[0] + 1]
    if status == gr.skip(): return      # nothing asked, or the fields were filled in: what follows is drawing
    assert status.startswith("⚠️ ") and "Traceback" not in status and len(status) < 500
    assert all(v == gr.skip() for v in fields)


# The same in Python

def test_the_code_of_explore_draws_the_very_pixels(engine, home):
    for asked in (Request("sweller", 1., seeds=(3, 4, 5), solver="heun", steps=3, cfg_scale=1.5), Request(molecule="CCO", seeds=(7, 1), steps=2, experiment="any"), Request("DMSO", seeds=(2,), steps=2), Request("sweller", seeds=(1,), steps=2, compare=False)):
        request = check(asked, engine)
        *_, answer = engine.stream(request)
        there = run(home, python_of_cells(engine, request))["answer"]
        assert np.array_equal(there.images, answer.images) and (answer.control is None) == (there.control is None)
        assert answer.control is None or np.array_equal(there.control, answer.control)
        assert there.request == answer.request


def test_the_code_of_a_counterfactual_draws_the_very_pixels(engine, home):
    whatif = CounterfactualRequest((Treatment("sweller", 1.), Treatment("sweller", 10.)), steps=2)
    cells, source = sample_controls(engine, range(4, 7), None)
    answer = counterfactual(engine, cells, "sweller", [1., 10.], steps=2)
    there = run(home, python_of_counterfactual(engine, resolve_counterfactual(whatif, 3, engine), source))["answer"]
    assert np.array_equal(there.treated, answer.treated) and np.array_equal(there.reconstruction, answer.reconstruction)


def test_the_code_of_a_brought_image_reads_it_as_it_was_read(engine, home):
    np.save(home / "mine.npy", synthetic_cells(6, seed=3).where(perturbation="DMSO").images)
    brought = prepare_cells(engine, read_micrograph(home / "mine.npy"), ImportOptions(channels=(2, 1, 0), chosen=(0, 2), match=False), "mine.npy")
    answer = counterfactual(engine, brought.cells, "sweller", 10., steps=2)
    there = run(home, python_of_counterfactual(engine, resolve_counterfactual(CounterfactualRequest((Treatment("sweller", 10.),), steps=2), 2, engine), brought.source))["answer"]
    assert np.array_equal(there.original, brought.cells) and np.array_equal(there.treated, answer.treated)


def test_the_code_of_a_screen_finds_the_same(engine, home, tmp_path):
    text, settings = "CCO, 1\nCCCC\nnonsense", check_settings(engine, Settings(cells=2, steps=2))
    for _ in screen_into(tmp_path / "screen", engine, text, settings): pass
    run(home, python_of_screen(engine, text, settings))
    assert list(Folder(home / "screen").found()) == list(Folder(tmp_path / "screen").found())


@given(texts)
def test_whatever_stands_in_a_list_stays_text_in_the_code(engine, text):
    python = python_of_screen(engine, text, Settings(experiment="Week1"))
    import ast
    tree = ast.parse(python)
    assert text in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call)} == {"load", "screen_into", "Settings", "Folder", "rank"}


# On the page

def shown(page, viewer):
    "Wait for the end of a run; what it says of itself."
    page.wait_for_function("at => document.querySelector(`#${at} .provenance`)?.textContent && /step (\\d+) of \\1$/.test(document.querySelector(`#${at} .where`).textContent)", arg=viewer, timeout=60 * seconds)
    return page.inner_text(f"#{viewer} .provenance")


def pixels(page, viewer): return page.locator(f"#{viewer} canvas").evaluate_all("all => all.map(c => c.toDataURL())")


def npz(page, prefix=""):
    with page.expect_download(timeout=60 * seconds) as download: page.click(f"#{prefix}take-npz")
    return np.load(io.BytesIO(download.value.path().read_bytes()), allow_pickle=False)


def test_the_address_follows_what_is_shown_and_opens_the_same_picture(page, address, engine, home):
    page.goto(f"{address}?perturbation=sweller&dose=1&cells=3&seed=5&steps=3&utm_source=letter")
    said, there, first = shown(page, "viewer"), page.url, pixels(page, "viewer")
    assert "3 cells: sweller, 1 µM" in said and "utm_source" not in there and "dose=1.0" in there and "experiment=" in there
    assert [page.input_value(f"#{field} input") for field in ("cells", "seed")] == ["3", "5"] and page.input_value("#dose .number") == "1"
    made = npz(page)
    page.wait_for_selector("#effects .maps .main-svg")
    with page.expect_download() as drawing: page.locator("#effects .maps [data-attr=save], #effects .maps [data-title^='Save as SVG']").first.click()
    assert json.loads(ElementTree.parse(drawing.value.path()).find("{*}metadata").text)["weights_sha256"] == engine.model.sha256
    page.reload()
    shown(page, "viewer")
    assert page.url == there and pixels(page, "viewer") == first
    python = page.text_content("#again pre")
    answer = run(home, python)["answer"]
    assert np.array_equal(made["sweller 1 µM"], answer.images) and np.array_equal(made["control"], answer.control)
    told = json.loads(str(made["provenance"]))
    assert told["grid"] and told["weights_sha256"] == engine.model.sha256 and {"mfm_app", "torch"} <= set(told["versions"])
    page.get_by_role("tab", name="About").click()
    page.wait_for_function("location.search === '?tab=about'")
    page.get_by_role("tab", name="Explore").click()
    page.wait_for_function("there => location.href === there", arg=there)


def test_how_a_picture_is_looked_at_is_in_its_address_and_in_its_code(page, address, engine, home):
    page.goto(f"{address}?perturbation=sweller&cells=3&steps=2&show=DNA,Actin:0-90&cell=1")
    shown(page, "viewer")
    assert page.locator("#viewer .channel input[type=checkbox]").evaluate_all("all => all.map(box => box.checked)") == [True, True, False]
    assert "0 to 90" in page.inner_text("#viewer .channels") and page.get_attribute("#viewer .cell[aria-selected=true]", "aria-label") == "seed 1"
    assert "show=DNA%2CActin%3A0-90" in page.url and "cell=1" in page.url
    names = run(home, page.text_content("#again pre"))
    seen = page.locator("#viewer .pair canvas").first.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    drawn = composite(names["answer"].images[1], engine.model.channels, shown=["DNA", "Actin"], contrast={"Actin": (0, 90)})
    assert np.abs(np.reshape(seen, (*drawn.shape[:2], 4))[..., :3] - drawn.astype(int)).max() <= 1
    with page.expect_download() as download: page.click("#take-png")
    told = read_provenance(download.value.path())
    assert told["shown"] == ["DNA", "Actin"] and told["contrast"] == {"Actin": [0, 90]}
    plain = names["display"].Gallery(names["answer"]).picture
    assert "shown=" in page.text_content("#again pre") and plain.tobytes() != names["display"].Gallery(names["answer"], shown=["DNA", "Actin"], contrast={"Actin": (0, 90)}).picture.tobytes()


def test_what_is_changed_while_looking_is_in_the_address_at_once(page, address):
    page.goto(f"{address}?perturbation=sweller&cells=3&steps=2")
    shown(page, "viewer")
    assert "show=" not in page.url and "cell=" not in page.url
    page.locator("#viewer .channel input[type=checkbox]").nth(1).uncheck()
    page.get_by_label("Tubulin: grey level shown as full colour").fill("120")
    page.get_by_label("seed 2", exact=True).click()
    there, picture = page.url, pixels(page, "viewer")
    assert "show=DNA%2CTubulin%3A0-120" in there and "cell=2" in there and 'shown=["DNA", "Tubulin"]' in page.text_content("#again pre")
    page.reload()
    shown(page, "viewer")
    assert page.url == there and pixels(page, "viewer") == picture
    page.get_by_text("Reset contrast").click()
    assert "show=" not in page.url and "shown=" not in page.text_content("#again pre")


@given(st.text(max_size=40) | st.sampled_from(["-", "DNA", "DNA:0-255", "DNA:-1-5", "DNA:9-3", "DNA:0-256", "DNA:0-90:1", ",", "DNA,,Actin", "%E0%", "DNA:１-９", "DNA,DNA"]))
def test_any_way_of_looking_is_one_that_can_be_drawn_or_a_sentence(ask, show):
    look = ask(look_of, show, ["DNA", "Actin", "Tubulin"])
    if isinstance(look, InputError): return
    composite(np.zeros((3, 2, 2), np.uint8), [dict(name=n, colour="blue") for n in ("DNA", "Actin", "Tubulin")], **look)


def test_a_molecule_and_its_dose_come_back(page, address):
    page.goto(f"{address}?molecule=CCO&dose=3&cells=2&steps=2&experiment=any")
    assert "CCO, 3 µM, experiment any" in shown(page, "viewer")
    page.wait_for_timeout(1 * seconds)      # what follows the fields has had its say
    assert page.input_value("#smiles textarea") == "CCO" and page.input_value("#molecule-dose .number") == "3" and "any" in page.input_value("#experiment input")


def test_the_counterfactual_of_an_address_is_the_one_its_code_draws(page, address, home):
    page.goto(f"{address}?tab=counterfactual&perturbation=sweller&cells=2&steps=2&series=1")
    assert "2 cells" in shown(page, "cf-viewer") and page.is_checked("#cf-series input")
    made, answer = npz(page, "cf-"), run(home, page.text_content("#cf-again pre"))["answer"]
    assert np.array_equal(made["original"], answer.original) and np.array_equal(made["reconstruction"], answer.reconstruction)
    assert np.array_equal(made["sweller 10 µM"], answer.treated[-1])


def test_the_link_of_an_image_asks_for_it_again(page, address, tmp_path):
    np.save(tmp_path / "mine.npy", synthetic_cells(4, seed=3).where(perturbation="DMSO").images[:2])
    page.goto(f"{address}?tab=counterfactual&perturbation=sweller&steps=2&from=image")
    page.wait_for_function("document.querySelector('#cf-status')?.innerText.includes('Bring your image again under Your image')")
    page.get_by_role("tab", name="Your image").click()      # open already, but for a slow machine
    page.set_input_files("#cf-file input", tmp_path / "mine.npy")
    page.wait_for_function("document.querySelector('#cf-field')?.innerText.includes('mine.npy')")
    page.click("#cf-go")
    shown(page, "cf-viewer")
    assert "from=image" in page.url and "does not hold your image" in page.inner_text("#cf-again") and "mine.npy" in page.text_content("#cf-again pre") and "mine" not in page.url


def test_a_screen_opens_from_its_address(page, address):
    page.goto(f"{address}?tab=screen&list={quote('CCO, 1' + chr(10) + 'CCCC')}&cells=1")
    page.wait_for_function("document.querySelector('#screen-status')?.innerText.includes('network evaluations')", timeout=60 * seconds)
    assert page.locator("#screen tbody tr").count() == 2 and page.input_value("#screen-list textarea") == "CCO, 1\nCCCC"
    assert "screen.screen_into" in page.text_content("#screen-again pre")


@pytest.mark.parametrize("query, at, said", [
    ("?perturbation=aspirin", "#status", "Unknown perturbation 'aspirin'"), ("?perturbation=../../etc/passwd", "#status", "Unknown perturbation"),
    ("?perturbation=sweller&dose=NaN", "#status", "A dose of nan µM is outside"), ("?perturbation=sweller&cells=1e99", "#status", "cells must be a whole number"),
    ("?perturbation=sweller&steps=-1", "#status", "steps must be a whole number"), ("?molecule=%3Cscript%3Ealert(1)%3C/script%3E", "#status", "⚠️"),
    ("?perturbation=sweller&molecule=CCO", "#status", "Give either a perturbation by its name or a molecule"), ("?tab=admin", "#status", "tab must be explore"),
    ("?tab=counterfactual&perturbation=sweller&guidance=inf", "#cf-status", "uidance"), ("?perturbation=sweller&show=Golgi", "#status", "show names a channel 'Golgi'"), ("?perturbation=sweller&show=DNA:9-3", "#status", "two grey levels"),
    ("?perturbation=sweller&show=%25E0%25", "#status", "show names a channel"), ("?perturbation=sweller&cell=64", "#status", "cell must be a whole number from 0 to 63"), ("?tab=screen&cells=17", "#screen-status", "Cells a molecule must be a whole number from 1 to 16"),
])
def test_a_hostile_address_is_answered_in_a_sentence_and_the_page_stands(page, address, query, at, said):
    page.goto(address + query)
    page.wait_for_function("([at, said]) => document.querySelector(at)?.innerText.includes(said)", arg=[at, said], timeout=20 * seconds)
    assert "Traceback" not in page.inner_text("body") and os.sep + "tmp" not in page.inner_text(at)
    assert page.locator("button:visible", has_text="Screen" if "screen" in query else "Treat cells" if "counter" in query else "Generate").first.is_enabled()


links = ["![](//evil.invalid/a.png)", "[Sign in again](//evil.invalid/login)", "<img src=//evil.invalid/a.png>", "<a href='//evil.invalid'>x</a>", "`*_$\\alpha$"]


@pytest.mark.parametrize("query, at, typed", [*(("?perturbation={}", "#status", link) for link in links), ("?tab={}", "#status", links[1]),
    ("?tab=counterfactual&perturbation=sweller&from={}", "#cf-status", links[0]), ("?tab=screen&list=CCO&experiment={}", "#screen-status", links[2])])
def test_what_a_link_says_makes_no_link_and_no_picture(page, address, query, at, typed):
    page.goto(address + query.format(quote(typed)))
    page.wait_for_function("([at, said]) => document.querySelector(at)?.innerText.includes(said)", arg=[at, typed[:38]], timeout=20 * seconds)
    assert not page.locator(f"{at} a, {at} img, {at} code, {at} .katex").count()


def test_a_view_that_ends_behind_another_tab_waits_for_its_turn(page, address, engine, monkeypatch):
    page.goto(f"{address}?tab=counterfactual&perturbation=sweller&cells=2&steps=1")
    shown(page, "cf-viewer")
    page.get_by_role("tab", name="Explore").click()
    page.wait_for_function("location.search === '?tab=explore'")
    page.evaluate("window.mfmVisit('counterfactual', '?tab=counterfactual&perturbation=stabiliser')")
    assert page.evaluate("location.search") == "?tab=explore"
    page.get_by_role("tab", name="Counterfactual").click()
    page.wait_for_function("location.search.includes('stabiliser')")


def test_the_code_of_a_folder_says_that_its_path_is_wanted(engine, home):
    first = python_of_cells(engine, check(Request("sweller"), engine)).splitlines()[2]
    assert first.startswith("model = engine.load('small'") and "# the path of this folder; weights" in first
    from mfm_app.engine import load
    assert "path of this folder" not in python_of_cells(load(), check(Request("taxol"), load()))


def test_link_and_code_are_copied(page, address):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{address}?perturbation=sweller&cells=1&steps=1")
    shown(page, "viewer")
    page.click("#again .link")
    page.wait_for_function("document.querySelector('#again output').textContent === 'Link copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == page.url and urlsplit(page.url).query.startswith("perturbation=sweller")
    page.click("#again .code")
    page.wait_for_function("document.querySelector('#again output').textContent === 'Code copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == page.text_content("#again pre")
