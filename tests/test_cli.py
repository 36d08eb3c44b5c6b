# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from verl_uae import __version__, cli
from verl_uae.cli import build_parser, main, parse
from verl_uae.errors import ConfigError
from verl_uae.plan import planner


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once_and_without_torch() -> None:
    code = "import sys; from verl_uae.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    before = cpu_seconds()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert cpu_seconds() - before < 1.0
    assert result.stdout.split() == ["False"]


#: Commands of what is not there, run in an empty folder, and how the line that they end with begins.
MISSING = {
    "sample MODEL --prompt red --out OUT": "model: MODEL: is no folder in",
    "sample MODEL --rows ROWS --out OUT": "model: MODEL: is no folder in",
    "bench scenes MODEL": "model: MODEL: is no folder in",
    "bench unified . --model MODEL --out OUT": "--model: MODEL: is no folder in",
    "bench unified IMAGES --model MODEL --out OUT": "images: IMAGES: there is no such folder in",
    "bench unified . --generated PICTURES --out OUT": "--generated: PICTURES: there is no such folder in",
    "bench judge IMAGES A B --judge j=http://127.0.0.1:1#m --out OUT": "images: IMAGES: there is no such folder in",
    "bench judge . A B --judge j=http://127.0.0.1:1#m --out OUT": "A: there is no such file or folder in",
    "bench unified . --generated . --captions TEXTS --out OUT": "--captions: TEXTS: there is no such file in",
    "bench compare RESULT.json": "RESULT.json: there is no such file in",
    "bench length RESULT.json OTHER.json": "RESULT.json: there is no such file in",
    "bench discriminate --render RESULT.json": "RESULT.json: there is no such file in",
    "bench draw-prompts geneval PROMPTS --model MODEL --out OUT": "--model: MODEL: is no folder in",
    "bench read geneval RESULTS --drawn DRAWN --out OUT": "RESULTS: there is no such file in",
    "bench scores RESULT.json": "RESULT.json: there is no such file in",
    "bench guard BEFORE.json AFTER.json --max-drop 2": "BEFORE.json: there is no such file in",
    "data pack PICTURES --out OUT": "folder: PICTURES: there is no such folder in",
    "data check ROWS.parquet": "ROWS.parquet: there is no such file in",
    "import sd3 --sd3 SD3 --captioner CAPTIONER --out OUT": "--sd3: SD3: is no folder in",
    "import release RELEASE --out OUT": "RELEASE: is no folder in",
    "export STEP --out OUT": "STEP: there is no such folder in",
    "verify MODEL": "MODEL: there is no such folder in",
}


def test_what_is_not_there_is_named_at_once_and_without_torch(tmp_path: Path) -> None:
    code = """
import contextlib, io, json, sys
from verl_uae.cli import main
found = {}
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(words.split())
    found[words] = [code, "torch" in sys.modules, said.getvalue()]
print(json.dumps(found))
"""
    command = [sys.executable, "-c", code, json.dumps(list(MISSING))]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for words, (code, with_torch, said) in json.loads(result.stdout).items():
        assert (code, with_torch) == (2, False), words
        assert said.startswith(f"verl-uae: {MISSING[words]}") and said.count("\n") == 1, said


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["doctor"],
        ["estimate"],
        ["plan"],
        ["data"],
        ["data", "pack"],
        ["quickstart"],
        ["sample"],
        ["train"],
        ["check"],
        ["reward", "try"],
    ],
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
    words = [
        "--gpu",
        "A100-80GB",
        "uae_u4g",
        "uae/decoder=sana_1600m",
        "--gpus",
        "4",
        "uae.u4g.num_steps=4",
        "uae.u4g.window.size=1",
    ]
    assert main(["estimate", *words]) == 0
    text = capsys.readouterr().out
    assert "uae_u4g, 4 x A100-80GB" in text and "decoder sana_1600m as published" in text and "USD" in text
    assert main(["estimate", "--list"]) == 0
    assert "H100-80GB" in capsys.readouterr().out.split()


def test_an_error_on_purpose_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture) -> None:
    assert main(["estimate", "--gpu", "abacus"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("verl-uae: --gpu: unknown type 'abacus'") and error.count("\n") == 1
    assert main(["estimate", "--gpu", "h100"]) == 2
    assert "Did you mean 'H100-80GB'?" in capsys.readouterr().err
    for command in ("estimate", "plan"):
        assert main([command, "uae_g4", "trainer.nnodes=2"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("verl-uae: uae_g4: is no configuration of a stage. Did you mean 'uae_g4u'? Known: uae_")
    assert main(["data", "check", "/no/such.parquet"]) == 2
    assert "/no/such.parquet" in capsys.readouterr().err


def test_every_command_says_which_function_runs() -> None:
    assert callable(build_parser().parse_args(["doctor"]).run)


@pytest.mark.parametrize("words", [["out", "--steps", "3", "a.b=1", "+c=2"], ["--steps", "3", "out", "a.b=1", "+c=2"]])
def test_quickstart_takes_hydra_overrides(words: list[str]) -> None:
    args = parse(["quickstart", *words])
    assert (args.out, args.steps, args.overrides) == (Path("out"), 3, ["a.b=1", "+c=2"])


def test_overrides_may_follow_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def plan(name: str, words: list[str], counts: Any, **_: Any) -> Any:
        asked.append((name, words, counts.gpus))
        raise ConfigError("x", "enough")

    monkeypatch.setattr(planner, "plan", plan)
    assert main(["plan", "uae_u4g", "--gpus", "8", "16", "8", "uae.g4u.ahead=1", "--json"]) == 2
    assert asked == [("uae_u4g", ["uae.g4u.ahead=1"], (8, 16))]


def test_what_is_deleted_is_an_override_and_wrong_words_are_named_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["check", "g4u", "--out", "out", "~a.b", "c=1"]).overrides == ["~a.b", "c=1"]
    with pytest.raises(SystemExit):
        parse(["check", "g4u", "--out", "out", "c=1", "=3", "word"])
    assert capsys.readouterr().err.endswith("error: unrecognized arguments: =3 word\n")


@pytest.mark.parametrize("words", [["quickstart", "out", "--stesp", "3"], ["estimate", "--a.b=1"]])
def test_what_no_command_knows_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(words)
    assert exit_info.value.code == 2


def test_a_command_without_warnings_leaves_logging_as_it_was() -> None:
    """Also where it fails: other threads and tests of the process log too."""
    before = logging.root.manager.disable
    with pytest.raises(ZeroDivisionError), cli._without_warnings():
        assert not logging.getLogger("verl_uae").isEnabledFor(logging.WARNING)
        raise ZeroDivisionError
    assert logging.root.manager.disable == before


def test_a_reader_that_has_enough_ends_a_command_without_a_word() -> None:
    code = "from verl_uae import cli; raise SystemExit(cli.answered(lambda: print('line\\n' * 100_000)))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE


def test_another_broken_pipe_is_no_reader_of_ours() -> None:
    code = "from verl_uae import cli\ndef run():\n    raise BrokenPipeError('socket')\ncli.answered(run)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "BrokenPipeError: socket" in result.stderr


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise KeyboardInterrupt

    assert cli.answered(run) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "verl-uae: stopped by SIGINT\n"
