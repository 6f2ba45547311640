"""Slow code is told from slow machines: by pairs, by several good nights, by slow nights in a row."""

from pathlib import Path
from typing import Any

import pytest
from toy_night import SAID, cells, found, judged, night, write

from studies.engine.nights import History, Verdict, cells_of, judge_night, settle
from studies.engine.regression import speed_finding
from studies.engine.watched import read_nightly

# MLflow, SQLAlchemy and Ray warn about each other; what is ours still stops a test.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


def test_speed_counts_on_the_same_machine(tmp_path):
    good, slow = cells(1.0), cells(1.0, key="other", speed=50.0)
    found = judged(tmp_path, good, slow)
    assert found.word == "inconclusive" and "all arms: 48.8 % slower" in found.why, "12 cells can have one neighbour"
    assert found.why.endswith("; whether code or machine, the next night that runs tells")
    other = judged(tmp_path, good, [cell | {"hardware": "1 x other"} for cell in slow])
    assert other.word == "pass" and other.why.endswith(
        "; speed could not be compared: tonight ran on 1 x other, the good night on h")
    a_little = judged(tmp_path, good, [cell | {"speed": cell["speed"] * 1.8} for cell in slow if cell["seed"] < 3])
    assert a_little.word == "pass" and "; speed is open: all arms: " in a_little.why
    assert judged(tmp_path, good, [cell | {"key": cell["key"].replace("other", "k")} for cell in slow]).word == "pass"
    good, slow = cells(1.0, seeds=32), cells(1.0, key="other", speed=30.0, seeds=32)
    assert "all arms: 60.6 % slower" in (found := judged(tmp_path, good, slow)).why and found.word == "regressed"
    assert judged(tmp_path, good, slow, last=False).word == "inconclusive", "a busy hour is no regression yet"
    a, b = ([cell | {"hardware": "2 x this", "host": name} for cell in some] for name, some in
            (("gpu-1", good), ("gpu-7", slow)))
    assert judged(tmp_path, a, b).word == "regressed", "autoscaled machines are others every night, of one kind"


class Nights:
    """A history of nights with many cells, whose values stay what they are; only speeds count."""

    def __init__(self, folder: Path, seeds: int = 32):
        self.watched, self.history = read_nightly(write(folder), found).studies[0], History(folder / "nights")
        self.seeds, self.number = seeds, 0

    def __call__(self, speed: float, verdict: str | None = None, key: str | None = None) -> Verdict:
        """A night of this speed, remembered with what is said of it, or with `verdict`."""
        self.number += 1
        some = cells(1.0, key=key or f"k{self.number}", speed=speed, seeds=self.seeds)
        now = cells_of({"cells": some})
        past = self.history.past(self.watched, now)
        said = judge_night(self.watched, self.history.good(self.watched, now), now, past)
        self.history.add(night(some, verdict or said.word, number=self.number, why=said.why,
                               findings=[each.as_dict() for each in said.findings]))
        return said

    def by_chance(self) -> float:
        """What a night may lose here."""
        past = self.history.past(self.watched, cells_of({"cells": cells(1.0, key="next", seeds=self.seeds)}))
        return past.by_chance("all arms", self.watched.level)


def test_a_slow_machine_is_told_from_slow_code_by_several_nights(tmp_path):
    """Nights here differ by 10 %: 30 % slower can be chance once, and three times in a row it cannot."""
    nights = Nights(tmp_path)
    assert nights(100.0).word == "pass" and nights.by_chance() > 0.3, "nothing is known of this machine"
    for speed in (108.0, 92.0, 110.0, 88.0, 104.0, 89.0, 106.0, 90.0, 101.0, 100.0):
        assert nights(speed).word == "pass"
    assert 0.25 < nights.by_chance() < 0.4
    first = nights(62.0)
    assert first.word == "inconclusive" and first.slow and not any(each.kind == "regressed" for each in first.findings)
    again = nights(62.0, key="k12")
    assert again.word == "inconclusive" and "in a row" not in again.why, "the same cells again are no second night"
    second = nights(62.0)
    assert second.word == "regressed" and second.why.endswith("slow for 2 nights in a row"), second.why
    assert nights(63.0).why.endswith("slow for 3 nights in a row"), "nobody has mended it"
    assert nights(100.0).word == "pass"
    nights(62.0)
    nights(103.0)
    assert nights(62.0).word == "inconclusive", "no row"


def test_a_slow_night_that_passed_does_not_become_the_measure_and_what_is_accepted_does(tmp_path):
    nights = Nights(tmp_path)
    for speed in (100.0, 101.0, 99.0, 100.0, 100.0):
        nights(speed)
    assert nights(87.0).word == "pass"
    assert nights(50.0).word == "regressed", "the five nights before it know better"
    assert nights.history.accept("toy") == 7
    assert nights(50.0).word == "pass" and nights(50.0).word == "pass"
    for _ in range(4):
        assert nights(150.0).word == "pass"
    assert nights(45.0).word == "regressed", "faster code is the measure by now"


