"""The launcher files of cluster/ (AWS, GCP, Azure, own machines): what Ray reads in them, and what none may hold."""

import ipaddress
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
CLOUDS = ("gpu.yaml", "gcp.yaml", "azure.yaml")
LAUNCHERS = (*CLOUDS, "onprem.yaml")
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def as_ray_reads(config: dict[str, Any]) -> dict[str, Any]:
    """The config after Ray has merged its defaults and refused what it refuses."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(config)
    util.validate_config(prepared)
    return prepared


@pytest.fixture(params=LAUNCHERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_ray_takes_it(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = as_ray_reads(load(name))
    assert config["cluster_name"] == "palimpsest"
    assert config["idle_timeout_minutes"] <= 10


@pytest.mark.parametrize(
    "wrong", [{"idle_timeout": 5}, {"upscaling_speed": "fast"}, {"initialization_commands": "one string"}]
)
def test_ray_refuses_what_is_misspelt(name: str, wrong: dict[str, Any]):
    """The check above can fail."""
    with pytest.raises(Exception, match="(?i)additional properties|is not of type|unexpected"):
        as_ray_reads(load(name) | wrong)


def test_nothing_is_left_to_rays_defaults(name: str):
    """Ray fills every command that is left out: with an open dashboard, and a nightly wheel of another Python."""
    raw, read = load(name), as_ray_reads(load(name))
    assert not set(COMMANDS) - raw.keys()
    words = " ".join(str(read[command]) for command in COMMANDS)
    assert "0.0.0.0" not in words and "wheel" not in words and "conda" not in words


def test_dashboard_is_on_loopback_and_nothing_reports_home(name: str):
    head, worker = (" ".join(load(name)[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    assert "--disable-usage-stats" in head and "--disable-usage-stats" in worker


def test_secrets_travel_as_files(name: str):
    """Both secrets come by file_mounts, and no file under cluster/ sets one."""
    config = load(name)
    mounts = config["file_mounts"]
    home = next(target for target in mounts if target.endswith("/.ray/auth_token")).removesuffix("/.ray/auth_token")
    assert mounts[f"{home}/.ray/auth_token"] == "~/.ray/auth_token"
    assert mounts[f"{home}/.palimpsest/mlflow_password"] == "~/.palimpsest/mlflow_password"
    assert home == f"/home/{config['auth']['ssh_user']}"


def test_no_secret_is_written_down():
    # Ways in which one gets into a file; $(...) and ${...} read it from somewhere else.
    inline = re.compile(
        r"(?i)(RAY_AUTH_TOKEN|PASSWORD|SECRET_KEY|AWS_SECRET\w*)['\"]?\s*[=:]\s*['\"]?(?![$\"'\s{])\w{6,}"
    )
    for path in CLUSTER.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            found = inline.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)}: {found[0]}"


def test_mounts_are_there_and_small(name: str):
    """Ray hashes every mounted folder at each `ray up`, and stops at a dangling link."""
    mounts = {target: source for target, source in load(name)["file_mounts"].items() if not source.startswith("~")}
    home = next(iter(load(name)["file_mounts"])).split("/.ray")[0]
    assert {target.removeprefix(f"{home}/palimpsest/") for target in mounts} == set(mounts.values())
    assert {"cluster", "studies", "search_spaces", "trainables", "pyproject.toml", "constraints.txt"} <= set(
        mounts.values()
    )
    for source in mounts.values():
        assert (ROOT / source).exists(), source
        files = [path for path in (ROOT / source).rglob("*") if "__pycache__" not in path.parts]
        assert all(path.exists() for path in files)
        assert sum(path.stat().st_size for path in files if path.is_file()) < 20e6


def test_what_setup_installs_is_pinned():
    """All machines install the versions of constraints.txt, with an installer of a fixed version."""
    script = (CLUSTER / "node.sh").read_text(encoding="utf-8")
    assert re.search(r"^UV=\d+\.\d+\.\d+", script, re.M) and '"uv==$UV"' in script
    assert '--constraint "$here/constraints.txt"' in script
    for name in LAUNCHERS:
        commands = " ".join(str(load(name)[command]) for command in COMMANDS)
        assert "cluster/node.sh" in commands
        for package in re.findall(r"install (?:-\S+ )*['\"]?([a-z][\w-]*)(?!\S*==)", commands):
            raise AssertionError(f"{name} installs {package} at any version")


def test_what_a_laptop_installs_is_pinned():
    """Each package that a launcher's first lines or README name is there in the version of constraints.txt, or of the
    extra that Azure has of its own."""
    known = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    known |= dict(re.findall(r'"([\w.-]+)==([\w.]+)"', (ROOT / "pyproject.toml").read_text()))
    named = 0
    for path in (*(CLUSTER / name for name in LAUNCHERS), CLUSTER / "README.md"):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"pip install ((?:[\w'.=-]+ *)+)", text):
            for package, _, number in (each.strip("'").partition("==") for each in line.split()):
                assert known.get(package) == number, f"{path.name}: {package}=={number}"
                named += 1
    assert named >= 12


def test_a_host_without_an_address_is_told_of(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray", reason="needs Ray")
    import importlib.util

    spec = importlib.util.spec_from_file_location("nodes", CLUSTER / "nodes.py")
    assert spec is not None and spec.loader is not None
    nodes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nodes)
    hosts = {"head_ip": "127.0.0.1", "worker_ips": ["no-such-host.invalid"]}
    assert [*nodes.of_hosts(hosts, ["127.0.0.1"])] == [
        "missing  no-such-host.invalid: the head knows no machine of that name"]


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_come_from_zero_and_spot_is_marked(name: str):
    config = as_ray_reads(load(name))
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}, "no trial on the head"
    assert len(types) >= 3 and all(each["resources"]["GPU"] >= 1 for each in types.values())
    assert all(each["min_workers"] == 0 for each in types.values())
    assert any(each["max_workers"] > 0 for each in types.values())
    assert config["max_workers"] <= 8
    assert len({each["resources"]["GPU"] for each in types.values()}) > 1, "one GPU, and several"


def test_onprem_keeps_all_hosts():
    """Autoscaler v2 would leave one worker of a local cluster out; min_workers defaults to all of them."""
    config = load("onprem.yaml")
    start = " ".join(config["head_start_ray_commands"])
    assert "RAY_enable_autoscaler_v2=0" in start
    read = as_ray_reads(config)
    provider = config["provider"]
    hosts = [provider["head_ip"], *provider["worker_ips"]]
    assert len({ipaddress.ip_address(host) for host in hosts}) == len(hosts)
    assert read["available_node_types"]["local.cluster.node"]["min_workers"] == len(hosts) - 1


def test_secrets_are_made_private_and_kept(tmp_path: Path):
    def make() -> str:
        return subprocess.run(
            ["bash", str(CLUSTER / "secrets.sh")],
            env=os.environ | {"HOME": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    said = make()
    files = [tmp_path / ".ray/auth_token", tmp_path / ".palimpsest/mlflow_password"]
    first = [file.read_text() for file in files]
    assert all(len(secret) == 64 for secret in first) and len(set(first)) == 2
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert all(stat.S_IMODE(file.parent.stat().st_mode) == 0o700 for file in files)
    files[0].chmod(0o644)  # as `ray get-auth-token --generate` leaves it
    said += make()
    assert [file.read_text() for file in files] == first
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert not any(secret in said for secret in first)


@pytest.mark.parametrize(
    "script",
    sorted(CLUSTER.rglob("*.sh")) + [CLUSTER / "slurm/study.sbatch"],
    ids=lambda path: str(path.relative_to(CLUSTER)),
)
def test_scripts_parse_and_stop_at_the_first_error(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    stops = "set -o pipefail" if script.name == "notify.sh" else "set -euo pipefail"      # a notice is always tried
    assert stops in script.read_text(encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """A machine's environment: a home with the secrets, and a sudo, ufw, uv that only note what they are asked."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    venv = f'[ "$1" = venv ] && mkdir -p "$HOME/venv/bin" && ln -sf {tmp_path}/python "$HOME/venv/bin/python"'
    acts = {"sudo": '"$@"', "ufw": "", "uv": venv, "mountpoint": "exit 1", "mount": "", "mount.nfs": ""}
    for name, act in acts.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/asked\n{act}\nexit 0\n')
        (tmp_path / "bin" / name).chmod(0o755)
    env = os.environ | {"HOME": str(tmp_path / "home"), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    (tmp_path / "home").mkdir()
    subprocess.run(["bash", str(CLUSTER / "secrets.sh")], env=env, check=True, capture_output=True)
    (tmp_path / "home/.ray/auth_token").chmod(0o644)
    (tmp_path / "fstab").write_text("UUID=1 / ext4 defaults 0 1\n")
    own = {"VENV": sys.prefix, "ASKED": str(tmp_path / "asked"), "FSTAB": str(tmp_path / "fstab")}
    return env | own | {"SHARED": str(tmp_path / "results")}


def set_up(machine: dict[str, str], **changes: str) -> subprocess.CompletedProcess:
    command = ["bash", str(CLUSTER / "node.sh")]
    return subprocess.run(command, env=machine | changes, capture_output=True, text=True)


def asked(machine: dict[str, str]) -> list[str]:
    return Path(machine["ASKED"]).read_text().splitlines() if Path(machine["ASKED"]).exists() else []


def test_node_sets_up_twice_as_once(machine: dict[str, str]):
    pytest.importorskip("ray", reason="needs Ray")
    (Path(machine["HOME"]) / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\n")
    said = [set_up(machine) for _ in range(2)]
    assert [each.returncode for each in said] == [0, 0], said[0].stderr
    assert re.search(r"Python 3\.\d+\.\d+, Ray \d+\.\d+", said[0].stdout)
    bashrc = (Path(machine["HOME"]) / ".bashrc").read_text().splitlines()
    assert bashrc[0] == ". ~/.palimpsest/env" and bashrc.count(bashrc[0]) == 1, "before what ends it early"
    assert stat.S_IMODE((Path(machine["HOME"]) / ".ray/auth_token").stat().st_mode) == 0o600
    read = "echo $RAY_AUTH_MODE $PALIMPSEST_OUT $PALIMPSEST_STORE $RAY_USAGE_STATS_ENABLED"
    line = subprocess.run(["bash", "-c", f". ~/.bashrc; {read}"], env=machine, capture_output=True, text=True).stdout
    assert line.split() == ["token", machine["SHARED"], f"{machine['SHARED']}/stages", "0"]
    spot = "import cluster.spot as spot; print(spot.__file__)"  # as `ray teardown` on the head imports it
    found = subprocess.run(["bash", "-c", f". ~/.bashrc; cd /; python -c '{spot}'"], env=machine, capture_output=True)
    assert found.stdout.decode().strip() == str(CLUSTER / "spot.py"), found.stderr
    twice = subprocess.run(["bash", "-c", ". ~/.bashrc; . ~/.bashrc; echo $PYTHONPATH"],
                           env=machine | {"PYTHONPATH": "/a/jobs/tree"}, capture_output=True, text=True).stdout
    assert twice.strip() == f"/a/jobs/tree:{ROOT}", "a job's own code comes first"
    assert asked(machine) == [], "no package, mount or firewall that nobody asked for"


def test_node_installs_what_constraints_name(machine: dict[str, str]):
    pytest.importorskip("ray", reason="needs Ray")
    assert set_up(machine, VENV="", EXTRAS="cluster").returncode == 0
    (install,) = [line for line in asked(machine) if line.startswith("uv pip install")]
    assert f"--constraint {ROOT}/constraints.txt" in install and f"--editable {ROOT}[cluster]" in install


def test_node_mounts_what_it_is_told(machine: dict[str, str]):
    pytest.importorskip("ray", reason="needs Ray")
    """For good: what is mounted is in fstab, once, and no other line is touched."""
    for _ in range(2):
        said = set_up(machine, NFS="files.example:/export")
        assert said.returncode == 0, said.stderr
    assert f"mount {machine['SHARED']}" in asked(machine)
    root, mount = Path(machine["FSTAB"]).read_text().splitlines()
    assert root == "UUID=1 / ext4 defaults 0 1"
    assert mount.startswith(f"files.example:/export {machine['SHARED']} nfs nfsvers=4.1,")
    assert "noresvport" not in mount, "an export with `secure` would refuse"
    assert mount.endswith(",_netdev,nofail 0 0"), "after the network, and a boot does not wait for it"
    assert set_up(machine, NFS="files.example:/other", NFS_OPTIONS="ro").returncode == 0
    lines = Path(machine["FSTAB"]).read_text().splitlines()
    assert lines == [root, f"files.example:/other {machine['SHARED']} nfs ro,_netdev,nofail 0 0"]


def test_efs_alone_asks_from_unprivileged_ports():
    for name in LAUNCHERS:
        assert ("noresvport" in " ".join(load(name)["setup_commands"])) == (name == "gpu.yaml")


@pytest.mark.parametrize("pip", ["22.04", "24.04", "none"])
def test_node_installs_its_installer_on_every_ubuntu(machine: dict[str, str], pip: str):
    """22.04's pip knows no --break-system-packages, 24.04's insists on it, and an image may have none."""
    pytest.importorskip("ray", reason="needs Ray")
    folder = Path(machine["ASKED"]).parent
    (folder / "bin/uv").rename(folder / "uv")
    there = "" if pip != "none" else f'[ -e {folder}/pip ] || exit 1'
    refuses = {"24.04": '[ "${PIP_BREAK_SYSTEM_PACKAGES:-}" = 1 ] || { echo externally-managed >&2; exit 1; }'}
    (folder / "bin/python3").write_text(f"""#!/bin/bash
[ "$1 $2" = "-m pip" ] || exec {sys.executable} "$@"
{there}
[ "$3" = install ] || exit 0
[[ "$*" != *--break-system-packages* ]] || {{ echo "no such option: --break-system-packages" >&2; exit 2; }}
{refuses.get(pip, "")}
mkdir -p ~/.local/bin; cp {folder}/uv ~/.local/bin/uv
""")
    (folder / "bin/apt-get").write_text(f'#!/bin/sh\n[ "$1 $4" != "install python3-pip" ] || touch {folder}/pip\n')
    for name in ("python3", "apt-get"):
        (folder / "bin" / name).chmod(0o755)
    said = set_up(machine, VENV="", PATH=f"{folder}/bin:/usr/bin:/bin")
    assert said.returncode == 0, said.stderr
    assert any(line.startswith("uv pip install") for line in asked(machine))
    assert (folder / "pip").exists() == (pip == "none")


def test_node_says_that_the_folder_is_not_there(machine: dict[str, str]):
    said = set_up(machine, SHARED="/proc/results")
    assert said.returncode == 1 and "cannot write into /proc/results" in said.stderr


def test_node_closes_ssh_to_others_but_never_to_you(machine: dict[str, str]):
    pytest.importorskip("ray", reason="needs Ray")
    here = {"SSH_CLIENT": "9.9.9.9 40000 22"}
    lost = set_up(machine, SSH_FROM="203.0.113.0/24", **here)
    assert lost.returncode and "would lock you out" in lost.stderr and asked(machine) == []
    wide = set_up(machine, SSH_FROM="0.0.0.0/0", **here)
    assert wide.returncode and "half of the world" in wide.stderr and asked(machine) == []
    assert set_up(machine, SSH_FROM="9.9.9.0/24", **here).returncode == 0
    rules = [line for line in asked(machine) if line.startswith("ufw")]
    assert rules[0] == "ufw default deny incoming" and rules[-1] == "ufw --force enable"
    assert "ufw allow proto tcp from 9.9.9.0/24 to any port 22" in rules
