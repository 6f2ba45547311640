"""A real MLflow server in a process group of its own, on loopback, that can be killed and started again.

    server = Server(folder); server.start(); server.kill(); server.start()       what it knows lies in folder/server.db
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path


class Server:
    def __init__(self, folder: Path):
        self.folder = folder
        self.process: subprocess.Popen | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.environment = {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                            "MLFLOW_DISABLE_TELEMETRY": "true"}

    def start(self) -> None:
        """Start it; there when this returns."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
             "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
             "--artifacts-destination", str(self.folder / "artifacts")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | self.environment)
        wait(self.answers)

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as reply:
                return reply.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9 it and its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def wait(happens: Callable[[], bool], most: float = 120.0) -> None:
    until = time.monotonic() + most
    while not happens():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.1)
