"""A table of variants: the same methods with other banks or settings, beside the plain grid.

Decides which tasks variants of a method are averaged over: those that all of its variants ran.
"""

from __future__ import annotations

import numpy as np

from mp2.evaluation.results import Cell, Results
from mp2.evaluation.statistics import summarise, summarise_tasks
from mp2.evaluation.tables import score_text, task_title
from mp2.evaluation.typeset import Table, Text

PLAIN = "(plain)"


def variants_table(results: Results) -> Table | None:
    """Score of every variant on every task, and the average over the tasks that all variants of a method ran.

    Args:
        results: The results.

    Returns:
        The table, best average first within a method; None if all records are of the plain grid.
    """
    named = [variant for variant in results.variants if variant]
    if not named:
        return None
    tasks = list(dict.fromkeys(task for variant in named for task in results.tasks(variant)))
    table = Table(
        "variants",
        "Variants",
        ("Method", "Variant", *map(task_title, tasks), "Average", "95 % interval", "Tasks"),
        words=2,
    )
    for method in dict.fromkeys(method for variant in named for method in results.methods(variant)):
        table.rows.extend(_rows(results, method, tasks))
    table.notes.append(
        "Mean (sample std over seeds); the average and its interval (bootstrap over seeds and test rows) are"
        " over the tasks that all variants of the method ran."
    )
    return table


def _rows(results: Results, method: str, tasks: list[str]) -> list[list[Text]]:
    """Rows of one method, best average first."""
    cells: dict[str, dict[str, Cell]] = {}
    for variant in results.variants:
        found = {t: cell for t in tasks if (cell := results.cell(method, t, variant=variant))}
        if found:
            cells[variant] = found
    shared = [task for task in tasks if all(task in row for row in cells.values())]
    rows: list[tuple[float, list[Text]]] = []
    for variant, row in cells.items():
        scores = [score_text(summarise(row[t].scores, resamples=2)) if t in row else "–" for t in tasks]
        ends = ["–", "–"]
        if shared:
            s = summarise_tasks([row[task].scores for task in shared])
            ends = [f"{100 * s.mean:.1f}", f"{100 * s.low:.1f} to {100 * s.high:.1f}"]
        mean = float(np.mean([row[t].scores.mean() for t in shared])) if shared else 0.0
        texts = [method, variant or PLAIN, *scores, *ends, str(len(shared))]
        rows.append((mean, [Text(text) for text in texts]))
    rows.sort(key=lambda row: -row[0])
    return [texts for _, texts in rows]
