"""Nothing ever waits for what cannot come: admission, groups, the desk, the watchdog; then a real cluster of nodes."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_trial import recipe
from filelock import FileLock

from studies.engine import desk as desks
from studies.engine.admission import DEATHS, Capacity, Deaths, Queue, parts
from studies.engine.cluster import NOBODY, Cluster
from studies.engine.desk import DIE, LEAVE, Desk
from studies.engine.inline import Place
from studies.engine.plan import Cell
from studies.engine.provenance import Code
from studies.engine.run import fit
from studies.engine.study import BadInput, Resources
from studies.engine.sweep import sweep_store
from studies.engine.watchdog import Watchdog, of_locks
from trainables.stages import Store

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]

HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------- how much fits


@pytest.mark.parametrize("nodes, resources, slots", [
    (((4, 0),), Resources(), 4),
    (((4, 0), (3, 0)), Resources(cpus=2), 3),
    (((8, 1),), Resources(gpus=0.1), 8),                 # 1 // 0.1 is 9 in floats; here the CPUs are fewer
    (((32, 1),), Resources(gpus=0.1), 10),
    (((32, 2),), Resources(gpus=0.4), 4),                # two on each GPU: a fraction does not span two of them
    (((32, 4), (32, 2), (64, 0)), Resources(cpus=4, gpus=1), 6),
])
def test_slots_follow_from_the_nodes(nodes, resources, slots):
    assert Cluster("local", nodes).slots(resources) == slots


def test_a_group_is_as_large_as_fits_and_a_divisor_of_what_is_wanted():
    assert parts(Resources(workers=12, least=2)) == [12, 6, 4, 3, 2] and parts(Resources(workers=8)) == [8]
    for slots, expected in ((30, (2, 12)), (11, (1, 6)), (5, (1, 4)), (2, (1, 2)), (1, (0, 12))):
        assert Capacity(Cluster("local", ((slots, 0),)), Resources(workers=12, least=2)).groups() == expected
    with pytest.raises(ValueError, match="least"):
        Resources(workers=2, least=3)


def test_what_can_never_fit_is_refused_and_what_an_autoscaler_may_bring_is_not():
    now = ((2.0, 0.0),)
    with pytest.raises(BadInput, match=r"8 x \(1 CPUs, 1 GPUs\).*can never hold"):
        Cluster("local", now).trials(Resources(gpus=1, workers=8))
    grown = Cluster("local", now, largest=((8.0, 4.0),) * 2)
    assert grown.trials(Resources(gpus=1, workers=8)) == 1 and grown.gpus == 8
    assert Capacity(grown, Resources(gpus=1, workers=4)).trials() == 2      # asked for, so that nodes are made
    with pytest.raises(BadInput):
        grown.trials(Resources(gpus=1, workers=9))


# ---------------------------------------------------------------- whose turn it is


def some_cells(count: int) -> list[Cell]:
    return [Cell("plain", seed, recipe(), f"key{seed}") for seed in range(count)]


def test_the_queue_gives_every_cell_a_turn_and_another_after_a_death():
    cells = some_cells(3)
    queue = Queue(cells, Capacity(Cluster("local", ((2, 0),)), Resources()))
    assert queue.suggest("a") == {"cell": "key0"} and queue.suggest("b") == {"cell": "key1"}
    assert queue.suggest("c") is None                    # two fit
    queue.on_trial_complete("a", error=True)
    queue.again(cells[0])
    assert queue.suggest("d") == {"cell": "key0"}        # before the third
    for trial, cell in (("b", cells[1]), ("d", cells[0])):
        queue.on_trial_complete(trial)
        queue.ended(cell)
    assert queue.suggest("e") == {"cell": "key2"}
    queue.on_trial_complete("e")
    queue.ended(cells[2])
    assert queue.suggest("f") == "FINISHED"


def test_what_saves_itself_at_an_interrupt_is_not_begun_again(tmp_path):
    """Tune's thread asks on while the driver is already leaving; the next command is what goes on."""
    cells, given = some_cells(2), []
    queue = Queue(cells, Capacity(Cluster("local", ((1, 0),)), Resources()))
    place = Place(study="toy", scale="laptop", data="Words", folder=tmp_path, store=str(tmp_path / "stages"),
                  resources=Resources(), code=Code("", ""))
    view, left = SimpleNamespace(running={}), threading.Event()

    class Tuner:
        """One trial, as Tune runs it: stopped by the notice, told to be run again, and asked for the next."""

        def fit(self) -> None:
            given.append(queue.suggest("a"))
            view.running["key0"] = cells[0]
            while not place.notice():
                time.sleep(0.01)
            view.running.clear()                         # the driver may leave from here on
            left.wait(10)
            queue.on_trial_complete("a")
            queue.again(cells[0])
            given.append(queue.suggest("b"))

    def tick() -> None:
        if view.running:
            raise KeyboardInterrupt

    tuner: Any = Tuner()
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        fit(tuner, queue, lambda: False, tick, place, view)            # type: ignore[arg-type]
    assert not place.notice()
    left.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert given == [{"cell": "key0"}, "FINISHED"]


