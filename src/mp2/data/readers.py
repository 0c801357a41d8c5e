"""From raw files to rows: each format of the public data sets, and a user's own tables.

Decides how bytes become ``{column: value}`` rows, each with its ``file:line``. Does not know what a row
means, how splits are made or which rows are wanted: ``mp2.data.sources`` and the task files say that.
Every reader is an iterator, and memory stays at about one row whatever the size of the file.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mp2.data.jsonfile import explode, pick, read_array
from mp2.data.parquetfile import read_parquet
from mp2.data.rewrite import rewriter
from mp2.data.textfile import read_lines
from mp2.errors import DataError, Where, nearest
from mp2.tasks.source import FileSource

Row = dict[str, Any]
Rows = Iterator[tuple[Where, Row]]
Cells = tuple[Where, list[str], bool]  # of one record, and whether its line has an end
OnBad = Callable[[DataError], None]
OnLeftOut = Callable[[str, Where], None]
Reader = Callable[[Path, FileSource, OnBad], Rows]
Quotes = Literal["lenient", "strict"]


def read_rows(
    path: Path,
    source: FileSource,
    *,
    on_bad: OnBad | None = None,
    on_left_out: OnLeftOut | None = None,
    quotes: Quotes = "lenient",
) -> Rows:
    """Rows of one file as its description says, rewritten and without the dropped ones.

    Args:
        path: The file (a folder for the format ``folders``).
        source: How to read it.
        on_bad: Is given each row that cannot be read, and reading goes on; without it the error is raised.
        on_left_out: Is given the reason and the place of each row that the description drops.
        quotes: What becomes of quotes within a cell of CSV that are not doubled: ``lenient`` drops them.

    Raises:
        DataError: The file as a whole cannot be read (absent, empty, cut, wrongly encoded), or a row cannot.
            A last line without an end that is no whole row is a cut: nobody knows how many rows are missing.
    """
    rewrite = rewriter(source)
    empty = True

    def bad(error: DataError) -> None:
        nonlocal empty
        empty = False  # whoever is told of its rows need not be told that it has none
        (on_bad or _raise)(error)

    reader = partial(_csv, quotes=quotes) if source.format == "csv" else READERS[source.format]
    for where, row in reader(path, source, bad):
        empty = False
        try:
            rows = _reshaped(row, source)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            bad(DataError(f"{where}: the row has no {error} where {source.take or source.each} expects it"))
            continue
        for item in map(rewrite, rows):
            reason = _dropped(item, source)
            if reason is None:
                yield where, item
            elif on_left_out is not None:
                on_left_out(reason, where)
    if empty:
        raise DataError(f"{path}: the file has no rows")


def read_table(path: Path | str, *, on_bad: OnBad | None = None) -> Rows:
    """Rows of a user's own file, by its extension: ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.xlsx``.

    CSV, TSV and XLSX need a header line; JSONL an object per line, JSON an array of objects. CSV is read with
    quotes, TSV without. All but XLSX may be gzipped (``.csv.gz``).

    Raises:
        DataError: As for :func:`read_rows`, or the extension is unknown, or the header looks like data.
    """
    path = Path(path)
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix not in TABLES:
        raise DataError(f"{path}: cannot tell the format from the name; {nearest(suffix, TABLES)}")
    source = FileSource.model_validate({"path": str(path), "format": suffix})
    first = True
    for where, row in read_rows(path, source, on_bad=on_bad, quotes="strict"):
        if first and suffix in ("csv", "tsv", "xlsx"):
            _check_header(path, row)
        first = False
        if source.format in ("json", "jsonl") and not _encodable(row):
            (on_bad or _raise)(DataError(f"{where}: half a character (a lone surrogate)"))
            continue
        yield where, row


def _encodable(row: Row) -> bool:
    """Whether a row can be shown and saved: JSON alone can write half a character."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _raise(error: DataError) -> None:
    raise error


