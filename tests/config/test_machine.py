# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.config.test_validate import changed
from verl_uae.errors import ConfigError
from verl_uae.launch.callbacks import Machine, check_machine, demand

NODE = Machine(cpus=96, accelerators=8)
LAPTOP = Machine(cpus=2, accelerators=0, why_none="torch 2.11.0 is built for CPUs")
FILES = ("data.train_files=a.parquet", "data.val_files=a.parquet", "uae.decoder.path=a/b")
UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"


@pytest.fixture(scope="module")
def gpu(compose: Callable[..., Any]) -> Any:
    return compose(*FILES)


@pytest.fixture(scope="module")
def cpu(compose: Callable[..., Any]) -> Any:
    return compose(*FILES, "hardware=cpu")


def test_the_defaults_fit_their_machines(gpu: Any, cpu: Any) -> None:
    check_machine(gpu, NODE)
    check_machine(cpu, LAPTOP)


def test_all_that_reserves_a_cpu_is_counted(gpu: Any) -> None:
    """8 bundles of 3, the controller, 8 storage units, and one that is free to place actors."""
    found = demand(gpu)
    assert sum(found.gpus.values()) == 8 and sum(found.cpus.values()) == 8 * 3 + 1 + 8 + 1
    check_machine(gpu, Machine(cpus=34, accelerators=8))
    own = changed(gpu, "uae.decoder.pool=own", "uae.decoder.n_gpus_per_node=2")
    assert sum(demand(own).gpus.values()) == 10 and sum(demand(own).cpus.values()) == 10 * 3 + 10
    served = changed(
        gpu, "actor_rollout_ref.rollout.name=hf", "+actor_rollout_ref.rollout.engine_kwargs.hf={num_cpus: 2}"
    )
    assert sum(demand(served).cpus.values()) == 34 + 2 * 8


@pytest.mark.parametrize(
    ("overrides", "machine", "key", "texts"),
    [
        ([], LAPTOP, "trainer.device", ["no accelerator", "built for CPUs", "hardware=cpu", "RAY_ADDRESS"]),
        (["+ray_kwargs.ray_init.num_gpus=8"], LAPTOP, "trainer.device", ["hardware=cpu"]),
        ([], Machine(cpus=96, accelerators=4), "trainer.n_gpus_per_node", ["takes 8 GPUs", "Ray will find 4"]),
        (["trainer.nnodes=2"], NODE, "trainer.n_gpus_per_node", ["takes 16 GPUs", "RAY_ADDRESS"]),
        (["uae.decoder.pool=own"], NODE, "uae.decoder.n_gpus_per_node", ["takes 9 GPUs", "lower uae.decoder"]),
        (
            ["trainer.n_gpus_per_node=1"],
            Machine(cpus=8, accelerators=1),
            UNITS,
            ["takes 13 CPUs", "Ray will find 8", "set it to 3 or less", "num_cpus=13"],
        ),
        ([], Machine(cpus=16, accelerators=8), "ray_kwargs.ray_init.num_cpus", ["takes 34 CPUs", "set it to 34"]),
        (["ray_kwargs.ray_init.num_cpus=30"], NODE, UNITS, ["Ray will find 30", "set it to 4 or less"]),
    ],
    ids=["no GPU", "GPUs only said", "fewer GPUs", "no cluster", "own pool", "one GPU", "few cores", "num_cpus"],
)
def test_what_could_never_be_placed_is_refused(
    gpu: Any, overrides: list[str], machine: Machine, key: str, texts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_machine(changed(gpu, *overrides), machine)
    assert caught.value.key == key
    assert not [text for text in texts if text not in str(caught.value)], str(caught.value)


def test_what_the_message_advises_is_enough(gpu: Any) -> None:
    machine = Machine(cpus=8, accelerators=1)
    for advice in (f"{UNITS}=3", "ray_kwargs.ray_init.num_cpus=13"):
        check_machine(changed(gpu, "trainer.n_gpus_per_node=1", advice), machine)


def test_stated_resources_count_instead_of_those_found(cpu: Any) -> None:
    check_machine(changed(cpu, "trainer.n_gpus_per_node=8"), LAPTOP)
    with pytest.raises(ConfigError, match=r"raise ray_kwargs\.ray_init\.num_gpus"):
        check_machine(changed(cpu, "trainer.n_gpus_per_node=9"), LAPTOP)
