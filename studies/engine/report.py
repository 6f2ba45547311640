"""The report: from the ledger alone, so that --report needs no cluster, no tracking server and no store.

    outcome(plan, ledger, run ids)      what programs read: the plain dict behind --json
    table, markdown                     the same for people, in a terminal and in table.md
    samples                             the best arm's texts beside real ones
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from studies.engine.compare import Interval, interval, paired
from studies.engine.ledger import Ledger, Record
from studies.engine.plan import Cell, Plan
from studies.engine.study import Metric, Minimise, Watch

NOTE = 90                               # characters of a reason that fit into a note


class Findings:
    """What the ledger says about the cells of a plan."""

    def __init__(self, plan: Plan, ledger: Ledger):
        self.plan = plan
        self.records: dict[str, Record] = {cell.key: record for cell in plan.cells if (record := ledger.cell(cell.key))}
        self.stages = {record["key"]: record for record in ledger.stages()}

    @functools.cached_property
    def shown(self) -> tuple[Metric, ...]:
        """The study's metrics that these data have; all of them while nothing is done."""
        known = {name for record in self.records.values() for name in record["metrics"]}
        return tuple(metric for metric in self.plan.study.report if not known or metric.metric in known)

    @property
    def deciding(self) -> Metric | None:
        """The metric that says which arm is best."""
        return next((metric for metric in self.shown if not isinstance(metric, Watch)), None)

    def cells(self, arm: str) -> list[Cell]:
        return [cell for cell in self.plan.cells if cell.arm == arm]

    def status(self, cell: Cell) -> str:
        return self.records[cell.key]["status"] if cell.key in self.records else "waiting"

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Seed -> value, of the cells that are done."""
        done = [(cell, self.records[cell.key]) for cell in self.cells(arm) if self.status(cell) == "done"]
        return {cell.seed: record["metrics"][metric] for cell, record in done if metric in record["metrics"]}

    def mean(self, arm: str, metric: str) -> Interval:
        return interval(list(self.values(arm, metric).values()))

    def difference(self, arm: str, metric: str) -> Interval:
        """Arm - base, over common seeds."""
        return paired(self.values(arm, metric), self.values(self.plan.base, metric))

    def hours(self, arm: str) -> float:
        """GPU hours (CPU hours without GPUs) of the arm's cells and its part of the stages that it shares."""
        unit = "gpu_hours" if self.plan.resources.gpus else "cpu_hours"
        users: dict[str, list[str]] = {}
        for cell in self.plan.cells:
            for stage in self.records.get(cell.key, {}).get("stages", ()):
                users.setdefault(stage, []).append(cell.arm)
        own = sum(self.records[cell.key][unit] for cell in self.cells(arm) if cell.key in self.records)
        return own + sum(self.stages[stage][unit] * arms.count(arm) / len(arms)
                         for stage, arms in users.items() if stage in self.stages)

    def note(self, arm: str) -> str:
        """What went wrong, and what is still to come."""
        notes = []
        for cell in self.cells(arm):
            if self.status(cell) in ("failed", "diverged"):
                reason = self.records[cell.key]["reason"]
                notes.append(f"seed {cell.seed} {self.status(cell)}: "
                             f"{reason if len(reason) <= NOTE else reason[:NOTE] + '…'}")
        waiting = sum(self.status(cell) == "waiting" for cell in self.cells(arm))
        notes += [f"{waiting} not run"] if waiting else []
        known = {name for cell in self.cells(arm) for name in self.records.get(cell.key, {}).get("metrics", ())}
        absent = [metric.metric for metric in self.shown if known and metric.metric not in known]
        notes += [f"no {', '.join(absent)} (there are: {', '.join(sorted(known)[:20])})"] if absent else []
        return "; ".join(notes)

    def best(self) -> str | None:
        """The arm with the best mean of the deciding metric; the first when nothing decides; None: nothing is done."""
        deciding = self.deciding
        done = [arm for arm in self.plan.arms if any(self.status(cell) == "done" for cell in self.cells(arm))]
        if not done or deciding is None:
            return next(iter(done), None)
        means = {arm: mean for arm in done if (mean := self.mean(arm, deciding.metric).mean) is not None}
        pick = min if isinstance(deciding, Minimise) else max
        return pick(means, key=means.__getitem__) if means else done[0]

    def failed(self) -> list[Cell]:
        return [cell for cell in self.plan.cells if self.status(cell) in ("failed", "diverged")]


