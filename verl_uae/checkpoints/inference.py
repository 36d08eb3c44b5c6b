# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a model needs to know to caption and draw as it did in its run's validation.

Kept in ``model_index.json`` of a model or decoder folder, and in ``uae_inference.json`` of a step folder: read and
written here alone. The timestep shift is not among them: it is that of ``scheduler/``.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_uae.chain.config import MOST_STEPS, NEGATIVE_PROMPT
from verl_uae.checkpoints.names import FAMILY_OPTIONS, MODEL_INDEX, RUN_INFERENCE
from verl_uae.checkpoints.source import read_object
from verl_uae.data.schema import IMAGE_MARK, MEDIA_TOKENS, SYSTEM_PROMPT, USER_PROMPT, CaptionPrompt
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.files import write_json
from verl_uae.settings import CAPTIONING
from verl_uae.text import is_number, text_problem
from verl_uae.versions import version

if TYPE_CHECKING:
    from verl_uae.families.family import DecoderFamily


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceSettings:
    """Settings of captions and drawings. The defaults are the prompt of UAE and the sampler of its demo. Raises
    `ConfigError`: naming the first entry that is impossible."""

    condition_length: int = 640
    """Text positions of the condition, chat template included, at least 1."""
    condition_role: str = "generate"
    """Chat role of the caption in the condition."""
    caption_prompt: str = USER_PROMPT
    """User turn that asks for a caption, ``<image>`` where the picture goes."""
    caption_system: str = SYSTEM_PROMPT
    """System turn before it; "" leaves it out."""
    max_new_tokens: int = 512
    """Longest caption, tokens, end of turn included, at least 1."""
    temperature: float = 0.0
    """Of captions, at least 0; 0 is greedy."""
    num_inference_steps: int = 40
    """Denoising steps of the ODE sampler, in [1, `MOST_STEPS`]."""
    guidance_scale: float = 5.0
    """Classifier-free guidance, at least 1; 1 switches it off."""
    negative_prompt: str = NEGATIVE_PROMPT
    """Text of the unconditional branch."""
    height: int | None = None
    """Of a picture, pixels; None is the size that the transformer was made for."""
    width: int | None = None
    """Likewise."""

    def __post_init__(self) -> None:
        checked(dataclasses.asdict(self))


#: Names of the entries.
ENTRIES = tuple(field.name for field in dataclasses.fields(InferenceSettings))

#: Those that only a captioner reads.
CAPTION_ENTRIES = ("caption_prompt", "caption_system", "max_new_tokens", "temperature")

_OPTIONAL = ("height", "width")
_INTEGERS = ("condition_length", "max_new_tokens", "num_inference_steps", *_OPTIONAL)
_SMALLEST = {"temperature": 0.0, "guidance_scale": 1.0}
_EMPTY_ALLOWED = ("caption_system", "negative_prompt")
_ASKED = ("caption_prompt", "caption_system")
_QUOTED = 40
"""Most characters of a number in an error."""

_KEYS = {
    "condition_length": "uae.conditioner.length",
    "condition_role": "uae.conditioner.role",
    "max_new_tokens": "data.max_response_length",
    "num_inference_steps": "uae.decoder.num_steps",
    "guidance_scale": "uae.decoder.guidance",
    "negative_prompt": "uae.decoder.negative_prompt",
    "height": "uae.decoder.height",
    "width": "uae.decoder.width",
}

#: What a model was made for, in whatever stage it goes on.
_FORMAT = ("condition_length", "condition_role", "max_new_tokens", "negative_prompt", "height", "width")


def settings_of_run(get: Callable[[str], Any], prompt: CaptionPrompt | None) -> dict[str, Any]:
    """Entries that a run's validation captions and draws with; those that are not known are left out.

    Args:
        get: value of a key of the composed configuration, None where there is none.
        prompt: of the training rows, if it is known.
    """
    found = {name: get(key) for name, key in _KEYS.items()} | {"temperature": _temperature(get)}
    if prompt is not None:
        found |= {"caption_prompt": prompt.user, "caption_system": prompt.system}
    return {name: value for name, value in found.items() if value is not None}


def keys_of_model(folder: Path) -> dict[str, Any]:
    """Keys by which a run goes on with captions, conditions and pictures as a model or decoder folder has them, as far
    as it names them; how many steps a picture is drawn in is the stage's. Raises `CheckpointError`: see
    :func:`read_index`."""
    entries, usual = read_index(folder), InferenceSettings()
    # Texts that are the usual ones are so without a word.
    own = (name for name in _FORMAT if name in _INTEGERS or entries.get(name) != getattr(usual, name))
    return {_KEYS[name]: entries[name] for name in own if entries.get(name) is not None}


