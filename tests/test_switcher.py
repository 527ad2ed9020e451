"Several models on one page: names and addresses, links from one to the other, an address for programs each, a Space."
import asyncio
import json
import os
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from conftest import many
from gradio_client import Client
from hypothesis import given
from hypothesis import strategies as st

from mfm_app import cli, ui
from mfm_app.core import InputError
from mfm_app.engine import Engine, address_names, load_all
from mfm_app.finetune import random_model
from mfm_app.hub import Model, bundled, from_pretrained, save_model
from mfm_app.permalink import View, find_model, read_query, resolve_view, write_query
from mfm_app.simulator import synthetic_cells
from mfm_app.space import write_space
from mfm_app.ui_parts import static_folder, view_of_address

seconds = 1000     # Playwright counts in milliseconds


# Names

of_folder, of_hub = Model(None, {}, "", "model"), Model(None, {}, "", "cells", source="lab/cells", revision="1a2b")
part = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="/\\:"), min_size=1, max_size=8)
part = part.map(str.strip).filter(lambda name: name not in ("", ".", ".."))
folders = st.lists(st.lists(part | st.sampled_from(["model", "runs"]), min_size=1, max_size=4).map("/".join),
                   min_size=1, max_size=6, unique=True)


@pytest.mark.parametrize("given, names", [
    (["runs/a"], ["a"]), ([None, "runs/a/model"], ["bbbc021", "model"]),
    (["runs/a/model", "runs/b/model"], ["a/model", "b/model"]),
    (["a/x/model", "b/x/model", "y"], ["a/x/model", "b/x/model", "y"]),
    (["runs/a/../b/"], ["b"])])
def test_a_folder_is_called_by_its_name_and_what_tells_equal_ones_apart(given, names):
    assert address_names(given, [of_folder] * len(given)) == names


def test_a_repository_is_called_by_its_id_and_two_revisions_of_it_by_theirs():
    assert address_names(["lab/cells", "cells"], [of_hub, of_folder]) == ["lab/cells", "cells"]
    assert address_names(["lab/cells@v1"], [of_hub]) == ["lab/cells"]
    assert address_names(["lab/cells@v1", "lab/cells@v2"], [of_hub] * 2) == ["lab/cells@v1", "lab/cells@v2"]


@many(40)
@given(folders)
def test_any_folders_have_names_of_their_own_that_end_their_paths(given):
    names = address_names(given, [of_folder] * len(given))
    assert len(set(names)) == len(given)
    for name, path in zip(names, given): assert f"{Path(os.path.abspath(path)).as_posix()}".endswith(f"/{name}")
    shortest = [name.split("/", 1)[-1] for name in names]
    for name, short in zip(names, shortest):      # not one folder more than is needed
        assert name == short or sum(f"/{n}".endswith(f"/{short}") for n in names) > 1


@many(40)
@given(folders, part)
def test_a_model_is_found_by_its_name_or_its_end_and_nothing_else(ask, given, other):
    names = address_names(given, [of_folder] * len(given))
    assert [find_model(name, names) for name in names] == names
    for name in names: assert find_model(f"above/{name}", [name]) == name      # a link of a server with more of them
    for asked in (other, names[0].split("/")[-1]):
        found, alike = ask(find_model, asked, names), [name for name in names if f"/{name}".endswith(f"/{asked}")]
        if asked in names or len(alike) == 1: assert found == (asked if asked in names else alike[0])
        else: assert str(found).startswith(str(InputError(f"In the address, model must be {names[0]}"))[:60])


# Addresses

@given(st.sampled_from(["explore", "screen", "about"]), st.none() | st.text(min_size=1, max_size=20))
def test_a_model_comes_back_from_the_address_of_a_view(tab, model):
    view = View(tab, {}, model)
    assert read_query({k: v for k, (v,) in parse_qs(write_query(view)[1:], keep_blank_values=True).items()}) == view


