"""RLLC for JAX: an optax gradient transformation.

    import optax
    from rllc.optax import rllc
    tx = rllc("M(0.9) + M(0)", learning_rate=0.1, law_learning_rate=0.01)

A step is Algorithm 1 of arXiv 2402.15262 on the gradient g:

    L <- L + c2 M⁺g,    M, H <- U(M, H, g, θ),    θ <- θ - c1 (M L + w θ)

with c1 the learning rate, c2 the law learning rate, w the weight decay. State is data: arrays only.
The memory is k trees shaped (and sharded) like the parameters; the law is one vector for the whole tree.

    rllc, scale_by_rllc        the transformations; memory in the paper's notation, M <- M B + g aᵀ, or
    unit, union                any optax transformation as a memory unit, and several memories as one
    rllc_adamw                 AdamW's direction in AdamW's metric, with an average of the weights
    polynomial_average         that average, to end any chain; averaged_params reads it
    law_report                 the law as numbers to log
"""

from rllc.law import Cutoff, DiagonalRidge, GramianRidge, LawStep, Ridge
from rllc.optax.adamw import rllc_adamw
from rllc.optax.average import PolynomialAverageState, average_into, averaged_params, polynomial_average
from rllc.optax.general import ScaleByRulesState
from rllc.optax.linear import ScaleByRLLCState
from rllc.optax.report import law_report
from rllc.optax.transform import rllc, scale_by_rllc
from rllc.optax.units import TreeMemory, Union, adam_metric, euclidean, union, unit

__all__ = [
    "Cutoff",
    "DiagonalRidge",
    "GramianRidge",
    "LawStep",
    "PolynomialAverageState",
    "Ridge",
    "ScaleByRLLCState",
    "ScaleByRulesState",
    "TreeMemory",
    "Union",
    "adam_metric",
    "average_into",
    "averaged_params",
    "euclidean",
    "law_report",
    "polynomial_average",
    "rllc",
    "rllc_adamw",
    "scale_by_rllc",
    "union",
    "unit",
]
