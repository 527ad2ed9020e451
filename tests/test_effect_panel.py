"Heatmaps of an effect and bars of a profile: the figures on known numbers, and the panel in a real browser."
import json

import gradio as gr
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from mfm_app.core import InputError
from mfm_app.display import static
from mfm_app.ui_parts import effect_panel
from mfm_app.viz import effect_limit, effect_maps, effect_picture, profile_bars

channels = [dict(name=name, colour="white") for name in ("DNA", "Actin", "Tubulin")]
names = lambda n: [dict(name=f"channel {i}", colour="white") for i in range(n)]


def simulated_effect(seed=0):
    "A bright ring in the first channel, a fading disc in the second, nothing in the third; the significant pixels."
    y, x = np.mgrid[:64, :64] - 31.5
    ring, disc = 40 * np.exp(-((np.hypot(x, y) - 20) / 4) ** 2), -8 * np.exp(-(np.hypot(x, y) / 20) ** 2)
    effect = np.stack([ring, disc, 0 * x]).astype(np.float32)
    effect += np.random.default_rng(seed).normal(0, .5, effect.shape).astype(np.float32)
    effect[1, 10, 20] = 25.04
    return effect, np.abs(effect) > 2


def table(**columns):
    measured = dict(effect=[.2, -1.4, 2.1, -.9], low=[-.3, -1.9, 1.6, -1.3], high=[.7, -.9, 2.6, -.5],
                    p_adjusted=[.6, .002, 1e-6, .049], p=[.5, .001, 1e-7, .02], significant=[False, True, True, True],
                    treated=[81., .25, 12., 3.])
    features = ["DNA_Tubulin_correlation", "Tubulin_sharpness", "DNA_mean", "Actin_glcm_contrast_4"]
    return pd.DataFrame(measured | columns, index=features)


def axes(figure, letter):
    return [axis for key, axis in figure.to_plotly_json()["layout"].items() if key.startswith(f"{letter}axis")]


# The figures

def test_all_channels_share_one_scale_with_no_change_in_its_middle():
    effect, _ = simulated_effect()
    figure = effect_maps(effect, channels)
    assert [trace.name for trace in figure.data] == ["DNA", "Actin", "Tubulin"]
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    scale = figure.layout.coloraxis
    assert scale.cmax == -scale.cmin == effect_limit(effect) == pytest.approx(np.quantile(np.abs(effect), .995))
    blue, red = "rgb(5,48,97)", "rgb(103,0,31)"
    assert scale.colorscale[0][1] == blue and scale.colorscale[-1][1] == red
    assert scale.colorbar.title.text == "change, grey levels"


def test_the_colour_scale_never_ends_below_one_grey_level():
    assert effect_limit(np.zeros((3, 8, 8))) == effect_limit(np.full((1, 8, 8), .3)) == 1
    assert effect_limit(np.append(np.full(999, -20.), 255.)) == 20


def test_pixels_are_square_and_rows_run_downwards():
    figure = effect_maps(np.zeros((3, 16, 24), np.float32), channels)
    for x, y in zip(axes(figure, "x"), axes(figure, "y")):
        assert x["range"] == [-.5, 23.5] and y["range"] == [15.5, -.5]
        assert y["scaleanchor"] == "x" and not x["showticklabels"]
    assert [x["title"]["text"] for x in axes(figure, "x")] == ["DNA", "Actin", "Tubulin"]


@given(data=st.data(), shape=st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)))
def test_every_pixel_is_in_one_layer_which_is_significant_or_not(data, shape):
    effect = data.draw(arrays(np.float32, shape, elements=st.floats(-255, 255, width=32)))
    significant = data.draw(arrays(bool, shape))
    figure = effect_maps(effect, names(shape[0]), significant)
    grid = figure.layout.grid
    assert grid.columns <= 4 and grid.rows * grid.columns >= shape[0] > (grid.rows - 1) * grid.columns
    assert len(axes(figure, "x")) == shape[0]
    for i in range(shape[0]):
        below, above = figure.data[2 * i:2 * i + 2]
        assert below.xaxis == above.xaxis == f"x{i + 1}".removesuffix("1" * (i == 0))
        assert below.hovertemplate.count("not significant") == 1 and "not" not in above.hovertemplate
        assert (np.isfinite(above.z) == significant[i]).all() and (np.isfinite(below.z) == ~significant[i]).all()
        assert (np.where(significant[i], above.z, below.z) == effect[i]).all()
        assert above.meta == dict(significant=True, share=pytest.approx(significant[i].mean(), abs=1e-4))


