"""Looking after every seed: which arms are decided, which are hopeless, which go on.   Pure: numbers in, states out.

    differences [n] of each arm -> t -> anytime-valid interval of the mean difference -> better | worse | same | open
                                                                                      -> decided | hopeless | undecided

A t test that is repeated after every seed until it succeeds succeeds by chance in the end.  Here a study may look as
often as it likes, stop when it likes, and go on next month: the intervals of all arms, at all looks, hold together with
95 %.

Under the hypothesis that the mean difference is d, the likelihood ratio of the t statistic of n differences, mixed over
effect sizes N(0, tau^2), is a martingale whatever the unknown spread (Robbins 1970, Lai 1976; that this needs no prior
on the spread: Perez-Ortiz, Lardy, de Heide and Grunwald 2024; Wang and Ramdas 2024, "Anytime-valid t-tests").  With
nu = n - 1 and g = 1 + n tau^2 (the closed form is Gronau, Ly and Wagenmakers 2020, eq. 5):

    E_n(t) = g^(-1/2) [ (1 + t^2 / nu) / (1 + t^2 / (nu g)) ]^(n/2)         P(some n: E_n >= 1 / level) <= level
    (Ville)

The interval holds every d whose E_n stays below 1 / level.  `level` is 5 % shared evenly over the arms (Bonferroni), so
that differences and equivalences may both be read off the same intervals.  Giving up hopeless arms needs no correction:
it can only lose a verdict.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from studies.engine.compare import LEVEL, Comparison, Interval, Verdict, effect, spread

TAU = 3.0                               # effect sizes to bet on, in standard deviations: what swapping a component does
FIRST = 3                               # seeds before the first look

State = Literal["decided", "hopeless", "undecided"]


@dataclass(frozen=True)
class Rule:
    """How --decide was asked: seeds an arm may have at most."""

    most: int = 20


@dataclass(frozen=True)
class Decision:
    """Where an arm stands."""

    state: State
    verdict: Verdict
    interval: Interval                  # of arm - base, valid at every look; at the look that decided
    looks: int                          # the pairs that were seen until the arm was decided, or all
    reason: str = ""                    # why it is hopeless


def decisions(differences: Mapping[str, Sequence[float]], better: int, margin: float | None = None, *, most: int,
              lost: Mapping[str, int] | None = None, level: float = LEVEL) -> dict[str, Decision]:
    """Judge every arm by its paired differences, in the order in which they were seen.

    most: seeds an arm may have.  lost: arm -> seeds that gave no pair.  An arm that was decided once stays decided:
    seeds that come later, for the sake of other arms, are not looked at.   better, margin: as in compare.compare.
    """
    share, lost = level / max(len(differences), 1), lost or {}
    return {arm: _decide(list(values), better, margin, most - lost.get(arm, 0), lost.get(arm, 0), share)
            for arm, values in differences.items()}


def anytime(differences: Mapping[str, list[float]], better: int, margin: float | None = None, *, most: int
            ) -> dict[str, Comparison]:
    """What compare.compare says of a number of seeds that was fixed beforehand, of one that followed from looking."""
    share = LEVEL / max(len(differences), 1)
    found = {}
    for arm, decision in decisions(differences, better, margin, most=most).items():
        p = p_value(values := differences[arm])
        found[arm] = Comparison(
            difference=sequence(values, share), p=p, adjusted=None if p is None else min(1.0, p * len(differences)),
            same=None, effect=effect(values), verdict=decision.verdict)
    return found


def _decide(values: list[float], better: int, margin: float | None, most: int, lost: int, level: float) -> Decision:
    for n in range(FIRST, len(values) + 1):
        found = sequence(values[:n], level)
        if (verdict := read(found, better, margin)) != "open":
            return Decision("decided", verdict, found, n)
    found = sequence(values, level)
    if lost >= 2 and lost >= len(values):
        return Decision("hopeless", "open", found, len(values), f"{lost} of its seeds gave no value")
    if (reason := futile(values, margin, most, level)):
        return Decision("hopeless", "open", found, len(values), reason)
    return Decision("undecided", "open", found, len(values))


def read(found: Interval, better: int, margin: float | None) -> Verdict:
    """What an interval says."""
    if found.mean is None or found.low is None or found.high is None:
        return "open"
    if margin is not None and -margin < found.low and found.high < margin:
        return "same"
    if found.low <= 0 <= found.high:
        return "open"
    return "differs" if better == 0 else "better" if found.mean * better > 0 else "worse"


def sequence(values: Sequence[float], level: float) -> Interval:
    """The interval of the mean at this look, of a sequence that holds at all looks with 1 - level."""
    n = len(values)
    if n == 0 or not all(math.isfinite(value) for value in values):
        return Interval(None, None, None, n)
    mean = math.fsum(values) / n
    reach = threshold(n, level)
    if n == 1 or not math.isfinite(reach) or (n < FIRST and spread(values) == 0):
        return Interval(mean, None, None, n)
    half = reach * spread(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def p_value(values: Sequence[float]) -> float | None:
    """The anytime-valid p of no difference: 1 / the most that the bet ever was worth; None where it is not defined."""
    if not all(math.isfinite(value) for value in values):
        return None
    best = 1.0
    for n in range(FIRST, len(values) + 1):
        sigma, mean = spread(values[:n]), math.fsum(values[:n]) / n
        t = mean / sigma * math.sqrt(n) if sigma else math.copysign(1e12, mean) if mean else 0.0
        best = max(best, evidence(t, n))
    return 1 / best if len(values) >= FIRST else None


def evidence(t: float, n: int) -> float:
    """E_n(t): how much better than chance a bet on a difference has paid."""
    g, nu = 1 + n * TAU ** 2, n - 1
    return g ** -0.5 * ((1 + t * t / nu) / (1 + t * t / (nu * g))) ** (n / 2)


def threshold(n: int, level: float) -> float:
    """|t| at which E_n is 1 / level; infinite where n is too small for any t."""
    g = 1 + n * TAU ** 2
    ratio = (math.sqrt(g) / level) ** (2 / n)
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / g)) if n > 1 and ratio < g else math.inf


def futile(values: Sequence[float], margin: float | None, most: int, level: float) -> str:
    """Why no verdict is in reach of `most` seeds, or nothing.

    Judged with favour: at the last look the interval is as wide as today's spread makes it, and the mean lies at
    whichever end of today's 95 % interval decides.
    """
    if len(values) >= most:
        return f"undecided after all {most} seeds"
    if len(values) < FIRST or not all(math.isfinite(value) for value in values) or (sigma := spread(values)) == 0:
        return ""
    from scipy import stats

    n, mean = len(values), math.fsum(values) / len(values)
    doubt = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * sigma / math.sqrt(n)
    half = threshold(most, level) * sigma / math.sqrt(most)
    apart = abs(mean) + doubt > half
    within = margin is not None and max(abs(mean) - doubt, 0.0) + half < margin
    return "" if apart or within else f"{most} seeds could not decide it"
