"""Factorial studies: what each factor does on average, and where factors do more, or less, together than apart.

    value of each (levels, seed)  --contrast, seed by seed-->  one number a seed  --paired t, Holm over all effects-->
    verdict                                                      (under --decide: anytime-valid intervals, Bonferroni)

Main effect of a level: the level - the factor's first level, averaged over all levels of the other factors.
Interaction of two levels: the difference that one makes beside the other, less the difference it makes beside the other
factor's first level.  As every contrast is taken inside a seed, nothing is assumed about equal spreads, and the seeds
stay paired.  Beside them stands the analysis of variance with seeds as subjects (statsmodels' AnovaRM): one F test a
factor and interaction, which does assume it (sphericity); for factors of two levels it says the same, F = t^2.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from studies.engine.compare import Comparison, compare

Levels = tuple[str, ...]
Judge = Callable[[Mapping[str, list[float]], int, float | None], dict[str, Comparison]]


@dataclass(frozen=True)
class Effect:
    """A main effect (one factor) or an interaction (two): levels against the factors' first levels."""

    factors: tuple[str, ...]
    levels: tuple[str, ...]
    comparison: Comparison

    @property
    def name(self) -> str:
        return " x ".join(self.levels)


@dataclass(frozen=True)
class Anova:
    """One line of the analysis of variance."""

    factors: tuple[str, ...]
    f: float
    df: tuple[float, float]
    p: float


def common_seeds(values: Mapping[Levels, Mapping[int, float]]) -> list[int]:
    """The seeds that every cell has, with finite values."""
    seeds = [{seed for seed, value in cell.items() if math.isfinite(value)} for cell in values.values()]
    return sorted(set.intersection(*seeds))


def effects(factors: Mapping[str, tuple[str, ...]], values: Mapping[Levels, Mapping[int, float]], better: int,
            margin: float | None = None, judge: Judge = compare) -> list[Effect]:
    """All main effects and two-factor interactions.

    factors: name -> levels, the first is the base.  values: (level of each factor) -> seed -> value, of a full
    factorial study.  judge(contrasts, better, margin): compare.compare, or decide.anytime where seeds were added by
    looking; its correction goes over everything that is returned.
    """
    seeds = common_seeds(values)
    contrasts = dict(_contrasts(factors))
    found = judge({str(key): [_contrast(weights, values, seed) for seed in seeds]
                   for key, weights in contrasts.items()}, better, margin)
    return [Effect(key[0], key[1], found[str(key)]) for key in contrasts]


def _contrasts(factors: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[tuple[Levels, Levels], dict[Levels, float]]]:
    """(factors, levels) -> the weight of every cell."""
    names = list(factors)
    for order in (1, 2):
        for chosen in itertools.combinations(names, order):
            for levels in itertools.product(*(factors[name][1:] for name in chosen)):
                weights: dict[Levels, float] = {}
                for cell in itertools.product(*factors.values()):
                    signs = [(own == level) - (own == factors[name][0])
                             for name, level in zip(chosen, levels, strict=True)
                             for own in (cell[names.index(name)],)]
                    weights[cell] = math.prod(signs)
                others = math.prod(len(factors[name]) for name in names if name not in chosen)
                yield (chosen, levels), {cell: weight / others for cell, weight in weights.items() if weight}


def _contrast(weights: Mapping[Levels, float], values: Mapping[Levels, Mapping[int, float]], seed: int) -> float:
    return math.fsum(weight * values[cell][seed] for cell, weight in weights.items())


def anova(factors: Mapping[str, tuple[str, ...]], values: Mapping[Levels, Mapping[int, float]]) -> list[Anova]:
    """F tests of all factors and interactions; none with fewer than two common seeds or without a spread."""
    seeds = common_seeds(values)
    if len(seeds) < 2:
        return []
    import numpy as np
    import pandas as pd
    from statsmodels.stats.anova import AnovaRM

    names = [f"f{number}" for number in range(len(factors))]
    rows = [dict(zip(names, cell, strict=True)) | {"seed": seed, "y": values[cell][seed]}
            for cell in values for seed in seeds]
    with np.errstate(all="ignore"):
        table = AnovaRM(pd.DataFrame(rows), "y", "seed", within=names).fit().anova_table
    found = []
    for name, line in table.iterrows():
        chosen = tuple(factor for factor, short in zip(factors, names, strict=True) if short in str(name).split(":"))
        f, first, second, p = map(float, line.to_numpy())                 # F Value, Num DF, Den DF, Pr > F
        if math.isfinite(f) and math.isfinite(p):
            found.append(Anova(chosen, f, (first, second), p))
    return found
