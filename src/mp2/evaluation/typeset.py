"""A table of text as Markdown, CSV, LaTeX or HTML. Knows nothing of what the cells mean."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"\textsuperscript{\dag}",
    "–": "--",
    "≥": r"$\geq$",
    "→": r"$\to$",
}


@dataclass(frozen=True, slots=True)
class Text:
    """A cell.

    Attributes:
        text: What it says.
        bold: The best of its column.
        quiet: A number that is not ours (the paper's).
    """

    text: str
    bold: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        name: File name without ending.
        title: Caption.
        columns: Header.
        rows: Cells.
        notes: Lines below.
        words: How many of the first columns hold words (set left), not numbers (set right).
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[list[Text]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    words: int = 1


def markdown(table: Table) -> str:
    """A pipe table with its title and notes."""
    align = ["---" if index < table.words else "---:" for index in range(len(table.columns))]
    lines = [f"### {table.title}", "", _pipes(table.columns), _pipes(align)]
    lines += [_pipes([_marked(cell) for cell in row]) for row in table.rows]
    lines += ["", *(f"{note}  " for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _marked(cell: Text) -> str:
    if cell.bold:
        return f"**{cell.text}**"
    return f"*{cell.text}*" if cell.quiet and cell.text else cell.text


def comma_separated(table: Table) -> str:
    """Header and cells, without title and notes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([[cell.text for cell in row] for row in table.rows])
    return out.getvalue()


def latex(table: Table) -> str:
    """A ``table*`` with booktabs rules."""
    align = "".join("l" if index < table.words else "r" for index in range(len(table.columns)))

    def cell(item: Text) -> str:
        text = escape_latex(item.text)
        if item.bold:
            return rf"\textbf{{{text}}}"
        return rf"\textit{{{text}}}" if item.quiet and text else text

    lines = [r"\begin{table*}", r"\centering\small", rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines += [" & ".join(map(escape_latex, table.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(cell, row)) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = " ".join(table.notes)
    lines += [rf"\caption{{{escape_latex(table.title)}. {escape_latex(notes)}}}".replace("  ", " ")]
    lines += [rf"\label{{tab:{table.name}}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def html_table(table: Table) -> str:
    """A ``<section>`` with a caption, the table and its notes."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "".join(
        f"<tr>{''.join(_td(cell, i < table.words) for i, cell in enumerate(row))}</tr>\n"
        for row in table.rows
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    name, title = html.escape(table.name), html.escape(table.title)
    grid = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<section id="{name}"><h2>{title}</h2>\n<div class="wide">{grid}</div>{notes}</section>\n'


def _td(cell: Text, word: bool) -> str:
    kinds = [kind for kind, on in (("word", word), ("best", cell.bold), ("quiet", cell.quiet)) if on]
    marks = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<td{marks}>{html.escape(cell.text)}</td>"


FORMS: dict[str, Callable[[Table], str]] = {"md": markdown, "csv": comma_separated, "tex": latex}
