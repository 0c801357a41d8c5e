"""Runs a method on a task: rows in, adapter out."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mp2.errors import ConfigError, SearchError
from mp2.model.answer_length import answer_length
from mp2.model.bank import slots_of
from mp2.model.checkpoint import Base
from mp2.runtime import Precision, autocast, seed_everything, version_facts
from mp2.tasks.render import MRCExample
from mp2.tasks.spec import TaskSpec
from mp2.tuning.adapter import Adapter
from mp2.tuning.blackbox import check_stages, run_blackbox
from mp2.tuning.course import Course, Record, Shots, micro_batches, offsets_of
from mp2.tuning.gradient import run_gradient
from mp2.tuning.methods import Method
from mp2.tuning.probing import run_contrastive, run_probe
from mp2.tuning.random_projection import draw_projection
from mp2.tuning.search_run import SearchRun
from mp2.tuning.search_state import SearchFolder
from mp2.tuning.stages import Bayes, Cma, Contrastive, Gradient, GroupName, Probe
from mp2.tuning.state import TaskState


def encode_shots(base: Base, examples: Sequence[MRCExample], reserve: int = 0) -> Shots:
    """Encode rendered rows for a base."""
    return Shots(list(examples), base.encoder(reserve)(examples))


def check_family(method: Method, task: TaskSpec) -> None:
    """Refuse a classifier over labels for a task that has none.

    Raises:
        ConfigError: It has none.
    """
    if method.needs_labels and not task.labels:
        raise ConfigError(
            f"method {method.name}: task {task.name} ({task.family}) has no fixed labels; it is for tasks of"
            " family 'classification' or 'pair'"
        )


def not_calibrated(method: Method, task: TaskSpec) -> str | None:
    """Why labels cannot be calibrated: there are none, or a classifier begins anew; None where they can."""
    if not task.labels:
        return f"task {task.name} ({task.family}) has no fixed labels to calibrate; leave that out"
    if method.needs_labels:
        return f"method {method.name}: its classifier prefers no label: nothing is to be calibrated"
    return None


def check_calibrate(method: Method, task: TaskSpec) -> None:
    """Refuse to calibrate labels where they cannot be.

    Raises:
        ConfigError: It is so; see :func:`not_calibrated`.
    """
    if reason := not_calibrated(method, task):
        raise ConfigError(reason)


def tune(
    base: Base,
    task: TaskSpec,
    train: Sequence[MRCExample],
    dev: Sequence[MRCExample] | None,
    method: Method,
    *,
    seed: int = 42,
    precision: Precision = "fp32",
    calibrate: bool = False,
    progress: Record | None = None,
    folder: Path | str | None = None,
    between: Callable[[int, Adapter], None] | None = None,
) -> Adapter:
    """Adapt a base to a task with a method.

    Args:
        base: The frozen encoder and its banks.
        task: The task.
        train: Labelled rows that are learned from.
        dev: Labelled rows that decide which moment is kept; disjoint from ``train``. None: the last moment is
            kept, unscored, of a method that is tuned by gradients alone (:mod:`mp2.tuning.refit`).
        method: The row of the methods table.
        seed: Seed of everything random.
        precision: ``fp32``, or ``bf16`` products, quicker where the processor or card knows them.
        calibrate: Add to each label's score what it lacks on the train rows before anything is tuned
            (:mod:`mp2.model.label_offsets`).
        progress: Receives one record per dev score.
        folder: Where a black-box search keeps its state and one line per call; the same arguments with the
            same folder continue it.
        between: Receives the number of each stage but the last, and the adapter of a method that stops there.

    Returns:
        The adapter at its best moment on the dev rows; also after Ctrl-C in a black-box search.

    Raises:
        ConfigError: No rows, a row without its answer, or settings that cannot work.
        TaskError: Labels that the tokenizer cannot tell apart.
        SearchError: A black-box search cannot go on; ``best`` is the adapter at its best moment.
    """
    if dev is None and not method.by_gradients:
        raise ConfigError(f"method {method.name}: it chooses by dev rows, and there are none")
    for name, rows in (("train", train), ("dev", dev)):
        if rows is None:
            continue
        if not rows:
            raise ConfigError(f"task {task.name}: the {name} set is empty")
        if unknown := [place for place, row in enumerate(rows, 1) if not row.labelled]:
            raise ConfigError(
                f"task {task.name}: row {unknown[0]} of the {name} set has no answer ({len(unknown)} of"
                f" {len(rows)} rows have none), and there is nothing to learn from it"
            )
    check_family(method, task)
    if calibrate:
        check_calibrate(method, task)
    base.encoder().check_labels(task.labels)
    begin = time.monotonic()
    seed_everything(seed)
    state = TaskState(base, method, seed, classes=len(task.labels))
    reserve = slots_of(state.injection, state.bank.config.length) if state.bank else 0
    shots, dev_shots = encode_shots(base, train, reserve), encode_shots(base, dev or (), reserve)
    state.answer_length = answer_length(shots.rows)
    with autocast(base.device, precision):
        if method.start == "projection":
            _draw_projection(state, shots, seed)
        if calibrate:
            state.label_offsets = offsets_of(state, shots)
        course = Course(state, task, shots, dev_shots, seed, progress)
        course.score(-1, 0, 0.0)
        with _search_run(course, folder, precision) as run:
            made = partial(_adapter, course, begin, run, precision)

            def ended(index: int) -> None:
                if between is not None and index + 1 < len(method.stages):
                    state.method = replace(method, stages=method.stages[: index + 1])
                    between(index, made())
                    state.method = method

            try:
                _run_stages(course, run, ended)
            except SearchError as error:
                state.restore(course.best.snapshot)
                raise SearchError(str(error), made()) from error
            return made()


def _run_stages(course: Course, run: SearchRun | None, ended: Callable[[int], None]) -> None:
    """All stages in turn; each starts from the best moment so far, and the state ends there."""
    for index, stage in enumerate(course.state.method.stages):
        if isinstance(stage, Gradient):
            run_gradient(course, stage, index)
        elif isinstance(stage, Probe):
            run_probe(course, stage, index)
        elif isinstance(stage, Contrastive):
            run_contrastive(course, stage, index)
        else:
            assert run is not None
            if not run_blackbox(run, stage, index):
                continue
        course.state.restore(course.best.snapshot)
        if run is not None and run.interrupted:
            return
        ended(index)


@contextlib.contextmanager
def _search_run(
    course: Course, folder: Path | str | None, precision: Precision
) -> Iterator[SearchRun | None]:
    """What black-box stages share, continued from a folder where there is one; None without such stages."""
    state, method, base = course.state, course.state.method, course.state.base
    searches = any(isinstance(stage, Bayes | Cma) for stage in method.stages)
    if folder is not None and not searches:
        raise ConfigError(f"method {method.name}: has no black-box stage that {folder} could continue")
    check_stages(state)
    if folder is None:
        yield SearchRun(course) if searches else None
        return
    rows = repr((course.task, course.train.examples, course.dev.examples)).encode()
    identity = {
        "method": f"{method.name}.v{method.version}",
        "stages": [repr(stage) for stage in method.stages],
        "seed": course.seed,
        "base": base.fingerprint,
        "bank": state.source.fingerprint if state.source else None,
        "rows": hashlib.sha256(rows).hexdigest()[:16],
    }
    if precision != "fp32":
        identity["precision"] = precision
    if state.label_offsets:
        identity["calibrated"] = "yes"
    store = SearchFolder(folder, identity)
    with store.held():
        yield SearchRun(course, store)


def _draw_projection(state: TaskState, shots: Shots, seed: int) -> None:
    """BBT: the projection gets the scale of the hidden states of the train rows, and z begins at 0."""
    assert state.bank is not None
    batches = micro_batches(state, shots.rows)
    draw_projection(state.bank, state.base.backbone, batches, seed=seed)
    state.fuse()


def _adapter(course: Course, begin: float, run: SearchRun | None, precision: Precision) -> Adapter:
    """Keep the least that answers need: the router, unless more than it moved."""
    state, best = course.state, course.best
    facts: dict[str, Any] = {
        "seed": course.seed,
        "method_version": state.method.version,
        "shots": len(course.train),
        "curve": list(course.curve),
    }
    if cut := sum(row.cut for shots in (course.train, course.dev) for row in shots.rows):
        facts["cut"] = cut  # rows that are longer than what is read
    seconds = time.monotonic() - begin
    if run is not None:
        facts |= copy.deepcopy(run.facts) | {"interrupted": run.interrupted}
        seconds = max(seconds, run.seconds)  # the time before a resume counts
    facts |= {
        "dev": best.key[0],
        "kept_stage": best.stage,
        "settings": state.method.settings,
        "precision": precision,
        "tuned_parameters": state.tuned_parameters,
        "seconds": round(seconds, 2),
        "versions": version_facts(),
    }
    moved = {group for stage in state.method.stages[: best.stage + 1] for group in stage.groups}
    if state.router is not None and state.source is not None:  # for people: composed prompts need it not
        facts |= {"router": [[round(v, 4) for v in row] for row in state.router[0].tolist()]}
    # composed in fp32, whatever the products were
    with torch.autocast(state.base.device.split(":")[0], enabled=False):
        tensors = _prompts(state, moved) | _weights(state, moved)
    source = state.source
    return Adapter(
        course.task,
        state.method.name,
        state.base.name,
        state.base.fingerprint,
        state.method.bank if source else None,  # a name of the base's, or a folder
        source.fingerprint if source else "",
        state.injection,
        tensors,
        facts,
        state.answer_length,
        state.label_offsets,
    )


def _prompts(state: TaskState, moved: Collection[GroupName]) -> dict[str, torch.Tensor]:
    """The router alone where a bank's prompts stand, else prompts as the router mixes them."""
    if state.bank is None or state.router is None:
        return {}
    if state.source is not None and "prompts" not in moved and "z" not in moved:
        return {"router": state.router.detach()[0].clone()}
    composed = state.prompts()
    assert composed is not None
    return {"prompts": composed.detach()[0].to(torch.float32, copy=True)}


def _weights(state: TaskState, moved: Collection[GroupName]) -> dict[str, torch.Tensor]:
    """Weights of encoder and head that are not the base's (or the bank's) own."""
    other = state.method.holds != "prompts"
    groups: list[GroupName] = []
    if state.method.needs_labels:
        groups.append("probe")
    elif other or "head" in moved:
        groups.append("head")
    if state.low_rank is None and (state.method.holds == "encoder" or "backbone" in moved):
        groups.append("backbone")
    tensors = state.snapshot(groups)
    if state.labels is not None and "labels" in moved:
        tensors["labels"] = state.labels.detach()[0].clone()
    if state.low_rank is not None:
        tensors |= {f"lora.{name}": value for name, value in state.low_rank.collapsed().items()}
    return tensors
