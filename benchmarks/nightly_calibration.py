"""How often does a night cry wolf, and how soon does it find one?   Simulated nights, judged by the engine's functions.

    python benchmarks/nightly_calibration.py               some minutes on one core
    python benchmarks/nightly_calibration.py --nights 200 --only speed --seed 1

A night is arms x seeds; every night a commit touches the code, so every cell is trained anew: its value is what its
seed does (which cancels in a pair), and noise that is not the same as last night's.  A night that passes becomes the
one that the next is compared with, as in night.py, whose looks (nights.py) these are.

Speeds have three kinds of noise: a cell's own, so that pairs differ by 5 to 15 %; the machine's drift, which all cells
of an hour share and which no pair cancels, since the other night had another hour (at 10 %, it varies by 40 % between
extremes); and a neighbour that is busy for a tenth of the time, an hour or so each time, and leaves 60 %.

Clean nights: the true loss is 0; or, the hardest case, every metric's true loss is exactly its margin.
A planted loss stays from its first night on; "found" is the first night that says so.
The last tables are about the file that ships, studies/nightly.toml, whose nights it states.  Those about speed have
nights on which every value is what it was: only speeds can tell, and nothing adds seeds but them.  Nobody does anything
about a night that is inconclusive; one that is clean and called regressed is accepted.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from studies.engine.ledger import Record
from studies.engine.night_speed import Cells, past
from studies.engine.nights import Verdict, cells_of, judge_night, settle
from studies.engine.regression import SPEED
from studies.engine.study import Arm, Minimise, Scale, Study
from studies.engine.watched import Margin, Watched, read_nightly
from trainables.config import config

ARMS, METRICS, FALSE_ALARMS = ("base", "other"), ("test/loss", "test/other_loss"), 0.01
CENTRES = {"test/oracle_nll": 1.03, "valid/context_gain": 0.82}        # BERT and RoBERTa in README.md's table
SPREADS = (0.005, 0.01, 0.015, 0.02, 0.03)      # nats; what nightly.toml says of them
BUSY, STAYS, SLOWED = 0.1, 10, 0.6      # a neighbour: its share of the time, cells that it stays for, what it leaves
HOURS = 40                              # cells that a machine's drift lasts for
SLOWER = 0.3                            # what is planted
REMEMBERED = 40                         # nights, of a simulated history
LAWS: dict[str, Callable[[np.random.Generator, tuple], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: (rng.lognormal(0, 0.8, shape) - math.exp(0.32)) / math.sqrt(
        (math.exp(0.64) - 1) * math.exp(0.64)),
    "heavy": lambda rng, shape: rng.standard_t(3, shape) / math.sqrt(3),
}


@dataclass(frozen=True)
class Machine:
    """How much speed differs there (standard deviations, of logarithms)."""

    pairs: float                        # of two cells of one seed, the drift apart
    drift: float                        # of what all cells of an hour have in common


MACHINES = (Machine(0.05, 0.02), Machine(0.05, 0.05), Machine(0.1, 0.05), Machine(0.15, 0.1), Machine(0.15, 0.15))


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
                 centres: Mapping[str, float] | None = None, machine: Machine = MACHINES[0]):
        self.what, self.law, self.rng, self.machine, self.seen = what, law, rng, machine, 0
        self.metrics = list(what.margins)
        spreads = spread if isinstance(spread, Mapping) else dict.fromkeys(self.metrics, spread)
        self.spreads = np.array([spreads[metric] for metric in self.metrics])[:, None]
        self.centres = np.array([(centres or {}).get(metric, 1.0) for metric in self.metrics])[:, None]
        self.seeds = 0.05 * rng.normal(size=what.most)
        self.good: Record | None = None
        self.nights: list[Record] = []
        self.accepted: set[int] = set()

    def night(self, loss: float, metrics: int = len(METRICS), slower: float = 0.0) -> Verdict:
        """Run, look, look again, judge; `loss` in the first so many metrics."""
        cells = self._cells(loss, metrics, slower)
        before = past(self.nights[-REMEMBERED:], self.accepted, cells, self.what)

        def look(seeds: int, last: bool) -> Verdict:
            self.seen = seeds
            return judge_night(self.what, self.good, {at: cells[at] for at in cells if at[1] < seeds}, before, last)

        verdict = settle(self.what, self.what.most if self.good else None, look)
        ran = {at: cell for at, cell in cells.items() if at[1] < self.seen}
        self.nights.append({"number": len(self.nights), "verdict": verdict.word, "cells": list(ran.values()),
                            "findings": [found.as_dict() for found in verdict.findings if found.metric == SPEED]})
        if verdict.word == "pass":
            self.good = {"cells": list(((cells_of(self.good) if self.good else {}) | ran).values())}
        return verdict

    def accept(self) -> None:
        """The last night is the measure of the next, whatever was said of it."""
        self.accepted.add(len(self.nights) - 1)
        self.good = {"cells": list(((cells_of(self.good) if self.good else {}) | cells_of(self.nights[-1])).values())}

    def _neighbour(self, cells: int) -> np.ndarray:
        """Which cells, one after the other, run beside a busy neighbour."""
        comes, busy, at = BUSY / (1 - BUSY) / STAYS, [], bool(self.rng.random() < BUSY)
        for chance in self.rng.random(cells):
            busy.append(at)
            at = bool(chance >= 1 / STAYS) if at else bool(chance < comes)
        return np.array(busy)

    def _drift(self, cells: int) -> np.ndarray:
        """What all cells of a while have in common, in logarithms: it wanders within HOURS, and anew every night."""
        stays = math.exp(-1 / HOURS)
        fresh = self.machine.drift * math.sqrt(1 - stays ** 2) * self.rng.normal(size=cells)
        fresh[0] = self.machine.drift * self.rng.normal()
        return np.asarray(lfilter([1.0], [1.0, -stays], fresh))

    def _cells(self, loss: float, metrics: int, slower: float) -> Cells:
        arms, number = self.what.arms, len(self.nights)
        shape = (len(arms), len(self.metrics), self.what.most)
        values = self.centres + self.seeds + self.spreads / math.sqrt(2) * LAWS[self.law](self.rng, shape)
        values[:, :metrics] += loss * self.centres[:metrics] * [[-self.what.better(m)] for m in self.metrics[:metrics]]
        speeds = 1000 * (1 - slower) * np.exp(self.machine.pairs / math.sqrt(2) * self.rng.normal(size=shape[::2]))
        alone = np.exp(self._drift(speeds.size)) * np.where(self._neighbour(speeds.size), SLOWED, 1.0)
        speeds *= alone.reshape(-1, len(arms)).T                                                    # seed after seed
        return {(arm, seed): {"arm": arm, "seed": seed, "key": f"{number}", "config": "", "status": "done",
                              "reason": "", "host": "", "speed": float(speeds[a, seed]),
                              "metrics": {metric: float(values[a, m, seed]) for m, metric in enumerate(self.metrics)}}
                for a, arm in enumerate(arms) for seed in range(self.what.most)}


def share(count: int, total: int) -> str:
    """A share, and two standard errors of it."""
    p = (count + 2) / (total + 4)
    return f"{100 * count / total:.1f} ± {200 * math.sqrt(p * (1 - p) / total):.1f} %"


def clean(nights: int, seed: int) -> None:
    print(f"\n{nights} clean nights a line; stated: at most {100 * FALSE_ALARMS:g} % false alarms.  4 to 16 seeds, "
          "margin 1 %\n\n| law | spread of a pair | true loss | called regressed | pass | inconclusive |\n"
          "|---|---|---|---|---|---|")
    what = watched(4, 16, 0.01)
    for law in LAWS:
        for spread, loss in ((0.005, 0.0), (0.02, 0.0), (0.005, 0.01), (0.02, 0.01)):
            rng = np.random.default_rng([len(law), int(1e4 * spread), int(1e4 * loss), seed])
            run, words = Simulated(what, spread, law, rng), []
            run.night(0.0)
            for _ in range(nights):
                words.append(run.night(loss).word)
                if loss:                # from another good night each time: what one had by chance, all would share
                    run = Simulated(what, spread, law, rng)
                    run.night(0.0)
            print(f"| {law} | {100 * spread:g} % | {'0' if not loss else 'the margin'} | "
                  f"{share(words.count('regressed'), nights)} | {100 * words.count('pass') / nights:.0f} % | "
                  f"{100 * words.count('inconclusive') / nights:.0f} % |", flush=True)


def planted(runs: int, seed: int, most_nights: int = 5) -> None:
    print(f"\nA planted loss of 2 % in one metric of both arms, {runs} projects a line\n\n"
          "| spread of a pair | margin | seeds | found on the first night | within 2 | within 3 | within 5 | "
          "passed although lost |\n|---|---|---|---|---|---|---|---|")
    for spread, margin, most in ((0.005, 0.01, 8), (0.01, 0.005, 8), (0.01, 0.005, 16), (0.01, 0.01, 16),
                                 (0.02, 0.005, 32), (0.02, 0.005, 64)):
        rng = np.random.default_rng([most, int(1e4 * spread), seed])
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


def shipped(runs: int, seed: int, most_nights: int = 5) -> None:
    """The file that ships, at the values that its cells have, by the spread of a pair's first metric."""
    what, = read_nightly(Path(__file__).parents[1] / "studies" / "nightly.toml").studies
    first, second = what.margins
    print(f"\nnightly.toml as it ships: a loss of 2 % in {first} of both arms, {runs} projects a line; margins "
          f"{', '.join(f'{metric} {margin}' for metric, margin in what.margins.items())}; {what.seeds} to {what.most} "
          f"seeds\n\n| spread of a pair in {first} | found on the first night | within 2 | within 3 | within 5 | "
          "passed although lost | clean nights: regressed | pass | inconclusive |\n" + "|---" * 9 + "|")
    for spread in SPREADS:
        rng, spreads = np.random.default_rng([int(1e4 * spread), seed]), {first: spread, second: 2 * spread}
        lost = within(runs, most_nights, partial(Simulated, what, spreads, "normal", rng, CENTRES))
        run = Simulated(what, spreads, "normal", rng, CENTRES)
        run.night(0.0)
        words = [run.night(0.0).word for _ in range(runs)]
        clean = [f"{100 * words.count(word) / runs:.1f} %" for word in ("regressed", "pass", "inconclusive")]
        print(f"| {spread:g} | {' | '.join([*lost, *clean])} |", flush=True)