def test_who_serves_one_model_opens_its_links_and_refuses_those_of_another(ask):
    engine = Engine(random_model(), "cpu", torch.float32)      # named "drawn"
    for name in ("drawn", "runs/drawn"):
        assert resolve_view(engine, read_query(dict(model=name, perturbation="sweller"))).fields["cells"] == 16
        assert view_of_address(engine, "explore", dict(model=name)) is None
    refused = ask(resolve_view, engine, read_query(dict(model="other", perturbation="sweller")))
    assert str(refused) == "In the address, model must be drawn, not 'other'."


names = "drawn", "a/model", "b/model", "v1.2 µ"
router = ui.ModelRouter(None, dict.fromkeys(names))


@many(60)
@given(st.sampled_from(["", "/", "/config", "/gradio_api/queue/join"]), st.none() | st.sampled_from(names),
       st.none() | st.sampled_from(names), st.text(max_size=8))
def test_a_page_is_found_by_its_path_or_where_it_stands_by_the_query(rest, by_path, by_query, more):
    path = (f"/models/{by_path}" if by_path else "") + rest
    query = urlencode(dict(model=by_query, more=more) if by_query else dict(more=more))
    is_page = rest == "/" or not rest and not by_path
    name, left = router.route(path, query)
    assert name == (by_query if is_page and by_query else by_path)
    assert left == ("/" if is_page and by_query else rest)


# Two small models

@pytest.fixture(scope="module")
def models():
    "Two small models: of four channels one, of three the other."
    cells = synthetic_cells(8)
    more = replace(cells, images=np.concatenate([cells.images, cells.images[:, :1]], 1),
                   channels=[*cells.channels, dict(name="Golgi", colour="yellow")])
    return random_model(), random_model(more)


@pytest.fixture(scope="module")
def engines(own_temporary, models):
    return dict(zip(("drawn", "lab/other <b>"), (Engine(m, "cpu", torch.float32) for m in models)))


@pytest.fixture(scope="module")
def address(engines):
    _, url, _ = ui.launch(engines, prevent_thread_lock=True, quiet=True, mcp_server=True)
    yield url
    gr.close_all()


first, second = "drawn", "lab/other <b>"
own_path = "models/" + quote(second)


def test_health_lists_the_models_and_their_paths(address, engines):
    status = httpx.get(f"{address}health").json()
    assert status["status"] == "ok" and status["model"] == first
    assert [m["name"] for m in status["models"]] == [first, second]
    for m in status["models"]: assert httpx.get(f"{address}{m['path'][1:]}config").status_code == 200


def test_one_dead_scheduler_is_bad_health_and_named(address, engines, monkeypatch):
    class Dead:
        def is_alive(self): return False
    monkeypatch.setattr(engines[second].scheduler, "thread", Dead())
    answer = httpx.get(f"{address}health")
    assert answer.status_code == 503 and [m["status"] for m in answer.json()["models"]] == ["ok", "down"]


def test_programs_find_the_first_model_where_it_was_and_each_by_its_path(address, engines):
    asked = {"": first, "models/drawn": first, f"{own_path}/": second, own_path: second}
    for path, name in asked.items():
        client = Client(address + path, verbose=False)
        facts = client.predict(api_name="/vocabulary")
        assert facts["model"] == name and len(facts["channels"]) == (4 if name == second else 3)
    *_, (facts, file) = client.submit(perturbation="sweller", seeds=[0], steps=2, file="NPZ", api_name="/generate")
    assert facts["provenance"]["model"] == second
    with np.load(file) as arrays: assert arrays["control"].shape[1] == 4
    named = lambda at: {endpoint: [p["parameter_name"] for p in described["parameters"]] for endpoint, described in
                        httpx.get(f"{address}{at}gradio_api/info").json()["named_endpoints"].items()}
    assert named("") == named(f"{own_path}/") and "/generate" in named("")


def test_files_that_another_model_makes_are_fetched_from_its_own_address(address):
    base = f"{address}{own_path}/gradio_api/call"
    sent = httpx.post(f"{base}/v2/generate", json=dict(perturbation="sweller", seeds=[0], steps=1))
    text = httpx.get(f"{base}/generate/{sent.json()['event_id']}", timeout=60).text
    facts, file = json.loads(text.split("event: complete\ndata: ")[1])
    assert file["url"].startswith(f"{address}{own_path}/") and httpx.get(file["url"]).content.startswith(b"\x89PNG")


