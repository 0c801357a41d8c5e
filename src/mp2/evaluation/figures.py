"""The paper's Figures 3, 4a, 4b and 5, and curves of what the paper left open, from results.

Decides what each figure shows and when there is enough to show it. How it looks is said in ``drawing``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial import distance

from mp2.evaluation.compared import whole_suite
from mp2.evaluation.drawing import COLOURS, chinese_font, label, line_style, new_figure, style
from mp2.evaluation.records import Record
from mp2.evaluation.results import Cell, Results
from mp2.evaluation.statistics import summarise
from mp2.evaluation.tables import SUITE_TITLES, span_text, suite_cells, task_title
from mp2.model.checkpoint import TrainedBank
from mp2.tasks import catalogue
from mp2.tasks.spec import FAMILIES

STAGED = ("mp2-shallow-gd", "mp2-shallow-bb", "mp2-deep-gd", "mp2-deep-bb")
FIGURE_3_TASKS = ("bq", "lcqmc")
IFLYTEK = {**{f"iflytek-{n}": n for n in catalogue.IFLYTEK_SIZES}, "iflytek": 119}
ABLATIONS = {
    "tasks": ("upstream tasks", "上游任务数"),
    "k": ("modular prompts K", "模块数"),
    "p": ("prompt length P", "提示长度"),
    "h": ("hidden size H of the encoder", "隐层维度"),
}
APART = 0.012  # of the width of a figure, between the intervals of two lines at one place
Points = list[tuple[float, float, float, float]]  # x, mean, low, high


def all_figures(results: Results, banks: Sequence[TrainedBank] = ()) -> dict[str, Figure]:
    """Every figure that the results (and the banks of a base) support, by file name."""
    with style():
        found = {
            "figure3": figure_3(results),
            "figure4a": figure_4a(results),
            "figure4b": figure_4b(results),
            **{f"intervals-{suite}": average_figure(results, suite) for suite in SUITE_TITLES},
            **{f"ablation-{kind}": ablation_figure(results, kind) for kind in ABLATIONS},
            **{f"figure5-{bank.name}": figure_5(bank) for bank in banks if _worth_drawing(bank)},
        }
    return {name: figure for name, figure in found.items() if figure is not None}


def figure_3(results: Results) -> Figure | None:
    """Dev score through both stages, gradient and black-box, the stage line dashed."""
    methods = [m for m in STAGED if m in results.methods()]
    tasks = [t for t in FIGURE_3_TASKS if any(results.cell(m, t) for m in methods)]
    tasks = tasks or [t for t in results.tasks() if any(results.cell(m, t) for m in methods)][:2]
    if not tasks:
        return None
    figure = new_figure(3.6 * len(methods), 2.7 * len(tasks))
    axes = figure.subplots(len(tasks), len(methods), squeeze=False, sharey="row")
    for row, task in zip(axes, tasks, strict=True):
        for axis, method in zip(row, methods, strict=True):
            cell = results.cell(method, task)
            seeds = f", {_seeds_text([cell])}" if cell else ""
            if cell is not None:
                _draw_stages(axis, cell.records)
            axis.set_title(f"{method} · {task_title(task)}{seeds}")
            unit = "calls" if method.endswith("-bb") else "steps"
            axis.set_xlabel(f"{unit} of stage I | of stage II")
        row[0].set_ylabel(label("dev score (%)", "开发集"))
    return figure


def _draw_stages(axis: Axes, records: Sequence[Record]) -> None:
    """Mean and deviation over seeds; each stage has the same share of the axis, however long it is."""
    budgets = _budgets(records)
    curves = [_curve(record, budgets) for record in records]
    grid = np.unique(np.concatenate([xs for xs, _ in curves]))
    # a curve keeps its last value until the next one was measured
    lines = np.stack([ys[np.searchsorted(xs, grid, side="right") - 1] for xs, ys in curves])
    mean = 100 * lines.mean(axis=0)
    if len(lines) > 1:
        std = 100 * lines.std(axis=0, ddof=1)
        axis.fill_between(grid, mean - std, mean + std, color=COLOURS[0], alpha=0.15, linewidth=0)
    axis.plot(grid, mean, color=COLOURS[0], linewidth=1.5, marker="o", markersize=3)
    for border in range(1, len(budgets)):
        axis.axvline(border, color=COLOURS[2], linestyle="--", linewidth=1.2)
    halves = [(s + part, f"{part * budget:.0f}") for s, budget in enumerate(budgets) for part in (0.5, 1.0)]
    axis.set_xticks([0, *(place for place, _ in halves)], ["0", *(text for _, text in halves)])


def _budgets(records: Sequence[Record]) -> list[float]:
    """Steps or calls of each stage, as its settings say; else the last that was measured."""
    said = [re.search(r"\b(?:steps|calls)=(\d+)", stage) for stage in records[0].settings.split(" -> ")]
    last: dict[float, float] = {}
    for point in (point for record in records for point in record.curve):
        last[point["stage"]] = max(last.get(point["stage"], 1), point["step"])
    stages = range(int(max(last, default=0)) + 1)
    return [max(last.get(s, 1), float(m[1]) if s < len(said) and (m := said[s]) else 0) for s in stages]


def _curve(record: Record, budgets: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places (0 to 1 within the first stage, 1 to 2 within the second) and dev scores."""
    xs = [max(p["stage"], 0) + p["step"] / budgets[max(int(p["stage"]), 0)] for p in record.curve]
    return np.array(xs), np.array([point["dev"] for point in record.curve])


