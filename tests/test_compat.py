# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The shims, and for each a test that fails once verl no longer needs it (those of the engine: tests/engines)."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from verl_uae.compat import after_ray_init, before_import, on_import, tracked_config


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an importable module that is not imported yet."""
    name = f"shim_target_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("import sys\nseen = getattr(sys, 'shim_log', [])\nseen.append('body')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "shim_log", [], raising=False)
    yield name
    sys.modules.pop(name, None)


def log(word: str):
    return lambda: sys.shim_log.append(word)  # type: ignore[attr-defined]


def test_hooks_run_once_and_around_the_import(module: str) -> None:
    finders = len(sys.meta_path)
    on_import(module, log("after"))
    before_import(module, log("before"))
    assert sys.shim_log == [] and len(sys.meta_path) == finders + 2  # type: ignore[attr-defined]
    imported = importlib.import_module(module)
    assert sys.shim_log == ["before", "body", "after"] and len(sys.meta_path) == finders  # type: ignore[attr-defined]
    importlib.reload(imported)
    assert sys.shim_log[3:] == ["body"]  # type: ignore[attr-defined]


def test_a_module_that_is_there_is_met_at_once_or_not_at_all(module: str) -> None:
    importlib.import_module(module)
    on_import(module, log("after"))
    before_import(module, log("before"))
    assert sys.shim_log == ["body", "after"]  # type: ignore[attr-defined]


def test_other_imports_are_left_alone(module: str) -> None:
    on_import("no_such_module_anywhere", log("never"))
    importlib.import_module(module)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
    assert sys.shim_log == ["body"]  # type: ignore[attr-defined]


def test_an_error_in_the_module_stays_its_own(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise ArithmeticError('mine')\n")
    on_import(module, log("after"))
    with pytest.raises(ArithmeticError, match="mine"):
        importlib.import_module(module)
    assert sys.shim_log == []  # type: ignore[attr-defined]


PROBE = """
import sys
{setup}
try:
    import torchvision
except Exception as error:
    print("broken", type(error).__name__)
else:
    from torchvision.transforms.v2 import functional
    import torch
    print("works", tuple(functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape))
import verl_uae.compat as compat
print(compat._torchvision_operators_load(), len(compat._KEEP_ALIVE))
"""


def torchvision(setup: str) -> list[str]:
    code = [sys.executable, "-W", "ignore", "-c", PROBE.format(setup=setup)]
    return subprocess.run(code, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()


def test_torchvision_works_with_us_and_the_shim_acts_only_where_it_must() -> None:
    pytest.importorskip("torchvision")
    # Without a mark in sys.modules importing verl_uae.compat would bring the hook of the package with it.
    (plain, *_), (ours, state) = torchvision(""), torchvision("import verl_uae")
    assert ours == "works (3, 4, 4)"
    sound, declared = state.split()
    if plain.startswith("works"):
        assert declared == "0", "torchvision is sound here: the shim must do nothing"
    else:
        assert (sound, declared) == ("False", "1")


def test_the_shim_is_idempotent() -> None:
    setup = "import verl_uae, verl_uae.compat as c\nc.ensure_torchvision(); c.ensure_torchvision()"
    assert torchvision(setup)[0] == "works (3, 4, 4)"


def test_verl_still_compares_the_trainer_mode_with_a_literal() -> None:
    """Once this fails, G4UTrainer._build_replay_buffer need not pretend to be "sync"."""
    source = inspect.getsource(importlib.import_module("verl.trainer.ppo.v1.trainer_base"))
    assert len(re.findall(r'self\.trainer_mode [!=]= "sync"', source)) >= 4


def test_verl_still_swallows_the_errors_of_plugins() -> None:
    """Once this fails, verl reports a broken plugin itself and plugin.FAILURES can go."""
    source = inspect.getsource(importlib.import_module("verl"))
    assert re.search(r"_ep\.load\(\)\n\s+except Exception as _e:\n\s+logging\.getLogger\(__name__\)\.debug\(", source)


def test_verl_looks_a_trainer_up_by_registered_name_only() -> None:
    """Once a trainer can be named by its import path, on_import is no longer needed."""
    function = importlib.import_module("verl.trainer.ppo.v1.trainer_base").get_trainer_cls
    with pytest.raises(ValueError, match="Unknown trainer"):
        function("verl.trainer.ppo.v1.PPOTrainerSync")


def test_ray_still_takes_over_sigterm_when_it_connects() -> None:
    """Once this fails, a handler of the Hydra callback survives ray.init and after_ray_init is not needed."""
    source = inspect.getsource(importlib.import_module("ray._private.worker").init)
    assert "set_sigterm_handler(sigterm_handler)" in source and "for hook in _post_init_hooks:" in source


def test_what_follows_the_connection_to_ray_runs_once() -> None:
    worker = importlib.import_module("ray._private.worker")
    known, seen = worker._post_init_hooks, []
    worker._post_init_hooks = []
    try:
        for name in ("first", "second"):
            after_ray_init(functools.partial(seen.append, name))
        for _ in range(2):
            # As Ray does, which the test above looks at.
            for hook in worker._post_init_hooks:
                hook()
            assert seen == ["first", "second"]
        assert worker._post_init_hooks == []
    finally:
        worker._post_init_hooks = known


RAY = """
import json, ray
from ray._private.worker import global_worker
from verl_uae.compat import ray_actors, ray_cluster_address, ray_cpu_count, ray_temp_folder
from verl_uae.launch.callbacks import this_machine

