"What a notebook shows of an answer: the player, the gallery, the heatmaps, the card and the editor, as data and in a real browser."
import base64
import gzip
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from mfm_app.core import InputError
from mfm_app.counterfactual import Treatment, WhatIf, stream
from mfm_app.display import Card, Editor, Gallery, Heatmaps, Player, fitted, gathered, in_script
from mfm_app.engine import Request, load

root = Path(__file__).resolve().parent.parent
hostile = '</script><img src=x onerror="document.title = `caught`">'


@pytest.fixture(scope="module")
def engine(): return load()


@pytest.fixture(scope="module")
def player(engine): return Player(engine, Request("taxol", seeds=(3, 4), steps=3))


@pytest.fixture(scope="module")
def series(engine, player):
    "Two cells under two doses, there and back."
    whatif = WhatIf((Treatment("taxol", .3), Treatment("taxol", 3.)), player.answer.request.experiment, steps=2)
    return Player(engine, stream(engine, player.answer.control, whatif), names=["first", hostile])


def bundle(shown): return shown._repr_mimebundle_()


def picture(data): return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def unpacked(html):
    "The page inside a frame."
    return gzip.decompress(base64.b64decode(re.search(r"atob\('([^']+)'\)", html)[1])).decode()


def opened(page, *outputs, ground="white", ink="black"):
    "Outputs of cells as a notebook shows them, one below the other; the last frame in it."
    page.set_content(f'<body style="background: {ground}; color: {ink}">' + "".join(f"<div>{o}</div>" for o in outputs))
    frame = page.wait_for_selector("iframe >> nth=-1").content_frame()
    frame.wait_for_selector(".viewer, .molecule")
    return frame


def playing(page, shown, **kwargs):
    frame = opened(page, bundle(shown)["text/html"], **kwargs)
    frame.wait_for_function("document.querySelector('.provenance').textContent && document.querySelector('.where').textContent !== 'starting'")
    frame.wait_for_function("n => document.querySelector('.scrub').max == n", arg=str(len(shown.frames) - 1))
    return frame


def pixels(frame, selector):
    "What a canvas shows, (H, W, 3)."
    width, height, values = frame.evaluate("""at => { const c = document.querySelector(at), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                                              return [c.width, c.height, [...d]]; }""", selector)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


# As data

def test_no_gradio_is_needed():
    subprocess.run([sys.executable, "-c", "import sys, mfm_app.display; assert 'gradio' not in sys.modules"], check=True)


def test_a_player_is_a_page_a_still_and_a_line(player):
    shown = bundle(player)
    assert set(shown) == {"text/plain", "text/html", "image/jpeg"} and shown["text/plain"] == "Player, 2 cells: taxol 0.3 µM, control"
    assert picture(shown["image/jpeg"]).ndim == 3 and 'alt="Player, 2 cells: taxol 0.3 µM, control"' in shown["text/html"]
    assert [f["step"] for f in player.frames] == [0, 1, 2, 3] and "lossless" in player.done and player.answer.images.shape == (2, 3, 64, 64)


class Addresses(HTMLParser):
    "Where the tags of a page point."
    def __init__(self): super().__init__(); self.found = []
    def handle_starttag(self, tag, attrs): self.found += [value for name, value in attrs if name in ("src", "href", "action")]


@pytest.mark.parametrize("shown", ["player", "series", "card"])
def test_nothing_is_fetched_by_a_frame(request, engine, shown):
    html = bundle(Card(engine, "CCO") if shown == "card" else request.getfixturevalue(shown))["text/html"]
    for text in (html, unpacked(html)):
        (seen := Addresses()).feed(text)
        assert all(address.startswith("data:") for address in seen.found) and "url(" not in text and "fetch(" not in text and "import(" not in text


def test_sixteen_cells_in_ten_steps_fit_into_a_notebook(engine):
    player = Player(engine, Request("taxol", seeds=range(16), steps=10))
    weights = {kind: len(data) for kind, data in bundle(player).items()}
    assert sum(weights.values()) < 240_000 and len(player.frames) == 11 and "those in the answer" not in player.done
    assert sum(len(d) for d in bundle(Gallery(player.answer)).values()) < 120_000
    assert sum(len(json.dumps(b)) for b in Heatmaps(player.answer).bundles()) < 260_000


