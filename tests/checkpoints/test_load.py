# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a bad merge, a bad download and a bad neighbour make of a model folder."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.source import PACKAGE, ROOT, modules, relative, tree
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.load import (
    VERIFY,
    check_captioner,
    check_template,
    check_weights,
    load_config,
    load_model,
    load_processor,
    load_scheduler,
    load_tokenizer,
)
from verl_uae.checkpoints.manifest import write_manifest
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError
from verl_uae.families import check_components
from verl_uae.families.sd3 import SD3

Change = Callable[[dict[str, Tensor], str], None]


def captioner_class() -> Any:
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText


def rewrite(folder: Path, change: Change) -> str:
    """Change the tensors of a folder; returns the name of the tensor that was meant."""
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    name = sorted(name for name, tensor in state.items() if tensor.ndim >= 2)[len(state) // 4]
    change(state, name)
    save_file(state, file, {"format": "pt"})
    return name


def gone(state: dict[str, Tensor], name: str) -> None:
    state.pop(name)


def renamed(state: dict[str, Tensor], name: str) -> None:
    state["other." + name] = state.pop(name)


def as_adapters(state: dict[str, Tensor], name: str) -> None:
    state["base_model.model." + name] = state.pop(name)


def too_many(state: dict[str, Tensor], name: str) -> None:
    state["visual_extra"] = torch.zeros(2, 2)


def of_another_shape(state: dict[str, Tensor], name: str) -> None:
    state[name] = state[name][:-1].clone()


CHANGES: dict[str, tuple[Change, str]] = {
    "gone": (gone, r"it lacks {name}$"),
    "renamed": (renamed, r"it lacks {name}, has the unknown other\."),
    "adapters": (as_adapters, r"lacks {name}, has the unknown base_model\.model\..*not merged: .*verl-uae export"),
    "too many": (too_many, r"it has the unknown (model\.)?(language_model\.)?visual_extra$"),
    "shape": (of_another_shape, r"it has another shape of {name} \(\d+x\d+(x\d+)*, wanted is \d+x\d+"),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("part", ["captioner", *SD3.components])
def test_every_tensor_must_be_there_once_and_fit(tiny_models: Path, tmp_path: Path, part: str, case: str) -> None:
    """In every part of a model, before a weight is read."""
    source = tiny_models / part if part == "captioner" else tiny_models / "decoder" / part
    kind = captioner_class() if part == "captioner" else SD3.components[part]
    folder = tmp_path / part
    shutil.copytree(source, folder)
    check_weights(kind, folder)
    change, message = CHANGES[case]
    name = rewrite(folder, change).removeprefix("model.")
    with pytest.raises(CheckpointError, match=message.format(name=rf"(model\.)?(language_model\.)?{name}")) as caught:
        load_model(kind, folder)
    assert "\n" not in str(caught.value) and caught.value.path == folder


def test_what_is_loaded_is_what_is_stored(tiny_models: Path) -> None:
    before = torch.random.get_rng_state()
    model = load_model(captioner_class(), tiny_models / "captioner")
    assert torch.equal(torch.random.get_rng_state(), before) and not model.training
    stored = load_file(tiny_models / "captioner" / "model.safetensors")
    # transformers keeps the names of earlier releases on disk.
    named = {name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
             for name, tensor in model.state_dict().items()}  # fmt: skip
    assert named.keys() == stored.keys() and all(torch.equal(named[name], stored[name]) for name in stored)
    half = load_model(
        SD3.components["transformer"], tiny_models / "decoder", subfolder="transformer", dtype=torch.bfloat16
    )
    assert half.dtype == torch.bfloat16


def test_names_of_today_and_of_earlier_releases_pass(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "captioner", tmp_path / "e")
    (file,) = (tmp_path / "e").glob("*.safetensors")
    today = load_model(captioner_class(), tiny_models / "captioner").state_dict()
    assert not today.keys() <= load_file(file).keys()
    save_file(today, file, {"format": "pt"})
    again = load_model(captioner_class(), tmp_path / "e").state_dict()
    assert all(torch.equal(again[name], today[name]) for name in today)


@pytest.mark.parametrize("dropped", ["neither", "lm_head.weight", "model.embed_tokens.weight"])
def test_of_a_head_and_embeddings_that_are_tied_one_is_enough(tiny_models: Path, tmp_path: Path, dropped: str) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(tiny_models / "captioner", folder)
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config.get("text_config", {})):
        section["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))

    def tie(state: dict[str, Tensor], _: str) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        state.pop(dropped, None)

    rewrite(folder, tie)
    model = load_model(captioner_class(), folder)
    stored = load_file(tiny_models / "captioner" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, stored) and torch.equal(model.get_input_embeddings().weight, stored)


def test_an_untied_head_must_be_stored(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "captioner", tmp_path / "e")
    rewrite(tmp_path / "e", lambda state, _: gone(state, "lm_head.weight"))
    for check in (check_captioner, lambda folder: Conditioner.from_pretrained(str(folder), SD3({}, {}))):
        with pytest.raises(CheckpointError, match=r"it lacks lm_head\.weight$"):
            check(tmp_path / "e")


def test_a_part_may_leave_out_what_it_does_not_know(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "captioner", tmp_path / "e")
    rewrite(tmp_path / "e", too_many)
    model = load_model(captioner_class(), tmp_path / "e", may_ignore=lambda name: name.endswith("visual_extra"))
    assert model.can_generate()


@pytest.mark.parametrize("part", ["captioner", "decoder/transformer", "decoder/vae"])
def test_a_configuration_of_absurd_size_is_refused_at_once(tiny_models: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_models / part, folder)
    config = json.loads((folder / "config.json").read_text())
    section = config.get("text_config", config)
    key = next(key for key in ("num_hidden_layers", "num_layers", "layers_per_block") if key in section)
    section[key] = 10_000_000
    (folder / "config.json").write_text(json.dumps(config))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"{key} is 10000000, but the files hold \d+ tensors"):
        load_model(captioner_class() if part == "captioner" else SD3.components[Path(part).name], folder)
    assert time.monotonic() - started < 20


def test_absurd_widths_are_refused_without_memory_for_them(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "captioner", tmp_path / "e")
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    config["text_config"]["vocab_size"] = 10**12
    (tmp_path / "e" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has another shape of .* tensors such as lm_head\.weight"):
        check_captioner(tmp_path / "e")


EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Evil: pass\n"
CODE = {
    "model": ("config.json", {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}}),
    "processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}),
    "image processor": ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.Evil"}}),
    "tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
    "nested": ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "evil.Evil"}}}),
    "kernels": ("config.json", {"attn_implementation": "somebody/attention"}),
}


