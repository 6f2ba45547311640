"""Trials of several workers that wait for each other for ever, and the same trials as a study.

    python benchmarks/deadlock.py [--watch 40]

Four CPUs, four trials, two workers of one CPU each.  The way of the documentation: a Tune trial that holds a CPU and
starts a TorchTrainer, whose workers ask for theirs apart.  Tune starts four trials; they hold the four CPUs, and wait
for eight.

    alone      one such trial: how long it takes until its workers train (so the set-up as such works)
    naive      four of them, watched for --watch seconds, or three times as long as the one alone took
    ours       the same four as a study, on a cluster of four CPUs, with no setting of concurrency or placement

Each in a process group of its own, which is ended behind it.  Exit code 0: the naive way made no step, ours all.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPUS, TRIALS, WORKERS, STEPS = 4, 4, 2, 5
LONGEST = 900.0                         # seconds that anything may take that is to come to its end


# ---------------------------------------------------------------- the naive way, in a process of its own


def naive(folder: Path, trials: int) -> None:
    import ray
    from ray import train, tune
    from ray.train.torch import TorchConfig, TorchTrainer

    def loop(config: dict) -> None:
        for step in range(STEPS):
            (folder / f"step-{config['trial']}-{train.get_context().get_world_rank()}-{step}").touch()
            time.sleep(0.1)

    def driver(config: dict) -> None:
        (folder / f"driver-{config['trial']}").touch()
        TorchTrainer(loop, train_loop_config=config, torch_config=TorchConfig(backend="gloo"),
                     scaling_config=train.ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
                     run_config=train.RunConfig(name=f"trial-{config['trial']}", storage_path=str(folder / "train")),
                     ).fit()
        tune.report({"done": 1})

    ray.init(address="local", num_cpus=CPUS, log_to_driver=False, logging_level=logging.ERROR)
    def note() -> None:
        while True:
            (folder / "free.txt").write_text(f"{ray.available_resources().get('CPU', 0.0):g}")
            time.sleep(1.0)

    threading.Thread(target=note, daemon=True).start()
    tune.Tuner(tune.with_resources(driver, {"CPU": 1}), param_space={"trial": tune.grid_search(list(range(trials)))},
               run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0)).fit()


# ---------------------------------------------------------------- ours, in a process of its own


def ours(folder: Path) -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from studies.engine.cluster import settle_environment

    settle_environment()
    from functools import partial

    import ray
    from fake_trial import Training, recipe
    from ray.cluster_utils import Cluster

    from studies.engine.main import main
    from studies.engine.study import Arm, Minimise, Resources, Scale, Study

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS})
    os.environ["RAY_ADDRESS"] = str(cluster.address)
    try:
        scale = Scale(partial(recipe, training=Training(steps=STEPS, pause=0.1)), Resources(workers=WORKERS))
        main(Study(name="four", question="Does it finish?", seeds=TRIALS // 2, report=(Minimise("test/error"),),
                   arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})}, scales={"laptop": scale}),
             ["--out", str(folder)])
    finally:
        ray.shutdown()
        cluster.shutdown()


# ---------------------------------------------------------------- the comparison


class Watched:
    """One of the two as a process group, with a folder in which it leaves its traces."""

    def __init__(self, what: str, *arguments: str):
        self.folder = Path(tempfile.mkdtemp(prefix="deadlock-"))
        temporary = tempfile.mkdtemp(prefix="rd", dir="/tmp")          # a short path, and a Ray that nobody else finds
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        self.temporary, self.log = Path(temporary), open(self.folder / "log.txt", "w")
        self.process = subprocess.Popen(
            [sys.executable, __file__, what, str(self.folder), *arguments], stdout=self.log, stderr=subprocess.STDOUT,
            start_new_session=True, env=kept | {
                "RAY_TMPDIR": temporary, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])})

    def count(self, pattern: str) -> int:
        return len(list(self.folder.glob(pattern)))

    def until(self, pattern: str, count: int) -> float:
        """Seconds until there are so many traces of a kind."""
        began = time.monotonic()
        while self.count(pattern) < count:
            assert self.process.poll() is None, f"it ended: {(self.folder / 'log.txt').read_text()[-3000:]}"
            assert time.monotonic() - began < LONGEST, "it never happened"
            time.sleep(0.2)
        return time.monotonic() - began

    def end(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.temporary, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def compare(watch: float) -> int:
    print(f"{TRIALS} trials of {WORKERS} workers of 1 CPU, {CPUS} CPUs", flush=True)
    alone = Watched("naive", "1")
    try:
        alone.until("driver-*", 1)
        usual = alone.until("step-*", 1)
    finally:
        alone.end()
    print(f"naive, one trial alone   its workers train {usual:.0f} s after it began", flush=True)
    four, watch = Watched("naive", str(TRIALS)), max(watch, 3 * usual)
    try:
        four.until("driver-*", TRIALS)
        time.sleep(watch)
        steps, free = four.count("step-*"), (four.folder / "free.txt").read_text()
    finally:
        four.end()
    print(f"naive, {TRIALS} trials          all began, {free} of {CPUS} CPUs are free; {watch:.0f} s later their "
          f"workers have made {steps} of {TRIALS * WORKERS * STEPS} steps", flush=True)
    mine, began = Watched("ours"), time.monotonic()
    try:
        code = mine.process.wait(LONGEST)
        spent = time.monotonic() - began
        records = [json.loads(path.read_text()) for path in (mine.folder / "four" / "cells").glob("*.json")]
        done = sum(record["status"] == "done" and record["metrics"]["workers"] == WORKERS for record in records)
        if code:
            print((mine.folder / "log.txt").read_text()[-3000:])
    finally:
        mine.end()
    print(f"ours, {TRIALS} trials           {done} of {TRIALS} done by {WORKERS} workers each, {spent:.0f} s in all, "
          f"with Ray's start; exit code {code}", flush=True)
    return int(steps > 0 or done < TRIALS or code != 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["naive"]:
        naive(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["ours"]:
        ours(Path(sys.argv[2]))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--watch", type=float, default=40.0)
        sys.exit(compare(parser.parse_args().watch))
