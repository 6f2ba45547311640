"""MLflow: experiment = study, parent run = the study, one child run per cell; fed from the outbox, never from a trial.

    worker -> outbox/<key>.jsonl -> Shipper (a thread of the driver) -> log_batch -> any tracking server

Exactly once: a run is looked for by its key before it is made, metrics carry the time and step that the file says, and
a replay of the same record changes nothing.  A server that is down is a backlog, never a failed cell: what was shipped
is noted per server, and the next command ships the rest.
"""

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from studies.engine.ledger import Ledger, Outbox, Record, read_from
from studies.engine.plan import Plan
from studies.engine.provenance import Code
from studies.engine.study import BadInput

LONGEST_VALUE = 500                     # characters of a parameter; older servers refuse longer ones
STATUS = {"done": "FINISHED", "failed": "FAILED", "diverged": "FAILED", "stopped": "KILLED"}
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
    """One study's experiment on one server.  BadInput when the server does not answer."""

    def __init__(self, study: str, out: Path):
        self.uri = tracking_uri(out)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")    # the default is 246 s for a dead server
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        knock(self.uri)
        import logging

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow import MlflowClient
        try:
            self.client = MlflowClient(tracking_uri=self.uri)
            found = self.client.get_experiment_by_name(study)
            place = None if os.environ.get("MLFLOW_TRACKING_URI") else (out / "artifacts").absolute().as_uri()
            self.experiment = found.experiment_id if found else self.client.create_experiment(study, place, TAGS)
            self.runs = dict(self._find_runs())
            parent = self.runs.get(PARENT) or self._create(PARENT, study, {"kind": "study"})
            self.runs[PARENT] = parent
        except Exception as error:      # the client raises its own, requests', urllib3's and SQLAlchemy's
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise BadInput(f"the tracking server {shown(self.uri)} does not work: "
                           f"{reason.replace(self.uri, shown(self.uri))[:300]}\n"
                           "MLFLOW_TRACKING_URI names it; unset, the study records into a file in --out") from None

    def _find_runs(self) -> Iterator[tuple[str, str]]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            for run in page:
                if "trial_key" in run.data.tags:
                    yield run.data.tags["trial_key"], run.info.run_id
            token = page.token
            if not token:
                return

    def _create(self, key: str, name: str, tags: dict[str, str]) -> str:
        return self.client.create_run(self.experiment, run_name=name, tags=tags | {"trial_key": key}).info.run_id

    def run_id(self, key: str, name: str) -> str:
        """The cell's run: found, or made under the parent."""
        if key not in self.runs:
            self.runs[key] = self._create(key, name, {"kind": "cell", "mlflow.parentRunId": self.runs[PARENT]})
        return self.runs[key]

    def ship(self, key: str, lines: list[Record]) -> None:
        """Send one outbox's lines.  Sending them again changes nothing."""
        from mlflow.entities import Metric

        stage = key.removeprefix("stage-") if key.startswith("stage-") else None
        name = next((line["name"] for line in lines if line["kind"] == "start" and "name" in line), key)
        run = self.runs[PARENT] if stage else self.run_id(key, name)
        prefix = f"{stage}/" if stage else ""
        points = [Metric(_word(prefix + metric), value, line["t"], line["step"])
                  for line in lines if line["kind"] == "metrics" for metric, value in line["metrics"].items()]
        points += [Metric(_word(metric), value, line["t"], 0)
                   for line in lines if line["kind"] == "end" for metric, value in line.get("metrics", {}).items()]
        for line in lines:
            if line["kind"] == "start" and not stage:
                self._start(run, line)
            elif line["kind"] == "text":
                self.client.log_text(run, line["text"], line["name"])
        for first in range(0, len(points), 1000):
            self.client.log_batch(run, metrics=points[first:first + 1000])
        for line in lines:
            if line["kind"] == "end" and not stage:
                self._end(run, line)

    def _start(self, run: str, line: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        params = [Param(_word(path), str(value)[:LONGEST_VALUE]) for path, value in line.get("params", {}).items()]
        for first in range(0, len(params), 100):
            self.client.log_batch(run, params=params[first:first + 100])
        tags = [RunTag(name, str(value)[:5000]) for name, value in line.get("tags", {}).items()]
        for first in range(0, len(tags), 100):
            self.client.log_batch(run, tags=tags[first:first + 100])
        if data := line.get("data"):
            dataset = Dataset(name=data["name"], digest=data["digest"], source_type="palimpsest",
                              source=json.dumps(data["config"]))
            self.client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        self._artifacts(run, line)
        self.client.update_run(run, status="RUNNING")

    def _end(self, run: str, line: Record) -> None:
        if line.get("reason"):
            self.client.set_tag(run, "reason", line["reason"][:5000])
        self.client.set_tag(run, "outcome", line["status"])
        self._artifacts(run, line)
        self.client.set_terminated(run, STATUS[line["status"]], end_time=line["t"])

    def _artifacts(self, run: str, line: Record) -> None:
        for name, text in line.get("texts", {}).items():
            if text:
                self.client.log_text(run, text, name)
        for path in line.get("files", []):
            if Path(path).exists():
                self.client.log_artifact(run, path, artifact_path="samples")

    def settle(self, alive: set[str]) -> None:
        """End the runs that a dead driver left RUNNING, but for the keys that are about to continue."""
        running = self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'", max_results=1000)
        for run in running:
            if run.data.tags.get("trial_key") not in alive:
                self.client.set_terminated(run.info.run_id, "KILLED")


class Shipper(threading.Thread):
    """Drains the outboxes now and then; `close` drains what is left."""

    def __init__(self, tracking: Tracking, outboxes: Path, every: float = 2.0):
        super().__init__(name="shipper", daemon=True)
        self.tracking, self.outboxes, self.every = tracking, outboxes, every
        self.over, self.failures, self.problem = threading.Event(), 0, ""
        self.one_at_a_time = threading.Lock()
        server = hashlib.sha256(tracking.uri.encode()).hexdigest()[:8]
        self.state = outboxes / f".shipped-{server}.json"
        self.shipped: dict[str, dict[str, Any]] = {}
        if self.state.exists():
            past = json.loads(self.state.read_text(encoding="utf-8"))
            # A database that was deleted, or restored from last week, has forgotten: then everything is sent again.
            self.shipped = {key: entry for key, entry in past.items()
                            if entry["run"] in (tracking.runs.get(key), tracking.runs[PARENT])}

    def run(self) -> None:
        while not self.over.wait(min(60.0, self.every * 2 ** min(self.failures, 5))):
            self.drain()

    def drain(self) -> bool:
        """Ship what is new; whether nothing is left."""
        try:
            for path in sorted(self.outboxes.glob("*.jsonl")):
                with self.one_at_a_time:
                    self._ship(path)
        except Exception as error:      # a server that is away: the outbox waits for it
            self.failures += 1
            self.problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
            return False
        self.failures, self.problem = 0, ""
        return True

    def _ship(self, path: Path) -> None:
        key = path.stem
        offset = self.shipped.get(key, {}).get("offset", 0)
        if path.stat().st_size <= offset:
            return
        lines, end = read_from(path, offset)
        if lines:
            self.tracking.ship(key, lines)
        run = self.tracking.runs[PARENT] if key.startswith("stage-") else self.tracking.runs[key]
        self.shipped[key] = {"offset": end, "run": run}
        beside = self.state.with_suffix(".tmp")
        beside.write_text(json.dumps(self.shipped), encoding="utf-8")
        os.replace(beside, self.state)

    def close(self) -> bool:
        """Stop the thread and ship the rest; whether all of it went."""
        self.over.set()
        if self.is_alive():
            self.join(60)
        return self.drain()


def parent_story(ledger: Ledger, plan: Plan, source: Code) -> Outbox:
    """The study's own outbox, begun: what the parent run says."""
    story = Outbox(ledger.outbox(PARENT))
    tags = {"question": plan.study.question, "expectation": plan.study.expectation, "scale": plan.scale,
            "data": plan.data, "base": plan.base, "arms": ", ".join(plan.arms), "commit": source.commit,
            "dirty": str(bool(source.diff)), "mlflow.source.git.commit": source.commit,
            "mlflow.source.name": f"studies/{plan.study.name}.py", "mlflow.note.content": "\n".join(plan.lines())}
    story.start(key=PARENT, name=plan.study.name, tags=tags,
                texts={"plan.md": "\n".join(plan.lines()), "diff.patch": source.diff})
    return story


def run_ids(outboxes: Path, out: Path) -> dict[str, str]:
    """Key -> MLflow run id, as far as is known without asking the server."""
    server = hashlib.sha256(tracking_uri(out).encode()).hexdigest()[:8]
    state = outboxes / f".shipped-{server}.json"
    return {key: entry["run"] for key, entry in json.loads(state.read_text()).items()} if state.exists() else {}


def _word(name: str) -> str:
    """A name as MLflow accepts it."""
    return re.sub(r"[^\w\-./ :]", "_", name)[:250]
