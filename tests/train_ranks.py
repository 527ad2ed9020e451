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
from mfm_app.training import Scale, ranks, start, train


def network():
    torch.manual_seed(0)
    backbone = mit("nano/8", image_size=16, channels=3)
    return Conditioned(backbone, Adaptor(48, 3, 2, 1), predicts="image")


def main(steps, checkpoint=None, optimiser="muon", batch=8, coupling="independent", out=None, pause=0., seed=0,
         disagree="", log_every=3, **scale):
    "A run; losses of all steps go to the file `out`, a line a process."
    torch.set_num_threads(1)
    cells, checkpoint = synthetic_cells(8, size=16), checkpoint and Path(checkpoint)
    rank = int(os.environ.get("RANK", 0))
    batches = Batches(cells, vocabulary(cells), batch, seed=int(disagree == "data" and rank))
    run = start(network(), checkpoint, optimiser, 1e-3, seed=seed + (disagree == "seed") * rank, fused=scale.get("fused", False))
    every = {1: lambda run: time.sleep(pause)} if pause else {}
    design = Design(coupling=coupling, prediction="image")
    scale = Scale(precision="float32", **scale)
    run = train(run, batches, steps, checkpoint, design, warmup=2, log_every=log_every, every=every, scale=scale)
    if out and ranks()[0] == 0: Path(out).write_text(json.dumps(run.history))
    if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try: main(**json.loads(sys.argv[1]))
    except InputError as e: sys.exit(f"{os.environ.get('RANK', 0)}: {e}")
