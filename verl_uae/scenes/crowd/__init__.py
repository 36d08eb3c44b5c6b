# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Scenes with many objects and long captions: how far a condition reaches past 77 tokens."""
