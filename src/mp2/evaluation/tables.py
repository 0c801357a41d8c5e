"""Tables 3, 4 and 5 in the paper's form from results, with the paper's own numbers beside ours.

Decides which rows and columns a table has and how a score is written. How a table becomes Markdown or
LaTeX is said in ``typeset``; what may stand in one table, in ``results``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mp2.evaluation.published import Published, paper_table, published
from mp2.evaluation.results import Cell, Results
from mp2.evaluation.statistics import Comparison, Summary, compare_all, summarise, summarise_tasks, win_matrix
from mp2.evaluation.typeset import Table, Text
from mp2.model.checkpoint import Base
from mp2.tasks import catalogue
from mp2.tuning.methods import METHODS
from mp2.tuning.stages import Bayes, Cma

SUITE_TITLES = {
    "unseen-data-7": "unseen data (tasks of a kind that was trained on, other rows)",
    "unseen-task-7": "unseen tasks",
}
FLAG = "†"
Leaks = Mapping[str, float]


def score_text(summary: Summary) -> str:
    """Percent with sample standard deviation, as the paper prints: ``65.3 (1.7)``."""
    return f"{100 * summary.mean:.1f} ({100 * summary.std:.1f})"


def count_text(count: int) -> str:
    """A number of parameters in few characters: ``96``, ``7.2K``, ``1.2M``."""
    for size, unit in ((1_000_000, "M"), (1_000, "K")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return str(count)


def paradigm(method: str) -> str:
    """``GD`` (gradients of something), ``BB`` (forward passes alone), or a dash for no tuning."""
    stages = METHODS[method].stages if method in METHODS else ()
    if not stages:
        return "–"
    return "BB" if all(isinstance(stage, Bayes | Cma) for stage in stages) else "GD"


def task_title(task: str) -> str:
    """The paper's name of a catalogue task."""
    if task not in catalogue.names():
        return task
    facts = catalogue.get(task).paper
    return facts.name if facts and not task.startswith("iflytek-") else task


def suite_tasks(results: Results, suite: str) -> tuple[str, ...]:
    """Tasks of a suite that have results, in the suite's order; ``other`` is everything else."""
    found = set(results.tasks())
    if suite != "other":
        return tuple(task for task in catalogue.suite(suite) if task in found)
    known = {task for name in SUITE_TITLES for task in catalogue.suite(name)}
    return tuple(task for task in results.tasks() if task not in known)


def method_order(results: Results, suite: str) -> list[str]:
    """Methods as the paper orders them, then those beyond the paper."""
    paper = [row.method for row in published(suite) if row.method]
    found = results.methods()
    return [name for name in paper if name in found] + [name for name in found if name not in paper]


def table_3(results: Results, suite: str, leaks: Leaks | None = None) -> Table | None:
    """Mean and sample std of every method on every task of a suite.

    Args:
        results: The results.
        suite: ``unseen-data-7``, ``unseen-task-7`` or ``other``.
        leaks: Task -> share of its test rows that other tasks' files hold.

    Returns:
        The table, or None if no task of the suite has results.
    """
    tasks = suite_tasks(results, suite)
    if not tasks:
        return None
    cells = {
        m: {t: cell for t in tasks if (cell := results.cell(m, t))} for m in method_order(results, suite)
    }
    cells = {method: row for method, row in cells.items() if row}
    best = _best(cells, tasks)
    paper = published(suite)
    average = "Avg" if len(tasks) == len(_whole(suite)) else f"Avg of {len(tasks)}"
    table = Table(
        f"table3-{suite}",
        f"Table 3: {SUITE_TITLES.get(suite, 'other tasks')}",
        ("", "Method", "Tuned", *map(task_title, tasks), average),
        words=2,
    )
    for method, row in cells.items():
        table.rows.append(_own_row(method, row, tasks, best, leaks or {}))
        table.rows.extend(_paper_row(row, tasks) for row in paper if row.method == method)
    table.rows.extend(_paper_row(row, tasks) for row in paper if row.method not in cells)
    table.notes.extend(_notes(cells, tasks, leaks or {}, bool(paper)))
    return table


