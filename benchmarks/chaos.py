"""Kill what a study consists of at random points, many times; then everything must be as if nothing had happened.

    python benchmarks/chaos.py [--kills 30] [--seed 0] [--workers 1] [--only driver,trial,server]

Each round begins in an empty folder, with an MLflow server of its own, and ends when the study does; there are as many
as it takes.  By chance dies, each time by kill -9:

    group     the driver's whole process group: itself, Ray, the trials
    driver    the driver alone; its Ray and its trials notice, sooner or later
    trial     a process that trains, leads a group, or is Tune's side of one (--workers 2); twice in a driver's life
    server    MLflow's server; it is away for 3 to 30 s

After a driver's death the same command is typed again, at once or (by chance) when its guardian has ended the runs.  At
the end the study is finished and verified (tests/disturbed.py): one record and one MLflow run per cell and stage, whole
curves, no doubled step, nothing RUNNING, and the table of an undisturbed run to the last digit.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

import disturbed as study  # noqa: E402
from served import Server  # noqa: E402

from studies.engine.admission import DEATHS  # noqa: E402

KINDS = {"group": 3, "driver": 3, "trial": 3, "server": 2}


class Round:
    """One study in one folder, and what is done to it."""

    def __init__(self, out: Path, chance: random.Random, kinds: list[str], workers: int):
        self.out, self.chance, self.kinds, self.killed = out, chance, kinds, Counter()
        self.arguments = ("--workers", str(workers)) if workers > 1 else ()
        self.server = Server(out)
        self.server.start()
        self.away: threading.Thread | None = None

    def live(self, most: int) -> bool:
        """A driver's life, with at most so many kills; whether it came to its end."""
        driver, trials = study.start(self.out, *self.arguments, extra=self.server.environment), 0
        before = self.killed.total()
        while self.killed.total() < before + most:
            if not self.moment(driver):
                return True
            kind = self.chance.choices(self.kinds, [KINDS[kind] for kind in self.kinds])[0]
            at_work = study.at_work(driver) if kind == "trial" and trials < DEATHS else []
            if kind == "trial" and not at_work:
                continue
            self.killed[kind] += 1
            print(f"  kill {kind}, {study.lines(self.out)} lines told", flush=True)
            if kind == "trial":
                trials += 1
                os.kill(self.chance.choice(at_work), signal.SIGKILL)
            elif kind == "server":
                self.take_away()
            else:
                self.end(driver, alone=kind == "driver")
                return False
        driver.wait()
        return True

    def moment(self, driver: subprocess.Popen) -> bool:
        """Wait for a random moment; False where the driver came to its end before."""
        if self.chance.random() < 0.2:
            try:
                driver.wait(self.chance.uniform(0.5, 20.0))
            except subprocess.TimeoutExpired:
                return True
            return False
        told = study.lines(self.out) + self.chance.randrange(1, len(study.ARMS) * study.STEPS // 2)
        if alive := study.wait(lambda: study.lines(self.out) >= told, driver, most=600):
            time.sleep(self.chance.uniform(0.0, 2 * study.PAUSE))
        return alive

    def take_away(self) -> None:
        """Kill the server, which comes back after a while."""
        self.back()
        self.server.kill()
        wait = self.chance.uniform(3.0, 30.0)
        self.away = threading.Thread(target=lambda: (time.sleep(wait), self.server.start()))
        self.away.start()

    def back(self) -> None:
        """Wait until the server is there: a command that is typed wants it to answer."""
        if self.away is not None:
            self.away.join()
        self.away = None

    def end(self, driver: subprocess.Popen, alone: bool) -> None:
        os.kill(driver.pid, signal.SIGKILL) if alone else study.kill(driver)
        driver.wait()
        if self.chance.random() < 0.3:
            self.back()
            study.settled(self.out)

    def finish(self) -> str:
        self.back()
        study.finish(self.out, *self.arguments, extra=self.server.environment)
        return study.verify(self.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("--kills", 30), ("--seed", 0), ("--workers", 1)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--only", default=",".join(KINDS))
    asked = parser.parse_args()
    chance, killed, rounds, began = random.Random(asked.seed), Counter(), 0, time.monotonic()
    while killed.total() < asked.kills:
        out, rounds = Path(tempfile.mkdtemp(prefix="chaos-")), rounds + 1
        one = Round(out, chance, asked.only.split(","), asked.workers)
        try:
            left = asked.kills - killed.total()
            while one.killed.total() < left and not one.live(left - one.killed.total()):
                one.back()
            print(f"round {rounds}: {dict(one.killed)}; {one.finish()}", flush=True)
        except AssertionError:
            print(f"left for inspection: {out}", flush=True)
            raise
        finally:
            one.back()
            one.server.kill()
        killed += one.killed
        shutil.rmtree(out)
    print(f"{killed.total()} kills ({', '.join(f'{count} {kind}' for kind, count in killed.items())}) in {rounds} "
          f"rounds, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
