"""What an autoscaler may make of a cluster that is small now, or has no worker at all.

    Ray knows               an autoscaler that tells Ray what it may do (none that Ray itself starts, in 2.60)
    the autoscaler's file   on the head, `ray up` starts one with --autoscaling-config=FILE; what it may do, FILE says

Without either, a cluster counts as it is.
"""

from pathlib import Path
from typing import Any

import yaml

Nodes = tuple[tuple[float, float], ...]          # (CPUs, GPUs) of each node
FLAG = "--autoscaling-config="
ENOUGH = 10_000                         # nodes of a type: where nobody set a limit


def largest() -> tuple[Nodes, int]:
    """The nodes that there may be, and how many of them at once; ((), 0): it does not grow."""
    told = as_ray_knows()
    return (told, len(told)) if told else as_the_file_says(running_file())


def as_ray_knows() -> Nodes:
    """What an autoscaler told Ray."""
    try:                                # there is no public way; without this one, the file remains
        from ray._private.state import state

        groups = state.get_cluster_config().node_group_configs        # type: ignore[union-attr]
        return tuple((float(group.resources.get("CPU", 0)), float(group.resources.get("GPU", 0)))
                     for group in groups for _ in range(min(max(group.max_count, 0), ENOUGH)))
    except Exception:
        return ()


def running_file(processes: Path = Path("/proc")) -> Path | None:
    """The file of the autoscaler that runs on this machine; None where none does: a file alone may be of long ago."""
    for path in processes.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:                 # it has just ended, or is somebody else's
            continue
        for word in words[1:]:
            if word.startswith(FLAG) and any(each.endswith("monitor.py") for each in words):
                return Path(word.removeprefix(FLAG)).expanduser()
    return None


def as_the_file_says(path: Path | None) -> tuple[Nodes, int]:
    """Of the file that `ray up` leaves on a head.  Types whose resources it does not say (own machines) are there, or
    are not: they do not count."""
    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, yaml.YAMLError):
        return (), 0
    workers, nodes = int(config.get("max_workers", 0)), []
    for name, kind in config.get("available_node_types", {}).items():
        has = kind.get("resources") or {}
        most = 1 if name == config.get("head_node_type") else min(int(kind.get("max_workers", workers)), workers)
        if has:
            nodes += [(float(has.get("CPU", 0)), float(has.get("GPU", 0)))] * most
    return tuple(nodes), workers + 1    # and the head
