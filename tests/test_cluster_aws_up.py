"""`ray up cluster/gpu.yaml` to `ray down`, for real, on a pretend EC2: moto's API, a host with sshd per instance.

    up       the stack's ids in the file; the head is launched, set up over SSH, and starts the autoscaler with spot.py
    plan     `--on` finds the head as Ray does, and asks there what a study would do: paper size, on GPUs still to come
    from 0   two GPU tasks ask for machines while the spot market is empty: they come on demand
    more     the market is back: the next machine is spot
    to 0     idle machines are ended by the head
    down     nothing is left

Hosts are those of test_cluster_onprem.py, the account is that of pretend_aws.py.
Run as a program it is one such rehearsal:   python tests/test_cluster_aws_up.py FOLDER
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from pretend_aws import ACCOUNT, Aws, fill
from test_cluster_onprem import (
    NAMESPACES,
    ROOT,
    account,
    be_host,
    bridge,
    child_of,
    die_with_parent,
    lacking,
    own_folders,
    plug_in,
    run,
)

GATEWAY = "172.31.255.254"
JOB = """
import sys, time
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")

@ray.remote(num_gpus=1, num_cpus=1)
def where(seconds):
    time.sleep(seconds)
    return ray.util.get_node_ip_address()

print("BEFORE", sum(node["Alive"] for node in ray.nodes()), flush=True)
print("JOB", len(set(ray.get([where.remote(float(sys.argv[2])) for _ in range(int(sys.argv[1]))]))), flush=True)
"""


class Datacenter(threading.Thread):
    """Boots a host for every instance of the account, and ends those whose instance was ended."""

    def __init__(self, aws: Aws, shared: Path):
        super().__init__(daemon=True)
        self.aws, self.shared, self.hosts, self.booted = aws, shared, {}, 0

    def run(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # the API is busy, or an instance went while we looked
                print("datacenter:", repr(error), flush=True)
            time.sleep(0.5)

    def look(self) -> None:
        there = {each["InstanceId"]: each for each in self.aws.machines("pending", "running")}
        for name in self.hosts.keys() - there.keys():
            self.hosts.pop(name).kill()
        for name in there.keys() - self.hosts.keys():
            self.hosts[name] = self.boot(there[name])

    def boot(self, machine: dict[str, Any]) -> subprocess.Popen:
        address, public = machine["PrivateIpAddress"], machine.get("PublicIpAddress")
        pairs = self.aws.client("ec2").describe_key_pairs(KeyNames=[machine["KeyName"]], IncludePublicKey=True)[
            "KeyPairs"
        ]
        with open(self.shared / f"host{self.booted}.log", "w") as log:
            process = subprocess.Popen(
                [
                    *NAMESPACES,
                    sys.executable,
                    __file__,
                    "--host",
                    str(self.shared),
                    str(self.booted),
                    pairs[0]["PublicKey"].strip(),
                    address,
                ],
                preexec_fn=die_with_parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        pid = child_of(process)
        plug_in(pid, f"v{self.booted}", address, GATEWAY, prefix=16)
        if public:
            run("nsenter", "-t", pid, "-n", "ip", "addr", "add", f"{public}/32", "dev", "eth0")
            run("ip", "route", "replace", f"{public}/32", "via", address, "dev", "br0")
        self.booted += 1
        return process


def environment() -> dict[str, str]:
    return ACCOUNT | {
        "AWS_ENDPOINT_URL": f"http://{GATEWAY}:5000",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def smaller(path: Path, shared: Path) -> None:
    """What these hosts cannot have: an NFS server, packages from a network, gigabytes of memory, ten idle minutes."""
    text = path.read_text()
    for was, becomes in {
        r"SHARED=/results NFS=\S+ STORE=\S+ NFS_OPTIONS=\S+": f"SHARED={shared}/results VENV={sys.prefix}",
        r"ARTIFACTS=\S+ bash": "BACKEND=sqlite PATIENCE=900 bash",
        r"idle_timeout_minutes: 10": "idle_timeout_minutes: 0.3",
        r"(--object-manager-port=8076)": r"\1 --object-store-memory=80000000",
    }.items():
        text, times = re.subn(was, becomes, text)
        assert times, was
    path.write_text(text)


def rehearse(shared: Path) -> None:
    own_folders(shared)
    home = account()
    bridge(f"{GATEWAY}/16")
    os.environ.pop("RAY_AUTH_TOKEN", None)  # pytest's own
    os.environ.update(
        environment() | {"HOME": str(home), "USER": "ubuntu", "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    )
    sold_out = shared / "sold-out"
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/pretend_aws.py"), "5000", str(sold_out), GATEWAY],
        stdout=open(shared / "moto.log", "w"),
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent,
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://{GATEWAY}:5000/moto-api/data.json", timeout=60).close()
            break
        except OSError:
            assert server.poll() is None
            time.sleep(0.2)
    aws = Aws(f"http://{GATEWAY}:5000", sold_out)
    path = fill(aws.make_stack(), shared)
    smaller(path, shared)
    (shared / "job.py").write_text(JOB)
    subprocess.run(["bash", "cluster/secrets.sh"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    Datacenter(aws, shared).start()
    report, began = {}, time.time()

    def note(name: str, value: Any) -> None:
        report[name] = value
        report[f"{name}_at"] = round(time.time() - began, 1)
        (shared / "report.json").write_text(json.dumps(report))

    def command(name: str, *arguments: str, without: tuple[str, ...] = ()) -> str:
        done = subprocess.run(
            arguments,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1200,
            env={name: value for name, value in os.environ.items() if name not in without},
        )
        (shared / f"{name}.log").write_text(done.stdout + done.stderr)
        note(name, done.returncode)
        return done.stdout + done.stderr

    def seen() -> list[list[str]]:
        tags = [({tag["Key"]: tag["Value"] for tag in each["Tags"]}, each) for each in aws.machines()]
        return sorted(
            [mine["ray-user-node-type"], each["InstanceType"], each.get("InstanceLifecycle", "on-demand")]
            for mine, each in tags
        )

    command("up", "ray", "up", "-y", "--no-config-cache", str(path))
    note("after_up", seen())
    plan = [sys.executable, "studies/ablation_encoder.py", "--on", str(path), "--dry-run"]
    note("plan_said", command("plan", *plan))
    note("strangers_said", command("stranger", *plan, without=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")))
    note("after_plan", seen())
    sold_out.write_text("InsufficientInstanceCapacity")
    said = command("first", "ray", "exec", str(path), f"python {shared}/job.py 2 1")
    note("first_said", re.findall(r"(?:BEFORE|JOB) .*", said.replace("\r", "")))
    note("after_first", seen())
    sold_out.unlink()
    said = command("second", "ray", "exec", str(path), f"python {shared}/job.py 3 15")
    note("second_said", re.findall(r"JOB .*", said.replace("\r", "")))
    note("after_second", seen())
    for _ in range(240):
        if len(seen()) == 1:
            break
        time.sleep(0.5)
    note("after_idle", seen())
    command("monitor", "ray", "exec", str(path), "cat /tmp/ray/session_latest/logs/monitor.*")
    command("down", "ray", "down", "-y", str(path))
    note("after_down", seen())
    note("too_late_said", command("too_late", *plan))
    note("at_last", seen())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("moto", reason="needs moto[server,cloudformation,ec2,efs,iam,s3,ssm]")
    if reason := lacking():
        pytest.skip(reason)
    shared = tmp_path_factory.mktemp("ec2")
    with open(shared / "outer.log", "w") as log:
        done = subprocess.run([sys.executable, __file__, str(shared)], stdout=log, stderr=log, timeout=3000)
    assert done.returncode == 0, (shared / "outer.log").read_text()[-3000:]
    return json.loads((shared / "report.json").read_text()) | {"folder": str(shared)}


HEAD = ["head", "m7i.xlarge", "on-demand"]


def test_up_launches_the_head_alone(report: dict[str, Any]):
    assert report["up"] == 0, (Path(report["folder"]) / "up.log").read_text()[-3000:]
    assert report["after_up"] == [HEAD]


def test_a_study_is_planned_on_the_head_for_gpus_that_are_to_come(report: dict[str, Any]):
    assert report["plan"] == 0, report["plan_said"]
    assert "scale paper: the Ray cluster at" in report["plan_said"]
    assert "grown as far as it may, (64 CPUs, 8 GPUs)" in report["plan_said"]
    assert report["after_plan"] == [HEAD], "a plan launches nothing"


def test_no_credentials_and_no_cluster_are_said(report: dict[str, Any]):
    for name, words in (("stranger", "aws does not let us look for the head"), ("too_late", "palimpsest is not up")):
        said = report[f"{name.replace('stranger', 'strangers')}_said"]
        assert report[name] == 2 and words in said and len(said.splitlines()) == 1, said
    assert report["at_last"] == []


def test_gpus_come_from_zero_on_demand_where_spot_is_sold_out(report: dict[str, Any]):
    assert "BEFORE 1" in report["first_said"] and any(line.startswith("JOB ") for line in report["first_said"]), report
    assert HEAD in report["after_first"]
    assert ["l40s", "g6e.2xlarge", "on-demand"] in report["after_first"]
    assert not any(market == "spot" for _, _, market in report["after_first"])


def test_spot_is_taken_where_there_is_some(report: dict[str, Any]):
    assert ["l40s", "g6e.2xlarge", "spot"] in report["after_second"]


def test_idle_machines_go_back_and_down_leaves_nothing(report: dict[str, Any]):
    assert report["after_idle"] == [HEAD]
    assert report["down"] == 0 and report["after_down"] == []


if __name__ == "__main__":
    if sys.argv[1] == "--host":
        lines = "".join(f"export {name}={value}\n" for name, value in environment().items())
        be_host(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], lines, sys.argv[5])
    elif sys.argv[1] == "--inside":
        rehearse(Path(sys.argv[2]))
    else:
        sys.exit(
            subprocess.run(
                [*NAMESPACES, sys.executable, __file__, "--inside", *sys.argv[1:]], preexec_fn=die_with_parent
            ).returncode
        )
