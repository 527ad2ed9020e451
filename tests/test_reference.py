"Equal weights give equal outputs: MiT against the equations of the paper's network, written a second time here."
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
    state["dit.x_embedder.proj.weight"] = rand(width, channels, patch, patch)
    state["dit.x_embedder.proj.bias"] = rand(width)
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


class Equations:
    "The network of the paper as equations over the state dict; shapes in comments."
    def __init__(self, state, heads, depth, patch):
        self.state, self.heads, self.depth, self.patch = state, heads, depth, patch

    def linear(self, name, x): return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]
    def rms_norm(self, x): return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    def silu(self, x): return x * torch.sigmoid(x)

    def modulation(self, name, cond, chunks):                                               # (B, 1, D) each
        return self.linear(f"{name}.adaLN_modulation.1", self.silu(cond))[:, None].chunk(chunks, -1)

    def conditioning(self, t, labels):                                                      # (B, D)
        angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(128) / 128)            # (B, 128)
        hidden = self.linear("adaptor.t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))
        cond = self.linear("adaptor.t_embedder.mlp.2", self.silu(hidden))
        for name, label in zip("yec", labels):
            table = self.state[f"adaptor.{name}_embedder.embedding_table.weight"]
            cond = cond + (table[-1].expand(len(t), -1) if label is None else table[label])
        return cond

    def patch_embedding(self, x):                                                           # (B, N, D)
        b, channels, size, _ = x.shape
        n, p = size // self.patch, self.patch
        squares = x.reshape(b, channels, n, p, n, p).permute(0, 2, 4, 1, 3, 5).reshape(b, n * n, -1)
        weight = self.state["dit.x_embedder.proj.weight"].flatten(1)
        return squares @ weight.T + self.state["dit.x_embedder.proj.bias"] + self.state["dit.pos_embed"]

    def attention(self, name, x):                                                           # (B, N, D)
        heads = lambda z: z.unflatten(-1, (self.heads, -1)).transpose(1, 2)                 # (B, h, N, D/h)
        q, k, v = map(heads, self.linear(f"{name}.qkv", x).chunk(3, -1))
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.linear(f"{name}.proj", mixed.transpose(1, 2).flatten(2))

    def block(self, i, x, cond):                                                            # (B, N, D)
        name = f"dit.blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(name, cond, 6)
        x = x + gate1 * self.attention(f"{name}.attn", self.rms_norm(x) * (1 + scale1) + shift1)
        hidden = self.linear(f"{name}.mlp.fc1", self.rms_norm(x) * (1 + scale2) + shift2)
        return x + gate2 * self.linear(f"{name}.mlp.fc2", F.gelu(hidden, approximate="tanh"))

    def final_layer(self, x, cond, channels):                                               # (B, C, H, W)
        shift, scale = self.modulation("dit.final_layer", cond, 2)
        out = self.linear("dit.final_layer.linear", self.rms_norm(x) * (1 + scale) + shift)
        b, n, p = len(x), int(x.shape[1] ** 0.5), self.patch
        squares = out.reshape(b, n, n, p, p, channels).permute(0, 5, 1, 3, 2, 4)            # (B, C, n, p, n, p)
        return squares.reshape(b, channels, n * p, n * p)

    def __call__(self, x, t, labels):
        cond, h, skips = self.conditioning(t, labels), self.patch_embedding(x), []
        for i in range(self.depth):
            first_half = i < self.depth // 2
            skip_layer = f"dit.skip_layers.{i - self.depth // 2}.linear"
            if not first_half: h = self.linear(skip_layer, self.rms_norm(torch.cat([h, skips.pop()], -1)))
            h = self.block(i, h, cond)
            if first_half: skips.append(h)
        return self.final_layer(h, cond, x.shape[1])


@pytest.mark.parametrize("depth,patch,prefix", [(4, 4, ""), (2, 8, "module."), (6, 2, "_orig_mod.")])
def test_equal_weights_give_equal_outputs(depth, patch, prefix):
    state = reference_state(depth=depth, patch=patch)
    net = load_reference({prefix + k: v for k, v in state.items()}, heads=4)
    equations = Equations(state, heads=4, depth=depth, patch=patch)
    x, t = torch.randn(3, 6, 32, 32), torch.tensor([0., 0.4, 1.])
    y, e, c = torch.tensor([0, 4, 2]), torch.tensor([2, 0, 1]), torch.tensor([1, 1, 0])
    cases = (Condition(y, e, c), (y, e, c)), (Condition(y=y), (y, None, None)), (None, (None,) * 3)
    with torch.no_grad():
        for condition, labels in cases:
            ours, theirs = net(x, t, condition), equations(x, t, labels)
            assert theirs.abs().max() > 0.1
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_number_of_heads_follows_from_the_width_in_the_papers_family():
    net = load_reference(reference_state(depth=2, width=384))
    assert net.backbone.blocks[0].attn.num_heads == 6
    with pytest.raises(InputError, match="how many heads"): load_reference(reference_state(depth=2, width=40))


def test_weights_that_do_not_fit_are_refused():
    state = reference_state()
    del state["dit.blocks.1.mlp.fc1.bias"]
    with pytest.raises(InputError, match="do not fit"): load_reference(state, heads=4)
