"""Searches: what is asked of Optuna and told to it, by whom, who is stopped early; on every storage, and on Ray."""

import importlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from fake_trial import Linear, Square, Trial, recipe
from optuna.trial import TrialState

from search_spaces.domains import Choice, Integers, LogUniform, Space, Uniform, With
from studies import tune
from studies.engine import explore, search_page
from studies.engine.findings import Findings
from studies.engine.found import chosen, complete, doubts, importances, spread, table
from studies.engine.ledger import Ledger
from studies.engine.mirror import mirror
from studies.engine.plan import Cell, cell_key, make_plan
from studies.engine.pruning import Halving, Median, dominates, fronts
from studies.engine.samplers import Sobol
from studies.engine.search import DONE, WAIT, Search
from studies.engine.storage import Memory, storage_url
from studies.engine.study import Arm, BadInput, Maximise, Minimise, Resources, Scale, Study
from studies.engine.tuning import GaussianProcess, Nsga2, QuasiRandom, Tpe, Tune, nuisance
from trainables.config import ConfigError, override
from trainables.stages import Store

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]

ROOT = Path(__file__).resolve().parents[1]
SPACE = Space({
    "system.shape": Choice(With(Linear(), {"gain": LogUniform(0.1, 10.0)}), Square()),
    "training.steps": Integers(5, 20),
})


def error(trial: Any) -> float:
    """What the tests' searches minimise: least at gain 1, and 8 steps."""
    return abs(math.log(trial.system.shape.gain)) + abs(trial.training.steps - 8) / 10


def record(cell: Cell, status: str = "done", metrics: dict[str, float] | None = None) -> dict[str, Any]:
    return {"key": cell.key, "status": status, "reason": "" if status == "done" else "so it went", "seconds": 2.0,
            "cpu_hours": 0.5, "gpu_hours": 0.0, "metrics": metrics or {"valid/error": error(cell.trial)}}


