"Everybody in one batch: who is in a network call, how long one waits, what ends one job and none of the others."
import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import product

import pytest
import torch

from mfm_app import scheduler
from mfm_app.core import Condition, InputError, noise
from mfm_app.engine import Engine, request_from, robustness_steps
from mfm_app.finetune import random_model
from mfm_app.molecules import read_rows
from mfm_app.sampling import Sampling, SampleStep, integrate, invert_then_sample, run
from mfm_app.scheduler import (Batcher, BatchScheduler, Deadline, Job, ZeroGPURunner, batched_velocities, most_rows,
                               split_call, steps_of)
from mfm_app.screen import ScreenSettings, check_settings, screen
from mfm_app.ui_session import with_deadline

shape = 1, 2, 2
fine, breaks, infinite = range(3)      # what the network does with a row, by its `e`


def rowwise(x, t, condition):
    "A network whose rows are independent to the bit; it fails with some conditions, gives NaN with others."
    e = torch.full((len(x),), fine) if condition.e is None else condition.e
    late = t > .4
    if ((e == breaks) & late).any(): raise RuntimeError("the network broke")
    view = lambda v: v.float().view(-1, 1, 1, 1)
    return torch.where(view((e == infinite) & late) > 0, torch.nan, view(condition.c) * .01 - x * (view(t) + .5))


def rows_of(job, n, e=fine):
    "A `Condition` by which the network's rows are told apart."
    return Condition(c=torch.full((n,), job), e=torch.full((n,), e))


@dataclass
class Asked:
    "A job of a schedule: what it asks for, when it comes, what happens to it, and what was seen of it."
    number:int
    arrival:int                      # tick
    sampler:object                   # a coroutine function
    args:tuple
    interactive:bool
    fate:str                         # "", "cancelled", "late", "breaks", "infinite" or "own error"
    at:int                           # tick of the first two
    waits:list = field(default_factory=list)      # network calls until each velocity


def random_job(rng, number):
    cells, steps, fate = rng.randint(1, 6), rng.randint(1, 8), rng.choice(["", "", *fates])
    if not rng.randrange(6): cells = rng.randint(10, 60)
    e = dict(breaks=breaks, infinite=infinite).get(fate, fine)
    if e != fine: steps = 5      # some of them late enough
    sampling, arrival = Sampling(rng.choice(["euler", "midpoint"]), steps, rng.choice([1., 1., 2.])), rng.randint(0, 12)
    condition, treatments = rows_of(number, cells, e), rng.choice([None, None, None, 1, 4])
    args = (condition, sampling) if treatments is None else (condition, [condition] * treatments, sampling)
    sampler = integrate if treatments is None else invert_then_sample
    return Asked(number, arrival, sampler, (noise(range(cells), shape), *args), rng.random() < .8,
                 fate, arrival + rng.randint(0, 6))

fates = "cancelled", "late", "breaks", "infinite", "own error"


def watched(asked, batcher, started):
    "The job's coroutine, noting when it is started and how many network calls every answer takes."
    v = None
    if asked.fate == "own error": raise ZeroDivisionError
    started.append(asked)
    if not click(asked, batcher): assert not batcher.clicks.waiting, "a series came before a click that waits"
    sampler = asked.sampler(*asked.args)
    while True:
        try: event = sampler.send(v)
        except StopIteration: return
        before = batcher.rounds
        v = yield event
        if not isinstance(event, SampleStep): asked.waits.append(batcher.rounds - before)


def rows(asked): return most_rows(asked.sampler, asked.args, {})
def click(asked, batcher): return asked.interactive and rows(asked) <= batcher.max_rows // 2


class Network:
    "Answers requests and keeps whose rows were in each call."
    def __init__(self, max_rows): self.max_rows, self.calls = max_rows, []

    def __call__(self, requests):
        numbers = [c for r in requests for c in r.condition.c.tolist()]
        assert len(numbers) <= self.max_rows, "a call is too large"
        self.calls.append(set(numbers))
        return batched_velocities(rowwise, requests, "cpu", torch.float32)


