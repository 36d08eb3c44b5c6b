# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae reward-server``; its options are in :mod:`verl_uae.cli`, since importing this package imports torch."""

from __future__ import annotations

import argparse
import functools
import logging

from verl_uae.data.limits import ImageLimits
from verl_uae.devices import checked_device
from verl_uae.errors import ConfigError
from verl_uae.reward.remote.protocol import read_token
from verl_uae.reward.remote.server import ServerSettings, serve
from verl_uae.reward.remote.service import MAX_REQUEST_PIXELS, ScoringService
from verl_uae.reward.remote.specs import read_terms
from verl_uae.reward.scorer import check_specs


def run(args: argparse.Namespace) -> int:
    """Serve until told to end.

    Raises:
        ConfigError: an option, a term or the address that does not work.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = ServerSettings(
        host=args.host,
        port=args.port,
        token=read_token(args.token_file, "--token-file"),
        insecure=args.insecure,
        max_samples=args.max_samples,
        max_body_bytes=args.max_body_mib * 2**20,
        max_in_flight=args.max_in_flight,
        certificate=args.tls_cert,
        certificate_key=args.tls_key,
    )
    try:
        limits = ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=args.max_pixels, min_side=1)
    except ValueError as error:
        raise ConfigError("--max-pixels", str(error)) from error
    request_pixels = MAX_REQUEST_PIXELS if args.max_request_pixels is None else args.max_request_pixels
    if request_pixels < args.max_pixels:
        raise ConfigError("--max-request-pixels", f"must be at least --max-pixels, got {request_pixels}")
    terms = read_terms(args.term, args.config)
    # Before the socket: what is wrong without loading anything ends the command at once.
    check_specs(terms.summed, terms.held_out, "terms", args.timeout_s)
    load = functools.partial(
        ScoringService,
        terms,
        device=str(checked_device(args.device)),
        timeout_s=args.timeout_s,
        source_cache_bytes=args.source_cache_mib * 2**20,
        limits=limits,
        max_request_pixels=request_pixels,
    )
    serve(load, settings, functools.partial(print, flush=True))
    return 0
