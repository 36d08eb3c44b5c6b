# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What captioners of different families differ in: pictures in a prompt, positions, state of a layer, vision tower.

Models and processors are built by transformers' auto classes, and all of the package treats them alike but for what
stands here. A family is told by ``model_type`` of the configuration; where only a processor is at hand, by what its
image processor does with a picture: it cuts it into patches of its own size (all Qwen), or into square tiles of one
size (InternVL). docs/captioners.md says what is supported where.

Shape legend: B prompts, L tokens, N patches or tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from verl_uae.errors import CheckpointError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

Size = tuple[int, int]

#: Modules between pixels and language model, by the last part of their name. Qwen's ``visual`` includes what maps
#: patches to tokens, which InternVL has beside its tower.
TOWERS = ("visual", "vision_tower", "multi_modal_projector")


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one class of transformers."""

    name: str
    model_type: str
    """Of the configuration."""
    lmms_model: str
    """Name of lmms-eval's own chat model of these."""
    recurrent: bool = False
    """Some layers pass a state from position to position, through pads too: their prompts must not be padded."""


FAMILIES = {
    family.model_type: family
    for family in (
        Family("Qwen2.5-VL", "qwen2_5_vl", "qwen2_5_vl"),
        Family("Qwen3-VL", "qwen3_vl", "qwen3_vl"),
        Family("Qwen3.5", "qwen3_5", "qwen3_5", recurrent=True),
        Family("InternVL", "internvl", "internvl_hf"),
    )
}


def family_of(model_type: object, where: Any) -> Family:
    """The family of a model.

    Args:
        model_type: of its configuration.
        where: folder or hub id, for the error.

    Raises:
        CheckpointError: it is of none.
    """
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(f"{family.name} ({family.model_type})" for family in FAMILIES.values())
        raise CheckpointError(where, f"is a {model_type!r}, which is no captioner here: use one of {known}")
    return family


def vision_towers(module: nn.Module) -> list[nn.Module]:
    """Everything between pixels and language model, also of a model wrapped for adapters or sharding; the outermost
    first."""
    return [tower for name, tower in module.named_modules() if name.rsplit(".", 1)[-1] in TOWERS]


# ------------------------------------------------------------ pictures before the processor


def in_tiles(image_processor: Any) -> bool:
    """Whether pictures become square tiles of one size (InternVL), or else patches in a grid of their own (Qwen)."""
    return hasattr(image_processor, "crop_to_patches")


def prompt_pictures(processor: Any, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Image.Image], bool]:
    """Pictures of messages as the processor is given them in training, and whether the messages hold a video.

    verl's agent loops resize with qwen_vl_utils, by the patch size of the processor. Tiles are the processor's affair.

    Args:
        processor: of the captioner.
        messages: turns, pictures among the parts of their contents.
    """
    if in_tiles(processor.image_processor):
        parts = [part for turn in messages if not isinstance(turn["content"], str) for part in turn["content"]]
        return [part["image"] for part in parts if "image" in part], any("video" in part for part in parts)
    from qwen_vl_utils import process_vision_info

    patch_size = processor.image_processor.patch_size
    images, videos = process_vision_info(
        [dict(turn) for turn in messages], image_patch_size=patch_size, return_video_metadata=True
    )
    return list(images or ()), bool(videos)


def as_vllm_takes(processor: Any, prompt_ids: Sequence[int]) -> list[int]:
    """Prompt ids with pictures as the chat template has them, which vLLM expands itself, from expanded ones.

    verl's server does so for Qwen; of InternVL's tiles vLLM would make the tokens a second time, silently.
    """
    if not in_tiles(processor.image_processor):
        return list(prompt_ids)
    image, before, after = processor.image_token_id, processor.start_image_token_id, processor.end_image_token_id
    found: list[int] = []
    for last, token, following in zip([None, *prompt_ids], prompt_ids, [*prompt_ids[1:], None], strict=False):
        marks = (token == before and following == image) or (token == after and last == image)
        if not marks and not (token == last == image):
            found.append(token)
    return found


