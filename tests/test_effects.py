"Effects have the p-values, intervals and false discoveries they should, and refuse wrong input with a reason."
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio

from mfm_app.core import InputError
from mfm_app.effects import differences, effect_map, fidelity, permutation_p, profile_effect, sign_flip
from mfm_app.features import profile
from mfm_app.simulator import twins

names = ["DNA", "Actin", "Tubulin"]
finite = st.floats(-1e6, 1e6, width=32)


@pytest.fixture
def rng(): return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_images(rng, *shape): return rng.integers(0, 256, shape, dtype=np.uint8)

def table(values, *columns):
    names = columns or [f"feature {i}" for i in range(np.shape(values)[1])]
    return pd.DataFrame(np.asarray(values, float), columns=names)


# Differences

def test_differences_of_bytes_do_not_wrap_around():
    dark, bright = np.zeros((1, 1, 2, 2), np.uint8), np.full((1, 1, 2, 2), 255, np.uint8)
    assert (differences(dark, bright) == -255).all() and differences(bright, dark).dtype == np.float32


def test_floats_in_the_models_range_count_in_grey_levels_too(rng):
    a, b = random_images(rng, 3, 2, 8, 8), random_images(rng, 3, 2, 8, 8)
    as_float = lambda x: x / np.float32(127.5) - 1
    assert np.allclose(differences(as_float(a), as_float(b)), differences(a, b), atol=1e-3)
    assert np.allclose(differences(a, as_float(b)), differences(a, b), atol=1e-3)


images = np.zeros((6, 3, 8, 8), np.uint8)
bad_images = dict(shapes_differ=(images, images[:5]), sizes_differ=(images, images[..., :4]),
                  single=(images[0], images[0]), empty=(images[:0], images[:0]),
                  whole_numbers=(images.astype(int), images),
                  grey_floats=(images + 90., images), nan=(images * np.nan, images), text=(images.astype(str), images),
                  nothing=(None, images), ragged=([[1], [1, 2]], images), flags=(images.astype(bool), images))


@pytest.mark.parametrize("case", bad_images)
@pytest.mark.parametrize("f", [differences, effect_map, fidelity])
def test_images_that_do_not_fit_together_are_refused(ask, f, case):
    assert isinstance(ask(f, *bad_images[case]), InputError)


# The sign-flip test

def by_hand(d):
    "Every sign for every cell, in plain Python."
    sums = [abs(sum(s * v for s, v in zip(signs, d))) for signs in product((1, -1), repeat=len(d))]
    return sum(s >= abs(sum(d)) - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize("d, p", [([5], 1), ([1, 2], .5), ([1, -2], 1), ([1, 2, 3], .25), ([-1, 2, 3], .5),
                                  ([1] * 6, 2 / 64), ([0, 0, 0], 1), ([3, 3, -3], 1)])
def test_few_cells_give_the_p_worked_out_by_hand(d, p): assert sign_flip(np.array(d, float)) == p == by_hand(d)


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9))
def test_p_is_exact_where_all_flips_can_be_tried(d): assert np.isclose(sign_flip(np.array(d)), by_hand(d))


def scipy_p(samples, statistic, kind, n=np.inf, **kwargs):
    "p-values of `scipy.stats.permutation_test` along the cells."
    return stats.permutation_test(samples, statistic, permutation_type=kind, vectorized=True, n_resamples=n, axis=0,
                                  **kwargs).pvalue


def test_p_agrees_with_scipy_exactly_for_few_cells_and_closely_for_many(rng):
    distance = lambda d, axis: np.abs(d.mean(axis))
    for n, flips, close in ((8, 1999, 1e-12), (25, 20_000, .015)):
        d = rng.normal(.4, 1, (n, 12))
        expected = scipy_p((d,), distance, "samples", flips, alternative="greater", rng=1)
        assert np.allclose(sign_flip(d, flips), expected, atol=close)


def test_the_observed_signs_count_so_p_is_never_zero():
    assert sign_flip(np.ones((50, 1)), flips=99)[0] == 1 / 100


