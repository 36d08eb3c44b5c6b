# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The worker of decoder pre-training: pairs in, one optimiser update out.

Latents and conditions of pairs come from disk where they are kept.

Shape legend: B pairs of this rank, S noise levels, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.config import TrainingWorkerConfig

from verl_uae.beside import Beside, Job
from verl_uae.chain.conditioner import ConditionCache
from verl_uae.chain.draw import Painter
from verl_uae.checkpoints.names import VAE
from verl_uae.checkpoints.source import local_folder
from verl_uae.data.buckets import HeightWidth, fit
from verl_uae.data.cache import TensorCache, condition_fingerprint, latent_fingerprint, latent_name
from verl_uae.data.limits import DEFAULT_LIMITS, ImageLimits
from verl_uae.data.pairs import Pair
from verl_uae.data.rows import CheckSettings
from verl_uae.devices import FittingBatch
from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_batch import on_device, read_condition, stored
from verl_uae.engines.supervised import SUPERVISED_TYPE, SupervisedOutput
from verl_uae.errors import DataError
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.flow.matching import NoiseDensity, flow_matching_loss, forward_noise
from verl_uae.seeding import generator, normal
from verl_uae.stages.common.build import DTYPES, EMA, build_training_painter, decoder_family, training_worker_config
from verl_uae.stages.common.worker import DecoderTrainingWorker

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Pairs as the decoder learns from them, in host memory."""

    fields: dict[str, Tensor]
    """Latents, conditions and weights: one that cannot be used has weight 0 and an empty picture."""
    problems: list[str]
    """Why a pair cannot be used; empty where it can."""
    figures: dict[str, float]
    """Share of captions that were cut, and of look-ups that each cache on disk answered up to here, in [0, 1]."""


class PairEncoder:
    """VAE and conditioner in front of the trained decoder; both frozen. One thread at a time encodes: who asks for
    pairs waits for those that were begun before.

    Args:
        vae: of the decoder.
        conditions: of captions, kept in memory.
        latent_cache: latents on disk, None for none.
        condition_cache: conditions on disk, None for none.
        limits: of pictures.
        batch_size: pictures per pass of the VAE.
    """

    def __init__(
        self,
        vae: Any,
        conditions: ConditionCache,
        *,
        latent_cache: TensorCache | None = None,
        condition_cache: TensorCache | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        batch_size: int = 2,
    ) -> None:
        self.vae = vae
        self.conditions = conditions
        self.family = conditions.conditioner.family
        self.latent_cache = latent_cache
        self.condition_cache = condition_cache
        self.limits = limits
        self._batch = FittingBatch(batch_size, "pictures of the VAE", "uae.decoder.vae_batch_size")
        self._beside = Beside(vae.device)
        self._begun: dict[int, Job[Encoded]] = {}

    def encode(self, pairs: Sequence[Pair], captions: Sequence[str], size: HeightWidth) -> Encoded:
        """Pairs of one size, each with the caption that it is learnt with."""
        self.settle()
        return self._encode(pairs, captions, size)

    def begin(self, number: int, pairs: Sequence[Pair], captions: Sequence[str], size: HeightWidth) -> None:
        """:meth:`encode` in a thread, for :meth:`take` to give under a number."""
        before = list(self._begun.values())[-1:]

        def work() -> Encoded:
            for job in before:
                job.wait()
            return self._encode(pairs, captions, size)

        self._begun[number] = self._beside.start("verl_uae pairs", work)

    def take(self, number: int) -> Encoded:
        """What was begun under a number, once; what goes wrong there is raised here."""
        return self._begun.pop(number).result()

    def settle(self) -> None:
        """Wait until nothing is encoded, whose models are about to be used for something else."""
        for job in self._begun.values():
            job.wait()

    def _encode(self, pairs: Sequence[Pair], captions: Sequence[str], size: HeightWidth) -> Encoded:
        latents, problems = self.latents(pairs, size)
        states, cut, unreadable = self.states(captions)
        problems = [first or second for first, second in zip(problems, unreadable, strict=True)]
        blank = torch.zeros(self.family.latent_shape(*size))
        fields = {
            "x0_BCHW": torch.stack([blank if latent is None else latent for latent in latents]),
            **stored(Condition.stack(states)),
            "weight_B": torch.tensor([0.0 if problem else 1.0 for problem in problems]),
        }
        figures = {"condition_truncated_frac": sum(cut) / max(1, len(cut)), **self.counters()}
        return Encoded(fields, problems, figures)

    def latents(self, pairs: Sequence[Pair], size: HeightWidth) -> tuple[list[Tensor | None], list[str]]:
        """Scaled latents (mean of the posterior) of pictures brought to one size.

        Returns:
            Latents (C, H, W), fp32, in host memory, None where the picture does not decode; and why.
        """
        found: list[Tensor | None] = [self._kept(pair, size) for pair in pairs]
        problems = [""] * len(pairs)
        # By content: the company in a batch changes the last bits, and equal pictures must have equal latents.
        pictures: dict[str, Tensor] = {}
        for index, pair in enumerate(pairs):
            if found[index] is None and pair.content_key not in pictures:
                try:
                    pictures[pair.content_key] = fit(pair.decode(self.limits), size)
                except DataError as error:
                    problems[index] = str(error)
        waiting = list(pictures)

        def encode(rows: slice) -> Tensor:
            image_B3HW = torch.stack([pictures[key] for key in waiting[rows]])
            return self.family.encode_image(self.vae, image_B3HW.to(self.vae.device)).cpu()

        latents = [latent_CHW for part in self._batch.map(len(waiting), encode) for latent_CHW in part]
        made = dict(zip(waiting, latents, strict=True))
        if self.latent_cache is not None:
            for key, latent_CHW in made.items():
                self.latent_cache.put(latent_name(key, size), {"latent": latent_CHW})
        found = [made.get(pair.content_key) if kept is None else kept for pair, kept in zip(pairs, found, strict=True)]
        return found, problems

    def states(self, captions: Sequence[str]) -> tuple[list[Condition], list[bool], list[str]]:
        """Conditions of captions in host memory, whether each was cut, and why one cannot be encoded."""
        if self.condition_cache is None:
            return self.conditions.get(captions)
        kept = {caption: self.condition_cache.get(caption) for caption in dict.fromkeys(captions)}
        missing = [caption for caption, tensors in kept.items() if tensors is None]
        made = dict(zip(missing, zip(*self.conditions.get(missing), strict=True), strict=True)) if missing else {}
        for caption, (condition, cut, problem) in made.items():
            if not problem:
                self.condition_cache.put(caption, {"states": condition.states[0], "cut": torch.tensor(cut)})
        rows = []
        for caption in captions:
            tensors = kept[caption]
            if tensors is None:
                rows.append(made[caption])
            else:
                rows.append((Condition.whole(tensors["states"][None]), bool(tensors["cut"]), ""))
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]

    def counters(self) -> dict[str, float]:
        """Share of look-ups that each cache on disk answered, in [0, 1]."""
        caches = {"latent": self.latent_cache, "condition": self.condition_cache}
        shares = {}
        for name, cache in caches.items():
            if cache is not None:
                counts = cache.counters()
                shares[f"{name}_cache_hit_frac"] = counts["hits"] / max(1, counts["hits"] + counts["misses"])
        return shares

    def _kept(self, pair: Pair, size: HeightWidth) -> Tensor | None:
        if self.latent_cache is None or pair.problem is not None:
            return None
        tensors = self.latent_cache.get(latent_name(pair.content_key, size))
        return None if tensors is None else tensors["latent"]


def supervised_worker_config(config: DictConfig, total_steps: int) -> TrainingWorkerConfig:
    """What verl's training worker needs to train the decoder with a supervised loss."""
    shadows = [EMA] if config.uae.train.ema.decay > 0 else []
    return training_worker_config(config, total_steps, SUPERVISED_TYPE, shadows=shadows)


