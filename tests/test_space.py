"A Space in a folder and on the Hub: its files, what is refused, and whether it runs with nothing but its requirements."
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
from hub_standin import colours, reader, standin, writer
from mfm_app.cli import main
from mfm_app.core import InputError
from mfm_app.finetune import random_model
from mfm_app.hub import bundled, save_model
from mfm_app.space import generated_marker, upload_space, write_space

seconds = 1000     # Playwright counts in milliseconds
root = Path(__file__).resolve().parent.parent
own_files = {"app.py", "README.md", "requirements.txt", "packages.txt"}      # beside the package
model_files = {"config.json", "model.safetensors", "README.md"}


# Its files

@pytest.fixture(scope="module")
def space(tmp_path_factory): return write_space(tmp_path_factory.mktemp("space") / "page", "lab/page")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "A model folder, with more in it than a model."
    folder, model = tmp_path_factory.mktemp("own") / "mine", random_model()
    save_model(folder, model.net, model.config)
    (folder / "notes.txt").write_text("private")
    (folder / "training.pt").write_bytes(bytes(10))
    return folder


def readme_of(folder):
    "The fields of its front matter, and the text after it."
    text = (folder / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1]), text.split("---\n", 2)[2]


def sizes_of(folder):
    "The bytes of each file, by its path."
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def app_of(folder): return (folder / "app.py").read_text(encoding="utf-8")
def requirements_of(folder): return list(map(Requirement, (folder / "requirements.txt").read_text().splitlines()))
def copied_weights(names): return [name for name in names if name.startswith("mfm_app/weights")]


def test_it_has_the_page_the_package_and_the_bundled_model_and_nothing_unused(space):
    sizes = sizes_of(space)
    package = {p.relative_to(root).as_posix() for p in (root / "mfm_app").rglob("*") if p.is_file()}
    unused = {n for n in package if "__pycache__" in n or "/simulated" in n or n.endswith((".pyi", "_modidx.py"))}
    assert set(sizes) == own_files | (package - unused)
    assert {n for n, size in sizes.items() if size > 1e6} == {
        "mfm_app/weights/bbbc021/model.safetensors", "mfm_app/static/real-bbbc021.webp"}
    assert sum(sizes.values()) < 30e6
    for name in sizes: assert not (space / name).is_symlink()


def test_the_hub_can_read_its_front_matter(space):
    fields, text = readme_of(space)
    assert fields == fields | dict(sdk="gradio", sdk_version=metadata.version("gradio"), app_file="app.py",
                                   license="apache-2.0", suggested_hardware="cpu-basic")
    assert {fields["colorFrom"], fields["colorTo"]} <= colours and len(fields["short_description"]) <= 60
    assert re.fullmatch(r"3\.\d+(\.\d+)?", fields["python_version"]) and all(isinstance(t, str) for t in fields["tags"])
    for words in ("hypothesis, not a measurement", "CC-BY-4.0", "AstraZeneca", "Apache-2.0", "safety"):
        assert words in text


@pytest.mark.parametrize("title", [
    "Plain", "It's: a \"title\" # with {braces} - & *stars*", "☃ ünïcode", "- x", "null", "12"])
def test_any_title_is_read_back(tmp_path, title):
    assert readme_of(write_space(tmp_path / "page", "lab/page", title=title))[0]["title"] == title


def test_pip_installs_what_the_package_imports_but_not_gradio(space):
    required = {canonicalize_name(r.name) for r in requirements_of(space)}
    assert "gradio" not in required and not required & {"pytest", "nbdev", "spaces"}
    distributions = metadata.packages_distributions()
    sources = [p.read_text(encoding="utf-8") for p in (space / "mfm_app").glob("*.py")]
    imported = {m for source in sources for m in re.findall(r"^\s*(?:from|import) (\w+)", source, re.M)}
    third_party = imported - set(sys.stdlib_module_names)
    needed = {canonicalize_name(d) for m in third_party for d in distributions.get(m, [])}
    assert {"torch", "rdkit", "timm", "tifffile", "ipyketcher"} <= needed
    with_gradio = {"gradio", "gradio-client", "httpx", "starlette", "spaces"}
    optional = {"torch-fidelity", "umap-learn", "ipython"}
    assert needed - required <= {"mfm-app"} | with_gradio | optional


