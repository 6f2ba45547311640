"""Domains: what may vary, as plain values bound to dotted config paths.

    space = Space({
        "training.optimizer.lr": LogUniform(1e-4, 1e-2),
        "system.self_conditioning": Uniform(0.0, 1.0),
        "system.process.schedule": Choice(With(Tangent(), {"d": LogUniform(1.0, 20.0)}), Cosine()),
    })

    check(space, trial)        every corner builds a valid trial, or ConfigError with the path (corners.py)
    space.point(trial)         the trial as a point:  {"training.optimizer.lr": .003, ..., "system.process.schedule":
                               "Tangent", "system.process.schedule[Tangent].d": 9.0}
    space.changes(point)       what `override` takes: {"training.optimizer.lr": .003, ...}
    space.draw(choose)         a point, each value chosen by choose(name, domain): here a search library comes in

A space is a tree: what depends on a choice hangs under the option that brings it, so there is no condition to write and
none that can dangle.  A tangent's coefficient is asked for where the schedule is a tangent; Lion's learning rate is
another parameter, with another range and another name, than AdamW's.

The configs themselves are the schema: a typo or an end that a config refuses is that config's own error.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.numbers import EDGE, Integers, LogUniform, Number, Uniform, inside
from trainables.config import ConfigError, is_config, near, override

Point = Mapping[str, Any]               # name of a parameter -> number, or label of an option


# ---------------------------------------------------------------- choices


@dataclass(frozen=True)
class With:
    """An option and what varies under it, by paths that start at the option.   label: what people call it"""

    value: Any
    inside: "Mapping[str, Domain] | Space" = field(default_factory=dict)
    label: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "inside", Space(self.inside))
        if self.inside and not is_config(self.value):
            raise ValueError(f"{self.value!r} has no fields, so nothing can vary under it")

    @property
    def space(self) -> "Space":
        assert isinstance(self.inside, Space)
        return self.inside

    @property
    def name(self) -> Any:
        """The option as a search library stores it: a plain value stands for itself, a component for its class."""
        if self.label is not None:
            return self.label
        if is_config(self.value):
            return type(self.value).__name__
        return self.value if self.value is None or isinstance(self.value, (bool, int, float, str)) else str(self.value)


class Choice:
    """One of some values or components; `With` says what varies under one of them."""

    def __init__(self, *options: Any):
        self.options = tuple(option if isinstance(option, With) else With(option) for option in options)
        names = [option.name for option in self.options]
        if not names:
            raise ValueError("a choice needs an option")
        for name in names:
            if sum(type(other) is type(name) and other == name for other in names) > 1:
                raise ValueError(f"two options are called {name!r}; With(value, label=...) names them")

    @property
    def names(self) -> tuple[Any, ...]:
        return tuple(option.name for option in self.options)

    def option(self, name: Any) -> With:
        """The option called so.   KeyError"""
        for option in self.options:
            if option.name == name and isinstance(option.name, bool) == isinstance(name, bool):
                return option
        raise KeyError(name)

    def at(self, share: float) -> Any:
        return self.names[min(int(share * len(self.options)), len(self.options) - 1)]

    def __repr__(self) -> str:
        return f"Choice({', '.join(map(repr, self.options))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self.options == other.options

    def __hash__(self) -> int:
        return hash(self.names)


Domain = Number | Choice


# ---------------------------------------------------------------- the space


@dataclass(frozen=True)
class Parameter:
    """A domain with its place: the name that a search library knows, and the config path that it sets."""

    name: str                           # "system.process.schedule[Tangent].d"
    path: str                           # "system.process.schedule.d"
    domain: Domain
    when: tuple[tuple[str, Any], ...]   # (name of a choice, its option) that must be chosen for this to exist


class Space(Mapping[str, Domain]):
    """Dotted config paths and their domains.   ValueError: two of them would set the same thing"""

    def __init__(self, domains: "Mapping[str, Domain] | None" = None):
        self.domains = dict(domains or {})
        for path, domain in self.domains.items():
            if not isinstance(domain, (Uniform, LogUniform, Integers, Choice)):
                raise ValueError(f"{path}: a domain is Uniform, LogUniform, Integers or Choice, not {domain!r}")
            for other in self.domains:
                if other.startswith(f"{path}."):
                    raise ValueError(f"{other}: {path} varies as a whole; what varies inside an option stands in its "
                                     "With(...)")

    def __getitem__(self, path: str) -> Domain:
        return self.domains[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.domains)

    def __len__(self) -> int:
        return len(self.domains)

    def __repr__(self) -> str:
        return f"Space({self.domains!r})"

    def __or__(self, other: "Mapping[str, Domain]") -> "Space":
        """Both; where both name a path, the second's."""
        return Space({**self.domains, **other})

    def without(self, *paths: str) -> "Space":
        return Space({path: domain for path, domain in self.domains.items() if path not in paths})

    def parameters(self) -> list[Parameter]:
        """Everything that may ever be asked for, in the order in which it is."""
        return list(self._parameters("", "", ()))

    def _parameters(self, name: str, path: str, when: tuple) -> Iterator[Parameter]:
        for key, domain in self.domains.items():
            here = Parameter(name + key, path + key, domain, when)
            yield here
            if isinstance(domain, Choice):
                for option in domain.options:
                    yield from option.space._parameters(f"{here.name}[{option.name}].", f"{here.path}.",
                                                        (*when, (here.name, option.name)))

    # -- points

    def draw(self, choose: Callable[[str, Domain], Any], prefix: str = "") -> dict[str, Any]:
        """A point; of a choice's options only the chosen one is asked further."""
        point: dict[str, Any] = {}
        for key, domain in self.domains.items():
            name = prefix + key
            point[name] = value = choose(name, domain)
            if isinstance(domain, Choice):
                point |= domain.option(value).space.draw(choose, f"{name}[{value}].")
        return point

    def changes(self, point: Point) -> dict[str, Any]:
        """Dotted path -> value, for `override`.   ConfigError: the point is not of this space"""
        found: dict[str, Any] = {}
        used: set[str] = set()
        self._changes(point, "", "", found, used)
        for name in point:
            if name not in used:
                raise ConfigError(name, "is no parameter of this point" + near(name, used))
        return found

    def _changes(self, point: Point, prefix: str, above: str, found: dict[str, Any], used: set[str]) -> None:
        for key, domain in self.domains.items():
            name, path = prefix + key, above + key
            if name not in point:
                raise ConfigError(name, "is missing in the point")
            used.add(name)
            if isinstance(domain, Choice):
                try:
                    option = domain.option(point[name])
                except KeyError:
                    raise ConfigError(name, f"is one of {_listed(domain.names)}, not {point[name]!r}") from None
                found[path] = option.value
                option.space._changes(point, f"{name}[{option.name}].", f"{path}.", found, used)
            else:
                found[path] = inside(name, domain, point[name])

    def point(self, trial: Any) -> dict[str, Any]:
        """The point at which a trial stands.   ConfigError: it stands outside, or has no such field"""
        return self._point(trial, "", "")

    def _point(self, trial: Any, prefix: str, above: str) -> dict[str, Any]:
        point: dict[str, Any] = {}
        for key, domain in self.domains.items():
            value, name, path = value_at(trial, above + key), prefix + key, above + key
            if isinstance(domain, Choice):
                option = next((option for option in domain.options if _stands_for(option, value)), None)
                if option is None:
                    raise ConfigError(path, f"is {value!r}, which is none of the options {_listed(domain.names)}; "
                                            "the trial's own value is tried first, so it must be one")
                point[name] = option.name
                point |= option.space._point(trial, f"{name}[{option.name}].", f"{path}.")
            else:
                point[name] = inside(path, domain, value)
        return point

    def edges(self, point: Point) -> dict[str, str]:
        """Name -> "lower" or "upper" where a number lies at an end of its range: the best may lie beyond."""
        found = {}
        for parameter in self.parameters():
            if parameter.name in point and not isinstance(parameter.domain, Choice):
                share = parameter.domain.share(point[parameter.name])
                if share <= EDGE or share >= 1 - EDGE:
                    found[parameter.name] = "lower" if share <= EDGE else "upper"
        return found


def value_at(trial: Any, path: str) -> Any:
    """What a config says at a dotted path.   ConfigError"""
    value = trial
    for part in path.split("."):
        if not is_config(value) or not hasattr(value, part):
            where = type(value).__name__
            known = value.__dataclass_fields__ if is_config(value) else ()
            raise ConfigError(path, f"{where} has no field {part!r}{near(part, known)}")
        value = getattr(value, part)
    return value


def _stands_for(option: With, value: Any) -> bool:
    """Whether a trial's value is the option, but for what varies under it."""
    if type(option.value) is not type(value):
        return False
    if not option.space:
        return option.value == value
    return override(option.value, {path: value_at(value, path) for path in option.space}) == value


def _listed(names: tuple) -> str:
    return ", ".join(map(str, names))