def test_a_figure_is_small_when_sent():
    effect, significant = simulated_effect()
    assert len(effect_maps(effect, channels).to_json()) < 100_000
    assert len(effect_maps(effect, channels, significant).to_json()) < 250_000


@pytest.mark.parametrize("effect,significant", [(np.zeros((2, 8, 8)), None), (np.zeros((3, 8)), None),
                                                (np.zeros((3, 0, 8)), None), (np.full((3, 8, 8), np.nan), None),
                                                (np.zeros((3, 8, 8)), np.zeros((3, 8, 9), bool))])
def test_effects_that_do_not_fit_are_refused(ask, effect, significant):
    assert isinstance(ask(effect_maps, effect, channels, significant), InputError)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_picture_of_the_maps_is_red_where_intensity_is_higher(n):
    effect = np.zeros((n, 32, 32), np.float32)
    effect[0, 8:24, 8:24] = 50
    picture = np.asarray(effect_picture(effect, names(n))).astype(int)
    assert picture.ndim == 3 and (picture[0, 0] == 255).all()
    red = (picture[..., 0] > 90) & (picture[..., 1] < 20) & (picture[..., 2] < 45)
    y, x = np.nonzero(red[:, :picture.shape[1] // min(n, 3)])
    assert len(y) and np.ptp(y) == pytest.approx(np.ptp(x), rel=.3)


def test_the_longest_bar_is_first_and_only_significant_ones_are_coloured():
    figure = profile_bars(table())
    bars = figure.data[0]
    assert bars.y == ("DNA mean", "Tubulin sharpness", "Actin texture contrast at 4 px", "DNA Tubulin correlation")
    assert bars.x == (2.1, -1.4, -.9, .2)
    assert bars.customdata == (True, True, True, False)
    red, blue, also_blue, pale = bars.marker.color
    assert blue == also_blue and len({red, blue, pale}) == 3 and pale.startswith("rgba(128,128,128")
    assert bars.error_x.array == pytest.approx([.5] * 2 + [.4, .5])
    assert bars.error_x.arrayminus == pytest.approx([.5] * 2 + [.4, .5])
    assert figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.xaxis.title.text == "effect size, standard deviations of the untreated"


def test_the_hover_text_of_a_bar_has_all_its_numbers():
    lines = ["<b>Tubulin sharpness</b>", "effect −1.40 standard deviations", "95 % interval −1.90 to −0.90",
             "adjusted p 0.002", "p 0.001", "mean treated 0.25"]
    assert profile_bars(table()).data[0].hovertext[1] == "<br>".join(lines)


def test_one_cell_has_no_intervals():
    nothing = [np.nan] * 4
    bars = profile_bars(table(low=nothing, high=nothing, p_adjusted=nothing)).data[0]
    assert np.isnan(bars.error_x.array).all() and not any(bars.customdata)
    assert bars.hovertext[0] == "<b>DNA mean</b><br>effect +2.10 standard deviations<br>p 1e-07<br>mean treated 12"


@given(effects=st.lists(st.floats(width=32), max_size=60), limit=st.integers(1, 30))
def test_a_long_profile_is_cut_to_the_largest_effects(effects, limit):
    n = len(effects)
    columns = dict(effect=effects, low=effects, high=effects, p_adjusted=[.5] * n)
    bars = profile_bars(pd.DataFrame(columns, index=[f"DNA_{i}" for i in range(n)], dtype=float), limit).data[0]
    sizes = sorted((abs(e) for e in effects if np.isfinite(e)), reverse=True)[:limit]
    assert np.abs(bars.x).tolist() == pytest.approx(sizes, abs=1e-4) and len(set(bars.y)) == len(sizes)


def test_a_profile_without_the_needed_columns_is_refused(ask):
    error = ask(profile_bars, table().drop(columns=["low", "p_adjusted"]))
    assert isinstance(error, InputError) and str(error).endswith("; low, p_adjusted are missing.")


# The panel

def as_json(figure): return json.loads(figure.to_json())


def value(seed=0, known=True, **more):
    "What the panel is given: the effect of a seed, whose significance is known or not, and its profile."
    effect, significant = simulated_effect(seed)
    maps = effect_maps(effect * (1 + seed), channels, significant if known else None)
    fields = dict(title=f"swelling {seed}", note="Mean over 16 cells.", maps=as_json(maps))
    return json.dumps(fields | dict(bars=as_json(profile_bars(table()))) | more)


nothing = [np.nan] * 4
effect, _ = simulated_effect()
six_channels = as_json(effect_maps(np.concatenate([effect, effect]), names(6)))
without_intervals = as_json(profile_bars(table(low=nothing, high=nothing)))
values = dict(first=value(), second=value(1, than="before"), few=value(known=False), maps=value(bars=None),
              single=value(known=False, bars=without_intervals), many=value(title="six", maps=six_channels),
              stale=json.dumps(dict(stale=True)), none="")


@pytest.fixture(scope="module")
def panel():
    "The address of a page with the panel alone, in the second of two tabs, and a button for each value."
    with gr.Blocks(analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(): buttons = {name: gr.Button(name, elem_id=name, min_width=60) for name in values}
        with gr.Tab("Other"): gr.Markdown("nothing here")
        with gr.Tab("Effect"): shown = effect_panel("Press Generate.", elem_id="effects")
        for name, button in buttons.items():
            button.click(lambda name=name: values[name], None, shown, show_progress="hidden", api_visibility="private")
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, js=(static / "page.js").read_text(encoding="utf-8"))
    yield url
    blocks.close()


def open_panel(page, address):
    page.goto(address)
    page.get_by_role("tab", name="Effect").click()
    page.wait_for_selector("#effects .hint:visible")
    return page


@pytest.fixture
def effects(lent, panel):
    "The empty panel, on a page that the tests share."
    with lent("effects", lambda page: open_panel(page, panel)) as page:
        page.set_viewport_size(dict(width=1280, height=900))
        page.mouse.move(0, 0)
        show(page, "first")
        page.get_by_label("Significant pixels only").uncheck()
        page.click("#none")
        page.wait_for_selector("#effects .hint:visible")
        yield page


def wait_for_maps(page):
    page.wait_for_function("document.querySelectorAll('#effects .maps .hm image').length >= 2")


def show(page, name, title=None):
    page.click(f"#{name}")
    title = title or json.loads(values[name])["title"]
    page.wait_for_function("title => document.querySelector('#effects h3')?.textContent === title", arg=title)
    wait_for_maps(page)
    page.wait_for_timeout(200)


def layers(page):
    "How many layers are visible."
    return page.evaluate("""[...document.querySelectorAll('#effects .maps .hm image')]
        .filter(e => getComputedStyle(e).opacity > 0).length""")


def width(page, selector):
    return page.evaluate("at => document.querySelector(at)?.getBoundingClientRect().width ?? 0", selector)


def hover_text(page, channel, x, y):
    "Move the mouse to a pixel of a map; the label there."
    at = page.evaluate("""([channel, x, y]) => {
        const plot = document.querySelector('#effects .maps .plot'), box = plot.getBoundingClientRect();
        const number = channel ? channel + 1 : '';
        const across = plot._fullLayout[`xaxis${number}`], down = plot._fullLayout[`yaxis${number}`];
        return [box.x + across._offset + across.d2p(x), box.y + down._offset + down.d2p(y)];
    }""", [channel, x, y])
    page.mouse.move(at[0] - 20, at[1])
    page.mouse.move(*at, steps=2)
    page.wait_for_function("document.querySelector('#effects .hoverlayer .hovertext')")
    page.wait_for_timeout(150)
    return page.locator("#effects .maps .hoverlayer .hovertext").text_content()


def map_sizes(page):
    "Width and height of each map, pixels."
    return page.evaluate("""[...document.querySelectorAll('#effects .maps .nsewdrag')]
        .map(e => e.getBoundingClientRect()).map(box => [box.width, box.height])""")


def test_an_empty_panel_says_how_to_fill_it(effects):
    assert effects.locator("#effects .hint").inner_text() == "Press Generate."
    assert effects.locator("#effects .stage").is_hidden()
    effects.wait_for_function("window.Plotly")      # loaded before it is needed


def test_maps_and_bars_are_drawn_and_described(effects):
    show(effects, "first")
    assert layers(effects) == 5 and effects.locator("#effects .hint").is_hidden()
    assert effects.locator("#effects .note").inner_text() == "Mean over 16 cells."
    described = lambda text: effects.get_by_role("img", name=text).is_visible()
    assert described("Heatmaps of the change in DNA, Actin, Tubulin. "
                     "Red is higher intensity than untreated, blue is lower.")
    assert described("Effect sizes, the largest first: DNA mean 2.1, Tubulin sharpness -1.4")
    assert effects.locator("#effects .profile path.xerror").count() == 4
    assert all(w == pytest.approx(h, abs=1) and w > 200 for w, h in map_sizes(effects))


def test_the_label_of_a_pixel_has_its_place_its_change_and_its_significance(effects):
    show(effects, "first")
    assert hover_text(effects, 1, 20, 10) == "Actin, pixel (20, 10)+25.0 grey levels, significant"
    assert "grey levels, not significant" in hover_text(effects, 2, 5, 60)
    show(effects, "few")
    assert hover_text(effects, 1, 20, 10).endswith("+25.0 grey levels")


def test_the_switch_hides_other_pixels_without_a_request_to_the_server(effects):
    show(effects, "first")
    requests = []
    effects.on("request", lambda request: requests.append(request.url))
    switch = effects.get_by_label("Significant pixels only")
    assert "% of all" in effects.locator("#effects .why").inner_text()
    assert effects.locator("#effects .unsure").is_hidden()
    switch.focus()
    effects.keyboard.press("Space")
    effects.wait_for_timeout(200)
    assert layers(effects) == 2 and switch.is_checked() and effects.locator("#effects .unsure").is_visible()
    assert hover_text(effects, 1, 20, 10).endswith(", significant")
    assert hover_text(effects, 2, 5, 60).endswith("not significant") and not requests
    show(effects, "second")      # keeps the switch
    assert layers(effects) == 2
    switch.uncheck()
    effects.wait_for_timeout(200)
    assert layers(effects) == 5


@pytest.mark.parametrize("name", ["few", "single"])
def test_with_too_few_cells_the_switch_says_why_it_is_off(effects, name):
    show(effects, "first")
    effects.get_by_label("Significant pixels only").check()
    show(effects, name)
    switch = effects.get_by_label("Significant pixels only")
    assert switch.is_disabled() and not switch.is_checked() and layers(effects) == 3
    assert effects.locator("#effects .why").inner_text() == "A test needs at least 6 cells."
    assert effects.locator("#effects .profile path.xerror").count() == (0 if name == "single" else 4)


def test_another_value_is_drawn_in_place(effects):
    show(effects, "first")
    effects.evaluate("document.querySelector('#effects .maps .main-svg').dataset.mine = 'still here'")
    show(effects, "second")
    assert effects.evaluate("document.querySelector('#effects .maps .main-svg').dataset.mine") == "still here"
    assert "than before" in effects.locator("#effects .maps figcaption").inner_text()
    assert hover_text(effects, 1, 20, 10).startswith("Actin, pixel (20, 10)+50.1")
    show(effects, "many")
    sides = [side for size in map_sizes(effects) for side in size]
    assert len(sides) == 12 and sides == pytest.approx([sides[0]] * 12, abs=1) and sides[0] > 250
    show(effects, "maps", "swelling 0")
    assert effects.locator("#effects .profile").is_hidden()
    show(effects, "second")
    whole = width(effects, "#effects .profile")
    assert width(effects, "#effects .profile .main-svg") == pytest.approx(whole, abs=2)
    effects.click("#none")
    effects.wait_for_selector("#effects .hint:visible")
    assert effects.locator("#effects .stage").is_hidden()
    show(effects, "first")


def test_effects_are_marked_as_stale_until_new_ones_are_shown(effects):
    show(effects, "first")
    effects.click("#stale")
    effects.wait_for_selector("#effects .stale:visible")
    assert layers(effects) == 5
    show(effects, "second")
    assert effects.locator("#effects .stale").is_hidden()
    effects.click("#none")
    effects.wait_for_selector("#effects .hint:visible")
    effects.click("#stale")      # with nothing shown nothing is stale
    effects.wait_for_timeout(400)
    assert effects.locator("#effects .hint").is_visible()


@pytest.mark.parametrize("opened_before", [False, True])
def test_drawn_or_resized_in_a_hidden_tab_it_has_the_right_size_when_the_tab_opens(page, panel, opened_before):
    page.goto(panel)
    if opened_before:
        page.get_by_role("tab", name="Effect").click()
        page.wait_for_selector("#effects .hint:visible")
        page.get_by_role("tab", name="Other").click()
    page.click("#first")
    page.wait_for_timeout(600)
    page.get_by_role("tab", name="Effect").click()
    wait_for_maps(page)
    fits = """['maps', 'profile'].every(at => {
        const plot = document.querySelector(`#effects .${at} .plot`);
        const wide = plot.querySelector('.main-svg')?.getBoundingClientRect().width ?? 0;
        return wide > .9 * Math.min(plot.clientWidth, 1048) && wide <= plot.clientWidth;
    })"""
    page.wait_for_function(fits)
    before = width(page, "#effects .profile .main-svg")
    page.get_by_role("tab", name="Other").click()
    page.set_viewport_size(dict(width=760, height=900))
    page.wait_for_timeout(300)
    page.get_by_role("tab", name="Effect").click()
    page.wait_for_function("""before => document.querySelector('#effects .profile .main-svg')
        .getBoundingClientRect().width < before - 100""", arg=before)
    page.wait_for_function(fits)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert width(page, "#effects .maps .main-svg") < 760


def test_maps_and_bars_are_side_by_side_on_a_wide_page_and_stacked_on_a_narrow_one(effects):
    effects.set_viewport_size(dict(width=1400, height=900))
    show(effects, "first")
    tops = lambda: [effects.locator(f"#effects .{at}").bounding_box()["y"] for at in ("maps", "profile")]
    assert tops()[0] == tops()[1]
    effects.set_viewport_size(dict(width=1000, height=900))
    effects.wait_for_timeout(400)
    assert tops()[0] < tops()[1] - 200


def test_the_mouse_over_the_maps_scrolls_the_page_and_enlarges_only_in_that_mode(page, panel):
    effects = open_panel(page, panel)
    effects.set_viewport_size(dict(width=1000, height=500))
    show(effects, "first")
    ranges = lambda: effects.evaluate("""['xaxis', 'xaxis2', 'xaxis3'].map(
        axis => document.querySelector('#effects .maps .plot')._fullLayout[axis].range.map(Math.round))""")
    box = effects.locator("#effects .maps .nsewdrag").first.bounding_box()
    def drag():
        effects.mouse.move(box["x"] + 40, box["y"] + 40)
        effects.mouse.down()
        effects.mouse.move(box["x"] + 120, box["y"] + 120, steps=4)
        effects.mouse.up()
        effects.wait_for_timeout(300)
    drag()
    whole = ranges()
    assert whole[0][1] - whole[0][0] > 60
    effects.get_by_role("button", name="Enlarge a part: drag a box").click()
    drag()
    part = ranges()
    assert part[0] == part[1] == part[2] and part[0][1] - part[0][0] < 40      # all channels show the same part
    effects.get_by_role("button", name="Reset axes").click()
    effects.wait_for_timeout(300)
    assert ranges() == whole
    effects.mouse.move(box["x"] + 60, box["y"] + 60)
    effects.mouse.wheel(0, 200)
    effects.wait_for_function("window.scrollY > 100")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_letters_are_dark_on_light_and_light_on_dark(page, panel, theme):
    open_panel(page, f"{panel}?__theme={theme}")
    show(page, "first")
    texts = ", ".join(f"#effects {at}" for at in (".maps .xtitle", ".profile .ytick text", ".cbaxis text", "h3"))
    brightness = page.evaluate("""texts => [...document.querySelectorAll(texts)].map(e => {
        const style = getComputedStyle(e), colour = e.tagName === 'H3' ? style.color : style.fill;
        return colour.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3;
    })""", texts)
    assert len(brightness) > 8 and (min(brightness) > 180 if theme == "dark" else max(brightness) < 90)
    background = page.evaluate("document.querySelector('#effects .maps .main-svg').style.background")
    assert background in ("rgba(0, 0, 0, 0)", "transparent")