def outcome(findings: Findings, runs: Mapping[str, str], commit: str) -> dict[str, Any]:
    """The outcome for programs; numbers that are not finite are null."""
    plan = findings.plan

    def numbers(value: Interval) -> dict[str, float | None]:
        return {"mean": value.mean, "low": value.low, "high": value.high}

    return {
        "study": plan.study.name, "commit": commit, "scale": plan.scale, "data": plan.data,
        "arms": [{
            "name": arm, "differs": plan.differs(arm),
            "n": sum(findings.status(cell) == "done" for cell in findings.cells(arm)),
            "metrics": {metric.metric: numbers(findings.mean(arm, metric.metric)) for metric in findings.shown},
            "cells": [{"seed": cell.seed, "trial": cell.key, "status": findings.status(cell),
                       "mlflow_run_id": runs.get(cell.key)} for cell in findings.cells(arm)],
        } for arm in plan.arms],
    }


def header(findings: Findings) -> list[str]:
    """The table's columns: an arrow says which way is better."""
    arrows = {"Minimise": " ↓", "Maximise": " ↑", "Watch": ""}
    metrics = [metric.metric + arrows[type(metric).__name__] for metric in findings.shown]
    return ["arm", "differs from base", *metrics, "n", "GPU h" if findings.plan.resources.gpus else "CPU h", "note"]


def rows(findings: Findings) -> list[list[str]]:
    """One row an arm: mean ± half of the 95 % interval, and beneath it the paired difference to the base."""
    plan, table = findings.plan, []
    for arm in plan.arms:
        cells = []
        for metric in findings.shown:
            text = spell(findings.mean(arm, metric.metric))
            if arm != plan.base and (difference := findings.difference(arm, metric.metric)).mean is not None:
                text += f"\nΔ {spell(difference, sign=True)}"
            cells.append(text)
        n = sum(findings.status(cell) == "done" for cell in findings.cells(arm))
        name = f"{arm} (base)" if arm == plan.base else arm
        table.append([name, plan.differs(arm), *cells, str(n), f"{findings.hours(arm):.2g}", findings.note(arm)])
    return table


def spell(value: Interval, sign: bool = False) -> str:
    """0.412 ± 0.013, to the digits that the interval allows."""
    if value.mean is None:
        return "–" if value.n == 0 else "not finite"
    plus = "+" if sign else ""
    if value.half is None:
        return f"{value.mean:{plus}.4g}"
    if value.half == 0:
        return f"{value.mean:{plus}.4g} ± 0"
    digits = next((d for d in range(8) if round(value.half, d + 1) >= 10.0 ** (1 - d)), 7)
    return f"{value.mean:{plus}.{digits}f} ± {value.half:.{digits}f}"


def rich_table(findings: Findings) -> Table:
    """The table for a terminal."""
    table = Table(title=findings.plan.study.question, title_justify="left", show_lines=True)
    for number, name in enumerate(header(findings)):
        table.add_column(name, justify="left" if number < 2 or name == "note" else "right", overflow="fold")
    for row in rows(findings):
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    return table


CAPTION = "mean ± half of the 95 % interval over seeds (Student's t); Δ: paired difference to the base, seed by seed"


def markdown(findings: Findings) -> str:
    """The whole report as markdown."""
    plan = findings.plan
    lines = [f"# {plan.study.name}", "", plan.study.question, ""]
    lines += [f"Expected: {plan.study.expectation}", ""] if plan.study.expectation else []
    lines += [f"Scale {plan.scale}, data {plan.data}.", ""]
    columns = header(findings)
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |"
              for row in rows(findings)]
    lines += ["", CAPTION, ""]
    best, texts, real = samples(findings)
    if best:
        lines += [f"## {best} writes", "", *(f"> {text}\n" for text in texts), "## Real texts", "",
                  *(f"> {text}\n" for text in real)]
    return "\n".join(lines)


def samples(findings: Findings, count: int = 4) -> tuple[str | None, list[str], list[str]]:
    """The best arm, a few of its texts, and a few real ones."""
    best = findings.best()
    record = next((findings.records[cell.key] for cell in findings.cells(best) if findings.status(cell) == "done"),
                  None) if best else None
    return (best, record["samples"][:count], record["real"][:count]) if record else (None, [], [])


def as_json(result: dict[str, Any]) -> str:
    """Strict JSON: a NaN that slipped through is an error here, not in the program that reads it."""
    return json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
