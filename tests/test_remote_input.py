"""What is wrong with a command for a cluster is one sentence, said before anything is sent, and nothing has started."""

import http.server
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from studies.engine import bring
from studies.engine.cluster import IN_A_JOB, Cluster, choose_scale
from studies.engine.cluster_file import ClusterFile, elsewhere, is_head_of, read
from studies.engine.growth import as_the_file_says, running_file
from studies.engine.knock import knock
from studies.engine.parcel import MOST, pack
from studies.engine.provenance import code
from studies.engine.study import BadInput, Resources
from studies.engine.tunnel import Way, at, find_head, key_of, place, through_ssh, token

ROOT = Path(__file__).resolve().parents[1]
ONPREM = (ROOT / "cluster/onprem.yaml").read_text(encoding="utf-8").replace("192.0.2.", "10.1.2.")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No cluster, no token, an empty home."""
    for name in [name for name in os.environ if name.startswith(("RAY_A", "PALIMPSEST_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


# ---------------------------------------------------------------- the cluster's file


def cluster_file(folder: Path, text: str) -> str:
    (folder / "key").touch()
    path = folder / "mine.yaml"
    path.write_text(text.replace("~/.ssh/id_ed25519", str(folder / "key")), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("was, becomes, words", [
    ("10.1.2.10", "192.0.2.10", "provider.head_ip: 192.0.2.10 stands in for yours;"),
    ("type: local", "\ttype: local", r"line 15: not YAML: found character '\\t'"),
    ("cluster_name: palimpsest", "", "cluster_name is missing"),
    ("provider:", "providr:", "provider is missing .is it 'providr'?"),
    ("idle_timeout_minutes:", "idle_timeout:", "Ray knows no 'idle_timeout' .did you mean 'idle_timeout_minutes'?"),
    ("idle_timeout_minutes: 5", "idle_timeout_minutes: soon", "idle_timeout_minutes: 'soon' is not of type 'number'"),
    ("  worker_ips:", "  # worker_ips:", "worker_ips"),
    ("~/.ssh/id_ed25519", "~/.ssh/no-such-key", "auth.ssh_private_key: there is no ~/.ssh/no-such-key on this machine"),
])
def test_a_wrong_cluster_file(was: str, becomes: str, words: str, tmp_path: Path):
    assert was in ONPREM
    with pytest.raises(BadInput, match=words) as said:
        read(cluster_file(tmp_path, ONPREM.replace(was, becomes)))
    assert len(str(said.value).splitlines()) == 1 and str(said.value).startswith(f"--on {tmp_path}/mine.yaml")


def test_a_right_cluster_file(tmp_path: Path):
    file = read(cluster_file(tmp_path, ONPREM))
    assert file.name == "palimpsest" and file.port == 8265
    assert file.token_file == tmp_path / "home/.ray/auth_token"
    text = ONPREM.replace("--dashboard-host=127.0.0.1", "--dashboard-host=127.0.0.1 --dashboard-port=9000")
    assert read(cluster_file(tmp_path, text)).port == 9000


@pytest.mark.parametrize("name, hint", [("gpu", "cluster/aws.yaml writes them"), ("gcp", "my-project"),
                                        ("azure", "subscription_id"), ("onprem", "head_ip")])
def test_the_files_of_this_repository_want_to_be_filled_in(name: str, hint: str):
    with pytest.raises(BadInput, match="stands in for yours") as said:
        read(str(ROOT / f"cluster/{name}.yaml"))
    assert hint in str(said.value)


@pytest.mark.parametrize("on, words", [
    ("cluster/gpuu.yaml", "no such file .did you mean 'gpu.yaml'?"),
    ("cluster/secrets.sh", "line 23: not YAML"),
    ("cluster/nightly/palimpsest-nightly.timer", "not YAML|not a cluster's file"),
])
def test_a_file_that_is_none(on: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(BadInput, match=words):
        read(on)


def test_the_way_that_is_named_must_be_safe():
    for url in ("http://10.0.0.1:8265", "http://head.example:8265"):
        with pytest.raises(BadInput, match="over plain HTTP the token would be open"):
            at(url)
    with pytest.raises(BadInput, match="the URL of its dashboard with no password") as said:
        at("http://me:secret@127.0.0.1:8265")
    assert "secret" not in str(said.value)
    assert place("http://127.0.0.1:8265") == "127.0.0.1-8265" and place("cluster/gpu.yaml") == "gpu"


def test_a_token_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput, match="secrets.sh"):
        token(None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token(None) == ""


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs an SSH client")
def test_a_head_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name resolves to nothing: no network is used."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    text = ONPREM.replace("head_ip: 10.1.2.10", "head_ip: no-such-host.invalid")
    with pytest.raises(BadInput, match="no-such-host.invalid does not answer over SSH: .* `ray up .*` starts") as said:
        through_ssh(read(cluster_file(tmp_path, text)))
    assert len(str(said.value).splitlines()) == 1


def test_where_a_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    on = cluster_file(tmp_path, ONPREM)
    assert elsewhere(None) is None and elsewhere(on) == on
    with pytest.raises(BadInput, match="--stop ends what runs on a cluster"):
        elsewhere(None, stop=True)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(BadInput, match="both name a cluster"):
        elsewhere(on)
    assert elsewhere(None) is None, "joined"
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert elsewhere(None) == elsewhere("http://127.0.0.1:8265") == "http://127.0.0.1:8265", "a dashboard, as --on"
    with pytest.raises(BadInput, match="both name a cluster"):
        elsewhere(on)
    monkeypatch.setenv(IN_A_JOB, "{}")
    assert elsewhere(on) is elsewhere(None) is None


def test_a_head_is_known_by_more_than_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All files of cluster/ have one name, and `ray down` leaves its file on a head of one's own."""
    on, bootstrap = cluster_file(tmp_path, ONPREM), tmp_path / "home/ray_bootstrap_config.yaml"
    others = [("cluster_name: palimpsest", "cluster_name: another"), ("head_ip: 10.1.2.10", "head_ip: 10.9.9.9"),
              ("type: local", "type: gcp")]
    for was, becomes in others:
        bootstrap.write_text(ONPREM.replace(was, becomes))
        assert was in ONPREM and elsewhere(on) == on, becomes
    bootstrap.write_text("cluster_name: palimpsest")
    assert elsewhere(on) == on
    bootstrap.write_text(ONPREM)
    with pytest.raises(BadInput, match="this is that cluster's head, and its Ray has ended: `ray up` starts it"):
        elsewhere(on)
    running = [sys.executable, "-c", "import sys; sys.stdin.read()", "monitor.py", f"--autoscaling-config={bootstrap}"]
    with subprocess.Popen(running, stdin=subprocess.PIPE) as process:
        while b"monitor.py" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        assert elsewhere(on) is None, "on the head itself, in place"
        process.communicate()
    (tmp_path / "gpu.yaml").write_text("cluster_name: a\nprovider: {type: aws, region: us-west-2}\n")
    aws = str(tmp_path / "gpu.yaml")
    for region, same in (("us-west-2", True), ("eu-west-1", False)):         # as cluster/spot.py leaves it
        bootstrap.write_text(f"cluster_name: a\nprovider: {{type: external, module: x, region: {region}}}\n")
        assert is_head_of(aws) == same


