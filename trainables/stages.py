"""Stages: results that are made once, found ever after, and are whole or absent.

    corpus -> tokenizer -> encoder -> encodings -> statistics -> decoder -> checkpoint -> samples -> metrics

A stage is a frozen config whose fields are everything its result depends on, so its fingerprint is its cache key;
`needs()` names the stages it stands on, derived from the same fields, so there is no graph to keep in step.  `version`
is raised by hand when `make` changes its meaning.  A trial pays only for what its parameters touch.

    store = Store("results/stages")                      a folder, shared or not
    store = Store("s3://bucket/stages", cache="/tmp/x")  object storage through fsspec; the cache holds local copies
    path = Context(store).get(EncodingStatistics(...))   made here, waited for, or found

What is promised: `<key>/` appears by one rename, so a reader never sees half a result; processes that ask together
wait on one lock and one of them makes it; a failed make leaves nothing but its lock (a stage with `resumable = True`
keeps its unfinished folder, and is handed it again).  Beside the result lies cost.json: the seconds that it took,
without those of what it asked for, so that whoever finds it knows what it has been spared.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import fsspec
import torch
from filelock import FileLock

from trainables.config import classes, fingerprint, to_dict
from trainables.training.compiling import asked_to_compile_from
from trainables.training.parallel import ALONE, Parallel


@runtime_checkable
class Stage(Protocol):
    """A frozen config that can make its result."""

    version: ClassVar[int]

    def needs(self) -> "tuple[Stage, ...]":
        """The stages that `make` will ask for."""
        ...

    def make(self, out: Path, context: "Context") -> None:
        """Write the result into the empty folder `out` (or, when `resumable`, into what an earlier attempt left)."""


COST = "cost.json"
Make = Callable[[Path, "Context"], None]
Code = Callable[[type], str]            # a class -> a digest of the code that it stands for


def upstream(*stages: Stage) -> list[Stage]:
    """Everything these stages stand on, themselves included, each once, in an order in which they can be made."""
    order: dict[Stage, None] = {}

    def visit(stage: Stage) -> None:
        if stage not in order:
            for needed in stage.needs():
                visit(needed)
            order[stage] = None

    for stage in stages:
        visit(stage)
    return list(order)


def key(stage: Stage, known: dict[Stage, str] | None = None, code: Code | None = None) -> str:
    """The folder's name: readable, and equal exactly when the stages are, with the versions of all they stand on.

    `known` remembers keys for further calls: who plans thousands of trials asks for the same stages again and again.
    `code`: stages are told apart by the code of their classes, too.
    """
    known = {} if known is None else known
    if stage in known:
        return known[stage]
    for each in upstream(stage):
        if each in known:
            continue
        said = " ".join([fingerprint(each), *(known[needed] for needed in each.needs()),
                         *(sorted(map(code, classes(each))) if code else ())])
        known[each] = f"{type(each).__name__}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    return known[stage]


class Store:
    """A place for results: a folder on this machine or a shared file system, or a URL that fsspec can open.

    With a URL, results are made in `cache`, uploaded file by file, and declared whole by a marker written last; other
    machines fetch them into their own cache.  `code`: results of other code are other results, see `key`.
    """

    def __init__(self, root: str | Path, cache: str | Path | None = None, code: Code | None = None):
        self.url, self.code = str(root), code
        self.remote = "://" in self.url and not self.url.startswith("file://")
        if self.remote and cache is None:
            raise ValueError(f"a store at {self.url} needs a local cache folder")
        self.folder = Path(cache if self.remote else self.url.removeprefix("file://")).absolute()  # type: ignore[arg-type]

    def key(self, stage: Stage, known: dict[Stage, str] | None = None) -> str:
        """What the stage is called in here."""
        return key(stage, known, self.code)

    def path(self, stage: Stage) -> Path:
        return self.folder / self.key(stage)

    def has(self, stage: Stage, name: str | None = None) -> bool:
        """Whether the result can be had without making it.  `name`: the stage's key, where it is known."""
        here = self.folder / name if name else self.path(stage)
        return here.exists() or self.remote and self._fs().exists(self._marker(stage))

    def get(self, stage: Stage, context: "Context", make: Make | None = None) -> Path:
        """The folder of the finished result.  `make` stands in for stage.make, where a group of workers does it."""
        done = self.path(stage)
        if done.exists():
            return done
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{done}.lock"):
            if done.exists():
                return done
            if not self.remote:
                self._make(stage, context, make or stage.make, done)
            elif not self._download(stage):
                made = self.folder / f"{self.key(stage)}.made"       # here, not there: a failed upload is tried again
                if not made.exists():
                    self._make(stage, context, make or stage.make, made)
                self._upload(stage, made)
                os.replace(made, done)
        return done

    def seconds(self, stage: Stage) -> float:
        """What making the result took, without what it asked for; 0 where nobody knows."""
        here = self.path(stage)
        if here.exists() or not self.remote:
            return _seconds(here)
        try:
            return float(json.loads(self._fs().cat_file(self._at(f"{self.key(stage)}/{COST}")))["seconds"])
        except FileNotFoundError:
            return 0.0

    def unfinished(self, stage: Stage) -> Path:
        """Where a resumable stage keeps what it has so far."""
        return self.folder / f"{self.key(stage)}.partial"

    def _make(self, stage: Stage, context: "Context", make: Make, done: Path) -> None:
        resumable = getattr(stage, "resumable", False)
        work = self.unfinished(stage) if resumable else self.folder / f"{self.key(stage)}.{uuid.uuid4().hex}.tmp"
        work.mkdir(exist_ok=resumable)
        past, began = _seconds(work), time.perf_counter()
        try:
            try:
                make(work, context)
                (work / "stage.json").write_text(json.dumps(to_dict(stage), indent=1))
            finally:                     # of a training that was stopped, too
                seconds = past + time.perf_counter() - began - sum(context.waited)
                (work / COST).write_text(json.dumps({"seconds": seconds}))
            os.replace(work, done)
        finally:
            if not resumable:
                shutil.rmtree(work, ignore_errors=True)

    # -- object storage

    def _fs(self) -> Any:
        return fsspec.core.url_to_fs(self.url)[0]

    def _at(self, name: str) -> str:
        return f"{fsspec.core.url_to_fs(self.url)[1].rstrip('/')}/{name}"

    def _marker(self, stage: Stage) -> str:
        return self._at(f"{self.key(stage)}/.whole")

    def _download(self, stage: Stage) -> bool:
        fs = self._fs()
        if not fs.exists(self._marker(stage)):
            return False
        work = self.folder / f"{self.key(stage)}.{uuid.uuid4().hex}.tmp"
        try:
            for name in json.loads(fs.cat_file(self._marker(stage))):
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(self._at(f"{self.key(stage)}/{name}"), str(work / name))
            os.replace(work, self.path(stage))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return True

    def _upload(self, stage: Stage, made: Path) -> None:
        fs = self._fs()
        names = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
        for name in names:
            fs.makedirs(os.path.dirname(self._at(f"{self.key(stage)}/{name}")), exist_ok=True)
            fs.put_file(str(made / name), self._at(f"{self.key(stage)}/{name}"))
        fs.pipe_file(self._marker(stage), json.dumps(names).encode())


