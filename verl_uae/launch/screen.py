# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a training command shows of what its processes print.

Run as a script it stands behind the driver's output: everything goes into a file, and to the screen what a person
waits for: lines of this package, errors with their traceback, and what Ray says of its nodes. It is a process of its
own, since a thread would have to wait for whoever holds the interpreter's lock while writing, and reads nothing of this
package, so that it is there at once.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import BinaryIO

#: Ends what follows: other processes may hold the pipe open.
END = "verl_uae: end of the log"

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

#: ``(TaskRunner pid=1, ip=10.0.0.1) text``, as Ray prefixes what its processes print.
_OF_RAY = re.compile(r"\((?P<who>[^()]*)\) ?(?P<text>.*)")
_PROCESS = re.compile(r"(?P<name>\S+) pid=\d+")

#: A record of one of our loggers, as verl's format shows it once it has names, and as Hydra's does.
_RECORD = re.compile(
    r"(?:(?P<level>[A-Z]+):(?P<time>[\d :,-]+):verl_uae[\w.]*:|\[[\d :,-]+\]\[verl_uae[\w.]*\]\[(?P<hydra>[A-Z]+)\] - )"
    r"(?P<text>.*)"
)
#: Begins what a process says when it fails: Python, its fault handler, and Ray's.
_FAILS = re.compile(r"Traceback \(most recent call last\)|Fatal Python error|\*\*\* SIG[A-Z]+")

#: Lines that are shown behind the name of an exception, which may go on, or behind another failure.
_MORE = 12

#: Most characters of such a line.
_WIDE = 400
_RAY_ITSELF = ("raylet", "autoscaler", "gcs_server")


class Chooser:
    """Which lines a person sees, and how."""

    def __init__(self) -> None:
        self._block = False
        """Whether indented lines go on with one of ours."""
        self._left: dict[str, int | None] = {}
        """Process that has failed -> lines to show of it; None: all until one is not indented."""

    def shown(self, line: str) -> str | None:
        """What is shown of a line without its end; None: nothing."""
        line = _COLOUR.sub("", line.rpartition("\r")[2] if "\r" in line.rstrip("\r") else line).rstrip()
        found = _OF_RAY.fullmatch(line)
        process, text = (found["who"], found["text"]) if found else ("", line)
        named = _PROCESS.match(process)
        who = named["name"] if named else process
        if who in _RAY_ITSELF:
            return line
        if (start := _FAILS.search(text)) is not None:
            self._left[process] = None if start[0].startswith("Traceback") else _MORE
            return line
        ours = not who and text.startswith("verl_uae")
        if process in self._left and not _RECORD.match(text) and not ours:
            left = self._left[process]
            if left is None and (text.startswith(" ") or not text):
                return line
            # The first line of a traceback that is not indented names the exception; its message may have more.
            left = _MORE if left is None else left - 1
            self._left[process] = left
            if left:
                return line[:_WIDE]
        self._left.pop(process, None)
        if record := _RECORD.match(text):
            self._block = False
            level = record["level"] or record["hydra"]
            if level == "INFO":
                return record["text"] if not who or who.startswith("TaskRunner") else None
            return f"{level.lower()}: {record['text']}"
        self._block = ours or (self._block and not who and text.startswith("  "))
        return text if self._block else None


def opened(path: str, screen: BinaryIO) -> BinaryIO | None:
    """The log at a path, to add to; None where it cannot be had, which is said."""
    try:
        return open(path, "ab")
    except OSError as error:
        screen.write(f"verl_uae: there is no log ({error})\n".encode())
        return None


def follow(source: BinaryIO, log: BinaryIO | None, screen: BinaryIO) -> None:
    """Write all lines into the log, and those that are for people to the screen, until the end is said. Who prints must
    find a reader, or would fail by it: without a log it goes on with the screen alone."""
    chooser = Chooser()
    for raw in source:
        if raw.strip() == END.encode():
            return
        text = chooser.shown(raw.decode("utf-8", "replace").rstrip("\n"))
        if log is not None:
            try:
                log.write(raw)
                log.flush()
            except OSError as error:
                # Such as a full disk.
                log, text = None, f"verl_uae: the log ends here ({error})\n{text or ''}"
        if text is not None:
            with contextlib.suppress(OSError):  # A terminal that was closed.
                screen.write(text.encode() + b"\n")
                screen.flush()


if __name__ == "__main__":
    follow(sys.stdin.buffer, opened(sys.argv[1], sys.stdout.buffer), sys.stdout.buffer)
