# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.chain.conftest import picture
from verl_uae import UAEPipeline
from verl_uae.bench.draw import Drawn, DrawSettings, draw_folder, fingerprint, settings_digest
from verl_uae.checkpoints.inference import ENTRIES
from verl_uae.data.captions import read_captions
from verl_uae.data.images import image_digest
from verl_uae.errors import ConfigError
from verl_uae.seeding import generator

FAST = {"num_inference_steps": 2, "guidance_scale": 2.0, "negative_prompt": "ugly", "max_new_tokens": 6}


class Bench:
    """A folder of three originals and everything to reconstruct it."""

    def __init__(self, pipe: UAEPipeline, model: Path, root: Path) -> None:
        self.pipe, self.images, self.out = pipe, root / "images", root / "out"
        self.settings = DrawSettings(model=str(model), seed=3)
        (self.images / "sub").mkdir(parents=True)
        for index, name in enumerate(("a.png", "b.png", "sub/c.jpg")):
            picture(index).save(self.images / name)

    def __call__(self, captions: dict[str, str] | None = None, **changes: Any) -> Drawn:
        entries = {name: changes.pop(name) for name in list(changes) if name in ENTRIES}
        self.pipe.register_to_config(**{**FAST, **entries})
        settings = dataclasses.replace(self.settings, **changes)
        return draw_folder(self.pipe, self.images, self.out, settings, captions)

    def bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.out / "pictures").iterdir()}

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "captions.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(drawing_pipe: UAEPipeline, model_folder: Path, tmp_path: Path) -> Bench:
    return Bench(drawing_pipe, model_folder, tmp_path)


def test_pictures_and_captions_are_those_of_the_pipeline(bench: Bench) -> None:
    drawn = bench()
    assert drawn.reasons == {} and drawn.kept == 0 and set(drawn.captions) == {"a.png", "b.png", "sub/c.jpg"}
    assert set(bench.bytes()) == {"recon_a.png", "recon_b.png", "recon_c.png"}
    assert read_captions(bench.out / "captions.jsonl") == drawn.captions
    (caption,) = bench.pipe.caption(picture(1), max_new_tokens=6)
    assert drawn.captions["b.png"] == caption
    source = generator(3, "bench noise", image_digest(picture(1)))
    expected = bench.pipe(caption, num_inference_steps=2, guidance_scale=2.0, generator=source).images[0]
    assert np.array_equal(np.asarray(Image.open(bench.out / "pictures" / "recon_b.png")), np.asarray(expected))
    settings = json.loads((bench.out / "drawing.json").read_text())
    assert settings == drawn.settings
    assert (settings["seed"], settings["num_inference_steps"], settings["captions"]) == (3, 2, "model")
    assert (settings["condition_length"], settings["caption_prompt"]) == (20, "<image>describe")


def test_the_same_run_again_draws_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench()
    before, records = bench.bytes(), bench.records()
    monkeypatch.setattr(UAEPipeline, "generate", None)
    monkeypatch.setattr(UAEPipeline, "caption", None)
    again = bench()
    assert again.kept == 3 and len(again.captions) == 3
    assert bench.bytes() == before and bench.records() == records


