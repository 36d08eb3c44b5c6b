# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The training command around Ray: before it starts, its signals, and its last words."""
