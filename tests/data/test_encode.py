"""Windows: layout, truncation that spares the question, options over several windows, spans back to text."""

from __future__ import annotations

import pytest

from mp2.data.encode import Encoder
from mp2.errors import TaskError
from mp2.model.checkpoint import Base
from mp2.tasks.render import MRCExample, Segment, render
from mp2.tasks.spec import TaskSpec

READING = TaskSpec(name="r", family="reading")
MAYBE = TaskSpec(name="m", family="reading", no_answer=True)
TOPIC = TaskSpec(name="t", family="classification", labels=("体育", "娱乐", "abc12"))


@pytest.fixture(scope="module")
def encoder(base: Base) -> Encoder:
    return base.encoder()


def _text(encoder: Encoder, ids: list[int]) -> str:
    return "".join(token.removeprefix("##") for token in encoder.tokenizer.convert_ids_to_tokens(ids))


def test_the_layout_of_a_classification_row(encoder: Encoder) -> None:
    (row,) = encoder([render(TOPIC, {"text": "今天的比分", "label": "娱乐"})])
    (window,) = row.windows
    assert _text(encoder, window.ids) == '[CLS]主题识别："今天的比分"的主题是？选项：体育，娱乐，abc12，'
    assert [_text(encoder, window.ids[a : b + 1]) for _, a, b in window.options] == ["体育", "娱乐", "abc12"]
    assert (row.n_options, row.answer, window.gold) == (3, 1, window.options[1][1:])


def test_truncation_cuts_the_text_and_never_the_question_or_options(encoder: Encoder) -> None:
    (row,) = encoder([render(TOPIC, {"text": "长" * 500, "label": 0})])
    (window,) = row.windows
    assert len(window.ids) == encoder.room
    assert _text(encoder, window.ids).endswith('"的主题是？选项：体育，娱乐，abc12，')


def test_of_two_texts_the_longer_is_cut(encoder: Encoder) -> None:
    pair = TaskSpec(name="p", family="pair", labels=("矛盾", "相似"))
    (row,) = encoder([render(pair, {"text1": "大" * 300, "text2": "小" * 20, "label": 0})])
    text = _text(encoder, row.windows[0].ids)
    assert text.count("小") == 20 and len(row.windows[0].ids) == encoder.room


def test_hundreds_of_labels_are_spread_over_windows_and_all_are_there(encoder: Encoder) -> None:
    labels = tuple(f"类{i}号" for i in range(300))
    task = TaskSpec(name="many", family="classification", labels=labels)
    (row,) = encoder([render(task, {"text": "中" * 200, "label": "类277号"})])
    assert len(row.windows) > 1 and row.n_options == 300
    assert sorted(index for window in row.windows for index, _, _ in window.options) == list(range(300))
    assert sum(window.gold is not None for window in row.windows) == 1
    assert all(len(window.ids) <= encoder.room for window in row.windows)
    assert all("中" * 10 in _text(encoder, window.ids) for window in row.windows)


def test_an_option_longer_than_the_window_is_refused_with_both_sizes(encoder: Encoder) -> None:
    task = TaskSpec(name="c", family="choice", template="{document}选项：")
    with pytest.raises(
        TaskError, match=r"needs 301 tokens, but the model's window of 128 .*, in the row '一'"
    ):
        encoder([render(task, {"document": "一", "options": ["长" * 300, "二"], "label": 0})])
    with pytest.raises(TaskError, match=r"the option '长+' needs 301 tokens"):  # not the one of most letters
        encoder([render(task, {"document": "一", "options": ["长" * 300, "a" * 400], "label": 0})])


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("他说😀很好，真的。", "😀很好"),
        ("价格是ＡＢＣ１２３元", "ＡＢＣ１２３"),
        ("用 Python 3.11 写的", "Python 3.11"),
        ("罕见字龘龘在此", "龘龘"),
        ("é́ café 好吃", "café"),
        ("全角　空格 和\t制表符", "空格 和\t制表符"),
        ("100米", "100米"),
    ],
)
def test_gold_spans_map_back_to_the_exact_substring(encoder: Encoder, context: str, answer: str) -> None:
    (row,) = encoder([render(READING, {"context": context, "question": "是什么？", "answer": answer})])
    (window,) = row.windows
    assert window.gold is not None and window.context is not None
    first, last = (token - window.context[0] for token in window.gold)
    assert context[window.offsets[first][0] : window.offsets[last][1]] == answer


def test_a_long_context_is_windowed_and_every_answer_is_somewhere(encoder: Encoder) -> None:
    context = "".join(f"第{i}句话。" for i in range(100)) + "答案在北京。"
    (row,) = encoder([render(READING, {"context": context, "question": "在什么地？", "answer": "北京"})])
    assert len(row.windows) > 1 and all(len(window.ids) <= encoder.room for window in row.windows)
    covered = {offset for window in row.windows for offset in window.offsets}
    assert max(end for _, end in covered) == len(context)
    gold = [window for window in row.windows if window.gold]
    assert gold and all("在什么地" in _text(encoder, window.ids) for window in row.windows)


def test_a_text_of_too_many_windows_is_refused_where_an_answer_is_asked_for(encoder: Encoder) -> None:
    row = {"context": "雨" * 5000, "question": "什么？", "answer": "雨"}
    assert len(encoder([render(READING, row)])[0].windows) == 32
    with pytest.raises(
        TaskError, match=r"needs \d+ windows of 128 tokens, and 32 are read, .* first [\d,]+ char"
    ):
        encoder([render(READING, row, labelled=False)])


def test_no_answer_is_a_span_of_the_template(encoder: Encoder) -> None:
    (row,) = encoder([render(MAYBE, {"context": "我的书。", "question": "什么？", "answer": ""})])
    (window,) = row.windows
    assert window.no_answer == window.gold and window.gold is not None
    assert _text(encoder, window.ids[window.gold[0] : window.gold[1] + 1]) == "没有答案"


def test_an_empty_context_has_no_span_to_search(encoder: Encoder) -> None:
    example = MRCExample((Segment("", "context"), Segment("问题")))
    (row,) = encoder([example])
    assert row.windows[0].context is None


def test_a_question_that_leaves_no_room_is_refused_with_its_row(encoder: Encoder) -> None:
    row = {"context": "雨" * 50, "question": "长" * 120, "answer": "雨"}
    with pytest.raises(TaskError, match=r"needs 1\d\d tokens and leaves no room .*, in the row '雨{20}'"):
        encoder([render(READING, row)])


def test_one_call_of_the_tokenizer_takes_all_texts(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, asked = base.encoder(), list[list[str]]()
    tokenise = encoder._tokenise
    monkeypatch.setattr(encoder, "_tokenise", lambda texts: asked.append(texts) or tokenise(texts))
    encoder([render(TOPIC, {"text": text, "label": 0}) for text in ("今天", "明天", "体育")])
    assert len(asked) == 1
    assert sorted(asked[0]) == sorted(["今天", "明天", *TOPIC.labels, '主题识别："', '"的主题是？选项：'])


def test_room_is_kept_for_prompt_slots(base: Base) -> None:
    encoder = base.encoder(reserve=10)
    (row,) = encoder([render(TOPIC, {"text": "长" * 500, "label": 0})])
    assert len(row.windows[0].ids) == base.backbone.max_length - 10
