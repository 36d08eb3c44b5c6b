# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline.conftest import picture
from verl_uae import UAEPipeline
from verl_uae.data.images import to_tensor
from verl_uae.demo.session import DemoSession
from verl_uae.errors import ConfigError, DecodeError
from verl_uae.reward import RewardBatch, register_reward, registry
from verl_uae.reward.term import RewardTerm
from verl_uae.reward.terms.pixel import pixel_similarity

FAST = {"steps": 3, "guidance": 2.0}


def test_caption_is_the_pipelines(session: DemoSession, demo_pipe: UAEPipeline, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    assert [session.caption(tmp_path / "a.png")] == demo_pipe.caption(picture(0), max_new_tokens=8)
    sampled = {session.caption(picture(0), seed=seed, temperature=1.5) for seed in range(4)}
    assert len(sampled) > 1 and session.caption(picture(0), seed=1, temperature=1.5) in sampled
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"bad\.png"):
        session.caption(tmp_path / "bad.png")


def test_draws_compares_and_reports_progress(session: DemoSession) -> None:
    told: list[tuple[int, int]] = []
    drawing = session.draw("a red circle", picture(0), on_progress=lambda *step: told.append(step), **FAST)
    assert told == [(1, 3), (2, 3), (3, 3)] and drawing.image.size == (32, 32) and not drawing.truncated
    # The picture is the 8-bit one, the terms saw the fp32 one.
    expected = pixel_similarity(to_tensor([picture(0)], 32), to_tensor([drawing.image], 32)).item()
    assert drawing.similarity["pixel"] == pytest.approx(expected, abs=5e-3)
    assert set(drawing.similarity) == {"pixel", "ssim"}
    assert session.draw("red " * 60, None, **FAST).truncated
    assert session.draw("a red circle", None, **FAST).similarity == {}


def test_equal_seeds_share_their_noise(session: DemoSession) -> None:
    def pixels(caption: str, seed: int, image: Image.Image | None = None) -> np.ndarray:
        return np.asarray(session.draw(caption, image, seed=seed, **FAST).image).astype(int)

    assert np.array_equal(pixels("a red circle", 0), pixels("a red circle", 0, picture(3)))
    assert not np.array_equal(pixels("a red circle", 0), pixels("a red circle", 1))
    assert not np.array_equal(pixels("a red circle", 0), pixels("a blue square", 0))


def test_a_term_without_a_value_says_why_and_leaves_the_others(
    demo_pipe: UAEPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Undefined(RewardTerm):
        bounds = (0.0, 1.0)

        def score(self, batch: RewardBatch) -> torch.Tensor:
            return torch.full((len(batch),), float("nan"))

    monkeypatch.setattr(registry._REGISTRY, "_claims", dict(registry._REGISTRY._claims))
    register_reward("undefined")(Undefined)
    similarity = DemoSession(demo_pipe, ["undefined", "pixel"]).draw("red", picture(0), **FAST).similarity
    assert str(similarity["undefined"]).startswith("invalid") and isinstance(similarity["pixel"], float)


def test_an_unknown_term_is_refused(demo_pipe: UAEPipeline) -> None:
    with pytest.raises(ConfigError, match="beauty"):
        DemoSession(demo_pipe, ["beauty"])
