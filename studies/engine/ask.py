"""The command line of claims: plan what is missing, run it study by study, say what holds.

    claims.yaml -> claims -> by study and scale -> conduct(study, the arms that are asked) ... -> ledgers -> answers

Each study runs as its own command would, into the same --out, so cells that a study has run answer claims and cells
that claims have run are found by the study.  Its page, its --decide and its best model stay as its own last command
left them: only some of its arms are asked about here.  Exit codes as of a study: 0 all is said, whatever it is,
1 a cell failed, 2 bad input, 3 halted, 130 interrupted; the same command continues.
"""

import contextlib
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from studies.engine import answers_report, writable
from studies.engine.answers import answers
from studies.engine.carrying import ray_up
from studies.engine.claims import Asked, by_study, check_claim, chosen, read_claims
from studies.engine.cluster import Cluster, find_cluster, settle_environment
from studies.engine.ending import ending
from studies.engine.findings import Findings
from studies.engine.ledger import Ledger, write_whole
from studies.engine.live import span
from studies.engine.main import conduct
from studies.engine.options import Options, check, open_store, prepare
from studies.engine.plan import Plan
from studies.engine.provenance import ROOT, code
from studies.engine.report import as_json
from studies.engine.rounds import affordable
from studies.engine.study import Study


@dataclass(frozen=True)
class Inquiry:
    """What was typed."""

    only: str | None
    seeds: int | None
    hours: float | None
    out: Path
    assignments: tuple[str, ...]
    dry_run: bool
    report: bool
    store: str | None = None

    def options(self, group: Asked, **changes: object) -> Options:
        """The same, as a study's own command line would have it."""
        options = Options(
            scale=group.scale, data=None, test_data=None, seeds=self.seeds or group.study.seeds,
            arms=",".join(group.arms), assignments=self.assignments, workers=None, out=self.out, store=self.store,
            json=None, dry_run=self.dry_run, report=self.report, asked=True)
        return replace(options, **changes)


def main(path: Path, studies: Iterable[str], load: Callable[[str], Study], arguments: list[str] | None = None) -> None:
    """Answer the claims of a file as the command line says, and exit with its code.   load(name of a study) -> Study"""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command(help="Run what the claims of claims.yaml still need, and say which are supported, refuted, undecided.")
    def command(
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run and what it costs.")] = False,
        only: Annotated[str | None, typer.Option(help="Comma-separated names of claims.")] = None,
        seeds: Annotated[int | None, typer.Option(help="Paired seeds per arm; without it, each study's.")] = None,
        hours: Annotated[float | None, typer.Option(
            help="GPU hours (CPU hours without GPUs) that all cells together may cost.")] = None,
        assignments: Annotated[list[str] | None, typer.Option(
            "--set", help="path=value, in every arm of every study; again for more.")] = None,
        out: Annotated[Path, typer.Option(
            envvar="PALIMPSEST_OUT", help="Where the studies' results go, and claims/; on a cluster, where every node "
                                          "sees it.")] = Path("results"),
        store: Annotated[str | None, typer.Option(
            envvar="PALIMPSEST_STORE", help="Where stages go: a folder or a URL; without it, OUT/stages.")] = None,
        report: Annotated[bool, typer.Option(
            "--report", help="Say what the recorded cells say; run nothing.")] = False,
        claims: Annotated[Path, typer.Option(help="The file of claims.")] = path,
    ) -> None:
        raise typer.Exit(ask(claims, studies, load, Inquiry(
            only=only, seeds=seeds, hours=hours, out=out.absolute(), assignments=tuple(assignments or ()),
            dry_run=dry_run, report=report, store=store)))

    app(args=arguments, prog_name="claims.py")


def ask(path: Path, studies: Iterable[str], load: Callable[[str], Study], inquiry: Inquiry) -> int:
    """Everything between the command line and the exit code."""
    began = time.time()
    settle_environment()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200

    def work() -> int:
        if (folder := inquiry.out / "claims").exists():
            writable.folder("--out", folder)
        groups = by_study(chosen(read_claims(path, studies, load), inquiry.only), load)
        for group in groups:
            check(group.study, replace(inquiry.options(group), hours=inquiry.hours))
            for claim in group.claims:
                check_claim(claim, group.study, inquiry.assignments)
        cluster = None if inquiry.report else find_cluster()
        plans = [plan_of(group, inquiry, cluster) for group in groups]
        if inquiry.dry_run:
            console.print(Text("\n".join(costs(groups, plans))), soft_wrap=True)
            return 0
        worst = 0 if cluster is None else run(groups, inquiry, cluster, console)
        return worst if worst > 1 else max(worst, tell(groups, inquiry, console, began, again(path, inquiry)))

    return ending(work, console)


def plan_of(group: Asked, inquiry: Inquiry, cluster: Cluster | None) -> Plan:
    """The plan of a study's arms that are asked about.   BadInput, ConfigError"""
    return prepare(group.study, inquiry.options(group), Ledger(inquiry.out / group.study.name), cluster)


def run(groups: Sequence[Asked], inquiry: Inquiry, cluster: Cluster, console: Console) -> int:
    """Each study in turn, as far as --hours reaches, on one Ray; the worst exit code.  Bad input and halts end it."""
    worst, begun = 0, False
    with contextlib.ExitStack() as until_the_end:
        for group in groups:
            plan = plan_of(group, inquiry, cluster)
            if not plan.missing:
                continue
            hours = None if inquiry.hours is None else left(group, groups, inquiry, cluster)
            if hours is not None and not affords(group, hours, inquiry, cluster):
                console.print(Text(f"not started: {len(plan.missing)} cells of {group.study.name}, of which --hours "
                                   f"{inquiry.hours:g} affords none"), soft_wrap=True)
                continue
            console.print(Text(f"\n{', '.join(claim.name for claim in group.claims)}", style="bold"), soft_wrap=True)
            until_the_end.enter_context(ray_up(plan, inquiry.out / group.study.name / "ray.log"))
            worst = max(worst, conduct(group.study, inquiry.options(group, hours=hours), answered=begun))
            begun = True
            if worst > 1:
                break
    return worst


