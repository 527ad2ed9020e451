"Wells as the judge: effects with known answers, tables of every kind, and what is said of a condition."
import gzip
import json
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from mfm_app import wells as w
from mfm_app.card import model_card
from mfm_app.cli import network_of
from mfm_app.conditioning import known_embedding, label_embedding
from mfm_app.data import Batches, Cells
from mfm_app.data import vocabulary as vocabulary_of
from mfm_app.display import static
from mfm_app.engine import Engine
from mfm_app.hub import Model, build, bundled_folder, load_model, new_config, save_model
from mfm_app.simulator import synthetic_cells
from mfm_app.ui import about
from mfm_app.ui_api import vocabulary
from mfm_app.ui_parts import about_perturbation, coverage_text
from mfm_app.wells import (Wells, agreement, compare_with_wells, dose_order, effect, has_learned_from, limits,
                           nearest_mechanism, of_others, read_wells, reliability, score, strength, to_record, truth_of,
                           well_columns)

features = ["nucleus_area_px", "DNA_nucleus_mean", "nucleus_solidity"]


def table(rows):
    "Wells of (perturbation, dose, experiment, area, DNA, solidity)."
    columns = ["perturbation", "dose_um", "experiment", *features]
    mechanism = lambda t: t["perturbation"].str[:1].where(t["perturbation"] != "DMSO", "")
    return pd.DataFrame(rows, columns=columns).assign(moa=mechanism)


def wells_of(rows): return Wells(table(rows), features, "DMSO")


untreated = [("DMSO", None, e, 100 * gain + i, 10 * gain, .9) for e, gain in (("one", 1), ("two", 3)) for i in range(8)]
treated = [(name, dose, e, 100 * gain * area + i, 10 * gain * dna, .9 - shape)
           for e, gain in (("one", 1), ("two", 3)) for i in range(3)
           for name, dose, area, dna, shape in (("a1", 1., 2, 1, 0), ("a1", 10., 4, 1, 0), ("a2", 1., 3, 1, 0),
                                                ("b1", 1., 1, 1 / 2, .2), ("b2", 1., 1, 1 / 3, .3))]
example = wells_of(untreated + treated)
example_truth = truth_of(example)


# Effects

def test_an_effect_is_a_log_ratio_for_sizes_and_intensities_and_a_difference_for_shapes():
    found = effect(pd.DataFrame([[200., 5., .7]], columns=features), pd.DataFrame([[100., 10., .9]], columns=features))
    assert np.allclose(found, [np.log(2), np.log(.5), -.2])


def test_wells_are_compared_with_controls_of_their_own_experiment_so_that_gains_cancel():
    truth = example_truth
    raw = truth.effects * truth.scale
    assert np.allclose(raw.loc[("a1", 1.)], [np.log(2), 0, 0], atol=.02)
    assert np.allclose(raw.loc[("b1", 1.)], [0, np.log(.5), -.2], atol=.02)
    assert np.allclose((truth.effects ** 2).mean(), 1)
    assert truth.conditions["wells"].eq(6).all() and truth.chance < .2


def test_a_well_of_a_condition_is_compared_with_its_replicates_alone():
    truth = example_truth
    assert len(truth.replicates) == 30 and all(np.allclose(one, others, atol=.1) for _, one, others in truth.replicates)


def test_untreated_wells_set_the_strength_that_chance_reaches():
    rng = np.random.default_rng(0)
    noisy = [(name, dose, e, area * np.exp(rng.normal(0, .3)), dna, shape)
             for name, dose, e, area, dna, shape in untreated + treated]
    assert truth_of(wells_of(noisy)).chance > 3 * example_truth.chance


# Agreement

def test_agreement_has_known_answers():
    true = example_truth.effects
    rows = agreement(true * 2, true)
    assert np.allclose(rows["cosine"], 1) and np.allclose(rows["ratio"], 2)
    assert np.allclose(agreement(-true, true)["cosine"], -1)
    assert np.allclose(agreement(true * 0, true)[["cosine", "ratio"]], 0)


