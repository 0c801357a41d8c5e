"""The commands that pre-train and assemble, and what their users can get wrong."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mp2.cli.main import app
from mp2.errors import CheckpointError, ConfigError, WriteError
from mp2.model.bank import BankConfig
from mp2.model.checkpoint import Base, load_bank
from mp2.training.loop import Progressed
from tests.micro import HIDDEN, LAYERS, micro_bank


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"MP2_DATA": ""})


@pytest.fixture
def data(tmp_path: Path) -> tuple[object, ...]:
    """Options that name a task of the catalogue whose rows fill the micro encoder's window."""
    reviews = [f"{n % 2},第{n}次{'送得很快' if n % 2 else '送得太慢'}{'味道很好' * 40}" for n in range(60)]
    (tmp_path / "data" / "Waimai").mkdir(parents=True)
    (tmp_path / "data" / "Waimai" / "waimai_10k.csv").write_text(
        "label,review\n" + "\n".join(reviews), "utf-8"
    )
    run = ("--steps", 1, "--rows", 2, "-k", 3, "--length", 4, "--intrinsic", 6)
    return ("--root", tmp_path / "data", "--cache", tmp_path / "cache", "--suite", "waimai", *run)


def test_a_bank_goes_on_with_its_own_shape_and_room_for_its_slots(
    base: Base, tmp_path: Path, data: tuple[object, ...]
) -> None:
    first = ("--depth", "shallow", "--gate", "hard", "--length", 5, "--out", tmp_path / "first")
    done = call("pretrain", base.path, *data, *first)
    assert done.exit_code == 0, done.exception
    shape = BankConfig(1, 3, 5, HIDDEN, 6, "add")  # shallow prompts are added where nothing else is said
    assert load_bank(tmp_path / "first" / "bank").bank.config == shape
    more = ("--start", tmp_path / "first" / "bank", "--out", tmp_path / "second")
    done = call("pretrain", base.path, *data, *more)
    assert done.exit_code == 0, done.exception
    bank = load_bank(tmp_path / "second" / "bank")
    assert bank.bank.config == shape and bank.routing.gate == "hard" and LAYERS > 1
    assert bank.facts["config"]["depth"] == "shallow"


def test_a_shallow_prefix_is_refused(base: Base, tmp_path: Path, data: tuple[object, ...]) -> None:
    wrong = ("--depth", "shallow", "--injection", "prefix", "--out", tmp_path / "out")
    refused = call("pretrain", base.path, *data, *wrong)
    assert isinstance(refused.exception, ConfigError) and "--injection prefix" in str(refused.exception)


@pytest.mark.parametrize("command", ["pretrain", "warm-up", "pretrain-poly"])
def test_wrong_numbers_are_told_before_data_is_prepared(
    base: Base, tmp_path: Path, data: tuple[object, ...], command: str
) -> None:
    options = [option for option in data if option not in ("-k", 3, "--length", 4, "--intrinsic", 6)]
    wrong = [("--steps", 0), ("--rows", 0)] + [("--splits", 5)] * (command == "pretrain-poly")
    if command != "pretrain-poly":
        wrong += [("--tokens", 0), ("--lr-head", -1)]
    for option in wrong:
        refused = call(command, base.path, *options, *option, "--out", tmp_path / "out")
        assert isinstance(refused.exception, ConfigError), refused.exception
        told = str(refused.exception).replace("learning rate of ", "lr-")
        assert option[0].strip("-") in told and not (tmp_path / "cache").exists()


