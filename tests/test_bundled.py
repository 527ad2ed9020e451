"The weights that come with the package: what they know, what they weigh, and whether their cells look like what they should be."
import json

import numpy as np
import pandas as pd
import pytest
import torch

from mfm_app.cli import cells_of_condition, generate_condition
from mfm_app.core import InputError
from mfm_app.vocabulary import check_dose
from mfm_app.evaluation import calibrate, classify
from mfm_app.features import morphology, seam
from mfm_app.hub import bundled, load_model


@pytest.fixture(scope="module")
def model(): return load_model()


def test_it_is_small_enough_and_carries_its_licence():
    assert sum(p.stat().st_size for p in bundled.iterdir()) < 40e6
    assert {p.name for p in bundled.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (bundled / "README.md").read_text(encoding="utf-8")
    for words in ("CC-BY-4.0", "AstraZeneca", "idr0035", "Caie", "| step | loss |", "minutes"): assert words in card


def test_it_knows_every_training_compound_and_no_other(model):
    assert len(model.vocab.names) == 32 and model.vocab.names[0] == "DMSO" and len(model.vocab.experiments) == 10
    for unseen in ("docetaxel", "cytochalasin D", "demecolcine"):
        with pytest.raises(InputError): model.vocab.perturbation(unseen)


def test_its_vocabulary_is_that_of_the_training_split(model, real_cells):
    from mfm_app.data import vocabulary
    assert model.vocab == vocabulary(real_cells)


def test_doses_between_and_somewhat_beyond_those_seen_are_taken(model):
    assert check_dose(model.vocab, "cyclohexamide", 8.) == 8 and check_dose(model.vocab, "cyclohexamide", 500.) == 500
    with pytest.raises(InputError, match="it saw 5, 15, 50 µM, and 0.5 to 500 µM is allowed"): check_dose(model.vocab, "cyclohexamide", 501)


def test_the_card_reports_a_morphology_test_that_was_run(model):
    report = json.loads((bundled / "config.json").read_text(encoding="utf-8"))["quality"]
    assert report["cells_per_condition"] == 256 and 0.9 < report["seam"]["generated"] < 1.1


def test_the_readme_gives_the_figures_of_the_card():
    quality = json.loads((bundled / "config.json").read_text(encoding="utf-8"))["quality"]
    readme = (bundled.parents[2] / "README.md").read_text(encoding="utf-8")
    real, generated = quality["report"]["iid"], quality["report"]["generated"]
    for measure in ("accuracy", "balanced_accuracy"):
        for recognised in (real, generated): assert f"{100 * recognised[measure]:.0f} %" in readme
    both = [c for c in generated["recalls"] if c in real["recalls"]]      # the real cells lack a condition
    for recognised in (real, generated): assert f"{100 * np.mean([recognised['recalls'][c] for c in both]):.0f} %" in readme
    for kind in ("real", "generated"): assert f"{quality['seam'][kind]:.3f}" in readme


# Molecules

def test_it_reads_every_training_compound_that_has_a_structure_nearly_as_its_name(model):
    from mfm_app.conditioning import treatment
    from mfm_app.vocabulary import condition
    from mfm_app.molecules import read_molecule
    cosines = []
    for p in model.vocab.perturbations:
        if not p.smiles or not p.doses: continue
        fp = torch.tensor(model.encode([read_molecule(p.smiles).smiles])[0], dtype=torch.float32)
        said = condition(model.vocab, p.name), condition(model.vocab, model.vocab.unlisted, condition(model.vocab, p.name).dose_um.item(), fp=fp)
        with torch.no_grad(): by_name, by_structure = (treatment(model.net.adaptor, row, 1) for row in said)
        cosines.append(torch.nn.functional.cosine_similarity(by_name, by_structure).item())
    assert len(cosines) == 27 and min(cosines) > 0.7 and np.mean(cosines) > 0.85, cosines


def test_the_card_shows_held_out_compounds_against_four_baselines(model):
    taught, card = model.config["molecules"], (bundled / "README.md").read_text(encoding="utf-8")
    trials = pd.DataFrame(taught["trials"])
    ood = trials[trials["split"] == "ood"]
    assert set(ood["compound"]) == {h["name"] for h in taught["held_out"]} == {"docetaxel", "cytochalasin D", "demecolcine"}
    for method in ("molecule adaptor", "copy the control", "unconditional", "nearest compound", "same mechanism, by label"):
        assert (ood["method"] == method).sum() == 3 and method in card
    assert taught["left_out"] == ["AZ-A", "AZ-C", "AZ-J", "AZ-U"] and "AZ-A, AZ-C, AZ-J, AZ-U" in card
    own = trials[trials["method"] == "molecule adaptor"]
    assert taught["calibration"] == calibrate(own["tanimoto"], own["right"])


def test_the_readme_gives_the_figures_of_the_held_out_compounds(model):
    readme = (bundled.parents[2] / "README.md").read_text(encoding="utf-8")
    taught = model.config["molecules"]
    trials, (near, far) = pd.DataFrame(taught["trials"]), (taught["calibration"][side] for side in ("near", "far"))
    left = trials[trials["split"] == "left out"]
    median = lambda method: f"{left[left['method'] == method]['cosine'].astype(float).median():.2f}"
    right = lambda method: left[left["method"] == method]["right"].astype(bool).sum()
    assert f"for {near[0] + far[0]} of these {near[1] + far[1]}" in readme and f"Tanimoto {taught['calibration']['threshold']:.2f} or more" in readme
    assert near == [1, 4] and "of the four whose structure is nearest" in readme and "for one." in readme
    assert f"effect is {median('molecule adaptor')}" in readme and f"gives {median('nearest compound')} and {right('nearest compound')} right" in readme
    assert f"told the mechanism, {median('same mechanism, by label')} and {right('same mechanism, by label')} of {(left['method'] == 'same mechanism, by label').sum()}" in readme


@pytest.fixture(scope="module")
def drawn(model, real_cells):
    "48 generated cells of each of three conditions, spread over experiments as the real ones are."
    wanted = {"DMSO": None, "cyclohexamide": 50., "taxol": 0.3}
    return {name: generate_condition(model, cells_of_condition(real_cells.where(split="train"), name, dose), name, dose, 48, "cpu") for name, dose in wanted.items()}


def test_a_classifier_of_real_cells_recognises_generated_ones(drawn, real_cells):
    names = [c["name"] for c in real_cells.channels]
    train = [cells_of_condition(real_cells.where(split="train"), *which) for which in (("DMSO", None), ("cyclohexamide", 50.), ("taxol", .3))]
    train = [part.where(experiment=["Week4", "Week2", "Week1", "Week5"]) for part in train]
    images, labels = np.concatenate([p.images[:400] for p in train]), np.concatenate([p.table["perturbation"][:400] for p in train])
    cells = morphology(np.concatenate(list(drawn.values())), names)
    found = classify(morphology(images, names), labels, dict(generated=(cells, np.repeat(list(drawn), 48))))["generated"]
    assert found.balanced_accuracy > 0.75, found


def test_no_seam_shows(drawn, real_cells):
    real = seam(real_cells.where(split="iid").images, 8)
    assert abs(seam(np.concatenate(list(drawn.values())), 8) - real) < 0.05


def test_seeds_differ_and_repeat(drawn, model):
    from mfm_app.engine import load
    again = [load().generate("taxol", 0.3, seeds=[5, 6], steps=4, compare=False).images.astype(int) for _ in range(2)]
    assert np.abs(again[0] - again[1]).max() <= 1 and np.abs(again[0][0] - again[0][1]).mean() > 5
