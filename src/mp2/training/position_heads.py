"""Attention heads that see where words are, for a small encoder that does not (docs/decisions/0009).

An encoder started as one that compares words (``backbone.start_as_matching``) keeps positions at a
hundredth of the energy of its words and stays a bag of words: with all positions made equal it classifies as
well as before. Here a few dimensions are cleared and given to positions alone, and heads that matter little
become heads that look at the word before, at the word after, around, at everything, or at the same word far
away. All else stays as it is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import BertModel

from mp2.errors import ConfigError

Kind = Literal["before", "after", "around", "copy", "all"]

HEADS: tuple[tuple[int, int, Kind], ...] = (
    (0, 1, "before"),
    (0, 2, "after"),
    (0, 3, "copy"),
    (1, 1, "all"),
    (1, 2, "around"),
    (2, 1, "around"),
)
"""Layer, head and what it becomes. Of the shipped encoder these were among those whose removal cost least."""

AMPLITUDE = 2.2
"""Length of each sine and cosine pair, in standard deviations of the words: 16 are a fifth of the sum."""

FASTEST, RATIO = 2.0, 0.736
"""Frequencies in radians per token: 2 and each next one .736 of it, so 16 of them reach down to .02."""


@torch.no_grad()
def add_position_heads(encoder: BertModel, generator: torch.Generator, *, first: int) -> None:
    """Give an encoder dimensions for positions and heads that use them; changed in place.

    Half a head's width of the directions in which word embeddings vary least (and two more) are taken from
    the words and from the input and output of every layer, so nothing but positions is there. A sine and
    cosine pair turned by an angle is the same pair some tokens on: so one rotation between query and key
    makes a head look at a fixed distance.

    A ``copy`` head looks for its own word anywhere but nearby, and at the first token where there is none;
    what it took from the first token it writes down in a direction of its own, and the ``all`` head averages
    that over the text. So every token can read how much of two sentences is not in the other.

    Args:
        encoder: An encoder of words at about unit scale.
        generator: Source of the directions that the new heads read and write.
        first: Id of the token that begins every input, [CLS].

    Raises:
        ConfigError: It has too few layers or heads, heads too narrow, or embeddings narrower than its layers.
    """
    config = encoder.config
    layers, heads = 1 + max(at for at, _, _ in HEADS), 1 + max(at for _, at, _ in HEADS)
    width = config.hidden_size // config.num_attention_heads
    if config.num_hidden_layers < layers or config.num_attention_heads < heads or width < 8 or width % 4:
        raise ConfigError(
            f"position heads need {layers} layers, {heads} heads and a head size divisible by 4, at least 8;"
            f" got {config.num_hidden_layers}, {config.num_attention_heads} and {width}"
        )
    words = encoder.embeddings.word_embeddings.weight
    if words.shape[1] != config.hidden_size:
        raise ConfigError(
            f"position heads need word embeddings as wide as the layers, {config.hidden_size}; got"
            f" {words.shape[1]}"
        )
    pairs = width // 4
    frequencies = FASTEST * RATIO ** torch.arange(pairs)
    room = torch.linalg.eigh(torch.cov(words.double().T)).eigenvectors[:, : 2 * pairs + 2].to(words.dtype).T
    _clear(encoder, torch.eye(config.hidden_size) - room.T @ room)
    table = encoder.embeddings.position_embeddings.weight
    angles = torch.arange(len(table))[:, None] * frequencies
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    table += AMPLITUDE * words.std() * waves @ room[: 2 * pairs]
    opening = encoder.embeddings(torch.tensor([[first]]))[0, 0]
    heads_of = _Heads(width, room, frequencies, opening / opening.square().sum(), generator)
    for layer, head, kind in HEADS:
        attention = encoder.encoder.layer[layer].attention
        at = slice(head * width, (head + 1) * width)
        parts = (attention.self.query, attention.self.key, attention.self.value)
        query, key, value, output, bias = heads_of(kind)
        for part, weight in zip(parts, (query, key, value), strict=True):
            part.weight[at], part.bias[at] = weight, 0.0
        attention.self.query.bias[at] = bias
        attention.output.dense.weight[:, at] = output


def _clear(encoder: BertModel, keep: Tensor) -> None:
    """Let nothing read from or write to the directions that ``keep`` ``(H, H)`` projects away."""
    for table in (encoder.embeddings.word_embeddings, encoder.embeddings.position_embeddings):
        table.weight.copy_(table.weight @ keep)
    for layer in encoder.encoder.layer:
        attention = layer.attention
        for reader in (
            attention.self.query,
            attention.self.key,
            attention.self.value,
            layer.intermediate.dense,
        ):
            reader.weight.copy_(reader.weight @ keep)
        for writer in (attention.output.dense, layer.output.dense):
            writer.weight.copy_(keep @ writer.weight)
            writer.bias.copy_(keep @ writer.bias)


class _Heads:
    """Weights of a head: query, key and value ``(width, H)``, output ``(H, width)``, bias of the query."""

    def __init__(
        self, width: int, room: Tensor, frequencies: Tensor, opening: Tensor, generator: torch.Generator
    ) -> None:
        self.width, self.frequencies, self.opening, self.generator = width, frequencies, opening, generator
        self.cosines, self.sines = room[:-2].chunk(2)
        self.alone, self.share = room[-2], room[-1]  # no copy of this word elsewhere; how many have none
        self.keep = torch.eye(room.shape[1]) - room.T @ room

    def __call__(self, kind: Kind) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        query, key, value = torch.zeros(3, self.width, len(self.keep))
        output, bias = torch.zeros(len(self.keep), self.width), torch.zeros(self.width)
        if kind == "copy":
            chosen = slice(len(self.frequencies) // 8, 3 * len(self.frequencies) // 4)
            bump = self.frequencies[chosen] * (-((1.5 * self.frequencies[chosen]) ** 2) / 2).exp()
            near = (4.2 * self.width**0.5 * bump / bump.sum()).sqrt()[:, None]
            place = torch.cat([near * self.cosines[chosen], near * self.sines[chosen]])
            words = self._directions(self.width - 1 - len(place))
            alike = slice(0, len(words))
            query[alike] = key[alike] = 2.0 * words
            query[len(words) : -1], key[len(words) : -1] = -place, place
            strength = (11.0 * self.width**0.5) ** 0.5  # what finds no copy goes to the first token
            bias[-1], key[-1] = strength, strength * self.opening
            value[alike], output[:, alike] = words, -0.5 * words.T
            value[-1], output[:, -1] = self.opening, 6.0 * self.alone
        elif kind == "all":
            value[1:] = self._directions(self.width - 1)
            output[:, 1:] = 0.5 * self._directions(self.width - 1).T
            value[0], output[:, 0] = self.alone, 1.5 * self.share
        else:
            skip, gain, shift = {"before": (0, 1.73, -1), "after": (0, 1.73, 1), "around": (2, 1.0, 0)}[kind]
            cosines, sines, angles = (x[skip:] for x in (self.cosines, self.sines, shift * self.frequencies))
            c, s = angles.cos()[:, None], angles.sin()[:, None]
            places = slice(0, 2 * len(cosines))
            query[places] = gain * torch.cat([c * cosines - s * sines, s * cosines + c * sines])
            key[places] = gain * torch.cat([cosines, sines])
            value, output = self._directions(self.width), 0.5 * self._directions(self.width).T
        return query, key, value, output, bias

    def _directions(self, count: int) -> Tensor:
        drawn = torch.randn(len(self.keep), count, generator=self.generator)
        found: Tensor = torch.linalg.qr(self.keep @ drawn).Q.T
        return found
