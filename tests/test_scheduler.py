"Samplers on ZeroGPU: each in a process of its own, to which a GPU is granted for seconds, and the same cells come out."
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from conftest import left_for_good

from mfm_app.counterfactual import CounterfactualRequest, Treatment, stream
from mfm_app.engine import Engine, request_from, robustness
from mfm_app.finetune import random_model
from mfm_app.molecules import read_rows
from mfm_app.sampling import Sampling, integrate, invert_then_sample
from mfm_app.scheduler import ZeroGPURunner, gpu_seconds
from mfm_app.screen import ScreenSettings, check_settings, screen
from mfm_app.simulator import synthetic_cells

fork = multiprocessing.get_context("fork")


class Host:
    "Stands for ZeroGPU: every call of a decorated generator runs in a fork of this process, its arguments pickled."
    def __init__(self): self.calls, self.asked, self.threads = [], [], []

    def __call__(self, generator, duration):
        def call(*args):
            assert b"torch" not in bytes(ForkingPickler.dumps(args)), "tensors would cross by shared memory"
            self.asked.append(duration(*args))
            self.threads.append(threading.current_thread())
            inbox, giving = fork.Pipe(False)
            showing, outbox = fork.Pipe(False)
            stop = fork.Event()
            process = fork.Process(target=self.serve, args=(generator, inbox, outbox, stop), daemon=True)
            self.calls.append(process)
            process.start()
            outbox.close()
            giving.send(args)
            try:
                while (event := showing.recv()) is not None:
                    if isinstance(event, Exception): raise event
                    yield event
            finally:
                stop.set()
                process.join(30)
        return call

    def serve(self, generator, inbox, outbox, stop):
        def work():
            try:
                for event in (events := generator(*inbox.recv())):
                    if stop.is_set(): return events.close()
                    outbox.send(event)
                outbox.send(None)
            except Exception as e: outbox.send(e)
        thread = threading.Thread(target=work)      # a new one: the team of the forked thread's OpenMP was left behind
        thread.start()
        thread.join()


class Counted(torch.nn.Module):
    "A network that counts its calls in all processes, can take its time and can fail."
    def __init__(self, net):
        super().__init__()
        self.net, self.shape = net, net.shape
        self.calls, self.pause, self.fails = fork.Value("i", 0), fork.Value("d", 0), fork.Value("i", 0)

    def forward(self, *args):
        self.calls.value += 1
        time.sleep(self.pause.value)
        if self.fails.value: raise RuntimeError("the network broke")
        return self.net(*args)


@pytest.fixture(scope="module")
def model():
    model = random_model(synthetic_cells(8, 32))
    model.net = Counted(model.net)
    return model


@pytest.fixture
def host(): return Host()


@pytest.fixture
def zerogpu(model, host):
    model.net.calls.value, model.net.pause.value, model.net.fails.value = 0, 0, 0
    return Engine(model, "cpu", torch.float32, gpu=host)


@pytest.fixture(scope="module")
def batched(model): return Engine(model, "cpu", torch.float32)


@pytest.fixture(scope="module")
def controls(): return synthetic_cells(16, 32, 5).where(perturbation="DMSO").images[:2]


fields = dict(perturbation="sweller", dose_um=3., seeds=[3, 1, 4], steps=3)


# The same cells

requests = {"plain": dict(), "guided": dict(solver="rk4", cfg_scale=2.), "no control": dict(compare=False),
            "molecule": dict(perturbation=None, molecule="CCO", dose_um=1.)}


@pytest.mark.parametrize("other", requests.values(), ids=requests)
def test_cells_on_zerogpu_are_those_of_a_shared_batch(zerogpu, batched, host, other):
    request = request_from(**fields | other)
    (*steps, answer), (*batched_steps, batched_answer) = zerogpu.stream(request), batched.stream(request)
    assert len(steps) == len(batched_steps) == 5 and len(host.calls) == 1
    for a, b in zip(steps, batched_steps):
        assert (a.t, a.step, a.steps) == (b.t, b.step, b.steps)
        assert (a.xt == b.xt).all() and (a.x1_pred == b.x1_pred).all()
    assert (answer.images == batched_answer.images).all()
    assert answer.provenance | dict(seconds=0) == batched_answer.provenance | dict(seconds=0)


def test_a_counterfactual_is_inverted_and_sampled_in_one_call(zerogpu, batched, host, controls):
    treatments = Treatment("sweller", 3.), Treatment(molecule="CCO", dose_um=1.)
    request = CounterfactualRequest(treatments, sampling=Sampling(steps=3))
    *steps, answer = stream(zerogpu, controls, request)
    *batched_steps, other = stream(batched, controls, request)
    assert len(host.calls) == 1 and len(steps) == len(batched_steps) == 7
    assert (answer.reconstruction == other.reconstruction).all() and (answer.treated == other.treated).all()


