# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A folder per stage of Unified-GRPO, and what they share."""
