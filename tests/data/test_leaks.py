from __future__ import annotations

from pathlib import Path

import pytest

from mp2.data.duplicates import row_keys
from mp2.data.leaks import KnownTexts, key_set, known_within, rendered_chunks
from mp2.data.overlaps import overlap_table, overlaps
from mp2.errors import Mp2Error
from mp2.tasks.render import MRCExample, Segment
from mp2.tasks.spec import TaskSpec
from tests.data.invented import sentence, task, texts, write_csv


def _rows(*rows: tuple[str, ...]) -> list[MRCExample]:
    return [MRCExample(tuple(Segment(text, "cut") for text in row), ("是", "否"), 0) for row in rows]


def _csv_task(
    root: Path, name: str, rows: list[dict[str, object]], *, test: list[dict[str, object]]
) -> TaskSpec:
    write_csv(root / name / "train.csv", rows)
    write_csv(root / name / "test.csv", test)
    return task(name, downstream=True)


def test_known_texts_are_found_across_and_within(tmp_path: Path) -> None:
    long = sentence(1, 12)
    spec = _csv_task(tmp_path, "shop", texts(0, 3), test=[{"text": long, "label": 0}, *texts(50, 2)])
    known = KnownTexts([("shop/test", key_set(spec, "test", tmp_path, tmp_path / "cache"))])
    keys = row_keys(
        _rows((long.replace("，", "！"),), (sentence(50),), (sentence(2),), (long, "另一句"), ("短", "短句"))
    )
    assert known.find(keys, across=True) == ["in shop/test", "in shop/test", None, "in shop/test", None]
    # within a task, a pair that shares one sentence is another question
    assert known.find(keys, across=False) == ["in shop/test", "in shop/test", None, None, None]


def test_a_text_with_a_new_beginning_is_almost_known(tmp_path: Path) -> None:
    article = sentence(9, 150)
    spec = _csv_task(tmp_path, "news", texts(0, 3), test=[{"text": article, "label": 0}])
    known = KnownTexts([("news/test", key_set(spec, "test", tmp_path, tmp_path / "cache"))])
    rows = _rows(
        ("本报讯，记者昨日获悉：" + article,), (sentence(10, 150),), (article[:60] + sentence(11, 300),)
    )
    found = known.find(row_keys(rows), across=True)
    assert found[:2] == ["almost in news/test", None]


def test_nothing_is_known_of_nothing() -> None:
    assert KnownTexts([]).find(row_keys(_rows(("甲",), (sentence(1, 80),))), across=True) == [None, None]
    assert KnownTexts([]).find(row_keys([]), across=False) == []


def test_order_within_a_task_is_test_pool_dev_train(tmp_path: Path) -> None:
    spec = _csv_task(tmp_path, "shop", texts(0, 40), test=[*texts(100, 5), *texts(0, 1)])
    cache = tmp_path / "cache"
    pool = known_within(spec, "pool", tmp_path, cache)
    assert pool.names == ["test"]
    assert pool.find(row_keys(_rows((sentence(0),), (sentence(1),))), across=False) == ["in test", None]
    assert known_within(spec, "test", tmp_path, cache).names == []
    upstream = task("shop")
    assert known_within(upstream, "train", tmp_path, cache).names == ["test", "dev"]


def test_bad_rows_are_told_and_left_out(tmp_path: Path) -> None:
    rows = texts(0, 30)
    rows[7]["label"] = "5"
    spec = _csv_task(tmp_path, "shop", rows, test=texts(100, 2))
    errors: list[Mp2Error] = []
    chunks = list(rendered_chunks(spec, "pool", tmp_path, errors.append))
    assert sum(len(chunk.rows) for chunk in chunks) == 29
    assert [str(error).partition(": ")[0].endswith("train.csv:9") for error in errors] == [True]


def test_the_matrix_counts_rows_of_both_sides(tmp_path: Path) -> None:
    shop = _csv_task(tmp_path, "shop", texts(0, 20), test=[*texts(18, 2), *texts(200, 6)])
    news = _csv_task(tmp_path, "news", [*texts(5, 3), *texts(5, 1), *texts(300, 6)], test=texts(200, 4))
    seen: list[tuple[str, int]] = []
    found = overlaps([shop, news], tmp_path, on_split=lambda name, rows: seen.append((name, rows)))
    counted = {(o.first, o.second): (o.first_rows, o.second_rows) for o in found}
    assert counted == {
        ("shop/pool", "shop/test"): (2, 2),
        ("shop/pool", "news/pool"): (3, 4),
        ("shop/test", "news/test"): (4, 4),
    }
    assert dict(seen) == {"shop/pool": 20, "shop/test": 8, "news/pool": 10, "news/test": 4}
    assert "| shop/pool | 3 of 20 (15.0 %) | news/pool | 4 of 10 (40.0 %) |" in overlap_table(found)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("first", "second", "rows"),
    [("chnsent", "online-shopping", 1141), ("tnews", "toutiao-tc", 1300), ("xnli", "cmnli", 2400)],
)
def test_the_known_overlaps_of_the_public_sets_are_found(
    real_data: Path, first: str, second: str, rows: int
) -> None:
    from mp2.tasks import catalogue

    found = overlaps([catalogue.get(first), catalogue.get(second)], real_data)
    between = [o for o in found if o.first.split("/")[0] != o.second.split("/")[0]]
    assert sum(o.first_rows for o in between) >= rows
