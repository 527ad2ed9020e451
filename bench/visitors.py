"Several visitors at once beside one batch of as many images: `python bench/visitors.py [model folder] [--json FILE]`."
import argparse
import json
import threading
import time
from functools import wraps
from pathlib import Path

import torch

from mfm_app.core import join, markdown_table, to_uint8
from mfm_app.engine import Request, load

cells = 16      # of each, beside as many controls


def note_waits(scheduler, waits):
    "Have a scheduler's samplers note in `waits` how many network calls each velocity takes."
    steps = scheduler.steps
    def noted_steps(sampler, *args, **kwargs):
        @wraps(sampler)
        def noted(*args, **kwargs):
            running, answer = sampler(*args, **kwargs), None
            while True:
                try: event = running.send(answer)
                except StopIteration as end: return end.value
                asked = scheduler.rounds
                answer = yield event
                if answer is not None: waits.append(scheduler.rounds - asked)
        return steps(noted, *args, **kwargs)
    scheduler.steps = noted_steps


def first_and_last(engine, request):
    "The times at which the first cells of the network and the finished ones are there."
    events = engine.stream(request)
    next(events), next(events)      # the noise, and the first network call
    first = time.perf_counter()
    for _ in events: pass
    return first, time.perf_counter()


def visit(engine, requests):
    "Seconds until each visitor saw their first cells, and until the last one had all, asking at the same moment."
    times, barrier = [None] * len(requests), threading.Barrier(len(requests) + 1)
    def visitor(i):
        barrier.wait()
        times[i] = first_and_last(engine, requests[i])
    threads = [threading.Thread(target=visitor, args=(i,)) for i in range(len(requests))]
    for t in threads: t.start()
    barrier.wait()
    start = time.perf_counter()
    for t in threads: t.join()
    return [first - start for first, _ in times], max(last for _, last in times) - start


def one_batch(engine, requests):
    "Seconds for the same images as the rows of one sampler."
    resolved = [engine.resolve(request) for request in requests]
    conditions = [rows for r in resolved for rows in (r.rows(), r.control_rows())]
    seeds = [seed for r in resolved for seed in r.seeds * 2]
    start = time.perf_counter()
    for step in engine.steps(join(conditions, [cells] * len(conditions)), seeds, resolved[0].sampling):
        to_uint8(step.x1_pred)
    return time.perf_counter() - start


def measured(engine, n, waits, repeats):
    "The best of several runs of `n` visitors and of one batch of the same images, in turns."
    names = [p.name for p in engine.vocab.perturbations if p.name not in (engine.vocab.control, engine.vocab.unlisted)]
    requests = [Request(names[i % len(names)], seeds=range(i * cells, (i + 1) * cells)) for i in range(n)]
    together, alone = [], []
    for _ in range(repeats):
        waits.clear()
        firsts, seconds = visit(engine, requests)
        together.append((seconds, firsts, max(waits)))
        alone.append(one_batch(engine, requests))
    (seconds, firsts, wait), one, images = min(together), min(alone), 2 * n * cells
    return dict(visitors=n, images=images, seconds=seconds, one_batch_seconds=one, throughput_ratio=one / seconds,
                images_per_second=images / seconds, first_frames=firsts, longest_wait=wait)


def table(rows):
    header = ["visitors", "images", "together, s", "images/s", "one batch, s", "throughput against it",
              "first frame, s: first to last visitor", "longest wait, network calls"]
    cells = [[r["visitors"], r["images"], f"{r['seconds']:.2f}", f"{r['images_per_second']:.0f}",
              f"{r['one_batch_seconds']:.2f}", f"{r['throughput_ratio']:.0%}",
              f"{min(r['first_frames']):.2f} to {max(r['first_frames']):.2f}", r["longest_wait"]] for r in rows]
    return markdown_table(header, cells, "r" * len(header))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a model folder; the bundled one if it is left out")
    parser.add_argument("--json", type=Path, help="write every figure there as well")
    parser.add_argument("--visitors", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    engine, waits = load(args.model), []
    note_waits(engine.scheduler, waits)
    engine.warm()
    sampling = Request().sampling
    rows = [measured(engine, n, waits, args.repeats) for n in args.visitors]
    settings = dict(device=engine.device.type, dtype=str(engine.dtype).removeprefix("torch."),
                    threads=torch.get_num_threads(), max_rows=engine.scheduler.batcher.max_rows,
                    solver=sampling.solver, steps=sampling.steps, nfe=sampling.nfe())
    print(", ".join(f"{name} {value}" for name, value in settings.items()) + "\n")
    print(table(rows))
    if args.json: args.json.write_text(json.dumps(dict(settings=settings, rows=rows), indent=1) + "\n")
