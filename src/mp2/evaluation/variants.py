"""A table of variants: the same methods with other banks or settings, beside the plain grid.

Decides which tasks and seeds variants of a method are compared on (those that all of them ran), and which
variants are one and the same run under several names.
"""

from __future__ import annotations

from mp2.evaluation.results import Cell, Results
from mp2.evaluation.statistics import summarise
from mp2.evaluation.tables import score_text, span_text, task_title
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
    columns = (
        "Method",
        "Variant",
        "Bank steps",
        "Seeds",
        *map(task_title, tasks),
        "Average",
        "95 % interval",
    )
    table = Table("variants", "Variants", columns, words=2)
    for method in dict.fromkeys(method for variant in named for method in results.methods(variant)):
        table.rows.extend(_rows(results, method, tasks))
    table.notes.append(
        "Mean (sample std over seeds), on the seeds that all variants of the method have on a task (a variant"
        " that shares none with the others is left out there); the average and its interval (bootstrap over"
        " seeds and test rows) are over the tasks that all of them ran. Variants joined by = are one run"
        " under several names. Bank steps: how long the bank was pre-trained, – where the records do not"
        " say; banks of unlike length differ by more than what the variant is named for."
    )
    return table


def _rows(results: Results, method: str, tasks: list[str]) -> list[list[Text]]:
    """Rows of one method, best average first."""
    cells = {v: row for v in results.variants if (row := results.cells(tasks, v).get(method))}
    for task in tasks:
        having = [row for row in cells.values() if task in row]
        seeds = _shared_seeds([row[task] for row in having])
        if len(having) == 1 < len(cells):
            seeds = set()  # nothing to compare with
        for row in having:
            cell = row.pop(task)
            row |= {task: cell.only(seeds)} if seeds and seeds <= set(cell.seeds) else {}
    cells = {variant: row for variant, row in cells.items() if row}
    shared = [task for task in tasks if all(task in row for row in cells.values())]
    names: dict[object, list[str]] = {}
    for variant, row in cells.items():
        names.setdefault(_identity(row), []).append(variant or PLAIN)
    rows: list[tuple[float, list[Text]]] = []
    for same in names.values():
        row = cells[same[0].removeprefix(PLAIN)]
        texts = [method, " = ".join(same), _steps(row), span_text(len(cell.seeds) for cell in row.values())]
        texts += [score_text(summarise([row[t].scores])) if t in row else "–" for t in tasks]
        s = summarise([row[task].scores for task in shared]) if shared else None
        texts += [f"{100 * s.mean:.1f}", f"{100 * s.low:.1f} to {100 * s.high:.1f}"] if s else ["–", "–"]
        rows.append((s.mean if s else 0.0, [Text(text) for text in texts]))
    rows.sort(key=lambda row: -row[0])
    return [texts for _, texts in rows]


def _shared_seeds(cells: list[Cell]) -> set[int]:
    """Seeds that all cells have, but for those that share none with the ones that have more."""
    shared: set[int] = set()
    for cell in sorted(cells, key=lambda cell: -len(cell.seeds)):
        shared = shared & set(cell.seeds) or shared or set(cell.seeds)
    return shared


def _identity(row: dict[str, Cell]) -> object:
    """What makes variants the same runs under several names."""
    return tuple(
        (task, r.seed, r.bank_fingerprint, r.settings, str(r.scores))
        for task, cell in row.items()
        for r in cell.records
    )


def _steps(row: dict[str, Cell]) -> str:
    steps = {record.bank_steps for cell in row.values() for record in cell.records}
    return span_text(steps) if any(steps) else "–"
