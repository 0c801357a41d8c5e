r"""From a file on disk to decoded lines: compression, encodings, byte order marks, files that are cut.

Lines end at ``\n`` only; other line separators of Unicode are part of the text. Memory is one line. What the
lines mean is for ``mp2.data.readers``.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from mp2.errors import DataError, Where, nearest

DAMAGE = (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile)


@contextmanager
def open_binary(path: Path, member: str | None = None) -> Iterator[tuple[BinaryIO, str]]:
    """Open a plain, gzipped or zipped file for reading bytes.

    Args:
        path: The file; its first bytes say how it is compressed, not its name.
        member: Member of a zip archive; may be left out where there is only one.

    Yields:
        The byte stream and the name to show in messages.

    Raises:
        DataError: The file is absent or cannot be opened, or the archive lacks the member.
    """
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file{_siblings(path)}") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        magic = raw.read(4)
        raw.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            yield cast(BinaryIO, stack.enter_context(gzip.open(raw))), str(path)
        elif magic == b"PK\x03\x04":
            archive, name = _zip_member(path, member)
            stack.enter_context(archive)
            try:
                inner = stack.enter_context(archive.open(name))
            except (RuntimeError, NotImplementedError) as error:  # a password, or an unknown compression
                raise DataError(f"{path}/{name}: cannot be unpacked: {error}") from error
            yield cast(BinaryIO, inner), f"{path}/{name}"
        else:
            yield raw, str(path)


def read_lines(path: Path, encoding: str = "utf-8", member: str | None = None) -> Iterator[tuple[Where, str]]:
    r"""Decoded lines with their places; the ``\n`` is kept, a byte order mark is not.

    Raises:
        DataError: The file cannot be opened, is cut in the middle, or is not in the given encoding.
    """
    with open_binary(path, member) as (stream, shown):
        number = 0
        while True:
            number += 1
            try:
                raw = stream.readline()
            except DAMAGE as error:
                raise DataError(damaged(Where(shown, number), error)) from error
            if not raw:
                return
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(undecodable(Where(shown, number), raw, encoding, error)) from error
            except LookupError:
                raise DataError(f"{shown}: unknown encoding {encoding!r}; such as utf-8, gb18030") from None
            yield Where(shown, number), text.removeprefix("\ufeff") if number == 1 else text


def damaged(where: Where, error: BaseException) -> str:
    """Message for a compressed file that ends too early or fails its check sum."""
    return f"{where}: the compressed file is cut in the middle or damaged ({error}); fetch it again"


def undecodable(where: Where, raw: bytes, encoding: str, error: UnicodeDecodeError) -> str:
    """Message for bytes that are not in the encoding: what they look like, and how to mend it."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"{where}: expected {encoding}, but this is UTF-16; save the file as UTF-8"
    if error.reason == "unexpected end of data" and not raw.endswith(b"\n"):
        return f"{where}: the file ends in the middle of a character: it is cut"
    byte = f"{where}: not valid {encoding}: byte {raw[error.start]:#04x} at column {error.start + 1}"
    if encoding.lower().replace("_", "-") == "utf-8":  # Big5 is often valid GB18030 too: nobody can tell
        return f"{byte}; perhaps GB18030 or Big5: save the file as UTF-8"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return byte
    return f"{where}: expected {encoding}, but this is UTF-8"


def _zip_member(path: Path, member: str | None) -> tuple[zipfile.ZipFile, str]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(damaged(Where(path), error)) from error
    names = [
        name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")
    ]
    if member is None and len(names) == 1:
        return archive, names[0]
    if member is None or member not in names:
        archive.close()
        if "xl/workbook.xml" in names:
            raise DataError(f"{path}: this is an Excel workbook; name it .xlsx, or save it as CSV UTF-8")
        wanted = "single member" if member is None else f"member {member!r}"
        raise DataError(f"{path}: the archive has no {wanted}; {nearest(member, names)}")
    return archive, member


def _siblings(path: Path) -> str:
    """Tail of a message: the file that was perhaps meant."""
    if not path.parent.is_dir():
        return f" (nor the folder {path.parent})"
    close = nearest(path.name, (item.name for item in path.parent.iterdir()), shown=0)
    return f"; {close.partition('valid:')[0].strip()}".removesuffix("; ") if "mean" in close else ""