def _whole(suite: str) -> tuple[str, ...]:
    return catalogue.suite(suite) if suite in SUITE_TITLES else ()


def _best(cells: Mapping[str, Mapping[str, Cell]], tasks: Sequence[str]) -> dict[str, float]:
    """Highest mean of each task, and of the average over all tasks."""
    best = {t: max(row[t].scores.mean() for row in cells.values() if t in row) for t in tasks}
    whole = [
        np.mean([row[t].scores.mean() for t in tasks]) for row in cells.values() if len(row) == len(tasks)
    ]
    return best | ({"average": float(max(whole))} if whole else {})


def _own_row(
    method: str, row: Mapping[str, Cell], tasks: Sequence[str], best: Mapping[str, float], leaks: Leaks
) -> list[Text]:
    tuned = max(cell.records[0].tuned_parameters for cell in row.values())
    texts = [Text(paradigm(method)), Text(method), Text(count_text(tuned))]
    for task in tasks:
        if task not in row:
            texts.append(Text("–"))
            continue
        flag = FLAG if leaks.get(task, 0) >= 0.01 and row[task].records[0].bank else ""
        text = score_text(summarise(row[task].scores, resamples=2)) + flag
        texts.append(Text(text, bold=bool(row[task].scores.mean() >= best[task])))
    if len(row) < len(tasks):
        return [*texts, Text("–")]
    mean = float(np.mean([row[task].scores.mean() for task in tasks]))
    return [*texts, Text(f"{100 * mean:.1f}", bold=mean >= best["average"])]


def _paper_row(row: Published, tasks: Sequence[str]) -> list[Text]:
    texts = [
        Text(row.paradigm, quiet=True),
        Text(f"paper: {row.name}", quiet=True),
        Text(row.parameters, quiet=True),
    ]
    for task in tasks:
        mean, std = row.scores.get(task, (None, None))
        texts.append(Text("–" if mean is None else f"{mean:.1f} ({std:.1f})", quiet=True))
    there = [row.scores[task][0] for task in tasks if task in row.scores]
    average = f"{np.mean(there):.1f}" if len(there) == len(tasks) else "–"
    if "average" in row.scores and len(tasks) == len(row.scores) - 1:
        average = f"{row.scores['average'][0]:.1f}"  # as printed
    return [*texts, Text(average, quiet=True)]


def _fewer_seeds(cells: Mapping[str, Mapping[str, Cell]], full: int) -> str:
    """Which methods have fewer seeds than others: on all of their tasks, or on which."""
    names: dict[int, dict[str, None]] = {}  # a dictionary as an ordered set
    for method, row in cells.items():
        even = len({len(cell.seeds) for cell in row.values()}) == 1
        for task, cell in row.items():
            name = method if even else f"{method} on {task_title(task)}"
            names.setdefault(len(cell.seeds), {})[name] = None
    return "; ".join(f"{count} of {', '.join(names[count])}" for count in sorted(names) if count < full)


def _notes(
    cells: Mapping[str, Mapping[str, Cell]], tasks: Sequence[str], leaks: Leaks, paper: bool
) -> list[str]:
    every = [cell for row in cells.values() for cell in row.values()]
    seeds = sorted({seed for cell in every for seed in cell.seeds})
    rows = sorted({cell.records[0].test_rows for cell in every})
    span = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    notes = [
        f"Percent, mean and sample standard deviation over seeds {', '.join(map(str, seeds))};"
        f" {span} test rows per task; bold: best of its column."
    ]
    if fewer := _fewer_seeds(cells, len(seeds)):
        notes.append(f"Fewer seeds: {fewer}.")
    if paper:
        notes.append(
            "Rows 'paper' are printed numbers of CPT-large (CPM-2: 11B) on its own few-shot draws and whole"
            " test sets; they are for the order of methods, not for comparison of height."
        )
    flagged = [f"{task_title(t)} {100 * leaks[t]:.1f} %" for t in tasks if leaks.get(t, 0) >= 0.01]
    if flagged:
        notes.append(
            f"{FLAG} share of test rows that also stand in files of other tasks: {', '.join(flagged)}; those"
            " upstream rows are taken out before pre-training."
        )
    return notes