def test_language_models_find_the_tools_of_each(address):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client
    async def ask(path):
        async with (streamable_http_client(f"{address}{path}gradio_api/mcp/") as (read, write, _),
                    ClientSession(read, write) as session):
            await session.initialize()
            return (await session.call_tool("vocabulary", {})).content[0].text
    assert second in asyncio.run(ask(f"{own_path}/")) and second not in asyncio.run(ask(""))


def test_no_file_and_no_endless_body_passes_by_another_path(address):
    root = Path(__file__).resolve().parent.parent
    for base in (address, f"{address}{own_path}/"):
        for path in ("/etc/passwd", root / "settings.ini", f"{static_folder()}/../settings.ini", "http://a.example/x"):
            assert httpx.get(f"{base}gradio_api/file={path}").status_code in (403, 404)
        assert httpx.get(f"{base}gradio_api/file={static_folder()}/ketcher.html").status_code == 200
        large = (b"x" * 10**6 for _ in range(155))
        answer = httpx.post(f"{base}gradio_api/call/v2/molecule", content=large, timeout=60)
        assert answer.status_code == 413
        config = httpx.get(f"{base}config").json()
        assert config["analytics_enabled"] is False and httpx.get(f"{base}monitoring").status_code >= 400


def test_a_path_of_no_model_is_answered_with_those_there_are(address):
    answer = httpx.get(f"{address}models/nothing/config")
    assert answer.status_code == 404 and answer.text == f"There is no such model here; there are {first}, {second}."
    answer = httpx.get(f"{address}{own_path}?perturbation=sweller")      # its page, without the last slash
    assert answer.status_code == 307
    assert str(answer.next_request.url) == f"{address}{own_path}/?perturbation=sweller"


def test_two_models_generate_at_once_and_both_answer(engines):
    answers, start = {}, time.monotonic()
    def ask(name, i): answers[name, i] = engines[name].generate("sweller", seeds=range(4), steps=4)
    threads = [threading.Thread(target=ask, args=(name, i)) for i in range(3) for name in engines]
    for thread in threads: thread.start()
    for thread in threads: thread.join(120)
    assert len(answers) == 6 and time.monotonic() - start < 100
    for (name, _), answer in answers.items(): assert answer.images.shape[1] == (4 if name == second else 3)


def test_behind_a_prefix_each_model_has_its_own_addresses(engines, monkeypatch):
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/lab/page")
    app, url, _ = ui.launch(engines, prevent_thread_lock=True, quiet=True)
    for prefix in ("", "lab/page/"):      # whether the proxy removes it or not
        assert httpx.get(f"{url}{prefix}{own_path}/config").json()["root"] == f"{url}lab/page/{own_path}"
        assert httpx.get(f"{url}{prefix}config").json()["root"] == f"{url}lab/page"
    forwarded = {"X-Forwarded-Host": "cells.example", "X-Forwarded-Proto": "https"}
    root = httpx.get(f"{url}{own_path}/config", headers=forwarded).json()["root"]
    assert root == f"https://cells.example/lab/page/{own_path}"
    app.get_blocks().close()


# Refused before anything is served

@pytest.fixture(scope="module")
def saved(tmp_path_factory, models):
    "Folders named as `mfm train` names them."
    home = tmp_path_factory.mktemp("home")
    for name, model in zip("ab", models): save_model(home / f"runs/{name}/model", model.net, model.config)
    return home


def test_models_are_loaded_under_their_names(saved):
    engines = load_all([saved / "runs/a/model", saved / "runs/b/model", None])
    assert list(engines) == ["a/model", "b/model", "bbbc021"]
    assert len(engines["b/model"].model.channels) == 4 and engines["bbbc021"].model.source == "bundled"


