"""Ablations and grids in the search storage: a study there for each of ours, a trial for each cell that has ended.

    arm, or each factor's level, and seed -> parameters      the report's metrics that have a better -> objectives
    key, status, what differs, every metric -> user attributes

So optuna-dashboard and optuna.importance read comparisons as they read searches.  It is a mirror of the ledger and no
memory: it is brought to what the plan says whenever cells have ended, and written anew when arms or metrics change.
"""

from datetime import datetime

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies.engine.findings import Findings
from studies.engine.ledger import FINISHED
from studies.engine.plan import Cell
from studies.engine.storage import Memory
from studies.engine.study import BadInput, Maximise, Minimise

MOST_SEEDS = 1_000_000


def keep(findings: Findings, url: str) -> str | None:
    """`mirror` into the storage at a URL; why it could not be done, which costs nobody anything, or None."""
    try:
        memory = Memory(url)
    except BadInput as error:
        return str(error)
    try:
        mirror(findings, memory)
    except Exception as error:          # SQLAlchemy's, a driver's, the file system's
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}"
    finally:
        memory.close()
    return None


def mirror(findings: Findings, memory: Memory) -> str | None:
    """Bring the storage's study to what the ledger knows; its name, or None while nothing can be shown."""
    plan = findings.plan
    ended = [cell for cell in plan.cells if findings.status(cell) in FINISHED]
    done = [findings.records[cell.key]["metrics"] for cell in ended if findings.status(cell) == "done"]
    shown = [metric for metric in plan.study.report if isinstance(metric, (Minimise, Maximise))
             and done and all(metric.metric in metrics for metrics in done)]
    if not shown:
        return None
    name = f"{plan.study.name} · {plan.scale} · {plan.data} · compared"
    distributions = _distributions(findings)
    said = {"question": plan.study.question, "arms": list(plan.arms), "metrics": [metric.metric for metric in shown],
            "parameters": {key: repr(value) for key, value in distributions.items()}}
    with memory.turn():
        known = memory.studies().get(name)
        there = {trial.user_attrs["key"]: trial for trial in memory.load(name).get_trials(deepcopy=False)} \
            if known is not None else {}
        if known is not None and (known != said or not there.keys() <= {cell.key for cell in ended}):
            optuna.delete_study(study_name=name, storage=memory.storage)
            known, there = None, {}
        if known is None:
            study = optuna.create_study(study_name=name, storage=memory.storage, directions=[
                "minimize" if isinstance(metric, Minimise) else "maximize" for metric in shown])
            study.set_metric_names([metric.metric for metric in shown])
            for key, value in said.items():
                study.set_user_attr(key, value)
        study = memory.load(name)
        for cell in ended:
            if cell.key not in there:
                study.add_trial(_trial(findings, cell, [metric.metric for metric in shown], distributions))
    return name


def _distributions(findings: Findings) -> dict[str, BaseDistribution]:
    plan = findings.plan
    levels = {factor: tuple(dict.fromkeys(plan.study.levels(arm)[place] for arm in plan.arms))
              for place, factor in enumerate(plan.study.factors)} or {"arm": tuple(plan.arms)}
    return {**{factor: CategoricalDistribution(names) for factor, names in levels.items()},
            "seed": IntDistribution(0, MOST_SEEDS)}


def _trial(findings: Findings, cell: Cell, metrics: list[str],
           distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    study, kept = findings.plan.study, findings.records[cell.key]
    levels = dict(zip(study.factors, study.levels(cell.arm), strict=True)) if study.factors else {"arm": cell.arm}
    complete = kept["status"] == "done"
    trial = create_trial(
        state=TrialState.COMPLETE if complete else TrialState.FAIL, params=levels | {"seed": cell.seed},
        values=[kept["metrics"][metric] for metric in metrics] if complete else None, distributions=distributions,
        user_attrs={"key": cell.key, "arm": cell.arm, "status": kept["status"], "reason": kept["reason"],
                    "differs": findings.plan.differs(cell.arm), "commit": kept.get("commit", ""),
                    **kept["metrics"]})
    trial.datetime_start, trial.datetime_complete = (
        datetime.fromtimestamp(kept[when]) for when in ("started", "ended"))
    return trial

