# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.samples import lost, scored
from tests.stages.test_pair_encoder import pair
from verl_uae.chain.records import Outcome
from verl_uae.data.images import encode_jpeg, to_tensor
from verl_uae.errors import StoppedError
from verl_uae.reward.record import Status
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.scenes.render import render_image
from verl_uae.stages.common.pairs import PairValidation, samples_of_pairs
from verl_uae.stages.common.panel import PanelWriter
from verl_uae.stages.common.supervisor import Supervisor


class Drawn(PairValidation):
    """Validation whose workers give known outcomes."""

    def __init__(self, folder: Path, outcomes: list[Outcome]) -> None:
        self.config = OmegaConf.create(
            {
                "uae": {
                    "panel": {"probes": 8},
                    "decoder": {"height": 32, "width": 32},
                    "supervision": {"max_invalid_fraction": 0.5},
                    "train": {"micro_batch_size": 1},
                }
            }
        )
        self.global_steps, self.logger, self.panels = 4, None, PanelWriter(str(folder), str(folder / "index.html"))
        self.supervisor = Supervisor(60.0, "uae.supervision.stall_timeout_s")
        self.asked: list[tuple[int, int]] = []
        rest = iter(outcomes)

        def evaluate(samples: Sequence[Any], probes: int) -> list[Outcome]:
            self.asked.append((len(samples), probes))
            return [next(rest) for _ in samples]

        self.learner = SimpleNamespace(evaluate=evaluate, ranks=2)


def outcome(value: float | None) -> Outcome:
    picture = encode_jpeg(to_tensor([render_image(held_out_scenes(1, 0)[0])], (32, 32))[0])
    return replace(lost() if value is None else scored(value), picture=picture)


def test_means_are_over_pictures_that_have_a_reward(tmp_path: Path) -> None:
    outcomes = [outcome(0.5), outcome(None), outcome(0.7)]
    metrics = Drawn(tmp_path, outcomes).validate_pictures(samples_of_pairs([pair(0), pair(1), pair(2)]))
    assert metrics["val-core/reward/mean"] == pytest.approx(0.6)
    assert metrics["val-aux/term_pixel/mean"] == pytest.approx(0.6)
    assert metrics["val-aux/uae/invalid_frac"] == pytest.approx(1 / 3)
    assert "a circle" in (tmp_path / "step_000004.html").read_text()


def test_a_long_validation_makes_progress_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [outcome(number / 20) for number in range(20)]
    drawn = Drawn(tmp_path, outcomes)
    metrics = drawn.validate_pictures(samples_of_pairs([pair(number % 3) for number in range(20)]))
    assert drawn.asked == [(16, 8), (4, 0)]
    assert metrics["val-core/reward/mean"] == pytest.approx(sum(range(20)) / 400)

    drawn = Drawn(tmp_path, outcomes)
    asked_to_stop = SimpleNamespace(stop_reason=lambda: "SIGTERM" if drawn.asked else None)
    monkeypatch.setattr(drawn.supervisor, "state", asked_to_stop)
    with pytest.raises(StoppedError, match="SIGTERM"):
        drawn.validate_pictures(samples_of_pairs([pair(number % 3) for number in range(20)]))
    assert drawn.asked == [(16, 8)]


def test_a_pair_that_does_not_decode_has_a_reason_and_no_score() -> None:
    good, bad = samples_of_pairs([pair(0), pair(1, image=b"nothing")])
    assert good.caption.ok and good.image.size == (32, 32) and good.caption.digest == pair(0).identity
    assert bad.caption.status is Status.ERROR and "pairs.parquet" in bad.caption.reason