def averages(results: Results, suite: str) -> Table | None:
    """Average over a suite's tasks with its 95 % interval, for methods that ran all of them."""
    tasks = suite_tasks(results, suite)
    rows: list[tuple[float, list[Text]]] = []
    for method in method_order(results, suite) if tasks else []:
        cells = [cell for task in tasks if (cell := results.cell(method, task))]
        if len(cells) < len(tasks):
            continue
        found = summarise_tasks([cell.scores for cell in cells])
        seconds = np.mean([r.seconds for cell in cells for r in cell.records])
        memory = max(r.peak_memory.get("process_mib", 0) for cell in cells for r in cell.records)
        texts = [method, f"{100 * found.mean:.1f}", f"{100 * found.low:.1f} to {100 * found.high:.1f}"]
        texts += [f"{100 * found.std:.1f}", f"{seconds:.1f}", f"{memory:,}"]
        rows.append((found.mean, [Text(text) for text in texts]))
    if not rows:
        return None
    columns = ("Method", "Average", "95 % interval", "Std of seeds", "Seconds per run", "Peak MiB")
    rows.sort(key=lambda row: -row[0])
    note = "Intervals: bootstrap over seeds and test rows, task by task. Seconds: tuning alone."
    title = f"Averages: {SUITE_TITLES.get(suite, 'other tasks')}"
    return Table(f"averages-{suite}", title, columns, [texts for _, texts in rows], [note])


def comparisons(results: Results, tasks: Iterable[str]) -> dict[str, list[Comparison]]:
    """Every pair of methods on each task, on the seeds they share, corrected within the task."""
    found: dict[str, list[Comparison]] = {}
    for task in tasks:
        cells = {method: cell for method in results.methods() if (cell := results.cell(method, task))}
        scores = {method: cell.scores for method, cell in cells.items()}
        found[task] = compare_all(scores, {method: cell.seeds for method, cell in cells.items()})
    return found


