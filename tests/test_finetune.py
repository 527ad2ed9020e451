"Teaching molecules: what learns and what stays, what is left out, and that nothing held out was seen."
import json

import numpy as np
import pytest
import torch

from mfm_app.cli import main
from mfm_app.conditioning import freeze_base, perturbation_embedding
from mfm_app.core import Condition, InputError
from mfm_app.data import Batches, vocabulary, with_structure
from mfm_app.engine import Engine
from mfm_app.evaluation import calibrate, kid
from mfm_app.finetune import FinetuneConfig, deal, random_model, neighbour, finetune, with_molecules
from mfm_app.flow import guided
from mfm_app.hub import load_model, save_model
from mfm_app.molecules import EmbeddingTable, Morgan, read_molecule
from mfm_app.simulator import synthetic_cells

cells = synthetic_cells(24, size=32)
taught = with_structure(cells)[0]
quick = dict(steps=3, distil=20, batch=8)
standard = [read_molecule(s).smiles for s in sorted(set(taught.table["smiles"]))]


def changed(before, after):
    "The first parts of the names of the weights that differ."
    after = after.state_dict()
    return {".".join(name.split(".")[:2]) for name, w in before.items() if not torch.equal(w, after[name])}


def test_a_frozen_base_stays_as_it_is_to_the_last_bit():
    model = random_model(cells)
    before = {k: v.clone() for k, v in with_molecules(model, Morgan()).state_dict().items()}
    assert changed(before, finetune(model, taught, Morgan(), FinetuneConfig(**quick)).ema.module) == {"adaptor.molecule"}


def test_the_switch_lets_adaln_layers_learn_and_nothing_else():
    net = freeze_base(random_model(cells).net, modulations=True)
    learns = {name for name, w in net.named_parameters() if w.requires_grad}
    assert any(".modulation." in name for name in learns)
    assert all(name.startswith("adaptor.molecule.") or name.startswith("backbone.") and ".modulation." in name for name in learns)


def test_batches_give_molecules_in_place_of_labels():
    x1, condition = Batches(taught, vocabulary(cells), 6, encode=Morgan())(0)
    assert condition.y is None and condition.fp.shape == (6, 2048) and condition.dose_um.isfinite().all()
    assert set(condition.fp.sum(1).tolist()) <= {float(Morgan()([s]).sum()) for s in standard}


def test_guidance_starts_from_the_same_null_for_names_and_molecules():
    net = random_model(cells).net
    t, fp = torch.full((1,), 0.5), torch.tensor(Morgan()(["CCO"]), dtype=torch.float32)
    nothing = net.adaptor(t, Condition())
    assert torch.equal(nothing, net.adaptor(t, Condition(fp=torch.full((1, 2048), torch.nan))))
    cond = net.adaptor(t, Condition(fp=fp, dose_um=torch.ones(1)))
    assert torch.allclose(guided(nothing, cond, 1.), cond) and not torch.allclose(nothing, cond)


def test_in_training_some_molecules_are_dropped_to_the_null_row():
    net = random_model(cells).net.train()
    fp = torch.tensor(Morgan()(["CCO"]), dtype=torch.float32).expand(4000, -1)
    net.adaptor.molecule.eval()
    with torch.no_grad():
        rows = net.adaptor(torch.zeros(4000), Condition(fp=fp, dose_um=torch.ones(4000)))
        null = net.adaptor(torch.zeros(1), Condition())
    assert abs(torch.isclose(rows, null, atol=1e-5).all(1).float().mean() - 0.15) < 0.03


def test_a_molecule_without_a_dose_is_read_at_one_micromolar():
    net, fp = random_model(cells).net, torch.tensor(Morgan()(["CCO"]), dtype=torch.float32)
    said = lambda dose: perturbation_embedding(net.adaptor, Condition(fp=fp, dose_um=dose), 1)
    assert torch.equal(said(None), said(torch.ones(1))) and torch.equal(said(torch.tensor([torch.nan])), said(torch.ones(1)))


def test_a_network_of_names_alone_says_so():
    net = random_model(cells).net
    net.adaptor.molecule = None
    with pytest.raises(InputError, match="by name alone; `mfm finetune`"): net.adaptor(torch.ones(1), Condition(fp=torch.ones(1, 2048)))


def test_a_second_lesson_forgets_the_first_which_may_have_seen_what_is_now_held_out():
    model = random_model(cells)
    first = with_molecules(model, Morgan())
    torch.nn.init.constant_(first.adaptor.molecule.out.weight, 7.)
    model.net = first
    assert not with_molecules(model, Morgan()).adaptor.molecule.out.weight.any()


def test_compounds_of_a_mechanism_are_dealt_to_different_folds():
    table = taught.table.assign(moa="one")
    groups = deal(type(taught)(taught.images, table, taught.channels), 2)
    assert sorted(map(len, groups)) == [1, 1] and sum(len(g) for g in deal(taught, 6)) == 2


