# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The user's command on clusters of several nodes: the same numbers as on one, and what a node costs that is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.cluster import Cluster, cluster
from tests.e2e.world import Started, build_world, metrics, repeatable, train
from verl_uae.checkpoints.step import complete_steps
from verl_uae.stages.g4u.caption_loops import CaptionAgentLoopWorker

pytestmark = pytest.mark.slow

#: CPUs and GPUs: a rank takes three and one; the trainer and the TransferQueue have room on either.
NODE = (8, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with cluster(NODE, NODE) as made:
        yield made


def _run(world: Path, out: Path, config: str, overrides: list[str], where: Cluster | None) -> dict[int, Any]:
    result = train(world, out, overrides, config=config, extra_env=where.environment if where else None)
    assert result.returncode == 0, result.stdout[-4000:]
    return repeatable(out)


def _places(out: Path) -> dict[str, str]:
    """Address -> ranks, as the run says at its start."""
    lines = (out / "log.txt").read_text(encoding="utf-8").splitlines()
    said = [line.partition("]node ")[2] or line.partition(":node ")[2] for line in lines if ":node " in line]
    return {line.split()[0]: line.partition("): ")[2] for line in said}


@pytest.mark.parametrize(
    ("config", "extra"), [("uae_g4u", []), ("uae_unified", ["uae.unified.g4u_steps=1", "uae.unified.u4g_steps=1"])]
)
def test_captioner_and_decoders_on_a_node_each(
    world: Path, two_nodes: Cluster, tmp_path: Path, config: str, extra: list[str]
) -> None:
    overrides = ["uae.decoder.pool=own", "trainer.test_freq=2", "trainer.save_freq=2", *extra]
    alone = _run(world, tmp_path / "alone", config, overrides, None)
    before = Counter(two_nodes.actors())
    apart = _run(world, tmp_path / "apart", config, overrides, two_nodes)
    assert apart == alone and sorted(alone) == [1, 2]
    places = _places(tmp_path / "apart")
    (captioner,) = [address for address, ranks in places.items() if "captioner ranks 0" in ranks]
    (decoder,) = [address for address, ranks in places.items() if "decoder ranks 0" in ranks]
    assert captioner != decoder
    actors = Counter(two_nodes.actors()) - before
    loops = CaptionAgentLoopWorker.__name__
    assert {("CaptionServer", captioner), (loops, captioner), ("DecoderWorker", decoder)} <= actors.keys()
    assert not {("CaptionServer", decoder), (loops, decoder)} & actors.keys()


def test_one_decoder_sharded_over_two_nodes_goes_on_from_its_checkpoint(
    world: Path, two_nodes: Cluster, tmp_path: Path
) -> None:
    common = ["uae.train.micro_batch_size=4", "trainer.save_freq=2", "trainer.resume_mode=auto"]
    ranks = ["trainer.n_gpus_per_node=2", "trainer.total_training_steps=3"]
    whole = _run(world, tmp_path / "whole", "uae_u4g", [*common, *ranks], None)
    out, nodes = tmp_path / "nodes", [*common, "trainer.nnodes=2"]
    begun = _run(world, out, "uae_u4g", [*nodes, "trainer.total_training_steps=2"], two_nodes)
    resumed = _run(world, out, "uae_u4g", [*nodes, "trainer.total_training_steps=3"], two_nodes)
    assert "resuming from" in (out / "log.txt").read_text(encoding="utf-8")
    assert len(_places(out)) == 2
    assert {**begun, 3: resumed[3]} == whole


HELD = """
import os, time

def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):
    # Runs where pictures are drawn: says that it does, and waits there as long as it is told to.
    if os.path.exists("{hold}"):
        open("{scoring}", "w").close()
    while os.path.exists("{hold}"):
        time.sleep(0.05)
    return float(len(solution_str) % 7)
"""


class Held(Started):
    """The command on a cluster whose first node has room for one pool alone, stopped in a score when it is told to."""

    def __init__(self, world: Path, out: Path, overrides: list[str], config: str, where: Cluster) -> None:
        out.mkdir()
        self.hold, self.scoring = out / "hold", out / "scoring"
        (out / "reward.py").write_text(HELD.format(hold=self.hold, scoring=self.scoring))
        settings = [
            f"++ray_kwargs.ray_init.runtime_env.py_executable={forks.python()}",
            "++transfer_queue.backend.SimpleStorage.required_node_resource=node:__internal_head__",
            f"reward.custom_reward_function.path={out}/reward.py",
            "uae.reward.terms=[]",
        ]
        super().__init__(world, out, [*settings, *overrides], config, extra_env=where.environment)

    def wait_for(self, text: str) -> None:
        self._wait(lambda: text in self.log)

    def wait_in_score(self) -> None:
        self.hold.touch()
        self._wait(self.scoring.exists)

    def go_on(self) -> None:
        self.scoring.unlink()
        self.hold.unlink()

    def _wait(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not met():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.1)


#: A head with room for one rank beside the trainer and the TransferQueue, and a node with room for a rank alone.
FULL, RANK = {"cpus": 7, "gpus": 2}, {"cpus": 3, "gpus": 1}


def test_a_lost_node_of_decoders_costs_nothing_where_another_takes_its_place(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with cluster((FULL["cpus"], FULL["gpus"])) as nodes:
        run = Held(world, out, ["uae.decoder.pool=own", "uae.decoder.timeout_s=90"], "uae_g4u", nodes)
        run.wait_for("Total training steps")
        first = nodes.add(**RANK)
        run.wait_for_step(1)
        run.wait_in_score()
        first.kill()
        second = nodes.add(**RANK)
        run.go_on()
        run.wait_for_step(run.step + 2)
        assert max(record["decoder/restarts"] for record in metrics(out).values()) == 1
        assert all(record["reward/invalid_frac"] == 0.0 for record in metrics(out).values()), "drawn once more"
        # And where none does, the run ends with what it has.
        run.wait_in_score()
        second.kill()
        run.go_on()
        code, line = run.end()
    assert code == 1 and "decoder rank 0" in line and "is saved in" in line
    assert len(complete_steps(out / "checkpoints")) == 1


def test_a_lost_node_of_trained_ranks_ends_the_run_which_goes_on_elsewhere(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    overrides = ["trainer.nnodes=2", "uae.train.micro_batch_size=4", "trainer.save_freq=1"]
    with cluster((FULL["cpus"], FULL["gpus"])) as nodes:
        run = Held(world, out, overrides, "uae_u4g", nodes)
        run.wait_for("Total training steps")
        first = nodes.add(**RANK)
        run.wait_for_step(2)
        run.wait_in_score()
        first.kill()
        run.go_on()
        code, line = run.end()
        (step,) = complete_steps(out / "checkpoints")[-1:]
        assert code == 1 and "rank 0: died in explore" in line and f"global_step_{step}" in line and step >= 2
        nodes.add(**RANK)
        again = [*overrides, "trainer.resume_mode=auto", f"trainer.total_training_steps={step + 1}"]
        record = _run(world, out, "uae_u4g", again, nodes)
    assert sorted(record) == [step + 1]
