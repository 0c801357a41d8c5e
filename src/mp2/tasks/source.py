"""Schemas of a catalogue task's facts: where its rows lie, how they are read and split, what the paper says.

Decides the names of the keys under ``paper:`` and ``data:`` of a task file and what they mean. Reads no data:
``mp2.data.readers`` interprets a :class:`FileSource`, ``mp2.data.sources`` a :class:`DataSource`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mp2.errors import nearest

Split = Literal["train", "dev", "pool", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "pool", "test")


def _listed(value: Any) -> Any:
    """One thing where a list of things may stand."""
    return (value,) if isinstance(value, (str, dict)) else value


def _named(value: Any) -> Any:
    """A bare identifier where a hub and its files may stand."""
    return {"id": value} if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PaperFacts(_Strict):
    """What the paper's Tables 2 and 8 say of a task.

    Attributes:
        id: Number in Table 8 (the 38 pre-training tasks).
        table2: Position within its group of Table 2 (the seven unseen data sets or the seven unseen tasks).
        name: The paper's name of the set.
        domain: Domain in Table 8, or as the set's makers state it.
        type: The paper's task type, such as ``NLI``, ``TC``, ``MRC``, ``KE``, ``MCQA``.
        sizes: Rows per split as printed, such as ``{train: 31k, dev: 3k, test: 4k}``.
        notes: What the paper, its released code or this project got differently, and why.
    """

    id: Annotated[int, Field(ge=1, le=38)] | None = None
    table2: Annotated[int, Field(ge=1, le=7)] | None = None
    name: str
    domain: str
    type: str
    sizes: dict[Literal["train", "dev", "test"], str] = {}
    notes: str = ""


class FileSource(_Strict):
    """One file of a data set: its names and how its rows are read. See docs/tasks.md for examples.

    Attributes:
        path: Name below the set's folder, or several names by which carriers publish the same file.
        format: How rows are written: ``csv`` (quotes), ``tsv`` (one line a row, no quotes), ``json``
            (an array), ``jsonl``, ``reviews`` (``<review>`` elements), ``xlsx``, ``parquet`` (a file, or
            a folder with its parts), or ``folders`` (a folder per label, a file per text).
        encoding: Of the text; a byte order mark is always taken away.
        member: Member of a zip archive; its only member when absent.
        columns: Names of the columns of a table without a header line.
        delimiter: Between the columns of ``csv`` (one character) and ``tsv``; comma and tab when absent.
        rest: The last column of a ``tsv`` takes the rest of the line, delimiters included.
        sheet: Sheet of an ``xlsx``; the first when absent.
        at: Key of the array of rows in a ``json`` file whose top is an object.
        each: Dotted path within a row to nested lists; each innermost item becomes a row of its own.
            An object of lists, ``{question: [...], answer: [...]}``, is items that are written by column.
        take: New column -> dotted path within the row (``*`` goes through a list); only these are kept.
        recode: Column -> raw value (as a string) -> the value meant, such as a class name for its number.
        constant: Columns that every row of the file has, such as a label said by the file's name.
        join: Columns that hold lists of texts -> the text to put between them.
        split: Columns that hold several texts in one -> the text between them.
        replace: Regular expression -> replacement, applied to every text in order.
        convert: Turns traditional characters into simplified ones after that: ``t2s``, or ``tw2s`` for
            texts in the characters of Taiwan.
        drop: Column -> raw values whose rows are left out (unlabelled rows, ``-`` for no majority).
    """

    path: Names
    format: Literal["csv", "tsv", "json", "jsonl", "reviews", "xlsx", "parquet", "folders"]
    encoding: str = "utf-8"
    member: str | None = None
    columns: tuple[str, ...] = ()
    delimiter: Annotated[str, Field(min_length=1)] | None = None
    rest: bool = False
    sheet: str | None = None
    at: str | None = None
    each: str | None = None
    take: dict[str, str] = {}
    recode: dict[str, dict[str, str]] = {}
    constant: dict[str, str] = {}
    join: dict[str, str] = {}
    split: dict[str, str] = {}
    replace: dict[str, str] = {}
    convert: Literal["t2s", "tw2s"] | None = None
    drop: dict[str, Names] = {}

    @model_validator(mode="after")
    def _check(self) -> FileSource:
        if self.format == "csv" and len(self.delimiter or ",") > 1:
            raise ValueError(f"delimiter: expected one character for csv, got {self.delimiter!r}")
        for pattern in self.replace:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"replace: {pattern!r} is no regular expression: {error}") from error
        return self


class SplitSource(_Strict):
    """Which rows of which files make a split.

    Attributes:
        files: Names in ``data.files``, read in order.
        fraction: Part ``[low, high)`` of the rows, by a hash of the group key in [0, 1). The same key falls
            into the same part in every file, so texts that share a document stay together.
        exclude: Files whose inputs must not occur in the split.
        distinct: Leave out rows whose inputs came before in the split.
    """

    files: Names
    fraction: tuple[float, float] = (0.0, 1.0)
    exclude: Names = ()
    distinct: bool = False

    @model_validator(mode="before")
    @classmethod
    def _floats(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("fraction"), (tuple, list)):
            numbers = (float(item) if isinstance(item, int) else item for item in raw["fraction"])
            return raw | {"fraction": tuple(numbers)}
        return raw

    @model_validator(mode="after")
    def _check(self) -> SplitSource:
        low, high = self.fraction
        if not 0 <= low < high <= 1:
            raise ValueError(f"fraction: expected 0 <= low < high <= 1, got [{low}, {high}]")
        return self


class Layout(_Strict):
    """One way to make the splits from the files that are there.

    Attributes:
        note: What is special about it, such as which official file it does without.
        splits: Split -> its rows. ``train`` and ``dev`` are for pre-training, ``pool`` is the few-shot
            pool of a downstream task, ``test`` is never trained on.
    """

    note: str = ""
    splits: dict[Split, SplitSource]


class HubSource(_Strict):
    """Where a data set's files are on the Hugging Face hub. See docs/data.md for what is known of each.

    Attributes:
        id: ``owner/name`` of the data set on the hub.
        revision: Branch, tag or, so that the files never change, commit.
        files: Name below the set's folder (a ``path`` of ``data.files``) -> name on the hub, in which ``*``
            stands for any characters. Nothing is fetched without it: the identifier is only shown.
    """

    id: str
    revision: str = "main"
    files: dict[str, str] = {}


class DataSource(_Strict):
    """Where a catalogue task's rows lie and how they are read and split.

    Attributes:
        folder: Folder below the data root; several names are tried in order.
        source: Who publishes the set, and where.
        licence: As the carrier states it, or ``none stated``.
        hub: The set on the Hugging Face hub, where one is known; its identifier alone, or what to fetch.
        suites: Suites of the catalogue the task belongs to.
        files: Name -> file, or several alternatives of which the first that exists is read.
        layouts: Ways to make the splits, the most faithful one first; the first with all its files is used.
        group_by: Columns that identify a shared document; the template's fields when absent.
        notes: What a user should know: missing parts, overlaps, unverified facts.
    """

    folder: Names
    source: str
    licence: str
    hub: Annotated[HubSource, BeforeValidator(_named)] | None = None
    suites: tuple[str, ...] = ()
    files: dict[str, Annotated[tuple[FileSource, ...], BeforeValidator(_listed)]]
    layouts: tuple[Layout, ...]
    group_by: Names = ()
    notes: str = ""

    @model_validator(mode="after")
    def _check(self) -> DataSource:
        if not self.layouts:
            raise ValueError("layouts: expected at least one layout")
        paths = {path for sources in self.files.values() for source in sources for path in source.path}
        for name in self.hub.files if self.hub else ():
            if name not in paths:
                raise ValueError(
                    f"hub.files: {name!r} is the path of none of the files; {nearest(name, paths)}"
                )
        for number, layout in enumerate(self.layouts):
            for split, source in layout.splits.items():
                for name in (*source.files, *source.exclude):
                    if name not in self.files:
                        place = f"layouts.{number}.splits.{split}"
                        hint = nearest(name, self.files)
                        raise ValueError(f"{place}: {name!r} is none of the files; {hint}")
        return self
