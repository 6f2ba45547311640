"""The watchdog: when nothing has moved for a while, it says what waits for what.

    moved: a work began or ended, or something that runs has written to its outbox
    said:  what runs and since when it is silent; what Ray has not placed, and what is free; which process holds the
           lock of a stage; what the groups of workers do; how much room the disks have

It only says.  What can be mended from here (dead processes, lost nodes, groups whose collectives hang) is mended where
it happens; what is left is a long silent computation, or something outside: other people's jobs, a node that is gone.
"""

import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util import placement_group_table

from studies.engine.inline import Place
from studies.engine.live import View, span

if TYPE_CHECKING:
    from studies.engine.plan import Cell, Shared


class Watchdog:
    """Told to look now and then, from the driver's loop."""

    FIRST = 120.0                        # seconds of silence before it speaks; then twice as many, and again

    def __init__(self, place: Place, view: View):
        self.place, self.view = place, view
        self.seen: Any = None
        self.since = self.looked = time.monotonic()
        self.patience = self.FIRST

    def tick(self) -> None:
        now = time.monotonic()
        if now - self.looked < min(2.0, self.patience / 4):
            return
        self.looked = now
        sizes = [heard(self.outbox(work))[0] for work, _ in self.works]
        seen = (len(self.view.ended), sorted(self.view.running), sizes)
        if seen != self.seen:
            self.seen, self.since, self.patience = seen, now, self.FIRST
        elif now - self.since > self.patience:
            self.patience *= 2
            for line in self.explain():
                self.view.say(line)

    @property
    def works(self) -> "list[tuple[Cell | Shared, float]]":
        return list(self.view.running.values())

    def outbox(self, work: "Cell | Shared") -> Path:
        from studies.engine.plan import Shared

        return self.place.ledger.outbox(f"stage-{work.key}" if isinstance(work, Shared) else work.key)

    def explain(self) -> list[str]:
        """What is known about who waits for what."""
        lines = [f"nothing has moved for {span(time.monotonic() - self.since)}"]
        for work, began in self.works:
            size, when = heard(self.outbox(work))
            silent = f"silent for {span(time.time() - when)}" if size and when > began - 1 else \
                "it has not begun: it waits for a place, or for a process to start"
            lines.append(f"  {work.name}: since {span(time.time() - began)}, {silent}")
        if not self.works:
            lines.append("  nothing runs")
        answers: list[str] = []
        asked = threading.Thread(target=lambda: answers.extend(of_ray(self.place)), daemon=True)
        asked.start()
        asked.join(15)
        lines += answers or ["  Ray does not answer"]
        return [*lines, *of_locks(self.place.open_store().folder), *of_disks(self.place)]


def heard(path: Path) -> tuple[int, float]:
    """Size of an outbox, and when it was written to last; zeros where there is none."""
    try:
        found = path.stat()
        return found.st_size, found.st_mtime
    except OSError:
        return 0, 0.0


def of_ray(place: Place) -> list[str]:
    """What Ray has not placed, what is free and what there is, and what the groups do."""
    from studies.engine import group

    if not ray.is_initialized():         # asking would start one
        return ["  Ray is not running"]
    lines = []
    try:
        mine = ray.get_runtime_context().get_job_id()
        table = placement_group_table()
        waiting: dict[str, int] = {}
        for number, entry in table.items():
            if entry["state"] in ("PENDING", "RESCHEDULING", "PREPARED"):
                whose = "ours" if number.endswith(mine) else "another job's"
                wants = " + ".join(amounts(bundle) for bundle in entry["bundles"].values())
                waiting[f"{wants} ({whose})"] = waiting.get(f"{wants} ({whose})", 0) + 1
        lines += [f"  not placed: {count} x {wants}" for wants, count in waiting.items()]
        free, there = ray.available_resources(), ray.cluster_resources()
        kinds = [kind for kind in ("CPU", "GPU") if there.get(kind)]
        lines.append("  free: " + ", ".join(f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s" for kind in kinds)
                     + f"; a trial wants {place.resources.workers} x ({place.resources.cpus} CPUs, "
                       f"{place.resources.gpus:g} GPUs)")
        dead = [node["NodeManagerHostname"] for node in ray.nodes() if not node["Alive"]]
        lines += [f"  nodes that are gone: {', '.join(dead)}"] if dead else []
        lines += group.standing()
    except Exception as error:
        lines.append(f"  Ray does not answer: {error}")
    return lines


def amounts(bundle: dict[str, float]) -> str:
    """Resources as people say them."""
    return "(" + ", ".join(f"{value:g} {name}" for name, value in bundle.items()) + ")"


def of_locks(folder: Path) -> list[str]:
    """Which processes of this machine hold the locks of unfinished stages."""
    try:
        held = {fields[5].rpartition(":")[2]: fields[4] for line in Path("/proc/locks").read_text().splitlines()
                if (fields := line.replace("-> ", "").split()) and len(fields) > 5}
        return [f"  {path.stem} is being made, or waited for, by process {held[number]}"
                for path in sorted(folder.glob("*.lock")) if (number := str(path.stat().st_ino)) in held]
    except (OSError, IndexError):
        return []


def of_disks(place: Place) -> list[str]:
    found = {folder: shutil.disk_usage(folder).free for folder in (place.folder, Path("/tmp")) if folder.exists()}
    return [f"  {folder} has {free / 2**20:.0f} MiB left" for folder, free in found.items() if free < 2**30]
