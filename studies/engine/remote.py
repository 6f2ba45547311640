"""A study on a cluster, from this machine: the same command line, as a Ray job on the cluster's head.

    python studies/ablation_encoder.py --on cluster/gpu.yaml
      |  parcel.py    the tree, the files that the command names           tunnel.py    SSH to the head, nothing else
      v
    the job's name follows from the command: one that runs is joined, else it is submitted
      |  its log, line by line, here.  Ctrl-C leaves it running; the same command comes back; --stop ends it
      v
    its exit code is ours; reports come to results/CLUSTER/STUDY, and --json's file where it was asked for

Nothing that is refused has started anything.  The driver lives on the head, so a closed laptop ends no study.
"""

import getpass
import logging
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.text import Text

from studies.engine import bring
from studies.engine.cluster import SETTINGS
from studies.engine.follow import exit_code, follow, last_line
from studies.engine.halt import Halt
from studies.engine.knock import knock
from studies.engine.options import Options, check
from studies.engine.parcel import Parcel, pack
from studies.engine.study import BadInput, Study
from studies.engine.tunnel import Way, place, reach

GRACE = 40                              # seconds between SIGTERM and SIGKILL: a driver saves for 20
START = 60.0                            # seconds that a head may need until it takes jobs


def conduct(study: Study, options: Options, on: str, stop: bool) -> int:
    """Everything between the command line and the exit code.   BadInput"""
    console = Console(highlight=False)
    home = Path("results") / place(on) / study.name
    check(study, replace(options, out=Path("results").absolute()))
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    remote: Remote | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="palimpsest-") as folder:
            parcel = pack(Path(sys.argv[0]).resolve(), sys.argv[1:], Path(folder))
            with reach(on) as way:
                knock(way)
                remote = Remote(way, study, parcel, console)
                return remote.carry_out(options, home, stop)
    except KeyboardInterrupt:
        console.print(Text("\n" + (remote.left() if remote else "stopped; nothing was sent")), soft_wrap=True)
        return 130
    except (requests.RequestException, RuntimeError) as error:          # Ray's client raises the latter for any refusal
        raise Halt(f"the way to {on} broke: {last_line(error)}.  The same command looks for the study again") from None
    finally:
        signal.signal(signal.SIGTERM, before)


