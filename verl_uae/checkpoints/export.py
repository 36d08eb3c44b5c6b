# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Export of a training checkpoint as a model folder, or of its adapters alone.

Of the captioner verl writes shards of what trains, and with ``hf_model`` a folder of the same tensors. With adapters
(``actor_rollout_ref.model.lora_rank``) the names in both are peft's, which transformers would take for unknown tensors
and start the model at random, and which verl's own merger puts into a folder beside the untrained base.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.checkpoints.assemble import (
    ModelParts,
    Writer,
    copy_transformers,
    copy_transformers_files,
    publish_model,
    tensors_of,
    write_decoder,
)
from verl_uae.checkpoints.decoder import Base, chosen_weights, decoder_adapters, decoder_modules, trained_parts
from verl_uae.checkpoints.inference import ENTRIES, InferenceSettings, read_run_settings, settings_of_run
from verl_uae.checkpoints.load import fill_model, load_model, load_processor
from verl_uae.checkpoints.lora import (
    Adapters,
    adapter_alpha,
    has_adapters,
    merge,
    save_diffusers,
    save_peft,
    split_adapters,
)
from verl_uae.checkpoints.names import (
    ACTOR,
    CAPTIONER,
    EXPORT_FOLDER,
    GENERATION_CONFIG,
    HUGGINGFACE,
    LORA_META,
    POLICY_FOLDER,
)
from verl_uae.checkpoints.record import RunConfig
from verl_uae.checkpoints.shards import read_shards
from verl_uae.checkpoints.source import local_folder, refuse_renamed
from verl_uae.checkpoints.step import check_step
from verl_uae.compat import ensure_torchvision
from verl_uae.data.frame import column_of, file_kind
from verl_uae.data.schema import PROMPT_COLUMN, most_frequent_prompt
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import family_in

logger = logging.getLogger(__name__)

#: What peft puts before every name.
_PEFT = "base_model.model."

#: Largest root mean square of a difference of logits, in parts of that of the logits, by the weights' precision.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What to export; what is None comes from the run's configuration, where that is found."""

    weights: str | None = None
    """ema or live weights of the policy; None: the averaged ones if the run kept any."""
    decoder: str | None = None
    """Decoder folder that the run started from."""
    captioner: str | None = None
    """Captioner of a run that did not train it."""
    language_model: str | None = None
    """Model whose text-only states are the condition."""
    decoder_only: bool = False
    """Leave captioner and language model out."""
    part: str | None = None
    """captioner or decoder, whose adapters are written alone; None: the one that was trained."""
    lora_alpha: float | None = None
    run_config: str | None = None
    """Composed configuration of the run, where the checkpoint has none or another is meant."""
    condition_length: int | None = None
    condition_role: str | None = None
    caption_prompt: str | None = None
    """User turn that asks for a caption."""
    caption_system: str | None = None
    """System turn before it, "" for none."""
    evaluation: str | None = None
    """JSON file of measured figures by name, for the model card."""
    pictures: Path | None = None
    """A picture for the model card, such as the strip beside a panel of the run."""


def export_checkpoint(checkpoint: str | Path, out: str | Path, settings: ExportSettings) -> dict[str, Any]:
    """Write a step folder ``global_step_<N>/`` of any stage as a model folder ``out``, which must not exist, and return
    its manifest. Raises `CheckpointError`: the checkpoint is not complete or was altered, or something of it does not
    fit; `ConfigError`: something is neither given nor in the run's configuration."""
    folder = Path(checkpoint)
    refuse_renamed(folder)
    step = check_step(folder).step
    run = RunConfig.of(folder, settings.run_config)
    entries = _entries(folder, settings, run)
    decoder, components, decoder_origin = _decoder(folder, settings, run)
    captioner, language_model, origins = _language(folder, settings, run)
    origins = {components: decoder_origin, **origins}
    stage = run.get("uae.stage") or "unknown"
    parts = ModelParts(
        decoder=decoder,
        captioner=captioner,
        language_model=language_model,
        entries=entries,
        shift=run.get("uae.decoder.shift"),
        card=run.card(
            f"UAE model, step {step}",
            f"Trained with verl_uae (arXiv 2509.09666), stage {stage}, {step} steps.",
            origins,
            read_evaluation(settings.evaluation),
            settings.pictures,
        ),
    )
    return publish_model(parts, out)


