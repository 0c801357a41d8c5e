"""``mp2 demo``: four small tasks, each learned from 32 rows written for this project."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mp2.cli.options import Seed

if TYPE_CHECKING:
    from mp2.model.checkpoint import Base
    from mp2.serving.predictor import Predictor
    from mp2.tasks.render import MRCExample
    from mp2.tasks.spec import TaskSpec
    from mp2.tuning.methods import Method

TASKS = {
    "gym-reviews": "reviews of gyms and classes: good or bad",
    "support-tickets": "what a customer writes about: 物流, 退款, 账号, 故障",
    "question-pairs": "do two questions ask the same",
    "find-target": "the product, shop or place a sentence is about",
}
# a minute is short: half of the steps of `mp2 tune`, after which nine runs of ten had seen their best moment
SHORTER = {"2.steps": "20"}
BARS = "▁▂▃▄▅▆▇█"


def demo(
    model: Annotated[str | None, typer.Option(help="Base folder; the shipped model by default.")] = None,
    method: Annotated[str | None, typer.Option(help="Method; see 'mp2 methods'.")] = None,
    seed: Seed = 42,
) -> None:
    """Adapt the shipped model to four tasks of four kinds from 32 rows each, in about a minute."""
    from rich.console import Console
    from rich.table import Table

    from mp2.evaluation.settings import with_settings
    from mp2.model.checkpoint import load_base
    from mp2.serving.predictor import Predictor
    from mp2.tuning.default import default_method
    from mp2.tuning.methods import get_method
    from mp2.tuning.tune import check_family

    begin = time.monotonic()
    base = load_base(model)
    predictor = Predictor(base)
    sets = {name: _rows(name) for name in TASKS}
    methods: dict[str, Method] = {}
    for name, (task, _) in sets.items():
        if method:
            methods[name] = get_method(method)
        else:
            (methods[name],) = with_settings([default_method(base, task)], SHORTER)
        check_family(methods[name], task)  # not after the first tasks are tuned
    weights = sum(parameter.numel() for parameter in base.backbone.parameters())
    print(f"base {base.name}: a frozen encoder of {weights / 1e6:.1f} million weights and its prompts")
    half = "" if method else "; half of the steps of mp2 tune"
    print(f"per task 32 rows to learn from, 32 to choose the best moment, 100 to test{half}\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "task",
        "metric",
        "dev before",
        "dev after",
        "test",
        "seconds",
        "tuned",
        "adapter",
    ):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for name, about in TASKS.items():
        print(f"{name}: {about}\n  {methods[name].name}: {methods[name].about}", flush=True)
        table.add_row(name, *_one(*sets[name], base, predictor, methods[name], seed))
    print()
    Console(width=100).print(table)
    print(f"\n{time.monotonic() - begin:.0f} s in all. Every row of the four sets was written for this demo.")
    if sys.stdin.isatty():
        _ask(predictor)


def _one(
    task: TaskSpec, train: list[MRCExample], base: Base, predictor: Predictor, method: Method, seed: int
) -> tuple[str, ...]:
    """Tune one task, show its curve and two answers, and return its cells of the table."""
    from mp2.tasks.metrics import score
    from mp2.tuning.rows import plain_rows
    from mp2.tuning.tune import tune

    name = task.name
    dev, test = (_rows(name, part, task)[1] for part in ("dev", "test"))
    curve: list[dict[str, float]] = []

    def show(record: dict[str, float]) -> None:
        curve.append(record)
        if sys.stderr.isatty():
            print(f"\r  dev {_bars(curve)} {record['dev']:.2f}", end="", file=sys.stderr, flush=True)

    adapter = tune(base, task, train, dev, method, seed=seed, progress=show)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    print(f"  dev {_bars(curve)} kept {adapter.facts['dev']:.2f}")
    predictor.add(name, adapter)
    found = predictor.predict([(name, row) for _, row in plain_rows(_file(name, "test"), task)])
    for prediction, example in list(zip(found, test, strict=True))[:2]:
        text = " / ".join(segment.text for segment in example.segments if segment.role != "literal")
        right = "right" if prediction.answer.text in example.gold_texts else f"not {example.gold_texts[0]}"
        print(f"  {text[:40]} -> {prediction.answer.text or '(none)'} ({right})")
    metric = str(task.metric)
    tested = score(metric, [p.answer.text for p in found], [example.gold_texts for example in test])
    facts = adapter.facts
    size = sum(tensor.nbytes for tensor in adapter.tensors.values())
    numbers = [f"{value:.2f}" for value in (curve[0]["dev"], facts["dev"], tested)]
    cells = (f"{facts['seconds']:.1f}", f"{facts['tuned_parameters']:,}", f"{size / 1024:.1f} KiB")
    return (metric, *numbers, *cells)


def _file(name: str, part: str) -> Path:
    from mp2.model.checkpoint import ASSETS

    return ASSETS / "demo" / name / f"{part}.csv"


def _rows(name: str, part: str = "train", task: TaskSpec | None = None) -> tuple[TaskSpec, list[MRCExample]]:
    """The rows of a part of a set, and its task, by the name of the set."""
    from mp2.tuning.rows import labelled_rows

    found, rows = labelled_rows(_file(name, part), task)
    return found.model_copy(update={"name": name}), rows


def _bars(curve: list[dict[str, float]]) -> str:
    """Dev scores as a row of bars; a line between the stages."""
    text = ""
    for before, record in zip([None, *curve], curve, strict=False):
        text += "|" if before is not None and before["stage"] != record["stage"] else ""
        text += BARS[min(len(BARS) - 1, int(record["dev"] * len(BARS)))]
    return text


def _ask(predictor: Predictor) -> None:
    """Answer texts typed by the user, until an empty line."""
    name = "support-tickets"
    print(f"\nType a message to a shop's support (task {name}), or just press Enter to leave.")
    while text := input("> ").strip():
        (prediction,) = predictor.predict([(name, text)])
        scores = "  ".join(f"{key} {value:.2f}" for key, value in prediction.as_dict()["scores"].items())
        print(f"  {prediction.answer.text}   ({scores})")
