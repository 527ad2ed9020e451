"Training and sampling speed, float32 beside bfloat16, in one run: `python bench/speed.py [model folder]`."
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from mfm_app.core import Condition, autocast, markdown_table, pick_device
from mfm_app.data import Batches
from mfm_app.flow import sample_t
from mfm_app.hub import build, load_model
from mfm_app.model import parameter_count
from mfm_app.sampling import generation, sample
from mfm_app.simulator import synthetic_cells
from mfm_app.training import prepare, start, train_step
from mfm_app.vocabulary import Vocabulary

device = pick_device()
dtypes = torch.float32, torch.bfloat16
batch = 64      # images in a training step
several = 16    # images sampled together


def training_speed(config, dtype, steps=6):
    "Images a second in training steps after two of warm-up, by the median step."
    cells = synthetic_cells(40, config["backbone"]["image_size"])
    run = start(build(config))
    batches = Batches(cells, Vocabulary.from_dict(config["vocabulary"]), batch)
    accelerator = prepare(run, dtype)
    for i in range(steps + 2):
        x1, condition = batches(i)
        train_step(run, accelerator, x1, condition, sample_t(batch), lr_scale=1e-3)
    return batch / sorted(seconds for _, seconds in run.recent[2:])[steps // 2]


def sampling_seconds(net, n, dtype, repeats=3):
    "Seconds for `n` finished images at the default settings, the best of `repeats` after one of warm-up."
    def once():
        start_time = time.perf_counter()
        with autocast(device, dtype): sample(net, Condition(), range(n), net.shape, device=device)
        if device.type == "cuda": torch.cuda.synchronize()
        return time.perf_counter() - start_time
    once()
    return min(once() for _ in range(repeats))


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
    "A table of every task in both dtypes, and the ratio of the two."
    train = [training_speed(model.config, dtype) for dtype in dtypes]
    one, many = ([sampling_seconds(model.net, n, dtype) for dtype in dtypes] for n in (1, several))
    each = [seconds / several for seconds in many]
    row = lambda title, values, digits, ratio: [title, *(f"{v:.{digits}f}" for v in values), ratio]
    faster = lambda values: f"{values[0] / values[1]:.1f}x"
    rows = [row(f"training, images/s (batch {batch})", train, 0, faster(train[::-1])),
            row("one image, s", one, 2, faster(one)), row(f"{several} images, s", many, 2, faster(many)),
            row(f"an image among {several}, s", each, 3, "")]
    return markdown_table(["", "float32", "bfloat16", "ratio"], rows, "lrrr")


if __name__ == "__main__":
    model = load_model(sys.argv[1] if len(sys.argv) > 1 else None, device)
    name, version = model.config["backbone"]["name"], torch.__version__.split("+")[0]
    nfe, per_call = generation.nfe(), flops(model.net) / 1e9
    print(f"`{name}` on {device.type} with {torch.get_num_threads()} threads, PyTorch {version}\n")
    print(f"- {parameters(model.net)}")
    print(f"- {per_call:.2f} GFLOP a network evaluation, {nfe * per_call:.1f} GFLOP a sample "
          f"({generation.solver}, {generation.steps} steps, {nfe} evaluations)\n")
    print(timings(model))