def _seeds_text(cells: Iterable[Cell]) -> str:
    text = span_text(len(cell.seeds) for cell in cells)
    return f"{text} seed{'' if text == '1' else 's'}"


def figure_4a(results: Results) -> Figure | None:
    """Accuracy against the number of labels on IFLYTEK's subsets, and on to all 119."""
    lines = _lines(
        {m: [(float(n), results.cell(m, t)) for t, n in IFLYTEK.items()] for m in results.methods()}
    )
    if not lines:
        return None
    figure = new_figure(4.8, 3.2)
    axis = figure.subplots()
    ticks = sorted({x for points in lines.values() for x, *_ in points})
    _draw_lines(axis, lines, ticks, [f"{x:.0f}" for x in ticks])
    axis.set_xlabel(label("labels (IFLYTEK)", "标签数"))
    axis.set_ylabel(label("accuracy (%)", "准确率"))
    return figure


def figure_4b(results: Results) -> Figure | None:
    """Accuracy against the number of training rows per label."""
    swept = [t for t in results.tasks() if any(len(results.shots(m, t)) > 1 for m in results.methods())]
    if not swept:
        return None
    figure = new_figure(4.8 * len(swept), 3.2)
    for axis, task in zip(figure.subplots(1, len(swept), squeeze=False)[0], swept, strict=True):
        lines = _lines(
            {
                m: [(float(s), results.cell(m, task, shots=s)) for s in results.shots(m, task)]
                for m in results.methods()
            }
        )
        _draw_lines(axis, lines, sorted({x for points in lines.values() for x, *_ in points}))
        axis.set_xlabel(label("training rows per label", "每类样本数"))
        axis.set_ylabel(label("score (%)", "得分"))
        axis.set_title(task_title(task))
    return figure


def _lines(cells: Mapping[str, Sequence[tuple[float, Cell | None]]]) -> dict[str, Points]:
    """Points of each method that has two or more; the name tells the seeds."""
    lines = {}
    for method, each in cells.items():
        found = [(x, cell) for x, cell in each if cell]
        if len(found) > 1:
            lines[f"{method}, {_seeds_text(cell for _, cell in found)}"] = [
                _point(x, [cell]) for x, cell in found
            ]
    return lines


def _point(x: float, cells: Sequence[Cell]) -> tuple[float, float, float, float]:
    s = summarise([cell.scores for cell in cells])
    return x, 100 * s.mean, 100 * s.low, 100 * s.high


def _draw_lines(
    axis: Axes, lines: dict[str, Points], ticks: Sequence[float], names: Sequence[str] | None = None
) -> None:
    """One line with intervals per method, a little apart, over places that are evenly spaced or log 2.

    Args:
        axis: Where to draw.
        lines: Points of each method.
        ticks: Every x that is marked.
        names: Their names; then they are evenly spaced, else on a logarithmic scale.
    """
    lowest = min((x for x in ticks if x > 0), default=1.0)  # 0 stands a step before it
    places = {x: float(i) if names else float(np.log2(x or lowest / 2)) for i, x in enumerate(ticks)}
    width = (max(places.values()) - min(places.values())) or 1.0
    for index, (name, points) in enumerate(lines.items()):
        shift = APART * width * (index - (len(lines) - 1) / 2)
        xs = [places[x] + shift for x, *_ in points]
        means = [mean for _, mean, _, _ in points]
        errors = [[mean - low for _, mean, low, _ in points], [high - mean for _, mean, _, high in points]]
        axis.errorbar(xs, means, yerr=errors, capsize=2, label=name, **line_style(index))
    axis.set_xticks([places[x] for x in ticks], list(names or [f"{x:.0f}" for x in ticks]))
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.12 * len(lines) * (high - low))  # room for the legend above the intervals
    axis.legend(loc="upper left")


