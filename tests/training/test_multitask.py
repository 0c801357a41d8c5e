"""Steps 1, 1b and 2 and PPT on invented data: what moves, what is written, what comes together as a base."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import ElectraConfig, ElectraModel

from mp2.data.prepare import PreparedTask, prepare
from mp2.errors import CheckpointError, ConfigError, DataError
from mp2.model.checkpoint import Base, load_bank
from mp2.model.router import Routing
from mp2.runtime import write_json
from mp2.tasks import catalogue
from mp2.training.assemble import assemble
from mp2.training.backbone import (
    BackboneConfig,
    BackboneRun,
    EncoderShape,
    prepare_text,
    pretrain_backbone,
    shape_of,
    text_of,
)
from mp2.training.loop import LoopConfig, Trainer
from mp2.training.multitask import MultiTaskConfig, MultiTaskRun, pretrain_prompts, warm_up
from mp2.training.position_heads import add_position_heads
from mp2.training.ppt import pretrain_ppt
from tests.data.invented import rows_of, task, write_jsonl
from tests.micro import micro_bank, micro_tokenizer
from tests.training.invented import invented_texts, invented_tokenizer

FAMILIES = ("classification", "pair", "extraction")
SHORT = LoopConfig(steps=3, save_every=2, eval_every=2, log_every=1)
CONFIG = MultiTaskConfig(modules=3, length=4, intrinsic=6, rows=4, dev_rows=4, loop=SHORT)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, base: Base) -> dict[str, PreparedTask]:
    """Three invented tasks of three families, prepared for the micro base."""
    root = tmp_path_factory.mktemp("data")
    specs = []
    for family in FAMILIES:
        specs.append(task(family, family, suffix="jsonl"))
        for name, count in (("train", 60), ("test", 8)):
            write_jsonl(root / family / f"{name}.jsonl", rows_of(family, count))
    return prepare(specs, root, base.encoder(), root / "cache", splits=("train", "dev"), protect=[])


def _state(run: MultiTaskRun) -> dict[str, torch.Tensor]:
    assert run.bank is not None
    parts = {"backbone": run.base.backbone, "bank": run.bank, "head": run.head}
    found = {f"{name}.{k}": v.clone() for name, part in parts.items() for k, v in part.state_dict().items()}
    return found | {"router": run.router.detach().clone()}


@pytest.mark.parametrize("groups", [{"router": 0.1}, {"prompts": 0.1}, {"prompts": 0.1, "head": 0.1}])
def test_only_the_named_groups_move(
    base: Base, tasks: dict[str, PreparedTask], groups: dict[str, float]
) -> None:
    run = MultiTaskRun(base, tasks, replace(CONFIG, lr=groups))  # type: ignore[arg-type]
    before = _state(run)
    items = iter([(0, [0, 1]), (1, [0, 1]), (2, [0, 1])])
    Trainer(run.groups(), items, run.loss, LoopConfig(3)).fit()  # type: ignore[arg-type]
    after = _state(run)
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {{"prompts": "bank"}.get(name, name) for name in groups}


def test_a_bank_is_trained_written_and_resumed(
    base: Base, tasks: dict[str, PreparedTask], tmp_path: Path
) -> None:
    whole = pretrain_prompts(base, tasks, CONFIG, tmp_path / "whole")
    assert whole.tasks == FAMILIES and whole.router.shape == (3, 3, 3) and whole.base == base.fingerprint
    assert set(whole.facts["dev"]) == {"step", "score", *FAMILIES}
    assert whole.facts["curve"][-1] == (3, whole.facts["dev"]["score"]) and len(whole.facts["curve"]) == 2
    loaded = load_bank(tmp_path / "whole" / "bank")
    assert loaded.tasks == FAMILIES and loaded.bank.config == whole.bank.config
    cut = replace(CONFIG, loop=replace(SHORT, minutes=1e-9))
    for _ in range(3):
        bank = pretrain_prompts(base, tasks, cut, tmp_path / "cut")
    assert bank.fingerprint == whole.fingerprint and torch.equal(bank.router, whole.router)


def test_a_run_is_continued_with_its_own_settings_alone(
    base: Base, tasks: dict[str, PreparedTask], tmp_path: Path
) -> None:
    whole = pretrain_prompts(base, tasks, CONFIG, tmp_path)
    others: list[tuple[str, dict[str, Any]]] = [
        ("lr.prompts was 0.001, is now 0.5;", {"lr": CONFIG.lr | {"prompts": 0.5}}),
        (
            "routing.gate was 'soft', is now 'hard'; loss was 'span'",
            {"routing": Routing("hard"), "loss": "option"},
        ),
        ("depth was 'deep', is now 'shallow';", {"depth": "shallow", "injection": "add"}),
        ("seed was 42, is now 7;", {"seed": 7}),
    ]
    for told, changes in others:
        with pytest.raises(ConfigError, match=re.escape(told)):
            pretrain_prompts(base, tasks, replace(CONFIG, **changes), tmp_path)
    with pytest.raises(ConfigError, match="start was None, is now"):
        pretrain_prompts(base, tasks, CONFIG, tmp_path, start=load_bank(tmp_path / "bank"))
    with pytest.raises(ConfigError, match="tasks was"):
        pretrain_prompts(base, {name: tasks[name] for name in FAMILIES[::-1]}, CONFIG, tmp_path)
    other = Base(base.path)
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1)
    with pytest.raises(ConfigError, match=f"encoder was '{base.fingerprint}', is now"):
        pretrain_prompts(other, tasks, CONFIG, tmp_path)
    again = pretrain_prompts(base, tasks, replace(CONFIG, recompute=True), tmp_path)
    assert again.fingerprint == whole.fingerprint


def test_step_2_refuses_to_move_the_encoder(
    base: Base, tasks: dict[str, PreparedTask], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="keeps the encoder frozen"):
        pretrain_prompts(base, tasks, replace(CONFIG, lr={"backbone": 1e-3}), tmp_path)


def test_the_warm_up_moves_the_encoder_and_writes_it(
    base: Base, tasks: dict[str, PreparedTask], tmp_path: Path
) -> None:
    own = Base(base.path)
    warm_up(own, tasks, replace(CONFIG, depth=None, lr={"backbone": 1e-3, "head": 1e-3}), tmp_path)
    written = Base(tmp_path / "encoder")
    assert written.fingerprint != base.fingerprint
    assert base.fingerprint == Base(base.path).fingerprint != own.fingerprint


def test_a_warm_up_with_a_bank_writes_one_that_belongs_to_the_encoder_and_goes_on(
    base: Base, tasks: dict[str, PreparedTask], tmp_path: Path
) -> None:
    own = Base(base.path)
    rates = {"backbone": 1e-3, "head": 1e-3, "prompts": 1e-3, "router": 1e-2}
    warm_up(own, tasks, replace(CONFIG, lr=rates, bare=0.5), tmp_path / "warm")  # type: ignore[arg-type]
    written = Base(tmp_path / "warm" / "encoder")
    bank = written.bank(str(tmp_path / "warm" / "bank"))
    assert bank.base == written.fingerprint != base.fingerprint
    router, before = bank.router.clone(), bank.fingerprint
    more = replace(CONFIG, lr={"prompts": 1e-2}, modules=5)  # the shape is the bank's own
    after = pretrain_prompts(written, tasks, more, tmp_path / "more", start=bank)
    assert after.bank.config == bank.bank.config and after.fingerprint != before
    assert torch.equal(after.router, router)


def test_batches_without_prompts_leave_the_bank_alone(base: Base, tasks: dict[str, PreparedTask]) -> None:
    for bare, moved in ((1.0, False), (0.0, True)):
        config = replace(CONFIG, lr={"prompts": 0.1, "head": 0.1}, bare=bare)
        run = MultiTaskRun(base, tasks, config)
        before = _state(run)
        items = iter([(0, [0, 1]), (1, [2, 3])])
        Trainer(run.groups(), items, run.loss, LoopConfig(2)).fit()  # type: ignore[arg-type]
        after = _state(run)
        assert torch.equal(before["bank.z"], after["bank.z"]) is not moved
        assert not torch.equal(before["head.weight"], after["head.weight"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a card can be waited for")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("step", [1, 2])
def test_a_step_asks_a_card_for_nothing(base: Base, tasks: dict[str, PreparedTask], step: int) -> None:
    if step == 1:
        run: Any = BackboneRun(BackboneConfig(EncoderShape(1, 32, 1, 64, 16)), 50, device="cuda")
        items = iter([_masked_rows() for _ in range(3)])
    else:
        run = MultiTaskRun(Base(base.path, "cuda"), tasks, CONFIG)
        items = iter([(0, [0, 1]), (1, [2, 3]), (2, [4, 5])])
    groups, loop = run.groups(), LoopConfig(3)
    trainer = Trainer(groups, items, run.loss, loop, seed=1, device="cuda")  # type: ignore[arg-type]
    trainer.one_step()  # the libraries of a card wait when they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.one_step()
        trainer.one_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _masked_rows() -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Two rows; tokens 2 and 5 of the first and 1 of the second are asked for."""
    ids = np.random.default_rng(0).integers(1, 50, size=(2, 8))
    labels = np.full((2, 8), -100)
    labels[[0, 0, 1], [2, 5, 1]] = 7, 8, 9
    return list(zip(ids, labels, strict=True))


