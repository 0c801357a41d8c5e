from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mp2.cli.main import app
from mp2.errors import ConfigError, DataError, Mp2Error
from mp2.tasks import catalogue
from mp2.tasks.infer import dump_task
from tests.data.hub_layout import write_hub
from tests.data.invented import sentence, write_csv
from tests.local_hub import local_hub
from tests.micro import micro_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with two of the catalogue's sets, in the names and columns of their carriers."""
    folder = tmp_path_factory.mktemp("root")
    reviews = [{"label": n % 2, "review": sentence(n)} for n in range(300)]
    write_csv(folder / "Waimai" / "waimai_10k.csv", reviews)
    for name, first, count in (("train", 290, 80), ("dev", 500, 20)):
        rows = [f"{sentence(n)}\t{('negative', 'positive')[n % 2]}\n" for n in range(first, first + count)]
        (folder / "ChnSent").mkdir(exist_ok=True)
        (folder / "ChnSent" / f"{name}.tsv").write_text("".join(rows), encoding="utf-8")
    micro_tokenizer(folder / "tokenizer")
    return folder


def _mp2(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if isinstance(result.exception, Mp2Error):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def _prepare(root: Path, tmp_path: Path, *names: str) -> Result:
    options = ["--root", root, "--cache", tmp_path, "--model", root / "tokenizer", "--length", 64]
    return _mp2("prepare", *names, *options)


def test_prepare_reports_rows_and_what_was_removed(root: Path, tmp_path: Path) -> None:
    result = _prepare(root, tmp_path, "waimai", "chnsent")
    assert "removed: in chnsent/pool, such as" in result.stdout and "2 tasks in" in result.stdout
    facts = json.loads(_prepare_json(root, tmp_path).stdout)
    by_name = {(split["task"], split["split"]): split for split in facts["splits"]}
    waimai = [split for (task, _), split in by_name.items() if task == "waimai"]
    assert sum(split["read"] for split in waimai) == 300
    assert by_name["chnsent", "test"]["kept"] == 20


def _prepare_json(root: Path, tmp_path: Path) -> Result:
    options = ["--root", root, "--cache", tmp_path, "--model", root / "tokenizer", "--length", 64]
    return _mp2("prepare", "waimai", "chnsent", *options, "--json")


def test_a_suite_says_what_is_not_here(root: Path, tmp_path: Path) -> None:
    result = _prepare(root, tmp_path, "unseen-task-7")
    assert (
        "not here: ocnli: fetch it with 'mp2 data fetch ocnli', or put" in result.stderr
        and "| chnsent/test | 20 | 20 |" in result.stdout
    )


def test_preview_marks_the_right_answer(root: Path) -> None:
    result = _mp2("preview", "waimai", "--root", root, "--split", "train", "--rows", 2)
    assert result.stdout.count("waimai/train  ") == 2
    assert "【负面】，正面" in result.stdout or "负面，【正面】" in result.stdout
    picked = _mp2("preview", "waimai", "--root", root, "--rows", 5, "--seed", 3, "--json")
    assert (
        picked.stdout == _mp2("preview", "waimai", "--root", root, "--rows", 5, "--seed", 3, "--json").stdout
    )
    assert len(json.loads(picked.stdout)["rows"]) == 5


def test_leaks_prints_the_overlap(root: Path) -> None:
    result = _mp2("leaks", "--root", root, "--suite", "waimai", "--suite", "chnsent")
    rows = [line for line in result.stdout.splitlines() if "chnsent" in line and "waimai" in line]
    assert rows and all("chnsent/pool" in line for line in rows)
    found = json.loads(
        _mp2("leaks", "--root", root, "--suite", "waimai", "--suite", "chnsent", "--json").stdout
    )
    assert sum(o["first_rows"] for o in found["overlaps"] if "chnsent" in o["second"]) == 10


def test_stats_stand_beside_the_papers(root: Path) -> None:
    result = _mp2("stats", "--root", root)
    assert "| 27 | waimai | TC, shopping | 2 | 8k / 0.8k / 2k | " in result.stdout
    assert "| unseen task | chnsent | 2 | 1200 | 80 / 20 |" in result.stdout
    assert "| 1 | afqmc | NLI, financial | 2 | 31k / 3k / 4k | not here |" in result.stdout
    tasks = json.loads(_mp2("stats", "--root", root, "--json").stdout)["tasks"]
    assert sum(next(t for t in tasks if t["task"] == "waimai")["rows"].values()) == 300


def test_fetch_brings_sets_that_are_then_prepared(root: Path, tmp_path: Path) -> None:
    write_hub(tmp_path / "hub" / "datasets")
    data = tmp_path / "data"
    with local_hub(tmp_path / "hub") as address:
        first = _mp2("fetch", "unseen-task-7", "--root", data, "--endpoint", address)
        again = _mp2("fetch", "unseen-task-7", "ocnli", "--root", data, "--endpoint", address, "--json")
    assert "ocnli: licence" not in first.stderr and "licence: CC BY-NC 2.0" in first.stderr
    assert "by hand: chnsent: put train.tsv, dev.tsv into" in first.stderr
    assert first.stdout == "fetched 5, here before 0, by hand 2\n"
    facts = json.loads(again.stdout)
    assert facts["here"] == ["tnews", "ocnli", "lcqmc", "drcd", "c3"] and not facts["fetched"]
    (data / "tokenizer").symlink_to(root / "tokenizer")
    prepared = _prepare(data, tmp_path / "cache", "lcqmc", "tnews")
    assert "| lcqmc/test | 60 | 60 |" in prepared.stdout


def test_fetch_fails_with_what_to_do(root: Path, tmp_path: Path) -> None:
    with local_hub(tmp_path / "hub") as address:
        with pytest.raises(DataError, match=r"^lcqmc: C-MTEB/LCQMC: http.* has no such data set or revision"):
            _mp2("fetch", "lcqmc", "--root", tmp_path, "--endpoint", address)
        with pytest.raises(DataError, match=r"^ccpm: put train\.jsonl"):
            _mp2("fetch", "ccpm", "--root", tmp_path, "--endpoint", address)
        own = tmp_path / "own-ccpm.yaml"
        own.write_text(dump_task(catalogue.get("ccpm")), encoding="utf-8")
        with pytest.raises(DataError, match=r"^ccpm: put train\.jsonl"):
            _mp2("fetch", own, "--root", tmp_path, "--endpoint", address)
    with pytest.raises(DataError, match="bq: fetch it with 'mp2 data fetch bq', or put"):
        _prepare(root, tmp_path, "bq")


def test_bad_arguments_are_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MP2_DATA", raising=False)
    with pytest.raises(ConfigError, match="--root or MP2_DATA"):
        _mp2("preview", "waimai")
    with pytest.raises(DataError, match="no such folder"):
        _mp2("stats", "--root", tmp_path / "none")
    for number in ("0", "-1"):
        none = CliRunner().invoke(app, ["data", "preview", "waimai", "--root", str(root), "--rows", number])
        assert none.exit_code == 2 and "equal to 1" in none.output
    for option, number in (("--max-bad", "2"), ("--workers", "0"), ("--reserve", "-5")):
        wrong = CliRunner().invoke(app, ["data", "prepare", "waimai", "--root", str(root), option, number])
        assert wrong.exit_code == 2 and option in wrong.output
    renamed = tmp_path / "renamed.yaml"
    renamed.write_text(dump_task(catalogue.get("waimai")).replace("text: review", "text: rview"), "utf-8")
    with pytest.raises(DataError, match=r"no row could be rendered, such as .*:2: column 'rview' is missing"):
        _mp2("preview", renamed, "--root", root, "--split", "train")
    with pytest.raises(Mp2Error, match="did you mean 'waimai'"):
        _mp2("preview", "waimia", "--root", root)
    with pytest.raises(DataError, match=r"put .* into"):
        _mp2("preview", "ocnli", "--root", root)
    with pytest.raises(DataError, match="has no data of unseen-data-7"):
        _prepare(root, tmp_path, "unseen-data-7")
