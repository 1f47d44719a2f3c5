"""Optimizers with memory that learn how to use it.

This module is the algebra of linear memory, in NumPy and SciPy alone:

    parse("M(0.9) + M_2(0.6)")            the paper's notation as a Propagator; its repr is the notation again
    M(0.9) | M(0.6, order=2)              the same, put together
    p.normal_form(), p.equivalent(q)      which propagators are the same optimizer
    laws.nesterov(lr=0.1, beta=0.9)       known optimizers as (propagator, law)

The optimizers are in `rllc.torch` (RLLC, RLLCAdamW) and `rllc.optax` (rllc, rllc_adamw), what memory does to
the loss in `rllc.memoryless`, experiments in `rllc.lab`.
"""

from rllc import laws
from rllc.laws import FixedLaw
from rllc.normal_form import ChangeOfUnits, NormalForm, NormalFormError, change_of_units, equivalent
from rllc.notation import as_propagator, parse
from rllc.propagator import CM, M, Propagator

__all__ = [
    "CM",
    "ChangeOfUnits",
    "FixedLaw",
    "M",
    "NormalForm",
    "NormalFormError",
    "Propagator",
    "as_propagator",
    "change_of_units",
    "equivalent",
    "laws",
    "parse",
]
