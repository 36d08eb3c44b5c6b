# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Who judges: models behind OpenAI-compatible endpoints."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from verl_uae.errors import ConfigError
from verl_uae.web import is_loopback

#: Sent with every request unless a judge says otherwise.
DEFAULTS: Mapping[str, Any] = MappingProxyType({"temperature": 0, "seed": 0, "max_tokens": 2048})

#: Set by the protocol alone.
_RESERVED = frozenset({"model", "messages", "stream", "n"})
_KEYS = frozenset({"name", "base_url", "model", "token_env", "parameters"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that is asked."""

    name: str
    base_url: str
    """Up to and without ``/chat/completions``; ``/v1`` is added where it has no path."""
    model: str
    token_env: str | None = None
    """Environment variable with the bearer token; None sends none."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Added to the body of each request, over `DEFAULTS`; None leaves a default out."""

    @property
    def url(self) -> str:
        base = self.base_url.rstrip("/")
        return f"{base}{'' if urlsplit(base).path else '/v1'}/chat/completions"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    def settings(self) -> dict[str, Any]:
        """Model and parameters, as sent."""
        merged = {**DEFAULTS, **self.parameters}
        return {"model": self.model, **{key: value for key, value in merged.items() if value is not None}}

    def token(self) -> str | None:
        """The token.

        Raises:
            ConfigError: the variable is not set, or a token would cross a network in the clear.
        """
        if self.token_env is None:
            return None
        token = os.environ.get(self.token_env, "").strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(f"judge {self.name}", f"the environment variable {self.token_env} holds no token")
        if urlsplit(self.base_url).scheme != "https" and not self.is_local:
            raise ConfigError(f"judge {self.name}", "a token is sent over https or to this machine only")
        return token


def parse_judge(text: str) -> Judge:
    """A judge from ``NAME=BASE_URL#MODEL``.

    Raises:
        ConfigError: it is not of that form.
    """
    name, equals, rest = text.partition("=")
    base_url, hash_sign, model = rest.partition("#")
    if not equals or not hash_sign:
        raise ConfigError("--judge", f"must be NAME=BASE_URL#MODEL, got {text!r}")
    return _checked(Judge(name, base_url, model), "--judge")


def read_judges(path: str | os.PathLike[str]) -> list[Judge]:
    """Judges of a YAML file: a list, or one under ``judges``, of the fields of `Judge`.

    Raises:
        ConfigError: naming the entry, for anything else.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("--judges", f"cannot read {os.fspath(path)}: {' '.join(str(error).split())}") from error
    entries = content.get("judges") if isinstance(content, Mapping) else content
    if not isinstance(entries, list) or not entries:
        raise ConfigError("--judges", f"{os.fspath(path)} has no list of judges")
    return [_from_entry(entry, f"--judges: judges[{index}]") for index, entry in enumerate(entries)]


def _from_entry(entry: Any, key: str) -> Judge:
    if not isinstance(entry, Mapping):
        raise ConfigError(key, "must be a mapping")
    unknown = {str(name) for name in entry} - _KEYS
    if unknown:
        raise ConfigError(key, f"unknown key {min(unknown)!r}; known are {', '.join(sorted(_KEYS))}")
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, Mapping) or not all(isinstance(name, str) for name in parameters):
        raise ConfigError(key, "parameters must be a mapping with text keys")
    try:
        json.dumps(dict(parameters), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(key, f"parameters must be what JSON knows: {error}") from error
    for name in ("name", "base_url", "model"):
        if not isinstance(entry.get(name), str):
            raise ConfigError(key, f"{name} must be a text")
    token_env = entry.get("token_env")
    if token_env is not None and not isinstance(token_env, str):
        raise ConfigError(key, "token_env must be the name of an environment variable")
    return _checked(Judge(entry["name"], entry["base_url"], entry["model"], token_env, dict(parameters)), key)


def _checked(judge: Judge, key: str) -> Judge:
    if not _NAME.fullmatch(judge.name):
        raise ConfigError(key, f"a name is made of letters, digits, dot, dash and underscore, got {judge.name!r}")
    try:
        parts = urlsplit(judge.base_url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    sound &= judge.base_url.isprintable() and " " not in judge.base_url
    # A user or a query might be a secret, and the address is written into results.
    if not sound or "@" in judge.base_url or parts.query or parts.fragment:
        raise ConfigError(key, f"judge {judge.name}: base_url must be http(s)://HOST[:PORT][/PATH] and nothing else")
    if not judge.model:
        raise ConfigError(key, f"judge {judge.name} has no model")
    reserved = _RESERVED & judge.parameters.keys()
    if reserved:
        raise ConfigError(key, f"judge {judge.name}: the parameter {min(reserved)!r} is set by the protocol")
    return judge


def unique(judges: Sequence[Judge]) -> list[Judge]:
    """The judges, if there are any and no two have one name.

    Raises:
        ConfigError: otherwise.
    """
    if not judges:
        raise ConfigError("--judge", "give at least one judge")
    names = [judge.name for judge in judges]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("--judge", f"two judges are named {name!r}")
    return list(judges)


def with_tokens(judges: Sequence[Judge], variables: Sequence[str]) -> list[Judge]:
    """The judges with the ``NAME=VARIABLE`` of their tokens.

    Raises:
        ConfigError: a name is not that of a judge.
    """
    from dataclasses import replace

    by_name = {judge.name: judge for judge in judges}
    for text in variables:
        name, equals, variable = text.partition("=")
        if not equals or not variable or name not in by_name:
            raise ConfigError("--token-env", f"must be NAME=VARIABLE with the name of a judge, got {text!r}")
        by_name[name] = replace(by_name[name], token_env=variable)
    return list(by_name.values())
