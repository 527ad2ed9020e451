"Seconds of counterfactuals with the bundled model, and what sharing saves: `python bench/counterfactual.py`."
import os
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from mfm_app.core import markdown_table
from mfm_app.counterfactual import CounterfactualRequest, Treatment, sample_controls, stream
from mfm_app.display import effects_of
from mfm_app.effects import Comparison
from mfm_app.engine import load
from mfm_app.images import Micrograph
from mfm_app.preprocess import prepare_cells

sys.path.insert(0, str(Path(__file__).parent))
from effects import ellipses, timed      # of this folder

doses = np.geomspace(.5, 50, 8).tolist()


def treated(engine, cells, doses):
    treatments = tuple(Treatment("cyclohexamide", dose) for dose in doses)
    *_, answer = stream(engine, cells, CounterfactualRequest(treatments, "Week4"))
    return answer


def one_by_one(engine, cells): return [treated(engine, cells[i:i + 1], [50.]) for i in range(len(cells))]
def dose_by_dose(engine, cells): return [treated(engine, cells, [dose]) for dose in doses]


def requests(engine, cells):      # yields rows of a table
    yield "one cell, one treatment", f"{timed(treated, engine, cells[:1], [50.], repeats=8)[1]:.2f}", "", ""
    pairs = {"16 cells, one treatment; one by one": ((treated, cells, [50.]), (one_by_one, cells)),
             "4 cells, 8 doses; a request a dose": ((treated, cells[:4], doses), (dose_by_dose, cells[:4]))}
    for name, pair in pairs.items():
        shared, alone = (timed(f, engine, *args, repeats=2)[1] for f, *args in pair)
        yield name, f"{shared:.2f}", f"{alone:.2f}", f"{alone / shared:.1f}x"


def micrograph(side, nuclei, rng):
    "A field of 16 bits: nuclei, and two stains about them."
    dna = ellipses(nuclei, side, uneven=.3, rng=rng)[0].astype(np.float32)
    stains = [dna, *(ndimage.gaussian_filter(dna, sigma) + rng.normal(0, 2, dna.shape) for sigma in (8, 16))]
    pixels = (np.stack(stains) * 180).clip(0, 65_535).astype(np.uint16)
    return Micrograph(pixels[None], ["DAPI", "Phalloidin", "Tubulin"], .325, 16, [])


def images(engine):      # yields rows of a table
    for side, nuclei in ((1024, 200), (2048, 800), (4000, 3000)):
        file = micrograph(side, nuclei, np.random.default_rng(0))
        prepared, taken = timed(prepare_cells, engine.model, file, repeats=2)
        yield f"{side:,} x {side:,}", len(prepared.nuclei), f"{taken:.2f}"


def effect_panels(answer):      # yields rows of a table
    names = [c["name"] for c in answer.channels]
    for n in (16, 64):
        treated, untreated = (np.resize(x, (n, *x.shape[1:])) for x in (answer.treated[0], answer.reconstruction))
        def message():
            return effects_of(Comparison(treated, untreated, names), answer.channels, "cyclohexamide, 50 µM")
        text, taken = timed(message)
        yield f"`effects_of`, {n} cells", f"{taken:.2f}", f"{len(text.encode()) / 1e3:.0f}"


if __name__ == "__main__":
    engine = load()
    cells, _ = sample_controls(engine, range(16), "Week4")
    answer = treated(engine, cells, [50.])
    print(f"{engine.dtype}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
          f"{answer.provenance['nfe']} network evaluations to invert and sample\n")
    print(markdown_table(["", "seconds", "the other way, s", "ratio"], requests(engine, cells), "lrrr"))
    print("\n### Images prepared\n")
    print(markdown_table(["16-bit field of three channels", "nuclei used", "seconds"], images(engine), "lrr"))
    print("\n### What the effect panel is sent\n")
    print(markdown_table(["", "seconds", "kB of JSON"], effect_panels(answer), "lrr"))
