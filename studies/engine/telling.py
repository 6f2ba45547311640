"""What a command leaves behind: files for people and programs, the best model, and the screen's last page.

    the ledger --> table.md .tex .csv, outcome.json, report.html, plan.md      write_report
               --> best/, models:/palimpsest-<study>@best                      register
               --> the search storage, beside the searches                     remember
               --> the terminal: table, verdicts, samples, where to look       tell
"""

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from studies.engine import formats, page, report, search_page
from studies.engine.cluster import Cluster, quiet
from studies.engine.ledger import Ledger, write_whole
from studies.engine.live import span
from studies.engine.options import Options, open_store
from studies.engine.plan import Plan
from studies.engine.provenance import code
from studies.engine.shipping import run_ids
from studies.engine.tracking import shown, tracking_uri


def write_report(plan: Plan, options: Options, ledger: Ledger, runs: dict[str, str]) -> report.Findings:
    """plan.md, tables, report.html and outcome.json in the study's folder, and --json's file; none where claims ask."""
    findings = report.Findings(plan, ledger)
    if options.asked:
        return findings
    result = report.as_json(report.outcome(findings, runs, code().commit))
    said = replace(plan, answer=findings.answer_cost()).lines()
    sections = [*page.sections(findings, runs, run_link(options.out)),
                *(search_page.sections(ledger.folder) if options.tuned else ())]
    for name, text in {"plan.md": "\n".join(said) + "\n", "outcome.json": result,
                       "table.md": report.markdown(findings) + "\n", "table.tex": formats.latex(findings),
                       "table.csv": formats.table_csv(findings), "report.html": page.page(findings, sections)}.items():
        write_whole(ledger.folder / name, text)
    if options.json is not None:
        options.json.write_text(result, encoding="utf-8")
    return findings


def run_link(out: Path) -> Callable[[str], str]:
    """Where a browser finds a run: on the tracking server, or on `make ui`'s."""
    uri = shown(tracking_uri(out)).rstrip("/")
    base = uri if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    return lambda run: f"{base}/#/runs/{run}"


def remember(plan: Plan, options: Options, ledger: Ledger, cluster: Cluster, console: Console) -> None:
    """Put the comparison beside the searches, where optuna-dashboard finds both."""
    from studies.engine.mirror import keep
    from studies.engine.storage import storage_url

    problem = keep(report.Findings(plan, ledger), storage_url(options.out, several_hosts=cluster.address != "local"))
    if problem is not None:
        console.print(Text(f"not in the search storage: {problem}"), soft_wrap=True)


def register(plan: Plan, options: Options, ledger: Ledger, console: Console) -> None:
    """Put the best model so far into MLflow's registry, as a generator."""
    with quiet(ledger.folder / "ray.log"):
        from studies.engine.registry import keep_best

        problem = keep_best(report.Findings(plan, ledger), open_store(options), options.out)
    if problem is not None:
        console.print(Text(f"the best model is not in the registry ({problem}); the same command tries again"),
                      soft_wrap=True)


def tell(plan: Plan, options: Options, ledger: Ledger, console: Console, began: float) -> int:
    """Print the table, the best arm's texts, and where to look next."""
    findings = write_report(plan, options, ledger, run_ids(ledger.folder / "outbox", options.out))
    console.print()
    console.print(report.rich_table(findings))
    console.print(Text(report.caption(findings)), soft_wrap=True)
    for sentence in report.sentences(findings):
        console.print(Text(f"\n{sentence}"), soft_wrap=True)
    if (effects := report.rich_effects(findings)) is not None:
        console.print()
        console.print(effects)
    best, texts, real = report.samples(findings)
    for title, some in ((f"{best} writes", texts), ("real texts", real)):
        if some:
            console.print(Text(f"\n{title}", style="bold"))
            for text in some:
                console.print(Text(f"  {text}"), soft_wrap=True)
    if options.asked:
        return 1 if findings.failed() else 0
    console.print(Text(f"\nthe report          {ledger.folder / 'report.html'}\n"
                       f"table and samples   {ledger.folder / 'table.md'}\n"
                       f"for programs        {ledger.folder / 'outcome.json'}\n"
                       f"{best_model(ledger)}"
                       f"curves, parameters  {browse(options.out)}\n"
                       f"{span(time.time() - began)}"), soft_wrap=True)
    return 1 if findings.failed() else 0


def browse(out: Path) -> str:
    """What shows the runs: the server's page, or the command that serves the file."""
    uri = shown(tracking_uri(out))
    return uri if uri.startswith(("http://", "https://")) else \
        f"mlflow ui --host 127.0.0.1 --backend-store-uri {shlex.quote(uri)}"


def best_model(ledger: Ledger) -> str:
    """How the best model writes on, where there is one."""
    folder = ledger.folder / "best"
    return f"the best model      python -m trainables.generate --model {shlex.quote(str(folder))} -n 10\n" \
        if folder.is_dir() else ""