def left(group: Asked, groups: Sequence[Asked], inquiry: Inquiry, cluster: Cluster) -> float:
    """What this study may cost in all, what it has cost included, so that all of them keep to --hours."""
    found = [Findings(plan_of(each, inquiry, cluster), Ledger(inquiry.out / each.study.name)) for each in groups]
    made = {stage for findings in found for record in findings.records.values() for stage in record.get("stages", ())
            if stage not in record.get("reused", ())}
    spent = sum(findings.spent() for findings in found)
    for findings in found:               # what one study has trained and another has found was paid once
        spent -= sum(hours for stage, hours in findings.spared.items() if stage in made)
        made |= findings.spared.keys()
    return max((inquiry.hours or 0.0) - spent, 0.0) + found[groups.index(group)].spent()


def affords(group: Asked, hours: float, inquiry: Inquiry, cluster: Cluster) -> bool:
    """Whether a single cell fits into so many hours."""
    if hours <= 0:
        return False
    ledger = Ledger(inquiry.out / group.study.name)
    plan = prepare(group.study, inquiry.options(group, hours=hours), ledger, cluster)
    return bool(affordable(Findings(plan, ledger), plan.missing, cluster.trials(plan.resources)))


def again(path: Path, inquiry: Inquiry) -> str:
    """The command that asks the same, as it is typed; not where results go."""
    said = {"--only": inquiry.only, "--seeds": inquiry.seeds, "--hours": inquiry.hours and f"{inquiry.hours:g}",
            "--claims": None if path.resolve() == ROOT / "studies" / "claims.yaml" else path}
    words = [word for flag, value in said.items() if value is not None for word in (flag, str(value))]
    words += [word for text in inquiry.assignments for word in ("--set", text)]
    return shlex.join(["python", "studies/claims.py", *words])


def tell(groups: Sequence[Asked], inquiry: Inquiry, console: Console, began: float, command: str) -> int:
    """Print the answers, and write claims.md, claims.json and claims.html.   command: what would ask the same again"""
    read = replace(inquiry, report=True)
    asked = [(group, Findings(plan_of(group, read, None), Ledger(inquiry.out / group.study.name))) for group in groups]
    found = answers(asked, open_store(inquiry.options(groups[0])))
    commit, folder = code().commit, inquiry.out / "claims"
    cost = [f"{findings.plan.budget.spell(findings.spent(), findings.plan.unit)} in {group.study.name}"
            for group, findings in asked]
    if inquiry.assignments:
        cost.append(f"all with {', '.join(inquiry.assignments)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"claims.md": answers_report.markdown(found, cost),
                       "claims.json": as_json(answers_report.as_dict(found, commit)),
                       "claims.html": answers_report.page(found, cost, commit, command)}.items():
        write_whole(folder / name, text)
    console.print()
    console.print(answers_report.rich_table(found))
    for answer in found:
        console.print(Text(f"\n{answers_report.sentence(answer)}"), soft_wrap=True)
        if answer.pairs:
            console.print(Text(f"  cells: {', '.join(f'{arm} - {base}' for _, arm, base in answer.pairs)}",
                               style="dim"), soft_wrap=True)
    console.print(Text(f"\n{answers_report.headline(found)}\n{answers_report.MEANING}\n"
                       f"\nthe page            {folder / 'claims.html'}\n"
                       f"table               {folder / 'claims.md'}\n"
                       f"for programs        {folder / 'claims.json'}\n{span(time.time() - began)}"), soft_wrap=True)
    return 1 if any(findings.failed() for _, findings in asked) else 0


def costs(groups: Sequence[Asked], plans: Sequence[Plan]) -> list[str]:
    """What would run and what it is expected to cost; of cells like which none has run, as much as others here took."""
    known = [seconds for plan in plans for seconds in plan.history.values()]
    lines = ["| study | scale | claims | arms | done | to run | shared stages to make | expected |",
             "|---|---|---|---|---|---|---|---|"]
    total, guessed, unknown = 0.0, 0, 0
    for group, plan in zip(groups, plans, strict=True):
        hours, blank = plan.hours()
        usual = sum(known) / len(known) / 3600 * plan.share if known else None
        total, unknown = total + hours + (blank * usual if usual else 0.0), unknown + (0 if usual else blank)
        guessed += blank if usual else 0
        said = plan.expectation() if plan.missing and not (blank and usual) else "nothing to run" if not plan.missing \
            else f"{hours + blank * (usual or 0.0):.2g} {plan.unit} hours, {blank} of its parts guessed"
        lines.append(f"| {group.study.name} | {group.scale} | {len(group.claims)} | {', '.join(group.arms)} | "
                     f"{len(plan.cells) - len(plan.missing)} | {len(plan.missing)} | {len(plan.shared)} | {said} |")
    missing, unit = sum(len(plan.missing) for plan in plans), plans[0].unit
    lines += ["", f"{sum(len(group.claims) for group in groups)} claims, {sum(len(plan.cells) for plan in plans)} "
                  f"cells, {missing} to run: "
                  + ("nothing to pay" if not missing else f"unknown {unit} hours: nothing has run here yet"
                     if unknown and not total else f"about {total:.2g} {unit} hours"
                     + (f", of which {guessed} parts are guessed from what others here took" if guessed else "")
                     + (f", and {unknown} parts of unknown cost" if unknown else ""))]
    return lines
