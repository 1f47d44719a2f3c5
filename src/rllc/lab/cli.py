"""The command `rllc`: one line on stderr and exit code 2 for what cannot be done, a traceback only for bugs.

Exit codes: 0 done, 1 something outside failed on the way, 2 refused, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from rllc.lab import options
    from rllc.lab.bench import Bench
    from rllc.lab.memoryless.command import Memoryless
    from rllc.lab.show import Show

    Command = (
        options.Compare
        | Show
        | options.Run
        | options.Table
        | options.Figure
        | options.Report
        | options.RunsList
        | options.RunsShow
        | options.Merge
        | options.Prune
        | Memoryless
        | Bench
    )

NEEDED = (
    *("tyro", "rich", "torch", "pyarrow", "matplotlib", "datasets", "sklearn", "fsspec"),
    *("jinja2", "numba", "plotly", "schedulefree", "pytorch_optimizer"),
)

DESCRIPTION = """Optimizers with memory that learn how to use it.

First steps:
  rllc compare digits-mlp          train RLLC beside SGD, momentum and Adam on real data, in about a minute
  rllc show "M(0.9) + M_2(0.6)"    what a memory is: matrices, eigenvalues, impulse responses
  rllc compare --help              everything that can be chosen
  rllc memoryless adam             what an optimizer's memory does to the loss, and how well that is known
  rllc bench --quick               what a step costs beside AdamW and SGD

The paper's evidence:
  rllc run table1 --grid short --tasks fashion-mlp --out runs
  rllc table 1 runs --against paper
  rllc figure 2 runs
  rllc report runs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line given, or the process's own; returns the exit code."""
    for name in ("stdout", "stderr"):  # None where the shell has closed it, as with >&-
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        return _fail(f"{', '.join(lacking)} not installed; pip install 'rllc[lab]'", 2)
    from rllc.lab.errors import FULL, Broken, Refused

    if isinstance(sys.stdout, io.TextIOWrapper):  # tables have ± and −, which not every terminal can show
        sys.stdout.reconfigure(errors="replace")
    try:
        status = _run(_parsed(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except Refused as reason:
        return _fail(str(reason), 2)
    except Broken as reason:
        return _fail(str(reason), 1)
    except BrokenPipeError:  # whoever was to read it has gone: nothing is left to say
        _drop_output()
        return 1
    except OSError as reason:
        if reason.errno not in FULL:
            raise
        _drop_output()
        return _fail(f"cannot write the output ({reason.strerror}); make room, or print to another place", 1)
    except KeyboardInterrupt:
        return _fail("stopped; finished runs are kept, the same command goes on from there", 130)


def _run(command: Command) -> int:
    from rich.console import Console

    from rllc.lab.errors import Refused
    from rllc.lab.show import Show

    # A pipe has no width of its own, and a table that is cut is of no use. Names of files may have brackets.
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False)
    if not isinstance(command, Show):
        _experiment(command, console)
        return 0
    from rllc.lab import show

    try:
        show.main(command, console)
    except (ValueError, OSError) as reason:
        if isinstance(reason, OSError) and reason.errno:  # of printing: those of the picture are in words
            raise
        raise Refused(str(reason)) from reason
    return 0


def _experiment(command: Command, console: Console) -> None:
    """Imports what this command needs and no more: what draws takes seconds."""
    from rllc.lab import bench, options
    from rllc.lab.memoryless import command as memoryless

    match command:
        case options.Compare():
            from rllc.lab import compare

            compare.main(command, console)
        case options.Run():
            from rllc.lab import run

            run.main(command, console)
        case options.Table() | options.Figure() | options.Report():
            _evidence(command, console)
        case options.RunsList() | options.RunsShow() | options.Merge() | options.Prune():
            _runs(command, console)
        case memoryless.Memoryless():
            memoryless.main(command, console)
        case bench.Bench():
            bench.main(command, console)


def _evidence(command: options.Table | options.Figure | options.Report, console: Console) -> None:
    from rllc.lab import options
    from rllc.lab.evidence import results

    match command:
        case options.Table():
            results.print_table(command, console)
        case options.Figure():
            results.draw_figure(command, console)
        case options.Report():
            results.write_report(command, console)


def _runs(
    command: options.RunsList | options.RunsShow | options.Merge | options.Prune, console: Console
) -> None:
    from rllc.lab import merging, options, pruning, runs

    match command:
        case options.RunsList():
            runs.list_runs(command, console)
        case options.RunsShow():
            runs.show_run(command, console)
        case options.Merge():
            merging.merge(command, console)
        case options.Prune():
            pruning.prune(command, console)


def _parsed(argv: Sequence[str]) -> Command:
    """The options as data; raises Refused with one line where tyro would print a box and exit."""
    from typing import Annotated

    import tyro

    from rllc.lab import options
    from rllc.lab.bench import Bench
    from rllc.lab.errors import Refused
    from rllc.lab.memoryless.command import Memoryless
    from rllc.lab.show import Show

    named = tyro.conf.subcommand
    Runs = Annotated[
        Annotated[options.RunsList, named("list")]
        | Annotated[options.RunsShow, named("show")]
        | Annotated[options.Merge, named("merge")]
        | Annotated[options.Prune, named("prune")],
        named("runs", description="Keep house in a folder of records: list, show, merge, prune."),
    ]
    commands = (
        Annotated[options.Compare, named("compare")]
        | Annotated[Show, named("show")]
        | Annotated[options.Run, named("run")]
        | Annotated[options.Table, named("table")]
        | Annotated[options.Figure, named("figure")]
        | Annotated[options.Report, named("report")]
        | Runs
        | Annotated[Memoryless, named("memoryless")]
        | Annotated[Bench, named("bench")]
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(commands, prog="rllc", description=DESCRIPTION, args=list(argv))
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
        raise Refused(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """What stands in a box of tyro's below its title, up to the first rule; boxes may have no sides."""
    title, *lines = (line.strip("│| ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines())
    if lines and _is_rule(lines[0]):  # below the title, where there are no sides
        del lines[0]
    text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), lines))
    return (text or title).rstrip(".") + "; see rllc --help"


def _is_rule(line: str) -> bool:
    return re.fullmatch(r"[─╰╯+-]+", line) is not None


def _drop_output() -> None:
    """What is left to print goes nowhere, at exit neither."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(line: str, code: int) -> int:
    print(f"rllc: {' '.join(line.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
