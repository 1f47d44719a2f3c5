"""The networks have the paper's shapes (one has GPT-2's) and Haiku's initial weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rllc.lab import networks
from rllc.lab.networks import NETWORKS, build

GREY, COLOUR, TEXT = (1, 28, 28), (3, 32, 32), (64,)
SHAPES = {"mlp": COLOUR, "conv": COLOUR, "resnet20": COLOUR, "gpt": TEXT}


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


@pytest.mark.parametrize("name, shape", SHAPES.items())
def test_weights_come_from_the_seed_alone(name, shape):
    first = build(name, shape, seed=1).state_dict()
    torch.rand(3)  # the global generator has no part in it
    again, other = build(name, shape, seed=1).state_dict(), build(name, shape, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].ndim > 1)


def test_every_network_is_tested():
    assert set(SHAPES) == set(NETWORKS)


@pytest.mark.parametrize("name, shape", SHAPES.items())
def test_weights_are_truncated_normal_by_fan_in(name, shape):
    for layer in build(name, shape, seed=0).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding) and layer.weight.numel() > 5000:
            std = 1 if isinstance(layer, nn.Embedding) else 1 / math.sqrt(layer.weight[0].numel())
            assert layer.weight.abs().max() <= 2 * std
            assert abs(layer.weight.std() / std - 0.8796) < 0.03  # std of a normal cut at two
        if isinstance(layer, nn.Linear | nn.Conv2d):
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


def characters(n):
    return torch.randint(networks.CHARACTERS, (n, *TEXT), generator=torch.Generator().manual_seed(0))


def test_gpt_has_the_parameters_of_gpt_2():
    w, block = 96, 12 * 96**2 + (3 + 1 + 4 + 1) * 96 + 2 * 2 * 96  # weights, biases, two normalisations
    net = build("gpt", TEXT, seed=0)
    assert sum(p.numel() for p in net.parameters()) == (65 + 64) * w + 2 * block + 2 * w + 65 * w + 65
    assert net(characters(3)).shape == (3, 65, 64)


def test_gpt_sees_the_past_only():
    net, text = build("gpt", TEXT, seed=0), characters(1)
    other = text.clone()
    other[0, 40] = (other[0, 40] + 1) % 65
    moved = (net(text) - net(other)).abs().amax(1)[0]
    assert not moved[:40].any()
    assert (moved[40:] > 1e-4).all()


def test_gpt_is_torchs_own_pre_norm_transformer():
    net, text = build("gpt", TEXT, seed=0), characters(2)
    embedding, *layers, norm, head, _ = net
    x = embedding.character.weight[text] + embedding.place.weight
    for attention, feed_forward in zip(layers[::2], layers[1::2], strict=True):
        theirs = nn.TransformerEncoderLayer(96, 4, 384, 0.0, "gelu", batch_first=True, norm_first=True)
        norm1, inward, _, outward = attention.body
        norm2, wide, _, narrow = feed_forward.body
        theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias = inward.weight, inward.bias
        theirs.self_attn.out_proj, theirs.linear1, theirs.linear2 = outward, wide, narrow
        theirs.norm1, theirs.norm2 = norm1, norm2
        x = theirs(x, src_mask=nn.Transformer.generate_square_subsequent_mask(64), is_causal=True)
    assert torch.allclose(net(text), head(norm(x)).transpose(1, 2), atol=2e-5)
