"""How predictions are scored: accuracy, exact match and two F1 scores over characters.

Decides when two answers count as the same. Works on texts only; what a model predicts is decided elsewhere.

References:
    CMRC 2018: Cui et al., arXiv:1810.07366 (``f1``, ``exact-match``).
    SQuAD: Rajpurkar et al., arXiv:1606.05250 (the form of ``released-f1``).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from mp2.errors import ConfigError, nearest

_WORD = re.compile(r"[^\W\u3400-\u9fff\uf900-\ufaff_]+|\S")
_ARTICLES = frozenset(("a", "an", "the"))
# letters of scripts without spaces between words stand for themselves
_ALONE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def score(metric: str, predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """Mean score of predictions.

    Args:
        metric: ``accuracy``, ``f1``, ``exact-match`` or ``released-f1``.
        predictions: One text per row; empty when no answer is given.
        golds: The right texts of each row; none where the row has no answer.

    Returns:
        A share in [0, 1]; 0 without rows.

    Raises:
        ConfigError: There is no such metric.
    """
    if metric not in METRICS:
        raise ConfigError(f"no metric {metric!r}; {nearest(metric, METRICS)}")
    one = METRICS[metric]
    values = [one(prediction, gold) for prediction, gold in zip(predictions, golds, strict=True)]
    return sum(values) / len(values) if values else 0.0


def accuracy(prediction: str, golds: Sequence[str]) -> float:
    """1 if the prediction is one of the right texts, letter by letter."""
    return float(prediction in golds if golds else not prediction)


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1 if the prediction equals a gold answer without case, punctuation and white space."""
    if not golds:
        return float(not prediction.strip())
    return float(tokens(prediction) in [tokens(gold) for gold in golds])


def character_f1(prediction: str, golds: Sequence[str]) -> float:
    """F1 of the longest common run of characters with the best gold answer, as CMRC 2018 counts it.

    A row without an answer counts as right when nothing is predicted.
    """
    if not golds:
        return float(not prediction.strip())
    return max(_run_f1(tokens(prediction), tokens(gold)) for gold in golds)


def released_f1(prediction: str, golds: Sequence[str]) -> float:
    """The score of the authors' released code: SQuAD's F1 over characters, with the first gold answer only.

    Chinese punctuation counts, the words a, an, the and ASCII punctuation do not, and an empty prediction
    scores 0.
    """
    if not golds:
        return float(not prediction.strip())
    ours, gold = _released_tokens(prediction), _released_tokens(golds[0])
    same = sum((Counter(ours) & Counter(gold)).values())
    return 2 * same / (len(ours) + len(gold)) if same else 0.0


def tokens(text: str) -> list[str]:
    """Characters of a text as tokens: lower case, without punctuation; Latin words and numbers stay whole."""
    found = _split(unicodedata.normalize("NFKC", text).lower())
    return [token for token in found if not all(_is_mark(character) for character in token)]


def _split(text: str) -> list[str]:
    parts: list[str] = []
    for word in _WORD.findall(text):
        parts += list(word) if _ALONE.search(word) else [word]
    return parts


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _released_tokens(text: str) -> list[str]:
    kept = "".join(" " if character in string.punctuation else character for character in text.lower())
    return [token for token in _split(kept) if token not in _ARTICLES]


def _run_f1(prediction: list[str], gold: list[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = _longest_common_run(prediction, gold)
    return 2 * common / (len(prediction) + len(gold))


def _longest_common_run(left: list[str], right: list[str]) -> int:
    best, above = 0, [0] * (len(right) + 1)
    for token in left:
        row = [0] * (len(right) + 1)
        for index, other in enumerate(right):
            if token == other:
                row[index + 1] = above[index] + 1
                best = max(best, row[index + 1])
        above = row
    return best


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "accuracy": accuracy,
    "f1": character_f1,
    "exact-match": exact_match,
    "released-f1": released_f1,
}
