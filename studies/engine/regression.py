"""Has something become worse?   Pure: tonight's and a good night's values in, findings out.

    loss of each seed = how much worse tonight is than the good night, at the same arm and seed     [pairs]
    all exactly 0                         -> same         the code computes what it computed, to the last bit
    interval of the mean loss > margin    -> regressed
    interval < margin                     -> fine         (improved, where it lies below 0)
    the margin lies inside                -> open         more seeds would tell

Two cells of one seed see the same data in the same order and the same noise, so a change that is none gives the same
number, and one that only rounds otherwise gives losses about 0.  The intervals are Student's t over the pairs.  Seeds
are added while something is open, by a plan that is fixed beforehand: each look has an even part of what its claim may
err (few looks that are planned cost less than decide.py's, which may be any number).  Each claim, an arm's metric or a
speed, has an even part of the stated share of false alarms, to each side.  So a night on which no true loss exceeds its
margin is called regressed with that share at most, whatever the metrics have to do with each other (Bonferroni).

Speed is judged by the ratios of tokens per second, tonight over good nights, on the same machine.  Ratios have
outliers (a neighbour wakes up), so it is their median, and its interval comes from order statistics (the sign test),
which assume no law.  No statistics of one night see a machine that is slow all night: that is night_speed.py's.
"""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy import stats

from studies.engine.compare import LEVEL, spread

Kind = Literal["same", "fine", "improved", "regressed", "open"]
FEWEST = 3                              # values that, all being equal, are taken to have no spread
SPEED = "tokens per second"
EVERY = "all arms"                      # the arm of a finding about all of them


@dataclass(frozen=True)
class Finding:
    """What became of one claim."""

    arm: str
    metric: str
    kind: Kind
    loss: float | None                  # mean over the pairs (median, of a speed); positive is worse
    low: float | None                   # 95 % interval, for all looks together; None where the pairs allow none
    high: float | None
    margin: float                       # in the unit of the loss
    pairs: int
    before: float | None                # the good night's mean
    now: float | None

    @property
    def share(self) -> float | None:
        """The loss as a share of the good night's mean."""
        return self.loss / abs(self.before) if self.loss is not None and self.before else None

    def as_dict(self) -> dict[str, Any]:
        """Plain, and strict JSON: what is not finite is null."""
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(self).items()}


def metric_finding(arm: str, metric: str, before: Sequence[float], now: Sequence[float], better: int, margin: float,
                   level: float, looks: int = 1) -> Finding:
    """Paired values of the same seeds -> what can be said.   better: +1 where more is, -1 where less is"""
    losses = [better * (b - n) for b, n in zip(before, now, strict=True)]
    means = (statistics.fmean(before), statistics.fmean(now)) if losses else (None, None)
    return Finding(arm, metric, judge(losses, margin, level / looks), statistics.fmean(losses) if losses else None,
                   *mean_bounds(losses, LEVEL / 2 / looks), margin, len(losses), *means)


def judge(losses: Sequence[float], margin: float, level: float) -> Kind:
    """What the losses allow to say, erring with `level` at most to each side."""
    return "same" if losses and not any(losses) else read(*mean_bounds(losses, level), margin)


def read(low: float | None, high: float | None, margin: float) -> Kind:
    """What an interval of a loss says."""
    if low is None or high is None or low <= margin <= high:
        return "open"
    return "regressed" if low > margin else "improved" if high < 0 else "fine"


def mean_bounds(values: Sequence[float], level: float) -> tuple[float | None, float | None]:
    """Bounds that the mean leaves, on each side, with a probability of `level` at most; None: too few values."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)) or n < FEWEST and spread(values) == 0:
        return None, None
    mean, half = statistics.fmean(values), quantile(level, n - 1) * spread(values) / math.sqrt(n)
    return mean - half, mean + half


@functools.cache
def quantile(level: float, df: int) -> float:
    """What a variable of Student's law exceeds with a probability of `level`."""
    return float(stats.t.isf(level, df))


def speed_finding(arm: str, before: Sequence[float], now: Sequence[float], margin: float, level: float,
                  looks: int = 1) -> Finding:
    """Paired speeds of the same machine -> what can be said.  `margin`: the share that may be lost."""
    losses = [1 - n / b for b, n in zip(before, now, strict=True)]
    means = (statistics.median(before), statistics.median(now)) if losses else (None, None)
    kind = read(*median_bounds(losses, level / looks), margin)
    return Finding(arm, SPEED, kind, statistics.median(losses) if losses else None,
                   *median_bounds(losses, LEVEL / 2 / looks), margin, len(losses), *means)


def median_bounds(values: Sequence[float], level: float) -> tuple[float | None, float | None]:
    """Bounds that the median leaves, on each side, with a probability of `level` at most; None: too few values."""
    n, ordered = len(values), sorted(values)
    below = int(stats.binom.ppf(level, n, 0.5)) if n else 0        # the smallest k with P(X <= k) >= level
    k = below if n and stats.binom.cdf(below, n, 0.5) > level else below + 1 if n else 0
    return (ordered[k - 1], ordered[n - k]) if k else (None, None)
