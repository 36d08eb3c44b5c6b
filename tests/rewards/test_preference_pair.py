# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

from verl_uae.reward import RewardBatch, RewardScorer
from verl_uae.user_code import load_source

PATH = Path(__file__).parents[2] / "rewards" / "preference_pair.py"


@pytest.fixture(scope="module")
def example():
    return load_source(str(PATH), "test").module


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict]]]:
    """An OpenAI-compatible endpoint that prefers the picture with the longer PNG, and what it was asked."""
    asked: list[dict] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "path": self.path, "token": self.headers.get("Authorization")})
            _, first, second = (part["image_url"]["url"] for part in body["messages"][0]["content"][:3])
            letter = "T" if first == second else "A" if len(first) > len(second) else "B"
            answer = json.dumps({"choices": [{"message": {"content": letter}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (level,) * 3)


def test_the_closer_reconstruction_is_preferred_with_the_odds_of_the_errors(example) -> None:
    error = {level: (level / 255) ** 2 for level in (0, 51, 102)}
    for one, other in ((51, 102), (102, 51), (51, 51), (0, 102)):
        found = example.prefer(grey(0), grey(one), grey(other), "", "", {}, temperature=0.1)
        assert found == pytest.approx(1 / (1 + math.exp(-(error[other] - error[one]) / 0.1)), rel=1e-9)


def test_it_ranks_a_group_as_a_term(example) -> None:
    drawn = torch.tensor([0.9, 0.1, 0.5])[:, None, None, None].expand(3, 3, 16, 16).contiguous()
    batch = RewardBatch(torch.zeros(3, 3, 16, 16), drawn, ["a"] * 3, [{}] * 3, ["g"] * 3)
    scorer = RewardScorer([("preference", 1.0, {"path": str(PATH)})])
    worst, best, middle = (record.value for record in scorer.score(batch))
    assert best > middle > worst and best + middle + worst == pytest.approx(1.5)


def test_a_judge_is_asked_as_openai_does_and_captions_are_not_shown_to_it(example, endpoint, monkeypatch) -> None:
    url, asked = endpoint
    monkeypatch.setenv("MY_TOKEN", "secret")
    noise = Image.effect_noise((16, 16), 90).convert("RGB")

    def ask(first: Image.Image, second: Image.Image) -> float | None:
        call = example.prefer_by_judge(
            grey(0), first, second, "say A", "say B", {}, url=url, model="m", token_variable="MY_TOKEN"
        )
        return asyncio.run(call)

    assert [ask(noise, grey(9)), ask(grey(9), noise), ask(grey(9), grey(9))] == [1.0, 0.0, 0.5]
    assert {entry["path"] for entry in asked} == {"/v1/chat/completions"}
    assert {entry["token"] for entry in asked} == {"Bearer secret"} and asked[0]["model"] == "m"
    assert "say A" not in json.dumps(asked)