def wins(results: Results, suite: str, found: Mapping[str, Sequence[Comparison]]) -> Table | None:
    """On how many tasks the row's method beats the column's beyond chance."""
    tasks = suite_tasks(results, suite)
    names = method_order(results, suite)
    if not tasks or len(names) < 2:
        return None
    matrix = win_matrix(names, {task: [c for c in found[task] if c.seeds > 1] for task in tasks})
    table = Table(
        f"wins-{suite}", f"Wins: {SUITE_TITLES.get(suite, 'other tasks')}", ("better than →", *names)
    )
    for i, name in enumerate(names):
        counts = ["" if i == j else str(matrix[i, j]) for j in range(len(names))]
        table.rows.append([Text(name), *map(Text, counts)])
    table.notes.append(
        f"Tasks of {len(tasks)} on which the method of the row is better than that of the column with"
        " p < 0.05 (over seeds and test rows, Holm's correction for all pairs of the task). Each pair is"
        " compared on the seeds that both have; pairs with fewer than two do not count."
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


def cells_table(results: Results) -> Table:
    """Every cell of every variant, long form, with intervals."""
    words = ("variant", "method", "task")
    columns = (*words, "shots", "seeds", "test_rows", "mean", "std", "low", "high", "seconds", "calls")
    table = Table("cells", "All cells", columns, words=len(words))
    for variant in results.variants:
        for method in results.methods(variant):
            for task in results.tasks(variant):
                for shots in (None, *results.shots(method, task, variant)):
                    cell = results.cell(method, task, variant=variant, shots=shots)
                    if cell is not None:
                        table.rows.append(_long_row(variant, method, task, shots, cell))
    return table


def _long_row(variant: str, method: str, task: str, shots: int | None, cell: Cell) -> list[Text]:
    s = summarise(cell.scores)
    seconds = np.mean([record.seconds for record in cell.records])
    numbers = [f"{100 * value:.2f}" for value in (s.mean, s.std, s.low, s.high)]
    facts = [str(shots or ""), str(s.seeds), str(cell.scores.shape[1]), *numbers, f"{seconds:.2f}"]
    return [Text(t) for t in (variant, method, task, *facts, str(cell.records[0].calls))]


def table_1(base: Base | None = None) -> Table:
    """Size of what is pre-trained and of the data it is trained on.

    Args:
        base: Its banks become rows of their own; the paper's rows only when None.
    """
    table = Table(
        "table1", "Table 1: parameters and data of pre-training", ("Model", "Parameters", "Data", "Ratio")
    )
    for name in base.banks if base else ():
        assert base is not None
        bank = base.bank(name)
        parts = (*bank.bank.parameters(), *bank.head.parameters(), bank.router)
        size, tokens = sum(part.numel() for part in parts), int(bank.facts.get("tokens", 0))
        ratio = f"{tokens / size:.2f} tokens per parameter" if tokens else "–"
        texts = (
            f"{base.name}, bank {name}",
            count_text(size),
            f"{count_text(tokens)} tokens" if tokens else "–",
            ratio,
        )
        table.rows.append([Text(text) for text in texts])
    for row in paper_table(1):
        table.rows.append(
            [Text(f"paper: {row['name']}", quiet=True), *(Text(row[k], quiet=True) for k in list(row)[1:])]
        )
    table.notes.append("Paper: data in bytes of text, ratio in GB per million parameters. Ours: tokens seen.")
    return table


def table_4(results: Results) -> Table | None:
    """Minutes of black-box tuning."""
    paper: dict[str, list[dict[str, str]]] = {}
    for row in paper_table(4):
        paper.setdefault(row["method"], []).append(row)
    tasks = [row["task"] for row in next(iter(paper.values()))]
    methods = [m for m in results.methods() if m in paper or paradigm(m) == "BB"]
    if not any(results.cell(m, t) for m in methods for t in tasks):
        return None
    table = Table(
        "table4", "Table 4: minutes of tuning without gradients", ("Method", *map(task_title, tasks))
    )
    for method in [*(m for m in paper if m in methods), *(m for m in methods if m not in paper)]:
        found = [results.cell(method, task) for task in tasks]
        minutes = [f"{np.mean([r.seconds for r in c.records]) / 60:.2f}" if c else "–" for c in found]
        table.rows.append([Text(method), *map(Text, minutes)])
        if method in paper:
            printed = [Text(row["minutes"], quiet=True) for row in paper[method]]
            name = f"paper: {paper[method][0]['name']}, {paper[method][0]['stages']}"
            table.rows.append([Text(name, quiet=True), *printed])
    machine = next(iter(results.records)).machine
    place = machine.get("accelerator") or f"{machine.get('cores')} cores, {machine.get('processor')}"
    table.notes.append(f"Ours: {place}. Paper: CPT-large on one RTX 3090.")
    return table


def table_5(results: Results) -> Table | None:
    """Two-speed against one-speed pre-training; records without a variant are of the shipped bank."""
    kinds = {"no": "one-speed", "yes": "two-speed"}
    if not set(kinds.values()) & set(results.variants):
        return None
    paper: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in paper_table(5):
        paper.setdefault((row["method"], row["two_speed"]), []).append(row)
    tasks = [row["task"] for row in next(iter(paper.values()))]
    table = Table(
        "table5", "Table 5: two-speed pre-training", ("Method", "Speeds", *map(task_title, tasks)), words=2
    )
    for (method, two_speed), printed in paper.items():
        kind = kinds[two_speed]
        variant = kind if method in results.methods(kind) else ""
        found = [results.cell(method, task, variant=variant) for task in tasks]
        texts = [score_text(summarise(c.scores, resamples=2)) if c else "–" for c in found]
        table.rows.append([Text(method), Text(kind + ("" if variant else " (shipped)")), *map(Text, texts)])
        numbers = [Text(f"{row['mean']} ({row['std']})", quiet=True) for row in printed]
        table.rows.append(
            [Text(f"paper: {printed[0]['name']}", quiet=True), Text(kind, quiet=True), *numbers]
        )
    table.notes.append("Two-speed: the router learns at another rate than the prompts in pre-training.")
    return table
