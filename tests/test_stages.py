"""Laws of stages: made once, whole or absent, and remade exactly when something they stand on has changed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from trainables.config import config, override
from trainables.stages import Context, Stage, Store, key, upstream
from trainables.tencdm import tencdm_laptop
from trainables.text.encoders import Roberta
from trainables.trial import Trial


@config
class Numbers:
    """Some files, one of them in a subfolder; every make is written down beside the store."""

    count: int = 3
    seconds: float = 0.0

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return ()

    def make(self, out: Path, context: Context) -> None:
        with open(context.store.folder.parent / "makes", "a") as log:
            log.write(f"{os.getpid()}\n")
        assert not list(out.iterdir())
        for i in range(self.count):
            (out / f"{i}.txt").write_text(str(i))
            time.sleep(self.seconds / self.count)
        (out / "deep").mkdir()
        (out / "deep" / "sum.txt").write_text(str(sum(range(self.count))))


@config
class Sum:
    of: Numbers = Numbers()
    power: int = 1

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.of,)

    def make(self, out: Path, context: Context) -> None:
        said = (context.get(self.of) / "deep" / "sum.txt").read_text()
        (out / "sum.txt").write_text(str(int(said) ** self.power))


@config
class Fails:
    resumes: ClassVar[list[str]] = []
    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return ()

    def make(self, out: Path, context: Context) -> None:
        self.resumes.append(" ".join(sorted(path.name for path in out.iterdir())))
        (out / f"part {len(self.resumes)}").touch()
        if len(self.resumes) < 3:
            raise RuntimeError("no luck")


@config
class Resumes(Fails):
    resumable: ClassVar[bool] = True
    curve: ClassVar[str] = "toy"


@pytest.fixture
def context(tmp_path) -> Context:
    return Context(Store(tmp_path / "store"))


def makes(context: Context) -> list[str]:
    log = context.store.folder.parent / "makes"
    return log.read_text().split() if log.exists() else []


def left(context: Context) -> list[str]:
    """What lies in the store, without locks."""
    return sorted(path.name for path in context.store.folder.iterdir() if not path.name.endswith(".lock"))


# ---------------------------------------------------------------- once, and whole


def test_found_ever_after(context):
    assert not context.store.has(Sum())
    folder = context.get(Sum(power=2))
    assert (folder / "sum.txt").read_text() == "9" and context.store.has(Sum(power=2))
    stamp = (folder / "sum.txt").stat().st_mtime_ns
    assert Context(Store(context.store.folder)).get(Sum(power=2)) == folder
    assert (folder / "sum.txt").stat().st_mtime_ns == stamp and len(makes(context)) == 1
    assert json.loads((folder / "stage.json").read_text())["of"] == {"class": "Numbers", "count": 3, "seconds": 0.0}
    assert Context(Store(f"file://{context.store.folder}")).get(Sum(power=2)) == folder


def test_six_threads_make_it_once(context):
    start = threading.Barrier(6)

    def ask(_):
        start.wait()
        return (context.get(Numbers(seconds=0.2)) / "deep" / "sum.txt").read_text()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == ["3"] * 6
    assert len(makes(context)) == 1 and left(context) == [key(Numbers(seconds=0.2))]


def test_a_failed_make_leaves_nothing_but_its_lock(context, monkeypatch):
    monkeypatch.setattr(Fails, "resumes", [])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no luck"):
            context.get(Fails())
        assert left(context) == [] and not context.store.has(Fails())
    assert sorted(path.name for path in context.get(Fails()).iterdir()) == ["cost.json", "part 3", "stage.json"]
    assert Fails.resumes == ["", "", ""]


def test_a_resumable_stage_is_handed_what_it_left(context, monkeypatch):
    monkeypatch.setattr(Fails, "resumes", [])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no luck"):
            context.get(Resumes())
        assert left(context) == [context.store.unfinished(Resumes()).name] and not context.store.has(Resumes())
    context.get(Resumes())
    assert Fails.resumes == ["", "cost.json part 1", "cost.json part 1 part 2"] and left(context) == [key(Resumes())]


def test_what_a_result_took_is_kept_without_what_it_asked_for(context, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("trainables.stages.time.perf_counter", lambda: clock[0])

    def takes(seconds: float, fails: bool = False):
        def make(self, out: Path, context: Context) -> None:
            for needed in self.needs():
                context.get(needed)
            clock[0] += seconds
            if fails:
                raise RuntimeError("no luck")
        return make

    monkeypatch.setattr(Numbers, "make", takes(5.0))
    monkeypatch.setattr(Sum, "make", takes(2.0))
    context.get(Sum())
    context.get(Sum(power=2))
    assert [context.store.seconds(stage) for stage in (Numbers(), Sum(), Sum(power=2), Sum(power=3))] == [5, 2, 2, 0]
    monkeypatch.setattr(Fails, "make", takes(3.0, fails=True))
    with pytest.raises(RuntimeError):
        context.get(Resumes())
    monkeypatch.setattr(Fails, "make", takes(4.0))
    context.get(Resumes())
    assert context.store.seconds(Resumes()) == 7


def test_a_failure_upstream_is_a_failure(context, monkeypatch):
    def broken(self, out, context):
        (out / "half").touch()
        raise OSError("disk full")

    monkeypatch.setattr(Numbers, "make", broken)
    with pytest.raises(OSError, match="disk full"):
        context.get(Sum())
    assert left(context) == []


def test_curves_carry_the_name_of_their_stage(tmp_path):
    seen = []
    context = Context(Store(tmp_path), record=lambda step, metrics: seen.append((step, dict(metrics))))
    context.get(Resumes(), make=lambda out, inner: inner.record(7, {"valid/loss": 0.5}))
    context.get(Numbers(), make=lambda out, inner: inner.record(8, {"valid/loss": 0.25}))
    assert seen == [(7, {"toy/valid/loss": 0.5}), (8, {"valid/loss": 0.25})]


# ---------------------------------------------------------------- several processes


def test_processes_make_it_once_and_a_killed_one_leaves_nothing_that_counts(context):
    """Four processes ask for one stage; then one is killed in the middle of another."""
    script = Path(__file__).absolute()
    child = subprocess.Popen([sys.executable, str(script), str(context.store.folder)], stdout=subprocess.PIPE,
                             text=True, env={**os.environ, "PYTHONPATH": str(script.parents[1])})
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == "raced 3 3 3 3\n"
        victim = int(child.stdout.readline())
        assert len([process for process in makes(context) if process != str(victim)]) == 1
        slow = Numbers(count=4, seconds=600.0)
        wait_for(lambda: list(context.store.folder.glob(f"{key(slow)}.*.tmp/0.txt")))
        os.kill(victim, signal.SIGKILL)
        assert child.stdout.readline() == "killed\n"
        assert not context.store.has(slow)
        folder = context.get(slow, make=lambda out, inner: Numbers(count=4).make(out, inner))       # its lock is free
        assert (folder / "deep" / "sum.txt").read_text() == "6"
    assert child.returncode == 0


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def in_processes(folder: str) -> None:
    """What the child process does: one import for all, then forks."""
    context = Context(Store(folder))
    pipes = []
    for _ in range(4):
        reader, writer = os.pipe()
        if os.fork() == 0:
            said = (context.get(Numbers(seconds=0.3)) / "deep" / "sum.txt").read_text()
            os.write(writer, said.encode())
            os._exit(0)
        pipes.append(reader)
    print("raced", *(os.read(reader, 10).decode() for reader in pipes), flush=True)
    if (victim := os.fork()) == 0:
        context.get(Numbers(count=4, seconds=600.0))
        os._exit(0)
    print(victim, flush=True)
    _, status = os.waitpid(victim, 0)
    print("killed" if os.WTERMSIG(status) == signal.SIGKILL else "ended", flush=True)


# ---------------------------------------------------------------- keys


def keys(trial: Trial) -> dict[str, str]:
    return {type(stage).__name__: key(stage) for stage in upstream(trial.metrics())}


def remade(changes: dict) -> set[str]:
    """Which kinds of stage a change makes anew."""
    before, after = keys(tencdm_laptop()), keys(override(tencdm_laptop(), changes))
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


CORPUS = {"Stories", "TrainingRuns", "RealScores"}
ENCODING = {"EncoderFolder", "EncodedTexts", "EncodingStatistics"}
DOWNSTREAM = {"ContextBounds", "TrainedDecoder", "Trained", "Sampled", "Scored"}


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, set()),
    ({"system.decoder.training.optimizer.lr": 1e-3}, {"TrainedDecoder", "Sampled", "Scored"}),
    ({"system.decoder.noise_up_to": 0.1}, {"TrainedDecoder", "Sampled", "Scored"}),
    ({"seed": 1}, {"Trained", "Sampled", "Scored"}),
    ({"training.steps": 500}, {"Trained", "Sampled", "Scored"}),
    ({"system.network.dropout": 0.1}, {"Trained", "Sampled", "Scored"}),
    ({"sampling.steps": 5}, {"Sampled", "Scored"}),
    ({"evaluation.references": 100}, {"RealScores", "Scored"}),
    ({"system.process.schedule.d": 5.0}, DOWNSTREAM),
    ({"system.times.low": 0.1}, {"ContextBounds", "Trained", "Sampled", "Scored"}),
    ({"system.length": 16}, ENCODING - {"EncoderFolder"} | DOWNSTREAM),
    ({"system.encoder": Roberta(weights=tencdm_laptop().system.encoder.weights)},      # type: ignore[union-attr]
     ENCODING | DOWNSTREAM),
    ({"data.seed": 1}, CORPUS | ENCODING | DOWNSTREAM),
])
def test_a_change_remakes_what_stands_on_it_and_nothing_else(changes, expected):
    assert remade(changes) == expected


def test_a_new_version_changes_every_key_downstream(monkeypatch):
    before = keys(tencdm_laptop())
    encoded = next(s for s in upstream(tencdm_laptop().metrics()) if type(s).__name__ == "EncodedTexts")
    monkeypatch.setattr(type(encoded), "version", 99)
    after = keys(tencdm_laptop())
    assert {name for name in before if before[name] != after[name]} == \
        ENCODING - {"EncoderFolder"} | DOWNSTREAM


def test_upstream_is_in_an_order_in_which_it_can_be_made():
    stages = upstream(tencdm_laptop().metrics(), override(tencdm_laptop(), {"seed": 1}).metrics())
    assert len(set(stages)) == len(stages)
    for place, stage in enumerate(stages):
        assert set(stage.needs()) <= set(stages[:place])
        assert isinstance(stage, Stage) and key(stage).startswith(f"{type(stage).__name__}-")


# ---------------------------------------------------------------- object storage


@pytest.fixture(params=["memory", "local"])
def bucket(request, tmp_path) -> str:
    """The memory file system is one for the whole process, so the path is a test's own."""
    return f"{request.param}://{tmp_path / 'bucket'}"


