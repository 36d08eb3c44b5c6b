# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The tour in rewards/README.md, run as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.conftest import ROOT
from verl_uae.errors import ConfigError
from verl_uae.reward import RewardBatch
from verl_uae.reward.function import CustomReward

PAGE = (ROOT / "rewards" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def _blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture
def tour(tmp_path: Path) -> Path:
    """A folder with the files the tour writes, and the rest of its Python as tour.py."""
    steps = []
    for text in _blocks("python"):
        name = re.match(r"# (\w+\.py)\n", text)
        if name:
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
        else:
            steps.append(text)
    (tmp_path / "tour.py").write_text("\n".join(steps), encoding="utf-8")
    return tmp_path


def test_the_tour_runs(tour: Path) -> None:
    result = subprocess.run([sys.executable, "tour.py"], cwd=tour, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    whole, blurred = map(float, lines[0].split())
    assert whole == 1.0 and 0.0 < blurred < 0.5
    assert len(lines) == 7 and all(
        re.match(r"ok 0\.\d+ \{'pixel': .*'custom/drawn': .*'ssim':", text) for text in lines[1:5]
    )
    assert lines[5:] == ["agreement [0.5, 1.0, 0.5, 1.0]", "patient [0.0, 1.0, 0.0, 1.0]"]


def test_the_settings_of_the_tour_are_possible(
    tour: Path, compose: Any, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl_uae.config.validate import validate
    from verl_uae.reward.scorer import term_specs

    monkeypatch.chdir(tour)
    (command, _), (terms,) = _blocks("bash"), _blocks("yaml")
    words = command.replace("\\\n", " ").replace("UAE_HOME", str(tiny_models)).split()
    config = compose(*[word for word in words if "=" in word])
    validate(config)
    assert [(spec.name, spec.weight) for spec in term_specs(config)[0]][-1] == ("custom", 0.2)
    home = ["hardware=cpu", "preset=scenes", f"uae_home={tiny_models}"]
    listed = ", ".join(line.removeprefix("- ") for line in terms.splitlines())
    listing = compose(*home, f"uae.reward.terms=[{listed}]")
    validate(listing)
    assert [spec.label for spec in term_specs(listing)[0]] == ["pixel", "sharpness"]
    # The quoted refusal.
    (tour / "my_reward.py").write_text((tour / "my_reward.py").read_text().replace("power=1.0", "power"))
    quoted = re.search(r"impossible setting: (\S+): /home/me/my_reward.py: (.*), \.\.\.", PAGE)
    assert quoted is not None
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert caught.value.key == quoted[1] and f"my_reward.py: {quoted[2]}" in str(caught.value)


def test_the_server_of_the_tour_can_be_reached_from_another_machine(tour: Path) -> None:
    (tour / "token").write_text("0123456789abcdef" * 2)
    _, serve = _blocks("bash")
    program, *words = shlex.split(serve)
    assert program == "verl-uae"
    # Two runs of the tests may share a machine.
    command = [sys.executable, "-m", "verl_uae.cli", *words, "--port", "0"]
    with subprocess.Popen(command, cwd=tour, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline()
        process.kill()
        _, complaints = process.communicate()
    assert address.startswith("http://0.0.0.0:"), complaints


def test_a_function_of_verls_signature(tour: Path, make_pictures: RewardBatch) -> None:
    values = [record.value for record in CustomReward(str(tour / "old_reward.py")).score(make_pictures)]
    assert values == [1.0, 0.0]


@pytest.fixture
def make_pictures() -> RewardBatch:
    import torch

    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return RewardBatch(pictures, pictures, captions=["short", "long" * 200], rows=[{}, {}])


def test_the_table_of_options_is_that_of_the_decorator() -> None:
    import inspect

    from verl_uae.reward import reward_function
    from verl_uae.reward.function import Declaration

    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \|", PAGE.split("`reward_function(...)`")[1].split("\n\n")[0], re.MULTILINE
    )
    facts = set(inspect.signature(Declaration).parameters)
    assert {name for name, _ in rows} == facts
    assert dict(rows)["num_threads"] == str(Declaration("x").num_threads)
    assert "name" in inspect.signature(reward_function).parameters


def test_every_file_is_in_the_table_and_of_readable_length() -> None:
    files = sorted((ROOT / "rewards").glob("*.py"))
    assert len(files) >= 3
    for path in files:
        assert f"| [`{path.name}`]({path.name}) |" in PAGE or f"| `{path.name}` |" in PAGE, path.name
        assert (ROOT / "tests" / "rewards" / f"test_{path.name}").is_file(), f"{path.name} has no test"
