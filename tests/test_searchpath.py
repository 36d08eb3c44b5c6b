# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

from verl_uae.plugin.searchpath import CONFIG_PATH, VerlUaeSearchPath


def test_is_appended_once_and_last() -> None:
    path = ConfigSearchPathImpl()
    path.append("main", "file:///verl")
    for _ in range(2):
        VerlUaeSearchPath().manipulate_search_path(path)
    assert [item.path for item in path.get_path()] == ["file:///verl", CONFIG_PATH]


def test_verls_own_configs_win_and_ours_are_found(compose) -> None:
    assert compose("data.train_files=x", name="ppo_trainer").trainer.v1.trainer_mode != "uae_g4u"
    assert compose().trainer.v1.trainer_mode == "uae_g4u"
