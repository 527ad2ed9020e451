"Fine-tuning on molecules: which weights change, what is left out, and that nothing held out was trained on."
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mfm_app.conditioning import freeze_base, perturbation_embedding
from mfm_app.core import Condition, InputError
from mfm_app.data import Batches, vocabulary, with_structure
from mfm_app.engine import Engine
from mfm_app.evaluation import calibrate, kid
from mfm_app.finetune import (FinetuneConfig, finetune, guesses, imaged_rows, judged_by_mechanism, measure,
                              mechanism_record, mechanism_trials, methods, mixed_rows, nearest_compound, random_model,
                              split_by_mechanism, trial_conditions, ways, with_molecules)
from mfm_app.flow import guided
from mfm_app.hub import load_model, save_model
from mfm_app.mechanism import mechanisms_of, substructures
from mfm_app.molecules import EmbeddingTable, Morgan, read_molecule
from mfm_app.simulator import synthetic_cells

cells = synthetic_cells(24, size=32)
structured = with_structure(cells)[0]
quick = FinetuneConfig(steps=3, warm_start=20, batch=8)
standard = [read_molecule(s).smiles for s in sorted(set(structured.table["smiles"]))]


def fingerprint(smiles="CCO"): return torch.tensor(Morgan()([smiles]), dtype=torch.float32)      # (1, 2048)


def changed(before, after):
    "The first parts of the names of the weights that differ."
    after = after.state_dict()
    return {".".join(name.split(".")[:2]) for name, w in before.items() if not torch.equal(w, after[name])}


# Training

def test_a_frozen_base_stays_as_it_is_to_the_last_bit():
    model = random_model(cells)
    before = {k: v.clone() for k, v in with_molecules(model, Morgan()).state_dict().items()}
    assert changed(before, finetune(model, structured, Morgan(), quick).ema.module) == {"adaptor.molecule"}


def test_the_option_lets_adaln_layers_learn_and_nothing_else():
    net = freeze_base(random_model(cells).net, modulations=True)
    trainable = {name for name, w in net.named_parameters() if w.requires_grad}
    is_modulation = lambda name: name.startswith("backbone.") and ".modulation." in name
    assert any(map(is_modulation, trainable))
    assert all(name.startswith("adaptor.molecule.") or is_modulation(name) for name in trainable)


def test_batches_give_molecules_in_place_of_labels():
    x1, condition = Batches(structured, vocabulary(cells), 6, encode=Morgan())(0)
    assert condition.y is None and condition.fp.shape == (6, 2048) and condition.dose_um.isfinite().all()
    assert set(condition.fp.sum(1).tolist()) <= {float(Morgan()([s]).sum()) for s in standard}


def test_guidance_starts_from_the_same_null_for_names_and_molecules():
    net = random_model(cells).net
    t = torch.full((1,), 0.5)
    null = net.adaptor(t, Condition())
    assert torch.equal(null, net.adaptor(t, Condition(fp=torch.full((1, 2048), torch.nan))))
    cond = net.adaptor(t, Condition(fp=fingerprint(), dose_um=torch.ones(1)))
    assert torch.allclose(guided(null, cond, 1.), cond) and not torch.allclose(null, cond)


def test_in_training_some_molecules_are_dropped_to_the_null_row():
    net = random_model(cells).net.train()
    net.adaptor.molecule.eval()
    with torch.no_grad():
        molecules = Condition(fp=fingerprint().expand(4000, -1), dose_um=torch.ones(4000))
        rows = net.adaptor(torch.zeros(4000), molecules)
        null = net.adaptor(torch.zeros(1), Condition())
    assert abs(torch.isclose(rows, null, atol=1e-5).all(1).float().mean() - 0.15) < 0.03


def test_a_molecule_without_a_dose_is_read_at_one_micromolar():
    net, fp = random_model(cells).net, fingerprint()
    embedding = lambda dose: perturbation_embedding(net.adaptor, Condition(fp=fp, dose_um=dose), 1)
    one = embedding(torch.ones(1))
    assert torch.equal(embedding(None), one) and torch.equal(embedding(torch.tensor([torch.nan])), one)