def test_less_weight_is_coarser_and_then_fewer_steps(engine, player):
    moments, _ = gathered(engine.stream(player.answer.request))
    weight = lambda frames: sum(len(f["guess"]) for f in frames)
    found = [fitted(moments, kilobytes) for kilobytes in (200, 60, 30, 12, 5, 1)]
    assert all(weight(frames) <= 1000 * kilobytes for (frames, _), kilobytes in zip(found[:-1], (200, 60, 30, 12, 5)))
    assert [len(frames) for frames, _ in found] == sorted((len(frames) for frames, _ in found), reverse=True)
    assert all(frames[-1]["step"] == 3 for frames, _ in found) and len(found[-1][0]) == 1 and found[0][1][2] == 100


def test_noisy_states_come_when_asked_for(engine):
    with_states = Player(engine, Request("taxol", seeds=(0,), steps=1), states=True)
    assert all(set(f) == {"t", "step", "guess", "state"} for f in with_states.frames)


def test_a_gallery_shows_each_set(player, series):
    one, several = bundle(Gallery(player.answer)), bundle(Gallery(series.answer))
    assert one["text/plain"] == "Gallery, 2 cells: taxol 0.3 µM, control" and "original, regenerated, taxol 0.3 µM, taxol 3 µM" in several["text/html"]
    low, high = picture(one["image/jpeg"]), picture(several["image/jpeg"])
    assert high.shape[0] > 1.8 * low.shape[0] and (low[0, -1] == 255).all()


def test_heatmaps_are_the_figures_of_the_page(series):
    from mfm_app.viz import effect_maps, profile_bars
    shown, comparison = Heatmaps(series.answer, which=1), series.answer.comparisons[1]
    heading, maps, bars = shown.bundles()
    assert shown.title == "Effect of taxol 3 µM: counterfactual minus regenerated cell" and "2 cells: what is seen may be chance" in heading["text/html"]
    assert shown.table.equals(comparison.table)
    mime = "application/vnd.plotly.v1+json"
    assert maps[mime]["data"] == json.loads(effect_maps(comparison.map.mean, series.answer.channels).to_json())["data"]
    assert bars[mime]["data"] == json.loads(profile_bars(comparison.table).to_json())["data"]
    assert set(maps) == set(bars) == {mime, "text/plain", "text/html"} and "<img" in maps["text/html"] and "<table" in bars["text/html"]
    assert len(json.dumps(bars)) < 60_000 and maps[mime]["layout"]["width"] > 600


def test_one_cell_has_maps_and_no_profile(engine):
    shown = Heatmaps(engine.generate("taxol", seeds=(0,), steps=1))
    heading, maps = shown.bundles()
    assert shown.bars is None and "One cell" in heading["text/html"] and maps["application/vnd.plotly.v1+json"]["data"]


def test_where_significance_is_known_a_switch_hides_what_may_be_chance(engine):
    _, maps, _ = Heatmaps(engine.generate("taxol", seeds=range(6), steps=1)).bundles()
    figure = maps["application/vnd.plotly.v1+json"]
    (every, sure), unsure = figure["layout"]["updatemenus"][0]["buttons"], [i for i, t in enumerate(figure["data"]) if not t["meta"]["significant"]]
    assert every["args"] == [{"opacity": 1}, unsure] and sure["args"] == [{"opacity": 0}, unsure] and len(unsure) == 3


def test_a_card_says_what_is_known(engine):
    shown = bundle(Card(engine, "CC(=O)Oc1ccccc1C(=O)O"))
    assert shown["text/plain"].startswith("CC(=O)Oc1ccccc1C(=O)O: far from known ones.") and len(shown["text/html"]) < 60_000


def test_the_editor_is_a_widget(ask):
    editor = Editor("CCO")
    assert editor.smiles == "CCO" and editor.widget.initial_molecule == "CCO" and "application/vnd.jupyter.widget-view+json" in editor._repr_mimebundle_()[0]
    editor.widget.smiles = "CCN"
    assert editor.smiles == "CCN" and Editor().smiles == "" and isinstance(ask(Editor, "C1CC"), InputError)


