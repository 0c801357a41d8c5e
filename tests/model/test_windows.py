"""Windows end to end: pieces cover the axis once, in order, and are of about the same size."""

from __future__ import annotations

import pytest
import torch

from mp2.model.windows import Windows

SIZES = [30, 7, 12, 51, 9, 9, 20, 44]


def made(slots: int = 0) -> Windows:
    total = sum(SIZES)
    return Windows(SIZES, torch.arange(slots, total, 5), slots)


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 60, 200, 10_000])
@pytest.mark.parametrize("candidates", [1, 4])
def test_pieces_cover_every_token_and_pick_once(candidates: int, tokens: int, lanes: int) -> None:
    windows = made()
    pieces = windows.pieces(candidates, tokens, lanes)
    rows = [row for piece in pieces for row in range(piece.rows.start, piece.rows.stop)]
    picks = [pick for piece in pieces for pick in range(piece.picks.start, piece.picks.stop)]
    assert rows == list(range(sum(SIZES)))
    assert picks == list(range(len(windows.picks)))
    assert [b - a for piece in pieces for a, b in piece.windows] == SIZES
    for piece in pieces:
        assert (piece.pick + piece.rows.start).tolist() == windows.picks[piece.picks].tolist()
        for (a, b), (c, d) in zip(piece.windows, piece.picked, strict=True):
            assert all(a <= place < b for place in piece.pick[c:d].tolist())


def test_lanes_get_pieces_of_about_the_same_size() -> None:
    for lanes in (1, 2, 3):
        pieces = made().pieces(1, 10_000, lanes)
        sizes = [piece.rows.stop - piece.rows.start for piece in pieces]
        assert len(sizes) == lanes
        assert max(sizes) - min(sizes) <= max(SIZES)
    # three pieces would leave one of two lanes idle
    assert len(made().pieces(1, sum(SIZES) // 3 + 1, 2)) == 4


def test_slots_are_at_the_front_of_their_window() -> None:
    first, second = made(slots=3).pieces(1, 10_000, 2)
    for piece in (first, second):
        assert piece.slots.tolist() == [a + i for a, _ in piece.windows for i in range(3)]


def test_one_window_is_never_cut() -> None:
    pieces = Windows([40], torch.tensor([3]), 0).pieces(20, 100, 4)
    assert [piece.windows for piece in pieces] == [[(0, 40)]]
