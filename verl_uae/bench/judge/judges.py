# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Who judges: models behind OpenAI-compatible endpoints, and requests to one of them.

Each request has a deadline and a bounded number of further tries, and what was sent is counted.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import httpx

from verl_uae.bench.judge.contest import Content, Picture
from verl_uae.data.images import decode_image
from verl_uae.errors import ConfigError
from verl_uae.pages import data_uri
from verl_uae.web import Fault, Retries, UnansweredError, WebClient, is_loopback, without_token

MAX_ANSWER = 4 * 2**20
"""Largest response read, bytes."""

#: Statuses that further tries may get over: request time-out, conflict, too early, too many, and faults of the server.
RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})

#: Statuses after which the judge is not asked again: no token, no credit, no such model or address.
FATAL = frozenset({401, 402, 404, 405})

SPENT = "not asked: the budget of requests is spent"

#: Sent with every request unless a judge says otherwise.
DEFAULTS: Mapping[str, Any] = MappingProxyType({"temperature": 0, "seed": 0, "max_tokens": 2048})

#: Set by the protocol alone.
_RESERVED = frozenset({"model", "messages", "stream", "n"})
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


def choose_judges(words: Sequence[str], file: Path | None = None, tokens: Sequence[str] = ()) -> list[Judge]:
    """The judges of a command line.

    Args:
        words: ``NAME=BASE_URL#MODEL`` each.
        file: YAML with more: a list, or one under ``judges``, of the fields of `Judge`.
        tokens: ``NAME=VARIABLE`` each, of judges with a token.

    Raises:
        ConfigError: one is not of that form, two have one name, or there is none.
    """
    judges: dict[str, Judge] = {}
    for judge in [*map(parse_judge, words), *([] if file is None else read_judges(file))]:
        if judge.name in judges:
            raise ConfigError("--judge", f"two judges are named {judge.name!r}")
        judges[judge.name] = judge
    if not judges:
        raise ConfigError("--judge", "give at least one judge")
    for text in tokens:
        name, _, variable = text.partition("=")
        if not variable or name not in judges:
            raise ConfigError("--token-env", f"must be NAME=VARIABLE with the name of a judge, got {text!r}")
        judges[name] = replace(judges[name], token_env=variable)
    return list(judges.values())


def parse_judge(text: str) -> Judge:
    """A judge from ``NAME=BASE_URL#MODEL``; ConfigError for another form."""
    name, equals, rest = text.partition("=")
    base_url, hash_sign, model = rest.partition("#")
    if not equals or not hash_sign:
        raise ConfigError("--judge", f"must be NAME=BASE_URL#MODEL, got {text!r}")
    return _judge({"name": name, "base_url": base_url, "model": model}, "--judge")


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
    return [_judge(entry, f"--judges: judges[{index}]") for index, entry in enumerate(entries)]