# ---------------------------------------------------------------- looking for the head in a cloud


def cloud(kind: str, folder: Path, **auth: str) -> ClusterFile:
    """A file as `read` leaves it."""
    config = {"aws": {"region": "us-west-2"}, "azure": {"location": "eastus2", "resource_group": "group"},
              "gcp": {"region": "us-central1", "availability_zone": "us-central1-a", "project_id": "texts"}}[kind]
    return ClusterFile(str(folder / f"{kind}.yaml"), {
        "cluster_name": "mine", "provider": {"type": kind} | config, "auth": {"ssh_user": "ubuntu"} | auth})


@pytest.mark.parametrize("kind, module, package", [("aws", "boto3", "boto3"),
                                                   ("gcp", "googleapiclient", "google-api-python-client"),
                                                   ("azure", "azure", "azure-mgmt-compute and its kin")])
def test_a_clouds_package_that_is_not_here(kind: str, module: str, package: str, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch):
    """Ray's own import of it, which fails here by itself, or is made to."""
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith(("ray.autoscaler._private._azure", f"{module}."))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BadInput) as said:
        find_head(cloud(kind, tmp_path))
    assert f"looking at {kind} needs {package}, which is not here; cluster/README.md" in str(said.value)
    assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize("kind, hint", [("gcp", "gcloud auth application-default login"), ("aws", "aws sts"),
                                        ("azure", "az login")])
