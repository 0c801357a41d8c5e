"""What methods start from beside prompts: an encoder trained on the upstream tasks, or Poly's skills.

They lie where banks lie, under ``banks/<name>`` of a base, or in any folder that is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from mp2.errors import CheckpointError, ConfigError, nearest
from mp2.model.backbone import Backbone, load_backbone
from mp2.model.checkpoint import Base, read_tensors
from mp2.model.low_rank import Skills, load_skills
from mp2.model.mrc import SpanHead
from mp2.runtime import sha256
from mp2.tuning.methods import Holds, Method

FILES: dict[Holds, str] = {"prompts": "bank.json", "encoder": "config.json", "skills": "skills.json"}


def part_folder(base: Base, name: str, holds: Holds) -> Path | None:
    """Folder of a bank of some kind; None if there is none."""
    for folder in (Path(base.path) / "banks" / name, Path(name)):
        if (folder / FILES[holds]).exists():
            return folder
    return None


def lacking(base: Base, methods: Iterable[Method]) -> dict[str, str]:
    """Methods that a base has not what they start from, by name, with what that is in words."""
    return {
        method.name: f"{'bank' if method.holds == 'prompts' else f'bank of {method.holds}'} {method.bank!r}"
        for method in methods
        if method.bank and part_folder(base, method.bank, method.holds) is None
    }


def check_parts(base: Base, methods: Iterable[Method]) -> None:
    """Check that a base has what methods start from.

    Raises:
        ConfigError: It lacks something; says what, and which methods need it.
    """
    absent: dict[str, list[str]] = {}
    for name, what in lacking(base, methods).items():
        absent.setdefault(what, []).append(name)
    if absent:
        needs = "; ".join(f"no {what}, needed by {', '.join(names)}" for what, names in absent.items())
        have = f"has the banks {', '.join(base.banks)}" if base.banks else "has no banks"
        raise ConfigError(f"{base.name} {have}: {needs}")


def part_fingerprint(base: Base, method: Method) -> str:
    """Hash of what a method starts from; empty for a method that starts from the base alone."""
    if method.bank is None:
        return ""
    if method.holds == "prompts":
        return base.bank(method.bank).fingerprint
    folder = _found(base, method.bank, method.holds)
    files = sorted(folder.glob("*.safetensors"))  # an encoder has its span head in a file of its own
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()[:16]


def load_encoder(base: Base, name: str) -> tuple[Backbone, SpanHead]:
    """Another encoder for the base's tokenizer, with its span head.

    Raises:
        CheckpointError: Absent, damaged, or of another shape or vocabulary.
    """
    folder = _found(base, name, "encoder")
    backbone = load_backbone(folder, slot_id=base.tokenizer.mask_token_id, dtype=torch.float32)
    ours = {key: tuple(value.shape) for key, value in base.backbone.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    if ours != theirs:
        different = sorted(set(ours.items()) ^ set(theirs.items()))[0][0]
        raise CheckpointError(f"{folder}: not the shape of {base.name}: {different}")
    head = SpanHead(base.backbone.hidden_size)
    if (folder / "head.safetensors").exists():
        head.load_state_dict(read_tensors(folder / "head.safetensors"))
    return backbone.to(base.device).eval().requires_grad_(False), head.to(base.device)


def load_skills_of(base: Base, name: str) -> Skills:
    """Poly's skills for a base.

    Raises:
        CheckpointError: Absent, damaged, or of another base.
    """
    return load_skills(_found(base, name, "skills"), base.fingerprint)


def _found(base: Base, name: str, holds: Holds) -> Path:
    folder = part_folder(base, name, holds)
    if folder is None:
        there = [
            path.name for path in (Path(base.path) / "banks").glob("*") if (path / FILES[holds]).exists()
        ]
        raise CheckpointError(f"{base.name}: no bank of {holds} {name!r}; {nearest(name, there)}")
    return folder
