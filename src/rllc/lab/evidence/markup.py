"""A table as a value, and the three texts made of it: Markdown, LaTeX and HTML.

    Table(title, columns, groups, notes)     groups of lines; a line is a label and an Entry for each column
    render(table, "markdown")                text that ends with a newline

An entry's mark says how it stands against the benchmarks: blue or green in LaTeX, a class of <td> in HTML
("benchmark", "above"), and, because not everybody sees colours, a sign in Markdown and HTML. Bold is the
best of all. HTML is a <figure class="rllc-table"> of a scrolling <div>, the <table> and a <figcaption>.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rllc.lab import texts

__all__ = ["FORMATS", "MISSING", "Entry", "Group", "Line", "Table", "render"]

Mark = Literal["", "benchmark", "above"]

SIGNS = {"benchmark": "●", "above": "▲"}
MEANINGS = {"benchmark": "the best benchmark", "above": "better than the best benchmark"}
COLOURS = {"benchmark": "blue", "above": "green"}


class Entry(NamedTuple):
    """A number as text, its mark, whether it is the best of all, and what is said beside it in plain type."""

    text: str
    mark: Mark = ""
    best: bool = False
    aside: str = ""


MISSING = Entry("–")


class Line(NamedTuple):
    """One line of a group: what it shows ("" if the group has one line only), an entry for each column."""

    label: str
    entries: tuple[Entry, ...]


class Group(NamedTuple):
    """The lines of one optimizer."""

    name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """What is shown, without saying how; notes are sentences that stand below."""

    title: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        """Whether lines have labels, which then take a column."""
        return any(line.label for group in self.groups for line in group.lines)

    @property
    def marks(self) -> list[Mark]:
        """The marks that occur."""
        used = {entry.mark for group in self.groups for line in group.lines for entry in line.entries}
        return [mark for mark in MEANINGS if mark in used]

    @property
    def head(self) -> list[str]:
        """The first row: over the names, over the labels if there are any, the columns."""
        return ["optimizer", *([""] if self.labelled else []), *self.columns]


def render(table: Table, format: str) -> str:
    """The table in one of FORMATS.

    Raises:
        ValueError: the format is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    return FORMATS[format](table)


def _rows(table: Table, group: Group, entry: Callable[[Entry], str]) -> list[list[str]]:
    """The texts of each line of a group, its name on the first."""
    names = [group.name] + [""] * (len(group.lines) - 1)
    return [
        [name, *([line.label] if table.labelled else []), *map(entry, line.entries)]
        for name, line in zip(names, group.lines, strict=True)
    ]


def _markdown(table: Table) -> str:
    left = 2 if table.labelled else 1
    rows = [row for group in table.groups for row in _rows(table, group, _markdown_entry)]
    legend = [f"{SIGNS[mark]} {MEANINGS[mark]}" for mark in table.marks]
    legend += ["**bold** the best of all."] if legend else []
    said = filter(None, [", ".join(legend), *table.notes])
    body = texts.table(table.head, rows, left)
    return "\n".join([f"**{table.title}**", "", body, *(f"- {note}" for note in said), ""])


def _markdown_entry(entry: Entry) -> str:
    number = f"**{entry.text}**" if entry.best else entry.text
    return " ".join(filter(None, (SIGNS.get(entry.mark, ""), number, entry.aside)))


