"What the start of the page costs on this machine: `python bench/start.py [--times N] [--json FILE]`; needs Chromium."
import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

root = Path(__file__).resolve().parent.parent
arguments = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
inside = """
import json, time
def lap():
    global last
    before, last = last, time.perf_counter()
    return last - before
last, seconds = time.perf_counter(), {}
from mfm_app import cli, engine
seconds["importing the command line and the engine"] = lap()
session = engine.load()
seconds["reading the model"] = lap()
session.warm()
seconds["first network call, alone"] = lap()
from mfm_app import ui
seconds["importing Gradio and the page's rooms"] = lap()
ui.page(session)
seconds["building the page"] = lap()
print(json.dumps(seconds))
"""


def python(*args):
    "What a new interpreter prints, and what it says."
    done = subprocess.run([sys.executable, *args], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def by_library():
    "Seconds that each library's own modules take to be imported, the slowest first."
    printed = python("-X", "importtime", "-c", "import mfm_app.ui")[1]
    lines = re.findall(r"import time: +(\d+) \| +\d+ \| +(\S+)", printed)
    own = Counter()
    for microseconds, module in lines: own[module.split(".")[0]] += int(microseconds) / 1e6
    return own


def stages():
    "Seconds of each part of a start, one after the other in a process of its own."
    return json.loads(python("-c", inside)[0].splitlines()[-1])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(url):
    "Whether an address answers with 200."
    try: return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError: return False


@contextmanager
def served(*args):
    "The address of the page of a new process, the process, and when it was started."
    port, start = free_port(), time.perf_counter()
    command = [sys.executable, "app.py", "--port", str(port), *args]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    try: yield f"http://127.0.0.1:{port}", process, start
    finally:
        process.terminate()
        process.wait()


def field_holds(page, selector, value):
    "Whether a field keeps what is typed in it, as it does once the page is alive."
    page.fill(selector, value)
    page.press(selector, "Tab")
    page.wait_for_timeout(30)
    return page.input_value(selector) == value


def visit(browser):
    "Seconds from the start of `python app.py` to each thing that a visitor waits for."
    page, seconds = browser.new_page(viewport=dict(width=1280, height=900)), {}
    with served() as (url, process, start):
        def lap(name): seconds[name] = time.perf_counter() - start
        while not answers(f"{url}/health"):
            if process.poll() is not None: raise SystemExit(f"The page ended with code {process.returncode}.")
            time.sleep(0.02)
        lap("/health answers")
        page.goto(url, wait_until="commit")
        page.wait_for_selector("#generate:enabled")
        lap("Generate is shown")
        while not field_holds(page, "#seed input", "7"): pass
        lap("the page can be used")
        clicked = time.perf_counter()
        page.click("#generate")
        page.wait_for_function("document.querySelector('#viewer .where')?.textContent.length > 3", timeout=60_000)
        seconds["first click to first frame"] = time.perf_counter() - clicked
        page.wait_for_function("document.querySelector('#viewer .provenance').textContent.length > 3", timeout=60_000)
        seconds["first click to 16 cells with controls"] = time.perf_counter() - clicked
    page.close()
    return seconds


def measure(times):
    "Every figure `times` times: the imports, the parts of a start, and a visit."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        visits = [visit(browser) for _ in range(times + 1)][1:]      # the first one warms the disk
        browser.close()
    repeats = dict(imports=[by_library() for _ in range(times)], parts=[stages() for _ in range(times)], visits=visits)
    return {name: {k: [r.get(k, 0) for r in runs] for k in runs[0]} for name, runs in repeats.items()}


def report(measured, libraries=12):
    "The figures as Markdown tables."
    from mfm_app.core import markdown_table
    row = lambda name, seconds: (name, f"{min(seconds):.2f}", f"{statistics.median(seconds):.2f}")
    slowest = sorted(measured["imports"].items(), key=lambda item: -min(item[1]))
    rest = "the others", [sum(s) for s in zip(*(s for _, s in slowest[libraries:]))]
    tables = {"from the start of `python app.py`": measured["visits"].items(),
              "parts of a start, one after the other": measured["parts"].items(),
              "imports by library": [*slowest[:libraries], rest]}
    return "\n\n".join(markdown_table([title, "best, s", "median, s"], [row(*r) for r in rows], "lrr")
                       for title, rows in tables.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    measured = measure(options.times)
    print(report(measured))
    if options.json: options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
