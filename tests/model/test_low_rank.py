"""LoRA and Poly: what PEFT computes is what the collapsed pairs add to the weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from mp2.errors import CheckpointError
from mp2.model.backbone import Backbone, Prompts
from mp2.model.checkpoint import Base
from mp2.model.low_rank import LowRank, Skills, SkillsConfig, add_pairs, load_skills
from mp2.model.mrc import SpanHead
from tests.micro import HIDDEN, LAYERS, LENGTH

SHAPES = pytest.mark.parametrize("skills", [None, SkillsConfig(4, 2, 4)], ids=["lora", "poly"])


def _random(backbone: Backbone, skills: SkillsConfig | None, tasks: int = 3) -> LowRank:
    modules = LowRank(backbone, skills, tasks)
    generator = torch.Generator().manual_seed(1)
    for parameter in [*modules.pairs().values(), *modules.routers().values()]:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return modules


@SHAPES
@torch.no_grad()
def test_collapsed_pairs_equal_peft(base: Base, skills: SkillsConfig | None) -> None:
    own, plain = copy.deepcopy(base.backbone), copy.deepcopy(base.backbone)
    modules = _random(own, skills)
    ids = torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids, dtype=torch.bool)
    prompts = Prompts(torch.randn(1, LAYERS, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(3)))
    task = 2 if skills else 0
    modules.use(task, sample=False)
    add_pairs(plain, modules.collapsed(task))
    torch.testing.assert_close(own(ids, mask), plain(ids, mask), atol=1e-5, rtol=1e-4)
    assert (own(ids, mask) - base.backbone(ids, mask)).abs().max() > 0.01
    if skills is None:  # a prefix passes the same projections (Poly's mix per row, prompts are no rows)
        torch.testing.assert_close(own(ids, mask, prompts), plain(ids, mask, prompts), atol=1e-5, rtol=1e-4)


@SHAPES
def test_everything_is_frozen_and_new_pairs_change_nothing(base: Base, skills: SkillsConfig | None) -> None:
    own = copy.deepcopy(base.backbone)
    modules = LowRank(own, skills)
    assert not any(p.requires_grad for p in own.parameters())
    if skills is None:
        ids = torch.arange(5, 12)[None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        torch.testing.assert_close(own(ids, mask), base.backbone(ids, mask))
    assert len(modules.pairs()) == 4 * LAYERS


@torch.no_grad()
def test_sampled_gates_differ_from_draw_to_draw(base: Base) -> None:
    own = copy.deepcopy(base.backbone)
    modules = _random(own, SkillsConfig(4, 1, 4))
    ids = torch.arange(5, 12)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    modules.use(0, sample=True)
    assert (own(ids, mask) - own(ids, mask)).abs().max() > 1e-4
    modules.use(0, sample=False)
    assert torch.equal(own(ids, mask), own(ids, mask))


def test_skills_come_back_and_belong_to_their_encoder(base: Base, tmp_path: Path) -> None:
    modules = _random(copy.deepcopy(base.backbone), SkillsConfig(3, 2, 2), tasks=2)
    tensors = {name: value.detach() for name, value in (modules.pairs() | modules.routers()).items()}
    skills = Skills(SkillsConfig(3, 2, 2), tensors, ("a", "b"), SpanHead(HIDDEN), base.fingerprint, {})
    skills.save(tmp_path)
    loaded = load_skills(tmp_path, base.fingerprint)
    assert loaded.tasks == ("a", "b") and loaded.config == skills.config
    for name, value in tensors.items():
        torch.testing.assert_close(loaded.tensors[name], value.half().float())
    with pytest.raises(CheckpointError, match="belong to base"):
        load_skills(tmp_path, "other")
    with pytest.raises(CheckpointError, match="no such file"):
        load_skills(tmp_path / "none", base.fingerprint)
    wrong = LowRank(copy.deepcopy(base.backbone), SkillsConfig(5, 2, 2))
    with pytest.raises(CheckpointError, match=r"expected \(2, 5, 16, 2\), got \(2, 3, 16, 2\)"):
        wrong.load_pairs(loaded)


def test_pairs_of_another_encoder_are_refused(base: Base) -> None:
    with pytest.raises(CheckpointError, match="'elsewhere' does not fit"):
        add_pairs(
            copy.deepcopy(base.backbone), {"elsewhere.A": torch.zeros(2, 3), "elsewhere.B": torch.zeros(3, 2)}
        )
