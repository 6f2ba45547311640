"""Studies run for real: Ray Tune, Ray Train, MLflow on SQLite; one local cluster for all tests of this file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_trial import recipe

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Scale, Study, Watch

# MLflow, SQLAlchemy and Ray warn about each other; what is ours still stops a test.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]

ARMS = {"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})}


def study(**changes) -> Study:
    settings: dict[str, Any] = dict(
        name="toy", question="Which kind?", arms=ARMS, scales={"laptop": Scale(recipe)}, seeds=2,
        report=(Minimise("test/error"), Maximise("test/quality"), Watch("threads")))
    return Study(**settings | changes)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A two-core cluster, started as a study would start it."""
    before = dict(os.environ)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    from studies.engine.cluster import find_cluster, settle_environment, start_local
    from studies.engine.study import Resources
    settle_environment()
    find_cluster()
    start_local(Resources())
    yield
    import ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


def command(what: Study, out: Path, *arguments: str) -> tuple[int, dict]:
    """Exit code and outcome of a command line."""
    outcome = out / "outcome.json"
    with pytest.raises(SystemExit) as ended:
        main(what, ["--out", str(out), "--json", str(outcome), *arguments])
    return int(ended.value.code or 0), json.loads(outcome.read_text()) if outcome.exists() else {}


def runs(out: Path, name: str = "toy") -> list:
    """Every MLflow run of the study's experiment."""
    from mlflow import MlflowClient
    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def started(printed: str) -> list[str]:
    """The cells and stages that a command's event lines say were begun."""
    return [line.split("start  ")[1] for line in printed.splitlines() if "start  " in line]


