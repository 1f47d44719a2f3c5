"""The networks have the paper's shapes and Haiku's initial weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rllc.lab import networks
from rllc.lab.networks import NETWORKS, build

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    "name, shape, count",
    [
        ("mlp", GREY, 784 * 128 + 128 + 2 * (128 * 128 + 128) + 128 * 10 + 10),
        ("mlp", (1, 8, 8), 64 * 128 + 128 + 2 * (128 * 128 + 128) + 128 * 10 + 10),
        ("conv", GREY, (9 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64 + (64 + 1) * 10),
        ("conv", COLOUR, (9 * 3 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64 + (64 + 1) * 10),
        ("resnet20", COLOUR, 269_722),  # 0.27M in table 6 of arXiv 1512.03385
    ],
)
def test_parameter_counts_and_output(name, shape, count):
    net = build(name, shape, seed=0)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_come_from_the_seed_alone(name):
    first = build(name, COLOUR, seed=1).state_dict()
    torch.rand(3)  # the global generator has no part in it
    again, other = build(name, COLOUR, seed=1).state_dict(), build(name, COLOUR, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(next(iter(first.values())), next(iter(other.values())))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_truncated_normal_by_fan_in(name):
    for layer in build(name, COLOUR, seed=0).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.numel() > 5000:
            std = 1 / math.sqrt(layer.weight[0].numel())
            assert layer.weight.abs().max() <= 2 * std
            assert abs(layer.weight.std() / std - 0.8796) < 0.03  # std of a normal cut at two
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("shape, side", [(GREY, 14), (COLOUR, 16)])
def test_convolutions_have_strides_2_1_1_and_same_padding(shape, side):
    net = build("conv", shape, seed=0)
    sides = []
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, args, out: sides.append(out.shape[-1]))
    net(torch.zeros(1, *shape))
    assert sides == [side, side, side]


def test_stride_two_same_padding_is_that_of_tensorflow():
    """TensorFlow and JAX pad the odd row at the end: output (i, j) is centred on input (2i + 1, 2j + 1)."""
    net = build("conv", GREY, seed=0)
    image = torch.zeros(1, *GREY)
    image[0, 0, 5, 7] = 1
    out = net[1](net[0](image))
    assert torch.allclose(out[0, :, 2, 3], net[1].weight[:, 0, 1, 1])


def test_maximum_shares_its_gradient_among_equals():
    x = torch.tensor([[[[1.0, 3.0], [3.0, 2.0]]]], requires_grad=True)
    networks._Maximum()(x).sum().backward()
    assert x.grad.flatten().tolist() == [0, 0.5, 0.5, 0]


def test_shortcut_takes_every_second_pixel_and_adds_empty_channels():
    block = networks._Block(16, 32).eval()
    nn.init.zeros_(block.body[3].weight)  # the body adds nothing
    x = torch.randn(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, :16], F.relu(x[:, :, ::2, ::2]))
    assert not out[:, 16:].any()