def average_figure(results: Results, suite: str) -> Figure | None:
    """Average over a suite with its interval, one method per line."""
    tasks, cells = suite_cells(results, suite)
    rows = list(whole_suite(tasks, cells).items())[::-1]
    if len(rows) < 2:
        return None
    figure = new_figure(5.6, 0.9 + 0.24 * len(rows))
    axis = figure.subplots()
    for place, (_, s) in enumerate(rows):
        axis.plot([100 * s.low, 100 * s.high], [place, place], color=COLOURS[0], linewidth=2)
        axis.plot([100 * s.mean], [place], color=COLOURS[0], marker="o", markersize=5)
    names = [f"{method}, {_seeds_text(cells[method].values())}" for method, _ in rows]
    axis.set_yticks(range(len(rows)), names)
    count = f"{len(tasks)} tasks" if len(tasks) > 1 else "one task"
    axis.set_xlabel(label(f"average of {count} (%), 95 % interval", "平均分"))
    axis.set_title(SUITE_TITLES[suite].partition(" (")[0])
    return figure


def ablation_figure(results: Results, kind: str) -> Figure | None:
    """Average score against a number that variants name, such as ``tasks-5``, ``tasks-10``."""
    numbers = {v: int(m[1]) for v in results.variants if (m := re.fullmatch(rf"{kind}-(\d+)", v))}
    if len(numbers) < 2:
        return None
    methods = dict.fromkeys(m for v in numbers for m in results.methods(v))
    lines: dict[str, Points] = {}
    steps: set[int] = set()
    by_number = {v: results.cells(results.tasks(v), v) for v in sorted(numbers, key=numbers.__getitem__)}
    for method in methods:
        having = [v for v, rows in by_number.items() if method in rows]
        cells = [by_number[v][method] for v in having]
        tasks = [task for task in cells[0] if all(task in row for row in cells)] if len(cells) > 1 else []
        if tasks:
            kept = [[row[task] for task in tasks] for row in cells]
            every = [cell for row in kept for cell in row]
            steps |= {record.bank_steps for cell in every for record in cell.records} - {0}  # not said
            points = [_point(float(numbers[v]), row) for v, row in zip(having, kept, strict=True)]
            shown = f"{len(tasks)} task{'' if len(tasks) == 1 else 's'}"
            lines[f"{method}, {shown}, {_seeds_text(every)}"] = points
    if not lines:
        return None
    figure = new_figure(4.8, 3.2)
    axis = figure.subplots()
    _draw_lines(axis, lines, sorted(numbers.values()))
    axis.set_xlabel(label(*ABLATIONS[kind]))
    axis.set_ylabel(label("average score (%)", "平均分"))
    if steps:
        axis.set_title(f"banks of {span_text(steps)} steps")
    return figure


def _worth_drawing(bank: TrainedBank) -> bool:
    """Whether there are tasks to compare, and a router that has anything to decide."""
    return len(bank.tasks) > 2 and bank.bank.config.modules > 1


