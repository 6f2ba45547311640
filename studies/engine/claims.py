"""Claims: what papers say, in a form that cells can answer.   A YAML file, checked against the studies when it is read.

    claims.yaml --read_claims--> Claim ... --by study and scale--> asked arms --plan, ledger--> answers.py

    contextual-beats-embeddings:
      says: Contextual encodings are better to diffuse than plain embeddings
      paper: TEncDM, arXiv 2402.19097, Table 1
      quoted: MAUVE .762 against .600 on ROCStories
      study: ablation_encoder                 an arm and a base arm of this study, in a metric that it reports:
      arm: BERT
      base: embeddings
      metric: test/illegal
      direction: less                         arm - base is: less | more | same | not more | not less
      margin: 0.02                            the largest difference that does not matter, in the metric's unit
      scale: laptop                           the size at which it is asked
      at: 500                                 after so many steps, where the metric is a curve; without it, at the end

A name, path or value that nobody knows is an error with the claim's name in front, before anything runs.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from studies.engine.study import BadInput, Study
from trainables.config import ConfigError, config, fields, flat, from_dict, near

Direction = Literal["less", "more", "same", "not more", "not less"]


@config
class Claim:
    """One sentence of a paper as a difference between two arms."""

    name: str
    says: str
    paper: str
    study: str
    arm: str
    base: str
    metric: str
    direction: Direction
    quoted: str = ""                    # the paper's figures, for people
    margin: float = 0.0                 # 0: any difference matters
    scale: str = "laptop"
    at: int = 0                         # steps; 0: at the end of training

    def __post_init__(self):
        if self.margin < 0:
            raise ValueError(f"margin is a positive number, in the metric's unit, not {self.margin:g}")
        if self.direction in ("same", "not more", "not less") and not self.margin:
            raise ConfigError("margin", f"direction {self.direction!r} needs one: the largest difference that does not "
                                        "matter")
        if self.at < 0:
            raise ValueError(f"at counts steps, not {self.at}")
        if self.arm == self.base:
            raise ConfigError("base", f"must be another arm than {self.arm!r}")

    @property
    def asked(self) -> str:
        """The metric, and when."""
        return f"{self.metric} after {self.at} steps" if self.at else self.metric


@dataclass(frozen=True)
class Asked:
    """The claims about one study at one scale."""

    study: Study
    scale: str
    claims: tuple[Claim, ...]

    @property
    def arms(self) -> list[str]:
        """The arms that these claims need, in the study's order."""
        wanted = {arm for claim in self.claims for arm in (claim.arm, claim.base)}
        return [arm for arm in self.study.arms if arm in wanted]


def read_claims(path: Path, studies: Iterable[str], load: Callable[[str], Study]) -> list[Claim]:
    """The file's claims, each checked against its study.   BadInput, ConfigError: claim.field, value, what would do

    studies: the names that `load` knows.
    """
    try:
        said = yaml.load(path.read_text(encoding="utf-8"), Loader=_Once)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(said, dict) or not said:
        raise BadInput(f"{path}: expected a mapping from the names of claims to what they say")
    known, load = sorted(studies), functools.cache(load)
    claims = [_claim(str(name), entry) for name, entry in said.items()]
    for claim in claims:
        if claim.study not in known:
            raise ConfigError(f"{claim.name}.study", f"there is no study {claim.study!r}{near(claim.study, known)}")
        check_claim(claim, load(claim.study))
    return claims


def _claim(name: str, entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise ConfigError(name, f"must be a mapping of {', '.join(fields(Claim))}, not {entry!r}")
    if "," in name or "name" in entry:
        raise ConfigError(name, "a claim is named by its key, which has no comma")
    return from_dict(Claim, {"name": name} | entry, name)


def check_claim(claim: Claim, study: Study, assignments: Iterable[str] = ()) -> None:
    """Whether the study can answer it.   ConfigError, with the claim's name and the field"""
    if study.tune is not None:
        raise ConfigError(f"{claim.name}.study", f"{study.name} is a search; a claim is about arms that are fixed")
    if claim.scale not in study.scales:
        raise ConfigError(f"{claim.name}.scale", f"{study.name} has no scale {claim.scale!r}"
                                                 f"{near(claim.scale, study.scales)}")
    for role in ("arm", "base"):
        if (arm := getattr(claim, role)) not in study.arms:
            raise ConfigError(f"{claim.name}.{role}", f"{study.name} has no arm {arm!r}{near(arm, study.arms)}")
    reported = [metric.metric for metric in study.report]
    if claim.metric not in reported:
        raise ConfigError(f"{claim.name}.metric", f"{study.name} does not report {claim.metric!r}"
                                                  f"{near(claim.metric, reported)}")
    if claim.at:
        _check_step(claim, flat(study.trial(claim.scale, claim.arm, assignments=assignments)))


def _check_step(claim: Claim, trial: Mapping[str, Any]) -> None:
    """Only curves have steps, and only those at which the trainer looks."""
    if not claim.metric.startswith(("valid/", "train/")):
        raise ConfigError(f"{claim.name}.at", f"{claim.metric} is measured once, at the end; `at` goes with a curve, "
                                              "valid/... or train/...")
    every = trial.get(f"training.{'validate' if claim.metric.startswith('valid/') else 'record'}_every")
    steps = trial.get("training.steps")
    if steps is not None and claim.at > steps:
        raise ConfigError(f"{claim.name}.at", f"training ends after {steps} steps, before {claim.at}")
    if every is not None and claim.at % every and claim.at != steps:
        raise ConfigError(f"{claim.name}.at", f"{claim.metric} is recorded every {every} steps, and not after "
                                              f"{claim.at}")


def chosen(claims: list[Claim], only: str | None) -> list[Claim]:
    """The claims that --only names; all where it names none.   BadInput"""
    if only is None:
        return claims
    asked = list(dict.fromkeys(name.strip() for name in only.split(",") if name.strip()))
    known = [claim.name for claim in claims]
    for name in asked:
        if name not in known:
            raise BadInput(f"--only: there is no claim {name!r}{near(name, known)}")
    if not asked:
        raise BadInput("--only: name at least one")
    return [claim for claim in claims if claim.name in asked]


def by_study(claims: Iterable[Claim], load: Callable[[str], Study]) -> list[Asked]:
    """The claims of each study and scale together, in the file's order."""
    groups: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        groups.setdefault((claim.study, claim.scale), []).append(claim)
    return [Asked(load(study), scale, tuple(some)) for (study, scale), some in groups.items()]


class _Once(yaml.SafeLoader):
    """YAML whose keys are said once: a second claim of a name would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if (name := self.construct_object(key, deep=True)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is said twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
