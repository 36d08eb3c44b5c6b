# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Reward terms by name.

Another package publishes its own under the entry point group ``verl_uae.rewards``; see :mod:`verl_uae.registry`::

    @register_reward("sharpness")
    class Sharpness(RewardTerm):
        ...

What is claimed may also be a function with :func:`~verl_uae.reward.function.reward_function`; a term is made of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from verl_uae.errors import ConfigError
from verl_uae.registry import Registry
from verl_uae.reward.function import term_of_function
from verl_uae.reward.term import KNOWN_NEEDS, RewardTerm
from verl_uae.user_code import Source, load_source

#: A term class, or a declared reward function.
Claimed = TypeVar("Claimed", bound=Callable[..., Any])

ENTRY_POINT_GROUP = "verl_uae.rewards"

#: Name to "module:class". A built-in term is registered by its line here and by nothing else.
BUILT_IN: Mapping[str, str] = {
    "pixel": "verl_uae.reward.terms.pixel:PixelSimilarity",
    "psnr": "verl_uae.reward.terms.pixel:BoundedPSNR",
    "ssim": "verl_uae.reward.terms.pixel:SSIM",
    "efficientnet_lite0": "verl_uae.reward.terms.vision:EfficientNetLite0",
    "clip": "verl_uae.reward.terms.vision:ClipSimilarity",
    "dinov2": "verl_uae.reward.terms.vision:Dinov2Similarity",
    "dinov3": "verl_uae.reward.terms.vision:Dinov3Similarity",
    "siglip2": "verl_uae.reward.terms.vision:Siglip2Similarity",
    "dreamsim": "verl_uae.reward.terms.dreamsim:Dreamsim",
    "lpips": "verl_uae.reward.terms.perceptual:LPIPS",
    "dists": "verl_uae.reward.terms.perceptual:DISTS",
    "image_text_clip": "verl_uae.reward.terms.vision:ImageTextClip",
    "caption_length": "verl_uae.reward.terms.caption:CaptionLength",
    "repetition": "verl_uae.reward.terms.caption:Repetition",
    "ocr_guard": "verl_uae.reward.terms.caption:OcrGuard",
    "preference": "verl_uae.reward.terms.preference:Preference",
    "custom": "verl_uae.reward.function:CustomReward",
    "remote": "verl_uae.reward.remote.term:RemoteReward",
}


def register_reward(name: str) -> Callable[[Claimed], Claimed]:
    """Decorator claiming ``name`` for a term class or a declared function, which it returns unchanged.

    Raises:
        ConfigError: where the name is taken.
        TypeError: where the class does not keep the contract of a term, or the function is not declared.

    Example:
        >>> from verl_uae.reward import reward_function
        >>> @register_reward("docs_short")
        ... @reward_function(bounds=(0.0, 1.0))
        ... def short(caption):
        ...     return 1.0 / (1 + len(caption.split()))
        >>> "docs_short" in reward_names()
        True
    """

    def decorate(claimed: Claimed) -> Claimed:
        REWARDS.claim(name, as_term_class(claimed, name), claimed)
        return claimed

    return decorate


def get_reward(name: str, key: str = "uae.reward.terms") -> type[RewardTerm]:
    """The class registered as ``name``, imported if need be; ``key`` is where the name came from, for errors.

    Raises:
        ConfigError: where the name is unknown (lists the known and the closest), or does not import.
    """
    if name == "features" and name not in REWARDS.names():
        old, new = "{name: features, params: {backbone: clip}}", "{name: clip}"
        raise ConfigError(key, f"'features' is no reward: name the network itself, {new} instead of {old}")
    return REWARDS.get(name, key)


def reward_names() -> list[str]:
    """All names, sorted."""
    return REWARDS.names()


def check_term_class(term_class: object) -> None:
    """Raise TypeError naming the first of the facts a term must state that is missing or wrong."""
    if not (inspect.isclass(term_class) and issubclass(term_class, RewardTerm)):
        raise TypeError(f"{term_class!r} is not a subclass of RewardTerm")
    where = f"{term_class.__module__}.{term_class.__qualname__}"
    if inspect.isabstract(term_class):
        raise TypeError(f"{where} does not implement {', '.join(sorted(term_class.__abstractmethods__))}")
    bounds = getattr(term_class, "bounds", None)
    if not (isinstance(bounds, tuple) and len(bounds) == 2 and bounds[0] < bounds[1]):
        raise TypeError(f"{where}.bounds must be (low, high) with low < high, got {bounds!r}")
    unknown = set(term_class.needs) - KNOWN_NEEDS
    if unknown:
        raise TypeError(f"{where}.needs has unknown {sorted(unknown)}; known: {sorted(KNOWN_NEEDS)}")


def as_term_class(claimed: Any, name: str) -> type[RewardTerm]:
    """A checked term class, made of the function where it is one."""
    term_class: Any = term_of_function(claimed, name) if inspect.isroutine(claimed) else claimed
    check_term_class(term_class)
    found: type[RewardTerm] = term_class
    return found


REWARDS: Registry[type[RewardTerm]] = Registry("reward", "uae.reward", ENTRY_POINT_GROUP, as_term_class, BUILT_IN)


def load_reward_file(reference: str, key: str = "uae.reward.files") -> Source:
    """Import a user's file so that its ``@register_reward`` lines run.

    See :func:`verl_uae.user_code.load_source` for what a reference may be and what is refused.
    """
    return load_source(reference, key)
