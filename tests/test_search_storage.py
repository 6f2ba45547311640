"""Searches in their storages: SQLite, a journal and PostgreSQL mean the same; a storage's loss; the dashboard.

PostgreSQL is a private one of Debian's binaries (postgresql.py), under PALIMPSEST_LABS=1: make test-cluster.
"""

import contextlib
import io
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from wsgiref.util import setup_testing_defaults

import pytest
from fake_trial import Trial, recipe
from optuna.trial import TrialState
from postgresql import Postgresql, postgresql
from test_engine_tracking import state, tell
from test_search_on_ray import start
from test_search_on_ray import study as toy
from toy_search import ROOT, Desk, go, record, states

from search_spaces.domains import LogUniform, Space
from studies.engine.findings import Findings
from studies.engine.found import chosen
from studies.engine.guardian import MARK, leading
from studies.engine.ledger import Ledger, Outbox
from studies.engine.mirror import mirror
from studies.engine.options import Options
from studies.engine.plan import Cell, cell_key
from studies.engine.planning import make_plan
from studies.engine.pruning import Halving
from studies.engine.recorded import helping, recorded
from studies.engine.search import DONE, WAIT
from studies.engine.storage import LOST, Memory, away
from studies.engine.study import Maximise, Minimise, Resources, Scale, Study
from studies.engine.tracking import Tracking
from studies.engine.tuning import QuasiRandom
from trainables.config import override
from trainables.stages import Store

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]

labs = pytest.mark.skipif(not os.environ.get("PALIMPSEST_LABS"), reason="starts a server: PALIMPSEST_LABS=1 runs it")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgresql]:
    with postgresql() as found:
        yield found


@pytest.fixture(params=["sqlite", "journal", pytest.param("postgresql", marks=labs)])
def desk(request, tmp_path) -> Iterator[Desk]:
    if request.param == "postgresql":
        server, name = request.getfixturevalue("server"), f"t{time.time_ns()}"
        server.run("createdb", "-h", str(server.folder), "-U", "tester", name)
        url = server.url(name)
    else:
        url = {"sqlite": f"sqlite:///{tmp_path}/o.db", "journal": str(tmp_path / "o.journal")}[request.param]
    found = Desk(tmp_path, url)
    yield found
    for memory in found.opened:
        memory.close()


@pytest.fixture
def file(tmp_path) -> Iterator[Desk]:
    found = Desk(tmp_path, f"sqlite:///{tmp_path}/o.db")
    yield found
    for memory in found.opened:
        memory.close()


# ---------------------------------------------------------------- the same on each


def test_a_search_spends_its_budget_and_says_what_became_of_each(desk):
    def outcome(cell: Cell) -> dict:
        if cell.point == 3:
            return record(cell, "diverged")
        if cell.point == 4:
            return record(cell, "pruned")
        return record(cell)

    one = desk.search()
    cells = go(one, outcome)
    assert one.ask() == DONE and len(one.trials()) == 12
    assert states(one)[3] == "FAIL" and states(one)[4] == "PRUNED"
    assert sum(state == "COMPLETE" for state in states(one)) == 10
    trials = one.trials()
    assert all(trial.user_attrs["key"] == cell_key(one.cell(trial.params, 0).trial, "valid") for trial in trials)
    assert trials[3].user_attrs["status"] == "diverged" and trials[3].user_attrs["reason"] == "so it went"
    best = chosen(one)[0]
    assert best.value == min(trial.value for trial in trials if trial.state == TrialState.COMPLETE)
    assert all(cell.split == "valid" and cell.trial.seed == 1_000 for cell in cells)
    assert one.states() == {"done": 10, "diverged": 1, "pruned": 1}


def test_a_larger_budget_continues(desk):
    go(desk.search(trials=5))
    first = [trial.params for trial in desk.search(trials=5).trials()]
    again = desk.search(trials=9)
    assert len(go(again)) == 4 and [trial.params for trial in again.trials()][:5] == first
    assert len(again.trials()) == 9 and again.ask() == DONE