def test_on_zerogpu_spaces_is_imported_first_and_python_is_one_it_has(tmp_path):
    folder = write_space(tmp_path / "page", "lab/page", kind="zero")
    fields, text = readme_of(folder)
    assert fields["suggested_hardware"] == "zero-a10g" and fields["python_version"] == "3.12.12" and "ZeroGPU" in text
    imports = [line for line in app_of(folder).splitlines() if "import" in line]
    assert imports[0].startswith("import spaces") and "zerogpu_engine" in imports[1]
    required = {canonicalize_name(r.name): r.specifier for r in requirements_of(folder)}
    assert "spaces" in required and str(required["torch"]).startswith("==")      # a version that is supported there,
    for needed in map(Requirement, metadata.requires("mfm_app")):                # and that the package allows
        if needed.name not in ("torch", "torchvision"): continue
        assert needed.specifier.contains(str(required[needed.name]).removeprefix("=="))


def test_no_file_names_this_machine(space, own, tmp_path):
    with_own = write_space(tmp_path / "page", "lab/page", own)
    machine_path = re.compile(r"(?<![\w.~:/-])/(work|root|home|Users|tmp)/\w")
    for folder in (space, with_own):
        for path in folder.rglob("*"):
            if path.suffix in (".safetensors", ".npz", ".gz", ".webp") or not path.is_file(): continue
            text = path.read_text(encoding="utf-8")
            assert not machine_path.search(text) and str(tmp_path) not in text and str(own) not in text, path.name


@pytest.mark.parametrize("name", ["simulated", "simulated-genes"])
def test_another_model_of_the_package_goes_by_its_name_and_without_the_others(tmp_path, name):
    folder = write_space(tmp_path / "page", "lab/page", name)
    assert set(copied_weights(sizes_of(folder))) == {f"mfm_app/weights/{name}/{file}" for file in model_files}
    assert f'load("{name}")' in app_of(folder) and not (folder / "model").exists()
    assert not list(folder.rglob("real-bbbc021*")) and "sample of real cells" not in readme_of(folder)[1]
    assert "comes with the package" in readme_of(folder)[1] and sum(sizes_of(folder).values()) < 3.2e6


def test_a_model_folder_is_copied_without_its_other_files(own, tmp_path):
    folder = write_space(tmp_path / "page", "lab/page", own)
    names = sizes_of(folder)
    assert {n for n in names if not n.startswith("mfm_app/")} == own_files | {f"model/{n}" for n in model_files}
    assert not copied_weights(names) and 'with_name("model")' in app_of(folder)
    assert "Apache-2.0" in readme_of(folder)[1] and "folder `model`" in readme_of(folder)[1]


def test_an_earlier_space_is_replaced_and_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "page").mkdir()
    write_space(tmp_path / "page", "lab/page")
    (tmp_path / "page/old.txt").write_text("of yesterday")
    write_space(tmp_path / "page", "lab/page", kind="zero")
    assert not (tmp_path / "page/old.txt").exists() and "spaces" in app_of(tmp_path / "page")
    assert [p.name for p in tmp_path.iterdir()] == ["page"]


# What is refused

wrong_options = dict(
    no_user=dict(repo="page"), web=dict(repo="https://huggingface.co/spaces/lab/page"), number=dict(repo=7),
    branch=dict(repo="lab/page@dev"), climbing=dict(repo="../.."), no_name=dict(repo="lab/"),
    hardware=dict(kind="h100"), no_hardware=dict(kind=None), no_title=dict(title="  "), long_title=dict(title="x" * 81),
    two_lines=dict(title="a\nb"), hidden=dict(title="a\u202eb"), no_model=dict(model="nowhere"),
    no_folder=dict(model=Path("nowhere")), not_a_model=dict(model=Path(__file__).parent), kind_of_model=dict(model=7),
    offline=dict(model="lab/cells"))


@pytest.mark.parametrize("name", wrong_options)
def test_wrong_options_are_refused_and_nothing_is_written(ask, tmp_path, name):
    options = dict(folder=tmp_path / "page", repo="lab/page") | wrong_options[name]
    assert isinstance(ask(write_space, **options), InputError)
    assert not list(tmp_path.iterdir())


foreign = dict(
    thesis=lambda p: (p.mkdir(), (p / "thesis.txt").write_text("x")),
    app=lambda p: (p.mkdir(), (p / "app.py").write_text("mine = 1")), note=lambda p: p.write_text("x"))


