"""Answers: what paired seeds say about claims.

    arm and base, seed by seed --> differences [n] --paired t--> p --Holm, over the claims--> adjusted ---.
                                                   --within the margin--> p --Holm--> adjusted -----------+--> verdict

    supported    the difference goes the way the claim says, beyond chance; of a claim that two are the same, or one no
                 worse: it lies within the margin, beyond chance
    refuted      it goes the other way, beyond chance; or it is smaller than the margin, beyond chance, where the claim
                 says there is one; of a claim that two are the same: they differ
    undecided    these seeds say neither; how many more would, were mean and spread what they look like

Beyond chance: of all claims that are asked together and whose difference is nothing, one or more is called supported or
refuted with a probability of 5 % at most; the same for margins.  It holds for a number of seeds that was fixed
beforehand, so answers look at seeds 0 to n - 1 whatever else was run.  "Same", "refuted" and the rest are said of the
scale that was asked, and of no other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from studies.engine.claims import Asked, Claim
from studies.engine.compare import (
    LEVEL,
    Interval,
    difference_p,
    effect,
    equivalence_p,
    holm,
    interval,
    judge,
    needed,
    needed_not_worse,
    pairs,
    spread,
    testable,
)
from studies.engine.findings import Findings
from studies.engine.ledger import curves
from studies.engine.plan import Cell
from trainables.stages import Store
from trainables.trial import read_lines

Verdict = Literal["supported", "refuted", "undecided"]
BETTER = {"less": -1, "more": 1, "same": 0, "not more": -1, "not less": 1}


@dataclass(frozen=True)
class Answer:
    """A claim, and what its cells say.   `more`: seeds that an undecided one still needs, None: nobody knows"""

    claim: Claim
    verdict: Verdict
    difference: Interval                # arm - base, 95 %, uncorrected
    arm: Interval
    base: Interval
    p: float | None                     # paired t test of no difference, two-sided, for itself
    adjusted: float | None              # after Holm's correction over the claims
    same: float | None                  # of leaving the margin, after Holm; None without a margin
    effect: float | None
    more: int | None
    pairs: tuple[tuple[int, str, str], ...]        # seed, the arm's cell, the base's: the keys behind it
    unit: str                                      # what hours are counted in
    hours: float | None                            # that `more` seeds of both arms would take
    note: str = ""                                 # what is lacking


def answers(asked: Sequence[tuple[Asked, Findings]], store: Store) -> list[Answer]:
    """Every claim's answer, in order; corrected over all of them."""
    measured = {claim: (findings, *(values(findings, arm, claim, store) for arm in (claim.arm, claim.base)))
                for group, findings in asked for claim in group.claims}
    differences = {claim: pairs(arm, base) for claim, (_, arm, base) in measured.items()}
    p, adjusted, within = corrected(differences)
    verdicts: dict[Claim, Verdict] = {
        claim: verdict(claim, some, adjusted.get(claim.name), within.get(claim.name))
        for claim, some in differences.items()}
    undecided = sum(said == "undecided" for said in verdicts.values())
    found = []
    for claim, (findings, arm, base) in measured.items():
        some = differences[claim]
        more = _more(claim, some, undecided) if verdicts[claim] == "undecided" else None
        each = [findings.cell_hours(name) for name in (claim.arm, claim.base)]
        hours = more * sum(h or 0.0 for h in each) if more and all(each) else None
        cells = {(cell.arm, cell.seed): cell.key for cell in findings.plan.cells}
        found.append(Answer(
            claim=claim, verdict=verdicts[claim], difference=interval(some), arm=interval(list(arm.values())),
            base=interval(list(base.values())), p=p.get(claim.name), adjusted=adjusted.get(claim.name),
            same=within.get(claim.name), effect=effect(some), more=more, unit=findings.plan.unit, hours=hours,
            pairs=tuple((seed, cells[claim.arm, seed], cells[claim.base, seed])
                        for seed in sorted(arm.keys() & base.keys())),
            note=_note(findings, claim, arm, base)))
    return found


