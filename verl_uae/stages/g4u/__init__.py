# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Generation for Understanding (G4U): token GRPO on the captioner, rewarded by a frozen decoder."""
