"Nuclei are segmented and measured in crops and fields; profiles are finite, named and independent of orientation."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from mfm_app.core import InputError
from mfm_app.features import (count_matches, find_nuclei, granularity, morphology, nuclear_channel, nuclear_profile,
                              nuclei_table, profile, seam)
from mfm_app.simulator import synthetic_cells

names = ["DNA", "Actin", "Tubulin"]
views = dict(left_right=lambda x: x[..., ::-1], up_down=lambda x: x[..., ::-1, :],
             quarter=lambda x: np.rot90(x, 1, (-2, -1)), half=lambda x: np.rot90(x, 2, (-2, -1)),
             transposed=lambda x: x.swapaxes(-1, -2))


@pytest.fixture(scope="module")
def cells(): return synthetic_cells(8)


def disc(side, y, x, radius): return np.hypot(*np.ogrid[-y:side - y, -x:side - x]) < radius


def simulated_field(n, side=512, diameter=32, gap=1.1, uneven=0., noise=4., brightness=(60, 150), seed=0):
    "Blurred discs on shading and noise, and one label a disc."
    rng, middles = np.random.default_rng(seed), []
    image, truth = np.zeros((side, side)), np.zeros((side, side), int)
    while len(middles) < n:
        y, x = rng.uniform(diameter / 2, side - diameter / 2, 2)
        if any(np.hypot(y - v, x - u) < gap * diameter for v, u in middles): continue
        middles.append((y, x))
        inside = disc(side, y, x, diameter / 2 * rng.uniform(.85, 1.1))
        image[inside], truth[inside] = np.maximum(image[inside], rng.uniform(*brightness)), len(middles)
    shade = uneven * np.hypot(*np.mgrid[-1:1:side * 1j, -.5:1.5:side * 1j])
    background = 40 + 60 * shade + rng.normal(0, noise, image.shape)
    return ndimage.gaussian_filter(image, 1.2) * (1 - .2 * shade) + background, truth


# Which channel

@pytest.mark.parametrize("channels, index", [(["DNA", "Actin"], 0), (["actin", "DAPI"], 1), (["Nucleoli", "nuclei"], 1),
                                             (["ER", "Hoechst 33342"], 1), (["a", "b"], 0), ([None, 7], 0), ([], 0)])
def test_the_nuclear_channel_is_known_by_its_name_and_else_the_first(channels, index):
    assert nuclear_channel(channels) == index


# Segmentation

fields = [dict(n=80), dict(n=100, gap=.95), dict(n=80, uneven=1.), dict(n=60, noise=20.), dict(n=2, uneven=1.),
          dict(n=3, noise=15.), dict(n=1), dict(n=200, diameter=12), dict(n=9, diameter=100),
          dict(n=80, brightness=(40, 200))]


@pytest.mark.parametrize("arguments", fields, ids=str)
def test_as_many_nuclei_are_segmented_as_were_simulated(arguments):
    (image, truth), n = simulated_field(**arguments), arguments["n"]
    labels = find_nuclei(image)
    assert count_matches(truth, labels) >= .97 * n and abs(int(labels.max()) - n) <= .03 * n


def test_a_match_shares_more_than_half_of_the_union():
    truth, labels = np.zeros((2, 10, 10), int)
    truth[:4, :4], truth[6:, 6:] = 1, 2
    labels[:4, :2], labels[6:, 6:9] = 1, 2      # intersection over union 1/2 and 3/4
    assert count_matches(truth, labels) == 1 and count_matches(truth, labels, .8) == 0
    assert count_matches(truth, truth) == 2
    assert count_matches(truth, 0 * labels) == count_matches(0 * truth, labels) == 0


@pytest.mark.parametrize("uneven", [0., 1.])
@pytest.mark.parametrize("noise", [1., 20.])
def test_noise_has_no_nuclei(noise, uneven):
    assert find_nuclei(simulated_field(0, uneven=uneven, noise=noise)[0]).max() == 0


def test_a_constant_plane_has_no_nuclei():
    for plane in (np.zeros((64, 64)), np.full((64, 64), 255, np.uint8), np.full((600, 300), -1e300)):
        assert find_nuclei(plane).max() == 0


def test_a_rim_is_at_half_the_intensity_however_bright_the_nucleus():
    for brightness in (40, 80, 160, 240):
        image, truth = simulated_field(1, side=64, gap=0, brightness=(brightness, brightness), noise=1)
        assert np.isclose((find_nuclei(image) > 0).sum(), (truth > 0).sum(), rtol=.06)


