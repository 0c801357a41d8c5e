"""The paper's Figures 3, 4a, 4b and 5, and curves of what the paper left open, from results.

Decides what each figure shows and when there is enough to show it. How it looks is said in ``drawing``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster import hierarchy

from mp2.evaluation.drawing import COLOURS, chinese_font, label, line_style, new_figure, style
from mp2.evaluation.records import Record
from mp2.evaluation.results import Results
from mp2.evaluation.statistics import summarise, summarise_tasks
from mp2.evaluation.tables import SUITE_TITLES, method_order, suite_tasks, task_title
from mp2.model.checkpoint import TrainedBank
from mp2.tasks import catalogue

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
            **{f"figure5-{bank.name}": figure_5(bank) for bank in banks if len(bank.tasks) > 2},
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
            if cell is not None:
                _draw_stages(axis, cell.records)
            axis.set_title(f"{method} · {task_title(task)}")
            axis.set_xlabel(label("calls" if method.endswith("-bb") else "steps"))
        row[0].set_ylabel(label("dev score (%)", "开发集"))
    return figure


def _draw_stages(axis: Axes, records: Sequence[Record]) -> None:
    curves = [_curve(record) for record in records]
    grid = np.unique(np.concatenate([xs for xs, _, _ in curves]))
    # a curve keeps its last value until the next one was measured
    lines = np.stack([ys[np.searchsorted(xs, grid, side="right") - 1] for xs, ys, _ in curves])
    mean = 100 * lines.mean(axis=0)
    spread = 100 * lines.std(axis=0, ddof=1) if len(lines) > 1 else np.zeros_like(mean)
    axis.fill_between(grid, mean - spread, mean + spread, color=COLOURS[0], alpha=0.15, linewidth=0)
    axis.plot(grid, mean, color=COLOURS[0], linewidth=1.5, marker="o", markersize=3)
    for place in curves[0][2]:
        axis.axvline(place, color=COLOURS[2], linestyle="--", linewidth=1.2)


def _curve(record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64], list[float]]:
    """Steps or calls from the very start, dev scores, and where each later stage begins."""
    xs, ys, borders = [], [], []
    offset = last = 0.0
    stage = min((point["stage"] for point in record.curve), default=-1)
    for point in record.curve:
        if point["stage"] != stage:
            offset, stage = last, point["stage"]
            if point["stage"] > 0:
                borders.append(offset)
        last = offset + point["step"]
        xs.append(last)
        ys.append(point["dev"])
    return np.array(xs), np.array(ys), borders


def figure_4a(results: Results) -> Figure | None:
    """Accuracy against the number of labels on IFLYTEK's subsets, and on to all 119."""
    lines = {
        m: _points([(float(n), m, t, None) for t, n in IFLYTEK.items()], results) for m in results.methods()
    }
    lines = {method: points for method, points in lines.items() if len(points) > 1}
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
        lines = {
            m: _points([(float(s), m, task, s) for s in results.shots(m, task)], results)
            for m in results.methods()
        }
        lines = {method: points for method, points in lines.items() if len(points) > 1}
        _draw_lines(axis, lines, sorted({x for points in lines.values() for x, *_ in points}))
        axis.set_xlabel(label("training rows per label", "每类样本数"))
        axis.set_ylabel(label("score (%)", "得分"))
        axis.set_title(task_title(task))
    return figure


def _points(wanted: Sequence[tuple[float, str, str, int | None]], results: Results) -> Points:
    points = []
    for x, method, task, shots in wanted:
        cell = results.cell(method, task, shots=shots)
        if cell is not None:
            s = summarise(cell.scores)
            points.append((x, 100 * s.mean, 100 * s.low, 100 * s.high))
    return points


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
    places = {x: float(i) if names else float(np.log2(x)) for i, x in enumerate(ticks)}
    width = (max(places.values()) - min(places.values())) or 1.0
    for index, (name, points) in enumerate(lines.items()):
        shift = APART * width * (index - (len(lines) - 1) / 2)
        xs = [places[x] + shift for x, *_ in points]
        means = [mean for _, mean, _, _ in points]
        errors = [[mean - low for _, mean, low, _ in points], [high - mean for _, mean, _, high in points]]
        axis.errorbar(xs, means, yerr=errors, capsize=2, label=name, **line_style(index))
    axis.set_xticks([places[x] for x in ticks], list(names or [f"{x:.0f}" for x in ticks]))
    axis.legend()


def average_figure(results: Results, suite: str) -> Figure | None:
    """Average over a suite with its interval, one method per line."""
    tasks = suite_tasks(results, suite)
    rows = []
    for method in method_order(results, suite) if tasks else []:
        cells = [cell for task in tasks if (cell := results.cell(method, task))]
        if len(cells) == len(tasks):
            rows.append((method, summarise_tasks([cell.scores for cell in cells])))
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: row[1].mean)
    figure = new_figure(5.6, 0.9 + 0.24 * len(rows))
    axis = figure.subplots()
    for place, (_, s) in enumerate(rows):
        axis.plot([100 * s.low, 100 * s.high], [place, place], color=COLOURS[0], linewidth=2)
        axis.plot([100 * s.mean], [place], color=COLOURS[0], marker="o", markersize=5)
    axis.set_yticks(range(len(rows)), [method for method, _ in rows])
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
    for method in methods:
        having = [v for v in sorted(numbers, key=lambda v: numbers[v]) if method in results.methods(v)]
        tasks = [
            t for t in results.tasks(having[0]) if all(results.cell(method, t, variant=v) for v in having)
        ]
        points: Points = []
        for variant in having if tasks else []:
            cells = [results.cell(method, task, variant=variant) for task in tasks]
            s = summarise_tasks([cell.scores for cell in cells if cell])
            points.append((float(numbers[variant]), 100 * s.mean, 100 * s.low, 100 * s.high))
        lines[f"{method}, {len(tasks)} tasks"] = points
    figure = new_figure(4.8, 3.2)
    axis = figure.subplots()
    _draw_lines(axis, {name: points for name, points in lines.items() if points}, sorted(numbers.values()))
    axis.set_xlabel(label(*ABLATIONS[kind]))
    axis.set_ylabel(label("average score (%)", "平均分"))
    return figure


def figure_5(bank: TrainedBank) -> Figure:
    """Routers of the upstream tasks, clustered: heat-map of the gates and dendrogram."""
    gates = bank.router.sigmoid().cpu().numpy()
    tasks, layers, modules = gates.shape
    flat = gates.reshape(tasks, layers * modules)
    tree = hierarchy.linkage(flat, method="average", metric="euclidean")
    heat = 1.6 + 0.1 * min(layers * modules, 50)
    figure = new_figure(1.4 + heat + 2.6, 1.2 + 0.2 * tasks)
    left, right = figure.subplots(1, 2, width_ratios=[1.4, heat])
    with_colours = hierarchy.dendrogram(
        tree, orientation="left", ax=left, no_labels=True, color_threshold=0.7 * tree[:, 2].max()
    )
    order = with_colours["leaves"]
    left.set_axis_off()
    # the dendrogram's first leaf is at the bottom
    right.imshow(flat[order], origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
    right.yaxis.tick_right()
    right.set_yticks(range(tasks), [_task_label(bank.tasks[i]) for i in order])
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
    return figure


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
