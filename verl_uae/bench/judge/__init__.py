# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Unified-Bench protocol 2 of UAE: language models as judges of two candidates."""
