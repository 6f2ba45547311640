"""cluster/onprem.yaml for real: three hosts with sshd, `ray up`, a study sent from the launcher by `--on`, a host that
is switched off and a tunnel that breaks in mid-study, a disk that is full, `ray down`, and the results after it.

    namespaces      each host has a network, processes, /tmp, /dev/shm, /run, home, name of its own; sshd is process 1;
                    killing that is pulling its plug, and a new one with the same home is the same machine, booted
    the bridge      10.77.0.0/24 without an uplink: nothing leaves it, and nothing is left when the program ends
    the folder      a directory that all hosts see, in NFS's place

Run as a program it is that machine room:   python tests/test_cluster_onprem.py HOSTS FOLDER -- COMMAND ...
COMMAND sees HEAD, WORKERS and KEY; its exit code is the program's.
"""

import ctypes
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NET = "10.77.0"
USER = "ubuntu"
NAMESPACES = [
    "unshare",
    "--net",
    "--mount",
    "--pid",
    "--uts",
    "--ipc",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "private",
]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def lacking(*tools: str, labs: bool = True) -> str:
    """What this machine lacks to be a machine room; empty where it can.  `labs`: and where minutes may be taken."""
    if labs and not os.environ.get("PALIMPSEST_LABS"):
        return "takes minutes: make test-cluster runs it (PALIMPSEST_LABS=1)"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    if labs and importlib.util.find_spec("flask_wtf") is None:
        return "needs mlflow[auth]: pip install '.[test-cluster]'"
    absent = [
        tool for tool in ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "rsync", *tools) if not shutil.which(tool)
    ]
    if SSHD is None:
        absent.append("sshd")
    if absent:
        return f"needs {', '.join(absent)}"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        return "needs namespaces, which this machine does not allow"
    return ""


def run(*command: str, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=True, **options)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def own_folders(shared: Path) -> None:
    """A private /tmp, /dev/shm, /run and /home.  `shared`, Python and this repository stay, if they lie under /tmp."""
    mount = functools.partial(run, "mount")
    mount("-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", "/mnt")
    kept = [path for path in (shared, Path(sys.prefix), ROOT) if path.is_relative_to("/tmp")]
    for number, path in enumerate(kept):
        Path(f"/mnt/{number}").mkdir()
        mount("--rbind", str(path), f"/mnt/{number}")
    mount("-t", "tmpfs", "-o", "size=4g,mode=1777", "tmpfs", "/tmp")
    for number, path in enumerate(kept):
        path.mkdir(parents=True, exist_ok=True)
        mount("--move", f"/mnt/{number}", str(path))
    for folder, options in {
        "/dev/shm": "size=1g,mode=1777",
        "/run": "size=32m,mode=755",
        "/home": "size=1g,mode=755",
    }.items():
        mount("-t", "tmpfs", "-o", options, "tmpfs", folder)


def account(key: str = "", lines: str = "") -> Path:
    """The user, in this namespace alone: root's number, a home of its own."""
    home = Path("/home") / USER
    (home / ".ssh").mkdir(parents=True, mode=0o700, exist_ok=True)
    users = Path("/home/.passwd")
    users.write_text(f"{USER}:*:0:0::{home}:/bin/bash\n" + Path("/etc/passwd").read_text())
    run("mount", "--bind", str(users), "/etc/passwd")
    if not (home / ".bashrc").exists():  # else it has been up before
        (home / ".bashrc").write_text(lines)
    (home / ".profile").write_text(". ~/.bashrc\n")
    if key:
        (home / ".ssh/authorized_keys").write_text(key + "\n")
        (home / ".ssh/authorized_keys").chmod(0o600)
    return home