def test_a_lost_node_is_not_a_cells_own_death():
    deaths = Deaths()
    for _ in range(10):
        assert deaths.forgiven("k", "The actor died because its node has died.")
    assert [deaths.forgiven("k", "connection reset") for _ in range(DEATHS + 1)] == [True] * DEATHS + [False]


# ---------------------------------------------------------------- the desk, with ranks that are coroutines


def played(play) -> None:
    asyncio.run(asyncio.wait_for(play, 30))


async def ranks(desk: Desk, name: str, world: int, become) -> list[str]:
    """The ranks of a group; become(rank, what) -> outcome, or never returns.  What each was told at the end."""
    async def rank(number: int) -> str:
        last = 0
        while True:
            taken = await desk.take(name, last)
            if isinstance(taken, str):
                return taken
            last, what = taken
            await desk.told(name, last, number, await become(number, what))

    await desk.join(name, world)
    return await asyncio.gather(*(rank(number) for number in range(world)))


async def fine(rank: int, what: object) -> dict:
    return {"status": "done", "reason": ""}


def test_a_group_does_job_after_job_and_asking_twice_is_asking_once(monkeypatch):
    monkeypatch.setattr(desks, "IDLE", 0.2)

    async def play() -> None:
        desk, seen = Desk(), []

        async def noting(rank: int, what: object) -> dict:
            seen.append((rank, what))
            return await fine(rank, what)

        asked = [asyncio.create_task(desk.do(key, key)) for key in ("a", "b", "a")]
        assert set(await ranks(desk, "g", 2, noting)) == {LEAVE}     # no work for a while: its places are free again
        assert [(await one)["status"] for one in asked] == ["done"] * 3
        assert sorted(seen) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]

    played(play())


def test_a_job_of_a_dead_group_goes_to_the_next_until_it_was_too_often():
    async def play() -> None:
        desk = Desk()
        asked = asyncio.create_task(desk.do("a", "a"))
        for attempt in range(DEATHS + 1):
            await desk.join(f"g{attempt}", 2)
            number, what = await desk.take(f"g{attempt}", 0)
            assert what == "a" and not asked.done()
            await desk.lost(f"g{attempt}", "a worker was killed")
        outcome = await asked
        assert outcome["status"] == "dead" and "a worker was killed" in outcome["reason"]

    played(play())


