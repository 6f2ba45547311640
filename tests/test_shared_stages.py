"""Shared stages on Ray: a process that dies is replaced, twice, and one whose node is lost, for long; one that was told
to make room, or that held a GPU, is not used again."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_trial import Fragile, recipe

from studies.engine.admission import DEATHS
from studies.engine.cluster import Cluster, end_ray
from studies.engine.inline import Place
from studies.engine.ledger import Record
from studies.engine.plan import Cell, Shared
from studies.engine.provenance import ROOT, Code
from studies.engine.study import Resources

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]
LAB = pytest.mark.skipif(not os.environ.get("PALIMPSEST_LABS"), reason="takes half a minute: PALIMPSEST_LABS=1 runs it")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A Ray cluster to which nodes can be added: its head has two CPUs and what it takes for a GPU."""
    from ray.cluster_utils import Cluster as Nodes

    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    nodes = Nodes(initialize_head=True, connect=True, shutdown_at_exit=False,
                  head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    yield nodes
    end_ray()
    nodes.shutdown()
    patch.undo()


class Told:
    """What a view is told, until it has heard enough."""

    def __init__(self, seconds: float = 400.0):
        self.until, self.again = time.monotonic() + seconds, 0
        self.running: dict[str, Any] = {}
        self.ended: dict[str, Record] = {}

    def begins(self, work: Shared) -> None:
        self.running[work.key] = (work, time.time())

    def drops(self, work: Shared) -> None:
        self.again += 1

    def ends(self, work: Shared, record: Record) -> None:
        self.ended[work.key] = record

    def say(self, text: str) -> None:
        pass

    def tick(self) -> None:
        assert time.monotonic() < self.until, "it does not come to an end"


def make(folder: Path, resources: Resources, **harm: Any) -> tuple[Record, list[int], int]:
    """A stage to which this happens: its record, the processes that were at it, how often it was begun again."""
    from studies.engine.run import make_shared

    stage = Fragile(diary=str(folder / "diary"), **harm)
    shared = Shared(stage, "Fragile-1", (Cell("plain", 0, recipe(), "cell"),), ())
    place = Place(study="toy", scale="laptop", data="Words", folder=folder / "toy", store=str(folder / "stages"),
                  resources=resources, code=Code("abc", ""))
    view = Told()
    broken = make_shared([shared], place, view, Cluster("local", ((4.0, 1.0),)))        # type: ignore[arg-type]
    record = view.ended["Fragile-1"]
    assert broken == ({} if record["status"] == "done" else {"Fragile-1": record})
    return record, [int(line) for line in (folder / "diary").read_text().split()], view.again


@pytest.mark.parametrize("times", [pytest.param(DEATHS, marks=LAB), DEATHS + 1])
def test_a_process_may_die_twice(nodes, times, tmp_path):
    record, processes, again = make(tmp_path, Resources(), harm="kill", times=times)
    assert len(set(processes)) == len(processes) == DEATHS + 1 and again == DEATHS
    if times == DEATHS:
        assert record["status"] == "done"
    else:
        assert record["status"] == "failed" and f"its process died {DEATHS + 1} times" in record["reason"]


@LAB
def test_a_lost_node_is_not_a_death(nodes, tmp_path, monkeypatch):
    """Where a single death would be one too many."""
    monkeypatch.setattr("studies.engine.admission.DEATHS", 0)
    first = nodes.add_node(num_cpus=4)
    nodes.wait_for_nodes()
    come: list[Any] = []

    def lose() -> None:
        while not (tmp_path / "diary").exists():
            time.sleep(0.05)
        nodes.remove_node(first, allow_graceful=False)
        come.append(nodes.add_node(num_cpus=4))

    losing = threading.Thread(target=lose)
    losing.start()
    record, processes, again = make(tmp_path, Resources(cpus=3), harm="wait", times=1)
    losing.join()
    nodes.remove_node(come[0])
    assert record["status"] == "done" and again == 1 and len(processes) == 2, record


def test_a_process_that_was_told_to_make_room_makes_nothing_more(nodes, tmp_path):
    record, processes, again = make(tmp_path, Resources(), harm="notice", times=1)
    assert record["status"] == "done" and processes[-1] != processes[0]
    assert again == len(processes) - 1 <= 2              # the process that was told may be met once more, and ends then


def test_a_process_ends_with_the_stage_for_which_it_held_a_gpu(nodes, tmp_path):
    """Else its CUDA memory would be held beside the next trial, on the same GPU."""
    (process,) = make(tmp_path, Resources(gpus=1))[1]
    until = time.monotonic() + 20
    while Path(f"/proc/{process}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{process}").exists()
