from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mp2.data.cache import file_hashes
from mp2.data.encode import Encoder
from mp2.data.prepare import PreparedTask, prepare
from mp2.data.report import report_table
from mp2.data.sampling import few_shot
from mp2.errors import DataError
from mp2.runtime import sha256
from mp2.tasks.spec import TaskSpec
from tests.data.invented import rows_of, sentence, task, texts, write_csv, write_jsonl
from tests.micro import micro_tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(micro_tokenizer(tmp_path_factory.mktemp("tokenizer")), 64, stride=8)


def _shop(root: Path, *, rows: int = 60, downstream: bool = False) -> TaskSpec:
    write_csv(root / "shop" / "train.csv", texts(0, rows))
    write_csv(root / "shop" / "test.csv", texts(1000, 10))
    return task("shop", downstream=downstream)


def _prepare(root: Path, encoder: Encoder, *tasks: TaskSpec, **options: object) -> dict[str, PreparedTask]:
    given = {"protect": [], **options}
    return prepare(tasks, root, encoder, root / "cache", **given)  # type: ignore[arg-type]


def test_splits_are_read_encoded_and_told(
    tmp_path: Path, encoder: Encoder, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = _prepare(tmp_path, encoder, _shop(tmp_path))["shop"]
    assert set(shop.splits) == {"train", "dev", "test"}
    assert len(shop.split("train")) + len(shop.split("dev")) == 60
    split = shop.split("train")
    assert split[0] == encoder([split.example(0)])[0]
    report = shop.reports["train"]
    assert report.read == report.kept == len(split) == sum(report.balance.values())
    assert report.tokens["max"] == split.lengths.max()
    assert "shop/train: " in capfd.readouterr().err
    assert "| shop/test | 10 | 10 | 0 | 0 |" in report_table(list(shop.reports.values()))
    with pytest.raises(DataError, match=r"no prepared split 'trian'; did you mean 'train'"):
        shop.split("trian")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("workers", [1, 2])
def test_a_terminal_shows_a_bar(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    terminal, shop = _Terminal(), _shop(tmp_path)
    monkeypatch.setattr(sys, "stderr", terminal)
    _prepare(tmp_path, encoder, shop)
    if workers > 1:
        _prepare(tmp_path, encoder, shop, shop, workers=2)
    shown = terminal.getvalue()
    assert "[######--------------] 1 of 3 splits" in shown and "[####################] 3 of 3 splits" in shown
    assert shown.endswith("\r\033[K") and (workers == 1 or "] 6 of 6 splits" in shown)


@pytest.mark.parametrize("family", ["pair", "choice", "extraction", "reading"])
def test_every_family_is_prepared(tmp_path: Path, encoder: Encoder, family: str) -> None:
    write_jsonl(tmp_path / "some" / "train.jsonl", rows_of(family, 30))
    write_jsonl(tmp_path / "some" / "test.jsonl", rows_of(family, 4))
    spec = task("some", family, suffix="jsonl", downstream=True)
    some = _prepare(tmp_path, encoder, spec)["some"]
    assert len(some.split("test")) == 4
    assert some.reports["pool"].removed["in test"].count == 4
    if family == "reading":
        assert some.reports["test"].balance == {"answer": 3, "no answer": 1}


def test_a_prepared_split_is_opened_not_made_again(
    tmp_path: Path, encoder: Encoder, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = _shop(tmp_path)
    first = _prepare(tmp_path, encoder, spec)["shop"]
    capfd.readouterr()
    again = _prepare(tmp_path, encoder, spec)["shop"]
    assert capfd.readouterr().err == ""
    assert again.split("train").path == first.split("train").path and again.reports == first.reports
    write_csv(tmp_path / "shop" / "test.csv", texts(1000, 11))
    changed = _prepare(tmp_path, encoder, spec)["shop"]
    assert len(changed.split("test")) == 11
    longer = Encoder(encoder.tokenizer, 80)
    assert _prepare(tmp_path, longer, spec)["shop"].split("test").path != changed.split("test").path


def test_the_name_of_a_label_folder_is_part_of_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "set" / "体育").mkdir(parents=True)
    (tmp_path / "set" / "体育" / "1.txt").write_text("球", encoding="utf-8")
    before = file_hashes([tmp_path / "set"], tmp_path / "cache")
    (tmp_path / "set" / "体育").rename(tmp_path / "set" / "财经")
    assert file_hashes([tmp_path / "set"], tmp_path / "cache") != before
    # of a file and of a folder's parts it is what it was, so what was prepared from them stays valid
    content = sha256(tmp_path / "set" / "财经" / "1.txt")
    known = hashlib.sha256(f"1.txt|{content}|".encode()).hexdigest()
    for path in (tmp_path / "set" / "财经" / "1.txt", tmp_path / "set" / "财经"):
        assert file_hashes([path], tmp_path / "cache") == [(path.name, known)]


def test_downstream_texts_leave_the_upstream_side(tmp_path: Path, encoder: Encoder) -> None:
    shop = _shop(tmp_path)
    write_csv(tmp_path / "taste" / "train.csv", [*texts(0, 5), *texts(500, 20)])
    write_csv(tmp_path / "taste" / "test.csv", [*texts(5, 7), *texts(600, 3)])
    taste = task("taste", downstream=True)
    prepared = _prepare(tmp_path, encoder, shop, taste, protect=[taste])
    removed = [prepared["shop"].reports[name].removed for name in ("train", "dev")]
    count = {
        reason: sum(tallies[reason].count for tallies in removed if reason in tallies)
        for reason in ("in taste/pool", "in taste/test")
    }
    assert count == {"in taste/pool": 5, "in taste/test": 7}
    assert not any(prepared["taste"].reports[name].removed for name in ("pool", "test"))
    seen = {
        example.segments[1].text
        for name in ("train", "dev")
        for example in prepared["shop"].split(name).examples(range(len(prepared["shop"].split(name))))
    }
    assert seen == {sentence(n) for n in range(12, 60)}
    table = report_table([*prepared["shop"].reports.values()])
    assert "removed: in taste/test, such as" in table and "train.csv:" in table
    # what is protected is part of what makes a prepared split stale
    alone = _prepare(tmp_path, encoder, shop)["shop"]
    assert sum(len(alone.split(name)) for name in ("train", "dev")) == 60


def test_the_same_rows_in_two_files_stand_once(tmp_path: Path, encoder: Encoder) -> None:
    spec = _shop(tmp_path, downstream=True)
    write_csv(tmp_path / "shop" / "more.csv", [*texts(0, 60), *texts(80, 2)])
    write_csv(tmp_path / "shop" / "test.csv", [*texts(1000, 10), *texts(1000, 3), *texts(7, 1)])
    shop = _prepare(tmp_path, encoder, spec)["shop"]
    removed = shop.reports["pool"].removed
    assert removed["a copy of an earlier row"].count == 59 and removed["in test"].count == 2
    assert removed["a copy of an earlier row"].first[0].endswith("more.csv:2")
    assert len(shop.split("pool")) == 61
    assert len(shop.split("test")) == 14 and shop.reports["test"].copies_kept == 3  # as published


def test_few_shot_sets_share_no_document(tmp_path: Path, encoder: Encoder) -> None:
    rows = [row | {"id": n // 6} for n, row in enumerate(rows_of("reading", 240))]
    write_jsonl(tmp_path / "docs" / "train.jsonl", rows)
    write_jsonl(tmp_path / "docs" / "test.jsonl", [{**rows_of("reading", 300)[-1], "id": 99}])
    spec = task("docs", "reading", suffix="jsonl", downstream=True, group_by="id")
    pool = _prepare(tmp_path, encoder, spec)["docs"].split("pool")
    assert len(set(pool.groups)) == 40
    train, dev = few_shot(pool.labels, seed=8, n_labels=0, groups=pool.groups)
    assert not {pool.groups[i] for i in train} & {pool.groups[i] for i in dev}


# -- bad input -------------------------------------------------------------------------------------


def test_a_few_bad_rows_are_counted_many_are_refused(tmp_path: Path, encoder: Encoder) -> None:
    rows = texts(0, 400)
    rows[11]["label"], rows[200]["label"] = "7", "中立"
    spec = _shop(tmp_path, downstream=True)
    write_csv(tmp_path / "shop" / "train.csv", rows)
    report = _prepare(tmp_path, encoder, spec)["shop"].reports["pool"]
    assert report.bad_rows == 2 and report.kept == 398 and len(report.bad) == 1
    [tally] = report.bad.values()
    assert "train.csv:13: unknown label '7'" in tally.first[0] and "train.csv:202" in tally.first[1]
    assert "2 like" in report_table([report])
    with pytest.raises(DataError, match=r"shop/pool: 2 of 400 rows \(0.5 %\) cannot be used; at most 0.1 %"):
        _prepare(tmp_path, encoder, spec, max_bad=0.001)
    for row in rows[:20]:
        row["label"] = "好"
    write_csv(tmp_path / "shop" / "train.csv", rows)
    with pytest.raises(
        DataError, match=r"21 of 400 rows \(5\.2 %\)(.|\n)*21 like .*train\.csv:2: unknown label '好'"
    ):
        _prepare(tmp_path, encoder, spec)


def test_a_renamed_column_is_told(tmp_path: Path, encoder: Encoder) -> None:
    spec = _shop(tmp_path)
    write_csv(tmp_path / "shop" / "train.csv", [{"txt": row["text"], "label": 0} for row in texts(0, 30)])
    with pytest.raises(DataError, match=r"train\.csv:\d+: column 'text' is missing; did you mean 'txt'"):
        _prepare(tmp_path, encoder, spec)


def test_an_answer_outside_its_context_is_told(tmp_path: Path, encoder: Encoder) -> None:
    rows = rows_of("extraction", 20)
    rows[3]["answer"] = "不在文中"
    write_jsonl(tmp_path / "some" / "train.jsonl", rows)
    write_jsonl(tmp_path / "some" / "test.jsonl", rows_of("extraction", 30)[25:])
    spec = task("some", "extraction", suffix="jsonl", downstream=True)
    with pytest.raises(DataError, match=r"train\.jsonl:4: the answer '不在文中' does not occur"):
        _prepare(tmp_path, encoder, spec)
    assert _prepare(tmp_path, encoder, spec, max_bad=0.1)["some"].reports["pool"].kept == 19


def test_a_row_too_long_for_the_window_is_a_bad_row(tmp_path: Path, encoder: Encoder) -> None:
    rows = rows_of("reading", 30)
    rows[5]["question"] = sentence(1, 60)
    write_jsonl(tmp_path / "some" / "train.jsonl", rows)
    write_jsonl(tmp_path / "some" / "test.jsonl", rows_of("reading", 40)[35:])
    spec = task("some", "reading", suffix="jsonl", downstream=True)
    report = _prepare(tmp_path, encoder, spec, max_bad=0.1)["some"].reports["pool"]
    assert (report.read, report.kept) == (30, 29)
    [tally] = report.bad.values()
    assert "train.jsonl:6: the question needs" in tally.first[0]


def test_what_a_task_file_leaves_out_is_told(tmp_path: Path, encoder: Encoder) -> None:
    rows = texts(0, 60)
    rows[3]["label"] = rows[9]["label"] = "-"
    write_csv(tmp_path / "shop" / "train.csv", rows)
    write_csv(tmp_path / "shop" / "test.csv", texts(1000, 10))
    raw = task("shop", downstream=True).model_dump()
    raw["data"]["files"]["train"][0]["drop"] = {"label": "-"}
    prepared = _prepare(tmp_path, encoder, TaskSpec.model_validate(raw))["shop"]
    report = prepared.reports["pool"]
    assert report.read == 58 and report.left_out["label is '-'"].count == 2
    told = report_table([report])
    assert "- shop/pool: 2 left out by the task file: label is '-', such as" in told and "train.csv:5" in told


def test_an_empty_split_is_told(tmp_path: Path, encoder: Encoder) -> None:
    spec = _shop(tmp_path, downstream=True)
    write_csv(tmp_path / "shop" / "train.csv", texts(1000, 10))
    with pytest.raises(
        DataError, match=r"shop/pool: the split is empty: 10 rows read from .*removed: 10 in test"
    ):
        _prepare(tmp_path, encoder, spec)
    (tmp_path / "shop" / "test.csv").write_text("text,label\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.csv: the file has no rows"):
        _prepare(tmp_path, encoder, spec)


def test_a_cut_file_is_told_and_leaves_nothing(tmp_path: Path, encoder: Encoder) -> None:
    spec = _shop(tmp_path)
    file = tmp_path / "shop" / "train.csv"
    packed = gzip.compress(file.read_bytes())
    file.unlink()
    (tmp_path / "shop" / "train.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"train\.csv\.gz:\d+: .*(cut|ends)"):
        _prepare(tmp_path, encoder, spec)
    assert not list((tmp_path / "cache" / "shop").glob("train-*"))
    assert not [path for path in (tmp_path / "cache" / "shop").glob(".*") if path.is_dir()]


def test_absent_data_and_splits_are_told(tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"shop: put train\.csv.* into .*shop; from invented"):
        _prepare(tmp_path, encoder, task("shop"))
    with pytest.raises(DataError, match="task shop has no split 'pool'"):
        _prepare(tmp_path, encoder, _shop(tmp_path), splits=["pool"])


def test_a_cache_that_cannot_be_written_or_read_is_told(tmp_path: Path, encoder: Encoder) -> None:
    spec = _shop(tmp_path)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(DataError, match="file: cannot be written"):
        prepare([spec], tmp_path, encoder, tmp_path / "file", protect=[])
    rows = _prepare(tmp_path, encoder, spec)["shop"].split("test").path
    rows.write_bytes(rows.read_bytes()[:100])
    with pytest.raises(DataError, match=r"rows\.arrow: damaged .*; remove .*test-\w+ to prepare it anew"):
        _prepare(tmp_path, encoder, spec)
    (rows.parent / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"report\.json: damaged"):
        _prepare(tmp_path, encoder, spec)


# -- several processes, large files ----------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
from mp2.data.encode import Encoder
from mp2.data.prepare import prepare
from tests.data.invented import task
from transformers import PreTrainedTokenizerFast
root = Path(sys.argv[1])
encoder = Encoder(PreTrainedTokenizerFast.from_pretrained(str(root / "tokenizer")), 64)
done = prepare([task("shop"), task("taste")], root, encoder, root / "cache", protect=[])
print(sum(len(split) for one in done.values() for split in one.splits.values()))
"""


def _worker(root: Path, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(root)]
    repository = Path(__file__).parents[2]  # where the package of the tests is found
    return subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_prepare_the_same_at_once(tmp_path: Path) -> None:
    micro_tokenizer(tmp_path / "tokenizer")
    for name in ("shop", "taste"):
        write_csv(tmp_path / name / "train.csv", texts(0, 3000))
        write_csv(tmp_path / name / "test.csv", texts(9000, 50))
    running = [_worker(tmp_path, WORKER), _worker(tmp_path, WORKER)]
    results = [process.communicate(timeout=120) for process in running]
    assert [out.strip() for out, _ in results] == ["6100", "6100"], results
    made = [line for _, err in results for line in err.splitlines() if "rows kept" in line]
    assert sorted(line.partition(":")[0] for line in made) == sorted(
        f"{name}/{split}" for name in ("shop", "taste") for split in ("train", "dev", "test")
    )  # each split was made by one of the two
    assert len(list((tmp_path / "cache").glob("*/train-*"))) == 2


def test_workers_prepare_whole_tasks(tmp_path: Path, encoder: Encoder) -> None:
    shop, taste = _shop(tmp_path), task("taste", downstream=True)
    write_csv(tmp_path / "taste" / "train.csv", texts(20, 10))
    write_csv(tmp_path / "taste" / "test.csv", texts(900, 5))
    done = _prepare(tmp_path, encoder, shop, taste, protect=[taste], workers=2)
    assert [len(split) for split in done["taste"].splits.values()] == [10, 5]
    assert sum(report.kept for report in done["shop"].reports.values()) == 60


MEMORY = """
import resource, sys
from pathlib import Path
from mp2.data.encode import Encoder
from mp2.data.prepare import prepare
from tests.data.invented import task
from transformers import PreTrainedTokenizerFast
root = Path(sys.argv[1])
encoder = Encoder(PreTrainedTokenizerFast.from_pretrained(str(root / "tokenizer")), 64)
peaks = []
for name in ("small", "large"):
    prepare([task(name, downstream=True)], root, encoder, root / "cache", protect=[])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    micro_tokenizer(tmp_path / "tokenizer")
    body = [sentence(n, 100) for n in range(1500)]
    for name, copies in (("small", 1), ("large", 6)):
        rows = [
            {"text": f"{k * 1500 + n}{text}", "label": n % 2}
            for k in range(copies)
            for n, text in enumerate(body)
        ]
        write_csv(tmp_path / name / "train.csv", rows)
        write_csv(tmp_path / name / "test.csv", texts(9000, 10))
    assert (tmp_path / "large" / "train.csv").stat().st_size > 5e6
    out, err = _worker(tmp_path, MEMORY).communicate(timeout=300)
    assert float(out) < 15, (out, err)  # MB; the file has 6, its rows with their tokens about 40


def test_reports_are_json(tmp_path: Path, encoder: Encoder) -> None:
    shop = _prepare(tmp_path, encoder, _shop(tmp_path))["shop"]
    for report in shop.reports.values():
        assert type(report).from_dict(json.loads(json.dumps(report.as_dict()))) == report