def _temperature(get: Callable[[str], Any]) -> float | None:
    """Of the captions of validation; greedy in stages whose validation writes none."""
    stage = get("uae.stage")
    if stage is None:
        return None
    if stage in CAPTIONING:
        # verl reads no do_sample there.
        return get("actor_rollout_ref.rollout.val_kwargs.temperature")
    captions = get("uae.u4g.captions") or {}
    sampled = stage == "u4g" and captions.get("source") == "captioner" and captions.get("do_sample")
    return float(captions["temperature"]) if sampled else 0.0


def write_index(folder: Path, family: DecoderFamily, entries: Mapping[str, Any]) -> None:
    """Write ``model_index.json`` of a decoder folder: its parts, and what is known of the settings. Raises
    `ConfigError`: an entry is unknown or impossible."""
    names = {"_class_name": "UAEPipeline", "_diffusers_version": version("diffusers")}
    options = {FAMILY_OPTIONS: family.options} if any(value is not None for value in family.options.values()) else {}
    index = {**names, **family.index_entries(), **options, **checked(entries)}
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_index(folder: Path) -> dict[str, Any]:
    """The entries of a model or decoder folder; none where it has no ``model_index.json``. Raises `CheckpointError`:
    the file or an entry of it is damaged, or an entry is unknown."""
    path = folder / MODEL_INDEX
    if not path.is_file():
        return {}
    # A component is library and class, both None where it is absent.
    content = {name: value for name, value in read_object(path).items() if not name.startswith(("_", FAMILY_OPTIONS))}
    entries = {name: value for name, value in content.items() if not (isinstance(value, list) and len(value) == 2)}
    return _checked_file(entries, path)


def write_run_settings(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write what is known of the settings into a step folder."""
    write_json(folder / RUN_INFERENCE, checked(entries))


def read_run_settings(folder: Path) -> dict[str, Any] | None:
    """The entries of a step folder; None where it has none. Raises `CheckpointError`: see :func:`read_index`."""
    path = folder / RUN_INFERENCE
    return _checked_file(read_object(path), path) if path.is_file() else None


def checked(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries, in their order in the record, whole numbers as floats where a float is meant. Raises `ConfigError`:
    naming the entry that is unknown or impossible."""
    for name, value in entries.items():
        if name not in ENTRIES:
            close = difflib.get_close_matches(name, ENTRIES, n=1)
            hint = f", did you mean {close[0]}?" if close else f"; known are {', '.join(ENTRIES)}"
            raise ConfigError(name, f"unknown setting{hint}")
        if (problem := _problem(name, value)) is not None:
            raise ConfigError(name, problem)
    return {name: float(entries[name]) if name in _SMALLEST else entries[name] for name in ENTRIES if name in entries}


def _problem(name: str, value: Any) -> str | None:
    """What is wrong with a value."""
    if value is None:
        return None if name in _OPTIONAL else "is missing"
    if name in _INTEGERS:
        if type(value) is not int or value < 1:
            return f"must be a whole number of at least 1, got {value!r}"
        many = name == "num_inference_steps" and value > MOST_STEPS
        return f"must be at most {MOST_STEPS}, got {repr(value)[:_QUOTED]}" if many else None
    if name in _SMALLEST:
        fits = is_number(value) and value >= _SMALLEST[name]
        return None if fits else f"must be a number of at least {_SMALLEST[name]:g}, got {repr(value)[:_QUOTED]}"
    if not isinstance(value, str) or not (value or name in _EMPTY_ALLOWED):
        return f"must be a text, got {value!r}"
    if (problem := text_problem(value)) is not None:
        return f"holds {problem}"
    if name in _ASKED and (token := next((token for token in MEDIA_TOKENS if token in value), None)) is not None:
        return f"holds the special token {token}; {IMAGE_MARK} is where the picture goes"
    if name == "caption_prompt" and value.count(IMAGE_MARK) > 1:
        return f"must have {IMAGE_MARK} once, got {value!r}"
    return None


def _checked_file(entries: Mapping[str, Any], path: Path) -> dict[str, Any]:
    try:
        return checked(entries)
    except ConfigError as error:
        raise CheckpointError(path, str(error)) from error
