"""One arm's search: points are asked of Optuna, become cells, and their outcomes are told.

    ask() --> cell to run | WAIT | DONE          under the storage's turn, so that drivers share one budget
    report(key, step, recorded) -> why to stop   curves inside this search only (pruning.py)
    tell(key, record)                            done: COMPLETE;  pruned: PRUNED;  diverged, failed: FAIL
    release(key)                                 it has saved itself: whoever asks next, on any host, goes on with it

The Optuna storage is the only memory.  A trial carries in user attributes its cell's key, what became of it, all its
validation scores and its curve, and a lease (lease.py): who runs it, until when.  The trials of a driver that died are
taken over, points and keys unchanged, so their trainings go on from their checkpoints.  Typing a command again
continues to the budget: what is finished stays, what a crash ended is tried again, a point whose cell the ledger knows,
or that was proposed before, is told and not run.  found.py reads what came of it.  A crash costs nothing of the budget,
so IN_A_ROW of them, one behind the other in one command, end the search: what breaks every point is not the points'.

One optuna.Study is held, whose cache reads what is unfinished and nothing else; curves of ended trials are parsed once.
So a step and a point cost the same at 2,000 trials as at 100 (benchmarks/scale.py).

The search's name carries a digest of everything that makes values comparable: the arm's trial, the versions of its
stages, what is selected on, the space.  Sampler, pruner and budget may change between two commands.  A changed space
is a new search, which begins with the finished points of older ones that lie inside it.
"""

import contextlib
import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces.domains import Choice, Point
from studies.engine import lease
from studies.engine.ledger import FINISHED, Ledger, Record
from studies.engine.plan import Cell, cell_key
from studies.engine.pruning import Curve, Pruner, losses
from studies.engine.samplers import distribution, sampler, suggest
from studies.engine.storage import Memory
from studies.engine.study import Minimise
from studies.engine.tuning import COST, Sought, Task
from trainables.config import ConfigError, override

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

WAIT, DONE = "wait", "done"
OWN = "own_seconds"                     # what making what no other seed shares took
IN_A_ROW = 10                           # trials that fail one behind the other before a search is given up


@dataclass
class Live:
    """A trial that this driver runs."""

    number: int
    cell: Cell
    curve: dict[int, tuple[float, ...]] = field(default_factory=dict)
    reported: set[int] = field(default_factory=set)
    stopped: str = ""