def _reshaped(row: Any, source: FileSource) -> list[Row]:
    """One row per innermost item of ``each``, with the columns that ``take`` names."""
    if not source.each and not source.take:
        return [row | source.constant]
    paths = {column: path.split(".") for column, path in source.take.items()}
    items = explode(row, source.each.split(".") if source.each else [])
    if not paths:
        return [dict(item) | source.constant for item in items]
    taken = ({column: pick(item, path) for column, path in paths.items()} for item in items)
    return [row | source.constant for row in taken]


def _dropped(row: Row, source: FileSource) -> str | None:
    for column, values in source.drop.items():
        if (value := str(row.get(column)).strip()) in values:
            if len(values) > 4:
                return f"{column} is one of {len(values)} values"
            return f"{column} is {value!r}" if value else f"{column} is empty"
    return None


def _check_header(path: Path, row: Row) -> None:
    """A first line of data in place of the header would lose that row and name the columns after it."""
    for name in row:
        if re.fullmatch(r"-?\d+(\.\d+)?", name) or len(name) > 40:
            raise DataError(
                f"{Where(path, 1)}: expected a header line that names the columns, such as"
                f" 'text,label'; {name[:40]!r} looks like data"
            )


def _csv(path: Path, source: FileSource, bad: OnBad, quotes: Quotes = "lenient") -> Rows:
    """Tables with quotes. A row is placed at its first line, though quotes may hold line ends."""
    yield from _table(_csv_records(path, source, bad, quotes), source, bad)


def _table(records: Iterable[Cells], source: FileSource, bad: OnBad) -> Rows:
    """Records under a header. Empty ones are rows within the table, and none below it."""
    header = list(source.columns)
    empty: list[tuple[Where, list[str]]] = []
    for where, cells, ended in records:
        if not any(cell.strip() for cell in cells):
            empty.append((where, cells or [""]))
        elif not header:
            header, empty = _header(where, cells), []
        else:
            for place, blank in empty:
                if len(blank) == len(header):  # a line without a delimiter is a row of one column alone
                    yield place, dict(zip(header, blank, strict=True))
            empty.clear()
            if row := _row(where, header, cells, bad, ended):
                yield where, row


def _csv_records(path: Path, source: FileSource, bad: OnBad, quotes: Quotes) -> Iterator[Cells]:
    """Cells of each record, none of a blank line, and whether its line has an end.

    A quote that is never closed, or not where a cell ends, ends the file, since it would swallow rows.
    """
    delimiter = source.delimiter or ","
    places: list[Where] = []
    raw: list[str] = []

    def lines() -> Iterator[str]:
        for where, line in read_lines(path, source.encoding, source.member):
            places.append(where)
            raw.append(line if raw or line.strip() else "\n")
            yield raw[-1]

    table = csv.reader(lines(), delimiter=delimiter)
    while True:
        raw.clear()
        places.clear()
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            if "new-line character" in str(error):
                raise DataError(
                    f"{places[0]}: lines end in a carriage return alone, as on old Macs; save it as CSV UTF-8"
                ) from error
            if "field limit" in str(error):
                most = f"a cell has more than {csv.field_size_limit():,} characters"
                raise DataError(f"{places[0]}: a quote that opens here is not closed, or {most}") from error
            bad(DataError(f"{places[0]}: not a row of CSV: {error}"))
            continue
        whole = len(raw) == 1 and raw[0].endswith("\n")
        if not whole and (wrong := _wrong_quote(raw, delimiter)):
            raise DataError(f"{places[0]}: {wrong}")
        if whole and quotes == "strict" and '"' in raw[0] and _wrong_quote(raw, delimiter):
            wrong = 'quotes inside a cell must be doubled (""), and the whole cell stand in quotes'
            bad(DataError(f"{places[0]}: {wrong}"))
            continue
        yield places[0], cells, raw[-1].endswith("\n")


