# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Frozen weights once in the host memory of a node, for all of its processes.

A master is an anonymous file in memory. Whoever has mapped it keeps it open, and others find it among the open files of
this user's processes by its name, a digest. So it ends with the last process that has it, however that ends; nothing
lies on a disk or in ``/dev/shm``, whose size does not matter, and nothing is left of a run that was killed. A process
takes what it finds only after it has compared every byte with what it has loaded itself.

Nobody may write to a master: :func:`unshare` first. Where there is an accelerator its pages are pinned, which needs a
mapping that could be written through; elsewhere the kernel gives a process that writes pages of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from verl_uae.waiting import saying

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

#: Seconds that a process waits for its turn. One that hangs in its own does not hold up the others for ever.
PATIENCE_S = 1800.0
_POLL_S = 0.1

#: Bytes that tensors of a master begin at multiples of.
_ALIGNED = 64
#: Bytes of each tensor, taken in equal steps, that a name depends on.
_SAMPLED = 4096
_NAME = "verl_uae master "


@contextlib.contextmanager
def turn(wanted: bool = True) -> Iterator[Callable[..., None]]:
    """Load models while no other process of the node does, so that beside the masters there is one more copy at most.

    Args:
        wanted: False shares nothing and waits for nobody.

    Yields:
        ``share(*modules)``: puts frozen parameters that are on the host into a master, or takes those of an equal one.
        Buffers, and parameters that take a gradient, stay the process's own, and everything does where the node has no
        such memory, which is logged.
    """
    if not wanted:
        yield lambda *modules: None
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_alone())
        except OSError as error:
            _refused(f"no turn among the processes of this node: {error}")
            yield lambda *modules: None
            return
        yield _share


def unshare(module: nn.Module, names: Collection[str] | None = None) -> None:
    """Give parameters that lie in a master memory of this process, before they are written to.

    Args:
        module: has them.
        names: of those that are written to; None is all.
    """
    for name, parameter in module.named_parameters():
        if (names is None or name in names) and is_shared(parameter):
            parameter.data = parameter.data.clone()


def is_shared(tensor: Tensor) -> bool:
    """Whether a tensor lies in a master."""
    if not _open or tensor.device.type != "cpu":
        return False
    place = tensor.data_ptr()
    return any(master.address <= place < master.address + master.size for master in _open.values())


class _Master:
    """A mapping, kept as long as the process lives: others may look for it at any time.

    Args:
        file: closed here; a mapping of Python has one of its own.
        size: of it, bytes.
    """

    def __init__(self, file: int, size: int) -> None:
        import torch

        self.size = size
        # A page that is pinned is one that may be written to: of a private mapping each process would get its own.
        flags = mmap.MAP_SHARED if torch.accelerator.is_available() else mmap.MAP_PRIVATE
        try:
            self.bytes = torch.frombuffer(mmap.mmap(file, size, flags=flags), dtype=torch.uint8)
        finally:
            os.close(file)
        self.address = self.bytes.data_ptr()
        if torch.accelerator.is_available():
            _pin(self.address, size)


#: Digest -> what this process has mapped.
_open: dict[str, _Master] = {}


def _share(*modules: nn.Module) -> None:
    for module in modules:
        parameters = {name: each for name, each in module.named_parameters() if _sharable(each)}
        if parameters:
            try:
                _move(parameters, type(module).__name__)
            except (OSError, ValueError, AttributeError) as error:
                # Also where the system knows no such files.
                _refused(f"{type(error).__name__}: {error}")
    # What the weights lay in before: the allocator keeps it otherwise.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _move(parameters: Mapping[str, Tensor], what: str) -> None:
    starts, size = {}, 0
    for name, tensor in parameters.items():
        starts[name] = size
        size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    key = _digest(parameters)
    places = {name: slice(start, start + parameters[name].nbytes) for name, start in starts.items()}
    master = _open.get(key)
    if master is None:
        file = _find(key, size)
        written = file is None
        if file is None:
            file = _write(key, size, parameters, places)
        master = _open[key] = _Master(file, size)
        logger.info("%s: %.2f GiB of host memory %s", what, size / 2**30, "shared" if written else "of another process")
    if not all(_flat(tensor).equal(master.bytes[places[name]]) for name, tensor in parameters.items()):
        # As good as impossible, and yet no reason to compute with other weights.
        _refused(f"{what} has other weights than the master of its name")
        return
    for name, tensor in parameters.items():
        numbers = master.bytes[places[name]].view(tensor.dtype)
        tensor.data = numbers.as_strided(tensor.shape, tensor.stride())