class Desk:
    """Searches of one arm on one storage, and what they find there."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url
        self.opened: list[Memory] = []

    def search(self, base: Any = Trial(), owner: str | None = None, arm: str = "plain", **changes: Any) -> Search:
        settings: dict[str, Any] = dict(space=SPACE, select=(Minimise("valid/error"),), trials=12,
                                        sampler=Tpe(startup=4))
        task = Tune(**settings | changes).around(base)
        self.opened.append(Memory(self.url))
        one = Search("toy", "laptop", arm, task, self.opened[-1], Ledger(self.folder), owner)
        one.open()
        return one


def go(one: Search, outcome: Callable[[Cell], dict] = record, most: int = 1000) -> list[Cell]:
    """Ask and tell until the budget is spent, one at a time."""
    cells = []
    while len(cells) < most and isinstance(cell := one.ask(), Cell):
        cells.append(cell)
        one.tell(cell.key, outcome(cell))
    return cells


def states(one: Search) -> list[str]:
    return [trial.state.name for trial in one.trials()]


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def desk(request, tmp_path) -> Iterator[Desk]:
    urls = {"sqlite": f"sqlite:///{tmp_path}/o.db", "journal": str(tmp_path / "o.journal"),
            "postgresql": os.environ.get("TEST_POSTGRESQL")}
    url = urls[request.param]
    if url is None:
        pytest.skip("TEST_POSTGRESQL names no database for tests (postgresql+psycopg://...)")
    found = Desk(tmp_path, url)
    if request.param == "postgresql":
        found.opened.append(Memory(url))
        for name in found.opened[0].studies():
            optuna.delete_study(study_name=name, storage=found.opened[0].storage)
    yield found
    for memory in found.opened:
        memory.close()


@pytest.fixture
def file(tmp_path) -> Desk:
    return Desk(tmp_path, str(tmp_path / "o.journal"))


# ---------------------------------------------------------------- one driver


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


def test_the_arm_as_it_is_comes_first(file):
    base = override(Trial(), {"system.shape": Linear(gain=3.0), "training.steps": 7})
    one = file.search(base)
    first = go(one, most=1)[0]
    assert first.trial == override(base, {"seed": 1_000})
    assert one.trials()[0].params == {"system.shape": "Linear", "system.shape[Linear].gain": 3.0, "training.steps": 7}


def test_a_larger_budget_continues(desk):
    go(desk.search(trials=5))
    first = [trial.params for trial in desk.search(trials=5).trials()]
    again = desk.search(trials=9)
    assert len(go(again)) == 4 and [trial.params for trial in again.trials()][:5] == first
    assert len(again.trials()) == 9 and again.ask() == DONE


def test_interrupted_and_continued_is_as_if_nothing_had_happened(tmp_path):
    """Each draw is seeded by its number, so a restart neither repeats points nor changes those to come."""
    whole = Desk(tmp_path / "a", str(tmp_path / "a.journal")).search(trials=14)
    go(whole)
    parts = Desk(tmp_path / "b", str(tmp_path / "b.journal"))
    for _ in range(14):
        go(parts.search(trials=14), most=1)
    assert [t.params for t in parts.search(trials=14).trials()] == [t.params for t in whole.trials()]
    other = Desk(tmp_path / "c", str(tmp_path / "c.journal")).search(trials=14, seed=7)
    go(other)
    assert [t.params for t in other.trials()][1:] != [t.params for t in whole.trials()][1:]


@pytest.mark.parametrize("sampler", [QuasiRandom(), Tpe(startup=4), GaussianProcess(startup=4), Nsga2(population=4)],
                         ids=repr)
def test_every_sampler_draws_valid_points_of_a_conditional_space(file, sampler):
    one = file.search(sampler=sampler, trials=14)
    cells = go(one)
    assert len(one.trials()) == 14 and len({cell.key for cell in cells}) > 10
    shapes = {type(cell.trial.system.shape).__name__ for cell in cells}
    assert shapes == {"Linear", "Square"}


@pytest.mark.parametrize("sampler", [Tpe(startup=4), GaussianProcess(startup=4), Nsga2(population=4)], ids=repr)
def test_several_goals_have_a_front(file, sampler):
    def outcome(cell: Cell) -> dict:
        gain = cell.trial.system.shape.gain
        return record(cell, metrics={"valid/error": abs(math.log(gain)), "valid/quality": -abs(math.log(gain / 5))})

    goals = (Minimise("valid/error"), Maximise("valid/quality"))
    one = file.search(select=goals, sampler=sampler, trials=16, prune=Halving(*goals, first=2))
    go(one, outcome)
    best = chosen(one)
    assert 1 < len(best) <= 4
    done = [tuple(value * sign for value, sign in zip(t.values, (1, -1), strict=True)) for t in complete(one)]
    for trial in best:
        mine = trial.values[0], -trial.values[1]
        assert not any(dominates(other, mine) for other in done)
    assert best[0].values[0] == min(t.values[0] for t in complete(one))
    assert best[1].values[1] == max(t.values[1] for t in complete(one))
    assert set(importances(one)) <= {"valid/error", "valid/quality"}


def test_cost_is_a_goal_that_the_ledger_knows(file):
    one = file.search(select=(Minimise("valid/error"), Minimise("cost/cpu_hours")), trials=2)
    go(one)
    assert [trial.values[1] for trial in complete(one)] == [0.5, 0.5]


def test_a_result_without_the_metric_is_no_result(file):
    one = file.search(trials=2)
    go(one, lambda cell: record(cell, metrics={"valid/other": 1.0}))
    assert states(one) == ["FAIL", "FAIL"] and chosen(one) == []
    assert table(one)[0]["reason"] == "no valid/error (there are: " \
        "cost/cpu_hours, cost/gpu_hours, cost/seconds, valid/other)"
    assert one.ask() == DONE                                        # and it is not tried again and again


def test_what_the_ledger_knows_is_told_and_not_run(file):
    first = file.search(trials=6, sampler=QuasiRandom())
    cells = go(first)
    for cell in cells:
        first.ledger.write_cell(record(cell))
    other = Desk(file.folder, str(file.folder / "other.journal")).search(trials=6, sampler=QuasiRandom())
    assert go(other) == [] and other.ask() == DONE
    assert [t.value for t in complete(other)] == [t.value for t in complete(first)]


def test_a_point_that_comes_twice_runs_once(file):
    one = file.search(space=Space({"system.shape": Choice(Linear(), Square())}), trials=10)
    cells = go(one)
    assert len(cells) == 2 and states(one) == ["COMPLETE"] * 10
    both = file.search(space=Space({"system.kind": Choice("plain", "fancy")}), trials=10, sampler=QuasiRandom())
    running: dict[str, Cell] = {}
    while isinstance(cell := both.ask(), Cell):                     # all at once: a point waits for its twin
        running[cell.key] = cell
    assert cell == WAIT and len(running) == 2
    for key, cell in running.items():
        both.tell(key, record(cell, metrics={"valid/error": 1.0 if cell.trial.system.kind == "plain" else 2.0}))
    assert both.ask() == DONE and states(both) == ["COMPLETE"] * 10


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


# ---------------------------------------------------------------- several drivers


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


def test_a_torn_journal_is_mended(file):
    go(file.search(trials=3))
    with open(file.url, "ab") as journal:
        journal.write(b'{"op_code": 5, "worker_i')
    again = file.search(trials=5)
    assert len(go(again)) == 2 and states(again) == ["COMPLETE"] * 5


# ---------------------------------------------------------------- what makes values comparable


def test_another_trial_has_another_search_and_another_sampler_has_not(file):
    name = file.search().name
    assert file.search(override(Trial(), {"samples_drawn": 9})).name != name
    assert file.search(select=(Maximise("valid/error"),)).name != name
    assert file.search(space=SPACE.without("training.steps")).name != name
    assert file.search(sampler=QuasiRandom(), trials=99, prune=Median(Minimise("valid/loss"))).name == name
    again = Space({"system.shape": Choice(With(Linear(), {"gain": LogUniform(0.1, 10.0)}), Square(gain=7.0)),
                   "training.steps": Integers(5, 20)})
    assert file.search(space=again).name != name                    # an option's component changed behind its name


def test_a_changed_space_begins_with_what_lies_inside_it(file):
    one = file.search(trials=10)
    go(one)
    wider = SPACE | {"training.steps": Integers(8, 40)}
    two = file.search(space=wider, trials=6)
    inherited = [trial for trial in two.trials() if "inherited" in trial.user_attrs]
    inside = [trial for trial in complete(one) if trial.params["training.steps"] >= 8]
    assert sorted(t.values for t in inherited) == sorted(t.values for t in inside) and 0 < len(inside) < 10
    assert len(go(two)) == 5 and two.ask() == DONE                  # the arm as it is was known; the others are free
    assert len([t for t in two.trials() if "inherited" not in t.user_attrs]) == 6


# ---------------------------------------------------------------- stopping early


def curve(values: list[float]) -> dict[int, tuple[float, ...]]:
    return {step: (value,) for step, value in enumerate(values, start=1)}


def frozen(number: int, values: list[float], state: TrialState = TrialState.COMPLETE) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=state, value=values[-1] if state == TrialState.COMPLETE else None,
        intermediate_values=dict(enumerate(values, start=1)))


def test_median_stops_whom_optuna_s_median_stops():
    rng = np.random.default_rng(0)
    agreed = set()
    for _ in range(200):
        past = [list(rng.normal(size=8)) for _ in range(rng.integers(1, 9))]
        mine = list(rng.normal(0.4, size=rng.integers(1, 9)))
        study = optuna.create_study()
        study.add_trials([frozen(i, values) for i, values in enumerate(past)])
        asked = study.ask()
        for step, value in enumerate(mine, start=1):
            asked.report(value, step)
        theirs = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2).prune(study, study.trials[-1])
        ours = bool(Median(Minimise("m"), startup=3, after=1).verdict(curve(mine), [curve(p) for p in past], []))
        assert ours == theirs, (past, mine)                        # their warm-up counts from 0
        agreed.add(ours)
    assert agreed == {True, False}


def test_halving_stops_whom_optuna_s_halving_stops():
    """One after the other, each until it is stopped; Optuna's rungs at 1, 2, 4, 8 are ours."""
    rng = np.random.default_rng(1)
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2))
    ours, curves, lengths = Halving(Minimise("m"), first=1, factor=2), [], []
    for _ in range(60):
        asked, mine, stopped = study.ask(), {}, False
        for step, value in enumerate(rng.normal(size=16), start=1):
            asked.report(value, step)
            mine[step] = (value,)
            stopped = bool(ours.verdict(mine, [], curves))
            assert stopped == asked.should_prune()
            if stopped:
                break
        study.tell(asked, state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                   values=None if stopped else mine[16][0])
        curves.append(mine)
        lengths.append(len(mine))
    assert len(set(lengths)) == 5 and lengths.count(16) < 30       # every rung stops somebody


