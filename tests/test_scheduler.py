"Walks on a GPU that is lent: each in a process of its own, as on hosts that lend one for seconds, and the same cells come out."
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

from mfm_app.counterfactual import Treatment, CounterfactualRequest, stream
from mfm_app.engine import Engine, ZeroGPURunner, Request, gpu_seconds, robustness
from mfm_app.finetune import random_model
from mfm_app.molecules import read_rows
from mfm_app.sampling import nfe, invert_then_sample, walk
from mfm_app.screen import Settings, check_settings, screen
from mfm_app.simulator import synthetic_cells

fork = multiprocessing.get_context("fork")


class Host:
    "Lends itself: every call of a decorated generator runs in a fork of this process, and what goes in and out is pickled."
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
        self.net, self.shape, self.calls, self.pause, self.fails = net, net.shape, fork.Value("i", 0), fork.Value("d", 0), fork.Value("i", 0)

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
def lent(model, host):
    model.net.calls.value, model.net.pause.value, model.net.fails.value = 0, 0, 0
    return Engine(model, "cpu", torch.float32, gpu=host)


@pytest.fixture(scope="module")
def together(model): return Engine(model, "cpu", torch.float32)


@pytest.fixture(scope="module")
def controls(): return synthetic_cells(16, 32, 5).where(perturbation="DMSO").images[:2]


asked = dict(perturbation="sweller", dose_um=3., seeds=[3, 1, 4], steps=3)


# The same cells

@pytest.mark.parametrize("how", [dict(), dict(solver="rk4", cfg_scale=2.), dict(compare=False), dict(perturbation=None, molecule="CCO", dose_um=1.)], ids=["plain", "guided", "no control", "molecule"])
def test_lent_cells_are_those_walked_together(lent, together, host, how):
    *moments, answer = lent.stream(Request(**asked | how))
    *others, other = together.stream(Request(**asked | how))
    assert len(moments) == len(others) == 5 and len(host.calls) == 1
    for a, b in zip(moments, others): assert (a.t, a.step) == (b.t, b.step) and (a.state == b.state).all() and (a.x1_pred == b.x1_pred).all()
    assert (answer.images == other.images).all() and {k: v for k, v in answer.provenance.items() if k != "seconds"} == {k: v for k, v in other.provenance.items() if k != "seconds"}


def test_a_counterfactual_goes_there_and_back_in_one_call(lent, together, host, controls):
    question = CounterfactualRequest((Treatment("sweller", 3.), Treatment(molecule="CCO", dose_um=1.)), steps=3)
    *moments, answer = stream(lent, controls, question)
    *others, other = stream(together, controls, question)
    assert len(host.calls) == 1 and len(moments) == len(others) == 7
    assert (answer.reconstruction == other.reconstruction).all() and (answer.treated == other.treated).all()


def test_a_screen_borrows_once_for_the_control_and_once_a_handful(lent, together, host):
    def found(engine, **kwargs):
        events = screen(engine, read_rows("CCO\nCCN\nCCC\nCCCC", None, (.1, 10.)), check_settings(engine, Settings(dose_um=1., cells=2, steps=2)), **kwargs)
        return [e for e in events if isinstance(e, tuple) and e[0]]
    mine, theirs = found(lent, together=4), found(together, together=4)
    assert len(host.calls) == 1 + 2 and ZeroGPURunner.handful > 64
    for (one, cells), (other, their_cells) in zip(mine, theirs, strict=True): assert one == other and (cells == their_cells).all()


def test_steadiness_is_weighed_on_a_lent_gpu_too(lent, together):
    how = dict(molecule="CCO", dose_um=1., seeds=range(2), steps=2)
    steady, other = (robustness(engine, engine.generate(**how)) for engine in (lent, together))
    assert steady.agreeing == other.agreeing and steady.effect.resembles == other.effect.resembles and steady.of == 8


# One visitor and several

