"""Does the code still do what it did?

The studies of nightly.toml on tonight's commit, each cell compared with itself on the last good night: the same arm,
the same seed, so the same data, order and noise.  Only what the change of the code can have touched is run.  A study
passes, has regressed (which metric, how much, since which commits), or cannot be judged by the seeds that it may have.

    python studies/nightly.py --dry-run                   what would run, and what has changed since the last good night
    python studies/nightly.py                             run, judge, say; exit code 3 where something regressed
    python studies/nightly.py --only encoder --accept     what changed was meant: compare with last night from now on

Every night: cluster/nightly (systemd, GitHub Actions), cluster/kuberay/nightly.yaml (Kubernetes).
Results go to --out: night.md, history.html, nights.jsonl, and a folder and an MLflow experiment per study.
"""

from pathlib import Path
from typing import Annotated

import typer

from studies.engine.nightly import nightly

HERE = Path(__file__).resolve().parent


def command(
    file: Annotated[Path, typer.Option(help="What is watched.")] = HERE / "nightly.toml",
    out: Annotated[Path, typer.Option(
        help="Where results go, night after night; on a cluster, where every node sees it.")] = Path("results/nightly"),
    only: Annotated[str | None, typer.Option(help="One study of the file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the night here, for programs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and leave.")] = False,
    accept: Annotated[bool, typer.Option(
        "--accept", help="With --only: compare the next nights with the last one, whatever was said of it.")] = False,
) -> None:
    """Does the code still do what it did?"""
    raise typer.Exit(nightly(file, out.absolute(), only=only, json=json, dry_run=dry_run, accept=accept))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    app(prog_name="nightly.py")
