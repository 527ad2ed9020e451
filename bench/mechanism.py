"""How far cells drawn by mechanism can be believed: compounds left out of the classifier and of the mixture, with and
without their relatives, beside baselines; drugs of other kinds; whether probabilities mean what they say; how fast.
`python bench/mechanism.py DATA [WELLS]` prints Markdown tables; DATA is the folder of bbbc021-cells, WELLS a table of
wells (the bundled one if it is left out). It takes some ten minutes. `--write` puts the record into the bundled model's
config, `--quick` leaves out the cells."""
import json
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from mfm_app.card import model_card
from mfm_app.conditioning import for_inference
from mfm_app.core import fast_dtype, markdown_table, to_uint8
from mfm_app.data import conditions, read_cells
from mfm_app.display import static
from mfm_app.evaluation import calibration_error, effect_of
from mfm_app.features import morphology, profile
from mfm_app.finetune import measure
from mfm_app.hub import bundled, load_model
from mfm_app.mechanism import (KnownMolecule, Mechanisms, cross_validated, least_probability, mechanisms,
                               mechanisms_of, mixture, no_mechanism, relative, substructures, verdict)
from mfm_app.molecules import Morgan, read_molecule, tanimoto
from mfm_app.sampling import generation, sample
from mfm_app.wells import cosine, effect, read_wells, truth_of
from molecules import molecules as drug_like


def wilson(right, total, z=1.96):
    "A share in words with its 95 % interval (Wilson 1927)."
    p, n = right / total, total
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** .5
    low, high = ((middle + side * half) / (1 + z * z / n) for side in (-1, 1))
    return f"{right} of {total} ({max(low, 0):.0%} to {min(high, 1):.0%})"


# The classifier

edges = (0.5, 0.7, 0.9, 1.01)      # of the probabilities of claims


def judged(known, with_relatives):
    "Figures of a cross-validation over all known molecules."
    table = cross_validated(known, with_relatives)
    right, claimed = table["likeliest"] == table["mechanism"], table["probability"] >= least_probability
    other = table["mechanism"] == no_mechanism
    ranges = [table["probability"].between(*pair, inclusive="left") for pair in zip(edges, edges[1:])]
    count = lambda mask, among: [int((mask & among).sum()), int(among.sum())]
    near = claimed & (table["nearest"] >= relative)
    return dict(claims=count(right, claimed), active=count(right & claimed, ~other), others=count(claimed, other),
                near=count(right, near), bins=[(low, *count(right, part)) for low, part in zip(edges, ranges)],
                error=round(calibration_error(table["probability"], right), 3))


def classifier_table(figures):      # name -> `judged`
    rows = [(name, wilson(*f["claims"]), wilson(*f["active"]), wilson(*f["others"]), f"{f['error']:.3f}",
             ", ".join(f"{low:.0%}: {r} of {n}" for low, r, n in f["bins"])) for name, f in figures.items()]
    head = ("each molecule judged", "claims right", "of molecules with a mechanism, claimed right",
            "of drugs of other kinds, claimed", "calibration error", "claims right, by probability from")
    return markdown_table(head, rows, "lrrrrl")


def seconds_a_verdict(vocab, n=10_000):
    "Seconds of one verdict, and of n different molecules, from their SMILES; not the first."
    times = []
    for batch in (drug_like(1), drug_like(n)):
        start = time.perf_counter()
        verdict(batch, vocab)
        times.append(time.perf_counter() - start)
    return times


# The cells of compounds that were left out

def weights_without(known, smiles, relatives):
    "The weights of the mechanisms of a compound by the other molecules alone, without its relatives if so asked."
    similarity = tanimoto(Morgan()([smiles]), Morgan()([m.smiles for m in known]))[0]
    others = [m for m, s in zip(known, similarity) if m.smiles != smiles and (relatives or s < relative)]
    model = Mechanisms(others, [name for name in mechanisms if any(m.mechanism == name for m in others)])
    p = model.probabilities(substructures([smiles]))[0]
    return model.weights(p), model.offered[p[:-1].argmax()], float(p[:-1].max())


