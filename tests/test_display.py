"What a notebook shows of an answer (player, gallery, heatmaps, card, editor), as data and in a browser."
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
from mfm_app.counterfactual import CounterfactualRequest, Treatment, stream
from mfm_app.display import Card, Editor, Gallery, Heatmaps, Player, collect_steps, fit_frames, frame_bytes, script_json
from mfm_app.engine import Request, load
from mfm_app.sampling import Sampling

root = Path(__file__).resolve().parent.parent
hostile = '</script><img src=x onerror="document.title = `caught`">'
plotly = "application/vnd.plotly.v1+json"


def taxol(seeds=(0,), steps=1): return Request("taxol", seeds=seeds, sampling=Sampling(steps=steps))


@pytest.fixture(scope="module")
def engine(): return load()


@pytest.fixture(scope="module")
def player(engine): return Player(engine, taxol((3, 4), 3))


@pytest.fixture(scope="module")
def series(engine, player):
    "The player of a counterfactual: two cells under two doses."
    treatments = Treatment("taxol", .3), Treatment("taxol", 3.)
    request = CounterfactualRequest(treatments, player.answer.request.experiment, sampling=Sampling(steps=2))
    return Player(engine, stream(engine, player.answer.control, request), names=["first", hostile])


def bundle(shown): return shown._repr_mimebundle_()


def picture(data): return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def frame_page(html):
    "The page inside a frame."
    return gzip.decompress(base64.b64decode(re.search(r"atob\('([^']+)'\)", html)[1])).decode()


def open_outputs(page, *outputs, ground="white", ink="black"):
    "Outputs of cells as a notebook shows them, one below the other; returns the last frame in it."
    divisions = "".join(f"<div>{output}</div>" for output in outputs)
    page.set_content(f'<body style="background: {ground}; color: {ink}">{divisions}')
    frame = page.wait_for_selector("iframe >> nth=-1").content_frame()
    frame.wait_for_selector(".viewer, .molecule")
    return frame


def open_player(page, player, **kwargs):
    "The frame of a player, all of its frames decoded."
    frame = open_outputs(page, bundle(player)["text/html"], **kwargs)
    frame.wait_for_function("document.querySelector('.provenance').textContent"
                            " && document.querySelector('.where').textContent !== 'starting'")
    frame.wait_for_function("n => document.querySelector('.scrub').max == n", arg=str(len(player.frames) - 1))
    return frame


def pixels(frame, selector):
    "What a canvas shows, (H, W, 3)."
    width, height, values = frame.evaluate("""selector => {
        const c = document.querySelector(selector);
        const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return [c.width, c.height, [...data]];
    }""", selector)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


# As data

def test_no_gradio_is_needed():
    code = "import sys, mfm_app.display; assert 'gradio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_player_is_a_page_a_still_image_and_a_line(player):
    shown, label = bundle(player), "Player, 2 cells: taxol 0.3 µM, control"
    assert set(shown) == {"text/plain", "text/html", "image/jpeg"} and shown["text/plain"] == label
    assert picture(shown["image/jpeg"]).ndim == 3 and f'alt="{label}"' in shown["text/html"]
    assert [f["step"] for f in player.frames] == [0, 1, 2, 3] and "lossless" in player.done
    assert player.answer.images.shape == (2, 3, 64, 64)


class Addresses(HTMLParser):
    "Where the tags of a page point."
    def __init__(self): super().__init__(); self.addresses = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]


@pytest.mark.parametrize("shown", ["player", "series", "card"])
def test_a_frame_fetches_nothing(request, engine, shown):
    html = bundle(Card(engine, "CCO") if shown == "card" else request.getfixturevalue(shown))["text/html"]
    for text in (html, frame_page(html)):
        (parser := Addresses()).feed(text)
        assert all(address.startswith("data:") for address in parser.addresses)
        for fetching in ("url(", "fetch(", "import("): assert fetching not in text


