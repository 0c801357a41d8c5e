"""Pieces of a forward side by side, one per core, instead of every operation split over the cores.

PyTorch splits each operation over its threads and waits for the slowest after each. A forward of many small
operations then waits most of the time, above all where other work shares the cores. Pieces that depend on
nothing of each other need to wait only once, at the end. Decides nothing about what a piece is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock

import torch

Work = Iterable[Callable[[], object]]


def lanes_for(device: torch.device | str, pieces: int = 1 << 30) -> int:
    """How many of so many pieces shall run side by side: PyTorch's threads on a processor, one on a card.

    One, too, where pieces are so few that lanes without work at the end would cost more than waiting does.
    """
    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    return threads if pieces >= 8 * threads else 1


def side_by_side(work: Work, lanes: int) -> None:
    """Do all pieces of work, each on one core, without gradients, under the caller's autocast.

    Args:
        work: Pieces, made while others run: the next is taken by whichever lane is free. No piece may read
            what another writes.
        lanes: How many at a time; with 1 they run one after the other with PyTorch's own threads.

    Raises:
        Exception: The first that a piece raised; pieces not begun by then are left out.
    """
    if lanes == 1:
        with torch.inference_mode():
            for piece in work:
                piece()
        return
    threads = torch.get_num_threads()
    queue = _Queue(work)
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    others = [_pool(lanes).submit(_lane, queue, enabled, dtype) for _ in range(lanes - 1)]
    try:
        _lane(queue, enabled, dtype)
    finally:
        queue.close()
        errors = [other.exception() for other in others if not other.cancel()]
        torch.set_num_threads(threads)
    for error in errors:
        if error is not None:
            raise error


class _Queue:
    """Hands out pieces one at a time to several threads."""

    def __init__(self, work: Work) -> None:
        self._work, self._lock, self._open = iter(work), Lock(), True

    def take(self) -> Callable[[], object] | None:
        with self._lock:
            return next(self._work, None) if self._open else None

    def close(self) -> None:
        self._open = False


def _lane(queue: _Queue, autocast: bool, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)  # of this thread; other threads keep theirs
    with torch.inference_mode(), torch.autocast("cpu", dtype, autocast, cache_enabled=False):
        try:
            while (piece := queue.take()) is not None:
                piece()
        except BaseException:
            queue.close()
            raise


@cache
def _pool(lanes: int) -> ThreadPoolExecutor:
    """Threads that stay: a thread that ends leaves the scratch memory of its matrix products behind."""
    return ThreadPoolExecutor(lanes - 1, thread_name_prefix="mp2-lane")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of its parent's threads
