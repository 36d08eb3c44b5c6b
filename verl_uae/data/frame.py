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
import io
import json
import logging
import os
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_uae.errors import DataError
from verl_uae.files import LFS_POINTER, is_lfs_pointer, open_regular, published
from verl_uae.paths import data_cache_path
from verl_uae.text import compression, decode_text, encodable, foreign_encoding, parse_json, text_problem

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
_BLANK = b"\xef\xbb\xbf \t\r\n"
_HALF_IN_JSON = re.compile(r"\\u[dD][89a-fA-F]")
#: What Arrow raises for a value that Python has no place for: text that is not UTF-8, a date beyond the year 9999,
#: nanoseconds, an unknown time zone, a key that a map holds twice.
_UNREADABLE = (ValueError, ArithmeticError, LookupError, TypeError, OSError, ImportError, pa.ArrowException)


class Frame:
    """Rows of data files, or some of them: at ``items`` of the sequence of all. Picklable: it holds paths and places.

    Every row has the columns of all files, None where its own file has no such column, and `FILE` and `ROW`. A value
    that cannot be read is None; in a needed column it is the `PROBLEM` of its row.
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
        return map(self.rows, self._runs())

    def column(self, name: str) -> Iterator[Any]:
        """The values of a column in order, without the pictures beside it."""
        for items in self._runs():
            for number, rows in self._by_part(items):
                yield from (values.get(name) for values in self.parts[number].rows(rows, (name,)))

    def select(self, items: Iterable[int]) -> Frame:
        """The rows at some places of this frame."""
        return Frame(self.parts, self._items[np.fromiter(items, dtype=np.int64)])

    def _runs(self) -> Iterator[range]:
        return (range(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK))

    def _by_part(self, items: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Number of a part and rows of it, in the order of the items."""
        starts = [0, *self._ends]
        places = [int(self._items[item]) for item in items]
        for number, group in groupby(places, key=lambda place: bisect_right(self._ends, place)):
            yield number, [place - starts[number] for place in group]


def file_kind(path: str | os.PathLike[str]) -> str:
    """``parquet``, ``json`` or ``tar``, by the first bytes of a file. Raises `DataError`: it cannot be read, or is none
    of these."""
    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error}") from error
    if is_lfs_pointer(start):
        raise DataError(path, None, LFS_POINTER)
    if (compressed := compression(start)) is not None:
        raise DataError(path, None, f"is compressed with {compressed}: unpack it first")
    suffix = Path(path).suffix.lower()
    if start.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if start[257:262] == b"ustar" or suffix == ".tar" or ".tar." in Path(path).name.lower():
        return "tar"
    if suffix in (".json", ".jsonl", ".ndjson") or start.lstrip(_BLANK)[:1] in (b"{", b"["):
        return "json"
    raise DataError(path, None, "must be parquet, JSON lines, a JSON list or a tar shard, by its content")


def open_rows(path: str, needed: frozenset[str]) -> Part:
    """The rows of a parquet or JSON file, at once to be had; a value that cannot be read in a needed column is a
    `PROBLEM`. Raises `DataError`: the file cannot be read, or the cache cannot be written."""
    kind = file_kind(path)
    if kind == "tar":
        raise DataError(path, None, "is a tar shard; only uae_pretrain and uae_cold_start read those")
    if kind == "json":
        return _JsonRows.of(path, needed)
    try:
        return _ArrowRows(path, needed)
    except (OSError, ValueError, pa.ArrowException) as error:
        logger.warning("%s: its copy in the cache is damaged (%s) and is made anew", path, error)
    try:
        _place_in_cache(path).unlink(missing_ok=True)
        return _ArrowRows(path, needed)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(path, None, f"its copy in the cache is damaged, and cannot be made anew: {error}") from error


def chunks_of(
    path: str, needed: frozenset[str], must_have: Sequence[str], *, only: Sequence[str] | None = None
) -> Iterator[list[Row]]:
    """All rows of a parquet or JSON file, once and in order, without the cache; with `FILE` 0 and `ROW`.

    The file must have some columns. Of a parquet file ``only`` some may be read. Raises `DataError`: the file cannot be
    read or lacks a column.
    """
    kind = file_kind(path)
    if kind == "tar":
        raise DataError(path, None, "is a tar shard, and has no rows")
    if kind == "json":
        part = _JsonRows.of(path, needed)
        check_columns(part.columns, path, must_have)
        yield from Frame([part]).chunks()
        return
    first = 0
    for batch in parquet_batches(path, only):
        check_columns(batch.schema.names, path, must_have)
        rows = python_rows(batch, path, needed)
        yield [{**row, FILE: 0, ROW: number} for number, row in enumerate(rows, first)]
        first += len(rows)


def column_of(path: str, name: str) -> Iterator[Any]:
    """The values of a column in order, None where one cannot be read; reading and errors as of `chunks_of`."""
    for rows in chunks_of(path, frozenset(), (name,), only=(name,)):
        yield from (row[name] for row in rows)


