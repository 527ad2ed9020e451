"The page in a real browser, with a small untrained model: what a newcomer does, and what goes wrong for them."
import json
import threading
import time

import gradio as gr
import pytest
import torch

from conftest import typed
from controllable_net import ControllableNet

from mfm_app import ui, ui_explore, ui_parts
from mfm_app.core import InputError
from mfm_app.engine import Engine, Request, check
from mfm_app.finetune import random_model

seconds = 1000     # Playwright counts in milliseconds


@pytest.fixture(scope="module")
def engine():
    model = random_model()
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


def at_rest(engine):
    "Wait until nothing of an earlier test is walking any more."
    net = engine.model.net
    net.pause, net.fails, rounds = 0, False, None
    while rounds != engine.walks.rounds:
        rounds = engine.walks.rounds
        time.sleep(0.3)
    net.calls = 0


@pytest.fixture
def explore(page, address, engine):
    at_rest(engine)
    page.goto(address)
    page.wait_for_selector("#generate")
    page.wait_for_selector("#dose .ticks button")
    return page


def generate(page):
    page.evaluate("document.querySelector('#viewer .provenance').textContent = ''")      # that of an earlier run says nothing of this one
    page.click("#generate")
    page.wait_for_function("document.querySelector('#viewer .provenance').textContent", timeout=60 * seconds)
    page.wait_for_function("/step (\\d+) of \\1$/.test(document.querySelector('#viewer .where').textContent)")


def pixels(page, selector="#viewer .pair canvas"):
    "The picture of a canvas, as its data address."
    return page.locator(selector).first.evaluate("c => c.toDataURL()")


def choose(page, field, typed, option):
    page.click(f"#{field} input")
    page.fill(f"#{field} input", typed)
    page.get_by_role("option", name=option).click()


def set_number(page, field, value): typed(page, f"#{field} input", value)


def refused(page, engine):
    "Nothing was computed, no traceback shown; the browser's own note of the refusal (422) is expected."
    assert engine.model.net.calls == 0 and "Traceback" not in page.inner_text("body")
    expected = [e for e in page.errors if "422" in e]
    for e in expected: page.errors.remove(e)
    return expected


def test_a_newcomer_presses_generate_and_sees_cells_form(explore):
    assert explore.locator("#viewer .hint").is_visible()
    generate(explore)
    assert explore.locator("#viewer .cell").count() == 16 and explore.locator("#viewer .cell canvas").count() == 32
    assert explore.locator("#viewer .scrub").get_attribute("max") == "10"       # ten steps and the end
    captions = explore.locator("#viewer .pair figcaption").all_text_contents()
    assert captions == ["stabiliser, 0.1 µM", "DMSO, from the same noise"]
    said = explore.locator("#viewer .provenance").text_content()
    assert "16 cells" in said and "midpoint in 10 steps, 19 network evaluations" in said and "Weights drawn 000000000000" in said


def test_the_trajectory_scrubs_plays_and_obeys_the_keyboard(explore):
    generate(explore)
    where, end = explore.locator("#viewer .where"), pixels(explore)
    scrub = explore.locator("#viewer .scrub")
    scrub.press("Home")
    assert where.text_content() == "t = 0.00, step 0 of 10"
    start = pixels(explore)
    assert start != end
    scrub.press("ArrowRight")
    assert "step 1 of 10" in where.text_content()
    explore.get_by_text("Noisy state").click()
    scrub.press("Home")
    assert pixels(explore) != start
    explore.get_by_text("Predicted cell").click()
    explore.locator("#viewer .play").press("Enter")
    explore.wait_for_function("document.querySelector('#viewer .where').textContent.endsWith('step 10 of 10')", timeout=10 * seconds)
    assert pixels(explore) == end


def test_every_frame_arrives(explore):
    generate(explore)
    scrub, shown = explore.locator("#viewer .scrub"), set()
    scrub.press("Home")
    for _ in range(11):
        shown.add(explore.locator("#viewer .where").text_content())
        scrub.press("ArrowRight")
    assert len(shown) == 11


