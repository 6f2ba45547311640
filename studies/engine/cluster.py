"""The Ray cluster: which one, what it has, how to reach it, and how to keep its chatter out of the way.

    RAY_ADDRESS, or what `ray start` left on this machine     joined
    none of these                                            a local cluster that lives as long as the study

Ray's token authentication is never left to defaults: a local cluster gets a token of its own, in the environment and
nowhere on the disk; a cluster that is joined is asked for with the user's token where there is one.
"""

import contextlib
import gc
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from studies.engine.growth import Nodes, largest
from studies.engine.halt import Halt
from studies.engine.provenance import ROOT
from studies.engine.study import BadInput, Resources, Study
from trainables.config import near

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",      # no telemetry
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",    # what is printed is the study's
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",          # a report waits for this; the default is 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",      # for its places; then it is asked anew how many there are
    "RAY_TRAIN_METRICS_ENABLED": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",    # two seconds of start-up
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",           # the ledger is the record
    "RAY_ENABLE_AUTO_CONNECT": "0",                      # a thread that asks after the end must not start a new Ray
    "TUNE_DISABLE_SIGINT_HANDLER": "1",                  # Ctrl-C is ours
    "TUNE_MAX_PENDING_TRIALS_PG": "32",                  # trials that start side by side; whose turn it is, we say
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",           # leave CUDA_VISIBLE_DEVICES alone in tasks without a GPU
    "TOKENIZERS_PARALLELISM": "false",                   # one thread a worker means one
}
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"     # Ray's, in the environment of a job that was submitted


STARTS = 3                              # of a local Ray, before it is given up
NOBODY = "http://127.0.0.1:9"            # the discard port: better no State API than another cluster's


def settle_environment() -> None:
    """Telemetry off, and our settings where the user has none; before Ray and MLflow are imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True)
class Cluster:
    """What there is to run on.  `nodes` are (CPUs, GPUs) of each node; `largest` those of each node that an autoscaler
    may add, with what is there, `at_once` of them at most; () where none does."""

    address: str                        # host:port, or "local"
    nodes: Nodes
    largest: Nodes = ()
    at_once: int = 0                    # 0: all of them

    @property
    def cpus(self) -> float:
        return self._most(cpus for cpus, _ in self.largest) or sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        return self._most(gpus for _, gpus in self.largest) or sum(gpus for _, gpus in self.nodes)

    @property
    def words(self) -> str:
        where = "this machine" if self.address == "local" else f"the Ray cluster at {self.address}"
        grown = ", grown as far as it may," if self.largest else ""
        return f"{where}{grown} ({self.cpus:g} CPUs, {self.gpus:g} GPUs)"

    def slots(self, resources: Resources) -> int:
        """How many workers fit now, node by node."""
        return sum(_fit(cpus, gpus, resources) for cpus, gpus in self.nodes)

    def most(self, resources: Resources) -> int:
        """How many workers fit once an autoscaler has done what it may."""
        return max(self.slots(resources), int(self._most(_fit(cpus, gpus, resources) for cpus, gpus in self.largest)))

    def trials(self, resources: Resources) -> int:
        """How many trials can run at once.   BadInput: not one, ever."""
        least = resources.least or resources.workers
        if self.most(resources) < least:
            raise BadInput(f"a trial needs {least} x ({resources.cpus} CPUs, {resources.gpus:g} GPUs); "
                           f"{self.words} can never hold that.  --workers sets the workers of a trial, "
                           "--scale a smaller recipe")
        return max(1, self.slots(resources) // resources.workers)

    def _most(self, of_nodes: Iterable[float]) -> float:
        """The most that as many nodes may have together as there may be at once."""
        return sum(sorted(of_nodes, reverse=True)[:self.at_once or None])


def _fit(cpus: float, gpus: float, resources: Resources) -> int:
    """Workers on one node.  A fraction of a GPU lies on one GPU: of .4 each holds two, whatever remains."""
    fits = int(cpus / resources.cpus + 1e-6)
    if resources.gpus >= 1:
        fits = min(fits, int(gpus / resources.gpus + 1e-6))
    elif resources.gpus:
        fits = min(fits, int(gpus) * int(1 / resources.gpus + 1e-6))
    return fits


def find_cluster() -> Cluster:
    """The cluster that Ray would use.  Joins a running one; a local one is only measured, not started."""
    address = os.environ.get("RAY_ADDRESS") or _left_by_ray_start()
    if address and address != "local":
        os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token() else "disabled")
        join(address)
        return shape(address)
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token" and not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)       # Ray reads both once, when it is imported
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Cluster("local", ((float(cores), float(torch.cuda.device_count())),))


def dashboard() -> str | None:
    """The cluster that RAY_ADDRESS names by its dashboard's URL, as `ray job submit` has it: what --on takes.  Taken
    out of the environment, where a driver would look for host:port."""
    address = os.environ.get("RAY_ADDRESS", "")
    return os.environ.pop("RAY_ADDRESS") if address.startswith(("http://", "https://")) else None


def shape(address: str) -> Cluster:
    """The nodes of the cluster that this process has joined."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(address, tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive), *largest())