def prompt_size(image_processor: Any, size: Size, options: Mapping[str, int]) -> Size:
    """(W, H) in which a picture of ``size`` reaches the processor, see :func:`prompt_pictures`.

    Args:
        image_processor: of the captioner; None where it takes no pictures.
        size: (W, H).
        options: keys of qwen_vl_utils that a row brings, such as ``max_pixels``.
    """
    if in_tiles(image_processor):
        return size
    from qwen_vl_utils.vision_process import SPATIAL_MERGE_SIZE, smart_resize

    factor = int(getattr(image_processor, "patch_size", 14) * SPATIAL_MERGE_SIZE)
    width, height = options.get("resized_width", size[0]), options.get("resized_height", size[1])
    limits = {} if "resized_width" in options else options
    height, width = smart_resize(height, width, factor=factor, **limits)
    return (width, height)


# ------------------------------------------------------------ what the model takes of pictures


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a model takes of pictures, by the names of its arguments, and how it lies among the tokens."""

    inputs: dict[str, Tensor]
    """``pixel_values`` (N, ...) of all pictures and, of Qwen, ``image_grid_thw`` (pictures, 3)."""
    tokens: int
    """Image tokens that the prompts have for them together."""
    shape: tuple[tuple[int, ...], ...]
    """Of each picture; inputs of equal shapes have equal shapes."""


def read_pictures(
    image_processor: Any, config: Any, images: Sequence[Image.Image], options: Mapping[str, Any]
) -> Pictures:
    """Run the image processor as the whole processor runs it.

    Args:
        image_processor: of the captioner.
        config: of the captioner.
        images: RGB, see :func:`prompt_pictures`.
        options: arguments of the processor, ``data.mm_processor_kwargs``.
    """
    if in_tiles(image_processor):
        # Alone it would make one tile of every picture; InternVLProcessor asks it for several.
        found = image_processor(images=list(images), return_tensors="pt", **{"crop_to_patches": True, **options})
        counts = [int(count) for count in found["num_patches"]]
        inputs = {"pixel_values": found["pixel_values"]}
        return Pictures(inputs, sum(counts) * int(config.image_seq_length), tuple((count,) for count in counts))
    found = image_processor(images=list(images), return_tensors="pt", **options)
    inputs = {name: found[name] for name in ("pixel_values", "image_grid_thw")}
    grid = inputs["image_grid_thw"]
    tokens = int(grid.prod(-1).sum()) // int(config.vision_config.spatial_merge_size) ** 2
    return Pictures(inputs, tokens, tuple(tuple(row) for row in grid.tolist()))


def token_types(config: Any, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """1 at image tokens and 0 elsewhere, (B, L) int64: ``mm_token_type_ids`` of transformers."""
    return ((ids_BL == config.image_token_id) & mask_BL.bool()).long()


def typed_inputs(config: Any, ids_BL: Tensor, mask_BL: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of pictures with what the model finds positions by, if it has positions of its own for pictures."""
    if "image_grid_thw" not in inputs:
        return dict(inputs)
    return {**inputs, "mm_token_type_ids": token_types(config, ids_BL, mask_BL)}


def positions(model: Any, ids_BL: Tensor, mask_BL: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Positions of prompts by the model's own function, 0 at pads: (3, B, L), or (1, B, L) of a model without axes.

    Args:
        model: the captioner.
        ids_BL: token ids, padded on either side.
        mask_BL: True at real tokens.
        inputs: of the prompts' pictures, may be empty.
    """
    function = getattr(model.model, "get_rope_index", None)
    if function is None:
        return ((mask_BL.long().cumsum(-1) - 1).clamp_min(0) * mask_BL)[None]
    found: Tensor = function(
        ids_BL,
        mm_token_type_ids=token_types(model.config, ids_BL, mask_BL),
        image_grid_thw=inputs.get("image_grid_thw"),
        attention_mask=mask_BL.long(),
    )[0]
    return found


def as_model_takes(position_ABL: Tensor) -> Tensor:
    """Positions (A, B, L) of A axes as ``position_ids``: without the axis where there is one only."""
    return position_ABL[0] if len(position_ABL) == 1 else position_ABL


__all__ = [
    "FAMILIES",
    "TOWERS",
    "Family",
    "Pictures",
    "as_model_takes",
    "as_vllm_takes",
    "family_of",
    "in_tiles",
    "positions",
    "prompt_pictures",
    "prompt_size",
    "read_pictures",
    "token_types",
    "typed_inputs",
    "vision_towers",
]
