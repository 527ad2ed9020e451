"Simulated cells and their twins: what a treatment changes, what not, and whether the trained model predicts it."
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mfm_app.core import InputError
from mfm_app.counterfactual import CounterfactualRequest, Treatment, stream
from mfm_app.data import table_columns, vocabulary
from mfm_app.engine import Engine
from mfm_app.hub import bundled, load_model
from mfm_app.sampling import inversion
from mfm_app.simulator import dataset, random_cells, render, synthetic_cells, treat, treatments, twins
from mfm_app.validation import twin_table

each_treatment = pytest.mark.parametrize("name", treatments)
unchanged = dict(sweller=[1], stabiliser=[0, 1], depolymeriser=[0], contractor=[0])      # channels: DNA, actin, tubulin
some = random_cells(24, np.random.default_rng(0))
numbers = st.integers() | st.floats() | st.complex_numbers()
anything = st.none() | st.booleans() | numbers | st.text() | st.lists(st.floats(), max_size=2)


def as_float(images): return images.astype(float)


# Twins

@each_treatment
def test_twins_differ_only_in_the_channels_their_treatment_acts_on(name):
    untreated, after = twins(16, name, treatments[name].doses[-1])
    for channel in range(3):
        same = (untreated[:, channel] == after[:, channel]).all(axis=(1, 2))
        assert same.all() if channel in unchanged[name] else not same.any()


@each_treatment
def test_a_treatment_changes_the_parameters_it_names_and_no_other(name):
    after = treat(some, name, 1.)
    changed = {f.name for f in fields(some) if not np.array_equal(getattr(some, f.name), getattr(after, f.name))}
    assert changed == set(treatments[name].factors)


@each_treatment
def test_far_from_the_cell_twins_are_equal_noise_included(name):
    untreated, after = twins(16, name, 10.)
    assert np.array_equal(untreated[..., :2, :2], after[..., :2, :2]) and len(np.unique(untreated[0, 0, :8, :8])) > 3


@each_treatment
@given(low=st.floats(-3, 3), step=st.floats(.05, 3))
def test_the_effect_rises_with_the_logarithm_of_the_dose(name, low, step):
    less, more = (treat(some[:2], name, 10 ** exponent) for exponent in (low, low + step))
    for key, factor in treatments[name].factors.items():
        before, little, much = (getattr(p, key) for p in (some[:2], less, more))
        assert (((much - little) * (factor - 1) * before) > 0).all()
        limit = np.maximum(np.abs(before), np.abs(before * factor))
        assert (np.abs(much) <= limit * (1 + 1e-6)).all()


@each_treatment
def test_twins_move_apart_as_the_dose_rises(name):
    pairs = [twins(16, name, dose, 32) for dose in np.geomspace(.01, 100, 9)]
    distance = [np.abs(as_float(after) - untreated).mean() for untreated, after in pairs]
    assert (np.diff(distance) > 0).all()


def test_treatments_change_the_image_as_their_names_say():
    dna, actin, tubulin = range(3)
    area = lambda images, channel: (images[:, channel] > 60).sum((1, 2))
    intensity = lambda images, channel: as_float(images[:, channel]).mean((1, 2))
    pairs = {name: twins(16, name, treatment.doses[-1]) for name, treatment in treatments.items()}
    before, after = pairs["sweller"]
    assert (area(after, dna) > 1.5 * area(before, dna)).all()
    before, after = pairs["stabiliser"]
    assert (intensity(after, tubulin) > 1.2 * intensity(before, tubulin)).all()
    before, after = pairs["contractor"]
    assert (area(after, actin) < .8 * area(before, actin)).all()
    before, after = pairs["depolymeriser"]
    steps = lambda images: np.abs(np.diff(as_float(images[:, tubulin]), axis=-1)).mean((1, 2))
    contrast = lambda images: steps(images) / intensity(images, tubulin)
    assert (contrast(after) < contrast(before)).all(), "the fibres are gone"


# Rendering