def test_the_nearest_effect_of_another_compound_has_its_mechanism_or_not():
    truth = example_truth
    assert nearest_mechanism(truth.effects, truth.conditions["moa"]) == 1
    swapped = truth.conditions["moa"].copy()
    swapped[:] = ["a", "b", "b", "a", "b"]
    assert nearest_mechanism(truth.effects, swapped) < .5
    assert np.isnan(nearest_mechanism(truth.effects, swapped.mask(swapped != "", "")))


def test_the_mean_of_the_others_never_has_the_compound_itself():
    truth = example_truth
    mates = of_others(truth.effects, truth.conditions["moa"])
    assert np.allclose(mates.loc[("a1", 1.)], truth.effects.loc[("a2", 1.)])
    assert np.allclose(of_others(truth.effects).loc[("b1", 1.)], truth.effects.drop("b1").mean())


def test_doses_are_in_order_where_the_stronger_one_is_the_stronger_one_in_the_wells():
    true = example_truth.effects
    assert dose_order(true, true) == (1, 1)
    reverse = true.copy()
    reverse.loc[("a1", 1.)], reverse.loc[("a1", 10.)] = true.loc[("a1", 10.)].copy(), true.loc[("a1", 1.)].copy()
    assert dose_order(reverse, true) == (0, 1)


def test_every_figure_lies_in_its_interval():
    truth = example_truth
    rng = np.random.default_rng(1)
    figures = score(truth.effects + rng.normal(0, .5, truth.effects.shape), truth.effects, truth.conditions["moa"])
    for name in ("spearman", "cosine", "ratio"):
        value, low, high = figures[name]
        assert low - 1e-9 <= value <= high + 1e-9


@pytest.mark.parametrize("cosine, strength, verdict", [
    (.9, 3, "confirmed"), (.8, 3, "confirmed"), (.6, 3, "partly"), (.3, 3, "contradicted"), (.9, 1, "none")])
def test_what_is_said_of_a_condition_follows_limits_of_the_wells(cosine, strength, verdict):
    assert reliability(cosine, strength, chance=1.5, replicate=.8, other=.5) == verdict


def test_replicates_that_agree_less_than_other_mechanisms_do_confirm_nothing():
    said = [reliability(cosine, 3, chance=1.5, replicate=.3, other=.5) for cosine in (.2, .4, .6)]
    assert said == ["contradicted", "partly", "confirmed"]


def test_limits_come_from_replicates_and_from_other_mechanisms():
    truth = example_truth
    found = limits(truth, truth.effects)
    assert found["replicate"] > .99 and abs(found["other"]) < .3


# Tables

def written(path, rows=untreated + treated, **columns):
    frame = table(rows).rename(columns={name: well_columns[name] for name in features} | columns)
    frame.to_csv(path, index=False)
    return path


def test_a_table_is_read_under_cellprofilers_names_or_given_ones_plain_or_packed(tmp_path):
    first = read_wells(written(tmp_path / "wells.csv"))
    assert sorted(first.features) == sorted(features) and len(first.untreated) == 16
    assert first.control == "DMSO" and not first.notes
    packed = tmp_path / "wells.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "wells.csv").read_bytes()))
    assert read_wells(packed).table.equals(first.table)
    own = dict(nucleus_area_px="Area", DNA_nucleus_mean="Mean", nucleus_solidity="Solidity")
    table(untreated + treated).rename(columns=own).to_csv(tmp_path / "own.csv", index=False)
    assert read_wells(tmp_path / "own.csv", own).table.equals(first.table)


def test_doses_are_read_in_the_unit_of_their_title(tmp_path):
    nanomolar = [(name, dose and dose * 1000, *rest) for name, dose, *rest in untreated + treated]
    read = read_wells(written(tmp_path / "wells.csv", nanomolar, dose_um="dose_nM"))
    assert set(read.treated["dose_um"]) == {1., 10.}


