"What a large vocabulary costs the page: `python bench/vocabulary.py [--times N] [--json FILE]`; needs Chromium."
import argparse
import json
import random
import shutil
import statistics
import time
import urllib.request
from pathlib import Path
from string import ascii_uppercase
from tempfile import TemporaryDirectory

import torch
from gradio_client import Client
from playwright.sync_api import sync_playwright
from start import answers, arguments, field_holds, served

from mfm_app.core import markdown_table
from mfm_app.hub import Model, build, new_config
from mfm_app.vocabulary import Perturbation, Vocabulary

sizes = {"32": (32, 1, 1, 3), "5,000": (5_000, 1, 1, 3),
         "1,138 x 51 x 4": (1_138, 51, 4, 6)}      # genes, experiments, cell lines, channels
colours = ["blue", "green", "red", "yellow", "magenta", "cyan"]


def symbols(n):
    "So many different names that look like those of genes."
    rng, names = random.Random(0), {}
    while len(names) < n:
        letters = "".join(rng.choices(ascii_uppercase, k=rng.randint(2, 4)))
        names[f"{letters}{rng.randint(1, 30)}"] = True
    return list(names)


def gene_model(genes, experiments, cell_types, channels):
    "A model of siRNAs without doses and structures, with random weights."
    places = {f"HUVEC-{i + 1:02d}": 40 for i in range(experiments)}
    treated = [Perturbation(f"s{i}", f"pathway {i % 30}", experiments=places, kind="siRNA", gene=gene)
               for i, gene in enumerate(symbols(genes))]
    control = Perturbation("EMPTY", experiments=places, kind="siRNA")
    lines = ["HUVEC", "RPE", "HEPG2", "U2OS"][:cell_types]
    vocab = Vocabulary([control, *treated], list(places), lines, "EMPTY")
    named = [dict(name=f"channel {i + 1}", colour=colours[i]) for i in range(channels)]
    config = new_config(vocab, named, "nano/8", 32)
    torch.manual_seed(0)
    return Model(build(config).eval(), config, "", "genes")


until_filtered = """
query => new Promise(done => {
  const field = document.querySelector('#perturbation input');
  const shown = () => [...document.querySelectorAll('#perturbation [role=option], body > * [role=option]')]
    .filter(o => o.offsetParent);
  field.addEventListener('input', () => {
    const start = performance.now();
    const look = () => {
      const options = shown();
      if (options.length && options.every(o => o.innerText.toLowerCase().includes(query)))
        requestAnimationFrame(() => done(performance.now() - start));
      else requestAnimationFrame(look);
    };
    look();
  }, { once: true });
})"""


def search_ms(page, gene):
    "Milliseconds from the last key of a gene's name to the list that holds nothing else."
    page.click("#perturbation input")
    page.fill("#perturbation input", gene[:-1])
    page.wait_for_timeout(400)
    page.evaluate(f"void (window.filtered = ({until_filtered})({json.dumps(gene.lower())}))")
    page.keyboard.type(gene[-1])
    took = page.evaluate("window.filtered")
    page.keyboard.press("Escape")
    return took


def visit(browser, folder, genes):
    "What a visitor of a model waits for, and what is sent."
    figures, page = {}, browser.new_page(viewport=dict(width=1280, height=900))
    with served("--model", str(folder)) as (url, process, start):
        while not answers(f"{url}/health"):
            if process.poll() is not None: raise SystemExit(f"The page ended with code {process.returncode}.")
            time.sleep(0.02)
        figures["start to /health, s"] = time.perf_counter() - start
        opened = time.perf_counter()
        page.goto(url, wait_until="commit")
        while not field_holds(page, "#seed input", "7"): pass
        figures["address to a page that can be used, s"] = time.perf_counter() - opened
        page.wait_for_timeout(1000)
        size = "performance.getEntriesByType('navigation')[0]"
        figures["page, kB"] = page.evaluate(f"{size}.decodedBodySize") / 1e3
        figures["page as sent, kB"] = page.evaluate(f"{size}.encodedBodySize") / 1e3
        figures["key to filtered list, ms"] = statistics.median(search_ms(page, gene) for gene in genes)
        client, asked = Client(url, verbose=False), time.perf_counter()
        answer = client.predict(api_name="/vocabulary")
        figures["`vocabulary` answers, s"] = time.perf_counter() - asked
        figures["its answer, kB"] = len(json.dumps(answer)) / 1e3
    page.close()
    return figures


def measure(times):
    "Every figure of every model, `times` times, the models in turn."
    runs = {name: [] for name in sizes}
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        for i, size in enumerate(sizes.values()): gene_model(*size).save_pretrained(Path(folder) / str(i))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        visit(browser, Path(folder) / "0", symbols(1))      # warms the disk
        for _ in range(times):
            for i, (name, (genes, *_)) in enumerate(sizes.items()):
                runs[name].append(visit(browser, Path(folder) / str(i), symbols(genes)[::max(genes // 5, 1)][:5]))
        browser.close()
    return {name: {k: [r[k] for r in each] for k in each[0]} for name, each in runs.items()}


def report(measured):
    "The best of each figure as a Markdown table, with what the largest costs more."
    best = {name: {k: min(v) for k, v in figures.items()} for name, figures in measured.items()}
    text = lambda value: f"{value:,.2f}" if value < 10 else f"{value:,.0f}"
    first, second, _ = best.values()
    rows = [[k, *(text(figures[k]) for figures in best.values()), f"{second[k] / first[k]:.1f}x"] for k in first]
    return markdown_table(["perturbations", *best, "5,000 over 32"], rows, "l" + "r" * (len(best) + 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    measured = measure(options.times)
    print(report(measured))
    if options.json: options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
