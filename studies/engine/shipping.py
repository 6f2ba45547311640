"""From the outboxes to the tracking server, by a thread of the driver; exactly once.

    worker -> outbox/<key>.jsonl -> Shipper -> Tracking.ship -> any tracking server
                                      |
                                      +-- .shipped-<server>.jsonl    a journal: how far, into which run

The journal knows each key's run, and where it cannot be trusted the server is asked for the run by its key before one
is made.  A server that is down is a backlog: per server, the next command ships the rest.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
import uuid
from pathlib import Path

from studies.engine.ledger import Record, curves, read_from
from studies.engine.tracking import Tracking, tracking_uri


class Journal:
    """What was shipped to one server, in lines that are appended; a line torn by a kill is as if it was not there.

    It is trusted while the parent run wears the token that was written here last; a server that has forgotten (deleted,
    restored from last week) does not, and then every run is asked for and everything is sent again.  A backup that was
    made under this very token, and restored by somebody who did not take the token off (cluster/mlflow/restore.sh
    does), shows when a run is missing.
    """

    def __init__(self, folder: Path, uri: str):
        self.path = folder / f".shipped-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.jsonl"
        self.offsets: dict[str, int] = {}
        self.runs: dict[str, str] = {}
        self.begun: set[str] = set()             # keys whose run was about to be made
        self.closed: set[str] = set()            # keys whose story has an end that was shipped
        self.token = ""
        self.lines = read_from(self.path, 0)[0] if self.path.exists() else []
        for line in self.lines:
            self._take(line)

    def _take(self, line: Record) -> None:
        if "token" in line:
            self.token = line["token"]
        elif "begun" in line:
            self.begun.add(line["begun"])
        else:
            key = line["key"]
            self.offsets[key], self.runs[key] = line["offset"], line["run"]
            (self.closed.add if line["closed"] else self.closed.discard)(key)

    def add(self, *lines: Record) -> None:
        for line in lines:
            self._take(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def shipped(self, key: str, offset: int, run: str, closed: bool) -> None:
        self.add({"key": key, "offset": offset, "run": run, "closed": closed})

    def compact(self) -> None:
        """Make it short again, for whoever leads the study: a line that another process adds meanwhile is lost."""
        if len(self.lines) <= 2 * len(self.runs) + 100:
            return
        beside = self.path.with_suffix(".tmp")
        lines = [*({"key": key, "offset": offset, "run": self.runs[key], "closed": key in self.closed}
                   for key, offset in self.offsets.items()),
                 *({"begun": key} for key in self.begun - self.runs.keys()), {"token": self.token}]
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(beside, self.path)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self.offsets, self.runs, self.begun, self.closed, self.token = {}, {}, set(), set(), ""


class Shipper(threading.Thread):
    """Drains the outboxes now and then; `close` drains what is left."""

    EVERYTHING = 60.0                    # seconds between two looks at stories that have ended

    def __init__(self, tracking: Tracking, outboxes: Path, every: float = 2.0):
        super().__init__(name="shipper", daemon=True)
        self.tracking, self.outboxes, self.every = tracking, outboxes, every
        self.over, self.failures, self.problem = threading.Event(), 0, ""
        self.one_at_a_time = threading.Lock()
        outboxes.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(outboxes, tracking.uri)
        self.journal.compact()
        self.trusted, self.looked = False, 0.0

    def run(self) -> None:
        while not self.over.wait(min(60.0, self.every * 2 ** min(self.failures, 5))):
            self.drain(everything=time.monotonic() - self.looked > self.EVERYTHING)

    def drain(self, everything: bool = True) -> bool:
        """Ship what is new; whether nothing is left.  Stories that have ended are looked at where `everything` is."""
        try:
            try:
                self._drain(everything)
            except Exception as error:
                if not _missing(error):
                    raise
                with self.one_at_a_time:
                    self._forget()      # a database that was restored: its runs are not those that we know
                self._drain(everything=True)
        except Exception as error:      # a server that is away: the outbox waits for it
            self.failures += 1
            self.problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
            return False
        self.failures, self.problem = 0, ""
        return True

    def _drain(self, everything: bool) -> None:
        with self.one_at_a_time:
            self._trust()
        names = sorted(name for name in os.listdir(self.outboxes) if name.endswith(".jsonl") and name[0] != ".")
        for name in names:
            if everything or name[:-6] not in self.journal.closed:
                with self.one_at_a_time:
                    self._ship(self.outboxes / name)
        if everything:
            self.looked = time.monotonic()

    def _trust(self) -> None:
        """Where a session begins and ends: is the server the one that the journal knows?"""
        if self.trusted:
            return
        tracking, journal = self.tracking, self.journal
        if journal.token and journal.token == tracking.token():
            tracking.runs = journal.runs | tracking.runs
        else:
            self._forget()
            tracking.find_all()
        self._sign()
        self.trusted = True

    def _forget(self) -> None:
        """Nothing is taken for shipped: what is there already is not changed by sending it again."""
        self.journal.forget()
        self.tracking.forget()
        self.trusted = False

    def _sign(self) -> None:
        token = uuid.uuid4().hex
        self.tracking.sign(token)
        self.journal.add({"token": token})

    def _ship(self, path: Path) -> None:
        key, journal = path.stem, self.journal
        offset = journal.offsets.get(key, 0)
        if path.stat().st_size <= offset:
            return
        lines, end = read_from(path, offset)
        if not lines:
            return
        if key not in self.tracking.runs:
            if key in journal.begun:     # maybe made, by a driver that died, or by a call whose answer was lost
                self.tracking.find(key)
            else:
                journal.add({"begun": key})
        ends = any(line.get("metrics") for line in lines if line["kind"] == "end")
        self.tracking.ship(key, lines, curves(path).keys() if ends else frozenset())
        last = next((line for line in lines[::-1] if line["kind"] in ("start", "end")), None)
        closed = key in journal.closed if last is None else last["kind"] == "end" and last["status"] != "stopped"
        journal.shipped(key, end, self.tracking.runs[key], closed)

    def close(self) -> bool:
        """Stop the thread and ship the rest; whether all of it went."""
        self.over.set()
        if self.is_alive():
            self.join(60)
        self.trusted = False             # the database may have been restored while we were at work
        whole = self.drain()
        if whole:
            with contextlib.suppress(Exception):
                self._sign()             # the server knows all until now
        return whole


def _missing(error: Exception) -> bool:
    """Whether the server says that it has no such run, or not any more."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and (
        error.error_code == "RESOURCE_DOES_NOT_EXIST" or "must be in the 'active' state" in str(error))


def run_ids(outboxes: Path, out: Path) -> dict[str, str]:
    """Key -> MLflow run id, as far as is known without asking the server."""
    return Journal(outboxes, tracking_uri(out)).runs