def test_discs_that_touch_are_split_where_they_touch():
    image = np.maximum(disc(128, 64, 44, 20), disc(128, 64, 83, 20)) * 100.
    labels = find_nuclei(ndimage.gaussian_filter(image, 1))
    assert labels.max() == 2 and labels[64, 44] != labels[64, 83] and (np.bincount(labels.ravel())[1:] > 1100).all()


def test_a_dim_nucleus_beside_a_bright_one_is_segmented():
    image = 200. * disc(128, 64, 40, 16) + 50. * disc(128, 64, 88, 16)
    assert find_nuclei(ndimage.gaussian_filter(image, 1)).max() == 2


def test_specks_are_dropped_unless_the_diameter_says_they_are_nuclei():
    image = 100. * disc(256, 80, 80, 20) + 100. * disc(256, 180, 180, 20) + 100. * disc(256, 60, 190, 4)
    assert find_nuclei(image).max() == 2 and find_nuclei(image, diameter=9)[60, 190] > 0


@pytest.mark.parametrize("dtype, scale, shift", [(np.uint16, 250, 900), (np.float32, 1e-4, -7), (float, 1e12, 0),
                                                 (np.int32, 1000, -10 ** 6)])
def test_the_scale_and_type_of_the_intensity_do_not_matter(dtype, scale, shift):
    image, truth = simulated_field(40)
    assert count_matches(truth, find_nuclei((image * scale + shift).astype(dtype))) == 40


@pytest.mark.parametrize("side", [(64, 64), (300, 700), (64, 2000)])
def test_labels_have_the_shape_of_the_plane_and_count_from_one(side):
    image = np.random.default_rng(0).normal(0, 2, side)
    image[disc(max(side), 30, 30, 15)[:side[0], :side[1]]] += 90
    labels = find_nuclei(image)
    assert labels.shape == side and labels.dtype.kind in "ui" and set(np.unique(labels)) == {0, 1}


any_number = st.sampled_from([np.uint8, np.uint16, np.int64, np.float32, np.float64, bool])
any_shape = array_shapes(min_dims=2, max_dims=2, min_side=8, max_side=40)


@given(arrays(any_number, any_shape), st.none() | st.floats(4, 8))
def test_any_finite_plane_has_some_number_of_nuclei(plane, diameter):
    if not np.isfinite(plane).all(): return
    labels = find_nuclei(plane, diameter)
    assert labels.shape == plane.shape and set(np.unique(labels)) - {0} == set(range(1, int(labels.max()) + 1))
    assert len(nuclei_table(labels, plane)) == labels.max()


@pytest.mark.parametrize("plane", [None, np.zeros((3, 64, 64)), np.zeros(64), np.zeros((4, 64)),
                                   np.full((64, 64), np.nan), np.full((64, 64), np.inf),
                                   np.zeros((64, 64), complex), np.full((64, 64), "a")])
def test_what_is_no_plane_is_refused(ask, plane): assert isinstance(ask(find_nuclei, plane), InputError)


@pytest.mark.parametrize("diameter", [0, 3, -5, 65, np.nan, np.inf, "wide", True, [20]])
def test_a_diameter_that_no_nucleus_can_have_is_refused(ask, diameter):
    assert isinstance(ask(find_nuclei, np.eye(64), diameter), InputError)


# The table of nuclei

def test_the_table_has_the_place_and_the_size_of_each_nucleus():
    labels = np.where(disc(64, 20, 24, 10), 1, np.where(disc(64, 50, 60, 9), 2, 0))
    table = nuclei_table(labels, np.where(labels == 1, 7., 3.))
    columns = ["label", "y", "x", "area_px", "diameter_px", "eccentricity", "mean", "touches_border"]
    assert list(table) == columns
    assert np.allclose(table[["y", "x", "mean"]].iloc[0], [20, 24, 7])
    assert np.isclose(table.diameter_px[0], 20, rtol=.02)
    assert table.touches_border.tolist() == [False, True] and table.area_px[0] == (labels == 1).sum()


def test_a_table_of_no_nuclei_has_all_columns_and_no_row():
    empty = nuclei_table(np.zeros((64, 64), int), np.zeros((64, 64)))
    assert len(empty) == 0 and "touches_border" in empty and len(empty[~empty["touches_border"]]) == 0


@pytest.mark.parametrize("labels, plane", [(np.zeros((64, 64)), np.zeros((64, 64))),
                                           (np.zeros((64, 64), int), np.zeros((32, 64))),
                                           (np.zeros((2, 8, 8), int), np.zeros((2, 8, 8)))])
