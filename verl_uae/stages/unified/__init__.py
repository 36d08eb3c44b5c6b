# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The unified stage: G4U and U4G in one run, in turns or in every step."""
