"""Saying what a night has found: markdown for people, JSON for programs, and a message to where the team reads.

    nights -> markdown   night.md, a run's artifact, a CI summary
           -> message    the same in a few lines -> apprise -> Slack and its like, any webhook, e-mail

Where to: an environment variable that the file names holds an address, `https://...` of a webhook that takes Slack's
{"text": ...} (Slack, Mattermost, Rocket.Chat, Discord's /slack), or any that apprise knows (mailtos://user:password@host
?to=team@host, matrixs://..., ...).  An address is a secret: it is never printed, and what fails is known by its
variable's name.

    echo TEXT | python -m studies.engine.notices TITLE    to all that studies/nightly.toml names, and PALIMPSEST_NOTIFY:
                                                          how cluster/nightly/notify.sh tells that a night failed
"""

import contextlib
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from studies.engine.ledger import Record
from studies.engine.nights import spell
from studies.engine.provenance import ROOT
from studies.engine.regression import SPEED, Finding
from studies.engine.study import BadInput

MARKS = {"pass": "✅", "regressed": "❌", "inconclusive": "❔", "failed": "💥"}


def headline(nights: Sequence[Record]) -> str:
    """One line: what became of how many studies."""
    said = ", ".join(f"{sum(night['verdict'] == word for night in nights)} {word}"
                     for word in ("regressed", "failed", "inconclusive", "pass")
                     if any(night["verdict"] == word for night in nights))
    commit = nights[0]["commit"][:12] + (" with changes" if nights[0]["dirty"] else "") if nights else ""
    return f"Nightly {nights[0]['night'] if nights else ''}: {said or 'nothing was run'} at {commit}"


def markdown(nights: Sequence[Record]) -> str:
    """The whole night."""
    lines = [f"# {headline(nights)}", ""]
    for night in nights:
        lines += _section(night)
    return "\n".join(lines) + "\n"


def _section(night: Record) -> list[str]:
    against = night["compared_with"]
    lines = [f"## {MARKS[night['verdict']]} {night['study']}: {night['verdict']}", "", f"{night['why']}.", ""]
    if against:
        lines += [f"Compared with night {against['number']}, {against['night']}, commit {against['commit'][:12]}.", ""]
    if night["findings"]:
        lines += ["| arm | metric | good night | tonight | loss | 95 % interval | margin | pairs | |",
                  "|---|---|---|---|---|---|---|---|---|", *map(_row, night["findings"]), ""]
    if night["suspects"]:
        lines += ["Suspected:", "", *(f"- {suspect}" for suspect in night["suspects"]), ""]
    if night["verdict"] != "pass" and night["changed"]:
        lines += ["Changed since the good night, of what these cells use:", "",
                  *(f"- {name}" for name in night["changed"][:20])]
        lines += [f"- and {len(night['changed']) - 20} more", ""] if len(night["changed"]) > 20 else [""]
    return lines


def _row(found: dict[str, Any]) -> str:
    percent = found["metric"] == SPEED

    def size(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:+.1f} %" if percent else f"{value:+.3g}"

    bounds = "–" if found["low"] is None else f"{size(found['low'])} to {size(found['high'])}"
    cells = [found["arm"], found["metric"], *("–" if found[name] is None else f"{found[name]:.4g}"
                                              for name in ("before", "now")),
             size(found["loss"]), bounds, size(found["margin"]).lstrip("+"), str(found["pairs"]), found["kind"]]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def message(nights: Sequence[Record]) -> str:
    """A few lines for a channel: what is wrong, and whom to ask."""
    lines = [headline(nights)]
    for night in nights:
        lines.append(f"{MARKS[night['verdict']]} {night['study']}: {night['verdict']}")
        if night["verdict"] != "pass":
            worse = [spell(Finding(**found)) for found in night["findings"] if found["kind"] == "regressed"]
            lines += [f"    {line}" for line in (worse or [night["why"]])]
            lines += [f"    suspected: {suspect}" for suspect in night["suspects"][:5]]
    return "\n".join(lines)


def worth_saying(nights: Iterable[Record], before: dict[str, str]) -> bool:
    """Trouble, and its end; a channel that says "pass" every night is not read.   before: study -> last verdict"""
    return any(night["verdict"] != "pass" or before.get(night["study"], "pass") != "pass" for night in nights)


# ---------------------------------------------------------------- sending


def addresses(variables: Iterable[str]) -> dict[str, str]:
    """Variable -> address, checked.   BadInput, which names the variable and never its value"""
    found: dict[str, str] = {}
    for name in variables:
        if not (value := os.environ.get(name, "").strip()):
            raise BadInput(f"notify: the environment variable {name} is not set; it holds the address")
        found[name] = slack_like(value)
        if not _apprise().Apprise().add(found[name]):
            raise BadInput(f"notify: what {name} holds is no address that apprise knows: https://... of a webhook, "
                           "mailtos://user:password@host?to=someone@host, ...")
    return found


@contextlib.contextmanager
def withheld(variables: Iterable[str]) -> Iterator[None]:
    """Take the addresses out of the environment, which every process of a study inherits, for a while."""
    kept = {name: os.environ.pop(name) for name in variables}
    try:
        yield
    finally:
        os.environ.update(kept)


def slack_like(address: str) -> str:
    """A webhook's address as apprise spells it: JSON with Slack's one field, "text"."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return address
    fields = {":message": "text", ":title": "", ":version": "", ":type": "", ":attachments": ""}
    own = {f"-{name}": value for name, value in parse_qsl(parts.query)}        # a parameter that goes with the request
    return urlunsplit((parts.scheme.replace("http", "json"), parts.netloc, parts.path, urlencode(own | fields), ""))


def send(nights: Sequence[Record], to: dict[str, str]) -> list[str]:
    """Send the message everywhere; the variables whose address did not take it."""
    return deliver(message(nights), headline(nights), to)


def deliver(text: str, title: str, to: dict[str, str]) -> list[str]:
    """Send a text everywhere, a webhook's without the title; the variables whose address did not take it."""
    apprise, failed = _apprise(), []
    for name, address in to.items():
        target = apprise.Apprise()
        target.add(address)
        if not target.notify(body=text, title="" if address.startswith("json") else title):
            failed.append(name)
    return failed


def set_here(file: Path) -> list[str]:
    """The variables that the file names, as far as it can be read, and PALIMPSEST_NOTIFY, of those that are set."""
    try:
        named = tomllib.loads(file.read_text(encoding="utf-8")).get("notify")
    except (OSError, ValueError):               # which may be why the night failed
        named = None
    known = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return [name for name in dict.fromkeys([*known, "PALIMPSEST_NOTIFY"]) if os.environ.get(name, "").strip()]


def main(title: str, text: str, file: Path = ROOT / "studies" / "nightly.toml") -> int:
    """Tell everybody; 1 where nobody took it."""
    told = False
    for name in set_here(file):
        try:
            problem = f"not told: {name}" if deliver(text, title, addresses([name])) else ""
        except BadInput as error:
            problem = str(error)
        told = told or not problem
        if problem:
            print(problem, file=sys.stderr)
    return 0 if told else 1


def _apprise() -> Any:
    import logging

    try:
        import apprise
    except ImportError:
        raise BadInput("notify: apprise is not installed; pip install --constraint constraints.txt "
                       "--editable '.[nightly]'") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)         # it logs addresses, some of them whole
    return apprise


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:]) or "Nightly", sys.stdin.read().strip()))