def _judge(entry: Any, key: str) -> Judge:
    def need(holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(key, message)

    need(isinstance(entry, Mapping), "must be a mapping")
    known = [known.name for known in fields(Judge)]
    unknown = sorted(set(map(str, entry)) - set(known))
    need(not unknown, f"unknown key {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
    for name in ("name", "base_url", "model"):
        need(isinstance(entry.get(name), str), f"{name} must be a text")
    judge = Judge(**{**entry, "parameters": entry.get("parameters") or {}})
    token_env, parameters = judge.token_env, judge.parameters
    need(token_env is None or isinstance(token_env, str), "token_env must be the name of an environment variable")
    texts = isinstance(parameters, Mapping) and all(isinstance(name, str) for name in parameters)
    need(texts, "parameters must be a mapping with text keys")
    try:
        json.dumps(dict(parameters), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(key, f"parameters must be what JSON knows: {error}") from error
    name = judge.name
    need(bool(_NAME.fullmatch(name)), f"a name is made of letters, digits, dot, dash and underscore, got {name!r}")
    address = f"judge {name}: base_url must be http(s)://HOST[:PORT][/PATH] and nothing else"
    need(_is_address(judge.base_url), address)
    need(bool(judge.model), f"judge {name} has no model")
    reserved = sorted(_RESERVED & parameters.keys())
    need(not reserved, f"judge {name}: the parameter {', '.join(map(repr, reserved))} is set by the protocol")
    return judge


def _is_address(url: str) -> bool:
    """Whether it is one of a server and nothing else: a user or a query might be a secret, and results show it."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return sound and url.isprintable() and not set(" @").intersection(url) and not (parts.query or parts.fragment)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each request."""

    timeout: float = 120.0
    """From sending to the last byte, seconds; each try has it anew."""
    retries: int = 3
    """Further tries after a failed one."""
    backoff: float = 1.0
    """Wait before the first further try, seconds; doubled for each after it."""
    max_wait: float = 60.0
    """Longest wait, seconds; a server that asks for more has failed."""
    patience: int = 5
    """Questions in a row without an answer after which a judge is given up."""


@dataclass(slots=True)
class Budget:
    """Requests that may still be sent, further tries included."""

    left: float = math.inf
    sent: int = 0

    def take(self) -> bool:
        """Count a request; false if none is left."""
        if self.left < 1:
            return False
        self.left -= 1
        self.sent += 1
        return True


class NoAnswerError(Exception):
    """A question brought no answer; the text says why."""


def body(judge: Judge, parts: Sequence[Content], side: int) -> dict[str, Any]:
    """The request as OpenAI's chat completions take it, pictures as PNG in data URLs.

    Args:
        side: longest side of a picture, pixels; larger ones are made smaller.

    Raises:
        DecodeError: a picture no longer decodes.
    """
    content: Any = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": _png_uri(part, side)}}
        for part in parts
    ]
    # Servers of text models need a plain text.
    content = content[0]["text"] if len(content) == 1 and content[0]["type"] == "text" else content
    return {**judge.settings(), "messages": [{"role": "user", "content": content}]}


@functools.lru_cache(maxsize=32)
def _png_uri(picture: Picture, side: int) -> str:
    return data_uri(decode_image(picture.path), side, "PNG")


class Client:
    """One judge; an asynchronous context manager. The budget is shared by all judges.

    Raises:
        ConfigError: its token is not there, or the environment names a proxy that cannot be used.
    """

    def __init__(
        self,
        judge: Judge,
        limits: Limits,
        budget: Budget,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.judge, self.limits, self.budget = judge, limits, budget
        self.stopped = ""
        """Why the judge is not asked any more."""
        self._token = judge.token()
        self._failed = 0
        self._retries = Retries(
            RETRIED, limits.retries, limits.backoff, limits.max_wait, limits.max_wait, draw=float, sleep=sleep
        )
        try:
            # A proxy would carry what is for this machine, token included, into the network.
            self._web = WebClient(self._token, MAX_ANSWER, proxies=not judge.is_local)
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise ConfigError(f"judge {judge.name}", f"the proxy of the environment cannot be used: {error}") from error

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *failed: object) -> None:
        await self._web.aclose()

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request until it is answered or given up; the body of a response that has choices.

        Raises:
            NoAnswerError: there is none.
        """
        content = json.dumps(request).encode()
        reason = SPENT

        async def attempt() -> bytes:
            nonlocal reason
            if self.stopped or not self.budget.take():
                raise NoAnswerError(self.stopped or reason)
            try:
                return await self._web.send("POST", self.judge.url, content, timeout_s=self.limits.timeout)
            except UnansweredError as error:
                # It says more than that the budget is spent.
                reason = error.reason
                raise

        try:
            answer = self._read(await self._retries.persist(attempt))
        except UnansweredError as error:
            self._failed += 1
            fatal = error.code in FATAL
            if not self.stopped and (fatal or self._failed >= self.limits.patience):
                what = "" if fatal else f"{self._failed} questions in a row went unanswered, the last: "
                self.stopped = f"not asked: the judge was given up, {what}{error.reason}"
            raise NoAnswerError(error.reason) from error
        self._failed = 0
        return answer

    def _read(self, data: bytes) -> dict[str, Any]:
        text = data.decode("utf-8", "replace")
        try:
            answer = _without(json.loads(text), self._token)
        except (ValueError, RecursionError) as error:
            raise UnansweredError(Fault.INVALID, "an answer that is not JSON") from error
        if isinstance(answer, dict) and isinstance(answer.get("choices"), list) and answer["choices"]:
            return answer
        raise UnansweredError(Fault.INVALID, self._web.reason(f"an answer without choices: {text}"))


def _without(value: Any, token: str | None) -> Any:
    """An answer without the token in any of its texts, should a server echo it."""
    if isinstance(value, str):
        return without_token(value, token)
    if isinstance(value, list):
        return [_without(entry, token) for entry in value]
    if isinstance(value, dict):
        return {without_token(name, token): _without(entry, token) for name, entry in value.items()}
    return value
