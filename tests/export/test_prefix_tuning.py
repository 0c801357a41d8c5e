from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mp2.errors import CheckpointError, ConfigError
from mp2.export.prefix_tuning import export_peft
from mp2.model.answer_length import AnswerLength
from mp2.model.backbone import Prompts
from mp2.model.checkpoint import Base, read_json, read_tensors, save_encoder
from mp2.tuning.adapter import Adapter, compose
from tests.micro import HIDDEN, micro_encoder, micro_tokenizer
from tests.serving.kit import REVIEWS, TARGETS, adapter

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft with transformers 5
@pytest.mark.parametrize("kind", ["router", "prompts"])
def test_peft_computes_the_same_hidden_states(base: Base, tmp_path: Path, kind: str) -> None:
    made = adapter(base, REVIEWS, 3, kind)
    export_peft(made, base, tmp_path / "peft")
    encoder = transformers.AutoModel.from_pretrained(
        peft.PeftConfig.from_pretrained(str(tmp_path / "peft")).base_model_name_or_path, dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(encoder, str(tmp_path / "peft")).eval()

    composed = compose(made, base)
    assert composed.prompts is not None
    ids = torch.randint(5, 300, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(17)[None] < torch.tensor([[17], [9], [4]])
    ours = base.backbone(ids, mask, Prompts(composed.prompts[None]))
    positions = torch.arange(17)[None] - composed.prompts.shape[1]
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).last_hidden_state
    assert torch.allclose(ours[mask], theirs[mask], atol=1e-5)
    assert not torch.allclose(ours[mask], base.backbone(ids, mask)[mask], atol=1e-2)  # the prefix matters

    head = read_tensors(tmp_path / "peft" / "head.safetensors")
    assert torch.equal(head["weight"], composed.head.weight)
    assert "- 4" in (tmp_path / "peft" / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_positions_of_roberta_begin_after_its_padding(tmp_path: Path) -> None:
    tokenizer = micro_tokenizer(tmp_path / "encoder")
    shape = micro_encoder(len(tokenizer)).config.to_dict()
    wanted = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = transformers.RobertaConfig(**{key: shape[key] for key in wanted}, max_position_embeddings=130)
    encoder = transformers.RobertaModel(config, add_pooling_layer=False)
    save_encoder(tmp_path / "encoder", encoder, tokenizer, dtype=torch.float32)
    base = Base(tmp_path / "encoder")
    prompts = torch.randn(base.backbone.depth, 4, base.backbone.hidden_size)
    made = Adapter(
        REVIEWS, "made", base.name, base.fingerprint, None, "", "prefix", {"prompts": prompts}
    )  # fmt: skip
    export_peft(made, base, tmp_path / "peft")
    text = (tmp_path / "peft" / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^positions = (.*)$", text, re.MULTILINE)
    ids = torch.randint(5, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    model = peft.PeftModel.from_pretrained(encoder.eval(), str(tmp_path / "peft")).eval()
    positions = eval(line, {"torch": torch, "ids": ids})
    mask = torch.ones_like(ids)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    torch.testing.assert_close(base.backbone(ids, mask.bool(), Prompts(prompts[None])), theirs)


def test_the_length_of_answers_comes_along(base: Base, tmp_path: Path) -> None:
    made = adapter(base, TARGETS, 3)
    export_peft(made, base, tmp_path / "without")
    assert not (tmp_path / "without" / "answer_length.json").exists()
    made.answer_length = AnswerLength(0.7, 0.3)
    export_peft(made, base, tmp_path / "with")
    assert AnswerLength(**read_json(tmp_path / "with" / "answer_length.json")) == made.answer_length
    assert "(log n - m)^2" in (tmp_path / "with" / "README.md").read_text(encoding="utf-8")


def test_the_offsets_of_labels_come_along(base: Base, tmp_path: Path) -> None:
    made = adapter(base, REVIEWS, 3)
    made.label_offsets = tuple(0.5 * i for i in range(len(REVIEWS.labels)))
    export_peft(made, base, tmp_path / "peft")
    found = read_json(tmp_path / "peft" / "label_offsets.json")
    assert found == dict(zip(REVIEWS.labels, made.label_offsets, strict=True))
    assert "label_offsets.json" in (tmp_path / "peft" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["shallow", "head", "backbone"])
def test_what_peft_cannot_hold_is_refused(base: Base, tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="deep prompt"):
        export_peft(adapter(base, REVIEWS, 3, kind), base, tmp_path / "peft")
    assert not list(tmp_path.iterdir())


def test_vectors_of_label_words_have_no_place_in_it(base: Base, tmp_path: Path) -> None:
    made = adapter(base, REVIEWS, 3)
    made.tensors["labels"] = torch.ones(3, HIDDEN)
    with pytest.raises(ConfigError, match="label words have vectors of their own"):
        export_peft(made, base, tmp_path / "peft")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_overwritten(base: Base, tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        export_peft(adapter(base, REVIEWS, 3), base, tmp_path / "peft")
    export_peft(adapter(base, REVIEWS, 3), base, tmp_path / "peft", replace=True)
    assert (tmp_path / "peft" / "adapter_model.safetensors").exists()
