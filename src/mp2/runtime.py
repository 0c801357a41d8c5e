"""What a run needs from its machine: a device, seeds, and files that are whole or not there at all."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

from mp2.errors import CheckpointError, ConfigError, WriteError

Precision = Literal["fp32", "bf16"]


@contextlib.contextmanager
def whole_folder(target: Path, *, replace: bool = False, kind: str = "") -> Iterator[Path]:
    """Write a folder aside, then put it in place at once: a reader sees all of it or nothing.

    Yields a fresh folder beside ``target``; when the block ends, its files are flushed to disk and it is
    renamed. When the block fails (a full disk, a kill), ``target`` stays as it was.

    Args:
        target: Where the folder shall be.
        replace: Whether an existing ``target`` is replaced.
        kind: File by which a folder of this kind is known; one that holds other files alone is not replaced.

    Raises:
        CheckpointError: ``target`` exists and ``replace`` is false, or it is of another kind.
        WriteError: It cannot be written.
    """
    check_folder(target, replace=replace, kind=kind)
    place = Path(target).resolve()
    with _writing(target):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        try:
            yield aside
            for file in aside.rglob("*"):
                if file.is_file():
                    _flush(file)
            _flush(aside)
            aside.chmod(0o755)
            check_folder(target, replace=replace, kind=kind)  # it may have come meanwhile
            if place.exists():
                # rename cannot replace a folder that is not empty: the old one steps aside first
                old = aside.with_name(f"{aside.name}.old")
                place.rename(old)
                aside.rename(place)
                shutil.rmtree(old, ignore_errors=True)
            else:
                aside.rename(place)
            _flush(place.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file aside, flush it and rename it into place.

    Raises:
        WriteError: It cannot be written.
    """
    check_file(path)
    place = Path(path).resolve()
    with _writing(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _flush(place.parent)


def check_folder(target: Path, *, replace: bool = False, kind: str = "", needed: Iterable[Path] = ()) -> None:
    """Refuse what :func:`whole_folder` would, with its arguments and errors, before any work is done.

    Nor may what is ``needed``, files and folders of the user's, lie in a folder that goes.
    """
    target = Path(target)
    with _writing(target):
        if target.exists():
            if not replace:
                raise CheckpointError(f"{target}: exists already; choose another folder or pass --replace")
            empty = target.is_dir() and not any(target.iterdir())
            if not (empty or (target / kind).is_file()):
                raise CheckpointError(f"{target}: not replaced: expected a folder with a file {kind}")
            if Path.cwd().is_relative_to(target.resolve()):
                raise CheckpointError(f"{target}: not replaced: it holds the current folder")
            for path in needed:
                if path.resolve().is_relative_to(target.resolve()):
                    raise CheckpointError(f"{target}: not replaced: it holds {path}, which would be lost")
    check_room(target.resolve().parent)


def check_file(path: Path) -> None:
    """Refuse what :func:`write_whole` would, before any work is done.

    Raises:
        WriteError: It cannot be written.
    """
    path = Path(path)
    with _writing(path):
        if path.exists() and not path.is_file():  # a folder, or a device that a file would replace
            raise WriteError(f"{path}: expected a file to write, found another thing of that name")
    check_room(path.resolve().parent)


def claim(file: IO[bytes], taken: str) -> None:
    """Keep other processes from claiming an open file until it is closed.

    Raises:
        ConfigError: Another one has it; ``taken`` is the message, and the file is closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(taken) from None


def check_room(folder: Path) -> None:
    """Refuse a folder, there already or not, in which nothing can be written, before any work is done.

    Raises:
        WriteError: A file is in its place or above it, or its rights forbid it.
    """
    folder = Path(folder).absolute()
    with _writing(folder):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            raise WriteError(f"{there}: expected a folder to write in, found a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise WriteError(f"{there}: expected a folder to write in, its rights forbid it")
        with tempfile.TemporaryFile(dir=there):  # what rights do not tell: /proc, a disk without a free inode
            pass


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell what the system refuses as an error of ``path`` that a user can mend."""
    from safetensors import SafetensorError  # what writing a file of tensors raises, on a full disk too

    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{path}: cannot be written: {error}") from error


def place_whole(aside: Path, target: Path) -> None:
    """Flush a file, or a folder of files, written aside on the same disk, and rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in aside.rglob("*") if aside.is_dir() else ():
        _flush(file)
    _flush(aside)
    os.replace(aside, target)
    _flush(target.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, whole or not at all."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hash of a file's bytes, as hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def default_device() -> str:
    """``cuda`` where there is a card, else ``cpu``; for one of several processes, its own card.

    A process that ``accelerate launch`` or ``torchrun`` started beside others joins them here.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        # one process may prepare data for hours while the others wait for it
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
        device = str(state.device)
        atexit.register(_leave)
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(device: str, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Where products are taken in bf16 if ``precision`` is ``bf16``; ``fp32`` changes nothing."""
    if precision != "bf16":
        return contextlib.nullcontext()
    import torch

    # no cache: it would go on with the weights of the step before wherever several steps are inside
    found: contextlib.AbstractContextManager[Any] = torch.autocast(
        device.split(":")[0], dtype=torch.bfloat16, cache_enabled=False
    )
    return found


def native_bf16() -> bool:
    """Whether this machine's processor multiplies bf16 numbers by itself, about twice as fast as fp32."""
    import torch

    # older releases of torch do not say
    knows: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(knows.get("avx512_bf16") or knows.get("amx_bf16"))


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; ``(0, 1)`` for a process on its own."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


@contextlib.contextmanager
def one_after_the_other() -> Iterator[bool]:
    """The first process runs the block before all others; yields whether this is the first.

    For what is written once and read by all: whoever comes second finds it done.
    """
    import torch.distributed

    rank, world = rank_and_world()
    if world > 1 and rank > 0:
        torch.distributed.barrier()
    yield rank == 0
    if world > 1 and rank == 0:
        torch.distributed.barrier()


def sum_over_processes(values: Sequence[float], device: str = "cpu") -> list[float]:
    """Element-wise sums of the processes' values."""
    import torch

    if rank_and_world()[1] == 1:
        return list(values)
    every = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(every)
    found: list[float] = every.tolist()
    return found


def keep_freed_memory() -> None:
    """Let the heap keep what is freed for what comes next (glibc; elsewhere nothing happens).

    Otherwise each large tensor is mapped anew, and a training on a CPU spends a tenth of its time in page
    faults. What piles up is given back by :func:`release_free_memory`.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            for option, value in ((-1, 2**31 - 1), (-2, 2**27), (-3, 2**25)):  # trim, top pad, mmap threshold
                mallopt(option, value)


def release_free_memory() -> None:
    """Give the system back what is free inside this process's heap (glibc; elsewhere nothing happens).

    Batches of ever other shapes leave holes in the heap into which the next shapes do not fit, so a long
    training on a CPU comes to hold several times what it uses. Costs milliseconds.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextlib.contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Keep freed memory in the heap for as long as some work on a processor lasts, however it ends."""
    if device.split(":")[0] != "cpu":
        yield
        return
    keep_freed_memory()
    try:
        yield
    finally:
        release_free_memory()


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Import the large libraries in a fifth less time.

    They make 600,000 objects, all of which stay; looking through them for garbage again and again costs that
    much. Afterwards the collector leaves them alone.
    """
    fresh = "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if fresh:
            gc.freeze()
        gc.enable()


def version_facts() -> dict[str, str]:
    """Versions of the package and of what decides its numbers, for records."""
    import platform
    from importlib.metadata import version

    names = ("mp2", "torch", "transformers", "tokenizers")
    return {name: version(name) for name in names} | {"python": platform.python_version()}
