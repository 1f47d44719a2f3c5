"""Numbers that users give, judged by name: of Python and NumPy. Of JAX and torch, where traced, they pass."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["check_nonnegative", "check_positive", "check_share", "is_number", "is_whole", "whole_number"]


def whole_number(name: str, value: int, least: int = 0) -> int:
    """The value as an int.

    Raises:
        ValueError: it is no integer, or less than `least`.
    """
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether it is an integer of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_nonnegative(name: str, value: Any) -> None:
    """Refuse what is no finite number >= 0, with ValueError."""
    if not is_number(value, lambda x: 0 <= x < math.inf):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def check_positive(name: str, value: Any, why: str = "") -> None:
    """Refuse what is no finite number > 0, with ValueError that ends in why."""
    if not is_number(value, lambda x: 0 < x < math.inf):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}{why}")


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number in [0, 1), with ValueError."""
    if not is_number(value, lambda x: 0 <= x < 1):
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def is_number(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether it is a real number, and no bool, for which this holds, or an array that is not NumPy's.

    A number beyond those of float64, such as 10**400, is none.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    is_foreign = hasattr(value, "dtype") and not isinstance(value, np.ndarray | np.generic)
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_foreign or (is_real and _fits_float(value) and holds(value))


def _fits_float(value: Any) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True
