"""Linear memory as a value: the propagator (B, a) of the update M <- M B + g aᵀ.

    M(0.9)                 one momentum sum              m <- 0.9 m + g
    M(0.6, order=2)        a Jordan block of size two    m_1 <- 0.6 m_1 + g,  m_2 <- 0.6 m_2 + m_1 (old)
    CM(0.3 + 0.2j)         complex momentum, two units   z <- (0.3 + 0.2i) z + g,  z = m_1 + i m_2
    p | q                  union: the units of p, then the units of q
    p.change_basis(Q)      the same optimizer seen in the units M Q

M is n x k (columns are units), so updates act on the right. Everything here is float64 NumPy.
Sources: arXiv 2402.15262, sections 4 and 5, as corrected in docs/mathematics.md.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import scipy.linalg
import scipy.sparse.csgraph
from numpy.typing import ArrayLike, NDArray

from rllc.checks import whole_number

if TYPE_CHECKING:
    from rllc.normal_form import NormalForm

__all__ = ["CM", "M", "Propagator"]

Array = NDArray[np.float64]
Number = TypeVar("Number", float, complex)

# Arnoldi stops when a new direction is smaller than this times |B|, in balanced units: mathematics.md, 3(i).
REACHABLE_RTOL = 1e-10
# The part found holds every unit to this relative error, or what seemed rounding was none.
REPRODUCED = 1e-8
# Enough for spectral radii up to 1 - 1e-16.
MAX_DOUBLINGS = 60
FORGOTTEN = 1e-17
# The first 2k gradients determine rules, the others say how large they grow: so this only saves time.
MAX_LAGS = 50_000


@dataclass(frozen=True, eq=False, repr=False)
class Propagator:
    """The linear memory update M <- M B + g aᵀ of k units; an immutable value.

    Unit j follows m_j <- a_j g + Σ_i B_ij m_i, all from the old values (arXiv 2402.15262, eq. 1).

    Args:
        B: (k, k) real matrix with spectral radius below 1.
        a: (k,) real vector.

    Raises:
        ValueError: a shape does not fit, an entry is not a finite real number, or the spectral radius
            of B is 1 or more (the memory would never forget).
    """

    B: Array
    a: Array

    def __init__(self, B: ArrayLike, a: ArrayLike) -> None:
        B, a = _real("B", B, ndim=2), _real("a", a, ndim=1)
        if B.shape != (a.size, a.size) or a.size == 0:
            raise ValueError(f"B must be (k, k) and a (k,) with k >= 1; got {B.shape} and {a.shape}")
        radius = _spectral_radius(B)
        if radius >= 1:
            raise ValueError(
                f"the spectral radius of B is {radius:.6g}, which is not below 1: old gradients would never"
                " fade; use eigenvalues inside the unit circle"
            )
        for name, value in (("B", B), ("a", a)):
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @property
    def k(self) -> int:
        """The number of memory units."""
        return self.a.size

    @property
    def eigenvalues(self) -> NDArray[np.complex128]:
        """The k eigenvalues of B, largest modulus first."""
        values = _eigenvalues(self.B).astype(np.complex128)
        return values[np.lexsort((-values.imag, -values.real, -abs(values).round(12)))]

    @property
    def spectral_radius(self) -> float:
        """The largest modulus of an eigenvalue of B; below 1 by construction."""
        return _spectral_radius(self.B)

    def __or__(self, other: Propagator) -> Propagator:
        """Union (⊕ in the paper): both sets of units, updated independently."""
        if isinstance(other, str):
            raise TypeError(f"a union is of two propagators, got {other!r}; rllc.parse makes one of a text")
        if not isinstance(other, Propagator):
            return NotImplemented
        return _union([self, other])

    def change_basis(self, Q: ArrayLike) -> Propagator:
        """The propagator of the units M Q: (Q⁻¹ B Q, Qᵀ a) (Theorem 5.2, corrected).

        Raises:
            ValueError: Q is not a real (k, k) matrix, or is singular.
        """
        Q = _real("Q", Q, ndim=2)
        if Q.shape != self.B.shape:
            raise ValueError(f"Q must be a ({self.k}, {self.k}) matrix, got shape {Q.shape}")
        level = Q
        for axis in (1, 0):  # how long units are is no matter, neither of these (rows) nor of those to be
            size = abs(level).max(axis, keepdims=True)
            level = level / np.where(size > 0, size, 1.0)
        if np.linalg.matrix_rank(level) < self.k:
            raise ValueError(f"Q is singular, so that the units M Q hold less than M: {Q.tolist()}")
        return Propagator(np.linalg.solve(Q, self.B @ Q), Q.T @ self.a)

    def abstract_rule(self, n: int) -> Array:
        """The weights of the last n gradients in each unit: (n, k), row i is aᵀ Bⁱ (eq. 2).

        From M_0 = 0 the memory at time t is M_t = Σ_i g_{t-i} (row i).

        Raises:
            ValueError: n is no whole number, or negative.
        """
        n = whole_number("n", n)
        powers = itertools.accumulate(itertools.repeat(self.B, max(n - 1, 0)), np.matmul, initial=self.a)
        return np.array(list(itertools.islice(powers, n))).reshape(n, self.k)

    @property
    def lags(self) -> int:
        """On how many gradients rules are compared: N with ρᴺ < 1e-17, at most 50,000, and at least 2k."""
        rho = self.spectral_radius
        needed = math.log(FORGOTTEN) / math.log(rho) if rho > 0 else 0.0
        return max(2 * self.k, min(math.ceil(needed), MAX_LAGS))

    def growth(self) -> Array:
        """(k+1,) Σ_j |B_ij| for each unit i, then max_j |a_j|.

        No entry of M B + g aᵀ exceeds what these make of the largest entries of the units and of g.
        """
        return np.append(np.abs(self.B).sum(1), np.abs(self.a).max())

    def moments(self) -> tuple[Array, Array]:
        """Of the weights aᵀBⁱ of past gradients in each unit: Σ_i aᵀBⁱ and Σ_i i aᵀBⁱ, (k,) each."""
        resolvent = np.linalg.inv(np.eye(self.k) - self.B.T)
        r0 = resolvent @ self.a
        return r0, resolvent @ self.B.T @ r0

    def reachable(self) -> tuple[Array, Propagator]:
        """The part of memory that gradients can reach: an isometry P (k, r) and the propagator on it.

        P spans {a, Bᵀa, (Bᵀ)²a, ...}; from M_0 = 0 the memory is M = M_r Pᵀ at all times, so that the
        optimizer with r units and law Pᵀ L takes the same steps (mathematics.md, section 3(i)). r < k for
        example for M(0.9) | M(0.9), whose two units are always equal. Of units not written as blocks, the
        directions that nearly equal eigenvalues make cannot be told from rounding: there r may depend on the
        units, the steps do not.

        Raises:
            ValueError: a = 0, so that no gradient ever enters the memory.
        """
        if not self.a.any():
            raise ValueError(
                "a is zero: no gradient ever enters this memory; give a unit a nonzero entry of a"
            )
        blocks = jordan_blocks(self)
        if blocks and len({upper(z) for z, _ in blocks}) < len(blocks):
            P, merged = _merged(blocks)
            P_, reached = merged.reachable()
            return P @ P_, reached
        size = self._sizes()
        heard = np.flatnonzero(size)
        K = krylov(*rescaled(self.B[np.ix_(heard, heard)], self.a[heard], size[heard]))
        if K.shape[1] < heard.size and not self._is_held(self._part(K, size), size):
            K = np.eye(heard.size)
        if K.shape[1] == self.k:  # all of it: keep the user's own units
            return np.eye(self.k), self
        P, B, a = self._part(K, size)
        return P, Propagator(B, a)

    def _part(self, K: Array, size: Array) -> tuple[Array, Array, Array]:
        """P (k, r), B_r and a_r of what K spans, an orthonormal basis in the units of size not zero."""
        heard = np.flatnonzero(size)
        size = size[heard]
        B, a = rescaled(self.B[np.ix_(heard, heard)], self.a[heard], size)
        # Back in the user's units. Largest first and with pivots, QR is exact to rounding in each of them.
        order = np.argsort(-size)
        P = np.zeros((self.k, K.shape[1]))
        in_units = (size[:, None] * K)[order]
        P[heard[order]], R, pivots = scipy.linalg.qr(in_units, mode="economic", pivoting=True)
        K = K[:, pivots]
        return P, scipy.linalg.solve_triangular(R, K.T @ B @ K @ R.T, trans="T"), R @ (K.T @ a)

    def _is_held(self, part: tuple[Array, Array, Array], size: Array) -> bool:
        """Whether M = M_r Pᵀ for this part (P, B_r, a_r), to half of the digits of every unit."""
        P, B, a = part
        if _spectral_radius(B) >= 1:
            return False
        want = self.abstract_rule(self.lags)
        error = abs(Propagator(B, a).abstract_rule(self.lags) @ P.T - want).max(0)
        return bool((error <= REPRODUCED * np.maximum(abs(want).max(0), size)).all())

    def _sizes(self) -> Array:
        """How large each unit's numbers are, (k,): in units of other sizes as much larger, 0 where none come.

        The largest product of an entry of a and of those of |B| on a way to the unit, with |B| divided by its
        spectral radius where that is above 1, so that no detour counts for more.
        """
        B = np.abs(self.B) / max(1.0, _spectral_radius(np.abs(self.B)))
        size = np.abs(self.a)
        for _ in range(self.k - 1):
            size = np.maximum(size, (size[:, None] * B).max(0))
        return size

    def gramian(self) -> Array:
        """The white-noise Gramian Γ = Σ_i (Bᵀ)ⁱ a aᵀ Bⁱ, (k, k).

        E MᵀM = S Γ when gradients are independent noise of total variance S. It solves the discrete
        Lyapunov equation Γ = Bᵀ Γ B + a aᵀ; in the units M Q it is Qᵀ Γ Q (mathematics.md, section 6).

        Raises:
            ValueError: it is too large for float64.
        """
        # The sum of 2n terms is that of n, plus (Bᵀ)ⁿ times it times Bⁿ. Unlike a Lyapunov solver this is
        # exact to rounding in each entry, also where units differ in size by many orders of magnitude.
        total, power = np.outer(self.a, self.a), self.B
        for _ in range(MAX_DOUBLINGS):
            with np.errstate(over="ignore", invalid="ignore"):
                more = power.T @ total @ power
                total, power = total + more, power @ power
            size = np.sqrt(abs(np.diag(total)))  # of a unit not reached yet, what rounding makes of zero
            if not np.isfinite(size).all():
                raise ValueError(f"the units of {self!r} grow too large to square; move eigenvalues inwards")
            if (abs(more) <= np.finfo(float).eps / 8 * np.outer(size, size)).all():
                break
        return (total + total.T) / 2

    def whitening(self) -> Array:
        """A matrix T (k, r) with Tᵀ Γ T = I whose columns are reachable laws: orthonormal filters.

        The units M T are uncorrelated and of equal size when gradients are white noise. Any other
        choice differs by a rotation of the columns (mathematics.md, section 6).

        Raises:
            ValueError: a = 0, or two units are so nearly the same that float64 cannot tell them apart.
        """
        P, reached = self.reachable()
        unit = reached._sizes()  # so that none is squared to nothing
        gramian = Propagator(*rescaled(reached.B, reached.a, unit)).gramian()
        size = np.sqrt(np.diag(gramian))
        values, vectors = np.linalg.eigh(gramian / np.outer(size, size))
        if values[0] < 1e-14 * values[-1]:
            raise ValueError(
                f"the units of {self!r} are too nearly dependent (correlation matrix has condition"
                f" {values[-1] / max(values[0], 1e-300):.1e}); move eigenvalues apart, merge near"
                " ones into a block M_m, or take a block of lower order"
            )
        return P @ (vectors / np.sqrt(values) / (unit * size)[:, None])

    def normal_form(self) -> NormalForm:
        """The union of Jordan block propagators this one is equivalent to; see `rllc.normal_form`."""
        from rllc.normal_form import normal_form  # there lives the algorithm; imports run one way

        return normal_form(self)

    def equivalent(self, other: str | Propagator) -> bool:
        """Whether both give the same optimizer up to a change of basis; see `rllc.normal_form`."""
        from rllc.normal_form import equivalent

        return equivalent(self, other)

    def __reduce__(self) -> tuple[type[Propagator], tuple[Array, Array]]:
        """Copies and pickles are built anew, so that their arrays are read-only too."""
        return Propagator, (self.B, self.a)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Propagator):
            return NotImplemented
        return np.array_equal(self.B, other.B) and np.array_equal(self.a, other.a)

    def __hash__(self) -> int:
        # + 0.0 gives 0.0 and -0.0, which compare equal, the same bytes.
        return hash(((self.B + 0.0).tobytes(), (self.a + 0.0).tobytes()))

    def __repr__(self) -> str:
        """The paper's notation where the units are Jordan blocks, `Propagator(B=..., a=...)` elsewhere."""
        blocks = jordan_blocks(self)
        if blocks is None:
            return f"Propagator(B={self.B.tolist()}, a={self.a.tolist()})"
        return " + ".join(_block_text(value, order) for value, order in blocks)