def test_channels_and_contrast_change_every_picture_at_once(explore):
    generate(explore)
    large, small = pixels(explore), pixels(explore, "#viewer .cell canvas")
    for box in explore.locator("#viewer .channel input[type=checkbox]").all(): box.uncheck()
    assert pixels(explore) != large and pixels(explore, "#viewer .cell canvas") != small
    black = explore.locator("#viewer .pair canvas").first.evaluate("c => Math.max(...c.getContext('2d').getImageData(0, 0, 64, 64).data.filter((v, i) => i % 4 < 3))")
    assert black == 0
    explore.get_by_text("Reset contrast").click()
    assert pixels(explore) == large
    explore.get_by_label("Actin: grey level shown as full colour").fill("90")
    assert pixels(explore) != large and "0 to 90" in explore.locator("#viewer .channels").text_content()


def test_viewers_share_channels_and_contrast(page, engine):
    request = check(Request("sweller", seeds=(0, 1), steps=1), engine)
    *_, last = (shown for shown, *_ in ui_explore.answers(engine, ui_parts.Session(), request) if isinstance(shown, str) and "frame" in json.loads(shown))
    with gr.Blocks() as blocks:
        viewers = [ui_parts.viewer("Nothing yet.", elem_id=name) for name in ("one", "other")]
        blocks.load(lambda: [last, last], None, viewers)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    page.goto(url)
    for name in ("one", "other"): page.locator(f"#{name} .where", has_text="step 1 of 1").wait_for()
    before = pixels(page, "#other .pair canvas")
    page.locator("#one").get_by_label("Actin: grey level shown as full colour").fill("90")
    assert pixels(page, "#other .pair canvas") != before and "0 to 90" in page.inner_text("#other .channels")
    page.locator("#one .channel input[type=checkbox]").first.uncheck()
    assert not page.locator("#other .channel input[type=checkbox]").first.is_checked()
    page.locator("#other").get_by_text("Reset contrast").click()
    assert pixels(page, "#other .pair canvas") == before and page.locator("#one .channel input[type=checkbox]").first.is_checked()
    blocks.close()


def test_a_seed_of_the_gallery_is_shown_large(explore):
    generate(explore)
    before = pixels(explore)
    explore.get_by_label("seed 5", exact=True).click()
    assert pixels(explore) != before
    explore.get_by_label("seed 5", exact=True).press("ArrowLeft")
    assert explore.locator("#viewer .cell[aria-selected=true]").get_attribute("aria-label") == "seed 4"


def test_a_perturbation_is_found_by_its_mechanism(explore):
    choose(explore, "perturbation", "swell", "sweller · Swelling")
    explore.wait_for_function("document.querySelector('#about-perturbation').textContent.includes('Swelling')")
    explore.wait_for_selector("#dose .ticks button[aria-label^='10 µM']")
    explore.wait_for_timeout(500)      # the rest of what follows the name arrives
    explore.click("#dose .ticks button[aria-label^='10 µM']")
    generate(explore)
    assert explore.locator("#viewer figcaption").first.text_content() == "sweller, 10 µM"


def test_the_control_has_no_dose(explore):
    choose(explore, "perturbation", "DMSO", "DMSO · untreated control")
    explore.wait_for_function("document.querySelector('#dose .note').textContent.includes('no dose')")
    generate(explore)
    assert explore.locator("#viewer figcaption").first.text_content() == "DMSO"


def test_the_dose_is_logarithmic_and_says_what_it_rests_on(explore):
    note = explore.locator("#dose .note")
    assert "training cells had this dose" in note.text_content()
    explore.fill("#dose .number", "0.3"); explore.press("#dose .number", "Tab")
    assert "interpolation" in note.text_content()
    assert explore.locator("#dose .slide").input_value() == "492"        # thousandths: log(0.3 / 0.01) of log(10 / 0.01)
    explore.fill("#dose .number", "8"); explore.press("#dose .number", "Tab")
    assert "extrapolation" in note.text_content()


