"""Parameters in shards on several processes (DTensor: FSDP2, tensor parallelism), and sums over all of them.

Every process makes the two passes over its own shards. In between the sums of all are added up: they are
gathered and added in the same order everywhere, so that every process has the same law to the bit whatever
the backend does, and takes or skips a step with all others.
"""

from __future__ import annotations

import itertools
import math
import operator
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rllc.torch.parts import params_of, real

__all__ = [
    "Spread",
    "check_whole",
    "exchanged",
    "gradient",
    "in_shards",
    "local",
    "offset",
    "placed_as",
    "renewed",
    "several",
    "spread",
    "total",
]


class Spread(NamedTuple):
    """Where the parameters of an optimizer are, if some of them are in shards."""

    params: list[Tensor]
    # Of each parameter, how many processes of the mesh hold the same entries: a parameter that is no DTensor,
    # or one of a smaller mesh, is taken to be the same on all others.
    copies: list[int]
    groups: list[Any]  # process groups; along each in turn, sums are added up
    device: str  # the type that these groups communicate on


def several() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized()


def in_shards(p: Tensor) -> bool:
    """Whether a parameter is a DTensor."""
    # Nobody has a DTensor without this module, which is slow to import.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(p, module.DTensor)


def exchanged(net: nn.Module | None, params: Iterable[Tensor]) -> None:
    """Other numbers are in these parameters: FSDP2 must not go on with its whole copies of the old ones.

    It keeps those of the root after a pass without gradient. Without the net they are out of reach: hence a
    warning.
    """
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None or not any(map(in_shards, params)):
        return
    if net is None:
        warnings.warn(
            "averages and training weights are exchanged in the shards: a net that fully_shard has made keeps"
            " whole copies of the old ones until net.reshard(); make the optimizer with buffers=net, and that"
            " is done, or call it after each opt.eval() and opt.train()",
            stacklevel=4,
        )
        return
    for part in net.modules():
        if isinstance(part, module.FSDPModule):
            part.reshard()