def be_host(shared: Path, number: int, key: str, lines: str = "", address: str = "") -> None:
    """Process 1 of a host: private folders, then sshd, which also reaps orphans as an init does."""
    address = address or f"{NET}.{10 + number}"
    run("hostname", f"host{number}")
    own_folders(shared)
    disk, home = shared / "disks" / f"host{number}", Path("/home") / USER
    disk.mkdir(parents=True, exist_ok=True)  # a home is still there after a boot, /tmp and /run are not
    home.mkdir()
    run("mount", "--bind", str(disk), str(home))
    account(key, lines)
    Path("/home/.hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{NET}.{10 + i} host{i}\n" for i in range(20)))
    run("mount", "--bind", "/home/.hosts", "/etc/hosts")
    Path("/run/sshd").mkdir()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/run/hostkey")
    Path("/run/sshd_config").write_text(
        "HostKey /run/hostkey\nPidFile none\nUsePAM no\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n"
    )
    while f"inet {address}/" not in subprocess.run(["ip", "addr"], capture_output=True, text=True).stdout:
        time.sleep(0.02)
    assert SSHD is not None
    os.execv(SSHD, [SSHD, "-D", "-e", "-f", "/run/sshd_config"])


def plug_in(pid: str, name: str, address: str, gateway: str, prefix: int = 24) -> None:
    """Join a host's network to the bridge."""
    inside = ["nsenter", "-t", pid, "-n", "ip"]
    run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", pid)
    run("ip", "link", "set", name, "master", "br0", "up")
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "addr", "add", f"{address}/{prefix}", "dev", "eth0")
    run(*inside, "route", "add", "default", "via", gateway)


def bridge(address: str) -> None:
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "addr", "add", address, "dev", "br0")
    run("ip", "link", "set", "br0", "up")


def child_of(process: subprocess.Popen) -> str:
    """The pid of what `unshare` runs: the new namespaces' process 1."""
    for _ in range(500):
        if children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            return children[0]
        time.sleep(0.02)
    raise RuntimeError("unshare did not start anything")


def boot(shared: Path, number: int, key: Path) -> None:
    """Switch a host on; its process 1 is in /tmp/hostN.pid."""
    public = key.with_suffix(".pub").read_text().strip()
    with open(f"/tmp/host{number}.log", "a") as log:
        process = subprocess.Popen(
            [*NAMESPACES, sys.executable, __file__, "--host", str(shared), str(number), public],
            preexec_fn=die_with_parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    pid = child_of(process)
    plug_in(pid, f"v{number}-{pid}", f"{NET}.{10 + number}", f"{NET}.1")
    Path(f"/tmp/host{number}.pid").write_text(pid)


def machine_room(hosts: int, shared: Path, command: list[str]) -> int:
    """Everything inside the outer namespace: hosts, then the command."""
    own_folders(shared)
    home = account()
    key = home / ".ssh/id_ed25519"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    bridge(f"{NET}.1/24")
    for number in range(hosts):
        boot(shared, number, key)
    for number in range(hosts):
        for _ in range(200):
            if not subprocess.run(
                [
                    "ssh",
                    "-q",
                    "-i",
                    str(key),
                    "-o",
                    "StrictHostKeyChecking=no",
                    "-o",
                    "ConnectTimeout=1",
                    "-o",
                    "UserKnownHostsFile=/dev/null",
                    f"{USER}@{NET}.{10 + number}",
                    "true",
                ]
            ).returncode:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"host{number} does not answer: {Path(f'/tmp/host{number}.log').read_text()}")
    addresses = [f"{NET}.{10 + number}" for number in range(hosts)]
    own = {
        "HOME": str(home),
        "USER": USER,
        "HEAD": addresses[0],
        "WORKERS": ",".join(addresses[1:]),
        "KEY": str(key),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}  # pytest's own token
    return subprocess.run(command, env=others | own).returncode


# ------------------------------------------------------------------------------------ the test's own commands, inside

