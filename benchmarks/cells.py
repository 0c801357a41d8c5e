"""What is timed: each cell sets rivals up on the same rows and returns what each of them runs.

Rivals: ``mp2``; ``bare``, the frozen encoder alone over as many real tokens without padding, forward, and
backward to its input where something is trained: the limit; ``released``, see ``released.py``; PEFT's prefix
and prompt tuning, where they can do the job. ``mp2 bf16`` and ``bare bf16``, where a processor multiplies in
bf16 by itself, are the same under autocast; the other rivals know fp32 alone.

A set of ``POOL`` rows stands behind each task. What orders rows by length (mp2) runs those that lie beside
one another and are as long as all are on average; what takes them as they come runs a batch as wide as its
batches are on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from released import ReleasedBatch, ReleasedModel, answers, train_step, typical
from rival_peft import KINDS, PeftRival
from timing import Cell
from workload import SIZES, Shape, lengths_of, random_encoder, similar, tokens_of

from mp2.data.batch import length_batches
from mp2.data.encode import Encoded
from mp2.model.answers import CPU_TOKENS, answer_rows
from mp2.model.checkpoint import Base
from mp2.model.spans import row_losses
from mp2.runtime import autocast, native_bf16
from mp2.training.loop import Group, LoopConfig, Trainer
from mp2.training.multitask import MultiTaskConfig, MultiTaskRun
from mp2.tuning.gradient import Shots, micro_batches
from mp2.tuning.methods import METHODS
from mp2.tuning.objective import Objective
from mp2.tuning.state import TaskState

ROWS, TOKENS = 32, 6144
EVALUATED = 2 * ROWS  # rows of a task in the evaluation cell
POOL = 64 * ROWS
FOREVER = 1 << 40
Runs = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Bench:
    """A size, its base and how much to run.

    Attributes:
        size: Name of the size.
        base: Random base of that size.
        shapes: Tasks of a cell.
        rivals: Whether to run the released way and PEFT.
        precision: fp32 or bf16, of ``mp2`` and ``bare``.
        seed: Seed of rows.
    """

    size: str
    base: Base
    shapes: Sequence[Shape] = ()
    rivals: bool = True
    precision: str = "fp32"
    seed: int = 0
    bare: Any = field(init=False)

    def __post_init__(self) -> None:
        encoder = random_encoder(SIZES[self.size]).to(self.base.device).eval().requires_grad_(False)
        object.__setattr__(self, "bare", encoder)

    @property
    def rng(self) -> np.random.Generator:
        """The same numbers for every cell."""
        return np.random.default_rng(self.seed)

    @property
    def precisions(self) -> dict[str, str]:
        """Suffix of a way's name, and its precision."""
        also = self.base.device == "cpu" and self.precision == "fp32" and native_bf16()
        return {"": self.precision} | ({" bf16": "bf16"} if also else {})

    def released_model(self, tasks: int, *, multiplied: bool = False) -> ReleasedModel:
        """A fresh model of the released way."""
        encoder = random_encoder(SIZES[self.size], dropout=0.1)
        return ReleasedModel(encoder, tasks, multiplied=multiplied).to(self.base.device)

    def bare_pass(self, rows: int, tokens: int, *, backward: bool, precision: str = "fp32") -> None:
        """The encoder over ``rows`` rows of equal length, about ``tokens`` tokens in all."""
        length = max(1, round(tokens / rows))
        ids = torch.full((rows, length), 7, device=self.base.device)
        with torch.no_grad():
            embedded = self.bare.embeddings(input_ids=ids)
        with torch.set_grad_enabled(backward), autocast(self.base.device, precision):
            hidden = embedded.requires_grad_(backward)
            for layer in self.bare.encoder.layer:
                hidden = layer(hidden)
        if backward:
            hidden.backward(torch.ones_like(hidden))


def ours(bench: Bench, shape: Shape, count: int) -> list[Encoded]:
    """``count`` rows of a task that lie together when its rows are ordered by length."""
    rng = bench.rng
    lengths = similar(shape.draw(POOL, rng), count)
    return shape.rows(lengths, rng, SIZES[bench.size].vocabulary)


