"""Step 1: pre-train a small BERT-form encoder from raw text with a mixture of objectives.

Objectives (``objectives``) are rows of a mixture: masked language modelling, and tasks that already have the
reading-comprehension form. One objective per batch. The masked-language head exists only here; the span head
is kept with the encoder.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from mp2.data.batch import collate
from mp2.data.encode import Encoded, Window
from mp2.errors import ConfigError, DataError
from mp2.model.backbone import Backbone, load_tokenizer
from mp2.model.checkpoint import Base, read_json, save_encoder
from mp2.model.mrc import MRCModel, SpanHead
from mp2.model.spans import row_losses
from mp2.runtime import one_after_the_other, rank_and_world, whole_folder, write_json, write_whole
from mp2.training.corpus import Corpus, build_corpus, read_texts, tokenizer_fingerprint
from mp2.training.embeddings import ppmi_embeddings
from mp2.training.loop import Group, LoopConfig, Progressed, Trainer
from mp2.training.objectives import Mixture
from mp2.training.position_heads import add_position_heads
from mp2.training.tokenizer import train_tokenizer

STARTS = ("plain", "matching", "positions")


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Size of the encoder: layers, hidden size, attention heads, feed-forward width, positions."""

    layers: int = 4
    hidden: int = 256
    heads: int = 4
    ffn: int = 1024
    positions: int = 256
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """A step-1 run.

    Attributes:
        shape: Size of the encoder.
        mixture: Share of each objective's batches.
        lr: Peak learning rate.
        loop: Steps, schedule, checkpoints.
        tokens: Tokens per batch.
        seed: Seed of initial values and batches.
        vocabulary: Pieces of the vocabulary that were asked for; a small text has fewer.
        start: Where the embeddings are given: layers as BERT's start (``plain``), layers that compare words
            (``matching``), or these with heads that see where words are (``positions``). The fingerprint of
            an encoder that a run goes on from.
    """

    shape: EncoderShape = field(default_factory=EncoderShape)
    mixture: dict[str, float] = field(default_factory=lambda: {"mlm": 1.0})
    lr: float = 1e-3
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=1000, warmup=100, schedule="cosine", betas=(0.9, 0.98))
    )
    tokens: int = 4096
    seed: int = 42
    vocabulary: int = 20_000
    start: str = "matching"

    def __post_init__(self) -> None:
        """Refuse a rate that is none before texts are read."""
        Group("the encoder", {}, self.lr)


class MaskedHead(nn.Module):
    """BERT's masked-language head with the decoder tied to the word embeddings."""

    def __init__(self, hidden: int, words: nn.Embedding) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))
        self._words = [words]  # in a list: tied, not owned

    def forward(self, hidden: Tensor) -> Tensor:
        """``(N, H)`` states at masked positions to ``(N, V)`` logits."""
        hidden = self.norm(F.gelu(self.dense(hidden)))
        # words have unit scale (start_as_matching), so logits are scaled like attention's
        return F.linear(hidden * hidden.shape[-1] ** -0.5, self._words[0].weight, self.bias)


