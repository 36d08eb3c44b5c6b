# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from PIL import Image

from tests.bench.judge.server import Judges, Shown, completion, error
from tests.chain.conftest import picture
from verl_uae.bench.judge import judges as module
from verl_uae.bench.judge.contest import Picture
from verl_uae.bench.judge.judges import (
    SPENT,
    Budget,
    Client,
    Judge,
    Limits,
    NoAnswerError,
    body,
    choose_judges,
    parse_judge,
    read_judges,
)
from verl_uae.data.images import image_digest
from verl_uae.errors import ConfigError, DecodeError


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
    [judge] = choose_judges(["a=https://host/v1#m"], None, ["a=A_TOKEN"])
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
            choose_judges(["a=https://host#m"], None, [text])


def test_names_tell_judges_apart() -> None:
    assert choose_judges(["a=http://host#m"]) == [Judge("a", "http://host", "m")]
    with pytest.raises(ConfigError, match="at least one"):
        choose_judges([])
    with pytest.raises(ConfigError, match="two judges are named 'a'"):
        choose_judges(["a=http://host#m", "a=http://other#n"])


@dataclass(frozen=True)
class Reply:
    """An answer, or why there is none."""

    answer: dict[str, Any] | None
    reason: str = ""


QUICK = Limits(timeout=5.0, retries=2, backoff=0.01, max_wait=1.0, patience=100)


