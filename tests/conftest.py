"What several test files share: the real cells, calls with bad input, a small engine, the command line, and a browser."
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

root = Path(__file__).resolve().parent.parent
in_ci = bool(os.environ.get("CI"))

os.environ["HF_HUB_OFFLINE"] = "1"                   # tests, and the notebooks they run, stay on this machine
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if worker := os.environ.get("PYTEST_XDIST_WORKER"):      # workers share a machine: a thread and a range of ports each
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GRADIO_SERVER_PORT"] = str(7860 + 100 * int(worker.removeprefix("gw")))

settings.register_profile("mfm", deadline=None, derandomize=in_ci)
settings.load_profile("mfm")


def many(n:int):
    "The settings of a test with n examples, or with as many as `MFM_EXAMPLES` says."
    return settings(max_examples=int(os.environ.get("MFM_EXAMPLES", n)))


local = {"127.0.0.1", "localhost"}
chromium_args = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]


slow_files = ["page", "counterfactual_page", "revisions", "space", "notebooks", "api", "public", "permalink", "screen",
              "cli", "counterfactual", "validation", "preprocess", "finetune", "scheduler", "bundled"]


def pytest_collection_modifyitems(items):
    "The slow files first, so that no worker ends with one of them; each stays with one worker and its servers."
    place = {f"test_{name}": i for i, name in enumerate(slow_files)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def few_untreated():
    "Fewer untreated cells are sampled for the level of chance of a screen, which takes time."
    from mfm_app import screen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "chance_cells", 32)
        yield


@pytest.fixture(scope="session")
def real_cells():
    "The cells of `bbbc021-cells`, from `MFM_DATA` or from beside the repository."
    from mfm_app.data import read_cells
    folder = Path(os.environ.get("MFM_DATA") or root.parent / "shared/data/bbbc021-cells")
    if not folder.is_dir(): pytest.skip("the real cells are not here: set MFM_DATA to the folder of bbbc021-cells")
    return read_cells(folder)


@pytest.fixture(scope="session")
def ask():
    "Call something with input from outside: its answer, or an `InputError` that can be shown to a user as it is."
    from mfm_app.core import InputError
    def ask(f, *args, **kwargs):
        try: return f(*args, **kwargs)
        except InputError as error:
            message = str(error)
            assert len(message.splitlines()) == 1 and len(message) <= 500, f"not one short line: {message!r:.700}"
            for folder in (tempfile.gettempdir() + os.sep, str(root)):
                assert folder not in message, f"shows a path of this machine: {message!r}"
            return error
    return ask


@pytest.fixture
def mfm(capsys):
    "Run a command of `mfm` in this process: its exit code, and what it prints."
    from mfm_app.cli import main
    def mfm(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end: main([str(a) for a in args])
        return end.value.code, "".join(capsys.readouterr())
    return mfm


@pytest.fixture(scope="module")      # not the session: no other asyncio can run in this thread beside Playwright
def chromium():
    "A Playwright `Browser`."
    from playwright.sync_api import sync_playwright
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if not chromium:
        why = "no chromium, google-chrome or chromium-browser on PATH"
        pytest.fail(why) if in_ci else pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=chromium_args)
        yield browser
        browser.close()


def new_context(chromium):
    context = chromium.new_context(viewport=dict(width=1280, height=900))
    # Gradio calls the end of a stream an error when a page is left that is still hearing from the server.
    context.add_init_script("addEventListener('beforeunload', () => { console.error = () => {}; })")
    return context


@pytest.fixture(scope="module")
def context(chromium):
    "Where pages are opened; they share a cache, so that the first of a server's pages loads the scripts for all."
    context = new_context(chromium)
    yield context
    context.close()


def watched_page(context):
    "A new page with two lists: `page.errors` (console, script) and `page.outside` (requests to other machines)."
    page = context.new_page()
    page.errors, page.outside = [], []
    def note(asking):
        if urlsplit(asking.url).hostname not in local | {None}: page.outside.append(asking.url)
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    for event in ("request", "popup"): page.on(event, note)
    return page


def close(page):
    "Close a page, and leave nothing of what it stored but the cache."
    if urlsplit(page.url).hostname: page.context.new_cdp_session(page).send(
        "Storage.clearDataForOrigin", dict(origin=page.url, storageTypes="cookies,local_storage,indexeddb"))
    page.close()


def check_quiet(page):
    "Neither errors nor requests to other machines; a test that expects an error removes it."
    assert not page.errors, f"the page reported errors: {page.errors}"
    assert not page.outside, f"the page asked other machines: {page.outside}"


@pytest.fixture
def page(context):
    "A fresh `watched_page`, on which nothing may go wrong."
    page = watched_page(context)
    yield page
    close(page)
    check_quiet(page)


@pytest.fixture(scope="module")
def lent(chromium, request):
    """Lends a page that tests share by a name, since opening one costs seconds; a new one after a failure. Each has a
    context of its own: an open page keeps connections, and Chromium allows six to a server in one context."""
    pages = {}
    @contextmanager
    def lent(name, prepare):
        page, failed_before = pages.pop(name, None) or watched_page(new_context(chromium)), request.session.testsfailed
        if page.url == "about:blank": prepare(page)
        yield page
        if request.session.testsfailed > failed_before: page.context.close()
        else: pages[name] = page
        check_quiet(page)
    yield lent
    for page in pages.values(): page.context.close()


def typed(page, field, value):
    "Fill in a field and leave it, again until the value stays: a field that is still being rendered loses it."
    for _ in range(50):
        page.fill(field, str(value))
        page.press(field, "Tab")
        page.wait_for_timeout(100)
        if page.input_value(field) == str(value): return
    raise AssertionError(f"{field} does not take {value}")


def left_for_good(page):
    "Leave a page whose server will end; the connection errors that it then reports are expected."
    assert not page.errors, page.errors
    page.goto("about:blank")
    page.wait_for_timeout(300)
    page.errors.clear()


@pytest.fixture(scope="module")
def own_temporary(tmp_path_factory):
    "A temporary folder of its own for whatever the page writes while it is served."
    from mfm_app.ui_parts import static_folder
    static_folder()      # belongs to the process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def engine(own_temporary):
    "A small engine with random weights; its network, a `ControllableNet`, can be slow or fail. Others override it."
    import torch
    from controllable_net import ControllableNet
    from mfm_app.engine import Engine
    from mfm_app.finetune import random_model
    model = random_model()
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(scope="module")
def address(engine):
    "The URL at which the page of the module's `engine` is served."
    import gradio
    from mfm_app import ui
    _, url, _ = ui.launch(engine, prevent_thread_lock=True, quiet=True)
    yield url
    gradio.close_all()