class BackboneRun:
    """Parameters and loss of a step-1 run.

    Args:
        config: The run.
        vocabulary: Number of token ids.
        pad_id: Id of padding.
        cls_id: Id of the token that begins every row.
        embeddings: ``(V, H)`` start of the word embeddings, or None for random.
        base: An encoder with its span head to go on from, moved in place; a new one when None. Its
            masked-language head was not kept, so that begins afresh.
        device: Where to train.
    """

    def __init__(
        self,
        config: BackboneConfig,
        vocabulary: int,
        *,
        pad_id: int = 0,
        cls_id: int = 2,
        embeddings: np.ndarray[Any, Any] | None = None,
        base: Base | None = None,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(config.seed)
        if base is None:
            self.encoder = self._new_encoder(config, vocabulary, pad_id, cls_id, embeddings).to(device)
            self.model = MRCModel(Backbone(self.encoder), SpanHead(config.shape.hidden).to(device))
        else:
            self.encoder, self.model = base.backbone.whole[0], base.model()
            self.model.train().requires_grad_(True)
        self.masked = MaskedHead(config.shape.hidden, self.encoder.embeddings.word_embeddings).to(device)
        self.pad_id, self.device, self.config = pad_id, device, config

    @staticmethod
    def _new_encoder(
        config: BackboneConfig,
        vocabulary: int,
        pad_id: int,
        cls_id: int,
        embeddings: np.ndarray[Any, Any] | None,
    ) -> BertModel:
        s = config.shape
        encoder = BertModel(
            BertConfig(
                vocab_size=vocabulary,
                hidden_size=s.hidden,
                num_hidden_layers=s.layers,
                num_attention_heads=s.heads,
                intermediate_size=s.ffn,
                max_position_embeddings=s.positions,
                hidden_dropout_prob=s.dropout,
                attention_probs_dropout_prob=s.dropout,
                pad_token_id=pad_id,
            ),
            add_pooling_layer=False,
        )
        if embeddings is not None:
            start_with_words(encoder, embeddings)
            if config.start == "plain":  # words and places of like size, as BERT starts them
                encoder.embeddings.position_embeddings.weight.data.div_(2 * encoder.config.initializer_range)
            else:
                start_as_matching(encoder)
            if config.start == "positions":
                generator = torch.Generator().manual_seed(config.seed)
                add_position_heads(encoder, generator, first=cls_id)
        return encoder

    def groups(self) -> list[Group]:
        """Matrices decay, vectors do not."""
        named = {
            **{f"encoder.{k}": p for k, p in self.encoder.named_parameters()},
            **{f"head.{k}": p for k, p in self.model.head.named_parameters()},
            **{f"masked.{k}": p for k, p in self.masked.named_parameters()},
        }
        matrices = {k: p for k, p in named.items() if p.dim() > 1}
        vectors = {k: p for k, p in named.items() if p.dim() == 1}
        return [Group("matrices", matrices, self.config.lr), Group("vectors", vectors, self.config.lr, 0.0)]

    def loss(self, batch: Any) -> tuple[Tensor, int, int]:
        """Summed loss over the rows of one batch of one objective."""
        if isinstance(batch[0], Window):
            rows = [Encoded((w,), len(w.options), right_option(w)) for w in batch]
            joined = collate(rows, pad_id=self.pad_id).to(self.device)
            losses, _ = row_losses(self.model(joined), joined)
            return losses.sum(), joined.known, joined.ids.numel()
        ids, labels = (np.stack(part) for part in zip(*batch, strict=True))
        # a card that had to be asked which words are masked would hold up the host
        real, asked = ids != self.pad_id, np.flatnonzero(labels >= 0)
        parts = (ids, real, asked, labels.reshape(-1)[asked])
        tokens, mask, places, words = (_sent(part, self.device) for part in parts)
        hidden = self.model.backbone(tokens, mask, full=bool(real.all()))
        loss = F.cross_entropy(self.masked(hidden.flatten(0, 1)[places]), words)
        return loss * len(ids), len(ids), ids.size


def _sent(values: np.ndarray[Any, Any], device: str) -> Tensor:
    """On a device; a card reads from pinned memory, which does not hold up the host."""
    found = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        found = found.pin_memory()
    return found.to(device, non_blocking=True)


@torch.no_grad()
def start_with_words(encoder: BertModel, embeddings: np.ndarray[Any, Any]) -> None:
    """Start the word embeddings ``(V, H)`` from co-occurrence statistics, at unit scale; changed in place."""
    encoder.embeddings.word_embeddings.weight.copy_(torch.from_numpy(embeddings / embeddings.std()))


@torch.no_grad()
def start_as_matching(encoder: BertModel) -> None:
    """Start the layers of an encoder as those of one that compares words by meaning; changed in place.

    In every layer queries and keys share one random rotation, values and output are the identity: a token
    attends to tokens that mean the same and adds them to itself. From a random start, an encoder of this size
    that has read little text stays at chance on every task with options for thousands of steps
    (docs/decisions/0005): it must find this product of option and text first.

    Args:
        encoder: An encoder whose word embeddings have unit scale.
    """
    for layer in encoder.encoder.layer:
        attention = layer.attention
        rotation, _ = torch.linalg.qr(torch.randn_like(attention.self.query.weight))
        attention.self.query.weight.copy_(rotation)
        attention.self.key.weight.copy_(rotation)
        attention.self.value.weight.copy_(torch.eye(len(rotation)))
        attention.output.dense.weight.copy_(torch.eye(len(rotation)))


def right_option(window: Window) -> int | None:
    """Index of the option that is the gold span; None for a row without options."""
    return next((index for index, first, last in window.options if (first, last) == window.gold), None)


def pretrain_backbone(
    corpus: Corpus,
    tokenizer: Any,
    config: BackboneConfig,
    folder: Path,
    *,
    embeddings: np.ndarray[Any, Any] | None = None,
    base: Base | None = None,
    device: str = "cpu",
) -> Progressed:
    """Run (or resume) step 1 and write the encoder to ``folder/encoder`` in the hub's layout.

    Args:
        corpus: Token files.
        tokenizer: The fast tokenizer they were made with.
        config: The run.
        folder: Logs, checkpoints and the encoder.
        embeddings: ``(V, H)`` start of the word embeddings.
        base: An encoder to go on from, moved in place; ``config.shape`` is then its own.
        device: Where to train.

    Returns:
        Steps, tokens, seconds and losses of the run.
    """
    ids = {"pad_id": int(tokenizer.pad_token_id), "cls_id": int(tokenizer.cls_token_id)}
    run = BackboneRun(config, len(tokenizer), **ids, embeddings=embeddings, base=base, device=device)
    rank, world = rank_and_world()
    mixture = Mixture(
        config.mixture,
        corpus,
        tokenizer,
        tokens=config.tokens,
        max_length=config.shape.positions,
        seed=config.seed,
        rank=rank,
        world=world,
    )
    begin = time.time()
    progress = Trainer(
        run.groups(),
        mixture,
        run.loss,
        config.loop,
        folder=folder,
        settings=asdict(config) | {"corpus": corpus.meta["key"]},
        seed=config.seed,
        device=device,
        title="step 1",
    ).fit()
    if base is not None:
        base.moved()
    facts = {
        "config": asdict(config),
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "corpus": {key: corpus.meta[key] for key in ("key", "tokens")},
        "started": time.strftime("%Y-%m-%d", time.localtime(begin)),
    }
    with one_after_the_other() as first:
        if first:
            with whole_folder(folder / "encoder", replace=True, kind="training.json") as aside:
                save_encoder(aside, run.encoder, tokenizer, run.model.head)
                write_json(aside / "training.json", facts)
    return progress


def prepare_text(
    texts: Sequence[Path], folder: Path, vocabulary: int, hidden: int
) -> tuple[Corpus, Any, np.ndarray[Any, Any]]:
    """Tokenizer, token files and co-occurrence embeddings of a run; each is made once and kept in its folder.

    Args:
        texts: Text files; none where the folder has the tokenizer and the token files already, as it has when
            it comes from another machine.
        folder: The run's folder.
        vocabulary: Pieces of the vocabulary.
        hidden: Width of the embeddings.

    Returns:
        The corpus, its tokenizer and ``(V, H)`` embeddings.

    Raises:
        ConfigError: The folder's tokenizer was made from other texts, its embeddings are of another width.
        DataError: A text file is absent; or none is given, and the folder holds no token files.
    """
    tokenizer_folder, file = folder / "tokenizer", folder / "embeddings.npy"
    if absent := [str(path) for path in texts if not path.exists()]:
        raise DataError(f"expected text files, found none at {', '.join(absent)}")
    sizes = [[path.name, path.stat().st_size] for path in texts]
    source = {"texts": sizes, "vocabulary": vocabulary}
    made_from = tokenizer_folder / "made-from.json"
    if texts and not (tokenizer_folder / "tokenizer.json").exists():
        documents = chain.from_iterable(read_texts(path) for path in texts)
        tokenizer = train_tokenizer(documents, vocab_size=vocabulary)
        with whole_folder(tokenizer_folder, replace=True, kind="tokenizer.json") as aside:
            tokenizer.save_pretrained(str(aside))
            write_json(aside / made_from.name, source)
    elif texts and made_from.exists() and read_json(made_from) != source:
        raise ConfigError(
            f"{tokenizer_folder}: made from other texts or for another vocabulary; choose another folder"
        )
    if not texts:
        Corpus.open(folder / "corpus")  # the tokenizer is absent where it is: say that there is no text
    tokenizer = load_tokenizer(tokenizer_folder)
    corpus = text_of(texts, tokenizer, folder)
    if not file.exists():
        made = ppmi_embeddings(corpus.tokens, len(tokenizer), hidden)
        buffer = io.BytesIO()
        np.save(buffer, made.astype(np.float16))  # a start needs no more
        write_whole(file, buffer.getvalue())
    embeddings = np.load(file)
    if embeddings.shape != (len(tokenizer), hidden):
        raise ConfigError(
            f"{file}: holds {len(embeddings)} x {embeddings.shape[1]} numbers, this run needs"
            f" {len(tokenizer)} x {hidden}; choose another folder"
        )
    return corpus, tokenizer, embeddings


def text_of(texts: Sequence[Path], tokenizer: Any, folder: Path) -> Corpus:
    """The token files of a run with a given tokenizer, made once and kept in its folder.

    Args:
        texts: Text files; none where the folder has the token files already.
        tokenizer: A fast tokenizer.
        folder: The run's folder.

    Raises:
        DataError: There are no text files, and the folder's token files are absent or of another tokenizer.
    """
    if texts:
        return build_corpus(texts, tokenizer, folder / "corpus")
    corpus = Corpus.open(folder / "corpus")
    if corpus.meta["tokenizer"] != tokenizer_fingerprint(tokenizer):
        raise DataError(f"{folder / 'corpus'}: made with another tokenizer; give the text files")
    return corpus


def shape_of(base: Base) -> EncoderShape:
    """The size of an encoder that is there.

    Raises:
        ConfigError: Its word embeddings are narrower than its layers, as ELECTRA-small's are.
    """
    c, hidden = base.backbone.config, base.backbone.hidden_size
    words = base.backbone.embeddings.word_embeddings.embedding_dim
    if words != hidden:
        raise ConfigError(
            f"{base.name}: step 1 needs word embeddings as wide as the layers, {hidden}; got {words}"
        )
    return EncoderShape(
        base.backbone.depth,
        hidden,
        c.num_attention_heads,
        c.intermediate_size,
        base.backbone.max_length,
        c.hidden_dropout_prob,
    )
