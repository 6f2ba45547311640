"""Before `ray up`: what is wrong with a cluster's file, while nothing is billed yet.

    python -m studies.engine.doctor --cluster cluster/gpu.yaml        exit code 2 and one sentence, or 0

    placeholders, YAML, Ray's schema, the SSH key     as `--on` reads them (cluster_file.py)
    SSH                                               admitted from a range of the user's, by what each cloud goes by
    file_mounts                                       all there, secrets too: what Ray copies once a head is up
    the cloud's client                                installed, in a release that Ray knows

Ray itself finds these one by one, the later ones on a machine that stays.  No cloud is asked anything.
"""

import importlib.util
import ipaddress
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from studies.engine.cluster_file import ClusterFile, read
from studies.engine.study import BadInput

FLAG = "--cluster"
CLIENTS = {"aws": "boto3", "gcp": "googleapiclient", "azure": "azure.mgmt.compute"}        # modules
WIDEST = 8                              # bits of a range that SSH may come from, as in cluster/node.sh
# What a cloud's machines must name, since what Ray makes where it is left out admits SSH from everywhere.
CLOSED = {"aws": ("SecurityGroupIds", "NetworkInterfaces"), "gcp": ("networkInterfaces",)}


def ready(typed: str) -> ClusterFile:
    """The file, if nothing that can be seen from here stands in the way of `ray up`.   BadInput"""
    file = read(typed, FLAG)
    for problem in (*of_ssh(file.provider, file.config), *of_mounts(file.config), *of_client(file.provider["type"])):
        raise BadInput(f"{FLAG} {typed}: {problem}")
    return file


def of_ssh(provider: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    """Machines that would admit SSH from everywhere, or from nowhere."""
    kind, types = provider["type"], config.get("available_node_types", {})
    for name, each in types.items():
        needed = CLOSED.get(kind)
        if needed and not any(each.get("node_config", {}).get(word) for word in needed):
            yield (f"available_node_types.{name}.node_config: {needed[0]} is missing, and without it Ray's own network "
                   "admits SSH from everywhere")
    said = re.search(r"\bSSH_FROM=(\S*)", " ".join(map(str, config.get("setup_commands", ()))))
    if kind == "azure" and said is None:
        yield "setup_commands: SSH_FROM is missing, and Ray's own rule on Azure admits SSH from everywhere"
    if said is not None:
        typed = said[1].strip("'\"")
        try:
            network = ipaddress.ip_network(typed)
        except ValueError:
            yield f"setup_commands: SSH_FROM={typed}: an address or a range is wanted, such as 198.51.100.0/24"
            return
        if network.prefixlen < WIDEST:
            yield f"setup_commands: SSH_FROM={typed} is half of the world; name your own address or range"


def of_mounts(config: dict[str, Any]) -> Iterator[str]:
    """What `ray up` would copy, and is not here."""
    for target, source in config.get("file_mounts", {}).items():
        path = Path(str(source)).expanduser()
        if not path.exists():
            secret = target.endswith(("/.ray/auth_token", "/.palimpsest/mlflow_password"))
            why = ("`bash cluster/secrets.sh` makes it" if secret else
                   "make it, or leave it out" if path.is_absolute() else "`ray up` is typed in the repository's root")
            yield f"file_mounts: there is no {source} here: {why}"


def of_client(kind: str) -> Iterator[str]:
    """What speaks to the cloud, where it is not installed, or in a release that breaks Ray."""
    if kind not in CLIENTS:
        return
    try:
        found = importlib.util.find_spec(CLIENTS[kind])
    except ModuleNotFoundError:          # a package above it
        found = None
    if found is None:
        yield f"provider.type: {kind} wants {CLIENTS[kind]}, which is not installed: cluster/README.md has the line"
        return
    for package in pinned(kind):
        wanted = f"provider.type: {kind} wants {package.name}{package.specifier}"
        try:
            there = version(package.name)
        except PackageNotFoundError:
            yield f"{wanted}, which is not installed: cluster/README.md has the line"
            continue
        if not package.specifier.contains(there, prereleases=True):
            yield f"{wanted}, and {there} is installed: Ray knows no other; cluster/README.md has the line"


def pinned(extra: str) -> list[Requirement]:
    """The packages of one of Palimpsest's own extras; none where it is not installed."""
    try:
        said = [Requirement(each) for each in requires("palimpsest") or ()]
    except PackageNotFoundError:
        return []
    return [each for each in said if each.marker is not None and each.marker.evaluate({"extra": extra})]
