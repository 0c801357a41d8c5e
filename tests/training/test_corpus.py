from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from mp2.errors import DataError
from mp2.training.corpus import Corpus, build_corpus, read_texts, split_sentences
from mp2.training.tokentext import TokenText
from tests.training.invented import invented_texts, invented_tokenizer


def files(folder: Path) -> list[Path]:
    """One file of every kind, with blank lines and documents of the invented text."""
    texts = invented_texts(40)
    plain, packed, zipped = folder / "a.txt", folder / "b.txt.xz", folder / "c.jsonl.gz"
    plain.write_text("\n\n".join(texts[:10]) + "\n", encoding="utf-8")
    packed.write_bytes(lzma.compress("\n".join(texts[10:30]).encode()))
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts[30:50]]
    zipped.write_bytes(gzip.compress("\n".join(rows).encode()))
    return [plain, packed, zipped]


def test_documents_and_sentences_come_back(tmp_path: Path) -> None:
    texts, tokenizer = invented_texts(40)[:50], invented_tokenizer()
    corpus = build_corpus(files(tmp_path), tokenizer, tmp_path / "corpus")
    assert corpus.tokens.dtype == np.uint16
    assert len(corpus.starts) == len(texts) == corpus.meta["documents"]
    assert corpus.sources.tolist() == [0, 10, 30]
    ends = [*corpus.starts[1:], len(corpus.tokens)]
    for text, start, end in zip(texts, corpus.starts, ends, strict=True):
        assert corpus.tokens[start:end].tolist() == tokenizer(text, add_special_tokens=False).input_ids
    assert set(corpus.starts) <= set(corpus.sentences)
    stops = set(tokenizer("。！？", add_special_tokens=False).input_ids)
    inner = sorted(set(corpus.sentences) - set(corpus.starts))
    assert inner and all(int(corpus.tokens[at - 1]) in stops for at in inner)


def test_the_same_files_are_not_tokenised_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path)
    first = build_corpus(paths, invented_tokenizer(), tmp_path / "corpus")
    assert "tokens" in capsys.readouterr().err
    again = build_corpus(paths, invented_tokenizer(), tmp_path / "corpus")
    assert capsys.readouterr().err == "" and again.meta == first.meta
    paths[0].write_text("新的一行。\n", encoding="utf-8")
    changed = build_corpus(paths, invented_tokenizer(), tmp_path / "corpus")
    assert changed.meta["key"] != first.meta["key"] and changed.meta["documents"] == 41


def test_a_failed_build_leaves_the_old_corpus(tmp_path: Path) -> None:
    paths = files(tmp_path)
    build_corpus(paths, invented_tokenizer(), tmp_path / "corpus")
    paths[1].write_bytes(paths[1].read_bytes()[:-30])
    with pytest.raises(DataError, match=r"b\.txt\.xz: cannot be read"):
        build_corpus(paths, invented_tokenizer(), tmp_path / "corpus")
    assert len(Corpus.open(tmp_path / "corpus").starts) == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.txt.xz", "c.jsonl.gz", "corpus"]


@pytest.mark.parametrize("name", ["tokens.npy", "sentences.npy", "meta.json"])
def test_token_files_that_were_cut_off_are_told_and_made_again(tmp_path: Path, name: str) -> None:
    paths, folder = files(tmp_path), tmp_path / "corpus"
    whole = build_corpus(paths, invented_tokenizer(), folder)
    cut = (folder / name).read_bytes()
    (folder / name).write_bytes(cut[: len(cut) // 2])
    with pytest.raises(
        DataError, match=r"corpus: damaged token files: .*; copy them again, or give the text"
    ):
        Corpus.open(folder)
    assert build_corpus(paths, invented_tokenizer(), folder).meta == whole.meta


def test_the_last_file_may_hold_no_document(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    paths = [*files(tmp_path), tmp_path / "empty.txt"]
    text = TokenText(build_corpus(paths, invented_tokenizer(), tmp_path / "corpus"), invented_tokenizer())
    drawn = text.draw_sentences(np.random.default_rng(0), 1000)
    assert drawn.min() >= 0 and drawn.max() < len(text.sentences) - 1


def test_errors_say_what_was_expected_and_where(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "好"}\n{"texts": "坏"}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: expected text in field 'text'; did you mean 'texts'"
    ):
        list(read_texts(rows))
    rows.write_text('{"text": "好"}\n{"text": "好\\ud83d"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: half a character"):
        build_corpus([rows], invented_tokenizer(), tmp_path / "corpus")
    packed = bytearray(gzip.compress("\n".join(invented_texts(40)).encode()))
    packed[200:260] = bytes(60)
    (tmp_path / "damaged.txt.gz").write_bytes(bytes(packed))
    with pytest.raises(DataError, match=r"damaged\.txt\.gz: cannot be read"):
        list(read_texts(tmp_path / "damaged.txt.gz"))
    with pytest.raises(DataError, match=r"unknown kind of text file.*\.txt, \.jsonl"):
        list(read_texts(tmp_path / "a.pdf"))
    with pytest.raises(DataError, match=r"absent\.txt"):
        build_corpus([tmp_path / "absent.txt"], invented_tokenizer(), tmp_path / "corpus")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="expected text, found none"):
        build_corpus([tmp_path / "empty.txt"], invented_tokenizer(), tmp_path / "corpus")
    with pytest.raises(DataError, match=r"meta\.json"):
        Corpus.open(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("他说：“你好！”然后走了。", ["他说：“你好！”", "然后走了。"]),
        ("真的？！好……嗯", ["真的？！", "好……", "嗯"]),
        ("3.5元；一行\n另一行", ["3.5元；", "一行\n", "另一行"]),
        ("没有句号", ["没有句号"]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences
