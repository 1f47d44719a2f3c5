"""One HTML page of everything in a folder of records; it opens from disk and asks the network for nothing.

    html(records, damaged)              the page as text
    write(path, records, damaged)       the page as a file

The page is `report.html`, a Jinja template that escapes every text it is given, with `report.css`,
`report.js` and plotly.js inside. The numbers of its charts are in it once, as JSON; a chart is drawn when
it comes into view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex, to_rgb
from plotly.offline import get_plotlyjs

from rllc.lab.errors import Damaged, Refused
from rllc.lab.evidence import adaptive_tables
from rllc.lab.evidence.adaptive import Result, results_in
from rllc.lab.evidence.claims import verdicts
from rllc.lab.evidence.drawing import Array, colours, unit_names, values, window
from rllc.lab.evidence.markup import render
from rllc.lab.evidence.notes import READING_NAMES
from rllc.lab.evidence.tables import table
from rllc.lab.files import output
from rllc.lab.records import Record
from rllc.lab.selection import READINGS, Row, best_point, finished, full_length, on_same_data
from rllc.lab.settings import RLLC_ADAMW
from rllc.lab.studies import STUDIES, row_of, rows, steps_of

__all__ = ["html", "write"]

ACCURACIES = ("test_accuracy", "valid_accuracy")
DIGITS = 5  # significant ones: more than a screen, or an evaluation on 10,000 images, can tell apart
DASHES = ("solid", "dash", "dot", "dashdot")  # of a colour's first line, second line, ...
VISIBLE = 0.15  # luminance: a contrast of 3.5 with the page when it is dark
OUTSIDE = "Outside the studies"


class Panel(NamedTuple):
    """What belongs in one chart: the optimizers of studies whose runs on a task are equally long.

    `studies` says of how many optimizers each study, by its title, has runs in full.
    """

    task: str
    studies: dict[str, int]
    rows: tuple[Row, ...]

    @property
    def steps(self) -> int:
        """How long the runs are; 0 if all have diverged."""
        return steps_of([record for row in self.rows for record in row.records])


def write(path: Path, records: Sequence[Record], damaged: Sequence[Damaged]) -> None:
    """Write the page to a file, whole or not at all.

    Raises:
        Refused: there are no records, or the file cannot be written.
        Broken: the disk is full.
    """
    with output(path) as file:  # opened first: a page takes a while to make
        file.write(html(records, damaged).encode())


def html(records: Sequence[Record], damaged: Sequence[Damaged]) -> str:
    """The page; the same text for the same records in the same order. `damaged` is listed in it.

    Raises:
        Refused: there are no records.
    """
    if not records:
        raise Refused("there are no records to report on; make some with: rllc run table1")
    drawn, same = panels(records), on_same_data(records)
    shades = _shades(list(dict.fromkeys(row.name for panel in drawn for row in panel.rows)))
    return _template().render(
        data={
            "optimizers": list(shades.values()),
            "panels": [drawing(panel, list(shades)) for panel in drawn],
        },
        shades=shades,
        panels=drawn,
        studies=_sizes(drawn),
        trials=[trials(panel, same) for panel in drawn],
        verdicts=verdicts(records),
        tables=_tables(records),
        adaptive=_adaptive(records),
        facts=_facts(records),
        damaged=list(map(str, damaged)),
        runs=len(records),
    )


def panels(records: Sequence[Record]) -> list[Panel]:
    """A chart for each task that a study has runs of in full, then one for each task of no study."""
    records = on_same_data(records)
    found: dict[tuple[str, int | None], list[tuple[str, Row]]] = {}
    for study in STUDIES.values():
        for (task, _), row in rows(study, records).items():
            found.setdefault((task, study.steps), []).append((study.title, row))
    known = {task for study in STUDIES.values() for task in study.tasks}
    tested = [record for record in records if record.cell.tested]  # runs of a rung are not
    for task in dict.fromkeys(record.cell.task.name for record in tested):
        if task not in known:
            found[task, None] = [(OUTSIDE, row) for row in _rows_outside(task, tested)]
    return [
        Panel(task, Counter(title for title, _ in entries), tuple(row for _, row in entries))
        for (task, _), entries in found.items()
    ]


def trials(panel: Panel, records: Sequence[Record]) -> list[tuple[Row, list[Record]]]:
    """For each row of a panel the longest run with seed 0 of every setting tried."""
    first = [r for r in records if r.cell.task.name == panel.task and r.cell.seed == 0]
    first = [r for r in first if r.cell.steps <= (panel.steps or steps_of(first))]
    longest = {r.cell.setting: r for r in sorted(first, key=lambda r: (r.cell.steps, r.cell.points))}
    return [(row, [longest[setting] for setting in row.tried if setting in longest]) for row in panel.rows]


def drawing(panel: Panel, names: Sequence[str]) -> dict[str, Any]:
    """The numbers of a panel's charts: accuracies in %, losses in nats, over seeds that did not diverge.

    "windows" is what to show of the accuracies at first. Of each row: its optimizer's place among `names`,
    the steps, a `band` for each accuracy and the loss, and one for each unit of its law.
    """
    shown = [row for row in (_drawable(row) for row in panel.rows) if row.records]
    windows = {name: _window(shown, name) for name in ACCURACIES} if shown else {}
    return {"windows": windows, "rows": [_line(row, names.index(row.name)) for row in shown]}


def band(curves: Array) -> dict[str, list[float | None]]:
    """Mean, smallest and largest over seeds of (seeds, points); one seed has a mean only."""
    parts = {"mean": curves.mean(0), "low": curves.min(0), "high": curves.max(0)}
    kept = ("mean",) if len(curves) == 1 else tuple(parts)
    return {name: [_rounded(value) for value in parts[name]] for name in kept}


def _sizes(panels: Sequence[Panel]) -> dict[str, int]:
    """The studies there are runs of, by title, and how many optimizers each has, 0 if that is not said."""
    sizes = {study.title: len(study.optimizers) for study in STUDIES.values()}
    return {title: sizes.get(title, 0) for panel in panels for title in panel.studies}


def _rows_outside(task: str, records: Sequence[Record]) -> list[Row]:
    """A row for each optimizer on a task that no study has."""
    here = [record for record in records if record.cell.task.name == task]
    steps = full_length((record.cell.steps for record in here), here[0].cell.task.steps)
    full = [record for record in here if record.cell.steps == steps]
    of: dict[str, list[Record]] = {}
    for record in full:
        of.setdefault(record.cell.setting.name, []).append(record)
    return [row_of(name, ours, ours) for name, ours in of.items()]


def _drawable(row: Row) -> Row:
    """The row without runs that diverged, or were measured at other steps than the first."""
    ended = finished(row.records)
    return row._replace(records=tuple(r for r in ended if _steps(r) == _steps(ended[0])))


def _steps(record: Record) -> list[int]:
    return [point.step for point in record.result.points]


def _line(row: Row, place: int) -> dict[str, Any]:
    law = values(row, "law")
    return {
        "optimizer": place,
        "step": _steps(row.records[0]),
        **{name: band(100 * values(row, name)) for name in ACCURACIES},
        "train_loss": band(values(row, "train_loss").astype(float)),  # None at step 0
        "law": [
            {"unit": unit, **band(law[:, :, j])} for j, unit in enumerate(_units(row.name, law.shape[2]))
        ],
    }


def _window(rows: Sequence[Row], name: str) -> tuple[float, float]:
    low, high = window([100 * values(row, name) for row in rows])
    return round(float(low), 2), round(float(high), 2)


def _units(memory: str, k: int) -> list[str]:
    return [unit.replace("$m_{", "m").replace("}$", "") for unit in unit_names(memory, k)]


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def _shades(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """How each optimizer's lines look on light and on dark; a colour that comes again is dashed."""
    used: Counter[str] = Counter()
    shades = {}
    for name, colour in colours(names).items():
        dash = DASHES[used[colour] % len(DASHES)]
        shades[name] = {"name": name, "light": to_hex(colour), "dark": _on_dark(colour), "dash": dash}
        used[colour] += 1
    return shades


