"""Effects, profiles and nuclei: how fast, and how many nuclei are found. `python bench/effects.py` prints Markdown tables;
`python bench/effects.py DATA` also asks the untreated crops of a data folder."""
import os
import sys
import time

import numpy as np
import pandas as pd
import scipy
import skimage
from scipy import ndimage, stats
from skimage.morphology import octagon, opening

from mfm_app.data import read_cells
from mfm_app.effects import effect_map, fidelity, profile_effect, sign_flip
from mfm_app.features import central_nucleus, find_nuclei, granularity, morphology, nuclear_channel, nuclear_profile, nuclei_table, profile
from mfm_app.simulator import channels, twins

names = [c["name"] for c in channels]


def seconds(f, *args, repeats=3):
    "What it gives, and the best time of some: others may be computing too."
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = f(*args)
        times.append(time.perf_counter() - began)
    return found, min(times)


def scipys(d, flips):
    return stats.permutation_test((d,), lambda d, axis: np.abs(d.mean(axis)), permutation_type="samples", alternative="greater",
                                  vectorized=True, n_resamples=flips, batch=100, axis=0, rng=0).pvalue


def looped(d, flips, rng=np.random.default_rng(0)):
    "A flip at a time."
    signs = rng.integers(0, 2, (flips, len(d), 1)) * 2 - 1
    return (sum(np.abs((s * d).mean(0)) >= np.abs(d.mean(0)) for s in signs) + 1) / (flips + 1)


def scipys_features(treated, untreated):
    "Effects feature by feature, with scipy's bootstrap and permutation test."
    delta = lambda a, b, axis=-1: (a.mean(axis) - b.mean(axis)) / np.maximum(b.std(axis, ddof=1), 1e-9)
    for column in treated:
        a, b = treated[column].to_numpy(float), untreated[column].to_numpy(float)
        stats.bootstrap((a, b), delta, paired=True, vectorized=True, method="percentile", n_resamples=999, rng=0)
        scipys((a - b)[:, None], 999)


def field(n, side, diameter=33, uneven=0., noise=4., rng=None):
    "Blurred ellipses, touching here and there, on shading and noise, and a label each."
    rng, image, truth = rng or np.random.default_rng(0), np.zeros((side, side), np.float32), np.zeros((side, side), int)
    while truth.max() < n:
        radius, stretch, tilt, (cy, cx) = diameter / 2 * rng.uniform(.75, 1.3), rng.uniform(1, 1.2), rng.uniform(0, np.pi), rng.uniform(0, side, 2)
        reach = int(radius * stretch) + 2
        y, x = np.mgrid[max(int(cy) - reach, 0):min(int(cy) + reach, side), max(int(cx) - reach, 0):min(int(cx) + reach, side)]
        u, v = (x - cx) * np.cos(tilt) + (y - cy) * np.sin(tilt), (y - cy) * np.cos(tilt) - (x - cx) * np.sin(tilt)
        here = np.hypot(u / stretch, v * stretch) < radius
        if here.sum() < radius ** 2 or (truth[y, x][here] > 0).mean() > .03: continue
        spots = y[here], x[here]
        image[spots], truth[spots] = np.maximum(image[spots], rng.uniform(60, 150)), truth.max() + 1
    return shaded(image, uneven, noise, rng), truth


def mosaic(nuclei, n, side, uneven=0., rng=None):
    "Nuclei cut out of crops, (image, mask) each, put down anywhere with at most 3 % of one on another."
    rng, image, truth = rng or np.random.default_rng(0), np.zeros((side, side), np.float32), np.zeros((side, side), int)
    while truth.max() < n:
        (nucleus, mask), (y, x), turns = nuclei[rng.integers(len(nuclei))], rng.integers(0, side - 64, 2), rng.integers(4)
        nucleus, mask, here = np.rot90(nucleus, turns), np.rot90(mask, turns), np.s_[y:y + 64, x:x + 64]
        if (truth[here][mask] > 0).mean() > .03: continue
        image[here], truth[here] = np.maximum(image[here], nucleus), np.where(mask & (truth[here] == 0), truth.max() + 1, truth[here])
    return shaded(image, uneven, 1., rng), truth


def shaded(image, uneven, noise, rng):
    shade = np.hypot(*np.mgrid[-1:1:len(image) * 1j, -.6:1.3:len(image) * 1j])
    return image * (1 - .25 * uneven * shade) + 5 + 60 * uneven * shade + rng.normal(0, noise, image.shape)


def matched(truth, labels):
    "How many share more than half of their union with one that was found."
    both = np.bincount(truth.ravel() * (labels.max() + 1) + labels.ravel(), minlength=(truth.max() + 1) * (labels.max() + 1)).reshape(truth.max() + 1, -1)
    union = both.sum(1, keepdims=True) + both.sum(0) - both
    return int((both / np.maximum(union, 1) > .5)[1:, 1:].sum())


def row(*cells): print(f"| {' | '.join(map(str, cells))} |")


