"""The launcher files of cluster/ (AWS, GCP, Azure, own machines): what Ray reads in them, and what none may hold."""

import ipaddress
import json
import os
import re
import stat
import subprocess
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


def test_efs_alone_asks_from_unprivileged_ports():
    for name in LAUNCHERS:
        assert ("noresvport" in " ".join(load(name)["setup_commands"])) == (name == "gpu.yaml")


@pytest.mark.parametrize(
    ("name", "program", "says", "path"),
    [
        ("gcp.yaml", "gcloud", "common-cu128-v20261101", "initializeParams.sourceImage"),
        ("azure.yaml", "az", "22.04.2026110101", "azure_arm_parameters.imageVersion"),
    ],
)
def test_the_line_in_the_file_pins_the_image(tmp_path: Path, name: str, program: str, says: str, path: str):
    """As it is written there, with a stand-in for the cloud's own program."""
    (tmp_path / "cluster").mkdir()
    copy_of = tmp_path / "cluster" / name
    copy_of.write_text((ROOT / "cluster" / name).read_text())
    (tmp_path / program).write_text(f"#!/bin/sh\necho {says}\n")
    (tmp_path / program).chmod(0o755)
    (line,) = re.findall(r"^# +(sed -i.before .*)$", copy_of.read_text(), re.M)
    for _ in range(2):
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, check=True)
    was, now = (ROOT / "cluster" / name).read_text().splitlines(), copy_of.read_text().splitlines()
    changed = [new for old, new in zip(was, now, strict=True) if old != new]
    assert len(changed) == 1 and changed[0].endswith(says), changed
    for each in yaml.safe_load(copy_of.read_text())["available_node_types"].values():
        assert says in json.dumps(each["node_config"]), path
