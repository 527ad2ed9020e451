"How long the page lets one wait, in headless Chromium, with the bundled model: `python bench/page.py [times]`."
import shutil
import statistics
import sys
import time

from playwright.sync_api import sync_playwright

from mfm_app import ui
from mfm_app.core import markdown_table

arguments = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
typed = ["CC(=O)Oc1ccccc1C(=O)O", "CN1CCC23C4Oc5c2c(CC1C3C=CC4O)ccc5O", "C(C)(C)(C)(C)C",
         "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "OC(=O)CCCCC", "c1ccc2ccccc2c1"]


def opened(browser, url):
    page = browser.new_context(viewport=dict(width=1280, height=900)).new_page()
    page.goto(url)
    page.wait_for_selector("#generate")
    page.wait_for_timeout(1500)
    return page


def editor_seconds(page):
    "From opening the editor's tab to an editor that can be drawn in."
    start = time.perf_counter()
    page.get_by_role("tab", name="Draw").click()
    page.wait_for_selector("#editor iframe:not([hidden])", timeout=60_000)
    return time.perf_counter() - start


def card_seconds(page, smiles):
    "From a SMILES in the box to its drawing and neighbours."
    before = page.inner_html("#molecule-card")
    page.click("#smiles textarea")
    page.keyboard.press("ControlOrMeta+a")
    start = time.perf_counter()
    page.keyboard.insert_text(smiles)
    page.wait_for_function("before => document.querySelector('#molecule-card').innerHTML !== before", arg=before)
    return time.perf_counter() - start


def cells_seconds(page):
    "From Generate on the molecule side to sixteen cells with their controls, and to their robustness."
    start = time.perf_counter()
    page.click("#generate")
    page.wait_for_function("document.querySelector('#viewer .provenance').textContent.length > 3", timeout=60_000)
    done = time.perf_counter() - start
    robust = "document.querySelector('#robustness').innerText.includes('What these cells show')"
    page.wait_for_function(robust, timeout=60_000)
    return done, time.perf_counter() - start


if __name__ == "__main__":
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    _, url, _ = ui.launch(prevent_thread_lock=True, quiet=True)
    first, reloaded, card, cells, robustness = [], [], [], [], []
    with sync_playwright() as playwright:
        for _ in range(times):
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
            page = opened(browser, url)
            first.append(editor_seconds(page))
            card += [card_seconds(page, smiles) for smiles in typed]
            page.keyboard.press("ControlOrMeta+a")
            page.keyboard.insert_text(typed[0])
            page.wait_for_timeout(1000)
            for seconds, times_of in zip(cells_seconds(page), (cells, robustness)): times_of.append(seconds)
            page.reload()
            page.wait_for_timeout(2500)
            reloaded.append(editor_seconds(page))
            browser.close()
    measured = {"editor ready after opening its tab, in a fresh browser": first, "the same after a reload": reloaded,
                "SMILES typed to drawing and neighbours": card, "16 cells of a molecule and 16 controls": cells,
                "and their robustness, with 8 fingerprints of dropped bits": robustness}
    rows = [(name, len(s), f"{statistics.median(s):.2f}", f"{max(s):.2f}") for name, s in measured.items()]
    print(markdown_table(["", "times", "median, s", "longest, s"], rows, "lrrr"))
