"""An adapter: what one task needs beside the base, as a small folder.

    adapter.json            base, bank, method, seed, scores, curve, fingerprints
    adapter.safetensors     router logits, or composed prompts and head, or an encoder (model tuning)
    task.yaml               the task file

Loading it on another base or bank is refused with both names.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from mp2.data.encode import Encoded
from mp2.errors import CheckpointError, ConfigError, Where, first_line, nearest
from mp2.model.answer_length import AnswerLength
from mp2.model.answers import Answer, answer_rows
from mp2.model.backbone import Backbone
from mp2.model.bank import Injection, slots_of
from mp2.model.checkpoint import DEFAULT_BASE, Base, read_json, read_tensors
from mp2.model.label_offsets import LabelOffsets
from mp2.model.low_rank import add_pairs
from mp2.model.mrc import MRCModel, SpanHead
from mp2.model.probe import ProbeHead
from mp2.model.router import router_weights
from mp2.runtime import whole_folder, write_json, write_whole
from mp2.tasks.infer import dump_task
from mp2.tasks.render import MRCExample
from mp2.tasks.spec import TaskSpec, load_task

BY_PLACE = {"labels", "probe.weight"}  # tensors that know a label by its place among all


@dataclass(slots=True)
class Adapter:
    """One tuned task.

    Attributes:
        task: The task.
        method: Name of the method.
        base: Name of the base it was tuned on; ``base_fingerprint`` is the hash of its weights.
        bank: Name of the bank in its base, or the folder of another, or None; ``bank_fingerprint`` likewise.
        injection: How its prompts enter a layer.
        tensors: ``router (L, K)``; or ``prompts (L, P, H)``; ``head.*`` or ``probe.*``; ``backbone.*``;
            low-rank updates ``lora.*``; vectors of the label words ``labels (C, H)``.
        facts: Seed, scores, curve, seconds, versions.
        answer_length: Length of the task's answers, where they are spans.
        label_offsets: What is added to the scores of its labels, where it has any.
    """

    task: TaskSpec
    method: str
    base: str
    base_fingerprint: str
    bank: str | None
    bank_fingerprint: str
    injection: Injection
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    answer_length: AnswerLength | None = None
    label_offsets: LabelOffsets = ()

    def save(self, folder: Path, *, replace: bool = False) -> None:
        """Write the adapter, whole or not at all.

        Raises:
            CheckpointError: The folder exists and ``replace`` is false, or it is no adapter.
            WriteError: It cannot be written.
        """
        with whole_folder(folder, replace=replace, kind="adapter.json") as aside:
            tensors = {key: value.detach().contiguous().cpu() for key, value in self.tensors.items()}
            save_file(tensors, aside / "adapter.safetensors")
            write_whole(aside / "task.yaml", dump_task(self.task))
            write_json(
                aside / "adapter.json",
                {
                    "method": self.method,
                    "base": self.base,
                    "base_fingerprint": self.base_fingerprint,
                    "bank": self.bank,
                    "bank_fingerprint": self.bank_fingerprint,
                    "injection": self.injection,
                    "answer_length": self.answer_length and asdict(self.answer_length),
                    "labels": list(self.task.labels) if BY_PLACE & self.tensors.keys() else [],
                    "label_offsets": labelled_offsets(self),
                    "facts": self.facts,
                },
            )


def load_adapter(folder: Path | str) -> Adapter:
    """Read an adapter.

    Raises:
        CheckpointError: Absent or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such adapter folder")
    place = folder / "adapter.json"
    facts = read_json(place)
    try:
        task, tensors = load_task(folder / "task.yaml"), read_tensors(folder / "adapter.safetensors")
        if not isinstance(facts["facts"], dict):
            raise CheckpointError(f"{place}: facts: expected keys with values")
        if facts["injection"] not in get_args(Injection):
            valid = nearest(facts["injection"], get_args(Injection))
            raise CheckpointError(f"{place}: unknown injection; {valid}")
        if facts["bank"] is not None and not {"router", "prompts"} & tensors.keys():
            lacking = "neither router nor prompts are in adapter.safetensors"
            raise CheckpointError(f"{place}: bank {facts['bank']!r}, but {lacking}")
        if BY_PLACE & tensors.keys():
            _check_places(facts.get("labels", list(task.labels)), task.labels, place)
        return Adapter(
            task,
            facts["method"],
            facts["base"],
            facts["base_fingerprint"],
            facts["bank"],
            facts["bank_fingerprint"],
            facts["injection"],
            tensors,
            facts["facts"],
            _answer_length(facts.get("answer_length"), place),
            _label_offsets(facts.get("label_offsets"), task.labels, place),
        )
    except KeyError as error:
        raise CheckpointError(f"{place}: key {error} is missing") from error


