# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A ``python`` whose processes find the large libraries already imported.

``import verl`` takes a processor ten seconds, all but one of which go into torch, transformers and the like, and a
training command is a dozen processes. So one process, the nursery, imports those libraries, nothing of verl and nothing
of ours, and the executable that :func:`nursery` yields passes its words to it: a fork of the nursery does what
``python WORDS`` would, with the environment, the working folder and the open files of who asked. A process that starts
others by ``sys.executable``, as Ray does, starts forks too. What depends on a fresh interpreter is no use of this.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Variable of the environment that says where the executable is; the controller of pytest-xdist sets it for all.
VARIABLE = "UAE_TEST_PYTHON"

#: Imported by the nursery; what verl and this package import of others.
LIBRARIES = (
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "tensordict",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "accelerate",
    "datasets",
    "diffusers.models.transformers.transformer_sd3",
    "diffusers.models.autoencoders.autoencoder_kl",
    "pandas",
    "peft",
    "torchdata.stateful_dataloader",
)

#: Of Ray's scripts those that do not look whether the process that they belong to is their parent.
_WORKERS = ("/setup_worker.py", "/default_worker.py")

_CLIENT = """#!{python} -IS
import sys
sys.path.append({folder!r})
import forks
sys.exit(forks.ask({address!r}, {python!r}, sys.argv[1:]))
"""


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[str]:
    """Write the executable into ``folder`` and serve it; the libraries are imported when it first runs."""
    import subprocess

    address, executable = str(folder / "nursery"), folder / "python"
    text = _CLIENT.format(python=sys.executable, folder=str(Path(__file__).parent), address=address)
    executable.write_text(text, encoding="utf-8")
    executable.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(128)
        command = [sys.executable, __file__, str(listener.fileno()), str(executable)]
        # Libraries read these when they are imported, so a fork cannot have a number of its own, and sums of several
        # threads round otherwise than those of the one that `hardware=cpu` asks for.
        alone = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], env=alone) as server:
            yield str(executable)
            server.kill()


def python() -> str:
    """The executable of this run of the tests; outside of one, as in `tests.golden`, the interpreter itself."""
    return os.environ.get(VARIABLE, sys.executable)


# ---------------------------------------------------------------- the executable


def ask(address: str, python: str, words: list[str]) -> int:
    """Have a fork do what ``python WORDS`` does; passes signals on to it, and ends as it did."""
    if not words or not (words[0] in ("-c", "-m") or words[0].endswith(_WORKERS)):
        os.execv(python, [python, *words])
    with socket.socket(socket.AF_UNIX) as nursery:
        nursery.connect(address)
        files = [number for number in map(int, os.listdir("/proc/self/fd")) if number != nursery.fileno()]
        files = [number for number in files if os.path.exists(f"/proc/self/fd/{number}")]
        request = json.dumps(
            {
                "words": words,
                "files": files,
                "folder": os.getcwd(),
                "variables": dict(os.environ),
                "group": os.getpgrp(),
                "session": os.getsid(0),
            }
        )
        content = request.encode("utf-8", "surrogateescape")
        socket.send_fds(nursery, [struct.pack("!I", len(content))], files)
        nursery.sendall(content)
        (pid,) = struct.unpack("!i", _received(nursery, 4))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        (status,) = struct.unpack("!i", _received(nursery, 4))
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other.
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _received(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = connection.recv(count - len(content))
        if not part:
            raise ConnectionError("the nursery is gone")
        content += part
    return content


# ---------------------------------------------------------------- the nursery


def serve(listener: socket.socket, executable: str) -> None:
    """Fork for every request, until standard input ends."""
    import selectors

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    paths: list[str] = []
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                return
            if key.fileobj is listener:
                paths = paths or _import_libraries()
                connection, _ = listener.accept()
                try:
                    request, files = _request(connection)
                except (ConnectionError, struct.error):  # Who asked was killed while it did.
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    _be(request, files, paths, executable)
                for number in files:
                    os.close(number)
                with contextlib.suppress(ConnectionError):
                    connection.sendall(struct.pack("!i", pid))
                selector.register(connection, selectors.EVENT_READ, pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            elif isinstance(key.fileobj, socket.socket):
                # Who asked was killed, and what it asked for would have been; unless that has just ended too.
                if key.fileobj.fileno() >= 0:
                    selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
            else:
                pid, connection = key.data
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(ConnectionError):
                    connection.sendall(struct.pack("!i", status))
                with contextlib.suppress(KeyError):
                    selector.unregister(connection)
                connection.close()
                selector.unregister(key.fd)
                os.close(key.fd)


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, files, _, _ = socket.recv_fds(connection, 4, 250)
    return json.loads(_received(connection, struct.unpack("!I", head)[0])), files


def _import_libraries() -> list[str]:
    """What `sys.path` ends with in every process."""
    import gc
    import importlib

    own = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = paths = [path for path in sys.path if path not in own]
    os.environ["HF_HUB_OFFLINE"] = "1"
    gc.disable()
    # Before torchvision, which works by it.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    importlib.import_module("verl_uae")
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("verl", "verl_uae")]:
        del sys.modules[name]
    gc.freeze()
    return paths[:]


def _be(request: dict[str, Any], files: list[int], paths: list[str], executable: str) -> None:
    """Become the process that was asked for; does not return."""
    import atexit
    import fcntl
    import gc
    import threading
    import traceback

    import numpy as np

    # First out of each other's way.
    wanted = request["files"]
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD, max(*files, *wanted) + 1) for number in files]
    for number in files:
        os.close(number)
    for number, source in zip(wanted, moved, strict=True):
        os.dup2(source, number)
        os.close(source)
    # These know what kind of file the nursery's were.
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        old = getattr(sys, name)
        stream = open(number, mode, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        stream.reconfigure(line_buffering=name == "stderr")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # Ray kills the process group of a worker that has ended.
    if request["session"] == os.getsid(0):
        os.setpgid(0, request["group"])
    else:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.executable = executable
    sys.path[:] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path] + paths
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        __import__("sitecustomize")
    np.random.seed()
    gc.enable()
    code: Any = 0
    try:
        _run(request["words"])
    except SystemExit as error:
        code = error.code
    except BaseException:
        # As the interpreter does with whatever reaches it.
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _run(words: list[str]) -> None:
    import builtins
    import runpy
    import types

    sys.orig_argv = [sys.executable, *words]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    kind = words[0]
    sys.argv = words[kind == "-m" :] if kind != "-c" else ["-c", *words[2:]]
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
    elif kind == "-c":
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        main.__dict__["__file__"] = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), main.__dict__)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
