"""Against the reference's way on the same weights: `python bench/reference.py DATA [--model M] [--json FILE]`.

The reference integrates in float32 with torchdiffeq's dopri5 at 1e-5, one request at a time, guidance by two network
calls. Here an engine answers all requests together at its defaults. Time is that of all requests, one after another or
at once; distance as in bench/solvers.py. Then the cost of more images in one request."""
import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from solvers import Judge

from mfm_app.core import markdown_table, noise, pick_device
from mfm_app.data import read_cells
from mfm_app.engine import Engine, request_from
from mfm_app.flow import guided
from mfm_app.hub import load_model
from mfm_app.sampling import integrate_reference
from mfm_app.validation import cells_of, condition_label, trained_conditions


def timed(f, *args):
    "What a function returns, and its seconds."
    start = time.perf_counter()
    return f(*args), time.perf_counter() - start


def requests_of(engine, cells, conditions, each, size, scale):
    "`each` requests of `size` cells a condition, in the experiment most of its training cells are of."
    def request(i, name, dose):
        experiment = cells_of(cells.where(split="train"), name, dose).table["experiment"].mode()[0]
        seeds = range(i * size, (i + 1) * size)
        return engine.resolve(request_from(name, dose, experiment, seeds=seeds, compare=False, cfg_scale=scale))
    return [request(i, *c) for c in conditions for i in range(each)]


@torch.inference_mode()
def by_reference(net, request, device):
    "Images of one request as the reference makes them, (B, C, H, W) floats."
    rows, scale = request.rows().to(device), request.sampling.cfg_scale
    def velocity(x, t, rows):
        if scale == 1: return net(x, t, rows)
        return guided(net(x, t, rows.without_perturbation()), net(x, t, rows), scale)
    return integrate_reference(velocity, noise(request.seeds, net.shape, device), rows)


def all_at_once(engine, requests):
    "Images of all requests, asked for together, (N, C, H, W) uint8."
    def images(request):
        for event in engine.stream(request): pass
        return event.images
    with ThreadPoolExecutor(len(requests)) as pool: return np.concatenate(list(pool.map(images, requests)))


def compare(model, cells, each, size, scale):
    "A dict for each way: seconds, evaluations, and distance a condition."
    engine = Engine(model)
    engine.warm()
    conditions = sorted(trained_conditions(cells), key=lambda c: -len(cells_of(cells.where(split="train"), *c)))[:4]
    judge = Judge(cells, "train", conditions, each * size)
    requests = requests_of(engine, cells, conditions, each, size, scale)
    ours, seconds = timed(all_at_once, engine, requests)
    yield "all requests at once, the defaults", ours, seconds, requests[0].sampling.nfe(), judge
    net = model.net.to(engine.device)
    answers, seconds = timed(lambda: [by_reference(net, r, engine.device) for r in requests])
    images = torch.cat([x for x, _ in answers]).cpu()
    calls = np.mean([n for _, n in answers]) * (1 if scale == 1 else 2)
    yield "dopri5 1e-5, float32, one by one", images, seconds, float(calls), judge


def growth(engine, counts=(1, 8, 32, 64)):
    "Seconds of one request by the number of its images, the best of three."
    def seconds(n): return min(timed(engine.generate, engine.vocab.control, None, range(n))[1] for _ in range(3))
    return {n: seconds(n) for n in counts}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--model")
    parser.add_argument("--requests", type=int, default=3, help="of each condition")
    parser.add_argument("--size", type=int, default=16, help="cells of a request")
    parser.add_argument("--guidance", type=float, default=1.25)
    parser.add_argument("--json")
    asked = parser.parse_args()
    model, cells, records = load_model(asked.model, pick_device()), read_cells(asked.data), []
    for title, images, seconds, nfe, judge in compare(model, cells, asked.requests, asked.size, asked.guidance):
        floats = images if torch.is_tensor(images) else torch.from_numpy(images).float() / 127.5 - 1
        features = judge.features(floats)
        records.append(dict(title=title, seconds=seconds, evaluations=nfe, distances=judge.distances(features)))
        if len(records) == 1: ours = features
    ratio, low, high = judge.ratio(ours, features)
    rows = [[r["title"], f"{r['evaluations']:.0f}", f"{r['seconds']:.1f}", *(f"{d:.1f}" for d in r["distances"]),
             f"{sum(r['distances']):.1f}"] for r in records]
    faster = records[1]["seconds"] / records[0]["seconds"]
    labels = [condition_label(*c) for c in judge.conditions]
    print(markdown_table(["", "evaluations", "seconds", *labels, "sum"], rows, "lrrrrrrr"))
    print(f"\n{faster:.0f} times less time; the sum of distances is {ratio:.2f} of the reference's "
          f"({low:.2f} to {high:.2f}).\n")
    times = growth(Engine(model))
    print(markdown_table(["images in a request, with their controls", *times],
                         [["seconds", *(f"{s:.2f}" for s in times.values())],
                          ["an image, s", *(f"{s / n:.3f}" for n, s in times.items())]], "l" + "r" * len(times)))
    result = dict(ways=records, faster=faster, ratio=[ratio, low, high], growth=times, guidance=asked.guidance)
    if asked.json: open(asked.json, "w", encoding="utf-8").write(json.dumps(result, indent=1) + "\n")
