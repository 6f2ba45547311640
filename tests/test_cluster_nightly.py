"""cluster/nightly/: the units as systemd reads them, the lock, the exit codes, what a failure says, the workflow."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from listening import hook

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
            .replace("@OUT@", "/results")
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


def failed(root: Path, **more: str) -> str:
    """What notify.sh prints when systemd tells it that a night ended with 2."""
    env = os.environ | {"HOME": str(root / "home"), "MONITOR_SERVICE_RESULT": "exit-code", "MONITOR_EXIT_STATUS": "2"}
    env.pop("PALIMPSEST_NOTIFY", None)
    run = ["bash", str(root / "checkout/cluster/nightly/notify.sh"), "night"]
    said = subprocess.run(run, env=env | more, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout + said.stderr


def test_a_failure_is_told_where_nights_are(root: Path):
    """By the engine, to the address of nightly.env, which is in no argument and not printed; and once."""
    for name in ("studies/engine", "trainables", "search_spaces", "studies/__init__.py"):
        (root / "checkout" / name).symlink_to(HERE.parents[1] / name)
    with hook() as (url, got):
        (root / "home/.palimpsest/nightly.env").write_text(f"PALIMPSEST_NOTIFY='{url}/hunter2'\n")
        assert "hunter2" not in failed(root)
        text, = (payload["text"] for _, payload in got)
        assert text.startswith("night on ") and text.endswith("exit-code, exit 2")
        (root / "out/nightly").mkdir(parents=True)
        (root / "out/nightly/told").write_text("0123\n")
        assert "which the night has told" in failed(root, MONITOR_INVOCATION_ID="0123") and len(got) == 1


def test_a_failure_is_told_where_not_even_the_engine_runs(root: Path):
    """Packages that could not be installed, say: by curl, with the reason that the journal has."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    (root / "tools").mkdir()
    (root / "tools/journalctl").write_text("#!/bin/bash\necho 'git: https://user:hunter2@host'\n"
                                           "echo 'error: the \"packages\" cannot be installed'\n")
    (root / "tools/journalctl").chmod(0o755)
    with open(root / "home/.palimpsest/env", "a") as file:
        file.write(f'export PATH="{root}/tools:$PATH"\n')
    with hook() as (url, got):
        (root / "home/.palimpsest/webhook").write_text(url)
        failed(root, MONITOR_INVOCATION_ID="0123")
        (root / "home/.palimpsest/webhook").unlink()
        failed(root, PALIMPSEST_NOTIFY=url, MONITOR_INVOCATION_ID="0123")
    assert len(got) == 2 and got[0] == got[1], got
    assert got[0][1]["text"].endswith('exit-code, exit 2; error: the "packages" cannot be installed')


TOOLS = "bash cat chmod cp cut date dirname env git grep hostname id mkdir rm sed sha256sum tee touch uname".split()
STANDS_IN = """#!/bin/bash
# {name}: notes what it is asked to install, and fails where it is told to; all else is the real python
if [ "$1 $2" = "-m pip" ]; then [ "$3" = --version ] || echo "$*" >> {root}/installed; [ ! -e {root}/offline ]; exit; fi
exec {python} "$@"
"""


class Machine:
    """A repository that a team pushes to, and a machine that has its nights: git and python, no index of packages."""

    def __init__(self, root: Path):
        self.root, self.home, self.team, self.bare = root, root / "home", root / "team", root / "team.git"
        self.clone = self.home / ".palimpsest/nightly"
        (root / "tools").mkdir()
        for tool in TOOLS:
            (root / "tools" / tool).symlink_to(str(shutil.which(tool)))
        self.program("systemctl", f"#!/bin/bash\necho \"$*\" >> {root}/asked\n")
        self.env = {"HOME": str(self.home), "PATH": str(root / "tools"), "UNITS": str(root / "units")}
        for folder in (self.home, root / "units"):
            folder.mkdir()
        shutil.copytree(HERE, self.team / "cluster/nightly")
        (self.team / "studies").mkdir()
        (self.team / ".gitignore").write_text(".venv/\nresults/\n")
        for name in ("pyproject.toml", "constraints.txt", "studies/__init__.py"):
            (self.team / name).touch()
        (self.team / "studies/nightly.py").write_text(
            "import os\nimport studies\nprint(os.getcwd(), studies.__file__, os.environ.get('PALIMPSEST_NOTIFY'))\n")
        git("init", "-q", "--bare", "-b", "main", str(self.bare))
        git("init", "-q", "-b", "main", str(self.team))
        self.push("the first")

    def program(self, name: str, text: str, into: Path | None = None) -> Path:
        path = (into or self.root / "tools") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def push(self, words: str, *more: str) -> str:
        git("-C", str(self.team), "add", "-A")
        git("-C", str(self.team), "commit", "-q", "--allow-empty", "-m", words, *more)
        git("-C", str(self.team), "push", "-q", "--force", str(self.bare), "main")
        return git("-C", str(self.team), "rev-parse", "HEAD")

    def python(self) -> str:
        """What stands in for the environment's python."""
        return STANDS_IN.format(name="python", root=self.root, python=sys.executable)

    def night(self) -> tuple[int, str]:
        run = ["bash", str(self.clone / "cluster/nightly/run.sh")]
        said = subprocess.run(run, env=self.env, capture_output=True, text=True)
        return said.returncode, said.stdout + said.stderr

    def at(self) -> str:
        return git("-C", str(self.clone), "rev-parse", "HEAD")

    def installs(self) -> int:
        path = self.root / "installed"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def settings(self, text: str) -> Path:
        path = self.home / ".palimpsest/nightly.env"
        path.write_text(text)
        path.chmod(0o644)
        return path


