"""What the benchmarks run on: invented rows with the real lengths of ``lengths.json``, random encoders.

Decides sizes, tasks and how rows look; times nothing. Token ids and weights are random: they change no speed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast

from mp2.data.encode import Encoded, Window
from mp2.model.bank import BankConfig, PromptBank
from mp2.model.checkpoint import Base, TrainedBank, save_encoder, write_manifest
from mp2.model.mrc import SpanHead
from mp2.model.router import Routing

LENGTHS = Path(__file__).parent / "lengths.json"
POSITIONS = 512
MODULES, LENGTH, INTRINSIC = 8, 16, 128


@dataclass(frozen=True, slots=True)
class Size:
    """Layers, hidden size, attention heads and vocabulary of an encoder."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int = 20_000


SIZES = {
    "micro": Size(2, 32, 2, 100),
    "shipped": Size(4, 384, 6),
    "6x512": Size(6, 512, 8),
    "cpt-large": Size(24, 1024, 16, 21_128),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rows of a task look: options (0 for span tasks), tokens of an option, quantiles of lengths."""

    name: str
    options: int
    option_tokens: int
    lengths: tuple[int, ...]

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Lengths of ``count`` rows."""
        levels = np.linspace(0, 1, len(self.lengths))
        drawn = np.interp(rng.random(count), levels, self.lengths).astype(np.int64)
        return np.maximum(drawn, 8)

    def rows(self, lengths: Iterable[int], rng: np.random.Generator, vocabulary: int) -> list[Encoded]:
        """Invented rows of these lengths, of one window each."""
        return [self._row(int(length), rng, vocabulary) for length in lengths]

    def _row(self, length: int, rng: np.random.Generator, vocabulary: int) -> Encoded:
        ids = rng.integers(5, vocabulary, size=length).tolist()
        if not self.options:
            place = (1, length - 2)
            first = int(rng.integers(1, length - 4))
            offsets = [(i, i + 1) for i in range(length - 2)]
            return Encoded((Window(ids, context=place, gold=(first, first + 2), offsets=offsets),))
        each = self.option_tokens + 1  # a comma behind each
        count = max(2, min(self.options, (length - 2) // each))
        each = min(each, (length - 2) // count)
        spans = [
            (i, length - (count - i) * each, length - (count - i) * each + each - 2) for i in range(count)
        ]
        answer = int(rng.integers(count))
        return Encoded((Window(ids, options=spans, gold=spans[answer][1:]),), count, answer)


def shapes(count: int | None = None) -> list[Shape]:
    """The tasks of ``lengths.json``, shortest rows first, or ``count`` of them that stand for all."""
    tasks = json.loads(LENGTHS.read_text(encoding="utf-8"))["tasks"]
    every = [Shape(name, f["options"], f["option_tokens"], tuple(f["lengths"])) for name, f in tasks.items()]
    every.sort(key=lambda shape: float(np.mean(shape.lengths)))
    if count is None:
        return every
    return [every[int((i + 0.5) * len(every) / count)] for i in range(count)]


def chosen(names: Sequence[str]) -> list[Shape]:
    """Tasks by name."""
    every = {shape.name: shape for shape in shapes()}
    return [every[name] for name in names]


def similar(lengths: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Those ``count`` lengths that lie together in order and are on average what all of them are."""
    ordered = np.sort(lengths)
    means = np.convolve(ordered, np.ones(count) / count, mode="valid")
    first = int(np.abs(means - ordered.mean()).argmin())
    return ordered[first : first + count]


def lengths_of(rows: Sequence[Encoded]) -> list[int]:
    """Tokens of each row, of one window."""
    return [len(row.windows[0].ids) for row in rows]


def tokens_of(rows: Sequence[Encoded]) -> int:
    """Real tokens of rows."""
    return sum(len(window.ids) for row in rows for window in row.windows)


def option_spans(rows: Sequence[Encoded]) -> Tensor:
    """``(B, most, 2)`` first and last tokens of each row's options, its first again where it has fewer."""
    options = [row.windows[0].options for row in rows]
    most = max(map(len, options))
    filled = [[*some, *[some[0]] * (most - len(some))] for some in options]
    return torch.tensor(filled)[..., 1:]


def flops_of(size: Size, rows: Sequence[Encoded], *, backward: bool) -> float:
    """Multiplications and additions of the bare encoder's products for rows, each as long as it is.

    A token costs a layer 2 H^2 for each of query, key, value and output, 16 H^2 for the feed-forward part and
    4 T H for attention to T tokens. A backward pass to the input costs the former once more, since frozen
    weights take no gradient, and the latter twice, since queries, keys and values all do.
    """
    products, attention = (2, 3) if backward else (1, 1)
    lengths = lengths_of(rows)
    return float(
        sum(
            size.layers * n * size.hidden * (24 * products * size.hidden + 4 * attention * n) for n in lengths
        )
    )


def random_encoder(size: Size, *, dropout: float = 0.0, seed: int = 0) -> BertModel:
    """A BERT encoder with random weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertModel(config, add_pooling_layer=False)


def random_base(folder: Path, size: Size, device: str = "cpu", *, tasks: int = 1) -> Base:
    """A base with a random encoder and a deep factored bank, written to a folder and loaded from it."""
    encoder_folder = folder / "encoder"
    encoder_folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{i}" for i in range(size.vocabulary - len(words))]
    (encoder_folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(encoder_folder / "vocab.txt"))
    save_encoder(encoder_folder, random_encoder(size), tokenizer, SpanHead(size.hidden))
    write_manifest(folder, "random", [])
    bare = Base(folder)
    config = BankConfig(size.layers, MODULES, LENGTH, size.hidden, INTRINSIC)
    router = torch.randn(tasks, size.layers, MODULES)
    names = tuple(f"task-{i}" for i in range(tasks))
    head = SpanHead(size.hidden)
    bank = TrainedBank("deep", PromptBank(config), router, names, head, Routing(), bare.fingerprint)
    bank.save(folder / "banks" / "deep")
    write_manifest(folder, "random", ["deep"])
    return Base(folder, device)