bad_tables = {
    "other features": (dict(rename=dict(zip(features, ["x", "y", "z"]))), "has 0 of the features"),
    "no control": (dict(rows=treated), "control"),
    "a control in another experiment": (dict(rows=[r for r in untreated if r[2] == "one"] + treated),
                                        "in the experiment two"),
    "a mass": (dict(rename=dict(dose_um="dose (ug/mL)")), "mass"),
    "a negative intensity": (dict(rows=[*untreated, ("a1", 1., "one", 100, -1, .9)]), "must be a number above 0"),
    "no number": (dict(rows=[*untreated, ("a1", 1., "one", 100, "n/a", .9)]), "must be a number"),
    "no experiment": (dict(rename=dict(experiment="whatever")), "no column 'experiment'"),
}


@pytest.mark.parametrize("name", bad_tables)
def test_a_table_that_cannot_judge_is_refused_in_a_sentence(ask, tmp_path, name):
    how, words = bad_tables[name]
    table(how.get("rows", untreated + treated)).rename(columns=how.get("rename", {})).to_csv(
        path := tmp_path / "wells.csv", index=False)
    assert words in str(ask(read_wells, path))


def test_a_mapping_with_names_that_are_not_there_is_refused(ask, tmp_path):
    path = written(tmp_path / "wells.csv")
    assert "no column 'Area'" in str(ask(read_wells, path, dict(nucleus_area_px="Area")))
    assert "is no feature" in str(ask(read_wells, path, dict(Area=well_columns["nucleus_area_px"])))


def test_compounds_of_other_names_only_are_refused(ask):
    model = load_model(bundled_folder("simulated"))
    assert "knows none of the perturbations" in str(ask(compare_with_wells, model, example, None, 2))


# The bundled table

@pytest.fixture(scope="module")
def bundled_wells(): return read_wells(static / "wells-bbbc021.csv.gz")


def test_the_table_that_comes_along_has_its_notice_and_every_week_its_controls(bundled_wells):
    assert len(bundled_wells.table) == 536 and len(bundled_wells.untreated) == 330
    assert bundled_wells.features == list(well_columns)
    assert "Copyright (c) 2015 Broad Institute" in (static / "wells-bbbc021.LICENSE").read_text(encoding="utf-8")


def test_of_the_real_wells_replicates_agree_and_other_mechanisms_do_not(bundled_wells):
    truth = truth_of(bundled_wells)
    assert len(truth.effects) == 70 and 1.5 < truth.chance < 2.5
    figures = score(*w.replicate_effects(truth), truth.conditions["moa"])
    assert figures["cosine"][0] > .9
    assert .5 < nearest_mechanism(truth.effects, truth.conditions["moa"]) < .8
    assert strength(truth.effects.loc[("taxol", .3)]) > 4 > strength(truth.effects.loc[("chlorambucil", 10.)])


def test_a_record_of_a_judgement_is_plain_json(bundled_wells):
    few = bundled_wells.table["perturbation"].isin(["DMSO", "taxol", "emetine"])
    some = Wells(bundled_wells.table[few], bundled_wells.features, "DMSO", "few.csv")
    report = compare_with_wells(load_model(bundled_folder("bbbc021")), some, None, 4)
    record = json.loads(json.dumps(to_record(report), allow_nan=False))
    assert {row["perturbation"] for row in record["conditions"]} == {"taxol", "emetine"}
    assert all(len(row["true"]) == len(row["drawn"]) == 14 for row in record["conditions"])
    assert record["table"].startswith("Effects of 5 conditions") and report.conditions["cosine"].median() > .6


# Where it is read

@pytest.fixture
def judged():
    "An engine of the bundled model with a record of three conditions."
    model = load_model(bundled_folder("bbbc021"))
    row = dict(cosine=.9, strength=3., ratio=1.1, true=[np.log(2), 0], drawn=[np.log(1.8), 0])
    rows = [row | dict(perturbation="taxol", dose_um=dose, reliability=verdict)
            for dose, verdict in ((.3, "confirmed"), (1., "contradicted"), (3., "none"))]
    model.config["wells"] = dict(features=["Tubulin_mean", "DNA_nucleus_mean"], conditions=rows, table="Said first.")
    return Engine(model)


