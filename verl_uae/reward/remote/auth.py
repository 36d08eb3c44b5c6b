# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The bearer token of a reward server (RFC 6750), and keeping it out of texts."""

from __future__ import annotations

import base64
import functools
import hmac
import http.client
import ipaddress
import logging
import os
import re
import string
from collections.abc import Sequence

from verl_uae.errors import ConfigError
from verl_uae.paths import expand

#: Read where no token file is named.
TOKEN_VARIABLE = "VERL_UAE_REWARD_TOKEN"

#: Shortest token accepted, characters. `openssl rand -hex 32` writes 64.
MIN_TOKEN = 16

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

#: Shortest part of a token that is taken out of a text, characters.
MIN_ECHO = 8

#: How often escapes are undone: a URL in a URL, JSON in JSON in a log.
_ESCAPES = 3

#: One character, escaped, in lower case: %2b, =2b, \x2b, 0x2b, \u002b, &#x2b;, &#43;, \053, \/.
_ESCAPED = re.compile(
    r"(?:[%=]|\\x|0x|\\u00)(?P<code>[0-7][0-9a-f])|&#x0*(?P<hexadecimal>[0-7][0-9a-f]);|&#0*(?P<decimal>[0-9]{2,3});"
    r"|\\(?P<octal>[01][0-7]{2})|\\(?P<itself>[^a-z0-9])"
)
_BASES = {"code": 16, "hexadecimal": 16, "decimal": 10, "octal": 8}

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
    """The text without the token, should somebody have echoed it.

    Found are the token itself, in base64 (any text before it), in hexadecimal or decimal numbers, in letters of the
    other case; each of these also with other characters in between, as where lines are broken or bytes are listed, with
    characters escaped as in URLs, JSON, HTML, Python or C, also thrice over; and every part of at least
    :data:`MIN_ECHO` characters, as where a text is cut.
    """
    if token is None:
        return text
    # Not lower(), which makes two characters of one in some languages.
    line = text.translate(_LOWER)
    starts: Sequence[int] = range(len(text))
    ends: Sequence[int] = range(1, len(text) + 1)
    hidden = [False] * len(text)
    parts = _parts(token)
    for _ in range(_ESCAPES + 1):
        _hide(line, starts, ends, parts, hidden)
        kept = [index for index, character in enumerate(line) if character.isalnum()]
        joined = "".join(line[index] for index in kept)
        _hide(joined, [starts[index] for index in kept], [ends[index] for index in kept], parts, hidden)
        found = list(_ESCAPED.finditer(line))
        if not found:
            break
        line, starts, ends = _unescaped(line, starts, ends, found)
    return _masked(text, hidden)


@functools.cache
def keep_phrases_out_of_logs() -> None:
    """httpx logs every answer at level INFO with the words behind its status, which the server chooses."""
    logging.getLogger("httpx").addFilter(_without_phrase)


def _without_phrase(record: logging.LogRecord) -> bool:
    arguments = record.args if isinstance(record.args, tuple) else ()
    # Method, address, version, status, words.
    if len(arguments) == 5 and isinstance(arguments[3], int):
        record.args = (*arguments[:4], http.client.responses.get(arguments[3], ""))
    return True


@functools.lru_cache(maxsize=8)
def _parts(token: str) -> frozenset[str]:
    """All that is looked for: ``MIN_ECHO`` characters in a row of any form of the token, with and without the
    characters between letters and digits."""
    data = token.encode()
    forms = {token, data.hex(), "".join(map(str, data))}
    # Base64 takes three bytes at a time: these are the three ways in which something may stand before.
    for prefix in (b"", b"Bearer ", b":", b"x:"):
        forms.add(base64.b64encode(prefix + data).decode().rstrip("="))
        forms.add(base64.urlsafe_b64encode(prefix + data).decode().rstrip("="))
    forms |= {"".join(filter(str.isalnum, form)) for form in forms}
    lowered = (form.translate(_LOWER) for form in forms)
    return frozenset(form[at : at + MIN_ECHO] for form in lowered for at in range(len(form) - MIN_ECHO + 1))


def _hide(line: str, starts: Sequence[int], ends: Sequence[int], parts: frozenset[str], hidden: list[bool]) -> None:
    """Mark what of the original text, of which character i of the line is ``starts[i]`` to ``ends[i]``, is a part."""
    for at in range(len(line) - MIN_ECHO + 1):
        if line[at : at + MIN_ECHO] in parts:
            first, last = starts[at], ends[at + MIN_ECHO - 1]
            hidden[first:last] = [True] * (last - first)


def _unescaped(
    line: str, starts: Sequence[int], ends: Sequence[int], found: Sequence[re.Match[str]]
) -> tuple[str, list[int], list[int]]:
    """The line with each escape as the character it stands for, in lower case."""
    pieces: list[str] = []
    first: list[int] = []
    last: list[int] = []
    done = 0
    for escape in (*found, None):
        start, end = escape.span() if escape else (len(line), len(line))
        pieces.append(line[done:start])
        first += starts[done:start]
        last += ends[done:start]
        if escape:
            digits, kind = next((text, name) for name, text in escape.groupdict().items() if text)
            pieces.append(chr(int(digits, _BASES[kind])).translate(_LOWER) if kind in _BASES else digits)
            first.append(starts[start])
            last.append(ends[end - 1])
        done = end
    return "".join(pieces), first, last


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
