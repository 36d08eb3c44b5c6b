# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
import re
import time
import urllib.parse
from pathlib import Path

import pytest

from verl_uae.errors import ConfigError
from verl_uae.reward.remote.auth import TOKEN_VARIABLE, authorized, is_loopback, read_token, scrub, without_token

TOKEN = "0123456789abcdef"


def test_the_file_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None, "key") is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    assert read_token(None, "key") == "from-the-environment"
    (tmp_path / "token").write_text(f"  {TOKEN}\n")
    assert read_token(tmp_path / "token", "key") == TOKEN


@pytest.mark.parametrize("text", ["", "short", "two words of a token", "line\nbreak-in-a-token", "ümlaut-in-a-token"])
def test_what_is_no_token_is_refused_without_showing_it(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(text)
    monkeypatch.setenv(TOKEN_VARIABLE, text)
    for file, key in ((tmp_path / "token", "key"), (None, TOKEN_VARIABLE)):
        with pytest.raises(ConfigError, match="a token is one word") as raised:
            read_token(file, "key")
        assert raised.value.key == key and (not text or text not in str(raised.value))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_token(tmp_path / "none", "key")


def test_authorized() -> None:
    assert authorized(f"Bearer {TOKEN}", TOKEN) and authorized(f"bearer  {TOKEN} ", TOKEN)
    for header in (None, "", TOKEN, f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}0", f"Bearer {TOKEN[:-1]}", "Bearer é"):
        assert not authorized(header, TOKEN), header


def test_scrub() -> None:
    assert scrub(f"a {TOKEN} b {TOKEN}", TOKEN) == "a *** b ***"
    assert scrub("a", None) == "a"


def test_is_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.example.org")))


#: With all that a token may hold beside letters and digits, never eight of those in a row.
ODD = "ab+cd/EF-0123._9~xyz/Q=="


def escaped(pattern: str, token: str) -> str:
    return "".join(pattern.format(ord(character)) for character in token)


#: As frameworks print what they were sent.
ECHOES = {
    "PHP's JSON": lambda token: json.dumps(token).replace("/", "\\/"),
    "JSON in JSON": lambda token: json.dumps(json.dumps({"authorization": escaped("\\u{:04x}", token)})),
    "Go's HTML": lambda token: token.replace("+", "&#43;").replace("/", "&#x2F;"),
    "HTML": lambda token: escaped("&#{};", token),
    "URL": lambda token: urllib.parse.quote(token, safe=""),
    "URL, every character": lambda token: escaped("%{:02X}", token),
    "URL in a URL": lambda token: urllib.parse.quote(escaped("%{:02x}", token), safe=""),
    "quoted-printable": lambda token: escaped("={:02X}", token),
    "Python": lambda token: escaped("\\x{:02x}", token),
    "C": lambda token: escaped("\\{:03o}", token),
    "C, bytes": lambda token: escaped("0x{:02x}, ", token),
    "Go, bytes": lambda token: str(list(token.encode())),
    "Go, bytes without commas": lambda token: str(list(token.encode())).replace(",", ""),
    "a dump": lambda token: token.encode().hex(" "),
    "a fingerprint": lambda token: token.encode().hex(":").upper(),
    "repr of headers": lambda token: repr([(b"authorization", f"Bearer {token}".encode())]),
    "base64 of all headers": lambda token: base64.b64encode(f"Authorization: Bearer {token}\r\n".encode()).decode(),
    "basic, a user of another length": lambda token: base64.b64encode(f"me:{token}".encode()).decode(),
    "base64 of a URL": lambda token: base64.urlsafe_b64encode(f"http://u:{token}@host/".encode()).decode(),
    "base64, broken into lines": lambda token: "\r\n".join(
        re.findall(".{1,7}", base64.b64encode(token.encode()).decode())
    ),
    "a word in every cell": lambda token: " | ".join(token),
    "invisible characters": lambda token: "\u200b".join(token),
    "wrapped": lambda token: "\n".join(re.findall(".{1,4}", token)),
    "as it is": lambda token: token,
}


@pytest.mark.parametrize("token", ["0123456789abcdef0123456789abcdef", "qN3tYwZ8rLx0PmV2sKdT", ODD])
@pytest.mark.parametrize("how", ECHOES)
def test_a_token_is_found_however_it_was_written(how: str, token: str) -> None:
    """What is left is too little to say what the token was."""
    echo = ECHOES[how](token)
    found = scrub(f"the server said <{echo}> and more", token)
    assert found.startswith("the server said <") and found.endswith("> and more")
    left = found.removeprefix("the server said <").removesuffix("> and more")
    assert len(re.sub("[^A-Za-z0-9]", "", left.replace("Authorization: Bearer", "").replace("authorization", ""))) < 24
    assert "***" in left and len(left) < len(scrub(echo, None)) / 2 + 40
    shown = "".join(filter(str.isalnum, left))
    plain = "".join(filter(str.isalnum, token))
    assert not [at for at in range(len(plain) - 7) if plain[at : at + 8] in shown]


def test_many_words_take_no_longer_than_their_number() -> None:
    text = "a long answer with %41 and \\n in it " * 20_000
    started = time.process_time()
    assert without_token(text, TOKEN) == text
    assert time.process_time() - started < 10.0


@pytest.mark.parametrize(
    "echo",
    [
        f"Bearer {TOKEN}",
        TOKEN.upper(),
        TOKEN[:-3],
        TOKEN[3:],
        base64.b64encode(TOKEN.encode()).decode(),
        base64.b64encode(f"Bearer {TOKEN}".encode()).decode(),
        TOKEN.encode().hex(),
        f"\x1b[31m{TOKEN}\x1b[0m",
    ],
)
def test_no_form_of_the_token_is_left(echo: str) -> None:
    found = scrub(f"the server said {echo}\r\nand more", TOKEN)
    assert found.startswith("the server said ") and found.endswith(" and more") and found.isprintable()
    assert "***" in found
    for length in (8, 12):
        parts = [echo[start : start + length] for start in range(len(echo) - length + 1)]
        assert not [part for part in parts if part in found and "[" not in part and "Bearer" not in part]


def test_texts_without_the_token_stay_as_they_are() -> None:
    assert without_token("HTTP 500:  out of\nmemory", TOKEN) == "HTTP 500:  out of\nmemory"
    assert scrub("a\n b\x00c", TOKEN) == scrub("a\n b\x00c", None) == "a b c"
