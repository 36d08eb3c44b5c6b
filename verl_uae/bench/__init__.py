# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Unified-Bench protocol 1 of UAE: caption, redraw, compare. Knows neither verl nor Ray."""