def _on_dark(colour: str) -> str:
    """The colour mixed with white until it can be seen on black; of a grey, its opposite."""
    rgb = np.array(to_rgb(colour))
    if np.ptp(rgb) == 0:
        return to_hex(tuple(1 - rgb))
    mixed = (rgb + part * (1 - rgb) for part in np.linspace(0, 1, 21))
    return to_hex(tuple(next(lighter for lighter in mixed if _luminance(lighter) >= VISIBLE)))


def _luminance(rgb: Array) -> float:
    """Relative luminance of an sRGB colour (WCAG 2), without its linear part near black."""
    return float(((rgb + 0.055) / 1.055) ** 2.4 @ (0.2126, 0.7152, 0.0722))


def _tables(records: Sequence[Record]) -> list[dict[str, Markup]]:
    """For each study there are runs of, its table as HTML under each reading; Table 1 against the paper."""
    here = [name for name, study in STUDIES.items() if rows(study, records)]
    return [{which: _table(name, records, which) for which in READINGS} for name in here]


def _adaptive(records: Sequence[Record]) -> tuple[list[str], list[Markup]]:
    """What the study adaptive says, in sentences and in tables; nothing of tasks that have one rate only."""
    try:
        found = results_in(records)
    except Refused:
        return [], []
    results = {task: result for task, result in found.items() if _has_several_rates(result)}
    if not results:
        return [], []
    return adaptive_tables.verdicts(results), [
        Markup(render(made, "html")) for made in adaptive_tables.tables(results)
    ]


