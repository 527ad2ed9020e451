"Scores of generated cells: known answers, torch-fidelity's own numbers, weights that are missing, and the report."
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mfm_app import cli, features, validation
from mfm_app.core import InputError
from mfm_app.evaluation import comparison, frechet, gap_closed, in_support, kid_of_subsets, mmd, monotonicity
from mfm_app.features import dinov2_space, feature_spaces, inception_space, to_rgb
from mfm_app.finetune import random_model
from mfm_app.simulator import synthetic_cells
from mfm_app.validation import check_judgeable, judge, write_report

colours = "blue green red cyan magenta yellow".split()
stains = [dict(name=name, colour=colour) for name, colour in zip("abcdef", colours)]
rng = np.random.default_rng(0)


# The figures

def test_the_metrics_are_those_of_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
    real, generated = (torch.tensor(rng.normal(shift, 1, (150, 12))) for shift in (0, .3))
    statistics = map(fid_features_to_statistics, (generated, real))
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    kid = kid_features_to_metric(generated, real, kid_subsets=20, kid_subset_size=100, verbose=False, rng_seed=7)
    prc = prc_features_to_metric(generated, real, verbose=False)
    ours = kid_of_subsets(generated, real, 100, 20, 7)
    assert frechet(generated, real) == pytest.approx(fid, rel=1e-6)
    assert ours.mean() == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-6)
    assert ours.std() == pytest.approx(kid["kernel_inception_distance_std"], rel=1e-6)
    assert in_support(real, generated).mean() == pytest.approx(prc["precision"], abs=1e-6)
    assert in_support(generated, real).mean() == pytest.approx(prc["recall"], abs=1e-6)


def test_more_cells_make_an_interval_narrower():
    def width(n):
        low, high = comparison(rng.normal(size=(n, 4)), rng.normal(.5, 1, (n, 4)))["frechet"][1:]
        return high - low
    assert width(20) > 1.5 * width(200)


def test_a_single_cell_is_compared_with_nothing():
    assert comparison(rng.normal(size=(1, 4)), rng.normal(size=(9, 4))) == {}
    assert gap_closed({"generated": {}, "real cells": {}, "copy the control": {}}) is None


def test_the_root_of_the_mmd_obeys_the_triangle_inequality():
    sets = [rng.normal(rng.normal(0, 1, 3), rng.uniform(.2, 2), (rng.integers(1, 20), 3)) for _ in range(12)]
    between = np.array([[mmd(a, b, 1.5) for b in sets] for a in sets])
    assert (between[:, None] <= between[:, :, None] + between[None] + 1e-9).all()
    squares = between ** 2
    assert (squares[:, None] > squares[:, :, None] + squares[None] + 1e-3).any()      # its square does not


def test_an_effect_that_falls_with_the_dose_has_a_negative_correlation():
    falling = {dose: rng.normal(2 - np.log10(dose), .3, (20, 3)) for dose in (.1, 1, 10)}
    assert monotonicity(falling, rng.normal(0, .3, (40, 3)))["correlation"][0] == -1
    assert monotonicity(dict(list(falling.items())[:2]), rng.normal(size=(9, 3)))["correlation"] is None


# Feature spaces

@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_any_number_of_channels_becomes_red_green_and_blue(n):
    images = rng.integers(0, 256, (2, n, 16, 16), dtype=np.uint8)
    rgb = to_rgb(images, stains[:n])
    assert rgb.shape == (2, 3, 16, 16) and rgb.dtype == np.uint8 and rgb.any()
    assert n != 3 or (rgb == images).all()


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    "Random weights of Inception-v3, as torch-fidelity stores them."
    from torch_fidelity import feature_extractor_inceptionv3 as module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("random", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images): self.images = torch.tensor(images)
    def __len__(self): return len(self.images)
    def __getitem__(self, i): return self.images[i]


def scores_of_both(path, n, **which):
    "Features of two sets in our Inception space, and what torch-fidelity says of their images."
    from torch_fidelity import calculate_metrics
    cells = synthetic_cells(n, 32)
    real, generated = (cells.where(perturbation=name).images[:n] for name in ("DMSO", "sweller"))
    space = inception_space(stains[:3], path)
    theirs = calculate_metrics(
        input1=Pictures(generated), input2=Pictures(real), cuda=False, verbose=False, cache=False, batch_size=1,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048", feature_extractor_weights_path=str(path),
        kid_subset_size=n - 2, kid_subsets=10, samples_shuffle=False, **which)
    return space(real), space(generated), theirs


