"""The ledger: one record per cell, for ever, and the outbox in which a cell tells its story.

    <study>/cells/<key>.json       what became of a cell: written whole, by whoever ran it
    <study>/stages/<key>.json      what a shared stage cost
    <study>/outbox/<key>.jsonl     start, metrics by step ("again": what supersedes them), end: read by the live view
                                   and by the MLflow shipper

The worker writes its own record, so a driver that dies forgets nothing.  These folders lie on a file system that every
node sees.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
FINISHED = ("done", "diverged")         # outcomes that running again would not change; "failed" is tried again


class Ledger:
    """The records of one study.  `folder` is the study's own, <out>/<study>."""

    def __init__(self, folder: Path):
        self.folder = folder

    def cell(self, key: str) -> Record | None:
        """The record of a cell, None before its first end."""
        return _read(self.folder / "cells" / f"{key}.json")

    def finished(self, key: str) -> Record | None:
        """The record of a cell that needs no further run.  Over NFS a name that was absent a moment ago may be
        remembered as absent; a listing of its folder asks the server."""
        with contextlib.suppress(FileNotFoundError):
            os.listdir(self.folder / "cells")
        record = self.cell(key)
        return record if record is not None and record["status"] in FINISHED else None

    def cells(self) -> list[Record]:
        """Every cell that ever ended, whatever the study compares today."""
        return [record for path in sorted(self.folder.glob("cells/*.json")) if (record := _read(path))]

    def stage(self, key: str) -> Record | None:
        """The record of a shared stage."""
        return _read(self.folder / "stages" / f"{key}.json")

    def stages(self) -> list[Record]:
        """Every shared stage that was made: {"key", "kind", "status", "seconds", ...}."""
        return [record for path in sorted(self.folder.glob("stages/*.json")) if (record := _read(path))]

    def write_cell(self, record: Record) -> None:
        _write(self.folder / "cells" / f"{record['key']}.json", record)

    def write_stage(self, record: Record) -> None:
        _write(self.folder / "stages" / f"{record['key']}.json", record)

    def supersede(self, old: str, new: str) -> None:
        """Note that another cell has replaced a cell, in its record and in its story, which MLflow hears."""
        record = self.cell(old)
        if record is not None and record.get("superseded_by") != new:
            story = Outbox(self.outbox(old))
            story.write("tags", tags={"superseded_by": new})
            story.close()
            self.write_cell(record | {"superseded_by": new})

    def outbox(self, key: str) -> Path:
        return self.folder / "outbox" / f"{key}.jsonl"


class Outbox:
    """Appends one cell's story; never touches the network, and a record costs microseconds.

    A resumed attempt repeats the steps since its checkpoint.  A repeated point that is equal to the one that stands
    here is dropped; one that differs (another number of workers, a GPU's rounding) is written as "again" and supersedes
    it.  So a curve has one point a step however often the cell was killed, and it is the curve of the weights that
    survived.
    """

    def __init__(self, path: Path):
        self.path, self.attempt, self.spent = path, 1, 0.0
        self.found: list[str] | None = None          # what the first attempt found made, where there was one
        self.past: Curves | None = None              # what stands here; None: to be read
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _end_torn_line(path)
            self._read_past()
        self.file = open(path, "a", buffering=1, encoding="utf-8")

    def _read_past(self) -> None:
        begun = now = None
        for line in read_from(self.path, 0)[0]:
            now = line["t"]
            if line["kind"] == "start":
                begun, self.attempt = now, line["attempt"] + 1
                self.found = line.get("found") if self.found is None else self.found
            elif line["kind"] == "end":
                self.spent, begun = line["seconds"], None
            if begun is not None and line["kind"] != "start":
                self.spent += (now - begun) / 1e3    # a killed attempt lasted until it was last heard of
                begun = now

    def start(self, **what: Any) -> None:
        """An attempt begins: name, params, tags."""
        self.write("start", attempt=self.attempt, **what)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """What `Context.record` is inside a cell."""
        if self.past is None:            # not before: a dying predecessor may write until we hold its stage's lock
            self.past = curves(self.path)
        new, other = {}, {}
        for name, value in metrics.items():
            stands, value = self.past.setdefault(name, {}), float(value)
            if step not in stands:
                new[name] = value
            elif repr(stands[step]) != repr(value):      # repr: NaN is itself
                other[name] = value
            stands[step] = value
        for kind, values in (("metrics", new), ("again", other)):
            if values:
                self.write(kind, step=int(step), metrics=values)

    def end(self, status: str, seconds: float, **what: Any) -> None:
        """The attempt is over; on the disk when this returns."""
        self.write("end", status=status, seconds=seconds, **what)
        self.file.flush()
        os.fsync(self.file.fileno())

    def write(self, kind: str, **what: Any) -> None:
        self.file.write(json.dumps({"kind": kind, "t": int(time.time() * 1e3)} | what) + "\n")

    def close(self) -> None:
        self.file.close()


Curves = dict[str, dict[int, float]]     # metric -> step -> value


def curves(path: Path) -> Curves:
    """The curves that an outbox tells; what was superseded is gone."""
    found: Curves = {}
    for line in read_from(path, 0)[0] if path.exists() else ():
        if line["kind"] in ("metrics", "again"):
            for name, value in line["metrics"].items():
                found.setdefault(name, {})[line["step"]] = value
    return found


def read_from(path: Path, offset: int) -> tuple[list[Record], int]:
    """The whole lines after byte `offset`, and the offset behind them.  A line torn by a kill is skipped."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return list(_lines(data[:end])), offset + end


def _lines(data: bytes) -> Iterator[Record]:
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _end_torn_line(path: Path) -> None:
    with open(path, "rb+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _read(path: Path) -> Record | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:                   # torn by a power cut: as good as absent
        return None


def _write(path: Path, record: Record) -> None:
    write_whole(path, json.dumps(record, indent=1))


def write_whole(path: Path, text: str) -> None:
    """The file, whole or as it was before: written beside its place and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