def figure_5(bank: TrainedBank) -> Figure:
    """Routers of the upstream tasks, clustered: heat-map of the gates and dendrogram, names by family."""
    gates = bank.router.sigmoid().cpu().numpy()
    tasks, layers, modules = gates.shape
    flat = gates.reshape(tasks, layers * modules)
    tree = hierarchy.linkage(flat, method="average", metric="euclidean")
    families = [catalogue.get(t).family if t in catalogue.names() else "" for t in bank.tasks]
    colours = {family: COLOURS[i] for i, family in enumerate(f for f in FAMILIES if f in families)}
    heat = 1.6 + 0.1 * min(layers * modules, 50)
    figure = new_figure(1.4 + heat + 2.6, 1.6 + 0.2 * tasks)
    left, right = figure.subplots(1, 2, width_ratios=[1.4, heat])
    found = hierarchy.dendrogram(
        tree, orientation="left", ax=left, no_labels=True, link_color_func=lambda _: "#666666"
    )
    order = found["leaves"]
    left.set_axis_off()
    # the dendrogram's first leaf is at the bottom
    right.imshow(flat[order], origin="lower", aspect="auto", cmap="viridis")
    right.yaxis.tick_right()
    right.set_yticks(range(tasks), [_task_label(bank.tasks[i]) for i in order])
    for text, i in zip(right.get_yticklabels(), order, strict=True):
        text.set_color(colours.get(families[i], "black"))
    right.grid(visible=False)
    for border in range(modules, layers * modules, modules):
        right.axvline(border - 0.5, color="white", linewidth=1)
    if layers == 1:
        right.set_xticks(range(modules), [str(k + 1) for k in range(modules)])
        right.set_xlabel(label("modular prompt", "模块"))
    else:
        middle = [layer * modules + (modules - 1) / 2 for layer in range(layers)]
        right.set_xticks(middle, [str(layer + 1) for layer in range(layers)])
        right.set_xlabel(label(f"layer, {modules} modular prompts each", "层"))
    bar = figure.colorbar(right.images[0], ax=right, location="top", shrink=0.5)
    bar.set_label(label("gate", "门"))
    handles = [
        Line2D([], [], color=c, marker="s", linestyle="", label=family) for family, c in colours.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    if len(colours) > 1:
        known = [i for i, family in enumerate(families) if family]
        same, chance, p = agreement(flat[known], [families[i] for i in known])
        said = f"{100 * same:.0f} % of tasks (by chance {100 * chance:.0f} %, p = {p:.2g})"
        figure.suptitle(f"nearest task of the same family: {said}", fontsize=10)
    return figure


def agreement(gates: NDArray[np.float64], kinds: Sequence[str]) -> tuple[float, float, float]:
    """Share of rows whose nearest other row is of the same kind, against rows with shuffled kinds.

    Args:
        gates: ``(N, D)``.
        kinds: Kind of each row.

    Returns:
        The share, its mean over 10,000 shuffles, and the share of shuffles that reach it (one-sided p).
    """
    apart = distance.cdist(gates, gates)
    np.fill_diagonal(apart, np.inf)
    nearest = apart.argmin(axis=1)
    _, codes = np.unique(kinds, return_inverse=True)
    shuffled = np.random.default_rng(0).permuted(np.tile(codes, (10_000, 1)), axis=1)
    shares = (shuffled == shuffled[:, nearest]).mean(axis=1)
    share = float((codes == codes[nearest]).mean())
    return share, float(shares.mean()), float(((shares >= share).sum() + 1) / (len(shares) + 1))


def heat_figure(values: Sequence[Sequence[float]], title: str, *, signed: bool = False) -> Figure:
    """One number per layer and module, as a heat-map with the numbers in it.

    Args:
        values: ``[L][K]``.
        title: Heading.
        signed: Colours around zero, for differences; else from 0 to 1.
    """
    grid = np.array(values)
    layers, modules = grid.shape
    figure = new_figure(1.6 + 0.5 * modules, 1.3 + 0.32 * layers)
    axis = figure.subplots()
    reach = max(float(np.abs(grid).max()), 1e-6)
    low, high = (-reach, reach) if signed else (0.0, 1.0)
    axis.imshow(grid, aspect="auto", cmap="RdBu_r" if signed else "viridis", vmin=low, vmax=high)
    for (layer, module), value in np.ndenumerate(grid):
        dark = abs(value) > 0.6 * reach if signed else value < 0.6
        text = f"{value:+.2f}" if signed else f"{value:.2f}"
        axis.text(
            module, layer, text, ha="center", va="center", color="white" if dark else "black", fontsize=7
        )
    axis.grid(visible=False)
    axis.set_xticks(range(modules), [str(k + 1) for k in range(modules)])
    axis.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
    axis.set_xlabel(label("modular prompt", "模块"))
    axis.set_ylabel(label("layer", "层"))
    axis.set_title(title)
    return figure


def _task_label(name: str) -> str:
    """A task's name, with its label words where Chinese can be drawn."""
    if not chinese_font() or name not in catalogue.names():
        return name
    words = catalogue.get(name).labels
    shown = "/".join(words[:3]) + ("/…" if len(words) > 3 else "")
    return f"{name}  {shown}".rstrip()
