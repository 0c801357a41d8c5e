"""What a task is, in text: read strictly from YAML, with the file and line of every mistake.

Decides the names of a task file's keys and what they mean. Knows no tensors, no tokenizer and no data
files: where a catalogue task's rows lie is in its ``data:`` section, which ``mp2.data`` interprets.
"""

from __future__ import annotations

import re
import string
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mp2.errors import TaskError, Where, nearest
from mp2.tasks.source import DataSource, FileSource, HubSource, Layout, PaperFacts, SplitSource

Family = Literal["classification", "pair", "choice", "extraction", "reading"]
FAMILIES: tuple[Family, ...] = ("classification", "pair", "choice", "extraction", "reading")

DEFAULT_TEMPLATES: dict[Family, str] = {
    "classification": '主题识别："{text}"的主题是？选项：',
    "pair": '意思判别："{text1}"与"{text2}"的意思是？选项：',
    "choice": '阅读选择：文档"{document}"，问题"{question}",选项：',
    "extraction": '抽取式问答：文本"{context}问题"这句话的中心是',
    "reading": '抽取式问答：文本"{context}问题"{question}',
}
# Reading tasks that may have no answer say so in the text, and these words are then the gold span.
NO_ANSWER_TEMPLATE = '抽取式问答（可能没有答案）：文本"{context}问题"{question}'
NO_ANSWER_WORDS = "没有答案"


NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"  # of a task, also of the folder a server finds its adapter by


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Verbaliser(_Strict):
    """Another wording of the same task, for example the authors' released one."""

    template: str | None = None
    labels: tuple[str, ...] | None = None
    coding: dict[str, str] | None = None
    note: str = ""


