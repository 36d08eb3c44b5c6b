# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A training command's configuration, composed and checked as the command does it, before its files are there."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_uae.config import STAGES
from verl_uae.errors import ConfigError
from verl_uae.families.published import DECODERS
from verl_uae.paths import expand
from verl_uae.registry import known

_CONDITIONER, _DECODER = "uae.conditioner.path", "uae.decoder.path"


@dataclass(frozen=True, slots=True)
class Command:
    """What is trained with."""

    name: str
    """Of the configuration: ``uae_g4u`` and so on, or a file's of a recipe."""
    config: DictConfig
    decoder: str
    """Choice of ``uae/decoder``."""
    folders: bool
    """Whether the decoder's folder is named, and on this machine."""
    named: str | None
    """``uae.decoder.path`` as it was given."""


def command(name: str, overrides: Sequence[str] = (), *, gpus: int | None = None, nodes: int | None = None) -> Command:
    """Compose.

    What is not there yet has a stand-in: data, and the decoder's folder, in whose place its preset's published
    architecture is taken. A decoder that was made for another language model than the captioner is conditioned on its
    own.

    Args:
        name: ``uae_g4u`` or another configuration of a stage, or a yaml file that builds on one.
        overrides: of Hydra, as behind the training command.
        gpus: of a node; None is what the configuration says.
        nodes: None is what the configuration says.

    Raises:
        ConfigError: there is no such configuration, it does not compose, or what it says is impossible.
    """
    config = composed(name, overrides)
    decoder = str(config.hydra.runtime.choices.get("uae/decoder", ""))
    with open_dict(config):
        config.pop("hydra")
        for key, count in (("trainer.n_gpus_per_node", gpus), ("trainer.nnodes", nodes)):
            if count is not None:
                OmegaConf.update(config, key, count)
        named = None if OmegaConf.is_missing(config.uae.decoder, "path") else config.uae.decoder.path
        folders = named is not None and expand(named).is_dir()
        # SD3 reads the captioner, whichever it is.
        if not folders and decoder in DECODERS and "conditioner" not in DECODERS[decoder].changes:
            published = DECODERS[decoder].language_model
            # By default the captioner's path, by reference.
            given = not OmegaConf.is_interpolation(config.uae.conditioner, "path")
            if not given and published != config.actor_rollout_ref.model.path:
                OmegaConf.update(config, _CONDITIONER, published)
        stand_ins = {_DECODER: "stand/in", "data.train_files": __file__, "data.val_files": __file__}
        if folders:
            stand_ins.pop(_DECODER)
        for key, value in stand_ins.items():
            OmegaConf.update(config, key, value)
    _check(config)
    if not folders:
        _check_published(config, decoder)
    return Command(name, config, decoder, folders, named)


def command_of(config: DictConfig) -> Command:
    """The command that is being run, from its composed configuration, which is valid and not changed."""
    decoder = str(config.hydra.runtime.choices.get("uae/decoder", ""))
    own = config.copy()
    with open_dict(own):
        own.pop("hydra")
    named = str(config.uae.decoder.path)
    return Command(str(config.hydra.job.config_name), own, decoder, expand(named).is_dir(), named)


def changed(before: Command, changes: dict[str, Any]) -> Command:
    """The same with other values of keys, checked again.

    Raises:
        ConfigError: what it says now is impossible.
    """
    config = before.config.copy()
    with open_dict(config):
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
    _check(config)
    return dataclasses.replace(before, config=config)


def _check(config: DictConfig) -> None:
    from verl_uae.config.path_keys import resolve_paths
    from verl_uae.config.validate import validate

    resolve_paths(config)
    validate(config)


def _check_published(config: DictConfig, decoder: str) -> None:
    """What validation says of a decoder that is on this machine."""
    from verl_uae.config.path_keys import check_sizes, check_stage
    from verl_uae.families.published import published

    family = published(decoder)[0]
    check_stage(config, family, f"uae/decoder={decoder}")
    check_sizes(config, family, f"uae/decoder={decoder}")


