"""The frozen encoder: Hugging Face modules, called in our own loop so that prompts can enter any layer.

BERT, RoBERTa(-wwm), MacBERT, ELECTRA and ERNIE load by name or folder. CPT loads from its hub layout: its
understanding path is a BERT stack under the keys ``model.encoder.`` with token types all ones (REFERENCE:
fnlp/cpt-large, v1 with 512 positions and v2 with 1024). Its row of that type is made the row of type 0 too,
so whoever runs, saves or exports the encoder has no type to remember. The backbone never learns which task it
serves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from mp2.errors import CheckpointError, first_line
from mp2.model import frozen
from mp2.model.attention import NAME, Prefix, prefix_attention, project
from mp2.model.bank import Injection

CPT_PREFIX = "model.encoder."
transformers_logging.disable_progress_bar()  # ours is the progress that people see


class Prompts:
    """Composed prompts of one forward: ``values (R, L or 1, P, H)`` and which row uses which.

    Args:
        values: Prompts of R distinct tasks; one layer for shallow banks, every layer for deep ones. For
            ``prefix`` also what :meth:`Backbone.prefix_states` made of them.
        rows: ``(B,)`` index into R of each window; None when R is 1.
        injection: How they enter a layer.
    """

    __slots__ = ("injection", "rows", "values")

    def __init__(self, values: Tensor, rows: Tensor | None = None, injection: Injection = "prefix") -> None:
        self.values = values
        self.rows = rows if len(values) > 1 else None
        self.injection = injection

    def layer(self, index: int) -> Tensor | None:
        """``(R, P, H)`` prompt of a layer (or its keys and values), or None."""
        return self.values[:, index] if index < self.values.shape[1] else None

    @property
    def length(self) -> int:
        """P."""
        return self.values.shape[-2]

    def per_window(self, prompt: Tensor, windows: int) -> Tensor:
        """``(R, P, H)`` to ``(B, P, H)``."""
        return prompt.expand(windows, -1, -1) if self.rows is None else prompt[self.rows]


class Backbone(nn.Module):
    """Embeddings and transformer layers of a Hugging Face encoder.

    Args:
        encoder: A model with ``embeddings`` and ``encoder.layer`` (the BERT family).
        slot_id: Token id of the placeholder at a prompt slot (``add`` injection).
    """

    def __init__(self, encoder: Any, *, slot_id: int = 0) -> None:
        super().__init__()
        encoder.set_attn_implementation(NAME)
        self.config = encoder.config
        self.whole = (encoder,)  # in a tuple: the same parameters, registered once
        self.embeddings = encoder.embeddings
        self.project = getattr(encoder, "embeddings_project", None)  # ELECTRA-small narrows its embeddings
        self.layers: nn.ModuleList = encoder.encoder.layer
        self.slot_id = slot_id
        self.checkpointing = False  # recompute a layer's activations in the backward pass to save memory
        self.sharded = False  # see mp2.model.sharding

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.config.hidden_size)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def max_length(self) -> int:
        """Positions the encoder knows, as tokens a sequence may have."""
        return int(self.config.max_position_embeddings) - self.first_position

    @property
    def first_position(self) -> int:
        """Position of a sequence's first token: RoBERTa's come after its padding's, 1."""
        return 2 if self.config.model_type in ("roberta", "xlm-roberta") else 0

    def words(self) -> Tensor:
        """Word embeddings as wide as the layers, ``(V, H)``."""
        words: Tensor = self.embeddings.word_embeddings.weight
        return words if self.project is None else self.project(words)

    def embed(self, ids: Tensor) -> Tensor:
        """``(B, T)`` ids to ``(B, T, H)`` hidden states at the input of layer 0."""
        hidden: Tensor = self.embeddings(input_ids=ids, token_type_ids=torch.zeros_like(ids))
        return hidden if self.project is None else self.project(hidden)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        prompts: Prompts | None = None,
        *,
        added: Tensor | None = None,
        picks: Tensor | None = None,
        full: bool | None = None,
    ) -> Tensor:
        """Last hidden states of the text tokens.

        Args:
            ids: ``(B, T)``.
            mask: ``(B, T)`` bool, True on real tokens.
            prompts: Composed prompts, or None for the bare encoder.
            added: ``(B, T, H)`` what is added to the states at the input of layer 0, or None.
            picks: ``(B, W)`` tokens whose states are wanted; all of them when None.
            full: Whether no row is padded; found out from the mask when None.

        Returns:
            ``(B, T, H)``, or ``(B, W, H)``; prompt slots of ``add`` are removed, so spans mean the same for
            any injection.
        """
        if prompts is None or prompts.injection == "prefix":
            return self.run(_plus(self.embed(ids), added), mask, prompts, picks=picks, full=full)
        if added is not None:
            slots = added.new_zeros(len(ids), prompts.length, added.shape[2])
            added = torch.cat([added[:, :1], slots, added[:, 1:]], dim=1)
        ids, mask = self.with_slots(ids, mask, prompts.length)
        if picks is not None:
            picks = torch.where(picks > 0, picks + prompts.length, picks)
        hidden = self.run(_plus(self.embed(ids), added), mask, prompts, picks=picks, full=full)
        if picks is not None:
            return hidden
        return torch.cat([hidden[:, :1], hidden[:, 1 + prompts.length :]], dim=1)

    def prefix_states(self, prompts: Tensor) -> Tensor:
        """Prefix prompts of every layer as the keys and values that the layers would make of them.

        What is asked often is projected once: composed prompts of a served task, or of an evaluation.

        Args:
            prompts: ``(R, L, P, H)``.

        Returns:
            ``(R, L, 2, heads, P, head size)``.
        """
        layers = zip(self.layers, prompts.unbind(1), strict=True)
        return torch.stack(
            [project(layer.get_submodule("attention.self"), one) for layer, one in layers], dim=1
        )

    def with_slots(self, ids: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Insert ``length`` placeholder tokens after [CLS]."""
        slots = ids.new_full((len(ids), length), self.slot_id)
        ids = torch.cat([ids[:, :1], slots, ids[:, 1:]], dim=1)
        return ids, torch.cat([mask[:, :1], torch.ones_like(slots, dtype=torch.bool), mask[:, 1:]], dim=1)

    def run(
        self,
        hidden: Tensor,
        mask: Tensor,
        prompts: Prompts | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        picks: Tensor | None = None,
        full: bool | None = None,
    ) -> Tensor:
        """Layers ``start`` to ``stop`` (exclusive) from hidden states at the input of ``start``.

        Args:
            hidden: ``(B, T, H)``; with ``add`` injection T includes the slots.
            mask: ``(B, T)`` bool.
            prompts: Composed prompts or None.
            start: First layer to run.
            stop: Layer before which to stop; all layers when None.
            picks: ``(B, W)`` tokens that the last layer is asked for; all of them when None.
            full: Whether no row is padded; found out from the mask when None.
        """
        if full is None:
            full = bool(mask.all())
        plain = None if full else mask[:, None, None, :]
        for index in range(start, self.depth if stop is None else stop):
            prompt = prompts.layer(index) if prompts is not None else None
            extra: dict[str, Any] = {}
            keys = plain
            if prompt is not None and prompts is not None:
                if prompts.injection == "prefix":
                    extra["prefix"] = Prefix(prompt, prompts.rows)
                    if plain is not None:
                        keys = nn.functional.pad(plain, (prompts.length, 0), value=True)
                else:
                    added = prompts.per_window(prompt, len(hidden))
                    slots = hidden[:, 1 : 1 + prompts.length] + added
                    hidden = torch.cat([hidden[:, :1], slots, hidden[:, 1 + prompts.length :]], dim=1)
            if picks is not None and index == self.depth - 1:
                return self._picked(hidden, keys, picks, extra)
            hidden = self._call(index, hidden, keys, extra)
        return hidden

    def _picked(self, hidden: Tensor, mask: Tensor | None, picks: Tensor, extra: dict[str, Any]) -> Tensor:
        """The last layer for picked tokens: all tokens give keys and values, only these ask.

        The layer is Hugging Face's own; its parts are called one by one. States ``(B, W, H)``.
        """
        layer: Any = self.layers[-1]
        if self.sharded:  # its parts have weights only while the layer as a whole is called
            return frozen.at(self._call(self.depth - 1, hidden, mask, extra), picks)
        if frozen.runs(layer):
            return frozen.run(layer, hidden, mask, picks=picks, **extra)
        module = layer.attention.self
        asking = frozen.at(hidden, picks)
        query, key, value = (
            part(states).unflatten(-1, (-1, module.attention_head_size)).transpose(1, 2)
            for part, states in ((module.query, asking), (module.key, hidden), (module.value, hidden))
        )
        dropout = module.dropout.p if module.training else 0.0
        attended, _ = prefix_attention(module, query, key, value, mask, dropout=dropout, **extra)
        middle = layer.attention.output(attended.flatten(2), asking)
        output: Tensor = layer.output(layer.intermediate(middle), middle)
        return output

    def _call(self, index: int, hidden: Tensor, mask: Tensor | None, extra: dict[str, Any]) -> Tensor:
        layer: Any = self.layers[index]
        if not self.sharded and frozen.runs(layer):
            layer = partial(frozen.run, layer)
        if self.checkpointing and torch.is_grad_enabled():
            output = torch.utils.checkpoint.checkpoint(layer, hidden, mask, use_reentrant=False, **extra)
        else:
            output = layer(hidden, mask, **extra)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states


def _plus(hidden: Tensor, added: Tensor | None) -> Tensor:
    return hidden if added is None else hidden + added.to(hidden.dtype)


def load_tokenizer(path: Path | str) -> Any:
    """A fast tokenizer from a folder or a hub name.

    Raises:
        CheckpointError: There is none, it is damaged, or it has no fast form (offsets are needed).
    """
    folder_of(path, ["config.json"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    except Exception as error:  # what is damaged comes as anything
        raise CheckpointError(f"{path}: no tokenizer could be loaded: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one where its files are absent
        raise CheckpointError(
            f"{path}: no vocabulary for the tokenizer: expected tokenizer.json or vocab.txt"
        )
    if not tokenizer.is_fast:
        raise CheckpointError(f"{path}: the tokenizer has no fast form, which exact offsets need")
    return tokenizer


def load_backbone(path: Path | str, *, slot_id: int = 0, dtype: torch.dtype | None = None) -> Backbone:
    """A pre-trained encoder from a folder or a hub name; weights are checked to be really loaded.

    Args:
        path: Folder in the hub's layout, or a name on the hub.
        slot_id: Token id of prompt placeholders (``add`` injection).
        dtype: Parameter type; the checkpoint's own when None.

    Raises:
        CheckpointError: Absent, damaged, of an unsupported kind, or with weights missing.
    """
    folder_of(path, ["config.json"])
    config = _config(path)
    try:
        if _is_cpt(config):
            return Backbone(_load_cpt(Path(path), config, dtype), slot_id=slot_id)
        encoder, info = AutoModel.from_pretrained(
            str(path), output_loading_info=True, dtype=dtype or "auto", **_without_pooler(config)
        )
    except CheckpointError:
        raise
    except Exception as error:  # safetensors, json and huggingface_hub each raise their own kinds
        raise CheckpointError(f"{path}: the encoder could not be loaded: {first_line(error)}") from error
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} weights are missing from the checkpoint, first {missing[0]!r}"
        )
    if not hasattr(encoder, "embeddings") or not hasattr(getattr(encoder, "encoder", None), "layer"):
        raise CheckpointError(
            f"{path}: a model of type {config.get('model_type')!r} has no stack of encoder layers;"
            " expected BERT, RoBERTa, ELECTRA, ERNIE or CPT"
        )
    return Backbone(encoder, slot_id=slot_id)


def folder_of(name: Path | str, files: Sequence[str], **where: Any) -> Path:
    """A local folder, or a copy of some files from the hub; transformers would ask there for a minute.

    Args:
        name: Folder, or ``user/name`` on the hub.
        files: Patterns of the files that are wanted.
        where: Revision, cache and endpoint, as ``huggingface_hub.snapshot_download`` takes them.

    Raises:
        CheckpointError: It is neither here nor there.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files), **where))
    except Exception as error:  # the hub's library raises its own kinds, and those of its transport
        raise CheckpointError(
            f"{name}: neither a folder nor to be had from the hub: {first_line(error)}"
        ) from error


