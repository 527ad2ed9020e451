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

from mfm_app.conditioning import for_inference
from mfm_app.core import fast_dtype, markdown_table, to_uint8
from mfm_app.data import conditions, read_cells
from mfm_app.evaluation import calibration_error, effect_of
from mfm_app.features import morphology, profile
from mfm_app.finetune import measure
from mfm_app.hub import bundled, load_model
from mfm_app.mechanism import (KnownMolecule, Mechanisms, cross_validated, least_probability, mechanisms, mixture,
                               no_mechanism, mechanisms_of, read_annotated, relative, substructures)
from mfm_app.molecules import Morgan, read_molecule, tanimoto
from mfm_app.sampling import generation, sample
from mfm_app.wells import cosine, effect, read_wells, truth_of

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


class Drawing:
    "Cells of a condition and their control, from the same noise, measured in both ways."
    def __init__(self, model, rows):
        self.net, self.sampling = for_inference(model.net, fast_dtype()), model.resolve_sampling(generation)
        self.model, self.rows, vocab = model, rows, model.vocab
        y = torch.full_like(rows.y, vocab.rows[vocab.control])
        self.control = self.measured(replace(rows, y=y, dose_um=torch.full_like(rows.dose_um, torch.nan)))

    def measured(self, rows):      # (morphology, profile)
        names, net = [c["name"] for c in self.model.channels], self.net
        images = to_uint8(sample(net, rows, range(len(rows)), net.shape, sampling=self.sampling))
        return morphology(images, names), profile(images, names, self.model.nucleus)

    def of(self, weights, name, dose_of=lambda dose: dose):
        "Measured cells of a mixture; those of the control where it has no weights."
        return self.measured(mixed_rows(self.model.vocab, self.rows, weights, name, dose_of)) if weights else self.control


def cosine_with_wells(truth, drawing, treated, name):
    "Of the effect drawn with that of the wells, at the doses that were drawn; NaN where there are none."
    features = list(truth.scale.index)
    seen = [truth.effects.loc[key].to_numpy() for dose in drawing.rows.dose_um.tolist()
            for key in truth.effects.index if key[0] == name and np.isclose(key[1], dose)]
    if not seen: return np.nan
    ours = effect(treated[1][features], drawing.control[1][features]) / truth.scale
    return cosine(ours.to_numpy(), np.mean(seen, 0))


def left_out(model, cells, known, compounds, truth, n):
    "A row a compound and way of drawing it: the mechanism it resembles among the others, and the cosine with wells."
    vocab, measured, found = model.vocab, measure(cells), []
    for name, smiles, moa in compounds:
        own = cells.where(perturbation=name)
        others = sorted(set(cells.where(split="train").table["perturbation"]) - {name})
        space = measured.where(split="train", perturbation=others).space
        picked = np.random.default_rng(0).integers(len(own), size=n)
        drawing = Drawing(model, conditions(own.table.iloc[picked], vocab))
        judged = {way: weights_without(known, name, smiles, way == "by mechanism") for way in ways}
        by = dict(zip(ways, judged.values())) | {"mechanism known": ({moa: 1.}, moa, 1.)}
        for way, (weights, likeliest, p) in by.items():
            treated = drawing.of(weights, name)
            drawn = effect_of(space, treated[0], drawing.control[0])
            resembles = str(drawn.resembles[0][0]) if drawn.strength > 1e-6 else ""
            found.append(dict(compound=name, mechanism=moa, way=way, likeliest=str(likeliest), probability=p,
                              claimed=bool(weights), resembles=resembles, right=resembles == moa,
                              strength=drawn.strength, wells=cosine_with_wells(truth, drawing, treated, name)))
            print(found[-1], file=sys.stderr, flush=True)
    return pd.DataFrame(found)


ways = ("by mechanism", "by mechanism, without relatives")
