"""Bases, banks and encoders on disk: weights are really loaded, damage and mix-ups are told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertModel, ElectraConfig, ElectraModel, ErnieConfig, ErnieModel

from mp2.errors import CheckpointError
from mp2.model.backbone import load_backbone
from mp2.model.checkpoint import DEFAULT_BASE, Base, fingerprint, load_base, save_encoder, write_manifest
from mp2.model.router import Routing
from mp2.tuning.adapter import Adapter, compose, load_adapter
from tests.data.invented import task
from tests.micro import HIDDEN, micro_bank, micro_base, micro_encoder, micro_tokenizer


def _copy(base: Base, target: Path) -> Path:
    return Path(shutil.copytree(base.path, target))


def test_backbone_weights_are_really_loaded(tmp_path: Path) -> None:
    tokenizer = micro_tokenizer(tmp_path / "e")
    encoder = micro_encoder(len(tokenizer), seed=11)
    save_encoder(tmp_path / "e", encoder, tokenizer)
    loaded = load_backbone(tmp_path / "e")
    for name, value in encoder.state_dict().items():
        mine = loaded.state_dict()[name.replace("encoder.layer", "layers")]
        torch.testing.assert_close(mine.float(), value.half().float(), msg=name)


def test_a_missing_weight_is_an_error_not_a_random_start(tmp_path: Path) -> None:
    tokenizer = micro_tokenizer(tmp_path)
    save_encoder(tmp_path, micro_encoder(len(tokenizer)), tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing .*encoder\.layer\.1\.output\.dense"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(("config", "model"), [(ElectraConfig, ElectraModel), (ErnieConfig, ErnieModel)])
def test_other_encoders_load_from_a_folder(tmp_path: Path, config: Any, model: Any) -> None:
    shape = config(
        vocab_size=90, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    encoder = model(shape)
    encoder.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert torch.equal(loaded.layers[1].output.dense.weight, encoder.encoder.layer[1].output.dense.weight)


@pytest.mark.parametrize("load", [load_base, load_backbone])
def test_a_name_that_is_neither_here_nor_on_the_hub_is_told(
    load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="no/such: neither a folder nor to be had from the hub"):
        load("no/such")


def test_a_model_without_layers_is_refused_with_the_supported_kinds(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertModel

    shape = AlbertConfig(
        vocab_size=50, hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=32
    )
    AlbertModel(shape).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected BERT, RoBERTa, ELECTRA, ERNIE or CPT"):
        load_backbone(tmp_path)


# -- CPT: exactly the keys of the hub's checkpoints (fnlp/cpt-large v1 and v2), with small numbers


def _cpt_state(encoder: BertModel, decoder_layers: int, positions: int) -> dict[str, Tensor]:
    hidden, vocabulary = HIDDEN, encoder.config.vocab_size
    state = {f"model.encoder.{key}": value.clone() for key, value in encoder.state_dict().items()}
    state["model.encoder.embeddings.position_ids"] = torch.arange(positions)[None]
    words = state["model.encoder.embeddings.word_embeddings.weight"]
    for name in ("model.shared.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        state[name] = words.clone()
    state["final_logits_bias"] = torch.zeros(1, vocabulary)
    state["model.decoder.embed_positions.weight"] = torch.randn(positions + 2, hidden)
    vectors = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    squares = [f"{a}.{p}_proj" for a in ("self_attn", "encoder_attn") for p in ("q", "k", "v", "out")]
    for layer in range(decoder_layers):
        start = f"model.decoder.layers.{layer}"
        for name in squares:
            state[f"{start}.{name}.weight"] = torch.randn(hidden, hidden)
            state[f"{start}.{name}.bias"] = torch.zeros(hidden)
        for name in vectors:
            state[f"{start}.{name}.weight"], state[f"{start}.{name}.bias"] = (
                torch.ones(hidden),
                torch.zeros(hidden),
            )
        state[f"{start}.fc1.weight"], state[f"{start}.fc1.bias"] = torch.randn(64, hidden), torch.zeros(64)
        state[f"{start}.fc2.weight"], state[f"{start}.fc2.bias"] = (
            torch.randn(hidden, 64),
            torch.zeros(hidden),
        )
    for name in ("weight", "bias"):
        state[f"model.decoder.layernorm_embedding.{name}"] = torch.ones(hidden)
    return state


@pytest.mark.parametrize(("vocabulary", "positions"), [(211, 512), (512, 1024)], ids=["v1", "v2"])
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_cpt_loads_from_the_hub_layout(
    tmp_path: Path, vocabulary: int, positions: int, container: str
) -> None:
    encoder = micro_encoder(vocabulary, positions=positions, seed=5)
    state = _cpt_state(encoder, 2, positions)
    config = {
        "architectures": ["CPTForConditionalGeneration"],
        "model_type": "bart",
        "vocab_size": vocabulary,
        "d_model": HIDDEN,
        "encoder_layers": 3,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64,
        "activation_dropout": 0.1,
        "attention_dropout": 0.1,
        "max_position_embeddings": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    if container == "safetensors":
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = load_backbone(tmp_path).eval()
    assert loaded.max_length == positions and loaded.depth == 3
    assert {p.dtype for p in load_backbone(tmp_path, dtype=torch.float16).parameters()} == {torch.float16}
    ids = torch.randint(5, vocabulary, (2, 7))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        expected = encoder(input_ids=ids, token_type_ids=torch.ones_like(ids)).last_hidden_state
        torch.testing.assert_close(loaded(ids, mask), expected, atol=1e-6, rtol=1e-6)
        zeros = encoder(input_ids=ids).last_hidden_state
        assert (expected - zeros).abs().max() > 1e-3
        loaded.whole[0].save_pretrained(str(tmp_path / "saved"))  # as a warm-up writes it: BERT, and no CPT
        again = load_backbone(tmp_path / "saved").eval()
        torch.testing.assert_close(again(ids, mask), expected, atol=1e-6, rtol=1e-6)


def test_a_cpt_checkpoint_with_a_layer_cut_out_is_refused(tmp_path: Path) -> None:
    state = _cpt_state(micro_encoder(211, positions=512), 1, 512)
    state = {key: value for key, value in state.items() if "encoder.layer.2.output.dense" not in key}
    config = {"architectures": ["CPTForConditionalGeneration"], "model_type": "bart", "d_model": HIDDEN}
    config |= {"encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="2 weights missing"):
        load_backbone(tmp_path)


def test_damage_that_no_manifest_tells_is_told(base: Base, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(Path(base.path) / "encoder", tmp_path / "e"))
    save_file({"weight": torch.zeros(2, 7), "bias": torch.zeros(2)}, folder / "head.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.safetensors: expected the span head .* width 32"):
        Base(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded"):
        Base(folder)
    for name in ("tokenizer.json", "vocab.txt"):  # transformers then makes a tokenizer that knows no word
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="no vocabulary for the tokenizer"):
        Base(folder)
    config = {"architectures": ["CPTForConditionalGeneration"], "model_type": "bart"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="the encoder could not be loaded"):
        load_backbone(folder)


# -- bases and banks -----------------------------------------------------------------------------


def test_a_base_comes_back_as_it_was_written(base: Base) -> None:
    again = Base(base.path)
    assert again.fingerprint == base.fingerprint and again.banks == ("deep", "shallow", "spot", "ppt")
    assert again.bank("deep").fingerprint == base.bank("deep").fingerprint
    assert again.bank("deep").tasks == ("alpha", "beta")


@pytest.mark.parametrize(
    "name", ["encoder/model.safetensors", "banks/deep/bank.safetensors", "encoder/tokenizer.json"]
)
def test_a_damaged_file_is_found_when_loading(base: Base, tmp_path: Path, name: str) -> None:
    folder = _copy(base, tmp_path / "b")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=rf"{name}: damaged"):
        Base(folder)


@pytest.mark.parametrize("change", [{"name": 3}, {"banks": "deep"}, {"banks": None}])
def test_a_manifest_without_a_name_or_banks_is_refused(
    base: Base, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = _copy(base, tmp_path / "b")
    facts = json.loads((folder / "mp2.json").read_text())
    for damaged in (facts | change, {key: facts[key] for key in facts.keys() - change.keys()}):
        (folder / "mp2.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match=r"mp2\.json: damaged: expected a 'name'"):
            Base(folder)


@pytest.mark.parametrize("files", [None, {}, ["a"]])
def test_a_manifest_that_names_no_file_is_refused(base: Base, tmp_path: Path, files: Any) -> None:
    folder = _copy(base, tmp_path / "b")
    facts = json.loads((folder / "mp2.json").read_text())
    (folder / "mp2.json").write_text(json.dumps({**facts, "files": files}))
    with pytest.raises(CheckpointError, match=r"mp2\.json: expected the sha256 of every file under 'files'"):
        Base(folder)


def test_a_truncated_bank_is_found_without_hashes_too(base: Base, tmp_path: Path) -> None:
    folder = _copy(base, tmp_path / "b") / "banks" / "deep"
    file = folder / "bank.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        base.bank(str(folder))


@pytest.mark.parametrize(
    ("part", "key", "valid"),
    [("routing", "gate", "soft"), ("routing", "combine", "mean"), ("config", "injection", "add")],
)
def test_a_bank_with_a_choice_that_is_none_is_refused(
    base: Base, tmp_path: Path, part: str, key: str, valid: str
) -> None:
    folder = Path(shutil.copytree(Path(base.path) / "banks" / "deep", tmp_path / "deep"))
    facts = json.loads((folder / "bank.json").read_text())
    facts[part][key] = "other"
    (folder / "bank.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=f"{folder}.*no {key} 'other'.*{valid}"):
        base.bank(str(folder))


def test_a_bank_with_more_tasks_than_routers_is_refused(base: Base, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(Path(base.path) / "banks" / "deep", tmp_path / "deep"))
    facts = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps(facts | {"tasks": [*facts["tasks"], "gamma"]}))
    with pytest.raises(CheckpointError, match="3 tasks and 2 routers"):
        base.bank(str(folder))


def test_what_lies_in_the_working_folder_does_not_hide_the_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / DEFAULT_BASE).mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_base().banks == ("deep", "shallow", "spot", "ppt")
    with pytest.raises(CheckpointError, match="no model in this folder"):  # named, a folder is what is meant
        load_base(DEFAULT_BASE)


@pytest.mark.parametrize(
    ("change", "lost", "told"),
    [
        ({"injection": "foo"}, (), "unknown injection; valid: prefix, add"),
        ({}, ("router",), "bank 'deep', but neither router nor prompts"),
        ({}, ("head.bias",), "its tensors do not fit: 'head.bias'"),
    ],
)
def test_an_adapter_that_lost_something_is_refused(
    base: Base, tmp_path: Path, change: dict[str, Any], lost: tuple[str, ...], told: str
) -> None:
    tensors = {
        "router": torch.zeros(base.bank("deep").router.shape[1:]),
        **base.head.state_dict(prefix="head."),
    }
    whole = Adapter(
        task("classification"), "mp2-deep-gd", base.name, base.fingerprint, "deep",
        base.bank_fingerprint("deep"), "prefix", tensors,
    )  # fmt: skip
    compose(whole, base)
    whole.tensors = {name: value for name, value in tensors.items() if name not in lost}
    whole.save(tmp_path / "a")
    facts = json.loads((tmp_path / "a" / "adapter.json").read_text())
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(facts | change))
    with pytest.raises(CheckpointError, match=told):
        compose(load_adapter(tmp_path / "a"), base)


def test_an_unknown_bank_names_the_nearest(base: Base) -> None:
    with pytest.raises(CheckpointError, match="no bank 'deap'; did you mean 'deep'"):
        base.bank("deap")


def test_a_bank_of_another_base_is_refused_with_both_names(base: Base, tmp_path: Path) -> None:
    other = micro_base(tmp_path / "other", layers=2)
    micro_bank(other, "deep", deep=True).save(tmp_path / "bank")
    with pytest.raises(
        CheckpointError, match=f"belongs to base {other.fingerprint}, but micro is {base.fingerprint}"
    ):
        base.bank(str(tmp_path / "bank"))


def test_routing_counts_in_a_banks_fingerprint_where_it_changes_answers(base: Base) -> None:
    bank = micro_bank(base, "deep", deep=True)
    others = [Routing("hard"), Routing(combine="mean"), Routing("hard", "mean")]
    found = {replace(bank, routing=routing).fingerprint for routing in (Routing(), *others)}
    assert len(found) == 4
    # as before routing counted, so that adapters and records of the usual one keep their bank
    weights = {**bank.bank.state_dict(), **{f"head.{k}": v for k, v in bank.head.state_dict().items()}}
    assert bank.fingerprint == fingerprint(weights)
    assert replace(bank, routing=Routing(temperature=0.5)).fingerprint == bank.fingerprint


def test_an_adapter_is_refused_by_the_same_prompts_with_other_gates(base: Base, tmp_path: Path) -> None:
    bank, name = micro_bank(base, "deep", deep=True), str(tmp_path / "bank")
    router, injection = torch.zeros(bank.router.shape[1:]), bank.bank.config.injection
    facts = ("mp2-deep-gd-router", base.name, base.fingerprint, name, bank.fingerprint, injection)
    adapter = Adapter(task("waimai", "classification"), *facts, {"router": router})
    for routing in (Routing(), Routing("hard")):
        replace(bank, routing=routing).save(Path(name), dtype=torch.float32)
        if routing == Routing():
            assert compose(adapter, Base(base.path)).prompts is not None
    with pytest.raises(CheckpointError, match=r"belongs to bank .*, not to this one"):
        compose(adapter, Base(base.path))


def test_a_bare_encoder_folder_is_a_base_without_banks(base: Base) -> None:
    bare = load_base(Path(base.path) / "encoder")
    assert bare.banks == () and bare.fingerprint == base.fingerprint


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_base(tmp_path / "nowhere")


def test_a_folder_without_a_model_is_told_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no model in this folder: expected mp2\.json .* or config\.json"
    ):
        load_base(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]", "null", "[]"])
def test_a_file_that_holds_no_object_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter\.json: damaged: expected a JSON object, got"):
        load_adapter(tmp_path)


def test_a_bank_takes_the_place_of_a_bank_only(base: Base, tmp_path: Path) -> None:
    bank = micro_bank(base, "deep", deep=True)
    for _ in range(2):
        bank.save(tmp_path / "banks" / "deep")
    with pytest.raises(CheckpointError, match=r"not replaced: expected a folder with a file bank\.json"):
        bank.save(tmp_path / "banks")
    assert {file.name for file in (tmp_path / "banks" / "deep").iterdir()} == {
        "bank.json",
        "bank.safetensors",
    }


def test_a_manifest_lists_every_file(base: Base, tmp_path: Path) -> None:
    folder = _copy(base, tmp_path / "b")
    (folder / "banks" / "extra.txt").write_text("x")
    write_manifest(folder, "b", [])
    assert "banks/extra.txt" in json.loads((folder / "mp2.json").read_text())["files"]
