# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures to captions with vLLM, outside of a training run: one engine for all of them, then its memory is returned.

Prompts, limits and seeds are those of :mod:`verl_uae.chain.captioner`; sampled captions differ, since vLLM draws its
random numbers by another rule. vLLM is imported on first use.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from PIL import Image

from verl_uae.captioners import family_of, prompt_pictures
from verl_uae.chain.captioner import Messages, banned_tokens, caption_messages, eos_token_ids
from verl_uae.checkpoints.inference import InferenceSettings
from verl_uae.checkpoints.load import load_config, load_generation, load_processor
from verl_uae.data.images import image_digest
from verl_uae.errors import CheckpointError, ConfigError, DecodeError
from verl_uae.seeding import derive_seed

LONGEST_PROMPT = 20480
"""Tokens that the engine has room for: the 16384 that Qwen makes of a picture at most by default, with a prompt."""

CHUNK = 128
"""Pictures that are in memory together."""

MEMORY_SHARE = 0.9
"""Of the GPU memory that is free when the engine starts."""

CPU_CACHE = "4"
"""GiB of the cache on a CPU, unless ``VLLM_CPU_KVCACHE_SPACE`` says another; vLLM would ask for 92 % of the memory."""

#: Set before vLLM is imported, unless the user has: standard output is for results, and nothing is sent anywhere.
_SILENCE = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


def token_limits(config: Any, generation: Any, tokenizer: Any) -> dict[str, Any]:
    """Sampling settings of vLLM by which a caption ends, and contains, what it does with transformers.

    Args:
        config: of the captioner.
        generation: its generation config.
        tokenizer: its tokenizer.
    """
    banned = banned_tokens(config, generation, tokenizer).nonzero().flatten().tolist()
    return {
        "stop_token_ids": sorted(eos_token_ids(generation, tokenizer)),
        # Unlike the lists that vLLM has for it, a bias costs nothing per token of the vocabulary or per step.
        "logit_bias": dict.fromkeys(banned, -math.inf),
    }


def runs_vllm(engine: str, device: torch.device) -> bool:
    """Whether vLLM writes the captions.

    Args:
        engine: value of ``--captioner-engine``; ``auto`` is vLLM on a CUDA device where it can be imported.
        device: that the pipeline computes on.

    Raises:
        ConfigError: vLLM was asked for and cannot be imported, or computes elsewhere.
    """
    if engine == "transformers" or (engine == "auto" and device.type != "cuda"):
        return False
    for name, value in _SILENCE.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        if engine == "auto":
            return False
        remedy = 'install it (in a checkout: pip install ".[gpu]"), or give transformers'
        raise ConfigError("--captioner-engine", f"vllm cannot be imported ({error}): {remedy}") from error
    if (computes := current_platform.device_type) == device.type:
        return True
    if engine == "auto":
        return False
    reason = (
        f"this vLLM computes on {computes or 'no device'}, --device is {device}: give transformers, or another --device"
    )
    raise ConfigError("--captioner-engine", reason)


