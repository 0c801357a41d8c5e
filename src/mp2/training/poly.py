"""Pre-training of Poly (multi-task LoRA with a router) on the upstream tasks: the rival of step 2.

The same tasks, batches, loss and loop as ``multitask``; what moves are low-rank pairs, their routers and the
span head, in an encoder that is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mp2.data.prepare import PreparedTask
from mp2.model.checkpoint import Base
from mp2.model.low_rank import LowRank, Skills, SkillsConfig
from mp2.runtime import one_after_the_other
from mp2.training.loop import Group, Progressed, only_trainable
from mp2.training.multitask import MultiTaskConfig, MultiTaskRun, fit

RUN = MultiTaskConfig("poly", None, lr={"head": 1e-3, "lora": 1e-3, "router": 5e-3})


class PolyRun(MultiTaskRun):
    """Parameters and batches of one run.

    Args:
        base: The encoder; the modules are put into it, so it is of no other use afterwards.
        tasks: Prepared upstream tasks.
        config: The run, without prompts (:data:`RUN`).
        skills: Shape of the modules.
    """

    def __init__(
        self, base: Base, tasks: Mapping[str, PreparedTask], config: MultiTaskConfig, skills: SkillsConfig
    ) -> None:
        super().__init__(base, tasks, config)
        self.shape, self.modules = skills, LowRank(base.backbone, skills, len(self.names))

    def groups(self) -> list[Group]:
        """Parameter groups; everything else is frozen."""
        lr = self.config.lr
        groups = [
            Group("head", dict(self.head.named_parameters()), lr["head"]),
            Group("lora", self.modules.pairs(), lr["lora"]),
            Group("router", self.modules.routers(), lr["router"], weight_decay=0.0),
        ]
        only_trainable(self.model, groups)
        return groups

    def settings(self) -> dict[str, Any]:
        """What makes this run what it is; a checkpoint of a run with others is not continued."""
        return super().settings() | {"skills": asdict(self.shape)}

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
        return Skills(self.shape, tensors, self.names, self.head, self.fingerprint, facts)


def pretrain_poly(
    base: Base,
    tasks: Mapping[str, PreparedTask],
    config: MultiTaskConfig,
    skills: SkillsConfig,
    folder: Path,
) -> Skills:
    """Run (or resume), and write the modules to ``folder/bank``.

    Args:
        base: The frozen encoder; of no other use afterwards.
        tasks: Prepared upstream tasks.
        config: The run, without prompts (:data:`RUN`).
        skills: Shape of the modules.
        folder: Logs, checkpoints and the modules.
    """
    torch.manual_seed(config.seed)
    run = PolyRun(base, tasks, config, skills)
    trained = run.skills(fit(run, folder))
    with one_after_the_other() as first:
        if first:
            trained.save(folder / "bank")
    return trained
