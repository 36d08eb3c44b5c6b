# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Cold start: captioner and decoder learn together from the semantic reconstruction loss."""
