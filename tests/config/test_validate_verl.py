# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.config.test_validate import changed
from verl_uae.config.validate import ValidateCallback
from verl_uae.config.validate_verl import _PRECISIONS, _WHOLE, _WHOLE_OR_NULL, validate_verl
from verl_uae.errors import ConfigError

ENGINES = ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "uae.policy.fsdp_config")


@pytest.fixture(scope="module")
def base(compose, tiny_models) -> DictConfig:  # type: ignore[no-untyped-def]
    return compose("hardware=cpu", "preset=scenes", f"uae_home={tiny_models}", name="uae_unified")


def refused(config: DictConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        validate_verl(config)
    return str(caught.value)


@pytest.mark.parametrize("key", [*_WHOLE, *_WHOLE_OR_NULL])
def test_a_count_is_a_whole_number(base: DictConfig, key: str) -> None:
    least = {**_WHOLE, **_WHOLE_OR_NULL}[key]
    validate_verl(changed(base, f"{key}=64"))
    for value in (least - 1, 2.5, "many", "'8'", "true", "nan", "[4]"):
        assert refused(changed(base, f"{key}={value}")).startswith(f"{key}: must be a whole number, at least {least}")
    if key in _WHOLE_OR_NULL:
        validate_verl(changed(base, f"{key}=null"))
    else:
        assert refused(changed(base, f"{key}=null")).endswith("got None")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("actor_rollout_ref.rollout.temperature", ("0", "-1", "nan", "warm", "null")),
        ("actor_rollout_ref.actor.optim.lr", ("-1", "nan", "inf", "'1e-6'", "null")),
        ("uae.policy.optim.lr", ("-1", "nan", "inf", "'1e-6'", "null")),
    ],
)
def test_a_number_is_finite_and_in_its_range(base: DictConfig, key: str, values: tuple[str, ...]) -> None:
    validate_verl(changed(base, f"{key}=1e-6"))
    for value in values:
        assert refused(changed(base, f"{key}={value}")).startswith(f"{key}: must be ")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["model_dtype", "dtype", "mixed_precision.param_dtype"])
def test_a_precision_is_one_that_verl_knows(base: DictConfig, engine: str, name: str) -> None:
    key = f"{engine}.{name}"
    for value in (*_PRECISIONS, "null"):
        validate_verl(changed(base, f"{key}={value}"))
    for value in ("float31", "int8", "fp8", "''", "[fp32]"):
        assert refused(changed(base, f"{key}={value}")).startswith(f"{key}: must be one of fp32, ")


def test_the_names_of_precisions_are_verls() -> None:
    from verl.utils.torch_dtypes import PrecisionType

    assert len({PrecisionType.to_dtype(name) for name in _PRECISIONS}) == 3


def test_a_check_that_breaks_stops_the_run(capsys: pytest.CaptureFixture) -> None:
    """Hydra would make a warning of it, and start the run unchecked."""
    broken: Any = OmegaConf.create({"uae": 3})
    with pytest.raises(SystemExit) as left:
        ValidateCallback().on_run_start(broken)
    assert left.value.code == 2
    assert "verl_uae: the settings could not be checked: " in capsys.readouterr().err
