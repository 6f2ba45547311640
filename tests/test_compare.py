"""Statistics against oracles and laws: paired tests, corrections, margins, factors, and deciding by looking."""

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests

from studies.engine import compare as comparing
from studies.engine.compare import (
    compare,
    difference_power,
    effect,
    equivalence_power,
    holm,
    interval,
    more_seeds,
    needed,
    needed_not_worse,
    noninferiority_power,
)
from studies.engine.decide import FIRST, TAU, anytime, decisions, evidence, p_value, sequence, threshold
from studies.engine.factors import anova, effects

RNG = np.random.default_rng(20)
FOUR = [0.9, 1.3, 1.1, 0.8]

samples = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=3, max_size=9).filter(
    lambda values: np.std(values) > 0.01)


# ---------------------------------------------------------------- fixed seeds


@given(samples, samples)
@settings(max_examples=30, deadline=None)
def test_the_test_is_scipys_paired_one(arm, base):
    n = min(len(arm), len(base))
    differences = [a - b for a, b in zip(arm[:n], base[:n], strict=True)]
    if np.std(differences) < 1e-6:
        return
    found = compare({"arm": differences}, 1)["arm"]
    assert found.p == pytest.approx(float(stats.ttest_rel(arm[:n], base[:n])[1]), rel=1e-6)
    assert found.adjusted == found.p                               # one arm needs no correction
    low, high = found.difference.low, found.difference.high
    assert low is not None and high is not None
    assert (found.verdict != "open") == (not low <= 0 <= high)     # the test and the interval are one statement


def test_holm_steps_down():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}
    many = {str(i): float(p) for i, p in enumerate(np.random.default_rng(1).uniform(0, 0.2, 40))}
    oracle = multipletests(list(many.values()), 0.05, "holm")[1]
    assert [holm(many)[name] for name in many] == pytest.approx(list(np.asarray(oracle)))


