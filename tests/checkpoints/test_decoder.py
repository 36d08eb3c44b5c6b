# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoints.test_shards import change
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.decoder import (
    Base,
    adapter_alpha,
    base_tensors,
    chosen_weights,
    decoder_adapters,
    decoder_modules,
)
from verl_uae.checkpoints.names import BASE_FILE, POLICY_FOLDER
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families.sd3 import SD3

META = "lora_train_meta.json"


def same_as(exported: Path, modules: dict[str, torch.nn.Module]) -> bool:
    wanted = Decoder.from_pretrained(str(exported)).modules_by_folder()
    assert modules.keys() == wanted.keys() - {"vae"}
    return all(
        torch.equal(tensor, modules[part].state_dict()[name])
        for part in modules
        for name, tensor in wanted[part].state_dict().items()
    )


@pytest.mark.parametrize("weights", ["live", "ema"])
@pytest.mark.parametrize("kind", ["full", "uneven", "empty"])
def test_modules_are_those_that_the_engine_exports(shards: Path, kind: str, weights: str) -> None:
    modules = decoder_modules(shards / kind, weights, None, None)
    assert same_as(shards / f"{kind}_{weights}", modules)
    assert not same_as(shards / f"{kind}_{'ema' if weights == 'live' else 'live'}", modules)
    assert not any(parameter.requires_grad for module in modules.values() for parameter in module.parameters())


def test_averaged_weights_are_chosen_where_there_are_any(shards: Path, tmp_path: Path) -> None:
    assert chosen_weights(shards / "full", None) == "ema"
    assert chosen_weights(shards / "full", "live") == "live"
    shutil.copytree(shards / "full", tmp_path / "full")
    for path in (tmp_path / "full" / POLICY_FOLDER).glob("shadows_*"):
        path.unlink()
    assert chosen_weights(tmp_path / "full", None) == "live"


