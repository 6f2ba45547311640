"""2,000 recorded trials in one study: what planning, reporting and each further trial cost as it grows.

    python benchmarks/scale.py [--trials 2000] [--search] [--ray]

Each trial is really done (a fake one of milliseconds: data, a shared stage, training, samples, metrics), recorded and
shipped to MLflow on SQLite.  At each size:

    attempt     a cell in its worker, from the first lookup to the record           ms a trial, over the last hundred
    ship        its story into MLflow                                               ms a trial, over the last hundred
    idle        one look of the shipper at everything                               ms
    resume      a new driver: connect, trust the journal, look                      s
    plan        expand, look up, say what to do (the whole study is asked for)      s, and ms a trial
    report      the outcome and the table, from the ledger                          s, and ms a trial

A search is measured beside it, on SQLite: points asked for, steps recorded, ends told as a driver does; TPE, halving,
and nothing trained between (an hour of training or none: the search costs the same):

    step        a step of a point's curve, remembered and judged        ms, the median of the last 25 points' steps
    ask         a point                                                 ms, the median of the last 25 points
    tell        what became of it                                       ms, the median of the last 25 points

With --ray the study also runs through Ray Tune as a user would run it: seconds a trial, hundred by hundred.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["RAY_ADDRESS"] = "local"

from studies.engine.cluster import settle_environment  # noqa: E402

settle_environment()

from fake_trial import recipe  # noqa: E402

from search_spaces.domains import Integers, LogUniform, Space  # noqa: E402
from studies.engine import report  # noqa: E402
from studies.engine.inline import Place, attempt  # noqa: E402
from studies.engine.ledger import Ledger  # noqa: E402
from studies.engine.plan import Plan  # noqa: E402
from studies.engine.planning import make_plan  # noqa: E402
from studies.engine.provenance import Code  # noqa: E402
from studies.engine.pruning import Halving  # noqa: E402
from studies.engine.search import Search  # noqa: E402
from studies.engine.shipping import Shipper  # noqa: E402
from studies.engine.storage import Memory  # noqa: E402
from studies.engine.study import Arm, Minimise, Resources, Scale, Study  # noqa: E402
from studies.engine.tracking import Tracking, parent_story  # noqa: E402
from studies.engine.tuning import Tune  # noqa: E402
from trainables.stages import Store  # noqa: E402

STEPS = 12                              # that a point which is not stopped records
ARMS = {f"arm {number}": Arm({"samples_drawn": 8 + number}) for number in range(20)}


def study() -> Study:
    return Study(name="scale", question="How does it grow?", arms=ARMS, scales={"laptop": Scale(recipe)},
                 report=(Minimise("test/error"),), seeds=1)


def plan_of(what: Study, out: Path, seeds: int) -> Plan:
    return make_plan(what, scale="laptop", why="asked for", ledger=Ledger(out / "scale"), store=Store(out / "stages"),
                     resources=Resources(), seeds=seeds, arms=what.arms)


def timed(work: Any, *arguments: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - began


def without_ray(trials: int) -> None:
    out, what, sizes = Path(tempfile.mkdtemp(prefix="scale-")), study(), []
    ledger = Ledger(out / "scale")
    place = Place(study="scale", scale="laptop", data="Words", folder=ledger.folder, store=str(out / "stages"),
                  resources=Resources(), code=Code("unknown", ""))
    tracking = Tracking("scale", out)
    whole = plan_of(what, out, trials // len(ARMS))
    parent_story(ledger, whole, place.code).close()
    shipper = Shipper(tracking, ledger.folder / "outbox")
    shipper.drain()
    attempts, ships = [], []
    print(f"{'trials':>7} {'attempt ms':>11} {'ship ms':>8} {'idle ms':>8} {'resume s':>9} "
          f"{'plan s':>7} {'ms each':>8} {'report s':>9} {'ms each':>8}")
    for done, cell in enumerate(whole.missing[:trials], start=1):
        _, spent = timed(attempt, cell, place, lambda context, cell=cell: context.get(cell.scored()))
        attempts.append(spent)
        _, spent = timed(shipper.drain, False)
        ships.append(spent)
        if done in (100, 200, 500, 1000, 1500, trials):
            _, idle = timed(shipper.drain)
            shipper.close()

            def resume() -> Shipper:
                again = Shipper(Tracking("scale", out), ledger.folder / "outbox")
                again.drain()
                return again

            shipper, back = timed(resume)
            plan, planning = timed(plan_of, what, out, done // len(ARMS))
            _, reporting = timed(lambda plan=plan: (report.outcome(found := report.Findings(plan, ledger), {}, ""),
                                                    report.markdown(found)))
            print(f"{done:>7} {1e3 * statistics.median(attempts[-100:]):>11.1f} "
                  f"{1e3 * statistics.median(ships[-100:]):>8.1f} {1e3 * idle:>8.1f} {back:>9.2f} "
                  f"{planning:>7.2f} {1e3 * planning / done:>8.2f} {reporting:>9.2f} {1e3 * reporting / done:>8.2f}",
                  flush=True)
            sizes.append(done)


def search(trials: int) -> None:
    out = Path(tempfile.mkdtemp(prefix="scale-search-"))
    space = Space({"system.shape.gain": LogUniform(0.1, 10.0), "training.steps": Integers(5, 10_000),
                   "samples_drawn": Integers(8, 1_000)})
    tune = Tune(space=space, select=(Minimise("valid/error"),), trials=trials,
                prune=Halving(Minimise("valid/loss"), first=3, factor=2))
    memory = Memory(f"sqlite:///{out}/optuna.db")
    one = Search("scale", "laptop", "base", tune.around(recipe()), memory, Ledger(out / "scale"))
    one.open()
    steps, asks, tells = [], [], []
    print(f"\n{'points':>7} {'step ms':>8} {'ask ms':>8} {'tell ms':>8}")
    for done in range(1, trials + 1):
        cell, spent = timed(one.ask)
        asks.append(spent)
        gain, status = cell.trial.system.shape.gain, "done"
        for step in range(1, STEPS + 1):
            reason, spent = timed(one.report, cell.key, step, {"valid/loss": gain / step})
            steps.append(spent)
            if reason:
                status = "pruned"
                break
        _, spent = timed(one.tell, cell.key, {"status": status, "reason": "", "cpu_hours": 0.1, "gpu_hours": 0.0,
                                              "seconds": 1.0, "metrics": {"valid/error": abs(gain - 1.0)}})
        tells.append(spent)
        if done in (100, 500, 1000, trials):
            print(f"{done:>7} " + " ".join(f"{1e3 * statistics.median(some):>8.1f}" for some in (
                steps[-25 * 3:], asks[-25:], tells[-25:])), flush=True)
    memory.close()


def with_ray(trials: int) -> None:
    from studies.engine.main import main

    out, what = Path(tempfile.mkdtemp(prefix="scale-ray-")), study()
    began = time.time()
    try:
        main(what, ["--out", str(out), "--seeds", str(trials // len(ARMS))])
    except SystemExit as ended:
        print(f"exit code {ended.code}, {time.time() - began:.0f} s in all")
    ends = sorted(record["ended"] for record in Ledger(out / "scale").cells())
    for first in range(0, len(ends) - 100, 100):
        print(f"trials {first:>5} to {first + 100:>5}: {(ends[first + 100] - ends[first]) / 100:.3f} s each")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--search", action="store_true", help="nothing but the search")
    asked = parser.parse_args()
    if not asked.search:
        without_ray(asked.trials)
    search(asked.trials)
    if asked.ray:
        with_ray(asked.trials)
