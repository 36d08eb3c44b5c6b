# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Operations of every stage and family: what is estimated from the command, against torch's own counter around the
package's workers on tiny real models."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.estimate import world
from tests.estimate.conftest import FAMILIES
from tests.real_size import models
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.records import Caption, Draw, Sample
from verl_uae.data.pairs import Pair
from verl_uae.estimate import report
from verl_uae.estimate.estimator import Estimator
from verl_uae.stages.common.build import evaluation_plan
from verl_uae.stages.u4g.config import chosen_objective
from verl_uae.stages.u4g.worker import Layout, preview_plan, sampling_plan

CLOSE = 0.1
"""What the issue allows."""

U4G = [
    "data.train_batch_size=1",
    "uae.u4g.samples_per_caption=4",
    "uae.u4g.updates_per_rollout=1",
    "uae.u4g.num_steps=4",
    "uae.u4g.window.size=2",
    "uae.u4g.guidance=2.0",
    "uae.decoder.guidance=2.0",
    "uae.train.micro_batch_size=2",
    "uae.u4g.captions.source=column",
]
SIDES = {"sd3": 32, "default": 64}


def sized(family: str) -> list[str]:
    side = SIDES.get(family, SIDES["default"])
    words = [f"uae.decoder.height={side}", f"uae.decoder.width={side}"]
    # Positions that the tiny transformer of the scenes was made for.
    return [*words, "uae.conditioner.length=20"] if family == "sd3" else words


def executed(estimator: Estimator, *names: str) -> float:
    """Operations of phases of a step."""
    phases = estimator.estimate("H100-80GB").phases
    assert set(names) <= {phase.name for phase in phases}
    return sum(phase.executed.total for phase in phases if phase.name in names)


def photograph(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (9, 200, 30))


@pytest.mark.parametrize("rank", [2, 0], ids=["adapters", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_u4g(family: str, rank: int, tiny: Callable[[str], Path], cpu: Any, one_rank: Any) -> None:
    asked = world.asked("u4g", tiny(family), *U4G, *sized(family), f"uae.train.lora.rank={rank}")
    estimator = Estimator(asked)
    worker = world.policy_worker(asked)
    caption = Caption(estimator.work.caption, "digest")
    sample = Sample(photograph(asked.config.uae.decoder.height), caption)
    plan = sampling_plan(asked.config, worker.family, 0)
    layout = Layout(sources=1, members=4, updates=1, ranks=1)
    # That of the unconditional branch is made once in a run.
    worker.painter.conditions.negative(asked.config.uae.decoder.negative_prompt)
    outcomes: list[Any] = []
    explored = world.counted(lambda: outcomes.extend(worker.explore([sample], layout, plan.to_dict(), 1)[0]))
    assert [str(outcome.record.status) for outcome in outcomes] == ["ok"] * 4
    improved = world.counted(lambda: worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 0))
    assert executed(estimator, "condition", "denoising", "VAE") == pytest.approx(explored, rel=CLOSE)
    assert executed(estimator, "update") == pytest.approx(improved, rel=CLOSE)


@pytest.mark.parametrize("steps", [2, None], ids=["previews", "drawn once"])
def test_u4g_with_a_pool(steps: int | None, tiny: Callable[[str], Path], cpu: Any, one_rank: Any) -> None:
    """Of two captions one trains: four of its eight candidates, in two updates. Where these are not drawn again, the
    old log-probabilities of the second are computed again."""
    pool = ["data.train_batch_size=2", "uae.u4g.pool.size=8", "uae.u4g.pool.keep_captions=1"]
    words = [*U4G, *pool, f"uae.u4g.pool.steps={steps or 'null'}", *sized("sd3"), "uae.u4g.updates_per_rollout=2"]
    asked = world.asked("u4g", tiny("sd3"), *words, "uae.train.lora.rank=2")
    estimator, worker = Estimator(asked), world.policy_worker(asked)
    samples = [
        Sample(photograph(asked.config.uae.decoder.height), Caption(estimator.work.caption, digest)) for digest in "ab"
    ]
    plan, layout = sampling_plan(asked.config, worker.family, 0), Layout(1, 4, 2, 1, (0, 2, 5, 7))
    worker.painter.conditions.negative(asked.config.uae.decoder.negative_prompt)
    pictures = [(source, member) for source in range(2) for member in range(8)]
    drawn = preview_plan(asked.config, worker.family) or plan
    previews = world.counted(lambda: worker.draw_candidates(samples, pictures, drawn.to_dict(), 1, not steps))
    if steps:
        redrawn = world.counted(lambda: worker.explore(samples[1:], layout, plan.to_dict(), 1))
        assert executed(estimator, "condition", "preview denoising", "preview VAE") == pytest.approx(
            previews, rel=CLOSE
        )
        assert executed(estimator, "denoising", "VAE") == pytest.approx(redrawn, rel=CLOSE)
    else:
        worker.adopt(samples[1:], layout, plan.to_dict(), 1, [(1, member) for member in layout.candidates])
        assert executed(estimator, "condition", "denoising", "VAE") == pytest.approx(previews, rel=CLOSE)
        phases = {phase.name for phase in estimator.estimate("H100-80GB").phases}
        assert not any(name.startswith("preview") for name in phases)
    names = ["update"] if steps else ["update", "old velocities"]
    improved = world.counted(lambda: worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 0))
    assert executed(estimator, *names) == pytest.approx(improved, rel=CLOSE)
    assert report.pictures(estimator.estimate("H100-80GB")) == (20 if steps else 16)


