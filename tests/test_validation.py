"How far to believe a model: measures with known answers, a small model evaluated, the bundled one on real cells."
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mfm_app import validation
from mfm_app.card import default_trip
from mfm_app.counterfactual import CounterfactualRequest, Treatment, stream
from mfm_app.engine import Engine, request_from
from mfm_app.evaluation import z_score
from mfm_app.features import profile
from mfm_app.finetune import random_model
from mfm_app.hub import load_model, save_model
from mfm_app.sampling import Sampling
from mfm_app.simulator import synthetic_cells
from mfm_app.validation import (cosine, evaluate_counterfactuals, identity_share, phenotypes_of, phenotypes_record,
                                rank_correlation, round_trip_settings, round_trips, twin_scores, twin_table)

names = ["DNA", "Actin", "Tubulin"]


# Measures

@pytest.fixture(scope="module")
def controls(): return synthetic_cells(16, 32, 5).where(perturbation="DMSO").images


def test_a_cell_is_identified_by_its_own_image(controls):
    assert identity_share(controls, controls) == 1
    assert identity_share(np.roll(controls, 1, 0), controls) == 0
    assert identity_share(controls // 2 + 20, controls) == 1


def test_rank_correlation_is_of_the_order_of_cells():
    before = pd.DataFrame(dict(a=[1., 2, 3, 4], b=[4., 1, 3, 2], c=[0., 5, 9, 6]))
    assert rank_correlation(before ** 3 + 1, before) == pytest.approx(1)
    assert rank_correlation(-before, before) == pytest.approx(-1)


def test_a_cosine_ignores_length():
    a = np.array([3., 4.])
    assert cosine(a, 7 * a) == pytest.approx(1) and cosine(a, -a) == pytest.approx(-1)
    assert cosine(a, 0 * a) == 0 == cosine(a, np.array([4., -3.]))


# Twins: the same simulated cells, truly treated

def test_a_perfect_prediction_of_twins_scores_one_and_none_scores_nothing():
    true = np.random.default_rng(0).normal(0, 9, (5, 3, 8, 8))
    perfect, half, none = (twin_scores(factor * true, true) for factor in (1, .5, 0))
    assert perfect == pytest.approx(dict(correlation=1, of_means=1, error=0))
    assert half["correlation"] == pytest.approx(1)
    assert none["correlation"] == none["of_means"] == 0 and none["error"] == pytest.approx(2 * half["error"])


@pytest.fixture(scope="module")
def small():
    "Simulated cells and a small model that knows their names."
    cells = synthetic_cells(24, 32)
    return cells, random_model(cells)


def test_a_twin_table_compares_every_treatment_with_two_baselines(small, controls):
    cells, model = small
    treatments = Treatment("sweller", 10.), Treatment("stabiliser", 1.)
    *_, answer = stream(Engine(model), controls[:3], CounterfactualRequest(treatments, sampling=Sampling(steps=1)))
    table = twin_table(answer, [answer.treated[0], controls[:3]], cells)
    assert table["method"].tolist() == ["counterfactual", "copy the control", "population mean"] * 2
    assert table["perturbation"].tolist() == ["sweller"] * 3 + ["stabiliser"] * 3
    unmoved = table[table["perturbation"] == "stabiliser"].set_index("method")
    assert unmoved.loc["copy the control", "error"] == 0 and (unmoved["correlation"] == 0).all()
    assert (table[table["method"] != "copy the control"]["error"] > 0).all()


# Evaluation of a small model

@pytest.fixture(scope="module")
def evaluated(small):
    "A small model, and the quality of its counterfactuals in few steps."
    cells, model = small
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "min_real", 8)
        patch.setattr(round_trips, "__defaults__", (None, [Sampling("euler", 1), Sampling("midpoint", 2)], None))
        patch.setattr(CounterfactualRequest.__init__, "__defaults__", (None, None, Sampling(steps=2)))
        patch.setitem(request_from.__kwdefaults__, "sampling", Sampling(steps=2))
        return model, evaluate_counterfactuals(model, cells, n=4)


def test_counterfactuals_are_judged_by_round_trips_and_shifts(evaluated):
    _, quality = evaluated
    assert json.loads(json.dumps(quality)) == quality and quality["shifts"]
    settings = [(trip["solver"], trip["steps"], trip["nfe"]) for trip in quality["round_trips"]]
    assert settings == [("euler", 1, 2), ("midpoint", 2, 7)]
    assert all(trip["psnr"] > 0 for trip in quality["round_trips"])
    conditions = {("sweller", 1.), ("sweller", 10.), ("stabiliser", .1), ("stabiliser", 1.)}
    for shift in quality["shifts"]:
        assert (shift["perturbation"], shift["dose_um"]) in conditions
        assert shift["cells"] == 4 and shift["real_cells"] >= 8
        assert len(shift["features"]) == len(shift["predicted"]) == len(shift["real"])
        assert -1 <= shift["cosine"] <= 1 and -1 <= shift["kept"] <= 1
        assert 0 <= shift["recognised"] <= 1 and shift["ratio"] >= 0
        again = cosine(np.array(shift["predicted"]), np.array(shift["real"]))
        assert again == pytest.approx(shift["cosine"], abs=.01)


