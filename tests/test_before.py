"What earlier versions wrote still opens: links, provenance in files, a model's config, and a screen to go on with."
import json
import shutil
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest

from mfm_app.card import model_card
from mfm_app.counterfactual import counterfactual, sample_controls
from mfm_app.engine import Engine, load
from mfm_app.hub import bundled, load_model, save_model
from mfm_app.images import read_provenance
from mfm_app.permalink import read_query, resolve_view
from mfm_app.sampling import Sampling, sampling_of_record
from mfm_app.screen import ScreenFolder, ScreenSettings, screen_into

before = Path(__file__).resolve().parent / "before"
weights_before = "216fd179c9b066908487559b58bc5e8f4a1050d7c05d00e5386547538dc0eb61"


@pytest.fixture(scope="module")
def labels_alone(tmp_path_factory):
    "The bundled edition of before: the same network, not told what wells measured."
    folder, model = tmp_path_factory.mktemp("labels"), load_model(bundled)
    model.net.adaptor.measured = None
    del model.config["adaptor"]["measured"]
    model.config["tuned"]["weights_sha256"] = weights_before
    save_model(folder, model.net, model.config, model.dtype)
    return folder


@pytest.fixture(scope="module")
def engine(labels_alone):
    engine = load(labels_alone, dtype="float32")
    engine.model.name, engine.model.source = "bbbc021", "bundled"
    return engine


def test_what_wells_told_can_be_taken_from_the_network_again(engine): assert engine.model.sha256 == weights_before


# Links: what is asked for, and what follows from it

links = {
    "?perturbation=taxol&dose=0.3&experiment=Week2&seed=4&cells=8&steps=12&guidance=1.5&solver=heun"
    "&show=DNA,Actin:0-90&cell=5":
        ("explore", dict(perturbation="taxol", dose=0.3, experiment="Week2", seed=4, cells=8, steps=12, guidance=1.5,
                         solver="heun")),
    "?molecule=CC1%3DCC%3DCC%3DC1O&dose=10&cells=2":
        ("explore", dict(molecule="Cc1ccccc1O", dose=10., cells=2, steps=12)),
    "?tab=counterfactual&perturbation=cyclohexamide&series=1&seed=3&cells=4&steps=20":
        ("counterfactual", {"perturbation": "cyclohexamide", "series": True, "seed": 3, "cells": 4, "from": "drawn"}),
    "?tab=counterfactual&perturbation=taxol&from=image": ("counterfactual", {"perturbation": "taxol", "from": "image"}),
    "?tab=screen&list=taxol%2C%200.3%0ACCO&dose=10&cells=2":
        ("screen", dict(list="taxol, 0.3\nCCO", dose=10., cells=2)),
    "?tab=about": ("about", {})}


@pytest.mark.parametrize("link", links)
def test_a_link_from_before_opens_the_same_view(engine, link):
    tab, fields = links[link]
    view = resolve_view(engine, read_query(dict(parse_qsl(link[1:]))))
    assert view.tab == tab and {name: view.fields.get(name) for name in fields} == fields


# Provenance: enough to generate the same pixels again

def alike(a, b): return np.abs(a.astype(int) - b.astype(int)).max() <= 1      # floats round otherwise on other machines


def test_cells_are_generated_again_from_the_provenance_of_their_file(engine):
    p = read_provenance(before / "cells.npz")
    fields = {key: p[key] for key in ("perturbation", "dose_um", "experiment", "cell_type", "seeds", "molecule")}
    answer = engine.generate(**fields, sampling=sampling_of_record(p))
    with np.load(before / "cells.npz") as arrays:
        assert alike(answer.images, arrays["taxol 0.3 µM"]) and alike(answer.control, arrays["control"])
    assert {key for key in p if key not in answer.provenance} == set()


def test_counterfactuals_are_computed_again_from_the_provenance_of_their_file(engine):
    p = read_provenance(before / "counterfactual.npz")
    source, treatment = p["source"], p["treatments"][0]
    cells, again = sample_controls(engine, source["seeds"], source["experiment"],
                                   **sampling_of_record(source).record())
    answer = counterfactual(engine, cells, **treatment, experiment=p["experiment"], sampling=sampling_of_record(p))
    with np.load(before / "counterfactual.npz") as arrays:
        assert alike(cells, arrays["original"]) and alike(answer.reconstruction, arrays["regenerated"])
        assert alike(answer.treated[0], arrays["cyclohexamide 15 µM"])
    assert again.items() >= source.items() and {key for key in p if key not in answer.provenance} == set()


def test_the_provenance_of_a_picture_is_read(engine):
    p = read_provenance(before / "molecule.png")
    fields = {key: p[key] for key in ("molecule", "dose_um", "seeds")}
    request = engine.generate(**fields, sampling=sampling_of_record(p)).request
    assert (request.experiment, request.cell_type, request.molecule) == (p["experiment"], p["cell_type"], p["molecule"])


# A model folder

@pytest.fixture(scope="module")
def folder(tmp_path_factory, labels_alone):
    "The bundled weights of before under their config, some of its long lists cut short."
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(before / "config.json", folder)
    (folder / "model.safetensors").symlink_to(labels_alone / "model.safetensors")
    return folder


def test_a_config_from_before_opens_with_all_it_knows(folder):
    old = Engine(load_model(folder), "cpu")
    assert old.phenotypes and old.assess("CC1=CC=CC=C1O").verdict == "far" and len(old.molecules.held_out) == 3
    assert old.molecules.record["calibration"]["far"] == [4, 26]


def test_its_card_has_what_the_config_has(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    card = model_card(config, "bundled")
    for text in ("A classifier of real cells recognises 82%", "molecule adaptor", "48.7", "Morgan fingerprints",
                 "for 500 steps", "AZ-A, AZ-C, AZ-J, AZ-U"):
        assert text in card


# A screen

def test_a_screen_from_before_is_resumed_and_has_nothing_left_to_do(engine, tmp_path):
    shutil.copytree(before / "screen", tmp_path / "screen")
    settings = ScreenSettings(10., 2, sampling=Sampling(steps=2))
    *_, progress = filter(None, screen_into(tmp_path / "screen", engine, "taxol, 0.3\nC1CC\nCCO", settings))
    assert (progress.total, progress.results, progress.refused) == (3, 2, 1) and not progress.new_results
    folder = ScreenFolder(tmp_path / "screen")
    assert [result.name for result in folder.results] == ["taxol", ""] and len(list(folder.refused)) == 1