def test_a_folder_holds_both_adaptors_and_reads_both_as_before(tmp_path):
    model = random_model(cells)
    save_model(tmp_path, model.net, model.config, dtype=torch.float32)
    again = load_model(tmp_path)
    fp, t, x = torch.tensor(model.encode(["CCO"]), dtype=torch.float32), torch.full((1,), .5), torch.randn(1, *model.net.shape)
    for asked in (Condition(y=torch.tensor([1])), Condition(fp=fp, dose_um=torch.ones(1))):
        with torch.no_grad(): assert torch.equal(model.net(x, t, asked), again.net(x, t, asked))
    assert again.encode.to_dict() == model.encode.to_dict()


@pytest.fixture
def folders(tmp_path):
    "A model folder, and data with two treated compounds, one of them without a structure."
    def make(nameless=()):
        data = tmp_path / "data"
        data.mkdir()
        table = cells.table.assign(smiles=cells.table["smiles"].where(~cells.table["perturbation"].isin(nameless), ""), shard="a.npz", row=range(len(cells)))
        table.to_csv(data / "metadata.csv", index=False)
        np.savez(data / "a.npz", images=cells.images.transpose(0, 2, 3, 1))
        channels = [dict(name=c["name"], display_colour=c["colour"]) for c in cells.channels]
        (data / "dataset.json").write_text(json.dumps(dict(image_shape=[32, 32, 3], npz_key="images", control_label="DMSO", channels=channels)))
        model = random_model(cells)
        save_model(tmp_path / "model", model.net, model.config)
        return ["finetune", "--model", str(tmp_path / "model"), "--data", str(data), "--steps", "2", "--imitate", "20", "--batch", "8", "--folds", "0"]
    return make


def run(args, capsys):
    try: main(args)
    except SystemExit as e: return e.code, "".join(capsys.readouterr())


def test_other_embeddings_come_in_as_a_table_and_travel_with_the_folder(folders, tmp_path, capsys):
    args = folders()
    values = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    (tmp_path / "molgps.csv").write_text("smiles," + ",".join(f"d{i}" for i in range(12)) + "\n" + "\n".join(f"{s}," + ",".join(map(str, v)) for s, v in zip(standard, values)))
    assert run([*args, "--embeddings", str(tmp_path / "molgps.csv")], capsys)[0] == 0
    engine = Engine(load_model(tmp_path / "model"), "cpu")
    assert isinstance(engine.model.encode, EmbeddingTable) and np.allclose(engine.model.encode(standard), values)
    assert engine.generate(molecule=standard[0], seeds=[1], steps=1).images.shape == (1, 3, 32, 32)
    with pytest.raises(InputError, match="CCO is not in the embedding"): engine.look("CCO")


def test_a_table_that_lacks_a_training_compound_is_refused_before_anything_is_learned(folders, tmp_path, capsys):
    args = folders()
    (tmp_path / "few.csv").write_text(f"smiles,a\n{standard[0]},1\n")
    before = (tmp_path / "model/model.safetensors").read_bytes()
    code, said = run([*args, "--embeddings", str(tmp_path / "few.csv")], capsys)
    assert code == 2 and "is not in the embedding" in said and (tmp_path / "model/model.safetensors").read_bytes() == before


def test_too_few_structures_are_refused_in_words(folders, capsys):
    code, said = run(folders(nameless=["sweller"]), capsys)
    assert code == 2 and "at least two compounds with a structure" in said


def test_a_lesson_resumes_where_it_stopped(folders, tmp_path, capsys):
    args = [*folders(), "--run", str(tmp_path / "run")]
    assert run(args, capsys)[0] == 0 and run([*args, "--steps", "4"], capsys)[0] == 0
    assert torch.load(tmp_path / "run/molecules.pt", weights_only=True)["step"] == 4


def test_the_nearest_compound_is_nearest_by_structure():
    class Known:
        cells = taught
    name, tanimoto = neighbour(Known, "CC(=O)Oc1ccccc1C(=O)OC")
    assert name == "sweller" and 0.5 < tanimoto < 1


# Figures with known answers

def test_a_kernel_distance_of_two_draws_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(0)
    found = [kid(*rng.normal(size=(2, 12, 5))) for _ in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 300 ** 0.5
    assert kid(rng.normal(size=(50, 5)), rng.normal(2, 1, size=(50, 5))) > 1


def test_the_threshold_separates_right_from_wrong():
    assert calibrate([.1, .2, .5, .7], [0, 0, 1, 1]) == dict(threshold=.35, near=[2, 2], far=[0, 2])
    assert calibrate([.1, .2, .3, .4], [0, 0, 0, 0])["near"][0] == 0      # nothing right: no threshold helps, and the counts say so
    with pytest.raises(InputError, match="different distances"): calibrate([.3, .3], [0, 1])
