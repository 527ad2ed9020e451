"""How well pathways, batches and cell lines of the simulated genes are recognised, in simulated cells and in those of
a model, how far these lie from each other, and how near counterfactuals come to true twins.
`python bench/genes.py [MODEL_FOLDER] [--write]` prints Markdown; with --write it goes into the model's card, too."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from mfm_app.core import markdown_table
from mfm_app.counterfactual import CounterfactualRequest, Treatment, stream
from mfm_app.data import conditions
from mfm_app.engine import Engine
from mfm_app.evaluation import classify, frechet, kid, z_score
from mfm_app.features import morphology
from mfm_app.hub import bundled_folder, config_writers, load_model, write_files
from mfm_app.sampling import generation, sample_images
from mfm_app.simulator import dataset, genes, pathways, twins
from mfm_app.validation import twin_scores

names = [channel["name"] for channel in genes.channels]


def mean_and_error(values):
    "Mean and its standard error."
    values = np.asarray(values, float)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def percent(values): return "{:.0%} ± {:.0%}".format(*mean_and_error(values)).replace("% ±", " ±")
def number(values, digits=1): return "{:.{d}f} ± {:.{d}f}".format(*mean_and_error(values), d=digits)


def corrected(features, table, controls, their_table):
    "Features in standard deviations of the controls of the same experiment."
    result = np.empty(features.shape)
    for experiment in genes.experiments:
        rows, there = ((t["experiment"] == experiment).to_numpy() for t in (table, their_table))
        result[rows] = z_score(controls[there], features[rows])[1]
    return result


def accuracy(train, labels, tests):      # tests: (features, labels) each
    "Balanced accuracies of one classifier on several sets."
    results = classify(train, labels, dict(enumerate(tests)))
    return [results[i].balanced_accuracy for i in results]


def rows_where(table, **values):
    "Mask of the rows whose columns have these values."
    return np.logical_and.reduce([(table[column] == value).to_numpy() for column, value in values.items()])


def told_apart(x, table, chosen, g, drawn, asked, column, folds, leave_out):
    """Accuracies in simulated and in generated cells, a fold each. For each value of the column `folds`, a classifier
    of `column` is trained on the other values (`leave_out`) or on training cells of the same one."""
    train, scores = (table["split"] == "train").to_numpy(), []
    for value in table[folds].unique():
        here, there = rows_where(table, **{folds: value}), rows_where(drawn, **{folds: value}) & asked
        seen, unseen = chosen & train & (~here if leave_out else here), chosen & ~train & here
        label = lambda t, rows: t[column].to_numpy(str)[rows]
        tests = (x[unseen], label(table, unseen)), (g[there], label(drawn, there))
        scores.append(accuracy(x[seen], label(table, seen), tests))
    return np.transpose(scores)


def recognition(features, table, generated, drawn):
    "Rows of a table: what is told apart, chance, in simulated cells, in those of the model."
    control, treated = ([rows_where(t, perturbation="EMPTY"), (t["moa"] != "").to_numpy()] for t in (table, drawn))
    (control, treated), (drawn_control, drawn_treated) = control, treated
    reference = control & (table["split"] == "train").to_numpy()
    forms = {"": lambda x, t: x, ", corrected": lambda x, t: corrected(x, t, features[reference], table[reference])}
    asked = [("moa", "pathways, in an experiment not seen", treated, drawn_treated, "experiment", True),
             ("cell_type", "cell lines, in an experiment not seen", control, drawn_control, "experiment", True),
             ("experiment", "experiments", control, drawn_control, "cell_type", False)]
    rows = []
    for words, form in forms.items():
        x, g = form(features, table), form(generated, drawn)
        for column, title, chosen, drawn_chosen, folds, leave_out in asked:
            n = table[column][chosen].nunique()
            scores = told_apart(x, table, chosen, g, drawn, drawn_chosen, column, folds, leave_out)
            rows.append([f"{n} {title}{words}", f"{1 / n:.1%}", *map(percent, scores)])
    return rows


def draws(a, b, measure, n, repeats=10):
    "A distance of random draws of n cells a side."
    rng = np.random.default_rng(0)
    return [measure(rng.permutation(a)[:n], rng.permutation(b)[:n]) for _ in range(repeats)]


def distances(train, train_table, iid, generated, table, n=150):
    "Rows of a table: condition, Fréchet distance and KID of generated cells and of other simulated ones."
    z, z_iid, z_generated = z_score(train, iid, generated)
    label = lambda t: t["moa"].mask(t["perturbation"] == "EMPTY", "EMPTY").to_numpy(str)
    rows = []
    for name in ("EMPTY", *pathways):
        real, fake = z_iid[label(table) == name], z_generated[label(table) == name]
        sets = fake, z[label(train_table) == name]
        spread = lambda values, d: f"{np.mean(values):.{d}f} ± {np.std(values):.{d}f}"
        rows.append([name, *(spread(draws(s, real, frechet, n), 1) for s in sets),
                     *(spread(draws(s, real, kid, n), 3) for s in sets)])
    return rows


def twin_rows(engine, observed, chosen, cells=16, experiments=("Exp1", "Exp4")):
    "Rows of a table: gene, correlation and error of predicted effects, over blocks of one line in one experiment."
    methods = ("counterfactual", "population mean", "copy the control")
    scores = {gene: {m: [] for m in methods} for gene in chosen}
    for i, (experiment, line) in enumerate((e, c) for e in experiments for c in genes.cell_lines):
        size, seed = engine.model.net.shape[-1], 10**6 + i
        pairs = {gene: twins(cells, gene, None, size, seed, genes, experiment, line) for gene in chosen}
        request = CounterfactualRequest(tuple(map(Treatment, chosen)), experiment, line)
        *_, answer = stream(engine, pairs[chosen[0]][0], request)
        mean = lambda name: observed.where(perturbation=name, cell_type=line).images.mean(0)
        for gene, treated in zip(chosen, answer.treated):
            before, after = (images.astype(float) for images in pairs[gene])
            shift = np.broadcast_to(mean(gene) - mean("EMPTY"), before.shape)
            predicted = treated.astype(float) - answer.reconstruction, shift, np.zeros_like(before)
            for method, effect in zip(methods, predicted):
                scores[gene][method].append(twin_scores(effect, after - before))
    of = lambda gene, method, key: number([s[key] for s in scores[gene][method]], 2 if key == "correlation" else 1)
    return [[genes.treatments[gene].moa, gene, *(of(gene, m, "correlation") for m in methods[:2]),
             *(of(gene, m, "error") for m in methods)] for gene in chosen]


def report(model):
    "Everything as Markdown, and a few figures by name."
    engine, size = Engine(model), model.net.shape[-1]
    cells = dataset(1536, 192, size, seed=1, assay=genes)
    train, iid = (cells.where(split=split) for split in ("train", "iid"))
    rows = conditions(iid.table, model.vocab)
    generated = sample_images(model.net, rows, range(len(iid)), "cpu", sampling=model.resolve_sampling(generation))
    measured = [morphology(images, names).to_numpy(float) for images in (train.images, iid.images, generated)]
    features, table = np.concatenate(measured[:2]), pd.concat([train.table, iid.table], ignore_index=True)
    recognised = recognition(features, table, measured[2], iid.table)
    apart = distances(measured[0], train.table, *measured[1:], iid.table)
    first = [listed.split()[0] for listed, _ in pathways.values()]
    middle = [listed.split()[3] for listed, _ in pathways.values()]
    twin = [row for chosen in (first, middle) for row in twin_rows(engine, cells, chosen)]
    return "\n\n".join([
        "A classifier that has not seen the experiment recognises the pathway of {2} of unseen simulated cells and of "
        "{3} of generated ones (chance {1}).".format(*recognised[0]) + f" There were {len(cells):,} simulated cells, "
        f"and {len(iid):,} generated ones of the same conditions. Effects of genes in this world are drawn, so the "
        "figures say how well the model knows the simulator and nothing about biology.",
        "Balanced accuracy of a classifier (morphology of six channels, logistic regression) trained on simulated "
        "cells, ± standard error over experiments (over cell lines where experiments are told apart); corrected: in "
        "standard deviations of the untreated cells of the same experiment:",
        markdown_table(["what is told apart", "chance", "simulated cells", "generated cells"], recognised, "lrrr"),
        "Distance from unseen simulated cells, in standard deviations of simulated ones, mean ± standard deviation "
        "of ten draws of 150 cells; the floor is that of other simulated cells:",
        markdown_table(["condition", "Fréchet", "floor", "KID", "floor"], apart, "lrrrr"),
        "Effects predicted on unseen untreated cells beside those of their true twins, the strongest and a middling "
        "gene of each pathway: medians of 16 cells, ± standard error over four cell lines in two experiments; errors "
        "in grey levels.",
        markdown_table(["pathway", "gene", "correlation: counterfactual", "population mean", "error: counterfactual",
                        "population mean", "copy the control"], twin, "llrrrrr")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="its folder; the bundled simulated-genes if left out")
    parser.add_argument("--write", action="store_true", help="into the card of the model, too")
    args = parser.parse_args()
    folder = args.model or bundled_folder("simulated-genes")
    model = load_model(folder)
    text = report(model)
    print(text)
    if args.write:
        model.config["quality"]["table"] = text
        write_files(folder, config_writers(model.config))
