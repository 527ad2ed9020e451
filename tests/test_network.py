"A network prepared for sampling: the same velocities, whoever shares the call and in how many pieces."
import math
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mfm_app.conditioning import Adaptor, Conditioned, InferenceNet, distinct_rows, for_inference
from mfm_app.core import Condition, autocast, noise, to_uint8
from mfm_app.finetune import random_model
from mfm_app.hub import load_model
from mfm_app.model import mit
from mfm_app.sampling import sample
from mfm_app.simulator import synthetic_cells

float32, bfloat16 = torch.float32, torch.bfloat16


def randomised(net):
    "The same network with every weight drawn at random: nothing starts at zero, so that everything shows."
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters(): nn.init.normal_(p, std=0.05, generator=generator)
    return net.eval()


@cache
def network(name):
    if name == "bundled": return load_model().net
    if name == "small": return randomised(random_model(synthetic_cells(8, 32)).net)
    stem, predicts = name.split()
    adaptor = Adaptor(48, 5, 2, 1, molecules=dict(features=16, depth=2) if stem == "conv" else None)
    return randomised(Conditioned(mit("nano/8", stem=stem, image_size=32), adaptor, predicts=predicts))


@cache
def pool(name, n=24):
    "Rows of every kind: several t, labels and none, doses and none, molecules where the network reads them."
    net, generator = network(name), torch.Generator().manual_seed(1)
    draw = lambda values: torch.tensor(values)[torch.randint(len(values), (n,), generator=generator)]
    fp = None
    if net.adaptor.molecule:
        fp = (torch.rand(n, net.adaptor.molecule.into.in_features, generator=generator) < 0.05).float()
        fp[::2] = math.nan
    condition = Condition(y=draw(list(range(-1, net.adaptor.y.labels))), e=draw([-1, 0]), c=draw([-1, 0]),
                          dose_um=draw([0.3, 3., math.nan]), fp=fp)
    return noise(range(n), net.shape), draw([0., 0.2, 0.5, 0.97]), condition


@cache
def prepared(name, dtype): return for_inference(network(name), dtype)


@cache
def alone(name, dtype):
    x, t, condition = pool(name)
    velocity = prepared(name, dtype)
    return torch.cat([velocity(x[i:i + 1], t[i:i + 1], condition[i:i + 1]) for i in range(len(x))])


def together(name, dtype, rows):
    x, t, condition = pool(name)
    return prepared(name, dtype)(x[rows], t[rows], condition[rows])


kinds = "patch velocity", "patch image", "conv velocity", "conv image", "small", "bundled"


@pytest.mark.parametrize("name", kinds)
def test_in_float32_the_prepared_network_is_the_network_up_to_rounding(name):
    x, t, condition = pool(name)
    net, rows = network(name), slice(0, 8)
    for given_condition in (condition[rows], Condition(y=condition.y[rows]), None):
        with torch.no_grad(): v = net(x[rows], t[rows], given_condition)
        ours = prepared(name, float32)(x[rows], t[rows], given_condition)
        assert ours.dtype == float32 and not ours.requires_grad and v.abs().max() > 0.1
        torch.testing.assert_close(ours, v, rtol=1e-5, atol=1e-6 * v.abs().max().item())


compositions = st.lists(st.integers(0, 23), min_size=1, max_size=40)


@pytest.mark.parametrize("name", kinds[:-1])
@settings(max_examples=20)
@given(rows=compositions)
def test_in_float32_a_row_is_the_same_bit_for_bit_whatever_it_travels_with(name, rows):
    assert torch.equal(together(name, float32, rows), alone(name, float32)[rows])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 16, 33, 64])
def test_so_it_is_for_the_bundled_network_at_any_batch_size_and_place(n):
    rows = torch.randperm(64, generator=torch.Generator().manual_seed(n))[:n] % 24
    assert torch.equal(together("bundled", float32, rows), alone("bundled", float32)[rows])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_so_it_is_with_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, t, condition = pool("small")
        velocity = prepared("small", float32)
        ones = torch.cat([velocity(x[i:i + 1], t[i:i + 1], condition[i:i + 1]) for i in range(7)])
        assert torch.equal(velocity(x[:7], t[:7], condition[:7]), ones)
    finally: torch.set_num_threads(before)


def relative(error, v): return (error.flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)).max().item()


