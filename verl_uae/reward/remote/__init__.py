# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Rewards computed by another process: a server, its protocol, and the term that asks it (docs/remote_rewards.md)."""
