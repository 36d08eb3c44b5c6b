# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Model folders: imported from other layouts, exported from training checkpoints, published whole, verified."""