def test_sixteen_cells_in_ten_steps_fit_into_a_notebook(engine):
    player = Player(engine, taxol(range(16), 10))
    sizes = {kind: len(data) for kind, data in bundle(player).items()}
    assert sum(sizes.values()) < 240_000 and len(player.frames) == 11 and "those in the answer" not in player.done
    assert sum(len(data) for data in bundle(Gallery(player.answer)).values()) < 120_000
    assert sum(len(json.dumps(b)) for b in Heatmaps(player.answer).bundles()) < 260_000


def test_less_room_means_coarser_frames_and_then_fewer_steps(engine, player):
    steps, _ = collect_steps(engine.stream(player.answer.request))
    limits = 200, 60, 30, 12, 5, 1
    fits = [fit_frames(steps, kilobytes) for kilobytes in limits]
    for (frames, _), kilobytes in zip(fits[:-1], limits): assert sum(map(frame_bytes, frames)) <= 1000 * kilobytes
    counts = [len(frames) for frames, _ in fits]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 1
    assert all(frames[-1]["step"] == 3 for frames, _ in fits) and fits[0][1].final == 100


def test_noisy_states_are_included_on_request(engine):
    with_states = Player(engine, taxol(), states=True)
    assert all(set(frame) == {"t", "step", "x1_pred", "xt"} for frame in with_states.frames)


def test_a_gallery_shows_each_set_of_images(player, series):
    one, several = bundle(Gallery(player.answer)), bundle(Gallery(series.answer))
    assert one["text/plain"] == "Gallery, 2 cells: taxol 0.3 µM, control"
    assert "original, reconstruction, taxol 0.3 µM, taxol 3 µM" in several["text/html"]
    low, high = picture(one["image/jpeg"]), picture(several["image/jpeg"])
    assert high.shape[0] > 1.8 * low.shape[0] and (low[0, -1] == 255).all()


def test_heatmaps_are_the_figures_of_the_page(series):
    from mfm_app.viz import effect_maps, profile_bars
    shown, comparison = Heatmaps(series.answer, which=1), series.answer.comparisons[1]
    heading, maps, bars = shown.bundles()
    assert shown.title == "Effect of taxol 3 µM: counterfactual minus reconstruction"
    assert "2 cells: what is seen may be chance" in heading["text/html"] and shown.table.equals(comparison.table)
    expected_maps = effect_maps(comparison.map.mean, series.answer.channels)
    for output, figure in ((maps, expected_maps), (bars, profile_bars(comparison.table))):
        assert output[plotly]["data"] == json.loads(figure.to_json())["data"]
        assert set(output) == {plotly, "text/plain", "text/html"}
    assert "<img" in maps["text/html"] and "<table" in bars["text/html"]
    assert len(json.dumps(bars)) < 60_000 and maps[plotly]["layout"]["width"] > 600
    assert shown.bundles() == [heading, maps, bars]


def test_one_cell_has_maps_and_no_profile(engine):
    shown = Heatmaps(engine.generate("taxol", seeds=(0,), steps=1))
    heading, maps = shown.bundles()
    assert shown.bars is None and "One cell" in heading["text/html"] and maps[plotly]["data"]


def test_buttons_hide_what_may_be_chance(engine):
    _, maps, _ = Heatmaps(engine.generate("taxol", seeds=range(6), steps=1)).bundles()
    every, sure = maps[plotly]["layout"]["updatemenus"][0]["buttons"]
    unsure = [i for i, trace in enumerate(maps[plotly]["data"]) if not trace["meta"]["significant"]]
    assert every["args"] == [{"opacity": 1}, unsure] and sure["args"] == [{"opacity": 0}, unsure] and len(unsure) == 3


def test_a_card_shows_what_is_known(engine):
    shown = bundle(Card(engine, "CC(=O)Oc1ccccc1C(=O)O"))
    assert shown["text/plain"].startswith("CC(=O)Oc1ccccc1C(=O)O: no claim. Nothing known of such structures speaks")
    assert len(shown["text/html"]) < 60_000


def test_the_editor_is_a_widget(ask):
    editor = Editor("CCO")
    assert editor.smiles == "CCO" and editor.widget.initial_molecule == "CCO"
    assert "application/vnd.jupyter.widget-view+json" in editor._repr_mimebundle_()[0]
    editor.widget.smiles = "CCN"
    assert editor.smiles == "CCN" and Editor().smiles == "" and isinstance(ask(Editor, "C1CC"), InputError)