@pytest.mark.parametrize("case", CODE)
def test_code_of_a_folder_is_refused_and_never_asked_about(
    tiny_models: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answering "y" to every question runs nothing: no question is asked."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    folder = tmp_path / "e"
    shutil.copytree(tiny_models / "captioner", folder)
    (folder / "evil.py").write_text(EVIL)
    file, entry = CODE[case]
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **entry}))
    loaders = (check_captioner, load_config, load_processor, load_tokenizer)
    for load in (*loaders, lambda place: Conditioner.from_pretrained(str(place), SD3({}, {}))):
        with pytest.raises(CheckpointError, match=rf"{file}: needs Python code of its own .*refused"):
            load(folder)
    assert not (folder / "ran").exists() and "evil" not in sys.modules


def test_pickles_are_not_read(tiny_models: Path, tmp_path: Path) -> None:
    """Beside the weights they are left alone, in their place they are named."""
    shutil.copytree(tiny_models / "captioner", tmp_path / "e")
    (tmp_path / "e" / "pytorch_model.bin").write_bytes(b"no pickle")
    assert load_model(captioner_class(), tmp_path / "e").can_generate()
    (tmp_path / "e" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pickles are refused: pytorch_model\.bin"):
        load_model(captioner_class(), tmp_path / "e")


def test_adapters_in_place_of_a_model_are_named(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "captioner", tmp_path / "e")
    (tmp_path / "e" / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: the folder holds adapters.*verl-uae export"):
        load_model(captioner_class(), tmp_path / "e")


def test_a_manifest_is_checked_unless_that_is_switched_off(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in a weight is seen, whoever loads it and whether the manifest is the folder's or the model's."""
    shutil.copytree(tiny_models / "decoder", tmp_path / "m")
    shutil.copytree(tiny_models / "captioner", tmp_path / "m" / "captioner")
    write_manifest(tmp_path / "m")
    Decoder.from_pretrained(str(tmp_path / "m"))
    for part in ("captioner", "vae"):
        (file,) = (tmp_path / "m" / part).glob("*.safetensors")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"vae/.*altered: its SHA-256"):
        Decoder.from_pretrained(str(tmp_path / "m"))
    with pytest.raises(CheckpointError, match=r"captioner/.*altered: its SHA-256"):
        load_model(captioner_class(), tmp_path / "m" / "captioner")
    assert load_model(captioner_class(), tmp_path / "m" / "captioner", verify=False)
    monkeypatch.setenv(VERIFY, "0")
    Decoder.from_pretrained(str(tmp_path / "m"))


def test_what_is_missing_is_named(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_model(captioner_class(), tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    for load in (load_config, load_processor, load_tokenizer, load_scheduler):
        with pytest.raises(CheckpointError, match="does not load"):
            load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"has no .*safetensors"):
        check_captioner(tmp_path / "empty")
    shutil.copytree(tiny_models / "captioner", tmp_path / "p")
    (tmp_path / "p" / "config.json").unlink()
    os.mkfifo(tmp_path / "p" / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: is no file"):
        check_captioner(tmp_path / "p")
    shutil.copytree(tiny_models / "captioner", tmp_path / "e")
    (tmp_path / "e" / "config.json").write_text('{"model_type": "nobody"}')
    with pytest.raises(CheckpointError) as caught:
        load_model(captioner_class(), tmp_path / "e")
    assert "\n" not in str(caught.value)


#: Calls that load a model or a part of one past this module, by file -> why.
ALLOWED = {
    "checkpoints/load.py": "the way in",
    "checkpoints/imports.py": "peft's adapter of the release, every name of which is compared",
    "checkpoints/shards.py": "training shards, weights_only and every name compared",
    "reward/terms/features.py": "known bytes of a package",
    "reward/terms/dreamsim.py": "of tensors already read, its report refused by name",
    "stages/common/standalone.py": "state of the data loader",
    "data/cli.py": "a processor without code, in a layer below this one",
    "engines/decoder.py": "weight copies of a checkpoint",
    "stages/cold_start/captioner.py": "generation settings, which hold no weights and name no code",
    "checkpoints/captioner_adapters.py": "peft's settings, which hold no weights",
}
#: Our own classes, which come here themselves.
OWN = ("Decoder", "Conditioner", "DecoderModule", "UAEPipeline", "super()")
LOADERS = ("from_pretrained", "load_file", "load_pretrained", "load_adapter", "load_lora_weights")


def bypasses(path: Path) -> list[str]:
    """Calls that load weights or configurations with a library's own defaults."""
    found = []
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        owner, _, method = name.rpartition(".")
        if name == "torch.load" or ((method or name) in LOADERS and owner.split(".")[-1] not in OWN):
            found.append(f"{path}:{node.lineno} {name}")
    return found


def test_nothing_loads_a_model_past_this_module() -> None:
    scripts = [path for folder in ("examples", "recipes", "rewards") for path in (ROOT / folder).rglob("*.py")]
    found = {path: bypasses(path) for path in (*modules(), *scripts)}
    named = {relative(path) if path.is_relative_to(PACKAGE) else str(path): calls for path, calls in found.items()}
    assert not {name: calls for name, calls in named.items() if calls and name not in ALLOWED}
    assert {name for name, calls in named.items() if calls} == set(ALLOWED), "an entry is no longer needed"


def copied(tiny_models: Path, tmp_path: Path, part: str) -> Path:
    return Path(shutil.copytree(tiny_models / part, tmp_path / Path(part).name))


def configured(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("part", ["captioner", "decoder/transformer", "decoder/vae"])
def test_weights_without_their_scale_are_refused(
    tiny_models: Path, tmp_path: Path, part: str, dtype: torch.dtype
) -> None:
    """The libraries would cast the numbers of a quantised weight to what they look like."""
    folder = copied(tiny_models, tmp_path, part)
    kind = captioner_class() if part == "captioner" else SD3.components[Path(part).name]
    for allowed in (torch.float64, torch.bfloat16):
        name = rewrite(folder, lambda state, name, to=allowed: state.update({name: state[name].to(to)}))
        check_weights(kind, folder)
    name = rewrite(folder, lambda state, name: state.update({name: state[name].to(dtype)}))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is stored as \w+; without a quantization_config"):
        load_model(kind, folder)


@pytest.mark.parametrize("shift", [float("nan"), float("inf"), 0, -1.0, True, None, "3"])
def test_a_schedule_without_a_positive_shift_is_refused(tiny_models: Path, tmp_path: Path, shift: Any) -> None:
    folder = copied(tiny_models, tmp_path, "decoder")
    configured(folder / "scheduler", "scheduler_config.json", shift=shift)
    with pytest.raises(CheckpointError, match="scheduler: does not load as a scheduler"):
        load_scheduler(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_timesteps", 500),
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("invert_sigmas", True),
        ("stochastic_sampling", True),
        ("_class_name", "DDPMScheduler"),
    ],
)
def test_a_schedule_that_is_not_drawn_is_refused(tiny_models: Path, tmp_path: Path, name: str, value: Any) -> None:
    """Of a scheduler the shift is used; what else it asks for would be left out without a word."""
    folder = copied(tiny_models, tmp_path, "decoder")
    configured(folder / "scheduler", "scheduler_config.json", **{name: value})
    with pytest.raises(CheckpointError, match=rf"does not load as a scheduler: .*{str(value).strip('_')}"):
        load_scheduler(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_shift", None),
        ("base_image_seq_len", "256"),
        ("max_image_seq_len", 256),
        ("time_shift_type", "square"),
        ("shift_terminal", 1.0),
        ("shift_terminal", -1),
        ("shift_terminal", "0.02"),
    ],
)
def test_a_shift_by_size_that_cannot_be_computed_is_refused(
    tiny_models: Path, tmp_path: Path, name: str, value: Any
) -> None:
    folder = copied(tiny_models, tmp_path, "decoder")
    configured(folder / "scheduler", "scheduler_config.json", **{"use_dynamic_shifting": True, name: value})
    with pytest.raises(CheckpointError, match=rf"does not load as a scheduler: .*{name}"):
        load_scheduler(folder)


@pytest.mark.parametrize("name", ["latents_mean", "latents_std"])
def test_latents_of_other_statistics_are_refused(tiny_models: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_models, tmp_path, "decoder")
    configured(folder / "vae", "config.json", **{name: [1.0] * 30})
    with pytest.raises(CheckpointError, match=f"{name} is set; latents are scaled by scaling_factor and shift_factor"):
        check_components(folder)


@pytest.mark.parametrize("scale", [float("nan"), 0, -1, None, "x", True])
def test_latents_without_a_positive_scale_are_refused(tiny_models: Path, tmp_path: Path, scale: Any) -> None:
    folder = copied(tiny_models, tmp_path, "decoder/vae")
    configured(folder, "config.json", scaling_factor=scale)
    with pytest.raises(CheckpointError, match="scaling_factor"):
        load_model(SD3.components["vae"], folder)


@pytest.mark.parametrize("shift", [float("nan"), float("inf"), "0.1", True, [0.1]])
def test_latents_with_a_shift_that_is_no_number_are_refused(tiny_models: Path, tmp_path: Path, shift: Any) -> None:
    folder = copied(tiny_models, tmp_path, "decoder/vae")
    configured(folder, "config.json", shift_factor=shift)
    with pytest.raises(CheckpointError, match="shift_factor"):
        load_model(SD3.components["vae"], folder)


def test_a_setting_that_is_no_number_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    folder = copied(tiny_models, tmp_path, "captioner")
    configured(folder, "config.json", rms_norm_eps=float("nan"))
    with pytest.raises(CheckpointError, match=r"config\.json: rms_norm_eps is NaN"):
        check_captioner(folder)
    configured(folder, "config.json", rms_norm_eps=1e-6, num_hidden_layers=10**400)
    with pytest.raises(CheckpointError, match=r"config\.json: num_hidden_layers is 10000"):
        check_captioner(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "manifest.json", "x/y"])
def test_a_pipe_in_a_model_folder_is_not_waited_for(tiny_models: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_models, tmp_path, "captioner")
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    for read in (check_captioner, load_config, load_processor, lambda path: load_model(captioner_class(), path)):
        with pytest.raises(CheckpointError, match=f"{re.escape(name)}: is no file"):
            read(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_what_a_clone_without_lfs_left_is_named(tiny_models: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_models, tmp_path, "captioner")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    for read in (check_captioner, load_config, load_processor, lambda path: load_model(captioner_class(), path)):
        with pytest.raises(CheckpointError, match=f"{re.escape(name)}: is a pointer of Git LFS .*git lfs pull"):
            read(folder)


def test_a_second_set_of_weights_is_refused_for_who_loads_elsewhere(tiny_models: Path, tmp_path: Path) -> None:
    """transformers takes the single file, vLLM every file, or those of the index."""
    folder = copied(tiny_models, tmp_path, "captioner")
    check_captioner(folder)
    for name in ("old.safetensors", "model.safetensors.index.json"):
        shutil.copy(folder / "model.safetensors", folder / name)
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: is a second set of weights"):
            check_captioner(folder)
        (folder / name).unlink()


@pytest.mark.parametrize("template", [None, "{% for x in %}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"])
def test_a_chat_template_that_cannot_be_used_is_named(tiny_models: Path, template: str | None) -> None:
    processor = load_processor(tiny_models / "captioner")
    check_template(processor, "here")
    processor.chat_template = processor.tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match=r"^here: its chat template cannot be used: "):
        check_template(processor, "here")


@pytest.mark.parametrize(
    "load",
    [
        load_config,
        load_processor,
        load_tokenizer,
        lambda source: load_model(captioner_class(), source),
        lambda source: load_model(AutoencoderKL, source, subfolder="vae"),
    ],
    ids=["configuration", "processor", "tokenizer", "model", "part"],
)
def test_a_hub_that_does_not_answer_is_asked_once(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask again for half a minute, with a line for each time."""
    with socket.socket() as closed:  # Bound and not listening: nobody else takes the port, and none connects.
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(CheckpointError) as caught:
            load("owner/name")
    reason = f"is not in the cache, and {endpoint} cannot be reached (ConnectError)"
    assert str(caught.value) == f"owner/name: {reason}; give the path of a folder that holds its files"
