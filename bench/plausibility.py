"""How often a brought file is questioned: channels in their right and in every wrong order, and images made worse.
`python bench/plausibility.py DATA` prints Markdown tables; DATA is the folder of bbbc021-cells."""
import sys
from itertools import permutations

import numpy as np
from scipy import ndimage

from mfm_app.core import InputError, markdown_table
from mfm_app.data import read_cells
from mfm_app.hub import load_model
from mfm_app.images import Micrograph
from mfm_app.preprocess import ImportOptions, prepare_cells, rescale

wrong_orders = list(permutations(range(3)))[1:]


def uint8(x): return np.asarray(x).round().clip(0, 255).astype(np.uint8)


def share_questioned(model, images, crops=1):
    "Of files of so many crops each, the share that is questioned or refused."
    def questioned(pixels):
        try: prepare_cells(model, Micrograph(pixels, [""] * 3, None, 8, []), ImportOptions((0, 1, 2)))
        except InputError: return True
        return False
    return float(np.mean([questioned(images[i:i + crops]) for i in range(0, len(images) - crops + 1, crops)]))


def rates(model, images, crops=1):
    "Of the right order, of all wrong ones, and of the wrong one that is noticed least."
    wrong = [share_questioned(model, images[:, list(order)], crops) for order in wrong_orders]
    return share_questioned(model, images, crops), float(np.mean(wrong)), min(wrong)


def at_scale(images, factor):
    "Crops of the same size, of cells larger or smaller; what is missing around them is mirrored."
    scaled, side = uint8(rescale(images, factor)), images.shape[-1]
    n = scaled.shape[-1]
    before = abs(side - n) // 2
    if n >= side: return scaled[:, :, before:before + side, before:before + side]
    return np.pad(scaled, ((0, 0), (0, 0), *[(before, side - n - before)] * 2), "reflect")


def degraded(images, rng=np.random.default_rng(0)):
    "Name -> the same crops, made worse."
    blurred = lambda sigma: uint8(ndimage.gaussian_filter(images.astype(np.float32), (0, 0, sigma, sigma)))
    ground = np.median(np.percentile(images, 1, axis=(2, 3)), 0)[:, None, None]
    return {"a third as bright, on a higher ground": uint8(images * .3 + 20), "negative": 255 - images,
            "blurred by 1 px": blurred(1), "by 2 px": blurred(2), "by 3 px": blurred(3),
            "overexposed 3 times": uint8(images * 3.), "5 times": uint8(images * 5.),
            "half as large": at_scale(images, .5), "half as large again": at_scale(images, 1.5),
            "twice as large": at_scale(images, 2), "noise of 5 grey levels": uint8(rng.normal(images, 5)),
            "background alone": uint8(rng.normal(ground + 2, 3, images.shape)),
            "nothing but noise": rng.integers(0, 256, images.shape, dtype=np.uint8)}


def populations(cells, n, seed=0):
    "Name -> n crops that the model has not seen; twice untreated, the second time in files of other pixels."
    rng, treated = np.random.default_rng(seed), (cells.table["perturbation"] != cells.control).to_numpy()
    some = lambda cells: cells.images[rng.permutation(len(cells))[:n]]
    iid = (cells.table["split"] == "iid").to_numpy()
    untreated = some(cells[iid & ~treated])
    return {"untreated": untreated, "untreated, enlarged to 96 px": uint8(rescale(untreated, 1.5)),
            "treated": some(cells[iid & treated]), "treated, compounds held out": some(cells.where(split="ood"))}


def main(folder, n=100):
    model, percent = load_model(), lambda value: f"{value:.1%}"
    crops = populations(read_cells(folder), n)
    rows = [(name, len(images), count, *map(percent, rates(model, images, count)))
            for count in (1, 4) for name, images in crops.items()]
    print(markdown_table(["crops", "number", "a file", "right order questioned", "wrong orders questioned",
                          "the least noticed of them"], rows, "lrrrrr"))
    worse = [(name, *(percent(share_questioned(model, images, count)) for count in (1, 4)))
             for name, images in degraded(crops["untreated"]).items()]
    print("\n" + markdown_table(["untreated crops", "one a file", "four a file"], worse, "lrr"))


if __name__ == "__main__": main(sys.argv[1])
