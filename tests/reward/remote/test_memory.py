# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a request may take, as the peak of a process that scores it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from verl_uae.reward.remote.service import SCORING_BYTES, WAITING_BYTES

#: Scores one small request, then the request, and prints by how many bytes the peak has risen.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from verl_uae.data.limits import ImageLimits
from verl_uae.reward.remote.protocol import RawSample
from verl_uae.reward.remote.service import MAX_REQUEST_PIXELS, ScoringService
from verl_uae.reward.remote.service import parse_terms
from verl_uae.reward.remote.protocol import encode_picture

side, count = map(int, sys.argv[1:])
terms = parse_terms(["pixel", "psnr", "ssim"], "terms")
limits = ImageLimits(max_bytes=2**27, max_pixels=2**24, min_side=1)
service = ScoringService(terms, device="cpu", timeout_s=600.0, source_cache_bytes=0, limits=limits)

def request(side, count):
    black = encode_picture(np.zeros((side, side, 3), dtype=np.uint8))
    gray = encode_picture(np.full((side, side, 3), 90, dtype=np.uint8))
    return [RawSample(str(n), n, {"source": black, "reconstruction": gray}) for n in range(count)]

def score(samples):
    assert all(record.ok for record in service.score(samples).values())
    # Not getrusage: its peak begins with that of the process that started this one.
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

assert side * side * count <= MAX_REQUEST_PIXELS
samples = request(side, count)
before = score(request(32, 1))
print(score(samples) - before)
"""


def risen(side: int, count: int) -> int:
    command = [sys.executable, "-c", SCRIPT, str(side), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return int(result.stdout.split()[-1])


@pytest.mark.parametrize("side", [1024, pytest.param(4096, marks=pytest.mark.slow)])
def test_a_request_takes_what_its_pixels_may(side: int) -> None:
    """The first is a few kilobytes of request, the second as many pixels as the default allows, in one picture."""
    peak = risen(side, 1)
    # These terms work with at most 64 bytes per pixel (docs/rewards.md); a picture this large is a call of its own.
    assert 12 * side * side < peak < (SCORING_BYTES + WAITING_BYTES + 64) * side * side + 128 * 2**20
