"Safe to leave open: what strangers may send, wait for and read; what stays behind when they leave; what goes out."
import json
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

from mfm_app import ui_counterfactual, ui_parts
from mfm_app.core import InputError
from mfm_app.engine import Engine
from mfm_app.finetune import random_model
from mfm_app.images import read_micrograph
from mfm_app.screen import Settings, check_settings
from mfm_app.ui_counterfactual import ImageSession, read_upload
from mfm_app.ui_parts import farewells, leave, max_sessions, served, timely, uploads, when_left
from mfm_app.ui_screen import ScreenSession, desks, run_screen

root = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def engine(own_temporary): return Engine(random_model(), "cpu", torch.float32)


def within(seconds, question):
    "Whether something comes true in time."
    ends = time.monotonic() + seconds
    while not (found := question()) and time.monotonic() < ends: time.sleep(0.05)
    return found


# Health

def test_health_says_what_is_served_and_for_how_long(address, engine):
    answer = httpx.get(f"{address}health")
    said = answer.json()
    assert answer.status_code == 200 and said["status"] == "ok" and said["weights_sha256"] == engine.model.sha256 and said["seconds"] >= 0
    assert not any(sep in str(said["model"]) for sep in "/\\")


def test_health_says_when_questions_can_no_longer_be_answered(address, engine, monkeypatch):
    class Dead:
        def is_alive(self): return False
    monkeypatch.setattr(engine.walks, "thread", Dead())
    answer = httpx.get(f"{address}health")
    assert answer.status_code == 503 and answer.json()["status"] == "down"


def test_health_answers_while_every_thread_is_taken(address, monkeypatch):
    from mfm_app import ui_explore
    freed = threading.Event()
    monkeypatch.setattr(ui_explore, "verdicts", lambda *_: freed.wait(20))
    config = httpx.get(f"{address}config").json()
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "generate")
    call = next(d for d in config["dependencies"] if [button, "click"] in d["targets"] and d["inputs"])
    def press(): httpx.post(f"{address}gradio_api/queue/join", json=dict(fn_index=call["id"], session_hash=uuid.uuid4().hex, data=[None] * len(call["inputs"])), timeout=60)
    crowd = [threading.Thread(target=press, daemon=True) for _ in range(60)]
    for one in crowd: one.start()
    time.sleep(1)
    began = time.monotonic()
    assert httpx.get(f"{address}health", timeout=30).status_code == 200 and time.monotonic() - began < 5
    freed.set()
    for one in crowd: one.join(60)


# What may be read

@pytest.mark.parametrize("path", ["/etc/passwd", "settings.ini", "mfm_app/weights/bbbc021/model.safetensors", "mfm_app/ui.py", "../settings.ini", ".git/config"])
def test_no_file_of_the_machine_is_served(address, path):
    for at in (path, str(root / path), f"{served()}/../{path}"):
        answer = httpx.get(f"{address}gradio_api/file={at}")
        assert answer.status_code in (403, 404) and (str(root) in at or str(root) not in answer.text), at


@pytest.mark.parametrize("url", ["http://example.org/x", "https://example.org/x", "http%3A//example.org/x", "%68ttp://127.0.0.1:1/x"])
def test_no_address_is_fetched_for_anybody(address, url):
    answer = httpx.get(f"{address}gradio_api/file={url}")
    assert answer.status_code == 403 and answer.text == "An address is not fetched from here."


def test_only_the_pieces_of_the_page_itself_are_served(address):
    assert {path.name for path in served().iterdir()} == {"widget.js", "widget.css", "ketcher.html", "ketcher.js", "plotly.min.js"}
    assert httpx.get(f"{address}gradio_api/file={served()}/ketcher.html").status_code == 200


def test_nobody_is_watched_and_nothing_is_recorded(address):
    config = httpx.get(f"{address}config").json()
    assert config["analytics_enabled"] is False and config["run_history"] is False
    assert httpx.get(f"{address}monitoring").status_code >= 400


# What stays behind

def test_the_list_of_a_visitor_is_deleted_when_they_leave(chromium, address, tmp_path):
    (tmp_path / "secret.smi").write_text("CCO mine alone")
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{address}?tab=screen")
    page.set_input_files("#screen-file input", tmp_path / "secret.smi")
    page.wait_for_function("document.querySelector('#screen-file').innerText.includes('secret')")
    there = lambda: [p for p in uploads().rglob("*.smi")]
    assert within(30, there)
    assert within(30, lambda: [f for all in farewells.values() for f in all if getattr(f.__self__, "file", None)]), "the page does not know of the upload"
    context.close()
    assert within(30, lambda: not there()), "the upload outlived its visitor"


def test_the_cells_of_a_visitor_are_forgotten_when_they_leave(chromium, address):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{address}?perturbation=sweller&cells=1&steps=1")
    page.wait_for_function("document.querySelector('#viewer .provenance')?.textContent")
    keeps = lambda: [f.__self__ for all in farewells.values() for f in all if isinstance(f.__self__, ui_parts.Session) and f.__self__.answer is not None]
    kept, = within(30, keeps)
    context.close()
    assert within(30, lambda: kept.answer is None) and not keeps()


def visitor(): return SimpleNamespace(session_hash=uuid.uuid4().hex)


def test_who_lost_the_connection_and_came_back_is_cleared_again(tmp_path):
    one, desk = visitor(), ScreenSession()
    when_left(one, desk.clear)
    leave(one)
    desk.fresh("CCO", None)
    kept = desk.path
    assert kept.is_dir()
    leave(one)
    assert not kept.exists() and desk.token not in desks


