# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import dataclasses
import inspect

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from verl_uae.config import policy_schema, schema, supervised_schema
from verl_uae.config.schema import UAEConfig


def test_defaults_form_a_valid_structured_config() -> None:
    config = OmegaConf.structured(UAEConfig)
    assert config.stage == "g4u" and OmegaConf.is_missing(config.decoder, "path")


@pytest.mark.parametrize(
    "override",
    [
        "uae.decoder.nmu_steps=3",
        "uae.decoder.num_steps=many",
        "uae.decoder.timeout_s=null",
        "uae.seed=x",
        "uae.reward.terms=[{nam: pixel}]",
    ],
)
def test_hydra_refuses_wrong_types_and_names(compose, tiny_overrides, override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        compose(*tiny_overrides, override)


def test_every_field_says_what_it_is() -> None:
    """A string follows every field of every dataclass of the schema, except fields that are a section of their own."""
    trees = [ast.parse(inspect.getsource(module)) for module in (schema, policy_schema, supervised_schema)]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    sections = {node.name for node in classes}
    assert len(classes) >= 21
    for node in classes:
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) not in sections:
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented, f"{node.name}.{ast.unparse(field.target)}"


def test_the_sampler_settings_are_fields_of_the_decoder() -> None:
    from verl_uae.chain.reconstruct import SamplerSettings

    names = {field.name for field in dataclasses.fields(schema.DecoderConfig)}
    assert {field.name for field in dataclasses.fields(SamplerSettings)} <= names
