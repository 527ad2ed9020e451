"The command line as a user runs it: in processes of their own, with files, interrupted and misused."
import errno
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from mfm_app import cli
from mfm_app.cli import recipe_with
from mfm_app.engine import load
from mfm_app.export import export_of, write_export
from mfm_app.finetune import random_model
from mfm_app.hub import bundled, load_model, save_model
from mfm_app.images import read_micrograph, read_provenance
from mfm_app.simulator import synthetic_cells
from mfm_app.training import read_state

root = Path(__file__).resolve().parent.parent
command = [sys.executable, "-m", "mfm_app.cli"]


def run(*args, **kwargs):
    "Run a command in a process of its own."
    return subprocess.run([*command, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    "A folder of one's own: images in folders named by perturbation."
    folder, cells = tmp_path_factory.mktemp("own"), synthetic_cells(6, 32)
    for i, (image, name) in enumerate(zip(cells.images, cells.table["perturbation"])):
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / name / f"{i}.png")
    (folder / "list.txt").write_text("CCO")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A model folder with random weights."
    folder, model = tmp_path_factory.mktemp("small") / "model", random_model(synthetic_cells(8, 32))
    save_model(folder, model.net, model.config)
    return folder


def train_args(data, out, steps):
    return ["train", "--data", data, "--out", out, "--backbone", "nano/8", "--image-size", 32, "--batch", 4,
            "--steps", steps, "--every", 3]


# Training

def test_train_on_ones_own_folder_then_sample_from_it(own_folder, tmp_path, mfm):
    done = run(*train_args(own_folder, tmp_path / "run", 3))
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"training.pt", "model", "preview.png"}
    code, text = mfm("sample", "sweller", "--model", tmp_path / "run/model", "--n", 2, "--steps", 2,
                     "--out", tmp_path / "two.png")
    assert code == 0, text
    picture = Image.open(tmp_path / "two.png")
    width, height = 2 * (32 + 2 + 32), 2 * 32      # two cells with a gap, every pixel twice; the picture adds a title
    assert picture.width >= width and picture.height > height
    assert '"perturbation": "sweller"' in picture.text["provenance"]


def test_a_killed_run_resumes_from_its_checkpoint(own_folder, tmp_path, mfm):
    out = tmp_path / "run"
    endless = [*command, *map(str, train_args(own_folder, out, 100_000))]
    process = subprocess.Popen(endless, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for _ in range(1200):
        if (out / "model/model.safetensors").is_file(): break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = read_state(out / "training.pt")["step"]
    assert reached >= 3
    code, text = mfm(*train_args(own_folder, out, reached + 3))
    assert code == 0, text
    assert load_model(out / "model").config["training"]["steps"] == reached + 3


@pytest.mark.parametrize("name", ["--timesteps", "--times"])
def test_options_of_training_reach_the_card_under_their_present_and_former_names(own_folder, tmp_path, mfm, name):
    code, text = mfm(*train_args(own_folder, tmp_path / "run", 1), name, "uniform", "--coupling", "ot")
    assert code == 0, text
    training = load_model(tmp_path / "run/model").config["training"]
    assert (training["times"], training["coupling"], training["recipe"]) == ("uniform", "ot", "laptop")


def test_a_recipe_keeps_what_no_option_replaces():
    assert recipe_with(True, None, None, "independent", seed=3) == dict(
        recipe="paper", optimiser="adam", learning_rate=1e-4, times="uniform", coupling="independent", seed=3)
    assert recipe_with(False, 2e-3, None, "ot")["learning_rate"] == 2e-3
    assert recipe_with(False, None, None, "ot")["times"] == "logit-normal"


# Sampling into files

def generated(model, compare):
    "What the engine that the command loads generates for the options of `sample`."
    settings = dict(steps=3, solver="heun", cfg_scale=1.5, compare=compare)
    return load(str(model)).generate("sweller", seeds=range(4, 7), **settings)


@pytest.fixture
def sample(mfm, small, tmp_path):
    "Sample the same cells on the command line, into a file with some ending."
    def sample(ending):
        out = tmp_path / f"cells.{ending}"
        code, text = mfm("sample", "sweller", "--model", small, "--seed", 4, "--n", 3, "--steps", 3,
                         "--solver", "heun", "--guidance", 1.5, "--out", out)
        assert code == 0, text
        return out
    return sample


def test_arrays_are_those_the_engine_generates(small, sample):
    file, answer = sample("npz"), generated(small, compare=False)
    arrays, provenance = np.load(file), read_provenance(file)
    assert np.array_equal(arrays["images"], answer.images)
    assert arrays["channels"].tolist() == [c["name"] for c in answer.channels]
    assert provenance | dict(solver="heun", cfg_scale=1.5, seeds=[4, 5, 6]) == provenance


def test_the_picture_is_that_of_the_export(small, sample):
    file, answer = sample("png"), generated(small, compare=False)
    exported = io.BytesIO(write_export(export_of(answer), "PNG")[2])
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(exported)))
    assert read_provenance(file)["perturbation"] == "sweller"


