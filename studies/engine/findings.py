"""Findings: what the ledger says about the cells of a plan, and what follows from it.

    ledger records -> values [seed] of each arm and metric -> compare.py, or decide.py where seeds were added by looking
    ledger outboxes -> learning curves [seed, step]
"""

import functools
from collections import Counter
from dataclasses import replace

from studies.engine.compare import LEVEL, Comparison, Interval, compare, interval, more_seeds, pairs
from studies.engine.decide import Decision, anytime, decisions
from studies.engine.factors import Anova, Effect, Judge, Levels, anova, effects
from studies.engine.ledger import Ledger, Record, curves
from studies.engine.plan import Cell, Plan
from studies.engine.study import Maximise, Metric, Minimise, Watch
from trainables.stages import upstream

NOTE = 90                               # characters of a reason that fit into a note

Curve = list[tuple[int, float]]


class Findings:
    """What the ledger says about the cells of a plan."""

    def __init__(self, plan: Plan, ledger: Ledger):
        self.plan, self.ledger = plan, ledger
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

    def done(self, arm: str) -> int:
        """How many of the arm's cells are done."""
        return sum(self.status(cell) == "done" for cell in self.cells(arm))

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Seed -> value, of the cells that are done."""
        done = [(cell, self.records[cell.key]) for cell in self.cells(arm) if self.status(cell) == "done"]
        return {cell.seed: record["metrics"][metric] for cell, record in done if metric in record["metrics"]}

    def mean(self, arm: str, metric: str) -> Interval:
        return interval(list(self.values(arm, metric).values()))

    # -- comparisons

    @property
    def others(self) -> list[str]:
        """The arms that are compared with the base."""
        return [arm for arm in self.plan.arms if arm != self.plan.base]

    def differences(self, metric: str) -> dict[str, list[float]]:
        """Arm -> arm - base, over common seeds."""
        base = self.values(self.plan.base, metric)
        return {arm: pairs(self.values(arm, metric), base) for arm in self.others}

    def compared(self, metric: Metric) -> dict[str, Comparison]:
        """Arm -> how it compares with the base; under the rule of --decide, in a way that looking does not spoil."""
        return self._compared[metric.metric]

    @functools.cached_property
    def _compared(self) -> dict[str, dict[str, Comparison]]:
        return {metric.metric: self._judge(self.differences(metric.metric), better(metric), metric.margin)
                for metric in self.shown}

    @property
    def _judge(self) -> Judge:
        """compare, or, where the number of seeds followed from what was seen, what holds in spite of that."""
        return compare if self.plan.rule is None else functools.partial(anytime, most=self.plan.rule.most)

    def more(self, metric: Metric) -> dict[str, int]:
        """Arm -> seeds that an open verdict still needs, with 80 % power; none for the decided and the unreachable."""
        return self._more[metric.metric]

    @functools.cached_property
    def _more(self) -> dict[str, dict[str, int]]:
        level = LEVEL / max(len(self.others), 1) if self.plan.rule else None
        return {metric.metric: more_seeds(self.differences(metric.metric), self.compared(metric), metric.margin, level)
                for metric in self.shown}

    def decided(self) -> dict[str, Decision]:
        """Arm -> where it stands under the rule of --decide, in the deciding metric."""
        metric, rule = self.deciding, self.plan.rule
        if metric is None or rule is None:
            return {}
        differences = self.differences(metric.metric)
        return decisions(differences, better(metric), metric.margin, most=rule.most,
                         lost={arm: self.lost(arm, metric.metric) for arm in differences})

    def lost(self, arm: str, metric: str) -> int:
        """Seeds whose cells have ended, in this arm and in the base, and that gave no pair of values."""
        def ended(name: str) -> set[int]:
            return {cell.seed for cell in self.cells(name) if self.status(cell) != "waiting"}

        both = ended(arm) & ended(self.plan.base)
        return len(both) - len(both & self.values(arm, metric).keys() & self.values(self.plan.base, metric).keys())

    @property
    def factors(self) -> dict[str, tuple[str, ...]]:
        """Factor -> levels, where the plan is a whole factorial study; else nothing."""
        study = self.plan.study
        whole = study.factors and set(self.plan.arms) == set(study.arms)
        return {name: tuple(levels) for name, levels in study.factors.items()} if whole else {}

    def _by_levels(self, metric: str) -> dict[Levels, dict[int, float]]:
        return {self.plan.study.levels(arm): self.values(arm, metric) for arm in self.plan.arms}

    def effects(self, metric: Metric) -> list[Effect]:
        """Main effects and interactions, judged as arms are; nothing where the study has no factors."""
        by_levels = self._by_levels(metric.metric) if self.factors else {}
        return effects(self.factors, by_levels, better(metric), metric.margin, self._judge) if self.factors else []

    def anova(self, metric: Metric) -> list[Anova]:
        """F tests of factors and interactions; nothing where the study has no factors, nor under the rule of --decide:
        they hold for a number of seeds that was fixed beforehand."""
        fixed = self.factors and self.plan.rule is None
        return anova(self.factors, self._by_levels(metric.metric)) if fixed else []

    # -- costs

    def hours(self, arm: str) -> float:
        """GPU hours (CPU hours without GPUs) of the arm's cells and its part of the stages that it shares."""
        users: dict[str, list[str]] = {}
        for cell in self.plan.cells:
            for stage in self.records.get(cell.key, {}).get("stages", ()):
                users.setdefault(stage, []).append(cell.arm)
        own = sum(self.cost(cell) for cell in self.cells(arm) if cell.key in self.records)
        return own + sum(self.stages[stage][self._unit] * arms.count(arm) / len(arms)
                         for stage, arms in users.items() if stage in self.stages)

    def cost(self, cell: Cell) -> float:
        """GPU (CPU) hours of a cell that has ended: what it held, and its part of what it found made before, which
        its seed alone stands on: a metric that is added does not make a training cheap."""
        record = self.records[cell.key]
        return record[self._unit] + sum(self.spared[stage] / self._finders[stage] for stage in record.get("reused", ())
                                        if stage in self.spared)

    @functools.cached_property
    def spared(self) -> dict[str, float]:
        """Stage -> the hours of what cells found made, and no cell of the plan nor the study itself has paid."""
        paid = self.stages.keys() | {stage for record in self.records.values() for stage in record.get("stages", ())
                                     if stage not in record.get("reused", ())}
        return {stage: seconds / 3600 * self.plan.share for record in self.records.values()
                for stage, seconds in record.get("reused", {}).items() if stage not in paid}

    @functools.cached_property
    def _finders(self) -> Counter[str]:
        return Counter(stage for record in self.records.values() for stage in record.get("reused", ()))

    @property
    def _unit(self) -> str:
        return "gpu_hours" if self.plan.resources.gpus else "cpu_hours"

    def spent(self) -> float:
        """GPU (CPU) hours of all arms, of all commands, and of the search before them."""
        return self.plan.budget.searched + sum(self.hours(arm) for arm in self.plan.arms)

    def cell_hours(self, arm: str) -> float | None:
        """What one more seed of the arm costs; None: none of its cells has ended well."""
        known = [self.cost(cell) for cell in self.cells(arm) if self.status(cell) == "done"]
        return sum(known) / len(known) if known else None

    def answer_hours(self, arm: str) -> float | None:
        """What the seeds cost that the arm's verdict still needs: its own, and the base's where it has not as many."""
        more = self.more(self.deciding).get(arm) if self.deciding else None
        own, base = self.cell_hours(arm), self.cell_hours(self.plan.base)
        if more is None or own is None or base is None:
            return None
        return more * own + max(self.done(arm) + more - self.done(self.plan.base), 0) * base

    def answer_cost(self) -> str:
        """How many more seeds each open arm needs and what they cost, in words; "" where no spread is known yet."""
        if self.deciding is None:
            return ""
        parts = []
        for arm, found in self.compared(self.deciding).items():
            more, hours = self.more(self.deciding).get(arm), self.answer_hours(arm)
            if more is not None:
                cost = f", {self.plan.budget.spell(hours, self.plan.unit)}" if hours is not None else ""
                parts.append(f"about {more} more seed{'s' if more > 1 else ''} of {arm}{cost}")
            elif found.verdict == "open" and found.difference.n > 1:
                parts.append(f"{arm} is out of reach of seeds")
        return "; ".join(parts) + (f" (in {self.deciding.metric}, with 80 % power)" if parts else "")

    def trained_once(self) -> list[str]:
        """What was trained for a system beforehand, once for all seeds of an arm: encoders, decoders."""
        kinds: dict[str, None] = {}
        for cell in {cell.arm: cell for cell in self.plan.cells}.values():
            own = set(cell.own())
            named = {stage: getattr(stage, "curve", "") for stage in upstream(cell.samples()) if stage not in own}
            kinds |= {name.replace("_", " "): None for name in named.values() if name}
        return list(kinds)

    # -- what went wrong, what is best

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
        elsewhere = {name for record in self.records.values() for name in record["metrics"]}
        absent = [metric.metric for metric in self.shown if known and metric.metric not in known]
        unknown = "" if set(absent) <= elsewhere else f" (there are: {', '.join(sorted(known)[:20])})"
        notes += [f"no {', '.join(absent)}{unknown}"] if absent else []
        return "; ".join(notes)

    def best(self) -> str | None:
        """The arm with the best mean of the deciding metric; the first when nothing decides; None: nothing is done."""
        deciding = self.deciding
        done = [arm for arm in self.plan.arms if self.done(arm)]
        if not done or deciding is None:
            return next(iter(done), None)
        means = {arm: mean for arm in done if (mean := self.mean(arm, deciding.metric).mean) is not None}
        pick = min if isinstance(deciding, Minimise) else max
        return pick(means, key=means.__getitem__) if means else done[0]

    def failed(self) -> list[Cell]:
        return [cell for cell in self.plan.cells if self.status(cell) in ("failed", "diverged")]

    # -- curves and texts

    def curves(self) -> dict[str, dict[str, dict[int, Curve]]]:
        """Metric -> arm -> seed -> its points by step, of all cells that ever began."""
        found: dict[str, dict[str, dict[int, Curve]]] = {}
        for cell in self.plan.cells:
            for name, points in curves(self.ledger.outbox(cell.key)).items():
                found.setdefault(name, {}).setdefault(cell.arm, {})[cell.seed] = list(points.items())
        return found

    def texts(self, arm: str) -> list[str]:
        """A few texts of the arm's first cell that is done."""
        return next((self.records[cell.key]["samples"] for cell in self.cells(arm) if self.status(cell) == "done"), [])

    def real(self) -> list[str]:
        """A few texts of the test split."""
        return next((record["real"] for record in self.records.values() if record["real"]), [])


def better(metric: Metric) -> int:
    """+1 where more is better, -1 where less is, 0 where neither."""
    return 1 if isinstance(metric, Maximise) else -1 if isinstance(metric, Minimise) else 0


def without_rule(findings: Findings) -> Findings:
    """The same, as if the number of seeds had been fixed beforehand."""
    return Findings(replace(findings.plan, rule=None), findings.ledger)