def is_cpt(path: Path | str) -> bool:
    """Whether an encoder's folder or hub name holds CPT, which Hugging Face would load as BART."""
    return _is_cpt(_config(path))


def _is_cpt(config: dict[str, Any]) -> bool:
    named = "CPTForConditionalGeneration" in (config.get("architectures") or ())
    return named or config.get("model_type") in ("bart", "cpt")


def _without_pooler(config: dict[str, Any]) -> dict[str, Any]:
    return {"add_pooling_layer": False} if config.get("model_type") in ("bert", "roberta", "ernie") else {}


def _config(path: Path | str) -> dict[str, Any]:
    try:
        return dict(AutoConfig.from_pretrained(str(path)).to_dict())
    except (OSError, ValueError) as error:
        file = Path(path) / "config.json"
        if file.exists():  # a model type transformers does not know, such as "cpt"
            return dict(json.loads(file.read_text(encoding="utf-8")))
        raise CheckpointError(f"{path}: no encoder could be loaded: {first_line(error)}") from error


def _load_cpt(path: Path, config: dict[str, Any], dtype: torch.dtype | None) -> BertModel:
    """CPT's understanding path: the BERT stack under ``model.encoder.`` (REFERENCE 1.2 and 1.3)."""
    state = {
        key.removeprefix(CPT_PREFIX): value
        for key, value in _tensors(path)
        if key.startswith(CPT_PREFIX) and not key.endswith("position_ids")
    }
    word = state.get("embeddings.word_embeddings.weight")
    position = state.get("embeddings.position_embeddings.weight")
    if word is None or position is None:
        raise CheckpointError(f"{path}: expected CPT weights under {CPT_PREFIX!r}, found none")
    encoder = BertModel(
        BertConfig(
            vocab_size=word.shape[0],
            hidden_size=config["d_model"],
            num_hidden_layers=config["encoder_layers"],
            num_attention_heads=config["encoder_attention_heads"],
            intermediate_size=config["encoder_ffn_dim"],
            hidden_dropout_prob=config.get("activation_dropout", 0.1),
            attention_probs_dropout_prob=config.get("attention_dropout", 0.1),
            max_position_embeddings=position.shape[0],
        ),
        add_pooling_layer=False,
    )
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: CPT encoder: {len(missing)} weights missing, {len(unexpected)} not known,"
            f" first {[*missing, *unexpected][0]!r}"
        )
    types = encoder.embeddings.token_type_embeddings.weight.data
    types[0] = types[1]
    return encoder.to(dtype or word.dtype)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a folder's checkpoint: safetensors, or torch's zip files read as weights only."""
    path = folder_of(path, ["*.safetensors", "*.bin", "*.json"])
    shards = sorted(path.glob("*.safetensors"))
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield key, file.get_tensor(key)
    if not shards:
        for shard in sorted(path.glob("pytorch_model*.bin")):
            # weights_only is an unpickler that makes tensors and plain containers, and refuses all else
            yield from torch.load(shard, map_location="cpu", weights_only=True).items()
