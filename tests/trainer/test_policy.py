# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from verl_uae.trainer.policy import EXPORT_FOLDER, policy_metrics, prune_exports


def test_metrics_of_updates_are_means_extremes_and_the_first_ones_ratio() -> None:
    updates = [
        {"loss": 1.0, "ratio/max": [1.0], "ratio/min": [[1.0]], "grad_norm": 2.0},
        {"loss": 3.0, "ratio/max": [1.5], "ratio/min": [[0.5]], "grad_norm": 4.0},
    ]
    assert policy_metrics(updates) == pytest.approx(
        {
            "policy/loss": 2.0,
            "policy/grad_norm": 3.0,
            "policy/ratio/max": 1.5,
            "policy/ratio/min": 0.5,
            "policy/first/ratio/max": 1.0,
            "policy/first/ratio/min": 1.0,
        }
    )


def test_only_the_newest_exports_stay(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        (tmp_path / f"global_step_{step}" / EXPORT_FOLDER).mkdir(parents=True)
    prune_exports(tmp_path, None)
    assert len(list(tmp_path.glob(f"*/{EXPORT_FOLDER}"))) == 3
    prune_exports(tmp_path, 2)
    assert {path.parent.name for path in tmp_path.glob(f"*/{EXPORT_FOLDER}")} == {"global_step_9", "global_step_10"}
