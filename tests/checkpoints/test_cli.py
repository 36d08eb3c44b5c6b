# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from verl_uae.cli import main
from verl_uae.families.sd3 import Projector

COMMANDS = ["import", "import sd3", "import release", "export", "verify"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0 and f"usage: verl-uae {command}" in capsys.readouterr().out


def test_import_and_verify(sd3: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "model"
    words = ["import", "sd3", "--sd3", str(sd3), "--captioner", str(tiny_models / "captioner"), "--out", str(out)]
    words += ["--hidden-dim", "24", "--seed", "5"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out == said and said.startswith(f"{out}: 1")
    assert Projector.from_pretrained(out, subfolder="conditioner").config.hidden_dim == 24
    (out / "README.md").write_text("other")
    assert main(["verify", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"verl-uae: {out}/README.md: has 5 bytes") and error.count("\n") == 1
    assert main(words) == 2 and "exists already" in capsys.readouterr().err


def test_code_is_refused_without_a_pinned_revision(
    sd3: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["import", "sd3", "--sd3", str(sd3), "--captioner", "owner/model", "--out", str(tmp_path / "model")]
    assert main([*words, "--trust-remote-code", "--captioner-revision", "main"]) == 2
    assert "40 hexadecimal digits, got main" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["import", "release", "NOWHERE", "--out", "OUT"], "there is no such folder"),
        (["export", "NOWHERE", "--out", "OUT"], "nowhere: there is no such folder"),
        (["export", "NOWHERE", "--out", "OUT", "--lora", "peft"], "nowhere: there is no such folder"),
        (["verify", "NOWHERE"], "nowhere: there is no such folder"),
        (["export", "HERE", "--out", "OUT", "--captioner", "x/y/z"], "--captioner: x/y/z: there is no such folder"),
        (["export", "HERE", "--out", "OUT", "--language-model", "word"], "--language-model: word: is no folder"),
    ],
)
def test_an_error_is_one_line_and_code_2(
    tmp_path: Path, words: list[str], error: str, capsys: pytest.CaptureFixture
) -> None:
    places = {"NOWHERE": str(tmp_path / "nowhere"), "OUT": str(tmp_path / "out"), "HERE": str(tmp_path)}
    assert main([places.get(word, word) for word in words]) == 2
    said = capsys.readouterr().err
    assert error in said and said.startswith("verl-uae: ") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [["import"], ["export", "x"], ["import", "sd3", "--out", "x"], ["export", "x", "--lora", "y"]]
)
def test_what_is_missing_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