def test_a_network_of_names_alone_refuses_molecules():
    net = random_model(cells).net
    net.adaptor.molecule = None
    with pytest.raises(InputError, match="by name alone; `mfm finetune`"):
        net.adaptor(torch.ones(1), Condition(fp=torch.ones(1, 2048)))


def test_fine_tuning_again_starts_anew_as_the_first_may_have_seen_what_is_now_held_out():
    model = random_model(cells)
    first = with_molecules(model, Morgan())
    torch.nn.init.constant_(first.adaptor.molecule.out.weight, 7.)
    model.net = first
    assert not with_molecules(model, Morgan()).adaptor.molecule.out.weight.any()


def test_a_folder_holds_both_adaptors_and_reads_both_as_before(tmp_path):
    model = random_model(cells)
    save_model(tmp_path, model.net, model.config, dtype=torch.float32)
    again = load_model(tmp_path)
    t, x = torch.full((1,), .5), torch.randn(1, *model.net.shape)
    for condition in (Condition(y=torch.tensor([1])), Condition(fp=fingerprint(), dose_um=torch.ones(1))):
        with torch.no_grad(): assert torch.equal(model.net(x, t, condition), again.net(x, t, condition))
    assert again.encode.to_dict() == model.encode.to_dict()


# Held-out compounds

def test_compounds_of_a_mechanism_are_split_into_different_folds():
    table = structured.table.assign(moa="one")
    folds = split_by_mechanism(type(structured)(structured.images, table, structured.channels), 2)
    assert sorted(map(len, folds)) == [1, 1] and sum(map(len, split_by_mechanism(structured, 6))) == 2


def test_the_nearest_compound_is_nearest_by_structure():
    name, tanimoto = nearest_compound(structured, "CC(=O)Oc1ccccc1C(=O)OC")
    assert name == "sweller" and 0.5 < tanimoto < 1


def test_measured_cells_keep_each_cell_with_its_features():
    measured, few = measure(cells), cells.where(perturbation=["sweller", "DMSO"], split="train")
    selected = measured.where(perturbation=["sweller", "DMSO"], split="train")
    assert np.array_equal(selected.cells.images, few.images) and selected.features.equals(measure(few).features)
    assert len(measured.where(split="none").features) == 0
    is_sweller = (few.table["perturbation"] == "sweller").to_numpy()
    assert selected.features_of("sweller").equals(selected.features[is_sweller])


def test_a_trial_has_the_same_experiments_for_every_method_and_gives_none_the_name():
    model, held_out = random_model(cells), cells.where(perturbation="sweller")
    vocab, moa = model.vocab, held_out.table["moa"][0]
    for p in vocab.perturbations: p.moa = moa if p.doses else ""      # the stabiliser gets the mechanism of the sweller
    model.config["vocabulary"] = vocab.to_dict()
    trials = trial_conditions(model, cells, held_out, Morgan(), 5)
    labels = {method: None if rows.y is None else set(rows.y.tolist()) for method, rows in trials.items()}
    control, stabiliser = map(vocab.names.index, ("DMSO", "stabiliser"))
    assert labels == {"control": {control}, "unconditional": None, "molecule adaptor": None,
                      "same mechanism, by label": {stabiliser}}
    assert all(torch.equal(rows.e, trials["control"].e) and len(rows) == 5 for rows in trials.values())
    assert trials["molecule adaptor"].fp.shape == (5, 2048) and trials["unconditional"].dose_um is None


# On the command line

# By mechanism

acting = dict(sweller="Protein synthesis", stabiliser="Microtubule stabilizers")      # as annotated molecules do


@pytest.fixture(scope="module")
def real():
    "The simulated cells, as if their compounds acted by mechanisms of the annotated list."
    return replace(cells, table=cells.table.assign(moa=cells.table["perturbation"].map(acting).fillna("")))


@pytest.fixture(scope="module")
def by_mechanism(real):
    "A model of such cells, and trials of both compounds by it."
    model = random_model(real)
    return model, mechanism_trials(model, model.net, measure(real), list(acting), None, "cpu", 4)


