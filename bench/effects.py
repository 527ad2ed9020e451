"""Effects, profiles and nuclei: how fast, and how many nuclei are segmented. `python bench/effects.py` prints Markdown
tables; `python bench/effects.py DATA` also measures the untreated crops of a data folder."""
import os
import sys
import time

import numpy as np
import pandas as pd
import scipy
import skimage
from scipy import ndimage, stats
from skimage.morphology import octagon, opening

from mfm_app.core import markdown_table
from mfm_app.data import read_cells
from mfm_app.effects import effect_map, fidelity, profile_effect, sign_flip
from mfm_app.features import (central_nucleus, count_matches, find_nuclei, granularity, morphology, nuclear_channel,
                              nuclear_profile, nuclei_table, profile)
from mfm_app.simulator import channels, twins

names = [c["name"] for c in channels]


def timed(f, *args, repeats=3):
    "The result of `f(*args)`, and the shortest of several times in seconds; others may be computing too."
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = f(*args)
        times.append(time.perf_counter() - start)
    return result, min(times)


# Statistics

def scipy_sign_flip(d, flips):
    "p-values of SciPy's permutation test."
    distance = lambda d, axis: np.abs(d.mean(axis))
    return stats.permutation_test((d,), distance, permutation_type="samples", alternative="greater", vectorized=True,
                                  n_resamples=flips, batch=100, axis=0, rng=0).pvalue


def looped_sign_flip(d, flips, rng=np.random.default_rng(0)):
    "p-values, one flip at a time."
    signs = rng.integers(0, 2, (flips, len(d), 1)) * 2 - 1
    return (sum(np.abs((s * d).mean(0)) >= np.abs(d.mean(0)) for s in signs) + 1) / (flips + 1)


def scipy_profile_effect(treated, untreated):
    "Effects feature by feature, with SciPy's bootstrap and permutation test."
    delta = lambda a, b, axis=-1: (a.mean(axis) - b.mean(axis)) / np.maximum(b.std(axis, ddof=1), 1e-9)
    for column in treated:
        a, b = treated[column].to_numpy(float), untreated[column].to_numpy(float)
        stats.bootstrap((a, b), delta, paired=True, vectorized=True, method="percentile", n_resamples=999, rng=0)
        scipy_sign_flip((a - b)[:, None], 999)


def bench_statistics(n=256):
    untreated, treated = twins(n, "sweller", 3.)
    d = (treated.astype(np.float32) - untreated).reshape(n, -1)
    some, profiles = d[:, ::48], (profile(treated, names), profile(untreated, names))
    p, flip_s = timed(sign_flip, d)
    scipy_p, scipy_s = timed(scipy_sign_flip, some, 1999, repeats=1)
    assert np.abs(p[::48] - scipy_p).max() < .06
    _, loop_s = timed(looped_sign_flip, d, 40, repeats=1)
    _, profile_s = timed(profile_effect, *profiles)
    _, scipy_profile_s = timed(scipy_profile_effect, *(p.iloc[:, ::8] for p in profiles), repeats=1)
    _, both_s = timed(lambda: (effect_map(treated, untreated), profile_effect(*profiles)))
    _, fidelity_s = timed(fidelity, treated, untreated)
    rows = [("`sign_flip`, 12,288 pixels, 1,999 flips", flip_s, None),
            ("`scipy.stats.permutation_test`, every 48th pixel", scipy_s, scipy_s * 48 / flip_s),
            ("a loop over flips, 40 of them", loop_s, loop_s * 1999 / 40 / flip_s),
            (f"`profile_effect`, {profiles[0].shape[1]} features, 999 resamples", profile_s, None),
            ("`scipy.stats.bootstrap` and `permutation_test`, every 8th feature", scipy_profile_s,
             scipy_profile_s * 8 / profile_s),
            ("`effect_map` and `profile_effect`", both_s, None), ("`fidelity`", fidelity_s, None)]
    cells = [(name, f"{seconds:.2f}", f"{ratio:.0f}x" if ratio else "") for name, seconds, ratio in rows]
    print(f"### Statistics\n\n{n} cells of 3 x 64 x 64, {os.cpu_count()} cores, NumPy {np.__version__}, "
          f"SciPy {scipy.__version__}\n")
    print(markdown_table(["", "seconds", "for as much, others over ours"], cells, "lrr"))


