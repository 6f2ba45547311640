"""How often does a night cry wolf, and how soon does it find one?   Simulated nights, judged by the engine's functions.

    python benchmarks/nightly_calibration.py               a minute on one core
    python benchmarks/nightly_calibration.py --nights 200

A night is arms x seeds; every night a commit touches the code, so every cell is trained anew: its value is what its
seed does (which cancels in a pair), and noise that is not the same as last night's.  A night that passes becomes the
one that the next is compared with, as in night.py, whose looks (nights.py) these are.  Speeds have noise too: of each
cell, of a neighbour that is busy for a tenth of the time, an hour or so each time, and of the night as a whole.

Clean nights: the true loss is 0; or, the hardest case, every metric's true loss is exactly its margin.
A planted loss stays from its first night on; "found" is the first night that says so.
The last two tables are about the file that ships, studies/nightly.toml, whose nights it states.  The one about speed
has nights on which every value is what it was: only speeds can tell, and nothing adds seeds but them.  A clean night
that does not pass is accepted in the morning, as people do who have looked.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from studies.engine.ledger import Record
from studies.engine.night_speed import wander
from studies.engine.nights import Cells, Verdict, cells_of, judge_night, settle
from studies.engine.study import Arm, Minimise, Scale, Study
from studies.engine.watched import Margin, Watched, read_nightly
from trainables.config import config

ARMS, METRICS, FALSE_ALARMS = ("base", "other"), ("test/loss", "test/other_loss"), 0.01
CENTRES = {"test/oracle_nll": 1.09, "valid/context_gain": 0.61}        # laptop cells of 600 steps
SPREADS = (0.005, 0.01, 0.015, 0.02, 0.03)      # nats; of four seeds at 600 steps, had the night another noise: .015
NIGHTS = (0.01, 0.02, 0.05, 0.1)        # how much the speed of whole nights differs (standard deviation)
BUSY, STAYS, SLOWED = 0.1, 10, 0.6      # a neighbour: its share of the time, cells that it stays for, what it leaves
SLOWER = 0.3                            # what is planted
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
    """A project's nights.  `spread`: of a pair's difference, in each metric's unit; `centres`: 1 where not said;
    `nights`: of the speeds of whole nights."""

    def __init__(self, what: Watched, spread: float | Mapping[str, float], law: str, rng: np.random.Generator,
                 centres: Mapping[str, float] | None = None, nights: float = 0.02):
        self.what, self.law, self.rng, self.nights_differ, self.number, self.seen = what, law, rng, nights, 0, 0
        self.metrics = list(what.margins)
        spreads = spread if isinstance(spread, Mapping) else dict.fromkeys(self.metrics, spread)
        self.spreads = np.array([spreads[metric] for metric in self.metrics])[:, None]
        self.centres = np.array([(centres or {}).get(metric, 1.0) for metric in self.metrics])[:, None]
        self.seeds = 0.05 * rng.normal(size=what.most)
        self.good: Record | None = None
        self.nights: list[Record] = []

    def night(self, loss: float, metrics: int = len(METRICS), anchored: bool = False, slower: float = 0.0,
              accept: bool = False) -> Verdict:
        """Run, look, look again, judge; `loss` in the first so many metrics.  `anchored`: the good night stays.
        `accept`: whatever is said, it is the measure of the next."""
        self.number += 1
        cells, usual = self._cells(loss, metrics, slower), wander(self.nights, self.what)

        def look(seeds: int, last: bool) -> Verdict:
            self.seen = seeds
            return judge_night(self.what, self.good, {at: cells[at] for at in cells if at[1] < seeds}, usual, last)

        verdict = settle(self.what, self.what.most if self.good else None, look)
        if (accept or verdict.word == "pass") and not (anchored and self.good):
            ran = {at: cell for at, cell in cells.items() if at[1] < self.seen}
            self.good = {"cells": list(((cells_of(self.good) if self.good else {}) | ran).values())}
            self.nights.append({"findings": [found.as_dict() for found in verdict.findings]})
        return verdict

    def _neighbour(self, cells: int) -> np.ndarray:
        """Which cells, one after the other, run beside a busy neighbour."""
        comes, busy, at = BUSY / (1 - BUSY) / STAYS, [], bool(self.rng.random() < BUSY)
        for chance in self.rng.random(cells):
            busy.append(at)
            at = bool(chance >= 1 / STAYS) if at else bool(chance < comes)
        return np.array(busy)

    def _cells(self, loss: float, metrics: int, slower: float) -> Cells:
        arms = self.what.arms
        shape = (len(arms), len(self.metrics), self.what.most)
        values = self.centres + self.seeds + self.spreads / math.sqrt(2) * LAWS[self.law](self.rng, shape)
        values[:, :metrics] += loss * self.centres[:metrics] * [[-self.what.better(m)] for m in self.metrics[:metrics]]
        speeds = 1000 * (1 - slower) * np.exp(0.02 * self.rng.normal(size=shape[::2]))
        speeds *= math.exp(self.nights_differ * self.rng.normal())
        speeds *= np.where(self._neighbour(speeds.size).reshape(-1, len(arms)).T, SLOWED, 1.0)      # seed after seed
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


def speeds(nights: int, projects: int, known: int = 10, most_nights: int = 5) -> None:
    """The file that ships, where only speeds differ."""
    what, = read_nightly(Path(__file__).parents[1] / "studies" / "nightly.toml").studies
    print(f"\nnightly.toml as it ships, values equal to the last bit: {nights} clean nights a line; then {projects} "
          f"projects a line, {100 * SLOWER:g} % slower after {known} clean nights; speed {what.speed}, {what.seeds} to "
          f"{what.most} seeds\n\n| whole nights differ by | clean nights: regressed | inconclusive | more than "
          f"{what.seeds} seeds | found on the first night | within 2 | within 3 | within 5 | passed although slower |\n"
          + "|---" * 9 + "|")
    for differ in NIGHTS:
        rng = np.random.default_rng([int(1e4 * differ)])
        run = Simulated(what, 0.0, "normal", rng, CENTRES, differ)
        run.night(0.0)
        said = [(run.night(0.0, accept=True).word, run.seen) for _ in range(nights)]
        words = [word for word, _ in said]
        clean = [share(words.count(word), nights) for word in ("regressed", "inconclusive")]
        more = f"{100 * sum(seen > what.seeds for _, seen in said) / nights:.0f} %"
        found, passed = [], 0
        for _ in range(projects):
            run = Simulated(what, 0.0, "normal", rng, CENTRES, differ)
            for _ in range(known + 1):
                run.night(0.0, accept=True)
            for number in range(1, most_nights + 1):
                word = run.night(0.0, slower=SLOWER).word
                passed += word == "pass"
                if word == "regressed":
                    found.append(number)
                if word in ("regressed", "pass"):       # what passed is the measure of the next: it stays unknown
                    break
        shares = [share(sum(number <= n for number in found), projects) for n in (1, 2, 3, 5)]
        print(f"| {100 * differ:g} % | {' | '.join([*clean, more, *shares, str(passed)])} |", flush=True)


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
    speeds(nights, max(nights // 5, 20))
    print(f"\n{time.time() - began:.0f} s, {time.process_time():.0f} s of one core")


if __name__ == "__main__":
    main()