def M(beta: float, order: int = 1) -> Propagator:
    """The Jordan block propagator M_m(β): m_1 <- β m_1 + g, m_j <- β m_j + m_{j-1} (old values).

    Unit j holds Σ_i C(i, j-1) β^{i-j+1} g_{t-i}; order 1 is ordinary momentum (a sum, not an average),
    β = 0 a delay line of the last m gradients (arXiv 2402.15262, sections 4 and 5).

    Raises:
        ValueError: β is not a real number in (-1, 1), or the order is not a positive integer.
    """
    order = whole_number("the order of a block", order, least=1)
    if not isinstance(beta, numbers.Real) or isinstance(beta, bool):
        use = ""
        if isinstance(beta, numbers.Complex):
            z = complex(beta)
            use = f"; use {_block_text(z if z.imag else z.real, order)}"
        raise ValueError(f"M needs a real number, got {beta!r}{use}")
    beta = float(_inside_unit_circle(beta))
    return Propagator(beta * np.eye(order) + np.eye(order, k=1), np.eye(order)[0])


def CM(gamma: complex, order: int = 1) -> Propagator:
    """The complex block propagator CM_m(γ), 2m units: z_1 <- γ z_1 + g, z_j <- γ z_j + z_{j-1} (old).

    z_j = m_{2j-1} + i m_{2j}. The paper prints the matrix of the conjugate; this is the one that obeys
    its own formula m <- g + γ m (mathematics.md, section 1).

    Raises:
        ValueError: γ is real, not finite, or on or outside the unit circle; or the order is not positive.
    """
    order = whole_number("the order of a block", order, least=1)
    if not isinstance(gamma, numbers.Complex):
        raise ValueError(f"CM needs a complex number, got {gamma!r}")
    gamma = complex(_inside_unit_circle(gamma))
    if gamma.imag == 0:
        text = _block_text(gamma.real, order)
        raise ValueError(f"CM({gamma.real}) would leave its second unit empty; use {text} for a real number")
    C = np.array([[gamma.real, gamma.imag], [-gamma.imag, gamma.real]])
    B = np.kron(np.eye(order), C) + np.kron(np.eye(order, k=1), np.eye(2))
    return Propagator(B, np.eye(2 * order)[0])