def test_ome_tiffs_hold_the_same_cells(small, sample, tmp_path):
    with ZipFile(sample("ome-tiff.zip")) as archive:
        name, = archive.namelist()
        archive.extract(name, tmp_path)
    assert np.array_equal(read_micrograph(tmp_path / name).pixels, generated(small, compare=False).images)


def test_tables_compare_with_the_control(small, sample):
    file, answer = sample("csv.zip"), generated(small, compare=True)
    exported = io.BytesIO(write_export(export_of(answer), "CSV")[2])
    written, wanted = ({name: archive.read(name) for name in archive.namelist() if name != "provenance.json"}
                       for archive in (ZipFile(file), ZipFile(exported)))
    assert written == wanted and b"sweller" in written["profiles.csv"]


@pytest.mark.parametrize("name", ["--guidance", "--guidance-scale", "--cfg-scale"])
def test_guidance_has_three_names(small, tmp_path, mfm, name):
    out = tmp_path / "one.npz"
    code, text = mfm("sample", "sweller", "--model", small, "--n", 1, "--steps", 1, name, 2, "--out", out)
    assert code == 0, text
    assert read_provenance(out)["cfg_scale"] == 2


# A solver of its own

def test_a_model_is_tuned_and_then_sampled_with_its_own_solver(small, tmp_path, mfm):
    folder, out = tmp_path / "model", tmp_path / "one.npz"
    shutil.copytree(small, folder)
    code, text = mfm("tune", "--model", folder, "--steps", 3, "--each-way", 0, "--iterations", 2, "--pairs", 8)
    assert code == 0
    assert re.search(r"3 steps from noise to image: [\d.]+ dB to the exact flow before, [\d.]+ after", text)
    assert load_model(folder).sha256 == load_model(small).sha256
    code, text = mfm("sample", "sweller", "--model", folder, "--n", 1, "--steps", 3, "--out", out)
    p = read_provenance(out)
    assert code == 0 and p["solver"] == "tuned" and p["grid"].startswith("tuned:") and p["nfe"] == 3


def test_a_synonym_is_answered_with_what_was_understood(tmp_path, mfm):
    code, text = mfm("sample", "paclitaxel", "--n", 1, "--steps", 1, "--out", tmp_path / "one.png")
    assert code == 0 and "paclitaxel is taxol here." in text
    assert read_provenance(tmp_path / "one.png")["perturbation"] == "taxol"


# What is refused

