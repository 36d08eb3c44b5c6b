# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The emoji world, on pictures made here: what is fetched and read, what is held out, what is said and looked up."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from benchmarks.learning import emoji, emoji_data, emoji_world
from benchmarks.learning.emoji_data import Emoji
from verl_uae.data.schema import row_problem
from verl_uae.errors import ConfigError, DataError
from verl_uae.scenes.evaluate import load_loop
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Timings, train_once
from verl_uae.scenes.tokenizer import RESERVED

STAND_INS = {"RED BALL": (220, 40, 40), "BLUE BALL BOX": (50, 110, 220), "BOX": (45, 45, 45)}
"""Name -> colour of a square of 32 pixels in a picture of 64."""


def png(colour: tuple[int, int, int]) -> bytes:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((*colour, 255), (16, 16, 48, 48))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def record(name: str, unified: str, category: str = "Objects", subcategory: str = "other-object") -> dict[str, Any]:
    image = f"{unified.lower()}.png"
    return {"name": name, "unified": unified, "category": category, "subcategory": subcategory, "image": image}


RECORDS = [record(name, f"1F90{number}") for number, name in enumerate(STAND_INS)]


def archive(path: Path, vendor: str, records: list[dict[str, Any]] = RECORDS, **more: bytes) -> Path:
    """A package of stand-ins with a link and a file that lead out of it."""
    pictures = {f"package/img/{vendor}/64/{own['image']}": png(STAND_INS[own["name"]]) for own in records}
    files = {"package/emoji.json": json.dumps(records).encode(), **pictures, f"../../{vendor}.txt": b"out", **more}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo(f"package/img/{vendor}/64/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set of the stand-ins, of which the box is held out."""
    monkeypatch.setattr(emoji_data, "_SHARED_BY", 2)
    monkeypatch.setattr(emoji_data, "split_of", lambda family: "val" if family == "BOX" else "train")
    (tmp_path / "packages").mkdir()
    archives = {vendor: archive(tmp_path / "packages" / f"{vendor}.tgz", vendor) for vendor in ("google", "twitter")}
    emoji_data.write_dataset(tmp_path / "data", archives)
    return tmp_path / "data"


# ---------------------------------------------------------------- packages


def test_an_archive_is_fetched_once_and_only_with_the_stated_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(tmp_path / "own.tgz", "google").read_bytes()
    asked: list[str] = []

    def answer(url: str, **_: object) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(DataError, match="has the SHA-512"):
        emoji_data.fetch("google", tmp_path / "bad", "https://example.org/")
    assert not list((tmp_path / "bad").iterdir())
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    monkeypatch.setitem(emoji_data.INTEGRITY, "google", digest)
    for _ in range(2):
        path = emoji_data.fetch("google", tmp_path / "good", "https://example.org/")
    assert path.read_bytes() == content
    assert asked == ["https://example.org/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz"] * 2
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match="has the SHA-512"):
        emoji_data.fetch("google", tmp_path / "good")


def test_a_registry_that_is_no_address_or_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("nobody there")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(ConfigError, match="--registry: must be an http address"):
        emoji_data.fetch("google", tmp_path, f"file://{tmp_path}")
    with pytest.raises(ConfigError, match="cannot be fetched: nobody there"):
        emoji_data.fetch("google", tmp_path, "https://example.org")
    assert not list(tmp_path.iterdir())


def test_reading_an_archive_writes_nothing_and_takes_no_link(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tgz", "google")
    records, pictures = emoji_data.read_archive(path, "google")
    assert records == RECORDS and set(pictures) == {own["image"] for own in RECORDS}
    assert [one.name for one in tmp_path.iterdir()] == ["a.tgz"]


def test_archives_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, message: str) -> None:
        with pytest.raises(DataError, match=message):
            emoji_data.read_archive(path, "google")

    broken = tmp_path / "broken.tgz"
    broken.write_bytes(b"nothing")
    refuse(broken, "is no archive of google's emoji")
    refuse(archive(tmp_path / "other.tgz", "twitter"), "has no picture 1f900.png of the 3")
    refuse(archive(tmp_path / "none.tgz", "google", []), "holds no package/emoji.json")
    monkeypatch.setattr(emoji_data, "_LARGEST_FILE", 10)
    refuse(archive(tmp_path / "large.tgz", "google"), "emoji.json has .* bytes, at most 10")
    both = {
        "google": archive(tmp_path / "g.tgz", "google"),
        "twitter": archive(tmp_path / "t.tgz", "twitter", RECORDS[1:]),
    }
    monkeypatch.setattr(emoji_data, "_LARGEST_FILE", 10_000)
    with pytest.raises(DataError, match="has other names than google's"):
        emoji_data.write_dataset(tmp_path / "out", both)


