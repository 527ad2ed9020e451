"""How far cells drawn by mechanism can be believed: compounds left out of the classifier and of the mixture, with and
without their relatives, beside baselines; drugs of other kinds; whether probabilities mean what they say.
`python bench/mechanism.py DATA [WELLS]` prints Markdown tables; DATA is the folder of bbbc021-cells, WELLS a table of
wells (the bundled one if it is left out). `--write` puts the record into the bundled model's config."""
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mfm_app.core import markdown_table
from mfm_app.data import conditions, read_cells
from mfm_app.evaluation import calibration_error, effect_of
from mfm_app.features import morphology, profile
from mfm_app.finetune import measure
from mfm_app.hub import bundled, load_model
from mfm_app.mechanism import (KnownMolecule, Mechanisms, cross_validated, least_probability, mechanisms, mixture,
                               no_mechanism, mechanisms_of, read_annotated, relative, substructures)
from mfm_app.molecules import Morgan, read_molecule, tanimoto
from mfm_app.sampling import generation, sample_images
from mfm_app.vocabulary import condition
from mfm_app.wells import agreement, cosine, effect, read_wells, truth_of

wells_file = Path(bundled).parents[1] / "static" / "wells-bbbc021.csv.gz"


# The classifier

def share(right, total): return f"{right} of {total}"


def bins(table, edges=(0.5, 0.7, 0.9, 1.01)):
    "How many claims of each range of probabilities were right: (from, right, all)."
    between = lambda low, high: table[table["probability"].between(low, high, inclusive="left")]
    parts = [(low, between(low, high)) for low, high in zip(edges, edges[1:])]
    return [(low, int((part["likeliest"] == part["mechanism"]).sum()), len(part)) for low, part in parts]


def judged(known, with_relatives):
    "Figures of a cross-validation over all known molecules."
    table = cross_validated(known, with_relatives)
    right, claimed = table["likeliest"] == table["mechanism"], table["probability"] >= least_probability
    other = table["mechanism"] == no_mechanism
    return table, dict(
        claims=share(int((right & claimed)[claimed].sum()), int(claimed.sum())),
        others=share(int((claimed & other).sum()), int(other.sum())),
        active=share(int((right & claimed)[~other].sum()), int((~other).sum())),
        error=f"{calibration_error(table['probability'], right):.3f}")


# The cells of compounds that were left out

def weights_without(known, name, smiles, relatives):
    "The weights of the mechanisms of a compound by the other molecules alone, without its relatives if so asked."
    similarity = tanimoto(Morgan()([smiles]), Morgan()([m.smiles for m in known]))[0]
    others = [m for m, s in zip(known, similarity) if m.smiles != smiles and (relatives or s < relative)]
    model = Mechanisms(others, [name for name in mechanisms if any(m.mechanism == name for m in others)])
    p = model.probabilities(substructures([smiles]))[0]
    return model.weights(p), model.offered[p[:-1].argmax()], float(p[:-1].max())


def mixed_rows(vocab, rows, weights, name, dose_of=lambda dose: dose):
    "A condition of the same doses and experiments, by mixtures without the compound itself."
    mixes = {dose: mixture(vocab, weights, dose_of(dose), [name]) for dose in set(rows.dose_um.tolist())}
    mix = torch.tensor(np.stack([mixes[dose] for dose in rows.dose_um.tolist()]))
    return replace(rows, y=torch.full_like(rows.y, -1), mix=mix)


def drawn(model, rows):
    "Morphology of cells of a condition, and of their control from the same noise."
    names, control = [c["name"] for c in model.channels], model.vocab.rows[model.vocab.control]
    untreated = replace(rows, y=torch.full_like(rows.y, control), dose_um=rows.dose_um * np.nan, mix=None)
    sampling = model.resolve_sampling(generation)
    images = [sample_images(model.net, r, range(len(r)), "cpu", sampling=sampling) for r in (rows, untreated)]
    return [morphology(part, names) for part in images]


def left_out(model, cells, known, compounds, n, dose_of=lambda dose: dose):
    "A row a compound and way of drawing it: the mechanism it resembles in the space of the others."
    vocab, found = model.vocab, []
    measured = measure(cells)
    print('measured', flush=True)
    for name, smiles, moa in compounds:
        own = cells.where(perturbation=name)
        space = measured.where(perturbation=sorted(set(cells.where(split="train").table["perturbation"]) - {name})).space
        picked = np.random.default_rng(0).integers(len(own), size=n)
        rows = conditions(own.table.iloc[picked], vocab)
        ways = {"mechanism known": ({moa: 1.}, moa, 1.)}
        ways |= {way: weights_without(known, name, smiles, way == "by mechanism")
                 for way in ("by mechanism", "by mechanism, without relatives")}
        for way, (weights, likeliest, p) in ways.items():
            effect = effect_of(space, *drawn(model, mixed_rows(vocab, rows, weights, name, dose_of)))
            resembles = effect.resembles[0][0] if effect.strength > 1e-6 else ""
            found.append(dict(compound=name, mechanism=moa, way=way, likeliest=likeliest, probability=p,
                              claimed=bool(weights), resembles=resembles, right=resembles == moa,
                              strength=effect.strength))
            print(found[-1], flush=True)
    return pd.DataFrame(found)
