"""Rounds: what runs next, until every arm is decided or the budget is spent.

    plan -> a wave of its cells that the budget allows -> run them -> look (decide.py) -> more seeds -> plan -> ...

A cell is known by its key, so planning again costs nothing, and a round that was interrupted is found half done.
Nothing here knows Ray: whoever calls says how a plan is made and how it is run.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from studies.engine.compare import LEVEL, needed
from studies.engine.decide import FIRST, Rule
from studies.engine.findings import Findings
from studies.engine.ledger import Ledger, write_whole
from studies.engine.plan import Cell, Plan, Shared
from studies.engine.study import BadInput

Seeds = dict[str, int]


def pursue(again: Callable[[Mapping[str, int] | None], Plan], go: Callable[[Plan], None], ledger: Ledger,
           concurrent: int, say: Callable[[str], None]) -> Plan:
    """Run until nothing is left to run; the plan as it stands then, with what was not started.

    again(seeds of each arm, None: as asked) -> a new plan;   go(plan) runs what it misses;   concurrent: trials at
    once. BadInput: the budget does not allow a single cell.
    """
    plan = again(None)
    seeds = {arm: sum(cell.arm == arm for cell in plan.cells) for arm in plan.arms}
    tried: set[str] = set()
    while True:
        todo = [cell for cell in plan.missing if cell.key not in tried]
        findings = Findings(plan, ledger)
        if todo:
            wave = affordable(findings, todo, concurrent)
            if not wave and not tried:
                raise BadInput(f"--hours: {spent(findings)}; not one of {len(todo)} cells fits: nothing was started")
            if not wave:
                say(f"{spent(findings)}; not started: {', '.join(cell.name for cell in todo)}")
                return plan
            remember(ledger, plan, seeds)
            go(plan.only(wave))
            tried |= {cell.key for cell in wave}
            plan = again(seeds)
            continue
        more = next_seeds(findings, seeds, concurrent)
        remember(ledger, plan, seeds)
        if plan.rule is not None:
            say(standing(findings))
        if more == seeds:
            return plan
        seeds = more
        plan = again(seeds)


def spent(findings: Findings) -> str:
    """The budget, and what is gone of it."""
    plan = findings.plan
    return f"{plan.budget.spell(findings.spent(), plan.unit)} are spent of {plan.budget.hours:g}"


def affordable(findings: Findings, todo: Sequence[Cell], concurrent: int) -> list[Cell]:
    """The next cells, in order, that the budget is expected to bear.

    Half of what is left is given out at a time, or what can run at once, so that costs are looked at again before the
    end; of cells that nothing is known about, only as many as can run at once.
    """
    plan = findings.plan
    if plan.budget.hours is None:
        return list(todo)
    left = plan.budget.hours - findings.spent()
    wave: list[Cell] = []
    made: set[str] = set()
    total = 0.0
    for cell in todo:
        cost = plan.cost(cell)
        stages: list[Shared] = [shared for shared in plan.shared if cell in shared.cells and shared.key not in made]
        total += (cost or 0.0) + sum(plan.cost(shared) or 0.0 for shared in stages)
        if left <= 0 or total > left or len(wave) >= concurrent and (cost is None or total > left / 2):
            break
        made |= {shared.key for shared in stages}
        wave.append(cell)
    return wave


def next_seeds(findings: Findings, seeds: Mapping[str, int], concurrent: int) -> Seeds:
    """Seeds of each arm after this look: more for the undecided, and for the base as many as anybody has.

    As many at a time as keep the cluster busy: to look rarely costs a few seeds too many and no error.
    """
    plan = findings.plan
    if plan.rule is None:
        return dict(seeds)
    undecided = [arm for arm, found in findings.decided().items() if found.state == "undecided"]
    step = max(1, concurrent // (len(undecided) + 1))
    more = {arm: min(seeds[arm] + step, plan.rule.most) if arm in undecided else seeds[arm] for arm in seeds}
    more[plan.base] = max(more.values())
    return more


def standing(findings: Findings) -> str:
    """One line about a look."""
    parts = []
    for arm, found in findings.decided().items():
        words = {"decided": found.verdict, "hopeless": f"given up ({found.reason})", "undecided": "undecided"}
        parts.append(f"{arm} {words[found.state]} after {found.looks}")
    return "look: " + "; ".join(parts)


def saved(findings: Findings) -> list[str]:
    """What deciding by looking saved, against designs whose seeds are fixed beforehand at the same error."""
    plan = findings.plan
    each = {arm: findings.cell_hours(arm) or 0.0 for arm in plan.arms}
    if plan.rule is None or not any(each.values()):
        return []
    used = sum(findings.done(arm) * each[arm] for arm in plan.arms)
    fixed = plan.rule.most * sum(each.values())
    spell = plan.budget.spell
    cells = sum(findings.done(arm) for arm in plan.arms)
    lines = [f"{cells} cells took {spell(used, plan.unit)}; {plan.rule.most} seeds for all {len(each)} arms, fixed "
             f"beforehand, would take {spell(fixed, plan.unit)}: {spell(fixed - used, plan.unit)} saved, at the same "
             f"error of {LEVEL * 100:.0f} %"]
    metric, decided = findings.deciding, findings.decided()
    if metric is None or any(found.state != "decided" for found in decided.values()):
        return lines
    values = findings.differences(metric.metric)
    wanted = [needed(some, metric.margin, LEVEL / len(values)) for some in values.values()]
    known = max((n for n in wanted if n is not None), default=0)
    if known:
        lines.append(f"who had known these differences beforehand would have fixed {known} seeds, for "
                     f"{spell(known * sum(each.values()), plan.unit)} and a power of 80 %")
    return lines


# ---------------------------------------------------------------- what --report finds


def remember(ledger: Ledger, plan: Plan, seeds: Mapping[str, int]) -> None:
    """Note how the seeds came about, so that a later --report judges them by the rule under which they were run.

    Forgotten only by a plan that fixes as many seeds of each of those arms: one of some arms, or of few seeds, says
    nothing of how the others came about.
    """
    path, past = ledger.folder / "decide.json", remembered(ledger, plan.scale)
    known = past[1] if past else {}
    if plan.rule is None:
        if past and all(sum(cell.arm == arm for cell in plan.cells) >= many for arm, many in known.items()):
            path.unlink()
        return
    write_whole(path, json.dumps({"scale": plan.scale, "most": plan.rule.most, "seeds": known | dict(seeds)}, indent=1))


def remembered(ledger: Ledger, scale: str) -> tuple[Rule, Seeds] | None:
    """The rule, and the seeds of each arm, of the last run, if that ran --decide at this scale."""
    path = ledger.folder / "decide.json"
    past = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return (Rule(past["most"]), past["seeds"]) if past.get("scale") == scale else None


def first_seeds(ledger: Ledger, scale: str, arms: Sequence[str], rule: Rule, reporting: bool) -> Seeds:
    """The seeds of the first plan under --decide: those before the first look, or those that the last run came to."""
    past = remembered(ledger, scale) if reporting else None
    return {arm: past[1].get(arm, FIRST) if past else min(FIRST, rule.most) for arm in arms}
