"Mechanisms by structure: lists from outside, known answers, where nothing is claimed, and cells drawn by mechanism."
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfm_app.conditioning import label_embedding, perturbation_embedding
from mfm_app.core import Condition, InputError
from mfm_app.counterfactual import counterfactual
from mfm_app.display import molecule_card
from mfm_app.engine import Engine, Request, load, robustness
from mfm_app.evaluation import calibration_error
from mfm_app.finetune import random_model
from mfm_app.hub import bundled, bundled_folder, load_model
from mfm_app.mechanism import (annotated_file, claims, cross_validated, families, mechanisms, mechanisms_of, mixture,
                               no_mechanism, read_annotated, relative, verdict)
from mfm_app.molecules import Morgan, tanimoto
from mfm_app.ui import about
from mfm_app.ui_api import report_facts
from mfm_app.ui_explore import robustness_line
from mfm_app.vocabulary import Perturbation, Vocabulary, condition

from conftest import many

demecolcine = "CNC1CCc2cc(OC)c(OC)c(OC)c2C3=CC=C(OC)C(=O)C=C13"
docetaxel = ("CC(=O)O[C@@]12CO[C@@H]1C[C@H](O)[C@]3(C)[C@@H]2[C@H](OC(=O)c4ccccc4)[C@]5(O)C[C@H](OC(=O)[C@H](O)"
             "[C@@H](NC(=O)OC(C)(C)C)c6ccccc6)C(=C([C@@H](O)C3=O)C5(C)C)C")
lapatinib = "CS(=O)(=O)CCNCc1ccc(o1)-c1ccc2ncnc(Nc3ccc(OCc4cccc(F)c4)c(Cl)c3)c2c1"
caffeine, paracetamol = "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "CC(=O)Nc1ccc(O)cc1"
peptide = "NC" + "C(=O)NC" * 14 + "C(=O)O"


@pytest.fixture(scope="module")
def engine(): return load()


@pytest.fixture(scope="module")
def annotated(): return read_annotated()


# Lists

def written(tmp_path, text):
    (path := tmp_path / "list.csv").write_text(text, encoding="utf-8")
    return path


def test_the_list_has_compounds_of_twelve_mechanisms_and_others_and_says_where_they_are_from(annotated):
    assert len(annotated) == 361 and {m.mechanism for m in annotated} == {*mechanisms, no_mechanism}
    assert sum(m.mechanism == no_mechanism for m in annotated) == 180
    assert "DrugCentral" in annotated_file.with_suffix(".txt").read_text(encoding="utf-8")


def test_the_list_has_no_compound_of_the_bundled_model_nor_any_that_was_held_out(annotated, engine):
    listed = {m.smiles for m in annotated}
    assert not listed & {*engine.molecules.by_smiles, *engine.molecules.held_out}


@pytest.mark.parametrize("text, why", [
    ("name,smiles,mechanism\na,CCO,other\nb,CCN,Magic", r"Line 3 \(b\) of list.csv: Unknown mechanism 'Magic'; 13 are"),
    ("name,smiles,mechanism\na,CCO,other\nb,OCC,other",
     r"Line 3 \(b\) of list.csv is the same molecule as line 2 \(a\)"),
    ("name,smiles,mechanism\na,CCO,other\nb,C1CC,other", r"Line 3 \(b\) of list.csv: .* Ring 1.* is not closed"),
    ("name,smiles,mechanism\nb,[Na+].[Cl-],other", r"Line 2 \(b\) of list.csv: Nothing but ions"),
    ("name,smiles\na,CCO", "list.csv needs the columns name, smiles and mechanism; 'mechanism' is missing"),
    ("name,smiles,mechanism\n", "list.csv holds no molecules"), ("", "list.csv is empty")])
def test_a_wrong_list_is_refused_with_the_row_that_is_wrong(tmp_path, text, why):
    with pytest.raises(InputError, match=why): read_annotated(written(tmp_path, text))


def test_a_list_may_have_mechanisms_of_its_own(tmp_path):
    path = written(tmp_path, "Name, SMILES ,Mechanism\na,CCO,swelling\nb,CCN,OTHER\n")
    assert [m.mechanism for m in read_annotated(path, ["Swelling"])] == ["Swelling", "other"]


cell = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


@many(40)
@given(st.lists(st.tuples(cell, st.sampled_from(["CCO", "c1ccccc1", "C1CC", "*C", "", "[Fe]", peptide]) | cell,
                          st.sampled_from([*mechanisms, no_mechanism, "Magic", ""]) | cell), max_size=4))
