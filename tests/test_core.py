"Input from outside is understood or refused in one line; numbers, names, tables, images, noise and conditions."
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mfm_app import core
from mfm_app.core import (Condition, InputError, autocast, check_int, check_number, fast_dtype, index_of_name,
                          is_number, join, markdown_table, nearest_names, noise, refusal, to_float, to_uint8)
from mfm_app.molecules import read_molecule
from mfm_app.vocabulary import (ConditionNames, Perturbation, Vocabulary, check_dose, condition, merged, name_groups,
                                plain_name, resolve, usual_dose)

vocab = Vocabulary(
    [Perturbation("DMSO", experiments={"Week1": 9}),
     Perturbation("taxol", "Stabilizers", "CC", {0.3: 2, 1.0: 5, 3.0: 1}, {"Week1": 2, "Week2": 6}),
     Perturbation("AZ-A", "Aurora", "", {0.1: 1, 30.0: 4}, {"Week2": 5})],
    ["Week1", "Week2"], ["MCF-7", "HUVEC"])
treated = st.sampled_from([p.name for p in vocab.perturbations if p.doses])

number = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -10**400, np.float32(2), np.int8(3)]))
anything = st.one_of(st.none(), st.booleans(), number, st.text(), st.binary(), st.lists(st.integers(), max_size=3),
                     st.dictionaries(st.text(), st.none()))


# Refusals

@given(st.text())
def test_a_message_is_one_short_line(text):
    message = str(InputError(text))
    assert len(message.splitlines()) <= 1 and len(message) <= 400


def test_refusal_returns_the_message():
    assert refusal(check_int, 0, "Steps", 1, 9) == "Steps must be a whole number from 1 to 9, not '0'."


def test_refusal_fails_where_nothing_is_refused():
    with pytest.raises(AssertionError, match="was not refused"): refusal(check_int, 5, "Steps", low=1, high=9)


def test_refusal_lets_other_errors_through():
    with pytest.raises(ZeroDivisionError): refusal(lambda: 1 / 0)


# Numbers: steps, seeds, scales

@given(anything, st.integers(-10, 10), st.integers(0, 100))
@example(10**400, 1, 50)
@example("5\n6", 1, 50)
def test_a_whole_number_comes_back_as_an_int_in_its_range_or_is_refused(ask, value, low, width):
    result = ask(check_int, value, "steps", low, low + width)
    refused = isinstance(result, InputError)
    assert refused or type(result) is int and result == value and low <= result <= low + width


@given(st.integers(1, 50))
def test_a_whole_number_may_be_written_as_a_float(value): assert check_int(float(value), "steps", 1, 50) == value


@pytest.mark.parametrize("value", [0, 51, 2.5, math.nan, math.inf, True, "5", None])
def test_what_is_no_whole_number_in_range_is_refused(value):
    message = refusal(check_int, value, "steps", 1, 50)
    assert "steps" in message and "1 to 50" in message


@given(anything, st.floats(-10, 10), st.floats(0, 100))
@example(10**400, 1., 50.)
@example("0.5\n1", 0., 1.)
def test_a_number_comes_back_as_a_float_in_its_range_or_is_refused(ask, value, low, width):
    result = ask(check_number, value, "scale", low, low + width)
    refused = isinstance(result, InputError)
    assert refused or type(result) is float and result == value and low <= result <= low + width


@given(st.floats(0, 8))
def test_a_number_in_range_is_accepted_limits_included(value):
    assert check_number(value, "scale", 0, 8) == value
    assert check_number(0, "scale", 0, 8) == 0 and check_number(np.float32(8), "scale", 0, 8) == 8


@pytest.mark.parametrize("value", [-0.1, 8.1, math.nan, math.inf, True, "2", None, [1]])
def test_what_is_no_number_in_range_is_refused_with_the_limits_and_the_note(value):
    message = refusal(check_number, value, "Guidance", 0, 8, "(1 is plain)")
    assert message.startswith("Guidance must be a number from 0 to 8 (1 is plain), not ")


@pytest.mark.parametrize("value, expected", [
    (1, True), (0.5, True), (10**400, True), (np.int8(3), True), (np.float32(2), True),
    (True, False), (np.bool_(True), False), (math.nan, False), (np.float32("inf"), False),
    ("1", False), (None, False), ([1], False)])
def test_a_number_is_finite_and_no_bool(value, expected): assert is_number(value) is expected


