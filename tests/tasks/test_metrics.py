"""Scores of predictions, by examples worked out by hand."""

from __future__ import annotations

import pytest

from mp2.errors import ConfigError
from mp2.tasks.metrics import METRICS, score, tokens


def test_tokens_are_characters_words_and_numbers() -> None:
    assert tokens("《战国》ω-Force 2，于2006年！") == ["战", "国", "ω", "force", "2", "于", "2006", "年"]
    assert tokens("ＡＢＣ１２") == ["abc12"]
    assert tokens("。，…") == []


def test_accuracy() -> None:
    assert score("accuracy", ["正面", "负面"], [["正面"], ["正面"]]) == 0.5


def test_f1_is_of_the_longest_common_run_with_the_best_gold() -> None:
    assert score("f1", ["东方航空"], [["东方航空公司"]]) == pytest.approx(2 * 4 / 10)
    assert score("f1", ["《东方航空》"], [["上航", "东方航空"]]) == 1
    # 东…航 share two characters, but the longest run is one
    assert score("f1", ["东航"], [["东方航空"]]) == pytest.approx(2 * 1 / 6)


def test_released_f1_counts_a_bag_of_tokens_of_the_first_gold() -> None:
    assert score("released-f1", ["东航"], [["东方航空", "东航"]]) == pytest.approx(2 * 2 / 6)
    assert score("released-f1", ["the 东航"], [["东航"]]) == 1
    assert score("released-f1", ["东航。"], [["东航"]]) == pytest.approx(2 * 2 / 5)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_without_an_answer_are_right_when_nothing_is_predicted(metric: str) -> None:
    assert score(metric, [""], [[]]) == 1
    assert score(metric, ["东航"], [[]]) == 0
    assert score(metric, [""], [["东航"]]) == 0
    assert score(metric, [], []) == 0


def test_exact_match_ignores_punctuation_and_case() -> None:
    assert score("exact-match", ["“ABC公司”", "公司"], [["abc公司"], ["abc公司"]]) == 0.5


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'f1'"):
        score("F1", [], [])
