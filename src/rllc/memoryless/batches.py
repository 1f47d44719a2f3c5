"""Mini-batches: the correction averaged over the batches, at a fixed point.

Take the order of batches as given; then F_n depends on n and everything holds for that order. Averaged over
orders AT FIXED θ, the correction of linear memory is

    E corr_n = C1_n H g + coefficient · q,      q = E[H_b g_b] - H g = ½ ∇ tr Σ,

Σ the covariance of a batch's gradient. This average is NOT the drift of the mean trajectory: θ_n has seen
those batches already, and for independent batches that correlation cancels the q term exactly. Source: arXiv
2502.02132; docs/memoryless.md, section 5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rllc.checks import whole_number
from rllc.laws import FixedLaw
from rllc.memoryless.linear import Linear

__all__ = ["drift_when_reshuffled", "effective_batches", "variance_when_independent", "variance_within_epoch"]


def variance_when_independent(law: FixedLaw, n: int) -> float:
    """D_n = Σ_{i<k<=n} μ_i μ_k, the coefficient of q for independent batches.

    For n -> ∞ (c0² - Σ μ_i²)/2: per effective step the loss gets (η/2) κ tr Σ with κ = (1 - 1/N_eff)/2.
    """
    mu = law.weights(whole_number("n", n) + 1)
    return float((mu.sum() ** 2 - (mu**2).sum()) / 2)


def variance_within_epoch(law: FixedLaw, n: int, batches: int) -> float:
    """D_n - (C1_n - D_n)/(m - 1), the coefficient of q for one random order of m batches.

    Raises:
        ValueError: n steps do not fit into the epoch, or it has one batch.
    """
    if not 0 <= n < whole_number("batches", batches) or batches < 2:
        raise ValueError(f"{n + 1} steps do not lie within one epoch of {batches} batches, two or more")
    C1, D = Linear(law).coefficients(n).product[n], variance_when_independent(law, n)
    return float(D - (C1 - D) / (batches - 1))


def drift_when_reshuffled(law: FixedLaw, batches: int) -> float:
    """The coefficient of q in the drift of the mean trajectory when m batches are shuffled in each epoch.

    K = c0 mean_{r<m} Σ_{q<r} C0_{r-1-q} / (m - 1), which tends to c0²/2 where memory is short against m: the
    (η/4) tr Σ of shuffled SGD. For independent batches the drift has no q at all.
    """
    if whole_number("batches", batches) < 2:
        raise ValueError(f"an epoch has two batches or more, got {batches}")
    C0 = Linear(law).coefficients(batches).gain
    sums = np.concatenate([[0.0], np.cumsum(C0)])[:batches]
    return float(law.gain * sums.mean() / (batches - 1))


def effective_batches(weights: ArrayLike) -> float:
    """N_eff = (Σ μ)² / Σ μ²: how many batches the step averages over.

    Raises:
        ValueError: every weight is zero.
    """
    weights = np.asarray(weights, np.float64)
    if not weights.any():
        raise ValueError(f"weights must not all be zero, got {weights.tolist()}")
    return float(weights.sum() ** 2 / (weights**2).sum())
