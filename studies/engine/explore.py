"""The search's run: Ray Tune asks for cells, Optuna names them, workers do them; then the arms are at their best.

    tuned(study, ...) -> the study with each arm at the point that its search found, to be compared as any other
       |
       +-- the space around each arm is checked at every corner; stages that no parameter touches are made first
       +-- one Tuner; Asking (a Tune searcher) hands out cells, arm by arm in turn: all are searched side by side
       +-- the driver reads the cells' outboxes, tells Optuna their curves, and marks those that are to stop
       +-- search.md, search.json: what was tried, what was chosen, what to doubt; --report reads nothing else

However it ends (interrupted, given up, storage gone), what cells told is shipped and no run stays RUNNING.

Tune's own OptunaSearch is not used: it tells Optuna that stopped trials are complete, leaves diverged ones running for
ever, and cannot continue a search that was killed.  Several drivers may search at once: those that share --out (the
first leads and reports, the others help), and those that share OPTUNA_STORAGE.
"""

import contextlib
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from search_spaces.corners import around
from search_spaces.domains import Point
from studies.engine import found, search_report
from studies.engine.bound import Bound
from studies.engine.cluster import Cluster, quiet, shape, start_local
from studies.engine.guardian import leading
from studies.engine.halt import Halt, as_interrupt
from studies.engine.ledger import FINISHED, Ledger
from studies.engine.live import View
from studies.engine.options import Options, open_store, prepare
from studies.engine.plan import Cell, Plan, Shared
from studies.engine.provenance import code
from studies.engine.recorded import helping, recorded
from studies.engine.search import Search, named
from studies.engine.storage import LOST, Memory, away, storage_url, why
from studies.engine.study import BadInput, Study
from studies.engine.tuning import Task
from trainables.stages import Store, key, upstream


def tuned(study: Study, options: Options, ledger: Ledger, cluster: Cluster | None, console: Console
          ) -> tuple[Study, float] | None:
    """The study with each arm at its best point, searched first unless the user only looks; and the hours it cost.

    None: another driver leads this study and reports it; this one has helped it to search.
    BadInput, ConfigError; Halt: the storage went away, a disk is full, or every point fails
    """
    plan = prepare(study, options, ledger, cluster)
    tasks = {arm: study.searched(plan.scale, arm, trial, options.assignments) for arm, trial in plan.arms.items()}
    for task in tasks.values():
        task.check_metrics()
    url = storage_url(options.out, several_hosts=cluster is not None and cluster.address != "local")
    try:
        if options.report:
            return looked_up(study, plan, tasks, ledger, url, console), 0.0
        if options.dry_run and not _exists(url):
            say(console, search_report.describe(plan, tasks, {}, bound(plan, tasks), url))
            return study.found({}), 0.0
        with contextlib.closing(Memory(url)) as memory:
            return _tuned(study, plan, tasks, memory, options, ledger, cluster, console)
    except LOST as error:
        raise away(url, error) from None


def _tuned(study: Study, plan: Plan, tasks: Mapping[str, Task], memory: Memory, options: Options, ledger: Ledger,
           cluster: Cluster | None, console: Console) -> tuple[Study, float] | None:
    searches = {arm: Search(study.name, plan.scale, arm, task, memory, ledger) for arm, task in tasks.items()}
    most = bound(plan, tasks)
    if options.dry_run:
        say(console, search_report.describe(plan, tasks, searches, most, memory.url))
    else:
        assert cluster is not None
        with leading(ledger.folder, lambda text: say(console, [text])) as leads:
            say(console, search_report.describe(plan, tasks, searches, most, memory.url))
            search(plan, searches, most, options, ledger, cluster, console, leads)
            if not leads:
                return None
        say(console, ["", *search_report.outcome(search_report.told(searches))])
    chosen = {arm: [trial.params for trial in found.chosen(one)] for arm, one in searches.items()}
    return derived(study, tasks, chosen), most.spent(searches.values())


def looked_up(study: Study, plan: Plan, tasks: Mapping[str, Task], ledger: Ledger, url: str, console: Console) -> Study:
    """The study at the points that its last run wrote down.  The storage is asked only for arms that are not there:
    that run was killed, or compared others."""
    said = search_report.read(ledger.folder)
    chosen = search_report.points(said, {arm: named(study.name, plan.scale, arm, task)[1]
                                         for arm, task in tasks.items()})
    say(console, search_report.outcome({arm: said[arm] for arm in chosen}))
    if (others := tasks.keys() - chosen.keys()) and _exists(url):
        try:
            with contextlib.closing(Memory(url)) as memory:
                for arm in others:
                    one = Search(study.name, plan.scale, arm, tasks[arm], memory, ledger)
                    chosen[arm] = [trial.params for trial in found.chosen(one)]
                    say(console, search_report.outcome(search_report.told({arm: one})))
        except (BadInput, *LOST) as error:
            say(console, [f"{', '.join(sorted(others))}: no search is written down here, and {why(error)}"])
    return derived(study, tasks, {arm: chosen.get(arm, []) for arm in tasks})


