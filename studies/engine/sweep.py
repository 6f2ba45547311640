"""Sweeping: what killed processes leave behind, removed where nobody can still be at it.

    <store>/<key>.<random>.tmp       a make that was killed: swept when its key's lock is free, since who makes holds it
    <study>/cells/.<name>.<random>   a record that was never renamed into place: swept after a minute
    <study>/tune*, groups/*          Ray's bookkeeping of drivers that died
"""

import shutil
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from trainables.stages import Store

OLD, DAY = 60.0, 86400.0                # seconds


def sweep_store(store: Store) -> list[str]:
    """Remove what is left of makes whose processes are dead; the names of what is gone."""
    gone = []
    for path in sorted(store.folder.glob("*.tmp")):
        lock = FileLock(store.folder / f"{path.name.partition('.')[0]}.lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):       # somebody is at it; or the folder is not ours to write
            continue
        try:
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path.name)
        finally:
            lock.release()
    return gone


def sweep_study(folder: Path) -> None:
    """Remove what dead drivers of a study left; only for who holds its lock.  Others may be helping it to search."""
    shutil.rmtree(folder / "tune", ignore_errors=True)
    for path in [*folder.glob("tune-*"), *folder.glob("groups/*")]:
        if time.time() - path.stat().st_mtime > DAY or path.parent.name == "groups" and _dead(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob("cells/.*"), *folder.glob("stages/.*")]:
        if time.time() - path.stat().st_mtime > OLD:
            path.unlink(missing_ok=True)
    for mark in folder.glob("stop/.*"):
        if time.time() - mark.stat().st_mtime > OLD:
            mark.unlink(missing_ok=True)


def _dead(name: str) -> bool:
    """Whether a group's driver, host-pid, was a process of this machine and is gone."""
    host, pid, _ = name.rsplit("-", 2)
    return host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
