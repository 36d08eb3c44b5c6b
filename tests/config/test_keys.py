# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from verl_uae.config.keys import check_keys, check_overrides
from verl_uae.config.schema import UAEConfig
from verl_uae.errors import ConfigError

WRONG = "uae.reward.custom_wieght: unknown key, did you mean uae.reward.custom_weight?"


def keys_of(schema: type, path: str = "uae") -> Iterator[str]:
    for field in dataclasses.fields(schema):
        yield f"{path}.{field.name}"
        if dataclasses.is_dataclass(field.default_factory):
            yield from keys_of(field.default_factory, f"{path}.{field.name}")


@pytest.mark.parametrize("word", ["{}=1", "+{}=1", "++{}=1", "~{}", "~{}=1", "{}=1,2", "{}.more=1", "{}="])
def test_an_unknown_key_is_refused_however_it_is_written(word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_overrides(["--config-name", "uae_g4u", "data.train_files=x", word.format("uae.reward.custom_wieght")])
    assert str(refused.value) == WRONG


def test_a_key_that_resembles_none_gets_the_list() -> None:
    with pytest.raises(ConfigError, match=r"^uae\.zzz: unknown key; known keys: stage, seed, decoder"):
        check_overrides(["uae.zzz=1"])


def test_every_key_of_the_schema_passes() -> None:
    keys = list(keys_of(UAEConfig))
    assert len(keys) > 100
    check_overrides([f"{prefix}{key}=1" for key in keys for prefix in ("", "+", "++", "~")])


@pytest.mark.parametrize(
    "word",
    [
        "uae/decoder=sd35_medium",
        "uae_home=x",
        "uae.reward.terms.0.wieght=1",
        "data.x=uae.zzz=1",
        "--cfg",
        "uae.",
        "uae",
    ],
)
def test_other_words_are_left_to_hydra(word: str) -> None:
    check_overrides([word])


def test_a_composed_section_is_held_to_the_same(compose) -> None:  # type: ignore[no-untyped-def]
    check_keys(compose().uae)
    with pytest.raises(ConfigError) as refused:
        check_keys(compose("+uae.reward.custom_wieght=1").uae)
    assert str(refused.value) == WRONG
