# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Hydra configs (``uae_*.yaml`` and groups) and their typed schema."""

#: Values of ``uae.stage``. Each has a folder of its name in ``verl_uae/stages``, whose ``trainer`` registers
#: ``uae_NAME``, and a config ``uae_NAME.yaml``.
STAGES = ("pretrain", "cold_start", "g4u", "u4g", "unified")
