"""Whose a study is: its driver's, and for a moment after a driver's death its guardian's.

    driver --- a pipe that it holds open ---> guardian, a process in a session of its own, asleep
      comes to its end            says farewell first, and the guardian leaves
      kill -9, out of memory      the pipe ends: the guardian waits until the cells are silent, ships what their
                                  outboxes have, and ends the runs as KILLED

So no run stays RUNNING behind a dead driver until somebody types the next command.  The pipe is the kernel's word: it
ends however the driver ended, and nobody else holds its other side.  Asleep the guardian is a bare interpreter; it
imports MLflow when it must.  It ships under the study's lock and lays the lock down between two tries, so a driver that
comes meanwhile waits for seconds and goes on from there.  A server that stays away gets PATIENCE, then the next
command's turn.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path

LOCK, MARK = ".driver.lock", ".guardian"                     # in the study's folder
PATIENCE = 600.0                        # seconds that a guardian tries, and no longer
SILENT, LONGEST = 3.0, 30.0             # workers outlive their driver by a moment: until nobody tells anything any more
HANDOVER = 60.0                         # seconds that a driver waits for a guardian that is at it


@contextlib.contextmanager
def leading(folder: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[bool]:
    """Lead the study in this folder; False where another driver does.  The lock goes with its process."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=1.0)        # not 0: a guardian looks, has it for a moment, and marks that it has
    except Timeout:
        if (folder / MARK).exists():
            say("the last run died; its records are being shipped to MLflow: waiting for that")
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=HANDOVER)
    try:
        if lock.is_locked:
            (folder / MARK).unlink(missing_ok=True)
        yield lock.is_locked
    finally:
        lock.release()


@contextlib.contextmanager
def standing_in(folder: Path) -> Iterator[bool]:
    """Lead for a moment, to ship, and say so: a driver that comes meanwhile waits."""
    with leading(folder) as ours:
        if ours:
            (folder / MARK).touch()
        try:
            yield ours
        finally:
            if ours:
                (folder / MARK).unlink(missing_ok=True)


class Guardian:
    """The driver's side: there as soon as this returns, and told to leave by `farewell`."""

    def __init__(self, study: str, folder: Path, out: Path):
        from studies.engine.provenance import ROOT

        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with open(folder / "guardian.log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(                 # its stdin is the pipe, and of our files it gets no other
                [sys.executable, "-P", "-m", "studies.engine.guardian", study, str(folder), str(out)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"PYTHONPATH": path})

    def farewell(self) -> None:
        """All is told: leave.  Not waited for where it does not."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.communicate(b"farewell", timeout=5)


# ---------------------------------------------------------------- the guardian's side


def wake(study: str, folder: Path, out: Path) -> None:
    """Behind a dead driver: ship, settle, leave."""
    alive, until, pause = silence(folder / "outbox"), time.monotonic() + PATIENCE, 1.0
    while time.monotonic() < until:
        with standing_in(folder) as ours:
            if not ours:
                return                   # the next driver is here, and ships what we would
            if (problem := ship(study, folder, out, alive)) == "":
                return
        print(f"{time.strftime('%H:%M:%S')} {problem}", flush=True)
        time.sleep(pause)
        pause = min(60.0, 2 * pause)


def ship(study: str, folder: Path, out: Path, alive: Set[str]) -> str:
    """Ship everything and end the runs of the dead; what is in the way, or nothing."""
    from studies.engine.shipping import Shipper
    from studies.engine.tracking import Tracking

    tracking = Tracking(study, out)
    shipper = Shipper(tracking, folder / "outbox")
    if not shipper.close():
        return shipper.problem
    tracking.settle(alive)
    return ""


def silence(outboxes: Path) -> set[str]:
    """Wait until nobody tells anything; the keys that are told of nevertheless, by drivers that help to search."""
    began = time.monotonic()
    while True:
        before = sizes(outboxes)
        time.sleep(SILENT)
        after = sizes(outboxes)
        moved = {key for key, size in after.items() if before.get(key) != size}
        if not moved or time.monotonic() - began > LONGEST:
            return moved


def sizes(outboxes: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in outboxes.glob("[!.]*.jsonl")}


if __name__ == "__main__":
    told = [signal.SIGTERM, signal.SIGINT]                   # told to all of a job: the driver says what comes of it
    for number in told:
        signal.signal(number, signal.SIG_IGN)
    farewell = sys.stdin.buffer.read()                       # returns when the pipe ends
    for number in told:
        signal.signal(number, signal.SIG_DFL)
    if not farewell:
        wake(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
