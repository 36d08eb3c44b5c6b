# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Trains tiny models with supervised losses on gloo ranks and writes what happened as JSON.

Started by tests.launch.

In processes of their own, as tests.engines.policy_probe. What is expected is in test_supervised.py and
test_cold_start.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig

from tests.engines.policy_probe import LORA, failure, largest, losses, share, train
from tests.engines.policy_world import LATENT, gradients, parameters, states
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.compat import ensure_torchvision
from verl_uae.data.schema import make_prompt
from verl_uae.engines.decoder_batch import stored
from verl_uae.engines.decoder_module import DecoderModelConfig, DecoderModule
from verl_uae.engines.supervised import SUPERVISED_TYPE, SupervisedEngine
from verl_uae.families.family import Condition
from verl_uae.families.sd3 import SD3
from verl_uae.families.text import Tokens, language_stack
from verl_uae.flow.matching import NoiseDensity
from verl_uae.flow.ode import euler
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward.terms.features import feature_similarity
from verl_uae.reward.terms.vision import EfficientNetLite0
from verl_uae.scenes.evaluate import held_out_scenes
from verl_uae.scenes.grammar import caption
from verl_uae.scenes.render import render_float, render_image
from verl_uae.scenes.tiny_models import CONDITION_LENGTH
from verl_uae.seeding import normal
from verl_uae.stages.cold_start.captioner import (
    CaptionBatcher,
    CaptionerModelConfig,
    CaptionerModule,
    SupervisedCaptionerEngine,
)
from verl_uae.stages.cold_start.loss import ReconstructionLoss, ReconstructionSettings, read_text
from verl_uae.stages.common.captions import PromptSettings, PromptTokens
from verl_uae.stages.pretrain.worker import FlowMatching

FSDP = {"strategy": "fsdp2", "use_torch_compile": False, "use_remove_padding": False}
MIXED = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
SIGMAS = sigma_schedule(3, 3.0)
SCENES = held_out_scenes(4, 1)
CAPTIONS = [caption(scene) for scene in SCENES]
FAMILY = SD3({}, {}, length=CONDITION_LENGTH)


def engine_parts(lr: float, mixed: dict[str, str] = MIXED) -> dict[str, Any]:
    return {
        "engine_config": FSDPEngineConfig(mixed_precision=mixed, **FSDP),
        # A norm is never cut, so gradients can be compared.
        "optimizer_config": FSDPOptimizerConfig(lr=lr, weight_decay=0.0, total_training_steps=50, clip_grad=1e9),
        "checkpoint_config": CheckpointConfig(),
    }


def decoder_engine(models: str, lr: float = 1e-3, mixed: dict[str, str] = MIXED, **model: Any) -> SupervisedEngine:
    config = DecoderModelConfig(
        path=f"{models}/decoder", model_type=SUPERVISED_TYPE, **{"train_projector": True, **model}
    )
    engine = SupervisedEngine(model_config=config, **engine_parts(lr, mixed))
    engine.initialize()
    return engine


def captioner_engine(models: str, lr: float = 1e-3, **model: Any) -> SupervisedCaptionerEngine:
    config = CaptionerModelConfig(path=f"{models}/captioner", **model)
    engine = SupervisedCaptionerEngine(model_config=config, **engine_parts(lr))
    engine.initialize()
    return engine


def flow_data(rows: list[int], micro: int, bad: tuple[int, ...] = ()) -> TensorDict:
    """Eight pairs of latent and condition with noise, of which this rank has some."""
    weight = torch.tensor([0.0 if row in bad else 1.0 for row in rows])
    x0 = torch.cat([normal((1, *LATENT), "x0", row) for row in rows])
    fields = {
        "x0_BCHW": torch.where(weight[:, None, None, None] > 0, x0, torch.nan),
        "noise_BCHW": torch.cat([normal((1, *LATENT), "flow noise", row) for row in rows]),
        "sigma_B": torch.cat([torch.sigmoid(normal((1,), "level", row)) for row in rows]),
        **stored(states(rows)),
        "weight_B": weight,
    }
    data = TensorDict(fields, batch_size=len(rows))
    tu.assign_non_tensor(data, micro_batch_size_per_gpu=micro, total_weight=8.0 - len(bad))
    return data


def flow_facts(models: str, micro: int) -> dict[str, Any]:
    """Loss of every update, and a figure of the last."""
    engine = decoder_engine(models)
    outputs = train(engine, flow_data(share(8), micro), 4, FlowMatching(NoiseDensity()))
    return {"losses": losses(outputs), "mean": outputs[-1]["metrics"]["loss/mean"]}