@pytest.mark.parametrize("typed", ["-5", "0", "1e9", "many", ""])
def test_a_bad_dose_is_refused_where_it_was_given(explore, typed, engine):
    explore.fill("#dose .number", typed); explore.press("#dose .number", "Tab")
    assert explore.locator("#dose .note").text_content() == "Must be a number from 0.01 to 10 µM."
    explore.click("#generate")
    explore.wait_for_function("document.body.innerText.includes('0.01 to 10 µM')")
    explore.wait_for_timeout(500)
    assert refused(explore, engine) and explore.locator("#viewer .hint").is_visible()


@pytest.mark.parametrize("field,value,said", [
    ("cells", 10000, "Cells must be a whole number from 1 to 64, not '10000'."),
    ("cells", 0, "Cells must be a whole number from 1 to 64, not '0'."),
    ("cells", 2.5, "Cells must be a whole number from 1 to 64, not '2.5'."),
    ("seed", -1, "The first seed must be a whole number from 0"),
    ("steps", 0, "Steps must be a whole number from 1 to 200, not '0'."),
])
def test_a_bad_number_is_refused_at_its_field(explore, engine, field, value, said):
    if field == "steps": explore.get_by_text("Sampling").click()
    set_number(explore, field, value)
    explore.click("#generate")
    explore.wait_for_function("said => document.body.innerText.includes(said)", arg=said)
    explore.wait_for_timeout(500)
    assert refused(explore, engine)


def begun(page):
    "Wait until a run is on its way."
    page.wait_for_function("/step [1-9]/.test(document.querySelector('#viewer .where')?.textContent)")


def test_stop_ends_the_walk_and_the_page_can_go_on(explore, engine):
    engine.model.net.pause = 0.2
    explore.click("#generate")
    begun(explore)
    explore.click("#stop")
    explore.wait_for_timeout(1500)
    stopped = engine.model.net.calls
    explore.wait_for_timeout(1500)
    assert engine.model.net.calls == stopped < 19
    engine.model.net.pause = 0
    generate(explore)


def given_way(page, engine):
    "Ask for two cells; they are what is shown in the end, and the run before them is not walked to its end."
    set_number(page, "cells", 2)
    page.click("#generate")
    page.wait_for_function("document.querySelector('#viewer .provenance').textContent.startsWith('2 cells')", timeout=60 * seconds)
    calls = engine.model.net.calls
    page.wait_for_timeout(1500)
    assert page.locator("#viewer .cell").count() == 2 and "step 10 of 10" in page.inner_text("#viewer .where")
    assert engine.model.net.calls == calls < 2 * 19


def test_generate_again_at_once_gives_the_new_cells(explore, engine):
    engine.model.net.pause = 0.3
    explore.click("#generate")
    begun(explore)
    given_way(explore, engine)


def test_generate_need_not_wait_for_what_a_link_asked_for(page, engine, address):
    at_rest(engine)
    engine.model.net.pause = 0.3
    page.goto(f"{address}?perturbation=sweller&cells=4&steps=100")
    begun(page)
    page.locator("button:visible", has_text="Sampling").click()
    set_number(page, "steps", 10)
    given_way(page, engine)


def test_what_fails_inside_stays_inside(explore, engine):
    engine.model.net.fails = True
    explore.click("#generate")
    explore.wait_for_function("document.querySelector('#status').innerText.includes('Something went wrong')")
    assert "secret" not in explore.inner_text("body") and "Traceback" not in explore.inner_text("body")
    engine.model.net.fails = False
    generate(explore)
    assert "Something went wrong" not in explore.inner_text("body")


