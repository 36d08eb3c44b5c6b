# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The section ``uae:``, its checks, and the Hydra files that stages share; those of one stage are in its folder."""

from pathlib import Path

#: Values of ``uae.stage``. Each has a folder of its name in ``verl_uae/stages``, with the config ``uae_NAME.yaml`` and
#: a ``trainer`` that registers ``uae_NAME``.
STAGES = ("pretrain", "cold_start", "g4u", "u4g", "unified")

#: Packages whose folders hold our Hydra files, in the order in which Hydra looks into them.
PACKAGES = ("verl_uae.config", *(f"verl_uae.stages.{stage}" for stage in STAGES))


def yaml_files() -> dict[str, Path]:
    """Our Hydra files by the name that Hydra has for them: ``uae_g4u``, or ``hardware/cpu`` for one of a group.

    Raises:
        ValueError: two files have one name; Hydra would take the first and say nothing.
    """
    root = Path(__file__).parents[2]
    found: dict[str, Path] = {}
    for folder in (root.joinpath(*package.split(".")) for package in PACKAGES):
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise ValueError(f"{found[name]} and {path} are both {name} for Hydra")
            found[name] = path
    return found