def density(config: DictConfig, family: DecoderFamily) -> NoiseDensity:
    """The trained noise levels.

    Args:
        config: the whole composed configuration.
        family: of the decoder, for its timestep shift where ``uae.pretrain.shift`` is null.
    """
    settings: Any = OmegaConf.to_container(config.uae.pretrain.density, resolve=True)
    own, decoder = config.uae.pretrain.shift, config.uae.decoder
    shift = family.shift(decoder.num_steps, decoder.height, decoder.width) if own is None else float(own)
    return NoiseDensity(shift=shift, **settings)


def build_pair_encoder(config: DictConfig, painter: Painter) -> PairEncoder:
    """VAE, conditioner and caches of a rank.

    Args:
        config: the whole composed configuration.
        painter: holds VAE and conditioner.
    """
    uae = config.uae
    latents = states = None
    if uae.pretrain.cache_dir is not None:
        vae = local_folder(uae.decoder.path, parts=[VAE]) / VAE
        latents = TensorCache(f"{uae.pretrain.cache_dir}/latents", latent_fingerprint(vae, torch.float32))
        made_by = condition_fingerprint(
            local_folder(uae.conditioner.path),
            DTYPES[uae.conditioner.dtype],
            length=uae.conditioner.length,
            role=uae.conditioner.role,
        )
        states = TensorCache(f"{uae.pretrain.cache_dir}/conditions", made_by)
    limits = CheckSettings.from_config(config.data).image_limits
    return PairEncoder(
        painter.vae,
        painter.conditions,
        latent_cache=latents,
        condition_cache=states,
        limits=limits,
        batch_size=uae.decoder.vae_batch_size,
    )


