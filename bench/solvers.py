"""Quality against evaluations, for solver, grid and guidance: `python bench/solvers.py DATA [--model M] [--json FILE]`.

Cells of the four conditions with most training cells are sampled from the same seeds by every setting. Distance: that
of Fréchet, of morphology statistics in standard deviations of real cells, to real cells of the condition, summed over
the conditions; beside it that of a nearly exact integration, and the floor (real cells against others). Intervals are
90 % of ratios over resampled seeds; resampling adds to both distances and so draws ratios towards 1. Pairing: how far
a seed's cell lies from where the exact flow leads. Settings are chosen on the split `train` and reported on `iid`."""
import argparse
import json
from collections import namedtuple

import numpy as np
import torch

from mfm_app.core import autocast, fast_dtype, join, markdown_table, pick_device, to_uint8
from mfm_app.data import read_cells
from mfm_app.evaluation import frechet, frechet_floor, z_score
from mfm_app.features import morphology
from mfm_app.hub import load_model
from mfm_app.sampling import Sampling, sample
from mfm_app.tuning import psnr
from mfm_app.validation import cells_of, condition_label, trained_conditions
from mfm_app.vocabulary import condition

exact, former = Sampling("midpoint", 64, grid="cosine"), Sampling("midpoint", 10, grid="power2.5")
compared = [
    former, *(Sampling("midpoint", n, grid="cosine") for n in (6, 10, 14)), Sampling("heun", 10, grid="cosine"),
    *(Sampling("euler", n, grid="cosine") for n in (12, 19)),
    *(Sampling("multistep2", n, grid="cosine") for n in (8, 12, 16, 19, 24)),
    *(Sampling("multistep3", n, grid="cosine") for n in (12, 19)),
    *(Sampling("multistep2", 12, grid=grid) for grid in ("even", "power1.5")),
    *(Sampling("tuned", n) for n in (12, 19)), Sampling("tuned", 12, 1.25)]
intervals = (0., .5), (.5, 1.)      # of t, on which a scale of 1.25 is tried
Generated = namedtuple("Generated", "images features")      # (B, C, H, W) floats; (B, D) z-scores


