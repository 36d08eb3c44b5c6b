# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Training engines: verl's FSDP engine around the captioner and around the decoder."""
