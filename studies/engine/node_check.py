"""What a process sees from where it runs, and whether the nodes of a cluster see the same.

    probe        versions, room, the output folder, a lock that somebody else holds, GPUs that can compute, the clock
    of_cluster   each node asked by a task that must run there, and compared with here: the same versions, the same
                 folder, locks that hold across nodes; and whether nodes reach each other's ports, as the workers of one
                 trial must
"""

import contextlib
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from studies.engine.cluster import Cluster

PACKAGES = ("ray", "torch", "mlflow", "optuna", "numpy", "transformers", "filelock")
ROOM = {"BAD": 0.5, "warn": 5.0}        # GiB that must, and should, be free
SKEW = 30.0                             # seconds that a clock may be off: leases of searches are two minutes
PATIENCE = 60.0                         # seconds for a node's answer


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    grade: Literal["ok", "warn", "BAD"]
    words: str


@contextlib.contextmanager
def whole_file(folder: Path) -> Iterator[Path]:
    """A file that is there for a while, by the rename that the store relies on."""
    path = folder / f".doctor-{uuid.uuid4().hex}"
    beside = path.with_suffix(".tmp")
    beside.write_text("here")
    os.replace(beside, path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def of_room(where: str, found: dict[str, Any]) -> Iterator[Finding]:
    for folder, free in found["free"].items():
        grade = "BAD" if free < ROOM["BAD"] else "warn" if free < ROOM["warn"] else "ok"
        yield Finding(grade, f"{where}: {free:.1f} GiB are free in {folder}")


def probe(out: str, lock: str) -> dict[str, Any]:
    """What one process sees from where it runs; `out`, and a lock in it that somebody else holds."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    folder, found = Path(out), {}
    for each in (folder, Path("/tmp"), Path("/dev/shm")):
        near = next((part for part in (each, *each.parents) if part.exists()), each)
        with contextlib.suppress(OSError):
            found[str(each)] = shutil.disk_usage(near).free / 2**30
    held = None
    if lock and Path(lock).exists():
        again = FileLock(lock)
        try:
            again.acquire(timeout=0)
            again.release()
            held = False
        except (Timeout, OSError):
            held = True
    cuda, seen = False, 0
    if "torch" in versions:
        import torch

        seen = torch.cuda.device_count()
        with contextlib.suppress(Exception):
            cuda = bool(seen) and float(torch.ones(2, device="cuda").sum()) == 2.0
    try:
        with whole_file(folder):
            writes = True
    except OSError:
        writes = False
    with contextlib.suppress(ModuleNotFoundError):
        import trainables  # noqa: F401

        versions["palimpsest"] = "here"
    return {"versions": versions, "free": found, "held": held, "sees": Path(lock).exists() if lock else None,
            "writes": writes, "gpus": seen, "cuda": cuda, "time": time.time(), "host": socket.gethostname()}


class Door:
    """An actor with an open port, on which another node knocks."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("0.0.0.0", 0))

    def port(self) -> int:
        return self.socket.getsockname()[1]


def knock_on(address: str, port: int) -> str:
    """"" or why not."""
    try:
        socket.create_connection((address, port), timeout=10).close()
        return ""
    except OSError as error:
        return str(error)


def of_cluster(cluster: Cluster, out: Path, mine: dict[str, Any], workers: int) -> Iterator[Finding]:
    """Each node, asked by a task that must run there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    nodes = [node for node in ray.nodes() if node["Alive"]]
    lock = FileLock(out / f".doctor-{uuid.uuid4().hex}.lock")
    names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})" for node in nodes}
    began = time.time()
    with lock:
        ask = ray.remote(probe)
        answers = {node["NodeID"]: ask.options(
            num_cpus=0, num_gpus=min(1, node["Resources"].get("GPU", 0)) / 100 or 0,
            scheduling_strategy=On(node["NodeID"], soft=False)).remote(str(out), str(lock.lock_file)) for node in nodes}
        ray.wait(list(answers.values()), num_returns=len(answers), timeout=PATIENCE)
        for node in nodes:
            try:
                found = ray.get(answers[node["NodeID"]], timeout=1)
            except Exception as error:
                yield Finding("BAD", f"{names[node['NodeID']]} does not answer within {PATIENCE:.0f} s: "
                                     f"{type(error).__name__}: {str(error)[:200]}")
                continue
            yield from of_node(names[node["NodeID"]], node, found, mine, out, began)
    Path(lock.lock_file).unlink(missing_ok=True)
    if len(nodes) > 1 and workers > 1:
        yield from of_ports(nodes, names)
    if workers > 1:
        yield from of_state_api()


def of_node(name: str, node: dict[str, Any], found: dict[str, Any], mine: dict[str, Any], out: Path, asked: float
            ) -> Iterable[Finding]:
    """What one node answered."""
    other = [f"{package} {found['versions'].get(package, 'absent')} there, {number} here"
             for package, number in mine["versions"].items() if found["versions"].get(package) != number]
    yield Finding("BAD" if other else "ok", f"{name}: {', '.join(other) or 'the same versions as here'}")
    if not found["sees"] or not found["writes"]:
        yield Finding("BAD", f"{name}: {out} is not the folder that is seen here"
                             f"{'' if found['writes'] else ', and cannot be written'}: --out must lie on a file system "
                             "that every node sees")
    elif found["held"] is False:
        yield Finding("BAD", f"{name}: locks in {out} do not hold across nodes: two nodes would make the same stage")
    else:
        yield Finding("ok", f"{name}: sees {out}, and its locks")
    if not asked - SKEW < found["time"] < time.time() + SKEW:
        yield Finding("warn", f"{name}: its clock is off by {found['time'] - asked:+.0f} s: searches there and here "
                              "would take over each other's trials")
    claims = node["Resources"].get("GPU", 0)
    if claims and not found["cuda"]:
        yield Finding("BAD", f"{name}: Ray counts {claims:g} GPUs there, and torch cannot compute on one")
    elif claims:
        yield Finding("ok", f"{name}: {claims:g} GPUs, and torch computes on them")
    yield from of_room(name, found)


def of_ports(nodes: list[dict[str, Any]], names: dict[str, str]) -> Iterator[Finding]:
    """Whether a worker on any node reaches one on any other: a ring of knocks, there and back."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    doors = {node["NodeID"]: ray.remote(Door).options(
        num_cpus=0, scheduling_strategy=On(node["NodeID"], soft=False)).remote() for node in nodes}
    ring: list[tuple[dict, dict]] = list(zip(nodes, nodes[1:] + nodes[:1], strict=True))
    closed = 0
    for one, other in [*ring, *((b, a) for a, b in ring)]:
        try:
            port: Any = ray.get(doors[other["NodeID"]].port.remote(), timeout=PATIENCE)
            why = ray.get(ray.remote(knock_on).options(
                num_cpus=0, scheduling_strategy=On(one["NodeID"], soft=False)).remote(
                    other["NodeManagerAddress"], port), timeout=PATIENCE)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:100]}"
        if why:
            closed += 1
            yield Finding("BAD", f"{names[one['NodeID']]} does not reach port {port if 'port' in locals() else '?'} of "
                                 f"{names[other['NodeID']]}: {why}; workers of one trial talk through high ports")
    if not closed:
        yield Finding("ok", "nodes reach each other's ports")


def of_state_api() -> Iterator[Finding]:
    from ray.util.state import list_actors

    try:
        list_actors(limit=1, timeout=15)
        yield Finding("ok", "Ray's State API answers")
    except Exception as error:
        yield Finding("warn", "Ray's State API does not answer (no dashboard?): places of a group whose Ray Train "
                              "controller is killed while it starts come free only with the study: "
                              f"{type(error).__name__}")
