"""Tables 3, 4 and 5 in the paper's form from results, with the paper's own numbers beside ours.

Decides which rows and columns a table has and how a score is written. How a table becomes Markdown or
LaTeX is said in ``typeset``; what may stand in one table, in ``results``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mp2.evaluation.published import Published, paper_table, published
from mp2.evaluation.results import Cell, Results
from mp2.evaluation.statistics import Summary, summarise
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


def score_text(summary: Summary, full: int = 0) -> str:
    """Percent with sample standard deviation, as the paper prints: ``65.3 (1.7)``; one seed: ``65.3 [1]``."""
    std = "" if summary.std is None else f" ({100 * summary.std:.1f})"
    return f"{100 * summary.mean:.1f}{std}{few_seeds(summary.seeds, full)}"


def few_seeds(seeds: int, full: int) -> str:
    """The mark of a number that has fewer seeds than others: ``[2]``."""
    return f" [{seeds}]" if seeds < full else ""


def span_text(counts: Iterable[int]) -> str:
    """One number, or the least and the largest."""
    found = sorted(set(counts))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


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


def suite_cells(results: Results, suite: str) -> tuple[tuple[str, ...], dict[str, dict[str, Cell]]]:
    """Tasks of a suite that have results, in its order, and every method's cells on them.

    Args:
        results: The results.
        suite: A suite's name; ``other`` is every task that is in none of them.

    Returns:
        Tasks, and method -> task -> cell: methods as the paper orders them, then those beyond the paper.
    """
    known = {task for name in SUITE_TITLES for task in catalogue.suite(name)}
    wanted = [t for t in results.tasks() if t not in known] if suite == "other" else catalogue.suite(suite)
    cells = results.cells(wanted)
    paper = [row.method for row in published(suite) if row.method in cells]
    tasks = tuple(task for task in wanted if any(task in row for row in cells.values()))
    return tasks, {method: cells[method] for method in dict.fromkeys([*paper, *cells])}


def table_3(results: Results, suite: str, leaks: Leaks | None = None) -> Table | None:
    """Mean and sample std of every method on every task of a suite.

    Args:
        results: The results.
        suite: ``unseen-data-7``, ``unseen-task-7`` or ``other``.
        leaks: Task -> share of its test rows that other tasks' files hold.

    Returns:
        The table, or None if no task of the suite has results.
    """
    tasks, cells = suite_cells(results, suite)
    if not tasks:
        return None
    full = most_seeds(cells)
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
        table.rows.append(_own_row(method, row, tasks, best, full, leaks or {}))
        table.rows.extend(_paper_row(row, tasks) for row in paper if row.method == method)
    table.rows.extend(_paper_row(row, tasks) for row in paper if row.method not in cells)
    table.notes.extend(_notes(cells, tasks, leaks or {}, bool(paper)))
    return table


def _whole(suite: str) -> tuple[str, ...]:
    return catalogue.suite(suite) if suite in SUITE_TITLES else ()


def most_seeds(cells: Mapping[str, Mapping[str, Cell]]) -> int:
    """Seeds of the cell that has most."""
    return max(len(cell.seeds) for row in cells.values() for cell in row.values())


def _best(cells: Mapping[str, Mapping[str, Cell]], tasks: Sequence[str]) -> dict[str, float]:
    """Highest mean of each task, and of the average over all tasks; one seed is no rival."""
    rivals = [
        {t: float(c.scores.mean()) for t, c in row.items() if len(c.seeds) > 1} for row in cells.values()
    ]
    best = {t: max((row[t] for row in rivals if t in row), default=np.inf) for t in tasks}
    whole = [float(np.mean([row[t] for t in tasks])) for row in rivals if len(row) == len(tasks)]
    best["average"] = max(whole, default=np.inf)
    return best


def _own_row(
    method: str,
    row: Mapping[str, Cell],
    tasks: Sequence[str],
    best: Mapping[str, float],
    full: int,
    leaks: Leaks,
) -> list[Text]:
    tuned = max(cell.records[0].tuned_parameters for cell in row.values())
    texts = [Text(paradigm(method)), Text(method), Text(count_text(tuned))]
    for task in tasks:
        if task not in row:
            texts.append(Text("–"))
            continue
        s = summarise([row[task].scores])
        flag = FLAG if leaks.get(task, 0) >= 0.01 else ""
        texts.append(Text(score_text(s, full) + flag, bold=s.seeds > 1 and s.mean >= best[task]))
    if len(row) < len(tasks):
        return [*texts, Text("–")]
    s = summarise([row[task].scores for task in tasks])
    text = f"{100 * s.mean:.1f}{few_seeds(s.seeds, full)}"
    return [*texts, Text(text, bold=s.seeds > 1 and s.mean >= best["average"])]


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


def _notes(
    cells: Mapping[str, Mapping[str, Cell]], tasks: Sequence[str], leaks: Leaks, paper: bool
) -> list[str]:
    every = [cell for row in cells.values() for cell in row.values()]
    seeds = sorted({seed for cell in every for seed in cell.seeds})
    notes = [
        f"Percent, mean and sample standard deviation over seeds {', '.join(map(str, seeds))};"
        f" {span_text(cell.records[0].test_rows for cell in every)} test rows per task; bold: best of its"
        " column."
    ]
    if len({len(cell.seeds) for cell in every}) > 1:
        notes.append("[n]: n seeds alone; one seed has no deviation and is never the best.")
    if paper:
        notes.append(
            "Rows 'paper' are printed numbers of CPT-large (CPM-2: 11B) on its own few-shot draws and whole"
            " test sets; they are for the order of methods, not for comparison of height."
        )
    flagged = [f"{task_title(t)} {100 * leaks[t]:.1f} %" for t in tasks if leaks.get(t, 0) >= 0.01]
    if flagged:
        notes.append(
            f"{FLAG} share of test rows that also stand in a file of another task (the one that has most):"
            f" {', '.join(flagged)}; those upstream rows are taken out before encoder and banks are trained."
        )
    return notes


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
    s = summarise([cell.scores])
    seconds = np.mean([record.seconds for record in cell.records])
    numbers = ["" if value is None else f"{100 * value:.2f}" for value in (s.mean, s.std, s.low, s.high)]
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
    places: set[str] = set()
    for method in [*(m for m in paper if m in methods), *(m for m in methods if m not in paper)]:
        found = [results.cell(method, task) for task in tasks]
        minutes = [f"{np.mean([r.seconds for r in c.records]) / 60:.2f}" if c else "–" for c in found]
        table.rows.append([Text(method), *map(Text, minutes)])
        places |= {_place(record.machine) for cell in found if cell for record in cell.records}
        if method in paper:
            printed = [Text(row["minutes"], quiet=True) for row in paper[method]]
            name = f"paper: {paper[method][0]['name']}, {paper[method][0]['stages']}"
            table.rows.append([Text(name, quiet=True), *printed])
    table.notes.append(f"Ours: {'; '.join(sorted(places))}. Paper: CPT-large on one RTX 3090.")
    return table


def _place(machine: Mapping[str, object]) -> str:
    """The accelerator, or the processor with the threads that ran on it."""
    threads = f"{machine.get('threads')} thread{'' if machine.get('threads') == 1 else 's'}"
    return str(machine.get("accelerator") or f"{machine.get('processor')}, {threads}")


def table_5(results: Results) -> Table | None:
    """Two-speed against one-speed pre-training; the shipped bank stands in for a two-speed one."""
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
        shipped = kind == "two-speed" and method not in results.methods(kind)
        found = [results.cell(method, task, variant="" if shipped else kind) for task in tasks]
        texts = [f"{score_text(s)} [{s.seeds}]" if (s := c and summarise([c.scores])) else "–" for c in found]
        table.rows.append([Text(method), Text(kind + (" (shipped)" if shipped else "")), *map(Text, texts)])
        numbers = [Text(f"{row['mean']} ({row['std']})", quiet=True) for row in printed]
        table.rows.append(
            [Text(f"paper: {printed[0]['name']}", quiet=True), Text(kind, quiet=True), *numbers]
        )
    table.notes.append(
        "Two-speed: the router learns at another rate than the prompts in pre-training. [n]: n seeds."
    )
    return table
