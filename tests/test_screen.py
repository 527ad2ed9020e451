"Screens of many molecules: on disk, from the command line and in a real browser, stopped, resumed and with bad rows."
import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from controllable_net import ControllableNet

from mfm_app import screen as screen_module, ui_screen
from mfm_app.cli import main
from mfm_app.core import InputError
from mfm_app.engine import Engine, Request, load
from mfm_app.features import morphology
from mfm_app.finetune import random_model
from mfm_app.hub import save_model
from mfm_app.molecules import read_rows
from mfm_app.sampling import Sampling
from mfm_app.screen import (CsvTable, RefusedRow, ScreenFolder, ScreenResult, ScreenSettings, chance_level, chance_of,
                            check_map, check_settings, corrected, likeness, no_claim, read_list, real_effects,
                            saved_untreated, screen, screen_into, screen_map)
from mfm_app.viz import no_effect

seconds = 1000     # Playwright counts in milliseconds


def quick_settings(dose_um=1., cells=2, steps=1): return ScreenSettings(dose_um, cells, sampling=Sampling(steps=steps))


quick = quick_settings()
five = "CCO, 1, ethanol\nsweller\nC1CC\nCCCCCC\nCCN, 0\nCC(=O)O, 1, acid\nCCOCC"      # five molecules and two bad rows
alkanes = lambda n: "\n".join("C" * length for length in range(1, n + 1))


def small_model():
    "A small model with random weights that reads molecules, one of which was held out."
    model = random_model()
    model.config["molecules"]["held_out"] = [dict(name="acid", moa="Swelling", smiles="CC(=O)O")]
    return model


@pytest.fixture(scope="module")
def engine():
    model = small_model()
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(autouse=True)
def reset_network(engine): engine.model.net.pause, engine.model.net.calls = 0, 0


def run(path, engine, source, settings=quick):
    "Screen to the end; the last `Progress`."
    *_, last = (progress for progress in screen_into(path, engine, source, settings) if progress)
    return last


def table(path, name="results"):
    with open(Path(path) / f"{name}.csv", newline="", encoding="utf-8") as f: return list(csv.DictReader(f))


def screened(events): return [event for event in events if isinstance(event, tuple) and event.result]


# On disk

def test_bad_rows_are_named_by_line_and_do_not_stop_the_others(engine, tmp_path):
    last = run(tmp_path, engine, five)
    assert (last.total, last.results, last.refused) == (7, 5, 2)
    problems = {row["place"]: row["problem"] for row in table(tmp_path, "refused")}
    assert set(problems) == {"line 3", "line 5"} and "Ring 1" in problems["line 3"] and "dose" in problems["line 5"]
    results = table(tmp_path)
    assert [row["place"] for row in results] == ["line 1", "line 2", "line 4", "line 6", "line 7"]
    assert [row["verdict"] for row in results][:2] == ["far", "known"] and results[1]["tanimoto"] == "1.0"


def test_a_row_is_looked_up_once(engine, tmp_path, monkeypatch):
    reports, report = [], engine.molecules.report
    def counted(molecule):
        reports.append(molecule.smiles)
        return report(molecule)
    monkeypatch.setattr(engine.molecules, "report", counted)
    run(tmp_path, engine, "CCO\nCCCCCC", quick)
    assert reports.count("CCO") == reports.count("CCCCCC") == 1
    run(tmp_path, engine, "CCO\nCCCCCC", quick)
    assert reports.count("CCO") == 1


def test_cancelled_in_the_middle_and_resumed_it_gives_the_same_results(engine, tmp_path):
    run(tmp_path / "whole", engine, five)
    running = screen_into(tmp_path / "parts", engine, five, quick)
    for progress in running:
        if progress and progress.results == 3: break
    running.close()
    assert [row["number"] for row in table(tmp_path / "parts")] == ["1", "2", "3"]
    run(tmp_path / "parts", engine, five)
    for name in ("results", "refused"):
        whole, parts = table(tmp_path / "whole", name), table(tmp_path / "parts", name)
        assert [row["place"] for row in whole] == [row["place"] for row in parts]
    for a, b in zip(ScreenFolder(tmp_path / "whole").results, ScreenFolder(tmp_path / "parts").results, strict=True):
        assert a.smiles == b.smiles and a.strength == pytest.approx(b.strength, rel=0.02)


def test_a_line_cut_short_by_a_power_failure_is_computed_again(engine, tmp_path):
    run(tmp_path, engine, five)
    whole = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(whole[:-25])
    last = run(tmp_path, engine, five)
    assert last.results == 5 and [row["number"] for row in table(tmp_path)] == ["1", "2", "3", "4", "5"]
    assert [row["place"] for row in table(tmp_path)][-1] == "line 7"


def test_a_finished_screen_makes_no_network_call(engine, tmp_path):
    run(tmp_path, engine, five)
    engine.model.net.calls = 0
    assert run(tmp_path, engine, five).results == 5 and engine.model.net.calls == 0


def test_what_was_changed_in_a_row_stands_in_the_ranked_table(engine, tmp_path):
    run(tmp_path, engine, "CC(=O)[O-].[Na+] 500 nM\nC[C@H](N)O |&1:1,r| 1\nCCO, 1")
    ScreenFolder(tmp_path).rank()
    notes = {row["place"]: row["notes"] for row in table(tmp_path, "ranked")}
    assert "500 nM is 0.5 µM. Dropped sodium ion." in notes["line 1"] and "|&1:1,r|" in notes["line 2"]
    assert notes["line 3"] == ""