def test_a_model_given_twice_or_missing_is_refused_in_one_line(saved, mfm, monkeypatch, tmp_path):
    monkeypatch.setattr(ui, "launch", lambda *_, **__: pytest.fail("was served"))
    monkeypatch.chdir(tmp_path)
    model = saved / "runs/a/model"
    refused = {(model, model): "The model 'model' is given twice; give each model once.",
               (bundled, bundled.parent / "../weights/bbbc021"): "The model 'bbbc021' is given twice",
               (model, saved / "nothing"): "nothing", (model, saved): "is not a model folder"}
    for args, sentence in refused.items():
        for command in (["serve"], ["space", "--to", "lab/page", "--dry-run", "page"]):
            code, text = mfm(*command, *(word for name in args for word in ("--model", name)))
            last = text.strip().splitlines()[-1]
            assert code == 2 and last.startswith("mfm: ") and sentence in last and str(saved) not in last
    assert not list(tmp_path.iterdir())


def test_the_command_serves_what_it_is_given_in_that_order(saved, mfm, monkeypatch):
    served = []
    monkeypatch.setattr(ui, "launch", lambda engines, *_, **__: served.append(list(engines)))
    folders = [str(saved / f"runs/{name}/model") for name in "ba"]
    with pytest.raises(SystemExit): cli.main(["serve", "--model", folders[0], "--model", folders[1]])
    with pytest.raises(SystemExit): cli.main(["serve"])
    assert served == [["b/model", "a/model"], ["bbbc021"]]


# A Space of several

def test_a_space_names_its_models_and_copies_those_that_are_folders(saved, tmp_path):
    given = [None, saved / "runs/a/model", saved / "runs/b/model"]
    folder = write_space(tmp_path / "page", "lab/page", given)
    launched, text = [], (folder / "app.py").read_text(encoding="utf-8")
    code = text.replace("from mfm_app.ui import launch", "")
    exec(code, dict(__file__=str(folder / "app.py"), launch=launched.append))
    engines, = launched
    assert list(engines) == ["bbbc021", "a/model", "b/model"]
    for name, path in zip(engines, given): assert engines[name].model.sha256 == from_pretrained(path).sha256
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in engines) and str(saved) not in readme + text
    assert (folder / "mfm_app/weights/bbbc021").is_dir()
    write_space(tmp_path / "page", "lab/page", given[1:])
    assert not (folder / "mfm_app/weights/bbbc021").exists() and (folder / "models/b/model/README.md").is_file()


def test_models_of_the_package_go_by_their_names(tmp_path):
    folder = write_space(tmp_path / "page", "lab/page", [None, "simulated"])
    assert {path.name for path in (folder / "mfm_app/weights").iterdir()} == {"bbbc021", "simulated"}
    assert "'simulated': load(\"simulated\")," in (folder / "app.py").read_text(encoding="utf-8")
    engines = load_all([None, "simulated"])
    assert list(engines) == ["bbbc021", "simulated"] and "compounds" in ui.model_line(engines["simulated"])


# What stands on the page

