# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from verl_uae import __version__
from verl_uae.cli import build_parser, main, parse


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once_and_without_torch() -> None:
    code = "import sys; from verl_uae.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    before = cpu_seconds()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert cpu_seconds() - before < 1.0
    assert result.stdout.split() == ["False"]


@pytest.mark.parametrize(
    "words",
    [
        "sample MODEL --prompt red --out OUT",
        "sample MODEL --rows ROWS --out OUT",
        "demo MODEL",
        "bench scenes MODEL",
        "bench unified IMAGES --model MODEL --out OUT",
        "bench draw-prompts geneval PROMPTS --model MODEL --out OUT",
    ],
)
def test_a_model_that_is_not_there_is_named_at_once_and_without_torch(words: str, tmp_path: Path) -> None:
    code = f"import sys; from verl_uae.cli import main; print(main({words.split()!r}), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["2", "False"]
    assert "odel: MODEL: is no folder in" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words", [[], ["doctor"], ["estimate"], ["data"], ["data", "pack"], ["quickstart"], ["sample"], ["demo"]]
)
def test_every_command_has_help(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0 and "usage: verl-uae" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"verl-uae {__version__}"


def test_no_command_is_an_error(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2 and "COMMAND" in capsys.readouterr().err


def test_estimate(capsys: pytest.CaptureFixture) -> None:
    assert main(["estimate", "--gpu", "A100-80GB", "--gpus", "4"]) == 0
    assert "4 x A100-80GB" in capsys.readouterr().out
    assert main(["estimate", "--list"]) == 0
    assert "H100-80GB" in capsys.readouterr().out.split()


def test_an_error_on_purpose_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture) -> None:
    assert main(["estimate", "--gpu", "abacus"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("verl-uae: --gpu: unknown type 'abacus'") and error.count("\n") == 1
    assert main(["data", "check", "/no/such.parquet"]) == 2
    assert "/no/such.parquet" in capsys.readouterr().err


def test_every_command_says_which_function_runs() -> None:
    assert callable(build_parser().parse_args(["doctor"]).run)


@pytest.mark.parametrize("words", [["out", "--steps", "3", "a.b=1", "+c=2"], ["--steps", "3", "out", "a.b=1", "+c=2"]])
def test_quickstart_takes_hydra_overrides(words: list[str]) -> None:
    args = parse(["quickstart", *words])
    assert (args.out, args.steps, args.overrides) == (Path("out"), 3, ["a.b=1", "+c=2"])


@pytest.mark.parametrize("words", [["quickstart", "out", "--stesp", "3"], ["estimate", "a.b=1"]])
def test_what_no_command_knows_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(words)
    assert exit_info.value.code == 2
