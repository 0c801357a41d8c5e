"""Objectives that have the multiple-choice form, made from raw tokens alone.

Each function makes one row: a passage, a question, and options of which one is right because the text says
so. The wordings vary, so that an encoder learns to read the question and point at an option and not to
expect one template. Decides nothing about batches (``mp2.training.objectives``).

Every function takes the text, a generator, a sentence to start from and the longest row allowed, and returns
a row or None when the place gives none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mp2.data.encode import SEPARATOR, Window
from mp2.training.tokentext import Tokens, TokenText

Rng = np.random.Generator

CLOZE = (
    ('完形填空："', '"中空缺的词是？选项：'),
    ('填空："', '"的空白处应填入？选项：'),
    ('选词填空：文本"', '"，缺少的词语是？选项：'),
    ('阅读选择：文档"', '"，问题"空缺处的词是什么？",选项：'),
    ('"', '"这段话里被遮住的词是？选项：'),
)
KEYWORD = (
    ('主题识别："', '"的主题是？选项：'),
    ('主题识别："', '"的主题词是？选项：'),
    ('关键词识别："', '"的关键词是？选项：'),
    ('下面这段话"', '"最可能谈到的是？选项：'),
    ('文本分类："', '"与哪个词有关？选项：'),
    ('内容判断："', '"的内容涉及？选项：'),
)
NEXT = (
    ('接下文："', '"的下一句是？选项：'),
    ('句子选择："', '"后面的句子是？选项：'),
    ('阅读选择：文档"', '"，问题"接下来的一句是哪句？",选项：'),
)
PREVIOUS = (
    ('接上文："', '"的上一句是？选项：'),
    ('句子选择："', '"前面的句子是？选项：'),
    ('阅读选择：文档"', '"，问题"这段话之前的一句是哪句？",选项：'),
)
TITLE = (
    ('标题选择："', '"的标题是？选项：'),
    ('主题识别："', '"的题目是？选项：'),
    ('阅读选择：文档"', '"，问题"最合适的标题是哪个？",选项：'),
)
BODY = (
    ('内容选择：标题"', '"的正文是？选项：'),
    ('与标题"', '"最相符的内容是？选项：'),
)
OPENING = (
    ('首句选择："', '"的第一句是？选项：'),
    ('阅读选择：文档"', '"，问题"文章开头的句子是哪句？",选项：'),
)
MEANING = (
    (('意思判别："', '"与"', '"的意思是？选项：'), (("矛盾", "相似"), ("不同", "相似"), ("不同", "相同"))),
    (('意思判别："', '"与"', '"的关系是？选项：'), (("矛盾", "相似"), ("无关", "相似"), ("矛盾", "蕴含"))),
    (('句子"', '"和句子"', '"的意思一样吗？选项：'), (("不同", "相同"), ("否", "是"), ("不一样", "一样"))),
)
SOURCE = (
    (('"', '"与"', '"出自同一篇文章吗？选项：'), (("否", "是"), ("不是", "是"))),
    (('话题判别："', '"与"', '"的话题是？选项：'), (("不同", "相同"), ("无关", "相关"))),
    (('问答判断："', '"的回答"', '"符合问题吗？选项：'), (("不符", "符合"), ("无关", "相关"))),
)
PPT = (('句子选择：与"', '"相邻的句子是？选项：'), ('"', '"的上一句或下一句是？选项：'))
PPT_LETTERS = "ABCDEFGHIJKLMNOP"
# options: (longest query, longest option, distractors from the same document, from each of four others),
# for rows of 512 tokens; Gu et al., *PPT*, arXiv:2109.04332
PPT_SIZES: dict[int, tuple[int, int, int, tuple[int, int, int, int]]] = {
    2: (400, 50, 1, (0, 0, 0, 0)),
    3: (400, 50, 1, (1, 0, 0, 0)),
    4: (400, 50, 1, (1, 1, 0, 0)),
    5: (400, 40, 1, (1, 1, 1, 0)),
    6: (300, 40, 1, (1, 1, 1, 1)),
    7: (250, 30, 2, (1, 1, 1, 1)),
    8: (200, 30, 2, (2, 1, 1, 1)),
    9: (200, 30, 2, (2, 2, 1, 1)),
    10: (150, 20, 2, (2, 2, 2, 1)),
    11: (150, 20, 3, (2, 2, 2, 1)),
    12: (150, 20, 3, (2, 2, 2, 2)),
    13: (150, 20, 3, (3, 2, 2, 2)),
    14: (150, 20, 3, (3, 3, 2, 2)),
    15: (150, 20, 3, (3, 3, 3, 2)),
    16: (150, 20, 3, (3, 3, 3, 3)),
}


def cloze(text: TokenText, rng: Rng, index: int, length: int) -> Window | None:
    """Choose the word, or the two or three words, that were masked.

    Distractors are words of the same frequency or words from around the passage.
    """
    before, after = wording(text, rng, CLOZE)
    size = 1 if rng.random() < 0.7 else int(rng.integers(2, 4))
    count = int(rng.integers(2, 17 if size == 1 else 9))
    passage = text.passage(index, length - 1 - len(before) - len(after) - count * (size + 1) + size - 1)
    places = _word_spans(text, passage, size)
    if not len(places):
        return None
    at = int(places[rng.integers(len(places))])
    right = passage[at : at + size].tolist()
    wrong = _other_spans(text, rng, text.surroundings(index), size, right, count // 2 if size == 1 else count)
    if size == 1:
        wrong += [[word] for word in text.similar_words(rng, right[0], count) if [word] not in wrong]
    masked = [*passage[:at].tolist(), text.mask, *passage[at + size :].tolist()]
    return choice_row(text, rng, [*before, *masked, *after], right, wrong[: count - 1])


def keyword(text: TokenText, rng: Rng, index: int, length: int) -> Window | None:
    """Choose the word that is typical of a passage but does not stand in it (any more).

    The word is frequent around the passage and comes in clumps elsewhere, as a topic's label word does.
    """
    before, after = wording(text, rng, KEYWORD)
    count = int(rng.integers(2, 17))
    passage = text.passage(index, length - 1 - len(before) - len(after) - 2 * count)
    if len(passage) < 8:
        return None
    # outside the document the neighbours may speak of something else: count its own words twice
    around = np.concatenate([passage, passage, text.surroundings(index)])
    words, counts = np.unique(around[text.topical[around]], return_counts=True)
    worth = np.where(counts > 3, np.sqrt(counts) * (1 - text.clumping[words]), 0)
    best = np.argsort(-worth, kind="stable")[: int(min(5, (worth > 0).sum()))]
    if not len(best):
        return None
    right = int(words[best[rng.integers(len(best))]])
    wrong = text.topical_words(rng, count - 1, words.tolist())
    if rng.random() < 0.5:
        kept = passage[passage != right].tolist()
    else:
        kept = np.where(passage == right, text.mask, passage).tolist()
    return choice_row(text, rng, [*before, *kept, *after], [right], [[word] for word in wrong])


def next_sentence(text: TokenText, rng: Rng, index: int, length: int) -> Window | None:
    """Choose the sentence that follows (or goes before) a passage of the same document."""
    forward = rng.random() < 0.7
    before, after = wording(text, rng, NEXT if forward else PREVIOUS)
    first, stop = text.document_of(index)
    if stop - first < 2:
        return None
    count = int(rng.integers(2, 9))
    limit = max(6, min(40, (length * 6 // 10) // count - 1))
    room = length - 1 - len(before) - len(after) - count * (limit + 1)
    if room < 8:
        return None
    index = min(max(index, first + (not forward)), stop - 1 - forward)
    start, end = text.sentences[first], text.sentences[index + 1]
    passage = text.tokens[max(start, end - room) : end] if forward else text.passage(index, room)
    answer = index + 1 if forward else index - 1
    same = [int(i) for i in rng.integers(first, stop, size=count // 2) if abs(i - index) > 1 and i != answer]
    others = [*same, *text.near_sentences(rng, index, count), *text.draw_sentences(rng, count).tolist()]
    order = rng.permutation(len(others))[: 2 * count] if count > 2 else range(len(others))
    wrong = [text.sentence(others[i], limit) for i in order]
    right = text.sentence(answer, limit)
    return choice_row(text, rng, [*before, *passage.tolist(), *after], right, wrong, count=count, shortest=3)


def title(text: TokenText, rng: Rng, index: int, length: int) -> Window | None:
    """Choose the title of a passage, the passage of a title, or a document's first sentence."""
    kind = rng.random()
    if kind < 0.35 or not len(text.titles):
        return _opening(text, rng, index, length)
    drawn = text.titles[rng.integers(0, len(text.titles), size=1)[0] :][:200]
    ours, pool = int(drawn[0]), drawn[1:]
    count = int(rng.integers(2, 9))
    # half of the distractors stand near, where titles are alike
    near = pool[rng.integers(0, len(pool), size=count)].tolist() if len(pool) else []
    far = text.titles[rng.integers(0, len(text.titles), size=count)].tolist()
    others = [d for d in [*near[: count // 2], *far] if d != ours]
    to_title = kind < 0.8
    before, after = wording(text, rng, TITLE if to_title else BODY)
    limit = 24 if to_title else max(12, (length * 7 // 10) // count)
    shown, asked = (0, 1) if to_title else (1, 0)
    room = length - 1 - len(before) - len(after) - count * (limit + 1)
    if room < 12 - 8 * shown:
        return None
    right = _document(text, ours + shown, limit)
    wrong = [_document(text, d + shown, limit) for d in others]
    passage = _document(text, ours + asked, room)
    return choice_row(text, rng, [*before, *passage, *after], right, wrong, count=count)


def _opening(text: TokenText, rng: Rng, index: int, length: int) -> Window | None:
    first, stop = text.document_of(index)
    if stop - first < 3:
        return None
    before, after = wording(text, rng, OPENING)
    count = int(rng.integers(2, 7))
    limit = max(8, min(30, (length // 2) // count))
    room = length - 1 - len(before) - len(after) - count * (limit + 1)
    passage = text.passage(first + 1, room).tolist()
    places = [*text.near_sentences(rng, first, count // 2), *text.draw_sentences(rng, count).tolist()]
    wrong = [text.sentence(text.document_of(place)[0], limit) for place in places]
    right = text.sentence(first, limit)
    return choice_row(text, rng, [*before, *passage, *after], right, wrong, count=count, shortest=3)


def pair(text: TokenText, rng: Rng, index: int, length: int) -> Window | None:
    """Say whether two texts mean the same (one is a noisy copy), or whether they belong together."""
    meaning = rng.random() < 0.5
    wordings = MEANING if meaning else SOURCE
    template, labels = wordings[rng.integers(len(wordings))]
    words = [text.literal(word) for word in labels[rng.integers(len(labels))]]
    parts = [text.literal(part) for part in template]
    room = length - 1 - sum(map(len, parts)) - sum(len(word) + 1 for word in words)
    yes = rng.random() < 0.5
    first = text.sentence(index, min(room // 2, 60)) if meaning else text.passage(index, room // 2).tolist()
    if len(first) < 5:
        return None
    second = _partner(text, rng, index, first, room // 2, meaning=meaning, yes=yes)
    if second is None or len(second) < 3:
        return None
    if rng.random() < 0.5 and meaning:
        first, second = second, first
    query = [*parts[0], *first, *parts[1], *second, *parts[2]]
    return choice_row(text, rng, query, words[yes], [words[not yes]])


def _partner(
    text: TokenText, rng: Rng, index: int, first: Tokens, room: int, *, meaning: bool, yes: bool
) -> Tokens | None:
    """The second text of a pair."""
    if meaning and yes:
        return _noisy(text, rng, first)
    if meaning:
        if rng.random() < 0.5:
            return _altered(text, rng, _noisy(text, rng, first))
        start, stop = text.document_of(index)
        other = int(rng.integers(start, stop))
        return text.sentence(other if other != index else text.near_sentences(rng, index, 1)[0], room)
    if not yes:
        others = text.near_sentences(rng, index, 1) if rng.random() < 0.5 else text.draw_sentences(rng, 1)
        return list(text.passage(int(others[0]), room).tolist())
    end = int(text.sentences[index]) + len(first)
    stop = int(text.documents[np.searchsorted(text.documents, text.sentences[index], side="right")])
    return list(text.tokens[end : min(end + room, stop)].tolist()) if stop - end >= 5 else None


def _noisy(text: TokenText, rng: Rng, ids: Tokens) -> Tokens:
    """The same words, less some small ones, perhaps with the parts around a mark exchanged."""
    kept = [i for i in ids if text.word[i] or rng.random() > 0.25]
    marks = [i for i in range(2, len(kept) - 2) if not text.letters[kept[i - 1]]]
    if marks and rng.random() < 0.6:
        cut = marks[int(rng.integers(len(marks)))]
        kept = [*kept[cut:], *kept[:cut]]
    return kept


def _altered(text: TokenText, rng: Rng, ids: Tokens) -> Tokens | None:
    """Another word in the place of one or two words."""
    places = np.flatnonzero(text.word[ids])
    if not len(places):
        return None
    ids = list(ids)
    for at in rng.choice(places, size=min(len(places), int(rng.integers(1, 3))), replace=False):
        ids[at] = next(iter(text.similar_words(rng, ids[at], 1)), ids[at])
    return ids


def ppt(text: TokenText, rng: Rng, index: int, length: int) -> Window | None:
    """PPT's next-sentence selection with the sentences themselves as options."""
    drawn = _ppt_sentences(text, rng, index, length)
    if drawn is None:
        return None
    before, after = wording(text, rng, PPT)
    query, right, wrong = drawn
    query = query[: length - 1 - len(before) - len(after) - sum(len(o) + 1 for o in (right, *wrong))]
    return choice_row(text, rng, [*before, *query, *after], right, wrong, count=len(wrong) + 1)


def ppt_letters(text: TokenText, rng: Rng, index: int, length: int) -> Window | None:
    """PPT's next-sentence selection as published: lettered sentences, a letter to choose."""
    drawn = _ppt_sentences(text, rng, index, length * 9 // 10)
    if drawn is None:
        return None
    query, right, wrong = drawn
    place = int(rng.integers(len(wrong) + 1))
    sentences = [*wrong[:place], right, *wrong[place:]]
    letters = [text.literal(letter) for letter in PPT_LETTERS[: len(sentences)]]
    dot, after = text.literal("."), text.literal("正确的是？选项：")
    listed = [
        t for letter, sentence in zip(letters, sentences, strict=True) for t in (*letter, *dot, *sentence)
    ]
    query = query[: length - 2 - len(listed) - len(after) - 2 * len(letters)]
    ids = [*query, *text.literal("？"), *listed, *after]
    return _lay(text, ids, letters, place) if query else None


def _ppt_sentences(
    text: TokenText, rng: Rng, index: int, length: int
) -> tuple[Tokens, Tokens, list[Tokens]] | None:
    count = int(rng.integers(2, 17))
    query_limit, limit, same, elsewhere = PPT_SIZES[count]
    query_limit, limit = (max(5, size * length // 512) for size in (query_limit, limit))
    query = text.sentence(index, query_limit)
    first, stop = text.document_of(index)
    neighbours = [i for i in (index - 1, index + 1) if first <= i < stop]
    if len(query) < 5 or not neighbours:
        return None
    answer = neighbours[int(rng.integers(len(neighbours)))]
    # a document is a paragraph here; what stands around it is the rest of its text
    places = [index + int(step) for step in rng.choice((-1, 1), size=same) * rng.integers(2, 20, size=same)]
    for number, start in zip(elsewhere, text.draw_sentences(rng, 4).tolist(), strict=True):
        places += range(start, start + number)
    wrong = [text.sentence(place % (len(text.sentences) - 1), limit) for place in places]
    right = text.sentence(answer, limit)
    wrong = [option for option in wrong if len(option) >= 3 and option != right]
    return (query, right, wrong) if len(right) >= 3 and len(wrong) > 0 else None


def _document(text: TokenText, number: int, limit: int) -> Tokens:
    start, stop = text.documents[number], text.documents[number + 1]
    return list(text.tokens[start : min(stop, start + limit)].tolist())


def wording(text: TokenText, rng: Rng, table: Sequence[tuple[str, str]]) -> tuple[Tokens, Tokens]:
    """One of the wordings of a question, as tokens before and after the passage."""
    before, after = table[int(rng.integers(len(table)))]
    return text.literal(before), text.literal(after)


def _word_spans(text: TokenText, ids: np.ndarray, size: int) -> np.ndarray:
    """Places where ``size`` tokens of letters begin with a word."""
    good = text.word[ids[: len(ids) - size + 1]]
    for step in range(1, size):
        good = good & text.letters[ids[step : len(ids) - size + 1 + step]]
    return np.flatnonzero(good)


def _other_spans(
    text: TokenText, rng: Rng, ids: np.ndarray, size: int, right: Tokens, count: int
) -> list[Tokens]:
    """Up to ``count`` different spans of words, none of them the right one."""
    places = _word_spans(text, ids, size)
    if not len(places) or not count:
        return []
    drawn = [
        tuple(ids[at : at + size].tolist()) for at in places[rng.integers(0, len(places), size=2 * count)]
    ]
    return [list(span) for span in dict.fromkeys(drawn) if list(span) != right][:count]


def choice_row(
    text: TokenText,
    rng: Rng,
    query: Tokens,
    right: Tokens,
    wrong: Sequence[Tokens],
    *,
    count: int = 16,
    shortest: int = 1,
) -> Window | None:
    """Lay out a row with different options in random order; None when fewer than two are left."""
    different = dict.fromkeys(tuple(o) for o in wrong if len(o) >= shortest and o != right)
    options = [list(option) for option in different][: count - 1]
    if not options or len(right) < shortest:
        return None
    place = int(rng.integers(len(options) + 1))
    return _lay(text, query, [*options[:place], right, *options[place:]], place)


def _lay(text: TokenText, query: Tokens, options: Sequence[Tokens], answer: int) -> Window:
    comma = text.literal(SEPARATOR)
    ids, spans = [text.cls, *query], []
    for index, option in enumerate(options):
        spans.append((index, len(ids), len(ids) + len(option) - 1))
        ids += [*option, *comma]
    return Window(ids, options=spans, gold=spans[answer][1:])
