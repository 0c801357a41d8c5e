"""``mp2 serve`` and ``mp2 key``: tasks over HTTP, and the keys that let people in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    folder: Annotated[Path, typer.Argument(help="Folder of adapters, one per task; made when absent.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default lets only this machine in.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    model: Annotated[
        str | None, typer.Option(help="Base folder or hub name; the shipped one by default.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Key file; see 'mp2 key'.")] = None,
    no_keys: Annotated[
        bool, typer.Option("--no-keys", help="Let everybody in, also from other machines.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name that requests may use; may be given several times.")
    ] = None,
    read_only: Annotated[bool, typer.Option(help="Answer only: no tuning, no deleting.")] = False,
    memory: Annotated[int, typer.Option(help="MiB of composed adapters to keep.", min=1)] = 1024,
    queue: Annotated[int, typer.Option(help="Rows that may wait.", min=1)] = 1024,
    batch: Annotated[int, typer.Option(help="Rows of a batch.", min=1)] = 64,
    threads: Annotated[int | None, typer.Option(help="Threads of a forward.", min=1)] = None,
) -> None:
    """Serve all tasks of a folder, with a page to make new ones."""
    import torch

    from mp2.runtime import default_device
    from mp2.serving.server import serve as run
    from mp2.serving.service import LOOPBACK, Settings

    if threads is not None:
        torch.set_num_threads(threads)
    hosts = (*LOOPBACK, *(allow_host or ())) if allow_host or host in LOOPBACK else ("*",)
    settings = Settings(
        folder,
        model,
        default_device(),
        keys,
        hosts,
        memory=memory << 20,
        queue=queue,
        batch_rows=batch,
        tune=not read_only,
    )
    run(settings, host, port, open_to_all=no_keys)


def key(
    file: Annotated[Path, typer.Argument(help="Key file; made when absent.")],
    name: Annotated[str, typer.Argument(help="Who the key is for: a-z, 0-9 and _.")],
    per_minute: Annotated[int, typer.Option(help="Requests per minute.", min=1)] = 600,
    ask_only: Annotated[bool, typer.Option(help="The key may ask, but not tune or delete tasks.")] = False,
) -> None:
    """Make an API key, or replace the one of that name; it is shown once and stored only as a hash."""
    from mp2.serving.keys import add_key

    print(add_key(file, name, per_minute=per_minute, tune=not ask_only))
