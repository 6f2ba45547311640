"""A search's story for MLflow: begun before the search, and ended whatever ends it.

    with recorded(plan, searches, ...) as story:       what cells tell is shipped; a guardian watches
        ...
        story["status"] = "done"                       else it was stopped
    behind it                                          search.md, search.json, the parent run's end; all is shipped, no
                                                       run RUNNING but of drivers that help; the guardian leaves

Each of these is done whatever became of the others: storage, disk and server may be what ended the search.

A driver that helps (`helping`) leaves all of this to the one that leads; but where that one has gone before it, the
helper is the last who knows that nobody runs any more, and does it at its own end.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from studies.engine import search_report
from studies.engine.cluster import quiet
from studies.engine.guardian import Guardian, ship, standing_in
from studies.engine.ledger import Ledger
from studies.engine.options import Options
from studies.engine.plan import Plan
from studies.engine.provenance import code
from studies.engine.search import Search
from studies.engine.shipping import Shipper
from studies.engine.storage import LOST, why
from studies.engine.tracking import PARENT, Tracking, parent_story


@contextlib.contextmanager
def recorded(plan: Plan, searches: Mapping[str, Search], options: Options, ledger: Ledger, say: Callable[[str], None]
             ) -> Iterator[dict[str, str]]:
    """Record what happens in here; yields the story, whose "status" is the caller's to say.   BadInput: no server"""
    with quiet(ledger.folder / "ray.log"):
        tracking = Tracking(plan.study.name, options.out)
        tracking.insist()
    guardian = Guardian(plan.study.name, ledger.folder, options.out)
    parent = parent_story(ledger, plan, code())
    shipping = Shipper(tracking, ledger.folder / "outbox")
    if shipping.drain():
        tracking.settle({PARENT, *(key for one in searches.values() for key in one.running())})     # they run, or will
    shipping.start()
    story = {"status": "stopped"}

    def end() -> None:
        parent.end(story["status"], 0.0, texts={"search.md": written(searches, ledger, say)})

    def rest() -> None:
        if shipping.close():
            tracking.settle(elsewhere(searches, shipping.outboxes))
        else:
            say(f"MLflow did not take everything ({shipping.problem}); nothing is lost, and the same command ships the "
                "rest")

    with contextlib.ExitStack() as ending:                  # the last comes first
        for step in (guardian.farewell, rest, parent.close, end):
            ending.callback(step)
        yield story


@contextlib.contextmanager
def helping(study: str, searches: Mapping[str, Search], out: Path, ledger: Ledger, say: Callable[[str], None]
            ) -> Iterator[dict[str, str]]:
    """Help to search: whoever leads reports; who outlives the leader ships, and ends the runs of whoever died."""
    folder, over = ledger.folder, False
    try:
        yield {}
        over = True
    finally:
        with standing_in(folder) as ours:
            if ours:
                with quiet(folder / "ray.log"):
                    problem = ship(study, folder, out, elsewhere(searches, folder / "outbox"))
                written(searches, ledger, say)
                say(f"MLflow did not take everything ({problem}); nothing is lost, and the same command ships the rest"
                    if problem else "the driver that led has gone, so this one has shipped what was told")
                say(f"the search is {'over' if over else 'not over'}: the same command goes on from here")
            elif over:
                say(f"the search is over; the driver at work in {folder} reports it")


def written(searches: Mapping[str, Search], ledger: Ledger, say: Callable[[str], None]) -> str:
    """search.md, with search.json beside it; the last that could be written where the storage does not answer."""
    try:
        search_report.write(search_report.told(searches), ledger.folder)
    except LOST as error:
        say(f"search.md and search.json are as they were: {why(error)}")
    path = ledger.folder / "search.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def elsewhere(searches: Mapping[str, Search], outboxes: Path) -> set[str]:
    """Keys of the cells that drivers run which help; where the storage does not say, of all that we did not begin."""
    try:
        return {key for one in searches.values() for key in one.elsewhere()}
    except LOST:
        begun = {key for one in searches.values() for key in one.begun}
        cells = {path.stem for path in outboxes.glob("[!.]*.jsonl") if not path.stem.startswith("stage-")}
        return cells - begun - {PARENT}
