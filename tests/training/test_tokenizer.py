from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mp2.errors import ConfigError
from mp2.training.tokenizer import SPECIAL_TOKENS, sample_texts, train_tokenizer
from mp2.training.unigram import best_split, learn_pieces
from tests.training.invented import invented_texts, invented_tokenizer

TRICKY = [
    "体育，ＡＢc　①全角：“引号”",
    "e\u0301te\u0301 中文",
    "👨‍👩‍👧很好❤️！",
    "龘䶮 3,999元 ½ ﬁn İ",
    "…… a\u200bb\tc",
    "가각 ｶﾞ x\u0323\u0307",
]


def pieces_of(text: str) -> list[str]:
    encoding = invented_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    return [text[start:end] for start, end in encoding["offset_mapping"]]


def test_special_tokens_have_the_first_ids_in_any_loader(tmp_path: Path) -> None:
    invented_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (loaded.pad_token_id, loaded.mask_token_id) == (0, 4)
    assert loaded("足球").input_ids == invented_tokenizer()("足球").input_ids
    assert loaded("足球").input_ids[0] == loaded.cls_token_id


@pytest.mark.parametrize("word", ["正面", "负面", "体育", "矛盾", "相似", "足球"])
def test_requested_words_are_single_pieces(word: str) -> None:
    assert pieces_of(word) == [word]
    assert len(invented_tokenizer()(f"{word}，", add_special_tokens=False).input_ids) == 2


def test_a_word_of_several_parts_becomes_one_piece_per_part() -> None:
    tokenizer = train_tokenizer(
        ["手机卡了"] * 20, vocab_size=80, latin=20, characters=40, words=["免费WIFI", "高兴"]
    )
    assert tokenizer.tokenize("免费WIFI") == ["免费", "wifi"]
    assert tokenizer.tokenize("高兴") == ["高兴"]


def test_digits_and_punctuation_stand_alone() -> None:
    assert pieces_of('满意，"3.5分"：好')[-6:] == ["3", ".", "5", "分", '"', "：", "好"][-6:]
    assert "，" in pieces_of("满意，满意") and "，" not in "".join(pieces_of("满意 满意"))


@pytest.mark.parametrize("text", TRICKY)
def test_offsets_cover_the_users_text(text: str) -> None:
    check_offsets(text)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=20))
def test_offsets_cover_any_text(text: str) -> None:
    check_offsets(text)


def check_offsets(text: str) -> None:
    """Spans are in order, never empty, and leave out nothing but what nobody sees."""
    encoding = invented_tokenizer()(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    spans = encoding["offset_mapping"]
    covered = set()
    for (start, end), (following, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=False):
        assert 0 <= start < end <= len(text) and start <= following
        covered |= set(range(start, end))
    lost = [c for i, c in enumerate(text) if i not in covered]
    assert all(c.isspace() or not c.isprintable() or 0xFE00 <= ord(c) <= 0xFE0F for c in lost), lost


def test_unknown_characters_are_one_token_each_place() -> None:
    ids = invented_tokenizer()("足球龘", add_special_tokens=False).input_ids
    assert ids[-1] == invented_tokenizer().unk_token_id and len(ids) == 2


def test_training_is_reproducible() -> None:
    settings = {"vocab_size": 600, "latin": 60, "characters": 400}
    first, second = (train_tokenizer(invented_texts(100), **settings) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_a_vocabulary_without_room_or_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size: expected at least"):
        train_tokenizer(["文"], vocab_size=100)
    with pytest.raises(ConfigError, match="got none"):
        train_tokenizer([], vocab_size=600, latin=60, characters=400)


def test_the_sample_depends_on_what_texts_say_alone() -> None:
    texts = invented_texts(200)
    drawn = sample_texts(texts, 2000)
    assert sum(map(len, drawn)) <= 2000 and len(drawn) > 3
    assert set(drawn) == set(sample_texts(reversed(texts), 2000))
    assert sample_texts(texts[:5], 10_000) == texts[:5]


def test_pieces_are_words_that_repeat() -> None:
    pieces = learn_pieces("望远镜看星系 星系里有望远镜 镜子和星系 望远镜 " * 30, 16, longest=3)
    assert {"望远镜", "星系"} <= set(pieces)
    assert set("望远镜看星系里有子和") <= set(pieces)
    assert all(score < 0 for score in pieces.values())
    assert learn_pieces("   ", 5) == {}


def test_best_split_is_the_most_probable() -> None:
    known = {"a": -3.0, "b": -3.0, "c": -3.0, "ab": -4.0, "bc": -5.0, "abc": -1.0}
    assert best_split("abc", known) == -7.0
    assert best_split("ad", known) == float("-inf")