def jordan_blocks(p: Propagator) -> list[tuple[complex, int]] | None:
    """(eigenvalue, order) of each block of a union of M_m and CM_m; None if p is not written as one.

    Real eigenvalues come as float, complex ones as complex. Reads the matrices exactly, entry by entry.
    """
    starts = [*np.flatnonzero(p.a), p.k]
    if starts[0] != 0:
        return None
    found = [_block(p.B[i:j, i:j]) for i, j in itertools.pairwise(starts)]
    if any(math.hypot(z.real, z.imag) >= 1 for z, _ in found):
        return None  # corner entries that are not eigenvalues
    return found if union_of_blocks(found) == p else None


def union_of_blocks(blocks: Iterable[tuple[complex, int]]) -> Propagator:
    """The union of M_m (for a float) and CM_m (for a complex) that `jordan_blocks` reads back."""
    return _union([CM(z, m) if isinstance(z, complex) else M(z, m) for z, m in blocks])


def _union(parts: Sequence[Propagator]) -> Propagator:
    return Propagator(scipy.linalg.block_diag(*(p.B for p in parts)), np.concatenate([p.a for p in parts]))


def upper(z: complex) -> complex:
    """Of two conjugates, whose blocks hold the same, the one above the real axis."""
    return complex(z.real, abs(z.imag)) if isinstance(z, complex) else z


