"""Seeds to statements: means with their intervals, and differences between arms that share their seeds.

Seeds are paired: cells of the same seed see the same data order and the same noise, so the difference is taken seed by
seed, and what seeds have in common cancels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds and its 95 % interval; None where n, or a value that is not finite, does not allow it."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.mean is None or self.high is None else self.high - self.mean


def interval(values: Sequence[float]) -> Interval:
    """Student's t over the seeds."""
    n = len(values)
    if n == 0 or not all(math.isfinite(value) for value in values):
        return Interval(None, None, None, n)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, n)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(arm: Mapping[int, float], base: Mapping[int, float]) -> Interval:
    """The difference arm - base over the seeds that both have."""
    return interval([arm[seed] - base[seed] for seed in sorted(arm.keys() & base.keys())])
