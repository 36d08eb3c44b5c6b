# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Every key of a configuration that holds a path, and what must be there; the rule is that of :mod:`verl_uae.paths`."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write

from verl_uae.checkpoints.names import CONFIG, TRANSFORMER
from verl_uae.errors import CheckpointError, ConfigError, DataError
from verl_uae.paths import existing_file, existing_folder, expand, is_hub_id, is_url, model_source, output_folder
from verl_uae.settings import CAPTIONING, SUPERVISED
from verl_uae.stages.u4g.config import caption_writer
from verl_uae.waiting import saying

#: Folders that other keys are derived from, so they come first.
_BASES = ("uae_home", "trainer.default_local_dir")
_CAPTIONER, _CONDITIONER, _DECODER = "actor_rollout_ref.model.path", "uae.conditioner.path", "uae.decoder.path"
_MODELS = (
    _CAPTIONER,
    "actor_rollout_ref.model.tokenizer_path",
    "actor_rollout_ref.model.hf_config_path",
    "actor_rollout_ref.model.lora_adapter_path",
    _CONDITIONER,
    _DECODER,
)
_DATA = ("data.train_files", "data.val_files")
_FOLDERS = ("data.uae_image_root",)
_OUTPUTS = (
    "trainer.default_local_dir",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
    "data.uae_quarantine_dir",
    "uae.panel.dir",
    "uae.pretrain.cache_dir",
    "hydra.run.dir",
)
_RESUMED = "trainer.resume_from_path"
#: Their readers check them, and say more than that a file is missing.
_ELSEWHERE = (
    _RESUMED,
    "uae.u4g.objective.path",
    "reward.custom_reward_function.path",
    "uae.reward.files",
)

#: Keys whose ``hdfs://`` paths verl copies to the machine.
_COPIED = (_CAPTIONER, *_DATA)


def resolve_paths(config: DictConfig) -> None:
    """Write every local path as it will be read: ``~``, ``file://`` and trailing slashes resolved.

    verl and the libraries below it take a path at its word, each in its own way; so they get the one that was checked.
    """
    for key in (*_BASES, *_MODELS, *_DATA, *_FOLDERS, *_OUTPUTS, *_ELSEWHERE):
        for place, value in list(_values(config, key)):
            written = _written(key, value)
            if written != value:
                # Hydra's own section is read-only.
                with read_write(_parent(config, key)):
                    OmegaConf.update(config, place, written)


def validate_paths(config: DictConfig) -> None:
    """Check that what is read is there, and that what is written can be.

    Raises:
        ConfigError: naming the first key whose path will not do.
    """
    home = OmegaConf.select(config, "uae_home")
    if home is not None and not expand(home).is_dir():
        raise ConfigError("uae_home", f"{home}: there is no such folder; `verl-uae quickstart {home}` makes it")
    checks: tuple[tuple[tuple[str, ...], Callable[[str, str], object]], ...] = (
        (_MODELS, _check_model),
        (_DATA, _check_data),
        (_FOLDERS, existing_folder),
        (_OUTPUTS, output_folder),
    )
    for keys, check in checks:
        for key in keys:
            for _, value in _values(config, key):
                if not (key in _COPIED and value.startswith("hdfs://")):
                    check(value, key)


def validate_models(config: DictConfig) -> None:
    """Check that every local model is whole, from the headers of its files, and that decoder and conditioner fit:
    minutes before weights are read.

    verl and vLLM draw a tensor that a file lacks at random. A manifest is compared with the files as everywhere
    (:mod:`verl_uae.checkpoints.load`). A model of the hub is checked where it is fetched.

    Raises:
        ConfigError: naming the key, the folder and the tensor or file that is wrong, or why no captions can be had of
            that model in this stage, or the key of a condition that the conditioner's chat template does not allow.
    """
    # Imported here: torch and diffusers are not needed to read the rest of a configuration.
    from verl_uae.checkpoints.load import check_captioner, check_language_model, language_sizes
    from verl_uae.families import check_decoder, family_of

    # verl and vLLM run the captioner's code, where this is set; the language model of the condition is ours to load.
    code = bool(OmegaConf.select(config, "actor_rollout_ref.model.trust_remote_code"))
    stage, writer = config.uae.stage, caption_writer(config)
    rollouts = stage in CAPTIONING or writer == "server"
    writes = rollouts or writer is not None or stage == "cold_start"
    checks: tuple[tuple[str, Callable[[Path], None]], ...] = (
        (_CAPTIONER, functools.partial(check_captioner, code=code, writes=writes)),
        (_CONDITIONER, check_language_model),
        (_DECODER, check_decoder),
    )
    seen: set[Path] = set()
    for key, check in checks:
        for _, value in _values(config, key):
            folder = Path(value)
            if is_hub_id(value) or is_url(value) or folder in seen:
                continue
            seen.add(folder)
            try:
                with saying(f"{key}: {folder} to be checked"):
                    check(folder)
            except CheckpointError as error:
                raise ConfigError(key, str(error)) from error
    if writes and not code:
        _check_processor(config, rollouts)
    decoder, conditioner = config.uae.decoder.path, config.uae.conditioner.path
    if is_hub_id(decoder) or is_url(decoder):
        return
    settings = config.uae.conditioner
    family = family_of(decoder, length=settings.length, role=settings.role)
    check_stage(config, family, decoder)
    if is_hub_id(conditioner) or is_url(conditioner):
        return
    try:
        family.check(decoder, *language_sizes(Path(conditioner)))
    except CheckpointError as error:
        raise ConfigError(_CONDITIONER, f"{conditioner} does not fit: {error}") from error
    _check_condition(conditioner, family)


