# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training: projector and MM-DiT learn by flow matching on pictures with long captions."""