class TaskSpec(_Strict):
    """One task: how a row of data becomes context, query and options or an answer span.

    Attributes:
        name: Lower-case id, also the file's stem in the catalogue.
        version: Raised whenever wording, labels or splits change; published versions never change.
        family: ``classification``, ``pair``, ``choice`` (options per row), ``extraction`` (one implicit
            question) or ``reading`` (a question per row).
        template: The text before the options, with ``{field}`` slots; the family's default when absent.
        labels: Label words in order (classification and pair); the index is the class id.
        coding: Raw value in the data (written as a string) -> label word. Without it a raw value is a
            label word or an integer class id.
        fields: Template field -> column of the data; a field not named here is its own column.
        cut: Fields that truncation may shorten in tasks with options; the query, the question and the options
            never are. A span task shortens nothing: its long context is read in windows.
        label: Column of the label or of the right option (its index or its text).
        options: Column with the list of options, or a list of columns with one option each (choice).
        answer: Column of the answer text or texts (extraction, reading).
        answer_start: Column of the answer's character offset or offsets; without it the answer is searched.
        no_answer: The task has rows without an answer (reading).
        metric: Name of a score in :mod:`mp2.tasks.metrics`.
        verbalisers: Other wordings by name.
        paper: The task's facts in the paper's tables (catalogue tasks).
        data: Where the rows are and how they are read (catalogue tasks).
    """

    name: Annotated[str, Field(pattern=NAME)]
    version: Annotated[int, Field(ge=1)] = 1
    family: Family
    description: str = ""
    template: str = ""
    labels: tuple[str, ...] = ()
    coding: dict[str, str] = {}
    fields: dict[str, str] = {}
    cut: tuple[str, ...] = ()
    label: str = "label"
    options: str | tuple[str, ...] = "options"
    answer: str = "answer"
    answer_start: str | None = None
    no_answer: bool = False
    metric: Literal["accuracy", "f1", "exact-match", "released-f1"] | None = None
    verbalisers: dict[str, Verbaliser] = {}
    paper: PaperFacts | None = None
    data: DataSource | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("family") not in FAMILIES:
            return raw
        raw, family = dict(raw), raw["family"]
        if not raw.get("template"):
            default = NO_ANSWER_TEMPLATE if raw.get("no_answer") else DEFAULT_TEMPLATES[family]
            raw["template"] = default
        raw.setdefault("metric", "f1" if family in ("extraction", "reading") else "accuracy")
        if raw.get("cut") is None:
            names = template_fields(str(raw["template"]))
            keep = {"question"} if family in ("choice", "reading", "extraction") else set()
            raw["cut"] = tuple(name for name in names if name not in keep)
        return raw

    @model_validator(mode="after")
    def _check(self) -> TaskSpec:
        names = template_fields(self.template)
        if not names:
            raise ValueError(f"template: has no {{field}} slot: {self.template!r}")
        for name in self.cut:
            if name not in names:
                raise ValueError(f"cut: {name!r} is not a field of the template; {nearest(name, names)}")
        for name in self.fields:
            if name not in names:
                raise ValueError(f"fields: {name!r} is not a field of the template; {nearest(name, names)}")
        self._check_labels()
        for name in self.verbalisers:
            try:
                self.verbalised(name)
            except ValidationError as error:  # of the wording, not of the task's own keys of that name
                said = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"verbalisers.{name}.{said}") from error
        if self.spans_context and "context" not in names:
            raise ValueError(f"template: a task of family {self.family!r} needs a {{context}} slot")
        if self.no_answer and (self.family != "reading" or NO_ANSWER_WORDS not in self.template):
            raise ValueError(
                f"no_answer: needs family 'reading' and the words {NO_ANSWER_WORDS!r} in the template"
            )
        return self

    def _check_labels(self) -> None:
        labelled = self.family in ("classification", "pair")
        if labelled and len(self.labels) < 2:
            raise ValueError(f"labels: expected at least 2 label words, got {list(self.labels)}")
        if not labelled and self.labels:
            raise ValueError(f"labels: a task of family {self.family!r} has no fixed labels")
        seen: set[str] = set()
        for word in self.labels:
            if not word.strip():
                raise ValueError("labels: a label word is empty")
            if word in seen:
                raise ValueError(f"labels: {word!r} stands twice")
            seen.add(word)
        for raw, word in self.coding.items():
            if word not in seen:
                raise ValueError(
                    f"coding: {raw!r} maps to {word!r}, which is no label; {nearest(word, self.labels)}"
                )

    @property
    def spans_context(self) -> bool:
        """Whether the answer is a span of the context (extraction, reading), not an option."""
        return self.family in ("extraction", "reading")

    @cached_property
    def template_fields(self) -> tuple[str, ...]:
        """Fields of the template in reading order."""
        return template_fields(self.template)

    @cached_property
    def label_ids(self) -> dict[str, int]:
        """Every raw value the data may hold (as a string) -> class id."""
        ids = {word: index for index, word in enumerate(self.labels)}
        if self.coding:
            return ids | {raw: ids[word] for raw, word in self.coding.items()}
        if any(word.isdecimal() for word in self.labels):  # "1" is then a word, not the second class
            return ids
        return ids | {str(index): index for index in range(len(self.labels))}

    def column(self, field: str) -> str:
        """Column of the data that fills a template field."""
        return self.fields.get(field, field)

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the data that are read, the options' and the answer's among them."""
        read = set(map(self.column, self.template_fields))
        if self.spans_context:
            return frozenset(read | {self.answer} | ({self.answer_start} if self.answer_start else set()))
        if self.family == "choice":
            read |= {self.options} if isinstance(self.options, str) else set(self.options)
        return frozenset(read | {self.label})

    def verbalised(self, name: str) -> TaskSpec:
        """The same task in another of its wordings; ``default`` is the task itself.

        Raises:
            TaskError: The task has no such wording.
        """
        if name == "default":
            return self
        if name not in self.verbalisers:
            choices = ["default", *self.verbalisers]
            raise TaskError(f"task {self.name}: no verbaliser {name!r}; {nearest(name, choices)}")
        other = self.verbalisers[name]
        given = other.model_dump(exclude={"note"}, exclude_none=True)
        base = self.model_dump(exclude={"verbalisers"}, exclude_none=True)
        if other.template is not None:
            names = template_fields(other.template)
            base["fields"] = {name: column for name, column in self.fields.items() if name in names}
            if names != self.template_fields:
                del base["cut"]
        if other.labels is not None and other.coding is None:
            if len(other.labels) != len(self.labels):
                expected = f"expected {len(self.labels)} label words or a coding"
                raise ValueError(f"verbalisers: {name}: {expected}, got {list(other.labels)}")
            given["coding"] = {raw: other.labels[index] for raw, index in self.label_ids.items()}
        return TaskSpec.model_validate(base | given)


def template_fields(template: str) -> tuple[str, ...]:
    """Names of the ``{field}`` slots in reading order.

    Raises:
        ValueError: The braces do not match, or a slot holds more or less than a plain name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template: {error}: {template!r}") from error
    names = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(f"template: {{{written}}} is not a plain field name")
        names.append(name)
    return tuple(dict.fromkeys(names))


# the parser in C reads the catalogue ten times faster, where PyYAML was built with it
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Lines = dict[tuple[str, ...], int]
_MOST = 100_000  # keys and values of a file: aliases (*) of aliases make billions of a few lines