# ---------------------------------------------------------------- names


def families_of(names: dict[str, str], pictures: dict[str, str] | None = None) -> dict[str, str]:
    records = [{"name": name, "unified": unified} for name, unified in names.items()]
    digests = [[(pictures or names)[name]] for name in names]
    return dict(zip(names, emoji_data.families(records, digests), strict=True))


@pytest.mark.parametrize(
    "names",
    [
        {"CLOCK FACE ONE OCLOCK": "1F550", "CLOCK FACE TWO-THIRTY": "1F55D"},
        {"HEAVY BLACK HEART": "2764-FE0F", "BLUE HEART": "1F499", "HEART ON FIRE": "2764-FE0F-200D-1F525"},
        {"MAN FARMER": "1F468-200D-1F33E", "FARMER": "1F9D1-200D-1F33E"},
        {"MAN": "1F468", "FAMILY: WOMAN, GIRL": "1F469-200D-1F467"},
        {
            "NEGATIVE SQUARED LATIN CAPITAL LETTER A": "1F170-FE0F",
            "NEGATIVE SQUARED LATIN CAPITAL LETTER O": "1F17E-FE0F",
        },
        {"SQUARED CJK UNIFIED IDEOGRAPH-7A7A": "1F233", "SQUARED CJK UNIFIED IDEOGRAPH-5408": "1F234"},
        {"WAXING GIBBOUS MOON SYMBOL": "1F314", "FULL MOON WITH FACE": "1F31D"},
    ],
)
def test_variants_are_of_one_family(names: dict[str, str]) -> None:
    assert set(families_of(names).values()) == {min(names)}


def test_flags_share_letters_but_are_families_of_their_own_unless_they_look_alike() -> None:
    names = {
        "Norway Flag": "1F1F3-1F1F4",
        "Oman Flag": "1F1F4-1F1F2",
        "England Flag": "1F3F4-E0067-E0062-E0065-E006E-E0067-E007F",
        "Wales Flag": "1F3F4-E0067-E0062-E0077-E006C-E0073-E007F",
        "Svalbard Flag": "1F1F8-1F1EF",
    }
    assert families_of(names) == {name: name for name in names}
    alike = {**{name: name for name in names}, "Svalbard Flag": "cross", "Norway Flag": "cross"}
    assert families_of(names, alike)["Svalbard Flag"] == "Norway Flag"


def test_one_family_in_six_is_held_out() -> None:
    held_out = sum(emoji_data.split_of(f"name {number}") == "val" for number in range(6000))
    assert held_out == pytest.approx(1000, abs=90)


def test_words_are_those_that_enough_names_share_and_the_chat_s_are_none() -> None:
    details = [["face", "user", "describe"], ["face", "user", "describe"], ["face", "face", "user", "once", "once"]]
    found = emoji_data.vocabulary(details)
    assert set(found) - set(emoji_data.COLOURS) - set(emoji_data.CATEGORIES.values()) == {"face"}
    assert not set(found) & set(RESERVED) and found == sorted(found)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({(220, 40, 40): 16}, ("red",)),
        ({(50, 110, 220): 4, (220, 40, 40): 8}, ("red", "blue")),
        ({(50, 110, 220): 1, (220, 40, 40): 9}, ("red",)),
        ({(50, 110, 220): 5, (220, 40, 40): 6, (45, 45, 45): 7}, ("black", "red")),
        ({}, ()),
    ],
)
def test_colours_are_shares_of_what_is_not_white(columns: dict[tuple[int, int, int], int], expected: tuple) -> None:
    picture, left = Image.new("RGB", (32, 32), (255, 255, 255)), 0
    for colour, width in columns.items():
        picture.paste(colour, (left, 0, left + width, 32))
        left += width
    assert emoji_data.main_colours(picture) == expected