def places_of_ranks(config: DictConfig) -> dict[str, str]:
    """Local paths that ranks read, each by its place in the configuration: models, code of the user, and the step that
    is gone on from. Data are read by the trainer, which hands them on."""
    found = {}
    for key in (*_MODELS, *_ELSEWHERE):
        if key == _RESUMED and config.trainer.resume_mode != "resume_path":
            continue
        for place, value in _values(config, key):
            if not is_url(value) and os.path.exists(expand(value)):
                found[place] = os.path.abspath(expand(value))
    return found


def validate_targets(config: DictConfig) -> None:
    """Check that every name in ``target_modules`` of adapters is that of a layer, where the model is on this machine.
    Those of the captioner in GRPO are placed by :func:`verl_uae.stages.g4u.config.validate_placement`.

    Raises:
        ConfigError: naming the key, what has no layer, and what there is.
    """
    # Imported here: torch, diffusers and transformers are not needed to read the rest of a configuration.
    from verl_uae.checkpoints.load import empty_model
    from verl_uae.checkpoints.lora import check_targets
    from verl_uae.compat import ensure_torchvision
    from verl_uae.families import family_of
    from verl_uae.families.text import language_stack

    stage, train, captioner = config.uae.stage, config.uae.train, config.uae.cold_start.captioner
    decoder, model = config.uae.decoder.path, config.actor_rollout_ref.model.path
    given = train.lora.target_modules
    # The layers of a family are its own.
    if stage != "g4u" and train.lora.rank > 0 and given is not None and Path(decoder).is_dir():
        family = family_of(decoder)
        transformer = empty_model(family.components[TRANSFORMER], Path(decoder, TRANSFORMER))
        check_targets(transformer, list(given), family.frozen, part=TRANSFORMER, key="uae.train.lora")
    if stage == "cold_start" and captioner.train and captioner.lora.rank > 0 and Path(model).is_dir():
        ensure_torchvision()
        from transformers import AutoModelForImageTextToText

        stack = language_stack(empty_model(AutoModelForImageTextToText, model))
        named = list(captioner.lora.target_modules)
        check_targets(stack, named, part="the language model", key="uae.cold_start.captioner.lora")


def _check_processor(config: DictConfig, rollouts: bool) -> None:
    """What turns pictures and prompts into inputs of the captioner; verl's agent loops go on without pictures where it
    does not load."""
    from verl_uae.checkpoints.load import check_template, load_processor

    model = config.actor_rollout_ref.model
    # As verl has it; other stages read the model's folder.
    path = (rollouts and model.get("tokenizer_path")) or model.path
    if is_hub_id(path) or is_url(path):
        return
    try:
        processor = load_processor(path)
        if getattr(processor, "image_processor", None) is None:
            raise CheckpointError(path, f"has no image processor: put its configuration beside {CONFIG}")
        if model.get("custom_chat_template") is None:
            check_template(processor, path)
    except CheckpointError as error:
        key = _CAPTIONER if path == model.path else "actor_rollout_ref.model.tokenizer_path"
        raise ConfigError(key, str(error)) from error


def check_stage(config: DictConfig, family: Any, decoder: str) -> None:
    """Check that the run asks for nothing that a decoder without a projector of ours has no use for.

    Args:
        config: the whole composed configuration.
        family: of the decoder.
        decoder: what errors call it.

    Raises:
        ConfigError: naming the key.
    """
    if family.needs_projector:
        return
    where = f"{decoder} ({family.name}) reads the language model without a projector"
    if config.uae.stage == "pretrain":
        raise ConfigError(_DECODER, f"{where}, so there is nothing to pre-train: go on with uae_g4u or uae_u4g")
    if config.uae.stage == "cold_start" and config.uae.cold_start.states == "in_context":
        reason = f"{where}, from other layers than in_context has: set it to text_only"
        raise ConfigError("uae.cold_start.states", reason)
    if config.uae.stage != "g4u" and config.uae.train.train_projector:
        raise ConfigError("uae.train.train_projector", f"{where}: set it to false")


