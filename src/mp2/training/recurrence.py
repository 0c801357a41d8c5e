"""An objective that has the extraction form: find the span of a passage that says it again.

Decides which spans recur and how they are asked for. Words that occur twice are what a passage is about
often enough to make an encoder point at names and things. Decides nothing about batches.

References:
    Ram et al., *Few-shot question answering by pretraining span selection*, arXiv:2101.00438.
"""

from __future__ import annotations

import numpy as np

from mp2.data.encode import Window
from mp2.training.tokentext import Tokens, TokenText

IN_PLACE = ("空缺处应填文中的哪个词？", "被遮住的词是", "缺少的内容在文中是？")
ELSEWHERE = ("填空：", "下面的句子缺少什么：", "")
REPEATED = ("文中反复出现的词是", "这段话多次提到的是", "这句话的中心是")
_LONGEST = 6
_OPEN, _ASK = '抽取式问答：文本"', '问题"'


def recurrence(text: TokenText, rng: np.random.Generator, index: int, length: int) -> Window | None:
    """A row whose answer is a span of words that occurs at least twice in a passage.

    One occurrence is masked in place; or the sentence around it is the question and is cut out of the
    context; or the question asks for what is repeated.

    Args:
        text: The corpus.
        rng: Where chance comes from.
        index: Sentence at which the passage starts.
        length: Longest row, in tokens.

    Returns:
        The row, or None when no words recur.
    """
    room = length - 2 - len(text.literal(_OPEN)) - len(text.literal(_ASK)) - 16
    passage = text.passage(index, room)
    found = _recurring(text, rng, passage)
    if found is None:
        return None
    kept, asked, size = found
    kind = rng.random()
    if kind < 0.25:
        question = text.literal(_pick(rng, REPEATED))
        return _extraction(text, passage.tolist(), question, min(kept, asked), size)
    if kind < 0.55:
        context = [*passage[:asked].tolist(), text.mask, *passage[asked + size :].tolist()]
        gold = kept if kept < asked else kept - size + 1
        return _extraction(text, context, text.literal(_pick(rng, IN_PLACE)), gold, size)
    return _cut_out(text, rng, passage, kept, asked, size)


def _recurring(text: TokenText, rng: np.random.Generator, passage: np.ndarray) -> tuple[int, int, int] | None:
    """Two places of the same span, in random order, and its length."""
    places = np.flatnonzero(text.word[passage])
    words, counts = np.unique(passage[places], return_counts=True)
    words = words[counts > 1]
    if not len(words):
        return None
    # rarer words first, as names are; not always the rarest
    order = words[np.argsort(text.probability[words], kind="stable")]
    word = order[int(len(order) * rng.random() ** 2)]
    here = places[passage[places] == word]
    first, second = (int(i) for i in np.sort(rng.choice(here, size=2, replace=False)))
    start, size = _extend(text, passage, first, second)
    shift = first - start
    if first - shift + size > second - shift:
        return None
    pair = (first - shift, second - shift)
    return (*(pair if rng.random() < 0.5 else pair[::-1]), size)


def _extend(text: TokenText, passage: np.ndarray, first: int, second: int) -> tuple[int, int]:
    """The longest span of letters around two equal tokens that is the same at both; its start and length."""
    start, stop = first, first + 1
    gap = second - first
    while stop + gap < len(passage) and stop - start < _LONGEST and stop < second:
        if passage[stop] != passage[stop + gap] or not text.letters[passage[stop]]:
            break
        stop += 1
    while start > 0 and stop - start < _LONGEST:
        if passage[start - 1] != passage[start - 1 + gap] or not text.letters[passage[start - 1]]:
            break
        start -= 1
    return start, stop - start


def _cut_out(
    text: TokenText, rng: np.random.Generator, passage: np.ndarray, kept: int, asked: int, size: int
) -> Window | None:
    """The words around one occurrence, masked there, are the question; the rest is the context."""
    low = max(asked - int(rng.integers(3, 10)), 0, kept + size if kept < asked else 0)
    high = min(asked + size + int(rng.integers(3, 10)), len(passage), kept if kept > asked else len(passage))
    if high - low - size < 3:
        return None
    around = [*passage[low:asked].tolist(), text.mask, *passage[asked + size : high].tolist()]
    context = [*passage[:low].tolist(), *passage[high:].tolist()]
    gold = kept if kept < asked else kept - (high - low)
    return _extraction(text, context, [*text.literal(_pick(rng, ELSEWHERE)), *around], gold, size)


def _pick(rng: np.random.Generator, wordings: tuple[str, ...]) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _extraction(text: TokenText, context: Tokens, question: Tokens, gold: int, size: int) -> Window:
    opening = [text.cls, *text.literal(_OPEN)]
    ids = [*opening, *context, *text.literal(_ASK), *question, text.sep]
    first = len(opening) + gold
    return Window(
        ids,
        context=(len(opening), len(opening) + len(context) - 1),
        gold=(first, first + size - 1),
        offsets=[(at, at + 1) for at in range(len(context))],
    )