def machine(bucket: str, folder: Path) -> Context:
    folder.mkdir()
    return Context(Store(bucket, cache=folder / "cache"))


def test_another_machine_fetches_what_one_has_made(bucket, tmp_path):
    one, two = machine(bucket, tmp_path / "one"), machine(bucket, tmp_path / "two")
    made = one.get(Numbers())
    assert made.is_relative_to(tmp_path / "one") and two.store.has(Numbers())
    fetched = two.get(Numbers())
    assert fetched.is_relative_to(tmp_path / "two") and makes(two) == []
    assert {p.relative_to(fetched): p.read_bytes() for p in fetched.rglob("*") if p.is_file()} == \
        {p.relative_to(made): p.read_bytes() for p in made.rglob("*") if p.is_file()}
    assert (two.get(Sum()) / "sum.txt").read_text() == "3" and one.store.has(Sum())


def test_half_an_upload_is_not_whole_and_is_tried_again(bucket, tmp_path, monkeypatch):
    one, two = machine(bucket, tmp_path / "one"), machine(bucket, tmp_path / "two")
    system = type(fsspec.core.url_to_fs(bucket)[0])
    put, sent = system.put_file, []

    def unlucky(self, here, there, **more):
        if len(sent) == 2:
            raise ConnectionError("the line is dead")
        sent.append(there)
        return put(self, here, there, **more)

    with monkeypatch.context() as patch:
        patch.setattr(system, "put_file", unlucky)
        with pytest.raises(ConnectionError):
            one.get(Numbers())
    fs = fsspec.core.url_to_fs(bucket)[0]
    assert len(sent) == 2 and all(fs.exists(there) for there in sent)         # there is something; it does not count
    assert not one.store.has(Numbers()) and not two.store.has(Numbers())
    one.get(Numbers())
    assert len(makes(one)) == 1                                               # sent again, not made again
    assert two.store.has(Numbers()) and two.get(Numbers()) and makes(two) == []


def test_half_a_download_is_not_whole(bucket, tmp_path, monkeypatch):
    one, two = machine(bucket, tmp_path / "one"), machine(bucket, tmp_path / "two")
    one.get(Numbers())
    system, got = type(fsspec.core.url_to_fs(bucket)[0]), []
    get = system.get_file

    def unlucky(self, there, here, **more):
        if len(got) == 2:
            raise ConnectionError("the line is dead")
        got.append(there)
        return get(self, there, here, **more)

    with monkeypatch.context() as patch:
        patch.setattr(system, "get_file", unlucky)
        with pytest.raises(ConnectionError):
            two.get(Numbers())
    assert len(got) == 2 and left(two) == []
    assert (two.get(Sum()) / "sum.txt").read_text() == "3" and makes(two) == []


def test_a_url_needs_a_cache():
    with pytest.raises(ValueError, match="needs a local cache"):
        Store("memory://bucket")


def test_what_runs_a_stage_is_no_part_of_its_key(context):
    other = replace(context, should_stop=lambda: True)
    assert other.store.path(Sum()) == context.store.path(Sum())


if __name__ == "__main__":
    in_processes(sys.argv[1])