def test_fronts_are_those_of_the_definition():
    rng = np.random.default_rng(2)
    for dimension in (1, 2, 3):
        points = [tuple(p) for p in rng.integers(0, 6, size=(40, dimension)).tolist()]
        found = fronts(points)
        for point, front in zip(points, found, strict=True):
            above = {f for other, f in zip(points, found, strict=True) if dominates(other, point)}
            assert above == set(range(front))                       # each front before it has one who dominates it
    assert fronts([(math.nan, 0.0), (1.0, 1.0)]) == [1, 0]


def test_halving_by_non_domination_never_stops_whom_nobody_dominates():
    rng = np.random.default_rng(3)
    rule = Halving(Minimise("a"), Maximise("b"), first=10, factor=3)
    stopped = 0
    for _ in range(300):
        others = [{10: tuple(p)} for p in rng.normal(size=(rng.integers(0, 12), 2)).tolist()]
        mine = tuple(rng.normal(size=2).tolist())
        said = rule.verdict({5: (0.0, 0.0), 10: mine}, [], others)
        better = [c[10] for c in others if dominates(c[10], mine)]
        if not better:
            assert not said
        stopped += bool(said)
    assert 50 < stopped < 250
    alone = Halving(Minimise("a"), first=10, factor=3)
    assert not alone.verdict({10: (2.0,)}, [], [])
    assert alone.verdict({10: (2.0,)}, [], [{10: (1.0,)}, {10: (0.5,)}]) == \
        "2 of 3 were better at step 10, where 1 go on"
    assert not alone.verdict({9: (2.0,)}, [], [{10: (1.0,)}] * 9)   # not there yet
    assert not alone.verdict({10: (2.0,), 20: (2.0,)}, [], [{10: (1.0,)}] * 9)      # came there first: nobody is late
    assert alone.verdict({12: (2.0,)}, [], [{10: (1.0,)}] * 9)      # the first look at or after the rung
    assert alone.verdict({10: (2.0,), 20: (2.0,), 30: (2.0,)}, [], [{30: (1.0,)}])


