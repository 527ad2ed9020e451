"""The paper's main comparisons at laptop scale: one choice of the design space at a time, three seeds each.

    python bench/design.py                     # all runs that are not in bench/design.csv yet; goes on where it stopped
    python bench/design.py --only "base,variance preserving" --seeds 1 --data drawn

Each run trains a small network on cells of 32 pixels with one choice changed, generates one cell for each held-out cell
with its labels, and measures how far the two populations are apart in morphology features, for `train` (to choose by)
and for `iid` (to report). Beside them stand real against real, copying the control, and generating without a label.
A finished run is some rows of the table; one that was interrupted starts again. Two processes on two cores take about
an hour for everything; the crops lie in the folder that MFM_CELLS names.
"""
import argparse
import contextlib
import csv
import io
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mfm_app.cli import network_of
from mfm_app.core import join, to_float, to_uint8
from mfm_app.data import Batches, Cells, conditions, read_cells, resize, vocabulary
from mfm_app.evaluation import frechet, kid, z_score
from mfm_app.features import morphology
from mfm_app.hub import new_config, read_switches
from mfm_app.model import parameter_count
from mfm_app.sampling import Sampling, generation, invert_then_sample, run, sample_images
from mfm_app.simulator import dataset
from mfm_app.training import start, train

table = Path(__file__).with_name("design.csv")
crops = Path(os.environ.get("MFM_CELLS", "bbbc021-cells"))
size, backbone, steps, batch, lr, most = 32, "nano/8", 600, 32, 3e-3, 480      # most: held-out cells that are compared

# name -> switches that differ from the first; the backbone is one of them
variants = {
    "base": "", "control to perturbed": "source=control", "optimal transport": "coupling=ot",
    "variance preserving": "path=vp", "brownian 0.1": "path=brownian k=0.1", "brownian 0.5": "path=brownian k=0.5",
    "brownian 1": "path=brownian k=1", "velocity target": "prediction=velocity", "uniform t": "timesteps=uniform",
    "cosine t": "timesteps=cosine", "patch stem": "stem=patch", "no skips": "skips=off",
    "no experiment label": "experiment_label=off", "given embedding": "", "no label dropout": "label_dropout=0",
    "no dropout": "projection_dropout=0", "short EMA": "ema_std=0.01", "U-Net": ""}
more = "cosine t", "no label dropout", "no dropout", "short EMA"      # run when they are asked for by name
backbones = {"U-Net": "unet-pico"}
guidances = {"guidance 0 (no label)": 0., "guidance 1.5": 1.5, "guidance 2": 2.}      # of the base, without training
columns = ["data", "variant", "seed", "frechet_train", "frechet_iid", "kid_train", "kid_iid", "cells", "steps", "loss",
           "parameters", "seconds"]


@cache
def cells_of(name:str)->Cells:
    "Drawn cells, or those conditions of the real crops that have a hundred training cells."
    if name == "drawn": return dataset(controls=1600, each=240, size=size)
    cells = resize(read_cells(crops), size)
    keys = cells.table["perturbation"] + cells.table["dose_um"].fillna(0).map(str)
    counts = keys[cells.table["split"] == "train"].value_counts()
    return cells[keys.isin(counts[counts >= 100].index).to_numpy() & cells.table["split"].isin(["train", "iid"])]


def judged(name:str)->tuple:
    "The held-out cells, and as many training cells under the same conditions."
    cells, rng = cells_of(name), np.random.default_rng(0)
    iid, pool = cells.where(split="iid"), cells.where(split="train")
    iid = iid[rng.permutation(len(iid))[:most]]
    return iid, pool[alike(iid, pool, rng)]


def alike(wanted:Cells, pool:Cells, rng, control:bool=False)->np.ndarray:
    "For each cell another of the pool: of its treatment, or of the control, and of its experiment where there is one."
    treatments = lambda cells: (cells.table["perturbation"] + cells.table["dose_um"].fillna(0).map(str)).to_numpy()
    own, there, experiments = treatments(wanted), treatments(pool), pool.table["experiment"].to_numpy()
    def one(treatment, experiment):
        same = pool.is_control if control else there == treatment
        here = same & (experiments == experiment)
        return rng.choice(np.flatnonzero(here if here.any() else same))
    return np.array([one(*pair) for pair in zip(own, wanted.table["experiment"])])


@cache
def reference(name:str)->tuple:
    "Features of the training cells and of the held-out ones."
    iid, train_cells = judged(name)
    names = [c["name"] for c in iid.channels]
    return tuple(morphology(part.images, names) for part in (train_cells, iid))


def scores(name:str, images:np.ndarray)->dict:
    "Fréchet and kernel distance (times 1,000) of some images to training and to held-out cells."
    names = [c["name"] for c in cells_of(name).channels]
    real_train, real_iid, generated = z_score(*reference(name), morphology(images, names))
    return dict(frechet_train=frechet(generated, real_train), frechet_iid=frechet(generated, real_iid),
                kid_train=1000 * kid(generated, real_train), kid_iid=1000 * kid(generated, real_iid),
                cells=len(images))