def test_what_is_guessed_of_a_compound_leaves_it_out(by_mechanism):
    known = mechanisms_of(by_mechanism[0].vocab)
    emetine = next(m for m in known.known if m.mechanism == "Protein synthesis" and m.name not in acting)
    by_way = guesses(known, emetine.smiles, emetine.mechanism)
    assert list(by_way) == ways and by_way[ways[0]].weights == {emetine.mechanism: 1.}
    itself = known.likeliest(known.probabilities(substructures([emetine.smiles]))[0])[1]
    assert itself > by_way[ways[1]].probability >= by_way[ways[2]].probability


def test_a_mixture_for_a_held_out_compound_has_all_others_of_its_mechanism_and_not_itself():
    model = random_model(replace(cells, table=cells.table.assign(moa=np.where(cells.is_control, "", "Same"))))
    rows = mixed_rows(model.vocab, imaged_rows(model.vocab, structured, 3), {"Same": 0.75}, "sweller")
    weights = dict(zip(model.vocab.names, rows.mix[0, :, 0].tolist()))
    assert weights == dict(DMSO=0.25, sweller=0, stabiliser=0.75) and (rows.y == -1).all()


def test_a_compound_alone_with_its_mechanism_is_drawn_as_untreated_and_not_right(by_mechanism):
    known = by_mechanism[1].set_index("way").loc["mechanism known"]
    assert set(known["compound"]) == set(acting) and known["claimed"].all() and not known["right"].any()
    assert (known["error"].astype(float) - 1).abs().max() < 1e-3 and known["wells"].isna().all()


def structural(real, right):
    "Trials by structure with made-up outcomes."
    rows = [dict(method=method, compound=name, true_mechanism=moa, right=right and method == methods[0])
            for name, moa in acting.items() for method in methods[:2]]
    return pd.DataFrame(rows)


def test_the_record_counts_what_was_right_and_says_that_no_wells_were_given(real, by_mechanism):
    record = mechanism_record(by_mechanism[1], structural(real, True), {})
    assert record["drawn"]["by structure (the molecule adaptor)"] == [2, 2] and record["drawn"][ways[0]] == [0, 2]
    assert record["drawn"]["copy the control"] == [0, 2] and set(record["named"]) == set(ways[1:])
    assert "No measured wells were given" in record["table"] and json.dumps(record, allow_nan=False)


def test_molecules_are_drawn_by_mechanism_only_where_that_was_as_often_right(real, by_mechanism, monkeypatch):
    model, trials = by_mechanism
    monkeypatch.setattr("mfm_app.finetune.classifier_figures", lambda *known: {})
    monkeypatch.setattr("mfm_app.finetune.mechanism_trials", lambda *asked: trials)
    asked = lambda right: judged_by_mechanism(model, model.net, None, structural(real, right), None, "cpu")
    record, said = asked(False)
    assert record["drawn"][ways[1]][1] == 2 and said == ""
    record, said = asked(True)
    assert record == {} and "so the model draws molecules by structure" in said and "cells drawn" in said


def test_without_annotated_compounds_of_its_mechanisms_it_is_said_that_this_was_not_judged():
    model, measured = random_model(cells), measure(cells)
    trials = structural(cells, True).assign(true_mechanism="Swelling")
    record, said = judged_by_mechanism(model, model.net, measured, trials, None, "cpu")
    assert record == {} and "was not judged: of no mechanism of this model are 3 molecules" in said


# The command

@pytest.fixture
def finetune_args(tmp_path):
    "A model folder, data with two treated compounds, some of them without a structure, and the command for both."
    def make(nameless=()):
        data, model = tmp_path / "data", random_model(cells)
        data.mkdir()
        smiles = cells.table["smiles"].where(~cells.table["perturbation"].isin(nameless), "")
        table = cells.table.assign(smiles=smiles, shard="a.npz", row=range(len(cells)))
        table.to_csv(data / "metadata.csv", index=False)
        np.savez(data / "a.npz", images=cells.images.transpose(0, 2, 3, 1))
        channels = [dict(name=c["name"], display_colour=c["colour"]) for c in cells.channels]
        info = dict(image_shape=[32, 32, 3], npz_key="images", control_label="DMSO", channels=channels)
        (data / "dataset.json").write_text(json.dumps(info))
        save_model(tmp_path / "model", model.net, model.config)
        return ["finetune", "--model", str(tmp_path / "model"), "--data", str(data), "--steps", "2",
                "--warm-start", "20", "--batch", "8", "--folds", "0"]
    return make


