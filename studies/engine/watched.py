"""What a night watches: a small TOML file, refused with the path, the value and what would be right.

    false_alarms = 0.01                      of clean nights, a study: something is called regressed that is not
    keep = 7                                 nights whose checkpoints are kept; records are kept for ever
    notify = ["PALIMPSEST_NOTIFY"]           environment variables that hold where to say so; never the address itself

    [studies.encoder]                        a name of your own
    study = "ablation_encoder"               a file of studies/
    scale = "laptop"
    arms = ["BERT", "embeddings"]            all, where it is not said
    set = ["training.steps=600"]
    data = "reviews.csv:text"
    seeds = 4                                of each arm at the first look,
    most = 12                                and while nothing is decided
    hours = 2.0                              CPU (on GPUs: GPU) hours that a state of the code may cost
    speed = "15%"                            tokens per second that may be lost, on the same machine
    [studies.encoder.margins]                losses that do not matter, for each metric that is watched
    "test/oracle_nll" = "2%"                 of the last good night's mean, or
    "test/illegal" = 0.02                    in the metric's own unit
"""

import importlib
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studies.engine.options import Options
from studies.engine.provenance import ROOT
from studies.engine.regression import FEWEST
from studies.engine.study import BadInput, Maximise, Minimise, Study, Watch
from trainables.config import ConfigError, near

Find = Callable[[str], Study]
TOP = {"false_alarms": float, "keep": int, "notify": list, "studies": dict}
ENTRY = {"study": str, "scale": str, "arms": list, "set": list, "data": str, "seeds": int, "most": int, "hours": float,
         "speed": str, "margins": dict}
WORDS = {float: "a number", int: "a whole number", str: "a text", list: "a list of texts", dict: "a table"}


@dataclass(frozen=True)
class Margin:
    """The largest loss that does not matter: in the metric's unit, or as a share of the reference's mean."""

    size: float
    share: bool

    def of(self, mean: float) -> float:
        """In the metric's unit."""
        return self.size * abs(mean) if self.share else self.size

    def __str__(self) -> str:
        return f"{100 * self.size:g} %" if self.share else f"{self.size:g}"


@dataclass(frozen=True)
class Watched:
    """A study as a night runs it."""

    name: str
    study: Study                        # under a name of its own, so that its folder and its experiment are a night's
    scale: str
    arms: tuple[str, ...]
    assignments: tuple[str, ...]
    data: str | None
    seeds: int
    most: int
    hours: float | None
    speed: Margin | None
    margins: Mapping[str, Margin]       # by metric
    false_alarms: float

    def better(self, metric: str) -> int:
        """+1 where more of a watched metric is better, -1 where less is."""
        return next(1 if isinstance(each, Maximise) else -1 for each in self.study.report if each.metric == metric)

    @property
    def claims(self) -> int:
        """What could be called regressed on a night: each metric of each arm, and the speed of each arm and of all."""
        speeds = 0 if self.speed is None else len(self.arms) + (len(self.arms) > 1)
        return len(self.arms) * len(self.margins) + speeds

    @property
    def looks(self) -> list[int]:
        """Seeds of each look: twice as many while something is open, up to the most."""
        seeds = [self.seeds]
        while seeds[-1] < self.most:
            seeds.append(min(2 * seeds[-1], self.most))
        return seeds

    @property
    def level(self) -> float:
        """What one claim may err: the share of false alarms, divided evenly (Bonferroni)."""
        return self.false_alarms / self.claims

    def options(self, out: Path, seeds: int, **changes: Any) -> Options:
        """What would be typed for a look at this many seeds."""
        typed = Options(
            scale=self.scale, data=self.data, test_data=None, seeds=seeds, arms=",".join(self.arms),
            assignments=self.assignments, workers=None, out=out, store=None, json=None, dry_run=False, report=False,
            hours=self.hours, by_code=True)
        return replace(typed, **changes)


@dataclass(frozen=True)
class Nightly:
    """The whole file."""

    studies: tuple[Watched, ...]
    notify: tuple[str, ...]             # names of environment variables
    keep: int = 7                       # nights whose checkpoints are kept


def read_nightly(path: Path, find: Find | None = None) -> Nightly:
    """The file, checked as far as it can be without a plan.   BadInput, with the dotted path"""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path}: is not TOML: {error}") from None
    try:
        _known(said, TOP, "")
        alarms = said.get("false_alarms", 0.01)
        if not 0 < alarms < 0.5:
            raise ConfigError("false_alarms", f"a share of nights, more than 0 and less than 0.5, not {alarms}")
        if not said.get("studies"):
            raise ConfigError("studies", "name one: [studies.NAME]")
        if (keep := said.get("keep", 7)) < 1:
            raise ConfigError("keep", f"nights, at least 1, not {keep}")
        find = find or file_of_studies
        studies = tuple(_watched(name, entry, alarms, find) for name, entry in said["studies"].items())
        notify = tuple(_variable(name, f"notify[{i}]") for i, name in enumerate(said.get("notify", [])))
        return Nightly(studies, notify, keep)
    except ConfigError as error:
        raise BadInput(f"{path.name}: {error}") from None


