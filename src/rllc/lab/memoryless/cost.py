"""What a correction costs, in evaluations of the gradient; compiled, medians of pairs.

measure()           one Cost for each form and n
markdown(content)   a table
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rllc import laws
from rllc.lab.memoryless.images import Examples, initialise, mean_loss, size
from rllc.lab.memoryless.problems import Params
from rllc.lab.texts import table
from rllc.memoryless import Adam, ClosedForm, Linear, Lion, RMSProp, correction

__all__ = ["CLOSED", "markdown", "measure"]

WIDTHS, BATCH = (64, 140, 140, 10), 599  # as on digits-mlp; made-up images take as long
FORMS: dict[str, ClosedForm] = {
    "heavy ball": Linear(laws.heavy_ball(1.0, 0.9)),
    "heavy ball, weight decay": Linear(laws.heavy_ball(1.0, 0.9), weight_decay=0.1),
    "AdamW": Adam(0.9, 0.999, 1e-8, weight_decay=0.1),
    "Lion, smoothed": Lion(0.9, 0.99, 1e-6, 0.1),
    "RMSProp, no bias correction": RMSProp(0.99, 1e-6),
}
CLOSED = (1, 10, 100, 1000)  # n of the closed forms
GENERAL = (1, 2, 4, 8, 16, 32)  # n of the general one
GENERAL_FORMS = ("heavy ball", "AdamW")
ROUNDS = 15

Call = Callable[[Params], Any]


def measure(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Of each form and n: the quartiles of the time over that of a gradient next to it."""
    start, grad = _problem()
    calls: dict[tuple[str, str, int], Call] = {}
    for name, form in FORMS.items():
        rows = form.coefficients(max(CLOSED))
        for n in CLOSED:
            row = jax.tree.map(lambda x, n=n: jnp.asarray(x[n], jnp.float32), rows)
            calls[name, "closed", n] = jax.jit(lambda theta, form=form, row=row: form.terms(grad, row, theta))
    for name in GENERAL_FORMS:
        method = FORMS[name].method(grad)
        for n in GENERAL:
            calls[name, "general", n] = jax.jit(correction(method, n))
    unit = jax.jit(grad)
    return [
        {"optimizer": name, "form": form, "n": n, "parameters": size(start), "batch": BATCH}
        | _quartiles(_ratios(call, unit, start, rounds))
        for (name, form, n), call in calls.items()
    ]


def _problem() -> tuple[Params, Callable[[Params], Params]]:
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(BATCH, WIDTHS[0])), jnp.float32)
    batch = Examples(inputs, jnp.asarray(rng.integers(0, WIDTHS[-1], BATCH)))
    return initialise(WIDTHS, 0), jax.grad(lambda params: mean_loss(params, batch, jnp.tanh))


def _ratios(call: Call, unit: Call, start: Params, rounds: int) -> NDArray[np.float64]:
    """Time of the call over the mean of a gradient before and one after it."""
    jax.block_until_ready((call(start), unit(start)))  # compiles
    ratios = []
    for _ in range(rounds):
        before, mine, after = (_seconds(f, start) for f in (unit, call, unit))
        ratios.append(2 * mine / (before + after))
    return np.array(ratios)


def _seconds(call: Call, start: Params) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call(start))
    return time.perf_counter() - started


def _quartiles(ratios: NDArray[np.float64]) -> dict[str, float]:
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return {"low": low, "median": median, "high": high, "rounds": len(ratios)}


def markdown(content: dict[str, Any]) -> str:
    """Both tables."""
    costs = content["costs"]
    first = costs[0]
    parts = [
        f"Time of one evaluation over that of one gradient, median and quartiles of {first['rounds']} pairs;"
        f" compiled, float32, a tanh network of {first['parameters']:,} parameters, a batch of"
        f" {first['batch']}. One gradient and one Hessian product are about four gradients' work by count.",
        "**Closed form: direction and correction together, for a step after n others**",
        _table([c for c in costs if c["form"] == "closed"]),
        "**General form: the correction alone, by one jvp through n steps**",
        _table([c for c in costs if c["form"] == "general"]),
        _growth(costs),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(costs: list[dict[str, Any]]) -> str:
    counts = list(dict.fromkeys(c["n"] for c in costs))
    found = {(c["optimizer"], c["n"]): c for c in costs}
    names = list(dict.fromkeys(c["optimizer"] for c in costs))
    body = [[name, *(_cell(found[name, n]) for n in counts)] for name in names]
    return table(["optimizer", *(f"n = {n:,}" for n in counts)], body)


def _cell(cost: dict[str, Any]) -> str:
    return f"{cost['median']:.1f} ({cost['low']:.1f}–{cost['high']:.1f})"


def _growth(costs: list[dict[str, Any]]) -> str:
    """Gradients per step of history, by least squares."""
    said = []
    for name in GENERAL_FORMS:
        ours = [(c["n"], c["median"]) for c in costs if c["form"] == "general" and c["optimizer"] == name]
        n, times = np.array(ours, np.float64).T
        rate, offset = np.polyfit(n, times, 1)
        said.append(f"{name}: {offset:.1f} + {rate:.1f} n gradients")
    return f"General form, by least squares: {'; '.join(said)}."
