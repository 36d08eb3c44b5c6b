# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Commands of ``verl-uae`` that stand for training commands, or ask about one."""
