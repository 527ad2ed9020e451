"Every notebook runs, each in a process of its own, as `nbdev_test` would run it."
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
settings = ConfigParser(delimiters=["="])
settings.read(root / "settings.ini", encoding="utf-8")
skipped = settings["DEFAULT"]["tst_flags"].split()      # cells marked so run only when asked for

# The processes are forked from one that has the libraries, which would take most of their time to import.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    ["mfm_app.cli", "mfm_app.space", "mfm_app.ui", "nbdev.test", "IPython", "matplotlib.pyplot", "accelerate",
     "scipy.stats", "skimage.feature.texture", "skimage.measure", "skimage.segmentation",
     "sklearn.discriminant_analysis", "sklearn.linear_model", "sklearn.metrics", "torchdiffeq"]
)


def run_notebook(path, flag, log, temporary):
    "The whole life of a process: run one notebook, its output in a file."
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2): os.dup2(output, descriptor)
    tempfile.tempdir = temporary
    os.chdir(path.parent)
    from nbdev.test import test_nb
    ok, _ = test_nb(path, skipped, flag.split(), basepath=root)
    sys.stdout.flush()
    os._exit(not ok)


def name(path): return path.relative_to(root / "nbs").as_posix()


every = [pytest.param(path, "", 120, id=name(path)) for path in notebooks]
every += [pytest.param(path, flag, 1800, id=f"{name(path)} {flag}", marks=getattr(pytest.mark, flag))
          for path in notebooks for flag in skipped if f'"#| {flag}' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path, flag, seconds", every)
def test_notebook_runs(path, flag, seconds, tmp_path):
    process = forks.Process(target=run_notebook, args=(path, flag, log := tmp_path / "log", str(tmp_path)))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    if late:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    output = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))[-6000:] if log.is_file() else ""
    if late: pytest.fail(f"{path.name} took longer than {seconds} s\n{output}", pytrace=False)
    if process.exitcode: pytest.fail(f"{path.name} failed\n{output}", pytrace=False)