def test_curves_reach_the_pruner_and_the_storage(file):
    one = file.search(trials=9, prune=Halving(Maximise("valid/gain"), first=4, factor=2), sampler=QuasiRandom())
    first, second = one.ask(), one.ask()
    assert isinstance(first, Cell) and isinstance(second, Cell)
    assert one.report(first.key, 4, {"valid/gain": 0.9, "train/loss": 1.0}) == ""
    assert one.report(first.key, 5, {"train/loss": 1.0}) == ""
    assert one.report(second.key, 2, {"valid/gain": 0.1}) == ""     # below the first rung
    reason = one.report(second.key, 4, {"valid/gain": 0.1})
    assert "better at step 4" in reason
    one.tell(second.key, record(second, "pruned"))
    one.tell(first.key, record(first))
    trials = one.trials()
    assert trials[1].state == TrialState.PRUNED and trials[0].state == TrialState.COMPLETE
    # Optuna ranks pruned trials in the objective's direction, in which less is better here
    assert trials[0].intermediate_values == {4: -0.9} and trials[1].intermediate_values == {2: -0.1, 4: -0.1}
    assert one.study.user_attrs["pruned on"] == "-valid/gain"
    heir = file.search(trials=9, prune=Halving(Maximise("valid/gain"), first=4, factor=2))
    third = heir.ask()
    assert isinstance(third, Cell) and "1 of 3" not in heir.report(third.key, 4, {"valid/gain": 0.95})
    assert table(heir)[1]["curve"] == {2: [-0.1], 4: [-0.1]}


