# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image

from tests.chain.conftest import picture
from verl_uae.chain.captioner import caption_messages
from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.config import DecoderConfig
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.draw import Painter, PainterSettings
from verl_uae.chain.loading import load_model
from verl_uae.chain.pipeline import UAEPipeline
from verl_uae.chain.records import Caption, Draw, Sample
from verl_uae.checkpoints.export import ExportSettings, export_checkpoint
from verl_uae.checkpoints.inference import (
    ENTRIES,
    NEGATIVE_PROMPT,
    InferenceSettings,
    settings_of_run,
    write_run_settings,
)
from verl_uae.checkpoints.record import RunConfig, config_text, write_run_config
from verl_uae.checkpoints.step import mark_complete
from verl_uae.data.schema import CaptionPrompt
from verl_uae.errors import CheckpointError, DecodeError
from verl_uae.families.sd3 import SD3
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward import RewardScorer
from verl_uae.seeding import normal
from verl_uae.stages.common.captions import CaptionSettings, FrozenCaptioner
from verl_uae.stages.g4u.decoder_worker import build_redrawer

CAPTIONS = ["a red circle", "a large blue square", ""]
DRAWING: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}


def noise(count: int) -> torch.Tensor:
    return torch.stack([normal((30, 4, 4), "pipeline noise", index) for index in range(count)])


def sources(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(index) for index in range(count)]


# ---------------------------------------------------------------- one sampler


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_draws_the_pictures_of_training_time_evaluation(
    pipe: UAEPipeline, tiny_models: Path, captioner_folder: Path, guidance: float
) -> None:
    """Conditioner and decoder loaded as a decoder worker loads them; same caption, same noise, same noise levels."""
    decoder = Decoder.from_pretrained(str(tiny_models / "decoder"))
    conditions = ConditionCache(Conditioner.from_pretrained(str(captioner_folder), SD3({}, {}, length=20)), 8)
    settings = PainterSettings(32, 32, (30, 4, 4), NEGATIVE_PROMPT, 8, 8, 8)
    painter = Painter(conditions, decoder.vae, RewardScorer([("pixel", 1.0, {})]), settings, "cpu")
    keys = [("k", index) for index in range(2 * len(CAPTIONS))]
    samples = [Sample(picture(0), Caption(text, "d")) for text in CAPTIONS for _ in range(2)]
    plan = SamplingPlan.ode(sigma_schedule(4, 3.0), guidance)
    drawn = painter.draw(decoder.field, plan, list(map(Draw, samples, keys)))
    expected, cut = decoder.decode_latent(drawn.trajectory.final_BCHW), [one.truncated for one in drawn.outcomes[::2]]
    latents = torch.stack([normal((30, 4, 4), *key) for key in keys])
    found = pipe(
        CAPTIONS,
        num_inference_steps=4,
        guidance_scale=guidance,
        num_images_per_prompt=2,
        latents=latents,
        output_type="pt",
    )
    assert torch.equal(found.images, expected) and found.truncated == cut


