"Real cells beside generated ones: folders and the sample for a model, which cells are picked, the quiz, the page."
import json
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import many
from controllable_net import ControllableNet

from mfm_app import ui
from mfm_app.core import InputError, refusal
from mfm_app.crops import (Round, at_hand, attribution, by_guessing, cells_of_sheet, chance, crops_for, crops_of,
                           few_of_each, mixed, pick, read_crops, read_sample, real_cells, sample_file, sample_for,
                           score_text, sheet_of)
from mfm_app.engine import Engine, Request, load
from mfm_app.finetune import random_model
from mfm_app.hub import from_pretrained
from mfm_app.sampling import Sampling
from mfm_app.simulator import synthetic_cells
from mfm_app.ui_api import vocabulary
from mfm_app.ui_explore import ExploreSession, answer_real, code_beside, end_quiz, new_quiz, real_rows

seconds = 1000     # Playwright counts in milliseconds


def write_folder(folder, cells):
    "Cells as a folder in the format of `bbbc021-cells`."
    info = dict(title="drawn", image_shape=[*cells.images.shape[2:], cells.images.shape[1]], npz_key="images",
                channels=[dict(name=c["name"], display_colour=c["colour"]) for c in cells.channels],
                control_label=[cells.control])
    table = cells.table.assign(shard="images.npz", row=range(len(cells)))
    table["dose_um"] = table["dose_um"].map(lambda dose: "" if np.isnan(dose) else f"{dose:g}")
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    table.to_csv(folder / "metadata.csv", index=False)
    np.savez(folder / "images.npz", images=cells.images.transpose(0, 2, 3, 1))
    return folder


def with_splits(cells):
    "The same cells, every second one of an experiment held out."
    return replace(cells, table=cells.table.assign(split=np.where(np.arange(len(cells)) // 2 % 2, "train", "iid")))


@pytest.fixture(scope="module")
def simulated():
    model = random_model()
    model.config["data"] = dict(title="drawn")
    return model


@pytest.fixture(scope="module")
def bundled(): return from_pretrained()


@pytest.fixture(scope="module")
def sample(bundled): return sample_for(bundled)


@pytest.fixture(scope="module")
def cells(): return with_splits(synthetic_cells(12))


# The sample

def test_the_sample_is_small_and_has_cells_of_every_condition_and_of_every_weeks_controls(bundled, sample):
    assert sum(sample_file(ending).stat().st_size for ending in ("webp", "csv.gz")) <= 3e6
    table = sample.cells.table
    for p in bundled.vocab.perturbations:
        own = table[table["perturbation"] == p.name]
        assert set(p.experiments) == set(own["experiment"]) and set(p.doses) == set(own["dose_um"].dropna()), p.name


@pytest.mark.slow
def test_the_sample_is_those_very_cells(real_cells, sample):
    where = ["source_image", "cell"]
    places = pd.Series(range(len(real_cells)), pd.MultiIndex.from_frame(real_cells.table[where].astype(str)))
    rows = places.loc[list(sample.cells.table[where].astype(str).itertuples(index=False, name=None))].to_numpy()
    assert (real_cells.images[rows] == sample.cells.images).all()
    same = ["perturbation", "experiment", "split", "smiles"]
    assert real_cells.table.iloc[rows][same].reset_index(drop=True).equals(sample.cells.table[same])


@pytest.mark.slow
def test_where_a_condition_has_cells_that_were_held_out_the_sample_has_those_first(real_cells, sample):
    keys = ["perturbation", "dose_um", "experiment"]
    def count(cells, held_out):
        return cells.table[(cells.table["split"] != "train") == held_out].groupby(keys, dropna=False).size()
    unseen, trained, whole = count(sample.cells, True), count(sample.cells, False), count(real_cells, True)
    for key in trained.index: assert unseen.get(key, 0) == whole.get(key, 0), key


def test_the_sample_ships_with_its_attribution():
    text = sample_file("LICENSE").read_text(encoding="utf-8")
    for word in ("Caie", "Ljosa", "AstraZeneca", "idr0035", "CC BY 4.0", "creativecommons.org/licenses/by/4.0"):
        assert word in text
    assert attribution.split(";")[0].split("(")[0].strip() in text


def test_the_sample_is_for_models_of_its_own_data_alone(bundled, simulated):
    assert sample_for(bundled)
    assert sample_for(simulated) is None and sample_for(from_pretrained("simulated-genes")) is None


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(1, 9))
@many(20)
def test_a_sheet_gives_back_its_cells(n, c, side, across):
    images = np.random.default_rng(n).integers(0, 256, (n, c, side, side), np.uint8)
    assert (cells_of_sheet(sheet_of(images, across), n, c, side) == images).all()


# A folder for a model

def test_a_folder_is_read_for_a_model_whatever_the_order_of_its_channels(simulated, cells, tmp_path):
    order = [2, 0, 1]
    moved = replace(cells, images=cells.images[:, order], channels=[cells.channels[i] for i in order])
    crops, = read_crops(write_folder(tmp_path, moved), simulated)
    assert [c["name"] for c in crops.cells.channels] == [c["name"] for c in simulated.channels]
    assert (crops.cells.images == cells.images).all() and crops.known


def test_other_names_of_stains_and_compounds_are_understood(bundled, sample):
    stains = [dict(name=n, colour="white") for n in ("beta-tubulin", "Phalloidin", "Hoechst")]
    other = replace(renamed(sample.cells, taxol="Paclitaxel"), images=sample.cells.images[:, ::-1], channels=stains)
    found = crops_for(bundled, other, "cells")
    assert (found.cells.images == sample.cells.images).all()
    assert pick(found, "taxol", .3, "Week4") is not None


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (1, 2, 0)])
def test_channels_under_each_others_names_are_noticed(bundled, sample, order):
    wrong = replace(sample.cells, images=sample.cells.images[:, list(order)])
    said = refusal(crops_for, bundled, wrong, "cells")
    assert said.startswith("In 'cells': The channels look exchanged") and "dataset.json" in said


