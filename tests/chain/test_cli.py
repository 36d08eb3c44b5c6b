# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.chain.conftest import picture
from verl_uae import UAEPipeline
from verl_uae.checkpoints.inference import InferenceSettings, write_index
from verl_uae.checkpoints.manifest import write_manifest
from verl_uae.cli import main
from verl_uae.data.images import decode_image, image_digest
from verl_uae.families import family_of
from verl_uae.families.sd3 import Projector
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.tiny_models import INFERENCE
from verl_uae.seeding import generator

MODEL_OPTIONS = ["--condition-length", "20", "--caption-prompt", "<image>describe", "--caption-system", ""]
FAST = ["--device", "cpu", "--steps", "2", "--guidance", "2", "--max-new-tokens", "6", "--seed", "3"]


def run(model: Path, *words: object) -> int:
    return main(["sample", str(model), *MODEL_OPTIONS, *FAST, *map(str, words)])


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_reconstructs_pictures_and_a_bad_one_costs_only_itself(
    model_folder: Path, pipe: UAEPipeline, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert run(model_folder, "--image", *(tmp_path / f"{n}.png" for n in ("a", "bad", "b")), "--out", out) == 1
    printed = capsys.readouterr()
    first, bad, second = records(printed.out)
    assert records((out / "samples.jsonl").read_text()) == [first, bad, second]
    assert set(bad) == {"image", "error"} and "bad.png" in bad["image"] and "1 of 3 pictures" in printed.err
    assert sorted(path.name for path in out.glob("*.png")) == ["0000_a.png", "0002_b.png"]
    assert (first["seed"], first["steps"], first["guidance"], first["size"]) == (3, 2, 2.0, [32, 32])
    assert first["seconds"] > 0 and first["truncated"] is False and first["temperature"] == 0
    # The same numbers by hand: what is drawn depends on the seed and the picture, not on the other pictures.
    (caption,) = pipe.caption(picture(1), max_new_tokens=6)
    key = ("image", image_digest(picture(1)))
    drawn = pipe(caption, num_inference_steps=2, guidance_scale=2.0, generator=generator(3, "sample noise", *key))
    assert second["caption"] == caption
    assert np.array_equal(np.asarray(Image.open(out / second["file"])), np.asarray(drawn.images[0]))


@pytest.mark.filterwarnings("error::FutureWarning")  # They advise the caller of diffusers, who is not the user.
def test_draws_texts(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(model_folder, "--prompt", "a red circle", "red " * 60, "--out", tmp_path) == 0
    found = records(capsys.readouterr().out)
    assert [record["truncated"] for record in found] == [False, True] and found[0]["prompt"] == "a red circle"
    assert [Image.open(tmp_path / record["file"]).size for record in found] == [(32, 32)] * 2


def test_pictures_of_rows_are_written_beside_their_reconstructions(
    model_folder: Path, pipe: UAEPipeline, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = write_dataset(tmp_path / "data", train=2, val=3, seed=0)["val"]
    assert run(model_folder, "--rows", rows, "--first", 2, "--out", tmp_path / "out") == 0
    found = records(capsys.readouterr().out)
    assert [record["image"] for record in found] == [f"{rows}, row {number}" for number in range(2)]
    for number, record in enumerate(found):
        source = decode_image(pq.read_table(rows)["images"][number].as_py()[0]["bytes"])
        assert image_digest(decode_image(tmp_path / "out" / record["source"])) == image_digest(source)
        assert pipe.caption(source, max_new_tokens=6) == [record["caption"]]
        assert (tmp_path / "out" / record["file"]).is_file()


def test_what_the_folder_says_holds_where_no_option_is_given(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    known = {**asdict(INFERENCE), "num_inference_steps": 3, "height": 16, "temperature": 0.0}
    write_index(folder, family_of(folder), known)
    picture(0).save(tmp_path / "a.png")
    words = ["sample", str(folder), "--image", str(tmp_path / "a.png"), "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    printed = capsys.readouterr()
    (plain,) = records(printed.out)
    assert (plain["steps"], plain["guidance"], plain["size"]) == (3, 1.0, [32, 16]) and "defaults" not in printed.err
    own = UAEPipeline.from_pretrained(folder)
    assert own.inference == InferenceSettings(**known)
    assert own.caption(picture(0)) == [plain["caption"]]
    assert main([*words, "--steps", "2", "--size", "32", "--caption-prompt", "describe", "--max-new-tokens", "1"]) == 0
    (changed,) = records(capsys.readouterr().out)
    assert (changed["steps"], changed["size"]) == (2, [32, 32]) and len(changed["caption"].split()) <= 1


def test_captions_only(model_folder: Path, pipe: UAEPipeline, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture(0).save(tmp_path / "a.png")
    assert run(model_folder, "--image", tmp_path / "a.png", "--caption-only") == 0
    (record,) = records(capsys.readouterr().out)
    assert [record["caption"]] == pipe.caption(picture(0), max_new_tokens=6) and "file" not in record
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_decoder_folder_with_a_captioner(
    tiny_models: Path, captioner_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(tiny_models / "decoder", "--captioner", captioner_folder, "--prompt", "red", "--out", tmp_path) == 0
    assert (tmp_path / "0000.png").is_file()


def test_a_folder_that_cannot_caption_is_named(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture(0).save(tmp_path / "a.png")
    assert run(tiny_models / "decoder", "--image", tmp_path / "a.png", "--caption-only") == 2
    assert "has no captioner/ with its processor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "red"], "--out"),
        (["--prompt", "red", "--caption-only"], "--caption-only: takes --image or --rows"),
        (["--prompt", "red", "--out", "o", "--captioner", "/no/such"], "/no/such"),
        (["--prompt", "red", "--out", "o", "--size", "33"], "--size: height"),
        (["--prompt", "red", "--out", "o", "--condition-length", "3"], "condition_length: 3 leaves no room"),
        (["--prompt", "red", "--out", "o", "--caption-prompt", "<|image_pad|>"], "--caption-prompt: holds the special"),
        (["--prompt", "red", "--out", "o", "--size", "4096"], "--size: height and width may be"),
        (
            ["--prompt", "red", "--out", "o", "--device", "cuda:99"],
            "; give a device that this machine has, such as cpu",
        ),
        (["--prompt", "red", "--out", "o", "--device", "abacus"], "; give a device that this machine has, such as cpu"),
        (["--prompt", "red", "--out", "o", "--offload", "model"], "--offload: needs an accelerator"),
        (["--prompt", "red", "--out", "o", "--steps", "0"], "--steps"),
    ],
)
def test_errors_are_one_line(
    model_folder: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(model_folder, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("verl-uae: ") and message in error


def test_a_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "none", "--prompt", "red", "--out", tmp_path) == 2
    assert f"verl-uae: model: {tmp_path / 'none'}: there is no such folder" in capsys.readouterr().err
    assert run(tmp_path, "--prompt", "red", "--out", tmp_path) == 2
    why = "is no model and no decoder folder: it has no transformer/; verl-uae import and export write such"
    assert capsys.readouterr().err.splitlines()[-1] == f"verl-uae: {tmp_path}: {why}"


def test_a_captioner_of_another_width_is_named(
    tiny_models: Path, captioner_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = shutil.copytree(tiny_models / "decoder", tmp_path / "decoder")
    Projector(64, 8, 96, 16).save_pretrained(folder / "conditioner")
    assert run(folder, "--captioner", captioner_folder, "--prompt", "red", "--out", tmp_path) == 2
    why = "takes states of width 64, the language model has width 96"
    assert capsys.readouterr().err.splitlines()[-1] == f"verl-uae: {folder}/conditioner: {why}"


def test_a_folder_whose_own_size_cannot_be_drawn_is_named(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    write_index(folder, family_of(folder), {**asdict(INFERENCE), "height": 30})
    assert run(folder, "--prompt", "red", "--out", tmp_path) == 2
    why = "height and width must be multiples of 8, got 30x32, which is its own size; give --size"
    assert capsys.readouterr().err.splitlines()[-1] == f"verl-uae: {folder}: {why}"
    assert run(folder, "--prompt", "red", "--out", tmp_path, "--size", "32") == 0


def test_odd_names_cost_nothing(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A name of 252 bytes and one that is not UTF-8: each has its record and its picture."""
    names = ["n" * 248 + ".png", "caf\udce9.png", "ok.png"]
    for seed, name in enumerate(names):
        picture(seed).save(tmp_path / "x.png")
        try:
            (tmp_path / "x.png").rename(tmp_path / name)
        except OSError:
            pytest.skip("the file system takes only UTF-8 names")
    out = tmp_path / "out"
    assert run(model_folder, "--image", *(tmp_path / name for name in names), "--out", out) == 0
    found = records((out / "samples.jsonl").read_text(encoding="utf-8"))
    assert [Path(record["image"]).name for record in found] == [names[0], "caf\\xe9.png", "ok.png"]
    assert [record["file"] for record in found][1:] == ["0001_caf\\xe9.png", "0002_ok.png"]
    assert sorted(path.name for path in out.glob("*.png")) == sorted(record["file"] for record in found)
    assert found[0]["file"].startswith("0000_nnn") and records(capsys.readouterr().out) == found


def test_a_prompt_of_foreign_bytes_is_read_or_named(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    typed = "a r\u00e9d circle".encode().decode("ascii", "surrogateescape")
    assert run(model_folder, "--prompt", typed, "--out", tmp_path) == 0
    assert records(capsys.readouterr().out)[0]["prompt"] == "a r\u00e9d circle"
    for option in ("--prompt", "--negative-prompt", "--caption-prompt"):
        words = ["--prompt", "a circle", "--out", tmp_path, option, "caf\udce9"]
        assert run(model_folder, *words) == 2
        assert f"verl-uae: {option}: is not UTF-8: 'caf\\\\xe9'" in capsys.readouterr().err


# ---------------------------------------------------------------- folders that are not to be trusted


@pytest.mark.parametrize("part", ["captioner", "language_model", "transformer", "vae", "conditioner"])
def test_a_part_that_lacks_a_tensor_is_one_line_that_names_it(
    model_folder: Path, tmp_path: Path, part: str, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    shutil.copytree(model_folder / "captioner", tmp_path / "m" / "language_model")
    (file,) = (tmp_path / "m" / part).glob("*.safetensors")
    state = load_file(file)
    name = sorted(name for name, tensor in state.items() if tensor.ndim >= 2)[len(state) // 4]
    state[f"base_model.model.{name}"] = state.pop(name)
    save_file(state, file, {"format": "pt"})
    assert run(tmp_path / "m", "--prompt", "a red circle", "--out", tmp_path / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("verl-uae: ")]
    assert (
        f"{tmp_path / 'm' / part}: " in line
        and line.count(name.rpartition("model.")[2]) == 2
        and "--device" not in line
    )
    assert not list((tmp_path / "out").glob("*.png"))


def flipped_bit(folder: Path) -> str:
    (file,) = (folder / "vae").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return "altered"


def pipe_in_it(folder: Path) -> str:
    os.mkfifo(folder / "vae" / "extra.json")
    return "a pipe"


def link_out(folder: Path) -> str:
    (folder / "vae" / "extra.json").symlink_to("/etc/passwd")
    return "a link out of it"


def pickle_beside(folder: Path) -> str:
    (folder / "vae" / "extra.bin").write_bytes(b"x")
    return "extra.bin"


def unnamed_file(folder: Path) -> str:
    (folder / "vae" / "extra.txt").touch()
    return "a file that manifest.json does not name"


@pytest.mark.parametrize("attack", [flipped_bit, pipe_in_it, link_out, pickle_beside, unnamed_file])
def test_a_folder_is_compared_with_its_manifest_before_it_is_used(
    model_folder: Path, tmp_path: Path, attack: Callable[[Path], str], capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    write_manifest(tmp_path / "m")
    message = attack(tmp_path / "m")
    words = ["--prompt", "a red circle", "--out", tmp_path / "out"]
    assert run(tmp_path / "m", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("verl-uae: ")]
    assert message in line
    # A library would wait for a pipe, whatever is verified.
    assert run(tmp_path / "m", *words, "--no-verify") == (2 if attack is pipe_in_it else 0)


def model_code(folder: Path) -> str:
    path = folder / "captioner" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoConfig": "evil.Evil"}}))
    (folder / "captioner" / "evil.py").write_text(EVIL)
    return "captioner/config.json"


def custom_pipeline(folder: Path) -> str:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": ["evil", "Evil"]}))
    (folder / "evil.py").write_text(EVIL)
    return "model_index.json"


def custom_component(folder: Path) -> str:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vae": ["evil", "Evil"]}))
    (folder / "vae" / "evil.py").write_text(EVIL)
    return "model_index.json"


EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Evil: pass\n"


@pytest.mark.parametrize("attack", [model_code, custom_pipeline, custom_component])
def test_code_that_a_folder_brings_is_never_run(
    model_folder: Path, tmp_path: Path, attack: Callable[[Path], str], capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    name = attack(tmp_path / "m")
    assert run(tmp_path / "m", "--prompt", "a red circle", "--out", tmp_path / "out", "--no-verify") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("verl-uae: ")]
    assert name in line and "needs Python code of its own" in line
    assert not list(tmp_path.rglob("ran"))


def test_rows_reach_no_picture_outside_their_folder(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "rows").mkdir()
    for place in (tmp_path / "outside.png", tmp_path / "rows" / "inside.png"):
        Image.new("RGB", (32, 32), "red").save(place)
    names = ["../outside.png", str(tmp_path / "outside.png"), "inside.png"]
    lines = [json.dumps({"images": [{"path": name}]}) for name in names]
    (tmp_path / "rows" / "a.jsonl").write_text("\n".join(lines))
    assert run(model_folder, "--rows", tmp_path / "rows" / "a.jsonl", "--caption-only") == 1
    found = records(capsys.readouterr().out)
    assert ["leaves its folder" in record.get("error", "") for record in found] == [True, True, False]


def test_a_place_that_cannot_be_written_is_named_before_the_model_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert run(tmp_path / "no model", "--prompt", "x", "--out", tmp_path / "file") == 2
    assert capsys.readouterr().err.startswith("verl-uae: --out: ")