def test_a_crash_is_tried_again_by_the_next_command_and_a_divergence_is_not(desk):
    one = desk.search(trials=4)
    ends = {1: "failed", 2: "diverged"}
    go(one, lambda cell: record(cell, ends.get(cell.point or 0, "done")))
    assert one.states() == {"done": 3, "failed": 1, "diverged": 1}  # a crash costs nothing of the budget
    lost = one.trials()[1].params
    again = desk.search(trials=5)
    assert again.states()["waiting"] == 1
    cells = go(again)
    assert [trial.params for trial in again.trials()][5] == lost and len(cells) == 1
    assert again.ask() == DONE
    assert "waiting" not in desk.search(trials=5).states()          # once


def test_two_drivers_share_one_budget(desk):
    one, two = desk.search(owner="here:1:1"), desk.search(owner=f"there:{os.getpid()}:2")
    drivers, running, done = [one, two], [], []
    rng = random.Random(0)
    for _ in range(500):
        driver = rng.choice(drivers)
        if rng.random() < 0.5 and len(running) < 5 and isinstance(cell := driver.ask(), Cell):
            running.append((driver, cell))
        elif running:
            driver, cell = running.pop(rng.randrange(len(running)))
            driver.tell(cell.key, record(cell))
            done.append(cell)
    assert {one.ask(), two.ask()} == {DONE}
    assert states(one) == ["COMPLETE"] * 12 and len({cell.point for cell in done}) == len(done) == 12


def test_the_trials_of_a_dead_driver_are_taken_over_as_they_are(desk):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    one = desk.search(trials=6, owner=f"{host}:{dead.pid}:1")
    left = [one.ask() for _ in range(3)]
    heir = desk.search(trials=6)
    cells = go(heir)
    assert [cell.key for cell in cells[:3]] == [cell.key for cell in left]
    assert [cell.point for cell in cells[:3]] == [0, 1, 2] and states(heir) == ["COMPLETE"] * 6


def test_a_driver_on_another_host_is_left_alone_until_its_lease_ends(desk, monkeypatch):
    one = desk.search(trials=2, owner="far-away:1:1")
    mine = [one.ask(), one.ask()]
    other = desk.search(trials=2)
    assert other.ask() == WAIT
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    one.renew()                                                     # it lives
    assert other.ask() == WAIT
    monkeypatch.setattr(time, "time", lambda: later + 1000)
    taken = go(other)
    assert [cell.key for cell in taken] == [cell.key for cell in mine]
    one.tell(mine[0].key, record(mine[0], metrics={"valid/error": 77.0}))         # it lived after all, too late
    assert one.trials()[0].value != 77.0


def test_what_was_asked_for_and_never_begun_is_lost_and_replaced(desk):
    one = desk.search(trials=3)
    one.study.ask()                                                 # a driver dies here
    cells = go(one)
    assert one.states() == {"lost": 1, "done": 3} and len(cells) == 3
    assert cells[0].trial == override(Trial(), {"seed": 1_000})     # what was lost was the arm as it is


def test_comparisons_stand_in_the_storage_too(desk):
    """Grids and ablations: what the dashboard opens is what the ledger says, also after arms have changed."""
    def compared(kinds: tuple[str, ...], seeds: int, statuses: dict[str, str]) -> Findings:
        study = Study(name="toy", question="Which?", report=(Minimise("test/error"), Maximise("test/quality")),
                      factors={"system.kind": {kind: kind for kind in kinds},
                               "training.steps": {"short": 5, "long": 10}}, scales={"laptop": Scale(recipe)})
        ledger = Ledger(desk.folder / "toy")

        def plan():
            return make_plan(study, scale="laptop", why="", ledger=ledger, store=Store(desk.folder / "stages"),
                             resources=Resources(), seeds=seeds, arms=list(study.arms))
        for cell in plan().cells:
            if cell.arm in statuses:
                metrics = {"test/error": float(cell.seed), "test/quality": 3.0}
                ledger.write_cell(record(cell, statuses[cell.arm], metrics) | {
                    "arm": cell.arm, "seed": cell.seed, "scale": "laptop", "ended": 5.0, "started": 2.0})
        return Findings(plan(), ledger)

    memory = Memory(desk.url)
    desk.opened.append(memory)
    statuses = {"plain + short": "done", "fancy + short": "diverged"}
    name = mirror(compared(("plain", "fancy"), 2, statuses), memory)
    assert name is not None and "toy" in name
    trials = memory.load(name).get_trials()
    assert [(t.state.name, t.params["system.kind"], t.params["training.steps"], t.params["seed"]) for t in trials] == [
        ("COMPLETE", "plain", "short", 0), ("COMPLETE", "plain", "short", 1),
        ("FAIL", "fancy", "short", 0), ("FAIL", "fancy", "short", 1)]
    assert trials[1].values == [1.0, 3.0] and trials[1].duration is not None and trials[1].duration.seconds == 3
    assert trials[2].user_attrs["reason"] == "so it went" and trials[2].user_attrs["status"] == "diverged"
    mirror(compared(("plain", "fancy"), 2, statuses), memory)
    assert len(memory.load(name).get_trials()) == 4                 # again: nothing new
    mirror(compared(("plain", "fancy"), 2, statuses | {"plain + long": "done"}), memory)
    assert len(memory.load(name).get_trials()) == 6
    mirror(compared(("plain", "fancy", "odd"), 2, statuses | {"odd + long": "done"}), memory)
    assert len(memory.load(name).get_trials()) == 8                 # "plain + long" is still in the ledger
    assert mirror(compared(("plain", "odd"), 1, {}), Memory(f"sqlite:///{desk.folder}/other.db")) is not None