def test_a_folder_of_pictures_without_names_is_refused_in_the_wrong_order_and_taken_in_the_right_one(
        bundled, sample, tmp_path):
    some = sample.cells.where(perturbation=["DMSO", "taxol"], experiment="Week4")
    for name, order in (("right", [0, 1, 2]), ("wrong", [2, 1, 0])):
        for i, (image, treatment) in enumerate(zip(some.images, some.table["perturbation"])):
            (folder := tmp_path / name / treatment).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[order].transpose(1, 2, 0)).save(folder / f"{i}.png")
    crops, = read_crops(tmp_path / "right", bundled)
    assert len(crops.cells) == len(some) and any("was taken" in note for note in crops.notes) and not crops.known
    assert "look exchanged" in refusal(read_crops, tmp_path / "wrong", bundled)


def resized(cells, size):
    from mfm_app.data import resize
    return resize(cells, size)


def scaled(cells):
    "Crops three times as wide, as of another magnification: each cell in the middle of a wider field."
    n, c, h, w = cells.images.shape
    dark = np.percentile(cells.images, 1, axis=(2, 3)).astype(np.uint8)
    ground = np.tile(dark[..., None, None], (1, 1, 3 * h, 3 * w))
    ground[:, :, h:2 * h, w:2 * w] = cells.images
    return replace(cells, images=ground)


def renamed(cells, **names):
    return replace(cells, control=names.get(cells.control, cells.control),
                   table=cells.table.assign(perturbation=cells.table["perturbation"].replace(names)))


wrong_folders = {
    "two channels": (lambda c: replace(c, images=c.images[:, :2], channels=c.channels[:2]), "Tubulin"),
    "other stains": (lambda c: replace(c, channels=[dict(name=n, colour="white") for n in ("ER", "Mito", "RNA")]),
                     "not those of the model"),
    "another scale": (scaled, "192 x 192"),
    "no control": (lambda c: c[~c.is_control], "control"),
    "other compounds": (lambda c: renamed(c, **{n: f"X{i}" for i, n in enumerate(c.table["perturbation"].unique())
                                                if n != "DMSO"}), "None of the 34 perturbations"),
}


