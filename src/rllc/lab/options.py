"""The command line's options as data; imported before anything heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["Compare", "Figure", "Merge", "Prune", "Report", "Run", "RunsList", "RunsShow", "Table"]

Grid = tyro.conf.arg(metavar="RATE ...", help_behavior_hint="(default: six trials for each)")


@dataclass(frozen=True)
class Compare:
    """Train optimizers side by side on one task; a table, a picture and a record of every run.

    Learning rates are chosen for you on validation data, among six trials for each optimizer; only
    rllc-adamw, which finds its own, is left at its default. Runs that are already in the output folder are
    not repeated, so that an interrupted command goes on where it stopped.

    For instance:
      rllc compare digits-mlp                         # real data, about a minute, nothing to download
      rllc compare mnist-mlp --steps 2000             # a fifth of the paper's 10,000 steps
      rllc compare digits-mlp --optimizers adam "M(0.9) + M_2(0.6)" --seeds 5
      rllc compare fashion-mlp --lr 0.03 --law-lr 0.01 --optimizers "M(0.9)"   # no choice of rates
    """

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """digits-mlp, mnist-mlp, mnist-conv, fashion-mlp, fashion-conv, cifar10-mlp, cifar10-conv,
    cifar10-resnet20 or shakespeare-gpt."""

    optimizers: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="NAME ...",
            help_behavior_hint='(default: sgd momentum adam "M(0.9)" "M(0.9)+M(0)" "M2(0.6)" rllc-adamw)',
        ),
    ] = ()
    """sgd, momentum, adam, or any memory in the paper's notation, such as "M(0.9) + CM(0.3+0.2i)"; also "adam
    + cosine", "momentum sgd + cosine", "adam, ema", "momentum sgd, ema", "adam, polynomial average",
    "momentum sgd, polynomial average", "schedule-free adamw", "hypergradient sgd", "hypergradient adam",
    "prodigy", "d-adaptation adam", "mechanic adam", "ademamix", "muon" and "rllc-adamw", that also with
    ", law only" or ", search only"."""

    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Runs for each optimizer: seeds 0, 1, ... Rates are chosen on seed 0."""

    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the task's)")] = (
        None
    )
    """Training steps of each run: 600 for digits, 3,000 of text, else 10,000, if not said."""

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


Folder = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True)
class Run:
    """Make the records of a study: every optimizer on every task, rates chosen on validation data.

    Studies: table1 (the paper's Tables 1 and 2: 11 optimizers, 7 tasks, 3 seeds, 10,000 steps), controls
    (schedules, averages of weights and other learners of the rate, on the same tasks), units (1 to 8 memory
    units), precision (units in two bytes and in one), shakespeare (a language model), adaptive (RLLC-AdamW at
    one rate beside peers tuned for each of three stopping times, on four tasks).

    Finished runs are never repeated, long ones go on from their last checkpoint: whatever stops this
    command, the same command goes on. Several commands may work on one folder, best on other tasks or
    optimizers each: what two have begun at the same time is done twice, and counted once.

    For instance:
      rllc run table1 --tasks fashion-mlp --grid short         # half an hour on two cores
      rllc run table1 --tasks cifar10-resnet20 --time-limit 9  # a slice of nine minutes; then again
      rllc run controls --tasks fashion-mlp mnist-mlp --out runs
      rllc run adaptive --tasks digits-mlp                     # a quarter of an hour on two cores
      rllc run table1 --cluster auto --out s3://bucket/runs    # on the Ray cluster this machine is in
      rllc table 1 runs --against paper                        # what came out
    """

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY")]
    """table1, controls, units, precision, shakespeare or adaptive."""

    tasks: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="TASK ...", help_behavior_hint="(default: the study's)")
    ] = ()
    """Only these tasks."""

    optimizers: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: the study's)")
    ] = ()
    """Only these optimizers, named as in `rllc compare`."""

    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Runs of the chosen rates: seeds 0, 1, ... Rates are chosen on seed 0."""

    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the study's)")] = (
        None
    )
    """Training steps of each run. Of table1 and controls they are the task's, mostly 10,000, of units and
    precision 3,000, of shakespeare 1,000, of adaptive 10,000."""

    grid: Literal["full", "short", "tenth"] = "full"
    """full runs every rate for all steps; short drops the worse two thirds after a tenth of the steps and two
    thirds of the rest after three tenths (successive halving); tenth all but the best after a tenth."""

    time_limit: Annotated[
        float | None, tyro.conf.arg(metavar="MINUTES", help_behavior_hint="(default: none)")
    ] = None
    """Stop cleanly, with checkpoints, at the first evaluations after this time."""

    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "runs"
    """Folder of the records: a path, or a URL that fsspec knows."""

    workers: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one for each core)")
    ] = None
    """Runs at a time. On a GPU they share it, best under NVIDIA's Multi-Process Service."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if PyTorch sees one."""

    cluster: Annotated[
        str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="(default: this machine)")
    ] = None
    """Address of a Ray cluster, "auto" for the one this machine is in, or "local" to start one here."""


