# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Options of the caption server, and what goes into its engine and comes out. No torch, no verl, no ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from verl_uae.errors import ConfigError
from verl_uae.settings import check_fields, key

if TYPE_CHECKING:
    from PIL.Image import Image

StopReason = Literal["completed", "aborted"]

#: Keys of verl's ``sampling_params`` that are understood. Anything else is refused, never ignored.
_SAMPLING_KEYS = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "logprobs",
        "max_tokens",
        "max_new_tokens",
        "seed",
        "ignore_eos",
    }
)


class CaptionRequestError(ValueError):
    """One request cannot be served; the requests it shares a batch with can."""


@dataclass(frozen=True)
class CaptionRequest:
    """One caption to generate.

    Attributes:
        prompt_ids: prompt tokens with every image placeholder already expanded to one token per merged patch.
        seed: names the caption: equal requests with equal seeds get equal captions.
        images: the images of the prompt, in the order of their placeholders.
        temperature: softmax temperature; 0 means greedy.
        top_p: nucleus mass in (0, 1]; 1 keeps every token.
        top_k: number of tokens kept; -1 or 0 keeps every token.
        max_tokens: most tokens to generate, eos included; None means the engine's response length.
        ignore_eos: go on after an end-of-sequence token.
        processor_kwargs: extra arguments of the image processor, e.g. ``max_pixels``.
        request_id: used in error messages only.
    """

    prompt_ids: Sequence[int]
    seed: int = key(MISSING, at_least=-(2**63), below=2**64, why="a seed has 64 bits")
    images: Sequence[Image] = ()
    temperature: float = key(1.0, at_least=0)
    top_p: float = key(1.0, above=0, at_most=1)
    top_k: int = key(-1, at_least=-1)
    max_tokens: int | None = key(None, at_least=1)
    ignore_eos: bool = False
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""

    def check(self) -> None:
        """Raise :class:`CaptionRequestError` when a sampling parameter is out of its range."""
        try:
            check_fields(self, "")
        except ConfigError as error:
            raise self.error(f"{error.key} {error.message}") from error

    def error(self, message: str) -> CaptionRequestError:
        """An error that names this request."""
        return CaptionRequestError(f"caption request {self.request_id or '(unnamed)'}: {message}")

    @classmethod
    def from_sampling_params(
        cls,
        sampling_params: Mapping[str, Any],
        *,
        prompt_ids: Sequence[int],
        default_seed: int,
        default_ignore_eos: bool = False,
        **rest: Any,
    ) -> CaptionRequest:
        """Build a request from verl's ``sampling_params`` (the vLLM names, plus SGLang's ``max_new_tokens``).

        Raises:
            CaptionRequestError: a parameter that is unknown, out of range, or a repetition penalty other
                than 1 (the trainer's log-probabilities know no such penalty).
        """
        request = cls(prompt_ids=prompt_ids, seed=default_seed, ignore_eos=default_ignore_eos, **rest)
        if unknown := sorted(set(sampling_params) - _SAMPLING_KEYS):
            raise request.error(f"unsupported sampling parameters {unknown}; supported: {sorted(_SAMPLING_KEYS)}")
        if sampling_params.get("repetition_penalty", 1.0) != 1.0:
            raise request.error(f"repetition_penalty must be 1, got {sampling_params['repetition_penalty']}")
        names = {f.name for f in fields(cls)}
        changes = {name: value for name, value in sampling_params.items() if name in names and value is not None}
        max_tokens = sampling_params.get("max_tokens", sampling_params.get("max_new_tokens"))
        request = replace(request, **{**changes, "max_tokens": max_tokens})
        request.check()
        return request


@dataclass(frozen=True)
class CaptionResult:
    """A generated caption.

    Attributes:
        token_ids: sampled tokens, the end-of-sequence token included when one was sampled (as vLLM does).
        log_probs: natural log-probability of each token under the distribution that the trainer uses, see
            :class:`verl_uae.caption_server.engine.BatchSampler`.
        stop_reason: ``completed`` (end of sequence or token limit) or ``aborted`` (cut short on request).
    """

    token_ids: list[int]
    log_probs: list[float]
    stop_reason: StopReason = "completed"


#: Key of our section in verl's free-form ``engine_kwargs``.
ENGINE_KEY = "hf"

#: Full name of it.
SECTION = f"actor_rollout_ref.rollout.engine_kwargs.{ENGINE_KEY}"


@dataclass(frozen=True)
class HFOptions:
    """Read with ``actor_rollout_ref.rollout.name=hf`` only.

    Raises:
        ConfigError: a value is impossible, by its full key.
    """

    max_batch_size: int = key(64, at_least=1)
    """Captions decoded together."""

    prefill_batch_size: int = key(8, at_least=1)
    """Distinct prompts that enter the model together. 1 wastes nothing when image sizes vary."""

    batch_wait_ms: float = key(20.0, at_least=0)
    """A batch starts when no request has arrived for this long, in milliseconds."""

    fixed_shapes: bool = True
    """Fill every batch with dummy rows, so that a caption does not depend, bit for bit, on the requests that share its
    batch. false saves work on small batches and gives that up."""

    attn_implementation: str = key("sdpa", choices=("sdpa", "eager"))
    """sdpa or eager: both accept the additive masks used here."""

    device: str | None = None
    """torch device of the model; null takes the accelerator when the server can see one."""

    num_threads: int = key(1, at_least=1)
    """Intra-op threads on the CPU. More than one gives up what ``fixed_shapes`` buys: torch's CPU attention then rounds
    differently in the rows of different threads."""

    num_cpus: float = key(0.0, at_least=0)
    """CPUs that Ray reserves for the server; 0 lets it share the trainer's, which idles meanwhile."""

    def __post_init__(self) -> None:
        check_fields(self, f"{SECTION}.")

    @classmethod
    def from_engine_kwargs(cls, engine_kwargs: Mapping[str, Any] | None) -> HFOptions:
        """Read the options out of verl's ``rollout.engine_kwargs`` (a missing section means defaults).

        Raises:
            ConfigError: an unknown key or an impossible value.
        """
        section = dict((engine_kwargs or {}).get(ENGINE_KEY) or {})
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(section) - set(known)):
            raise ConfigError(f"{SECTION}.{unknown[0]}", f"unknown key; known keys: {', '.join(known)}")
        return cls(**section)
