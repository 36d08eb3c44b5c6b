# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from verl_uae.config.validate import _PRECISIONS, _WHOLE, _WHOLE_OR_NULL, ValidateCallback, validate_verl
from verl_uae.errors import ConfigError

ENGINES = ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "uae.train.fsdp_config")


@pytest.fixture(scope="module")
def base(compose, tiny_models) -> DictConfig:  # type: ignore[no-untyped-def]
    return compose("hardware=cpu", "preset=scenes", f"uae_home={tiny_models}", name="uae_unified")


def accept(base: DictConfig, key: str, value: Any) -> None:
    """Check with one value set; a copy of the whole configuration for each would take a minute."""
    section, _, name = key.rpartition(".")
    before: Any = OmegaConf.to_container(OmegaConf.select(base, section), resolve=False)
    try:
        OmegaConf.update(base, key, value, merge=False)
        validate_verl(base)
    finally:
        OmegaConf.update(base, key, before[name], merge=False)


def refuse(base: DictConfig, key: str, value: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        accept(base, key, value)
    return str(caught.value)


@pytest.mark.parametrize("key", [*_WHOLE, *_WHOLE_OR_NULL])
def test_a_count_is_a_whole_number(base: DictConfig, key: str) -> None:
    least = {**_WHOLE, **_WHOLE_OR_NULL}[key]
    accept(base, key, 64)
    for value in (least - 1, 2.5, "many", "8", True, [4]):
        assert refuse(base, key, value).startswith(f"{key}: must be a whole number, at least {least}")
    if key in _WHOLE_OR_NULL:
        accept(base, key, None)
    else:
        assert refuse(base, key, None).endswith("got None")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("actor_rollout_ref.rollout.temperature", (0, -1, math.nan, "warm", None)),
        ("actor_rollout_ref.rollout.val_kwargs.temperature", (-1, math.nan, "warm", None)),
        ("actor_rollout_ref.rollout.gpu_memory_utilization", (0, -1, 1.5, math.nan, "half", None)),
        ("actor_rollout_ref.actor.kl_loss_coef", (-1, math.nan, "x", None)),
        ("actor_rollout_ref.actor.optim.lr", (-1, math.nan, math.inf, "1e-6", None)),
        ("uae.train.optim.lr", (-1, math.nan, math.inf, "1e-6", None)),
    ],
)
def test_a_number_is_finite_and_in_its_range(base: DictConfig, key: str, values: tuple[Any, ...]) -> None:
    accept(base, key, 1e-6)
    for value in values:
        assert refuse(base, key, value).startswith(f"{key}: must be ")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_group_of_shards_divides_the_ranks(base: DictConfig, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.trainer, "n_gpus_per_node", 8)
    for size in (-1, 1, 4, 8, 16):
        accept(base, f"{engine}.fsdp_size", size)
    for size in (0, 3, 2.0, "4", True):
        assert "divide the 8 ranks" in refuse(base, f"{engine}.fsdp_size", size)


@pytest.mark.parametrize("key", [f"{engine}.{name}" for engine in ENGINES for name in ("model_dtype", "dtype")])
def test_a_precision_is_one_that_verl_knows(base: DictConfig, key: str) -> None:
    for value in (*_PRECISIONS, None):
        accept(base, key, value)
    for value in ("float31", "int8", ""):
        assert refuse(base, key, value).startswith(f"{key}: must be one of fp32, ")


def test_the_names_of_precisions_are_verls() -> None:
    from verl.utils.torch_dtypes import PrecisionType

    assert len({PrecisionType.to_dtype(name) for name in _PRECISIONS}) == 3


def test_a_check_that_breaks_stops_the_run(capsys: pytest.CaptureFixture) -> None:
    """Hydra would make a warning of it, and start the run unchecked."""
    broken: Any = {}
    with pytest.raises(SystemExit) as left:
        ValidateCallback().on_run_start(broken)
    assert left.value.code == 2
    assert "verl_uae: the settings could not be checked: " in capsys.readouterr().err
