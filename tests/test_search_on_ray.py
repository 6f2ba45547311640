"""Searches on Ray, arm by arm, and killed ones that go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_trial import recipe
from optuna.trial import TrialState
from toy_search import ROOT

from search_spaces.domains import LogUniform, Space
from studies.engine.pruning import Halving
from studies.engine.storage import Memory, storage_url
from studies.engine.study import Arm, Minimise, Resources, Scale, Study
from studies.engine.tuning import QuasiRandom, Tune

pytest_plugins = ["toy_search"]                    # its fixture
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


GAINS = Space({"system.shape.gain": LogUniform(0.1, 10.0)})
BOTH = {"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})}
TUNE = Tune(space=GAINS, select=(Minimise("valid/error"),), trials=4, sampler=QuasiRandom(),
            prune=Halving(Minimise("valid/loss"), first=3, factor=2))


def study(arms: Any = None, tune: Tune | None = TUNE) -> Study:
    return Study(name="toy", question="Which?", seeds=2, report=(Minimise("test/error"),), arms=arms or BOTH,
                 scales={"laptop": Scale(recipe)}, tune=tune)


@pytest.fixture(scope="module")
def cluster():
    """A two-core cluster, started as a study would start it."""
    before = dict(os.environ)
    for name in ("RAY_ADDRESS", "OPTUNA_STORAGE"):
        os.environ.pop(name, None)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    from studies.engine.cluster import find_cluster, settle_environment, start_local
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
    from studies.engine.main import main
    with pytest.raises(SystemExit) as ended:
        main(what, ["--out", str(out), "--json", str(out / "outcome.json"), *arguments])
    path = out / "outcome.json"
    return int(ended.value.code or 0), json.loads(path.read_text()) if path.exists() else {}


def remembered(out: Path) -> dict[str, list[optuna.trial.FrozenTrial]]:
    """Arm -> the trials of its search."""
    memory = Memory(storage_url(out))
    try:
        return {said["arm"]: memory.load(name).get_trials() for name, said in memory.studies().items() if "arm" in said}
    finally:
        memory.close()


@pytest.fixture(scope="module")
def searched(tmp_path_factory, cluster) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("searched")
    code, outcome = command(study(), out, "--set", "training.pause=0.05")
    assert code == 0
    return out, outcome


def test_each_arm_is_searched_and_compared_at_its_best(searched):
    out, outcome = searched
    searches = remembered(out)
    assert searches.keys() == {"plain", "fancy"}
    for arm in outcome["arms"]:
        trials = searches[arm["name"]]
        assert len(trials) == 4 and {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
        best = min((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: trial.values[0])
        for cell in arm["cells"]:
            kept = json.loads((out / "toy" / "cells" / f"{cell['trial']}.json").read_text())
            assert kept["trial"]["system"]["shape"]["gain"] == best.params["system.shape.gain"]
            assert kept["seed"] in (0, 1) and set(kept["metrics"]) >= {"test/error"}
        for trial in trials:
            kept = json.loads((out / "toy" / "cells" / f"{trial.user_attrs['key']}.json").read_text())
            assert kept["seed"] == 1_000 and kept["status"] in ("done", "pruned")
            assert not any(name.startswith("test/") for name in kept["metrics"])    # nobody has looked
    said = json.loads((out / "toy" / "search.json").read_text())
    assert [len(said[arm]["trials"]) for arm in BOTH] == [4, 4] and (out / "toy" / "search.md").exists()


def test_searched_cells_are_runs_of_the_study(searched):
    from mlflow import MlflowClient
    out, _ = searched
    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    keys = {trial.user_attrs["key"]: trial for trials in remembered(out).values() for trial in trials}
    found = {run.data.tags["trial_key"]: run for run in runs if run.data.tags["trial_key"] in keys}
    assert found.keys() == keys.keys() and {run.data.tags["split"] for run in found.values()} == {"valid"}
    for key, trial in keys.items():
        assert found[key].info.status == ("FINISHED" if trial.state == TrialState.COMPLETE else "KILLED")


def test_again_nothing_runs_and_a_larger_budget_continues(searched, capsys):
    out, outcome = searched
    code, again = command(study(), out, "--set", "training.pause=0.05")
    assert code == 0 and again["arms"] == outcome["arms"] and "start  " not in capsys.readouterr().out
    before = {arm: [trial.params for trial in trials] for arm, trials in remembered(out).items()}
    more = study(tune=Tune(space=GAINS, select=(Minimise("valid/error"),), trials=5, sampler=QuasiRandom()))
    code, _ = command(more, out, "--set", "training.pause=0.05")
    assert code == 0
    for arm, trials in remembered(out).items():
        assert len(trials) == 5 and [trial.params for trial in trials][:4] == before[arm]


def test_a_report_and_a_dry_run_of_a_search_start_nothing(searched, tmp_path, capsys, monkeypatch):
    out, outcome = searched
    assert command(study(), tmp_path, "--dry-run")[0] == 0
    printed = capsys.readouterr().out
    assert "4 points an arm" in printed and "system.shape.gain: 0.1 .. 10 (log)" in printed and "4 to go" in printed
    assert not list(tmp_path.glob("*.db"))
    code, again = command(study(), out, "--set", "training.pause=0.05", "--report")
    assert code == 0 and [arm["name"] for arm in again["arms"]] == ["plain", "fancy"]
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://nobody@localhost:1/away")      # the ledger is enough
    again = command(study(), out, "--set", "training.pause=0.05", "--report")
    assert again == (0, outcome) and "valid/error" in capsys.readouterr().out
    code, _ = command(study(), out, "--set", "training.pause=0.06", "--report")     # another search, and nobody to ask
    assert code == 0 and "no search is written down here, and the search storage" in capsys.readouterr().out
    assert command(study(), out, "--dry-run")[0] == 2
    monkeypatch.delenv("OPTUNA_STORAGE")
    capsys.readouterr()
    assert command(study(tune=None), out, "--tune", "3", "--by-code")[0] == 2
    assert "--by-code: a search is its storage's memory" in capsys.readouterr().err
    assert command(study(), tmp_path, "--dry-run", "--set", "system.shape.gain=2.0")[0] == 2
    assert "is searched, and system.shape.gain is set" in capsys.readouterr().err


def test_what_fails_in_a_search_is_told_as_it_is(tmp_path, cluster):
    """Diverged points are FAIL; a search without a finished point leaves its arm as it is."""
    arms = {"plain": Arm(), "diverges": Arm({"training.diverge_at": 4}), "no table": Arm({"system.broken_table": True})}
    tune = Tune(space=GAINS, select=(Minimise("valid/error"),), trials=2)
    code, outcome = command(study(arms, tune), tmp_path, "--seeds", "1")
    assert code == 1
    searches = remembered(tmp_path)
    assert [trial.state.name for trial in searches["diverges"]] == ["FAIL", "FAIL"]
    assert searches["diverges"][0].user_attrs["status"] == "diverged"
    assert [trial.state.name for trial in searches["plain"]] == ["COMPLETE", "COMPLETE"]
    assert {trial.state.name for trial in searches["no table"]} == {"WAITING"}       # its table cannot be made
    assert [arm["cells"][0]["status"] for arm in outcome["arms"]] == ["done", "diverged", "failed"]


PROGRAM = """
from test_search_on_ray import TUNE, study
from studies.engine.main import main
main(study())
"""


def start(out: Path, **extra: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("RAY_", "MLFLOW_", "OPTUNA_"))}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])} | extra
    return subprocess.Popen([sys.executable, "-c", PROGRAM, "--out", str(out), "--json", str(out / "outcome.json"),
                             "--set", "training.pause=0.1"], env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


@pytest.mark.skipif(not os.environ.get("PALIMPSEST_LABS"), reason="takes minutes: PALIMPSEST_LABS=1 runs it")
def test_a_search_that_is_killed_and_one_that_is_told_to_end_continue_and_repeat_nothing(tmp_path):
    from mlflow import MlflowClient

    process = start(tmp_path)
    deadline = time.time() + 240
    while len(list((tmp_path / "toy" / "cells").glob("*.json"))) < 3:
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "toy" / "cells").glob("*.json")
             if json.loads(path.read_text())["status"] == "done"}
    before = {arm: [trial.params for trial in trials] for arm, trials in remembered(tmp_path).items()}

    process = start(tmp_path)                                       # the next one is told to end, as Slurm would
    while not any(f":{process.pid}:" in trial.user_attrs.get("lease", {}).get("owner", "")
                  for trials in remembered(tmp_path).values() for trial in trials):
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "stopped; the same command continues from here" in printed, printed
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    runs = {run.data.tags["trial_key"]: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert runs["study"] == "KILLED" and "RUNNING" not in runs.values()
    held = [trial.user_attrs["lease"] for trials in remembered(tmp_path).values() for trial in trials
            if trial.state == TrialState.RUNNING]
    assert held and all(one["until"] == 0.0 for one in held)        # saved, and given back

    process = start(tmp_path)
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == 0, printed
    for arm, trials in remembered(tmp_path).items():
        assert len(trials) == 4 and {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
        known = before[arm]
        assert [trial.params for trial in trials][:len(known)] == known           # what was at work was taken over
    for name, changed in ended.items():
        assert (tmp_path / "toy" / "cells" / name).stat().st_mtime_ns == changed    # and what was done was not run
