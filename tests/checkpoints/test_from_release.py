# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The import against the release's own models, put together by hand as its demo does.

Shape legend: B samples, L text positions, E language-model width.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints.release_world import Release, build_release
from tests.checkpoints.test_from_sd3 import by_diffusers
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.imports import ReleaseImport, import_release, sort_llm, sort_llm_lora
from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.errors import CheckpointError
from verl_uae.families.sd3 import SD3
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.scenes.captioning import Captioner
from verl_uae.seeding import normal

CAPTIONS = ["a red circle", "a large blue square in the top left"]


@pytest.fixture(scope="module")
def release(tiny_models: Path, sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return build_release(tiny_models, sd3, tmp_path_factory.mktemp("release") / "UAE")


@pytest.fixture(scope="module")
def imported(release: Release) -> Path:
    out = release.folder.parent / "imported"
    import_release(ReleaseImport(str(release.folder), condition_length=20), out)
    return out


@torch.no_grad()
def test_pictures_are_those_of_the_release(release: Release, imported: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(release.folder / "llm_processor")
    by_hand = Conditioner(release.language.model.language_model, tokenizer, SD3({}, {}, length=20))
    states_BLE = release.projector(by_hand.encode(CAPTIONS).states)
    pooled = by_diffusers(release.folder / "SD3", "")
    noise = normal((2, *Decoder.from_pretrained(str(imported)).latent_shape(32, 32)), "noise")
    sigmas = sigma_schedule(4, 3.0)
    x = noise
    for now, later in itertools.pairwise(sigmas):
        velocity = release.transformer(
            hidden_states=x,
            timestep=(1000.0 * now).expand(2),
            encoder_hidden_states=states_BLE,
            pooled_projections=pooled.expand(2, -1),
        ).sample
        x = x + (later - now) * velocity
    vae = AutoencoderKL.from_pretrained(release.folder / "SD3", subfolder="vae")
    latent = x / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    wanted = (vae.decode(latent).sample * 0.5 + 0.5).clamp(0.0, 1.0)

    decoder = Decoder.from_pretrained(str(imported))
    conditioner = Conditioner.from_pretrained(str(imported / "captioner"), SD3({}, {}, length=20))
    drawn = decoder.sample(conditioner.encode(CAPTIONS), noise, sigmas)
    torch.testing.assert_close(drawn, wanted, atol=1e-4, rtol=0)
    assert (drawn[0] - drawn[1]).abs().max() > 0.01, "pictures do not depend on the caption"


@torch.no_grad()
def test_captions_are_those_of_the_release(release: Release, imported: Path, tiny_models: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(imported / "captioner")
    model = AutoModelForImageTextToText.from_pretrained(imported / "captioner", dtype=torch.float32).eval()
    base = AutoModelForImageTextToText.from_pretrained(tiny_models / "captioner", dtype=torch.float32).eval()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss, by_hand, before = (
        Captioner(each, processor.tokenizer).loss(image, CAPTIONS) for each in (model, release.language, base)
    )
    torch.testing.assert_close(loss, by_hand, atol=1e-5, rtol=0)
    assert (loss - before).abs() > 0.01
    ids = processor.tokenizer(CAPTIONS[:1], return_tensors="pt").input_ids
    logits, wanted = model(input_ids=ids).logits, release.language(input_ids=ids).logits
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    assert (logits - base(input_ids=ids).logits).abs().max() > 0.1


def test_the_folder_is_complete(imported: Path) -> None:
    verify_folder(imported)
    assert json.loads((imported / "model_index.json").read_text())["condition_length"] == 20
    assert not (imported / "language_model").exists()
    generation = json.loads((imported / "captioner" / "generation_config.json").read_text())
    assert generation == {"temperature": 0.7, "do_sample": True}
    assert {"tokenizer.json", "chat_template.jinja", "processor_config.json"} <= {
        path.name for path in (imported / "captioner").iterdir()
    }
    assert "| lora_alpha | 64 |" in (imported / "README.md").read_text()


def test_the_projector_is_the_trained_one(release: Release, imported: Path) -> None:
    decoder = Decoder.from_pretrained(str(imported))
    for place in (0, 2):
        for kind in ("weight", "bias"):
            found = getattr(decoder.projector.layers[place], kind)
            assert torch.equal(found, getattr(release.projector[place], kind))


def test_names_of_the_repository_are_found_too(release: Release, imported: Path, tmp_path: Path) -> None:
    shutil.copytree(release.folder, tmp_path / "UAE")
    for name, other in (("SD3", "SD3_model"), ("llm", "llm_model"), ("llm_processor", "llm_model_preprocessor")):
        (tmp_path / "UAE" / name).rename(tmp_path / "UAE" / other)
    manifest = import_release(ReleaseImport(str(tmp_path / "UAE"), condition_length=20), tmp_path / "out")
    names = [name for name in manifest["files"] if name != "README.md"]
    assert all(manifest["files"][name] == verify_folder(imported)["files"][name] for name in names)


@pytest.fixture
def copied(release: Release, tmp_path: Path) -> Path:
    shutil.copytree(release.folder, tmp_path / "UAE")
    return tmp_path / "UAE"


def refused(folder: Path, error: str, **settings: int) -> CheckpointError:
    with pytest.raises(CheckpointError, match=error) as caught:
        import_release(ReleaseImport(str(folder), **settings), folder.parent / "out")
    assert {path.name for path in folder.parent.iterdir()} == {"UAE"}
    return caught.value


@pytest.mark.parametrize("name", ["SD3", "llm", "llm_lora", "dit", "dit_lora", "llm_processor"])
def test_a_missing_folder_is_named(copied: Path, name: str) -> None:
    shutil.rmtree(copied / name)
    refused(copied, f"0 folders are called {name}")


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def test_a_tensor_without_place_is_named(copied: Path) -> None:
    path = copied / "llm_lora" / "model-00001-of-00003.safetensors"
    edit(path, lambda state: state.update({"visual.extra.weight": torch.zeros(1)}))
    refused(copied, r"llm_lora: 1 tensors have no place: \['visual\.extra\.weight'\]; 0 are missing")


def test_a_missing_shard_is_found(copied: Path) -> None:
    (copied / "llm_lora" / "model-00002-of-00003.safetensors").unlink()
    refused(copied, "llm_lora: .*(missing|one half|without base)")


def test_a_tensor_in_two_shards_is_named(copied: Path) -> None:
    first, second = (copied / "llm_lora" / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    name = next(iter(load_file(first)))
    edit(second, lambda state: state.update({name: torch.zeros(1)}))
    refused(copied, f"{name} is in another shard too")


def test_an_adapter_of_the_transformer_with_unknown_layers_is_named(copied: Path) -> None:
    name = "base_model.model.transformer_blocks.7.attn.to_q.lora_A.weight"
    edit(copied / "dit_lora" / "adapter_model.safetensors", lambda state: state.update({name: torch.zeros(3, 96)}))
    refused(copied, r"1 tensors have no place in the transformer or are missing: .*transformer_blocks\.7")


def test_pickles_are_refused(copied: Path) -> None:
    for name in ("llm_lora/extra.bin", "dit_lora/adapter_model.safetensors"):
        path = copied / name
        if path.exists():
            path.rename(path.with_suffix(".bin"))
            refused(copied, r"adapter_model\.safetensors: not a sound safetensors file")
        else:
            path.touch()
            refused(copied, r"extra\.bin: pickles are refused")
            path.unlink()


def test_another_rank_than_expected_is_refused(copied: Path) -> None:
    refused(copied, r"adapters of rank \[32\], expected 16", lora_rank=16)


def test_a_head_that_is_not_the_embedding_it_is_tied_to_is_refused(copied: Path) -> None:
    config = copied / "llm" / "config.json"
    text = config.read_text()
    assert '"tie_word_embeddings": false' in text
    config.write_text(text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    refused(copied, r"lm_head\.weight differs from model\.embed_tokens\.weight")


HERE = Path("llm_lora")
KNOWN = [
    "visual.patch_embed.proj.weight",
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.norm.weight",
    "lm_head.weight",
]
PEFT = "model.base_model.model."


def numbered(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every tensor filled with its own number."""
    return {name: torch.full(shape, float(number)) for number, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def llm() -> dict[str, Tensor]:
    shapes = dict.fromkeys(KNOWN, (4, 4)) | {"model.norm.weight": (4,), "model.layers.0.self_attn.q_proj.bias": (4,)}
    projector = {f"projector.{place}.{kind}": (2,) for place in (0, 2) for kind in ("weight", "bias")}
    return numbered(shapes | projector)


@pytest.fixture
def llm_lora(llm: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that the table in the module's docstring shows."""
    state: dict[str, Tensor] = {}
    for name, tensor in llm.items():
        if "_proj." in name and name.startswith("model."):
            layer, _, kind = name.removeprefix("model.").rpartition(".")
            state[f"{PEFT}{layer}.base_layer.{kind}"] = tensor
            state[f"{PEFT}{layer}.lora_A.default.weight"] = torch.zeros(2, 4)
            state[f"{PEFT}{layer}.lora_B.default.weight"] = torch.zeros(4, 2)
        else:
            state[name.replace("model.", PEFT, 1) if name.startswith("model.") else name] = tensor
    return state


def test_names_before_and_after_peft_become_the_same(llm: dict[str, Tensor], llm_lora: dict[str, Tensor]) -> None:
    before, after = sort_llm(llm, KNOWN, HERE), sort_llm_lora(llm_lora, KNOWN, HERE, rank=2)
    for state in (before, after):
        assert sorted(state.model) == sorted(KNOWN)
        assert all(torch.equal(tensor, llm[name]) for name, tensor in state.model.items())
        assert sorted(state.projector) == ["layers.0.bias", "layers.0.weight", "layers.2.bias", "layers.2.weight"]
        assert torch.equal(state.projector["layers.2.bias"], llm["projector.2.bias"])
    assert not before.adapters
    assert sorted(after.adapters) == ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]


def test_the_projector_may_be_in_one_of_both_only(llm_lora: dict[str, Tensor]) -> None:
    without = {name: tensor for name, tensor in llm_lora.items() if not name.startswith("projector.")}
    assert sort_llm_lora(without, KNOWN, HERE, rank=2).projector == {}


def test_a_tied_head_may_be_written(llm: dict[str, Tensor]) -> None:
    known = [name for name in KNOWN if name != "lm_head.weight"]
    assert sort_llm(llm, known, HERE).model.keys() == set(KNOWN)


Q = f"{PEFT}layers.0.self_attn.q_proj"
EDITS = {
    "unknown": ({"visual.more": torch.zeros(1)}, [], r"have no place: \['visual\.more'\]"),
    "missing": ({}, [f"{PEFT}norm.weight"], r"are missing: \['model\.norm\.weight'\]"),
    "half a projector": ({}, ["projector.2.bias"], r"missing: \['projector\.2\.bias'\]"),
    "more projector": ({"projector.4.bias": torch.zeros(1)}, [], r"no place: \['projector\.4\.bias'\]"),
    "not wrapped": ({"model.norm.weight": torch.zeros(4)}, [], r"not below model\.base_model\.model\."),
    "of transformers 5": ({"model.language_model.norm.weight": torch.zeros(4)}, [], "not below"),
    "half an adapter": ({}, [f"{Q}.lora_A.default.weight"], "only one half"),
    "no adapter": (
        {f"{Q}.weight": torch.zeros(4, 4), f"{Q}.bias": torch.zeros(4)},
        [f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight", f"{Q}.base_layer.weight", f"{Q}.base_layer.bias"],
        r"1 linear layers of the language model have no adapter: \['model\.layers\.0\.self_attn\.q_proj'\]",
    ),
    "adapter without base": (
        {f"{Q}.weight": torch.zeros(4, 4)},
        [f"{Q}.base_layer.weight", f"{Q}.base_layer.bias"],
        "without base layer",
    ),
    "another rank": (
        {
            f"{PEFT}layers.0.{layer}.lora_{half}.default.weight": torch.zeros(shape)
            for layer in ("mlp.up_proj", "self_attn.q_proj")
            for half, shape in (("A", (3, 4)), ("B", (4, 3)))
        },
        [],
        r"adapters of rank \[3\], expected 2",
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_is_not_accounted_for_is_named(llm_lora: dict[str, Tensor], what: str) -> None:
    added, removed, error = EDITS[what]
    state = {name: tensor for name, tensor in {**llm_lora, **added}.items() if name not in removed}
    with pytest.raises(CheckpointError, match=error):
        sort_llm_lora(state, KNOWN, HERE, rank=2)


def test_adapters_have_no_place_in_the_model_before(llm_lora: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="have no place"):
        sort_llm(llm_lora, KNOWN, HERE)
