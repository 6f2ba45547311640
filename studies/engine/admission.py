"""Admission: how much of a study can be at work at once, and whose turn it is.

    Capacity    counts what fits the cluster's nodes as they are now, and as its autoscaler may make them
    Queue       Tune's searcher over the cells of a plan: a cell whose process died, or made room, gets another turn

Nothing is ever held in part.  A one-worker trial is one placement group, which Ray grants whole.  A multi-worker trial
holds nothing of a node but a hair of the head: its workers are a group (group.py) in one placement group of their own,
and there are as many groups as fit.  So no trial waits for what another trial's driver holds.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable

from ray.tune.search import Searcher

from studies.engine.cluster import Cluster, shape
from studies.engine.plan import Cell
from studies.engine.study import Resources

DEATHS = 2                              # how often a cell whose process died is started again
LOST_NODES = 50                         # ... and one whose node was lost, which is not its fault
NODE_LOST = ("node has died", "node was terminated", "node died", "NodeDied", "preempt", "node is marked dead",
             "removed from the cluster", "drained")


def node_lost(words: str) -> bool:
    """Whether an error of Ray's says that a process went with its node."""
    return any(some in words for some in NODE_LOST)


class Deaths:
    """How often each cell's process died, and whether that is too often."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()

    def forgiven(self, key: str, words: str) -> bool:
        """Count a death; whether the cell is to be started again."""
        counter, most = (self.nodes, LOST_NODES) if node_lost(words) else (self.own, DEATHS)
        counter[key] += 1
        return counter[key] <= most

    def times(self, key: str) -> int:
        return self.own[key] + self.nodes[key]


class Capacity:
    """How many workers, trials or groups of a study fit, looked up at most every few seconds."""

    EVERY = 3.0

    def __init__(self, cluster: Cluster, resources: Resources):
        self.cluster, self.resources, self.looked = cluster, resources, time.monotonic()

    def look(self) -> Cluster:
        if time.monotonic() - self.looked > self.EVERY:
            self.cluster, self.looked = shape(self.cluster.address), time.monotonic()
        return self.cluster

    def groups(self) -> tuple[int, int]:
        """How many groups fit, and of how many workers each: all that a trial wants; where not even one such group
        fits and the trial makes do with fewer (Resources.least), the largest even part of it that does."""
        slots, wanted = self.look().slots(self.resources), self.resources.workers
        size = next((part for part in parts(self.resources) if part <= slots), wanted)
        return slots // size, size

    def trials(self) -> int:
        """How many trials may be at work or ask for a place; where the cluster may grow, as many as then fit."""
        cluster = self.look()
        if self.resources.workers > 1:
            return max(1, self.groups()[0], cluster.most(self.resources) // self.resources.workers)
        return max(1, cluster.slots(self.resources), cluster.most(self.resources))


def parts(resources: Resources) -> list[int]:
    """The sizes a group may have, largest first: divisors of the wanted one, so that a batch splits over each."""
    wanted, least = resources.workers, resources.least or resources.workers
    return [size for size in range(wanted, least - 1, -1) if wanted % size == 0]


class Queue(Searcher):
    """Hands out cells in order, as many at a time as there is capacity for.

    Tune asks in its own thread.  It remembers nothing that the ledger does not know: save and restore do nothing.
    """

    def __init__(self, cells: Iterable[Cell], capacity: Capacity):
        super().__init__(metric=None, mode=None)
        self.waiting = deque(cells)
        self.capacity = capacity
        self.running: dict[str, Cell] = {}                   # by Tune's id
        self.open = {cell.key for cell in self.waiting}      # those that have not ended
        self.closing = False                                 # nothing new is begun
        self.deaths = Deaths()
        self.lock = threading.RLock()

    def __getstate__(self) -> dict:
        return {}                       # Tune pickles its searcher for a restore that never comes

    def suggest(self, trial_id: str) -> dict | str | None:
        with self.lock:
            if not self.open or self.closing and not self.running:
                return Searcher.FINISHED
            if self.closing or not self.waiting or len(self.running) >= self.capacity.trials():
                return None
            cell = self.waiting.popleft()
            self.running[trial_id] = cell
            return {"cell": cell.key}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        with self.lock:
            self.running.pop(trial_id, None)

    def again(self, cell: Cell) -> None:
        """The cell is to be run once more, before any other."""
        with self.lock:
            if cell not in self.waiting:
                self.waiting.appendleft(cell)

    def ended(self, cell: Cell) -> None:
        with self.lock:
            self.open.discard(cell.key)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger knows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger knows."""
