# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Hydra configs (``uae_*.yaml`` and groups) and their typed schema."""
