"""The history of nights: what each measured, what was said about it, and which one is the measure of tonight.

    <out>/nights.jsonl           a line a night and study, or an acceptance; the file is replaced whole
    <out>/code/<digest>.json     the definitions that an arm used, by file: what has changed is found by comparing two

The good night, which tonight is compared with, is the last that passed or was accepted by hand, at tonight's settings:
cells are pairs where arm, seed and the whole config agree.  So a loss within the margin every night is found when it
has added up past the margin only if a night in between did not pass; a margin is what one may lose between two passes.

Speeds are compared with several good nights' on the same kind of machine (hardware.py), whatever its name; where there
is none, the verdict says so.  How much slower is too much says night_speed.py.
"""

import hashlib
import json
import math
import socket
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.engine.code_version import CodeVersions
from studies.engine.findings import Findings
from studies.engine.ledger import Record, read_from, write_whole
from studies.engine.night_speed import Cells, Past, kind, past, slow, speed, speed_findings
from studies.engine.regression import SPEED, Finding, metric_finding
from studies.engine.watched import Watched
from trainables.config import classes, fingerprint


class History:
    """The nights of one output folder."""

    def __init__(self, out: Path):
        self.out, self.path = out, out / "nights.jsonl"
        self.lines = read_from(self.path, 0)[0] if self.path.exists() else []

    def nights(self, study: str) -> list[Record]:
        """A study's nights, oldest first."""
        return [line for line in self.lines if line["kind"] == "night" and line["study"] == study]

    def good(self, watched: Watched, cells: Cells) -> Record | None:
        """The last good night that has pairs for these cells."""
        return next((night for night in self.good_nights(watched.name)[::-1] if pairs(cells_of(night), cells)), None)

    def good_nights(self, study: str) -> list[Record]:
        """Those that passed or were accepted by hand, oldest first."""
        accepted = self._accepted(study)
        return [night for night in self.nights(study) if night["verdict"] == "pass" or night["number"] in accepted]

    def past(self, watched: Watched, now: Cells) -> Past:
        """What the nights before tell of the speed of tonight's cells."""
        return past(self.nights(watched.name), self._accepted(watched.name), now, watched)

    def _accepted(self, study: str) -> set[int]:
        return {line["number"] for line in self.lines if line["kind"] == "accept" and line["study"] == study}

    def add(self, line: Record) -> None:
        """Append; the file is replaced whole, so that a reader, and whoever copies it, has whole lines."""
        self.lines.append(line)
        write_whole(self.path, "".join(json.dumps(each, allow_nan=False) + "\n" for each in self.lines))

    def accept(self, study: str) -> int | None:
        """Make a study's last night the measure of the next ones; its number, None where there is none."""
        nights = self.nights(study)
        if nights:
            self.add({"kind": "accept", "study": study, "number": nights[-1]["number"], "at": time.time()})
        return nights[-1]["number"] if nights else None

    # -- what code a night used

    def keep_code(self, table: Mapping[str, str]) -> str:
        """Keep an arm's definitions; their digest."""
        said = json.dumps(dict(table), indent=0, sort_keys=True)
        digest = hashlib.sha256(said.encode()).hexdigest()[:16]
        path = self.out / "code" / f"{digest}.json"
        if not path.exists():
            write_whole(path, said)
        return digest

    def changed(self, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
        """The definitions and packages that differ between two nights, by arms' digests."""
        old, new = self._tables(before), self._tables(now)
        return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))

    def _tables(self, digests: Mapping[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for digest in set(digests.values()):
            path = self.out / "code" / f"{digest}.json"
            found |= json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found


def cells_of(night: Record) -> Cells:
    return {(cell["arm"], cell["seed"]): cell for cell in night["cells"]}


def pairs(before: Cells, now: Cells) -> list[tuple[Record, Record]]:
    """Cells of the same arm, seed and config that are done on both nights."""
    both = [(before[at], now[at]) for at in now if at in before]
    return [(old, new) for old, new in both
            if old["config"] == new["config"] and old["status"] == new["status"] == "done"]


def cells_tonight(findings: Findings, watched: Watched) -> Cells:
    """What the ledger has of tonight's cells that have ended."""
    found: Cells = {}
    for cell in findings.plan.cells:
        record = findings.records.get(cell.key)
        if record is not None:
            fast, where = speed(findings.ledger, record)
            found[cell.arm, cell.seed] = {
                "arm": cell.arm, "seed": cell.seed, "key": cell.key, "config": fingerprint(cell.trial),
                "status": record["status"], "reason": record["reason"], "host": record["host"],
                "speed": fast, "hardware": where,
                "metrics": {name: finite(record["metrics"].get(name)) for name in watched.margins}}
    return found


def finite(value: float | None) -> float | None:
    """A value that can be compared, or nothing."""
    return value if value is not None and math.isfinite(value) else None


def code_of(plan: Any, arm: str, versions: CodeVersions) -> dict[str, str]:
    """The definitions that an arm's stages use."""
    table: dict[str, str] = {}
    for stage in next(cell for cell in plan.cells if cell.arm == arm).stages():
        table |= versions.table(classes(stage))
    return table


@dataclass(frozen=True)
class Verdict:
    """What is said of a study's night."""

    word: str                           # pass, regressed, inconclusive, failed
    why: str
    findings: tuple[Finding, ...]
    slow: bool = False                  # more than may pass


def settle(watched: Watched, seeds_of_good: int | None, look: Callable[[int, bool], Verdict]) -> Verdict:
    """Look until something can be said.   look(seeds, whether it is the last) -> what is said of so many

    A night that passed with other numbers, or has more seeds to give than the good one (None: there is none), is filled
    up.  The look at that is one of those planned, so what it finds counts; a metric that passed and is open does not.
    """
    looks = [watched.most] if seeds_of_good is None else [
        seeds for seeds in watched.looks if seeds <= max(seeds_of_good, watched.seeds)]
    done, verdict = looks[0], look(looks[0], len(looks) == 1)
    slow = verdict.slow                 # a machine that was slow for an hour, or code that is: the last look tells
    while (verdict.word == "inconclusive" or slow and verdict.word == "pass") and done < looks[-1]:
        done = looks[looks.index(done) + 1]
        verdict = look(done, done == looks[-1])
        slow = slow or verdict.slow
    moved = any(found.metric != SPEED and found.kind not in ("same", "open") for found in verdict.findings)
    if verdict.word == "pass" and done < watched.most and (moved or (seeds_of_good or 0) < watched.most):
        again = look(watched.most, True)
        if again.word in ("failed", "regressed") or again.word == "inconclusive" and again.slow:
            return again
    return verdict


def judge_night(watched: Watched, good: Record | None, now: Cells, before: Past | None = None,
                last: bool = True) -> Verdict:
    """Tonight's cells against the good night's.   `before`: what the nights tell of speed, else the good one alone;
    `last`: no look comes after this"""
    lost = [f"{cell['arm']} seed {cell['seed']} {cell['status']}: {cell['reason']}" for cell in now.values()
            if cell["status"] != "done"]
    lost += [f"{new['arm']} seed {new['seed']}: {metric} has no value any more"
             for old, new in (pairs(cells_of(good), now) if good else []) for metric in watched.margins
             if old["metrics"].get(metric) is not None and new["metrics"].get(metric) is None]
    before = before or past([good] if good else [], (), now, watched)
    findings = () if good is None else (*_findings(watched, cells_of(good), now),
                                        *speed_findings(watched, before, now, last))
    worse = [found for found in findings if found.kind == "regressed"]
    slower = [found for found in findings if slow(found, watched, before, last)]
    undecided = [found for found in findings if found.metric != SPEED and found.kind == "open"] + slower
    def verdict(word: str, why: str) -> Verdict:
        return Verdict(word, why, findings, bool(slower))

    if worse:
        return verdict("regressed", "; ".join([*(spell(found) + before.row(found) for found in worse), *lost]))
    if lost or not now:
        return verdict("failed", "; ".join(lost) or "no cell has ended")
    if good is None:
        return verdict("pass", "the first night of these settings: nothing to compare with")
    if undecided:
        tells = "; whether code or machine, the next night that runs tells" if slower else ""
        return verdict("inconclusive", "; ".join(spell(found) + before.row(found) for found in undecided) + tells)
    old = cells_of(good)
    if all(at in old and old[at]["key"] == cell["key"] for at, cell in now.items()):
        return verdict("pass", "reused: the code that these cells use has not changed")
    same = all(found.kind == "same" for found in findings if found.metric != SPEED)
    return verdict("pass", f"{'the same to the last bit' if same else 'within the margins'}"
                           f"{of_speed(old, now, findings)}")


def of_speed(before: Cells, now: Cells, findings: Sequence[Finding]) -> str:
    """What a night that passes leaves open of speed (its last finding is the one of all arms), in words."""
    timed = [(old, new) for old, new in pairs(before, now)
             if old["key"] != new["key"] and old["speed"] and new["speed"]]
    widest = next((each for each in findings[::-1] if each.metric == SPEED), None)
    if widest is None or widest.kind != "open" or not timed:
        return ""
    if not widest.pairs:
        there, here = ({kind(pair[n]) for pair in timed} for n in (0, 1))
        return (f"; speed could not be compared: tonight ran on {' and '.join(sorted(here))}, the good night on "
                f"{' and '.join(sorted(there))}")
    return f"; speed is open: {spell(widest)}"


def _findings(watched: Watched, before: Cells, now: Cells) -> Iterable[Finding]:
    looks, both = len(watched.looks), pairs(before, now)
    for arm in watched.arms:
        mine = [(old["metrics"], new["metrics"]) for old, new in both if new["arm"] == arm]
        for metric, margin in watched.margins.items():
            values = [(old[metric], new[metric]) for old, new in mine
                      if old.get(metric) is not None and new.get(metric) is not None]
            old, new = [value for value, _ in values], [value for _, value in values]
            size = margin.of(statistics.fmean(old)) if old else margin.size
            yield metric_finding(arm, metric, old, new, watched.better(metric), size, watched.level, looks)


def spell(found: Finding) -> str:
    """A finding in words: which metric, how much, its interval."""
    if found.loss is None:
        return f"{found.arm}: {found.metric} has no pairs"
    if found.metric == SPEED:
        bounds = "" if found.low is None or found.high is None else (
            f" (95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f} %)")
        way = "slower" if found.loss > 0 else "faster"
        return (f"{found.arm}: {100 * abs(found.loss):.1f} % {way}{bounds}, margin {100 * found.margin:.0f} %, "
                f"median of {found.pairs} pairs")
    bounds = "" if found.low is None or found.high is None else (
        f" (95 % interval {found.low:+.3g} to {found.high:+.3g})")
    share = f", {100 * found.share:+.1f} %" if found.share is not None and abs(found.share) < 10 else ""
    way = "worse" if found.loss > 0 else "better"
    return (f"{found.arm}: {found.metric} {found.before:.4g} -> {found.now:.4g}, {way} by {abs(found.loss):.3g}{share}"
            f"{bounds}, margin {found.margin:.3g}, {found.pairs} pairs")


def host() -> str:
    return socket.gethostname()
