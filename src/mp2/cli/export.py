"""``mp2 export`` and ``mp2 hub``: adapters for PEFT, for ONNX runtimes, and to and from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mp2.cli.options import Model

app = typer.Typer(no_args_is_help=True, help="Adapters in other programs' formats.")
hub = typer.Typer(no_args_is_help=True, help="Adapters and bases on the Hugging Face hub.")
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
Replace = Annotated[bool, typer.Option(help="Replace the folder if it exists.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit; the main branch by default.")]
Endpoint = Annotated[str | None, typer.Option(help="Address of the hub; the public one by default.")]


@app.command()
def peft(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder with a deep prompt.")],
    out: Out,
    model: Model = None,
    replace: Replace = False,
) -> None:
    """Write a PEFT prefix-tuning folder."""
    from mp2.export.prefix_tuning import export_peft
    from mp2.model.checkpoint import load_base
    from mp2.tuning.adapter import base_of, load_adapter

    loaded = load_adapter(adapter)
    export_peft(loaded, load_base(model or base_of(loaded)), out, replace=replace)
    print(f"wrote {out}; its README.md says how PEFT loads it")


@app.command()
def onnx(
    adapters: Annotated[list[Path], typer.Argument(help="Adapter folders of one base.")],
    out: Out,
    model: Model = None,
    replace: Replace = False,
) -> None:
    """Write one ONNX graph of encoder and head, with the prompts of some tasks as its inputs."""
    from mp2.export.graph import export_onnx
    from mp2.model.checkpoint import load_base
    from mp2.tuning.adapter import base_of, load_adapter

    named = [(folder.resolve().name, load_adapter(folder)) for folder in adapters]
    export_onnx(load_base(model or base_of(named[0][1])), named, out, replace=replace)
    size = (out / "encoder.onnx").stat().st_size
    print(f"wrote {out}: encoder.onnx ({size / 2**20:.1f} MiB) and the inputs of {len(named)} tasks")


@hub.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an adapter or of a base.")],
    repository: Annotated[str, typer.Argument(help="USER/NAME on the hub; made when absent.")],
    public: Annotated[
        bool, typer.Option("--public", help="A new repository can be read by everybody.")
    ] = False,
    revision: Revision = None,
    endpoint: Endpoint = None,
) -> None:
    """Upload an adapter or a base, with a model card; the access token is that of 'hf auth login'."""
    from mp2.export.hub import push_to_hub

    print(push_to_hub(folder, repository, private=not public, revision=revision, endpoint=endpoint))


@hub.command()
def pull(
    repository: Annotated[str, typer.Argument(help="USER/NAME on the hub.")],
    out: Out,
    revision: Revision = None,
    endpoint: Endpoint = None,
    replace: Replace = False,
) -> None:
    """Fetch an adapter or a base, safetensors and text files only, and check that it can be read."""
    from mp2.export.hub import pull as fetch

    print(f"wrote {out}: {fetch(repository, out, revision=revision, endpoint=endpoint, replace=replace)}")
