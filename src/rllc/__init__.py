"""Optimizers with memory that learn how to use it.

This module is the algebra of linear memory, in NumPy and SciPy alone. The optimizers are in
`rllc.torch` (RLLC) and `rllc.optax` (rllc, scale_by_rllc); experiments are in `rllc.lab`.
"""

from rllc.propagator import CM, M, Propagator

__all__ = ["CM", "M", "Propagator"]
