"""Windows end to end on one token axis, without padding, and how the axis is cut into pieces.

Prompt slots, where there are any, come before the other tokens of their window: order on the axis means
nothing, since positions are embedded by then. Decides nothing about what is computed for a piece.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Edges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some neighbouring windows, which run together.

    Attributes:
        rows: Their tokens among all S.
        picks: Their picked tokens among all picked ones.
        windows: Tokens ``[from, to)`` of each window within the piece.
        picked: Picked tokens ``[from, to)`` of each window within the piece's picked ones.
        pick: Place of each picked token within the piece.
        slots: Place of each prompt slot within the piece.
    """

    rows: slice
    picks: slice
    windows: Edges
    picked: Edges
    pick: Tensor
    slots: Tensor


class Windows:
    """Where windows and their picked tokens lie.

    Args:
        sizes: Tokens of each window, slots included.
        picks: Places of the picked tokens on the axis, ascending.
        slots: Prompt slots at the front of each window.
    """

    def __init__(self, sizes: list[int], picks: Tensor, slots: int) -> None:
        self.sizes, self.picks, self.slots = sizes, picks, slots
        self._ends = list(accumulate(sizes, initial=0))
        self._cut: dict[tuple[int, int, int], list[Piece]] = {}

    def pieces(self, candidates: int, tokens: int, lanes: int) -> list[Piece]:
        """Neighbouring windows in pieces of about the same size.

        Args:
            candidates: How many run through each piece at once.
            tokens: What a piece may about hold, over its candidates; at least one window is in each.
            lanes: How many run side by side; there are as many pieces, or a multiple, if windows allow.
        """
        key = (candidates, tokens, lanes)
        if key not in self._cut:
            whole = self._ends[-1]
            count = -(-whole * candidates // tokens)
            count = -(-count // lanes) * lanes
            near = {self._nearest(whole * k / count) for k in range(1, count)}
            edges = sorted(near | {0, len(self.sizes)})
            self._cut[key] = [self._piece(start, stop) for start, stop in pairwise(edges)]
        return self._cut[key]

    def _nearest(self, token: float) -> int:
        """Number of the window that begins nearest to a place on the axis."""
        after = bisect_left(self._ends, token)
        return after if self._ends[after] - token < token - self._ends[after - 1] else after - 1

    def _piece(self, start: int, stop: int) -> Piece:
        """The windows ``[start, stop)``."""
        ends = self._ends
        edges = torch.tensor(ends[start : stop + 1], device=self.picks.device)
        cuts = torch.searchsorted(self.picks, edges).tolist()
        picks = slice(cuts[0], cuts[-1])
        slots = (edges[:-1] - edges[0])[:, None] + torch.arange(self.slots, device=edges.device)
        return Piece(
            slice(ends[start], ends[stop]),
            picks,
            list(pairwise([end - ends[start] for end in ends[start : stop + 1]])),
            list(pairwise([cut - cuts[0] for cut in cuts])),
            self.picks[picks] - ends[start],
            slots.reshape(-1),
        )