def _key_lines(
    node: yaml.Node, path: Path | str, lines: _Lines | None = None, prefix: tuple[str, ...] = ()
) -> _Lines:
    """Line of each key; refuses a key that stands twice, and more of them than any task has."""
    lines = {} if lines is None else lines
    if len(lines) > _MOST:
        raise TaskError(f"{path}: expected at most {_MOST:,} keys and values; has it aliases (*) of lists?")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key.tag = "tag:yaml.org,2002:str"  # a key such as no or 1 is the text that is written
            place = (*prefix, str(key.value))
            line = key.start_mark.line + 1
            if place in lines:
                first = f"(first in line {lines[place]})"
                raise TaskError(f"{Where(path, line)}: key {key.value!r} stands twice {first}")
            lines[place] = line
            _key_lines(value, path, lines, place)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*prefix, str(index))] = value.start_mark.line + 1
            _key_lines(value, path, lines, (*prefix, str(index)))
    return lines


def load_task(path: Path | str) -> TaskSpec:
    """Read one task file strictly.

    Raises:
        TaskError: The file is absent, not UTF-8, not YAML, or not a task; the message names file, line
            and the nearest valid key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TaskError(f"{path}: no such task file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_task(text, path)


def parse_task(text: str, path: Path | str = "<task>") -> TaskSpec:
    """Parse the text of a task file; see :func:`load_task`."""
    try:
        loader = _LOADER(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise TaskError(f"{Where(path, 1)}: expected a mapping of keys, such as 'name: my-task'")
        lines = _key_lines(node, path)
        raw = _tuples(loader.construct_document(node))
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML's own error, or what its constructors trip over: a date or number that cannot be
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise TaskError(f"{Where(path, line)}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except RecursionError:  # brackets in brackets, or an alias (*) within what it stands for
        raise TaskError(f"{path}: values are nested too deep, or in themselves") from None
    try:
        return TaskSpec.model_validate(raw)
    except ValidationError as error:
        raise TaskError(_explain(error, lines, path)) from error


def _tuples(value: Any) -> Any:
    """YAML lists as tuples, as the strict model expects."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


_EXPECTED = {
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_pattern_mismatch": "lower-case letters, digits, '.', '_' and '-', 64 at most",
}


def _explain(error: ValidationError, lines: _Lines, path: Path | str) -> str:
    """One line per mistake, each with file and line."""
    messages = []
    for item in error.errors():
        place = tuple(str(part) for part in item["loc"] if part != "[key]")
        alone = tuple(part for part in place if part != "0")  # one thing, written without its list
        if place not in lines and place[:-1] not in lines and alone[:-1] in lines:
            place = alone
        message = item["msg"].removeprefix("Value error, ")
        if place[0:1] == ("options",):  # one thing or a list: a mistake is one of either form
            if place[-1] != "str":
                continue
            place = place[:1]
            message = f"options: expected a column or a list of columns, got {item['input']!r}"
        elif item["type"] == "extra_forbidden":
            message = f"unknown key {'.'.join(place)!r}; {nearest(place[-1], _keys(place[:-1]))}"
        elif item["type"] == "missing":
            message = f"key {'.'.join(place)!r} is missing"
        elif item["type"] == "literal_error":
            choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
            message = f"{'.'.join(place)}: {item['input']!r} is not valid; {nearest(item['input'], choices)}"
        elif item["type"] == "string_type":
            message = f"{'.'.join(place)}: expected text, got {item['input']!r}"
            message += "; write it in quotes" if isinstance(item["input"], (bool, int, float)) else ""
        elif item["type"] in _EXPECTED:
            message = f"{'.'.join(place)}: expected {_EXPECTED[item['type']]}, got {item['input']!r}"
        elif place:
            message = f"{'.'.join(place)}: {message}"
        named = (*place, *message.partition(":")[0].split(".")) if item["type"] == "value_error" else place
        while named not in lines and len(named) > 1:
            named = named[:-1]
        messages.append(f"{Where(path, lines.get(named, 1))}: {message}")
    return "\n".join(dict.fromkeys(messages))


def _keys(place: tuple[str, ...]) -> tuple[str, ...]:
    """Valid keys at a place of a task file."""
    models: dict[str, type[BaseModel]] = {"paper": PaperFacts, "data": DataSource, "verbalisers": Verbaliser}
    models |= {"files": FileSource, "layouts": Layout, "splits": SplitSource, "hub": HubSource}
    model: type[BaseModel] = TaskSpec
    for part in place:
        model = models.get(part, model)
    return tuple(model.model_fields)