def mixed_rows(vocab, rows, weights, name):
    "A condition of the same doses and experiments, by mixtures without the compound itself."
    mixes = {dose: mixture(vocab, weights, dose, [name]) for dose in set(rows.dose_um.tolist())}
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

    def of(self, weights, name):
        "Measured cells of a mixture; those of the control where it has no weights."
        return self.measured(mixed_rows(self.model.vocab, self.rows, weights, name)) if weights else self.control


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
        judged = {way: weights_without(known, smiles, way == "by mechanism") for way in ways}
        by = dict(zip(ways, judged.values())) | {"mechanism known": ({moa: 1.}, moa, 1.)}
        for way, (weights, likeliest, p) in by.items():
            treated = drawing.of(weights, name)
            drawn = effect_of(space, treated[0], drawing.control[0])
            resembles = str(drawn.resembles[0][0]) if drawn.strength > 1e-6 else ""
            found.append(dict(compound=name, mechanism=moa, way=way, likeliest=str(likeliest), probability=p,
                              claimed=bool(weights), resembles=resembles, right=resembles == moa,
                              strength=drawn.strength, wells=cosine_with_wells(truth, drawing, treated, name)))
    return pd.DataFrame(found)


ways = ("by mechanism", "by mechanism, without relatives")


def rows_of(trials, stored):
    "Ways of drawing a left-out compound -> how many were drawn right, and the median cosine with the wells."
    baselines = {"by structure (the molecule adaptor)": "molecule adaptor", "copy the control": "copy the control",
                 "the real cells of the nearest compound": "nearest compound"}
    rows = {title: ([int(part["right"].astype(bool).sum()), len(part)], None)
            for title, method in baselines.items() if len(part := stored[stored["method"] == method])}
    for way, part in trials.groupby("way", sort=False):
        rows[way] = [int(part["right"].sum()), len(part)], round(float(part["wells"].median()), 3)
    return rows


def named(trials, way):
    "(compounds claimed with their mechanism, compounds claimed, all) of a way."
    part = trials[trials["way"] == way]
    right = part["claimed"] & (part["likeliest"] == part["mechanism"])
    return [int(right.sum()), int(part["claimed"].sum()), len(part)]


def record_of(model, trials, figures):
    "What the config keeps, for the card, the page and the README."
    rows = rows_of(trials, pd.DataFrame(model.config["molecules"]["trials"]))
    table = markdown_table(
        ["cells drawn", "drawn with the right mechanism", "cosine with the wells, median"],
        [(way, wilson(*right), "–" if wells is None else f"{wells:.2f}") for way, (right, wells) in rows.items()],
        "lrr")
    return dict(drawn={way: right for way, (right, _) in rows.items()}, named={way: named(trials, way) for way in ways},
                classifier=figures, table=table, trials=trials.round(4).to_dict("records"))


def main(*arguments):
    folder, *wells = [a for a in arguments if not a.startswith("--")]
    model = load_model()
    known = mechanisms_of(model.vocab).known
    figures = {name: judged(known, name == "by all others")
               for name in ("by all others", "by others of other families")}
    print(classifier_table(figures))
    one, many = seconds_a_verdict(model.vocab)
    print(f"\nA verdict takes {1e3 * one:.0f} ms, 10,000 take {many:.0f} s.")
    if "--quick" in arguments: return
    held = [KnownMolecule(h["name"], read_molecule(h["smiles"]).smiles, h["moa"])
            for h in model.config["molecules"]["held_out"]]
    compounds = [(m.name, m.smiles, m.mechanism) for m in known if m.name in model.vocab.rows]
    compounds += [(m.name, m.smiles, m.mechanism) for m in held]
    truth = truth_of(read_wells(*wells or [static / "wells-bbbc021.csv.gz"]))
    trials = left_out(model, read_cells(folder), known + held, compounds, truth, 32)
    record = record_of(model, trials, figures)
    print(f"\n{record['table']}")
    if "--write" in arguments: write(model, record)


def write(model, record):
    "Put a record into the bundled config and its card."
    config = json.loads((bundled / "config.json").read_text(encoding="utf-8"))
    config["molecules"]["mechanism"] = record
    (bundled / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    (bundled / "README.md").write_text(model_card(config), encoding="utf-8")


if __name__ == "__main__": main(*sys.argv[1:])
