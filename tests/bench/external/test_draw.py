# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bench.external.conftest import DPG, GENEVAL, REWRITTEN, write_lines
from verl_uae import UAEPipeline
from verl_uae.bench.draw import DrawSettings
from verl_uae.bench.external.prompts import DrawnPrompts, draw_prompts, grid, read_manifest, read_prompts
from verl_uae.checkpoints.inference import ENTRIES
from verl_uae.errors import ConfigError
from verl_uae.files import sha256_of
from verl_uae.seeding import generator

STEPS = {"num_inference_steps": 2, "guidance_scale": 2.0}


class Bench:
    """A pipeline and a folder to draw into."""

    def __init__(self, pipe: UAEPipeline, model: Path, out: Path) -> None:
        self.pipe, self.out = pipe, out
        self.settings = DrawSettings(model=str(model), seed=3)

    def __call__(self, bench: Any, source: Path, rewritten: Path | None = None, **options: Any) -> DrawnPrompts:
        names = {field.name for field in dataclasses.fields(DrawSettings)}
        settings = dataclasses.replace(self.settings, **{k: v for k, v in options.items() if k in names})
        rest = {key: value for key, value in options.items() if key not in (*names, *ENTRIES)}
        entries = {key: value for key, value in options.items() if key in ENTRIES}
        self.pipe.register_to_config(**{**STEPS, "negative_prompt": "ugly", **entries})
        prompts = read_prompts(bench, source, rewritten, samples=rest.pop("samples", None))
        return draw_prompts(self.pipe, prompts, self.out, settings, **rest)

    def bytes(self) -> dict[str, bytes]:
        images = self.out / "images"
        return {p.relative_to(images).as_posix(): p.read_bytes() for p in images.rglob("*") if p.is_file()}

    def sample(self, drawn: str, original: str, number: int, occurrence: int = 0) -> Image.Image:
        """What the pipeline itself draws with the noise of a sample."""
        digest = hashlib.sha256(original.encode()).hexdigest()
        noise = generator(3, "bench prompt noise", digest, occurrence, number)
        return self.pipe(drawn, generator=noise, **STEPS).images[0]


@pytest.fixture
def bench(drawing_pipe: UAEPipeline, model_folder: Path, tmp_path: Path) -> Bench:
    return Bench(drawing_pipe, model_folder, tmp_path / "out")


def same(path: Path, image: Image.Image) -> bool:
    return np.array_equal(np.asarray(Image.open(path)), np.asarray(image))


def test_geneval_has_samples_of_the_pipeline_and_the_metadata(bench: Bench, geneval_file: Path) -> None:
    drawn = bench("geneval", geneval_file, samples=2, with_grid=True)
    assert (drawn.pictures, drawn.kept) == (6, 0)
    expected = {f"0000{p}/samples/000{n}.png" for p in range(3) for n in range(2)}
    expected |= {f"0000{p}/{name}" for p in range(3) for name in ("metadata.jsonl", "grid.png")}
    assert set(bench.bytes()) == expected
    images = bench.out / "images"
    samples = [bench.sample("a photo of a cow", "a photo of a cow", n) for n in range(2)]
    assert all(same(images / f"00001/samples/000{n}.png", samples[n]) for n in range(2))
    assert not same(images / "00001/samples/0001.png", samples[0])
    assert same(images / "00001/grid.png", grid(samples))
    assert (images / "00002/metadata.jsonl").read_text() == json.dumps(GENEVAL[2])
    manifest = read_manifest(bench.out)
    assert (manifest["prompts"], manifest["samples_per_prompt"], manifest["pictures"]) == (3, 2, 6)
    assert manifest["prompt_set"] == "original" and manifest["drawing"]["num_inference_steps"] == 2
    assert manifest["drawing"]["resolution"] == 32


def test_rewritten_prompts_start_from_the_same_noise(bench: Bench, geneval_file: Path, rewritten_file: Path) -> None:
    bench("geneval", geneval_file, rewritten_file, samples=1)
    assert same(bench.out / "images/00000/samples/0000.png", bench.sample(REWRITTEN[0], "a photo of a bench", 0))
    metadata = json.loads((bench.out / "images/00000/metadata.jsonl").read_text())
    assert metadata == GENEVAL[0] | {"drawn_prompt": REWRITTEN[0]}
    assert read_manifest(bench.out)["prompt_set"] == "rewritten"


def test_dpg_is_a_grid_of_four_and_may_be_resampled(bench: Bench, dpg_folder: Path) -> None:
    for name in ("10.txt", "partiprompts97.txt"):
        (dpg_folder / name).unlink()
    bench("dpg", dpg_folder)
    text = DPG["2"]
    samples = [bench.sample(text, text, n) for n in range(4)]
    assert set(bench.bytes()) == {"2.png"}
    assert same(bench.out / "images/2.png", grid(samples))
    bench("dpg", dpg_folder, resolution=16)
    small = Image.open(bench.out / "images/2.png").crop((16, 0, 32, 16))
    assert np.array_equal(np.asarray(small), np.asarray(samples[1].resize((16, 16), Image.Resampling.LANCZOS)))
    assert read_manifest(bench.out)["scorer"]["command"].endswith(f"{bench.out / 'images'} 16")


def test_genevalpp_is_one_jpeg_per_line(bench: Bench, genevalpp_file: Path) -> None:
    bench("genevalpp", genevalpp_file)
    assert set(bench.bytes()) == {"1.jpg", "2.jpg", "3.jpg"}
    drawn = np.asarray(bench.sample("A pink tie", "A pink tie", 0), dtype=float)
    assert np.abs(np.asarray(Image.open(bench.out / "images/2.jpg"), dtype=float) - drawn).mean() < 4


