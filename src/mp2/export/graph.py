"""Encoder and span head as one ONNX graph whose prompts and heads are inputs: one graph for all tasks.

    encoder.onnx            ids, mask, prompts, heads, vectors of label words, label of each token, task of
                            each window -> start and end logits
    tokenizer...            the base's tokenizer
    tasks/<name>/           task.yaml and inputs.safetensors (prompts, head_weight, head_bias, labels); where
                            answers are spans also answer_length.json (``mp2.model.answer_length``), where
                            they are labels label_offsets.json (``mp2.model.label_offsets``)

Decides the names and axes of inputs. Turning text into windows and logits into answers stays with
``mp2.data.encode`` and ``mp2.model.spans``.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from mp2.errors import ConfigError
from mp2.model.attention import Prefix
from mp2.model.backbone import Backbone
from mp2.model.bank import Injection, slots_of
from mp2.model.checkpoint import Base
from mp2.model.label_vectors import added_states
from mp2.model.mrc import SpanHead
from mp2.runtime import whole_folder, write_json, write_whole
from mp2.tasks.infer import dump_task
from mp2.tuning.adapter import Adapter, answer_files, compose

INPUTS = ("ids", "mask", "prompts", "head_weight", "head_bias", "labels", "option", "task")
OPSET = 18


class Graph(nn.Module):
    """The forward of :class:`mp2.model.mrc.MRCModel` without a decision that depends on data.

    Args:
        backbone: The encoder.
        injection: How prompts enter a layer.
    """

    def __init__(self, backbone: Backbone, injection: Injection) -> None:
        super().__init__()
        self.backbone, self.injection = backbone, injection

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        prompts: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        labels: Tensor,
        option: Tensor,
        task: Tensor,
    ) -> Tensor:
        """Start and end logits ``(B, T, 2)``.

        Args:
            ids: ``(B, T)`` int64.
            mask: ``(B, T)`` bool.
            prompts: ``(N, L, P, H)``.
            head_weight: ``(N, 2, H)``.
            head_bias: ``(N, 2)``.
            labels: ``(N, C, H)`` vectors of the label words; zeros for none.
            option: ``(B, T)`` int64, index of the label that a token is part of, -1 for none.
            task: ``(B,)`` int64, which of the N tasks each window belongs to.
        """
        added = added_states(option, task, labels)
        run = self._prefix if self.injection == "prefix" else self._add
        hidden = run(ids, mask, added, prompts, task)
        return torch.baddbmm(head_bias[task][:, None], hidden, head_weight[task].transpose(1, 2))

    def _prefix(self, ids: Tensor, mask: Tensor, added: Tensor, prompts: Tensor, task: Tensor) -> Tensor:
        hidden = self.backbone.embed(ids) + added
        seen = torch.ones_like(prompts[:, 0, :, 0], dtype=torch.bool)[task]  # (B, P)
        keys = torch.cat([seen, mask], dim=1)[:, None, None, :]
        for index, layer in enumerate(self.backbone.layers):
            output = layer(hidden, keys, prefix=Prefix(prompts[:, index], task))
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def _add(self, ids: Tensor, mask: Tensor, added: Tensor, prompts: Tensor, task: Tensor) -> Tensor:
        # as Backbone.with_slots does, without len(), which would fix the number of windows in the graph
        length = prompts.shape[2]
        slots = ids.new_full((ids.shape[0], length), self.backbone.slot_id)
        ids = torch.cat([ids[:, :1], slots, ids[:, 1:]], dim=1)
        mask = torch.cat([mask[:, :1], torch.ones_like(slots, dtype=torch.bool), mask[:, 1:]], dim=1)
        added = torch.cat([added[:, :1], torch.zeros_like(prompts[:, 0])[task], added[:, 1:]], dim=1)
        hidden, keys = self.backbone.embed(ids) + added, mask[:, None, None, :]
        for index, layer in enumerate(self.backbone.layers):
            if index < prompts.shape[1]:
                filled = hidden[:, 1 : 1 + length] + prompts[:, index][task]
                hidden = torch.cat([hidden[:, :1], filled, hidden[:, 1 + length :]], dim=1)
            output = layer(hidden, keys)
            hidden = output[0] if isinstance(output, tuple) else output
        return torch.cat([hidden[:, :1], hidden[:, 1 + length :]], dim=1)


def export_onnx(
    base: Base, adapters: Iterable[tuple[str, Adapter]], folder: Path, *, replace: bool = False
) -> None:
    """Write a base and some of its tasks, whole or not at all.

    Args:
        base: The base.
        adapters: Name and adapter of each task; all with prompts of one shape.
        folder: Where to write.
        replace: Whether an existing folder is replaced.

    Raises:
        ConfigError: The tasks do not share a graph or have one name, there is none, or onnx is not installed.
        CheckpointError: An adapter belongs to another base, or the folder exists.
    """
    composed = [(name, adapter, compose(adapter, base)) for name, adapter in adapters]
    counts = Counter(name for name, _, _ in composed)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(f"expected tasks of different names, got {', '.join(twice)} twice; rename a folder")
    kinds = {(c.injection, None if c.prompts is None else tuple(c.prompts.shape)) for _, _, c in composed}
    fits = [
        c.prompts is not None and c.backbone is base.backbone and isinstance(c.head, SpanHead)
        for _, _, c in composed
    ]
    if len(kinds) != 1 or not all(fits):
        names = ", ".join(f"{name} ({adapter.method})" for name, adapter, _ in composed) or "none"
        raise ConfigError(
            f"expected tasks that share the base's encoder and one kind and shape of prompts, got {names}"
        )
    with whole_folder(folder, replace=replace, kind="encoder.onnx") as aside:
        first = composed[0][2]
        assert first.prompts is not None
        write_graph(base.backbone, first.prompts, first.injection, aside / "encoder.onnx")
        base.tokenizer.save_pretrained(str(aside))
        for name, adapter, ready in composed:
            assert ready.prompts is not None
            vectors = ready.labels
            if vectors is None:
                vectors = ready.prompts.new_zeros(max(1, len(adapter.task.labels)), ready.prompts.shape[-1])
            inputs = {
                "prompts": ready.prompts,
                "head_weight": ready.head.weight,
                "head_bias": ready.head.bias,
                "labels": vectors,
            }
            (aside / "tasks" / name).mkdir(parents=True)
            save_file(
                {key: value.detach().cpu().contiguous().clone() for key, value in inputs.items()},
                aside / "tasks" / name / "inputs.safetensors",
            )
            write_whole(aside / "tasks" / name / "task.yaml", dump_task(adapter.task))
            for file, content in answer_files(adapter).items():
                write_json(aside / "tasks" / name / file, content)


def write_graph(backbone: Backbone, prompts: Tensor, injection: Injection, file: Path) -> None:
    """Trace the forward and write it as one ONNX file.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ConfigError("onnx is not installed: pip install 'mp2[export]'") from None
    layers, length, hidden = prompts.shape
    device = prompts.device
    example: dict[str, Tensor] = {
        "ids": torch.ones(3, 11, dtype=torch.long, device=device),
        "mask": torch.ones(3, 11, dtype=torch.bool, device=device),
        "prompts": torch.zeros(2, layers, length, hidden, device=device),
        "head_weight": torch.zeros(2, 2, hidden, device=device),
        "head_bias": torch.zeros(2, 2, device=device),
        "labels": torch.zeros(2, 3, hidden, device=device),
        "option": torch.ones(3, 11, dtype=torch.long, device=device),
        "task": torch.tensor([0, 1, 1], device=device),
    }
    most = backbone.max_length - slots_of(injection, length)
    # [CLS], a token and [SEP] at least: what comes after [CLS] must be seen to be no axis of length 1
    windows, tasks, tokens = Dim("windows"), Dim("tasks"), Dim("tokens", min=3, max=most)
    labels = Dim("labels")
    axes: dict[str, dict[int, Any]] = {
        "ids": {0: windows, 1: tokens},
        "mask": {0: windows, 1: tokens},
        "prompts": {0: tasks},
        "head_weight": {0: tasks},
        "head_bias": {0: tasks},
        "labels": {0: tasks, 1: labels},
        "option": {0: windows, 1: tokens},
        "task": {0: windows},
    }
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter warns of its own parts
            torch.onnx.export(
                Graph(backbone, injection).eval(),
                (),
                str(file),
                kwargs=example,
                input_names=list(INPUTS),
                output_names=["logits"],
                dynamic_shapes=axes,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        noisy.setLevel(level)