def _wrong_quote(lines: list[str], delimiter: str) -> str:
    """What is wrong with the quotes of one row of several lines, which a lenient reader does not say."""
    try:
        list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            return "the file ends within quotes that open here: it is cut, or lacks a quote"
        return (
            f"quotes that open here hold {len(lines)} lines and close within a cell: one lacks its end,"
            ' or quotes inside a cell are not doubled ("")'
        )
    return ""


def _tsv(path: Path, source: FileSource, bad: OnBad) -> Rows:
    """Tables with one line per row and no quotes."""
    delimiter = source.delimiter or "\t"

    def records() -> Iterator[Cells]:
        width = len(source.columns)
        for where, whole in read_lines(path, source.encoding, source.member):
            line = whole.rstrip("\r\n")
            cells = line.split(delimiter, width - 1) if source.rest and width else line.split(delimiter)
            width = width or (len(cells) if line.strip() else 0)
            yield where, cells if line.strip() or delimiter in line else [], whole.endswith("\n")

    yield from _table(records(), source, bad)


def _header(where: Where, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) == 1 and re.search(r"[,，;；|\t]", names[0]):
        raise DataError(
            f"{where}: one column only, {names[0]!r}; a comma stands between columns in .csv, a tab in .tsv"
        )
    for index, name in enumerate(names):
        if not name:
            raise DataError(
                f"{where}: column {index + 1} of the header has no name: {names}; name it or leave it out"
            )
        if name in names[:index]:
            raise DataError(f"{where}: the header names {name!r} twice: {names}")
    return names


def _row(where: Where, header: list[str], cells: list[str], bad: OnBad, ended: bool = True) -> Row | None:
    if len(cells) != len(header):
        problem = f"{where}: expected {len(header)} columns ({', '.join(header)}), got {len(cells)}"
        if len(cells) < len(header) and not ended:
            raise DataError(f"{problem} and no end of the line: the file is cut in the middle")
        bad(DataError(problem))
        return None
    return dict(zip(header, cells, strict=True))


def _jsonl(path: Path, source: FileSource, bad: OnBad) -> Rows:
    for where, line in read_lines(path, source.encoding, source.member):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            problem = f"{where}: not valid JSON: {error.msg} at column {error.colno}"
            if not line.endswith("\n"):
                raise DataError(f"{problem}: the file is cut in the middle") from error
            bad(DataError(problem))
            continue
        except (ValueError, RecursionError) as error:  # a number too long for Python, lists in lists in lists
            bad(DataError(f"{where}: not readable JSON: {error}"))
            continue
        if isinstance(value, dict) or source.each or source.take:
            yield where, value
        else:
            bad(DataError(f"{where}: expected an object with a key per column, got {type(value).__name__}"))


def _json(path: Path, source: FileSource, bad: OnBad) -> Rows:
    for where, value in read_array(path, source.encoding, at=source.at, member=source.member):
        if isinstance(value, dict) or source.each or source.take:
            yield where, value
        else:
            bad(DataError(f"{where}: expected an object with a key per column, got {type(value).__name__}"))


_REVIEW = re.compile(r'<review\s+id="(?P<id>[^"]*)"(?:\s+label="(?P<label>[^"]*)")?\s*>')


def _reviews(path: Path, source: FileSource, bad: OnBad) -> Rows:
    """``<review id="1" label="0">text</review>`` elements; the text is not escaped as XML."""
    place: Where | None = None
    row: Row = {}
    text: list[str] = []
    for where, line in read_lines(path, source.encoding, source.member):
        opening = _REVIEW.search(line)
        if opening:
            if place is not None:
                bad(DataError(f"{place}: the review that opens here is not closed before line {where.line}"))
            place, text = where, []
            row = {key: value for key, value in opening.groupdict().items() if value is not None}
            line = line[opening.end() :]
        inner, closing, _ = line.partition("</review>")
        text.append(inner.strip())
        if closing and place is not None:
            yield place, row | {"text": "\n".join(part for part in text if part)}
            place = None
    if place is not None:
        raise DataError(f"{place}: the review that opens here is never closed: the file is cut")


