"""Data sets from a hub: the files come under the names that the readers expect, whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download

from mp2.data.hub import RECORD, Fetched, fetch
from mp2.data.sources import files, layout, missing, on_hub, read_split
from mp2.errors import TaskError
from mp2.tasks import catalogue
from mp2.tasks.render import render
from mp2.tasks.spec import TaskSpec, parse_task
from tests.data.hub_layout import CLASSES, write_hub, write_parquet
from tests.local_hub import COMMIT, local_hub

ON_HUB = [
    name for name in catalogue.names() if (data := catalogue.get(name).data) and data.hub and data.hub.files
]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("mp2.runtime.os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder / "datasets")
    return folder


def bring(names: list[str], root: Path, hub: Path, **options: Any) -> tuple[Fetched, list[str]]:
    lines: list[str] = []
    with local_hub(hub, **options) as address:
        return fetch([catalogue.get(name) for name in names], root, endpoint=address, say=lines.append), lines


def gold(task: TaskSpec, split: str, root: Path) -> list[str]:
    examples = [render(task, row, where=where) for where, row in read_split(task, split, root)]
    return [e.options[e.answer] if e.options else e.gold_texts[0] for e in examples]


def test_every_set_of_the_catalogue_that_is_on_the_hub(tmp_path: Path, hub: Path) -> None:
    done, _ = bring(ON_HUB, tmp_path, hub)
    assert not done.failed and not done.by_hand
    assert len(ON_HUB) == 21 and len(done.fetched) == 16  # the subsets of IFLYTEK are of one set
    for name in ON_HUB:
        task = catalogue.get(name)
        assert missing(task, tmp_path) is None and not on_hub(task, tmp_path)
        assert task.data is not None and layout(task, tmp_path) == task.data.layouts[0]
        for split in task.data.layouts[0].splits:
            assert gold(task, split, tmp_path), (name, split)
    assert gold(catalogue.get("c3"), "test", tmp_path)[:2] == ["雨天", "晴天"]


def test_the_document_says_where_each_set_is_from() -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    for name in ON_HUB:
        data = catalogue.get(name).data
        assert data is not None and data.hub is not None
        assert f"| `{data.hub.id}` | `{data.hub.revision}` |" in text, name


@pytest.mark.parametrize("named", [True, False])
def test_classes_mean_what_the_hub_means(tmp_path: Path, named: bool) -> None:
    """Class 0 and so on of each set, whether or not its files say the names of the classes."""
    write_hub(tmp_path / "hub" / "datasets", named=named)
    root = tmp_path / "data"
    words = {
        "cmnli": ["中立", "蕴含", "矛盾"],
        "ocnli": ["中立", "蕴含", "矛盾"],
        "xnli": ["蕴含", "中立", "矛盾"],
        "cluewsc": ["相同", "不同"],
        "afqmc": ["矛盾", "相似"],
        "tnews": ["故事", "文化", "娱乐"],
        "iflytek-10": ["打车"],
    }
    assert not bring(list(words), root, tmp_path / "hub")[0].failed
    assert {name: gold(catalogue.get(name), "test", root)[: len(words[name])] for name in words} == words


def test_only_what_is_absent_is_fetched_and_nothing_is_replaced(tmp_path: Path, hub: Path) -> None:
    own = tmp_path / "CMNLI" / "dev.txt"
    own.parent.mkdir()
    own.write_text("一\t二\tneutral\n", encoding="utf-8")
    assert missing(catalogue.get("cmnli"), tmp_path) is None
    done, lines = bring(["cmnli"], tmp_path, hub)
    assert done.fetched == {"cmnli": [tmp_path / "CMNLI" / "train.parquet"]}
    assert files(catalogue.get("cmnli"), tmp_path) == (tmp_path / "CMNLI" / "train.parquet", own)
    assert lines[0].startswith(
        f"cmnli: 1 file (0.0 MiB) of clue/clue at {COMMIT}; licence: none stated, so for"
    )
    record = json.loads((tmp_path / "CMNLI" / RECORD).read_text())["train.parquet"]
    assert record["commit"] == COMMIT and list(record["sha256"]) == ["cmnli/train-00000-of-00001.parquet"]
    done, lines = bring(["cmnli"], tmp_path, hub)
    assert (done.here, done.fetched, lines) == (["cmnli"], {}, [])
    assert [path.name for path in tmp_path.iterdir() if path.name != ".hub"] == ["CMNLI"]


def test_what_is_not_on_a_hub_is_told(tmp_path: Path, hub: Path) -> None:
    done, _ = bring(["ccpm", "bq"], tmp_path, hub)
    assert list(done.fetched) == ["bq"]
    assert done.by_hand["ccpm"].startswith(f"ccpm: put train.jsonl, valid.jsonl into {tmp_path / 'CCPM'}")
    line = missing(catalogue.get("lcqmc"), tmp_path) or ""
    assert line.startswith("lcqmc: fetch it with 'mp2 data fetch lcqmc', or put train.txt, dev.txt into ")
    own = catalogue.get("lcqmc").model_copy(update={"name": "own"})  # by whose name it cannot be fetched
    assert (missing(own, tmp_path) or "").startswith(
        "own: fetch it with 'mp2 data fetch' and its task file, or"
    )


def test_a_broken_fetch_leaves_nothing_and_is_gone_on_with(tmp_path: Path, hub: Path) -> None:
    cut = {f"{COMMIT}/data/validation-00000-of-00001-ae04bea7d65ea894.parquet"}
    done, _ = bring(["lcqmc", "bq"], tmp_path, hub, cut=cut)
    assert not done.fetched and len(done.failed) == 1 and "or broke off" in done.failed[0]
    assert not (tmp_path / "LCQMC").exists() and not list(tmp_path.rglob("*.incomplete"))
    kept = tmp_path / ".hub" / "C-MTEB--LCQMC" / "data" / "train-00000-of-00001-ae04bea7d65ea894.parquet"
    begun = kept.stat().st_mtime_ns
    seen: list[int] = []

    def look(line: str) -> None:
        if kept.exists():
            seen.append(kept.stat().st_mtime_ns)

    with local_hub(hub) as address:
        done = fetch([catalogue.get("lcqmc")], tmp_path, endpoint=address, say=look)
    assert seen == [begun] and not done.failed and missing(catalogue.get("lcqmc"), tmp_path) is None
    assert not (tmp_path / ".hub" / "C-MTEB--LCQMC").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [("afqmc", "afqmc/train-00000-of-00001.parquet"), ("weibo-sentiment", "weibo_senti_100k.csv")],
)
def test_damage_is_found_by_the_hubs_own_hash(tmp_path: Path, hub: Path, name: str, file: str) -> None:
    """Whether the hub keeps the file apart or in Git itself."""
    done, _ = bring([name], tmp_path, hub, damaged={f"{COMMIT}/{file}"})
    assert f"{file}: came damaged" in done.failed[0]
    assert missing(catalogue.get(name), tmp_path) is not None and not list(tmp_path.rglob(Path(file).name))
    assert not bring([name], tmp_path, hub)[0].failed and missing(catalogue.get(name), tmp_path) is None


def test_terms_are_accepted_on_the_page_of_the_set(tmp_path: Path, hub: Path) -> None:
    done, _ = bring(["lcqmc"], tmp_path, hub, gated=True)
    assert re.search(r"accept its terms at http://[\d.:]+/datasets/C-MTEB/LCQMC, then log in", done.failed[0])


def test_rows_that_nobody_labelled_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "hub/datasets/clue/clue/ocnli"
    table = [{"sentence1": f"一{n}", "sentence2": f"二{n}", "label": n - 1, "idx": n} for n in range(4)]
    for split in ("train", "validation"):
        write_parquet(folder / f"{split}-00000-of-00001.parquet", table, CLASSES["clue/clue/ocnli"])
    assert not bring(["ocnli"], tmp_path / "data", tmp_path / "hub")[0].failed
    assert gold(catalogue.get("ocnli"), "test", tmp_path / "data") == ["中立", "蕴含", "矛盾"]


def test_by_hand_a_file_has_the_name_that_its_carrier_gives(tmp_path: Path) -> None:
    line = missing(catalogue.get("weibo-sentiment"), tmp_path) or ""
    assert "or put weibo_senti_100k.csv or weibo_senti_100k.zip into" in line
    assert "or put all.parquet into" in (missing(parse_task(OWN), tmp_path) or "")


def test_a_set_that_is_not_as_described_is_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "clue/clue" / "afqmc"
    row = {"sentence_a": "一", "sentence_b": "二", "label": 0}
    for split in ("train", "validation"):
        write_parquet(folder / f"{split}-00000-of-00001.parquet", [row], CLASSES["clue/clue/afqmc"])
    done, _ = bring(["afqmc", "cmnli"], tmp_path / "data", tmp_path / "hub")
    assert "is not what the task file says, nothing was kept" in done.failed[0]
    assert "column 'sentence1' is missing" in done.failed[0]
    assert "has no file 'cmnli/train-*.parquet'; did you mean" in done.failed[1]
    assert not list((tmp_path / "data").rglob("*.parquet"))


def test_a_hub_that_cannot_be_reached_is_told_once(tmp_path: Path, hub: Path, monkeypatch: Any) -> None:
    with local_hub(hub) as address:
        pass
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    done = fetch([catalogue.get("afqmc"), catalogue.get("bq")], tmp_path, endpoint=address)
    assert len(done.failed) == 1 and f"{address} cannot be reached" in done.failed[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = fetch([catalogue.get("afqmc")], tmp_path, endpoint=address)
    assert done.failed == ["afqmc: clue/clue: HF_HUB_OFFLINE is set, so nothing can be fetched"]
    done, _ = bring(["xnli"], tmp_path, tmp_path / "empty")
    assert "has no such data set or revision" in done.failed[0]
    (tmp_path / "file").write_text("")
    done, _ = bring(["afqmc"], tmp_path / "file", hub)
    assert "cannot be written" in done.failed[0]


OWN = """
name: own
family: pair
labels: [矛盾, 相似]
data:
  folder: own
  source: me
  licence: mine
  hub: {id: me/own, files: {all.parquet: all-*.parquet}}
  files: {all: {path: all.parquet, format: parquet}}
  layouts: [{splits: {test: {files: all}}}]
"""


def test_the_parts_of_a_file_come_as_a_folder(tmp_path: Path) -> None:
    task = parse_task(OWN)
    for part in range(3):
        rows = [{"text1": f"一{part}", "text2": f"二{n}", "label": n % 2} for n in range(2)]
        write_parquet(tmp_path / "hub/datasets/me/own" / f"all-{part}-of-3.parquet", rows)
    with local_hub(tmp_path / "hub") as address:
        assert not fetch([task], tmp_path / "data", endpoint=address).failed
    read = [row["text1"] for _, row in read_split(task, "test", tmp_path / "data")]
    assert read == ["一0", "一0", "一1", "一1", "一2", "一2"]
    assert not on_hub(
        parse_task(OWN.replace("{id: me/own, files: {all.parquet: all-*.parquet}}", "me/own")), tmp_path
    )
    with pytest.raises(
        TaskError, match=r"hub.files: 'al.parquet' is the path of none of the files; did you mean 'all"
    ):
        parse_task(OWN.replace("{all.parquet:", "{al.parquet:"))
    with pytest.raises(TaskError, match=r"unknown key 'data.hub.file'; did you mean 'files'"):
        parse_task(OWN.replace("me/own, files:", "me/own, file:"))
