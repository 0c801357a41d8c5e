"""Pre-training of Poly (multi-task LoRA with a router) on the upstream tasks: the rival of step 2.

The same tasks, batches, loss and loop as ``multitask``; what moves are low-rank pairs, their routers and the
span head, in an encoder that is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mp2.data.prepare import PreparedTask
from mp2.model.checkpoint import Base
from mp2.model.low_rank import LowRank, Skills, SkillsConfig
from mp2.runtime import one_after_the_other
from mp2.training.loop import Group, LoopConfig, Progressed
from mp2.training.multitask import MultiTaskConfig, MultiTaskRun, fit


@dataclass(frozen=True, slots=True)
class PolyConfig:
    """A run.

    Attributes:
        skills: Shape of the modules.
        lr: Learning rate of pairs, routers and head.
        rows: Rows per batch.
        tokens: Padded tokens per batch at most.
        dev_rows: Dev rows per task in an evaluation.
        loop: Steps, schedule, checkpoints.
        seed: Seed of initial values, sampling and noise.
    """

    skills: SkillsConfig = field(default_factory=SkillsConfig)
    lr: tuple[float, float, float] = (1e-3, 5e-3, 1e-3)
    rows: int = 32
    tokens: int = 6144
    dev_rows: int = 64
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, warmup=50, save_every=200))
    seed: int = 42


class PolyRun(MultiTaskRun):
    """Parameters and batches of one run.

    Args:
        base: The encoder; the modules are put into it, so it is of no other use afterwards.
        tasks: Prepared upstream tasks.
        config: The run.
    """

    def __init__(self, base: Base, tasks: Mapping[str, PreparedTask], config: PolyConfig) -> None:
        self.poly = config
        plain = MultiTaskConfig(
            "poly",
            None,
            lr={"head": config.lr[2]},
            rows=config.rows,
            tokens=config.tokens,
            dev_rows=config.dev_rows,
            loop=config.loop,
            seed=config.seed,
        )
        super().__init__(base, tasks, plain)
        self.modules = LowRank(base.backbone, config.skills, len(self.names))

    def groups(self) -> list[Group]:
        """Parameter groups; everything else is frozen."""
        lora, router, _ = self.poly.lr
        groups = [
            *super().groups(),
            Group("lora", self.modules.pairs(), lora),
            Group("router", self.modules.routers(), router, weight_decay=0.0),
        ]
        for group in groups:
            for parameter in group.parameters.values():
                parameter.requires_grad_(True)
        return groups

    def settings(self) -> dict[str, Any]:
        """What makes this run what it is; a checkpoint of a run with others is not continued."""
        return super().settings() | asdict(self.poly)

    def loss(self, item: tuple[int, Sequence[int]]) -> tuple[Tensor, int, int]:
        """Summed loss of a batch, its rows and tokens."""
        self.modules.use(item[0], sample=True)
        return super().loss(item)

    def dev_score(self, task: int) -> float:
        """Dev metric of a task, by its index."""
        self.modules.use(task, sample=False)
        return super().dev_score(task)

    def skills(self, progress: Progressed) -> Skills:
        """The modules as they stand, with the facts of the run."""
        moved = self.modules.pairs() | self.modules.routers()
        tensors = {name: value.detach() for name, value in moved.items()}
        facts = self.facts(progress)
        return Skills(self.poly.skills, tensors, self.names, self.head, self.fingerprint, facts)


def pretrain_poly(base: Base, tasks: Mapping[str, PreparedTask], config: PolyConfig, folder: Path) -> Skills:
    """Run (or resume), and write the modules to ``folder/bank``.

    Args:
        base: The frozen encoder; of no other use afterwards.
        tasks: Prepared upstream tasks.
        config: The run.
        folder: Logs, checkpoints and the modules.
    """
    torch.manual_seed(config.seed)
    run = PolyRun(base, tasks, config)
    skills = run.skills(fit(run, folder))
    with one_after_the_other() as first:
        if first:
            skills.save(folder / "bank")
    return skills