def _answer_length(value: Any, path: Path) -> AnswerLength | None:
    if value is None:
        return None
    try:
        found = AnswerLength(float(value["mean"]), float(value["deviation"]))
    except (TypeError, KeyError, ValueError):
        found = AnswerLength(0.0, 0.0)
    if not (math.isfinite(found.mean) and 0 < found.deviation < math.inf):
        raise CheckpointError(
            f"{Where(path)}: answer_length: expected a mean and a deviation above 0, got {value!r}"
        )
    return found


def _label_offsets(value: Any, labels: Sequence[str], path: Path) -> LabelOffsets:
    """In the order of the labels. A label that was reworded since keeps its place, and with it its number."""
    if value is None or value == {}:
        return ()
    if isinstance(value, dict) and _in_place(list(value), labels):
        value = dict(zip(labels, value.values(), strict=True))
    fits = isinstance(value, dict) and value.keys() == set(labels)
    if not fits or not all(type(number) is float and math.isfinite(number) for number in value.values()):
        raise CheckpointError(
            f"{Where(path)}: label_offsets: expected a number for each of {'，'.join(labels) or 'no labels'},"
            f" got {value!r}"
        )
    return tuple(value[label] for label in labels)


def _in_place(words: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether label words of before are those of now: as many, reworded perhaps, none in another's place."""
    return len(words) == len(labels) and not any(
        a != b and a in labels for a, b in zip(words, labels, strict=True)
    )


def _check_places(words: Any, labels: Sequence[str], path: Path) -> None:
    if not isinstance(words, list) or not _in_place(words, labels):
        raise CheckpointError(
            f"{Where(path)}: labels: tuned for {words!r} in this order, and the task file has {list(labels)};"
            " reword them, but keep their order"
        )


def labelled_offsets(adapter: Adapter) -> dict[str, float]:
    """What is added to the score of each label, by its word; empty for nothing."""
    return dict(zip(adapter.task.labels, adapter.label_offsets, strict=bool(adapter.label_offsets)))


def answer_files(adapter: Adapter) -> dict[str, dict[str, float]]:
    """What is known of a task's answers beside the model, as exports write it: content by file name."""
    files = {}
    if adapter.answer_length is not None:
        files["answer_length.json"] = asdict(adapter.answer_length)
    if adapter.label_offsets:
        files["label_offsets.json"] = labelled_offsets(adapter)
    return files


@dataclass(frozen=True, slots=True)
class Composed:
    """An adapter made ready for a base: what a forward needs.

    Attributes:
        prompts: ``(L, P, H)``, or None.
        head: Span head, or a classifier in its place.
        backbone: The encoder: the base's own, or the adapter's (model tuning, low-rank tuning).
        injection: How the prompts enter a layer.
        answer_length: Length of the task's answers, where they are spans.
        label_offsets: What is added to the scores of its labels, where it has any.
        labels: ``(C, H)`` vectors of its label words, or None.
    """

    prompts: Tensor | None
    head: SpanHead | ProbeHead
    backbone: Backbone
    injection: Injection
    answer_length: AnswerLength | None = None
    label_offsets: LabelOffsets = ()
    labels: Tensor | None = None

    @property
    def reserve(self) -> int:
        """Positions of a window that the prompts take from the text."""
        return 0 if self.prompts is None else slots_of(self.injection, self.prompts.shape[1])

    def answers(self, examples: Sequence[MRCExample], rows: Sequence[Encoded]) -> list[Answer]:
        """Answers to rows of this task alone.

        Args:
            examples: The rows, rendered.
            rows: The same, encoded with room for the prompts (``reserve``).
        """
        return answer_rows(
            MRCModel(self.backbone, self.head),
            rows,
            [example.context for example in examples],
            [example.options for example in examples],
            None if self.prompts is None else self.prompts[None],
            injection=self.injection,
            labels=None if self.labels is None else self.labels[None],
            lengths=[self.answer_length],
            offsets=[self.label_offsets],
        )


def base_of(adapter: Adapter) -> str | None:
    """The base an adapter names, when it is a folder that is there; else the shipped one."""
    return adapter.base if adapter.base != DEFAULT_BASE and Path(adapter.base).is_dir() else None


def check_base(adapter: Adapter, base: Base) -> None:
    """Refuse a base, or a bank of it, other than the adapter's own.

    Raises:
        CheckpointError: The adapter belongs to another base or bank.
    """
    if adapter.base_fingerprint != base.fingerprint:
        raise CheckpointError(
            f"adapter of task {adapter.task.name!r} belongs to base {adapter.base}"
            f" ({adapter.base_fingerprint}), not to {base.name} ({base.fingerprint}); name its own"
            " (--model)"
        )
    if adapter.bank is not None and base.bank_fingerprint(adapter.bank) != adapter.bank_fingerprint:
        raise CheckpointError(
            f"adapter of task {adapter.task.name!r} belongs to bank {adapter.bank!r}"
            f" ({adapter.bank_fingerprint}), not to this one ({base.bank_fingerprint(adapter.bank)});"
            f" its base, --model FOLDER, was {adapter.base}"
        )


def compose(adapter: Adapter, base: Base) -> Composed:
    """Mix the adapter's prompts once, for a base.

    Raises:
        CheckpointError: The adapter belongs to another base or bank, or its tensors do not fit it.
    """
    check_base(adapter, base)
    try:
        return _composed(adapter, base)
    except (KeyError, RuntimeError, ConfigError) as error:
        raise CheckpointError(
            f"adapter of task {adapter.task.name!r}: damaged: its tensors do not fit: {first_line(error)}"
        ) from error


def _composed(adapter: Adapter, base: Base) -> Composed:
    tensors = {key: value.to(base.device) for key, value in adapter.tensors.items()}
    head: SpanHead | ProbeHead = base.head
    prompts = tensors.get("prompts")
    if adapter.bank is not None:
        bank = base.bank(adapter.bank)
        head = bank.head
        if "router" in tensors:
            with torch.no_grad():
                prompts = bank.bank.compose(router_weights(tensors["router"][None], bank.routing))[0]
    if "probe.weight" in tensors:
        classes, hidden = tensors["probe.weight"].shape
        head = ProbeHead(hidden, classes).requires_grad_(False).to(base.device)
        head.load_state_dict(_under(tensors, "probe."))
    elif "head.weight" in tensors:
        head = copy.deepcopy(head)
        head.load_state_dict({"weight": tensors["head.weight"], "bias": tensors["head.bias"]})
    backbone = base.backbone
    if own := _under(tensors, "backbone."):
        backbone = copy.deepcopy(backbone)
        backbone.load_state_dict(own)
    if pairs := _under(tensors, "lora."):
        backbone = copy.deepcopy(backbone)
        add_pairs(backbone, pairs)
    labels = tensors.get("labels")
    expected = (len(adapter.task.labels), backbone.hidden_size)
    if labels is not None and labels.shape != expected:
        raise ConfigError(f"labels: expected {expected}, got {tuple(labels.shape)}")
    return Composed(
        prompts, head, backbone, adapter.injection, adapter.answer_length, adapter.label_offsets, labels
    )


def _under(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
