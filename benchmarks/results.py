"""README's and docs/results.md's numbers, tables and pictures, made again from the committed records.

    .venv/bin/python benchmarks/results.py        (or: make results)

Between <!-- made: NAME --> and <!-- end --> stands what BLOCKS[NAME] makes of `results/paper.parquet` and
`results/adaptive.parquet`, the records of `rllc run`, merged; pictures go to results/. A test compares the
texts with what would be made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rllc.lab import runs
from rllc.lab.evidence import (
    adaptive_figure,
    adaptive_tables,
    bench_table,
    claims,
    cost,
    figures,
    grids,
    tables,
)
from rllc.lab.evidence.adaptive import results_in
from rllc.lab.evidence.drawing import write_picture
from rllc.lab.evidence.verdicts import Verdict
from rllc.lab.files import write_text
from rllc.lab.memoryless import effects
from rllc.lab.records import Record

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "paper.parquet"
ADAPTIVE = ROOT / "results" / "adaptive.parquet"
COST = ROOT / "results" / "cost"
DOCS = ROOT / "docs"
TEXTS = (ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("results", "memoryless", "method", "speed")))
FIGURES = (1, 2, 4, 5)  # 3 is made of timings

Records = Sequence[Record]


@functools.cache
def _paper() -> Records:
    return runs.gather(str(RECORDS))[0]


@functools.cache
def _verdicts() -> Sequence[Verdict]:
    return claims.verdicts(_paper())


def _table(which: int | str, reading: str, against: bool = False) -> Callable[[], str]:
    def made() -> str:
        table = tables.table(which, _paper(), reading, "paper" if against else None)
        return tables.render(table, "markdown")

    return made


def _file(name: str) -> Callable[[], str]:
    """What another command wrote, without its title and pictures."""
    return lambda: re.sub(r"\A# .*\n|\n!\[.*\n", "", (ROOT / "results" / name).read_text())


@functools.cache
def _adaptive() -> Records:
    return runs.gather(str(ADAPTIVE))[0]


def _in_short() -> str:
    return _bullets(f"{v.claim} **{v.verdict.capitalize()}.**" for v in _verdicts())


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


BLOCKS: dict[str, Callable[[], str]] = {
    "verdicts": lambda: claims.markdown(_verdicts()),
    "verdicts in short": _in_short,
    "table 1": _table(1, "validation", against=True),
    "table 2": _table(2, "all", against=True),
    "accuracies": _table(2, "last"),
    "controls": _table("controls", "all"),
    "controls at the end": _table("controls", "last"),
    "grids": lambda: tables.render(grids.table(_paper()), "markdown"),
    "units": _table("units", "all"),
    "precision": _table("precision", "all"),
    "shakespeare": _table("shakespeare", "all"),
    "law study": _file("law-study.md"),
    "loss gap": _file("loss-gap.md"),
    "adaptive": lambda: adaptive_tables.text(_adaptive()),
    "adaptive verdicts": lambda: _bullets(adaptive_tables.verdicts(results_in(_adaptive()))),
    "adaptive in short": lambda: adaptive_tables.in_short(_adaptive()),
    "cost": _file("cost/cost.md"),
    "bench": lambda: tables.render(bench_table.table(ROOT / "results" / "cpu"), "markdown"),
    "bench in short": lambda: _bullets(bench_table.in_short(ROOT / "results" / "cpu")),
    "convex": _file("convex.md"),
    "compare digits-mlp": _file("compare-digits-mlp.md"),
    "memory effects": lambda: effects.table(),
    "memory of optax": _file("memoryless/optax.md"),
    "memoryless slopes": _file("memoryless/slopes.md"),
    "memoryless claim": _file("memoryless/claim.md"),
    "memoryless explicit": _file("memoryless/explicit.md"),
    "memoryless law": _file("memoryless/law.md"),
    "memoryless cost": _file("memoryless/cost.md"),
}
BLOCK = re.compile(r"<!-- made: (?P<name>.+?) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """The text with every block made again."""

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- made: {name} -->\n\n{BLOCKS[name]().strip()}\n\n<!-- end -->"

    return BLOCK.sub(block, text)


def main() -> None:
    """Write all of it."""
    for number in FIGURES:
        write_picture(ROOT / "results" / f"figure{number}.png", figures.figure(number, _paper()))
    write_picture(COST / "figure3.png", cost.figure(COST))
    write_picture(ROOT / "results" / "adaptive.png", adaptive_figure.figure(results_in(_adaptive())))
    for path in TEXTS:
        text = filled(path.read_text())
        write_text(path, text)
        print(f"{path.relative_to(ROOT)}: {len(BLOCK.findall(text))} blocks")


if __name__ == "__main__":
    main()