def composed(name: str, overrides: Sequence[str]) -> Any:
    """A configuration as the training command composes it, Hydra's part included.

    Args:
        name, overrides: of :func:`command`.

    Raises:
        ConfigError: there is no such configuration, or it does not compose.
    """
    from hydra import compose, initialize_config_dir, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # Tells Hydra where our files are.
    import verl_uae.plugin  # noqa: F401

    words = list(overrides)
    file = Path(name)
    with contextlib.ExitStack() as stack:
        if file.suffix == ".yaml":
            if not file.is_file():
                raise ConfigError(name, "there is no such file")
            stack.enter_context(initialize_config_dir(str(file.resolve().parent), version_base=None))
            words.append("hydra.searchpath=[pkg://verl.trainer.config]")
            name = file.stem
        else:
            stack.enter_context(initialize_config_module("verl.trainer.config", version_base=None))
        stack.callback(GlobalHydra.instance().clear)
        try:
            with _any_platform():
                found = compose(name, overrides=words, return_hydra_config=True)
        # Hydra raises ValueError for a section that is no section any more.
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if getattr(error, "missing_cfg_file", None) == name:
                text = f"is no configuration of a stage.{known(name, [f'uae_{stage}' for stage in STAGES])}"
                raise ConfigError(name, text) from error
            # Where not even the name is known, that is what is wrong.
            with contextlib.suppress(HydraException, OmegaConfBaseException):
                _refuse_unknown(name, overrides)
            # Hydra says which override, OmegaConf below it what is wrong with the value.
            reason, *_ = str(error.__cause__ or "").splitlines() or [""]
            raise ConfigError(name, f"does not compose: {error}{reason and f': {reason}'}") from error
    if str(OmegaConf.select(found, "uae.stage")) not in STAGES:
        raise ConfigError(name, f"is no configuration of a stage; there are {', '.join(f'uae_{s}' for s in STAGES)}")
    return found


def _refuse_unknown(name: str, overrides: Sequence[str]) -> None:
    """Name the override that Hydra does not know, with what it may have meant; Hydra says how to append it.

    Raises:
        ConfigError: one of them is unknown.
    """
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = GlobalHydra.instance().config_loader()
    choices, keys = [], []
    for read in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = read.key_or_group, read.value()
        options = loader.get_group_options(key)
        if options and isinstance(value, str):
            if value not in options:
                raise ConfigError(key, f"there is no {value!r}.{known(value, options)}")
            choices.append(str(read.input_line))
        elif not options and not (read.is_add() or read.is_force_add() or read.is_delete()):
            keys.append(key)
    with _any_platform():
        # A choice brings keys of its own.
        found = compose(name, overrides=choices, return_hydra_config=True)
    tree: Any = OmegaConf.to_container(found, resolve=False, throw_on_missing=False)
    groups = [name for top in loader.list_groups("") for name in (top, *_below(loader, top))]
    for key in keys:
        _refuse_key(key, tree, groups)


def _below(loader: Any, group: str) -> list[str]:
    return [f"{group}/{name}" for name in loader.list_groups(group)]


def _refuse_key(key: str, tree: Any, groups: Sequence[str]) -> None:
    """Raise `ConfigError` for a key that a tree of sections does not have."""
    path: list[str] = []
    for part in key.split("."):
        names = list(map(str, tree)) if isinstance(tree, dict) else []
        if part not in names:
            others = [] if path else [name for name in groups if name != part]
            # The last name of a group is what comes to mind.
            close = [name for name in others if name.endswith(f"/{part}")]
            close = close or difflib.get_close_matches(part, [*names, *others], n=1)
            where = f"{'.'.join(path)} has {', '.join(names)}" if names and path else "see docs/configuration.md"
            hint = f"did you mean {'.'.join([*path, close[0]])}?" if close else where
            raise ConfigError(key, f"there is no such key; {hint}")
        tree = tree.get(part) if isinstance(tree, dict) else None
        path.append(part)


@contextlib.contextmanager
def _any_platform() -> Iterator[None]:
    """verl asks for one while it composes; what is composed is the same on all."""
    before = os.environ.get("VERL_PLATFORM")
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("VERL_PLATFORM", None)