def test_a_screen_makes_one_call_for_the_control_and_one_a_batch(zerogpu, batched, host):
    def screened(engine):
        settings = check_settings(engine, ScreenSettings(1., 2, sampling=Sampling(steps=2)))
        events = screen(engine, read_rows("CCO\nCCN\nCCC\nCCCC", None, (.1, 10.)), settings, batch=4)
        return [e for e in events if isinstance(e, tuple) and e[0]]
    ours, theirs = screened(zerogpu), screened(batched)
    assert len(host.calls) == 1 + 2 and ZeroGPURunner.preferred_batch > 64
    for (result, cells), (other, their_cells) in zip(ours, theirs, strict=True):
        assert result == other and (cells == their_cells).all()


def test_robustness_is_the_same_on_zerogpu(zerogpu, batched):
    molecule = dict(molecule="CCO", dose_um=1., seeds=range(2), steps=2)
    ours, theirs = (robustness(engine, engine.generate(**molecule)) for engine in (zerogpu, batched))
    assert ours.agreeing == theirs.agreeing and ours.fingerprints == 8
    assert ours.effect.resembles == theirs.effect.resembles


# One user and several

def test_the_first_step_is_there_before_the_last_is_computed(zerogpu, model):
    model.net.pause.value = .02
    steps, nfe = zerogpu.stream(request_from(**fields | dict(steps=20))), Sampling(steps=20).nfe()
    next(steps), next(steps)
    assert 0 < model.net.calls.value < nfe / 2
    assert len(list(steps)) == 21 and model.net.calls.value == nfe


def test_cancelling_ends_the_call_within_a_step(zerogpu, model, host):
    model.net.pause.value = .02
    steps = zerogpu.stream(request_from(**fields | dict(steps=200)))
    for _ in range(4): next(steps)
    calls, start = model.net.calls.value, time.monotonic()
    steps.close()
    assert not host.calls[0].is_alive() and time.monotonic() - start < 5
    assert model.net.calls.value < calls + 40      # those that were on their way, out of 399


def test_cancelling_a_screen_ends_its_call(zerogpu, model, host):
    model.net.pause.value = .02
    rows = read_rows("\n".join("C" * n for n in range(1, 9)), None, (.1, 10.))
    events = screen(zerogpu, rows, check_settings(zerogpu, ScreenSettings(1., 2, sampling=Sampling(steps=100))))
    for _ in range(4): next(events)
    assert host.calls[-1].is_alive()
    events.close()
    assert not host.calls[-1].is_alive() and model.net.calls.value < 100


def test_what_the_network_raises_is_raised_here_and_the_next_call_works(zerogpu, model):
    model.net.fails.value = 1
    with pytest.raises(RuntimeError, match="the network broke"): zerogpu.generate(**fields)
    model.net.fails.value = 0
    assert len(zerogpu.generate(**fields).images) == 3


def test_each_user_has_a_call_of_their_own_made_in_their_own_thread(zerogpu, batched, host):
    answers = {}
    def ask(seed): answers[seed] = zerogpu.generate(**fields | dict(seeds=[seed]))
    users = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for u in users: u.start()
    for u in users: u.join(60)
    assert len({c.pid for c in host.calls}) == 3 and set(host.threads) == set(users)
    for seed, answer in answers.items():
        assert (answer.images == batched.generate(**fields | dict(seeds=[seed])).images).all()


def test_the_network_is_not_warmed_on_zerogpu(zerogpu, batched, host, model):
    zerogpu.warm()
    assert not host.calls and not model.net.calls.value
    batched.warm()
    assert model.net.calls.value == 1


def test_a_gpu_is_asked_for_longer_the_more_there_is_to_do_and_never_for_more_than_two_minutes(zerogpu, host):
    x = torch.zeros(64, 3, 8, 8)
    def seconds(sampler, *args): return gpu_seconds(sampler, args, {})
    times = {steps: seconds(integrate, x, None, Sampling(steps=steps)) for steps in (1, 50, 200)}
    assert 5 < times[1] < times[50] < times[200] < 120
    assert seconds(integrate, x.repeat(4, 1, 1, 1), None, Sampling(steps=50)) > times[50]
    assert seconds(invert_then_sample, x, None, [None] * 3, Sampling(steps=50)) > times[50]
    assert seconds(integrate, x.repeat(8, 1, 1, 1), None, Sampling("rk4", 200, 2.)) == 120
    zerogpu.generate(**fields)
    assert host.asked == [6]


# The real machinery of ZeroGPU, but for the GPU: a server that grants one, and processes that find no card

