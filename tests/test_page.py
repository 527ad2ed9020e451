"The page in a real browser, with a small untrained model: what a newcomer does, and what goes wrong for them."
import json
import re
import threading
import time
from contextlib import contextmanager

import gradio as gr
import pytest
import torch

from conftest import typed
from controllable_net import ControllableNet

from mfm_app import mechanism, ui, ui_explore, ui_parts
from mfm_app.core import InputError
from mfm_app.engine import Engine, Request
from mfm_app.finetune import random_model
from mfm_app.molecules import parse, read_molecule
from mfm_app.sampling import Sampling
from mfm_app.ui_parts import viewer
from mfm_app.ui_session import Session

seconds = 1000     # Playwright counts in milliseconds


@pytest.fixture(scope="module")
def engine():
    model = random_model()
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


def wait_for_rest(engine):
    "Wait until nothing of an earlier test is sampled any more."
    net = engine.model.net
    net.pause, net.fails, rounds = 0, False, None
    while rounds != engine.scheduler.rounds:
        rounds = engine.scheduler.rounds
        time.sleep(0.3)
    net.calls = 0


def open_explore(page, address):
    page.goto(address)
    page.wait_for_selector("#generate")
    page.wait_for_selector("#dose .ticks button")


@pytest.fixture
def explore(page, address, engine):
    "A fresh page."
    wait_for_rest(engine)
    open_explore(page, address)
    return page


first_numbers = dict(cells=16, seed=0, steps=12)


def open_all_fields(page, address):
    open_explore(page, address)
    page.get_by_role("button", name="Sampling").click()
    page.wait_for_selector("#steps input")
    page.first_dose, page.first_molecule = page.input_value("#dose .number"), None


def start_over(page, side):
    "The fields of a side as they are on a fresh page."
    open_tab(page, "Explore"), open_tab(page, side)
    for field, value in first_numbers.items():
        if page.input_value(f"#{field} input") != str(value): set_number(page, field, value)
    if side == "Molecule": return start_over_with_molecule(page)
    if not page.input_value("#perturbation input").startswith("stabiliser"):
        choose(page, "perturbation", "stabil", "stabiliser · Stabilising")
        page.wait_for_function("document.querySelector('#about-perturbation').textContent.includes('Stabilising')")
        page.wait_for_timeout(300)
    if page.input_value("#dose .number") != page.first_dose: typed(page, "#dose .number", page.first_dose)


def start_over_with_molecule(page):
    page.wait_for_selector("#molecule-card")
    fields = lambda: (page.input_value("#smiles textarea"), page.input_value("#molecule-dose .number"))
    page.first_molecule = smiles, dose = page.first_molecule or fields()
    if fields()[0] != smiles: type_smiles(page, smiles)
    page.wait_for_selector("#molecule-card .verdict.known")
    if fields()[1] != dose: typed(page, "#molecule-dose .number", dose)


@pytest.fixture
def shared(lent, address, engine):
    "Lends a page that tests share by a name, one of its sides open with the fields of a fresh page."
    @contextmanager
    def shared(name, side):
        wait_for_rest(engine)
        with lent(name, lambda page: open_all_fields(page, address)) as page:
            start_over(page, side)
            yield page
    return shared


@pytest.fixture
def used(shared):
    with shared("used", "Perturbation") as page: yield page


@pytest.fixture
def refusals(shared):
    "Nothing was ever generated on this page."
    with shared("refusals", "Perturbation") as page: yield page


@pytest.fixture
def generated(lent, address, engine):
    "A page with the cells that a newcomer sees, shared by tests that look at them."
    wait_for_rest(engine)
    def prepare(page):
        open_explore(page, address)
        generate(page)
    with lent("generated", prepare) as page:
        page.get_by_text("Reset contrast").click()
        page.get_by_text("Predicted cell").click()
        page.get_by_label("seed 0", exact=True).click()
        page.locator("#viewer .scrub").press("End")
        yield page


def shows(page, selector, text, timeout=30):
    "Wait until an element shows a text."
    script = "([at, text]) => document.querySelector(at)?.innerText.includes(text)"
    page.wait_for_function(script, arg=[selector, text], timeout=timeout * seconds)


def generate(page):
    page.evaluate("document.querySelector('#viewer .provenance').textContent = ''")      # that of an earlier run
    page.click("#generate")
    page.wait_for_function("document.querySelector('#viewer .provenance').textContent", timeout=120 * seconds)
    page.wait_for_function("/step (\\d+) of \\1$/.test(document.querySelector('#viewer .where').textContent)")