def test_losses_are_not_compared_where_they_mean_something_else():
    tune = Tune(space=SPACE, select=(Minimise("valid/error"),), prune=Halving(Minimise("valid/loss"), first=2),
                loss_depends_on=("system.shape",))
    with pytest.raises(ConfigError, match="system.shape: varies, and valid/loss is another quantity"):
        tune.around(Trial())
    Tune(space=SPACE.without("system.shape"), select=(Minimise("valid/error"),), loss_depends_on=("system.shape",),
         prune=Halving(Minimise("valid/loss"), first=2)).around(Trial())


def test_what_is_reported_may_not_choose():
    for wrong in ({"select": (Minimise("test/error"),)}, {"select": ()}, {"trials": 0}, {"keep": 0}):
        with pytest.raises(ValueError):
            Tune(**{"space": SPACE, "select": (Minimise("valid/error"),), "trials": 3} | wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- samplers, storages, choices


def test_quasi_random_points_fill_the_space_more_evenly_than_random_ones():
    from scipy.stats import qmc
    space = Space({f"p{i}": Uniform(0.0, 1.0) for i in range(3)})
    sobol = Sobol(space, 0)
    points = np.array([sobol.point(n) for n in range(64)])
    rng = np.random.default_rng(0)
    chance = [qmc.discrepancy(rng.random((64, 3))) for _ in range(20)]
    assert qmc.discrepancy(points) < min(chance)
    assert not np.allclose(points[0], 0)                            # scrambled: it does not start in a corner
    assert not np.allclose(points, np.array([Sobol(space, 1).point(n) for n in range(64)]))


def test_the_ends_of_a_front_come_first_then_what_is_far():
    points = [(0.0, 10.0), (1.0, 9.0), (5.0, 5.0), (9.0, 1.0), (10.0, 0.0)]
    assert spread(points, list(range(5)))[:3] == [0, 4, 2]
    assert spread([], []) == [] and spread([(1.0, 2.0)], [7]) == [7]


def test_where_searches_are_remembered(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    assert storage_url(tmp_path) == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url(tmp_path, several_hosts=True) == str(tmp_path / "optuna.journal")
    (tmp_path / "optuna.db").touch()
    assert storage_url(tmp_path, several_hosts=True).endswith("optuna.db")      # what is there is continued
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://who:secret@localhost:1/x")
    assert storage_url(tmp_path).startswith("postgresql://")
    with pytest.raises(BadInput) as problem:
        Memory(storage_url(tmp_path))
    assert "secret" not in str(problem.value) and "localhost:1" in str(problem.value)


def test_boundaries_are_warned_of(file):
    one = file.search(trials=20, select=(Minimise("valid/error"),))
    go(one, lambda cell: record(cell, metrics={"valid/error": cell.trial.system.shape.gain}))
    assert "lies at the lower end of its range 0.1 .. 10" in doubts(one, chosen(one)[0].params)[0]
    space = Space({"system.shape.gain": Uniform(1e-4, 1.0), "samples_drawn": Integers(0, 99)})
    ended = file.search(space=space, trials=1)
    params = {"system.shape.gain": 0.01, "samples_drawn": 0}        # a gain of -.05 is refused, -1 samples are not
    assert [words.partition(" =")[0] for words in doubts(ended, params)] == ["samples_drawn"]
    inner = file.search(override(Trial(), {"samples_drawn": 9}), trials=12)
    go(inner)
    best = chosen(inner)[0]
    assert len(doubts(inner, best.params)) == len(SPACE.edges(best.params))


# ---------------------------------------------------------------- what is shown


def test_a_page_about_a_search(file):
    def outcome(cell: Cell) -> dict:
        if cell.point in (2, 5):
            return record(cell, "diverged" if cell.point == 2 else "pruned")
        return record(cell, metrics={"valid/error": error(cell.trial), "valid/quality": cell.trial.system.shape.gain})

    one = file.search(select=(Minimise("valid/error"), Maximise("valid/quality")), trials=14, arm="<plain> & simple",
                      prune=Halving(Minimise("valid/loss"), first=2))
    for _ in range(14):
        cell = one.ask()
        assert isinstance(cell, Cell)
        for step in (1, 2, 4):
            one.report(cell.key, step, {"valid/loss": cell.trial.system.shape.gain / step})
        one.tell(cell.key, outcome(cell))
    explore.write({one.arm: one}, file.folder)
    parts = {part.title: part.html for part in search_page.sections(file.folder)}
    assert list(parts) == ["Search", "Front", "Slices", "Parallel coordinates", "Importances", "Curves of the search",
                           "Points"] and all(parts.values())
    page = "".join(parts.values())
    assert "<plain>" not in page and "&lt;plain&gt; &amp; simple" in page
    assert page.count("12 done") == 1 and "1 diverged" in page and "so it went" in page
    for name in ("system.shape", "system.shape[Linear].gain", "training.steps"):
        assert f"<figcaption>{name}</figcaption>" in parts["Slices"]
    assert parts["Slices"].count("<circle") == 2 * 12 + sum("system.shape[Linear].gain" in t.params
                                                           for t in complete(one))
    from xml.etree import ElementTree
    for html in parts.values():                                     # well formed, so no browser has to guess
        ElementTree.fromstring(f"<div>{html}</div>".replace("<br>", "<br/>"))
    assert search_page.sections(file.folder / "nowhere") == []


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


# ---------------------------------------------------------------- studies/tune.py, and --tune of any study


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("[ac]*_*.py")), ids=lambda path: path.stem)
def test_every_study_can_search_its_nuisances(path):
    """Each arm around its own optimizer, on the validation counterpart of what the study decides by."""
    study = importlib.import_module(f"studies.{path.stem}").study
    if path.stem == "ablation_optimizer":                 # it compares what would be searched
        with pytest.raises(ConfigError, match="lr: is searched, and training.optimizer.lr is set"):
            study.searching(nuisance(study.report, 7))
        return
    found = study.searching(nuisance(study.report, 7))
    for arm in found.arms:
        trial = found.trial("laptop", arm)
        task = found.searched("laptop", arm, trial)
        assert task.select == (Minimise("valid/illegal"),)         # all of them name it first of what evaluation gives
        assert task.prune is None or task.prune.metrics == (Minimise("valid/loss"),)
        assert task.tune.trials == 7 and task.space.point(trial)["training.optimizer.lr"] == trial.training.optimizer.lr
        assert found.found({}).arms.keys() == study.arms.keys()