@pytest.mark.parametrize("leaves", [0, 1])
def test_a_rank_that_hangs_in_a_collective_does_not_hang_the_study(leaves, monkeypatch):
    """One rank fails and comes back; the other waits for it for ever: the group must end."""
    monkeypatch.setattr(desks, "GRACE", 0.2)

    async def play() -> None:
        desk = Desk()

        async def become(rank: int, what: object) -> dict:
            if rank != leaves:
                await asyncio.Event().wait()
            return {"status": "failed" if rank == 0 else "error", "reason": "out of memory"}

        asked = asyncio.create_task(desk.do("a", "a"))
        group = asyncio.create_task(ranks(desk, "g", 2, become))
        while not desk.groups or not desk.groups["g"].spoilt:
            await asyncio.sleep(0.05)
        assert await desk.take("g", desk.groups["g"].last) == DIE
        group.cancel()
        await desk.lost("g", "ended")
        if leaves == 0:
            assert (await asked)["status"] == "failed"   # its own word counts, and it was heard
        else:
            assert [job.key for job in desk.waiting] == ["a"] and "out of memory" not in str(asked)
            asked.cancel()

    played(play())


def test_a_group_of_which_one_process_was_told_to_end_takes_nothing_more():
    async def play() -> None:
        desk = Desk()
        asked = asyncio.create_task(desk.do("a", "a"))
        await desk.join("g", 2)
        taken = await desk.take("g", 0)
        assert not isinstance(taken, str)
        for rank in (1, 0):                              # both stop at the same step, and one knows why
            await desk.told("g", taken[0], rank, {"status": "stopped", "reason": "", "given": rank == 1})
        assert await desk.take("g", taken[0]) == LEAVE
        assert [job.key for job in desk.waiting] == ["a"] and not asked.done()
        asked.cancel()

    played(play())


def test_a_group_that_makes_room_leaves_its_job_to_a_larger_one(monkeypatch):
    async def play() -> None:
        desk = Desk()
        asked = asyncio.create_task(desk.do("a", "a"))
        await desk.join("small", 1)
        taken = await desk.take("small", 0)
        assert not isinstance(taken, str)
        number, _ = taken
        assert await desk.leave("small") == "a"
        await desk.told("small", number, 0, {"status": "stopped", "reason": ""})
        assert await desk.take("small", number) == LEAVE
        await desk.lost("small", "")
        assert not asked.done()
        monkeypatch.setattr(desks, "IDLE", 0.2)
        await ranks(desk, "large", 2, fine)
        assert (await asked)["status"] == "done"

    played(play())


# ---------------------------------------------------------------- what is said, what is swept