def test_a_walk_that_is_left_ends():
    ended = []
    def events():
        try: yield from range(3)
        finally: ended.append(True)
    with pytest.raises(InputError): gathered(events())
    assert ended


@pytest.mark.parametrize("wrong", [lambda e, a: Player(e, "taxol"), lambda e, a: Player(e, [a]), lambda e, a: Player(None, Request("taxol")), lambda e, a: Player(e, Request("aspirin")),
                                   lambda e, a: Player(e, (x for x in [a])), lambda e, a: Player(e, iter(())), lambda e, a: Player(e, (x for x in ())),
                                   lambda e, a: Player(e, Request("taxol", steps=1), names="ab"), lambda e, a: Player(e, Request("taxol", steps=1), names=["a", "b"]),
                                   lambda e, a: Player(e, Request("taxol", steps=1), names=[1]), lambda e, a: Player(e, Request("taxol", steps=1), kilobytes=0),
                                   lambda e, a: Gallery(None), lambda e, a: Gallery(a.images), lambda e, a: Gallery(a, most=0), lambda e, a: Heatmaps(a, which=1), lambda e, a: Heatmaps(a, which=-1),
                                   lambda e, a: Heatmaps("taxol"), lambda e, a: Heatmaps(e.generate("taxol", seeds=(0,), steps=1, compare=False)), lambda e, a: Card(e, "C1CC"), lambda e, a: Card(e, "")])
def test_what_cannot_be_shown_is_refused(ask, engine, player, wrong): assert isinstance(ask(wrong, engine, player.answer), InputError)


@pytest.mark.parametrize("value", [hostile, "<!--<script>", "\u2028", 'a"b\\'])
def test_no_text_ends_the_script_that_carries_it(value):
    assert "<" not in in_script([value]) and json.loads(in_script([value])) == [value]


# In a browser

def test_the_last_frame_is_what_was_drawn(page, player):
    frame = playing(page, player)
    for c in ("Actin", "Tubulin"): frame.locator(".channel", has_text=c).locator("input[type=checkbox]").uncheck()
    rgb = next(c for c in player.run["channels"] if c["name"] == "DNA")["rgb"]
    for figure, images in ((1, player.answer.images), (2, player.answer.control)):
        level = 255 * (images[0, 0] / 255) ** .65
        assert np.abs(pixels(frame, f".pair figure:nth-child({figure}) canvas").astype(float) - level[..., None] * rgb).max() <= .501


def test_scrubbing_changes_the_cell(page, player):
    frame = playing(page, player)
    at = ".pair canvas"
    end, seen = pixels(frame, at), []
    for step in range(len(player.frames)):
        frame.evaluate("step => { const s = document.querySelector('.scrub'); s.value = step; s.dispatchEvent(new Event('input')); }", step)
        seen.append(pixels(frame, at))
        assert f"step {step} of 3" in frame.locator(".where").text_content()
    assert (seen[-1] == end).all() and not (seen[0] == end).all() and not (seen[0] == seen[1]).all()
    frame.locator(".cell").nth(1).click()
    assert not (pixels(frame, at) == end).all() and frame.locator(".mode").is_hidden()


def test_a_frame_is_as_high_as_what_it_holds(page, player):
    frame = playing(page, player)
    heights = lambda: page.evaluate("(() => { const f = document.querySelector('iframe'); return [f.clientHeight, f.contentDocument.documentElement.scrollHeight]; })()")
    page.wait_for_function("(() => { const f = document.querySelector('iframe'); return Math.abs(f.clientHeight - f.contentDocument.documentElement.offsetHeight) <= 1; })()")
    wide = heights()
    page.set_viewport_size(dict(width=500, height=900))
    page.wait_for_function("before => document.querySelector('iframe').clientHeight !== before", arg=wide[0])
    assert abs(np.subtract(*heights())) <= 1
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_frame_is_light_or_dark_as_the_text_around_it(page, player, engine):
    ink = lambda frame: frame.evaluate("getComputedStyle(document.querySelector('.viewer, .molecule')).color")
    assert ink(playing(page, player)) == "rgb(30, 41, 59)" and ink(playing(page, player, ground="#111", ink="#eee")) == "rgb(226, 232, 240)"
    card = bundle(Card(engine, "CCO"))["text/html"]
    for ink, seen, unseen in (("black", ".on-light", ".on-dark"), ("white", ".on-dark", ".on-light")):
        frame = opened(page, card, ink=ink)
        assert frame.locator(f".molecule > {seen} svg").is_visible() and frame.locator(f".molecule > {unseen} svg").is_hidden()


