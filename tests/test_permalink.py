"A view as an address and as Python: nothing is lost, hostile addresses are refused, the code gives the very picture."
import ast
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
from mfm_app.core import InputError
from mfm_app.counterfactual import (CounterfactualRequest, Treatment, counterfactual, resolve_counterfactual,
                                    sample_controls)
from mfm_app.engine import Engine, load, request_from
from mfm_app.finetune import random_model
from mfm_app.hub import load_model, save_model
from mfm_app.images import read_labels, read_micrograph, read_provenance
from mfm_app.permalink import (View, channel_view, code_for_cells, code_for_counterfactual, code_for_screen, max_value,
                               read_query, resolve_view, tabs, write_query)
from mfm_app.preprocess import ImportOptions, prepare_cells
from mfm_app.sampling import Sampling
from mfm_app.screen import ScreenFolder, ScreenSettings, check_settings, screen_into
from mfm_app.simulator import synthetic_cells
from mfm_app.ui_session import Session
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
floats = st.floats(allow_nan=False, allow_infinity=False)
values = {str: texts, int: st.integers(0, 2**31 - 1), float: floats, bool: st.just(True)}


def views_of(tab):
    fields = {name: values[kind] for name, kind in tabs[tab].items()}
    return st.builds(View, st.just(tab), st.fixed_dictionaries({}, optional=fields))


def params_of(query): return dict(parse_qsl(query[1:], keep_blank_values=True))


@given(st.sampled_from(list(tabs)).flatmap(views_of))
def test_a_view_comes_back_from_its_address(view):
    query = write_query(view)
    assert read_query(params_of(query)) == view and query.startswith("?")


def test_what_an_address_leaves_open_is_filled_in_and_stays_so(engine):
    view = resolve_view(engine, read_query(dict(perturbation="SWELLER")))
    fields = view.fields
    assert fields["perturbation"] == "sweller" and fields["dose"] and fields["experiment"] and fields["cells"] == 16
    assert resolve_view(engine, read_query(params_of(write_query(view)))) == view


def test_names_that_are_not_ours_are_left_alone(engine):
    assert read_query(dict(utm_source="letter", __theme="dark", fbclid="x" * 5000)) is None


@pytest.mark.parametrize("name", ["guidance", "guidance_scale", "cfg_scale"])
def test_guidance_has_three_names_in_an_address_and_is_written_under_one(name):
    view = read_query({"perturbation": "sweller", name: "1.25"})
    assert view.fields["guidance"] == 1.25 and "guidance=1.25" in write_query(view)


def test_an_address_says_whether_real_cells_stand_beside_and_where_a_screen_is_drawn(engine):
    assert read_query(dict(perturbation="sweller", real="1")).fields["real"] is True
    with pytest.raises(InputError, match="real must be 0 or 1"): read_query(dict(perturbation="sweller", real="yes"))
    screened = lambda **fields: resolve_view(engine, read_query(dict(tab="screen", list="CCO", **fields)))
    assert screened().fields["experiment"] == screened(experiment="own").fields["experiment"] == "own"
    assert screened(experiment="week2").fields["experiment"] == "Week2" and "experiment=own" in write_query(screened())


def test_a_list_too_long_for_an_address_is_left_out():
    assert "list" not in write_query(View("screen", dict(list="C" * (max_value + 1), dose=1.)))


odd = st.sampled_from(["NaN", "inf", "-1", "1e400", "0", "9" * 400, "../../etc/passwd", "C:\\secret",
                       "<script>alert(1)</script>", "'; drop table", "\0", "0x10", "１６", " 4 ", "1_0", "null", "[]",
                       "💊" * 900])
plausible = st.sampled_from(["sweller", "CCO", "explore", "counterfactual", "screen", "euler", "1", "3"])
names = st.sampled_from(["tab", *sorted({name for fields in tabs.values() for name in fields})])
hostile = st.dictionaries(names, odd | st.text(max_size=30) | plausible, max_size=6)


@given(hostile)
def test_a_hostile_address_is_a_view_that_can_be_shown_or_one_sentence(engine, ask, params):
    def view_of(params):
        view = read_query(params)
        return view and resolve_view(engine, view)
    view = ask(view_of, params)
    if isinstance(view, InputError) or view is None: return
    fields = view.fields
    assert view.tab in tabs and set(fields) <= set(tabs[view.tab])
    if fields.get("molecule") or fields.get("perturbation"):
        assert 1 <= fields["cells"] <= 64 and 1 <= fields["steps"] <= 1000 and np.isfinite(fields["guidance"])


