"How many bytes a step of a run takes on its way to the viewer, by the channels of a model: `python bench/frames.py`."
import json

import numpy as np

from mfm_app.core import markdown_table
from mfm_app.display import Reel
from mfm_app.sampling import SampleStep
from mfm_app.simulator import genes, population

cells, size = 16, 64      # treated ones, each with its control below


def drawn(channels):
    "Cells of the simulator, (2, cells, channels, size, size) uint8; beyond its six channels those of further cells."
    names = [genes.controls[0], next(iter(genes.treatments))]
    rounds = [population([(name, 0, cells) for name in names], size, seed, genes).images for seed in range(3)]
    images = np.concatenate(rounds, 1)[:, :channels]
    return images.reshape(2, cells, channels, size, size)


def frame_kilobytes(channels, looked_at, last):
    "Kilobytes of the JSON of one step."
    images = drawn(channels)
    run = dict(channels=[dict(name=str(i)) for i in range(channels)], shown=[str(i) for i in range(looked_at)])
    step = SampleStep(1. if last else .5, images, images, 12 if last else 6, 12)
    return len(json.dumps(Reel(run).frame(step))) / 1e3


def row(channels):
    shown = min(channels, 3)
    figures = [frame_kilobytes(channels, n, last) for last in (False, True) for n in (channels, shown)]
    return [channels, *(f"{kb:,.0f}" for kb in figures), f"{figures[0] / figures[1]:.1f}x"]


if __name__ == "__main__":
    header = ["channels", "a step with all, kB", "with three, kB", "the last (lossless) with all, kB", "with three, kB",
              "all over three"]
    print(markdown_table(header, [row(n) for n in (1, 3, 6, 16)], "r" * len(header)))
