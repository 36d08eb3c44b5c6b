# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from verl_uae.data.buckets import Buckets
from verl_uae.data.images import decode_image, image_digest
from verl_uae.data.limits import DEFAULT_LIMITS
from verl_uae.data.pack import inspect_all, list_files, pack, write_shard
from verl_uae.data.pairs import PairShards
from verl_uae.data.schema import make_row, write_parquet
from verl_uae.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path, make_picture: Callable, make_bytes: Callable) -> Path:
    """Ten good pictures in three formats and five files that are none."""
    root = tmp_path / "pictures"
    (root / "deep" / "er").mkdir(parents=True)
    for seed in range(6):
        (root / f"p{seed}.png").write_bytes(make_bytes(make_picture(seed=seed)))
    for seed in range(6, 9):
        (root / "deep" / f"p{seed}.jpg").write_bytes(make_bytes(make_picture(seed=seed), "JPEG", quality=90))
    (root / "deep" / "er" / "p9.webp").write_bytes(make_bytes(make_picture(seed=9), "WEBP"))
    (root / "copy.png").write_bytes(make_bytes(make_picture(seed=3), compress_level=1))
    (root / "notes.txt").write_text("not a picture")
    (root / "cut.png").write_bytes(make_bytes(make_picture(seed=20))[:-300])
    (tmp_path / "outside.png").write_bytes(make_bytes(make_picture(seed=21)))
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "linked").symlink_to(tmp_path)
    return root


def _rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def _quarantine(out: Path) -> dict[str, str]:
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    return {entry["file"]: entry["reason"] for entry in map(json.loads, lines)}


