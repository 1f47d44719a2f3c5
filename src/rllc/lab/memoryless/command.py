"""The options of `rllc memoryless`, and its door: nothing heavy is imported before they are read."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rllc.lab.errors import Refused

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DEFAULT_TASKS", "Memoryless", "main"]

DEFAULT_TASKS = ("tanh-net", "valley", "logistic")


def _default(metavar: str, of: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {of})")


@dataclass(frozen=True)
class Memoryless:
    """What an optimizer's memory does to the loss, and how well that is known: an error study.

    An optimizer with memory steps as one without memory does that has a correction added, which regularises
    or anti-regularises the loss (arXiv 2502.02132). The command runs the optimizer beside its memoryless
    counterpart, with the correction and without it, at step sizes h, h/2, h/4, ... up to a fixed time n h.
    The largest distance between them falls like h without the correction and like h² with it. Printed are the
    distances, their orders and the verdict; a picture and a JSON record are written. All in float64.

    For instance:
      rllc memoryless heavy-ball                        # half a minute; orders 1 and 2, memory regularises
      rllc memoryless adam --beta2 0.9                  # anti-regularises only if beta2 > beta
      rllc memoryless lion --task tanh-net
      rllc memoryless "M(0.9) + M_2(0.6)" --law 0.3 0.5 -0.2
      rllc memoryless heavy-ball --task digits-mlp      # a network on real digits; a minute
      rllc memoryless adam --eps 1e-4                   # too small for these step sizes: no order 2
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """heavy-ball, ema, nesterov, nesterov-iterates, qhm, aggmo, complex-momentum, optimistic, ab2, adam,
    adamw, adam-eps-outside, nadam, rmsprop, rmsprop-uncorrected, lion, signum, or any memory in the paper's
    notation, such as "M(0.9) + M(0)"."""

    task: Annotated[tuple[str, ...], _default("TASK ...", "tanh-net valley logistic")] = DEFAULT_TASKS
    """tanh-net (13 parameters), valley (Rosenbrock's, 4), logistic (5), digits-mlp (real images, full batch,
    30,250 parameters, the distance over training for h, h/2 and h/4)."""

    law: Annotated[tuple[float, ...], _default("NUMBER ...", "ones")] = ()
    """The law of a memory in the notation, one number per unit."""

    beta: Annotated[float | None, _default("β", "the optimizer's")] = None
    """Decay of momentum; of Adam, NAdam and Lion, β1."""

    beta2: Annotated[float | None, _default("β2", "the optimizer's")] = None
    """Decay of the squares; of Lion, of the momentum that is kept."""

    eps: Annotated[float | None, _default("ε", "the optimizer's")] = None
    """Of adaptive methods, inside the square root; orders show where h β2/(1-β2) is small against sqrt(ε)."""

    weight_decay: Annotated[float | None, _default("λ", "the optimizer's")] = None
    """Decoupled."""

    h: Annotated[float | None, _default("H", "1/64 to 1/512, after the optimizer")] = None
    """The largest step size. On digits-mlp by default such that the first step is 0.02 gradients long."""

    halvings: Annotated[int | None, _default("N", "7; digits-mlp 2")] = None
    """How often h is halved."""

    time: Annotated[float | None, _default("T", "1; digits-mlp 250 steps")] = None
    """Up to which n h."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Folder for the picture and the record, memoryless-NAME.png and .json."""


def main(options: Memoryless, console: Console) -> None:
    """Do what `rllc memoryless` was asked.

    Raises:
        Refused: JAX is not installed, an option makes no sense, the output cannot be written.
    """
    lacking = [name for name in ("jax", "optax") if importlib.util.find_spec(name) is None]
    if lacking:
        raise Refused(f"{' and '.join(lacking)} not installed; pip install 'rllc[lab,jax]'")
    from rllc.lab.memoryless import study

    study.main(options, console)
