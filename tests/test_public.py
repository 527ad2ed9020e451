"A public page: what visitors may send, wait for and read; what stays behind when they leave; what goes out."
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.utils import QueueError

from mfm_app import ui_counterfactual, ui_session
from mfm_app.core import InputError
from mfm_app.engine import Engine
from mfm_app.finetune import random_model
from mfm_app.images import read_micrograph
from mfm_app.sampling import Sampling
from mfm_app.screen import ScreenSettings, check_settings
from mfm_app.ui_counterfactual import ImageSession, import_upload
from mfm_app.ui_parts import static_folder
from mfm_app.ui_screen import ScreenSession, run_screen, sessions
from mfm_app.ui_session import (Session, cleanups, leave, max_sessions, not_an_upload, on_leave, upload_folder,
                                with_deadline)

root = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def engine(own_temporary): return Engine(random_model(), "cpu", torch.float32)


def within(seconds, question):
    "What a question answers once that is true, or when the time is up."
    end = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < end: time.sleep(0.05)
    return answer


# Health

def test_health_says_what_is_served_and_for_how_long(address, engine):
    answer = httpx.get(f"{address}health")
    status = answer.json()
    assert answer.status_code == 200 and status["status"] == "ok" and status["seconds"] >= 0
    assert status["weights_sha256"] == engine.model.sha256
    assert not any(separator in str(status["model"]) for separator in "/\\")


def test_health_says_when_requests_can_no_longer_be_answered(address, engine, monkeypatch):
    class Dead:
        def is_alive(self): return False
    monkeypatch.setattr(engine.scheduler, "thread", Dead())
    answer = httpx.get(f"{address}health")
    assert answer.status_code == 503 and answer.json()["status"] == "down"


def test_health_answers_while_every_thread_is_taken(address, monkeypatch):
    from mfm_app import ui_explore
    freed = threading.Event()
    monkeypatch.setattr(ui_explore, "explore_validity", lambda *_: freed.wait(20))
    config = httpx.get(f"{address}config").json()
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "generate")
    call = next(d for d in config["dependencies"] if [button, "click"] in d["targets"] and d["inputs"])
    def press():
        body = dict(fn_index=call["id"], session_hash=uuid.uuid4().hex, data=[None] * len(call["inputs"]))
        httpx.post(f"{address}gradio_api/queue/join", json=body, timeout=60)
    crowd = [threading.Thread(target=press, daemon=True) for _ in range(80)]
    for thread in crowd: thread.start()
    time.sleep(1)
    start = time.monotonic()
    assert httpx.get(f"{address}health", timeout=30).status_code == 200 and time.monotonic() - start < 5
    freed.set()
    for thread in crowd: thread.join(60)


# What may be read

@pytest.mark.parametrize("path", ["/etc/passwd", "settings.ini", "mfm_app/weights/bbbc021/model.safetensors",
                                  "mfm_app/ui.py", "../settings.ini", ".git/config"])
def test_no_file_of_the_machine_is_served(address, path):
    for at in (path, str(root / path), f"{static_folder()}/../{path}"):
        answer = httpx.get(f"{address}gradio_api/file={at}")
        assert answer.status_code in (403, 404) and (str(root) in at or str(root) not in answer.text), at


@pytest.mark.parametrize("url", ["http://example.org/x", "https://example.org/x", "http%3A//example.org/x",
                                 "%68ttp://127.0.0.1:1/x"])
def test_no_address_is_fetched_for_anybody(address, url):
    answer = httpx.get(f"{address}gradio_api/file={url}")
    assert answer.status_code == 403 and answer.text == "An address is not fetched from here."


def test_only_the_files_of_the_page_itself_are_served(address):
    names = {path.name for path in static_folder().iterdir()}
    assert names == {"widget.js", "widget.css", "ketcher.html", "ketcher.js", "plotly.min.js"}
    assert httpx.get(f"{address}gradio_api/file={static_folder()}/ketcher.html").status_code == 200


def test_nobody_is_watched_and_nothing_is_recorded(address):
    config = httpx.get(f"{address}config").json()
    assert config["analytics_enabled"] is False and config["run_history"] is False
    assert httpx.get(f"{address}monitoring").status_code >= 400


# What stays behind

