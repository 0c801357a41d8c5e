"""LoRA and Poly in a copy of the encoder (extra ``baselines``), and their collapse to plain updates.

Both add ``x A B`` to the query and value projections. Poly (Ponti et al., arXiv:2202.13914) has several such
pairs per projection, trained on many tasks, and a relaxed-Bernoulli router per projection that mixes them.
Once a task is tuned either is one pair per projection, which an adapter keeps and adds to the weights when it
is loaded: PEFT is needed for tuning only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mp2.errors import CheckpointError, ConfigError
from mp2.model.backbone import Backbone
from mp2.model.checkpoint import read_json, read_tensors
from mp2.model.mrc import SpanHead
from mp2.runtime import whole_folder, write_json

TARGETS = ("query", "value")
RANK = 8
NAME = "default"  # PEFT's name of the one adapter


@dataclass(frozen=True, slots=True)
class SkillsConfig:
    """Shape of Poly's modules.

    Attributes:
        skills: LoRA pairs per projection.
        splits: Parts of a projection that are mixed independently.
        rank: r of each pair.
    """

    skills: int = 8
    splits: int = 1
    rank: int = RANK

    def __post_init__(self) -> None:
        for name in ("skills", "splits", "rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(slots=True)
class Skills:
    """Poly trained on many tasks.

    Attributes:
        config: Shape.
        tensors: ``<projection>.A (splits, skills, H/splits, r)``, ``.B`` and ``.logits (N, splits*skills)``.
        tasks: Names of the N tasks.
        head: Span head trained with it.
        base: Fingerprint of the encoder it belongs to.
        facts: How it was trained.
    """

    config: SkillsConfig
    tensors: dict[str, Tensor]
    tasks: tuple[str, ...]
    head: SpanHead
    base: str
    facts: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write as a folder, half precision, whole or not at all, in place of skills that are there.

        Raises:
            CheckpointError: The folder is there and holds something else.
            WriteError: It cannot be written.
        """
        tensors = self.tensors | {f"head.{key}": value for key, value in self.head.state_dict().items()}
        config = {"skills": self.config.skills, "splits": self.config.splits, "rank": self.config.rank}
        facts = {"config": config, "tasks": list(self.tasks), "base": self.base, "facts": self.facts}
        with whole_folder(folder, replace=True, kind="skills.json") as aside:
            tensors = {key: value.detach().half().contiguous().cpu() for key, value in tensors.items()}
            save_file(tensors, aside / "skills.safetensors")
            write_json(aside / "skills.json", facts)


