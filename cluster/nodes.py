"""Are all machines there, and if not, why not?

    ray exec cluster/onprem.yaml 'python ~/palimpsest/cluster/nodes.py'          on the head, where the answer is known

    own machines   every host of the file: has it joined, does it answer SSH, and what Ray's monitor said of it last
    a cloud        what has joined, what is launched or set up and since when, and why the latest launches failed

One line each; exit code 1 where something is missing or has failed.  `ray up` and `ray status` call neither an error: a
host that cannot be reached waits for ever, a machine whose setup fails is tried again, and billed.
"""

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import ray
import yaml

CONFIG = Path("~/ray_bootstrap_config.yaml").expanduser()       # what `ray up` leaves on the head
LOGS = Path("/tmp/ray/session_latest/logs")


def main() -> int:
    if not CONFIG.exists():
        sys.exit(f"nodes.py: there is no {CONFIG}: this is not the head of a cluster that `ray up` made")
    config = yaml.safe_load(CONFIG.read_text())
    try:
        ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    except ConnectionError:
        sys.exit("nodes.py: Ray does not run here; `ray up` starts it again")
    joined = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    print(f"joined   {len(joined)}: {' '.join(sorted(joined))}")
    missing = list(of_hosts(config["provider"], joined) if config["provider"]["type"] == "local" else of_cloud())
    for line in missing:
        print(line)
    return 1 if missing else 0


def of_hosts(provider: dict, joined: list[str]) -> Iterator[str]:
    """Hosts of the file that have not joined, each with the reason that can be seen from here."""
    for host in [provider["head_ip"], *provider["worker_ips"]]:
        try:
            address = socket.gethostbyname(host)
        except OSError:
            yield f"missing  {host}: the head knows no machine of that name"
            continue
        if address not in joined:
            why = "Ray does not run there" if reached(address) else "it does not answer on port 22"
            yield f"missing  {host}: {why}{last_word(host)}"


def reached(address: str) -> bool:
    try:
        socket.create_connection((address, 22), timeout=10).close()
        return True
    except OSError:
        return False


def last_word(host: str) -> str:
    """The monitor's latest line on a host, without its colours."""
    lines = [line for path in sorted(LOGS.glob("monitor.*")) for line in path.read_text(errors="replace").splitlines()
             if host in line and re.search("(?i)error|fail|timed out|waiting", line)]
    return "" if not lines else ".  The monitor says: " + re.sub(r"\x1b\[[\d;]*m", "", lines[-1]).strip()[-300:]


def of_cloud() -> Iterator[str]:
    """What the autoscaler has asked for and does not have."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    now = get_cluster_status(ray.get_runtime_context().gcs_address)
    for node in now.pending_nodes:
        yield f"coming   {node.ray_node_type_name} {node.instance_id} {node.ip_address or ''}: {node.details or ''}"
    for launch in now.pending_launches:
        yield f"asked    {launch.count} x {launch.ray_node_type_name}: {launch.details or 'no answer of the cloud yet'}"
    for launch in now.failed_launches:
        yield f"failed   {launch.count} x {launch.ray_node_type_name}: {launch.details or 'the cloud does not say why'}"
    for node in now.failed_nodes:
        yield f"failed   {node.ray_node_type_name} {node.instance_id}: {node.failure_detail or node.details or ''}"


if __name__ == "__main__":
    sys.exit(main())