def test_labels_that_do_not_fit_the_plane_are_refused(ask, labels, plane):
    assert isinstance(ask(nuclei_table, labels, plane), InputError)


# The nucleus in the middle

def crop(nucleus, cytoplasm=20, dna=120):
    return np.stack([nucleus * np.uint8(dna), np.where(nucleus, 40, cytoplasm).astype(np.uint8)])


def test_a_disc_and_an_ellipse_have_their_known_shape():
    y, x = np.mgrid[-31.5:32, -31.5:32]
    shapes = np.stack([crop(np.hypot(y, x) < 15), crop((y / 12) ** 2 + (x / 20) ** 2 < 1)])
    table = nuclear_profile(shapes, ["DAPI", "ER"])
    assert np.allclose(table.nucleus_area_px, [np.pi * 15 ** 2, np.pi * 12 * 20], rtol=.06)
    assert table.nucleus_eccentricity[0] < .1 and np.isclose(table.nucleus_eccentricity[1], .8, atol=.02)
    assert np.isclose(table.nucleus_form_factor[0], 1, atol=.05) and table.nucleus_form_factor[1] < .95
    assert (table.nucleus_solidity > .95).all()
    assert np.allclose(table.DAPI_nucleus_contrast, 1, atol=.05) and np.allclose(table.ER_nucleus_mean, 40, atol=1.5)
    assert np.allclose(table.ER_nucleus_contrast, (40 - 20) / (40 + 20), atol=.03)
    assert np.allclose(table.DAPI_nucleus_total, 120 * table.nucleus_area_px, rtol=.05)


def test_the_middle_one_of_several_nuclei_is_measured():
    image = crop(disc(64, 32, 32, 9) | disc(64, 10, 50, 12) | disc(64, 55, 10, 12))
    assert np.isclose(nuclear_profile(image[None], ["DNA", "ER"]).nucleus_area_px[0], np.pi * 81, rtol=.12)


def test_without_a_nucleus_in_the_middle_the_area_is_zero_and_the_rest_a_disc():
    images = np.stack([crop(disc(64, 32, 32, 0), dna=0), crop(disc(64, 8, 8, 8)), np.zeros((2, 64, 64), np.uint8)])
    table = nuclear_profile(images, ["DNA", "ER"])
    assert (table[["nucleus_area_px", "nucleus_eccentricity", "DNA_nucleus_total"]] == 0).all(axis=None)
    assert (table[["nucleus_solidity", "nucleus_form_factor"]] == 1).all(axis=None)
    assert (table.ER_nucleus_mean == [20, 20, 0]).all()


def test_swollen_nuclei_measure_larger(cells):
    area = profile(cells.images, names).nucleus_area_px
    area_of = lambda name: area[(cells.table.perturbation == name).to_numpy()].to_numpy()
    assert area_of("sweller")[-8:].min() > area_of("DMSO").max()
    assert np.isclose(np.median(area_of("stabiliser")), np.median(area_of("DMSO")), rtol=.15)


def test_real_crops_have_a_nucleus_in_the_middle(real_cells):
    untreated = real_cells.where(perturbation="DMSO").images[::12]
    area = nuclear_profile(untreated, names).nucleus_area_px
    assert (area > 0).mean() > .99 and 33 < 2 * np.sqrt(area.median() / np.pi) < 37


# Granularity

def octagon(radius):
    "The shape that `granularity` grows, as a footprint."
    shape = np.ones((1, 1), bool)
    for r in range(1, radius + 1):
        shape = ndimage.binary_dilation(np.pad(shape, 1), ndimage.generate_binary_structure(2, 2 - r % 2))
    return shape


def test_granularity_is_what_openings_with_octagons_remove():
    image = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    image[8:30, 5:25] //= 4
    shares, remaining = granularity(image[None], (1, 2, 3, 5)), image.sum()
    for radius in (1, 2, 3, 5):
        eroded = ndimage.grey_erosion(image, footprint=octagon(radius), mode="constant", cval=255)
        opened = ndimage.grey_dilation(eroded, footprint=octagon(radius), mode="constant", cval=0).sum()
        assert np.isclose(shares[f"granularity_{radius}"][0], (int(remaining) - int(opened)) / image.sum())
        remaining = opened
    assert str(granularity(image[None], (5, 1, 3, 2))) == str(shares)      # whatever the order


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(8, 24), st.integers(8, 24))))
def test_granularity_is_a_share(x):
    shares = pd.DataFrame(granularity(x))
    assert (shares >= 0).all(axis=None) and (shares.sum(axis=1) <= 1 + 1e-9).all()


