"""Records: appended whole, read back exactly, never twice."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mp2.errors import ConfigError, DataError
from mp2.evaluation.records import (
    RecordFile,
    done_keys,
    open_records,
    pack_scores,
    read_records,
    unpack_scores,
)
from tests.evaluation.invented import record


@given(st.lists(st.sampled_from([0.0, 1.0]), max_size=70))
def test_bits_come_back(scores: list[float]) -> None:
    packed = pack_scores(scores)
    assert isinstance(packed, str)
    assert unpack_scores(packed, len(scores)) == scores


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_thousandths_come_back(thousandths: list[int]) -> None:
    scores = [value / 1000 for value in thousandths]
    assert unpack_scores(pack_scores(scores), len(scores)) == scores


def test_appended_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records.jsonl"
    first, second = record(seed=8), record(seed=13, status="failed", error="boom")
    for each in (first, second):
        with open_records(path) as file:
            file.append(each)
    assert read_records([path]) == [first, second]
    assert done_keys([path]) == {first.key}


def test_a_half_written_last_line_is_left_out_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with open_records(path) as file:
        file.append(record(seed=8))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert [r.seed for r in read_records([path])] == [8]
    with open_records(path) as file:
        file.append(record(seed=13))
    assert [r.seed for r in read_records([path])] == [8, 13]


@pytest.mark.parametrize("text", ["mine", '{"a": 1,\n "b": 2\n}', "[1]\n"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"notes\.txt: not a file of records"), open_records(path):
        pass
    assert path.read_text() == text


def test_a_last_line_cut_within_a_character_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with open_records(path) as file:
        file.append(record(seed=8))
    whole = path.read_bytes()
    path.write_bytes(whole + '{"error": "坏'.encode()[:-1])
    assert [r.seed for r in read_records([path])] == [8]
    with open_records(path):
        assert path.read_bytes() == whole


def test_a_last_line_that_lacks_its_end_alone_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with open_records(path) as file:
        file.append(record(seed=8))
    path.write_bytes(path.read_bytes().rstrip())
    with open_records(path) as file:
        file.append(record(seed=13))
    assert [r.seed for r in read_records([path])] == [8, 13]


def test_a_damaged_line_within_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"format": 1, \n' + json.dumps({"format": 1, **asdict(record())}) + "\n", "utf-8")
    with pytest.raises(DataError, match=r"records\.jsonl:1: damaged"):
        read_records([path])


def test_a_run_that_stands_twice_is_an_error_with_both_places(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        with open_records(tmp_path / name) as file:
            file.append(record())
    with pytest.raises(DataError, match=r"b\.jsonl:1: this run stands already in .*a\.jsonl:1"):
        read_records([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])


def test_other_formats_and_absent_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"format": 7}\n', "utf-8")
    with pytest.raises(DataError, match="expected a record of format 1, got 7"):
        read_records([path])
    path.write_text('{"format": 1, "method": "spot"}\n', "utf-8")
    with pytest.raises(DataError, match="not a record: missing"):
        read_records([path])
    with pytest.raises(DataError, match="no such records file"):
        read_records([tmp_path / "none.jsonl"])


def test_two_grids_cannot_write_to_one_file(tmp_path: Path) -> None:
    with open_records(tmp_path / "r.jsonl"), pytest.raises(ConfigError, match="another grid"):
        RecordFile(tmp_path / "r.jsonl")
    RecordFile(tmp_path / "r.jsonl").close()


def test_the_key_tells_runs_apart() -> None:
    base = record()
    changes = ({"seed": 9}, {"shots": 4}, {"variant": "k4"}, {"bank_fingerprint": "d"}, {"test_limit": 5})
    keys = {record(**change).key for change in changes} | {base.key}  # type: ignore[arg-type]
    assert len(keys) == len(changes) + 1
    assert record(seconds=99.0).key == base.key


def test_a_run_that_was_done_otherwise_is_not_taken_for_done(tmp_path: Path) -> None:
    path, absent = tmp_path / "r.jsonl", tmp_path / "none.jsonl"
    with open_records(path) as file:
        file.append(record(seed=8))
        file.append(record(seed=13, settings=""))
        file.append(record(seed=21, status="failed", settings="steps=9"))
    same = [record(seed=8), record(seed=13), record(seed=21), record(seed=42, settings="steps=9")]
    done_keys([absent, path], same)
    for change in ({"settings": "steps=9"}, {"splits": "train,dev"}):
        (name,) = change
        with pytest.raises(ConfigError, match=rf"r\.jsonl:1: mp2-deep-gd on lcqmc was run with {name}"):
            done_keys([path], [record(seed=8, **change)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": "zz"}, "damaged scores"),
        ({"scores": "f"}, "expected scores of 200 test rows, got 4"),
        ({"scores": 7}, "damaged scores"),
    ],
)
def test_damaged_scores_are_refused_with_their_place(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"format": 1, **asdict(record()), **change}) + "\n", "utf-8")
    with pytest.raises(DataError, match=rf"r\.jsonl:1: {said}"):
        read_records([path])


def test_the_first_records_were_of_pool_and_test(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    old = {name: value for name, value in asdict(record()).items() if name != "splits"}
    path.write_text(json.dumps({"format": 1, **old}) + "\n", "utf-8")
    assert read_records([path])[0].splits == "pool,test"