def _write(key: str, size: int, parameters: Mapping[str, Tensor], places: Mapping[str, slice]) -> int:
    """A file with the bytes of parameters."""
    import torch

    file = os.memfd_create(_NAME + key)
    try:
        os.ftruncate(file, size)
        target = torch.frombuffer(mmap.mmap(file, size, flags=mmap.MAP_SHARED), dtype=torch.uint8)
        for name, tensor in parameters.items():
            target[places[name]] = _flat(tensor)
    except BaseException:
        os.close(file)
        raise
    return file


def _find(key: str, size: int) -> int | None:
    """The file of that name that another process of this user has open. Names are given to files that are being written
    too, but only by whoever has the turn."""
    link = f"/memfd:{_NAME}{key} (deleted)"
    for process in os.scandir("/proc"):
        # Any of them may end meanwhile, and those in a sandbox cannot be looked into.
        with contextlib.suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == os.getuid():
                for opened in os.scandir(f"/proc/{process.name}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(opened.path) == link:
                            file = os.open(opened.path, os.O_RDWR | os.O_CLOEXEC)
                            if os.fstat(file).st_size == size:
                                return file
                            os.close(file)
    return None


def _digest(parameters: Mapping[str, Tensor]) -> str:
    """Of names, shapes and dtypes, and of some of the bytes."""
    found = hashlib.sha256()
    for name, tensor in parameters.items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype}\n".encode())
        some = _flat(tensor)[:: max(1, tensor.nbytes // _SAMPLED)]
        found.update(some.contiguous().numpy().tobytes())
    return found.hexdigest()


def _sharable(tensor: Tensor) -> bool:
    if tensor.requires_grad or tensor.device.type != "cpu" or tensor.numel() == 0 or is_shared(tensor):
        return False
    import torch

    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _flat(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in the order of memory."""
    import torch

    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _pin(address: int, size: int) -> None:
    """Pages of a mapping, so that an accelerator copies from them by itself."""
    import torch

    try:
        runtime: Any = torch.cuda.cudart()
        code = runtime.cudaHostRegister(address, size, 0)
        if code != runtime.cudaError.success:
            raise RuntimeError(f"cudaHostRegister says {code}")
    except (RuntimeError, AssertionError, AttributeError) as error:
        # The host may allow less pinned memory than it has, and other accelerators call this otherwise.
        logger.warning("shared weights travel from memory that is not pinned: %s", error)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """The lock of this user's processes on the node; the kernel takes it from a process that dies.

    Raises:
        OSError: it cannot be had, or not in time.
    """
    path = os.path.join(tempfile.gettempdir(), f"verl_uae-{os.getuid()}.lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        end = time.monotonic() + PATIENCE_S
        with saying(f"another process of this node, which loads its models ({path})"):
            while not _locked(file):
                if time.monotonic() > end:
                    raise TimeoutError(f"another process has had {path} for {PATIENCE_S:.0f} s")
                time.sleep(_POLL_S)
        try:
            yield
        finally:
            # By name: a process that was forked meanwhile has the lock too.
            fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@functools.cache
def _refused(why: str) -> None:
    """Say once that nothing is shared."""
    logger.warning("frozen weights are in memory of this process alone: %s", why)