def test_under_the_null_p_is_uniform(rng):
    p = sign_flip(rng.standard_t(2, (30, 4000)))
    assert all(abs((p <= level).mean() - level) < .02 for level in (.05, .2, .5, .9))


@given(arrays(np.float32, st.tuples(st.integers(1, 14), st.integers(1, 3), st.integers(1, 4)), elements=finite))
def test_p_has_the_shape_of_an_image_and_lies_between_its_bounds(d):
    p = sign_flip(d, flips=50)
    assert p.shape == d.shape[1:] and (p <= 1).all() and (p >= 1 / 64).all()
    assert np.array_equal(p, sign_flip(-d, flips=50)) and (p[(d == 0).all(0)] == 1).all()


def test_a_place_has_the_same_p_whatever_the_others_are_and_in_whatever_blocks(rng):
    d = np.round(rng.normal(2, 5, (20, 100))).astype(np.float32)
    p = sign_flip(d)
    assert np.array_equal(sign_flip(d[:, ::-1]), p[::-1]) and sign_flip(d[:, 7]) == p[7]
    weights = rng.integers(0, 2, (501, 20), dtype=np.int8) * 2 - 1
    assert np.array_equal(permutation_p(weights, d, rows=17, columns=13), permutation_p(weights, d))


def test_the_order_of_the_cells_does_not_matter(rng):
    few, many = rng.normal(.5, 1, (9, 30)), rng.normal(.2, 1, (60, 30))
    assert np.allclose(sign_flip(few[rng.permutation(9)]), sign_flip(few))
    assert np.allclose(sign_flip(many[rng.permutation(60)], 20_000), sign_flip(many, 20_000), atol=.02)


def test_a_seed_gives_the_same_p_again_and_another_seed_another(rng):
    d = rng.normal(.2, 1, (30, 50))
    p = sign_flip(d, seed=3)
    assert np.array_equal(p, sign_flip(d, seed=3)) and not np.array_equal(p, sign_flip(d, seed=4))


@pytest.mark.parametrize("d", [np.zeros((0, 3)), np.float32(3), [[np.nan]], [["a"]], [[1], [1, 2]], None,
                               np.zeros((5, 0))],
                         ids=["no cells", "number", "nan", "text", "ragged", "none", "no places"])
def test_what_cannot_be_tested_is_refused(ask, d): assert isinstance(ask(sign_flip, d), InputError)


@pytest.mark.parametrize("wrong", [dict(flips=0), dict(flips=10 ** 9), dict(flips="many"), dict(seed=-1),
                                   dict(seed=None)], ids=str)
def test_a_wrong_number_of_flips_or_seed_is_refused(ask, wrong):
    assert isinstance(ask(sign_flip, [[1.]], **wrong), InputError)


# Maps

def test_a_map_holds_mean_spread_and_significance_of_every_pixel(rng):
    treated, untreated = random_images(rng, 8, 2, 16, 16), random_images(rng, 8, 2, 16, 16)
    result, d = effect_map(treated, untreated), treated.astype(float) - untreated
    assert np.allclose(result.mean, d.mean(0), atol=1e-4) and np.allclose(result.spread, d.std(0, ddof=1), rtol=1e-4)
    assert result.mean.dtype == result.spread.dtype == np.float32 and result.significant.dtype == bool
    assert result.cells == 8 and result.significant.shape == result.p.shape == (2, 16, 16)


def test_from_six_cells_on_there_is_a_test(rng):
    a, b = random_images(rng, 6, 1, 8, 8), random_images(rng, 6, 1, 8, 8)
    five = effect_map(a[:5], b[:5])
    assert five.p is None and five.significant is None and effect_map(a, b).p is not None


def test_a_single_cell_has_a_mean_but_no_spread(rng):
    result = effect_map(*(random_images(rng, 1, 3, 8, 8) for _ in range(2)))
    assert np.isfinite(result.mean).all() and np.isnan(result.spread).all() and result.p is None and result.cells == 1


def benjamini_hochberg(p, alpha):
    "The procedure as published: the largest k with p(k) <= alpha k / m, and all up to it."
    order, m = np.sort(p, axis=None), p.size
    below = np.flatnonzero(order <= alpha * np.arange(1, m + 1) / m)
    return p <= (order[below[-1]] if len(below) else -1)


