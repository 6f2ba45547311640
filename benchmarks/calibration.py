"""Are the engine's statements as certain as they say?   Simulated studies, judged by the engine's own functions.

    python benchmarks/calibration.py                 2,000 studies a line: some minutes on one core
    python benchmarks/calibration.py --studies 200

A study is arms x seeds: what a seed does to all arms alike (it cancels), and what it does to each, which is drawn from
four laws.  Student's t assumes the first; the others show what happens when it is wrong.

    normal    skewed (lognormal, sigma 0.8)    heavy (Student's t, 3 degrees of freedom)    unequal (spreads 1, 1, 3,
    0.3, 1)

"Monte Carlo error" is two standard errors of a share of 5 % at that number of studies.
"""

import argparse
import math
import time

import numpy as np
from scipy import stats

from studies.engine.compare import LEVEL, compare, difference_p, difference_power, more_seeds, needed
from studies.engine.decide import Decision, decisions

LAWS = ("normal", "skewed", "heavy", "unequal")
ARMS = 4                                # that are compared with the base
MOST = 20


def noise(law: str, rng: np.random.Generator, arms: int, seeds: int) -> np.ndarray:
    """Mean 0, spread 1 where it exists.   [1 + arms, seeds]"""
    shape = (1 + arms, seeds)
    if law == "skewed":
        s = 0.8
        return (rng.lognormal(0, s, shape) - math.exp(s * s / 2)) / math.sqrt((math.exp(s * s) - 1) * math.exp(s * s))
    if law == "heavy":
        return rng.standard_t(3, shape) / math.sqrt(3)
    return rng.normal(size=shape) * (np.resize([1, 1, 3, 0.3, 1], 1 + arms)[:, None] if law == "unequal" else 1)


def study(law: str, rng: np.random.Generator, effects: list[float], seeds: int) -> dict[str, list[float]]:
    """The paired differences of each arm to the base.  Effects: in standard deviations of a normal law's difference."""
    values = noise(law, rng, len(effects), seeds) / math.sqrt(2) + 5 * rng.normal(size=seeds)
    return {str(arm): list(values[arm + 1] - values[0] + effect) for arm, effect in enumerate(effects)}