def pixels(page, selector="#viewer .pair canvas"):
    "The picture of a canvas, as its data address."
    return page.locator(selector).first.evaluate("c => c.toDataURL()")


def choose(page, field, typed, option):
    page.click(f"#{field} input")
    page.fill(f"#{field} input", typed)
    page.get_by_role("option", name=option).click()


def set_number(page, field, value): typed(page, f"#{field} input", value)


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.get_attribute("aria-selected") == "true": return
    tab.click()
    page.wait_for_timeout(300)      # until the server has heard of it


def refused(page, engine):
    "Nothing was computed, no traceback shown; the browser's own note of the refusal (422) is expected."
    assert engine.model.net.calls == 0 and "Traceback" not in page.inner_text("body")
    expected = [e for e in page.errors if "422" in e]
    for e in expected: page.errors.remove(e)
    return expected


def test_a_newcomer_presses_generate_and_sees_cells_form(explore, engine):
    assert explore.locator("#viewer .hint").is_visible()
    generate(explore)
    assert explore.locator("#viewer .cell").count() == 16 and explore.locator("#viewer .cell canvas").count() == 32
    assert explore.locator("#viewer .scrub").get_attribute("max") == "12"       # twelve steps and the end
    captions = explore.locator("#viewer .pair figcaption").all_text_contents()
    assert captions == ["stabiliser, 1 µM", "DMSO, from the same noise"]
    line = explore.locator("#viewer .provenance").text_content()
    assert "16 cells" in line and "multistep2 in 12 steps, 12 network evaluations" in line
    assert f"Weights {engine.model.name} 000000000000" in line


def test_the_trajectory_scrubs_plays_and_obeys_the_keyboard(generated):
    where, end = generated.locator("#viewer .where"), pixels(generated)
    scrub = generated.locator("#viewer .scrub")
    scrub.press("Home")
    assert where.text_content() == "t = 0.00, step 0 of 12"
    start = pixels(generated)
    assert start != end
    scrub.press("ArrowRight")
    assert "step 1 of 12" in where.text_content()
    generated.get_by_text("Noisy state").click()
    scrub.press("Home")
    assert pixels(generated) != start
    generated.get_by_text("Predicted cell").click()
    generated.locator("#viewer .play").press("Enter")
    shows(generated, "#viewer .where", "step 12 of 12", 10)
    assert pixels(generated) == end


def test_every_frame_arrives(generated):
    scrub, shown = generated.locator("#viewer .scrub"), set()
    scrub.press("Home")
    for _ in range(13):
        shown.add(generated.locator("#viewer .where").text_content())
        scrub.press("ArrowRight")
    assert len(shown) == 13


def test_channels_and_contrast_change_every_picture_at_once(generated):
    large, small = pixels(generated), pixels(generated, "#viewer .cell canvas")
    for box in generated.locator("#viewer .channel input[type=checkbox]").all(): box.uncheck()
    assert pixels(generated) != large and pixels(generated, "#viewer .cell canvas") != small
    data = "c => [...c.getContext('2d').getImageData(0, 0, 64, 64).data]"
    canvas = generated.locator("#viewer .pair canvas").first.evaluate(data)
    assert not any(value for i, value in enumerate(canvas) if i % 4 < 3)      # black, but for alpha
    generated.get_by_text("Reset contrast").click()
    assert pixels(generated) == large
    generated.get_by_label("Actin: grey level shown as full colour").fill("90")
    assert pixels(generated) != large and "0 to 90" in generated.locator("#viewer .channels").text_content()


def test_viewers_share_channels_and_contrast(page, engine):
    request = engine.resolve(Request("sweller", seeds=(0, 1), sampling=Sampling(steps=1)))
    messages = [first for first, *_ in ui_explore.generation_outputs(engine, Session(), request)]
    *_, last = (m for m in messages if isinstance(m, str) and "frame" in json.loads(m))
    with gr.Blocks() as blocks:
        viewers = [viewer("Nothing yet.", elem_id=name) for name in ("one", "other")]
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
    assert pixels(page, "#other .pair canvas") == before
    assert page.locator("#one .channel input[type=checkbox]").first.is_checked()
    blocks.close()


