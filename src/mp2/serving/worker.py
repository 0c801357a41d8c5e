"""The process that tunes one uploaded task: ``python -m mp2.serving.worker JOB [BASE]``.

Reads the job from its folder and writes there: ``progress.jsonl`` while it runs, then ``adapter/`` and
``result.json``, or ``error.json``. It runs beside the server, so that tuning can be stopped at any moment and
nothing that goes wrong in it reaches the requests. It ends when the server does.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mp2.errors import Mp2Error
from mp2.runtime import write_json

if TYPE_CHECKING:
    from mp2.model.checkpoint import Base
    from mp2.tasks.render import MRCExample
    from mp2.tuning.adapter import Adapter

NICENESS = 10


def main(folder: Path, base_name: str | None) -> int:
    """Run the job in a folder; returns the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError, AttributeError):  # the requests come first
        os.nice(NICENESS)
    try:
        result = run(folder, base_name)
    except Mp2Error as error:
        write_json(folder / "error.json", {"message": str(error)})
        return 2
    write_json(folder / "result.json", result)
    return 0


def run(folder: Path, base_name: str | None) -> dict[str, Any]:
    """Tune, then measure on the rows that were held back.

    Raises:
        Mp2Error: The examples cannot be tuned on.
    """
    from mp2.errors import TaskError
    from mp2.model.checkpoint import load_base, read_json
    from mp2.runtime import default_device
    from mp2.serving.examples import split
    from mp2.tasks.render import render
    from mp2.tasks.spec import parse_task
    from mp2.tuning.methods import get_method
    from mp2.tuning.tune import tune

    job = read_json(folder / "job.json")
    upload = read_json(folder / "rows.json")
    task = parse_task(upload["task"], "task file")
    examples = [render(task, row, where=f"row {n}") for n, row in enumerate(upload["rows"], start=1)]
    parts = split(examples, float(job["held_back"]), int(job["seed"]))
    base = load_base(base_name, default_device())
    with (folder / "progress.jsonl").open("w", encoding="utf-8") as file:

        def show(record: dict[str, float]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        method = get_method(job["method"])
        adapter = tune(
            base,
            task,
            parts.train,
            parts.dev,
            method,
            seed=int(job["seed"]),
            calibrate=bool(job.get("calibrate")),
            progress=show,
        )
    places = {id(example): place for place, example in enumerate(examples)}
    unseen = [(places[id(example)], example) for example in parts.held_back]
    try:
        measured = measure(adapter, base, unseen, upload["rows"])
    except TaskError:  # a text that can be learned from, and is too long to be answered: the task is not lost
        measured = None
    adapter.facts["held_back"] = {k: v for k, v in measured.items() if k != "rows"} if measured else None
    adapter.save(folder / "adapter", replace=True)
    dev = {"metric": task.metric, "value": adapter.facts["dev"], "rows": len(parts.dev)}
    return {"dev": dev, "held_back": measured, "seconds": adapter.facts["seconds"]}


def measure(
    adapter: Adapter, base: Base, unseen: Sequence[tuple[int, MRCExample]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Score on rows that neither trained nor chose anything, with a 95 % interval for an accuracy.

    Args:
        adapter: The tuned task.
        base: Its base.
        unseen: Place in the upload, from 0, and rendered example of each row that was held back.
        rows: The upload.
    """
    from mp2.serving.predictor import Predictor
    from mp2.tasks.metrics import score

    if not unseen:
        return None
    predictor = Predictor(base)
    predictor.add("task", adapter)
    found = predictor.predict(("task", rows[place]) for place, _ in unseen)
    metric = adapter.task.metric or "accuracy"
    value = score(metric, [p.answer.text for p in found], [example.gold_texts for _, example in unseen])
    low, high = wilson(value, len(unseen)) if metric == "accuracy" else (None, None)
    answers = [
        {
            "row": place + 1,
            "expected": "，".join(example.gold_texts),
            "answer": p.answer.text,
            "probability": round(p.answer.probability, 4),
        }
        for (place, example), p in zip(unseen, found, strict=True)
    ]
    return {"metric": metric, "value": value, "low": low, "high": high, "count": len(unseen), "rows": answers}


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share seen in ``count`` draws; sensible also for few draws and for 0 or 1."""
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def _end_with_parent() -> None:
    """The server holds the other end of standard input; when it is gone, however it went, so are we."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):  # not sys.stdin, whose lock a waiting thread would hold when Python ends
            pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
