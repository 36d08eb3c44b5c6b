# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Imports: SD3 with Qwen2.5-VL and a projector that has not learned yet, the official UAE release, and decoders that
read a language model as it is.

The release (September 2025) is a language model and a MM-DiT, each with adapters, made one here. It loads ``llm_lora``
leniently; here every tensor has a place or is an error. As in the release, one language model writes captions and makes
conditions.

It was written with transformers 4.50, where the class of Qwen2.5-VL is ``visual`` (tower), ``model``
(language model) and ``lm_head``, with ``projector`` added by the release's subclass. peft was wrapped around ``model``
alone. Since 4.52 the class in memory is ``model.visual``, ``model.language_model`` and ``lm_head``, but 5.x still reads
and writes the older names on disk, so a captioner's folder has them today too, and only these remain:

==============================================================  ====================================================
name in the shards of ``llm_lora``                              becomes
==============================================================  ====================================================
``visual.<rest>``, ``lm_head.weight``                           the same
``model.base_model.model.<rest>``                               ``model.<rest>``
``model.base_model.model.<layer>.base_layer.{weight,bias}``     ``model.<layer>.{weight,bias}``
``model.base_model.model.<layer>.lora_{A,B}.default.weight``    multiplied into ``model.<layer>.weight``
``projector.0.{weight,bias}``, ``projector.2.{weight,bias}``    ``layers.0...``, ``layers.2...`` of the projector
==============================================================  ====================================================

``llm`` holds the same without ``base_model.model.``, ``base_layer`` and adapters. Source: demo.py and
modeling_longcontext.py of the official inference code.

Shape legend: E language-model width, F text width of the MM-DiT, P pooled width, R rank.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from verl_uae.checkpoints.assemble import (
    ModelParts,
    copy_transformers,
    copy_transformers_files,
    publish_model,
    tensors_of,
    write_decoder,
)
from verl_uae.checkpoints.inference import InferenceSettings
from verl_uae.checkpoints.load import language_sizes, load_config, load_model, load_tokenizer
from verl_uae.checkpoints.lora import merge, split_adapters
from verl_uae.checkpoints.manifest import Card
from verl_uae.checkpoints.names import ADAPTER_WEIGHTS, CONDITIONER, GENERATION_CONFIG, SCHEDULER, TRANSFORMER, VAE
from verl_uae.checkpoints.source import check_safetensors, local_folder, pickles, read_files, same_tensors
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import family_in, family_of
from verl_uae.families.sd3 import Projector
from verl_uae.seeding import derive_seed

_CONDITION = ("condition_length", "condition_role")

#: Tokenizer and text encoder of CLIP-L and CLIP-G, in the order in which SD3 joins them.
CLIPS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))

#: Subfolders of an SD3 folder that are needed; T5 is not.
SD3_PARTS = (TRANSFORMER, VAE, SCHEDULER, *(name for pair in CLIPS for name in pair))


@dataclass(frozen=True, slots=True)
class Sd3Import:
    """What to import, and how the projector starts."""

    sd3: str
    """SD3 folder or hub id."""
    captioner: str
    """Folder or hub id of a vision-language model."""
    hidden_dim: int = 8192
    """Width between the two layers of the projector, at least 1 (released model: 8192)."""
    seed: int = 0
    """Seed of the projector's first values."""
    sd3_revision: str | None = None
    captioner_revision: str | None = None
    remote_code: bool = False
    """Accept that the captioner's repository brings Python code, and copy it; needs its revision as a full commit. It
    is never run here: the model must load in a class of transformers itself."""
    condition_length: int = 640
    condition_role: str = "generate"


