"""Whether a cluster's head would take a command: it answers, it takes our token, its versions are ours, it has room.

Each is one question to the dashboard, asked before anything is sent; each "no" is one sentence.
"""

import platform
from importlib.metadata import version
from typing import Any

import requests

from studies.engine.study import BadInput
from studies.engine.tunnel import ANSWER, Way

ROOM = 0.5                              # GiB that a job, its tree and its log must find on the head


def knock(way: Way) -> None:
    """BadInput: it would not."""
    about = ask(way, "/api/v0/cluster_metadata")["data"]
    check_versions(way, {"Ray": about["rayVersion"], "Python": about["pythonVersion"]},
                   {"Ray": version("ray"), "Python": platform.python_version()})
    check_room(way, ask(way, "/nodes?view=summary")["data"]["summary"])


def ask(way: Way, what: str) -> Any:
    """The dashboard's answer.   BadInput: it has none, or none for us"""
    try:
        answer = requests.get(way.url + what, headers=way.headers, timeout=ANSWER, allow_redirects=False)
    except requests.Timeout:
        raise BadInput(f"{way.name} does not answer within {ANSWER} s") from None
    except requests.RequestException:
        raise BadInput(way.silence) from None
    if answer.status_code in (401, 403):
        what = "wants a token, and none is given" if not way.token else "does not take the token that it was given"
        raise BadInput(f"{way.name} {what}: the cluster was started with another.  `ray up` copies "
                       "~/.ray/auth_token to it, which ends what runs there; RAY_AUTH_TOKEN_PATH names another file")
    try:
        answer.raise_for_status()
        return answer.json()
    except (requests.RequestException, ValueError):
        raise BadInput(f"no Ray dashboard answers at {way.name}: HTTP {answer.status_code} for {what}") from None


def check_versions(way: Way, there: dict[str, str], here: dict[str, str]) -> None:
    """BadInput: another Ray, or another Python but for its last number."""
    same = {"Ray": lambda number: number, "Python": lambda number: number.rpartition(".")[0]}
    other = [f"{name} {there[name]} there, {here[name]} here" for name in here
             if same[name](there[name]) != same[name](here[name])]
    if other:
        raise BadInput(f"{way.name} runs other versions: {'; '.join(other)}.  Both sides install constraints.txt: "
                       "`make study` does it here, `ray up` there")


def check_room(way: Way, nodes: list[dict[str, Any]]) -> None:
    """BadInput: a disk of the head is full.  A head that has not told yet is taken at its word later."""
    for node in nodes:
        if node.get("raylet", {}).get("isHeadNode"):
            for folder, disk in (node.get("disk") or {}).items():
                if disk["total"] > 1 and disk["free"] < ROOM * 2**30:           # 1: a pod that does not say
                    raise BadInput(f"the head of {way.name} has {disk['free'] / 2**20:.0f} MiB free in {folder}, and a "
                                   f"job wants {ROOM:g} GiB: make room there (old /tmp/ray/session_* folders)")
