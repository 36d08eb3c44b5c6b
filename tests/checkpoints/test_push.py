# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae push``, with the real library against a stand-in for the hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import hub as stand_in


@pytest.fixture(scope="module")
def hub() -> Iterator[stand_in.Hub]:
    with stand_in.running() as found:
        yield found


def pushed(
    hub: stand_in.Hub, *words: str, token: str = stand_in.TOKEN, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        **variables,
    }
    line = [sys.executable, "-m", "verl_uae.cli", "push", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=100)


def test_a_model_folder_arrives_whole(hub: stand_in.Hub, small_folder: Path) -> None:
    result = pushed(hub, str(small_folder), "me/model", "--private", "--message", "after 1000 steps")
    assert result.returncode == 0, result.stderr
    files = {
        path.relative_to(small_folder).as_posix(): path.read_bytes()
        for path in small_folder.rglob("*")
        if path.is_file()
    }
    assert hub.files == files and hub.visibility == "private" and hub.messages == ["after 1000 steps"]
    assert result.stdout.splitlines()[-1].endswith(f"{hub.address}/me/model")


def test_a_folder_of_the_same_name_is_beside_the_point(
    hub: stand_in.Hub, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "me" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    result = pushed(hub, str(small_folder.resolve()), "me/model")
    assert result.returncode == 0, result.stderr


def test_a_folder_that_was_altered_is_not_sent(hub: stand_in.Hub, small_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(small_folder, copy)
    (copy / "README.md").write_text("mine")
    before = len(hub.messages)
    result = pushed(hub, str(copy), "me/model")
    assert result.returncode == 2 and "README.md" in result.stderr and len(result.stderr.splitlines()) == 1
    assert len(hub.messages) == before


@pytest.mark.parametrize(
    ("repository", "token", "said"),
    [
        ("me/model", "hf_another", "is the token one that may write there?"),
        ("model", stand_in.TOKEN, "REPOSITORY: must be an id on the hub, owner/name, got 'model'"),
        ("a--b/c", stand_in.TOKEN, "REPOSITORY: Cannot have -- or .. in repo_id"),
        ("a/b.git", stand_in.TOKEN, "REPOSITORY: Repo_id cannot end by '.git'"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: stand_in.Hub, small_folder: Path, repository: str, token: str, said: str
) -> None:
    result = pushed(hub, str(small_folder), repository, token=token)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids to ask the hub; unset it"),
    ],
)
def test_a_hub_that_is_not_there_is_one_line(
    hub: stand_in.Hub, small_folder: Path, variables: dict[str, str], said: str
) -> None:
    result = pushed(hub, str(small_folder), "me/model", **variables)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"push: {said}" in result.stderr


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"{}"])
def test_what_is_no_hub_is_one_line(hub: stand_in.Hub, small_folder: Path, body: bytes) -> None:
    """As the page of a network that asks for a password first."""

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        result = pushed(hub, str(small_folder), "me/model", HF_ENDPOINT=address)
        server.shutdown()
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert f"push: {address} does not answer as a hub does" in result.stderr
