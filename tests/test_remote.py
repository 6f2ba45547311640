"""A study sent to a cluster: a real head with token authentication on this machine, and the study's own command line.

The tunnel is left out: `--on` names the port that it would lead to.  tests/test_cluster_onprem.py goes through it.
"""

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from studies.engine.provenance import code

ROOT = Path(__file__).resolve().parents[1]
STUDY = str(ROOT / "tests" / "away_study.py")


@dataclass
class Head:
    """A cluster of one machine, and somebody's laptop."""

    url: str
    token: str
    folder: Path                        # where the laptop's user types
    out: Path                           # what the cluster's machines see
    environment: dict[str, str]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, STUDY, "--on", self.url, *arguments], cwd=self.folder, env=self.environment | environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))         # runners may ignore it

    def type(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        said = process.communicate(timeout=300)[0]
        return process.returncode, said

    def jobs(self) -> list[dict[str, Any]]:
        request = urllib.request.Request(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return [job for job in json.load(answer) if job["type"] == "SUBMISSION"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def until(true: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder, ray = tmp_path_factory.mktemp("remote"), tempfile.mkdtemp(prefix="rh", dir="/tmp")        # a short path
    (folder / "laptop").mkdir()
    (folder / "home/.ray").mkdir(parents=True)
    rows = [f"the {size} {kind} number {number}" for size in ("big", "small") for kind in ("dog", "cat")
            for number in range(40)]
    (folder / "laptop/reviews.csv").write_text("text\n" + "".join(f"{row}\n" for row in rows))
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("RAY_", "MLFLOW_", "PALIMPSEST_", "OPTUNA_"))}
    environment |= {"HOME": str(folder / "home"), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(ROOT / "cluster/secrets.sh")], env=environment, check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    head = Head(f"http://127.0.0.1:{port}", (folder / "home/.ray/auth_token").read_text(), folder / "laptop",
                folder / "results", environment)
    with open(folder / "head.log", "w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port=0", f"--temp-dir={ray}",
             "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}",
             "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"],
            env=environment | {"PALIMPSEST_OUT": str(head.out)}, stdout=log, stderr=log, cwd=folder)
    try:
        def agent() -> bool:
            assert process.poll() is None, (folder / "head.log").read_text()
            with contextlib.suppress(OSError):
                return isinstance(head.jobs(), list)
            return False

        until(agent)
        yield head
    finally:
        process.terminate()              # with --block, it ends what it started
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def story(head: Head) -> dict[str, Any]:
    """Sent, left, found again, stopped from elsewhere, and sent once more, all by one command."""
    seen: dict[str, Any] = {}
    gate = head.folder / "gate"          # what the trials wait for, however slow this machine is
    typed = ["--set", f"training.gate={gate}", "--data", "reviews.csv:text"]
    with head.start(*typed) as first:
        said = read(first, "start  plain seed 0")
        seen["processes that show it"] = [
            path for path in Path("/proc").glob("[0-9]*/cmdline") if holds(path, head.token)]
        first.send_signal(signal.SIGINT)
        said += first.communicate(timeout=300)[0]
        seen["left"] = first.returncode, said
    seen["jobs when left"] = [(job["submission_id"], job["status"]) for job in head.jobs()]
    with head.start(*typed) as second:
        said = read(second, "found at work")
        seen["other"] = head.type("--stop")
        seen["stop"] = head.type(*typed, "--stop")
        said += second.communicate(timeout=300)[0]
        seen["found"] = second.returncode, said
    gate.touch()
    seen["again"] = head.type(*typed, "--json", "outcome.json")
    seen["jobs"] = head.jobs()
    return seen


def read(process: subprocess.Popen, words: str) -> str:
    """What a process says up to the line that holds the words."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            break
    return said


def holds(path: Path, secret: str) -> bool:
    try:
        return secret.encode() in path.read_bytes()
    except OSError:
        return False


# ---------------------------------------------------------------- a head, and the same command typed again and again


def test_ctrl_c_leaves_the_study_running(story: dict[str, Any]):
    code, said = story["left"]
    (job, status), = story["jobs when left"]
    assert code == 130 and f": {job}." in said.splitlines()[0], said
    assert f"left {job} running" in said and "the same command comes back" in said
    assert job.startswith("away-") and status == "RUNNING"
    assert "Traceback" not in said and "INFO" not in said


def test_the_same_command_finds_it_and_another_one_does_not(story: dict[str, Any]):
    (job, _), = story["jobs when left"]
    said = story["found"][1]
    assert said.startswith("found at work") and job in said.splitlines()[0]
    assert said.count("start  plain seed 0") == 1, "the log from its beginning, once"
    code, said = story["other"]
    assert code == 2 and "this command does not run" in said and job in said


def test_stop_ends_it_with_all_that_it_has_saved(story: dict[str, Any]):
    assert story["stop"][0] == 0 and "continues from here" in story["stop"][1]
    code, said = story["found"]
    assert code == 130 and "stopped; the same command continues" in said, said


def test_sent_again_it_continues_and_its_results_come_here(story: dict[str, Any], head: Head):
    code_, said = story["again"]
    assert code_ == 0, said
    home = head.folder / "results" / head.url.removeprefix("http://").replace(":", "-") / "away"
    assert {"report.html", "table.md", "table.csv", "table.tex", "outcome.json", "plan.md"} == {
        path.name for path in home.iterdir()}
    for name in ("report.html", "table.md", "outcome.json"):
        assert (home / name).read_bytes() == (head.out / "away" / name).read_bytes()
    outcome = json.loads((head.folder / "outcome.json").read_text())
    cells = [cell for arm in outcome["arms"] for cell in arm["cells"]]
    assert len(cells) == 2 and all(cell["status"] == "done" for cell in cells)
    assert "reviews" in json.dumps(outcome["data"]) and outcome["commit"] == code().commit
    ended = {job["submission_id"]: job["status"] for job in story["jobs"] if "-reports-" not in job["submission_id"]}
    (first, _), = story["jobs when left"]
    assert ended == {first: "STOPPED", f"{first.removesuffix('1')}2": "SUCCEEDED"}


def test_the_token_shows_nowhere(story: dict[str, Any], head: Head):
    assert story["processes that show it"] == []
    assert head.token not in json.dumps(story["jobs"])
    assert not any(head.token in str(said) for said in story.values())
    assert not any(holds(path, head.token) for path in head.out.rglob("*") if path.is_file())


def test_the_exit_code_is_the_commands(head: Head):
    code, said = head.type("--set", "training.stepz=3")
    assert code == 2 and "training.stepz: Training has no field 'stepz' (did you mean 'steps'?)" in said
    assert said.strip().splitlines()[-1].startswith("error: "), said


def test_other_versions_are_refused_before_anything_is_sent(head: Head, tmp_path: Path):
    """The head says its own; this side's are made others, as an older installation's would be."""
    before, ours = len(head.jobs()), platform.python_version()
    (tmp_path / "ray-2.59.1.dist-info").mkdir()
    (tmp_path / "ray-2.59.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.59.1\n")
    code, said = head.type("--dry-run", PYTHONPATH=str(tmp_path))
    assert code == 2 and f"other versions: Ray {version('ray')} there, 2.59.1 here." in said, said
    (tmp_path / "ray-2.59.1.dist-info/METADATA").unlink()
    (tmp_path / "ray-2.59.1.dist-info").rmdir()
    (tmp_path / "sitecustomize.py").write_text("import platform\nplatform.python_version = lambda: '3.9.1'\n")
    code, said = head.type("--dry-run", PYTHONPATH=str(tmp_path))
    assert code == 2 and f"other versions: Python {ours} there, 3.9.1 here." in said, said
    assert len(head.jobs()) == before and len(said.splitlines()) == 1


def test_another_token_is_refused_before_anything_is_sent(head: Head):
    before = len(head.jobs())
    code, said = head.type("--dry-run", RAY_AUTH_TOKEN="f" * 64)
    assert code == 2 and "does not take the token" in said and len(said.splitlines()) == 1
    assert len(head.jobs()) == before