def bad_facts(models: str) -> dict[str, Any]:
    """A pair without weight holds not-a-numbers and counts for nothing."""
    engine, other = decoder_engine(models), decoder_engine(models)
    kept = [row for row in range(8) if row not in (1, 6)]
    with_bad = engine.train_batch(flow_data(list(range(8)), 4, bad=(1, 6)), FlowMatching(NoiseDensity()))
    data = flow_data(kept, 3)
    tu.assign_non_tensor(data, total_weight=6.0)
    without = other.train_batch(data, FlowMatching(NoiseDensity()))
    return {
        "loss": [sum(output["loss"]) for output in (with_bad, without)],
        "gradient": largest(gradients(engine), gradients(other)),
        "valid": with_bad["metrics"]["valid"],
    }


ensure_torchvision()
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor  # noqa: E402


@functools.cache
def frozen_parts(models: str) -> tuple[Decoder, Conditioner, EfficientNetLite0, CaptionBatcher]:
    processor = AutoProcessor.from_pretrained(f"{models}/captioner")
    config = AutoConfig.from_pretrained(f"{models}/captioner")
    tokens = PromptTokens(processor, config.model_type, PromptSettings())
    return (
        Decoder.from_pretrained(f"{models}/decoder").requires_grad_(False),
        Conditioner.from_pretrained(f"{models}/captioner", FAMILY),
        EfficientNetLite0(image_size=64),
        CaptionBatcher(tokens, processor, config, 24, "cpu"),
    )


class World:
    """Frozen parts and data of the cold start."""

    def __init__(self, models: str, rows: list[int], micro: int) -> None:
        self.decoder, self.conditioner, self.features, self.batcher = frozen_parts(models)
        self.rows = rows
        noise = torch.cat([normal((1, *LATENT), "cold noise", row) for row in rows])
        source = render_float([SCENES[row] for row in rows])
        fields = {
            **self.conditioner.tokenize([CAPTIONS[row] for row in rows]).stored(),
            "noise_BCHW": noise,
            "source_B3HW": source,
            "row_B": torch.arange(len(rows)),
            "weight_B": torch.ones(len(rows)),
        }
        self.data = TensorDict(fields, batch_size=len(rows))
        tu.assign_non_tensor(self.data, micro_batch_size_per_gpu=micro, total_weight=4.0)

    def captions_of(self, rows: Any) -> Any:
        numbers = [self.rows[row] for row in rows]
        prompt = make_prompt("<image>", None)
        return self.batcher(
            [render_image(SCENES[n]) for n in numbers], [CAPTIONS[n] for n in numbers], [prompt] * len(rows)
        )

    def loss(self, captioner: Any, **changes: Any) -> ReconstructionLoss:
        settings = {
            "sigmas": SIGMAS,
            "guidance": 1.0,
            "gradient_steps": None,
            "kept_steps": 0,
            "semantic_weight": 1.0,
            "caption_weight": 0.5,
            "in_context": False,
            "vae_batch_size": 1,
        }
        chosen = ReconstructionSettings(**{**settings, **changes})
        negative = negative_states(self.conditioner)
        parts = (FAMILY, self.decoder.vae, self.features, captioner, self.captions_of)
        self.negatives = 0

        def counted() -> Condition:
            self.negatives += 1
            return negative

        return ReconstructionLoss(chosen, *parts, counted)


def negative_states(conditioner: Conditioner) -> Condition:
    """Condition of the unconditional branch."""
    return Condition.whole(normal((1, CONDITION_LENGTH, conditioner.width), "negative states"))