@pytest.mark.parametrize("system", list(tune.System))
def test_every_system_can_be_tuned(system):
    """Goals and pruners follow from the recipe: what its data can be judged by, what its space leaves comparable."""
    found = tune.study_of(system, tune.Which.nuisance, ("quality", "diversity", "cost"), tune.How.nsga2, 5,
                          tune.Stop.halving, (), 3)
    tasks = {scale: found.searched(scale, system, found.trial(scale, system)) for scale in found.scales}
    assert tasks["laptop"].select == (Minimise("valid/illegal"), Maximise("valid/diversity"), Minimise("cost/seconds"))
    assert tasks["paper"].select[0] in (Maximise("valid/mauve"), Minimise("valid/judge_nll"))
    metric = Maximise("valid/context_gain") if system == "tencdm" else Minimise("valid/loss")
    assert tasks["laptop"].prune is not None and tasks["laptop"].prune.metrics == (metric,)
    assert tasks["paper"].prune is not None and tasks["paper"].prune.metrics == (Minimise("valid/loss"),)
    assert found.name == f"tune_{system}_nuisance" and tasks["laptop"].base.seed == 3


def test_losses_stop_nobody_where_the_space_moves_the_task():
    found = tune.study_of(tune.System.scorelm, tune.Which.space, ("quality",), tune.How.tpe, 5, tune.Stop.median,
                          (), 3)
    assert found.searched("laptop", "scorelm", found.trial("laptop", "scorelm")).prune is None
    trial = found.trial("laptop", "scorelm")
    asked = tune.Stopping(tune.Stop.median, (Minimise("valid/loss"),), (), lambda trial: SPACE)
    assert asked(trial) == Median(Minimise("valid/loss"), after=500)
    several = tune.parse_curves("min:valid/loss,max:valid/context_gain", tune.Stop.halving)
    rule = tune.Stopping(tune.Stop.halving, several, (), lambda trial: SPACE)(trial)
    assert rule is not None and rule.metrics == (Minimise("valid/loss"), Maximise("valid/context_gain"))


