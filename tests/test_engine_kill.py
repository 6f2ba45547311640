"""Told to end, killed in part, out of room: the same command continues, and ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import disturbed
import pytest

from studies.engine.ledger import read_from

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


def steps(out: Path) -> dict[str, list[int]]:
    """Cell -> the steps that it has recorded, again and again if so."""
    return {path.stem: [line["step"] for line in read_from(path, 0)[0] if line["kind"] in ("metrics", "again")
                        and "train/loss" in line["metrics"]] for path in disturbed.cells(out)}


def test_notice_is_a_checkpoint_and_a_killed_worker_costs_steps(tmp_path):
    driver = disturbed.start(tmp_path)
    assert disturbed.wait(lambda: sum(map(len, steps(tmp_path).values())) >= 8, driver), disturbed.printed(tmp_path)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(90) == 130 and "the same command continues" in disturbed.printed(tmp_path)
    told = steps(tmp_path)
    records = {path.stem for path in (tmp_path / "toy" / "cells").glob("*.json")}
    for path in (tmp_path / "stages").glob("Trained-*.partial/state.json"):
        saved = json.loads(path.read_text())[0]          # saved where it was, not at the last of its checkpoints
        assert saved in [seen[-1] for key, seen in told.items() if key not in records]
    unfinished = told.keys() - records
    assert unfinished                                     # and none of these is a failure
    for key in unfinished:
        lines = read_from(tmp_path / "toy" / "outbox" / f"{key}.jsonl", 0)[0]
        assert lines[-1]["kind"] == "end" and lines[-1]["status"] == "stopped"

    driver = disturbed.start(tmp_path)
    assert disturbed.wait(lambda: sum(map(len, steps(tmp_path).values())) >= 15
                          and bool(disturbed.at_work(driver)), driver)
    for pid in disturbed.at_work(driver)[:1]:
        os.kill(pid, signal.SIGKILL)
    assert driver.wait(180) == 0, disturbed.printed(tmp_path)
    disturbed.verify(tmp_path)
    for key in unfinished:                                # steps were repeated after the kill only
        attempts = [line["attempt"] for line in read_from(tmp_path / "toy" / "outbox" / f"{key}.jsonl", 0)[0]
                    if line["kind"] == "start"]
        assert attempts == list(range(1, len(attempts) + 1)) and len(attempts) in (2, 3)


@pytest.mark.skipif(not os.environ.get("PALIMPSEST_LABS"), reason="starts Ray Train: PALIMPSEST_LABS=1 runs it")
def test_notice_to_one_worker_of_a_group_is_a_checkpoint_of_all(tmp_path):
    """One of two processes gets SIGTERM, as where its machine is about to go: both stop at one step, and go on."""
    driver = disturbed.start(tmp_path, "--workers", "2")
    assert disturbed.wait(lambda: sum(map(len, steps(tmp_path).values())) >= 3, driver), disturbed.printed(tmp_path)
    workers = [pid for pid in disturbed.at_work(driver)
               if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2, disturbed.printed(tmp_path)
    os.kill(workers[-1], signal.SIGTERM)
    assert driver.wait(240) == 0, disturbed.printed(tmp_path)
    disturbed.verify(tmp_path)
    ends = [line["status"] for path in disturbed.cells(tmp_path) for line in read_from(path, 0)[0]
            if line["kind"] == "end"]
    assert sorted(ends) == ["done"] * 4 + ["stopped"]
    for told in steps(tmp_path).values():
        assert told == list(range(1, disturbed.STEPS + 1))         # no step was lost


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_halts_the_study_and_room_lets_it_continue(small_disk):
    driver = disturbed.start(small_disk)
    assert disturbed.wait(lambda: sum(map(len, steps(small_disk).values())) >= 4, driver), disturbed.printed(small_disk)
    ballast = small_disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"x" * 4096)
    began = time.monotonic()
    code = driver.wait(120)
    assert code == 3 and time.monotonic() - began < 100, disturbed.printed(small_disk)
    ballast.unlink()
    disturbed.finish(small_disk)
    disturbed.verify(small_disk)
