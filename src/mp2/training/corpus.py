"""Raw text files as one long memory-mapped row of tokens, with the starts of documents and sentences.

Decides what a document is (a line of a text file, a field of a JSON line) and where a sentence ends. The
folder it writes is keyed by what went in, so building the same corpus twice costs only the reading of the
key; a build that was cut off leaves nothing that could be mistaken for a corpus. Does not clean text.

    tokens.npy     token ids, uint16 (int32 for vocabularies above 65,536)
    starts.npy     first token of each document
    sentences.npy  first token of each sentence; every document starts one
    meta.json      key, tokenizer fingerprint, sources with their sizes
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import re
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mp2.errors import DataError, Where, first_line, nearest
from mp2.runtime import sha256, whole_folder, write_json

# a sentence keeps its closing quotes and brackets
_SENTENCE = re.compile(r"[^。！？!?；;…\n]*(?:[。！？!?；;…\n]+[”’\"』」）)》]*|$)")
_SUFFIXES = (".txt", ".jsonl")
_FIELD = "text"  # of a JSON line
_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Corpus:
    """Token files, opened.

    Attributes:
        tokens: Token ids of all documents, one after the other, shape ``(tokens,)``; memory-mapped.
        starts: First token of each document, ascending, shape ``(documents,)``.
        sentences: First token of each sentence, ascending, shape ``(sentences,)``.
        sources: First document of each source file, shape ``(files,)``.
        meta: What ``meta.json`` says.
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    sentences: NDArray[np.int64]
    sources: NDArray[np.int64]
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> Corpus:
        """Open a folder that ``build_corpus`` wrote.

        Raises:
            DataError: The folder holds no complete corpus.
        """
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            raise DataError(f"{folder}: expected a folder of token files with meta.json, found none")
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
            starts, sentences = (
                np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("starts", "sentences")
            )
            expected, sizes = meta["tokens"], [source["documents"] for source in meta["sources"]]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:  # a copy that was cut off, say
            raise DataError(
                f"{folder}: damaged token files: {first_line(error)}; copy them again, or give the text files"
            ) from error
        if len(tokens) != expected:
            raise DataError(f"{folder / 'tokens.npy'}: expected {expected} tokens, found {len(tokens)}")
        return cls(tokens, starts, sentences, np.cumsum([0, *sizes[:-1]]), meta)


def build_corpus(paths: Sequence[Path | str], tokenizer: Any, folder: Path | str) -> Corpus:
    """Tokenise text files into a folder, or open it if it already holds exactly that.

    Args:
        paths: Files ending in ``.txt`` or ``.jsonl``, plain or with ``.xz`` or ``.gz``; in this order.
        tokenizer: A fast Hugging Face tokenizer.
        folder: Folder to write; it appears only when complete, and replaces one with another key.

    Raises:
        DataError: A file is missing, of an unknown kind, damaged, or holds no text.
    """
    files, folder = [Path(path) for path in paths], Path(folder)
    fingerprint = tokenizer_fingerprint(tokenizer)
    sources = [{"name": file.name, "sha256": _hash(file)} for file in files]
    key = hashlib.sha256(json.dumps([fingerprint, _FIELD, sources]).encode()).hexdigest()[:16]
    with contextlib.suppress(DataError):
        corpus = Corpus.open(folder)
        if corpus.meta["key"] == key:
            return corpus
    with whole_folder(folder, replace=True, kind="meta.json") as aside:
        counts = _write(files, sources, tokenizer, aside)
        identity = {"key": key, "tokenizer": fingerprint, "vocab_size": len(tokenizer)}
        write_json(aside / "meta.json", {**identity, **counts, "sources": sources})
    return Corpus.open(folder)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Short hash of a fast tokenizer."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def read_texts(path: Path | str) -> Iterator[str]:
    """Yield the documents of a text file: its non-empty lines, or the field ``text`` of its JSON lines.

    Raises:
        DataError: The file is missing, of an unknown kind, damaged, not UTF-8, or a line lacks the field.
    """
    path = Path(path)
    kind = next((suffix for suffix in _SUFFIXES if suffix in path.suffixes[-2:]), None)
    if kind is None:
        raise DataError(
            f"{path}: unknown kind of text file; {nearest(path.suffix, _SUFFIXES)}, or with .xz, .gz"
        )
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                text = line if kind == ".txt" else _text(line, Where(path, number))
                if text.strip():
                    yield text.strip()
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def split_sentences(text: str) -> list[str]:
    """Split a document after 。！？!?；;… and line breaks; joined, the pieces are the document."""
    return [sentence for sentence in _SENTENCE.findall(text) if sentence]


def _open(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _text(line: str, where: Where) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: expected a JSON object: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get(_FIELD), str):
        fields = row if isinstance(row, dict) else ()
        raise DataError(f"{where}: expected text in field {_FIELD!r}; {nearest(_FIELD, fields)}")
    text = str(row[_FIELD])
    try:
        text.encode()
    except UnicodeEncodeError:  # what JSON alone can write, and no tokenizer reads
        raise DataError(f"{where}: half a character (a lone surrogate)") from None
    return text


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _write(
    files: Sequence[Path], sources: list[dict[str, Any]], tokenizer: Any, folder: Path
) -> dict[str, int]:
    """Write the three arrays, add each source's sizes to ``sources``, and return the totals."""
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    starts: list[NDArray[np.int64]] = []
    sentences: list[NDArray[np.int64]] = []
    total, begun = 0, time.monotonic()
    with (folder / "tokens.raw").open("wb") as out:
        for file, source in zip(files, sources, strict=True):
            texts, documents, before = read_texts(file), 0, total
            while batch := list(islice(texts, _BATCH)):
                ids, of_document, of_sentence = _tokenise(tokenizer, batch)
                out.write(ids.astype(dtype).tobytes())
                starts.append(total + of_document)
                sentences.append(total + of_sentence)
                total, documents = total + len(ids), documents + len(of_document)
            source |= {"documents": documents, "tokens": total - before}
            print(
                f"{file.name}: {total - before:,} tokens, {time.monotonic() - begun:.0f} s", file=sys.stderr
            )
    if not total:
        raise DataError(f"expected text, found none in {', '.join(map(str, files)) or 'no files'}")
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", mode="w+", dtype=dtype, shape=(total,))
    tokens[:] = np.memmap(folder / "tokens.raw", dtype=dtype, mode="r")
    tokens.flush()
    (folder / "tokens.raw").unlink()
    np.save(folder / "starts.npy", np.concatenate(starts))
    np.save(folder / "sentences.npy", np.concatenate(sentences))
    return {"tokens": total, "documents": sum(map(len, starts)), "sentences": sum(map(len, sentences))}


def _tokenise(
    tokenizer: Any, texts: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ids of some documents, and where in them documents and sentences start."""
    pieces = [split_sentences(text) for text in texts]
    flat = [sentence for sentences in pieces for sentence in sentences]
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(flat, add_special_tokens=False)
    rows = [encoding.ids for encoding in encoded]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    begins = np.cumsum(lengths) - lengths
    first = np.cumsum([0, *(len(sentences) for sentences in pieces)])
    ids = np.fromiter((token for row in rows for token in row), dtype=np.int64, count=int(lengths.sum()))
    ends = np.append(begins, lengths.sum())[first]
    documents = ends[:-1][np.diff(ends) > 0]
    return ids, documents, begins[lengths > 0]