def spread(params: list[Tensor]) -> Spread | None:
    """Where these parameters are; None if each is whole on this process.

    Raises:
        RuntimeError: a parameter has a placement Partial, is on a mesh without this process or of the first
            FSDP, or the meshes overlap without one holding the other.
    """
    if dist.get_world_size() > 1 and any(getattr(p, "_fsdp_flattened", False) for p in params):
        raise RuntimeError(
            "parameters of FullyShardedDataParallel do not say which part of the whole they are, so that each"
            " process would have a law of its own; use torch.distributed.fsdp.fully_shard"
        )
    sharded: list[Any] = [p for p in params if in_shards(p)]
    if not sharded:
        return None
    for p in sharded:
        _check(p)
    groups = _groups(list(dict.fromkeys(p.device_mesh for p in sharded)))
    size = math.prod(group.size() for group in groups)
    copies = [size // _shards(p) for p in params]
    if size == dist.get_world_size():
        groups = [dist.group.WORLD]
    return Spread(params, copies, groups, sharded[0].device_mesh.device_type)


def renewed(before: Spread | None, groups: Iterable[dict[str, Any]]) -> Spread | None:
    """`spread` of the parameters in these groups; `before`, of the last step, if they are still the same."""
    if not several():
        return None
    params = params_of(groups)
    if before and len(params) == len(before.params) and all(map(operator.is_, params, before.params)):
        return before
    return spread(params)


def _check(p: Any) -> None:
    if any(placement.is_partial() for placement in p.placements):
        raise RuntimeError(
            f"RLLC does not take a parameter of placements {p.placements}: of a Partial one no process has an"
            " entry, only terms of a sum; redistribute it to Shard or Replicate"
        )
    if p.device_mesh.get_coordinate() is None:
        raise RuntimeError(
            f"a parameter of shape {tuple(p.shape)} is on {p.device_mesh}, of which process"
            f" {dist.get_rank()} is no part; make the optimizer only on its processes"
        )


def _shards(p: Any) -> int:
    """How many different shards a parameter has."""
    if not in_shards(p):
        return 1
    sizes = zip(p.device_mesh.shape, p.placements, strict=True)
    return math.prod(size for size, placement in sizes if not placement.is_replicate())


def _groups(meshes: Sequence[Any]) -> list[Any]:
    """This process's groups along the dimensions of all meshes that no other one holds."""
    found = {frozenset(m.mesh.flatten().tolist()): m for m in sorted(meshes, key=lambda m: -m.ndim)}
    for a, b in itertools.combinations(found, 2):
        fewer, more = sorted((a, b), key=len)
        inside = fewer <= more and len(more) % len(fewer) == 0
        if not inside and len(a & b) > 1:
            raise RuntimeError(
                f"parameters are on meshes that overlap, {found[a]} and {found[b]}; make an optimizer for"
                " each of them, or put all parameters on meshes of which one holds the others"
            )
    widest = [mesh for ranks, mesh in found.items() if not any(ranks < other for other in found)]
    groups = [group for mesh in widest for group in mesh.get_all_groups()]
    # Every process goes through them in the same order.
    return sorted(groups, key=lambda group: _stride(dist.get_process_group_ranks(group)))


def _stride(ranks: list[int]) -> int:
    """How far the processes of a group are apart: the same for all groups along one dimension."""
    first, *others = sorted(ranks)
    return others[0] - first if others else 0


def local(tensor: Any) -> Tensor:
    """What of a parameter or unit is on this process: itself, or the shard, the same object each time."""
    return tensor._local_tensor if in_shards(tensor) else tensor


def placed_as(p: Any, array: Tensor) -> Tensor:
    """An array made of what `local` gives of the parameter: in shards as the parameter, if it has its shape.

    Raises:
        ValueError: the parameter is in shards, and the array neither has its shape nor is one number.
    """
    if not in_shards(p):
        return array
    if array.shape == real(local(p)).shape:
        like = real(p)
        return type(p).from_local(
            array, p.device_mesh, p.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    if array.dim():
        raise ValueError(
            f"a memory rule that hides an array of shape {tuple(array.shape)} does not take parameters in"
            " shards (DTensor); give the array the shape of the parameter, or make it one number"
        )
    return array


def gradient(p: Any, g: Any) -> Tensor:
    """The local gradient of what `local` gives of the parameter.

    A gradient that is placed otherwise, Partial for instance, is brought to where the parameter is.

    Raises:
        RuntimeError: only one of the two is a DTensor.
    """
    if in_shards(p) != in_shards(g):
        raise RuntimeError(
            f"of a parameter of shape {tuple(p.shape)} and its gradient only one is a DTensor; set"
            " gradients with the parameter's mesh and placements"
        )
    if not in_shards(p):
        return g
    if g.placements != p.placements:
        g = g.redistribute(p.device_mesh, p.placements)
    found = g.to_local()
    # What is still on its way has no memory that a kernel could read.
    return found.wait() if hasattr(found, "wait") else found


def offset(p: Any) -> int:
    """Where in the whole parameter the shard on this process begins: 0 for one that is whole."""
    if not in_shards(p):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, start = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    strides = [math.prod(p.shape[d + 1 :]) for d in range(p.dim())]
    return sum(x * stride for x, stride in zip(start, strides, strict=True))


def total(there: Spread, sums: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of all processes, and which flags any of them has raised; each process must call it.

    Args:
        sums: (shares, r+1, r+1) float64, each over the number of processes that have the same.
        flags: (n,) bool.
    """
    one = torch.cat([sums.flatten(), flags.to(sums)]).to(there.device)
    for group in there.groups:
        all_of_them = one.new_empty(group.size(), one.numel())
        dist.all_gather(list(all_of_them), one, group=group)
        one = all_of_them.sum(0)
    one = one.to(sums.device)
    return one[: sums.numel()].view_as(sums), one[sums.numel() :] > 0


SPREAD_BY = "load it with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"


def check_whole(
    saved: dict[str, Any], params: Sequence[Tensor], names: Sequence[str], remedy: str = SPREAD_BY
) -> None:
    """Refuse a saved state whose units are not placed as their parameters are, or are of another shape.

    Raises:
        ValueError: with the remedy.
    """
    numbers = itertools.chain.from_iterable(group["params"] for group in saved["param_groups"])
    for number, p in zip(numbers, params, strict=False):
        state = saved["state"].get(number, {})
        for unit in (state[name] for name in names if name in state):
            if _placed(unit) != _placed(p):
                raise ValueError(
                    f"the saved state has memory placed as {_placed(unit)} for a parameter placed as"
                    f" {_placed(p)}; {remedy}"
                )
            if unit.dtype != torch.float8_e4m3fn and unit.shape not in (p.shape, real(p).shape):
                raise ValueError(
                    f"the saved state has memory of shape {tuple(unit.shape)} for a parameter of shape"
                    f" {tuple(p.shape)}; build the network it was saved with"
                )


def _placed(tensor: Any) -> Any:
    return (tensor.device_mesh, tensor.placements) if in_shards(tensor) else "whole"
