"Speed of a network call, of training and of sampling: `python bench/speed.py [model folder] [--json FILE]`."
import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mfm_app.conditioning import Adaptor, Conditioned, for_inference
from mfm_app.core import Condition, autocast, fast_dtype, markdown_table, pick_device, seconds_of
from mfm_app.data import Batches
from mfm_app.flow import sample_t
from mfm_app.hub import build, load_model
from mfm_app.model import mit, parameter_count
from mfm_app.sampling import generation, sample
from mfm_app.simulator import synthetic_cells
from mfm_app.training import prepare, start, train_step
from mfm_app.vocabulary import Vocabulary

device = pick_device()
dtypes = torch.float32, torch.bfloat16
batch = 64      # images in a training step
several = 16    # images sampled together
batches = 1, 8, 32, 128        # of a network call
gpu_batches = 1, 16, 256


def best(f, repeats=12, warm_up=2):
    "The shortest time of a call, in seconds."
    def once():
        start_time = time.perf_counter()
        f()
        if device.type == "cuda": torch.cuda.synchronize()
        return time.perf_counter() - start_time
    return min([once() for _ in range(warm_up + repeats)][warm_up:])


def forms(net, dtype):
    "A network as it is under autocast, and prepared for sampling."
    def under_autocast(*args):
        with torch.inference_mode(), autocast(device, dtype): return net(*args)
    return {"autocast": under_autocast, "for_inference": for_inference(net, dtype)}


def network_calls(net, dtype, per_call, rate):
    "A record of every form and batch: milliseconds, GFLOP/s, and the share of the rate of a matrix product."
    records = []
    for n in batches:
        x, t = torch.randn(n, *net.shape, device=device), torch.full((n,), 0.4, device=device)
        condition = Condition(y=torch.zeros(n, dtype=torch.int64, device=device), dose_um=torch.ones(n, device=device))
        for form, velocity in forms(net, dtype).items():
            seconds = best(lambda: velocity(x, t, condition))
            gflops = n * per_call / seconds
            records.append(dict(batch=n, form=form, dtype=str(dtype).removeprefix("torch."), ms=round(1e3 * seconds, 2),
                                gflops=round(gflops), share=round(gflops / rate, 3)))
    return records


def matrix_rate(dtype, size=1024):
    "GFLOP/s of a product of two matrices."
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    return 2e-9 * size**3 / (best(lambda: matrix @ matrix) if device.type == "cuda" else seconds_of(matrix, 40))


def calls_table(records):
    rows = [[r["batch"], r["form"], r["dtype"], f"{r['ms']:.1f}", r["gflops"], f"{r['share']:.0%}"] for r in records]
    return markdown_table(["images", "form", "dtype", "ms", "GFLOP/s", "of the product's rate"], rows, "rllrrr")


def gpu_speed(net):
    "Images a second on a GPU, of a network and of XL/2 with random weights; None without one."
    if device.type != "cuda": return None
    with device: xl = Conditioned(mit("XL/2", channels=6, image_size=96), Adaptor(1152, 5, 2, 1)).eval()
    def images_per_second(net, n):
        velocity, x = for_inference(net, torch.bfloat16), torch.randn(n, *net.shape, device=device)
        return n / best(lambda: velocity(x, torch.full((n,), 0.4, device=device)))
    return {name: {n: images_per_second(m, n) for n in gpu_batches} for name, m in {"bundled": net, "XL/2": xl}.items()}


def training_speed(config, dtype, steps=6):
    "Images a second in training steps after two of warm-up, by the median step."
    cells = synthetic_cells(40, config["backbone"]["image_size"])
    run = start(build(config))
    cells_in_batches = Batches(cells, Vocabulary.from_dict(config["vocabulary"]), batch)
    accelerator = prepare(run, dtype)
    for i in range(steps + 2):
        x1, condition = cells_in_batches(i)
        train_step(run, accelerator, x1, condition, sample_t(batch), lr_scale=1e-3)
    return batch / sorted(seconds for _, seconds in run.recent[2:])[steps // 2]


def sampling_seconds(net, n, dtype):
    "Seconds for `n` finished images at the default settings."
    velocity = for_inference(net, dtype)
    return best(lambda: sample(velocity, Condition(), range(n), net.shape, device=device), repeats=3, warm_up=1)


def flops(net):
    "Floating-point operations of one network evaluation of one image; a multiplication and an addition are two."
    x, t = torch.zeros(1, *net.shape, device=device), torch.zeros(1, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad(): net(x, t)
    return counter.get_total_flops()


def parameters(net):
    "Millions of parameters in all and by part."
    molecule = parameter_count(net.adaptor.molecule) if net.adaptor.molecule else 0
    parts = {"backbone": parameter_count(net.backbone), "label adaptor": parameter_count(net.adaptor) - molecule}
    if molecule: parts["molecule embedding"] = molecule
    by_part = ", ".join(f"{n / 1e6:.2f} M {name}" for name, n in parts.items())
    return f"{parameter_count(net) / 1e6:.2f} M parameters: {by_part}"


def timings(model):
    "Training and sampling in both dtypes: images a second, and seconds."
    return {"training, images/s": [training_speed(model.config, dtype) for dtype in dtypes],
            "one image, s": [sampling_seconds(model.net, 1, dtype) for dtype in dtypes],
            f"{several} images, s": [sampling_seconds(model.net, several, dtype) for dtype in dtypes]}


def timings_table(record):
    train, one, many = record.values()
    row = lambda title, values, digits, ratio: [title, *(f"{v:.{digits}f}" for v in values), ratio]
    faster = lambda values: f"{values[0] / values[1]:.1f}x"
    rows = [row(f"training, images/s (batch {batch})", train, 0, faster(train[::-1])),
            row("one image, s", one, 2, faster(one)), row(f"{several} images, s", many, 2, faster(many)),
            row(f"an image among {several}, s", [seconds / several for seconds in many], 3, "")]
    return markdown_table(["", "float32", "bfloat16", "ratio"], rows, "lrrr")


def gpu_table(record):
    cells = lambda name: [f"{v:.0f}" for v in record[name].values()] if record else ["not measured"] * len(gpu_batches)
    rows = [[name, *cells(name)] for name in ("bundled", "XL/2")]
    return markdown_table(["on a GPU, images/s of one call", *(f"batch {n}" for n in gpu_batches)], rows, "lrrr")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load_model(args.model, device)
    name, version = model.config["backbone"]["name"], torch.__version__.split("+")[0]
    nfe, per_call, dtype = generation.nfe(), flops(model.net) / 1e9, fast_dtype(device)
    rate = matrix_rate(dtype)
    print(f"`{name}` on {device.type} with {torch.get_num_threads()} threads, PyTorch {version}\n")
    print(f"- {parameters(model.net)}")
    print(f"- {per_call:.2f} GFLOP a network evaluation, {nfe * per_call:.1f} GFLOP a sample "
          f"({generation.solver}, {generation.steps} steps, {nfe} evaluations)")
    print(f"- a product of two {str(dtype).removeprefix('torch.')} matrices of 1,024 x 1,024: {rate:,.0f} GFLOP/s\n")
    calls = network_calls(model.net, dtype, per_call, rate)
    print(calls_table(calls) + "\n")
    times, gpu = timings(model), gpu_speed(model.net)
    print(timings_table(times) + "\n")
    print(gpu_table(gpu))
    if args.json:
        record = dict(model=name, device=device.type, threads=torch.get_num_threads(), torch=version,
                      gflop_per_call=per_call, matrix_rate=rate, network_calls=calls, times=times, gpu=gpu)
        args.json.write_text(json.dumps(record, indent=1))
