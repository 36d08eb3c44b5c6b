# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl_uae.compiling on modules of our own; tests/engines has the decoder's, under FSDP2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.launch import run
from verl_uae.compiling import ATTENTION, check_compiler, compile_blocks
from verl_uae.errors import ConfigError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x_BE: torch.Tensor) -> torch.Tensor:
        return x_BE + torch.tanh(self.layer(x_BE))


def test_equal_blocks_share_a_program_and_keep_their_names() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), *(Block() for _ in range(12)))
    x_BE, names = torch.randn(3, 4), list(module.state_dict())
    expected = module(x_BE)
    assert compile_blocks(module, {"Block"}) == 12
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        assert torch.allclose(module(x_BE), expected, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert list(module.state_dict()) == names


def test_a_name_that_no_block_has_is_no_silent_success() -> None:
    with pytest.raises(ValueError, match="Sequential has no block of Layer"):
        compile_blocks(nn.Sequential(Block()), {"Layer"})


@pytest.mark.parametrize(("named", "text"), [("no-such-cc", "CXX=no-such-cc"), (None, "g\\+\\+ or clang\\+\\+")])
def test_a_missing_compiler_is_told_before_anything_runs(
    named: str | None, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if named:
        monkeypatch.setenv("CXX", named)
    with pytest.raises(ConfigError, match=text) as found:
        check_compiler("uae.decoder.compile")
    assert "uae.decoder.compile" in str(found.value) and "set the key to false" in str(found.value)


@pytest.mark.parametrize("name", ATTENTION)
def test_the_kernel_of_attention_is_tried_first_and_the_others_stay(name: str) -> None:
    """In a process of its own: the order is the process's."""
    code = (
        "import torch; from torch.nn.attention import SDPBackend; from verl_uae.compiling import *;"
        f"prefer_attention({name!r}); order = torch._C._get_sdp_priority_order();"
        f"assert order[0] == int(getattr(SDPBackend, ATTENTION[{name!r}])), order;"
        "on = [torch._C._get_flash_sdp_enabled(), torch._C._get_mem_efficient_sdp_enabled(),"
        "torch._C._get_math_sdp_enabled(), torch._C._get_cudnn_sdp_enabled()];"
        "assert all(on), on; q = torch.randn(1, 2, 8, 4);"
        "print(torch.nn.functional.scaled_dot_product_attention(q, q, q).shape)"
    )
    result = run("-c", code, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