@pytest.mark.parametrize("name", kinds)
def test_in_bfloat16_a_row_moves_by_less_than_a_hundredth_with_what_it_travels_with(name):
    v = alone(name, bfloat16)
    for rows in (list(range(24)), [3, 1, 2], [7, 7, 5, 0, 11]):
        assert relative(together(name, bfloat16, rows) - v[rows], v[rows]) < 0.01


@pytest.mark.parametrize("name", kinds)
def test_bfloat16_is_no_further_from_float32_than_autocast(name):
    x, t, condition = pool(name)
    with torch.no_grad():
        v = network(name)(x, t, condition)
        with autocast("cpu", bfloat16): cast = network(name)(x, t, condition)
    error = lambda other: (other - v).square().mean().sqrt()
    assert error(prepared(name, bfloat16)(x, t, condition)) < 1.25 * error(cast)


def test_a_seeds_cell_in_bfloat16_moves_by_a_few_grey_levels_at_most():
    n = 4
    draw = partial(sample, shape=network("bundled").shape)
    condition = Condition(y=torch.arange(n), e=torch.zeros(n, dtype=torch.int64), dose_um=torch.full((n,), 3.))
    cells = to_uint8(draw(prepared("bundled", bfloat16), condition, range(n))).astype(int)
    singly = np.concatenate([to_uint8(draw(prepared("bundled", bfloat16), condition[i:i + 1], [i])) for i in range(n)])
    exact = to_uint8(draw(prepared("bundled", float32), condition, range(n)))
    psnr = lambda a: 10 * np.log10(255**2 / np.square(cells - a).mean())
    assert np.abs(cells - singly).max() <= 8 and psnr(singly) > 50 and psnr(exact) > 48


def test_rows_are_one_kind_where_t_and_every_column_agree_and_nan_is_nan():
    nan = math.nan
    condition = Condition(y=torch.tensor([1, 1, 1, -1, 1]), dose_um=torch.tensor([nan, nan, 2., nan, nan]))
    row, kind = distinct_rows(torch.tensor([0.5, 0.5, 0.5, 0.5, 0.25]), condition)
    assert kind[0] == kind[1] and len(set(kind.tolist())) == len(row) == 4
    assert kind[row].tolist() == [0, 1, 2, 3]
    assert distinct_rows(torch.zeros(3), Condition())[1].tolist() == [0, 0, 0]


def test_equal_rows_are_embedded_once():
    velocity, asked = for_inference(network("conv image"), bfloat16), []
    velocity.net.adaptor.register_forward_hook(lambda module, args, out: asked.append(len(out)))
    velocity(torch.randn(20, 3, 32, 32), torch.full((20,), 0.5), Condition(y=torch.arange(20) % 3))
    assert asked == [3]


def test_a_large_batch_is_evaluated_in_pieces_of_equal_size():
    velocity, sizes = for_inference(network("conv image"), bfloat16), []
    velocity.net.backbone.blocks[0].register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    velocity(torch.randn(33, 3, 32, 32), torch.full((33,), 0.5))
    assert sizes == [11, 11, 11]


def test_a_prepared_network_keeps_the_weights_it_was_made_with_and_leaves_the_other_as_it_is():
    net = randomised(Conditioned(mit("nano/8"), Adaptor(48, 5, 2, 1))).train()
    names = list(net.state_dict())
    x, t = torch.randn(2, 3, 64, 64), torch.tensor([0.1, 0.9])
    velocity = for_inference(net, float32)
    before = velocity(x, t)
    for p in net.parameters(): nn.init.zeros_(p)
    assert torch.equal(velocity(x, t), before) and not for_inference(net, float32)(x, t).any()
    assert list(net.state_dict()) == names and net.training and all(p.requires_grad for p in net.parameters())


def test_it_runs_in_inference_mode():
    x, t, condition = pool("small")
    with torch.inference_mode(): v = prepared("small", float32)(x, t, condition)
    assert torch.equal(v, prepared("small", float32)(x, t, condition))


@pytest.mark.parametrize("dtype", [float32, bfloat16, torch.float16])
def test_any_other_callable_runs_as_it_is_under_autocast(dtype):
    seen = []
    def velocity(x, t, condition):
        seen.append((x.flatten(1) @ torch.ones(4, 1)).dtype)
        return 2 * x
    x = torch.randn(2, 1, 2, 2, requires_grad=True)
    v = for_inference(velocity, dtype)(x, torch.zeros(2), None)
    assert seen == [dtype] and v.dtype == float32 and not v.requires_grad
    assert isinstance(for_inference(network("small"), dtype), InferenceNet) == (dtype != torch.float16)
