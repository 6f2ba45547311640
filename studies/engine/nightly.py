"""The nightly command: the file is read and refused, the studies run one after the other, and what was found is said.

    nightly.toml -> checks -> lock -> night.py for each study -> nights.jsonl, night.md, history.html, --json
                                                              -> MLflow tags, notices -> exit code

    0 all passed, or nothing can be said    1 a cell failed           2 bad input, said before anything starts
    3 something regressed                   75 another night runs     130 stopped; the same command continues

A night that is stopped, or whose disk is full, keeps all that it has done, and removes what no night needs any more.
What ends before there is anything to judge is told by whoever started it: cluster/nightly/notify.sh.
"""

import os
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from studies.engine import report, writable
from studies.engine.clearing import clear
from studies.engine.cluster import find_cluster, settle_environment
from studies.engine.cluster_file import is_head_of
from studies.engine.code_version import current
from studies.engine.ledger import Record, write_whole
from studies.engine.night import (
    BUSY,
    FAILED,
    STOPPED,
    Ended,
    StudyNight,
    check_plans,
    exit_code,
    printer,
    tell_tracking,
)
from studies.engine.nights import History
from studies.engine.nights_page import history_page
from studies.engine.notices import addresses, markdown, send, withheld, worth_saying
from studies.engine.provenance import ROOT
from studies.engine.study import BadInput
from studies.engine.watched import Find, Nightly, read_nightly
from trainables.config import ConfigError, near


def nightly(file: Path, out: Path, *, only: str | None = None, json: Path | None = None, dry_run: bool = False,
            accept: bool = False, find: Find | None = None, root: Path = ROOT) -> int:
    """The exit code.  `only`: one study of the file.  `find`, `root`: where studies, and commits, come from."""
    settle_environment()
    try:
        asked = read_nightly(file, find)
        chosen = choose(asked, only)
        if json is not None:
            writable.file("--json", json)
        if os.environ.get("PALIMPSEST_ON") and not is_head_of(os.environ["PALIMPSEST_ON"]):
            complain("PALIMPSEST_ON is for studies: a night runs where it is typed; cluster/nightly/install.sh on the "
                     "head makes it the cluster's")
        lock = locked(out)
        if accept:
            with lock:                  # a night at work would write its own history over this
                return accepted(History(out), chosen, only)
        to = {} if dry_run else addresses(asked.notify)
        with lock, withheld(to):
            return through(asked, chosen, out, json, dry_run, to, root)
    except Timeout:
        complain(f"another night is at work in {out}")
        return BUSY
    except KeyboardInterrupt:
        complain("stopped; the same command continues from here")
        return STOPPED
    except (BadInput, ConfigError) as error:
        complain(f"error: {error}")
        return 2
    except OSError as error:            # a disk that is full, a server that is gone; what is done is kept
        complain(f"halted: {error}.  The same command continues")
        return FAILED


def locked(out: Path) -> FileLock:
    """The lock of one night at a time in a folder, to be taken.   BadInput: nothing can be written there"""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".night.lock").touch()
    except OSError as error:
        raise BadInput(f"--out: cannot write into {out}: {error.strerror}") from None
    return FileLock(out / ".night.lock", timeout=0)


def choose(asked: Nightly, only: str | None) -> Nightly:
    """The file's studies, or one of them."""
    names = [watched.name for watched in asked.studies]
    if only is not None and only not in names:
        raise BadInput(f"--only: no study {only!r}{near(only, names)}")
    return replace(asked, studies=tuple(each for each in asked.studies if only in (None, each.name)))


def accepted(history: History, asked: Nightly, only: str | None) -> int:
    """Make last night the measure of the next ones: what changed was meant."""
    if only is None:
        raise BadInput("--accept: say whose last night with --only NAME")
    number = history.accept(asked.studies[0].name)
    if number is None:
        raise BadInput(f"--accept: {only} has no night in {history.out}")
    printer(Console(highlight=False))(f"night {number} of {only} is what the next nights are compared with")
    return 0


def through(asked: Nightly, chosen: Nightly, out: Path, json: Path | None, dry_run: bool, to: dict[str, str],
            root: Path) -> int:
    """The night itself."""
    history, console = History(out), Console(highlight=False)
    say = printer(console)
    studies = [StudyNight(watched, history, current(), say, root) for watched in chosen.studies]
    check_plans(studies, find_cluster())
    if dry_run:
        for study in studies:
            say("\n".join(study.plan()))
        return 0
    before = {watched.name: nights[-1]["verdict"] for watched in chosen.studies
              if (nights := history.nights(watched.name))}
    nights: list[Record] = []
    stopped = 0
    for study in studies:
        try:
            night = study.run()
        except Ended as ended:
            say(f"{study.watched.name}: the night ends here; what is done is kept, and the same command continues")
            stopped = ended.code
            break
        nights.append(night)
        if problem := tell_tracking(night, study.watched, out, markdown([night])):
            say(f"MLflow did not take the verdict ({problem}); the next night ships it")
    if nights:
        write_whole(out / "night.md", markdown(nights))
        write_whole(out / "history.html", history_page(asked, history))
        say("\n" + markdown(nights) + f"\nthe history   {out / 'history.html'}")
        if to and worth_saying(nights, before):
            if failed := send(nights, to):
                complain(f"not told: {', '.join(failed)}")
            elif not stopped:
                note_told(out)
    clear(history, asked.studies, asked.keep)
    code = stopped or exit_code(nights)
    if json is not None:
        json.write_text(report.as_json({"exit": code, "nights": nights}), encoding="utf-8")
    return code


def note_told(out: Path) -> None:
    """Note which run has said what there was to say: whoever started it (cluster/nightly/notify.sh) need not."""
    if run := os.environ.get("INVOCATION_ID"):          # systemd's, or the pod's name
        write_whole(out / "told", run + "\n")


def complain(text: str) -> None:
    Console(stderr=True, highlight=False).print(Text(text), soft_wrap=True)
