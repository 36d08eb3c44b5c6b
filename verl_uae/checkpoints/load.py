# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The one way in for weights, configurations and processors of models, of transformers, diffusers and our own.

The libraries draw a tensor that a file lacks at random, leave one out that they do not know, offer to run a
repository's Python code and fall back to pickles. Here each of these is an error: names and shapes in the headers of
the safetensors are compared with the model on the device ``meta`` before anything is read, by the renaming rules of
the library itself, and its own report is read again after loading.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import posixpath
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from verl_uae.captioners import family_of
from verl_uae.checkpoints.manifest import verify_part
from verl_uae.checkpoints.names import ADAPTER_CONFIG, CONFIG, GENERATION_CONFIG, SCHEDULER
from verl_uae.checkpoints.source import (
    STEMS,
    brought_code,
    headers,
    read_object,
    refuse_code,
    refuse_special,
    weight_files,
)
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError
from verl_uae.paths import hub_problem, is_hub_id, model_source
from verl_uae.text import is_number

#: Environment variable that switches the digests of manifests off: they take about a second per gigabyte and process.
VERIFY = "VERL_UAE_VERIFY"

#: Numbers of a configuration that repeat a block, which has at least one tensor. A limit (max_window_layers) does not.
_REPEATED = re.compile(r"(?!max_)\w*(?:layers|blocks|depth|experts)(?:_per_\w+)?")

#: Types that weights are stored in without a method of quantisation, which would have to be named.
_PRECISIONS = frozenset({"F64", "F32", "F16", "BF16"})

#: Settings of a scheduler beside those of its shift that change the schedule, and the value that is drawn and trained
#: with.
_USUAL_SCHEDULE = {
    "num_train_timesteps": 1000,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
}

