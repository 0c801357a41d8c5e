from __future__ import annotations

import random

import numpy as np

from mp2.data.duplicates import RULES, HashSet, row_keys, word_characters
from mp2.tasks.render import MRCExample, Segment
from tests.data.invented import sentence


def _row(*texts: str, question: str = "", answer: int = 0) -> MRCExample:
    segments = [Segment("看："), *(Segment(text, "cut") for text in texts)]
    if question:
        segments.append(Segment(question, "field"))
    return MRCExample(tuple(segments), ("是", "否"), answer)


def _same(one: MRCExample, two: MRCExample) -> bool:
    keys = row_keys([one, two])
    return bool(keys.identity[0] == keys.identity[1])


def test_only_word_characters_count_in_one_form() -> None:
    texts = ["ＡＢc，１２ 漢語！", "", "𠀀龍\0", "。。。"]
    found = ["".join(map(chr, codes)) for codes in word_characters(texts)]
    assert found == ["abc12汉语", "", "𠀀龙", ""]
    assert word_characters([]) == []


def test_texts_are_the_same_whatever_their_punctuation_script_and_case() -> None:
    assert _same(_row("這家店的味道，很好！OK"), _row("这家店的味道很好 ok"))
    assert not _same(_row("这家店的味道很好"), _row("这家店的味道不好"))
    long = sentence(1, 60)
    assert _same(_row(long + "甲"), _row(long + "乙"))  # the first 60 word characters decide


def test_texts_without_words_stand_for_themselves() -> None:
    assert not _same(_row("！！！"), _row("😀"))
    assert _same(_row("😀"), _row(" 😀 "))


def test_a_pair_is_the_same_in_both_orders() -> None:
    assert _same(_row("苹果", "手机"), _row("手机", "苹果"))
    assert not _same(_row("苹果", "手机"), _row("苹果", "电影"))
    assert _same(_row("一段话", question="谁？"), _row("一段话", question="哪里？"))


def test_single_sentences_count_only_when_long() -> None:
    short, long = "怎么还款", sentence(3, 12)
    keys = row_keys([_row(short, long), _row("别的问题", long), _row(short, "又一个")])
    of_row = [set(keys.text[keys.text_row == row].tolist()) for row in range(3)]
    assert len(of_row[0] & of_row[1]) == 1 and not of_row[0] & of_row[2]
    assert row_keys([_row(long)]).text[0] in of_row[0]  # also as the only text of a row
    assert keys.several.all() and not row_keys([_row(long)]).several.any()


def test_whole_tells_copies_from_rows_with_another_answer() -> None:
    keys = row_keys([_row("甲", answer=0), _row("甲", answer=0), _row("甲", answer=1), _row("甲。")])
    assert keys.whole[0] == keys.whole[1]
    assert len(set(keys.whole.tolist())) == 3
    assert len(set(keys.identity.tolist())) == 1


def test_shingles_survive_a_changed_beginning() -> None:
    text = sentence(5, 100)
    keys = row_keys([_row(text), _row("新的开头与原文不同，" + text[7:]), _row(sentence(6, 100)), _row("短")])
    of_row = [set(keys.shingle[keys.shingle_row == row].tolist()) for row in range(4)]
    assert len(of_row[0]) >= RULES.least
    assert len(of_row[0] & of_row[1]) > 0.8 * len(of_row[0])
    assert not of_row[0] & of_row[2] and not of_row[3]


def test_keys_do_not_depend_on_the_chunk() -> None:
    rows = [_row(sentence(n, n % 50 + 1), *([sentence(n + 1)] * (n % 2))) for n in range(60)]
    whole = row_keys(rows)
    for start in range(0, 60, 20):
        part = row_keys(rows[start : start + 20])
        assert (part.identity == whole.identity[start : start + 20]).all()
        inside = (whole.shingle_row >= start) & (whole.shingle_row < start + 20)
        assert (part.shingle == whole.shingle[inside]).all()


def test_hash_set_is_a_set() -> None:
    generator = random.Random(0)
    known: set[int] = set()
    hashes = HashSet()
    for size in [1, 0, 700, 3, 3, 1000, 50, 4000, 1]:
        batch = [generator.randrange(3000) for _ in range(size)]
        expected = []
        for value in batch:
            expected.append(value not in known)
            known.add(value)
        assert hashes.add(np.array(batch, dtype=np.uint64)).tolist() == expected
    assert len(hashes) == len(known)
