"The newest change wins: the scripts of the page against a server and an editor that answer late and in any order."
import json
from random import Random

import pytest

from mfm_app.display import static
from mfm_app.ui_session import Session, address_revision, latest_only

host = "http://localhost/"

# Ketcher as far as `ketcher.js` knows it. A molecule is a string; whatever takes long takes some random time.
widget = """
let struct = '', handlers = [];
const late = () => new Promise(done => setTimeout(done, parent.late()));
const put = smiles => { struct = smiles; handlers.forEach(handle => handle()); };
const ketcher = {
  setSettings() {},
  indigo: { async convert(smiles) { await late(); if (smiles.includes('!')) throw new Error('no SMILES'); } },
  async setMolecule(smiles) { await late(); put(smiles); },
  async getSmiles() { const now = struct; await late(); return now; },
  editor: { zoom() {}, tool() {}, clear() { put(''); }, subscribe(_, handle) { handlers.push(handle); } },
  now: () => struct, byHand: smiles => { if (!document.body.inert) put(smiles); return !document.body.inert; },
};
export default { render() { setTimeout(() => { window.ketcher = ketcher; }, parent.late()); } };
"""

# Gradio as far as `editor.js` knows it, a box, and a server that writes what was drawn in capitals.
around = """
window.late = () => 30 * Math.random();
window.gradio_config = { root: '' };
window.IntersectionObserver = class {
  constructor(call) { this.call = call; }
  observe() { this.call([{ isIntersecting: true }]); }
};
const box = 'smiles', props = { value: 'START' }, sleep = () => new Promise(done => setTimeout(done, late()));
let text = props.value;
const write = value => { text = window.mfmRevisions.changed(box, value, 'START'); };
async function drawn() {
  write(props.value);
  const output = { id: box, depends_on: [box], field: box }, values = [props.value.toUpperCase()];
  const asked = window.mfmRevisions.ask([box], [box]);
  await sleep();
  const [spelled] = window.mfmRevisions.take({ ...asked, values }, [output]);
  if (spelled !== undefined) write(spelled);
}
const constants = "const ketcher = '', textField = 'smiles', maxLength = 1000;";
new Function('element', 'trigger', 'props', 'watch', constants + editor)(document.body, drawn, props, () => {});
const frame = document.querySelector('iframe').contentWindow;
window.page = {
  type: write, text: () => text, drawing: () => frame.ketcher.now(), inert: () => frame.document.body.inert,
  draw(letter) {      // what is then drawn, or null where nobody can draw
    const smiles = page.drawing() + letter;
    return frame.ketcher.byHand(smiles) ? smiles : null;
  },
  ready: () => frame.ketcher && !document.querySelector('iframe').hidden,
  busy() {
    const parts = [document.querySelector('.editor'), document.getElementById(box)];
    return parts.some(e => e.getAttribute('aria-busy') === 'true');
  },
};
"""


@pytest.fixture
def both(page):
    "Box and editor, without Gradio and without Ketcher."
    read = lambda name: (static / name).read_text(encoding="utf-8")
    html = f"<!doctype html><link rel=icon href='data:,'><div id='smiles'></div>{read('editor.html')}"
    files = {"": ("text/html", html), "widget.js": ("text/javascript", widget), "widget.css": ("text/css", ""),
             "ketcher.html": ("text/html", read("ketcher.html")), "ketcher.js": ("text/javascript", read("ketcher.js"))}
    def answer(route):
        kind, body = files[route.request.url.rsplit("/", 1)[1]]
        route.fulfill(content_type=kind, body=body)
    page.route(f"{host}**", answer)
    page.goto(host)
    page.evaluate(f"({read('page.js')})()")
    page.evaluate(f"const editor = {json.dumps(read('editor.js'))};\n{around}".replace("ketcher = ''", "ketcher = '.'"))
    page.wait_for_function("page.ready() && page.drawing() === 'START' && !page.busy()")
    return page


def at_rest(both):
    both.wait_for_function("!page.busy() && !page.inert()")
    both.wait_for_timeout(350)      # a drawing is looked at after 150 ms
    both.wait_for_function("!page.busy() && !page.inert()")
    return both.evaluate("[page.text(), page.drawing()]")


@pytest.mark.parametrize("seed", range(8))
def test_box_and_editor_agree_in_the_end_and_on_the_newest(both, seed):
    chance, expected = Random(seed), "START"
    for i in range(15):
        letter, wait = chr(ord("a") + i), chance.choice([0, 0, 5, 20, 60, 160, 300])
        change = chance.choice(["type", "draw", "empty", "half"])
        if change in ("type", "empty"):
            typed = letter.upper() * (change == "type")
            if both.evaluate("page.text()") == typed: continue      # nothing to type
            both.evaluate("text => page.type(text)", expected := typed)
        elif change == "half": both.evaluate("page.type(page.text() + '!')"); expected = None
        elif drawn := both.evaluate("letter => page.draw(letter)", letter): expected = drawn.upper()
        if wait: both.wait_for_timeout(wait)
    text, drawing = at_rest(both)
    if expected is None: assert text.endswith("!")
    else: assert text == drawing.upper() == expected


