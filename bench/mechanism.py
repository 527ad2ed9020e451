"""How far cells drawn by mechanism can be believed: the regression on molecules it was not fitted to, compounds left
out of it and of the mixture, beside baselines and beside mixtures with a part read from the structure; how fast.
`python bench/mechanism.py DATA [WELLS]` prints Markdown; DATA is the folder of bbbc021-cells, WELLS a table of wells
(the bundled one if it is left out). It takes a quarter of an hour; `--cells 4` samples fewer cells of each compound,
`--compounds 3` draws fewer compounds, `--quick` none. `--write` puts the record into the bundled model's config."""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from mfm_app.card import model_card
from mfm_app.conditioning import Conditioned, known_embedding, mixture_embedding
from mfm_app.core import markdown_table, pick_device
from mfm_app.data import conditions, fingerprints, read_cells, with_structure
from mfm_app.display import static
from mfm_app.evaluation import stored_scores
from mfm_app.finetune import (measure, mechanism_record, mechanism_trials, mixed_rows, named, split_by_mechanism, ways,
                              with_molecules)
from mfm_app.hub import bundled, load_model
from mfm_app.mechanism import classifier_figures, classifier_table, mechanisms_of, no_mechanism, share_text, verdict
from mfm_app.molecules import read_molecule
from mfm_app.training import distil
from mfm_app.vocabulary import usual_dose
from mfm_app.wells import read_wells
from molecules import molecules as drug_like


def seconds_a_verdict(vocab, n=10_000):
    "Seconds of one verdict, and of n different molecules, from their SMILES; not the first."
    times = []
    for batch in (drug_like(1), drug_like(n)):
        start = time.perf_counter()
        verdict(batch, vocab)
        times.append(time.perf_counter() - start)
    return times


# The structure as a residual of the mixture

class WithStructure(torch.nn.Module):
    "An adaptor that adds to a mixture a share of what the molecule embedding says of one structure."
    def __init__(self, adaptor, molecule, fp, share):      # fp: (F,)
        super().__init__()
        self.adaptor, self.molecule, self.share = adaptor, molecule, share
        self.register_buffer("fp", fp)

    def forward(self, t, condition):
        part = self.molecule(self.fp.expand(len(t), -1), condition.dose_um.nan_to_num(1.))
        treated = 0 if condition.mix is None else condition.mix[..., 0].isfinite().all(1)[:, None]
        return self.adaptor(t, condition) + self.share * part * treated


def distilled(model, cells, of_mixture, steps=200):
    """A molecule embedding taught what the labels of these compounds add to the null row, as the warm start of a
    fine-tuning is, or to the mixture of the other compounds of their mechanism."""
    own = load_model()      # `with_molecules` writes into its config
    net, vocab = with_molecules(own, model.encode), model.vocab
    table = cells.table.drop_duplicates(["smiles", "dose_um"])
    (fp, molecule), rows = fingerprints(table, model.encode), conditions(table, vocab)
    def mixture_of(i, name, moa): return mixed_rows(vocab, rows[[i]], {moa: 1.}, name).mix[0]
    with torch.no_grad():
        mix = torch.stack([mixture_of(i, *row) for i, row in enumerate(zip(table["perturbation"], table["moa"]))])
        base = mixture_embedding(net.adaptor, mix) if of_mixture else net.adaptor.y(None)
        targets = known_embedding(net.adaptor, rows.y, rows.dose_um) - base
    distil(net.adaptor.molecule, (fp[molecule], rows.dose_um.nan_to_num(1.)), targets, steps)
    return net.adaptor.molecule.eval()


residuals = {", half of the structure's part added": (False, 0.5), ", a residual by structure added": (True, 1.)}


def networks_with_structure(model, cells, compounds, folds=6):
    "Compound -> what to call it -> a network whose structure part was not taught this compound."
    structured, found = with_structure(cells.where(split="train"))[0], {}
    unseen = sorted(set(compounds) - set(structured.table["perturbation"]))
    for fold in [unseen, *split_by_mechanism(structured, folds)]:
        if not (asked := set(fold) & set(compounds)): continue
        others = structured.where(perturbation=sorted(set(structured.table["perturbation"]) - set(fold)))
        taught = {how: distilled(model, others, of_mixture) for how, (of_mixture, _) in residuals.items()}
        for name in asked:
            smiles = read_molecule(cells.where(perturbation=name).table["smiles"].iloc[0]).smiles
            fp = torch.tensor(model.encode([smiles])[0], dtype=torch.float32)
            found[name] = {how: with_adaptor(model.net, WithStructure(model.net.adaptor, part, fp, residuals[how][1]))
                           for how, part in taught.items()}
    return found


