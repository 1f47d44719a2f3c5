"""Stochastic rounding, to bfloat16 for one, from a hash instead of a generator.

A number between two neighbours of bfloat16 becomes the upper one with the probability of its distance
from the lower one, so that its mean is exact: a unit with β = 0.999, whose changes are smaller than half a
step of bfloat16, goes on changing on average. The random bits of an entry are a hash of (seed, count of
roundings, parameter, unit, entry): nothing but two integers to save, the same on every device and however
the step is cut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["key", "mix", "stochastic", "uniform"]

LOW = 0xFFFFFFFF


def mix(x: Any) -> Any:
    """A 32-bit hash (lowbias32 of C. Wellons' Hash Prospector): ints, or int64 tensors, below 2³²."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD & LOW
    x = (x ^ (x >> 15)) * 0x735A2D97 & LOW
    return x ^ (x >> 15)


def key(seed: Any, count: Any, number: Any, unit: int) -> Any:
    """Where the random bits of one unit of one parameter in one step start; ints or 0-d int64 tensors."""
    return mix((mix((mix((seed + count * 0x9E3779B1) & LOW) + number) & LOW) + unit) & LOW)


def stochastic(x: Tensor, key: Any, start: int = 0) -> Tensor:
    """float32 to bfloat16; `start` is the place of the first entry, in the order of storage.

    The magnitude of a finite number is rounded; x must hold no others.
    """
    noise = (_bits(x, key, start) & 0xFFFF).to(torch.int32)
    # Carries from the lower half of the bits into the upper one are the roundings away from zero.
    bits = x.view(torch.int32) + noise.as_strided(x.shape, x.stride())
    return (bits & -0x10000).view(torch.float32).to(torch.bfloat16)


def uniform(x: Tensor, key: Any, start: int = 0) -> Tensor:
    """A float32 number in [0, 1) for each entry of contiguous x."""
    return (_bits(x, key, start) >> 8).to(torch.float32).view(x.shape) * 2.0**-24


def _bits(x: Tensor, key: Any, start: int) -> Tensor:
    """32 random bits for each entry, in the order of storage; (entries,) int64."""
    places = torch.arange(start, start + x.numel(), device=x.device)
    return mix((places & LOW) ^ key)
