"""What is said and written of searches, and read again: nothing but search.json is needed for that.

    describe(tasks, ...) -> lines        before: what varies, what is sought, how far it is, what it will cost
    told(searches)       -> search.json  a dict an arm: what was tried, what was chosen, what to doubt
    outcome(said)        -> search.md    the same for people
    points(said, names)  -> arm -> the chosen points, of those searches that are still the ones asked for
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces.corners import spell
from search_spaces.domains import Choice, LogUniform, Point
from studies.engine import found
from studies.engine.bound import Bound
from studies.engine.ledger import write_whole
from studies.engine.plan import Plan
from studies.engine.search import IN_A_ROW, Search
from studies.engine.study import Maximise, Minimise
from studies.engine.tracking import shown
from studies.engine.tuning import Task, distribution

Said = Mapping[str, Mapping[str, Any]]           # arm -> its entry of search.json


def describe(plan: Plan, tasks: Mapping[str, Task], searches: Mapping[str, Search], bound: Bound, url: str
             ) -> list[str]:
    """The search as markdown.   searches: those that the storage may know already"""
    tune = plan.study.tune
    assert tune is not None
    left = {arm: max(searches[arm].left(), 0) if arm in searches else tune.trials for arm in plan.arms}
    usual = [plan.history[arm] for arm in plan.arms if arm in plan.history]
    seconds = sum(usual) / len(usual) * plan.share if usual else None
    lines = [f"# search inside {'each arm' if len(plan.arms) > 1 else next(iter(plan.arms))}", "",
             f"- {tune.trials} points{' an arm' if len(plan.arms) > 1 else ''} by {tune.sampler}; given up after "
             f"{IN_A_ROW} failures in a row",
             f"- expected: {bound.expectation(searches.values(), sum(left.values()), seconds)}",
             f"- remembered in {shown(url)}"]
    for arm, task in tasks.items():
        sought = ", ".join(f"{'most' if isinstance(metric, Maximise) else 'least'} {metric.metric}"
                           for metric in task.select)
        ended = _states(searches[arm].states()) if arm in searches else ""
        lines += ["", f"{arm}: {ended or 'nothing yet'}; {left[arm]} to go",
                  f"  sought: {sought}", f"  stopped early by: {task.prune or 'nothing'}"]
        lines += [f"  {p.name}: {distribution(p.domain)}" for p in task.space.parameters()]
    return [*lines, ""]


def told(searches: Mapping[str, Search]) -> dict[str, dict[str, Any]]:
    """Everything about the searches that a report may want."""
    said = {}
    for arm, one in searches.items():
        chosen = found.chosen(one)
        said[arm] = {
            "search": one.name, "storage": shown(one.memory.url), "sampler": str(one.tune.sampler),
            "prune": str(one.prune) if one.prune else None,
            "pruned on": [_goal(metric) for metric in one.prune.metrics] if one.prune else [],
            "goals": {goal["metric"]: goal["way"] for goal in map(_goal, one.select)},
            "parameters": {p.name: {
                "options": list(p.domain.names) if isinstance(p.domain, Choice) else None,
                "low": getattr(p.domain, "low", None), "high": getattr(p.domain, "high", None),
                "log": isinstance(p.domain, LogUniform) or getattr(p.domain, "log", False)}
                for p in one.space.parameters()},
            "states": one.states(), "chosen": [trial.number for trial in chosen],
            "front": [trial.number for trial in found.front(one)],
            "warnings": [warning for trial in chosen for warning in found.doubts(one, trial.params)],
            "importances": found.importances(one), "trials": found.table(one)}
    return said


def outcome(said: Said) -> list[str]:
    """What came of the searches: points, and what to doubt."""
    lines = []
    for arm, one in said.items():
        lines += [f"{arm}: {_states(one['states'])}" + (
            "" if one["chosen"] else "; no point was finished, so the arm stays as it is")]
        for trial in (one["trials"][number] for number in one["chosen"]):
            values = ", ".join(f"{metric} {value:.4g}" for metric, value in trial["values"].items())
            lines += [f"  {values} at point {trial['number']}: {spell(trial['point'])}"]
        lines += [f"  warning: {warning}" for warning in one["warnings"]]
    return lines


def points(said: Said, names: Mapping[str, str]) -> dict[str, list[Point]]:
    """Arm -> the points chosen, where what was written is of the search of that name.   names: arm -> search"""
    return {arm: [one["trials"][number]["point"] for number in one["chosen"]]
            for arm, one in said.items() if one["search"] == names.get(arm)}


def write(said: Said, folder: Path) -> None:
    """search.md for people, search.json for programs and the report."""
    told = json.dumps(strict(said), indent=1, allow_nan=False)
    for name, text in (("search.md", "\n".join(outcome(said))), ("search.json", told)):
        write_whole(folder / name, text + "\n")


def strict(said: Any) -> Any:
    """The same for JSON, which knows no NaN and no infinity: what a curve or a score may be is null."""
    if isinstance(said, Mapping):
        return {name: strict(value) for name, value in said.items()}
    if isinstance(said, (list, tuple)):
        return [strict(value) for value in said]
    return None if isinstance(said, float) and not math.isfinite(said) else said


def read(folder: Path) -> Said:
    """What `write` wrote; nothing where it did not."""
    path = folder / "search.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _states(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _goal(metric: Minimise | Maximise) -> dict[str, str]:
    return {"metric": metric.metric, "way": "least" if isinstance(metric, Minimise) else "most"}
