"""What the page says: both languages know the same words, and every problem has a Chinese sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mp2.serving
from mp2.serving.problem import TYPES

SERVING = Path(mp2.serving.__file__ or "").parent
WORDS = (SERVING / "page" / "words.js").read_text(encoding="utf-8")


def _kinds() -> Iterator[str]:
    """Names of all problems that the code raises."""
    for file in SERVING.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ProblemError":
                kind = node.args[1]
                if isinstance(kind, ast.Constant):
                    yield str(kind.value)


def test_every_problem_has_a_chinese_sentence() -> None:
    chinese = WORDS.split("problem: (type) =>")[1].split("})[type]")[0]
    told = set(re.findall(r"(\w+): \"[^\"]+\"", chinese))
    assert told == {*TYPES.values(), *_kinds(), "internal"}


def test_both_languages_know_the_same_words() -> None:
    english, chinese = (part.split("  },\n")[0] for part in re.split(r"  (?:en|zh): \{\n", WORDS)[1:])
    # a word stands at the start of a line, or after the comma that ends the one before
    names = [set(re.findall(r"(?:^ {4}|, )(\w+): [\"\[({]", part, re.M)) for part in (english, chinese)]
    assert len(names[0]) > 60
    assert {"problem"} | names[0] == {"problem"} | (names[1] - set(TYPES.values()) - {*_kinds(), "internal"})
