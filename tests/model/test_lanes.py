"""Pieces side by side: each once, as if one after the other, whatever goes wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from mp2.model.lanes import lanes_for, side_by_side


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_every_piece_is_done_once_without_gradients(lanes: int) -> None:
    before, done = torch.get_num_threads(), torch.zeros(50, dtype=torch.int64)
    seen: set[tuple[bool, int]] = set()

    def work() -> Iterator[Callable[[], None]]:
        for number in range(50):
            yield partial(piece, number)

    def piece(number: int) -> None:
        done[number] += 1
        seen.add((torch.is_inference_mode_enabled(), torch.get_num_threads()))

    side_by_side(work(), lanes)
    assert done.tolist() == [1] * 50
    assert seen == {(True, before if lanes == 1 else 1)}
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("lanes", [1, 2])
def test_pieces_run_under_the_callers_autocast(lanes: int) -> None:
    both, seen = threading.Barrier(lanes, timeout=60), []

    def piece() -> None:
        both.wait()  # each lane takes one
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)

    with torch.autocast("cpu", torch.bfloat16):
        side_by_side([piece] * 2, lanes)
    side_by_side([piece] * 2, lanes)
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_pieces_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=60)
    side_by_side([meeting.wait, meeting.wait], 2)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_work_and_is_raised(lanes: int, error: type[BaseException]) -> None:
    before, done = torch.get_num_threads(), []

    def work() -> Iterator[Callable[[], None]]:
        for number in range(1000):
            yield partial(piece, number)

    def piece(number: int) -> None:
        if number == 5:
            raise error("piece 5")
        done.append(number)

    with pytest.raises(error, match="piece 5"):
        side_by_side(work(), lanes)
    assert len(done) < 999
    assert torch.get_num_threads() == before
    side_by_side([lambda: done.clear()], lanes)  # and the lanes still work
    assert not done


def test_an_error_of_another_thread_is_raised() -> None:
    main, both = threading.current_thread(), threading.Barrier(2, timeout=60)

    def piece() -> None:
        both.wait()
        if threading.current_thread() is not main:
            raise ValueError("elsewhere")

    with pytest.raises(ValueError, match="elsewhere"):
        side_by_side([piece, piece], 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_makes_its_own_threads() -> None:
    side_by_side([lambda: None] * 4, 2)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        side_by_side([lambda: done.append(1)] * 4, 2)
        os._exit(0 if len(done) == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_card_has_one_lane() -> None:
    assert lanes_for(torch.device("cpu")) == torch.get_num_threads()
    assert lanes_for(torch.device("cuda")) == 1


def test_few_pieces_run_one_after_the_other() -> None:
    threads = torch.get_num_threads()
    assert [lanes_for("cpu", pieces) for pieces in (0, 8 * threads - 1, 8 * threads)] == [1, 1, threads]
