"""How fast a list is screened, how long one waits for the next event, and how much memory it takes.
`python bench/screen.py` prints a Markdown table; `python bench/screen.py verdicts` times verdicts on 10,000 molecules,
`python bench/screen.py chance` how often lists that do nothing have a row beyond chance, and `python bench/screen.py
taxanes` what taxol and docetaxel resemble at each dose."""
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

import numpy as np

from mfm_app.core import markdown_table
from mfm_app.engine import load
from mfm_app.features import morphology
from mfm_app.mechanism import verdict
from mfm_app.molecules import read_molecule
from mfm_app.screen import (ScreenFolder, ScreenSettings, chance_cells, chance_level, check_settings, coordinates,
                            corrected, own, sample_cells, screen_into, untreated_row, usual_place)

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


def verdicts(engine):
    "Seconds for one verdict, after the first, and for 10,000, structures read included."
    listed = molecules(10_000)
    verdict(read_molecule(listed[0]), engine.vocab)      # fits the classifier
    start = time.perf_counter()
    for smiles in listed[:20]: verdict(read_molecule(smiles), engine.vocab)
    one = (time.perf_counter() - start) / 20
    start = time.perf_counter()
    verdict([read_molecule(smiles) for smiles in listed], engine.vocab)
    return [["one molecule, ms", f"{1000 * one:.1f}"], ["10,000 molecules, s", f"{time.perf_counter() - start:.1f}"]]


def untreated(engine, n):
    "Untreated cells along the axes in which mechanisms differ, (n, D)."
    settings, found = check_settings(engine, ScreenSettings(cells=16)), []
    row = untreated_row(engine, usual_place(engine), 16)
    for seed in range(10**6, 10**6 + n, 16):
        steps = sample_cells(engine, [row], replace(settings, seed=seed))
        try:
            while True: next(steps)
        except StopIteration as stop: images = stop.value[0]
        found.append(coordinates(engine, morphology(images, [c["name"] for c in engine.model.channels])))
    return np.concatenate(found)


def null_lists(cells, each, rows=200, lists=200):
    "Share of lists of untreated rows with one beyond chance, and of rows with p up to 0.05 uncorrected."
    rng, any_row, uncorrected = np.random.default_rng(0), [], []
    for _ in range(lists):
        order = rng.permutation(len(cells))
        others, control, rest = np.split(cells[order], [chance_cells, chance_cells + each])
        level, drawn = chance_level(others, control), rest[rng.integers(0, len(rest), (rows, each))].mean(1)
        distances = np.linalg.norm(drawn - control.mean(0), axis=1)
        any_row.append((corrected(level.p(distances)) <= .05).any())
        uncorrected.append((level.p(distances) <= .05).mean())
    return [each, f"{np.mean(any_row):.1%}", f"{np.mean(uncorrected):.1%}"]


def taxanes(engine, experiment, cells=16):
    "What taxol and docetaxel are drawn like at each dose, and what wells say of it."
    doses = (.03, .1, .3, 1, 3, 10)
    listed = "\n".join(f"{name}, {dose}" for name in ("taxol", "docetaxel") for dose in doses)
    with tempfile.TemporaryDirectory() as folder:
        for _ in screen_into(folder, engine, listed, ScreenSettings(cells=cells, experiment=experiment)): pass
        rows = list(ScreenFolder(folder).results)
    return [[r.experiment, r.name or "docetaxel", f"{r.dose_um:g}", r.wells or "–", r.mechanism, f"{r.cosine:.2f}",
             r.likely, f"{r.strength:.1f}"] for r in rows]


if __name__ == "__main__":
    engine, asked = load(), sys.argv[1:]
    if asked == ["verdicts"]: print(markdown_table(["verdicts", ""], verdicts(engine)))
    elif asked == ["chance"]:
        cells = untreated(engine, 1_600)
        print(markdown_table(["cells a row", "lists of 200 that do nothing with a row beyond chance",
                              "of their rows p up to 0.05, uncorrected"],
                             [null_lists(cells, each) for each in (1, 4, 16)]))
    elif asked == ["taxanes"]:
        columns = ["experiment", "", "µM", "wells", "resembles", "cosine", "by structure", "strength"]
        rows = taxanes(engine, own) + taxanes(engine, "Week4")      # that of taxol, and that of most cells
        print(markdown_table(columns, rows))
    else:
        measure(engine, 8, 4)      # the first network calls are slow
        print(markdown_table(header, [row(engine, *size) for size in ((100, 4), (200, 1), (1_000, 1))]))