@pytest.mark.parametrize("seed", range(50))
def test_bounds_hold_and_nobody_is_lost_whatever_comes(seed):
    rng = random.Random(seed)
    asked = sorted((random_job(rng, i) for i in range(rng.randint(2, 24))), key=lambda a: a.arrival)
    network = Network(max_rows := rng.choice([12, 15, 32]))
    batcher, started, jobs, due = Batcher(network, max_rows), [], {}, deque(asked)
    for tick in range(10_000):
        while due and due[0].arrival <= tick:
            a = due.popleft()
            jobs[a.number] = Job(watched(a, batcher, started), rows(a), a.interactive, Deadline(7))
            batcher.add(jobs[a.number])
        gone = {a.number for a in asked if a.fate in ("cancelled", "late") and a.at <= tick and a.number in jobs}
        for a in asked:
            if a.number in gone and a.fate == "cancelled": jobs[a.number].cancelled = True
            if a.number in gone and a.fate == "late": jobs[a.number].deadline.end = float("-inf")
        before, calls = list(batcher.series.running), len(network.calls)
        if not batcher.round() and not due: break
        in_call = set().union(*network.calls[calls:])
        assert not in_call & gone, "rows of one who is gone are free before the next call"
        for a in asked:
            if rows(a) > max_rows and (job := jobs.get(a.number)) in before and job in batcher.series.running:
                assert a.number in in_call, "a large one advances in every call"
        room = max_rows // 2 * 2
        assert batcher.clicks.rows <= (room if batcher.series.running else 2 * max_rows), "rows in flight"
        assert batcher.series.rows <= room or len(batcher.series.running) == 1, "rows in flight"
    assert not any((*line.waiting, *line.running) for line in batcher.lines)
    for kind in (True, False):
        came = [a.number for a in started if click(a, batcher) == kind]
        assert came == [a.number for a in asked if a.number in came], "admitted in order of arrival"
    for a in asked:
        if rows(a) <= room: assert max(a.waits, default=0) <= 2, "nobody waits for more than two calls"
        check_end(a, jobs[a.number])


def check_end(asked, job):
    "A job ended as it had to: with what it would have got alone, or with its own error."
    events = []
    while not job.events.empty(): events.append(job.events.get())
    end = events.pop() if events and isinstance(events[-1], Exception) else None
    if isinstance(end, StopIteration):
        seen = []
        run(asked.sampler(*asked.args), rowwise, seen.append)
        assert len(events) == len(seen) and asked.fate not in ("own error", "breaks", "infinite")
        for a, b in zip(events, seen): assert torch.equal(a.xt, b.xt) and torch.equal(a.x1_pred, b.x1_pred)
    elif asked.fate == "own error": assert isinstance(end, ZeroDivisionError)
    elif asked.fate == "breaks": assert str(end) == "the network broke"
    elif asked.fate == "infinite": assert isinstance(end, InputError) and "no finite number at t = " in str(end)
    else: assert end is None and asked.fate in ("cancelled", "late") and job.over
    if asked.fate == "late" and end is None:
        with pytest.raises(InputError, match="more than 7 seconds and was stopped"): list(steps_of(job))


# Single properties

def calls_until(batcher, job):
    "How many network calls a job takes."
    before = batcher.rounds
    while job.question or job in (*batcher.clicks.waiting, *batcher.series.waiting): batcher.round()
    return batcher.rounds - before


def job_of(number, n, sampling=Sampling("euler", 4), **kwargs):
    args = noise(range(n), shape), rows_of(number, n), sampling
    return Job(integrate(*args), most_rows(integrate, args, {}), **kwargs)


