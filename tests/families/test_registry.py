# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Every family that is registered, as a table of the published models would have it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.source import ROOT
from verl_uae.errors import ConfigError
from verl_uae.families import BUILT_IN, FAMILIES, family_class
from verl_uae.families.published import published


@pytest.mark.parametrize("kind", sorted(BUILT_IN))
def test_a_family_is_found_by_its_transformer_and_lies_in_a_file_of_its_name(kind: str) -> None:
    found = family_class(kind)
    assert next(iter(found.components.values())).__name__ == kind
    assert BUILT_IN[kind] == f"verl_uae.families.{found.name}:{found.__name__}"
    assert found.licence and found.lora_loader is not None and found.steps > 0 and found.guidance >= 1.0
    assert inspect.getdoc(found), "says how it treats unequal lengths"


def test_the_page_lists_every_family_with_its_licence() -> None:
    page = (ROOT / "docs/families.md").read_text(encoding="utf-8")
    for kind in BUILT_IN:
        found = family_class(kind)
        assert found.licence in page, found.name
        # Licence, captions, transformer; presets may have the same names.
        assert page.count(f"\n| `{found.name}` |") >= 3, found.name


def test_names_are_those_of_one_family() -> None:
    assert len({family_class(kind).name for kind in FAMILIES.names()}) == len(FAMILIES.names())


@pytest.mark.parametrize(
    ("name", "width", "latent", "tokens"),
    [
        ("flux3_klein_base", 2560, (128, 32, 64), 2048),
        ("flux2_klein_4b", 2560, (128, 32, 64), 2048),
        ("qwen_image", 3584, (16, 64, 128), 2048),
        ("krea2_raw", 2560, (16, 64, 128), 2048),
        ("qwen_image21", 4096, (64, 32, 64), 2048),
        ("z_image", 2560, (16, 64, 128), 2048),
        ("sana_1600m", 2304, (32, 16, 32), 512),
    ],
)
def test_published_sizes(name: str, width: int, latent: tuple[int, int, int], tokens: int) -> None:
    """Width of the published language model, latents and image tokens of a picture of 512 x 1024."""
    family, _ = published(name)
    assert family.state_width == width
    assert family.latent_shape(512, 1024) == latent and family.image_tokens(512, 1024) == tokens


def test_a_diffusers_without_the_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(__version__="0.41.0", SD3Transformer2DModel=object))
    with pytest.raises(
        ConfigError, match=r"transformer: diffusers 0\.41\.0 has no Flux3Transformer2DModel: install a newer"
    ):
        family_class("Flux3Transformer2DModel")
    assert family_class("SD3Transformer2DModel").name == "sd3"


def test_the_built_in_world_needs_no_family_but_its_own() -> None:
    code = "import sys, verl_uae.scenes.quickstart; sys.exit('verl_uae.scenes.tiny_flux3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