class VLLMCaptioner:
    """A captioner in an engine of vLLM, from its first picture to :meth:`close`. A context manager.

    Args:
        folder: transformers folder of the captioner.
        settings: prompt, longest caption and temperature.
        dtype: of the weights.
        device: that the engine computes on; vLLM takes as many of that kind as it has, here the one.

    Raises:
        CheckpointError: the captioner is of no known family, or its files cannot be read.
    """

    def __init__(self, folder: str, settings: InferenceSettings, *, dtype: torch.dtype, device: torch.device) -> None:
        self.folder, self.settings, self.dtype, self.device = str(folder), settings, dtype, device
        self.config = load_config(folder)
        family_of(self.config.model_type, folder)
        self.processor = load_processor(folder)
        self.limits = token_limits(self.config, load_generation(folder), self.processor.tokenizer)
        self._engine: Any = None

    def __enter__(self) -> VLLMCaptioner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_all(self, pictures: Iterable[Callable[[], Image.Image]], *name: int | str) -> dict[str, str]:
        """Captions by the digest of their picture; whoever wants one that cannot be read gets its reason there.

        Args:
            pictures: each decodes one, when it is needed.
            name: of the random numbers of a caption, which the digest completes.

        Raises:
            CheckpointError: see :meth:`write`.
        """
        captions: dict[str, str] = {}
        source = iter(pictures)
        while decoders := list(islice(source, CHUNK)):
            found: dict[str, Image.Image] = {}
            for decode in decoders:
                with contextlib.suppress(DecodeError):
                    picture = decode()
                    found[image_digest(picture)] = picture
            new = {digest: picture for digest, picture in found.items() if digest not in captions}
            texts = self.write(list(new.values()), [derive_seed(*name, digest) for digest in new])
            captions.update(zip(new, texts, strict=True))
        return captions

    def close(self) -> None:
        """End the engine; its memory is free when this returns."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()
            del engine
            gc.collect()

    def write(self, pictures: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
        """One caption per picture.

        Args:
            pictures: RGB.
            seeds: of each caption, read above temperature 0 only.

        Raises:
            CheckpointError: vLLM does not load the captioner, or its logits are no numbers.
        """
        if not pictures:
            return []
        from vllm import SamplingParams

        settings, tokenizer = self.settings, self.processor.tokenizer
        prompts = [caption_messages(picture, settings.caption_prompt, settings.caption_system) for picture in pictures]
        sampling = [
            SamplingParams(
                temperature=settings.temperature,
                max_tokens=settings.max_new_tokens,
                seed=seed,
                # Of the sampled token: whether the model's output was a number at all.
                logprobs=0,
                detokenize=False,
                **self.limits,
            )
            for seed in seeds
        ]
        self._engine = self._engine or self._start()
        outputs = self._engine.generate([self._request(turns) for turns in prompts], sampling, use_tqdm=False)
        texts: list[str] = []
        for output in outputs:
            (caption,) = output.outputs
            if not math.isfinite(caption.cumulative_logprob or 0.0):
                reason = f"its logits are NaN in {self.dtype}: use float32 or bfloat16, or check its weights"
                raise CheckpointError(self.folder, reason)
            texts.append(tokenizer.decode(list(caption.token_ids), skip_special_tokens=True).strip())
        return texts

    def _request(self, turns: Messages) -> Mapping[str, Any]:
        text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return {"prompt": text, "multi_modal_data": {"image": prompt_pictures(self.processor, turns)[0]}}

    def _start(self) -> Any:
        from vllm import LLM

        longest = self.config.get_text_config().max_position_embeddings
        options: dict[str, Any] = {}
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            options["gpu_memory_utilization"] = MEMORY_SHARE * free / total
        try:
            with _environment(self.device):
                return LLM(
                    model=self.folder,
                    dtype=str(self.dtype).removeprefix("torch."),
                    max_model_len=min(longest, LONGEST_PROMPT + self.settings.max_new_tokens),
                    limit_mm_per_prompt={"image": 1, "video": 0},
                    # Nothing but the temperature shapes the distribution.
                    generation_config="vllm",
                    # The engine starts sooner without compilation; what that costs per caption was not measured.
                    enforce_eager=True,
                    **options,
                )
        except (RuntimeError, ValueError, OSError) as error:
            reason = f"vLLM does not load it: {' '.join(str(error).split())}; or give --captioner-engine transformers"
            raise CheckpointError(self.folder, reason) from error


@contextlib.contextmanager
def _environment(device: torch.device) -> Iterator[None]:
    """Environment of the engine's processes: they see the one device, and start afresh, since CUDA does not survive a
    fork."""
    chosen = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if device.type == "cpu":
        chosen["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE)
    if device.type == "cuda" and device.index:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device.index] if visible else str(device.index)
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
