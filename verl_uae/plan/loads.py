# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The load of a command's step, out of its estimate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from verl_uae.caption_server.types import HFOptions
from verl_uae.chain.conditioner import BATCH as CONDITIONS
from verl_uae.estimate.estimator import Estimate
from verl_uae.estimate.phase import Phase
from verl_uae.estimate.phases import ASSUMED_SERVER_S, Phases
from verl_uae.estimate.work import nbytes
from verl_uae.plan.load import Captioning, Control, Drawing, Lengths, Load, Work
from verl_uae.stages.common.config import captions_drawn
from verl_uae.stages.u4g.config import drawn_pictures

#: Seconds of an agent-loop process for a caption: its picture is prepared, its answer written to the queue. Measured,
#: as all of these, on one core of an AMD EPYC in logs of the built-in scenes: slope of gen - caption from 16 to 64
#: captions.
AGENT_S = 9.6e-3
#: Seconds of the process that controls a run of G4U for a sample, slope of reward - decode - score + adv, and for a
#: step.
SAMPLE_S, STEP_S = 1.5e-3, 0.15
#: The same of U4G, whose ranks keep their pictures, and of the supervised stages: what a step has beside its phases.
#: Pictures of the built-in scenes are a kilobyte; larger ones take the controller longer.
DRAW_S, PAIR_S, OTHER_STEP_S = 0.3e-3, 0.1e-3, 0.02

#: Parts of a phase that are simulated at most: more change nothing but the time it takes.
MOST_UNITS = 500

#: Name of the work of a caption server that sleeps between steps and whose weights stay.
WAKING = "waking the caption servers"

_DRAWN = ("condition", "denoising", "VAE", "score")


def g4u_load(found: Estimate, phases: Phases, spread: float) -> Load:
    """Of a step with captions.

    Args:
        found: the estimate.
        phases: of the same command.
        spread: of the lengths of captions, see :class:`~verl_uae.plan.load.Lengths`.
    """
    config = phases.config
    own = config.uae.decoder.pool == "own"
    known = [phase for phase in phases.g4u() if phase.name != "captions"]
    captions = int(config.data.train_batch_size * config.actor_rollout_ref.rollout.n)
    ranks = config.uae.decoder.n_gpus_per_node * config.uae.decoder.nnodes if own else phases.layout.ranks
    move = sum(found.parts(phase).alone for phase in known if phase.name in _DRAWN)
    return Load(
        samples=captions,
        works=_works(found, [phase for phase in known if phase.name not in _DRAWN]),
        gpus=phases.layout.ranks,
        control=Control(_agents(phases), AGENT_S, SAMPLE_S, STEP_S),
        captioning=_captioning(found, phases, captions, spread),
        drawing=_drawing(found, phases, captions, int(ranks), move),
    )


def ranks_load(found: Estimate, phases: Phases, known: Sequence[Phase], samples: int) -> Load:
    """Of a step in which all ranks do the same.

    Args:
        found: the estimate.
        phases: of the same command.
        known: those of the step.
        samples: pictures that are drawn or learnt from.
    """
    works = _works(found, [phase for phase in known if phase.share > 0])
    sample_s = DRAW_S if phases.uae.stage in ("u4g", "unified") else PAIR_S
    return Load(samples, works, phases.layout.ranks, Control(sample_s=sample_s, fixed_s=OTHER_STEP_S))


def u4g_turn_load(found: Estimate, phases: Phases, spread: float) -> Load:
    """Of a step of U4G in the unified stage, whose servers are woken to write a caption of each picture anew.

    Args:
        found: the estimate.
        phases: of the same command.
        spread: of the lengths of captions.
    """
    images = int(phases.config.data.train_batch_size)
    load = ranks_load(found, phases, phases.u4g(), sum(drawn_pictures(phases.config)))
    waking = (Work(WAKING, 0.0, alone_s=ASSUMED_SERVER_S),) if phases.served_by_vllm() else ()
    captioning = _captioning(found, phases, images, spread)
    control = dataclasses.replace(load.control, agents=_agents(phases), agent_s=AGENT_S)
    return dataclasses.replace(load, works=(*waking, *load.works), captioning=captioning, control=control)


def joint_load(found: Estimate, phases: Phases, spread: float) -> Load:
    """Of a step of the unified stage in which both learn.

    Args:
        found: the estimate.
        phases: of the same command.
        spread: of the lengths of captions.
    """
    config, members = phases.config, int(phases.uae.u4g.samples_per_caption)
    captions = int(config.data.train_batch_size) * captions_drawn(config)
    known = [phase for phase in phases.joint() if phase.name != "captions"]
    load = ranks_load(found, phases, known, sum(drawn_pictures(config)))
    control = Control(_agents(phases), AGENT_S, DRAW_S + SAMPLE_S / members, STEP_S)
    return dataclasses.replace(load, captioning=_captioning(found, phases, captions, spread), control=control)


def _agents(phases: Phases) -> int:
    return int(phases.config.actor_rollout_ref.rollout.agent.num_workers)


def _works(found: Estimate, phases: Sequence[Phase]) -> tuple[Work, ...]:
    """Without what the estimate assumes of the controlling process, which is simulated."""
    works = []
    for phase in phases:
        parts = found.parts(phase)
        units = max(1, min(MOST_UNITS, round(phase.collectives)))
        works.append(Work(phase.name, max(parts.compute, parts.memory), parts.links, parts.alone, units))
    return tuple(works)


def _captioning(found: Estimate, phases: Phases, captions: int, spread: float) -> Captioning:
    config, work = phases.config, phases.work
    rollout = config.actor_rollout_ref.rollout
    size = int(rollout.tensor_model_parallel_size)
    lengths = Lengths(work.caption_tokens, int(config.data.max_response_length), spread)
    servers = max(1, phases.layout.ranks // size)
    prompt = found.parts(Phase("", work.prefill(1))).compute / size
    token = work.token()
    if not phases.served_by_vllm():
        # The server of transformers reads a prompt once for all of its captions, and calls its operators once for all
        # rows.
        rows = HFOptions.from_engine_kwargs(rollout.get("engine_kwargs")).max_batch_size
        wait_ms = HFOptions.from_engine_kwargs(rollout.get("engine_kwargs")).batch_wait_ms
        calls = token.operators * found.rates.operator_s
        each = found.parts(Phase("", token)).compute - calls
        prompt /= rollout.n
        return Captioning(captions, servers, lengths, prompt, 0.0, calls, each, rows, wait_ms / 1000)
    weights = nbytes(phases.models.frozen_captioner) / size
    return Captioning(
        captions,
        servers,
        lengths,
        prompt,
        token_s=found.parts(Phase("", token)).compute / size,
        step_s=found.parts(Phase("", read=weights)).memory,
        cache_s=found.parts(Phase("", read=phases.remembered() / size)).memory,
        server_gpus=size,
    )


def _drawing(found: Estimate, phases: Phases, captions: int, ranks: int, move_s: float) -> Drawing:
    decoder = phases.config.uae.decoder
    share = math.ceil(captions / ranks)
    seconds = {phase.name: found.parts(phase).compute for phase in phases.drawing(share)}
    condition = seconds.pop("condition", 0.0) / math.ceil(share / CONDITIONS)
    return Drawing(
        ranks,
        int(decoder.batch_size),
        sum(seconds.values()) / share,
        condition,
        CONDITIONS,
        move_s,
        float(decoder.max_wait_ms) / 1000,
    )
