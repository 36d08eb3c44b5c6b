# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl_uae: Unified-GRPO for unified multimodal models, as a plugin of verl.

Importing this package is light on purpose: `import verl` loads it in every process through the
``verl.plugins`` entry point.
"""

from verl_uae.compat import before_import, ensure_torchvision

__version__ = "0.1.0"

# Everything here may import transformers or diffusers, which import torchvision by way of others.
before_import("torchvision", ensure_torchvision)