def test_events_are_closed_when_they_are_no_run():
    closed = []
    def events():
        try: yield from range(3)
        finally: closed.append(True)
    with pytest.raises(InputError): collect_steps(events())
    assert closed


refused = [
    lambda e, a: Player(e, "taxol"), lambda e, a: Player(e, [a]), lambda e, a: Player(None, taxol()),
    lambda e, a: Player(e, Request("aspirin")), lambda e, a: Player(e, (x for x in [a])),
    lambda e, a: Player(e, iter(())), lambda e, a: Player(e, (x for x in ())),
    lambda e, a: Player(e, taxol(), names="ab"), lambda e, a: Player(e, taxol(), names=["a", "b"]),
    lambda e, a: Player(e, taxol(), names=[1]), lambda e, a: Player(e, taxol(), kilobytes=0),
    lambda e, a: Gallery(None), lambda e, a: Gallery(a.images), lambda e, a: Gallery(a, max_cells=0),
    lambda e, a: Heatmaps(a, which=1), lambda e, a: Heatmaps(a, which=-1), lambda e, a: Heatmaps("taxol"),
    lambda e, a: Heatmaps(e.generate("taxol", seeds=(0,), steps=1, compare=False)),
    lambda e, a: Card(e, "C1CC"), lambda e, a: Card(e, "")]


@pytest.mark.parametrize("show", refused)
def test_what_cannot_be_shown_is_refused(ask, engine, player, show):
    assert isinstance(ask(show, engine, player.answer), InputError)


@pytest.mark.parametrize("value", [hostile, "<!--<script>", "\u2028", 'a"b\\'])
def test_no_text_ends_the_script_that_carries_it(value):
    assert "<" not in script_json([value]) and json.loads(script_json([value])) == [value]


# In a browser

def test_the_last_frame_has_the_pixels_of_the_answer(page, player):
    frame = open_player(page, player)
    for channel in ("Actin", "Tubulin"):
        frame.locator(".channel", has_text=channel).locator("input[type=checkbox]").uncheck()
    rgb = next(c for c in player.run["channels"] if c["name"] == "DNA")["rgb"]
    for figure, images in ((1, player.answer.images), (2, player.answer.control)):
        level = 255 * (images[0, 0] / 255) ** .65
        shown = pixels(frame, f".pair figure:nth-child({figure}) canvas").astype(float)
        assert np.abs(shown - level[..., None] * rgb).max() <= .501


def test_scrubbing_changes_the_cell(page, player):
    frame, canvas = open_player(page, player), ".pair canvas"
    end, shown = pixels(frame, canvas), []
    for step in range(len(player.frames)):
        frame.evaluate("""step => {
            const scrub = document.querySelector('.scrub');
            scrub.value = step;
            scrub.dispatchEvent(new Event('input'));
        }""", step)
        shown.append(pixels(frame, canvas))
        assert f"step {step} of 3" in frame.locator(".where").text_content()
    assert (shown[-1] == end).all() and not (shown[0] == end).all() and not (shown[0] == shown[1]).all()
    frame.locator(".cell").nth(1).click()
    assert not (pixels(frame, canvas) == end).all() and frame.locator(".mode").is_hidden()


def test_a_frame_is_as_high_as_its_content(page, player):
    frame = open_player(page, player)
    heights = lambda: page.evaluate("""(() => {
        const f = document.querySelector('iframe');
        return [f.clientHeight, f.contentDocument.documentElement.scrollHeight];
    })()""")
    page.wait_for_function("""(() => {
        const f = document.querySelector('iframe');
        return Math.abs(f.clientHeight - f.contentDocument.documentElement.offsetHeight) <= 1;
    })()""")
    wide = heights()
    page.set_viewport_size(dict(width=500, height=900))
    page.wait_for_function("before => document.querySelector('iframe').clientHeight !== before", arg=wide[0])
    assert abs(np.subtract(*heights())) <= 1
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_frame_is_light_or_dark_as_the_text_around_it(page, player, engine):
    ink_of = lambda frame: frame.evaluate("getComputedStyle(document.querySelector('.viewer, .molecule')).color")
    assert ink_of(open_player(page, player)) == "rgb(30, 41, 59)"
    assert ink_of(open_player(page, player, ground="#111", ink="#eee")) == "rgb(226, 232, 240)"
    card = bundle(Card(engine, "CCO"))["text/html"]
    for ink, visible, hidden in (("black", ".on-light", ".on-dark"), ("white", ".on-dark", ".on-light")):
        frame = open_outputs(page, card, ink=ink)
        assert frame.locator(f".molecule > {visible} svg").is_visible()
        assert frame.locator(f".molecule > {hidden} svg").is_hidden()


