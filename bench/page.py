"How long the page lets one wait, in headless Chromium on this machine, with the bundled model. `python bench/page.py [times]` prints a Markdown table."
import shutil
import statistics
import sys
import time

from playwright.sync_api import sync_playwright

from mfm_app import ui

arguments = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
typed = ["CC(=O)Oc1ccccc1C(=O)O", "CN1CCC23C4Oc5c2c(CC1C3C=CC4O)ccc5O", "C(C)(C)(C)(C)C", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "OC(=O)CCCCC", "c1ccc2ccccc2c1"]


def opened(browser, url):
    page = browser.new_context(viewport=dict(width=1280, height=900)).new_page()
    page.goto(url)
    page.wait_for_selector("#generate")
    page.wait_for_timeout(1500)
    return page


def editor_seconds(page):
    "From opening the editor's tab to an editor that can be drawn in."
    began = time.perf_counter()
    page.get_by_role("tab", name="Draw").click()
    page.wait_for_selector("#editor iframe:not([hidden])", timeout=60_000)
    return time.perf_counter() - began


def card_seconds(page, smiles):
    "From a SMILES in the box to its drawing and neighbours."
    before = page.inner_html("#molecule-card")
    page.click("#smiles textarea")
    page.keyboard.press("ControlOrMeta+a")
    began = time.perf_counter()
    page.keyboard.insert_text(smiles)
    page.wait_for_function("before => document.querySelector('#molecule-card').innerHTML !== before", arg=before)
    return time.perf_counter() - began


def cells_seconds(page):
    "From Generate on the molecule side to sixteen cells with their controls, and to what they say."
    began = time.perf_counter()
    page.click("#generate")
    page.wait_for_function("document.querySelector('#viewer .provenance').textContent.length > 3", timeout=60_000)
    done = time.perf_counter() - began
    page.wait_for_function("document.querySelector('#steady').innerText.includes('What these cells say')", timeout=60_000)
    return done, time.perf_counter() - began


if __name__ == "__main__":
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    _, url, _ = ui.launch(prevent_thread_lock=True, quiet=True)
    first, again, card, cells, said = [], [], [], [], []
    with sync_playwright() as playwright:
        for _ in range(times):
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
            page = opened(browser, url)
            first.append(editor_seconds(page))
            card += [card_seconds(page, smiles) for smiles in typed]
            page.keyboard.press("ControlOrMeta+a")
            page.keyboard.insert_text(typed[0])
            page.wait_for_timeout(1000)
            for seconds, found in zip(cells_seconds(page), (cells, said)): found.append(seconds)
            page.reload()
            page.wait_for_timeout(2500)
            again.append(editor_seconds(page))
            browser.close()
    print("| | times | median, s | longest, s |\n|---|---|---|---|")
    for name, found in (("editor ready after opening its tab, in a fresh browser", first), ("the same after a reload", again), ("SMILES typed to drawing and neighbours", card),
                        ("16 cells of a molecule and 16 controls", cells), ("and what they say, with 8 thinned fingerprints", said)):
        print(f"| {name} | {len(found)} | {statistics.median(found):.2f} | {max(found):.2f} |")