def test_beside_a_perturbation_stands_what_the_wells_say_of_each_dose_and_of_its_strongest_feature(judged):
    said = about_perturbation(judged, "taxol")
    assert "confirm 0.3 µM, contradict 1 µM and show no effect at 3 µM." in said
    assert "the tubulin is 2.0 times the control's, in drawn cells 1.8 times." in said
    assert coverage_text["some"] not in said and coverage_text["few"] in about_perturbation(judged, "emetine")


def test_api_card_and_about_have_it_too(judged):
    facts = {p["name"]: p["measured_wells"] for p in next(vocabulary(judged))["perturbations"]}
    assert [row["reliability"] for row in facts["taxol"]] == ["confirmed", "contradicted", "none"]
    assert facts["emetine"] == []
    assert "## Measured wells\nSaid first." in model_card(judged.model.config) and "- Said first." in about(judged)


@pytest.mark.parametrize("change", [
    dict(conditions=3), dict(conditions=[dict(perturbation="taxol")]), dict(features=None), dict(table=None)])
def test_a_model_folder_whose_record_is_damaged_is_refused_in_a_sentence(ask, judged, tmp_path, change):
    judged.model.config["wells"] |= change
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder("bbbc021"), folder)
    (folder / "config.json").write_text(json.dumps(judged.model.config))
    assert "'wells' in" in str(ask(load_model, folder))


# Wells that inform a model

crops = {("DMSO", 0.): 12, ("a1", 1.): 8, ("a1", 10.): 2, ("b1", 1.): 2}      # beside the wells above; a2 has none


@pytest.fixture(scope="module")
def informing(tmp_path_factory):
    "A table of wells as a file, cells, their vocabulary, and a config of their model."
    path = tmp_path_factory.mktemp("informing") / "wells.csv"
    table(untreated + treated).rename(columns=well_columns).to_csv(path, index=False)
    names, doses = zip(*(key for key, n in crops.items() for _ in range(n)))
    drawn = synthetic_cells(len(names), 32)
    rows = drawn.table.iloc[:len(names)].assign(perturbation=names, dose_um=doses, experiment="one", split="train")
    rows["dose_um"] = rows["dose_um"].where(rows["dose_um"] > 0)
    cells = Cells(drawn.images[:len(names)], rows.reset_index(drop=True), drawn.channels)
    vocab = vocabulary_of(cells)
    return path, cells, vocab, new_config(vocab, cells.channels, "nano/8", 32)


def informed_model(informing, begin=None):
    path, cells, vocab, config = informing
    config = json.loads(json.dumps(config))
    net, _ = network_of(config, cells, vocab, wells=path, begin=begin)
    return Model(net.eval(), config, "", "informed")


def test_a_network_is_told_the_effect_of_each_dose_and_what_lies_between(informing):
    measured, vocab = informed_model(informing).net.adaptor.measured, informing[2]
    torch.nn.init.ones_(measured.into.weight)
    y = torch.tensor([vocab.names.index("a1")]).expand(4)
    vectors, own = measured(y, torch.tensor([0.1, 1., 10 ** .5, 10.]))
    asked = lambda dose, crops: sum(example_truth.effects.loc[("a1", dose)]) * (1 - crops / (crops + 30))
    low, high = asked(1., 8), asked(10., 2)      # what the label draws in its share is not asked for
    assert torch.allclose(vectors[:, 0], torch.tensor([low, low, (low + high) / 2, high]), atol=1e-3)
    assert torch.allclose(own[:, 0], torch.tensor([8 / 38, 8 / 38, (8 / 38 + 2 / 32) / 2, 2 / 32]), atol=1e-4)


