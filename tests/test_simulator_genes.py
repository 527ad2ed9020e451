"Simulated cells under siRNA: six stains, four lines, batches, and pathways whose genes do the same, in part."
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from conftest import many
from mfm_app.core import InputError
from mfm_app.counterfactual import CounterfactualRequest, Treatment, stream
from mfm_app.data import vocabulary
from mfm_app.engine import Engine, load
from mfm_app.evaluation import classify, z_score
from mfm_app.features import morphology
from mfm_app.hub import bundled, from_pretrained, load_model
from mfm_app.simulator import (batch, blurred, cell_lines, data_sets, dataset, design, genes, painted_cells, pathways,
                               place, population, random_cells, render, treat, twins)
from mfm_app.validation import twin_scores

names = [channel["name"] for channel in genes.channels]
members = {pathway: listed.split() for pathway, (listed, _) in pathways.items()}
strongest = {pathway: listed[0] for pathway, listed in members.items()}
each_pathway = pytest.mark.parametrize("pathway", pathways)
some = painted_cells(12, np.random.default_rng(0))
changed_channels = dict(      # of all six, where no other may change
    Proteasome="ER Actin RNA Golgi", Translation="DNA ER Actin RNA Mitochondria Golgi", Actin="ER Actin RNA "
    "Mitochondria Golgi", Secretion="ER Golgi", Respiration="Mitochondria")


def difference(pair): return np.abs(pair[1].astype(float) - pair[0]).mean((0, 2, 3))      # grey levels a channel


# Genes and pathways

def test_there_are_60_genes_of_8_pathways_without_doses_and_two_controls():
    cells = dataset(96, 4, size=16, assay=genes)
    vocab = vocabulary(cells)
    assert vocab.controls == ["EMPTY", "non-targeting"] and len(vocab.treated) == 60 and vocab.kind.one == "siRNA"
    assert {p.moa for p in vocab.treated} == set(pathways) and len(pathways) == 8
    for p in vocab.treated: assert p.gene == p.name in members[p.moa] and not p.doses and not p.smiles
    assert vocab.treatment("kif11") == "KIF11 siRNA" and vocab.control_of("KIF11") == "EMPTY"
    assert set(vocab.cell_types) == set(cell_lines) and vocab.experiments == [f"Exp{i}" for i in range(1, 7)]
    assert "drawn, not measured" in cells.about["title"]


@each_pathway
def test_genes_of_a_pathway_change_the_same_parameters_in_the_same_direction_each_in_its_own_measure(pathway):
    _, wanted = pathways[pathway]
    factors = [genes.treatments[gene].factors for gene in members[pathway]]
    for key, full in wanted.items():
        logs, clear = np.log([f[key] for f in factors]), abs(np.log(full)) > .25
        assert np.sign(logs.mean()) == np.sign(np.log(full)), key
        assert not clear or (np.sign(logs[:4]) == np.sign(np.log(full))).all(), key
        assert abs(logs[-1]) < .15, "the last one hardly does anything"
    assert all(set(f) == set(wanted) for f in factors) and len({tuple(f.values()) for f in factors}) == len(factors)


@each_pathway
def test_an_sirna_changes_the_parameters_of_its_pathway_and_no_other(pathway):
    after = treat(some, strongest[pathway], assay=genes)
    changed = {f.name for f in fields(some) if not np.array_equal(getattr(some, f.name), getattr(after, f.name))}
    assert changed == set(pathways[pathway][1])


@each_pathway
def test_the_strongest_gene_shows_and_the_weakest_hardly_does(pathway):
    of = lambda gene: difference(twins(12, gene, None, 32, assay=genes)).max()
    assert of(members[pathway][0]) > 4 > 2 > of(members[pathway][-1])
    assert of("non-targeting") < 1


@pytest.mark.parametrize("pathway", changed_channels)
def test_only_channels_that_show_what_changed_change(pathway):
    untreated, after = twins(6, strongest[pathway], assay=genes)
    changed = [name for i, name in enumerate(names) if (untreated[:, i] != after[:, i]).any()]
    assert set(changed) <= set(changed_channels[pathway].split())