@pytest.mark.parametrize("family", ["sd3", "flux3"])
def test_u4g_with_places_together(family: str, tiny: Callable[[str], Path], cpu: Any, one_rank: Any) -> None:
    """Of two updates, old log-probabilities of the second are computed again."""
    words = [*U4G, "uae.u4g.updates_per_rollout=2", "uae.u4g.replay_steps=null", *sized(family)]
    asked = world.asked("u4g", tiny(family), *words, "uae.train.lora.rank=2")
    estimator = Estimator(asked)
    worker = world.policy_worker(asked)
    sample = Sample(photograph(asked.config.uae.decoder.height), Caption(estimator.work.caption, "digest"))
    plan = sampling_plan(asked.config, worker.family, 0)
    worker.explore([sample], Layout(sources=1, members=4, updates=2, ranks=1), plan.to_dict(), 1)
    improved = world.counted(lambda: worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 0))
    assert executed(estimator, "update", "old velocities") == pytest.approx(improved, rel=CLOSE)


@pytest.mark.parametrize("family", ["sd3", "flux3"])
def test_u4g_with_a_shared_prefix(family: str, tiny: Callable[[str], Path], cpu: Any, one_rank: Any) -> None:
    """Groups of three in micro-batches of two: a middle one has members of both captions. Two steps of six are the
    prefix, and the reference has its part of it."""
    words = [*U4G, "data.train_batch_size=2", "uae.u4g.samples_per_caption=3", "uae.u4g.num_steps=6", *sized(family)]
    words += ["uae.u4g.window.mode=fixed", "uae.u4g.window.low=1", "uae.u4g.share_noise=true"]
    words += ["uae.u4g.shared_prefix=true", "uae.u4g.reference_kl.coef=0.1", "uae.train.lora.rank=2"]
    asked = world.asked("u4g", tiny(family), *words)
    estimator, worker = Estimator(asked), world.policy_worker(asked)
    caption = estimator.work.caption
    samples = [Sample(photograph(asked.config.uae.decoder.height), Caption(caption, digest)) for digest in "ab"]
    plan, layout = sampling_plan(asked.config, worker.family, 0), Layout(2, 3, 1, 1)
    assert plan.window == (1, 2)
    worker.painter.conditions.negative(asked.config.uae.decoder.negative_prompt)
    explored = world.counted(lambda: worker.explore(samples, layout, plan.to_dict(), 1))
    assert executed(estimator, "condition", "denoising", "VAE") == pytest.approx(explored, rel=0.02)
    improved = world.counted(lambda: worker.improve([1.0, -1.0, 0.5] * 2, [1.0] * 6, 0))
    assert executed(estimator, "update", "reference") == pytest.approx(improved, rel=0.02)


