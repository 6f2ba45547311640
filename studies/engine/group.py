"""Cells with several workers: Ray Train groups that stay warm, gloo on CPUs and NCCL on GPUs.

    Crew (the driver)     one thread a group: TorchTrainer.fit(serve), for as long as there is work
    serve (each worker)   takes cell after cell from the desk: serving.py
    GroupCell (Tune)      holds nothing of a node: brings its cell to the desk and waits

A group takes ten seconds and more to start, a cell of a warm one some hundredths.  A group whose worker was killed, or
that lost its node, ends whole; another is started, as large as then fits (Resources.least), and goes on with the cell
from its checkpoint.  When nodes come, groups that are smaller than they could be make room at the cell's next step.
The driver owns the groups: when it ends, Ray takes all their places back.
"""

import json
import shutil
import threading
import time
from typing import Any

import ray
from ray import train, tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.util import remove_placement_group

from studies.engine import inline
from studies.engine.admission import Capacity
from studies.engine.desk import Desk, Outcome
from studies.engine.halt import listen
from studies.engine.inline import Place, give_up, one_line
from studies.engine.ledger import Record
from studies.engine.plan import Cell, Shared
from studies.engine.serving import serve

HEAD = "node:__internal_head__"         # a resource that every cluster's head has
TRIES = 3                               # starts of a group in a row that may fail before there is any


class GroupCell(tune.Trainable):
    """Tune's side of a cell whose work is done by a group."""

    def setup(self, config: dict, cells: dict[str, Cell] | None = None, place: Place | None = None,
              desk: Any = None) -> None:
        assert cells is not None and place is not None
        self.cells, self.place, self.desk, self.cell = cells, place, desk, inline.chosen(config, cells)

    def reset_config(self, new_config: dict) -> bool:
        self.cell = inline.chosen(new_config, self.cells)
        return True

    def step(self) -> dict[str, Any]:
        outcome = _ask(self.desk.do.remote(self.cell.key, self.cell))
        if outcome["status"] in ("dead", "error"):           # no worker lived to tell, or could
            outcome |= {"record": json.dumps(give_up(self.cell, self.place, outcome["reason"]))}
        return outcome | {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: stages keep what is worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: running the cell again is the resume."""


class Listening(_TorchBackend):
    """Torch's process group, in workers to whom SIGTERM is a notice.

    A worker trains in a thread, where no signal arrives; Ray Train runs this in its main thread, and asks there how it
    is five times a second, which is when Python sees the signal.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(listen)
        super().on_start(worker_group, backend_config)


class ListeningTorch(TorchConfig):
    """What makes Ray Train use it."""

    @property
    def backend_cls(self) -> type[Listening]:
        return Listening


# ---------------------------------------------------------------- the driver's side


class Crew:
    """The groups of a study; they live in threads of the driver, and no longer than there is work."""

    EVERY = 2.0                          # seconds between two looks at the cluster

    def __init__(self, place: Place, capacity: Capacity | None):
        self.place = place
        if capacity is None:
            from studies.engine.cluster import shape

            capacity = Capacity(shape(ray.get_runtime_context().gcs_address), place.resources)
        self.capacity = capacity
        self.desk: Any = ray.remote(Desk).options(
            num_cpus=0, resources={HEAD: 0.0001}, max_concurrency=10_000).remote()
        self.over = threading.Event()
        self.failures, self.problem = 0, ""
        self.sizes: dict[str, int] = {}                      # group -> workers, of those that are there or on their way
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._lead, name="crew", daemon=True)
        self.thread.start()

    def stage(self, shared: Shared) -> Any:
        """Have a shared stage made; a reference to its record."""
        return ray.remote(stage_record).options(num_cpus=0, resources={HEAD: 0.0001}).remote(
            shared, self.place, self.desk)

    def _lead(self) -> None:
        """Start a group wherever a job waits and a place is free; let those go that have the wrong size."""
        number, undersized = 0, 0.0
        while not self.over.is_set():
            try:
                wanted = _ask(self.desk.wanted.remote())
                groups, size = self.capacity.groups()
                with self.lock:
                    sizes = dict(self.sizes)
                coming = len(sizes.keys() - set(wanted["there"]))
                if wanted["jobs"] > wanted["free"] + coming and len(sizes) < max(groups, 1):
                    number += 1
                    name = f"{self.place.driver}-{number}"
                    with self.lock:
                        self.sizes[name] = size
                    threading.Thread(target=self._group, args=(name, size), name=name, daemon=True).start()
                small = [name for name, workers in sizes.items() if workers < size]
                undersized = (undersized or time.monotonic()) if small and groups else 0.0
                if undersized and time.monotonic() - undersized > 5 * self.EVERY:
                    undersized = 0.0     # nodes came, and stayed: begin again with more workers
                    for name in small:
                        if (key := _ask(self.desk.leave.remote(name))) is not None:
                            self.place.room(key).set("more workers have come")
            except BaseException:        # Ray is ending: it raises SystemExit in threads that wait for it
                if self.over.is_set() or not ray.is_initialized():
                    return
            self.over.wait(0.2 if self.failures == 0 else self.EVERY)

    def _group(self, name: str, size: int) -> None:
        """One group, from its start to its end."""
        began, nodes = time.monotonic(), _nodes()
        problem = fit(name, size, self.place, self.desk)
        if self.over.is_set():           # Ray may be gone, and ends a process whose thread still asks it something
            with self.lock:
                self.sizes.pop(name, None)
            return
        try:
            there = name in _ask(self.desk.state.remote())["groups"]      # did it live to take a job?
            if problem and nodes - _nodes():
                problem = f"its node died: {problem}"
            places = _ask(self.desk.lost.remote(name, problem))
            if problem and places is not None:               # a killed controller takes its workers along, not these
                remove_placement_group(places)
            self.failures = 0 if there or not problem else self.failures + 1
            late = "startup timed out" in problem or time.monotonic() - began > 60       # its places may yet come free
            if self.failures >= TRIES and not late and len(self.sizes) == 1:
                _ask(self.desk.refuse.remote(f"no group of {size} workers could be started: {problem}"))
                self.failures = 0
            self.problem = problem
        except BaseException:            # Ray is ending
            pass
        with self.lock:
            self.sizes.pop(name, None)

    def release(self) -> None:
        """End the groups; what they are at is not waited for."""
        self.over.set()
        try:
            for name in list(self.sizes):
                _ask(self.desk.leave.remote(name), timeout=5)
            until = time.monotonic() + 10                    # a graceful end: Ray Train removes its placement groups
            while self.sizes and time.monotonic() < until:
                time.sleep(0.05)
            ray.kill(self.desk)
        except Exception:                # Ray has ended
            pass
        self.thread.join(5)


