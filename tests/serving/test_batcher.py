"""The batcher with a machine that computes when it is let and a speed that is stated: nothing is timed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from mp2.errors import TaskError
from mp2.model.answers import Answer
from mp2.serving.batcher import Batcher, BusyError, LateError, Outcome, row_cost
from mp2.serving.predictor import Prediction, Row
from mp2.serving.speed import Speed
from mp2.tasks.render import MRCExample
from tests.serving.kit import COST, Stated


class Machine:
    """Answers with the text it is given, once it is let; remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.runs = threading.Event()

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        self.batches.append([str(text) for _, text in rows])
        assert self.runs.wait(60)
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


def batcher_of(machine: Machine, row: float = 0.0, **options: int) -> Batcher:
    batcher = Batcher(machine, **options)
    batcher.speed = Stated(row)
    batcher.start()
    return batcher


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def occupy(batcher: Batcher, machine: Machine, text: str = "a") -> asyncio.Task[list[Outcome]]:
    """A request that is being computed, until the machine is let."""
    first = asyncio.create_task(batcher.submit([("t", text)], 60))
    await until(lambda: machine.batches)
    return first


async def queue(batcher: Batcher, rows: Sequence[str], seconds: float = 60) -> list[asyncio.Task[Any]]:
    """Requests of one row each, which wait; those that are refused are done."""
    tasks = [asyncio.create_task(batcher.submit([("t", text)], seconds)) for text in rows]
    await until(lambda: batcher.queued + sum(task.done() for task in tasks) == len(rows))
    return tasks


def test_concurrent_requests_share_batches_and_get_their_own_answers() -> None:
    machine = Machine()

    async def scene() -> None:
        batcher = batcher_of(machine, rows=8)
        first = await occupy(batcher, machine)
        tasks = [asyncio.create_task(batcher.submit([("t", f"{n}a"), ("t", f"{n}b")], 60)) for n in range(7)]
        await until(lambda: batcher.queued == 14)
        machine.runs.set()
        assert [texts(await task) for task in tasks] == [[f"{n}a", f"{n}b"] for n in range(7)]
        assert texts(await first) == ["a"]
        await batcher.close()

    run(scene)
    assert [len(batch) for batch in machine.batches] == [1, 8, 6]


def test_a_full_queue_refuses_at_once_with_a_time_to_come_back() -> None:
    async def scene() -> None:
        machine = Machine()
        batcher = batcher_of(machine, rows=2, queue=4)
        first = await occupy(batcher, machine)
        others = await queue(batcher, "bcde")
        with pytest.raises(BusyError, match="the most is 4") as refused:  # at once: nothing is computed yet
            await batcher.submit([("t", "late")], 60)
        assert refused.value.retry_after >= 1
        machine.runs.set()
        await asyncio.gather(first, *others)
        await batcher.close()

    run(scene)


def test_work_that_cannot_be_done_by_its_deadline_is_refused_and_accepted_work_is_answered() -> None:
    async def scene() -> None:
        machine = Machine()
        batcher = batcher_of(machine, 5.9, rows=1, queue=1000)
        first = await occupy(batcher, machine)
        others = await queue(batcher, "b" * 59)
        assert batcher.queued == 4  # twice the work of five rows fits a minute
        machine.runs.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [texts(one) for one in found if not isinstance(one, BusyError)] == [["a"]] + [["b"]] * 4
        await batcher.close()

    run(scene)


def test_a_deadline_that_passes_in_the_queue_costs_no_computation() -> None:
    machine = Machine()

    async def scene() -> None:
        batcher = batcher_of(machine, rows=1)
        first = await occupy(batcher, machine)
        with pytest.raises(LateError):
            await batcher.submit([("t", "b")], 0.05)
        machine.runs.set()
        await first
        await batcher.close()
        assert batcher.queued == 0 and batcher.wait == 0

    run(scene)
    assert machine.batches == [["a"]]


def test_a_machine_that_becomes_slower_refuses_what_it_cannot_do_in_time_and_is_late_with_nothing() -> None:
    machine = Machine()

    async def scene() -> None:
        batcher = batcher_of(machine, 0.02, rows=1)
        first = await occupy(batcher, machine)
        others = await queue(batcher, "b" * 19)
        assert batcher.queued == 19
        batcher.speed = Stated(60.0)
        machine.runs.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert texts(found[0]) == ["a"]
        assert all(isinstance(error, BusyError) and error.retry_after >= 1 for error in found[1:])
        assert batcher.queued == 0 and batcher.wait == 0
        await batcher.close()

    run(scene)
    assert machine.batches == [["a"]]


def test_who_finds_the_machine_idle_is_tried_but_promised_nothing_that_cannot_be_kept() -> None:
    machine = Machine()

    async def scene() -> None:
        batcher = batcher_of(machine, 1.0)
        with pytest.raises(BusyError, match=r"the deadline is 0\.1 s"):
            await batcher.submit([("t", "a")], 0.05)
        machine.runs.set()
        await until(lambda: not batcher.wait)
        batcher.speed = Speed()
        batcher.speed.learn(COST, 1000.0)
        assert texts(await batcher.submit([("t", "b")], 60)) == ["b"]
        assert batcher.speed.seconds(COST) < 1000  # which only a try could tell
        await batcher.close()

    run(scene)


def test_a_bug_hits_its_own_row_only() -> None:
    machine = Machine()

    async def scene() -> None:
        batcher = batcher_of(machine, rows=8)
        first = await occupy(batcher, machine)
        others = await queue(batcher, ["b", "bug", "c", "wrong"])
        machine.runs.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert texts([*found[1], *found[3], *found[4]]) == ["b", "c", "no"]
        assert isinstance(found[2], ZeroDivisionError)
        await batcher.close()

    run(scene)
    assert machine.batches[1] == ["b", "bug", "c", "wrong"]


def test_closing_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    async def scene() -> None:
        machine = Machine()
        batcher = batcher_of(machine, rows=1)
        accepted = [await occupy(batcher, machine, "0"), *await queue(batcher, "123")]
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="closing"):
            await batcher.submit([("t", "x")], 60)
        machine.runs.set()
        assert [texts(await one) for one in accepted] == [["0"], ["1"], ["2"], ["3"]]
        await closing

    run(scene)


def test_every_character_of_a_row_costs() -> None:
    options = ["甲" * 100] * 50
    listed, apart = ("t", {"options": options}), ("t", {f"o{i}": text for i, text in enumerate(options)})
    assert row_cost(listed) == row_cost(apart) > row_cost(("t", "")) + 4_999
    assert row_cost(("t", {"n": 1234})) == row_cost(("t", "1234"))
