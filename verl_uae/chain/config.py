# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.decoder`` and ``uae.conditioner``. Source: "code" is the inference code released with arXiv 2509.09666."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING, DictConfig, OmegaConf

from verl_uae.compiling import ATTENTION, check_compiler
from verl_uae.errors import ConfigError
from verl_uae.settings import CAPTIONING, DECODING, DTYPES, REWARDED, key

#: Most denoising steps. Models tell a thousand noise levels apart; a slip of the hand would be a run without end.
MOST_STEPS = 10_000

NEGATIVE_PROMPT = "Generate a random, low quality, ugly, blur, bad and anime, cartoon image."
"""Of the released model's demo."""


@dataclass
class DecoderConfig:
    """``uae.decoder``: the decoder that redraws captions for rewards and validation, and the workers that hold it."""

    path: str = MISSING
    """diffusers folder or hub id with transformer/, vae/, scheduler/ and conditioner/ (our projector)."""

    height: int = key(512, at_least=1)
    """Height of a reconstruction, pixels; multiple of VAE factor times patch size. Code: 512 in its training loss."""

    width: int = key(512, at_least=1)
    """Width of a reconstruction, pixels."""

    num_steps: int = key(10, at_least=1, at_most=MOST_STEPS)
    """Denoising steps of the ODE sampler, at least 1. Code: 10 in its training loss, 40 in its demo."""

    guidance: float = key(5.0, at_least=1)
    """Classifier-free guidance scale, at least 1; 1 is off and halves the cost. Code: 5.0."""

    negative_prompt: str = NEGATIVE_PROMPT
    """Caption of the unconditional branch. Code."""

    shift: float | None = key(None, above=0)
    """Timestep shift, above 0; null takes the scheduler's (3.0 for SD3.5)."""

    seeds_per_caption: int = key(1, at_least=1)
    """K pictures per caption whose rewards are averaged, at least 1. Our choice: 1."""

    dtype: str = key("bfloat16", choices=DTYPES, stages=CAPTIONING)
    """dtype of transformer and projector: float32, float16 or bfloat16."""

    batch_size: int = key(16, at_least=1)
    """Pictures denoised and scored together on a rank, at least 1; with guidance each is two rows of a call. Halved
    where memory runs out."""

    vae_batch_size: int = key(2, at_least=1)
    """Pictures the VAE encodes or decodes at a time, at least 1; halved where memory runs out, but not in the
    cold start's loss, which has a gradient. Decoding one takes 0.75 GiB at 512 x 512 and 3 GiB at 1024 x 1024, and one
    fills a GPU. Our choice."""

    vae_dtype: str = key("float32", choices=("float32", "bfloat16"), stages=REWARDED)
    """dtype in which the VAE decodes. With bfloat16 a drawn picture is decoded both ways at the start; where they
    differ by more than 1/255 on average the run is refused. Our choice: float32."""

    overlap: bool = False
    """true: while a rank denoises pictures, a second thread decodes, scores and encodes those denoised before, in
    batches of batch_size; on a GPU in a stream of its own. Both need their memory at once. Pictures and rewards are the
    same, on a CPU to the last bit. Nothing overlaps where a rank draws no more than batch_size pictures at a time. Our
    choice: false."""

    schedule: str = key("phased", choices=("phased", "streamed"))
    """phased: decode the whole batch after the caption server sleeps. streamed: decode while captions arrive."""

    pool: str = key("colocated", choices=("colocated", "own"))
    """colocated: the ranks share the trainer's GPUs. own: a pool of their own, see the two fields below."""

    n_gpus_per_node: int = key(1, at_least=1, stages=CAPTIONING)
    """GPUs per node of an own pool."""

    nnodes: int = key(1, at_least=1, stages=CAPTIONING)
    """Nodes of an own pool."""

    max_wait_ms: float = key(50.0, at_least=0, stages=CAPTIONING)
    """Streamed only: longest time a caption waits for its micro-batch to fill, milliseconds."""

    compile: bool = False
    """Compile the repeated blocks of the transformer, where it draws and where it trains (torch.compile). Minutes at
    the first step, and once for every length of the condition until torch takes the length for a variable."""

    attention: str | None = key(None, choices=tuple(ATTENTION))
    """Kernel of scaled_dot_product_attention that a GPU tries first: flash, cudnn, efficient or math; null leaves
    torch's order. What it cannot compute, such as a mask in flash, goes to the others."""

    offload: bool = False
    """Keep frozen models (decoder, language model, VAE, reward models) in host memory, pinned, while they are not used:
    they are copied to the device before they are, and dropped there after. By default on where captioner and caption
    server share the GPU (g4u, unified), and off where nothing else needs the memory (u4g, pretrain, cold_start). No
    effect on decoders in a pool of their own."""

    shared_master: bool = True
    """true: frozen models that are kept in host memory (offload, or a run without GPU) are there once for all processes
    of a node; the decoders of G4U and of the unified stage load them one after the other then. false: once in every
    process. The numbers are the same. Needs Linux, and processes that see each other; elsewhere, and for weights that
    training changes, it is as with false. Our choice: true with GPUs, false on a CPU."""

    timeout_s: float = key(1800.0, above=0, stages=CAPTIONING)
    """Longest time one decode phase, or a micro-batch of the streamed schedule, may take on a rank before the rank is
    killed, seconds, above 0."""

    max_restarts: int = key(3, at_least=0, stages=CAPTIONING)
    """How often a dead rank is started again over the run; then the run stops with the reason."""


