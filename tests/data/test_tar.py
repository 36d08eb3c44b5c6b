# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from tests.data.shard_world import members, tar_bytes
from verl_uae.data.tar import Sample, read_samples
from verl_uae.data.tar_headers import DamagedShard

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