@pytest.mark.parametrize("alpha", [.01, .05, .3])
def test_significance_is_that_of_benjamini_and_hochberg_over_all_pixels_and_channels(rng, alpha):
    treated, untreated = random_images(rng, 40, 2, 12, 12), random_images(rng, 40, 2, 12, 12)
    treated[:, 0, :5] = np.minimum(untreated[:, 0, :5].astype(int) + rng.integers(0, 60, (40, 5, 12)), 255)
    result = effect_map(treated, untreated, alpha)
    assert np.array_equal(result.significant, benjamini_hochberg(result.p, alpha)) and result.significant.any()
    assert np.array_equal(result.significant.ravel(), stats.false_discovery_control(result.p, axis=None) <= alpha)


def test_where_nothing_happens_hardly_ever_is_anything_significant(rng):
    sets = ([random_images(rng, 12, 1, 16, 16) for _ in range(2)] for _ in range(60))
    assert np.mean([effect_map(*pair, flips=499).significant.any() for pair in sets]) <= .12


def test_a_brightened_square_is_significant_and_little_else(rng):
    power, false = [], []
    for seed in range(25):
        untreated, treated = ((rng.normal(100, 12, (24, 2, 20, 20))).clip(0, 255).astype(np.uint8) for _ in range(2))
        treated[:, 0, 5:13, 5:13] += 20
        truth = np.zeros((2, 20, 20), bool)
        truth[0, 5:13, 5:13] = True
        result = effect_map(treated, untreated, flips=999, seed=seed).significant
        power.append(result[truth].mean())
        false.append((result & ~truth).sum() / max(result.sum(), 1))
    assert np.mean(power) > .9 and np.mean(false) < .06


def test_cells_that_are_the_same_show_no_effect(rng):
    a = random_images(rng, 9, 2, 8, 8)
    result = effect_map(a, a)
    assert (result.mean == 0).all() and (result.p == 1).all() and not result.significant.any()


def test_twins_show_the_ring_by_which_a_nucleus_swells():
    untreated, treated = twins(24, "sweller", 10.)
    result = effect_map(treated, untreated)
    radius = np.hypot(*np.ogrid[-1:1:64j, -1:1:64j])
    ring = (radius > .32) & (radius < .42)
    assert (result.mean[0][ring] > 20).all() and result.significant[0][ring].all()
    assert not result.significant[:, radius > .9].any() and not result.significant[1].any()


@pytest.mark.parametrize("alpha", [0, 1, -1, 2, np.nan, "5 %", None, True])
def test_a_level_that_is_not_between_0_and_1_is_refused(ask, alpha):
    assert isinstance(ask(effect_map, images, images, alpha), InputError)
    assert isinstance(ask(profile_effect, table(np.eye(7)), table(np.eye(7)), alpha=alpha), InputError)


# Features

def test_an_effect_is_the_difference_in_deviations_of_the_untreated():
    result = profile_effect(table([[3], [5], [7.]], "area"), table([[1], [2], [3.]], "area")).loc["area"]
    assert (result.effect, result.treated, result.untreated, result.cells) == (3, 5, 2, 3) and result.p == .25


def test_rows_are_features_with_the_largest_effect_first(rng):
    untreated = table(rng.normal(0, [1, 10, 100, 1], (40, 4)), *"abcd")
    result = profile_effect(untreated + [.5, 30, -90, 0], untreated)
    assert list(result.index) == ["b", "c", "a", "d"] and result.effect.iloc[1] < 0
    assert list(result) == ["effect", "low", "high", "p", "p_adjusted", "significant", "treated", "untreated", "cells"]
    assert result.significant.tolist() == [True, True, True, False] and result.p["d"] == 1 and result.effect["d"] == 0