@dataclass
class ConditionerConfig:
    """``uae.conditioner``: the language model that turns a caption into the decoder's condition."""

    path: str = "${actor_rollout_ref.model.path}"
    """transformers folder or hub id; by default the captioner's, as it was before RL unless weights is synced."""

    length: int | None = key(640, at_least=1)
    """Fixed number of text positions, chat template included; longer captions are cut at a token boundary. null chooses
    it once at the start: what the decoder was trained with, else what holds 999 of 1,000 captions of the data, or
    data.max_response_length where captions are written, in steps of 64 up to 4,096."""

    role: str = "generate"
    """Chat role of the caption turn. Code."""

    dtype: str = key("bfloat16", choices=DTYPES)
    """dtype of the language model: float32, float16 or bfloat16."""

    weights: str = key("frozen", choices=("frozen", "synced"), stages=CAPTIONING)
    """frozen: the reward stays the same function through the run. synced: the captioner's language model of the last
    step, which makes the condition in use too; the reward moves with it (conditioner/state_drift)."""

    cache_size: int = key(1024, at_least=1, stages=DECODING)
    """Conditions that a rank which trains the decoder keeps in host memory, at least 1."""


def validate(config: DictConfig) -> None:
    """Check what can be checked without models.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    decoder = config.uae.decoder
    if OmegaConf.is_missing(decoder, "path") or not decoder.path:
        raise ConfigError("uae.decoder.path", "is not set: a diffusers folder or hub id with a projector")
    if decoder.schedule == "streamed" and decoder.pool != "own":
        raise ConfigError("uae.decoder.pool", "the streamed schedule runs beside the caption server and needs own")
    if decoder.compile:
        check_compiler("uae.decoder.compile")
    if config.uae.conditioner.weights == "synced":
        _validate_synced(config)


def _validate_synced(config: DictConfig) -> None:
    """The conditioner can follow a captioner that trains in RL and whose language model it is."""
    stage, hybrid = config.uae.stage, config.actor_rollout_ref
    if stage not in CAPTIONING:
        why = "conditions on the captioner that it trains by itself" if stage == "cold_start" else "trains no captioner"
        raise ConfigError("uae.conditioner.weights", f"synced: stage {stage} {why}; set it to frozen")
    path = config.uae.conditioner.path
    if path != hybrid.model.path:
        raise ConfigError(
            "uae.conditioner.weights",
            f"synced, but the conditioner is {path} and the captioner {hybrid.model.path}: only the captioner's own "
            "language model can follow it; set uae.conditioner.path to actor_rollout_ref.model.path, or weights to "
            "frozen",
        )
    lora = hybrid.model.lora
    if hybrid.actor.strategy == "megatron" and lora.get("rank", 0) > 0 and not lora.merge:
        raise ConfigError(
            "actor_rollout_ref.model.lora.merge",
            "is false, and with uae.conditioner.weights=synced the conditioner takes merged weights of Megatron's "
            "adapters alone; set it to true",
        )