class Search:
    """One arm's search."""

    def __init__(self, study: str, scale: str, arm: str, task: Task, memory: Memory, ledger: Ledger,
                 owner: str | None = None):
        self.arm, self.tune, self.base, self.space = arm, task.tune, task.base, task.space
        self.select, self.prune = task.select, task.prune
        self.memory, self.ledger = memory, ledger
        self.owner = owner or lease.owner()
        self.live: dict[str, Live] = {}                     # by the cell's key
        self.twins: list[tuple[int, Cell]] = []             # asked for while the same cell was at work
        self.begun: set[str] = set()                        # keys of all cells that this driver was given
        self.failures: list[str] = []                       # why the last ones failed, one behind the other
        self.past: dict[int, Curve | None] = {}             # curves of trials that have ended
        self.lock = threading.RLock()                       # Tune's thread asks, the driver's reports
        self.renewed = time.time()
        self.same, self.name = named(study, scale, arm, task)
        self.known = [p.name for p in self.space.parameters()]
        self._study: optuna.Study | None = None

    # ------------------------------------------------------------ the storage

    @property
    def study(self) -> optuna.Study:
        if self._study is None:
            self._study = self.memory.load(self.name)
        return self._study

    def exists(self) -> bool:
        return self._study is not None or self.memory.has(self.name)

    def open(self) -> None:
        """Create the search with its first point, the arm as it is; or find it, and give crashed points another go."""
        with self.lock, self.memory.turn():
            if not self.exists():
                study = optuna.create_study(
                    study_name=self.name, storage=self.memory.storage,
                    directions=["minimize" if isinstance(metric, Minimise) else "maximize"
                                for metric in self.select])
                study.set_metric_names([metric.metric for metric in self.select])
                study.set_user_attr("arm", self.arm)
                study.set_user_attr("search", self.same)
                study.enqueue_trial(self.space.point(self.base), user_attrs={"point": "the arm as it is"})
                self._inherit(study)
            study = self.study
            if self.prune is not None:
                study.set_user_attr("pruned on", _sign(self.select, self.prune))
            trials = self.trials()
            last = {json.dumps(trial.system_attrs.get("fixed_params", trial.params), sort_keys=True): trial
                    for trial in trials}
            for trial in last.values():
                if trial.user_attrs.get("status") == "failed":
                    study.enqueue_trial(trial.params, user_attrs={"point": f"trial {trial.number} again"})

    def _inherit(self, study: optuna.Study) -> None:
        """Begin with what other searches of the same trial found in this space."""
        for name, said in self.memory.studies().items():
            if said.get("search") != self.same or name == self.name:
                continue
            for trial in self.memory.load(name).get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
                try:
                    self.space.changes(trial.params)
                except ConfigError:
                    continue
                study.add_trial(create_trial(
                    values=trial.values, params=dict(trial.params),
                    distributions={p.name: distribution(p.domain) for p in self.space.parameters()
                                   if p.name in trial.params},
                    user_attrs=trial.user_attrs | {"inherited": name}))

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    # ------------------------------------------------------------ asking

    def cell(self, point: Point, number: int) -> Cell:
        trial = override(self.base, self.space.changes(point))
        return Cell(self.arm, self.tune.seed, trial, cell_key(trial, "valid"), split="valid", point=number)

    def ask(self) -> Cell | Literal["wait", "done"]:
        """The next cell to run; WAIT where the rest of the budget is at work, maybe elsewhere; DONE."""
        with self.lock:
            self._settle_twins()
            if self.hopeless:
                return DONE
            for _ in range(self.tune.trials + 1):           # points that are known already are told at once
                with self.memory.turn():
                    taken = self._take()
                if isinstance(taken, str):
                    return taken
                number, cell = taken
                if cell.key in self.live:
                    self.twins.append((number, cell))
                    continue
                record = self._known(cell)
                if record is None:
                    self.live[cell.key] = self._begin(number, cell)
                    self.begun.add(cell.key)
                    return cell
                self._tell(number, cell, record)
            return WAIT

    def _take(self) -> tuple[int, Cell] | Literal["wait", "done"]:
        """A trial of a dead driver, or a new one.  Only in our turn."""
        study, trials, now = self.study, self.trials(), time.time()
        mine = {live.number for live in self.live.values()} | {number for number, _ in self.twins}
        alive = 0
        for trial in trials:
            if trial.state != TrialState.RUNNING or trial.number in mine:
                alive += trial.state == TrialState.RUNNING
            elif "lease" not in trial.user_attrs:           # its driver died in its turn, between asking and saying so
                self._say(trial.number, status="lost", reason="its driver died before it began")
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                if (fixed := trial.system_attrs.get("fixed_params")) is not None:
                    study.enqueue_trial(fixed, user_attrs={"point": f"trial {trial.number} again"})
            elif not lease.holds(trial.user_attrs["lease"], now):
                self._say(trial.number, lease=lease.grant(self.owner))
                return trial.number, self.cell(trial.params, trial.number)
            else:
                alive += 1
        if (ended := self.count(trials)) >= self.tune.trials:
            return DONE
        if ended + alive >= self.tune.trials:
            return WAIT                                     # one of them may be lost
        study.sampler = sampler(self.tune.sampler, self.space, self.tune.seed, trials)
        trial = study.ask()
        point = self.space.draw(lambda name, domain: suggest(trial, name, domain))
        cell = self.cell(point, trial.number)
        self._say(trial.number, key=cell.key, lease=lease.grant(self.owner))
        return trial.number, cell

    @staticmethod
    def count(trials: list[FrozenTrial]) -> int:
        """What counts towards the budget: what ended by its own fault or merit, in this search."""
        return sum(trial.state in ENDED and trial.user_attrs.get("status") not in ("failed", "lost")
                   and "inherited" not in trial.user_attrs for trial in trials)

    def _known(self, cell: Cell) -> Record | None:
        """What became of the same cell before: in the ledger, or in this storage, through another driver's ledger."""
        record = self.ledger.cell(cell.key)
        if record is not None and record["status"] in FINISHED:
            return record
        for trial in self.trials():
            if trial.state == TrialState.COMPLETE and trial.user_attrs.get("key") == cell.key:
                return {"status": "done", "reason": "", "metrics": trial.user_attrs.get("metrics", {}),
                        **trial.user_attrs.get("cost", {})}
        return None

    def _begin(self, number: int, cell: Cell) -> Live:
        trial = self.trials()[number]
        return Live(number, cell, _curve(trial.user_attrs.get("curve", "{}")), set(trial.intermediate_values))

    def _settle_twins(self) -> None:
        waiting, self.twins = self.twins, []
        for number, cell in waiting:
            record = self._known(cell)
            if record is not None:
                self._tell(number, cell, record)
            elif cell.key in self.live:
                self.twins.append((number, cell))
            else:                                           # the first did not finish; the same fate for the second
                self._tell(number, cell, self.ledger.cell(cell.key) or {"status": "lost", "reason": "", "metrics": {}})

    # ------------------------------------------------------------ while it runs

    def report(self, key: str, step: int, recorded: Mapping[str, float]) -> str:
        """Remember a step of a live cell's curve; why the cell should stop, or nothing."""
        with self.lock:
            live = self.live.get(key)
            values = losses(self.prune.metrics, recorded) if self.prune is not None else None
            if live is None or values is None or live.stopped or step in live.curve and step in live.reported:
                return live.stopped if live else ""
            new = step not in live.reported
            live.curve[step] = values
            live.reported.add(step)
            self._say(live.number, curve=json.dumps(live.curve))
            if len(self.select) == len(values) == 1:   # several would break TPE, which ranks pruned trials by them
                value = values[0] if isinstance(self.select[0], Minimise) else -values[0]
                if math.isfinite(value) and new:
                    self._set_intermediate(live.number, step, value)
            live.stopped = self._verdict(live)
            return live.stopped

    def _set_intermediate(self, number: int, step: int, value: float) -> None:
        storage, study = self.memory.storage, self.study
        trial = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):      # another driver thought us dead
            storage.set_trial_intermediate_value(trial, step, value)

    def _verdict(self, live: Live) -> str:
        assert self.prune is not None
        finished, others = [], []
        for trial, curve in self._curves():
            if trial.number != live.number:
                others.append(curve)
                if trial.state == TrialState.COMPLETE:
                    finished.append(curve)
        return self.prune.verdict(live.curve, finished, others)

    def _curves(self) -> Iterator[tuple[FrozenTrial, Curve]]:
        """Of all trials of this search that have one."""
        for trial in self.trials():
            curve = self.past.get(trial.number)
            if trial.number not in self.past:
                told = trial.user_attrs.get("curve") if "inherited" not in trial.user_attrs else None
                curve = None if told is None else _curve(told)
                if trial.state in ENDED:
                    self.past[trial.number] = curve
            if curve is not None:
                yield trial, curve

    def renew(self) -> None:
        """Say that this driver is alive."""
        with self.lock:
            if time.time() - self.renewed > lease.SECONDS / 4:
                for number in [live.number for live in self.live.values()] + [number for number, _ in self.twins]:
                    self._say(number, lease=lease.grant(self.owner))
                self.renewed = time.time()

    # ------------------------------------------------------------ telling

    def release(self, key: str) -> None:
        """A live cell has saved itself and made room: whoever asks next goes on with it."""
        with self.lock:
            if (live := self.live.pop(key, None)) is not None:
                self._say(live.number, lease=lease.grant(self.owner, seconds=0.0))

    def tell(self, key: str, record: Record | None) -> None:
        """A live cell has ended; None: nobody knows how."""
        with self.lock:
            live = self.live.pop(key, None)
            if live is not None:
                record = record or {"status": "failed", "reason": "no record", "metrics": {}}
                self.failures = [*self.failures, record["reason"]] if record["status"] == "failed" else []
                self._tell(live.number, live.cell, record)
                self._settle_twins()

    def _tell(self, number: int, cell: Cell, record: Record) -> None:
        cost = {name: record[name] for name in (*map(_plain, COST), OWN) if name in record}
        scores = dict(record["metrics"]) | {name: cost[_plain(name)] * _share(cost) for name in COST
                                            if _plain(name) in cost}
        status, reason, values = record["status"], record["reason"], None
        if status == "done":
            absent = [metric.metric for metric in self.select if not _finite(scores.get(metric.metric))]
            values = [scores[metric.metric] for metric in self.select] if not absent else None
            if absent:
                status, reason = "unscored", f"no {', '.join(absent)} (there are: {', '.join(sorted(scores))})"
        self._say(number, key=cell.key, status=status, reason=reason, metrics=record["metrics"], cost=cost)
        for name, score in record["metrics"].items():       # one attribute each, which is what the dashboard lists
            self._say(number, **{name: score})
        state = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(status, TrialState.FAIL)
        self.study.tell(number, values, state, skip_if_finished=True)

    def _say(self, number: int, **said: Any) -> None:
        storage, study = self.memory.storage, self.study
        trial = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        for name, value in said.items():
            try:
                storage.set_trial_user_attr(trial, name, value)
            except optuna.exceptions.UpdateFinishedTrialError:
                return                                      # another driver thought us dead, and was quicker

    # ------------------------------------------------------------ how far it is

    @property
    def hopeless(self) -> str:
        """Why this driver asks for nothing more, where trials did nothing but fail; else nothing."""
        if len(self.failures) < IN_A_ROW:
            return ""
        (reason, times), = Counter(self.failures).most_common(1)
        return f"{self.arm}: {len(self.failures)} points in a row failed, {times} of them with: {reason or 'no reason'}"

    def states(self) -> dict[str, int]:
        """How many trials ended how: done, pruned, diverged, failed, unscored; running; to come."""
        found: dict[str, int] = {}
        for trial in self.trials() if self.exists() else []:
            status = trial.user_attrs.get("status", trial.state.name.lower())
            found[status] = found.get(status, 0) + 1
        return found

    def left(self) -> int:
        """How many trials the budget still has, those that run included."""
        return self.tune.trials - self.count(self.trials()) if self.exists() else self.tune.trials

    def running(self) -> set[str]:
        """Keys of the cells that somebody runs, or that a dead driver left."""
        return {trial.user_attrs["key"] for trial in (self.trials() if self.exists() else [])
                if trial.state == TrialState.RUNNING and "key" in trial.user_attrs}

    def elsewhere(self) -> set[str]:
        """Keys of the cells that other drivers run, which live."""
        now = time.time()
        return {trial.user_attrs["key"] for trial in (self.trials() if self.exists() else [])
                if trial.state == TrialState.RUNNING and "key" in trial.user_attrs
                and (held := trial.user_attrs.get("lease")) and held["owner"] != self.owner and lease.holds(held, now)}

    def costs(self, what: str) -> dict[str, tuple[str, float]]:
        """Key -> outcome and cost of every cell of this search that has ended.   what: cpu_hours or gpu_hours"""
        return {trial.user_attrs["key"]: (trial.user_attrs["status"], trial.user_attrs["cost"][what])
                for trial in (self.trials() if self.exists() else [])
                if "inherited" not in trial.user_attrs and what in trial.user_attrs.get("cost", {})}