def test_a_seed_of_the_gallery_is_shown_large(generated):
    before = pixels(generated)
    generated.get_by_label("seed 5", exact=True).click()
    assert pixels(generated) != before
    generated.get_by_label("seed 5", exact=True).press("ArrowLeft")
    assert generated.locator("#viewer .cell[aria-selected=true]").get_attribute("aria-label") == "seed 4"


def test_a_perturbation_is_found_by_its_mechanism(used):
    choose(used, "perturbation", "swell", "sweller · Swelling")
    used.wait_for_function("document.querySelector('#about-perturbation').textContent.includes('Swelling')")
    used.wait_for_selector("#dose .ticks button[aria-label^='10 µM']")
    used.wait_for_timeout(500)      # the rest of what follows the name arrives
    used.click("#dose .ticks button[aria-label^='10 µM']")
    generate(used)
    assert used.locator("#viewer figcaption").first.text_content() == "sweller, 10 µM"


def test_the_control_has_no_dose(used):
    choose(used, "perturbation", "DMSO", "DMSO · untreated control")
    used.wait_for_function("document.querySelector('#dose .note').textContent.includes('no dose')")
    generate(used)
    assert used.locator("#viewer figcaption").first.text_content() == "DMSO"


def test_the_dose_is_logarithmic_and_says_what_it_rests_on(used):
    note = used.locator("#dose .note")
    assert "training cells had this dose" in note.text_content()
    used.fill("#dose .number", "0.3"); used.press("#dose .number", "Tab")
    assert "interpolation" in note.text_content()
    assert used.locator("#dose .slide").input_value() == "492"  # thousandths: log(0.3 / 0.01) of log(10 / 0.01)
    used.fill("#dose .number", "8"); used.press("#dose .number", "Tab")
    assert "extrapolation" in note.text_content()


@pytest.mark.parametrize("typed", ["-5", "0", "1e9", "many", ""])
def test_a_bad_dose_is_refused_where_it_was_given(refusals, typed, engine):
    refusals.fill("#dose .number", typed); refusals.press("#dose .number", "Tab")
    assert refusals.locator("#dose .note").text_content() == "Must be a number from 0.01 to 10 µM."
    refusals.click("#generate")
    refusals.wait_for_function("document.body.innerText.includes('0.01 to 10 µM')")
    refusals.wait_for_timeout(500)
    assert refused(refusals, engine) and refusals.locator("#viewer .hint").is_visible()


@pytest.mark.parametrize("field, value, text", [
    ("cells", 10000, "Cells must be a whole number from 1 to 64, not '10000'."),
    ("cells", 0, "Cells must be a whole number from 1 to 64, not '0'."),
    ("cells", 2.5, "Cells must be a whole number from 1 to 64, not '2.5'."),
    ("seed", -1, "The first seed must be a whole number from 0"),
    ("steps", 0, "Steps must be a whole number from 1 to 200, not '0'."),
])
def test_a_bad_number_is_refused_at_its_field(refusals, engine, field, value, text):
    set_number(refusals, field, value)
    refusals.click("#generate")
    shows(refusals, "body", text)
    refusals.wait_for_timeout(500)
    assert refused(refusals, engine)


def wait_for_steps(page):
    "Wait until a run is on its way."
    page.wait_for_function("/step [1-9]/.test(document.querySelector('#viewer .where')?.textContent)")


def test_stop_ends_the_run_and_the_next_one_works(used, engine):
    engine.model.net.pause = 0.2
    used.click("#generate")
    wait_for_steps(used)
    used.click("#stop")
    used.wait_for_timeout(1500)
    stopped = engine.model.net.calls
    used.wait_for_timeout(1500)
    assert engine.model.net.calls == stopped < 19
    engine.model.net.pause = 0
    generate(used)


def newer_run_wins(page, engine):
    "Ask for two cells; they are what is shown in the end, and the run before them is cancelled."
    set_number(page, "cells", 2)
    page.click("#generate")
    shows(page, "#viewer .provenance", "2 cells", 60)
    calls = engine.model.net.calls
    page.wait_for_timeout(1500)
    where = page.inner_text("#viewer .where")
    assert page.locator("#viewer .cell").count() == 2 and re.search(r"step (\d+) of \1$", where)
    assert engine.model.net.calls == calls < 2 * 19


def test_generate_again_at_once_gives_the_new_cells(used, engine):
    engine.model.net.pause = 0.3
    used.click("#generate")
    wait_for_steps(used)
    newer_run_wins(used, engine)