@pytest.mark.parametrize("args,message", [
    (["train", "--data", "nowhere"], "There is no data folder 'nowhere'."),
    (["train", "--data", "{own}", "--steps", "0"], "--steps must be a whole number from 1"),
    (["train", "--data", "{own}", "--backbone", "XXL/8"], "Unknown model size 'XXL'"),
    (["train", "--data", "{own}", "--backbone", "S/3"], "must be 2, 4 or 8 pixels"),
    (["train", "--data", "{own}", "--coupling", "tight"], "Unknown coupling 'tight'"),
    (["train", "--data", "{own}", "--times", "often"], "Unknown distribution of timesteps 'often'"),
    (["train", "--data", "{own}", "--scale", "accumulate=7"], "A batch of 64 images is not a multiple of the 7 parts"),
    (["train", "--data", "{own}", "--scale", "shards=2"], "Unknown setting of scale 'shards'"),
    (["plan", "--gpus", "3"], "A batch of 256 images is not a multiple of the 3 parts"),
    (["plan", "--accelerator", "abacus"], "Unknown accelerator 'abacus'"),
    (["sample", "aspirin"], "Unknown perturbation 'aspirin'"),
    (["sample", "taxol", "--dose", "1e6"], "it saw 0.3, 1, 3 µM, and 0.03 to 30 µM is allowed."),
    (["sample", "taxol", "--n", "10000"], "--n must be a whole number from 1 to 64"),
    (["sample", "taxol", "--steps", "0"], "Steps must be a whole number from 1 to 200"),
    (["sample", "taxol", "--solver", "magic"], "Unknown solver 'magic'"),
    (["sample", "taxol", "--solver", "tuned", "--steps", "7"], "This model has no tuned solver of 7 steps"),
    (["sample", "taxol", "--grid", "sine"], "Unknown time grid 'sine'"),
    (["tune", "--model", "{own}"], "is not a model folder"),
    (["tune", "--model", "{bundled}", "--steps", "2"], "Steps of a tuned solver must be a whole number from 3 to 64"),
    (["sample", "taxol", "--out", "cells.gif"], "--out must end in .csv.zip, .npz, .ome-tiff.zip, .png, not '.gif'"),
    (["sample", "taxol", "--out", "nowhere/cells.png"], "'cells.png' does not"),
    (["sample", "DMSO", "--n", "1", "--steps", "1", "--out", "cells.csv.zip"], "There is nothing to compare"),
    (["screen", "{own}/list.txt", "--out", "{own}/list.txt"], "cannot be read or written"),
    (["serve", "--model", "{own}"], "is not a model folder: it has no config.json."),
    (["serve", "--port", "70000"], "The port must be a whole number from 1 to 65,535"),
    (["evaluate", "--model", "{bundled}", "--data", "{own}"],
     "judged on cells it has not seen; the data have none in the split iid."),
    (["evaluate", "--model", "{bundled}", "--data", "{own}", "--space", "inception=none.pth"], "'none.pth' is no file"),
    (["evaluate", "--model", "{bundled}", "--data", "{own}", "--protocol", "mine"], "Unknown protocol 'mine'"),
])
def test_what_is_refused_is_refused_in_one_line(own_folder, tmp_path, monkeypatch, mfm, args, message):
    monkeypatch.chdir(tmp_path)
    code, text = mfm(*(a.format(own=own_folder, bundled=bundled) for a in args))
    last = text.strip().splitlines()[-1]
    assert code == 2 and last.startswith("mfm: ") and message in last
    assert not list(tmp_path.iterdir())      # nothing half-written


# What the machine cannot do

somewhere = os.path.join(tempfile.gettempdir(), "somewhere", "model.safetensors.part")
machine_table = [      # what is raised inside -> what is said
    (PermissionError(errno.EACCES, "Permission denied", somewhere), "'model.safetensors' cannot be read or written: P"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", somewhere), "'model.safetensors' cannot be read or written: I"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", somewhere), "'model.safetensors' cannot be read or "),
    (OSError(errno.ENOSPC, "No space left on device", somewhere), "'model.safetensors' cannot be read or written: N"),
    (OSError(errno.ENOSPC, "No space left on device"), "A file cannot be read or written: No space left on device."),
    (OSError("4096 requested and 512 written"), "A file cannot be read or written: the disk may be full."),
    (shutil.Error([("a", somewhere, f"[Errno 28] No space left on device: '{somewhere}'")]),
     "A file cannot be read or written: No space left on device."),
    (MemoryError(), "There is not enough memory for this;"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "There is not enough memory for this;"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), "There is not en"),
]