def import_sd3(settings: Sd3Import, out: str | Path) -> dict[str, Any]:
    """Write a fresh model folder: SD3's transformer, VAE and scheduler as they are, a projector E -> F, the captioner.
    It must not exist; returns its manifest. Raises `CheckpointError`: a source is not what it should be, or ``out``
    exists; `ConfigError`: a setting is impossible."""
    sd3 = local_folder(settings.sd3, revision=settings.sd3_revision, parts=SD3_PARTS)
    captioner = local_folder(settings.captioner, revision=settings.captioner_revision, remote_code=settings.remote_code)
    if not (sd3 / TRANSFORMER).is_dir():
        raise CheckpointError(sd3, f"not an SD3 folder: it has no {TRANSFORMER}/")
    transformer = SD3Transformer2DModel.load_config(sd3 / TRANSFORMER)
    projector = fresh_projector(
        language_sizes(captioner)[0],
        int(transformer["joint_attention_dim"]),
        hidden_dim=settings.hidden_dim,
        pooled=empty_prompt_pooled(sd3),
        seed=settings.seed,
    )
    revisions = (settings.sd3_revision, settings.captioner_revision)
    at_sd3, at_captioner = (f" at {revision}" if revision else "" for revision in revisions)
    parts = ModelParts(
        decoder=lambda folder: write_decoder(folder, {TRANSFORMER: sd3 / TRANSFORMER, CONDITIONER: projector}, sd3),
        captioner=functools.partial(copy_transformers, captioner, code=settings.remote_code),
        card=Card(
            title="UAE model before training",
            origin="Imported; the projector has fresh random weights, so pictures do not depend on the caption in any "
            "useful way before it is trained.",
            base_models={
                "sd3 (transformer, vae, scheduler, pooled vector)": settings.sd3 + at_sd3,
                "captioner (its language model is the condition's)": settings.captioner + at_captioner,
            },
            constants={
                **{f"projector.{name}": getattr(settings, name) for name in ("hidden_dim", "seed")},
                **{name: getattr(settings, name) for name in _CONDITION},
            },
        ),
        entries=_entries(settings),
        code=settings.remote_code,
    )
    return publish_model(parts, out)