STUDY = ["--seeds", "4", "--set", "training.pause=1.2"]  # eight cells of 12 s, three at a time
JOB = """
import json, socket, sys, time
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=0)
def where():
    time.sleep(1)
    return socket.gethostname()

seen, deadline = set(), time.time() + 240
while len(seen) < int(sys.argv[1]) and time.time() < deadline:
    try:
        seen = set(ray.get([where.remote() for _ in range(6)], timeout=30))
    except ray.exceptions.RayError:           # one of them was sent to a host that has just died
        time.sleep(1)
print("JOB", json.dumps(sorted(seen)), flush=True)
"""
INTRUDER = """
import sys, urllib.error, urllib.request
for port, path in ((8265, "/api/jobs/"), (52365, "/api/job_agent/jobs/")):
    request = urllib.request.Request(f"http://{sys.argv[1]}:{port}{path}", method="POST",
                                     data=b'{"entrypoint": "touch /tmp/broken-in"}',
                                     headers={"Content-Type": "application/json"})
    try:
        print(port, urllib.request.urlopen(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        print(port, error.code)
    except OSError as error:
        print(port, "refused")
"""


def derived(shared: Path) -> Path:
    """onprem.yaml with these hosts in it: what a user changes, small Ray limits, and nothing else."""
    text = (ROOT / "cluster" / "onprem.yaml").read_text()
    python = Path(sys.executable).parent.parent
    for was, becomes in {
        r"head_ip: [\d.]+": f"head_ip: {os.environ['HEAD']}",
        r"worker_ips: \[.*\]": f"worker_ips: [{os.environ['WORKERS'].replace(',', ', ')}]",
        r"ssh_private_key: \S+": f"ssh_private_key: {os.environ['KEY']}",
        r"SHARED=/results NFS=\S+": f"SHARED={shared}/results VENV={python}",
        r"(bash \S+/mlflow/up.sh)": r"PORT=5000 BACKEND=sqlite PATIENCE=900 \1",
        r"(ray start --head)": r"\1 --num-cpus=1 --object-store-memory=100000000",
        r"(ray start --address=\S+)": r"\1 --num-cpus=1 --object-store-memory=100000000",
    }.items():
        text, times = re.subn(was, becomes, text)
        assert times >= 1, was
    path = shared / "onprem.yaml"
    path.write_text(text)
    yaml.safe_load(text)
    return path


