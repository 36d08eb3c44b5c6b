# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The bearer token of a reward server (RFC 6750), and keeping it out of texts."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re

from verl_uae.errors import ConfigError
from verl_uae.paths import expand

#: Read where no token file is named.
TOKEN_VARIABLE = "VERL_UAE_REWARD_TOKEN"

#: Shortest token accepted, characters. `openssl rand -hex 32` writes 64.
MIN_TOKEN = 16

#: Characters of a token, RFC 6750 section 2.1.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


def read_token(file: str | os.PathLike[str] | None, key: str) -> str | None:
    """The token of a file, else of the environment, else None.

    Args:
        file: text file that holds nothing but the token; None: look into ``VERL_UAE_REWARD_TOKEN``.
        key: configuration key of the file, for errors.

    Raises:
        ConfigError: where the file cannot be read, or what is found is no token. The token is not in the message.
    """
    if file is None:
        text, key = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if text is None:
            return None
    else:
        try:
            text = expand(file).read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(key, f"cannot read {os.fspath(file)!r}: {type(error).__name__}") from error
    token = text.strip()
    if len(token) < MIN_TOKEN or not _TOKEN.fullmatch(token):
        raise ConfigError(key, f"a token is one word of at least {MIN_TOKEN} letters, digits or -._~+/")
    return token


def authorized(header: str | None, token: str) -> bool:
    """Whether an ``Authorization`` header carries the token; takes equally long wherever they differ."""
    scheme, _, given = (header or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    return same and scheme.lower() == "bearer"


def scrub(text: str, token: str | None) -> str:
    """The text without the token, should somebody have echoed it."""
    return text if token is None else text.replace(token, "***")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
