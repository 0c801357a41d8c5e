"""Bases, banks and adapters on disk: safetensors and JSON only, verified when loaded, nothing is unpickled.

    base/                     a frozen encoder and what was pre-trained on it
      mp2.json                name, banks, sha256 of every file
      encoder/                Hugging Face layout: config, weights, tokenizer; head.safetensors (span head)
      banks/<name>/           bank.json + bank.safetensors (prompts or z and A, routers, head)

A folder or hub repository without ``mp2.json`` is a bare encoder: a base without banks.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mp2.data.encode import Encoder
from mp2.errors import CheckpointError, ConfigError, nearest
from mp2.model.backbone import Backbone, folder_of, load_backbone, load_tokenizer
from mp2.model.bank import BankConfig, PromptBank
from mp2.model.mrc import MRCModel, SpanHead
from mp2.model.router import Routing
from mp2.runtime import sha256, whole_folder, write_json

ASSETS = Path(__file__).parent.parent / "assets"
DEFAULT_BASE = "mp2-tiny-zh"
# Files of a base or an adapter that are brought from a hub: nothing that has to be unpickled.
SAFE = ("*.json", "*.safetensors", "*.yaml", "*.txt", "*.md", "*.model")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Short hash of named tensors: equal weights, equal name, wherever they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(slots=True)
class TrainedBank:
    """A bank with everything pre-trained beside it.

    Attributes:
        name: Name in its base, for example ``deep``.
        bank: The prompts.
        router: ``(N, L, K)`` logits of the N upstream tasks.
        tasks: Names of the N tasks, in the router's order.
        head: Span head trained with the bank.
        routing: Gate and combination it was measured with.
        base: Fingerprint of the encoder it belongs to.
        facts: How it was trained: steps, seconds, dev scores, and so on.
    """

    name: str
    bank: PromptBank
    router: Tensor
    tasks: tuple[str, ...]
    head: SpanHead
    routing: Routing = field(default_factory=Routing)
    base: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of prompts, head and gates: an adapter works on this bank only."""
        tensors = {**self.bank.state_dict(), **_named("head", self.head.state_dict())}
        gates = (self.routing.gate, self.routing.combine)
        if gates != ("soft", "normalised"):  # these add nothing: hashes made before gates counted hold
            tensors[f"routing {gates}"] = torch.empty(0)
        return fingerprint(tensors)

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write the bank as a folder, whole or not at all, in place of a bank that is there.

        Raises:
            CheckpointError: The folder is there and holds something else.
            WriteError: It cannot be written.
        """
        tensors = {
            **_named("bank", self.bank.state_dict()),
            **_named("head", self.head.state_dict()),
            "router": self.router,
        }
        facts = {
            "name": self.name,
            "config": asdict(self.bank.config),
            "routing": asdict(self.routing),
            "tasks": list(self.tasks),
            "base": self.base,
            "facts": self.facts,
        }
        with whole_folder(folder, replace=True, kind="bank.json") as aside:
            tensors = {k: v.detach().to(dtype).contiguous().cpu() for k, v in tensors.items()}
            save_file(tensors, aside / "bank.safetensors")
            write_json(aside / "bank.json", facts)


def check_bank_name(name: str) -> None:
    """Refuse a name that is not the name of one folder, since a base keeps a bank in a folder of its name.

    Raises:
        ConfigError: It is empty, or a path.
    """
    if name in ("", "..") or Path(name).name != name:
        raise ConfigError(f"name of a bank: expected one that a folder can have, got {name!r}")


def load_bank(folder: Path) -> TrainedBank:
    """Read a bank.

    Raises:
        CheckpointError: Absent or damaged.
    """
    facts = read_json(folder / "bank.json")
    tensors = read_tensors(folder / "bank.safetensors")
    try:
        bank = PromptBank(BankConfig(**facts["config"]))
        head = SpanHead(bank.config.hidden)
        bank.load_state_dict(_under(tensors, "bank"))
        head.load_state_dict(_under(tensors, "head"))
        tasks, router = tuple(facts["tasks"]), tensors["router"]
        if len(tasks) != len(router):
            raise TypeError(f"{len(tasks)} tasks and {len(router)} routers")
        return TrainedBank(
            facts["name"],
            bank,
            router,
            tasks,
            head,
            Routing(**facts["routing"]),
            facts["base"],
            facts["facts"],
        )
    except (KeyError, RuntimeError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder}: not a bank this version can read: {error}") from error


class Base:
    """A frozen encoder with its tokenizer and the banks trained on it.

    Args:
        path: Folder of a base, folder of an encoder in the hub's layout, or the hub name of either.
        device: Where the encoder lives.
        shard: Whether the encoder's weights lie split over all processes (``mp2.model.sharding``).

    Attributes:
        source: Folder or hub name of the encoder alone, as Hugging Face loads it.
    """

    def __init__(self, path: Path | str, device: str = "cpu", *, shard: bool = False) -> None:
        self.path, self.device = path, device
        self.facts: dict[str, Any] = {"name": str(path), "banks": []}
        folder = folder_of(path, ["mp2.json", "config.json", "head.safetensors"])
        encoder: Path | str = path
        if (folder / "mp2.json").exists():
            self.path = folder = folder_of(path, SAFE)
            self.facts = read_manifest(folder / "mp2.json")
            verify(folder, self.facts.get("files"))
            encoder = folder = folder / "encoder"
        elif not (folder / "config.json").exists():
            raise CheckpointError(
                f"{path}: no model in this folder: expected mp2.json (a base) or config.json (an encoder)"
            )
        self.source = encoder
        self.tokenizer = load_tokenizer(encoder)
        backbone = load_backbone(encoder, slot_id=self.tokenizer.mask_token_id, dtype=torch.float32)
        self.backbone: Backbone = backbone.eval().requires_grad_(False)
        if shard:
            from mp2.model.sharding import shard as split

            self.__dict__["fingerprint"] = fingerprint(backbone.state_dict())  # while it is whole
            split(backbone, device)
        else:
            backbone.to(device)
        drawn = torch.Generator().manual_seed(0)  # an encoder without a head has the same one each time
        self.head = SpanHead(self.backbone.hidden_size, generator=drawn).to(device).requires_grad_(False)
        head = folder / "head.safetensors"
        if head.exists():
            try:
                self.head.load_state_dict(read_tensors(head))
            except RuntimeError as error:
                raise CheckpointError(
                    f"{head}: expected the span head of an encoder of width {self.backbone.hidden_size}"
                ) from error
        self._banks: dict[str, TrainedBank] = {}
        self._bank_fingerprints: dict[str, str] = {}

    @property
    def name(self) -> str:
        """Name of the base, for messages and records."""
        return str(self.facts["name"])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the encoder's weights."""
        return fingerprint(self.backbone.state_dict())

    def moved(self) -> None:
        """Forget the fingerprint, which is remembered: the encoder's weights have changed."""
        self.__dict__.pop("fingerprint", None)

    @property
    def banks(self) -> tuple[str, ...]:
        """Names of the banks that come with this base."""
        return tuple(self.facts["banks"])

    def bank(self, name: str) -> TrainedBank:
        """A bank by name, or from a folder; loaded once.

        Raises:
            CheckpointError: There is none of that name, or it belongs to another base.
        """
        if name not in self._banks:
            folder = Path(name) if name not in self.banks else Path(self.path) / "banks" / name
            if not (folder / "bank.json").exists():
                raise CheckpointError(f"{self.name}: no bank {name!r}; {nearest(name, self.banks)}")
            bank = load_bank(folder)
            if bank.base != self.fingerprint:
                raise CheckpointError(
                    f"bank {folder} belongs to base {bank.base}, but {self.name} is {self.fingerprint}"
                )
            bank.bank.to(self.device).requires_grad_(False)
            bank.head.to(self.device).requires_grad_(False)
            bank.router = bank.router.to(self.device)
            self._banks[name] = bank
        return self._banks[name]

    def bank_fingerprint(self, name: str) -> str:
        """Fingerprint of a bank, hashed once: a loaded bank is frozen, and every adapter asks for it."""
        if name not in self._bank_fingerprints:
            self._bank_fingerprints[name] = self.bank(name).fingerprint
        return self._bank_fingerprints[name]

    def model(self, head: SpanHead | None = None) -> MRCModel:
        """The reading-comprehension model with a head (this base's own when None)."""
        return MRCModel(self.backbone, head or self.head)

    def encoder(self, reserve: int = 0, max_length: int | None = None) -> Encoder:
        """The text encoder for this tokenizer and window; ``reserve`` keeps room for prompt slots."""
        limit = min(max_length or self.backbone.max_length, self.backbone.max_length)
        return Encoder(self.tokenizer, limit, reserve=reserve)