def test_a_killed_run_goes_on_and_ends_alike(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench()
    whole, records = bench.bytes(), bench.records()
    shutil.rmtree(bench.out)
    generate, calls = UAEPipeline.generate, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(UAEPipeline, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        bench()
    with open(bench.out / "captions.jsonl", "a") as file:
        file.write('{"file": "sub/c.jpg", "capt')  # the line that was being written
    (bench.out / "pictures" / ".recon_c.png.part").write_bytes(b"half")
    assert len(bench.bytes()) == 3
    calls.append(())
    assert bench().kept == 2
    assert len(calls) == 5
    assert bench.records() == records
    assert {name: data for name, data in bench.bytes().items() if not name.startswith(".")} == whole


def test_other_settings_draw_anew(bench: Bench) -> None:
    for name in ("b.png", "sub/c.jpg"):
        (bench.images / name).unlink()
    first = bench()
    seen = set(bench.bytes().values())
    for changes in ({"seed": 4}, {"num_inference_steps": 3}, {"guidance_scale": 1.5}, {"negative_prompt": "blue"}):
        assert bench(**changes).kept == 0
        assert seen.isdisjoint(bench.bytes().values()), changes
        assert first.captions == read_captions(bench.out / "captions.jsonl")
        seen |= set(bench.bytes().values())


def test_only_what_changed_is_drawn_anew(bench: Bench) -> None:
    bench()
    before = bench.bytes()
    picture(9).save(bench.images / "a.png")  # another original
    (bench.out / "pictures" / "recon_b.png").write_bytes(before["recon_c.png"])  # a damaged reconstruction
    assert bench().kept == 1
    after = bench.bytes()
    assert after["recon_a.png"] != before["recon_a.png"]
    assert {name: after[name] for name in ("recon_b.png", "recon_c.png")} == {
        name: before[name] for name in ("recon_b.png", "recon_c.png")
    }


def test_an_original_that_is_gone_takes_its_reconstruction_with_it(bench: Bench) -> None:
    bench()
    (bench.images / "a.png").unlink()
    assert set(bench().captions) == {"b.png", "sub/c.jpg"}
    assert set(bench.bytes()) == {"recon_b.png", "recon_c.png"} and len(bench.records()) == 2


def test_given_captions_are_drawn_by_path_or_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UAEPipeline, "caption", None)
    given = {"a.png": "a red circle", "c.jpg": "blue", "other.png": "nothing"}
    drawn = bench(given)
    assert drawn.captions == {"a.png": "a red circle", "sub/c.jpg": "blue"}
    assert drawn.reasons == {"b.png": "no caption was given for it"}
    assert drawn.settings["captions"] == "given" and "temperature" not in drawn.settings
    before = bench.bytes()
    again = bench({**given, "c.jpg": "green", "b.png": ""})
    assert again.kept == 1 and again.reasons == {} and again.captions["b.png"] == ""
    assert bench.bytes()["recon_a.png"] == before["recon_a.png"]
    assert bench.bytes()["recon_c.png"] != before["recon_c.png"]


def test_swapped_captioners_share_their_noise(bench: Bench) -> None:
    """The pictures of a captioner drawn from its captions alone are its own."""
    drawn = bench()
    before = bench.bytes()
    assert bench(dict(drawn.captions)).kept == 0
    assert bench.bytes() == before


def test_bad_originals_cost_only_themselves(bench: Bench) -> None:
    bench()
    (bench.images / "a.png").write_bytes(b"no picture")
    picture(5).save(bench.images / "b.webp")
    drawn = bench()
    assert set(drawn.captions) == {"b.png", "sub/c.jpg"} and drawn.kept == 2
    assert "not an image" in drawn.reasons["a.png"]
    assert drawn.reasons["b.webp"] == "its reconstruction would have the name of that of b.png"
    assert set(bench.bytes()) == {"recon_b.png", "recon_c.png"}


def test_impossible_folders(bench: Bench, tmp_path: Path) -> None:
    bench.out = bench.images / "out"
    with pytest.raises(ConfigError, match="would count as originals"):
        bench()
    bench.out, bench.images = tmp_path / "out", tmp_path / "empty"
    bench.images.mkdir()
    with pytest.raises(ConfigError, match="no pictures"):
        bench()


def test_settings_are_those_of_the_weights_and_a_hub_id_stands_for_its_own() -> None:
    of = {"seed": 0, "captioner": None, "model_fingerprint": "f"}
    assert settings_digest(of | {"model": "a"}) == settings_digest(of | {"model": "moved"})
    assert settings_digest(of | {"model": "a"}) != settings_digest(of | {"model": "a", "model_fingerprint": "g"})
    hub = of | {"model_fingerprint": None}
    assert settings_digest(hub | {"model": "owner/a"}) != settings_digest(hub | {"model": "owner/b"})


def test_fingerprint_follows_the_manifest_or_the_files(tmp_path: Path, save: Callable[..., Path]) -> None:
    assert fingerprint("owner/name") is None
    save(tmp_path / "m" / "w.png")
    first = fingerprint(str(tmp_path / "m"))
    assert first == fingerprint(str(tmp_path / "m"))
    (tmp_path / "m" / "w.png").write_bytes(b"other")
    second = fingerprint(str(tmp_path / "m"))
    (tmp_path / "m" / "manifest.json").write_text("{}")
    third = fingerprint(str(tmp_path / "m"))
    assert len({first, second, third}) == 3
    save(tmp_path / "m" / "w.png")
    assert fingerprint(str(tmp_path / "m")) == third


def test_long_and_foreign_names_are_drawn_and_kept(bench: Bench) -> None:
    (bench.images / "a.png").rename(bench.images / ("n" * 248 + ".png"))
    try:
        (bench.images / "b.png").rename(bench.images / "caf\udce9.png")
    except OSError:
        pytest.skip("the file system takes only UTF-8 names")
    drawn = bench()
    assert not drawn.reasons and len(drawn.captions) == 3 and "recon_caf\\xe9.png" in bench.bytes()
    assert bench().kept == 3
    given = bench({"caf\\xe9.png": "red", "./sub/c.jpg": "blue", "n" * 248 + ".png": "half \ud83d"})
    assert given.captions == {"caf\udce9.png": "red", "sub/c.jpg": "blue"}
    assert "half of a surrogate pair" in given.reasons["n" * 248 + ".png"]