def test_any_table_is_read_or_refused_in_a_sentence(ask, tmp_path_factory, rows):
    quoted = lambda text: '"' + text.replace('"', '""') + '"'
    text = "\n".join([",".join(map(quoted, row)) for row in [("name", "smiles", "mechanism"), *rows]])
    answer = ask(read_annotated, written(tmp_path_factory.mktemp("list"), text))
    if not isinstance(answer, InputError): assert len({m.smiles for m in answer}) == len(answer) == len(rows)


# Verdicts

@pytest.mark.parametrize("smiles, mechanism", [
    (docetaxel, "Microtubule stabilizers"), (demecolcine, "Microtubule destabilizers"),
    ("CCC(C)(C)C(=O)OC1CC(C)C=C2C=CC(C)C(CCC3CC(O)CC(=O)O3)C12", "Cholesterol-lowering")])      # simvastatin
def test_molecules_of_a_mechanism_are_recognised_and_relatives_speak_for_them(engine, smiles, mechanism):
    v = engine.assess(smiles).mechanism
    right, total = v.right
    assert v.claim == mechanism and v.evidence[0].mechanism == mechanism and v.evidence[0].tanimoto > 0.5
    assert f"{v.probability:.0%}" in v.sentence and f"Of {total} tested" in v.sentence and right > 0.8 * total


@pytest.mark.parametrize("smiles", [caffeine, paracetamol, "CC(C)NCC(O)COc1cccc2ccccc12", "O=C(O)c1ccccc1O"])
def test_drugs_of_other_kinds_are_not_claimed(engine, smiles):
    v = engine.assess(smiles).mechanism
    assert not v.claim and "speaks clearly for" in v.sentence and v.right is None and v.none > 0.15


@pytest.mark.parametrize("smiles, why", [
    ("CCP(CC)(CC)[Au]SCC", "contains Au"), (peptide, "peptide of 15 amino acids"),
    ("FS(F)(F)(F)(F)F", "resembles no molecule"),
    ("OCCO" + "CCO" * 40, "124 heavy atoms")])
def test_what_lies_outside_of_all_that_is_known_gets_one_sentence_and_no_claim(engine, smiles, why):
    report = engine.assess(smiles)
    assert report.mechanism.outside and not report.mechanism.claim and report.verdict == "none"
    assert why in report.reason and ". " not in report.reason


@pytest.mark.parametrize("text", ["*CC*", "NCCc1ccccc1.CCCCCCC(=O)CC", "C1CC", "", "CC>>CN", None,
                                  "NC" + "C(=O)NC" * 50 + "C(=O)O"])
def test_what_is_no_single_molecule_is_refused(text):
    with pytest.raises(InputError): verdict(text)


def test_probabilities_are_probabilities_and_a_list_is_judged_like_each_of_it(engine):
    smiles = [docetaxel, demecolcine, caffeine, peptide]
    together, alone = verdict(smiles, engine.vocab), [verdict(s, engine.vocab) for s in smiles]
    for a, b in zip(together, alone):
        assert [name for name, _ in a.mechanisms] == [name for name, _ in b.mechanisms]
        assert np.allclose([p for _, p in a.mechanisms], [p for _, p in b.mechanisms], atol=1e-5)
        assert abs(sum(p for _, p in a.mechanisms) + a.none - 1) < 1e-5 and len(a.mechanisms) == 12
        assert (a.claim, a.evidence, a.outside) == (b.claim, b.evidence, b.outside)
    with pytest.raises(dataclasses.FrozenInstanceError): together[0].none = 0
    assert verdict([]) == []


def test_a_listed_molecule_is_called_by_its_name():
    assert verdict("CC(C)Cc1ccc(cc1)C(C)C(=O)O").sentence.startswith("This is ibuprofen, which acts by none")
    v = verdict("COc1cc([C@@H]2c3cc4c(cc3[C@H](O)[C@H]3COC(=O)[C@H]23)OCO4)cc(OC)c1OC")
    assert v.is_known and v.claim == "Microtubule destabilizers" and "podophyllotoxin" in v.sentence


def test_a_model_is_asked_for_no_mechanism_that_it_has_not_seen(engine):
    p = lambda name: engine.vocab.perturbation(name)
    vocab = Vocabulary([Perturbation("DMSO"), p("taxol"), p("emetine")], ["a"], ["b"])
    found = verdict([docetaxel, demecolcine], vocab)
    assert {name for name, _ in found[0].mechanisms} == {"Microtubule stabilizers", "Protein synthesis"}
    assert found[0].claim == "Microtubule stabilizers" and not found[1].claim and found[1].none > 0.5


