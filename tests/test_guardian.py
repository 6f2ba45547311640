"""Behind a killed driver no run stays RUNNING, and what its cells told is in MLflow, before any next command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import disturbed
import pytest
from filelock import FileLock
from served import Server, wait
from test_engine_tracking import state

from studies.engine.guardian import LOCK, MARK, Guardian, leading
from studies.engine.ledger import curves
from studies.engine.tracking import Tracking

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]

# What carry_out does, but for the work: k1 is told to the end, k2 is at work, and most of it is not shipped yet.
DRIVER = """
import sys
from pathlib import Path
from studies.engine.cluster import settle_environment
settle_environment()
from studies.engine.guardian import Guardian, leading
from studies.engine.shipping import Shipper
from studies.engine.tracking import Tracking
from test_engine_tracking import tell
out = Path(sys.argv[1])
with leading(out / "toy"):
    tracking = Tracking("toy", out)
    guardian = Guardian("toy", out / "toy", out)
    shipper = Shipper(tracking, out / "toy" / "outbox")
    for key, steps, end in ("k1", range(1, 4), None), ("k2", range(1, 3), None):
        tell(out, key, steps, end)
    assert shipper.drain()
    tell(out, "k1", range(4, 6), "done")
    tell(out, "k2", range(3, 9), None)
    print(guardian.process.pid, flush=True)
    sys.stdin.read()
"""


def start(out: Path) -> tuple[subprocess.Popen, int]:
    """A driver in a process group of its own, once its runs are RUNNING; and its guardian's process number."""
    path = os.pathsep.join([str(disturbed.ROOT), str(disturbed.ROOT / "tests")])
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, start_new_session=True, env=os.environ | {"PYTHONPATH": path})
    assert driver.stdout is not None
    return driver, int(driver.stdout.readline())


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def whole(out: Path) -> None:
    """What must be true when the guardian is gone."""
    found = state(Tracking("toy", out))
    assert {key: entry[1] for key, entry in found.items()} == {"study": "KILLED", "k1": "FINISHED", "k2": "KILLED"}
    for key, last in ("k1", 5), ("k2", 8):
        told = curves(out / "toy" / "outbox" / f"{key}.jsonl")["train/loss"]
        assert found[key][2] == list(range(1, last + 1)) == list(told)


def test_a_guardian_ships_and_settles_behind_a_driver_that_was_killed(out):
    driver, guardian = start(out)
    os.killpg(driver.pid, signal.SIGINT)                  # Ctrl-C reaches the driver's group, a job's end everybody
    os.kill(guardian, signal.SIGTERM)
    time.sleep(0.5)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    wait(lambda: not lives(guardian))
    whole(out)
    with leading(out / "toy") as ours:
        assert ours and not (out / "toy" / MARK).exists()


def test_a_guardian_leaves_at_once_when_all_is_well(out):
    (out / "toy").mkdir()
    guardian = Guardian("toy", out / "toy", out)
    guardian.farewell()
    assert guardian.process.returncode == 0 and not list(out.glob("mlflow*"))         # waited for: no zombie is left


def test_a_guardian_leaves_when_the_next_driver_is_there(out):
    """Typed again at once: what is RUNNING is now the next driver's."""
    with leading(out / "toy") as ours:
        guardian = Guardian("toy", out / "toy", out)
        assert ours and guardian.process.stdin is not None
        guardian.process.stdin.close()                    # as when its driver is killed
        assert guardian.process.wait(60) == 0 and not list(out.glob("mlflow*"))


def test_a_driver_waits_for_a_guardian_and_says_so_and_for_no_other_driver(tmp_path):
    said: list[str] = []
    held = FileLock(tmp_path / LOCK)
    held.acquire()

    def say(text: str) -> None:
        said.append(text)
        held.release()

    with leading(tmp_path, say) as ours:                  # no mark: another driver
        assert not ours and not said
    (tmp_path / MARK).touch()
    with leading(tmp_path, say) as ours:
        assert ours and len(said) == 1 and "waiting" in said[0] and not (tmp_path / MARK).exists()


@pytest.mark.skipif(not os.environ.get("PALIMPSEST_LABS"), reason="starts a server twice: PALIMPSEST_LABS=1 runs it")
def test_a_guardian_waits_for_a_server_that_is_away_and_a_driver_waits_for_the_guardian(out, monkeypatch):
    server = Server(out)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        driver, guardian = start(out)
        server.kill()
        driver.kill()
        driver.communicate()
        wait(lambda: "no tracking server answers" in (out / "toy" / "guardian.log").read_text())
        server.start()
        wait((out / "toy" / MARK).exists)
        with leading(out / "toy") as ours:
            assert ours
        wait(lambda: not lives(guardian))
        whole(out)
    finally:
        server.kill()
