"""Inner products over a tree, one set for each law, of vectors that are scaled before they are squared.

Scaling by a power of two costs no digit and keeps float32 sums finite for entries from 1e-30 to 1e30.
Vectors are lists of real leaves, as `rllc.optax.leaves.real_leaves` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rllc.optax.leaves import law_dtype, shared, widened
from rllc.optax.scopes import Spread
from rllc.optax.shards import once

__all__ = ["inner_products", "largest_of", "matrix", "pairs", "scale", "scaled", "tops"]

Vector = list[jax.Array]


def tops(vectors: Sequence[Vector], axes: tuple[str, ...]) -> jax.Array:
    """The largest modulus in each vector (rows) and leaf (columns): (vectors, leaves)."""
    dtype = law_dtype()
    found = [[jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in leaves] for leaves in vectors]
    # Not differentiated: the correction does not depend on how its sums were scaled.
    local = jax.lax.stop_gradient(jnp.asarray(found, dtype).reshape(len(vectors), -1))
    return jax.lax.pmax(local, axes) if axes else local


def largest_of(tops: jax.Array, laws: Spread) -> jax.Array:
    """(laws, vectors) the largest modulus of each vector, over each law's leaves."""
    members = [[i for i, row in enumerate(laws.real_rows) if row == law] for law in range(laws.laws)]
    largest = [jnp.max(tops[:, np.asarray(own, int)], axis=1, initial=0) for own in members]
    return jnp.stack(largest) if largest else jnp.zeros((0, len(tops)), tops.dtype)


def scale(top: jax.Array) -> jax.Array:
    """What to divide by: the power of two below the largest entry; 1 for zeros and what is not finite."""
    exponent = jnp.frexp(top)[1] - 1
    usable = (top >= 4 * jnp.finfo(top.dtype).tiny) & jnp.isfinite(top)
    return jnp.where(usable, jnp.ldexp(jnp.ones_like(top), exponent), 1)


def scaled(tree: Any, scales: jax.Array, laws: Spread) -> Any:
    """The tree in at least float32, every leaf divided by its law's entry of scales (laws,)."""
    leaves, structure = jax.tree.flatten(widened(tree))
    return jax.tree.unflatten(
        structure, [_divided(x, scales[row]) for x, row in zip(leaves, laws.rows, strict=True)]
    )


def _divided(x: jax.Array, by: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        # Apart, because dividing by a complex number squares it.
        return jax.lax.complex(_divided(x.real, by), _divided(x.imag, by))
    return x / by.astype(x.dtype)


def pairs(k: int) -> list[tuple[int, int]]:
    """The upper triangle of a symmetric (k, k) matrix, in the order that `matrix` wants."""
    return [(i, j) for i in range(k) for j in range(i, k)]


def matrix(upper: jax.Array, k: int) -> jax.Array:
    """(..., k, k) the symmetric matrix of its upper triangle, (..., k (k + 1) / 2)."""
    place = {pair: n for n, pair in enumerate(pairs(k))}
    return upper[..., np.asarray([[place[min(i, j), max(i, j)] for j in range(k)] for i in range(k)])]


def inner_products(
    products: Sequence[tuple[Vector, Vector]], laws: Spread, axes: tuple[str, ...]
) -> jax.Array:
    """(laws, products) the inner product of each pair of vectors, over each law's leaves.

    Stacked, so that all shards are summed by one all-reduce.
    """
    found = jnp.stack([_product(x, y, laws, axes) for x, y in products], axis=1)
    return shared(jax.lax.psum(found, axes) if axes else found)


def _product(x: Vector, y: Vector, laws: Spread, axes: tuple[str, ...]) -> jax.Array:
    totals = [jnp.zeros((), law_dtype())] * laws.laws
    for a, b, row in zip(x, y, laws.real_rows, strict=True):
        # jnp.sum(a * b), not vdot: it works on leaves of any sharding, explicit too.
        totals[row] = totals[row] + once(jnp.sum(a * b), axes).astype(law_dtype())
    return jnp.stack(totals) if totals else jnp.zeros(0, law_dtype())
