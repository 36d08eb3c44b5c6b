# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.data.conftest import encode, picture
from tests.data.shard_world import members, tar_bytes, write_shards
from verl_uae.data.buckets import Buckets
from verl_uae.data.images import image_digest
from verl_uae.data.limits import ImageLimits
from verl_uae.data.pairs import Pair, PairShards, pair_of
from verl_uae.data.rows import CheckSettings
from verl_uae.data.tar import read_samples
from verl_uae.errors import ConfigError, DataError

BUCKETS = Buckets.around(64, step=16)
COUNTS = [7, 5, 9, 6]


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    return write_shards(tmp_path / "shards", COUNTS)


def stream(pattern: str, batch_size: int = 4, **options: Any) -> PairShards:
    return PairShards(pattern, BUCKETS, batch_size, seed=3, **options)


def captions(batches: list[list[Pair]]) -> list[list[str]]:
    return [[pair.caption for pair in batch] for batch in batches]


def take(batches: Iterator[list[Pair]], count: int) -> list[list[Pair]]:
    return [next(batches) for _ in range(count)]


def test_batches_are_whole_and_of_one_bucket(pattern: str) -> None:
    batches = list(running := iter(stream(pattern, epochs=1)))
    for batch in batches:
        assert len(batch) == 4 and len({BUCKETS.bucket_of(pair.width, pair.height) for pair in batch}) == 1
    seen = [pair.caption for batch in batches for pair in batch]
    # 9 of 27 are wide and 18 square: 8 and 16 of them fill batches.
    assert len(seen) == len(set(seen)) == 24 and running.counts.good == 27 and running.counts.dropped == 3
    assert next(running, None) is None and running.counts.dropped == 3


def test_a_sample_becomes_a_pair(pattern: str) -> None:
    for batch in stream(pattern, batch_size=1, epochs=1):
        (pair,) = batch
        number = int(pair.caption.split()[1])
        size = (48, 24) if number % 3 == 0 else (32, 32)
        shard = next(place for place in range(4) if number < sum(COUNTS[: place + 1]))
        assert pair.file.endswith(f"train-{shard:03d}.tar") and pair.row == number - sum(COUNTS[:shard])
        assert (pair.width, pair.height) == size and pair.digest is None
        assert image_digest(pair.decode()) == image_digest(picture(*size, number))


def test_nothing_is_lost_between_epochs(pattern: str) -> None:
    """The stream without an end gives every sample as often as any other, up to what waits."""
    running = iter(stream(pattern))
    seen = Counter(pair.caption for batch in take(running, 27) for pair in batch)
    assert sum(seen.values()) == 4 * 27 and len(seen) == 27 and set(seen.values()) <= {3, 4, 5}
    waiting = len(running.state_dict()["waiting"])
    assert running.counts.good == 4 * 27 + waiting and running.counts.dropped == 0


def test_order_of_shards_is_named_by_seed_and_epoch(pattern: str) -> None:
    shards, same = stream(pattern), stream(pattern)
    assert captions(take(iter(shards), 20)) == captions(take(iter(same), 20))
    orders = [tuple(shards.order(epoch)) for epoch in range(8)]
    assert len(set(orders)) > 3 and all(sorted(order) == shards.urls for order in orders)
    assert orders != [tuple(PairShards(pattern, BUCKETS, 4, seed=4).order(epoch)) for epoch in range(8)]
    plain = [pair.caption for batch in stream(pattern, 1, shuffle=False, epochs=1) for pair in batch]
    assert plain == [f"caption {number}" for number in range(27)]


