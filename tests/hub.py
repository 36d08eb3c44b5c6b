# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a model hub: the requests of huggingface_hub's uploads, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a_token_of_a_test"


class Hub:
    """What the hub has, and what it was asked."""

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[str, bytes] = {}
        self.visibility: str | None = None
        self.messages: list[str] = []
        self.large: dict[str, bytes] = {}
        """By SHA-256."""


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer({"error": "Invalid username or password."}, 401)
            return self._answer(*_answer(hub, self.path, body))

        def do_GET(self) -> None:
            self._answer({"id": "me/model", "sha": "0" * 40, "siblings": [], "gated": False, "private": False})

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.large[hashlib.sha256(body).hexdigest()] = body
            self._answer({})

        def _answer(self, content: Any, code: int = 200) -> None:
            text = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/vnd.git-lfs+json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _answer(hub: Hub, path: str, body: bytes) -> tuple[Any, int]:
    if path == "/api/repos/create":
        hub.visibility = json.loads(body).get("visibility")
        return {"url": f"{hub.address}/me/model", "id": "1", "name": "me/model"}, 200
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}, 200
    if path.endswith("/preupload/main"):
        asked = json.loads(body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked
        ]
        return {"files": modes}, 200
    if path.endswith("/info/lfs/objects/batch"):
        wanted = json.loads(body)["objects"]
        objects = [
            {**one, "actions": {"upload": {"href": f"{hub.address}/upload/{one['oid']}", "header": {}}}}
            for one in wanted
        ]
        return {"transfer": "basic", "objects": objects}, 200
    if "/commit/main" in path:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.messages.append(value["summary"])
            elif line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.large[value["oid"]]
        return {"success": True, "commitUrl": f"{hub.address}/me/model/commit/{'0' * 40}", "commitOid": "0" * 40}, 200
    return {"error": f"not known: {path}"}, 404