class Naps(list[float]):
    """Waits that are noted down and not waited for."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def ask(
    judge: Judge, limits: Limits = QUICK, budget: Budget | None = None, times: int = 1, naps: Naps | None = None
) -> list[Reply]:
    async def once(client: Client) -> Reply:
        try:
            return Reply(await client.ask(body(judge, ("hello",), 64)))
        except NoAnswerError as error:
            return Reply(None, str(error))

    async def run() -> list[Reply]:
        async with Client(judge, limits, budget or Budget(), Naps() if naps is None else naps) as client:
            return [await once(client) for _ in range(times)]

    return asyncio.run(run())


def answers(*behaviours: Any) -> Callable[[Shown, int], Any]:
    """One after the other, the last one for ever."""
    return lambda shown, count: behaviours[min(count, len(behaviours) - 1)]


def test_a_busy_server_is_asked_again_when_it_says(server: Judges, judge: Callable[..., Judge]) -> None:
    server.behaviours["busy"] = answers(error(429, headers={"Retry-After": "1"}), completion("hello"))
    naps = Naps()
    [reply] = ask(judge("busy"), naps=naps)
    assert reply == Reply(completion("hello")) and naps == [1.0 + QUICK.backoff]
    assert server.counts["busy"] == 2


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_passing_failures_are_tried_again_a_bounded_number_of_times(
    status: int, server: Judges, judge: Callable[..., Judge]
) -> None:
    server.behaviours["down"] = answers(error(status, "wait"), completion("up"))
    assert ask(judge("down")) == [Reply(completion("up"))]
    server.behaviours["down"] = answers(error(status, "wait"))
    [reply] = ask(judge("down"))
    assert reply.answer is None and reply.reason == f'HTTP {status}: {{"error":{{"message":"wait"}}}}'
    assert server.counts["down"] == 2 + 3


def test_waits_between_tries_double_up_to_the_longest(server: Judges, judge: Callable[..., Judge]) -> None:
    server.behaviours["down"] = answers(error(500))
    naps = Naps()
    ask(judge("down"), Limits(timeout=5.0, retries=5, backoff=0.1, max_wait=1.0), naps=naps)
    assert naps == [0.1, 0.2, 0.4, 0.8, 1.0]


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_what_is_wrong_with_a_question_is_not_tried_again(
    status: int, server: Judges, judge: Callable[..., Judge]
) -> None:
    server.behaviours["picky"] = answers(error(status), completion("fine"))
    first, second = ask(judge("picky"), times=2)
    assert first.answer is None and first.reason.startswith(f"HTTP {status}") and second.answer is not None
    assert server.counts["picky"] == 2


@pytest.mark.parametrize("status", [401, 402, 404])
def test_what_is_wrong_with_a_judge_ends_it(status: int, server: Judges, judge: Callable[..., Judge]) -> None:
    server.behaviours["closed"] = answers(error(status), completion("fine"))
    replies = ask(judge("closed"), times=4)
    assert server.counts["closed"] == 1 and not any(reply.answer for reply in replies)
    assert all(f"given up, HTTP {status}" in reply.reason for reply in replies[1:])


def test_a_judge_that_never_answers_is_given_up(server: Judges, judge: Callable[..., Judge]) -> None:
    server.behaviours["down"] = answers(error(503), completion("up"), error(503))
    replies = ask(judge("down"), Limits(timeout=5.0, retries=0, patience=3), times=7)
    assert [reply.answer is not None for reply in replies] == [False, True] + [False] * 5
    assert server.counts["down"] == 5 and "3 questions in a row" in replies[-1].reason


def test_a_server_that_asks_for_too_long_a_wait_has_failed(server: Judges, judge: Callable[..., Judge]) -> None:
    server.behaviours["busy"] = answers(error(429, headers={"Retry-After": "3600"}))
    [reply] = ask(judge("busy"))
    assert reply.reason.endswith("asks to wait 3600 s") and server.counts["busy"] == 1


def test_the_deadline_is_on_the_whole_of_a_request(server: Judges, judge: Callable[..., Judge]) -> None:
    """A server that hangs, and one that sends a byte ten times a second for ever."""
    limits = Limits(timeout=0.4, retries=1, backoff=0.01)

    async def drip() -> Any:
        while True:
            yield b" "
            await asyncio.sleep(0.1)

    server.behaviours["drip"] = lambda shown, count: StreamingResponse(drip())
    server.behaviours["hang"] = answers(completion("late"))
    server.hang["hang"] = 2.0
    for model in ("drip", "hang"):
        [reply] = ask(judge(model), limits)
        assert reply == Reply(None, "no answer within 0.4 s") and server.counts[model] == 2


def test_no_server_at_all(server: Judges) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        [reply] = ask(Judge("none", f"http://127.0.0.1:{port}", "m"))
    assert reply.answer is None and reply.reason.startswith("ConnectError")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response("<html>", 200), "not JSON"),
        (Response("[" * 100_000, 200), "not JSON"),
        (Response("[]", 200), "without choices: []"),
        (Response('{"choices": []}', 200), "without choices"),
        (Response('{"error": {"message": "overloaded"}}', 200), "overloaded"),
        (Response("", 204), "HTTP 204"),
        (RedirectResponse("http://127.0.0.1:1/elsewhere", 307), "HTTP 307"),
    ],
    ids=range(7),
)
def test_what_is_no_answer(response: Response, reason: str, server: Judges, judge: Callable[..., Judge]) -> None:
    server.behaviours["odd"] = answers(response)
    [reply] = ask(judge("odd"))
    assert reply.answer is None and reason in reply.reason and len(reply.reason) < 400
    assert server.counts["odd"] == 1


def test_an_endless_answer_is_cut(server: Judges, judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 500
            await asyncio.sleep(0.01)

    server.behaviours["long"] = lambda shown, count: StreamingResponse(endless())
    [reply] = ask(judge("long"))
    assert reply == Reply(None, "answered with more than 1000 bytes")


def test_a_compressed_answer_is_not_unpacked(
    server: Judges, judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed twice, 16 MiB are less than a kilobyte."""
    packed = gzip.compress(gzip.compress(b" " * 2**24))
    server.behaviours["bomb"] = answers(Response(packed, 200, {"Content-Encoding": "gzip, gzip"}))
    unpacked: list[int] = []
    monkeypatch.setattr(httpx.Response, "_get_content_decoder", lambda self: unpacked.append(1))
    [reply] = ask(judge("bomb"))
    assert reply == Reply(None, "answered compressed, which was not asked for") and not unpacked
    assert server.asked[-1].headers["accept-encoding"] == "identity"