def git(*words: str) -> str:
    somebody = ["-c", "user.name=anna", "-c", "user.email=anna@example.org"]
    return subprocess.run(["git", *somebody, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_night_follows_its_branch_and_installs_until_it_has(machine: Machine):
    git("clone", "-q", str(machine.bare), str(machine.clone))
    machine.program("python", machine.python(), machine.clone / ".venv/bin")
    settings = machine.settings("PALIMPSEST_BRANCH=main\nPALIMPSEST_NOTIFY=https://hook/secret\n")
    code, said = machine.night()
    ours = [str(machine.clone), str(machine.clone / "studies/__init__.py"), "https://hook/secret"]
    assert code == 0 and said.split() == ours, "its own code, its settings"
    assert settings.stat().st_mode & 0o777 == 0o600 and machine.installs() == 1
    assert "constraints.txt --editable .[cluster,nightly,paper]" in (machine.root / "installed").read_text()

    other = machine.push("nothing to install")
    assert machine.night()[0] == 0 and machine.at() == other and machine.installs() == 1

    (machine.team / "constraints.txt").write_text("numpy==2\n")
    (machine.root / "offline").touch()
    newer = machine.push("another numpy")
    code, said = machine.night()
    assert code == 2 and f"the packages of {newer[:7]} cannot be installed; the next night tries again" in said
    assert "secret" not in said and machine.at() == newer
    (machine.root / "offline").unlink()
    assert machine.night()[0] == 0 and machine.installs() == 3, "tried again, although the commit was there already"
    assert machine.night()[0] == 0 and machine.installs() == 3

    rebased = machine.push("another numpy, rebased", "--amend")
    assert machine.night()[0] == 0 and machine.at() == rebased
    assert newer[:7] in git("-C", str(machine.clone), "log", "--oneline", newer), "what was, can still be asked about"

    machine.settings("PALIMPSEST_BRANCH=mian\n")
    code, said = machine.night()
    assert code == 2 and f"PALIMPSEST_BRANCH: mian cannot be fetched and checked out in {machine.clone}" in said
    shutil.rmtree(machine.clone / ".git")
    code, said = machine.night()
    assert code == 2 and "is no clone of a repository; bash cluster/nightly/install.sh REPOSITORY makes one" in said
    machine.settings("")
    assert machine.night()[0] == 0, "what is there, as in an image"


def test_install_makes_a_clone_an_environment_and_a_timer(machine: Machine):
    """From what `ray up` brings, with uv, and a systemctl that only notes what it is asked."""
    brought = machine.home / "palimpsest/cluster/nightly"
    shutil.copytree(HERE, brought)
    machine.program("python.real", machine.python())
    machine.program("uv", f"""#!/bin/bash
case $1 in
  venv) mkdir -p .venv/bin; cp {machine.root}/tools/python.real .venv/bin/python ;;
  pip) echo "$*" >> {machine.root}/installed ;;
esac
""")
    install = ["bash", str(brought / "install.sh")]
    said = subprocess.run(install, env=machine.env, capture_output=True, text=True)
    assert said.returncode == 2 and "in no clone: bash cluster/nightly/install.sh REPOSITORY [BRANCH]" in said.stderr
    said = subprocess.run([*install, str(machine.bare), "mian"], env=machine.env, capture_output=True, text=True)
    assert said.returncode == 2 and "has no branch mian" in said.stderr and not list((machine.root / "units").iterdir())

    subprocess.run([*install, str(machine.bare)], env=machine.env, check=True, stdout=subprocess.DEVNULL)
    assert machine.installs() == 1 and "--python .venv/bin/python" in (machine.root / "installed").read_text()
    settings = machine.home / ".palimpsest/nightly.env"
    assert settings.read_text() == "PALIMPSEST_BRANCH=main\n" and settings.stat().st_mode & 0o777 == 0o600
    units = sorted((machine.root / "units").iterdir())
    assert [unit.name for unit in units] == [
        "palimpsest-nightly-failed@.service",
        "palimpsest-nightly.service",
        "palimpsest-nightly.timer",
    ]
    assert not any(re.search("@[A-Z]+@", unit.read_text()) for unit in units)
    assert f"WorkingDirectory={machine.clone}" in units[1].read_text()
    assert machine.night()[0] == 0 and machine.installs() == 1

    settings.write_text("PALIMPSEST_NOTIFY=https://hook/secret\nPALIMPSEST_BRANCH=old\n")
    subprocess.run([*install, str(machine.bare), "main"], env=machine.env, check=True, stdout=subprocess.DEVNULL)
    assert settings.read_text() == "PALIMPSEST_NOTIFY=https://hook/secret\nPALIMPSEST_BRANCH=main\n"
    subprocess.run([*install, "--remove"], env=machine.env, check=True)
    assert not list((machine.root / "units").iterdir()) and (machine.clone / ".git").is_dir()
    assert (machine.root / "asked").read_text().splitlines() == [
        *["daemon-reload", "enable --now palimpsest-nightly.timer"] * 2,
        "disable --now palimpsest-nightly.timer",
        "daemon-reload",
    ]


@pytest.mark.parametrize("term, code", [(False, 3), (True, 130)])
def test_a_pod_passes_the_end_on_and_waits(machine: Machine, term: bool, code: int):
    """The CronJob's own command, with a ray that notes what it is asked: bash alone would keep SIGTERM to itself."""
    manifest = yaml.safe_load((HERE.parent / "kuberay/nightly.yaml").read_text())
    pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert command[-1].count("/results") == 1
    command[-1] = command[-1].replace("/results", f"{machine.root}/out")
    assert pod["terminationGracePeriodSeconds"] >= 60
    machine.program("ray", f"#!/bin/bash\necho \"$*\" >> {machine.root}/asked\n")
    (machine.root / "tools/python").symlink_to(sys.executable)
    (machine.team / "studies/nightly.py").write_text(
        "import os, signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.5)\n    os.write(1, b'saved\\n')\n    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('began', flush=True)\n"
        f"time.sleep({60 if term else 0})\nsys.exit(3)\n")
    with subprocess.Popen(command, cwd=machine.team, env=machine.env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "began\n"
        if term:
            process.terminate()
        said = process.communicate()[0]
    assert said.startswith("saved\nnightly on " if term else "nightly on ") and said.endswith(f"failed, exit {code}\n")
    assert process.returncode == code
    assert (machine.root / "asked").read_text().splitlines()[-1] == "stop"


@pytest.mark.parametrize("ends, told", [("sys.exit(0)", 0), ("sys.exit(2)", 1), ("os.kill(os.getpid(), 9)", 1),
                                        ("told()", 0)])
def test_a_pod_says_how_its_night_ended(machine: Machine, ends: str, told: int):
    """The CronJob's own command; the night that has told a regression by itself is not told again."""
    manifest = yaml.safe_load((HERE.parent / "kuberay/nightly.yaml").read_text())
    command = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    command[-1] = command[-1].replace("/results", f"{machine.root}/out")
    machine.program("ray", "#!/bin/bash\n")
    for tool in ("curl", "timeout", "tail"):
        (machine.root / "tools" / tool).symlink_to(str(shutil.which(tool)))
    (machine.root / "tools/python").symlink_to(sys.executable)
    (machine.team / "studies/nightly.py").write_text(
        "import os, pathlib, sys\ndef told():\n    out = pathlib.Path(os.environ['PALIMPSEST_OUT'], 'nightly')\n"
        "    out.mkdir(parents=True)\n    (out / 'told').write_text(os.environ['INVOCATION_ID'])\n    sys.exit(3)\n"
        + ends)
    with hook() as (url, got):
        env = machine.env | {"PALIMPSEST_NOTIFY": url}
        ended = subprocess.run(command, cwd=machine.team, env=env, capture_output=True, text=True)
    assert len(got) == told, ended.stderr
    for _, payload in got:
        assert payload["text"].startswith("nightly on ") and payload["text"].endswith(f"exit {ended.returncode}")


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
