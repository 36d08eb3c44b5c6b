# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures and rows: the one door through which image bytes enter, the parquet schema, packing, verl's dataset."""
