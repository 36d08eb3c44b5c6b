# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The few places where verl 0.9.1 or its surroundings leave no hook.

Each shim names the symbol it works around, the reason, and has a test in ``tests/test_compat.py`` that
fails when the shim is no longer needed. Nothing here runs at import.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any


def on_import(module: str, callback: Callable[[], None]) -> None:
    """Run ``callback`` once, right after ``module`` has been imported (at once if it is already there).

    Symbol: ``verl.trainer.ppo.v1.register_trainer``. A trainer must be registered before verl looks its
    name up, but importing verl's trainers from the entry point would cost every process about two seconds.
    """
    if module in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _PostImportFinder(module, callback))


def before_import(module: str, callback: Callable[[], None]) -> None:
    """Run ``callback`` once, right before ``module`` is imported for the first time.

    Symbol: see :func:`ensure_torchvision`; verl imports torchvision by way of transformers before any hook of
    its own runs.
    """
    if module not in sys.modules:
        sys.meta_path.insert(0, _PreImportFinder(module, callback))


def after_ray_init(callback: Callable[[], None]) -> None:
    """Run ``callback`` in the main thread of this process, once, when it has been connected to Ray.

    Symbol: ``ray._private.worker._post_init_hooks``. verl's driver connects to Ray and waits for its task runner in one
    function without a hook between them, and connecting installs handlers for signals, Python's and C++'s.
    """
    from ray._private import worker

    def once() -> None:
        # Another list: Ray walks the one that there was, and would step over the next hook.
        worker._post_init_hooks = [hook for hook in worker._post_init_hooks if hook is not once]
        callback()

    worker._post_init_hooks.append(once)


@contextlib.contextmanager
def tracked_config(change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Iterator[None]:
    """Inside, what verl's trainers tell trackers of the configuration is what ``change`` makes of it.

    Symbol: ``verl.trainer.ppo.v1.trainer_base.Tracking``. verl sends the whole resolved configuration to W&B and its
    like, secrets of reward parameters and environment variables included, from a function without a hook before that.
    """
    from verl.trainer.ppo.v1 import trainer_base

    tracking = trainer_base.Tracking

    def tracked(*args: Any, **settings: Any) -> Any:
        return tracking(*args, **{**settings, "config": change(settings["config"])})

    trainer_base.Tracking = tracked
    try:
        yield
    finally:
        trainer_base.Tracking = tracking


def name_records() -> None:
    """Records of this process's loggers are printed with the name of their logger.

    Symbol: ``verl.utils.logging_utils.set_basic_config``. verl prints level, time and text, so that nobody can tell its
    warnings from those of another package.
    """
    for handler in logging.getLogger().handlers:
        formatter = handler.formatter
        if formatter is not None and formatter._fmt == "%(levelname)s:%(asctime)s:%(message)s":
            handler.setFormatter(logging.Formatter("%(levelname)s:%(asctime)s:%(name)s:%(message)s"))


class _ImportFinder:
    """Meets one module on its way in, once. No class of importlib.abc, whose import costs more than all of ours."""

    def __init__(self, module: str, callback: Callable[[], None]) -> None:
        self.module = module
        self.callback = callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        # Removed before delegating: find_spec walks sys.meta_path again.
        sys.meta_path.remove(self)
        return self.meet(fullname)

    def meet(self, fullname: str) -> importlib.machinery.ModuleSpec | None:
        raise NotImplementedError


class _PreImportFinder(_ImportFinder):
    def meet(self, fullname: str) -> importlib.machinery.ModuleSpec | None:
        self.callback()
        # Not None: the caller's walk of sys.meta_path would skip the finder that has moved into our place.
        return importlib.util.find_spec(fullname)


class _PostImportFinder(_ImportFinder):
    def meet(self, fullname: str) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.callback()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def ensure_torchvision() -> None:
    """Make ``import torchvision`` work where its compiled operators do not match the installed torch.

    Symbol: ``torchvision._meta_registrations``. transformers' Qwen-VL processors import torchvision, and
    PyPI's wheel is linked against the CUDA build of torch: next to a CPU torch the import stops at the
    missing operator ``torchvision::nms``. Declaring the two schemas it annotates is enough; resizing and
    normalising are pure torch. Does nothing where torchvision is absent, already imported, or sound.
    """
    if _KEEP_ALIVE or "torchvision" in sys.modules:
        return
    # Looking for torchvision can run this function by way of before_import.
    if importlib.util.find_spec("torchvision") is None or _KEEP_ALIVE:
        return
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None or _torchvision_operators_load():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP_ALIVE.append(library)


#: torch drops the operators of a Library object that is garbage collected.
_KEEP_ALIVE: list[object] = []


def _torchvision_operators_load() -> bool:
    """Whether torchvision's compiled library can be loaded next to this torch."""
    import ctypes
    from pathlib import Path

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            ctypes.CDLL(str(library))
        except OSError:
            continue
        return True
    return False


def ray_cpu_count() -> int:
    """CPUs that ``ray.init`` would count on this machine, containers and cgroups respected.

    Symbol: ``ray._private.utils.get_num_cpus``. Ray says it only once it runs, when it is too late to refuse a run.
    """
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus(override_docker_cpu_warning=True))


def ray_temp_folder() -> str:
    """Folder in which ``ray.init`` would make its session, unless it is told another.

    Symbol: ``ray._common.utils.get_default_ray_temp_dir``. Ray says it only once it runs, or failed to.
    """
    from ray._common.utils import get_default_ray_temp_dir

    return str(get_default_ray_temp_dir())


def ray_cluster_address(address: str | None, temp_dir: str | None = None) -> str | None:
    """Address of the cluster that ``ray.init(address)`` would join; None where it would start a local one.

    Symbol: ``ray._private.services.canonicalize_bootstrap_address``. The rule (argument, ``RAY_ADDRESS``, a cluster
    that ``ray start`` left on this machine) is not public.

    Raises:
        ConnectionError: ``auto`` was given and there is none; ValueError: it is no address.
    """
    if address is not None and "://" in address:
        return address
    from ray._private.services import canonicalize_bootstrap_address

    resolve: Any = canonicalize_bootstrap_address
    found: str | None = resolve(address, temp_dir)
    return found


def ray_actors() -> dict[str, dict[str, Any]]:
    """All actors of the cluster by id, with ``State`` and ``ActorClassName``.

    Symbol: ``ray._private.state.actors``. The public ``ray.util.state`` asks the dashboard, which need not run.
    """
    from ray._private.state import actors

    found: dict[str, dict[str, Any]] = actors()
    return found