# ---------------------------------------------------------------- rows and captions


def test_rows_hold_small_pictures_on_white_with_captions_of_known_words(data: Path) -> None:
    assert sorted(str(path.relative_to(data)) for path in data.rglob("*.*")) == [
        *(f"{vendor}/{split}.parquet" for vendor in ("google", "twitter") for split in ("train", "val")),
        "words.json",
    ]
    rows = pq.read_table(data / "google" / "train.parquet").to_pylist()
    assert [row["extra_info"]["caption"] for row in rows] == ["red object ball", "blue object ball"]
    assert all(row_problem(row) is None for row in rows)
    train = emoji_world.read_split(data, "google", "train")
    assert [one.name for one in train.emoji] == ["RED BALL", "BLUE BALL BOX"]
    wanted = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    wanted[:, 8:24, 8:24] = torch.tensor([220, 40, 40], dtype=torch.uint8).view(3, 1, 1)
    assert torch.equal(train.images_N3HW[0], wanted)
    held_out = emoji_world.read_split(data, "twitter", "val")
    # One training name alone says box, so no caption does.
    assert held_out.captions == ["black object"] and not held_out.abstract_N.any()


def test_files_that_are_none_of_ours_are_refused(data: Path) -> None:
    with pytest.raises(DataError, match="is no file of emoji"):
        emoji_world.read_split(data, "nobody", "val")
    rows = pq.read_table(data / "google" / "val.parquet").to_pylist()
    rows[0]["reward_model"]["ground_truth"] = "{}"
    emoji_data.write_parquet(data / "google" / "val.parquet", rows)
    with pytest.raises(DataError, match="row 0: is no emoji"):
        emoji_world.read_split(data, "google", "val")


HAND = Emoji("WAVING HAND", "People & Body", ("yellow", "gray"), "people", ("hand", "fingers", "open", "waving"))


def test_a_caption_is_colours_category_details_and_never_too_long() -> None:
    assert HAND.caption() == "yellow gray people hand fingers open waving"
    assert HAND.caption(detail=("open",), colours=()) == "people open"
    long = Emoji("LONG", "Objects", ("red",), "object", tuple(f"w{number}" for number in range(20)))
    assert len(long.caption().split()) == emoji_data.MAX_WORDS
    assert Emoji.from_json(HAND.to_json()) == HAND


def test_a_mix_says_the_category_always_and_other_words_as_often_as_it_is_told() -> None:
    rng = random.Random(0)
    assert emoji_world.WordMix(1, 0).sample(HAND, rng) == "people"
    assert emoji_world.WordMix(0, 1).sample(HAND, rng) == HAND.caption()
    said = [emoji_world.WordMix(0.4, 0.2, 0.25).sample(HAND, rng).split() for _ in range(4000)]
    assert all("people" in words for words in said)
    for word in ("yellow", "waving"):
        assert sum(word in words for words in said) / 4000 == pytest.approx(0.2 + 0.4 * 0.25, abs=0.03)


# ---------------------------------------------------------------- baselines and the experiment


def test_the_nearest_picture_is_that_of_the_caption_or_of_the_pixels(data: Path) -> None:
    train = emoji_world.read_split(data, "google", "train")
    red, blue = train.pictures_N3HW
    found = emoji_world.nearest_by_words(train, ["blue object", "red unheard", "ball"])
    # Every training caption says ball, so it tells none from another: the first.
    assert torch.equal(found, torch.stack([blue, red, red]))
    three, rare = Emoji("A", "Objects", (), "object", ("ball", "round")), Emoji("B", "Objects", (), "object", ("rare",))
    weighed = emoji_world.Split([three, three, three, rare], train.images_N3HW[[0, 0, 0, 1]])
    # Of four words three are shared with the first, but the rare one counts more than they do.
    assert torch.equal(emoji_world.nearest_by_words(weighed, ["object ball round rare"]), blue[None])
    assert torch.equal(emoji_world.nearest_by_pixels(train, (0.8 * blue + 0.2)[None]), blue[None])