def _check_condition(path: str, family: Any) -> None:
    from verl_uae.checkpoints.load import load_tokenizer

    try:
        family.tokenize(load_tokenizer(path, code=True), [""])
    except CheckpointError as error:
        raise ConfigError(_CONDITIONER, str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"uae.conditioner.{error.key.removeprefix('condition_')}", error.message) from error


def validate_sizes(config: DictConfig) -> None:
    """Check that a local decoder can draw the sizes of the run.

    Raises:
        ConfigError: naming the key and what the decoder takes.
    """
    # Imported here: torch and diffusers are not needed to read the rest of a configuration.
    from verl_uae.families import family_of

    decoder = config.uae.decoder.path
    if not (is_hub_id(decoder) or is_url(decoder)):
        check_sizes(config, family_of(decoder), f"{_DECODER}={decoder}")


def check_sizes(config: DictConfig, family: Any, named: str) -> None:
    """Check that a decoder can draw the sizes of the run.

    Args:
        config: the whole composed configuration.
        family: of the decoder.
        named: what errors call it.

    Raises:
        ConfigError: naming the key and what the decoder takes.
    """
    from verl_uae.data.buckets import Buckets

    decoder = config.uae.decoder

    def problem(height: int, width: int) -> str | None:
        try:
            family.latent_shape(height, width)
        except ValueError as error:
            return f"{error}, for {named}"
        return None

    if wrong := problem(decoder.height, decoder.width):
        alone = problem(decoder.height, decoder.height)
        raise ConfigError("uae.decoder.height" if alone else "uae.decoder.width", wrong)
    if config.uae.stage in SUPERVISED and config.uae.pretrain.buckets:
        for size in Buckets.from_config(config).sizes:
            if wrong := problem(*size):
                raise ConfigError("uae.pretrain.buckets", wrong)


def is_shard(name: str) -> bool:
    """Whether a data file is a webdataset tar shard, by its content where it is a file of this machine; a pattern or a
    URL by its end."""
    file = expand(name)
    if not is_url(name) and file.is_file():
        # Imported here: pyarrow is not needed to read the rest of a configuration.
        from verl_uae.data.frame import file_kind

        with contextlib.suppress(DataError):
            return file_kind(file) == "tar"
    return name.split("?")[0].endswith(".tar")


def is_shards(files: Any) -> bool:
    """Whether data files are webdataset tar shards."""
    names = list(files) if OmegaConf.is_list(files) or isinstance(files, list | tuple) else [files]
    return bool(names) and all(is_shard(str(name)) for name in names)


def _values(config: DictConfig, key: str) -> Iterator[tuple[str, str]]:
    """The texts of a key, each with its own place in the configuration; nothing where it is null or missing."""
    if OmegaConf.is_missing(_parent(config, key), key.rpartition(".")[2]):
        return
    value: Any = OmegaConf.select(config, key)
    if OmegaConf.is_list(value):
        yield from ((f"{key}.{index}", str(entry)) for index, entry in enumerate(value) if entry is not None)
    elif value is not None:
        yield key, str(value)


def _parent(config: DictConfig, key: str) -> Any:
    section = key.rpartition(".")[0]
    parent = OmegaConf.select(config, section) if section else config
    return parent if parent is not None else OmegaConf.create({})


def _written(key: str, value: str) -> str:
    """What a value is read as; left alone where it is no local path, or has nothing to resolve."""
    if is_url(value) or not value.strip():
        return value
    resolved = str(expand(value))
    # A model that is not there keeps its slash: without it, it could look like a hub id.
    if key in _MODELS and not os.path.exists(resolved):
        return value
    plain = not value.startswith(("~", "file://")) and (value == "/" or not value.endswith("/"))
    return value if plain else resolved


def _check_model(value: str, key: str) -> None:
    source = model_source(value, key)
    if is_hub_id(source):
        return
    if key == _DECODER:
        # Imported here: diffusers is not needed to read the rest of a configuration.
        from verl_uae.families import check_decoder_folder

        try:
            check_decoder_folder(Path(source))
        except CheckpointError as error:
            raise ConfigError(key, str(error)) from error
    elif key in (_CAPTIONER, _CONDITIONER) and not Path(source, CONFIG).is_file():
        raise ConfigError(key, f"{value}: is no transformers folder, it has no {CONFIG}")


def _check_data(value: str, key: str) -> None:
    if is_shard(value):
        from verl_uae.data.tar import expand_shards

        try:
            expand_shards([value])
        except DataError as error:
            raise ConfigError(key, str(error)) from error
    else:
        existing_file(value, key)