def test_about_says_what_the_model_has_seen_and_how_to_cite_and_call_it(explore, address):
    explore.get_by_role("tab", name="About").click()
    explore.locator("#about", has_text="What it has seen").wait_for()
    said = explore.inner_text("#about")
    assert "2603.26790" in said and "Few cells" in said and "Licence of the data" in said and "hypothesis" in said
    for title, text in {"Cells of each compound": "sweller", "The whole model card": "Evaluation", "Call it from Python": "engine.load(", "Call it from anywhere": f'Client("{address.rstrip("/")}'}.items():
        explore.locator("button", has_text=title).click()
        explore.locator("[data-testid=markdown]:visible", has_text=text).first.wait_for()


def test_two_visitors_share_network_calls(engine):
    import threading
    engine.model.net.pause, engine.model.net.fails, engine.model.net.calls = 0.02, False, 0
    def visit(): list(engine.stream(Request("sweller", seeds=range(4))))
    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for v in visitors: v.start()
    for v in visitors: v.join()
    assert engine.model.net.calls < 3 * 19


def test_a_taken_port_is_named(address):
    from mfm_app.core import InputError
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(InputError, match=f"Port {port} is in use; name a free one"): ui.launch(None, port, prevent_thread_lock=True)


# Molecules

@pytest.fixture
def molecule(explore, engine, monkeypatch):
    "The molecule side; `page.requests` are those that reached the engine."
    explore.requests, stream = [], engine.stream
    monkeypatch.setattr(engine, "stream", lambda request: (explore.requests.append(request), stream(request))[1])
    explore.get_by_role("tab", name="Molecule").click()
    explore.wait_for_selector("#molecule-card .verdict")
    return explore


def type_smiles(page, text):
    page.click("#smiles textarea")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(text) if text else page.keyboard.press("Delete")


def card_says(page, text, timeout=10 * seconds):
    page.wait_for_function("text => document.querySelector('#molecule-card').innerText.includes(text)", arg=text, timeout=timeout)
    return page.inner_text("#molecule-card")


def open_editor(page):
    page.get_by_role("tab", name="Draw").click()
    page.wait_for_selector("#editor iframe:not([hidden])", timeout=60 * seconds)
    return page.frame_locator("#editor iframe"), next(f for f in page.frames if f.url.endswith("/ketcher.html"))


def test_benzene_drawn_with_the_mouse_reaches_python(molecule):
    inside, frame = open_editor(molecule)
    type_smiles(molecule, "")
    frame.wait_for_function("ketcher.editor.struct().atoms.size === 0")
    inside.get_by_test_id("template-0").click()
    inside.locator("div[data-testid=ketcher-canvas]").click(position=dict(x=400, y=200))
    molecule.wait_for_function("document.querySelector('#smiles textarea').value === 'c1ccccc1'")
    card_says(molecule, "c1ccccc1")
    generate(molecule)
    assert [r.molecule for r in molecule.requests] == ["c1ccccc1"] and molecule.requests[0].perturbation is None
    assert molecule.locator("#viewer figcaption").first.text_content().startswith("c1ccccc1, ")


def test_a_typed_smiles_is_drawn_in_the_editor_and_on_the_card(molecule):
    _, frame = open_editor(molecule)
    type_smiles(molecule, "CCN(CC)C(=O)c1ccccc1")
    card_says(molecule, "CCN(CC)C(=O)c1ccccc1")
    frame.wait_for_function("ketcher.editor.struct().atoms.size === 13")
    assert molecule.locator("#molecule-card svg").count() == 2 + 2 * 2       # light and dark, of the molecule and its two neighbours
    assert molecule.evaluate("document.activeElement.closest('#smiles') !== null")


def test_the_editor_is_not_loaded_before_it_is_seen(explore):
    asked = []
    explore.on("request", lambda r: asked.append(r.url))
    explore.get_by_role("tab", name="Molecule").click()
    explore.wait_for_timeout(500)
    assert not [url for url in asked if "widget" in url or "ketcher" in url]