def kept_sessions(): return [cleanup.__self__ for cleanups_of_one in cleanups.values() for cleanup in cleanups_of_one]


def test_the_list_of_a_visitor_is_deleted_when_they_leave(chromium, address, tmp_path):
    (tmp_path / "secret.smi").write_text("CCO mine alone")
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{address}?tab=screen")
    page.set_input_files("#screen-file input", tmp_path / "secret.smi")
    page.wait_for_function("document.querySelector('#screen-file').innerText.includes('secret')")
    uploads = lambda: list(upload_folder().rglob("*.smi"))
    assert within(30, uploads)
    assert within(30, lambda: [s for s in kept_sessions() if getattr(s, "file", None)]), "the page lost the upload"
    context.close()
    assert within(30, lambda: not uploads()), "the upload outlived its visitor"


def test_the_cells_of_a_visitor_are_forgotten_when_they_leave(chromium, address):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{address}?perturbation=sweller&cells=1&steps=1")
    page.wait_for_function("document.querySelector('#viewer .provenance')?.textContent")
    answered = lambda: [s for s in kept_sessions() if isinstance(s, Session) and s.answer is not None]
    session, = within(30, answered)
    context.close()
    assert within(30, lambda: session.answer is None) and not answered()


def visitor(): return SimpleNamespace(session_hash=uuid.uuid4().hex)


def test_who_lost_the_connection_and_came_back_is_cleared_again(tmp_path):
    request, session = visitor(), ScreenSession()
    on_leave(request, session.clear)
    leave(request)
    session.start("CCO", None)
    folder = session.path
    assert folder.is_dir()
    leave(request)
    assert not folder.exists() and session.token not in sessions


def test_of_too_many_visitors_the_first_are_forgotten(monkeypatch):
    monkeypatch.setattr(ui_session, "cleanups", {})
    gone = []
    for i in range(max_sessions + 3): on_leave(visitor(), lambda i=i: gone.append(i))
    assert gone == [0, 1, 2] and len(ui_session.cleanups) == max_sessions


def test_a_screen_whose_visitor_has_left_ends_quietly(engine, monkeypatch):
    session, settings = ScreenSession(), check_settings(engine, ScreenSettings(cells=1, sampling=Sampling(steps=1)))
    events = run_screen(engine, session, "CCO\nCCCC\nCCCCC", settings)
    next(events), next(events), next(events)
    session.clear()
    *_, (component, status, *_) = events
    assert component == gr.skip() and "Something went wrong" not in str(status) and not session.running


def test_images_of_many_visitors_take_no_more_room_than_there_is(monkeypatch):
    monkeypatch.setattr(ui_counterfactual, "holding", [])
    monkeypatch.setattr(ui_counterfactual, "max_held_bytes", 3 * 3 * 64 * 64)
    monkeypatch.setattr(ui_counterfactual, "read_upload", lambda file: read_micrograph(file))
    path, rng = upload_folder().parent / "cell.npy", np.random.default_rng(0)
    np.save(path, rng.integers(0, 256, (1, 3, 64, 64), np.uint8))
    sessions = [ImageSession() for _ in range(5)]
    holds = lambda: [session.micrograph is not None for session in sessions]
    for session in sessions: import_upload(session, str(path))
    assert holds() == [False, False, True, True, True]
    import_upload(sessions[2], str(path))      # another image of a visitor who has one
    import_upload(sessions[0], str(path))
    assert holds() == [True, False, True, False, True]
    path.unlink()


# How long, how many, how much

def test_what_takes_too_long_is_ended_with_a_sentence():
    closed = []
    def endless():
        try:
            while True: yield time.sleep(0.02)
        finally: closed.append(True)
    with pytest.raises(InputError, match="more than 0.1 seconds and was stopped; ask for fewer cells"):
        for _ in with_deadline(endless(), 0.1): pass
    assert closed


def test_leaving_early_closes_what_is_watched():
    closed = []
    def some():
        try: yield from range(3)
        finally: closed.append(True)
    events = with_deadline(some())
    assert next(events) == 0
    events.close()
    assert closed


