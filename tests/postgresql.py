"""A PostgreSQL for a test alone: Debian's binaries, a folder of its own, a socket and no port.

    with postgresql("mlflow") as folder:                     skips, with the reason, where it cannot be
        f"postgresql+psycopg2://tester@/mlflow?host={folder}"
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


class Postgresql:
    """A running server; `folder` holds its socket."""

    def __init__(self, folder: Path, binaries: Path):
        self.folder, self.binaries = folder, binaries
        self.owner = ["setpriv", "--reuid=nobody", "--clear-groups"] if os.geteuid() == 0 else []

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2://tester@/{database}?host={self.folder}"

    def run(self, program: str, *arguments: str) -> None:
        path = self.binaries / program
        subprocess.run([*self.owner, str(path), *arguments], check=True, cwd="/", stdout=subprocess.DEVNULL,
                       env=os.environ | {"HOME": "/"})

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")


@contextlib.contextmanager
def postgresql(*databases: str) -> Iterator[Postgresql]:
    """A server with these databases; its superuser is `tester`."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("needs PostgreSQL (apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv: PostgreSQL does not run as root")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))        # a socket's path is short
    server = Postgresql(folder, found[-1].parent)
    if server.owner:
        shutil.chown(folder, "nobody")
    folder.chmod(0o755)
    try:
        server.run("initdb", "-D", f"{folder}/data", "-U", "tester", "--auth=trust", "--no-sync")
        server.start()
        try:
            for name in databases:
                server.run("createdb", "-h", str(folder), "-U", "tester", name)
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
