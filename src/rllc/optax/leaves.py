"""Leaves of parameter trees: their real views, and what they are computed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

__all__ = [
    "check_alike",
    "check_leaves",
    "given",
    "kept",
    "law_dtype",
    "machine_epsilon",
    "real_leaves",
    "shared",
    "spoilt",
    "stored_real_leaves",
    "weighted_sum",
    "wide",
    "widened",
]


def law_dtype() -> Any:
    """float64 where JAX has it switched on, else float32."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def wide(x: Any) -> jax.Array:
    """At least float32 (complex64), because sums and steps in half precision lose small terms."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def widened(tree: Any) -> Any:
    """Every leaf made `wide`."""
    return jax.tree.map(wide, tree)


def stored_real_leaves(tree: Any) -> list[jax.Array]:
    """All leaves as they are stored, a complex one as its real and its imaginary part."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [part for x in leaves for part in ([x.real, x.imag] if jnp.iscomplexobj(x) else [x])]


def real_leaves(tree: Any) -> list[jax.Array]:
    """The same, made `wide`."""
    return [wide(leaf) for leaf in stored_real_leaves(tree)]


def weighted_sum(weights: Sequence[Any], leaves: Sequence[jax.Array]) -> jax.Array:
    """sum_j weights[j] leaves[j] of one or more leaves of one shape, made `wide`."""
    total = sum(jnp.asarray(w, _real_dtype(x)) * x for w, x in zip(weights, map(wide, leaves), strict=True))
    return total  # type: ignore[return-value]


def machine_epsilon(tree: Any) -> float:
    """The coarsest rounding of what is computed with these leaves."""
    return max([float(jnp.finfo(wide(leaf).dtype).eps) for leaf in jax.tree.leaves(tree)], default=0.0)


def spoilt(new: jax.Array, old: jax.Array) -> jax.Array:
    """(), whether an entry is not finite that was finite before; of what has no infinity False."""
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return jnp.asarray(False)
    return (jnp.isfinite(old) & ~jnp.isfinite(new)).any()


def shared(numbers: Any) -> Any:
    """The same few numbers, for XLA to compute once.

    What is small it computes anew in each kernel that uses it, and then compiles an update of sixty leaves
    for a minute; but not what is cut from one array.
    """
    flat, unravel = ravel_pytree(numbers)
    return unravel(jax.lax.optimization_barrier(flat))


def kept(good: jax.Array, new: Any, old: Any) -> jax.Array:
    """The new array in the old one's dtype if the step is good, else the old one."""
    old = jnp.asarray(old)
    new = jnp.asarray(new)
    return jnp.where(good, new if new.dtype == old.dtype else new.astype(old.dtype), old)


def check_leaves(params: Any) -> None:
    """Refuse parameters that have no gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}, which has no"
                " gradient; leave it out with optax.masked or optax.partition"
            )


def given(g: Any, memory: Any) -> Any:
    """The gradient as arrays of JAX; it may come in numbers of Python and arrays of NumPy.

    Raises:
        ValueError: structure or shapes are not those of memory, or one of the two is complex.
    """
    check_alike("the gradient", g, "the parameters", memory)
    for place, x, m in _beside(g, memory):
        if jnp.iscomplexobj(x) != jnp.iscomplexobj(m):
            raise ValueError(
                f"the gradient is of {jnp.result_type(x)} where the parameter is of {jnp.result_type(m)}, at"
                f" {place}: make both real or both complex"
            )
    return jax.tree.map(jnp.asarray, g)


def check_alike(name: str, tree: Any, other: str, reference: Any) -> None:
    """Refuse a tree of another structure, or with other shapes, than a reference; ValueError."""
    own: Any = jax.tree.structure(tree)
    wanted: Any = jax.tree.structure(reference)
    # What a node says of itself may differ where the nodes are equal, and (Flax) the other way round.
    if own != wanted and str(own) != str(wanted):
        raise ValueError(f"{name} and {other} are trees of different structure: {own} and {wanted}")
    for place, x, y in _beside(tree, reference):
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"{name} and {other} have different shapes at {place}: {jnp.shape(x)} and {jnp.shape(y)}"
            )


def _beside(tree: Any, reference: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each leaf's place in words, the leaf, and that of a tree of the same structure."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    for (path, x), y in zip(paths, jax.tree.leaves(reference), strict=True):
        yield jax.tree_util.keystr(path) or "the root", x, y


def _real_dtype(x: jax.Array) -> Any:
    return jnp.finfo(x.dtype).dtype
