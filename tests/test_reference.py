"Equal weights give equal outputs: our MiT against the equations of the paper's network, written a second time here."
import math

import pytest
import torch
import torch.nn.functional as F

from mfm_app.core import Condition, InputError
from mfm_app.hub import load_reference


def reference_state(depth=4, width=48, patch=4, channels=6, image=32, labels=(5, 3, 2)):
    "Random weights under the reference's names."
    g = torch.Generator().manual_seed(0)
    rand = lambda *shape: 0.1 * torch.randn(shape, generator=g)
    state = {}
    def linear(name, out, into): state[f"{name}.weight"], state[f"{name}.bias"] = rand(out, into), rand(out)
    state["dit.pos_embed"] = rand(1, (image // patch) ** 2, width)
    state["dit.x_embedder.proj.weight"], state["dit.x_embedder.proj.bias"] = rand(width, channels, patch, patch), rand(width)
    for i in range(depth):
        linear(f"dit.blocks.{i}.attn.qkv", 3 * width, width)
        linear(f"dit.blocks.{i}.attn.proj", width, width)
        linear(f"dit.blocks.{i}.mlp.fc1", 4 * width, width)
        linear(f"dit.blocks.{i}.mlp.fc2", width, 4 * width)
        linear(f"dit.blocks.{i}.adaLN_modulation.1", 6 * width, width)
    for i in range(depth // 2): linear(f"dit.skip_layers.{i}.linear", width, 2 * width)
    linear("dit.final_layer.linear", patch * patch * channels, width)
    linear("dit.final_layer.adaLN_modulation.1", 2 * width, width)
    linear("adaptor.t_embedder.mlp.0", width, 256)
    linear("adaptor.t_embedder.mlp.2", width, width)
    for name, n in zip("yec", labels): state[f"adaptor.{name}_embedder.embedding_table.weight"] = rand(n + 1, width)
    return state


def plain_forward(s, x, t, y, e, c, heads, depth, patch):
    "The network of the paper, written as equations over the state dict."
    lin = lambda name, z: z @ s[f"{name}.weight"].T + s[f"{name}.bias"]
    rms = lambda z: z / (z.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    silu = lambda z: z * torch.sigmoid(z)
    angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(128) / 128)
    cond = lin("adaptor.t_embedder.mlp.2", silu(lin("adaptor.t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))))
    for name, label in zip("yec", (y, e, c)):
        table = s[f"adaptor.{name}_embedder.embedding_table.weight"]
        cond = cond + (table[-1].expand(len(t), -1) if label is None else table[label])

    b, channels, size, _ = x.shape
    n = size // patch
    squares = x.reshape(b, channels, n, patch, n, patch).permute(0, 2, 4, 1, 3, 5).reshape(b, n * n, -1)
    h = squares @ s["dit.x_embedder.proj.weight"].flatten(1).T + s["dit.x_embedder.proj.bias"] + s["dit.pos_embed"]
    kept = []
    for i in range(depth):
        if i >= depth // 2: h = lin(f"dit.skip_layers.{i - depth // 2}.linear", rms(torch.cat([h, kept.pop()], -1)))
        shift1, scale1, gate1, shift2, scale2, gate2 = lin(f"dit.blocks.{i}.adaLN_modulation.1", silu(cond))[:, None].chunk(6, -1)
        q, k, v = (z.reshape(b, n * n, heads, -1).transpose(1, 2) for z in lin(f"dit.blocks.{i}.attn.qkv", rms(h) * (1 + scale1) + shift1).chunk(3, -1))
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        h = h + gate1 * lin(f"dit.blocks.{i}.attn.proj", mixed.transpose(1, 2).reshape(b, n * n, -1))
        inner = F.gelu(lin(f"dit.blocks.{i}.mlp.fc1", rms(h) * (1 + scale2) + shift2), approximate="tanh")
        h = h + gate2 * lin(f"dit.blocks.{i}.mlp.fc2", inner)
        if i < depth // 2: kept.append(h)
    shift, scale = lin("dit.final_layer.adaLN_modulation.1", silu(cond))[:, None].chunk(2, -1)
    out = lin("dit.final_layer.linear", rms(h) * (1 + scale) + shift)
    return out.reshape(b, n, n, patch, patch, channels).permute(0, 5, 1, 3, 2, 4).reshape(b, channels, size, size)


@pytest.mark.parametrize("depth,patch,prefix", [(4, 4, ""), (2, 8, "module."), (6, 2, "_orig_mod.")])
def test_equal_weights_give_equal_outputs(depth, patch, prefix):
    state = reference_state(depth=depth, patch=patch)
    net = load_reference({prefix + k: v for k, v in state.items()}, heads=4)
    x, t = torch.randn(3, 6, 32, 32), torch.tensor([0., 0.4, 1.])
    y, e, c = torch.tensor([0, 4, 2]), torch.tensor([2, 0, 1]), torch.tensor([1, 1, 0])
    with torch.no_grad():
        for condition, labels in ((Condition(y, e, c), (y, e, c)), (Condition(y=y), (y, None, None)), (None, (None,) * 3)):
            ours, theirs = net(x, t, condition), plain_forward(state, x, t, *labels, heads=4, depth=depth, patch=patch)
            assert theirs.abs().max() > 0.1
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_heads_come_from_the_papers_family():
    net = load_reference(reference_state(depth=2, width=384))
    assert net.backbone.blocks[0].attn.num_heads == 6
    with pytest.raises(InputError, match="how many heads"): load_reference(reference_state(depth=2, width=40))


def test_weights_that_do_not_fit_are_refused():
    state = reference_state()
    del state["dit.blocks.1.mlp.fc1.bias"]
    with pytest.raises(InputError, match="do not fit"): load_reference(state, heads=4)