def load_base(path: Path | str | None = None, device: str = "cpu", *, shard: bool = False) -> Base:
    """Load a base by folder, by the name of a shipped one, or by hub name.

    Args:
        path: What to load; the shipped ``mp2-tiny-zh`` when None.
        device: Where the encoder lives.
        shard: Whether the encoder's weights lie split over all processes (``mp2.model.sharding``).

    Raises:
        CheckpointError: Absent, damaged or unsupported.
    """
    name = str(path or DEFAULT_BASE)
    shipped = ASSETS / name
    if (path is None or not Path(name).exists()) and (shipped / "mp2.json").exists():
        return Base(shipped, device, shard=shard)
    if path is None:
        raise CheckpointError(f"no model ships with this installation; name one with --model ({shipped})")
    return Base(name, device, shard=shard)


def save_encoder(
    folder: Path,
    encoder: Any,
    tokenizer: Any,
    head: nn.Module | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write an encoder, its tokenizer and its span head (in half precision) in the hub's layout."""
    copy.deepcopy(encoder).to(dtype).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    if head is not None:
        save_file(
            {k: v.half().contiguous() for k, v in head.state_dict().items()}, folder / "head.safetensors"
        )


def write_manifest(folder: Path, name: str, banks: list[str]) -> None:
    """Write ``mp2.json`` with the hash of every file of a base."""
    files = {
        str(file.relative_to(folder)): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in ("mp2.json", "README.md")
    }
    write_json(folder / "mp2.json", {"name": name, "banks": banks, "files": files})


def read_manifest(path: Path) -> dict[str, Any]:
    """Read ``mp2.json``.

    Raises:
        CheckpointError: Absent or damaged.
    """
    facts = read_json(path)
    if not isinstance(facts.get("name"), str) or not isinstance(facts.get("banks"), list):
        raise CheckpointError(f"{path}: damaged: expected a 'name' and a list of 'banks'")
    return facts


def verify(folder: Path, files: Mapping[str, str] | None) -> None:
    """Check that files are as they were when the base was written.

    Raises:
        CheckpointError: No file is named, one is absent, or its bytes differ.
    """
    if not files or not isinstance(files, Mapping):
        raise CheckpointError(f"{folder / 'mp2.json'}: expected the sha256 of every file under 'files'")
    for name, expected in files.items():
        file = folder / name
        if not file.exists():
            raise CheckpointError(f"{file}: missing; the base {folder} is not complete")
        if sha256(file) != expected:
            raise CheckpointError(f"{file}: damaged: its sha256 is not the one in {folder / 'mp2.json'}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: Absent or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: damaged: expected a JSON object, got {type(found).__name__}")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file as fp32 (integers as they are).

    Raises:
        CheckpointError: Absent or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: truncated or damaged: {error}") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
