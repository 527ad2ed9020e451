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


def name(path): return path.relative_to(root / "nbs").as_posix()


every = [pytest.param(path, "", 120, id=name(path)) for path in notebooks]
every += [pytest.param(path, flag, 1800, id=f"{name(path)} {flag}", marks=getattr(pytest.mark, flag))
          for path in notebooks for flag in skipped if f'"#| {flag}' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path, flag, seconds", every)
def test_notebook_runs(path, flag, seconds):
    process = subprocess.Popen([sys.executable, "-c", run_one, str(path), str(root), " ".join(skipped), flag], cwd=path.parent,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try: said, slow = process.communicate(timeout=seconds)[0], False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, slow = process.communicate()[0], True
    said = re.sub(r"\x1b\[[0-9;]*m", "", said)[-6000:]
    if slow: pytest.fail(f"{path.name} took longer than {seconds} s\n{said}", pytrace=False)
    if process.returncode: pytest.fail(f"{path.name} failed\n{said}", pytrace=False)
