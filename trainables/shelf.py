"""A shelf: the finished stages that a generator stands on, found by their kind and never made.

    generator.json beside Trained/, EncodedTexts/, ...      a released generator (release.py)
    Sampled-<key>/stage.json in a store                     how a cell was sampled, and from which checkpoint
    Trained-<key>/stage.json in a store                     a checkpoint, where the store knows one way of sampling it

In a store a stage is found by its key, which knows the version of all it stands on, its corpus included.  A released
generator has no corpus and outlives its versions, so there a stage is found by its class; only the versions of those
stages that are asked for must be today's.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainables.config import ConfigError, from_dict
from trainables.stages import Context, Make, Stage, Store, upstream
from trainables.trial import Sampled

ABOUT = "generator.json"


class Shelf:
    """Finished stages by their kind: it stands where a store does."""

    def __init__(self, stages: Sequence[Stage], find: Callable[[str], Path | None], versions: dict[str, int]):
        """find: a kind's folder; versions: those under which they were made, where that may be another time."""
        self.kinds, self.find, self.versions = kinds(stages), find, versions
        self.asked: dict[str, Stage] = {}

    def get(self, stage: Stage, context: Context, make: Make | None = None) -> Path:
        """The stage's folder.   ConfigError: it is not here, or was made by another version"""
        kind = self.kinds.get(stage, type(stage).__name__)
        folder = self.find(kind)
        if folder is None:
            raise ConfigError("--model", f"its {kind} is not there, and a generator makes nothing")
        if self.versions.get(kind, stage.version) != stage.version:
            raise ConfigError("--model", f"its {kind} is of version {self.versions[kind]}, and this code is of version "
                                         f"{stage.version}: generate with the code of its time, {ABOUT} says which")
        self.asked[kind] = stage
        return folder


def kinds(stages: Sequence[Stage]) -> dict[Stage, str]:
    """A name for each stage: its class, and a number behind it where there are several."""
    found: dict[Stage, str] = {}
    for stage in stages:
        name = type(stage).__name__
        same = sum(type(other).__name__ == name for other in found)
        found[stage] = f"{name}-{same + 1}" if same else name
    return found


def released(sampled: Sampled) -> Sampled:
    """The samples' config as a generator has it; its checkpoint stands on what the samples stand on, so it follows."""
    checkpoint = replace(sampled.checkpoint, system=sampled.checkpoint.system.released())
    return replace(sampled, system=sampled.system.released(), checkpoint=checkpoint)


def in_store(sampled: Sampled, store: Store) -> Shelf:
    """What a store has of everything that the samples stand on; what lies elsewhere is fetched when it is asked for."""
    made = {kind: stage for stage, kind in kinds(upstream(*sampled.needs())).items()}

    def find(kind: str) -> Path | None:
        return store.get(made[kind], Context(store)) if kind in made and store.has(made[kind]) else None

    return Shelf(upstream(*released(sampled).needs()), find, {})


# ---------------------------------------------------------------- which folder


def opened(folder: Path) -> tuple[Sampled, Shelf]:
    """The samples' config, and the stages they stand on.   ConfigError: the folder is none that a generator knows"""
    if not folder.is_dir():
        raise ConfigError("--model", f"there is no folder {folder}")
    if (folder / ABOUT).is_file():
        return _released(folder)
    said = read_json(folder / "stage.json") if (folder / "stage.json").is_file() else {}
    if said.get("class") == "Sampled":
        sampled = from_dict(Sampled, said)
    elif said.get("class") == "Trained":
        sampled = _sampled_from(folder, said)
    else:
        raise ConfigError("--model", f"{folder} is neither a released generator, which has a {ABOUT}, nor the "
                                     "Trained-... or Sampled-... folder of a store")
    return released(sampled), in_store(sampled, Store(folder.absolute().parent))


def _released(folder: Path) -> tuple[Sampled, Shelf]:
    said = read_json(folder / ABOUT)
    try:
        sampled = from_dict(Sampled, said["samples"])
        versions = {str(kind): int(about["version"]) for kind, about in said["stages"].items()}
    except (KeyError, TypeError, AttributeError):
        raise ConfigError("--model", f"{folder / ABOUT} does not describe a generator") from None
    return sampled, Shelf(upstream(*sampled.needs()), lambda kind: folder / kind if kind in versions else None,
                          versions)


def _sampled_from(checkpoint: Path, wanted: dict[str, Any]) -> Sampled:
    """How the checkpoint was sampled; its own folder does not say with which steps, or by which decoder."""
    ways = {}
    for path in sorted(checkpoint.absolute().parent.glob("Sampled-*/stage.json")):
        said = read_json(path)
        if said.get("checkpoint") == wanted and said.get("split", "test") == "test":
            ways[path.parent.name] = said
    if len(ways) != 1:
        known = f"it was sampled in {len(ways)} ways: name one of {', '.join(ways)}" if ways else \
            "nothing in this store was sampled from it"
        raise ConfigError("--model", f"{checkpoint} does not say how it writes, and {known}")
    return from_dict(Sampled, next(iter(ways.values())))


def read_json(path: Path) -> dict[str, Any]:
    """ConfigError: no JSON object"""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("--model", f"{path} is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise ConfigError("--model", f"{path} is not a JSON object")
    return said
