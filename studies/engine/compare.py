"""Seeds to statements: means with their intervals, and differences between arms that share their seeds.

Seeds are paired: cells of the same seed see the same data order and the same noise, so the difference is taken seed by
seed, and what seeds have in common cancels.

    differences [n] of each arm --paired t--> p --Holm, over the arms--> adjusted --------.
                                --TOST, within the margin--> p --Holm--> adjusted --------+--> better | worse | same |
                                open
    spread of the differences   --power of the same tests--> how many more seeds decide --'

Holm's procedure (1979) assumes nothing about how arms depend on each other; Dunnett's would want equal spreads, which
arms that fail half of the time do not have.  Of all arms that equal the base, one or more is called better or worse
with a probability of 5 % at most; of all arms that leave the margin, one or more is called the same with 5 % at most.
These hold for a number of seeds that was fixed beforehand; decide.py is for looking again and again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
POWER = 0.8                             # with which the seeds that `needed` names decide
MOST = 1000                             # seeds beyond which nobody will go

Verdict = Literal["better", "worse", "differs", "same", "open"]      # differs: where a metric has no better


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
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def spread(values: Sequence[float]) -> float:
    """The standard deviation, from n - 1; exactly 0 for values that differ in rounding alone."""
    mean = math.fsum(values) / len(values)
    found = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return found if found > 1e-12 * max(abs(value) for value in values) else 0.0


def pairs(arm: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """The differences arm - base over the seeds that both have, in the seeds' order."""
    return [arm[seed] - base[seed] for seed in sorted(arm.keys() & base.keys())]


def paired(arm: Mapping[int, float], base: Mapping[int, float]) -> Interval:
    """The mean difference arm - base over the seeds that both have."""
    return interval(pairs(arm, base))


@dataclass(frozen=True)
class Comparison:
    """What n paired seeds say about an arm and the base in one metric.   None: the seeds do not allow it."""

    difference: Interval                # arm - base
    p: float | None                     # paired t test, two-sided, for itself
    adjusted: float | None              # the same after Holm's correction over the arms
    same: float | None                  # two one-sided tests of leaving the margin, after Holm; None without a margin
    effect: float | None                # Hedges' g: mean difference / its standard deviation, unbiased at small n
    verdict: Verdict


def compare(differences: Mapping[str, Sequence[float]], better: int,
            margin: float | None = None) -> dict[str, Comparison]:
    """Judge every arm by its paired differences to the base.

    better: +1 where more of the metric is better, -1 where less is, 0 where neither.  A margin is the largest
    difference that does not matter: within it an arm is the same, whatever its sign.
    """
    values = {arm: list(some) for arm, some in differences.items()}
    able = [arm for arm, some in values.items() if testable(some)]
    p = {arm: difference_p(values[arm]) for arm in able}
    adjusted = holm(p)
    same = holm({arm: equivalence_p(values[arm], margin) for arm in able}) if margin is not None else {}
    verdicts: dict[str, Verdict] = {arm: judge(interval(some).mean, adjusted.get(arm), same.get(arm), better)
                                    for arm, some in values.items()}
    return {arm: Comparison(difference=interval(some), p=p.get(arm), adjusted=adjusted.get(arm), same=same.get(arm),
                            effect=effect(some), verdict=verdicts[arm]) for arm, some in values.items()}


def judge(mean: float | None, adjusted: float | None, same: float | None, better: int) -> Verdict:
    """The margin comes first: a difference that is certain and does not matter is no difference."""
    if mean is None or adjusted is None:
        return "open"
    if same is not None and same < LEVEL:
        return "same"
    if adjusted >= LEVEL:
        return "open"
    return "differs" if better == 0 else "better" if mean * better > 0 else "worse"


def testable(values: Sequence[float]) -> bool:
    """Whether a t test makes sense: finite values with a spread, or three that are equal (nothing random in them)."""
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return False
    return spread(values) > 0 or len(values) >= 3


def difference_p(values: Sequence[float]) -> float:
    """Paired t test of a mean difference of zero, two-sided."""
    if spread(values) == 0:
        return 0.0 if values[0] else 1.0
    return float(np.asarray(stats.ttest_1samp(values, 0.0), dtype=float)[1])


