"Speed and memory of training by size and dtype: `python bench/training.py [--sizes S/8 ...] [--batch 16] [--steps 4]`."
import argparse
import json
import time
from pathlib import Path

import torch

from mfm_app.conditioning import Adaptor, Conditioned
from mfm_app.core import markdown_table, pick_device, seconds_of
from mfm_app.flow import Design
from mfm_app.model import mit
from mfm_app.training import Rows, Scale, example_rows, plan_training, prepare, start, step_on

device = pick_device()


def matrix_rate(dtype, size=1024 if device.type == "cpu" else 8192):
    "Operations a second of a product of two matrices."
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    if device.type == "cpu": return 2 * size**3 / seconds_of(matrix, 20)
    for _ in range(3): matrix @ matrix
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20): matrix @ matrix
    torch.cuda.synchronize()
    return 20 * 2 * size**3 / (time.perf_counter() - begin)


def allocated(step):
    "The most memory that a step allocated beyond what was there before, in bytes."
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile: step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    now, most = 0, 0
    for event in events: most = max(most, now := now + event.nbytes())
    return most


def rows_of(n, shape):
    rows = example_rows(n, shape)
    x0, x1 = torch.randn(2, n, *shape)
    return Rows(x1, rows.condition, torch.rand(n), x0, None, True, torch.arange(n))


def measure(name, dtype, batch, steps, image_size, channels, scale):
    "Images a second, the share of the products' rate, and memory beside what was planned."
    def build():
        backbone = mit(name, image_size=image_size, channels=channels)
        return Conditioned(backbone, Adaptor(backbone.width, 100, 10, 1))
    rate = matrix_rate(dtype)
    run = start(build(), kind="adam", lr=1e-4)
    accelerator, pieces = prepare(run, dtype, scale), [rows_of(batch, run.net.shape)]
    step = lambda: step_on(run, accelerator, pieces, 1, 1., Design())
    step()
    most = allocated(step)
    for _ in range(steps): step()
    seconds = min(seconds for _, seconds in run.recent[-steps:])
    scale = Scale(str(dtype).removeprefix("torch."), checkpointing=scale.checkpointing)
    plan = plan_training(build, 1, batch, 1, rate, 1., scale, "adam", device.type == "cuda")
    return dict(size=name, dtype=scale.precision, batch=batch, parameters=plan.parameters, rate=rate,
                images_per_second=batch / seconds, share=plan.flops / seconds / rate,
                memory=plan.resident + most, planned=plan.memory)


def table(records):
    "The figures as a Markdown table."
    header = ["size", "dtype", "images a step", "parameters, M", "images/s", "TFLOP/s of a product", "share of it",
              "memory, GB", "planned, GB"]
    rows = [[r["size"], r["dtype"], r["batch"], f"{r['parameters'] / 1e6:.1f}", f"{r['images_per_second']:.1f}",
             f"{r['rate'] / 1e12:.2f}", f"{r['share']:.0%}", f"{r['memory'] / 1e9:.2f}", f"{r['planned'] / 1e9:.2f}"]
            for r in records]
    return markdown_table(header, rows, "llrrrrrrr")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny/8", "mini/8", "S/8"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="timed ones; the best counts")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--channels", type=int, default=6)
    parser.add_argument("--checkpointing", action="store_true", help="recompute blocks")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    o = parser.parse_args()
    scale = Scale(checkpointing=o.checkpointing, compile=o.compile)
    records = [measure(name, dtype, o.batch, o.steps, o.image_size, o.channels, scale)
               for name in o.sizes for dtype in (torch.float32, torch.bfloat16)]
    print(table(records))
    if o.json: o.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