#: What a model that is not there, or not what it should be, makes the libraries raise, besides errors of their own.
_DAMAGED = (
    *(OSError, ValueError, RuntimeError, ImportError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(MemoryError, SafetensorError),
)

_LONGEST_REASON = 500
"""Characters; the libraries may list every class that they know."""

_ADAPTERS = "base_model.model."
_MERGE = "export the checkpoint with `verl-uae export`, or merge with peft's merge_and_unload"


def refuse_misfits(
    info: Mapping[str, Any], where: str | Path, kind: str, may_ignore: Callable[[str], bool] = lambda name: False
) -> None:
    """Refuse stored tensors that do not fit a model.

    Args:
        info: ``output_loading_info``, the same in both libraries; names are those of the model, or of the file where it
            has none.
        where, kind: place and class of the model, for the error.
        may_ignore: which tensors of the file may be left out.

    Raises `CheckpointError`: naming tensors, and the remedy where they are adapters that were never multiplied out.
    """
    unknown = sorted(str(name) for name in info["unexpected_keys"] if not may_ignore(str(name)))
    shapes = [f"{name} ({_shape(stored)}, wanted is {_shape(own)})" for name, stored, own in info["mismatched_keys"]]
    missing = sorted(map(str, info["missing_keys"]))
    kinds = {"lacks": missing, "has the unknown": unknown, "has another shape of": sorted(shapes)}
    parts = [
        f"{what} {names[0] if len(names) == 1 else f'{len(names)} tensors such as {names[0]}'}"
        for what, names in kinds.items()
        if names
    ]
    if parts:
        adapters = any(name.startswith(_ADAPTERS) or ".lora_" in name for name in unknown)
        hint = f". These are names of adapters that were not merged: {_MERGE}" if adapters else ""
        raise CheckpointError(where, f"is not a whole {kind}: it {', '.join(parts)}{hint}")


def load_model(
    kind: Any,
    source: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    subfolder: str = "",
    may_ignore: Callable[[str], bool] = lambda name: False,
    verify: bool | None = None,
    code: bool = False,
    **options: Any,
) -> Any:
    """A model with every one of its tensors from the files, in evaluation mode; the global generator is left alone.

    Args:
        kind: class of transformers, an auto class too, or of diffusers.
        source: folder or hub id. safetensors only, no code of the folder.
        dtype: of the weights.
        subfolder: where in the source, for components of a diffusers folder.
        may_ignore: which tensors of the file, by name, a model that is part of the stored one may leave out.
        verify: compare the files with the manifest, if there is one; default: unless ``VERL_UAE_VERIFY=0``.
        code: accept that the folder brings Python code, which is not run here either way.
        options: more arguments of ``from_pretrained``, such as ``revision`` or ``attn_implementation``.

    Raises:
        CheckpointError: one line with the folder and the tensor or file that is wrong.
    """
    ensure_torchvision()
    place = model_source(source)
    name = str(Path(place, subfolder)) if subfolder else place
    if is_hub_id(place):
        _ask_hub(place, options, subfolder)
    else:
        check_files(Path(place, subfolder), verify=verify, code=code)
        check_weights(kind, Path(place, subfolder), may_ignore=may_ignore, config=options.get("config"), code=code)
    # diffusers knows the precision under one name only.
    own = {"dtype": dtype, "trust_remote_code": False} if _of_transformers(kind) else {"torch_dtype": dtype}
    arguments = {**own, "use_safetensors": True, "output_loading_info": True, **options}
    if subfolder:
        arguments["subfolder"] = subfolder
    with _errors(name, f"does not load as {kind.__name__}"), _quiet(), torch.random.fork_rng(devices=[]):
        model, info = kind.from_pretrained(place, **arguments)
    refuse_misfits(info, name, type(model).__name__, may_ignore)
    return model.eval()


def fill_model(kind: Any, source: str | Path, tensors: Mapping[str, Tensor]) -> Any:
    """A model of tensors in memory, every one of them used and none missing, in evaluation mode.

    Args:
        kind: class of transformers, an auto class too.
        source: folder or hub id with the configuration.
        tensors: by the names of the model or of its files; the model has their precision, fp32 where they have several.

    Raises `CheckpointError`: naming the tensors that are missing, unknown or of another shape.
    """
    config = load_config(source)
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    with _errors(source, f"does not load as {kind.__name__}"), _quiet(), torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            built = type(kind.from_config(config, trust_remote_code=False))
        options = {"dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = built.from_pretrained(None, config=config, state_dict=dict(tensors), **options)
    refuse_misfits(info, source, built.__name__)
    # Where a model was loaded under its own names, transformers would save it under these too; the files of a folder
    # have those of earlier releases.
    vars(model).pop("_weight_conversions", None)
    return model.eval()


def empty_model(kind: Any, folder: str | Path) -> Any:
    """A model of a folder's configuration on the device ``meta``, without weights; ``kind`` is a class of diffusers, or
    an auto class of transformers. Raises `CheckpointError`: the configuration builds none."""
    with _errors(folder, f"does not build as {kind.__name__}"), _quiet(), torch.device("meta"):
        if _of_transformers(kind):
            return kind.from_config(load_config(folder), trust_remote_code=False)
        return kind.from_config(kind.load_config(folder))


def load_config(source: str | Path, kind: Any = None, *, code: bool = False, **options: Any) -> Any:
    """Configuration of a transformers model; ``kind`` is its class, any by default, ``code`` as of `load_model`.

    Raises:
        CheckpointError: there is none, it cannot be read, or it needs code of the folder.
    """
    return _read(kind, "AutoConfig", "configuration", source, options, code=code)


def load_generation(source: str | Path) -> Any:
    """Generation config of a transformers model; one without such a file has transformers' defaults.

    Raises:
        CheckpointError: the file cannot be read.
    """
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source)
    except OSError as error:
        if (damaged := Path(source, GENERATION_CONFIG)).exists():
            raise CheckpointError(damaged, f"cannot be read: {error}") from error
        return GenerationConfig()


def load_processor(source: str | Path, kind: Any = None, **options: Any) -> Any:
    """Processor of a transformers folder; see `load_config`."""
    found = _read(kind, "AutoProcessor", "processor", source, options)
    _check_vocabulary(getattr(found, "tokenizer", found), source)
    return found


def load_tokenizer(source: str | Path, kind: Any = None, *, code: bool = False, **options: Any) -> Any:
    """Tokenizer of a transformers folder; see `load_config`."""
    found = _read(kind, "AutoTokenizer", "tokenizer", source, options, code=code)
    _check_vocabulary(found, source)
    return found


def _check_vocabulary(tokenizer: Any, where: str | Path) -> None:
    """Where its files are missing transformers makes a tokenizer of special tokens alone, that reads every text as
    nothing."""
    if hasattr(tokenizer, "get_vocab") and not tokenizer.get_vocab().keys() - {
        *tokenizer.all_special_tokens,
        *tokenizer.get_added_vocab(),
    }:
        reason = f"has no tokenizer: its vocabulary is empty; put the files of its tokenizer beside {CONFIG}"
        raise CheckpointError(where, reason)


def language_sizes(source: Path | Any) -> tuple[int, int, str]:
    """Width, number of layers and ``model_type`` of the language model of a folder, or of a configuration. Raises
    `CheckpointError`: the folder has no readable configuration."""
    try:
        config = load_config(source, code=True) if isinstance(source, Path) else source
        text = config.get_text_config()
        return int(text.hidden_size), int(text.num_hidden_layers), str(config.model_type)
    except (CheckpointError, AttributeError) as error:
        raise CheckpointError(source, f"no vision-language model: {error}") from error


def load_scheduler(source: str | Path, **changes: Any) -> Any:
    """The flow-matching scheduler of a diffusers folder, of which the shift is used; ``changes`` replace settings.
    Raises `CheckpointError`: there is none, it cannot be read, or it asks for another schedule than a shifted one."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    place = model_source(source)
    with _errors(f"{place}/{SCHEDULER}", "does not load as a scheduler"):
        kind = str(FlowMatchEulerDiscreteScheduler.load_config(place, subfolder=SCHEDULER).get("_class_name", ""))
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(place, subfolder=SCHEDULER, **changes)
        if kind and not kind.startswith("FlowMatch"):
            raise ValueError(f"{kind} is no scheduler of flow matching")
        for name, usual in _USUAL_SCHEDULE.items():
            if (value := scheduler.config.get(name, usual)) != usual:
                raise ValueError(f"{name} is {value!r}, of which only {usual!r} is supported")
        if not (is_number(scheduler.config.shift) and scheduler.config.shift > 0):
            raise ValueError(f"shift must be a positive number, got {scheduler.config.shift!r}")
        _check_schedule(scheduler.config)
        return scheduler


def _check_schedule(settings: Mapping[str, Any]) -> None:
    """What a shift by the size of the picture needs, and the last level."""
    if settings["use_dynamic_shifting"]:
        names = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        for name in names:
            if not is_number(settings[name]):
                raise ValueError(f"{name} must be a number, got {settings[name]!r}")
        if settings["max_image_seq_len"] <= settings["base_image_seq_len"]:
            raise ValueError("max_image_seq_len must be above base_image_seq_len")
        if settings["time_shift_type"] not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type must be exponential or linear, got {settings['time_shift_type']!r}")
    last = settings["shift_terminal"]
    if last is not None and not (is_number(last) and 0 <= last < 1):
        raise ValueError(f"shift_terminal must be null or a number in [0, 1), got {last!r}")


def check_captioner(folder: Path, *, verify: bool | None = None, code: bool = False, writes: bool = False) -> None:
    """`check_files` and `check_weights` of a vision-language model's folder, for who loads it elsewhere.

    Args:
        folder: of transformers.
        verify: as of `load_model`.
        code: whoever loads it runs the Python code that it brings; what tensors that wants is not known here.
        writes: it writes captions, so it must be of a family of :mod:`verl_uae.captioners`.

    Raises `CheckpointError`: naming the file or the tensor, or what the model is.
    """
    check_files(folder, verify=verify, code=code)
    if code and brought_code(folder):
        return
    if writes:
        family_of(load_config(folder).model_type, folder)
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    check_weights(AutoModelForImageTextToText, folder)
    # Of two sets of weights transformers takes the single file, and vLLM the other one or both.
    used = {path.name for path in weight_files(folder)}
    if len(used) == 1 and used <= {f"{stem}.safetensors" for stem in STEMS}:
        for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json"))):
            if path.name not in used:
                raise CheckpointError(path, f"is a second set of weights beside {used.pop()}: keep one of them here")


def language_class(source: str | Path) -> Any:
    """The auto class of transformers that loads a model whose text-only states can be a condition: with vision tower
    and head where it has them. Raises `CheckpointError`: there is no configuration, or it cannot be read."""
    ensure_torchvision()
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    config = load_config(source)
    heads = tuple(config.architectures or ())
    if type(config) in AutoModelForImageTextToText._model_mapping and not any(name.endswith("Model") for name in heads):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM if any(name.endswith("ForCausalLM") for name in heads) else AutoModel


def check_language_model(folder: Path) -> None:
    """`check_files` and `check_weights` of a folder that conditions come from."""
    check_files(folder)
    check_weights(language_class(folder), folder)


def check_template(processor: Any, where: str | Path) -> None:
    """Render the chat template of a processor once. Raises `CheckpointError`: there is none, or it cannot be."""
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    with _errors(where, "its chat template cannot be used"):
        processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def check_files(folder: Path, *, verify: bool | None = None, code: bool = False) -> None:
    """Refuse code that the folder of a model brings, adapters in its place, and files that its manifest does not vouch
    for; arguments as of `load_model`. Raises `CheckpointError`: naming the file."""
    if not folder.is_dir():
        raise CheckpointError(folder, "there is no such folder")
    refuse_special(folder)
    if not code:
        refuse_code(folder)
    if (adapters := folder / ADAPTER_CONFIG).exists():
        # transformers would load another model, the one that this file names, and put the adapters into it.
        raise CheckpointError(adapters, f"the folder holds adapters, not a model: {_MERGE}")
    if wants_digests() if verify is None else verify:
        verify_part(folder)


def wants_digests() -> bool:
    """Whether the files of a model are compared with its manifest where the caller does not say."""
    return os.environ.get(VERIFY, "1") != "0"


def check_weights(
    kind: Any,
    folder: Path,
    *,
    may_ignore: Callable[[str], bool] = lambda name: False,
    config: Any = None,
    code: bool = False,
) -> None:
    """Compare names and shapes of the stored tensors with the model's; no weight is read. Arguments as of `load_model`;
    ``config`` of a transformers model takes the place of the folder's.

    Raises `CheckpointError`: naming the tensors that are missing, unknown or of another shape, or the size in the
    configuration that no file can fill; or one that is stored as whole numbers where the model computes with others,
    since the libraries would take these for its values.
    """
    stored = headers(weight_files(folder))
    _check_counts(folder, len(stored))
    if config is None and _of_transformers(kind):
        config = load_config(folder, None if hasattr(kind, "_model_mapping") else kind.config_class, code=code)
    loading = _errors(folder, f"does not load as {kind.__name__}")
    with loading, _quiet(progress=False), torch.random.fork_rng(devices=[]):
        tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
        fit = _fit_transformers if _of_transformers(kind) else _fit_diffusers
        model, info = fit(kind, folder, tensors, config)
    if info is not None:
        refuse_misfits(info, folder, type(model).__name__, may_ignore)
        _check_precision(folder, model, may_ignore)


def _fit_transformers(
    kind: Any, folder: Path, tensors: dict[str, Tensor], config: Any
) -> tuple[Any, dict[str, Any] | None]:
    if getattr(config, "quantization_config", None) is not None:
        # A quantised model has tensors by the rules of its method, which the report after loading knows.
        return None, None
    with torch.device("meta"):
        built = kind.from_config(config, trust_remote_code=False) if hasattr(kind, "_model_mapping") else kind(config)
    tied = {name: source for name, source in built.all_tied_weights_keys.items() if name in tensors}
    # Where both of a tied pair are stored, transformers compares their values, which are not there on this device.
    info = _load_on_meta(type(built), config, {name: value for name, value in tensors.items() if name not in tied})
    if tied and info["missing_keys"] & set(tied.values()):
        info = _load_on_meta(type(built), config, tensors)
    return built, info


def _load_on_meta(kind: Any, config: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    options = {"device_map": "meta", "ignore_mismatched_sizes": True, "output_loading_info": True}
    _, info = kind.from_pretrained(None, config=copy.deepcopy(config), state_dict=tensors, **options)
    return info


def _fit_diffusers(kind: Any, folder: Path, tensors: dict[str, Tensor], _: Any) -> tuple[Any, dict[str, Any]]:
    model = empty_model(kind, folder)
    scale = model.config.get("scaling_factor", 1.0)
    if not (is_number(scale) and scale > 0):
        raise ValueError(f"scaling_factor must be a positive number, got {scale!r}")
    shift = model.config.get("shift_factor")
    if shift is not None and not is_number(shift):
        raise ValueError(f"shift_factor must be a number or null, got {shift!r}")
    # Old names, as diffusers itself renames them.
    model._fix_state_dict_keys_on_load(tensors)
    wanted = model.state_dict()
    both = {name: (tensors[name].shape, wanted[name].shape) for name in wanted.keys() & tensors.keys()}
    return model, {
        "missing_keys": wanted.keys() - tensors.keys(),
        "unexpected_keys": tensors.keys() - wanted.keys(),
        "mismatched_keys": [(name, *shapes) for name, shapes in both.items() if shapes[0] != shapes[1]],
    }


def _check_precision(folder: Path, model: Any, may_ignore: Callable[[str], bool]) -> None:
    """Libraries cast what is stored to what is wanted: the whole numbers of a quantised weight without their scale."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    whole = {name.rpartition(".")[2] for name, tensor in tensors if not tensor.is_floating_point()}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():
                dtype = opened.get_slice(name).get_dtype()
                if dtype not in _PRECISIONS and name.rpartition(".")[2] not in whole and not may_ignore(name):
                    reason = "without a quantization_config weights are F32, F16 or BF16"
                    raise CheckpointError(folder, f"{name} is stored as {dtype}; {reason}")


def _check_counts(folder: Path, stored: int) -> None:
    """Building a model of ten million layers would not end, whatever device it is built on."""
    path = folder / CONFIG
    # A pipe of that name would be waited for.
    if not path.is_file():
        raise CheckpointError(folder, f"has no {CONFIG}")
    for key, count in _numbers(read_object(path)):
        if isinstance(count, float) and math.isnan(count):
            raise CheckpointError(path, f"{key} is NaN, which is no setting")
        if _REPEATED.fullmatch(key) and count > stored:
            raise CheckpointError(path, f"{key} is {count}, but the files hold {stored} tensors in all")


def _numbers(content: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _numbers(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, key)
    elif isinstance(content, int | float):
        yield key, content


def _read(kind: Any, auto: str, what: str, source: str | Path, options: dict[str, Any], *, code: bool = False) -> Any:
    ensure_torchvision()
    import transformers

    place = model_source(source)
    if is_hub_id(place):
        _ask_hub(place, options)
    else:
        refuse_special(Path(place))
        if not code:
            refuse_code(Path(place))
    with _errors(place, f"its {what} does not load"):
        return (kind or getattr(transformers, auto)).from_pretrained(place, trust_remote_code=False, **options)


def _ask_hub(source: str, options: Mapping[str, Any], subfolder: str = "") -> None:
    """Refuse what cannot be had, after one request: transformers asks six times, over half a minute."""
    if (problem := hub_problem(source, posixpath.join(subfolder, CONFIG), options.get("revision"))) is not None:
        raise CheckpointError(source, problem)


@contextlib.contextmanager
def _errors(where: str | Path, message: str) -> Iterator[None]:
    """One line for whatever the libraries raise about a model."""
    from huggingface_hub.errors import StrictDataclassError
    from jinja2 import TemplateError

    try:
        yield
    except CheckpointError:
        raise
    except (*_DAMAGED, StrictDataclassError, TemplateError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]} ..."
        raise CheckpointError(where, f"{message}: {reason}") from error


@contextlib.contextmanager
def _quiet(*, progress: bool = True) -> Iterator[None]:
    """Without the libraries' tables of tensors: what matters in them is an error here; nor advice on names."""
    import diffusers.utils.logging
    import transformers.utils.logging

    loggers: tuple[Any, ...] = (transformers.utils.logging, diffusers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    bar = loggers[0].is_progress_bar_enabled()
    for logger in loggers:
        logger.set_verbosity_error()
    if not progress:
        loggers[0].disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Newer releases of diffusers call the name deprecated that older ones know alone.
            warnings.filterwarnings("ignore", ".*torch_dtype", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        if bar:
            loggers[0].enable_progress_bar()


def _of_transformers(kind: Any) -> bool:
    return hasattr(kind, "_model_mapping") or hasattr(kind, "config_class")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