def _merged(blocks: Sequence[tuple[complex, int]]) -> tuple[Array, Propagator]:
    """An isometry P (k, r) and a propagator with M = M_r Pᵀ, of a union in which eigenvalues come again.

    The largest block of an eigenvalue has all units of its others. Known to be equal, they cost no digits;
    found by orthogonalising, they cost all that the nearly parallel units of large blocks leave.
    """
    largest: dict[complex, int] = {}
    for z, m in blocks:
        largest[upper(z)] = max(m, largest.get(upper(z), 0))
    union = union_of_blocks(largest.items())
    starts = dict(zip(largest, np.flatnonzero(union.a).tolist(), strict=True))
    copies = []
    for z, m in blocks:
        units = np.eye(2 * m if isinstance(z, complex) else m, union.k, k=starts[upper(z)])
        if z.imag < 0:
            units[1::2] *= -1
        copies.append(units)
    P = np.concatenate(copies)
    size = np.sqrt((P * P).sum(0))
    return P / size, Propagator(*rescaled(union.B, union.a, 1 / size))


def rescaled(B: Array, a: Array, size: Array) -> tuple[Array, Array]:
    """(B, a) of the units divided by these sizes (k,)."""
    return B * (size[:, None] / size), a / size


def krylov(B: Array, a: Array) -> Array:
    """An orthonormal basis (k, r) of a, Bᵀa, (Bᵀ)²a, ..., by Arnoldi's method; a is not zero."""
    least = REACHABLE_RTOL * max(np.linalg.norm(B, 2), np.finfo(float).tiny)
    K = (a / np.linalg.norm(a))[:, None]
    while K.shape[1] < a.size:
        w = B.T @ K[:, -1]
        for _ in range(3):  # Gram-Schmidt, repeated until orthogonal to rounding
            w = w - K @ (K.T @ w)
        if np.linalg.norm(w) <= least:
            break
        K = np.column_stack([K, w / np.linalg.norm(w)])
    return K


