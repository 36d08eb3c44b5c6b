# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A real HTTP server that speaks OpenAI's chat completions, with judges whose every decision is known beforehand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

SCORES = {"content": 7, "fluency": 5, "insight": 3}


@dataclass
class Shown:
    """What a request shows, read from its text by a reader of the prompt's own words."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def parts(self) -> list[Mapping[str, Any]]:
        content = self.body["messages"][0]["content"]
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        return "".join(part.get("text", "<picture>") for part in self.parts)

    @property
    def pictures(self) -> list[Image.Image]:
        urls = [part["image_url"]["url"] for part in self.parts if part["type"] == "image_url"]
        assert all(url.startswith("data:image/png;base64,") for url in urls)
        return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]

    @property
    def nonce(self) -> str:
        """That of the last line; captions before it may hold anything."""
        return re.findall(r'"id": "([0-9a-f]+)"', self.text)[-1]

    def caption(self, letter: str) -> str:
        line = re.escape(f"{self.nonce} {letter}")
        found = re.search(rf"\n{line}\n(.*?)\n{line}\n", self.text, re.DOTALL)
        assert found is not None
        return found[1]

    def says(
        self, verdict: str, before: str = "A is so and B is so.\n", **scores: Mapping[str, float]
    ) -> dict[str, Any]:
        """A completion with this verdict."""
        content = {"id": self.nonce, "scores": scores or {"A": SCORES, "B": SCORES}, "verdict": verdict}
        return completion(before + json.dumps(content))


def completion(content: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **message}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "judge",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


#: Gets what is shown and how often the model was asked before; gives a completion, or a whole response.
Behaviour = Callable[[Shown, int], "dict[str, Any] | Response"]


def longer(shown: Shown, count: int) -> dict[str, Any]:
    a, b = len(shown.caption("A")), len(shown.caption("B"))
    return shown.says("A" if a > b else "B" if b > a else "tie")


def always_a(shown: Shown, count: int) -> dict[str, Any]:
    return shown.says("A")


def always_tie(shown: Shown, count: int) -> dict[str, Any]:
    return shown.says("tie")


def brighter(shown: Shown, count: int) -> dict[str, Any]:
    """Whose reconstruction is nearer to the source in mean brightness."""
    source, a, b = (sum(image.convert("L").resize((1, 1)).getdata()) for image in shown.pictures)
    return shown.says("A" if abs(a - source) < abs(b - source) else "B")


def error(status: int, message: str = "no", headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, dict(headers or {}))


@dataclass
class Judges:
    """Behaviours by model, and what was asked."""

    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    asked: list[Shown] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    hang: dict[str, float] = field(default_factory=dict)
    """Seconds before a model answers."""
    busy: Counter[str] = field(default_factory=Counter)
    most_busy: Counter[str] = field(default_factory=Counter)
    base_url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            shown = Shown(await request.json(), dict(request.headers))
            model = shown.body["model"]
            self.asked.append(shown)
            count = self.counts[model]
            self.counts[model] += 1
            self.busy[model] += 1
            self.most_busy[model] = max(self.most_busy[model], self.busy[model])
            try:
                await asyncio.sleep(self.hang.get(model, 0.0))
                answer = self.behaviours[model](shown, count)
            finally:
                self.busy[model] -= 1
            return answer if isinstance(answer, Response) else JSONResponse(answer)

        return app


@contextmanager
def serving(judges: Judges) -> Iterator[Judges]:
    """The judges behind a free port of this machine."""
    config = uvicorn.Config(judges.app(), host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    judges.base_url = f"http://127.0.0.1:{port}/v1"
    try:
        yield judges
    finally:
        server.should_exit = True
        thread.join(10)