@pytest.mark.parametrize("padded", [True, False])
def test_masked_words_alone_are_asked_for(padded: bool) -> None:
    run = BackboneRun(BackboneConfig(EncoderShape(1, 32, 1, 64, 16)), 50)
    batch = _masked_rows()
    if padded:
        batch[0][0][-1] = run.pad_id
    loss, rows, tokens = run.loss(batch)
    ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
    words = run.masked(run.model.backbone(ids, ids != run.pad_id))
    expected = torch.nn.functional.cross_entropy(words.flatten(0, 1), labels.flatten())  # leaves out -100
    torch.testing.assert_close(loss / rows, expected)
    assert (rows, tokens) == (2, 16)


def test_from_raw_text_to_a_base(tmp_path: Path) -> None:
    invented_tokenizer().save_pretrained(str(tmp_path / "tokenizer"))
    (tmp_path / "text.txt").write_text("\n".join(invented_texts()) + "\n", encoding="utf-8")
    corpus, tokenizer, words = prepare_text([tmp_path / "text.txt"], tmp_path, 20_000, 32)
    with pytest.raises(ConfigError, match=rf"holds {len(tokenizer)} x 32 numbers, this run needs .* x 48"):
        prepare_text([tmp_path / "text.txt"], tmp_path, 20_000, 48)
    carried, _, same = prepare_text([], tmp_path, 20_000, 32)  # as on another machine, without the texts
    assert carried.meta == corpus.meta and np.array_equal(words, same)
    with pytest.raises(DataError, match=r"nothing/corpus: expected a folder of token files with meta.json"):
        prepare_text([], tmp_path / "nothing", 20_000, 32)
    shape = EncoderShape(layers=2, hidden=32, heads=2, ffn=64, positions=96)
    loop = LoopConfig(steps=4, save_every=2)
    config = BackboneConfig(shape, {"mlm": 0.5, "cloze": 0.5}, 1e-3, loop, tokens=512)
    run = tmp_path / "run"
    progress = pretrain_backbone(corpus, tokenizer, config, run, embeddings=words)
    assert progress.step == 4
    bare = Base(run / "encoder")
    loop = LoopConfig(2, save_every=2)
    ppt = pretrain_ppt(bare, corpus, loop, tmp_path / "ppt", length=4, tokens=512)
    with pytest.raises(ConfigError, match=r"holds another run: lr was 0.003, is now 0.5; choose"):
        pretrain_ppt(bare, corpus, loop, tmp_path / "ppt", length=4, tokens=512, lr=0.5)
    with pytest.raises(
        ConfigError, match=r"shape.ffn was 64, is now 96; lr was .*; vocabulary was 20000, is"
    ):
        other = replace(config, lr=0.5, shape=replace(shape, ffn=96), vocabulary=9_999)
        pretrain_backbone(corpus, tokenizer, other, run, embeddings=words)
    assert ppt.base == bare.fingerprint
    assert ppt.facts["config"]["tokens"] == 512 < ppt.facts["tokens"] <= 2 * 512
    made = assemble(
        "tiny", run / "encoder", [tmp_path / "ppt" / "bank"], tmp_path / "tiny", notes="About it."
    )
    assert (
        made.banks == ("ppt",)
        and made.bank("ppt").fingerprint == load_bank(tmp_path / "ppt" / "bank").fingerprint
    )
    assert "About it." in (tmp_path / "tiny" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match="exists already"):
        assemble("tiny", run / "encoder", [], tmp_path / "tiny")
    with pytest.raises(CheckpointError, match=r"two banks are named 'ppt': .*bank, .*bank; pre-train one"):
        assemble("twice", run / "encoder", [tmp_path / "ppt" / "bank"] * 2, tmp_path / "twice")


