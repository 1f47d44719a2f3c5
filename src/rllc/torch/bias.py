"""AdamW's corrections of the bias of its two means, as factors of what the passes compute without them."""

from __future__ import annotations

import math

__all__ = ["scales_at"]


def scales_at(t: float, b1: float, b2: float, eps: float) -> tuple[float, float, float, float, float]:
    """Of one parameter after t steps; plain arithmetic, which numba compiles too.

    With c = 1 - βᵗ, u = m̂/(√v̂ + eps) is (√c₂/c₁) m/(√v + eps √c₂). Of the old unit eps √c₂, and what
    Σ m²/(√v + eps √c₂) and Σ m g/(√v + eps √c₂) are multiplied by; then eps √c₂ and √c₂/c₁ of the new one.
    """
    old, new = math.sqrt(1 - b2**t), math.sqrt(1 - b2 ** (t + 1))
    ahead = new / (1 - b1 ** (t + 1))
    if t == 0:
        return eps, 0.0, 0.0, eps * new, ahead
    c1 = 1 - b1**t
    return eps * old, old / c1**2, old / c1, eps * new, ahead
