"""Vectors of a task's label words, added to the states of their tokens before the first layer.

The options of a row are read as words of its text. Where a word says little to a frozen encoder, or something
else than the task means by it, a prompt beside the text can hardly tell it; a vector at the word itself can:
H numbers per label, and rows of many tasks still share one forward (docs/decisions/0019).

References:
    Hambardzumyan et al., *WARP*, arXiv:2101.00121: trained vectors of label words, at the output.
    Zhang et al., *DART*, arXiv:2108.13161: the same, of unused tokens that stand for the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def added_states(option: Tensor, task: Tensor, vectors: Tensor) -> Tensor:
    """What is added to the state of each token: its label's vector, nothing where it belongs to no label.

    Args:
        option: ``(B, T)`` index of the option that a token is part of, -1 for none.
        task: ``(B,)`` task of each window.
        vectors: ``(N, C, H)``, of N tasks with C labels at most.

    Returns:
        ``(B, T, H)``.
    """
    tasks, labels = vectors.shape[:2]
    place = torch.where((option >= 0) & (option < labels), task[:, None] * labels + option, tasks * labels)
    table = nn.functional.pad(vectors.flatten(0, 1), (0, 0, 0, 1))
    return nn.functional.embedding(place, table)


def stack(vectors: Sequence[Tensor | None]) -> Tensor | None:
    """Vectors ``(C, H)`` of N tasks as ``(N, C, H)``, zeros where a task has fewer; None without any."""
    known = [one for one in vectors if one is not None]
    if not known:
        return None
    stacked = known[0].new_zeros(len(vectors), max(map(len, known)), known[0].shape[1])
    for place, one in zip(stacked, vectors, strict=True):
        if one is not None:
            place[: len(one)] = one
    return stacked