def _xlsx(path: Path, source: FileSource, bad: OnBad) -> Rows:
    """Rows of a sheet; empty cells are empty texts, whole numbers lose their ``.0``."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # openpyxl raises whatever its zip and XML parsers raise
        raise DataError(f"{path}: not a readable .xlsx workbook: {error}") from error
    try:
        if source.sheet is not None and source.sheet not in book.sheetnames:
            raise DataError(f"{path}: no sheet {source.sheet!r}; {nearest(source.sheet, book.sheetnames)}")
        sheet = book[source.sheet or _only_sheet(path, book)]
        # closed, a sheet that is not read to its end lets go of the file
        with contextlib.closing(_sheet(path, sheet, len(source.columns))) as records:
            yield from _table(records, source, bad)
    finally:
        book.close()


def _only_sheet(path: Path, book: Any) -> str:
    """The sheet of a workbook that has cells.

    Raises:
        DataError: Several have.
    """
    sheets = [sheet for sheet in book.worksheets if hasattr(sheet, "iter_rows")]  # a chart has none
    shown = [sheet for sheet in sheets if sheet.sheet_state == "visible"] or sheets
    if not shown:
        raise DataError(f"{path}: no sheet has rows")
    filled = [sheet for sheet in shown if len(shown) == 1 or _has_cells(path, sheet)] or shown[:1]
    if len(filled) > 1:
        listed = ", ".join(repr(sheet.title) for sheet in filled)
        raise DataError(f"{path}: {len(filled)} sheets have cells, {listed}; keep one, or make each a file")
    return str(filled[0].title)


def _has_cells(path: Path, sheet: Any) -> bool:
    with contextlib.closing(_sheet(path, sheet)) as records:
        return any(cells for _, cells, _ in records)


def _sheet(path: Path, sheet: Any, width: int = 0) -> Generator[Cells, None, None]:
    """Records as wide as the first, or as said: what is right of the table is formatted, and empty."""
    sheet.reset_dimensions()  # what a workbook says of its size is wrong in some, and lacks in others
    for number, values in enumerate(_unbroken(path, sheet.iter_rows(values_only=True)), start=1):
        cells = [_cell(value) for value in values]
        while len(cells) > width and not cells[-1].strip():
            cells.pop()
        width = width or len(cells)
        yield Where(path, number), cells + [""] * (width - len(cells)) if any(cells) else [], True


def _unbroken(path: Path, rows: Iterable[Any]) -> Iterator[Any]:
    """Rows of a sheet, up to where it cannot be read any more, which is told with its place."""
    number = 1
    try:
        for row in rows:
            yield row
            number += 1
    except Exception as error:  # as above: a sheet is unpacked and parsed while it is read
        raise DataError(f"{Where(path, number)}: the sheet is cut or damaged: {error}") from error


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parquet(path: Path, source: FileSource, bad: OnBad) -> Rows:
    return read_parquet(path)


def _folders(path: Path, source: FileSource, bad: OnBad) -> Rows:
    """A folder per label, a file per text: ``{label, name, text}``."""
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder with a folder per label")
    for folder in sorted(item for item in path.iterdir() if item.is_dir()):
        for file in sorted(item for item in folder.iterdir() if item.is_file()):
            try:
                text = "".join(line for _, line in read_lines(file, source.encoding))
            except DataError as error:
                bad(error)
                continue
            yield Where(file), {"label": folder.name, "name": file.name, "text": text.strip()}


READERS: dict[str, Reader] = {
    "csv": _csv,
    "tsv": _tsv,
    "json": _json,
    "jsonl": _jsonl,
    "reviews": _reviews,
    "xlsx": _xlsx,
    "parquet": _parquet,
    "folders": _folders,
}
TABLES: Iterable[str] = ("csv", "tsv", "jsonl", "json", "xlsx")