def test_opening_the_editor_makes_the_molecule_what_is_asked_for(explore):
    open_editor(explore)
    assert explore.get_by_role("tab", name="Molecule").get_attribute("aria-selected") == "true"
    generate(explore)
    assert "stabiliser" in explore.locator("#viewer figcaption").first.text_content()     # known by its structure
    explore.wait_for_function("document.querySelector('#steady').innerText.includes('Effect strength')", timeout=60 * seconds)
    explore.get_by_role("tab", name="Perturbation").click()
    explore.wait_for_timeout(300)
    generate(explore)
    assert "Effect strength" not in explore.inner_text("#steady")


@pytest.mark.parametrize("smiles,verdict,said", [
    ("CC(=O)Oc1ccccc1C(=O)[O-].[Na+]", "known", "sweller"),
    ("CCC(=O)Oc1ccccc1C(=O)O", "close", "3 came out with the right mechanism"),
    ("CCCCCCCCCC", "far", "Take the picture as a guess"),
])
def test_the_card_says_how_far_to_believe_it(molecule, smiles, verdict, said):
    type_smiles(molecule, smiles)
    molecule.wait_for_selector(f"#molecule-card .verdict.{verdict}")
    card = card_says(molecule, said)
    assert "Most similar compounds" in card and "sweller" in card and "Stabilising" in card


def test_what_the_cells_say_follows_the_cells(molecule):
    generate(molecule)
    molecule.wait_for_function("document.querySelector('#steady').innerText.includes('What these cells say')", timeout=60 * seconds)
    assert "of 8 fingerprints" in molecule.inner_text("#steady")


def test_the_next_cells_need_not_wait_for_what_the_last_ones_say(molecule, monkeypatch):
    answered = threading.Event()
    def waits(engine, answer):
        answered.wait(60)
        raise InputError("Never mind.")
        yield
    monkeypatch.setattr(ui_explore, "weighing", waits)
    generate(molecule)
    set_number(molecule, "cells", 2)
    generate(molecule)
    assert molecule.locator("#viewer .cell").count() == 2 and not answered.is_set()
    answered.set()


@pytest.mark.parametrize("typed,said", [
    ("", "Type a SMILES"), ("C(C)(C)(C)(C)C", "carbon takes at most 4"), ("C1CC", ""), ("CC>>CN", "reaction"), ("*CC", "open end"), ("C" * 5000, "1,000"),
    ("<img src=x onerror=alert(1)>", ""),
])
def test_what_is_no_molecule_is_refused_where_it_was_typed(molecule, engine, typed, said):
    type_smiles(molecule, typed)
    molecule.wait_for_selector("#molecule-card .refused, #molecule-card .hint")
    assert said in molecule.inner_text("#molecule-card") and not molecule.locator("#molecule-card img").count()
    molecule.click("#generate")
    molecule.wait_for_timeout(1000)
    assert refused(molecule, engine) and not molecule.requests


@pytest.mark.parametrize("typed", ["0", "-1", "1e6", "much"])
def test_a_bad_dose_of_a_molecule_is_refused_where_it_was_given(molecule, engine, typed):
    molecule.fill("#molecule-dose .number", typed)
    molecule.press("#molecule-dose .number", "Tab")
    assert molecule.locator("#molecule-dose .note").text_content() == "Must be a number from 0.1 to 10 µM."
    molecule.click("#generate")
    molecule.wait_for_function("document.body.innerText.includes('0.1 to 10 µM is allowed')")
    molecule.wait_for_timeout(500)
    assert refused(molecule, engine) and not molecule.requests


def test_a_dose_that_was_chosen_stays_when_the_molecule_changes(molecule):
    molecule.fill("#molecule-dose .number", "3")
    molecule.press("#molecule-dose .number", "Tab")
    type_smiles(molecule, "CCCCCCCC")
    card_says(molecule, "CCCCCCCC")
    molecule.wait_for_timeout(500)
    assert molecule.input_value("#molecule-dose .number") == "3"


def test_the_editor_starts_where_storage_is_blocked(page, address):
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('blocked', 'SecurityError'); }})")
    page.goto(address)
    page.wait_for_selector("#generate")
    open_editor(page)
