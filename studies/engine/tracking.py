"""MLflow: experiment = study, parent run = the study, one child run per cell and per shared stage; fed from the outbox,
never from a trial.

    worker -> outbox/<key>.jsonl -> Shipper (a thread of the driver) -> log_batch -> any tracking server
                                      |
                                      +-- .shipped-<server>.jsonl    a journal: how far, into which run

Exactly once: the journal knows each key's run, and where it cannot be trusted the server is asked for the run by its
key before one is made; metrics carry the time and step that the file says, so a replay changes nothing.  A command
insists once that the server answers; from then on one that is down is a backlog, never a failed cell, and never the end
of a study.  Per server, the next command ships the rest.

MLflow cannot take a point back.  Points past the checkpoint that a resumed cell repeats are the same to the last digit
on CPUs; where they differ, what was not shipped yet is superseded, and what was shipped stays the one point of its step
(the outbox, and with it the report, has the new one).
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from studies.engine.ledger import Ledger, Outbox, Record, curves, read_from
from studies.engine.plan import Plan
from studies.engine.provenance import Code
from studies.engine.study import BadInput

LONGEST_VALUE = 500                     # characters of a parameter; older servers refuse longer ones
STATUS = {"done": "FINISHED", "failed": "FAILED", "diverged": "FAILED", "stopped": "KILLED", "pruned": "KILLED"}
PARENT = "study"                        # the key of the parent run
TAGS = {"mlflow.experimentKind": "custom_model_development"}      # else the UI opens on chat traces


def tracking_uri(out: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.absolute() / 'mlflow.db'}"


def shown(uri: str) -> str:
    """A tracking URI without the secrets that it may hold."""
    parts = urlsplit(uri)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, parts.path, "", "")) if place else uri.partition("?")[0]


def knock(uri: str) -> None:
    """Whether something listens where the URI points; the client would take minutes to say so.   BadInput"""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as error:
        raise BadInput(f"no tracking server answers at {shown(uri)}: {error}.  MLFLOW_TRACKING_URI names it; unset, "
                       "the study records into a file in --out") from None


class Tracking:
    """One study's experiment on one server, which is asked for nothing before something is wanted of it.

    answered: it has answered this command before
    """

    def __init__(self, study: str, out: Path, answered: bool = False):
        self.study, self.out, self.uri, self.answered = study, out, tracking_uri(out), answered
        self.runs: dict[str, str] = {}                       # key -> run id, as far as it is known

    @functools.cached_property
    def client(self) -> Any:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")    # the default is 246 s for a dead server
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        knock(self.uri)
        import logging

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    @functools.cached_property
    def experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.study)
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (self.out / "artifacts").absolute().as_uri()
        return found.experiment_id if found else self.client.create_experiment(self.study, place, TAGS)

    @property
    def parent(self) -> str:
        """The study's own run, which is made where there is none."""
        return (self.runs.get(PARENT) or self.find(PARENT)
                or self._create(PARENT, self.study, {"kind": "study"}))

    def insist(self) -> None:
        """Ask the server, once a command: who has answered may be away later.   BadInput: it does not answer"""
        if self.answered:
            return
        try:
            self.client.get_experiment(self.experiment)
            self.answered = True
        except BadInput:
            raise
        except Exception as error:      # the client raises its own, requests', urllib3's and SQLAlchemy's
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise BadInput(f"the tracking server {shown(self.uri)} does not work: "
                           f"{reason.replace(self.uri, shown(self.uri))[:300]}\n"
                           "MLFLOW_TRACKING_URI names it; unset, the study records into a file in --out") from None

    def _find_runs(self, query: str = "", most: int | None = None) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment], query, max_results=most or 1000, page_token=token)
            yield from (run for run in page if "trial_key" in run.data.tags)
            token = page.token
            if not token or most:
                return

    def forget(self) -> None:
        """What was known of the server is not true any more."""
        self.runs.clear()
        self.__dict__.pop("experiment", None)

    def token(self) -> str:
        """What `sign` wrote last."""
        return self.client.get_run(self.parent).data.tags.get("journal", "")

    def sign(self, token: str) -> None:
        self.client.set_tag(self.parent, "journal", token)

    def find_all(self) -> None:
        """Ask the server for every run."""
        self.runs |= {run.data.tags["trial_key"]: run.info.run_id for run in self._find_runs()}

    def find(self, key: str) -> str | None:
        """Ask the server for one key's run."""
        for run in self._find_runs(f"tags.trial_key = '{key}'", most=1):
            self.runs[key] = run.info.run_id
        return self.runs.get(key)

    def _create(self, key: str, name: str, tags: Mapping[str, str], began: int | None = None) -> str:
        self.runs[key] = self.client.create_run(
            self.experiment, start_time=began, run_name=name, tags={**tags, "trial_key": key}).info.run_id
        return self.runs[key]

    def ship(self, key: str, lines: list[Record], curved: Set[str] = frozenset()) -> None:
        """Send one outbox's lines to its run, which is made where it is not known.  Again changes nothing.

        curved: metrics that have a curve, whose last point is what the end says of them
        """
        from mlflow.entities import Metric, Param, RunTag

        start = [line for line in lines if line["kind"] == "start"][-1:]
        end: Record = next((line for line in lines[::-1] if line["kind"] in ("start", "end")), {"kind": "start"})
        kind = "stage" if key.startswith("stage-") else "cell"
        tags, params = {}, {}
        for line in start:
            tags |= {name: str(value)[:5000] for name, value in line.get("tags", {}).items()}
            params |= {_word(path): str(value)[:LONGEST_VALUE] for path, value in line.get("params", {}).items()}
        parent = self.parent
        if key not in self.runs:
            own = {"kind": kind, "mlflow.parentRunId": parent}
            began, name = (start[0]["t"], start[0].get("name", key)) if start else (None, key)
            self._create(key, name, dict(list(tags.items())[:90]) | own, began)
            tags = dict(list(tags.items())[90:])
        elif start and end["kind"] == "start":
            self.client.update_run(self.runs[key], status="RUNNING")
        run = self.runs[key]
        if end["kind"] == "end":
            tags |= {"outcome": end["status"], "reason": end.get("reason", "")[:5000]}
        for line in lines:
            tags |= line["tags"] if line["kind"] == "tags" else {}

        points: dict[tuple[str, int], Metric] = {}
        again: set[tuple[str, int]] = set()
        for line in lines:
            if line["kind"] in ("metrics", "again"):
                for name, value in line["metrics"].items():
                    at = (_word(name), line["step"])
                    points[at] = Metric(at[0], value, line["t"], line["step"])
                    again |= {at} if line["kind"] == "again" else set()
            elif line["kind"] == "end":
                for name, value in line.get("metrics", {}).items():
                    if name not in curved:
                        points[_word(name), 0] = Metric(_word(name), value, line["t"], 0)
        for name in {name for name, _ in again}:             # what was shipped before stays the one point of its step
            for point in self.client.get_metric_history(run, name):
                points.pop((name, point.step), None) if (name, point.step) in again else None
        rest = [Param(*each) for each in params.items()], [RunTag(*each) for each in tags.items()], [*points.values()]
        while any(rest):
            self.client.log_batch(run, params=rest[0][:100], tags=rest[1][:100], metrics=rest[2][:800])
            rest = rest[0][100:], rest[1][100:], rest[2][800:]

        for line in [*start, *(line for line in lines if line["kind"] == "end")]:
            self._artifacts(run, line)
        for line in lines:
            if line["kind"] == "text":
                self.client.log_text(run, line["text"], line["name"])
        if start and (data := start[0].get("data")):
            self._data(run, data)
        if end["kind"] == "end":
            self.client.set_terminated(run, STATUS[end["status"]], end_time=end["t"])

    def _data(self, run: str, data: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=data["name"], digest=data["digest"], source_type="palimpsest",
                          source=json.dumps(data["config"]))
        self.client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _artifacts(self, run: str, line: Record) -> None:
        for name, text in line.get("texts", {}).items():
            if text:
                self.client.log_text(run, text, name)
        for path in line.get("files", []):
            if Path(path).exists():
                self.client.log_artifact(run, path, artifact_path="samples")

    def settle(self, alive: Set[str] = frozenset()) -> None:
        """End the runs that a dead driver left RUNNING, but for the keys that are about to continue.

        A server that is away is asked again by the next command.
        """
        with contextlib.suppress(Exception):
            for run in self._find_runs("attributes.status = 'RUNNING'"):
                if run.data.tags["trial_key"] not in alive:
                    self.client.set_terminated(run.info.run_id, "KILLED")


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


def parent_story(ledger: Ledger, plan: Plan, source: Code) -> Outbox:
    """The study's own outbox, begun: what the parent run says."""
    story = Outbox(ledger.outbox(PARENT))
    tags = {"question": plan.study.question, "expectation": plan.study.expectation, "scale": plan.scale,
            "data": plan.data, "base": plan.base, "arms": ", ".join(plan.arms), "commit": source.commit,
            "dirty": str(bool(source.diff)), "mlflow.source.git.commit": source.commit,
            "mlflow.source.name": plan.study.program, "mlflow.note.content": "\n".join(plan.lines())}
    story.start(key=PARENT, name=plan.study.name, tags=tags,
                texts={"plan.md": "\n".join(plan.lines()), f"code/{source.digest}.patch": source.diff})
    return story


def run_ids(outboxes: Path, out: Path) -> dict[str, str]:
    """Key -> MLflow run id, as far as is known without asking the server."""
    return Journal(outboxes, tracking_uri(out)).runs


def _word(name: str) -> str:
    """A name as MLflow accepts it."""
    return re.sub(r"[^\w\-./ :]", "_", name)[:250]