@pytest.mark.parametrize("arguments, words", [
    (["tencdm", "--goals", "speed"], "none of quality, diversity, cost"),
    (["ld4lg", "--space", "joint"], "the joint space is over tencdm"),
    (["tencdm", "--space", "joint", "--prune-on", "min:valid/loss"], "system.encoder: varies, and valid/loss is"),
    (["tencdm", "--goals", "min:test/illegal"], "what is reported may not choose"),
    (["tencdm", "--prune-on", "quality"], "neither min:METRIC nor max:METRIC"),
    (["tencdm", "--prune", "median", "--prune-on", "min:valid/loss,min:train/loss"], "the median is of one metric"),
    (["tencdm", "--tune", "5"], "is a search already; --trials sets its points"),
    (["gpt"], "'gpt' is not one of"),
])
def test_what_cannot_be_searched_is_said_in_a_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        tune.command([*arguments, "--dry-run"])
    assert ended.value.code == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in printed and "Traceback" not in printed


# ---------------------------------------------------------------- on Ray


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


def test_a_report_and_a_dry_run_of_a_search_start_nothing(searched, tmp_path, capsys):
    out, outcome = searched
    assert command(study(), tmp_path, "--dry-run")[0] == 0
    printed = capsys.readouterr().out
    assert "4 points an arm" in printed and "system.shape.gain: 0.1 .. 10 (log)" in printed and "4 to go" in printed
    assert not list(tmp_path.glob("*.db"))
    code, again = command(study(), out, "--set", "training.pause=0.05", "--report")
    assert code == 0 and [arm["name"] for arm in again["arms"]] == ["plain", "fancy"]
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
from test_search import TUNE, study
from studies.engine.main import main
main(study())
"""


def start(out: Path) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("RAY_", "MLFLOW_", "OPTUNA_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen([sys.executable, "-c", PROGRAM, "--out", str(out), "--json", str(out / "outcome.json"),
                             "--set", "training.pause=0.1"], env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def test_a_killed_search_continues_and_repeats_nothing(tmp_path):
    process = start(tmp_path)
    deadline = time.time() + 120
    while len(list((tmp_path / "toy" / "cells").glob("*.json"))) < 3:
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "toy" / "cells").glob("*.json")
             if json.loads(path.read_text())["status"] == "done"}
    before = {arm: [trial.params for trial in trials] for arm, trials in remembered(tmp_path).items()}

    process = start(tmp_path)
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == 0, printed
    for arm, trials in remembered(tmp_path).items():
        assert len(trials) == 4 and {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
        known = before[arm]
        assert [trial.params for trial in trials][:len(known)] == known           # what was at work was taken over
    for name, changed in ended.items():
        assert (tmp_path / "toy" / "cells" / name).stat().st_mtime_ns == changed    # and what was done was not run