def test_an_exported_run_captions_and_draws_as_it_validated(
    compose: Any, tiny_models: Path, captioner_folder: Path, tmp_path: Path
) -> None:
    """The folder against what the trainer builds of the run's configuration: caption engine, and chain of the decoders.

    No setting is a default of the pipeline, and no argument is given. The same with the real command:
    tests/e2e/test_formats.py.
    """
    config = compose(
        *("hardware=cpu", "preset=scenes", f"uae_home={tiny_models}", f"uae.conditioner.path={captioner_folder}"),
        *("actor_rollout_ref.rollout.val_kwargs.temperature=0", "data.max_response_length=9"),
        *("uae.decoder.num_steps=3", "uae.decoder.guidance=2.5", "uae.decoder.negative_prompt=a red square"),
        *("uae.decoder.shift=1.5", "uae.decoder.height=16", "uae.conditioner.length=18"),
    )
    step = tmp_path / "global_step_1"
    shutil.copytree(captioner_folder, step / "actor" / "huggingface")
    prompt = CaptionPrompt("<image>describe", "red", rows=1, total=1)
    write_run_config(step, config_text(config))
    write_run_settings(step, settings_of_run(RunConfig(config).get, prompt))
    mark_complete(step, 1)
    export_checkpoint(step, tmp_path / "model", ExportSettings())
    pipe = UAEPipeline.from_pretrained(tmp_path / "model")

    pictures = [picture(seed, *size) for seed, size in enumerate([(32, 32), (45, 70), (90, 33), (20, 20)])]
    settings = CaptionSettings(seed=0, prompt_length=64, response_length=config.data.max_response_length)
    engine = FrozenCaptioner(str(captioner_folder), settings)
    asked = [caption_messages(image, prompt.user, prompt.system) for image in pictures]
    captions = [caption.text for caption in engine.write(asked, [{}] * len(asked))]
    assert pipe.caption(pictures) == captions and len(set(captions)) > 1
    redrawer = build_redrawer(config, "cpu", "cpu")
    draws = [
        Draw(Sample(image, Caption(text, "d")), ("k", index))
        for index, (image, text) in enumerate(zip(pictures, captions, strict=True))
    ]
    finals = redrawer.painter.draw(redrawer.decoder.field, redrawer.plan, draws).trajectory.final_BCHW
    expected = redrawer.decoder.decode_latent(finals)
    latents = torch.stack([normal(redrawer.painter.settings.latent_shape, *draw.noise) for draw in draws])
    drawn = pipe.generate(captions, latents=latents, output_type="pt").images
    assert drawn.shape[-2:] == (16, 32) and torch.equal(drawn, expected)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_is_the_loop_of_stock_diffusers_at_the_same_noise_levels(pipe: UAEPipeline, guidance: float) -> None:
    steps, shift = 5, pipe.scheduler.config.shift
    assert shift == 3.0, "a shift of 1 would hide a shift applied twice or not at all"
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    states, negative = (pipe.encode_prompt([text])[0].states for text in (CAPTIONS[0], NEGATIVE_PROMPT))
    x = noise(1)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            velocity = [
                pipe.transformer(
                    hidden_states=x,
                    timestep=timestep[None],
                    encoder_hidden_states=pipe.conditioner(condition),
                    pooled_projections=pipe.conditioner.pooled[None],
                ).sample
                for condition in (states, negative)
            ]
            guided = velocity[1] + guidance * (velocity[0] - velocity[1])
            x = scheduler.step(guided, timestep, x).prev_sample
        decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0.0)).sample
    found = pipe(
        CAPTIONS[0], latents=noise(1), num_inference_steps=steps, guidance_scale=guidance, output_type="latent"
    )
    assert torch.allclose(found.images, x, atol=2e-5)
    assert torch.allclose(pipe.decoder.decode_latent(found.images), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_several_prompts_are_the_single_ones_with_their_generators(pipe: UAEPipeline) -> None:
    together = pipe(CAPTIONS, num_images_per_prompt=2, generator=sources(6), **DRAWING).images
    alone = [
        pipe(caption, num_images_per_prompt=2, generator=sources(6)[2 * index : 2 * index + 2], **DRAWING).images
        for index, caption in enumerate(CAPTIONS)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.05
    one = pipe(CAPTIONS, generator=torch.Generator().manual_seed(5), **DRAWING).images
    again = pipe(CAPTIONS, generator=torch.Generator().manual_seed(5), **DRAWING).images
    assert torch.equal(one, again) and not torch.equal(one[0], one[2])


def test_noise_levels_by_hand_and_shift_of_the_scheduler(pipe: UAEPipeline) -> None:
    by_steps = pipe("red", latents=noise(1), **DRAWING).images
    by_hand = pipe("red", latents=noise(1), **{**DRAWING, "sigmas": sigma_schedule(4, 3.0)}).images
    assert torch.equal(by_steps, by_hand)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    assert not torch.equal(by_steps, pipe("red", latents=noise(1), **DRAWING).images)


# ---------------------------------------------------------------- conventions of diffusers


def test_defaults_are_those_of_the_paper() -> None:
    own = inspect.signature(UAEPipeline.__init__).parameters
    assert {name: own[name].default for name in ENTRIES} == dataclasses.asdict(InferenceSettings())
    defaults = [own[name].default for name in ("num_inference_steps", "guidance_scale", "negative_prompt")]
    assert defaults == [40, 5.0, DecoderConfig.negative_prompt]
    assert UAEPipeline.__call__ is UAEPipeline.generate and issubclass(UAEPipeline, DiffusionPipeline)


def test_output_types(pipe: UAEPipeline) -> None:
    found = {
        kind: pipe("red", latents=noise(1), **{**DRAWING, "output_type": kind}).images
        for kind in ("pil", "np", "pt", "latent")
    }
    assert found["pil"][0].size == (32, 32) and found["np"].shape == (1, 32, 32, 3) and found["pt"].shape[1] == 3
    assert np.array_equal(found["np"][0], found["pt"][0].permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(found["pil"][0]), (found["np"][0] * 255).round().astype(np.uint8))
    assert torch.equal(pipe.decoder.decode_latent(found["latent"]), found["pt"])
    images, captions, truncated = pipe("red", latents=noise(1), return_dict=False, **DRAWING)
    assert torch.equal(images, found["pt"]) and captions == ["red"] and truncated == [False]


def test_the_callback_sees_every_step_and_may_change_the_latents(pipe: UAEPipeline) -> None:
    seen: list[tuple[int, float, torch.Tensor]] = []

    def watch(owner: UAEPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        assert (
            owner is pipe and set(tensors) == {"latents"} and owner.guidance_scale == 3.0 and owner.num_timesteps == 4
        )
        seen.append((step, float(timestep), tensors["latents"]))
        return {}

    plain = pipe("red", latents=noise(1), callback_on_step_end=watch, **{**DRAWING, "output_type": "latent"}).images
    assert [step for step, _, _ in seen] == [0, 1, 2, 3] and torch.equal(seen[-1][2], plain)
    assert [time for _, time, _ in seen] == pytest.approx((sigma_schedule(4, 3.0)[:-1] * 1000).tolist())

    def shift_last(_: UAEPipeline, step: int, __: torch.Tensor, tensors: dict) -> dict:
        return {"latents": tensors["latents"] + 1} if step == 3 else tensors

    moved = pipe("red", latents=noise(1), callback_on_step_end=shift_last, **{**DRAWING, "output_type": "latent"})
    assert torch.equal(moved.images, plain + 1)


def test_interrupt_ends_the_drawing_and_the_next_call_starts_anew(pipe: UAEPipeline) -> None:
    states: list[torch.Tensor] = []

    def stop(owner: UAEPipeline, step: int, _: torch.Tensor, tensors: dict) -> dict:
        states.append(tensors["latents"])
        owner._interrupt = step == 1
        return tensors

    found = pipe("red", latents=noise(1), callback_on_step_end=stop, **{**DRAWING, "output_type": "latent"}).images
    assert len(states) == 2 and torch.equal(found, states[1]) and pipe.interrupt
    full = pipe("red", latents=noise(1), **{**DRAWING, "output_type": "latent"}).images
    assert not pipe.interrupt and not torch.equal(full, found)


def test_the_progress_bar_counts_steps_and_can_be_turned_off(pipe: UAEPipeline, capsys: pytest.CaptureFixture) -> None:
    pipe("red", **DRAWING)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="drawing", mininterval=0.0)
    pipe("red", **DRAWING)
    assert "drawing" in (shown := capsys.readouterr().err) and "4/4" in shown


def offload_sequentially(pipe: UAEPipeline) -> None:
    """As enable_sequential_cpu_offload, whose device would be "cpu:0": accelerate's hooks cannot move there."""
    for model in (model for model in pipe.components.values() if isinstance(model, torch.nn.Module)):
        accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert pipe.transformer.device.type == "meta" and pipe.captioner.device.type == "meta"


@pytest.mark.filterwarnings("ignore:You are calling .generate")
@pytest.mark.parametrize("mode", ["model", "sequential"])
@pytest.mark.parametrize("own_language_model", [False, True])
def test_offloading_changes_no_picture_and_no_caption(
    make_pipe: Callable, captioner_folder: Path, mode: str, own_language_model: bool
) -> None:
    """Hooks and moves are real; host and device are both the CPU here. Sequential offload leaves weights on "meta"."""
    extra = {"language_model": load_model(captioner_folder, torch.float32)} if own_language_model else {}
    plain, offloaded = make_pipe(**extra), make_pipe(**extra)
    expected = plain.reconstruct([picture(0)], max_new_tokens=8, generator=sources(1), **DRAWING)
    if mode == "model":
        offloaded.enable_model_cpu_offload(device="cpu")
    else:
        offload_sequentially(offloaded)
    for _ in range(2):
        found = offloaded.reconstruct([picture(0)], max_new_tokens=8, generator=sources(1), **DRAWING)
        assert found.captions == expected.captions and torch.allclose(found.images, expected.images, atol=1e-5)
    assert hasattr(offloaded.transformer, "_hf_hook")


def test_offload_brings_the_captioner_in_before_its_language_model_is_called(pipe: UAEPipeline) -> None:
    """The condition calls the inner stack, which has no hook of its own under model offload."""
    pipe.enable_model_cpu_offload(device="cpu")
    asked: list[int] = []
    hook = pipe.captioner._hf_hook
    before = hook.pre_forward
    hook.pre_forward = lambda module, *args, **kwargs: (asked.append(1), before(module, *args, **kwargs))[1]
    pipe.encode_prompt(["red"])
    assert asked == [1]


def test_to_keeps_the_vae_in_fp32(pipe: UAEPipeline) -> None:
    weights = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    assert pipe.to(torch.bfloat16) is pipe
    pipe.to("cpu", torch.float16).to(device="cpu", dtype=torch.bfloat16)
    assert {pipe.transformer.dtype, pipe.conditioner.dtype, pipe.captioner.dtype} == {torch.bfloat16}
    assert all(torch.equal(weights[name], tensor) for name, tensor in pipe.vae.state_dict().items())
    assert pipe.components["vae"] is pipe.vae and pipe.config.vae == ("diffusers", "AutoencoderKL")
    images = pipe("red", latents=noise(1), **DRAWING).images
    assert images.dtype == torch.float32 and bool(images.isfinite().all())


def test_components_make_another_pipeline(pipe: UAEPipeline) -> None:
    other = UAEPipeline(**pipe.components, **pipe.parameters)
    other.set_progress_bar_config(disable=True)
    expected = pipe("red", latents=noise(1), **DRAWING).images
    assert torch.equal(other("red", latents=noise(1), **DRAWING).images, expected)


# ---------------------------------------------------------------- captions and reconstructions


def test_reconstruct_is_caption_then_generate(pipe: UAEPipeline) -> None:
    images = [picture(0), picture(1, 70, 45)]
    captions = pipe.caption(images, max_new_tokens=8)
    found = pipe.reconstruct(images, max_new_tokens=8, latents=noise(2), **DRAWING)
    assert found.captions == captions and found.truncated == [False, False]
    assert torch.equal(found.images, pipe.generate(captions, latents=noise(2), **DRAWING).images)


def test_captions_do_not_depend_on_the_batch(pipe: UAEPipeline) -> None:
    images = [picture(seed, *size) for seed, size in enumerate([(32, 32), (45, 70), (90, 33)])]
    together = pipe.caption(images, max_new_tokens=8, temperature=1.5, generator=sources(3))
    alone = [
        pipe.caption(image, max_new_tokens=8, temperature=1.5, generator=source)[0]
        for image, source in zip(images, sources(3), strict=True)
    ]
    assert together == alone and len(set(together)) > 1
    other = pipe.caption(images[:1], max_new_tokens=8, temperature=1.5, generator=torch.Generator().manual_seed(9))
    assert other != together[:1]


def test_truncation_is_reported(pipe: UAEPipeline) -> None:
    assert pipe(["red " * 100, "red"], **DRAWING).truncated == [True, False]


def test_pictures_come_through_the_one_door(pipe: UAEPipeline, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    picture(0).save(tmp_path / "good.png")
    assert pipe.caption(str(tmp_path / "good.png"), max_new_tokens=8) == pipe.caption(picture(0), max_new_tokens=8)
    with pytest.raises(DecodeError, match=r"bad\.png"):
        pipe.caption([tmp_path / "good.png", tmp_path / "bad.png"])
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    assert pipe.caption(clear, max_new_tokens=8) == pipe.caption(white, max_new_tokens=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt must be"),
        ({"prompt": ["a", 1]}, "prompt must be"),
        ({"height": 33}, "multiples of"),
        ({"height": 0}, "height: must be a whole number of at least 1, got 0"),
        ({"width": -8}, "width: must be a whole number of at least 1, got -8"),
        ({"width": 32.0}, "width: must be a whole number of at least 1, got 32.0"),
        ({"height": "32"}, "height: must be a whole number of at least 1, got '32'"),
        ({"num_inference_steps": 0}, "num_inference_steps: must be"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"latents": torch.zeros(2, 30, 4, 4)}, "latents must have the shape"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators for 1 pictures"),
        ({"sigmas": [0.5, 0.7]}, "falling noise levels"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_impossible_arguments_are_named(pipe: UAEPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "red", **arguments})


def test_what_the_folder_lacks_is_said(make_pipe: Callable, tiny_models: Path) -> None:
    bare = make_pipe(tiny_models / "decoder")
    with pytest.raises(ValueError, match="takes a captioner or a language_model"):
        bare("red")
    with pytest.raises(ValueError, match="only the decoder part"):
        bare.caption(picture(0))


def test_what_would_let_diffusers_load_parts_by_itself_is_refused(model_folder: Path) -> None:
    """None says nothing, as in diffusers."""
    names = {"device_map": "balanced", "variant": "fp16", "custom_pipeline": "evil", "max_memory": {0: "1GB"}}
    for name, value in names.items():
        with pytest.raises(ValueError, match=f"{name} is not supported"):
            UAEPipeline.from_pretrained(model_folder, **{name: value})
    UAEPipeline.from_pretrained(model_folder, **dict.fromkeys(names))


def test_what_is_no_number_is_no_caption_and_no_picture(make_pipe: Callable[..., UAEPipeline]) -> None:
    """The largest of NaN would be any token, and a picture of NaN is black."""
    pipe = make_pipe()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"decodes to no finite numbers in torch\.float32"):
        pipe.generate("a red circle", num_inference_steps=1, guidance_scale=1.0)
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"draws no finite numbers in torch\.float32"):
        pipe.generate("a red circle", num_inference_steps=1, guidance_scale=1.0)
    assert pipe.caption(picture(0), max_new_tokens=2)
    with torch.no_grad():
        pipe.captioner.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"its logits are NaN in torch\.float32"):
        pipe.caption(picture(0), max_new_tokens=2)
