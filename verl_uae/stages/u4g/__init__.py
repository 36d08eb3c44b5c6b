# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Understanding for Generation (U4G): diffusion-policy GRPO on the decoder, captions of a frozen captioner."""