def derived(study: Study, tasks: Mapping[str, Task], chosen: Mapping[str, Sequence[Point]]) -> Study:
    """What is compared after a search: each arm at its best point, or at the points of its front."""
    points: dict[str, Mapping[str, Any]] = {}
    arms: dict[str, Any] = {}
    assert study.tune is not None
    untuned = study.tune.keep_untuned
    for arm, task in tasks.items():
        some = chosen[arm]
        if untuned or not some:
            arms[arm] = study.arms[arm]
        own = task.space.point(task.base)
        for number, point in enumerate(some):
            name = arm if not untuned and len(some) == 1 else \
                f"{arm} tuned" if len(some) == 1 else f"{arm} front {number + 1}"
            if untuned and dict(point) == own:
                continue                                # it is the arm as it was, which is there
            arms[name] = study.arms[arm]
            points[name] = task.space.changes(point)
    return study.found(points, None if list(arms) == list(study.arms) else arms)


def bound(plan: Plan, tasks: Mapping[str, Task]) -> Bound:
    """What the search may cost, room for the comparison kept."""
    cells = 0
    for arm, task in tasks.items():
        seeds = sum(cell.arm == arm for cell in plan.cells)
        cells += seeds * (1 if len(task.select) == 1 else task.tune.keep)
        if task.tune.keep_untuned:
            cells += sum(cell.arm == arm and plan.status(cell) not in FINISHED for cell in plan.cells)
    return Bound(plan.budget, plan.unit, cells)


def say(console: Console, lines: Iterable[str]) -> None:
    console.print(Text("\n".join(lines)), soft_wrap=True)


# ---------------------------------------------------------------- the run


def search(plan: Plan, searches: Mapping[str, Search], most: Bound, options: Options, ledger: Ledger, cluster: Cluster,
           console: Console, leads: bool) -> None:
    """Search until every budget is spent; the leader also ships what cells tell to MLflow, and writes it down.

    Halt: it cannot go on, or all that it does fails
    """
    for one in searches.values():
        one.open()

    def line(text: str) -> None:
        say(console, [text])

    with (recorded(plan, searches, options, ledger, line) if leads else
          helping(plan.study.name, searches, options.out, ledger, line)) as story:
        if any(one.left() > 0 for one in searches.values()):
            run(plan, searches, most, options, ledger, cluster)
        if hopeless := [one.hopeless for one in searches.values() if one.hopeless]:
            story["status"] = "failed"
            raise Halt("the search is given up.  " + ";  ".join(hopeless) + ".  "
                       "Tracebacks are in MLflow; once that is mended, the same command tries them again and goes on")
        if most.said:
            say(console, [most.said])
        story["status"] = "done"


def run(plan: Plan, searches: Mapping[str, Search], most: Bound, options: Options, ledger: Ledger, cluster: Cluster
        ) -> None:
    """Shared stages, then Tune.  Ray stays up for the study that follows.   Halt"""
    with quiet(ledger.folder / "ray.log") as user:
        from studies.engine.asking import run_searches
        from studies.engine.inline import Place, one_line
        from studies.engine.run import make_shared

        place = Place(study=plan.study.name, scale=plan.scale, data=plan.data, folder=ledger.folder,
                      store=open_store(options).url, resources=plan.resources, code=code(),
                      program=plan.study.program)
        start_local(plan.resources)
        signal.signal(signal.SIGTERM, as_interrupt)         # ray.init takes it for itself
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
            problem = run_searches(able, asked, place, view, there, most)
        words = "" if problem is None else one_line(problem)
        if problem is not None:
            traceback.print_exception(problem, file=sys.stderr)             # into ray.log
    if isinstance(problem, LOST):
        raise away(next(iter(searches.values())).memory.url, problem)
    if problem is not None:
        raise Halt(f"the search stopped: {words} (all of it in {ledger.folder / 'ray.log'}).  The same "
                   "command continues from here")


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
        self.cells: dict[str, Cell] = {}
        self.study, self.scale, self.arms = self.plan.study, self.plan.scale, self.plan.arms
        self.history = self.plan.history
        self.to_come = {one.arm: max(one.left(), 0) for one in self.searches}       # before the first one ends

    @property
    def missing(self) -> list[Cell]:
        """The cells so far, and one without a content for each that is to come."""
        left = dict(self.to_come)
        for cell in self.cells.values():
            left[cell.arm] = left.get(cell.arm, 0) - 1
        return [*self.cells.values(), *(Cell(arm, 0, self.arms[arm], f"{arm} {number}", "valid", number)
                                        for arm, count in left.items() for number in range(count))]


def _exists(url: str) -> bool:
    path = Path(url.removeprefix("sqlite:///"))
    return path.exists() if not url.startswith("postgres") else True
