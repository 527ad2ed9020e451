"""How fast a list is screened, how long one waits for the next event, and how much memory it takes.
`python bench/screen.py` prints a Markdown table."""
import sys
import tempfile
import time
from pathlib import Path

import psutil

from mfm_app.core import markdown_table
from mfm_app.engine import load
from mfm_app.screen import ScreenSettings, screen_into

sys.path.insert(0, str(Path(__file__).parent))
from molecules import molecules      # of this folder: different molecules of the size of drugs

header = ["molecules", "cells each", "seconds", "molecules/s", "first after, s", "longest silence, s", "resident, MB"]
process = psutil.Process()


def measure(engine, n, cells):
    "Seconds in all, to the first molecule and between two events at most; resident MB at the end."
    start = last = time.perf_counter()
    first, longest = None, 0.
    with tempfile.TemporaryDirectory() as folder:
        for event in screen_into(folder, engine, "\n".join(molecules(n)), ScreenSettings(cells=cells)):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            if first is None and event and event.new_results: first = now - start
    return now - start, first, longest, process.memory_info().rss / 2**20


def row(engine, n, cells):
    seconds, first, longest, resident = measure(engine, n, cells)
    return [
        f"{n:,}",
        cells,
        f"{seconds:.1f}",
        f"{n / seconds:.1f}",
        f"{first:.1f}",
        f"{longest:.2f}",
        f"{resident:,.0f}",
    ]


if __name__ == "__main__":
    engine = load()
    measure(engine, 8, 4)      # the first network calls are slow
    print(markdown_table(header, [row(engine, *size) for size in ((100, 4), (200, 1), (1_000, 1))]))
