# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Checking a data file that is there already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_uae.data.images import decode_image
from verl_uae.data.limits import ImageLimits
from verl_uae.data.quarantine import BadItem
from verl_uae.data.schema import check_columns, row_problem
from verl_uae.errors import DataError


def check_file(path: Path, limits: ImageLimits) -> tuple[int, list[BadItem]]:
    """Check columns, rows and pictures of a parquet file, one row group at a time.

    Returns:
        Number of rows and the bad ones.

    Raises:
        DataError: for a file that cannot be read or lacks a column.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error
    with file:
        check_columns(file.schema_arrow, str(path))
        bad = [
            BadItem(str(path), number, problem)
            for number, row in enumerate(_rows(file, path))
            if (problem := _problem(row, number, path, limits)) is not None
        ]
        return file.metadata.num_rows, bad


def _rows(file: pq.ParquetFile, path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error


def _problem(row: dict[str, Any], number: int, path: Path, limits: ImageLimits) -> str | None:
    problem = row_problem(row)
    if problem is not None:
        return problem
    try:
        for image in row["images"]:
            decode_image(image, limits=limits, path=path, row=number, root=path.resolve().parent)
    except DataError as error:
        return f"column images: {error.message}"
    return None
