"""The gradient loop: named parameter groups, schedules, evaluation, logs, checkpoints and exact resume.

Used by step 1 (encoder), step 2 (prompts), PPT and few-shot tuning. It does not know what it trains: the
caller gives parameter groups, a source of batches and a function from a batch to a summed loss. Gradients
are of the mean over all rows of all accumulated batches and all processes, whoever drew how many.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mp2.errors import CheckpointError, ConfigError
from mp2.runtime import (
    Precision,
    autocast,
    freed_memory_kept,
    rank_and_world,
    release_free_memory,
    whole_folder,
    write_json,
)
from mp2.training.progress import Progress

Schedule = Literal["constant", "cosine"]
# these say how long and how often, not what: a run may be continued with others
FREE = frozenset(
    f"loop.{name}" for name in ("steps", "minutes", "eval_every", "save_every", "log_every", "keep")
)


class Source(Protocol):
    """An endless source of batches that can be stopped and continued exactly."""

    def __next__(self) -> Any:
        """The next batch."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a learning rate; everything not in a group is frozen by ``requires_grad``."""

    name: str
    parameters: dict[str, nn.Parameter]
    lr: float
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise ConfigError(f"learning rate of {self.name}: expected a number of at least 0, got {self.lr}")


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How long and how fast.

    Attributes:
        steps: Optimiser steps in all.
        warmup: Steps of linear warm-up.
        schedule: Learning rate after the warm-up: constant, or to zero at the end (cosine).
        accumulate: Batches per step.
        clip: Largest gradient norm per group; 0 turns clipping off.
        betas: AdamW's betas.
        eval_every: Steps between evaluations; 0 means only at the end.
        save_every: Steps between checkpoints; 0 means none.
        log_every: Steps between lines of the log.
        keep: Checkpoints to keep.
        precision: ``fp32``, or ``bf16`` autocast.
        minutes: Stop (resumably) after this time; 0 means no limit.
    """

    steps: int
    warmup: int = 0
    schedule: Schedule = "constant"
    accumulate: int = 1
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eval_every: int = 0
    save_every: int = 0
    log_every: int = 20
    keep: int = 2
    precision: Precision = "fp32"
    minutes: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise ConfigError(
                f"steps and accumulate: expected at least 1, got {self.steps}, {self.accumulate}"
            )
        for name in ("warmup", "eval_every", "save_every", "log_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.minutes < math.inf:
            raise ConfigError(f"minutes: expected a number of at least 0, got {self.minutes}")


@dataclass(slots=True)
class Progressed:
    """Where a run is: what resume continues from besides tensors and the source."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Runs the loop.

    Args:
        groups: What may move.
        source: Batches.
        loss: From a batch to (summed loss, number of rows, tokens); must not divide by the rows.
        config: How long and how fast.
        folder: Where logs and checkpoints go; None for a run that leaves no trace (few-shot tuning).
        settings: What makes the run what it is, JSON values: a folder of a run with others is refused.
        seed: Seed of what the loss draws from the global generator; None leaves that to the caller.
        evaluate: Returns metrics.
        device: Where autocast happens.
        title: Name in the progress display; empty for none.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        source: Source,
        loss: Callable[[Any], tuple[Tensor, int, int]],
        config: LoopConfig,
        *,
        folder: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        seed: int | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        device: str = "cpu",
        title: str = "",
    ) -> None:
        self.groups = [group for group in groups if group.parameters]
        if not self.groups:
            raise ConfigError("nothing to train: no parameter group has a parameter")
        self.source, self.loss, self.config, self.folder = source, loss, config, folder
        self.settings, self.seed = _flat({**(settings or {}), "loop": asdict(config)}), seed
        self.evaluate, self.device, self.title = evaluate, device, title
        self.parameters = {
            f"{group.name}.{name}": parameter
            for group in self.groups
            for name, parameter in group.parameters.items()
        }
        self.optimiser = torch.optim.AdamW(
            [
                {"params": list(g.parameters.values()), "lr": g.lr, "weight_decay": g.weight_decay}
                for g in self.groups
            ],
            betas=config.betas,
            fused=True,
        )
        self.state = Progressed()
        self._end = math.inf
        self._unread: list[Tensor] = []  # rows, summed loss, tokens and time-outs of steps not yet reported
        # a card works on while the host prepares the next steps; asking it for a number would stop both
        self.lazy = torch.device(device).type != "cpu"

    def fit(self) -> Progressed:
        """Run to the last step (or the time limit), resuming from the newest checkpoint in the folder.

        Raises:
            ConfigError: The loss of a run that is saved is no longer a number.
        """
        if self.folder is not None:
            self.resume()
        main = rank_and_world()[0] == 0
        self._end = time.monotonic() + self.config.minutes * 60 if self.config.minutes else math.inf
        begin = time.monotonic() - self.state.seconds
        title, folder = (self.title, self.folder) if main else ("", None)
        kept = freed_memory_kept(self.device)
        with kept, Progress(title, self.config.steps, self.state.step, folder) as progress:
            while self.state.step < self.config.steps:
                self.one_step()
                self.state.seconds = time.monotonic() - begin
                out_of_time = self._report(progress)
                last = self.state.step == self.config.steps
                ends = last or out_of_time  # what is written has a score of its own
                if self._due(self.config.eval_every) or (ends and self.evaluate is not None):
                    self._evaluate(progress)
                if self.folder is not None and (self._due(self.config.save_every) or ends):
                    self.save()
                if out_of_time:
                    break
        return self.state

    def _due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def one_step(self) -> None:
        """One optimiser step; ``fit`` is what runs, reports and saves them."""
        rows = tokens = 0
        total = torch.zeros((), device=next(iter(self.parameters.values())).device)
        for number in range(self.config.accumulate):
            self._seed(number)
            with autocast(self.device, self.config.precision):
                loss, count, seen = self.loss(next(self.source))
            if count:
                loss.backward()  # type: ignore[no-untyped-call]
                total = total + loss.detach()
            rows, tokens = rows + count, tokens + seen
        counts = self._reduce(rows, total, tokens)
        self._set_rates()
        for group in self.groups:
            grads = [p.grad for p in group.parameters.values() if p.grad is not None]
            if not grads:  # no batch of this step asked the group
                continue
            torch._foreach_div_(grads, counts[0].clamp_min(1))
            if self.config.clip:
                nn.utils.clip_grad_norm_(group.parameters.values(), self.config.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.state.step += 1
        self._unread.append(counts)

    def _seed(self, number: int) -> None:
        """Random numbers follow from a batch's place in the run: on any process, and after a resume."""
        if self.seed is not None:
            rank, world = rank_and_world()
            place = np.random.SeedSequence([self.seed, self.state.step, number * world + rank])
            torch.manual_seed(int(place.generate_state(1)[0]))

    def _report(self, progress: Progress) -> bool:
        """Tell the progress of the steps since the last report, when one is due; says whether time is up."""
        step, c = self.state.step, self.config
        due = step == c.steps or any(self._due(every) for every in (c.log_every, c.eval_every, c.save_every))
        if self.lazy and not due and not c.minutes:
            return False
        found = torch.stack(self._unread).tolist()
        self._unread.clear()
        for at, (rows, total, tokens, _) in enumerate(found, start=step - len(found) + 1):
            # a run without a folder is few-shot tuning, which keeps an earlier moment
            if self.folder is not None and not math.isfinite(total):
                raise ConfigError(
                    f"{self.folder}: the loss of step {at} is {total}, no number to learn from; start again"
                    " in a new folder with lower learning rates"
                )
            self.state.tokens += round(tokens)
            progress.step(at, total / max(rows, 1), round(tokens))
        if self._due(c.log_every):
            values = {"loss": progress.mean_loss(), "tokens": self.state.tokens, **self._rates(step - 1)}
            progress.log(step, values)
            if self.folder is not None and not self.lazy:
                release_free_memory()
        return bool(found[-1][3])

    def _reduce(self, rows: int, total: Tensor, tokens: int) -> Tensor:
        """Sum gradients and counts over processes: one all-reduce of one flat buffer.

        Beside its gradient every tensor sends whether this process asked it. One that none asked keeps no
        gradient, as with one process: AdamW would move it by a gradient of zeros, by decay and moments.

        Returns:
            ``(4,)``: rows, summed loss, tokens, and how many processes are out of time.
        """
        late = time.monotonic() > self._end
        counts = torch.stack(
            [total if x is None else total.new_full((), x) for x in (rows, None, tokens, late)]
        )
        if rank_and_world()[1] == 1:
            return counts
        parameters = list(self.parameters.values())
        asked = [p.grad is not None for p in parameters]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # a list from the host makes a card wait, as reading one does: only where something is missing
        flags = counts.new_ones(len(asked)) if all(asked) else counts.new_tensor(asked)
        flat = torch.cat([grad.reshape(-1).float() for grad in grads] + [flags, counts])
        torch.distributed.all_reduce(flat)
        sizes = [*(p.numel() for p in parameters), len(flags), len(counts)]
        *sums, flags, counts = torch.split(flat, sizes)
        anywhere = [True] * len(asked) if all(asked) else flags.tolist()
        for p, grad, summed, kept in zip(parameters, grads, sums, anywhere, strict=True):
            p.grad = grad.copy_(summed.view_as(p)) if kept else None
        return counts.clone()  # they wait for the next report, and the buffer shall not

    def _rates(self, step: int) -> dict[str, float]:
        factor = lr_factor(step, self.config)
        return {f"lr/{group.name}": group.lr * factor for group in self.groups}

    def _set_rates(self) -> None:
        rates = self._rates(self.state.step)
        for group, torch_group in zip(self.groups, self.optimiser.param_groups, strict=True):
            torch_group["lr"] = rates[f"lr/{group.name}"]

    def _evaluate(self, progress: Progress) -> None:
        if self.evaluate is None:
            return
        metrics = self.evaluate()
        self.state.curve.append({"step": self.state.step, **metrics})
        progress.log(self.state.step, {f"dev/{name}": value for name, value in metrics.items()}, show=True)

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint whole or not at all, then prune the oldest."""
        if self.folder is None or rank_and_world()[0] > 0:
            return
        tensors = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for key, value in self.optimiser.state.get(p, {}).items():
                tensors[f"optimiser/{key}/{name}"] = value.detach().reshape(value.shape)
        facts = {
            "progress": asdict(self.state),
            "source": self.source.state_dict(),
            "settings": self.settings,
            "processes": rank_and_world()[1],
        }
        target = self.folder / "checkpoints" / f"step-{self.state.step:08d}"
        try:
            with whole_folder(target, replace=True, kind="state.json") as aside:
                save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, aside / "state.safetensors")
                write_json(aside / "state.json", facts)
        except OSError as error:
            raise CheckpointError(f"{target}: could not be saved ({error}); earlier ones are kept") from error
        for old in sorted(target.parent.glob("step-*"))[: -self.config.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> bool:
        """Continue from the newest checkpoint, if there is one.

        Raises:
            ConfigError: It is of a run with other settings, or of other parameters.
            CheckpointError: It is damaged, or of other data.
        """
        found = sorted((self.folder / "checkpoints").glob("step-*")) if self.folder else []
        if not found:
            return False
        try:
            facts = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
            with safe_open(found[-1] / "state.safetensors", framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self._restore(tensors, facts)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{found[-1]}: damaged: {error}; delete it to go on from the one before, or choose another"
                " folder"
            ) from error
        return True

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self._refuse_others(tensors, facts)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"parameter/{name}"])
                moments = {
                    key.split("/")[1]: value.to(p.device)
                    for key, value in tensors.items()
                    if key.startswith("optimiser/") and key.split("/", 2)[2] == name
                }
                if moments:
                    self.optimiser.state[p] = moments
        known = {key: value for key, value in facts["progress"].items() if not key.startswith("best")}
        self.state = Progressed(**known)  # earlier versions kept the best step too
        self.source.load_state_dict(facts["source"])

    def _refuse_others(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of other settings or shapes: what came out would not be what they say."""
        was = dict(facts.get("settings", self.settings))  # checkpoints of earlier versions have none
        now, world, free = dict(self.settings), rank_and_world()[1], set(FREE)
        if was["loop.steps"] != now["loop.steps"]:
            free.add("loop.warmup")  # commands derive it from the steps
        if was["loop.accumulate"] * facts.get("processes", world) == now["loop.accumulate"] * world:
            free.add("loop.accumulate")  # as many batches per step, shared out otherwise
        was |= {key: list(value.shape) for key, value in tensors.items() if key.startswith("parameter/")}
        now |= {f"parameter/{name}": list(p.shape) for name, p in self.parameters.items()}
        differ = [
            f"{key} was {was.get(key)!r}, is now {now.get(key)!r}"
            for key in {**was, **now}
            if key not in free and was.get(key) != now.get(key)
        ]
        if differ:
            raise ConfigError(
                f"{self.folder}: holds another run: {'; '.join(differ[:9])}; choose another folder, or go on"
                " with the settings it began with"
            )


def lr_factor(step: int, config: LoopConfig) -> float:
    """Share of the base learning rate at a step (0-based)."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    left = 1 - (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 - math.cos(math.pi * left))


def only_trainable(module: nn.Module, groups: Sequence[Group]) -> None:
    """Set ``requires_grad`` on exactly the groups' parameters of a module."""
    chosen = {id(p) for group in groups for p in group.parameters.values()}
    for p in module.parameters():
        p.requires_grad_(id(p) in chosen)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted path, with values as JSON reads them back."""
    if isinstance(value, Mapping):
        parts = (_flat(item, f"{path}.{key}".lstrip(".")) for key, item in value.items())
        return {key: item for part in parts for key, item in part.items()}
    return {path: list(value) if isinstance(value, tuple) else value}
