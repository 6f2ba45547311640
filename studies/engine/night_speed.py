"""Has the code become slower, or the machine?   Tokens per second of a night's cells, and what the nights before say.

    a cell's curve    -> its speed, and the kind of machine
    good nights       -> reference: each cell's median over the last GOOD of them, on this kind of machine    [pairs]
                      -> wander: how much whole nights differ here; the margin's part that is assumed at first
    slow nights since -> they add up: code is slow every night, a machine is not

Pairs of a night tell slow cells from chance (regression.py's sign test), but no statistics of one night tell a machine
that is slow all night from code that is.  So speed is called regressed where all of this holds, at a night's last look:

    the night     its pairs, with what they may err, lost more than the margin
    the nights    the mean loss of all slow nights in a row exceeds what machines here lose by chance, as rarely as a
                  claim may err; a night had a machine of its own, so it counts once, however many cells it has
    a second one  where the night has fewer than ENOUGH cells, which one neighbour's stay can cover, it is the second in
                  a row that is slow

A night that lost more than the margin, and more than half of what machines here lose by chance, does not pass: it is
inconclusive, is no part of the reference, and the next night that runs tells.  One that passed although its code is
slow (its machine was fast) is one of the reference's GOOD, whose median still knows the others.  Code that has become
faster is the measure when it is the median; what --accept names is at once.  benchmarks/nightly_calibration.py plants
slow-downs, and says what is found.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from studies.engine.ledger import Ledger, Record, curves
from studies.engine.regression import EVERY, SPEED, Finding, quantile, speed_finding
from studies.engine.watched import Watched

Cells = dict[tuple[str, int], Record]    # (arm, seed) -> what a night keeps of a cell
GOOD = 5                                # good nights that a cell's reference is the median of
ENOUGH = 64                             # cells of a night that no neighbour stays for
RECENT = 20                             # good nights that say how much speed wanders here
KNOWN, ASSUMED = 4, 0.4                 # before they do: like so many nights that differed by a part of the margin
WIDEST = 2.0                            # margins: what loses more never passes in silence
LOOKS = 2                               # a night has for speed, at most: its last look, and the one that fills it up


def speed(ledger: Ledger, record: Record) -> tuple[float | None, str | None]:
    """Tokens per second, the median over a cell's own training, and the kind of machine; (None, ...) where it found its
    weights made.

    A checkpoint that several cells share is trained as a stage, whose speed counts for all of them.
    """
    for key in ("", *record["stages"][::-1]):
        points = curves(ledger.outbox(f"stage-{key}" if key else record["key"])).get("train/tokens_per_second")
        if points:
            made = (ledger.stage(key) or {}) if key else record
            return statistics.median(points.values()), made.get("hardware")
    return None, record.get("hardware")


def kind(cell: Record) -> str:
    """The kind of machine that a cell's speed was measured on; of old records only the machine's name is known."""
    return cell.get("hardware") or cell["host"]


# ---------------------------------------------------------------- the nights before


@dataclass(frozen=True)
class Past:
    """What the nights before tell of speed, by claim: an arm, or all of them."""

    reference: Mapping[tuple[str, int], float] = field(default_factory=dict)        # tokens per second of a cell
    nights: int = 1                     # that it is the median of, for most cells
    wander: Mapping[str, tuple[float, int]] = field(default_factory=dict)   # spread of nights, degrees of freedom
    slow: Mapping[str, tuple[float, ...]] = field(default_factory=dict)         # losses of the slow nights in a row

    def by_chance(self, claim: str, level: float) -> float:
        """The mean loss of the slow nights and tonight that machines alone exceed with a probability of `level`."""
        size, known = self.wander[claim]
        again = 1 + len(self.slow.get(claim, ()))
        return quantile(level, known) * size * math.sqrt((1 / again + 1 / self.nights) / (1 + 1 / GOOD))

    def row(self, found: Finding) -> str:
        """Since when, in words."""
        again = len(self.slow.get(found.arm, ())) if found.metric == SPEED else 0
        return f", slow for {1 + again} nights in a row" if again else ""


def claims(watched: Watched) -> list[str]:
    """Whose speed is judged."""
    return [*watched.arms, *([EVERY] if len(watched.arms) > 1 else [])]


def past(nights: Sequence[Record], accepted: Collection[int], now: Cells, watched: Watched) -> Past:
    """nights: a study's, oldest first;  accepted: the numbers of those that the user made the measure of the next"""
    if watched.speed is None:
        return Past()
    kinds = {kind(cell) for cell in now.values()}
    here = [night for night in nights if kinds & {kind(cell) for cell in night["cells"]}]
    good = [at for at, night in enumerate(here) if night["verdict"] == "pass" or night["number"] in accepted]
    last = good[-1] if good else -1
    since = max((at for at in good if here[at]["number"] in accepted), default=0)
    measured = _measured([here[at] for at in good if at >= since], now)
    settled = [night for at, night in enumerate(here[:last + 1]) if at in good or night["verdict"] == "inconclusive"]
    return Past({at: statistics.median(some) for at, some in measured.items()},
                statistics.median_low(map(len, measured.values())) if measured else 1,
                {claim: _wander(settled, claim, watched.speed.size) for claim in claims(watched)},
                {claim: _slow(here[last + 1:], claim, now, watched.speed.size) for claim in claims(watched)})