def test_names_stay_text(page, series):
    frame = playing(page, series)
    assert frame.locator(".cell").nth(1).text_content() == hostile and page.title() == frame.title() == ""
    assert frame.locator(".strip .alternative").count() == 2 and frame.locator("img").count() == 0
    before = pixels(frame, ".pair figure:nth-child(3) canvas")
    frame.locator(".alternative").nth(1).click()
    assert not (pixels(frame, ".pair figure:nth-child(3) canvas") == before).all()


def test_two_players_do_not_mind_each_other(page, player, series):
    frame = opened(page, bundle(player)["text/html"], bundle(series)["text/html"])
    frame.wait_for_selector(".strip .alternative")
    first = page.query_selector("iframe").content_frame()
    first.wait_for_selector(".cell")
    assert first.locator(".cell").count() == frame.locator(".cell").count() == 2 and first.locator(".alternative").count() == 0


class Plain(HTMLParser):
    "What is left of an output where frames, scripts and styles are taken out."
    def __init__(self): super().__init__(); self.left, self.inside = [], None
    def handle_starttag(self, tag, attrs):
        if tag in ("style", "script", "iframe"): self.inside = tag
        elif not self.inside: self.left.append((tag, dict(attrs).get("alt")))
    def handle_endtag(self, tag): self.inside = None if tag == self.inside else self.inside
    def handle_data(self, data):
        if not self.inside: self.left.append(("", data))


def test_where_frames_are_taken_out_a_still_is_left(engine, player):
    (seen := Plain()).feed(bundle(player)["text/html"])
    assert seen.left == [("div", None), ("img", "Player, 2 cells: taxol 0.3 µM, control")]
    (seen := Plain()).feed(bundle(Card(engine, "CCO"))["text/html"])
    assert seen.left[:2] == [("div", None), ("p", None)] and seen.left[2][1].startswith("CCO: ")


# A notebook that is run

@pytest.fixture(scope="module")
def executed():
    "The outputs of a notebook's cells, each a list."
    from nbclient import NotebookClient
    sources = ["from mfm_app import ui\nfrom mfm_app.display import Heatmaps, Player\nfrom mfm_app.engine import Request, load", "player = Player(load(), Request('taxol', seeds=(0, 1), steps=2)); player",
               "Heatmaps(player.answer)", "server = ui.launch(inline=True, prevent_thread_lock=True)", "import gradio\ngradio.close_all()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=120, kernel_name="python3", store_widget_state=False).execute()
    return [cell.outputs for cell in notebook.cells]


def test_progress_is_one_line_that_goes(executed):
    line, shown = executed[1]
    assert line.data["text/plain"] == "" and set(shown.data) == {"text/plain", "text/html", "image/jpeg"}


def test_heatmaps_are_three_outputs(executed):
    heading, maps, bars = executed[2]
    assert "application/vnd.plotly.v1+json" in maps.data and "Effect of taxol" in heading.data["text/html"] and "<table" in bars.data["text/html"]


def test_the_page_opens_inside_a_notebook(executed):
    outputs = executed[3] + executed[4]
    shown = [o.data["text/html"] for o in outputs if o.output_type == "display_data"]
    assert len(shown) == 1 and re.search(r'<iframe src="http://127\.0\.0\.1:\d+/?"', shown[0])
    said = "".join(o.get("text", "") for o in outputs)
    assert not [o for o in outputs if o.output_type == "error"] and "Traceback" not in said and "site-packages" not in said and str(root) not in said