def fresh_projector(in_dim: int, out_dim: int, *, hidden_dim: int, pooled: torch.Tensor, seed: int) -> Projector:
    """A projector E -> F with the layers' default initial values, the same for the same seed, and the constant pooled
    vector (P,). Raises `ConfigError`: ``hidden_dim``, the width between the layers, is not positive."""
    if hidden_dim < 1:
        raise ConfigError("--hidden-dim", f"must be at least 1, got {hidden_dim}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "fresh projector"))
        projector = Projector(in_dim, hidden_dim, out_dim, pooled.numel())
    projector.pooled.copy_(pooled)
    return projector


@torch.no_grad()
def empty_prompt_pooled(sd3: Path) -> Tensor:
    """Pooled projections (P,) of the empty prompt, in fp32, as diffusers' ``StableDiffusion3Pipeline.encode_prompt``
    has them, by both tokenizers and text encoders of CLIP in an SD3 folder. Raises `CheckpointError`: naming the
    component that is missing or cannot be loaded."""
    ensure_torchvision()
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    length: int | None = None
    parts: list[Tensor] = []
    for folders in CLIPS:
        for name in folders:
            if not (sd3 / name).is_dir():
                reason = "missing: the pooled vector comes from both CLIP text encoders of SD3"
                raise CheckpointError(sd3 / name, reason)
        tokenizer: Any = load_tokenizer(sd3 / folders[0], CLIPTokenizer)
        # The pipeline pads for both encoders to the length of the first tokenizer.
        length = length or int(tokenizer.model_max_length)
        captioner: Any = load_model(CLIPTextModelWithProjection, sd3 / folders[1])
        ids = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        parts.append(captioner(ids).text_embeds[0])
    return torch.cat(parts)


# ------------------------------------------------------------ a decoder that reads a language model as it is


#: Where published folders have the language model of their conditions, and its tokenizer or processor.
_TEXT_ENCODER, _READERS = "text_encoder", ("tokenizer", "processor")


@dataclass(frozen=True, slots=True)
class DecoderImport:
    """What to import."""

    decoder: str
    """Folder as diffusers publishes it, or hub id."""
    captioner: str
    """Vision-language model, folder or hub id. Its language model makes the conditions where it has the sizes that the
    decoder wants, else the text encoder of the decoder's folder does."""
    decoder_revision: str | None = None
    captioner_revision: str | None = None
    remote_code: bool = False
    """See `Sd3Import`."""


def import_decoder(settings: DecoderImport, out: str | Path) -> dict[str, Any]:
    """Write a model folder of a published decoder and a captioner, nothing of which is changed. It must not exist;
    returns its manifest. Raises `CheckpointError`: a source is not what it should be, or ``out`` exists; `ConfigError`:
    the decoder needs a projector."""
    parts = (TRANSFORMER, VAE, SCHEDULER, _TEXT_ENCODER, *_READERS)
    decoder = local_folder(settings.decoder, revision=settings.decoder_revision, parts=parts)
    captioner = local_folder(settings.captioner, revision=settings.captioner_revision, remote_code=settings.remote_code)
    if family_in(decoder).needs_projector:
        reason = f"{settings.decoder} reads no language model without a projector: use verl-uae import sd3"
        raise ConfigError("--decoder", reason)
    # What the published pipeline takes may be thousands of tokens: a captioner that does not end would fill them.
    family = family_of(decoder, length=InferenceSettings().condition_length)
    shared = True
    try:
        family.check(decoder, *language_sizes(captioner))
    except CheckpointError:
        shared = False
        if not (decoder / _TEXT_ENCODER).is_dir():
            raise
    revisions = (settings.decoder_revision, settings.captioner_revision)
    at_decoder, at_captioner = (f" at {revision}" if revision else "" for revision in revisions)
    entries = InferenceSettings(
        condition_length=family.length,
        condition_role=family.role,
        num_inference_steps=family.steps,
        guidance_scale=family.guidance,
        negative_prompt="",
    )
    model = ModelParts(
        decoder=lambda folder: write_decoder(folder, {TRANSFORMER: decoder / TRANSFORMER}, decoder),
        captioner=functools.partial(copy_transformers, captioner, code=settings.remote_code),
        language_model=None if shared else lambda folder: _copy_text_encoder(decoder, folder),
        card=Card(
            title=f"{family.name} with a captioner, before training",
            origin=f"Imported as published. Licence of the decoder: {family.licence}.",
            base_models={
                "decoder": settings.decoder + at_decoder,
                f"captioner{' (its language model is the condition)' if shared else ''}": settings.captioner
                + at_captioner,
            },
            constants={},
        ),
        entries=asdict(entries),
        code=settings.remote_code,
    )
    return publish_model(model, out)


def _copy_text_encoder(decoder: Path, folder: Path) -> None:
    """The language model of a published decoder, with its tokenizer beside it."""
    copy_transformers(decoder / _TEXT_ENCODER, folder)
    for name in _READERS:
        if (decoder / name).is_dir():
            copy_transformers_files(decoder / name, folder, weights=False)


def _entries(settings: Sd3Import | ReleaseImport) -> dict[str, Any]:
    return asdict(InferenceSettings(**{name: getattr(settings, name) for name in _CONDITION}))


# ------------------------------------------------------------ the release


_NAMES = {
    "sd3": ("SD3", "SD3_model"),
    "llm": ("llm", "llm_model"),
    "llm_lora": ("llm_lora",),
    "dit": ("dit",),
    "dit_lora": ("dit_lora",),
    "processor": ("llm_processor", "llm_model_preprocessor"),
}

_PEFT = "model.base_model.model."
_PROJECTOR = "projector."
_PROJECTOR_NAMES = {f"projector.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class LanguageState:
    """Weights of a language model of the release, under the names of a captioner's folder."""

    model: dict[str, Tensor]
    projector: dict[str, Tensor]
    """Under the names of :class:`~verl_uae.families.sd3.Projector`, without the pooled vector; may be empty."""
    adapters: dict[str, tuple[Tensor, Tensor]]
    """Layer -> A (R, I) and B (O, R)."""


@dataclass(frozen=True, slots=True)
class ReleaseImport:
    """What to import."""

    release: str
    """Folder of the release or hub id."""
    revision: str | None = None
    lora_rank: int = 32
    """R of the language model's adapters."""
    lora_alpha: int = 64
    condition_length: int = 640
    condition_role: str = "generate"


def import_release(settings: ReleaseImport, out: str | Path) -> dict[str, Any]:
    """Write the release as a model folder, adapters multiplied out. It must not exist; returns its manifest. Raises
    `CheckpointError`: a folder of the release is missing, or a tensor of it has no place or none for its place."""
    root = local_folder(settings.release, revision=settings.revision)
    folders: dict[str, Path] = {}
    for part, names in _NAMES.items():
        found = [root / name for name in names if (root / name).is_dir()]
        if len(found) != 1:
            raise CheckpointError(root, f"not a UAE release: {len(found)} folders are called {' or '.join(names)}")
        folders[part] = found[0]
    model, tensors, trained = _language_model(folders, settings)
    transformer = _transformer(folders["dit"], folders["dit_lora"])
    projector = _projector(trained, empty_prompt_pooled(folders["sd3"]), folders["llm"])

    def write_captioner(folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)
        copy_transformers_files(folders["processor"], folder, weights=False)
        generation = folders["llm"] / GENERATION_CONFIG
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        same_tensors(tensors_of(folder), tensors, folder)

    at = f" at {settings.revision}" if settings.revision else ""
    parts = ModelParts(
        decoder=lambda folder: write_decoder(
            folder, {TRANSFORMER: transformer, CONDITIONER: projector}, folders["sd3"]
        ),
        captioner=write_captioner,
        card=Card(
            title="UAE, official weights of September 2025",
            origin="Imported from the official release (arXiv 2509.09666), adapters of both models multiplied out.",
            base_models={
                "all": settings.release + at,
                "captioner": "Qwen2.5-VL-3B-Instruct, by way of the release",
                "transformer, vae, scheduler": "Stable Diffusion 3.5 Large, by way of the release",
            },
            constants={name: value for name, value in asdict(settings).items() if name not in ("release", "revision")},
        ),
        entries=_entries(settings),
    )
    return publish_model(parts, out)


def _language_model(
    folders: dict[str, Path], settings: ReleaseImport
) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """The captioner with adapters multiplied out, its weights by the names of a captioner's folder, the projector's."""
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    where = folders["llm_lora"]
    config = load_config(folders["llm"])
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    # Names of a captioner's folder -> names in the module.
    names = {
        name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1): name
        for name in model.state_dict()
        if name != _HEAD or not model.config.tie_word_embeddings
    }
    before = sort_llm(tensors_of(folders["llm"]), names, folders["llm"])
    if found := pickles(where):
        raise CheckpointError(found[0], "pickles are refused; the release's adapters are safetensors")
    # Its shards need no index.
    shards = dict(read_files(sorted(where.glob("*.safetensors"))))
    if not shards:
        raise CheckpointError(where, "has no safetensors")
    after = sort_llm_lora(shards, names, where, rank=settings.lora_rank)
    merged = merge(after.model, after.adapters, settings.lora_alpha / settings.lora_rank, where)
    if _HEAD in merged and _HEAD not in names and not torch.equal(merged[_HEAD], merged[_EMBEDDING]):
        raise CheckpointError(where, f"{_HEAD} differs from {_EMBEDDING}, though the configuration ties them")
    tensors = {name: tensor for name, tensor in merged.items() if name in names}
    for name, tensor in tensors.items():
        if tensor.shape != before.model[name].shape:
            raise CheckpointError(where, f"{name} has shape {tuple(tensor.shape)}, in {folders['llm'].name} another")
    model.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, left
    return model, tensors, after.projector or before.projector


def _transformer(dit: Path, adapter: Path) -> Any:
    """The MM-DiT with its adapter multiplied out, in the dtype it is stored in."""
    from peft import PeftModel, get_peft_model_state_dict

    stored = tensors_of(dit)
    dtype = next(tensor.dtype for tensor in stored.values() if tensor.is_floating_point())
    base = load_model(SD3Transformer2DModel, dit)
    file = adapter / ADAPTER_WEIGHTS
    written = set(check_safetensors(file))
    try:
        adapted = PeftModel.from_pretrained(base, str(adapter))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(adapter, f"no peft adapter of the transformer: {error}") from error
    if odd := sorted(written ^ set(get_peft_model_state_dict(adapted))):
        raise CheckpointError(file, f"{len(odd)} tensors have no place in the transformer or are missing: {odd[:4]}")
    return adapted.merge_and_unload(safe_merge=True).to(dtype)


def _projector(state: dict[str, Tensor], pooled: Tensor, where: Path) -> Projector:
    if not state:
        raise CheckpointError(where, "has no projector.* tensors")
    hidden, width = state["layers.0.weight"].shape
    projector = Projector(width, hidden, state["layers.2.weight"].shape[0], pooled.numel())
    dtype = state["layers.0.weight"].dtype
    try:
        projector.load_state_dict({**state, "pooled": pooled})
    except RuntimeError as error:
        raise CheckpointError(where, f"the projector's layers do not fit: {error}") from error
    return projector.to(dtype)


def sort_llm(state: Mapping[str, Tensor], known: Iterable[str], where: Path) -> LanguageState:
    """Sort the tensors of ``llm``, by name as in the file; see `sort_llm_lora`."""
    model, projector = _split_projector(state)
    return LanguageState(model, _accounted(model, projector, set(known), where), {})


def sort_llm_lora(state: Mapping[str, Tensor], known: Iterable[str], where: Path, *, rank: int) -> LanguageState:
    """Sort the tensors of ``llm_lora``, by name as in the shards: the whole language model again, with an adapter of a
    rank on every linear layer of it. ``known`` are the names that a captioner's folder of this configuration has.
    Raises `CheckpointError`: naming the tensors that are missing or unknown, layers without adapter, or another
    rank."""
    rest, projector = _split_projector(state)
    if unwrapped := sorted(name for name in rest if name.startswith("model.") and not name.startswith(_PEFT)):
        raise CheckpointError(where, f"{len(unwrapped)} tensors are not below {_PEFT}: {unwrapped[:4]}")
    adapted = {name.partition(".base_layer.")[0] for name in rest if ".base_layer." in name}
    base, layers = split_adapters(rest, where)
    if odd := sorted(adapted ^ set(layers)):
        raise CheckpointError(where, f"{len(odd)} layers have an adapter without base layer or the reverse: {odd[:4]}")
    model = {_plain(name): tensor for name, tensor in base.items()}
    adapters = {_plain(name): halves for name, halves in layers.items()}
    projector = _accounted(model, projector, set(known), where)
    # The matrices of the language model but the embedding, as "all-linear" says.
    matrices = {name for name, tensor in model.items() if name.startswith("model.") and tensor.ndim == 2}
    linear = {name.removesuffix(".weight") for name in matrices if "embed_tokens" not in name}
    if bare := sorted(linear - set(adapters)):
        raise CheckpointError(where, f"{len(bare)} linear layers of the language model have no adapter: {bare[:4]}")
    ranks = {a_RI.shape[0] for a_RI, _ in adapters.values()}
    if ranks != {rank}:
        raise CheckpointError(where, f"adapters of rank {sorted(ranks)}, expected {rank}")
    return LanguageState(model, projector, adapters)


def _split_projector(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = {name: tensor for name, tensor in state.items() if not name.startswith(_PROJECTOR)}
    return model, {name: tensor for name, tensor in state.items() if name.startswith(_PROJECTOR)}


def _accounted(
    model: Mapping[str, Tensor], projector: dict[str, Tensor], known: set[str], where: Path
) -> dict[str, Tensor]:
    """Every tensor has a place and every place a tensor: the projector under the names it has here."""
    # The head is written too where it is the embedding itself, which a captioner's folder leaves out.
    unknown = sorted(set(model) - known - {_HEAD}) + sorted(set(projector) - _PROJECTOR_NAMES)
    missing = sorted(known - set(model)) + (sorted(_PROJECTOR_NAMES - set(projector)) if projector else [])
    if unknown or missing:
        raise CheckpointError(
            where, f"{len(unknown)} tensors have no place: {unknown[:4]}; {len(missing)} are missing: {missing[:4]}"
        )
    return {name.replace(_PROJECTOR, "layers."): tensor for name, tensor in projector.items()}


def _plain(name: str) -> str:
    return "model." + name[len(_PEFT) :] if name.startswith(_PEFT) else name
