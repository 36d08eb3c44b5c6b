# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The note of a process that is gone, written by a process that really goes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from verl_uae.reward.deadline import doing, last_words, note_of

SCORER = """
import os, signal, sys
from PIL import Image
from verl_uae.reward import RewardScorer, TermSpec
from verl_uae.reward.deadline import write_notes
from verl_uae.reward.record import RewardBatch
import torch

write_notes()
print(os.getpid(), flush=True)
params = {"path": sys.argv[1], "num_threads": 1}
scorer = RewardScorer([TermSpec(name="custom", params=params, label="mine")])
pictures = torch.zeros(3, 3, 8, 8)
rows = [{"extra_info": {"index": 40 + i}} for i in range(3)]
scorer.score(RewardBatch(pictures, pictures, captions=["a"] * 3, rows=rows))
print("survived")
"""

CRASHES = {
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "exit": "import os; os._exit(9)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_is_named_by_term_and_row(tmp_path, crash: str) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        f"    if extra_info['index'] == 41:\n        {CRASHES[crash]}\n    return 1.0\n"
    )
    command = [
        sys.executable,
        "-c",
        SCORER,
        str(reward),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode != 0 and "survived" not in result.stdout, result.stderr
    pid = int(result.stdout.split()[0])
    assert last_words(pid) == "computing reward term 'mine' of 3 samples; row 41"
    assert not note_of(pid).exists() and last_words(pid) == "", "it is read once"


def test_no_note_is_kept_where_nobody_asked_for_one() -> None:
    command = [sys.executable, "-c", "import os\nfrom verl_uae.reward.deadline import doing\n"
               "with doing('x'): print(os.getpid(), flush=True); os._exit(0)"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert not note_of(int(result.stdout)).exists()
    with doing("nothing"):
        pass
