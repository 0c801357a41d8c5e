"""What a run needs from its machine, on a machine that is really there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mp2 import runtime
from mp2.errors import CheckpointError, WriteError
from mp2.runtime import check_file, check_folder, check_room, whole_folder, write_whole

HOLES = """
import random, numpy
from pathlib import Path
from mp2.runtime import release_free_memory

def held():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1])

random.seed(0)
arrays = [numpy.ones(10_000) for _ in range(2_000)]  # 160 MB in pieces that lie in the heap
arrays = arrays[::100]
before = held()
release_free_memory()
print(before, held())
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only glibc keeps holes in its heap that it can give back"
)
def test_free_memory_between_used_pieces_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before - 100_000


@pytest.mark.parametrize(("device", "expected"), [("cpu", ["keep", "work", "release"]), ("cuda:0", ["work"])])
def test_kept_memory_is_given_back_however_the_work_ends(
    device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: seen.append("keep"))
    monkeypatch.setattr(runtime, "release_free_memory", lambda: seen.append("release"))
    with pytest.raises(KeyboardInterrupt), runtime.freed_memory_kept(device):
        seen.append("work")
        raise KeyboardInterrupt
    assert seen == expected


def _write(target: Path, text: str = "new") -> None:
    with whole_folder(target, replace=True, kind="kind.json") as aside:
        write_whole(aside / "kind.json", text)


def _tree(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_text() for file in files}


def test_a_folder_of_its_kind_or_an_empty_one_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("old")
    _write(tmp_path / "old", "old")
    for name in ("empty", "link"):
        _write(tmp_path / name)
    assert _tree(tmp_path) == {f"{name}/kind.json": "new" for name in ("empty", "old")}
    assert (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("target", ["", "a", "a/kind.json", "a/../b"])
def test_nothing_else_is_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a/kind.json", "b/other.json"):
        write_whole(tmp_path / name, "old")
    before = _tree(tmp_path)
    if target == "a":
        with pytest.raises(CheckpointError, match="exists already"), whole_folder(tmp_path / target):
            pass
    else:
        with pytest.raises(CheckpointError, match=r"not replaced: expected a folder with a file kind\.json"):
            _write(tmp_path / target)
    assert _tree(tmp_path) == before and len(list(tmp_path.iterdir())) == 2


def test_the_current_folder_is_not_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "a", "old")
    (tmp_path / "a" / "in").mkdir()
    for here in ("a", "a/in"):
        monkeypatch.chdir(tmp_path / here)
        with pytest.raises(CheckpointError, match="holds the current folder"):
            _write(Path(os.path.relpath(tmp_path / "a")))
    assert _tree(tmp_path) == {"a/kind.json": "old"}


def test_what_comes_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"), whole_folder(tmp_path / "a") as aside:
        write_whole(aside / "mine", "mine")
        write_whole(tmp_path / "a" / "theirs", "theirs")
    assert _tree(tmp_path) == {"a/theirs": "theirs"}


def test_what_the_system_refuses_is_told_and_leaves_what_was(tmp_path: Path) -> None:
    _write(tmp_path / "a", "old")
    with (
        pytest.raises(WriteError, match=r"/a: cannot be written: .*No such file"),
        whole_folder(tmp_path / "a", replace=True, kind="kind.json") as aside,
    ):
        save_file({"x": torch.zeros(1)}, aside / "none" / "x.safetensors")
    assert _tree(tmp_path) == {"a/kind.json": "old"} and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_holds_what_is_needed_is_not_replaced(tmp_path: Path) -> None:
    _write(tmp_path / "a", "old")
    (tmp_path / "a" / "rows.csv").write_text("rows")
    for needed in (tmp_path / "a" / "rows.csv", tmp_path / "b" / ".." / "a"):
        with pytest.raises(CheckpointError, match=r"/a: not replaced: it holds .*, which would be lost"):
            check_folder(tmp_path / "a", replace=True, kind="kind.json", needed=[needed])
    check_folder(tmp_path / "a", replace=True, kind="kind.json", needed=[tmp_path / "rows.csv"])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_told_before_any_work() -> None:
    for check in (check_folder, check_file):
        with pytest.raises(WriteError, match=r"/proc: cannot be written"):
            check(Path("/proc/x"))


@pytest.mark.parametrize("place", ["file", "file/x", "file/x/y"])
def test_a_file_in_the_way_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("rows")
    found = "/file: expected a folder to write in, found a file"
    with pytest.raises(WriteError, match=found):
        check_room(tmp_path / place)
    with pytest.raises(WriteError, match=found):
        check_folder(tmp_path / place / "z")
    with pytest.raises(WriteError, match=found):
        write_whole(tmp_path / place / "z", "x")
    with pytest.raises(WriteError, match=found):
        _write(tmp_path / place / "z")
    check_room(tmp_path / "new" / "newer")
    assert _tree(tmp_path) == {"file": "rows"}


def test_a_file_takes_the_place_of_a_plain_file_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    for name in ("pipe", "folder"):
        with pytest.raises(WriteError, match=f"{name}: expected a file to write"):
            write_whole(tmp_path / name, "x")
    for text in ("one", "two"):
        write_whole(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == text
    assert (tmp_path / "pipe").is_fifo()
