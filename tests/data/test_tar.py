# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
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

from tests.data.shard_world import members, tar_bytes
from verl_uae.data.tar import Archive, DamagedShard, Sample, read_samples

LIMIT = 2**20


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return tmp_path / "a.tar"


def read(path: Path, limit: int = LIMIT) -> list[Sample]:
    return list(read_samples(str(path), limit))


def until_it_breaks(path: Path) -> tuple[list[Sample], str]:
    found: list[Sample] = []
    with pytest.raises((DamagedShard, OSError, tarfile.TarError)) as caught:
        found.extend(sample for sample in _collect(path, found))
    return found, str(caught.value)


def _collect(path: Path, found: list[Sample]):
    for sample in read_samples(str(path), LIMIT):
        found.append(sample)
    return []


def test_entries_of_one_name_are_a_sample(shard: Path) -> None:
    content = members(0, 3)
    shard.write_bytes(tar_bytes(content))
    assert read(shard) == [
        Sample(number, f"{number:05d}", {"png": content[2 * number][1], "txt": content[2 * number + 1][1]})
        for number in range(3)
    ]


def test_names_are_split_as_webdataset_splits_them(shard: Path) -> None:
    """Against webdataset's own reader."""
    import webdataset

    names = ["a/b.PNG", "a/b.txt", "a/b.seg.png", "c.d/e.Json", "c.d/e.webp", "noext", "f.jpg", "a/b.png"]
    shard.write_bytes(tar_bytes([(name, name.encode()) for name in names]))
    ours = [(sample.key, set(sample.entries)) for sample in read(shard)]
    stock = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
    wanted = {"png", "txt", "json", "webp", "jpg"}
    secure, webdataset.utils.enforce_security = webdataset.utils.enforce_security, False
    try:
        theirs = [(row["__key__"], {key for key in row if key in wanted}) for row in stock]
    finally:
        webdataset.utils.enforce_security = secure
    assert ours == theirs == [("a/b", {"png", "txt"}), ("c.d/e", {"json", "webp"}), ("f", {"jpg"}), ("a/b", {"png"})]


