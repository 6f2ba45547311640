"""What was typed, checked, and made into a plan: everything that can be wrong is said here, before anything starts."""

import math
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studies.engine import writable
from studies.engine.budget import Budget
from studies.engine.cluster import IN_A_JOB, Cluster, choose_scale
from studies.engine.code_version import current
from studies.engine.decide import FIRST, Rule
from studies.engine.findings import Findings
from studies.engine.halt import disk_full
from studies.engine.ledger import Ledger
from studies.engine.plan import Plan
from studies.engine.planning import make_plan
from studies.engine.provenance import ROOT
from studies.engine.rounds import first_seeds, remembered
from studies.engine.study import BadInput, Checks, Resources, Study, Watch
from studies.engine.tracking import shown
from trainables.config import ConfigError, near
from trainables.stages import Context, Store


@dataclass(frozen=True)
class Options:
    """What was typed."""

    scale: str | None
    data: str | None
    test_data: str | None
    seeds: int | None
    arms: str | None
    assignments: tuple[str, ...]
    workers: int | None
    out: Path
    store: str | None
    json: Path | None
    dry_run: bool
    report: bool
    decide: bool = False
    hours: float | None = None
    price: float | None = None
    tune: int | None = None
    by_code: bool = False
    least: int | None = None
    gpus: float | None = None
    margins: tuple[str, ...] = ()       # metric=value
    asked: bool = False                 # by claims, which have a page of their own: the study's is left as it is
    searched: float = 0.0               # hours that a search before the comparison has cost
    tuned: bool = False                 # whether there was one: else a page has none, whatever an old one left behind
    typed: tuple[str, ...] | None = None        # `words` of the whole command, where a part of it is done

    def words(self) -> tuple[str, ...]:
        """What decides the results, as it is typed; not where they go, nor what is printed of them."""
        said = {"--data": self.data, "--test-data": self.test_data, "--seeds": self.seeds, "--arms": self.arms,
                "--workers": self.workers, "--least": self.least, "--gpus": self.gpus, "--tune": self.tune,
                "--hours": self.hours}
        words = [word for flag, value in said.items() if value is not None
                 for word in (flag, f"{value:g}" if isinstance(value, float) else str(value))]
        words += [word for text in self.assignments for word in ("--set", text)]
        words += [word for text in self.margins for word in ("--margin", text)]
        return (*words, *(flag for flag, on in (("--decide", self.decide), ("--by-code", self.by_code)) if on))


def check(study: Study, options: Options) -> None:
    """Refuse what can be refused by looking.   BadInput"""
    if options.seeds is not None and options.seeds < 1:
        raise BadInput(f"--seeds: at least 1, not {options.seeds}")
    if options.workers is not None and options.workers < 1:
        raise BadInput(f"--workers: at least 1, not {options.workers}")
    if options.least is not None and options.least < 1:
        raise BadInput(f"--least: at least 1, not {options.least}")
    if options.gpus is not None and not 0 <= options.gpus < math.inf:
        raise BadInput(f"--gpus: no negative number, not {options.gpus:g}")
    with_margins(study, options.margins)
    if options.tune is not None and (options.tune < 1 or study.tune is not None):
        raise BadInput(f"--tune: at least 1 point, not {options.tune}" if study.tune is None else
                       f"--tune: {study.name} is a search already; --trials sets its points")
    for flag, value in (("--hours", options.hours), ("--price", options.price)):
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"{flag}: a positive number, not {value:g}")
    if options.decide and options.seeds is not None and options.seeds < FIRST:
        raise BadInput(f"--decide looks after {FIRST} seeds for the first time: --seeds, the most an arm may have, is "
                       f"{options.seeds}")
    if options.by_code and (study.tune is not None or options.tune is not None):
        raise BadInput("--by-code: a search is its storage's memory, which knows no code; compare fixed arms")
    if options.decide and len(chosen_arms(study, options)) < 2:
        raise BadInput("--decide compares arms: name two or more")
    if options.decide and all(isinstance(metric, Watch) for metric in study.report):
        raise BadInput(f"--decide: {study.name} reports no metric that has a better")
    for name in chosen_arms(study, options):
        if name not in study.arms:
            raise BadInput(f"--arms: {study.name} has no arm {name!r}{near(name, study.arms)}")
    if options.test_data is not None and options.data is None:
        raise BadInput("--test-data goes with a --data file")
    if IN_A_JOB in os.environ and options.out.is_relative_to(ROOT):
        raise BadInput(f"--out: {options.out} goes when this job does; name a folder that all of the cluster's "
                       "machines see, or set PALIMPSEST_OUT where Ray is started")
    writable.folder("--out", options.out)
    if (own := options.out / study.name).exists():           # somebody else's, in a folder that all may write into
        writable.folder("--out", own)
    if options.json is not None:
        writable.file("--json", options.json)


def chosen_arms(study: Study, options: Options) -> list[str]:
    """The arms to compare, in the study's order where they are its own."""
    if options.arms is None:
        return list(study.arms)
    asked = list(dict.fromkeys(name.strip() for name in options.arms.split(",") if name.strip()))
    if not asked:
        raise BadInput("--arms: name at least one")
    return sorted(asked, key=lambda name: list(study.arms).index(name) if name in study.arms else -1)