@pytest.mark.parametrize("case", wrong_folders)
def test_a_folder_that_does_not_fit_is_refused_in_one_sentence(bundled, sample, tmp_path, ask, case):
    change, word = wrong_folders[case]
    cells = sample.cells if case != "other compounds" else replace(
        sample.cells, table=sample.cells.table.assign(smiles=""))
    error = ask(read_crops, write_folder(tmp_path, change(cells[::2])), bundled)
    assert isinstance(error, InputError) and word in str(error), error


@pytest.mark.parametrize("folder", ["nowhere", ""])
def test_no_folder_at_all_is_refused(bundled, tmp_path, ask, folder):
    assert isinstance(ask(read_crops, tmp_path / (folder or "empty/deep"), bundled), InputError)


def test_the_same_cells_of_another_size_are_resized_as_for_training(bundled, sample, tmp_path):
    crops, = read_crops(write_folder(tmp_path, resized(sample.cells[:150], 96)), bundled)
    assert crops.cells.images.shape[2:] == (64, 64) and "96 x 96" in " ".join(crops.notes)


def test_what_a_model_does_not_know_is_left_out_unless_it_has_a_structure(bundled, sample):
    odd = renamed(sample.cells, taxol="mystery")
    odd.table["smiles"] = odd.table["smiles"].where(odd.table["perturbation"] != "mystery", "")
    found = crops_for(bundled, odd, "cells")
    assert "mystery" in " ".join(found.notes) and pick(found, "taxol") is None and pick(found, "mystery") is None
    assert pick(found, "docetaxel") is not None      # held out of the model, but drawn it may be


def test_a_control_of_another_name_stands_for_the_models(simulated, cells, tmp_path):
    crops, = read_crops(write_folder(tmp_path, renamed(cells, DMSO="EMPTY")), simulated)
    assert crops.cells.control == "DMSO" and pick(crops, "DMSO") is not None


def test_of_several_models_each_has_the_cells_that_fit_it(simulated, bundled, cells, tmp_path):
    folder = write_folder(tmp_path, cells)
    found = read_crops(folder, bundled, simulated)
    assert found[0] is None and found[1] is not None
    assert crops_of([bundled, simulated], "none") == [None, None]
    assert [c is not None for c in crops_of([bundled, simulated])] == [True, False]


names = st.sampled_from(["DMSO", "sweller", "stabiliser", "taxol", "Sweller", "x"])
rows_of_folders = st.lists(st.tuples(names, st.sampled_from(["", "1", "10", "-1", "much"]),
                                     st.sampled_from(["train", "iid", "ood", "test"])), min_size=1, max_size=8)


@given(rows_of_folders, st.integers(1, 4))
@many(40)
def test_any_folder_is_read_or_refused_in_one_sentence(simulated, ask, tmp_path_factory, rows, channels):
    folder = tmp_path_factory.mktemp("data")
    columns = ["perturbation", "dose", "split"]
    table = pd.DataFrame(rows, columns=columns).assign(shard="images.npz", row=range(len(rows)))
    table.to_csv(folder / "metadata.csv", index=False)
    stains = ["DNA", "Actin", "Tubulin", "ER"][:channels]
    info = dict(title="t", image_shape=[64, 64, channels], npz_key="images", control_label="DMSO",
                channels=[dict(name=name, display_colour="red") for name in stains])
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    np.savez(folder / "images.npz", images=np.zeros((len(rows), 64, 64, channels), np.uint8))
    answer = ask(read_crops, folder, simulated)
    if isinstance(answer, InputError): return
    for name in answer[0].cells.table["perturbation"].unique(): assert len(pick(answer[0], name, 1.)) > 0


def test_of_a_large_folder_few_cells_of_each_condition_are_kept_those_held_out_first(cells):
    few = few_of_each(cells, 3)
    assert few.table.groupby(["perturbation", "dose_um", "experiment"], dropna=False).size().eq(3).all()
    assert (few.table["split"] == "iid").all()


# Which cells are shown

def test_the_same_seed_shows_the_same_cells_and_those_of_just_that_condition(sample):
    one, again, other = (pick(sample, "taxol", .3, "Week2", n=4, seed=s) for s in (0, 0, 1))
    assert (one.images == again.images).all() and one.instead == ""
    assert set(one.table["experiment"]) == {"Week2"} and set(one.table["dose_um"]) == {.3}
    assert len(other) == len(one) == 4 and (other.images != one.images).any()


