"""Which law a leaf of the parameters follows: one for all, one for each leaf, or one for each label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Scope", "Spread", "check_scope", "each", "first_laws", "law_of_leaves", "only", "spread"]

# "all", "tensor", a tree of labels that is a prefix of the parameters', or a function of them to one.
Scope = Any


class Spread(NamedTuple):
    """How laws are spread over the leaves of a tree."""

    several: bool  # False: the law is (k,), not (laws, k)
    laws: int
    rows: list[int]  # for each leaf, which law it follows
    real_rows: list[int]  # for each of `rllc.optax.leaves.real_leaves`: a complex leaf has two


def check_scope(scope: Scope) -> None:
    """Refuse a text that is no scope, and none."""
    if scope is None or (isinstance(scope, str) and scope not in ("all", "tensor")):
        raise ValueError(
            'scope must be "all", "tensor", a tree of labels or a function from the parameters to one;'
            f" got {scope!r}"
        )


def first_laws(scope: Scope, law: jax.Array, params: Any) -> jax.Array:
    """(k,) the one law, or (laws, k) as many as there are."""
    if _is(scope, "all"):
        return law
    count = len(jax.tree.leaves(params)) if _is(scope, "tensor") else len(_names(_labels(scope, params)))
    return jnp.tile(law, (count, 1))


def spread(scope: Scope, law: jax.Array, tree: Any) -> Spread:
    """Laws in sorted order of their labels, or in the order of jax.tree.leaves where each has its own.

    Raises:
        ValueError: the labels are of another tree, or other ones than those of `law`, (laws, k).
    """
    leaves = jax.tree.leaves(tree)
    if _is(scope, "all"):
        laws, rows = 1, [0] * len(leaves)
    elif _is(scope, "tensor"):
        laws, rows = len(leaves), list(range(len(leaves)))
    else:
        laws, rows = _by_label(_labels(scope, tree), tree)
    if not _is(scope, "all") and laws != len(law):
        raise ValueError(f"scope has {laws} laws, but the state holds {len(law)}: init anew")
    real_rows = [row for row, x in zip(rows, leaves, strict=True) for _ in range(1 + jnp.iscomplexobj(x))]
    return Spread(not _is(scope, "all"), laws, rows, real_rows)


def law_of_leaves(law: jax.Array, spread: Spread) -> list[jax.Array]:
    """For each leaf its law, (k,)."""
    return [law[row] if spread.several else law for row in spread.rows]


def each(spread: Spread, f: Callable[..., Any], *args: Any) -> Any:
    """f of each law's arguments, which have a leading axis where there are several laws."""
    return jax.vmap(f)(*args) if spread.several else f(*args)


def only(spread: Spread, tree: Any) -> Any:
    """Without the leading axis of what was computed for each law, where there is one."""
    return tree if spread.several else jax.tree.map(lambda x: x[0], tree)


def _by_label(labels: Any, tree: Any) -> tuple[int, list[int]]:
    names = _names(labels)
    try:
        rows = jax.tree.map(
            lambda label, part: [names.index(label)] * len(jax.tree.leaves(part)), labels, tree
        )
    except ValueError as error:
        raise ValueError(f"the labels of scope are no prefix tree of the parameters: {error}") from None
    return len(names), jax.tree.leaves(rows)


def _labels(scope: Scope, tree: Any) -> Any:
    return scope(tree) if callable(scope) else scope


def _names(labels: Any) -> list[Any]:
    return sorted(set(jax.tree.leaves(labels)), key=str)


def _is(scope: Scope, name: str) -> bool:
    return isinstance(scope, str) and scope == name