def with_margins(study: Study, said: Iterable[str]) -> Study:
    """The study with these margins, metric=value, in place of its own.   BadInput"""
    margins: dict[str, float] = {}
    known = [metric.metric for metric in study.report]
    for text in said:
        metric, equals, value = (part.strip() for part in text.partition("="))
        if metric not in known:
            raise BadInput(f"--margin: {study.name} does not report {metric!r}{near(metric, known)}")
        try:
            margins[metric] = float(value)
        except ValueError:
            margins[metric] = 0.0
        if not equals or not 0 < margins[metric] < math.inf:
            raise BadInput(f"--margin: {metric}=VALUE, a positive number in the metric's unit, not {text!r}")
    report = tuple(replace(metric, margin=margins.get(metric.metric, metric.margin)) for metric in study.report)
    return study if report == study.report else study.reporting(report)


def resources_of(study: Study, scale: str, options: Options) -> Resources:
    """What a trial holds: as the scale says, but for what was typed.   BadInput"""
    known = study.scales[scale].resources
    workers = known.workers if options.workers is None else options.workers
    gpus = known.gpus if options.gpus is None else options.gpus
    least = min(known.least, workers) if options.least is None else options.least
    if least > workers:
        raise BadInput(f"--least: at most the {workers} workers of a trial (--workers), not {least}")
    if workers > 1 and gpus != int(gpus):
        raise BadInput(f"--gpus: a trial of {workers} workers wants a whole GPU for each, not {gpus:g}")
    try:
        return replace(known, workers=workers, gpus=gpus, least=least)
    except ValueError as error:
        raise BadInput(f"--gpus: {error}") from None


def open_store(options: Options) -> Store:
    return Store(options.store or options.out / "stages", cache=options.out / "stages",
                 code=current() if options.by_code else None)


def usable_store(options: Options) -> Store:
    """The store, once it is known to work; for who only looks, what --out has of it where it does not.   BadInput"""
    store, looks = open_store(options), options.report or options.dry_run
    try:
        writable.store("--store" if options.store else "--out", store.url, read_only=looks)
        if store.remote and not looks:
            writable.folder("--out", store.folder)
    except BadInput:
        if not looks:
            raise
        return Store(options.out / "stages", code=store.code)
    return store


def data_of(options: Options, store: Store) -> Any:
    """What --data says, its files kept in the store; None: the recipe's own.   BadInput, ConfigError"""
    if options.data is None:
        return None
    from trainables.text.corpora import choose_data
    try:
        return choose_data(options.data, options.test_data, store)
    except OSError as error:
        if disk_full(error):
            raise
        raise BadInput(f"--data: {options.data} cannot be read, or be kept in {shown(store.url)}: {error}") from None


def prepare(study: Study, options: Options, ledger: Ledger, cluster: Cluster | None,
            seeds: Mapping[str, int] | None = None) -> Plan:
    """The plan of what was typed, or of these seeds of each arm.   BadInput, ConfigError"""
    store = usable_store(options)
    if cluster is not None:
        scale, why = choose_scale(study, options.scale, cluster)
    elif options.scale is None and (past := ledger.cells()):
        scale, why = max(past, key=lambda record: record["ended"])["scale"], "the last that ran"
    else:
        scale, why = choose_scale(study, options.scale or next(iter(study.scales)), Cluster("local", ()))
    if scale not in study.scales:
        raise BadInput(f"--scale: what ran last, {scale!r}, is gone; name one of {', '.join(study.scales)}")
    resources = resources_of(study, scale, options)
    if cluster is not None and not options.dry_run:
        cluster.trials(resources)       # refuses what can never fit
    data = data_of(options, store)
    arms, rule = chosen_arms(study, options), Rule(options.seeds or Rule().most) if options.decide else None
    if options.report and rule is None and options.seeds is None and (past := remembered(ledger, scale)):
        rule = past[0]
    if seeds is None and rule is not None:
        seeds = first_seeds(ledger, scale, arms, rule, options.report)
    plan = make_plan(study, scale=scale, why=why, ledger=ledger, store=store, resources=resources, data=data,
                     seeds=seeds or options.seeds or study.seeds, arms=arms, assignments=options.assignments,
                     budget=Budget(options.hours, options.price, options.searched), rule=rule)
    if not options.report and not options.dry_run:
        check_world(plan, store)
    words = options.words() if options.typed is None else options.typed
    return replace(plan, again=shlex.join(["python", *study.program.split(), "--scale", scale, *words]),
                   answer=Findings(plan, ledger).answer_cost() if options.dry_run else "")


def check_world(plan: Plan, store: Store) -> None:
    """Ask the trials that will run, and the stages they will make, whether they can.   ConfigError"""
    asked: set[Any] = set()
    for cell in plan.missing:
        for thing in (cell.trial, *(stage for stage in cell.stages() if not store.has(stage))):
            if thing not in asked and isinstance(thing, Checks):
                try:
                    thing.check(Context(store))
                except ConfigError as error:
                    raise ConfigError(error.path, f"{error.problem} [arm {cell.arm!r}]") from None
            asked.add(thing)
