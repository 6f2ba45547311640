"""Where searches are remembered: an Optuna storage, and the turns that drivers take at it.

    sqlite:////abs/optuna.db, a path ending in .db        one machine; the default there
    postgresql://user@host/name                           several hosts
    a path ending in .journal                             several hosts through a network file system, where SQLite's
                                                          locks do not hold; the default on a cluster

Optuna's own storages keep two writers from spoiling one record; they do not keep two drivers from both asking for the
last trial of a budget.  `turn()` does: a file lock beside a file, an advisory lock inside PostgreSQL.

A storage that goes away while it is in use raises one of LOST; `away` says so, and what to do.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import SQLAlchemyError

from studies.engine.halt import Halt
from studies.engine.study import BadInput
from studies.engine.tracking import knock, shown

JOURNAL = ".journal"
LOST = (StorageInternalError, SQLAlchemyError)


def storage_url(out: Path, several_hosts: bool = False) -> str:
    """OPTUNA_STORAGE, or the file in the output folder that is there, or that this place wants."""
    named = os.environ.get("OPTUNA_STORAGE")
    if named:
        return named if "://" in named or named.endswith(JOURNAL) else f"sqlite:///{Path(named).absolute()}"
    journal, database = out / f"optuna{JOURNAL}", out / "optuna.db"
    wanted = journal if journal.exists() or several_hosts and not database.exists() else database
    return str(wanted) if wanted == journal else f"sqlite:///{database}"


class Memory:
    """An open Optuna storage.   BadInput: it cannot be opened"""

    def __init__(self, url: str):
        self.url = url
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        try:
            self.storage: BaseStorage = _open(url)
        except Exception as error:          # SQLAlchemy's, a driver's, the file system's
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise BadInput(f"the search storage {shown(url)} cannot be opened: {reason[:300]}\n"
                           "OPTUNA_STORAGE names it; unset, searches are remembered in --out") from None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Alone among all drivers that share this storage, on any host."""
        if isinstance(self.storage, RDBStorage) and self.storage.engine.dialect.name == "postgresql":
            from sqlalchemy import text

            key = int.from_bytes(hashlib.sha256(b"palimpsest search").digest()[:7])
            with self.storage.engine.connect() as connection:       # the lock goes with the connection
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
                try:
                    yield
                finally:
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
        elif (path := _file(self.url)) is not None:
            with FileLock(f"{path}.turn"):                          # goes with the process
                yield
        else:
            yield                                                   # another database: a budget may be overshot by one

    def has(self, name: str) -> bool:
        """Whether there is a study of this name."""
        try:
            self.storage.get_study_id_from_name(name)
        except KeyError:
            return False
        return True

    def studies(self) -> dict[str, dict[str, Any]]:
        """Name -> user attributes, of every study in the storage."""
        return {found.study_name: self.storage.get_study_user_attrs(found._study_id)
                for found in self.storage.get_all_studies()}

    def load(self, name: str) -> optuna.Study:
        """A study that exists.   KeyError"""
        return optuna.load_study(study_name=name, storage=self.storage)

    def close(self) -> None:
        """Let go of connections."""
        if isinstance(self.storage, RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()


def away(url: str, error: BaseException) -> Halt:
    """What to say of a storage that was there and is not."""
    return Halt(f"the search storage {shown(url)} does not answer any more: {why(error)}.  What ran has its records "
                "in the ledger; once the storage is back, the same command continues")


def why(error: BaseException) -> str:
    """The first line of what a storage's error goes back to."""
    cause = error.__cause__ or error
    return (next(iter(str(cause).splitlines()), "") or type(cause).__name__)[:300]


def _open(url: str) -> BaseStorage:
    path = _file(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if url.endswith(JOURNAL):
        assert path is not None
        lock = JournalFileSymlinkLock(str(path), grace_period=10)    # of a driver that was killed while it held it
        _end_torn_line(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    if url.startswith(("postgresql", "postgres")):
        knock_database(url)
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else
                      {"pool_pre_ping": True})


def knock_database(url: str) -> None:
    """A dead server is said at once.   BadInput"""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.hostname:
        knock(f"http://{parts.hostname}:{parts.port or 5432}")


def _file(url: str) -> Path | None:
    """The file behind a URL, if there is one."""
    if url.endswith(JOURNAL):
        return Path(url).absolute()
    return Path(url.removeprefix("sqlite:///")).absolute() if url.startswith("sqlite:///") else None


def _end_torn_line(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut off what a killed writer began: Optuna cannot read past it."""
    if not path.exists() or not path.stat().st_size:
        return
    lock.acquire()
    try:
        with open(path, "rb+") as file:
            data = file.read()
            if not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)
    finally:
        lock.release()
