"""From text to token ids: windows, option spans, gold spans and the offsets back to the user's text.

Every segment, option and separator is tokenised by itself, so an option's tokens are the same wherever
it stands and spans never straddle a boundary. Only two roles ever lose tokens: ``cut`` text before options is
shortened (longest first), and the ``context`` of a span task is windowed with a stride. Options that do not
fit one window are spread over several, which the model scores together. Prompt slots are not tokens: room
for them is ``reserve``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mp2.errors import TaskError
from mp2.tasks.render import MRCExample

SEPARATOR = "，"
Tokens = list[int]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """One model input, without prompt slots. Token positions count from [CLS] = 0; spans are inclusive.

    Attributes:
        ids: Token ids, ``[CLS]`` first.
        options: ``(option index, first token, last token)`` of each option in this window.
        context: First and last token of the searchable context, or None.
        no_answer: Span of the words that mean "no answer", or None.
        gold: Span of the right option or answer, or None when it is unknown or in another window.
        offsets: For each context token, its ``[start, end)`` characters in the context's text.
    """

    ids: list[int]
    options: list[tuple[int, int, int]] = field(default_factory=list)
    context: Span | None = None
    no_answer: Span | None = None
    gold: Span | None = None
    offsets: list[Span] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row.

    Attributes:
        windows: Its windows.
        n_options: How many options it has; 0 for span tasks.
        answer: The right option, if known.
        cut: Whether the end of a text was left out to make room (not kept with prepared data).
    """

    windows: tuple[Window, ...]
    n_options: int = 0
    answer: int | None = None
    cut: bool = field(default=False, compare=False)


