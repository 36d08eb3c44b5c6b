# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A server on real sockets that misbehaves as told, and good answers to start from."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

HEALTH = {
    "version": 1,
    "status": "ready",
    "fingerprint": "f",
    "bounds": [0, 1],
    "needs": ["source"],
    "limits": {"max_samples": 64},
}

#: Told the connection and the parsed body of a request; the connection is closed afterwards.
Behaviour = Callable[[socket.socket, Any], None]


class FaultServer:
    """Answers health as it should, and the k-th scoring request with the k-th behaviour (the last one repeats)."""

    def __init__(self, *behaviours: Behaviour, health: object = HEALTH) -> None:
        self.behaviours = behaviours
        self.health = health
        self.heads: list[str] = []
        """Request lines and headers of scoring requests."""
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        # Wakes accept, which close alone would leave waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with connection:
            try:
                head, body = _request(connection)
                if head.startswith("GET /health"):
                    reply(json.dumps(self.health))(connection, None)
                elif head:
                    with self._lock:
                        self.heads.append(head)
                        number = len(self.heads)
                    self.behaviours[min(number, len(self.behaviours)) - 1](connection, json.loads(body))
            except OSError:
                return  # The client has gone.

    def hang(self, connection: socket.socket, body: object) -> None:
        """Accept the request and never answer."""
        self.over.wait(20)

    def drip(self, connection: socket.socket, body: object) -> None:
        """Answer one byte at a time, never late for a timeout that counts from the last byte."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        while not self.over.wait(0.05):
            connection.sendall(b" ")

    def drip_head(self, connection: socket.socket, body: object) -> None:
        """The same with the head of the answer."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.over.wait(0.05):
            connection.sendall(b"a")


def _request(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return "", b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return head.decode(), body


def records(body: Any, **changes: object) -> list[dict[str, object]]:
    """Good records for a request, every member replaced that is named."""
    return [{"id": s["id"], "status": "ok", "value": 0.5, "terms": {"t": 0.5}, **changes} for s in body["samples"]]


def answer(found: Sequence[object], **changes: object) -> str:
    return json.dumps({"version": 1, "fingerprint": "f", "records": list(found), **changes})


def reply(text: str | bytes, status: str = "200 OK", kind: str = "application/json", *headers: str) -> Behaviour:
    """Answer with a fixed body."""

    def behave(connection: socket.socket, body: object) -> None:
        content = text.encode() if isinstance(text, str) else text
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(content)}", *headers]
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + content)

    return behave


def lie(tell: Callable[[Any], str]) -> Behaviour:
    """Answer with a body made from the request."""
    return lambda connection, body: reply(tell(body))(connection, body)


good = lie(lambda body: answer(records(body)))


def cut(connection: socket.socket, body: object) -> None:
    """Go away in the middle of an answer."""
    connection.sendall(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"version": 1'
    )


def vanish(connection: socket.socket, body: object) -> None:
    """Go away without an answer."""


def flood(connection: socket.socket, body: object) -> None:
    """An answer of 64 MiB without a length."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(64):
        connection.sendall(b"100000\r\n" + b" " * 2**20 + b"\r\n")
    connection.sendall(b"0\r\n\r\n")


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