reopened = dict(explore=(Session, ui_explore.reopen, (14, 5)),
                counterfactual=(ui_counterfactual.ImageSession, ui_counterfactual.reopen, (17, 5)),
                screen=(ui_screen.ScreenSession, ui_screen.reopen, (5, 6)))


@pytest.mark.parametrize("tab", reopened)
@given(params=hostile)
def test_a_tab_shows_what_is_wrong_with_an_address_and_changes_nothing(engine, tab, params):
    session, reopen, widths = reopened[tab]
    events = ui_parts.open_address(engine, tab, params, widths, lambda view: reopen(engine, session(), view))
    first = next(events)
    fields, status = first[:widths[0]], first[widths[0] + 1]
    if status == gr.skip(): return      # nothing asked, or the fields were filled in: what follows is sampling
    assert status.startswith("⚠️ ") and "Traceback" not in status and len(status) < 500
    assert all(v == gr.skip() for v in fields)


# The same in Python

requests = [dict(perturbation="sweller", dose_um=1., seeds=(3, 4, 5), solver="heun", steps=3, cfg_scale=1.5),
            dict(molecule="CCO", seeds=(7, 1), steps=2, experiment="any"),
            dict(perturbation="DMSO", seeds=(2,), steps=2),
            dict(perturbation="sweller", seeds=(1,), steps=2, compare=False)]


@pytest.mark.parametrize("fields", requests, ids=["guided", "molecule", "control", "no control"])
def test_the_code_of_explore_gives_the_very_pixels(engine, home, fields):
    request = engine.resolve(request_from(**fields))
    *_, answer = engine.stream(request)
    again = run(home, code_for_cells(engine, request))["answer"]
    assert np.array_equal(again.images, answer.images) and (answer.control is None) == (again.control is None)
    assert answer.control is None or np.array_equal(again.control, answer.control)
    assert again.request == answer.request


def swellers(*doses):
    return CounterfactualRequest(tuple(Treatment("sweller", dose) for dose in doses), sampling=Sampling(steps=2))


def test_the_code_of_a_counterfactual_gives_the_very_pixels(engine, home):
    cells, source = sample_controls(engine, range(4, 7), None)
    answer = counterfactual(engine, cells, "sweller", [1., 10.], steps=2)
    code = code_for_counterfactual(engine, resolve_counterfactual(swellers(1., 10.), 3, engine), source)
    again = run(home, code)["answer"]
    assert np.array_equal(again.treated, answer.treated)
    assert np.array_equal(again.reconstruction, answer.reconstruction)


def test_the_code_of_an_image_reads_it_as_it_was_read(engine, home):
    np.save(home / "mine.npy", synthetic_cells(6, seed=3).where(perturbation="DMSO").images)
    options = ImportOptions(channels=(2, 1, 0), chosen=(0, 2), match=False)
    prepared = prepare_cells(engine.model, read_micrograph(home / "mine.npy"), options, "mine.npy")
    answer = counterfactual(engine, prepared.cells, "sweller", 10., steps=2)
    code = code_for_counterfactual(engine, resolve_counterfactual(swellers(10.), 2, engine), prepared.source)
    again = run(home, code)["answer"]
    assert np.array_equal(again.original, prepared.cells) and np.array_equal(again.treated, answer.treated)


def test_the_code_of_a_labelled_field_reads_its_labels(engine, home):
    labels = np.kron(np.arange(1, 5).reshape(2, 2), np.pad(np.ones((16, 16), int), 24))
    np.save(home / "field.npy", np.tile(synthetic_cells(1).images[0], (1, 2, 2))), np.save(home / "masks.npy", labels)
    image, options = read_micrograph(home / "field.npy"), ImportOptions(channels=(0, 1, 2), chosen=(3, 0))
    prepared = prepare_cells(engine.model, image, options, "field.npy", read_labels(home / "masks.npy"), "masks.npy")
    code = code_for_counterfactual(engine, resolve_counterfactual(swellers(10.), 2, engine), prepared.source)
    assert np.array_equal(run(home, code)["answer"].original, prepared.cells)


def test_the_code_of_a_screen_finds_the_same(engine, home, tmp_path):
    settings = check_settings(engine, ScreenSettings(cells=2))
    text = "CCO, 1\nCCCC\nnonsense"
    for _ in screen_into(tmp_path / "screen", engine, text, settings): pass
    run(home, code_for_screen(engine, text, settings))
    assert list(ScreenFolder(home / "screen").results) == list(ScreenFolder(tmp_path / "screen").results)


