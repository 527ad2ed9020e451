"Every notebook runs, each in a process of its own, as `nbdev_test` would run it."
import os
import re
import signal
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
settings = ConfigParser(delimiters=["="])
settings.read(root / "settings.ini", encoding="utf-8")
skipped = settings["DEFAULT"]["tst_flags"].split()      # cells marked so run only when asked for

run_one = """
import sys
from pathlib import Path
from nbdev.test import test_nb
path, root, skip, force = sys.argv[1:]
ok, _ = test_nb(Path(path), skip.split(), force.split(), basepath=root)
sys.exit(not ok)
"""


def run(path, force="", seconds=120):
    "Run a notebook in its own folder; fail with the cell and its error."
    process = subprocess.Popen([sys.executable, "-c", run_one, str(path), str(root), " ".join(skipped), force], cwd=path.parent,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try: said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{path.name} took longer than {seconds} s", pytrace=False)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    if process.returncode: pytest.fail(f"{path.name} failed\n{plain[-6000:]}", pytrace=False)


def name(path): return path.relative_to(root / "nbs").as_posix()


@pytest.mark.parametrize("path", notebooks, ids=name)
def test_notebook_runs(path): run(path)


@pytest.mark.parametrize("path, flag", [
    pytest.param(path, flag, marks=getattr(pytest.mark, flag), id=f"{name(path)} {flag}")
    for path in notebooks for flag in skipped if f'"#| {flag}' in path.read_text(encoding="utf-8")])
def test_notebook_runs_with_the_cells_that_are_left_out_otherwise(path, flag): run(path, flag, 1800)
