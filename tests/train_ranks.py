"Train a small network, for tests that start this file several times or kill it: settings as JSON, losses as JSON."
import json
import os
import sys
import time
from pathlib import Path

import torch

from mfm_app.conditioning import Adaptor, Conditioned
from mfm_app.core import InputError
from mfm_app.data import Batches, vocabulary
from mfm_app.flow import Design
from mfm_app.model import mit
from mfm_app.simulator import synthetic_cells
from mfm_app.training import Scale, leave, ranks, start, train


def network():
    torch.manual_seed(0)
    backbone = mit("nano/8", image_size=16, channels=3)
    return Conditioned(backbone, Adaptor(48, 3, 2, 1), predicts="image")


def main(steps, checkpoint=None, optimiser="muon", batch=8, coupling="independent", out=None, pause=0., save_every=0,
         disagree="", **scale):
    "A run of so many steps; its history goes to the file `out`, one that says that it began to `out` with `.began`."
    torch.set_num_threads(1)
    cells, checkpoint = synthetic_cells(8, size=16), checkpoint and Path(checkpoint)
    rank = int(os.environ.get("RANK", 0))
    batches = Batches(cells, vocabulary(cells), batch)
    def slowly(number, *part):
        if out: Path(f"{out}.began").touch()
        time.sleep(pause)
        return batches(number, *part)
    run = start(network(), checkpoint, optimiser, 1e-3, seed=rank if disagree == "seed" else 0)
    every, design = {save_every: lambda run: None} if save_every else {}, Design(coupling=coupling, prediction="image")
    scale = Scale(precision="float32", **scale)
    run = train(run, slowly, steps, checkpoint, design, warmup=2, log_every=3, every=every, scale=scale)
    if out and ranks()[0] == 0: Path(out).write_text(json.dumps(run.history))
    leave()


if __name__ == "__main__":
    try: main(**json.loads(sys.argv[1]))
    except InputError as e: sys.exit(f"{os.environ.get('RANK', 0)}: {e}")
