"Starting the page imports what the page needs; what figures, training or measurements need comes when it is used."
import json
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent

# library or part of one -> what uses it
later = {
    "accelerate": "from mfm_app import training, finetune; model = finetune.random_model(); "
                  "training.prepare(training.start(model.net))",
    "matplotlib": "from mfm_app import viz; viz.few_colours(viz.loss_curve([[1, .5, 9], [2, .4, 9]]))",
    "scipy.optimize": "import torch; from mfm_app import flow; x = torch.randn(4, 3, 2, 2); flow.minibatch_ot(x, x)",
    "scipy.stats": "import numpy as np; from mfm_app import effects; "
                   "effects.effect_map(*np.random.default_rng(0).integers(0, 255, (2, 8, 1, 4, 4), np.uint8))",
    "sklearn": "from mfm_app import evaluation; evaluation.kid([[0., 1], [1, 0], [2, 2]], [[0., 1], [1, 1]])",
    "skimage.measure._regionprops": "import numpy as np; from mfm_app import features; "
                                    "disc = np.hypot(*np.ogrid[-2:2:64j, -2:2:64j]) < 1; "
                                    "features.nuclei_table(features.find_nuclei(disc), disc)",
    "torchdiffeq": "import torch; from mfm_app import sampling; "
                   "sampling.integrate_reference(lambda x, t, condition: -x, torch.ones(1, 1))",
}


# Each use is tried in a fork of a process that has imported what the page needs.
tried = """
import json, os, sys, traceback
from mfm_app import cli, ui, engine
def tell(*answer): print(json.dumps(answer), flush=True)
later = json.loads(sys.argv[1])
tell("page", [name for name in later if name in sys.modules])
for name, use in later.items():
    if not (child := os.fork()):
        try: exec(use)
        except Exception: traceback.print_exc()
        tell(name, name in sys.modules)
        os._exit(0)
    os.waitpid(child, 0)
engine.load()
tell("model", [name for name in later if name in sys.modules])
"""


def python(script, *args):
    "What a new interpreter prints, in the project's folder."
    done = subprocess.run([sys.executable, "-c", script, *args], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()


@pytest.fixture(scope="module")
def found(): return dict(map(json.loads, python(tried, json.dumps(later))))


@pytest.mark.parametrize("needs", ["page", "model"])
def test_the_page_and_the_model_need_none_of_what_is_imported_later(found, needs): assert found[needs] == []


@pytest.mark.parametrize("library", later)
def test_it_is_there_when_it_is_used(found, library): assert found[library]


def test_garbage_is_collected_again_once_everything_is_imported():
    *_, last = python("import app, gc; print(gc.isenabled(), gc.get_freeze_count() > 100_000)")
    assert last == "True True"
