"""One night: every watched study on tonight's code, looked at, and looked at again with more seeds while it is open.

    first seeds -> conduct() -> look at the pairs with the last good night -> open, slow? twice the seeds, up to `most`
                                                                           -> verdict -> nights.jsonl, MLflow
    a night that passed with other numbers, or the first one, is filled up to `most` seeds: it is the measure of the
    next, which can have no more pairs than it has

Nothing is run that is there: a cell's key says which code it used (code_version.py), so a night of unchanged code costs
nothing, and a night that was killed continues where it was.

    0 all passed, or nothing can be said    3 something regressed    1 a cell failed    75 another night is at work here
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from studies.engine import rounds
from studies.engine.cluster import Cluster
from studies.engine.code_version import CodeVersions
from studies.engine.findings import Findings
from studies.engine.ledger import Ledger, Outbox, Record
from studies.engine.main import conduct
from studies.engine.night_speed import Cells
from studies.engine.nights import History, Verdict, cells_of, cells_tonight, code_of, host, judge_night, settle
from studies.engine.options import prepare
from studies.engine.provenance import ROOT, code, commits
from studies.engine.watched import Watched

PASSED, FAILED, REGRESSED, BUSY, STOPPED = 0, 1, 3, 75, 130
Say = Callable[[str], None]


class Ended(Exception):
    """The night cannot go on: stopped by the user, or by a full disk.  `code` is the exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class StudyNight:
    """A watched study, tonight."""

    def __init__(self, watched: Watched, history: History, versions: CodeVersions, say: Say, root: Path = ROOT):
        self.watched, self.history, self.versions, self.say, self.root = watched, history, versions, say, root
        self.out = history.out
        self.ledger = Ledger(self.out / watched.study.name)

    def findings(self, seeds: int) -> Findings:
        """What is there of this many seeds.   BadInput, ConfigError"""
        options = self.watched.options(self.out, seeds, report=True)
        return Findings(prepare(self.watched.study, options, self.ledger, None), self.ledger)

    def plan(self) -> list[str]:
        """What the night would do, in words.   BadInput, ConfigError"""
        findings = self.findings(self.watched.seeds)
        plan, good = findings.plan, self._good(findings)
        lines = [f"{self.watched.name}: {len(plan.cells)} cells at the first look, {len(plan.missing)} to run, "
                 f"{plan.expectation()}"]
        if good is None:
            return [*lines, f"  the first night of these settings: {self.watched.most} seeds of each arm are run"]
        lines.append(f"  compared with night {good['number']}, {good['night']}, commit {good['commit'][:12]}")
        return lines + [f"  changed since: {name}" for name in self._changed(good, self._code(findings))]

    def run(self) -> Record:
        """Run, look, judge, and remember.   Ended"""
        good = self._good(self.findings(self.watched.seeds))
        before, findings = None, None

        def look(seeds: int, last: bool) -> Verdict:
            nonlocal before, findings
            if before is not None and before.word == "pass":
                self.say(f"{self.watched.name} passed; as the measure of the next nights it gets {seeds} seeds")
            elif before is not None:
                self.say(f"{self.watched.name} is open ({before.why}): {seeds} seeds")
            findings = self.measure(seeds)
            before = self.judge(findings, good, last)
            return before

        verdict = settle(self.watched, None if good is None else self._seeds_of(good), look)
        assert findings is not None
        return self.remember(findings, verdict, good)

    def measure(self, seeds: int) -> Findings:
        """Run what is missing of this many seeds, as far as the hours reach."""
        findings = self.findings(seeds)
        if findings.plan.missing and rounds.affordable(findings, findings.plan.missing, 1):
            ended = conduct(self.watched.study, self.watched.options(self.out, seeds))
            if ended in (FAILED, PASSED):
                return self.findings(seeds)
            raise Ended(ended if ended in (2, STOPPED) else FAILED)
        return findings

    def judge(self, findings: Findings, good: Record | None, last: bool) -> Verdict:
        """What is said of the cells that are there, and why there are no more of them."""
        now, missing = cells_tonight(findings, self.watched), findings.plan.missing
        verdict = judge_night(self.watched, good, now, self.history.past(self.watched, now), last)
        if missing and not rounds.affordable(findings, missing, 1):
            return replace(verdict, why=f"{verdict.why}; hours = {self.watched.hours:g} do not reach: "
                                        f"{rounds.spent(findings)}, and {len(missing)} of {len(findings.plan.cells)} "
                                        "cells were not run")
        return verdict

    def _good(self, findings: Findings) -> Record | None:
        """The last good night whose cells pair with tonight's, which may not have run yet."""
        from trainables.config import fingerprint

        wanted: Cells = {(cell.arm, cell.seed): {"config": fingerprint(cell.trial), "status": "done"}
                         for cell in findings.plan.cells}
        return self.history.good(self.watched, wanted)

    def _seeds_of(self, good: Record | None) -> int:
        """Seeds that every arm has on a night: no look can have more pairs."""
        cells = cells_of(good) if good else {}
        return min((sum(arm == name for name, _ in cells) for arm in self.watched.arms), default=0)

    def _code(self, findings: Findings) -> dict[str, str]:
        return {arm: self.history.keep_code(code_of(findings.plan, arm, self.versions)) for arm in self.watched.arms}

    def _changed(self, good: Record | None, now: dict[str, str]) -> list[str]:
        return self.history.changed(good["code"], now) if good else []

    def remember(self, findings: Findings, verdict: Verdict, good: Record | None) -> Record:
        """The night as a line of the history, and on the study's parent run."""
        source, used, cells = code(self.root), self._code(findings), cells_tonight(findings, self.watched)
        changed = self._changed(good, used)
        if good is not None and verdict.word == "pass" and all(found.kind == "same" for found in verdict.findings
                                                               if found.metric in self.watched.margins):
            cells = cells_of(good) | cells          # what is the same at these seeds is the same at the others
        night: Record = {
            "kind": "night", "study": self.watched.name, "number": len(self.history.nights(self.watched.name)) + 1,
            "night": time.strftime("%Y-%m-%d", time.gmtime()), "at": time.time(), "host": host(),
            "commit": source.commit, "dirty": bool(source.diff), "code": used, "scale": self.watched.scale,
            "verdict": verdict.word, "why": verdict.why, "findings": [found.as_dict() for found in verdict.findings],
            "compared_with": good and {name: good[name] for name in ("number", "night", "commit")},
            "changed": changed, "suspects": self.suspects(good, verdict, changed, source.commit, bool(source.diff)),
            "cells": [cells[at] for at in sorted(cells)]}
        self.history.add(night)
        return night

    def suspects(self, good: Record | None, verdict: Verdict, changed: Iterable[str], commit: str, dirty: bool
                 ) -> list[str]:
        """Commits since the good night that touch the code which its cells use and which has changed."""
        if good is None or verdict.word == "pass":
            return []
        files = sorted({name.partition(":")[0] for name in changed if ".py: " in name})
        found = commits(good["commit"], commit, files, self.root) if files else []
        packages = [name for name in changed if ".py: " not in name]
        if files and not found and not dirty:
            found = [unknown(good["commit"], commit, files)]
        return [*found, *packages, *(["changes that are not committed"] if dirty else [])]


