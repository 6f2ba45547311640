"""cluster/mlflow/ for real: PostgreSQL, the server as its scripts start it, eight studies that write, a crash.

    database     Debian's PostgreSQL, a cluster of its own in a temporary folder, reached through its socket
    server       server.sh with the settings that up.sh writes: password, migrations, loopback
    writers      outboxes and shippers of studies/engine/tracking.py, as eight studies have them
    units        what systemd says of the unit files
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import postgresql

CLUSTER = Path(__file__).resolve().parent.parent / "cluster"
HERE = CLUSTER / "mlflow"
WRITERS, POINTS = 8, 40


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A PostgreSQL of its own, without a port; yields the folder of its socket."""
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    with postgresql("mlflow", "mlflow_auth") as found:
        yield str(found.folder)


class Server:
    """The tracking server, started and stopped by its own scripts, in a home of its own."""

    def __init__(self, home: Path, backend: str, port: int):
        self.home, self.host, self.port, self.process = home, "127.0.0.1", port, None
        secrets = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PGUSER": "tester"}
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | secrets
        subprocess.run(["bash", str(CLUSTER / "secrets.sh")], env=self.env, check=True, capture_output=True)
        self.password = (home / ".palimpsest/mlflow_password").read_text()
        settings = {
            "MLFLOW_BACKEND_STORE_URI": backend,
            "USERS": backend.replace("/mlflow?", "/mlflow_auth?"),
            "ARTIFACTS": home / "artifacts",
            "BACKUPS": home / "backups",
            "HOST": "127.0.0.1",
            "ADDRESS": "127.0.0.1",
            "PORT": port,
            "PATH": secrets["PATH"],
        }
        (home / ".palimpsest/mlflow.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        with open(self.home / "log", "a") as log:
            self.process = subprocess.Popen(
                ["bash", str(HERE / "server.sh")], env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(1200):
            assert self.process.poll() is None, (self.home / "log").read_text()
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self.home / "log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", str(HERE / name), *arguments], env=self.env, capture_output=True, text=True)

    def answer(self, path: str, user: str = "", password: str = "", **headers: str) -> int:
        import base64

        request = urllib.request.Request(self.url + path, headers=headers)
        if user:
            request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("head"), f"postgresql+psycopg2:///mlflow?host={database}", free_port())
    server.start()
    try:
        yield server
    finally:
        server.kill()


RUNS = "/api/2.0/mlflow/experiments/search?max_results=5"


def test_nobody_is_let_in_without_the_password(server: Server):
    assert server.answer("/health") == 200
    assert server.answer(RUNS) == 401
    assert server.answer("/") == 401
    assert server.answer(RUNS, "admin", "wrong") == 401
    assert server.answer(RUNS, "admin", server.password) == 200
    assert server.answer(RUNS, "admin", server.password, Host="evil.example.com") == 403


def test_it_listens_on_loopback_alone(server: Server):
    others = [
        each
        for each in subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
        if "." in each
    ]
    for address in others:
        with pytest.raises(OSError), socket.create_connection((address, server.port), timeout=2):
            pass
    if not others:
        pytest.skip("this machine has no address but loopback")


def test_secrets_are_in_no_argument_and_in_no_log(server: Server):
    seen = (
        subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True).stdout
        + (server.home / "log").read_text()
    )
    secret = (server.home / ".palimpsest/flask_secret").read_text()
    assert "mlflow server" in seen and server.password not in seen and secret not in seen
    for path in (server.home / ".palimpsest").iterdir():
        assert not path.stat().st_mode & 0o077 or path.name == "mlflow.env", path  # the test wrote that one


def ship(folder: Path, study: str, registered: threading.Barrier, crashed: threading.Event, shippers: list) -> None:
    """One study: a cell's outbox that grows, and its shipper, which outlives the server."""
    from studies.engine.ledger import Outbox
    from studies.engine.shipping import Shipper
    from studies.engine.tracking import Tracking

    tracking = Tracking(study, folder)
    outboxes = folder / study / "outbox"
    shipper = Shipper(tracking, outboxes, every=0.3)
    story = Outbox(outboxes / f"{study}.jsonl")
    story.start(key=study, name=study, params={"lr": 0.1}, tags={"kind": "cell"})
    registered.wait()
    shippers.append(shipper)
    shipper.start()
    for step in range(POINTS):
        story.record(step, {"train/loss": 1 / (step + 1), "valid/loss": 2 / (step + 1)})
        time.sleep(0.05)
        if step == POINTS // 2:
            crashed.wait(120)
    story.end("done", 1.0, metrics={"test/loss": 0.5}, texts={"samples.md": f"{study} writes"})
    story.close()
    give_up = time.monotonic() + 120
    while not shipper.close() and time.monotonic() < give_up:
        time.sleep(0.5)


