# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Estimates of a training command and of its variants, and what makes it fit."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from verl_uae.config.left_open import KEEP, RECOMPUTE, left_open
from verl_uae.errors import ConfigError
from verl_uae.estimate.composing import Command, changed, command
from verl_uae.estimate.host import ASSUMED_USABLE_HOST, HOST_GIB, host_memory
from verl_uae.estimate.models import Models
from verl_uae.estimate.phase import Phase
from verl_uae.estimate.phases import Phases
from verl_uae.estimate.rates import ASSUMED_COMPILED, ASSUMED_USABLE, GIB, GPUS, USUAL_GPU, Rates, rates_of
from verl_uae.estimate.work import ASSUMED_CAPTION_TOKENS, Asking, Work
from verl_uae.settings import REWARDED
from verl_uae.stages.common.config import FULL_PRECISION

#: Share of a step that a setting must save to be named.
WORTH = 0.02

#: More is a slip of the hand.
MOST_GPUS, MOST_TRAINING_STEPS = 10**6, 10**9


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of a phase on one GPU."""

    compute: float
    links: float
    """Between GPUs."""
    memory: float
    """Of the GPU, read one byte after the other."""
    alone: float
    """Copies to and from the host, and what is assumed."""
    control: float
    """Of the process that controls the run."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Of a key that is left to the estimate."""

    value: Any
    peaks_gib: Mapping[Any, float]
    """With this value and the next to it, what takes more memory first."""
    usable_gib: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a command needs on GPUs of a type."""

    command: Command
    gpu: str
    rates: Rates
    phases: list[Phase]
    server_share: float
    """Smallest ``gpu_memory_utilization`` that holds the caption server, in steps of 0.05; 0 where there is none."""
    unknown: list[str]
    """Reward terms whose network is not counted."""
    host: Mapping[str, float] = field(default_factory=dict)
    """Bytes of a node's own memory by owner, see :func:`~verl_uae.estimate.host.host_memory`."""
    host_room_gib: float = math.inf
    """Memory of a node."""
    decided: Mapping[str, Any] = field(default_factory=dict)
    """Values of keys that the command leaves to the estimate."""

    def memory_gib(self, phase: Phase) -> dict[str, float]:
        """Peak of a phase by owner."""
        found = {owner: size / GIB for owner, size in phase.memory.items() if size}
        if phase.server_share:
            found["caption server"] = phase.server_share * self.rates.memory_gib
        return found

    @property
    def fullest(self) -> Phase:
        """The phase that needs most memory."""
        return max(self.phases, key=lambda phase: sum(self.memory_gib(phase).values()))

    @property
    def peak_gib(self) -> float:
        """Of the phase that needs most."""
        return sum(self.memory_gib(self.fullest).values())

    @property
    def fits(self) -> bool:
        """Whether every phase has its memory, and the caption server what it cannot do without."""
        share = max(phase.server_share for phase in self.phases)
        served = share == 0 or share >= self.server_share - 1e-9
        return served and self.peak_gib <= self.usable_gib

    @property
    def usable_gib(self) -> float:
        """What phases may fill of a GPU."""
        return ASSUMED_USABLE * self.rates.memory_gib

    @property
    def host_gib(self) -> float:
        """Of a node."""
        return sum(self.host.values()) / GIB

    @property
    def host_fits(self) -> bool:
        """Whether a node has its memory too."""
        return self.host_gib <= self.usable_host_gib

    @property
    def usable_host_gib(self) -> float:
        """What processes may fill of a node's own memory."""
        return ASSUMED_USABLE_HOST * self.host_room_gib

    def parts(self, phase: Phase) -> Parts:
        """Seconds of a phase by what they are spent on."""
        rates, executed = self.rates, phase.executed
        calculating = sum(count / rates.flops_per_second(dtype) for dtype, count in executed.flops.items())
        # What a CPU's compiler saves was measured, and is little.
        if phase.blocks and self.command.config.uae.decoder.compile and not rates.touched_gbs:
            calculating /= ASSUMED_COMPILED
        # These buffers are new memory each time, as copies that are not pinned are.
        copying = phase.copied / rates.pageable_gbs
        touching = (executed.touched / rates.touched_gbs + copying) / 1e9 if rates.touched_gbs else 0.0
        links = (phase.gathered - phase.across) / rates.nvlink_gbs + phase.across / rates.network_gbs
        return Parts(
            compute=calculating + touching + executed.operators * rates.operator_s,
            links=links / 1e9 / rates.link_share + phase.hops * rates.hop_s + phase.hops_across * rates.hop_across_s,
            memory=phase.read / rates.bandwidth_gbs / 1e9 / rates.bandwidth_share,
            alone=(phase.pinned / rates.pcie_gbs / rates.link_share + phase.pageable / rates.pageable_gbs) / 1e9
            + phase.fixed_s,
            control=phase.control_s,
        )

    def seconds(self, phase: Phase) -> float:
        """Of a phase. Weights that are gathered arrive beside the work of the block before; copies to and from the host
        do not overlap with anything."""
        parts = self.parts(phase)
        return max(parts.compute, parts.links, parts.memory) + parts.alone + parts.control

    @property
    def step_seconds(self) -> float:
        """Of a step; in the unified stage of the mean one."""
        one_by_one = sum(self.seconds(phase) * phase.share for phase in self.phases)
        names = {phase.together for phase in self.phases if phase.together}
        return one_by_one - sum(map(self._saved, names))

    def _saved(self, together: str) -> float:
        """Seconds of a step that phases beside each other save. Streams of a GPU share what computes: operations of all
        add up, and what hides is the wait for links and memory."""
        phases = [phase for phase in self.phases if phase.together == together]
        shared = [(parts.compute, parts.links, parts.memory) for parts in map(self.parts, phases)]
        apart, joined = sum(map(max, shared)), max(map(sum, zip(*shared, strict=True)))
        return (1.0 - phases[0].alone) * (apart - joined) * phases[0].share

    @property
    def gpus(self) -> int:
        """All of them, those of an own pool of decoders included."""
        config = self.command.config
        own = config.uae.stage in ("g4u", "unified") and config.uae.decoder.pool == "own"
        pool = config.uae.decoder.n_gpus_per_node * config.uae.decoder.nnodes if own else 0
        return int(config.trainer.n_gpus_per_node * config.trainer.nnodes + pool)

    @property
    def mfu(self) -> float:
        """Share of the GPUs' peak in bf16 that a step's operations are, those done again left out."""
        useful = sum(phase.useful * phase.share for phase in self.phases)
        return useful / self.step_seconds / (GPUS[self.gpu].bf16_tflops * 1e12)

    def hours(self, steps: int) -> float:
        """Of so many steps, with what is done once."""
        once = sum(self.seconds(phase) for phase in self.phases if phase.share == 0)
        return (steps * self.step_seconds + once) / 3600

    def usd(self, steps: int) -> float:
        """Of so many steps."""
        return self.hours(steps) * self.gpus * self.rates.usd_per_hour