zerogpu_host = '''
import json, multiprocessing, os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

calls, spent = [], False
class Api(BaseHTTPRequestHandler):
    def do_POST(self):
        verb = self.path.split("?")[0].strip("/")
        calls.append(verb)
        gpu = dict(idle=False, nvidiaIndex=0, nvidiaUUID="GPU-0", allowToken=str(len(calls)))
        body = json.dumps(dict(left=0, wait="PT1H") if spent else gpu).encode() if verb == "schedule" else b""
        self.send_response(429 if spent else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        global spent
        spent = "spent" in self.path
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(calls).encode())
    def log_message(self, *args): pass

server = HTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(SPACES_ZERO_GPU="true", SPACES_ZERO_DEVICE_API_URL=f"http://127.0.0.1:{server.server_port}")
import spaces
from spaces.zero import torch as gpu
gpu.init = gpu.move = lambda *args, **kwargs: None

import torch
from mfm_app.engine import Engine, request_from
from mfm_app.finetune import random_model
from mfm_app.simulator import synthetic_cells
from mfm_app.space import zerogpu_engine
model = random_model(synthetic_cells(8, 32))
zerogpu = Engine(model, "cpu", torch.float32, gpu=spaces.GPU)

def end():
    for worker in multiprocessing.active_children(): worker.kill()
    os._exit(0)
'''

requests_of_it = '''
assert zerogpu_engine().device.type == "cuda"      # as far as the machine knows before it has one
batched = Engine(model, "cpu", torch.float32)
fields = dict(perturbation="sweller", dose_um=3., seeds=[3, 1, 4], steps=3)
results = {}
def ask():
    results["equal"] = bool((zerogpu.generate(**fields).images == batched.generate(**fields).images).all())
    steps = zerogpu.stream(request_from(**fields | dict(steps=200)))
    for _ in range(4): next(steps)
    steps.close()
    results["after cancelling"] = list(calls)
    model.net.forward = None
    try: zerogpu.generate(**fields)
    except Exception as e: results["broken"] = [type(e).__module__.split(".")[0], str(e)]
user = threading.Thread(target=ask)      # as Gradio does
user.start(); user.join()
print(json.dumps(dict(calls=calls, **results)))
sys.stdout.flush()
end()
'''

page_of_it = '''
from mfm_app import ui
_, url, _ = ui.launch(zerogpu, prevent_thread_lock=True, quiet=True)
print(json.dumps([url, os.environ["SPACES_ZERO_DEVICE_API_URL"]])); sys.stdout.flush()
threading.Event().wait()
'''

needs_spaces = pytest.mark.skipif(not importlib.util.find_spec("spaces"), reason="needs the library `spaces`")


@pytest.fixture
def zero(tmp_path):
    "Where a script runs as on ZeroGPU."
    (tmp_path / "cgroup").write_text("0::/here\n")
    env = os.environ | dict(ZEROGPU_PROC_SELF_CGROUP_PATH=str(tmp_path / "cgroup"), HOME=str(tmp_path))
    return dict(env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@needs_spaces
def test_the_real_wrapper_grants_streams_stops_and_reports(zero):
    done = subprocess.run([sys.executable, "-c", zerogpu_host + requests_of_it], timeout=120, **zero)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["equal"] is True
    assert results["after cancelling"] == ["schedule", "allow", "release"] * 2
    assert results["calls"][6:] == ["schedule", "allow", "release"] and results["broken"][0] == "gradio"


@needs_spaces
def test_the_page_asks_for_a_gpu_with_each_request_and_says_when_the_quota_is_spent(zero, page):
    with subprocess.Popen([sys.executable, "-c", zerogpu_host + page_of_it], start_new_session=True, **zero) as process:
        try:
            while not (line := process.stdout.readline()).startswith('["http'):
                assert line, process.stderr.read()[-3000:]
            url, api = json.loads(line)
            calls = lambda path="": json.load(urllib.request.urlopen(f"{api}/{path}"))
            def shows(selector, text):
                script = "([at, text]) => document.querySelector(at).innerText.includes(text)"
                page.wait_for_function(script, arg=[selector, text], timeout=60_000)
            page.goto(url)
            page.wait_for_selector("#dose .ticks button")
            assert calls() == ["startup-report"]      # the network was not warmed
            page.click("#generate")
            shows("#viewer .provenance", "16 cells")
            assert calls()[1:] == ["schedule", "allow", "release"]
            page.get_by_role("tab", name="Counterfactual").click()
            page.wait_for_selector("#cf-dose .ticks button:visible")
            page.click("#cf-go")
            shows("#cf-viewer .provenance", "cells, experiment")
            assert calls()[4:] == ["schedule", "allow", "release"] * 2      # the controls, then inverted and sampled
            calls("spent")
            page.get_by_role("tab", name="Explore").click()
            page.click("#generate")
            shows("#status", "reached its GPU limit")
            left_for_good(page)
        finally: os.killpg(process.pid, signal.SIGKILL)