@pytest.mark.parametrize(
    "words",
    [
        ["decoder/objective=nft"],
        ["decoder/objective=awm"],
        ["decoder/objective=dgpo"],
        ["decoder/objective=crd"],
        ["decoder/objective=nft", "uae.u4g.reference_kl.coef=0", "uae.u4g.objective.norm_guard=0.1"],
    ],
    ids=["nft", "awm", "dgpo", "crd", "nft with the hinge"],
)
def test_u4g_on_the_forward_process(words: list[str], tiny: Callable[[str], Path], cpu: Any, one_rank: Any) -> None:
    """Old velocities, a reference with its own guidance, figures of the groups, and the update."""
    more = ["uae.u4g.objective.num_sigmas=2", "uae.u4g.samples_per_caption=4", "uae.u4g.num_steps=3"]
    given = [*U4G, "uae.u4g.guidance=1", "uae.decoder.guidance=1", *words, *more, *sized("sd3")]
    asked = world.asked("u4g", tiny("sd3"), *given, "uae.train.lora.rank=2")
    estimator, worker = Estimator(asked), world.policy_worker(asked, shadows=("ema", "old"))
    sample = Sample(photograph(asked.config.uae.decoder.height), Caption(estimator.work.caption, "digest"))
    plan = sampling_plan(asked.config, worker.family, 0)
    worker.explore([sample], Layout(sources=1, members=4, updates=1, ranks=1), plan.to_dict(), 1)
    improved = world.counted(lambda: worker.improve([1.0, -1.0, 0.5, -0.5], [1.0] * 4, 0))
    names = ["update", "old velocities", "reference"]
    names += ["figures of the groups"] if chosen_objective(asked.config).grouped else []
    phases = {phase.name for phase in estimator.estimate("H100-80GB").phases}
    assert ("figures of the groups" in phases) == ("figures of the groups" in names)
    assert executed(estimator, *names) == pytest.approx(improved, rel=CLOSE)


