"""A task from the columns of a plain table, so that a user's CSV needs no task file; and a task back to YAML.

Decides which column names and label values are understood. Where they leave a doubt, the user is asked for a
task file instead of being given a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any

import yaml

from mp2.errors import TaskError
from mp2.tasks.render import column_marks, raw_label
from mp2.tasks.spec import TaskSpec

Rows = Sequence[Mapping[str, Any]]


def _words(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


REVIEWS = ("review", "comment", "评论", "评价", "点评")
TEXTS = (*_words("text sentence content title query document 文本 句子 内容 正文 标题 文字"), *REVIEWS)
LABELS = ["label", "category", "class", "sentiment", "标签", "类别", "分类", "情感", "类型"]
TARGETS = ["target", "answer", "keyword", "span", "entity", "目标", "答案", "关键词", "实体", "中心"]
ABOUT = ("target", "entity", "目标", "实体")  # of which a label may speak, and not of the text as a whole
CONTEXTS = _words("context passage document article text 上下文 文章 原文 材料 段落 文本")
QUESTIONS = ["question", "query", "问题", "提问"]
ANSWERS = ["answer", "answers", "答案", "回答"]
STARTS = ("answer_start", "start")
OPTIONS = ["options", "choices", "选项"]
PAIRS = tuple(
    _words(pair)
    for pair in (
        "text1 text2",
        "sentence1 sentence2",
        "question1 question2",
        "query1 query2",
        "text_a text_b",
        "premise hypothesis",
        "文本1 文本2",
        "句子1 句子2",
        "问题1 问题2",
    )
)
NEGATIVE = frozenset(["负面", "negative", "neg", "差评", "消极", "负向", "贬义", "不满意", "负"])
NEUTRAL = frozenset(["中性", "neutral", "中立", "中评", "一般"])
POSITIVE = frozenset(["正面", "positive", "pos", "好评", "积极", "正向", "褒义", "满意", "正"])
SHORT = {"neg": "negative", "pos": "positive", "负": "负面", "正": "正面"}
INFERENCE = {"contradiction": "矛盾", "neutral": "中立", "entailment": "蕴含"}

SENTIMENT_TEMPLATE = '情感分析："{text}"的情感是？选项：'
RELATION_TEMPLATE = '意思判别："{text1}"与"{text2}"的关系是？选项：'
QUESTION_TEMPLATE = '问题选择：问题"{question}"，选项：'
TEXT_DOUBT = "could be the text; leave one, call them sentence1 and sentence2 if a row compares them"
CONTEXT_DOUBT = "could be the text that the question is about; leave one"
LABEL_DOUBT = "could be the label; leave one"
HELP = "write a task file (see docs/tasks.md) that says what they mean, and give it with --task"


def infer_task(rows: Rows, name: str) -> TaskSpec:
    """The task that the columns and labels of a table speak of.

    Args:
        rows: Rows of the table; in JSON some may lack columns that others have.
        name: A name for the task, such as the file's stem; made a valid one.

    Raises:
        TaskError: The columns or the labels fit no task or leave a doubt; the message names them.
    """
    columns = tuple(dict.fromkeys(chain.from_iterable(rows)))
    for infer in (_choice, _reading, _pair, _extraction, _classification):
        found = infer(rows, columns)
        if found is not None:
            return TaskSpec.model_validate({"name": _slug(name), **found})
    raise TaskError(
        f"cannot tell the task from the columns {', '.join(map(repr, columns)) or '(none)'};{_meant(columns)}"
        " expected such as"
        " text,label or sentence1,sentence2,label or sentence,target or context,question,answer or"
        f" question,option_a,option_b,label; rename them or {HELP}"
    )


def unread_columns(task: TaskSpec, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Columns of a table that the task takes nothing from, in their order."""
    columns = dict.fromkeys(chain.from_iterable(rows))
    return [column for column in columns if column not in task.columns]


def _choice(rows: Rows, columns: Sequence[str]) -> dict[str, Any] | None:
    options: Any = _find(columns, OPTIONS)
    if options is None:
        one = re.compile(r"(option|choice|选项)[ _]?([a-z]|\d+)|[a-h1-8]", re.IGNORECASE)
        options = tuple(column for column in columns if one.fullmatch(column.strip()))
    question, label = _find(columns, QUESTIONS), _find(columns, (*LABELS, *ANSWERS))
    if (
        not options
        or question is None
        or label is None
        or (not isinstance(options, str) and len(options) < 2)
    ):
        return None
    _check_counting(rows, options, label)
    others = [column for column in columns if column != question]
    document = _find(others, (*CONTEXTS, *TEXTS))
    if document:
        _check_alone(document, others, CONTEXTS, CONTEXT_DOUBT)
    fields = {"question": question} | ({"document": document} if document else {})
    found = {"family": "choice", "fields": _renamed(fields), "options": options, "label": label}
    return found if document else found | {"template": QUESTION_TEMPLATE}


