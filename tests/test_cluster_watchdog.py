"""cluster/watchdog.py: a worker whose head is gone ends itself, and no other."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

WATCHDOG = Path(__file__).resolve().parent.parent / "cluster" / "watchdog.py"


class Worker:
    """A machine with a `shutdown` that only notes when it was asked, and a clock of tenths of seconds."""

    def __init__(self, folder: Path, metadata: str = "http://127.0.0.1:9"):
        self.folder, self.asked, self.processes = folder, folder / "asked", []
        for name, act in {"shutdown": f'echo "$*" >> {self.asked}', "sudo": 'shift; "$@"'}.items():
            (folder / name).write_text(f"#!/bin/sh\n{act}\n")
            (folder / name).chmod(0o755)
        self.env = os.environ | {"HOME": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}
        self.env |= {"PALIMPSEST_METADATA": metadata, "PALIMPSEST_ARM": metadata}

    def start(self, head: str, seconds: float) -> subprocess.Popen:
        command = [sys.executable, str(WATCHDOG), head, "--minutes", str(seconds / 60), "--every", "0.1"]
        self.processes.append(subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL))
        return self.processes[-1]

    def ended(self, within: float) -> bool:
        until = time.monotonic() + within
        while not self.asked.exists() and time.monotonic() < until:
            time.sleep(0.05)
        return self.asked.exists()


@pytest.fixture
def worker(tmp_path: Path):
    worker = Worker(tmp_path)
    yield worker
    for process in worker.processes:
        process.kill()
        process.wait()


def test_a_worker_ends_when_its_head_has_been_gone_for_a_while(worker: Worker):
    with socket.create_server(("127.0.0.1", 0)) as head:
        worker.start(f"127.0.0.1:{head.getsockname()[1]}", seconds=1)
        assert not worker.ended(within=2.5), "the head answers"
    assert worker.ended(within=60)
    assert worker.asked.read_text().split("\n")[0] == "-h now"


def test_a_new_head_is_watched_instead(worker: Worker):
    """Ray started again by a head with another address: one watchdog, which looks at the new one."""
    with socket.create_server(("127.0.0.1", 0)) as old, socket.create_server(("127.0.0.1", 0)) as new:
        worker.start(f"127.0.0.1:{old.getsockname()[1]}", seconds=1)
        while not (worker.folder / ".palimpsest/watched").exists():
            time.sleep(0.05)
        assert worker.start(f"127.0.0.1:{new.getsockname()[1]}", seconds=1).wait(30) == 0, "the first one goes on"
        old.close()
        assert not worker.ended(within=2.5)
    assert worker.ended(within=60)


def test_azure_is_told_to_stop_billing(tmp_path: Path):
    """The machine's own identity, asked of the machine's own metadata, deallocates the machine."""
    calls: list[tuple[str, str, str | None]] = []

    class Azure(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            calls.append((self.command, self.path.split("?")[0], self.headers.get("Authorization")))
            inner = self.path.startswith("/metadata")
            said = {"resourceId": "/subscriptions/0/virtualMachines/me", "access_token": "own"} if inner else {}
            self.send_response(200 if not inner or self.headers.get("Metadata") == "true" else 400)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Azure)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    worker = Worker(tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
    try:
        worker.start("127.0.0.1:9", seconds=0.3)
        assert worker.ended(within=60)
        assert calls[2] == ("POST", "/subscriptions/0/virtualMachines/me/deallocate", "Bearer own")
    finally:
        worker.processes[0].kill()
        worker.processes[0].wait()
        server.shutdown()
        server.server_close()