def named(study: str, scale: str, arm: str, task: Task) -> tuple[str, str]:
    """A digest of all that makes values comparable, and the search's name, which knows the space too."""
    sought = [[type(metric).__name__, metric.metric] for metric in task.select]
    same = _digest([study, scale, arm, cell_key(task.base, "valid"), sought])
    shape = [[p.name, repr(distribution(p.domain)), _values(p.domain)] for p in task.space.parameters()]
    return same, f"{study} · {arm} · {scale} · {_digest([same, shape])[:8]}"


def _curve(told: str) -> dict[int, tuple[float, ...]]:
    return {int(step): tuple(values) for step, values in json.loads(told).items()}


def _sign(select: Sought, prune: Pruner) -> str:
    """What the storage's intermediate values are: the pruner's metric, turned to the objective's direction."""
    names = [metric.metric for metric in prune.metrics]
    if len(select) == len(names) == 1 and isinstance(prune.metrics[0], Minimise) != isinstance(select[0], Minimise):
        return f"-{names[0]}"
    return ", ".join(names)


def _values(domain: Any) -> list[str]:
    """What a choice's names stand for: an option whose component changes under its name is another option."""
    return [repr(option.value) for option in domain.options] if isinstance(domain, Choice) else []


def _plain(cost: str) -> str:
    """What the ledger calls it."""
    return cost.removeprefix("cost/")


def _share(cost: Mapping[str, float]) -> float:
    """Of what an attempt has spent, which is the budget's business, what the point costs, which is a goal's: its own
    training, samples and scores, wherever they were made; not what others share and the first of them happens to make,
    nor the time that it waits for that.  More than 1 where its own were found.  1 where a record does not say."""
    return cost[OWN] / cost["seconds"] if OWN in cost and cost.get("seconds") else 1.0


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