def _has_several_rates(result: Result) -> bool:
    """Of RLLC-AdamW: `rllc compare` runs its default alone."""
    return any(len(reached.tried) > 1 for (name, _), reached in result.found.items() if name == RLLC_ADAMW)


def _table(study: str, records: Sequence[Record], which: str) -> Markup:
    made = table(1, records, which, "paper") if study == "table1" else table(study, records, which)
    return Markup(render(made, "html"))


def _facts(records: Sequence[Record]) -> dict[str, list[str]]:
    """Where the numbers come from: lines under a heading each."""
    lost = sum(record.diverged for record in records)
    hours = sum(record.result.seconds for record in records) / 3600
    steps = sum(record.result.diverged_at or record.cell.steps for record in records)
    made = sorted(record.made[:10] for record in records if record.made)
    return {
        "Runs": [f"{len(records):,}, of which {lost:,} diverged"],
        "Training": [f"{steps:,} steps; {hours:.1f} hours, the times of all runs added up"],
        "Made": [" to ".join(dict.fromkeys((made[0], made[-1])))] if made else [],
        "Versions": _counted(", ".join(f"{k} {v}" for k, v in record.versions.items()) for record in records),
        "Hardware": _counted(f"{record.hardware} ({record.cell.device})" for record in records),
        "Commit": _counted(record.commit or "not in a checkout" for record in records),
    }


def _counted(texts: Iterable[str]) -> list[str]:
    """The texts that occur, most frequent first; with their counts if there are several."""
    counts = Counter(texts).most_common()
    return [text if len(counts) == 1 else f"{text}: {n:,} runs" for text, n in counts if text]


def _template() -> jinja2.Template:
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page.globals |= {"css": Markup(_part("report.css")), "js": Markup(_part("report.js"))}
    page.globals |= {"plotly": Markup(get_plotlyjs()), "readings": {k: READING_NAMES[k] for k in READINGS}}
    page.globals |= {"best_point": best_point, "finished": finished}
    return page.from_string(_part("report.html"))


def _part(name: str) -> str:
    return resources.files("rllc.lab.evidence").joinpath(name).read_text(encoding="utf-8")
