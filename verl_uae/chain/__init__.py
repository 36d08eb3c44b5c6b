# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The chain that every stage and the pipeline walk: caption, condition, picture, reward. Knows neither verl nor Ray."""
