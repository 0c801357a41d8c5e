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

from mp2.data.batch import MRCBatch


def added_states(batch: MRCBatch, vectors: Tensor) -> Tensor:
    """What is added to the state of each token: its label's vector, nothing where it belongs to no label.

    Args:
        batch: B windows; ``batch.prompt`` says which task each row is of.
        vectors: ``(N, C, H)``, of N tasks with C labels at most.

    Returns:
        ``(B, T, H)``.
    """
    count = vectors.shape[1]
    index = batch.token_option
    task = batch.prompt[batch.window_row][:, None]
    nothing = vectors.shape[0] * count
    place = torch.where((index >= 0) & (index < count), task * count + index, nothing)
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
