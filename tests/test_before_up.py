"""What is wrong with a cluster's file is one sentence before `ray up`, when nothing is billed yet."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from studies.engine import before_up
from studies.engine.before_up import of_client, pinned, ready
from studies.engine.cluster_file import PLACEHOLDER
from studies.engine.study import BadInput

ROOT = Path(__file__).resolve().parents[1]
YOURS = {                               # a user's values, by what stands in for them
    "azure": {"00000000-0000-0000-0000-000000000000": "1b2c3d4e-0000-4000-8000-123456789abc",
              "203.0.113.7/32": "9.9.9.0/24", "22.04.0000000000": "22.04.2026110101", "myaccount": "ourlab"},
    "gcp": {"my-project": "our-lab", "v00000000": "v20261101", "192.0.2.2": "10.44.0.2"},
    "gpu": {"00000000000000000": "0123456789abcdef0", "00000000000000001": "0123456789abcdef1",
            "00000000000000002": "0123456789abcdef2", "00000000000000003": "0123456789abcdef3",
            "palimpsest-000000000000": "palimpsest-123456789012"},
    "onprem": {"192.0.2.": "10.1.2."},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with keys and secrets, and clients of all clouds: what is looked at here is the file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    for name in (".ssh/palimpsest_azure", ".ssh/palimpsest_azure.pub", ".ssh/id_ed25519", ".ray/auth_token",
                 ".palimpsest/mlflow_password"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(before_up, "of_client", lambda kind: ())
    return tmp_path


def filled(name: str, folder: Path, *, was: str = "", becomes: str = "") -> str:
    """A file of cluster/ with a user's values in it, and perhaps one thing wrong."""
    text = (ROOT / f"cluster/{name}.yaml").read_text()
    for placeholder, yours in YOURS[name].items():
        assert placeholder in text
        text = text.replace(placeholder, yours)
    assert was in text
    path = folder / f"{name}.yaml"
    path.write_text(text.replace(was, becomes) if was else text)
    return str(path)


@pytest.mark.parametrize("name", YOURS)
def test_a_file_that_is_filled_in_is_ready(name: str, tmp_path: Path):
    assert ready(filled(name, tmp_path)).name == "palimpsest"


@pytest.mark.parametrize("name, placeholder", [(name, each) for name, those in YOURS.items() for each in those])
def test_every_placeholder_is_found(name: str, placeholder: str, tmp_path: Path):
    yours = YOURS[name][placeholder]
    with pytest.raises(BadInput, match=f"^--cluster {tmp_path}/{name}.yaml: .* stands in for yours"):
        ready(filled(name, tmp_path, was=yours, becomes=placeholder))
    assert not PLACEHOLDER.search(yours), "and what a user writes is none"


@pytest.mark.parametrize("name, was, becomes, words", [
    ("azure", "SSH_FROM=9.9.9.0/24", "SSH_FROM=0.0.0.0/0", "setup_commands: SSH_FROM=0.0.0.0/0 is half of the world"),
    ("azure", "SSH_FROM=9.9.9.0/24", "SSH_FROM=9.9.9.9/24", "SSH_FROM=9.9.9.9/24: an address or a range"),
    ("azure", "SSH_FROM=9.9.9.0/24 ", "", "setup_commands: SSH_FROM is missing, and Ray's own rule on Azure"),
    ("gpu", "      SecurityGroupIds:", "      # SecurityGroupIds:", "head.node_config: SecurityGroupIds is missing"),
    ("gcp", "      networkInterfaces: ", "      networkInterfaces: []\n      others: ", "networkInterfaces is missing"),
    ("onprem", '"studies"', '"studios"', "there is no studios here: `ray up` is typed in the repository's root"),
    ("gpu", '"~/.ray/auth_token"', '"~/.ray/lost"', "there is no ~/.ray/lost here: `bash cluster/secrets.sh` makes it"),
    ("gcp", "idle_timeout_minutes", "idle_timeout", "Ray knows no 'idle_timeout'"),
])
def test_what_is_wrong_is_one_sentence(name: str, was: str, becomes: str, words: str, tmp_path: Path):
    with pytest.raises(BadInput, match=re.escape(words)) as said:
        ready(filled(name, tmp_path, was=was, becomes=becomes))
    assert len(str(said.value).splitlines()) == 1 and str(said.value).startswith(f"--cluster {tmp_path}")


def test_the_clouds_client_is_there_in_its_release(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(before_up, "CLIENTS", {"gcp": "json", "azure": "no_such_package.inside"})
    assert [*of_client("local")] == []
    (words,) = of_client("azure")
    assert "azure wants no_such_package.inside, which is not installed" in words
    monkeypatch.setattr(before_up, "CLIENTS", {"azure": "json"})
    monkeypatch.setattr(before_up, "version", lambda name: "26.0.0" if name == "azure-mgmt-resource" else "24.0.0")
    found = [*of_client("azure")]
    assert any("azure-mgmt-resource==24.0.0, and 26.0.0 is installed: Ray knows no other" in each for each in found)
    assert {package.name for package in pinned("azure")} >= {"azure-mgmt-compute", "msrestazure"}


@pytest.mark.parametrize("name", YOURS)
def test_each_file_says_so_before_ray_up(name: str):
    text = (ROOT / f"cluster/{name}.yaml").read_text()
    assert text.index(f"python -m studies.engine.doctor --cluster cluster/{name}.yaml") < text.index("#     ray up")


def test_the_command(tmp_path: Path):
    for path, code, words in ((ROOT / "cluster/azure.yaml", 2, "provider.subscription_id: 00000000"),
                              (filled("onprem", tmp_path), 0, "stands in the way of `ray up ")):
        done = subprocess.run([sys.executable, "-m", "studies.engine.doctor", "--cluster", str(path)], cwd=ROOT,
                              capture_output=True, text=True)
        assert done.returncode == code and words in done.stdout + done.stderr, done.stderr
        assert len((done.stdout + done.stderr).splitlines()) == 1
