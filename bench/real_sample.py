"""The real cells that come with the package: `python bench/real_sample.py [data folder]` writes them anew.

Of every condition and of every week's DMSO a few crops, those held out of training first, drawn at random by a seed and
not by their looks: `usual` of what the page opens with for a compound, `other` of each further dose and week."""
import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from mfm_app.crops import columns_of_sample, sample_file, sheet_of
from mfm_app.data import read_cells
from mfm_app.hub import from_pretrained
from mfm_app.vocabulary import usual_dose, usual_experiment

root = Path(__file__).resolve().parent.parent
usual, other, controls, seed = 6, 2, 4, 0


def page_opens_with(vocab):
    "Compound, dose and experiment that the page chooses for each compound."
    return {(p.name, usual_dose(p), usual_experiment(vocab, p)) for p in vocab.treated}


def choose(cells, vocab):
    "The rows of the table that are taken, condition by condition."
    rng, table = np.random.default_rng(seed), cells.table
    order = table.iloc[rng.permutation(len(table))]
    order = order.loc[(order["split"] == "train").sort_values(kind="stable").index]      # held out first
    opens, sizes = page_opens_with(vocab), table.groupby(["perturbation", "dose_um"]).size()
    def most(name, dose_um, experiment):
        if name == cells.control: return usual + 2 if experiment == "Week4" else controls
        if name in vocab.names: return usual if (name, dose_um, experiment) in opens else other
        return usual if sizes[name].idxmax() == dose_um else other
    rows = []
    for key, group in order.groupby(["perturbation", "dose_um", "experiment"], dropna=False):
        rows += list(group.index[:most(*key)])
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=root.parent / "shared/data/bbbc021-cells")
    cells, vocab = read_cells(parser.parse_args().data), from_pretrained().vocab
    chosen = cells[choose(cells, vocab)]
    Image.fromarray(sheet_of(chosen.images)).save(sample_file("webp"), lossless=True, quality=100, method=6)
    text = chosen.table[columns_of_sample].to_csv(index=False, lineterminator="\n")
    sample_file("csv.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    held_out = int((chosen.table["split"] != "train").sum())
    size = sum(sample_file(ending).stat().st_size for ending in ("webp", "csv.gz"))
    conditions = chosen.table.groupby(["perturbation", "dose_um", "experiment"], dropna=False).ngroups
    print(f"{len(chosen)} crops of {conditions} conditions, {held_out} of them held out of training, "
          f"in {size / 1e6:.2f} MB.")
