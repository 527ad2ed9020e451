"Compounds, genes and antibodies in one vocabulary: what they are called, who their control is, how tables name them."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mfm_app.card import model_card, perturbation_table
from mfm_app.core import InputError
from mfm_app.data import find_controls, read_cells, usual_controls, vocabulary, with_kind
from mfm_app.engine import Engine
from mfm_app.export import request_label
from mfm_app.finetune import random_model
from mfm_app.hub import Model, build, new_config
from mfm_app.screen import ScreenFolder, ScreenSettings, check_settings, default_settings, screen_into
from mfm_app.simulator import synthetic_cells
from mfm_app.validation import clearest_doses, excess_shift, phenotypes_of
from mfm_app.vocabulary import Perturbation, Vocabulary, kinds, resolve, usual_dose

from conftest import many

compound = Perturbation("taxol", "Microtubule stabilizers", "C", {0.3: 70, 3.: 70}, {"1": 140})
sirna = Perturbation("s7904", "Mitosis", kind="siRNA", gene="KIF11", also=["EG5"], experiments={"1": 40})
dmso, ntc = Perturbation("DMSO", experiments={"1": 90}), Perturbation("NTC", kind="siRNA", experiments={"1": 20})
unknown = Perturbation("AZ-1", experiments={"1": 5})
mixed = Vocabulary([dmso, ntc, compound, sirna, unknown], ["1"], ["HUVEC", "U2OS"], other_controls=["NTC"])


@pytest.fixture(scope="module")
def gene_cells():
    "Drawn cells as a screen of genes has them: no dose, no structure, a control of another name."
    cells = synthetic_cells(24, 32)
    names = dict(DMSO="EMPTY", sweller="KIF11", stabiliser="TUBB")
    names = cells.table["perturbation"].map(names)
    table = cells.table.assign(dose_um=np.nan, smiles="", kind="siRNA", perturbation=names)
    table["gene"] = table["perturbation"].where(table["perturbation"] != "EMPTY", "")
    return replace(cells, table=table, control="EMPTY")


@pytest.fixture(scope="module")
def gene_engine(gene_cells):
    "A model of these genes with random weights."
    config = new_config(vocabulary(gene_cells), gene_cells.channels, "nano/8", 32)
    config["phenotypes"] = phenotypes_of(gene_cells).to_dict()
    return Engine(Model(build(config), config, "0" * 64, "drawn"))


@pytest.mark.parametrize("p, called", [
    (compound, "taxol"), (sirna, "s7904 (KIF11) siRNA"), (Perturbation("KIF11 siRNA", kind="siRNA"), "KIF11 siRNA"),
    (Perturbation("KIF11", kind="siRNA", gene="KIF11"), "KIF11 siRNA"), (Perturbation("MYC", kind="ORF"), "MYC ORF"),
    (Perturbation("TP53", kind="CRISPR"), "TP53 CRISPR knockout"),
    (Perturbation("anti-EGFR", kind="antibody"), "anti-EGFR antibody"),
    (Perturbation("heat", kind="other"), "heat")], ids=lambda v: v if isinstance(v, str) else "")
def test_a_treatment_is_called_by_its_kind(p, called):
    assert p.treatment == called


def test_a_compound_whose_mechanism_is_not_known_is_that_and_no_control():
    assert mixed.class_of("AZ-1") == "mechanism not known" and not mixed.is_control("AZ-1")
    assert mixed.class_of("DMSO") == "untreated control" and mixed.class_of("NTC") == "control"


def test_a_treatment_is_seen_beside_the_control_of_its_kind():
    assert mixed.control_of("taxol") == "DMSO" and mixed.control_of("EG5") == "NTC"


def test_a_gene_is_found_by_its_symbol_and_synonyms_in_any_case():
    assert {resolve(mixed, name).perturbation for name in ("s7904", "kif11", "Eg5", "S-7904")} == {"s7904"}
    assert resolve(mixed, "kif11").note == "kif11 is s7904 here."


def test_what_has_no_dose_takes_none_and_says_so(ask):
    assert resolve(mixed, "KIF11").dose_um is None and mixed.dose_range("KIF11") is None and usual_dose(sirna) is None
    assert "without a dose" in str(ask(resolve, mixed, "KIF11", 3.))


def test_of_equal_doses_the_highest_stands_there_first_and_the_clearest_before_it():
    assert usual_dose(compound) == 3. and usual_dose(replace(compound, clearest_um=0.3)) == 0.3