def unknown(old: str, new: str, files: Iterable[str]) -> str:
    """What to say where there is no history of the code, as in an image: how to ask one that has it."""
    if "unknown" in (old, new):
        return "commits that are not known: the code of one of the nights did not say which commit it is"
    return ("commits that are not known here; where the repository is: "
            f"git log {old[:12]}..{new[:12]} -- {' '.join(files)}")


def tell_tracking(night: Record, watched: Watched, out: Path, markdown: str) -> str:
    """Tags, and the night's means as curves by night, on the study's parent run; what stood in the way, or ""."""
    from studies.engine.shipping import Shipper
    from studies.engine.study import BadInput
    from studies.engine.tracking import PARENT, Tracking

    ledger = Ledger(out / watched.study.name)
    story = Outbox(ledger.outbox(PARENT))
    story.start(key=PARENT, name=watched.study.name, texts={"night.md": markdown}, tags={
        "nightly": night["night"], "night": str(night["number"]), "verdict": night["verdict"], "why": night["why"],
        "commit": night["commit"], "mlflow.source.git.commit": night["commit"],
        "compared_with": night["compared_with"]["commit"] if night["compared_with"] else "",
        "suspects": "\n".join(night["suspects"])})
    curves = {f"{arm}/{metric}": mean for (metric, arm), mean in means(night, watched).items()}
    story.record(night["number"], curves)
    story.end("failed" if night["verdict"] in ("failed", "regressed") else "done", 0.0)
    story.close()
    try:
        shipper = Shipper(Tracking(watched.study.name, out), ledger.folder / "outbox")
    except BadInput as error:
        return str(error)
    return "" if shipper.close() else shipper.problem


def means(night: Record, watched: Watched) -> dict[tuple[str, str], float]:
    """(metric, arm) -> mean over the seeds that every night has: others would move it from night to night."""
    values: dict[tuple[str, str], list[float]] = {}
    for cell in night["cells"]:
        for metric, value in {**cell["metrics"], "tokens_per_second": cell["speed"]}.items():
            if cell["status"] == "done" and cell["seed"] < watched.seeds and value is not None:
                values.setdefault((metric, cell["arm"]), []).append(value)
    return {at: statistics.fmean(some) for at, some in values.items()}


def exit_code(nights: Iterable[Record]) -> int:
    """What a scheduler is told."""
    words = {night["verdict"] for night in nights}
    return REGRESSED if "regressed" in words else FAILED if "failed" in words else PASSED


def check_plans(studies: Iterable[StudyNight], cluster: Cluster) -> None:
    """Refuse what would be refused in the middle of the night.   BadInput, ConfigError"""
    for study in studies:
        watched = study.watched
        options = replace(watched.options(study.out, watched.seeds), hours=None)
        prepare(watched.study, options, study.ledger, cluster)


def printer(console: Console) -> Say:
    return lambda text: console.print(Text(text), soft_wrap=True)
