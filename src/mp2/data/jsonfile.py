"""JSON arrays of any size, one element at a time, and dotted paths into what they hold.

An array is decoded from a growing buffer, so memory is about one element, and a syntax
error carries its line.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mp2.data.textfile import DAMAGE, damaged, open_binary, undecodable
from mp2.errors import DataError, Where, nearest

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


def read_array(
    path: Path, encoding: str = "utf-8", *, at: str | None = None, member: str | None = None
) -> Iterator[tuple[Where, Any]]:
    """Elements of the array at the top of a JSON file, or under a key of its top object.

    Args:
        path: The file, plain or compressed.
        encoding: Of the text.
        at: Key of the array, where the top is an object.
        member: Member of a zip archive.

    Raises:
        DataError: Not JSON, no array there, more after it, or the file is cut in the middle.
    """
    with open_binary(path, member) as (stream, shown):
        buffer = _Buffer(stream, encoding, shown)
        first = buffer.peek()
        if first == "{" and at is not None:
            _seek_key(buffer, at)
            first = buffer.peek()
        elif first == "":
            raise DataError(f"{shown}: the file is empty")
        if first != "[":
            expected = "an array" if at is None else f"an array under {at!r}"
            lines = "; a file with an object per line is .jsonl" if first == "{" and at is None else ""
            raise DataError(f"{buffer.where}: expected {expected} of rows, got {first!r}{lines}")
        buffer.skip(1)
        alone = at is None  # what else an object holds is not read
        while buffer.peek() != "]":
            where = buffer.where
            yield where, buffer.value()
            if buffer.peek() not in (",", "]"):
                got = repr(buffer.peek()) if buffer.peek() else "the end: the file is cut in the middle"
                raise DataError(f"{buffer.where}: expected ',' or ']' in the array, got {got}")
            if buffer.peek() == ",":
                buffer.skip(1)
        buffer.skip(1)
        if alone and (more := buffer.peek()):
            raise DataError(f"{buffer.where}: expected one array of rows and no more, got {more!r} after it")


def _seek_key(buffer: _Buffer, key: str) -> None:
    """Go to the value of a key of the object that begins here."""
    buffer.skip(1)
    seen: list[str] = []
    while buffer.peek() == '"':
        name = buffer.value()
        if buffer.peek() != ":":
            break
        buffer.skip(1)
        if name == key:
            return
        seen.append(name)
        buffer.peek()
        buffer.value()
        if buffer.peek() == ",":
            buffer.skip(1)
            buffer.peek()
    raise DataError(f"{buffer.where}: the object has no key {key!r}; {nearest(key, seen)}")


class _Buffer:
    """Decoded text of a stream, of which only what is not yet used is kept."""

    def __init__(self, stream: Any, encoding: str, shown: str) -> None:
        self.stream, self.shown, self.encoding = stream, shown, encoding
        try:
            self.decoder = codecs.getincrementaldecoder(encoding)()
        except LookupError:
            raise DataError(f"{shown}: unknown encoding {encoding!r}; such as utf-8, gb18030") from None
        self.parse = json.JSONDecoder()
        self.text, self.place, self.line, self.ended = "", 0, 1, False
        while not self.text and not self.ended:
            self._read(_CHUNK)
        self.text = self.text.removeprefix("\ufeff")

    @property
    def where(self) -> Where:
        """Place of the next character."""
        return Where(self.shown, self.line)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self.place < len(self.text):
                character = self.text[self.place]
                if character not in _SPACE:
                    return character
                self.skip(1)
            if self.ended:
                return ""
            self._read(_CHUNK)

    def skip(self, count: int) -> None:
        """Go forward by some characters, counting lines."""
        self.line += self.text.count("\n", self.place, self.place + count)
        self.place += count

    def value(self) -> Any:
        """Decode the value that begins here."""
        size = _CHUNK
        while True:
            try:
                value, end = self.parse.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if self.ended or not _may_go_on(error, len(self.text)):
                    raise DataError(self._explain(error)) from error
            # a number too long for Python, lists in lists in lists
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.where}: not readable JSON: {error}") from error
            else:
                if end < len(self.text) or self.ended:
                    self.skip(end - self.place)
                    return value
            self._read(size)
            size *= 2

    def _explain(self, error: json.JSONDecodeError) -> str:
        line = self.line + self.text.count("\n", self.place, error.pos)
        where = Where(self.shown, line)
        if self.ended and _may_go_on(error, len(self.text)):
            return f"{where}: the JSON ends too early: the file is cut in the middle"
        return f"{where}: not valid JSON: {error.msg}"

    def _read(self, size: int) -> None:
        try:
            raw = self.stream.read(size)
        except DAMAGE as error:
            raise DataError(damaged(Where(self.shown, self.line), error)) from error
        try:
            fresh = self.decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            lines = self.text.count("\n", self.place) + error.object.count(b"\n", 0, error.start)
            where = Where(self.shown, self.line + lines)
            raise DataError(undecodable(where, error.object, self.encoding, error)) from error
        self.ended = not raw
        self.text = self.text[self.place :] + fresh
        self.place = 0


def _may_go_on(error: json.JSONDecodeError, length: int) -> bool:
    """Whether the text may only be incomplete, not wrong."""
    return error.msg.startswith("Unterminated string") or error.pos >= length - 16


def explode(node: Any, each: list[str]) -> Iterator[Any]:
    """Copies of a node in which the lists along a path are replaced by one of their items.

    ``explode(doc, ["paragraphs", "qas"])`` gives a document per question, whose ``paragraphs`` is the one
    paragraph and ``paragraphs.qas`` the one question. Items that are written by column, as lists of the same
    length in one object, are taken apart too.
    """
    if not each:
        yield node
        return
    key: Any = int(each[0]) if isinstance(node, list) else each[0]
    for item in _items(node[key]):
        for inner in explode(item, each[1:]):
            copy = list(node) if isinstance(node, list) else dict(node)
            copy[key] = inner
            yield copy


def _items(child: Any) -> list[Any]:
    columns = child.values() if isinstance(child, dict) else ()
    if columns and all(isinstance(column, list) for column in columns) and len(set(map(len, columns))) == 1:
        return [dict(zip(child, values, strict=True)) for values in zip(*columns, strict=True)]
    return child if isinstance(child, list) else [child]


def pick(node: Any, path: list[str]) -> Any:
    """The value at a path of keys and list indices; ``*`` collects the rest of the path from every item.

    Raises:
        KeyError, IndexError, TypeError, ValueError: There is nothing at the path.
    """
    for index, part in enumerate(path):
        if part == "*":
            return [pick(item, path[index + 1 :]) for item in node]
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node
