"""What a Ray worker does: one cell, or one shared stage, from the first lookup to the record.

    Place        where work happens; nothing of it is part of a fingerprint
    attempt      a cell: outbox start -> stages -> outbox end -> ledger record, whatever happens in between
    InlineCell   the Tune trainable that does one-worker cells, one after the other in one warm process
"""

import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray import tune

from studies.engine.halt import GIVEN, disk_full, notices, peer_lost
from studies.engine.hardware import hardware
from studies.engine.ledger import Ledger, Outbox, Record
from studies.engine.plan import Cell, Shared
from studies.engine.provenance import Code
from studies.engine.study import Resources
from trainables.config import fingerprint, flat, to_dict
from trainables.stages import Code as CodeOf
from trainables.stages import Context, Store
from trainables.training.train import Diverged, Stopped

FULL = "disk full"                      # an outcome that is no record: it would be every cell's
SHOWN = 5                               # texts of a cell that its record keeps, so that a report needs nothing else


@dataclass(frozen=True)
class Place:
    """Where work happens: the study's folder, which all nodes see, and the store."""

    study: str
    scale: str
    data: str
    folder: Path
    store: str
    resources: Resources
    code: Code
    by_code: CodeOf | None = None       # results of other code are other results
    program: str = ""                   # what is typed after `python`; "": studies/<study>.py
    driver: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder)

    def open_store(self) -> Store:
        return Store(self.store, self.folder.parent / "stages" if "://" in self.store else None, self.by_code)

    def titled(self, name: str) -> str:
        """What a run is called: with the commit, where one cell has a run for each state of the code."""
        return f"{name} at {self.code.commit[:7]}" if self.by_code else name

    def context(self, record: Callable, should_stop: Callable[[], bool] = lambda: False) -> Context:
        """The context of a stage that is made in this process, which gets its threads and its device here."""
        torch.set_num_threads(self.resources.cpus)
        device = "cuda" if self.resources.gpus and torch.cuda.is_available() else "cpu"
        return Context(store=self.open_store(), record=record, should_stop=should_stop, device=torch.device(device))

    def stop(self, key: str) -> "StopMark":
        return StopMark(self.folder / "stop" / key)

    def room(self, key: str) -> "StopMark":
        """What the driver sets when one cell is to save itself and begin again elsewhere."""
        return StopMark(self.folder / "stop" / f"{key}.room")

    @property
    def notice(self) -> "StopMark":
        """What the driver sets when all that it runs is to save itself and end, to be continued by the next command."""
        return StopMark(self.folder / "stop" / f".{self.driver}")


class StopMark:
    """A file through which a driver asks a cell, wherever it runs, to save itself and end; it says why."""

    EVERY = 0.2                          # seconds between two looks

    def __init__(self, path: Path):
        self.path, self.looked, self.there = path, 0.0, False

    def set(self, reason: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(reason, encoding="utf-8")

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)

    def reason(self) -> str:
        return self.path.read_text(encoding="utf-8") if self.path.exists() else "asked to stop"

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self.there and now - self.looked > self.EVERY:
            self.looked, self.there = now, self.path.exists()
        return self.there


class GivenUp(Exception):
    """A cell that nobody can run: what it stands on could not be made, or its process keeps dying."""

    def __init__(self, reason: str, status: str = "failed"):
        super().__init__(reason)
        self.status = status


def give_up(cell: Cell, place: Place, reason: str, status: str = "failed") -> Record:
    """Record a cell whose own worker cannot.  One that has finished, whatever it looks like from here, has finished."""
    if (record := place.ledger.finished(cell.key)) is not None:
        return record

    def produce(context: Context) -> Path:
        raise GivenUp(reason, status)

    return attempt(cell, place, produce)


