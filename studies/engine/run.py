"""The run: shared stages as Ray tasks, then the missing cells through Ray Tune.

    make_shared     each stage once, as soon as what it needs is there; a failed one fails the cells that stand on it
    run_cells       one Tuner over the missing keys; never a restore: the ledger is the memory

Nothing here decides what a cell is or what became of it; workers write that themselves (inline.py).
"""

import shutil
import threading
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from studies.engine import group, inline
from studies.engine.cluster import Cluster
from studies.engine.inline import Place
from studies.engine.ledger import Record
from studies.engine.live import View
from studies.engine.plan import Cell, Plan, Shared

DEATHS = 2                              # how often a cell whose process died is started again
HEAD = "node:__internal_head__"         # a resource that every cluster's head has


def run(plan: Plan, place: Place, cluster: Cluster, view: View) -> None:
    """Do what the plan says is missing.  Failures become records; only an interrupt comes out of here."""
    view.concurrent = cluster.trials(place.resources)
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
        run_cells(ready, place, view, view.concurrent)


def make_shared(stages: Iterable[Shared], place: Place, view: View, cluster: Cluster) -> dict[str, Record]:
    """Make the shared stages; the records of those that could not be made, by key."""
    waiting = {shared.key: shared for shared in stages}
    running: dict[Any, Shared] = {}
    broken: dict[str, Record] = {}
    free = cluster.slots(place.resources)
    while waiting or running:
        for shared in list(waiting.values()):
            lost = next((broken[needed] for needed in shared.needs if needed in broken), None)
            undone = waiting.keys() | {other.key for other in running.values()}
            if lost is not None:
                del waiting[shared.key]
                broken[shared.key] = lost
            elif free >= width(shared, place) and undone.isdisjoint(shared.needs):
                del waiting[shared.key]
                free -= width(shared, place)
                view.begins(shared)
                running[submit(shared, place)] = shared
        done, _ = ray.wait(list(running), timeout=0.5) if running else ([], [])
        for ref in done:
            shared = running.pop(ref)
            free += width(shared, place)
            try:
                record = ray.get(ref)
            except RayError as error:     # the process died, again and again
                record = {"key": shared.key, "kind": type(shared.stage).__name__, "status": "failed",
                          "reason": f"its process died: {inline.one_line(error)}", "seconds": 0.0}
            view.ends(shared, record)
            if record["status"] != "done":
                broken[shared.key] = record
        view.tick()
    return broken


def width(shared: Shared, place: Place) -> int:
    """How many workers make the stage."""
    return place.resources.workers if getattr(shared.stage, "together", False) else 1


def submit(shared: Shared, place: Place) -> Any:
    """Start the Ray task that makes a stage."""
    if width(shared, place) > 1:
        return ray.remote(group.make_stage).options(num_cpus=0, resources={HEAD: 0.0001}).remote(shared, place)
    return ray.remote(inline.make_stage).options(
        num_cpus=place.resources.cpus, num_gpus=place.resources.gpus, max_retries=DEATHS).remote(shared, place)


class Watch(tune.Callback):
    """Tells the view what Tune does; runs in Tune's thread."""

    def __init__(self, cells: dict[str, Cell], place: Place, view: View):
        self.cells, self.place, self.view = cells, place, view
        self.ended: set[str] = set()

    def __getstate__(self) -> dict:
        return {}                       # Tune pickles its callbacks for a restore that never comes

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.view.begins(self.cells[trial.config["cell"]])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        cell = self.cells[trial.config["cell"]]
        self.ended.add(cell.key)
        record = self.place.ledger.cell(cell.key)
        if record is not None:
            self.view.ends(cell, record)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        cell = self.cells[trial.config["cell"]]
        words = " ".join((trial.error_file and open(trial.error_file).read() or "").split())[-200:]
        reason = f"its process died {DEATHS + 1} times: {words}"
        self.view.ends(cell, inline.give_up(cell, self.place, reason))
        self.ended.add(cell.key)


def run_cells(cells: list[Cell], place: Place, view: View, concurrent: int) -> None:
    """Every cell once, `concurrent` at a time.  Tune runs in a thread, so that Ctrl-C and the view are ours."""
    by_key = {cell.key: cell for cell in cells}
    watch = Watch(by_key, place, view)
    folder = place.folder / "tune"
    if place.resources.workers == 1:
        trainable = tune.with_parameters(inline.InlineCell, cells=by_key, place=place)
        holds = tune.PlacementGroupFactory([{"CPU": place.resources.cpus, "GPU": place.resources.gpus}])
    else:
        # Its workers hold the CPUs and GPUs, in a placement group that Ray Train makes at once or not at all.  The
        # trial itself holds neither, so trials that wait can never hold half of what another needs.
        trainable = tune.with_parameters(group.GroupCell, cells=by_key, place=place)
        holds = tune.PlacementGroupFactory([{HEAD: 0.0001}])
    tuner = tune.Tuner(
        tune.with_resources(trainable, holds),
        param_space={"cell": tune.grid_search(list(by_key))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(name=f"{time.time_ns()}", storage_path=str(folder), verbose=0, callbacks=[watch],
                                  failure_config=tune.FailureConfig(max_failures=DEATHS)))
    problems: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    thread.start()
    while thread.is_alive() and len(watch.ended) < len(cells):
        time.sleep(0.3)
        view.tick()
    thread.join(1.0)
    shutil.rmtree(folder, ignore_errors=True)
    for cell in cells:
        if cell.key not in watch.ended:
            reason = f"Ray Tune stopped: {inline.one_line(problems[0]) if problems else 'it does not say why'}"
            view.ends(cell, inline.give_up(cell, place, reason))
