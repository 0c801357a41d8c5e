"""The ``mp2`` command: puts the sub-commands together and turns user errors into exit code 2.

Heavy imports live inside the commands, so that ``mp2 --help`` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
from io import TextIOWrapper

import typer

from mp2.cli import data, evaluate, export, inspect, poly, pretrain, serve, tasks, tune
from mp2.cli import demo as demo_command
from mp2.errors import Mp2Error

app = typer.Typer(
    name="mp2",
    help="Few-shot Chinese text tasks on a frozen encoder: multi-task pre-trained modular prompts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(tasks.app, name="tasks")
app.add_typer(data.app, name="data")
app.add_typer(export.app, name="export")
app.add_typer(export.hub, name="hub")
app.command()(tune.tune)
app.command()(tune.predict)
app.command()(serve.serve)
app.command()(serve.key)
app.command()(pretrain.pretrain_backbone)
app.command()(pretrain.warm_up)
app.command()(pretrain.pretrain)
app.command()(pretrain.pretrain_ppt)
app.command()(poly.pretrain_poly)
app.command()(pretrain.assemble)
app.command()(demo_command.demo)
app.command()(evaluate.methods)
app.command()(evaluate.evaluate)
app.command()(evaluate.report)
app.command()(inspect.inspect)


def run() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not stream.isatty():
            # whatever the locale says: texts are Chinese
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except Mp2Error as error:
        print(f"mp2: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is not None:
            if error.errno not in (errno.ENAMETOOLONG, errno.EACCES, errno.ENOENT):
                raise
            print(f"mp2: error: {str(error.filename)[:200]}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EPIPE):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer has nowhere to go
        if error.errno == errno.EPIPE:  # whoever read has read enough
            sys.exit(1)
        print(f"mp2: error: cannot be written: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
