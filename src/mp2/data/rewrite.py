"""Small rewritings of a row that a file's description may ask for: recode, join, split, replace, simplify.

Decides how texts are changed between the raw file and the task; everything here is written in the task file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from mp2.tasks.source import FileSource

Row = dict[str, Any]


def rewriter(source: FileSource) -> Callable[[Row], Row]:
    """A function that recodes, joins or splits columns, replaces patterns and converts characters."""
    patterns = [(re.compile(pattern), new) for pattern, new in source.replace.items()]
    convert = _converter(source.convert) if source.convert else None

    def edit(text: str) -> str:
        for pattern, new in patterns:
            text = pattern.sub(new, text)
        return convert(text) if convert else text

    def rewrite(row: Row) -> Row:
        for column, meant in source.recode.items():
            if column in row:  # one that the file lacks is missing, not empty
                row[column] = meant.get(str(row[column]), row[column])
        for column, glue in source.join.items():
            if isinstance(row.get(column), list):
                row[column] = glue.join(str(item) for item in row[column])
        for column, delimiter in source.split.items():
            if isinstance(row.get(column), str):
                row[column] = row[column].split(delimiter)
        if patterns or convert:
            row = {column: _each_text(value, edit) for column, value in row.items()}
        return row

    return rewrite


def _each_text(value: Any, edit: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return edit(value)
    return [_each_text(item, edit) for item in value] if isinstance(value, list) else value


@cache
def _converter(name: str) -> Callable[[str], str]:
    import opencc

    convert: Callable[[str], str] = opencc.OpenCC(name).convert
    return convert
