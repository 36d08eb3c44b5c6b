# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The chain as a rollout: captions from verl's LLM server, reconstructions and rewards from decoder workers."""
