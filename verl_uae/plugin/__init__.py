# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Entry point of the group ``verl.plugins``: `import verl` loads this module in every process.

It registers names lazily and imports nothing heavy. verl swallows an exception raised here at DEBUG level, so
failures are kept in :data:`FAILURES`, logged, and stop a train command of ours with their reason.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from verl_uae.compat import name_records, on_import
from verl_uae.config import STAGES

logger = logging.getLogger(__name__)

#: Step name -> error of every registration that failed in this process.
FAILURES: dict[str, BaseException] = {}

#: Values of ``trainer.v1.trainer_mode`` that are ours.
TRAINERS = tuple(f"uae_{stage}" for stage in STAGES)

#: A word of a command that names a config of ours, or a key: a recipe's config has a name of its own.
_OURS = re.compile(r"(?:--config-name=|-cn=|[+~]{0,2})uae(?:[_.]|$)")

#: Names of the registrations that succeeded in this process.
REGISTERED: list[str] = []


def _register_search_path() -> None:
    # Only a process that composes a config imports Hydra; the others need not pay for it.
    on_import("hydra", lambda: _attempt_and_stop("hydra search path", _import_search_path))


def _import_search_path() -> None:
    from hydra.core.plugins import Plugins

    from verl_uae.config.schema import register_schema
    from verl_uae.plugin.searchpath import VerlUaeSearchPath

    Plugins.instance().register(VerlUaeSearchPath)
    register_schema()
    if is_train_command(sys.orig_argv):
        _refuse_unknown_keys(sys.argv[1:])


def _refuse_unknown_keys(words: list[str]) -> None:
    """Leave with exit code 2 where a word of the command sets a key that there is not."""
    from verl_uae.config.schema import UAEConfig
    from verl_uae.errors import ConfigError
    from verl_uae.settings import check_overrides

    try:
        check_overrides(words, UAEConfig)
    except ConfigError as error:
        sys.stderr.write(f"verl_uae: impossible setting: {error}\n")
        raise SystemExit(2) from error


def _register_platform() -> None:
    # Asked for when verl is imported, which may be later than this module is.
    on_import("verl.plugin.platform", lambda: _attempt("platform", _import_platform))


def _import_platform() -> None:
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        import verl_uae.plugin.cpu_platform  # noqa: F401


def _register_trainers() -> None:
    on_import("verl.trainer.ppo.v1", _register_trainers_if_whole)


def _register_trainers_if_whole() -> None:
    if any(_is_half_there(module) for name, module in sys.modules.items() if name.startswith("verl_uae.stages.")):
        # A program imports one of ours itself, and verl's trainers by way of it. That trainer, and those that it is
        # made of, register their names when they are whole; importing the others now would meet what is half there.
        return
    _attempt_and_stop("trainer classes", _import_trainers)


def _import_trainers() -> None:
    try:
        for stage in STAGES:
            importlib.import_module(f"verl_uae.stages.{stage}.trainer")
    except Exception as error:
        _register_unavailable(error)
        raise


def _is_half_there(module: Any) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _register_unavailable(error: Exception) -> None:
    """Make our trainer names say why they are missing, instead of verl's "unknown trainer"."""
    from verl.trainer.ppo.v1 import PPOTrainerSync
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    reason = f"{type(error).__name__}: {error}"

    class Unavailable(PPOTrainerSync):
        def __init__(self, config: object) -> None:
            raise RuntimeError(f"verl_uae could not load its trainers: {reason} (see: verl-uae doctor)")

    for name in TRAINERS:
        TRAINER_REGISTRY.setdefault(name, Unavailable)


def _attempt(name: str, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:
        # Fault boundary: whatever a registration raises must be reported, verl would hide it.
        FAILURES[name] = error
        logger.error("verl_uae: %s could not be registered: %s: %s", name, type(error).__name__, error, exc_info=True)
    else:
        REGISTERED.append(name)


def is_train_command(argv: list[str]) -> bool:
    """Whether this process was started to run one of our configs, or one that builds on ours, by verl's entry point."""
    return "main_ppo" in " ".join(argv) and any(_OURS.match(arg) for arg in argv)


def load() -> None:
    """Register everything; called once, when this module is imported.

    Raises:
        SystemExit: in a train command of ours, if a registration failed.
    """
    _attempt("hydra hook", _register_search_path)
    _attempt("platform hook", _register_platform)
    _attempt("trainer hook", _register_trainers)
    _attempt("names in the log", name_records)
    _stop_train_command()


def _attempt_and_stop(name: str, step: Callable[[], None]) -> None:
    _attempt(name, step)
    _stop_train_command()


def _stop_train_command() -> None:
    """Leave a train command of ours that could only fail later and less clearly."""
    if FAILURES and is_train_command(sys.orig_argv):
        reasons = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in FAILURES.items())
        raise SystemExit(f"verl_uae failed to load, so this command cannot run: {reasons} (see: verl-uae doctor)")


load()
