"""The command line's options as data; imported before anything heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["Compare"]

Grid = tyro.conf.arg(metavar="RATE ...", help_behavior_hint="(default: six trials for each)")


@dataclass(frozen=True)
class Compare:
    """Train optimizers side by side on one task; a table, a picture and a record of every run.

    Learning rates are chosen for you on validation data, among six trials for each optimizer. Runs that are
    already in the output folder are not repeated, so that an interrupted command goes on where it stopped.

    For instance:
      rllc compare digits-mlp                         # real data, about a minute, nothing to download
      rllc compare mnist-mlp --steps 2000             # a fifth of the paper's 10,000 steps
      rllc compare digits-mlp --optimizers adam "M(0.9) + M_2(0.6)" --seeds 5
      rllc compare fashion-mlp --lr 0.03 --law-lr 0.01 --optimizers "M(0.9)"   # no choice of rates
    """

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """digits-mlp, mnist-mlp, mnist-conv, fashion-mlp, fashion-conv, cifar10-mlp, cifar10-conv or
    cifar10-resnet20."""

    optimizers: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="NAME ...",
            help_behavior_hint='(default: sgd momentum adam "M(0.9)" "M(0.9)+M(0)" "M2(0.6)")',
        ),
    ] = ()
    """sgd, momentum, adam, or any memory in the paper's notation, such as "M(0.9) + CM(0.3+0.2i)"."""

    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Runs for each optimizer: seeds 0, 1, ... Rates are chosen on seed 0."""

    steps: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 600 for digits, else 10,000)")
    ] = None
    """Training steps of each run, of 128 images each."""

    lr: Annotated[tuple[float, ...], Grid] = ()
    """Learning rates to choose from, for all optimizers; with one there is no choice."""

    law_lr: Annotated[tuple[float, ...], Grid] = ()
    """Learning rates of the law to choose from, for the memories; 0.01 if only --lr is given."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Folder for the picture, the table and the records."""

    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False
    """Run everything again, even what the folder has."""

    workers: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one for each core)")
    ] = None
    """Runs at a time, each in a process of its own."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if PyTorch sees one."""