def test_a_warm_up_tells_the_score_of_what_it_wrote(
    base: Base, tmp_path: Path, data: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = [{"step": 1.0, "score": 0.9}, {"step": 2.0, "score": 0.5}]
    made = Progressed(step=2, curve=curve)
    monkeypatch.setattr("mp2.training.multitask.warm_up", lambda *_: made)
    done = call("warm-up", Path(base.path) / "encoder", *data, "--out", tmp_path / "out")
    assert "step 2: dev 0.5000" in done.stderr, done.exception


def test_one_process_after_the_other_reads_the_texts_of_ppt(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def turn() -> Iterator[bool]:
        seen.append("turn")
        yield True
        seen.append("over")

    def build(*_: Any) -> None:
        seen.append("corpus")

    monkeypatch.setattr("mp2.runtime.one_after_the_other", turn)
    monkeypatch.setattr("mp2.training.ppt.pretrain_ppt", lambda *_, **__: micro_bank(base, "ppt", deep=False))
    # after the modules that take it by name were imported: they would keep the false one
    monkeypatch.setattr("mp2.training.corpus.build_corpus", build)
    call("pretrain-ppt", base.path, tmp_path / "t.txt", "--out", tmp_path / "out")
    assert seen == ["turn", "corpus", "over"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--mixture", "mlm=1,clooze=1"), "unknown objective 'clooze'; did you mean 'cloze'"),
        (("--mixture", "mlm=1,mlm=2"), "mixture: mlm stands twice"),
        (("--positions", 10), "a row has room for 10 tokens, a batch for 4096"),
        (("--lr", "nan"), "learning rate of the encoder: expected a number of at least 0, got nan"),
    ],
)
def test_what_no_step_one_can_be_is_told_before_texts_are_read(
    tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    (tmp_path / "t.txt").write_text("天气很好。我们出去走走。\n" * 40, encoding="utf-8")
    refused = call("pretrain-backbone", tmp_path / "t.txt", *options, "--out", tmp_path / "out")
    assert isinstance(refused.exception, ConfigError) and told in str(refused.exception)
    assert not (tmp_path / "out").exists()


def test_slots_that_leave_no_room_are_told_before_texts_are_read(base: Base, tmp_path: Path) -> None:
    refused = call("pretrain-ppt", base.path, tmp_path / "t.txt", "--length", 100, "--out", tmp_path / "out")
    assert isinstance(refused.exception, ConfigError) and "room for 28 tokens" in str(refused.exception)


def test_heads_must_divide_the_hidden_size(tmp_path: Path) -> None:
    wrong = ("--hidden", 10, "--heads", 3, "--out", tmp_path / "out")
    refused = call("pretrain-backbone", tmp_path / "t.txt", *wrong)
    assert isinstance(refused.exception, ConfigError)
    assert str(refused.exception) == "--hidden 10: expected a multiple of --heads 3"


def test_step_one_starts_as_one_of_three_or_from_a_folder(base: Base, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("天气很好。我们出去走走。\n" * 40, encoding="utf-8")
    run = ("pretrain-backbone", tmp_path / "t.txt", "--steps", 1, "--tokens", 128, "--out", tmp_path / "out")
    refused = call(*run, "--start", "position")
    assert isinstance(refused.exception, ConfigError) and "did you mean 'positions'" in str(refused.exception)
    encoder = Path(base.path) / "encoder"
    done = call(*run, "--start", encoder)
    assert done.exit_code == 0, done.exception
    assert Base(tmp_path / "out" / "encoder").backbone.depth == LAYERS
    assert str(encoder) not in (tmp_path / "out" / "encoder" / "training.json").read_text()


@pytest.mark.parametrize(
    "command", ["pretrain", "warm-up", "pretrain-poly", "pretrain-ppt", "pretrain-backbone"]
)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("rows")
    words = ("none", *(("none.txt",) if command == "pretrain-ppt" else ()))
    root = ("--root", tmp_path) if command in ("pretrain", "warm-up", "pretrain-poly") else ()
    refused = call(command, *words, *root, "--out", tmp_path / "file" / "x")
    assert isinstance(refused.exception, WriteError) and "file: expected a folder" in str(refused.exception)


def test_notes_in_a_base_that_is_replaced_are_not_lost(base: Base, tmp_path: Path) -> None:
    own = Path(shutil.copytree(base.path, tmp_path / "own"))
    (own / "notes.md").write_text("mine")
    parts = ("tiny", own / "encoder", own / "banks" / "deep", "-o", own, "--replace")
    refused = call("assemble", *parts, "--notes", own / "notes.md")
    assert isinstance(refused.exception, CheckpointError) and "would be lost" in str(refused.exception)
    assert (own / "notes.md").exists()


@pytest.mark.parametrize("notes", ["none.md", "gbk.md"])
def test_notes_that_cannot_be_read_are_told(base: Base, tmp_path: Path, notes: str) -> None:
    (tmp_path / "gbk.md").write_bytes("说明".encode("gbk"))
    parts = ("tiny", Path(base.path) / "encoder", Path(base.path) / "banks" / "deep", "-o", tmp_path / "out")
    refused = call("assemble", *parts, "--notes", tmp_path / notes)
    assert isinstance(refused.exception, ConfigError) and f"{notes}: cannot be read" in str(refused.exception)
    assert not (tmp_path / "out").exists()


def test_a_base_takes_the_place_of_a_base_only(base: Base, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    parts = ("tiny", Path(base.path) / "encoder", Path(base.path) / "banks" / "deep", "-o", tmp_path / "out")
    refused = call("assemble", *parts, "--replace")
    assert isinstance(refused.exception, CheckpointError) and (tmp_path / "out" / "mine.txt").exists()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path: Path, seed: int) -> None:
    out = ("--out", tmp_path / "out")
    for words in (("demo",), ("tune", "none.csv", *out), ("pretrain-ppt", "none", "none.txt", *out)):
        refused = call(*words, "--seed", seed)
        assert refused.exit_code == 2 and "--seed" in refused.stderr
    grid = ("--suite", "x", "--methods", "x", "--root", tmp_path, "--seeds", f"8,{seed}")
    refused = call("evaluate", *grid, *out)
    assert isinstance(refused.exception, ConfigError) and f"got {seed}" in str(refused.exception)


def test_a_tuning_or_an_answer_that_cannot_be_written_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "many" / "a").mkdir(parents=True)
    (tmp_path / "file").write_text("rows")
    refused = call("tune", "none.csv", "--out", tmp_path / "many", "--replace")
    assert isinstance(refused.exception, CheckpointError) and "not replaced" in str(refused.exception)
    for words in (("tune", "none.csv", "--out"), ("predict", "none", "text", "--output")):
        refused = call(*words, tmp_path / "file" / "x")
        assert isinstance(refused.exception, WriteError), refused.exception
    assert (tmp_path / "many" / "a").is_dir()
