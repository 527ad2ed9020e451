"The bundled model: its vocabulary, size and card, and whether its cells look like what they should be."
import json

import numpy as np
import pandas as pd
import pytest
import torch

from mfm_app.conditioning import label_embedding, perturbation_embedding
from mfm_app.core import InputError
from mfm_app.data import vocabulary
from mfm_app.engine import load
from mfm_app.evaluation import calibrate, classify
from mfm_app.features import morphology, seam
from mfm_app.finetune import methods
from mfm_app.hub import bundled, load_model
from mfm_app.molecules import read_molecule
from mfm_app.validation import cells_of, clearest_doses, generate_condition
from mfm_app.vocabulary import check_dose, condition


@pytest.fixture(scope="module")
def model(): return load_model()


@pytest.fixture(scope="module")
def config(): return json.loads((bundled / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def card(): return (bundled / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme(): return (bundled.parents[2] / "README.md").read_text(encoding="utf-8")


# Vocabulary and card

def test_it_is_small_enough_and_carries_its_licence(card):
    assert sum(p.stat().st_size for p in bundled.iterdir()) < 40e6
    assert {p.name for p in bundled.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    for words in ("CC-BY-4.0", "AstraZeneca", "idr0035", "Caie", "| step | loss |", "minutes"): assert words in card


def test_it_knows_every_training_compound_and_no_other(model):
    vocab = model.vocab
    assert len(vocab.names) == 32 and vocab.names[0] == "DMSO" and len(vocab.experiments) == 10
    for unseen in ("docetaxel", "cytochalasin D", "demecolcine"):
        with pytest.raises(InputError): vocab.perturbation(unseen)


def test_its_vocabulary_is_that_of_the_training_split(model, real_cells):
    assert model.vocab == clearest_doses(vocabulary(real_cells), real_cells)


def test_doses_between_and_somewhat_beyond_those_seen_are_allowed(model):
    assert check_dose(model.vocab, "cyclohexamide", 8.) == 8 and check_dose(model.vocab, "cyclohexamide", 500.) == 500
    with pytest.raises(InputError, match="it saw 5, 15, 50 µM, and 0.5 to 500 µM is allowed"):
        check_dose(model.vocab, "cyclohexamide", 501)


def test_the_card_reports_a_morphology_test_that_was_run(config):
    quality = config["quality"]
    assert quality["cells_per_condition"] == 256 and 0.9 < quality["seam"]["generated"] < 1.1


def test_the_readme_gives_the_figures_of_the_card(config, readme):
    quality = config["quality"]
    real, generated = quality["report"]["iid"], quality["report"]["generated"]
    both = [c for c in generated["recalls"] if c in real["recalls"]]      # the real cells lack a condition
    for recognised in (real, generated):
        for measure in ("accuracy", "balanced_accuracy"): assert f"{100 * recognised[measure]:.0f} %" in readme
        assert f"{100 * np.mean([recognised['recalls'][c] for c in both]):.0f} %" in readme
    for kind in ("real", "generated"): assert f"{quality['seam'][kind]:.3f}" in readme


# Molecules

def test_it_reads_every_training_compound_that_has_a_structure_nearly_as_its_label(model):
    "As the label alone, of which structures were learned; what wells told later is of names."
    cosines, vocab = [], model.vocab
    for p in vocab.perturbations:
        if not p.smiles or not p.doses: continue
        fp = torch.tensor(model.encode([read_molecule(p.smiles).smiles])[0], dtype=torch.float32)
        named = condition(vocab, p.name)
        row = condition(vocab, vocab.unlisted, named.dose_um.item(), fp=fp)
        with torch.no_grad():
            by_label = label_embedding(model.net.adaptor, named.y, named.dose_um)
            by_structure = perturbation_embedding(model.net.adaptor, row, 1)
        cosines.append(torch.nn.functional.cosine_similarity(by_label, by_structure).item())
    assert len(cosines) == 27 and min(cosines) > 0.7 and np.mean(cosines) > 0.85, cosines


def test_the_card_shows_held_out_compounds_against_four_baselines(config, card):
    record = config["molecules"]
    trials = pd.DataFrame(record["trials"])
    ood = trials[trials["split"] == "ood"]
    held_out = {compound["name"] for compound in record["held_out"]}
    assert set(ood["compound"]) == held_out == {"docetaxel", "cytochalasin D", "demecolcine"}
    assert len(methods) == 5
    for method in methods: assert (ood["method"] == method).sum() == 3 and method in card
    assert record["left_out"] == ["AZ-A", "AZ-C", "AZ-J", "AZ-U"] and "AZ-A, AZ-C, AZ-J, AZ-U" in card
    own = trials[trials["method"] == "molecule adaptor"]
    assert record["calibration"] == calibrate(own["tanimoto"], own["right"])


def test_the_readme_gives_the_figures_of_the_held_out_compounds(config, readme):
    record = config["molecules"]
    calibration, trials = record["calibration"], pd.DataFrame(record["trials"])
    by_method = dict(list(trials[trials["split"] == "left out"].groupby("method")))
    median = {method: f"{part['cosine'].astype(float).median():.2f}" for method, part in by_method.items()}
    right = {method: part["right"].astype(bool).sum() for method, part in by_method.items()}
    (near_right, near), (far_right, far) = calibration["near"], calibration["far"]
    assert (near_right, near) == (3, 4)
    assert "of the four whose structure is nearest" in readme and "for three." in readme
    own, copied, labelled = "molecule adaptor", "nearest compound", "same mechanism, by label"
    for words in (f"for {near_right + far_right} of these {near + far}",
                  f"Tanimoto {calibration['threshold']:.2f} or more",
                  f"effect is {median[own]}",
                  f"gives {median[copied]} and {right[copied]} right",
                  f"given the mechanism, {median[labelled]} and {right[labelled]} of {len(by_method[labelled])}"):
        assert words in readme


# Cells

judged = {"DMSO": None, "cyclohexamide": 50., "taxol": 0.3}      # perturbation -> dose


@pytest.fixture(scope="module")
def generated(model, real_cells):
    "24 generated cells of each of three conditions, spread over experiments as the real ones are."
    train = real_cells.where(split="train")
    return {name: generate_condition(model, cells_of(train, name, dose), name, dose, 24, "cpu")
            for name, dose in judged.items()}


def test_a_classifier_of_real_cells_recognises_generated_ones(generated, real_cells):
    channels, train = [c["name"] for c in real_cells.channels], real_cells.where(split="train")
    parts = [cells_of(train, *c).where(experiment=["Week4", "Week2", "Week1", "Week5"])[:400] for c in judged.items()]
    labels = np.concatenate([part.table["perturbation"] for part in parts])
    real, own = (morphology(np.concatenate(images), channels)
                 for images in ([part.images for part in parts], list(generated.values())))
    result = classify(real, labels, dict(generated=(own, np.repeat(list(generated), 24))))["generated"]
    assert result.balanced_accuracy > 0.75, result


def test_no_seam_shows(generated, real_cells):
    real = seam(real_cells.where(split="iid").images, 8)
    assert abs(seam(np.concatenate(list(generated.values())), 8) - real) < 0.05


def test_seeds_differ_and_repeat():
    generate = lambda: load().generate("taxol", 0.3, seeds=[5, 6], steps=4, compare=False).images.astype(int)
    first, again = generate(), generate()
    assert np.abs(first - again).max() <= 1 and np.abs(first[0] - first[1]).mean() > 5
