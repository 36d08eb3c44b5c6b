# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Learning over seeds on the built-in scenes, each with its bars: ``python -m benchmarks.learning NAME``."""