@given(texts)
def test_whatever_stands_in_a_list_stays_text_in_the_code(engine, text):
    tree = ast.parse(code_for_screen(engine, text, ScreenSettings(experiment="Week1")))
    assert text in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    calls = {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert calls == {"load", "screen_into", "Sampling", "ScreenSettings", "ScreenFolder", "rank"}


def test_the_code_of_a_folder_says_that_its_path_is_wanted(engine, home):
    code = code_for_cells(engine, engine.resolve(request_from("sweller")))
    line = code.splitlines()[2]
    assert line.startswith("session = engine.load('small'") and "# the path of this folder; weights" in line
    assert "path of this folder" not in code_for_cells(load(), load().resolve(request_from("taxol")))


channels = ["DNA", "Actin", "Tubulin"]
shows = st.sampled_from(["-", "DNA", "DNA:0-255", "DNA:-1-5", "DNA:9-3", "DNA:0-256", "DNA:0-90:1", ",", "DNA,,Actin",
                         "%E0%", "DNA:１-９", "DNA,DNA"])


@given(st.text(max_size=40) | shows)
def test_any_channel_view_is_one_that_can_be_shown_or_a_sentence(ask, show):
    view = ask(channel_view, show, channels)
    if isinstance(view, InputError): return
    composite(np.zeros((3, 2, 2), np.uint8), [dict(name=name, colour="blue") for name in channels], **view)


# On the page

def finished(page, viewer):
    "Wait for the end of a run; its line of provenance."
    script = """viewer => {
        const find = part => document.querySelector(`#${viewer} ${part}`)?.textContent ?? '';
        return find('.provenance') && /step (\\d+) of \\1$/.test(find('.where'));
    }"""
    page.wait_for_function(script, arg=viewer, timeout=60 * seconds)
    return page.inner_text(f"#{viewer} .provenance")


def shows_text(page, selector, text, timeout=60):
    script = "([at, text]) => document.querySelector(at)?.innerText.includes(text)"
    page.wait_for_function(script, arg=[selector, text], timeout=timeout * seconds)


def pixels(page, viewer):
    return page.locator(f"#{viewer} canvas").evaluate_all("all => all.map(c => c.toDataURL())")


def npz(page, prefix=""):
    with page.expect_download(timeout=60 * seconds) as download: page.click(f"#{prefix}export-npz")
    return np.load(io.BytesIO(download.value.path().read_bytes()), allow_pickle=False)


def code(page, prefix=""): return page.text_content(f"#{prefix}share pre")


save_maps = "#effects .maps [data-attr=save], #effects .maps [data-title^='Save as SVG']"


def test_the_address_follows_what_is_shown_and_opens_the_same_picture(page, address, engine, home):
    page.goto(f"{address}?perturbation=sweller&dose=1&cells=3&seed=5&steps=3&utm_source=letter")
    line, url, first = finished(page, "viewer"), page.url, pixels(page, "viewer")
    assert "3 cells: sweller, 1 µM" in line and "utm_source" not in url and "dose=1.0" in url and "experiment=" in url
    assert [page.input_value(f"#{field} input") for field in ("cells", "seed")] == ["3", "5"]
    assert page.input_value("#perturbation input").startswith("sweller · ")
    assert page.input_value("#dose .number") == "1"
    saved = npz(page)
    page.wait_for_selector("#effects .maps .main-svg")
    with page.expect_download() as download: page.locator(save_maps).first.click()
    metadata = ElementTree.parse(download.value.path()).find("{*}metadata").text
    assert json.loads(metadata)["weights_sha256"] == engine.model.sha256
    page.reload()
    finished(page, "viewer")
    assert page.url == url and pixels(page, "viewer") == first
    answer = run(home, code(page))["answer"]
    assert np.array_equal(saved["sweller 1 µM"], answer.images) and np.array_equal(saved["control"], answer.control)
    provenance = json.loads(str(saved["provenance"]))
    assert provenance["grid"] and provenance["weights_sha256"] == engine.model.sha256
    assert {"mfm_app", "torch"} <= set(provenance["versions"])
    page.get_by_role("tab", name="About").click()
    page.wait_for_function("location.search === '?tab=about'")
    page.get_by_role("tab", name="Explore").click()
    page.wait_for_function("url => location.href === url", arg=url)


def test_channels_contrast_and_large_cell_are_in_address_code_and_png(page, address, engine, home):
    page.goto(f"{address}?perturbation=sweller&cells=3&steps=2&show=DNA,Actin:0-90&cell=1")
    finished(page, "viewer")
    boxes = page.locator("#viewer .channel input[type=checkbox]").evaluate_all("all => all.map(box => box.checked)")
    assert boxes == [True, True, False] and "0 to 90" in page.inner_text("#viewer .channels")
    assert page.get_attribute("#viewer .cell[aria-selected=true]", "aria-label") == "seed 1"
    assert "show=DNA%2CActin%3A0-90" in page.url and "cell=1" in page.url
    names, view = run(home, code(page)), dict(shown=["DNA", "Actin"], contrast={"Actin": (0, 90)})
    data = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    canvas = page.locator("#viewer .pair canvas").first.evaluate(data)
    picture = composite(names["answer"].images[1], engine.model.channels, **view)
    assert np.abs(np.reshape(canvas, (*picture.shape[:2], 4))[..., :3] - picture.astype(int)).max() <= 1
    with page.expect_download() as download: page.click("#export-png")
    provenance = read_provenance(download.value.path())
    assert provenance["shown"] == ["DNA", "Actin"] and provenance["contrast"] == {"Actin": [0, 90]}
    gallery = lambda **kwargs: names["display"].Gallery(names["answer"], **kwargs).picture.tobytes()
    assert "shown=" in code(page) and gallery() != gallery(**view)


def test_what_is_changed_while_looking_is_in_the_address_at_once(page, address):
    page.goto(f"{address}?perturbation=sweller&cells=3&steps=2")
    finished(page, "viewer")
    assert "show=" not in page.url and "cell=" not in page.url
    page.locator("#viewer .channel input[type=checkbox]").nth(1).uncheck()
    page.get_by_label("Tubulin: grey level shown as full colour").fill("120")
    page.get_by_label("seed 2", exact=True).click()
    url, picture = page.url, pixels(page, "viewer")
    assert "show=DNA%2CTubulin%3A0-120" in url and "cell=2" in url and 'shown=["DNA", "Tubulin"]' in code(page)
    page.reload()
    finished(page, "viewer")
    assert page.url == url and pixels(page, "viewer") == picture
    page.get_by_text("Reset contrast").click()
    assert "show=" not in page.url and "shown=" not in code(page)


def test_a_molecule_and_its_dose_come_back(page, address):
    page.goto(f"{address}?molecule=CCO&dose=3&cells=2&steps=2&experiment=any")
    assert "CCO, 3 µM, experiment any" in finished(page, "viewer")
    page.wait_for_timeout(1 * seconds)      # whatever follows the fields has arrived
    assert page.input_value("#smiles textarea") == "CCO" and page.input_value("#molecule-dose .number") == "3"
    assert "any" in page.input_value("#experiment input")


def test_the_counterfactual_of_an_address_is_the_one_its_code_gives(page, address, home):
    page.goto(f"{address}?tab=counterfactual&perturbation=sweller&cells=2&steps=2&series=1")
    assert "2 cells" in finished(page, "cf-viewer") and page.is_checked("#cf-series input")
    assert page.input_value("#cf-perturbation input").startswith("sweller · ")
    assert "Trained on" in page.inner_text("#cf-about-perturbation")
    saved, answer = npz(page, "cf-"), run(home, code(page, "cf-"))["answer"]
    assert np.array_equal(saved["original"], answer.original)
    assert np.array_equal(saved["reconstruction"], answer.reconstruction)
    assert np.array_equal(saved["sweller 10 µM"], answer.treated[-1])


def test_the_link_of_an_image_asks_for_it_again(page, address, tmp_path):
    np.save(tmp_path / "mine.npy", synthetic_cells(4, seed=3).where(perturbation="DMSO").images[:2])
    page.goto(f"{address}?tab=counterfactual&perturbation=sweller&steps=2&from=image")
    shows_text(page, "#cf-status", "Import your image again under Your image")
    page.get_by_role("tab", name="Your image").click()      # open already, but for a slow machine
    page.set_input_files("#cf-file input", tmp_path / "mine.npy")
    shows_text(page, "#cf-field", "mine.npy")
    page.click("#cf-go")
    finished(page, "cf-viewer")
    assert "from=image" in page.url and "mine" not in page.url
    assert "does not hold your image" in page.inner_text("#cf-share") and "mine.npy" in code(page, "cf-")


def test_a_screen_opens_from_its_address(page, address):
    page.goto(f"{address}?tab=screen&list={quote('CCO, 1' + chr(10) + 'CCCC')}&cells=1")
    shows_text(page, "#screen-status", "network evaluations")
    assert page.locator("#screen tbody tr").count() == 2
    assert page.input_value("#screen-list textarea") == "CCO, 1\nCCCC"
    assert "screen.screen_into" in code(page, "screen-")


sentences = [
    ("?perturbation=aspirin", "#status", "Unknown perturbation 'aspirin'"),
    ("?perturbation=../../etc/passwd", "#status", "Unknown perturbation"),
    ("?perturbation=sweller&dose=NaN", "#status", "A dose of nan µM is outside"),
    ("?perturbation=sweller&cells=1e99", "#status", "cells must be a whole number"),
    ("?perturbation=sweller&steps=-1", "#status", "steps must be a whole number"),
    ("?molecule=%3Cscript%3Ealert(1)%3C/script%3E", "#status", "⚠️"),
    ("?perturbation=sweller&molecule=CCO", "#status", "Give either a perturbation by its name or a molecule"),
    ("?tab=admin", "#status", "tab must be explore"),
    ("?tab=counterfactual&perturbation=sweller&guidance=inf", "#cf-status", "uidance"),
    ("?perturbation=sweller&show=Golgi", "#status", "show names a channel 'Golgi'"),
    ("?perturbation=sweller&show=DNA:9-3", "#status", "two grey levels"),
    ("?perturbation=sweller&show=%25E0%25", "#status", "show names a channel"),
    ("?perturbation=sweller&cell=64", "#status", "cell must be a whole number from 0 to 63"),
    ("?tab=screen&cells=17", "#screen-status", "Cells a molecule must be a whole number from 1 to 16")]


@pytest.mark.parametrize("query, selector, sentence", sentences)
def test_a_hostile_address_is_answered_in_a_sentence_and_the_page_stands(page, address, query, selector, sentence):
    page.goto(address + query)
    shows_text(page, selector, sentence, 20)
    assert "Traceback" not in page.inner_text("body") and os.sep + "tmp" not in page.inner_text(selector)
    go = "Screen" if "screen" in query else "Treat cells" if "counter" in query else "Generate"
    assert page.locator("button:visible", has_text=go).first.is_enabled()


links = ["![](//evil.invalid/a.png)", "[Sign in again](//evil.invalid/login)", "<img src=//evil.invalid/a.png>",
         "<a href='//evil.invalid'>x</a>", "`*_$\\alpha$"]
queries = [*(("?perturbation={}", "#status", link) for link in links), ("?tab={}", "#status", links[1]),
           ("?tab=counterfactual&perturbation=sweller&from={}", "#cf-status", links[0]),
           ("?tab=screen&list=CCO&experiment={}", "#screen-status", links[2])]


@pytest.mark.parametrize("query, selector, typed", queries)
def test_what_an_address_holds_makes_no_link_and_no_picture(page, address, query, selector, typed):
    page.goto(address + query.format(quote(typed)))
    shows_text(page, selector, typed[:38], 20)
    assert not page.locator(f"{selector} a, {selector} img, {selector} code, {selector} .katex").count()


def test_a_view_that_ends_behind_another_tab_waits_until_that_is_open(page, address):
    page.goto(f"{address}?tab=counterfactual&perturbation=sweller&cells=2&steps=1")
    finished(page, "cf-viewer")
    page.get_by_role("tab", name="Explore").click()
    page.wait_for_function("location.search === '?tab=explore'")
    page.evaluate("window.mfmVisit('counterfactual', '?tab=counterfactual&perturbation=stabiliser')")
    assert page.evaluate("location.search") == "?tab=explore"
    page.get_by_role("tab", name="Counterfactual").click()
    page.wait_for_function("location.search.includes('stabiliser')")


def test_link_and_code_are_copied(page, address):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{address}?perturbation=sweller&cells=1&steps=1")
    finished(page, "viewer")
    page.click("#share .link")
    page.wait_for_function("document.querySelector('#share output').textContent === 'Link copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert urlsplit(page.url).query.startswith("perturbation=sweller")
    page.click("#share .code")
    page.wait_for_function("document.querySelector('#share output').textContent === 'Code copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == code(page)