class Estimator:
    """Estimates of one command and its variants, whose pieces are executed once.

    Args:
        asked: of :func:`~verl_uae.estimate.composing.command`.
        asking: of the captioner; None is what is assumed.
        host_gib: memory of a node; None is that of a usual one with such GPUs.
    """

    def __init__(self, asked: Command, asking: Asking | None = None, host_gib: float | None = None) -> None:
        self.asked = asked
        self.host_gib = host_gib
        self.asking = asking or Asking()
        self._works: dict[Any, Work] = {}

    @property
    def work(self) -> Work:
        """Pieces of the command's own steps."""
        return self._work(self.asked)

    def estimate(self, gpu: str, calibration: Path | None = None, changes: dict[str, Any] | None = None) -> Estimate:
        """On GPUs of a type, with other values of some keys.

        Raises:
            ConfigError: the type or a model is not known, or a value is impossible.
        """
        rates = rates_of(gpu, calibration)
        asked = changed(self.asked, changes) if changes else self.asked
        decided = {key: choice.value for key, choice in self.choices(gpu, rates, asked).items()}
        return self._estimate(changed(asked, decided) if decided else asked, gpu, rates, decided)

    def choices(self, gpu: str, rates: Rates, asked: Command | None = None) -> dict[str, Choice]:
        """What is chosen for every key of :func:`~verl_uae.config.left_open.left_open`.

        Args:
            gpu: type.
            rates: of the GPUs, memory among them.
            asked: a variant of the command.
        """
        asked = asked or self.asked
        values = left_open(asked.config)
        asked = changed(asked, {key: several[-1] for key, several in values.items()}) if values else asked
        found = {}
        for key, several in values.items():
            found[key] = self._choice(asked, key, several, gpu, rates)
            asked = changed(asked, {key: found[key].value})
        return found

    def _choice(self, asked: Command, key: str, values: Sequence[Any], gpu: str, rates: Rates) -> Choice:
        """The first value whose peak is usable, else the last."""

        @functools.cache
        def found(place: int) -> Estimate:
            return self._estimate(changed(asked, {key: values[place]}), gpu, rates)

        last = len(values) - 1
        chosen = bisect.bisect_left(
            range(last), True, key=lambda place: found(place).peak_gib <= found(place).usable_gib
        )
        # The next that takes more, or where there is none, less.
        places = sorted({chosen, chosen - 1 if chosen else min(1, last)})
        return Choice(
            values[chosen], {values[place]: found(place).peak_gib for place in places}, found(chosen).usable_gib
        )

    def _estimate(self, asked: Command, gpu: str, rates: Rates, decided: Mapping[str, Any] | None = None) -> Estimate:
        phases = self.phases(asked)
        found = phases.of_stage()
        share = 0.0
        if any(phase.server_share for phase in found):
            share = math.ceil(20 * phases.server_room() / GIB / rates.memory_gib) / 20
        usual = HOST_GIB[gpu] * phases.layout.per_node
        return Estimate(
            asked,
            gpu,
            rates,
            found,
            share,
            phases.models.networks[1],
            host_memory(phases, found),
            usual if self.host_gib is None else self.host_gib,
            decided or {},
        )

    def phases(self, asked: Command) -> Phases:
        """Of the command or a variant of it."""
        return Phases(self._work(asked), asked.config)

    def _work(self, asked: Command) -> Work:
        """Models, and with them what their pieces cost, depend on few keys."""
        uae, hybrid = asked.config.uae, asked.config.actor_rollout_ref
        key = (uae.train.lora.rank, hybrid.model.lora_rank, uae.decoder.height, uae.decoder.width)
        if key not in self._works:
            models = Models(asked.config, asked.decoder, folders=asked.folders)
            self._works[key] = Work(models, self.asking)
        return self._works[key]

    def remedies(self, gpu: str, calibration: Path | None = None) -> list[tuple[dict[str, Any], Estimate]]:
        """What makes the command fit: every knob that is enough alone, else as few as are enough together; nothing
        where it fits, or where nothing helps."""
        now = self.estimate(gpu, calibration)
        if now.fits:
            return []
        return self._enough(list(_knobs(self.asked, now)), lambda changes: self._fitting(gpu, calibration, changes))

    def host_remedies(self, gpu: str, calibration: Path | None = None) -> list[tuple[dict[str, Any], Estimate]]:
        """Likewise for the memory of a node; nothing of it makes the GPU's too small."""
        now = self.estimate(gpu, calibration)
        if now.host_fits:
            return []

        def fitting(changes: dict[str, Any]) -> Estimate | None:
            found = self._fitting(gpu, calibration, changes) if now.fits else self._tried(gpu, calibration, changes)
            return found if found is not None and found.host_fits else None

        return self._enough(list(_host_knobs(self.asked)), fitting)

    @staticmethod
    def _enough(
        knobs: Sequence[dict[str, Any]], fitting: Callable[[dict[str, Any]], Estimate | None]
    ) -> list[tuple[dict[str, Any], Estimate]]:
        def tried(knobs: Sequence[dict[str, Any]]) -> Estimate | None:
            return fitting({key: value for knob in knobs for key, value in knob.items()})

        alone = [(knob, found) for knob in knobs if (found := tried([knob]))]
        if alone:
            return alone
        for count in range(2, len(knobs) + 1):
            if not tried(knobs[:count]):
                continue
            needed = knobs[:count]
            for knob in knobs[: count - 1]:
                others = [other for other in needed if other is not knob]
                needed = others if tried(others) else needed
            found = tried(needed)
            assert found is not None
            return [({key: value for knob in needed for key, value in knob.items()}, found)]
        return []

    def faster(self, gpu: str, calibration: Path | None = None) -> tuple[dict[str, Any], Estimate] | None:
        """What of the memory that is left makes a step of a command that fits shorter, by :data:`WORTH` and more for
        every key; None where nothing does. No number of the training changes but its last bits."""
        best = self.estimate(gpu, calibration)
        if not best.fits:
            return None
        chosen: dict[str, Any] = {}
        for knob in _room(self.asked):
            found = self._fitting(gpu, calibration, {**chosen, **knob})
            if found is not None and found.step_seconds < (1 - WORTH) * best.step_seconds:
                chosen, best = {**chosen, **knob}, found
        return (chosen, best) if chosen else None

    def _fitting(self, gpu: str, calibration: Path | None, changes: dict[str, Any]) -> Estimate | None:
        found = self._tried(gpu, calibration, changes)
        return found if found is not None and found.fits else None

    def _tried(self, gpu: str, calibration: Path | None, changes: dict[str, Any]) -> Estimate | None:
        try:
            return self.estimate(gpu, calibration, changes)
        except ConfigError:
            # Such as more GPUs than a batch has images.
            return None


