"The README's figures of generated cells and of measured wells: `python bench/figures.py DATA [model folder]`."
import sys
from pathlib import Path

from mfm_app.core import pick_device
from mfm_app.data import read_cells
from mfm_app.features import morphology
from mfm_app.hub import load_model
from mfm_app.validation import cells_of, condition_label, generate_condition, trained_conditions
from mfm_app.viz import agreement_figure, statistics_figure

statistics = ["DNA_mean", "Actin_mean", "Tubulin_mean", "DNA_centre_against_rim", "DNA_sharpness",
              "Tubulin_glcm_contrast_1"]

if __name__ == "__main__":
    cells, model = read_cells(sys.argv[1]), load_model(sys.argv[2] if len(sys.argv) > 2 else None)
    names, pictures, real, generated = [c["name"] for c in cells.channels], {}, {}, {}
    for name, dose_um in trained_conditions(cells):
        label, held_out = condition_label(name, dose_um), cells_of(cells.where(split="iid"), name, dose_um)
        if not len(held_out): continue
        images = generate_condition(model, held_out, name, dose_um, 256, pick_device())
        pictures[label] = images[:6]
        real[label], generated[label] = morphology(held_out.images, names), morphology(images, names)
    figures = dict(cells=statistics_figure(pictures, cells.channels, real, generated, statistics))
    if wells := model.config.get("wells"): figures["wells"] = agreement_figure(wells["conditions"], wells["limits"])
    for name, figure in figures.items():
        figure.savefig(Path(__file__).parent.parent / f"nbs/images/{name}.png", dpi=110)