def test_a_vocabulary_of_before_still_opens_and_comes_back_as_it_was():
    former = dict(perturbations=[dict(name="DMSO", moa="", smiles="", doses={}, experiments={"1": 9}),
                                 dict(name="taxol", moa="", smiles="", doses={"0.3": 9}, experiments={"1": 9})],
                  experiments=["1"], cell_types=["MCF-7"], control="DMSO", dose_margin=10.)
    vocab = Vocabulary.from_dict(former)
    assert vocab.counted == "1 compound" and Vocabulary.from_dict(vocab.to_dict()) == vocab


@many(50)
@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8), min_size=1,
                max_size=20, unique_by=str.lower))
def test_every_name_is_found_by_itself_whatever_else_is_there(names):
    vocab = Vocabulary([Perturbation(name, gene=names[0]) for name in names], [], ["x"], names[0])
    assert [vocab.perturbation(name.swapcase()).name for name in names] == names


# Folders


def write_folder(path, rows, titles):
    "A folder with a table of these rows and an image each."
    for i in range(len(rows)):
        noise = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(path / f"{i}.png")
    pd.DataFrame([[f"{i}.png", *row] for i, row in enumerate(rows)], columns=["image", *titles]).to_csv(
        path / "cells.csv", index=False)
    return path


def test_a_table_of_genes_says_kind_gene_pathway_and_synonyms(tmp_path):
    rows = [("EMPTY", "", "", "", ""), *[("s1", word, "KIF11", "Mitosis", "EG5; KNSL1") for word in ("sirna", "siRNA")]]
    titles = ["siRNA", "Perturbation kind", "Gene symbol", "Pathway", "Aliases"]
    cells = read_cells(write_folder(tmp_path, rows, titles))
    p = vocabulary(cells).perturbation("knsl1")
    assert (p.kind, p.gene, p.moa, p.also) == ("siRNA", "KIF11", "Mitosis", ["EG5", "KNSL1"])
    assert cells.control == "EMPTY" and "The control is EMPTY, by its name." in cells.notes


def test_genes_alone_name_the_perturbations(tmp_path):
    cells = read_cells(write_folder(tmp_path, [("NTC",), ("KIF11",)], ["gene"]))
    assert vocabulary(cells).names == ["NTC", "KIF11"]


def test_a_kind_that_is_none_is_left_out_with_a_note(tmp_path):
    cells = read_cells(write_folder(tmp_path, [("DMSO", "trt"), ("x", "magic")], ["perturbation", "kind"]))
    assert set(cells.table["kind"]) == {""} and any("no kind of perturbation" in note for note in cells.notes)


def test_what_the_table_does_not_say_is_said_by_hand(tmp_path, ask):
    cells = read_cells(write_folder(tmp_path, [("DMSO",), ("KIF11",)], ["perturbation"]))
    assert any("Nothing says what the perturbations are" in note for note in cells.notes)
    named = with_kind(cells, "crispr")
    assert vocabulary(named).treatment("KIF11") == "KIF11 CRISPR knockout" and not named.notes[-1].startswith("Nothing")
    assert "Unknown kind of perturbation" in str(ask(with_kind, cells, "magic"))


def test_one_name_for_two_kinds_is_refused(tmp_path, ask):
    rows = [("DMSO", ""), ("KIF11", "siRNA"), ("KIF11", "CRISPR")]
    cells = read_cells(write_folder(tmp_path, rows, ["perturbation", "kind"]))
    assert str(ask(vocabulary, cells)) == "'KIF11' is siRNA and CRISPR; give the two different names."


@pytest.mark.parametrize("control", usual_controls)
def test_the_usual_controls_are_found_by_their_names(control):
    assert find_controls(["KIF11", control.upper(), "TP53"]) == [control.upper()]


def test_several_controls_are_all_controls_and_the_named_one_comes_first(tmp_path):
    rows = [("DMSO", 1.), ("EMPTY", np.nan), ("negcon", np.nan), ("taxol", 3.)]
    folder = write_folder(tmp_path, rows, ["perturbation", "dose_um"])
    vocab = vocabulary(read_cells(folder))
    assert vocab.controls == ["DMSO", "EMPTY", "negcon"] and [p.name for p in vocab.treated] == ["taxol"]
    assert vocabulary(read_cells(folder, ["negcon", "DMSO"])).controls == ["negcon", "DMSO"]
    assert vocabulary(read_cells(folder, "taxol")).counted == "2 perturbations and 1 compound"


