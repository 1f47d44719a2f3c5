"""The paper's three networks (arXiv 2402.15262, A.5.1): images (n, channels, height, width) to 10 classes.

    mlp        three hidden layers of 128, ReLU
    conv       3x3 convolutions of 32, 64, 64 channels, ReLU, maximum over all positions, dense
    resnet20   the CIFAR ResNet of three levels (16, 32, 64 channels) of three blocks

And one for text: characters (n, context) int64 to the next character at each place, (n, 65, context).

    gpt        a decoder-only transformer, two blocks of width 96, 0.24M parameters

Where the paper is silent they follow the tasks of `learned_optimization`, the framework it started from, and
Haiku's defaults: strides 2, 1, 1 and SAME padding in `conv`, truncated normal weights of standard deviation
1/sqrt(fan in) (before truncation at two of them; 1 for embeddings), zero biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CLASSES", "NETWORKS", "build", "gpt2", "layout"]

CLASSES = 10
CHARACTERS = 65  # the alphabet of tiny Shakespeare
Shape = tuple[int, ...]  # of one input: (channels, height, width), or (context,)


def build(name: str, shape: Shape, seed: int) -> nn.Module:
    """A network of NETWORKS for inputs of that shape, float32 on the CPU, its weights drawn from the seed."""
    net = NETWORKS[name](shape)
    initialise(net, torch.Generator().manual_seed(seed))
    return net


def layout(name: str) -> torch.memory_format:
    """Of the network and its inputs. Measured on a CPU: convolutions take a fifth less with channels last."""
    return torch.channels_last if name in ("conv", "resnet20") else torch.contiguous_format


def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """Haiku's defaults: weights truncated normal with std 1/sqrt(fan in), embeddings with 1; biases zero."""
    for layer in net.modules():
        if isinstance(layer, nn.Embedding):
            _truncated_normal(layer.weight, 1.0, generator)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            _truncated_normal(layer.weight, 1 / math.sqrt(layer.weight[0].numel()), generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def mlp(shape: Shape) -> nn.Module:
    """Three hidden layers of 128 with ReLU, no normalisation."""
    return nn.Sequential(
        nn.Flatten(),
        *_hidden(math.prod(shape)),
        *_hidden(128),
        *_hidden(128),
        nn.Linear(128, CLASSES),
    )


def conv(shape: Shape) -> nn.Module:
    """3x3 convolutions of 32, 64, 64 channels with ReLU (strides 2, 1, 1, SAME), maximum, dense."""
    return nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)),  # SAME for stride 2 and even sizes: the odd row goes to the end
        nn.Conv2d(shape[0], 32, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        _Maximum(),
        nn.Linear(64, CLASSES),
    )


def resnet20(shape: Shape) -> nn.Module:
    """ResNet-20 for 32x32 images with parameter-free shortcuts, 0.27M parameters (arXiv 1512.03385, 4.2)."""
    blocks = [_Block(before, after) for level in LEVELS for before, after in level]
    return nn.Sequential(
        _conv3(shape[0], 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


LEVELS = (
    ((16, 16), (16, 16), (16, 16)),
    ((16, 32), (32, 32), (32, 32)),
    ((32, 64), (64, 64), (64, 64)),
)


def gpt(shape: Shape, width: int = 96, blocks: int = 2, heads: int = 4) -> nn.Module:
    """GPT-2's architecture (pre-norm, GELU, learned positions), small; no dropout, a head of its own."""
    return _gpt(shape, CHARACTERS, width, blocks, heads, nn.Linear(width, CHARACTERS))


def gpt2(shape: Shape, symbols: int, blocks: int) -> nn.Module:
    """GPT-2 small, whose head is its embedding: 124,439,808 parameters with 50,257 symbols and 12 blocks."""
    width = 768
    head = nn.Linear(width, symbols, bias=False)
    net = _gpt(shape, symbols, width, blocks, 12, head)
    head.weight = net[0].character.weight  # type: ignore[union-attr, assignment]
    return net


NETWORKS: dict[str, Callable[[Shape], nn.Module]] = {
    "mlp": mlp,
    "conv": conv,
    "resnet20": resnet20,
    "gpt": gpt,
}


class _Maximum(nn.Module):
    """The largest entry over positions, (n, channels); equal ones share the gradient, as in JAX."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class _Block(nn.Module):
    """Conv-BN-ReLU-Conv-BN added to its input, then ReLU; halves the image where channels double."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.added = after - before
        self.stride = 2 if self.added else 1
        self.body = nn.Sequential(
            _conv3(before, after, self.stride),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            _conv3(after, after, 1),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Every second pixel, new channels zero: option A of the ResNet paper."""
        if not self.added:
            return x
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))


class _Embedding(nn.Module):
    """Characters (n, context) int64 to (n, context, width): a vector for each plus one for its place."""

    def __init__(self, context: int, characters: int, width: int) -> None:
        super().__init__()
        self.character = nn.Embedding(characters, width)
        self.place = nn.Embedding(context, width)

    def forward(self, characters: Tensor) -> Tensor:
        return self.character(characters) + self.place.weight


class _Residual(nn.Module):
    """x + body(normalised x)."""

    def __init__(self, width: int, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), *body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _CausalHeads(nn.Module):
    """Queries, keys, values (n, context, 3 width) to what each place gathers from itself and before it."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return gathered.transpose(1, 2).flatten(2)


class _CharactersSecond(nn.Module):
    """(n, context, characters) to (n, characters, context), where losses look for classes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def _truncated_normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def _gpt(
    shape: Shape, characters: int, width: int, blocks: int, heads: int, head: nn.Module
) -> nn.Sequential:
    (context,) = shape
    return nn.Sequential(
        _Embedding(context, characters, width),
        *(layer for _ in range(blocks) for layer in (_attention(width, heads), _feed_forward(width))),
        nn.LayerNorm(width),
        head,
        _CharactersSecond(),
    )


def _attention(width: int, heads: int) -> nn.Module:
    return _Residual(width, nn.Linear(width, 3 * width), _CausalHeads(heads), nn.Linear(width, width))


def _feed_forward(width: int) -> nn.Module:
    return _Residual(width, nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def _hidden(before: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(before, 128), nn.ReLU()


def _conv3(before: int, after: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
