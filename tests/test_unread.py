# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import verl_uae
from verl_uae.config.schema import UAEConfig
from verl_uae.config.validate import ValidateCallback
from verl_uae.unread import UNREAD, unread_overrides

SOURCES = {
    path: path.read_text(encoding="utf-8")
    for place in (
        "data/buckets.py",
        "caption_server/*.py",
        "chain/*.py",
        "checkpoints/*.py",
        "engines/*.py",
        "launch/*.py",
        "reward/**/*.py",
        "stages/**/*.py",
    )
    for path in Path(verl_uae.__file__).parent.glob(place)
}


def names(schema: type, prefix: str) -> Iterator[str]:
    """All sections and keys."""
    for field in dataclasses.fields(schema):
        yield f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(field.default_factory):
            yield from names(field.default_factory, f"{prefix}.{field.name}")  # type: ignore[arg-type]


def test_every_name_in_the_lists_is_a_key() -> None:
    known = set(names(UAEConfig, "uae"))
    assert {name for unread in UNREAD.values() for name in unread} <= known


def test_every_key_is_read_in_some_stage_and_somewhere_in_the_code() -> None:
    keys = [key for key in names(UAEConfig, "uae") if key.count(".") > 1]
    assert not [key for key in keys if all(unread_overrides(stage, [f"{key}=1"]) for stage in UNREAD)]
    text = "\n".join(SOURCES.values())
    # Sections that are passed on whole, as keyword arguments or as verl's own dataclasses.
    whole = ("uae.policy.window.", "uae.pretrain.density.", "uae.unified.", "uae.decoder.", "uae.conditioner.weights")
    missing = [key for key in keys if not re.search(rf"\.{key.rpartition('.')[2]}\b", text)]
    assert not [key for key in missing if not key.startswith(whole)], missing


@pytest.mark.parametrize(
    ("stage", "override", "unread"),
    [
        ("g4u", "uae.policy.window.size=4", True),
        ("g4u", "uae.policy.guidance=2", False),
        ("g4u", "uae.decoder.dtype=float32", False),
        ("u4g", "uae.decoder.dtype=float32", True),
        ("u4g", "++uae.rollout.timeout_s=3", True),
        ("u4g", "uae.policy.optim.lr=1", False),
        ("unified", "uae.policy.captions.cache_size=3", True),
        ("unified", "uae.unified.first=u4g", False),
        ("pretrain", "uae.policy.kernel=ode", True),
        ("pretrain", "uae.pretrain.density.name=mode", False),
        ("cold_start", "uae.pretrain.density.name=mode", True),
        ("cold_start", "uae.pretrain.buckets=true", False),
        ("cold_start", "trainer.nnodes=2", False),
    ],
)
def test_what_a_stage_does_not_read(stage: str, override: str, unread: bool) -> None:
    assert bool(unread_overrides(stage, [override])) is unread


def test_the_command_says_so(compose, tiny_overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = compose(*tiny_overrides, name="uae_u4g")
    task = ["uae.decoder.dtype=float32", "uae.policy.optim.lr=1e-4"]
    OmegaConf.set_struct(config, False)
    config.hydra = {"overrides": {"task": task}}
    ValidateCallback().on_run_start(config)
    assert capsys.readouterr().err == "verl_uae: warning: uae.decoder.dtype is set, but stage u4g does not read it\n"
