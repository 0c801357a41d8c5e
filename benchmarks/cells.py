"""What is timed: each cell sets rivals up on the same rows and returns what each of them runs.

Rivals: ``mp2``; ``bare``, the frozen encoder alone over as many real tokens without padding, forward, and
backward to its input where something is trained: the limit; ``released``, see ``released.py``; PEFT's prefix
and prompt tuning, where they can do the job. ``... bf16``, where a processor multiplies in bf16 by itself, is
the same under autocast; the released way knows fp32 alone, of which a card makes ``released tf32`` too.

The bare encoder runs batches of as many rows as mp2's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from bench import Bench, Precision, Run, Runs, bare, drawn, in_turn, ours, released_ways, theirs
from released import ROWS as RELEASED
from released import ReleasedBatch, answers, train_step
from rival_peft import KINDS, PeftRival
from timing import Cell
from workload import SIZES, Shape, flops_of, lengths_of, random_encoder, tokens_of

from mp2.data.batch import length_batches, start_cost
from mp2.data.encode import Encoded
from mp2.model.answers import CPU_TOKENS, EVAL_TOKENS, answer_rows
from mp2.model.checkpoint import Base
from mp2.model.spans import Loss, row_losses
from mp2.runtime import autocast
from mp2.training.loop import Group, LoopConfig, Trainer
from mp2.training.multitask import MultiTaskConfig, MultiTaskRun
from mp2.tuning.course import Shots, micro_batches
from mp2.tuning.methods import METHODS
from mp2.tuning.objective import Objective
from mp2.tuning.stages import Gradient
from mp2.tuning.state import TaskState

FOREVER = 1 << 40


class Split(list[Encoded]):
    """Rows in memory, in the form of a prepared split."""

    def take(self, indices: Sequence[int]) -> list[Encoded]:
        """Rows at indices."""
        return [self[i] for i in indices]


class Cycle:
    """The same batches again and again, as a source of the loop."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items, self.at = items, -1

    def __next__(self) -> Any:
        self.at = (self.at + 1) % len(self.items)
        return self.items[self.at]

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing is kept."""


def multitask_trainer(
    base: Base, batches: Sequence[Sequence[Sequence[Encoded]]], config: MultiTaskConfig
) -> Trainer:
    """Step 2 on given batches of each task, task by task, round and round."""
    rows = [[row for batch in task for row in batch] for task in batches]
    tasks: dict[str, Any] = {
        str(i): SimpleNamespace(split=lambda name, r=r: Split(r if name == "train" else ()))
        for i, r in enumerate(rows)
    }
    run = MultiTaskRun(base, tasks, config)
    items = []
    for task, its in enumerate(batches):
        ends = np.cumsum([len(batch) for batch in its]).tolist()
        items += [(task, range(end - len(batch), end)) for end, batch in zip(ends, its, strict=True)]
    return Trainer(run.groups(), Cycle(items), run.loss, config.loop, device=base.device)


def pretrain_step(bench: Bench) -> Cell:
    """Step 2: tasks with their routers, forward, backward, optimiser.

    ``mp2`` takes the loss of the shipped banks, which compares options alone; ``mp2 span`` the released way's
    (and the default), which asks all tokens.
    """
    sets = [ours(bench, shape, bench.rows) for shape in bench.shapes]
    batches = [
        [[rows[i] for i in group] for group in length_batches(lengths_of(rows), tokens=bench.tokens)]
        for rows in sets
    ]
    counts = [(len(batch), tokens_of(batch)) for task in batches for batch in task]

    def steps(loss: Loss, precision: Precision) -> Run:
        loop = LoopConfig(FOREVER, precision=precision)
        config = MultiTaskConfig(tokens=bench.tokens, loss=loss, loop=loop)
        return in_turn([multitask_trainer(bench.base, batches, config).one_step] * len(counts))

    runs: Runs = {}
    for suffix, precision in bench.precisions.items():
        runs |= {f"mp2{suffix}": steps("option", precision), f"bare{suffix}": bare(bench, counts, precision)}
    for suffix, precision in bench.precisions.items():
        runs[f"mp2 span{suffix}"] = steps("span", precision)
    shares = {}
    if bench.rivals:
        model = bench.released_model(len(sets)).train()
        optimisers = model.optimisers((5e-4, 1e-4))

        def released(rows: Sequence[Encoded], task: int) -> None:
            train_step(model, optimisers, ReleasedBatch(rows, bench.base.device), task)

        rival = [partial(released, theirs(bench, shape), task) for task, shape in enumerate(bench.shapes)]
        ways = released_ways(bench, in_turn(rival))
        runs, shares = runs | ways, dict.fromkeys(ways, RELEASED / bench.rows)
    return _cell(bench, runs, sets, shares, backward=True)


def _cell(
    bench: Bench,
    runs: Runs,
    sets: Sequence[Sequence[Encoded]],
    shares: Mapping[str, float],
    *,
    backward: bool,
    times: int = 1,
) -> Cell:
    """A cell that runs each of these rows ``times`` times."""
    flops = sum(flops_of(SIZES[bench.size], rows, backward=backward) for rows in sets)
    samples, tokens = sum(map(len, sets)), sum(map(tokens_of, sets))
    return Cell(runs, times * samples, times * tokens, shares, times * flops)


def _with_options(bench: Bench) -> list[Shape]:
    """Every other task, of those with options."""
    every = [shape for shape in bench.shapes if shape.options]
    return every[1::2] or every


def stage_trainer(
    bench: Bench,
    state: TaskState,
    lr: Mapping[Any, float],
    rows: Sequence[Encoded],
    precision: Precision = "fp32",
) -> Trainer:
    """A stage of few-shot tuning, as ``run_gradient`` runs it."""
    groups = [Group(name, state.parameters(name), rate, weight_decay=0.0) for name, rate in lr.items()]
    for group in groups:
        for parameter in group.parameters.values():
            parameter.requires_grad_(True)
    batches = micro_batches(state, rows)

    def loss(batch: Any) -> tuple[torch.Tensor, int, int]:
        logits = state.model.eval()(batch, state.prompts(), state.injection, options_only=True)
        return row_losses(logits, batch, "option")[0].sum(), batch.known, batch.ids.numel()

    config = LoopConfig(FOREVER, accumulate=len(batches), precision=precision)
    return Trainer(groups, Cycle(batches), loss, config, device=bench.base.device)


def fewshot_step(bench: Bench) -> Cell:
    """Few-shot tuning: one step of stage I and one of stage II on the 32 rows of each task."""
    sets = [drawn(bench, shape) for shape in _with_options(bench)]
    method = METHODS["mp2-deep-gd"]
    stages = [stage for stage in method.stages if isinstance(stage, Gradient)]
    untuned = TaskState(bench.base, method, 0)
    batches = [batch for rows in sets for batch in micro_batches(untuned, rows)]
    counts = [(len(batch.ids), int(batch.mask.sum())) for batch in batches]
    runs: Runs = {}
    for suffix, precision in bench.precisions.items():
        steps = [
            stage_trainer(bench, TaskState(bench.base, method, 0), stage.lr, rows, precision).one_step
            for rows in sets
            for stage in stages
        ]
        runs |= {f"mp2{suffix}": in_turn(steps), f"bare{suffix}": bare(bench, 2 * counts, precision)}
    rivals: Runs = {}
    if bench.rivals:
        rivals = released_ways(bench, _released_shots(bench, sets))
        for kind in KINDS:
            rivals |= _peft_shots(bench, sets, kind)
    # one step stands for both: their stages move the same parameters
    return _cell(bench, runs | rivals, sets, dict.fromkeys(rivals, 0.5), backward=True, times=2)


def _released_shots(bench: Bench, sets: Sequence[Sequence[Encoded]]) -> Run:
    steps = []
    for rows in sets:
        model = bench.released_model(1, multiplied=True).eval()
        batch = ReleasedBatch(rows, bench.base.device)
        steps.append(partial(train_step, model, model.optimisers((3e-3, 2e-5)), batch))
    return in_turn(steps)


def _peft_shots(bench: Bench, sets: Sequence[Sequence[Encoded]], kind: str) -> Runs:
    rivals = [PeftRival(random_encoder(SIZES[bench.size]), kind, bench.base.device) for _ in sets]
    return {
        f"{kind}{suffix}": in_turn(
            [partial(rival.train_step, rows, precision) for rival, rows in zip(rivals, sets, strict=True)]
        )
        for suffix, precision in bench.precisions.items()
    }


def answer(
    bench: Bench,
    rows: Sequence[Encoded],
    prompts: torch.Tensor,
    which: Sequence[int] | int = 0,
    precision: Precision = "fp32",
) -> object:
    """Answers of rows, with texts read out."""
    options = [[str(i) for i in range(row.n_options)] for row in rows]
    contexts = ["字" * 600] * len(rows)
    with autocast(bench.base.device, precision):
        return answer_rows(bench.base.model(), rows, contexts, options, prompts, which)


@torch.no_grad()
def evaluation(bench: Bench) -> Cell:
    """Answers of many rows, task by task."""
    evaluated = 2 * bench.rows
    sets = [ours(bench, shape, evaluated) for shape in bench.shapes]
    task: Any = SimpleNamespace(split=lambda name: Split())
    prompts = MultiTaskRun(bench.base, {"0": task}, MultiTaskConfig()).prompts([0])
    assert prompts is not None
    budget, start = EVAL_TOKENS if bench.on_card else CPU_TOKENS, start_cost(bench.base.device)
    counts = [
        (len(group), sum(len(rows[i].windows[0].ids) for i in group))
        for rows in sets
        for group in length_batches(lengths_of(rows), tokens=budget, start=start)
    ]
    runs: Runs = {}
    for suffix, precision in bench.precisions.items():
        asked = [partial(answer, bench, rows, prompts, 0, precision) for rows in sets]
        runs |= {
            f"mp2{suffix}": in_turn(asked),
            f"bare{suffix}": bare(bench, counts, precision, backward=False),
        }
    shares = {}
    if bench.rivals:
        model = bench.released_model(len(sets)).eval()

        def released(rows: Sequence[Encoded], task: int) -> None:
            answers(model, ReleasedBatch(rows, bench.base.device), task)

        rival = [partial(released, theirs(bench, shape), task) for task, shape in enumerate(bench.shapes)]
        ways = released_ways(bench, in_turn(rival))
        runs, shares = runs | ways, dict.fromkeys(ways, RELEASED / evaluated)
        rows_of_each = [theirs(bench, shape, bench.rows) for shape in bench.shapes]
        for kind in KINDS:  # it knows one prompt, so every task is asked of the same
            peft = PeftRival(random_encoder(SIZES[bench.size]), kind, bench.base.device)
            for suffix, precision in bench.precisions.items():
                runs[kind + suffix] = in_turn(
                    [partial(peft.answers, rows, precision) for rows in rows_of_each]
                )
                shares[kind + suffix] = bench.rows / evaluated
    return _cell(bench, runs, sets, shares, backward=False)


@torch.no_grad()
def mixed_tasks(bench: Bench, count: int = 256) -> Cell:
    """``count`` rows of as many tasks in one call, against the same rows of one task."""
    rows = drawn(bench, _with_options(bench)[-1], count)
    hidden = bench.base.backbone.hidden_size
    prompts = torch.randn(count, bench.base.backbone.depth, 16, hidden, device=bench.base.device)
    states = bench.base.backbone.prefix_states(prompts)  # served tasks are composed and projected once
    runs: Runs = {}
    for suffix, precision in bench.precisions.items():
        runs |= {
            f"mp2{suffix}": partial(answer, bench, rows, states, range(count), precision),
            f"single{suffix}": partial(answer, bench, rows, states[:1], 0, precision),
        }
    return _cell(bench, runs, [rows], {}, backward=False)


def blackbox(bench: Bench, candidates: int = 20) -> Cell:
    """Losses of a population of routers on 32 rows."""
    rows = drawn(bench, _with_options(bench)[0])
    state = TaskState(bench.base, METHODS["mp2-deep-bb"], 0)
    task: Any = SimpleNamespace(name="invented", metric="accuracy")
    # a search on a processor shares its pieces out to threads, where autocast does not reach
    precision: Precision = bench.precision if bench.on_card else "fp32"
    with autocast(bench.base.device, precision):
        objective = Objective(state, Shots([], rows), task)
    assert state.bank is not None
    c = state.bank.config
    found = np.random.default_rng(1).normal(size=(candidates, c.layers * c.modules))
    part = max(1, candidates // 10)

    def losses() -> None:
        with autocast(bench.base.device, precision):
            objective(found)

    counts = [(len(rows), tokens_of(rows))] * part
    runs: Runs = {"mp2": losses, "bare": bare(bench, counts, precision, backward=False)}
    if bench.rivals:
        model = bench.released_model(1).eval()
        batch = ReleasedBatch(rows, bench.base.device)
        runs |= released_ways(bench, in_turn([partial(answers, model, batch)] * part))
    shares = {name: part / candidates for name in runs if name != "mp2"}
    # no FLOPs: what no candidate changes is not computed again, so a share of the rate would say little
    return Cell(runs, candidates * len(rows), candidates * tokens_of(rows), shares)


CELLS = {
    "pretrain_step": pretrain_step,
    "fewshot_step": fewshot_step,
    "evaluation": evaluation,
    "blackbox": blackbox,
    "mixed_tasks": mixed_tasks,
}