def check_columns(columns: Sequence[str], name: str, must_have: Sequence[str]) -> None:
    """Raise `DataError` if a file lacks a column."""
    if missing := [key for key in must_have if key not in columns]:
        raise DataError(name, None, f"column {missing[0]} is missing; found: {', '.join(columns[:20]) or 'none'}")


def _note(path: str, row: Row, name: str, problem: str, needed: frozenset[str]) -> None:
    """Keep why a value cannot be read, or where its column is not needed say once that such values are None."""
    if name in needed:
        row.setdefault(PROBLEM, f"column {name}: {problem}")
    elif (path, name) not in _TOLD:
        _TOLD.add((path, name))
        logger.warning("%s: column %s, which is not needed, %s; such values are None", path, name, problem)


_TOLD: set[tuple[str, str]] = set()
"""Files and columns of which this process has said so."""

# ------------------------------------------------------------ parquet


def parquet_batches(path: str, only: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A parquet file, or ``only`` some of its columns, in batches of `CHUNK` rows, at least one, its types as simple as
    can be. Raises `DataError`: it cannot be read, or has two columns of one name."""
    try:
        # Opened here: Arrow takes no name that is not UTF-8.
        with open(path, "rb") as stream, pq.ParquetFile(stream, metadata=_metadata(stream)) as file:
            fields = [field for field in file.schema_arrow if only is None or field.name in only]
            schema = pa.schema([pa.field(field.name, _plain_type(field.type)) for field in fields])
            if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
                raise DataError(path, None, f"column {twice[0]} is there twice")
            if reserved := [name for name in _RESERVED if name in schema.names]:
                raise DataError(path, None, f"column {reserved[0]} {_NOT_YOURS}")
            yield pa.RecordBatch.from_pylist([], schema=schema)
            for batch in file.iter_batches(batch_size=CHUNK, columns=None if only is None else schema.names):
                # Arrow cannot cast a list of structs with a field that is null to the type it has.
                columns = [
                    column if column.type == field.type else column.cast(field.type)
                    for column, field in zip(batch.columns, schema, strict=True)
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error


def python_rows(batch: pa.RecordBatch, path: str, needed: frozenset[str]) -> list[Row]:
    """The rows of a batch of `parquet_batches` as Python values; one by one only where some value cannot be one."""
    try:
        # Arrow's fast way to Python knows no option.
        return batch.to_pylist(maps_as_pydicts="strict") if _has(pa.types.is_map, batch.schema) else batch.to_pylist()
    except _UNREADABLE:
        rows: list[Row] = [dict.fromkeys(batch.schema.names) for _ in range(batch.num_rows)]
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for row, scalar in zip(rows, column, strict=True):
            try:
                row[name] = scalar.as_py(maps_as_pydicts="strict")
            except UnicodeDecodeError as error:
                _note(path, row, name, f"holds {_foreign(error)}", needed)
            except _UNREADABLE as error:
                _note(path, row, name, f"holds a value that cannot be read: {type(error).__name__}: {error}", needed)
    return rows


def _foreign(error: UnicodeDecodeError) -> str:
    return f"text that is not UTF-8 (byte 0x{error.object[error.start]:02x})"


def _metadata(stream: IO[bytes]) -> pq.FileMetaData | None:
    """The footer of a file without its note of Arrow types where columns were dictionaries, since Arrow refuses these
    as a whole for one text that is not UTF-8; else None."""
    if not _has(pa.types.is_dictionary, pq.read_schema(stream)):
        return None
    stream.seek(-8, os.SEEK_END)
    stream.seek(-8 - int.from_bytes(stream.read(4), "little"), os.SEEK_END)
    return pq.read_metadata(io.BytesIO(b"PAR1" + stream.read().replace(b"ARROW:schema", bytes(12))))


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
    """Rows of a parquet file, from its copy in the cache that is mapped into memory."""

    def __init__(self, path: str, needed: frozenset[str]) -> None:
        self.path, self.needed = path, needed
        self.cached = str(_cached(path))
        with pa.memory_map(self.cached) as source, pa.ipc.open_file(source) as reader:
            self.columns = tuple(reader.schema.names)
            counts = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(self.cached))

    def rows(self, numbers: Sequence[int], only: Sequence[str] | None = None) -> list[Row]:
        """Rows by number; of ``only`` some columns, others need not be read."""
        result: list[Row] = []
        columns = self.columns if only is None else [name for name in only if name in self.columns]
        starts = [0, *self._ends]
        places = [(bisect_right(self._ends, number), number) for number in numbers]
        # Neighbours are read together.
        for (batch, _), group in groupby(enumerate(places), key=lambda item: (item[1][0], item[1][1] - item[0])):
            run = [number for _, (_, number) in group]
            part = self._reader.get_batch(batch).slice(run[0] - starts[batch], len(run))
            result += python_rows(part.select(columns), self.path, self.needed) if columns else [{} for _ in run]
        return result


def _place_in_cache(path: str) -> Path:
    file = Path(path).resolve()
    status = file.stat()
    named = [str(file), status.st_size, status.st_mtime_ns, status.st_ino, _CACHE_FORMAT]
    return data_cache_path() / f"{hashlib.sha256(json.dumps(named).encode()).hexdigest()}.arrow"


def _cached(path: str) -> Path:
    """The file of the cache that holds a parquet file, written if it is not there."""
    cached = _place_in_cache(path)
    if cached.exists():
        return cached
    batches = parquet_batches(path)
    first = next(batches)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with published(cached) as (temporary,), pa.ipc.new_file(str(temporary), first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
    except OSError as error:
        reason = f"the cache of data files cannot be written: {error}; HF_DATASETS_CACHE may name another folder"
        raise DataError(cached.parent, None, reason) from error
    return cached


# ------------------------------------------------------------ JSON


class _JsonRows:
    """Rows of JSON lines, by where each begins, blank lines left out; or of one JSON list, kept in memory."""

    @classmethod
    def of(cls, path: str, needed: frozenset[str]) -> _JsonRows:
        """Raises `DataError` where a file cannot be read, has no row, or has too many different fields."""
        try:
            return cls(path, needed)
        except (OSError, ValueError) as error:
            raise DataError(path, None, f"cannot be read: {error}") from error

    def __init__(self, path: str, needed: frozenset[str]) -> None:
        self.path, self.needed = path, needed
        self._starts = array("q")
        self._list: list[Row] | None = None
        names: dict[str, None] = {}
        first: str | None = None
        with open(path, "rb") as file:
            self._stamp = _stamp(file)
            if (entries := _json_list(file)) is not None:
                self._list = [_checked(entry, path, needed) for entry in entries]
            for row in self._lines(file) if self._list is None else self._list:
                first = first or row.get(PROBLEM)
                names |= dict.fromkeys(name for name in row if name != PROBLEM)
                if len(names) > MAX_FIELDS:
                    raise DataError(path, None, f"more than {MAX_FIELDS} different fields")
        if not names and first is not None:
            # That none is a row says more than that a column is missing.
            raise DataError(path, None, f"no line is a row, which is an object on one line; first: {first}")
        self.columns = tuple(names)

    def _lines(self, file: IO[bytes]) -> Iterator[Row]:
        position = 0
        file.seek(0)
        for line in file:
            if line.strip(_BLANK):
                self._starts.append(position)
                yield _json_row(line, self.path, self.needed)
            position += len(line)

    def __len__(self) -> int:
        return len(self._starts if self._list is None else self._list)

    def rows(self, numbers: Sequence[int], only: Sequence[str] | None = None) -> list[Row]:
        """Rows by number, whole ones."""
        if self._list is not None:
            # Copies: whoever reads a row may change it.
            return [copy.deepcopy(self._list[number]) for number in numbers]
        result: list[Row] = []
        with open(self.path, "rb") as file:
            if _stamp(file) != self._stamp:
                raise DataError(self.path, None, "has changed since its rows were checked; start again")
            for number in numbers:
                file.seek(self._starts[number])
                result.append(_json_row(file.readline(), self.path, self.needed))
        return result


Part = _ArrowRows | _JsonRows
"""The rows of one file: names of ``columns``, a length, and ``rows`` by number."""


def _json_list(file: IO[bytes]) -> list[Any] | None:
    """The entries of a file that is one JSON list; None where it is lines."""
    start = file.read(4096)
    if (foreign := foreign_encoding(start)) is not None:
        raise ValueError(foreign)
    if not start.lstrip(_BLANK).startswith(b"["):
        return None
    data = start + file.read()
    try:
        return list(parse_json(decode_text(data)))
    except ValueError as error:
        problem = error
    try:
        # The first of several lines may be a list, and a bad row.
        parse_json(decode_text(data.partition(b"\n")[0]))
    except ValueError:
        raise problem from None
    return None


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    """Size and time of a file, by which one that is written to while it is read is found."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _json_row(line: bytes, path: str, needed: frozenset[str]) -> Row:
    try:
        text = line.decode("utf-8-sig")
        entry = parse_json(text)
    except UnicodeDecodeError as error:
        return {PROBLEM: f"holds {_foreign(error)}"}
    except ValueError as error:
        return {PROBLEM: f"not JSON: {error}"}
    plain = isinstance(entry, dict) and entry.keys().isdisjoint(_RESERVED) and not _HALF_IN_JSON.search(text)
    return entry if plain else _checked(entry, path, needed)


def _checked(entry: Any, path: str, needed: frozenset[str]) -> Row:
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
            _note(path, row, encodable(name), f"holds {problem}", needed)
    return row
