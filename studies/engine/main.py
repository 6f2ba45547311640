"""The command line that all studies share.

    if __name__ == "__main__":
        main(study)

Exit codes: 0 all fine, 1 a cell failed or diverged, 2 bad input (said in one screen, before anything starts),
3 halted by something outside, such as a full disk, 130 stopped by Ctrl-C or SIGTERM; typing the same command again
continues.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from studies.engine import rounds, writable
from studies.engine.carrying import carry_out, give_back, in_rounds
from studies.engine.cluster import Cluster, dashboard, find_cluster, settle_environment
from studies.engine.cluster_file import elsewhere
from studies.engine.ending import ending
from studies.engine.guardian import leading
from studies.engine.halt import as_interrupt
from studies.engine.ledger import Ledger
from studies.engine.options import Options, check, check_world, open_store, prepare, with_margins
from studies.engine.plan import Plan
from studies.engine.study import BadInput, Study
from studies.engine.telling import register, remember, tell
from studies.engine.tracking import Tracking
from trainables.config import ConfigError


def main(study: Study, arguments: list[str] | None = None) -> None:
    """Run the study as the command line says, and exit with its code.  `arguments`: sys.argv where None."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command(help=f"{study.question}  {study.expectation}")
    def command(
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and leave.")] = False,
        scale: Annotated[str | None, typer.Option(
            help=f"{' | '.join(study.scales)}; without it, paper where there are GPUs, else laptop.")] = None,
        data: Annotated[str | None, typer.Option(
            help="A built-in name, hub-name:column, or a file: texts.txt, texts.jsonl[:field], "
                 "texts.csv:column[:group].")] = None,
        test_data: Annotated[str | None, typer.Option(help="A file of test texts, beside a --data file.")] = None,
        seeds: Annotated[int | None, typer.Option(help=f"Paired seeds per arm; without it, {study.seeds}.")] = None,
        arms: Annotated[str | None, typer.Option(help=f"Comma-separated, of: {', '.join(study.arms)}.")] = None,
        assignments: Annotated[list[str] | None, typer.Option(
            "--set", help="path=value, in every arm; again for more.")] = None,
        workers: Annotated[int | None, typer.Option(help="Workers per trial, joined by Ray Train.")] = None,
        least: Annotated[int | None, typer.Option(
            help="Workers that a trial makes do with while the cluster has no more; without it, all.")] = None,
        gpus: Annotated[float | None, typer.Option(
            help="GPUs per worker: 1, or a fraction, such as .5, where a trial has one worker.")] = None,
        margin: Annotated[list[str] | None, typer.Option(
            help="metric=value: differences within it do not matter; again for more metrics.")] = None,
        out: Annotated[Path, typer.Option(
            envvar="PALIMPSEST_OUT", help="Where results go; on a cluster, where every node sees it.")] =
        Path("results"),
        store: Annotated[str | None, typer.Option(
            envvar="PALIMPSEST_STORE", help="Where stages go: a folder or a URL; without it, OUT/stages.")] = None,
        json: Annotated[Path | None, typer.Option(help="Write the outcome here, for programs.")] = None,
        decide: Annotated[bool, typer.Option(
            "--decide", help="Add seeds until each arm is decided, hopeless, or has --seeds (20).")] = False,
        hours: Annotated[float | None, typer.Option(
            help="GPU hours (CPU hours without GPUs) that all cells together may cost.")] = None,
        price: Annotated[float | None, typer.Option(help="Money an hour costs; expected costs are said in it.")] = None,
        tune: Annotated[int | None, typer.Option(
            help="Search the optimizer's settings inside each arm first, with so many points an arm.")] = None,
        by_code: Annotated[bool, typer.Option(
            "--by-code", help="Cells are told apart by the code they use, too: what was changed runs again.")] = False,
        report: Annotated[bool, typer.Option(
            "--report", help="Print the table from what is recorded; run nothing.")] = False,
        on: Annotated[str | None, typer.Option(
            envvar="PALIMPSEST_ON", help="A cluster's file, or the URL of its dashboard: the same command, there.")] =
        None,
        stop: Annotated[bool, typer.Option("--stop", help="With --on: end what this command runs there.")] = False,
    ) -> None:
        options = Options(
            scale=scale, data=data, test_data=test_data, seeds=seeds, arms=arms, assignments=tuple(assignments or ()),
            workers=workers, out=out.absolute(), store=store, json=json, dry_run=dry_run, report=report,
            decide=decide, hours=hours, price=price, tune=tune, by_code=by_code, least=least, gpus=gpus,
            margins=tuple(margin or ()))
        raise typer.Exit(conduct(study, options, on, stop))

    app(args=arguments, prog_name=f"{study.name}.py")