def test_the_control_and_unconditional_rows_are_what_their_labels_say(informing):
    model = informed_model(informing)
    torch.nn.init.ones_(model.net.adaptor.measured.into.weight)
    y, dose = torch.tensor([informing[2].names.index("DMSO"), -1]), torch.tensor([torch.nan, torch.nan])
    adaptor = model.net.adaptor
    assert torch.equal(known_embedding(adaptor, y, dose), label_embedding(adaptor, y, dose))


def test_an_informed_model_is_read_as_it_was_written_and_knows_the_wells_again(informing, tmp_path):
    model, truth = informed_model(informing), truth_of(read_wells(informing[0]))
    save_model(tmp_path, model.net, model.config)
    again = load_model(tmp_path)
    assert again.config["adaptor"]["measured"] == dict(doses=2, features=3) and has_learned_from(again, truth)
    assert not has_learned_from(again, truth_of(wells_of(untreated + treated[:-1])))
    assert not has_learned_from(load_model(bundled_folder("simulated")), truth)


def test_a_model_can_be_told_another_effect_for_a_while(informing):
    model = informed_model(informing)
    measured = model.net.adaptor.measured
    before = measured.effect.clone()
    with w.informed_by(model, "a1", 10., [7., 8, 9]):
        assert measured.effect[informing[2].names.index("a1"), 1].tolist() == [7, 8, 9]
    assert torch.equal(measured.effect, before)


def test_an_informed_model_is_judged_by_wells_that_it_was_not_told_of_as_well(informing):
    model, wells = informed_model(informing), read_wells(informing[0])
    report = compare_with_wells(model, wells, n=2)
    assert report.informed and "one of the wells left out" in report.to_markdown()
    judged = agreement(*w.of_other_replicates(model, truth_of(wells), 2))
    turns = judged.groupby(level=[0, 1])["cosine"]
    assert turns.size().to_dict() == {("a1", 1.): 6, ("a1", 10.): 6, ("b1", 1.): 6}      # wells, each left out once
    assert report.scores[w.left_out_name]["conditions"] == 18
    assert np.allclose(report.conditions["cosine"].loc[turns.median().index], turns.median())
    record = to_record(report)
    assert record["informed"] and "wells left out judge it" in w.said_of_wells(record, "a1")


def test_training_goes_on_from_a_model_of_labels_and_gives_its_vectors_back_as_far_as_effects_tell(informing):
    path, cells, vocab, config = informing
    start, _ = network_of(json.loads(json.dumps(config)), cells, vocab)
    torch.nn.init.normal_(start.adaptor.y.table.weight)
    informed = informed_model(informing, Model(start, config, "", "labels")).net.adaptor
    assert torch.equal(informed.y.table.weight, start.adaptor.y.table.weight)
    assert informed.measured.into.weight.abs().max() > 0


@pytest.mark.parametrize("change, said", [
    (lambda config: config["backbone"].update(name="nano/4"), "its network differ"),
    (lambda config: config["channels"][0].update(name="Golgi"), "its channels differ")])
def test_training_cannot_start_from_another_network(ask, informing, change, said):
    other = json.loads(json.dumps(informing[3]))
    change(other)
    message = str(ask(informed_model, informing, Model(build(other), other, "", "another")))
    assert message.startswith("Training cannot start from 'another'") and said in message


@pytest.fixture
def linear_world(informing, monkeypatch):
    "A model of labels in a world where effects are a linear map of the perturbation's vector, and the wells."
    path, cells, vocab, config = informing
    torch.manual_seed(0)
    net, _ = network_of(config := json.loads(json.dumps(config)), cells, vocab)
    for p in net.adaptor.parameters(): torch.nn.init.normal_(p, std=0.3)
    truth, readout = truth_of(read_wells(path)), torch.randn(3, net.backbone.width)
    def drawn(model, truth, n=32, told=None, seed=0):
        keys = [key for key in truth.effects.index if key[0] in vocab.names]
        y, dose = (torch.tensor(x) for x in zip(*((vocab.names.index(name), dose) for name, dose in keys)))
        vectors = known_embedding(model.net.adaptor, y, dose.float())
        control = known_embedding(model.net.adaptor, torch.tensor([vocab.names.index("DMSO")]), None)
        effects = ((vectors - control) @ readout.T / 10).detach().numpy()
        return pd.DataFrame(effects, pd.MultiIndex.from_tuples(keys), truth.effects.columns)
    monkeypatch.setattr(w, "drawn_effects", drawn)
    return Model(net.eval(), config, "", "linear"), truth