def test_few_cells_need_a_second_night(tmp_path):
    nights = Nights(tmp_path, seeds=6)
    for speed in (100.0, 101.0, 99.0, 100.0, 100.0):
        nights(speed)
    assert nights(55.0).word == "inconclusive"
    assert nights(55.0).word == "regressed"


def test_a_seed_that_few_nights_ran_is_compared_with_its_arm_on_the_others(tmp_path):
    nights = Nights(tmp_path)
    nights(50.0)                                            # all seeds beside a neighbour
    nights.seeds = 4
    for _ in range(5):
        nights(100.0)
    nights.seeds = 32
    now = cells_of({"cells": cells(1.0, key="now", seeds=32)})
    reference = nights.history.past(nights.watched, now).reference
    assert reference["plain", 3] == 103.0 and reference["plain", 30] == 101.5


def test_machines_that_wander_are_known_and_code_that_became_faster_is_no_wandering(tmp_path):
    watched, history = read_nightly(write(tmp_path), found).studies[0], History(tmp_path)

    def by_chance(*losses: float, claim: str = "all arms", **more: Any) -> float:
        for loss in losses:
            fact = speed_finding("all arms", [1.0] * 20, [1.0 - loss] * 20, 0.15, 0.01).as_dict()
            history.add(night(cells(1.0), number=len(history.nights("toy")) + 1, findings=[fact], **more))
        return history.past(watched, cells_of({"cells": cells(1.0)})).by_chance(claim, watched.level)

    unknown = by_chance()
    assert 2 * 0.15 < unknown < 4 * 0.15, "twice the margin could be the machine, before there are nights"
    assert by_chance(*[-1.0] * 3) == pytest.approx(unknown), "faster"
    assert by_chance(0.4, verdict="regressed") == pytest.approx(unknown), "what was found is no wandering"
    assert (quiet := by_chance(*[0.02] * 10)) < 0.2
    assert by_chance(0.25, verdict="inconclusive") == pytest.approx(quiet), "nobody knows yet"
    assert (noisy := by_chance(0.02)) > quiet, "it went by, so it was the machine"
    assert by_chance(claim="plain") == pytest.approx(unknown)
    by_chance(0.9, verdict="regressed")
    history.accept("toy")
    assert noisy < by_chance() < 0.6, "one night that was accepted counts, as far as two margins"
    assert by_chance(*[0.01] * 20) < quiet, "of long ago"


def at_night(watched: Any, good: list[dict], now: list[dict]) -> tuple[Verdict, list[int]]:
    """What settle() says of a night whose cells would be these, and the seeds that it looked at."""
    seen: list[int] = []

    def look(seeds: int, last: bool) -> Verdict:
        seen.append(seeds)
        return judge_night(watched, night(good), cells_of({"cells": [cell for cell in now if cell["seed"] < seeds]}),
                           None, last)

    return settle(watched, len({cell["seed"] for cell in good}), look), seen


def test_a_slow_down_at_equal_values_is_found_by_more_seeds(tmp_path):
    """The shipped file: one look's eight pairs can never tell, 128 can; a busy hour at the beginning is none."""
    watched = read_nightly(write(tmp_path, SAID.replace("most = 6", "most = 64")), found).studies[0]
    good, slow = cells(1.0, seeds=64), cells(1.0, key="other", seeds=64)
    for cell in slow:
        cell["speed"] *= 0.45
    verdict, seen = at_night(watched, good, slow)
    assert verdict.word == "regressed" and seen == [4, 8, 16, 32, 64] and "all arms: 55.0 % slower" in verdict.why
    hour = [cell if cell["seed"] < 4 else cell | {"speed": cell["speed"] / 0.45} for cell in slow]
    verdict, seen = at_night(watched, good, hour)
    assert verdict.word == "pass" and seen == [4, 8, 16, 32, 64], "once slow, the last look tells"
    one = [cell if cell["arm"] == "fancy" else cell | {"speed": cell["speed"] / 0.45} for cell in slow]
    verdict, _ = at_night(watched, good, one)
    assert verdict.word == "regressed" and verdict.why.startswith("fancy: 55.0 % slower")


@pytest.mark.parametrize("what", ["test/quality", "tokens per second"])
def test_what_the_look_that_fills_a_night_up_finds_is_not_thrown_away(tmp_path, what):
    """The first four seeds lose less than the margin, and pass; all 64 lose more."""
    watched = read_nightly(write(tmp_path, SAID.replace("most = 6", "most = 64")), found).studies[0]
    good, now = cells(1.0, seeds=64), cells(1.0 + 1e-9, key="other", seeds=64)
    for cell in now:
        first = cell["seed"] < 4
        if what == "test/quality":
            cell["metrics"][what] -= (0.04 if first else 0.11) + 1e-6 * cell["seed"]
        else:
            cell["speed"] *= 0.9 if first else 0.45
    verdict, seen = at_night(watched, good, now)
    assert verdict.word == "regressed" and seen == [4, 64]
    assert {found.metric for found in verdict.findings if found.kind == "regressed"} == {what}