def statistics(n=256):
    untreated, treated = twins(n, "sweller", 3.)
    d = (treated.astype(np.float32) - untreated).reshape(n, -1)
    some = d[:, ::48]
    print(f"### Statistics\n\n{n} cells of 3 x 64 x 64, {os.cpu_count()} cores, NumPy {np.__version__}, SciPy {scipy.__version__}\n")
    row("", "seconds", "for as much, others over ours"); row("---", "---:", "---:")
    ours, flip_seconds = seconds(sign_flip, d)
    row("`sign_flip`, 12,288 pixels, 1,999 flips", f"{flip_seconds:.2f}", "")
    theirs, scipy_seconds = seconds(scipys, some, 1999, repeats=1)
    assert np.abs(ours[::48] - theirs).max() < .06
    row("`scipy.stats.permutation_test`, every 48th pixel", f"{scipy_seconds:.2f}", f"{scipy_seconds * 48 / flip_seconds:.0f}x")
    _, loop_seconds = seconds(looped, d, 40, repeats=1)
    row("a loop over flips, 40 of them", f"{loop_seconds:.2f}", f"{loop_seconds * 1999 / 40 / flip_seconds:.0f}x")
    profiles = profile(treated, names), profile(untreated, names)
    _, feature_seconds = seconds(profile_effect, *profiles)
    row(f"`profile_effect`, {profiles[0].shape[1]} features, 999 resamples", f"{feature_seconds:.2f}", "")
    _, theirs = seconds(scipys_features, *(p.iloc[:, ::8] for p in profiles), repeats=1)
    row("`scipy.stats.bootstrap` and `permutation_test`, every 8th feature", f"{theirs:.2f}", f"{theirs * 8 / feature_seconds:.0f}x")
    row("`effect_map` and `profile_effect`", f"{seconds(lambda: (effect_map(treated, untreated), profile_effect(*profiles)))[1]:.2f}", "")
    row("`fidelity`", f"{seconds(fidelity, treated, untreated)[1]:.2f}", "")


def profiles(images):
    print(f"\n### Profiles\n\nDrawn cells of 3 x 64 x 64, scikit-image {skimage.__version__}, one core.\n")
    row("", *(f"{n} cells, s" for n in (16, 64, 256))); row("---", *["---:"] * 3)
    shapes = [octagon(*sides) for sides in ((1, 1), (3, 1), (5, 2), (9, 4))]
    openings = lambda images: [opening(x, shape) for shape in shapes for x in images.reshape(-1, 64, 64)]
    for name, f in (("`morphology`", lambda x: morphology(x, names)), ("`nuclear_profile`", lambda x: nuclear_profile(x, names)),
                    ("`granularity` of each channel", lambda x: [granularity(x[:, i]) for i in range(3)]),
                    ("scikit-image's `opening`, a picture at a time", openings), ("`profile`", lambda x: profile(x, names))):
        row(name, *(f"{seconds(f, images[:n], repeats=2)[1]:.3f}" for n in (16, 64, 256)))


def ask_fields(kind, draw, cases):
    for title, arguments in cases:
        image, truth = draw(**arguments)
        labels, took = seconds(find_nuclei, image, repeats=2)
        row(f"{kind}{title}", f"{image.shape[0]:,}", f"{truth.max():,}", f"{labels.max():,}", f"{matched(truth, labels):,}", f"{took:.2f}")


def fields():
    print("\n### Nuclei in fields\n\nMatched: more than half of the union is shared with one that was drawn.\n")
    row("", "side, px", "drawn", "found", "matched", "seconds"); row("---", *["---:"] * 5)
    ask_fields("ellipses, ", field, [("33 px", dict(n=200, side=1024)), ("crowded", dict(n=420, side=1024)), ("shaded", dict(n=300, side=1024, uneven=1.)),
               ("noisy", dict(n=250, side=1024, noise=25.)), ("three of them", dict(n=3, side=1024, uneven=1.)), ("none", dict(n=0, side=1024, uneven=1.)),
               ("12 px", dict(n=900, side=1024, diameter=12)), ("200 px", dict(n=12, side=1024, diameter=200)), ("shaded", dict(n=1500, side=2048, uneven=1.))])


def crops(data):
    cells = read_cells(data)
    dna, untreated = nuclear_channel([c["name"] for c in cells.channels]), cells.where(perturbation=cells.control).images
    print(f"\n### Nuclei in {len(untreated):,} untreated crops\n")
    found = pd.concat([nuclei_table(*[central_nucleus(find_nuclei(x[dna])).astype(int), x[dna]]).assign(crop=i) for i, x in enumerate(untreated)])
    off = np.hypot(found.y - 31.5, found.x - 31.5)
    print(f"A nucleus in the middle: {len(found) / len(untreated):.1%}; its centre within 8 px of the crop's: {(off < 8).sum() / len(untreated):.1%}, "
          f"and whole: {((off < 8) & ~found.touches_border).sum() / len(untreated):.1%}; median diameter {found.diameter_px.median():.1f} px "
          f"(5 % to 95 %: {found.diameter_px.quantile(.05):.1f} to {found.diameter_px.quantile(.95):.1f}).\n")
    nuclei = []
    for x in untreated[::3, dna].astype(np.float32):
        labels = find_nuclei(x)
        mask = central_nucleus(labels)
        near = ndimage.binary_dilation(mask, iterations=5) & ~mask
        if mask.any() and not mask[[0, -1]].any() and not mask[:, [0, -1]].any() and not labels[near].any() and x[near].max() < x[mask].mean():
            nuclei.append((x * ndimage.gaussian_filter(ndimage.binary_dilation(mask, iterations=3).astype(np.float32), 1), mask))
    print(f"Mosaics of {len(nuclei):,} nuclei that lie alone:\n")
    row("", "side, px", "put down", "found", "matched", "seconds"); row("---", *["---:"] * 5)
    ask_fields("", lambda **how: mosaic(nuclei, **how), [("sparse", dict(n=100, side=1024)), ("crowded", dict(n=450, side=1024)),
               ("shaded", dict(n=400, side=1024, uneven=1.)), ("two of them", dict(n=2, side=1024)), ("crowded", dict(n=1500, side=2048))])


if __name__ == "__main__":
    statistics()
    profiles(twins(256, "sweller", 3.)[1])
    fields()
    if len(sys.argv) > 1: crops(sys.argv[1])