def test_a_control_that_is_not_there_is_named(tmp_path, ask):
    folder = write_folder(tmp_path, [("a",), ("b",)], ["perturbation"])
    assert "No image is of a control (DMSO, EMPTY" in str(ask(read_cells, folder))
    assert "No image is of the control 'mock'; there are a, b." == str(ask(read_cells, folder, "mock"))


# The clearest dose


def test_the_excess_of_a_shift_is_its_squared_length_and_zero_by_chance():
    rng = np.random.default_rng(0)
    same = [excess_shift(*rng.standard_normal((2, 30, 40))) for _ in range(50)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 50**.5
    far = excess_shift(rng.standard_normal((2000, 3)) + [3, 4, 0], rng.standard_normal((2000, 3)))
    assert far == pytest.approx(25, rel=.05)


def test_the_clearest_dose_is_the_strongest_of_those_seen_well():
    cells = synthetic_cells(60, 32)
    vocab = clearest_doses(vocabulary(cells), cells)
    assert vocab.perturbation("sweller").clearest_um == 10. and vocab.perturbation("stabiliser").clearest_um == 1.
    rare = cells[~((cells.table["dose_um"] == 10.) & (np.arange(len(cells)) % 6 > 0)).to_numpy()]
    assert clearest_doses(vocabulary(rare), rare).perturbation("sweller").clearest_um == 1.


# A model of genes


def test_a_model_of_genes_answers_and_its_captions_follow_the_kind(gene_engine):
    answer = gene_engine.generate("kif11", seeds=range(2), steps=2)
    assert request_label(answer.request) == "KIF11 siRNA" and answer.request.control.perturbation == "EMPTY"


def test_the_card_of_genes_speaks_of_genes(gene_engine):
    card = model_card(gene_engine.model.config)
    assert "cells under 2 siRNAs and EMPTY" in card and "| pathway | perturbation | gene | cells |" in card
    assert "µM" not in card and "compound" not in card.split("## Limitations")[1]


def test_a_table_of_very_many_perturbations_is_cut_and_says_so():
    vocab = Vocabulary([Perturbation("DMSO"), *(Perturbation(f"g{i}", kind="siRNA") for i in range(600))], [], ["x"])
    assert perturbation_table(vocab).endswith("101 more are in the config.")


def test_genes_are_screened_by_their_names_and_what_is_none_is_refused(gene_engine, tmp_path):
    rows = "gene,note\nKIF11,first\ntubb,\nKIF99,\nempty,\n"
    for progress in screen_into(tmp_path, gene_engine, rows, ScreenSettings(cells=2)): pass
    folder = ScreenFolder(tmp_path)
    assert [(r.name, r.dose_um, r.smiles, r.verdict) for r in folder.results] == [
        ("KIF11", None, "", "few"), ("tubb", None, "", "few")]
    assert [r.problem for r in folder.refused] == [
        "'KIF99' is no known perturbation, such as 'KIF11'.",
        "'EMPTY' is the control, which is sampled beside every list; leave it out."]


def test_a_gene_is_given_no_dose_by_a_list_either(gene_engine, tmp_path):
    for progress in screen_into(tmp_path, gene_engine, "KIF11, 3\nCCO", ScreenSettings(cells=1)): pass
    problems = [row.problem for row in ScreenFolder(tmp_path).refused]
    assert "without a dose" in problems[0] and "no known perturbation" in problems[1]
    assert check_settings(gene_engine, ScreenSettings()).dose_um is None


def test_effects_of_genes_without_pathways_resemble_genes(gene_cells):
    bare = replace(gene_cells, table=gene_cells.table.assign(moa=""))
    assert sorted(phenotypes_of(bare).mechanisms) == ["KIF11", "TUBB"]
    assert sorted(phenotypes_of(gene_cells).mechanisms) == ["Stabilising", "Swelling"]


def test_kinds_have_all_their_words():
    assert all(kind.one and kind.many and kind.classes for kind in kinds.values())
    assert issubclass(InputError, Exception)


def test_a_model_whose_doses_lie_elsewhere_is_screened_at_the_nearest_one():
    model = random_model()
    vocab = model.vocab
    for p in vocab.perturbations: p.doses = {dose * 1_000: n for dose, n in p.doses.items()}
    model.config["vocabulary"] = vocab.to_dict()
    engine = Engine(model)
    low, high = engine.vocab.dose_range(engine.vocab.unlisted)
    assert default_settings(engine).dose_um == low > 10.
    assert check_settings(engine, default_settings(engine)).dose_um == low
