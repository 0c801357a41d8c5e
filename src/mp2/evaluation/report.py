"""A report from records: tables in three forms, figures, one Markdown file and one self-contained page.

Decides which tables and figures a set of records supports, and where their files go.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from mp2.errors import ConfigError, DataError
from mp2.evaluation import compared, drawing, tables
from mp2.evaluation.figures import all_figures
from mp2.evaluation.page import figure_title, page
from mp2.evaluation.results import Results
from mp2.evaluation.typeset import FORMS, Table, markdown
from mp2.evaluation.variants import variants_table
from mp2.model.checkpoint import Base
from mp2.runtime import check_file, write_whole

SUITES = (*tables.SUITE_TITLES, "other")


@dataclass(slots=True)
class Report:
    """Everything that records tell.

    Attributes:
        shown: Tables for the report itself.
        long: Tables for machines, as CSV alone.
        remarks: Failed runs, and what was accepted although it is mixed.
        figures: Figures by file name.
    """

    shown: list[Table] = field(default_factory=list)
    long: list[Table] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    def markdown(self) -> str:
        """All tables as one Markdown text."""
        remarks = "".join(f"- {line}\n" for line in self.remarks)
        parts = [f"Remarks:\n\n{remarks}"] if remarks else []
        return "\n".join([*parts, *map(markdown, self.shown)])

    def write(self, folder: Path) -> list[Path]:
        """Write ``report.md``, ``report.html``, ``tables/*`` and ``figures/*``; returns the files."""
        drawings = {name: drawing.svg(figure) for name, figure in self.figures.items()}
        files: dict[Path, bytes | str] = {
            folder / "report.md": "# Results\n\n" + self.markdown() + _figure_links(drawings),
            folder / "report.html": page("Results", self.shown, drawings, self.remarks),
        }
        for name, figure in self.figures.items():
            files[folder / "figures" / f"{name}.svg"] = drawings[name]
            files[folder / "figures" / f"{name}.png"] = drawing.png(figure)
        for table in self.shown:
            for ending, form in FORMS.items():
                files[folder / "tables" / f"{table.name}.{ending}"] = form(table)
        for table in self.long:
            files[folder / "tables" / f"{table.name}.csv"] = FORMS["csv"](table)
        for path in files:
            check_file(path)
        for path, content in files.items():
            write_whole(path, content)
        return list(files)


def _figure_links(names: Iterable[str]) -> str:
    return "".join(f"\n### {figure_title(name)}\n\n![{name}](figures/{name}.png)\n" for name in names)


def _check_base(results: Results, base: Base) -> None:
    models = {record.base_fingerprint: record.base for record in results.records}
    if base.fingerprint not in models:
        shown = ", ".join(f"{name} ({fingerprint})" for fingerprint, name in models.items())
        raise ConfigError(f"{base.name} ({base.fingerprint}): the records are of {shown}")
    for record in results.records:
        if record.variant or record.bank not in base.banks:
            continue
        if record.bank_fingerprint != (ours := base.bank_fingerprint(record.bank)):
            of = f"the records of {record.method} are of another ({record.bank_fingerprint})"
            raise ConfigError(f"{base.name} has the bank {record.bank} ({ours}), {of}")


def build_report(results: Results, *, leaks: tables.Leaks | None = None, base: Base | None = None) -> Report:
    """Make every table and figure that the results support.

    Args:
        results: The results.
        leaks: Task -> share of its test rows in other tasks' files (:func:`read_leaks`).
        base: The base, for Table 1 and Figure 5.

    Raises:
        ConfigError: No record is of that base, or some are of another bank of one of its banks' names.
    """
    if base is not None:
        _check_base(results, base)
    report = Report(remarks=_remarks(results))
    found = compared.comparisons(results)
    for suite in SUITES:
        each = (
            tables.table_3(results, suite, leaks),
            compared.averages(results, suite),
            compared.differences(found, suite),
            compared.wins(results, suite, found),
        )
        report.shown.extend(table for table in each if table is not None)
    others = (
        tables.table_4(results),
        tables.table_5(results),
        variants_table(results),
        tables.table_1(base) if base else None,
    )
    report.shown.extend(table for table in others if table is not None)
    report.long = [tables.cells_table(results), compared.pairs_table(found)]
    report.figures = all_figures(results, [base.bank(name) for name in base.banks] if base else [])
    return report


def _remarks(results: Results) -> list[str]:
    lines = [f"mixed records were accepted: {line}" for line in results.objections]
    commits = Counter(str(r.versions.get("git")) for r in results.records)
    if len(commits) > 1:
        lines.append(f"records of {len(commits)} commits of one version: {', '.join(sorted(commits))}")
    if dirty := [f"{count} of {commit}" for commit, count in commits.items() if commit.endswith("-dirty")]:
        lines.append(f"made with uncommitted changes, so that no commit makes them again: {', '.join(dirty)}")
    for record in results.failed:
        lines.append(f"failed: {record.method} on {record.task}, seed {record.seed}: {record.error[:200]}")
    return lines


def read_leaks(path: Path) -> dict[str, float]:
    """Largest share of each task's test rows that stands in one file of another task.

    Args:
        path: What ``mp2 data leaks --json`` printed.

    Raises:
        DataError: Absent or something else.
    """
    try:
        overlaps: Sequence[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))["overlaps"]
        shares: dict[str, float] = {}
        for overlap in overlaps:
            for one, other in (("first", "second"), ("second", "first")):
                task, _, split = str(overlap[one]).rpartition("/")
                if split == "test" and str(overlap[other]).rpartition("/")[0] != task:
                    share = float(str(overlap[f"{one}_rows"])) / float(str(overlap[f"{one}_size"]))
                    shares[task] = max(share, shares.get(task, 0.0))
        return shares
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"{path}: expected the output of 'mp2 data leaks --json': {error}") from error
