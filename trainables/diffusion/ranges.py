"""Annealed ranges: training sees mild noise first, and all of time only from half-way on.      the annealing thesis

    progress = step / steps --range--> the highest time so far        ceiling(PolynomialRange(power=2.0), 0.25) == 0.4

    FullRange            1 from the first step
    LinearRange          from `start` to 1 while progress goes from 0 to `until`: u = progress / until
    PolynomialRange      u^power: stays longer with mild noise
    CosineRange          sin^2(pi u / 2): slow at both ends
    StepwiseRange        stairs

`opened(u)` is the share of [start, 1] that is open at u: 0 at u = 0, 1 once u > 1, and never falling.

The thesis opens from .2 of time to all of it in half of the training.  Whatever the shape, a range has two effects: an
order, mild noise first, and a total, more mild noise altogether.  `Exposure` (times.py) is the total without the order.
"""

import math
from typing import ClassVar

from trainables.config import config


def _check_range(start: float, until: float) -> None:
    if not 0 < start <= 1:
        raise ValueError(f"start must be in (0, 1], not {start}")
    if not 0 < until <= 1:
        raise ValueError(f"until must be in (0, 1], not {until}")


@config
class FullRange:
    """All of time from the first step."""

    start: ClassVar[float] = 1.0
    until: ClassVar[float] = 1.0

    def opened(self, u: float) -> float:
        return 1.0


@config
class LinearRange:
    start: float = 0.2
    until: float = 0.5

    def __post_init__(self):
        _check_range(self.start, self.until)

    def opened(self, u: float) -> float:
        return min(u, 1.0)


@config
class PolynomialRange:
    """u^power: the larger the power (any positive real), the longer it stays with mild noise."""

    start: float = 0.2
    until: float = 0.5
    power: float = 2.0

    def __post_init__(self):
        _check_range(self.start, self.until)
        if self.power <= 0:
            raise ValueError(f"power must be positive, not {self.power}")

    def opened(self, u: float) -> float:
        return min(u, 1.0) ** self.power


@config
class CosineRange:
    """sin^2(pi u / 2): slow at both ends."""

    start: float = 0.2
    until: float = 0.5

    def __post_init__(self):
        _check_range(self.start, self.until)

    def opened(self, u: float) -> float:
        return 1 - (1 + math.cos(math.pi * min(u, 1.0))) / 2        # in the thesis' form, to truncate as it does


@config
class StepwiseRange:
    """`stages` equal stairs, each including its upper end; all of time only past `until`.   The thesis' "unsmooth" """

    start: float = 0.2
    until: float = 0.5
    stages: int = 4

    def __post_init__(self):
        _check_range(self.start, self.until)
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, not {self.stages}")

    def opened(self, u: float) -> float:
        return 1.0 if u > 1 else max(math.ceil(u * self.stages) - 1, 0) / self.stages


Range = FullRange | LinearRange | PolynomialRange | CosineRange | StepwiseRange


def ceiling(range: Range, progress: float) -> float:
    """The highest time that is open at progress = step / steps."""
    return range.start + range.opened(progress / range.until) * (1 - range.start)


def open_levels(range: Range, step: int, steps: int, levels: int = 1000) -> int:
    """How many of `levels` discrete noise levels are open at `step` of `steps`, truncated as in the annealing thesis.

    ValueError where the range would be empty at the start (the thesis crashes for fewer than 5 levels).
    """
    first, end = int(levels * range.start), int(steps * range.until)
    if first < 1:
        raise ValueError(f"noise levels must be at least {math.ceil(1 / range.start)}, so that the {range.start} of "
                         f"them that are open first are one, not {levels}")
    u = step / end if end else math.inf
    return int(first + range.opened(u) * (levels - first))