class FlowMatching:
    """The loss of a micro-batch; reads x0_BCHW, noise_BCHW, sigma_B and the condition."""

    def __init__(self, density: NoiseDensity) -> None:
        self.density = density

    def __call__(self, engine: DecoderEngine, micro: TensorDict) -> SupervisedOutput:
        """See :func:`~verl_uae.flow.matching.flow_matching_loss`."""
        x_BCHW = forward_noise(micro["x0_BCHW"], micro["noise_BCHW"], micro["sigma_B"])
        velocity_BCHW = engine.field(read_condition(micro))(x_BCHW, micro["sigma_B"])
        weight_B = self.density.weight(micro["sigma_B"])
        loss_B = flow_matching_loss(velocity_BCHW, micro["x0_BCHW"], micro["noise_BCHW"], weight_B)
        rms_B = velocity_BCHW.detach().float().square().flatten(1).mean(1).sqrt()
        return SupervisedOutput(loss_B, {"velocity_rms": rms_B, "sigma": micro["sigma_B"]})


class PretrainWorker(DecoderTrainingWorker):
    """Trains projector and transformer on pairs; VAE and language model are frozen.

    Args:
        config: the whole composed configuration.
        total_steps: optimiser updates of the run.
    """

    def __init__(self, config: DictConfig, total_steps: int) -> None:
        super().__init__(config, supervised_worker_config(config, total_steps))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Load all models."""
        self.reset()
        device = get_device_name()
        self.family = decoder_family(self.run)
        self.density = density(self.run, self.family)
        self.set_loss_fn(FlowMatching(self.density))
        self.painter = build_training_painter(self.run, None, self.family, device)
        self.encoder = build_pair_encoder(self.run, self.painter)
        self._put_away()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def prefetch(self, pairs: Sequence[Pair], size: HeightWidth, step: int) -> None:
        """Begin to encode the batch of an update; arguments as of :meth:`learn`."""
        self._encode_with(functools.partial(self.encoder.begin, step), pairs, size, step)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def learn(self, pairs: Sequence[Pair] | None, size: HeightWidth, step: int) -> tuple[dict[str, Any], list[str]]:
        """One update on a batch of one bucket.

        Noise, level and dropout are named by step and place in the batch, so they do not depend on the ranks.

        Args:
            pairs: of all ranks; None where :meth:`prefetch` was given those of this step.
            size: (H, W) of their bucket.
            step: number of the update, from 1.

        Returns:
            verl's metrics, and why pairs of this rank could not be used.
        """
        with self._frozen_on_device():
            if pairs is None:
                encoded = self.encoder.take(step)
            else:
                encoded = self._encode_with(self.encoder.encode, pairs, size, step)
        fields = dict(encoded.fields)
        numbers = [self.rank + place * self.world_size for place in range(len(encoded.problems))]
        shape = tuple(fields["x0_BCHW"].shape[1:])
        seed = self.run.uae.seed
        fields["noise_BCHW"] = torch.stack([normal(shape, seed, "pretrain noise", step, n) for n in numbers])
        levels = [self.density.draw(1, generator(seed, "pretrain sigma", step, n)) for n in numbers]
        data = TensorDict(fields | {"sigma_B": torch.cat(levels)}, batch_size=len(numbers))
        tu.assign_non_tensor(
            data,
            micro_batch_size_per_gpu=self.run.uae.train.micro_batch_size,
            total_weight=self.total_weight(fields["weight_B"]),
            update_lr_scheduler=True,
        )
        metrics = dict(tu.get(self.train_batch(data), "metrics"))
        self._average(step, metrics)
        return metrics | encoded.figures, [problem for problem in encoded.problems if problem]

    def prepare_evaluation(self) -> None:
        """Validation draws with the encoder's models."""
        self.encoder.settle()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def held_out_losses(self, pairs: Sequence[Pair], size: HeightWidth, first: int) -> list[list[float] | None]:
        """Flow-matching losses of the averaged weights, unweighted, at evenly spaced noise levels.

        Noise is named by the pair's number alone, counted from ``first``: the same at every validation.

        Returns:
            For the pairs ``rank, rank + world_size, ...`` one loss per level, None where a pair cannot be used.
        """
        numbers, padded = self.share_of(len(pairs))
        with self._frozen_on_device():
            mine = [pairs[number] for number in padded]
            fields = dict(self.encoder.encode(mine, [pair.caption for pair in mine], size).fields)
        shape = tuple(fields["x0_BCHW"].shape[1:])
        noise = [normal(shape, self.run.uae.seed, "pretrain held-out noise", first + n) for n in padded]
        fields["noise_BCHW"] = torch.stack(noise)
        data = TensorDict(fields, batch_size=len(padded))
        with self.engine.eval_mode(), self._weights(self._averaged), torch.no_grad():
            parts = data.split(self.run.uae.train.micro_batch_size)
            losses_BS = torch.cat([self._losses(on_device(part, get_device_id())) for part in parts]).cpu()
        usable = fields["weight_B"][: len(numbers)] > 0
        return [row.tolist() if good else None for row, good in zip(losses_BS, usable, strict=False)]

    def _losses(self, micro: TensorDict) -> Tensor:
        """(B, S), unweighted."""
        count = self.run.uae.pretrain.validation_levels
        even, found = FlowMatching(NoiseDensity("uniform")), []
        for index in range(count):
            micro["sigma_B"] = torch.full_like(micro["weight_B"], (index + 0.5) / count)
            found.append(even(self.engine, micro).loss_B)
        return torch.stack(found, dim=1)

    def _encode_with(self, encode: Callable[..., _T], pairs: Sequence[Pair], size: HeightWidth, step: int) -> _T:
        """This rank's share of a batch, with the captions of the step."""
        numbers = range(self.rank, len(pairs), self.world_size)
        captions = [self._caption(pairs[number].caption, step, number) for number in numbers]
        return encode([pairs[number] for number in numbers], captions, size)

    def _caption(self, caption: str, step: int, number: int) -> str:
        settings = self.run.uae.pretrain
        draw = torch.rand((), generator=generator(self.run.uae.seed, "pretrain dropout", step, number))
        return settings.null_caption if float(draw) < settings.condition_dropout else caption
