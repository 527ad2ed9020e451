"The README's figure of generated cells and their statistics: `python bench/figures.py DATA [model folder]`."
import sys
from pathlib import Path


from mfm_app.cli import cells_of_condition, condition_label, generate_condition, well_known
from mfm_app.core import pick_device
from mfm_app.data import read_cells
from mfm_app.features import morphology
from mfm_app.hub import load_model
from mfm_app.viz import statistics_figure

statistics = ["DNA_mean", "Actin_mean", "Tubulin_mean", "DNA_centre_against_rim", "DNA_sharpness", "Tubulin_glcm_contrast_1"]

if __name__ == "__main__":
    cells, model = read_cells(sys.argv[1]), load_model(sys.argv[2] if len(sys.argv) > 2 else None)
    names, pictures, real, generated = [c["name"] for c in cells.channels], {}, {}, {}
    for name, dose in well_known(cells):
        label, held_out = condition_label(name, dose), cells_of_condition(cells.where(split="iid"), name, dose)
        if not len(held_out): continue
        drawn = generate_condition(model, held_out, name, dose, 256, pick_device())
        pictures[label], real[label], generated[label] = drawn[:6], morphology(held_out.images, names), morphology(drawn, names)
    fig = statistics_figure(pictures, cells.channels, real, generated, statistics)
    fig.savefig(Path(__file__).parent.parent / "nbs/images/cells.png", dpi=110)
