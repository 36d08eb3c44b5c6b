# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which node has what, and what it does not see; several real nodes are in tests/e2e."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig

from verl_uae.errors import ConfigError
from verl_uae.stages.common import nodes
from verl_uae.stages.common.nodes import Ranks, check_nodes
from verl_uae.stages.g4u.placement import _Placed

HERE, THERE = "a" * 56, "b" * 56


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two nodes; what the other one has lies below the folder that is returned."""
    root = tmp_path / "there"

    def run_on(node: str, function: Callable[..., Any], paths: Mapping[str, str]) -> Any:
        assert node == THERE
        return function({key: f"{root}{path}" for key, path in paths.items()})

    monkeypatch.setattr(nodes, "this_node", lambda: HERE)
    monkeypatch.setattr(nodes, "node_name", lambda node: f"node {node[:2]}")
    monkeypatch.setattr(nodes, "nodes_of", lambda pool: pool.nodes)
    monkeypatch.setattr(nodes, "run_on", run_on)
    return root


@pytest.fixture
def config(compose: Any, tiny_overrides: list[str], tmp_path: Path) -> DictConfig:
    made: DictConfig = compose(*tiny_overrides, f"trainer.default_local_dir={tmp_path}/out")
    (tmp_path / "out").mkdir()
    return made


def pool(*where: str) -> Any:
    return SimpleNamespace(nodes=list(where))


def share(path: str | Path, root: Path) -> None:
    """Make a folder of this node one of the other node, too."""
    link = Path(f"{root}{path}")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path)


def test_what_a_node_does_not_see_is_named(placed: Path, config: DictConfig, caplog: pytest.LogCaptureFixture) -> None:
    captioner, decoders = pool(HERE, THERE), pool(THERE)
    pools = [Ranks("captioner ranks", captioner, writes=True), Ranks("decoder ranks", decoders, writes=False)]
    model, decoder, out = (
        config.actor_rollout_ref.model.path,
        config.uae.decoder.path,
        config.trainer.default_local_dir,
    )
    with pytest.raises(
        ConfigError, match=rf"{model} is not on node bb, which has captioner ranks 1; decoder"
    ) as caught:
        check_nodes(config, pools)
    assert caught.value.key == "actor_rollout_ref.model.path"
    share(model, placed)
    with pytest.raises(ConfigError, match=rf"{decoder} is not on node bb") as caught:
        check_nodes(config, pools)
    assert caught.value.key == "uae.decoder.path"
    share(decoder, placed)
    Path(f"{placed}{out}").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"{out} of node bb, .* is another folder than that of node aa") as caught:
        check_nodes(config, pools)
    assert caught.value.key == "trainer.default_local_dir"
    # Who only draws writes nothing.
    alone = [Ranks("captioner ranks", pool(HERE), writes=True), pools[1]]
    assert check_nodes(config, alone) == {"captioner ranks": [HERE], "decoder ranks": [THERE]}
    Path(f"{placed}{out}").rmdir()
    share(out, placed)
    with caplog.at_level("INFO"):
        check_nodes(config, pools)
    said = [record.getMessage() for record in caplog.records]
    assert said[-2:] == ["node aa: trainer; captioner ranks 0", "node bb: captioner ranks 1; decoder ranks 0"]
    assert not list(Path(out).iterdir()), "the mark is taken away"


def test_on_one_node_nothing_is_asked(placed: Path, config: DictConfig) -> None:
    assert check_nodes(config, [Ranks("learner ranks", pool(HERE, HERE), writes=True)])


def test_agent_loops_go_to_the_given_nodes_in_turn() -> None:
    class Actors:
        def options(self, **options: Any) -> dict[str, Any]:
            return options

    actors = _Placed(Actors(), [HERE, THERE])
    made = [actors.options(name=f"loop{number}", scheduling_strategy="SPREAD") for number in range(3)]
    assert [options["scheduling_strategy"].node_id for options in made] == [HERE, THERE, HERE]
    assert [options["name"] for options in made] == ["loop0", "loop1", "loop2"]