def test_the_nearest_dose_and_then_another_experiment_stand_in_and_it_is_said(sample):
    dose = pick(sample, "taxol", 30., "Week4")
    assert dose.dose_um == 3 and "none at 30 µM" in dose.instead
    elsewhere = pick(sample, "cyclohexamide", 50., "Week1")
    assert elsewhere.experiment == "Week4" and "none of experiment Week1" in elsewhere.instead
    assert pick(sample, "cyclohexamide", 50., "any").instead == ""


def test_cells_that_were_held_out_alone_are_shown_where_there_are_enough(sample):
    for (name, dose, where), rows in sample.cells.table.groupby(["perturbation", "dose_um", "experiment"]):
        shown, held_out = pick(sample, name, dose, where), (rows["split"] != "train").sum()
        used = (shown.table["split"] == "train").sum()
        assert used == (0 if held_out >= 4 else len(rows) - held_out)
        said = {0: "; not used in training", len(shown): "; used in training"}.get(used, "of them not used in training")
        assert said in shown.caption and shown.caption.startswith(f"{len(shown)} real cell")


def test_a_folder_that_does_not_say_what_was_held_out_says_so(simulated):
    whole = crops_for(simulated, synthetic_cells(8), "cells")
    assert "do not say whether the model was trained on them" in pick(whole, "sweller", 1.).caption


def test_controls_are_of_the_experiment_of_the_treated_cells(bundled, sample):
    engine = Engine(bundled, "cpu", torch.float32)
    treated, control = real_cells(sample, engine.resolve(Request("colchicine", experiment="Week4")))
    assert treated.experiment == control.experiment == "Week1" and set(control.table["perturbation"]) == {"DMSO"}
    alone, none = real_cells(sample, engine.resolve(Request("DMSO")))
    assert len(alone) and none is None


def test_a_molecule_is_found_by_its_structure_even_if_the_model_never_saw_it(bundled, sample):
    engine = Engine(bundled, "cpu", torch.float32)
    smiles = sample.cells.where(perturbation="docetaxel").table["smiles"].iloc[0]
    treated, _ = real_cells(sample, engine.resolve(Request(molecule=smiles, dose_um=.1)))
    assert set(treated.table["perturbation"]) == {"docetaxel"} and "not used in training" in treated.caption
    assert real_cells(sample, engine.resolve(Request(molecule="CCO", dose_um=1.))) == (None, None)


def test_programs_learn_which_real_cells_are_at_hand(sample, simulated):
    engine = Engine(simulated, "cpu", torch.float32)
    facts, = vocabulary(engine)
    assert all(p["real_cells"] == [] for p in facts["perturbations"])
    found = at_hand(sample, "taxol")
    assert json.loads(json.dumps(found)) == found and {f["dose_um"] for f in found} == {.3, 1., 3.}
    assert sum(f["cells"] for f in found) == len(sample.cells.where(perturbation="taxol"))


# The quiz

def all_scores(cells, real, marked):
    "How often each number of cells is right, over every way to mark so many."
    truth = np.arange(cells) < real
    right = [int((np.array(m) == truth).sum()) for m in product((False, True), repeat=cells) if sum(m) == marked]
    return np.bincount(right, minlength=cells + 1) / len(right)


@pytest.mark.parametrize("marked", range(7))
def test_guessing_is_counted_exactly(marked):
    r = Round(6, 3, marked, 0)
    assert np.allclose(by_guessing(r), all_scores(6, 3, marked))
    assert np.isclose(by_guessing(r) @ np.arange(7), r.expected) and np.isclose(r.expected, 3)


