"What several test files share: the real cells, a way to ask with bad input, and a browser that tells on the page."
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

root = Path(__file__).resolve().parent.parent
in_ci = bool(os.environ.get("CI"))

os.environ["HF_HUB_OFFLINE"] = "1"                   # tests, and the notebooks they run, stay on this machine
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if worker := os.environ.get("PYTEST_XDIST_WORKER"):      # several share this machine: a thread and a range of ports each
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GRADIO_SERVER_PORT"] = str(7860 + 100 * int(worker.removeprefix("gw")))

settings.register_profile("house", deadline=None, derandomize=in_ci)
settings.load_profile("house")

local = {"127.0.0.1", "localhost"}
chromium_args = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]


def pytest_collection_modifyitems(items):
    "Notebooks come last: pieces that fill up whichever worker is free."
    items.sort(key=lambda item: item.path.stem == "test_notebooks")


@pytest.fixture(scope="session")
def real_cells():
    "The cells of `bbbc021-cells`, from `MFM_DATA` or from beside the repository."
    from mfm_app.data import read_cells
    folder = Path(os.environ.get("MFM_DATA") or root.parent / "shared/data/bbbc021-cells")
    if not folder.is_dir(): pytest.skip("the real cells are not here: set MFM_DATA to the folder of bbbc021-cells")
    return read_cells(folder)


@pytest.fixture(scope="session")
def ask():
    "Call something with input from outside: its answer, or an `InputError` that can be shown to people as it is."
    from mfm_app.core import InputError
    def ask(f, *args, **kwargs):
        try: return f(*args, **kwargs)
        except InputError as error:
            said = str(error)
            assert len(said.splitlines()) == 1 and len(said) <= 500, f"not one short line: {said!r:.700}"
            assert tempfile.gettempdir() + os.sep not in said and str(root) not in said, f"shows a path of this machine: {said!r}"
            return error
    return ask


@pytest.fixture(scope="module")      # not the session: while Playwright runs, nothing else in this thread can use asyncio
def chromium():
    "A Playwright `Browser`."
    from playwright.sync_api import sync_playwright
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if not found:
        why = "no chromium, google-chrome or chromium-browser on PATH"
        pytest.fail(why) if in_ci else pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=chromium_args)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A fresh page with two lists: `page.errors` (console and script) and `page.strangers` (requests to other machines).
    Both must be empty when the test ends; a test that expects an error takes it out."""
    context = chromium.new_context(viewport=dict(width=1280, height=900))
    page = context.new_page()
    page.errors, page.strangers = [], []
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    context.on("request", lambda r: page.strangers.append(r.url) if urlsplit(r.url).hostname not in local | {None} else None)
    yield page
    context.close()
    assert not page.errors, f"the page reported errors: {page.errors}"
    assert not page.strangers, f"the page asked other machines: {page.strangers}"


def typed(page, field, value):
    "Fill in a field and leave it, until it has what was typed: one that is still being put on the page forgets."
    for _ in range(50):
        page.fill(field, str(value))
        page.press(field, "Tab")
        page.wait_for_timeout(100)
        if page.input_value(field) == str(value): return
    raise AssertionError(f"{field} does not take {value}")


def left_for_good(page):
    "Leave a page whose server will end; what it says of its connections then is no fault."
    assert not page.errors, page.errors
    page.goto("about:blank")
    page.wait_for_timeout(300)
    page.errors.clear()


@pytest.fixture(scope="module")
def own_temporary(tmp_path_factory):
    "A temporary folder of its own for whatever the page writes while it is served."
    from mfm_app.ui_parts import served
    served()      # the pieces of the page belong to the process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def address(engine):
    "Where the page of a module's own `engine` is served."
    import gradio
    from mfm_app import ui
    _, url, _ = ui.launch(engine, prevent_thread_lock=True, quiet=True)
    yield url
    gradio.close_all()
