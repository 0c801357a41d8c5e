"""Invented text with topics, titles and opinions: enough structure for every objective, in a few lines."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from mp2.training import choices, polarity, recurrence
from mp2.training.tokenizer import train_tokenizer

TOPICS = {
    "足球": ["球队", "球员", "进球", "联赛", "教练", "守门员", "比赛"],
    "厨房": ["锅", "酱油", "面条", "火候", "米饭", "豆腐", "调料"],
    "天文": ["行星", "望远镜", "轨道", "恒星", "彗星", "星系", "卫星"],
    "医院": ["医生", "护士", "药片", "手术", "病房", "体温", "检查"],
    "铁路": ["车站", "列车", "轨道", "车票", "站台", "司机", "旅客"],
}
PLACES = ["城南", "河边", "山上", "东街", "北门", "海港", "老镇"]
OPINIONS = ["大家都很喜欢", "我们很失望", "结果让人满意", "这真是糟糕", "气氛很愉快", "有人抱怨了半天"]
FRAMES = [
    "{p}的{a}和{b}昨天又被人谈起",
    "{a}在{p}出现以后，{b}也跟着来了",
    "没有{a}就没有{b}，老人这样说",
    "{n}个{a}放在{p}，旁边还有{b}",
    "关于{a}的消息，{o}",
    "{o}，因为{b}比{a}多了{n}个",
]


def invented_texts(documents: int = 400, seed: int = 0) -> list[str]:
    """Titles and documents about five topics, in turn; sentences keep to the topic of their document."""
    rng = random.Random(seed)
    texts = []
    for number in range(documents):
        topic = list(TOPICS)[number // 8 % len(TOPICS)]
        words = TOPICS[topic]
        if number % 3 == 0:
            texts.append(f"{topic}新闻{rng.choice(words)}在{rng.choice(PLACES)}")
        sentences = []
        for _ in range(rng.randint(4, 9)):
            a, b = rng.sample(words, 2)
            frame = rng.choice(FRAMES)
            filled = frame.format(
                a=a, b=b, p=rng.choice(PLACES), o=rng.choice(OPINIONS), n=rng.randint(1, 99)
            )
            sentences.append(filled + rng.choice("。。。！？"))
        texts.append(f"{topic}这几天很热闹。" + "".join(sentences))
    return texts


@cache
def invented_tokenizer() -> Any:
    """A small vocabulary of the invented text and of the objectives' questions."""
    tables = [getattr(choices, name) for name in ("CLOZE", "KEYWORD", "NEXT", "PREVIOUS", "TITLE", "BODY")]
    tables += [choices.OPENING, choices.MEANING, choices.SOURCE, choices.PPT, polarity.TEMPLATES]
    tables += [polarity.LABELS, recurrence.IN_PLACE, recurrence.ELSEWHERE, recurrence.REPEATED]
    questions = [str(table) for table in tables] + [choices.PPT_LETTERS, '抽取式问答：文本"问题正确的是？']
    words = ["正面", "负面", "体育", "矛盾", "相似", *TOPICS, *polarity.POSITIVE, *polarity.NEGATIVE]
    return train_tokenizer(
        [*invented_texts(), *questions], vocab_size=1200, latin=80, characters=800, words=words
    )