class Room:
    """What is typed on the machine that launches, and what came of it: report.json, and a log of each command."""

    def __init__(self, shared: Path):
        self.shared, self.began, self.report = shared, time.time(), {}
        self.head, *_ = self.hosts = [os.environ["HEAD"], *os.environ["WORKERS"].split(",")]
        subprocess.run(["bash", "cluster/secrets.sh"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        self.home = shared / "laptop"  # where the user types
        self.home.mkdir()

    def note(self, name: str, value: Any) -> None:
        self.report[name] = value
        self.report["seconds"] = round(time.time() - self.began, 1)
        (self.shared / "report.json").write_text(json.dumps(self.report))

    def command(self, name: str, *arguments: str, limit: int = 600, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            arguments, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit
        )
        (self.shared / f"{name}.log").write_text(done.stdout + done.stderr)
        self.note(name, {"code": done.returncode, "at": round(time.time() - self.began, 1)})
        return done.stdout + done.stderr

    def ssh(self, host: str, words: str, name: str) -> str:
        options = ["-i", os.environ["KEY"], "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        options += ["-o", "ConnectTimeout=5"]
        return self.command(name, "ssh", "-q", *options, f"{USER}@{host}", f"bash --login -c '{words}'")

    def up(self, config: str) -> bool:
        self.command("up", "ray", "up", "-y", "--no-config-cache", config, limit=1200)
        return self.report["up"]["code"] == 0

    def on_all(self, name: str, config: str) -> None:
        """A job that waits until it has run on every host."""
        said = self.command(name, "ray", "exec", config, f"python {self.shared}/job.py {len(self.hosts)}")
        found = re.findall(r"JOB (\[.*\])", said)
        self.note(f"{name}_hosts", json.loads(found[-1]) if found else said[-2000:])

    def away(self, name: str, config: str, *options: str) -> tuple[int, str]:
        """The toy study, sent by `--on`: exit code and words."""
        study = [sys.executable, str(ROOT / "tests/away_study.py"), "--on", config, *options]
        said = self.command(name, *study, cwd=self.home)
        self.note(f"{name}_said", [self.report[name]["code"], said])
        return self.report[name]["code"], said

    def disturbed(self, config: str, *options: str) -> None:
        """The study, sent by `--on`; once a trial is done, the SSH that follows it is killed, and a host goes dark."""
        study = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/away_study.py"), "--on", config, *options, "--json", "outcome.json"],
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=open(self.shared / "study.log", "w"),
            stderr=subprocess.STDOUT,
        )
        began = time.time() - self.began
        wait_for(lambda: "done   trial" in (self.shared / "study.log").read_text(), study)
        tunnels = cut_tunnels(study) if study.poll() is None else 0
        os.kill(int(Path(f"/tmp/host{len(self.hosts) - 1}.pid").read_text()), signal.SIGKILL)
        self.ssh(self.hosts[-1], "true", "dark")
        code = study.wait(timeout=1200)
        self.note("study", {"code": code, "tunnels": tunnels, "began": began, "at": time.time() - self.began})

    def nodes(self, name: str, config: str) -> None:
        """What cluster/nodes.py says on the head."""
        said = self.command(name, "ray", "exec", config, "python ~/palimpsest/cluster/nodes.py; echo CODE $?")
        self.note(f"{name}_said", re.findall(r"^(?:joined|missing|CODE).*", said.replace("\r", ""), re.M))

    def down(self, config: str) -> None:
        self.command("down", "ray", "down", "-y", config)
        self.away("after_down", config, "--dry-run")
        self.note("readable", sorted(path.name for path in self.home.glob("results/onprem/away/*")))
        self.note("left", self.ssh(self.head, "pgrep -c raylet; pgrep -c gcs_server", "left").split())
        token = (Path.home() / ".ray/auth_token").read_text()
        self.note("token_printed", [path.name for path in self.shared.glob("*.log") if token in path.read_text()])


def cut_tunnels(of: subprocess.Popen) -> int:
    """Kill the SSH that a command has running; how many there were."""
    found = [
        int(child)
        for child in Path(f"/proc/{of.pid}/task/{of.pid}/children").read_text().split()
        if Path(f"/proc/{child}/comm").read_text().strip() == "ssh"
    ]
    for child in found:
        os.kill(child, signal.SIGKILL)
    return len(found)


def wait_for(what: Callable[[], bool], process: subprocess.Popen, seconds: float = 600) -> None:
    until = time.time() + seconds
    while not what() and process.poll() is None and time.time() < until:
        time.sleep(0.2)


def rehearse(shared: Path) -> None:
    """`ray up` to `ray down`."""
    room, config = Room(shared), str(derived(shared))
    worker = room.hosts[-1]
    (shared / "job.py").write_text(JOB)
    (shared / "intruder.py").write_text(INTRUDER)
    if not room.up(config):
        return
    room.on_all("job", config)
    room.note("intruder", room.ssh(worker, f"python {shared}/intruder.py {room.head}", "intruding").split("\n"))
    found = "ls /tmp/broken-in /tmp/let-in 2> /dev/null"
    room.note("intruded", room.ssh(room.head, found, "intruded").split())
    room.command("friend", "ray", "exec", config, "touch /tmp/let-in")
    room.note("let_in", room.ssh(room.head, found, "let_in").split())
    modes = "stat -c %a ~/.ray/auth_token ~/.palimpsest/mlflow_password"
    room.note("modes", room.ssh(worker, modes, "secrets").split())
    answers = "curl -s -m 3 -o /dev/null -w %{http_code}"
    first = 'python -c "import mlflow; print(mlflow.MlflowClient().search_experiments()[0].name)"'
    room.note("mlflow", room.ssh(room.head, f"{answers} 127.0.0.1:5000/; echo; {first}", "tracking").split())
    room.note("mlflow_outside", room.ssh(worker, f"{answers} {room.head}:5000/ || echo", "outside").split())

    room.disturbed(config, *STUDY)
    runs = 'import mlflow; c = mlflow.MlflowClient(); e = c.get_experiment_by_name(\\"away\\"); ' \
        "print(*[r.info.status for r in c.search_runs([e.experiment_id])])"
    room.note("runs", room.ssh(room.head, f'python -c "{runs}"', "tracked").split())
    room.away("again", config, *STUDY)
    room.nodes("nodes_dark", config)
    boot(shared, len(room.hosts) - 1, Path(os.environ["KEY"]))
    room.on_all("back", config)
    room.nodes("nodes_back", config)

    room.ssh(room.head, "mount -o remount,size=$(( $(du -sk /tmp | cut -f1) + 200000 ))k /tmp", "fill")
    for _ in range(10):  # until the head has told its dashboard
        if room.away("full", config, *STUDY, "--dry-run")[0]:
            break
        time.sleep(2)
    room.ssh(room.head, "mount -o remount,size=4g /tmp", "empty")
    absent = shared / "absent.yaml"
    absent.write_text(Path(config).read_text().replace(f"head_ip: {room.head}", f"head_ip: {NET}.99"))
    room.away("absent", str(absent), *STUDY)
    room.down(config)


def rehearse_quickly(shared: Path) -> None:
    """`ray up` to `ray down`: what a study needs, and no more."""
    room, config = Room(shared), derived(shared)
    config.write_text(re.sub(r"- PORT=5000.*", "- 'true'", config.read_text()))  # no tracking server
    if room.up(str(config)):
        room.disturbed(str(config), "--seeds", "2", "--set", "training.pause=0.6")
        room.down(str(config))


def rehearsed(how: str, hosts: int, shared: Path) -> dict[str, Any]:
    with open(shared / "outer.log", "w") as log:
        done = subprocess.run(
            [sys.executable, __file__, str(hosts), str(shared), "--", sys.executable, __file__, how, str(shared)],
            stdout=log,
            stderr=log,
            timeout=3000,
        )
    assert done.returncode == 0, (shared / "outer.log").read_text()[-3000:]
    return json.loads((shared / "report.json").read_text()) | {"folder": str(shared)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if reason := lacking():
        pytest.skip(reason)
    return rehearsed("--rehearse", 3, tmp_path_factory.mktemp("shared"))


def outcome_of(report: dict[str, Any]) -> dict[str, Any]:
    log = (Path(report["folder"]) / "study.log").read_text()
    assert report["study"]["code"] == 0, log[-3000:]
    assert report["study"]["tunnels"] == 1 and log.count("done   stage 1/3") == 1, "printed once"
    return json.loads((Path(report["folder"]) / "laptop/outcome.json").read_text())


def test_a_study_through_ssh_while_a_host_and_the_tunnel_die(tmp_path: Path):
    """The short rehearsal, wherever the tools are: two hosts, one study through `--on`."""
    if reason := lacking(labs=False):
        pytest.skip(reason)
    report = rehearsed("--quickly", 2, tmp_path)
    assert report["up"]["code"] == 0, (tmp_path / "up.log").read_text()[-3000:]
    cells = [cell for arm in outcome_of(report)["arms"] for cell in arm["cells"]]
    assert len(cells) == 4 and all(cell["status"] == "done" for cell in cells)
    assert report["dark"]["code"] == 255, "the worker was gone for good"
    assert "report.html" in report["readable"] and report["token_printed"] == []
    code, said = report["after_down_said"]
    assert code == 2 and "answers over SSH, and Ray's dashboard there does not" in said, said


def test_up_starts_ray_on_every_host(report: dict[str, Any]):
    log = (Path(report["folder"]) / "up.log").read_text()
    assert report["up"]["code"] == 0, log[-3000:]
    assert report["job_hosts"] == ["host0", "host1", "host2"], report["job_hosts"]


def test_a_neighbour_runs_nothing(report: dict[str, Any]):
    """The dashboard answers nobody outside the head; the agent's port asks for the token."""
    assert report["intruder"][:2] == ["8265 refused", "52365 401"]
    assert report["intruded"] == [], "nothing ran on the head, whose /tmp is its own"
    assert report["let_in"] == ["/tmp/let-in"], "and what does run there is seen"


def test_secrets_arrive_private_and_are_never_printed(report: dict[str, Any]):
    assert report["modes"] == ["600", "600"]
    assert report["token_printed"] == []


def test_mlflow_answers_on_the_head_alone(report: dict[str, Any]):
    assert report["mlflow"] == ["401", "Default"], "a password for others, credentials in place for the user"
    assert report["mlflow_outside"] == ["000"]


def test_a_host_that_is_switched_on_again_comes_back(report: dict[str, Any]):
    assert report["dark"]["code"] == 255, "it was not there"
    assert report["nodes_dark_said"][-1] == "CODE 1", report["nodes_dark_said"]
    assert any("10.77.0.12: it does not answer on port 22" in line for line in report["nodes_dark_said"])
    assert report["nodes_back_said"][0].startswith("joined   3:") and report["nodes_back_said"][-1] == "CODE 0"
    assert report["back_hosts"] == ["host0", "host1", "host2"], report["back_hosts"]


def test_a_study_goes_on_without_a_host_and_without_its_tunnel(report: dict[str, Any]):
    """In mid-study a host was switched off, and the SSH that followed it killed; the one command ended well."""
    outcome = outcome_of(report)
    cells = [cell for arm in outcome["arms"] for cell in arm["cells"]]
    assert len(cells) == 8 and all(cell["status"] == "done" for cell in cells)
    assert re.fullmatch("[0-9a-f]{40}", outcome["commit"])
    # In the tracking server on the head: the study, its eight cells, three stages.  A request whose answer was lost
    # on a busy machine makes a run twice; the engine ends the twin as KILLED, and nothing is left RUNNING.
    assert report["runs"].count("FINISHED") == 12 and set(report["runs"]) <= {"FINISHED", "KILLED"}, report["runs"]
    code, said = report["again_said"]
    assert code == 0 and "8 done, 0 to run" in said


def test_results_stay_when_the_cluster_is_gone(report: dict[str, Any]):
    assert {"report.html", "table.md", "outcome.json"} <= set(report["readable"])
    assert (Path(report["folder"]) / "results/away/report.html").read_text()
    code, said = report["after_down_said"]
    assert code == 2 and "answers over SSH, and Ray's dashboard there does not" in said, said


def test_a_full_disk_and_an_absent_head_are_said(report: dict[str, Any]):
    for name, words in (("full", "MiB free in"), ("absent", "does not answer over SSH")):
        code, said = report[f"{name}_said"]
        assert code == 2 and words in said and len(said.splitlines()) == 1, said


def test_down_ends_ray(report: dict[str, Any]):
    assert report["down"]["code"] == 0 and report["left"] == ["0", "0"]


def main() -> int:
    if sys.argv[1] == "--host":
        be_host(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    if sys.argv[1] == "--rehearse":
        rehearse(Path(sys.argv[2]))
        return 0
    if sys.argv[1] == "--quickly":
        rehearse_quickly(Path(sys.argv[2]))
        return 0
    if sys.argv[1] == "--inside":
        return machine_room(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[5:])
    return subprocess.run(
        [*NAMESPACES, sys.executable, __file__, "--inside", *sys.argv[1:]], preexec_fn=die_with_parent
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