def test_generate_need_not_wait_for_what_a_link_asked_for(page, engine, address):
    wait_for_rest(engine)
    engine.model.net.pause = 0.3
    page.goto(f"{address}?perturbation=sweller&cells=4&steps=100")
    wait_for_steps(page)
    page.locator("button:visible", has_text="Sampling").click()
    set_number(page, "steps", 10)
    newer_run_wins(page, engine)


def test_what_fails_inside_stays_inside(used, engine):
    engine.model.net.fails = True
    used.click("#generate")
    shows(used, "#status", "Something went wrong")
    assert "secret" not in used.inner_text("body") and "Traceback" not in used.inner_text("body")
    engine.model.net.fails = False
    generate(used)
    assert "Something went wrong" not in used.inner_text("body")


@pytest.mark.parametrize("error, text", [
    (MemoryError(), "There is not enough memory for this;"),
    (OSError(28, "No space left on device", "/some/folder/a.npz"), "'a.npz' cannot be read or written: No space left"),
])
def test_what_the_machine_cannot_do_is_said_as_the_command_line_says_it(used, engine, error, text):
    set_number(used, "cells", 1)
    engine.model.net.fails = error
    used.click("#generate")
    shows(used, "#status", text)
    body = used.inner_text("body")
    assert "Something went wrong" not in body and "/some" not in body and "Traceback" not in body


def test_about_says_what_the_model_was_trained_on_and_how_to_cite_and_call_it(used, address):
    used.get_by_role("tab", name="About").click()
    used.locator("#about", has_text="What it was trained on").wait_for()
    about = used.inner_text("#about")
    assert all(text in about for text in ("2603.26790", "Few cells", "Licence of the data", "hypothesis"))
    sections = {"Cells of each perturbation": "sweller", "The whole model card": "Evaluation",
                "Call it from Python": "engine.load(", "Call it from anywhere": f'Client("{address.rstrip("/")}'}
    for title, text in sections.items():
        used.locator("button", has_text=title).click()
        used.locator("[data-testid=markdown]:visible", has_text=text).first.wait_for()


def test_two_visitors_share_network_calls(engine):
    engine.model.net.pause, engine.model.net.fails, engine.model.net.calls = 0.02, False, 0
    def ask(): list(engine.stream(Request("sweller", seeds=range(4))))
    visitors = [threading.Thread(target=ask) for _ in range(4)]
    for visitor in visitors: visitor.start()
    for visitor in visitors: visitor.join()
    assert engine.model.net.calls < 3 * 19


def test_a_taken_port_is_named(address):
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(InputError, match=f"Port {port} is in use; name a free one"):
        ui.launch(None, port, prevent_thread_lock=True)


# Molecules

@pytest.fixture
def requests(engine, monkeypatch):
    "Those that reached the engine."
    requests, stream = [], engine.stream
    monkeypatch.setattr(engine, "stream", lambda request: (requests.append(request), stream(request))[1])
    return requests


@pytest.fixture
def molecule(shared):
    with shared("used", "Molecule") as page: yield page


@pytest.fixture
def refusing(shared):
    "Nothing was ever generated on this page."
    with shared("refusals", "Molecule") as page: yield page


@pytest.fixture
def drawing(shared):
    "A page of tests that use the editor."
    with shared("drawing", "Molecule") as page: yield page


def type_smiles(page, text):
    page.click("#smiles textarea")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(text) if text else page.keyboard.press("Delete")


def card_shows(page, text, timeout=120):      # seconds
    shows(page, "#molecule-card", text, timeout)
    return page.inner_text("#molecule-card")


def open_editor(page):
    page.get_by_role("tab", name="Draw").click()
    page.wait_for_selector("#editor iframe:not([hidden])", timeout=60 * seconds)
    return page.frame_locator("#editor iframe"), next(f for f in page.frames if f.url.endswith("/ketcher.html"))


@pytest.fixture
def ten_times_slower(drawing):
    "Within, all that the page waits for takes ten times as long: its scripts, the network, the server on a molecule."
    browser = drawing.context.new_cdp_session(drawing)
    def at_rate(rate, latency):
        browser.send("Emulation.setCPUThrottlingRate", dict(rate=rate))
        network = dict(offline=False, latency=latency, downloadThroughput=-1, uploadThroughput=-1)
        browser.send("Network.emulateNetworkConditions", network)
    @contextmanager
    def ten_times_slower(yes):
        if not yes: return (yield)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("read_molecule", "about_molecule", "molecule_dose"): late(patch, name, 0.3)
            browser.send("Network.enable")
            at_rate(10, 500)
            drawing.set_default_timeout(180 * seconds)
            try: yield
            finally:
                at_rate(1, 0)
                drawing.set_default_timeout(30 * seconds)
    yield ten_times_slower
    browser.detach()


