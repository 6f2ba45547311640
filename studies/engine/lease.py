"""A lease: who runs a trial of a shared search, and until when nobody else may.

    grant(owner) -> {"owner": "host:pid:since", "until": seconds}   in the trial's user attributes, renewed now and then
    holds(lease, now)                                               whether its driver may still live

On this host one can look whether the process is there; of another host's one waits until the lease has run out.
"""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

SECONDS = 120.0                         # that a trial of a driver on another host is left alone


def owner() -> str:
    """This driver, among all that ever were."""
    return f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"


def grant(to: str, seconds: float = SECONDS) -> dict[str, Any]:
    """A lease from now on; of no seconds: whoever asks next may have it."""
    return {"owner": to, "until": time.time() + seconds if seconds else 0.0}


def holds(lease: Mapping[str, Any], now: float) -> bool:
    """Whether the driver that holds the lease may still live."""
    host, pid, _ = lease["owner"].split(":")
    if host == socket.gethostname():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return now < lease["until"]
