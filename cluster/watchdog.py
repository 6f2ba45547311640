"""A worker's watchdog: when the head has been gone for a while, this machine ends, since nobody else would end it.

    worker_start_ray_commands:   setsid -f python ~/palimpsest/cluster/watchdog.py $RAY_HEAD_IP:6379
         |  every 20 s: does the head's port answer?            a new head says its own address
         v  not once in MINUTES
    AWS      shutdown; InstanceInitiatedShutdownBehavior makes that the end of the instance
    Google   shutdown; a stopped machine costs its disk
    Azure    a machine that has only shut down is billed on: it deallocates itself, by the identity that Ray gave it

The autoscaler ends idle workers, but it runs on the head, so a head that dies leaves GPUs that are billed for nothing.
Standard library alone, since this must outlive everything else.
"""

import argparse
import fcntl
import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

HOME = Path.home() / ".palimpsest"
METADATA = os.environ.get("PALIMPSEST_METADATA", "http://169.254.169.254")
ARM = os.environ.get("PALIMPSEST_ARM", "https://management.azure.com")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", help="its address and Ray's port there, such as 10.0.0.5:6379")
    parser.add_argument("--minutes", type=float, default=15, help="without an answer, after which this machine ends")
    parser.add_argument("--every", type=float, default=20, help="seconds between two looks")
    given = parser.parse_args()
    HOME.mkdir(exist_ok=True)
    (HOME / "watched").write_text(given.head)                # whoever watches already reads it at his next look
    with open(HOME / "watchdog.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        watch(given.minutes * 60, given.every)


def watch(patience: float, every: float) -> None:
    """Look at the head until it has not answered for `patience` seconds; then end this machine, until that succeeds."""
    seen = time.monotonic()
    while True:
        if answers((HOME / "watched").read_text()):
            seen = time.monotonic()
        elif time.monotonic() - seen > patience:
            print(f"{time.ctime()}: no head for {patience:.0f} s: this machine ends", flush=True)
            end()
        time.sleep(every)


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
        return True
    except OSError:
        return False


def end() -> None:
    """Have the cloud take this machine away; whatever fails is said, and tried again."""
    try:
        deallocate()
    except (OSError, ValueError, KeyError) as error:         # not Azure, mostly
        print(f"not deallocated: {error}", flush=True)
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    done = subprocess.run([*root, "shutdown", "-h", "now"], capture_output=True, text=True)
    print(f"shutdown: {done.returncode} {done.stderr.strip()}", flush=True)


def deallocate() -> None:
    """Azure's request to stop billing the machine on which this runs.   OSError, ValueError: this is no Azure"""
    where = ask(f"{METADATA}/metadata/instance/compute?api-version=2021-02-01", {"Metadata": "true"})["resourceId"]
    token = ask(f"{METADATA}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/",
                {"Metadata": "true"})["access_token"]
    ask(f"{ARM}{where}/deallocate?api-version=2024-07-01", {"Authorization": f"Bearer {token}"}, b"")


def ask(url: str, headers: dict[str, str], data: bytes | None = None) -> dict:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))      # no proxy sees the token
    with opener.open(urllib.request.Request(url, data, headers), timeout=10) as answer:
        return json.loads(answer.read() or b"{}")


if __name__ == "__main__":
    main()
