"""Tune's side of a search: a searcher that asks Optuna, and an ear at the cells' outboxes.

    suggest(trial id) -> {"made": cell} | None: ask again later | FINISHED       the arm that asked least comes first
    Watch             -> what became of it goes to its search; who made room, or died, gets another turn
    listen()          -> curves go to their searches; who should stop gets a mark

Nothing new begins once the driver is told to end, the storage is away, a disk is full, or the hours are spent
(bound.py).  What saves itself then is not begun again but given back, so that another driver goes on with it at once.

It remembers nothing that the storage does not know: save and restore do nothing.
"""

import shutil
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from studies.engine import inline
from studies.engine.admission import Capacity, Deaths
from studies.engine.bound import Bound
from studies.engine.cluster import Cluster
from studies.engine.halt import Halt, disk_full
from studies.engine.inline import Place
from studies.engine.ledger import Record, read_from
from studies.engine.live import View
from studies.engine.plan import Cell
from studies.engine.run import fit, full, trainable
from studies.engine.search import DONE, WAIT, Search
from studies.engine.watchdog import Watchdog


class Asking(Searcher):
    """One searcher over the searches of all arms."""

    def __init__(self, searches: list[Search], place: Place, capacity: Capacity, bound: Bound = Bound()):
        super().__init__(metric=None, mode=None)
        self.searches, self.place, self.capacity, self.bound = searches, place, capacity, bound
        self.running: dict[str, str] = {}                        # Tune's id -> key
        self.work: dict[str, tuple[Search, Cell]] = {}           # key -> what has not ended
        self.waiting: deque[str] = deque()                       # keys of those that get another turn
        self.offsets: dict[str, int] = {}                        # key -> what was read of its outbox
        self.asked = {one.arm: 0 for one in searches}
        self.over: set[str] = set()
        self.closing = False                                     # nothing new is begun
        self.problem: BaseException | None = None
        self.deaths = Deaths()
        self.lock = threading.RLock()

    def __getstate__(self) -> dict:
        return {}                       # Tune pickles its searcher for a restore that never comes

    def suggest(self, trial_id: str) -> dict | str | None:
        with self.lock:
            if self.closing:
                return None if self.running else Searcher.FINISHED
            if len(self.running) >= self.capacity.trials():
                return None
            try:
                cell = self._next()
            except Exception as error:  # the storage is gone: what runs may end, nothing new begins
                self.fails(error)
                return None if self.running else Searcher.FINISHED
            if cell is None:
                return None if len(self.over) < len(self.searches) or self.work else Searcher.FINISHED
            self.running[trial_id] = cell.key
            return {"cell": cell.key, "made": cell}

    def _next(self) -> Cell | None:
        if self.waiting:
            return self.work[self.waiting.popleft()][1]
        if self.bound.reached(self.searches, self.capacity.trials()):
            if not self.work and not any(one.elsewhere() for one in self.searches):     # else it may yet be enough
                self.over = {one.arm for one in self.searches}
            return None
        for one in sorted(self.searches, key=lambda one: self.asked[one.arm]):
            if one.arm in self.over:
                continue
            answer = one.ask()
            if answer == DONE:
                self.over.add(one.arm)
            elif answer != WAIT:
                self.asked[one.arm] += 1
                self.place.stop(answer.key).clear()
                self.offsets[answer.key] = 0
                self.work[answer.key] = one, answer
                return answer
        return None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        with self.lock:
            self.running.pop(trial_id, None)

    # -- what Watch says

    def again(self, cell: Cell) -> None:
        """The cell is to be run once more, before any other; where nothing begins any more, by whoever asks next."""
        with self.lock:
            if not self.closing:
                self.waiting.appendleft(cell.key)
                return
            one, _ = self.work.pop(cell.key)
            try:
                one.release(cell.key)
            except Exception as error:
                self.fails(error)

    def leave(self, at_work: Collection[str]) -> None:
        """Give back what was handed out and has not begun.   at_work: keys of what could not save itself in time; their
        leases end with this process"""
        with self.lock:
            self.closing = True
            for key, (_, cell) in list(self.work.items()):
                if key not in at_work:
                    self.again(cell)

    def ended(self, cell: Cell, record: Record | None) -> None:
        with self.lock:
            one, _ = self.work.pop(cell.key)
            try:
                self.read(one, cell.key)
                one.tell(cell.key, record)
            except Exception as error:
                self.fails(error)

    def fails(self, error: BaseException) -> None:
        """Nothing new begins; what runs leaves its records in the ledger, where the next command finds them."""
        self.problem, self.closing = self.problem or error, True

    # -- while it runs

    def listen(self) -> None:
        """Bring what live cells have recorded to their searches, and renew our leases."""
        with self.lock:
            try:
                for one, cell in self.work.values():
                    if reason := self.read(one, cell.key):
                        self.place.stop(cell.key).set(reason)
                for one in self.searches:
                    one.renew()
            except Exception as error:
                self.fails(error)

    def read(self, one: Search, key: str) -> str:
        """Tell a search what its cell has recorded since we last looked; why it should stop, or nothing."""
        path, reason = self.place.ledger.outbox(key), ""
        if one.prune is not None and path.exists():
            lines, self.offsets[key] = read_from(path, self.offsets.get(key, 0))
            for line in lines:
                if line["kind"] == "metrics" and not reason:
                    reason = one.report(key, line["step"], line["metrics"])
        return reason

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the storage knows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the storage knows."""


class Watch(tune.Callback):
    """Tells the view, and the searches, what Tune does; runs in Tune's thread."""

    def __init__(self, place: Place, view: View, progress: Any, asking: Asking):
        self.place, self.view, self.progress, self.asking = place, view, progress, asking
        self.halted = ""

    def __getstate__(self) -> dict:
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        cell = trial.config["made"]
        self.progress.cells.setdefault(cell.key, cell)
        self.view.begins(cell)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        cell, result = trial.config["made"], trial.last_result or {}
        record = inline.told(result, cell, self.place)
        if result.get("status") == inline.FULL:
            self.halt(cell, result.get("reason", ""))
        elif result.get("status") == "stopped":
            self.asking.again(cell)
            self.view.drops(cell)       # last: an interrupt waits until nothing is shown as running
        else:
            self.asking.ended(cell, record)
            if record is not None:
                self.view.ends(cell, record)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        cell = trial.config["made"]
        words = " ".join((trial.error_file and open(trial.error_file).read() or "").split())
        if disk_full(OSError(words)):
            self.halt(cell, words[-200:])
        elif self.asking.deaths.forgiven(cell.key, words):
            self.asking.again(cell)
            self.view.drops(cell)
        else:
            reason = f"its process died {self.asking.deaths.times(cell.key)} times: {words[-200:]}"
            record = inline.give_up(cell, self.place, reason)
            self.asking.ended(cell, record)
            self.view.ends(cell, record)

    def halt(self, cell: Cell, words: str) -> None:
        self.asking.closing, self.halted = True, words
        self.asking.again(cell)
        self.view.drops(cell)


def run_searches(searches: list[Search], progress: Any, place: Place, view: View, cluster: Cluster,
                 bound: Bound) -> BaseException | None:
    """Search until every budget is spent; what it could not go on for, or None.   Halt"""
    if not searches:
        return None
    asking = Asking(searches, place, Capacity(cluster, place.resources), bound)
    watch, watchdog = Watch(place, view, progress, asking), Watchdog(place, view)
    folder = place.folder / f"tune-{time.time_ns()}"
    tuner = tune.Tuner(
        trainable({}, place, cluster), param_space={},
        tune_config=tune.TuneConfig(search_alg=asking, num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(name="search", storage_path=str(folder), verbose=0, callbacks=[watch],
                                  failure_config=tune.FailureConfig(max_failures=0)))

    def tick() -> None:
        asking.listen()
        view.tick()
        watchdog.tick()

    try:
        problem = fit(tuner, asking, lambda: bool(watch.halted), tick, place, view) or asking.problem
    except KeyboardInterrupt:
        asking.leave(view.running)      # Tune's thread outlives it, and would go on
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if watch.halted or disk_full(problem):
        raise Halt(full(place, watch.halted or inline.one_line(problem)))       # type: ignore[arg-type]
    return problem