def _seconds(folder: Path) -> float:
    try:
        return float(json.loads((folder / COST).read_bytes())["seconds"])
    except (OSError, ValueError):        # made before this was kept, or torn by a kill
        return 0.0


def _silent(step: int, metrics: Mapping[str, float]) -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Context:
    """Where a stage runs: nothing in here may change a result, so nothing in here is part of a fingerprint."""

    store: Store
    record: Callable[[int, Mapping[str, float]], None] = _silent     # (step, {"valid/loss": .41}) -> None
    should_stop: Callable[[], bool] = _never                         # asked between steps; True ends the run, resumable
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compile_from: int = field(default_factory=asked_to_compile_from)        # steps of a GPU's training; 0: no training
    parallel: Parallel = ALONE                                       # the group that makes this stage, not its needs
    waited: list[float] = field(default_factory=list, compare=False)         # seconds that what it asked for took

    def get(self, stage: Stage, make: Make | None = None) -> Path:
        """The stage's folder.  Its curves carry its `curve` as a prefix: a decoder's loss is not the trial's."""
        inner, prefix = replace(self, parallel=ALONE, waited=[]), getattr(stage, "curve", "")
        if prefix:
            inner = replace(inner, record=lambda step, metrics: self.record(
                step, {f"{prefix}/{name}": value for name, value in metrics.items()}))
        began = time.perf_counter()
        try:
            return self.store.get(stage, inner, make)
        finally:
            self.waited.append(time.perf_counter() - began)