def corrected(differences: Mapping[Claim, Sequence[float]]
              ) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """p of no difference, the same after Holm, and p of leaving the margin after Holm; of those that can be tested."""
    able = {claim: some for claim, some in differences.items() if testable(some)}
    p = {claim.name: difference_p(some) for claim, some in able.items()}
    within = {claim.name: equivalence_p(some, claim.margin) if "not" not in claim.direction else
              noninferiority_p(some, claim.margin, BETTER[claim.direction])
              for claim, some in able.items() if claim.margin}
    return p, holm(p), holm(within)


def noninferiority_p(values: Sequence[float], margin: float, better: int) -> float:
    """One-sided t test of a mean difference that is worse than the margin.   better: +1 where more is"""
    worth = [value * better for value in values]
    if spread(worth) == 0:
        return 0.0 if worth[0] > -margin else 1.0
    return float(np.asarray(stats.ttest_1samp(worth, -margin, alternative="greater"), dtype=float)[1])


def verdict(claim: Claim, values: Sequence[float], adjusted: float | None, within: float | None) -> Verdict:
    """What the differences say of the claim."""
    if adjusted is None:
        return "undecided"
    mean, better = interval(values).mean, BETTER[claim.direction]
    if claim.direction in ("not more", "not less"):
        if within is not None and within < LEVEL:
            return "supported"
        return "refuted" if judge(mean, adjusted, None, better) == "worse" else "undecided"
    said = judge(mean, adjusted, within, better)
    if said == "open":
        return "undecided"
    return "supported" if said in ("better", "same" if claim.direction == "same" else "") else "refuted"


def _more(claim: Claim, values: Sequence[float], undecided: int) -> int | None:
    """Seeds that would decide it, with 80 % power, at what Holm leaves to each of the undecided."""
    if not testable(values):
        return None
    level = LEVEL / max(undecided, 1)
    wanted = needed(values, claim.margin or None, level) if "not" not in claim.direction else \
        needed_not_worse(values, claim.margin, BETTER[claim.direction], level)
    return None if wanted is None else max(wanted - len(values), 1)


# ---------------------------------------------------------------- values


def values(findings: Findings, arm: str, claim: Claim, store: Store) -> dict[int, float]:
    """Seed -> the claim's metric, of the arm's cells that are done."""
    if not claim.at:
        return {seed: value for seed, value in findings.values(arm, claim.metric).items() if math.isfinite(value)}
    found = {}
    for cell in findings.cells(arm):
        value = at_step(findings, cell, claim.metric, claim.at, store) if findings.status(cell) == "done" else None
        if value is not None and math.isfinite(value):
            found[cell.seed] = value
    return found


def at_step(findings: Findings, cell: Cell, metric: str, step: int, store: Store) -> float | None:
    """A point of the cell's curve.  A cell that found its checkpoint made has none of its own; the checkpoint has."""
    told = curves(findings.ledger.outbox(cell.key)).get(metric)
    if told is not None:
        return told.get(step)
    for stage in reversed(cell.stages()):
        path = store.path(stage) / "curve.jsonl"
        if path.exists():
            last = [row[metric] for row in read_lines(path) if row["step"] == step and metric in row]
            if last:
                return last[-1]
    return None


def _note(findings: Findings, claim: Claim, arm: Mapping[int, float], base: Mapping[int, float]) -> str:
    """What is lacking, and why."""
    notes = []
    for name, some in ((claim.arm, arm), (claim.base, base)):
        ended = [f"seed {cell.seed} {status}" for cell in findings.cells(name)
                 if (status := findings.status(cell)) in ("failed", "diverged")]
        waiting = sum(findings.status(cell) == "waiting" for cell in findings.cells(name))
        without = findings.done(name) - len(some)
        lacking = [*ended, *([f"{waiting} not run"] if waiting else []),
                   *([f"{without} without {claim.asked}"] if without else [])]
        notes += [f"{name}: {', '.join(lacking)}"] if lacking else []
    return "; ".join(notes)