def test_tiny_models_of_the_world_say_its_words_and_draw(data: Path, tmp_path: Path) -> None:
    config = JointConfig(seed=3, codec_steps=2, steps=2, decoder_batch=4, captioner_batch=2, warmup_steps=1)
    said: list[str] = []
    for _ in range(2):
        train_once(tmp_path / "models", config, Timings(), said.append, emoji_world.emoji_world(data, "google"))
    assert sum("joint training" in text for text in said) == 1
    folder = tmp_path / "models" / "captioner"
    captioner, _, conditioner = load_loop(folder, tmp_path / "models" / "decoder", folder)
    pictures = emoji_world.read_split(data, "google", "val").pictures_N3HW
    captions = captioner.sample(pictures.expand(32, -1, -1, -1), torch.Generator().manual_seed(0))
    words = set(json.loads((data / "words.json").read_text(encoding="utf-8")))
    assert {word for text in captions for word in text.split()} <= words and any(captions)
    tokens = conditioner.tokenize(["red object ball"])
    assert len(captioner.tokenizer) == len(words) + len(RESERVED) and tokens.ids_BT.max() < len(captioner.tokenizer)


def test_held_out_parts_are_means_over_their_pictures(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = emoji_world.read_split(data, "google", "train")
    flag = Emoji("FLAG", "Flags", ("red",), "flag", ())
    held_out = emoji.HeldOut({"names": emoji_world.Split([split.emoji[0], flag], split.images_N3HW), "style": split})
    black = {style: torch.zeros(2, 3, 32, 32) for style in held_out.of}
    monkeypatch.setattr(emoji, "similarities", lambda drawn, source: {"reward": source.mean((1, 2, 3))})
    first, second = split.pictures_N3HW.mean((1, 2, 3)).tolist()
    mean = pytest.approx((first + second) / 2)
    wanted = {"names": mean, "style": mean, "things": pytest.approx(first), "abstract": pytest.approx(second)}
    assert held_out.means(black) == {f"{part}/reward": value for part, value in wanted.items()}


def test_similarities_of_a_picture_with_itself_are_the_largest(data: Path) -> None:
    pictures = emoji_world.read_split(data, "google", "train").pictures_N3HW
    same, other = emoji.similarities(pictures, pictures), emoji.similarities(pictures.flip(0), pictures)
    for figure in emoji.FIGURES:
        torch.testing.assert_close(same[figure], torch.ones(2), atol=1e-3, rtol=0)
        assert bool((other[figure] < 0.99).all())


def test_true_words_are_those_of_the_whole_caption() -> None:
    assert emoji.caption_figures([HAND, HAND], ["people waving", "people red"]) == {"words": 2.0, "true": 0.75}


def report(gain: float) -> dict[str, Any]:
    parts = {f"{part}/{figure}": 0.5 for part in emoji.PARTS for figure in emoji.FIGURES}
    before = {f"{way}/{key}": value for way in emoji.WAYS for key, value in parts.items()} | {"words": 3.0, "true": 0.9}
    after = {key: value + gain for key, value in before.items()}
    rows = [{"arm": arm, "seed": 0, "before": before, "after": after, "curve": []} for arm in emoji.ARMS]
    return {"baselines": dict.fromkeys(emoji.BASELINES, parts), "held_out": 2, "runs": rows}


def test_table_and_bars_are_made_of_the_report_alone() -> None:
    assert all(bar.met for bar in emoji.SecondWorld().bars(report(0.1)))
    assert not any(bar.met for bar in emoji.SecondWorld().bars(report(-0.1)))
    lines = emoji.SecondWorld().table(report(0.1))
    assert sum("nearest caption's picture" in line and "0.500" in line for line in lines) == 6
    assert sum("`u4g`" in line and "0.600 (+0.100 ± 0.000)" in line for line in lines) == 6


@pytest.mark.parametrize("arm", emoji.ARMS)
def test_the_training_commands_learn_from_one_vendor_alone(arm: str, tmp_path: Path) -> None:
    words = emoji.words(arm, tmp_path)
    keys = [override.key_or_group for override in OverridesParser.create().parse_overrides(list(words))]
    assert len(keys) == len(set(keys)) and {"data.train_files", "uae.reward.terms"} <= set(keys)
    assert not any("twitter" in word for word in words)