@pytest.mark.parametrize("max_rows", [2, 3, 16, 17])
def test_a_call_is_filled_and_each_line_has_its_half(max_rows):
    for clicks, series in product(range(40), range(40)):
        a, b = split_call(clicks, series, max_rows)
        assert a + b == min(clicks + series, max_rows)
        assert a >= min(clicks, max_rows // 2) and b >= min(series, max_rows // 2)


def test_a_click_beside_a_dose_series_takes_as_many_calls_as_alone():
    batcher = Batcher(Network(64), 64)
    batcher.add(series := job_of(0, 500, Sampling("euler", 100)))
    for _ in range(3): batcher.round()
    batcher.add(click := job_of(1, 32))
    assert calls_until(batcher, click) == 4 and series.question


def test_a_click_does_not_wait_for_the_screens_before_it():
    batcher = Batcher(Network(64), 64)
    for i in range(20): batcher.add(job_of(i, 32, Sampling("euler", 100), interactive=False))
    batcher.round()
    batcher.add(click := job_of(99, 32))
    assert calls_until(batcher, click) == 4


def test_a_series_goes_on_however_many_click():
    batcher = Batcher(network := Network(64), 64)
    batcher.add(series := job_of(0, 500))
    batcher.round()
    for i in range(1, 40): batcher.add(job_of(i, 32, Sampling("euler", 20)))
    assert calls_until(batcher, series) <= 4 * 500 / 32 + 1 and all(0 in call for call in network.calls)


def test_a_series_is_never_admitted_before_a_click_that_waits():
    batcher = Batcher(Network(64), 64)
    *clicks, series = jobs = [job_of(i, n, Sampling("euler", 20)) for i, n in enumerate((32, 32, 32, 32, 32, 500))]
    for job in jobs: batcher.add(job)
    def running(*gone):
        for i in gone: clicks[i].cancelled = True
        batcher.round()
        return [i for i, job in enumerate(jobs) if job.question]
    assert running() == [0, 1, 2, 3], "clicks for two calls"
    assert running(0) == [1, 2, 3, 4]
    assert running(1) == [2, 3, 4]
    assert running(2) == [3, 4], "one of them was left over from the last call"
    assert running() == [3, 4, 5], "half of each call is enough for two clicks"


def test_eight_visitors_share_every_call():
    batcher = Batcher(network := Network(256), 256)
    for i in range(8): batcher.add(job_of(i, 32))
    while batcher.round(): pass
    assert network.calls == [set(range(8))] * 4


def test_each_of_sixteen_visitors_has_a_frame_after_two_calls():
    batcher, jobs = Batcher(Network(256), 256), [job_of(i, 32) for i in range(16)]
    for job in jobs: batcher.add(job)
    batcher.round(), batcher.round()
    assert not any(job.events.empty() for job in jobs)
    while batcher.round(): pass
    assert batcher.rounds == 2 * 4


def test_treatments_and_guidance_count_before_a_job_is_admitted():
    x, c = noise(range(3), shape), rows_of(0, 3)
    assert most_rows(integrate, (x, c), dict(sampling=Sampling(cfg_scale=1.))) == 3
    assert most_rows(integrate, (x, c), dict(sampling=Sampling(cfg_scale=2.))) == 6
    assert most_rows(invert_then_sample, (x, c, [c] * 4, Sampling(cfg_scale=2.)), {}) == 30
    with pytest.raises(InputError, match="At least one cell"): most_rows(integrate, (x[:0], c[:0]), {})


def test_only_the_job_the_network_fails_with_ends():
    sizes = []
    def velocities(requests):
        sizes.append(len(requests))
        return batched_velocities(rowwise, requests, "cpu", torch.float32)
    batcher, jobs = Batcher(velocities, 64), []
    for i in range(4):
        condition = rows_of(i, 1, breaks if i == 2 else fine)
        jobs.append(Job(integrate(noise([i], shape), condition, Sampling("euler", 8)), 1))
        batcher.add(jobs[-1])
    while batcher.round(): pass
    assert sizes.count(1) == 4, "tried one at a time once, then together again"
    ends = [[job.events.get() for _ in range(job.events.qsize())][-1] for job in jobs]
    assert [type(end) for end in ends] == [StopIteration, StopIteration, RuntimeError, StopIteration]


# In threads

def ask(scheduler, number, n=2, e=fine, steps=3, **kwargs):
    "The last step of a job, or the exception with which it ended."
    asked = integrate, noise(range(n), shape), rows_of(number, n, e), Sampling("midpoint", steps)
    try: *_, last = scheduler.steps(*asked, **kwargs)
    except Exception as e: return e
    return last.xt


def together(*functions):
    "What functions return that are called in threads at the same time."
    results = {}
    def call(i, f): results[i] = f()
    threads = [threading.Thread(target=call, args=pair) for pair in enumerate(functions)]
    for t in threads: t.start()
    for t in threads: t.join(30)
    return [results[i] for i in range(len(functions))]


@pytest.fixture
def gate():
    "Holds a network back until it is set."
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def held(gate):
    "A scheduler whose network waits for the gate."
    def network(*args):
        gate.wait(30)
        return rowwise(*args)
    return BatchScheduler(network, max_rows=16)


def test_the_same_seed_gives_the_same_cell_to_the_bit_in_any_company():
    scheduler = BatchScheduler(rowwise, max_rows=16)
    alone = [ask(scheduler, i, 1 + i) for i in range(20)]
    company = together(*[lambda i=i: ask(scheduler, i, 1 + i) for i in range(20)])
    assert all(torch.equal(a, b) for a, b in zip(alone, company)) and scheduler.alive


def test_broken_and_infinite_ones_end_alone_and_the_thread_lives():
    scheduler = BatchScheduler(rowwise, max_rows=16)
    ends = together(*[lambda i=i: ask(scheduler, i, e=i % 3) for i in range(12)])
    assert {type(e).__name__ for e in ends[1::3]} == {"RuntimeError"}
    assert {type(e).__name__ for e in ends[2::3]} == {"InputError"}
    assert all(torch.equal(end, ask(scheduler, i)) for i, end in zip(range(0, 12, 3), ends[::3])) and scheduler.alive


def test_zerogpu_ends_what_is_not_finite_too():
    alone = ZeroGPURunner(rowwise, lambda generator, duration: generator)
    assert torch.equal(ask(alone, 0), ask(BatchScheduler(rowwise), 0))
    assert "no finite number" in str(ask(alone, 0, e=infinite))
    assert "more than 0 seconds" in str(ask(alone, 0, seconds=0.))


def test_one_who_waits_or_whose_network_hangs_is_told_so_in_time(held, gate):
    start = time.monotonic()
    ends = together(*[lambda i=i: ask(held, i, 8, seconds=.2) for i in range(6)])      # two of them wait
    assert {str(e)[:43] for e in ends} == {"This took more than 0.2 seconds and was sto"}
    assert .2 <= time.monotonic() - start < 2
    gate.set()
    assert torch.is_tensor(ask(held, 0)) and not any((*line.waiting, *line.running) for line in held.batcher.lines)


def test_a_deadline_of_the_caller_is_kept_and_a_later_one_does_not_lengthen_it(held):
    asked = integrate, noise([0], shape), rows_of(0, 1)
    with pytest.raises(InputError, match="more than 0.1 seconds"): list(with_deadline(held.steps(*asked), .1))
    with pytest.raises(InputError, match="more than 0.1 seconds"):
        list(with_deadline(held.steps(*asked, seconds=60), .1))
    with pytest.raises(InputError, match="more than 0.1 seconds"):
        list(with_deadline(held.steps(*asked, seconds=.1), 60))
    with pytest.raises(InputError, match="more than 0.1 seconds"):
        list(with_deadline(with_deadline(held.steps(*asked), 60), .1))


def test_one_who_no_longer_reads_is_dropped_when_late(gate):
    scheduler = BatchScheduler(lambda *args: time.sleep(.02) or rowwise(*args))
    steps = scheduler.steps(integrate, noise([0], shape), rows_of(0, 1), Sampling("euler", 200), seconds=.2)
    next(steps)
    time.sleep(.4)
    rounds = scheduler.rounds
    time.sleep(.1)
    assert scheduler.rounds == rounds < 30
    with pytest.raises(InputError, match="more than 0.2 seconds"): list(steps)


# From the engine

class Held(torch.nn.Module):
    "A network that waits for a gate, or gives NaN."
    def __init__(self, net):
        super().__init__()
        self.net, self.shape, self.gate, self.nan = net, net.shape, threading.Event(), False

    def forward(self, *args):
        self.gate.wait(30)
        return self.net(*args) * (torch.nan if self.nan else 1)


@pytest.fixture
def engine():
    model = random_model()
    model.net = Held(model.net)
    yield (engine := Engine(model, "cpu", torch.float32))
    model.net.gate.set()


def test_a_deadline_reaches_the_samplers_of_everything_that_is_asked_of_an_engine(engine):
    net, molecule = engine.model.net, dict(molecule="CCO", dose_um=1., seeds=[0], steps=2)
    net.gate.set()
    answer = engine.generate(**molecule)
    net.gate.clear()
    settings = check_settings(engine, ScreenSettings(1., 2, sampling=Sampling(steps=2)))
    everything = [lambda: engine.stream(request_from(**molecule)), lambda: robustness_steps(engine, answer),
                  lambda: screen(engine, read_rows("CCO", None, (.1, 10.)), settings)]
    for events in everything:
        start = time.monotonic()
        with pytest.raises(InputError, match="more than 0.1 seconds"): list(with_deadline(events(), .1))
        assert time.monotonic() - start < 1


def test_nan_from_the_network_is_one_sentence_and_the_engine_goes_on(engine):
    net = engine.model.net
    net.gate.set()
    net.nan = True
    with pytest.raises(InputError, match="gave no finite number at t = 0.00, and these cells were stopped"):
        engine.generate("sweller", seeds=[0], steps=2)
    net.nan = False
    assert engine.generate("sweller", seeds=[0], steps=2).images.shape[0] == 1


def test_freed_memory_is_given_back_when_nobody_asks(monkeypatch):
    given = threading.Event()
    monkeypatch.setattr(scheduler, "rest", .05)
    monkeypatch.setattr(scheduler, "free_memory", given.set)
    running = scheduler.BatchScheduler(lambda x, t, condition: -x)
    assert given.wait(5) and running.alive
    running.stop()
