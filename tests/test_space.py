"A Space in a folder and on the Hub: what it holds, what it refuses, and whether it runs where nothing but its requirements is installed."
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import left_for_good, typed
from hub_standin import reader, standin, writer
from mfm_app.cli import main
from mfm_app.core import InputError
from mfm_app.finetune import drawn_model
from mfm_app.hub import bundled, save_model
from mfm_app.space import made_here, upload_space, write_space

seconds = 1000     # Playwright counts in milliseconds
root = Path(__file__).resolve().parent.parent


# What is in it

@pytest.fixture(scope="module")
def space(tmp_path_factory): return write_space(tmp_path_factory.mktemp("space") / "page", "lab/page")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "A model folder, with more in it than a model."
    folder, model = tmp_path_factory.mktemp("own") / "mine", drawn_model()
    save_model(folder, model.net, model.config)
    (folder / "notes.txt").write_text("private")
    (folder / "training.pt").write_bytes(bytes(10))
    return folder


def front(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1]), text.split("---\n", 2)[2]


def files(folder): return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def test_it_has_the_page_the_package_and_the_bundled_model_and_nothing_idle(space):
    there = files(space)
    package = {p.relative_to(root).as_posix() for p in (root / "mfm_app").rglob("*") if p.is_file()}
    idle = {n for n in package if "__pycache__" in n or "/simulated/" in n or n.endswith((".pyi", "_modidx.py"))}
    assert set(there) == {"app.py", "README.md", "requirements.txt", "packages.txt"} | (package - idle)
    assert {n for n, size in there.items() if size > 1e6} == {"mfm_app/weights/bbbc021/model.safetensors"} and sum(there.values()) < 30e6
    for name in there: assert not (space / name).is_symlink()


def test_the_hub_can_read_what_it_is(space):
    said, text = front(space)
    assert said == said | dict(sdk="gradio", sdk_version=metadata.version("gradio"), app_file="app.py", license="apache-2.0", suggested_hardware="cpu-basic")
    assert said["colorFrom"] in (colours := {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}) and said["colorTo"] in colours
    assert len(said["short_description"]) <= 60 and re.fullmatch(r"3\.\d+(\.\d+)?", said["python_version"]) and all(isinstance(t, str) for t in said["tags"])
    for words in ("hypothesis, not a measurement", "CC-BY-4.0", "AstraZeneca", "Apache-2.0", "safety"): assert words in text


@pytest.mark.parametrize("title", ["Plain", "It's: a \"title\" # with {braces} - & *stars*", "☃ ünïcode", "- x", "null", "12"])
def test_any_title_is_read_back(tmp_path, title): assert front(write_space(tmp_path / "page", "lab/page", title=title))[0]["title"] == title


def test_pip_is_asked_for_what_the_package_imports_and_not_for_gradio(space):
    asked = {canonicalize_name(Requirement(line).name) for line in (space / "requirements.txt").read_text().splitlines()}
    assert "gradio" not in asked and not asked & {"pytest", "nbdev", "spaces"}
    there = metadata.packages_distributions()
    imported = {m for p in (space / "mfm_app").glob("*.py") for m in re.findall(r"^\s*(?:from|import) (\w+)", p.read_text(encoding="utf-8"), re.M)}
    needed = {canonicalize_name(d) for m in imported - set(sys.stdlib_module_names) for d in there.get(m, [])}
    assert {"torch", "rdkit", "timm", "tifffile", "ipyketcher"} <= needed
    assert needed - asked <= {"mfm-app", "gradio", "gradio-client", "starlette", "spaces", "torch-fidelity", "ipython"}      # itself, what comes with Gradio, and what the page does without