def cold_start_update(models: str, micro: int, **changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Gradients of decoder and captioner, and the output, of one update on the four scenes."""
    world = World(models, share(4), micro)
    decoder, captioner = decoder_engine(models), captioner_engine(models)
    with decoder.train_mode(), captioner.train_mode():
        captioner.optimizer_zero_grad()
        output = decoder.train_batch(world.data, world.loss(captioner.module, **changes))
        # verl clears gradients when the mode ends.
        return gradients(decoder), gradients(captioner), output


def unrolled(models: str, guidance: float, in_context: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """The same loss by autograd through everything at once, with ordinary modules."""
    world = World(models, [0, 1, 2, 3], 4)
    policy = DecoderModule.from_pretrained(f"{models}/decoder")
    model = AutoModelForImageTextToText.from_pretrained(f"{models}/captioner", dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    captioner, micro = CaptionerModule(model), world.data
    captions = world.captions_of([0, 1, 2, 3])
    output = model(input_ids=captions.ids_BT, attention_mask=captions.mask_BT.long(), **captions.pictures)
    log_prob_BTV = output.logits.log_softmax(-1)
    nll = []
    for row in range(4):
        places = captions.answer_BT[row].nonzero()[:, 0]
        nll.append(-log_prob_BTV[row, places - 1, captions.ids_BT[row, places]].mean())
    if in_context:
        hidden_BTE = model.model(
            input_ids=captions.ids_BT, attention_mask=captions.mask_BT.long(), **captions.pictures
        ).last_hidden_state
        rows = [hidden_BTE[row][captions.answer_BT[row]] for row in range(4)]
        states_BLE = torch.stack([torch.cat([s, s.new_zeros(CONDITION_LENGTH - len(s), s.shape[1])]) for s in rows])
    else:
        mask_BL = micro["attend_BT"]
        states_BLE = model.model.language_model(
            input_ids=micro["ids_BT"], attention_mask=mask_BL.long(), use_cache=False
        ).last_hidden_state * mask_BL.unsqueeze(-1)
    condition, negative = Condition.whole(states_BLE), negative_states(world.conditioner)
    field = lambda x, sigma: policy(x, sigma, condition, negative, guidance)  # noqa: E731
    drawn = FAMILY.decode_with_gradient(world.decoder.vae, euler(field, micro["noise_BCHW"], SIGMAS))
    cosine_B = feature_similarity(world.features.embed(micro["source_B3HW"]), world.features.embed(drawn))
    loss = ((1 - cosine_B) + 0.5 * torch.stack(nll)).mean()
    loss.backward()

    def found(module: Any) -> dict[str, Tensor]:
        return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    return found(policy), found(captioner), loss.item()


def gradient_facts(models: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, guidance, in_context in (("text only", 1.0, False), ("guided", 3.0, False), ("in context", 1.0, True)):
        decoder, captioner, output = cold_start_update(models, 2, guidance=guidance, in_context=in_context)
        wanted_decoder, wanted_captioner, loss = unrolled(models, guidance, in_context)
        found_decoder = {key: value for key, value in decoder.items() if key in wanted_decoder}
        found_captioner = {key: value for key, value in captioner.items() if key in wanted_captioner}
        facts[name] = {
            "loss": [sum(output["loss"]), loss],
            "decoder": largest(found_decoder, wanted_decoder),
            "decoder size": max(g.abs().max().item() for g in wanted_decoder.values()),
            "captioner": largest(found_captioner, wanted_captioner),
            "captioner size": max(g.abs().max().item() for g in wanted_captioner.values()),
            "vision": [key for key in captioner if "visual" in key],
        }
    return facts


def cold_start_facts(models: str, micro: int) -> dict[str, Any]:
    decoder, captioner, output = cold_start_update(models, micro)
    values = [output["metrics"][f"{name}/mean"][0] for name in ("cosine", "caption_negative_log_prob", "loss")]
    norms = [sum(g.square().sum().item() for g in found.values()) ** 0.5 for found in (decoder, captioner)]
    return {"values": values, "norms": norms}


#: What is trained and computed again, settings of the loss, pairs at a time: three steps of the sampler, pictures
#: one at a time through the VAE.
KEPT: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "adapters": ({**LORA, "train_projector": False}, {}, 1),
    "adapters, guided, recomputed": ({**LORA, "enable_gradient_checkpointing": True}, {"guidance": 3.0}, 2),
    "full, guided": ({}, {"guidance": 3.0}, 1),
    "full, recomputed, in context": ({"enable_gradient_checkpointing": True}, {"in_context": True}, 2),
    "full, guided, two steps back": ({}, {"guidance": 3.0, "gradient_steps": 2}, 2),
    "full, guided, bf16": ({"mixed": {**MIXED, "param_dtype": "bf16"}}, {"guidance": 3.0}, 1),
}


@contextmanager
def heard(engine: SupervisedEngine) -> Iterator[tuple[list[bool], list[int]]]:
    """Whether each velocity had a graph, and how often each backward pass through one gathered ahead."""
    calls: list[bool] = []
    ahead: list[int] = []
    hook = engine.module.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    prefetch, announce = FSDPParamGroup._prefetch_unshard, engine.announce_backward
    blocks: list[Any] = [module for module in engine.module.modules() if isinstance(module, FSDPModule)]
    groups = [block._get_fsdp_state()._fsdp_param_group for block in blocks]

    def counted(target: Any, pass_type: str) -> None:
        if pass_type == "backward" and target in groups:
            ahead[-1] += 1
        prefetch(target, pass_type)

    def told(others_wait: bool) -> None:
        ahead.append(0)
        announce(others_wait)

    FSDPParamGroup._prefetch_unshard, engine.announce_backward = staticmethod(counted), told
    try:
        yield calls, ahead
    finally:
        FSDPParamGroup._prefetch_unshard, engine.announce_backward = staticmethod(prefetch), announce
        hook.remove()


def kept_facts(models: str) -> dict[str, Any]:
    """Of every way to train, with one step kept or all, against none: gradient, loss, and how often what is called."""
    facts: dict[str, Any] = {}
    for name, (model, changes, micro) in KEPT.items():
        steps, back = len(SIGMAS) - 1, changes.get("gradient_steps") or len(SIGMAS) - 1
        world = World(models, share(4), micro)
        decoder, captioner = decoder_engine(models, **model), captioner_engine(models)
        facts[name], none = {}, None
        for kept in (0, 1, back):
            decoder.optimizer_zero_grad()
            captioner.optimizer_zero_grad()
            with decoder.train_mode(), captioner.train_mode(), heard(decoder) as (calls, ahead):
                loss = world.loss(captioner.module, kept_steps=kept, **changes)
                output = decoder.forward_backward_batch(world.data, loss)
                own = {**gradients(decoder), **{f"captioner.{key}": g for key, g in gradients(captioner).items()}}
            none = none or own
            batches = len(world.rows) // micro
            facts[name][kept] = {
                "apart": largest(own, none),
                "size": max(g.abs().max().item() for g in own.values()),
                "loss": output["loss"],
                "calls": [calls.count(False), calls.count(True)],
                "wanted calls": [batches * (steps - kept), batches * back],
                "negatives": world.negatives / batches,
                "ahead": ahead,
            }
    return facts


def switch_facts(models: str) -> dict[str, Any]:
    """What trains with each switch."""
    facts: dict[str, Any] = {}
    for name, model in (
        ("projector", {"train_transformer": False}),
        ("nothing", {"train_transformer": False, "train_projector": False}),
    ):
        world = World(models, [0, 1, 2, 3], 4)
        decoder, captioner = decoder_engine(models, **model), captioner_engine(models)
        before = parameters(captioner)
        with decoder.train_mode(), captioner.train_mode():
            captioner.optimizer_zero_grad()
            decoder.train_batch(world.data, world.loss(captioner.module, caption_weight=0.0))
            captioner.optimizer_step()
            facts[name] = sorted({key.split(".")[0] for key in gradients(decoder)})
        facts[f"{name}, captioner moved"] = largest(before, parameters(captioner))
    lora = captioner_engine(models, lora_rank=2, lora_alpha=4, lora_target_modules=["q_proj", "down_proj"])
    facts["lora"] = sorted({key.rsplit(".", 3)[-3] for key in parameters(lora)})
    facts["lora towers"] = sorted({key.split(".")[2] for key in parameters(lora)})
    wrong = failure(lambda: captioner_engine(models, lora_rank=2, lora_target_modules=["qkv"]))
    facts["wrong target"] = wrong
    return facts


def export_facts(models: str, folder: Path) -> dict[str, Any]:
    """A captioner with adapters, trained once and written out, against its own states."""
    captioner = captioner_engine(models, lora_rank=2, lora_alpha=4, lora_target_modules=["q_proj", "down_proj"])
    world = World(models, share(4), 2)
    decoder = decoder_engine(models)
    with decoder.train_mode(), captioner.train_mode():
        captioner.optimizer_zero_grad()
        decoder.train_batch(world.data, world.loss(captioner.module))
        captioner.optimizer_step()
    data = World(models, [0, 1, 2, 3], 4).data
    with captioner.eval_mode(), torch.no_grad():
        live = read_text(captioner.module, FAMILY, Tokens.read(data)).states
    captioner.export(folder / "captioner")
    torch.distributed.barrier()
    saved = Conditioner.from_pretrained(str(folder / "captioner"), FAMILY)
    base = Conditioner.from_pretrained(f"{models}/captioner", FAMILY)
    with torch.no_grad():
        found, before = (c.condition(Tokens.read(data)).states for c in (saved, base))
    again = failure(lambda: captioner.export(folder / "captioner"))
    stack = language_stack(AutoModelForImageTextToText.from_pretrained(str(folder / "captioner")))
    return {
        "difference": (found - live).abs().max().item(),
        "moved": (before - live).abs().max().item(),
        "again": again,
        "plain": not any("lora" in name for name, _ in stack.named_parameters()),
    }


def main(models: str, out: str, number: str, size: str, port: str) -> None:
    """Collect the facts of one rank."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(number), world_size=int(size))
    folder = Path(out).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    ranks = int(size)
    facts: dict[str, Any] = {
        "kept": kept_facts(models),
        "flow": {micro: flow_facts(models, micro) for micro in ((8, 4, 1) if ranks == 1 else (4, 2))},
        "cold start": {micro: cold_start_facts(models, micro) for micro in ((4, 2, 1) if ranks == 1 else (2, 1))},
    }
    if ranks == 1:
        facts |= {"bad": bad_facts(models), "gradient": gradient_facts(models), "switch": switch_facts(models)}
    else:
        facts["export"] = export_facts(models, folder)
        uneven = flow_data(share(8)[: 4 - int(number)], 1)
        engine = decoder_engine(models)
        facts["uneven"] = failure(lambda: engine.train_batch(uneven, FlowMatching(NoiseDensity())))
    Path(out).with_name(f"{Path(out).stem}_{number}.json").write_text(json.dumps(facts))
    torch.distributed.barrier()