def _check_counting(rows: Rows, options: str | Sequence[str], label: str) -> None:
    """Refuse right options that are told by numbers and may count from 1, where an index counts from 0.

    Raises:
        TaskError: No number is 0, and the columns of the options bear none.
    """
    if any(mark.isdecimal() for mark in column_marks(options)):
        return
    numbers = set()
    for row in rows:
        texts = row.get(options) if isinstance(options, str) else [row.get(column) for column in options]
        written = raw_label(row[label]) if _is_scalar(row.get(label)) else ""
        if written.isdecimal() and written not in map(str, texts if isinstance(texts, list) else ()):
            numbers.add(int(written))
    if len(numbers) > 1 and 0 not in numbers:
        raise TaskError(
            f"column {label!r}: numbers from {min(numbers)} to {max(numbers)}, and an index counts from 0;"
            f" write letters (A, B) or the options themselves, or {HELP}"
        )


def _reading(rows: Rows, columns: Sequence[str]) -> dict[str, Any] | None:
    question, answer = _find(columns, QUESTIONS), _find(columns, ANSWERS)
    others = [column for column in columns if column != question]
    context = _find(others, (*CONTEXTS, *TEXTS))
    if question is None or answer is None or context is None:
        return None
    _check_alone(context, others, CONTEXTS, CONTEXT_DOUBT)
    found: dict[str, Any] = {
        "family": "reading",
        "fields": _renamed({"context": context, "question": question}),
        "answer": answer,
    }
    start = _find(columns, STARTS)
    if any(row.get(answer) in (None, "", []) for row in rows):
        found["no_answer"] = True
    return found | ({"answer_start": start} if start else {})


def _pair(rows: Rows, columns: Sequence[str]) -> dict[str, Any] | None:
    label = _find(columns, LABELS)
    for first, second in PAIRS:
        left, right = _find(columns, [first]), _find(columns, [second])
        if left is None or right is None or label is None:
            continue
        _check_alone(left, [c for c in columns if c != right], (*TEXTS, *CONTEXTS), TEXT_DOUBT)
        _check_alone(label, columns, LABELS, LABEL_DOUBT)
        found = {"family": "pair", "fields": _renamed({"text1": left, "text2": right}), "label": label}
        raw = _raw_labels(rows, label)
        if set(raw) == {"0", "1"} and first != "premise":  # of which 0 may be entailment
            return found | {"labels": ("矛盾", "相似"), "coding": {"0": "矛盾", "1": "相似"}}
        words = {value: INFERENCE.get(value.lower(), value) for value in raw}
        return found | {"template": RELATION_TEMPLATE} | _worded(words, label)
    return None


def _extraction(rows: Rows, columns: Sequence[str]) -> dict[str, Any] | None:
    target = _find(columns, TARGETS)
    context = _find([c for c in columns if c != target], (*TEXTS, *CONTEXTS))
    if target is None or context is None or _find(columns, LABELS) is not None:
        return None
    _check_alone(context, [c for c in columns if c != target], (*TEXTS, *CONTEXTS, *QUESTIONS), TEXT_DOUBT)
    _check_alone(target, columns, TARGETS, "could be the target; leave one")
    found = {"family": "extraction", "fields": _renamed({"context": context}), "answer": target}
    start = _find(columns, STARTS)
    return found | ({"answer_start": start} if start else {})


def _classification(rows: Rows, columns: Sequence[str]) -> dict[str, Any] | None:
    text, label = _find(columns, TEXTS), _find(columns, LABELS)
    if text is None or label is None:
        return None
    _check_alone(text, columns, (*TEXTS, *CONTEXTS, *QUESTIONS), TEXT_DOUBT)
    _check_alone(label, columns, LABELS, LABEL_DOUBT)
    target = _find(columns, ABOUT)
    if target is not None:
        raise TaskError(
            f"columns {target!r} and {label!r}: a label of the text would leave {target!r} out; leave one of"
            f" them, or {HELP}, such as with a template that holds {{{target}}}"
        )
    found = {"family": "classification", "fields": _renamed({"text": text}), "label": label}
    raw = _raw_labels(rows, label)
    sentiment = _sentiment(raw, meant=text.lower() in REVIEWS or label.lower() in ("sentiment", "情感"))
    if sentiment:
        return found | {"template": SENTIMENT_TEMPLATE} | sentiment
    return found | _worded({value: value for value in raw}, label)


