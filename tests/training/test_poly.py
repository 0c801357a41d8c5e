"""Poly's pre-training: what moves, what is written, how a run goes on, and that a task can start from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mp2.cli.main import app
from mp2.data.prepare import PreparedTask, prepare
from mp2.errors import ConfigError
from mp2.model.checkpoint import Base
from mp2.model.low_rank import SkillsConfig, check_skills, load_skills
from mp2.training.loop import LoopConfig
from mp2.training.poly import RUN, PolyRun, pretrain_poly
from mp2.tuning.methods import get_method
from mp2.tuning.stages import Gradient
from mp2.tuning.tune import tune
from tests.data.invented import rows_of, task, write_jsonl
from tests.tuning.shots import review_rows, review_task

SKILLS = SkillsConfig(3, 1, 2)
CONFIG = replace(RUN, rows=4, dev_rows=4, loop=LoopConfig(4, save_every=2, eval_every=2))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, base: Base) -> dict[str, PreparedTask]:
    root = tmp_path_factory.mktemp("data")
    specs = []
    for family in ("classification", "extraction"):
        specs.append(task(family, family, suffix="jsonl"))
        for name, count in (("train", 40), ("test", 8)):
            write_jsonl(root / family / f"{name}.jsonl", rows_of(family, count))
    return prepare(specs, root, base.encoder(), root / "cache", splits=("train", "dev"), protect=[])


def test_pairs_routers_and_head_move_and_the_encoder_does_not(
    base: Base, tasks: dict[str, PreparedTask], tmp_path: Path
) -> None:
    own = Base(base.path)
    before = {name: value.clone() for name, value in base.backbone.state_dict().items()}
    skills = pretrain_poly(own, tasks, CONFIG, SKILLS, tmp_path)
    after = {name.replace(".base_layer", ""): value for name, value in own.backbone.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    fresh = PolyRun(Base(base.path), tasks, CONFIG, SKILLS)
    parameters = {name: value for group in fresh.groups() for name, value in group.parameters.items()}
    moved = [name for name, value in skills.tensors.items() if not torch.equal(value, parameters[name])]
    assert moved and skills.tasks == ("classification", "extraction") and skills.base == base.fingerprint
    assert skills.facts["steps"] == 4 and 0 <= skills.facts["dev"]["score"] <= 1


def test_a_stopped_run_ends_where_a_whole_one_does(
    base: Base, tasks: dict[str, PreparedTask], tmp_path: Path
) -> None:
    whole = pretrain_poly(Base(base.path), tasks, CONFIG, SKILLS, tmp_path / "whole")
    half = replace(CONFIG, loop=replace(CONFIG.loop, steps=2))
    pretrain_poly(Base(base.path), tasks, half, SKILLS, tmp_path / "parts")
    with pytest.raises(ConfigError, match=r"skills.rank was 2, is now 4;"):
        pretrain_poly(Base(base.path), tasks, CONFIG, SkillsConfig(3, 1, 4), tmp_path / "parts")
    parts = pretrain_poly(Base(base.path), tasks, CONFIG, SKILLS, tmp_path / "parts")
    for name, value in whole.tensors.items():
        torch.testing.assert_close(value, parts.tensors[name], atol=1e-6, rtol=1e-5)


def test_the_command_trains_on_tasks_of_the_catalogue(base: Base, tmp_path: Path) -> None:
    lines = [f"{n % 2},{'送得很快' if n % 2 else '送得太慢'}，第{n}次的味道" for n in range(60)]
    (tmp_path / "data" / "Waimai").mkdir(parents=True)
    (tmp_path / "data" / "Waimai" / "waimai_10k.csv").write_text("label,review\n" + "\n".join(lines), "utf-8")
    folders = [
        "--root",
        str(tmp_path / "data"),
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / "o"),
    ]
    few = ["--suite", "waimai", "--steps", "2", "--rows", "4", "--skills", "2", "--rank", "2"]
    done = CliRunner().invoke(app, ["pretrain-poly", str(base.path), *folders, *few])
    assert done.exit_code == 0, done.output
    assert load_skills(tmp_path / "o" / "bank", base.fingerprint).tasks == ("waimai",)
    bare = CliRunner().invoke(
        app, ["pretrain-poly", str(base.path), "--out", str(tmp_path / "p")], env={"MP2_DATA": ""}
    )
    assert bare.exit_code == 2 and "MP2_DATA" in bare.stderr


def test_a_task_starts_from_it(base: Base, tasks: dict[str, PreparedTask], tmp_path: Path) -> None:
    pretrain_poly(Base(base.path), tasks, CONFIG, SKILLS, tmp_path)
    assert load_skills(tmp_path / "bank", base.fingerprint).config == SKILLS
    row = get_method("poly")
    stages = (Gradient({"router": 0.1}, 2, 1), Gradient({"lora": 1e-2, "head": 1e-2}, 2, 1))
    method = replace(row, bank=str(tmp_path / "bank"), stages=stages)
    review = review_task()
    adapter = tune(base, review, *review_rows(review), method)
    assert adapter.facts["tuned_parameters"] == 6 * 3 + 6 * 2 * 3 * 32 * 2 + 2 * 32 + 2


def test_shapes_that_cannot_be_are_refused() -> None:
    for shape in ({"skills": 0}, {"splits": 0}, {"rank": -1}):
        with pytest.raises(ConfigError, match="expected at least 1, got"):
            SkillsConfig(**shape)
    check_skills(SkillsConfig(splits=4), 32)
    with pytest.raises(ConfigError, match="expected a divisor of the encoder's width 32, got 5"):
        check_skills(SkillsConfig(splits=5), 32)
