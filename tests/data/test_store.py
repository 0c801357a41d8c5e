from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from mp2.data.encode import Encoded, Encoder
from mp2.data.store import PreparedSplit, SplitWriter
from mp2.errors import DataError
from mp2.tasks.render import MRCExample, render
from mp2.tasks.spec import FAMILIES, TaskSpec
from tests.data.invented import rows_of, task
from tests.micro import micro_tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Windows of 64 tokens, so that long contexts need several."""
    return Encoder(micro_tokenizer(tmp_path_factory.mktemp("tokenizer")), 64, stride=8)


def _store(
    folder: Path, family: str, encoder: Encoder, *, count: int = 25
) -> tuple[TaskSpec, list[MRCExample], list[Encoded], PreparedSplit]:
    spec = task("some", family)
    rows = rows_of(family, count)
    examples = [render(spec, row) for row in rows]
    encoded = encoder(examples)
    with SplitWriter(folder / "rows.arrow", spec) as writer:
        for start in range(0, count, 10):
            part = slice(start, start + 10)
            groups = np.arange(count, dtype=np.uint64)[part] + np.uint64(2**63)
            writer.write(rows[part], examples[part], encoded[part], groups)
    return spec, examples, encoded, PreparedSplit(folder / "rows.arrow", spec)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_come_back_as_they_were(tmp_path: Path, encoder: Encoder, family: str) -> None:
    _, examples, encoded, split = _store(tmp_path, family, encoder)
    assert len(split) == 25
    assert list(split) == encoded
    assert split.examples(range(25)) == examples
    assert split.take([24, 0, 9, 10, 9]) == [encoded[i] for i in (24, 0, 9, 10, 9)]
    assert split[-1] == encoded[-1] and split[8:12] == encoded[8:12]
    assert split.lengths.tolist() == [max(len(w.ids) for w in row.windows) for row in encoded]
    assert split.windows.tolist() == [len(row.windows) for row in encoded]
    assert split.labels == [row.answer for row in encoded]
    assert split.groups == [2**63 + i for i in range(25)]
    assert split.unanswerable.tolist() == [example.unanswerable for example in examples]
    lost = sum(all(window.gold is None for window in row.windows) for row in encoded)
    assert split.lost() == lost


def test_long_contexts_have_several_windows(tmp_path: Path, encoder: Encoder) -> None:
    _, _, _, split = _store(tmp_path, "reading", encoder)
    assert split.windows.max() > 1


def test_a_copy_in_another_process_opens_the_same_file(tmp_path: Path, encoder: Encoder) -> None:
    _, _, encoded, split = _store(tmp_path, "choice", encoder)
    split.take([3])
    assert list(pickle.loads(pickle.dumps(split))) == encoded


def test_unlabelled_rows_have_no_answer(tmp_path: Path, encoder: Encoder) -> None:
    spec = task("some")
    row = rows_of("classification", 1)[0]
    example = render(spec, row, labelled=False)
    with SplitWriter(tmp_path / "rows.arrow", spec) as writer:
        writer.write([row], [example], encoder([example]), np.zeros(1, dtype=np.uint64))
    split = PreparedSplit(tmp_path / "rows.arrow", spec)
    assert split.labels == [None] and split[0].answer is None and split.example(0) == example
    assert split.lost() == 0


def test_out_of_range_and_damage_are_told(tmp_path: Path, encoder: Encoder) -> None:
    spec, _, _, split = _store(tmp_path, "pair", encoder)
    with pytest.raises(IndexError, match="row 25 of 25"):
        split[25]
    whole = (tmp_path / "rows.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.arrow: damaged or absent"):
        PreparedSplit(tmp_path / "cut.arrow", spec)
    with pytest.raises(DataError, match="damaged or absent"):
        PreparedSplit(tmp_path / "none.arrow", spec)