def _room(asked: Command) -> Iterator[dict[str, Any]]:
    """Settings that take more memory and less time, those that save most first."""
    config, uae = asked.config, asked.config.uae
    captions, draws = uae.stage in ("g4u", "unified"), uae.stage != "g4u"
    if uae.decoder.offload:
        yield {"uae.decoder.offload": False}
    if not uae.decoder.compile:
        yield {"uae.decoder.compile": True}
    if draws and uae.train.gradient_checkpointing:
        yield {RECOMPUTE: False}
    if captions and config.actor_rollout_ref.model.enable_gradient_checkpointing:
        yield {"actor_rollout_ref.model.enable_gradient_checkpointing": False}
    if draws and uae.train.fsdp_config.reshard_after_forward:
        yield {"uae.train.fsdp_config.reshard_after_forward": False}
    if draws:
        # Weights are gathered once for every call, in drawing too.
        for times in (2, 4):
            yield {"uae.train.micro_batch_size": times * uae.train.micro_batch_size}
    if uae.stage in ("u4g", "unified") and uae.u4g.replay_steps is not None:
        yield {"uae.u4g.replay_steps": None}
    if uae.stage == "cold_start" and uae.cold_start.kept_steps is not None:
        yield {KEEP: None}
    if uae.stage in REWARDED and not uae.decoder.overlap:
        yield {"uae.decoder.overlap": True}
    if uae.stage == "pretrain" and not uae.pretrain.prefetch:
        yield {"uae.pretrain.prefetch": 1}
    sections = {"actor_rollout_ref.actor.fsdp_config": captions, "uae.train.fsdp_config": draws}
    for section in (name for name, wanted in sections.items() if wanted):
        moved = [name for name in ("param_offload", "optimizer_offload") if OmegaConf.select(config, section).get(name)]
        if moved:
            yield {f"{section}.{name}": False for name in moved}


