"""Kill a study's driver at random points, many times; then everything must be as if nothing had happened.

    python benchmarks/chaos.py [--kills 30] [--rounds 3] [--seed 0]

Each round begins in an empty folder, kills the driver's whole process group --kills / --rounds times, lets it finish,
and verifies (tests/disturbed.py): one record and one MLflow run per cell and stage, whole curves, no doubled step,
nothing RUNNING, and the table of an undisturbed run to the last digit.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

import disturbed as study  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("--kills", 30), ("--rounds", 3), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default)
    asked = parser.parse_args()
    chance, killed, began = random.Random(asked.seed), 0, time.monotonic()
    for number in range(asked.rounds):
        out = Path(tempfile.mkdtemp(prefix="chaos-"))
        try:
            while killed < asked.kills * (number + 1) // asked.rounds:
                what = study.disturb(out, chance)
                killed += "killed" in what
                print(f"round {number + 1}: {what}", flush=True)
                if "end" in what.split():
                    break                # it was done: there is nothing left to disturb
            study.finish(out)
            study.verify(out)
            print(f"round {number + 1}: every record, run, curve and number is in place", flush=True)
        except AssertionError:
            print(f"left for inspection: {out}", flush=True)
            raise
        shutil.rmtree(out)
    print(f"{killed} kills, {time.monotonic() - began:.0f} s")
