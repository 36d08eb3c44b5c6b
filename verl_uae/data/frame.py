# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of parquet and JSON files, read when they are asked for. One value that cannot be read costs its row at most.

What a file is, its first bytes say, whatever its name. Parquet files are written once as Arrow into a cache, the one of
`datasets`, and mapped into memory from there, so that a row of any file can be had at once. JSON files are read line by
line from where they are.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_uae.data.tar import compression
from verl_uae.errors import DataError
from verl_uae.files import LFS_POINTER, is_lfs_pointer, open_regular, published
from verl_uae.paths import data_cache_path
from verl_uae.text import decode_text, encodable, foreign_encoding, parse_json, text_problem

logger = logging.getLogger(__name__)

Row = dict[str, Any]

FILE, ROW = "uae_file", "uae_row"
"""Columns that say where a row comes from: number of the data file, zero-based row in it."""
PROBLEM = "uae_problem"
"""Column of a row that cannot be read: why. Other rows have no such column."""
_RESERVED = (FILE, ROW, PROBLEM)

CHUNK = 64
"""Rows that are read together."""
MAX_FIELDS = 1000
"""Most different fields of a JSON file."""
_CACHE_FORMAT = 1
_NOT_YOURS = "has a name by which this package marks rows: rename it"
_ARROW_TYPES = b"ARROW:schema"
_HALF_IN_JSON = re.compile(r"\\u[dD][89a-fA-F]")
#: What Arrow raises for a value that Python has no place for: text that is not UTF-8, a date beyond the year 9999,
#: nanoseconds, an unknown time zone, a key that a map holds twice.
_UNREADABLE = (ValueError, ArithmeticError, LookupError, TypeError, OSError, ImportError, pa.ArrowException)