class Judge:
    "Real cells of the conditions, and what is measured of generated ones."
    def __init__(self, cells, split, conditions, n):
        self.names, self.n, self.conditions = [c["name"] for c in cells.channels], n, conditions
        self.reference = morphology(cells.where(split="train").images[::3], self.names)
        real = [morphology(cells_of(cells.where(split=split), *c).images[:1500], self.names) for c in conditions]
        self.real = z_score(self.reference, *real)[1:]

    def features(self, images): return z_score(self.reference, morphology(to_uint8(images), self.names))[1]

    def distances(self, features, rows=slice(None)):      # a condition; rows: of each condition's cells
        groups = features.reshape(len(self.real), self.n, -1)[:, rows]
        return [frechet(group, real) for group, real in zip(groups, self.real)]

    def floor(self): return [frechet_floor(real, min(self.n, len(real) // 2)) for real in self.real]

    def ratio(self, features, truth, repeats=40):
        "Summed distance over that of the exact flow, and its 90 % interval over resampled seeds."
        rng = np.random.default_rng(0)
        draws = [rng.integers(0, self.n, self.n) for _ in range(repeats)]
        ratios = [sum(self.distances(features, rows)) / sum(self.distances(truth, rows)) for rows in draws]
        return sum(self.distances(features)) / sum(self.distances(truth)), *np.quantile(ratios, [.05, .95])


def rows_of(model, cells, conditions, n):
    "`n` rows a condition, in the experiments of its training cells."
    def experiments(c): return np.random.default_rng(0).choice(cells_of(cells, *c).table["experiment"].to_numpy(), n)
    return join([condition(model.vocab, *c, e) for c in conditions for e in experiments(c)], [1] * n * len(conditions))


def guided_between(net, low, high, scale):
    "The velocity with guidance on an interval of t alone."
    def velocity(x, t, rows):
        v = net(x, t, rows)
        if not low <= t[0] <= high: return v
        null = net(x, t, rows.without_perturbation())
        return null + scale * (v - null)
    return velocity


def measure(model, cells, n=96, split="train", settings=compared):
    "A dict a setting, the exact flow first, and the floor."
    counted = sorted(trained_conditions(cells), key=lambda c: -len(cells_of(cells.where(split="train"), *c)))[:4]
    train, judge, device = cells.where(split="train"), Judge(cells, split, counted, n), pick_device()
    rows, seeds = rows_of(model, train, counted, n), list(range(n)) * len(counted)
    def draw(sampling, net=model.net):
        with autocast(device, fast_dtype(device)):
            images = sample(net, rows, seeds, model.net.shape, sampling, device).float().cpu()
        return Generated(images, judge.features(images))
    truth, floor = draw(exact), judge.floor()
    labels = [condition_label(*c) for c in counted]
    def record(title, sampling, g, evaluations=None):
        ratio, low, high = judge.ratio(g.features, truth.features)
        return dict(title=title, solver=sampling.solver, grid=sampling.grid.partition(":")[0], steps=sampling.steps,
                    guidance=sampling.cfg_scale, evaluations=evaluations or sampling.nfe(), ratio=ratio, low=low,
                    high=high, distances=dict(zip(labels, judge.distances(g.features))),
                    psnr=None if g is truth else psnr(g.images, truth.images),
                    feature_rms=float(np.sqrt(np.square(g.features - truth.features).mean())))
    yield dict(title="floor", distances=dict(zip(labels, floor)), split=split, cells=n)
    yield record("nearly exact", exact, truth)
    for setting in settings:
        try: sampling = model.resolve_sampling(setting)
        except ValueError: continue      # no tuned solver of so many steps
        yield record(f"{sampling.solver} {sampling.steps}", sampling, draw(sampling))
    for low, high in intervals if settings is compared else ():
        sampling = model.resolve_sampling(Sampling())
        g = draw(sampling, guided_between(model.net, low, high, 1.25))
        yield record(f"guidance 1.25 for t in {low:g} to {high:g}", sampling, g, 2 * sampling.steps)


def table(records):
    floor, *records = records
    labels = list(floor["distances"])
    def row(r):
        where = f"{r['title']}, {r['grid']}" if r["grid"] != "tuned" else r["title"]
        where += f", guidance {r['guidance']:g}" if r["guidance"] != 1 else ""
        pairing = "–" if r["psnr"] is None else f"{r['psnr']:.1f}"
        return [where, r["evaluations"], *(f"{r['distances'][name]:.1f}" for name in labels),
                f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})", pairing, f"{r['feature_rms']:.2f}"]
    first = ["real cells against others", "", *(f"{floor['distances'][name]:.1f}" for name in labels),
             "", "", ""]
    header = ["solver", "evaluations", *labels, "sum over the exact flow's", "PSNR to it, dB", "features, sd"]
    return markdown_table(header, [first, *map(row, records)], "l" + "r" * (len(labels) + 4))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--model")
    parser.add_argument("--cells", type=int, default=96, help="of each condition")
    parser.add_argument("--json")
    asked = parser.parse_args()
    model, cells, result = load_model(asked.model, pick_device()), read_cells(asked.data), {}
    reported = [Sampling(), former, Sampling("multistep2", 12, grid="cosine")]
    for split, settings in (("train", compared), ("iid", reported)):
        with torch.inference_mode(): result[split] = list(measure(model, cells, asked.cells, split, settings))
        print(f"### {'Chosen on training cells' if split == 'train' else 'Reported on unseen cells'}\n")
        print(table(result[split]) + "\n", flush=True)
    if asked.json: open(asked.json, "w", encoding="utf-8").write(json.dumps(result, indent=1) + "\n")
