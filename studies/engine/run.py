"""The run: shared stages as Ray tasks, then the missing cells through Ray Tune.

    make_shared     each stage once, as soon as what it needs is there; a failed one fails the cells that stand on it
                    (a lost node, or two deaths of its process, do not make it fail: admission.py)
    run_cells       one Tuner over the missing keys; never a restore: the ledger is the memory

Nothing here decides what a cell is or what became of it; workers write that themselves (inline.py).  Who may be at work
is said in admission.py.  An interrupt is a notice: what runs saves itself at its next step, for SAVING seconds at most.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayError

from studies.engine import group, inline
from studies.engine.admission import Capacity, Deaths, Queue
from studies.engine.cluster import Cluster
from studies.engine.halt import Halt, disk_full
from studies.engine.inline import Place
from studies.engine.ledger import Record
from studies.engine.live import View
from studies.engine.plan import Cell, Plan, Shared
from studies.engine.watchdog import Watchdog

__all__ = ["fit", "make_shared", "run", "run_cells", "trainable"]

HEAD = "node:__internal_head__"         # a resource that every cluster's head has
LEAVING = 3.0                           # seconds that Tune has to end when nothing runs any more
SAVING = 20.0                           # seconds: Kubernetes kills 30 after it told, Slurm 30, most clouds 30 to 120


def run(plan: Plan, place: Place, cluster: Cluster, view: View) -> None:
    """Do what the plan says is missing.  Failures become records; an interrupt and a Halt come out of here."""
    view.concurrent = cluster.trials(place.resources)
    try:
        broken = make_shared(plan.shared, place, view, cluster)
        ready = []
        for cell in plan.missing:
            under = [shared.key for shared in plan.shared if cell in shared.cells]
            lost = next((broken[key] for key in under if key in broken), None)
            if lost is None:
                ready.append(cell)
            else:
                reason = f"{lost['kind']} {lost['status']}: {lost['reason']}"
                view.ends(cell, inline.give_up(cell, place, reason, lost["status"]))
        if ready:
            run_cells(ready, place, view, cluster)
    except BaseException:                # else they wait a while, since another wave may follow
        group.release()
        raise


def make_shared(stages: Iterable[Shared], place: Place, view: View, cluster: Cluster) -> dict[str, Record]:
    """Make the shared stages; the records of those that could not be made, by key."""
    place.notice.clear()
    waiting = {shared.key: shared for shared in stages}
    running: dict[Any, Shared] = {}
    broken: dict[str, Record] = {}
    deaths, again = Deaths(), set[str]()
    watchdog, capacity = Watchdog(place, view), Capacity(cluster, place.resources)
    try:
        while waiting or running:
            for shared in list(waiting.values()):
                lost = next((broken[needed] for needed in shared.needs if needed in broken), None)
                undone = waiting.keys() | {other.key for other in running.values()}
                if lost is not None:
                    del waiting[shared.key]
                    broken[shared.key] = lost
                elif undone.isdisjoint(shared.needs) and (
                        not running or sum(width(each, place) for each in [*running.values(), shared])
                        <= capacity.look().most(place.resources)):          # an autoscaler is asked for all of them
                    del waiting[shared.key]
                    view.begins(shared)
                    running[submit(shared, place, cluster, shared.key in again)] = shared
            done, _ = ray.wait(list(running), timeout=0.5) if running else ([], [])
            for ref in done:
                shared = running.pop(ref)
                try:
                    record = ray.get(ref)
                except (RayError, OSError) as error:
                    if disk_full(error):
                        raise Halt(full(place, inline.one_line(error))) from None
                    died = not deaths.forgiven(shared.key, f"{type(error).__name__}: {error}")
                    record = {"key": shared.key, "kind": type(shared.stage).__name__, "seconds": 0.0,
                              "status": "failed" if died else "stopped",
                              "reason": f"its process died {deaths.times(shared.key)} times: {inline.one_line(error)}"}
                if record["status"] == "stopped":         # it made room, or died: another process goes on with it
                    view.drops(shared)
                    waiting[shared.key] = shared
                    again.add(shared.key)
                    continue
                view.ends(shared, record)
                if record["status"] != "done":
                    broken[shared.key] = record
            view.tick()
            watchdog.tick()
    except KeyboardInterrupt:
        with saved(place):
            ray.wait(list(running), num_returns=len(running), timeout=SAVING) if running else None
        raise
    return broken


class saved:
    """While in here, everything that this driver runs is asked to save itself and end."""

    def __init__(self, place: Place):
        self.notice = place.notice

    def __enter__(self) -> None:
        self.notice.set("the driver was told to end")

    def __exit__(self, *exception: object) -> None:
        self.notice.clear()


def full(place: Place, words: str) -> str:
    """What to say when a disk is full."""
    free = {folder: shutil.disk_usage(folder).free / 2**20
            for folder in (place.folder, Path(place.open_store().folder)) if folder.exists()}
    return (f"a disk is full ({words}); free: "
            + ", ".join(f"{mib:.0f} MiB in {folder}" for folder, mib in free.items())
            + ".  Make room, and the same command continues: what is done is kept")


def width(shared: Shared, place: Place) -> int:
    """How many workers make the stage."""
    return place.resources.workers if getattr(shared.stage, "together", False) else 1


def submit(shared: Shared, place: Place, cluster: Cluster, again: bool = False) -> Any:
    """Start what makes a stage, `again` where a process came back without it.

    Ray's own retries count a lost node as a death, so they are off.  A process is done after one stage (max_calls)
    where it would else keep a GPU's memory while the next trial holds it: Ray sees to that where the GPUs are said
    to `remote`, and not where they are said to `options`.  So is one that goes on with a stage: if it was told to make
    room, as the one before it, it would stop after every step.
    """
    if width(shared, place) > 1:
        return group.crew(place, Capacity(cluster, place.resources)).stage(shared)
    holds: dict[str, Any] = {"num_cpus": place.resources.cpus, "num_gpus": place.resources.gpus, "max_retries": 0}
    if again:
        holds["max_calls"] = 1
    return ray.remote(**holds)(inline.make_stage).remote(shared, place)


class Watch(tune.Callback):
    """Tells the view, and the queue, what Tune does; runs in Tune's thread."""

    def __init__(self, cells: dict[str, Cell], place: Place, view: View, queue: Queue):
        self.cells, self.place, self.view, self.queue = cells, place, view, queue
        self.halted = ""

    def __getstate__(self) -> dict:
        return {}                       # Tune pickles its callbacks for a restore that never comes

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.view.begins(self.cells[trial.config["cell"]])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        cell, result = self.cells[trial.config["cell"]], trial.last_result or {}
        record = inline.told(result, cell, self.place)
        if result.get("status") == inline.FULL:
            self.view.drops(cell)
            self.queue.closing = True
            self.halted = result.get("reason", "")
        elif result.get("status") == "stopped":
            self.view.drops(cell)
            self.queue.again(cell)
        else:
            self.view.ends(cell, record or inline.give_up(cell, self.place, "it left no record"))
            self.queue.ended(cell)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        cell = self.cells[trial.config["cell"]]
        words = " ".join((trial.error_file and open(trial.error_file).read() or "").split())
        if disk_full(OSError(words)):
            self.view.drops(cell)
            self.queue.closing, self.halted = True, words[-200:]
        elif self.queue.deaths.forgiven(cell.key, words):
            self.view.drops(cell)
            self.queue.again(cell)
        else:
            reason = f"its process died {self.queue.deaths.times(cell.key)} times: {words[-200:]}"
            self.view.ends(cell, inline.give_up(cell, self.place, reason))
            self.queue.ended(cell)


