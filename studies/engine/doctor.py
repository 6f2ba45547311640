"""The doctor: says what is wrong with a cluster before a study finds out.

    python -m studies.engine.doctor --out /shared/results --workers 4
    python -m studies.engine.doctor --cluster cluster/gpu.yaml         a cluster's file before `ray up` (before_up.py)

    this machine    versions, room, the output folder, locks, the tracking server, the store
    each node       the same, and what nodes must have in common (node_check.py)

One line a finding: ok, warn (a study runs, but), or BAD (a study would fail).  Exit code 1 where something is BAD; a
cluster's file that is wrong is one sentence and exit code 2.
"""

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from studies.engine.before_up import ready
from studies.engine.cluster import find_cluster, settle_environment
from studies.engine.node_check import Finding, of_cluster, of_room, probe, whole_file
from studies.engine.study import BadInput, Resources


def main(
    out: Annotated[Path, typer.Option(help="Where results will go; on a cluster, where every node sees it.")] =
    Path("results"),
    store: Annotated[str | None, typer.Option(help="Where stages will go; without it, OUT/stages.")] = None,
    workers: Annotated[int, typer.Option(help="Workers of a trial.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of each worker: 1, or a fraction.")] = 0.0,
    cpus: Annotated[int, typer.Option(help="CPUs of each worker.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="A cluster's file, to be checked before `ray up`, and only "
                                                     "that.")] = None,
) -> None:
    """Say what is wrong with this machine, or with the Ray cluster that studies would use."""
    settle_environment()
    if cluster is not None:
        try:
            ready(cluster)
        except BadInput as error:
            typer.echo(error, err=True)
            raise typer.Exit(2) from None
        typer.echo(f"nothing that can be seen from here stands in the way of `ray up {cluster}`")
        return
    console, bad = Console(highlight=False), 0
    if not console.is_terminal:
        console.width = 200
    for finding in examine(out.absolute(), store, cpus, gpus, workers):
        style = {"ok": "", "warn": "yellow", "BAD": "bold red"}[finding.grade]
        console.print(Text(f"{finding.grade:<5} {finding.words}", style=style), soft_wrap=True)
        bad += finding.grade == "BAD"
    console.print(Text(f"\n{bad} things would stop a study" if bad else "\nnothing would stop a study"))
    raise typer.Exit(1 if bad else 0)


def examine(out: Path, store: str | None, cpus: int, gpus: float, workers: int) -> Iterator[Finding]:
    """Everything, cheapest first."""
    mine = probe(str(out), "")
    yield Finding("ok", "here: " + ", ".join(f"{name} {number}" for name, number in mine["versions"].items() if number))
    yield from of_folder(out)
    yield from of_room("here", mine)
    yield from of_tracking(out)
    yield from of_store(store)
    try:
        resources = Resources(cpus=cpus, gpus=gpus, workers=workers)
        cluster = find_cluster()
        yield Finding("ok", f"studies run on {cluster.words}")
    except (BadInput, ValueError) as error:
        yield Finding("BAD", str(error))
        return
    try:
        cluster.trials(resources)
        yield Finding("ok", f"{cluster.slots(resources) // workers} trials of {workers} x ({cpus} CPUs, {gpus:g} GPUs) "
                            "fit at once")
    except BadInput as error:
        yield Finding("BAD", str(error))
    if cluster.address != "local":
        yield from of_cluster(cluster, out, mine, workers)
    elif cluster.gpus and not mine["cuda"]:
        yield Finding("BAD", "there are GPUs, and torch cannot compute on them: is it a CPU build?")


# ---------------------------------------------------------------- this machine


def of_folder(out: Path) -> Iterator[Finding]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(out):
            pass
    except OSError as error:
        yield Finding("BAD", f"--out {out} cannot be written: {error.strerror}")
        return
    yield Finding("ok", f"--out {out} can be written")
    lock = out / f".doctor-{uuid.uuid4().hex}.lock"
    first, second = FileLock(lock), FileLock(lock)
    try:
        first.acquire(timeout=0)
        try:
            second.acquire(timeout=0)
            yield Finding("BAD", f"file locks do not hold in {out}: two processes would make the same stage")
        except Timeout:
            yield Finding("ok", "file locks hold there")
    except (OSError, NotImplementedError) as error:
        yield Finding("BAD", f"{out} has no file locks: {error}")
    finally:
        for each in (second, first):
            each.release(force=True)
        lock.unlink(missing_ok=True)


def of_tracking(out: Path) -> Iterator[Finding]:
    from studies.engine.tracking import knock, shown, tracking_uri

    uri = tracking_uri(out)
    try:
        knock(uri)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        if uri.startswith(("http://", "https://")):          # a file is made when it is needed
            from mlflow import MlflowClient

            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
        yield Finding("ok", f"MLflow records into {shown(uri)}")
    except BadInput as error:
        yield Finding("BAD", str(error))
    except Exception as error:           # the client raises its own, requests', urllib3's and SQLAlchemy's
        yield Finding("BAD", f"the tracking server {shown(uri)} does not work: {str(error).splitlines()[0][:200]}")


def of_store(store: str | None) -> Iterator[Finding]:
    if store is None:
        return
    from studies.engine import writable
    from studies.engine.tracking import shown
    try:
        writable.store("--store", store)
        yield Finding("ok", f"--store {shown(store)} can be written and read")
    except BadInput as error:
        yield Finding("BAD", str(error))


def run(command: Callable[..., None] = main) -> None:
    typer.run(command)


if __name__ == "__main__":
    sys.exit(run())
