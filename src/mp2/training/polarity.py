"""An objective that has the form of sentiment analysis: is a passage favourable or not?

The only knowledge beside the raw text is a short list of words whose polarity nobody disputes. A passage is
taken where such words all point one way and are not negated; often the words themselves are taken out, so
that the rest of the passage has to tell. Decides nothing about batches (``mp2.training.objectives``).

References:
    Turney, *Thumbs up or thumbs down?*, ACL 2002 (polarity from seed words and raw text).
"""

from __future__ import annotations

import numpy as np

from mp2.data.encode import Window
from mp2.training.choices import choice_row, wording
from mp2.training.tokentext import TokenText


def _words(listed: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(listed.split()))


POSITIVE = _words(
    """
    优秀 优美 美丽 漂亮 精彩 喜欢 满意 舒适 舒服 干净 便宜 实惠 热情 周到 愉快
    开心 快乐 幸福 喜悦 完美 出色 卓越 优质 值得 赞扬 称赞 赞美 欣赏 感动 可爱
    聪明 善良 勇敢 美味 好吃 好看 好听 有趣 顺利 荣誉 不错 很好 真好 最好 挺好的
    喜爱 热爱 亲切 温暖 温馨 美好 贴心 惊喜 流畅 杰出 友好 和谐 诚实 高尚
    """
)
NEGATIVE = _words(
    """
    糟糕 恶劣 丑陋 讨厌 失望 不满 难受 肮脏 麻烦 昂贵 冷漠 粗暴 生气 愤怒 悲伤
    伤心 难过 痛苦 失败 劣质 批评 指责 谴责 投诉 欺骗 骗子 愚蠢 残忍 邪恶 难吃
    难看 无聊 糟 腐败 可怕 恐惧 害怕 厌恶 怨恨 抱怨 后悔 可恶 可惜 遗憾 不好
    太差 很差 恶心 崩溃 郁闷 倒霉 卑鄙 虚伪 残暴 凶恶 懒惰
    """
)
NEGATION = _words(
    """
    不 没 没有 无 未 非 别 不是 不太 并不 并非 不会 不能 毫无 不够 缺乏 是否
    """
)
TEMPLATES = (
    ('情感分析："', '"的情感是？选项：'),
    ('情感识别："', '"的情感是？选项：'),
    ('打分："', '"的评价是？选项：'),
    ('态度判断："', '"的态度是？选项：'),
    ('"', '"这段话的感情色彩是？选项：'),
)
# unfavourable, favourable
LABELS = (
    ("负面", "正面"),
    ("负面", "正面"),
    ("消极", "积极"),
    ("差评", "好评"),
    ("不满", "满意"),
    ("差", "好"),
    ("较差", "较好"),
    ("非常差", "非常好"),
    ("坏", "好"),
)
NEUTRAL = ("中性", "一般")
_WITH_NEUTRAL = 0.15  # share of rows that offer a neutral answer as well


def polarity(text: TokenText, rng: np.random.Generator, index: int, length: int) -> Window | None:
    """A row that asks whether a passage is favourable.

    Args:
        text: The corpus.
        rng: Where chance comes from.
        index: Sentence of a passage for rows without polarity; other rows choose their own.
        length: Longest row, in tokens.

    Returns:
        The row, or None when the place is negated, mixed or too short.
    """
    before, after = wording(text, rng, TEMPLATES)
    labels = list(LABELS[int(rng.integers(len(LABELS)))])
    if rng.random() < _WITH_NEUTRAL:
        labels.append(NEUTRAL[int(rng.integers(len(NEUTRAL)))])
    answer = int(rng.integers(len(labels)))
    if answer < 2:
        place = _place(text, rng, POSITIVE if answer else NEGATIVE)
        if place is None:
            return None
        index = int(np.searchsorted(text.sentences, place, side="right")) - 1
    room = length - 1 - len(before) - len(after) - 4 * len(labels)
    passage = text.passage(index, int(room * rng.uniform(0.6, 1)))
    good, bad = text.marks(POSITIVE)[passage], text.marks(NEGATIVE)[passage]
    if len(passage) < max(5, room // 3) or not _agrees(text, passage, good, bad, answer):
        return None
    chosen = rng.random()
    if chosen < 0.35:
        passage = passage[~(good | bad)]
    elif chosen < 0.7:
        passage = np.where(good | bad, text.mask, passage)
    words = [text.literal(label) for label in labels]
    wrong = [word for place, word in enumerate(words) if place != answer]
    return choice_row(text, rng, [*before, *passage.tolist(), *after], words[answer], wrong)


def _place(text: TokenText, rng: np.random.Generator, words: tuple[str, ...]) -> int | None:
    """A place of one of the words; frequent words are drawn less often than they occur."""
    places = text.occurrences(words)
    if not places:
        return None
    weights = np.sqrt([len(found) for found in places])
    found = places[int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum()))]
    return int(found[rng.integers(len(found))])


def _agrees(text: TokenText, passage: np.ndarray, good: np.ndarray, bad: np.ndarray, answer: int) -> bool:
    """Whether the passage's polar words say what the answer says, with no negation before them."""
    if answer == 2:
        return not (good.any() or bad.any())
    ours, theirs = (good, bad) if answer else (bad, good)
    if not ours.any() or theirs.any():
        return False
    negated = text.marks(NEGATION)[passage]
    return not any((ours[step:] & negated[:-step]).any() for step in range(1, 4))