@pytest.mark.parametrize("error, said", machine_table, ids=lambda v: str(v)[:40])
def test_each_thing_the_machine_cannot_do_has_its_sentence(mfm, monkeypatch, tmp_path, error, said):
    def fail(*args, **kwargs): raise error
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "load", fail)
    code, text = mfm("sample", "taxol")
    assert code == 2 and text.startswith(f"mfm: {said}") and len(text.splitlines()) == 1
    assert tempfile.gettempdir() not in text and not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("a"), RuntimeError("a"), OSError("a"), ImportError("a")])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, tmp_path, error):
    def fail(*args, **kwargs): raise error
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "load", fail)
    with pytest.raises(type(error)): cli.main(["sample", "taxol"])


@pytest.mark.parametrize("args", [
    ["train", "--data", "{own}", "--out", "{own}/list.txt/run"], ["tune", "--model", "{own}/list.txt/model"],
    ["evaluate", "--data", "{own}", "--model", "{own}/list.txt"],
    ["finetune", "--data", "{own}", "--model", "{own}/list.txt"],
    ["screen", "{own}/list.txt", "--out", "{own}/list.txt"],
    ["space", "--to", "lab/page", "--dry-run", "{own}/list.txt/a"]])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(own_folder, mfm, monkeypatch, args):
    def fail(*args, **kwargs): raise AssertionError("the work began")
    for work in ("load", "load_model", "read_cells", "write_space"): monkeypatch.setattr(cli, work, fail)
    code, text = mfm(*(a.format(own=own_folder) for a in args))
    assert code == 2 and text == "mfm: 'list.txt' cannot be read or written: Not a directory.\n"


@pytest.mark.parametrize("encoding", ["cp932", "ascii", "latin-1", "cp1252"])
def test_a_screen_is_told_on_any_code_page(tmp_path, monkeypatch, encoding):
    (tmp_path / "a.smi").write_text("CCO 5000 uM\nCCO 1 uM\n")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as end:
        cli.main(["screen", str(tmp_path / "a.smi"), "--out", str(tmp_path / "out"), "--cells", "1", "--steps", "1"])
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    micro = dict(cp932="μM", ascii="uM").get(encoding, "µM")
    assert end.value.code == 0 and micro in text and "Refused line 1" in text


def test_a_list_on_standard_input_is_utf8_whatever_the_code_page(monkeypatch, mfm):
    def source_of(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "cp932"))
        return cli.read_standard_input()
    assert source_of("\ufeffCCO 5 µM\r\n".encode()) == "CCO 5 µM\n"
    with pytest.raises(ValueError, match="Standard input is not UTF-8: it has the byte 0xb5."):
        source_of("CCO 5 µM".encode("latin-1"))


# Serving

def test_a_port_in_use_is_refused_in_one_line():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = run("serve", "--port", port, env={**os.environ, "GRADIO_SERVER_NAME": "127.0.0.1"})
    assert done.returncode == 2 and f"mfm: Port {port} is in use; name a free one." in done.stderr, done.stderr


def test_app_py_serves_the_page_in_spite_of_proxies_and_code_page():
    named = {k: v for k, v in os.environ.items() if k.lower() not in ("no_proxy", "gradio_server_name")}
    proxies = dict(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", ALL_PROXY="socks5://127.0.0.1:9")
    settings = dict(PYTHONUNBUFFERED="1", PYTHONIOENCODING="ascii", GRADIO_SERVER_NAME="")
    process = subprocess.Popen([sys.executable, "app.py"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env=named | proxies | settings)
    try:
        url = next(m[0] for line in process.stdout if (m := re.search(r"http://127\.0\.0\.1:\d+", line)))
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"Watch a cell respond" in direct.open(url, timeout=30).read()
    finally:
        process.kill()
        process.wait()


def test_the_entry_point_is_installed():
    assert shutil.which("mfm", path=str(Path(sys.executable).parent)), "pip install -e . makes the command `mfm`"


def test_the_help_names_what_the_tools_need(mfm):
    code, text = mfm("serve", "--help")
    assert code == 0 and "pip install -e '.[mcp]'" in " ".join(text.split())


def test_a_process_that_ends_in_the_middle_of_sampling_ends_cleanly():
    code = ("from mfm_app import engine, sampling; "
            "request = engine.Request('taxol', seeds=range(32), sampling=sampling.Sampling(steps=50)); "
            "steps = engine.load().stream(request); next(steps); next(steps)")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and "terminate" not in ended.stderr, ended.stderr
