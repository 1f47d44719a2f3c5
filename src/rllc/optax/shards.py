"""Shards of parameters inside jax.shard_map: sums over all of them, in which replicated ones count once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["check_bound", "once", "varying"]


def once(term: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The term, but zero on all devices but the first of those that have the same one."""
    for name in axes:
        if name not in varying(term):
            term = jnp.where(jax.lax.axis_index(name) == 0, term, 0)
    return term


def varying(x: jax.Array) -> frozenset[str]:
    """The mapped axes along which x differs from device to device, as shard_map's types say."""
    kind = jax.typeof(x)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # before and since JAX 0.10


def check_bound(axes: tuple[str, ...]) -> None:
    """Refuse axes that are not bound here, or over which sharded and replicated cannot be told apart."""
    for name in axes:
        try:
            index = jax.lax.axis_index(name)
        except NameError:
            raise ValueError(
                f"axis_name {name!r} is not bound here: call update inside jax.shard_map over a mesh with"
                " that axis, or leave axis_name out where jit shards the parameters"
            ) from None
        if name not in varying(index):
            raise ValueError(
                f"over axis_name {name!r} sharded and replicated parameters cannot be told apart here;"
                " use jax.shard_map with check_vma=True, its default"
            )
