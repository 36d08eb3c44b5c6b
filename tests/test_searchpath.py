# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where Hydra finds a configuration that a command names: verl's, ours in the folders of the stages, the user's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests import forks
from tests.composing import MODULE
from tests.source import PACKAGE
from verl_uae import config
from verl_uae.config import PACKAGES, yaml_files
from verl_uae.plugin.searchpath import VerlUaeSearchPath

PRIMARY = sorted(name for name in yaml_files() if "/" not in name and name != "uae_base")


def test_is_appended_once_and_last() -> None:
    path = ConfigSearchPathImpl()
    path.append("main", "file:///verl")
    for _ in range(2):
        VerlUaeSearchPath().manipulate_search_path(path)
    assert [item.path for item in path.get_path()] == ["file:///verl", *(f"pkg://{package}" for package in PACKAGES)]


def test_verls_own_configs_win_and_ours_are_found(compose) -> None:
    assert compose("data.train_files=x", name="ppo_trainer").trainer.v1.trainer_mode != "uae_g4u"
    assert compose().trainer.v1.trainer_mode == "uae_g4u"


def test_every_file_of_ours_is_what_its_name_means() -> None:
    """None has the name of a file of verl's, which Hydra would take."""
    files = yaml_files()
    assert {"uae_base", "uae_g4u_megatron", "hardware/cpu", "preset/scenes_pretrain", "learn/captioner"} <= files.keys()
    with initialize_config_module(MODULE, version_base=None):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        for name, path in files.items():
            found = loader.repository.load_config(name)
            assert found is not None and found.provider == "verl_uae" and path == _place(found.path) / f"{name}.yaml"


def _place(package: str) -> Path:
    return PACKAGE.parent / package.removeprefix("pkg://").replace(".", "/")


def test_two_files_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PACKAGES", (*PACKAGES, PACKAGES[0]))
    with pytest.raises(ValueError, match="are both hardware/cpu for Hydra"):
        yaml_files()


@pytest.mark.parametrize("name", PRIMARY)
def test_the_command_finds_a_users_config_on_top_of_ours(tmp_path: Path, name: str) -> None:
    """The real command, from a folder that has nothing to do with us; a group may have options of both."""
    own = tmp_path / "own"
    (own / "preset").mkdir(parents=True)
    (own / "mine.yaml").write_text(f"defaults: [{name}, override hardware: cpu, override preset: my_preset, _self_]\n")
    (own / "preset" / "my_preset.yaml").write_text("# @package _global_\ndefaults: [scenes]\nuae_home: my_home\n")
    command = [forks.python(), "-m", "verl.trainer.main_ppo", "--config-dir", "own", "--config-name", "mine"]
    result = subprocess.run(
        [*command, "--cfg", "job"], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = OmegaConf.create(result.stdout)
    assert found.trainer.v1.trainer_mode == name.removesuffix("_megatron")
    assert (found.uae_home, found.data.max_response_length, found.trainer.device) == ("my_home", 24, "cpu")
