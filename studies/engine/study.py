"""A study: a question, what is compared, what is reported.

    study = Study(
        name="ablation_encoder",
        question="Which encodings are worth diffusing?",
        expectation="Contextual encodings beat plain embeddings.",
        scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
        arms={
            "BERT": Arm(laptop={"system.encoder": Bert(weights=Small())}, paper={...}),
            "long": Arm({"training.steps": 2_000}),
        },
        report=(Minimise("test/illegal"), Maximise("test/mauve"), Watch("test/length")),
    )

The first arm is the base that the others are compared with; the first metric with a direction picks the best arm.
Every arm is built at every scale when the study is constructed, so a typo is an error before Ray is even imported.

A full factorial study says its factors instead of its arms; the first level of each makes the base:

        factors={
            "system.process.schedule": {"tangent": Tangent(d=9.0), "cosine": Cosine()},
            "optimizer": {"AdamW": Arm(), "Lion": Arm({"training.optimizer": Lion(), "training.warmup": 500})},
        },                                             # arms "tangent + AdamW", "tangent + Lion", "cosine + AdamW", ...
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from trainables.config import ConfigError, assign, near, override
from trainables.stages import Context, Stage, Store

if TYPE_CHECKING:
    from studies.engine.tuning import Tune


class BadInput(Exception):
    """Something a user can mend: said in one screen without a traceback, exit code 2, before anything starts."""


class TrialConfig(Protocol):
    """What the engine needs of a trial config: a metrics stage writes metrics.json, a samples stage samples.jsonl."""

    @property
    def seed(self) -> int: ...
    @property
    def system(self) -> Any: ...
    @property
    def data(self) -> Any: ...
    def samples(self) -> Stage: ...
    def metrics(self) -> Stage: ...


@runtime_checkable
class Settles(Protocol):
    """A trial that may name folders of this machine, whose contents must be in the store before its key is known."""

    def settled(self, store: Store) -> Any:
        """The trial that names contents in place of folders.   ConfigError"""
        ...


@runtime_checkable
class Checks(Protocol):
    """A trial, or a stage, that can tell beforehand that the world outside does not fit: a folder that is no
    checkpoint, texts that are too short.  The engine asks the trials that will run and the stages they will make.
    """

    def check(self, context: Context) -> None:
        """ConfigError, with the path, where making it is bound to fail."""


@dataclass(frozen=True)
class Minimise:
    """A metric of which less is better.  A difference within `margin`, where one is stated, does not matter."""

    metric: str
    margin: float | None = None

    def __post_init__(self):
        _check_margin(self.metric, self.margin)


@dataclass(frozen=True)
class Maximise:
    """A metric of which more is better.  A difference within `margin`, where one is stated, does not matter."""

    metric: str
    margin: float | None = None

    def __post_init__(self):
        _check_margin(self.metric, self.margin)


@dataclass(frozen=True)
class Watch:
    """A metric that is reported and has no better.  A difference within `margin` does not matter."""

    metric: str
    margin: float | None = None

    def __post_init__(self):
        _check_margin(self.metric, self.margin)


Metric = Minimise | Maximise | Watch


def _check_margin(metric: str, margin: float | None) -> None:
    if margin is not None and not 0 < margin < math.inf:
        raise ValueError(f"{metric}: a margin is a positive number, in the metric's unit, not {margin}")


@dataclass(frozen=True)
class Resources:
    """What each worker of a trial holds, and how many workers a trial has.

    A worker computes with exactly `cpus` threads: trials never thrash, and a float sum has the same order, so the same
    last digit, whoever else is running.
    """

    cpus: int = 1
    gpus: float = 0.0
    workers: int = 1
    least: int = 0                      # workers that a trial makes do with while the cluster has no more; 0: all

    def __post_init__(self):
        if not 0 <= self.least <= self.workers:
            raise ValueError(f"least must be between 0 and workers = {self.workers}, not {self.least}")
        if self.cpus < 1 or self.workers < 1 or self.gpus < 0:
            raise ValueError(f"a trial needs a worker with a CPU or more, and no negative GPUs: {self}")
        if self.gpus > 1:
            workers = math.ceil(self.gpus * self.workers)
            raise ValueError(f"a worker computes on one GPU, or on a part of one, not on {self.gpus:g}: "
                             f"--workers {workers} takes {workers} GPUs")


Changes = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]


class Arm:
    """What an arm changes of the base: dotted path -> value, at all scales (`changes`) and at one (`laptop={...}`).

    A function of the base trial may stand for the mapping, where a change keeps a part of what it replaces.
    """

    def __init__(self, changes: Changes | None = None, /, **by_scale: Changes):
        self.common: Changes = changes or {}
        self.by_scale = by_scale

    def changes(self, scale: str, base: TrialConfig) -> dict[str, Any]:
        """The changes of `base` at one scale."""
        parts = (part(base) if callable(part) else part for part in (self.common, self.by_scale.get(scale, {})))
        return {path: value for part in parts for path, value in part.items()}

    @staticmethod
    def together(arms: "Mapping[str, Arm]") -> "Arm":
        """One level of each factor (factor -> arm) at once.   ConfigError: two factors change the same path"""
        def merged(scale: str, base: Any) -> dict[str, Any]:
            changes: dict[str, Any] = {}
            for factor, arm in arms.items():
                own = arm.changes(scale, base)
                for path in own:
                    clash = next((other for other in changes if f"{path}.".startswith(f"{other}.")
                                  or f"{other}.".startswith(f"{path}.")), None)
                    if clash is not None:
                        raise ConfigError(path, f"factor {factor!r} changes it, and another factor changes {clash}")
                changes |= own
            return changes

        scales = dict.fromkeys(scale for arm in arms.values() for scale in arm.by_scale)
        return Arm(functools.partial(merged, ""), **{scale: functools.partial(merged, scale) for scale in scales})


@dataclass(frozen=True)
class Scale:
    """A size at which the question is asked: the recipe that arms change, and what a trial of it holds.

    recipe() is the trial on its usual data, recipe(data) on other data: lengths and metrics may follow from the data.
    """

    recipe: Callable[..., TrialConfig]
    resources: Resources = Resources()


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, what is compared, what is reported.   ConfigError, with arm and path: an arm cannot be built"""

    name: str
    question: str
    scales: Mapping[str, Scale]
    arms: Mapping[str, Arm] = field(default_factory=dict)      # given, or made from the factors
    report: tuple[Metric, ...]
    expectation: str = ""
    seeds: int = 3
    factors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)     # path -> level -> value (name: -> Arm)
    tune: "Tune | None" = None                                  # searched inside each arm before arms are compared
    points: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)      # arm -> what its search has found
    program: str = ""                                           # what is typed after `python`; "": studies/<name>.py

    def __post_init__(self):
        if self.factors:
            if self.arms:
                raise ValueError(f"{self.name}: a study has arms or factors, which make its arms; not both")
            object.__setattr__(self, "arms", {name: Arm.together(levels) for name, levels in self._products()})
        if not self.program:
            object.__setattr__(self, "program", f"studies/{self.name}.py")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(f"a study's name is a folder's name, in small letters, digits, - and _: not {self.name!r}")
        if not self.scales or not self.arms or not self.report or self.seeds < 1:
            raise ValueError(f"{self.name}: a study needs a scale, an arm, a metric and a seed")
        for name, arm in self.arms.items():
            if "," in name or not name.strip():
                raise ValueError(f"{self.name}: an arm's name has no comma, which --arms reads: not {name!r}")
            for scale in arm.by_scale:
                if scale not in self.scales:
                    raise ConfigError(f"arm {name!r}", f"no scale {scale!r}{near(scale, self.scales)}")
        for scale in self.scales if not self.points else ():    # a point is one scale's, and may make arms alike
            built: dict[Any, str] = {}
            for name in self.arms:
                twin = built.setdefault(self.trial(scale, name), name)
                if twin != name:
                    raise ConfigError(f"arm {name!r}", f"is the same trial as arm {twin!r} at scale {scale!r}")
                if self.tune is not None:
                    self.searched(scale, name, self.trial(scale, name))

    def _products(self) -> Iterable[tuple[str, dict[str, Arm]]]:
        for factor, levels in self.factors.items():
            if len(levels) < 2:
                raise ValueError(f"{self.name}: factor {factor!r} needs two levels or more, not {len(levels)}")
            for name in levels:
                if "+" in name or "," in name:
                    raise ValueError(f"{self.name}: level {name!r} of {factor!r}: + and , stand between names")
        for combination in itertools.product(*(levels.items() for levels in self.factors.values())):
            yield " + ".join(name for name, _ in combination), {
                factor: value if isinstance(value, Arm) else Arm({factor: value})
                for factor, (_, value) in zip(self.factors, combination, strict=True)}

    def levels(self, arm: str) -> tuple[str, ...]:
        """The arm's level of each factor."""
        return tuple(arm.split(" + "))

    def searched(self, scale: str, arm: str, trial: Any, assignments: Iterable[str] = ()) -> Any:
        """What is searched around an arm's trial, checked at every corner.   ConfigError, with the arm and the path"""
        assert self.tune is not None
        own = self.arms[arm].changes(scale, self.scales[scale].recipe())
        try:
            return self.tune.around(trial, (*own, *(text.partition("=")[0].strip() for text in assignments)))
        except ConfigError as error:
            raise ConfigError(f"arm {arm!r}: {error.path}", error.problem) from None

    def searching(self, tune: "Tune") -> "Study":
        """The same study with a search inside each arm.   ConfigError, with the arm and the path"""
        return replace(self, tune=tune, arms={} if self.factors else self.arms)

    def found(self, points: Mapping[str, Mapping[str, Any]], arms: "Mapping[str, Arm] | None" = None) -> "Study":
        """The same study with what its searches have found, and nothing left to search.  `arms`: in place of its own"""
        kept = {} if self.factors else self.arms
        return replace(self, tune=None, points=points, arms=arms or kept, factors={} if arms else self.factors)

    def reporting(self, report: tuple[Metric, ...]) -> "Study":
        """The same study with other metrics, or margins."""
        return replace(self, report=report, arms={} if self.factors else self.arms)

    @property
    def base(self) -> str:
        """The name of the arm that the others are compared with."""
        return next(iter(self.arms))

    def trial(self, scale: str, arm: str, *, seed: int = 0, data: Any = None, assignments: Iterable[str] = ()) -> Any:
        """The arm's trial.  `assignments` are path=value texts; they go on top of the arm, and may not undo it."""
        recipe = self.scales[scale].recipe
        try:
            base = recipe() if data is None else recipe(data)
            changes = self.arms[arm].changes(scale, base) | dict(self.points.get(arm, {}))
            trial = override(base, changes)
        except ConfigError as error:
            raise ConfigError(f"arm {arm!r}: {error.path}", error.problem) from None
        for text in (assignments := tuple(assignments)):
            path = text.partition("=")[0].strip()
            fixed = {"seed": "comes from --seeds", "data": "comes from --data"} | dict.fromkeys(changes, "is compared")
            for taken, why in fixed.items():
                if taken == path or taken.startswith(path + "."):
                    raise ConfigError(path, f"{taken} {why}; it cannot be set as well")
        try:
            return override(assign(trial, assignments), {"seed": seed})
        except ConfigError as error:
            raise ConfigError(error.path, f"{error.problem} [arm {arm!r}]") from None