def test_equal_prompts_get_different_noise(bench: Bench, tmp_path: Path) -> None:
    bench("geneval", write_lines(tmp_path / "twice.jsonl", [GENEVAL[0], GENEVAL[0]]), samples=1)
    text = "a photo of a bench"
    assert same(bench.out / "images/00001/samples/0000.png", bench.sample(text, text, 0, occurrence=1))
    assert len(set(bench.bytes().values())) == 3


def test_a_killed_run_goes_on(bench: Bench, geneval_file: Path, tmp_path: Path) -> None:
    bench("geneval", geneval_file, samples=1)
    whole = bench.bytes()

    def kill(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    bench.out = tmp_path / "second"
    with pytest.raises(KeyboardInterrupt):
        bench("geneval", geneval_file, samples=1, on_picture=kill)
    with open(bench.out / "records.jsonl", "a") as file:
        file.write('{"file": "00002/sam')
    (bench.out / "images/00000/samples/0000.png").write_bytes(b"cut short")
    drawn = bench("geneval", geneval_file, samples=1)
    assert (drawn.pictures, drawn.kept) == (3, 1) and bench.bytes() == whole
    assert bench("geneval", geneval_file, samples=1).kept == 3


def test_another_setting_draws_anew(bench: Bench, genevalpp_file: Path) -> None:
    """Which settings count is tested where folders are drawn; here, that they are looked at."""
    bench("genevalpp", genevalpp_file)
    before = bench.bytes()
    assert bench("genevalpp", genevalpp_file, negative_prompt="a red circle").kept == 0
    assert set(before.values()).isdisjoint(bench.bytes().values())


def test_another_model_or_prompt_draws_anew(bench: Bench, geneval_file: Path, tmp_path: Path) -> None:
    bench("geneval", geneval_file, samples=1)
    changed = write_lines(tmp_path / "changed.jsonl", [GENEVAL[0], GENEVAL[1] | {"prompt": "a cow"}, GENEVAL[2]])
    assert bench("geneval", changed, samples=1).kept == 2
    copy = tmp_path / "copy"
    shutil.copytree(bench.settings.model, copy)
    (copy / "notes.txt").write_text("altered")
    assert bench("geneval", changed, samples=1, model=str(copy)).kept == 0


def test_nothing_of_another_run_is_left_for_the_scorer(bench: Bench, geneval_file: Path, tmp_path: Path) -> None:
    """Even a run that is killed at its first picture has only pictures of its own."""
    bench("geneval", geneval_file, samples=2)
    (bench.out / "images/notes.md").write_text("mine")

    def kill(*_: int) -> None:
        raise KeyboardInterrupt

    fewer = write_lines(tmp_path / "fewer.jsonl", GENEVAL[:2])
    with pytest.raises(KeyboardInterrupt):
        bench("geneval", fewer, samples=1, seed=9, on_picture=kill)
    assert set(bench.bytes()) == {
        "00000/metadata.jsonl", "00000/samples/0000.png", "00001/metadata.jsonl", "notes.md"
    }  # fmt: skip
    assert not (bench.out / "images/00002").exists()


def test_shards_draw_the_same_together(bench: Bench, geneval_file: Path, tmp_path: Path) -> None:
    bench("geneval", geneval_file, samples=1)
    whole = bench.bytes()
    bench.out = tmp_path / "shards"
    assert bench("geneval", geneval_file, samples=1, shard=(1, 2)).pictures == 1
    assert bench("geneval", geneval_file, samples=1, shard=(0, 2)).pictures == 2
    assert bench.bytes() == whole
    assert {path.name for path in bench.out.glob("records*")} == {
        "records-00000-of-00002.jsonl", "records-00001-of-00002.jsonl"
    }  # fmt: skip
    # Another number of processes knows what is there.
    assert bench("geneval", geneval_file, samples=1).kept == 3


def test_a_shard_reads_its_own_pictures_alone(
    bench: Bench, geneval_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another one may be deleted at any moment."""
    bench("geneval", geneval_file, samples=1)
    read: list[Path] = []
    monkeypatch.setattr("verl_uae.bench.draw.sha256_of", lambda path: read.append(path) or sha256_of(path))
    assert bench("geneval", geneval_file, samples=1, shard=(1, 2)).kept == 1
    assert [path.parts[-3] for path in read if path.is_relative_to(bench.out)] == ["00001"]


def test_foreign_folders_are_refused(bench: Bench, geneval_file: Path, genevalpp_file: Path) -> None:
    (bench.out / "images").mkdir(parents=True)
    (bench.out / "images/1.jpg").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="not of an earlier run"):
        bench("genevalpp", genevalpp_file)
    assert (bench.out / "images/1.jpg").read_bytes() == b"precious"
    (bench.out / "images/1.jpg").unlink()
    bench("genevalpp", genevalpp_file)
    with pytest.raises(ConfigError, match="has the pictures of genevalpp"):
        bench("geneval", geneval_file)
    with pytest.raises(ConfigError, match="--grid"):
        bench("genevalpp", genevalpp_file, with_grid=True)


def test_a_cut_prompt_is_counted(make_pipe: Callable[..., UAEPipeline], model_folder: Path, tmp_path: Path) -> None:
    bench = Bench(make_pipe(), model_folder, tmp_path / "out")
    lines = [{"tag": "counting", "prompt": "red " * 60}, {"tag": "counting", "prompt": "red"}]
    assert bench("geneval", write_lines(tmp_path / "long.jsonl", lines), samples=2).truncated == 2