def test_pathways_change_the_image_as_their_names_say():
    pairs = {pathway: [images.astype(float) for images in twins(12, gene, assay=genes)]
             for pathway, gene in strongest.items()}
    level = lambda pathway, channel: [x[:, names.index(channel)].mean((1, 2)) for x in pairs[pathway]]
    area = lambda pathway, channel: [(x[:, names.index(channel)] > 60).sum((1, 2)) for x in pairs[pathway]]
    rises = lambda pair: (pair[1] > pair[0]).all()
    falls = lambda pair: (pair[1] < pair[0]).all()
    assert rises(area("Replication", "DNA")) and falls(area("Spindle", "Actin")) and rises(level("Proteasome", "ER"))
    assert falls(level("Translation", "RNA")) and falls(level("Respiration", "Mitochondria"))
    assert falls(level("Secretion", "Golgi")) and rises(level("Splicing", "RNA"))
    steps = lambda x: np.abs(np.diff(x[:, names.index("Actin")], axis=-1)).mean((1, 2))
    before, after = (steps(x).mean() for x in pairs["Actin"])
    assert after > 1.2 * before, "stronger stress fibres"


# Cell lines and experiments

def test_six_stains_do_not_change_what_three_see():
    "Cells with more organelles are drawn like those without, so a seed has one outline and one nucleus in both."
    three, six = (draw(5, np.random.default_rng(3)) for draw in (random_cells, painted_cells))
    for f in fields(three): assert np.array_equal(getattr(three, f.name), getattr(six, f.name))
    assert render(six[2:4], 16, genes.stains).shape == (2, 6, 16, 16)


def test_lines_differ_in_size_shape_and_stain():
    def of(line):
        cells = place(replace(some, centre=0 * some.centre), None, line, genes)
        body = render(replace(cells, blur=0 * cells.blur + .01), 48, genes.stains)[:, names.index("Actin")] > 40
        moments = [np.linalg.eigvalsh(np.cov(np.argwhere(mask).T)) for mask in body]
        return body.mean(), np.median([np.sqrt(high / low) for low, high in moments])
    (broad, _), (_, spindle), (_, round_), (small, _) = map(of, ("broad", "spindle", "round", "small"))
    assert broad > 1.6 * small and spindle > 1.4 > 1.2 > round_
    dna = lambda line: place(some, None, line, genes).dna.mean()
    assert dna("small") > 1.1 * dna("round")


def test_an_experiment_is_a_batch_that_changes_the_imaging_alone():
    first, second = (place(some, name, "round", genes) for name in ("Exp1", "Exp2"))
    changed = {f.name for f in fields(some) if not np.array_equal(getattr(first, f.name), getattr(second, f.name))}
    assert changed == {"gain", "offset", "blur", "noise"} == set(batch(0))
    ground = [np.median(render(replace(p, noise=0 * p.noise), 32, genes.stains)[..., :2, :2], (0, 2, 3))
              for p in (first, second)]
    expected = [255 * (.02 + 1 - np.exp(-1.3 * p.offset[0])) for p in (first, second)]
    assert np.abs(np.subtract(ground, expected)).max() < 2, "the ground of each channel is its offset"