def attempt(cell: Cell, place: Place, produce: Callable[[Context], Path]) -> Record:
    """Do a cell and say what became of it.  `produce` returns the folder that holds metrics.json."""
    outbox, store = Outbox(place.ledger.outbox(cell.key)), place.open_store()
    own = {store.key(stage): stage for stage in cell.own()}
    found = [name for name, stage in own.items() if store.has(stage)] if outbox.found is None else outbox.found
    outbox.start(key=cell.key, name=place.titled(cell.name), params=flat(cell.trial), tags=_tags(cell, place),
                 found=found,
                 data={"name": place.data, "digest": fingerprint(cell.trial.data), "config": to_dict(cell.trial.data)},
                 texts={"config.json": json.dumps(to_dict(cell.trial), indent=1)})
    started, clock = time.time(), time.perf_counter()
    record: Record = {
        "key": cell.key, "study": place.study, "scale": place.scale, "data": place.data, "arm": cell.arm,
        "seed": cell.seed, "split": cell.split, "attempt": outbox.attempt,
        "commit": place.code.commit, "dirty": bool(place.code.diff),
        "host": socket.gethostname(), "trial": to_dict(cell.trial),
        "stages": list(map(store.key, cell.stages())),
        "reused": {name: store.seconds(own[name]) for name in found if name in own},
        "status": "done", "reason": "", "metrics": {}, "samples": [], "real": []}
    trace, files, stop, notice, room = "", [], place.stop(cell.key), place.notice, place.room(cell.key)
    room.clear()
    try:
        context = place.context(outbox.record, lambda: GIVEN() or notice() or room() or stop())
        record["metrics"] = json.loads((produce(context) / "metrics.json").read_text(encoding="utf-8"))
        record["own_seconds"] = sum(map(store.seconds, own.values()))   # whoever made them, whenever: see search.py
        samples = context.get(cell.samples()) / "samples.jsonl"
        record["samples"] = first_texts(samples)
        record["real"] = first_texts(context.get(cell.trial.data) / "test.jsonl")
        files.append(str(_keep(samples, place.folder / "samples" / f"{cell.key}.jsonl")))
    except GivenUp as error:
        record |= {"status": error.status, "reason": str(error)}
    except Diverged as error:
        record |= {"status": "diverged", "reason": one_line(error)}
    except Stopped as error:
        if stop.path.exists():
            record |= {"status": "pruned", "reason": f"stopped after step {error.step}: {stop.reason()}"}
        else:
            record |= {"status": "stopped", "reason": f"told to make room after step {error.step}"}
    except Exception as error:           # a cell's failure is a row of the table, never the study's
        if disk_full(error) or peer_lost(error):
            raise                        # but for these: the first would be every cell's, the second its group's
        record |= {"status": "failed", "reason": one_line(error)}
        trace = traceback.format_exc()
    seconds = outbox.spent + time.perf_counter() - clock
    record |= {"started": started, "ended": time.time(), "seconds": seconds, "hardware": hardware()}
    record |= cost(seconds, place.resources)
    outbox.end(record["status"], seconds, reason=record["reason"], metrics=record["metrics"],
               texts={"traceback.txt": trace}, files=files)
    outbox.close()
    if record["status"] == "stopped":    # nobody's fault and no end: it is run again, from its checkpoint
        return record
    place.ledger.write_cell(record)      # last: what is not in the ledger will be done again, and found made
    return record


def make_stage(shared: Shared, place: Place, produce: Callable[[Context], object] | None = None) -> Record:
    """Make a shared stage (through `produce`, where a group does it); its curves go to its own outbox."""
    outbox = Outbox(place.ledger.outbox(f"stage-{shared.key}"))
    outbox.start(key=shared.key, name=place.titled(shared.name), params=flat(shared.stage),
                 tags=stage_tags(shared, place),
                 texts={"config.json": json.dumps(to_dict(shared.stage), indent=1)})
    clock, status, reason, trace, notice = time.perf_counter(), "done", "", "", place.notice
    try:
        with notices():
            context = place.context(outbox.record, lambda: GIVEN() or notice())
            produce(context) if produce else context.get(shared.stage)
    except Diverged as error:
        status, reason = "diverged", one_line(error)
    except Stopped as error:
        status, reason = "stopped", f"told to make room after step {error.step}"
    except Exception as error:
        if disk_full(error) or peer_lost(error):
            raise
        status, reason, trace = "failed", one_line(error), traceback.format_exc()
    seconds = outbox.spent + time.perf_counter() - clock
    outbox.end(status, seconds, reason=reason, texts={"traceback.txt": trace})
    outbox.close()
    record = {"key": shared.key, "kind": type(shared.stage).__name__, "status": status, "reason": reason,
              "seconds": seconds, "hardware": hardware()}
    record |= cost(seconds, Resources(cpus=place.resources.cpus, gpus=place.resources.gpus))
    if status != "stopped":
        place.ledger.write_stage(record)
    return record


