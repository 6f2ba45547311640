"""A worker of a group: takes cell after cell from the desk, until there is no work.

    worker 0       does the cell as if alone: stages, samples, metrics, record
    the others     help with what trains together

A stage trains together when its class says `together = True`; its `make` finds the group in `context.parallel`.
Worker 0 holds the stage's lock and tells the others whether there is anything to make, so that nobody waits in a
collective for somebody who found the result finished.
"""

import functools
import gc
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ray
import torch
from ray import train
from ray.util import get_current_placement_group

from studies.engine import inline
from studies.engine.desk import DIE, LEAVE, Outcome
from studies.engine.halt import GIVEN, disk_full, peer_lost
from studies.engine.inline import Place, attempt, one_line
from studies.engine.plan import Cell, Shared
from trainables.stages import Context, Stage, upstream
from trainables.training.parallel import Parallel
from trainables.training.train import Diverged, Stopped


def serve(config: dict) -> None:
    """What each worker of a group runs: job after job, until there is none."""
    place, desk, name = config["place"], config["desk"], config["name"]
    rank, world, last = train.get_context().get_world_rank(), train.get_context().get_world_size(), 0
    device = place.context(_unheard).device
    parallel = Parallel.joined(device)
    if rank == 0:
        ray.get(desk.join.remote(name, world, get_current_placement_group()))
    while True:
        taken = ray.get(desk.take.remote(name, last))
        if taken == LEAVE:
            return
        if taken == DIE:
            raise RuntimeError("this group is not to be used again")
        last, job = taken
        outcome = do(job, place, parallel)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        ray.get(desk.told.remote(name, last, rank, outcome | {"given": GIVEN()}))


def do(job: Cell | Shared, place: Place, parallel: Parallel) -> Outcome:
    """One job, seen from one worker."""
    try:
        if parallel.rank > 0:
            context = place.context(_unheard, GIVEN)
            try:
                produce(job, context, parallel) if isinstance(job, Cell) else make_shared(job, context, parallel)
            except (Diverged, Stopped):                      # all workers see these at the same step
                pass
            return {"status": "done", "reason": ""}
        record = attempt(job, place, functools.partial(produce, job, parallel=parallel)) if isinstance(job, Cell) \
            else inline.make_stage(job, place, functools.partial(make_shared, job, parallel=parallel))
        return {"status": record["status"], "reason": record["reason"], "record": json.dumps(record)}
    except Exception as error:
        if peer_lost(error):
            raise                        # this group is broken; another one goes on
        return {"status": inline.FULL if disk_full(error) else "error", "reason": one_line(error)}


def make_shared(shared: Shared, context: Context, parallel: Parallel) -> None:
    make_together(shared.stage, context, parallel)


def _unheard(step: int, metrics: Mapping[str, float]) -> None:
    """Worker 0 records for all."""


def produce(cell: Cell, context: Context, parallel: Parallel) -> Path:
    """The folder of the cell's metrics, on worker 0; the other workers help with what trains together."""
    wanted = cell.scored()
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