G4U = ["data.train_batch_size=1", "uae.decoder.guidance=2.0", "uae.decoder.num_steps=3", "uae.decoder.batch_size=2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_g4u_pictures(family: str, tiny: Callable[[str], Path], cpu: Any) -> None:
    asked = world.asked("g4u", tiny(family), *G4U, *sized(family))
    estimator = Estimator(asked)
    painter = world.painter(asked)
    painter.settings = dataclasses.replace(painter.settings, micro_batch_size=2)
    decoder = Decoder.from_pretrained(asked.config.uae.decoder.path)
    sample = Sample(photograph(64), Caption(estimator.work.caption, "digest"))
    painter.conditions.negative(asked.config.uae.decoder.negative_prompt)
    plan = evaluation_plan(asked.config, painter.family)
    draws = [Draw(sample, ("noise", number)) for number in range(4)]
    drawn = world.counted(lambda: painter.draw(decoder.field, plan, draws))
    parts = {phase.name: phase.executed.total for phase in estimator.estimate("H100-80GB").phases}
    # Four different captions are one batch of the conditioner, as one caption is.
    assert parts["condition"] + parts["denoising"] + parts["VAE"] == pytest.approx(drawn, rel=CLOSE)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("rank", [0, 2], ids=["full", "adapters"])
def test_g4u_captions(kind: str, rank: int, tiny: Callable[[str], Path]) -> None:
    """Log-probabilities and update of the captioner: of the same batch, the same model with its weights."""
    words = ["captioner/training=lora", f"actor_rollout_ref.model.lora_rank={rank}"] if rank else []
    asked = world.asked("g4u", tiny({"qwen2_5_vl": "qwen_image", "qwen3_vl": "flux3"}[kind]), *G4U, *words)
    work = Estimator(asked).work
    model: Any = AutoModelForImageTextToText.from_pretrained(asked.config.actor_rollout_ref.model.path)
    side = 256 // 8
    image = side * side // 4
    ids_BT = torch.full((2, image + 77 + 32), 1)
    ids_BT[:, 4 : 4 + image] = model.config.image_token_id
    inputs = {"input_ids": ids_BT, "image_grid_thw": torch.tensor([[1, side, side]] * 2)}
    inputs |= {"pixel_values": torch.zeros(2 * side * side, 3 * 2 * 8 * 8), "use_cache": False}
    inputs["mm_token_type_ids"] = (ids_BT == model.config.image_token_id).long()
    if rank:
        targets = LoraConfig(r=rank, target_modules="all-linear", exclude_modules=".*visual.*")
        model = get_peft_model(model, targets)
    else:
        model.requires_grad_(True)
        model.model.visual.requires_grad_(False)
    model.train()
    forward = world.counted(lambda: model(**inputs))
    both = world.counted(lambda: model(**inputs).logits.mean().backward())
    assert work.captioner(2, gradient=False).total == pytest.approx(forward, rel=CLOSE)
    assert work.captioner(2, gradient=True).total == pytest.approx(both, rel=CLOSE)


def test_pretraining(tiny: Callable[[str], Path], cpu: Any, one_rank: Any) -> None:
    words = ["data.train_batch_size=4", "uae.train.micro_batch_size=2", "uae.pretrain.buckets=false"]
    words += ["uae.pretrain.condition_dropout=0", "uae.conditioner.length=20"]
    asked = world.asked("pretrain", tiny("sd3"), *words, *sized("sd3"))
    estimator = Estimator(asked)
    worker = world.pair_worker(asked)
    pairs = []
    for number in range(4):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (number, 200, 30)).save(buffer, "PNG")
        pairs.append(Pair(buffer.getvalue(), estimator.work.caption, None, 32, 32, "file", number))
    learnt = world.counted(lambda: worker.learn(pairs, (32, 32), 1))
    assert executed(estimator, "VAE", "condition", "update") == pytest.approx(learnt, rel=CLOSE)


@pytest.mark.parametrize(("family", "kept"), [("sd3", 0), ("sd3", 1), ("sd3", 2), ("flux3", 1)])
def test_cold_start(
    family: str, kept: int, tiny: Callable[[str], Path], tmp_path: Path, cpu: Any, one_rank: Any
) -> None:
    clip = models.save_clip(tmp_path)
    words = ["data.train_batch_size=2", "uae.train.micro_batch_size=2", "uae.cold_start.num_steps=2"]
    words += ["uae.cold_start.guidance=2.0", f"+uae.cold_start.backbone_params.model={clip}"]
    words += ["uae.train.train_projector=false", "uae.train.lora.rank=2", "uae.cold_start.captioner.lora.rank=2"]
    asked = world.asked("cold_start", tiny(family), *words, *sized(family), f"uae.cold_start.kept_steps={kept}")
    estimator = Estimator(asked)
    work = estimator.work
    loss, data, engine = world.cold_start(asked, work.caption, work.caption_tokens, clip)
    trained = world.counted(lambda: engine.forward_backward_batch(data, loss))
    estimated = executed(estimator, "captioner", "path", "picture", "way back")
    assert estimated == pytest.approx(trained, rel=CLOSE)
    # The forward passes of the others alone are done again.
    phases = {phase.name: phase for phase in estimator.estimate("H100-80GB").phases}
    again = phases["way back"].executed.total - phases["way back"].useful
    assert again == pytest.approx((2 - kept) / 2 * phases["path"].executed.total, rel=1e-6)