def conduct(study: Study, options: Options, on: str | None = None, stop: bool = False, answered: bool = False) -> int:
    """Everything between the command line and the exit code; on the cluster that `on` names, where it is not here.

    answered: the tracking server has answered this command before, for another study
    """
    began = time.time()
    settle_environment()
    before = signal.signal(signal.SIGTERM, as_interrupt)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160             # a log has no edge that a table could respect

    def work() -> int:
        if (there := elsewhere(on or dashboard(), stop)) is not None:
            from studies.engine import remote

            return remote.conduct(study, options, there, stop)
        return conduct_here(study, options, console, began, answered)

    try:
        return ending(work, console)
    finally:
        give_back()
        signal.signal(signal.SIGTERM, before)


def conduct_here(study: Study, options: Options, console: Console, began: float, answered: bool) -> int:
    """The command itself: search, plan, run, report.   BadInput, ConfigError, Halt, OSError, KeyboardInterrupt"""
    check(study, options)
    study, options = with_margins(study, options.margins), replace(options, typed=options.words())
    if options.tune is not None:
        from studies.engine.tuning import nuisance

        study = study.searching(nuisance(study.report, options.tune))
    ledger, tracking = Ledger(options.out / study.name), Tracking(study.name, options.out, answered)
    cluster = None if options.report else find_cluster()
    if study.tune is not None:
        from studies.engine import explore  # and Optuna with it

        settled = explore.tuned(study, options, ledger, cluster, console)
        if settled is None:
            return 0
        study = settled[0]
        options = replace(options, arms=None, searched=settled[1], tuned=True)      # arms: those asked for
        tracking.answered = True                                        # the search has insisted
    plan = prepare(study, options, ledger, cluster)
    if options.dry_run:
        console.print(Text("\n".join(plan.lines())), soft_wrap=True)
        warn(plan, options, cluster, console)
        return 0
    if not options.report:
        assert cluster is not None
        with alone(ledger.folder, console):
            if options.decide or options.hours is not None:
                plan = in_rounds(study, plan, options, ledger, cluster, console, tracking)
            else:
                carry_out(plan, options, ledger, cluster, console, tracking)
                rounds.remember(ledger, plan, {})
            if not options.asked:
                register(plan, options, ledger, console)
        if not options.asked:
            remember(plan, options, ledger, cluster, console)
    return tell(plan, options, ledger, console, began)


def warn(plan: Plan, options: Options, cluster: Cluster | None, console: Console) -> None:
    """What would stop the plan here: a plan for a cluster may be read on a laptop."""
    try:
        if cluster is not None:
            cluster.trials(plan.resources)
        writable.store("--store", open_store(options).url, read_only=True)
        check_world(plan, open_store(options))
    except (BadInput, ConfigError) as error:
        console.print(Text(f"\nit cannot run here: {error}"), soft_wrap=True)


@contextlib.contextmanager
def alone(folder: Path, console: Console) -> Iterator[None]:
    """One driver per study and folder.   BadInput"""
    with leading(folder, lambda text: console.print(Text(text), soft_wrap=True)) as ours:
        if not ours:
            raise BadInput(f"another run of this study is at work in {folder}: wait for it, or name another --out")
        yield
