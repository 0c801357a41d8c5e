"""Adapters and bases on the Hugging Face hub: a model card, an upload, and a download of safe files only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData

from mp2.errors import CheckpointError, first_line
from mp2.model.backbone import folder_of
from mp2.model.checkpoint import SAFE, Base, load_base, read_manifest
from mp2.runtime import whole_folder
from mp2.tasks.spec import TaskSpec
from mp2.tuning.adapter import Adapter, load_adapter

ADAPTER = """
# {name}

A task for mp2: {about}, learned from {shots} examples with the method
`{method}` on the frozen base `{base}` (fingerprint `{fingerprint}`). It works on that base only.

| | |
|---|---|
| answers | {answers} |
| template | `{template}` |
| {metric}, rows that chose the best moment | {dev} |
| {metric}, rows that nothing has seen | {held_back} |
| tuned numbers | {tuned} |
| seed | {seed} |

```python
from mp2.export.hub import adapter_from_pretrained
from mp2.serving.predictor import Predictor

predictor = Predictor("{base}")  # or the folder where that base lies
predictor.add("{name}", adapter_from_pretrained("{repository}"))
print(predictor.predict([("{name}", {row})])[0].as_dict())
```

Learned from few examples, it is as good as its score on rows that nothing has seen, and no better on texts of
another kind. It holds no text of its examples beside the label words.
"""
BASE = """
# {name}

A frozen encoder with banks of modular prompts for mp2: {banks}.

```python
from mp2.export.hub import base_from_pretrained

base = base_from_pretrained("{repository}")
```
"""


def push_to_hub(
    folder: Path,
    repository: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload an adapter or a base, with a model card where its folder has none.

    Args:
        folder: Folder of an adapter (``adapter.json``) or of a base (``mp2.json``).
        repository: ``user/name`` on the hub; made when absent.
        private: Whether a new repository is private.
        token: Access token; the one of ``hf auth login`` when None.
        revision: Branch; the main one when None.
        endpoint: Address of the hub; the public one when None.

    Returns:
        Address of the commit.

    Raises:
        CheckpointError: The folder is neither, or the hub refuses.
    """
    _is_base(folder)  # anything else stays at home
    files = {file.relative_to(folder).as_posix(): file for form in SAFE for file in folder.rglob(form)}
    operations = [
        CommitOperationAdd(name, str(file)) for name, file in sorted(files.items()) if file.is_file()
    ]
    if "README.md" not in files:
        operations.append(CommitOperationAdd("README.md", model_card(folder, repository).encode()))
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(
            repository, operations, commit_message="Upload with mp2", revision=revision
        )
    except Exception as error:  # the hub's library and the HTTP library below it raise their own kinds
        raise CheckpointError(f"{repository}: the hub did not take it: {first_line(error)}") from error
    return str(commit.commit_url)


def fetch(
    name: str, *, revision: str | None = None, cache: Path | None = None, endpoint: str | None = None
) -> Path:
    """Folder of an adapter or base: a local one, or a copy from the hub (safetensors and text files only).

    Args:
        name: Folder, or ``user/name`` on the hub.
        revision: Branch, tag or commit; the main branch when None.
        cache: Where copies are kept; the hub library's own cache when None.
        endpoint: Address of the hub; the public one when None.

    Raises:
        CheckpointError: It is neither here nor there.
    """
    return folder_of(name, SAFE, revision=revision, cache_dir=cache, endpoint=endpoint)


def pull(name: str, folder: Path, *, replace: bool = False, **where: Any) -> str:
    """Copy an adapter or a base from the hub to a folder, whole or not at all, and read it once.

    Args:
        name: ``user/name`` on the hub, or a folder.
        folder: Where to write.
        replace: Whether an existing folder is replaced.
        where: As for :func:`fetch`.

    Returns:
        What it is, in words.

    Raises:
        CheckpointError: It is not there, is neither an adapter nor a base, is damaged, or the folder exists.
    """
    if folder.exists() and not replace:
        raise CheckpointError(f"{folder}: exists already; choose another folder or pass --replace")
    found = fetch(name, **where)
    about = _about(found)
    kind = "mp2.json" if _is_base(found) else "adapter.json"
    with whole_folder(folder, replace=replace, kind=kind) as aside:
        shutil.copytree(found, aside, dirs_exist_ok=True)  # the cache holds links; the copy holds files
    return about


def adapter_from_pretrained(name: str, **where: Any) -> Adapter:
    """An adapter from a folder or from the hub; ``where`` as for :func:`fetch`."""
    return load_adapter(fetch(name, **where))


def base_from_pretrained(name: str, *, device: str = "cpu", **where: Any) -> Base:
    """A base from a folder or from the hub; ``where`` as for :func:`fetch`."""
    return load_base(fetch(name, **where), device)


def model_card(folder: Path, repository: str) -> str:
    """The model card of an adapter or a base, from what its files say.

    Args:
        folder: Folder of the adapter or the base.
        repository: Where it will lie, ``user/name``.

    Raises:
        CheckpointError: The folder is neither.
    """
    data = ModelCardData(language="zh", library_name="mp2", tags=["mp2", "few-shot", "soft-prompts"])
    if _is_base(folder):
        facts = read_manifest(folder / "mp2.json")
        banks = ", ".join(facts["banks"] or ["no bank"])
        text = BASE.format(name=facts["name"], banks=banks, repository=repository)
    else:
        text = ADAPTER.format(**_facts(load_adapter(folder)), repository=repository)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def _is_base(folder: Path) -> bool:
    """Whether a folder holds a base; else it holds an adapter.

    Raises:
        CheckpointError: It holds neither.
    """
    base = (folder / "mp2.json").exists()
    if not base and not (folder / "adapter.json").exists():
        raise CheckpointError(f"{folder}: neither an adapter (adapter.json) nor a base (mp2.json)")
    return base


def _about(folder: Path) -> str:
    if _is_base(folder):
        base = load_base(folder)
        return f"base {base.name} with {', '.join(base.banks) or 'no bank'}"
    adapter = load_adapter(folder)
    return f"task {adapter.task.name} ({adapter.method}) for base {adapter.base}"


def _facts(adapter: Adapter) -> dict[str, Any]:
    task, facts = adapter.task, adapter.facts
    answers = "a span of the text" if task.spans_context else "one of the row's options"
    held, dev = facts.get("held_back"), facts.get("dev")
    return {
        "name": task.name,
        "about": task.description or task.family,
        "shots": facts.get("shots", "a few"),
        "method": adapter.method,
        "base": adapter.base,
        "fingerprint": adapter.base_fingerprint,
        "answers": "，".join(task.labels) or answers,
        "template": task.template,
        "metric": task.metric,
        "dev": "not known" if dev is None else f"{dev:.3f}",
        "held_back": f"{held['value']:.3f} of {held['count']}" if held else "not measured",
        "tuned": facts.get("tuned_parameters", "not known"),
        "seed": facts.get("seed", "not known"),
        "row": json.dumps(_asked(task), ensure_ascii=False),
    }


def _asked(task: TaskSpec) -> Any:
    """What a task is asked with: a text, or a row where it reads several columns."""
    columns = [task.column(field) for field in task.template_fields]
    if len(columns) == 1 and task.family != "choice":
        return "..."
    row: dict[str, Any] = dict.fromkeys(columns, "...")
    if task.family != "choice":
        return row
    if isinstance(task.options, str):
        return row | {task.options: ["... 1", "... 2"]}
    return row | {column: f"... {number}" for number, column in enumerate(task.options, start=1)}
