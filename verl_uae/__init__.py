# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl_uae: Unified-GRPO for unified multimodal models, as a plugin of verl.

Importing this package is light on purpose: `import verl` loads it in every process through the
``verl.plugins`` entry point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from verl_uae.compat import before_import, ensure_torchvision
from verl_uae.versions import __version__

if TYPE_CHECKING:
    from verl_uae.chain.pipeline import UAEPipeline, UAEPipelineOutput

__all__ = ["UAEPipeline", "UAEPipelineOutput", "__version__"]

# Everything here may import transformers or diffusers, which import torchvision by way of others.
before_import("torchvision", ensure_torchvision)


def __getattr__(name: str) -> Any:
    # On first use: diffusers takes seconds to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from verl_uae.chain import pipeline

    return getattr(pipeline, name)