def late(monkeypatch, name, wait):
    "What the page asks of the server takes longer."
    answer = getattr(ui_parts, name)
    monkeypatch.setattr(ui_parts, name, lambda *args, **kwargs: (time.sleep(wait), answer(*args, **kwargs))[1])


def drawn_first(page, inside, frame):
    "Draw something else than what is there at first, with the tool that draws rings at hand."
    type_smiles(page, "CC1CC(C)CC(C)C1")
    frame.wait_for_function("ketcher.editor.struct().atoms.size === 9 && !document.body.inert")
    inside.get_by_test_id("template-0").click()
    return inside.locator("div[data-testid=ketcher-canvas]")


def watch_box(page):
    "From now on, note what stands in the box, in `boxes`."
    page.evaluate("""window.boxes = [];
        addEventListener('mfm-revision', ({ detail }) => {
          if (detail === 'smiles') boxes.push(mfmRevisions.value('smiles'));
        })""")


def agree(page, frame, text, atoms, card=None):      # card: what is on it, if not that text
    "Wait until nothing is on its way; then box, editor and card show the same molecule."
    page.wait_for_function("text => document.querySelector('#smiles textarea').value === text", arg=text)
    page.wait_for_function("!['#smiles', '#editor .editor', '#molecule-card', '#molecule-dose'].some(at => "
                           "document.querySelector(at).getAttribute('aria-busy') === 'true')")
    page.wait_for_timeout(500)      # nor comes anything back
    assert page.input_value("#smiles textarea") == text
    assert frame.evaluate("[...ketcher.editor.struct().atoms.values()].filter(atom => !atom.isPreview).length") == atoms
    card_shows(page, card or text)


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_benzene_drawn_with_the_mouse_reaches_python(drawing, ten_times_slower, slow, requests):
    for field in ("cells", "steps"): set_number(drawing, field, 1)
    inside, frame = open_editor(drawing)
    with ten_times_slower(slow):
        type_smiles(drawing, "")
        inside.get_by_test_id("template-0").click()
        inside.locator("div[data-testid=ketcher-canvas]").click(position=dict(x=400, y=200))
        drawing.wait_for_function("document.querySelector('#smiles textarea').value === 'c1ccccc1'")
        card_shows(drawing, "c1ccccc1")
    generate(drawing)
    assert [r.molecule for r in requests] == ["c1ccccc1"] and requests[0].perturbation is None
    assert drawing.locator("#viewer figcaption").first.text_content().startswith("c1ccccc1, ")


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_ring_drawn_just_after_the_box_was_emptied_stays_alone(drawing, ten_times_slower, slow):
    inside, frame = open_editor(drawing)
    for wait in (0, 100) if slow else (0, 100, 300, 1000):
        canvas = drawn_first(drawing, inside, frame).bounding_box()
        with ten_times_slower(slow):
            watch_box(drawing)
            type_smiles(drawing, "")
            drawing.wait_for_timeout(wait)
            drawing.mouse.click(canvas["x"] + 400, canvas["y"] + 200)      # nothing is waited for
            drawing.mouse.move(canvas["x"] + 400, canvas["y"] - 60)
            agree(drawing, frame, "c1ccccc1", 6)
        former = [text for text in drawing.evaluate("boxes") if "." in text or "CC(" in text]
        assert not former


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_of_drawing_typing_and_examples_the_last_stays(drawing, ten_times_slower, monkeypatch, slow):
    inside, frame = open_editor(drawing)
    if not slow: late(monkeypatch, "read_molecule", 1)
    canvas = drawn_first(drawing, inside, frame)
    with ten_times_slower(slow):
        type_smiles(drawing, "")
        canvas.click(position=dict(x=400, y=200))
        type_smiles(drawing, "CCO")      # before the ring is in the box, and before it is spelled as usual
        agree(drawing, frame, "CCO", 3)
        canvas.click(position=dict(x=400, y=330))
        drawing.wait_for_function("document.querySelector('#smiles textarea').value.includes('.')")
        type_smiles(drawing, "CCCC")      # while the server spells the two
        agree(drawing, frame, "CCCC", 4)
        canvas.click(position=dict(x=400, y=330))
        type_smiles(drawing, "CCN")
        drawing.get_by_role("button", name="caffeine", exact=True).click()      # while both are on their way
        agree(drawing, frame, "Cn1cnc2c1c(=O)n(C)c(=O)n2C", 14, card="Cn1c(=O)c2c(ncn2C)n(C)c1=O")


