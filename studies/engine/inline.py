"""What a Ray worker does: one cell, or one shared stage, from the first lookup to the record.

    Place        where work happens; nothing of it is part of a fingerprint
    attempt      a cell: outbox start -> stages -> outbox end -> ledger record, whatever happens in between
    InlineCell   the Tune trainable that does one-worker cells, one after the other in one warm process
"""

import json
import shutil
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from studies.engine.ledger import Ledger, Outbox, Record
from studies.engine.plan import Cell, Shared
from studies.engine.provenance import Code
from studies.engine.study import Resources
from trainables.config import fingerprint, flat, to_dict
from trainables.stages import Context, Store, key
from trainables.training.train import Diverged

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

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder)

    def open_store(self) -> Store:
        return Store(self.store, cache=self.folder.parent / "stages" if "://" in self.store else None)

    def context(self, record: Callable) -> Context:
        """The context of a stage that is made in this process, which gets its threads and its device here."""
        torch.set_num_threads(self.resources.cpus)
        device = "cuda" if self.resources.gpus and torch.cuda.is_available() else "cpu"
        return Context(store=self.open_store(), record=record, device=torch.device(device))


class GivenUp(Exception):
    """A cell that nobody can run: what it stands on could not be made, or its process keeps dying."""

    def __init__(self, reason: str, status: str = "failed"):
        super().__init__(reason)
        self.status = status


def give_up(cell: Cell, place: Place, reason: str, status: str = "failed") -> Record:
    """Record a cell whose own worker cannot."""
    def produce(context: Context) -> Path:
        raise GivenUp(reason, status)

    return attempt(cell, place, produce)


def attempt(cell: Cell, place: Place, produce: Callable[[Context], Path]) -> Record:
    """Do a cell and say what became of it.  `produce` returns the folder that holds metrics.json."""
    outbox = Outbox(place.ledger.outbox(cell.key))
    outbox.start(key=cell.key, name=cell.name, params=flat(cell.trial), tags=_tags(cell, place),
                 data={"name": place.data, "digest": fingerprint(cell.trial.data), "config": to_dict(cell.trial.data)},
                 texts={"config.json": json.dumps(to_dict(cell.trial), indent=1), "diff.patch": place.code.diff})
    started, clock = time.time(), time.perf_counter()
    record: Record = {
        "key": cell.key, "study": place.study, "scale": place.scale, "data": place.data, "arm": cell.arm,
        "seed": cell.seed, "attempt": outbox.attempt, "commit": place.code.commit, "dirty": bool(place.code.diff),
        "host": socket.gethostname(), "trial": to_dict(cell.trial), "stages": [key(stage) for stage in cell.stages()],
        "status": "done", "reason": "", "metrics": {}, "samples": [], "real": []}
    trace, files = "", []
    try:
        context = place.context(outbox.record)
        record["metrics"] = json.loads((produce(context) / "metrics.json").read_text(encoding="utf-8"))
        samples = context.get(cell.trial.samples()) / "samples.jsonl"
        record["samples"] = first_texts(samples)
        record["real"] = first_texts(context.get(cell.trial.data) / "test.jsonl")
        files.append(str(_keep(samples, place.folder / "samples" / f"{cell.key}.jsonl")))
    except GivenUp as error:
        record |= {"status": error.status, "reason": str(error)}
    except Diverged as error:
        record |= {"status": "diverged", "reason": one_line(error)}
    except Exception as error:           # a cell's failure is a row of the table, never the study's
        record |= {"status": "failed", "reason": one_line(error)}
        trace = traceback.format_exc()
    seconds = outbox.spent + time.perf_counter() - clock
    record |= {"started": started, "ended": time.time(), "seconds": seconds} | cost(seconds, place.resources)
    outbox.end(record["status"], seconds, reason=record["reason"], metrics=record["metrics"],
               texts={"traceback.txt": trace}, files=files)
    outbox.close()
    place.ledger.write_cell(record)      # last: what is not in the ledger will be done again, and found made
    return record


def make_stage(shared: Shared, place: Place, produce: Callable[[Context], object] | None = None) -> Record:
    """Make a shared stage (through `produce`, where a group does it); its curves go to its own outbox."""
    outbox = Outbox(place.ledger.outbox(f"stage-{shared.key}"))
    outbox.start(key=shared.key, stage=True)
    clock, status, reason = time.perf_counter(), "done", ""
    try:
        context = place.context(outbox.record)
        produce(context) if produce else context.get(shared.stage)
    except Diverged as error:
        status, reason = "diverged", one_line(error)
    except Exception as error:
        status, reason = "failed", one_line(error)
        outbox.write("text", name=f"{shared.key}.traceback.txt", text=traceback.format_exc())
    seconds = outbox.spent + time.perf_counter() - clock
    outbox.end(status, seconds, reason=reason)
    outbox.close()
    record = {"key": shared.key, "kind": type(shared.stage).__name__, "status": status, "reason": reason,
              "seconds": seconds} | cost(seconds, Resources(cpus=place.resources.cpus, gpus=place.resources.gpus))
    place.ledger.write_stage(record)
    return record


class InlineCell(tune.Trainable):
    """One-worker cells in one process that stays warm: Tune reuses the actor, so the next cell starts at once."""

    def setup(self, config: dict, cells: dict[str, Cell] | None = None, place: Place | None = None) -> None:
        assert cells is not None and place is not None
        self.cells, self.place, self.cell = cells, place, cells[config["cell"]]

    def reset_config(self, new_config: dict) -> bool:
        self.cell = self.cells[new_config["cell"]]
        return True

    def step(self) -> dict[str, Any]:
        record = attempt(self.cell, self.place, lambda context: context.get(self.cell.trial.metrics()))
        return {"status": record["status"], "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: stages keep what is worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: running the cell again is the resume."""


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


def _tags(cell: Cell, place: Place) -> dict[str, str]:
    stages: dict[str, list[str]] = {}
    for stage in cell.stages():
        stages.setdefault(f"stage.{type(stage).__name__}", []).append(key(stage))
    return {"arm": cell.arm, "seed": str(cell.seed), "scale": place.scale, "data": place.data, "study": place.study,
            "fingerprint": fingerprint(cell.trial), "commit": place.code.commit, "dirty": str(bool(place.code.diff)),
            "mlflow.source.git.commit": place.code.commit, "mlflow.source.name": f"studies/{place.study}.py",
            } | {name: ",".join(keys) for name, keys in stages.items()}


def _keep(samples: Path, copy: Path) -> Path:
    copy.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(samples, copy))


