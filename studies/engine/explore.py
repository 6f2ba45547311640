"""The search's run: Ray Tune asks for cells, Optuna names them, workers do them; then the arms are at their best.

    tuned(study, ...) -> the study with each arm at the point that its search found, to be compared as any other
       |
       +-- the space around each arm is checked at every corner; stages that no parameter touches are made first
       +-- one Tuner; Asking (a Tune searcher) hands out cells, arm by arm in turn: all are searched side by side
       +-- the driver reads the cells' outboxes, tells Optuna their curves, and marks those that are to stop
       +-- search.md, search.json: what was tried, what was chosen, what to doubt

Tune's own OptunaSearch is not used: it tells Optuna that stopped trials are complete, leaves diverged ones running for
ever, and cannot continue a search that was killed.  Several drivers may search at once: those that share --out (the
first leads and reports, the others help), and those that share OPTUNA_STORAGE.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from search_spaces.corners import around, spell
from search_spaces.domains import Choice, LogUniform
from studies.engine import found
from studies.engine.cluster import Cluster, quiet, shape, start_local
from studies.engine.guardian import Guardian, leading
from studies.engine.ledger import Ledger
from studies.engine.live import View
from studies.engine.options import Options, open_store, prepare
from studies.engine.plan import Cell, Plan, Shared
from studies.engine.provenance import code
from studies.engine.search import Search
from studies.engine.storage import Memory, storage_url
from studies.engine.study import BadInput, Maximise, Minimise, Study
from studies.engine.tracking import shown
from studies.engine.tuning import Tune, distribution
from trainables.stages import Store, key, upstream


def tuned(study: Study, options: Options, ledger: Ledger, cluster: Cluster | None, console: Console) -> Study | None:
    """The study with each arm at its best point; searched first, unless the user only looks.

    None: another driver leads this study and reports it; this one has helped it to search.   BadInput, ConfigError
    """
    tune = study.tune
    assert tune is not None
    plan = prepare(study, options, ledger, cluster)
    url = storage_url(options.out, several_hosts=cluster is not None and cluster.address != "local")
    looks = options.dry_run or options.report
    if looks and not _exists(url):
        console.print(Text("\n".join(describe(tune, plan, options, {}, url))), soft_wrap=True)
        return study.found({})
    memory = Memory(url)
    try:
        return _tuned(study, plan, memory, options, ledger, cluster, console)
    finally:
        memory.close()


def _tuned(study: Study, plan: Plan, memory: Memory, options: Options, ledger: Ledger, cluster: Cluster | None,
           console: Console) -> Study | None:
    tune, url, looks = study.tune, memory.url, options.dry_run or options.report
    assert tune is not None
    searches = {}
    for arm, trial in plan.arms.items():
        task = study.searched(plan.scale, arm, trial, options.assignments)
        searches[arm] = Search(study.name, plan.scale, arm, task, memory, ledger)
    if looks:
        console.print(Text("\n".join(describe(tune, plan, options, searches, url))), soft_wrap=True)
    else:
        assert cluster is not None
        with leading(ledger.folder, lambda text: console.print(Text(text), soft_wrap=True)) as leads:
            console.print(Text("\n".join(describe(tune, plan, options, searches, url))), soft_wrap=True)
            search(plan, searches, options, ledger, cluster, console, leads)
            if not leads:
                console.print(Text(f"the search is over; the driver at work in {ledger.folder} reports it"))
                return None
        console.print(Text("\n" + "\n".join(outcome(searches))), soft_wrap=True)
    return derived(study, searches)


def derived(study: Study, searches: Mapping[str, Search]) -> Study:
    """What is compared after a search: each arm at its best point, or at the points of its front."""
    points: dict[str, Mapping[str, Any]] = {}
    arms: dict[str, Any] = {}
    assert study.tune is not None
    untuned = study.tune.keep_untuned
    for arm, one in searches.items():
        chosen = found.chosen(one)
        if untuned or not chosen:
            arms[arm] = study.arms[arm]
        own = one.space.point(one.base)
        for number, trial in enumerate(chosen):
            name = arm if not untuned and len(chosen) == 1 else \
                f"{arm} tuned" if len(chosen) == 1 else f"{arm} front {number + 1}"
            if untuned and dict(trial.params) == own:
                continue                                # it is the arm as it was, which is there
            arms[name] = study.arms[arm]
            points[name] = one.space.changes(trial.params)
    return study.found(points, None if list(arms) == list(study.arms) else arms)


# ---------------------------------------------------------------- in words


def describe(tune: Tune, plan: Plan, options: Options, searches: Mapping[str, Search], url: str) -> list[str]:
    """The search as markdown: what varies, what is sought, how far it is."""
    lines = [f"# search inside {'each arm' if len(plan.arms) > 1 else next(iter(plan.arms))}", "",
             f"- {tune.trials} points{' an arm' if len(plan.arms) > 1 else ''} by {tune.sampler}",
             f"- remembered in {shown(url)}"]
    for arm, trial in plan.arms.items():
        one = searches.get(arm)
        task = one or plan.study.searched(plan.scale, arm, trial, options.assignments)
        sought = ", ".join(f"{'most' if isinstance(metric, Maximise) else 'least'} {metric.metric}"
                           for metric in task.select)
        ended = ", ".join(f"{count} {state}" for state, count in one.states().items()) if one else ""
        lines += ["", f"{arm}: {ended or 'nothing yet'}; {max(one.left(), 0) if one else tune.trials} to go",
                  f"  sought: {sought}", f"  stopped early by: {task.prune or 'nothing'}"]
        lines += [f"  {p.name}: {distribution(p.domain)}" for p in task.space.parameters()]
    return [*lines, ""]


def outcome(searches: Mapping[str, Search]) -> list[str]:
    """What came of the searches: points, and what to doubt."""
    lines = []
    for arm, one in searches.items():
        chosen = found.chosen(one)
        states = ", ".join(f"{count} {state}" for state, count in one.states().items())
        lines += [f"{arm}: {states}" + ("" if chosen else "; no point was finished, so the arm stays as it is")]
        for trial in chosen:
            values = ", ".join(f"{metric.metric} {value:.4g}"
                               for metric, value in zip(one.select, trial.values, strict=True))
            lines += [f"  {values} at point {trial.number}: {spell(trial.params)}"]
            lines += [f"  warning: {warning}" for warning in found.doubts(one, trial.params)]
    return lines


def _goal(metric: Minimise | Maximise) -> dict[str, str]:
    return {"metric": metric.metric, "way": "least" if isinstance(metric, Minimise) else "most"}


def write(searches: Mapping[str, Search], folder: Path) -> None:
    """search.md for people, search.json for programs and the report."""
    (folder / "search.md").write_text("\n".join(outcome(searches)) + "\n", encoding="utf-8")
    said = {arm: {
        "search": one.name, "storage": shown(one.memory.url), "sampler": str(one.tune.sampler),
        "prune": str(one.prune) if one.prune else None,
        "pruned on": [_goal(metric) for metric in one.prune.metrics] if one.prune else [],
        "goals": {goal["metric"]: goal["way"] for goal in map(_goal, one.select)},
        "parameters": {p.name: {
            "options": list(p.domain.names) if isinstance(p.domain, Choice) else None,
            "low": getattr(p.domain, "low", None), "high": getattr(p.domain, "high", None),
            "log": isinstance(p.domain, LogUniform) or getattr(p.domain, "log", False)}
            for p in one.space.parameters()},
        "states": one.states(), "chosen": [trial.number for trial in found.chosen(one)],
        "front": [trial.number for trial in found.front(one)],
        "warnings": [warning for trial in found.chosen(one) for warning in found.doubts(one, trial.params)],
        "importances": found.importances(one), "trials": found.table(one)} for arm, one in searches.items()}
    (folder / "search.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- the run


def search(plan: Plan, searches: Mapping[str, Search], options: Options, ledger: Ledger, cluster: Cluster,
           console: Console, leads: bool) -> None:
    """Search until every budget is spent; the leader also ships what cells tell to MLflow, and writes it down."""
    for one in searches.values():
        one.open()
    shipping = guardian = None
    if leads:
        from studies.engine.tracking import Shipper, Tracking, parent_story

        tracking = Tracking(plan.study.name, options.out)
        with quiet(ledger.folder / "ray.log"):
            tracking.insist()
        guardian = Guardian(plan.study.name, ledger.folder, options.out)
        story = parent_story(ledger, plan, code())
        shipping = Shipper(tracking, ledger.folder / "outbox")
        shipping.drain()
        tracking.settle({key for one in searches.values() for key in one.running()})
        shipping.start()
    status = "stopped"
    try:
        if any(one.left() > 0 for one in searches.values()):
            run(plan, searches, options, ledger, cluster)
        status = "done"
    finally:
        if shipping is not None and guardian is not None:
            write(searches, ledger.folder)
            story.end(status, 0.0, texts={"search.md": (ledger.folder / "search.md").read_text(encoding="utf-8")})
            story.close()
            if not shipping.close():
                console.print(Text(f"MLflow did not take everything ({shipping.problem}); nothing is lost, "
                                   "and the same command ships the rest"), soft_wrap=True)
            guardian.farewell()


def run(plan: Plan, searches: Mapping[str, Search], options: Options, ledger: Ledger, cluster: Cluster) -> None:
    """Shared stages, then Tune.  Ray stays up for the study that follows."""
    with quiet(ledger.folder / "ray.log") as user:
        from studies.engine.asking import run_searches
        from studies.engine.inline import Place
        from studies.engine.run import make_shared

        place = Place(study=plan.study.name, scale=plan.scale, data=plan.data, folder=ledger.folder,
                      store=open_store(options).url, resources=plan.resources, code=code())
        start_local(plan.resources)
        there = shape(cluster.address)
        store = place.open_store()
        shared = shared_stages(searches.values(), store)
        asked = Progress(plan, shared, list(searches.values()))
        with View(asked, ledger, Console(file=user, highlight=False)) as view:      # type: ignore[arg-type]
            view.concurrent = there.trials(place.resources)
            broken = make_shared(shared, place, view, there)
            able = [one for one in searches.values()
                    if not any(stage.key in broken and cell.arm == one.arm for stage in shared for cell in stage.cells)]
            for one in searches.values():
                if one not in able:
                    view.say(f"{one.arm}: not searched, since a stage that all its points stand on could not be made")
            problem = run_searches(able, asked, place, view, there)
    if problem is not None:
        raise BadInput(f"the search stopped: {problem}\nthe same command continues from here")


def shared_stages(searches: Iterable[Search], store: Store) -> tuple[Shared, ...]:
    """Stages that every point of a search will ask for and that the store lacks, in an order in which they can be made:
    those that stay the same whichever parameter moves."""
    users: dict[Any, list[Cell]] = {}
    for one in searches:
        point = one.space.point(one.base)
        cells = [one.cell(corner, 0) for corner in (point, *around(one.space, point))]
        common = set.intersection(*(set(cell.stages()) for cell in cells))
        asked = [stage for stage in common if stage in (cells[0].samples(), cells[0].scored())]
        asked += [needed for stage in cells[0].stages() if stage not in common for needed in stage.needs()
                  if needed in common]
        for stage in asked:                              # grows while it is walked
            if cells[0] not in (found := users.setdefault(stage, [])):
                found.append(cells[0])
                if not store.has(stage):
                    asked += stage.needs()
    order = [stage for stage in upstream(*users) if stage in users and not store.has(stage)]
    return tuple(Shared(stage, key(stage), tuple(users[stage]),
                        tuple(key(needed) for needed in stage.needs() if not store.has(needed))) for stage in order)


@dataclass
class Progress:
    """What a view wants to know of a plan, of one whose cells are made up on the way."""

    plan: Plan
    shared: tuple[Shared, ...]
    searches: list[Search]

    def __post_init__(self):
        self.cells: list[Cell] = []
        self.study, self.scale, self.arms = self.plan.study, self.plan.scale, self.plan.arms
        self.history = self.plan.history

    @cached_property
    def to_come(self) -> dict[str, int]:
        return {one.arm: max(one.left(), 0) for one in self.searches}

    @property
    def missing(self) -> list[Cell]:
        """The cells so far, and one without a content for each that is to come."""
        left = dict(self.to_come)
        for cell in self.cells:
            left[cell.arm] = left.get(cell.arm, 0) - 1
        return [*self.cells, *(Cell(arm, 0, self.arms[arm], f"{arm} {number}", "valid", number)
                               for arm, count in left.items() for number in range(count))]


def _exists(url: str) -> bool:
    path = Path(url.removeprefix("sqlite:///"))
    return path.exists() if not url.startswith("postgres") else True