def network(name:str, variant:str, vocab):
    "An untrained network of a variant, and what draws its control cells."
    cells, switches = cells_of(name), read_switches(variants[variant].split())
    ema_std = switches.pop("ema_std", 0.05)
    shape = backbones.get(variant, backbone)
    config = new_config(vocab, cells.channels, shape, size, switches=switches)
    if shape == backbone: config["backbone"]["conv_width"] = 8
    if variant != "given embedding": return *network_of(config, cells, vocab), ema_std
    vectors = np.random.default_rng(0).normal(size=(len(vocab.names), 16))      # nobody learns them
    path = table.with_name(f".vectors-{os.getpid()}.csv")
    try:
        pd.DataFrame(vectors, vocab.names).rename_axis("perturbation").to_csv(path)
        return *network_of(config, cells, vocab, path), ema_std
    finally: path.unlink(missing_ok=True)


def counterfactuals(name:str, net, vocab, iid:Cells)->np.ndarray:
    "Training controls of the same experiments, led to noise and back under the treatments of the held-out cells."
    pool = cells_of(name).where(split="train")
    picked = pool[alike(iid, pool, np.random.default_rng(0), control=True)]
    was, now, ends = conditions(picked.table, vocab), conditions(iid.table, vocab), []
    with torch.inference_mode():
        for i in range(0, len(iid.images), 120):
            part = slice(i, i + 120)
            walk = invert_then_sample(to_float(picked.images[part]), was[part], [now[part]], Sampling(steps=19))
            ends.append(to_uint8(run(walk, net)[1]))
    return np.concatenate(ends)


def trained(name:str, variant:str, seed:int)->list:
    "Train one variant from one seed; the rows of the table that follow."
    torch.set_num_threads(1)
    began, cells = time.time(), cells_of(name)
    vocab, (iid, _) = vocabulary(cells), judged(name)
    torch.manual_seed(seed)
    net, controls, ema_std = network(name, variant, vocab)
    run_ = start(net, kind="muon", lr=lr, ema_std=ema_std)
    with contextlib.redirect_stderr(io.StringIO()):
        train(run_, Batches(cells, vocab, batch, seed=seed), steps, controls=controls, warmup=20, dtype=torch.float32)
    net, rows = run_.ema.module.eval(), conditions(iid.table, vocab)
    seeds = range(1000 * seed, 1000 * seed + len(iid.images))
    about = dict(data=name, seed=seed, steps=steps, loss=run_.history[-1][1], parameters=parameter_count(net))
    def row(label, images):
        return about | dict(variant=label, seconds=round(time.time() - began)) | scores(name, images)
    draw = lambda scale: sample_images(net, rows, seeds, "cpu", sampling=replace(generation, cfg_scale=scale))
    found = [row(variant, draw(1.))]
    if variant == "base":
        found += [row(label, draw(scale)) for label, scale in guidances.items()]
        found.append(row("counterfactual of a control", counterfactuals(name, net, vocab, iid)))
    return found


def baselines(name:str, seed:int)->list:
    "Real against real, and copying the control; the seed draws the cells."
    rng, (iid, _) = np.random.default_rng(seed + 1), judged(name)
    pool = cells_of(name).where(split="train")
    images = {"real": pool[alike(iid, pool, rng)].images,
              "copy the control": pool[alike(iid, pool, rng, control=True)].images}
    return [dict(data=name, variant=label, seed=seed, seconds=0) | scores(name, x) for label, x in images.items()]


def job(name:str, variant:str, seed:int)->list:
    return baselines(name, seed) if variant == "real" else trained(name, variant, seed)


def finished(path:Path)->set:
    "What the table has."
    if not path.is_file(): return set()
    return set(pd.read_csv(path)[["data", "variant", "seed"]].itertuples(index=False, name=None))


def append(path:Path, rows:list):
    new = not path.is_file()
    with open(path, "a", newline="") as f:
        writer = csv.DictWriter(f, columns)
        if new: writer.writeheader()
        for row in rows: writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=table, help="table of finished runs")
    usual = ",".join(["real", *(v for v in variants if v not in more)])
    parser.add_argument("--only", default=usual, help="variants, separated by commas")
    parser.add_argument("--data", default="drawn,real", help="drawn cells, real crops (in MFM_CELLS), or both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--pause", type=Path, help="wait between runs while this file exists")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - {"real", *variants}
    if unknown: sys.exit(f"Unknown variant {sorted(unknown)[0]!r}; there are {', '.join(['real', *variants])}.")
    done = finished(args.out)
    todo = [(name, variant, seed) for seed in range(args.seeds) for variant in args.only.split(",")
            for name in args.data.split(",") if (name, variant, seed) not in done]
    print(f"{len(todo)} runs to do, {len(done)} rows are there.", flush=True)
    with ProcessPoolExecutor(args.jobs) as pool:
        waiting, running = list(reversed(todo)), {}
        while waiting or running:
            while waiting and len(running) < args.jobs and not (args.pause and args.pause.exists()):
                one = waiting.pop()
                running[pool.submit(job, *one)] = one
            if not running:
                time.sleep(3)
                continue
            future = next(as_completed(running))
            rows, one = future.result(), running.pop(future)
            append(args.out, rows)
            print(*one, *(f"{row['variant']}: {row['frechet_iid']:.2f}" for row in rows), f"{rows[-1]['seconds']} s",
                  flush=True)


if __name__ == "__main__": main()
