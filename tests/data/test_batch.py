"""Grouping rows by length: every row once, within the budget, and cheap to run."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mp2.data.batch import length_batches


def _cost(groups: list[list[int]], lengths: list[int], start: int) -> int:
    return sum(start + len(group) * max(lengths[i] for i in group) for group in groups)


@given(
    lengths=st.lists(st.integers(1, 60), max_size=25),
    tokens=st.integers(1, 200),
    rows=st.integers(1, 9),
    start=st.sampled_from([0, 1, 20, 300]),
)
def test_every_row_is_in_one_batch_within_the_budget(
    lengths: list[int], tokens: int, rows: int, start: int
) -> None:
    groups = list(length_batches(lengths, tokens=tokens, rows=rows, start=start))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) <= rows
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens
    tops = [lengths[group[0]] for group in groups]
    assert tops == sorted(tops, reverse=True)


@pytest.mark.parametrize("start", [1, 8, 40])
def test_cuts_by_cost_are_the_cheapest_of_all(start: int) -> None:
    lengths, tokens = [31, 30, 12, 11, 11, 10, 3, 2], 60
    found = list(length_batches(lengths, tokens=tokens, start=start))
    every = []
    for count in range(len(lengths)):
        for cuts in combinations(range(1, len(lengths)), count):
            edges = [0, *cuts, len(lengths)]
            groups = [list(range(a, b)) for a, b in pairwise(edges)]
            if all(len(g) * lengths[g[0]] <= tokens for g in groups):
                every.append(_cost(groups, lengths, start))
    assert _cost(found, lengths, start) == min(every)