def test_other_embeddings_come_in_as_a_table_and_stay_with_the_folder(finetune_args, tmp_path, mfm):
    args = finetune_args()
    values = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    header = ",".join(["smiles", *(f"d{i}" for i in range(12))])
    lines = [",".join([smiles, *map(str, row)]) for smiles, row in zip(standard, values)]
    (tmp_path / "molgps.csv").write_text("\n".join([header, *lines]))
    assert mfm(*args, "--embeddings", str(tmp_path / "molgps.csv"))[0] == 0
    engine = Engine(load_model(tmp_path / "model"), "cpu")
    assert isinstance(engine.model.encode, EmbeddingTable) and np.allclose(engine.model.encode(standard), values)
    assert engine.generate(molecule=standard[0], seeds=[1], steps=1).images.shape == (1, 3, 32, 32)
    with pytest.raises(InputError, match="CCO is not in the embedding"): engine.assess("CCO")


def test_a_table_that_lacks_a_training_compound_is_refused_before_training(finetune_args, tmp_path, mfm):
    args = finetune_args()
    (tmp_path / "few.csv").write_text(f"smiles,a\n{standard[0]},1\n")
    before = (tmp_path / "model/model.safetensors").read_bytes()
    code, text = mfm(*args, "--embeddings", str(tmp_path / "few.csv"))
    assert code == 2 and "is not in the embedding" in text
    assert (tmp_path / "model/model.safetensors").read_bytes() == before


def test_too_few_structures_are_refused_in_words(finetune_args, mfm):
    code, text = mfm(*finetune_args(nameless=["sweller"]))
    assert code == 2 and "at least two compounds with a structure" in text


def test_fine_tuning_resumes_where_it_stopped(finetune_args, tmp_path, mfm):
    args = [*finetune_args(), "--run", str(tmp_path / "run")]
    assert mfm(*args)[0] == 0 and mfm(*args, "--steps", "4")[0] == 0
    assert torch.load(tmp_path / "run/molecules.pt", weights_only=True)["step"] == 4


def test_the_folds_are_resumed_too(finetune_args, tmp_path, mfm):
    args, folds = [*finetune_args(), "--run", str(tmp_path / "run")], ["--folds", "2"]
    assert mfm(*args, *folds)[0] == 0
    first = {path.name: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").iterdir())}
    assert list(first) == ["molecules-fold-1-of-2.pt", "molecules-fold-2-of-2.pt", "molecules.pt"]
    before = load_model(tmp_path / "model").config["molecules"]["table"]
    assert "was not judged" in before
    assert mfm(*args, *folds)[0] == 0 and load_model(tmp_path / "model").config["molecules"]["table"] == before


def test_the_former_name_of_the_warm_start_still_works(finetune_args, tmp_path, mfm):
    assert mfm(*finetune_args(), "--imitate", "7")[0] == 0
    record = load_model(tmp_path / "model").config["molecules"]
    assert record["finetune"] | dict(warm_start=7, steps=2) == record["finetune"]


# Figures with known answers

def test_kid_of_two_samples_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(0)
    distances = [kid(*rng.normal(size=(2, 12, 5))) for _ in range(300)]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / 300 ** 0.5
    assert kid(rng.normal(size=(50, 5)), rng.normal(2, 1, size=(50, 5))) > 1


def test_the_threshold_separates_right_from_wrong():
    assert calibrate([.1, .2, .5, .7], [0, 0, 1, 1]) == dict(threshold=.35, near=[2, 2], far=[0, 2])
    assert calibrate([.1, .2, .3, .4], [0, 0, 0, 0])["near"][0] == 0      # nothing right: the counts say so
    with pytest.raises(InputError, match="different distances"): calibrate([.3, .3], [0, 1])