@many(25)
@given(sigma=st.floats(.05, 2), size=st.sampled_from([16, 17, 24]), seed=st.integers(0, 99))
def test_blur_is_a_gaussian_point_spread(sigma, size, seed):
    image = np.random.default_rng(seed).random((1, 1, size, size)).astype(np.float32)
    ours = blurred(image, np.float32([[sigma]]))[0, 0]
    margin = min(7, size // 2 - 1)      # ours divides by what lies inside the image, theirs mirrors
    theirs = ndimage.gaussian_filter(image[0, 0].astype(float), sigma, truncate=8)
    inner = slice(margin, -margin)
    assert np.abs(ours[inner, inner] - theirs[inner, inner]).max() < .01
    assert np.allclose(blurred(0 * image + .5, np.float32([[sigma]])), .5, atol=1e-5), "an even plane stays"


@many(25)
@given(wells=st.integers(1, 120))
def test_cells_of_a_well_share_experiment_and_line_and_one_of_four_is_kept_back(wells):
    table = design(4 * wells, genes)
    by_well = table.groupby(np.arange(len(table)) // 4)
    assert (by_well[["experiment", "cell_type"]].nunique() == 1).all(axis=None)
    assert (by_well["split"].agg(list).map(lambda s: s == ["train"] * 3 + ["iid"])).all()
    counts = table.groupby(["experiment", "cell_type"]).size()
    assert counts.max() - counts.min() <= 4 and len(counts) == min(wells, 24)


def test_each_cell_is_rendered_in_its_own_line_and_batch():
    cells = population([("EMPTY", 0, 100)], 16, 0, genes)
    drawn = painted_cells(100, np.random.default_rng(0))
    for i in (0, 5, 50, 99):
        row = cells.table.iloc[i]
        one = place(drawn[[i]], row["experiment"], row["cell_type"], genes)
        assert np.array_equal(cells.images[i], render(one, 16, genes.stains)[0])


# Bad input

@pytest.mark.parametrize("wrong, words", [
    (dict(dose_um=1.), "KIF11 has no dose"), (dict(name="KIF12"), "Unknown treatment 'KIF12'"),
    (dict(experiment="Exp9"), "Unknown experiment 'Exp9'"), (dict(cell_line="flat"), "Unknown cell line 'flat'"),
    (dict(name="EMPTY"), "Unknown treatment"), (dict(n=0), "number of cells")], ids=str)
def test_what_the_assay_does_not_have_is_refused_in_one_sentence(ask, wrong, words):
    assert words in str(ask(twins, **dict(n=1, name="KIF11", size=16, assay=genes) | wrong))


# Recognition

@pytest.fixture(scope="module")
def measured():
    "Morphology of untreated cells and of cells under the strongest gene of each pathway, and their table."
    cells = population([("EMPTY", 0, 192), *((gene, 0, 96) for gene in strongest.values())], 32, 1, genes)
    return morphology(cells.images, names).to_numpy(float), cells.table


def test_batches_and_lines_are_recognised_in_untreated_cells(measured):
    features, table = measured
    control, train = (table["perturbation"] == "EMPTY").to_numpy(), (table["split"] == "train").to_numpy()
    for column in ("experiment", "cell_type"):
        seen, asked = control & train, control & ~train
        labels = table[column].to_numpy(str)
        assert classify(features[seen], labels[seen], dict(a=(features[asked], labels[asked])))["a"].accuracy > .8


def test_pathways_are_recognised_in_an_experiment_not_seen_better_once_its_batch_is_corrected(measured):
    features, table = measured
    control, last = (table["perturbation"] == "EMPTY").to_numpy(), (table["experiment"] == "Exp6").to_numpy()
    corrected = features.copy()
    for name in table["experiment"].unique():
        here = (table["experiment"] == name).to_numpy()
        corrected[here] = z_score(features[here & control], features[here])[1]
    def recognised(x):
        seen, asked, labels = ~control & ~last, ~control & last, table["moa"].to_numpy(str)
        return classify(x[seen], labels[seen], dict(a=(x[asked], labels[asked])))["a"].balanced_accuracy
    assert recognised(corrected) > max(.75, recognised(features)) > 1 / 8


# The model of the simulated genes

folder = bundled.with_name("simulated-genes")


@pytest.fixture(scope="module")
def engine(): return Engine(load_model(folder), "cpu")


def test_the_model_knows_the_assay_and_is_small(engine):
    vocab = engine.vocab
    assert {p.name for p in vocab.perturbations} == {"EMPTY", *genes.treatments}
    assert vocab.controls == list(genes.controls) and vocab.counted == "60 siRNAs"
    assert engine.model.channels == genes.channels and sorted(vocab.cell_types) == sorted(cell_lines)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 2 * 2**20
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in ("60 siRNAs", "nothing about biology", "KIF11", "pathway"): assert words in card


def test_it_is_found_by_its_name():
    by_name = from_pretrained("simulated-genes")
    assert by_name.sha256 == from_pretrained(folder).sha256 and by_name.source == by_name.name == "simulated-genes"
    assert load("simulated-genes").model.sha256 == by_name.sha256


def test_predicted_effects_on_unseen_cells_are_nearer_to_their_twins_than_no_effect(engine):
    some_genes, size = list(strongest.values()), engine.model.net.shape[-1]
    pairs = [twins(8, gene, None, size, 3 * 10**6, genes, "Exp2", "round") for gene in some_genes]
    request = CounterfactualRequest(tuple(map(Treatment, some_genes)), "Exp2", "round")
    *_, answer = stream(engine, pairs[0][0], request)
    true = [after.astype(float) - before for before, after in pairs]
    scores = [twin_scores(treated.astype(float) - answer.reconstruction, t) for treated, t in zip(answer.treated, true)]
    nothing = [twin_scores(0 * t, t)["error"] for t in true]
    assert np.mean([s["error"] for s in scores]) < .9 * np.mean(nothing)
    assert np.mean([s["correlation"] for s in scores]) > .5


# The command

@pytest.mark.parametrize("name", data_sets)
def test_mfm_train_takes_simulated_cells_by_their_name(name, mfm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data_sets, name, partial(data_sets[name], controls=24, each=4))
    code, text = mfm("train", "--data", name, "--backbone", "nano/8", "--image-size", 16, "--steps", 1, "--batch", 4,
                     "--out", "run")
    assert code == 0 and "mfm serve --model" in text
    assert load_model(tmp_path / "run/model").config["data"]["attribution"] == "drawn by mfm_app.simulator"
