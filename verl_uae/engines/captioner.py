# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Training engine of the captioner: verl's FSDP engine with a frozen vision tower, also on the CPU."""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from verl.utils.device import get_device_id, get_device_name
from verl.utils.fs import copy_to_local
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_uae.checkpoints.load import check_captioner
from verl_uae.checkpoints.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from verl_uae.checkpoints.source import check_safetensors, local_folder
from verl_uae.engines.lora import lora_scalings
from verl_uae.engines.together import together
from verl_uae.engines.update_metrics import LEFT_OUT
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.paths import is_hub_id

logger = logging.getLogger(__name__)

#: Value of ``actor_rollout_ref.model.model_type`` that selects this engine.
MODEL_TYPE = "uae_captioner"

_TOWERS = ("visual", "vision_tower")
_MODEL = "actor_rollout_ref.model"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class CaptionerEngine(FSDPEngineWithLMHead):
    """verl's language-model engine plus what it lacks in 0.9.1.

    * ``actor.freeze_vision_tower`` is a documented field of verl that its FSDP engine ignores; here it is obeyed
      (the paper's Fig. 9: training the ViT makes reconstructions collapse), by adapters too: none are placed there.
    * A tensor that the files lack would start at random, of the model and of the adapters at ``lora_adapter_path``.
    * A forward-only engine is offloaded to pinned host memory, which a machine without accelerator does not have.
    * An update in which no token trains is left out; see :meth:`train_batch`.
    """

    freeze_vision_tower: bool = False
    engine_config: Any
    model_config: Any

    def _build_module(self) -> nn.Module:
        # verl's engine knows two model types by name and refuses others.
        self.model_config.model_type = "language_model"
        with together(lambda text: CheckpointError(self.model_config.local_path, text)):
            check_source(self.model_config.local_path, code=bool(self.model_config.trust_remote_code))
            module = super()._build_module()
        if self.freeze_vision_tower:
            frozen = freeze_vision_tower(module)
            logger.info("vision tower frozen: %d parameters", frozen)
        return module

    def _build_lora_module(self, module: nn.Module) -> nn.Module:
        config = self.model_config
        if self.freeze_vision_tower:
            # A copy, since verl's configurations do not let this field be set.
            self.model_config = copy.copy(config)
            object.__setattr__(self.model_config, "exclude_modules", without_towers(config.exclude_modules))
        stored = config.lora_adapter_path is not None
        source = f"{_MODEL}.{'lora_adapter_path' if stored else 'target_modules'}"
        try:
            module = super()._build_lora_module(module)
        except (ValueError, re.error) as error:
            # peft's own, for names that match nothing.
            raise ConfigError(source, f"peft cannot place these adapters: {' '.join(str(error).split())}") from error
        finally:
            self.model_config = config
        if self.freeze_vision_tower:
            check_frozen(module, source)
        check_layers(module, source)
        if stored:
            folder = Path(copy_to_local(config.lora_adapter_path, use_shm=config.use_shm))
            check_adapters(module, folder, config.lora_rank)
        return module

    def train_batch(self, data: TensorDict, loss_function: Callable[..., Any]) -> dict[str, Any]:
        """verl's update; none if no token of the mini-batch trains on any rank.

        There the token mean is 0 / 0 and its gradient zero, with which the optimiser would still move the weights by
        momentum and weight decay. A rank without such a token takes part where another has one.

        Args:
            data: this rank's part of a mini-batch; ``loss_mask`` is 1 at the tokens that train.
            loss_function: verl's.

        Returns:
            verl's output, :data:`~verl_uae.engines.update_metrics.LEFT_OUT` among the metrics.
        """
        tokens = data["loss_mask"].sum().to(get_device_id())
        torch.distributed.all_reduce(tokens, group=self.get_data_parallel_group())
        if tokens == 0:
            return {"model_output": {}, "loss": [], "metrics": {LEFT_OUT: [1.0]}}
        output: dict[str, Any] = super().train_batch(data, loss_function)
        output["metrics"][LEFT_OUT] = [0.0]
        return output

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        if get_device_name() != "cpu" or not self.engine_config.forward_only:
            return super()._build_fsdp_module(module)
        config = self.engine_config
        self.engine_config = dataclasses.replace(config, forward_only=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config


def freeze_vision_tower(module: nn.Module) -> int:
    """Stop gradients into the vision tower.

    Returns:
        Number of parameters frozen.

    Raises:
        ValueError: if the model has no submodule named ``visual`` or ``vision_tower``.
    """
    towers = _towers(module)
    if not towers:
        raise ValueError(
            f"actor_rollout_ref.actor.freeze_vision_tower is true but {type(module).__name__} has no vision tower"
        )
    for tower in towers:
        tower.requires_grad_(False)
    return sum(parameter.numel() for parameter in towers[0].parameters())


def check_frozen(module: nn.Module, source: str = f"{_MODEL}.lora_adapter_path") -> None:
    """Refuse a model whose vision tower would train.

    Args:
        module: of peft.
        source: configuration key of what is trained.

    Raises:
        ConfigError: naming a parameter of the tower that takes a gradient, such as that of an adapter.
    """
    towers = _towers(module)
    moving = [name for tower in towers for name, parameter in tower.named_parameters() if parameter.requires_grad]
    if moving:
        raise ConfigError(
            source,
            f"would train {len(moving)} parameters of the vision tower, such as {moving[0]}, and "
            "actor_rollout_ref.actor.freeze_vision_tower is true; merge those adapters into the model first, or set it "
            "to false",
        )


def check_layers(module: nn.Module, source: str) -> None:
    """Refuse what a checkpoint and an export of it could not say: anything trained but two matrices beside the weight
    of a linear layer.

    Args:
        module: of peft.
        source: configuration key of what is trained.

    Raises:
        ConfigError: naming an adapter of another kind (of an embedding, a convolution, a lone parameter; DoRA, IA3), a
            weight or bias that is trained as a whole, or an adapter of a weight that another layer uses too.
    """
    from peft.tuners.lora import Linear

    linear = {name for name, layer in module.named_modules() if isinstance(layer, Linear)}
    halves = {f"{name}.lora_{half}.default.weight" for name in linear for half in "AB"}
    odd = [name for name, parameter in module.named_parameters() if parameter.requires_grad and name not in halves]
    if odd:
        raise ConfigError(
            source,
            f"would train {len(odd)} parameters such as {odd[0]}; a checkpoint of adapters holds lora_A and lora_B of "
            "linear layers, and an export would lose the others: leave those layers out, or merge what is there",
        )
    users = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    tied = [name for name in sorted(linear) if users[id(module.get_submodule(name).base_layer.weight)] > 1]  # type: ignore[union-attr, arg-type]
    if tied:
        raise ConfigError(
            source, f"adapts {tied[0]}, whose weight another layer uses too, and would change with it on export"
        )


def without_towers(excluded: str | Sequence[str] | None) -> str:
    """peft's ``exclude_modules`` that leaves out the vision tower besides what it is given.

    Args:
        excluded: names or endings of names of modules, or one regular expression for the whole name, as peft takes
            them.
    """
    if isinstance(excluded, str):
        # Flags may stand at the start of a whole expression only.
        excluded = re.sub(r"^\(\?([aiLmsux]+)\)(.*)$", r"(?\1:\2)", excluded, flags=re.DOTALL)
    elif excluded is not None:
        excluded = rf"(?:.*\.)?(?:{'|'.join(map(re.escape, excluded))})"
    towers = rf"(?:.*\.)?(?:{'|'.join(_TOWERS)})(?:\..*)?"
    return f"(?:{excluded})|{towers}" if excluded else towers


def check_source(source: str, *, code: bool) -> None:
    """Refuse a captioner that verl would complete with random tensors, or whose code nobody asked for.

    The digests of a manifest were compared by the driver, once for all ranks.

    Args:
        source: folder or hub id, which is fetched.
        code: verl runs the code that it brings; then only a folder without code is looked at.

    Raises:
        CheckpointError: naming the tensor or file.
    """
    if code and is_hub_id(source):
        return
    check_captioner(Path(source) if code else local_folder(source), verify=False, code=code)


def check_adapters(module: nn.Module, folder: Path, rank: int) -> None:
    """Compare stored adapters with those of a model that took them: peft starts the others anew.

    Args:
        module: of peft.
        folder: with ``adapter_model.safetensors``.
        rank: that the run was told, for which a caption server makes room.

    Raises:
        ConfigError: the adapters have another rank.
        CheckpointError: naming an adapter that is missing, has no place, or is scaled by something else than alpha /
            rank, which is all that verl's checkpoints say.
    """
    from peft import get_peft_model_state_dict

    path = folder / ADAPTER_WEIGHTS
    stored, wanted = set(check_safetensors(path)), set(get_peft_model_state_dict(module))
    if stored != wanted:
        kinds = {"lacks": sorted(wanted - stored), "has no place for": sorted(stored - wanted)}
        found = ", ".join(f"{what} {len(names)} tensors such as {names[0]}" for what, names in kinds.items() if names)
        raise CheckpointError(path, f"does not fit the model: {found} ({_MODEL}.lora_adapter_path)")
    configs: Any = module.peft_config
    config = configs["default"]
    if config.r != rank:
        raise ConfigError(f"{_MODEL}.lora_rank", f"is {rank}, the adapters in {folder} have {config.r}: set it to that")
    odd = [name for name, scale in lora_scalings(module).items() if scale != int(config.lora_alpha) / config.r]
    if odd:
        raise CheckpointError(
            folder / ADAPTER_CONFIG,
            f"scales {odd[0]} otherwise than by a whole lora_alpha / r (use_rslora, alpha_pattern, rank_pattern), "
            f"which a checkpoint cannot say; merge the adapters into the model first ({_MODEL}.lora_adapter_path)",
        )


def _towers(module: nn.Module) -> list[nn.Module]:
    return [tower for name, tower in module.named_modules() if name.rsplit(".", 1)[-1] in _TOWERS]
