"""Proposition 3.1 measured on a model that reads molecules: the error of cells generated from the ideal embedding of a
compound, from the embedding that the encoder gives its structure, and how far the generator moves between the two.
`python bench/proposition.py DATA [--model MODEL] [--cells 96] [--json FILE]` writes one table; see the tutorial."""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics.pairwise import rbf_kernel

from mfm_app.conditioning import Conditioned, for_inference, freeze_base, perturbation_embedding
from mfm_app.core import Condition, fast_dtype, pick_device, to_float
from mfm_app.data import conditions, fingerprints, read_cells, with_structure
from mfm_app.evaluation import median_distance, mmd, z_score
from mfm_app.features import morphology
from mfm_app.finetune import split_by_mechanism, warm_start, with_molecules
from mfm_app.flow import flow_loss
from mfm_app.hub import load_model
from mfm_app.sampling import generation, sample_images


class GivenEmbedding(torch.nn.Module):
    "An adaptor whose rows bring the embedding of the perturbation with them, in the place of a fingerprint."
    def __init__(self, adaptor):
        super().__init__()
        self.adaptor = adaptor

    def forward(self, t, condition):
        a, rows = self.adaptor, len(t)
        return a.time(t) + condition.fp + a.e(condition.e, rows) + a.c(condition.c, rows)


def by_embedding(net):
    "The same network, of which the embedding of the perturbation is an input."
    return Conditioned(net.backbone, GivenEmbedding(net.adaptor), net.predicts, net.floor).eval()


def embeddings(net, rows):
    "(N, D) what a network adds for the perturbations of some rows."
    with torch.no_grad(): return perturbation_embedding(net.adaptor, rows, len(rows))


def molecule_rows(table, vocab, encode):
    "Rows of a table by the structures of their compounds."
    fp, of = fingerprints(table, encode)
    return replace(conditions(table, vocab), y=None, fp=fp[of])


