# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The phases of one step of every stage on one GPU: operations, bytes held by owner, bytes that travel.

What a phase does is counted by executing its pieces (:mod:`verl_uae.estimate.work`) as often as the configuration says.
Nothing here depends on how fast a GPU is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from verl_uae.chain.conditioner import BATCH as CONDITIONS
from verl_uae.estimate.held import (
    ADAM,
    ASSUMED_ASLEEP_GIB,
    ASSUMED_PROCESS_GIB,
    GIB,
    GRADIENT,
    Held,
    held_weights,
    width_of,
)
from verl_uae.estimate.models import trained_parameters
from verl_uae.estimate.phase import Passes, Phase, as_preview
from verl_uae.estimate.work import Cost, Shards, cache_bytes, nbytes
from verl_uae.stages.cold_start.config import gone_back
from verl_uae.stages.common.config import step_kinds
from verl_uae.stages.g4u.decoder_worker import MICRO_BATCHES
from verl_uae.stages.u4g.config import (
    by_servers,
    chooses,
    drawn_pictures,
    needs_reference,
    pool_size,
    reference_guidance,
)
from verl_uae.stages.u4g.worker import sampling_plan

#: GiB that a caption server needs beside weights and cache: activations of its profile run, graphs.
ASSUMED_SERVER_ROOM_GIB = 3.0
#: Seconds of a step in which a caption server wakes, sleeps and takes weights in, and of any step for its bookkeeping.
ASSUMED_SERVER_S, ASSUMED_STEP_S = 3.0, 0.5
#: Batches of a run that a mean over its windows is taken of.
BATCHES = 64


