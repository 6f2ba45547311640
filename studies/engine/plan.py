"""The plan: what a study consists of, what is done, what will run, what it will cost.

    arms x seeds -> cells, each known by its key
    cells without a record -> the stages they stand on -> those that two or more of them share are made first, once

Plain Python: nothing here starts Ray, so --dry-run answers at once.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from studies.engine.ledger import FINISHED, Ledger, Record
from studies.engine.study import Resources, Settles, Study
from trainables.config import ConfigError, differences, fingerprint, flat
from trainables.stages import Stage, Store, key, upstream


@dataclass(frozen=True)
class Cell:
    """One resolved trial with its seed."""

    arm: str
    seed: int
    trial: Any
    key: str

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"

    def stages(self) -> list[Stage]:
        """Everything the cell stands on, in an order in which it can be made."""
        return upstream(self.trial.samples(), self.trial.metrics())


def cell_key(trial: Any) -> str:
    """The trial's identity: what it says, and its results' keys, which know the versions of all they stand on."""
    said = " ".join([fingerprint(trial), key(trial.samples()), key(trial.metrics())])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Shared:
    """A stage that several cells will ask for."""

    stage: Stage
    key: str
    cells: tuple[Cell, ...]
    needs: tuple[str, ...]              # keys of the shared stages it stands on

    @property
    def name(self) -> str:
        arms = list(dict.fromkeys(cell.arm for cell in self.cells))
        return f"{type(self.stage).__name__} ({', '.join(arms) if len(arms) < 4 else f'{len(arms)} arms'})"


@dataclass(frozen=True)
class Plan:
    """What a command will do."""

    study: Study
    scale: str
    why: str                            # why this scale
    data: str                           # the data set, for people
    resources: Resources
    arms: Mapping[str, Any]             # arm -> its trial at seed 0
    cells: tuple[Cell, ...]
    records: Mapping[str, Record]       # key -> what the ledger has
    shared: tuple[Shared, ...]
    found: int                          # shared stages that the store has
    history: Mapping[str, float]        # kind of stage, or arm -> mean seconds, as the ledger remembers

    @property
    def base(self) -> str:
        """The arm that the others are compared with."""
        return next(iter(self.arms))

    @functools.cached_property
    def missing(self) -> tuple[Cell, ...]:
        """Cells to run; seed after seed, so that an interrupted study has whole pairs."""
        cells = [cell for cell in self.cells if self.status(cell) not in FINISHED]
        return tuple(sorted(cells, key=lambda cell: cell.seed))

    def status(self, cell: Cell) -> str:
        """done, diverged, failed or waiting."""
        return self.records[cell.key]["status"] if cell.key in self.records else "waiting"

    def differs(self, arm: str) -> str:
        """What the arm says that the base arm does not."""
        changed = differences(self.arms[self.base], self.arms[arm])
        return ", ".join(f"{path} = {value}" for path, value in changed.items()) or "–"

    def hours(self) -> tuple[float, int]:
        """Expected hours of one worker's time, and for how many of the things to do nobody knows."""
        known = [self.history.get(type(shared.stage).__name__) for shared in self.shared]
        usual = [self.history[arm] for arm in self.arms if arm in self.history]
        anyone = sum(usual) / len(usual) if usual else None
        known += [self.history.get(cell.arm, anyone) for cell in self.missing]
        return sum(s for s in known if s is not None) / 3600, sum(s is None for s in known)

    def lines(self) -> list[str]:
        """The plan as markdown."""
        done = len(self.cells) - len(self.missing)
        seeds = len({cell.seed for cell in self.cells})
        lines = [f"# {self.study.name}: {self.study.question}", ""]
        lines += [f"Expected: {self.study.expectation}", ""] if self.study.expectation else []
        lines += [f"- scale {self.scale}: {self.why}", f"- data: {self.data}",
                  f"- {len(self.arms)} arms x {seeds} seeds = {len(self.cells)} cells: {done} done, "
                  f"{len(self.missing)} to run",
                  f"- shared stages: {self.found} found, {len(self.shared)} to make first",
                  f"- a trial holds {_holds(self.resources)}",
                  f"- expected: {self.expectation()}", "",
                  "| arm | differs from base | done | to run |", "|---|---|---|---|"]
        for arm in self.arms:
            cells = [cell for cell in self.cells if cell.arm == arm]
            todo = [cell for cell in self.missing if cell.arm == arm]
            seen = [f"{cell.seed}{'' if self.status(cell) == 'done' else ' ' + self.status(cell)}"
                    for cell in cells if cell not in todo]
            lines.append(f"| {arm} | {self.differs(arm)} | {_seeds(seen)} | {_seeds([c.seed for c in todo])} |")
        lines += ["", *(f"- make {shared.name}: {shared.key}" for shared in self.shared)] if self.shared else []
        return lines

    def expectation(self) -> str:
        """The cost in words."""
        if not self.missing:
            return "nothing to run"
        hours, unknown = self.hours()
        unit = "GPU" if self.resources.gpus else "CPU"
        share = self.resources.workers * (self.resources.gpus or self.resources.cpus)
        if unknown == len(self.shared) + len(self.missing):
            return f"unknown {unit} hours: nothing like it has run here yet"
        return f"{hours * share:.2g} {unit} hours" + (f", and {unknown} of unknown cost" if unknown else "")