class Encoder:
    """Turns rendered examples into windows of token ids.

    Args:
        tokenizer: A fast Hugging Face tokenizer (offsets are needed).
        max_length: Tokens the model can take, prompt slots included.
        reserve: Positions kept free for prompt slots (P for ``add`` injection, 0 for ``prefix``).
        stride: Tokens by which neighbouring context windows overlap.
        max_windows: Windows kept per labelled row of a span task; gold is looked for in all of them. A row
            that asks for an answer and needs more is refused.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int = 512,
        *,
        reserve: int = 0,
        stride: int = 64,
        max_windows: int = 32,
    ) -> None:
        self.tokenizer = tokenizer
        self.room = max_length - reserve
        self.stride = stride
        self.max_windows = max_windows
        self._cls, self._sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._comma = self._tokenise([SEPARATOR])[0][0]

    @property
    def fingerprint(self) -> str:
        """Short hash of everything that decides the ids: the tokenizer and the limits."""
        backend = self.tokenizer.backend_tokenizer.to_str()
        key = json.dumps([backend, self.room, self.stride, self.max_windows, SEPARATOR])
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    def __call__(self, examples: Sequence[MRCExample]) -> list[Encoded]:
        """Encode examples; tokenises all their texts in one call.

        Raises:
            TaskError: The parts that may not be cut leave no room, or a text needs too many windows; with the
                sizes and the row's beginning.
        """
        # few of them are different: template words and labels are those of all rows
        texts = list(dict.fromkeys(text for example in examples for text in _texts(example)))
        tokens = dict(zip(texts, self._tokenise(texts), strict=True))
        return [self._encode(example, tokens) for example in examples]

    def each(self, examples: Sequence[MRCExample]) -> list[Encoded | TaskError]:
        """Encode examples; in place of one that cannot be encoded, the reason.

        All in one call; one by one only when one of them cannot.
        """
        try:
            return list(self(examples))
        except TaskError as error:
            if len(examples) == 1:
                return [error]
        return [self.each([example])[0] for example in examples]

    def check_labels(self, labels: Sequence[str]) -> None:
        """Refuse labels that are the same to the model, of which nothing could be learned.

        Raises:
            TaskError: Two labels have the same tokens; it names both.
        """
        first: dict[tuple[int, ...], str] = {}
        for label, (ids, _) in zip(labels, self._tokenise(list(labels)), strict=True):
            other = first.setdefault(tuple(ids), label)
            if other != label:
                raise TaskError(
                    f"the labels {other!r} and {label!r} are the same tokens to this model; reword one"
                )

    def _tokenise(self, texts: list[str]) -> list[tuple[Tokens, list[Span]]]:
        if not texts:
            return []
        encoding = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=True,  # a user's literal '[SEP]' is text
            verbose=False,
        )
        return list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))

    def _encode(self, example: MRCExample, tokens: dict[str, tuple[Tokens, list[Span]]]) -> Encoded:
        pieces: list[tuple[str, Tokens]] = [(s.role, tokens[s.text][0]) for s in example.segments]
        if example.options:
            return self._encode_options(example, pieces, [tokens[text][0] for text in example.options])
        return self._encode_spans(example, pieces, tokens[example.context][1])

    def _encode_options(
        self, example: MRCExample, pieces: list[tuple[str, Tokens]], options: list[Tokens]
    ) -> Encoded:
        for text, option in zip(example.options, options, strict=True):
            if not option:
                raise TaskError(f"option {text!r} has no tokens in this vocabulary{_beginning(example)}")
        # at least a quarter of the text is kept, so an option list that is too long is spread over windows
        fixed = 1 + sum(len(piece) for role, piece in pieces if role != "cut")
        wanted = sum(len(piece) for role, piece in pieces if role == "cut")
        room = self.room - fixed - min(wanted, max(0, (self.room - fixed) // 4))
        longest, text = max((len(o), text) for o, text in zip(options, example.options, strict=True))
        longest += len(self._comma)
        if room < longest:
            raise TaskError(
                f"the option {text!r} needs {longest} tokens, but the model's"
                f" window of {self.room} has {max(room, 0)} left beside the question{_beginning(example)}"
            )
        windows, cut = [], False
        for group in _spread([len(option) + len(self._comma) for option in options], room):
            used = sum(len(options[index]) + len(self._comma) for index in group)
            shown = [t for _, piece in _shorten(pieces, self.room - 1 - used) for t in piece]
            cut = cut or len(shown) < fixed - 1 + wanted
            ids = [self._cls, *shown]
            spans, gold = [], None
            for index in group:
                spans.append((index, len(ids), len(ids) + len(options[index]) - 1))
                gold = spans[-1][1:] if index == example.answer else gold
                ids += [*options[index], *self._comma]
            windows.append(Window(ids, options=spans, gold=gold))
        return Encoded(tuple(windows), len(options), example.answer, cut)

    def _encode_spans(
        self, example: MRCExample, pieces: list[tuple[str, Tokens]], offsets: list[Span]
    ) -> Encoded:
        context = next(piece for role, piece in pieces if role == "context")
        fixed = 2 + sum(len(piece) for role, piece in pieces if role != "context")
        room = self.room - fixed
        if room < min(len(context), 16):
            raise TaskError(
                f"the question needs {fixed} tokens and leaves no room in a window of {self.room}"
                f"{_beginning(example)}"
            )
        gold = [_token_span(offsets, span) for span in example.spans]
        starts = _starts(len(context), room, self.stride)
        if len(starts) > self.max_windows and not example.labelled:
            end = offsets[starts[self.max_windows - 1] + room - 1][1]
            raise TaskError(
                f"the text needs {len(starts)} windows of {self.room} tokens, and {self.max_windows} are read"
                f", which hold its first {end:,} characters; give it in parts{_beginning(example)}"
            )
        windows = [
            self._span_window(pieces, context, offsets, start, min(start + room, len(context)), gold, example)
            for start in starts[: self.max_windows]
        ]
        return Encoded(tuple(windows), cut=len(starts) > self.max_windows)

    def _span_window(
        self,
        pieces: list[tuple[str, Tokens]],
        context: Tokens,
        offsets: list[Span],
        start: int,
        stop: int,
        gold: list[Span | None],
        example: MRCExample,
    ) -> Window:
        ids, place, no_answer = [self._cls], None, None
        for role, piece in pieces:
            if role == "context":
                place = (len(ids), len(ids) + stop - start - 1) if stop > start else None
                ids += context[start:stop]
            else:
                if role == "no_answer":
                    no_answer = (len(ids), len(ids) + len(piece) - 1)
                ids += piece
        ids.append(self._sep)
        answer = no_answer if example.unanswerable else None
        for span in gold:
            if place and span and start <= span[0] and span[1] < stop:
                answer = (span[0] - start + place[0], span[1] - start + place[0])
                break
        return Window(ids, context=place, no_answer=no_answer, gold=answer, offsets=list(offsets[start:stop]))


def _texts(example: MRCExample) -> Iterator[str]:
    yield from (segment.text for segment in example.segments)
    yield from example.options


def _beginning(example: MRCExample) -> str:
    """The tail of a message: which row it is, whose number only the caller knows."""
    data = (segment.text for segment in example.segments if segment.role not in ("literal", "no_answer"))
    return f", in the row {''.join(data)[:20]!r}..."


def _shorten(pieces: list[tuple[str, Tokens]], room: int) -> list[tuple[str, Tokens]]:
    """Cut the ``cut`` pieces, the longest first, until all pieces together have ``room`` tokens."""
    excess = sum(len(piece) for _, piece in pieces) - room
    if excess <= 0:
        return pieces
    lengths = {index: len(piece) for index, (role, piece) in enumerate(pieces) if role == "cut"}
    level = max(lengths.values(), default=0)
    while excess > 0 and level > 0:
        # level all the longest pieces down to the next length, or as far as is needed
        longest = [index for index, length in lengths.items() if length == level]
        below = max((length for length in lengths.values() if length < level), default=0)
        step = min(level - below, -(-excess // len(longest)))
        for index in longest:
            taken = min(step, excess)
            lengths[index] -= taken
            excess -= taken
        level = max(lengths.values())
    return [(role, piece[: lengths.get(index, len(piece))]) for index, (role, piece) in enumerate(pieces)]


def _spread(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Split options over as few windows as hold them, in order and about evenly filled."""
    count = max(1, -(-sum(sizes) // room))
    while True:
        groups: list[list[int]] = [[]]
        target, used = sum(sizes) / count, 0
        for index, size in enumerate(sizes):
            full = used + size > room or (used + size / 2 > target and len(groups) < count)
            if groups[-1] and full:
                groups.append([])
                used = 0
            groups[-1].append(index)
            used += size
        if len(groups) <= count:
            return groups
        count += 1


def _starts(length: int, room: int, stride: int) -> list[int]:
    """First context token of each window: windows overlap by ``stride`` and cover everything."""
    if length <= room:
        return [0]
    step = max(1, room - stride)
    starts = list(range(0, length - room, step))
    return [*starts, length - room]


def _token_span(offsets: Sequence[Span], span: Span) -> Span | None:
    """Tokens that cover the characters ``[start, end)``; None when no token touches them."""
    touched = [index for index, (a, b) in enumerate(offsets) if a < span[1] and b > span[0]]
    return (touched[0], touched[-1]) if touched else None
