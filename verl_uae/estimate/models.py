# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The models of a run on ``meta``: of the folders that its configuration names, else of published architectures.

Shape legend: B pictures or captions, T tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from verl_uae.captioners import vision_towers
from verl_uae.checkpoints.captioner_adapters import placing, without_towers
from verl_uae.checkpoints.load import language_sizes, load_config, load_tokenizer
from verl_uae.checkpoints.names import CONDITIONER, VAE
from verl_uae.checkpoints.source import local_folder
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.lora import add_lora
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import family_of
from verl_uae.families.family import DecoderFamily
from verl_uae.families.published import build_language_model, language_config, published, vision_config
from verl_uae.families.text import language_stack
from verl_uae.reward.registry import get_reward
from verl_uae.reward.terms.vision import VisionSimilarity
from verl_uae.settings import REWARDED
from verl_uae.stages.cold_start.captioner import LANGUAGE_MODEL, CaptionerModule

_CAPTIONER, _CONDITIONER = "actor_rollout_ref.model.path", "uae.conditioner.path"

#: Names of dtypes as configurations have them.
_DTYPES = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}


def dtype_of(name: str) -> torch.dtype:
    """A dtype by its name in a configuration."""
    return _DTYPES.get(str(name), torch.float32)


class WordTokenizer:
    """Counts words, marks and special tokens, where there is no tokenizer at hand: a token of an English caption is a
    word or little less."""

    pad_token_id = 0

    def __call__(self, text: Any, **options: Any) -> dict[str, Any]:
        """Numbers of the tokens of a text or of several."""
        if isinstance(text, str):
            return {"input_ids": list(range(1, 1 + len(re.findall(r"<\|?\w+\|?>|\w+|[^\w\s]|\n", text))))}
        return {"input_ids": [self(each)["input_ids"] for each in text]}

    def apply_chat_template(self, turns: Sequence[Mapping[str, str]], **options: Any) -> str:
        """Turns as most models have them."""
        thought = "<think>\n\n</think>\n\n" if options.get("enable_thinking") is False else ""
        body = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
        return f"{body}<|im_start|>assistant\n{thought}"


@dataclass(frozen=True, slots=True)
class Network:
    """A frozen network that a reward term compares pictures by."""

    name: str
    module: nn.Module
    side: int
    """Of a picture as it reaches the network, pixels."""