# Names

@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_a_name_has_an_index_in_any_case(spell):
    names = ["DMSO", "taxol", "AZ-A"]
    assert [index_of_name(spell(name), names, "perturbation") for name in names] == [0, 1, 2]


@given(anything)
def test_an_index_is_of_an_allowed_name_or_refused(ask, name):
    result = ask(index_of_name, name, ["DMSO", "taxol"], "perturbation")
    assert isinstance(result, InputError) or ["dmso", "taxol"][result] == name.lower()


def test_nearest_names_are_those_that_may_have_been_meant():
    assert nearest_names("taxoll", ["DMSO", "taxol", "colchicine"]) == ["taxol"]
    assert nearest_names("?", ["DMSO", "taxol", "colchicine"], n=2) == ["DMSO", "taxol"]


# Tables

def test_a_markdown_table_has_a_rule_and_a_line_a_row():
    table = markdown_table(["compound", "cells", "share"], [["DMSO", 90, 0.5], ["taxol", 74, None]], "lr")
    assert table.splitlines() == ["| compound | cells | share |", "| --- | ---: | --- |",
                                  "| DMSO | 90 | 0.5 |", "| taxol | 74 | None |"]


def test_a_bar_in_a_cell_does_not_end_the_cell():
    assert markdown_table(["a"], [["x|y"]], "c").splitlines() == ["| a |", "| :---: |", "| x\\|y |"]


def test_a_table_without_rows_is_its_header():
    assert markdown_table(["a", "b"], iter([])) == "| a | b |\n| --- | --- |"


# Conditions by name

@given(anything, anything, anything, anything)
@example("taxol", 10**400, None, None)
@example("taxol", "0.3\n1", None, None)
@example("a\nb", None, None, None)
@example("taxol", None, "a\nb", None)
@example("taxol", None, None, "a\u2028b")
def test_a_condition_is_of_the_vocabulary_or_refused_whatever_the_input(ask, name, dose, experiment, cell_type):
    result = ask(condition, vocab, name, dose, experiment, cell_type)
    if isinstance(result, InputError): return
    p = vocab.perturbations[result.y.item()]
    assert p.name.lower() == name.lower()
    assert -1 <= result.e.item() < 2 and -1 <= result.c.item() < 2
    if not p.doses: assert result.dose_um.isnan().all()
    else: assert min(p.doses) / 10 * 0.999 <= result.dose_um.item() <= max(p.doses) * 10 * 1.001


@given(anything)
def test_a_dose_is_taken_as_it_is_or_refused(ask, dose):
    result = ask(condition, vocab, "taxol", dose)
    assert isinstance(result, InputError) or result.dose_um.item() == np.float32(1 if dose is None else dose)


@pytest.mark.parametrize("i, name", list(enumerate(vocab.names)))
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_a_perturbation_is_known_in_any_case(i, name, spell):
    names = resolve(vocab, spell(name))
    assert names.perturbation == name and names.labels[0] == i and names.rows().y.item() == i


@pytest.mark.parametrize("names, meant", [(dict(perturbation="toxol"), "taxol"),
                                          (dict(perturbation="taxol", experiment="Week3"), "Week2"),
                                          (dict(perturbation="taxol", cell_type="MCF7"), "MCF-7")])
def test_a_misspelled_name_is_refused_with_the_name_that_may_have_been_meant(names, meant):
    assert f"'{meant}'" in refusal(condition, vocab, **names)


def test_what_is_left_out_is_what_most_cells_had():
    assert resolve(vocab, "TAXOL") == ConditionNames("taxol", 1., "Week2", "MCF-7", (1, 1, 0))
    rows = condition(vocab, "taxol", n=3)
    assert rows.y.tolist() == [1] * 3 and rows.e.tolist() == [1] * 3 and rows.c.tolist() == [0] * 3
    assert rows.dose_um.tolist() == [1.] * 3 and rows.fp is None


@pytest.mark.parametrize("typed, note", [
    ("taxol", ""), ("TAXOL", ""), ("Tax-ol", ""), ("paclitaxel", "paclitaxel is taxol here."), ("AZ A", ""),
    ("nsc125973", "nsc125973 is taxol here."), ("Dimethyl sulfoxide", "Dimethyl sulfoxide is DMSO here.")])