def join(address: str) -> None:
    """Connect to a running cluster.   BadInput: it does not answer, or not to us."""
    if address != "auto":
        _knock(address)
    import ray

    if ray.is_initialized():
        return
    try:
        with quiet(None):
            context = _connect(address, {"RAY_ADDRESS": address} if address != "auto" else {})
            if not _has_state_api(context):
                end_ray()
                _connect(address, {"RAY_API_SERVER_ADDRESS": NOBODY})
    except Exception as error:          # Ray raises ConnectionError, RuntimeError, AuthenticationError, ...
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise BadInput(f"the Ray cluster at {address} cannot be joined: {reason[:300]}") from None


def _connect(address: str, extra: dict[str, str]) -> Any:
    import ray

    return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR,
                    runtime_env=_environment(extra))


def _has_state_api(context: Any) -> bool:
    """Whether the State API that a cluster names is its own.

    Ray Train asks it whether a group's controller lives, and takes the group's places away where it does not.  A
    cluster that was started without a dashboard names port 8265 all the same, where another Ray's may answer: that one
    has never heard of the controller, and groups would lose their places in the middle of their work.
    """
    from ray.util.state import list_nodes

    try:
        there = list_nodes(address=f"http://{context.dashboard_url}", timeout=10, limit=10_000)
        return context.address_info["node_id"] in {node.node_id for node in there}      # type: ignore
    except Exception:                    # nobody answers, or not to us
        return False


def _environment(extra: dict[str, str]) -> dict[str, Any]:
    """What workers run in: this tree, our settings; of a submitted job only what it does not have already, since Ray
    takes nothing twice."""
    job = json.loads(os.environ.get(IN_A_JOB) or "{}").get("runtime_env", {})
    settings = {name: os.environ[name] for name in SETTINGS} | extra
    tree = {} if job.get("working_dir") else {"working_dir": str(ROOT), "excludes": [".git", ".venv", "results"]}
    return tree | {"env_vars": {name: value for name, value in settings.items() if name not in job.get("env_vars", {})}}


def end_ray() -> None:
    """Disconnect, and end what was started.  Nothing is collected meanwhile: between the end of Ray's core and the
    line that forgets it, a reference that another thread (the shipper's) happens to collect exits the process."""
    import ray

    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def start_local(resources: Resources) -> None:
    """Start a cluster on this machine; it ends with this process.  A no-op where one is joined.   Halt"""
    import ray

    if ray.is_initialized():
        return
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    os.environ.setdefault("OMP_NUM_THREADS", str(resources.cpus))
    for left in reversed(range(STARTS)):
        try:
            # Ray Train frees the resources of a killed group through the dashboard's State API; nothing else needs it.
            ray.init(address="local", include_dashboard=resources.workers > 1, log_to_driver=False,
                     logging_level=logging.ERROR, object_store_memory=128 * 2**20)
            return
        except Exception as error:      # Ray gives its own processes 30 s, which a busy machine may not
            end_ray()
            if "timed out" not in str(error) or not left:
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise Halt(f"Ray does not start on this machine: {reason[:300]}") from None


def choose_scale(study: Study, asked: str | None, cluster: Cluster) -> tuple[str, str]:
    """The scale, and why."""
    if asked is not None:
        if asked not in study.scales:
            raise BadInput(f"--scale: {study.name} has no scale {asked!r}{near(asked, study.scales)}")
        return asked, "asked for"
    scale = "paper" if cluster.gpus else "laptop"
    if scale not in study.scales:
        return next(iter(study.scales)), "the study's first"
    return scale, f"{cluster.words}, and paper size wants GPUs"


def _left_by_ray_start() -> str | None:
    """The address of a cluster that `ray start` left on this machine, if it still answers."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    path = Path(folder) / "ray" / "ray_current_cluster"
    try:
        address = path.read_text().strip()
        _knock(address)
        return address
    except (OSError, BadInput):
        return None


def _knock(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise BadInput(f"RAY_ADDRESS: {address} is a dashboard, to which a study is sent whole: --on {address}, where "
                       "the command has it; else host:port of the cluster itself")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(f"RAY_ADDRESS: {address!r} is not host:port")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError, UnicodeError) as error:       # a port of six digits, a name that is none
        raise BadInput(f"no Ray cluster answers at {address}: {error}.  "
                       "Unset RAY_ADDRESS to run on this machine") from None


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


@contextlib.contextmanager
def quiet(log: Path | None) -> Iterator[TextIO]:
    """What this process and its children print goes to `log` (None: nowhere); yields a stream that reaches the user."""
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    plain = sys.stdout is sys.__stdout__
    saved = [os.dup(1), os.dup(2)]
    # Under something that replaced sys.stdout, that something is the user.
    user = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", buffering=1) if plain else sys.stdout
    try:
        with open(log or os.devnull, "a", encoding="utf-8", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield user
    finally:
        for number, copy in enumerate(saved, start=1):
            os.dup2(copy, number)
            os.close(copy)
        if plain:
            user.close()
