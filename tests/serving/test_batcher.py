from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from mp2.errors import TaskError
from mp2.model.answers import Answer
from mp2.serving.batcher import Batcher, BusyError, LateError, Outcome
from mp2.serving.predictor import Prediction, Row
from mp2.tasks.render import MRCExample


class Machine:
    """Answers with the text it is given, in a stated time per batch; remembers the batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, []

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        self.batches.append([str(text) for _, text in rows])
        time.sleep(self.seconds)
        if any(text == "bug" for _, text in rows):
            raise ZeroDivisionError
        return [
            TaskError("no") if text == "wrong" else Prediction(task, Answer(str(text), 1.0), MRCExample(()))
            for task, text in rows
        ]


def run(scene: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(scene())


def texts(outcomes: Sequence[Outcome]) -> list[str]:
    return [str(o) if isinstance(o, TaskError) else o.answer.text for o in outcomes]


def test_concurrent_requests_share_batches_and_get_their_own_answers() -> None:
    machine = Machine(0.05)

    async def scene() -> None:
        batcher = Batcher(machine, rows=8)
        batcher.start()
        found = await asyncio.gather(*(batcher.submit([("t", f"{n}a"), ("t", f"{n}b")], 5) for n in range(8)))
        assert [texts(f) for f in found] == [[f"{n}a", f"{n}b"] for n in range(8)]
        await batcher.close()

    run(scene)
    assert len(machine.batches) <= 3 and max(map(len, machine.batches)) == 8


def test_a_full_queue_refuses_at_once_with_a_time_to_come_back() -> None:
    async def scene() -> None:
        batcher = Batcher(Machine(0.2), rows=2, queue=4)
        batcher.start()
        first = asyncio.create_task(batcher.submit([("t", "a")], 5))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batcher.submit([("t", str(n))], 5)) for n in range(4)]
        await asyncio.sleep(0.01)
        begin = time.perf_counter()
        with pytest.raises(BusyError, match="the most is 4") as refused:
            await batcher.submit([("t", "late")], 5)
        assert time.perf_counter() - begin < 0.05 and refused.value.retry_after >= 1
        await asyncio.gather(first, *others)
        await batcher.close()

    run(scene)


def test_work_that_cannot_be_done_by_its_deadline_is_refused_and_accepted_work_is_on_time() -> None:
    async def scene() -> None:
        batcher = Batcher(Machine(0.05), rows=1, queue=1000)
        batcher.start()
        await batcher.submit([("t", "a")], 5)  # the speed is known from here on: 20 rows a second
        loop, kept, refused, late = asyncio.get_running_loop(), 0, 0, 0

        async def one() -> None:
            nonlocal kept, refused, late
            begin = loop.time()
            try:
                await batcher.submit([("t", "b")], 0.5)
                kept += 1
                assert loop.time() - begin <= 0.55
            except BusyError:
                refused += 1
            except LateError:
                late += 1

        await asyncio.gather(*(one() for _ in range(60)))
        assert kept >= 3 and refused >= 40 and late == 0
        await batcher.close()

    run(scene)


def test_a_deadline_that_passes_in_the_queue_costs_no_computation() -> None:
    machine = Machine(0.2)

    async def scene() -> None:
        batcher = Batcher(machine, rows=1)
        batcher.start()
        first = asyncio.create_task(batcher.submit([("t", "a")], 5))
        await asyncio.sleep(0.02)
        with pytest.raises(LateError):
            await batcher.submit([("t", "b")], 0.05)  # the speed is not known yet, so it is let in
        await first
        await batcher.close()
        assert batcher.queued == 0 and batcher.wait == 0

    run(scene)
    assert machine.batches == [["a"]]


def test_a_machine_that_becomes_slower_refuses_what_it_cannot_do_in_time_and_is_late_with_nothing() -> None:
    machine = Machine(0.02)

    async def scene() -> None:
        batcher = Batcher(machine, rows=1)
        batcher.start()
        await batcher.submit([("t", "a")], 5)
        loop = asyncio.get_running_loop()

        async def one() -> str:
            begin = loop.time()
            try:
                await batcher.submit([("t", "b")], 1.5)
            except BusyError as error:
                assert error.retry_after >= 1 and loop.time() - begin < 1.5
                return "refused"
            assert loop.time() - begin < 1.55
            return "answered"

        waiting = [asyncio.create_task(one()) for _ in range(20)]  # 0.4 s of work: all are let in
        await asyncio.sleep(0.01)
        assert batcher.queued == 19
        machine.seconds = 0.2
        found = await asyncio.gather(*waiting)  # a LateError would fail here
        assert found.count("answered") >= 2 and found.count("refused") >= 10
        assert batcher.queued == 0 and batcher.wait < 0.1
        await batcher.close()

    run(scene)


def test_who_finds_the_machine_idle_is_tried_but_promised_nothing_that_cannot_be_kept() -> None:
    machine = Machine(0.1)

    async def scene() -> None:
        batcher = Batcher(machine)
        batcher.start()
        await batcher.submit([("t", "a")], 5)
        with pytest.raises(BusyError, match=r"the deadline is 0\.1 s"):
            await batcher.submit([("t", "b")], 0.05)
        await asyncio.sleep(0.1)
        machine.seconds = 0.0
        for text in "cd":  # the machine is faster now, which only a try can tell
            assert texts(await batcher.submit([("t", text)], 0.08)) == [text]
            await asyncio.sleep(0.1)
        await batcher.close()

    run(scene)


def test_a_bug_hits_its_own_row_only() -> None:
    async def scene() -> None:
        machine = Machine(0.02)
        batcher = Batcher(machine, rows=8)
        batcher.start()
        first = asyncio.create_task(batcher.submit([("t", "first")], 5))
        await asyncio.sleep(0.005)
        others = [asyncio.create_task(batcher.submit([("t", t)], 5)) for t in ("a", "bug", "b", "wrong")]
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert texts([*found[1], *found[3], *found[4]]) == ["a", "b", "no"]
        assert isinstance(found[2], ZeroDivisionError)
        await batcher.close()

    run(scene)


def test_closing_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    async def scene() -> None:
        batcher = Batcher(Machine(0.05), rows=1)
        batcher.start()
        accepted = [asyncio.create_task(batcher.submit([("t", str(n))], 5)) for n in range(4)]
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="closing"):
            await batcher.submit([("t", "x")], 5)
        assert [texts(f) for f in await asyncio.gather(*accepted)] == [["0"], ["1"], ["2"], ["3"]]
        await closing

    run(scene)