@pytest.mark.parametrize("view", views)
def test_granularity_is_the_same_for_every_orientation_of_a_cell(cells, view):
    x = cells.images[::5, 2]
    assert pd.DataFrame(granularity(views[view](x))).equals(pd.DataFrame(granularity(x)))


# Seams

def test_seam_is_the_mean_step_at_borders_over_the_mean_step_elsewhere():
    across = np.array([0, 1, 2, 3, 9, 10, 11, 12], np.uint8)      # a step of 6 where two patches of 4 meet, else of 1
    image = np.broadcast_to(across, (1, 1, 8, 8))      # flat downwards: 6 and 0 at borders, six 1 and six 0 elsewhere
    assert np.isclose(seam(image, 4), 3 / .5, rtol=1e-4) and np.isclose(seam(image.swapaxes(2, 3), 4), 6, rtol=1e-4)
    assert seam(np.full((1, 1, 8, 8), 9, np.uint8), 4) == 1


@pytest.mark.parametrize("patch", [1, 5, 2.5, None, "8"])
def test_a_patch_without_a_border_is_refused(ask, patch):
    assert isinstance(ask(seam, np.zeros((1, 1, 8, 8), np.uint8), patch), InputError)


# The profile

def test_a_profile_is_morphology_and_nucleus_and_granularity(cells):
    table = profile(cells.images[:5], names)
    assert table.shape == (5, 54 + 4 + 3 * 3 + 1 + 3 * 4)
    assert table.columns.is_unique and (table.dtypes == np.float32).all()
    assert table.iloc[:, :54].equals(morphology(cells.images[:5], names))
    assert {"nucleus_area_px", "DNA_granularity_2", "Tubulin_nucleus_contrast", "DNA_nucleus_total"} <= set(table)


stored_morphology = dict(DNA_mean=61.60938, DNA_std=55.66771, DNA_skewness=0.9808917, DNA_percentile_99=217,
                         DNA_saturated_share=0, Actin_centre_against_rim=0.1585819, DNA_glcm_contrast_1=0.2762011,
                         Tubulin_glcm_homogeneity_4=0.5417871, DNA_glcm_correlation_4=0.9830225,
                         Tubulin_sharpness=17936.32, DNA_coarse_power_share=0.9990783, DNA_fine_power_share=0.000104164,
                         DNA_Actin_correlation=0.03059807, Actin_Tubulin_correlation=0)


def test_morphology_keeps_its_numbers():
    y, x = np.mgrid[:64, :64]
    image = np.stack([(x * y // 16) % 256, 255 - np.abs(x - 32) * 4, ((x // 8 + y // 8) % 2) * 180 + 20])
    row = morphology(image.clip(0, 255).astype(np.uint8)[None], names).iloc[0]
    assert np.allclose(row[list(stored_morphology)], list(stored_morphology.values()), rtol=1e-5)


@pytest.mark.parametrize("view", views)
def test_a_profile_is_the_same_for_every_orientation_of_a_cell(cells, view):
    images = cells.images[::2]
    assert np.allclose(profile(views[view](images), names), profile(images, names), rtol=1e-3, atol=2e-3)


def test_the_profile_of_a_cell_does_not_depend_on_the_others(cells):
    together = profile(cells.images[:12], names)
    assert np.allclose(profile(cells.images[5:6], names).iloc[0], together.iloc[5], rtol=1e-5, atol=1e-6)


@given(arrays(np.uint8, st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(8, 32), st.integers(8, 32))))
def test_the_profile_of_any_image_is_finite(images):
    assert np.isfinite(profile(images, names[:images.shape[1]])).all(axis=None)


@pytest.mark.parametrize("images, channels", [(np.zeros((2, 3, 64, 64)), names),
                                              (np.zeros((0, 3, 64, 64), np.uint8), names),
                                              (np.zeros((3, 64, 64), np.uint8), names),
                                              (np.zeros((2, 3, 64, 64), np.uint8), ["DNA"]),
                                              (np.zeros((2, 2, 64, 64), np.uint8), ["DNA", "DNA"])])
def test_images_without_a_name_for_each_channel_are_refused(ask, images, channels):
    for measure in (profile, nuclear_profile, morphology): assert isinstance(ask(measure, images, channels), InputError)