def make_plan(study: Study, *, scale: str, why: str, ledger: Ledger, store: Store, resources: Resources, seeds: int,
              arms: Iterable[str], data: Any = None, assignments: Iterable[str] = ()) -> Plan:
    """Expand the study and look up what is there.  ConfigError when an assignment does not fit an arm."""
    def build(arm: str, seed: int) -> Any:
        trial = study.trial(scale, arm, seed=seed, data=data, assignments=assignments)
        try:
            return trial.settled(store) if isinstance(trial, Settles) else trial
        except ConfigError as error:
            raise ConfigError(error.path, f"{error.problem} [arm {arm!r}]") from None

    trials = {(arm, seed): build(arm, seed) for arm in arms for seed in range(seeds)}
    cells = tuple(Cell(arm, seed, trial, cell_key(trial)) for (arm, seed), trial in trials.items())
    records = {cell.key: record for cell in cells if (record := ledger.cell(cell.key)) is not None}
    missing = [cell for cell in cells if cell.key not in records or records[cell.key]["status"] not in FINISHED]
    shared, found = _shared(missing, store)
    first = {arm: trial for (arm, seed), trial in trials.items() if seed == 0}
    return Plan(study=study, scale=scale, why=why, resources=resources, arms=first, cells=cells, records=records,
                data=_title(next(iter(first.values())).data),
                shared=shared, found=found, history=_history(ledger, scale))


def _shared(cells: Iterable[Cell], store: Store) -> tuple[tuple[Shared, ...], int]:
    """Stages that two or more cells will ask for and that the store lacks, in order; how many of them it has.

    What stands under a finished stage is not asked for; what stands under a shared one is shared as well.
    """
    has = functools.cache(store.has)
    wanted: dict[Stage, list[Cell]] = {}
    for cell in cells:
        asked = list(dict.fromkeys([cell.trial.metrics(), cell.trial.samples()]))
        for stage in asked:                          # grows while it is walked
            wanted.setdefault(stage, []).append(cell)
            if not has(stage):
                asked += [needed for needed in stage.needs() if needed not in asked]
    common = {stage: users for stage, users in wanted.items() if len(users) > 1}
    order = [stage for stage in upstream(*common) if stage in common and not has(stage)]
    shared = [Shared(stage, key(stage), tuple(common[stage]), tuple(key(n) for n in stage.needs() if not has(n)))
              for stage in order]
    return tuple(shared), len(common) - len(shared)


def _history(ledger: Ledger, scale: str) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for record in ledger.cells():
        if record["status"] == "done" and record["scale"] == scale:
            seconds.setdefault(record["arm"], []).append(record["seconds"])
    for record in ledger.stages():
        if record["status"] == "done":
            seconds.setdefault(record["kind"], []).append(record["seconds"])
    return {name: sum(values) / len(values) for name, values in seconds.items()}


def _title(data: Any) -> str:
    """What people call a data set: its name, or the class of a built-in one."""
    return str(flat(data).get("name", type(data).__name__))


def _holds(resources: Resources) -> str:
    each = f"{resources.cpus} CPU" + (f" and {resources.gpus:g} GPU" if resources.gpus else "")
    return each if resources.workers == 1 else f"{resources.workers} workers of {each}"


def _seeds(seeds: list) -> str:
    return ", ".join(str(seed) for seed in seeds) or "–"