def table(outcome: dict) -> list:
    return [(arm["name"], arm["n"], arm["metrics"]) for arm in outcome["arms"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cluster) -> tuple[Path, dict]:
    """A study that ran without a disturbance."""
    out = tmp_path_factory.mktemp("finished")
    code, outcome = command(study(), out)
    assert code == 0
    return out, outcome


def test_every_cell_has_its_row_and_its_run(finished):
    out, outcome = finished
    cells = [cell for arm in outcome["arms"] for cell in arm["cells"]]
    assert [arm["name"] for arm in outcome["arms"]] == ["plain", "fancy"] and len(cells) == 4
    assert {cell["status"] for cell in cells} == {"done"}
    by_id = {run.info.run_id: run for run in runs(out)}
    parents = [run for run in by_id.values() if run.data.tags["kind"] == "study"]
    assert len(by_id) == 8 and len(parents) == 1 and parents[0].info.status == "FINISHED"
    for cell in cells:
        run = by_id[cell["mlflow_run_id"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["trial_key"] == cell["trial"] and run.data.tags["seed"] == str(cell["seed"])
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.tags["stage.Trained"].startswith("Trained-") and run.data.tags["commit"]
        assert run.data.params["training.steps"] == "10" and run.data.params["seed"] == str(cell["seed"])
        assert run.inputs.dataset_inputs[0].dataset.name == "Words"
        assert run.data.metrics["test/error"] + run.data.metrics["test/quality"] == pytest.approx(10)
    assert outcome["arms"][0]["metrics"]["threads"]["mean"] == 1.0       # two trials on two cores do not thrash


def test_curves_and_artifacts_are_recorded(finished):
    out, outcome = finished
    from mlflow import MlflowClient
    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    run = outcome["arms"][0]["cells"][0]["mlflow_run_id"]
    assert [point.step for point in client.get_metric_history(run, "train/loss")] == list(range(1, 11))
    assert {"config.json", "samples"} <= {artifact.path for artifact in client.list_artifacts(run)}
    parent = next(run for run in runs(out) if run.data.tags["kind"] == "study")
    assert {"table.md", "plan.md", "outcome.json"} <= {a.path for a in client.list_artifacts(parent.info.run_id)}
    stages = {run.info.run_name: run for run in runs(out) if run.data.tags["kind"] == "stage"}
    assert stages.keys() == {"Words (plain, fancy)", "Table (plain)", "Table (fancy)"}      # each has its own run
    for name, run in stages.items():
        assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert ("table/train/loss" in run.data.metrics) == name.startswith("Table")
    assert not parent.data.metrics


def test_again_runs_nothing(finished, capsys):
    out, outcome = finished
    code, again = command(study(), out)
    assert code == 0 and again == outcome
    printed = capsys.readouterr().out
    assert started(printed) == [] and "4 done, 0 to run" in printed
    assert len(runs(out)) == 8


def test_a_report_needs_the_ledger_alone(finished, tmp_path):
    """No cluster, no tracking server, no store: and neither Ray nor MLflow is imported."""
    out, outcome = finished
    kept = tmp_path / "toy"
    subprocess.run(["cp", "-r", str(out / "toy"), str(kept)], check=True)
    program = ("import sys; from test_engine_run import *\n"
               "try: main(study(), ['--out', sys.argv[1], '--report'])\n"
               "finally: print({'ray', 'mlflow'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_ADDRESS": "127.0.0.1:1"})
    assert done.returncode == 0, done.stderr
    assert "Which kind?" in done.stdout and "set()" in done.stdout
    assert table(json.loads((kept / "outcome.json").read_text())) == table(outcome)


def test_a_new_seed_and_a_new_arm_run_alone(finished, tmp_path, capsys):
    subprocess.run(["cp", "-r", f"{finished[0]}/.", str(tmp_path)], check=True)
    code, outcome = command(study(), tmp_path, "--seeds", "3")
    assert code == 0 and sorted(started(capsys.readouterr().out)) == ["fancy seed 2", "plain seed 2"]
    more = study(arms=ARMS | {"odd": Arm({"system.kind": "odd"})})
    code, outcome = command(more, tmp_path, "--seeds", "3")
    assert code == 0
    assert sorted(started(capsys.readouterr().out)) == ["Table (odd)", "odd seed 0", "odd seed 1", "odd seed 2"]
    assert [arm["n"] for arm in outcome["arms"]] == [3, 3, 3]
    code, outcome = command(more, tmp_path, "--arms", "odd")
    assert code == 0 and [arm["name"] for arm in outcome["arms"]] == ["odd"]


def test_failures_are_rows_and_the_others_go_on(tmp_path):
    arms = ARMS | {"diverges": Arm({"training.diverge_at": 4}), "fails": Arm({"training.fail_at": 5}),
                   "no table": Arm({"system.broken_table": True}), "dies": Arm({"training.die_at": 6})}
    code, outcome = command(study(arms=arms, seeds=1), tmp_path)
    assert code == 1
    status = {arm["name"]: arm["cells"][0]["status"] for arm in outcome["arms"]}
    assert status == {"plain": "done", "fancy": "done", "diverges": "diverged", "fails": "failed",
                      "no table": "failed", "dies": "done"}          # its process was killed once, and tried again
    printed = (tmp_path / "toy" / "table.md").read_text()
    assert "diverged at step 4" in printed and "RuntimeError: it broke at step 5" in printed
    assert "no table of kind 'plain'" in printed
    by_arm = {run.data.tags.get("arm"): run for run in runs(tmp_path)}
    assert by_arm["diverges"].info.status == by_arm["fails"].info.status == "FAILED"
    assert "it broke at step 5" in by_arm["fails"].data.tags["reason"]
    assert by_arm["dies"].info.status == "FINISHED"


def test_two_workers_share_a_cell_through_ray_train(finished, tmp_path):
    """Training that two arms share, a cell of its own, and one that diverges on both workers."""
    arms = {"plain": Arm(), "more": Arm({"samples_drawn": 9}), "diverges": Arm({"training.diverge_at": 3})}
    code, outcome = command(study(arms=arms, seeds=1), tmp_path, "--workers", "2")
    assert code == 1
    assert [arm["cells"][0]["status"] for arm in outcome["arms"]] == ["done", "done", "diverged"]
    cells = [json.loads(path.read_text()) for path in (tmp_path / "toy" / "cells").glob("*.json")]
    assert [cell["metrics"]["workers"] for cell in cells if cell["metrics"]] == [2, 2]
    assert len(list((tmp_path / "toy" / "stages").glob("Trained-*.json"))) == 1
    plain = next(cell for cell in cells if cell["arm"] == "plain")
    alone = json.loads((finished[0] / "toy" / "cells" / f"{plain['key']}.json").read_text())    # the same key
    assert plain["metrics"]["test/error"] == pytest.approx(alone["metrics"]["test/error"])


def test_a_dry_run_only_looks(tmp_path, capsys):
    code, outcome = command(study(), tmp_path, "--dry-run")
    assert code == 0 and outcome == {}
    printed = capsys.readouterr().out
    assert "4 cells: 0 done, 4 to run" in printed and "make Table (fancy)" in printed
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "stages").exists()