def test_zero_gpu_brings_spaces_first_and_a_python_it_has(tmp_path):
    folder = write_space(tmp_path / "page", "lab/page", kind="zero")
    said, text = front(folder)
    assert said["suggested_hardware"] == "zero-a10g" and said["python_version"] == "3.12.12" and "lent" in text
    lines = [line for line in (folder / "app.py").read_text().splitlines() if "import" in line]
    assert lines[0].startswith("import spaces") and "lent_engine" in lines[1]
    asked = {canonicalize_name(r.name): r for r in map(Requirement, (folder / "requirements.txt").read_text().splitlines())}
    assert "spaces" in asked and str(asked["torch"].specifier).startswith("==")      # one that is known to be supported there, and that the package allows
    for needed in map(Requirement, metadata.requires("mfm_app")):
        if needed.name in ("torch", "torchvision"): assert needed.specifier.contains(str(asked[needed.name].specifier).removeprefix("=="))


def test_no_file_knows_this_machine(space, own, tmp_path):
    mine = write_space(tmp_path / "page", "lab/page", own)
    for folder in (space, mine):
        for path in folder.rglob("*"):
            if path.suffix not in (".safetensors", ".npz") and path.is_file():
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"(?<![\w.~:/-])/(work|root|home|Users|tmp)/\w", text) and str(tmp_path) not in text and str(own) not in text, path.name


def test_a_model_of_ones_own_travels_without_what_lies_beside_it(own, tmp_path):
    folder = write_space(tmp_path / "page", "lab/page", own)
    assert {n for n in files(folder) if not n.startswith("mfm_app/")} == {"app.py", "README.md", "requirements.txt", "packages.txt", *(f"model/{n}" for n in ("config.json", "model.safetensors", "README.md"))}
    assert not [n for n in files(folder) if n.startswith("mfm_app/weights")] and 'with_name("model")' in (folder / "app.py").read_text()
    assert "Apache-2.0" in front(folder)[1] and "folder `model`" in front(folder)[1]


def test_a_former_space_is_written_anew_and_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "page").mkdir()
    write_space(tmp_path / "page", "lab/page")
    (tmp_path / "page/old.txt").write_text("of yesterday")
    write_space(tmp_path / "page", "lab/page", kind="zero")
    assert not (tmp_path / "page/old.txt").exists() and "spaces" in (tmp_path / "page/app.py").read_text() and [p.name for p in tmp_path.iterdir()] == ["page"]


# What is refused

bad = dict(no_user=dict(repo="page"), web=dict(repo="https://huggingface.co/spaces/lab/page"), branch=dict(repo="lab/page@dev"), climbing=dict(repo="../.."), no_name=dict(repo="lab/"), number=dict(repo=7),
           hardware=dict(kind="h100"), no_hardware=dict(kind=None), no_title=dict(title="  "), long_title=dict(title="x" * 81), two_lines=dict(title="a\nb"), hidden=dict(title="a\u202eb"),
           no_model=dict(model="nowhere"), no_folder=dict(model=Path("nowhere")), not_a_model=dict(model=Path(__file__).parent), kind_of_model=dict(model=7), offline=dict(model="lab/cells"))


@pytest.mark.parametrize("why", bad)
def test_what_cannot_be_a_space_is_refused_and_nothing_is_left(ask, tmp_path, why):
    assert isinstance(ask(write_space, **dict(folder=tmp_path / "page", repo="lab/page") | bad[why]), InputError)
    assert not list(tmp_path.iterdir())


def test_what_is_already_there_stays(ask, tmp_path):
    for name, make in dict(thesis=lambda p: (p.mkdir(), (p / "thesis.txt").write_text("x")), app=lambda p: (p.mkdir(), (p / "app.py").write_text("mine = 1")), note=lambda p: p.write_text("x")).items():
        make(at := tmp_path / name)
        before = sorted(p.as_posix() for p in tmp_path.rglob("*"))
        assert name in str(ask(write_space, at, "lab/page")) and sorted(p.as_posix() for p in tmp_path.rglob("*")) == before


def test_a_disk_that_is_full_leaves_the_former_space(ask, tmp_path, monkeypatch):
    write_space(tmp_path / "page", "lab/page")
    before = files(tmp_path)
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(shutil, "copyfile", full)
    assert "disk may be full" in str(ask(write_space, tmp_path / "page", "lab/page", kind="zero")) and files(tmp_path) == before
    monkeypatch.undo()
    replace = os.replace
    def busy(a, b):
        if Path(a).name == "fresh": raise OSError(16, "Device or resource busy")
        replace(a, b)
    monkeypatch.setattr(os, "replace", busy)
    assert "busy" in str(ask(write_space, tmp_path / "page", "lab/page", kind="zero")) and files(tmp_path) == before      # also where only the last step fails


