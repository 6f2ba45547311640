"""How often does a night cry wolf, and how soon does it find one?   Simulated nights, judged by the engine's functions.

    python benchmarks/nightly_calibration.py               a minute on one core
    python benchmarks/nightly_calibration.py --nights 200

A night is arms x seeds; every night a commit touches the code, so every cell is trained anew: its value is what its
seed does (which cancels in a pair), and noise that is not the same as last night's.  A night that passes becomes the
one that the next is compared with, as in night.py.  Speeds have noise too, some cells meet a busy neighbour, and some
nights are slow as a whole.

Clean nights: the true loss is 0; or, the hardest case, every metric's true loss is exactly its margin.
A planted loss stays from its first night on; "found" is the first night that says so.
The last table is about the file that ships, studies/nightly.toml, whose nights it states.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from studies.engine.ledger import Record
from studies.engine.nights import Cells, Verdict, judge_night, wander
from studies.engine.study import Arm, Minimise, Scale, Study
from studies.engine.watched import Margin, Watched, read_nightly
from trainables.config import config

ARMS, METRICS, FALSE_ALARMS = ("base", "other"), ("test/loss", "test/other_loss"), 0.01
CENTRES = {"test/oracle_nll": 1.09, "valid/context_gain": 0.61}        # laptop cells of 600 steps
SPREADS = (0.005, 0.01, 0.015, 0.02, 0.03)      # nats; of four seeds at 600 steps, had the night another noise: .015
LAWS: dict[str, Callable[[np.random.Generator, tuple], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: (rng.lognormal(0, 0.8, shape) - math.exp(0.32)) / math.sqrt(
        (math.exp(0.64) - 1) * math.exp(0.64)),
    "heavy": lambda rng, shape: rng.standard_t(3, shape) / math.sqrt(3),
}


@config
class Nothing:
    """A trial that is never run."""

    size: int = 0
    seed: int = 0


def watched(seeds: int, most: int, margin: float) -> Watched:
    study = Study(name="simulated", question="?", scales={"none": Scale(Nothing)},        # type: ignore[arg-type]
                  arms={name: Arm({"size": number}) for number, name in enumerate(ARMS)},
                  report=tuple(Minimise(metric) for metric in METRICS))
    return Watched(name="simulated", study=study, scale="none", arms=ARMS, assignments=(), data=None, seeds=seeds,
                   most=most, hours=None, speed=Margin(0.15, True), false_alarms=FALSE_ALARMS,
                   margins={metric: Margin(margin, True) for metric in METRICS})


class Simulated:
    """A project's nights.  `spread`: of a pair's difference, in each metric's unit; `centres`: 1 where not said."""

    def __init__(self, what: Watched, spread: float | Mapping[str, float], law: str, rng: np.random.Generator,
                 centres: Mapping[str, float] | None = None):
        self.what, self.law, self.rng, self.number = what, law, rng, 0
        self.metrics = list(what.margins)
        spreads = spread if isinstance(spread, Mapping) else dict.fromkeys(self.metrics, spread)
        self.spreads = np.array([spreads[metric] for metric in self.metrics])[:, None]
        self.centres = np.array([(centres or {}).get(metric, 1.0) for metric in self.metrics])[:, None]
        self.seeds = 0.05 * rng.normal(size=what.most)
        self.good: Record | None = None
        self.nights: list[Record] = []

    def night(self, loss: float, metrics: int = len(METRICS), anchored: bool = False) -> Verdict:
        """Run, look, look again, judge; `loss` in the first so many metrics.  `anchored`: the good night stays."""
        self.number += 1
        cells = self._cells(loss, metrics)
        verdict = Verdict("", "", ())
        for seeds in self.what.looks if self.good else [self.what.most]:
            some = {at: cell for at, cell in cells.items() if at[1] < seeds}
            verdict = judge_night(self.what, self.good, some, wander(self.nights, self.what))
            if verdict.word != "inconclusive":
                break
        if verdict.word == "pass" and not (anchored and self.good):
            self.good = {"cells": list(cells.values())}
            self.nights.append({"verdict": "pass", "findings": [found.as_dict() for found in verdict.findings]})
        return verdict

    def _cells(self, loss: float, metrics: int) -> Cells:
        arms = self.what.arms
        shape = (len(arms), len(self.metrics), self.what.most)
        values = self.centres + self.seeds + self.spreads / math.sqrt(2) * LAWS[self.law](self.rng, shape)
        values[:, :metrics] += loss * self.centres[:metrics] * [[-self.what.better(m)] for m in self.metrics[:metrics]]
        speeds = 1000 * math.exp(0.02 * self.rng.normal()) * np.exp(0.02 * self.rng.normal(size=shape[::2]))
        speeds *= np.where(self.rng.random(speeds.shape) < 0.1, 0.6, 1.0)
        return {(arm, seed): {"arm": arm, "seed": seed, "key": f"{self.number}", "config": "", "status": "done",
                              "reason": "", "host": "", "speed": float(speeds[a, seed]),
                              "metrics": {metric: float(values[a, m, seed]) for m, metric in enumerate(self.metrics)}}
                for a, arm in enumerate(arms) for seed in range(self.what.most)}


