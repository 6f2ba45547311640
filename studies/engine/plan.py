"""The plan: what a study consists of, what is done, what will run, what it will cost (planning.py makes it).

    Cell      an arm's trial with its seed, known by its key
    Shared    a stage that several cells will ask for: it is made first, once
    Plan      cells, what the ledger has of them, what is missing; as markdown for people
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from studies.engine import stale
from studies.engine.budget import Budget
from studies.engine.decide import Rule
from studies.engine.ledger import FINISHED, Record
from studies.engine.stale import Stale
from studies.engine.study import Resources, Study
from trainables.config import differences, fingerprint, override
from trainables.stages import Code, Stage, key, upstream


@dataclass(frozen=True)
class Cell:
    """One resolved trial with its seed."""

    arm: str
    seed: int
    trial: Any
    key: str
    split: Literal["test", "valid"] = "test"    # the texts it is scored against: a search selects on valid
    point: int | None = None                    # of a search; its cells are not among those that are compared

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}" if self.point is None else f"{self.arm} point {self.point}"

    def scored(self) -> Stage:
        """The stage whose metrics.json is the cell's result."""
        return scored(self.trial, self.split)

    def samples(self) -> Stage:
        """The stage whose samples.jsonl is scored."""
        return self.trial.samples(self.split)

    def own(self) -> list[Stage]:
        """What no other seed shares: its training, its samples, its scores."""
        other = replace(self, trial=override(self.trial, {"seed": self.trial.seed + 1}))
        shared = set(other.stages())
        return [stage for stage in self.stages() if stage not in shared]

    def stages(self) -> list[Stage]:
        """Everything the cell stands on, in an order in which it can be made."""
        return upstream(self.samples(), self.scored())


def scored(trial: Any, split: str = "test") -> Stage:
    return trial.validation() if split == "valid" else trial.metrics()


