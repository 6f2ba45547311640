"""The desk: where cells wait for a group of workers, and groups for cells.

    GroupCell (Tune) --do(cell)--> Desk <--take(rank)-- every worker of a warm group
                                    |   <--told(rank, outcome)--
                       outcome <----+   <--lost(group)-- the driver, when a group has died

One Ray actor, on the head, holding no CPU.  Every rank of a group gets the same job, and the group is free again when
every rank has told.  A rank that does not tell within GRACE after another one failed hangs in a collective with
somebody who left: then the others are told to die, Ray Train ends the whole group, and a new one is started.  So it is
after any failure that not all ranks see in the same way.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from studies.engine.admission import Deaths

GRACE = 10.0                            # seconds that ranks may need longer than the first that failed
IDLE = 10.0                             # seconds without work after which a group gives its places back
DIE, LEAVE = "die", "leave"

Outcome = dict[str, Any]                # {"status", "reason", "record", "given"}; status as in the ledger, or "dead"


@dataclass
class Job:
    number: int
    key: str
    what: Any                           # what the workers are to do
    outcome: asyncio.Future
    tries: int = 0


@dataclass
class Group:
    world: int
    places: Any = None                  # its placement group
    since: float = field(default_factory=time.time)
    job: Job | None = None
    told: dict[int, Outcome] = field(default_factory=dict)
    first_trouble: float | None = None
    free_since: float = field(default_factory=time.time)
    last: int = 0                       # number of its latest job
    spoilt: str = ""                    # why its processes must not be used again
    leaving: bool = False


class Desk:
    """See above; wrapped as a Ray actor by group.py.  All methods run in one event loop, so nothing is locked."""

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self.groups: dict[str, Group] = {}
        self.jobs: dict[str, Job] = {}                       # by key, until their outcome
        self.count = 0
        self.deaths = Deaths()
        self.changed = asyncio.Condition()

    # ------------------------------------------------------------ for those who have work

    async def do(self, key: str, what: Any) -> Outcome:
        """Have it done by some group; asking twice for the same key is asking once."""
        job = self.jobs.get(key)
        if job is None:
            self.count += 1
            job = self.jobs[key] = Job(self.count, key, what, asyncio.get_running_loop().create_future())
            self.waiting.append(job)
            await self._notify()
        return await asyncio.shield(job.outcome)

    # ------------------------------------------------------------ for workers

    async def join(self, name: str, world: int, places: Any = None) -> None:
        """Rank 0 of a new group says that it is there, and in which placement group."""
        self.groups[name] = Group(world, places)
        await self._notify()

    async def take(self, name: str, after: int) -> tuple[int, Any] | str:
        """The job after number `after`; LEAVE: no work; DIE: this group is not to be used again."""
        while True:
            group = self.groups.get(name)
            if group is not None:
                if group.spoilt:
                    return DIE
                if group.job is None and group.leaving:
                    return LEAVE
                if group.job is None and self.waiting and after == group.last:
                    group.job, group.told, group.first_trouble = self.waiting.popleft(), {}, None
                    self.count += 1
                    group.job.number = group.last = self.count      # a second try is another number
                    await self._notify()
                if group.job is not None and group.job.number > after:
                    return group.job.number, group.job.what
                if group.job is None and time.time() - group.free_since > IDLE:
                    group.leaving = True
                    await self._notify()
                    continue
                if group.first_trouble is not None and time.time() - group.first_trouble > GRACE:
                    missing = [rank for rank in range(group.world) if rank not in group.told]
                    group.spoilt = f"rank {', '.join(map(str, missing))} did not come back: " + next(
                        (told["reason"] for told in group.told.values() if told["reason"]), "nobody said why")
                    await self._notify()
                    continue
            await self._wait(1.0)

    async def told(self, name: str, number: int, rank: int, outcome: Outcome) -> None:
        """What became of a job, as one rank saw it; rank 0's word is what counts, the others' is that they are free."""
        group = self.groups[name]
        job = group.job
        if job is None or job.number != number:
            return
        group.told[rank] = outcome
        group.leaving = group.leaving or bool(outcome.get("given"))           # one of its processes was told to end
        if rank == 0:
            if outcome["status"] == "stopped" and group.leaving:      # it made room for a group of another size
                self._again(job)
            else:
                self._settle(job, outcome)
        if outcome["status"] in ("failed", "error", "disk full"):
            group.first_trouble = group.first_trouble or time.time()
        if len(group.told) == group.world:
            group.job, group.free_since, group.first_trouble = None, time.time(), None
            if any(said["status"] in ("failed", "error", "disk full") for said in group.told.values()):
                group.spoilt = "a job failed in it"          # who knows what its collectives still hold
        elif rank == 0:
            group.first_trouble = group.first_trouble or time.time()         # the others have less to do
        await self._notify()

    # ------------------------------------------------------------ for the driver

    async def lost(self, name: str, reason: str) -> Any:
        """A group is gone; what it was at is done again, unless that happened too often.  The places that it had."""
        group = self.groups.pop(name, None)
        job = group.job if group is not None else None
        if group is not None and job is not None and 0 not in group.told:
            words = group.spoilt or reason
            if self.deaths.forgiven(job.key, words):
                self._again(job)
            else:
                self._settle(job, {"status": "dead", "reason":
                                   f"its workers died {self.deaths.times(job.key)} times: {words}"})
        await self._notify()
        return group.places if group is not None else None

    async def refuse(self, reason: str) -> None:
        """No group can be had: everything that waits has failed."""
        while self.waiting:
            self._settle(self.waiting.popleft(), {"status": "dead", "reason": reason})
        await self._notify()

    async def wanted(self) -> dict[str, Any]:
        """How many jobs wait and how many groups are free for them, after at most a second."""
        if not self.waiting:
            await self._wait(1.0)
        free = [name for name, group in self.groups.items() if not (group.job or group.spoilt or group.leaving)]
        return {"jobs": len(self.waiting), "free": len(free), "there": list(self.groups)}

    async def leave(self, name: str) -> str | None:
        """The group is to end after what it does now, or as soon as that has made room; the key of what it does."""
        group = self.groups.get(name)
        if group is None:
            return None
        group.leaving = True
        await self._notify()
        return group.job.key if group.job is not None else None

    async def state(self) -> dict[str, Any]:
        """For the watchdog: what waits, and what each group does."""
        return {"waiting": [job.key for job in self.waiting],
                "groups": {name: {"world": group.world, "at": group.job.key if group.job else None,
                                  "told": sorted(group.told)} for name, group in self.groups.items()}}

    # ------------------------------------------------------------ inside

    def _again(self, job: Job) -> None:
        self.waiting.appendleft(job)

    def _settle(self, job: Job, outcome: Outcome) -> None:
        self.jobs.pop(job.key, None)
        if not job.outcome.done():
            job.outcome.set_result(outcome)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _wait(self, seconds: float) -> None:
        async with self.changed:
            try:
                await asyncio.wait_for(self.changed.wait(), seconds)
            except TimeoutError:
                pass
