"""A cell with several workers: one Ray Train group does it, gloo on CPUs and NCCL on GPUs.

    GroupCell (Tune, holds nothing) -> TorchTrainer -> worker 0: the cell, as alone, but for stages that train together
                                                       others:   those stages only

A stage trains together when its class says `together = True`; its `make` finds the group in `context.parallel`.
Worker 0 holds the stage's lock and tells the others whether there is anything to make, so that nobody waits in a
collective for somebody who found the result finished.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import train, tune
from ray.train.torch import TorchConfig, TorchTrainer

from studies.engine import inline
from studies.engine.inline import Place, attempt, give_up, one_line
from studies.engine.ledger import Record
from studies.engine.plan import Cell, Shared
from trainables.stages import Context, Stage, upstream
from trainables.training.parallel import Parallel


class GroupCell(tune.Trainable):
    """Tune's side of a cell whose work is done by a worker group."""

    def setup(self, config: dict, cells: dict[str, Cell] | None = None, place: Place | None = None) -> None:
        assert cells is not None and place is not None
        self.cells, self.place, self.cell = cells, place, cells[config["cell"]]

    def reset_config(self, new_config: dict) -> bool:
        self.cell = self.cells[new_config["cell"]]
        return True

    def step(self) -> dict[str, Any]:
        cell, place, before = self.cell, self.place, self.place.ledger.cell(self.cell.key)
        problem = fit(cell.key, place, lambda rank: do_cell(cell, place, rank))
        record = place.ledger.cell(cell.key)
        if record is None or record == before:           # no worker lived to tell
            record = give_up(cell, place, problem)
        return {"status": record["status"], "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: stages keep what is worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: running the cell again is the resume."""


def make_stage(shared: Shared, place: Place) -> Record:
    """`inline.make_stage` with a group: what the Ray task of a shared stage that trains together runs."""
    problem = fit(shared.key, place, lambda rank: do_stage(shared, place, rank))
    record = place.ledger.stage(shared.key)
    return record or {"key": shared.key, "kind": type(shared.stage).__name__, "status": "failed", "reason": problem,
                      "seconds": 0.0}


def fit(name: str, place: Place, each: Callable[[int], None]) -> str:
    """Call `each(rank)` in every worker of a new group, and wait; what went wrong, or nothing."""
    resources = place.resources
    holds = {"CPU": float(resources.cpus)} | ({"GPU": float(resources.gpus)} if resources.gpus else {})
    with tempfile.TemporaryDirectory() as folder:        # Train's bookkeeping; ours is in the store and the ledger
        try:
            TorchTrainer(
                work, train_loop_config={"each": each},
                torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
                scaling_config=train.ScalingConfig(num_workers=resources.workers, use_gpu=resources.gpus > 0,
                                                   resources_per_worker=holds),
                run_config=train.RunConfig(
                    name=name, storage_path=folder,
                    failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=1)),
            ).fit()
        except Exception as error:
            return one_line(error)
    return ""


def work(config: dict) -> None:
    """What each worker of a group runs."""
    config["each"](train.get_context().get_world_rank())


def do_cell(cell: Cell, place: Place, rank: int) -> None:
    """A cell, seen from one worker."""
    if rank > 0:
        context = place.context(_unheard)
        produce(cell, context, Parallel.joined(context.device))
        return
    record = attempt(cell, place, lambda context: produce(cell, context, Parallel.joined(context.device)))
    if record["status"] != "done":
        raise RuntimeError(record["reason"])             # ends the others, who may be waiting for us


def do_stage(shared: Shared, place: Place, rank: int) -> None:
    """A shared stage that trains together, seen from one worker."""
    def together(context: Context) -> None:
        make_together(shared.stage, context, Parallel.joined(context.device))

    if rank > 0:
        together(place.context(_unheard))
    elif (record := inline.make_stage(shared, place, together))["status"] != "done":
        raise RuntimeError(record["reason"])


def _unheard(step: int, metrics: Mapping[str, float]) -> None:
    """Worker 0 records for all."""


def produce(cell: Cell, context: Context, parallel: Parallel) -> Path:
    """The folder of the cell's metrics, on worker 0; the other workers help with what trains together."""
    wanted = cell.trial.metrics()
    if parallel.share(bytes([not context.store.has(wanted)]))[0]:
        for stage in upstream(wanted):
            if getattr(stage, "together", False):
                make_together(stage, context, parallel)
    return context.get(wanted) if parallel.rank == 0 else context.store.folder


def make_together(stage: Stage, context: Context, parallel: Parallel) -> None:
    """Make a stage with all workers, unless it is there."""
    joined = replace(context, parallel=parallel)
    if parallel.rank > 0:
        if parallel.share(b"") == b"make":
            stage.make(context.store.unfinished(stage), joined)
        return
    told = False

    def make(out: Path, inner: Context) -> None:
        nonlocal told
        told = True
        parallel.share(b"make")
        stage.make(out, replace(inner, parallel=parallel))

    context.get(stage, make)
    if not told:
        parallel.share(b"found")
