"""Which implementation makes the two passes: torch's own arguments `foreach` and `fused` decide."""

from __future__ import annotations

import functools
import importlib.util
import numbers
from typing import Any

import torch
from torch import Tensor

from rllc.checks import check_nonnegative
from rllc.memory import MemoryRule
from rllc.torch import float8, foreach, forloop, rules
from rllc.torch.parts import Part
from rllc.torch.passes import Passes

__all__ = ["RATES", "check", "check_rate", "chosen", "device_of", "fall_back", "has_triton"]

RATES = ("lr", "law_lr", "weight_decay")


def _as_it_is(part: Part, plan: None) -> tuple[Part, None]:
    return part, None


FORLOOP = Passes(_as_it_is, forloop.gram, forloop.advance)
FOREACH = Passes(_as_it_is, foreach.gram, foreach.advance)
FLOAT8 = Passes(_as_it_is, float8.gram, float8.advance)


def chosen(
    group: dict[str, Any],
    device: torch.device,
    rule: MemoryRule | None = None,
    memory_dtype: torch.dtype | None = None,
) -> Passes:
    """The implementation that a group asks for; for None the fastest known for this device.

    Memory that is a rule has only one, and so have units in float8.
    """
    if rule is not None:
        return rules.passes(rule, group)
    if memory_dtype == float8.DTYPE:
        return FLOAT8
    if torch.compiler.is_compiling():
        return FORLOOP  # of elementwise operations the compiler makes its own fused kernels
    if group["fused"]:
        return _fused_cuda() if device.type == "cuda" else _fused_cpu()
    if group["fused"] is None and group["foreach"] is None:
        if device.type == "cuda" and has_triton():
            return _fused_cuda()
        if not _why_not_fused_on_cpu(group, device):
            return _fused_cpu()
    return FORLOOP if group["foreach"] is False else FOREACH


def check(
    group: dict[str, Any],
    defaults: dict[str, Any],
    rule: MemoryRule | None = None,
    memory_dtype: torch.dtype | None = None,
) -> None:
    """Refuse what a group cannot have.

    Raises:
        ValueError: a rate that makes no sense, another memory or scope than the optimizer's, foreach and
            fused both, or one of them where there is none; with the remedy.
    """
    for name in RATES:
        check_rate(name, group[name])
    for name in ("memory", "scope"):
        if group[name] != defaults[name]:
            raise ValueError(
                f"group asks for {name} {group[name]!r}, but one optimizer has one {name},"
                f" {defaults[name]}; make a second optimizer"
            )
    if group["foreach"] and group["fused"]:
        raise ValueError("foreach=True and fused=True are both given; give one of them")
    for name in ("foreach", "fused"):
        if group[name] and rule is not None:
            raise ValueError(
                f"{name}=True: a memory rule is asked for one parameter at a time; leave {name} out"
            )
        if group[name] and memory_dtype == float8.DTYPE:
            raise ValueError(f"{name}=True: units in float8 go one parameter at a time; leave {name} out")
    if group["fused"] and (why_not := _why_not_fused(group)):
        raise ValueError(f"fused=True: {why_not}")


def fall_back(group: dict[str, Any]) -> None:
    """Let a group of a saved state do without fused where there is none, or not with its other options."""
    if group["fused"] and _why_not_fused(group):
        group["fused"] = None


def device_of(group: dict[str, Any]) -> torch.device:
    """Where a group's parameters are; an empty one has none, and nothing to do."""
    return next((p.device for p in group["params"]), torch.device("cpu"))


def check_rate(name: str, value: Any) -> None:
    """Refuse a rate, a number or a tensor of one entry, that is negative or not finite; ValueError."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must have one entry, got a tensor of shape {tuple(value.shape)}")
        value = value.item()
    elif not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number or a tensor of one entry, got {value!r}")
    check_nonnegative(name, value)


def _why_not_fused(group: dict[str, Any]) -> str | None:
    device = device_of(group)
    return _why_no_triton() if device.type == "cuda" else _why_not_fused_on_cpu(group, device)


def _why_not_fused_on_cpu(group: dict[str, Any], device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"there is no fused implementation for {device.type}; leave fused out"
    if group["capturable"]:
        return "on the CPU it cannot be capturable; leave one of them out"
    return _why_no_numba()


@functools.cache
def _why_no_numba() -> str | None:
    try:
        _fused_cpu()
    except ImportError as error:
        return f'on the CPU it needs numba ({error}); pip install "rllc[fast]"'
    except RuntimeError as error:  # numba found no folder where it may keep compiled kernels
        return f"numba cannot work here ({error}); set NUMBA_CACHE_DIR to a writable folder"
    return None


def _why_no_triton() -> str | None:
    return None if has_triton() else "on a GPU it needs triton; install it, or leave fused out"


@functools.cache
def has_triton() -> bool:
    """Whether there are kernels for a GPU."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _fused_cuda() -> Passes:
    from rllc.torch import fused_cuda  # triton is an optional dependency

    return Passes(fused_cuda.prepare, fused_cuda.gram, fused_cuda.advance)


@functools.cache
def _fused_cpu() -> Passes:
    from rllc.torch import fused_cpu, fused_law_cpu  # numba is an optional dependency, and slow to import

    passes = fused_cpu.prepare, fused_cpu.gram, fused_cpu.advance
    return Passes(*passes, learn=fused_law_cpu.learn, whole=fused_law_cpu.whole)