def test_resume_at_every_batch(pattern: str) -> None:
    whole = captions(take(iter(stream(pattern)), 40))
    running = iter(stream(pattern))
    for place in range(20):
        state = json.loads(json.dumps(running.state_dict()))
        resumed = iter(stream(pattern))
        resumed.load_state_dict(state)
        assert captions(take(resumed, 20)) == whole[place : place + 20]
        follower = iter(stream(pattern))
        follower.load_state_dict(resumed.state_dict())
        assert captions(take(follower, 1)) == captions(take(resumed, 1)) and follower.counts == resumed.counts
        next(running)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resume_of_a_loader_bit_for_bit(workers: int, pattern: str, tmp_path: Path) -> None:
    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(stream(pattern), batch_size=None, num_workers=workers)

    def batches(source: StatefulDataLoader, count: int) -> list[list[Pair]]:
        running = iter(source)
        return [next(running) for _ in range(count)]

    whole = batches(loader(), 30)
    if workers < 2:
        assert whole == take(iter(stream(pattern)), 30)
    else:
        assert len({pair.file for batch in whole for pair in batch}) == 4
    for place in (0, 1, 9, 17):
        interrupted = loader()
        assert batches(interrupted, place) == whole[:place]
        torch.save(interrupted.state_dict(), tmp_path / "data.pt")
        resumed = loader()
        resumed.load_state_dict(torch.load(tmp_path / "data.pt", weights_only=True))
        assert batches(resumed, 12) == whole[place : place + 12]


def test_more_workers_than_shards_are_refused(pattern: str) -> None:
    """The loader passes on the error of its worker as a RuntimeError with the same text."""
    loader = StatefulDataLoader(stream(pattern), batch_size=None, num_workers=5)
    with pytest.raises(RuntimeError, match=r"data\.dataloader_num_workers: 5 workers share 4 shards"):
        next(iter(loader))


def bad_samples(folder: Path) -> Path:
    """One shard with every kind of bad sample between good ones."""
    good = members(0, 12)
    image = good[0][1]
    odd = [
        ("no-caption.png", image),
        ("no-picture.txt", b"words"),
        ("empty.png", image),
        ("empty.txt", b" \n"),
        ("latin.png", image),
        ("latin.txt", b"caf\xe9"),
        ("broken.png", image),
        ("broken.json", b'{"caption": '),
        ("deep.png", image),
        ("deep.json", b"[" * 100_000),
        ("list.png", image),
        ("list.json", b'["caption"]'),
        ("two.png", image),
        ("two.jpg", image),
        ("two.txt", b"words"),
        ("html.png", b"<html>"),
        ("html.txt", b"words"),
        ("pickle.pkl", b"cposix\nsystem\n(S'touch %s'\ntR." % os.fsencode(folder / "ran")),
    ]
    folder.mkdir(exist_ok=True)
    (folder / "odd.tar").write_bytes(tar_bytes([*good[:10], *odd, *good[10:]]))
    return folder / "odd.tar"


def test_bad_samples_cost_themselves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = bad_samples(tmp_path / "x")
    settings = CheckSettings(max_bad_share=0.5, quarantine_dir=str(tmp_path / "q"), log_first=2)
    running = iter(stream(str(shard), 1, epochs=2, settings=settings))
    seen = [batch[0].caption for batch in running]
    assert seen == [f"caption {number}" for number in range(12)] * 2
    assert running.counts.bad == 20 and running.counts.good == 24
    (listed,) = (tmp_path / "q").iterdir()
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    # Once, although two epochs met them.
    assert [entry["row"] for entry in entries] == list(range(5, 15)) and {e["file"] for e in entries} == {str(shard)}
    keys = ("no-caption", "no-picture", "empty", "latin", "broken", "deep", "list", "two", "html", "pickle")
    for entry, key in zip(entries, keys, strict=True):
        assert entry["reason"].startswith(f"{key}: ")
    assert sum("left out" in record.getMessage() for record in caplog.records) == 2
    assert not (tmp_path / "x" / "ran").exists()


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    shard = bad_samples(tmp_path / "x")
    with pytest.raises(DataError, match=r"10 of 22 samples .* more than data\.uae_max_bad_share=0\.3"):
        list(stream(str(shard), 1, epochs=1, settings=CheckSettings(max_bad_share=0.3)))
    # Long before the end of a large epoch, but not at the first of a few.
    content = [(f"{number}.txt", b"words") for number in range(500)]
    (tmp_path / "many.tar").write_bytes(tar_bytes([*members(0, 60, wide=1000), *content]))
    running = iter(stream(str(tmp_path / "many.tar"), 1, settings=CheckSettings(max_bad_share=0.2)))
    assert len(take(running, 60)) == 60
    with pytest.raises(DataError, match=r"40 of 100 samples"):
        next(running)
    (tmp_path / "none.tar").write_bytes(tar_bytes([("x.txt", b"words")]))
    with pytest.raises(DataError, match="no usable sample in 1 shards"):
        next(iter(stream(str(tmp_path / "none.tar"), settings=CheckSettings(max_bad_share=1.0))))