def load_skills(folder: Path, base: str) -> Skills:
    """Read Poly's modules.

    Args:
        folder: Folder that :meth:`Skills.save` wrote.
        base: Fingerprint of the encoder they shall be used on.

    Raises:
        CheckpointError: Absent, damaged, or of another encoder.
    """
    facts = read_json(folder / "skills.json")
    tensors = read_tensors(folder / "skills.safetensors")
    try:
        weight = tensors.pop("head.weight")
        head = SpanHead(weight.shape[1])
        head.load_state_dict({"weight": weight, "bias": tensors.pop("head.bias")})
        config, tasks = SkillsConfig(**facts["config"]), tuple(facts["tasks"])
        skills = Skills(config, tensors, tasks, head, facts["base"], facts["facts"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: not skills this version can read: {error}") from error
    if skills.base != base:
        raise CheckpointError(f"skills {folder} belong to base {skills.base}, not to {base}")
    return skills


class LowRank:
    """LoRA or Poly modules inside a backbone, which is changed in place.

    Args:
        backbone: A backbone of one's own.
        skills: Shape of Poly's modules; LoRA when None.
        tasks: Tasks of Poly's routers.

    Raises:
        ConfigError: PEFT is not installed.
    """

    def __init__(self, backbone: Backbone, skills: SkillsConfig | None = None, tasks: int = 1) -> None:
        self.poly = skills is not None
        inject, config = _peft(skills, tasks)
        inject(config, backbone, adapter_name=NAME)
        backbone.requires_grad_(False)
        self.layers: dict[str, Any] = {
            name: module for name, module in backbone.named_modules() if hasattr(module, "base_layer")
        }
        if not self.layers:
            raise ConfigError(
                f"the encoder has no projections named {' or '.join(TARGETS)} for low-rank tuning"
            )
        if self.poly:
            for layer in self.layers.values():
                layer.register_forward_pre_hook(self._with_task, with_kwargs=True)
        self.use(0, sample=False)

    def use(self, task: int, *, sample: bool) -> None:
        """Say how Poly mixes its pairs in the next forwards.

        Args:
            task: Whose router.
            sample: Draw relaxed Bernoulli gates (pre-training) instead of their sigmoid.
        """
        self._task, self._sample = task, sample

    def _with_task(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        module.poly_router[NAME].train(self._sample)
        ids = torch.full((len(args[0]),), self._task, dtype=torch.long, device=args[0].device)
        return args, kwargs | {"task_ids": ids}

    def pairs(self) -> dict[str, nn.Parameter]:
        """The low-rank pairs, by ``<projection>.A`` and ``.B``."""
        found: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            if self.poly:
                found |= {f"{name}.A": layer.poly_lora_A[NAME], f"{name}.B": layer.poly_lora_B[NAME]}
            else:
                found |= {f"{name}.A": layer.lora_A[NAME].weight, f"{name}.B": layer.lora_B[NAME].weight}
        return found

    def routers(self) -> dict[str, nn.Parameter]:
        """Poly's router logits ``(N, splits*skills)``, by ``<projection>.logits``; none for LoRA."""
        if not self.poly:
            return {}
        return {
            f"{name}.logits": layer.poly_router[NAME].module_logits for name, layer in self.layers.items()
        }

    @torch.no_grad()
    def load_pairs(self, skills: Skills) -> None:
        """Start from trained modules; the routers stay fresh, which mixes all skills in equal parts.

        Raises:
            CheckpointError: They are of another encoder.
        """
        for name, parameter in self.pairs().items():
            value = skills.tensors.get(name)
            if value is None or value.shape != parameter.shape:
                came = "none" if value is None else tuple(value.shape)
                raise CheckpointError(f"skills: {name}: expected {tuple(parameter.shape)}, got {came}")
            parameter.copy_(value)

    @torch.no_grad()
    def collapsed(self, task: int = 0) -> dict[str, Tensor]:
        """One pair per projection: ``<projection>.A (r, H)`` and ``.B (H, r)``, scale included."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            if not self.poly:
                found[f"{name}.A"] = layer.lora_A[NAME].weight.clone()
                found[f"{name}.B"] = layer.lora_B[NAME].weight * layer.scaling[NAME]
                continue
            a, b = layer.poly_lora_A[NAME], layer.poly_lora_B[NAME]
            gates = layer.poly_router[NAME].module_logits[task].view(a.shape[:2]).sigmoid()
            weights = gates / gates.sum(dim=-1, keepdim=True)
            rank = a.shape[-1]
            found[f"{name}.A"] = torch.einsum("qs,qsdr->qdr", weights, a).reshape(-1, rank).T.contiguous()
            mixed = torch.einsum("qs,qsrd->qrd", weights, b)
            found[f"{name}.B"] = mixed.transpose(0, 1).reshape(rank, -1).T / rank
        return found


@torch.no_grad()
def add_pairs(backbone: Backbone, pairs: dict[str, Tensor]) -> None:
    """Add collapsed pairs to the weights of a backbone of one's own.

    Raises:
        CheckpointError: The backbone has no such projections.
    """
    modules = dict(backbone.named_modules())
    for key, a in pairs.items():
        if not key.endswith(".A"):
            continue
        name = key.removesuffix(".A")
        linear, b = modules.get(name), pairs.get(f"{name}.B")
        if (
            not isinstance(linear, nn.Linear)
            or b is None
            or (len(b), a.shape[1]) != tuple(linear.weight.shape)
        ):
            raise CheckpointError(f"low-rank update of {name!r} does not fit this encoder")
        linear.weight += b @ a


def check_skills(skills: SkillsConfig, hidden: int) -> None:
    """Refuse parts of a projection that are not all of one size.

    Raises:
        ConfigError: H is no multiple of the splits.
    """
    if hidden % skills.splits:
        raise ConfigError(f"splits: expected a divisor of the encoder's width {hidden}, got {skills.splits}")


def _peft(skills: SkillsConfig | None, tasks: int) -> tuple[Any, Any]:
    try:
        from peft import LoraConfig, PolyConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("LoRA and Poly need the extra 'baselines': pip install 'mp2[baselines]'") from None
    if skills is None:
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), lora_dropout=0.0)
    else:
        config = PolyConfig(
            r=skills.rank,
            n_tasks=tasks,
            n_skills=skills.skills,
            n_splits=skills.splits,
            target_modules=list(TARGETS),
        )
    return inject_adapter_in_model, config