def equivalence_p(values: Sequence[float], margin: float) -> float:
    """Two one-sided t tests (Schuirmann 1987) of a mean difference outside -margin ... margin."""
    if spread(values) == 0:
        return 0.0 if abs(values[0]) < margin else 1.0
    from statsmodels.stats.weightstats import DescrStatsW

    return float(DescrStatsW(np.asarray(values)).ttost_mean(-margin, margin)[0])


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: those below 5 % are claims of which one or more is wrong in 5 % of studies at most.

    statsmodels' multipletests says the same (a test compares them) and collects garbage, 0.2 s, at every call.
    """
    order = sorted(p, key=lambda name: p[name])
    steps = np.maximum.accumulate([p[name] * (len(p) - rank) for rank, name in enumerate(order)]) if p else []
    return {name: min(float(step), 1.0) for name, step in zip(order, steps, strict=True)}


def effect(values: Sequence[float]) -> float | None:
    """Hedges' g of paired differences (Hedges 1981, the exact factor); None below three seeds or without a spread."""
    n = len(values)
    if n < 3 or not all(math.isfinite(value) for value in values) or spread(values) == 0:
        return None
    df = n - 1
    unbias = math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)
    return unbias * math.fsum(values) / n / spread(values)


# ---------------------------------------------------------------- how many seeds


def more_seeds(differences: Mapping[str, Sequence[float]], found: Mapping[str, Comparison], margin: float | None = None,
               level: float | None = None) -> dict[str, int]:
    """Seeds that each open arm still needs, with 80 % power; arms that are decided, or out of reach, are left out.

    `level`: what a test of each arm may err; None: what Holm's correction leaves to those that are open.
    """
    wanted = {arm: list(values) for arm, values in differences.items()
              if found[arm].verdict == "open" and testable(values)}
    level = level or LEVEL / max(len(wanted), 1)
    seeds = {arm: needed(values, margin, level) for arm, values in wanted.items()}
    return {arm: max(n - len(wanted[arm]), 1) for arm, n in seeds.items() if n is not None}


def needed(values: Sequence[float], margin: float | None = None, level: float = LEVEL) -> int | None:
    """Seeds with which a study like this one decides in 80 % of all cases, were mean and spread what they look like.

    The smaller of the numbers for a difference and, with a margin, for its absence; None beyond MOST.
    """
    mean, sigma = math.fsum(values) / len(values), spread(values)
    if sigma == 0:
        return None
    ways = [_first(lambda n: difference_power(n, mean / sigma, level))]
    if margin is not None and abs(mean) < margin:
        ways.append(_first(lambda n: equivalence_power(n, mean / sigma, margin / sigma, level)))
    return min((n for n in ways if n is not None), default=None)


def needed_not_worse(values: Sequence[float], margin: float, better: int, level: float = LEVEL) -> int | None:
    """The same for a study that asks whether it is no worse by more than the margin: a one-sided question, or, where
    the mean is worse, whether it is certainly so.   better: +1 where more is"""
    mean, sigma = better * math.fsum(values) / len(values), spread(values)
    if sigma == 0:
        return None
    ways = []
    if mean > -margin:
        ways.append(_first(lambda n: noninferiority_power(n, mean / sigma, margin / sigma, level)))
    if mean < 0:
        ways.append(_first(lambda n: difference_power(n, mean / sigma, level)))
    return min((n for n in ways if n is not None), default=None)


def difference_power(n: int, effect: float, level: float = LEVEL) -> float:
    """P(a two-sided t test over n pairs finds the effect, which is in standard deviations)."""
    from statsmodels.stats.power import TTestPower

    power = float(TTestPower().power(abs(effect), n, level))
    if not math.isnan(power):
        return power
    # Of large effects at few seeds scipy's noncentral t knows nothing: averaged over the quantiles of the spread.
    bar = stats.t.ppf(1 - level / 2, n - 1) * _spreads(n)
    return float(np.mean(stats.norm.sf(bar - abs(effect) * math.sqrt(n))))


def noninferiority_power(n: int, effect: float, margin: float, level: float = LEVEL) -> float:
    """P(a one-sided t test over n pairs finds a mean that is not below -margin); both in standard deviations."""
    bar = stats.t.ppf(1 - level, n - 1) * _spreads(n)
    return float(np.mean(stats.norm.sf(bar - (effect + margin) * math.sqrt(n))))


def equivalence_power(n: int, effect: float, margin: float, level: float = LEVEL) -> float:
    """P(TOST over n pairs finds the effect within the margin, both in standard deviations); Phillips 1990, eq. 3.

    Given the observed spread s, the mean must fall within margin - t s / sqrt(n): averaged over the quantiles of s.
    """
    s = _spreads(n)
    room = margin - stats.t.ppf(1 - level, n - 1) * s / math.sqrt(n)
    inside = stats.norm.cdf((room - effect) * math.sqrt(n)) - stats.norm.cdf((-room - effect) * math.sqrt(n))
    return float(np.mean(np.where(room > 0, inside, 0.0)))


def _spreads(n: int) -> np.ndarray:
    """Quantiles of the spread that n values of spread 1 show.   [400]"""
    return np.sqrt(stats.chi2.ppf((np.arange(400) + 0.5) / 400, n - 1) / (n - 1))


def _first(power, low: int = 2) -> int | None:
    """The smallest n whose power suffices: doubled until it does, then halved."""
    high = low
    while power(high) < POWER:
        if high >= MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