def _block(B: Array) -> tuple[complex, int]:
    size = len(B)
    if size > 1 and size % 2 == 0 and B[0, 1] != 0 and B[1, 0] != 0:
        return complex(B[0, 0], B[0, 1]), size // 2
    return float(B[0, 0]), size


def _block_text(value: complex, order: int) -> str:
    index = "" if order == 1 else f"_{order}"
    if isinstance(value, complex):
        return f"CM{index}({value.real!r}{value.imag:+}i)"
    return f"M{index}({value!r})"


def _real(name: str, value: ArrayLike, ndim: int) -> Array:
    array = np.array(value)
    if array.dtype.kind not in "iuf" or array.ndim != ndim:
        kind = "vector" if ndim == 1 else "matrix"
        raise ValueError(f"{name} must be a real {kind}, got shape {array.shape} of {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has an entry that is not finite: {array.tolist()}")
    return array


def _inside_unit_circle(value: Number) -> Number:
    try:
        inside = math.hypot(value.real, value.imag) < 1  # of a complex number abs may raise OverflowError
    except OverflowError:  # an integer or a fraction beyond float64
        inside = False
    if not inside:
        raise ValueError(
            f"{value} is not inside the unit circle: old gradients would never fade; use a modulus below 1"
        )
    return value


def _components(B: Array) -> Iterator[Array]:
    """The irreducible diagonal blocks of B, found from which entries are zero."""
    labels = scipy.sparse.csgraph.connected_components(B != 0, directed=True, connection="strong")[1]
    for label in range(labels.max() + 1):
        index = np.flatnonzero(labels == label)
        yield B[np.ix_(index, index)]


def _eigenvalues(B: Array) -> NDArray[np.complex128]:
    """Eigenvalues of B; block triangular structure is used, so that those of M_m(β) are exactly β."""
    if not np.tril(B, -1).any():  # of all unions of M_m, for which there is no need to look
        return np.diag(B)
    return np.concatenate([np.linalg.eigvals(block) for block in _components(B)])


def _spectral_radius(B: Array) -> float:
    return float(np.max(np.abs(_eigenvalues(B))))
