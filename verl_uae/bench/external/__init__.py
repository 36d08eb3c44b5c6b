# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks with scorers of their own, run elsewhere: pictures in the folders they want, and what they write, read."""

from __future__ import annotations

from typing import Literal, get_args

Bench = Literal["geneval", "genevalpp", "dpg"]
BENCHES: tuple[Bench, ...] = get_args(Bench)