def file_of_studies(name: str) -> Study:
    """The study of a file of studies/.   BadInput"""
    known = [path.stem for path in sorted((ROOT / "studies").glob("*.py"))
             if re.search(r"^study = ", path.read_text(encoding="utf-8"), re.M)]
    if name not in known:
        raise BadInput(f"no study {name!r}{near(name, known)}")
    return importlib.import_module(f"studies.{name}").study


def _known(said: Any, fields: Mapping[str, type], at: str) -> None:
    """Refuse unknown names and wrong kinds."""
    if not isinstance(said, dict):
        raise ConfigError(at, f"must be a table, not {said!r}")
    for name, value in said.items():
        path = f"{at}.{name}" if at else name
        if name not in fields:
            raise ConfigError(path, f"is not known{near(name, fields)}")
        kind = fields[name]
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits or isinstance(value, list) and not all(isinstance(each, str) for each in value):
            raise ConfigError(path, f"must be {WORDS[kind]}, not {value!r}")


def _watched(name: str, said: Any, alarms: float, find: Find) -> Watched:
    at = f"studies.{name}"
    _known(said, ENTRY, at)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ConfigError(at, "a name is a folder's name, in small letters, digits, - and _")
    for needed in ("study", "scale", "margins"):
        if needed not in said:
            raise ConfigError(f"{at}.{needed}", "must be said")
    try:
        found = find(said["study"])
    except BadInput as error:
        raise ConfigError(f"{at}.study", str(error)) from None
    if found.tune is not None:
        raise ConfigError(f"{at}.study", f"{found.name} searches inside its arms; a night compares fixed arms")
    if said["scale"] not in found.scales:
        raise ConfigError(f"{at}.scale", f"no scale {said['scale']!r}{near(said['scale'], found.scales)}")
    arms = tuple(said.get("arms", found.arms))
    for i, arm in enumerate(arms):
        if arm not in found.arms:
            raise ConfigError(f"{at}.arms[{i}]", f"no arm {arm!r}{near(arm, found.arms)}")
    if not arms or len(set(arms)) < len(arms):
        raise ConfigError(f"{at}.arms", f"name arms, each once, not {list(arms)}")
    seeds = said.get("seeds", max(found.seeds, FEWEST))
    most, hours = said.get("most", max(2 * seeds, 8)), said.get("hours")
    if seeds < FEWEST:
        raise ConfigError(f"{at}.seeds", f"at least {FEWEST}, not {seeds}")
    if most < seeds:
        raise ConfigError(f"{at}.most", f"at least seeds = {seeds}, not {most}")
    if hours is not None and not 0 < hours < math.inf:
        raise ConfigError(f"{at}.hours", f"must be a positive number, not {hours}")
    own = replace(found, name=f"nightly-{name}", **({"arms": {}} if found.factors else {}))
    watched = Watched(
        name=name, study=own, scale=said["scale"], arms=tuple(arm for arm in found.arms if arm in arms), seeds=seeds,
        most=most, hours=hours, assignments=tuple(said.get("set", ())), data=said.get("data"),
        speed=_margin(said["speed"], f"{at}.speed") if "speed" in said else None, false_alarms=alarms,
        margins={metric: _margin_of(found, metric, size, f"{at}.margins") for metric, size in said["margins"].items()})
    if not watched.margins:
        raise ConfigError(f"{at}.margins", "watch one metric or more")
    if watched.speed is not None and not watched.speed.share:
        raise ConfigError(f"{at}.speed", f'a share, such as "15%", not {said["speed"]!r}')
    return watched


def _margin_of(study: Study, metric: str, size: Any, at: str) -> Margin:
    known = {each.metric: each for each in study.report}
    if metric not in known:
        raise ConfigError(f"{at}.{metric}", f"{study.name} reports no such metric{near(metric, known)}")
    if isinstance(known[metric], Watch):
        having = [name for name, each in known.items() if isinstance(each, (Minimise, Maximise))]
        raise ConfigError(f"{at}.{metric}", f"has no better and no worse; these have: {', '.join(having)}")
    return _margin(size, f"{at}.{metric}")


def _margin(said: Any, at: str) -> Margin:
    text, share = str(said).strip(), str(said).strip().endswith("%")
    try:
        size = float(text.removesuffix("%")) / (100 if share else 1)
    except ValueError:
        size = math.nan
    if isinstance(said, bool) or not 0 < size < math.inf or isinstance(said, str) and not share:
        raise ConfigError(at, f'a positive number in the metric\'s unit, or a share such as "2%", not {said!r}')
    return Margin(size, share)


def _variable(name: str, at: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigError(at, "the name of an environment variable that holds the address; an address does not belong "
                              "into a file")
    return name
