"""The fixed cost of a trial, beyond its training: ours, and the plain ways, on the same machine in one process tree.

    python benchmarks/fixed_cost.py [--trials 50] [--plain 5] [--train 3] [--workers]

A trial trains for half a second (it sleeps, so that the machine's load does not count as training), makes its data,
samples and metrics, and is recorded: ledger and MLflow for ours, MLflow's fluent API for the plain ways.  Trials come
one after the other, so the cost of one is the time between two ends, less its training.

    ours        a study of one-worker cells: warm process, ledger, outbox, MLflow
    process     python -c "run the trial", once a trial
    tune        a Tune function trainable, as the documentation has it
    train       a TorchTrainer of one worker inside a Tune function trainable, as the documentation has it
With --workers also: ours with two workers a trial (a warm group), and train with two.
"""

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["RAY_ADDRESS"] = "local"

from studies.engine.cluster import find_cluster, settle_environment  # noqa: E402

settle_environment()

from fake_trial import Training, recipe  # noqa: E402

from studies.engine.ledger import Ledger  # noqa: E402
from studies.engine.study import Arm, Minimise, Resources, Scale, Study  # noqa: E402

TRAINING = Training(steps=10, pause=0.05)
SECONDS = TRAINING.steps * TRAINING.pause
CORES = len(os.sched_getaffinity(0))


def gaps(ends: list[float]) -> list[float]:
    """What each trial but the first took beyond its training."""
    ends = sorted(ends)
    return [later - earlier - SECONDS for earlier, later in zip(ends, ends[1:], strict=False)]


def ours(trials: int, workers: int = 1) -> list[float]:
    from studies.engine.main import main

    out = Path(tempfile.mkdtemp(prefix="fixed-cost-"))
    resources = Resources(cpus=CORES // workers or 1, workers=workers)
    study = Study(name="cost", question="What does a trial cost?", arms={"one": Arm()}, seeds=trials,
                  report=(Minimise("test/error"),),
                  scales={"laptop": Scale(partial(recipe, training=TRAINING), resources)})
    try:
        main(study, ["--out", str(out)])
    except SystemExit as ended:
        assert not ended.code, ended.code
    return gaps([record["ended"] for record in Ledger(out / "cost").cells()])


PLAIN = """
import json, sys
from pathlib import Path
import mlflow
from fake_trial import recipe
from trainables.config import override
from trainables.stages import Context, Store
def one(seed, folder, record_step=None):
    from fake_trial import Training
    trial = override(recipe(training=Training(steps=10, pause=0.05)), {"seed": seed})
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("plain")
    with mlflow.start_run():
        mlflow.log_params({"seed": seed})
        def record(step, metrics):
            mlflow.log_metrics(metrics, step=step)
        folder = Context(Store(f"{folder}/stages"), record=record).get(trial.metrics())
        metrics = json.loads((folder / "metrics.json").read_text())
        mlflow.log_metrics({name.replace("/", "_"): value for name, value in metrics.items()})
    return metrics
"""


def process(trials: int) -> list[float]:
    folder, ends = tempfile.mkdtemp(prefix="fixed-cost-"), []
    for seed in range(trials + 1):
        subprocess.run([sys.executable, "-c", f"{PLAIN}\none({seed}, {folder!r})"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends.append(time.time())
    return gaps(ends)


def through_tune(trials: int, body: Any, resources: dict[str, float]) -> list[float]:
    from ray import tune

    folder = tempfile.mkdtemp(prefix="fixed-cost-")
    tuner = tune.Tuner(
        tune.with_resources(partial(body, folder=folder), resources),
        param_space={"seed": tune.grid_search(list(range(trials + 1)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=f"{folder}/tune", verbose=0))
    return gaps([result.metrics["ended"] for result in tuner.fit()])      # type: ignore[index]


def tune_body(config: dict, folder: str) -> None:
    from ray import tune
    space: dict[str, Any] = {}
    exec(PLAIN, space)
    space["one"](config["seed"], folder)
    tune.report({"ended": time.time()})


def train_body(config: dict, folder: str, workers: int = 1) -> None:
    from ray import train, tune
    from ray.train.torch import TorchConfig, TorchTrainer

    def loop(inner: dict) -> None:
        if train.get_context().get_world_rank() == 0:
            space: dict[str, Any] = {}
            exec(PLAIN, space)
            space["one"](inner["seed"], folder)
        train.report({"done": 1})

    TorchTrainer(loop, train_loop_config=config, torch_config=TorchConfig(backend="gloo"),
                 scaling_config=train.ScalingConfig(num_workers=workers),
                 run_config=train.RunConfig(name=f"trial-{config['seed']}", storage_path=f"{folder}/train")).fit()
    tune.report({"ended": time.time()})


def row(name: str, costs: list[float], base: float | None) -> float:
    median = statistics.median(costs)
    ratio = "" if base is None else f"{median / max(base, 1e-3):7.1f} x ours"
    print(f"{name:<22} {len(costs):>3} trials   {median:7.2f} s   ({min(costs):.2f} .. {max(costs):.2f})  {ratio}",
          flush=True)
    return median


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("--trials", 50), ("--plain", 5), ("--train", 3)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--workers", action="store_true")
    asked = parser.parse_args()
    print(f"fixed cost of a trial that trains for {SECONDS:g} s: median (least .. most)", flush=True)
    base = row("ours", ours(asked.trials), None)
    if asked.workers:
        row("ours, 2 workers", ours(max(10, asked.trials // 5), 2), base)
    row("process", process(asked.plain), base)
    import ray

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "2"          # as it is without us
    find_cluster()
    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level=logging.ERROR)
    row("tune", through_tune(asked.plain, tune_body, {"CPU": 1}), base)
    row("train", through_tune(asked.train, train_body, {"CPU": 1}), base)
    if asked.workers:
        row("train, 2 workers", through_tune(asked.train, partial(train_body, workers=2), {"CPU": 1}), base)
    ray.shutdown()
