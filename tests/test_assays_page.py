"The page with other assays than drugs in one cell line, in a browser: genes without doses, compounds beside genes."
import io
import json
import re
import zipfile
from dataclasses import replace
from urllib.parse import urlencode

import gradio
import numpy as np
import pytest
import torch

from conftest import typed
from controllable_net import ControllableNet

from mfm_app import ui
from mfm_app.core import InputError
from mfm_app.counterfactual import CounterfactualRequest, Treatment, stream
from mfm_app.data import vocabulary
from mfm_app.display import Gallery, Heatmaps, Player
from mfm_app.engine import Engine, Request, across, across_steps
from mfm_app.export import export_of
from mfm_app.finetune import random_model
from mfm_app.hub import Model, build, new_config
from mfm_app.permalink import code_for_cells, code_for_counterfactual
from mfm_app.preprocess import control_statistics
from mfm_app.sampling import Sampling
from mfm_app.simulator import synthetic_cells
from mfm_app.ui_api import api_text
from mfm_app.ui_counterfactual import doses_of, drawn_controls, has_series
from mfm_app.ui_parts import experiments, known_dose, view_of_address
from mfm_app.validation import phenotypes_of
from mfm_app.vocabulary import check_vocabulary, resolve

seconds = 1000     # Playwright counts in milliseconds