# Profiles

def bench_profiles(images, sizes=(16, 64, 256)):
    shapes = [octagon(*sides) for sides in ((1, 1), (3, 1), (5, 2), (9, 4))]
    functions = {
        "`morphology`": lambda x: morphology(x, names),
        "`nuclear_profile`": lambda x: nuclear_profile(x, names),
        "`granularity` of each channel": lambda x: [granularity(x[:, i]) for i in range(3)],
        "scikit-image's `opening`, an image at a time":
            lambda x: [opening(plane, shape) for shape in shapes for plane in x.reshape(-1, 64, 64)],
        "`profile`": lambda x: profile(x, names)}
    rows = [(name, *(f"{timed(f, images[:n], repeats=2)[1]:.3f}" for n in sizes)) for name, f in functions.items()]
    print(f"\n### Profiles\n\nSimulated cells of 3 x 64 x 64, scikit-image {skimage.__version__}, one core.\n")
    print(markdown_table(["", *(f"{n} cells, s" for n in sizes)], rows, "lrrr"))


# Nuclei

def shaded(image, uneven, noise, rng):
    shade = np.hypot(*np.mgrid[-1:1:len(image) * 1j, -.6:1.3:len(image) * 1j])
    return image * (1 - .25 * uneven * shade) + 5 + 60 * uneven * shade + rng.normal(0, noise, image.shape)


def ellipses(n, side, diameter=33, uneven=0., noise=4., rng=None):
    "Ellipses, touching here and there, on shading and noise, and a label each."
    rng, image, truth = rng or np.random.default_rng(0), np.zeros((side, side), np.float32), np.zeros((side, side), int)
    while truth.max() < n:
        radius, stretch, tilt = diameter / 2 * rng.uniform(.75, 1.3), rng.uniform(1, 1.2), rng.uniform(0, np.pi)
        cy, cx = rng.uniform(0, side, 2)
        reach = int(radius * stretch) + 2
        bounds = [slice(max(int(c) - reach, 0), min(int(c) + reach, side)) for c in (cy, cx)]
        y, x = np.mgrid[*bounds]
        u = (x - cx) * np.cos(tilt) + (y - cy) * np.sin(tilt)
        v = (y - cy) * np.cos(tilt) - (x - cx) * np.sin(tilt)
        inside = np.hypot(u / stretch, v * stretch) < radius
        if inside.sum() < radius ** 2 or (truth[y, x][inside] > 0).mean() > .03: continue
        pixels = y[inside], x[inside]
        image[pixels], truth[pixels] = np.maximum(image[pixels], rng.uniform(60, 150)), truth.max() + 1
    return shaded(image, uneven, noise, rng), truth


def mosaic(nuclei, n, side, uneven=0., rng=None):
    "Nuclei cut out of crops, (image, mask) each, put anywhere with at most 3 % of one on another."
    rng, image, truth = rng or np.random.default_rng(0), np.zeros((side, side), np.float32), np.zeros((side, side), int)
    while truth.max() < n:
        nucleus, mask = nuclei[rng.integers(len(nuclei))]
        (y, x), turns = rng.integers(0, side - 64, 2), rng.integers(4)
        nucleus, mask, place = np.rot90(nucleus, turns), np.rot90(mask, turns), np.s_[y:y + 64, x:x + 64]
        if (truth[place][mask] > 0).mean() > .03: continue
        image[place] = np.maximum(image[place], nucleus)
        truth[place] = np.where(mask & (truth[place] == 0), truth.max() + 1, truth[place])
    return shaded(image, uneven, 1., rng), truth