def test_a_list_may_name_what_the_model_knows_and_is_told_what_it_lacks(engine, tmp_path):
    known = engine.vocab.perturbations[1].name
    (tmp_path / "names.csv").write_text(f"compound\n{known.upper()}\nacid\n{engine.vocab.control}\nnobody\n")
    rows = list(read_list(engine, tmp_path / "names.csv"))
    assert [bool(row.molecule) for row in rows] == [True, True, False, False]      # "acid" was held out in training
    assert "is the control" in rows[2].problem and "'nobody' is no known compound" in rows[3].problem


def test_results_without_the_column_of_notes_get_it_when_the_screen_goes_on(engine, tmp_path):
    run(tmp_path, engine, five)
    results = tmp_path / "results.csv"
    results.write_text("".join(line.rpartition(",")[0] + "\n" for line in results.read_text().splitlines()[:3]))
    assert run(tmp_path, engine, five).results == 5 and [row["notes"] for row in table(tmp_path)] == [""] * 5


def test_a_screen_of_an_earlier_version_goes_on(engine, tmp_path):
    "Its record has the settings flat, its refused rows a column of another name."
    run(tmp_path, engine, five)
    flat = dict(solver="euler", steps=1, cfg_scale=1., nfe=1, seeds=[0, 1], dose_um=1., cells=2, seed=0)
    record, refused = json.loads((tmp_path / "settings.json").read_text()), tmp_path / "refused.csv"
    assert flat.items() <= record.items() and {"grid", "experiment", "list_sha256", "weights_sha256"} <= set(record)
    header, first, _ = refused.read_text().splitlines()
    assert header == "place,text,problem"
    refused.write_text(f"place,said,problem\n{first}\n")
    engine.model.net.calls = 0
    last = run(tmp_path, engine, five)
    assert (last.results, last.refused, engine.model.net.calls) == (5, 2, 0)
    assert [row["said"] for row in table(tmp_path, "refused")] == ["C1CC", "CCN, 0"]
    assert [row.text for row in ScreenFolder(tmp_path).refused] == ["C1CC", "CCN, 0"]


@pytest.mark.parametrize("source,settings", [
    ("CCO", quick), (five, quick_settings(cells=3)), (five, quick_settings(dose_um=2.)),
    (five, quick_settings(steps=2))])
def test_another_list_or_other_settings_leave_the_folder_alone(engine, tmp_path, ask, source, settings):
    run(tmp_path, engine, five)
    before = (tmp_path / "results.csv").read_text()
    assert "choose another folder" in str(ask(run, tmp_path, engine, source, settings))
    assert (tmp_path / "results.csv").read_text() == before


def test_the_first_result_comes_before_the_last_row_is_read(engine):
    places = []
    def rows():
        for row in read_rows(alkanes(100), None, (0.1, 10.)):
            places.append(row.place)
            yield row
    events = screen(engine, rows(), check_settings(engine, quick))
    first = next(event for event in events if isinstance(event, tuple) and isinstance(event.result, ScreenResult))
    events.close()
    assert first.result.number == 1 and len(places) <= 16


def test_a_molecule_has_the_same_cells_in_any_batch(engine):
    settings = check_settings(engine, quick_settings(steps=3))
    def by_smiles(text, batch):
        events = screen(engine, read_rows(text, None, (0.1, 10.)), settings, batch=batch)
        return {event.result.smiles: event for event in screened(events)}
    alone, among = by_smiles("CCO", 2)["CCO"], by_smiles("CCCC\nc1ccccc1\nCCO\nCCN", 64)["CCO"]
    assert np.abs(alone.images.astype(int) - among.images).max() <= 1
    assert alone.result.strength == pytest.approx(among.result.strength, rel=0.02)
    assert alone.result.mechanism == among.result.mechanism


