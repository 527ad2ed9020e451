"The page with a model of six channels: what is looked at, in which way, what of it travels, and what keeps it."
from dataclasses import replace

import numpy as np
import pytest
import torch
from controllable_net import ControllableNet

from mfm_app.data import name_channels
from mfm_app.engine import Engine
from mfm_app.finetune import random_model
from mfm_app.images import read_provenance
from mfm_app.permalink import channel_view
from mfm_app.simulator import synthetic_cells
from mfm_app.viz import composite, look_up, picture, rxrx1_picture
from mfm_app.vocabulary import default_shown

names = ["DNA", "ER", "Actin", "RNA", "Mito", "Golgi"]
seconds = 1000


@pytest.fixture(scope="module")
def engine(own_temporary):
    "A small engine of six channels with random weights."
    cells = synthetic_cells(6)
    images = np.concatenate([cells.images, np.roll(cells.images, 9, -1)], 1)
    model = random_model(replace(cells, images=images, channels=name_channels(names, untreated=images)[0]))
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(scope="module")
def answer(engine):
    "What the page generates here."
    return engine.generate("sweller", seeds=(0, 1), steps=2)


@pytest.fixture
def shown(page, address):
    "Opens an address and waits for its cells; `page.asked` counts what was asked for later."
    def shown(show=""):
        page.asked = []
        page.on("request", lambda r: page.asked.append(r) if "component_server" in r.url else None)
        page.goto(f"{address}?perturbation=sweller&cells=2&steps=2{show and f'&show={show}'}")
        page.wait_for_function("""() => document.querySelector('#viewer .provenance')?.textContent
            && document.querySelector('#viewer .where').textContent.includes('step 2 of 2')""", timeout=60 * seconds)
        settled(page)
        return page
    return shown


def settled(page):
    page.wait_for_function("!document.querySelector('#viewer .stage').hasAttribute('aria-busy')")


def pixels(page, at="#viewer .pair canvas", which=0):
    data = "c => [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    height, width, values = page.locator(at).nth(which).evaluate(data)
    return np.reshape(values, (height, width, 4))[..., :3]


def same(shown, expected): return np.abs(shown - expected.astype(int)).max() <= 1


def way(page, name): page.locator(f"#viewer .way input[value={name}]").check()
def channel(page, name): return page.locator("#viewer .channel", has=page.get_by_text(name, exact=True))
def code(page): return page.text_content("#share pre")


def test_three_channels_are_shown_and_only_they_travel(shown, answer, engine):
    page, three = shown(), default_shown(engine.model.channels)
    boxes = page.locator("#viewer .channel input[type=checkbox]")
    on = [name for name, box in zip(names, boxes.all()) if box.is_checked()]
    assert on == three and three[:2] == ["DNA", "Actin"] and len(three) == 3 and not page.asked
    assert same(pixels(page), composite(answer.images[0], engine.model.channels)) and "show=" not in page.url
    fourth = next(name for name in names if name not in on)
    channel(page, fourth).get_by_role("checkbox").check()
    settled(page)
    four = [name for name in names if name in [*on, fourth]]
    assert same(pixels(page), composite(answer.images[0], engine.model.channels, four)) and len(page.asked) == 1
    assert "has the mean of those" in page.inner_text("#viewer .way")
    channel(page, fourth).get_by_role("checkbox").uncheck()
    channel(page, fourth).get_by_role("checkbox").check()
    page.locator("#viewer .scrub").press("Home")
    settled(page)
    with_four = pixels(page)
    channel(page, fourth).get_by_role("checkbox").uncheck()
    assert (pixels(page) != with_four).any()      # of the first step, too, the fourth was there
    assert len(page.asked) == 1      # nothing is sent twice


def test_colours_are_chosen_by_name_and_stand_in_address_code_and_png(shown, answer, engine):
    page = shown()
    page.get_by_label("DNA: colour").select_option("magenta")
    page.get_by_label("Actin: grey level shown as full colour").fill("120")
    view = dict(shown=default_shown(engine.model.channels), contrast={"Actin": (0, 120)}, colours={"DNA": "magenta"})
    expected = composite(answer.images[0], engine.model.channels, **view)
    assert same(pixels(page), expected) and "show=DNA%40magenta%2CActin%3A0-120" in page.url
    assert 'contrast={"Actin": (0, 120)}, colours={"DNA": "magenta"}' in code(page)
    with page.expect_download() as download: page.click("#export-png")
    assert read_provenance(download.value.path())["colours"] == {"DNA": "magenta"}
    url = page.url
    page.reload()
    page.wait_for_function("document.querySelector('#viewer .provenance')?.textContent", timeout=60 * seconds)
    settled(page)
    assert page.url == url and same(pixels(page), expected)
    page.get_by_text("Reset contrast").click()
    assert "show=" not in page.url and same(pixels(page), composite(answer.images[0], engine.model.channels))


