"""How long judging takes, without generating: 5,000 simulated cells beside as many unseen, unconditional and copied
ones in the morphology space, with every interval. `python bench/scores.py [--cells 5000]` prints Markdown."""
import argparse
import resource
import time
from dataclasses import replace

import numpy as np

from mfm_app.core import markdown_table
from mfm_app.evaluation import frechet, in_support, kid_draws, kid_of_subsets
from mfm_app.features import morphology_space
from mfm_app.simulator import synthetic_cells
from mfm_app.validation import report_of, row_labels

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--cells", type=int, default=5000)
n = parser.parse_args().cells // 5      # of each of five conditions


def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def simulated(seed, split):
    cells = synthetic_cells(n, seed=seed)
    return replace(cells, table=cells.table.assign(split=split))


def timed(f):
    began = time.perf_counter()
    result = f()
    return result, time.perf_counter() - began


cells = dict(train=simulated(0, "train"), unseen=simulated(1, "iid"), generated=simulated(2, "iid"),
             unconditional=simulated(3, "iid"))
images = {name: c.images for name, c in cells.items()}
tables = {name: c.table.assign(label=row_labels(c.table)) for name, c in cells.items()}
space, before = morphology_space(cells["train"].channels), memory()
judged = np.unique(tables["train"]["label"]).tolist()
(report, features), seconds = timed(lambda: report_of(images, tables, [space], cells["train"], judged, "paper"))
rows = [[f"{5 * n:,} cells judged, all of it", f"{seconds:.1f}"]]
rows += [[f"morphology of {5 * n:,} cells", f"{timed(lambda: space(images['generated']))[1]:.1f}"]]
a, b = features["unseen"], features["generated"]
parts = {"a Fréchet distance, 54 features": lambda: frechet(a, b),
         "KID, 100 subsets of 100": lambda: kid_of_subsets(a, b), "100 resampled KIDs": lambda: kid_draws(a, b),
         "precision and recall": lambda: (in_support(a, b), in_support(b, a))}
rows += [[name, f"{timed(f)[1]:.2f}"] for name, f in parts.items()]
wide, other = (np.random.default_rng(i).normal(size=(5 * n, 2048)).astype(np.float32) for i in (0, 1))
rows += [["a Fréchet distance, 2,048 features", f"{timed(lambda: frechet(wide, other))[1]:.1f}"]]
print(markdown_table(["", "seconds"], rows, "lr"))
print(f"\nMemory: {before:,.0f} MB with the images, {memory():,.0f} MB at most.")