@pytest.mark.parametrize("name", ["simulated", "simulated-genes"])
def test_a_model_without_such_mechanisms_says_nothing(name):
    vocab = load_model(bundled_folder(name)).vocab
    assert mechanisms_of(vocab) is None and verdict(caffeine, vocab) is None and verdict([caffeine], vocab) == [None]


def test_families_keep_relatives_together(annotated):
    bits = Morgan()([m.smiles for m in annotated])
    group, alike = families(bits), tanimoto(bits, bits) >= relative
    assert (group[:, None] == group)[alike].all() and 200 < len(set(group)) < 361
    assert len(set(families(np.eye(5, dtype=np.uint8)))) == 5


@pytest.fixture(scope="module")
def record(engine): return engine.model.config["molecules"]["mechanism"]


def test_tested_claims_are_those_of_the_record(record):
    by_all, by_others = (record["classifier"][way] for way in ("by all others", "by others of other families"))
    assert [list(row) for row in claims["far"]] == by_others["bins"] and list(claims["near"][0][1:]) == by_all["near"]


def test_probabilities_mean_what_they_say_and_drugs_of_other_kinds_are_seldom_claimed(record):
    for figures in record["classifier"].values():
        claimed, others = figures["others"]
        assert figures["error"] < 0.1 and claimed < 0.05 * others and others == 180


@pytest.mark.slow
def test_the_record_of_the_regression_is_measured_again(engine, record):
    known = mechanisms_of(engine.vocab).known
    for way, with_relatives in (("by all others", True), ("by others of other families", False)):
        table = cross_validated(known, with_relatives)
        claimed, other = table["probability"] >= 0.5, table["mechanism"] == no_mechanism
        right = table["likeliest"] == table["mechanism"]
        figures = record["classifier"][way]
        assert figures["claims"] == [(right & claimed).sum(), claimed.sum()]
        assert figures["others"] == [(claimed & other).sum(), other.sum()]
        assert figures["error"] == pytest.approx(calibration_error(table["probability"], right), abs=1e-3)


def test_compounds_left_out_are_named_and_drawn_better_than_by_structure(record):
    drawn, named = record["drawn"], record["named"]["by mechanism"]
    right = lambda way: drawn[way][0]
    assert named[0] == named[1] == 27 and all(total == 30 for _, total in drawn.values())
    assert right("by mechanism") > right("by mechanism, without relatives")
    assert right("by mechanism, without relatives") > right("by structure (the molecule adaptor)")
    assert right("copy the control") == 0 and right("mechanism known") >= right("by mechanism")


def test_readme_card_and_page_say_how_often_it_was_right(engine, record):
    readme = (bundled.parents[2] / "README.md").read_text(encoding="utf-8")
    card = (bundled / "README.md").read_text(encoding="utf-8")
    figures = record["classifier"]["by others of other families"]
    alone = record["named"]["by mechanism, without relatives"]
    ranges = ["{1} of {2}".format(*row) for row in figures["bins"]]
    for words in ("27 were claimed to act as they do", f"{alone[0]} were claimed rightly, one wrongly",
                  f"{record['drawn']['by mechanism'][0]} were drawn with the right",
                  f"Of 180 drugs of other kinds {figures['others'][0]}",
                  f"of {record['drawn']['mechanism known'][0]} that are where the mechanism is given", *ranges,
                  f"the calibration error is {figures['error']:.2f}"): assert words in readme, words
    assert alone[1] - alone[0] == 1 and record["table"] in card and "By structure alone" in card
    assert "20 were drawn with the right mechanism" in about(engine)


# Mixtures

def test_a_mixture_weighs_compounds_of_a_mechanism_alike_and_the_control_with_the_rest(engine):
    vocab = engine.vocab
    mix = mixture(vocab, {"Microtubule destabilizers": 0.6, "Protein synthesis": 0.3}, 0.02)
    of = lambda name: mix[vocab.rows[name]]
    assert mix[:, 0].sum() == pytest.approx(1) and of("DMSO")[0] == pytest.approx(0.1) and np.isnan(of("DMSO")[1])
    assert of("vincristine").tolist() == pytest.approx([0.2, 0.02])
    assert of("emetine").tolist() == pytest.approx([0.1, 0.1])
    without = mixture(vocab, {"Microtubule destabilizers": 1.}, None, ["colchicine"])[:, 0]
    assert without[vocab.rows["colchicine"]] == 0 and without[vocab.rows["nocodazole"]] == pytest.approx(0.5)
    nothing = mixture(vocab, {}, 1.)[:, 0]
    assert nothing[vocab.rows["DMSO"]] == 1 and nothing.sum() == 1