def test_a_synonym_is_understood_and_answered_with_what_it_means(typed, note):
    names = resolve(vocab, typed)
    assert names.note == note and names.perturbation in ("taxol", "DMSO", "AZ-A")
    assert names == resolve(vocab, names.perturbation)      # what is sampled does not depend on the spelling


def test_every_compound_that_was_published_with_a_name_has_synonyms_and_none_means_two():
    from mfm_app.hub import from_pretrained
    names = [plain_name(name) for group in name_groups for name in group]
    assert len(names) == len(set(names))
    bundled = from_pretrained().vocab
    unnamed = [p.name for p in bundled.perturbations if not p.synonyms]
    assert unnamed == ["AZ-A", "AZ258", "AZ-C", "AZ138", "AZ-J", "AZ-U"]
    for p in bundled.perturbations:
        for name in p.synonyms: assert bundled.perturbation(name.upper()).name == p.name


def test_no_synonym_is_a_smiles():
    for group in name_groups:
        for name in group[1:]:
            with pytest.raises(InputError): read_molecule(plain_name(name).upper())
            with pytest.raises(InputError): read_molecule(name)


def test_a_typing_error_of_a_synonym_names_the_synonym(ask):
    assert "'paclitaxel'" in str(ask(vocab.perturbation, "paclitaxol"))


def test_a_model_with_another_name_of_a_compound_understands_all_of_them():
    other = Vocabulary([Perturbation("Paclitaxel", doses={1.: 2}, experiments={"a": 2})], ["a"], ["x"], "none")
    assert resolve(other, "taxol").note == "taxol is Paclitaxel here."


def test_names_are_spelled_as_in_the_vocabulary():
    names = resolve(vocab, "az-a", 30, "week1", "huvec")
    assert names == ConditionNames("AZ-A", 30., "Week1", "HUVEC", (2, 0, 1)) and type(names.dose_um) is float


def test_any_leaves_experiment_and_cell_type_open():
    names = resolve(vocab, "taxol", experiment="any", cell_type="any")
    assert (names.experiment, names.cell_type, names.labels) == ("any", "any", (1, -1, -1))
    rows = names.rows()
    assert rows.e.item() == rows.c.item() == -1


def test_an_unlisted_molecule_has_a_fingerprint_in_place_of_a_label():
    rows = resolve(vocab, vocab.unlisted, 0.5, "Week1").rows(2, torch.ones(8))
    assert rows.y.tolist() == [-1, -1] and rows.e.tolist() == [0, 0] and rows.fp.shape == (2, 8)
    assert rows.dose_um.tolist() == [0.5, 0.5]
    assert vocab.dose_range(vocab.unlisted) == (0.1, 30.) and "outside" in refusal(resolve, vocab, vocab.unlisted, 31.)


def test_merged_perturbations_have_every_dose_and_experiment():
    both = merged("both", vocab.perturbations)
    assert both.doses == {0.3: 2, 1.0: 5, 3.0: 1, 0.1: 1, 30.0: 4} and both.experiments == {"Week1": 11, "Week2": 11}
    assert both.cells == 22 and usual_dose(both) == 1.0


# Doses

@given(treated, st.floats(0, 1))
def test_doses_up_to_ten_times_beyond_those_seen_are_allowed(name, share):
    low, high = vocab.dose_range(name)
    dose = low * (high / low) ** share
    assert check_dose(vocab, name, dose) == dose


@given(treated, st.floats(1.001, 1e6), st.booleans())
def test_doses_further_out_are_refused_with_the_range_that_is_allowed(name, factor, above):
    low, high = vocab.dose_range(name)
    assert f"{low:g} to {high:g}" in refusal(check_dose, vocab, name, high * factor if above else low / factor)


def test_the_control_has_no_dose():
    assert usual_dose(vocab.perturbations[0]) is None and vocab.dose_range("DMSO") is None
    assert resolve(vocab, "DMSO", 5.).dose_um is None and condition(vocab, "DMSO", 5.).dose_um.isnan().all()


# Vocabularies

names = st.text(min_size=1, max_size=8)
counts = lambda keys: st.dictionaries(keys, st.integers(1, 10**6), max_size=4)
perturbations = st.builds(Perturbation, names, names, names, counts(st.floats(1e-6, 1e6)), counts(names))