def test_rounds_add_up_and_the_score_says_what_it_means_in_plain_words():
    assert np.isclose(chance([Round(8, 4, 4, 8)]), 1 / 70) and np.isclose(chance([Round(8, 4, 4, 8)] * 2), 1 / 70 ** 2)
    assert np.isclose(chance([Round(8, 4, 4, 0)]), 1)
    assert score_text([Round(8, 4, 4, 4)]) == (
        "You: 4 of 8; by chance 4. Guessing does as well or better in 76 % of tries. "
        "That is no better than guessing.")
    assert score_text([Round(8, 4, 4, 6)]).endswith("in 24 % of tries. That may still be luck.")
    said = score_text([Round(8, 4, 4, 6), Round(8, 4, 4, 8), Round(4, 2, 2, 4)])
    assert "You: 4 of 4; by chance 2. Over 3 rounds 18 of 20; by chance 10." in said and "You tell them apart." in said


def test_a_quiz_holds_both_kinds_in_an_order_that_differs_by_seed(sample):
    real = pick(sample, "taxol", .3, "Week2", n=4)
    drawn = 255 - real.images
    orders = {tuple(mixed(real, drawn, seed).real) for seed in range(20)}
    assert len(orders) > 10 and all(sum(order) == 4 for order in orders)
    quiz = mixed(real, drawn, 3)
    assert {image.tobytes() for image in quiz.images[quiz.real]} == {image.tobytes() for image in real.images}
    assert quiz.right(np.flatnonzero(quiz.real)) == 8 and quiz.right([]) == 4


# The page

@pytest.fixture(scope="module")
def folder(tmp_path_factory, cells): return write_folder(tmp_path_factory.mktemp("real"), cells)


@pytest.fixture(scope="module")
def engine(own_temporary, simulated):
    simulated.net = ControllableNet(simulated.net)
    return Engine(simulated, "cpu", torch.float32)


@pytest.fixture(scope="module")
def address(engine, folder):
    import gradio
    _, url, _ = ui.launch(engine, real=folder, prevent_thread_lock=True, quiet=True)
    yield url
    gradio.close_all()


@pytest.fixture(scope="module")
def beside(engine, folder):
    "The engine with real cells, as the page has it."
    return next(iter(ui.with_crops(dict(one=engine), folder).values()))


@pytest.fixture(scope="module")
def sample_engine():
    "The bundled model with the real cells that come with it."
    bundled = load()
    bundled.crops = sample_for(bundled.model)
    return bundled


def session_of(engine, **request):
    from mfm_app.display import run_for
    from mfm_app.ui_parts import reel_for
    session = ExploreSession()
    session.request = engine.resolve(Request(**request))
    reel_for(session, run_for(engine, session.request))
    return session


def asked(engine, session, **message):
    message = json.dumps(dict(run=session.reel.run["id"]) | message)
    return json.loads(answer_real(engine, session, message))


def test_the_page_starts_with_the_sample_or_a_folder_or_none_and_a_wrong_folder_stops_it(engine, folder, monkeypatch):
    given = lambda real: next(iter(ui.with_crops(dict(one=engine), real).values())).crops
    assert given(None) is None and given("none") is None and given(folder) is not None
    monkeypatch.setenv("MFM_REAL", str(folder))
    assert given(None) is not None
    assert "no data folder 'nowhere'" in refusal(ui.launch, engine, real="nowhere", prevent_thread_lock=True)


def test_a_folder_that_does_not_fit_stops_the_command_in_one_line(mfm, tmp_path):
    code, said = mfm("serve", "--real", tmp_path / "nowhere")
    assert (code, said.strip()) == (2, "mfm: There is no data folder 'nowhere'.")


def test_the_bundled_model_shows_the_sample_without_being_asked():
    engine, = ui.with_crops(dict(one=load())).values()
    assert engine.crops and attribution in ui.about(engine)
    facts = next(vocabulary(engine))
    assert any(p["name"] == "taxol" and p["real_cells"] for p in facts["perturbations"])


def test_the_panel_is_answered_with_cells_captions_and_the_source(beside):
    answer = asked(beside, session_of(beside, perturbation="sweller", dose_um=1.), what="cells")
    treated, control = answer["groups"]
    assert treated["n"] == 6 and "sweller 1 µM" in treated["caption"] and "not used in training" in treated["caption"]
    assert "DMSO" in control["caption"] and answer["source"] and answer["none"] == ""


