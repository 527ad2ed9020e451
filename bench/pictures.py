"The README's pictures of the page, after every change to it: `python bench/pictures.py`; needs Chromium."
import io
import shutil
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import sync_playwright

from mfm_app import ui
from mfm_app.engine import load, load_all
from mfm_app.ui_screen import example_list

folder = Path(__file__).parent.parent / "nbs/images"
sampled = """viewer => {
    const find = part => document.querySelector(`${viewer} ${part}`)?.textContent ?? '';
    return find('.provenance') && /step (\\d+) of \\1$/.test(find('.where'));
}"""
screened = "document.querySelector('#screen-status')?.innerText.includes('network evaluations')"


def pictures(engine):
    """Name, height in pixels, view, and what to wait for and do before the picture is taken; it may return the element
    that is taken alone."""
    docetaxel = next(h["smiles"] for h in engine.molecules.record["held_out"] if h["name"] == "docetaxel")
    def cells(page): page.wait_for_function(sampled, arg="#viewer", timeout=300_000)
    def treated(page):
        page.wait_for_function(sampled, arg="#cf-viewer", timeout=300_000)
        page.locator(".alternative:visible").last.click()
        page.locator("#cf-effects .maps .main-svg").first.wait_for()
    def ranked(page):
        page.wait_for_function(screened, timeout=300_000)
        page.locator("#screen tbody tr", has_text="taxol").first.click()
    def quiz(page):
        cells(page)
        page.get_by_role("button", name="Which are real?").click()
        page.wait_for_selector("#real-cells .cells button:nth-child(8)")
        for key in "1358": page.keyboard.press(key)
        page.get_by_role("button", name="Reveal").click()
        page.wait_for_function("document.querySelector('#real-cells .score').textContent")
        return page.locator("#real-cells")
    yield "page", 1010, dict(perturbation="cyclohexamide", dose=50), cells
    yield "molecule", 1000, dict(molecule=docetaxel, dose=0.3, experiment="Week4"), cells
    yield "counterfactual", 1800, dict(tab="counterfactual", perturbation="cyclohexamide", cells=8, series=1), treated
    yield "screen", 1000, dict(tab="screen", list=example_list(engine)), ranked
    yield "real", 900, dict(perturbation="cyclohexamide", dose=50), quiz


def pictures_of_genes(engine):
    "Likewise, of the page with two models."
    def compared(page):
        page.wait_for_function(sampled, arg="#viewer", timeout=300_000)
        page.locator("#effects .maps .main-svg").first.wait_for()
    name, view = "simulated-genes", dict(perturbation="KIF11", across=1, cells=4)
    yield "genes", 900, dict(model=name, **view), compared


def take(engine, pictures):
    "Serve what is given, and take its pictures."
    _, address, _ = ui.launch(engine, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for name, height, view, ready in pictures:
            page = browser.new_page(viewport=dict(width=1280, height=height), color_scheme="light")
            page.goto(f"{address}?{urlencode(view)}")
            shown = ready(page) or page
            page.wait_for_timeout(2500)
            page.evaluate("scrollTo(0, 0)")
            Image.open(io.BytesIO(shown.screenshot())).save(folder / f"{name}.webp", quality=85, method=6)
            page.close()
        browser.close()


if __name__ == "__main__":
    engine = load()
    take(engine, pictures(engine))
    engines = load_all(["bbbc021", "simulated-genes"])
    take(engines, pictures_of_genes(engines["simulated-genes"]))
