# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Hydra search path: makes ``--config-name uae_g4u`` resolve under verl's own entry point."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from verl_uae.config import PACKAGES


class VerlUaeSearchPath(SearchPathPlugin):
    """Appends our configs after verl's, so our configs can build on verl's by name."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        known = {item.path for item in search_path.get_path()}
        for path in (f"pkg://{package}" for package in PACKAGES):
            if path not in known:
                search_path.append(provider="verl_uae", path=path)
