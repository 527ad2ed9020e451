"How close each solver comes to dopri5 at 1e-6, and what it costs. `python bench/solvers.py [model folder]` prints a Markdown table."
import sys
import time

import torch

from mfm_app.core import autocast, condition, join, noise, pick_device
from mfm_app.engine import Request
from mfm_app.hub import load_model
from mfm_app.sampling import nfe, reference, run, walk

device, n = pick_device(), 8
settings = [("euler", 10), ("euler", 20), ("midpoint", 5), ("midpoint", 8), ("midpoint", 10), ("midpoint", 16), ("heun", 10), ("rk4", 5), ("rk4", 8)]


def psnr(a, b): return float(10 * torch.log10(4 / (a - b).square().mean()))


if __name__ == "__main__":
    model = load_model(sys.argv[1] if len(sys.argv) > 1 else None, device)
    vocab, net = model.vocab, model.net
    names = [vocab.control, *(p.name for p in sorted(vocab.perturbations, key=lambda p: -p.cells) if p.doses)][:2]
    rows = join([condition(vocab, name, n=n // 2) for name in names], [n // 2] * 2).to(device)
    x0 = noise(range(n), net.shape, device)
    def last(x, t): return x + (1 - t) * net(x, torch.full((n,), t, device=device), rows)     # the Euler step onto the image, for all alike
    with torch.inference_mode():
        truth, _ = reference(net, x0, rows, t1=0.98, tolerance=1e-6)
        truth = last(truth, 0.98)
        print("| solver | steps | evaluations | seconds | PSNR to dopri5 at 1e-6, dB |\n|---|---|---|---|---|")
        began = time.perf_counter()
        loose, calls = reference(net, x0, rows, t1=0.98)
        print(f"| dopri5 1e-5, float32 (the paper's) | - | {calls} | {time.perf_counter() - began:.1f} | {psnr(last(loose, 0.98), truth):.1f} |", flush=True)
        for solver, steps in settings:
            began = time.perf_counter()
            with autocast(device, torch.bfloat16): x = run(walk(x0, rows, solver, steps), net)
            mark = " (default)" if (solver, steps) == (Request.solver, Request.steps) else ""
            print(f"| {solver}{mark}, bfloat16 | {steps} | {nfe(solver, steps)} | {time.perf_counter() - began:.1f} | {psnr(x, truth):.1f} |", flush=True)