@pytest.mark.parametrize("damage", ["cut", "header", "nothing", "gone"])
def test_a_damaged_shard_costs_its_rest(
    damage: str, pattern: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = tmp_path / "shards" / "train-002.tar"
    shards = stream(pattern, 1, shuffle=False, epochs=2, settings=CheckSettings(max_bad_share=0.3))
    whole = bytearray(shard.read_bytes())
    at = whole.index(b"00016.png")  # the fifth sample of nine
    if damage == "cut":
        shard.write_bytes(whole[: at + 600])
    elif damage == "header":
        whole[at : at + 100] = bytes(range(100))
        shard.write_bytes(whole)
    elif damage == "nothing":
        shard.write_bytes(b"")
    else:
        shard.unlink()
    with caplog.at_level(logging.WARNING):
        running = iter(shards)
        seen = [int(batch[0].caption.split()[1]) for batch in running]
    rest = {*range(12), *range(21, 27)}
    lost = {"cut": {16, 17, 18, 19, 20}, "header": {16, 17, 18, 19, 20}}.get(damage, set(range(12, 21)))
    assert set(seen) in (rest | set(range(12, 21)) - lost, rest | set(range(12, 21)) - lost - {15})
    assert running.counts.damaged == 2 and running.counts.good == len(seen)
    assert f"{shard}: the shard is lost from sample" in caplog.text


def test_resume_over_bad_samples_and_damage(pattern: str, tmp_path: Path) -> None:
    shard = tmp_path / "shards" / "train-002.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    bad_samples(tmp_path / "shards")
    patterns = [pattern, str(tmp_path / "shards" / "odd.tar")]
    make = partial(PairShards, patterns, BUCKETS, 3, seed=1, settings=CheckSettings(max_bad_share=0.6))
    whole, counts, running = take(reference := iter(make()), 30), reference.counts, iter(make())
    for place in range(25):
        resumed = iter(make())
        resumed.load_state_dict(running.state_dict())
        assert take(resumed, 30 - place) == whole[place:] and resumed.counts == counts
        next(running)


def test_state_of_other_data_is_refused(pattern: str, tmp_path: Path) -> None:
    running = iter(stream(pattern))
    state = running.state_dict()
    while not state["waiting"]:
        next(running)
        state = running.state_dict()
    others = (
        stream(pattern, 5),
        PairShards(pattern, BUCKETS, 4, seed=9),
        PairShards(pattern, Buckets.single(64), 4, seed=3),
        stream(pattern.replace("003", "002")),
    )
    for other in others:
        with pytest.raises(ConfigError, match="saved place"):
            iter(other).load_state_dict(state)
    # The shard has shrunk below the place, or what waited is gone.
    for file in (tmp_path / "shards").iterdir():
        file.write_bytes(tar_bytes([("x.txt", b"words")]))
    with pytest.raises(DataError, match="waited for its batch is gone"):
        iter(stream(pattern)).load_state_dict(state)
    resumed = iter(stream(pattern))
    resumed.load_state_dict(state | {"waiting": [], "number": 2})
    with pytest.raises(DataError, match="has changed: 1 samples, 2 were read before"):
        next(resumed)


def test_captions_and_digests_of_json(tmp_path: Path) -> None:
    image = encode(picture(32, 32))
    about = {"caption": "from json", "sha256": image_digest(picture(32, 32))}
    content = [("a.png", image), ("a.json", json.dumps(about).encode())]
    content += [
        ("b.png", image),
        ("b.json", json.dumps({**about, "sha256": "x"}).encode()),
        ("b.txt", b"from text\r\n"),
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(content))
    (first,), (second,) = iter(stream(str(tmp_path / "a.tar"), 1, epochs=1))
    assert (first.caption, first.digest) == ("from json", about["sha256"])
    assert (second.caption, second.digest) == ("from text", None)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(pattern: str, tmp_path: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(tmp_path / "shards"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_shards_behind_a_url(server: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    remote = stream(f"{server}/train-{{000..003}}.tar", shuffle=False)
    local = stream(pattern, shuffle=False)
    found, running = take(reading := iter(remote), 9), iter(local)
    assert captions(found) == captions(take(running, 9))
    resumed = iter(remote)
    resumed.load_state_dict(reading.state_dict())
    assert captions(take(resumed, 3)) == captions(take(running, 3))
    missing = stream(f"{server}/train-{{000..004}}.tar", epochs=1, settings=CheckSettings(max_bad_share=0.1))
    assert len(list(lossy := iter(missing))) == 6 and lossy.counts.damaged == 1


def test_impossible_arguments_are_named(pattern: str) -> None:
    for options in ({"batch_size": 0}, {"batch_size": 4, "epochs": 0}):
        with pytest.raises(ConfigError, match=r"batch_size|epochs"):
            PairShards(pattern, BUCKETS, **options)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            [("a.jpg", b"x"), ("a.caption", b"c")],
            "a: caption is missing; it is the entry .txt, or the field caption of .json; found: .jpg, .caption",
        ),
        ([("a.jpg", b"x"), ("a.json", b'{"text": "c", "url": "u"}')], "found: .jpg, .json, with the fields text, url"),
        ([("a.jpg", b"x"), ("a.json", b"[]")], "found: .jpg, .json, with the fields none"),
        (
            [("a.txt", b"c"), ("a.jfif", b"x")],
            "a: 0 entries of jpg, jpeg, png, webp, one is needed; found: .txt, .jfif",
        ),
        ([("a.jpg", b"x"), ("a.json", b'{"caption": "red \\ud83d"}')], "caption holds half of a surrogate pair"),
        ([("a.jpg", b"x"), ("a.txt", b" \n")], "a: caption is missing: white space alone"),
        ([("a.jpg", b"x"), ("a.txt", "it\u2019s".encode("cp1252"))], "a: text entry: byte 0x92 in line 1 is not UTF-8"),
        ([("a.jpg", b"x"), ("a.txt", "c".encode("utf-16"))], "a: text entry: is UTF-16: save it as UTF-8"),
        ([("a.jpg", b"x"), ("a.json", b'{"caption": ' + b"9" * 5000)], "a: text entry"),
        ([("a.jpg", b"x"), ("a.json", b"[" * 100_000)], "a: text entry"),
        ([("\udce9.jpg", b"x"), ("\udce9.cls", b"x")], "\\xe9: caption is missing"),
    ],
)
def test_a_sample_without_a_pair_says_what_was_found(content: list, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(content))
    (sample,) = read_samples(str(tmp_path / "a.tar"), 2**20)
    found = pair_of(sample, "a.tar", ImageLimits())
    assert isinstance(found, str) and reason in found
    found.encode()


def test_shards_as_other_tools_write_them(tmp_path: Path) -> None:
    """All pictures first and a byte order mark are read; a compressed one is named."""
    content = [(f"{n}.jpg", encode(picture(32, 32, n), "JPEG")) for n in range(4)]
    texts = [(f"{n}.txt", f"\ufeffcaption {n}".encode()) for n in range(4)]
    (tmp_path / "a.tar").write_bytes(tar_bytes([*content, *texts]))
    pairs = PairShards(str(tmp_path / "a.tar"), Buckets.single(32), 1, shuffle=False, epochs=1)
    assert [pair.caption for (pair,) in pairs] == [f"caption {n}" for n in range(4)]
    (tmp_path / "b.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    broken = PairShards(
        f"{tmp_path}/[ab].tar",
        Buckets.single(32),
        1,
        shuffle=False,
        epochs=1,
        settings=CheckSettings(quarantine_dir=str(tmp_path / "q")),
    )
    with pytest.raises(DataError, match="the shard is lost from sample 0 on: DamagedShard: compressed with gzip"):
        list(broken)
