"""Which trials to stop early: rules over learning curves, for one metric or several, as pure functions.

    Median(Minimise("valid/loss"))                   stop what is worse than half of the finished were at its step
    Halving(Minimise("valid/loss"), first=100)       asynchronous successive halving (ASHA, arXiv 1810.05934): at 100,
                                                     300, 900 ... steps go on with the best third of those who came here
    Halving(Minimise("valid/loss"), Maximise("valid/context_gain"), first=100)        the same by non-domination

Curves are compared by the cells' own global step, inside one search of one arm, never between arms: there a loss is
another quantity.  Under several metrics a rung is ordered by fronts (what nobody dominates, what only the first front
dominates, ...), and a front goes on whole when those before it do not fill the share: so nothing is ever stopped
that no other trial beats in every metric.

A curve is {step: losses}, one loss a metric, less is better (`losses` turns what is maximised around).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from studies.engine.study import Maximise, Minimise

Losses = tuple[float, ...]
Curve = Mapping[int, Losses]


class Pruner(Protocol):
    """A rule, as data."""

    @property
    def metrics(self) -> tuple[Minimise | Maximise, ...]:
        """What a cell has to record by step."""
        ...

    def verdict(self, mine: Curve, finished: Sequence[Curve], others: Sequence[Curve]) -> str:
        """Why the trial should stop, or nothing.  `finished`: curves of trials that ran to their end; `others`: of all
        other trials, whatever became of them."""
        ...


def losses(metrics: Sequence[Minimise | Maximise], recorded: Mapping[str, float]) -> Losses | None:
    """The metrics as losses; None where one was not recorded."""
    if any(metric.metric not in recorded for metric in metrics):
        return None
    return tuple(recorded[metric.metric] * (1 if isinstance(metric, Minimise) else -1) for metric in metrics)


def fronts(points: Sequence[Losses]) -> list[int]:
    """The front of each point: 0 where nothing dominates it, 1 where only front 0 does, ...  A NaN is behind all."""
    if not points:
        return []
    table = np.array(points, dtype=float)
    known = np.asarray(~np.isnan(table).any(1))
    front = np.zeros(len(points), dtype=int)
    if table.shape[1] == 1:                                 # one loss: fronts are its values, in order
        front[known] = np.unique(table[known, 0], return_inverse=True)[1]
    else:
        nowhere_worse = known[:, None] & known[None, :]     # [i, j]: i than j
        better = np.zeros_like(nowhere_worse)
        for loss in table.T:
            nowhere_worse &= loss[:, None] <= loss[None, :]
            better |= loss[:, None] < loss[None, :]
        above = nowhere_worse & better
        number, left, count = 0, known.copy(), above.sum(0)
        while left.any():
            best = left & (count == 0)
            front[best] = number
            left &= ~best
            count -= above[best].sum(0)
            number += 1
    front[~known] = front[known].max(initial=-1) + 1
    return front.tolist()


def dominates(a: Losses, b: Losses) -> bool:
    """Whether `a` is nowhere worse than `b`, and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@dataclass(frozen=True)
class Median:
    """Stop a trial whose best value so far is worse than the median of the finished trials at the same step.

    The first `startup` trials, and every trial's first `after` steps, are left alone.
    """

    metric: Minimise | Maximise
    startup: int = 5
    after: int = 0

    def __post_init__(self):
        if self.startup < 1 or self.after < 0:
            raise ValueError(f"median pruning needs a finished trial, and steps from 0 on: {self}")

    @property
    def metrics(self) -> tuple[Minimise | Maximise, ...]:
        return (self.metric,)

    def verdict(self, mine: Curve, finished: Sequence[Curve], others: Sequence[Curve]) -> str:
        step = max(mine, default=0)
        past = [curve[step][0] for curve in finished if step in curve and curve[step][0] == curve[step][0]]
        if step <= self.after or len(finished) < self.startup or not past:
            return ""
        best = min((values[0] for values in mine.values() if values[0] == values[0]), default=float("inf"))
        median = statistics.median(past)
        sign = 1 if isinstance(self.metric, Minimise) else -1
        return f"{self.metric.metric} {sign * best:.4g} by step {step}; the median of {len(past)} there is " \
               f"{sign * median:.4g}" if best > median else ""


class Halving:
    """Asynchronous successive halving: of those who reach rung k, at first x factor^k steps, one in `factor` goes on.

    Asynchronous: a trial is compared once a rung, when it comes there, with whoever was there before; it waits for
    nobody, and nobody who comes later is held against it.  `steps`: how long trainings are; after the first rung there
    is none beyond steps // factor.  Who was stopped near its end would save little, and lose its score.
    """

    def __init__(self, *metrics: Minimise | Maximise, first: int, factor: int = 3, steps: int | None = None):
        if not metrics or first < 1 or factor < 2:
            raise ValueError(f"halving needs a metric, a first rung of 1 step or more and a factor of 2 or more, not "
                             f"{metrics}, {first} and {factor}")
        self.metrics, self.first, self.factor, self.steps = metrics, first, factor, steps

    def __repr__(self) -> str:
        return f"Halving({', '.join(metric.metric for metric in self.metrics)}, first={self.first}, " \
               f"factor={self.factor}, steps={self.steps})"

    def rung(self, step: int) -> int:
        """The last rung at or below a step; -1 below the first."""
        if self.steps is not None:
            step = min(step, max(self.first, self.steps // self.factor))
        number = -1
        while step >= self.first * self.factor ** (number + 1):
            number += 1
        return number

    def at(self, curve: Curve, rung: int) -> Losses | None:
        """What a curve says where it came to a rung; None where it never did."""
        reached = [step for step in curve if step >= self.first * self.factor**rung]
        return curve[min(reached)] if reached else None

    def verdict(self, mine: Curve, finished: Sequence[Curve], others: Sequence[Curve]) -> str:
        now = max(mine, default=0)
        rung = self.rung(now)
        came = self.at(mine, rung) if rung >= 0 else None
        if came is None or any(self.first * self.factor**rung <= step < now for step in mine):
            return ""
        there = [came, *(losses for curve in others if (losses := self.at(curve, rung)) is not None)]
        keep = max(1, len(there) // self.factor)
        front = fronts(there)
        better = sum(other < front[0] for other in front)
        return f"{better} of {len(there)} were better at step {self.first * self.factor**rung}, where {keep} go on" \
            if better >= keep else ""