def speeds(nights: int, projects: int, seed: int, most: int | None = None, known: int = 10,
           most_nights: int = 5) -> None:
    """The file that ships, where only speeds differ."""
    what, = read_nightly(Path(__file__).parents[1] / "studies" / "nightly.toml").studies
    what = replace(what, most=most or what.most)
    print(f"\nnightly.toml's study with {what.seeds} to {what.most} seeds, speed {what.speed}, values equal to the "
          f"last bit: {nights} clean nights a line; then {projects} projects a line: {known} clean nights, and "
          f"{100 * SLOWER:g} % slower from then on\n\n| spread of pairs | drift | clean nights: regressed | "
          f"inconclusive | more than {what.seeds} seeds | of the first {known}: regressed | found on the first night | "
          "within 2 | within 3 | within 5 | slow nights that passed |\n" + "|---" * 11 + "|")
    for machine in MACHINES:
        rng = np.random.default_rng([int(1e4 * machine.pairs), int(1e4 * machine.drift), what.most, seed])
        run, said = Simulated(what, 0.0, "normal", rng, CENTRES, machine), []
        run.night(0.0)
        for _ in range(nights):
            said.append((run.night(0.0).word, run.seen))
            if said[-1][0] == "regressed":
                run.accept()
        words = [word for word, _ in said]
        clean = [share(words.count(word), nights) for word in ("regressed", "inconclusive")]
        more = f"{100 * sum(seen > what.seeds for _, seen in said) / nights:.0f} %"
        found, passed, early, nights_slow = [], 0, 0, 0
        for _ in range(projects):
            run = Simulated(what, 0.0, "normal", rng, CENTRES, machine)
            run.night(0.0)
            for _ in range(known):
                if run.night(0.0).word == "regressed":
                    early += 1
                    run.accept()
            for number in range(1, most_nights + 1):
                word = run.night(0.0, slower=SLOWER).word
                passed, nights_slow = passed + (word == "pass"), nights_slow + 1
                if word == "regressed":
                    found.append(number)
                    break
        shares = [share(sum(number <= n for number in found), projects) for n in (1, 2, 3, 5)]
        print(f"| {100 * machine.pairs:g} % | {100 * machine.drift:g} % | "
              f"{' | '.join([*clean, more, share(early, projects * known), *shares, f'{passed} of {nights_slow}'])} |",
              flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("values", "speed"))
    asked = parser.parse_args()
    began, projects = time.time(), max(asked.nights // 5, 20)
    what = watched(4, 16, 0.01)
    print(f"seed {asked.seed}; {what.claims} claims, each at {100 * what.level:.3f} %, {len(what.looks)} looks; "
          "behind ±: two standard errors")
    if asked.only != "speed":
        clean(asked.nights, asked.seed)
        planted(projects, asked.seed)
        shipped(projects, asked.seed)
    if asked.only != "values":
        for most in (None, 16):
            speeds(asked.nights, projects, asked.seed, most)
    print(f"\n{time.time() - began:.0f} s, {time.process_time():.0f} s of one core")


if __name__ == "__main__":
    main()