@given(st.lists(perturbations, max_size=4), st.lists(names, max_size=3), st.lists(names, max_size=3))
def test_a_vocabulary_survives_json(ps, experiments, cell_types):
    before = Vocabulary(ps, experiments, cell_types)
    assert Vocabulary.from_dict(json.loads(json.dumps(before.to_dict()))) == before


# Images and noise

def test_every_byte_survives_the_round_trip_through_the_models_range():
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x = to_float(every)
    assert (x.min(), x.max()) == (-1, 1) and np.array_equal(to_uint8(x), every)


def test_values_beyond_the_range_are_clipped_not_wrapped():
    assert to_uint8(torch.tensor([-9., -1.01, 1.01, 9.])).tolist() == [0, 0, 255, 255]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
def test_a_seed_has_one_noise_whatever_its_neighbours(seeds):
    batch = noise(seeds, (3, 4, 4))
    for seed, x0 in zip(seeds, batch): assert torch.equal(x0, noise([seed], (3, 4, 4))[0])
    assert len({x0.numpy().tobytes() for x0 in batch}) == len(set(seeds))


# Conditions by label

def test_the_null_of_guidance_keeps_experiment_and_cell_type_and_drops_the_perturbation():
    y, e, c = torch.tensor([1]), torch.tensor([1]), torch.tensor([0])
    rows = Condition(y, e, c, torch.ones(1), torch.ones(1, 8))
    null = rows.without_perturbation()
    assert null.e is rows.e and null.c is rows.c and null.y is null.dose_um is null.fp is None
    assert rows.y.item() == 1 and rows.fp is not None
    again = null.without_perturbation()
    assert again.e is rows.e and again.y is None


def test_rows_of_a_condition_are_taken_from_every_column():
    rows = Condition(y=torch.tensor([0, 1, 2]), fp=torch.eye(3))[slice(1, 3)]
    assert len(rows) == 2 and rows.y.tolist() == [1, 2] and rows.fp.tolist() == torch.eye(3)[1:].tolist()
    assert rows.e is None and len(Condition()) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=4))
def test_joined_conditions_keep_their_rows_and_gaps_are_unconditional(parts):
    column = lambda n, value, present: torch.full((n,), value) if present else None
    conditions = [Condition(y=column(n, i, has_y), dose_um=column(n, float(i), has_dose))
                  for i, (n, has_y, has_dose) in enumerate(parts)]
    joined = join(conditions, [n for n, _, _ in parts])
    for result, gap, present in ((joined.y, -1, [has_y for _, has_y, _ in parts]),
                                 (joined.dose_um, math.nan, [has_dose for _, _, has_dose in parts])):
        if not any(present):
            assert result is None
            continue
        expected = [i if present[i] else gap for i, (n, _, _) in enumerate(parts) for _ in range(n)]
        assert torch.equal(result.float().nan_to_num(-1), torch.tensor(expected).float().nan_to_num(-1))


def test_a_molecule_joins_rows_without_one():
    joined = join([Condition(y=torch.tensor([4])), Condition(fp=torch.ones(1, 8))], [1, 1])
    assert joined.y.tolist() == [4, -1] and joined.fp.isnan().all(1).tolist() == [True, False]


# Where to compute

@pytest.fixture
def timings(monkeypatch):
    "The dtypes that were timed, on a machine where bfloat16 takes the given seconds and float32 one."
    def machine(bfloat16_seconds):
        timed = []
        def seconds_of(matrix, repeats=8):
            timed.append(matrix.dtype)
            return bfloat16_seconds if matrix.dtype == torch.bfloat16 else 1.
        monkeypatch.setattr(core, "seconds_of", seconds_of)
        core.fastest_on_cpu.cache_clear()
        return timed
    yield machine
    core.fastest_on_cpu.cache_clear()


@pytest.mark.parametrize("bfloat16_seconds, faster", [(0.3, torch.bfloat16), (4., torch.float32)])
def test_the_faster_dtype_is_timed_once_in_a_process(timings, bfloat16_seconds, faster):
    timed = timings(bfloat16_seconds)
    assert {fast_dtype(), fast_dtype("cpu"), fast_dtype(torch.device("cpu"))} == {faster}
    assert sorted(map(str, timed)) == ["torch.bfloat16", "torch.float32"]


def test_a_gpu_is_not_timed(timings):
    timed = timings(4.)
    assert fast_dtype("cuda") == torch.bfloat16 and not timed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_products_run_in_the_dtype_asked_for(dtype):
    with autocast("cpu", dtype): assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