def _entries(folder: Path, settings: ExportSettings, run: RunConfig) -> dict[str, Any]:
    """The inference settings: what was given, else what the step folder says, else what the configuration says."""
    flags = {name: getattr(settings, name) for name in ENTRIES if getattr(settings, name, None) is not None}
    found = read_run_settings(folder)
    if found is None:
        prompt, files = None, run.files("data.train_files")
        if "caption_prompt" not in flags and all(Path(name).is_file() for name in files):
            # A tar shard has pairs, and no prompt.
            rows = (column_of(name, PROMPT_COLUMN) for name in files if file_kind(name) != "tar")
            prompt = most_frequent_prompt(chain.from_iterable(rows))
        found = settings_of_run(run.get, prompt)
    entries = {**found, **flags}
    if "condition_length" not in entries:
        raise ConfigError("--condition-length", "needed: the checkpoint has no configuration of its run (--run-config)")
    if missing := [name for name in ENTRIES if name not in entries]:
        logger.warning("the checkpoint does not say %s: the defaults are written", ", ".join(missing))
    return asdict(InferenceSettings(**entries))


def export_adapters(checkpoint: str | Path, out: str | Path, settings: ExportSettings, layout: str) -> None:
    """Write the adapters of a part of a run to ``out``, which must not exist, in the layout ``peft`` or ``diffusers``;
    of the decoder only if it trained nothing else. Of the settings ``part``, ``weights``, ``decoder``, ``captioner``,
    ``lora_alpha`` and ``run_config`` count. Raises `CheckpointError`: there are no adapters, or something else was
    trained too; `ConfigError`: the layout is not one of the part, or both parts were trained and none is named."""
    if layout not in ("peft", "diffusers"):
        raise ConfigError("--lora", f"unknown layout {layout!r}; there are peft and diffusers")
    folder = Path(checkpoint)
    check_step(folder)
    run = RunConfig.of(folder, settings.run_config)
    if _adapted_part(folder, settings.part) == "captioner":
        if layout != "peft":
            raise ConfigError("--lora", f"{layout} is a layout of decoders; the adapter of a captioner is peft")
        _, adapters = _separated(_stored(folder / ACTOR), folder / ACTOR, settings.lora_alpha)
        source = settings.captioner or run.get("actor_rollout_ref.model.path")
        # As in the adapters that verl trains.
        save_peft(adapters, out, base_model=source, task="CAUSAL_LM")
        return
    source = settings.decoder or run.get("uae.decoder.path")
    weights = chosen_weights(folder, settings.weights)
    adapters = decoder_adapters(folder, weights, source, settings.lora_alpha)
    if layout == "peft":
        save_peft(adapters, out, base_model=source)
    else:
        save_diffusers(adapters, out, family_in(folder / POLICY_FOLDER / HUGGINGFACE).lora_loader)


def _adapted_part(folder: Path, wanted: str | None) -> str:
    """The part whose adapters are to be written: what was trained, or of two the one that is wanted."""
    places = {"captioner": Path(ACTOR, LORA_META), "decoder": Path(POLICY_FOLDER)}
    found = [part for part, place in places.items() if (folder / place).exists()]
    if wanted is None and len(found) > 1:
        raise ConfigError("--part", f"needed: {' and '.join(found)} were trained")
    if wanted in found or (wanted is None and found):
        return wanted or found[0]
    parts = [wanted] if wanted else list(places)
    lacking = " and no ".join(str(places[part]) for part in parts)
    raise CheckpointError(folder, f"has no {lacking}: its run trained no adapters of the {' or the '.join(parts)}")


