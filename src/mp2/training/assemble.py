"""Puts an encoder and the banks trained on it together as a base that can be shipped, with its model card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from mp2.errors import CheckpointError
from mp2.model.backbone import folder_of
from mp2.model.checkpoint import (
    Base,
    TrainedBank,
    check_bank_name,
    load_bank,
    read_json,
    save_encoder,
    write_manifest,
)
from mp2.runtime import whole_folder, write_whole
from mp2.tasks import catalogue

BESIDE = ("training.json", "head.safetensors")  # what our commands write beside an encoder's own files


def assemble(
    name: str, encoder: Path, banks: Sequence[Path], out: Path, *, notes: str = "", replace: bool = False
) -> Base:
    """Write a base folder: encoder, banks, manifest with hashes, model card.

    Args:
        name: Name of the base.
        encoder: Encoder folder (step 1 or 1b) or hub name, or a base whose encoder is taken.
        banks: Bank folders; every bank must belong to this encoder.
        out: Folder to write.
        notes: Prose of the model card; the tables of the runs are added below it.
        replace: Whether an existing folder is replaced.

    Raises:
        CheckpointError: A bank belongs to another encoder, two have one name, or the folder exists.
        ConfigError: The name of a bank is a path.
    """
    bare = Base(encoder)
    encoder = Path(bare.source)  # of a base, its encoder alone
    beside = folder_of(encoder, BESIDE)
    loaded = [load_bank(folder) for folder in banks]
    for folder, bank in zip(banks, loaded, strict=True):
        if bank.base != bare.fingerprint:
            raise CheckpointError(
                f"{folder}: belongs to encoder {bank.base}, not to {encoder} ({bare.fingerprint})"
            )
    for bank in loaded:
        check_bank_name(bank.name)
        same = [str(at) for at, other in zip(banks, loaded, strict=True) if other.name == bank.name]
        if len(same) > 1:
            raise CheckpointError(
                f"two banks are named {bank.name!r}: {', '.join(same)}; pre-train one with another --name"
            )
    training = beside / "training.json"
    history = read_json(training) if training.exists() else {}
    with whole_folder(out, replace=replace, kind="mp2.json") as aside:
        if encoder.is_dir():
            shutil.copytree(encoder, aside / "encoder")
        else:  # what was loaded from the hub, exactly, whatever files it lies in there
            whole = bare.backbone.whole[0]
            save_encoder(aside / "encoder", whole, bare.tokenizer, dtype=torch.float32)
            for file in BESIDE:
                if (beside / file).exists():
                    shutil.copyfile(beside / file, aside / "encoder" / file)
        for bank in loaded:
            bank.save(aside / "banks" / bank.name)
        write_manifest(aside, name, [bank.name for bank in loaded])
        write_whole(aside / "README.md", f"# {name}\n\n{notes.strip()}\n\n{_tables(history, loaded)}\n")
    return Base(out)


def _tables(history: dict[str, Any], banks: Sequence[TrainedBank]) -> str:
    """Runs and dev scores, from the facts that each run wrote itself."""
    lines = ["## Runs", "", "| part | steps | tokens | minutes | dev mean |", "|---|---|---|---|---|"]
    runs = [("encoder, last run", history), *((f"bank `{bank.name}`", bank.facts) for bank in banks)]
    for title, facts in runs:
        dev = facts.get("dev", {}).get("score")
        lines.append(
            f"| {title} | {facts.get('steps', 0):,} | {facts.get('tokens', 0):,} |"
            f" {facts.get('seconds', 0) / 60:.1f} | {'' if dev is None else f'{dev:.3f}'} |"
        )
    curves = {title: facts["curve"] for title, facts in runs if len(facts.get("curve", [])) > 1}
    if curves:
        lines += ["", "| part | dev mean after steps |", "|---|---|"]
    for title, curve in curves.items():
        lines.append(f"| {title} | {', '.join(f'{step:,}: {score:.3f}' for step, score in curve)} |")
    columns = {title: facts["dev"] for title, facts in runs if facts.get("dev")}
    tasks = [key for key in dict.fromkeys(chain(*columns.values())) if key not in ("step", "score")]
    lines += ["", "## Dev score of every upstream task (64 rows each)", ""]
    lines += [f"| task | {' | '.join([*columns, 'licence'])} |", "|---" * (len(columns) + 2) + "|"]
    for task in tasks:
        scores = [f"{dev[task]:.3f}" if task in dev else "" for dev in columns.values()]
        lines.append(f"| {task} | {' | '.join([*scores, _licence(task)])} |")
    return "\n".join(lines)


def _licence(task: str) -> str:
    """As the catalogue states it; empty for a task of one's own."""
    data = catalogue.get(task).data if task in catalogue.names() else None
    return data.licence if data else ""
