"""Documents from where text lies: files, folders, standard input, data sets.

Rows are read as they are needed: of a large file or a streamed data set no more than is asked for.
Imports neither torch nor transformers. The library `datasets` is an extra and imported only for a
data set: it brings a dozen packages that files do not need, and takes a second to import.
"""

import gzip
import importlib
import json
import logging
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any

from saelign.errors import (
    FormatError,
    MissingFileError,
    SaelignError,
    TextError,
    UnknownNameError,
)

STANDARD_INPUT = "-"
SPLITS = ("blank_line", "none")
JSON_LINES = (".json", ".jsonl", ".ndjson")
"""Endings of files of JSON objects, one a line."""

IN_FOLDERS = (".txt", ".jsonl", ".parquet")
"""What is read of a folder; its `.json` files may as well describe the others."""

PACKED = (".7z", ".bz2", ".lz4", ".xz", ".zip", ".zst")
"""Endings of packed files that are not unpacked here."""

ROWS_AT_ONCE = 1024
HOW_TO_INSTALL = "pip install 'saelign[datasets]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSource:
    """A data set, as the library `datasets` loads it.

    Attributes:
        dataset: A name on the Hugging Face hub, or a folder of files.
        config: Which of its configurations, if it has several.
        split: Which of its splits, such as `train`, or `train[:10%]` where it is not streamed.
        revision: Branch, tag or commit on the hub; a commit is the same text for ever.
        streaming: Read rows as they come, instead of downloading all of it first.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False

    def __str__(self) -> str:
        """How errors name it: as asked for, without what is not said."""
        said = {"config": self.config, "split": self.split, "revision": self.revision}
        told = ", ".join(f"{key} {value!r}" for key, value in said.items() if value is not None)
        return f"data set {self.dataset!r} ({told})"


@lru_cache(maxsize=16)
def at_commit(source: DatasetSource) -> DatasetSource:
    """The data set at the commit that its revision stands for now, so that it can be told.

    Offline, the folder of that commit in the cache of `huggingface_hub`, which `datasets` itself
    would not look into. A folder, and what neither hub nor cache tells of, as it is: whoever loads
    it tells what is wrong.
    """
    from huggingface_hub import HfApi, constants

    name, revision = source.dataset, source.revision or "main"
    if Path(name).is_dir():
        return source
    if constants.HF_HUB_OFFLINE:
        kept = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
        ref = kept / "refs" / revision
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
        snapshot = kept / "snapshots" / commit
        if not snapshot.is_dir():
            return source
        return replace(source, dataset=str(snapshot), revision=commit)
    try:
        with quiet_hub():
            found = HfApi().dataset_info(
                name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
    except Exception:  # by version dozens of classes; to load it fails for the same reason
        return source
    return replace(source, revision=found.sha)


def read_documents(
    source: str | Path | DatasetSource,
    *,
    split: str = "none",
    column: str = "text",
    n_documents: int | None = None,
) -> list[str]:
    """The documents of a file, a folder, standard input or a data set, in order.

    A file's name tells what it is: `.parquet` and `.jsonl` (also `.json`, `.ndjson`: one object a
    line) hold a document a row, any other file is text; text and lines may be packed as `.gz`.
    Of a folder the `.txt`, `.jsonl` or `.parquet` files are read in order of name.

    Args:
        source: A path; `-` for standard input; or a data set.
        split: Of text alone. `none`: a file is one document; `blank_line`: blank lines end one.
        column: Which column holds the text, where there are columns.
        n_documents: Read the first so many at most; all if None.

    Returns:
        The documents that hold more than blanks.

    Raises:
        UnknownNameError: `split` is neither of the two, or there is no such column.
        MissingFileError: Nothing is at the path, or `datasets` is not installed.
        FormatError: A file is cut short or not what its name says, or a row holds no text.
        TextError: No document holds anything but blanks; nothing comes in; a folder holds files of
            several kinds; the data set cannot be had.
    """
    if split not in SPLITS:
        raise UnknownNameError.of("split", split, SPLITS)
    told = "standard input" if source == STANDARD_INPUT else str(source)
    found = documents_of(source, told, split=split, column=column)
    documents = list(islice((one for one in found if one.strip()), n_documents))
    if not documents:
        raise TextError(f"text must hold words, {told} is empty")
    return documents


def documents_of(
    source: str | Path | DatasetSource, told: str, *, split: str, column: str
) -> Iterator[str]:
    """All documents, also blank ones, read as they are asked for.

    Args:
        source: As of `read_documents`.
        told: What errors call it.
        split: As of `read_documents`.
        column: As of `read_documents`.
    """
    if isinstance(source, DatasetSource):
        check_split(split, told)
        yield from dataset_documents(source, column)
        return
    if source == STANDARD_INPUT:
        yield from text_documents(standard_input(sys.stdin), told, split=split)
        return
    for file in files_of(Path(source)):
        kind = ending(file)
        if kind == ".parquet":
            check_split(split, str(file))
            yield from parquet_documents(file, column)
        elif kind in JSON_LINES:
            check_split(split, str(file))
            yield from json_documents(file, column)
        else:
            with opened(file) as content:
                text = content.read()
            yield from text_documents(text, str(file), split=split)


def check_split(split: str, told: str) -> None:
    """Refuse to part rows, each of which is a document.

    Raises:
        TextError: `split` is not `none`.
    """
    if split != "none":
        raise TextError(
            f"split must be none where each row is a document, got {split} for {told}: leave it out"
        )


def files_of(path: Path) -> list[Path]:
    """The file at a path, or the files of text in the folder there, in order of name.

    Raises:
        MissingFileError: Nothing is there, or the folder cannot be listed.
        TextError: The folder holds no text, or files of several kinds.
    """
    if not path.exists():
        raise MissingFileError(
            f"text must be a file or a folder of files, {path} is not there: give its path, or "
            "ask for a data set as {dataset: NAME}"
        )
    if not path.is_dir():
        return [path]
    kinds: dict[str, list[Path]] = {}
    try:
        for file in sorted(path.iterdir()):
            if ending(file) in IN_FOLDERS:
                kinds.setdefault(ending(file), []).append(file)
    except OSError as error:
        raise MissingFileError(f"cannot read {path}: {error.strerror}") from error
    if not kinds:
        raise TextError(
            f"a folder of text must hold {', '.join(IN_FOLDERS[:-1])} or {IN_FOLDERS[-1]} files, "
            f"{path} holds none"
        )
    if len(kinds) > 1:
        raise TextError(
            f"a folder of text must hold files of one kind, {path} holds "
            f"{' and '.join(sorted(kinds))}: move the others elsewhere, or name one file"
        )
    return next(iter(kinds.values()))


def ending(path: Path) -> str:
    """The ending that tells what a file holds, without `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """The bytes of a file, unpacked if its name ends in `.gz`.

    Raises:
        MissingFileError: It cannot be read.
        FormatError: It is packed in another way, or cut short.
    """
    if path.suffix.lower() in PACKED:
        raise FormatError(f"packed text must be .gz, got {path}: unpack it")
    is_packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(
            f"{path} must be a whole gzip file, it is not: {error}; copy it again"
        ) from error
    except OSError as error:
        raise MissingFileError(f"cannot read {path}: {error.strerror}") from error


def text_documents(content: bytes, told: str, *, split: str) -> list[str]:
    """The documents of a text: one, or one for each stretch without a blank line.

    Raises:
        FormatError: It is not UTF-8.
    """
    text = decoded(content, told).replace("\r\n", "\n").replace("\r", "\n")
    return re.split(r"\n[^\S\n]*\n\s*", text) if split == "blank_line" else [text]


def decoded(content: bytes, told: str) -> str:
    """Bytes as text, without the mark that some editors put first.

    Raises:
        FormatError: They are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"text must be UTF-8, {told} is not at byte {error.start}: convert it, "
            "for instance with iconv"
        ) from error


@lru_cache(maxsize=1)
def standard_input(stream: Any) -> bytes:
    """All that comes in on standard input, kept: it comes once, and is asked for at every check.

    Args:
        stream: `sys.stdin`.

    Raises:
        TextError: Nothing comes in: it is a terminal, closed, or cannot be read.
    """
    advice = "pipe text into it, as in: saelign run study.yaml < text.txt"
    if stream is None or stream.closed:
        raise TextError(f"standard input must be open to be read, it is closed: {advice}")
    if stream.isatty():
        raise TextError(f"text must come in on standard input, it is a terminal: {advice}")
    try:
        return stream.buffer.read()
    except (AttributeError, OSError) as error:
        raise TextError(f"standard input must be readable, it is not: {error}; {advice}") from error


def json_documents(path: Path, column: str) -> Iterator[str]:
    """The text of each line of a file of JSON objects; blank lines are passed over.

    Raises:
        MissingFileError: It cannot be read.
        FormatError: A line is no JSON object, or its column no text; or the file is cut short.
        UnknownNameError: A line has no such column.
    """
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"line {number} of {path}"
            text = decoded(line, where)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise FormatError(
                    f"{where} must be a JSON object of its own, it is none: {error}; repair it, "
                    "or, if it is the last, see whether the file was cut short"
                ) from error
            if not isinstance(row, dict):
                raise FormatError(
                    f"{where} must be a JSON object of its own, got {told_type(row)}: write one "
                    "object a line"
                )
            if column not in row:
                raise UnknownNameError.of(f"column of {where}", column, row)
            yield checked(row[column], where, column)


def parquet_documents(path: Path, column: str) -> Iterator[str]:
    """The text of each row of a Parquet file; other columns are not read.

    Raises:
        FormatError: It is no Parquet file, or damaged, or a row holds no text.
        UnknownNameError: It has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if column not in columns:
                raise UnknownNameError.of(f"column of {path}", column, columns)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield checked(value, f"row {number} of {path}", column)
    except UnicodeDecodeError as error:
        raise FormatError(
            f"text must be UTF-8, {path} is not within {ROWS_AT_ONCE} rows after row {number}: "
            "write it again"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise FormatError(
            f"{path} must be a Parquet file, it cannot be read as one: {first_line(error)}; see "
            "whether it was cut short, and copy it again"
        ) from error


def dataset_documents(source: DatasetSource, column: str) -> Iterator[str]:
    """The text of each row of a data set.

    Raises:
        MissingFileError: The library `datasets` is not installed.
        UnknownNameError: The data set has no such column.
        FormatError: A row holds no text.
        TextError: The data set cannot be had, or not all of it.
    """
    try:
        library = importlib.import_module("datasets")
        load = library.load_dataset
    except (ImportError, AttributeError) as error:
        raise MissingFileError(
            f"a data set must be read with the library datasets, it cannot be imported ({error}): "
            f"{HOW_TO_INSTALL}"
        ) from error
    batches = dataset_batches(library, load, source, column)
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except SaelignError:
            raise
        # Its own errors, those of the hub, of the network and of each file format: dozens.
        except Exception as error:
            # When it fails to convert files it says no more than that.
            is_told = type(error).__name__ != "DatasetGenerationError"
            reason = first_line(error if is_told else error.__cause__ or error)
            raise TextError(
                f"{source} must be a name on the Hugging Face hub or a folder of files, and have "
                f"what is asked of it; datasets gave: {reason}; check the study's words and the "
                "connection, or give the path of a file"
            ) from error
        if batch is None:
            return
        for value in batch:
            number += 1
            yield checked(value, f"row {number} of {source}", column)


def dataset_batches(
    library: Any, load: Any, source: DatasetSource, column: str
) -> Iterator[list[Any]]:
    """One column of a data set, some rows at a time."""
    with quiet(library):
        rows = load(
            source.dataset,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
        columns = rows.column_names
        if columns is None:  # a stream may not know before its first row
            columns = next(iter(rows), {})
        if columns and column not in columns:
            raise UnknownNameError.of(f"column of {source}", column, columns)
        if columns:
            rows = rows.select_columns(column)  # others may be images, which need not be decoded
        for batch in rows.iter(batch_size=ROWS_AT_ONCE):
            yield batch[column]


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Without progress bars in a log, nor word of every retry: one error tells their end."""
    has_bars = library.is_progress_bar_enabled() and not sys.stderr.isatty()
    if has_bars:
        library.disable_progress_bars()
    try:
        with quiet_hub():
            yield
    finally:
        if has_bars:
            library.enable_progress_bars()


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without word of every retry."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def checked(value: object, where: str, column: str) -> str:
    """The value of a column, which must be text.

    Raises:
        FormatError: It is something else, or no text that can be written.
    """
    advice = "leave the row out, or choose another column with text.column"
    if not isinstance(value, str):
        raise FormatError(
            f"{where} must hold text in the column {column!r}, got {told_type(value)}: {advice}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{where} must hold text in the column {column!r}, its character {error.start} is half "
            f"of one (a lone surrogate): {advice}"
        ) from error
    return value


def told_type(value: object) -> str:
    """The type of a value, as the formats call it."""
    words = {"NoneType": "null", "bool": "true or false", "dict": "an object", "list": "a list"}
    words |= {"int": "a number", "float": "a number", "bytes": "bytes", "str": "text"}
    return words.get(type(value).__name__, type(value).__name__)


def first_line(error: BaseException) -> str:
    """What an error says first, for libraries that go on for a page; its name if nothing."""
    return str(error).strip().split("\n")[0].rstrip(".:;") or type(error).__name__
