# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.rollout.test_pair_encoder import pair
from verl_uae.data.images import to_tensor
from verl_uae.rollout.chain import encode_jpeg
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.scenes.render import render_image
from verl_uae.trainer.pair_validation import PairValidation, policy_sources_of_pairs
from verl_uae.trainer.panel import PanelWriter


class Drawn(PairValidation):
    """Validation whose workers give known outcomes."""

    def __init__(self, folder: Path, outcomes: list[dict[str, Any]]) -> None:
        self.config = OmegaConf.create(
            {
                "uae": {
                    "panel": {"probes": 8},
                    "decoder": {"height": 32, "width": 32},
                    "reward": {"max_invalid_fraction": 0.5},
                }
            }
        )
        self.global_steps, self.logger, self.panels = 4, None, PanelWriter(str(folder))
        self.policy = SimpleNamespace(evaluate=lambda sources, probes: outcomes)


def outcome(value: float | None, status: str = "ok") -> dict[str, Any]:
    picture = encode_jpeg(to_tensor([render_image(held_out_scenes(1, 0)[0])], (32, 32))[0])
    return {
        "value": value,
        "status": status,
        "reason": None if value is not None else "lost",
        "terms": {} if value is None else {"pixel": value},
        "picture": picture,
    }


def test_means_are_over_pictures_that_have_a_reward(tmp_path: Path) -> None:
    outcomes = [outcome(0.5), outcome(None, "error"), outcome(0.7)]
    metrics = Drawn(tmp_path, outcomes).validate_pictures(policy_sources_of_pairs([pair(0), pair(1), pair(2)]))
    assert metrics["val-core/reward/mean"] == pytest.approx(0.6)
    assert metrics["val-aux/term_pixel/mean"] == pytest.approx(0.6)
    assert metrics["val-aux/uae/invalid_frac"] == pytest.approx(1 / 3)
    assert "a circle" in (tmp_path / "step_000004.html").read_text()


def test_a_pair_that_does_not_decode_has_a_reason_and_no_score() -> None:
    good, bad = policy_sources_of_pairs([pair(0), pair(1, image=b"nothing")])
    assert good.status == "ok" and good.image.size == (32, 32) and good.digest == pair(0).identity
    assert bad.status == "error" and "pairs.parquet" in bad.failure
