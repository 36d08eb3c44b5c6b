# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which reward term sees which damage, and at what cost."""