def segmentation_table(draw, cases, true_column):
    "A row for each title and arguments of `draw`: how many nuclei there are, are found and matched, and the seconds."
    rows = []
    for title, arguments in cases:
        image, truth = draw(**arguments)
        labels, seconds = timed(find_nuclei, image, repeats=2)
        counts = image.shape[0], truth.max(), labels.max(), count_matches(truth, labels)
        rows.append((title, *(f"{n:,}" for n in counts), f"{seconds:.2f}"))
    return markdown_table(["", "side, px", true_column, "found", "matched", "seconds"], rows, "lrrrrr")


def bench_fields():
    cases = [("33 px", dict(n=200)), ("crowded", dict(n=420)), ("shaded", dict(n=300, uneven=1.)),
             ("noisy", dict(n=250, noise=25.)), ("three of them", dict(n=3, uneven=1.)), ("none", dict(n=0, uneven=1.)),
             ("12 px", dict(n=900, diameter=12)), ("200 px", dict(n=12, diameter=200)),
             ("shaded", dict(n=1500, side=2048, uneven=1.))]
    print("\n### Nuclei in fields\n\nMatched: intersection over union with a drawn one above one half.\n")
    cases = [(f"ellipses, {title}", dict(side=1024) | arguments) for title, arguments in cases]
    print(segmentation_table(ellipses, cases, "drawn"))


def isolated_nuclei(crops):
    "(image, mask) of the nuclei in the middle of (H, W) crops that lie alone and whole, faded out beyond their rim."
    nuclei = []
    for x in crops.astype(np.float32):
        labels = find_nuclei(x)
        mask = central_nucleus(labels)
        ring = ndimage.binary_dilation(mask, iterations=5) & ~mask
        cut = mask[[0, -1]].any() or mask[:, [0, -1]].any()
        if not mask.any() or cut or labels[ring].any() or x[ring].max() >= x[mask].mean(): continue
        fade = ndimage.gaussian_filter(ndimage.binary_dilation(mask, iterations=3).astype(np.float32), 1)
        nuclei.append((x * fade, mask))
    return nuclei


def bench_crops(data):
    cells = read_cells(data)
    untreated = cells.where(perturbation=cells.control).images[:, nuclear_channel([c["name"] for c in cells.channels])]
    table = pd.concat([nuclei_table(central_nucleus(find_nuclei(x)).astype(int), x) for x in untreated])
    near = np.hypot(table.y - 31.5, table.x - 31.5) < 8
    share = lambda count: f"{count / len(untreated):.1%}"
    low, median, high = table.diameter_px.quantile([.05, .5, .95])
    print(f"\n### Nuclei in {len(untreated):,} untreated crops\n\n"
          f"A nucleus in the middle: {share(len(table))}; its centre within 8 px of the crop's: {share(near.sum())}, "
          f"and whole: {share((near & ~table.touches_border).sum())}; "
          f"median diameter {median:.1f} px (5 % to 95 %: {low:.1f} to {high:.1f}).\n")
    nuclei = isolated_nuclei(untreated[::3])
    cases = [("sparse", dict(n=100)), ("crowded", dict(n=450)), ("shaded", dict(n=400, uneven=1.)),
             ("two of them", dict(n=2)), ("crowded", dict(n=1500, side=2048))]
    print(f"Mosaics of {len(nuclei):,} nuclei that lie alone:\n")
    cases = [(title, dict(side=1024, nuclei=nuclei) | arguments) for title, arguments in cases]
    print(segmentation_table(mosaic, cases, "composed"))


if __name__ == "__main__":
    bench_statistics()
    bench_profiles(twins(256, "sweller", 3.)[1])
    bench_fields()
    if len(sys.argv) > 1: bench_crops(sys.argv[1])
