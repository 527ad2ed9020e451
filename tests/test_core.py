"What comes in from people is understood or refused in one line; what every room shares keeps its promises."
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mfm_app.core import (Condition, InputError, Perturbation, Vocabulary, check_dose, check_int, condition, join, noise, to_float, to_uint8,
                          usual_dose)

vocab = Vocabulary([Perturbation("DMSO", experiments={"Week1": 9}),
                    Perturbation("taxol", "Stabilizers", "CC", {0.3: 2, 1.0: 5, 3.0: 1}, {"Week1": 2, "Week2": 6}),
                    Perturbation("AZ-A", "Aurora", "", {0.1: 1, 30.0: 4}, {"Week2": 5})], ["Week1", "Week2"], ["MCF-7", "HUVEC"])
treated = st.sampled_from([p.name for p in vocab.perturbations if p.doses])

number = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -10**400, np.float32(2), np.int8(3)]))
anything = st.one_of(st.none(), st.booleans(), number, st.text(), st.binary(), st.lists(st.integers(), max_size=3), st.dictionaries(st.text(), st.none()))


# Whole numbers: steps, seeds, how many

@given(anything, st.integers(-10, 10), st.integers(0, 100))
@example(10**400, 1, 50)
@example("5\n6", 1, 50)
def test_a_whole_number_comes_back_as_an_int_in_its_range_or_is_refused(ask, value, low, width):
    got = ask(check_int, value, "steps", low, low + width)
    assert isinstance(got, InputError) or type(got) is int and got == value and low <= got <= low + width


@given(st.integers(1, 50))
def test_a_whole_number_may_be_written_as_a_float(value): assert check_int(float(value), "steps", 1, 50) == value


@pytest.mark.parametrize("value", [0, 51, 2.5, math.nan, math.inf, True, "5", None])
def test_what_is_no_whole_number_in_range_is_refused(ask, value):
    said = str(ask(check_int, value, "steps", 1, 50))
    assert "steps" in said and "1 to 50" in said


# Names and doses

@given(anything, anything, anything, anything)
@example("taxol", 10**400, None, None)
@example("taxol", "0.3\n1", None, None)
@example("a\nb", None, None, None)
@example("taxol", None, "a\nb", None)
@example("taxol", None, None, "a\u2028b")
def test_whatever_is_asked_a_condition_is_one_of_the_vocabulary_or_refused(ask, name, dose, experiment, cell_type):
    got = ask(condition, vocab, name, dose, experiment, cell_type)
    if isinstance(got, InputError): return
    p = vocab.perturbations[got.y.item()]
    assert p.name.lower() == name.lower()
    assert -1 <= got.e.item() < 2 and -1 <= got.c.item() < 2
    if not p.doses: assert got.dose_um.isnan().all()
    else: assert min(p.doses) / 10 * 0.999 <= got.dose_um.item() <= max(p.doses) * 10 * 1.001


@given(anything)
def test_a_dose_is_never_guessed_at(ask, dose):
    got = ask(condition, vocab, "taxol", dose)
    assert isinstance(got, InputError) or got.dose_um.item() == np.float32(1 if dose is None else dose)


@pytest.mark.parametrize("i, name", list(enumerate(vocab.names)))
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_a_name_is_known_in_any_case(i, name, spell): assert condition(vocab, spell(name)).y.item() == i


@pytest.mark.parametrize("ask_for, missing", [(dict(perturbation="toxol"), "taxol"), (dict(perturbation="taxol", experiment="Week3"), "Week2"),
                                              (dict(perturbation="taxol", cell_type="MCF7"), "MCF-7")])
def test_a_slip_of_the_pen_is_answered_with_what_may_have_been_meant(ask, ask_for, missing):
    assert f"'{missing}'" in str(ask(condition, vocab, **ask_for))


def test_what_is_left_out_is_what_was_seen_most():
    got = condition(vocab, "taxol", n=3)
    assert got.y.tolist() == [1] * 3 and got.e.tolist() == [1] * 3 and got.c.tolist() == [0] * 3
    assert got.dose_um.tolist() == [1.] * 3


def test_any_leaves_experiment_and_cell_type_open():
    got = condition(vocab, "taxol", experiment="any", cell_type="any")
    assert got.e.item() == got.c.item() == -1


@given(treated, st.floats(0, 1))
def test_doses_up_to_ten_times_beyond_those_seen_are_answered(name, share):
    low, high = vocab.dose_range(name)
    dose = low * (high / low) ** share
    assert check_dose(vocab, name, dose) == dose


@given(treated, st.floats(1.001, 1e6), st.booleans())
def test_doses_further_out_are_refused_and_the_answer_says_what_is_allowed(ask, name, factor, above):
    low, high = vocab.dose_range(name)
    said = str(ask(check_dose, vocab, name, high * factor if above else low / factor))
    assert f"{low:g} to {high:g}" in said


def test_the_control_has_no_dose():
    assert usual_dose(vocab.perturbations[0]) is None and vocab.dose_range("DMSO") is None
    assert condition(vocab, "DMSO", 5.).dose_um.isnan().all()


# Vocabularies

names = st.text(min_size=1, max_size=8)
counts = lambda keys: st.dictionaries(keys, st.integers(1, 10**6), max_size=4)
perturbations = st.builds(Perturbation, names, names, names, counts(st.floats(1e-6, 1e6)), counts(names))


@given(st.lists(perturbations, max_size=4), st.lists(names, max_size=3), st.lists(names, max_size=3))
def test_a_vocabulary_survives_being_written_as_json(ps, experiments, cell_types):
    before = Vocabulary(ps, experiments, cell_types)
    assert Vocabulary.from_dict(json.loads(json.dumps(before.to_dict()))) == before


# Images, noise, conditions

def test_every_byte_survives_the_way_to_the_model_and_back():
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x = to_float(every)
    assert (x.min(), x.max()) == (-1, 1) and np.array_equal(to_uint8(x), every)


def test_what_is_beyond_the_range_is_clipped_not_wrapped():
    assert to_uint8(torch.tensor([-9., -1.01, 1.01, 9.])).tolist() == [0, 0, 255, 255]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
def test_a_seed_has_one_noise_whatever_its_neighbours(seeds):
    together = noise(seeds, (3, 4, 4))
    for seed, x0 in zip(seeds, together): assert torch.equal(x0, noise([seed], (3, 4, 4))[0])
    assert len({x0.numpy().tobytes() for x0 in together}) == len(set(seeds))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=4))
def test_joined_conditions_keep_their_rows_and_gaps_stay_open(parts):
    conditions = [Condition(y=torch.full((n,), i) if has_y else None, dose_um=torch.full((n,), float(i)) if has_dose else None)
                  for i, (n, has_y, has_dose) in enumerate(parts)]
    got = join(conditions, [n for n, _, _ in parts])
    if any(has_y for _, has_y, _ in parts): assert got.y.tolist() == [i if has_y else -1 for i, (n, has_y, _) in enumerate(parts) for _ in range(n)]
    else: assert got.y is None
    if any(has_dose for _, _, has_dose in parts):
        wanted = [float(i) if has_dose else math.nan for i, (n, _, has_dose) in enumerate(parts) for _ in range(n)]
        assert torch.equal(got.dose_um.nan_to_num(-1), torch.tensor(wanted).nan_to_num(-1))
    else: assert got.dose_um is None
