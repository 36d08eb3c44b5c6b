# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Unified-Bench of UAE: caption, redraw, compare; protocol 2 in `judge`. Knows neither verl nor Ray."""
