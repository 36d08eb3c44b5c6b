# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The command as a process of its own: https, token, killed, told to end."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.reward.remote.conftest import wait_until, within
from verl_uae.cli import main
from verl_uae.reward import RewardScorer, Status
from verl_uae.reward.remote.term import RemoteReward

#: Where lateness is wanted, and where it is not, seconds.
TIMEOUT_S, AMPLE_S = 1.0, 20.0

SLOW = """
    import pathlib, time
    def compute_score(data_source, solution_str, ground_truth, extra_info, folder):
        if ground_truth == "wait":
            pathlib.Path(folder, "entered").touch()
            time.sleep(2)
        return 0.25
"""

Start = Callable[..., tuple[str, subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(*options)``: address and process of a server with a slow custom reward."""
    running: list[subprocess.Popen[str]] = []
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    params = f"{{path: {tmp_path}/slow.py, reward_kwargs: {{folder: {tmp_path}}}}}"
    (tmp_path / "terms.yaml").write_text(f"terms: [{{name: custom, params: {params}}}]")

    def run(*options: str) -> tuple[str, subprocess.Popen[str]]:
        command = [sys.executable, "-m", "verl_uae.cli", "reward-server", "--port", "0", *options]
        command += ["--config", str(tmp_path / "terms.yaml"), "--term", "{name: pixel, held_out: true}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip(), process

    yield run
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ready(url: str, **params: object) -> RewardScorer:
    """A scorer that has seen the server ready."""
    found: list[RewardScorer] = []

    def ask() -> bool:
        scorer = RewardScorer([("remote", 1.0, {"url": url, "timeout_s": AMPLE_S, **params})])
        term = scorer._summed[0].term
        assert isinstance(term, RemoteReward)
        found[:] = [scorer]
        return term._known

    wait_until(ask, 120.0)
    return found[0]


def test_https_with_a_token_then_killed_in_the_middle_of_a_request(start: Start, make_levels, tmp_path: Path) -> None:
    certificate, key, token = (tmp_path / name for name in ("cert.pem", "key.pem", "token"))
    token.write_text("0123456789abcdef0123\n")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    url, process = start("--tls-cert", str(certificate), "--tls-key", str(key), "--token-file", str(token))
    assert url.startswith("https://127.0.0.1:")
    params = {"token_file": str(token), "ca_file": str(certificate)}
    batch = make_levels(3)
    pixel = RewardScorer([("pixel", 1.0, {})]).score(batch)
    found = ready(url, **params).score(batch)
    assert [record.value for record in found] == [0.25] * 3
    assert [record.terms["remote/pixel"] for record in found] == [record.value for record in pixel]

    term = ready(url, **params, retries=1)
    for row in batch.rows:
        row["ground_truth"] = "wait"
    threading.Thread(target=lambda: (wait_until((tmp_path / "entered").exists), process.kill())).start()
    with within(AMPLE_S + 1.0):
        found = term.score(batch)
    assert [record.status for record in found] == [Status.ERROR] * 3
    assert process.wait(20) == -signal.SIGKILL
    with within(AMPLE_S + 1.0):
        assert [record.status for record in term.score(batch)] == [Status.ERROR] * 3

    # Without the certificate nothing is believed, and nothing is sent.
    assert not RewardScorer([("remote", 1.0, {"url": url, "token_file": str(token)})])._summed[0].term._known


def test_told_to_end_it_answers_what_is_in_flight(start: Start, make_levels, tmp_path: Path) -> None:
    url, process = start()
    term = ready(url)
    late = RewardScorer([("remote", 1.0, {"url": url, "timeout_s": TIMEOUT_S})])
    batch = make_levels(2)
    batch.rows[0]["ground_truth"] = "wait"
    with within(TIMEOUT_S + 1.0):
        assert [record.status for record in late.score(batch)] == [Status.TIMEOUT] * 2
    (tmp_path / "entered").unlink(missing_ok=True)
    ender = threading.Thread(target=lambda: (wait_until((tmp_path / "entered").exists), process.terminate()))
    ender.start()
    assert [record.value for record in term.score(batch)] == [0.25] * 2
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--term", "pixle"], "unknown reward 'pixle'. Did you mean 'pixel'?"),
        (["--term", "{name: pixel, params: {k: 0}}"], "must be above 0"),
        (
            ["--term", "{name: remote, params: {url: 'http://127.0.0.1:1', timeout_s: 90}}"],
            "below the scorer's timeout",
        ),
        ([], "give at least one term"),
        (["--term", "pixel", "--device", "abacus"], "--device: abacus: "),
        (["--term", "pixel", "--device", "cuda:99"], "give a device that this machine has, such as cpu"),
        (["--term", "pixel", "--host", "0.0.0.0"], "can be reached from other machines"),
        (["--term", "pixel", "--token-file", "/nonexistent"], "cannot read"),
        (["--term", "pixel", "--max-pixels", "0"], "max_pixels must lie in"),
        (["--term", "pixel", "--max-request-pixels", "1000"], "must be at least --max-pixels"),
        (["--term", "pixel", "--port", "70000"], "cannot listen"),
        (["--term", "pixel", "--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"], "--tls-cert"),
        (["--term", "{name: clip, params: {model: /nonexistent}}"], "/nonexistent"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_code_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERL_UAE_REWARD_TOKEN", raising=False)
    codes: list[int] = []
    # In a thread: what loads after the socket is bound ends the server by itself, and signals stay pytest's.
    thread = threading.Thread(
        target=lambda: codes.append(main(["reward-server", "--port", "0", *options])), daemon=True
    )
    thread.start()
    thread.join(120)
    error = capsys.readouterr().err
    assert codes == [2] and error.splitlines()[-1].startswith("verl-uae: ") and message in error.splitlines()[-1]