class Phases(Held):
    """Phases of the stage that a configuration chooses.

    Args:
        work: pieces of the steps, executed when they are asked for.
    """

    def of_kind(self, kind: str) -> list[Phase]:
        """Of a step of a kind, see :func:`~verl_uae.stages.common.config.step_kinds`, in its order."""
        return list(getattr(self, kind)())

    def of_stage(self) -> list[Phase]:
        """In the order of a step; where steps of two kinds take turns, those of both."""
        kinds = step_kinds(self.config)
        if len(kinds) == 1:
            return self.of_kind(*kinds)
        steps = {kind: self.uae.unified[f"{kind}_steps"] for kind in kinds}
        found = []
        for kind in kinds:
            for phase in self.of_kind(kind):
                together = phase.together and f"{kind} {phase.together}"
                share = steps[kind] / sum(steps.values()) * phase.share
                found.append(replace(phase, share=share, together=together))
        return found

    # ------------------------------------------------------------ drawing

    def _drawing(
        self, captions: float, pictures: float, velocity: Cost, beside: Mapping[str, float], batches: float
    ) -> list[Phase]:
        """Conditions, velocities, pictures and scores of a rank.

        Args:
            captions: different ones.
            pictures: drawn.
            velocity: of all calls.
            beside: bytes that are held in all of it.
            batches: of scores, at most in a call.
        """
        decoder = self.uae.decoder
        condition, wanted = self._conditions(captions)
        vae = min(decoder.vae_batch_size, max(1, round(pictures)))
        decoded = self.work.decode(vae).times(pictures / vae)
        networks, _ = self.models.networks
        scored = Cost()
        for network in networks:
            batch = min(decoder.batch_size, max(1, round(pictures)))
            # The source picture once for all pictures of it.
            scored = scored + self.work.features(network, batch).times((pictures + captions) / batch)
        parts = {"condition": condition, "denoising": velocity, "VAE": decoded, "score": scored}
        scores = math.ceil(max(1, round(pictures)) / decoder.batch_size)
        # Beside the first batch of a call nothing is decoded, and beside the last nothing is sampled.
        alone = max(1, math.ceil(scores / batches)) / scores if decoder.overlap else 1.0
        found = []
        for name, cost in parts.items():
            memory = {**beside, "activations": cost.peak}
            if alone < 1.0 and name == "denoising":
                memory["activations of pictures and scores"] = max(decoded.peak, scored.peak)
            useful = wanted if name == "condition" else cost.total
            phase = Phase(name, cost, useful, memory, blocks=name == "denoising")
            if alone < 1.0 and name != "condition":
                phase = replace(phase, together="drawing", alone=alone)
            found += [phase] if cost.total else []
        return found

    def _conditions(self, captions: float) -> tuple[Cost, float]:
        """Of different captions, in batches that are always full, and the operations of the captions alone."""
        batch = self.work.condition()
        return batch.times(math.ceil(captions / CONDITIONS)), batch.total * captions / CONDITIONS

    # ------------------------------------------------------------ G4U

    def g4u(self) -> list[Phase]:
        """Captions, their pictures and scores, log-probabilities, update, and the way of the weights to the server."""
        config, layout, uae = self.config, self.layout, self.uae
        captions = config.data.train_batch_size * config.actor_rollout_ref.rollout.n / layout.ranks
        shards, width = self.actor_shards(), self.actor_width()
        waiting = dict(zip(("captioner", "captioner's optimiser"), self.actor_waiting(shards), strict=True))
        own_pool = uae.decoder.pool == "own"
        decoder = {} if own_pool else {"decoder": nbytes(self.models.frozen_decoder), **self.frozen()}
        stays = {} if uae.decoder.offload else decoder
        policy = self.policy_waiting(self.policy_shards()) if uae.stage == "unified" else {}
        asleep = {"caption server": ASSUMED_ASLEEP_GIB * GIB} if self.served_by_vllm() else {}
        processes = self.processes(2 + (not own_pool) + bool(policy))
        drawing = self._redrawing(captions, {**policy, **waiting, **asleep, **processes}, decoder, own_pool)
        learning = self._captioner_learning(captions, shards, width, {**policy, **stays, **asleep, **processes})
        written = self._served(captions, {**policy, **waiting, **stays, **processes})
        return [written, *drawing, *learning, self._sync(shards, width)]

    def _served(self, captions: float, beside: Mapping[str, float]) -> Phase:
        """Captions by a server on every ``tensor_model_parallel_size`` GPUs."""
        rollout = self.config.actor_rollout_ref.rollout
        size = int(rollout.tensor_model_parallel_size)
        count = captions * size
        cost = self.work.prefill(1).times(captions) + self.work.token().times(captions * self.work.caption_tokens)
        # The longest caption of a batch is taken to be as long as one may be.
        steps = int(self.config.data.max_response_length)
        weights, cache = nbytes(self.models.frozen_captioner), count * self.remembered() / size
        read = steps * (weights / size + cache)
        needed = {**beside, "caption server": 0.0}
        share = float(rollout.gpu_memory_utilization)
        if not self.served_by_vllm():
            needed["caption server"], share = weights + 2 * cache, 0.0
        return Phase("captions", cost, cost.total, needed, share, read=read)

    def remembered(self) -> float:
        """Bytes that a caption server reads for the next token of one caption, of a mean one at its middle."""
        return cache_bytes(self.models.captioner_config) * (self.work.prompt()[0] + self.work.caption_tokens / 2)

    def server_room(self) -> float:
        """Bytes that a caption server cannot do without: weights, room to work, one batch's cache."""
        rollout = self.config.actor_rollout_ref.rollout
        size = int(rollout.tensor_model_parallel_size)
        members = 1 if self.uae.stage == "u4g" else rollout.n
        captions = self.config.data.train_batch_size * members / self.layout.ranks
        longest = self.work.prompt()[0] + int(self.config.data.max_response_length)
        cache = captions * size * longest * cache_bytes(self.models.captioner_config)
        return (nbytes(self.models.frozen_captioner) + cache) / size + ASSUMED_SERVER_ROOM_GIB * GIB

    def drawing(self, captions: float) -> list[Phase]:
        """Conditions, pictures and scores of so many captions on a decoder rank of G4U; nothing is said of memory."""
        decoder = self.uae.decoder
        pictures = captions * decoder.seeds_per_caption
        together = min(decoder.batch_size, max(1, round(pictures)))
        call = self.work.velocity(together, decoder.guidance, policy=False)
        velocity = call.times(decoder.num_steps * pictures / together)
        return self._drawing(captions, pictures, velocity, {}, MICRO_BATCHES)

    def _redrawing(
        self, captions: float, beside: Mapping[str, float], decoder: Mapping[str, float], own_pool: bool
    ) -> list[Phase]:
        uae = self.uae
        if own_pool:
            captions *= self.layout.ranks / (uae.decoder.n_gpus_per_node * uae.decoder.nnodes)
            beside = self.processes(1)
            decoder = {"decoder": nbytes(self.models.frozen_decoder), **self.frozen()}
        phases = [replace(phase, memory={**beside, **decoder, **phase.memory}) for phase in self.drawing(captions)]
        if uae.decoder.offload and not own_pool:
            phases[0] = self._visited(phases[0], decoder)
        return phases

    def _captioner_learning(
        self, captions: float, shards: Shards, width: int, beside: Mapping[str, float]
    ) -> list[Phase]:
        hybrid = self.config.actor_rollout_ref
        actor, engine = hybrid.actor, hybrid.actor.fsdp_config
        again = bool(hybrid.model.enable_gradient_checkpointing)
        held = {
            "captioner": held_weights(shards, width),
            "captioner's optimiser": 0.0 if engine.optimizer_offload else ADAM * shards.own_trained,
        }
        computed = next(self.models.actor.parameters()).element_size()
        reshard = bool(engine.reshard_after_forward)
        gathered = {"gathered": shards.gathered(computed, reshard=reshard, backward=False)}

        def log_probs(name: str, micro: int, entropy: bool, weights: Mapping[str, float], pinned: float) -> Phase:
            micro = min(micro, max(1, round(captions)))
            calls = captions / micro
            cost = self.work.captioner(micro, gradient=False, entropy=entropy)
            total = cost.times(calls)
            return Phase(
                name,
                total,
                total.total,
                {**beside, **weights, **gathered, "activations": cost.peak},
                **self.travels(shards, computed, gathers=calls),
                pinned=pinned * calls,
                pageable=self.moves(engine, shards, width, state=False),
            )

        micro = hybrid.rollout.log_prob_micro_batch_size_per_gpu or captions
        phases = [log_probs("old log-probabilities", int(micro), True, held, 0.0)]
        if actor.use_kl_loss or self.config.algorithm.get("use_kl_in_reward"):
            if shards.trained < 0.5 * shards.all:
                # The same weights without their adapters.
                phases.append(log_probs("reference", int(micro), False, held, 0.0))
            else:
                micro = hybrid.ref.log_prob_micro_batch_size_per_gpu or micro
                # verl keeps those of the reference in pinned memory, from where FSDP takes them in every call.
                way = self.reference_width() * shards.own
                phases.append(log_probs("reference", int(micro), False, held, way))
        micro = min(int(actor.ppo_micro_batch_size_per_gpu or captions), max(1, round(captions)))
        plain = self.work.captioner(micro, gradient=True)
        cost = self.work.captioner(micro, gradient=True, checkpointing=True) if again else plain
        calls = captions / micro * int(actor.ppo_epochs)
        phases.append(
            Phase(
                "captioner's update",
                cost.times(calls),
                plain.total * calls,
                {
                    **beside,
                    "captioner": held_weights(shards, width),
                    "captioner's optimiser": ADAM * shards.own_trained,
                    "gradients": GRADIENT * shards.own_trained,
                    "gathered": shards.gathered(computed, reshard=reshard, backward=True),
                    "activations": cost.peak,
                },
                **self.travels(shards, computed, calls * (2 if reshard else 1), calls, engine),
                pageable=self.moves(engine, shards, width, state=True),
            )
        )
        return phases

    def _sync(self, shards: Shards, width: int) -> Phase:
        """All weights are gathered, in bf16, for the server of the GPU."""
        engine = self.config.actor_rollout_ref.actor.fsdp_config
        phase = Phase(
            "weights to the server",
            pageable=self.moves(engine, shards, width, state=False),
            fixed_s=ASSUMED_SERVER_S if self.served_by_vllm() else 0.0,
            control_s=ASSUMED_STEP_S,
        )
        return replace(phase, **self.travels(shards, 2, gathers=1))

    # ------------------------------------------------------------ U4G

    def u4g(self) -> list[Phase]:
        """Captions once, conditions, trajectories, pictures and scores, those of previews first, then the update."""
        uae = self.uae
        rows = self.config.data.train_batch_size / self.layout.ranks
        frozen = {**self.frozen(), "captioner": self.captioner_of_ranks()}
        beside = {**self.beside_policy(), **self.processes(1)}
        if by_servers(self.config) and self.served_by_vllm():
            beside["caption server"] = (ASSUMED_ASLEEP_GIB + ASSUMED_PROCESS_GIB) * GIB
        phases, learning, held = self._exploring(rows, frozen, beside)
        if self.captioner_of_ranks():
            phases.insert(0, self._written_by_ranks(rows, held))
        elif by_servers(self.config):
            waiting = {**frozen, **self.policy_waiting(self.policy_shards()), **self.processes(2)}
            served = self._served(rows, waiting)
            phases.insert(0, replace(served, name="captions, first epoch", share=0.0))
        if uae.decoder.offload:
            phases[0] = self._visited(phases[0], frozen)
        return [*phases, *learning]

    def _exploring(
        self, rows: float, frozen: Mapping[str, float], beside: Mapping[str, float]
    ) -> tuple[list[Phase], list[Phase], dict[str, float]]:
        """The policy on a rank.

        Args:
            rows: captions.
            frozen: bytes of models that draw and score.
            beside: bytes of what has no part in it.

        Returns:
            Phases in which it draws, those in which it learns, and bytes that are held while it draws.
        """
        u4g, offload, shards = self.uae.u4g, self.uae.decoder.offload, self.policy_shards()
        held = {**frozen, **beside, **self.policy(shards, backward=False, state=False)}
        candidates, drawn = (count / self.layout.ranks for count in drawn_pictures(self.config))
        phases = self._drawn_by_policy(rows, candidates or drawn, held, int(u4g.pool.steps or u4g.num_steps))
        if candidates and drawn:
            again = self._drawn_by_policy(0.0, drawn, held, int(u4g.num_steps))
            if offload:
                again[0] = self._visited(again[0], frozen)
            phases = [phase if phase.name == "condition" else as_preview(phase) for phase in phases] + again
        learning = self._policy_learning(self.trained_pictures(), shards, {**beside, **({} if offload else frozen)})
        return phases, learning, held

    def _drawn_by_policy(self, captions: float, pictures: float, held: Mapping[str, float], steps: int) -> list[Phase]:
        """Pictures of a rank, and conditions and features of sources that are not known yet."""
        engine, shards, micro = self.uae.train.fsdp_config, self.policy_shards(), int(self.uae.train.micro_batch_size)
        members = pool_size(self.config) if chooses(self.config) else self._members_of_update()
        calls, few = steps * pictures / micro, self.kinds(members)
        shared = self.prefix() * pictures / micro if few else 0.0
        few = {rows: shared * share for rows, share in few.items()}
        sampling = Passes(calls, calls - shared, few=few).of(micro, self._sampled)
        phases = self._drawing(captions, pictures, sampling, held, math.inf)
        at = next(number for number, phase in enumerate(phases) if phase.name == "denoising")
        width, gathered = width_of(engine.mixed_precision.param_dtype), calls if engine.reshard_after_forward else 1
        phases[at] = replace(phases[at], **self.travels(shards, width, gathers=gathered))
        phases[at] = replace(phases[at], pageable=self.moves(engine, shards, 4, state=False))
        return phases

    def _sampled(self, rows: int, places: int) -> Cost:
        """A velocity of the policy."""
        return self.work.velocity(rows, self.uae.u4g.guidance, policy=True, places=places)

    def _members_of_update(self) -> int:
        """Of a group, one behind the other."""
        return int(self.uae.u4g.samples_per_caption) // int(self.uae.u4g.updates_per_rollout)

    def prefix(self) -> float:
        """Steps up to the first stochastic one, this one included; mean over the first batches of a run."""
        plans = [sampling_plan(self.config, self.models.family, iteration) for iteration in range(BATCHES)]
        return sum(plan.window[0] + 1 for plan in plans) / len(plans)

    def kinds(self, members: int) -> dict[int, float]:
        """Share of micro-batches by the number of rows that the prefix is computed for, where groups of so many share
        it; empty: they do not."""
        micro = int(self.uae.train.micro_batch_size)
        if not self.uae.u4g.shared_prefix:
            return {}
        starts = range(0, micro * members, micro)
        found = Counter((start + micro - 1) // members - start // members + 1 for start in starts)
        return {rows: count / members for rows, count in found.items()}

    @staticmethod
    def _visited(phase: Phase, frozen: Mapping[str, float]) -> Phase:
        """A phase before which frozen weights come to the GPU; behind the last that needs them they are dropped there,
        see :mod:`verl_uae.visits`."""
        return replace(phase, pinned=phase.pinned + sum(frozen.values()))

    def _written_by_ranks(self, rows: float, held: Mapping[str, float]) -> Phase:
        """By transformers, in the first epoch: one token after the other of a batch, in eager mode."""
        batch = min(int(self.uae.u4g.captions.batch_size), max(1, round(rows)))
        cost = self.work.prefill(1).times(rows) + self.work.token().times(rows * self.work.caption_tokens)
        cache = batch * cache_bytes(self.models.captioner_config) * (self.work.prompt()[0] + self.work.caption_tokens)
        steps = math.ceil(rows / batch) * int(self.config.data.max_response_length)
        read = steps * (nbytes(self.models.frozen_captioner) + cache)
        memory = {**held, "activations": cost.peak + 2 * cache}
        return Phase("captions, first epoch", cost, cost.total, memory, read=read, share=0.0)

    def _policy_learning(self, samples: float, shards: Shards, beside: Mapping[str, float]) -> list[Phase]:
        uae, engine = self.uae, self.uae.train.fsdp_config
        u4g, micro, width = uae.u4g, int(uae.train.micro_batch_size), width_of(engine.mixed_precision.param_dtype)
        places = int(u4g.objective.num_sigmas) if self.forward_process() else self.window()
        batches, updates = samples / micro, int(u4g.updates_per_rollout)
        few = self.kinds(self._members_of_update())
        full = places - bool(few)
        together = min(int(u4g.replay_steps or places), max(1, full))
        passes = Passes(
            batches * (math.ceil(full / together) + bool(few)),
            batches * full / together,
            together,
            updates,
            {rows: batches * share for rows, share in few.items()},
        )
        found = []
        forward = passes.of(micro, self._sampled)
        reshard = bool(engine.reshard_after_forward)
        held = {**beside, **self.policy(shards, backward=False, state=False)}
        # Of transitions all but those of the first update, whose own pass says them; see the worker's `_old_values`.
        adopted = not drawn_pictures(self.config)[1]
        later = (u4g.sampler == "replica" or together > 1 or adopted) * (1 - 1 / updates)
        guidance = reference_guidance(self.config)
        guided = passes.of(micro, lambda rows, places: self.work.velocity(rows, guidance, policy=True, places=places))
        for name, share, cost in (
            ("old velocities", 1.0 if self.forward_process() else later, forward),
            ("reference", float(needs_reference(self.config)), guided),
            ("figures of the groups", float(self.group_figures()), forward),
        ):
            if share:
                memory = {**held, "activations": cost.peak}
                phase = Phase(name, cost.times(share), cost.total * share, memory, blocks=True)
                gathers = share * passes.calls if reshard else 1
                found.append(replace(phase, **self.travels(shards, width, gathers)))
        return [*found, self._decoder_update(passes, micro, shards, beside, u4g.guidance)]

    def _decoder_update(
        self, passes: Passes, micro: int, shards: Shards, beside: Mapping[str, float], guidance: float
    ) -> Phase:
        engine = self.uae.train.fsdp_config
        width, reshard = width_of(engine.mixed_precision.param_dtype), bool(engine.reshard_after_forward)

        def learnt(checkpointing: bool) -> Cost:
            return passes.of(
                micro,
                lambda rows, places: (
                    self.work.learning(rows, guidance, checkpointing=checkpointing, places=places).whole
                ),
            )

        plain = learnt(False)
        cost = learnt(True) if self.uae.train.gradient_checkpointing else plain
        # Weights that stay are gathered once in an update.
        gathers = 2 * passes.calls if reshard else passes.updates
        return Phase(
            "update",
            cost,
            plain.total,
            {**beside, **self.policy(shards, backward=True, state=True), "activations": cost.peak},
            blocks=True,
            **self.travels(shards, width, gathers, passes.calls, engine),
            pageable=self.moves(engine, shards, 4, state=True),
            control_s=ASSUMED_STEP_S,
        )

    def joint(self) -> list[Phase]:
        """Captions, their pictures by the policy and scores, log-probabilities, both updates, weights to the server."""
        config, frozen, offload = self.config, self.frozen(), self.uae.decoder.offload
        captions = config.data.train_batch_size * config.actor_rollout_ref.rollout.n / self.layout.ranks
        shards, width = self.actor_shards(), self.actor_width()
        policy = {**self.policy_waiting(self.policy_shards()), **({} if offload else frozen), **self.processes(3)}
        waiting = dict(zip(("captioner", "captioner's optimiser"), self.actor_waiting(shards), strict=True))
        asleep = {"caption server": ASSUMED_ASLEEP_GIB * GIB} if self.served_by_vllm() else {}
        drawing, learning, _ = self._exploring(captions, frozen, {**self.beside_policy(), **self.processes(1)})
        if offload:
            drawing[0] = self._visited(drawing[0], frozen)
        learning = [replace(phase, name=f"decoder's {phase.name}") for phase in learning]
        *known, update = self._captioner_learning(captions, shards, width, {**policy, **asleep})
        written = self._served(captions, {**policy, **waiting})
        return [written, *drawing, *known, *learning, update, self._sync(shards, width)]

    # ------------------------------------------------------------ supervised stages

    def pretrain(self) -> list[Phase]:
        """Pictures and captions encoded, then one update by flow matching."""
        uae, decoder = self.uae, self.uae.decoder
        pairs, micro = self.config.data.train_batch_size / self.layout.ranks, int(uae.train.micro_batch_size)
        shards = self.policy_shards()
        frozen, processes = self.frozen(), self.processes(1)
        held = {**frozen, **processes, **self.policy_waiting(shards)}
        vae = min(int(decoder.vae_batch_size), max(1, round(pairs)))
        pictures = self.work.encode(vae).times(pairs / vae)
        captions, wanted = self._conditions(pairs)
        phases = [
            Phase("VAE", pictures, pictures.total, {**held, "activations": pictures.peak}),
            Phase("condition", captions, wanted, {**held, "activations": captions.peak}),
        ]
        beside = {**processes, **({} if decoder.offload else frozen)}
        if uae.pretrain.prefetch:
            beside["activations of the next pairs"] = max(pictures.peak, captions.peak)
        update = self._decoder_update(Passes(pairs / micro, pairs / micro), micro, shards, beside, 1.0)
        if decoder.offload:
            phases[0] = self._visited(phases[0], frozen)
        if uae.pretrain.prefetch:
            return [replace(phase, together="learning", alone=0.0) for phase in (*phases, update)]
        return [*phases, update]

    def cold_start(self) -> list[Phase]:
        """The path of the sampler, the loss of its picture, the way back step by step, and the captioner's part. Steps
        that are kept hold their activations from the path until the way back, where they are not computed again."""
        uae, settings = self.uae, self.uae.cold_start
        pairs, micro = self.config.data.train_batch_size / self.layout.ranks, int(uae.train.micro_batch_size)
        batches, back, kept = pairs / micro, gone_back(self.config), int(settings.kept_steps)
        policy, actor = self.policy_shards(), self.actor_shards()
        trains = bool(trained_parameters(self.models.supervised_captioner))
        held = self._cold_start_held(policy, actor, trains)
        width = width_of(uae.train.fsdp_config.mixed_precision.param_dtype)
        path = self.work.velocity(micro, settings.guidance, policy=True)
        plain = self.work.learning(micro, settings.guidance, checkpointing=False, through=True)
        again = bool(uae.train.gradient_checkpointing)
        step = self.work.learning(micro, settings.guidance, checkpointing=True, through=True) if again else plain
        loss, needed = self._picture_loss(micro)
        recompute = bool(settings.captioner.gradient_checkpointing)
        captioner = Cost()
        useful = 0.0
        if trains:
            parts = [self.work.conditioning(micro, checkpointing=recompute)]
            useful = self.work.conditioning(micro, checkpointing=False).total
            if settings.caption_weight > 0 or settings.states == "in_context":
                parts.append(self.work.captioning(micro, checkpointing=recompute))
                useful += self.work.captioning(micro, checkpointing=False).total
            # Both are kept until the way back through the sampler is over.
            captioner = replace(sum(parts, Cost()), peak=sum(part.peak for part in parts))
        else:
            captioner, useful = self._conditions(micro)
        beside = {**held, "captioner's activations": captioner.peak if trains else 0.0}
        along, repeated = settings.num_steps * batches, (back - kept) * batches
        drawn = path.times(along - kept * batches) + step.forward.times(kept * batches)
        learnt = step.whole.times(repeated) + step.backward.times(kept * batches)
        # Beside the activations of one of them, and beside the picture's.
        others, waiting = {"kept steps": max(0, kept - 1) * step.held}, {"kept steps": kept * step.held}
        phases = [
            Phase("captioner", captioner.times(batches), useful * batches, {**held, "activations": captioner.peak}),
            Phase("path", drawn, drawn.total, {**beside, **others, "activations": drawn.peak}, blocks=True),
            Phase("picture", loss.times(batches), needed * batches, {**beside, **waiting, "activations": loss.peak}),
            Phase(
                "way back",
                learnt,
                # A forward pass that is done here was done along the path.
                plain.backward.total * back * batches,
                {**beside, **others, "activations": learnt.peak},
                blocks=True,
                control_s=ASSUMED_STEP_S,
            ),
        ]
        # For kept steps too a block's weights arrive beside the backward pass of the block behind it.
        sums, learns = back * batches, (batches if trains else 0.0)
        travels = {
            "captioner": self.travels(actor, 2, 2 * learns, learns, settings.captioner.fsdp_config if trains else None),
            "path": self.travels(policy, width, along),
            "way back": self.travels(policy, width, repeated + sums, sums, uae.train.fsdp_config),
        }
        return [replace(phase, **travels.get(phase.name, {})) for phase in phases]

    def _cold_start_held(self, policy: Shards, actor: Shards, trains: bool) -> dict[str, float]:
        features = self.models.features
        held = {
            **self.processes(1),
            "VAE": nbytes(self.models.vae),
            "rewards": self.frozen()["rewards"] + (nbytes(features.module) if features else 0.0),
            **self.policy(policy, backward=True, state=True),
        }
        if not trains:
            return {**held, "language model": nbytes(self.models.conditioner)}
        engine = self.uae.cold_start.captioner.fsdp_config
        width = width_of(engine.mixed_precision.param_dtype)
        return {
            **held,
            "captioner": 4 * actor.own + actor.buffers,
            "captioner's optimiser": ADAM * actor.own_trained,
            "captioner's gradients": GRADIENT * actor.own_trained,
            "captioner, gathered": actor.gathered(width, reshard=bool(engine.reshard_after_forward), backward=True),
        }

    def _picture_loss(self, micro: int) -> tuple[Cost, float]:
        """VAE and feature network with gradient, the VAE's activations and those of parts computed again; operations
        without that."""
        batch = min(int(self.uae.decoder.vae_batch_size), micro)
        parts = micro / batch
        network = self.models.features
        drawn = self.work.decode(batch, gradient=True, recomputed=True)
        needed = self.work.decode(batch, gradient=True).total
        cost = drawn + (self.work.decode(batch) if parts > 1 else Cost())
        peak = drawn.peak
        if network is not None:
            seen, source = self.work.features(network, batch, gradient=True), self.work.features(network, batch)
            cost = cost + seen + source
            peak += seen.peak
            needed += seen.total + source.total
        return replace(cost.times(parts), peak=peak), needed * parts
