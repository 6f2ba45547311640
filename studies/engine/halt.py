"""What ends a study before its time without a fault of its own, and what is said then.

    peer_lost            a worker of a group is gone, and the others noticed in the middle of a collective
    Halt                 the world must be mended first (a full disk): exit code 3, the same command continues
    notices, listen      a process was told to make room (SIGTERM): work saves itself at its next step and is run again;
                         that is nobody's failure
    as_interrupt         to a driver SIGTERM is what Ctrl-C is
"""

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Halt(Exception):
    """The study cannot go on until something outside of it is mended; nothing is lost."""


def disk_full(error: BaseException | None) -> bool:
    """Whether an error is, or was caused by, a disk (or a quota) that is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded", "disk is full")):
            return True                  # safetensors, SQLite and Ray say it in words
        error = error.__cause__ or error.__context__
    return False


PEER = ("Connection closed by peer", "gloo/transport", "Connection reset by peer", "Socket Timeout", "NCCL error",
        "NCCL communicator was aborted", "ProcessGroupNCCL")


def peer_lost(error: BaseException | None) -> bool:
    """Whether a collective broke off because another worker is gone: the group's misfortune, not the cell's."""
    while error is not None:
        if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError"):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in PEER):
            return True
        error = error.__cause__
    return False


def as_interrupt(number: int, frame: Any) -> None:
    """A driver's handler of SIGTERM.  ray.init puts its own there, which ends the process at once: set it again."""
    raise KeyboardInterrupt


class Notice:
    """Whether this process was told to make room."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> bool:
        return self.event.is_set()


GIVEN = Notice()                         # to this process


def listen() -> None:
    """From now on SIGTERM is a notice.  For a process whose work is done in another thread than the main one, which
    calls this, and comes by now and then."""
    signal.signal(signal.SIGTERM, _note)


def _note(number: int, frame: Any) -> None:
    GIVEN.event.set()


@contextlib.contextmanager
def notices() -> Iterator[Notice]:
    """While work is done in here, SIGTERM is a notice; outside it means what it meant before.

    In a thread that is not the main one nothing is changed, since Python handles signals in the main thread only: the
    workers of a group `listen` instead.
    """
    if threading.current_thread() is not threading.main_thread():
        yield GIVEN
        return

    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield GIVEN
    finally:
        signal.signal(signal.SIGTERM, before)
