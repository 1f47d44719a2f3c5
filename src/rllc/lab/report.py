"""One HTML page of everything in a folder of records; it opens from disk and asks the network for nothing.

    html(records, damaged)              the page as text
    write(path, records, damaged)       the page as a file

The page is `report.html`, a Jinja template that escapes every text it is given, with `report.css`, `report.js`
and plotly.js inside. Its numbers are in it once, as JSON; `report.js` draws a chart when it comes into view.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from rllc.lab.claims import verdicts
from rllc.lab.errors import Damaged, Refused
from rllc.lab.figures import colours, unit_names
from rllc.lab.files import replacing
from rllc.lab.optimizers import Setting, name_of, rates_of
from rllc.lab.records import Record
from rllc.lab.selection import READINGS, Row, best_point, choose, finished
from rllc.lab.studies import STUDIES, Study, rows, steps_of
from rllc.lab.tables import render, table

__all__ = ["html", "write"]

Array = NDArray[np.float64]

CURVES = ("test_accuracy", "valid_accuracy", "train_loss")
DIGITS = 5  # significant ones: more than a screen or an evaluation on 10,000 images can tell apart


class Panel(NamedTuple):
    """What is drawn in one chart: the rows of one task whose runs are of one length, by their studies."""

    task: str
    titles: tuple[str, ...]
    rows: tuple[Row, ...]


class Trial(NamedTuple):
    """A setting tried with seed 0: its longest run, and whether it is the chosen one."""

    record: Record
    chosen: bool


def write(path: Path, records: Sequence[Record], damaged: Sequence[Damaged]) -> None:
    """Write the page to a file, whole or not at all.

    Raises:
        Refused: there are no records.
        OSError: the file cannot be written.
    """
    text = html(records, damaged)
    with replacing(path) as file:
        file.write(text.encode())


def html(records: Sequence[Record], damaged: Sequence[Damaged]) -> str:
    """The page: the same text for the same records in the same order.

    Raises:
        Refused: there are no records.
    """
    if not records:
        raise Refused("no records to report on; make some with: rllc run table1")
    drawn = panels(records)
    shades = _shades(list(dict.fromkeys(row.name for panel in drawn for row in panel.rows)))
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return page.from_string(_part("report.html")).render(
        css=_part("report.css"),
        js=_part("report.js"),
        plotly=get_plotlyjs(),
        data={"optimizers": shades, "panels": [_drawing(panel, list(shades)) for panel in drawn]},
        shades=shades,
        verdicts=verdicts(records),
        tables=_tables(records),
        panels=drawn,
        trials=[_trials(panel, records) for panel in drawn],
        studies=_studies(records),
        facts=_facts(records),
        damaged=[str(reason) for reason in damaged],
        readings=READINGS,
        best_point=best_point,
        rates_of=rates_of,
        finished=finished,
    )