@pytest.mark.parametrize("paired", [True, False])
def test_p_of_features_agrees_with_scipy(rng, paired):
    treated, untreated = rng.normal(.6, 1, (5, 6)), rng.normal(0, 2, (5, 6))
    result = profile_effect(table(treated), table(untreated), paired).sort_index()
    if paired: expected = scipy_p((treated - untreated,), lambda d, axis: d.mean(axis), "samples")
    else: expected = scipy_p((treated, untreated), lambda a, b, axis: a.mean(axis) - b.mean(axis), "independent")
    assert np.allclose(result.p, expected) and np.allclose(result.p_adjusted, stats.false_discovery_control(result.p))


def gap(a, b, axis): return np.abs(a.mean(axis) - b.mean(axis))


def test_every_way_to_label_a_few_cells_is_tried(rng):
    treated, untreated = rng.normal(.8, 1, (3, 6)), rng.normal(0, 1, (6, 6))
    result = profile_effect(table(treated), table(untreated), False).sort_index()
    assert np.allclose(result.p, scipy_p((treated, untreated), gap, "independent", alternative="greater"))
    assert np.allclose(result.p * 84, (result.p * 84).round())


def test_p_of_many_unpaired_cells_agrees_with_scipy(rng):
    treated, untreated = rng.normal(.3, 1, (40, 8)), rng.normal(0, 1, (25, 8))
    result = profile_effect(table(treated), table(untreated), False, resamples=20_000).sort_index()
    expected = scipy_p((treated, untreated), gap, "independent", 20_000, alternative="greater", rng=1)
    assert np.allclose(result.p, expected, atol=.015) and (result.cells == 40).all()


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_agree_with_scipys_bootstrap(rng, paired):
    untreated = rng.gamma(3, 1, 60)
    treated = untreated + rng.normal(1, .5, 60)
    delta = lambda a, b, axis=-1: (a.mean(axis) - b.mean(axis)) / b.std(axis, ddof=1)
    expected = stats.bootstrap((treated, untreated), delta, paired=paired, vectorized=True, method="percentile",
                               n_resamples=20_000, rng=1).confidence_interval
    tables = [table(values[:, None], "x") for values in (treated, untreated)]
    result = profile_effect(*tables, paired, resamples=20_000).loc["x"]
    assert np.allclose([result.low, result.high], expected, atol=.02)


def test_intervals_cover_the_truth_about_as_often_as_they_should(rng):
    untreated = rng.normal(0, 1, (40, 400))
    treated = untreated + rng.normal(.8, .6, (40, 400))
    result = profile_effect(table(treated), table(untreated))
    assert .90 < ((result.low <= .8) & (.8 <= result.high)).mean() < .98


def test_without_an_effect_few_features_are_called_significant(rng):
    draw = lambda: table(rng.normal(0, 1, (20, 60)))
    runs = [profile_effect(draw(), draw(), paired).significant.any() for paired in (True, False) for _ in range(30)]
    assert np.mean(runs) <= .12


def test_a_feature_that_never_changes_has_no_effect_and_p_one(rng):
    same = table(np.c_[np.full(12, .1), rng.normal(0, 1, 12)], "constant", "other")
    for paired in (True, False):
        result = profile_effect(same, same, paired).loc["constant"]
        assert (result.effect, result.low, result.high, result.p, result.significant) == (0, 0, 0, 1, False)


def test_where_only_the_untreated_are_all_alike_the_treated_give_the_unit():
    result = profile_effect(table([[1], [2], [3.]], "x"), table([[0], [0], [0.]], "x")).loc["x"]
    assert result.effect == 2 and np.isfinite([result.low, result.high]).all()
    assert profile_effect(table([[3], [3.]], "x"), table([[1], [1.]], "x")).effect["x"] == 2


def test_an_odd_untreated_cell_gives_no_unit():
    untreated, treated = np.zeros((100, 1)), np.linspace(0, 4, 100)[:, None]
    untreated[7] = .01
    assert 1 < profile_effect(table(treated, "x"), table(untreated, "x")).effect["x"] < 2
    assert -.2 < profile_effect(table(untreated * 0, "x"), table(untreated, "x")).effect["x"] < 0