def read_evaluation(path: str | None) -> dict[str, float]:
    """Figures for the model card. Raises `ConfigError`: the file is not a JSON object of finite numbers."""
    if path is None:
        return {}
    try:
        figures = {str(name): float(value) for name, value in json.loads(Path(path).read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError("--evaluation", f"{path} is not a JSON object of numbers: {error}") from error
    if odd := [name for name, value in figures.items() if not math.isfinite(value)]:
        raise ConfigError("--evaluation", f"{path}: not finite: {odd[:4]}")
    return figures


def _decoder(folder: Path, settings: ExportSettings, run: RunConfig) -> tuple[Writer, str, str]:
    """What writes the decoder, the names of its components, and where it started from."""
    recorded = Base.read(folder / POLICY_FOLDER)
    origin = settings.decoder or (recorded.path if recorded else None) or run.get("uae.decoder.path")
    saved = folder / EXPORT_FOLDER
    if not saved.is_dir() and origin is None:
        raise ConfigError("--decoder", "needed: VAE and scheduler come from the decoder folder the run started from")
    source = saved if saved.is_dir() else local_folder(str(origin))
    parts: dict[str, Any] = {name: source / name for name in trained_parts(source).values()}
    if (folder / POLICY_FOLDER).is_dir() and not (saved.is_dir() and settings.weights is None):
        weights = chosen_weights(folder, settings.weights)
        parts = decoder_modules(folder, weights, origin, settings.lora_alpha)
    elif settings.weights is not None:
        reason = f"missing: there are no {settings.weights} weights of a decoder"
        raise CheckpointError(folder / POLICY_FOLDER, reason)
    return (
        lambda out: write_decoder(out, parts, source),
        ", ".join(family_in(source).index_entries()),
        str(origin or "unknown"),
    )


def _language(
    folder: Path, settings: ExportSettings, run: RunConfig
) -> tuple[Writer | None, Writer | None, dict[str, str]]:
    """What writes the captioner and the condition's model, and where they started from."""
    if settings.decoder_only:
        return None, None, {}
    start = settings.captioner or run.get("actor_rollout_ref.model.path")
    if (folder / CAPTIONER).is_dir() and settings.captioner is None:
        # Captioner and language model of the condition were trained as one.
        other = None if settings.language_model is None else _copy(settings.language_model)
        return _copy(str(folder / CAPTIONER)), other, {"captioner": str(start or "unknown")}
    condition = settings.language_model or run.get("uae.conditioner.path")
    trained = (folder / ACTOR).is_dir()
    follows = trained and settings.language_model is None and run.get("uae.conditioner.weights") == "synced"
    if not trained and start is None:
        raise ConfigError("--captioner", "needed, or --decoder-only: the checkpoint holds no captioner")
    if trained and condition is None:
        reason = "needed: the condition comes from the captioner as it was before training"
        raise ConfigError("--language-model", reason)
    product = functools.partial(write_trained_captioner, folder / ACTOR, base=start, alpha=settings.lora_alpha)
    captioner = product if trained else _copy(str(start))
    origins = {"captioner": str(start or "unknown")}
    if follows or (not trained and condition in (None, start)):
        return captioner, None, origins
    return captioner, _copy(str(condition)), {**origins, "language_model": str(condition)}


def _copy(source: str) -> Writer:
    return functools.partial(copy_transformers, local_folder(source))


# ------------------------------------------------------------ the trained captioner


def holds_weights(actor: Path) -> bool:
    """Whether the captioner's folder of a step has its weights in a transformers folder too, under whatever names."""
    return any((actor / HUGGINGFACE).glob("*.safetensors"))


def write_trained_captioner(actor: Path, out: Path, *, base: str | Path | None, alpha: float | None) -> None:
    """Write the captioner of a step as a transformers folder; of adapters, their product with the weights.

    Args:
        actor: ``actor/`` of a step folder.
        out: where to.
        base: folder or hub id that the run started from, for steps that hold adapters alone.
        alpha: of the adapters, if the step does not say.

    Raises `CheckpointError`: shards, adapters and configuration do not fit together, or what was written computes
    something else than the step does; `ConfigError`: alpha is needed.
    """
    source = actor / HUGGINGFACE
    stored = _stored(actor)
    if has_adapters(stored):
        # Of a step that has adapters of the decoder too, what is given may be the alpha of those.
        both = (actor / LORA_META).is_file() and (actor.parent / POLICY_FOLDER).is_dir()
        given = None if both else alpha
        _write_product(stored, actor, out, base=base, alpha=given)
    elif holds_weights(actor):
        copy_transformers(source, out)
    else:
        _save(fill_model(_auto_class(), source, stored), source, out)


def _stored(actor: Path) -> dict[str, Tensor]:
    """Tensors of a step's captioner, by peft's names where it has adapters."""
    found = tensors_of(actor / HUGGINGFACE) if holds_weights(actor) else read_shards(actor)
    if (actor / LORA_META).is_file() and not has_adapters(found):
        # A folder beside which somebody else's tool put the adapters is the model as it was before.
        found = read_shards(actor)
        if not has_adapters(found):
            raise CheckpointError(actor / LORA_META, "says that adapters were trained, but the step holds none")
    return found


def _separated(stored: Mapping[str, Tensor], actor: Path, alpha: float | None) -> tuple[dict[str, Tensor], Adapters]:
    """Weights and adapters by transformers' names; no weights where a step holds adapters alone."""
    weights, layers = split_adapters({name.removeprefix(_PEFT): tensor for name, tensor in stored.items()}, actor)
    return weights, Adapters(layers, adapter_alpha(actor, layers, alpha))


def check_same(wanted: Tensor, found: Tensor, where: Path) -> None:
    """Compare logits of a step with those of what was written, whose precision allows for rounding. Raises
    `CheckpointError`: they differ by more."""
    difference = (found.float() - wanted.float()).square().mean().sqrt()
    part = float(difference / wanted.float().square().mean().sqrt())
    # Written so that a number that is none does not pass.
    if not part <= _TOLERANCE[wanted.dtype]:
        raise CheckpointError(
            where,
            f"with its adapters multiplied out the captioner computes other logits than with them ({part:.2g} of their "
            "size): nothing is published",
        )


def _write_product(
    stored: Mapping[str, Tensor], actor: Path, out: Path, *, base: str | Path | None, alpha: float | None
) -> None:
    source = actor / HUGGINGFACE
    weights, adapters = _separated(stored, actor, alpha)
    if not weights:
        if base is None:
            raise CheckpointError(actor, "holds adapters alone, and nothing says which model they adapt (--captioner)")
        dtype = next(iter(adapters.layers.values()))[0].dtype
        weights = load_model(_auto_class(), base, dtype=dtype).state_dict()
    merged = merge(weights, adapters.layers, adapters.scaling, actor)
    wanted = _logits(_adapted(weights, adapters, source), source)
    _save(fill_model(_auto_class(), source, merged), source, out)
    check_same(wanted, _logits(load_model(_auto_class(), out, dtype="auto"), source), actor)


def _adapted(weights: Mapping[str, Tensor], adapters: Adapters, source: Path) -> Any:
    """The model of a step as peft computes it, nothing multiplied out."""
    from peft import inject_adapter_in_model

    model = fill_model(_auto_class(), source, weights)
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(adapters.config(), model, "default")
    halves = {
        f"{layer}.lora_{half}.default.weight": tensor
        for layer, pair in adapters.layers.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
    report = model.load_state_dict(halves, strict=False)
    if report.unexpected_keys:
        raise CheckpointError(source, f"peft has no place for {report.unexpected_keys[0]}")
    return model


@torch.no_grad()
def _logits(model: Any, source: Path) -> Tensor:
    """Logits (1, L, V) after a picture and a sentence, in the model's precision."""
    from verl_uae.chain.captioner import caption_messages, prompt_inputs

    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    inputs = prompt_inputs(load_processor(source), [caption_messages(picture, "<image>describe", None)])
    moved = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    logits: Tensor = model.eval()(**moved).logits
    return logits


def _save(model: Any, source: Path, out: Path) -> None:
    """Weights under the names that transformers keeps on disk, and the other files of the source."""
    model.save_pretrained(out, safe_serialization=True)
    if (source / GENERATION_CONFIG).is_file():
        shutil.copyfile(source / GENERATION_CONFIG, out / GENERATION_CONFIG)
    copy_transformers_files(source, out, weights=False)


def _auto_class() -> Any:
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText
