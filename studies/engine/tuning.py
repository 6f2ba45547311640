"""What a search is, as data: what varies, what is sought, how it is sought, for how long, what is stopped early.

    Study(..., tune=Tune(space=tencdm.nuisance, select=(Minimise("valid/illegal"),), trials=20,
                         sampler=Tpe(), prune=Halving(Minimise("valid/loss"), first=200)))

Every arm is searched by itself; its best point is then trained with the study's seeds and compared.  Three roles that
are kept apart on purpose: `prune` compares curves inside one arm, `select` picks points by scores of validation texts,
the study's `report` looks at test texts once, after that, and at trainings with other seeds than the search's, so a
point that was chosen for its luck loses it.

    nuisance(study.report, trials=20)        what --tune 20 asks for: the optimizer's own settings, in any study

Nothing here knows a search library: search.py asks Optuna.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from search_spaces import optimizers
from search_spaces.corners import check
from search_spaces.domains import Choice, Domain, Space, value_at
from studies.engine.pruning import Halving, Pruner
from studies.engine.study import Maximise, Metric, Minimise
from trainables.config import ConfigError, flat, near, override

COST = ("cost/seconds", "cost/cpu_hours", "cost/gpu_hours")     # objectives that the ledger knows, and no evaluation


@dataclass(frozen=True)
class QuasiRandom:
    """Scrambled Sobol points over the whole space: to explore, and to see what matters."""


@dataclass(frozen=True)
class Tpe:
    """Tree-structured Parzen estimators: all parameters together (multivariate), branches of a conditional space each
    by themselves, running trials taken for bad ones (constant liar).  `startup` quasi-random points come first, pruned
    ones included."""

    startup: int = 8


@dataclass(frozen=True)
class GaussianProcess:
    """A Gaussian process over the parameters that every trial has; the conditional ones are drawn at random.  It learns
    from finished points alone: where most are pruned, TPE knows more."""

    startup: int = 8


@dataclass(frozen=True)
class Nsga2:
    """A genetic algorithm for several objectives; the first population is quasi-random."""

    population: int = 16

    def __post_init__(self):
        if self.population < 2:
            raise ValueError(f"a population has 2 members or more, not {self.population}")


Sampler = QuasiRandom | Tpe | GaussianProcess | Nsga2


Sought = tuple[Minimise | Maximise, ...]


@dataclass(frozen=True, kw_only=True)
class Tune:
    """A search inside each arm.   space: of the arm's trial; select: what is sought, on validation texts or COST.

    Space, goals and pruner may be functions of the arm's trial: what is a wide range at one size is a wrong one at
    another, and other data have other metrics.
    """

    space: Space | Callable[[Any], Space]
    select: Sought | Callable[[Any], Sought]
    trials: int = 30                                    # per arm: finished, pruned and diverged ones
    sampler: Sampler = Tpe()
    prune: Pruner | None | Callable[[Any], Pruner | None] = None
    seed: int = 1_000                                   # of the search, and of every training in it
    keep: int = 4                                       # points of a front that are trained again and reported, at most
    keep_untuned: bool = False                          # whether the arms as they were are reported beside
    loss_depends_on: tuple[str, ...] = ()               # paths under which valid/loss is another quantity

    def __post_init__(self):
        if not self.select or self.trials < 1 or self.keep < 1:
            raise ValueError("a search needs something to select on, a trial, and a point to keep")
        for metric in () if callable(self.select) else self.select:
            if not metric.metric.startswith("valid/") and metric.metric not in COST:
                raise ValueError(f"select on validation (valid/...) or on {', '.join(COST)}, not on {metric.metric}: "
                                 "what is reported may not choose")

    def around(self, trial: Any, fixed: tuple[str, ...] = ()) -> "Task":
        """What is searched around an arm's trial, its space checked at every corner.  `fixed`: paths that the arm, or
        somebody's --set, has decided.   ConfigError"""
        space = self.space if isinstance(self.space, Space) else self.space(trial)
        select = self.select(trial) if callable(self.select) else self.select
        prune = self.prune(trial) if callable(self.prune) else self.prune
        replace(self, select=select)                    # its checks
        for path in (parameter.path for parameter in space.parameters()):
            for taken in fixed:
                if taken == path or taken.startswith(f"{path}."):
                    raise ConfigError(path, f"is searched, and {taken} is set; it cannot be both")
        check(space, trial)
        if prune is not None:
            self._comparable(space, prune)
            _seen_in_time(trial)
        return Task(space=space, select=select, prune=prune, base=override(trial, {"seed": self.seed}), tune=self)

    def _comparable(self, space: Space, prune: Pruner) -> None:
        """Refuse to stop trials by losses that mean something else in each."""
        compared = [metric.metric for metric in prune.metrics]
        for path in space:
            for root in self.loss_depends_on:
                if f"{path}.".startswith(f"{root}.") or f"{root}.".startswith(f"{path}."):
                    for metric in (name for name in compared if name.endswith("/loss")):
                        raise ConfigError(path, f"varies, and {metric} is another quantity at each of its values: "
                                                "prune on a metric that is not, or on nothing")


@runtime_checkable
class Foretells(Protocol):
    """A trial that knows beforehand what it will record, so that a mistyped metric is found before anything runs."""

    def curves(self) -> Collection[str]:
        """Names of what training records by step."""
        ...

    def scores(self) -> Collection[str]:
        """Names of what validation() says."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A search around one arm's trial: nothing left to be decided."""

    space: Space
    select: Sought
    prune: Pruner | None
    base: Any                                           # the trial, with the search's seed
    tune: Tune

    def check_metrics(self) -> None:
        """ConfigError where a metric is sought, or stopped by, that the trial will never record."""
        if not isinstance(self.base, Foretells):
            return
        sought = (self.select, (*self.base.scores(), *COST), "is sought, and no score on validation texts")
        stops = (self.prune.metrics if self.prune else (), self.base.curves(),
                 "stops trials, and is nothing that training records by step")
        for metrics, known, wrong in (sought, stops):
            for metric in metrics:
                if metric.metric not in known:
                    raise ConfigError(metric.metric, f"{wrong}{near(metric.metric, known)}")


# ---------------------------------------------------------------- the nuisance search of any study


def nuisance(report: Sequence[Metric], trials: int) -> Tune:
    """Every arm at its own best rate, decay and warm-up before arms are compared: a difference between arms that were
    trained at one arm's best rate says little.  Sought is what the study reports first, on validation texts."""
    return Tune(space=_optimizers, select=functools.partial(_counterpart, tuple(report)), trials=trials, prune=_halving)


def _optimizers(trial: Any) -> Space:
    value_at(trial, "training.optimizer.lr")
    return Space(optimizers.nuisance(trial.training))


def _counterpart(report: Sequence[Metric], trial: Any) -> Sought:
    """The first of a report's metrics that has a better, and a value on validation texts."""
    value_at(trial, "evaluation.metrics")
    known = {name.partition("/")[2] for name in {*trial.scores()} - {*trial.curves()}}       # not what training says
    for metric in report:
        _, _, name = metric.metric.partition("/")
        if isinstance(metric, (Minimise, Maximise)) and name in known:
            return (type(metric)(f"valid/{name}"),)
    raise ConfigError("evaluation.metrics", f"gives nothing of what the study reports ({', '.join(sorted(known))}); "
                                            "--tune selects on that")


def _halving(trial: Any) -> Pruner | None:
    """By training's own loss, which none of this moves; by nothing where it is seen too late."""
    first = trial.training.validate_every
    steps = trial.training.steps
    return Halving(Minimise("valid/loss"), first=first, steps=steps) if first < steps else None


def _seen_in_time(trial: Any) -> None:
    """Refuse to stop early what is validated at its end only."""
    leaves = flat(trial)
    every, steps = leaves.get("training.validate_every"), leaves.get("training.steps")
    if isinstance(every, int) and isinstance(steps, int) and every >= steps:
        raise ConfigError("training.validate_every", f"is {every}, and training has {steps} steps: nothing could be "
                          f"stopped early.  Set it to {max(1, steps // 6)} or so, or prune nothing")


def distribution(domain: Domain) -> str:
    """A domain in one word for people: 0.001 .. 0.04 (log)."""
    if isinstance(domain, Choice):
        return " | ".join(map(str, domain.names))
    log = type(domain).__name__ == "LogUniform" or getattr(domain, "log", False)
    return f"{domain.low:.4g} .. {domain.high:.4g}{' (log)' if log else ''}"
