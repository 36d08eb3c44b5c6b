# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Measurements of speed and memory; see README.md."""

import os
import sys

# Before anything imports transformers or diffusers, which import torchvision: see verl_uae.compat.
import verl_uae  # noqa: F401

# verl takes a machine without accelerator for a CUDA one unless it is told before its first import. Whoever imports a
# benchmark, as the tests do, has a platform already.
if any(word.split(".")[0] == "benchmarks" for word in sys.orig_argv) and not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("VERL_PLATFORM", "cpu")