@given(samples, st.floats(0.05, 50))
@settings(max_examples=30, deadline=None)
def test_equivalence_is_the_90_percent_interval_inside_the_margin(values, margin):
    found = compare({"arm": values}, 1, margin)["arm"]
    low, high = stats.t.interval(0.9, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    if min(abs(low + margin), abs(high - margin)) > 1e-6:
        assert (found.verdict == "same") == (-margin < low and high < margin)


@pytest.mark.parametrize("values, better, margin, verdict", [
    (FOUR, 1, None, "better"), (FOUR, -1, None, "worse"), (FOUR, 0, None, "differs"), (FOUR, 1, 0.5, "better"),
    (FOUR, 1, 3.0, "same"),                                        # certain, and of no importance
    ([0.1, -0.1, 0.05, -0.03], 1, 0.5, "same"), ([0.1, -0.1, 0.05, -0.03], 1, 0.01, "open"),
    ([1.0], 1, None, "open"), ([], 1, None, "open"), ([1.0, math.nan, 1.2], 1, None, "open"),
    ([1.0, math.inf, 1.2], -1, 1.0, "open"),
    ([2.0, 2.0, 2.0], 1, None, "better"), ([0.0, 0.0, 0.0], 1, None, "open"), ([0.0, 0.0, 0.0], 1, 0.1, "same"),
    ([2.0, 2.0], 1, None, "open"),                                 # two that agree by chance are not yet a law
])
def test_verdicts(values, better, margin, verdict):
    found = compare({"arm": values}, better, margin)["arm"]
    assert found.verdict == verdict


@given(st.lists(samples, min_size=1, max_size=4), st.sampled_from([-1, 1]), st.floats(0.01, 1000))
@settings(max_examples=30, deadline=None)
def test_verdicts_know_neither_units_nor_signs(arms, better, scale):
    turn = {"better": "worse", "worse": "better", "open": "open", "same": "same"}
    plain = compare({str(i): v for i, v in enumerate(arms)}, better, 1.0)
    scaled = compare({str(i): [x * scale for x in v] for i, v in enumerate(arms)}, better, scale)
    mirrored = compare({str(i): [-x for x in v] for i, v in enumerate(arms)}, better, 1.0)
    turned = compare({str(i): v for i, v in enumerate(arms)}, -better, 1.0)
    for arm, found in plain.items():
        close = any(p is not None and abs(p - 0.05) < 1e-6 for p in (found.adjusted, found.same))
        if not close:
            assert scaled[arm].verdict == found.verdict
            assert mirrored[arm].verdict == turned[arm].verdict == turn[found.verdict]


def test_more_arms_make_no_verdict_easier():
    alone = compare({"a": FOUR}, 1)["a"]
    crowded = compare({"a": FOUR} | {str(i): list(RNG.normal(size=4)) for i in range(6)}, 1)["a"]
    assert alone.p == crowded.p and (alone.adjusted or 0) < (crowded.adjusted or 0)


def test_the_effect_size_has_no_bias():
    draws = RNG.normal(1.5, 1.0, (4000, 5))
    found = [effect(list(row)) or 0.0 for row in draws]
    assert np.mean(found) == pytest.approx(1.5, abs=float(4 * np.std(found) / math.sqrt(len(found))))
    assert effect([1.0, 2.0]) is None and effect([1.0, 1.0, 1.0]) is None


def test_seeds_needed_are_the_first_that_reach_the_power():
    values = [0.5, -0.2, 0.9, 0.3]
    n = needed(values)
    assert n is not None
    d = float(np.mean(values) / np.std(values, ddof=1))
    assert difference_power(n, d) >= 0.8 > difference_power(n - 1, d)
    assert (needed(values, level=0.0125) or 0) > n                 # a correction costs seeds
    assert needed([0.0001, -0.0001, 1.0, -1.0]) is None            # out of anyone's reach
    assert (needed([0.01, -0.01, 0.1, -0.1], margin=0.1) or 99) < 20        # but its absence is not
    both = {"a": values, "b": FOUR}
    assert more_seeds(both, compare(both, 1)) == {"a": n - 4}      # b is decided, so a alone shares the 5 %
    assert more_seeds(both, compare(both, 1), level=0.0125)["a"] > n - 4


@pytest.mark.parametrize("n, effect, margin", [(4, 0.0, 2.0), (8, 0.3, 1.2), (12, 0.8, 1.2)])
def test_the_power_of_equivalence_is_what_simulation_finds(n, effect, margin):
    draws = np.random.default_rng(n).normal(effect, 1.0, (20_000, n))
    half = stats.t.ppf(0.95, n - 1) * draws.std(1, ddof=1) / math.sqrt(n)
    found = np.mean((draws.mean(1) - half > -margin) & (draws.mean(1) + half < margin))
    assert equivalence_power(n, effect, margin) == pytest.approx(found, abs=0.015)


def test_false_claims_and_coverage_are_nominal():
    """Five arms that share one base: their differences are correlated, as in a real study."""
    rng, studies, claims, covered = np.random.default_rng(7), 400, 0, 0
    for _ in range(studies):
        cells = rng.normal(size=(5, 4)) + rng.normal(0, 3, size=4)          # arms x seeds; seeds differ more than arms
        found = compare({str(arm): list(cells[arm] - cells[0]) for arm in range(1, 5)}, 1)
        claims += any(each.verdict != "open" for each in found.values())
        low, high = found["1"].difference.low, found["1"].difference.high
        covered += low is not None and high is not None and low <= 0 <= high
    assert claims <= stats.binom.ppf(0.999, studies, 0.05)
    assert stats.binom.ppf(0.001, studies, 0.95) <= covered <= stats.binom.ppf(0.999, studies, 0.95)


@pytest.mark.parametrize("n, effect, margin", [(4, 0.0, 2.0), (8, -0.3, 1.2), (12, 0.5, 0.3)])
def test_the_power_of_being_no_worse_is_what_simulation_finds(n, effect, margin):
    draws = np.random.default_rng(1).normal(effect, 1, (20_000, n))
    bar = stats.t.ppf(0.95, n - 1) * draws.std(1, ddof=1) / math.sqrt(n)
    found = np.mean(draws.mean(1) + margin > bar)
    assert noninferiority_power(n, effect, margin) == pytest.approx(found, abs=0.015)


def test_no_worse_is_a_one_sided_question_that_takes_fewer_seeds():
    values = [0.01, -0.01, 0.1, -0.1]
    one, two = needed_not_worse(values, 0.1, 1), needed(values, margin=0.1)
    assert one is not None and two is not None and one < two
    assert needed_not_worse([-0.5, -0.45, -0.6], 0.1, 1) == needed([-0.5, -0.45, -0.6])      # it is worse
    assert needed_not_worse([0.5, 0.45, 0.6], 0.1, -1) == needed_not_worse([-0.5, -0.45, -0.6], 0.1, 1)


def test_leaving_the_margin_is_rarely_called_the_same():
    rng, studies = np.random.default_rng(8), 400
    claims = sum(any(each.verdict == "same" for each in compare(
        {str(arm): list(rng.normal(1.0, 0.4, 5)) for arm in range(3)}, 1, margin=1.0).values()) for _ in range(studies))
    assert claims <= stats.binom.ppf(0.999, studies, 0.05)


# ---------------------------------------------------------------- factors

FACTORS = {"schedule": ("tangent", "cosine", "linear"), "optimizer": ("adam", "lion")}


def grid(value, seeds: int = 5) -> dict:
    return {cell: {seed: value(cell, seed) for seed in range(seeds)} for cell in itertools.product(*FACTORS.values())}


def test_additive_factors_do_not_interact():
    shift = {"tangent": 0.0, "cosine": 1.0, "linear": -2.0, "adam": 0.0, "lion": 0.5}
    noise = RNG.normal(size=5)
    found = {(e.factors, e.levels): e.comparison for e in effects(
        FACTORS, grid(lambda cell, seed: sum(shift[level] for level in cell) + noise[seed]), 1)}
    for levels, size in ((("cosine",), 1.0), (("linear",), -2.0), (("lion",), 0.5), (("cosine", "lion"), 0.0),
                         (("linear", "lion"), 0.0)):
        (key,) = [key for key in found if key[1] == levels]
        assert found[key].difference.mean == pytest.approx(size, abs=1e-9)
    assert len(found) == 5                                         # 2 + 1 main effects, 2 interactions


def test_an_interaction_is_the_difference_of_differences():
    values = grid(lambda cell, seed: float(RNG.normal()))
    mean = {cell: np.mean(list(values[cell].values())) for cell in values}
    found = {e.levels: e.comparison.difference.mean for e in effects(FACTORS, values, 1)}
    assert found[("linear", "lion")] == pytest.approx(
        mean[("linear", "lion")] - mean[("linear", "adam")] - mean[("tangent", "lion")] + mean[("tangent", "adam")])
    assert found[("lion",)] == pytest.approx(np.mean(
        [mean[(schedule, "lion")] - mean[(schedule, "adam")] for schedule in FACTORS["schedule"]]))


def test_a_factor_of_two_levels_says_the_same_in_the_analysis_of_variance():
    values = grid(lambda cell, seed: float(RNG.normal()) + (cell[1] == "lion"))
    (line,) = [line for line in anova(FACTORS, values) if line.factors == ("optimizer",)]
    (lion,) = [e.comparison for e in effects(FACTORS, values, 1) if e.levels == ("lion",)]
    assert line.p == pytest.approx(lion.p) and line.df == (1.0, 4.0)
    assert [line.factors for line in anova(FACTORS, values)] == [
        ("schedule",), ("optimizer",), ("schedule", "optimizer")]


def test_factors_use_the_seeds_that_all_cells_have():
    values = grid(lambda cell, seed: float(seed))
    values[("cosine", "lion")][2] = math.nan
    del values[("linear", "adam")][4]
    assert {e.comparison.difference.n for e in effects(FACTORS, values, 1)} == {3}
    assert anova(FACTORS, grid(lambda cell, seed: 1.0, seeds=1)) == []


# ---------------------------------------------------------------- looking again and again


@pytest.mark.parametrize("n, t", [(3, 0.5), (3, 40.0), (5, -3.0), (12, 2.5), (20, 0.0)])
def test_the_bet_is_the_mixture_of_likelihood_ratios(n, t):
    """The closed form against the noncentral t density, mixed over effect sizes by hand."""
    mixed = integrate.quad(lambda d: stats.nct.pdf(t, n - 1, d * math.sqrt(n)) * stats.norm.pdf(d, 0, TAU),
                           -12 * TAU, 12 * TAU, limit=400, points=[0.0, t / math.sqrt(n)])[0]
    assert evidence(t, n) == pytest.approx(mixed / stats.t.pdf(t, n - 1), rel=1e-4)


@pytest.mark.parametrize("n", [3, 4, 8, 20])
def test_the_bet_is_fair(n):
    """Its expectation under no difference is 1: nobody wins by betting on chance."""
    expected = 2 * integrate.quad(lambda t: evidence(t, n) * stats.t.pdf(t, n - 1), 0, np.inf, limit=400)[0]
    assert expected == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("level", [0.05, 0.0125, 0.005])
def test_the_threshold_is_where_the_bet_pays_enough(level):
    for n in range(2, 40):
        if math.isfinite(threshold(n, level)):
            assert evidence(threshold(n, level), n) == pytest.approx(1 / level)
            assert threshold(n, level) > stats.t.ppf(1 - level / 2, n - 1)      # looking often costs something
        else:
            assert evidence(1e9, n) < 1 / level                    # no t is enough


def test_a_decision_stays_whatever_comes_later():
    values = [1.0, 1.1, 0.9, 1.05, 0.95]
    found = decisions({"a": values}, 1, most=20)["a"]
    assert (found.state, found.verdict) == ("decided", "better") and FIRST <= found.looks <= 5
    later = decisions({"a": values + [-50.0, 80.0]}, 1, most=20)["a"]
    assert (later.state, later.verdict, later.looks) == ("decided", "better", found.looks)
    assert decisions({"a": [-x for x in values]}, 1, most=20)["a"].verdict == "worse"
    assert decisions({"a": values}, 0, most=20)["a"].verdict == "differs"


def test_within_the_margin_is_the_same():
    small = [0.01, -0.01, 0.02, -0.02, 0.0, 0.01, -0.01]
    assert decisions({"a": small}, 1, 0.5, most=20)["a"].verdict == "same"
    assert decisions({"a": small}, 1, None, most=20)["a"].verdict == "open"


def test_the_hopeless_are_given_up():
    assert decisions({"a": [1.0, -1.0, 1.0, -1.1, 0.02, 0.1]}, 1, most=8)["a"].state == "hopeless"
    assert decisions({"a": [1.0, 1.2, 0.4]}, 1, most=20)["a"].state == "undecided"
    assert decisions({"a": [1.0, -1.0, 0.2]}, 1, most=3)["a"].reason == "undecided after all 3 seeds"
    assert "gave no value" in decisions({"a": [1.0]}, 1, most=20, lost={"a": 2})["a"].reason
    assert decisions({"a": []}, 1, most=20)["a"].state == "undecided"
    assert decisions({"a": [1.0, math.nan, 2.0]}, 1, most=20)["a"].verdict == "open"


def test_the_p_value_and_the_interval_agree():
    for seed in range(60):
        values = list(np.random.default_rng(seed).normal(1.0, 1.0, 8))
        looks = [sequence(values[:n], 0.05) for n in range(FIRST, 9)]
        outside = any(found.low is not None and found.high is not None and not found.low <= 0 <= found.high
                      for found in looks)
        p = p_value(values)
        assert p is not None and (p < 0.05) == outside
    assert p_value([1.0, 1.0]) is None and p_value([1.0, 1.0, 1.0, 1.0]) == pytest.approx(
        (1 + 4 * TAU ** 2) ** -1.5)                                # a bet on what does not vary pays the most there is
    assert p_value([0.0, 0.0, 0.0]) == 1.0


def looking(rng: np.random.Generator, effects: tuple[float, ...], most: int = 20) -> Any:
    """A study that looks after every seed, with arms that share the base's noise."""
    base = rng.normal(size=most) / math.sqrt(2)
    return decisions({str(i): list(rng.normal(size=most) / math.sqrt(2) + d - base) for i, d in enumerate(effects)}, 1,
                     most=most)


def test_looking_at_every_seed_makes_no_false_claims():
    studies, rng = 300, np.random.default_rng(5)
    claims = sum(any(found.verdict != "open" for found in looking(rng, (0.0,) * 4).values()) for _ in range(studies))
    assert claims <= stats.binom.ppf(0.999, studies, 0.05)
    # What the same looks do to the ordinary test: a claim in most studies.
    naive = sum(any(comparing.difference_p(list(values[:n])) < 0.05 for n in range(3, 21))
                for values in rng.normal(size=(100, 20)))
    assert naive > 15


def test_looking_makes_no_false_effects_of_factors():
    """Two factors that do nothing, looked at after every seed: neither main effects nor the interaction appear."""
    two = {"schedule": ("tangent", "cosine"), "optimizer": ("adam", "lion")}
    studies, rng = 200, np.random.default_rng(9)

    def noise(most: int = 20) -> dict:
        return {cell: dict(enumerate(rng.normal(size=most))) for cell in itertools.product(*two.values())}

    def claims(values: dict, judge: Any) -> bool:
        return any(found.comparison.verdict != "open" for found in effects(two, values, 1, None, judge))

    judge = functools.partial(anytime, most=20)             # a verdict at any look stays: the last look has them all
    assert sum(claims(noise(), judge) for _ in range(studies)) <= stats.binom.ppf(0.999, studies, 0.05)
    naive = sum(any(claims({cell: {seed: some[seed] for seed in range(n)} for cell, some in values.items()}, compare)
                    for n in range(3, 21)) for values in (noise() for _ in range(30)))
    assert naive > stats.binom.ppf(0.999, 30, 0.05)         # what the same looks do to the ordinary tests
    moved = {cell: {seed: value + 5.0 * (cell[1] == "lion") for seed, value in some.items()}
             for cell, some in noise().items()}
    lion, = (found for found in effects(two, moved, -1, None, judge) if found.levels == ("lion",))
    assert lion.comparison.verdict == "worse" and lion.comparison.difference.n == 20


def test_large_effects_are_decided_early():
    rng = np.random.default_rng(6)
    found = [looking(rng, (4.0, 0.0))["0"] for _ in range(100)]
    assert all(each.verdict == "better" for each in found)
    assert np.mean([each.looks for each in found]) < 6


def test_intervals_shrink_with_seeds_and_grow_with_caution():
    values = [1.0, 2.0, 1.5, 1.8, 1.2, 1.4, 1.6, 1.1]
    wide, narrow = sequence(values, 0.01), sequence(values, 0.05)
    assert (wide.half or 0) > (narrow.half or 0) > (interval(values).half or 0)
    assert sequence([1.0], 0.05).low is None and sequence([], 0.05).mean is None


@pytest.mark.parametrize("n, effect", [(2, 3.0), (2, 6.0), (3, 5.0), (4, 4.0), (5, 4.0)])
def test_the_power_of_a_paired_test_is_what_simulation_says(n, effect):
    """Also where the noncentral t of the libraries gives up: large effects at few seeds, which once counted as sure."""
    level = 0.0125
    values = np.random.default_rng(n).normal(effect, 1.0, (40_000, n))
    found = np.mean(np.asarray(stats.ttest_1samp(values, 0.0, axis=1)[1]) < level)
    assert difference_power(n, effect, level) == pytest.approx(found, abs=0.01)
