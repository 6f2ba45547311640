"""A small study in a process group of its own, that can be killed at any time, and what must be true at the end.

    start(out) -> driver          kill(driver): the whole group, as kill -9 does;  at_work(driver): its trials
    settled(out)                  nothing is RUNNING, before any next command
    verify(out)                   one record and one run per cell and stage, whole curves, nothing RUNNING, and the
                                  table of an undisturbed run, to the last digit

tests/test_chaos.py does it a few times, benchmarks/chaos.py as often as one likes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fake_trial import Trial

from studies.engine.compare import interval
from studies.engine.ledger import curves, read_from
from trainables.config import override
from trainables.stages import Context, Store

ROOT = Path(__file__).resolve().parents[1]
ARMS, SEEDS, STEPS, PAUSE = ("plain", "fancy"), 2, 10, 0.2
PROGRAM = f"""
from fake_trial import Trial, recipe
from studies.engine.main import main
from studies.engine.study import Arm, Minimise, Scale, Study
main(Study(name="toy", question="Which?", seeds={SEEDS}, report=(Minimise("test/error"),),
           scales={{"laptop": Scale(recipe)}}, arms={{"plain": Arm(), "fancy": Arm({{"system.kind": "fancy"}})}}))
"""


def start(out: Path, *arguments: str, extra: Mapping[str, str] = {}, terminal: int | None = None) -> subprocess.Popen:
    """The driver of the study, in a process group of its own.  It prints to printed.txt, or to an open terminal.

    extra: more environment
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "RAY_ADDRESS": "local", **extra}
    with open(out / "printed.txt", "a") as printed:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "--out", str(out), "--json", str(out / "outcome.json"),
             "--set", f"training.pause={PAUSE}", *arguments],
            env=environment, stdout=printed if terminal is None else terminal, stderr=subprocess.STDOUT,
            start_new_session=True)


def printed(out: Path) -> str:
    return (out / "printed.txt").read_text()


def kill(driver: subprocess.Popen) -> None:
    """The driver and all that it started in its group, at once."""
    try:
        os.killpg(driver.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    driver.wait()


def at_work(driver: subprocess.Popen) -> list[int]:
    """The driver's Ray workers that are inside a trial, and those of its groups."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            words = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "ray::" in words and "train" in words.lower() and ancestor(int(status.parent.name), driver.pid):
                found.append(int(status.parent.name))
        except OSError:
            continue
    return found


def ancestor(pid: int, wanted: int) -> bool:
    while pid > 1:
        if pid == wanted:
            return True
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2].split()
        pid = int(fields[1])
    return False


def wait(happens: Callable[[], bool], driver: subprocess.Popen | None = None, most: float = 180.0) -> bool:
    """Wait until it happens; False where the driver ended first."""
    until = time.monotonic() + most
    while not happens():
        if driver is not None and driver.poll() is not None:
            return False
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)
    return True


def cells(out: Path) -> list[Path]:
    """The outboxes of cells."""
    return [path for path in (out / "toy" / "outbox").glob("*.jsonl")
            if not path.name.startswith((".", "stage-", "study"))]


def lines(out: Path) -> int:
    """How much has been told so far."""
    return sum(len(read_from(path, 0)[0]) for path in cells(out))


def disturb(out: Path, chance: random.Random) -> str:
    """Start the study, and kill it at a random point; what was done to it."""
    driver = start(out)
    if chance.random() < 0.25:           # while it starts
        moment = chance.uniform(0.5, 8.0)
        try:
            driver.wait(moment)
        except subprocess.TimeoutExpired:
            pass
        kill(driver)
        return f"killed {moment:.1f} s after its start"
    before, wanted = lines(out), chance.randrange(len(ARMS) * SEEDS * STEPS)
    alive = wait(lambda: lines(out) >= before + wanted, driver)
    if alive:
        time.sleep(chance.uniform(0.0, 2 * PAUSE))
    kill(driver)
    return f"killed {wanted} events after its start" if alive else "came to its end"


def client_of(out: Path) -> tuple[Any, list[str]]:
    """MLflow's client on what the study recorded into, a file or a server's database; the study's experiments."""
    from mlflow import MlflowClient

    served = out / "server.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{served if served.exists() else out / 'mlflow.db'}")
    found = client.get_experiment_by_name("toy")
    return client, [] if found is None else [found.experiment_id]


def settled(out: Path) -> None:
    """Wait until no run is RUNNING: nobody types a command, the dead driver's guardian sees to it."""
    if (out / "mlflow.db").exists() or (out / "server.db").exists():
        client, experiments = client_of(out)
        wait(lambda: not experiments or not client.search_runs(experiments, "status = 'RUNNING'"))


def finish(out: Path, *arguments: str, extra: Mapping[str, str] = {}) -> None:
    driver = start(out, *arguments, extra=extra)
    assert driver.wait(240) == 0, printed(out)


def verify(out: Path) -> str:
    """All that must be true of a study that has come to its end, whatever happened before; what there was, counted."""
    outcome = json.loads((out / "outcome.json").read_text())
    rows = [cell for arm in outcome["arms"] for cell in arm["cells"]]
    assert len(rows) == len(ARMS) * SEEDS and {row["status"] for row in rows} == {"done"}
    keys = {row["trial"] for row in rows}
    assert {path.stem for path in (out / "toy" / "cells").glob("*.json")} == keys           # one record each
    assert not list((out / "toy" / "cells").glob(".*")) and not list((out / "stages").glob("*.tmp"))

    client, experiments = client_of(out)
    runs = client.search_runs(experiments)
    by_key = {run.data.tags["trial_key"]: run for run in runs}
    assert len(by_key) == len(runs), "two runs of one key"
    stages = {key for key in by_key if key.startswith("stage-")}
    tables = {key for key in stages if "-Table-" in key}
    assert by_key.keys() == keys | stages | {"study"} and len(tables) == len(ARMS) == len(stages) - 1
    assert {run.info.status for run in runs} == {"FINISHED"}, [run.info.status for run in runs]
    points = 0
    for row in rows:
        assert row["mlflow_run_id"] == by_key[row["trial"]].info.run_id
        told = curves(out / "toy" / "outbox" / f"{row['trial']}.jsonl")
        for name in ("train/loss", "valid/loss"):
            history = client.get_metric_history(row["mlflow_run_id"], name)
            assert [point.step for point in history] == list(range(1, STEPS + 1)), (name, history)
            assert {point.step: point.value for point in history} == told[name]
            points += len(history)
    for stage in tables:
        history = client.get_metric_history(by_key[stage].info.run_id, "table/train/loss")
        assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]

    undisturbed = Context(Store(out / "reference"))
    for arm in outcome["arms"]:
        values = []
        for seed in range(SEEDS):
            trial = override(Trial(), {"system.kind": arm["name"], "seed": seed})
            values.append(json.loads((undisturbed.get(trial.metrics()) / "metrics.json").read_text())["test/error"])
        expected, found = interval(values), arm["metrics"]["test/error"]
        assert (found["mean"], found["low"], found["high"]) == (expected.mean, expected.low, expected.high)
    attempts = sum(line["kind"] == "start" for path in cells(out) for line in read_from(path, 0)[0])
    return (f"{len(keys)} records and {len(keys)} runs for {len(ARMS)} arms x {SEEDS} seeds ({attempts} attempts), "
            f"{len(runs) - len(keys)} runs of stages and study, {points} points of {points} once, nothing RUNNING, the "
            "table of an undisturbed run to the last digit")