def test_the_cells_of_many_molecules_are_not_kept_in_memory(engine, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (1, 3, 64, 64), np.uint8)
    profile = morphology(noise, ["DNA", "Actin", "Tubulin"])
    monkeypatch.setattr(screen_module, "morphology", lambda images, names: profile)      # measuring takes long
    def peak_bytes(n):
        text = "\n".join("C" * (1 + i % 50) + "O" * (1 + i // 50) for i in range(n))
        tracemalloc.reset_peak()
        for _ in screen_into(tmp_path / str(n), engine, text, quick_settings(cells=1)): pass
        return tracemalloc.get_traced_memory()[1]
    peak_bytes(20)
    tracemalloc.start()
    try: few, many = peak_bytes(100), peak_bytes(500)
    finally: tracemalloc.stop()
    assert len(ScreenFolder(tmp_path / "500").results) == 500
    assert many - few < 2**20 < 400 * 3 * 64 * 64      # the cells of 400 more molecules would take more than this


odd_lines = ["CCO", "sweller, 1", "x", "CCO,,,", "[Na+].[Cl-]", "C,1e400", "\"", "#", "N\t5 µM"]


@hypothesis_settings(max_examples=25)
@given(text=st.text(max_size=120) | st.lists(st.sampled_from(odd_lines), max_size=6).map("\n".join))
def test_any_text_is_screened_or_refused(engine, ask, text):
    with tempfile.TemporaryDirectory() as folder:
        last = ask(run, folder, engine, text, quick_settings(cells=1))
        if not isinstance(last, InputError): assert last.results + last.refused == last.total


def test_too_many_molecules_for_the_page_are_refused(engine, tmp_path, ask):
    assert "more than 3 rows" in str(ask(lambda: list(screen_into(tmp_path, engine, five, quick, limit=3))))


def test_a_screen_goes_on_with_another_dtype(engine, tmp_path):
    run(tmp_path, engine, five)
    path = tmp_path / "settings.json"
    path.write_text(path.read_text().replace("float32", "bfloat16"))
    assert run(tmp_path, engine, five).results == 5 and "bfloat16" in path.read_text()
    path.write_text("{")
    with pytest.raises(InputError, match="settings.json in .* is damaged"): run(tmp_path, engine, five)


short_texts = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=20)


@given(st.lists(st.builds(RefusedRow, short_texts, short_texts, short_texts), max_size=4), st.integers(0, 60))
def test_a_table_reads_what_it_wrote_and_loses_at_most_its_last_line(rows, cut):
    with tempfile.TemporaryDirectory() as folder:
        table = CsvTable(Path(folder) / "refused.csv", RefusedRow)
        for row in rows: table.append(row)
        assert list(table) == rows and len(table) == len(rows)
        if not rows: return
        *_, last = (data := table.path.read_bytes()).splitlines()
        table.path.write_bytes(data[:len(data) - 1 - cut % len(last)])
        table.repair()
        assert list(table) == rows[:-1]
        table.append(rows[-1])
        assert list(table) == rows


# Chance

def cells_like_control(rng, *shape, axes=12):
    "Untreated cells along the axes in which mechanisms differ; one of twenty is twice as far out as usual."
    return rng.normal(size=(*shape, axes)) * np.where(rng.random((*shape, 1)) < .05, 2, 1)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_of_a_list_that_does_nothing_hardly_ever_a_row_is_beyond_chance(n):
    "Forty lists of 200 rows, each of them untreated cells: at most 5 % of the lists may have a row that says yes."
    rng, lists, uncorrected = np.random.default_rng(0), 0, []
    for _ in range(40):
        level = chance_level(cells_like_control(rng, 128), control := cells_like_control(rng, n))
        rows = cells_like_control(rng, 200, n).mean(1) - control.mean(0)
        distances = np.linalg.norm(rows, axis=1)
        lists += (corrected(level.p(distances)) <= .05).any()
        uncorrected.append((level.p(distances) <= .05).mean())
    assert lists <= 3 and .02 < np.mean(uncorrected) < .07      # without the correction ten rows of each list would


def test_effects_among_many_that_do_nothing_are_found():
    rng = np.random.default_rng(1)
    level = chance_level(cells_like_control(rng, 128), control := cells_like_control(rng, 4))
    null, real = cells_like_control(rng, 200, 4).mean(1), cells_like_control(rng, 20, 4).mean(1) + 4.5 * np.eye(12)[0]
    p = corrected(level.p(np.linalg.norm(np.concatenate([null, real]) - control.mean(0), axis=1)))
    assert (p[:200] <= .05).sum() <= 2 and (p[200:] <= .05).sum() >= 10
    assert (np.diff(level.p(np.linspace(0, 30, 500))) <= 0).all() and 0 < level.p(1e6) <= 1e-6 and level.p(0) > .99


def test_untreated_cells_as_rows_of_a_screen_are_not_beyond_chance(engine, tmp_path):
    "Rows whose cells are untreated ones of other seeds, measured as those of a list are."
    settings = check_settings(engine, ScreenSettings(1., 4, "Week1", sampling=Sampling(steps=1)))
    def finish(steps):
        while True:
            try: next(steps)
            except StopIteration as stop: return stop.value
    cells = finish(screen_module.untreated_cells(engine, "Week1", settings))
    assert cells.shape == (32, 2)
    assert finish(screen_module.untreated_cells(engine, "Week1", settings)) is cells      # kept
    run(tmp_path, engine, "CCO", settings)
    elsewhere = ScreenSettings(1., 4, settings.experiment, 1000, settings.sampling)
    others = finish(screen_module.untreated_cells(engine, "Week1", elsewhere))
    saved, = saved_untreated(tmp_path / "untreated.npz")
    lengths = np.linalg.norm(others.reshape(8, 4, -1).mean(1) - saved.control.mean(0), axis=1)
    assert (corrected(ScreenFolder(tmp_path).chance()["Week1"].p(lengths)) > .05).all()


def test_p_values_stand_in_the_ranked_table_and_are_the_same_when_it_was_stopped(engine, tmp_path):
    run(tmp_path / "whole", engine, five)
    running = screen_into(tmp_path / "parts", engine, five, quick)
    while not (progress := next(running)) or not progress.results: pass
    running.close()
    run(tmp_path / "parts", engine, five)
    for name in ("whole", "parts"): ScreenFolder(tmp_path / name).rank()
    whole, parts = (table(tmp_path / name, "ranked") for name in ("whole", "parts"))
    assert {row["beyond_chance"] for row in whole} <= {"yes", "no"}
    for a, b in zip(whole, parts): assert float(a["p_corrected"]) == pytest.approx(float(b["p_corrected"]), rel=.1)
    kept = {"smiles", "inchikey", "notes", "p_corrected", "claim", "likely", "probability", "wells", "effect"}
    assert kept <= set(whole[0]) and {row["inchikey"] for row in whole} >= {"LFQSCWFLJHTTHZ-UHFFFAOYSA-N"}


def test_rows_of_an_earlier_version_have_no_p_value_and_stay(engine, tmp_path):
    run(tmp_path, engine, five)
    path = tmp_path / "results.csv"
    with path.open(newline="") as file: rows = [row[:16] for row in csv.reader(file)]
    with path.open("w", newline="") as file: csv.writer(file, lineterminator="\n").writerows(rows)
    (tmp_path / "untreated.npz").unlink()
    engine.model.net.calls = 0
    assert run(tmp_path, engine, five).results == 5 and engine.model.net.calls == 0
    assert [row["beyond_chance"] for row in ScreenFolder(tmp_path).ranked()] == [""] * 5
    assert screen_map(engine.phenotypes, list(ScreenFolder(tmp_path).results)).data


# What is known of a row

def test_a_row_says_what_wells_and_structure_say_of_it(tmp_path):
    "By the bundled model: a compound at a dose that wells have, at another, one it knows nothing of."
    bundled = load()
    if not bundled.molecules.by_mechanism: pytest.skip("the bundled model draws molecules by structure")
    listed = "taxol, 0.3\ntaxol, 0.5\nCn1cnc2c1c(=O)n(C)c(=O)n2C, 10, caffeine"
    run(tmp_path, bundled, listed, ScreenSettings(10., 2, "Week1", sampling=Sampling(steps=2)))
    here, between, caffeine = ScreenFolder(tmp_path).results
    elsewhere = bundled.resolve(Request(molecule=here.smiles, dose_um=.3, experiment="Week4"))
    assert screen_module.said_by_wells(bundled, elsewhere) == "confirmed in Week1"
    assert (here.wells, between.wells, caffeine.wells) == ("confirmed", "", "")
    assert here.claim == here.likely == "Microtubule stabilizers" and here.probability == 1
    assert caffeine.claim == no_claim and 0 <= caffeine.probability < .5 and caffeine.mechanism == no_effect
    assert caffeine.inchikey == "RYYVLZVUVIJVGH-UHFFFAOYSA-N"
    assert chance_of([caffeine], ScreenFolder(tmp_path).chance()) == [1.]


def test_each_row_is_drawn_where_it_was_imaged_and_says_so(tmp_path):
    "By the bundled model; a molecule with a claim as the compounds of its mechanism, any other where most cells are."
    bundled = load()
    if not bundled.molecules.by_mechanism: pytest.skip("the bundled model draws molecules by structure")
    settings = ScreenSettings(10., 2, sampling=Sampling(steps=2))
    run(tmp_path, bundled, "taxol, 3\ndocetaxel, 1\nemetine, 1\nCn1cnc2c1c(=O)n(C)c(=O)n2C", settings)
    folder = ScreenFolder(tmp_path)
    folder.rank()
    assert [r.experiment for r in folder.results] == ["Week1", "Week1", "Week3", "Week4"]
    ranked = {row["experiment"] for row in table(tmp_path, "ranked")}
    assert ranked == set(folder.chance()) == {"Week1", "Week3", "Week4"}
    assert next(r for r in folder.results if r.name == "emetine").wells == "confirmed"
    emetine = bundled.generate("emetine", 1., range(2), experiment="Week3", sampling=settings.sampling)
    alike = lambda a, b: np.abs(a.astype(int) - b).max() <= 1
    assert alike(folder.cells(3), emetine.images) and alike(folder.control("Week3"), emetine.control)
    run(tmp_path / "one", bundled, "emetine, 1\ntaxol, 3", replace(settings, experiment="Week2"))
    assert [r.experiment for r in ScreenFolder(tmp_path / "one").results] == ["Week2", "Week2"]
    assert next(iter(ScreenFolder(tmp_path / "one").results)).wells == "confirmed in Week3"


def test_a_screen_that_was_stopped_before_it_knew_chance_learns_it(engine, tmp_path):
    run(tmp_path, engine, five)
    (tmp_path / "untreated.npz").unlink()
    assert set(ScreenFolder(tmp_path).chance()) == set()
    run(tmp_path, engine, five)
    assert None not in chance_of(list(ScreenFolder(tmp_path).results), ScreenFolder(tmp_path).chance())


def test_the_chance_level_and_control_of_an_earlier_version_are_read(engine, tmp_path):
    run(tmp_path, engine, five)
    folder, path = ScreenFolder(tmp_path), tmp_path / "untreated.npz"
    before, (cells,) = chance_of(list(folder.results), folder.chance()), saved_untreated(path)
    np.savez(path, control=cells.control, others=cells.others)
    earlier = [replace(r, experiment="") for r in folder.results]
    folder.control_path("Week1").rename(folder.cells_path(0))
    assert chance_of(earlier, folder.chance()) == before and folder.control("").shape == (2, 3, 64, 64)


# Alike

def results_of(space, vectors):
    "Results whose effects are given along the axes in which mechanisms differ."
    named = lambda v: space.resembles(np.pad(v, (0, len(space.features) - len(v))))[0]
    return [ScreenResult(i, f"line {i}", "", "C" * i, 1., float(np.linalg.norm(v)), *named(v), 1., "far", "", "", 0.,
                         *v[:2], effect=" ".join(map(str, v))) for i, v in enumerate(vectors, 1)]


def test_a_list_that_is_drawn_all_alike_is_said_to_be():
    space = load().phenotypes
    real = real_effects(space)
    different = likeness(results_of(space, real), space)
    alike = likeness(results_of(space, real.mean(0) + .2 * (real - real.mean(0))), space)
    assert not different.too_alike and different.median == pytest.approx(different.real)
    assert alike.too_alike and alike.median > .8 > alike.limit > alike.real and "one effect for all" in alike.sentence
    assert alike.cosines.shape == (len(real),) * 2 and np.allclose(np.diag(alike.cosines), 1)


def test_what_has_no_effect_and_other_doses_of_one_molecule_are_not_compared():
    space = load().phenotypes
    rows = results_of(space, real_effects(space)[:4])
    same = [ScreenResult(**{**vars(rows[0]), "number": n, "dose_um": 1. * n}) for n in (5, 6)]
    nothing = ScreenResult(**{**vars(rows[1]), "smiles": "O", "mechanism": no_effect, "effect": "0 0"})
    assert len(likeness([*rows, *same, nothing], space).results) == 4
    assert likeness([*rows[:2], *same], space) is None


# The map

def test_the_map_has_the_spread_of_real_mechanisms_and_is_the_same_again():
    space = load().phenotypes
    rows = results_of(space, real_effects(space)[:3])
    figure = screen_map(space, rows)
    halos = [trace.name for trace in figure.data if trace.fill == "toself"]
    assert "spread of Microtubule destabilizers" in halos and len(halos) <= len(space.mechanisms)
    assert [(trace.x, trace.y) for trace in figure.data if trace.customdata] and figure == screen_map(space, rows)


def test_a_map_that_cannot_be_made_is_refused_in_a_sentence(monkeypatch, ask):
    assert check_map("pca") == "PCA" and "PCA or UMAP" in str(ask(check_map, "globe"))
    monkeypatch.setattr(screen_module, "has_umap", lambda: False)
    assert "umap-learn, which is not installed" in str(ask(check_map, "umap"))


@pytest.mark.slow
def test_a_map_by_umap_is_the_same_for_the_same_seed():
    pytest.importorskip("umap")
    space = load().phenotypes
    rows = results_of(space, real_effects(space)[:5])
    first, again, other = (screen_map(space, rows, "UMAP", seed) for seed in (0, 0, 1))
    places = lambda figure: [(trace.x, trace.y) for trace in figure.data if trace.customdata]
    assert places(first) == places(again) != places(other) and first.layout.xaxis.title.text == "UMAP 1"


# From the command line

@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("screen") / "model", small_model()
    save_model(folder, model.net, model.config)
    return folder


def mfm_screen(model, out, source, *more, cells=2, steps=1):
    return ["screen", str(source), "--out", str(out), "--model", str(model), "--dose", "1", "--cells", str(cells),
            "--steps", str(steps), *more]


def exit_code(arguments):
    try: main(arguments)
    except SystemExit as stop: return stop.code


def test_mfm_screen_writes_tables_map_and_cells(model_folder, tmp_path, capsys):
    listing, out = tmp_path / "list.csv", tmp_path / "out"
    listing.write_text("smiles,dose_um,name\nCCO,1,ethanol\nC1CC,1,open\nCCN,1,amine\n", encoding="utf-8")
    assert not exit_code(mfm_screen(model_folder, out, listing))
    printed = capsys.readouterr().out
    assert "Refused line 3: 'C1CC,1,open'." in printed and "Traceback" not in printed
    names = {"results.csv", "ranked.csv", "refused.csv", "settings.json", "untreated.npz", "map.html", "cells"}
    assert {path.name for path in out.iterdir()} == names
    cells = ["00001.npy", "00001.png", "00002.npy", "00002.png", "control-Week1.npy"]
    assert sorted(path.name for path in (out / "cells").iterdir()) == cells
    ranked = table(out, "ranked")
    assert [row["rank"] for row in ranked] == ["1", "2"]
    assert float(ranked[0]["strength"]) >= float(ranked[1]["strength"])
    record, page = json.loads((out / "settings.json").read_text()), (out / "map.html").read_text(encoding="utf-8")
    assert record["solver"] == "euler" and record["nfe"] == 1 and record["seeds"] == [0, 1]
    assert len(record["weights_sha256"]) == 64
    assert "ethanol" in page and "weights_sha256" in page      # with the record of how it was made


def test_mfm_screen_goes_on_and_refuses_another_list(model_folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    def from_standard_input(text):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return exit_code(mfm_screen(model_folder, out, "-"))
    assert not from_standard_input("CCO\nCCN")
    (out / "results.csv").write_text("".join((out / "results.csv").read_text().splitlines(True)[:2]))
    (out / "cells/00001.png").unlink()
    assert not from_standard_input("CCO\nCCN")
    assert len(table(out)) == 2 and (out / "cells/00001.png").is_file()
    capsys.readouterr()
    assert from_standard_input("CCC") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mfm: ")]
    assert errors == ["mfm: 'out' holds a screen of another list, with another model or with other settings; "
                      "choose another folder."]


def test_mfm_screen_stops_at_an_interrupt_and_reports_how_far_it_is(model_folder, tmp_path):
    (tmp_path / "list.smi").write_text(alkanes(150), encoding="utf-8")
    arguments = mfm_screen(model_folder, tmp_path / "out", tmp_path / "list.smi", cells=4, steps=40)
    command = [sys.executable, "-c", "from mfm_app.cli import main; main()", *arguments]
    def obey_interrupts(): signal.signal(signal.SIGINT, signal.SIG_DFL)      # children of background tests ignore them
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=obey_interrupts)
    results = tmp_path / "out/results.csv"
    while not (results.is_file() and len(table(tmp_path / "out")) >= 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "of 150; the same command goes on." in printed and "Traceback" not in printed
    assert f"Stopped after {len(table(tmp_path / 'out'))} of 150" in printed


# On the page

def open_tab(page, address):
    page.goto(address)
    page.get_by_role("tab", name="Screen").click()
    page.wait_for_selector("#screen .hint")
    page.fill("#screen-dose input", "1")
    page.press("#screen-dose input", "Tab")


@pytest.fixture
def tab(page, address):
    "The tab on a fresh page."
    open_tab(page, address)
    return page


@pytest.fixture
def used(lent, address):
    "The tab on a page that tests share which run a screen."
    with lent("used", lambda page: open_tab(page, address)) as page: yield page


@pytest.fixture
def refusals(lent, address):
    "The tab on a page that tests share which run no screen."
    with lent("refusals", lambda page: open_tab(page, address)) as page:
        if page.input_value("#screen-list textarea"): paste(page, "")
        if page.get_by_label("Clear").count(): page.locator("#screen-file").get_by_label("Clear").first.click()
        yield page


def wait_for(page, expression, **kwargs): page.wait_for_function(expression, **kwargs)


def wait_for_text(page, selector, text, **kwargs):
    includes = "([selector, text]) => document.querySelector(selector).innerText.includes(text)"
    wait_for(page, includes, arg=[selector, text], **kwargs)


def wait_for_progress(page, text, **kwargs):
    wait_for(page, "text => document.querySelector('#screen output').textContent.startsWith(text)", arg=text, **kwargs)


def paste(page, text):
    page.fill("#screen-list textarea", text)
    page.press("#screen-list textarea", "Tab")


def run_on_page(page, text=None, rows=7):
    if text: paste(page, text)
    page.evaluate("document.querySelector('#screen output').textContent = ''")      # that of an earlier run
    page.click("#screen-go")
    wait_until_done(page, rows)


def wait_until_done(page, rows):
    wait_for_progress(page, f"All {rows} done", timeout=120 * seconds)
    wait_for(page, "document.querySelector('#screen .plot .main-svg')")


def column(page, part=".molecule span"):
    "The texts of a part of each row of the table; the names by default."
    texts = "(rows, part) => rows.map(row => row.querySelector(part).textContent.trim())"
    return page.locator("#screen .table tbody tr").evaluate_all(texts, part)


def points(page):
    traces = "document.querySelector('#screen .plot').data"
    return page.evaluate(f"{traces}.reduce((n, t) => n + (t.customdata ? t.x.length : 0), 0)")


def check_chosen(page, name):
    wait_for(page, """name => document.querySelector('#screen .chosen h3')?.textContent.startsWith(name)
        && document.querySelectorAll('#screen .chosen img').length === 2""", arg=name)
    drawings = page.locator("#screen .chosen svg")
    assert drawings.first.is_visible() and drawings.last.is_hidden()
    assert page.locator("#screen tr[aria-selected=true] .molecule span").text_content() == name


def check_refused(page, field, message):
    "The message stands at its field and nothing ran; the browser's own note of the refusal (422) is expected."
    page.click("#screen-go")
    wait_for_text(page, field, message)
    page.wait_for_timeout(300)
    text = page.inner_text("body")
    assert page.locator("#screen .hint").is_visible() and "Traceback" not in text and tempfile.gettempdir() not in text
    page.errors[:] = [error for error in page.errors if "422" not in error]


def test_a_pasted_list_becomes_a_ranked_table_and_a_map(tab):
    run_on_page(tab, five)
    strengths = [float(text) for text in column(tab, ".strength")]
    assert len(strengths) == 5 and strengths == sorted(strengths, reverse=True)
    assert column(tab, ".rank") == ["1", "2", "3", "4", "5"] and points(tab) == 5
    assert tab.locator("#screen .refused summary").text_content() == "2 rows were refused; the others went on"
    refused = tab.locator("#screen .refused tbody tr").all_text_contents()
    assert refused[0].startswith("line 3C1CC") and refused[1].startswith("line 5CCN, 0")
    assert "12 network evaluations a cell" in tab.locator("#screen-status").inner_text()


def test_the_page_says_which_rows_are_beyond_chance_and_how_alike_they_are(used):
    run_on_page(used, five)
    said = [text.split() for text in column(used, ".of-corrected")]
    assert all(words[0] in ("yes", "no") and words[1] == "p" for words in said)
    yes = sum(words[0] == "yes" for words in said)
    assert f"{yes} of 5 rows have an effect beyond chance" in used.inner_text("#screen .beyond")
    assert used.locator("#screen .heat").is_visible() == ("median cosine" in used.inner_text("#screen .alike"))
    used.locator("#screen .table tbody tr").first.click()
    wait_for_text(used, "#screen .chosen", "beyond chance (corrected p")


def table_fits(page):
    "Whether the table ends where its box does, and does not scroll inside."
    ends = """box => [box.scrollWidth - box.clientWidth, Math.max(...[...box.querySelectorAll('th, td')].map(
        cell => cell.getBoundingClientRect().right)) - box.getBoundingClientRect().right]"""
    return max(page.locator("#screen .table").evaluate(ends)) <= 1


def test_the_table_fits_the_page_wide_and_narrow(used):
    run_on_page(used, five)
    assert table_fits(used) and "Week" in column(used, ".molecule .below")[0]
    used.set_viewport_size(dict(width=390, height=844))
    try:
        wait_for(used, "document.querySelector('#screen .table').clientWidth < 390")
        assert table_fits(used) and used.evaluate("document.documentElement.scrollWidth") <= 390
    finally: used.set_viewport_size(dict(width=1280, height=900))


def test_a_map_by_umap_is_offered_only_where_it_can_be_made(used):
    radio = used.locator("#screen-map input")
    assert radio.count() == 2 and radio.first.is_checked()
    assert radio.last.is_enabled() == screen_module.has_umap()


def test_the_table_sorts_by_its_headers(used):
    run_on_page(used, five)
    header = used.get_by_role("button", name="Molecule", exact=True)
    header.click()
    names = column(used)
    assert names == sorted(names, key=str.lower)
    assert used.locator("#screen th[data-key=molecule]").get_attribute("aria-sort") == "ascending"
    header.press("Enter")
    assert column(used) == names[::-1]


def test_a_row_shows_its_cells_by_click_and_by_keyboard(used):
    run_on_page(used, five)
    names = column(used)
    used.locator("#screen .table tbody tr").nth(1).click()
    check_chosen(used, names[1])
    used.keyboard.press("Tab")
    used.locator("#screen .table tbody tr[tabindex='0']").focus()
    used.keyboard.press("ArrowDown")
    used.keyboard.press("Enter")
    check_chosen(used, names[2])


def test_a_point_of_the_map_shows_its_cells(used):
    run_on_page(used, "CCO, 1, ethanol", 1)
    wait_for(used, """() => {
        const plot = document.querySelector('#screen .plot');
        return plot.data?.reduce((n, trace) => n + (trace.customdata ? trace.x.length : 0), 0) === 1;
    }""")
    used.locator("#screen .plot").scroll_into_view_if_needed()
    position = used.evaluate("""() => {
        const plot = document.querySelector('#screen .plot'), box = plot.getBoundingClientRect();
        const { xaxis, yaxis } = plot._fullLayout, trace = plot.data.find(t => t.customdata?.length);
        return [box.x + xaxis._offset + xaxis.d2p(trace.x[0]), box.y + yaxis._offset + yaxis.d2p(trace.y[0])];
    }""")
    used.mouse.move(*position)
    used.locator("#screen .plot .hovertext").first.wait_for()
    used.mouse.click(*position)
    check_chosen(used, "ethanol")


def test_a_page_that_missed_a_message_asks_for_its_rows(tab):
    tab.evaluate("""() => {
        const parse = JSON.parse;
        let lost = false;
        JSON.parse = text => {      // the first message with results loses them
            const message = parse(text);
            if (lost || !message?.new_results?.length) return message;
            lost = true;
            return { ...message, results: 0, refused: 0, new_results: [], new_refused: [] };
        };
    }""")
    run_on_page(tab, five)
    assert len(column(tab)) == 5 == points(tab) and tab.locator("#screen .refused tbody tr").count() == 2


def test_stop_within_a_second_then_go_on_has_each_row_once(tab, engine):
    engine.model.net.pause = 0.05
    tab.fill("#screen-cells input", "1")
    paste(tab, alkanes(40))
    tab.click("#screen-go")
    tab.wait_for_selector("#screen .table tbody tr", timeout=60 * seconds)
    tab.wait_for_selector("#screen-go:disabled")
    tab.click("#screen-stop")
    tab.wait_for_timeout(1 * seconds)
    calls = engine.model.net.calls
    wait_for_progress(tab, "Stopped after")
    tab.wait_for_timeout(500)
    assert engine.model.net.calls == calls
    assert 0 < len(column(tab)) < 40
    engine.model.net.pause = 0
    tab.click("#screen-resume")
    wait_until_done(tab, 40)
    assert sorted(column(tab), key=len) == alkanes(40).split("\n") and points(tab) == 40


def test_a_visitor_who_leaves_ends_the_screen(tab, engine):
    engine.model.net.pause = 0.05
    paste(tab, alkanes(80))
    tab.click("#screen-go")
    tab.wait_for_selector("#screen .table tbody tr", timeout=60 * seconds)
    tab.goto("about:blank")
    tab.wait_for_timeout(3 * seconds)
    calls = engine.model.net.calls
    tab.wait_for_timeout(1 * seconds)
    assert engine.model.net.calls == calls
    tab.errors.clear()      # of connections that were cut


def test_more_than_the_page_takes_is_refused_in_the_status_line(used, monkeypatch):
    monkeypatch.setattr(ui_screen, "max_screened", 3)
    paste(used, five)
    used.click("#screen-go")
    wait_for_text(used, "#screen-status", "The list holds more than 3 rows")
    wait_for(used, "document.querySelector('#screen output').textContent === 'Stopped after 0'")
    assert used.locator("#screen-go").is_enabled() and used.locator("#screen-resume").is_disabled()


def test_the_same_list_again_is_there_at_once_and_another_starts_afresh(used, engine):
    run_on_page(used, five)
    engine.model.net.calls = 0
    used.click("#screen-go")
    used.wait_for_timeout(1 * seconds)
    wait_until_done(used, 7)
    assert engine.model.net.calls == 0 and len(column(used)) == 5
    run_on_page(used, "CCCC", 1)
    assert column(used) == ["CCCC"] and points(used) == 1


def test_an_internal_error_is_not_shown_and_the_screen_can_go_on(tab, engine, monkeypatch):
    def fail(*args): raise RuntimeError("a secret in /some/folder")
    with monkeypatch.context() as broken:
        broken.setattr(engine.model.net.net, "forward", fail)
        paste(tab, five)
        tab.click("#screen-go")
        wait_for_text(tab, "#screen-status", "Something went wrong")
    assert "secret" not in tab.inner_text("body")
    tab.click("#screen-resume")
    wait_until_done(tab, 7)


def upload(page, path):
    page.set_input_files("#screen-file input", path)
    wait_for_text(page, "#screen-file", path.stem)


def test_no_list_or_two_lists_are_refused(refusals, tmp_path):
    check_refused(refusals, "#screen-list", "Paste a list, or choose a file below.")
    (tmp_path / "list.smi").write_text("CCO")
    upload(refusals, tmp_path / "list.smi")
    paste(refusals, "CCO")
    check_refused(refusals, "#screen-list", "There are a pasted list and a file; empty one of them.")


bad_files = [
    ("header.csv", b"molekuel;dosis\nCCO;1\n", "header.csv needs a header with a column `smiles`"),
    ("latin.csv", "smiles,name\nCCO,Äthanol\n".encode("latin-1"), "latin.csv is not UTF-8"),
    ("empty.csv", b" ", "holds no molecules"),
    ("program.csv", b"MZ\x90\0\3\0\0\0", "program.csv is a binary file"),
    ("sheet.csv", b"PK\3\4", "save the table as .csv")]


def test_a_bad_file_is_refused_at_its_field(refusals, tmp_path):
    for name, content, message in bad_files:
        (tmp_path / name).write_bytes(content)
        refusals.set_input_files("#screen-file input", tmp_path / name)
        wait_for_text(refusals, "#screen-status", message.replace("`", ""))
        check_refused(refusals, "#screen-file", message)
        for _ in ("message", "file"): refusals.locator("#screen-file").get_by_label("Clear").first.click()
        refusals.wait_for_selector("#screen-file input[type=file]", state="attached")


bad_numbers = [
    ("dose", "1e6", "is outside what the model can know"), ("dose", "0", "is outside what the model can know"),
    ("cells", "17", "Cells a molecule must be a whole number from 1 to 16, not '17'."), ("cells", "2.5", "not '2.5'")]


def test_a_bad_number_is_refused_at_its_field(refusals):
    paste(refusals, "CCO")
    for field, value, message in bad_numbers:
        refusals.fill(f"#screen-{field} input", value)
        refusals.press(f"#screen-{field} input", "Tab")
        check_refused(refusals, f"#screen-{field}", message)
        refusals.fill(f"#screen-{field} input", "1")


def test_a_file_is_screened_and_everything_can_be_downloaded(tab, tmp_path):
    listing = tmp_path / "list.csv"
    listing.write_text("name,smiles,dose_um\nethanol,CCO,1\n=1+1,CCN,\nopen,C1CC,1\n", encoding="utf-8")
    upload(tab, listing)
    run_on_page(tab, rows=3)
    with tab.expect_download() as download: tab.click("#screen-download")
    tables = {"ranked.csv", "results.csv", "refused.csv", "settings.json", "untreated.npz", "map.html"}
    cells = {"cells/control-Week1.npy", *(f"cells/0000{n}.{kind}" for n in (1, 2) for kind in ("npy", "png"))}
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None and set(archive.namelist()) == tables | cells
        for name in ("cells/00001.npy", "cells/control-Week1.npy"):
            assert np.load(io.BytesIO(archive.read(name))).shape == (4, 3, 64, 64)
        assert json.loads(archive.read("settings.json"))["nfe"] == 12
        archive.extract("map.html", tmp_path)
    tab.goto((tmp_path / "map.html").as_uri())       # without requests to other machines, which the fixture checks
    plot = "document.querySelector('.plotly-graph-div').data.flatMap(t => t.customdata || []).length"
    assert tab.locator(".main-svg").count() and tab.evaluate(plot) == 2


def test_there_is_nothing_to_download_before_a_screen(refusals):
    refusals.click("#screen-download")
    wait_for_text(refusals, "#screen-status", "nothing to download yet")


def test_the_example_is_a_list_that_runs(used):
    used.click("#screen-example")
    wait_for(used, "document.querySelector('#screen-list textarea').value.includes('caffeine')")
    rows = used.input_value("#screen-list textarea").count("\n") + 1
    run_on_page(used, rows=rows)
    assert {"sweller", "acid", "caffeine"} <= set(column(used)) and used.locator("#screen .refused").is_hidden()


def test_a_screen_is_deleted_when_its_visitor_leaves():
    session = ui_screen.ScreenSession()
    session.start("CCO", quick)
    path = session.path
    assert path.is_dir() and ui_screen.sessions[session.token] is session
    session.clear()
    assert not path.exists() and session.token not in ui_screen.sessions


@pytest.mark.parametrize("query", [
    dict(run="", number=1), dict(run="../..", number=1), dict(number=1), [], None, "x", dict(run=[], number=1)])
def test_a_guessed_token_gives_nothing(engine, query):
    assert set(json.loads(ui_screen.molecule_cells(engine, query))) == {"error"}
    assert json.loads(ui_screen.missed_rows(query)) == dict(new_results=[], new_refused=[])