def test_a_clone_keeps_its_history_and_where_one_stands_stays(ask, tmp_path, monkeypatch):
    write_space(tmp_path / "page", "lab/page")
    (tmp_path / "page/.git").mkdir()
    assert "git clone" in str(ask(write_space, tmp_path / "page", "lab/page")) and (tmp_path / "page/.git").is_dir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for here in (".", "..", tmp_path / "empty"): assert "folder you are in" in str(ask(write_space, here, "lab/page"))
    assert not list((tmp_path / "empty").iterdir())


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_space(tmp_path / "link", "lab/page")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there/app.py").is_file()


def test_a_model_in_a_folder_named_bundled_is_the_one_that_goes_along(own, tmp_path):
    mine = shutil.copytree(own, tmp_path / "bundled")
    folder = write_space(tmp_path / "page", "lab/page", mine)
    assert (folder / "model/model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes() and 'with_name("model")' in (folder / "app.py").read_text()


# On the Hub

@pytest.fixture
def hub():
    with standin(token=writer) as hub: yield hub


def on_hub(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_space_has_every_file_the_sdk_and_the_hardware(hub, space):
    assert upload_space("lab/page", kind="zero", private=True) == f"{hub.endpoint}/spaces/lab/page"
    about, there = hub.about("spaces/lab/page"), hub.repos["spaces/lab/page"]
    assert about.private and about.sdk == "gradio" and about.settings["hardware"] == "zero-a10g"
    assert set(there) - {".gitattributes"} == set(files(space)) and there["app.py"].startswith(made_here.encode()) and b"import spaces" in there["app.py"]
    assert there["mfm_app/weights/bbbc021/model.safetensors"] == (bundled / "model.safetensors").read_bytes()


def test_an_update_replaces_everything_and_must_be_asked_for(hub, own, ask):
    upload_space("lab/page")
    first = dict(hub.repos["spaces/lab/page"])
    assert "already" in str(ask(upload_space, "lab/page", own)) and hub.repos["spaces/lab/page"] == first
    upload_space("lab/page", own, update=True)
    there = hub.repos["spaces/lab/page"]
    assert "model/model.safetensors" in there and not [n for n in there if n.startswith("mfm_app/weights")] and b'with_name("model")' in there["app.py"]


def test_a_model_on_the_hub_is_named_not_copied(hub, own, tmp_path):
    commit = hub.add("lab/cells", {n: own / n for n in ("config.json", "model.safetensors", "README.md")}, tag="v1")
    for name, said in (("lab/cells", '"lab/cells"'), ("lab/cells@v1", '"lab/cells@v1"'), (f"lab/cells@{commit}", f'"lab/cells@{commit}"')):
        folder = write_space(tmp_path / "page", "lab/page", name)
        assert f"launch(load({said}))" in (folder / "app.py").read_text() and front(folder)[0]["models"] == ["lab/cells"] and "HF_TOKEN" in front(folder)[1]
        assert not [n for n in files(folder) if n.endswith(".safetensors")]


def test_what_is_somebody_elses_or_made_by_other_means_stays(hub, ask):
    hub.add("spaces/lab/thesis", {"app.py": b"mine = 1"})
    hub.add("spaces/taken/page", {"app.py": b"theirs = 1"})
    hub.add("spaces/lab/open", {"app.py": made_here.encode()})
    for repo, how, said in (("lab/thesis", dict(update=True), "other means"), ("lab/thesis", {}, "already"), ("taken/page", dict(update=True), "other means"), ("taken/new", {}, "may not"), ("lab/open", dict(update=True, private=True), "is public")):
        before = {k: dict(v) for k, v in hub.repos.items()}
        assert said in str(ask(upload_space, repo, **how)) and hub.repos == before, repo


@pytest.mark.parametrize("token, said", [(None, "needs a token"), (reader, "may not"), ("wrong", "not valid")])
def test_without_a_token_that_may_write_nothing_happens(ask, token, said):
    with standin(token=token) as hub: assert said in str(ask(upload_space, "lab/page")) and not hub.repos


@pytest.mark.parametrize("part, status, words", [("/api/", 500, "out of order"), ("/api/repos/create", 402, "plan"), ("/api/repos/create", 409, "the name is taken"), ("/api/repos/create", 403, "(Something is wrong here.)"), ("commit", 503, "out of order")])
def test_what_goes_wrong_on_the_hub_is_said(hub, ask, part, status, words):
    hub.fail(part, status)
    assert words in str(ask(upload_space, "lab/page")) and set(hub.repos.get("spaces/lab/page", {})) <= {".gitattributes"}
    assert len({h.path for h in hub.heard if "/commit/" in h.path}) <= 1      # in one piece or not at all


def test_a_space_that_was_left_empty_is_filled_and_one_of_other_files_is_not(hub, ask):
    hub.fail("commit", 503)
    ask(upload_space, "lab/page")
    hub.failures.clear()
    upload_space("lab/page")
    assert "app.py" in hub.repos["spaces/lab/page"]
    hub.add("spaces/lab/data", {"notes.txt": b"mine"})
    for update in (False, True): assert isinstance(ask(upload_space, "lab/data", update=update), InputError) and set(hub.repos["spaces/lab/data"]) == {"notes.txt"}


def test_without_a_network_or_while_offline_it_says_so(hub, ask, monkeypatch):
    hub.close()
    assert "cannot be reached" in str(ask(upload_space, "lab/page"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "ffline" in str(ask(upload_space, "lab/page"))


def exit_code(*args):
    try: main([str(a) for a in args])
    except SystemExit as stop: return stop.code


def test_the_command_writes_or_uploads_and_refuses_in_one_line(hub, tmp_path, capsys):
    assert not exit_code("space", "--to", "lab/page", "--dry-run", tmp_path / "page", "--hardware", "zero", "--title", "Cells: 1") and not hub.requests
    assert front(tmp_path / "page")[0]["title"] == "Cells: 1" and "nothing was uploaded" in capsys.readouterr().out
    assert not exit_code("space", "--to", "lab/page") and capsys.readouterr().out.strip().endswith("/spaces/lab/page")
    assert exit_code("space", "--to", "lab/page") == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line] == ["mfm: The Space lab/page is on the Hub already; change it with `--update`, or choose another name."]
    assert not exit_code("space", "--to", "lab/page", "--update")


# Where nothing but its requirements is installed

def installed_with(requirements:list)->set:
    "The distributions that come with requirements, all of which must be here and of a version that is allowed."
    todo, seen = [(Requirement(r), "") for r in requirements], set()
    while todo:
        one, extra = todo.pop()
        name = canonicalize_name(one.name)
        if one.marker and not any(one.marker.evaluate(default_environment() | dict(extra=e)) for e in extra.split(",")): continue
        assert one.specifier.contains(version := metadata.version(name), prereleases=True), f"{one} is asked for, {version} is here"
        wanted = ",".join(sorted(one.extras)) or ""
        if (name, wanted) in seen: continue
        seen.add((name, wanted))
        todo += [(Requirement(r), wanted) for r in metadata.requires(name) or []]
    return {name for name, _ in seen}


def clean_environment(space, at):
    "The Python of an environment that has what a Space asks for, and nothing else, not even pip; the files are borrowed from this one."
    venv.create(at, with_pip=False, symlinks=True)
    packages = next(at.glob("lib/python*/site-packages"))
    asked = [re.sub("^(torch(?:vision)?)==.*", r"\1", line) for line in (space / "requirements.txt").read_text().splitlines()]      # of these two the versions here will do
    names = installed_with([*asked, f"gradio=={front(space)[0]['sdk_version']}"])
    for name in names:
        distribution = metadata.distribution(name)
        for top in {p.parts[0] for p in distribution.files or [] if p.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists(): (packages / top).symlink_to(distribution.locate_file(top))
    return at / "bin/python"


@pytest.fixture(scope="module")
def environment(space, tmp_path_factory): return clean_environment(space, tmp_path_factory.mktemp("environment"))


def alone(folder, **more):
    "The environment variables of a process that shall find nothing of ours."
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SSL_CERT_FILE")}
    return kept | dict(HOME=str(folder), GRADIO_ANALYTICS_ENABLED="False") | more


def test_the_package_is_found_in_the_space_and_nowhere_else(space, environment, tmp_path):
    find = "import importlib.metadata as m, importlib.util as u, json; s = u.find_spec('mfm_app'); print(json.dumps([s and s.origin, sorted({d.metadata['Name'].lower() for d in m.distributions()})]))"
    for cwd, expected in ((space, str(space / "mfm_app/__init__.py")), (tmp_path, None)):
        origin, names = json.loads(subprocess.run([environment, "-c", find], cwd=cwd, env=alone(tmp_path), check=True, capture_output=True, text=True).stdout)
        assert origin == expected and not {"mfm-app", "mfm_app", "nbdev", "pytest", "playwright"} & set(names) and {"torch", "gradio", "rdkit"} <= set(names)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def running(folder, environment, home, **more):
    "The app of a Space as a process, as Spaces starts it: where to listen is in the environment."
    port, log = free_port(), home / "log.txt"
    env = alone(home, GRADIO_SERVER_NAME="0.0.0.0", GRADIO_SERVER_PORT=str(port), **more)
    with log.open("w") as f: process = subprocess.Popen([environment, "app.py"], cwd=folder, env=env, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
            except OSError: time.sleep(.2)
            else: break
        yield port
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def served(space, environment, tmp_path_factory):
    with running(space, environment, tmp_path_factory.mktemp("home")) as port: yield port


# Clicked through, as visitors meet it

def number(at, field, value): typed(at, f"#{field} input", value)


def drawn(at, viewer, button):
    at.click(button)
    at.wait_for_function("at => document.querySelector(at + ' .provenance').textContent", arg=viewer, timeout=60 * seconds)
    at.wait_for_function("at => /step (\\d+) of \\1$/.test(document.querySelector(at + ' .where').textContent)", arg=viewer)
    painted = at.locator(f"{viewer} .cell canvas").evaluate_all("all => all.map(c => Math.max(...c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 < 3)))")
    assert len(painted) == 4 and min(painted) > 20, "two cells, each with what it is compared to, and all are painted"
    return at.locator(f"{viewer} .provenance").text_content()


def explored(at):
    at.wait_for_selector("#dose .ticks button", timeout=60 * seconds)
    at.locator("button:visible", has_text="Sampling").click()
    number(at, "cells", 2), number(at, "steps", 2)
    said = drawn(at, "#viewer", "#generate")
    assert said.startswith("2 cells: ") and "midpoint in 2 steps, 3 network evaluations" in said and "Weights bbbc021 " in said
    at.wait_for_selector("#effects .maps .main-svg")


def treated(at):
    at.get_by_role("tab", name="Counterfactual").click()
    at.wait_for_selector("#cf-dose .ticks button:visible")
    at.locator("button:visible", has_text="Sampling").click()
    number(at, "cf-cells", 2), number(at, "cf-steps", 2)
    assert drawn(at, "#cf-viewer", "#cf-go").startswith("2 cells, experiment ")
    at.wait_for_selector("#cf-effects .maps .main-svg")


def screened(at):
    at.get_by_role("tab", name="Screen").click()
    at.wait_for_selector("#screen .hint")
    number(at, "screen-cells", 1)
    at.fill("#screen-list textarea", "CCO\ntaxol")
    at.press("#screen-list textarea", "Tab")
    at.click("#screen-go")
    at.wait_for_function("document.querySelector('#screen output').textContent.startsWith('All 2 done')", timeout=60 * seconds)
    at.wait_for_function("document.querySelector('#screen .plot .main-svg')")
    assert at.locator("#screen .table tbody tr").count() == 2


def read_about(at):
    at.get_by_role("tab", name="About").click()
    at.wait_for_selector("#about:visible")
    assert "AstraZeneca" in at.inner_text("#about")


def clicked_through(at):
    for tab in (explored, treated, screened, read_about): tab(at)


def test_in_a_clean_environment_every_tab_works(page, served):
    page.goto(f"http://127.0.0.1:{served}/")
    clicked_through(page)


@contextmanager
def answering(handler):
    "A web server in this process; yields its port."
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server.server_port
    finally: server.shutdown(), server.server_close()


def embedding(url):
    class Embedding(BaseHTTPRequestHandler):
        "A page of another site with the app in a frame, as the Hub shows it."
        def log_message(self, *args): pass
        def do_GET(self):
            allowed = "allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-same-origin allow-scripts"
            body = f'<!doctype html><title>Hub</title><link rel="icon" href="data:,"><iframe src="{url}" sandbox="{allowed}" style="width: 100%; height: 860px; border: 0"></iframe>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)
    return Embedding


no_storage = "if (location.hostname === '127.0.0.1') for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name, {get() { throw new DOMException('blocked', 'SecurityError'); }})"


def test_in_a_frame_of_another_site_with_storage_blocked_every_tab_works(page, served):
    page.add_init_script(no_storage)
    with answering(embedding(f"http://127.0.0.1:{served}/")) as port:
        page.goto(f"http://localhost:{port}/")
        page.wait_for_selector("iframe")
        frame = page.locator("iframe").element_handle().content_frame()
        assert frame.evaluate("() => { try { localStorage; return 'there'; } catch (e) { return e.name; } }") == "SecurityError" and frame.evaluate("window.top !== window")
        clicked_through(frame)
        frame.get_by_role("tab", name="Explore").click()
        frame.get_by_role("tab", name="Draw").click()
        frame.wait_for_selector("#editor iframe:not([hidden])", timeout=60 * seconds)      # the editor of molecules has started


def stripping(prefix, port, astray):
    class Stripping(BaseHTTPRequestHandler):
        "A proxy that takes the prefix off every path; what comes without it is noted in `astray`."
        def log_message(self, *args): pass
        def do_GET(self):
            if self.path == "/favicon.ico": return self.send_response(204), self.end_headers()      # asked for by the browser, of the host
            if not self.path.startswith(prefix + "/"):
                astray.append(self.path)
                return self.send_error(404)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            asked = http.client.HTTPConnection("127.0.0.1", port)
            asked.request(self.command, self.path.removeprefix(prefix), body, {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "accept-encoding")})
            got = asked.getresponse()
            self.send_response(got.status)
            for name, value in got.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"): self.send_header(name, value)
            self.end_headers()
            try:
                while part := got.read1(1 << 16): self.wfile.write(part)
            except (OSError, http.client.HTTPException): pass      # the visitor or the app has left
            finally: asked.close()
        do_POST = do_HEAD = do_GET
    return Stripping


def test_behind_a_path_prefix_every_tab_works(page, space, environment, tmp_path):
    astray = []
    with running(space, environment, tmp_path, GRADIO_ROOT_PATH="/lab/page") as behind, answering(stripping("/lab/page", behind, astray)) as port:
        page.goto(f"http://127.0.0.1:{port}/lab/page/")
        clicked_through(page)
        left_for_good(page)
    assert not astray


@pytest.mark.skipif(not importlib.util.find_spec("spaces"), reason="needs the library `spaces`")
def test_the_app_for_lent_gpus_runs_where_none_is_lent(page, tmp_path):
    folder = write_space(tmp_path / "page", "lab/page", kind="zero")
    with running(folder, clean_environment(folder, tmp_path / "environment"), tmp_path) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        explored(page)
        left_for_good(page)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "zero"])
def test_what_pip_installs_is_enough(page, tmp_path, kind):
    "Minutes and gigabytes: an environment as the Space would build it, for ZeroGPU with the PyTorch that it supports."
    folder, environment = write_space(tmp_path / "page", "lab/page", kind=kind), tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", "requirements.txt", f"gradio[oauth,mcp]=={front(folder)[0]['sdk_version']}"], cwd=folder, check=True, timeout=1800)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    with running(folder, python, tmp_path) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        clicked_through(page)
        left_for_good(page)
    shutil.rmtree(environment)