@pytest.mark.parametrize("wait", [0, 5, 20, 100, 200])
def test_a_ring_drawn_after_the_box_was_emptied_stays_alone(both, wait):
    both.evaluate("page.type('')")
    both.wait_for_timeout(wait)
    assert both.evaluate("page.draw('ring')") == "ring"
    assert at_rest(both) == ["RING", "ring"]


def test_a_drawing_on_an_older_text_is_not_taken(both):
    both.evaluate("page.draw('ring'); page.type('NEW')")
    assert at_rest(both) == ["NEW", "NEW"]
    assert both.evaluate("page.type('OTHER'), page.draw('ring')") is None      # nobody can draw until it is there
    assert at_rest(both) == ["OTHER", "OTHER"]


def test_text_that_comes_back_to_what_it_was_is_a_change_as_well(both):
    both.evaluate("page.type('STAR'); page.type('START')")
    assert at_rest(both) == ["START", "START"]
    both.evaluate("page.draw('mine')")
    assert at_rest(both) == ["STARTMINE", "STARTmine"]


@pytest.fixture
def revisions(page):
    page.goto("about:blank")
    page.evaluate(f"({(static / 'page.js').read_text(encoding='utf-8')})()")
    return page


@pytest.mark.parametrize("seed", range(5))
def test_answers_in_any_order_leave_what_was_changed_last(revisions, seed):
    "A name, an experiment that follows it unless somebody chose one, and what is said of the name."
    chance, pending = Random(seed), []
    shown, name, experiment, chosen = {}, "N0", "E0", False
    outputs = [dict(id="about", depends_on=["name"]),
               dict(id="experiment", depends_on=["name"], field="experiment")]
    ask = "name => { mfmRevisions.changed('name', name, 'N0'); return mfmRevisions.ask(['name'], ['about']); }"
    for i in range(30):
        what = chance.choice(["name", "experiment", "answer", "answer"])
        if what == "name":
            name, chosen = f"N{i}", False
            pending.append((revisions.evaluate(ask, name), name))
        elif what == "experiment":
            experiment, chosen = f"E{i}", True
            revisions.evaluate("e => mfmRevisions.changed('experiment', e, 'E0')", experiment)
        if pending and (what == "answer" or i == 29):
            for _ in range(len(pending) if i == 29 else 1):
                asked, of = pending.pop(chance.randrange(len(pending)))
                taken = revisions.evaluate("([answer, outputs]) => mfmRevisions.take(answer, outputs)",
                                           [asked | dict(values=[f"about {of}", f"usual {of}"]), outputs])
                assert taken[0] in (None, f"about {name}")
                if taken[0]: shown["about"] = taken[0]
                if taken[1]: assert not chosen; experiment = taken[1]
    assert shown.get("about", f"about {name}") == f"about {name}"
    assert experiment.startswith("E") if chosen or name == "N0" else experiment == f"usual {name}"


def test_an_address_is_older_than_any_hand(revisions):
    revisions.evaluate("mfmRevisions.changed('cells', 3, 16)")
    outputs = [dict(id=field, depends_on=[], field=field) for field in ("cells", "seed", "steps")]
    answer = dict(revision=address_revision, values=[2, 5, dict(__type__="update")])
    take = "([answer, outputs]) => mfmRevisions.take(answer, outputs).map(value => value ?? 'stays')"
    assert revisions.evaluate(take, [answer, outputs]) == ["stays", 5, "stays"]


def test_leaving_a_field_as_it_was_is_no_change(revisions):
    assert revisions.evaluate("mfmRevisions.changed('name', 'taxol', 'taxol'), mfmRevisions.of('name')") == 0
    changed = revisions.evaluate("mfmRevisions.changed('name', 'DMSO', 'taxol'), mfmRevisions.of('name')")
    assert changed > address_revision


def test_of_two_requests_the_one_sent_last_is_answered():
    session, letters = Session(), lambda word: (letter for letter in word)
    first = latest_only(session, lambda: letters("first"), 5)
    second = latest_only(session, lambda: letters("second"), 6)
    assert [*second] == [*"second"] and [*first] == []      # whichever comes first
    link = latest_only(session, lambda: letters("link"), address_revision)
    assert [*link] == []