@pytest.mark.parametrize("with_shifts", [True, False])
def test_the_card_reports_the_quality_whether_or_not_a_shift_could_be_measured(evaluated, tmp_path, with_shifts):
    model, quality = evaluated
    quality = quality if with_shifts else quality | dict(shifts=[])
    save_model(tmp_path / "model", model.net, model.config | dict(quality=dict(counterfactual=quality)))
    card = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert f"PSNR by inversion: {quality['round_trips'][0]['psnr']:.1f} dB" in card
    assert ("| sweller 10 µM |" in card) == with_shifts


def test_without_unseen_controls_nothing_is_judged(ask, small):
    seen = synthetic_cells(4, 32).where(split="train")
    assert "unseen controls" in str(ask(evaluate_counterfactuals, small[1], seen))


# The bundled model on real cells

@pytest.fixture(scope="module")
def bundled(): return Engine(load_model())


@pytest.fixture(scope="module")
def quality(bundled): return bundled.model.config["quality"]["counterfactual"]


@pytest.fixture(scope="module")
def here(real_cells): return real_cells.where(experiment="Week4")


@pytest.fixture(scope="module")
def treated(bundled, here):
    "The cells whose reconstruction `mfm evaluate` reports, treated."
    unseen = here.where(perturbation="DMSO", split="iid").images
    cells = unseen[np.random.default_rng(0).permutation(len(unseen))[:16]]
    treatments = Treatment("cyclohexamide", 15.), Treatment("taxol", .3)
    *_, answer = stream(bundled, cells, CounterfactualRequest(treatments, "Week4"))
    return answer


def test_the_default_reconstructs_well(quality):
    trip = default_trip(quality["round_trips"])
    assert trip["default"] and trip["psnr"] > 48 and trip["nfe"] == 38


def test_the_card_has_every_setting_that_is_tried(bundled, quality):
    resolved = [bundled.model.resolve_sampling(sampling) for sampling in round_trip_settings]
    reported = [(trip["solver"], trip["steps"]) for trip in quality["round_trips"]]
    assert reported == [(sampling.solver, sampling.steps) for sampling in resolved]


def test_real_cells_are_reconstructed_as_the_card_reports(treated, quality):
    assert treated.fidelity.psnr == pytest.approx(default_trip(quality["round_trips"])["psnr"], abs=1)


def test_real_cells_shift_to_where_treated_cells_lie_and_as_the_card_reports(treated, here, quality):
    untreated = profile(here.where(perturbation="DMSO", split="train").images[:150], names)
    mean_shift = lambda after, before: after.mean(0) - before.mean(0)
    for comparison, request, lowest in zip(treated.comparisons, treated.requests, (.9, .85), strict=True):
        condition = dict(perturbation=request.perturbation, dose_um=request.dose_um)
        real = profile(here.where(**condition).images[:120], names)
        base, target, after, before = z_score(untreated, real, *comparison.profiles)
        similarity = cosine(mean_shift(after, before), mean_shift(target, base))
        card = next(shift for shift in quality["shifts"] if condition.items() <= shift.items())
        assert similarity > lowest and similarity == pytest.approx(card["cosine"], abs=.08)


def test_every_treated_cell_can_be_told_from_the_others(treated):
    assert min(identity_share(images, treated.reconstruction) for images in treated.treated) > .8


# The phenotype space

def test_a_space_that_is_there_keeps_its_directions_and_gets_the_conditions_of_the_cells():
    cells = synthetic_cells(24, size=32)
    former = phenotypes_of(cells).to_dict()
    record = phenotypes_record(cells, former)["phenotypes"]
    conditions = record.pop("conditions")
    assert record == former and phenotypes_record(cells)["phenotypes"] == former | dict(conditions=conditions)
    train = cells.where(split="train").table
    treated = train[train["perturbation"] != cells.control].groupby(["perturbation", "dose_um"]).size()
    counted = {(c["name"], c["dose_um"]): c["cells"] for c in conditions if c["name"] != cells.control}
    assert counted == treated.to_dict()


def test_a_space_stays_as_it_is_beside_cells_of_none_of_its_mechanisms():
    cells = synthetic_cells(24, size=32)
    known = phenotypes_record(cells)["phenotypes"]
    others = replace(cells, control="nothing", table=cells.table.assign(moa="another"))
    assert phenotypes_record(others, known) == dict(phenotypes=known)