def test_a_mixture_joins_rows_of_names_and_of_none(engine):
    adaptor, vocab = engine.model.net.adaptor, engine.vocab
    named = condition(vocab, "taxol", 0.3)
    mix = torch.full((2, len(vocab.names), 2), torch.nan)
    mix[1, :, 0] = 0
    mix[1, vocab.rows["taxol"]] = torch.tensor([1., 0.3])
    rows = Condition(named.y.repeat(2), named.e.repeat(2), named.c.repeat(2), named.dose_um.repeat(2), mix=mix)
    with torch.no_grad():
        by_name, mixed = perturbation_embedding(adaptor, rows, 2)
        assert torch.allclose(mixed, label_embedding(adaptor, named.y, named.dose_um)[0], atol=1e-5)
        assert not torch.equal(by_name, mixed)      # of names the wells were told
        assert torch.equal(adaptor(torch.zeros(2), rows.without_perturbation()),
                           adaptor(torch.zeros(2), named.without_perturbation()[[0, 0]]))


# Cells

def test_a_molecule_is_drawn_by_its_mechanism_and_without_a_claim_as_untreated(engine):
    claimed = engine.generate(molecule=demecolcine, seeds=range(4), steps=4)
    colchicine = engine.generate("colchicine", seeds=range(4), steps=4, experiment=claimed.request.experiment)
    moved = lambda answer: (answer.images.astype(float) - answer.control).ravel()
    assert np.corrcoef(moved(claimed), moved(colchicine))[0, 1] > 0.3
    nothing = engine.generate(molecule=caffeine, seeds=range(4), steps=4)
    assert np.abs(nothing.images.astype(int) - nothing.control).max() <= 1
    assert nothing.request.report.mechanism.claim == "" and nothing.provenance["molecule"] == nothing.request.molecule


def test_a_compound_is_itself_by_name_and_by_structure(engine):
    p = engine.vocab.perturbation("emetine")
    by_name = engine.generate("emetine", 0.3, seeds=[3], steps=3, experiment="Week3")
    by_structure = engine.generate(molecule=p.smiles, dose_um=0.3, seeds=[3], steps=3, experiment="Week3")
    assert (by_name.images == by_structure.images).all() and by_structure.request.report.verdict == "known"


def test_guidance_and_counterfactuals_go_on_for_molecules(engine):
    plain = engine.generate(molecule=demecolcine, dose_um=0.3, seeds=[1], steps=4)
    strong = engine.generate(molecule=demecolcine, dose_um=0.3, seeds=[1], steps=4, guidance_scale=2.)
    assert not (plain.images == strong.images).all()
    answer = counterfactual(engine, plain.control, molecule=demecolcine, dose_um=0.3, steps=6)
    assert len(answer.comparisons) == 1


def test_a_model_without_the_record_reads_structures_as_before():
    engine = Engine(random_model(), "cpu", torch.float32)
    report = engine.assess(paracetamol)
    assert report.mechanism is None and report.verdict in ("close", "far")
    rows = engine.resolve(Request(molecule=paracetamol)).rows()
    assert rows.mix is None and rows.fp is not None


def test_robustness_varies_the_structure_of_what_is_claimed_alone(engine):
    results = [robustness(engine, engine.generate(molecule=smiles, seeds=range(4), steps=3))
               for smiles in (docetaxel, caffeine, engine.vocab.perturbation("emetine").smiles)]
    assert results[0].fingerprints == 8 and results[0].agreeing > 4
    assert [r.agreeing for r in results[1:]] == [None, None] and results[1].effect.strength < 1e-3
    assert "untreated cells" in robustness_line(results[1]) and "fingerprints" not in robustness_line(results[2])


# The page and the API

def test_the_card_shows_probabilities_and_who_speaks_for_them(engine):
    card = molecule_card(engine.assess(demecolcine))
    v = engine.assess(demecolcine).mechanism
    for words in ("Microtubule destabilizers", f"{v.probability:.0%}", v.evidence[0].name,
                  f"{v.evidence[0].tanimoto:.2f}", "None of the mechanisms"): assert words in card
    assert "drawn as under colchicine, nocodazole, vincristine" in card
    outside = molecule_card(engine.assess(peptide))
    assert "No claim" in outside and "drawn as untreated" in outside
    assert "<li><span>" not in outside.split("Most similar")[0]


def test_the_api_says_the_same(engine):
    report = engine.assess(demecolcine)
    facts = report_facts(report)["acts"]
    assert facts["claim"] == report.mechanism.claim and facts["said"] == report.reason
    assert sum(facts["probabilities"].values()) + facts["none"] == pytest.approx(1, abs=0.01)
    assert facts["evidence"][0].keys() == {"name", "smiles", "mechanism", "tanimoto"}