def test_a_change_on_its_way_is_shown(molecule, monkeypatch):
    late(monkeypatch, "about_molecule", 2)
    type_smiles(molecule, "CCO")
    card = molecule.locator("#molecule-card")
    is_shown = """card => card.getAttribute('aria-busy') === 'true' && !card.innerText.includes('CCO') &&
        getComputedStyle(card, '::after').opacity === '1' && getComputedStyle(card, '::after').content"""
    busy = molecule.wait_for_function(f"({is_shown})(document.querySelector('#molecule-card'))")
    assert "Updating" in busy.json_value()
    card_shows(molecule, "CCO")
    assert card.get_attribute("aria-busy") == "false"
    assert card.evaluate("e => getComputedStyle(e, '::after').content") == "none"


def test_a_typed_smiles_is_drawn_in_the_editor_and_on_the_card(drawing):
    _, frame = open_editor(drawing)
    type_smiles(drawing, "CCN(CC)C(=O)c1ccccc1")
    card_shows(drawing, "CCN(CC)C(=O)c1ccccc1")
    frame.wait_for_function("ketcher.editor.struct().atoms.size === 13")
    assert drawing.locator("#molecule-card svg").count() == 2 + 2 * 2      # light and dark; it and two neighbours
    assert drawing.evaluate("document.activeElement.closest('#smiles') !== null")


stereo = dict(
    taxane="CC(=O)O[C@H]1C(=O)[C@]2(C)[C@@H](O)C[C@H]3OC[C@@]3(OC(=O)C)[C@H]2[C@H](OC(=O)c4ccccc4)[C@]5(O)C"
           "[C@H](OC(=O)[C@H](O)[C@@H](NC(=O)c6ccccc6)c7ccccc7)C(=C1C5(C)C)C",
    double_bonds=r"CC/C(=C(\CC)c1ccc(O)cc1)c1ccc(O)cc1")


@pytest.mark.parametrize("smiles", stereo.values(), ids=stereo)
def test_stereochemistry_survives_the_editor_both_ways(drawing, smiles):
    _, frame = open_editor(drawing)
    type_smiles(drawing, smiles)
    standard = read_molecule(smiles).smiles
    card_shows(drawing, standard)
    frame.wait_for_function("n => ketcher.editor.struct().atoms.size === n && !document.body.inert",
                            arg=parse(smiles).GetNumAtoms())
    for drawn in ("ketcher.getSmiles()", "ketcher.getMolfile('v2000')", "ketcher.getMolfile('v3000')"):
        assert read_molecule(frame.evaluate(drawn)).smiles == standard


def test_the_editor_is_not_loaded_before_it_is_seen(explore):
    urls = []
    explore.on("request", lambda r: urls.append(r.url))
    explore.get_by_role("tab", name="Molecule").click()
    explore.wait_for_timeout(500)
    assert not [url for url in urls if "widget" in url or "ketcher" in url]


def test_opening_the_editor_makes_the_molecule_what_is_asked_for(explore):
    open_editor(explore)
    assert explore.get_by_role("tab", name="Molecule").get_attribute("aria-selected") == "true"
    generate(explore)
    assert "stabiliser" in explore.locator("#viewer figcaption").first.text_content()     # known by its structure
    shows(explore, "#robustness", "Effect strength", 60)
    explore.get_by_role("tab", name="Perturbation").click()
    explore.wait_for_timeout(300)
    generate(explore)
    assert "Effect strength" not in explore.inner_text("#robustness")


@pytest.mark.parametrize("smiles, verdict, text", [
    ("CC(=O)Oc1ccccc1C(=O)[O-].[Na+]", "known", "sweller"),
    ("CCC(=O)Oc1ccccc1C(=O)O", "close", "3 came out with the right mechanism"),
    ("CCCCCCCCCC", "far", "Take the picture as a guess"),
])
def test_the_card_says_how_far_to_believe_it(molecule, smiles, verdict, text):
    type_smiles(molecule, smiles)
    molecule.wait_for_selector(f"#molecule-card .verdict.{verdict}")
    card = card_shows(molecule, text)
    assert "Most similar compounds" in card and "sweller" in card and "Stabilising" in card