def test_kid_precision_and_recall_of_images_are_those_of_torch_fidelity(inception_file):
    real, generated, theirs = scores_of_both(inception_file, 8, kid=True, prc=True)
    assert real.shape == (8, 2048)
    ours = kid_of_subsets(generated, real, 6, 10, 2020).mean()
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4, abs=1e-9)
    assert in_support(real, generated).mean() == pytest.approx(theirs["precision"], abs=1e-6)
    assert in_support(generated, real).mean() == pytest.approx(theirs["recall"], abs=1e-6)


@pytest.mark.slow
def test_fid_of_images_is_that_of_torch_fidelity(inception_file):
    real, generated, theirs = scores_of_both(inception_file, 40, fid=True)
    assert frechet(generated, real) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-2)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    from timm import create_model
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), path)
    return path


def test_a_vision_transformer_is_read_from_a_file_at_another_image_size(vit_file):
    images = synthetic_cells(2, 32).images[:4]
    space = dinov2_space(stains[:3], vit_file, name="vit_tiny_patch16_224", side=64)
    vectors = space(images)
    assert vectors.shape == (4, 192) and vectors.dtype == np.float32 and np.isfinite(vectors).all()
    assert np.allclose(vectors[2:], space(images[2:]), atol=1e-4) and not np.allclose(vectors[0], vectors[1], atol=1e-3)


@pytest.fixture
def small_vit(monkeypatch):
    "A small network in the place of DINOv2's ViT-L."
    small = partial(dinov2_space, name="vit_tiny_patch16_224", side=32)
    monkeypatch.setitem(features.network_spaces, "dinov2", small)


class Anything: pass


@pytest.mark.parametrize("content, words", [
    (None, "is no file"), ({"a": torch.zeros(2)}, "has no weights of"),
    ({"a": Anything()}, "cannot be read as weights"), (b"PK", "cannot be read as weights")])
@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_a_file_that_has_no_such_weights_is_refused(tmp_path, small_vit, name, content, words):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes): path.write_bytes(content)
    elif content: torch.save(content, path)
    with pytest.raises(InputError, match=words) as refused: feature_spaces([f"{name}={path}"], stains[:3])
    assert str(tmp_path) not in str(refused.value)


def no_network(*_, **__): raise OSError("no network")


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_weights_that_cannot_be_had_are_said_before_anything_is_read(monkeypatch, tmp_path, mfm, small_vit, name):
    def fail(*args, **kwargs): raise AssertionError("the work began")
    folder, model = tmp_path / "model", random_model(synthetic_cells(4, 32))
    cli.save_model(folder, model.net, model.config)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(cli, "read_cells", fail)
    code, text = mfm("evaluate", "--model", folder, "--data", tmp_path, "--space", name)
    assert code == 2 and text == f"mfm: {features.no_weights.format(name=name)}\n"


