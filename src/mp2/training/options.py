"""A row's options in another order, or with fewer wrong ones: so an encoder reads them, not their places.

In a data set every row lists the same options in the same order, and an encoder that moves can learn "the
second place means positive" in place of reading the option. A task it has never seen has other options in
other places.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mp2.data.encode import Encoded, Window


def mix_options(row: Encoded, rng: np.random.Generator) -> Encoded:
    """The same row with its options shuffled and, half of the time, only some of the wrong ones kept.

    Options keep their numbers, so the answer stays what it was. A row without options, without a known answer
    or whose options are spread over several windows is returned as it is.

    Args:
        row: An encoded row; not changed.
        rng: Source of the order and the choice.
    """
    if len(row.windows) != 1 or row.n_options < 2 or row.answer is None:
        return row
    window = row.windows[0]
    order = rng.permutation(row.n_options).tolist()
    if row.n_options > 2 and rng.random() < 0.5:
        wrong = [index for index in order if index != row.answer]
        kept = {row.answer, *wrong[: int(rng.integers(1, len(wrong)))]}
        order = [index for index in order if index in kept]
    return replace(row, windows=(_reordered(window, order, row.answer),))


def _reordered(window: Window, order: list[int], answer: int) -> Window:
    """The window with these options in this order; each is followed by what separates it from the next."""
    places = {index: (first, last) for index, first, last in window.options}
    ends = [first for _, first, _ in window.options[1:]] + [len(window.ids)]
    stop = dict(zip(places, ends, strict=True))
    ids = window.ids[: window.options[0][1]]
    options = []
    for index in order:
        first, last = places[index]
        options.append((index, len(ids), len(ids) + last - first))
        ids = [*ids, *window.ids[first : stop[index]]]
    gold = next((first, last) for index, first, last in options if index == answer)
    return Window(ids, options=options, gold=gold)
