# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
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