def run_cells(cells: list[Cell], place: Place, view: View, cluster: Cluster) -> None:
    """Every cell once, as many at a time as fit.  Tune runs in a thread, so that Ctrl-C and the view are ours."""
    by_key = {cell.key: cell for cell in cells}
    queue = Queue(cells, Capacity(cluster, place.resources))
    watch, watchdog = Watch(by_key, place, view, queue), Watchdog(place, view)
    folder = place.folder / "tune"
    tuner = tune.Tuner(
        trainable(by_key, place, cluster), param_space={},
        tune_config=tune.TuneConfig(search_alg=queue, num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(name=f"{time.time_ns()}", storage_path=str(folder), verbose=0, callbacks=[watch],
                                  failure_config=tune.FailureConfig(max_failures=0)))

    def tick() -> None:
        view.tick()
        watchdog.tick()

    problem = fit(tuner, queue, lambda: not queue.open or bool(watch.halted), tick, place, view)
    shutil.rmtree(folder, ignore_errors=True)
    if watch.halted or disk_full(problem):
        raise Halt(full(place, watch.halted or inline.one_line(problem)))       # type: ignore[arg-type]
    for cell in cells:
        if cell.key in queue.open:
            reason = f"Ray Tune stopped: {inline.one_line(problem) if problem else 'it does not say why'}"
            view.ends(cell, inline.give_up(cell, place, reason))


def trainable(cells: dict[str, Cell], place: Place, cluster: Cluster | None = None) -> Any:
    """What Tune runs a cell in, with what that holds."""
    if place.resources.workers == 1:
        holds = tune.PlacementGroupFactory([{"CPU": place.resources.cpus, "GPU": place.resources.gpus}])
        return tune.with_resources(tune.with_parameters(inline.InlineCell, cells=cells, place=place), holds)
    # Its workers hold the CPUs and GPUs, in a placement group that Ray Train makes at once or not at all.  The trial
    # itself holds neither, so trials that wait can never hold half of what another needs.
    crew = group.crew(place, None if cluster is None else Capacity(cluster, place.resources))
    holds = tune.PlacementGroupFactory([{HEAD: 0.0001}])
    return tune.with_resources(
        tune.with_parameters(group.GroupCell, cells=cells, place=place, desk=crew.desk), holds)


class Hands(Protocol):
    """What hands out cells to Tune; nothing any more once it is closing, where what saves itself is not begun again."""

    closing: bool


def fit(tuner: tune.Tuner, hands: Hands, over: Callable[[], bool], tick: Callable[[], None], place: Place,
        view: View) -> BaseException | None:
    """Let Tune run in a thread until it ends or `over` says so; what it died of, if of anything.

    An interrupt asks what runs (as far as `view` knows) to save itself, and comes out when that has ended, and Tune
    too, if it does soon: what its thread still asks of a Ray that is gone may end the process.
    """
    problems: list[BaseException] = []

    def run_it() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run_it, name="tune", daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not over():
            time.sleep(0.3)
            tick()
    except KeyboardInterrupt:
        hands.closing = True
        with saved(place):
            until = time.monotonic() + SAVING
            while thread.is_alive() and view.running and time.monotonic() < until:
                time.sleep(0.1)
            thread.join(LEAVING)
        raise
    thread.join(1.0)
    return problems[0] if problems else None