def theirs(bench: Bench, shape: Shape) -> list[Encoded]:
    """A batch of the same task as it comes."""
    rng = bench.rng
    lengths = typical(shape.draw(POOL, rng), rng)
    return shape.rows(lengths, rng, SIZES[bench.size].vocabulary)


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
    tasks = {
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
    """Step 2: tasks with their routers, forward, backward, optimiser."""
    sets = [ours(bench, shape, ROWS) for shape in bench.shapes]
    batches = [
        [[rows[i] for i in group] for group in length_batches(lengths_of(rows), tokens=TOKENS)]
        for rows in sets
    ]
    counts = [(len(batch), tokens_of(batch)) for task in batches for batch in task]
    runs: Runs = {}
    for suffix, precision in bench.precisions.items():
        config = MultiTaskConfig(tokens=TOKENS, loop=LoopConfig(FOREVER, precision=precision))
        trainer = multitask_trainer(bench.base, batches, config)
        runs |= {
            f"mp2{suffix}": lambda t=trainer: [t.one_step() for _ in counts],
            f"bare{suffix}": lambda p=precision: [
                bench.bare_pass(*count, backward=True, precision=p) for count in counts
            ],
        }
    if bench.rivals:
        model = bench.released_model(len(sets)).train()
        optimisers = model.optimisers((5e-4, 1e-4))
        rival = [theirs(bench, shape) for shape in bench.shapes]
        runs["released"] = lambda: [
            train_step(model, optimisers, ReleasedBatch(rows, bench.base.device), task)
            for task, rows in enumerate(rival)
        ]
    return Cell(runs, sum(map(len, sets)), sum(map(tokens_of, sets)))


def _shots(bench: Bench, shape: Shape) -> list[Encoded]:
    rng = bench.rng
    return shape.rows(shape.draw(ROWS, rng), rng, SIZES[bench.size].vocabulary)


def _with_options(bench: Bench) -> list[Shape]:
    """Every other task, of those with options."""
    every = [shape for shape in bench.shapes if shape.options]
    return every[1::2] or every


def stage_trainer(
    bench: Bench, state: TaskState, lr: dict[Any, float], rows: Sequence[Encoded], precision: Any = "fp32"
) -> Trainer:
    """A stage of few-shot tuning, as ``run_gradient`` runs it."""
    groups = [Group(name, state.parameters(name), rate, weight_decay=0.0) for name, rate in lr.items()]
    for group in groups:
        for parameter in group.parameters.values():
            parameter.requires_grad_(True)
    batches = micro_batches(rows, 0, bench.base.device)

    def loss(batch: Any) -> tuple[torch.Tensor, int, int]:
        logits = state.model.eval()(batch, state.prompts(), state.injection, options_only=True)
        return row_losses(logits, batch, "option")[0].sum(), batch.known, batch.ids.numel()

    config = LoopConfig(FOREVER, accumulate=len(batches), precision=precision)
    return Trainer(groups, Cycle(batches), loss, config, device=bench.base.device)


def fewshot_step(bench: Bench) -> Cell:
    """Few-shot tuning: one step of stage I and one of stage II on the 32 rows of each task."""
    sets = [_shots(bench, shape) for shape in _with_options(bench)]
    method = METHODS["mp2-deep-gd"]
    runs: Runs = {}
    for suffix, precision in bench.precisions.items():
        trainers = [
            stage_trainer(bench, TaskState(bench.base, method, 0), stage.lr, rows, precision)
            for rows in sets
            for stage in method.stages
        ]
        runs |= {
            f"mp2{suffix}": lambda every=trainers: [trainer.one_step() for trainer in every],
            f"bare{suffix}": lambda p=precision: [
                bench.bare_pass(ROWS, tokens_of(s), backward=True, precision=p)
                for s in sets
                for _ in range(2)
            ],
        }
    shares = {}
    if bench.rivals:  # one step stands for both: their stages move the same parameters
        for name, train in {"released": _released_shots, **{kind: _peft_shots for kind in KINDS}}.items():
            runs[name], shares[name] = train(bench, sets, name), 0.5
    return Cell(runs, 2 * ROWS * len(sets), 2 * sum(map(tokens_of, sets)), shares)


def _released_shots(bench: Bench, sets: Sequence[Sequence[Encoded]], _: str) -> Callable[[], object]:
    models = [bench.released_model(1, multiplied=True).eval() for _ in sets]
    pairs = [(model, model.optimisers((3e-3, 2e-5))) for model in models]
    theirs = [ReleasedBatch(rows, bench.base.device) for rows in sets]
    return lambda: [
        train_step(model, optimisers, batch) for (model, optimisers), batch in zip(pairs, theirs, strict=True)
    ]


def _peft_shots(bench: Bench, sets: Sequence[Sequence[Encoded]], kind: str) -> Callable[[], object]:
    rivals = [PeftRival(random_encoder(SIZES[bench.size]), kind, bench.base.device) for _ in sets]
    return lambda: [rival.train_step(rows) for rival, rows in zip(rivals, sets, strict=True)]


def answer(
    bench: Bench, rows: Sequence[Encoded], prompts: torch.Tensor, which: Any = 0, precision: str = "fp32"
) -> object:
    """Answers of rows, with texts read out."""
    options = [[str(i) for i in range(row.n_options)] for row in rows]
    contexts = ["字" * 600] * len(rows)
    with autocast(bench.base.device, precision):
        return answer_rows(bench.base.model(), rows, contexts, options, prompts, which)


@torch.no_grad()
def evaluation(bench: Bench) -> Cell:
    """Answers of many rows, task by task."""
    sets = [ours(bench, shape, EVALUATED) for shape in bench.shapes]
    run = MultiTaskRun(bench.base, {"0": SimpleNamespace(split=lambda name: Split())}, MultiTaskConfig())
    prompts = run.prompts([0])
    assert prompts is not None
    counts = [
        (len(group), sum(len(rows[i].windows[0].ids) for i in group))
        for rows in sets
        for group in length_batches(lengths_of(rows), tokens=CPU_TOKENS)
    ]
    runs: Runs = {}
    for suffix, precision in bench.precisions.items():
        runs |= {
            f"mp2{suffix}": lambda p=precision: [answer(bench, rows, prompts, 0, p) for rows in sets],
            f"bare{suffix}": lambda p=precision: [
                bench.bare_pass(*count, backward=False, precision=p) for count in counts
            ],
        }
    if bench.rivals:
        model = bench.released_model(len(sets)).eval()
        rows_of_each = [theirs(bench, shape) for shape in bench.shapes]
        runs["released"] = lambda: [
            answers(model, ReleasedBatch(rows, bench.base.device), task)
            for task, rows in enumerate(rows_of_each)
        ]
        for kind in KINDS:  # it knows one prompt, so every task is asked of the same
            rival = PeftRival(random_encoder(SIZES[bench.size]), kind, bench.base.device)
            runs[kind] = lambda rival=rival: [rival.answers(rows) for rows in rows_of_each]
    shares = {name: ROWS / EVALUATED for name in runs if name.split()[0] not in ("mp2", "bare")}
    return Cell(runs, sum(map(len, sets)), sum(map(tokens_of, sets)), shares)


@torch.no_grad()
def mixed_tasks(bench: Bench, count: int = 256) -> Cell:
    """``count`` rows of as many tasks in one call, against the same rows of one task."""
    shape = _with_options(bench)[-1]
    rng = bench.rng
    rows = shape.rows(shape.draw(count, rng), rng, SIZES[bench.size].vocabulary)
    hidden = bench.base.backbone.hidden_size
    prompts = torch.randn(count, bench.base.backbone.depth, 16, hidden, device=bench.base.device)
    states = bench.base.backbone.prefix_states(prompts)  # served tasks are composed and projected once
    runs: Runs = {
        "mp2": lambda: answer(bench, rows, states, list(range(count))),
        "single": lambda: answer(bench, rows, states[:1]),
    }
    return Cell(runs, count, tokens_of(rows))


def blackbox(bench: Bench, candidates: int = 20) -> Cell:
    """Losses of a population of routers on 32 rows."""
    rows = _shots(bench, _with_options(bench)[0])
    state = TaskState(bench.base, METHODS["mp2-deep-bb"], 0)
    objective = Objective(state, Shots([], rows), SimpleNamespace(name="invented", metric="accuracy"))
    assert state.bank is not None
    c = state.bank.config
    found = np.random.default_rng(1).normal(size=(candidates, c.layers * c.modules))
    part = max(1, candidates // 10)
    runs: Runs = {
        "mp2": lambda: objective(found),
        "bare": lambda: [bench.bare_pass(ROWS, tokens_of(rows), backward=False) for _ in range(part)],
    }
    if bench.rivals:
        model = bench.released_model(1).eval()
        batch = ReleasedBatch(rows, bench.base.device)
        runs["released"] = lambda: [answers(model, batch) for _ in range(part)]
    shares = dict.fromkeys(("bare", "released"), part / candidates)
    return Cell(runs, candidates * len(rows), candidates * tokens_of(rows), shares)


CELLS: dict[str, Callable[[Bench], Cell]] = {
    "pretrain_step": pretrain_step,
    "fewshot_step": fewshot_step,
    "evaluation": evaluation,
    "blackbox": blackbox,
    "mixed_tasks": mixed_tasks,
}