def cell_key(trial: Any, split: str = "test", known: dict[Stage, str] | None = None, code: Code | None = None) -> str:
    """The trial's identity: what it says, and its results' keys, which know the versions of all they stand on.

    `known` remembers stages' keys for further calls; `code`: see `stages.key`.
    """
    said = " ".join([fingerprint(trial), key(trial.samples(), known, code), key(scored(trial, split), known, code)])
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
    budget: Budget = Budget()
    rule: Rule | None = None            # seeds are added until arms are decided; None: their number is fixed
    held: frozenset[str] = frozenset()  # keys of cells that are not to be started now
    stale: Mapping[str, Stale] = field(default_factory=dict)        # key -> the older record in its place
    reused: Mapping[str, str] = field(default_factory=dict)         # key -> what the store has of it, in words
    again: str = ""                     # the command line that asks for it
    answer: str = ""                    # what the verdicts that are open still need, where their spread is known

    @property
    def base(self) -> str:
        """The arm that the others are compared with."""
        return next(iter(self.arms))

    @functools.cached_property
    def missing(self) -> tuple[Cell, ...]:
        """Cells to run; seed after seed, so that an interrupted study has whole pairs."""
        cells = [cell for cell in self.cells if self.status(cell) not in FINISHED and cell.key not in self.held]
        return tuple(sorted(cells, key=lambda cell: cell.seed))

    def only(self, cells: Iterable[Cell]) -> "Plan":
        """The same plan, of which nothing but these cells, and the stages that they need, is to run."""
        started = {cell.key for cell in cells}
        held = frozenset(cell.key for cell in self.cells if cell.key not in started)
        return replace(self, held=held, shared=tuple(
            shared for shared in self.shared if any(cell.key in started for cell in shared.cells)))

    def status(self, cell: Cell) -> str:
        """done, diverged, failed or waiting."""
        return self.records[cell.key]["status"] if cell.key in self.records else "waiting"

    def differs(self, arm: str) -> str:
        """What the arm says that the base arm does not."""
        changed = differences(self.arms[self.base], self.arms[arm])
        return ", ".join(f"{path} = {value}" for path, value in changed.items()) or "–"

    @property
    def holds(self) -> str:
        """What a trial holds, in words."""
        each = f"{self.resources.cpus} CPU" + (f" and {self.resources.gpus:g} GPU" if self.resources.gpus else "")
        return each if self.resources.workers == 1 else f"{self.resources.workers} workers of {each}"

    @property
    def unit(self) -> str:
        """What a cost is counted in: GPU or CPU hours."""
        return "GPU" if self.resources.gpus else "CPU"

    @property
    def share(self) -> float:
        """GPUs, or CPUs where there are none, that a trial holds."""
        return self.resources.workers * (self.resources.gpus or self.resources.cpus)

    def cost(self, work: Cell | Shared) -> float | None:
        """Expected GPU (CPU) hours; None where nothing like it has run."""
        if isinstance(work, Shared):
            seconds = self.history.get(type(work.stage).__name__)
        else:
            usual = [self.history[arm] for arm in self.arms if arm in self.history]
            seconds = self.history.get(work.arm, sum(usual) / len(usual) if usual else None)
        return None if seconds is None else seconds / 3600 * self.share

    def hours(self) -> tuple[float, int]:
        """Expected GPU (CPU) hours of what is to do, and for how many of its parts nobody knows."""
        known = [self.cost(work) for work in (*self.shared, *self.missing)]
        return sum(hours for hours in known if hours is not None), sum(hours is None for hours in known)

    def head(self) -> list[str]:
        """The plan's first lines: the question, and what it takes."""
        lines = self.lines()
        return lines[:lines.index("", 3 + 2 * bool(self.study.expectation))]

    def lines(self) -> list[str]:
        """The plan as markdown."""
        done = len(self.cells) - len(self.missing)
        many = [sum(cell.arm == arm for cell in self.cells) for arm in self.arms]
        seeds = f"{many[0]}" if len(set(many)) == 1 else f"{min(many)} to {max(many)}"
        lines = [f"# {self.study.name}: {self.study.question}", ""]
        lines += [f"Expected: {self.study.expectation}", ""] if self.study.expectation else []
        lines += [f"- scale {self.scale}: {self.why}", f"- data: {self.data}",
                  f"- {len(self.arms)} arms x {seeds} seeds = {len(self.cells)} cells: {done} done, "
                  f"{len(self.missing)} to run",
                  f"- shared stages: {self.found} found, {len(self.shared)} to make first",
                  f"- a trial holds {self.holds}",
                  f"- expected: {self.expectation()}{self._bounds()}",
                  *([f"- the answer: {self.answer}"] if self.answer else []), "",
                  "| arm | differs from base | done | to run |", "|---|---|---|---|"]
        for arm in self.arms:
            cells = [cell for cell in self.cells if cell.arm == arm]
            todo = [cell for cell in self.missing if cell.arm == arm]
            seen = [f"{cell.seed}{'' if self.status(cell) == 'done' else ' ' + self.status(cell)}"
                    for cell in cells if cell not in todo]
            lines.append(f"| {arm} | {self.differs(arm)} | {_seeds(seen)} | {_seeds([c.seed for c in todo])} |")
        lines += ["", *(f"- make {shared.name}: {shared.key}" for shared in self.shared)] if self.shared else []
        lines += ["", *stale.lines(self.missing, self.stale, self.reused)] if self.missing else []
        return lines

    def _bounds(self) -> str:
        """What ends the study, where that is not its number of seeds."""
        words = f"; seeds are added until each arm is decided, {self.rule.most} at most" if self.rule else ""
        return words + (f"; no more than {self.budget.hours:g} in all" if self.budget.hours is not None else "")

    def expectation(self) -> str:
        """The cost in words."""
        if not self.missing:
            return "nothing to run"
        hours, unknown = self.hours()
        if unknown == len(self.shared) + len(self.missing):
            return f"unknown {self.unit} hours: nothing like it has run here yet"
        return self.budget.spell(hours, self.unit) + (f", and {unknown} of unknown cost" if unknown else "")


def _seeds(seeds: list) -> str:
    return ", ".join(str(seed) for seed in seeds) or "–"