@dataclass(frozen=True)
class Table:
    """Print Table 1 (losses and accuracies) or 2 (accuracies and deviations) of the paper from records.

    For instance:
      rllc table 1 runs --against paper
      rllc table 2 runs --study controls --reading last
      rllc table 1 runs --study adaptive                       # all tables of that study
      rllc table 1 runs --format latex > table1.tex
    """

    number: Annotated[tyro.conf.Positional[Literal[1, 2]], tyro.conf.arg(metavar="NUMBER")]
    """1 or 2."""

    folder: Folder
    """Where `rllc run` put its records."""

    study: Literal["table1", "controls", "units", "precision", "shakespeare", "adaptive"] = "table1"
    """Whose optimizers. Only table1 has two tables, and adaptive has readings of its own."""

    reading: Literal["all", "last", "validation", "best"] = "all"
    """What a run is said to have reached: its last iterate, the evaluation of best validation accuracy, or,
    as the paper's numbers look, the best evaluation on the test data."""

    against: Literal["nothing", "paper"] = "nothing"
    """What to print beside each number."""

    format: Literal["markdown", "latex", "html"] = "markdown"
    """What to print."""


@dataclass(frozen=True)
class Figure:
    """Draw a figure of the paper from records: 1 and 4 accuracies, 2 paths of the law, 3 times, 5 bands.

    6, not the paper's, is of the study adaptive: what each optimizer reaches over four decades of rates.

    For instance:
      rllc figure 2 runs
      rllc figure 5 runs --out bands.pdf
    """

    number: Annotated[tyro.conf.Positional[Literal[1, 2, 3, 4, 5, 6]], tyro.conf.arg(metavar="NUMBER")]
    """1 to 6."""

    folder: Folder
    """Where `rllc run` put its records."""

    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: figureN.png here)")
    ] = None
    """The picture; its ending decides the format."""


@dataclass(frozen=True)
class Report:
    """Write everything in a folder of records as one HTML page that opens from disk with no network."""

    folder: Folder
    """Where `rllc run` put its records."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("report.html")
    """The page."""


@dataclass(frozen=True)
class RunsList:
    """A line for each kind of run in a folder: task, optimizer, steps, how many, what they reached."""

    folder: Folder
    """Where the records are."""


@dataclass(frozen=True)
class RunsShow:
    """Everything about one run."""

    folder: Folder
    """Where the records are."""

    digest: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIGEST")]
    """The first digits of its digest, as `rllc runs list` and file names have them."""


@dataclass(frozen=True)
class Merge:
    """Gather the records of several folders, each run once.

    For instance:
      rllc runs merge slice1 slice2 --out runs               # one file for each run, to go on with
      rllc runs merge runs --out results/table1.parquet      # all in one small file
    """

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FOLDER ...")]
    """Where the records are."""

    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Where they go: a folder, or a file whose name ends in .parquet."""


@dataclass(frozen=True)
class Prune:
    """Delete what is of no more use: damaged records, checkpoints of finished runs, abandoned partial files.

    Says what it would delete; deletes it with --yes.
    """

    folder: Folder
    """Where the records are."""

    yes: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False
    """Do it."""
