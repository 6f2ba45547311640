"""What a search has found, read from its storage alone.

    chosen(search)              the best trial, or some of the front
    doubts(search, point)       what to know before trusting it
    front(search)               what none beats in every objective
    importances(search)         which parameters mattered
    complete(search)            finished trials
    table(search)               a row a trial
"""

import json
import math
import warnings
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search_spaces.domains import Choice, Point
from studies.engine.pruning import fronts
from studies.engine.search import Search
from studies.engine.study import Minimise
from trainables.config import ConfigError, override


def complete(one: Search) -> list[FrozenTrial]:
    """Finished trials with values, in the order of their numbers."""
    return [trial for trial in one.trials() if trial.state == TrialState.COMPLETE] if one.exists() else []


def chosen(one: Search) -> list[FrozenTrial]:
    """The best trial; under several objectives the front, the ends first, then what is farthest from the others."""
    best = front(one)
    if len(one.select) == 1:
        return best[:1]
    order = spread([_losses(one, trial) for trial in best], list(range(len(best))))
    return [best[i] for i in order][:one.tune.keep]


def front(one: Search) -> list[FrozenTrial]:
    """The finished trials that none beats in every objective."""
    seen: dict[str, FrozenTrial] = {}
    for trial in complete(one):                     # a point that came twice is one point
        seen.setdefault(json.dumps(trial.params, sort_keys=True), trial)
    trials = list(seen.values())
    numbers = fronts([_losses(one, trial) for trial in trials])
    return [trial for trial, number in zip(trials, numbers, strict=True) if number == 0]


def _losses(one: Search, trial: FrozenTrial) -> tuple[float, ...]:
    return tuple(value * (1 if direction == StudyDirection.MINIMIZE else -1)
                 for value, direction in zip(trial.values, one.study.directions, strict=True))


def doubts(one: Search, point: Point) -> list[str]:
    """What to know before trusting a chosen point: that it lies at an end of a range that could go on."""
    parameters = {p.name: p for p in one.space.parameters()}
    changes, found = one.space.changes(point), []
    for name, end in one.space.edges(point).items():
        path, domain = parameters[name].path, parameters[name].domain
        assert not isinstance(domain, Choice)               # of which nothing is an end
        try:
            override(one.base, changes | {path: domain.beyond(end)})
        except ConfigError:              # a share ends at 1
            continue
        found.append(f"{name} = {point[name]:.4g} lies at the {end} end of its range {domain.low:.4g} .. "
                     f"{domain.high:.4g}: the best may lie beyond")
    return found


def table(one: Search) -> list[dict[str, Any]]:
    """One row a trial: number, state, reason, values by metric, point, key, metrics, cost, curve."""
    rows = []
    for trial in one.trials() if one.exists() else []:
        names = [metric.metric for metric in one.select]
        values = dict(zip(names, trial.values, strict=True)) if trial.state == TrialState.COMPLETE else {}
        rows.append({
            "number": trial.number, "state": trial.user_attrs.get("status", trial.state.name.lower()),
            "reason": trial.user_attrs.get("reason", ""), "values": values, "point": dict(trial.params),
            "key": trial.user_attrs.get("key"), "metrics": trial.user_attrs.get("metrics", {}),
            "cost": trial.user_attrs.get("cost", {}),
            "curve": {int(s): v for s, v in json.loads(trial.user_attrs.get("curve", "{}")).items()},
            "inherited": trial.user_attrs.get("inherited")})
    return rows


def importances(one: Search) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> share of the spread that it explains (PED-ANOVA); of four trials or more."""
    done = complete(one)
    if len(done) < 4:
        return {}
    found = {}
    for place, metric in enumerate(one.select):
        varied = [name for name in one.known
                  if len({trial.params[name] for trial in done if name in trial.params}) > 1]
        if not varied or len({trial.values[place] for trial in done}) < 2:
            continue
        sign = 1 if isinstance(metric, Minimise) else -1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")             # that it takes low targets for good: so do we
            try:
                found[metric.metric] = optuna.importance.get_param_importances(
                    one.study, params=varied, evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                    target=lambda trial, place=place, sign=sign: sign * trial.values[place])
            except (ValueError, RuntimeError):          # too few distinct points
                continue
    return found


def spread(points: list[tuple[float, ...]], names: list[int]) -> list[int]:
    """The names of a front's points: the best of each objective, then always the one farthest from those taken."""
    if not points:
        return []
    low = [min(column) for column in zip(*points, strict=True)]
    width = [max(column) - least or 1.0 for column, least in zip(zip(*points, strict=True), low, strict=True)]
    scaled = [tuple((x - least) / w for x, least, w in zip(point, low, width, strict=True)) for point in points]
    order = list(dict.fromkeys(min(range(len(points)), key=lambda i: scaled[i][axis]) for axis in range(len(low))))
    while len(order) < len(points):
        rest = [i for i in range(len(points)) if i not in order]
        order.append(max(rest, key=lambda i: min(math.dist(scaled[i], scaled[j]) for j in order)))
    return [names[i] for i in order]
