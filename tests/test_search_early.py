"""Points that are stopped early: by whom, at which step, and what is learnt from them."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from fake_trial import Trial
from optuna.trial import TrialState
from toy_search import SPACE, error, go, record, states

from studies import tune
from studies.engine.found import table
from studies.engine.plan import Cell
from studies.engine.pruning import Halving, Median, dominates, fronts
from studies.engine.samplers import Sobol
from studies.engine.study import Maximise, Minimise
from studies.engine.tuning import GaussianProcess, QuasiRandom, Tpe, Tune, nuisance
from trainables.config import ConfigError
from trainables.tencdm import tencdm_laptop

pytest_plugins = ["toy_search"]                    # its fixture
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


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
