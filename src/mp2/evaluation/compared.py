"""Methods against one another: averages over a suite, paired differences, wins, and all pairs for machines.

Decides what is compared with what. The tests are in ``statistics``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mp2.evaluation.results import Cell, Results, most_common
from mp2.evaluation.statistics import LEVEL, Comparison, Summary, compare_all, summarise, win_matrix
from mp2.evaluation.tables import SUITE_TITLES, span_text, suite_cells
from mp2.evaluation.typeset import Table, Text

AVERAGE = "average of "


def averages(results: Results, suite: str) -> Table | None:
    """Average over a suite's tasks with its 95 % interval, for methods that ran all of them."""
    tasks, cells = suite_cells(results, suite)
    columns = ("Method", "Seeds", "Average", "95 % interval", "Std of seeds", "Seconds per run", "Peak MiB")
    table = Table(f"averages-{suite}", f"Averages: {SUITE_TITLES.get(suite, 'other tasks')}", columns)
    for method, s in whole_suite(tasks, cells).items():
        records = [record for cell in cells[method].values() for record in cell.records]
        texts = [method, span_text(len(cell.seeds) for cell in cells[method].values())]
        texts += [f"{100 * s.mean:.1f}", f"{100 * s.low:.1f} to {100 * s.high:.1f}"]
        texts += [
            "–" if s.std is None else f"{100 * s.std:.1f}",
            f"{np.mean([r.seconds for r in records]):.1f}",
        ]
        texts += [f"{max(r.peak_memory.get('process_mib', 0) for r in records):,}"]
        table.rows.append([Text(text) for text in texts])
    table.notes.append(
        "Intervals: bootstrap over seeds and test rows, task by task; with one seed over test rows alone."
        " Seconds: tuning alone."
    )
    return table if table.rows else None


def whole_suite(tasks: Sequence[str], cells: Mapping[str, Mapping[str, Cell]]) -> dict[str, Summary]:
    """Summary over all tasks of each method that ran all of them, the best first."""
    found = {
        m: summarise([row[t].scores for t in tasks]) for m, row in cells.items() if len(row) == len(tasks)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].mean))


def comparisons(results: Results) -> dict[str, list[Comparison]]:
    """Every pair of methods on each task, and on the average of each suite, corrected within each of them."""
    found = {}
    for task in results.tasks():
        cells = results.cells([task])
        found[task] = _compare({m: [row[task]] for m, row in cells.items()})
    for suite in (*SUITE_TITLES, "other"):
        tasks, cells = suite_cells(results, suite)
        if len(tasks) > 1:
            methods = whole_suite(tasks, cells)
            found[AVERAGE + suite] = _compare({m: [cells[m][task] for task in tasks] for m in methods})
    return found


def _compare(methods: Mapping[str, Sequence[Cell]]) -> list[Comparison]:
    """Pairs of the methods that have the rows most have; others have come in with mixed records."""
    rows = {method: tuple(cell.scores.shape[1] for cell in cells) for method, cells in methods.items()}
    usual = most_common(rows.values()) if rows else ()
    same = {method: cells for method, cells in methods.items() if rows[method] == usual}
    return compare_all({m: [(cell.seeds, cell.scores) for cell in cells] for m, cells in same.items()})


def differences(found: Mapping[str, Sequence[Comparison]], suite: str) -> Table | None:
    """How far the average of the row's method is above that of the column's."""
    pairs = {(c.first, c.second): c for c in found.get(AVERAGE + suite, ())}
    names = tuple(dict.fromkeys(name for pair in pairs for name in pair))
    if not names:
        return None
    title = f"Differences of averages: {SUITE_TITLES.get(suite, 'other tasks')}"
    table = Table(f"differences-{suite}", title, ("above →", *names))
    for one in names:
        texts = [one]
        for two in names:
            c = pairs.get((one, two)) or pairs.get((two, one))
            gap = 0.0 if c is None else 100 * c.difference * (1 if c.first == one else -1)
            sure = "*" if c is not None and c.holm <= 1 - LEVEL else ""
            texts.append(("" if one == two else "–") if c is None else f"{gap:+.1f}{sure}")
        table.rows.append([Text(text) for text in texts])
    table.notes.append(
        "Points between the averages of two methods, on the seeds that both have on each task; * p < 0.05"
        " (t-test over seeds and rows, Holm's correction for all pairs); – too few shared seeds. Intervals"
        " and p stand in pairs.csv."
    )
    return table


def wins(results: Results, suite: str, found: Mapping[str, Sequence[Comparison]]) -> Table | None:
    """On how many tasks the row's method beats the column's beyond chance."""
    tasks, cells = suite_cells(results, suite)
    names = list(cells)
    if len(names) < 2:
        return None
    matrix = win_matrix(names, {task: found[task] for task in tasks})
    table = Table(
        f"wins-{suite}", f"Wins: {SUITE_TITLES.get(suite, 'other tasks')}", ("better than →", *names)
    )
    for i, name in enumerate(names):
        counts = ["–" if count < 0 else str(count) for count in matrix[i]]
        table.rows.append([Text(name), *(Text("" if i == j else text) for j, text in enumerate(counts))])
    table.notes.append(
        f"Tasks of {len(tasks)} on which the method of the row is better than that of the column with"
        " p < 0.05 (t-test over seeds and rows, Holm's correction for all pairs of the task). Each pair is"
        " compared on the seeds that both have, three at least; – on no task."
    )
    return table


def pairs_table(found: Mapping[str, Sequence[Comparison]]) -> Table:
    """All comparisons, long form."""
    columns = ("task", "first", "second", "seeds", "difference", "low", "high", "p_rows", "p", "holm")
    table = Table("pairs", "Paired comparisons", columns, words=3)
    for task, each in found.items():
        for c in each:
            numbers = [f"{100 * value:.2f}" for value in (c.difference, c.low, c.high)]
            table.rows.append(
                [
                    Text(t)
                    for t in (
                        task,
                        c.first,
                        c.second,
                        str(c.seeds),
                        *numbers,
                        *(f"{p:.2g}" for p in (c.p_rows, c.p, c.holm)),
                    )
                ]
            )
    return table
