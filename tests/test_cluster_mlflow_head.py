"""A head with sudo and systemd: database.sh and up.sh as they are, on Debian's PostgreSQL, in a namespace of their own.

    PostgreSQL   the package's own cluster, port and socket, the user known by name; its schema as before release 15
    sudo         becomes who it is asked to become
    systemctl    a stand-in that starts and ends what the installed units say, and nothing else
    then         a run, a backup, the run deleted, the service ended, a restore; then a new head, which restores

Run as a program it is one such rehearsal:   python tests/test_cluster_mlflow_head.py FOLDER
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cluster_onprem import NAMESPACES, ROOT, account, die_with_parent, lacking, own_folders, run

SUDO = """#!/bin/bash
while :; do case $1 in -n) shift ;; -u) user=$2; shift 2 ;; *) break ;; esac; done
[ -z "${user:-}" ] && exec "$@"
exec setpriv --reuid="$user" --regid="$user" --init-groups "$@"
"""
SYSTEMCTL = """#!/bin/bash
echo "$*" >> /run/asked
of() { sed -n "s/^$1=//p" "/etc/systemd/system/$unit"; }
unit=${@: -1}; [[ $unit == *.service ]] || unit=$unit.service
end() {
  [ -s /run/main ] || return 0
  kill "$(cat /run/main)"
  while grep -q . "/proc/$(cat /run/main)/cmdline" 2> /dev/null; do sleep 0.2; done     # until it is at least a zombie
  : > /run/main
  command=$(of ExecStopPost); ${command#-}
}
case $1 in
  stop) end ;;
  restart)
    end
    HOME=$(of Environment | sed s/HOME=//) setsid $(of ExecStart) > /run/log 2>&1 < /dev/null &
    echo $! > /run/main ;;
esac
"""
CLIENT = "import mlflow, sys; c = mlflow.MlflowClient(); "


def rehearse(shared: Path) -> None:
    own_folders(shared)
    run("ip", "link", "set", "lo", "up")
    home = account()
    for folder in ("/var/lib/postgresql", "/etc/postgresql", "/var/log/postgresql", "/etc/systemd/system"):
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
        shutil.chown(folder, "postgres", "postgres")
    Path("/run/postgresql").mkdir(mode=0o775)
    shutil.chown("/run/postgresql", "postgres", "postgres")
    version = sorted(Path("/usr/lib/postgresql").iterdir())[-1].name
    # As the package does where it is installed; only then is there a "systemd", which it would ask to start it.
    run("pg_createcluster", version, "main", "--start", stdout=subprocess.DEVNULL)
    Path("/run/systemd/system").mkdir(parents=True)
    for name, text in {"sudo": SUDO, "systemctl": SYSTEMCTL}.items():
        (home / "bin").mkdir(exist_ok=True)
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    out = shared / "results"
    own = {"HOME": str(home), "USER": "ubuntu", "PALIMPSEST_OUT": str(out), "PATIENCE": "300"}
    own["PATH"] = f"{home}/bin:{sys.prefix}/bin:{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))} | own
    report: dict[str, Any] = {}

    def said(name: str, command: str) -> None:
        done = subprocess.run(["bash", "-c", command], env=env, cwd=ROOT, capture_output=True, text=True)
        report[name] = [done.returncode, done.stdout.strip(), done.stderr.strip()[-1000:]]
        (shared / "report.json").write_text(json.dumps(report))

    mlflow = ROOT / "cluster/mlflow"
    socket, as_nobody = "psql -h /run/postgresql -d mlflow", "setpriv --reuid=nobody --regid=nogroup --clear-groups"
    client = f". ~/.palimpsest/head && python -c '{CLIENT}"
    said("secrets", "bash cluster/secrets.sh")
    said("up", f"bash {mlflow}/up.sh")
    said("units", "systemd-analyze verify --man=no /etc/systemd/system/mlflow* 2>&1 | grep mlflow || true")
    said("asked", "cat /run/asked")
    said("me", f"{socket} -Atc 'select rolname, rolsuper from pg_roles where rolname = current_user'")
    said("other", f"{as_nobody} {socket} -U ubuntu -c 'select 1'")
    said("port", "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:5000/")
    said("14", "for d in mlflow mlflow_auth; do sudo -u postgres psql -d $d -c 'alter schema public owner to postgres; "
         "grant all on schema public to public'; done")
    said("write", client + 'print(c.create_experiment("kept"))\'')
    said("backup", f"bash {mlflow}/backup.sh")
    said("delete", client + 'c.delete_experiment(c.get_experiment_by_name("kept").experiment_id)\'')
    said("refused", f"bash {mlflow}/restore.sh")
    said("stop", "sudo systemctl stop mlflow")
    said("backups", f"ls {out}/mlflow-backups")
    said("restore", f"bash {mlflow}/restore.sh $(ls -d {out}/mlflow-backups/2* | head -1)")
    said("start", f"bash {mlflow}/up.sh")
    said("read", client + 'print(c.get_experiment_by_name("kept").lifecycle_stage)\'')
    said("stop_again", "sudo systemctl stop mlflow")
    said("lost", "for d in mlflow mlflow_auth; do sudo -u postgres dropdb $d; done; rm -r ~/.palimpsest/mlflow*")
    said("new_secrets", "bash cluster/secrets.sh")
    said("new_head", f"bash {mlflow}/up.sh")
    said("read_there", f"{socket} -Atc \"select lifecycle_stage from experiments where name = 'kept'\"")
    said("end", "sudo systemctl stop mlflow; pg_ctlcluster --skip-systemctl-redirect $(ls /etc/postgresql) main stop")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if reason := lacking("pg_createcluster", "pg_ctlcluster", "psql", "setpriv", "systemd-analyze", "curl", "flock"):
        pytest.skip(reason)
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    shared = tmp_path_factory.mktemp("head")
    with open(shared / "outer.log", "w") as log:
        done = subprocess.run([*NAMESPACES, sys.executable, __file__, str(shared)], stdout=log, stderr=log,
                              preexec_fn=die_with_parent, timeout=1500)
    assert done.returncode == 0, (shared / "outer.log").read_text()[-3000:]
    return json.loads((shared / "report.json").read_text())


def test_up_takes_postgresql_and_systemd_where_they_are(report: dict[str, Any]):
    assert report["up"][:2] == [0, report["up"][1]] and report["up"][1].endswith("on postgresql"), report["up"]
    assert report["units"][1] == "", "systemd has nothing against the units as they are installed"
    asked = report["asked"][1].splitlines()
    assert "enable --quiet --now mlflow-backup.timer" in asked and "restart mlflow.service" in asked
    assert report["port"][1] == "401", "with its password on"


def test_the_database_knows_its_user_by_name_alone(report: dict[str, Any]):
    assert report["me"][1] == "ubuntu|f", "no superuser"
    assert report["other"][0] and "Peer authentication failed" in report["other"][2], report["other"]


def test_a_restore_needs_no_right_to_the_schema(report: dict[str, Any]):
    assert report["write"][0] == 0 and report["backup"][0] == 0, (report["write"], report["backup"])
    assert report["refused"][0] == 1 and "stop it first" in report["refused"][2]
    assert report["restore"][0] == 0, report["restore"]
    assert report["read"][:2] == [0, "active"], report["read"]


def test_the_end_of_the_service_is_a_backup(report: dict[str, Any]):
    assert len(report["backups"][1].split()) == 2, "one by hand, and what was deleted since, as the service ended"


def test_a_new_head_goes_on_from_the_backup(report: dict[str, Any]):
    assert report["new_head"][0] == 0 and "restore.sh: from" in report["new_head"][1], report["new_head"]
    assert report["read_there"][1] == "active"


if __name__ == "__main__":
    rehearse(Path(sys.argv[1]))
