# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae reward try``: what a reward says of real pictures, and what is wrong with one, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import build_model
from verl_uae.cli import main
from verl_uae.scenes.dataset import write_dataset

GOOD = """
from verl_uae.reward import reward_function
import numpy

@reward_function(bounds=(0, 1))
def closeness(source, reconstruction):
    a, b = (numpy.asarray(one, dtype=float) / 255 for one in (source, reconstruction))
    return float(1 - abs(a - b).mean())
"""
HEAD = "from verl_uae.reward import reward_function\n@reward_function(bounds=(0, 1))\n"
#: A wrong reward function -> the end of its one line.
WRONG = {
    "def f(source, reconstruction):\n    return None": "returned None",
    "def f(source, reconstruction):\n    return float('nan')": "nan",
    "def f(source, reconstruction):\n    return 'good'": "'good'",
    "def f(source, reconstruction):\n    return 3.0": "bounds",
    "def f(source, reconstruction):\n    return source.wdth": "AttributeError",
    "def f(source, reconstruction):\n    raise KeyError('x')": "KeyError",
    "def f(source, reconstruction):\n    import time; time.sleep(3); return 0.5": "no answer within 0.5 s",
    "def f(picture):\n    return 0.5": "picture",
    "def f(source, reconstruction, k):\n    return 0.5": "k",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of rows."""
    folder = tmp_path_factory.mktemp("rows")
    write_dataset(folder, train=8, val=2, seed=0)
    return folder


def run(data: Path, *words: str) -> int:
    return main(["reward", "try", *words, "--data", str(data), "--first", "3", "--size", "32"])


def test_values_of_the_first_rows_and_their_means(data: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    assert run(data, str(tmp_path / "good.py")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| row | the picture itself | the next row's picture | its mean colour |"
    cells = [[float(cell) for cell in line.split("|")[2:-1]] for line in lines[2:]]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0", "1", "2", "mean"] and len(cells) == 4
    assert all(own == 1.0 > other for own, other, _ in cells)
    for column in zip(*cells, strict=True):
        assert column[3] == pytest.approx(sum(column[:3]) / 3, abs=1e-3)


def test_terms_of_the_package_are_tried_by_their_entries(data: Path, capsys: Any) -> None:
    assert run(data, "uae.reward.terms=[{name: pixel, weight: 2.0}]") == 0
    assert "| mean | 2.000 |" in capsys.readouterr().out


def test_drawings_of_a_model_are_scored_too(data: Path, tiny_models: Path, tmp_path: Path, capsys: Any) -> None:
    for name in ("captioner", "decoder"):
        (tmp_path / name).symlink_to(tiny_models / name)
    model = build_model(tmp_path)
    assert run(data, "uae.reward.terms=[{name: pixel}]", "--model", str(model)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| its mean colour | drawing of the model |")
    own, *_, drawn = (float(cell) for cell in lines[-1].split("|")[2:-1])
    assert own == 1.0 > drawn > 0.0


def test_a_reward_that_a_drawing_cannot_raise_is_said(data: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "flat.py").write_text(f"{HEAD}def flat(source, reconstruction):\n    return 0.5")
    assert run(data, str(tmp_path / "flat.py")) == 0
    assert "cannot teach a reconstruction" in capsys.readouterr().out


@pytest.mark.parametrize("code", WRONG)
def test_a_wrong_function_is_one_line(data: Path, tmp_path: Path, code: str, capsys: Any) -> None:
    (tmp_path / "wrong.py").write_text(f"{HEAD}{code}\n")
    assert run(data, str(tmp_path / "wrong.py"), "uae.reward.timeout_s=0.5") == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1 and WRONG[code] in found[0], found


@pytest.mark.parametrize(
    ("text", "words", "error"),
    [
        (None, [], "No such file or directory"),
        ("x = 1", [], "no function"),
        ("def broken(:", [], "SyntaxError"),
        ("import nowhere_at_all", [], "nowhere_at_all"),
        (GOOD, ["--name", "clossness"], "it declares closeness; name one"),
    ],
)
def test_a_wrong_file_is_one_line(
    data: Path, tmp_path: Path, text: str | None, words: list[str], error: str, capsys: Any
) -> None:
    if text is not None:
        (tmp_path / "wrong.py").write_text(text)
    assert run(data, str(tmp_path / "wrong.py"), *words) == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1 and error in found[0], found


@pytest.mark.parametrize("size", ["0", "-5"])
def test_pictures_have_a_size(data: Path, tmp_path: Path, size: str, capsys: Any) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    assert main(["reward", "try", str(tmp_path / "good.py"), "--data", str(data), f"--size={size}"]) == 2
    assert capsys.readouterr().err == f"verl-uae: --size: must be at least 1, got {size}\n"


def test_a_model_without_captioner_is_one_line(data: Path, tiny_models: Path, capsys: Any) -> None:
    assert run(data, "uae.reward.terms=[{name: pixel}]", "--model", str(tiny_models / "decoder")) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("has no captioner, whose captions are drawn (docs/formats.md)")
    )


def test_a_file_of_any_name_is_tried_and_an_override_with_slashes_is_none(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "my reward, v=2 (\u00fc).py"
    file.write_text(GOOD)
    assert run(data, str(file)) == 0
    (tmp_path / "good.py").write_text(GOOD)
    assert run(data, f"reward.custom_reward_function.path={tmp_path}/good.py", "uae.reward.terms=[]") == 0
