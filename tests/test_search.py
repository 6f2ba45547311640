"""Searches: what is asked of Optuna and told to it, by whom, who is stopped early; on every storage, and on Ray."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from fake_trial import Linear, Square, Table, Trial, recipe
from optuna.trial import TrialState

from search_spaces.domains import Choice, Integers, LogUniform, Space, Uniform, With
from studies import tune
from studies.engine import search_page, search_report
from studies.engine.bound import Bound
from studies.engine.budget import Budget
from studies.engine.cluster import Cluster
from studies.engine.found import chosen, complete, doubts, importances, spread, table
from studies.engine.ledger import Ledger
from studies.engine.plan import Cell, cell_key
from studies.engine.provenance import Code
from studies.engine.pruning import Halving, Median, dominates, fronts
from studies.engine.samplers import Sobol
from studies.engine.search import DONE, IN_A_ROW, WAIT, Search
from studies.engine.storage import Memory, storage_url
from studies.engine.study import Arm, BadInput, Maximise, Minimise, Resources, Scale, Study
from studies.engine.tuning import GaussianProcess, Nsga2, QuasiRandom, Tpe, Tune, nuisance
from trainables.config import ConfigError, override
from trainables.evaluation.variety import Variety
from trainables.tencdm import tencdm_laptop

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


@pytest.fixture
def file(tmp_path) -> Desk:
    return Desk(tmp_path, str(tmp_path / "o.journal"))


# ---------------------------------------------------------------- one driver


def test_the_arm_as_it_is_comes_first(file):
    base = override(Trial(), {"system.shape": Linear(gain=3.0), "training.steps": 7})
    one = file.search(base)
    first = go(one, most=1)[0]
    assert first.trial == override(base, {"seed": 1_000})
    assert one.trials()[0].params == {"system.shape": "Linear", "system.shape[Linear].gain": 3.0, "training.steps": 7}


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


def test_a_point_costs_the_same_whatever_was_made_before_it(file):
    """The first pays for what all share, one waits for it, one finds its own made; --hours counts what was spent."""
    def outcome(cell: Cell) -> dict:
        spent = (20.0, 9.0, 0.5, 4.0)[cell.point or 0]
        said = record(cell) | {"seconds": spent, "cpu_hours": spent, "gpu_hours": 0.0}
        return said | ({"own_seconds": 4.0} if cell.point != 3 else {})         # the last is of before it was recorded

    goals = (Minimise("valid/error"), Minimise("cost/seconds"), Minimise("cost/cpu_hours"))
    one = file.search(select=goals, trials=4, sampler=QuasiRandom())
    cells = go(one, outcome)
    assert [trial.values[1:] for trial in complete(one)] == [[4.0, 4.0]] * 4
    costs = one.costs("cpu_hours")
    assert [costs[cell.key] for cell in cells] == [("done", spent) for spent in (20.0, 9.0, 0.5, 4.0)]
    known = file.search(select=goals, trials=8)._known(cells[0])    # of the storage, whose ledgers may differ
    assert known is not None and known["own_seconds"] == 4.0 and known["seconds"] == 20.0


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


# ---------------------------------------------------------------- several drivers


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


def test_nobody_is_stopped_near_the_end():
    metric = Minimise("a")
    rungs = {steps: [step for step in range(1, 2000) if rule.rung(step) > rule.rung(step - 1)]
             for steps in (None, 5_000, 1_700, 1_200)
             for rule in [Halving(metric, first=500, steps=steps)]}
    assert rungs == {None: [500, 1500], 5_000: [500, 1500], 1_700: [500], 1_200: [500]}     # the first always counts
    better = [{500: (1.0,), 1500: (1.0,)}] * 9
    assert Halving(metric, first=500).verdict({500: (0.5,), 1500: (2.0,)}, [], better)
    assert not Halving(metric, first=500, steps=1_700).verdict({500: (0.5,), 1500: (2.0,)}, [], better)
    assert Halving(metric, first=500, steps=1_700).verdict({500: (2.0,)}, [], better)
    for pruned in (tune.study_of(tune.System.tencdm, tune.Which.space, ("quality",), tune.How.tpe, 30,
                                 tune.Stop.halving, (), 1_000).tune,
                   nuisance((Minimise("test/illegal"),), trials=12)):
        assert pruned is not None
        rule = pruned.around(tencdm_laptop()).prune
        assert isinstance(rule, Halving) and rule.steps == tencdm_laptop().training.steps


@pytest.mark.parametrize("sampler", [Tpe(startup=4), GaussianProcess(startup=4)], ids=repr)
def test_points_that_were_stopped_early_are_learnt_from(file, sampler):
    """Nine in ten may end pruned: a sampler that waits for finished ones would draw quasi-random points for ever."""
    def outcome(cell: Cell) -> dict:
        assert isinstance(cell.point, int)
        one.report(cell.key, 2, {"valid/loss": error(cell.trial)})
        return record(cell, "done" if cell.point < 2 else "pruned")

    one = file.search(sampler=sampler, trials=12, prune=Halving(Minimise("valid/loss"), first=2))
    go(one, outcome)
    assert states(one).count("COMPLETE") == 2 and states(one).count("PRUNED") == 10
    sobol = Sobol(one.space, one.tune.seed)
    quasi = [trial.params == {name: _at(sobol, name, trial.number) for name in trial.params} for trial in one.trials()]
    assert quasi[:4] == [False, True, True, True]                   # the arm as it is, then quasi-random points,
    assert sum(quasi[4:]) <= 1                                      # then drawn ones; of 32 points one may be both


@pytest.mark.parametrize("sampler", [Tpe(startup=2), GaussianProcess(startup=2)], ids=repr)
def test_a_sampler_explores_until_somebody_has_finished(file, sampler):
    one = file.search(sampler=sampler, trials=8, prune=Halving(Minimise("valid/loss"), first=2))
    go(one, lambda cell: record(cell, "pruned"))
    sobol = Sobol(one.space, one.tune.seed)
    assert [trial.params["training.steps"] for trial in one.trials()][1:] == \
        [_at(sobol, "training.steps", number) for number in range(1, 8)]


def _at(sobol: Sobol, name: str, number: int) -> Any:
    place, domain = sobol.parameters[name]
    return domain.at(float(sobol.point(number)[place]))


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
    search_report.write(search_report.told({one.arm: one}), file.folder)
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


def test_an_old_search_is_no_part_of_a_study_that_is_not_tuned(file):
    """--tune once, and later the study as it is: its arms are untuned, and so is its page."""
    one = file.search()
    go(one)
    (file.folder / "toy").mkdir()
    search_report.write(search_report.told({"plain": one}), file.folder / "toy")
    shown = {}
    for tuned in (True, False):
        assert command(study(tune=TUNE if tuned else None), file.folder, "--report")[0] == 0
        shown[tuned] = (file.folder / "toy" / "report.html").read_text()
    assert "Parallel coordinates" in shown[True] and "Parallel coordinates" not in shown[False]
    assert (file.folder / "toy" / "search.json").exists()           # nothing is lost: the same --tune shows it again


def test_search_json_is_read_by_every_program(file):
    """No NaN, no Infinity, which are no JSON: numbers that are none are null, and the page leaves them out."""
    def outcome(cell: Cell) -> dict:
        one.report(cell.key, 1, {"valid/loss": math.inf})
        one.report(cell.key, 2, {"valid/loss": math.nan if cell.point else 2.0})
        return record(cell, metrics={"valid/error": error(cell.trial), "valid/ratio": -math.inf})

    one = file.search(prune=Halving(Minimise("valid/loss"), first=5))
    go(one, outcome)
    search_report.write(search_report.told({"plain": one}), file.folder)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    said = json.loads((file.folder / "search.json").read_text(), parse_constant=refuse)
    assert said["plain"]["trials"][0]["curve"] == {"1": [None], "2": [2.0]}
    assert said["plain"]["trials"][1]["metrics"]["valid/ratio"] is None
    parts = {part.title: part.html for part in search_page.sections(file.folder)}
    assert "polyline" in parts["Curves of the search"] or "path" in parts["Curves of the search"]
    assert search_report.points(search_report.read(file.folder), {"plain": one.name})["plain"]


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
        first = Maximise("valid/bleu") if path.stem == "compare_conditional" else Minimise("valid/illegal")
        assert task.select == (first,)                             # what they name first of what evaluation gives
        assert task.prune is None or task.prune.metrics == (Minimise("valid/loss"),)
        assert task.tune.trials == 7 and task.space.point(trial)["training.optimizer.lr"] == trial.training.optimizer.lr
        assert found.found({}).arms.keys() == study.arms.keys()


@pytest.mark.parametrize("system", list(tune.System))
def test_every_system_can_be_tuned(system):
    """Goals and pruners follow from the recipe: what its data can be judged by, what its space leaves comparable."""
    found = tune.study_of(system, tune.Which.nuisance, ("quality", "diversity", "cost"), tune.How.nsga2, 5,
                          None, (), 3)
    tasks = {scale: found.searched(scale, system, found.trial(scale, system)) for scale in found.scales}
    assert tasks["laptop"].select == (Minimise("valid/illegal"), Maximise("valid/diversity"), Minimise("cost/seconds"))
    assert tasks["laptop"].prune is tasks["paper"].prune is None    # one curve knows nothing of the other goals
    asked = tune.study_of(system, tune.Which.nuisance, ("quality", "cost"), tune.How.nsga2, 5, None,
                          (Minimise("valid/loss"), Minimise("train/loss")), 3)
    by = asked.searched("laptop", system, asked.trial("laptop", system)).prune
    assert isinstance(by, Halving) and by.metrics == (Minimise("valid/loss"), Minimise("train/loss"))
    found = tune.study_of(system, tune.Which.nuisance, ("quality",), tune.How.tpe, 5, None, (), 3)
    tasks = {scale: found.searched(scale, system, found.trial(scale, system)) for scale in found.scales}
    assert tasks["paper"].select[0] in (Maximise("valid/mauve"), Minimise("valid/judge_nll"))
    metric = Maximise("valid/context_gain") if system == "tencdm" else Minimise("valid/loss")
    assert tasks["laptop"].prune is not None and tasks["laptop"].prune.metrics == (metric,)
    assert tasks["paper"].prune is not None and tasks["paper"].prune.metrics == (Minimise("valid/loss"),)
    assert found.name == f"tune_{system}_nuisance" and tasks["laptop"].base.seed == 3


@pytest.mark.parametrize("typed", [
    "", "--trials 30 --sampler tpe --prune-on max:valid/context_gain",
    "--space joint --goals quality,diversity,cost --sampler nsga2 --trials 60",
    "--space nuisance --prune median --search-seed 7", "--prune none --goals min:valid/illegal"])
def test_the_command_on_the_page_is_this_search(typed, monkeypatch):
    studies: list[Study] = []
    monkeypatch.setattr(tune, "main", lambda study, arguments: studies.append(study))
    for words in (["tencdm", *typed.split(), "--scale", "laptop"], None):
        with pytest.raises(SystemExit):
            tune.command(words or studies[0].program.split()[1:])
    asked, again = studies
    assert asked.name == again.name and asked.tune == again.tune and asked.program == again.program
    assert asked.program.split()[:2] == ["studies/tune.py", "tencdm"]
    assert set(asked.program.split()[2:]) <= set(typed.split())     # what is not typed is not said


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
    (["tencdm", "--prune", "none", "--prune-on", "min:valid/loss"], "--prune none stops nobody"),
    (["tencdm", "--tune", "5"], "is a search already; --trials sets its points"),
    (["gpt"], "'gpt' is not one of"),
    (["tencdm", "--goals", "min:valid/ilegal"], "valid/ilegal: is sought, and no score on validation texts (did you "
                                                "mean 'valid/illegal'?)"),
    (["tencdm", "--prune-on", "min:valid/losss"], "valid/losss: stops trials, and is nothing that training records by "
                                                  "step (did you mean 'valid/loss'?)"),
    (["tencdm", "--space", "nuisance", "--by-code"], "--by-code: a search is its storage's memory"),
])
def test_what_cannot_be_searched_is_said_in_a_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(SystemExit) as ended:
        tune.command([*arguments, "--dry-run", "--out", str(tmp_path), "--scale", "laptop"])
    assert ended.value.code == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in printed and "Traceback" not in printed


def test_a_recipe_without_a_measure_of_quality_is_refused():
    trial = override(tencdm_laptop(), {"evaluation.metrics": (Variety(),)})
    assert tune.Goals(("diversity",))(trial) == (Maximise("valid/diversity"),)
    with pytest.raises(ConfigError, match="evaluation.metrics: gives nothing that could be quality"):
        tune.Goals(("quality",))(trial)


# ---------------------------------------------------------------- when it ends


def test_a_search_of_failures_only_is_given_up(file):
    """After ten, one behind the other, in one command; whatever ends otherwise in between starts the count again."""
    def outcome(cell: Cell) -> dict:
        return record(cell, "diverged" if cell.point == 5 else "failed") | {
            "reason": "no such folder" if (cell.point or 0) % 3 else "out of memory"}

    space = Space({"system.shape.gain": LogUniform(0.1, 10.0)})
    one = file.search(space=space, trials=50, sampler=QuasiRandom())
    assert len(go(one, outcome, most=100)) == 6 + IN_A_ROW and one.ask() == DONE
    assert one.hopeless == "plain: 10 points in a row failed, 6 of them with: no such folder"
    again = file.search(space=space, trials=50, sampler=QuasiRandom())
    assert again.states()["waiting"] == 15 and not again.hopeless
    assert len(go(again, most=100)) == 49 and not again.hopeless                     # mended, they are tried again


def asking(file: Desk, one: Search, bound: Bound = Bound()) -> Any:
    from studies.engine.admission import Capacity  # and Ray with it, which PROGRAM below may not import yet
    from studies.engine.asking import Asking
    from studies.engine.inline import Place

    folder = file.folder / "toy"
    place = Place(study="toy", scale="laptop", data="Words", folder=folder, store=str(file.folder / "stages"),
                  resources=Resources(), code=Code("unknown", ""))
    return Asking([one], place, Capacity(Cluster("local", ((2.0, 0.0),)), Resources()), bound)


def suggested(searcher: Any, number: int) -> Cell:
    found = searcher.suggest(f"trial {number}")
    assert isinstance(found, dict)
    return found["made"]


def test_a_record_says_what_its_own_stages_took(tmp_path, monkeypatch):
    """Not the table, which all points share, though this cell happens to make it; the same where all is found made."""
    from studies.engine.inline import Place, attempt

    make = Table.make

    def slow(self: Table, out: Path, context: Any) -> None:
        time.sleep(0.5)
        make(self, out, context)

    monkeypatch.setattr(Table, "make", slow)
    trial = override(Trial(), {"training.pause": 0.01, "training.steps": 10})
    cell = Cell("plain", 0, trial, cell_key(trial, "valid"), split="valid", point=0)
    first, second = (attempt(cell, Place(
        study=study, scale="laptop", data="Words", folder=tmp_path / study, store=str(tmp_path / "stages"),
        resources=Resources(), code=Code("unknown", ""), program="studies/tune.py toy" if study == "one" else ""),
        lambda context: context.get(cell.scored())) for study in ("one", "two"))
    assert first["status"] == second["status"] == "done" and first["reused"] == {} != second["reused"]
    assert 0.1 <= first["own_seconds"] <= first["seconds"] - 0.5
    assert second["own_seconds"] == first["own_seconds"]
    stories = [Ledger(tmp_path / study).outbox(cell.key).read_text().splitlines()[0] for study in ("one", "two")]
    assert [json.loads(line)["tags"]["mlflow.source.name"] for line in stories] == ["studies/tune.py toy",
                                                                                   "studies/two.py"]


def test_a_driver_that_is_told_to_end_begins_nothing_and_gives_back(file):
    one, other = file.search(trials=9, owner="far-away:1:1"), file.search(trials=2)
    searcher = asking(file, one)
    first, second = suggested(searcher, 0), suggested(searcher, 1)
    searcher.on_trial_complete("trial 0")
    searcher.again(first)                                           # it made room on its node: it is first in line
    assert suggested(searcher, 2) == first
    searcher.place.notice.set("the driver was told to end")
    for number, cell in ((2, first), (1, second)):                  # both save themselves
        searcher.on_trial_complete(f"trial {number}")
        searcher.again(cell)
        assert searcher.suggest(f"trial {number + 2}") in (None, "FINISHED")
    searcher.place.notice.clear()
    assert searcher.suggest("trial 9") == "FINISHED" and searcher.work == {}
    late = asking(file, one)
    begun, _ = suggested(late, 0), suggested(late, 1)               # handed out both, and only one has begun
    late.leave({begun.key})
    assert late.work.keys() == other.elsewhere() == {begun.key} and late.suggest("trial 2") is None
    one.release(begun.key)
    taken = [other.ask(), other.ask()]                              # at once, though far-away's leases had begun
    assert [cell.key for cell in taken if isinstance(cell, Cell)] == [first.key, second.key]


def test_hours_bound_a_search_and_keep_room_for_its_comparison(file):
    """A point costs half an hour: of 4 hours, 1.5 are kept for three cells, so five points are asked for."""
    bound = Bound(Budget(hours=4.0), "CPU", cells=3)
    one = file.search(space=Space({"system.shape.gain": LogUniform(0.1, 10.0)}), trials=50, sampler=QuasiRandom())
    assert bound.expectation([one], 50, None).startswith("50 points of unknown cost")
    assert bound.expectation([one], 50, 36.0).startswith("50 points x 0.01 CPU hours = 0.5 CPU hours; no more than 4")
    searcher, number = asking(file, one, bound), 0
    while isinstance(found := searcher.suggest(f"trial {number}"), dict):
        searcher.on_trial_complete(f"trial {number}")
        searcher.ended(found["made"], record(found["made"]))
        number += 1
    assert number == 5 and found == "FINISHED" and bound.spent([one]) == 2.5
    assert bound.said == "--hours: 2.5 CPU hours of 4 are spent, 1.5 CPU hours kept for the comparison: no more points"
    assert bound.expectation([one], 10, None).startswith("10 points x 0.5 CPU hours = 5 CPU hours")


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
from test_search import TUNE, study
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
