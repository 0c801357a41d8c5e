"""Step 2: multi-task pre-training of the prompt bank, its routers and the span head (paper section 3.2).

Also step 1b, the format warm-up of a small encoder (the ``backbone`` group moves too, once, and is frozen for
good afterwards), and SPoT, which is the same run with one shallow prompt. A task is drawn, then a batch of
it; every task has its own router row, all share the bank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mp2.data.batch import collate
from mp2.data.encode import Encoded
from mp2.data.prepare import PreparedTask
from mp2.data.sampling import MultiTaskSampler
from mp2.errors import ConfigError
from mp2.model.answers import dev_score
from mp2.model.bank import BankConfig, Depth, Injection, PromptBank
from mp2.model.checkpoint import Base, TrainedBank, check_bank_name, save_encoder
from mp2.model.mrc import SpanHead
from mp2.model.router import Routing, router_weights
from mp2.model.spans import Loss, row_losses
from mp2.runtime import one_after_the_other, rank_and_world, sum_over_processes, whole_folder, write_json
from mp2.training.loop import Group, LoopConfig, Progressed, Trainer, only_trainable
from mp2.training.options import mix_options
from mp2.training.position_heads import add_position_heads

Trainable = Literal["backbone", "head", "lora", "prompts", "router"]


@dataclass(frozen=True, slots=True)
class MultiTaskConfig:
    """A multi-task run.

    Attributes:
        name: Name of the bank.
        depth: ``deep`` (a prompt per layer) or ``shallow`` (input layer only); None trains without prompts.
        modules: K.
        length: P.
        intrinsic: d of the factored bank; 0 for a dense one.
        injection: ``prefix`` or ``add``.
        init_std: Standard deviation of the initial prompts.
        routing: Gates.
        loss: Loss of rows with options.
        lr: Learning rate of each group that moves; a group not named is frozen.
        rows: Rows per batch.
        tokens: Padded tokens per batch at most.
        dev_rows: Dev rows per task in an evaluation.
        windows: Windows of a long row that one batch holds at most.
        mix_options: Share of rows whose options are shuffled, and perhaps fewer, when they are trained on.
        bare: Share of batches without prompts, so that an encoder that moves stays good without them.
        position_heads: Whether the encoder of a warm-up is first given heads that see where words are.
        size_exponent: Tasks are drawn in proportion to their rows to this power; 0 is uniform (paper).
        recompute: Compute activations again in the backward pass: a third more time, far less memory.
        loop: Steps, schedule, checkpoints.
        seed: Seed of initial values, sampling and noise.
    """

    name: str = "deep"
    depth: Depth | None = "deep"
    modules: int = 8
    length: int = 16
    intrinsic: int = 128
    injection: Injection = "prefix"
    init_std: float = 0.5
    routing: Routing = field(default_factory=Routing)
    loss: Loss = "span"
    lr: dict[Trainable, float] = field(
        default_factory=lambda: {"head": 1e-3, "prompts": 1e-3, "router": 5e-3}
    )
    rows: int = 32
    tokens: int = 6144
    dev_rows: int = 64
    windows: int = 2
    mix_options: float = 0.0
    bare: float = 0.0
    position_heads: bool = False
    size_exponent: float = 0.0
    recompute: bool = False
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, warmup=50, save_every=200))
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse what cannot be before data is prepared."""
        check_bank_name(self.name)
        for name in ("rows", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("mix_options", "bare", "size_exponent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.init_std < math.inf:
            raise ConfigError(f"init_std: expected a number of at least 0, got {self.init_std}")
        for group, lr in self.lr.items():
            Group(group, {}, lr)
        if self.depth is not None:
            BankConfig(1, self.modules, self.length, 1, self.intrinsic)


class MultiTaskRun:
    """Parameters, batches and evaluation of one multi-task run.

    Args:
        base: The encoder; its weights move only if the config has a ``backbone`` learning rate.
        tasks: Prepared upstream tasks with ``train`` and ``dev`` splits.
        config: The run.
        start: A bank to continue from; a fresh one when None.
    """

    def __init__(
        self,
        base: Base,
        tasks: Mapping[str, PreparedTask],
        config: MultiTaskConfig,
        start: TrainedBank | None = None,
    ) -> None:
        if not tasks:
            raise ConfigError("multi-task training needs at least one task")
        self.base, self.tasks, self.config = base, dict(tasks), config
        self.fingerprint = base.fingerprint  # of the encoder as it came
        self.names = tuple(self.tasks)
        self.start = start.fingerprint if start else None  # before it moves
        generator = torch.Generator().manual_seed(config.seed)
        self.bank = start.bank if start else self._fresh_bank(generator)
        self.head = start.head if start else SpanHead(base.backbone.hidden_size, generator=generator)
        if start is None:
            self.head.load_state_dict(base.head.state_dict())
        layers = self.bank.config.layers if self.bank else 1
        modules = self.bank.config.modules if self.bank else 1
        noise = torch.rand(len(self.names), layers, modules, generator=generator)
        self.router = nn.Parameter((2 * noise - 1) * 1e-3)  # released code: U(-1e-3, 1e-3)
        if start is not None:
            known = {name: row for name, row in zip(start.tasks, start.router, strict=True)}
            for row, name in enumerate(self.names):
                if name in known:
                    self.router.data[row] = known[name]
        self.model = base.model(self.head.to(base.device))
        base.backbone.checkpointing = config.recompute
        if self.bank is not None:
            self.bank.to(base.device)
        self.router.data = self.router.data.to(base.device)
        self.train_rows = {name: task.split("train") for name, task in self.tasks.items()}
        self.dev_rows = {name: self._dev(task) for name, task in self.tasks.items()}

    def _fresh_bank(self, generator: torch.Generator) -> PromptBank | None:
        c = self.config
        if c.depth is None:
            return None
        layers = self.base.backbone.depth if c.depth == "deep" else 1
        shape = BankConfig(
            layers, c.modules, c.length, self.base.backbone.hidden_size, c.intrinsic, c.injection
        )
        return PromptBank(shape, std=c.init_std, generator=generator)

    def _dev(self, task: PreparedTask) -> tuple[list[Encoded], list[Any]]:
        split = task.split("dev")
        count = min(len(split), self.config.dev_rows)
        chosen = np.random.default_rng(0).permutation(len(split))[:count].tolist()
        return split.take(chosen), [split.example(i) for i in chosen]

    def groups(self) -> list[Group]:
        """Parameter groups that have a learning rate."""
        owned: dict[str, dict[str, nn.Parameter]] = {
            "backbone": dict(self.base.backbone.named_parameters()),
            "head": dict(self.head.named_parameters()),
            "prompts": dict(self.bank.named_parameters()) if self.bank else {},
            "router": {"logits": self.router} if self.bank and self.bank.config.modules > 1 else {},
        }
        groups = [Group(name, owned[name], lr) for name, lr in self.config.lr.items() if lr != 0]
        only_trainable(self.model, groups)
        if self.bank is not None:
            only_trainable(self.bank, groups)
        self.router.requires_grad_(any(group.name == "router" for group in groups))
        return groups

    def prompts(self, rows: Sequence[int], noise: torch.Generator | None = None) -> Tensor | None:
        """Composed prompts ``(len(rows), L, P, H)`` of router rows, or None without a bank.

        Args:
            rows: Tasks.
            noise: Source of a draw of the gates (training); the gates of inference when None.
        """
        if self.bank is None:
            return None
        # one by one: an index in a list is copied to a card, which would wait for it
        logits, sample = torch.stack([self.router[row] for row in rows]), noise is not None
        weights = router_weights(logits, self.config.routing, sample=sample, generator=noise)
        return self.bank.compose(weights)

    def _seed(self, task: int, indices: Sequence[int]) -> np.random.SeedSequence:
        """Seed of a batch that follows from the batch alone: the same on any process, and after a resume."""
        return np.random.SeedSequence([self.config.seed, task, *indices])

    def loss(self, item: tuple[int, Sequence[int]]) -> tuple[Tensor, int, int]:
        """Summed loss of a batch ``(task, row indices)``, its rows and tokens."""
        task, indices = item
        self.model.train("backbone" in self.config.lr)
        mixing, gates, without = self._seed(task, indices).spawn(3)
        rng, share = np.random.default_rng(mixing), self.config.mix_options
        rows = [
            mix_options(row, rng) if rng.random() < share else row
            for row in (
                _fewer_windows(row, self.config.windows)
                for row in self.train_rows[self.names[task]].take(indices)
            )
        ]
        batch = collate(rows, pad_id=self.base.tokenizer.pad_token_id).to(self.base.device)
        noise = torch.Generator(self.base.device).manual_seed(int(gates.generate_state(1)[0]))
        bare = np.random.default_rng(without).random() < self.config.bare
        prompts = None if bare else self.prompts([task], noise)
        few = self.config.loss == "option"
        logits = self.model(batch, prompts, self.config.injection, options_only=few)
        losses, _ = row_losses(logits, batch, self.config.loss)
        return losses.sum(), batch.known, batch.ids.numel()

    def evaluate(self) -> dict[str, float]:
        """Dev metric of every task; ``score`` is their unweighted mean. Processes share the tasks."""
        rank, world = rank_and_world()
        # a sharded encoder runs in step on all processes, so there each evaluates everything
        alone = world == 1 or self.base.backbone.sharded
        found = [0.0] * len(self.names)
        for index in range(len(self.names)):
            if alone or index % world == rank:
                found[index] = self.dev_score(index)
        scores = found if alone else sum_over_processes(found, self.base.device)
        return {"score": sum(scores) / len(scores), **dict(zip(self.names, scores, strict=True))}

    def dev_score(self, task: int) -> float:
        """Dev metric of a task, by its index."""
        name = self.names[task]
        rows, examples = self.dev_rows[name]
        with torch.no_grad():
            prompts = self.prompts([task])
        metric = self.tasks[name].spec.metric or "accuracy"
        return dev_score(self.model, rows, examples, metric, prompts, injection=self.config.injection)

    def trained(self, progress: Progressed) -> TrainedBank:
        """The bank as it stands, with the facts of the run.

        Raises:
            ConfigError: The run has no bank.
        """
        if self.bank is None:
            raise ConfigError("this run trained no bank")
        return TrainedBank(
            self.config.name,
            self.bank,
            self.router.detach(),
            self.names,
            self.head,
            self.config.routing,
            self.fingerprint,
            self.facts(progress),
        )

    def settings(self) -> dict[str, Any]:
        """What makes this run what it is; a checkpoint of a run with others is not continued."""
        config = asdict(self.config)
        del config["recompute"]  # costs time and spares memory; the numbers are the same
        return config | {"tasks": list(self.names), "encoder": self.fingerprint, "start": self.start}

    def facts(self, progress: Progressed) -> dict[str, Any]:
        """How the run went, for the card."""
        return {
            "config": asdict(self.config),
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            "dev": progress.curve[-1] if progress.curve else {},
            "curve": [(at["step"], at["score"]) for at in progress.curve],
            "written": time.strftime("%Y-%m-%d"),
        }


def pretrain_prompts(
    base: Base,
    tasks: Mapping[str, PreparedTask],
    config: MultiTaskConfig,
    folder: Path,
    *,
    start: TrainedBank | None = None,
) -> TrainedBank:
    """Run (or resume) step 2 and write the bank to ``folder/bank``.

    Args:
        base: The frozen encoder.
        tasks: Prepared upstream tasks.
        config: The run.
        folder: Logs, checkpoints and the bank.
        start: A bank of this encoder to continue from, such as one that a warm-up made.
    """
    if "backbone" in config.lr:
        raise ConfigError("step 2 keeps the encoder frozen; the warm-up (step 1b) moves it")
    if start is not None:
        c = start.bank.config
        config = replace(
            config,
            depth="deep" if c.layers > 1 else "shallow",
            modules=c.modules,
            length=c.length,
            intrinsic=c.intrinsic,
            injection=c.injection,
            routing=start.routing,
        )
    run = MultiTaskRun(base, tasks, config, start)
    bank = run.trained(fit(run, folder))
    with one_after_the_other() as first:
        if first:
            bank.save(folder / "bank")
    return bank


def warm_up(
    base: Base, tasks: Mapping[str, PreparedTask], config: MultiTaskConfig, folder: Path
) -> Progressed:
    """Step 1b: move all weights of the encoder on upstream tasks and write it to ``folder/encoder``.

    With a bank (``config.depth``) encoder, prompts and routers move together, and the bank is written to
    ``folder/bank``: the encoder learns to listen to prompts before it is frozen (docs/decisions/0008).

    Args:
        base: The encoder of step 1; moved in place.
        tasks: Prepared upstream tasks.
        config: The run, with a learning rate for ``backbone``.
        folder: Logs, checkpoints and the encoder.
    """
    run = MultiTaskRun(base, tasks, config)
    if config.position_heads:
        generator = torch.Generator().manual_seed(config.seed)
        add_position_heads(base.backbone.whole[0].cpu(), generator, first=base.tokenizer.cls_token_id)
        base.backbone.to(base.device)
    progress = fit(run, folder)
    base.moved()
    facts = run.facts(progress) | {"tasks": run.names, "from": base.name}
    with one_after_the_other() as first:
        if first:
            with whole_folder(folder / "encoder", replace=True, kind="training.json") as aside:
                save_encoder(aside, base.backbone.whole[0], base.tokenizer, run.head)
                write_json(aside / "training.json", facts)
            if run.bank is not None:  # for the encoder as it is on disk, in half precision
                replace(run.trained(progress), base=Base(folder / "encoder").fingerprint).save(
                    folder / "bank"
                )
    return progress


def fit(run: MultiTaskRun, folder: Path) -> Progressed:
    """Run (or resume) the loop of a run; each process takes its own batches of one plan."""
    config = run.config
    rank, world = rank_and_world()
    sampler = MultiTaskSampler(
        [rows.lengths for rows in run.train_rows.values()],
        rows=config.rows,
        tokens=config.tokens,
        size_exponent=config.size_exponent,
        seed=config.seed,
        rank=rank,
        world=world,
    )
    return Trainer(
        run.groups(),
        sampler,
        run.loss,
        config.loop,
        folder=folder,
        settings=run.settings(),
        seed=config.seed,
        evaluate=run.evaluate,
        device=run.base.device,
        title=config.name,
    ).fit()


def _fewer_windows(row: Encoded, limit: int) -> Encoded:
    """Keep the windows that hold the gold answer, then others, up to ``limit``; options keep them all."""
    if len(row.windows) <= limit or row.n_options:
        return row
    ordered = sorted(row.windows, key=lambda window: window.gold is None)
    return Encoded(tuple(ordered[:limit]), row.n_options, row.answer)
