from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mp2.data.encode import Window
from mp2.errors import ConfigError, DataError
from mp2.training.corpus import Corpus, build_corpus
from mp2.training.objectives import MAKERS, OBJECTIVES, Mixture
from mp2.training.tokentext import TokenText
from tests.training.invented import TOPICS, invented_texts, invented_tokenizer

CHOICES = sorted(set(MAKERS) - {"recur"})
MAX_LENGTH = 96
PPT_OPTIONS = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TokenText:
    folder = tmp_path_factory.mktemp("text")
    for name, seed in (("one", 1), ("two", 2)):
        lines = "\n".join(invented_texts(600, seed)) + "\n"
        (folder / f"{name}.txt").write_text(lines, encoding="utf-8")
    corpus = build_corpus([folder / "one.txt", folder / "two.txt"], invented_tokenizer(), folder / "corpus")
    return TokenText(corpus, invented_tokenizer())


def rows_of(text: TokenText, name: str, batches: int = 4) -> list[Any]:
    mixture = Mixture({name: 1}, text, invented_tokenizer(), tokens=2048, max_length=MAX_LENGTH)
    return [row for _ in range(batches) for row in next(mixture)]


def words(ids: list[int]) -> str:
    return "".join(invented_tokenizer().convert_ids_to_tokens(ids))


@pytest.mark.parametrize("name", CHOICES)
def test_choice_rows_are_laid_out_like_tasks(text: TokenText, name: str) -> None:
    rows = rows_of(text, name)
    comma = invented_tokenizer()("，", add_special_tokens=False).input_ids[0]
    answers = set()
    for row in rows:
        assert isinstance(row, Window) and len(row.ids) <= MAX_LENGTH
        assert row.ids[0] == text.cls and "选项:" in words(row.ids)
        assert 2 <= len(row.options) <= PPT_OPTIONS and row.context is None
        spans = [(first, last) for _, first, last in row.options]
        assert row.gold in spans
        assert [index for index, _, _ in row.options] == list(range(len(spans)))
        assert all(row.ids[last + 1] == comma for _, last in spans)
        assert spans[-1][1] == len(row.ids) - 2
        options = [tuple(row.ids[first : last + 1]) for first, last in spans]
        assert len(set(options)) == len(options) and all(options)
        answers.add(spans.index(row.gold))
    assert len(answers) > 1, "the right option is always in the same place"


def test_cloze_puts_the_masked_word_back(text: TokenText) -> None:
    whole = words(text.tokens.tolist())
    for row in rows_of(text, "cloze", 2):
        filled = list(row.ids)
        at = filled.index(text.mask)
        assert row.gold is not None
        filled[at : at + 1] = row.ids[row.gold[0] : row.gold[1] + 1]
        # between the quotation marks of the template stands text of the corpus
        assert words(filled[at - 2 : at + 1]).split('"')[-1] in whole


def test_keywords_tell_the_topic_and_are_not_in_the_passage(text: TokenText) -> None:
    told = right = 0
    rows = rows_of(text, "keyword", 8)
    for row in rows:
        assert row.gold is not None
        answer, passage = row.ids[row.gold[0] : row.gold[1] + 1], row.ids[: row.options[0][1]]
        assert answer[0] not in passage
        topics = [{name, *members} for name, members in TOPICS.items()]
        about = [topic for topic in topics if any(word in words(answer) for word in topic)]
        told += bool(about)
        right += any(word in words(passage) for topic in about for word in topic)
    assert told > 0.5 * len(rows) and right > 0.9 * told


def test_masked_tokens(text: TokenText) -> None:
    rows = rows_of(text, "mlm", 40)
    ids, labels = (np.stack(part) for part in zip(*rows, strict=True))
    assert ids.shape == labels.shape and ids.shape[1] == MAX_LENGTH
    assert (ids[:, 0] == text.cls).all() and (ids[:, -1] == text.sep).all()
    asked = labels >= 0
    assert not asked[:, [0, -1]].any()
    assert asked.mean() == pytest.approx(0.15, abs=0.015)
    share = [(ids[asked] == text.mask).mean(), (ids[asked] == labels[asked]).mean()]
    assert share == pytest.approx([0.8, 0.1], abs=0.05)
    original = np.where(asked, labels, ids)[0, 1:-1]
    assert words(original.tolist()) in words(text.tokens.tolist())
    neighbours = (asked[:, 1:] & asked[:, :-1]).sum() / asked.sum()
    assert neighbours > 0.4, "spans, not single tokens"


