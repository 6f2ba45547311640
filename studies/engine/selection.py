"""Which cell is kept as the study's best model: the best arm's best seed on validation texts.

    deciding metric, mean over seeds --> the best arm: on validation, where every cell was scored there (searches), else
                                         on test, as the table says; registry.py notes which
    its seeds --> scored against the validation split, as stages, after the last cell --> the best of them

Between seeds of one arm the test score would pick luck, and then be quoted as if it had not.  So an arm's seeds draw
other samples, and are scored against other texts; that is done for the best arm alone, since it costs what sampling
costs, and once, since a stage is made once.  That an arm was picked by its test mean flatters that mean, the less the
more seeds it has; a seed's own test score is not what it was picked by.
"""

import json
from dataclasses import replace

from studies.engine.findings import Findings
from studies.engine.plan import Cell, Shared
from studies.engine.study import Minimise
from trainables.config import override
from trainables.stages import Stage, Store
from trainables.trial import Sampled


def best_cell(findings: Findings, store: Store) -> tuple[Cell, str, float] | None:
    """The best arm's best seed, by which metric, and its value there; None: nothing decides, or nothing is done."""
    metric, picked = findings.deciding, best_arm(findings)
    if metric is None or picked is None:
        return None
    arm, _ = picked
    held_out = {cell: value for cell in _done(findings, arm)
                if (value := judged(findings, cell, store)) is not None}
    name = _held_out(metric.metric) if held_out else metric.metric
    values = held_out or {cell: findings.records[cell.key]["metrics"].get(name) for cell in _done(findings, arm)}
    known = {cell: value for cell, value in values.items() if value is not None}
    if not known:
        return None
    cell = (min if isinstance(metric, Minimise) else max)(known, key=known.__getitem__)
    return cell, name, known[cell]


def candidates(findings: Findings, store: Store) -> tuple[Shared, ...]:
    """The validation scores that the choice still lacks; nothing where there is no choice, or no model to keep."""
    metric, picked = findings.deciding, best_arm(findings)
    cells = _done(findings, picked[0]) if picked is not None else []
    if metric is None or len(cells) < 2 or not metric.metric.startswith("test/"):
        return ()
    lacking = [(cell, validation(cell, metric.metric)) for cell in cells if isinstance(cell.samples(), Sampled)
               and judged(findings, cell, store) is None]
    return tuple(Shared(stage, name, (cell,), ()) for cell, stage in lacking
                 if (name := store.key(stage)) not in findings.stages and not store.has(stage))      # tried once


def best_arm(findings: Findings) -> tuple[str, str] | None:
    """The arm with the best mean, and the metric that says so: on validation where every cell's record has it, else as
    the report says."""
    metric = findings.deciding
    known = [record["metrics"] for record in findings.records.values() if record["status"] == "done"]
    if metric is None or not known:
        return None
    name = _held_out(metric.metric)
    if not all(name in metrics for metrics in known):
        best = findings.best()
        return None if best is None else (best, metric.metric)
    means = {arm: mean for arm in findings.plan.arms if (mean := findings.mean(arm, name).mean) is not None}
    return ((min if isinstance(metric, Minimise) else max)(means, key=means.__getitem__), name) if means else None


def judged(findings: Findings, cell: Cell, store: Store) -> float | None:
    """The cell's value of the deciding metric on the validation split; None: nobody has looked."""
    assert findings.deciding is not None
    name = _held_out(findings.deciding.metric)
    if name in (metrics := findings.records[cell.key]["metrics"]):
        return metrics[name]
    if not isinstance(cell.samples(), Sampled):
        return None
    path = store.path(validation(cell, findings.deciding.metric)) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")).get(name) if path.exists() else None


def validation(cell: Cell, metric: str) -> Stage:
    """What scores the cell's validation samples by this metric, and by no other: it is paid for."""
    evaluation, name = cell.trial.evaluation, metric.partition("/")[2]
    alone = tuple(each for each in evaluation.metrics if name in each.better)
    trial = override(cell.trial, {"evaluation": replace(evaluation, metrics=alone)}) if alone else cell.trial
    return trial.validation()


def _held_out(metric: str) -> str:
    return f"valid/{metric.partition('/')[2]}"


def _done(findings: Findings, arm: str) -> list[Cell]:
    return [cell for cell in findings.cells(arm) if findings.status(cell) == "done"]
