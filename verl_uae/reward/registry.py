# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Reward terms by name.

A name is claimed once, by one of three: this package (the table below, imported on first use), an installed package
(entry point group ``verl_uae.rewards``, imported on first use), or code that has run the decorator. A second claim
raises, wherever it comes from.

    @register_reward("sharpness")
    class Sharpness(RewardTerm):
        ...

What is claimed may also be a function with :func:`~verl_uae.reward.function.reward_function`; a term is made of it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from verl_uae.errors import ConfigError
from verl_uae.reward.function_term import term_of_function
from verl_uae.reward.source import Source, load_source
from verl_uae.reward.term import KNOWN_NEEDS, RewardTerm

#: A term class, or a declared reward function.
Claimed = TypeVar("Claimed", bound=Callable[..., Any])

ENTRY_POINT_GROUP = "verl_uae.rewards"

#: Name to "module:class". A built-in term is registered by its line here and by nothing else.
BUILT_IN: Mapping[str, str] = {
    "pixel": "verl_uae.reward.terms.pixel:PixelSimilarity",
    "psnr": "verl_uae.reward.terms.pixel:BoundedPSNR",
    "ssim": "verl_uae.reward.terms.ssim:SSIM",
    "efficientnet_lite0": "verl_uae.reward.terms.efficientnet:EfficientNetLite0",
    "clip": "verl_uae.reward.terms.clip:ClipSimilarity",
    "dinov2": "verl_uae.reward.terms.vision:Dinov2Similarity",
    "dinov3": "verl_uae.reward.terms.vision:Dinov3Similarity",
    "siglip2": "verl_uae.reward.terms.vision:Siglip2Similarity",
    "dreamsim": "verl_uae.reward.terms.dreamsim:Dreamsim",
    "lpips": "verl_uae.reward.terms.perceptual:LPIPS",
    "dists": "verl_uae.reward.terms.perceptual:DISTS",
    "image_text_clip": "verl_uae.reward.terms.image_text:ImageTextClip",
    "caption_length": "verl_uae.reward.terms.caption:CaptionLength",
    "repetition": "verl_uae.reward.terms.caption:Repetition",
    "ocr_guard": "verl_uae.reward.terms.ocr:OcrGuard",
    "preference": "verl_uae.reward.terms.preference:Preference",
    "features": "verl_uae.reward.terms.backbone:BackboneSimilarity",
    "custom": "verl_uae.reward.custom:CustomReward",
    "remote": "verl_uae.reward.remote.term:RemoteReward",
}


class RewardRegistry:
    """Name to term class; the class may still be a ``module:class`` text that nobody has asked for.

    Args:
        built_in: the package's own names.
        group: entry point group of other packages' names; looked up once, at the first question.
    """

    def __init__(self, built_in: Mapping[str, str], group: str) -> None:
        self._claims: dict[str, str | type[RewardTerm]] = dict(built_in)
        self._group: str | None = group

    def register(self, name: str) -> Callable[[Claimed], Claimed]:
        """Decorator claiming ``name`` for a term class or a declared function, which it returns unchanged.

        Raises:
            ConfigError: where the name is taken.
            TypeError: where the class does not keep the contract of a term, or the function is not declared.
        """

        def decorate(claimed: Claimed) -> Claimed:
            self._discover()
            self._claim(name, _as_term_class(claimed, name))
            return claimed

        return decorate

    def get(self, name: str, key: str = "uae.reward.terms") -> type[RewardTerm]:
        """The class registered as ``name``, imported if need be.

        Args:
            name: a registered name.
            key: configuration key the name came from, for errors.

        Raises:
            ConfigError: where the name is unknown (lists the known and the closest), or does not import.
        """
        self._discover()
        claim = self._claims.get(name)
        if claim is None:
            close = difflib.get_close_matches(name, self._claims, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(key, f"unknown reward {name!r}.{hint} Known: {', '.join(self.names())}")
        if isinstance(claim, str):
            claim = self._claims[name] = _import_claim(name, claim, key)
        return claim

    def names(self) -> list[str]:
        """All names, sorted."""
        self._discover()
        return sorted(self._claims)

    def _discover(self) -> None:
        if self._group is not None:
            group, self._group = self._group, None
            for point in importlib.metadata.entry_points(group=group):
                self._claim(point.name, point.value)

    def _claim(self, name: str, claim: str | type[RewardTerm]) -> None:
        if name in self._claims:
            holder, other = _place(self._claims[name]), _place(claim)
            raise ConfigError("uae.reward", f"reward {name!r} is already registered by {holder}; {other} needs a name")
        self._claims[name] = claim


def check_term_class(term_class: object) -> None:
    """Check the facts a term must state.

    Raises:
        TypeError: naming the first one that is missing or wrong.
    """
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


def _as_term_class(claimed: Any, name: str) -> type[RewardTerm]:
    """A checked term class, made of the function where it is one."""
    term_class: Any = term_of_function(claimed, name) if inspect.isroutine(claimed) else claimed
    check_term_class(term_class)
    found: type[RewardTerm] = term_class
    return found


def _place(claim: str | type[RewardTerm]) -> str:
    return claim if isinstance(claim, str) else f"{claim.__module__}:{claim.__qualname__}"


def _import_claim(name: str, claim: str, key: str) -> type[RewardTerm]:
    module, _, attribute = claim.partition(":")
    try:
        return _as_term_class(getattr(importlib.import_module(module), attribute), name)
    # A fault boundary: another package's import may raise anything.
    except Exception as error:
        message = f"reward {name!r} ({claim}) cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigError(key, message) from error


_REGISTRY = RewardRegistry(BUILT_IN, ENTRY_POINT_GROUP)
register_reward = _REGISTRY.register
get_reward = _REGISTRY.get
reward_names = _REGISTRY.names


def load_reward_file(reference: str, key: str = "uae.reward.files") -> Source:
    """Import a user's file so that its ``@register_reward`` lines run.

    See :func:`verl_uae.reward.source.load_source` for what a reference may be and what is refused.
    """
    return load_source(reference, key)
