# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Flow-matching mathematics. Tensors only: this layer imports torch and a few files at the top of the package."""