def head(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def share(count: float, studies: int) -> str:
    return f"{100 * count / studies:5.1f} %"


def fixed(studies: int) -> None:
    """No arm differs; a margin at whose edge all of them lie."""
    print(f"\nSeeds fixed beforehand, {ARMS} arms, nominal: 5 % with a false claim, 95 % of intervals hold\n")
    head("law", "seeds", "a false better or worse", "a false same", "intervals that hold the truth")
    for law in LAWS:
        for seeds in (3, 5, 10):
            rng = np.random.default_rng([seeds, LAWS.index(law)])
            false = same = covered = 0
            for _ in range(studies):
                found = compare(study(law, rng, [0.0] * ARMS, seeds), 1)
                false += any(each.verdict != "open" for each in found.values())
                for each in found.values():
                    low, high = each.difference.low, each.difference.high
                    covered += low is not None and high is not None and low <= 0 <= high
                edge = compare(study(law, rng, [0.5] * ARMS, seeds), 1, margin=0.5)
                same += any(each.verdict == "same" for each in edge.values())
            print(f"| {law} | {seeds} | {share(false, studies)} | {share(same, studies)} | "
                  f"{share(covered, studies * ARMS)} |", flush=True)


def planning(studies: int) -> None:
    """Do the seeds that a report asks for decide?"""
    print("\nSeeds that are still needed: asked for after 4 seeds, by open arms of a study whose arms differ by d\n")
    head("d", "open after 4 seeds", "asked for, median in all", "needed, had d been known", "power there",
         "decided at what was asked for")
    for d in (0.7, 1.0, 1.5, 2.0):
        rng = np.random.default_rng(int(10 * d))
        asked, decided = [], 0
        for _ in range(studies // 2):
            whole = {"a": study("normal", rng, [d], 400)["0"]}
            first = {"a": whole["a"][:4]}
            n = 4 + more_seeds(first, compare(first, 1)).get("a", 10_000)
            if compare(first, 1)["a"].verdict == "open" and n <= 400:
                asked.append(n)
                decided += compare({"a": whole["a"][:n]}, 1)["a"].verdict == "better"
        known = needed([d + 1, d, d - 1]) or 0                 # three values of mean d and spread 1
        print(f"| {d} | {share(len(asked), studies // 2)} | {np.median(asked):.0f} | {known} | "
              f"{100 * difference_power(known, d):.0f} % | {share(decided, max(len(asked), 1))} |", flush=True)


def looking(studies: int) -> None:
    """No arm differs, and somebody looks after every seed from the 3rd to the 20th."""
    print(f"\nDeciding by looking: {ARMS} arms, a look after every seed from 3 to {MOST}, nominal: at most 5 %\n")
    head("law", "studies with a false claim", "the same looks with t tests and Bonferroni", "arms given up early")
    for law in LAWS:
        rng = np.random.default_rng([7, LAWS.index(law)])
        false = naive = hopeless = 0
        for _ in range(studies):
            values = study(law, rng, [0.0] * ARMS, MOST)
            found = decisions(values, 1, most=MOST)
            false += any(each.verdict != "open" for each in found.values())
            hopeless += sum(run_to_the_end(each, 0, MOST)[0] < MOST for each in values.values())
            naive += any(difference_p(some[:n]) < LEVEL / ARMS for some in values.values() for n in range(3, MOST + 1))
        print(f"| {law} | {share(false, studies)} | {share(naive, studies)} | {share(hopeless, studies * ARMS)} |",
              flush=True)


def run_to_the_end(values: list[float], better: int, most: int, level: float = LEVEL / ARMS) -> tuple[int, Decision]:
    """Seeds after which one arm, alone at its share of the 5 %, stops, and how."""
    for n in range(3, most + 1):
        found = decisions({"a": values[:n]}, better, most=most, level=level)["a"]
        if found.state != "undecided":
            return n, found
    raise AssertionError("the last look always ends it")


def saving(studies: int) -> None:
    """Seeds that deciding by looking takes, and those of a fixed design of the same error and the same power."""
    print(f"\nWhat looking costs and saves, an arm of {ARMS}, at the same error (5 % over the arms), normal law\n")
    head("d", f"decided by {MOST} seeds", "seeds used, mean", "fixed seeds of that power, d known beforehand",
         f"saved against {MOST} fixed", f"power of {MOST} fixed")
    for d in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0):
        rng = np.random.default_rng(int(10 * d) + 1)
        ends = [run_to_the_end(study("normal", rng, [d], MOST)["0"], 1, MOST) for _ in range(studies)]
        decided = sum(found.state == "decided" for _, found in ends) / studies
        used = float(np.mean([n for n, _ in ends]))
        alike = next((n for n in range(2, 200) if difference_power(n, d, LEVEL / ARMS) >= min(decided, 0.995)), 0)
        print(f"| {d} | {100 * decided:.1f} % | {used:.1f} | {alike if d else '–'} | {100 * (1 - used / MOST):.0f} % | "
              f"{100 * difference_power(MOST, d, LEVEL / ARMS) if d else 0:.0f} % |", flush=True)


def whole_study(studies: int) -> None:
    """Arms of every kind, the base included, which runs as many seeds as any arm."""
    effects = [10.0, 3.0, 1.0, 0.0]
    rng = np.random.default_rng(3)
    cells = []
    for _ in range(studies):
        used = [run_to_the_end(values, 1, MOST)[0] for values in study("normal", rng, effects, MOST).values()]
        cells.append(sum(used) + max(used))
    alike = next(n for n in range(2, 200) if difference_power(n, 1.0, LEVEL / ARMS) >= 0.8)
    print(f"\nA study with effects {effects}: {np.mean(cells):.1f} cells on average (5 to 95 %: "
          f"{np.percentile(cells, 5):.0f} to {np.percentile(cells, 95):.0f}), of {MOST * 5} with {MOST} seeds fixed; a "
          f"fixed design that finds d = 1 with 80 % takes {alike} seeds, {alike * 5} cells")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    began = time.time()
    print(f"{studies} studies a line; Monte Carlo error: {200 * math.sqrt(0.05 * 0.95 / studies):.1f} %; "
          f"t at 3 seeds: {stats.t.ppf(0.975, 2):.2f}")
    for part in (fixed, planning, looking, saving, whole_study):
        part(studies)
    print(f"\n{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