def _measured(good: Sequence[Record], now: Cells) -> dict[tuple[str, int], list[float]]:
    """What the last GOOD nights measured of each of tonight's cells; none of those that a good night has had already.

    A night that did not run a seed stands in with its arm's median: a seed changes what is learned, hardly how fast.
    """
    configs, seen = {cell["config"] for cell in now.values()}, set()
    nights: dict[tuple[str, str], list[dict[int, float]]] = {}
    for night in good:
        fresh: dict[tuple[str, str], list[Record]] = {}
        for cell in night["cells"]:
            if cell["key"] not in seen and cell["status"] == "done" and cell["speed"]:
                fresh.setdefault((cell["arm"], kind(cell)), []).append(cell)
        seen |= {cell["key"] for cell in night["cells"]}
        for at, some in fresh.items():
            if any(cell["config"] in configs for cell in some):
                nights.setdefault(at, []).append({cell["seed"]: cell["speed"] for cell in some})
    found: dict[tuple[str, int], list[float]] = {}
    for (arm, seed), cell in now.items():
        if cell["key"] not in seen and (last := nights.get((arm, kind(cell)), [])[-GOOD:]):
            found[arm, seed] = [each[seed] if seed in each else statistics.median(each.values()) for each in last]
    return found


def _loss(night: Record, claim: str) -> float | None:
    return next((found["loss"] for found in night["findings"]
                 if (found["metric"], found["arm"]) == (SPEED, claim)), None)


def _wander(nights: Iterable[Record], claim: str, margin: float) -> tuple[float, int]:
    """How much the speed of a night differs from its reference by chance: a standard deviation, degrees of freedom.

    nights: those that passed or were accepted, and those that were inconclusive until a later one passed.  Nights that
    were faster say nothing (the code may be); what was accepted does, as far as WIDEST margins.
    """
    moved = [min(loss, WIDEST * margin) for night in nights if (loss := _loss(night, claim) or 0.0) > 0][-RECENT:]
    known = KNOWN + len(moved)
    return math.sqrt((KNOWN * (ASSUMED * margin) ** 2 + sum(loss * loss for loss in moved)) / known), known


def _slow(nights: Sequence[Record], claim: str, now: Cells, margin: float) -> tuple[float, ...]:
    """Losses of the last nights, as long as each was slow; the same cells, seen again, are one night."""
    losses: list[float] = []
    seen = {cell["key"] for cell in now.values()}
    for night in nights[::-1]:
        keys, loss = {cell["key"] for cell in night["cells"]}, _loss(night, claim)
        if loss is None or keys & seen:
            continue
        if loss <= margin:
            break
        losses.append(loss)
        seen |= keys
    return tuple(losses)


# ---------------------------------------------------------------- tonight


def speed_findings(watched: Watched, before: Past, now: Cells, last: bool) -> Iterable[Finding]:
    """What is said of each claim.   `last`: no look comes after this"""
    if watched.speed is None:
        return
    timed = [(cell["arm"], before.reference[at], cell["speed"]) for at, cell in now.items()
             if at in before.reference and cell["status"] == "done" and cell["speed"]]
    for claim in claims(watched):
        old, new = ([each[n] for each in timed if claim in (EVERY, each[0])] for n in (1, 2))
        found = speed_finding(claim, old, new, watched.speed.size, watched.level, LOOKS)
        usual, again = before.by_chance(claim, watched.level), before.slow.get(claim, ())
        sure = (last and found.loss is not None and statistics.fmean([found.loss, *again]) > usual
                and (again or len(timed) >= ENOUGH))
        yield replace(found, margin=max(found.margin, usual),
                      kind="open" if found.kind == "regressed" and not sure else found.kind)


def slow(found: Finding, watched: Watched, before: Past, last: bool) -> bool:
    """Whether a loss of speed may not pass: more than the margin and, at last, than half of what is usual here."""
    if watched.speed is None or found.metric != SPEED or found.loss is None:
        return False
    size = watched.speed.size
    usual = before.by_chance(found.arm, watched.level) if last else 0.0
    return found.loss > max(size, min(usual / 2, WIDEST * size))