def test_a_condition_comes_to_lie_between_its_wells_and_what_its_crops_taught(linear_world):
    model, truth = linear_world
    taught = w.drawn_effects(model, truth)
    wells, labels = truth.effects.loc[taught.index], model.net.adaptor.y.table.weight.clone()
    gaps = w.inform(model, truth)
    assert gaps[2] < gaps[1] < 0.5 * gaps[0]
    own = pd.Series([8 / 38, 2 / 32, 2 / 32], taught.index)      # of a prior of 30 crops
    between = taught.mul(own, axis=0) + wells.mul(1 - own, axis=0)
    away = [strength(effects - between).mean() for effects in (taught, w.drawn_effects(model, truth))]
    assert away[1] < 0.2 * away[0]
    assert torch.equal(model.net.adaptor.y.table.weight, labels) and has_learned_from(model, truth)
    assert np.allclose(w.inform(model, truth), gaps, atol=1e-4)      # it starts from the labels, told or not


def test_crops_in_plenty_overrule_wells(linear_world):
    model, truth = linear_world
    taught = w.drawn_effects(model, truth)
    w.inform(model, truth, prior=1)
    few, many = (agreement(taught, w.drawn_effects(model, truth))["cosine"][key] for key in (("b1", 1.), ("a1", 1.)))
    assert many > 0.99 and many > few


def test_wells_that_measure_what_a_model_draws_anyway_do_not_inform_it(ask, linear_world):
    model, truth = linear_world
    drawn = w.drawn_effects(model, truth)
    truth.effects.loc[drawn.index] = drawn
    assert "nearer to these wells (0.00" in str(ask(w.inform, model, truth))


def test_mfm_inform_writes_the_effects_into_the_folder_and_drops_what_no_longer_holds(
        informing, linear_world, tmp_path, mfm):
    model, truth = linear_world
    records = dict(quality=dict(table="four of five"), tuned=dict(weights_sha256="", solvers=[]))
    save_model(tmp_path, model.net, model.config | records)
    code, text = mfm("inform", "--model", tmp_path, "--wells", informing[0])
    again = load_model(tmp_path)
    assert code == 0 and "measured effects inform" in text and has_learned_from(again, truth)
    assert again.config["quality"] == {} and again.config["tuned"]["weights_sha256"] == again.sha256
    before = (tmp_path / "model.safetensors").read_bytes()
    assert mfm("inform", "--model", tmp_path, "--wells", informing[0], "--prior", 0)[0] == 2
    assert mfm("inform", "--model", tmp_path, "--wells", tmp_path / "config.json")[0] == 2
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_wells_of_other_compounds_cannot_inform(ask, informing):
    vocab = informing[2]
    others = [row if row[0] == "DMSO" else ("z" + row[0], *row[1:]) for row in untreated + treated]
    assert "none of the perturbations" in str(ask(w.measured_values, truth_of(wells_of(others)), vocab))


def test_rare_conditions_are_drawn_as_often_as_frequent_ones_if_asked(informing):
    _, cells, vocab, _ = informing
    drawn, batches = Counter(), Batches(cells, vocab, 32, power=0, balance="condition")
    for step in range(40):
        rows = batches(step)[1]
        drawn.update(zip(rows.y.tolist(), rows.dose_um.nan_to_num().tolist()))
    assert len(drawn) == len(crops) and min(drawn.values()) > 0.7 * max(drawn.values())
