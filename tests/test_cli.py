"The command line as people use it: in processes of their own, with files, interrupted and misused."
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from mfm_app.cli import main
from mfm_app.hub import bundled, load_model
from mfm_app.simulator import synthetic_cells

root = Path(__file__).resolve().parent.parent
mfm = [sys.executable, "-m", "mfm_app.cli"]


def run(*args, **kwargs):
    return subprocess.run([*mfm, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    "A folder of one's own: images in folders named by perturbation."
    folder, cells = tmp_path_factory.mktemp("own"), synthetic_cells(6, 32)
    for i, image in enumerate(cells.images):
        (folder / cells.table.perturbation[i]).mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / cells.table.perturbation[i] / f"{i}.png")
    (folder / "list.txt").write_text("CCO")
    return folder


def training(data, out, steps):
    return ["train", "--data", data, "--out", out, "--backbone", "nano/8", "--image-size", 32, "--batch", 4, "--steps", steps, "--every", 3]


def test_train_on_ones_own_folder_then_sample_from_it(own_folder, tmp_path):
    done = run(*training(own_folder, tmp_path / "run", 3))
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"training.pt", "model", "preview.png"}
    done = run("sample", "sweller", "--model", tmp_path / "run/model", "--n", 2, "--steps", 2, "--out", tmp_path / "two.png")
    assert done.returncode == 0, done.stderr
    picture = Image.open(tmp_path / "two.png")
    assert picture.size == (2 * (32 + 2 + 32), 2 * 32)      # two cells with a gap, every pixel twice
    assert '"perturbation": "sweller"' in picture.text["provenance"]


def test_a_run_that_is_killed_goes_on_where_its_checkpoint_stands(own_folder, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen([*mfm, *map(str, training(own_folder, out, 100_000))], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for _ in range(1200):
        if (out / "model/model.safetensors").is_file(): break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    from mfm_app.training import read_state
    reached = read_state(out / "training.pt")["step"]
    assert reached >= 3
    done = run(*training(own_folder, out, reached + 3))
    assert done.returncode == 0, done.stderr
    assert load_model(out / "model").config["training"]["steps"] == reached + 3


@pytest.mark.parametrize("args,said", [
    (["train", "--data", "nowhere"], "There is no data folder 'nowhere'."),
    (["train", "--data", "{own}", "--steps", "0"], "--steps must be a whole number from 1"),
    (["train", "--data", "{own}", "--backbone", "XXL/8"], "Unknown model size 'XXL'"),
    (["train", "--data", "{own}", "--backbone", "S/3"], "must be 2, 4 or 8 pixels"),
    (["sample", "aspirin"], "Unknown perturbation 'aspirin'"),
    (["sample", "taxol", "--dose", "1e6"], "it saw 0.3, 1, 3 µM, and 0.03 to 30 µM is allowed."),
    (["sample", "taxol", "--n", "10000"], "--n must be a whole number from 1 to 64"),
    (["sample", "taxol", "--steps", "0"], "Steps must be a whole number from 1 to 200"),
    (["sample", "taxol", "--out", "cells.gif"], "--out must end in .png or .npz"),
    (["sample", "taxol", "--out", "nowhere/cells.png"], "'cells.png' does not"),
    (["screen", "{own}/list.txt", "--out", "{own}/list.txt"], "cannot be read or written"),
    (["serve", "--model", "{own}"], "is not a model folder: it has no config.json."),
    (["serve", "--port", "70000"], "The port must be a whole number from 1 to 65,535"),
    (["evaluate", "--model", "{bundled}", "--data", "{own}"], "two conditions or more with 100 training cells each; these data have 0."),
])
def test_what_is_refused_is_refused_in_one_line(own_folder, tmp_path, monkeypatch, capsys, args, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop: main([a.format(own=own_folder, bundled=bundled) for a in args])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and last.startswith("mfm: ") and said in last
    assert not list(tmp_path.iterdir())      # nothing half-written


def test_a_taken_port_is_refused_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--port", port, env={**os.environ, "GRADIO_SERVER_NAME": "127.0.0.1"})
    assert done.returncode == 2 and f"mfm: Port {port} is in use; name a free one." in done.stderr, done.stderr


def test_app_py_serves_the_page():
    process = subprocess.Popen([sys.executable, "app.py"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        url = next(m[0] for line in process.stdout if (m := re.search(r"http://127\.0\.0\.1:\d+", line)))
        assert b"Watch a cell respond" in urllib.request.urlopen(url, timeout=30).read()
    finally:
        process.kill()
        process.wait()


def test_the_entry_point_is_installed():
    assert shutil.which("mfm", path=str(Path(sys.executable).parent)), "pip install -e . makes the command `mfm`"


def test_a_process_that_leaves_in_the_middle_of_a_walk_ends_cleanly():
    code = "from mfm_app import engine; walk = engine.load().stream(engine.Request('taxol', seeds=range(32), steps=50)); next(walk); next(walk)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and "terminate" not in ended.stderr, ended.stderr