def test_what_saved_itself_is_anybody_s_at_once(desk):
    """Given back, it waits for nobody's lease; and only what a living driver holds is said to run elsewhere."""
    one, other = desk.search(trials=2, owner="far-away:1:1"), desk.search(trials=2)
    mine = [one.ask(), one.ask()]
    assert all(isinstance(cell, Cell) for cell in mine) and other.ask() == WAIT
    assert other.elsewhere() == {cell.key for cell in mine} and one.elsewhere() == set()
    one.release(mine[1].key)
    assert other.elsewhere() == {mine[0].key}
    taken = other.ask()
    assert isinstance(taken, Cell) and taken.key == mine[1].key and other.ask() == WAIT


def test_a_trial_that_another_driver_has_ended_takes_no_more_steps(desk, monkeypatch):
    """A driver that was thought dead goes on reporting; nothing breaks, and the first word stands."""
    rule = Halving(Minimise("valid/loss"), first=100)
    one = desk.search(trials=1, prune=rule, owner="far-away:1:1")
    cell = one.ask()
    assert isinstance(cell, Cell)
    one.report(cell.key, 1, {"valid/loss": 3.0})
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    assert len(go(desk.search(trials=1, prune=rule))) == 1
    one.report(cell.key, 2, {"valid/loss": 2.0})
    one.tell(cell.key, record(cell, metrics={"valid/error": 77.0}))
    assert one.trials()[0].intermediate_values == {1: 3.0} and one.trials()[0].value != 77.0


# ---------------------------------------------------------------- what it costs, what its loss costs


def test_a_step_and_a_point_read_what_is_unfinished_and_nothing_else(file):
    """Of the trials that have ended not one is read again, however many there are."""
    from optuna.storages._rdb.models import TrialModel
    from sqlalchemy import event

    one = file.search(space=Space({"system.shape.gain": LogUniform(0.1, 10.0)}), trials=20, sampler=QuasiRandom(),
                      prune=Halving(Minimise("valid/loss"), first=1))
    read: list[int] = []

    def count(target, context):
        read.append(1)

    event.listen(TrialModel, "load", count)
    try:
        seen = []
        for _ in range(12):
            read.clear()
            cell = one.ask()
            assert isinstance(cell, Cell)
            for step in (1, 2, 3):
                one.report(cell.key, step, {"valid/loss": 1.0 / step})
            one.tell(cell.key, record(cell))
            seen.append(len(read))
    finally:
        event.remove(TrialModel, "load", count)
    assert max(seen) <= seen[0] + 2, seen