def _check_alone(chosen: str, columns: Sequence[str], known: Collection[str], doubt: str) -> None:
    """Refuse a table in which another column has a name of the same kind.

    Raises:
        TaskError: Names both.
    """
    others = [column for column in columns if column != chosen and column.strip().lower() in known]
    if others:
        raise TaskError(f"columns {chosen!r} and {others[0]!r}: either {doubt}, or {HELP}")


def _sentiment(raw: Sequence[str], *, meant: bool) -> dict[str, Any] | None:
    """Label words and coding, if the raw labels are sentiments."""
    if meant and set(raw) == {"0", "1"}:
        return {"labels": ("负面", "正面"), "coding": {"0": "负面", "1": "正面"}}
    groups = {"负面": NEGATIVE, "中性": NEUTRAL, "正面": POSITIVE}
    coding = {value: word for word, group in groups.items() for value in raw if value.lower() in group}
    if len(coding) < len(raw) or not {"负面", "正面"} <= set(coding.values()):
        return None
    if len(set(coding.values())) < len({SHORT.get(value.lower(), value.lower()) for value in raw}):
        return None  # 满意 and 好评 in one table are two labels
    words = tuple(word for word in groups if word in coding.values())
    return {"labels": words, "coding": coding}


def _worded(words: Mapping[str, str], column: str) -> dict[str, Any]:
    """Labels that speak for themselves.

    Raises:
        TaskError: They are numbers, sentences or a single one.
    """
    labels = tuple(dict.fromkeys(words.values()))
    if len(labels) < 2:
        raise TaskError(f"column {column!r}: expected at least 2 different labels, got {list(labels)}")
    numbers = [label for label in labels if re.fullmatch(r"[-+]?\d+(\.\d+)?", label)]
    if numbers:
        coding = ", ".join(f"'{label}': <word>" for label in numbers[:3])
        raise TaskError(
            f"column {column!r}: numbers as labels ({', '.join(numbers[:8])}), and the model reads words;"
            f" put words into the column, or {HELP}, such as with coding: {{{coding}}}"
        )
    long = max(labels, key=len)
    if len(long) > 40:
        raise TaskError(f"column {column!r}: {long[:40]!r}... looks like a text, not like a label; {HELP}")
    # all of them: without a coding, a 0 in another file would be the first label of the alphabet
    return {"labels": labels, "coding": dict(words)}


def _raw_labels(rows: Rows, column: str) -> list[str]:
    """Distinct label values in sorted order; cells that hold no label are left for the renderer to refuse."""
    values = {raw_label(row[column]) for row in rows if _is_scalar(row.get(column))}
    return sorted(value for value in values if value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not (isinstance(value, float) and math.isnan(value))


def _find(columns: Sequence[str], names: Iterable[str]) -> str | None:
    """The column that has one of the names, the first names first; case and white space do not matter."""
    plain = {column.strip().lower(): column for column in reversed(columns)}
    return next((plain[name] for name in names if name in plain), None)


def _meant(columns: Sequence[str]) -> str:
    """Known names that are nearly those of columns which nobody knows."""
    known = {*TEXTS, *LABELS, *TARGETS, *CONTEXTS, *QUESTIONS, *ANSWERS, *OPTIONS, *chain(*PAIRS)}
    plain = [column.strip().lower() for column in columns]
    close = (get_close_matches(name, known, n=1, cutoff=0.75) for name in plain if name not in known)
    return "".join(f" did you mean {found[0]!r}?" for found in close if found)


def _renamed(fields: Mapping[str, str]) -> dict[str, str]:
    return {field: column for field, column in fields.items() if field != column}


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")
    return slug[:64] or "task"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, value: Sequence[Any]) -> yaml.Node:
    flat = not any(isinstance(item, (list, tuple, dict)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = '"' if "\x85" in value else None  # YAML breaks lines there, in any other style
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, _represent_list)
_Dumper.add_representer(list, _represent_list)


def dump_task(task: TaskSpec) -> str:
    """A task as the text of a task file; :func:`mp2.tasks.spec.parse_task` reads it back as an equal task."""
    raw = {"name": task.name, "version": task.version, "family": task.family}
    raw |= task.model_dump(exclude_defaults=True, exclude_none=True)
    if not task.cut:
        raw["cut"] = ()  # without the key it would be the default fields
    return yaml.dump(raw, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=100)
