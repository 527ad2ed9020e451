"Distance of each solver to dopri5 at 1e-6, and its cost: `python bench/solvers.py [model folder]`."
import sys
import time

import torch

from mfm_app.core import autocast, join, markdown_table, noise, pick_device
from mfm_app.hub import load_model
from mfm_app.sampling import Sampling, generation, integrate, integrate_reference, run
from mfm_app.vocabulary import condition

device, n = pick_device(), 8
last_t = 0.98      # dopri5 stops here; an Euler step onto the image follows, as for every solver
compared = [("euler", 10), ("euler", 20), ("midpoint", 5), ("midpoint", 8), ("midpoint", 10), ("midpoint", 16),
            ("heun", 10), ("rk4", 5), ("rk4", 8)]


def psnr(a, b): return float(10 * torch.log10(4 / (a - b).square().mean()))      # dB, images in [-1, 1]


def timed(f, *args, **kwargs):
    "What a function returns, and its seconds."
    start = time.perf_counter()
    result = f(*args, **kwargs)
    return result, time.perf_counter() - start


def conditions(vocab):
    "Half the cells untreated, half under the compound with most cells."
    compound = max((p for p in vocab.perturbations if p.doses), key=lambda p: p.cells).name
    return join([condition(vocab, name, n=n // 2) for name in (vocab.control, compound)], [n // 2] * 2).to(device)


def by_dopri5(net, x0, rows, tolerance):      # -> (n, C, H, W) images, evaluations
    x, calls = integrate_reference(net, x0, rows, t1=last_t, tolerance=tolerance)
    t = torch.full((n,), last_t, device=device)
    return x + (1 - last_t) * net(x, t, rows), calls


def comparison(model):      # yields rows of the table
    net, rows = model.net, conditions(model.vocab)
    x0 = noise(range(n), net.shape, device)
    truth, _ = by_dopri5(net, x0, rows, 1e-6)
    (x, calls), seconds = timed(by_dopri5, net, x0, rows, 1e-5)
    yield "dopri5 1e-5, float32 (the paper's)", "-", calls, f"{seconds:.1f}", f"{psnr(x, truth):.1f}"
    for solver, steps in compared:
        sampling = Sampling(solver, steps)
        with autocast(device, torch.bfloat16): x, seconds = timed(run, integrate(x0, rows, sampling), net)
        title = f"{solver}{' (default)' if sampling == generation else ''}, bfloat16"
        yield title, steps, sampling.nfe(), f"{seconds:.1f}", f"{psnr(x, truth):.1f}"


if __name__ == "__main__":
    model = load_model(sys.argv[1] if len(sys.argv) > 1 else None, device)
    with torch.inference_mode(): rows = list(comparison(model))
    print(markdown_table(["solver", "steps", "evaluations", "seconds", "PSNR to dopri5 at 1e-6, dB"], rows, "lrrrr"))
