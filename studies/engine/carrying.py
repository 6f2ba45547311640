"""A plan is carried out: what is missing is run, and MLflow hears of it.

    carry_out     one wave: guardian, shipper, run_missing, what was superseded, the report; every end is told
    in_rounds     wave after wave, until arms are decided or the budget is spent
    ray_up        one Ray for a wave, or for several; a cluster that is joined is left alone
    run_missing   stages and cells on Ray, then the scores by which the best model is chosen
"""

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from studies.engine import report, rounds, stale
from studies.engine.cluster import Cluster, end_ray, quiet, shape, start_local
from studies.engine.guardian import Guardian
from studies.engine.halt import as_interrupt
from studies.engine.ledger import Ledger
from studies.engine.live import View
from studies.engine.options import Options, open_store, prepare
from studies.engine.plan import Plan
from studies.engine.provenance import code
from studies.engine.selection import candidates
from studies.engine.shipping import Shipper
from studies.engine.study import Study
from studies.engine.sweep import sweep_store, sweep_study
from studies.engine.telling import write_report
from studies.engine.tracking import PARENT, Tracking, parent_story


def carry_out(plan: Plan, options: Options, ledger: Ledger, cluster: Cluster, console: Console, tracking: Tracking,
              header: bool = True, last: bool = True) -> None:
    """Run what is missing, and ship to MLflow what it tells.   last: then judge who of the best arm is registered"""
    if header:
        console.print(Text("\n".join(plan.head())), soft_wrap=True)
    log = ledger.folder / "ray.log"
    with quiet(log):
        tracking.insist()
    guardian = Guardian(plan.study.name, ledger.folder, options.out)
    source = code()
    story = parent_story(ledger, plan, source)
    shipper = Shipper(tracking, ledger.folder / "outbox")
    if shipper.drain():
        tracking.settle({PARENT, *(cell.key for cell in plan.missing)})       # it runs, as they will
    sweep_study(ledger.folder)
    sweep_store(open_store(options))
    shipper.start()
    status = "stopped"
    try:
        run_missing(plan, options, ledger, cluster, log, source, last)
        findings = report.Findings(plan, ledger)
        status = "failed" if findings.failed() else "done"
    finally:
        sweep_store(open_store(options))         # of workers that were killed
        for old, new in stale.superseded(plan.cells, ledger.cells(), plan.scale).items():
            ledger.supersede(old, new)
        shipper.drain()
        write_report(plan, options, ledger, tracking.runs)
        story.end(status, 0.0, texts={name: (ledger.folder / name).read_text(encoding="utf-8")
                                      for name in ("table.md", "outcome.json", "report.html")
                                      if not options.asked})
        story.close()
        whole = shipper.close()
        if whole:
            tracking.settle()
        else:
            console.print(Text(f"MLflow did not take everything ({shipper.problem}); nothing is lost, "
                               "and the same command ships the rest"), soft_wrap=True)
        guardian.farewell()


def in_rounds(study: Study, plan: Plan, options: Options, ledger: Ledger, cluster: Cluster, console: Console,
              tracking: Tracking) -> Plan:
    """Wave after wave, until every arm is decided or the budget is spent; one Ray for all of them."""
    def again(seeds: Mapping[str, int] | None) -> Plan:
        return plan if seeds is None else prepare(study, options, ledger, cluster, seeds)

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    with contextlib.ExitStack() as until_the_end:
        begun: list[Plan] = []

        def go(wave: Plan) -> None:
            if not begun:
                say("\n".join(plan.head()))
                until_the_end.enter_context(ray_up(plan, ledger.folder / "ray.log"))
            begun.append(wave)
            carry_out(wave, options, ledger, cluster, console, tracking, header=False, last=False)

        ended = rounds.pursue(again, go, ledger, cluster.trials(plan.resources), say)
        carry_out(ended.only([]), options, ledger, cluster, console, tracking, header=not begun)
    for line in rounds.saved(report.Findings(ended, ledger)):
        say(line)
    return ended


@contextlib.contextmanager
def ray_up(plan: Plan, log: Path) -> Iterator[None]:
    """Ray, started where it is not there, and then ended; what is there already, or is joined, is left alone."""
    with quiet(log):
        import ray
    ours = not ray.is_initialized()
    try:
        with quiet(log):
            start_local(plan.resources)
        signal.signal(signal.SIGTERM, as_interrupt)       # ray.init takes it for itself
        yield
    finally:
        if ours:
            with quiet(log):
                give_back()
                end_ray()


def run_missing(plan: Plan, options: Options, ledger: Ledger, cluster: Cluster, log: Path, source: Any,
                last: bool) -> None:
    """Run, and judge the candidates where it is the last of its command."""
    def judging() -> Plan:
        """Nothing but the validation scores that the choice of the best model still lacks."""
        lacking = candidates(report.Findings(plan, ledger), open_store(options)) if last and not options.asked else ()
        return replace(plan.only([]), shared=lacking)

    if not plan.missing and not judging().shared:
        return
    with ray_up(plan, log), quiet(log) as user:
        from studies.engine.inline import Place
        from studies.engine.run import run
        console = Console(file=user, highlight=False)
        place = Place(study=plan.study.name, scale=plan.scale, data=plan.data, folder=ledger.folder,
                      store=open_store(options).url, resources=plan.resources, code=source,
                      by_code=open_store(options).code, program=plan.study.program)
        for part in (lambda: plan, judging):
            if (todo := part()).missing or todo.shared:
                with View(todo, ledger, console) as view:
                    run(todo, place, shape(cluster.address), view)


def give_back() -> None:
    """End the groups of workers that this driver may have, before Ray ends, or on a cluster that outlives us."""
    if (group := sys.modules.get("studies.engine.group")) is not None:      # else there is none, and Ray is not there
        group.release()