def test_the_first_picture_is_there_before_the_last_is_computed(lent, model):
    model.net.pause.value = .02
    moments = lent.stream(Request(**asked | dict(steps=20)))
    next(moments), next(moments)
    assert 0 < model.net.calls.value < nfe("midpoint", 20) / 2
    assert len(list(moments)) == 21 and model.net.calls.value == nfe("midpoint", 20)


def test_who_leaves_ends_the_call_within_a_step(lent, model, host):
    model.net.pause.value = .02
    moments = lent.stream(Request(**asked | dict(steps=200)))
    for _ in range(4): next(moments)
    calls, began = model.net.calls.value, time.monotonic()
    moments.close()
    assert not host.calls[0].is_alive() and time.monotonic() - began < 5
    assert model.net.calls.value < calls + 40      # those that were on their way, out of 399


def test_a_screen_that_is_left_ends_its_call(lent, model, host):
    model.net.pause.value = .02
    rows = read_rows("\n".join("C" * n for n in range(1, 9)), None, (.1, 10.))
    events = screen(lent, rows, check_settings(lent, Settings(dose_um=1., cells=2, steps=100)))
    for _ in range(4): next(events)
    assert host.calls[-1].is_alive()
    events.close()
    assert not host.calls[-1].is_alive() and model.net.calls.value < 100


def test_what_breaks_in_the_network_is_raised_here_and_the_next_call_works(lent, model):
    model.net.fails.value = 1
    with pytest.raises(RuntimeError, match="the network broke"): lent.generate(**asked)
    model.net.fails.value = 0
    assert len(lent.generate(**asked).images) == 3


def test_each_visitor_has_a_call_of_his_own_made_in_his_own_thread(lent, together, host):
    answers = {}
    def visit(seed): answers[seed] = lent.generate(**asked | dict(seeds=[seed]))
    visitors = [threading.Thread(target=visit, args=(seed,)) for seed in range(3)]
    for v in visitors: v.start()
    for v in visitors: v.join(60)
    assert len({c.pid for c in host.calls}) == 3 and set(host.threads) == set(visitors)
    for seed, answer in answers.items(): assert (answer.images == together.generate(**asked | dict(seeds=[seed])).images).all()


def test_the_first_walk_is_not_taken_on_a_lent_gpu(lent, together, host, model):
    lent.warm()
    assert not host.calls and not model.net.calls.value
    together.warm()
    assert model.net.calls.value == 1


def test_a_gpu_is_asked_for_longer_the_more_there_is_to_do_and_never_for_more_than_two_minutes(lent, host, controls):
    x, times = torch.zeros(64, 3, 8, 8), {}
    for steps in (1, 50, 200): times[steps] = gpu_seconds(walk, (x, None), dict(steps=steps))
    assert 5 < times[1] < times[50] < times[200] < 120
    assert gpu_seconds(walk, (x.repeat(4, 1, 1, 1), None), dict(steps=50)) > times[50]
    assert gpu_seconds(invert_then_sample, (x, None, [None] * 3), dict(steps=50)) > times[50]
    assert gpu_seconds(walk, (x.repeat(8, 1, 1, 1), None), dict(solver="rk4", steps=200, cfg_scale=2.)) == 120
    lent.generate(**asked)
    assert host.asked == [6]


# The real machinery of ZeroGPU, but for the GPU: a server that lends, and processes that find no card

lender = '''
import json, multiprocessing, os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

said, spent = [], False
class Api(BaseHTTPRequestHandler):
    def do_POST(self):
        verb = self.path.split("?")[0].strip("/")
        said.append(verb)
        lent = dict(left=0, wait="PT1H") if spent else dict(idle=False, nvidiaIndex=0, nvidiaUUID="GPU-0", allowToken=str(len(said)))
        body = json.dumps(lent).encode() if verb == "schedule" else b""
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
        self.wfile.write(json.dumps(said).encode())
    def log_message(self, *args): pass

server = HTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(SPACES_ZERO_GPU="true", SPACES_ZERO_DEVICE_API_URL=f"http://127.0.0.1:{server.server_port}")
import spaces
from spaces.zero import torch as gpu
gpu.init = gpu.move = lambda *args, **kwargs: None

import torch
from mfm_app.engine import Engine, Request
from mfm_app.finetune import drawn_model
from mfm_app.simulator import synthetic_cells
from mfm_app.space import zerogpu_engine
model = drawn_model(synthetic_cells(8, 32))
lent = Engine(model, "cpu", torch.float32, gpu=spaces.GPU)

def end():
    for worker in multiprocessing.active_children(): worker.kill()
    os._exit(0)
'''