def cells_of(rows):
    "Drawn cells, a quarter each line of a table: (perturbation, dose, kind, moa, smiles)."
    cells = synthetic_cells(8 * len(rows) // 5 + 8, 32)
    cells = cells[np.arange(8 * len(rows))]
    columns = [np.repeat(np.array(column, dtype=object), 8) for column in zip(*rows)]
    names = dict(zip(("perturbation", "dose_um", "kind", "moa", "smiles"), columns))
    names["dose_um"] = names["dose_um"].astype(float)
    gene = np.where((names["kind"] == "siRNA") & (names["perturbation"] != "EMPTY"), names["perturbation"], "")
    return replace(cells, table=cells.table.assign(**names, gene=gene, split="train"))


def mixed_cells():
    "Two compounds and two siRNAs, a control each, in two cell lines that have an experiment each."
    no = float("nan")
    cells = cells_of([
        ("DMSO", no, "compound", "", ""), ("EMPTY", no, "siRNA", "", ""),
        ("taxol", .3, "compound", "Stabilising", "CC(=O)Oc1ccccc1C(=O)O"),
        ("taxol", 30., "compound", "Stabilising", "CC(=O)Oc1ccccc1C(=O)O"),
        ("emetine", 1., "compound", "Translation", "Cn1cnc2c1c(=O)n(C)c(=O)n2C"),
        ("KIF11", no, "siRNA", "Mitosis", ""), ("RPL11", no, "siRNA", "Translation", "")])
    line = np.tile(["HUVEC", "RPE-1"], len(cells) // 2)
    table = cells.table.assign(cell_type=line, experiment=np.where(line == "HUVEC", "Plate 1", "Plate 2"))
    return replace(cells, table=table, control="DMSO", other_controls=["EMPTY"])


def gene_cells():
    "Two siRNAs and a control in one experiment and one cell line."
    no = float("nan")
    cells = cells_of([("EMPTY", no, "siRNA", "", ""), ("KIF11", no, "siRNA", "Mitosis", ""),
                      ("RPL11", no, "siRNA", "Translation", "")])
    return replace(cells, table=cells.table.assign(experiment="Plate 1", cell_type="HUVEC"), control="EMPTY")


def gene_model():
    "A model of them with random weights, which reads no molecules."
    cells = gene_cells()
    config = new_config(vocabulary(cells), cells.channels, "nano/8", 32)
    config["phenotypes"] = phenotypes_of(cells).to_dict()
    torch.manual_seed(0)
    net = build(config).eval()
    for weight in net.parameters(): torch.nn.init.normal_(weight, std=0.05)
    controls = cells.where(perturbation="EMPTY").images
    config["controls"] = control_statistics(controls, [c["name"] for c in cells.channels])
    return Model(net, config, "0" * 64, "genes")


@pytest.fixture(scope="module")
def mixed(own_temporary):
    model = random_model(mixed_cells())
    model.net = ControllableNet(model.net)
    return Engine(model, "cpu", torch.float32)


@pytest.fixture(scope="module")
def genes(own_temporary): return Engine(gene_model(), "cpu", torch.float32)


@pytest.fixture(scope="module")
def pages(mixed, genes):
    "The addresses of both."
    yield {name: ui.launch(engine, prevent_thread_lock=True, quiet=True)[1]
           for name, engine in dict(mixed=mixed, genes=genes).items()}
    gradio.close_all()


def opened(page, address, tab="explore", **query):
    page.goto(f"{address}?{urlencode(dict(tab=tab) | query)}")
    page.wait_for_selector("#generate:visible, #cf-go:visible, #about:visible")
    page.wait_for_timeout(500)


def shows(page, selector, text):
    "Wait until an element shows a text."
    script = "([at, text]) => document.querySelector(at)?.innerText.includes(text)"
    page.wait_for_function(script, arg=[selector, text], timeout=30 * seconds)


def choose(page, field, typed, option):
    page.click(f"#{field} input")
    page.fill(f"#{field} input", typed)
    page.get_by_role("option", name=option).click()
    page.wait_for_timeout(500)      # what follows the field arrives


def few(page, prefix=""):
    "Ask for two cells in two steps."
    page.locator("button:visible", has_text="Sampling").click()
    for field in ("cells", "steps"): typed(page, f"#{prefix}{field} input", 2)


def run(page, prefix=""):
    "Press Generate or Treat cells, and wait for the end; the captions of the large pictures."
    page.evaluate(f"document.querySelector('#{prefix}viewer .provenance').textContent = ''")
    page.click(f"#{prefix}go" if prefix else "#generate")
    finished = f"document.querySelector('#{prefix}viewer .provenance').textContent"
    page.wait_for_function(finished, timeout=60 * seconds)
    page.wait_for_function(f"document.querySelector('#{prefix}effects .maps .main-svg')", timeout=30 * seconds)
    return page.locator(f"#{prefix}viewer .pair figcaption").all_text_contents()


def downloaded(page, format):
    "The files of a download, by name."
    with page.expect_download() as download: page.click(f"#export-{format}")
    return download.value.suggested_filename, download.value.path().read_bytes()


def snippet(page, at="#share"):
    "The code below the cells."
    return page.text_content(f"{at} pre")


# Genes alone: no dose, no structure, one experiment, one cell line

def test_without_doses_no_field_and_no_word_speaks_of_one(page, pages):
    opened(page, pages["genes"])
    for field in ("#dose", "#molecule-dose", "#experiment", "#cell-type", "#across"):
        assert not page.locator(field).is_visible()
    few(page)
    assert run(page) == ["KIF11 siRNA", "EMPTY, from the same noise"]
    shows(page, "#effects h3", "Effect of KIF11 siRNA: treated minus EMPTY from the same noise")
    name, content = downloaded(page, "ome-tiff")
    assert name == "cells.ome-tiff.zip"
    assert zipfile.ZipFile(io.BytesIO(content)).namelist()[0] == "00 KIF11 siRNA.ome.tif"
    assert 'session.generate(\'KIF11\', experiment=' in snippet(page) and "dose" not in snippet(page)
    opened(page, pages["genes"], "about")
    for title in page.locator("#about ~ * button.label-wrap").all(): title.click()
    page.get_by_role("tab", name="Counterfactual").click()
    page.wait_for_selector("#cf-go:visible")
    assert not page.locator("#cf-series").is_visible() and not page.locator("#cf-dose").is_visible()
    few(page, "cf-")
    assert run(page, "cf-") == ["Original", "Reconstruction (still EMPTY)", "KIF11 siRNA"]
    for tab in ("Explore", "Counterfactual", "About"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert "µM" not in page.inner_text("body")


def test_the_molecule_side_says_why_it_is_empty_and_changes_nothing(page, pages):
    opened(page, pages["genes"])
    page.get_by_role("tab", name="Molecule").locator("visible=true").click()
    shows(page, "#no-structures", "knows 2 siRNAs by name alone. mfm finetune teaches it to read molecules")
    few(page)
    assert run(page)[0] == "KIF11 siRNA" and "perturbation=KIF11" in page.url
    page.reload()
    page.wait_for_function("document.querySelector('#viewer .provenance')?.textContent", timeout=30 * seconds)
    assert page.locator("#perturbation").is_visible()
    page.goto(f"{pages['genes']}?molecule=CCO")
    shows(page, "#status", "This model knows perturbations by name alone")


# Compounds beside genes, in two cell lines

def test_a_dose_is_there_for_what_has_one(page, pages):
    opened(page, pages["mixed"], perturbation="taxol", cells=2, steps=2)
    page.wait_for_function("document.querySelector('#viewer .provenance')?.textContent", timeout=30 * seconds)
    assert page.locator("#dose").is_visible()
    choose(page, "perturbation", "KIF", re.compile("^KIF11"))
    page.locator("#dose").wait_for(state="hidden")
    assert run(page) == ["KIF11 siRNA", "EMPTY, from the same noise"] and "dose=" not in page.url
    choose(page, "perturbation", "taxol", re.compile("^taxol"))
    page.locator("#dose").wait_for(state="visible")
    assert re.match(r"taxol, (0.3|30) µM", run(page)[0])


def test_a_series_is_offered_where_there_are_several_doses(page, pages):
    opened(page, pages["mixed"], "counterfactual")
    for name, several in (("KIF11", False), ("taxol", True), ("emetine", False)):
        choose(page, "cf-perturbation", name, re.compile(f"^{name}"))
        page.locator("#cf-series").wait_for(state="visible" if several else "hidden")
        assert page.locator("#cf-dose").is_visible() == (name != "KIF11")
    page.get_by_role("tab", name="Molecule").locator("visible=true").click()
    page.locator("#cf-series").wait_for(state="visible")


def test_a_gene_is_treated_beside_the_control_of_its_kind(page, pages):
    opened(page, pages["mixed"], "counterfactual", perturbation="RPL11", cells=2, steps=2, cell_type="RPE-1")
    page.wait_for_function("document.querySelector('#cf-viewer .provenance')?.textContent", timeout=60 * seconds)
    captions = page.locator("#cf-viewer .pair figcaption").all_text_contents()
    assert captions == ["Original", "Reconstruction (still EMPTY)", "RPL11 siRNA"]
    assert page.input_value("#cf-cell-type input") == "RPE-1" and "cell_type=RPE-1" in page.url
    assert "experiment Plate 2 in RPE-1" in page.inner_text("#cf-viewer .provenance")
    assert "control='EMPTY', cell_type='RPE-1'" in snippet(page, "#cf-share")


def test_an_experiment_follows_the_cell_line_that_is_chosen(page, pages):
    opened(page, pages["mixed"])
    assert page.input_value("#cell-type input") == "HUVEC"
    assert page.input_value("#experiment input").startswith("Plate 1")
    choose(page, "cell-type", "RPE", "RPE-1")
    page.wait_for_function("document.querySelector('#experiment input').value.startsWith('Plate 2')")
    page.fill("#cells input", "2"), page.press("#cells input", "Tab")
    run(page)
    assert "cell_type=RPE-1" in page.url and "cell_type='RPE-1'" in snippet(page)
    assert "experiment Plate 2 in RPE-1" in page.inner_text("#viewer .provenance")
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_function("document.querySelector('#viewer .provenance')?.textContent", timeout=30 * seconds)
    assert page.input_value("#cell-type input") == "RPE-1"


def test_the_same_seeds_stand_side_by_side_in_every_cell_line(page, pages, mixed):
    opened(page, pages["mixed"])
    page.fill("#cells input", "3"), page.press("#cells input", "Tab")
    page.get_by_label("Every cell line, side by side").check()
    captions = run(page)
    treated = captions[0].removeprefix("HUVEC: ")
    assert captions == [f"HUVEC: {treated}", "HUVEC: DMSO", f"RPE-1: {treated}", "RPE-1: DMSO"]
    assert page.locator("#viewer .cell").count() == 3 and page.locator("#viewer .cell canvas").count() == 12
    places = page.locator("#viewer .pair canvas").evaluate_all("all => all.map(c => c.getBoundingClientRect())")
    assert places[0]["x"] == places[1]["x"] < places[2]["x"] and places[0]["y"] == places[2]["y"] < places[1]["y"]
    assert page.locator("#robustness tbody tr").count() == 2 and "across=1" in page.url
    shows(page, "#effects h3", "in HUVEC: treated minus")
    page.locator("#viewer .column", has_text="RPE-1").click()
    shows(page, "#effects h3", "in RPE-1: treated minus")
    name, content = downloaded(page, "csv")
    assert name == "cell-lines.csv.zip"
    provenance = json.loads(zipfile.ZipFile(io.BytesIO(content)).read("provenance.json"))
    assert provenance["cell_type"] == ["HUVEC", "RPE-1"] and provenance["seeds"] == [0, 1, 2]
    assert provenance["experiment"] == ["Plate 1", "Plate 2"] and all(s > 0 for s in provenance["strength"])
    assert "answer = engine.across(session, " in snippet(page)


def test_stop_ends_a_run_across_cell_lines(page, pages, mixed):
    opened(page, pages["mixed"])
    page.get_by_label("Every cell line, side by side").check()
    mixed.model.net.pause = .3
    page.click("#generate")
    page.wait_for_function("/step [1-9]/.test(document.querySelector('#viewer .where')?.textContent)")
    page.click("#stop")
    page.wait_for_timeout(1000)
    calls = mixed.model.net.calls
    page.wait_for_timeout(1000)
    assert mixed.model.net.calls == calls
    mixed.model.net.pause = 0


# The same without a page

def test_a_dose_that_has_not_followed_its_name_yet_is_left_out(mixed):
    stale = json.dumps(dict(dose=.3))
    assert known_dose(mixed, "KIF11", stale) == "" and known_dose(mixed, "taxol", stale) == stale
    assert known_dose(mixed, "nothing", stale) == stale
    assert doses_of(mixed, "perturbation", "KIF11", None, True) == [None]
    assert not has_series(mixed, "perturbation", "KIF11") and has_series(mixed, "perturbation", "taxol")


def test_of_the_experiments_those_of_the_line_come_first_and_the_others_say_whose_they_are(mixed):
    (first, name), (other, _), _ = experiments(mixed, "taxol", "RPE-1")
    assert name == "Plate 2" and first.startswith("Plate 2 · 8 cells") and other == "Plate 1 · HUVEC alone"


@pytest.mark.parametrize("given, experiment, cell_type", [
    ({}, "Plate 1", "HUVEC"), (dict(cell_type="RPE-1"), "Plate 2", "RPE-1"),
    (dict(cell_type="rpe-1"), "Plate 2", "RPE-1"), (dict(experiment="Plate 2"), "Plate 2", "RPE-1"),
    (dict(cell_type="any"), "Plate 1", "any"), (dict(cell_type="RPE-1", experiment="plate 1"), "Plate 1", "RPE-1")])
def test_experiment_and_cell_line_follow_one_another_unless_both_are_given(mixed, given, experiment, cell_type):
    names = resolve(mixed.vocab, "KIF11", **given)
    assert (names.experiment, names.cell_type) == (experiment, cell_type)


def test_across_gives_the_cells_that_each_line_has_alone(mixed):
    both = across(mixed, "KIF11", seeds=range(3), steps=2)
    for answer, line in zip(both.answers, ["HUVEC", "RPE-1"]):
        alone = mixed.generate("KIF11", seeds=range(3), steps=2, cell_type=line)
        assert alone.request.experiment == answer.request.experiment
        assert np.abs(alone.images.astype(int) - answer.images).max() <= 1
        assert np.abs(alone.control.astype(int) - answer.control).max() <= 1
    labels = ["HUVEC: KIF11 siRNA", "HUVEC: control", "RPE-1: KIF11 siRNA", "RPE-1: control"]
    assert list(export_of(both).images) == labels
    assert Gallery(both).label.startswith("3 cells: HUVEC: KIF11 siRNA")
    assert "HUVEC: KIF11 siRNA" in Heatmaps(both).title and Player(mixed, across_steps(
        mixed, mixed.resolve(Request("KIF11", seeds=(0, 1), sampling=Sampling(steps=2))))).run["stack"] == 2


def test_across_refuses_what_it_cannot_do(mixed, genes, ask):
    assert "one cell line, HUVEC" in str(ask(across, genes, "KIF11"))
    assert "512 at a time" in str(ask(across, mixed, "KIF11", seeds=range(64), cell_types=["HUVEC", "RPE-1"] * 5))
    assert "Unknown cell type" in str(ask(across, mixed, "KIF11", cell_types=["HUVEC", "HeLa"]))
    assert "one cell line" in str(ask(view_of_address, genes, "explore", dict(perturbation="KIF11", across="1")))
    assert "Unknown cell type" in str(ask(view_of_address, mixed, "explore", dict(perturbation="KIF11", cell_type="X")))
    assert isinstance(ask(Heatmaps, across(mixed, "EMPTY", seeds=[0], steps=1)), InputError)


def test_the_code_of_both_tabs_computes_the_same_cells_again(mixed, monkeypatch):
    monkeypatch.setattr("mfm_app.engine.load", lambda *args, **kwargs: mixed)
    request, scope = mixed.resolve(Request("KIF11", seeds=(4, 5), sampling=Sampling(steps=2))), {}
    exec(code_for_cells(mixed, request, across=True), scope)
    assert [a.request.cell_type for a in scope["answer"].answers] == ["HUVEC", "RPE-1"]
    assert scope["answer"].answers[1].request.seeds == (4, 5)
    asked = CounterfactualRequest((Treatment("KIF11"),), None, "RPE-1", Sampling(steps=2))
    cells, source = drawn_controls(mixed, range(2), asked)
    *_, answer = stream(mixed, cells, asked, source)
    exec(code_for_counterfactual(mixed, answer.requests, source), scope)
    assert (scope["cells"] == cells).all() and (scope["answer"].treated == answer.treated).all()
    assert answer.provenance["control"] == "EMPTY" and answer.provenance["cell_type"] == "RPE-1"


def test_a_page_speaks_of_its_own_assay(mixed, genes):
    assert ui.welcome_text(genes).startswith("# Watch a cell respond\nPick an siRNA. ")
    assert "or draw a molecule, and a dose" in ui.welcome_text(mixed)
    assert "molecule=" not in ui.python_text(genes) and 'session.generate("KIF11"' in ui.python_text(genes)
    assert "taxol" not in api_text(genes) and '"KIF11"' in api_text(genes) and "molecule=" in api_text(mixed)


@pytest.mark.parametrize("lines", [
    [], {"Plate 9": ["HUVEC"]}, {"Plate 1": ["HeLa"]}, {"Plate 1": "HUVEC"}, {"Plate 1": []}])
def test_a_config_whose_lines_are_not_there_is_refused(mixed, lines, ask):
    wrong = mixed.vocab.to_dict() | dict(lines=lines)
    assert "The lines in the vocabulary must give" in str(ask(check_vocabulary, wrong))
