# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Measurements of speed and memory; see README.md."""

# Before anything imports transformers or diffusers, which import torchvision: see verl_uae.compat.
import verl_uae  # noqa: F401