class Remote:
    """One command on one cluster."""

    def __init__(self, way: Way, study: Study, parcel: Parcel, console: Console):
        self.way, self.study, self.parcel, self.console = way, study, parcel, console
        self.client = connect(way)
        self.stem, self.job = f"{study.name}-{parcel.digest}", ""        # the job, once it is sent or found

    def say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def carry_out(self, options: Options, home: Path, stop: bool) -> int:
        running = self.running()
        if stop:
            return self.stop(running)
        code = exit_code(follow(self.client, self.way, self.join(running) if running else self.submit()))
        if code in (0, 1) and not options.dry_run:
            self.bring(options, home)
        return code

    def left(self) -> str:
        """What an interrupt leaves behind."""
        return (f"left {self.job} running on {self.way.name}; the same command comes back to it, with --stop it ends"
                if self.job else "stopped; nothing was sent")

    # -- which job

    def running(self) -> list[Any]:
        """The jobs of this very command that have not ended; one at most, but for a race of two laptops."""
        return [job for job in self.jobs() if job.submission_id.rpartition("-")[0] == self.stem]

    def jobs(self) -> list[Any]:
        """All studies that have not ended, of whatever command."""
        return [job for job in self.client.list_jobs() if not job.status.is_terminal() and job.submission_id
                and "study" in (job.metadata or {})]

    def join(self, running: list[Any]) -> str:
        job = running[0]
        self.job, said = job.submission_id, job.metadata
        since = time.strftime("%d %b %H:%M", time.localtime((job.start_time or 0) / 1000))
        self.say(f"found at work on {self.way.name}: {self.job}, sent by {said.get('from')}, {since}" + (
            "" if said.get("tree") == self.parcel.tree else
            ".  It runs the code that was sent then, and this tree has changed since: --stop, then the same command, "
            "to run this"))
        return self.job

    def submit(self) -> str:
        """Send the tree and start the job; the id.   BadInput"""
        past = [job for job in self.client.list_jobs() if (job.submission_id or "").rpartition("-")[0] == self.stem]
        job = f"{self.stem}-{len(past) + 1}"
        try:
            self.start(job, f"exec python {shlex.join(self.parcel.command)}",
                       {"study": self.study.name, "tree": self.parcel.tree,
                        "from": f"{getpass.getuser()}@{socket.gethostname()}"})
        except KeyboardInterrupt:                        # the tree was on its way, or had come
            if any(each.submission_id == job for each in self.running()):
                self.job = job
            raise
        self.job = job
        self.say(f"submitted to {self.way.name}: {self.job}.  Ctrl-C leaves it running; the same command comes back to "
                 "it, with --stop it ends")
        return self.job

    def start(self, job: str, entrypoint: str, metadata: dict[str, str]) -> None:
        os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"        # what stays behind, git has said already
        settings, until = SETTINGS | {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE)}, time.monotonic() + START
        while True:
            try:
                self.client.submit_job(
                    entrypoint=entrypoint, submission_id=job, metadata=metadata,
                    runtime_env={"working_dir": str(self.parcel.folder), "env_vars": settings})
                return
            except RuntimeError as error:
                if "already exists" in str(error):       # somebody typed the same, in the same second
                    return
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise BadInput(f"{self.way.name} does not take the job: {last_line(error)}") from None
                time.sleep(1)                            # a head that has just started

    def stop(self, running: list[Any]) -> int:
        if not running:
            others = [job for job in self.jobs() if (job.metadata or {}).get("study") == self.study.name]
            if others:
                raise BadInput("--stop: this command does not run; of the same study there runs " + "; ".join(
                    f"{job.entrypoint.removeprefix('exec ')} ({job.submission_id})" for job in others))
            self.say(f"nothing of this study runs on {self.way.name}")
            return 0
        for job in running:
            self.client.stop_job(job.submission_id)
        until = time.monotonic() + GRACE + 20
        while self.running() and time.monotonic() < until:
            time.sleep(0.5)
        if self.running():
            raise Halt(f"{running[0].submission_id} has not ended {GRACE + 20} s after it was asked to")
        self.say("stopped; the same command, without --stop, continues from here")
        return 0

    # -- what comes back

    def bring(self, options: Options, home: Path) -> None:
        """Copy the reports of the study to this machine."""
        try:
            names, problem = self.reports(home), "there are none"
        except (OSError, RuntimeError, BadInput) as error:
            names, problem = [], last_line(error)
        if not names:
            self.say(f"the reports could not be copied here ({problem}); the same command, with --report, tries again")
            return
        if options.json is not None and "outcome.json" in names:
            options.json.write_bytes((home / "outcome.json").read_bytes())
        self.say(f"copied here         {home}{os.sep}{{{', '.join(names)}}}")

    def reports(self, home: Path) -> list[str]:
        """Their names, once they are in `home`; a job of its own on the head prints them."""
        job = f"{self.stem}-reports-{time.time_ns()}"
        out = shlex.quote(self.parcel.out) if self.parcel.out else '"$PALIMPSEST_OUT"'
        self.start(job, f"exec python -m studies.engine.bring {out}/{self.study.name}", {})
        while not (info := self.client.get_job_info(job)).status.is_terminal():
            time.sleep(0.3)
        if info.status != "SUCCEEDED":
            raise RuntimeError(info.message)
        return bring.unpack(self.client.get_job_logs(job), home)


def connect(way: Way) -> Any:
    """Ray's client of the head's job server."""
    os.environ["RAY_API_SERVER_ADDRESS"] = way.url          # else RAY_ADDRESS would win over what we say
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("ray.dashboard.modules")]:
        logging.getLogger(name).setLevel(logging.WARNING)       # each has a level of its own
    return JobSubmissionClient(way.url, headers=way.headers)


def _as_interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