def test_recurring_spans(text: TokenText) -> None:
    seen_mask = 0
    for row in rows_of(text, "recur"):
        assert row.context is not None and row.gold is not None and not row.options
        assert row.context[0] <= row.gold[0] <= row.gold[1] <= row.context[1]
        assert row.ids[-1] == text.sep and len(row.offsets) == row.context[1] - row.context[0] + 1
        answer = row.ids[row.gold[0] : row.gold[1] + 1]
        assert text.letters[answer].all() and text.word[answer].any()
        if text.mask in row.ids:
            seen_mask += 1
        else:
            assert words(row.ids).count(words(answer)) > 1
    assert seen_mask


def test_the_next_sentence_is_a_neighbour(text: TokenText) -> None:
    whole = words(text.tokens.tolist())
    for row in rows_of(text, "next", 2):
        shown = words(row.ids)
        passage = shown.split('"')[1]
        assert row.gold is not None
        answer = words(row.ids[row.gold[0] : row.gold[1] + 1])
        if "下一句" in shown or "后面" in shown or "接下来" in shown:
            assert passage + answer in whole
        else:
            assert answer in whole and passage in whole


def test_batches_fit_and_are_of_one_objective(text: TokenText) -> None:
    mixture = Mixture(dict.fromkeys(OBJECTIVES, 1.0), text, invented_tokenizer(), tokens=1024, max_length=64)
    seen = set()
    for step in range(60):
        name, rows = mixture.batch(step)
        seen.add(name)
        longest = max(len(row.ids) if isinstance(row, Window) else len(row[0]) for row in rows)
        assert len(rows) * longest <= 1024 and longest <= 64
    assert seen == set(OBJECTIVES)


def test_a_stream_resumes_exactly(text: TokenText) -> None:
    weights = {"mlm": 1.0, "cloze": 1.0, "recur": 2.0}

    def fresh() -> Mixture:
        return Mixture(weights, text, invented_tokenizer(), tokens=512, max_length=64, seed=7)

    first, resumed = fresh(), fresh()
    for _ in range(5):
        next(first)
    resumed.load_state_dict(first.state_dict())
    for _ in range(8):
        assert all(
            a == b if isinstance(a, Window) else np.array_equal(a[0], b[0])
            for a, b in zip(next(first), next(resumed), strict=True)
        )
    assert fresh().batch(3)[1][0] is not None


def test_wrong_mixtures_are_refused(text: TokenText, tmp_path: Path) -> None:
    tokenizer = invented_tokenizer()
    with pytest.raises(ConfigError, match="unknown objective 'clooze'; did you mean 'cloze'"):
        Mixture({"clooze": 1}, text, tokenizer)
    with pytest.raises(ConfigError, match="positive weight"):
        Mixture({"mlm": 0}, text, tokenizer)
    with pytest.raises(ConfigError, match="weight of at least 0"):
        Mixture({"mlm": -1}, text, tokenizer)
    with pytest.raises(ConfigError, match="weight of at least 0 for 'mlm', got inf"):
        Mixture({"mlm": float("inf")}, text, tokenizer)
    with pytest.raises(ConfigError, match="a row has room for 128 tokens, a batch for 64"):
        Mixture({"mlm": 1}, text, tokenizer, tokens=64)
    (tmp_path / "short.txt").write_text("一二三。\n", encoding="utf-8")
    short = build_corpus([tmp_path / "short.txt"], tokenizer, tmp_path / "short")
    with pytest.raises(DataError, match="at least 128 tokens"):
        Mixture({"mlm": 1}, short, tokenizer)
    with pytest.raises(DataError, match="'recur': found no row"):
        next(Mixture({"recur": 1}, short, tokenizer))


def test_a_corpus_of_another_vocabulary_is_refused(text: TokenText) -> None:
    meta = {"vocab_size": 5}
    other = Corpus(text.tokens, text.documents[:-1], text.sentences[:-1], np.array([0]), meta)
    with pytest.raises(DataError, match="vocabulary of 5 tokens"):
        TokenText(other, invented_tokenizer())