def with_adaptor(net, adaptor):
    "The same backbone under another adaptor."
    own = Conditioned(net.backbone, adaptor, floor=net.floor, design=net.design, controls=net.controls)
    return own.to(pick_device()).eval()


# All of it

def counts_text(known, seconds):
    "What was judged by what, and how long it takes."
    active = sum(m.mechanism != no_mechanism for m in known)
    one, many = seconds
    return (f"{len(known)} molecules, {active} of them of a mechanism. A verdict takes {1e3 * one:.0f} ms, 10,000 from "
            f"their SMILES take {many:.0f} s.")


def left_out_text(vocab, trials):
    "What is claimed of the compounds that were left out, and of which of them the model knows no other of the kind."
    one = trials[trials["way"] == ways[0]]
    others = lambda name, moa: [p for p in vocab.treated if p.moa == moa and p.name != name]
    alone = [name for name, moa in zip(one["compound"], one["true_mechanism"]) if not others(name, moa)]
    claims = [f"{way}: {right} of {total} claimed to act as they do, {claimed - right} otherwise"
              for way in ways[1:] for right, claimed, total in [named(trials[trials["way"] == way])]]
    return "; ".join(claims) + f". Without another compound of their mechanism: {', '.join(alone) or 'none'}."


def at_usual_doses(vocab):
    "A vocabulary whose compounds were seen at their usual dose alone, so that a mixture takes no other."
    return replace(vocab, perturbations=[replace(p, doses={usual_dose(p): p.cells}) if p.doses else p
                                         for p in vocab.perturbations])


def further_table(trials):
    "Other ways to draw what was guessed, a row each."
    middle = lambda part: [f"{part[column].astype(float).median():.2f}" for column in ("error", "cosine", "wells")]
    rows = [(way, share_text(int(part["right"].astype(bool).sum()), len(part)), *middle(part))
            for way, part in trials.groupby("way", sort=False)]
    head = ("cells drawn", "drawn with the right mechanism", "error of effect, median",
            "cosine with real cells, median", "cosine with the wells, median")
    return markdown_table(head, rows, "lrrrr")


def at_usual(model, measured, names, wells, n):
    "The guesses drawn with each compound of a mixture at its usual dose."
    usual = replace(model, config=model.config | dict(vocabulary=at_usual_doses(model.vocab).to_dict()))
    trials = mechanism_trials(usual, model.net, measured, names, wells, pick_device(), n)
    trials = trials[trials["way"].isin(ways[1:])]
    return trials.assign(way=trials["way"] + ", each compound at its usual dose")


def write(record):
    "Put a record into the bundled config and its card."
    config = json.loads((bundled / "config.json").read_text(encoding="utf-8"))
    config["molecules"]["mechanism"] = record
    (bundled / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    (bundled / "README.md").write_text(model_card(config), encoding="utf-8")


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("wells", type=Path, nargs="?", default=static / "wells-bbbc021.csv.gz")
    parser.add_argument("--cells", type=int, default=32, help="sampled of each compound and way")
    parser.add_argument("--compounds", type=int, help="how many are drawn")
    for name, text in dict(quick="draw no cells", further="draw the guesses in other ways as well",
                           write="put the record into the bundled model").items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args()


def main(asked):
    model = load_model(device=pick_device())
    known = mechanisms_of(model.vocab)
    figures = classifier_figures(known.known, known.offered)
    print(f"{classifier_table(figures)}\n\n{counts_text(known.known, seconds_a_verdict(model.vocab))}\n", flush=True)
    if asked.quick: return
    cells, wells = read_cells(asked.data), read_wells(asked.wells)
    structural = stored_scores(model.config["molecules"]["trials"])
    names = list(dict.fromkeys(structural["compound"]))[:asked.compounds]
    structural, measured = structural[structural["compound"].isin(names)], measure(cells)
    networks = networks_with_structure(model, cells, names) if asked.further else dict.fromkeys(names, {})
    trials = mechanism_trials(model, model.net, measured, names, wells, pick_device(), asked.cells, networks.get)
    own = trials[trials["way"].isin(ways)]
    record = mechanism_record(own, structural, figures)
    print(f"{record['table']}\n\n{left_out_text(model.vocab, own)}\n", flush=True)
    if asked.write: write(record)
    if asked.further: print(further_table(pd.concat([trials, at_usual(model, measured, names, wells, asked.cells)])))


if __name__ == "__main__": main(options())