def test_names_stay_text(page, series):
    frame, treated = open_player(page, series), ".pair figure:nth-child(3) canvas"
    assert frame.locator(".cell").nth(1).text_content() == hostile and page.title() == frame.title() == ""
    assert frame.locator(".strip .alternative").count() == 2 and frame.locator("img").count() == 0
    before = pixels(frame, treated)
    frame.locator(".alternative").nth(1).click()
    assert not (pixels(frame, treated) == before).all()


def test_two_players_do_not_disturb_each_other(page, player, series):
    frame = open_outputs(page, bundle(player)["text/html"], bundle(series)["text/html"])
    frame.wait_for_selector(".strip .alternative")
    first = page.query_selector("iframe").content_frame()
    first.wait_for_selector(".cell")
    assert first.locator(".cell").count() == frame.locator(".cell").count() == 2
    assert first.locator(".alternative").count() == 0


class Fallback(HTMLParser):
    "What remains of an output where frames, scripts and styles are removed."
    def __init__(self): super().__init__(); self.remaining, self.inside = [], None

    def handle_starttag(self, tag, attrs):
        if tag in ("style", "script", "iframe"): self.inside = tag
        elif not self.inside: self.remaining.append((tag, dict(attrs).get("alt")))

    def handle_endtag(self, tag): self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        if not self.inside: self.remaining.append(("", data))


def test_where_frames_are_removed_a_still_image_remains(engine, player):
    (parser := Fallback()).feed(bundle(player)["text/html"])
    assert parser.remaining == [("div", None), ("img", "Player, 2 cells: taxol 0.3 µM, control")]
    (parser := Fallback()).feed(bundle(Card(engine, "CCO"))["text/html"])
    assert parser.remaining[:2] == [("div", None), ("p", None)] and parser.remaining[2][1].startswith("CCO: ")


# A notebook that is run

sources = ["""from mfm_app import ui
from mfm_app.display import Heatmaps, Player
from mfm_app.engine import load, request_from""",
           "player = Player(load(), request_from('taxol', seeds=(0, 1), steps=2)); player",
           "Heatmaps(player.answer)",
           "server = ui.launch(inline=True, prevent_thread_lock=True)",
           "import gradio\ngradio.close_all()"]


@pytest.fixture(scope="module")
def executed():
    "The outputs of a notebook's cells, each a list."
    from nbclient import NotebookClient
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=120, kernel_name="python3", store_widget_state=False).execute()
    return [cell.outputs for cell in notebook.cells]


def test_progress_is_one_line_that_disappears(executed):
    line, shown = executed[1]
    assert line.data["text/plain"] == "" and set(shown.data) == {"text/plain", "text/html", "image/jpeg"}


def test_heatmaps_are_three_outputs(executed):
    heading, maps, bars = executed[2]
    assert plotly in maps.data and "Effect of taxol" in heading.data["text/html"] and "<table" in bars.data["text/html"]


def test_the_page_opens_inside_a_notebook(executed):
    outputs = executed[3] + executed[4]
    shown = [o.data["text/html"] for o in outputs if o.output_type == "display_data"]
    assert len(shown) == 1 and re.search(r'<iframe src="http://127\.0\.0\.1:\d+/?"', shown[0])
    assert not [o for o in outputs if o.output_type == "error"]
    text = "".join(o.get("text", "") for o in outputs)
    for leak in ("Traceback", "site-packages", str(root)): assert leak not in text