def _knobs(asked: Command, now: Estimate) -> Iterator[dict[str, Any]]:
    """Settings that need less memory, the cheapest first."""
    config, uae = asked.config, asked.config.uae
    captions, draws = uae.stage in ("g4u", "unified"), uae.stage != "g4u"
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    if now.server_share not in (0.0, config.actor_rollout_ref.rollout.gpu_memory_utilization):
        yield {f"{rollout}.gpu_memory_utilization": now.server_share}
    if uae.stage == "u4g" and now.server_share:
        yield {"uae.u4g.captions.writer": "ranks"}
    if not uae.decoder.offload:
        yield {"uae.decoder.offload": True}
    # Null is what needs least already where memory is short.
    if draws and uae.train.gradient_checkpointing is False:
        yield {RECOMPUTE: True}
    if uae.stage == "cold_start" and uae.cold_start.kept_steps:
        # As many as fit then, and none where none do.
        yield {KEEP: None}
    if captions and not config.actor_rollout_ref.model.enable_gradient_checkpointing:
        yield {"actor_rollout_ref.model.enable_gradient_checkpointing": True}
    train = uae.train
    if (
        draws
        and train.lora.rank
        and not train.train_projector
        and train.fsdp_config.get("model_dtype") in FULL_PRECISION
    ):
        yield {"uae.train.fsdp_config.model_dtype": "bf16"}
    if draws and not uae.train.fsdp_config.reshard_after_forward:
        yield {"uae.train.fsdp_config.reshard_after_forward": True}
    if uae.decoder.batch_size > 1:
        yield {"uae.decoder.batch_size": 1, "uae.decoder.vae_batch_size": 1}
    if captions and (config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu or 2) > 1:
        yield {f"{actor}.ppo_micro_batch_size_per_gpu": 1, f"{rollout}.log_prob_micro_batch_size_per_gpu": 1}
    # Members that share a prefix are never alone.
    least = 2 if uae.stage in ("u4g", "unified") and uae.u4g.shared_prefix else 1
    if draws and uae.train.micro_batch_size > least:
        yield {"uae.train.micro_batch_size": least}
    for wanted, section in ((captions, f"{actor}.fsdp_config"), (draws, "uae.train.fsdp_config")):
        if wanted:
            yield {f"{section}.param_offload": True, f"{section}.optimizer_offload": True}
    if captions and not config.actor_rollout_ref.model.lora_rank:
        yield {
            "actor_rollout_ref.model.lora_rank": 32,
            "actor_rollout_ref.model.lora_alpha": 64,
            f"{actor}.fsdp_config.model_dtype": "bf16",
        }
    if draws and not uae.train.lora.rank:
        yield {"uae.train.lora.rank": 32}
    per_node, nodes = config.trainer.n_gpus_per_node, config.trainer.nnodes
    for times in (2, 4, 8, 16):
        gpus = per_node * nodes * times
        more = {"trainer.n_gpus_per_node": min(8, gpus), "trainer.nnodes": max(1, gpus // 8)}
        yield {key: count for key, count in more.items() if OmegaConf.select(config, key) != count}


def _host_knobs(asked: Command) -> Iterator[dict[str, Any]]:
    """Settings that need less memory of a node, the cheapest first."""
    config, uae = asked.config, asked.config.uae
    captions, draws = uae.stage in ("g4u", "unified"), uae.stage != "g4u"
    if uae.decoder.offload and not uae.decoder.shared_master:
        yield {"uae.decoder.shared_master": True}
    if draws and uae.conditioner.cache_size > 64:
        yield {"uae.conditioner.cache_size": 64}
    if uae.reward.source_cache_mib > 0:
        yield {"uae.reward.source_cache_mib": 0}
    if config.data.dataloader_num_workers:
        yield {"data.dataloader_num_workers": 0}
    agents = "actor_rollout_ref.rollout.agent.num_workers"
    if (captions or uae.stage == "u4g") and OmegaConf.select(config, agents) > 1:
        yield {agents: 1}
    sections = {"actor_rollout_ref.actor.fsdp_config": captions, "uae.train.fsdp_config": draws}
    for section in (name for name, wanted in sections.items() if wanted):
        moved = [name for name in ("param_offload", "optimizer_offload") if OmegaConf.select(config, section).get(name)]
        if moved:
            yield {f"{section}.{name}": False for name in moved}
    if uae.decoder.offload:
        yield {"uae.decoder.offload": False}
    if captions and not config.actor_rollout_ref.model.lora_rank:
        yield {"actor_rollout_ref.model.lora_rank": 32, "actor_rollout_ref.model.lora_alpha": 64}
    if draws and not uae.train.lora.rank:
        yield {"uae.train.lora.rank": 32}


@dataclass(frozen=True, slots=True)
class Answer:
    """To a command."""

    found: Estimate
    remedies: list[tuple[dict[str, Any], Estimate]]
    """What makes it fit or, where it does, faster."""
    host_remedies: list[tuple[dict[str, Any], Estimate]]
    """What makes it fit into a node's memory; none where it does."""


def ask(
    name: str,
    overrides: Sequence[str] = (),
    *,
    gpu: str = USUAL_GPU,
    gpus: int | None = None,
    nodes: int | None = None,
    steps: int = 1000,
    caption_tokens: int = ASSUMED_CAPTION_TOKENS,
    calibration: Path | None = None,
    host_gib: float | None = None,
) -> Answer:
    """What ``python -m verl.trainer.main_ppo --config-name NAME OVERRIDES`` needs, and what makes it fit or, where it
    does, faster.

    Args:
        name, overrides, gpus, nodes: of :func:`~verl_uae.estimate.composing.command`.
        gpu: a key of :data:`~verl_uae.estimate.rates.GPUS`.
        steps: of the run.
        caption_tokens: of a caption.
        calibration: file of rates that were measured.
        host_gib: memory of a node; None is a usual one's.

    Raises:
        ConfigError: something is impossible or not known.
    """
    if host_gib is not None and not 0 < host_gib <= MOST_GPUS:
        raise ConfigError("--host-memory", f"must be a number of GiB above 0 and at most {MOST_GPUS}, got {host_gib:g}")
    for option, count, most in (
        ("--gpus", gpus, MOST_GPUS),
        ("--nodes", nodes, MOST_GPUS),
        ("--steps", steps, MOST_TRAINING_STEPS),
        ("--caption-tokens", caption_tokens, MOST_GPUS),
    ):
        if count is not None and not 1 <= count <= most:
            raise ConfigError(option, f"must lie in [1, {most}], got {str(count)[:20]}")
    rates_of(gpu, calibration)
    estimator = Estimator(command(name, overrides, gpus=gpus, nodes=nodes), Asking(caption_tokens), host_gib)
    found, host_remedies = estimator.estimate(gpu, calibration), estimator.host_remedies(gpu, calibration)
    if not found.fits:
        return Answer(found, estimator.remedies(gpu, calibration), host_remedies)
    better = estimator.faster(gpu, calibration)
    return Answer(found, [] if better is None else [better], host_remedies)