@pytest.fixture
def checkpoint(shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(shards / "uneven", tmp_path / "step")
    return tmp_path / "step"


def test_shards_of_adapters_alone_need_the_decoder_they_belong_to(
    checkpoint: Path, shards: Path, tiny_models: Path
) -> None:
    state = torch.load(checkpoint / POLICY_FOLDER / "model_world_size_2_rank_0.pt", weights_only=True)
    assert state and all(".lora_" in name for name in state)
    assert same_as(shards / "uneven_live", decoder_modules(checkpoint, "live", None, None)), "the checkpoint names it"
    (checkpoint / POLICY_FOLDER / BASE_FILE).unlink()
    with pytest.raises(ConfigError, match=r"--decoder: needed: .* holds adapters alone"):
        decoder_modules(checkpoint, "live", None, None)
    modules = decoder_modules(checkpoint, "live", tiny_models / "decoder", None)
    assert same_as(shards / "uneven_live", modules)


def test_another_base_is_refused_by_name_and_the_same_elsewhere_is_not(
    checkpoint: Path, shards: Path, tiny_models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "moved"
    shutil.copytree(tiny_models / "decoder", other)
    assert same_as(shards / "uneven_live", decoder_modules(checkpoint, "live", other, None))
    file = next((other / "transformer").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"base\.json: trained from .*decoder .* not what {other} holds now"):
        decoder_modules(checkpoint, "live", other, None)


def test_adapters_are_those_of_the_shards(shards: Path, tiny_models: Path) -> None:
    adapters = decoder_adapters(shards / "uneven", "live", tiny_models / "decoder", None)
    assert (adapters.rank, adapters.alpha, adapters.scaling, len(adapters.layers)) == (5, 10.0, 2.0, 15)
    base = Decoder.from_pretrained(str(tiny_models / "decoder")).transformer
    merged = Decoder.from_pretrained(str(shards / "uneven_live")).transformer
    largest = 0.0
    for name, (a_RI, b_OR) in adapters.layers.items():
        wanted = merged.get_parameter(f"{name}.weight") - base.get_parameter(f"{name}.weight")
        torch.testing.assert_close(2.0 * b_OR @ a_RI, wanted.detach(), atol=1e-6, rtol=0)
        largest = max(largest, wanted.abs().max().item())
    assert largest > 1e-3


def test_what_adapters_cannot_hold_is_refused(shards: Path, tiny_models: Path) -> None:
    with pytest.raises(CheckpointError, match="trained full weights, not adapters"):
        decoder_adapters(shards / "full", "live", None, None)
    with pytest.raises(CheckpointError, match="the projector was trained too"):
        decoder_adapters(shards / "empty", "live", tiny_models / "decoder", None)


def layers(rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {"q": (torch.zeros(rank, 3), torch.zeros(3, rank))}


def test_alpha_is_what_was_saved_else_what_is_given(tmp_path: Path) -> None:
    assert adapter_alpha(tmp_path, layers(4), 6.0) == 6.0
    with pytest.raises(ConfigError, match="--lora-alpha: needed"):
        adapter_alpha(tmp_path, layers(4), None)
    (tmp_path / META).write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    assert adapter_alpha(tmp_path, layers(4), None) == adapter_alpha(tmp_path, layers(4), 8.0) == 8.0
    with pytest.raises(ConfigError, match="6 was given, the checkpoint says 8"):
        adapter_alpha(tmp_path, layers(4), 6.0)
    with pytest.raises(CheckpointError, match="says rank 4, the adapters have 2"):
        adapter_alpha(tmp_path, layers(2), None)
    (tmp_path / META).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{META}: cannot be read"):
        adapter_alpha(tmp_path, layers(4), None)


def test_shards_that_do_not_fit_the_configuration_are_refused(checkpoint: Path) -> None:
    config = checkpoint / POLICY_FOLDER / "huggingface" / "transformer" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(CheckpointError, match="the transformer does not fit its configuration"):
        decoder_modules(checkpoint, "live", None, None)
    config.unlink()
    with pytest.raises(CheckpointError, match="missing: it names the class of the transformer"):
        decoder_modules(checkpoint, "live", None, None)


def test_tensors_of_no_part_are_refused(checkpoint: Path) -> None:
    for rank in (0, 1):
        path = checkpoint / POLICY_FOLDER / f"model_world_size_2_rank_{rank}.pt"
        change(path, lambda state: state.update({"vae.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"1 tensors belong to no part of the decoder: \['vae\.weight'\]"):
        decoder_modules(checkpoint, "live", None, None)


PARTS = tuple(SD3.trained.values())


def test_a_base_is_its_weight_files(tiny_models: Path, tmp_path: Path) -> None:
    source = tiny_models / "decoder"
    files = sorted(path for part in PARTS for path in (source / part).glob("*.safetensors"))
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(source)}\n" for file in files)
    base = Base.of(str(source), PARTS)
    assert base == Base(str(source), hashlib.sha256(lines.encode()).hexdigest()) and len(files) == 2
    shutil.copytree(source, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("moved")
    base.check(Base.of(str(tmp_path / "moved"), PARTS), tmp_path)
    captioner = Base.of(str(tiny_models / "captioner"), (".",))
    with pytest.raises(CheckpointError, match=rf"{BASE_FILE}: trained from {source} .*not what .*captioner holds now"):
        base.check(captioner, tmp_path)


def test_a_base_is_written_beside_the_shards_and_read_back(tmp_path: Path) -> None:
    assert Base.read(tmp_path) is None
    Base("somewhere/else", "ab" * 32).write(tmp_path)
    assert Base.read(tmp_path) == Base("somewhere/else", "ab" * 32)


@pytest.mark.parametrize("text", ["", "[]", '{"path": "p"}', "[" * 100_000, "\x00"])
def test_a_damaged_note_of_a_base_is_an_error_and_not_no_note(tmp_path: Path, text: str) -> None:
    (tmp_path / BASE_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{BASE_FILE}: cannot be read"):
        Base.read(tmp_path)


def test_single_weights_are_read_as_they_are_stored(tiny_models: Path) -> None:
    source = str(tiny_models / "decoder")
    whole = Decoder.from_pretrained(source).state_dict()
    names = {"transformer.proj_out.weight", "projector.pooled"}
    found = base_tensors(source, names)
    assert set(found) == names and all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    assert set(base_tensors(source)) == {name for name in whole if not name.startswith("vae.")}
    with pytest.raises(CheckpointError, match=r"1 weights are missing: \['transformer\.nowhere\.weight'\]"):
        base_tensors(source, {"transformer.nowhere.weight"})
    with pytest.raises(CheckpointError, match="there is no such folder"):
        base_tensors("/no/such/decoder")
