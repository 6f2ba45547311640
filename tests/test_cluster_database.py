"""A tracking database that outlives the head: cluster/mlflow/elsewhere.sh on a PostgreSQL that asks for a password.

    PostgreSQL   Debian's, a user who is no superuser, password wanted
    password     in ~/.pgpass; or in a pretend AWS's Secrets Manager (moto), from where it is fetched into that file
"""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import Postgresql, postgresql
from pretend_aws import REGION, Aws

pytest_plugins = ["pretend_aws"]                   # its fixtures
HERE = Path(__file__).resolve().parent.parent / "cluster/mlflow"
PASSWORD = r"a:b\c and more"


@pytest.fixture(scope="module")
def database() -> Iterator[Postgresql]:
    with postgresql() as found:
        for line in (f"create role runs login createdb password '{PASSWORD}'", "create database mlflow owner runs"):
            psql(found, "postgres", line, "tester")
        (found.folder / "data/pg_hba.conf").write_text("local all tester trust\nlocal all runs scram-sha-256\n")
        found.run("pg_ctl", "-D", f"{found.folder}/data", "reload")
        yield found


def psql(database: Postgresql, name: str, line: str, user: str) -> str:
    return subprocess.run(["psql", "-X", "-w", "-h", str(database.folder), "-U", user, "-d", name, "-Atc", line],
                          check=True, capture_output=True, text=True).stdout.strip()


def prepare(database: Postgresql, home: Path, name: str = "mlflow", **changes: str) -> subprocess.CompletedProcess:
    """elsewhere.sh, as up.sh runs it."""
    home.mkdir(exist_ok=True)
    own = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env = {key: value for key, value in os.environ.items() if not key.startswith("PG")} | own | changes
    url = f"postgresql+psycopg2://runs@/{name}?host={database.folder}"
    return subprocess.run(["bash", str(HERE / "elsewhere.sh"), url], env=env, capture_output=True, text=True)


def databases(database: Postgresql) -> list[str]:
    return psql(database, "postgres", "select datname from pg_database where datname like 'mlflow%' order by 1",
                "tester").split()


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")


def test_the_password_is_that_of_pgpass(database: Postgresql, tmp_path: Path):
    psql(database, "postgres", "drop database if exists mlflow_auth", "tester")
    refused = prepare(database, tmp_path / "home")
    assert refused.returncode == 2 and "no database at BACKEND" in refused.stderr, refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and "no password supplied" in refused.stderr
    known = tmp_path / "home/.pgpass"
    known.write_text(f"{database.folder}:*:*:runs:{escaped(PASSWORD)}\n")
    known.chmod(0o644)  # as rsync may leave it; libpq would not take it
    for _ in range(2):
        done = prepare(database, tmp_path / "home")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert databases(database) == ["mlflow", "mlflow_auth"], "the users' database is made beside the runs'"
    assert psql(database, "postgres", "select pg_get_userbyid(datdba) from pg_database where datname = 'mlflow_auth'",
                "tester") == "runs"
    missing = prepare(database, tmp_path / "home", "nothing")
    assert missing.returncode == 2 and 'database "nothing" does not exist' in missing.stderr


def test_the_password_is_fetched_from_aws(database: Postgresql, tmp_path: Path, aws: Aws):
    keeper = aws.client("secretsmanager")
    said = {"username": "runs", "password": PASSWORD}
    secret = keeper.create_secret(Name="Password", SecretString=json.dumps(said))["ARN"]
    known = tmp_path / "own/.pgpass"
    known.parent.mkdir()
    known.write_text(f"elsewhere:*:*:me:mine\n{database.folder}:*:*:runs:an-old-one\n")
    done = prepare(database, known.parent, SECRET=secret)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert known.read_text() == f"elsewhere:*:*:me:mine\n{database.folder}:*:*:runs:{escaped(PASSWORD)}\n"
    assert stat.S_IMODE(known.stat().st_mode) == 0o600 and "mlflow_auth" in databases(database)
    wrong = prepare(database, tmp_path / "other", SECRET=f"arn:aws:secretsmanager:{REGION}:123456789012:secret:none")
    assert wrong.returncode and "cannot be read" in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    assert PASSWORD not in done.stderr + wrong.stderr


def test_an_older_pg_dump_is_told_of(database: Postgresql, tmp_path: Path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24 (Ubuntu 9.6)'\n")
    (tmp_path / "bin/pg_dump").chmod(0o755)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.pgpass").write_text(f"{database.folder}:*:*:runs:{escaped(PASSWORD)}\n")
    done = prepare(database, tmp_path / "home",
                   PATH=f"{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert done.returncode == 0 and re.search(r"pg_dump 9 saves no PostgreSQL \d+: there will be no backups",
                                              done.stderr), done.stderr


def test_up_takes_the_url_and_ends_where_nobody_answers(database: Postgresql, tmp_path: Path):
    """A user in the URL is no password; and nothing is started on a database that is not there."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "MLFLOW_", "PALIMPSEST_"))} | {
        "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BACKEND": f"postgresql+psycopg2://runs@/nothing?host={database.folder}"}
    subprocess.run(["bash", str(HERE.parent / "secrets.sh")], env=env, check=True, capture_output=True)
    said = subprocess.run(["bash", str(HERE / "up.sh")], env=env, capture_output=True, text=True)
    assert said.returncode == 2 and "no database at BACKEND" in said.stderr, said.stderr
    assert not (tmp_path / ".palimpsest/mlflow.env").exists()