def test_the_watchdog_says_who_holds_what(tmp_path):
    program = ("import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
               "print('held', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "Trained-1.lock")],
                          stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            assert of_locks(tmp_path) == [f"  Trained-1 is being made, or waited for, by process {holder.pid}"]
        finally:
            holder.kill()
    assert of_locks(tmp_path) == []


def test_the_watchdog_speaks_when_nothing_moves_and_not_before(tmp_path, monkeypatch):
    said: list[str] = []
    (cell,) = some_cells(1)
    outbox = tmp_path / "outbox.jsonl"
    view = SimpleNamespace(ended={}, running={cell.key: (cell, 0.0)}, say=said.append)
    place = SimpleNamespace(ledger=SimpleNamespace(outbox=lambda key: outbox), folder=tmp_path, resources=Resources(),
                            open_store=lambda: Store(tmp_path))
    dog = Watchdog(place, view)                          # type: ignore[arg-type]
    now = [1000.0]
    monkeypatch.setattr("studies.engine.watchdog.time.monotonic", lambda: now[0])
    dog.since = dog.looked = 1000.0
    for second in range(1000):
        now[0] = 1000.0 + second
        if second < 500 and second % 50 == 0:
            outbox.write_text("x" * (second + 1))        # it moves
        if second < 565:
            assert not said, second
        dog.tick()
    assert said[0].startswith("nothing has moved for") and any(cell.name in line for line in said)
    assert sum(line.startswith("nothing") for line in said) == 3     # after 2, 4 and 8 minutes of silence


def test_what_killed_makes_leave_is_swept_unless_somebody_is_at_it(tmp_path):
    store = Store(tmp_path)
    for name in ("Table-1.aa.tmp", "Table-2.bb.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.json").write_text("{")
    with FileLock(tmp_path / "Table-2.lock"):
        assert sweep_store(store) == ["Table-1.aa.tmp"]
    assert sweep_store(store) == ["Table-2.bb.tmp"] and not list(tmp_path.glob("*.tmp"))


# ---------------------------------------------------------------- a cluster of nodes


@pytest.fixture(scope="module")
def happened(tmp_path_factory) -> dict:
    """What became of the scenarios of on_cluster.py."""
    if not os.environ.get("PALIMPSEST_LABS"):
        pytest.skip("takes minutes: PALIMPSEST_LABS=1 runs it")
    out = tmp_path_factory.mktemp("cluster")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    with open(out / "errors.txt", "w") as errors:
        done = subprocess.run([sys.executable, str(HERE / "on_cluster.py"), str(out), "gpus", "neighbours", "node",
                               "spare", "grow", "controller"],
                              stdout=subprocess.PIPE, stderr=errors, text=True, timeout=900, env=environment)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and results, done.stdout[-3000:] + (out / "errors.txt").read_text()[-3000:]
    return json.loads(results[0].removeprefix("RESULT "))


def test_trials_never_wait_for_what_their_neighbours_drivers_hold(happened):
    found = happened["neighbours"]
    assert found["code"] == 0 and found["status"] == ["done"] * 4 and found["workers"] == [2] * 4
    assert happened["wide"]["code"] == 0 and happened["wide"]["workers"] == [4, 4]


def test_another_clusters_dashboard_is_not_asked_whether_our_groups_live(happened):
    """The head has no dashboard, but names port 8265 as its own all the same."""
    assert happened["asks"] == NOBODY


def test_the_doctor_examines_each_node(happened):
    found = happened["doctor"]
    assert [words for grade, words in found if grade == "BAD"] == []
    assert sum("the same versions as here" in words for _, words in found) == 2
    assert sum("and its locks" in words for _, words in found) == 2
    assert any("reach each other's ports" in words for _, words in found)
    assert any(grade == "warn" and "State API" in words for grade, words in found)      # started without a dashboard
    assert any("2 trials of 2 x" in words for _, words in found)


def test_what_can_never_fit_is_refused_in_seconds(happened):
    assert happened["never"]["code"] == 2 and happened["too many"]["code"] == 2
    assert happened["never"]["status"] == happened["too many"]["status"] == []
    assert happened["never"]["seconds"] < 30 and happened["too many"]["seconds"] < 30


def test_trials_share_a_gpu(happened):
    found = happened["gpus"]
    assert found["code"] == 0 and found["status"] == ["done"] * 4
    spans = sorted(found["spans"])
    assert any(later[0] < earlier[1] for earlier, later in zip(spans, spans[1:], strict=False))      # side by side


def test_a_group_that_loses_a_node_goes_on_smaller(happened):
    found = happened["node"]
    assert found["code"] == 0 and found["status"] == ["done"] * 2 and found["workers"][0] == 1
    assert found["attempts"][-1] >= 2                    # from its checkpoint, in the same record


def test_groups_grow_when_nodes_come(happened):
    found = happened["grow"]
    assert found["code"] == 0 and found["status"] == ["done"] * 4
    assert found["workers"][0] >= 1 and found["workers"][-2:] == [2, 2]


def test_a_node_that_is_lost_is_nobodys_failure(happened):
    found = happened["spare"]
    assert found["code"] == 0 and found["status"] == ["done"] * 4 and found["attempts"][-1] >= 2


def test_a_killed_controller_leaves_no_places_behind(happened):
    found = happened["controller"]
    assert found["code"] == 0 and found["status"] == ["done"] * 2 and found["workers"] == [2, 2]
    assert found["attempts"][-1] >= 2