class Links(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.links, self.text = [], ""
        self.feed(html)
    def handle_starttag(self, tag, attributes):
        assert tag in ("nav", "a", "b", "span")
        if tag == "a": self.links.append(dict(attributes))
    def handle_data(self, data): self.text += data


lines_of_models = st.dictionaries(st.text(min_size=1, max_size=20).filter(lambda t: "\r" not in t and "\0" not in t),
                                  st.text(max_size=30), min_size=2, max_size=5)


@many(40)
@given(lines_of_models)
def test_whatever_a_model_is_called_it_is_a_link_to_it_and_nothing_else(lines):
    current, *others = lines
    links = Links(ui.model_links(current, lines)).links
    assert [parse_qs(link["href"][1:], keep_blank_values=True)["model"] for link in links] == [[n] for n in lines]
    assert [link["data-model"] for link in links if "aria-current" in link] == [current]


def finished(page, viewer="viewer"):
    page.wait_for_function("v => document.querySelector(`#${v} .provenance`)?.textContent && "
                           "/step (\\d+) of \\1$/.test(document.querySelector(`#${v} .where`).textContent)",
                           arg=viewer, timeout=60 * seconds)
    return page.inner_text(f"#{viewer} .provenance")


def shown(page):
    "Which model the page says it is of."
    page.wait_for_selector("#models [aria-current]")
    return page.get_attribute("#models [aria-current]", "data-model")


def wait_for_model(page, name):
    script = "name => document.querySelector('#models [aria-current]')?.dataset.model === name"
    page.wait_for_function(script, arg=name)


def pixels(page): return page.locator("#viewer canvas").evaluate_all("all => all.map(c => c.toDataURL())")


def test_the_bar_leads_to_the_other_model_on_the_same_tab_and_back(page, address, engines):
    page.goto(f"{address}?__theme=dark")
    assert shown(page) == first
    name, line = page.locator("#models a").nth(1).inner_text().split("\n")
    assert name == second and line == ui.model_line(engines[second]) and "4 channels" in line
    page.get_by_role("tab", name="Screen").click()
    page.wait_for_function("location.search.includes('tab=screen')")
    page.focus("#models a:not([aria-current])")
    page.keyboard.press("Enter")
    wait_for_model(page, second)
    page.wait_for_selector("#screen-list textarea:visible")
    assert page.evaluate("document.body.classList.contains('dark')") and urlsplit(page.url).path == "/"
    page.wait_for_selector("#models a")
    page.click("#models a >> nth=0")
    wait_for_model(page, first)
    page.wait_for_selector("#screen-list textarea:visible")


def test_an_address_names_its_model_and_opens_the_same_picture_from_any_page(page, address, engines):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    asked = urlencode(dict(model=second, perturbation="sweller", cells=2, steps=2))
    page.goto(f"{address}models/drawn/?{asked}")
    line, picture = finished(page), pixels(page)
    assert shown(page) == second and second in line
    assert parse_qs(urlsplit(page.url).query)["model"] == [second] and page.locator("#viewer .channel").count() == 4
    page.click("#share .link")
    page.wait_for_function("document.querySelector('#share output').textContent === 'Link copied.'")
    link = page.evaluate("navigator.clipboard.readText()")
    page.goto(address + "?" + urlsplit(link).query)
    finished(page)
    assert shown(page) == second and pixels(page) == picture
    assert engines[second].model.sha256[:12] in page.text_content("#share pre")
    page.get_by_role("tab", name="About").click()
    page.wait_for_function("location.search.includes('tab=about')")
    assert parse_qs(urlsplit(page.url).query)["model"] == [second]
    page.get_by_text("Call it from anywhere").click()
    page.wait_for_function("at => document.body.innerText.includes(`Client(\"${at}\")`)", arg=f"{address}{own_path}")
    assert f"{address}models/drawn/" in page.inner_text("body") and f"{address}health" in page.inner_text("body")


@pytest.mark.parametrize("tab, status", [("explore", "#status"), ("counterfactual", "#cf-status"),
                                         ("screen", "#screen-status"), ("about", "#about-status")])
def test_a_model_that_is_not_there_is_refused_on_the_page_with_those_there_are(page, address, tab, status):
    page.goto(f"{address}?tab={tab}&model=rxrx1&perturbation=sweller")
    sentence = f"In the address, model must be {first} or {second}, not 'rxrx1'."
    script = "([at, text]) => document.querySelector(at)?.innerText.includes(text)"
    page.wait_for_function(script, arg=[status, sentence], timeout=60 * seconds)
    assert shown(page) == first and not page.locator("#viewer canvas:visible").count()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_bar_fits_a_phone(page, address, theme):
    page.set_viewport_size(dict(width=390, height=800))
    page.goto(f"{address}?__theme={theme}")
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for i in range(2):
        box = page.locator("#models a").nth(i).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 24
    colours = """() => ['a', 'b', 'span'].map(part => getComputedStyle(document.querySelector(`#models ${part}`)))
        .map((style, i) => (i ? style.color : style.backgroundColor).match(/\\d+/g).slice(0, 3).map(Number))"""
    background, *texts = np.array(page.evaluate(colours)).mean(1)
    assert (background < 128) == (theme == "dark") and all(abs(text - background) > 80 for text in texts)


def test_one_model_has_no_bar_and_opens_the_link_of_a_server_of_several(page, engines):
    app, url, _ = ui.launch(engines[second], prevent_thread_lock=True, quiet=True)
    page.goto(f"{url}?{urlencode(dict(model='runs/drawn', perturbation='sweller', cells=1, steps=1))}")
    finished(page)
    assert not page.locator("#models").count()
    page.goto("about:blank")
    app.get_blocks().close()