guessed = [ray_cpu_count(), this_machine().cpus, ray_temp_folder()]
ray.init(address="local", include_dashboard=False, configure_logging=False, log_to_driver=False)
found = [ray.cluster_resources()["CPU"]] * 2 + [global_worker.node.get_temp_dir_path()]

@ray.remote(num_cpus=0)
class Counter:
    def one(self):
        return 1

counter = Counter.remote()
ray.get(counter.one.remote())
actors = [entry["ActorClassName"] + " " + entry["State"] for entry in ray_actors().values()]
address = ray.get_runtime_context().gcs_address
print(json.dumps([guessed, found, actors, address, [ray_cluster_address(address), ray_cluster_address("local")]]))
"""


def test_what_is_asked_before_ray_runs_is_what_ray_does() -> None:
    """Cores, folder and address as a real Ray has them."""
    result = subprocess.run([forks.python(), "-c", RAY], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    guessed, found, actors, address, resolved = json.loads(result.stdout.splitlines()[-1])
    assert guessed == found and actors == ["Counter ALIVE"] and resolved == [address, None]


def test_trackers_are_told_the_configuration_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's own loop makes the tracker from the whole configuration, with which it cannot be stopped otherwise."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import trainer_base

    from verl_uae.checkpoints.record import without_secrets

    told: list[dict[str, object]] = []
    tracking = trainer_base.Tracking

    class StopError(Exception):
        pass

    def record(**settings: object) -> None:
        told.append(settings)
        raise StopError

    term = {"name": "custom", "params": {"reward_kwargs": {"api_key": "sk-very-secret", "url": "http://me:pass@host/"}}}
    names = {"project_name": "p", "experiment_name": "e", "logger": ["wandb"]}
    config = OmegaConf.create({"trainer": names, "uae": {"reward": {"terms": [term]}}})
    trainer = type("Trainer", (), {"config": config, "fit": trainer_base.PPOTrainer.fit})()
    monkeypatch.setattr(trainer_base.SkipManager, "init", lambda config: None)
    monkeypatch.setattr(trainer_base, "Tracking", record)
    with pytest.raises(StopError):
        trainer.fit(None)
    with pytest.raises(StopError), tracked_config(without_secrets):
        trainer.fit(None)
    plain, hidden = told
    assert "sk-very-secret" in str(plain) and "me:pass" in str(plain), "verl needs the shim no more"
    assert "sk-very-secret" not in str(hidden) and "me:pass" not in str(hidden)
    assert hidden["config"] == without_secrets(plain["config"]) and hidden["project_name"] == "p"
    assert trainer_base.Tracking is record
    monkeypatch.undo()
    assert trainer_base.Tracking is tracking


def test_records_are_printed_with_their_logger() -> None:
    """verl's own format, of which nobody can tell whose warning it is, is gone once its plugins are loaded."""
    code = "import logging, verl; logging.getLogger('verl_uae.x').warning('1-'); logging.getLogger('other').error('2-')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in result.stderr.splitlines() if line.endswith("-")]
    assert [re.sub(r"\d", "", line) for line in lines] == ["WARNING:-- ::,:verl_uae.x:-", "ERROR:-- ::,:other:-"]
