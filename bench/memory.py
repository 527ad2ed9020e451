"Resident memory of the served page while many ask at once: `python bench/memory.py [--clients N] [--json FILE]`."
import argparse
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from gradio_client import Client
from playwright.sync_api import sync_playwright
from start import answers, arguments, served

compounds = ["cyclohexamide", "taxol", "colchicine", "DMSO"]
generated = "document.querySelector('#viewer .provenance').textContent.length > 3"


def status(process)->dict:
    "Megabytes resident and number of threads of a process."
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return dict(mb=int(values["VmRSS"].split()[0]) / 1024, threads=int(values["Threads"]))


class Watch:
    "The highest resident memory while it is entered, in megabytes."
    def __init__(self, process): self.process, self.peak, self.stop = process, status(process), threading.Event()

    def run(self):
        while not self.stop.wait(.05): self.peak = max(self.peak, status(self.process), key=lambda s: s["mb"])

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def ask(clients, cells):
    "Everybody asks for cells at once, and waits; the answers are thrown away."
    def one(i):
        seeds = list(range(100 * i, 100 * i + cells))
        return clients[i].predict(perturbation=compounds[i % 3], seeds=seeds, api_name="/generate")
    with ThreadPoolExecutor(len(clients)) as pool: list(pool.map(one, range(len(clients))))


def open_pages(browser, url, n):
    "Pages on which Generate can be clicked."
    pages = [browser.new_page() for _ in range(n)]
    for page in pages:
        page.goto(url)
        page.wait_for_selector("#generate:enabled")
    return pages


def click_all(pages):
    "Click Generate on every page, and wait for the cells."
    for page in pages: page.click("#generate")
    for page in pages: page.wait_for_function(generated, timeout=120_000)


def measure(n, cells, rounds, visitors, rest):
    "Memory before anybody asks, at the peak and at the end of each round of questions, and when nothing was asked."
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        url, process, _ = stack.enter_context(served())
        while not answers(f"{url}/health"): time.sleep(.1)
        pages = open_pages(browser, url, visitors)
        clients = [Client(url, verbose=False) for _ in range(n)]
        ask(clients[:1], cells)
        rows = {"after one request": status(process)}
        for i in range(rounds):
            start = time.perf_counter()
            with Watch(process) as watch:
                if pages: click_all(pages)
                ask(clients, cells)
            rows |= {f"round {i + 1}, peak": watch.peak, f"round {i + 1}, end": status(process)}
            rows[f"round {i + 1}, end"]["seconds"] = time.perf_counter() - start
        time.sleep(rest)
        rows[f"{rest} s later"] = status(process)
        browser.close()
    return rows


def report(rows):
    "The figures as a Markdown table."
    from mfm_app.core import markdown_table
    first = rows["after one request"]["mb"]
    cells = [(name, f"{r['mb']:,.0f}", f"{r['mb'] - first:+,.0f}", r["threads"]) for name, r in rows.items()]
    return markdown_table(["", "resident, MB", "growth, MB", "threads"], cells, "lrrr")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--cells", type=int, default=16, help="of each request, and as many controls")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--visitors", type=int, default=4, help="pages on which Generate is clicked as well")
    parser.add_argument("--rest", type=int, default=30, help="seconds without a request at the end")
    parser.add_argument("--json", type=Path, metavar="FILE")
    o = parser.parse_args()
    rows = measure(o.clients, o.cells, o.rounds, o.visitors, o.rest)
    print(report(rows))
    if o.json: o.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