def test_credentials_that_are_not_there(kind: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Google's own library looks for some, and finds none; the others' errors come the same way."""
    import google.auth
    from ray.autoscaler._private import providers

    def provider(config: Any) -> Any:
        return lambda config, name: google.auth.default()

    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setitem(providers._NODE_PROVIDERS, kind, provider)
    with pytest.raises(BadInput, match=f"{kind} does not let us look for the head: .*credentials.*{hint}") as said:
        find_head(cloud(kind, tmp_path))
    assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize("kind, pair, name", [
    ("aws", "ray-autoscaler_us-west-2", "ray-autoscaler_us-west-2.pem"),
    ("gcp", None, "ray-autoscaler_gcp_us-central1_texts_ubuntu_0"),
    ("azure", None, "ray-autoscaler_azure_eastus2_group_ubuntu")])
def test_the_key_that_ray_made_elsewhere_is_not_made_again(kind: str, pair: str | None, name: str, tmp_path: Path):
    ssh = tmp_path / "home/.ssh"
    with pytest.raises(BadInput, match=f"takes the key {ssh}/{name}, which is not on this machine: copy it"):
        key_of(cloud(kind, tmp_path), pair)
    assert not ssh.exists()
    ssh.mkdir()
    (ssh / name).touch()
    assert key_of(cloud(kind, tmp_path), pair) == str(ssh / name)
    assert key_of(cloud(kind, tmp_path, ssh_private_key="~/mine"), pair) == str(tmp_path / "home/mine")


# ---------------------------------------------------------------- the head


@pytest.fixture
def dashboard() -> Iterator[Any]:
    """What answers as a head would; a test says what."""
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status, said = self.server.said.get(path, (404, "not here"))        # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said.encode() if isinstance(said, str) else json.dumps({"data": said}).encode())

        def log_message(self, *words: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.said = {                                                         # type: ignore[attr-defined]
            "/api/v0/cluster_metadata": (200, {"rayVersion": version("ray"),
                                               "pythonVersion": platform.python_version()}),
            "/nodes": (200, {"summary": [{"raylet": {"isHeadNode": True}, "disk": {"/": disk(20)}}]})}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def disk(gib: float) -> dict[str, float]:
    return {"total": 2**36, "free": gib * 2**30}


def way(server: Any) -> Way:
    return Way(f"http://127.0.0.1:{server.server_address[1]}", "the head", "secret")


@pytest.mark.parametrize("path, answer, words", [
    ("/api/v0/cluster_metadata", (200, {"rayVersion": "2.59.1", "pythonVersion": platform.python_version()}),
     rf"other versions: Ray 2.59.1 there, {re.escape(version('ray'))} here\.  Both sides install constraints.txt"),
    ("/api/v0/cluster_metadata", (200, {"rayVersion": version("ray"), "pythonVersion": "3.9.1"}),
     rf"other versions: Python 3.9.1 there, {platform.python_version()} here"),
    ("/api/v0/cluster_metadata", (401, "Unauthorized"), "does not take the token"),
    ("/api/v0/cluster_metadata", (403, "Forbidden"), "does not take the token"),
    ("/api/v0/cluster_metadata", (200, "<html>a router's page</html>"), "no Ray dashboard answers at the head"),
    ("/api/v0/cluster_metadata", (404, "?"), "no Ray dashboard answers at the head: HTTP 404"),
    ("/nodes", (200, {"summary": [{"raylet": {}, "disk": {"/": disk(0)}},
                                  {"raylet": {"isHeadNode": True}, "disk": {"/": disk(9), "/tmp/ray": disk(0.1)}}]}),
     "has 102 MiB free in /tmp/ray, and a job wants 0.5 GiB"),
])
def test_a_head_that_would_not_do(dashboard: Any, path: str, answer: Any, words: str):
    knock(way(dashboard))
    dashboard.said[path] = answer
    with pytest.raises(BadInput, match=words) as said:
        knock(way(dashboard))
    assert len(str(said.value).splitlines()) == 1 and "secret" not in str(said.value)


def test_a_head_whose_ray_has_ended(dashboard: Any):
    gone = way(dashboard)
    dashboard.shutdown()
    dashboard.server_close()
    with pytest.raises(BadInput, match="nothing answers at http://127.0.0.1"):
        knock(gone)


def test_a_disk_that_fills_while_ray_unpacks_and_a_job_that_ray_lost():
    from ray.job_submission import JobDetails

    from studies.engine.follow import exit_code
    from studies.engine.halt import Halt

    def ended(status: str, **more: Any) -> Any:
        return JobDetails(type="SUBMISSION", status=status, entrypoint="x", **more)         # type: ignore[arg-type]

    assert exit_code(ended("SUCCEEDED", driver_exit_code=0)) == 0
    assert exit_code(ended("FAILED", driver_exit_code=3)) == 3
    assert exit_code(ended("FAILED", driver_exit_code=-9)) == 137
    assert exit_code(ended("STOPPED")) == 130
    with pytest.raises(BadInput, match="the head's disk is full"):
        exit_code(ended("FAILED", message="runtime_env setup failed: [Errno 28] No space left on device: '/tmp'"))
    with pytest.raises(Halt, match="Ray ended the job: it was killed"):
        exit_code(ended("FAILED", message="Traceback\n  it was killed"))


# ---------------------------------------------------------------- what travels


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small working tree: a study, something ignored, something new."""
    root = tmp_path / "tree"
    (root / "studies").mkdir(parents=True)
    (root / "studies/one.py").write_text("print()\n")
    (root / ".gitignore").write_text("results/\n*.csv\n")
    (root / "results").mkdir()
    (root / "results/large").touch()
    somebody = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*somebody, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    (root / "studies/new.py").write_text("pass\n")
    (root / "studies/one.py").write_text("print(1)\n")
    return root


def packed(tree: Path, folder: Path, *arguments: str) -> Any:
    folder.mkdir()
    return pack(tree / "studies/one.py", arguments, folder, tree)


def test_the_tree_travels_with_where_it_came_from(tree: Path, tmp_path: Path):
    parcel = packed(tree, tmp_path / "a", "--seeds", "3", "--on", "x.yaml", "--json=here.json")
    assert parcel.command == ("studies/one.py", "--seeds", "3")
    assert sorted(str(path.relative_to(parcel.folder)) for path in parcel.folder.rglob("*") if path.is_file()) == [
        ".gitignore", ".provenance.json", "studies/new.py", "studies/one.py"]
    there, here = code(parcel.folder), code(tree)
    assert there == here and len(there.commit) == 40 and "+print(1)" in there.diff and "studies/new.py" in there.diff


def test_files_that_are_named_come_along(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "texts.csv").write_text(f"text\n{folder}\n")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text("{}")
    parcel = packed(tree, tmp_path / "a", "--data", "one/texts.csv:text", "--test-data=two/texts.csv:text", "--set",
                    f"a.name={tmp_path}/bert", "--set", "a.b=Bert(weights=Pretrained(name='./bert', revision='main'))",
                    "--set", "training.steps=3", "--data", "/results/on/the/cluster.csv:text", "--data", "stories")
    assert parcel.command[1:] == (
        "--data", "carried/0/texts.csv:text", "--test-data", "carried/1/texts.csv:text", "--set",
        "a.name=./carried/2/bert", "--set", "a.b=Bert(weights=Pretrained(name='./carried/3/bert', revision='main'))",
        "--set", "training.steps=3", "--data", "/results/on/the/cluster.csv:text", "--data", "stories")
    assert (parcel.folder / "carried/1/texts.csv").read_text() == "text\ntwo\n"
    assert (parcel.folder / "carried/2/bert/config.json").exists()


@pytest.mark.parametrize("arguments, words", [
    (["--out", "results"], "--out results: with --on it is the cluster's, so an absolute path"),
    (["--store", "stages"], "--store stages: .* or a URL"),
    (["--storage", "optuna.db"], "--storage optuna.db"),
    (["--data", "absent.csv:text"], "--data absent.csv:text: no such file"),
    (["--set", "a.name=./absent"], "--set ./absent: no such folder"),
    (["--data", "large.txt"], r"--data large.txt: 96 MiB, and at most 95 MiB travel .* name it by its path there"),
])
def test_what_cannot_travel_is_refused(arguments: list[str], words: str, tree: Path, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with open("large.txt", "w") as large:
        large.truncate(MOST + 2**20)
    with pytest.raises(BadInput, match=words):
        packed(tree, tmp_path / "a", *arguments)


def test_a_tree_that_is_too_large_says_which_file(tree: Path, tmp_path: Path):
    with open(tree / "studies/weights.bin", "w") as large:
        large.truncate(MOST + 2**20)
    with pytest.raises(BadInput, match="the working tree: 96 MiB.*studies/weights.bin"):
        packed(tree, tmp_path / "a")
    with pytest.raises(BadInput, match="runs a file of"):
        pack(tmp_path / "else.py", [], tmp_path / "a", tree)


def test_the_same_command_has_the_same_name(tree: Path, tmp_path: Path):
    (tmp_path / "texts.txt").write_text("one")
    words = ["--seeds", "3", "--data", str(tmp_path / "texts.txt")]
    first = packed(tree, tmp_path / "a", *words, "--on", "gpu.yaml")
    (tree / "studies/new.py").write_text("pass  # edited\n")
    again = packed(tree, tmp_path / "b", words[2], words[3], "--seeds=3", "--on=gpu.yaml", "--stop", "--json", "x")
    assert again.digest == first.digest and again.tree != first.tree
    assert packed(tree, tmp_path / "c", *words, "--report").digest != first.digest
    (tmp_path / "texts.txt").write_text("two")
    assert packed(tree, tmp_path / "d", *words).digest != first.digest
    twice = ["--set", "a=1", "--set", "a=2"]
    assert packed(tree, tmp_path / "e", *twice).digest != packed(tree, tmp_path / "f", *twice[2:], *twice[:2]).digest


def test_reports_come_whole_or_not_at_all(tmp_path: Path):
    (tmp_path / "cells").mkdir()
    for name in ("report.html", "table.md", ".driver.lock", "ray.log"):
        (tmp_path / name).write_text(name * 1000)
    said = bring.pack(tmp_path)
    assert bring.unpack(f"a line of Ray's\n{said}another\n", tmp_path / "here") == ["report.html", "table.md"]
    assert (tmp_path / "here/report.html").read_text() == "report.html" * 1000
    assert bring.unpack(said[:-60], tmp_path / "there") == [] and not (tmp_path / "there").exists()


def test_a_log_is_printed_once_whatever_the_connection_does(capsys: pytest.CaptureFixture[str]):
    from studies.engine.follow import Log

    whole = "Ray says something\nRunning entrypoint for job away-1: python x\none\ntwo\nthree\n"
    log = Log("away-1")
    for part in (whole[:30], whole[30:70], whole[70:75]):
        log.take(part)
    log.rewind()
    for part in (whole[:80], whole[80:]):
        log.take(part)
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


# ---------------------------------------------------------------- a cluster that has no machine yet


def test_a_cluster_from_zero_counts_as_it_may_grow():
    nodes, at_once = as_the_file_says(ROOT / "cluster/gpu.yaml")
    cluster = Cluster("10.0.0.1:6379", ((0.0, 0.0),), nodes, at_once)
    assert cluster.gpus == 8 and "grown as far as it may, (64 CPUs, 8 GPUs)" in cluster.words
    assert cluster.trials(Resources(gpus=1)) == 1 and cluster.most(Resources(gpus=1)) == 8
    with pytest.raises(BadInput, match="can never hold"):
        cluster.trials(Resources(workers=9, gpus=1))

    class Scales:
        name, scales = "any", {"laptop": 1, "paper": 2}

    assert choose_scale(Scales(), None, cluster)[0] == "paper"                      # type: ignore[arg-type]
    assert choose_scale(Scales(), None, Cluster("x", ((4.0, 0.0),)))[0] == "laptop"     # type: ignore[arg-type]


def test_types_compete_for_the_machines_there_may_be_at_once(tmp_path: Path):
    (tmp_path / "file.yaml").write_text(
        "max_workers: 3\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 2}}\n  wide: {resources: {CPU: 64}, max_workers: 2}\n"
        "  deep: {resources: {CPU: 8, GPU: 4}, max_workers: 9}\n  own: {resources: {}, max_workers: 5}\n")
    cluster = Cluster("x", ((2.0, 0.0),), *as_the_file_says(tmp_path / "file.yaml"))
    assert cluster.at_once == 4 and cluster.gpus == 12 and cluster.cpus == 64 + 64 + 8 + 8
    assert cluster.most(Resources(cpus=32)) == 4 and cluster.most(Resources(gpus=1)) == 12
    assert as_the_file_says(None) == ((), 1) and as_the_file_says(tmp_path / "absent.yaml") == ((), 0)


def test_only_an_autoscaler_that_runs_counts(tmp_path: Path):
    """Real processes, in a /proc of their own."""
    for name, found in (("log.py", None), ("monitor.py", Path("/where/it/is.yaml"))):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, "-c", "import sys; sys.stdin.read()", name, "--autoscaling-config=/where/it/is.yaml"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            (folder / str(process.pid)).symlink_to(f"/proc/{process.pid}")
            while b"is.yaml" not in (folder / str(process.pid) / "cmdline").read_bytes():
                time.sleep(0.01)                        # it is being started
            assert running_file(folder) == found
            process.communicate()
