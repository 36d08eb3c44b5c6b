# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The built-in world: scenes that are drawn and described by rule, tiny models that learn them, and exact checks."""