_CREW: list[Crew] = []                   # this process's, one at most


def crew(place: Place, capacity: Capacity | None = None) -> Crew:
    """The groups of this driver, for this place."""
    if _CREW and (_CREW[0].place != place or _CREW[0].over.is_set() or not _CREW[0].thread.is_alive()):
        release()
    if not _CREW:
        _CREW.append(Crew(place, capacity))
    return _CREW[0]


def release() -> None:
    """Give the places of this driver's groups back."""
    while _CREW:
        _CREW.pop().release()


def standing() -> list[str]:
    """For the watchdog: what this driver's groups do."""
    lines = []
    for each in _CREW:
        state = _ask(each.desk.state.remote(), timeout=5)
        for name, size in dict(each.sizes).items():
            told = state["groups"].get(name)
            at = "starting: waits for its places, or for its processes" if told is None else \
                f"at {told['at']}, ranks {told['told']} are ready with it" if told["at"] else "free"
            lines.append(f"  group {name} of {size} workers: {at}")
        lines += [f"  {len(state['waiting'])} cells wait for a group"] if state["waiting"] else []
        lines += [f"  the last group ended: {each.problem}"] if each.problem else []
    return lines


def fit(name: str, size: int, place: Place, desk: Any) -> str:
    """Be a group until there is no more work; what it died of, or nothing."""
    resources = place.resources
    holds = {"CPU": float(resources.cpus)} | ({"GPU": float(resources.gpus)} if resources.gpus else {})
    folder = place.folder / "groups"                         # Train's bookkeeping, on what every node sees
    try:
        TorchTrainer(
            serve, train_loop_config={"name": name, "place": place, "desk": desk},
            torch_config=ListeningTorch(backend="nccl" if resources.gpus and _has_accelerators() else "gloo"),
            scaling_config=train.ScalingConfig(num_workers=size, use_gpu=resources.gpus > 0,
                                               resources_per_worker=holds),
            run_config=train.RunConfig(
                name=name, storage_path=str(folder),
                failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0)),
        ).fit()
    except BaseException as error:       # SystemExit, where Ray is ending
        return one_line(error)
    finally:
        shutil.rmtree(folder / name, ignore_errors=True)
    return ""


def _nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _ask(answer: Any, timeout: float | None = None) -> Any:
    """What the desk says."""
    return ray.get(answer, timeout=timeout)


def _has_accelerators() -> bool:
    """Whether the cluster's GPUs are more than numbers that somebody gave to `ray start`."""
    return any(name.startswith("accelerator_type:") for name in ray.cluster_resources())


def stage_record(shared: Shared, place: Place, desk: Any) -> Record:
    """What the Ray task of a shared stage that trains together runs."""
    outcome: Outcome = _ask(desk.do.remote(f"stage-{shared.key}", shared))
    if outcome["status"] == inline.FULL:
        raise OSError(outcome["reason"])
    record = json.loads(outcome["record"]) if "record" in outcome else place.ledger.stage(shared.key)
    if outcome["status"] in ("dead", "stopped") or record is None:
        status = "stopped" if outcome["status"] == "stopped" else "failed"
        return {"key": shared.key, "kind": type(shared.stage).__name__, "status": status,
                "reason": outcome["reason"], "seconds": 0.0}
    return record