class Models:
    """What the processes of a run hold; each is built when it is asked for.

    Args:
        config: the whole composed configuration.
        decoder: choice of ``uae/decoder``, whose published architecture is taken where no folder is named.
        folders: whether ``uae.decoder.path`` is a folder or hub id, and not a stand-in.

    Raises:
        ConfigError: a model's architecture is not known.
    """

    def __init__(self, config: DictConfig, decoder: str, *, folders: bool) -> None:
        self.config = config
        self.decoder = decoder
        self.folders = folders

    # ------------------------------------------------------------ decoder

    @functools.cached_property
    def _architecture(self) -> tuple[DecoderFamily, dict[str, Any]]:
        """The family, and functions that build its components."""
        uae = self.config.uae
        shift = None if uae.decoder.shift is None else float(uae.decoder.shift)
        options = {"length": uae.conditioner.length, "role": uae.conditioner.role, "shift": shift}
        if self.folders:
            family = family_of(uae.decoder.path, **options)
            root = local_folder(uae.decoder.path)
            built = {
                name: functools.partial(kind.from_config, kind.load_config(root / name))
                for name, kind in family.components.items()
            }
            return family, built
        family, arguments = published(self.decoder, **options)
        if CONDITIONER in arguments:
            width = int(self.conditioner_config.get_text_config().hidden_size)
            family.configs[CONDITIONER].in_dim = arguments[CONDITIONER]["in_dim"] = width
        return family, {name: functools.partial(kind, **arguments[name]) for name, kind in family.components.items()}

    @functools.cached_property
    def family(self) -> DecoderFamily:
        """Of the decoder, which the language model fits."""
        family = self._architecture[0]
        try:
            family.check(self.decoder, *language_sizes(self.conditioner_config))
        except CheckpointError as error:
            raise ConfigError(_CONDITIONER, f"does not fit: {error}") from error
        return family

    def _component(self, name: str, dtype: torch.dtype) -> Any:
        with torch.device("meta"):
            module = self._architecture[1][name]()
        # Not the method of diffusers' classes, which warns of layers that a loader would keep in fp32.
        return nn.Module.to(module, dtype).eval().requires_grad_(False)

    def _decoder_module(self, dtype: torch.dtype) -> DecoderModule:
        names = self.family.trained.values()
        return DecoderModule(self.family, {name: self._component(name, dtype) for name in names})

    @functools.cached_property
    def frozen_decoder(self) -> DecoderModule:
        """As decoder workers hold it."""
        return self._decoder_module(dtype_of(self.config.uae.decoder.dtype)).eval()

    @functools.cached_property
    def policy(self) -> DecoderModule:
        """As it trains: in the dtype that is computed in, with adapters where these are what trains."""
        train = self.config.uae.train
        dtype = dtype_of(train.fsdp_config.mixed_precision.param_dtype)
        module = self._decoder_module(dtype)
        transformer = self.config.uae.stage != "cold_start" or self.config.uae.cold_start.train_decoder
        if train.lora.rank and transformer:
            targets = train.lora.target_modules
            add_lora(
                module,
                rank=train.lora.rank,
                alpha=train.lora.alpha,
                target_modules=module.family.lora_targets if targets is None else list(targets),
                frozen=module.family.frozen,
            )
            for part in set(module.family.trained) - {"transformer"}:
                getattr(module, part).requires_grad_(bool(train.train_projector))
            return nn.Module.to(module, dtype)
        module.train_parts(transformer=transformer, projector=bool(train.train_projector))
        return module

    @functools.cached_property
    def vae(self) -> Any:
        """Whole, in the dtype in which it decodes."""
        uae = self.config.uae
        return self._component(VAE, dtype_of(uae.decoder.vae_dtype if uae.stage in REWARDED else "float32"))

    # ------------------------------------------------------------ language models

    def _language_config(self, path: str, key: str) -> Any:
        if Path(path).is_dir():
            try:
                return load_config(Path(path))
            except CheckpointError as error:
                raise ConfigError(key, str(error)) from error
        return language_config(path, key)

    @functools.cached_property
    def captioner_config(self) -> Any:
        """Of the captioner."""
        config = self._language_config(self.config.actor_rollout_ref.model.path, _CAPTIONER)
        if not hasattr(config, "vision_config"):
            raise ConfigError(_CAPTIONER, f"is a {config.model_type}, which sees no pictures")
        return config

    @functools.cached_property
    def conditioner_config(self) -> Any:
        """Of the language model that conditions come from."""
        return self._language_config(self.config.uae.conditioner.path, _CONDITIONER)

    @functools.cached_property
    def conditioner(self) -> nn.Module:
        """The stack of layers that conditions come from, without vision tower and head."""
        dtype = dtype_of(self.config.uae.conditioner.dtype)
        return language_stack(build_language_model(self.conditioner_config, dtype=dtype))

    @functools.cached_property
    def frozen_captioner(self) -> Any:
        """As it writes captions."""
        dtype = dtype_of(self.config.uae.u4g.captions.dtype)
        return build_language_model(self.captioner_config, dtype=dtype)

    @functools.cached_property
    def actor(self) -> Any:
        """The captioner as it trains in RL: in the dtype that is computed in, with adapters where these are what
        trains."""
        hybrid = self.config.actor_rollout_ref
        engine, targets = hybrid.actor.fsdp_config, hybrid.model.target_modules
        mixed = engine.get("mixed_precision") or {"param_dtype": engine.dtype}
        dtype = dtype_of(mixed.get("param_dtype", "bf16"))
        model: Any = build_language_model(self.captioner_config, dtype=dtype)
        if hybrid.model.lora_rank:
            from peft import LoraConfig, get_peft_model

            named = targets if isinstance(targets, str) else list(targets)
            excluded = without_towers(hybrid.model.get("exclude_modules"))
            with placing("actor_rollout_ref.model.target_modules"):
                adapters = LoraConfig(r=hybrid.model.lora_rank, target_modules=named, exclude_modules=excluded)
                model = get_peft_model(model, adapters, low_cpu_mem_usage=True)
        else:
            model.requires_grad_(True)
            for tower in vision_towers(model) if hybrid.actor.get("freeze_vision_tower") else ():
                tower.requires_grad_(False)
        return nn.Module.to(model, dtype)

    @functools.cached_property
    def supervised_captioner(self) -> CaptionerModule:
        """As it trains in the cold start."""
        settings = self.config.uae.cold_start.captioner
        dtype = dtype_of(settings.fsdp_config.mixed_precision.param_dtype)
        module = CaptionerModule(build_language_model(self.captioner_config, dtype=dtype))
        if not settings.train:
            return module
        if settings.lora.rank:
            sizes = {"rank": settings.lora.rank, "alpha": settings.lora.alpha}
            add_lora(module, **sizes, target_modules=list(settings.lora.target_modules), part=LANGUAGE_MODEL)
            return nn.Module.to(module, dtype)
        module.requires_grad_(True)
        for tower in vision_towers(module):
            tower.requires_grad_(False)
        return module

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Of the language model that conditions come from, where its folder is at hand."""
        path = Path(self.config.uae.conditioner.path)
        return load_tokenizer(path) if path.is_dir() else WordTokenizer()

    # ------------------------------------------------------------ rewards

    @functools.cached_property
    def networks(self) -> tuple[list[Network], list[str]]:
        """Networks of the reward terms, each once, and the terms whose cost is not known here."""
        found: dict[Any, Network] = {}
        unknown = []
        for term in self.config.uae.reward.terms or ():
            network = self._network(term["name"], term.get("params") or {})
            if network is None:
                unknown.append(str(term["name"]))
            elif network != "none":
                found.setdefault((term["name"], str(term.get("params"))), network)
        return list(found.values()), unknown

    @functools.cached_property
    def features(self) -> Network | None:
        """The network of the cold start's loss; None where its cost is not known here."""
        cold_start = self.config.uae.cold_start
        found = self._network(cold_start.backbone, cold_start.backbone_params)
        return found if isinstance(found, Network) else None

    @staticmethod
    def _network(name: str, params: Mapping[str, Any]) -> Any:
        if name in ("pixel", "psnr", "ssim", "caption_length", "repetition"):
            return "none"
        kind = get_reward(name)
        if not issubclass(kind, VisionSimilarity):
            return None
        import transformers

        model = params.get("model") or kind.published
        config = vision_config(model)
        network_class = getattr(transformers, kind.network)
        if config is None:
            if not Path(model).is_dir():
                return None
            config = load_config(model, network_class.config_class)
        prepared = kind.stock(config)
        side = prepared.crop[0] if prepared.crop else prepared.resize
        with torch.device("meta"):
            module = network_class._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        return Network(name, module.eval().requires_grad_(False), side if isinstance(side, int) else side[0])


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that take a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
