"""Memories drawn by hypothesis: Jordan blocks, unions of them, and changes of basis."""

import functools
import operator

import numpy as np
from hypothesis import strategies as st

from rllc.propagator import CM, M

moduli = st.floats(0.0, 0.95)
reals = st.floats(-0.95, 0.95)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def complexes(draw):
    """γ with |γ| <= 0.95, not real."""
    modulus, angle = draw(st.floats(0.1, 0.95)), draw(st.floats(0.2, 2.9))
    gamma = modulus * np.exp(1j * angle)
    return complex(gamma if draw(st.booleans()) else gamma.conjugate())


real_blocks = st.builds(M, reals, st.integers(1, 4))
complex_blocks = st.builds(CM, complexes(), st.integers(1, 3))
blocks = real_blocks | complex_blocks
unions = st.lists(blocks, min_size=1, max_size=4).map(lambda found: functools.reduce(operator.or_, found))

# Well apart, so that a normal form is far from merging any two of them.
SPREAD = [(x, 1) for x in (-0.8, -0.4, 0.0, 0.5, 0.9)] + [
    (0.3, 2),
    (-0.6, 2),
    (0.2 + 0.7j, 1),
    (-0.1 + 0.4j, 1),
]


@st.composite
def normal_unions(draw):
    """Unions of different blocks that are their own normal form, 1 to 3 blocks, up to 6 units."""
    chosen = draw(st.lists(st.sampled_from(SPREAD), min_size=1, max_size=3, unique=True))
    shift = draw(st.floats(-0.02, 0.02))
    built = [CM(z + shift, m) if isinstance(z, complex) else M(z + shift, m) for z, m in chosen]
    return functools.reduce(operator.or_, built)


@st.composite
def crowded_unions(draw):
    """Unions of up to four blocks, of orders to 4, with eigenvalues close to the real axis and to others."""
    near = st.sampled_from([1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3])
    found = []
    for _ in range(draw(st.integers(1, 4))):
        x, y, again = draw(st.floats(-0.7, 0.7)), draw(st.just(0.0) | near), draw(st.none() | near)
        if again and found:
            x, y = found[-1].B[0, 0] - again * np.sign(found[-1].B[0, 0]), abs(found[-1].eigenvalues[0].imag)
        order = draw(st.integers(1, 4))
        found.append(CM(complex(x, y), order) if y else M(x, order))
    return functools.reduce(operator.or_, found)


def change(k, seed, spread=2.0):
    """An invertible Q (k, k) whose singular values lie in [1/spread, spread]."""
    rng = np.random.default_rng(seed)
    U, _, V = np.linalg.svd(rng.normal(size=(k, k)))
    return U * rng.uniform(1 / spread, spread, k) @ V


def is_clear(rules):
    """Whether columns (n, k), each in its own unit, have no direction that is nearly as small as rounding."""
    size = np.abs(rules).max(0)
    values = np.linalg.svd(rules / np.where(size > 0, size, 1), compute_uv=False)
    return not ((values > 1e-13 * values[0]) & (values < 1e-3 * values[0])).any()
