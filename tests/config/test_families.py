# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a decoder of a family without projector is refused with, before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import tiny
from verl_uae.config import yaml_files
from verl_uae.config.path_keys import validate_models, validate_sizes
from verl_uae.errors import ConfigError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flux3")
    tiny.build("flux3").save(root)
    tiny.build("qwen_image").save(root / "other")
    return root


def overrides(world: Path, tiny_overrides: list[str], *more: str, conditioner: str = "captioner") -> list[str]:
    own = [f"uae.decoder.path={world}/decoder", f"uae.conditioner.path={world}/{conditioner}"]
    return [*tiny_overrides, *own, "uae.conditioner.length=640", "uae.train.train_projector=false", *more]


@pytest.mark.parametrize("name", ["uae_g4u", "uae_u4g", "uae_unified"])
def test_rl_stages_are_let_through(world: Path, compose, tiny_overrides: list[str], name: str) -> None:
    config = compose(*overrides(world, tiny_overrides), name=name)
    validate_models(config)
    validate_sizes(config)


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("uae_pretrain", [], r"uae\.decoder\.path: .*\(flux3\) .* nothing to pre-train: go on with uae_g4u or uae_u4g"),
        ("uae_u4g", ["uae.train.train_projector=true"], r"uae\.train\.train_projector: .* set it to false"),
        ("uae_cold_start", ["uae.cold_start.states=in_context"], r"uae\.cold_start\.states: .* set it to text_only"),
    ],
)
def test_what_a_projector_is_needed_for_is_refused(
    world: Path, compose, tiny_overrides: list[str], name: str, more: list[str], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        validate_models(compose(*overrides(world, tiny_overrides, *more), name=name))


def test_a_stage_is_refused_before_the_hub_is_asked_for_the_language_model(
    world: Path, compose, tiny_overrides: list[str]
) -> None:
    more = ["uae.conditioner.path=owner/model", "uae.train.train_projector=true"]
    with pytest.raises(ConfigError, match=r"uae\.train\.train_projector: .* set it to false"):
        validate_models(compose(*overrides(world, tiny_overrides, *more), name="uae_u4g"))


def test_a_language_model_without_tokenizer_is_refused(
    world: Path, compose, tiny_overrides: list[str], tmp_path: Path
) -> None:
    """As published folders have it: transformers makes a tokenizer that reads every caption as nothing."""
    bare = tmp_path / "text_encoder"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(world / "captioner" / name)
    more = f"uae.conditioner.path={bare}"
    with pytest.raises(ConfigError, match=r"uae\.conditioner\.path: .*text_encoder: has no tokenizer"):
        validate_models(compose(*overrides(world, tiny_overrides, more), name="uae_u4g"))


@pytest.mark.parametrize("name", ["uae_g4u", "uae_u4g"])
@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
        (("processor_config.json",), "its processor does not load"),
        (("chat_template.jinja",), "its chat template cannot be used"),
    ],
)
def test_a_captioner_that_cannot_read_its_prompts_is_refused(
    tiny_models: Path,
    compose,
    tiny_overrides: list[str],
    tmp_path: Path,
    name: str,
    missing: tuple[str, ...],
    reason: str,
) -> None:
    """verl's agent loops would go on without pictures."""
    folder = tmp_path / "captioner"
    folder.mkdir()
    for file in (tiny_models / "captioner").iterdir():
        if file.name not in missing:
            (folder / file.name).symlink_to(file)
    more = [f"actor_rollout_ref.model.path={folder}", f"uae.conditioner.path={tiny_models}/captioner"]
    with pytest.raises(ConfigError, match=rf"actor_rollout_ref\.model\.path: .*{reason}"):
        validate_models(compose(*tiny_overrides, *more, name=name))


def test_states_of_another_language_model_are_refused(world: Path, compose, tiny_overrides: list[str]) -> None:
    """Of the same width."""
    reason = r"uae\.conditioner\.path: .* takes states of qwen3_vl, the language model is a qwen2_5_vl"
    with pytest.raises(ConfigError, match=reason):
        validate_models(compose(*overrides(world, tiny_overrides, conditioner="other/captioner"), name="uae_g4u"))


def test_a_size_without_latents_is_refused(world: Path, compose, tiny_overrides: list[str]) -> None:
    config = compose(*overrides(world, tiny_overrides, "uae.decoder.height=40"), name="uae_g4u")
    with pytest.raises(ConfigError, match=r"uae\.decoder\.height: height and width must be multiples of 16, got 40x32"):
        validate_sizes(config)


def test_every_family_has_a_preset(compose) -> None:
    presets = {Path(name).name for name in yaml_files() if name.startswith("uae/decoder/")}
    assert presets >= {"flux3_klein_base", "flux2_klein_4b", "krea2_raw", "qwen_image", "qwen_image21", "z_image"}
    config = compose("uae/decoder=flux3_klein_base", "uae.decoder.path=x", name="uae_g4u")
    assert (config.uae.decoder.guidance, config.uae.decoder.negative_prompt) == (4.0, "")
