"""Rows of Parquet files, the form in which the Hugging Face hub keeps most data sets.

Decides that a class is read by its name where the file tells the names, so that nobody has to guess which
number stands for which class. Memory is one batch of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mp2.errors import DataError, Where

_ROWS = 1000


def read_parquet(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    """Rows of a Parquet file, or of all such files of a folder in the order of their names.

    Args:
        path: The file or folder.

    Yields:
        The place (the number of the row, from 1) and the row as plain Python values.

    Raises:
        DataError: A file is absent, cut or not Parquet, or the folder has none.
    """
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise DataError(f"{path}: the folder has no .parquet file")
    for part in parts:
        yield from _rows(part)


def _rows(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = _class_names(file.schema_arrow.metadata or {})
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Where(path, number), row | _named(row, names)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        where = Where(path, number + 1 if number else None)
        raise DataError(f"{where}: not readable as Parquet: cut in the middle, or another format") from error


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of its classes, as the hub's own library writes them into the file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        classes = {
            name: feature for name, feature in features.items() if feature.get("_type") == "ClassLabel"
        }
        return {name: list(feature["names"]) for name, feature in classes.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _named(row: dict[str, Any], names: dict[str, list[str]]) -> dict[str, str]:
    """Class names for the row's class numbers; a number without a name (-1: no label) stays."""
    found = ((column, row.get(column), classes) for column, classes in names.items())
    return {
        column: classes[value]
        for column, value, classes in found
        if isinstance(value, int) and 0 <= value < len(classes)
    }
