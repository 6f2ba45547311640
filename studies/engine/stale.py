"""What is new about a cell that is to run, what has become of an older one in its place, and what it can reuse.

    new      its arm and seed never ran
    stale    they did, under another key: some config path says something else now, or some stage has another version
             (then the older one is superseded, once its successor is done: it answers the same question by other code)
    reused   what the store has of it: a metric that is added scores samples that are there, and trains nothing
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from studies.engine.ledger import Record
from trainables.config import to_dict
from trainables.stages import Stage, Store


@dataclass(frozen=True)
class Stale:
    """The record that a cell will replace, and why."""

    key: str
    why: str


def older(cells: Iterable[Any], past: Iterable[Record], scale: str, current: set[str], store: Store
          ) -> dict[str, Stale]:
    """Cell key -> the latest record of the same arm and seed under another key; `current`: keys that the plan has."""
    found: dict[tuple, Record] = {}
    for record in past:
        if record["key"] not in current and record["scale"] == scale and record["status"] != "failed":
            at = record["arm"], record["seed"], record.get("split", "test")
            if at not in found or found[at]["ended"] < record["ended"]:
                found[at] = record
    return {cell.key: Stale(found[at]["key"], why(cell, found[at], store)) for cell in cells
            if (at := (cell.arm, cell.seed, cell.split)) in found}


def superseded(cells: Iterable[Any], past: Iterable[Record], scale: str) -> dict[str, str]:
    """Old key -> new: records whose whole config is that of a cell that is done, at another version of some stage or
    of the code.  Another setting, or other data, supersede nothing: what was found with the old ones stays valid."""
    now = {(cell.arm, cell.seed, cell.split): cell for cell in cells}
    current, found = {cell.key for cell in now.values()}, {}
    records = [record for record in past if record["scale"] == scale]
    done = {record["key"] for record in records if record["status"] == "done"}
    for record in records:
        cell = now.get((record["arm"], record["seed"], record.get("split", "test")))
        if (cell is not None and record["key"] not in current and cell.key in done
                and record.get("superseded_by") != cell.key
                and record.get("trial") == json.loads(json.dumps(to_dict(cell.trial)))):
            found[record["key"]] = cell.key
    return found


def why(cell: Any, record: Record, store: Store) -> str:
    """What differs between a cell and an older record."""
    paths = list(changed(record.get("trial", {}), json.loads(json.dumps(to_dict(cell.trial)))))
    if paths:
        return "; ".join(f"{path} was {_short(old)}, is {_short(new)}" for path, old, new in paths[:4]) + (
            f"; and {len(paths) - 4} more" if len(paths) > 4 else "")
    known = set(record.get("stages", ()))
    for stage in cell.stages():          # in the order in which they are made: the first is the cause
        if store.key(stage) not in known:
            return f"stage {type(stage).__name__} has another version{' or other code' if store.code else ''}"
    return "the key of a cell is made up in another way"


def changed(old: Any, new: Any, path: str = "") -> Iterable[tuple[str, Any, Any]]:
    """(path, before, now) of every leaf that differs; where a component's class differs, only the class."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if old.get("class") != new.get("class"):
            yield path, old.get("class"), new.get("class")
            return
        for name in dict.fromkeys([*old, *new]):
            yield from changed(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif isinstance(old, list) and isinstance(new, list) and _named(old) and _named(new):
        before, now = {entry["class"]: entry for entry in old}, {entry["class"]: entry for entry in new}
        for name in dict.fromkeys([*before, *now]):          # components in a row: metrics, mostly
            at = f"{path}.{name}"
            if name not in before or name not in now:
                yield at, "absent" if name not in before else "there", "there" if name in now else "absent"
            else:
                yield from changed(before[name], now[name], at)
    elif old != new:
        yield path, old, new


def _named(entries: list) -> bool:
    """Whether these are components, each of a class of its own."""
    names = [entry.get("class") for entry in entries if isinstance(entry, Mapping)]
    return len(names) == len(entries) == len(set(names)) and None not in names


def _short(value: Any) -> str:
    said = value["class"] if isinstance(value, Mapping) and "class" in value else str(value)
    return said if len(said) <= 60 else said[:57] + "..."


def reused(cell: Any, has: Callable[[Stage], bool]) -> str:
    """The latest stage of a cell that is there, in words; "" where it must train."""
    if has(cell.scored()):
        return "is scored already"
    if has(cell.samples()):
        return "has its samples: it is only scored"
    trained = [stage for stage in cell.stages() if getattr(stage, "together", False)]
    return "is trained: it is sampled and scored" if trained and all(map(has, trained)) else ""


def lines(cells: Iterable[Any], stale: Mapping[str, Stale], parts: Mapping[str, str]) -> list[str]:
    """The cells to run, as markdown: how many are new and stale, why, and what they reuse."""
    cells = list(cells)
    if not cells:
        return []
    replaced = [cell for cell in cells if cell.key in stale]
    said = [f"- to run: {len(cells) - len(replaced)} new, {len(replaced)} stale"]
    said += [f"- stale: {_names(some)}: {reason}" for reason, some in
             _grouped((stale[cell.key].why, cell) for cell in replaced)]
    said += [f"- reused: {_names(some)} {part}" for part, some in
             _grouped((parts[cell.key], cell) for cell in cells if parts.get(cell.key))]
    return said


def _grouped(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, list]]:
    found: dict[str, list] = {}
    for reason, cell in pairs:
        found.setdefault(reason, []).append(cell)
    return list(found.items())


def _names(cells: list) -> str:
    return ", ".join(cell.name for cell in cells) if len(cells) <= 4 else f"{len(cells)} cells"
