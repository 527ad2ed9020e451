"How fast a list is screened, how long one waits for the next sign of life, and what it holds in memory. `python bench/screen.py` prints a Markdown table."
import sys
import tempfile
import time
from pathlib import Path

import psutil

from mfm_app.engine import load
from mfm_app.screen import Settings, screen_into

sys.path.insert(0, str(Path(__file__).parent))
from molecules import molecules      # of this folder: different molecules of the size of drugs

process = psutil.Process()


def screened(engine, n, cells):
    "Seconds in all, to the first molecule and between two signs of life at most; resident MB at the end."
    began = last = time.perf_counter()
    first, longest = None, 0.
    with tempfile.TemporaryDirectory() as folder:
        for event in screen_into(folder, engine, "\n".join(molecules(n)), Settings(cells=cells)):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            if first is None and event and event.fresh: first = now - began
    return now - began, first, longest, process.memory_info().rss / 2**20


if __name__ == "__main__":
    engine = load()
    screened(engine, 8, 4)
    print("| molecules | cells each | seconds | molecules/s | first after, s | longest silence, s | resident, MB |\n|---|---|---|---|---|---|---|")
    for n, cells in ((100, 4), (200, 1), (1_000, 1)):
        seconds, first, longest, resident = screened(engine, n, cells)
        print(f"| {n:,} | {cells} | {seconds:.1f} | {n / seconds:.1f} | {first:.1f} | {longest:.2f} | {resident:,.0f} |")
