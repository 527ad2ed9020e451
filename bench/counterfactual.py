"How long the same cells, treated otherwise, take with the bundled model, and what sharing saves. `python bench/counterfactual.py` prints Markdown tables."
import os
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from mfm_app.counterfactual import Treatment, CounterfactualRequest, stream
from mfm_app.effects import Comparison
from mfm_app.engine import load
from mfm_app.images import Micrograph
from mfm_app.preprocess import prepare_cells, sample_controls
from mfm_app.ui_parts import effects_of

sys.path.insert(0, str(Path(__file__).parent))
from effects import field, row, seconds      # of this folder: nuclei on shading and noise, a line of a table, the best of some times

doses = np.geomspace(.5, 50, 8).tolist()


def treated(engine, cells, doses):
    *_, answer = stream(engine, cells, CounterfactualRequest(tuple(Treatment("cyclohexamide", dose) for dose in doses), "Week4"))
    return answer


def one_by_one(engine, cells): return [treated(engine, cells[i:i + 1], [50.]) for i in range(len(cells))]
def dose_by_dose(engine, cells): return [treated(engine, cells, [dose]) for dose in doses]


def questions(engine, cells):
    print(f"{engine.dtype}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {treated(engine, cells[:1], [50.]).provenance['nfe']} evaluations of the network there and back\n")
    row("", "seconds", "the other way, s", "ratio"); row("---", *["---:"] * 3)
    row("one cell, one treatment", f"{seconds(treated, engine, cells[:1], [50.], repeats=8)[1]:.2f}", "", "")
    for name, (together, apart) in {"16 cells, one treatment; one by one": ((treated, cells, [50.]), (one_by_one, cells)), "4 cells, 8 doses; a question a dose": ((treated, cells[:4], doses), (dose_by_dose, cells[:4]))}.items():
        ours, other = (seconds(f, engine, *args, repeats=2)[1] for f, *args in (together, apart))
        row(name, f"{ours:.2f}", f"{other:.2f}", f"{other / ours:.1f}x")


def micrograph(side, nuclei, rng):
    "A field of 16 bits: nuclei, and two stains about them."
    dna = field(nuclei, side, uneven=.3, rng=rng)[0].astype(np.float32)
    stains = [dna, *(ndimage.gaussian_filter(dna, sigma) + rng.normal(0, 2, dna.shape) for sigma in (8, 16))]
    return Micrograph((np.stack(stains) * 180).clip(0, 65_535).astype(np.uint16)[None], ["DAPI", "Phalloidin", "Tubulin"], .325, 16, [])


def fields(engine):
    print("\n### Images brought\n")
    row("16-bit field of three channels", "nuclei used", "seconds"); row("---", "---:", "---:")
    for side, nuclei in ((1024, 200), (2048, 800), (4000, 3000)):
        file = micrograph(side, nuclei, np.random.default_rng(0))
        brought, took = seconds(prepare_cells, engine, file, repeats=2)
        row(f"{side:,} x {side:,}", len(brought.nuclei), f"{took:.2f}")


def shown(engine, answer):
    print("\n### What the page is told of an effect\n")
    row("", "seconds", "kB of JSON"); row("---", "---:", "---:")
    for n in (16, 64):
        of = lambda images: np.resize(images, (n, *images.shape[1:]))
        fresh = lambda: effects_of(Comparison(of(answer.treated[0]), of(answer.reconstruction), [c["name"] for c in answer.channels]), answer.channels, "cyclohexamide, 50 µM")
        said, took = seconds(fresh)
        row(f"`effects_of`, {n} cells", f"{took:.2f}", f"{len(said.encode()) / 1e3:.0f}")


if __name__ == "__main__":
    engine = load()
    cells, _ = sample_controls(engine, range(16), "Week4")
    questions(engine, cells)
    fields(engine)
    shown(engine, treated(engine, cells, [50.]))
