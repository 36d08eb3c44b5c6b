# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from tests.config.test_validate import changed
from tests.positions import computed_positions
from verl_uae.checkpoints.manifest import write_manifest
from verl_uae.config.path_keys import (
    is_shard,
    resolve_paths,
    validate_models,
    validate_paths,
    validate_sizes,
    validate_targets,
)
from verl_uae.config.validate import ValidateCallback
from verl_uae.errors import ConfigError
from verl_uae.families.sd3 import Projector

MODELS = ("actor_rollout_ref.model.path", "uae.decoder.path", "uae.conditioner.path")
OUTPUTS = (
    "trainer.default_local_dir",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
    "data.uae_quarantine_dir",
    "uae.panel.dir",
    "uae.pretrain.cache_dir",
)


@pytest.fixture(scope="module")
def home(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the tiny models and their data, a checkpoint folder and a tar shard."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("captioner", "decoder", "data"):
        shutil.copytree(tiny_models / name, folder / name)
    (folder / "run" / "global_step_3").mkdir(parents=True)
    (folder / "a-0.tar").write_bytes(b"")
    return folder


@pytest.fixture
def base(compose: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return compose("hardware=cpu", "preset=scenes", f"uae_home={home}")


def written(base: DictConfig, key: str, value: str) -> Any:
    config = changed(base, f"{key}={value}")
    resolve_paths(config)
    return OmegaConf.select(config, key)


@pytest.mark.parametrize("key", MODELS)
def test_a_model_may_be_written_in_every_way(base: DictConfig, home: Path, key: str) -> None:
    name = "decoder" if "decoder" in key else "captioner"
    for text in (f"'~/{name}'", f"'~/{name}/'", f"file://{home}/{name}/", f"{home}/{name}/"):
        assert written(base, key, text) == str(home / name)
    for text, left in ((name, name), (f"{name}/", name), (f"./{name}", f"./{name}")):
        assert written(base, key, text) == left
    for text in ("owner/name", "owner/name/", "hdfs://a/b/", "DECODER", "'~nobody-here/x'"):
        assert written(base, key, text) == text.strip("'")


@pytest.mark.parametrize("key", OUTPUTS)
def test_an_output_folder_is_resolved(base: DictConfig, home: Path, key: str) -> None:
    assert written(base, key, "'~/out/'") == str(home / "out")
    assert written(base, key, f"file://{home}/out") == str(home / "out")
    assert written(base, key, "out") == "out"


def test_keys_derived_from_another_follow_it(base: DictConfig, home: Path) -> None:
    config = changed(base, "uae_home='~/'", "trainer.default_local_dir='~/run/'")
    resolve_paths(config)
    validate_paths(config)
    assert config.uae.decoder.path == f"{home}/decoder" and config.data.train_files == f"{home}/data/train.parquet"
    assert config.uae.panel.dir == f"{home}/run/panels" and config.data.uae_quarantine_dir == f"{home}/run/quarantine"
    assert OmegaConf.is_interpolation(config.uae.decoder, "path"), "only what has to be written is"


def test_lists_and_code_are_resolved_too(base: DictConfig, home: Path) -> None:
    both = f"['~/data/train.parquet','file://{home}/data/val.parquet']"
    assert written(base, "data.train_files", both) == [f"{home}/data/train.parquet", f"{home}/data/val.parquet"]
    assert written(base, "reward.custom_reward_function.path", "'~/mine.py'") == f"{home}/mine.py"
    assert written(base, "uae.reward.files", "['~/mine.py',pkg://mine,my.module]") == [
        f"{home}/mine.py",
        "pkg://mine",
        "my.module",
    ]
    assert written(base, "trainer.resume_from_path", "'~/run/global_step_3/'") == f"{home}/run/global_step_3"


REFUSED = [
    *((key, text, why) for key in MODELS for text, why in (
        ("/no/model", "there is no such folder"),
        ("no/", "there is no such folder in"),
        ("owner/name/", "there is no such folder in"),
        ("'~/no'", "there is no such folder"),
        ("file:///no", "there is no such folder"),
        ("MODEL", "is no folder in"),
        ("'~/data/val.parquet'", "is a file, and must be a folder"),
        ("'~/data'", "it has no"),
    )),
    *((key, text, why) for key in OUTPUTS for text, why in (
        ("'~/data/val.parquet'", "is in the way"),
        ("/proc/run", "cannot be written"),
        ("s3://bucket/run", "is no folder of this machine"),
    )),
    *((key, text, why) for key in ("data.train_files", "data.val_files") for text, why in (
        ("'~/no.parquet'", "there is no such file"),
        ("'~/no.json'", "there is no such file"),
        ("no.parquet", "there is no such file in"),
        ("DATA/train.parquet", "there is no such file in"),
        ("'~/data'", "is a folder, and must be a file"),
        ("['~/data/val.parquet','~/no.parquet']", "no.parquet: there is no such file"),
        ("s3://bucket/a.parquet", "is no file of this machine"),
        ("'~/b-{0..3}.tar'", "no such file"),
    )),
    ("data.uae_image_root", "'~/pictures'", "there is no such folder"),
    ("uae_home", "'~/outputs'", "there is no such folder; `verl-uae quickstart"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text", "why"), REFUSED)
def test_what_is_not_there_is_refused_by_key(base: DictConfig, key: str, text: str, why: str) -> None:
    config = changed(base, f"{'+' if key.endswith('image_root') else ''}{key}={text}")
    resolve_paths(config)
    with pytest.raises(ConfigError, match=why) as caught:
        validate_paths(config)
    assert caught.value.key == key


def test_what_verl_copies_and_what_is_not_read_passes(base: DictConfig) -> None:
    for text in ("data.train_files=hdfs://a/b.parquet", "trainer.resume_from_path=/no/global_step_3"):
        validate_paths(changed(base, text))
    with pytest.raises(ConfigError, match=r"^uae\.conditioner\.path: hdfs://a/b: models are read from folders"):
        validate_paths(changed(base, "actor_rollout_ref.model.path=hdfs://a/b"))


def test_shards_are_found_by_their_pattern(base: DictConfig) -> None:
    assert is_shard("a-{0..3}.tar") and is_shard("https://host/a.tar?token=1") and not is_shard("a.parquet")
    # A file that is there is what its content says, as for `data check`.
    with tarfile.open("no_end", "w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    Path("rows.tar").write_bytes(b"PAR1")
    assert is_shard("no_end") and not is_shard("rows.tar") and is_shard("other.tar")
    config = changed(base, "data.train_files='~/a-*.tar'")
    resolve_paths(config)
    validate_paths(config)


# ---------------------------------------------------------------- whole models, before Ray starts


def lacking(home: Path, folder: Path, part: str) -> tuple[Path, str]:
    """A copy of a model folder without one tensor of a part, and the name of that tensor."""
    shutil.copytree(home / part.split("/")[0], folder)
    (file,) = (folder / Path(*part.split("/")[1:])).glob("*.safetensors")
    state = load_file(file)
    name = sorted(name for name, tensor in state.items() if tensor.ndim >= 2)[len(state) // 4]
    state.pop(name)
    save_file(state, file, {"format": "pt"})
    return folder, name.rpartition("model.")[2]


PARTS = [
    ("actor_rollout_ref.model.path", "captioner"),
    ("uae.conditioner.path", "captioner"),
    *(("uae.decoder.path", f"decoder/{part}") for part in ("transformer", "vae", "conditioner")),
]


def test_whole_models_pass(base: DictConfig) -> None:
    validate_models(base)
    # What is on the hub is checked where it is fetched.
    validate_models(changed(base, *(f"{key}=owner/name" for key in MODELS)))


@pytest.mark.parametrize(("key", "part"), PARTS, ids=[f"{key}-{part}" for key, part in PARTS])
def test_a_model_that_lacks_a_tensor_is_refused(
    base: DictConfig, home: Path, tmp_path: Path, key: str, part: str
) -> None:
    folder, name = lacking(home, tmp_path / "m", part)
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: {folder}.* lacks .*{re.escape(name)}$") as caught:
        validate_models(changed(base, f"{key}={folder}"))
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("dims", "key", "problem"),
    [
        ((96, 8, 95, 16), "uae.decoder.path", "out_dim 95 is not the transformer's joint_attention_dim 96"),
        ((96, 8, 96, 15), "uae.decoder.path", "pooled_dim 15 is not the transformer's pooled_projection_dim 16"),
        ((95, 8, 96, 16), "uae.conditioner.path", "takes states of width 95, the language model has width 96"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    base: DictConfig, home: Path, tmp_path: Path, dims: tuple[int, ...], key: str, problem: str
) -> None:
    shutil.copytree(home / "decoder", tmp_path / "d")
    Projector(*dims).save_pretrained(tmp_path / "d" / "conditioner")
    with pytest.raises(ConfigError, match=problem) as caught:
        validate_models(changed(base, f"uae.decoder.path={tmp_path / 'd'}"))
    assert caught.value.key == key and f"{tmp_path / 'd'}/conditioner: " in str(caught.value)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("uae.conditioner.length=3", "uae.conditioner.length: 3 leaves no room for a caption"),
        ("uae.conditioner.role=tool", "uae.conditioner.role: the chat template drops the content of role 'tool'"),
    ],
)
def test_a_condition_that_the_chat_template_does_not_allow_is_refused(
    base: DictConfig, home: Path, tmp_path: Path, override: str, problem: str
) -> None:
    if "role" in override:
        shutil.copytree(home / "captioner", tmp_path / "e")
        (tmp_path / "e" / "chat_template.jinja").write_text("{{ messages[0].role }}")
        base = changed(base, f"uae.conditioner.path={tmp_path / 'e'}")
    with pytest.raises(ConfigError, match=problem):
        validate_models(changed(base, override))


def test_a_vae_of_other_latents_is_refused(base: DictConfig, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "decoder", tmp_path / "d")
    other = {**AutoencoderKL.load_config(home / "decoder" / "vae"), "latent_channels": 4}
    AutoencoderKL.from_config(other).save_pretrained(tmp_path / "d" / "vae")
    with pytest.raises(ConfigError, match="vae: gives latents of 4 channels, the transformer takes 30"):
        validate_models(changed(base, f"uae.decoder.path={tmp_path / 'd'}"))


def test_a_flipped_bit_in_a_captioner_with_a_manifest_is_refused(
    base: DictConfig, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "captioner", tmp_path / "e")
    write_manifest(tmp_path / "e")
    config = changed(base, f"actor_rollout_ref.model.path={tmp_path / 'e'}")
    validate_models(config)
    data = bytearray((tmp_path / "e" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "e" / "model.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match=r"actor_rollout_ref\.model\.path: .*altered: its SHA-256"):
        validate_models(config)
    monkeypatch.setenv("VERL_UAE_VERIFY", "0")
    validate_models(config)


def test_code_of_a_captioner_is_refused_unless_verl_is_told_to_run_it(
    base: DictConfig, home: Path, tmp_path: Path
) -> None:
    shutil.copytree(home / "captioner", tmp_path / "e")
    content = json.loads((tmp_path / "e" / "config.json").read_text())
    (tmp_path / "e" / "config.json").write_text(json.dumps({**content, "auto_map": {"AutoConfig": "evil.Evil"}}))
    (tmp_path / "e" / "evil.py").write_text("1 / 0")
    key = "actor_rollout_ref.model"
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}\.path: .*needs Python code of its own"):
        validate_models(changed(base, f"{key}.path={tmp_path / 'e'}"))
    validate_models(changed(base, f"{key}.path={tmp_path / 'e'}", f"{key}.trust_remote_code=true"))


@pytest.mark.parametrize("stage", ["uae_pretrain", "uae_cold_start", "uae_g4u", "uae_u4g", "uae_unified"])
def test_every_stage_leaves_before_ray_with_one_line(
    compose: Callable[..., Any], home: Path, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture
) -> None:
    folder, name = lacking(home, tmp_path / "m", "captioner")
    preset = {"uae_pretrain": "scenes_pretrain", "uae_cold_start": "scenes_cold_start"}.get(stage, "scenes")
    places = (f"uae_home={home}", f"trainer.default_local_dir={tmp_path / 'run'}")
    model = f"actor_rollout_ref.model.path={folder}"
    config = compose("hardware=cpu", f"preset={preset}", *places, model, name=stage)
    with pytest.raises(SystemExit) as caught:
        ValidateCallback().on_run_start(config)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "impossible setting" in line]
    assert caught.value.code == 2 and str(folder) in line and line.endswith(name)


@pytest.mark.parametrize("height", [8, 24, 32])
def test_a_size_that_the_decoder_draws_passes(base: DictConfig, height: int) -> None:
    validate_sizes(changed(base, f"uae.decoder.height={height}"))
    validate_sizes(changed(base, "uae.decoder.height=30", "uae.decoder.path=owner/name"))


@pytest.mark.parametrize(
    ("sizes", "key", "problem"),
    [
        (("height=30",), "uae.decoder.height", "multiples of 8, got 30x32"),
        (("width=4",), "uae.decoder.width", "multiples of 8, got 32x4"),
        (("height=64", "width=64"), "uae.decoder.height", "may be 32 at most, got 64x64"),
        (("width=40",), "uae.decoder.width", "may be 32 at most, got 32x40"),
    ],
)
def test_a_size_that_the_decoder_cannot_draw_is_refused(
    base: DictConfig, sizes: tuple[str, ...], key: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        validate_sizes(changed(base, *(f"uae.decoder.{size}" for size in sizes)))
    assert caught.value.key == key


@pytest.mark.parametrize("stage", ["pretrain", "cold_start"])
def test_a_bucket_that_the_decoder_cannot_draw_is_refused(compose: Callable[..., Any], home: Path, stage: str) -> None:
    words = ("hardware=cpu", f"preset=scenes_{stage}", f"uae_home={home}", "uae.pretrain.buckets=true")
    made = compose(*words, "uae.pretrain.bucket_step=8", "uae.pretrain.max_aspect=1", name=f"uae_{stage}")
    validate_sizes(made)
    made.uae.pretrain.max_aspect = 2
    with pytest.raises(ConfigError, match="may be 32 at most, got 24x40") as caught:
        validate_sizes(made)
    assert caught.value.key == "uae.pretrain.buckets"
    # The square that they lie around is the user's own size; its buckets would be many.
    made.uae.decoder.height = made.uae.decoder.width = 80000
    with pytest.raises(ConfigError, match="may be 32 at most, got 80000x80000") as caught:
        validate_sizes(made)
    assert caught.value.key == "uae.decoder.height"


def test_a_decoder_that_computes_its_positions_draws_every_size(base: DictConfig, home: Path, tmp_path: Path) -> None:
    folder = computed_positions(home / "decoder", tmp_path / "decoder")
    key = f"uae.decoder.path={folder}"
    validate_models(changed(base, key))
    validate_sizes(changed(base, key, "uae.decoder.height=40", "uae.decoder.width=320"))
    with pytest.raises(ConfigError, match="multiples of 8, got 36x32"):
        validate_sizes(changed(base, key, "uae.decoder.height=36"))


@pytest.mark.parametrize(
    ("name", "key", "layer"),
    [
        ("uae_u4g", "uae.train.lora", "attn.to_q"),
        ("uae_pretrain", "uae.train.lora", "attn.to_q"),
        ("uae_unified", "uae.train.lora", "attn.to_q"),
        ("uae_cold_start", "uae.train.lora", "attn.to_q"),
        ("uae_cold_start", "uae.cold_start.captioner.lora", "self_attn.q_proj"),
    ],
)
def test_adapters_of_a_layer_that_the_model_lacks_are_refused(
    compose: Callable[..., Any], tiny_overrides: list[str], name: str, key: str, layer: str
) -> None:
    validate_targets(compose(*tiny_overrides, f"{key}.rank=4", f"{key}.target_modules=[{layer}]", name=name))
    reason = rf"^{re.escape(key)}\.target_modules: 'nothing' matches no linear layer of .*; it has .*{re.escape(layer)}"
    with pytest.raises(ConfigError, match=reason):
        validate_targets(
            compose(*tiny_overrides, f"{key}.rank=4", f"{key}.target_modules=[{layer},nothing]", name=name)
        )
    validate_targets(compose(*tiny_overrides, f"{key}.rank=0", f"{key}.target_modules=[nothing]", name=name))
