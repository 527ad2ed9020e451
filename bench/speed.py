"Training and sampling speed, float32 beside bfloat16, in one run. `python bench/speed.py [model folder]` prints a Markdown table."
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from mfm_app.core import Condition, Vocabulary, autocast, pick_device
from mfm_app.data import Batches
from mfm_app.flow import draw_t
from mfm_app.hub import build, load_model
from mfm_app.model import parameter_count
from mfm_app.sampling import generate, nfe
from mfm_app.simulator import synthetic_cells
from mfm_app.training import one_step, prepare, start

device = pick_device()
dtypes = torch.float32, torch.bfloat16


def training_speed(config, dtype, batch=64, steps=6):
    "Images a second in training steps after two to warm up, by the median step."
    cells = synthetic_cells(40, config["backbone"]["image_size"])
    run = start(build(config))
    batches = Batches(cells, Vocabulary.from_dict(config["vocabulary"]), batch)
    accelerator = prepare(run, dtype)
    for i in range(steps + 2):
        x1, condition = batches(i)
        one_step(run, accelerator, x1, condition, draw_t(batch), 1e-3)
    return batch / sorted(s for _, s in run.recent[2:])[steps // 2]


def sampling_seconds(net, n, dtype, repeats=3, **walk):
    "Seconds for `n` finished images, the best of some."
    def once():
        began = time.perf_counter()
        with autocast(device, dtype): generate(net, Condition(), range(n), net.shape, device=device, **walk)
        if device.type == "cuda": torch.cuda.synchronize()
        return time.perf_counter() - began
    once()
    return min(once() for _ in range(repeats))


def flops(net):
    "Floating-point operations of one network evaluation of one image; a multiplication and an addition are two."
    with FlopCounterMode(display=False) as counter, torch.no_grad(): net(torch.zeros(1, *net.shape, device=device), torch.zeros(1, device=device))
    return counter.get_total_flops()


if __name__ == "__main__":
    model = load_model(sys.argv[1] if len(sys.argv) > 1 else None, device)
    net, walk = model.net, dict(solver="midpoint", steps=10)
    calls = nfe(**walk)
    print(f"`{model.config['backbone']['name']}` on {device.type} with {torch.get_num_threads()} threads, PyTorch {torch.__version__.split('+')[0]}\n")
    print(f"- {parameter_count(net) / 1e6:.2f} M parameters\n- {flops(net) / 1e9:.2f} GFLOP a network evaluation, "
          f"{calls * flops(net) / 1e9:.1f} GFLOP a sample ({walk['solver']}, {walk['steps']} steps, {calls} evaluations)\n")
    train = [training_speed(model.config, d) for d in dtypes]
    one = [sampling_seconds(net, 1, d, **walk) for d in dtypes]
    many = [sampling_seconds(net, 16, d, **walk) for d in dtypes]
    print("| | float32 | bfloat16 | ratio |\n|---|---|---|---|")
    print(f"| training, images/s (batch 64) | {train[0]:.0f} | {train[1]:.0f} | {train[1] / train[0]:.1f}x |")
    print(f"| one image, s | {one[0]:.2f} | {one[1]:.2f} | {one[0] / one[1]:.1f}x |")
    print(f"| 16 images, s | {many[0]:.2f} | {many[1]:.2f} | {many[0] / many[1]:.1f}x |")
    print(f"| an image among 16, s | {many[0] / 16:.3f} | {many[1] / 16:.3f} | |")
