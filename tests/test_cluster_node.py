"""cluster/node.sh, which sets a machine up, on one whose sudo, firewall and mounts only note what they are asked."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"


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
