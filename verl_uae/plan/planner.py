# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A training command on many GPUs: every schedule and every split of them, simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from verl_uae.errors import ConfigError
from verl_uae.estimate.composing import changed, command
from verl_uae.estimate.estimator import MOST_GPUS, WORTH, Estimate, Estimator
from verl_uae.estimate.phases import Phases
from verl_uae.estimate.rates import rates_of
from verl_uae.estimate.report import pictures
from verl_uae.estimate.work import ASSUMED_CAPTION_TOKENS, Asking
from verl_uae.plan.load import ASSUMED_SPREAD
from verl_uae.plan.loads import g4u_load, joint_load, ranks_load, u4g_turn_load
from verl_uae.plan.schedules import AHEAD, OWN, PHASED, STREAMED, Timeline, simulate
from verl_uae.stages.common.config import is_joint

#: The one schedule of stages whose ranks do all in step, and the unified stage's.
TOGETHER, TURNS, JOINT = "all ranks together", "turns", "joint"

_POOL, _SCHEDULE, _AHEAD = "uae.decoder.pool", "uae.decoder.schedule", "uae.g4u.ahead"
_CORRECTION = "algorithm.rollout_correction"
_AGENTS = "actor_rollout_ref.rollout.agent.num_workers"
_ENGINES = ("uae.train.fsdp_config", "uae.cold_start.captioner.fsdp_config", "actor_rollout_ref.actor.fsdp_config")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is planned for.

    Args:
        gpu: a key of :data:`~verl_uae.estimate.rates.GPUS`.
        gpus: counts to compare.
        per_node: GPUs of a node.
        fixed_batch: the samples of a step stay those of the command; else they grow with the GPUs, from those that it
            has on its own.
        calibration: file of rates that were measured.
        spread: of the lengths of captions.
    """

    gpu: str
    gpus: tuple[int, ...]
    per_node: int = 8
    fixed_batch: bool = False
    calibration: Path | None = None
    spread: float = ASSUMED_SPREAD

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        rates_of(self.gpu, self.calibration)
        if not 1 <= self.per_node <= MOST_GPUS:
            raise ConfigError("--gpus-per-node", f"must lie in [1, {MOST_GPUS}], got {str(self.per_node)[:20]}")
        if not 0 <= self.spread <= 3:
            raise ConfigError("--spread", f"must lie in [0, 3], got {self.spread:g}")
        if not self.gpus:
            raise ConfigError("--gpus", "names no count; write --gpus 8 64 512")
        for count in self.gpus:
            if not 1 <= count <= MOST_GPUS:
                raise ConfigError("--gpus", f"must lie in [1, {MOST_GPUS}], got {str(count)[:20]}")
            if count > self.per_node and count % self.per_node:
                raise ConfigError("--gpus", f"{count} are no whole nodes of {self.per_node}; see --gpus-per-node")


@dataclass(frozen=True, slots=True)
class Row:
    """A schedule on so many GPUs, with the best split of them."""

    gpus: int
    schedule: str
    changes: Mapping[str, Any]
    """Keys that make it; with those of the command they are one that starts."""
    estimate: Estimate
    timeline: Timeline

    @property
    def decoders(self) -> int:
        """GPUs of an own pool; 0 without."""
        decoder = self.estimate.command.config.uae.decoder
        return int(decoder.n_gpus_per_node * decoder.nnodes) if self.changes.get(_POOL) == "own" else 0

    @property
    def rate(self) -> float:
        """Pictures a second and GPU."""
        return pictures(self.estimate) / self.timeline.step_s / self.gpus

    def bottleneck(self) -> tuple[str, float]:
        """What most of a step is spent on, and its share."""
        name, seconds = max(self.timeline.spent.items(), key=lambda item: item[1])
        return name, seconds / self.timeline.step_s


class Planner:
    """Plans of a command.

    Args:
        estimator: of the command.
        asked: what for.
    """

    def __init__(self, estimator: Estimator, asked: Asked) -> None:
        self.estimator, self.asked = estimator, asked
        self._known: dict[str, bool] = {}
        self.config = estimator.asked.config
        trainer = self.config.trainer
        self.base = int(trainer.n_gpus_per_node * trainer.nnodes)
        """GPUs that the command's own batch is for."""
        if self._own_pool():
            self.base += int(self.config.uae.decoder.n_gpus_per_node * self.config.uae.decoder.nnodes)

    def _own_pool(self) -> bool:
        return self.config.uae.stage in ("g4u", "unified") and self.config.uae.decoder.pool == "own"

    def rows(self, say: Callable[[str], Any] = lambda _: None) -> list[Row]:
        """The best split of every schedule for every count of GPUs, those that fit first.

        Args:
            say: gets a line for every count that is done.

        Raises:
            ConfigError: a count leaves no way to run the command; the first reason.
        """
        found: list[Row] = []
        for gpus in self.asked.gpus:
            refused: list[ConfigError] = []
            best: dict[str, Row] = {}
            for schedules, changes in self._variants(gpus):
                try:
                    rows = list(self._rows(gpus, schedules, {**changes, **self._sizes(gpus), **self._agents(changes)}))
                except ConfigError as error:
                    refused.append(error)
                    continue
                for row in rows:
                    known = best.get(row.schedule)
                    if known is None or _order(row) > _order(known, WORTH):
                        best[row.schedule] = row
            if not best:
                raise ConfigError(refused[0].key, f"with {gpus} GPUs: {refused[0].message}") from refused[0]
            found += best.values()
            say(f"{gpus} GPUs: {len(best)} schedules simulated")
        return found

    def _rows(self, gpus: int, schedules: Sequence[str], placed: Mapping[str, Any]) -> Iterator[Row]:
        """Of a way to place a step, with its weights shared as makes it shorter, by the schedules that the command
        allows."""
        changes, estimate = self._shared(placed)
        phases = self.estimator.phases(estimate.command)
        for schedule in schedules:
            keys = {**changes, **self._keys(schedule)}
            if self._allowed(schedule, keys):
                yield Row(gpus, schedule, keys, estimate, self._timeline(schedule, estimate, phases))

    def _keys(self, schedule: str) -> dict[str, Any]:
        """Of a schedule, beside those of its pools."""
        if schedule == STREAMED:
            return {_SCHEDULE: "streamed"}
        if schedule != AHEAD:
            return {}
        correction = OmegaConf.select(self.config, _CORRECTION)
        chosen = correction.rollout_is or correction.rollout_rs or correction.bypass_mode
        return {_AHEAD: 1} if chosen else {_AHEAD: 1, f"{_CORRECTION}.rollout_is": "token"}

    def _allowed(self, schedule: str, keys: Mapping[str, Any]) -> bool:
        """Whether a command with these keys starts; of each schedule the first is asked for all."""
        if schedule not in self._known:
            try:
                changed(self.estimator.asked, dict(keys))
                self._known[schedule] = True
            except ConfigError:
                # Such as a conditioner that follows the captioner, one step ahead.
                self._known[schedule] = False
        return self._known[schedule]

    def _shared(self, placed: Mapping[str, Any]) -> tuple[Mapping[str, Any], Estimate]:
        """By all ranks as the command has it, or by those of a node, where that is faster by :data:`WORTH`."""
        estimate = self._estimate(placed)
        if placed["trainer.nnodes"] == 1:
            return placed, estimate
        size = placed["trainer.n_gpus_per_node"]
        changes = {**placed, **{f"{name}.fsdp_size": size for name in self._sharded()}}
        node = self._estimate(changes)
        better = node.fits >= estimate.fits and node.step_seconds < (1 - WORTH) * estimate.step_seconds
        return (changes, node) if better or node.fits > estimate.fits else (placed, estimate)

    def _estimate(self, changes: Mapping[str, Any]) -> Estimate:
        return self.estimator.estimate(self.asked.gpu, self.asked.calibration, dict(changes))

    def _timeline(self, schedule: str, estimate: Estimate, phases: Phases) -> Timeline:
        uae = phases.uae
        if schedule == TOGETHER:
            return simulate(ranks_load(estimate, phases, phases.of_stage(), round(pictures(estimate))))
        if schedule == JOINT:
            return simulate(joint_load(estimate, phases, self.asked.spread))
        captions = g4u_load(estimate, phases, self.asked.spread)
        if schedule != TURNS:
            return simulate(captions, schedule)
        drawn = u4g_turn_load(estimate, phases, self.asked.spread)
        return turns((simulate(captions), uae.unified.g4u_steps), (simulate(drawn), uae.unified.u4g_steps))

    # ------------------------------------------------------------ variants

    def _agents(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Processes of agent loops: as many for a node as the command has for its own."""
        if self.config.uae.stage not in ("g4u", "unified"):
            return {}
        nodes = max(1, changes["trainer.nnodes"] // int(self.config.trainer.nnodes))
        return {_AGENTS: int(OmegaConf.select(self.config, _AGENTS)) * nodes} if nodes > 1 else {}

    def _sizes(self, gpus: int) -> dict[str, Any]:
        """Samples of a step."""
        if self.asked.fixed_batch:
            return {}
        images = int(self.config.data.train_batch_size)
        if images * gpus % self.base:
            raise ConfigError(
                "data.train_batch_size",
                f"{images} for {self.base} GPUs are no whole number for {gpus}; name another, or --fixed-batch",
            )
        sizes: dict[str, Any] = {"data.train_batch_size": images * gpus // self.base}
        mini = "actor_rollout_ref.actor.ppo_mini_batch_size"
        if self.config.uae.stage in ("g4u", "unified"):
            # As many updates a step.
            sizes[mini] = max(1, int(OmegaConf.select(self.config, mini)) * gpus // self.base)
        return sizes

    def _variants(self, gpus: int) -> Iterator[tuple[Sequence[str], dict[str, Any]]]:
        """Schedules, and the keys of a way to place them."""
        stage = self.config.uae.stage
        per_node = min(gpus, self.asked.per_node)
        nodes = gpus // per_node
        whole = {"trainer.n_gpus_per_node": per_node, "trainer.nnodes": nodes}
        shared = {**whole, _POOL: "colocated", _SCHEDULE: "phased", _AHEAD: 0}
        if stage == "g4u":
            yield (PHASED,), shared
            yield from self._splits(per_node, nodes)
        elif stage == "unified":
            yield (JOINT if is_joint(self.config) else TURNS,), shared
        else:
            yield (TOGETHER,), whole

    def _splits(self, per_node: int, nodes: int) -> Iterator[tuple[Sequence[str], dict[str, Any]]]:
        """Captioner and decoder share every node, or have nodes of their own."""
        within = [((mine, nodes), (per_node - mine, nodes)) for mine in range(1, per_node)]
        apart = [((per_node, mine), (per_node, nodes - mine)) for mine in _steps(nodes)]
        for (captioner, nodes_captioner), (decoder, nodes_decoder) in [*within, *apart]:
            yield (
                (OWN, STREAMED, AHEAD),
                {
                    "trainer.n_gpus_per_node": captioner,
                    "trainer.nnodes": nodes_captioner,
                    _POOL: "own",
                    _SCHEDULE: "phased",
                    _AHEAD: 0,
                    "uae.decoder.n_gpus_per_node": decoder,
                    "uae.decoder.nnodes": nodes_decoder,
                },
            )

    def _sharded(self) -> Iterator[str]:
        """Sections of engines whose weights all ranks share."""
        stage = self.config.uae.stage
        used = {
            "g4u": _ENGINES[2:],
            "unified": (_ENGINES[0], _ENGINES[2]),
            "cold_start": _ENGINES[:2],
        }.get(stage, _ENGINES[:1])
        for name in used:
            if int(OmegaConf.select(self.config, f"{name}.fsdp_size") or -1) < 1:
                yield name


def _steps(nodes: int) -> list[int]:
    """Nodes of the captioner that are tried: eighths of all."""
    return sorted({round(nodes * part / 8) for part in range(1, 8)} - {0, nodes})


def _order(row: Row, more: float = 0.0) -> tuple[bool, float]:
    """Better is larger; what is found later must be better by a share."""
    return row.estimate.fits, row.rate * (1 + more)


def turns(*parts: tuple[Timeline, int]) -> Timeline:
    """Of stages in turn: the mean step.

    Args:
        parts: of each stage its steps, and how many a turn has.
    """
    steps = sum(count for _, count in parts)
    spent: dict[str, float] = {}
    use: dict[str, float] = {}
    mean = sum(timeline.step_s * count for timeline, count in parts) / steps
    for timeline, count in parts:
        for name, seconds in timeline.spent.items():
            spent[name] = spent.get(name, 0.0) + seconds * count / steps
        for name, share in timeline.use.items():
            use[name] = use.get(name, 0.0) + share * timeline.step_s * count / steps / mean
    return Timeline(mean, spent, use)


def plan(name: str, overrides: Sequence[str], asked: Asked, *, caption_tokens: int = ASSUMED_CAPTION_TOKENS) -> Planner:
    """Of a training command.

    Args:
        name, overrides: of :func:`~verl_uae.estimate.composing.command`.
        asked: what for.
        caption_tokens: of a mean caption.

    Raises:
        ConfigError: something is impossible or not known.
    """
    if not 1 <= caption_tokens <= MOST_GPUS:
        raise ConfigError("--caption-tokens", f"must lie in [1, {MOST_GPUS}], got {str(caption_tokens)[:20]}")
    return Planner(Estimator(command(name, overrides), Asking(caption_tokens)), asked)
