"""Interrupted and killed studies: the same command continues, and ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_trial import Trial

from studies.engine.compare import interval
from studies.engine.ledger import read_from
from trainables.config import override
from trainables.stages import Context, Store

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
from fake_trial import Trial, recipe
from studies.engine.main import main
from studies.engine.study import Arm, Minimise, Scale, Study
main(Study(name="toy", question="Which?", seeds=2, report=(Minimise("test/error"),), scales={"laptop": Scale(recipe)},
           arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})}))
"""
PAUSE = 0.4                             # seconds a step takes; 10 steps a cell


def start(out: Path) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen([sys.executable, "-c", PROGRAM, "--out", str(out), "--json", str(out / "outcome.json"),
                             "--set", f"training.pause={PAUSE}"], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_until(happens, process: subprocess.Popen) -> None:
    deadline = time.time() + 120
    while not happens():
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline, "it never happened"
        time.sleep(0.1)


def steps(out: Path) -> int:
    """Steps that the cells have recorded so far."""
    paths = [path for path in (out / "toy" / "outbox").glob("*.jsonl") if not path.name.startswith(("stage-", "study"))]
    return sum(line["kind"] == "metrics" and "train/loss" in line["metrics"] for path in paths
               for line in read_from(path, 0)[0])


def runs(out: Path) -> dict:
    from mlflow import MlflowClient
    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        curve = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert found.setdefault(run.data.tags["trial_key"], (run.info.status, curve))[1] is curve, "two runs of a cell"
    return found


def test_interrupted_then_killed_then_finished(tmp_path):
    process = start(tmp_path)
    wait_until(lambda: steps(tmp_path) >= 4, process)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=90)[0]
    assert process.returncode == 130 and "the same command continues" in printed, printed
    assert "RUNNING" not in [status for status, _ in runs(tmp_path).values()]

    process = start(tmp_path)
    before = steps(tmp_path)
    wait_until(lambda: steps(tmp_path) >= before + 6, process)
    process.kill()
    process.communicate()

    process = start(tmp_path)            # at once: what the dead driver left may still be dying
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == 0, printed
    outcome = json.loads((tmp_path / "outcome.json").read_text())

    found = runs(tmp_path)
    cells = [cell for arm in outcome["arms"] for cell in arm["cells"]]
    assert found.keys() == {cell["trial"] for cell in cells} | {"study"} and len(cells) == 4
    assert {status for status, _ in found.values()} == {"FINISHED"}
    assert all(found[cell["trial"]][1] == list(range(1, 11)) for cell in cells)      # whole curves, each step once

    undisturbed = Context(Store(tmp_path / "reference"))
    for arm, kind in (("plain", "plain"), ("fancy", "fancy")):
        values = []
        for seed in (0, 1):
            trial = override(Trial(), {"system.kind": kind, "seed": seed})
            values.append(json.loads((undisturbed.get(trial.metrics()) / "metrics.json").read_text())["test/error"])
        expected = interval(values)
        row = next(row for row in outcome["arms"] if row["name"] == arm)
        assert row["metrics"]["test/error"] == {"mean": expected.mean, "low": expected.low, "high": expected.high}
