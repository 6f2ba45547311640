"""What a command will write at its end, or hours from now on another node, tried before it begins.

    folder("--out", results)          a file is made there, and removed
    file("--json", outcome.json)      it is opened where it is, and left as it was
    store("--store", "s3://b/stages") opened; a few bytes are written, read and removed

Each "no" is one sentence with the flag, the place and the reason.
"""

import functools
import os
import uuid
from pathlib import Path

import fsspec

from studies.engine.study import BadInput
from studies.engine.tracking import shown

HERE = b"here"


def folder(flag: str, place: Path) -> None:
    """BadInput: nothing can be written into the folder, which is made where it is not there."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / f".writable-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{flag}: cannot write into {place}: {error.strerror}") from None


def file(flag: str, place: Path) -> None:
    """BadInput: the file cannot be written.  One that is there stays as it is; of one that is not, the folder stays."""
    try:
        if place.is_dir():
            raise BadInput(f"{flag}: {place} is a folder; name a file")
        if place.is_file():
            os.close(os.open(place, os.O_WRONLY | os.O_APPEND))
        elif not place.exists():        # devices and pipes are taken at their word
            target = Path(os.path.realpath(place))                  # a link may point to what is to come
            target.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            target.unlink()
    except OSError as error:
        raise BadInput(f"{flag}: cannot write {place}: {error.strerror}") from None


def store(flag: str, url: str, read_only: bool = False) -> None:
    """BadInput: the store, a folder or a URL, cannot keep what is made.   read_only: nor say what it has"""
    if "://" in url and not url.startswith("file://"):
        _answers(flag, url, read_only)
    elif not read_only:
        folder(flag, Path(url.removeprefix("file://")).absolute())


@functools.cache                        # a yes, once a command: it is asked for every wave of seeds
def _answers(flag: str, url: str, read_only: bool) -> None:
    try:
        files, path = fsspec.core.url_to_fs(url)
        if read_only:
            files.exists(path)
            return
        name = f"{path.rstrip('/')}/.writable-{uuid.uuid4().hex}"
        try:
            files.pipe_file(name, HERE)
        except FileNotFoundError:       # a file system has folders, an object storage none
            files.makedirs(path, exist_ok=True)
            files.pipe_file(name, HERE)
        same = files.cat_file(name) == HERE
        files.rm_file(name)
    except Exception as error:          # each file system's own, and a package that is not installed
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise BadInput(f"{flag}: {shown(url)} cannot be used: {_safe(reason, url)[:300]}") from None
    if not same:
        raise BadInput(f"{flag}: {shown(url)} cannot be used: it gives back something else than it was given")


def _safe(reason: str, url: str) -> str:
    """Without the secrets that the URL may hold."""
    secret = url.partition("://")[2].rpartition("@")[0]
    return reason.replace(url, shown(url)).replace(secret, "…") if secret else reason.replace(url, shown(url))