def test_the_same_seed_is_the_same_cell_and_another_seed_another():
    first, same, other = (twins(4, "sweller", 1., seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, same) and not np.array_equal(first, other)
    assert len({image.tobytes() for image in twins(50, "sweller", 1., 32)[0]}) == 50


@given(rows=st.lists(st.integers(0, 23), max_size=40), size=st.sampled_from([8, 16, 20]))
@example(rows=[], size=8)
def test_a_cell_is_rendered_alike_in_any_batch(rows, size):
    whole = render(some, size)
    assert whole.shape == (24, 3, size, size) and np.array_equal(render(some[np.array(rows, int)], size), whole[rows])


def test_a_cell_is_the_same_at_every_size():
    noiseless = replace(some, noise=0 * some.noise)
    large, small = as_float(render(noiseless, 128)), as_float(render(noiseless, 32))
    pooled = large.reshape(24, 3, 32, 4, 32, 4).mean((3, 5))
    pairs = zip(pooled.reshape(72, -1), small.reshape(72, -1))
    assert min(np.corrcoef(a, b)[0, 1] for a, b in pairs) > .95


# Bad input

@given(name=st.text() | st.sampled_from([*treatments, "SWELLER"]), dose=anything)
@example("sweller", 10 ** 400)
@example("sweller", True)
@example("swell", 1.)
def test_names_and_doses_are_accepted_or_refused_in_one_sentence(ask, name, dose):
    is_dose = isinstance(dose, (int, float)) and not isinstance(dose, bool) and 0 < dose <= 1e6
    answer = ask(treat, some, name, dose)
    assert isinstance(answer, InputError) != (name.lower() in treatments and is_dose)
    if name.lower() not in treatments: assert "Unknown treatment" in str(answer)


@pytest.mark.parametrize("wrong", [
    dict(n=0), dict(n=2.5), dict(size=4), dict(size="large"), dict(seed=-1), dict(seed=None)], ids=str)
def test_numbers_out_of_range_are_refused(ask, wrong):
    assert isinstance(ask(twins, **dict(n=1, name="sweller", dose_um=1.) | wrong), InputError)


# Populations

def test_synthetic_cells_have_the_conditions_other_tests_rely_on():
    cells = synthetic_cells(8, 16)
    assert cells.images.shape == (40, 3, 16, 16) and cells.control == "DMSO" and set(table_columns) <= set(cells.table)
    assert cells.table.fillna(0).groupby(["perturbation", "dose_um"]).size().to_dict() == {
        ("DMSO", 0.): 8, ("sweller", 1.): 8, ("sweller", 10.): 8, ("stabiliser", .1): 8, ("stabiliser", 1.): 8}
    assert (cells.table["split"] == "iid").sum() == 10 and cells.table["smiles"].nunique() == 3
    assert np.array_equal(cells.images, synthetic_cells(8, 16).images)
    assert not np.array_equal(cells.images, synthetic_cells(8, 16, seed=1).images)


def test_the_dataset_has_every_treatment_at_its_doses_and_no_twins():
    cells = dataset(6, 3, size=16)
    vocab = vocabulary(cells)
    assert set(vocab.names) == {"DMSO", *treatments}
    for name, treatment in treatments.items(): assert tuple(vocab.perturbation(name).doses) == treatment.doses
    corners = cells.images[..., :1, :].reshape(len(cells), -1)      # noise alone
    assert len(np.unique(corners, axis=0)) == len(cells)


# The model of the simulated cells

@pytest.fixture(scope="module")
def engine(): return Engine(load_model(bundled.with_name("simulated")), "cpu")


def test_the_model_knows_the_treatments_and_their_doses_and_is_small(engine):
    doses = {name: treatment.doses for name, treatment in treatments.items()}
    assert {p.name: tuple(p.doses) for p in engine.vocab.perturbations} == {"DMSO": (), **doses}
    assert sum(p.stat().st_size for p in bundled.with_name("simulated").iterdir()) < 2 * 2**20


def test_predicted_effects_on_unseen_cells_are_nearer_to_their_twins_than_two_baselines(engine):
    size = engine.model.net.shape[1]
    conditions = [(name, treatment.doses[1]) for name, treatment in treatments.items()]
    pairs = [twins(24, name, dose, size, seed=2 * 10**6) for name, dose in conditions]
    request = CounterfactualRequest(tuple(Treatment(*c) for c in conditions), sampling=replace(inversion, steps=12))
    *_, answer = stream(engine, pairs[0][0], request)
    scores = twin_table(answer, [treated for _, treated in pairs], dataset(600, 200, size, seed=1))
    by_method = lambda score: scores.pivot(index="perturbation", columns="method", values=score)
    correlation, error = by_method("correlation"), by_method("error")
    assert (correlation["counterfactual"] > correlation["population mean"] + .05).all()
    assert (correlation["counterfactual"] > .5).all() and correlation["counterfactual"].mean() > .7
    assert (error["counterfactual"] < error["copy the control"]).all()
    relative = error.div(error["copy the control"], axis=0).mean()
    assert relative["counterfactual"] < .95 * relative["population mean"] < 1
