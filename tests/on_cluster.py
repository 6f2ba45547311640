"""Studies on a Ray cluster of several nodes on one machine, as a program: what happened goes to stdout as JSON.

    python on_cluster.py <folder> neighbours node grow spare controller gpus

Each scenario uses the engine as a user would, with no setting of concurrency, placement or waiting.  A process of its
own, because Ray keeps what it read of its environment for as long as a process lives.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_"))]:
    del os.environ[name]
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": tempfile.mkdtemp(prefix="rc", dir="/tmp"),     # a short path
               "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from studies.engine.cluster import settle_environment  # noqa: E402

settle_environment()

import ray  # noqa: E402
from fake_trial import recipe  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from studies.engine.doctor import examine  # noqa: E402
from studies.engine.ledger import Ledger, read_from  # noqa: E402
from studies.engine.main import main  # noqa: E402
from studies.engine.study import Arm, Minimise, Resources, Scale, Study  # noqa: E402

ARMS = {"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})}


def study(name: str, resources: Resources, seeds: int = 2, **changes: Any) -> Study:
    return Study(name=name, question="Which?", arms=ARMS, seeds=seeds, report=(Minimise("test/error"),),
                 scales={"laptop": Scale(partial(recipe, **changes), resources)})


def command(what: Study, out: Path, *arguments: str) -> dict[str, Any]:
    """The study's command line: exit code, seconds, outcome, records."""
    began, code, outcome = time.time(), 0, out / f"{what.name}.json"
    try:
        main(what, ["--out", str(out), "--json", str(outcome), *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    records = Ledger(out / what.name).cells()
    return {"code": code, "seconds": time.time() - began,
            "status": sorted(record["status"] for record in records),
            "workers": sorted(record["metrics"].get("workers", 0) for record in records),
            "errors": [record["metrics"].get("test/error") for record in sorted(records, key=lambda r: r["key"])],
            "spans": [[record["started"], record["ended"]] for record in records],
            "attempts": sorted(record["attempt"] for record in records), "host": records[0]["host"] if records else ""}


def told(out: Path, name: str) -> int:
    """Steps that a study's cells have told."""
    return sum(line["kind"] == "metrics" for path in (out / name / "outbox").glob("[!.]*.jsonl")
               if not path.name.startswith(("stage-", "study")) for line in read_from(path, 0)[0])


def scenarios(out: Path, wanted: list[str]) -> dict[str, Any]:
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False,      # whose hooks keep threads from adding nodes
                      head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = str(cluster.address)
    found: dict[str, Any] = {}
    try:
        for name in wanted:
            found |= SCENARIOS[name](cluster, out)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return found


def neighbours(cluster: Cluster, out: Path) -> dict[str, Any]:
    """Four trials of two workers on four CPUs of two nodes: if each trial's driver held a CPU, they would hold all.
    Then trials of four workers, which no node holds alone; and trials that can never fit."""
    node = cluster.add_node(num_cpus=3)
    cluster.wait_for_nodes()
    found = {"doctor": [[finding.grade, finding.words] for finding in examine(out, None, 1, 0.0, 2)],
             "neighbours": command(study("neighbours", Resources(workers=2)), out),
             "wide": command(study("wide", Resources(workers=4), seeds=1, training=slow(0.01)), out),
             "never": command(study("never", Resources(workers=5)), out),
             "asks": ray.get(ray.remote(os.environ.get).remote("RAY_API_SERVER_ADDRESS"))}
    cluster.remove_node(node)
    return found


def node(cluster: Cluster, out: Path) -> dict[str, Any]:
    """Groups of two on two nodes, of which one loses its power: the study goes on with what is left."""
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    after(out, "node", 4, lambda: cluster.remove_node(second, allow_graceful=False))
    return {"node": command(study("node", Resources(workers=2, least=1), seeds=1, training=slow(0.3)), out)}


def grow(cluster: Cluster, out: Path) -> dict[str, Any]:
    """Groups of one where two are wanted; then a second node comes."""
    come: list[Any] = []
    after(out, "grow", 4, lambda: come.append(cluster.add_node(num_cpus=1)))
    found = {"grow": command(study("grow", Resources(workers=2, least=1), seeds=2, training=slow(2.0)), out)}
    leave(cluster, come)
    return found


def spare(cluster: Cluster, out: Path) -> dict[str, Any]:
    """One-worker trials; the node of one is lost, and another comes: nothing counts as a failure."""
    second, come = cluster.add_node(num_cpus=1), []
    cluster.wait_for_nodes()

    def swap() -> None:
        cluster.remove_node(second, allow_graceful=False)
        come.append(cluster.add_node(num_cpus=1))

    after(out, "spare", 6, swap)
    found = {"spare": command(study("spare", Resources(), training=slow(1.0)), out)}
    leave(cluster, come)
    return found


def leave(cluster: Cluster, nodes: list[Any]) -> None:
    """Leave the cluster as it was found."""
    for each in nodes:
        cluster.remove_node(each)


def controller(cluster: Cluster, out: Path) -> dict[str, Any]:
    """Two CPUs, groups of two; the process of Ray Train that controls the group is killed.  What its group held must
    come free, or there is room for no other."""
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    def kill() -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            if path.read_bytes().startswith(b"ray::TrainController"):
                os.kill(int(path.parent.name), signal.SIGKILL)

    after(out, "controller", 4, kill)
    found = {"controller": command(study("controller", Resources(workers=2), seeds=1, training=slow(0.6)), out)}
    cluster.remove_node(second)
    return found


def gpus(cluster: Cluster, out: Path) -> dict[str, Any]:
    """Half a GPU each: two trials share one; the CPUs of nodes without a GPU count for nothing."""
    fake = cluster.add_node(num_cpus=2, num_gpus=1)
    cluster.wait_for_nodes()
    found = {"gpus": command(study("gpus", Resources(gpus=0.5), training=slow(0.2)), out),
             "too many": command(study("many", Resources(gpus=1, workers=2)), out)}
    cluster.remove_node(fake)
    return found


SCENARIOS = {scenario.__name__: scenario for scenario in (neighbours, node, grow, spare, controller, gpus)}


def slow(pause: float = 0.3) -> Any:
    from fake_trial import Training

    return Training(pause=pause)


def after(out: Path, name: str, steps: int, happen: Callable[[], Any]) -> None:
    """Let something happen once a study's cells have told so many steps."""
    def watch() -> None:
        while told(out, name) < steps:
            time.sleep(0.1)
        happen()

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    try:
        result = scenarios(Path(sys.argv[1]), sys.argv[2:])
    finally:
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
    print("RESULT " + json.dumps(result))