def share(count: int, total: int) -> str:
    """A share, and two standard errors of it."""
    p = (count + 2) / (total + 4)
    return f"{100 * count / total:.1f} ± {200 * math.sqrt(p * (1 - p) / total):.1f} %"


def clean(nights: int) -> None:
    print(f"\n{nights} clean nights a line; stated: at most {100 * FALSE_ALARMS:g} % false alarms.  4 to 16 seeds, "
          "margin 1 %\n\n| law | spread of a pair | true loss | called regressed | pass | inconclusive |\n"
          "|---|---|---|---|---|---|")
    what = watched(4, 16, 0.01)
    for law in LAWS:
        for spread, loss in ((0.005, 0.0), (0.02, 0.0), (0.005, 0.01), (0.02, 0.01)):
            run = Simulated(what, spread, law, np.random.default_rng([len(law), int(1e4 * spread), int(1e4 * loss)]))
            run.night(0.0)
            words = [run.night(loss, anchored=loss > 0).word for _ in range(nights)]
            print(f"| {law} | {100 * spread:g} % | {'0' if not loss else 'the margin'} | "
                  f"{share(words.count('regressed'), nights)} | {100 * words.count('pass') / nights:.0f} % | "
                  f"{100 * words.count('inconclusive') / nights:.0f} % |", flush=True)


def planted(runs: int, most_nights: int = 5) -> None:
    print(f"\nA planted loss of 2 % in one metric of both arms, {runs} projects a line\n\n"
          "| spread of a pair | margin | seeds | found on the first night | within 2 | within 3 | within 5 | "
          "passed although lost |\n|---|---|---|---|---|---|---|---|")
    for spread, margin, most in ((0.005, 0.01, 8), (0.01, 0.005, 8), (0.01, 0.005, 16), (0.01, 0.01, 16),
                                 (0.02, 0.005, 32), (0.02, 0.005, 64)):
        rng = np.random.default_rng([most, int(1e4 * spread)])
        line = [f"{100 * spread:g} %", f"{100 * margin:g} %", f"4 to {most}", *within(
            runs, most_nights, partial(Simulated, watched(4, most, margin), spread, "normal", rng))]
        print(f"| {' | '.join(line)} |", flush=True)


def within(runs: int, most_nights: int, project: Callable[[], Simulated]) -> list[str]:
    """2 % lost in each project's first metric: the shares found within 1, 2, 3 and 5 nights, the nights that passed."""
    found, passed = [], 0
    for _ in range(runs):
        run = project()
        run.night(0.0)
        for number in range(1, most_nights + 1):
            word = run.night(0.02, metrics=1).word
            passed += word == "pass"
            if word == "regressed":
                found.append(number)
                break
    return [*(share(sum(number <= n for number in found), runs) for n in (1, 2, 3, 5)), str(passed)]


def shipped(runs: int, most_nights: int = 5) -> None:
    """The file that ships, at the values that its cells have, by the spread of a pair's first metric."""
    what, = read_nightly(Path(__file__).parents[1] / "studies" / "nightly.toml").studies
    first, second = what.margins
    print(f"\nnightly.toml as it ships: a loss of 2 % in {first} of both arms, {runs} projects a line; margins "
          f"{', '.join(f'{metric} {margin}' for metric, margin in what.margins.items())}; {what.seeds} to {what.most} "
          f"seeds\n\n| spread of a pair in {first} | found on the first night | within 2 | within 3 | within 5 | "
          "passed although lost | clean nights: regressed | pass | inconclusive |\n" + "|---" * 9 + "|")
    for spread in SPREADS:
        rng, spreads = np.random.default_rng([int(1e4 * spread)]), {first: spread, second: 2 * spread}
        lost = within(runs, most_nights, partial(Simulated, what, spreads, "normal", rng, CENTRES))
        run = Simulated(what, spreads, "normal", rng, CENTRES)
        run.night(0.0)
        words = [run.night(0.0).word for _ in range(runs)]
        clean = [f"{100 * words.count(word) / runs:.1f} %" for word in ("regressed", "pass", "inconclusive")]
        print(f"| {spread:g} | {' | '.join([*lost, *clean])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1000)
    nights = parser.parse_args().nights
    began = time.time()
    what = watched(4, 16, 0.01)
    print(f"{what.claims} claims, each at {100 * what.level:.3f} %, {len(what.looks)} looks; behind ±: two standard "
          "errors")
    clean(nights)
    planted(max(nights // 5, 20))
    shipped(max(nights // 5, 20))
    print(f"\n{time.time() - began:.0f} s, {time.process_time():.0f} s of one core")


if __name__ == "__main__":
    main()
