"""Planning: a study is expanded, and what the ledger and the store have of it is looked up.

    arms x seeds -> cells, each known by its key
    cells without a record -> the stages they stand on -> those that two or more of them share are made first, once

Plain Python: nothing here starts Ray, so --dry-run answers at once.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from studies.engine import stale
from studies.engine.budget import Budget
from studies.engine.decide import Rule
from studies.engine.ledger import FINISHED, Ledger, Record
from studies.engine.plan import Cell, Plan, Shared, cell_key
from studies.engine.study import Resources, Settles, Study
from trainables.config import ConfigError, flat, to_dict
from trainables.stages import Stage, Store, upstream


def make_plan(study: Study, *, scale: str, why: str, ledger: Ledger, store: Store, resources: Resources,
              seeds: int | Mapping[str, int], arms: Iterable[str], data: Any = None, assignments: Iterable[str] = (),
              budget: Budget = Budget(), rule: Rule | None = None) -> Plan:
    """Expand the study and look up what is there.  `seeds`: of all arms, or of each.

    ConfigError when an assignment does not fit an arm.
    """
    def build(arm: str, seed: int) -> Any:
        trial = study.trial(scale, arm, seed=seed, data=data, assignments=assignments)
        try:
            return trial.settled(store) if isinstance(trial, Settles) else trial
        except ConfigError as error:
            raise ConfigError(error.path, f"{error.problem} [arm {arm!r}]") from None

    arms = tuple(arms)
    each = seeds if isinstance(seeds, Mapping) else dict.fromkeys(arms, seeds)
    trials = {(arm, seed): build(arm, seed) for arm in arms for seed in range(each[arm])}
    known: dict[Stage, str] = {}
    cells = tuple(Cell(arm, seed, trial, cell_key(trial, known=known, code=store.code))
                  for (arm, seed), trial in trials.items())
    records = {cell.key: record for cell in cells if (record := ledger.cell(cell.key)) is not None}
    missing = [cell for cell in cells if cell.key not in records or records[cell.key]["status"] not in FINISHED]
    has = functools.cache(lambda stage: store.has(stage, store.key(stage, known)))
    shared, found = _shared(missing, has, functools.partial(store.key, known=known))
    past = ledger.cells()
    first = {arm: trial for (arm, seed), trial in trials.items() if seed == 0}
    return Plan(study=study, scale=scale, why=why, resources=resources, arms=first, cells=cells, records=records,
                data=_title(next(iter(first.values())).data),
                shared=shared, found=found, history=_history(past, ledger.stages(), scale, first), budget=budget,
                rule=rule, stale=stale.older(missing, past, scale, {cell.key for cell in cells}, store),
                reused={cell.key: part for cell in missing if (part := stale.reused(cell, has))})


def _shared(cells: Iterable[Cell], has: Callable[[Stage], bool], key: Callable[[Stage], str]
            ) -> tuple[tuple[Shared, ...], int]:
    """Stages that two or more cells will ask for and that the store lacks, in order; how many of them it has.

    What stands under a finished stage is not asked for; what stands under a shared one is shared as well.
    """
    wanted: dict[Stage, list[Cell]] = {}
    for cell in cells:
        asked = list(dict.fromkeys([cell.trial.metrics(), cell.trial.samples()]))
        for stage in asked:                          # grows while it is walked
            wanted.setdefault(stage, []).append(cell)
            if not has(stage):
                asked += [needed for needed in stage.needs() if needed not in asked]
    common = {stage: users for stage, users in wanted.items() if len(users) > 1}
    order = [stage for stage in upstream(*common) if stage in common and not has(stage)]
    shared = [Shared(stage, key(stage), tuple(common[stage]),
                     tuple(key(needed) for needed in stage.needs() if not has(needed))) for stage in order]
    return tuple(shared), len(common) - len(shared)


def _history(past: Iterable[Record], stages: Iterable[Record], scale: str, trials: Mapping[str, Any]
             ) -> dict[str, float]:
    """Mean seconds of each arm and kind of stage; of the very same trial, at other seeds, where it ever ran.

    What a cell found made, its training for example, counts as if it had made it; where several arms stand on it, each
    has its part.
    """
    past, stages = list(past), list(stages)
    apart = {record["key"] for record in stages}             # made before the cells, and counted by themselves
    arms: dict[str, set[str]] = {}
    for record in past:
        for stage in record.get("reused", {}).keys() - apart:
            arms.setdefault(stage, set()).add(record["arm"])

    def whole(record: Record) -> float:
        return record["seconds"] + sum(spared / len(arms[stage]) for stage, spared in record.get("reused", {}).items()
                                       if stage in arms)

    seconds: dict[str, list[float]] = {}
    alike: dict[str, list[float]] = {}
    wanted = {arm: _seedless(to_dict(trial)) for arm, trial in trials.items()}
    for record in past:
        if record["status"] == "done" and record["scale"] == scale:
            seconds.setdefault(record["arm"], []).append(whole(record))
            if _seedless(record.get("trial", {})) == wanted.get(record["arm"]):
                alike.setdefault(record["arm"], []).append(whole(record))
    for record in stages:
        if record["status"] == "done":
            seconds.setdefault(record["kind"], []).append(record["seconds"])
    return {name: sum(values) / len(values) for name, values in (seconds | alike).items()}


def _seedless(trial: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({name: value for name, value in trial.items() if name != "seed"}))


def _title(data: Any) -> str:
    """What people call a data set: its name, or the class of a built-in one."""
    return str(flat(data).get("name", type(data).__name__))