def test_one_channel_alone_by_the_keyboard(shown, answer, engine):
    page = shown()
    page.locator("#viewer .way input[value=composite]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer .way input[value=one]").is_checked()
    assert same(pixels(page), look_up(answer.images[0, 0]))
    channel(page, "DNA").get_by_role("radio").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_label("Table of colours").select_option("viridis")
    page.get_by_label("ER: grey level shown as full colour").fill("200")
    settled(page)
    expected = picture(answer.images[0], engine.model.channels, one="ER", table="viridis", contrast={"ER": (0, 200)})
    assert same(pixels(page), expected) and "show=%3Bone%3AER%3A0-200%3Bviridis" in page.url
    assert 'one="ER", table="viridis", contrast={"ER": (0, 200)}' in code(page)
    with page.expect_download() as download: page.click("#export-png")
    assert read_provenance(download.value.path())["one"] == "ER"


def test_all_channels_stand_side_by_side_with_one_contrast(shown, answer):
    page = shown(";grid:0-180;magma")
    assert page.locator("#viewer .pair canvas").count() == 12 and len(page.asked) >= 1
    for group, images in enumerate((answer.images, answer.control)):
        for i in range(6):
            assert same(pixels(page, which=6 * group + i), look_up(images[0, i], "magma", (0, 180)))
    labels = page.locator("#viewer .pair canvas").evaluate_all("all => all.map(c => c.ariaLabel)")
    assert labels[1].startswith("ER: sweller") and labels[6].startswith("DNA: DMSO")
    page.get_by_label("All channels: grey level shown as full colour").fill("90")
    assert same(pixels(page, which=5), look_up(answer.images[0, 5], "magma", (0, 90)))
    assert 'grid=(0, 90), table="magma"' in code(page)
    with page.expect_download() as download: page.click("#export-png")
    assert read_provenance(download.value.path())["grid"] == [0, 90]
    way(page, "composite")
    assert page.locator("#viewer .pair canvas").count() == 2


def test_six_channels_in_the_colours_of_rxrx1(shown, answer):
    page = shown(";rxrx1")
    assert (pixels(page) == rxrx1_picture(answer.images[0])).all() and "rxrx1=True" in code(page)
    assert not page.get_by_label("DNA: colour").is_visible()


def test_the_noisy_states_come_when_they_are_looked_at(shown):
    page = shown()
    page.locator("#viewer .scrub").press("Home")
    before = pixels(page)
    page.get_by_text("Noisy state").click()
    settled(page)
    page.wait_for_function("""before => document.querySelector('#viewer .pair canvas').getContext('2d')
        .getImageData(0, 0, 1, 1).data.slice(0, 3).join() !== before.join()""", arg=before[0, 0].tolist())
    assert len(page.asked) == 1


def test_what_is_no_longer_kept_is_said(shown, monkeypatch):
    from mfm_app import ui_parts
    page = shown()
    for reel in list(ui_parts.reels.values()): reel.clear()
    page.locator("#viewer .channel input[type=checkbox]").nth(1).check()
    settled(page)
    assert "ER of this step is not kept" in page.inner_text("#viewer .where")


@pytest.mark.parametrize("show, sentence", [
    (";one:Nothing", "show names a channel 'Nothing'"), ("DNA@bleu", "The colour of a channel is"),
    (";grid;jet", "A table of colours is"), (";everything", "show has channels"), (";grid:9-3", "two grey levels")])
def test_an_address_that_asks_for_the_impossible_gets_a_sentence(page, address, show, sentence):
    page.goto(f"{address}?perturbation=sweller&show={show}")
    page.wait_for_function("text => document.querySelector('#status')?.innerText.includes(text)", arg=sentence,
                           timeout=60 * seconds)
    assert channel_view("", names) == {}


@pytest.mark.parametrize("width, scheme", [(360, "dark"), (1920, "light")])
def test_the_controls_fit_any_page(page, shown, width, scheme):
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    page = shown(";grid")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside = page.locator("#viewer .tiles > div, #viewer .way > *:visible").evaluate_all(
        "all => all.map(e => [e.getBoundingClientRect().right, e.closest('.viewer').getBoundingClientRect().right])")
    assert all(right <= edge + 1 for right, edge in inside)
    ink, ground = page.locator("#viewer select:visible").evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
    assert ink != ground
