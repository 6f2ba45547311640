"""A cluster's file, as `ray up` reads it: what is wrong with it is said in one sentence, before anything is asked.

    cluster/gpu.yaml -> a mapping -> no placeholder left -> Ray's own schema -> the user's key and token are there

Also, of a machine: whether it is the head of that cluster, where a command runs in place.  All files of cluster/ come
with one name, so it is the provider, the place and the head's address, too, that make it that cluster.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from studies.engine.cluster import IN_A_JOB, quiet
from studies.engine.growth import running_file
from studies.engine.study import BadInput
from trainables.config import join, near

# What stands in the files of cluster/ where a user must choose: addresses of documentation, numbers of zeros.
PLACEHOLDER = re.compile(r"\b(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+\b|\b(ami|sg|subnet|fs|vpc)-0{8}\w*"
                         r"|\b0{8}-0{4}-\S+|\bpalimpsest-0{12}\S*|-v0{8}\b|\b\d\d\.\d\d\.0{10}\b"
                         r"|\bmy-project\b|\bmyaccount\b|\bexample\.(org|com|net)\b")
ON_THE_HEAD = "~/ray_bootstrap_config.yaml"             # what `ray up` leaves there, and `ray down` does not take away
WHERE = ("region", "availability_zone", "project_id", "subscription_id", "resource_group", "location", "head_ip")
URL = ("http://", "https://")


@dataclass(frozen=True)
class ClusterFile:
    """What a cluster's file says, checked."""

    path: str                           # as it was typed
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return self.config["cluster_name"]

    @property
    def provider(self) -> dict[str, Any]:
        return self.config["provider"]

    @property
    def port(self) -> int:
        """Of Ray's dashboard on the head."""
        commands = " ".join(map(str, self.config.get("head_start_ray_commands", ())))
        typed = re.search(r"--dashboard-port[= ](\d+)", commands)
        return int(typed[1]) if typed else 8265

    @cached_property
    def token_file(self) -> Path | None:
        """The file that `ray up` copies as Ray's token."""
        return next((Path(source).expanduser() for target, source in self.config.get("file_mounts", {}).items()
                     if target.endswith("/.ray/auth_token")), None)


def read(typed: str, flag: str = "--on") -> ClusterFile:
    """The file, if Ray would take it and this machine can use it.   BadInput, in words that begin with the flag"""
    path = Path(typed).expanduser()
    if not path.is_file():
        there = [each.name for each in path.parent.glob("*.yaml")]
        raise BadInput(f"{flag} {typed}: no such file{near(path.name, there)}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise BadInput(f"{flag} {typed}{f', line {mark.line + 1}' if mark else ''}: not YAML: "
                       f"{getattr(error, 'problem', None) or error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("provider", {}), dict):
        raise BadInput(f"{flag} {typed}: not a cluster's file, which `ray up` takes")
    holes = [(where, found[0]) for where, text in leaves(config) if (found := PLACEHOLDER.search(text))]
    if holes:
        more = f", and {len(holes) - 1} more" if len(holes) > 1 else ""
        aws = " (on AWS, cluster/aws.yaml writes them)" if config.get("provider", {}).get("type") == "aws" else ""
        raise BadInput(f"{flag} {typed}: {holes[0][0]}: {holes[0][1]} stands in for yours{more}; the lines that say "
                       f"CHOOSE want your values{aws}")
    check_schema(typed, config, flag)
    key = config.get("auth", {}).get("ssh_private_key")
    if key is not None and not Path(key).expanduser().is_file():
        raise BadInput(f"{flag} {typed}: auth.ssh_private_key: there is no {key} on this machine")
    return ClusterFile(typed, config)


def check_schema(typed: str, config: dict[str, Any], flag: str = "--on") -> None:
    """BadInput: Ray would not take it."""
    import jsonschema

    known = schema()
    for required in known["required"]:
        if required not in config:
            close = near(required, config.keys() - known["properties"]).replace("did you mean", "is it")
            raise BadInput(f"{flag} {typed}: {required} is missing{close if 'is it' in close else ''}")
    for word in config.keys() - known["properties"].keys():
        raise BadInput(f"{flag} {typed}: Ray knows no {word!r}{near(str(word), known['properties'])}")
    try:
        with quiet(None):
            from ray.autoscaler._private.util import prepare_config, validate_config

            validate_config(prepare_config(config))
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path))
        what = error.message.splitlines()[0][:200]
        raise BadInput(f"{flag} {typed}: {where + ': ' if where else ''}{what}") from None
    except Exception as error:          # Ray's aborts, ValueErrors, KeyErrors of what it takes for granted
        raise BadInput(f"{flag} {typed}: Ray does not take it: {' '.join(str(error).split())[:200]}") from None


def schema() -> dict[str, Any]:
    """Ray's schema of cluster files."""
    import importlib.resources
    import json

    return json.loads(importlib.resources.files("ray.autoscaler").joinpath("ray-schema.json").read_text())


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of all that is written in a config."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, join(path, str(name)))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    elif isinstance(value, str):
        yield path, value


def elsewhere(on: str | None, stop: bool = False) -> str | None:
    """What `--on` says, or RAY_ADDRESS where that is a dashboard's URL; None where the command runs on this machine.

    BadInput: this machine is the cluster's head, and no Ray runs on it, so it would be this machine alone.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if on is None and address.startswith(URL):
        on = address
    if on is None:
        if stop:
            raise BadInput("--stop ends what runs on a cluster: --on says which")
        return None
    if os.environ.get(IN_A_JOB) is not None:
        return None
    if is_head_of(on):
        if running_file() is None and not address:
            raise BadInput(f"--on {on}: this is that cluster's head, and its Ray has ended: `ray up` starts it; "
                           "without --on (PALIMPSEST_ON), the command uses this machine alone")
        return None
    if address and address != on:
        raise BadInput(f"--on {on} and RAY_ADDRESS={address} both name a cluster; unset RAY_ADDRESS")
    return on


def is_head_of(on: str) -> bool:
    """Whether this machine is, or was, the head of the cluster of that file."""
    try:
        paths = [Path(path).expanduser() for path in (on, ON_THE_HEAD)]
        typed, here = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths)
        said, ours = typed["provider"], here["provider"]
        same = ours["type"] in (said["type"], "external")            # on the head, cluster/spot.py extends Ray's AWS
        return same and typed["cluster_name"] == here["cluster_name"] and all(
            said[name] == ours.get(name) for name in WHERE if name in said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return False