walks = '''
assert zerogpu_engine().device.type == "cuda"      # as far as the machine knows before it has one
together = Engine(model, "cpu", torch.float32)
asked = dict(perturbation="sweller", dose_um=3., seeds=[3, 1, 4], steps=3)
told = {}
def visit():
    told["equal"] = bool((lent.generate(**asked).images == together.generate(**asked).images).all())
    moments = lent.stream(Request(**asked | dict(steps=200)))
    for _ in range(4): next(moments)
    moments.close()
    told["after leaving"] = list(said)
    model.net.forward = None
    try: lent.generate(**asked)
    except Exception as e: told["broken"] = [type(e).__module__.split(".")[0], str(e)]
visitor = threading.Thread(target=visit)      # as Gradio does
visitor.start(); visitor.join()
print(json.dumps(dict(said=said, **told)))
sys.stdout.flush()
end()
'''

page_of_it = '''
from mfm_app import ui
_, url, _ = ui.launch(lent, prevent_thread_lock=True, quiet=True)
print(json.dumps([url, os.environ["SPACES_ZERO_DEVICE_API_URL"]])); sys.stdout.flush()
threading.Event().wait()
'''

needs_spaces = pytest.mark.skipif(not importlib.util.find_spec("spaces"), reason="needs the library `spaces`")


@pytest.fixture
def zero(tmp_path):
    "Where a script runs as on ZeroGPU."
    (tmp_path / "cgroup").write_text("0::/here\n")
    return dict(env=os.environ | dict(ZEROGPU_PROC_SELF_CGROUP_PATH=str(tmp_path / "cgroup"), HOME=str(tmp_path)), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@needs_spaces
def test_the_real_wrapper_lends_streams_stops_and_reports(zero):
    done = subprocess.run([sys.executable, "-c", lender + walks], timeout=120, **zero)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["equal"] is True
    assert told["after leaving"] == ["schedule", "allow", "release"] * 2      # the second one was left after a few steps
    assert told["said"][6:] == ["schedule", "allow", "release"] and told["broken"][0] == "gradio"


@needs_spaces
def test_the_page_borrows_for_each_request_and_says_when_the_quota_is_spent(zero, page):
    with subprocess.Popen([sys.executable, "-c", lender + page_of_it], start_new_session=True, **zero) as process:
        try:
            while not (line := process.stdout.readline()).startswith('["http'): assert line, process.stderr.read()[-3000:]
            url, api = json.loads(line)
            said = lambda about="": json.load(urllib.request.urlopen(f"{api}/{about}"))
            page.goto(url)
            page.wait_for_selector("#dose .ticks button")
            assert said() == ["startup-report"]      # the first walk was not taken
            page.click("#generate")
            page.wait_for_function("document.querySelector('#viewer .provenance').textContent.startsWith('16 cells')", timeout=60_000)
            assert said()[1:] == ["schedule", "allow", "release"]
            page.get_by_role("tab", name="Counterfactual").click()
            page.wait_for_selector("#cf-dose .ticks button:visible")
            page.click("#cf-go")
            page.wait_for_function("document.querySelector('#cf-viewer .provenance').textContent.includes('cells, experiment')", timeout=60_000)
            assert said()[4:] == ["schedule", "allow", "release"] * 2      # for the controls that are drawn, and there and back
            said("spent")
            page.get_by_role("tab", name="Explore").click()
            page.click("#generate")
            page.wait_for_function("document.querySelector('#status').innerText.includes('reached its GPU limit')", timeout=20_000)
            left_for_good(page)
        finally: os.killpg(process.pid, signal.SIGKILL)