def test_folder_becomes_parquet_and_quarantine(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = pack(folder, out, val_fraction=0.3, seed=1)
    rows = {split: _rows(out / f"{split}.parquet") for split in ("train", "val")}
    assert report.train == len(rows["train"]) and report.val == len(rows["val"]) >= 1
    assert (report.files_seen, report.train + report.val, report.duplicates, report.bad) == (15, 10, 1, 4)
    for split, members in rows.items():
        assert [row["extra_info"]["index"] for row in members] == list(range(len(members)))
        assert {row["extra_info"]["split"] for row in members} == {split}
        for row in members:
            img = decode_image(row["images"][0])
            assert row["extra_info"]["sha256"] == image_digest(img)
            assert (row["extra_info"]["width"], row["extra_info"]["height"]) == img.size
    reasons = _quarantine(out)
    assert sorted(reasons) == ["cut.png", "link.png", "linked", "notes.txt", "p3.png"]
    assert "a text with no picture" in reasons["notes.txt"] and "OSError" in reasons["cut.png"]
    assert "leaves its folder" in reasons["link.png"] and "not followed" in reasons["linked"]
    assert reasons["p3.png"] == "same picture as copy.png"


def test_report_matches_the_files(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = pack(folder, out)
    written = json.loads((out / "report.json").read_text())
    assert written["sha256"] == report.sha256 and set(report.sha256) == {
        "train.parquet",
        "val.parquet",
        "quarantine.jsonl",
    }
    for name, digest in report.sha256.items():
        content = (out / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest and len(content) == report.bytes[name]
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


def test_good_bytes_are_kept_and_others_rewritten_without_loss(folder: Path, tmp_path: Path) -> None:
    report = pack(folder, tmp_path / "out", val_fraction=0)
    stored = {row["extra_info"]["source"]: row["images"][0]["bytes"] for row in _rows(tmp_path / "out/train.parquet")}
    assert report.rewritten == {"format WEBP": 1} and report.val == 0 and not (tmp_path / "out/val.parquet").exists()
    for source, data in stored.items():
        original = folder / source
        assert (data == original.read_bytes()) == (original.suffix != ".webp"), source
        assert image_digest(decode_image(data)) == image_digest(decode_image(original)), source


def test_stock_viewers_see_what_the_door_sees(tmp_path: Path, make_picture: Callable, make_bytes: Callable) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "turned.jpg").write_bytes(make_bytes(make_picture(seed=1), "JPEG", exif=exif))
    clear = make_picture(seed=2)
    clear.putalpha(90)
    (folder / "clear.png").write_bytes(make_bytes(clear))
    deep = Image.fromarray(np.linspace(0, 65_535, 4096).astype(np.uint16).reshape(64, 64))
    (folder / "deep.png").write_bytes(make_bytes(deep))
    (folder / "gray.png").write_bytes(make_bytes(make_picture(seed=3).convert("L")))
    (folder / "cmyk.jpg").write_bytes(make_bytes(make_picture(seed=4).convert("CMYK"), "JPEG"))
    (folder / "huge.png").write_bytes(make_bytes(make_picture(400, 300, seed=5)))
    report = pack(folder, tmp_path / "out", val_fraction=0, max_pixels=20_000)
    assert report.rewritten == {"16-bit gray": 1, "EXIF orientation": 1, "size": 1, "transparency": 1}
    for row in _rows(tmp_path / "out/train.parquet"):
        data = row["images"][0]["bytes"]
        plain = Image.open(io.BytesIO(data)).convert("RGB")
        assert image_digest(plain) == row["extra_info"]["sha256"], row["extra_info"]["source"]
        assert plain.width * plain.height <= 20_000
        if row["extra_info"]["source"] == "huge.png":
            assert plain.width / plain.height == pytest.approx(4 / 3, rel=0.02) and plain.width > 160


def test_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, tmp_path / "a", seed=5, threads=1)
    second = pack(folder, tmp_path / "b", seed=5, threads=4)
    assert first == second


def test_split_follows_content_and_seed(tmp_path: Path, make_picture: Callable, make_bytes: Callable) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(60):
        (folder / f"{seed:02}.png").write_bytes(make_bytes(make_picture(32, 32, seed)))

    def held_out(name: str, seed: int) -> set[str]:
        pack(folder, tmp_path / name, val_fraction=0.3, seed=seed)
        return {row["extra_info"]["sha256"] for row in _rows(tmp_path / name / "val.parquet")}

    before, other = held_out("a", 0), held_out("b", 1)
    assert 8 <= len(before) <= 28 and before != other
    for seed in range(60, 70):
        (folder / f"{seed:02}.png").write_bytes(make_bytes(make_picture(32, 32, seed)))
    (folder / "00.png").rename(folder / "zz.png")
    assert before <= held_out("c", 0)


@pytest.mark.parametrize("val_fraction", [1e-9, 1 - 1e-9])
def test_neither_file_is_empty(val_fraction: float, folder: Path, tmp_path: Path) -> None:
    report = pack(folder, tmp_path / "out", val_fraction=val_fraction)
    assert report.train >= 1 and report.val >= 1


def test_captions_and_prompt_reach_the_rows(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text('{"file": "p0.png", "caption": "a \\"quoted\\" cat"}\n{"file": "gone.png", "caption": "x"}\n')
    report = pack(folder, tmp_path / "out", captions=file, prompt="Say it all.", val_fraction=0)
    assert (report.with_caption, report.captions_unused) == (1, 1)
    rows = {row["extra_info"]["source"]: row for row in _rows(tmp_path / "out/train.parquet")}
    assert rows["p0.png"]["extra_info"]["caption"] == rows["p0.png"]["reward_model"]["ground_truth"] == 'a "quoted" cat'
    assert rows["p1.png"]["extra_info"]["caption"] is None
    assert rows["p1.png"]["prompt"][-1] == {"role": "user", "content": "<image>\nSay it all."}
    with pytest.raises(DataError, match="no caption names a picture"):
        pack(folder, tmp_path / "none", captions={"nope.png": "x"})


def test_nothing_is_overwritten_unasked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = pack(folder, out)
    with pytest.raises(ConfigError, match="already holds"):
        pack(folder, out)
    assert pack(folder, out, overwrite=True) == first
    assert pack(folder, out, overwrite=True, val_fraction=0).val == 0 and not (out / "val.parquet").exists()


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_files_that_change_meanwhile_cost_themselves(format: str, folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Replaced, vanished, made a pipe, made a link out: after the folder was judged, before it is written."""
    from verl_uae.data import pack as module

    def tampered(*args, **kwargs):
        (folder / "p0.png").write_bytes((folder / "p1.png").read_bytes())
        for name in ("p2.png", "p4.png", "p5.png"):
            (folder / name).unlink()
        os.mkfifo(folder / "p4.png")
        (folder / "p5.png").symlink_to(tmp_path / "outside.png")
        return split(*args, **kwargs)

    split = module._split
    monkeypatch.setattr(module, "_split", tampered)
    out = tmp_path / "out"
    report = pack(folder, out, captions=_captions(folder, 99), format=format, shard_size=3)
    reasons = _quarantine(out)
    assert (report.train + report.val, report.bad, report.files_seen) == (6, 8, 15)
    assert "changed while" in reasons["p0.png"] and "No such file" in reasons["p2.png"]
    assert "not a regular file" in reasons["p4.png"] and "leaves its folder" in reasons["p5.png"]
    if format == "parquet":
        rows = _rows(out / "train.parquet")
        assert [row["extra_info"]["index"] for row in rows] == list(range(report.train))
    else:
        pairs = PairShards(f"{out}/*.tar", Buckets.single(64), 1, shuffle=False, epochs=1)
        assert len(list(pairs)) == report.train + report.val == report.with_caption


def test_a_folder_that_vanishes_meanwhile_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch) -> None:
    from verl_uae.data import pack as module

    def tampered(*args, **kwargs):
        shutil.rmtree(folder)
        return split(*args, **kwargs)

    split = module._split
    monkeypatch.setattr(module, "_split", tampered)
    with pytest.raises(DataError, match="no picture is left"):
        pack(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/out: cannot be written"):
        pack(folder, tmp_path / "file" / "out")


def test_impossible_arguments_are_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for key, arguments in {
        "val_fraction": {"val_fraction": 1.0},
        "max_pixels": {"max_pixels": 3},
        "prompt": {"prompt": [{"role": "user", "content": "no mark"}]},
    }.items():
        with pytest.raises(ConfigError, match=key):
            pack(folder, out, **arguments)
    with pytest.raises(ConfigError, match="inside the packed folder"):
        pack(folder, folder / "out")
    with pytest.raises(DataError, match="not a folder"):
        pack(tmp_path / "absent", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture can be used"):
        pack(tmp_path / "empty", out)
    assert not out.exists()


@pytest.fixture
def odd(tmp_path: Path, make_picture: Callable, make_bytes: Callable) -> Path:
    """Names that are not UTF-8, long, decomposed, or of macOS."""
    root = tmp_path / "odd"
    root.mkdir()
    names = [b"\xff\xfe.png", b"bad\xff.png", b"bad\\xff.png", b"n" * 248 + b".png", "Mu\u0308ller.png".encode()]
    for seed, name in enumerate(names):
        try:
            with open(os.fsencode(root) + b"/" + name, "wb") as file:
                file.write(make_bytes(make_picture(seed=seed)))
        except OSError:
            pytest.skip("the file system takes only UTF-8 names")
    (root / "line\nbreak.html").write_text("x")
    (root / "._0.png").write_bytes(b"\0\x05\x16\x07" + bytes(60))
    return root


def test_odd_file_names_are_kept_printable_and_apart(odd: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.jsonl"
    lines = {
        "bad\\xff.png": "of the text",
        "bad\udcff.png": "of the byte",
        "\\xff\\xfe.png": "by its escape",
        "M\xfcller.png": "composed",
        "gone.png": "-",
        "n" * 248 + ".png": " ",
    }
    captions.write_text("".join(json.dumps({"file": f, "caption": c}) + "\n" for f, c in lines.items()))
    report = pack(odd, tmp_path / "out", val_fraction=0, captions=captions)
    stored = {
        row["extra_info"]["source"]: row["extra_info"]["caption"] for row in _rows(tmp_path / "out/train.parquet")
    }
    assert stored == {
        "\\xff\\xfe.png": "by its escape",
        "bad\\xff.png": "of the byte",
        "bad\\x5cxff.png": "of the text",
        "n" * 248 + ".png": None,
        "Mu\u0308ller.png": "composed",
    }
    reasons = _quarantine(tmp_path / "out")
    assert (report.with_caption, report.captions_unused, report.bad) == (4, 2, 2)
    assert set(reasons) == {"line\nbreak.html", "._0.png", "gone.png", "n" * 248 + ".png"}
    assert "macOS" in reasons["._0.png"] and "white space" in reasons["n" * 248 + ".png"]


def test_texts_beside_pictures_are_captions_if_asked_for(folder: Path, tmp_path: Path) -> None:
    (folder / "p0.txt").write_bytes("\ufeffa cat\r\n".encode())
    (folder / "deep" / "p6.TXT").write_text("a dog")
    (folder / "p1.txt").write_bytes("it\u2019s".encode("cp1252"))
    (folder / "p2.txt").write_text(" ")
    (folder / "cut.txt").write_text("of a damaged picture")
    hinted = pack(folder, tmp_path / "a", val_fraction=0)
    assert (hinted.bad, hinted.sidecars_unread, hinted.with_caption, hinted.files_seen) == (4, 5, 0, 20)
    assert "--sidecars" in _quarantine(tmp_path / "a")["p0.txt"]
    read = pack(folder, tmp_path / "b", val_fraction=0, sidecars=True)
    assert (read.bad, read.sidecars_unread, read.with_caption, read.files_seen) == (6, 0, 2, 20)
    assert read.captions_unused == 1
    captions = {
        row["extra_info"]["source"]: row["extra_info"]["caption"] for row in _rows(tmp_path / "b/train.parquet")
    }
    assert captions["p0.png"] == "a cat" and captions["deep/p6.jpg"] == "a dog" and captions["p1.png"] is None
    reasons = _quarantine(tmp_path / "b")
    assert "Windows-1252" in reasons["p1.txt"] and "caption is missing" in reasons["p2.txt"]
    assert reasons["notes.txt"] == "a text with no picture beside it; the caption of x.png is x.txt"
    shards = pack(folder, tmp_path / "c", val_fraction=0, sidecars=True, format="webdataset")
    assert (shards.train, shards.with_caption) == (2, 2)
    with pytest.raises(ConfigError, match="not from both"):
        pack(folder, tmp_path / "d", sidecars=True, captions={"p0.png": "x"})


def test_the_caption_of_a_copy_is_not_lost(folder: Path, tmp_path: Path) -> None:
    """copy.png comes first by name and is kept; p3.png is the same picture."""
    report = pack(folder, tmp_path / "a", val_fraction=0, captions={"p3.png": "a cat"})
    rows = {row["extra_info"]["source"]: row for row in _rows(tmp_path / "a/train.parquet")}
    assert rows["copy.png"]["extra_info"]["caption"] == "a cat"
    assert (report.with_caption, report.captions_unused) == (1, 0)
    report = pack(folder, tmp_path / "b", captions={"p3.png": "a cat", "copy.png": "a dog", "cut.png": "x"})
    assert (report.with_caption, report.captions_unused) == (1, 2)


def test_real_photographs(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed")
    folder = Path(spec.origin).parent / "data"
    report = pack(folder, tmp_path / "out", val_fraction=0.2)
    reasons = _quarantine(tmp_path / "out")
    foreign = {path.name for path in folder.iterdir() if path.suffix in {".gif", ".tif", ".npy", ".xml", ".txt", ".py"}}
    pictures = {path.name for path in folder.iterdir() if path.suffix in {".png", ".jpg"}}
    assert foreign <= set(reasons) and report.train + report.val + report.duplicates == len(pictures) >= 20
    assert report.files_seen == sum(path.is_file() for path in folder.rglob("*"))
    assert report.rewritten == {"transparency": 2}


def _captions(folder: Path, count: int) -> dict[str, str]:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.suffix != ".txt")
    return {file: f"picture {file}" for file in files[:count]}


def test_pairs_become_shards_that_can_be_streamed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    captions = {**_captions(folder, 99)}
    del captions["p0.png"]
    report = pack(folder, out, captions=captions, val_fraction=0.3, seed=1, format="webdataset", shard_size=3)
    assert report.train + report.val == 9 and report.with_caption == 9 and report.bad == 5
    assert _quarantine(out)["p0.png"] == "no caption" and not (out / "train.parquet").exists()
    shards = {split: sorted(out.glob(f"{split}-*.tar")) for split in ("train", "val")}
    assert [len(shards["train"]), len(shards["val"])] == [-(-report.train // 3), -(-report.val // 3)]
    assert set(report.sha256) == {path.name for path in (*shards["train"], *shards["val"])} | {"quarantine.jsonl"}
    pairs = [
        pair
        for split in shards
        for (pair,) in PairShards(f"{out}/{split}-*.tar", Buckets.single(64), 1, shuffle=False, epochs=1)
    ]
    parquet = tmp_path / "parquet"
    pack(folder, parquet, captions=captions, val_fraction=0.3, seed=1)
    rows = [row for split in ("train", "val") for row in _rows(parquet / f"{split}.parquet")]
    wanted = {row["extra_info"]["sha256"]: row for row in rows if row["extra_info"]["caption"] is not None}
    assert len(pairs) == 9 and {pair.digest for pair in pairs} == set(wanted)
    for pair in pairs:
        row = wanted[pair.digest or ""]
        assert pair.image == row["images"][0]["bytes"] and pair.caption == row["extra_info"]["caption"]
        assert image_digest(pair.decode()) == pair.digest
        assert (pair.width, pair.height) == (row["extra_info"]["width"], row["extra_info"]["height"])
    # The split is the same one, the order is not that of the names.
    train = {digest for digest, row in wanted.items() if row["extra_info"]["split"] == "train"}
    assert {pair.digest for pair in pairs[: report.train]} == train
    assert [pair.caption for pair in pairs] != sorted(pair.caption for pair in pairs)


def test_shards_are_the_same_bytes_again_and_replace_older_files(folder: Path, tmp_path: Path) -> None:
    captions = _captions(folder, 99)
    pack(folder, tmp_path / "a", captions=captions, seed=5)
    with pytest.raises(ConfigError, match=r"already holds train\.parquet.*--overwrite"):
        pack(folder, tmp_path / "a", captions=captions, format="webdataset")
    pack(folder, tmp_path / "a", captions=captions, seed=5, overwrite=True, format="webdataset", shard_size=1)
    assert len(list((tmp_path / "a").glob("*.tar"))) == 10 and not list((tmp_path / "a").glob("*.parquet"))
    options = {"captions": captions, "seed": 5, "format": "webdataset", "shard_size": 4}
    first = pack(folder, tmp_path / "a", overwrite=True, **options)
    second = pack(folder, tmp_path / "b", threads=1, **options)
    assert first == second
    for out in ("a", "b"):
        assert {path.name for path in (tmp_path / out).iterdir()} == {*first.sha256, "report.json"}


def test_shards_need_captions(folder: Path, tmp_path: Path) -> None:
    for captions, error, message in (
        (None, ConfigError, "captions are needed"),
        ({}, DataError, "no picture has a caption"),
        ({"x": "y"}, DataError, "no caption names a picture"),
    ):
        with pytest.raises(error, match=message):
            pack(folder, tmp_path / "out", captions=captions, format="webdataset")
    for options in ({"format": "zip"}, {"shard_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            pack(folder, tmp_path / "out", captions=_captions(folder, 3), **options)


def test_files_are_pictures_or_have_a_reason(tmp_path: Path, make_picture: Callable) -> None:
    make_picture(32, 48).save(tmp_path / "a.png")
    make_picture().save(tmp_path / "._a.png")
    (tmp_path / "b.png").write_bytes(b"")
    files, linked = list_files(tmp_path)
    pictures, bad = inspect_all(tmp_path, files, DEFAULT_LIMITS, None, threads=2)
    assert files == ["._a.png", "a.png", "b.png"] and not linked
    assert [(picture.file, picture.size) for picture in pictures] == [("a.png", (32, 48))]
    assert {item.file: item.reason for item in bad} == {
        "._a.png": "attributes of a file, kept by macOS, and no picture",
        "b.png": "empty file",
    }


@pytest.fixture
def stored_rows(make_picture: Callable, make_bytes: Callable) -> list[dict]:
    images = [make_bytes(make_picture(seed=seed), format) for seed, format in enumerate(("PNG", "JPEG", "WEBP"))]
    return [
        make_row(image, index=index + 5, split="train", sha256=f"{index}", caption=f"é {index}", size=(96, 64))
        for index, image in enumerate(images)
    ]


def test_a_shard_holds_the_stored_bytes_and_what_is_known(stored_rows: list[dict], tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", iter(stored_rows))
    with tarfile.open(tmp_path / "a.tar") as archive:
        content = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    names = ["000000005.png", "000000006.jpg", "000000007.webp"]
    assert [name for name in content if not name.endswith(".json")] == names
    for index, (name, row) in enumerate(zip(names, stored_rows, strict=True)):
        assert content[name] == row["images"][0]["bytes"]
        about = json.loads(content[f"{name.split('.')[0]}.json"])
        assert about == {"caption": f"é {index}", "sha256": f"{index}", "source": None, "width": 96, "height": 64}
    write_shard(tmp_path / "b.tar", stored_rows)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_rows_come_back_from_parquet(stored_rows: list[dict], tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", iter(stored_rows * 200))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.read().to_pylist() == stored_rows * 200
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [256, 256, 88]
