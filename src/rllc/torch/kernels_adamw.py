"""numba kernel of RLLCAdamW's sums: m, v and g are read once, in the tables of `rllc.torch.fused_cpu`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from rllc.torch import fused_cpu
from rllc.torch.fused_cpu import Batch
from rllc.torch.kernels_cpu import _view
from rllc.torch.parts import Part

__all__ = ["sums"]

Array = NDArray[np.float64]


# Dividing by zero gives infinity: raising an error instead would cost a branch, and with it the vectors.
@numba.njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", nogil=True, cache=True)
def _sum_chunks(
    table: np.ndarray,
    chunks: np.ndarray,
    lo: int,
    hi: int,
    witness: np.ndarray,
    scales: np.ndarray,
    least: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[c] = uᵀm̂, uᵀg and gᵀg over chunk c, float64; u = m/(√v + eps) up to the scales of a tensor."""
    for c in range(lo, hi):
        t, start, stop = chunks[c]
        m = _view(table[0, t], start, stop - start, witness)
        v = _view(table[1, t], start, stop - start, witness)
        g = _view(table[2, t], start, stop - start, witness)
        eps = least[t]
        mm = mg = gg = 0.0
        for i in range(stop - start):
            u = m[i] / (np.sqrt(v[i]) + eps)
            mm += np.float64(u) * np.float64(m[i])
            mg += np.float64(u) * np.float64(g[i])
            gg += np.float64(g[i]) * np.float64(g[i])
        out[c, 0], out[c, 1], out[c, 2] = scales[t, 1] * mm, scales[t, 2] * mg, gg


def sums(
    part: Part, scales: Array, plan: Any, otherwise: Callable[[Part, Array], Array]
) -> tuple[Array, Any]:
    """(3,) uᵀm̂, uᵀg and gᵀg of a part, and the plan for the next step; `otherwise` takes what kernels do not.

    scales: (tensors, 3) eps, and the factors of uᵀm̂ and of uᵀg, of the parameters by their numbers.
    """
    batches, plan = fused_cpu.prepare(part, plan)
    total = np.zeros(3)
    for batch in batches:
        total += otherwise(batch.part, scales) if batch.kind is None else _sums(batch, scales)
    return total, plan


def _sums(batch: Batch, scales: Array) -> Array:
    own = scales[batch.part.numbers]
    witness = np.empty(0, fused_cpu.DTYPES[batch.part.params[0].dtype])
    least, out = own[:, 0].astype(witness.dtype), np.empty((len(batch.chunks), 3))
    fused_cpu._spread(
        batch, lambda lo, hi: _sum_chunks(batch.table, batch.chunks, lo, hi, witness, own, least, out)
    )
    return out.sum(0)