def test_a_search_whose_storage_goes_away_is_shipped_all_the_same(file):
    """No run is left RUNNING but those that this driver did not begin, and what was written down stays."""
    from mlflow import MlflowClient

    what = toy()
    ledger, folder = Ledger(file.folder / "toy"), file.folder
    plan = make_plan(what, scale="laptop", why="", ledger=ledger, store=Store(folder / "stages"),
                     resources=Resources(), seeds=1, arms=list(what.arms))
    options = Options(scale=None, data=None, test_data=None, seeds=None, arms=None, assignments=(), workers=None,
                      out=folder, store=None, json=None, dry_run=False, report=False)
    one, said = file.search(), []
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")

    def runs() -> dict[str, str]:
        experiment = client.get_experiment_by_name("toy")
        assert experiment is not None
        return {run.data.tags["trial_key"]: run.info.status for run in client.search_runs([experiment.experiment_id])}

    def begin(key: str) -> None:
        outbox = Outbox(ledger.outbox(key))
        outbox.start(key=key, name=key)
        outbox.close()

    with pytest.raises(LOST) as lost, recorded(plan, {"plain": one}, options, ledger, said.append):
        cell = one.ask()
        assert isinstance(cell, Cell)
        begin(cell.key)
        begin("a-helper-s")
        give_up = time.monotonic() + 60
        while runs().keys() != {"study", cell.key, "a-helper-s"}:
            assert time.monotonic() < give_up
            time.sleep(0.2)
        assert set(runs().values()) == {"RUNNING"}                  # the study's own run as well
        with sqlite3.connect(folder / "o.db") as database:
            for table in ("trials", "studies"):
                database.execute(f"DROP TABLE {table}")
        database.close()
        one.ask()
    assert runs() == {"study": "KILLED", cell.key: "KILLED", "a-helper-s": "RUNNING"}
    assert "search.md and search.json are as they were" in said[0] and "no such table" in said[0]
    words = str(away(file.url, lost.value))
    assert "does not answer any more: " in words and "no such table" in words


def test_a_helper_that_outlives_its_leader_ships_what_is_told(file):
    """While somebody leads it leaves all to him; behind one who has gone no run stays RUNNING but of drivers that are
    at work, and what was found is written down."""
    ledger, folder, said = Ledger(file.folder / "toy"), file.folder, []
    one, other = file.search(trials=2), file.search(trials=2, owner="far-away:1:1")
    searches = {"plain": one}
    with leading(ledger.folder) as ours, helping("toy", searches, folder, ledger, said.append):
        assert ours
        tell(folder, "of-one-who-died", range(1, 3), None)
    assert said == [f"the search is over; the driver at work in {ledger.folder} reports it"]
    assert not list(folder.glob("mlflow*")) and not (ledger.folder / "search.json").exists()
    with pytest.raises(KeyboardInterrupt), helping("toy", searches, folder, ledger, said.append):
        mine, theirs = one.ask(), other.ask()
        assert isinstance(mine, Cell) and isinstance(theirs, Cell)
        tell(folder, mine.key, range(1, 4), "done")
        tell(folder, theirs.key, range(1, 2), None)
        one.tell(mine.key, record(mine))
        raise KeyboardInterrupt
    assert said[1:] == ["the driver that led has gone, so this one has shipped what was told",
                        "the search is not over: the same command goes on from here"]
    assert {key: entry[1] for key, entry in state(Tracking("toy", folder)).items()} == {
        "study": "KILLED", "of-one-who-died": "KILLED", mine.key: "FINISHED", theirs.key: "RUNNING"}
    assert json.loads((ledger.folder / "search.json").read_text())["plain"]["states"] == {"done": 1, "running": 1}
    assert not (ledger.folder / MARK).exists()


