# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from verl_uae.bench.judge.judges import Judge, parse_judge, read_judges, unique, with_tokens
from verl_uae.errors import ConfigError


def test_a_judge_in_one_word() -> None:
    judge = parse_judge("local=http://127.0.0.1:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct")
    assert judge == Judge("local", "http://127.0.0.1:8000/v1", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert judge.settings() == {"model": "Qwen/Qwen2.5-VL-7B-Instruct", "temperature": 0, "seed": 0, "max_tokens": 2048}
    assert judge.token() is None


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
        ("https://host/a/b", "https://host/a/b/chat/completions"),
        ("http://[::1]:80", "http://[::1]:80/v1/chat/completions"),
    ],
)
def test_addresses(base: str, url: str) -> None:
    assert parse_judge(f"j={base}#m").url == url


@pytest.mark.parametrize(
    "text",
    ["", "j", "j=http://host", "http://host#m", "=http://host#m", "j=http://host#", "j=ftp://host#m", "j=host:80#m",
     "j=https://#m", "j=https://user:secret@host/v1#m", "j=https://host/v1?key=secret#m", "a b=http://host#m",
     "j=http://host:99999#m", "j=http://[::1#m", "j=http://ho st#m", "j=http://host\x01/v1#m"],
)  # fmt: skip
def test_what_is_no_judge(text: str) -> None:
    with pytest.raises(ConfigError, match="--judge"):
        parse_judge(text)


def test_judges_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "judges.yaml"
    path.write_text(
        "judges:\n"
        "  - {name: a, base_url: https://a.example/v1, model: m-1, token_env: A_TOKEN}\n"
        "  - name: b\n    base_url: http://localhost:1\n    model: m-2\n"
        "    parameters: {temperature: null, max_tokens: null, seed: 3, max_completion_tokens: 4096}\n"
    )
    first, second = read_judges(path)
    assert first == Judge("a", "https://a.example/v1", "m-1", "A_TOKEN")
    assert second.settings() == {"model": "m-2", "seed": 3, "max_completion_tokens": 4096}
    path.write_text("- {name: a, base_url: https://a.example/v1, model: m-1}\n")
    assert read_judges(path) == [Judge("a", "https://a.example/v1", "m-1")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no list"),
        ("judges: []", "no list"),
        ("a: [", "cannot read"),
        ("[3]", r"judges\[0\]: must be a mapping"),
        ("[{name: a, base_url: http://h, model: m}, {name: b}]", r"judges\[1\]: base_url must be a text"),
        ("[{name: a, base_url: http://h, model: m, token: s3cret}]", "unknown key 'token'"),
        ("[{name: a, base_url: http://h, model: m, parameters: {stream: true}}]", "'stream' is set by the protocol"),
        ("[{name: a, base_url: http://h, model: m, parameters: [1]}]", "parameters must be"),
        ("[{name: a, base_url: http://h, model: m, parameters: {x: 2024-01-01}}]", "what JSON knows"),
        ("[{name: a, base_url: http://h, model: m, parameters: {x: .nan}}]", "what JSON knows"),
        ("[{name: a, base_url: http://h, model: m, token_env: 3}]", "token_env must be"),
        ("!!python/object/apply:os.system [x]", "cannot read"),
    ],
)
def test_files_that_do_not_say_what_they_mean(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "judges.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as found:
        read_judges(tmp_path / "judges.yaml")
    assert "s3cret" not in str(found.value)


def test_tokens_come_from_the_environment_and_cross_no_network_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", " secret-token\n")
    [judge] = with_tokens([parse_judge("a=https://host/v1#m")], ["a=A_TOKEN"])
    assert judge.token() == "secret-token" and "secret-token" not in repr(judge)
    for base in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"):
        assert Judge("a", base, "m", "A_TOKEN").token() == "secret-token"
    for base in ("http://host", "http://10.0.0.1", "http://localhost.example"):
        with pytest.raises(ConfigError, match="over https or to this machine"):
            Judge("a", base, "m", "A_TOKEN").token()
    for value in ("", "two words", "a\nb", "ü"):
        monkeypatch.setenv("A_TOKEN", value)
        with pytest.raises(ConfigError, match="A_TOKEN holds no token") as found:
            Judge("a", "https://host", "m", "A_TOKEN").token()
        assert not value or value not in str(found.value)
    for text in ("b=A_TOKEN", "a", "a="):
        with pytest.raises(ConfigError, match="--token-env"):
            with_tokens([Judge("a", "https://host", "m")], [text])


def test_names_tell_judges_apart() -> None:
    judge = Judge("a", "http://host", "m")
    assert unique([judge]) == [judge]
    with pytest.raises(ConfigError, match="at least one"):
        unique([])
    with pytest.raises(ConfigError, match="two judges are named 'a'"):
        unique([judge, Judge("a", "http://other", "n")])
