"""``mp2 tune`` and ``mp2 predict``: labelled rows to an adapter, texts to answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mp2.cli.options import Calibrate, Json, Model, Precision, Refit, Seed, pairs

if TYPE_CHECKING:
    from mp2.model.checkpoint import Base
    from mp2.tasks.render import MRCExample
    from mp2.tasks.spec import TaskSpec
    from mp2.tuning.adapter import Adapter
    from mp2.tuning.methods import Method

SEARCHED = ("calls", "ended", "interrupted", "similar_tasks")  # facts of a black-box search


def tune(
    train: Annotated[Path, typer.Argument(help="Labelled rows: CSV, TSV, JSON or JSONL.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter.")],
    dev: Annotated[Path | None, typer.Option(help="Labelled rows that decide what is kept.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Task file or catalogue name; inferred when absent.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Method; see 'mp2 methods'. By default the one that suits the labels.")
    ] = None,
    model: Model = None,
    seed: Seed = 42,
    dev_share: Annotated[
        float, typer.Option(help="Share of the rows kept for dev when there is no --dev.")
    ] = 0.33,
    search: Annotated[
        Path | None,
        typer.Option(
            help="Folder from which the same command continues a black-box search, also after a kill (after"
            " Ctrl-C, which leaves an adapter, with --replace)."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: a stage's setting, such as calls=500 or 2.popsize=10."),
    ] = None,
    precision: Precision = "fp32",
    refit: Refit = False,
    calibrate: Calibrate = False,
    replace: Annotated[bool, typer.Option(help="Replace the adapter folder if it exists.")] = False,
    json_: Json = False,
) -> None:
    """Learn a task from a few labelled rows and write an adapter."""
    from mp2.errors import ConfigError, SearchError
    from mp2.runtime import check_folder, default_device, heavy_imports

    with heavy_imports():
        from mp2.evaluation.settings import with_settings
        from mp2.model.checkpoint import load_base
        from mp2.tuning.default import default_method
        from mp2.tuning.methods import DEFAULT_METHOD, get_method
        from mp2.tuning.refit import check_refit
        from mp2.tuning.refit import refit as learn_again
        from mp2.tuning.rows import hold_out, labelled_rows
        from mp2.tuning.tune import check_calibrate
        from mp2.tuning.tune import tune as run

    settings = pairs("--set", "NAME=VALUE", setting or [])
    (row,) = with_settings([get_method(method or DEFAULT_METHOD)], settings)
    if refit:
        check_refit(row)
    check_folder(out, replace=replace, kind="adapter.json", needed=filter(None, (train, dev, search)))
    if search is not None and search.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"--search {search} lies in --out {out}, which is written whole; name another folder"
        )
    spec, examples = labelled_rows(train, task)
    if calibrate:
        check_calibrate(row, spec)
    if dev is None:
        examples, dev_examples = hold_out(examples, dev_share, seed, train)
    else:
        dev_examples = _dev_rows(dev, spec, examples)
    base = load_base(model, default_device())
    if method is None:
        (row,) = with_settings([default_method(base, spec)], settings)
    if not json_:
        _tell_plan(base, spec, row, len(examples), len(dev_examples))
        if task is None:
            _tell_unread(train, spec)
    progress = None if json_ else _show
    try:
        adapter = run(
            base,
            spec,
            examples,
            dev_examples,
            row,
            seed=seed,
            precision=precision,
            calibrate=calibrate,
            progress=progress,
            folder=search,
        )
    except SearchError as error:
        error.best.save(out, replace=replace)
        raise SearchError(f"{error}; the best adapter so far is in {out}", error.best) from error
    if refit:
        if not json_:
            _say(f"dev {spec.metric} {adapter.facts['dev']:.3f}; now from all rows")
        adapter = learn_again(base, adapter, examples, dev_examples, row, seed=seed, precision=precision)
        if "refit" not in adapter.facts and not json_:
            _say("the dev rows had kept the start: there is nothing to learn again")
    adapter.save(out, replace=replace)
    _tell_cut(adapter.facts.get("cut", 0), len(examples) + len(dev_examples))
    _report(adapter, spec, out, json_, resumable=search is not None)


def _dev_rows(file: Path, spec: TaskSpec, train: list[MRCExample]) -> list[MRCExample]:
    """The rows of a dev file; says so where train rows are among them."""
    from mp2.tuning.rows import labelled_rows, shared

    _, rows = labelled_rows(file, spec)
    if both := shared(train, rows):
        _say(f"{both} of the {len(rows)} dev rows are train rows too: the dev score flatters")
    return rows


def _show(record: dict[str, float]) -> None:
    stage = "start" if record["stage"] < 0 else f"stage {int(record['stage']) + 1}"
    loss = f"  loss {record['loss']:.3f}" if "loss" in record else ""
    best = f"  best {record['best']:.3f}" if "best" in record else ""
    _say(f"{stage:8} step {int(record['step']):4d}{loss}  dev {record['dev']:.3f}{best}")


def _report(adapter: Adapter, spec: TaskSpec, out: Path, json_: bool, *, resumable: bool) -> None:
    facts = adapter.facts
    size = sum(file.stat().st_size for file in out.iterdir())
    if json_:
        wanted = ("seed", "shots", "dev", "refit", "seconds", "tuned_parameters", *SEARCHED)
        summary = {key: facts[key] for key in wanted if key in facts}
        summary |= {"calibrated": True} if adapter.label_offsets else {}
        print(
            json.dumps(
                {"adapter": str(out), "task": spec.name, "method": adapter.method, "bytes": size, **summary}
            )
        )
        return
    print(
        f"wrote {out} ({size / 1024:.0f} KiB): dev {spec.metric} {facts['dev']:.3f},"
        f" {facts['tuned_parameters']:,} numbers tuned in {facts['seconds']:.1f} s"
    )
    if adapter.label_offsets:
        print("the scores of labels were calibrated on the train rows")
    if "refit" in facts:
        print(f"learned again from all {facts['refit']} rows; the dev score is of the time before")
    if facts.get("similar_tasks"):
        print(f"most like the known tasks {', '.join(name for name, _ in facts['similar_tasks'][:3])}")
    if facts.get("interrupted"):
        more = "; the same command with --replace goes on" if resumable else ""
        print(f"the search was interrupted: this is its best so far{more}")
    print(f"the task as it was understood: {out / 'task.yaml'}")


def predict(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to answer.")] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", "-i", help="Rows: CSV, TSV, JSON or JSONL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSONL file; standard output when absent.")
    ] = None,
    model: Model = None,
    precision: Precision = "fp32",
    json_: Json = False,
) -> None:
    """Answer texts or rows with an adapter."""
    from mp2.errors import ConfigError
    from mp2.runtime import autocast, check_file, default_device, heavy_imports, write_whole

    with heavy_imports():
        from mp2.model.checkpoint import load_base
        from mp2.serving.predictor import Predictor
        from mp2.tuning.adapter import base_of, load_adapter
        from mp2.tuning.rows import plain_rows

    if (texts is None) == (input_ is None):
        raise ConfigError("give texts, or a file with --input: exactly one of the two")
    for number, text in enumerate(texts or (), start=1):
        if not text.strip():
            raise ConfigError(f"text {number} is empty, and there is nothing to answer")
    if output is not None:
        check_file(output)
        if input_ is not None and output.exists() and output.samefile(input_):
            raise ConfigError(f"--output {output} is the file of the rows; name another")
    loaded = load_adapter(adapter)
    located = plain_rows(input_, loaded.task) if input_ is not None else []
    rows: list[Any] = [row for _, row in located] or list(texts or ())
    predictor = Predictor(load_base(model or base_of(loaded), default_device()))
    predictor.add("task", loaded)
    with autocast(predictor.base.device, precision):
        found = predictor.predict([("task", row) for row in rows], [where for where, _ in located])
    _tell_cut(sum(prediction.cut for prediction in found), len(found))
    lines = [json.dumps(p.as_dict(), ensure_ascii=False) for p in found]
    if output is not None:
        write_whole(output, "\n".join(lines) + "\n")
        _say(f"wrote {len(lines)} predictions to {output}")
    elif json_ or input_ is not None or not sys.stdout.isatty():
        print("\n".join(lines))
    else:
        for row, prediction in zip(rows, found, strict=True):
            print(f"{prediction.answer.text or '(no answer)'}\t{prediction.answer.probability:.3f}\t{row}")


def _tell_cut(cut: int, texts: int) -> None:
    """Say how many texts are not read to their end."""
    if cut:
        _say(f"{cut} of {texts} texts are longer than what is read, and are cut")


def _tell_plan(base: Base, spec: TaskSpec, method: Method, train: int, dev: int) -> None:
    """Say what is about to be learned, and how."""
    from mp2.tuning.default import knows_no_label

    kind = "labels " + "，".join(spec.labels) if spec.labels else f"metric {spec.metric}"
    _say(f"task {spec.name}: {spec.family}, {kind}; {train} train and {dev} dev rows")
    _say(f"method {method.name} on {base.name}: {method.about}")
    if knows_no_label(base, spec):
        _say(f"{base.name} was taught none of these labels; --method lora, which changes it, may do better")


def _tell_unread(file: Path, spec: TaskSpec) -> None:
    """Say which columns of a file its task, which was inferred, takes nothing from."""
    from mp2.data.readers import read_table
    from mp2.tasks.infer import unread_columns

    if unread := unread_columns(spec, (row for _, row in read_table(file))):
        _say(f"columns that are not read: {', '.join(unread)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
