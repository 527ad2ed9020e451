"The same cells, treated otherwise: steps and answers, requests, what is refused, and the files that are exported."
import io
import json
import os
import sys
import threading
import time
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from mfm_app.core import InputError, refusal
from mfm_app.counterfactual import (CounterfactualRequest, Treatment, check_cells, counterfactual,
                                    resolve_counterfactual, sample_controls, stream)
from mfm_app.effects import Comparison
from mfm_app.engine import Engine, Request, request_from, resolve_request, robustness
from mfm_app.export import Export, export_of, formats, profile_table, statistics_table, unique_labels, write_export
from mfm_app.finetune import random_model
from mfm_app.images import digest, read_micrograph, read_provenance
from mfm_app.molecules import read_molecule, read_rows
from mfm_app.sampling import Sampling, inversion, with_settings
from mfm_app.screen import Screened, ScreenSettings, check_settings, screen
from mfm_app.simulator import synthetic_cells
from mfm_app.solvers import grids, solvers
from mfm_app.vocabulary import Perturbation, Vocabulary

names = ["DNA", "Actin", "Tubulin"]
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5),
                     st.lists(st.integers(), max_size=3), st.just(10**400))
sweller, stabiliser = Treatment("sweller", 3.), Treatment("stabiliser", .3)
ethanol = Treatment(molecule="OCC", dose_um=1.)


def max_difference(a, b): return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


class RecordingNet(torch.nn.Module):
    "Another network that records the rows of every call, and waits while `open` is not set."
    def __init__(self, net):
        super().__init__()
        self.net, self.shape, self.rows, self.open = net, net.shape, [], threading.Event()
        self.open.set()

    def forward(self, x, t, condition):
        self.rows.append(len(x))
        assert self.open.wait(60)
        return self.net(x, t, condition)