def arrived(database: str) -> int:
    """How many runs have a point in the database."""
    return int(
        subprocess.run(
            [
                "psql",
                "-h",
                database,
                "-U",
                "tester",
                "-d",
                "mlflow",
                "-Atc",
                "select count(distinct run_uuid) from metrics",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )


def test_eight_writers_lose_nothing_over_a_crash_and_a_restore(
    server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed without warning while all write, started again; then saved, emptied, and brought back."""
    for name, value in {
        "MLFLOW_TRACKING_URI": server.url,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": server.password,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    shippers: list = []
    studies, registered, crashed = (
        [f"study{number}" for number in range(WRITERS)],
        threading.Barrier(WRITERS + 1),
        threading.Event(),
    )
    writers = [
        threading.Thread(target=ship, args=(tmp_path, study, registered, crashed, shippers), daemon=True)
        for study in studies
    ]
    for writer in writers:
        writer.start()
    registered.wait(120)
    for _ in range(600):
        if arrived(database) >= WRITERS // 2:  # some have shipped, others are at it
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"nothing arrived: {[shipper.problem for shipper in shippers]}")
    server.kill()
    crashed.set()
    time.sleep(1)
    server.start()
    for writer in writers:
        writer.join(180)
    assert not any(shipper.failures for shipper in shippers), [shipper.problem for shipper in shippers]
    assert not any(writer.is_alive() for writer in writers)
    expected = recorded(server, studies)
    assert expected == {study: (POINTS, POINTS, 1, "FINISHED", f"{study} writes") for study in studies}

    saved = server.script("backup.sh")
    assert saved.returncode == 0, saved.stderr
    (backup,) = (server.home / "backups").iterdir()
    assert sorted(path.name for path in backup.iterdir()) == ["runs", "state", "users"]
    # Nothing was recorded since; PostgreSQL's own upkeep may look like it, once or twice.
    assert any(server.script("backup.sh", "--if-changed").stdout == "" for _ in range(3))
    refused = server.script("restore.sh")
    assert refused.returncode == 1 and "stop it first" in refused.stderr, "not under a running server"
    assert server.script("restore.sh", "--if-empty").stdout == "", "a database in use is left alone"
    from mlflow import MlflowClient

    doomed = MlflowClient().get_experiment_by_name("study0")
    assert doomed is not None
    MlflowClient().delete_experiment(doomed.experiment_id)
    assert "backups/2" in server.script("backup.sh", "--if-changed").stdout
    server.kill()
    restored = server.script("restore.sh", str(backup))
    assert restored.returncode == 0, restored.stderr
    server.start()
    assert recorded(server, studies) == expected
    assert server.answer(RUNS, "admin", server.password) == 200 and server.answer(RUNS, "admin", "wrong") == 401


def recorded(server: Server, studies: list[str]) -> dict[str, tuple]:
    """What the server has of each study's cell: points of both curves, points of the test, status, and its artifact."""
    from mlflow import MlflowClient

    client, found = MlflowClient(tracking_uri=server.url), {}
    for study in studies:
        experiment = client.get_experiment_by_name(study)
        assert experiment is not None and experiment.lifecycle_stage == "active"
        (run,) = client.search_runs([experiment.experiment_id], f"tags.trial_key = '{study}'")
        curves = [
            client.get_metric_history(run.info.run_id, name) for name in ("train/loss", "valid/loss", "test/loss")
        ]
        assert [point.value for point in curves[0]] == [1 / (step + 1) for step in range(POINTS)]
        artifact = next((server.home / "artifacts").rglob(f"*/{run.info.run_id}/artifacts/samples.md"))
        found[study] = (*(len(curve) for curve in curves), run.info.status, artifact.read_text())
    return found


def test_up_writes_settings_that_the_server_understands(tmp_path: Path):
    """up.sh on a machine without sudo or systemd: SQLite, credentials, a loop that revives the server."""
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    for tool in ("setsid", "flock", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    server, port = Server(tmp_path, "unused", 0), free_port()
    (tmp_path / ".palimpsest/mlflow.env").unlink()
    env = server.env | {
        "PORT": str(port),
        "BACKEND": "sqlite",
        "BACKUP_EVERY": "1",
        "PATH": f"{_without_sudo(tmp_path)}:{server.env['PATH']}",
    }
    if Path("/run/systemd/system").exists():
        pytest.skip("this machine has systemd, and the test would install a unit")
    try:
        said = subprocess.run(["bash", str(HERE / "up.sh")], env=env, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr + (tmp_path / ".palimpsest/mlflow.log").read_text()
        assert said.stdout == f"up.sh: MLflow answers on 127.0.0.1:{port}, on sqlite\n"
        server.port = port
        assert server.answer(RUNS) == 401 and server.answer(RUNS, "admin", server.password) == 200
        assert (tmp_path / ".palimpsest/head").read_text() == f"export MLFLOW_TRACKING_URI=http://127.0.0.1:{port}\n"
        assert (tmp_path / ".mlflow/credentials").stat().st_mode & 0o777 == 0o600
        elsewhere = env | {"HOST": "127.0.0.2"}  # an address of this machine that is not 127.0.0.1
        again = subprocess.run(["bash", str(HERE / "up.sh")], env=elsewhere, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr + (tmp_path / ".palimpsest/mlflow.log").read_text()
        assert again.stdout == f"up.sh: MLflow answers on 127.0.0.2:{port}, on sqlite\n", "the loop's server is another"
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=2)
        assert "http://127.0.0.2:" in (tmp_path / ".palimpsest/head").read_text()
        server.host = "127.0.0.2"
        assert _answers(server)
        refused = server.script("restore.sh")
        assert refused.returncode == 1 and "stop it first" in refused.stderr, "it sees the server where that listens"
        assert sorted((tmp_path / ".palimpsest/mlflow-backups").glob("2*/runs")), "the loop backs up, as a timer does"
        first = _process(port)
        _kill_below(port, "server")
        for _ in range(600):
            if _process(port) not in (None, first) and _answers(server):
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the loop did not bring the server back")
    finally:
        _kill_below(port, "loop")


def _without_sudo(folder: Path) -> Path:
    """A folder for PATH in which `sudo` refuses, as it does where a password is asked for."""
    (folder / "bin").mkdir()
    (folder / "bin/sudo").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin/sudo").chmod(0o755)
    return folder / "bin"


def _answers(server: Server) -> bool:
    try:
        return server.answer(RUNS, "admin", server.password) == 200
    except OSError:
        return False


def _process(port: int) -> int | None:
    """The tracking server's pid."""
    listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True).stdout
    found = re.search(rf"^ *(\d+) .*mlflow server .*--port {port}\b", listed, re.M)
    return int(found[1]) if found else None


def _kill_below(port: int, what: str) -> None:
    """End the server on a port, or the whole loop around it (its session)."""
    pid = _process(port)
    assert pid is not None, f"no server on port {port}"
    for number in _session(os.getsid(pid)) if what == "loop" else [pid]:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _session(session: int) -> list[int]:
    listed = subprocess.run(["ps", "-s", str(session), "-o", "pid="], capture_output=True, text=True).stdout
    return [int(each) for each in listed.split()]


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("postgresql://me:hunter2hunter2@db/mlflow", "holds a password"),
        ("mysql", "postgresql, sqlite or a database URL"),
    ],
)
def test_up_refuses(tmp_path: Path, backend: str, reason: str):
    server = Server(tmp_path, "unused", 0)
    said = subprocess.run(
        ["bash", str(HERE / "up.sh")], env=server.env | {"BACKEND": backend}, capture_output=True, text=True
    )
    assert said.returncode == 2 and reason in said.stderr and "hunter2" not in said.stderr


def test_units_are_good(tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    units = []
    for source in sorted(HERE.glob("*.service")) + sorted(HERE.glob("*.timer")):
        unit = tmp_path / source.name
        unit.write_text(
            source.read_text()
            .replace("@USER@", "root")
            .replace("@HOME@", "/root")
            .replace("@HERE@", str(HERE))
            .replace("@OUT@", "/results")
        )
        assert source.suffix == ".timer" or "RequiresMountsFor=/results" in unit.read_text()
        assert "@" not in unit.read_text()
        units.append(str(unit))
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert said.returncode == 0 and "mlflow" not in said.stderr, said.stderr
    calendar = re.search(r"OnCalendar=(.*)", (HERE / "mlflow-backup.timer").read_text())
    assert calendar is not None
    said = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=4", calendar[1]], capture_output=True, text=True
    )
    assert said.returncode == 0 and len(set(re.findall(r"\d\d:\d7:00 UTC", said.stdout))) == 4, said.stdout


def test_old_backups_go_but_a_fortnight_stays(tmp_path: Path):
    """The newest six, and one of each of fourteen days."""
    if shutil.which("flock") is None:
        pytest.skip("needs flock")
    server = Server(tmp_path, f"sqlite:///{tmp_path}/runs.db", 0)
    settings = tmp_path / ".palimpsest/mlflow.env"
    settings.write_text(re.sub("USERS=.*", f"USERS=sqlite:///{tmp_path}/users.db", settings.read_text()))
    for day in range(1, 21):
        for hour in ("00", "12"):
            (tmp_path / f"backups/202001{day:02}T{hour}0000Z").mkdir(parents=True)
    for minute in range(8):
        (tmp_path / f"backups/20200121T00{minute:02}00Z").mkdir()
    assert server.script("backup.sh").returncode == 0
    kept = sorted(path.name for path in (tmp_path / "backups").iterdir())
    assert [name[6:11] for name in kept[:12]] == [f"{day:02}T12" for day in range(9, 21)], "each day's newest"
    assert [name[6:13] for name in kept[12:17]] == [f"21T00{minute:02}" for minute in range(3, 8)]
    assert len(kept) == 18 and kept[-1] > "2026", "and the one just made"


def test_settings_quote_what_a_shell_would_split(tmp_path: Path):
    """A folder with a space in its name reaches the server whole."""
    script = (HERE / "up.sh").read_text()
    assert script.count("%q") == 8
    line = subprocess.run(
        ["bash", "-c", "printf 'ARTIFACTS=%q\\n' '/my results/x'"], capture_output=True, text=True
    ).stdout
    (tmp_path / "env").write_text(line)
    read = subprocess.run(["bash", "-c", f'. {tmp_path}/env; printf %s "$ARTIFACTS"'], capture_output=True, text=True)
    assert read.stdout == "/my results/x"
