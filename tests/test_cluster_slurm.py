"""cluster/slurm/study.sbatch on two nodes of this machine: a pretend scheduler, real Ray, a real driver.

`srun` and `scontrol` are stand-ins that know two nodes, node1 and node2, and start their commands here; everything that
the script itself does (token, head, worker, waiting, exit code, cleaning up) is what runs on a cluster.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "cluster" / "slurm" / "study.sbatch"
SCONTROL = '#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && printf "node1\\nnode2\\n"\n'
# Drops srun's options; a step for "others" runs on node2.
SRUN = """#!/bin/bash
echo "$*" >> "$PRETEND/steps"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
STUDY = """
import os, signal, sys, time
import ray

ray.init(log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=1)
def where():
    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()
found = set(ray.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(6)]))
print("nodes seen", len(found), "mode", os.environ["RAY_AUTH_MODE"],
      "token in environment", "RAY_AUTH_TOKEN" in os.environ, flush=True)
if sys.argv[1] == "wait":
    def stop(*_):
        print("asked to stop", flush=True)
        sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    print("waiting", flush=True)
    time.sleep(300)
sys.exit(int(sys.argv[1]))
"""


class Allocation:
    """A submitted script."""

    def __init__(self, folder: Path, job: int):
        self.folder, self.job = folder, job
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (folder / "bin").mkdir(exist_ok=True)
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        (folder / "study.py").write_text(STUDY)
        (folder / "home").mkdir(exist_ok=True)
        own = {
            "PRETEND": str(folder),
            "HOME": str(folder / "home"),
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "1",
            "OBJECT_STORE": "80000000",
            "VENV": str(Path(sys.executable).parent.parent),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
        }
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own
        self.env["PYTHONWARNINGS"] = "ignore"

    def submit(self, *arguments: str) -> subprocess.Popen:
        with open(self.folder / "log", "w") as log:
            return subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                cwd=self.folder,
                env=self.env,
                text=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def left(self) -> list[str]:
        """Ray processes of this job that are still there."""
        listed = subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True).stdout
        return [line for line in listed.splitlines() if f"/tmp/ray-{self.job}" in line]

    def gone(self) -> bool:
        deadline = time.monotonic() + 30
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.left()


@pytest.fixture
def allocation(tmp_path: Path, request: pytest.FixtureRequest):
    for tool in ("hostname", "ps", "awk"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if not re.search(r"\d+\.\d+\.\d+\.\d+", subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout):
        pytest.skip("this machine has no address that a second node could reach")
    if not (Path(sys.executable).parent / "ray").exists():
        pytest.skip("needs the ray command")
    job = 100_000 + os.getpid() * 10 % 800_000 + len(request.node.name) % 10
    allocation = Allocation(tmp_path, job)
    yield allocation
    shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)


def test_a_study_over_two_nodes_keeps_its_exit_code(allocation: Allocation):
    process = allocation.submit("study.py", "7")
    assert process.wait(280) == 7, allocation.log
    assert "study.sbatch: 2 nodes, 2 CPUs, 0 GPUs" in allocation.log
    assert "nodes seen 2 mode token token in environment False" in allocation.log
    steps = (allocation.folder / "steps").read_text()
    assert len(re.findall("ray start", steps)) == 2 and "--head" in steps
    assert "--dashboard-host=127.0.0.1" in steps and steps.count("--disable-usage-stats") == 2
    assert allocation.gone(), allocation.left()
    assert not list((allocation.folder / "home/.palimpsest").iterdir()), "the token goes with the job"
    assert not Path(f"/tmp/ray-{allocation.job}").exists() and "rm -rf" in steps, "nor do Ray's files stay on a node"


def test_the_time_limit_asks_the_study_to_stop(allocation: Allocation):
    """Slurm's TERM, two minutes before the end, reaches the study, which saves itself; nothing of Ray stays."""
    process = allocation.submit("study.py", "wait")
    deadline = time.monotonic() + 280
    while "waiting" not in allocation.log and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "waiting" in allocation.log, allocation.log
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 130, allocation.log
    assert "asked to stop" in allocation.log
    assert allocation.gone(), allocation.left()


@pytest.mark.parametrize(
    ("arguments", "reason"), [([], "usage:"), (["studies/none.py"], "there is no studies/none.py")]
)
def test_bad_input_ends_before_anything_starts(allocation: Allocation, arguments: list[str], reason: str):
    assert allocation.submit(*arguments).wait(30) == 2
    assert reason in allocation.log and not (allocation.folder / "steps").exists()


def test_directives():
    lines = re.findall(r"^#SBATCH (--[\w-]+)=(\S+)$", SCRIPT.read_text(), re.M)
    options = dict(lines)
    assert len(options) == len(lines)
    assert options["--ntasks-per-node"] == "1" and options["--signal"] == "B:TERM@120" and int(options["--nodes"]) >= 2
    assert re.fullmatch(r"\d+:\d\d:\d\d", options["--time"])