class Frame:
    """Rows of data files, or some of them. Picklable: it holds paths and places.

    Every row has the columns of all files, None where its own file has no such column, and `FILE` and `ROW`. A value
    that cannot be read is None; in a needed column it is the `PROBLEM` of its row.

    Args:
        parts: the files.
        items: places in the sequence of all rows; None: all.
    """

    def __init__(self, parts: Sequence[Part], items: np.ndarray | None = None) -> None:
        self.parts = tuple(parts)
        self.columns = tuple(dict.fromkeys(name for part in parts for name in part.columns))
        self._ends = list(accumulate(len(part) for part in parts))
        self._items = np.arange(self._ends[-1]) if items is None else items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, item: int) -> Row:
        return self.rows([item])[0]

    def rows(self, items: Sequence[int]) -> list[Row]:
        """Some rows, in the order given."""
        return [
            {**dict.fromkeys(self.columns), **values, FILE: number, ROW: row}
            for number, rows in self._by_part(items)
            for row, values in zip(rows, self.parts[number].rows(rows), strict=True)
        ]

    def chunks(self) -> Iterator[list[Row]]:
        """All rows in order, `CHUNK` at a time."""
        for start in range(0, len(self), CHUNK):
            yield self.rows(range(start, min(start + CHUNK, len(self))))

    def column(self, name: str) -> Iterator[Any]:
        """The values of a column in order, without the pictures beside it."""
        for start in range(0, len(self), CHUNK):
            for number, rows in self._by_part(range(start, min(start + CHUNK, len(self)))):
                yield from (values.get(name) for values in self.parts[number].rows(rows, (name,)))

    def select(self, items: Iterable[int]) -> Frame:
        """The rows at some places of this frame."""
        return Frame(self.parts, self._items[np.fromiter(items, dtype=np.int64)])

    def _by_part(self, items: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Number of a part and rows of it, in the order of the items."""
        places = [self._place(int(self._items[item])) for item in items]
        for number, group in groupby(places, key=lambda place: place[0]):
            yield number, [row for _, row in group]

    def _place(self, item: int) -> tuple[int, int]:
        part = bisect_right(self._ends, item)
        return part, item - (self._ends[part - 1] if part else 0)


class Part(Protocol):
    """The rows of one file."""

    @property
    def columns(self) -> Sequence[str]:
        """Their names."""

    def __len__(self) -> int: ...

    def rows(self, numbers: Sequence[int], only: Sequence[str] | None = None) -> list[Row]:
        """Rows by number, without `FILE` and `ROW`.

        Args:
            numbers: in the file.
            only: columns that are wanted; others need not be read.
        """


def file_kind(path: str | os.PathLike[str]) -> str:
    """``parquet``, ``json`` or ``tar``, by the first bytes of a file.

    Raises:
        DataError: it cannot be read, or is none of these.
    """
    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error}") from error
    if is_lfs_pointer(start):
        raise DataError(path, None, LFS_POINTER)
    compressed = compression(start)
    if compressed is not None:
        raise DataError(path, None, f"is compressed with {compressed}: unpack it first")
    suffix = Path(path).suffix.lower()
    if start.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if start[257:262] == b"ustar" or suffix == ".tar" or ".tar." in Path(path).name.lower():
        return "tar"
    if suffix in (".json", ".jsonl", ".ndjson") or start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return "json"
    raise DataError(path, None, "must be parquet, JSON lines, a JSON list or a tar shard, by its content")


def open_rows(path: str, needed: frozenset[str]) -> Part:
    """The rows of a file, at once to be had.

    Args:
        path: of a parquet or JSON file.
        needed: columns in which a value that cannot be read is a `PROBLEM`.

    Raises:
        DataError: the file cannot be read, or the cache cannot be written.
    """
    kind = file_kind(path)
    if kind == "tar":
        raise DataError(path, None, "is a tar shard; only uae_pretrain and uae_cold_start read those")
    if kind == "json":
        return json_rows(path, needed)
    try:
        return _ArrowRows(path, str(_cached(path)), needed)
    except (OSError, ValueError, pa.ArrowException) as error:
        logger.warning("%s: its copy in the cache is damaged (%s) and is made anew", path, error)
    try:
        _place_in_cache(path).unlink(missing_ok=True)
        return _ArrowRows(path, str(_cached(path)), needed)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(path, None, f"its copy in the cache is damaged, and cannot be made anew: {error}") from error


def chunks_of(
    path: str, needed: frozenset[str], must_have: Sequence[str], *, only: Sequence[str] | None = None
) -> Iterator[list[Row]]:
    """All rows of a parquet or JSON file, once and in order, without the cache; with `FILE` 0 and `ROW`.

    Args:
        path, needed: see `open_rows`.
        must_have: columns that must be there.
        only: columns that are wanted; of a parquet file no other is read. None: all.

    Raises:
        DataError: the file cannot be read or lacks a column.
    """
    kind = file_kind(path)
    if kind == "tar":
        raise DataError(path, None, "is a tar shard, and has no rows")
    if kind == "json":
        part = json_rows(path, needed)
        check_columns(part.columns, path, must_have)
        yield from Frame([part]).chunks()
        return
    first, tell = 0, _teller(path)
    for batch in parquet_batches(path, only):
        check_columns(batch.schema.names, path, must_have)
        rows = python_rows(batch, needed, tell)
        yield [{**row, FILE: 0, ROW: number} for number, row in enumerate(rows, first)]
        first += len(rows)


def column_of(path: str, name: str) -> Iterator[Any]:
    """The values of a column in order, None where one cannot be read; reading and errors as of `chunks_of`."""
    for rows in chunks_of(path, frozenset(), (name,), only=(name,)):
        yield from (row[name] for row in rows)


def check_columns(columns: Sequence[str], name: str, must_have: Sequence[str]) -> None:
    """Raise `DataError` if a file lacks a column."""
    missing = [key for key in must_have if key not in columns]
    if missing:
        raise DataError(name, None, f"column {missing[0]} is missing; found: {', '.join(columns[:20]) or 'none'}")


def parquet_batches(path: str, only: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A parquet file in batches of `CHUNK` rows, at least one, its types as simple as can be.

    Args:
        path: the file.
        only: columns that are wanted, those that are there; None: all.

    Raises:
        DataError: it cannot be read, or has two columns of one name.
    """
    try:
        # Opened here: Arrow takes no name that is not UTF-8.
        with open(path, "rb") as stream, pq.ParquetFile(_storage_types(stream)) as file:
            fields = [field for field in file.schema_arrow if only is None or field.name in only]
            schema = pa.schema([pa.field(field.name, _plain_type(field.type)) for field in fields])
            twice = [name for name, count in Counter(schema.names).items() if count > 1]
            if twice:
                raise DataError(path, None, f"column {twice[0]} is there twice")
            if reserved := [name for name in _RESERVED if name in schema.names]:
                raise DataError(path, None, f"column {reserved[0]} {_NOT_YOURS}")
            yield pa.RecordBatch.from_pylist([], schema=schema)
            for batch in file.iter_batches(batch_size=CHUNK, columns=None if only is None else schema.names):
                columns = [
                    column if column.type == field.type else column.cast(field.type)
                    for column, field in zip(batch.columns, schema, strict=True)
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error


def python_rows(batch: pa.RecordBatch, needed: frozenset[str], tell: Callable[[str, str], None]) -> list[Row]:
    """The rows of a batch as Python values; one by one only where some value cannot be one.

    Args:
        batch: see `parquet_batches`.
        needed: see `open_rows`.
        tell: called with the column and the reason for a value of another column.
    """
    try:
        # Arrow's fast way to Python knows no option.
        return batch.to_pylist(maps_as_pydicts="strict") if _has(pa.types.is_map, batch.schema) else batch.to_pylist()
    except _UNREADABLE:
        rows: list[Row] = [{} for _ in range(batch.num_rows)]
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            readings: list[tuple[Any, str | None]] = [
                (value, None) for value in column.to_pylist(maps_as_pydicts="strict")
            ]
        except _UNREADABLE:
            readings = [_value(scalar) for scalar in column]
        for row, (value, problem) in zip(rows, readings, strict=True):
            row[name] = value
            if problem is not None:
                _note(row, name, problem, needed, tell)
    return rows


def _value(scalar: pa.Scalar) -> tuple[Any, str | None]:
    try:
        return scalar.as_py(maps_as_pydicts="strict"), None
    except UnicodeDecodeError as error:
        return None, f"holds text that is not UTF-8 (byte 0x{error.object[error.start]:02x})"
    except _UNREADABLE as error:
        return None, f"holds a value that cannot be read: {type(error).__name__}: {error}"


def _note(row: Row, name: str, problem: str, needed: frozenset[str], tell: Callable[[str, str], None]) -> None:
    if name in needed:
        row.setdefault(PROBLEM, f"column {name}: {problem}")
    else:
        tell(name, problem)


def _teller(path: str) -> Callable[[str, str], None]:
    """Says once for each column that some of its values are None now."""
    told: set[str] = set()

    def tell(name: str, problem: str) -> None:
        if name not in told:
            told.add(name)
            logger.warning("%s: column %s, which is not needed, %s; such values are None", path, name, problem)

    return tell


class _WithoutArrowTypes:
    """A parquet file whose note of the Arrow types it was written from has another name, so that it is not found."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.closed = stream, False
        stream.seek(-8, os.SEEK_END)
        length = int.from_bytes(stream.read(4), "little")
        self._footer = stream.tell() - 4 - length
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        start = self.stream.tell()
        data = self.stream.read(count)
        at = max(0, self._footer - start)
        return data[:at] + data[at:].replace(_ARROW_TYPES, bytes(len(_ARROW_TYPES))) if at < len(data) else data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _storage_types(stream: IO[bytes]) -> Any:
    """What to read: where columns were dictionaries, what is stored, since Arrow refuses them as a whole for one text
    that is not UTF-8."""
    schema = pq.read_schema(stream)
    stream.seek(0)
    return _WithoutArrowTypes(stream) if _has(pa.types.is_dictionary, schema) else stream


def _has(test: Callable[[pa.DataType], bool], schema: pa.Schema) -> bool:
    """Whether a column, or something within one, is of a kind."""

    def inside(data_type: pa.DataType) -> bool:
        return test(data_type) or any(inside(data_type.field(number).type) for number in range(data_type.num_fields))

    return any(inside(field.type) for field in schema)


def _plain_type(data_type: pa.DataType) -> pa.DataType:
    """Without extensions and fixed lengths, which differ in form and not in their values."""
    if isinstance(data_type, pa.BaseExtensionType):
        return _plain_type(data_type.storage_type)
    if pa.types.is_struct(data_type):
        return pa.struct([pa.field(field.name, _plain_type(field.type)) for field in data_type])
    if pa.types.is_map(data_type):
        return pa.map_(_plain_type(data_type.key_type), _plain_type(data_type.item_type))
    if pa.types.is_large_list(data_type):
        return pa.large_list(_plain_type(data_type.value_type))
    if pa.types.is_list(data_type) or pa.types.is_fixed_size_list(data_type):
        return pa.list_(_plain_type(data_type.value_type))
    return data_type


class _ArrowRows:
    """Rows of an Arrow file that is mapped into memory."""

    def __init__(self, path: str, cached: str, needed: frozenset[str]) -> None:
        self.path, self.cached, self.needed = path, cached, needed
        with pa.memory_map(cached) as source, pa.ipc.open_file(source) as reader:
            self.columns = tuple(reader.schema.names)
            counts = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_reader", "_tell")}

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(self.cached))

    @cached_property
    def _tell(self) -> Callable[[str, str], None]:
        return _teller(self.path)

    def rows(self, numbers: Sequence[int], only: Sequence[str] | None = None) -> list[Row]:
        result: list[Row] = []
        columns = self.columns if only is None else [name for name in only if name in self.columns]
        # Neighbours are read together.
        for _, group in groupby(enumerate(numbers), key=lambda place: (self._batch(place[1]), place[1] - place[0])):
            run = [number for _, number in group]
            batch = self._batch(run[0])
            start = run[0] - (self._ends[batch - 1] if batch else 0)
            part = self._reader.get_batch(batch).slice(start, len(run))
            result += python_rows(part.select(columns), self.needed, self._tell) if columns else [{} for _ in run]
        return result

    def _batch(self, number: int) -> int:
        return bisect_right(self._ends, number)


def _place_in_cache(path: str) -> Path:
    file = Path(path).resolve()
    status = file.stat()
    named = [str(file), status.st_size, status.st_mtime_ns, status.st_ino, _CACHE_FORMAT]
    return data_cache_path() / f"{hashlib.sha256(json.dumps(named).encode()).hexdigest()}.arrow"


def _cached(path: str) -> Path:
    """The file of the cache that holds a parquet file, written if it is not there."""
    cached = _place_in_cache(path)
    folder = cached.parent
    if cached.exists():
        return cached
    batches = parquet_batches(path)
    first = next(batches)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with published(cached) as (temporary,), pa.ipc.new_file(str(temporary), first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
    except OSError as error:
        reason = f"the cache of data files cannot be written: {error}; HF_DATASETS_CACHE may name another folder"
        raise DataError(folder, None, reason) from error
    return cached


def json_rows(path: str, needed: frozenset[str]) -> Part:
    """The rows of a file of JSON lines, or of one JSON list.

    Raises:
        DataError: it cannot be read, has no row that can be read, or has too many different fields.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
            foreign = foreign_encoding(start)
            if foreign is not None:
                raise ValueError(foreign)
            if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                data = start + file.read()
                try:
                    return _JsonList(path, parse_json(decode_text(data)), needed)
                except ValueError:
                    # The first of several lines may be a list, and a bad row.
                    if not _is_json(data.partition(b"\n")[0]):
                        raise
        return _JsonLines(path, needed)
    except (OSError, ValueError) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error


def _is_json(data: bytes) -> bool:
    try:
        parse_json(decode_text(data))
    except ValueError:
        return False
    return True


class _JsonLines:
    """Rows of a file of JSON lines, by where each begins. Blank lines are no rows."""

    def __init__(self, path: str, needed: frozenset[str]) -> None:
        self.path, self.needed = path, needed
        starts: list[int] = []
        columns = _Columns(path)
        with open(path, "rb") as file:
            self._stamp = _stamp(file)
            position = 0
            for line in file:
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    starts.append(position)
                    columns.add(_json_row(line, needed, lambda name, problem: None))
                position += len(line)
        self.columns = columns.names()
        self._starts = np.asarray(starts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, numbers: Sequence[int], only: Sequence[str] | None = None) -> list[Row]:
        tell = _teller(self.path)
        result: list[Row] = []
        with open(self.path, "rb") as file:
            if _stamp(file) != self._stamp:
                raise DataError(self.path, None, "has changed since its rows were checked; start again")
            for number in numbers:
                file.seek(int(self._starts[number]))
                result.append(_json_row(file.readline(), self.needed, tell))
        return result


class _JsonList:
    """Rows of a JSON list, kept in memory."""

    def __init__(self, path: str, content: list[Any], needed: frozenset[str]) -> None:
        tell = _teller(path)
        self._rows = [_checked(entry, needed, tell) for entry in content]
        columns = _Columns(path)
        for row in self._rows:
            columns.add(row)
        self.columns = columns.names()

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, numbers: Sequence[int], only: Sequence[str] | None = None) -> list[Row]:
        # Copies: whoever reads a row may change it.
        return [copy.deepcopy(self._rows[number]) for number in numbers]


class _Columns:
    """The fields of the rows of a JSON file, in the order in which they come."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._names: dict[str, None] = {}
        self._first: str | None = None

    def add(self, row: Row) -> None:
        self._first = self._first or row.get(PROBLEM)
        self._names |= dict.fromkeys(name for name in row if name != PROBLEM)
        if len(self._names) > MAX_FIELDS:
            raise DataError(self.path, None, f"more than {MAX_FIELDS} different fields")

    def names(self) -> tuple[str, ...]:
        """Raises `DataError` where no row has a field: that none is a row says more than that a column is missing."""
        if not self._names and self._first is not None:
            raise DataError(self.path, None, f"no line is a row, which is an object on one line; first: {self._first}")
        return tuple(self._names)


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    """Size and time of a file, by which one that is written to while it is read is found."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _json_row(line: bytes, needed: frozenset[str], tell: Callable[[str, str], None]) -> Row:
    try:
        text = line.decode("utf-8-sig")
        entry = parse_json(text)
    except UnicodeDecodeError as error:
        return {PROBLEM: f"holds text that is not UTF-8 (byte 0x{error.object[error.start]:02x})"}
    except ValueError as error:
        return {PROBLEM: f"not JSON: {error}"}
    plain = isinstance(entry, dict) and entry.keys().isdisjoint(_RESERVED) and not _HALF_IN_JSON.search(text)
    return entry if plain else _checked(entry, needed, tell)


def _checked(entry: Any, needed: frozenset[str], tell: Callable[[str, str], None]) -> Row:
    """A row of JSON without text that cannot be encoded."""
    if not isinstance(entry, dict):
        return {PROBLEM: f"must be an object, got {type(entry).__name__}"}
    if reserved := [name for name in _RESERVED if name in entry]:
        return {PROBLEM: f"field {reserved[0]} {_NOT_YOURS}"}
    row: Row = {}
    for name, value in entry.items():
        problem = text_problem(json.dumps([name, value], ensure_ascii=False))
        row[encodable(name)] = value if problem is None else None
        if problem is not None:
            _note(row, encodable(name), f"holds {problem}", needed, tell)
    return row
