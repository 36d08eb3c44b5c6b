# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Shards that verl's checkpoint manager wrote on two gloo ranks, against what the engine gathered with collectives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.checkpoints.shard_probe import KINDS
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.decoder import base_tensors
from verl_uae.checkpoints.lora import merge, split_adapters
from verl_uae.checkpoints.shards import load_tensors, read_shards, weight_copies
from verl_uae.errors import CheckpointError


@pytest.mark.parametrize("weights", ["live", "ema"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_put_together_without_a_process_group(
    shards: Path, kind: str, weights: str, tiny_models: Path
) -> None:
    assert not torch.distributed.is_initialized()
    folder = shards / kind / "decoder_policy"
    base, layers = split_adapters(read_shards(folder, weights), folder)
    settings = KINDS[kind]
    scaling = settings["lora_alpha"] / settings["lora_rank"] if layers else 1.0
    found = merge({**base_tensors(str(tiny_models / "decoder")), **base}, layers, scaling, folder)
    wanted = Decoder.from_pretrained(str(shards / f"{kind}_{weights}")).state_dict()
    wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("vae.")}
    assert found.keys() == wanted.keys() and bool(layers) == ("lora_rank" in settings)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("kind", KINDS)
def test_live_and_averaged_weights_differ(shards: Path, kind: str) -> None:
    folder = shards / kind / "decoder_policy"
    live, ema = read_shards(folder), read_shards(folder, "ema")
    assert live.keys() == ema.keys() and any(not torch.equal(live[name], ema[name]) for name in live)
    assert weight_copies(folder) == ["ema"]


def test_the_probe_made_the_layouts_it_is_about(shards: Path) -> None:
    """Uneven and empty parts, and replicas."""

    def parts(kind: str) -> list[Any]:
        states = [
            torch.load(shards / kind / "decoder_policy" / f"model_world_size_2_rank_{rank}.pt", weights_only=True)
            for rank in (0, 1)
        ]
        name = next(name for name in states[0] if ".lora_A." in name)
        assert all(isinstance(state[name], DTensor) for state in states)
        return [state[name] for state in states]

    assert [len(part.to_local()) for part in parts("uneven")] == [3, 2]
    assert [len(part.to_local()) for part in parts("empty")] == [1, 0]
    assert parts("replicated")[0].device_mesh.ndim == 2


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(shards / "uneven" / "decoder_policy", tmp_path / "decoder_policy")
    return tmp_path / "decoder_policy"


def shard(folder: Path, rank: int = 1) -> Path:
    return folder / f"model_world_size_2_rank_{rank}.pt"


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)


def test_a_missing_rank_is_named(folder: Path) -> None:
    shard(folder).unlink()
    with pytest.raises(CheckpointError, match="missing: the run had 2 ranks") as caught:
        read_shards(folder)
    assert caught.value.path == shard(folder)


def test_shards_of_two_runs_are_refused(folder: Path) -> None:
    shutil.copy(shard(folder), folder / "model_world_size_3_rank_0.pt")
    with pytest.raises(CheckpointError, match=r"different numbers of ranks: \[2, 3\]"):
        read_shards(folder)
    with pytest.raises(CheckpointError, match="holds no shards of weights"):
        read_shards(folder.parent)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        read_shards(folder / "nowhere")


def test_a_rank_too_many_is_refused(folder: Path) -> None:
    shutil.copy(shard(folder), folder / "model_world_size_2_rank_2.pt")
    with pytest.raises(CheckpointError, match="3 shards of 2 ranks"):
        read_shards(folder)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_a_shard_cannot_run_code(folder: Path, tmp_path: Path) -> None:
    change(shard(folder), lambda state: state.update(extra=Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match="holds something else than tensors") as caught:
        read_shards(folder)
    assert caught.value.path == shard(folder) and not (tmp_path / "sprung").exists()


def test_only_tensors_are_accepted(folder: Path) -> None:
    change(shard(folder), lambda state: state.update(extra="text"))
    change(shard(folder, 0), lambda state: state.update(extra=torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"rank_1\.pt: extra is a str, not a tensor"):
        read_shards(folder)
    torch.save([1], shard(folder))
    with pytest.raises(CheckpointError, match="holds a list, not weights by name"):
        read_shards(folder)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02]q\x00."])
def test_a_damaged_shard_is_named(folder: Path, content: bytes) -> None:
    shard(folder).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_shards(folder)
    assert caught.value.path == shard(folder)


def test_a_truncated_shard_is_named(folder: Path) -> None:
    data = shard(folder).read_bytes()
    shard(folder).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_shards(folder)


def test_ranks_must_hold_the_same_tensors(folder: Path) -> None:
    name = next(iter(load_tensors(shard(folder))))
    change(shard(folder), lambda state: state.pop(name))
    with pytest.raises(CheckpointError, match=rf"holds other tensors than .*rank_0\.pt: \['{re.escape(name)}'\]"):
        read_shards(folder)


def test_what_is_not_sharded_must_agree(folder: Path) -> None:
    for rank in (0, 1):
        change(shard(folder, rank), lambda state, rank=rank: state.update({"projector.pooled": torch.full((3,), rank)}))
    with pytest.raises(CheckpointError, match=r"projector\.pooled is not sharded and differs between ranks"):
        read_shards(folder)


def test_parts_must_make_the_whole(folder: Path) -> None:
    name = next(name for name in load_tensors(shard(folder)) if ".lora_B." in name)

    def shorten(state: dict[str, Any]) -> None:
        state[name]._local_tensor = state[name]._local_tensor[:-1]

    change(shard(folder), shorten)
    with pytest.raises(CheckpointError, match=rf"the parts of {re.escape(name)} make"):
        read_shards(folder)


def test_weight_copies_must_be_there_for_every_rank(folder: Path) -> None:
    copies = folder / "shadows_world_size_2_rank_1.pt"
    with pytest.raises(CheckpointError, match=r"has no weights named 'old'; there are \['ema'\]"):
        read_shards(folder, "old")
    change(copies, lambda state: state["ema"].update(other=torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"weights that the policy does not have: \['other'\]"):
        read_shards(folder, "ema")
    copies.unlink()
    with pytest.raises(CheckpointError, match="missing: the weights 'ema' of this rank"):
        read_shards(folder, "ema")
    (folder / "shadows_world_size_2_rank_0.pt").unlink()
    assert weight_copies(folder) == []


def test_names_are_freed_of_wrappers(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {"_fsdp_wrapped_module.a._checkpoint_wrapped_module.weight": torch.ones(2)}
    torch.save(state, tmp_path / "model_world_size_1_rank_0.pt")
    assert read_shards(tmp_path).keys() == {"a.weight"}
