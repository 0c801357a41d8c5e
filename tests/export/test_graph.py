from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mp2.errors import CheckpointError, ConfigError
from mp2.export.graph import INPUTS, export_onnx
from mp2.model.answer_length import AnswerLength
from mp2.model.answers import answer_rows
from mp2.model.checkpoint import Base, load_tokenizer, read_json, read_tensors
from mp2.model.label_vectors import stack
from mp2.model.mrc import MRCModel
from mp2.serving.predictor import Predictor
from mp2.tasks.render import render
from mp2.tasks.spec import load_task
from tests.micro import HIDDEN
from tests.serving.kit import PAIRS, REVIEWS, ROWS, TARGETS, adapter

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


class InRuntime(MRCModel):
    """The exported graph in the place of the model."""

    def __init__(self, base: Base, file: Path) -> None:
        super().__init__(base.backbone, base.head)
        self.session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        assert tuple(item.name for item in self.session.get_inputs()) == INPUTS

    def forward(self, batch, prompts, injection, heads, labels, **more):  # type: ignore[no-untyped-def]
        task = batch.prompt[batch.window_row]
        inputs = (batch.ids, batch.mask, prompts, *heads, labels, batch.token_option, task)
        given = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        return torch.from_numpy(self.session.run(None, given)[0])


@pytest.mark.parametrize("kind", ["router", "shallow"])
def test_onnxruntime_gives_the_same_answers(base: Base, tmp_path: Path, kind: str) -> None:
    tasks = {task.name: task for task in (REVIEWS, PAIRS, TARGETS)}
    made = {name: adapter(base, task, seed, kind) for seed, (name, task) in enumerate(tasks.items())}
    if kind == "router":
        made["pairs"] = adapter(base, PAIRS, 7, "prompts")  # with a head of its own
    made["targets"].answer_length = AnswerLength(0.7, 0.3)
    made["pairs"].tensors["labels"] = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(3))
    made["reviews"].label_offsets = tuple(0.5 * i for i in range(len(REVIEWS.labels)))
    export_onnx(base, made.items(), tmp_path / "onnx")
    assert len(load_tokenizer(tmp_path / "onnx")) == len(base.tokenizer)

    predictor = Predictor(base)
    asked = [(name, row) for name, task in tasks.items() for row in ROWS[task.family]]
    for name, item in made.items():
        predictor.add(name, item)
    expected = predictor.predict(asked)

    names = list(tasks)
    folders = [tmp_path / "onnx" / "tasks" / name for name in names]
    inputs = [read_tensors(item / "inputs.safetensors") for item in folders]
    prompts, weights, biases = (
        torch.stack([item[key] for item in inputs]) for key in ("prompts", "head_weight", "head_bias")
    )
    specs = {name: load_task(f / "task.yaml") for name, f in zip(names, folders, strict=True)}
    examples = [
        render(specs[name], {"text": row, "context": row} if isinstance(row, str) else row, labelled=False)
        for name, row in asked
    ]
    rows = base.encoder(4 if kind == "shallow" else 0)(examples)
    found = answer_rows(
        InRuntime(base, tmp_path / "onnx" / "encoder.onnx"),
        rows,
        [example.context for example in examples],
        [example.options for example in examples],
        prompts,
        which=[names.index(name) for name, _ in asked],
        heads=(weights, biases),
        labels=stack([item["labels"] for item in inputs]),
        lengths=[
            AnswerLength(**read_json(path)) if (path := folder / "answer_length.json").exists() else None
            for folder in folders
        ],
        offsets=[
            tuple(read_json(path).values()) if (path := folder / "label_offsets.json").exists() else ()
            for folder in folders
        ],
    )
    for file in ("answer_length.json", "label_offsets.json"):
        assert sum((folder / file).exists() for folder in folders) == 1
    for one, other in zip(expected, found, strict=True):
        assert one.answer.text == other.text and one.answer.span == other.span
        assert one.answer.probability == pytest.approx(other.probability, abs=1e-4)


def test_tasks_that_share_no_graph_are_refused(base: Base, tmp_path: Path) -> None:
    deep, shallow = adapter(base, REVIEWS, 1), adapter(base, REVIEWS, 1, "shallow")
    for wrong in ([("a", deep), ("b", shallow)], [], [("a", adapter(base, REVIEWS, 1, "head"))]):
        with pytest.raises(ConfigError, match="expected tasks"):
            export_onnx(base, wrong, tmp_path / "onnx")
    with pytest.raises(ConfigError, match="expected tasks of different names, got a twice"):
        export_onnx(base, [("a", deep), ("b", deep), ("a", deep)], tmp_path / "onnx")
    (tmp_path / "onnx").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        export_onnx(base, [("a", deep)], tmp_path / "onnx")