def test_a_base_gives_its_encoder_to_another(base: Base, tmp_path: Path) -> None:
    bank = Path(base.path) / "banks" / "deep"
    made = assemble("again", Path(base.path), [bank], tmp_path / "again")
    assert made.fingerprint == base.fingerprint and made.bank("deep").tasks == ("alpha", "beta")
    assert not (tmp_path / "again" / "encoder" / "banks").exists()


def test_what_no_base_can_be_made_of_is_told(base: Base, tmp_path: Path) -> None:
    encoder, bank = tmp_path / "encoder", micro_bank(base, "../away", deep=True)
    shutil.copytree(Path(base.path) / "encoder", encoder)
    bank.save(tmp_path / "bank")
    with pytest.raises(ConfigError, match=r"name of a bank: .* got '\.\./away'"):
        assemble("tiny", encoder, [tmp_path / "bank"], tmp_path / "tiny")
    (encoder / "training.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"training\.json: damaged"):
        assemble("tiny", encoder, [Path(base.path) / "banks" / "deep"], tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a"])
def test_a_bank_has_the_name_of_a_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="name of a bank: expected one that a folder can have, got"):
        MultiTaskConfig(name)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": 0}, "rows: expected at least 1, got 0"),
        ({"bare": 1.5}, "bare: expected 0 to 1, got 1.5"),
        ({"mix_options": float("nan")}, "mix_options: expected 0 to 1, got nan"),
        ({"size_exponent": float("inf")}, "size_exponent: expected 0 to 1, got inf"),
        ({"init_std": float("nan")}, "init_std: expected a number of at least 0, got nan"),
        ({"lr": {"head": float("nan")}}, "learning rate of head: expected a number"),
        ({"modules": 0}, "bank: modules: expected at least 1, got 0"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(CONFIG, **changes)


def test_a_tokenizer_of_other_texts_is_not_taken_for_these(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(invented_texts()) + "\n", encoding="utf-8")
    _, tokenizer, _ = prepare_text([text], tmp_path, 12_000, 16)
    assert len(prepare_text([text], tmp_path, 12_000, 16)[1]) == len(tokenizer)
    with pytest.raises(ConfigError, match="made from other texts or for another vocabulary"):
        prepare_text([text], tmp_path, 11_000, 16)
    text.write_text("又来了一篇。\n" * 50, encoding="utf-8")
    with pytest.raises(ConfigError, match="tokenizer: made from other texts"):
        prepare_text([text], tmp_path, 12_000, 16)
    text.unlink()
    with pytest.raises(DataError, match=r"expected text files, found none at .*text\.txt"):
        prepare_text([text], tmp_path, 12_000, 16)


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_step_one_goes_on_from_an_encoder(base: Base, tmp_path: Path, rate: float) -> None:
    start = Base(base.path)
    (tmp_path / "text.txt").write_text("\n".join(invented_texts()) + "\n", encoding="utf-8")
    corpus = text_of([tmp_path / "text.txt"], start.tokenizer, tmp_path)
    assert text_of([], start.tokenizer, tmp_path).meta == corpus.meta
    with pytest.raises(DataError, match="corpus: made with another tokenizer"):
        text_of([], invented_tokenizer(), tmp_path)
    config = BackboneConfig(
        shape_of(start), {"mlm": 0.5, "next": 0.5}, rate, LoopConfig(4), 512, start=start.fingerprint
    )
    begun = {key: value.clone() for key, value in start.model().state_dict().items()}
    pretrain_backbone(corpus, start.tokenizer, config, tmp_path / "run", base=start)
    assert (start.fingerprint == base.fingerprint) is (rate == 0)
    ended = Base(tmp_path / "run" / "encoder").model().state_dict()
    for key, value in begun.items():
        assert torch.equal(value.half().float(), ended[key]) is (rate == 0), key


def test_word_embeddings_narrower_than_the_layers_are_refused(tmp_path: Path) -> None:
    vocabulary = len(micro_tokenizer(tmp_path))
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    electra = ElectraModel(ElectraConfig(vocab_size=vocabulary, embedding_size=16, **shape))
    electra.save_pretrained(tmp_path)
    base, told = Base(tmp_path), "need.* word embeddings as wide as the layers, 32; got 16"
    with pytest.raises(ConfigError, match=told):
        shape_of(base)
    with pytest.raises(ConfigError, match=told):
        add_position_heads(base.backbone.whole[0], torch.Generator(), first=2)


def test_the_card_says_how_the_runs_went_and_whose_data_it_was(base: Base, tmp_path: Path) -> None:
    encoder, curve = tmp_path / "encoder", [(500, 0.25), (1000, 0.5)]
    shutil.copytree(Path(base.path) / "encoder", encoder)
    dev = {"step": 1000, "score": 0.5, "bq": 0.625, "of-my-own": 0.375}
    write_json(encoder / "training.json", {"steps": 1000, "dev": dev, "curve": curve})
    bank = micro_bank(base, "deep", deep=True)
    bank.facts = {"steps": 10, "dev": dev | {"bq": 0.75, "waimai": 0.5}, "curve": [(10, 0.5)]}
    bank.save(tmp_path / "bank")
    assemble("tiny", encoder, [tmp_path / "bank"], tmp_path / "tiny")
    lines = (tmp_path / "tiny" / "README.md").read_text(encoding="utf-8").splitlines()
    assert "| encoder, last run | 500: 0.250, 1,000: 0.500 |" in lines
    assert not any(line.startswith("| bank `deep` | 10:") for line in lines)  # one point is no curve
    licence = catalogue.get("bq").data.licence  # type: ignore[union-attr]
    assert [line for line in lines if line.startswith(("| task", "| bq", "| of-my-own"))] == [
        "| task | encoder, last run | bank `deep` | licence |",
        f"| bq | 0.625 | 0.750 | {licence} |",
        "| of-my-own | 0.375 | 0.375 |  |",
    ]


@pytest.mark.parametrize(("start", "place"), [("plain", 0.5), ("matching", 0.02), ("positions", 0.5)])
def test_the_start_decides_how_large_places_are_beside_words(start: str, place: float) -> None:
    words = np.random.default_rng(0).normal(size=(200, 64))
    config = BackboneConfig(EncoderShape(3, 64, 4, 128, 64), start=start)
    embeddings = BackboneRun(config, 200, embeddings=words).encoder.embeddings
    table, words_then = (
        part.weight.detach() for part in (embeddings.position_embeddings, embeddings.word_embeddings)
    )
    assert 0.5 * place < float(table.std() / words_then.std()) < 2 * place


def test_the_matching_start_attends_to_the_same_word() -> None:
    words = np.random.default_rng(0).normal(size=(50, 32))
    run = BackboneRun(BackboneConfig(EncoderShape(1, 32, 1, 64, 16)), 50, embeddings=words)
    attention = run.encoder.encoder.layer[0].attention.self
    hidden = run.model.backbone.embed(torch.tensor([[7, 9, 11, 7, 13]]))
    scores = attention.query(hidden) @ attention.key(hidden).transpose(1, 2)
    assert scores[0, 0].argsort(descending=True)[:2].sort().values.tolist() == [0, 3]
