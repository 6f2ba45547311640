"""Was tonight slower than machines are slow?   Tokens per second of a night's cells, and how much they wander here.

    a cell's curve -> its speed, and the kind of machine       pairs of one kind -> ratios (regression.py)
    good nights    -> wander: the loss that machines alone exceed as rarely as a claim may err

Pairs tell a slow cell from a slow night, but no statistics of one night tell a machine that is slow all night from code
that is.  So a loss of speed must exceed what good nights on this kind of machine have differed by.  The margin of the
file is taken for what somebody knows of the machine; nights teach the rest: a quiet machine keeps the margin, one that
wanders widens it.  What loses more than twice the margin never passes in silence: where machines here wander as much,
it is called inconclusive, and --accept settles it.

Speed is called regressed by a night's last look alone, whose cells are spread over hours: a neighbour's busy hour is no
regression.  Where a night has few cells, such an hour can be most of it: with 16 seeds of two arms, and neighbours that
stay for ten cells, benchmarks/nightly_calibration.py finds 1 to 3 % of clean nights called regressed; with 64, none.
"""

import math
import statistics
from collections.abc import Iterable, Sequence

from studies.engine.ledger import Ledger, Record, curves
from studies.engine.regression import SPEED, Finding, quantile
from studies.engine.watched import Watched

RECENT = 20                             # good nights that say how much speed wanders here
KNOWN = 4                               # nights that what the margin says of machines counts for
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


def timed(both: Iterable[tuple[Record, Record]]) -> list[tuple[Record, Record]]:
    """The pairs of which both have a speed of their own: what was reused has its old one."""
    return [(old, new) for old, new in both if old["key"] != new["key"] and old["speed"] and new["speed"]]


def wander(good: Sequence[Record], watched: Watched) -> float:
    """The share of speed that a night on these machines loses by chance no more often than a claim may err.

    good: nights that passed or were accepted, oldest first.  Student's bound for one more loss, from those that there
    were, each as its interval's lower end: a few cells beside a neighbour are no slow night.  The margin counts like
    KNOWN nights, so it is the bound while there is none.  Nights that were faster say nothing (the code may be, or the
    good night had a neighbour); what was accepted does, as far as WIDEST margins: the user says that it may be.
    """
    if watched.speed is None:
        return 0.0
    size, level = watched.speed.size, watched.level
    last = [next((found for found in night["findings"][::-1] if found["metric"] == SPEED), None) for night in good]
    moved = [min(max(found["low"] or 0.0, 0.0), WIDEST * size) for found in last
             if found is not None and (found["loss"] or 0) > 0][-RECENT:]
    known = KNOWN * (size / quantile(level, KNOWN)) ** 2 + sum(loss * loss for loss in moved)
    return quantile(level, KNOWN + len(moved)) * math.sqrt(known / (KNOWN + len(moved)))


def slow(found: Finding, watched: Watched, usual: float) -> bool:
    """Whether a loss of speed may not pass in silence.   `usual`: as wander() says"""
    if watched.speed is None or found.metric != SPEED or found.loss is None:
        return False
    return found.loss > max(watched.speed.size, min(usual, WIDEST * watched.speed.size))