def test_of_too_many_visitors_the_first_are_forgotten(monkeypatch):
    monkeypatch.setattr(ui_parts, "farewells", {})
    gone = []
    for i in range(max_sessions + 3): when_left(visitor(), lambda i=i: gone.append(i))
    assert gone == [0, 1, 2] and len(ui_parts.farewells) == max_sessions


def test_a_screen_whose_visitor_has_left_ends_quietly(engine, monkeypatch):
    desk = ScreenSession()
    walk = run_screen(engine, desk, "CCO\nCCCC\nCCCCC", check_settings(engine, Settings(cells=1, steps=1)))
    next(walk), next(walk), next(walk)
    desk.clear()
    *_, (component, status, *_) = walk
    assert component == gr.skip() and "Something went wrong" not in str(status) and not desk.busy


def test_images_of_many_visitors_take_no_more_room_than_there_is(monkeypatch):
    monkeypatch.setattr(ui_counterfactual, "holding", [])
    monkeypatch.setattr(ui_counterfactual, "most_held", 3 * 3 * 64 * 64)
    monkeypatch.setattr(ui_counterfactual, "read_uploaded", lambda file: read_micrograph(file))
    np.save(path := uploads().parent / "cell.npy", np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), np.uint8))
    benches = [ImageSession() for _ in range(5)]
    for bench in benches: read_upload(bench, str(path))
    assert [bench.micrograph is not None for bench in benches] == [False, False, True, True, True]
    read_upload(benches[2], str(path))      # another image of somebody who has one
    read_upload(benches[0], str(path))
    assert [bench.micrograph is not None for bench in benches] == [True, False, True, False, True]
    path.unlink()


# How long, how many, how much

def test_what_takes_too_long_is_ended_and_said():
    closed = []
    def endless():
        try:
            while True: yield time.sleep(0.02)
        finally: closed.append(True)
    with pytest.raises(InputError, match="more than 0.1 seconds and was stopped; ask for fewer cells"):
        for _ in timely(endless(), 0.1): pass
    assert closed


def test_leaving_early_closes_what_is_watched():
    closed = []
    def some():
        try: yield from range(3)
        finally: closed.append(True)
    events = timely(some())
    assert next(events) == 0
    events.close()
    assert closed


def test_a_file_that_is_too_large_is_refused(address):
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.npy", b"\0" * (106 * 10**6))}, timeout=60)
    assert answer.status_code == 413 and not list(uploads().rglob("large.npy"))


@pytest.mark.parametrize("whole", [True, False], ids=["with its length", "in chunks"])
def test_an_endless_body_is_refused(address, whole):
    part = b"x" * 10**6
    body = b'{"smiles": "' + part * 155 + b'"}' if whole else (part for _ in range(155))
    answer = httpx.post(f"{address}gradio_api/call/v2/molecule", content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 413 and "150 MB" in answer.text
    assert httpx.get(f"{address}health").status_code == 200


def test_a_full_queue_says_so_and_the_page_stands(address, engine, monkeypatch):
    net, forward = engine.model.net, type(engine.model.net).forward
    def slowly(self, *args):
        time.sleep(0.3)
        return forward(self, *args)
    monkeypatch.setattr(type(net), "forward", slowly)
    client = Client(address, verbose=False)
    jobs = [client.submit(perturbation="sweller", seeds=[0], steps=2, api_name="/generate") for _ in range(60)]
    monkeypatch.undo()
    troubles = [job.exception() for job in jobs]
    refused = [str(t) for t in troubles if t]
    assert 0 < len(refused) < 60 and all("ueue" in t for t in refused), refused[:3]
    assert client.predict(perturbation="sweller", seeds=[0], steps=1, api_name="/generate")[0]["provenance"]


# What goes out

def test_an_address_in_place_of_an_upload_is_not_fetched(address, monkeypatch):
    from gradio import processing_utils
    asked = []
    async def fetch(url, *args): asked.append(url)
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    client = Client(address, verbose=False)
    for url in ("https://example.org/cells.tif", "http://169.254.169.254/latest"):
        with pytest.raises(Exception, match="Only a file that was uploaded here can be read."):
            client.predict(perturbation="sweller", image=dict(path=url, meta={"_type": "gradio.FileData"}), api_name="/counterfactual")
    assert not asked


alone = """
import json, sys
asked = []
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = args[1][0] if event == "socket.connect" and isinstance(args[1], tuple) else args[1] if event == "socket.connect" else args[0]
        asked.append(str(place))
sys.addaudithook(watch)
import torch
from mfm_app import ui
from mfm_app.engine import Engine
from mfm_app.finetune import drawn_model
engine = Engine(drawn_model(), "cpu", torch.float32)
ui.launch(engine, prevent_thread_lock=True, quiet=True)
engine.generate("sweller", steps=1)
import time; time.sleep(3)
print("ASKED", json.dumps(sorted(set(asked))))
import os; sys.stdout.flush(); os._exit(0)
"""


def test_serving_asks_no_other_machine(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "GRADIO_ANALYTICS_ENABLED"): monkeypatch.delenv(name, raising=False)      # as at somebody's home
    done = subprocess.run([sys.executable, "-c", alone], cwd=root, capture_output=True, text=True, timeout=180)
    line = next((line for line in done.stdout.splitlines() if line.startswith("ASKED")), None)
    assert line, done.stderr[-2000:]
    strangers = set(json.loads(line[6:])) - {"127.0.0.1", "localhost", "0.0.0.0", "::1", "", "None"}
    assert not strangers, strangers
