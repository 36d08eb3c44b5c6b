# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The generation half of the chain: caption -> condition -> picture."""