def test_the_card_says_how_a_molecule_is_likely_to_act_and_who_speaks_for_it(molecule, engine, monkeypatch):
    monkeypatch.setattr(mechanism, "least_known", 1)
    monkeypatch.setitem(engine.molecules.record, "mechanism", {})
    mechanism.fitted_mechanisms.cache_clear()
    type_smiles(molecule, "CCC(=O)Oc1ccccc1C(=O)O")
    molecule.wait_for_selector("#molecule-card .mechanisms")
    card = card_shows(molecule, "None of the mechanisms it has seen")
    assert "Swelling" in card and "Cells are drawn as" in card and "Most similar compounds" in card
    witness = molecule.locator("#molecule-card .mechanisms ul li").first
    assert "sweller" in witness.inner_text() and witness.locator("svg:visible").count() == 1
    mechanism.fitted_mechanisms.cache_clear()


def test_robustness_follows_the_cells(molecule):
    generate(molecule)
    shows(molecule, "#robustness", "What these cells show", 60)
    assert "of 8 fingerprints" in molecule.inner_text("#robustness")


def test_the_next_cells_need_not_wait_for_the_robustness_of_the_last(molecule, monkeypatch):
    answered = threading.Event()
    def waits(engine, answer):
        answered.wait(60)
        raise InputError("Never mind.")
        yield
    monkeypatch.setattr(ui_explore, "robustness_steps", waits)
    generate(molecule)
    set_number(molecule, "cells", 2)
    generate(molecule)
    assert molecule.locator("#viewer .cell").count() == 2 and not answered.is_set()
    answered.set()
    shows(molecule, "#status", "Never mind.")


no_molecules = {"": "Type a SMILES", "C(C)(C)(C)(C)C": "carbon takes at most 4", "C1CC": "", "CC>>CN": "reaction",
                "*CC": "open end", "C" * 5000: "1,000", "<img src=x onerror=alert(1)>": ""}


@pytest.mark.parametrize("typed, text", no_molecules.items())
def test_what_is_no_molecule_is_refused_where_it_was_typed(refusing, engine, typed, text, requests):
    type_smiles(refusing, typed)
    refusing.wait_for_selector("#molecule-card .refused, #molecule-card .hint")
    card = refusing.locator("#molecule-card")
    assert text in card.inner_text() and not card.locator("img").count()
    refusing.click("#generate")
    refusing.wait_for_timeout(1000)
    assert refused(refusing, engine) and not requests


@pytest.mark.parametrize("typed", ["0", "-1", "1e6", "much"])
def test_a_bad_dose_of_a_molecule_is_refused_where_it_was_given(refusing, engine, typed, requests):
    refusing.fill("#molecule-dose .number", typed)
    refusing.press("#molecule-dose .number", "Tab")
    assert refusing.locator("#molecule-dose .note").text_content() == "Must be a number from 0.1 to 10 µM."
    refusing.click("#generate")
    refusing.wait_for_function("document.body.innerText.includes('0.1 to 10 µM is allowed')")
    refusing.wait_for_timeout(500)
    assert refused(refusing, engine) and not requests


def test_a_dose_that_was_chosen_stays_when_the_molecule_changes(molecule):
    molecule.fill("#molecule-dose .number", "3")
    molecule.press("#molecule-dose .number", "Tab")
    type_smiles(molecule, "CCCCCCCC")
    card_shows(molecule, "CCCCCCCC")
    molecule.wait_for_timeout(500)
    assert molecule.input_value("#molecule-dose .number") == "3"


# What overtakes what

def test_what_is_set_while_a_compound_is_looked_up_stays(explore, monkeypatch):
    late(monkeypatch, "about_perturbation", 1.5)
    choose(explore, "perturbation", "swell", "sweller · Swelling")
    typed(explore, "#dose .number", "0.3")
    choose(explore, "experiment", "any", "any · left open")
    explore.wait_for_selector("#dose .ticks button[aria-label^='10 µM']")      # the range is that of the new compound
    explore.wait_for_timeout(300)
    assert explore.input_value("#dose .number") == "0.3"
    assert explore.input_value("#experiment input") == "any · left open"
    set_number(explore, "cells", 1)
    generate(explore)
    provenance = explore.inner_text("#viewer .provenance")
    assert "sweller, 0.3 µM" in provenance and "experiment any" in provenance