@pytest.mark.parametrize("treated, untreated, effect", [(1, 1, False), (1, 9, True), (9, 1, False)])
def test_a_single_cell_gives_no_interval_and_no_error(rng, treated, untreated, effect):
    tables = [table(rng.normal(0, 1, (n, 3))) for n in (treated, untreated)]
    result = profile_effect(*tables, paired=treated == untreated)
    assert result[["low", "high"]].isna().all(axis=None) and result.effect.notna().all() == effect
    assert result[["treated", "untreated", "p"]].notna().all(axis=None)


def test_features_are_reproducible_and_independent_of_the_order_of_cells(rng):
    a, b = table(rng.normal(.5, 1, (7, 5))), table(rng.normal(0, 1, (7, 5)))
    result, order = profile_effect(a, b), rng.permutation(7)
    assert result.equals(profile_effect(a, b))
    again = profile_effect(a.iloc[order], b.iloc[order])
    columns = ["effect", "p", "p_adjusted"]
    assert np.allclose(again[columns], result[columns]) and list(again.index) == list(result.index)


@given(arrays(float, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=finite), st.booleans())
def test_any_features_give_a_row_each(values, paired):
    result = profile_effect(table(values), table(values[::-1]), paired, resamples=40)
    assert len(result) == values.shape[1]
    assert result.p.between(0, 1).all() and (result.p_adjusted >= result.p - 1e-12).all()
    known = result[result.low.notna()]
    assert (known.low <= known.high).all() and (len(known) == len(result) or len(values) == 1 or len(values) < 4)


def test_larger_nuclei_are_detected_in_images():
    untreated, treated = twins(12, "sweller", 10.)
    result = profile_effect(profile(treated, names), profile(untreated, names))
    assert result.loc["nucleus_area_px", "low"] > 3 and result.loc["nucleus_area_px", "significant"]
    assert not result.loc["Actin_mean", "significant"]


bad_profiles = dict(other_rows=(table(np.eye(3)), table(np.eye(4, 3))),
                    other_columns=(table(np.eye(3), *"abc"), table(np.eye(3), *"abd")),
                    order=(table(np.eye(2), *"ab"), table(np.eye(2), *"ba")),
                    nan=(table([[np.nan]]), table([[1]])),
                    text=(pd.DataFrame(dict(a=["x"])), pd.DataFrame(dict(a=["y"]))),
                    no_rows=(table(np.zeros((0, 2))), table(np.zeros((0, 2)))),
                    no_columns=(pd.DataFrame(index=[0]), pd.DataFrame(index=[0])))


@pytest.mark.parametrize("case", bad_profiles)
def test_profiles_that_do_not_fit_together_are_refused(ask, case):
    assert isinstance(ask(profile_effect, *bad_profiles[case]), InputError)


@pytest.mark.parametrize("wrong", [dict(resamples=0), dict(resamples=2.5), dict(seed=-1), dict(seed="now")], ids=str)
def test_a_wrong_number_of_resamples_or_seed_is_refused(ask, wrong):
    assert isinstance(ask(profile_effect, table(np.eye(7)), table(np.eye(7)), **wrong), InputError)


# Fidelity

def test_fidelity_is_psnr_and_mean_error(rng):
    original, reconstruction = random_images(rng, 3, 2, 16, 16), random_images(rng, 3, 2, 16, 16)
    result = fidelity(reconstruction, original)
    psnr = lambda a, b: peak_signal_noise_ratio(a, b, data_range=255)
    assert np.isclose(result.psnr, psnr(original, reconstruction))
    assert np.allclose(result.psnr_cells, [psnr(a, b) for a, b in zip(original, reconstruction)])
    assert np.allclose(result.psnr_channels, [psnr(original[:, i], reconstruction[:, i]) for i in range(2)])
    assert np.allclose(result.error_channels, np.abs(original.astype(float) - reconstruction).mean((0, 2, 3)))


def test_the_psnr_of_an_exact_reconstruction_is_infinite(rng):
    a = random_images(rng, 2, 1, 8, 8)
    b = a.copy()
    b[1, 0, 0, 0] ^= 1
    assert fidelity(a, a).psnr == np.inf and (fidelity(a, a).error_channels == 0).all()
    off = fidelity(b, a)
    assert off.psnr_cells[0] == np.inf and np.isfinite(off.psnr_cells[1]) and np.isfinite(off.psnr)