def test_a_molecule_without_real_cells_gets_one_sentence(beside):
    session = session_of(beside, molecule="CCO", dose_um=1.)
    assert asked(beside, session, what="cells") | dict(asked=0, source=0) == dict(
        groups=[], none="There are no real cells of this molecule to show.", asked=0, source=0)
    assert "too few real cells" in asked(beside, session, what="quiz")["problem"]


def test_a_round_gives_nothing_away_before_it_is_revealed_and_is_counted_once(beside):
    session = session_of(beside, perturbation="sweller", dose_um=1.)
    answer = asked(beside, session, what="quiz")
    assert set(answer) == {"asked", "n", "size", "columns", "pictures", "task"} and answer["n"] == 8
    assert all(address.startswith("data:image/webp;base64,") for address in answer["pictures"].values())
    marked = np.flatnonzero(session.quiz.real).tolist()
    revealed = asked(beside, session, what="reveal", marked=marked)
    assert np.flatnonzero(revealed["real"]).tolist() == marked and "8 of 8" in revealed["score"]
    assert "over" in asked(beside, session, what="reveal", marked=marked)["problem"] and len(session.rounds) == 1
    session.clear()
    assert session.rounds == () and session.request is None


def test_rounds_differ_in_their_cells_and_order(beside):
    session, seen = session_of(beside, perturbation="sweller", dose_um=1.), set()
    for seed in range(3):
        new_quiz(beside, session, seed)
        seen.add((tuple(session.quiz.real), session.quiz.images.tobytes()))
        end_quiz(session, [0])
    assert len(seen) == 3 and len(session.rounds) == 3


def test_no_real_cell_comes_twice_before_all_were_seen_and_then_it_is_said(sample_engine):
    session, shown = session_of(sample_engine, perturbation="emetine", dose_um=.3), []
    n = len(pick(sample_engine.crops, "emetine", .3, "Week3", n=99))
    again = f"All {n} real cells of this condition were shown before, so they come again."
    while again not in new_quiz(sample_engine, session, len(shown))["task"]:
        shown += [image.tobytes() for image in session.quiz.images[session.quiz.real]]
    assert len(set(shown)) == len(shown) >= n - 1 > 4
    assert session.quiz.real.sum() >= 2 and again not in new_quiz(sample_engine, session, 9)["task"]


def test_the_code_shows_the_real_cells_that_the_page_shows(sample_engine):
    session = session_of(sample_engine, perturbation="taxol", dose_um=.3, seeds=range(2), sampling=Sampling(steps=1))
    answer = sample_engine.generate("taxol", .3, range(2), steps=1)
    names = dict(session=sample_engine, answer=answer)
    exec(code_beside(sample_engine, session.request), names)
    shown = real_cells(sample_engine.crops, session.request, seed=0)[0]
    assert (names["real"].images == shown.images).all()
    assert code_beside(sample_engine, sample_engine.resolve(Request(molecule="CCO", dose_um=1.))) == ""


def test_a_mechanism_of_the_verdict_is_drawn_from_the_same_noise_and_labelled(sample_engine):
    if not sample_engine.molecules.by_mechanism: pytest.skip("the bundled model draws molecules by structure")
    docetaxel = next(iter(sample_engine.molecules.held_out))
    session = session_of(sample_engine, molecule=docetaxel, dose_um=1., seeds=range(2), sampling=Sampling(steps=2))
    def press(name, molecule=docetaxel):
        return asked(sample_engine, session, what="mechanism", name=name, molecule=molecule)
    (cells,), (others,) = (press(name)["groups"] for name in ("Microtubule stabilizers", "Eg5 inhibitors"))
    assert cells["n"] == 2 and "as under taxol, from the same noise" in cells["caption"]
    assert "AZ-C, AZ138" in others["caption"] and cells["pictures"] != others["pictures"]
    assert "press Generate first" in press("Eg5 inhibitors", "CCO")["problem"]
    assert "press Generate first" in press("Magic")["problem"]


@pytest.mark.parametrize("message", ["", "[]", "null", "{", '{"run": 1}', '{"run": 1, "what": "secrets"}'])
def test_messages_that_the_page_never_sends_are_left_alone(beside, message):
    session = session_of(beside, perturbation="sweller", dose_um=1.)
    answer = answer_real(beside, session, message)
    assert not isinstance(answer, str) or "problem" in json.loads(answer)