def test_what_is_for_this_machine_passes_no_proxy(
    server: Judges, judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "sk-very-secret")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    server.behaviours["near"] = answers(completion("x"))
    proxied: list[bytes] = []

    def listen(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                proxied.append(connection.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, args=(listener,), daemon=True).start()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert ask(judge("near", token_env="TOKEN")) == [Reply(completion("x"))] and proxied == []
        # Another machine may be beyond it.
        [reply] = ask(Judge("far", "http://judge.invalid", "m"), Limits(timeout=5.0, retries=0))
        assert reply.answer is None and proxied[0].startswith(b"POST http://judge.invalid/v1/chat/completions ")
        listener.shutdown(socket.SHUT_RDWR)


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(ConfigError, match="judge far: the proxy of the environment cannot be used: Unknown scheme"):
        Client(Judge("far", "https://judge.invalid", "m"), QUICK, Budget())


def test_the_budget_counts_every_try(server: Judges, judge: Callable[..., Judge]) -> None:
    server.behaviours["down"] = answers(error(500))
    budget = Budget(4)
    replies = ask(judge("down"), budget=budget, times=3)
    assert server.counts["down"] == budget.sent == 4 and not budget.take()
    assert [reply.reason[:8] for reply in replies] == ["HTTP 500", "HTTP 500", SPENT[:8]]
    assert ask(judge("down"), budget=Budget(0)) == [Reply(None, SPENT)] and server.counts["down"] == 4


def test_the_token_is_sent_and_shown_nowhere(
    server: Judges, judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOKEN", "sk-very-secret")
    caplog.set_level("DEBUG")

    def echo(shown: Shown, count: int) -> Any:
        said = f"you are {shown.headers['authorization']}"
        return completion(said) if count == 0 else error(400, said)

    server.behaviours["echo"] = echo
    answered, refused = ask(judge("echo", token_env="TOKEN"), times=2)
    assert answered == Reply(completion("you are Bearer ***")) and "you are Bearer ***" in refused.reason
    assert "sk-very-secret" not in caplog.text
    server.behaviours["plain"] = answers(completion("x"))
    ask(judge("plain"))
    assert "authorization" not in server.asked[-1].headers
    monkeypatch.delenv("TOKEN")
    with pytest.raises(ConfigError, match="TOKEN"):
        ask(judge("echo", token_env="TOKEN"))


def test_pictures_arrive_as_they_are_and_large_ones_smaller(
    server: Judges, judge: Callable[..., Judge], tmp_path: Path
) -> None:
    pictures = []
    for index, size in enumerate(((40, 30), (400, 100))):
        image = picture(index, *size)
        image.save(tmp_path / f"{index}.png")
        pictures.append(Picture(tmp_path / f"{index}.png", image_digest(image)))
    request = body(judge("m"), ("a ", pictures[0], " b ", pictures[1]), 64)
    shown = Shown(request, {})
    assert shown.text == "a <picture> b <picture>" and request["messages"][0]["role"] == "user"
    small, large = shown.pictures
    assert image_digest(small.convert("RGB")) == pictures[0].digest and large.size == (64, 16)
    expected = picture(1, 400, 100).resize((64, 16), Image.Resampling.BICUBIC)
    difference = sum(abs(a - b) for a, b in zip(large.tobytes(), expected.tobytes(), strict=True)) / (64 * 16 * 3)
    assert difference < 3.0
    # Without pictures the content is a plain text, which servers of text models need.
    assert body(judge("m"), ("hello",), 64)["messages"] == [{"role": "user", "content": "hello"}]
    with pytest.raises(DecodeError):
        body(judge("m"), ("a", Picture(tmp_path / "gone.png", "x")), 64)
