"""cluster/nightly/: the units as systemd reads them, the lock, the exit codes, what a failure says, the workflow."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent.parent / "cluster" / "nightly"
SERVICE = (HERE / "palimpsest-nightly.service").read_text()
TIMER = (HERE / "palimpsest-nightly.timer").read_text()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout whose night does what it is told: sleeps, and ends with a code."""
    shutil.copytree(HERE.parent, tmp_path / "checkout" / "cluster")
    (tmp_path / "checkout/studies").mkdir()
    (tmp_path / "checkout/studies/nightly.py").write_text(
        "import pathlib, sys, time\nout = pathlib.Path(sys.argv[2]); out.mkdir(parents=True, exist_ok=True)\n"
        "(out / f'began-{time.time_ns()}').touch()\ntime.sleep(float(sys.argv[3])); sys.exit(int(sys.argv[4]))\n"
    )
    (tmp_path / "home/.palimpsest").mkdir(parents=True)
    (tmp_path / "home/.palimpsest/env").write_text(
        f'export PATH="{Path(sys.executable).parent}:$PATH" PALIMPSEST_OUT="{tmp_path}/out"\n'
    )
    return tmp_path


def exec_start(root: Path, *arguments: str) -> list[str]:
    """The service's own command line."""
    line = re.search(r"^ExecStart=(.*)$", SERVICE, re.M)
    assert line is not None
    return [
        *line[1].replace("@ROOT@", str(root / "checkout")).replace("@HOME@", str(root / "home")).split(),
        *arguments,
    ]


def test_units_are_good(tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    for unit in sorted(HERE.glob("*.service")) + sorted(HERE.glob("*.timer")):
        text = (
            unit.read_text()
            .replace("@USER@", "root")
            .replace("@HOME@", "/root")
            .replace("@ROOT@", str(HERE.parent.parent))
        )
        assert not re.search("@[A-Z]+@", text)
        (tmp_path / unit.name).write_text(text)
    names = ["palimpsest-nightly.service", "palimpsest-nightly.timer"]
    (tmp_path / "palimpsest-nightly-failed@x.service").symlink_to(tmp_path / "palimpsest-nightly-failed@.service")
    said = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            *(str(tmp_path / name) for name in names),
            str(tmp_path / "palimpsest-nightly-failed@x.service"),
        ],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0 and "palimpsest" not in said.stderr, said.stderr
    broken = (tmp_path / names[1]).read_text().replace("02:00:00", "25:00:00")
    (tmp_path / "broken.timer").write_text(broken)
    (tmp_path / "broken.service").write_text("[Service]\nExecStart=/bin/true\n")
    assert subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "broken.timer")], capture_output=True
    ).returncode, "the check can fail"


def test_the_calendar_is_every_night():
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    calendar = re.search(r"^OnCalendar=(.*)$", TIMER, re.M)
    assert calendar is not None
    said = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=3", calendar[1]], capture_output=True, text=True
    )
    nights = re.findall(r"(\d{4}-\d\d-\d\d) 02:00:00 UTC", said.stdout)
    assert said.returncode == 0 and len(set(nights)) == 3
    assert "Persistent=true" in TIMER, "a missed night is caught up"


def test_two_nights_do_not_overlap(root: Path):
    """The second run, by hand or by timer, ends at once with 75, which the service does not count as a failure."""
    env = os.environ | {"HOME": str(root / "home")}
    first = subprocess.Popen(exec_start(root, "4", "3"), env=env)
    deadline = time.monotonic() + 60
    while not list((root / "out/nightly").glob("began-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run(exec_start(root, "0", "0"), env=env)
    assert first.poll() is None and second.returncode == 75
    assert first.wait(60) == 3, "the night's own exit code comes through"
    assert len(list((root / "out/nightly").glob("began-*"))) == 1
    assert subprocess.run(exec_start(root, "0", "0"), env=env).returncode == 0, "the lock goes with its process"
    assert "SuccessExitStatus=75" in SERVICE and "OnFailure=palimpsest-nightly-failed@%n.service" in SERVICE


def test_a_failure_is_said(root: Path):
    """notify.sh posts to the address in ~/.palimpsest/webhook; the address is in no argument."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    got: list[dict] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        env = os.environ | {
            "HOME": str(root / "home"),
            "MONITOR_SERVICE_RESULT": "exit-code",
            "MONITOR_EXIT_STATUS": "3",
        }
        quiet = subprocess.run(["bash", str(HERE / "notify.sh"), "night"], env=env, capture_output=True, text=True)
        assert quiet.returncode == 0 and "exit-code, exit 3" in quiet.stdout and not got
        (root / "home/.palimpsest/webhook").write_text(f"http://127.0.0.1:{server.server_port}/hook")
        assert subprocess.run(["bash", str(HERE / "notify.sh"), "night"], env=env, capture_output=True).returncode == 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(got) == 1 and got[0]["text"].startswith("night on ") and got[0]["text"].endswith("exit-code, exit 3")


def test_install_fills_the_units_in(root: Path):
    """install.sh into a folder of its own, with a systemctl that only notes what it is asked."""
    (root / "units").mkdir()
    (root / "bin").mkdir()
    (root / "bin/systemctl").write_text(f'#!/bin/sh\necho "$*" >> {root}/asked\n')
    (root / "bin/systemctl").chmod(0o755)
    env = os.environ | {
        "HOME": str(root / "home"),
        "UNITS": str(root / "units"),
        "PATH": f"{root}/bin:{os.environ['PATH']}",
    }
    script = str(root / "checkout/cluster/nightly/install.sh")
    subprocess.run(["bash", script], env=env, check=True)
    units = sorted((root / "units").iterdir())
    assert [unit.name for unit in units] == [
        "palimpsest-nightly-failed@.service",
        "palimpsest-nightly.service",
        "palimpsest-nightly.timer",
    ]
    assert not any(re.search("@[A-Z]+@", unit.read_text()) for unit in units)
    assert f"WorkingDirectory={root}/checkout" in units[1].read_text()
    subprocess.run(["bash", script, "--remove"], env=env, check=True)
    assert not list((root / "units").iterdir())
    assert (root / "asked").read_text().splitlines() == [
        "daemon-reload",
        "enable --now palimpsest-nightly.timer",
        "disable --now palimpsest-nightly.timer",
        "daemon-reload",
    ]


def test_the_workflow():
    workflow = yaml.safe_load((HERE / "github-actions.yml").read_text())
    triggers = workflow[True]  # YAML 1.1 reads `on` as true
    assert triggers["schedule"][0]["cron"] == "0 2 * * *"
    assert workflow["permissions"] == {"contents": "read"}, "the token can change nothing"
    assert workflow["concurrency"] == {"group": "nightly", "cancel-in-progress": False}
    steps = workflow["jobs"]["nightly"]["steps"]
    assert any(step.get("run") == "bash cluster/nightly/run.sh" for step in steps)
    assert all(re.fullmatch(r"[\w-]+(/[\w-]+)+@v\d+", step["uses"]) for step in steps if "uses" in step)
    used = {step["uses"]: step for step in steps if "uses" in step}
    assert used["actions/checkout@v4"]["with"]["fetch-depth"] == 0, "suspected commits are found in the history"
    kept = used["actions/cache/save@v4"]
    assert kept["if"] == "always()" and kept["with"]["path"] == used["actions/cache/restore@v4"]["with"]["path"]
