"""Invented rows that tests of tuning share: a task with two labels, one with a span, and both encoded."""

from __future__ import annotations

from mp2.model.checkpoint import Base
from mp2.tasks.render import MRCExample, render
from mp2.tasks.spec import TaskSpec, parse_task
from mp2.tuning.course import Shots
from mp2.tuning.methods import Method
from mp2.tuning.state import TaskState
from mp2.tuning.tune import encode_shots

GOOD = ("音乐很好", "喜欢这个地方", "味道非常好看", "老师说话很真", "他们都喜欢看", "这里的服务快")
BAD = ("天气不好", "送得太慢", "菜很难看", "没有人喜欢", "手机又死了", "问题很多")


def labelled(task: TaskSpec, texts: tuple[str, ...], label: str) -> list[MRCExample]:
    return [render(task, {"text": text, "label": label}) for text in texts]


def review_task() -> TaskSpec:
    return parse_task(
        "name: reviews\nfamily: classification\nlabels: [差, 好]\ntemplate: '评价{text}？选项：'\n"
    )


def review_rows(task: TaskSpec) -> tuple[list[MRCExample], list[MRCExample]]:
    train = labelled(task, GOOD[:4], "好") + labelled(task, BAD[:4], "差")
    dev = labelled(task, GOOD[4:], "好") + labelled(task, BAD[4:], "差")
    return train, dev


def span_task() -> TaskSpec:
    return parse_task("name: target\nfamily: extraction\ntemplate: '抽取{context}的中心是'\nanswer: answer\n")


def span_rows(task: TaskSpec) -> list[MRCExample]:
    pairs = (("北京的天气很好", "天气"), ("老师的手机没有电了", "手机"), ("上海音乐", "音乐"))
    return [render(task, {"context": context, "answer": answer}) for context, answer in pairs]


def prepared(
    base: Base, method: Method, task: TaskSpec, examples: list[MRCExample]
) -> tuple[TaskState, Shots]:
    """A state and the shots encoded as the method needs them; its head is steep, so that losses differ."""
    state = TaskState(base, method, seed=1)
    assert state.bank is not None
    state.head.weight.data *= 20
    return state, encode_shots(base, examples, state.bank.config.length if state.injection == "add" else 0)