def ideal_embedding(net, cells, vocab, steps, start, batch=32):
    """The embedding with which the frozen network fits the cells of one compound best, by gradient descent on the
    loss it was trained with (textual inversion, Gal et al. 2023)."""
    vector = torch.nn.Parameter(start.clone())
    optimiser, g = torch.optim.Adam([vector], 3e-3), torch.Generator().manual_seed(0)
    x1, rows = to_float(cells.images), conditions(cells.table, vocab)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        chosen = torch.randint(len(x1), (batch,), generator=g)
        x = torch.rot90(x1[chosen], int(torch.randint(4, (1,), generator=g)), (2, 3))
        if torch.rand(1, generator=g) < .5: x = x.flip(-1)
        condition = replace(rows[chosen], y=None, dose_um=None, fp=vector.expand(batch, -1))
        t = torch.sigmoid(torch.randn(batch, generator=g) - .4)
        flow_loss(net, x, condition, t, torch.randn(x.shape, generator=g)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return vector.detach()


def left_out_encoders(model, cells, encode, folds):
    "For each compound an encoder distilled from the label embeddings of the compounds of the other folds."
    found = {}
    for fold in split_by_mechanism(cells, folds):
        others = sorted(set(cells.table["perturbation"]) - set(fold))
        torch.manual_seed(0)
        own = replace(model, config=model.config | {})
        net = freeze_base(with_molecules(own, encode))
        warm_start(net, cells.where(perturbation=others), model.vocab, encode)
        found |= dict.fromkeys(fold, net.eval())
    return found      # compound -> network


def measure(real, ideal, given, e_ideal, e_given, width):
    "The distances of one compound and how far its two embeddings lie apart, a row."
    return dict(base=mmd(ideal, real, width), error=mmd(given, real, width), between=mmd(ideal, given, width),
                embedding_error=float((e_given - e_ideal).norm(dim=1).mean()))


def chance(real, n, width):
    "The distance to expect between n cells and the real ones if both were of one distribution."
    k = rbf_kernel(real, gamma=1 / (2 * width ** 2))
    m = len(real)
    return float(np.sqrt((1 / n + 1 / m) * (1 - (k.sum() - m) / (m * (m - 1)))))


def main(data, folder, n, steps, folds, device):
    model, cells = load_model(folder, device), read_cells(data)
    vocab, encode, names = model.vocab, model.encode, [c["name"] for c in model.channels]
    net, sampling = by_embedding(model.net), model.resolve_sampling(generation)
    fast = for_inference(net, fast_dtype(device))
    train, ood = cells.where(split="train"), with_structure(cells.where(split="ood"))[0]
    known, seen = with_structure(train)[0], cells.where(split=["train", "iid"])
    scale = morphology(train.images[np.random.default_rng(0).permutation(len(train))[:2000]], names)
    features = lambda images: z_score(scale, morphology(images, names))[1]
    width = median_distance(z_score(scale)[0][:1000])
    def generate(vectors, rows):
        given = replace(rows, y=None, dose_um=None, fp=vectors)
        return features(sample_images(fast, given, range(len(vectors)), device, sampling=sampling))
    control = features(train[train.is_control].images[:400])
    encoders, table, generated = left_out_encoders(model, known, encode, folds), [], {}
    for name in [*sorted(set(known.table["perturbation"])), *sorted(set(ood.table["perturbation"]))]:
        began, own = time.time(), (seen if name in encoders else ood).where(perturbation=name)
        own = own[np.random.default_rng(0).permutation(len(own))[:400]]
        chosen = own.table.iloc[np.random.default_rng(0).integers(len(own), size=n)]
        rows, by_structure = conditions(chosen, vocab), molecule_rows(chosen, vocab, encode)
        if name in encoders: ideal = embeddings(model.net, rows)
        else:
            start = torch.stack([vectors.mean(0) for vectors in generated.values()]).mean(0)
            ideal = ideal_embedding(net, own, vocab, steps, start).expand(n, -1)
        given = {"known" if name in encoders else "never seen": embeddings(model.net, by_structure)}
        if name in encoders: given["left out"] = embeddings(encoders[name], by_structure)
        real, from_ideal = features(own.images), generate(ideal, rows)
        generated[name] = ideal
        for status, vectors in given.items():
            from_given = generate(vectors, rows)
            table.append(dict(compound=name, mechanism=own.table["moa"].iloc[0], status=status, cells=len(own),
                              **measure(real, from_ideal, from_given, ideal, vectors, width),
                              control=mmd(control, real, width), chance=chance(real, n, width)))
        print(f"{name}: {time.time() - began:.0f} s", flush=True)
    return pd.DataFrame(table).round(4), between_compounds(generated, generate, vocab, train, n, width), width


def between_compounds(ideal, generate, vocab, train, n, width):
    "How far the generator moves between the ideal embeddings of two compounds, in one experiment; a row a pair."
    place = train.table.groupby(["experiment", "cell_type"]).size().idxmax()
    e, c = vocab.experiments.index(place[0]), vocab.cell_types.index(place[1])
    rows = Condition(e=torch.full((n,), e), c=torch.full((n,), c))
    vectors = {name: v.mean(0) for name, v in ideal.items()}
    cells = {name: generate(v.expand(n, -1), rows) for name, v in vectors.items()}
    names = list(cells)
    return pd.DataFrame([dict(a=a, b=b, between=mmd(cells[a], cells[b], width),
                              embedding_error=float((vectors[a] - vectors[b]).norm()))
                         for i, a in enumerate(names) for b in names[i + 1:]]).round(4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--cells", type=int, default=96, help="generated of each compound and embedding")
    parser.add_argument("--steps", type=int, default=200, help="of the search for an ideal embedding")
    parser.add_argument("--folds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    table, pairs, width = main(args.data, args.model, args.cells, args.steps, args.folds, pick_device())
    record = dict(cells=args.cells, steps=args.steps, folds=args.folds, width=round(width, 4),
                  compounds=table.to_dict("list"), pairs=pairs.to_dict("list"))
    if args.json: args.json.write_text(json.dumps(record) + "\n")
    print(table.groupby("status")[["base", "error", "between", "embedding_error", "control", "chance"]].mean().round(3))