@labs
def test_a_search_outlives_its_database(server, tmp_path):
    """PostgreSQL goes away in the middle: halted, nothing lost, nothing RUNNING; it comes back, and the search ends."""
    from mlflow import MlflowClient

    name = f"t{time.time_ns()}"
    server.run("createdb", "-h", str(server.folder), "-U", "tester", name)
    process = start(tmp_path, OPTUNA_STORAGE=server.url(name))
    deadline = time.time() + 180
    while len(list((tmp_path / "toy" / "cells").glob("*.json"))) < 3:
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.1)
    server.stop()
    printed = process.communicate(timeout=180)[0]
    server.start()
    assert process.returncode == 3 and "halted: the search storage" in printed and "Traceback" not in printed, printed
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    assert "RUNNING" not in {run.info.status for run in client.search_runs([experiment.experiment_id])}
    process = start(tmp_path, OPTUNA_STORAGE=server.url(name))
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 0, printed
    memory = Memory(server.url(name))
    found = {said["arm"]: memory.load(study).get_trials() for study, said in memory.studies().items() if "arm" in said}
    memory.close()
    assert {arm: len(trials) for arm, trials in found.items()} == {"plain": 4, "fancy": 4}
    assert {trial.state for trials in found.values() for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


# ---------------------------------------------------------------- the dashboard


@pytest.mark.parametrize("where, named, opened", [
    ("results/optuna.db", "", "sqlite:///results/optuna.db"),
    ("results/optuna.journal", "", "results/optuna.journal"),                       # a cluster's
    ("mine.db", "mine.db", "sqlite:///mine.db"),                                    # as --storage takes it
    ("mine.journal", "mine.journal", "mine.journal"),
    ("results/optuna.db", "postgresql://who@host/name", "postgresql://who@host/name")])
def test_make_search_opens_what_searches_are_remembered_in(tmp_path, where, named, opened):
    """The recipe with a dashboard that says what it is asked for; the real one takes that for a storage."""
    bin = tmp_path / ".venv" / "bin"
    for folder in (bin, (tmp_path / where).parent):
        folder.mkdir(parents=True, exist_ok=True)
    for name, script in ("python", ""), ("optuna-dashboard", 'for word; do :; done; echo "$word"'):
        (bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin / name).chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (tmp_path / name).touch()
    desk = Desk(tmp_path, str(tmp_path / where) if where.endswith(".journal") else f"sqlite:///{tmp_path / where}")
    name = desk.search().name
    desk.opened[0].close()
    environment = {key: value for key, value in os.environ.items() if key != "OPTUNA_STORAGE"}
    printed = subprocess.run(["make", "-s", "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), "search"], check=True,
                             capture_output=True, text=True,
                             env=environment | ({"OPTUNA_STORAGE": named} if named else {})).stdout.split()
    assert printed[-1] == opened
    storages = pytest.importorskip("optuna_dashboard._storage_url", reason="needs optuna-dashboard")
    if "postgres" not in opened:
        with contextlib.chdir(tmp_path):
            assert [study.study_name for study in storages.get_storage(opened).get_all_studies()] == [name]


def test_optuna_dashboard_opens_a_search(file):
    """Its own server, in this process: trials and states, curves, importances, and what is not a number's fault."""
    dashboard = pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard (make search installs it)")

    ends = {2: "pruned", 3: "diverged"}
    one = file.search(trials=8, sampler=QuasiRandom(), prune=Halving(Minimise("valid/loss"), first=1))
    for number in range(8):
        cell = one.ask()
        assert isinstance(cell, Cell)
        one.report(cell.key, 1, {"valid/loss": float(number)})
        one.tell(cell.key, record(cell, ends.get(number, "done")))
    app = dashboard.wsgi(file.url)

    def get(path: str) -> dict:
        environment: dict = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "wsgi.input": io.BytesIO()}
        setup_testing_defaults(environment)
        answers: list[str] = []
        body = b"".join(app(environment, lambda status, headers, *rest: answers.append(status)))
        assert answers == ["200 OK"], body
        return json.loads(body)

    (study,) = get("/api/studies")["study_summaries"]
    assert study["study_name"] == one.name and {"key": "arm", "value": "plain"} in study["user_attrs"]
    shown = get(f"/api/studies/{study['study_id']}")
    assert [trial["state"] for trial in shown["trials"]] == [
        {"pruned": "Pruned", "diverged": "Fail"}.get(ends.get(number, ""), "Complete") for number in range(8)]
    assert shown["best_trials"][0]["number"] == chosen(one)[0].number
    assert {param["name"] for param in shown["union_search_space"]} == set(one.known)
    assert shown["has_intermediate_values"]
    reasons = [attr["value"] for attr in shown["trials"][3]["user_attrs"] if attr["key"] == "reason"]
    assert reasons == ['"so it went"'] or reasons == ["so it went"]
    assert get(f"/api/studies/{study['study_id']}/param_importances")["param_importances"]
