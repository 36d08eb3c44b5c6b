# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The bearer token of a reward server (RFC 6750), and keeping it out of texts."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import os
import re
import string
import urllib.parse

from verl_uae.errors import ConfigError
from verl_uae.paths import expand

#: Read where no token file is named.
TOKEN_VARIABLE = "VERL_UAE_REWARD_TOKEN"

#: Shortest token accepted, characters. `openssl rand -hex 32` writes 64.
MIN_TOKEN = 16

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

#: Shortest part of a token that is taken out of a text, characters.
MIN_ECHO = 8

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
    """A text from elsewhere, fit for logs and records: one line without control characters, and without the token."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return without_token(" ".join(line.split()), token)


def without_token(text: str, token: str | None) -> str:
    """The text without the token, should somebody have echoed it: as it is, in base64, percent-encoded, in hexadecimal
    digits, in letters of the other case, or a part of at least :data:`MIN_ECHO` characters, as where a text is cut."""
    if token is None:
        return text
    # Not lower(), which makes two characters of one in some languages.
    lowered = text.translate(_LOWER)
    hidden = [False] * len(text)
    for form in _forms(token):
        _hide(lowered, form.translate(_LOWER), hidden)
    return _masked(text, hidden)


def _forms(token: str) -> set[str]:
    data = token.encode()
    forms = {token, urllib.parse.quote(token, safe=""), data.hex()}
    for prefix in (b"", b"Bearer ", b":", b"x:"):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(prefix + data).decode().rstrip("="))
    return forms


def _hide(line: str, form: str, hidden: list[bool]) -> None:
    """Mark every part of the line that is a part of the form of at least ``MIN_ECHO`` characters."""
    for start in range(len(line) - MIN_ECHO + 1):
        if line[start : start + MIN_ECHO] in form:
            hidden[start : start + MIN_ECHO] = [True] * MIN_ECHO


def _masked(line: str, hidden: list[bool]) -> str:
    pieces = []
    for index, character in enumerate(line):
        if not hidden[index]:
            pieces.append(character)
        elif index == 0 or not hidden[index - 1]:
            pieces.append("***")
    return "".join(pieces)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