def test_without_torch_fidelity_its_space_says_how_to_install_it(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[scores\]'"): inception_space(stains[:3])


# The report

@pytest.fixture(scope="module")
def lab():
    "A laboratory's 275 cells, none of whose conditions has a hundred, and a model of them."
    cells = synthetic_cells(55, 32)
    return cells, random_model(cells)


def pretend(monkeypatch, cells, what):
    "Let the generator return real training cells of the same condition, or controls whatever it is asked for."
    train = cells.where(split="train")
    def generate_rows(model, rows, seeds, device):
        untreated = what == "controls" or rows.y is None
        names = ["DMSO"] * len(seeds) if untreated else [model.vocab.names[y] for y in rows.y]
        doses = [None] * len(seeds) if rows.dose_um is None else rows.dose_um.tolist()
        here = lambda name, dose: np.flatnonzero((train.table["perturbation"] == name)
                                                 & (np.isclose(train.table["dose_um"], dose or 0) | (name == "DMSO")))
        return train.images[[here(*c)[seed % len(here(*c))] for *c, seed in zip(names, doses, seeds)]]
    monkeypatch.setattr(validation, "generate_rows", generate_rows)


@pytest.mark.parametrize("protocol", ["conditions", "paper"])
def test_the_cells_of_a_laboratory_are_judged_with_a_warning(lab, monkeypatch, protocol):
    cells, model = lab
    assert len(check_judgeable(cells)) == 5
    pretend(monkeypatch, cells, "real")
    quality, report, _ = judge(model, cells, 20, protocol)
    n = len(cells.where(split="iid"))
    assert report.cells["compared"] == n < 200 and f"There are only {n} unseen cells in all" in quality["table"]
    assert any("fewer than 20 unseen cells" in text for text in report.warnings)
    scores = report.pooled["morphology"]
    assert set(scores) == {"generated", "real cells", "copy the control", "unconditional"}
    assert all(low <= value <= high for own in scores.values() for value, low, high in list(own.values())[1:])


def test_a_perfect_generator_closes_the_gap_and_one_that_copies_the_control_does_not(lab, monkeypatch):
    cells, model = lab
    pretend(monkeypatch, cells, "real")
    _, perfect, _ = judge(model, cells, 20)
    pretend(monkeypatch, cells, "controls")
    _, copying, _ = judge(model, cells, 20)
    gap = lambda report: report.to_dict()["gap_closed"]["morphology"]
    assert gap(perfect)["frechet"] > .8 > .2 > abs(gap(copying)["frechet"])
    assert perfect.specificity["condition"]["generated"][0] > .8
    assert copying.specificity["condition"]["generated"][0] < .3 > perfect.specificity["condition"]["unconditional"][0]


def test_the_papers_protocol_asks_for_one_cell_of_each_unseen_one_with_its_labels(lab, monkeypatch):
    cells, model = lab
    asked = []
    def generate_rows(model, rows, seeds, device):
        asked.append(rows)
        return cells.images[:len(seeds)]
    monkeypatch.setattr(validation, "generate_rows", generate_rows)
    judge(model, cells, 20, "paper")
    unseen, vocab = cells.where(split="iid").table, model.vocab
    generated, unconditional = asked[:2]
    assert [vocab.names[y] for y in generated.y] == unseen["perturbation"].tolist()
    assert [vocab.experiments[e] for e in generated.e] == unseen["experiment"].tolist()
    assert np.allclose(generated.dose_um, unseen["dose_um"].fillna(float("nan")), equal_nan=True)
    assert unconditional.y is None and unconditional.dose_um is None and torch.equal(unconditional.e, generated.e)


def test_compounds_never_shown_are_asked_for_by_their_structure(lab, monkeypatch):
    cells, model = lab
    ood = cells.table["perturbation"].eq("stabiliser")
    cells = replace(cells, table=cells.table.assign(split=cells.table["split"].mask(ood, "ood")))
    asked = []
    def generate_rows(model, rows, seeds, device):
        asked.append(rows)
        return cells.images[:len(seeds)]
    monkeypatch.setattr(validation, "generate_rows", generate_rows)
    _, report, _ = judge(model, cells, 20, "paper")
    assert asked[2].y is None and asked[2].fp.shape == (ood.sum(), 2048) and asked[3].fp is None
    assert set(report.unseen_compounds["morphology"]) >= {"generated", "unconditional", "copy the control"}
    assert "Compounds never seen" in report.to_markdown()


def test_a_report_is_a_folder_of_text_json_and_figures(lab, monkeypatch, tmp_path):
    cells, model = lab
    pretend(monkeypatch, cells, "real")
    space = features.FeatureSpace("means", lambda images: images.mean((2, 3)))
    _, report, pictures = judge(model, cells, 20, spaces=[features.morphology_space(cells.channels), space])
    write_report(tmp_path / "report", report, pictures)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.md", "report.json", "scores.png", "specificity.png", "conditions.png", "cells.png"} <= names
    for picture in pictures: assert Image.open(tmp_path / "report" / picture).size[0] > 300
    stored = json.loads((tmp_path / "report/report.json").read_text())
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == stored
    text = (tmp_path / "report/report.md").read_text()
    assert all(f"| {name}" in text for name in stored["conditions"]["morphology"]) and "## Means" in text
    assert stored["dimensions"] == dict(morphology=54, means=3) and "Careful" in text


def test_the_effect_of_generated_cells_is_followed_along_the_dose(monkeypatch):
    cells = synthetic_cells(40, 32)
    more = cells.table.assign(dose_um=cells.table["dose_um"].where(np.arange(len(cells)) % 3 > 0, 3))
    more["dose_um"] = more["dose_um"].where(more["perturbation"] != "DMSO")
    cells = replace(cells, table=more)
    model = random_model(cells)
    pretend(monkeypatch, cells, "real")
    _, report, pictures = judge(model, cells, 20)
    assert set(report.doses) == {"sweller", "stabiliser"} and "doses.png" in pictures
    for answer in report.doses.values():
        assert len(answer["real"]["strengths"]) == 3 and -1 <= answer["generated"]["correlation"][0] <= 1
    assert "Does the effect grow with the dose?" in report.to_markdown()


def test_what_cannot_be_judged_is_refused(lab, ask):
    cells, model = lab
    assert "none in the split iid" in str(ask(judge, model, cells.where(split="train")))
    alone = replace(cells, table=cells.table.assign(perturbation="DMSO", dose_um=float("nan")))
    assert "on two conditions or more with two training cells each; these data have 1." in str(ask(judge, model, alone))
    assert "Unknown protocol 'papers'" in str(ask(judge, model, cells, 20, "papers"))
    renamed = replace(cells, table=cells.table.assign(perturbation=cells.table["perturbation"].replace("sweller", "X")))
    assert "Unknown perturbation 'X'" in str(ask(judge, model, renamed, 20, "paper"))