@pytest.fixture(scope="module")
def engine():
    model = random_model(synthetic_cells(8, 32))
    model.net = RecordingNet(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(autouse=True)
def forget_calls(engine): engine.model.net.rows.clear()


@pytest.fixture(scope="module")
def cells(): return synthetic_cells(16, 32, 5).where(perturbation="DMSO").images


def treat(engine, cells, *treatments, source={}, experiment=None, cell_type=None, **settings):
    "The steps and the answer."
    request = CounterfactualRequest(treatments, experiment, cell_type, with_settings(inversion, **settings))
    *steps, answer = stream(engine, cells, request, source)
    return steps, answer


def network_calls(sampling): return sampling.nfe(inverting=True) + sampling.nfe()      # without guidance


# Steps and answers

def test_steps_show_the_originals_inverted_to_noise_and_the_groups_parting_while_sampled(engine, cells):
    steps, answer = treat(engine, cells[:2], sweller, ethanol, steps=5)
    assert [s.step for s in steps] == list(range(11)) and {s.steps for s in steps} == {10}
    assert [s.t for s in steps[:6]][::-1] == pytest.approx([s.t for s in steps[5:]])
    for s in steps:
        assert s.xt.shape == s.x1_pred.shape == (4, 2, 3, 32, 32) and s.xt.dtype == s.x1_pred.dtype == np.uint8
        assert (s.xt[0] == cells[:2]).all() and (s.x1_pred[0] == cells[:2]).all()
    for s in steps[:6]: assert (s.xt[1:] == s.xt[1]).all()      # one inversion for all, down to the noise at its end
    first, last = steps[0], steps[-1]
    assert (first.xt == cells[:2]).all() and (last.x1_pred[2] != last.x1_pred[3]).any()
    assert (answer.original == cells[:2]).all() and (answer.reconstruction == last.x1_pred[1]).all()
    assert (answer.treated == last.x1_pred[2:]).all()


def test_the_control_as_a_treatment_is_the_reconstruction(engine, cells):
    _, answer = treat(engine, cells[:3], sweller, Treatment("dmso", 7.), steps=3)
    swollen, control = answer.treated
    changed = lambda treated: (treated != answer.reconstruction).mean()
    assert max_difference(control, answer.reconstruction) <= 1 and changed(control) < changed(swollen) / 2
    assert answer.requests[1].dose_um is None
    assert answer.provenance["treatments"][1] == dict(perturbation="DMSO", dose_um=None, molecule=None)


@pytest.mark.parametrize("cfg_scale", [0, 1, 2])
def test_the_reconstruction_is_the_original_with_and_without_guidance(engine, cells, cfg_scale):
    coarse, fine = (treat(engine, cells[:2], Treatment("DMSO"), steps=steps, cfg_scale=cfg_scale,
                          solver="midpoint")[1].fidelity.psnr for steps in (3, 24))
    assert fine > max(coarse + 6, 40)


def test_a_cell_is_treated_alike_alone_and_in_company_first_and_last(engine, cells):
    together = treat(engine, cells[:3], sweller, ethanol, stabiliser, steps=4)[1]
    turned = treat(engine, cells[:3][::-1], stabiliser, sweller, ethanol, steps=4)[1]
    alone = [treat(engine, cells[i:i + 1], ethanol, steps=4)[1] for i in range(3)]
    assert max_difference(turned.treated[[1, 2, 0]][:, ::-1], together.treated) <= 1
    for i, answer in enumerate(alone):
        assert max_difference(answer.treated[0, 0], together.treated[1, i]) <= 1
        assert max_difference(answer.reconstruction[0], together.reconstruction[i]) <= 1


def test_eight_treatments_cost_as_many_network_calls_as_one(engine, cells):
    doses, before = list(np.geomspace(.5, 50, 8)), engine.scheduler.rounds
    answer = counterfactual(engine, cells[:2], "sweller", doses, steps=4)
    assert engine.scheduler.rounds - before == network_calls(Sampling(steps=4)) == answer.provenance["nfe"]
    assert engine.model.net.rows == [2] * 4 + [2 * 9] * 4
    assert [r.dose_um for r in answer.requests] == doses and len(answer.comparisons) == 8
    assert all((c.untreated == answer.reconstruction).all() for c in answer.comparisons)
    changes = [np.abs(c.treated.astype(int) - c.untreated).mean() for c in answer.comparisons]
    assert len(set(changes)) == 8, "every dose has images of its own"


def test_two_users_are_answered_in_the_same_network_calls(engine, cells):
    net, answers, four = engine.model.net, {}, cells[:4]
    net.open.clear()
    def ask(treatment): answers[treatment] = treat(engine, four, treatment, steps=3)[1]
    users = [threading.Thread(target=ask, args=(treatment,)) for treatment in (sweller, ethanol)]
    users[0].start()
    while not net.rows: time.sleep(.01)         # the first request is being answered, alone
    users[1].start()
    while engine.scheduler.inbox.empty(): time.sleep(.01)
    net.open.set()
    for user in users: user.join(60)
    rows = list(net.rows)
    assert rows[0] == 4 and 8 in rows and 16 in rows and len(rows) <= network_calls(Sampling(steps=3)) + 2
    for treatment in (sweller, ethanol):
        alone = treat(engine, four, treatment, steps=3)[1]
        assert max_difference(answers[treatment].treated, alone.treated) <= 1
        assert max_difference(answers[treatment].reconstruction, alone.reconstruction) <= 1


def test_closing_ends_the_network_calls_and_the_next_request_is_answered(engine, cells):
    running = stream(engine, cells[:2], CounterfactualRequest((sweller,), sampling=Sampling(steps=200)))
    next(running), next(running)
    running.close()
    _, answer = treat(engine, cells[:1], ethanol, steps=1)
    assert answer.treated.shape == (1, 1, 3, 32, 32) and len(engine.model.net.rows) < 100


def test_a_molecule_is_as_good_a_treatment_as_a_name(engine, cells):
    _, answer = treat(engine, cells[:2], ethanol, Treatment(molecule="CCO", dose_um=1.), sweller, steps=2)
    assert answer.requests[0].molecule == "CCO"
    assert answer.provenance["treatments"][0] == dict(perturbation=None, dose_um=1., molecule="CCO")
    first, second, other = answer.treated
    assert max_difference(first, second) <= 1 < max_difference(first, other)


# Provenance

def answer_again(engine, cells, record):
    "The answer that a provenance describes, from the cells it describes."
    settings = {k: record[k] for k in ("experiment", "cell_type", "solver", "steps", "cfg_scale")}
    return treat(engine, cells, *(Treatment(**t) for t in record["treatments"]), source=record["source"], **settings)[1]


@pytest.mark.parametrize("settings", [
    dict(), dict(experiment="week2", solver="HEUN", steps=3, cfg_scale=2),
    dict(experiment="any", cell_type="any", solver="rk4", steps=2)], ids=["plain", "guided", "open"])
def test_a_provenance_is_enough_to_compute_the_same_images_again(engine, settings):
    controls, source = sample_controls(engine, [3, 1, 4], "Week2")
    treatments = Treatment("sweller"), ethanol, Treatment("DMSO")
    _, answer = treat(engine, controls, *treatments, source=source, **dict(steps=4) | settings)
    record = json.loads(json.dumps(answer.provenance))
    assert record == answer.provenance, "JSON keeps all of it"
    assert source["kind"] == "drawn" and record["source"] == source
    again, _ = sample_controls(engine, source["seeds"], source["experiment"])
    assert digest(again) == record["cells_sha256"] and len(again) == record["cells"]
    other = answer_again(engine, again, record)
    for name in ("original", "reconstruction", "treated"):
        assert getattr(other, name).tobytes() == getattr(answer, name).tobytes()
    assert other.provenance | dict(seconds=0) == answer.provenance | dict(seconds=0)
    assert record.items() >= dict(weights_sha256=engine.model.sha256, model="drawn", dtype="float32",
                                  control="DMSO").items()


def test_a_hostile_source_is_exported_as_json(engine, cells):
    source = dict(kind="image", name="../../\ud800\0\n<script>'\"$(rm)☃.tif", nested=[dict(a=[None, 1.5, True])])
    _, answer = treat(engine, cells[:1], Treatment("DMSO"), source=source, steps=1)
    assert json.loads(json.dumps(answer.provenance))["source"] == source
    for format in formats: assert write_export(export_of(answer), format)[2]


# Requests

def test_guidance_scale_is_another_name_of_cfg_scale(engine, cells):
    by_either = [{name: 2.} for name in ("guidance_scale", "cfg_scale")]
    ours, theirs = (engine.generate("sweller", 3., range(2), steps=2, **scale) for scale in by_either)
    assert ours.images.tobytes() == theirs.images.tobytes() and ours.provenance["cfg_scale"] == 2.
    assert "guidance_scale" not in ours.provenance
    ours, theirs = (counterfactual(engine, cells[:2], "sweller", 3., steps=2, **scale) for scale in by_either)
    assert ours.treated.tobytes() == theirs.treated.tobytes() and ours.provenance["cfg_scale"] == 2.


def test_guidance_under_both_names_is_refused(engine, cells):
    both, message = dict(guidance_scale=2., cfg_scale=2.), "cfg_scale and guidance_scale are one; give one."
    assert refusal(engine.generate, "sweller", 3., [0], **both) == message
    assert refusal(counterfactual, engine, cells[:1], "sweller", 3., **both) == message
    assert not engine.model.net.rows


def test_a_setting_there_is_not_is_refused(engine, cells):
    for f, *args in ((engine.generate,), (counterfactual, engine, cells[:1])):
        assert "no setting 'step'" in refusal(f, *args, "sweller", 3., step=3)


def test_generating_refuses_at_the_call_and_not_at_the_first_step(engine):
    assert "Unknown perturbation" in refusal(engine.stream, Request("aspirin"))
    assert "Steps" in refusal(engine.stream, request_from("sweller", steps=0)) and not engine.model.net.rows


@pytest.fixture
def molecules_read(monkeypatch):
    "The structures that the engine reads, one for each time."
    texts = []
    def counted(text):
        texts.append(text)
        return read_molecule(text)
    monkeypatch.setattr("mfm_app.engine.read_molecule", counted)
    return texts


def test_the_molecule_of_a_request_is_read_once(engine, molecules_read):
    answer = engine.generate(molecule="OCC", dose_um=1., seeds=range(2), steps=1)
    assert molecules_read == ["OCC"]
    robustness(engine, answer)
    resolved = engine.resolve(answer.request)
    assert resolved is answer.request and molecules_read == ["OCC"]
    for _ in engine.stream(resolved): pass
    assert molecules_read == ["OCC"]


def test_every_molecule_of_a_counterfactual_is_read_once(engine, cells, molecules_read):
    treat(engine, cells[:1], ethanol, sweller, Treatment(molecule="CCN", dose_um=1.), steps=1)
    assert molecules_read == ["OCC", "CCN"]


def test_a_molecule_of_a_list_is_read_with_the_list_and_not_again(engine, molecules_read):
    settings = check_settings(engine, ScreenSettings(1., 2, sampling=Sampling(steps=1)))
    molecules_read.clear()
    rows = list(screen(engine, read_rows("OCC\nCCN\nCCC", None, (.1, 10.)), settings))
    smiles = [row.result.smiles for row in rows if isinstance(row, Screened)]
    assert smiles == ["CCO", "CCN", "CCC"] and not molecules_read


def test_the_experiment_is_that_of_the_controls_before_and_after():
    treated = Perturbation("taxol", doses={1.: 9}, experiments={"Week1": 9})
    control = Perturbation("DMSO", experiments={"Week1": 1, "Week2": 9})
    vocab = Vocabulary([control, treated], ["Week1", "Week2"], ["MCF-7"])
    model = SimpleNamespace(resolve_sampling=lambda sampling, inverting=False: sampling.resolve(inverting=inverting))
    engine = SimpleNamespace(vocab=vocab, model=model, molecules=None)
    engine.resolve = lambda request: resolve_request(request, engine)
    def experiments(**which):
        request = CounterfactualRequest((Treatment("taxol"), Treatment("dmso")), **which)
        return [r.experiment for r in resolve_counterfactual(request, 1, engine)]
    assert experiments() == ["Week2"] * 2 and experiments(experiment="week1") == ["Week1"] * 2


# What is refused

bad_treatments = {
    "none": (), "too many": (sweller,) * 13, "nothing": (None,), "text": "sweller", "None": None, "a number": 5,
    "an unknown name": (Treatment("aspirin"),), "an empty one": (Treatment(),),
    "name and molecule": (Treatment("sweller", 1., "CCO"),), "a broken molecule": (Treatment(molecule="C1CC"),),
    "a molecule that is no text": (Treatment(molecule=3),), "a dose of NaN": (Treatment("sweller", float("nan")),),
    "a dose as text": (Treatment("sweller", "1"),), "a negative dose": (Treatment("sweller", -1.),),
    "a dose far away": (Treatment("sweller", 1e6),), "a dose as a flag": (Treatment("sweller", True),),
    "an infinite dose of a molecule": (Treatment(molecule="CCO", dose_um=float("inf")),),
    "the second of two": (sweller, Treatment("sweller", 0)),
}
bad_fields = {
    "an unknown experiment": dict(experiment="Week77"), "an experiment as a number": dict(experiment=7),
    "an unknown cell type": dict(cell_type="HeLa\nno"),
}
bad_settings = {
    "no steps": dict(steps=0), "steps of NaN": dict(steps=float("nan")), "many steps": dict(steps=201),
    "an unknown solver": dict(solver="rk5"), "no solver": dict(solver=None),
    "guidance of NaN": dict(cfg_scale=float("nan")), "guidance as text": dict(cfg_scale="2"),
}
bad_requests = {why: CounterfactualRequest(treatments) for why, treatments in bad_treatments.items()}
bad_requests |= {why: CounterfactualRequest((sweller,), **wrong) for why, wrong in bad_fields.items()}
bad_requests |= {why: CounterfactualRequest((sweller,), sampling=replace(inversion, **wrong))
                 for why, wrong in bad_settings.items()}


@pytest.mark.parametrize("bad", bad_requests.values(), ids=bad_requests)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_computed(ask, engine, cells, bad):
    assert isinstance(ask(lambda: next(stream(engine, cells[:2], bad))), InputError)
    assert not engine.model.net.rows


@given(anything, anything, anything, anything, anything, st.one_of(st.sampled_from(["euler", "rk4"]), anything),
       st.one_of(st.integers(1, 200), anything), st.one_of(st.floats(0, 8), anything))
@example("sweller", 3., None, None, None, "midpoint", 20, 1.)
@example("a\nb", 10**400, None, "a\u2028b", None, "midpoint", 20, 1.)
@example(None, None, "C" * 5000, None, None, "midpoint", 20, 1.)
@example("sweller", None, None, "", "", "midpoint", 20., 1)
def test_whatever_a_request_holds_it_is_resolved_or_refused_in_one_line(
        ask, engine, name, dose, molecule, experiment, cell_type, solver, steps, cfg_scale):
    treatment, sampling = Treatment(name, dose, molecule), Sampling(solver, steps, cfg_scale)
    request = CounterfactualRequest((treatment,), experiment, cell_type, sampling)
    result = ask(resolve_counterfactual, request, 2, engine)
    if isinstance(result, InputError): return
    resolved, = result
    assert (resolved.perturbation is None) != (resolved.molecule is None)
    sampling = resolved.sampling
    assert sampling.solver in solvers and sampling.grid in grids
    assert 1 <= sampling.steps <= 200 and 0 <= sampling.cfg_scale <= 8
    assert resolved.experiment in [*engine.vocab.experiments, "any"]
    assert resolved.cell_type in [*engine.vocab.cell_types, "any"]
    assert isinstance(resolved.dose_um, float) or resolved.perturbation == "DMSO"


array_dtypes = st.sampled_from([np.uint8, np.int8, np.float32, np.bool_, "U1"])
ragged = st.lists(st.lists(st.integers(0, 255), max_size=3), max_size=3)


@given(st.one_of(anything, arrays(array_dtypes, array_shapes(min_dims=0, max_dims=5, max_side=4)), ragged))
@example([[1], [1, 2]])
def test_what_are_no_cells_of_the_model_is_refused(ask, cells):
    assert isinstance(ask(check_cells, cells, (3, 32, 32)), InputError)


other_cells = {
    "floats": lambda x: x.astype(float), "one cell": lambda x: x[0], "two channels": lambda x: x[:, :2],
    "no cells": lambda x: x[:0], "narrow": lambda x: x[..., :16], "int16": lambda x: x.astype(np.int16),
}


@pytest.mark.parametrize("change", other_cells.values(), ids=other_cells)
def test_cells_of_another_kind_are_refused(ask, engine, cells, change):
    message = str(ask(counterfactual, engine, change(cells), "sweller"))
    assert "(cells, 3, 32, 32)" in message and not engine.model.net.rows


def test_more_images_than_can_be_sampled_at_a_time_are_refused(ask, engine, cells):
    many = np.concatenate([cells] * 4)
    assert resolve_counterfactual(CounterfactualRequest((sweller,) * 8), len(many), engine)
    assert "512" in str(ask(counterfactual, engine, many, "sweller", [1.] * 9))


# Exported files

hostile = ["CC(=O)Oc1ccccc1C(=O)O 1 µM", "F/C=C/F", r"F/C=C\F", "../../etc/passwd", "..", ".", "", "a" * 5000, "CON",
           "☃ ünï\u202e", "a\0b\nc", "file", "images", "channels", "provenance", "$\\frac$ $_$", "=1+1", "original",
           "x: mean"]


@pytest.fixture(scope="module")
def answer(engine, cells):
    treatments = sweller, Treatment(molecule="F/C=C/F", dose_um=1.), Treatment("sweller", 3.0000001)
    return treat(engine, cells[:7], *treatments, source=dict(kind="image", name="ünï ☃.tif"), steps=2)[1]


@pytest.fixture(scope="module")
def everything(answer): return export_of(answer, um_per_px=.325)


def test_no_two_sets_of_images_share_a_label(answer, everything):
    labels = ["original", "reconstruction", "sweller 3 µM", "F/C=C/F 1 µM", "sweller 3 µM (2)"]
    assert list(everything.images) == labels and list(everything.comparisons) == labels[2:]
    assert (everything.images["sweller 3 µM (2)"] == answer.treated[2]).all()
    assert everything.comparisons["sweller 3 µM (2)"] is answer.comparisons[2]


@given(st.lists(st.sampled_from(["a", "a (2)", "b", ""]), max_size=8),
       st.lists(st.sampled_from(["a", "b"]), unique=True))
def test_labels_are_unique_and_unchanged_where_they_can_be(labels, reserved):
    unique = unique_labels(labels, reserved)
    assert len({*unique, *reserved}) == len(unique) + len(reserved)
    assert all(new.startswith(old) for new, old in zip(unique, labels))
    assert unique_labels(dict.fromkeys(labels)) == list(dict.fromkeys(labels))


def test_an_ome_tiff_holds_pixels_names_size_and_provenance(everything, answer, tmp_path):
    name, media_type, content = write_export(everything, "OME-TIFF")
    with zipfile.ZipFile(io.BytesIO(content)) as archive: archive.extractall(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert (name, media_type) == ("counterfactual.ome-tiff.zip", "application/zip") and len(paths) == 5 + 3
    for path, images in zip(paths, everything.images.values()):
        micrograph = read_micrograph(path)
        assert (micrograph.pixels == images).all() and micrograph.names == names
        assert micrograph.um_per_px == pytest.approx(.325) and read_provenance(path) == answer.provenance
    for path, comparison in zip(paths[5:], answer.comparisons):
        assert np.array_equal(tifffile.imread(path).squeeze(), comparison.map.mean)
        assert read_provenance(path) == answer.provenance


def test_an_npz_holds_every_image_and_every_effect(everything, answer, tmp_path):
    (tmp_path / "all.npz").write_bytes(write_export(everything, "NPZ")[2])
    assert read_provenance(tmp_path / "all.npz") == answer.provenance
    labels = ["sweller 3 µM", "F_C=C_F 1 µM", "sweller 3 µM (2)"]
    with np.load(tmp_path / "all.npz", allow_pickle=False) as arrays:
        assert len(arrays.files) == 5 + 3 * 4 + 2 and arrays["channels"].tolist() == names
        assert (arrays["original"] == answer.original).all()
        for label, images, comparison in zip(labels, answer.treated, answer.comparisons):
            assert (arrays[label] == images).all()
            for part in ("mean", "spread", "p", "significant"):
                assert np.array_equal(arrays[f"{label}: {part}"], getattr(comparison.map, part))


def test_a_png_shows_every_set_and_its_provenance(everything, answer, tmp_path):
    (tmp_path / "all.png").write_bytes(write_export(everything, "PNG")[2])
    assert read_provenance(tmp_path / "all.png") == answer.provenance
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.mode == "RGB" and picture.height > 5 * 64 and len(np.unique(picture)) > 50


def test_tables_agree_with_the_comparisons(everything, answer):
    tables = "profiles", "statistics", "pixels"
    with zipfile.ZipFile(io.BytesIO(write_export(everything, "CSV")[2])) as archive:
        assert set(archive.namelist()) == {*(f"{table}.csv" for table in tables), "provenance.json"}
        assert json.loads(archive.read("provenance.json")) == answer.provenance
        profiles, statistics, pixels = (pd.read_csv(archive.open(f"{table}.csv")) for table in tables)
    assert len(profiles) == 3 * 2 * 7 and len(pixels) == 3 * 3
    assert len(statistics) == 3 * answer.comparisons[0].profiles[0].shape[1]
    for label, comparison in everything.comparisons.items():
        for untreated, table in zip((False, True), comparison.profiles):
            rows = profiles[(profiles.treatment == label) & (profiles.untreated == untreated)]
            assert rows.cell.tolist() == list(range(1, 8)) and np.allclose(rows[list(table)], table, rtol=1e-4)
        rows = statistics[statistics.treatment == label].set_index("feature")
        assert list(rows.index) == list(comparison.table.index)
        for column in ("effect", "low", "high", "p_adjusted"):
            assert np.allclose(rows[column], comparison.table[column], equal_nan=True)
        for i, row in enumerate(pixels[pixels.treatment == label].itertuples()):
            assert row.channel == names[i]
            assert row.mean_change == pytest.approx(comparison.map.mean[i].mean(), abs=1e-6)
            assert row.significant_share == comparison.map.significant[i].mean()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_labels_make_safe_names_and_lose_no_image(cells, tmp_path):
    images = {label: cells[i % 3:i % 3 + 2] for i, label in enumerate(hostile)}
    comparisons = {label: Comparison(treated, cells[4:6], names) for label, treated in list(images.items())[:4]}
    channels = [dict(name=name, colour=colour) for name, colour in zip(names, ("blue", "green", "red"))]
    export = Export("cells", images, comparisons, channels, dict(note="ok"))
    for format in formats:
        name, _, content = write_export(export, format)
        (tmp_path / name).write_bytes(content)
        if not zipfile.is_zipfile(tmp_path / name): continue
        with zipfile.ZipFile(tmp_path / name) as archive: members = archive.namelist()
        assert len(set(map(str.casefold, members))) == len(members)
        for member in members:
            assert 0 < len(member.encode()) <= 255 and not {"/", "\\"} & set(member) and member.isprintable()
    with np.load(tmp_path / "cells.npz", allow_pickle=False) as arrays:
        assert len(arrays.files) == len(hostile) + 4 * 2 + 2      # too few cells for a p
        written = [arrays[name].tobytes() for name in arrays.files if arrays[name].dtype == np.uint8]
        assert sorted(written) == sorted(array.tobytes() for array in images.values())
    with zipfile.ZipFile(tmp_path / "cells.ome-tiff.zip") as archive:
        assert len(archive.namelist()) == len(hostile) + 4
    with zipfile.ZipFile(tmp_path / "cells.csv.zip") as archive:
        table = pd.read_csv(archive.open("pixels.csv"), keep_default_na=False)
        assert set(table.treatment) == set(comparisons)


recording, files_written = [], []


def record_writing(event, args):
    if not recording or event != "open" or not isinstance(args[2], int): return
    if args[2] & (os.O_WRONLY | os.O_RDWR): files_written.append(args[0])


sys.addaudithook(record_writing)


def test_an_export_writes_nothing_to_disk(everything):
    write_export(everything, "PNG")      # what is read or cached once is there now
    recording.append(True)
    try: sizes = [len(write_export(everything, format)[2]) for format in formats]
    finally: recording.clear()
    assert min(sizes) > 1000 and not files_written


def test_cells_are_exported_with_and_without_their_control(ask, engine):
    answers = [engine.generate("sweller", 3., range(3), steps=1, compare=compare) for compare in (True, False)]
    both, alone = map(export_of, answers)
    assert list(both.images) == ["sweller 3 µM", "control"] and (both.images["control"] == answers[0].control).all()
    assert len(profile_table(both)) == 6 and set(statistics_table(both).treatment) == {"sweller 3 µM"}
    assert list(alone.images) == ["sweller 3 µM"] and "the control as well" in str(ask(write_export, alone, "CSV"))
    for format in ("OME-TIFF", "PNG", "NPZ"): assert write_export(alone, format)[2]


def test_one_set_of_images_has_a_plain_name_in_an_npz(engine):
    one = export_of(engine.generate("sweller", 3., range(3), steps=1, compare=False))
    with np.load(io.BytesIO(write_export(one, "NPZ")[2]), allow_pickle=False) as arrays:
        assert set(arrays.files) == {"sweller 3 µM", "images", "channels", "provenance"}
        for name in ("images", "sweller 3 µM"): assert (arrays[name] == one.images["sweller 3 µM"]).all()


@pytest.mark.parametrize("format", ["exe", "csv", None, 3, "PNG\n", ["PNG"]])
def test_another_format_is_refused(ask, everything, format):
    assert "OME-TIFF, PNG, NPZ, CSV" in str(ask(write_export, everything, format))