def test_of_two_compounds_the_one_chosen_last_stays(explore, monkeypatch):
    late(monkeypatch, "about_perturbation", 1)
    choose(explore, "perturbation", "swell", "sweller · Swelling")
    choose(explore, "perturbation", "DMSO", "DMSO · untreated control")
    explore.wait_for_function("document.querySelector('#about-perturbation').textContent.includes('Untreated control')")
    explore.wait_for_timeout(1500)
    assert "no dose" in explore.inner_text("#dose .note") and "Untreated" in explore.inner_text("#about-perturbation")


def test_passing_through_the_name_changes_nothing(explore):
    typed(explore, "#dose .number", "0.3")
    explore.focus("#perturbation input")
    explore.keyboard.press("Tab")
    explore.wait_for_timeout(700)
    assert explore.input_value("#dose .number") == "0.3"


def test_the_side_that_is_open_counts_however_late_the_server_is(molecule, monkeypatch, requests):
    late(monkeypatch, "experiments", 1)
    set_number(molecule, "cells", 1)
    for side in ("Perturbation", "Molecule", "Perturbation"): molecule.get_by_role("tab", name=side).click()
    generate(molecule)
    assert [r.molecule for r in requests] == [None]
    molecule.get_by_role("tab", name="Molecule").click()
    generate(molecule)
    assert requests[1].molecule


def test_the_side_clicked_last_counts_though_gradio_tells_of_the_others_later(molecule, requests):
    set_number(molecule, "cells", 1)
    for last, expected in (("Molecule", True), ("Perturbation", False), ("Molecule", True)):
        names = [*("Molecule", "Perturbation") * 2, last]
        molecule.evaluate("""names => {      // in one task, so that Gradio tells of all of them afterwards
            const tabs = [...document.querySelectorAll('[role=tab]')];
            names.forEach(name => tabs.find(tab => tab.textContent.trim() === name && tab.offsetParent).click());
            document.querySelector('#viewer .provenance').textContent = '';
            document.querySelector('#generate').click();
        }""", names)
        molecule.wait_for_function("document.querySelector('#viewer .provenance').textContent", timeout=60 * seconds)
        assert bool(requests[-1].molecule) == expected
        assert molecule.get_by_role("tab", name=last).get_attribute("aria-selected") == "true"


@pytest.fixture
def read_link(monkeypatch):
    "A page reads the link by which it was opened once this is called."
    asked, answer = threading.Event(), ui_parts.view_of_address
    monkeypatch.setattr(ui_parts, "view_of_address", lambda *args: asked.wait(60) and answer(*args))
    yield asked.set
    asked.set()


def test_what_is_set_before_a_link_is_read_stays(page, address, engine, read_link):
    wait_for_rest(engine)
    page.goto(f"{address}?perturbation=sweller&dose=1&cells=2&seed=7&steps=2")
    page.wait_for_selector("#dose .ticks button")
    set_number(page, "cells", 3)
    choose(page, "perturbation", "DMSO", "DMSO · untreated control")
    read_link()
    page.wait_for_function("document.querySelector('#seed input').value === '7'")
    # what the link asks for is shown all the same
    page.locator("#viewer .provenance", has_text="sweller").wait_for(state="attached", timeout=60 * seconds)
    assert page.input_value("#cells input") == "3"
    assert page.input_value("#perturbation input") == "DMSO · untreated control"
    shows(page, "#about-perturbation", "Untreated")
    assert "no dose" in page.inner_text("#dose .note") and "Untreated" in page.inner_text("#about-perturbation")


def test_a_tab_opened_before_a_link_is_read_stays_open(page, address, engine, read_link):
    wait_for_rest(engine)
    page.goto(f"{address}?tab=counterfactual&perturbation=sweller&cells=1&steps=1")
    page.get_by_role("tab", name="Counterfactual").and_(page.locator("[aria-selected=true]")).wait_for()
    page.get_by_role("tab", name="About").click()
    read_link()
    page.locator("#cf-viewer .provenance", has_text="1 cell").wait_for(state="attached", timeout=60 * seconds)
    assert page.get_by_role("tab", name="About").get_attribute("aria-selected") == "true"
    assert page.evaluate("location.search") == "?tab=about"


def test_the_editor_starts_where_storage_is_blocked(page, address):
    blocked = "get() { throw new DOMException('blocked', 'SecurityError'); }"
    page.add_init_script(f"Object.defineProperty(window, 'localStorage', {{ {blocked} }})")
    page.goto(address)
    page.wait_for_selector("#generate")
    open_editor(page)