class InlineCell(tune.Trainable):
    """One-worker cells in one process that stays warm: Tune reuses the actor, so the next cell starts at once."""

    def setup(self, config: dict, cells: dict[str, Cell] | None = None, place: Place | None = None) -> None:
        assert cells is not None and place is not None
        self.cells, self.place, self.cell, self.spoilt = cells, place, chosen(config, cells), False

    def reset_config(self, new_config: dict) -> bool:
        self.cell = chosen(new_config, self.cells)
        return not self.spoilt           # a new process takes the next cell, maybe on another node

    def step(self) -> dict[str, Any]:
        try:
            with notices() as given:
                record = attempt(self.cell, self.place, lambda context: context.get(self.cell.scored()))
        except Exception as error:
            if not disk_full(error):
                raise
            return {"status": FULL, "reason": one_line(error), "done": True}
        self.spoilt = given() or "CUDA error" in record["reason"]
        return {"status": record["status"], "record": json.dumps(record), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: stages keep what is worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: running the cell again is the resume."""


def told(result: dict[str, Any], cell: Cell, place: Place) -> Record | None:
    """The record of a cell that has come to an end: its worker sends it along, since a file system of many nodes may
    show it later.  Taken out of the result, which Tune keeps."""
    sent = result.pop("record", None)
    return json.loads(sent) if sent else place.ledger.cell(cell.key)


def chosen(config: dict, cells: dict[str, Cell]) -> Cell:
    """The cell that Tune's config names: one of the plan's, or one that a search has just made up."""
    return config["made"] if "made" in config else cells[config["cell"]]


def cost(seconds: float, resources: Resources) -> dict[str, float]:
    """CPU and GPU hours that a trial held."""
    hours = seconds / 3600 * resources.workers
    return {"cpu_hours": hours * resources.cpus, "gpu_hours": hours * resources.gpus}


def one_line(error: BaseException) -> str:
    """An exception as a table's note."""
    words = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {words[:300]}" if words else name


def first_texts(path: Path) -> list[str]:
    """The first few texts of a JSON lines file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(SHOWN), strict=False)]


def stage_tags(shared: Shared, place: Place) -> dict[str, str]:
    return {"stage": type(shared.stage).__name__, "stage_key": shared.key, "scale": place.scale, "study": place.study,
            "arms": ", ".join(dict.fromkeys(cell.arm for cell in shared.cells)), "commit": place.code.commit,
            "dirty": str(bool(place.code.diff)), "diff": place.code.digest}


def _tags(cell: Cell, place: Place) -> dict[str, str]:
    stages: dict[str, list[str]] = {}
    store = place.open_store()
    for stage in cell.stages():
        stages.setdefault(f"stage.{type(stage).__name__}", []).append(store.key(stage))
    return {"arm": cell.arm, "seed": str(cell.seed), "split": cell.split, "scale": place.scale, "data": place.data,
            "study": place.study,
            "fingerprint": fingerprint(cell.trial), "commit": place.code.commit, "dirty": str(bool(place.code.diff)),
            "diff": place.code.digest,      # the parent run has it, code/<digest>.patch
            "mlflow.source.git.commit": place.code.commit,
            "mlflow.source.name": place.program or f"studies/{place.study}.py",
            } | {name: ",".join(keys) for name, keys in stages.items()}


def _keep(samples: Path, copy: Path) -> Path:
    copy.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(samples, copy))


