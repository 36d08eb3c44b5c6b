# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from PIL import Image

from verl_uae.checkpoints.manifest import LICENCE_NOTE, PACKAGES, Card, data_digests, flat
from verl_uae.checkpoints.record import RunConfig
from verl_uae.versions import versions

CARD = Card(
    title="A model",
    origin="Trained somehow.",
    base_models={"captioner": "Qwen/Qwen2.5-VL-3B-Instruct"},
    data={"train.parquet": "ab" * 32},
    constants={"uae.seed": 3, "uae.decoder.path": "/home/me/models/x", "uae.files": ["~/a.py", "b/c"]},
    rewards=[
        {"name": "clip", "label": None, "weight": 0.5, "params": {"model": "vit"}},
        {"name": "pixel", "label": "near", "weight": 0.25, "held_out": True, "params": {}},
        {"name": "clip", "label": None, "weight": 0.125},
    ],
    evaluation={"reward": 0.123456789},
)


def rows(text: str, title: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_card_says_everything_it_was_given() -> None:
    text = CARD.render()
    assert yaml.safe_load(text.split("---")[1]) == {
        "library_name": "diffusers",
        "pipeline_tag": "any-to-any",
        "license": "other",
        "tags": ["verl-uae"],
        "base_model": ["Qwen/Qwen2.5-VL-3B-Instruct"],
    }
    assert "\n# A model\n" in text and "Trained somehow." in text and LICENCE_NOTE in text
    assert rows(text, "Base models") == [["captioner", "Qwen/Qwen2.5-VL-3B-Instruct"]]
    assert rows(text, "Training data") == [["train.parquet", "ab" * 32]]
    assert rows(text, "Constants") == [
        ["uae.seed", "3"],
        ["uae.decoder.path", "x"],
        ["uae.files", "['a.py', 'b/c']"],
    ]
    assert rows(text, "Evaluation") == [["reward", "0.123457"]]
    assert rows(text, "Versions") == [list(pair) for pair in versions(PACKAGES).items()]
    assert rows(text, "Reward terms") == [
        ["0: clip", "weight=0.5, params={'model': 'vit'}"],
        ["1: near", "weight=0.25, held_out=True"],
        ["2: clip", "weight=0.125"],
    ]


def test_what_is_unknown_is_left_out() -> None:
    text = Card("A model", "Made.", {"captioner": "/home/me/models/x", "vae": "", "all": "nothing"}).render()
    assert "base_model" not in text.split("---")[1]
    text = Card("A model", "Made.", {}).render()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Use", "## Versions", "## Licence"]


def test_texts_cannot_break_the_table_or_open_a_tag() -> None:
    text = Card("x\n# y", "z", {"a|b": "<script>\n## Licence & more"}).render()
    assert "| a\\|b | &lt;script> ## Licence &amp; more |" in text
    assert "\n# x # y\n" in text and text.count("\n## Licence") == 1


def test_data_files_are_named_by_their_digest(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"rows")
    digests = data_digests([tmp_path / "train.parquet", str(tmp_path / "gone.parquet")])
    assert digests == {"train.parquet": hashlib.sha256(b"rows").hexdigest(), "gone.parquet": "not found"}


def test_nested_settings_become_full_keys() -> None:
    settings = {"seed": 1, "train": {"ema": {"decay": 0.9}, "optim": {}, "names": ["a"]}}
    assert dict(flat(settings, "uae")) == {
        "uae.seed": 1,
        "uae.train.ema.decay": 0.9,
        "uae.train.optim": {},
        "uae.train.names": ["a"],
    }


def test_the_card_of_a_run_has_the_keys_of_its_stage() -> None:
    sections = {"pretrain": {"shift": 3.0}, "u4g": {"num_steps": 10, "guidance": 1.0}, "decoder": {"dtype": "bf16"}}
    keys = {}
    for stage in ("g4u", "pretrain", "unknown"):
        run = RunConfig(OmegaConf.create({"uae": {"stage": stage, **sections}}))
        keys[stage] = set(run.card("A model", "Made.", {}, {}).constants) - {"uae.stage"}
    assert keys["g4u"] == {"uae.u4g.guidance", "uae.decoder.dtype"}
    assert keys["pretrain"] == {"uae.u4g.guidance", "uae.pretrain.shift"}
    assert len(keys["unknown"]) == 4


def test_pictures_of_the_card_are_in_the_folder_without_what_their_file_says_besides(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "at home"
    Image.new("RGB", (64, 32), (200, 0, 0)).save(tmp_path / "mine.jpg", exif=exif)
    folder = tmp_path / "model"
    folder.mkdir()
    replace(CARD, pictures=tmp_path / "mine.jpg").write(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "](pictures.png)" in text and "mine" not in text and "](pictures" not in CARD.render()
    with Image.open(folder / "pictures.png") as shown:
        assert shown.size == (64, 32) and not shown.getexif() and "at home" not in str(shown.info)
