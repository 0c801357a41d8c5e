"""Mixed options: each keeps its tokens and number, the answer stays, what cannot be mixed is let be."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mp2.data.encode import Encoded, Window
from mp2.training.options import mix_options

QUESTION, COMMA = [2, 50, 51, 52], 9


def _row(sizes: list[int], answer: int | None) -> Encoded:
    """A row whose option ``i`` has ``sizes[i]`` tokens ``100 i + 100, ...``."""
    ids, options = list(QUESTION), []
    for index, size in enumerate(sizes):
        options.append((index, len(ids), len(ids) + size - 1))
        ids += [*range(100 * index + 100, 100 * index + 100 + size), COMMA]
    gold = None if answer is None else options[answer][1:]
    return Encoded((Window(ids, options=options, gold=gold),), len(sizes), answer)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=12), st.integers(0, 2**31), st.data())
def test_options_keep_their_tokens_and_the_answer_stays(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    row = _row(sizes, data.draw(st.integers(0, len(sizes) - 1)))
    mixed = mix_options(row, np.random.default_rng(seed))
    (window,) = mixed.windows
    assert window.ids[: len(QUESTION)] == QUESTION and window.ids[-1] == COMMA
    assert len(window.ids) == len(QUESTION) + sum(last - first + 2 for _, first, last in window.options)
    for index, first, last in window.options:
        assert window.ids[first : last + 1] == list(
            range(100 * index + 100, 100 * index + 100 + sizes[index])
        )
        assert window.ids[last + 1] == COMMA
    assert len({index for index, *_ in window.options}) == len(window.options) >= 2
    right = next(span for span in window.options if span[0] == row.answer)
    assert window.gold == right[1:] and (mixed.answer, mixed.n_options) == (row.answer, row.n_options)


def test_every_place_and_number_of_options_comes() -> None:
    rng = np.random.default_rng(0)
    mixed = [mix_options(_row([1, 2, 1, 3], 2), rng).windows[0].options for _ in range(300)]
    assert {len(options) for options in mixed} == {2, 3, 4}
    assert {[index for index, *_ in options].index(2) for options in mixed} == {0, 1, 2, 3}


def test_what_cannot_be_mixed_is_returned_as_it_is() -> None:
    rng = np.random.default_rng(0)
    plain = _row([1, 1], 0)
    spread = Encoded(plain.windows * 2, 2, 0)
    span = Encoded((Window([2, 7, 8], context=(1, 2), gold=(1, 1)),))
    for row in (_row([1, 1], None), spread, span):
        assert mix_options(row, rng) is row