def test_other_entries_are_never_read(shard: Path, tmp_path: Path) -> None:
    """Neither a pickle that would run a command nor links nor devices."""
    ran = tmp_path / "ran"
    attack = b"cposix\nsystem\n(S'touch %s'\ntR." % os.fsencode(ran)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (("x.pkl", attack), ("x.pyd", attack), ("x.pth", attack), *members(0, 1)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("y.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    shard.write_bytes(buffer.getvalue())
    found = read(shard)
    assert [(sample.key, sorted(sample.entries)) for sample in found] == [
        ("x", []),
        ("00000", ["png", "txt"]),
        ("y", []),
    ]
    assert found[2].problem is not None and "is a link without content" in found[2].problem
    assert not ran.exists() and list(tmp_path.iterdir()) == [shard]


def test_too_large_and_double_entries_are_problems_of_their_sample(shard: Path) -> None:
    content = [("a.png", bytes(101)), ("a.txt", b"a"), ("b.txt", bytes(2**20 + 1)), ("c.png", b"1"), ("c.PNG", b"2")]
    shard.write_bytes(tar_bytes([*content, ("d.png", bytes(100))]))
    found = read(shard, limit=100)
    assert [sample.problem for sample in found] == [
        "entry png has 101 bytes, limit 100",
        "entry txt has 1048577 bytes, limit 1048576",
        "entry png is there twice",
        None,
    ]
    assert "png" not in found[0].entries and found[3].entries == {"png": bytes(100)}


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_cut_shard_gives_what_is_whole_and_says_so(keep: float, shard: Path) -> None:
    whole = tar_bytes(members(0, 20)).rstrip(b"\0")
    shard.write_bytes(whole[: int(keep * len(whole))])
    found, _ = until_it_breaks(shard)
    content = dict(members(0, 20))
    assert len(found) < 20
    for number, sample in enumerate(found):
        assert sample.entries["png"] == content[f"{number:05d}.png"]


def test_a_damaged_header_is_not_the_end(shard: Path) -> None:
    """tarfile alone stops there without a word."""
    whole = bytearray(tar_bytes(members(0, 10)))
    at = whole.index(b"00004.png")
    for damage in (os.urandom(512), bytes(512)):
        whole[at : at + 512] = damage
        shard.write_bytes(whole)
        with tarfile.open(shard) as archive:
            assert len(archive.getnames()) == 8
        found, _ = until_it_breaks(shard)
        # The sample before the damage may be complete or not: only its next entry would say so.
        assert [sample.key for sample in found] in ([f"0000{n}" for n in range(3)], [f"0000{n}" for n in range(4)])


def test_a_shard_without_its_end_is_damaged(shard: Path) -> None:
    whole = tar_bytes([("a.png", bytes(512))])
    shard.write_bytes(whole[:1024])
    with pytest.raises(DamagedShard, match="cut or damaged"):
        read(shard)
    for content in (b"", b"no tar at all", random.Random(0).randbytes(5000)):
        shard.write_bytes(content)
        with pytest.raises((DamagedShard, tarfile.TarError)):
            read(shard)
    with pytest.raises(FileNotFoundError):
        read(shard.with_name("none.tar"))


def test_hidden_files_of_macos_are_passed_over(shard: Path) -> None:
    content = members(0, 2)
    hidden = [(f"x/._{name}", b"\0\5\x16\7") for name, _ in content]
    shard.write_bytes(tar_bytes([entry for pair in zip(hidden, content, strict=True) for entry in pair]))
    assert read(shard) == [
        Sample(n, f"{n:05d}", {"png": content[2 * n][1], "txt": content[2 * n + 1][1]}) for n in range(2)
    ]


def test_samples_of_a_local_shard_need_not_lie_together(shard: Path) -> None:
    content = members(0, 5)
    sorted_samples = [Sample(n, f"{n:05d}", {"png": content[2 * n][1], "txt": content[2 * n + 1][1]}) for n in range(5)]
    shard.write_bytes(tar_bytes([*content[0::2], *content[1::2]]))
    assert read(shard) == sorted_samples
    # Whole samples first, then scattered ones, one without a text, and two samples of one name.
    mixed = [*content[:4], *content[4::2], ("lone.png", b"x"), *content[5::2], *members(2, 1)]
    shard.write_bytes(tar_bytes(mixed))
    found = read(shard)
    assert found[:5] == sorted_samples
    assert found[5:] == [Sample(5, "lone", {"png": b"x"}), Sample(6, "00002", sorted_samples[2].entries)]


def test_what_is_whole_of_a_scattered_shard_is_read_before_its_damage(shard: Path) -> None:
    content = members(0, 4)
    whole = tar_bytes([*content[0::2], *content[1::2]])
    shard.write_bytes(whole[: whole.index(b"00002.txt")])
    found, reason = until_it_breaks(shard)
    assert [set(sample.entries) for sample in found] == [{"png", "txt"}] * 2 + [{"png"}] * 2 and "cut" in reason


def test_samples_of_a_stream_must_lie_together(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = members(0, 3)
    data = tar_bytes([*content[0::2], *content[1::2]])
    monkeypatch.setattr("verl_uae.data.tar.open_url", lambda url: io.BytesIO(data))
    found = read(shard)
    assert [sample.problem for sample in found[:3]] == [None] * 3 and len(found) == 6
    assert all("do not lie together" in (sample.problem or "") for sample in found[3:])
    monkeypatch.setattr("verl_uae.data.tar.open_url", lambda url: io.BytesIO(tar_bytes(content)))
    assert [set(sample.entries) for sample in read(shard)] == [{"png", "txt"}] * 3


def test_flipped_bits_never_raise_anything_else(shard: Path) -> None:
    """300 damages of a small shard: samples, or one of three exceptions."""
    whole = tar_bytes([(f"{number}.{suffix}", bytes(40)) for number in range(4) for suffix in ("png", "txt")])
    rng = random.Random(0)
    broken = 0
    for _ in range(300):
        bad = bytearray(whole)
        for _ in range(3):
            bad[rng.randrange(8 * 1024)] ^= 1 << rng.randrange(8)
        shard.write_bytes(bad)
        try:
            read(shard)
        except (DamagedShard, OSError, tarfile.TarError):
            broken += 1
    assert 100 < broken < 300


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


def entries(stream) -> list[tuple[str, bytes]]:
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
        assert entries(stream) == stock
    assert [name for name, _ in stock] == [*names, "last"]


def test_base_256_sizes_and_sparse_files(tmp_path: Path) -> None:
    assert entries(Pipe(header(b"a", base256(3)) + padded(b"abc") + END)) == [("a", b"abc")]
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
    found = entries(Pipe(digits * 1000 + (slashes + header(b"x", 0)) * 8 + GOOD + END))
    assert len(found) == 9 and time.monotonic() - started < SECONDS


def test_a_file_of_holes_is_not_read_to_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(GOOD)
        file.truncate(2**40)
    started = time.monotonic()
    with open(tmp_path / "a.tar", "rb") as file, pytest.raises(DamagedShard, match="zeros behind the end"):
        entries(file)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"\x1f\x8b", "gzip"), (b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")],
)
def test_compressed_files_are_named(start: bytes, name: str) -> None:
    for rest in (b"", os.urandom(2000)):
        with pytest.raises(DamagedShard, match=f"compressed with {name}"):
            entries(Pipe(start + rest))


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
            found = entries(Pipe(bytes(data[: rng.choice([None, len(data), rng.randrange(len(data))])])))
        except DamagedShard:
            continue
        whole += 1
        assert sum(len(content) for _, content in found) <= len(data)
    assert 100 < whole < 1900 and time.monotonic() - started < 3 * SECONDS
