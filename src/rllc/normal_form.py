"""Normal forms: every linear memory is a union of Jordan block propagators, and which ones are the same.

A reachable (B, a) of k units is, up to a change of basis Q, its k eigenvalues: the union of one M_m(λ) per
real eigenvalue and one CM_m(γ) per conjugate pair, all different (arXiv 2402.15262, Theorem 5.3; corrected
statement: mathematics.md, section 3). So

    M(.9) + M(.9) = M(.9)     M_2(.6) + M(.6) = M_2(.6)     CM(γ) + CM(γ*) = CM(γ)

    normal_form(p)         that union, and the change of units that leads to it
    equivalent(p, q)       whether two propagators give the same optimizer in different units
    change_of_units(p, q)  the map of states (M, L) -> (M Q, Q⁻¹ L) between them

Eigenvalues of a defective B split by eps^(1/m), so they are not compared one by one. What they span together
is known to rounding, and is compared: the distance of two memories is the sine of the largest angle between
their spaces of abstract rules aᵀ Bⁱ, the same in any units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse.csgraph
from numpy.typing import ArrayLike, NDArray

from rllc.notation import as_propagator
from rllc.propagator import Array, Propagator, jordan_blocks, union_of_blocks, upper

__all__ = ["ChangeOfUnits", "NormalForm", "NormalFormError", "change_of_units", "equivalent", "normal_form"]

Blocks = tuple[tuple[complex, int], ...]

# Fewest merges first: 0, then half decades (mathematics.md, section 3). Eigenvalues live on the scale 1.
GAPS = (0.0, *(10 ** (half / 2) for half in range(-24, -1)))
RULE_TOL = 1e-9
MAX_UNIT_COND = 1e5
REAL_AXIS = 1e-13
# Of a map of states, the error in any unit.
MAP_TOL = 1e-6
# How much farther off a memory may be than one whose entries' last bits are changed once (measured: 2).
ROUNDING = 30.0
# Trailing digits are dropped where the rules do not get worse by it.
DECIMALS = 12


class NormalFormError(ValueError):
    """The units of every possible normal form would be too nearly dependent to be computed with."""


@dataclass(frozen=True, eq=False)
class ChangeOfUnits:
    """The map of states (M, L) -> (M Q, Q⁻¹ L) from k units to k' (Lemma 3.8, corrected).

    Q is invertible where all units are reachable. Otherwise Q Q⁻¹ is the projection onto the reachable
    part, on which memory from M_0 = 0 stays: M Q Q⁻¹ = M, and M (Q Q⁻¹ L) = M L.

    Args:
        Q: (k, k').
        Q_inv: (k', k).
    """

    Q: Array
    Q_inv: Array

    @property
    def inverse(self) -> ChangeOfUnits:
        """The map back, (M, L) -> (M Q⁻¹, Q L)."""
        return ChangeOfUnits(self.Q_inv, self.Q)

    def states(self, M: ArrayLike, L: ArrayLike) -> tuple[Array, Array]:
        """(M Q, Q⁻¹ L) for memory M (n, k) and law L (k,): another state, the same step M L.

        Raises:
            ValueError: M or L does not have k units, or is complex.
        """
        if np.iscomplexobj(M) or np.iscomplexobj(L):
            raise ValueError("a state is real; give a complex unit as two, its real and its imaginary part")
        M, L = np.asarray(M, dtype=np.float64), np.asarray(L, dtype=np.float64)
        k = len(self.Q)
        if M.ndim != 2 or M.shape[1] != k or L.shape != (k,):
            raise ValueError(f"a state of {k} units is M (n, {k}) and L ({k},); got {M.shape} and {L.shape}")
        return M @ self.Q, self.Q_inv @ L


@dataclass(frozen=True, eq=False)
class NormalForm:
    """A propagator's normal form: a union of Jordan block propagators with different eigenvalues.

    Attributes:
        propagator: the union, r units; its repr is the paper's notation. Real blocks come first, then by
            falling modulus; complex ones have Im γ > 0.
        P: (k, r) isometry onto the reachable part, M = M_r Pᵀ.
        Z: (r, r) with M_r = M_normal Z.
        residual: largest relative error with which the normal units reproduce an abstract rule.
        unit_cond: how nearly dependent the normal units are under white noise (1: orthonormal). A Gram
            matrix has its square: keep the k x k work in float64 where this is above 100.
    """

    propagator: Propagator
    P: Array
    Z: Array
    residual: float
    unit_cond: float

    @property
    def Q(self) -> Array:
        """Z⁻¹, (r, r): the normal units are M_normal = M_r Q."""
        return np.linalg.inv(self.Z).astype(np.float64)

    @property
    def change(self) -> ChangeOfUnits:
        """The map of states from the original k units to the r normal ones."""
        return ChangeOfUnits(self.P @ self.Q, self.Z @ self.P.T)

    def to_normal(self, M: ArrayLike, L: ArrayLike) -> tuple[Array, Array]:
        """A state (M, L) of the original propagator in the normal units: (M P Q, Q⁻¹ Pᵀ L)."""
        return self.change.states(M, L)

    def from_normal(self, M: ArrayLike, L: ArrayLike) -> tuple[Array, Array]:
        """A state (M, L) of the normal form in the original units: (M Q⁻¹ Pᵀ, P Q L)."""
        return self.change.inverse.states(M, L)


def normal_form(p: Propagator) -> NormalForm:
    """The union of Jordan block propagators that p is equivalent to (Theorem 5.3; mathematics.md, section 3).

    Unreachable units are dropped (r of k remain), eigenvalues nearer than a growing gap are merged into one
    block, and the first union is taken that is `equivalent` to p and whose units are well enough conditioned
    (unit_cond <= 1e5). Merging at a gap d moves the space of rules by only O(d²).

    Raises:
        NormalFormError: no such union exists in float64, as for many eigenvalues close together; the
            message says what to do.
        ValueError: a = 0, so that no gradient ever enters the memory.
    """
    P, reached = p.reachable()
    rules = reached.abstract_rule(reached.lags)
    why_not = []
    written = _written(reached)
    for blocks in (*written, *_candidates(reached.eigenvalues)):
        target = union_of_blocks(blocks)
        unit_cond = _unit_cond(target)
        if unit_cond > MAX_UNIT_COND:
            why_not.append(f"the units of {_name(target)} are nearly dependent (unit_cond over 1e5)")
            continue
        form = _fit(target, P, rules, unit_cond)
        error = max(form.residual, _distance(reached, target))
        if error <= RULE_TOL:
            return form if blocks in written else _shortest(form, blocks, reached, rules)
        why_not.append(f"{_name(target)} has other rules (relative error {error:.1e})")
    raise NormalFormError(
        f"{_name(p)} has no normal form that float64 can compute with: {'; '.join(why_not[:2])};"
        " run it in the units it is given in, or move its eigenvalues apart"
    )


def equivalent(p: str | Propagator, q: str | Propagator, tol: float = RULE_TOL) -> bool:
    """Whether p and q give the same optimizer in different units (mathematics.md, section 3).

    True if the reachable parts have the same size and every combination of the one's abstract rules is one of
    the other's, to the relative error tol. One that is not written as Jordan blocks is allowed what rounding
    of its entries makes of it.

    Raises:
        ValueError: no gradient ever enters p or q.
    """
    (_, p_reached), (_, q_reached) = (as_propagator(memory).reachable() for memory in (p, q))
    return _distance(p_reached, q_reached) <= tol


def change_of_units(p: str | Propagator, q: str | Propagator, tol: float = RULE_TOL) -> ChangeOfUnits:
    """The map of states from the units of p to those of q, where the two are equivalent.

    For reachable p and q it is the only Q with q = (Q⁻¹ B Q, Qᵀ a) (Theorem 5.2, corrected).

    Raises:
        ValueError: p and q are not equivalent, or have units so nearly dependent that float64 has no map.
    """
    p, q = as_propagator(p), as_propagator(q)
    (P, p_reached), (P_, q_reached) = p.reachable(), q.reachable()
    distance = _distance(p_reached, q_reached)
    if not distance <= tol:
        raise ValueError(
            f"no change of units leads from {_name(p)} to {_name(q)}: they are not equivalent (relative error"
            f" of the rules {distance:.1e}, allowed {tol:.1e})"
        )
    lags = max(p_reached.lags, q_reached.lags)
    (R, size), (R_, its) = (_unit_sized(part.abstract_rule(lags)) for part in (p_reached, q_reached))
    if _condition(R) <= _condition(R_):  # the better conditioned units give the map to more digits
        Q, _ = _combine(R, R_)
    else:
        Q = np.linalg.inv(_combine(R_, R)[0]).astype(np.float64)
    Q_inv = np.linalg.inv(Q)
    off = max(_error(R @ Q, R_), _error(R_ @ Q_inv, R))
    if not off <= MAP_TOL:
        raise ValueError(
            f"{_name(p)} and {_name(q)} are equivalent, but of units so nearly dependent that the change from"
            f" one to the other is off by {off:.1e} in float64; move eigenvalues apart"
        )
    ratio = its / size[:, None]
    return ChangeOfUnits(P @ (Q * ratio) @ P_.T, P_ @ (Q_inv / ratio.T) @ P.T)


def _distance(p: Propagator, q: Propagator) -> float:
    """How far apart the spaces of rules of reachable p and q are, beyond what rounding may have done."""
    if p.k != q.k:
        return math.inf
    return max(_sine(p.eigenvalues, q.eigenvalues) - _rounding(p) - _rounding(q), 0.0)


def _sine(z: NDArray[np.complex128], z_: NDArray[np.complex128]) -> float:
    """The sine of the largest angle between the rules of k eigenvalues and of k others; 0 if they are equal.

    It is |b(S)|₂ with b(s) = Π (s - z'_j) / (1 - z̄'_j s) and S the shift of rules, B in orthonormal filters.
    """
    S, one = _shift(z), np.eye(z.size)
    product = one
    for value in reversed(z_):  # S - z_1 to the left, so that equal eigenvalues leave nothing at all
        product = np.linalg.solve(one - value.conj() * S, (S - value * one) @ product)
    return float(np.linalg.norm(product, 2))


def _shift(z: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """B (k, k) in the orthonormal filters of Takenaka and Malmquist for the eigenvalues z; triangular."""
    rest = np.sqrt((1 - abs(z)) * (1 + abs(z)))  # what one gradient leaves in each
    S = np.diag(z)
    for i in range(z.size - 1):
        between = np.cumprod(np.append(1, -z[i + 1 : -1].conj()))
        S[i, i + 1 :] = rest[i] * between * rest[i + 1 :]
    return S


def _rounding(p: Propagator) -> float:
    """How far rounding of its entries may have put the rules of p off; those of blocks are exact."""
    if jordan_blocks(p) is not None:
        return 0.0
    signs = np.random.default_rng(0).choice([-1.0, 1.0], p.B.shape)
    eps = np.finfo(float).eps
    z = np.linalg.eigvals(p.B * (1 + eps * signs)).astype(np.complex128)
    return ROUNDING * _sine(p.eigenvalues, z / np.maximum(1, abs(z) / (1 - eps)))


def _condition(R: Array) -> float:
    """Condition of the columns of R, each scaled to the same size."""
    return float(np.linalg.cond(R / np.linalg.norm(R, axis=0)))


def _unit_sized(R: Array) -> tuple[Array, Array]:
    """R with the largest entry of each column 1, and what it was."""
    size = abs(R).max(0)
    return R / size, size


def _combine(R: Array, wanted: Array) -> tuple[Array, float]:
    """Z with R Z nearest to wanted, and the largest relative error of a column."""
    (R, size), (wanted, its) = _unit_sized(R), _unit_sized(wanted)
    orthonormal, triangle = np.linalg.qr(R)
    Z = scipy.linalg.solve_triangular(triangle, orthonormal.T @ wanted)
    return Z * (its / size[:, None]), _error(R @ Z, wanted)


def _error(got: Array, wanted: Array) -> float:
    """The largest relative error of a column."""
    return float((np.linalg.norm(got - wanted, axis=0) / np.linalg.norm(wanted, axis=0)).max())


def _written(p: Propagator) -> tuple[Blocks, ...]:
    """The blocks that a reachable p is written in, if it is: the first candidate, to the last digit."""
    blocks = jordan_blocks(p)
    return (_sorted((upper(z), m) for z, m in blocks),) if blocks else ()


def _candidates(eigenvalues: NDArray[np.complex128]) -> Iterator[Blocks]:
    """The blocks that each gap suggests, fewest merges first, each once."""
    seen = set()
    for gap in GAPS:
        blocks = _blocks(eigenvalues, gap)
        if blocks is not None and blocks not in seen:
            seen.add(blocks)
            yield blocks


def _blocks(eigenvalues: NDArray[np.complex128], gap: float) -> Blocks | None:
    """(eigenvalue, order) of each block; None if clusters of conjugates do not pair up."""
    axis = max(gap, REAL_AXIS)
    means = [(_mean(cluster), cluster.size) for cluster in _clusters(eigenvalues, gap)]
    real = [(z.real, m) for z, m in means if abs(z.imag) <= axis]
    upper = [(z, m) for z, m in means if z.imag > axis]
    if sum(m for _, m in real) + 2 * sum(m for _, m in upper) != eigenvalues.size:
        return None
    return _sorted((*real, *upper))


def _clusters(eigenvalues: NDArray[np.complex128], gap: float) -> Iterator[NDArray[np.complex128]]:
    """Single-link clusters: chains of eigenvalues with steps of at most gap."""
    near = abs(eigenvalues[:, None] - eigenvalues) <= gap
    count, labels = scipy.sparse.csgraph.connected_components(near, directed=False)
    for label in range(count):
        yield eigenvalues[labels == label]


def _mean(cluster: NDArray[np.complex128]) -> complex:
    """The mean; of equal values exactly that value."""
    return complex(cluster[0] + (cluster - cluster[0]).mean())


def _sorted(blocks: Iterable[tuple[complex, int]]) -> Blocks:
    """Real before complex, then by falling modulus, real part, imaginary part and order."""

    def place(block: tuple[complex, int]) -> tuple[bool, float, float, float, int]:
        z, m = block
        return isinstance(z, complex), -round(abs(z), DECIMALS), -z.real, -z.imag, -m

    return tuple(sorted(blocks, key=place))


def _unit_cond(p: Propagator) -> float:
    """max(√cond of the units' correlation matrix, largest over smallest unit) under white noise."""
    gramian = p.gramian()
    size = np.sqrt(np.diag(gramian))
    if not size.all():  # a unit too small to be squared
        return math.inf
    values = np.linalg.eigvalsh(gramian / np.outer(size, size))
    if values[0] <= 0:
        return math.inf
    return float(max(np.sqrt(values[-1] / values[0]), size.max() / size.min()))


def _fit(target: Propagator, P: Array, rules: Array, unit_cond: float) -> NormalForm:
    Z, residual = _combine(target.abstract_rule(len(rules)), rules)
    return NormalForm(target, P, Z, residual, unit_cond)


def _shortest(form: NormalForm, blocks: Blocks, p: Propagator, rules: Array) -> NormalForm:
    """The form with its eigenvalues rounded, 0.6 for 0.6000000000000001, where that fits as well.

    An eigenvalue's last bit changes a rule by about eps / (1 - ρ): so much is no difference.
    """
    rounded = tuple((_round(z), m) for z, m in blocks)
    if any(not abs(z) < 1 or (isinstance(z, complex) and z.imag == 0) for z, _ in rounded):
        return form
    target = union_of_blocks(rounded)
    short = _fit(target, form.P, rules, _unit_cond(target))
    rounding = 16 * np.finfo(float).eps / (1 - target.spectral_radius)
    fits = short.residual <= max(2 * form.residual, rounding) and _distance(p, target) <= RULE_TOL
    return short if fits else form


def _round(z: complex) -> complex:
    if isinstance(z, complex):
        return complex(_round(z.real), _round(z.imag))
    return round(z, DECIMALS) + 0.0  # no -0.0


def _name(p: Propagator) -> str:
    text = repr(p)
    return text if len(text) <= 120 else f"this memory of {p.k} units"
