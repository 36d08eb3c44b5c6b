# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Against `tarfile` on good archives, against the clock on bad ones."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from verl_uae.data.tar_headers import Archive, DamagedShard

SECONDS = 10.0
"""What a file of a few MiB may cost on a busy machine. Each attack below costs minutes to years without bounds."""


def header(name: bytes, size: int | bytes, kind: bytes = b"0") -> bytes:
    """A block with a right checksum, whatever it claims."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156], block[156:157], block[257:265] = b" " * 8, kind, b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base256(size: int) -> bytes:
    return b"\x80" + size.to_bytes(11, "big")


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def extended(body: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", len(body), kind) + padded(body)


def record(key: bytes, value: bytes) -> bytes:
    for length in range(len(key) + len(value) + 3, len(key) + len(value) + 25):
        whole = b"%d %s=%s\n" % (length, key, value)
        if len(whole) == length:
            return whole
    raise AssertionError


END = bytes(1024)
GOOD = header(b"a.png", 3) + padded(b"abc")


class Pipe(io.BytesIO):
    """A stream that is no file, as behind a URL."""

    def seek(self, *args: int) -> int:
        raise AssertionError("a pipe cannot go back")


def read(stream) -> list[tuple[str, bytes]]:
    archive = Archive(stream)
    return [(entry.name, archive.read(entry)) for entry in archive if not entry.link]


def both_ways(path: Path) -> Iterable:
    with open(path, "rb") as file:
        yield file
    yield Pipe(path.read_bytes())


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_good_archives_are_read_as_tarfile_reads_them(format: int, tmp_path: Path) -> None:
    names = ["a.png", "deep/er/b.txt", "empty", "é名.json", "x" * 90 + "/" + "y" * 60]
    if format != tarfile.USTAR_FORMAT:
        names += ["n" * 300 + ".png", "caf\udce9.png"]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format, pax_headers={"comment": "9" * 100}) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 400 * number * (name != "empty")
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("other")
            info.type, info.linkname = kind, "l" * (90 if format == tarfile.USTAR_FORMAT else 300)
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("last"))
    with tarfile.open(path) as archive:
        stock = [(info.name, archive.extractfile(info).read()) for info in archive if info.isreg()]
    for stream in both_ways(path):
        assert read(stream) == stock
    assert [name for name, _ in stock] == [*names, "last"]


def test_base_256_sizes_and_sparse_files(tmp_path: Path) -> None:
    assert read(Pipe(header(b"a", base256(3)) + padded(b"abc") + END)) == [("a", b"abc")]
    with open(tmp_path / "holes", "wb") as file:
        for place in range(0, 40 * 2**17, 2**17):
            file.seek(place)
            file.write(b"x")
    (tmp_path / "b").write_bytes(b"after")
    for format in ("gnu", "pax"):
        words = ["tar", "-S", f"--format={format}", "-cf", "a.tar", "holes", "b"]
        if subprocess.run(words, cwd=tmp_path, check=False).returncode:
            pytest.skip("no GNU tar")
        for stream in both_ways(tmp_path / "a.tar"):
            archive = Archive(stream)
            found = [(entry.sparse, archive.read(entry)) for entry in archive]
            assert [sparse for sparse, _ in found] == [True, False] and found[1][1] == b"after"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        *((GOOD + header(b"b.png", base256(2**power)) + bytes(2048), "claims") for power in (30, 36, 45, 63, 80)),
        (GOOD + header(b"b.pkl", base256(2**63)) + bytes(2048), "claims|missing"),
        (GOOD + header(b"b.png", b"\xff" * 12) + bytes(2048), "claims -1 bytes"),
        (GOOD + extended(record(b"size", b"9" * 18)) + header(b"b.png", 0) + END, "claims"),
        (GOOD + extended(record(b"size", b"9" * 5000)) + header(b"b.png", 0) + END, "no number"),
        (GOOD + extended(record(b"size", b"-5")) + header(b"b.png", 0) + END, "no number"),
        (GOOD + extended(b"1" * 80_000) + GOOD + END, "form of pax"),
        (GOOD + extended(b"1" * 2**20) + GOOD + END, "form of pax"),
        (GOOD + extended(b"1" * 2**20, b"g") + GOOD + END, "form of pax"),
        (GOOD + extended(b"0 a=b\n") + GOOD + END, "form of pax"),
        (GOOD + extended(b"9" * (2**20 + 1)) + GOOD + END, "header of 1048577 bytes"),
        (GOOD + header(b"L", 300 * 2**20, b"L") + bytes(2048), "header of 314572800 bytes"),
        (GOOD + header(b"L", base256(2**63), b"K") + bytes(2048), "header of 9223372036854775808 bytes"),
        (GOOD + header(b"S", 0, b"S")[:482] + b"\1" + bytes(29), "checksum|damaged"),
        (GOOD + bytes(512) + GOOD, "data behind the end"),
        (GOOD, "no end"),
    ],
)
def test_a_header_cannot_hold_the_reader(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    started = time.monotonic()
    for stream in both_ways(tmp_path / "a.tar"):
        archive, found = Archive(stream), []
        with pytest.raises(DamagedShard, match=reason):
            found += [(entry.name, archive.read(entry)) for entry in _noting(archive, found)]
        assert found == [("a.png", b"abc")]
    assert time.monotonic() - started < SECONDS


def _noting(archive: Archive, found: list):
    for entry in archive:
        found.append((entry.name, archive.read(entry)))
    yield from ()


def test_many_long_headers_cost_what_they_weigh() -> None:
    """A thousand extended headers of 4 KiB of digits in one record each, and names of a megabyte without a dot."""
    digits = extended(record(b"comment", b"1" * 4000))
    slashes = header(b"L", 2**20, b"L") + b"/" * 2**20
    started = time.monotonic()
    found = read(Pipe(digits * 1000 + (slashes + header(b"x", 0)) * 8 + GOOD + END))
    assert len(found) == 9 and time.monotonic() - started < SECONDS


def test_a_file_of_holes_is_not_read_to_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(GOOD)
        file.truncate(2**40)
    started = time.monotonic()
    with open(tmp_path / "a.tar", "rb") as file, pytest.raises(DamagedShard, match="zeros behind the end"):
        read(file)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("start", "name"), [(b"\x1f\x8b", "gzip"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")]
)
def test_compressed_files_are_named(start: bytes, name: str) -> None:
    for rest in (b"", os.urandom(2000)):
        with pytest.raises(DamagedShard, match=f"compressed with {name}"):
            read(Pipe(start + rest))


def test_random_headers_never_hang_or_raise_anything_else() -> None:
    """2,000 archives of headers that lie: what is read is what is there, at once."""
    rng = random.Random(0)
    sizes: list[int | bytes] = [0, 1, 511, 512, 513, 2**33 - 1, base256(2**40), base256(2**62), b"\xff" * 12]
    kinds = [b"0", b"\0", b"1", b"5", b"7", b"S", b"L", b"K", b"x", b"g", b"X", b"D", b"V", b"Z"]
    bodies = [
        b"",
        b"abc",
        b"1" * 600,
        record(b"path", b"p.png"),
        record(b"size", b"3"),
        record(b"GNU.sparse.major", b"1"),
    ]
    whole, started = 0, time.monotonic()
    for _ in range(2000):
        parts = []
        for _ in range(rng.randint(1, 6)):
            body = rng.choice(bodies)
            parts += [
                header(
                    b"n%d.png" % rng.randrange(9),
                    rng.choice([len(body), len(body), rng.choice(sizes)]),
                    rng.choice(kinds),
                )
            ]
            parts += [padded(body)]
        data = bytearray(b"".join(parts) + END)
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            found = read(Pipe(bytes(data[: rng.choice([None, len(data), rng.randrange(len(data))])])))
        except DamagedShard:
            continue
        whole += 1
        assert sum(len(content) for _, content in found) <= len(data)
    assert 100 < whole < 1900 and time.monotonic() - started < 3 * SECONDS
