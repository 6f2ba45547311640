"""MLflow: experiment = study, parent run = the study, one child run per cell and per shared stage.

What is sent comes from the outboxes (shipping.py), never from a trial, and sent again changes nothing: metrics carry
the time and the step that the file says.  A command insists once that the server answers; from then on one that is down
is a backlog, never a failed cell, and never the end of a study.

MLflow cannot take a point back.  Points past the checkpoint that a resumed cell repeats are the same to the last digit
on CPUs; where they differ, what was not shipped yet is superseded, and what was shipped stays the one point of its step
(the outbox, and with it the report, has the new one).
"""

import contextlib
import functools
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from studies.engine.ledger import Ledger, Outbox, Record
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
    try:
        parts = urlsplit(uri)
    except ValueError:                  # a host such as [half an address
        return f"{uri.partition('://')[0]}://…"
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, parts.path, "", "")) if place else uri.partition("?")[0]


def knock(uri: str) -> None:
    """Whether something listens where the URI points; the client would take minutes to say so.   BadInput"""
    try:
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https"):
            return
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


def _word(name: str) -> str:
    """A name as MLflow accepts it."""
    return re.sub(r"[^\w\-./ :]", "_", name)[:250]
