from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from mp2.errors import CheckpointError
from mp2.export.hub import adapter_from_pretrained, base_from_pretrained, fetch, model_card, push_to_hub
from mp2.model.checkpoint import Base, load_base
from mp2.serving.predictor import Predictor
from mp2.tasks.spec import TaskSpec
from mp2.training.assemble import assemble
from tests.local_hub import local_hub
from tests.serving.kit import PAIRS, REVIEWS, TARGETS, adapter

FILE = "{repo_id}/resolve/{revision}/{filename}"
OPTIONS = TaskSpec(name="options", family="choice", template="{question}", options=("a", "b"))


def test_an_adapter_goes_to_a_hub_and_comes_back(base: Base, tmp_path: Path) -> None:
    made = adapter(base, REVIEWS, 1)
    made.facts["held_back"] = {"value": 0.75, "count": 8}
    made.save(tmp_path / "reviews")
    (tmp_path / "reviews" / "unsafe.bin").write_bytes(b"not sent")
    with local_hub(tmp_path / "hub") as address:
        link = push_to_hub(tmp_path / "reviews", "anna/reviews", token="hf_test", endpoint=address)
        assert link.startswith(f"{address}/anna/reviews/commit/")
        sent = {file.name for file in (tmp_path / "hub" / "anna" / "reviews").iterdir()}
        assert (tmp_path / "hub" / "anna" / "reviews" / "visibility").read_text() == "private"
        assert sent - {"visibility"} == {"README.md", "adapter.json", "adapter.safetensors", "task.yaml"}
        back = adapter_from_pretrained("anna/reviews", cache=tmp_path / "cache", endpoint=address)
        with pytest.raises(CheckpointError, match="anna/none"):
            fetch("anna/none", cache=tmp_path / "cache", endpoint=address)
    with pytest.raises(CheckpointError, match="did not take it"):  # nobody listens there any more
        push_to_hub(tmp_path / "reviews", "anna/reviews", token="hf_test", endpoint=address)
    assert back.task == REVIEWS and torch.equal(back.tensors["router"], made.tensors["router"])
    assert not (tmp_path / "reviews" / "README.md").exists()  # the user's folder stays as it was
    card = ModelCard.load(tmp_path / "hub" / "anna" / "reviews" / "README.md")
    assert card.data.language == "zh" and card.data.library_name == "mp2"
    assert f'Predictor("{base.name}")' in card.text
    assert 'adapter_from_pretrained("anna/reviews")' in card.text
    assert "0.750 of 8" in card.text and "好，坏，一般" in card.text and base.fingerprint in card.text


def test_a_base_in_the_hubs_layout_is_loaded_by_name(base: Base, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base.path, copy)
    with local_hub(tmp_path / "hub") as address:
        push_to_hub(copy, "anna/micro", token="hf_test", endpoint=address)
        back = base_from_pretrained("anna/micro", cache=tmp_path / "cache", endpoint=address)
    assert back.fingerprint == base.fingerprint and back.banks == base.banks
    sent = (tmp_path / "hub" / "anna" / "micro" / "README.md").read_text(encoding="utf-8")
    assert "deep, shallow" in sent and 'base_from_pretrained("anna/micro")' in sent
    predictor = Predictor(back)
    predictor.add("reviews", adapter(base, REVIEWS, 1))
    assert predictor.predict([("reviews", "好")])[0].answer.text in REVIEWS.labels


def test_bases_and_encoders_with_a_head_load_by_hub_name(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    shutil.copytree(base.path, hub / "anna" / "micro")
    shutil.copytree(base.source, hub / "anna" / "bare")
    with local_hub(hub) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{FILE}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        whole, bare = load_base("anna/micro"), load_base("anna/bare")
        made = assemble("again", Path("anna/bare"), [Path(base.path) / "banks" / "deep"], tmp_path / "again")
    assert whole.banks == base.banks and whole.fingerprint == bare.fingerprint == base.fingerprint
    assert whole.bank("deep").fingerprint == base.bank("deep").fingerprint == made.bank("deep").fingerprint
    for head in (whole.head, bare.head, made.head):
        assert torch.equal(head.weight, base.head.weight)
    with pytest.raises(CheckpointError, match="no bank"):
        bare.bank("deep")


@pytest.mark.parametrize(
    ("task", "answers", "row"),
    [
        (TARGETS, "a span of the text", '"..."'),
        (PAIRS, "矛盾，相似", '{"text1": "...", "text2": "..."}'),
        (OPTIONS, "one of the row's options", '{"question": "...", "a": "... 1", "b": "... 2"}'),
    ],
)
def test_the_card_asks_as_the_task_is_asked(
    base: Base, tmp_path: Path, task: TaskSpec, answers: str, row: str
) -> None:
    adapter(base, task, 1).save(tmp_path / "some")
    card = model_card(tmp_path / "some", "anna/some")
    assert f"| answers | {answers} |" in card and f'predict([("{task.name}", {row})])' in card
    predictor = Predictor(base)
    predictor.add(task.name, adapter_from_pretrained(str(tmp_path / "some")))
    assert predictor.predict([(task.name, json.loads(row))])[0].answer.text


def test_a_local_folder_is_its_own_answer(base: Base, tmp_path: Path) -> None:
    adapter(base, REVIEWS, 1).save(tmp_path / "reviews")
    assert adapter_from_pretrained(str(tmp_path / "reviews")).task == REVIEWS
    with pytest.raises(CheckpointError, match="neither an adapter"):
        model_card(tmp_path, "anna/reviews")