@pytest.mark.parametrize("marked", [None, "1", [99], [-1], [True], ["a"], {"a": 1}])
def test_marks_that_are_none_are_refused(beside, marked):
    session = session_of(beside, perturbation="sweller", dose_um=1.)
    asked(beside, session, what="quiz")
    assert "problem" in asked(beside, session, what="reveal", marked=marked)


def generate(page, address):
    page.goto(address)
    page.wait_for_selector("#generate")
    page.wait_for_selector("#dose .ticks button")
    assert page.locator("#real-cells .real").is_hidden()
    page.click("#generate")
    page.wait_for_function("document.querySelector('#viewer .provenance').textContent", timeout=120 * seconds)
    assert page.locator("#real-cells canvas").count() == 0      # nothing travels before it is asked for


@pytest.fixture
def generated(lent, address):
    with lent("generated", lambda page: generate(page, address)) as page: yield page


def test_real_cells_stand_beside_the_generated_ones_and_follow_the_channels(generated):
    page = generated
    page.get_by_label("Real cells beside").check()
    page.wait_for_selector("#real-cells figure:nth-child(2) canvas")
    text = page.inner_text("#real-cells .rows")
    assert "real cells of stabiliser" in text and "real cells of DMSO" in text
    assert "folder" in page.inner_text("#real-cells .source") or "drawn" in page.inner_text("#real-cells .source")
    picture = lambda: page.locator("#real-cells canvas").first.evaluate("c => c.toDataURL()")
    page.wait_for_function("document.querySelector('#real-cells canvas').getContext('2d')"
                           ".getImageData(32, 32, 1, 1).data[3]")
    before = picture()
    page.locator("#viewer .channel input[type=checkbox]").first.uncheck()
    page.wait_for_timeout(100)
    assert picture() != before
    page.locator("#viewer .channel input[type=checkbox]").first.check()
    page.wait_for_timeout(100)
    assert picture() == before
    page.get_by_label("Real cells beside").uncheck()
    assert page.locator("#real-cells .rows").is_hidden()


def test_a_quiz_by_keyboard_keeps_its_score_over_rounds_and_its_markup_says_nothing(generated):
    page = generated
    page.get_by_role("button", name="Which are real?").press("Enter")
    page.wait_for_selector("#real-cells .cells button:nth-child(8)")
    markup = page.inner_html("#real-cells .cells")
    assert re.sub(r"Cell \d|>\d<|[\"']", "", markup).count("real") == markup.count("real") == 0
    assert "generated" not in markup and "src=" not in markup
    for key in "1234": page.keyboard.press(key)
    page.keyboard.press("4")
    assert page.inner_text("#real-cells output") == "3 marked"
    page.keyboard.press("4")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Cell 6"
    page.get_by_role("button", name="Reveal").press("Enter")
    page.wait_for_function("document.querySelector('#real-cells .score').textContent")
    labels = page.locator("#real-cells .cells button").all_inner_texts()
    assert sum("real" in label for label in labels) == sum("generated" in label for label in labels) == 4
    right = sum("✓" in label for label in labels)
    assert f"You: {right} of 8; by chance 4." in page.inner_text("#real-cells .score")
    page.keyboard.press("Enter")      # the next round has the focus
    page.wait_for_selector("#real-cells .cells button:nth-child(4):enabled")      # the two real ones that are left
    page.keyboard.press("1")
    page.get_by_role("button", name="Reveal").click()
    page.wait_for_function("document.querySelector('#real-cells .score').textContent.includes('Over 2 rounds')")
    page.get_by_role("button", name="Close").click()
    assert page.locator("#real-cells .quiz").is_hidden()


def test_a_round_that_fails_says_so_and_the_page_goes_on(generated, engine):
    page = generated
    engine.model.net.fails = True
    try:
        page.get_by_role("button", name="Which are real?").click()
        page.wait_for_function("document.querySelector('#real-cells output').textContent.includes('went wrong')")
    finally: engine.model.net.fails = False
    page.get_by_role("button", name="Which are real?").click()
    page.wait_for_selector("#real-cells .cells button:nth-child(4)")
