"""What memory does to the loss: an optimizer with memory as a memoryless one plus a correction, in JAX.

    correction(method, n)              corr_n(θ) of any method, by one jvp; from_optax(tx, ...) makes methods
    memoryless(method, h)              its memoryless iteration
    Linear, Adam, RMSProp, Lion, ...   methods of known correction; follow(form, ...) runs their iteration
    Linear(law).modified_loss(f, h)    the loss that linear memory descends
    memory_effect(optimizer)           regularises or anti-regularises, by how much, in which norm
    explicit_correction(tx, ...)       adds or cancels the effect at a fixed optimizer
    gain_and_delay(memory, laws)       the modified loss along a run of RLLC
    batches                            mini-batches: averages at a fixed point

It adds or takes away, at the order of the step size, a penalty on the gradient's norm: arXiv 2502.02132.
What is derived, verified, formal or conjectured is marked in docs/memoryless.md. Everything is functional
and works on pytrees; enable float64 (jax.enable_x64) to measure orders of convergence.
"""

from rllc.memoryless import batches
from rllc.memoryless.adaptive import Adam, Lion, RMSProp, perturbed_norm
from rllc.memoryless.closed import ClosedForm, Terms, follow, hessian_product
from rllc.memoryless.effect import Effect, memory_effect
from rllc.memoryless.explicit import ExplicitCorrectionState, explicit_correction
from rllc.memoryless.fading import LongMemoryWarning, decay
from rllc.memoryless.history import (
    Method,
    correction,
    direction,
    from_optax,
    memoryless,
    simulate,
)
from rllc.memoryless.learned import (
    SmoothRidge,
    averaging_law,
    extrapolating_law,
    gain_and_delay,
    unit_rates,
)
from rllc.memoryless.linear import Linear, NesterovIterates

__all__ = [
    "Adam",
    "ClosedForm",
    "Effect",
    "ExplicitCorrectionState",
    "Linear",
    "Lion",
    "LongMemoryWarning",
    "Method",
    "NesterovIterates",
    "RMSProp",
    "SmoothRidge",
    "Terms",
    "averaging_law",
    "batches",
    "correction",
    "decay",
    "direction",
    "explicit_correction",
    "extrapolating_law",
    "follow",
    "from_optax",
    "gain_and_delay",
    "hessian_product",
    "memory_effect",
    "memoryless",
    "perturbed_norm",
    "simulate",
    "unit_rates",
]
