# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a fork does, against what the interpreter does with the same words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forks

SAYS = """
import atexit, os, sys, threading
atexit.register(print, "at exit")
sys.stdout.reconfigure(errors="backslashreplace")
print(__name__, sys.argv, sys.orig_argv[1:], os.getcwd(), os.environ["MARK"], "HOME" in os.environ, sys.stdin.read())
import beside
print(beside.__name__, sys.modules["__main__"].SAID, os.pread(int(sys.argv[-1]), 9, 0), file=sys.stderr)
threading.Timer(0.1, print, ["from a thread"]).start()
"""


def both(*words: str, folder: Path, **options: object) -> list[tuple[int, str, str]]:
    environment = {"MARK": "m", "PATH": os.environ["PATH"], "PYTHONPATH": str(folder / "more")}
    return [
        (done.returncode, done.stdout, done.stderr)
        for executable in (sys.executable, forks.python())
        for done in [
            subprocess.run(
                [executable, *words],
                cwd=folder,
                env=environment,
                input="typed",
                capture_output=True,
                text=True,
                check=False,
                **options,  # type: ignore[call-overload]
            )
        ]
    ]


def test_a_fork_computes_with_one_thread_as_a_training_command_on_a_cpu_does(tmp_path: Path) -> None:
    script = tmp_path / "default_worker.py"
    script.write_text("import torch\nprint(torch.get_num_threads())")
    _, (code, said, _) = both(str(script), folder=tmp_path)
    assert (code, said.strip()) == (0, "1")


@pytest.mark.parametrize("kind", ["-c", "-m", "file"])
def test_a_fork_is_what_the_interpreter_would_be(tmp_path: Path, kind: str) -> None:
    """Its words, folder, environment, files, and all that it says on its way out."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "beside.py").write_text("")
    (tmp_path / "more" / "sitecustomize.py").write_text("import sys; sys.stderr.write('site\\n')")
    # The name of one of Ray's scripts, since others are not forked.
    script = tmp_path / "default_worker.py"
    script.write_text(f"SAID = 5\n{SAYS}")
    words = {"-c": ["-c", script.read_text()], "-m": ["-m", "default_worker"], "file": [str(script)]}[kind]
    (tmp_path / "file").write_text("content")
    with open(tmp_path / "file") as file:
        number = file.fileno()
        real, fork = both(*words, str(number), folder=tmp_path, pass_fds=[number])
    assert fork == real and real[0] == 0 and "at exit" in real[1]


@pytest.mark.parametrize(
    "ending", ["sys.exit(3)", "sys.exit('reason')", "sys.exit()", "os.kill(os.getpid(), 9)", "1 / 0"]
)
def test_a_fork_ends_as_the_interpreter_would(tmp_path: Path, ending: str) -> None:
    real, fork = both("-c", f"import os, sys\nprint('said')\nsys.stdout.flush()\n{ending}", folder=tmp_path)
    assert fork[:2] == real[:2]
    assert fork[2].splitlines()[-1:] == real[2].splitlines()[-1:]


def test_the_libraries_are_there_and_nothing_of_verl_or_of_ours() -> None:
    code = "import sys; print('torch' in sys.modules, [name for name in sys.modules if 'verl' in name])"
    said = subprocess.run([forks.python(), "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split(maxsplit=1) == ["True", "[]\n"]


def test_forks_draw_different_numbers() -> None:
    code = "import random; import numpy; print(random.random(), numpy.random.rand())"
    one, two = (
        subprocess.run([forks.python(), "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert one[0] != two[0] and one[1] != two[1]


def test_a_signal_reaches_the_fork() -> None:
    code = "import os, signal, time\nsignal.signal(15, lambda *_: os._exit(7))\nprint('ready', flush=True)\n"
    code += "time.sleep(60)"
    for number, expected in ((signal.SIGTERM, 7), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen([forks.python(), "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(number)
            assert process.wait(30) == expected
            # The end of its output is that of the fork.
            assert process.stdout.read() == ""


@pytest.mark.parametrize("own", [{"process_group": 0}, {"start_new_session": True}])
def test_a_fork_is_ended_with_the_group_of_who_asked_and_nobody_else_is(own: dict[str, Any]) -> None:
    """As Ray does with its workers."""
    code = "import os, time; print(os.getpgrp(), flush=True); time.sleep(60)"
    with subprocess.Popen([forks.python(), "-c", code], stdout=subprocess.PIPE, text=True, **own) as process:
        assert process.stdout is not None
        os.killpg(int(process.stdout.readline()), signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert subprocess.run([forks.python(), "-c", ""], check=False).returncode == 0