def test_a_file_that_is_too_large_is_refused(address):
    answer = httpx.post(
        f"{address}gradio_api/upload", files={"files": ("large.npy", b"\0" * (106 * 10**6))}, timeout=60
    )
    assert answer.status_code == 413 and not list(upload_folder().rglob("large.npy"))


@pytest.mark.parametrize("whole", [True, False], ids=["with its length", "in chunks"])
def test_an_endless_body_is_refused(address, whole):
    part = b"x" * 10**6
    body = b'{"smiles": "' + part * 155 + b'"}' if whole else (part for _ in range(155))
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{address}gradio_api/call/v2/molecule", content=body, headers=headers, timeout=60)
    assert answer.status_code == 413 and "150 MB" in answer.text
    assert httpx.get(f"{address}health").status_code == 200


def test_a_full_queue_says_so_and_the_page_stands(address, engine, monkeypatch):
    gate, stream = threading.Event(), engine.stream
    def held(request):
        if request.seeds != (0,): return stream(request)
        gate.wait(60)
        raise InputError("The queue is full of these.")
    monkeypatch.setattr(engine, "stream", held)
    def ask():
        request = dict(perturbation="sweller", seeds=[0], steps=1)
        return httpx.post(f"{address}gradio_api/call/v2/generate", json=request, timeout=60).status_code
    client = Client(address, verbose=False)
    def answer():
        try: return client.predict(perturbation="sweller", seeds=[1], steps=1, api_name="/generate")
        except QueueError: return None
    try:
        asked = list(iter(ask, 503))      # as many as are answered at once and as wait, then one that is refused
        assert 32 <= len(asked) <= 16 + 32 and set(asked) == {200}
        with pytest.raises(QueueError, match="Queue is full"):
            client.predict(perturbation="sweller", seeds=[0], steps=1, api_name="/generate")
    finally: gate.set()
    assert within(60, answer)[0]["provenance"]


# What goes out

def test_an_address_in_place_of_an_upload_is_not_fetched(address, monkeypatch):
    from gradio import processing_utils
    fetched = []
    async def fetch(url, *args): fetched.append(url)
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    client = Client(address, verbose=False)
    for url in ("https://example.org/cells.tif", "http://169.254.169.254/latest"):
        image = dict(path=url, meta={"_type": "gradio.FileData"})
        with pytest.raises(Exception, match=not_an_upload):
            client.predict(perturbation="sweller", image=image, api_name="/counterfactual")
    assert not fetched


# First in an environment in which it cannot be served.
served_alone = """
import json, os, sys, time
wrong = dict(GRADIO_SERVER_PORT="many", ALL_PROXY="socks5://127.0.0.1:9", all_proxy="socks5://127.0.0.1:9")
os.environ.update(wrong)
asked = set()
def watch(event, args):
    if event == "socket.getaddrinfo": asked.add(str(args[0]))
    if event == "socket.connect": asked.add(str(args[1][0] if isinstance(args[1], tuple) else args[1]))
sys.addaudithook(watch)
import torch
from mfm_app import ui
from mfm_app.core import refusal
from mfm_app.engine import Engine
from mfm_app.finetune import random_model
engine = Engine(random_model(), "cpu", torch.float32)
print("REFUSED", refusal(ui.launch, engine, prevent_thread_lock=True))
for name in wrong: del os.environ[name]
ui.launch(engine, prevent_thread_lock=True, quiet=True)
engine.generate("sweller", steps=1)
time.sleep(3)
print("ASKED", json.dumps(sorted(asked)))
sys.stdout.flush(); os._exit(0)
"""


@pytest.fixture(scope="module")
def told():
    "What the process that serves alone prints, by its first word."
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "GRADIO_ANALYTICS_ENABLED")}
    command = [sys.executable, "-c", served_alone]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=180)
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("ASKED ", "REFUSED ")))
    assert len(told) == 2, done.stderr[-2000:]
    return told


def test_in_python_too_what_is_wrong_with_the_environment_is_one_sentence(told):
    assert told["REFUSED"].startswith("GRADIO_SERVER_PORT must be a whole number") and "'many'" in told["REFUSED"]


def test_serving_asks_no_other_machine(told):
    strangers = set(json.loads(told["ASKED"])) - {"127.0.0.1", "localhost", "0.0.0.0", "::1", "", "None"}
    assert not strangers, strangers