def test_other_files_and_folders_stay(ask, tmp_path):
    for name, make in foreign.items():
        make(path := tmp_path / name)
        before = sorted(p.as_posix() for p in tmp_path.rglob("*"))
        assert name in str(ask(write_space, path, "lab/page"))
        assert sorted(p.as_posix() for p in tmp_path.rglob("*")) == before


def test_a_disk_that_is_full_leaves_the_earlier_space(ask, tmp_path, monkeypatch):
    write_space(tmp_path / "page", "lab/page")
    before = sizes_of(tmp_path)
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(shutil, "copyfile", full)
    assert "No space left on device" in str(ask(write_space, tmp_path / "page", "lab/page", kind="zero"))
    assert sizes_of(tmp_path) == before
    monkeypatch.undo()
    replace = os.replace
    def busy(a, b):
        if Path(a).name == "fresh": raise OSError(16, "Device or resource busy")
        replace(a, b)
    monkeypatch.setattr(os, "replace", busy)
    assert "busy" in str(ask(write_space, tmp_path / "page", "lab/page", kind="zero"))
    assert sizes_of(tmp_path) == before      # also where only the last step fails


def test_a_git_clone_and_the_current_folder_stay(ask, tmp_path, monkeypatch):
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


def test_a_model_in_a_folder_named_bundled_is_copied(own, tmp_path):
    folder = write_space(tmp_path / "page", "lab/page", shutil.copytree(own, tmp_path / "bundled"))
    assert (folder / "model/model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
    assert 'with_name("model")' in app_of(folder)


# On the Hub

key = "spaces/lab/page"


@pytest.fixture
def hub():
    with standin(token=writer) as hub: yield hub


def test_a_new_space_has_every_file_the_sdk_and_the_hardware(hub, space):
    assert upload_space("lab/page", kind="zero", private=True) == f"{hub.endpoint}/{key}"
    repository, files = hub.repository(key), hub.files[key]
    assert repository.private and repository.sdk == "gradio" and repository.settings["hardware"] == "zero-a10g"
    assert set(files) - {".gitattributes"} == set(sizes_of(space))
    assert files["app.py"].startswith(generated_marker.encode()) and b"import spaces" in files["app.py"]
    weights = (bundled / "model.safetensors").read_bytes()
    assert files["mfm_app/weights/bbbc021/model.safetensors"] == weights


def test_an_update_replaces_everything_and_must_be_asked_for(hub, own, ask):
    upload_space("lab/page")
    first = dict(hub.files[key])
    assert "already" in str(ask(upload_space, "lab/page", own)) and hub.files[key] == first
    upload_space("lab/page", own, update=True)
    files = hub.files[key]
    assert "model/model.safetensors" in files and not copied_weights(files) and b'with_name("model")' in files["app.py"]


def test_a_model_on_the_hub_is_named_not_copied(hub, own, tmp_path):
    commit = hub.add("lab/cells", {name: own / name for name in model_files}, tag="v1")
    for name in ("lab/cells", "lab/cells@v1", f"lab/cells@{commit}"):
        folder = write_space(tmp_path / "page", "lab/page", name)
        fields, text = readme_of(folder)
        assert f'launch(load("{name}"))' in app_of(folder) and fields["models"] == ["lab/cells"] and "HF_TOKEN" in text
        assert not [path for path in sizes_of(folder) if path.endswith(".safetensors")]


@pytest.mark.parametrize("repo, options, words", [
    ("lab/thesis", dict(update=True), "other means"), ("lab/thesis", {}, "already"),
    ("taken/page", dict(update=True), "other means"), ("taken/new", {}, "may not"),
    ("lab/open", dict(update=True, private=True), "is public")])
def test_a_space_of_somebody_else_or_made_by_other_means_stays(hub, ask, repo, options, words):
    hub.add("spaces/lab/thesis", {"app.py": b"mine = 1"})
    hub.add("spaces/taken/page", {"app.py": b"theirs = 1"})
    hub.add("spaces/lab/open", {"app.py": generated_marker.encode()})
    before = {k: dict(v) for k, v in hub.files.items()}
    assert words in str(ask(upload_space, repo, **options)) and hub.files == before


@pytest.mark.parametrize("token, words", [(None, "needs a token"), (reader, "may not"), ("wrong", "not valid")])
def test_without_a_token_that_may_write_nothing_is_uploaded(ask, token, words):
    with standin(token=token) as hub: assert words in str(ask(upload_space, "lab/page")) and not hub.files


@pytest.mark.parametrize("part, status, words", [
    ("/api/", 500, "out of order"), ("/api/repos/create", 402, "plan"), ("/api/repos/create", 409, "the name is taken"),
    ("/api/repos/create", 403, "(Something is wrong here.)"), ("commit", 503, "out of order")])
def test_an_error_of_the_hub_is_reported(hub, ask, part, status, words):
    hub.fail(part, status)
    assert words in str(ask(upload_space, "lab/page")) and set(hub.files.get(key, {})) <= {".gitattributes"}
    assert len({r.path for r in hub.log if "/commit/" in r.path}) <= 1      # all files at once or none


def test_an_empty_space_is_filled_and_one_of_other_files_is_not(hub, ask):
    hub.fail("commit", 503)
    ask(upload_space, "lab/page")
    hub.failures.clear()
    upload_space("lab/page")
    assert "app.py" in hub.files[key]
    hub.add("spaces/lab/data", {"notes.txt": b"mine"})
    for update in (False, True):
        assert isinstance(ask(upload_space, "lab/data", update=update), InputError)
        assert set(hub.files["spaces/lab/data"]) == {"notes.txt"}


def test_without_a_network_or_offline_the_upload_is_refused(hub, ask, monkeypatch):
    hub.close()
    assert "cannot be reached" in str(ask(upload_space, "lab/page"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "ffline" in str(ask(upload_space, "lab/page"))


def exit_code(*args):
    try: main([str(a) for a in args])
    except SystemExit as stop: return stop.code


def test_the_command_writes_or_uploads_and_refuses_in_one_line(hub, tmp_path, capsys):
    command = "space", "--to", "lab/page"
    assert not exit_code(*command, "--dry-run", tmp_path / "page", "--hardware", "zero", "--title", "Cells: 1")
    assert not hub.requests
    assert readme_of(tmp_path / "page")[0]["title"] == "Cells: 1" and "nothing was uploaded" in capsys.readouterr().out
    assert not exit_code(*command) and capsys.readouterr().out.strip().endswith("/spaces/lab/page")
    assert exit_code(*command) == 2
    message = "The Space lab/page is on the Hub already; change it with `--update`, or choose another name."
    assert [line for line in capsys.readouterr().err.splitlines() if line] == [f"mfm: {message}"]
    assert not exit_code(*command, "--update")


# With nothing but its requirements

def installed_with(requirements:list)->set:
    "The distributions that requirements lead to; each must be installed here in a version that is allowed."
    todo, seen = [(Requirement(r), "") for r in requirements], set()
    while todo:
        required, extra = todo.pop()
        name, marker = canonicalize_name(required.name), required.marker
        applies = lambda extra: marker.evaluate(default_environment() | dict(extra=extra))
        if marker and not any(map(applies, extra.split(","))): continue
        version = metadata.version(name)
        assert required.specifier.contains(version, prereleases=True), f"{required} is needed, {version} is installed"
        wanted = ",".join(sorted(required.extras)) or ""
        if (name, wanted) in seen: continue
        seen.add((name, wanted))
        todo += [(Requirement(r), wanted) for r in metadata.requires(name) or []]
    return {name for name, _ in seen}


def clean_environment(space, folder):
    "The Python of an environment with a Space's requirements and nothing else, not even pip; its files are links."
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    lines = (space / "requirements.txt").read_text().splitlines()
    unpinned = [re.sub("^(torch(?:vision)?)==.*", r"\1", line) for line in lines]      # the versions here are accepted
    for name in installed_with([*unpinned, f"gradio=={readme_of(space)[0]['sdk_version']}"]):
        distribution = metadata.distribution(name)
        for top in {p.parts[0] for p in distribution.files or [] if p.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists(): (packages / top).symlink_to(distribution.locate_file(top))
    return folder / "bin/python"


@pytest.fixture(scope="module")
def environment(space, tmp_path_factory): return clean_environment(space, tmp_path_factory.mktemp("environment"))


def isolated(home, **variables):
    "The environment variables of a process that must find nothing of this project."
    inherited = "PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SSL_CERT_FILE"
    return {k: v for k, v in os.environ.items() if k in inherited} | dict(
        HOME=str(home), GRADIO_ANALYTICS_ENABLED="False") | variables


find_package = """
import importlib.metadata as metadata, importlib.util, json
spec = importlib.util.find_spec('mfm_app')
names = sorted({d.metadata['Name'].lower() for d in metadata.distributions()})
print(json.dumps([spec and spec.origin, names]))
"""


def test_the_package_is_found_in_the_space_and_nowhere_else(space, environment, tmp_path):
    not_needed = {"mfm-app", "mfm_app", "nbdev", "pytest", "playwright"}
    for cwd, expected in ((space, str(space / "mfm_app/__init__.py")), (tmp_path, None)):
        done = subprocess.run([environment, "-c", find_package], cwd=cwd, env=isolated(tmp_path), check=True,
                              capture_output=True, text=True)
        origin, names = json.loads(done.stdout)
        assert origin == expected and not not_needed & set(names) and {"torch", "gradio", "rdkit"} <= set(names)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, process, log):
    "Until the app answers."
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        try: return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
        except OSError: time.sleep(.2)


@contextmanager
def running(folder, environment, home, **variables):
    "The app of a Space as a process, started as Spaces does: where to listen is in the environment."
    port, log = free_port(), home / "log.txt"
    env = isolated(home, GRADIO_SERVER_NAME="0.0.0.0", GRADIO_SERVER_PORT=str(port), **variables)
    with log.open("w") as f:
        process = subprocess.Popen([environment, "app.py"], cwd=folder, env=env, stdout=f, stderr=subprocess.STDOUT,
                                   start_new_session=True)
    try:
        wait_for(port, process, log)
        yield port
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def served(space, environment, tmp_path_factory):
    with running(space, environment, tmp_path_factory.mktemp("home")) as port: yield port


# Clicked through, as visitors see it

finished = "viewer => /step (\\d+) of \\1$/.test(document.querySelector(viewer + ' .where').textContent)"
has_provenance = "viewer => document.querySelector(viewer + ' .provenance').textContent"
brightest = """canvases => canvases.map(canvas => Math.max(...canvas.getContext('2d')
    .getImageData(0, 0, canvas.width, canvas.height).data.filter((value, i) => i % 4 < 3)))"""      # without alpha


def enter(page, field, value): typed(page, f"#{field} input", value)


def sampled(page, viewer, button):
    "Click a button, wait until its cells are complete and return their provenance."
    page.click(button)
    page.wait_for_function(has_provenance, arg=viewer, timeout=60 * seconds)
    page.wait_for_function(finished, arg=viewer)
    painted = page.locator(f"{viewer} .cell canvas").evaluate_all(brightest)
    assert len(painted) == 4 and min(painted) > 20, "two cells, each with what it is compared to, and all are painted"
    return page.locator(f"{viewer} .provenance").text_content()


def use_explore(page):
    page.wait_for_selector("#dose .ticks button", timeout=60 * seconds)
    page.locator("button:visible", has_text="Sampling").click()
    enter(page, "cells", 2), enter(page, "steps", 2)
    provenance = sampled(page, "#viewer", "#generate")
    assert provenance.startswith("2 cells: ") and "Weights bbbc021 " in provenance
    assert "multistep2 in 2 steps, 2 network evaluations" in provenance
    page.wait_for_selector("#effects .maps .main-svg")


def use_counterfactual(page):
    page.get_by_role("tab", name="Counterfactual").click()
    page.wait_for_selector("#cf-dose .ticks button:visible")
    page.locator("button:visible", has_text="Sampling").click()
    enter(page, "cf-cells", 2), enter(page, "cf-steps", 2)
    assert sampled(page, "#cf-viewer", "#cf-go").startswith("2 cells, experiment ")
    page.wait_for_selector("#cf-effects .maps .main-svg")


def use_screen(page):
    page.get_by_role("tab", name="Screen").click()
    page.wait_for_selector("#screen .hint")
    enter(page, "screen-cells", 1)
    page.fill("#screen-list textarea", "CCO\ntaxol")
    page.press("#screen-list textarea", "Tab")
    page.click("#screen-go")
    done = "document.querySelector('#screen output').textContent.startsWith('All 2 done')"
    page.wait_for_function(done, timeout=60 * seconds)
    page.wait_for_function("document.querySelector('#screen .plot .main-svg')")
    assert page.locator("#screen .table tbody tr").count() == 2


def use_about(page):
    page.get_by_role("tab", name="About").click()
    page.wait_for_selector("#about:visible")
    assert "AstraZeneca" in page.inner_text("#about")


def use_every_tab(page):
    for use in (use_explore, use_counterfactual, use_screen, use_about): use(page)


def test_in_a_clean_environment_every_tab_works(page, served):
    page.goto(f"http://127.0.0.1:{served}/")
    use_every_tab(page)


@contextmanager
def answering(handler):
    "A web server in this process; yields its port."
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server.server_port
    finally: server.shutdown(), server.server_close()


sandbox = ("allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-same-origin "
           "allow-scripts")
frame_page = """<!doctype html><title>Hub</title><link rel="icon" href="data:,">
<iframe src="{url}" sandbox="{sandbox}" style="width: 100%; height: 860px; border: 0"></iframe>"""


def embedding(url):
    class Embedding(BaseHTTPRequestHandler):
        "A page of another site with the app in a frame, as the Hub shows it."
        def log_message(self, *args): pass
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(frame_page.format(url=url, sandbox=sandbox).encode())
    return Embedding


no_storage = """if (location.hostname === '127.0.0.1') for (const name of ['localStorage', 'sessionStorage'])
    Object.defineProperty(window, name, {get() { throw new DOMException('blocked', 'SecurityError'); }})"""
storage_error = "() => { try { localStorage; return 'there'; } catch (e) { return e.name; } }"


def test_in_a_frame_of_another_site_with_storage_blocked_every_tab_works(page, served):
    page.add_init_script(no_storage)
    with answering(embedding(f"http://127.0.0.1:{served}/")) as port:
        page.goto(f"http://localhost:{port}/")
        page.wait_for_selector("iframe")
        frame = page.locator("iframe").element_handle().content_frame()
        assert frame.evaluate(storage_error) == "SecurityError" and frame.evaluate("window.top !== window")
        use_every_tab(frame)
        frame.get_by_role("tab", name="Explore").click()
        frame.get_by_role("tab", name="Draw").click()
        editor = "#editor iframe:not([hidden])"
        frame.wait_for_selector(editor, timeout=60 * seconds)      # the editor of molecules has started


def stripping(prefix, port, without_prefix):
    hop_by_hop = "connection", "transfer-encoding", "date", "server"

    class Stripping(BaseHTTPRequestHandler):
        "A proxy that removes the prefix of every path; paths that lack it are added to `without_prefix`."
        def log_message(self, *args): pass

        def do_GET(self):
            if self.path == "/favicon.ico": return self.send_response(204), self.end_headers()      # the browser's own
            if not self.path.startswith(prefix + "/"):
                without_prefix.append(self.path)
                return self.send_error(404)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "accept-encoding")}
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request(self.command, self.path.removeprefix(prefix), body, headers)
            self.forward(upstream.getresponse(), upstream)

        def forward(self, response, upstream):
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in hop_by_hop: self.send_header(name, value)
            self.end_headers()
            try:
                while part := response.read1(1 << 16): self.wfile.write(part)
            except (OSError, http.client.HTTPException): pass      # the visitor or the app has left
            finally: upstream.close()
        do_POST = do_HEAD = do_GET
    return Stripping


def test_behind_a_path_prefix_every_tab_works(page, space, environment, tmp_path):
    without_prefix, prefix = [], "/lab/page"
    with running(space, environment, tmp_path, GRADIO_ROOT_PATH=prefix) as app_port, \
            answering(stripping(prefix, app_port, without_prefix)) as port:
        page.goto(f"http://127.0.0.1:{port}{prefix}/")
        use_every_tab(page)
        left_for_good(page)
    assert not without_prefix


@pytest.mark.skipif(not importlib.util.find_spec("spaces"), reason="needs the library `spaces`")
def test_the_app_for_zerogpu_runs_without_zerogpu(page, tmp_path):
    folder = write_space(tmp_path / "page", "lab/page", kind="zero")
    with running(folder, clean_environment(folder, tmp_path / "environment"), tmp_path) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        use_explore(page)
        left_for_good(page)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "zero"])
def test_what_pip_installs_is_enough(page, tmp_path, kind):
    "Minutes and gigabytes: an environment as the Space would build it, for ZeroGPU with the PyTorch that it supports."
    folder, environment = write_space(tmp_path / "page", "lab/page", kind=kind), tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python, sdk = environment / "bin/python", f"gradio[oauth,mcp]=={readme_of(folder)[0]['sdk_version']}"
    install = [python, "-m", "pip", "install", "-q", "-r", "requirements.txt", sdk]
    subprocess.run(install, cwd=folder, check=True, timeout=1800)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    with running(folder, python, tmp_path) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        use_every_tab(page)
        left_for_good(page)
    shutil.rmtree(environment)
