# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""uae.conditioner.length=null: a number at the start of every run, wherever it is from."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer

from verl_uae.checkpoints.names import MODEL_INDEX, RUN_INFERENCE
from verl_uae.config.condition_length import LONGEST, MULTIPLE, length_words, resolve_length
from verl_uae.errors import ConfigError

WORDS = ("a", "red", "circle", "and", "two", "blue", "squares", "on", "green", "ground")


def captions(count: int, most: int) -> list[str]:
    return [" ".join(WORDS[i % len(WORDS)] for i in range(1 + number * most // count)) for number in range(count)]


def counted(folder: Path, caption: str) -> int:
    """Tokens of a caption in its turn, by the tokenizer's own template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "generate", "content": caption}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def decoder(tiny_models: Path, tmp_path: Path) -> Path:
    """The tiny decoder without what it says of its training."""
    root = tmp_path / "decoder"
    root.mkdir()
    for part in (tiny_models / "decoder").iterdir():
        if part.is_dir():
            (root / part.name).symlink_to(part)
    return root


@pytest.fixture
def run(compose: Callable[..., Any], tiny_overrides: list[str], decoder: Path, tmp_path: Path) -> Callable[..., Any]:
    def composed(name: str, *overrides: str) -> Any:
        own = [
            f"uae.decoder.path={decoder}",
            f"trainer.default_local_dir={tmp_path}/run",
            "uae.conditioner.length=null",
        ]
        return compose(*tiny_overrides, *own, *overrides, name=name)

    return composed


def resolved(config: Any) -> int:
    resolve_length(config)
    return config.uae.conditioner.length


def rows(path: Path, texts: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"extra_info": {"caption": text}}) + "\n" for text in texts))
    return path


def shard(path: Path, texts: list[str]) -> Path:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    with tarfile.open(path, "w") as archive:
        for number, text in enumerate(texts):
            for ending, content in (("png", picture.getvalue()), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("uae_pretrain", "rows"),
        ("uae_pretrain", "shard"),
        ("uae_cold_start", "rows"),
        ("uae_cold_start", "shard"),
        ("uae_u4g", "rows"),
    ],
)
def test_it_holds_the_captions_of_the_data(
    run: Callable[..., Any], tiny_models: Path, tmp_path: Path, name: str, kind: str
) -> None:
    texts = captions(40, 150)
    file = rows(tmp_path / "a.jsonl", [*texts, None, ""]) if kind == "rows" else shard(tmp_path / "a.tar", texts)
    source = ["uae.u4g.captions.source=column"] if name == "uae_u4g" else []
    found = resolved(run(name, f"data.train_files={file}", *source))
    longest = max(counted(tiny_models / "captioner", text) for text in texts)
    assert found == -(-longest // MULTIPLE) * MULTIPLE > MULTIPLE


def test_one_caption_in_a_thousand_does_not_decide(
    run: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["a circle"] * 1999 + ["a circle " * 300]
    config = run("uae_pretrain", f"data.train_files={rows(tmp_path / 'a.jsonl', texts)}")
    assert resolved(config) == MULTIPLE
    assert "uae.conditioner.length=64: holds 2000 captions of the data, of which 1 are cut" in caplog.text
    texts[:3] = texts[-1:] * 3
    assert resolved(run("uae_pretrain", f"data.train_files={rows(tmp_path / 'b.jsonl', texts)}")) > MULTIPLE


@pytest.mark.parametrize(("count", "long", "decides"), [(999, 1, True), (1000, 1, False), (1000, 2, True)])
def test_999_of_1000_captions_are_held(
    run: Callable[..., Any], tmp_path: Path, count: int, long: int, decides: bool
) -> None:
    texts = ["a circle"] * (count - long) + ["a circle " * 300] * long
    found = resolved(run("uae_pretrain", f"data.train_files={rows(tmp_path / 'a.jsonl', texts)}"))
    assert (found > MULTIPLE) == decides


def test_a_caption_of_a_book_ends_at_the_longest(
    run: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = rows(tmp_path / "a.jsonl", ["a circle", "a circle " * 4000])
    assert resolved(run("uae_pretrain", f"data.train_files={file}")) == LONGEST
    assert "2 captions of the data, of which 1 are cut" in caplog.text


@pytest.mark.parametrize("name", ["uae_g4u", "uae_u4g", "uae_unified"])
def test_it_holds_what_can_be_written(run: Callable[..., Any], tiny_models: Path, name: str) -> None:
    found = resolved(run(name, "data.max_response_length=100"))
    wanted = counted(tiny_models / "captioner", "") + 100
    assert found == -(-wanted // MULTIPLE) * MULTIPLE


def test_captions_that_the_stage_does_not_read_decide_nothing(run: Callable[..., Any], tmp_path: Path) -> None:
    """The key is of U4G: G4U writes its captions, whatever its rows hold."""
    file = rows(tmp_path / "a.jsonl", ["a circle"])
    words = ["data.max_response_length=100", f"data.train_files={file}"]
    assert resolved(run("uae_g4u", *words, "uae.u4g.captions.source=column")) == resolved(run("uae_g4u", *words))


def test_a_decoder_that_was_trained_with_one_keeps_it_and_so_does_a_run_that_goes_on(
    run: Callable[..., Any], decoder: Path, tmp_path: Path
) -> None:
    (decoder / MODEL_INDEX).write_text(json.dumps({"_class_name": "UAEPipeline", "condition_length": 77}))
    assert resolved(run("uae_g4u")) == 77
    step = tmp_path / "run" / "global_step_3"
    step.mkdir(parents=True)
    (step / RUN_INFERENCE).write_text(json.dumps({"condition_length": 200}))
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={step}"]
    assert resolved(run("uae_g4u", *resume)) == 200


def test_what_does_not_fit_is_counted_beforehand(run: Callable[..., Any], tiny_models: Path, tmp_path: Path) -> None:
    texts = captions(8, 40)
    data = rows(tmp_path / "rows.jsonl", texts)
    own = sorted(counted(tiny_models / "captioner", text) for text in texts)
    config = run("uae_pretrain", f"data.train_files={data}", f"uae.conditioner.length={own[4]}")
    assert length_words(config) == f"{own[4]} text positions, given; 3 of 8 captions are longer, and cut"
    assert length_words(run("uae_pretrain", f"data.train_files={data}")).endswith(
        "; 0 of 8 captions are longer, and cut"
    )
    written = length_words(run("uae_g4u", "uae.conditioner.length=8", "data.max_response_length=24"))
    assert re.fullmatch(r"8 text positions, given; the longest caption takes \d+, and is cut", written)


def test_a_given_number_stays(run: Callable[..., Any], decoder: Path) -> None:
    (decoder / MODEL_INDEX).write_text(json.dumps({"_class_name": "UAEPipeline", "condition_length": 77}))
    assert resolved(run("uae_g4u", "uae.conditioner.length=48")) == 48


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["uae.decoder.path=someone/decoder"], "someone/decoder is not a folder of this machine; give a number"),
        (["data.train_files={empty}"], "data.train_files: has no caption"),
    ],
)
def test_what_it_cannot_be_chosen_from_is_told(
    run: Callable[..., Any], tmp_path: Path, overrides: list[str], text: str
) -> None:
    empty = rows(tmp_path / "empty.jsonl", [""])
    config = run("uae_pretrain", *(override.format(empty=empty) for override in overrides))
    with pytest.raises(ConfigError, match=text):
        resolve_length(config)