def _latex(table: Table) -> str:
    left = "ll" if table.labelled else "l"
    head = " & ".join(map(_tex, table.head))
    caption = _tex(re.sub(r"^Table \d+\. ", "", table.title))  # LaTeX numbers tables itself
    groups = [_latex_group(table, group) for group in table.groups]
    legend = [rf"\textcolor{{rllc{mark}}}{{{MEANINGS[mark]}}}" for mark in table.marks]
    legend += [r"\textbf{bold} the best of all."] if legend else []
    said = "\n".join(filter(None, [", ".join(legend), *map(_tex, table.notes)]))
    between = "\n\\addlinespace\n" if table.labelled else "\n"
    return rf"""% needs \usepackage{{booktabs}} \usepackage{{graphicx}} \usepackage{{xcolor}}
\begin{{table}}
\centering
\definecolor{{rllcbenchmark}}{{RGB}}{{0, 90, 181}}
\definecolor{{rllcabove}}{{RGB}}{{0, 125, 60}}
\caption{{{caption}}}
\resizebox{{\ifdim\width>\textwidth\textwidth\else\width\fi}}{{!}}{{%
\begin{{tabular}}{{{left}{"r" * len(table.columns)}}}
\toprule
{head} \\
\midrule
{between.join(groups)}
\bottomrule
\end{{tabular}}}}
\par\smallskip
\begin{{minipage}}{{\textwidth}}\footnotesize
{said}
\end{{minipage}}
\end{{table}}
"""


def _latex_group(table: Table, group: Group) -> str:
    rows = _rows(table, group._replace(name=_tex_name(group.name)), _latex_entry)
    return "\n".join(" & ".join(row) + r" \\" for row in rows)


def _latex_entry(entry: Entry) -> str:
    text = _tex(entry.text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    text = rf"\textcolor{{rllc{entry.mark}}}{{{text}}}" if entry.mark else text
    return f"{text} {_tex(entry.aside)}".rstrip()


# Bold reaches neither $\pm$ nor $-$; nobody will miss it there.
TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "%": r"\%",
        "&": r"\&",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
        "−": "$-$",
        "×": r"$\times$",
        "√": r"$\surd$",
        "²": r"$^2$",
        "σ": r"$\sigma$",
        "†": r"$\dagger$",
    }
)


def _tex(text: str) -> str:
    return text.translate(TEX)


def _tex_name(name: str) -> str:
    """A memory as in the paper, in mathematics; any other name as it is."""
    if not re.match(r"C?M(_\d+)?\(", name):
        return _tex(name)
    return "$" + name.replace(" + ", r" \oplus ").replace("CM", r"C\!M") + "$"


def _html(table: Table) -> str:
    e = html.escape
    head = "".join(f'<th scope="col">{e(name)}</th>' for name in table.head)
    bodies = "\n".join(_html_group(table, group) for group in table.groups)
    legend = [f'<span class="{mark}">{SIGNS[mark]} {MEANINGS[mark]}</span>' for mark in table.marks]
    legend += ["<strong>bold</strong> the best of all."] if legend else []
    said = filter(None, [", ".join(legend), *map(e, table.notes)])
    notes = "\n".join(f"<li>{note}</li>" for note in said)
    return f"""<figure class="rllc-table">
<div class="scroll">
<table>
<caption>{e(table.title)}</caption>
<thead><tr>{head}</tr></thead>
{bodies}
</table>
</div>
<figcaption><ul>
{notes}
</ul></figcaption>
</figure>
"""


def _html_group(table: Table, group: Group) -> str:
    rows = []
    for i, line in enumerate(group.lines):
        name = f'<th scope="rowgroup" rowspan="{len(group.lines)}">{html.escape(group.name)}</th>'
        label = f'<th scope="row">{html.escape(line.label)}</th>' if table.labelled else ""
        entries = "".join(map(_html_entry, line.entries))
        rows.append(f"<tr>{name if i == 0 else ''}{label}{entries}</tr>")
    return "<tbody>" + "\n".join(rows) + "</tbody>"


def _html_entry(entry: Entry) -> str:
    text = html.escape(entry.text)
    text = f"<strong>{text}</strong>" if entry.best else text
    sign = (
        f'<span class="sign" title="{MEANINGS[entry.mark]}">{SIGNS[entry.mark]}</span> ' if entry.mark else ""
    )
    aside = f" <small>{html.escape(entry.aside)}</small>" if entry.aside else ""
    return f'<td class="{entry.mark}">{sign}{text}{aside}</td>' if entry.mark else f"<td>{text}{aside}</td>"


FORMATS = {"markdown": _markdown, "latex": _latex, "html": _html}
