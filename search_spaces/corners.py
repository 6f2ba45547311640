"""Corners: points at the ends of all ranges and at all options, where a space that does not fit a trial shows it.

    corners(space)          every combination; of large spaces, every combination of any two domains
    around(space, point)    a point's neighbours: one domain at its ends, or at its other options
    check(space, trial)     every corner builds a valid trial, and the trial itself is a point, before anything starts
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from search_spaces.domains import Choice, Domain, Point, Space
from trainables.config import ConfigError, override

Corner = dict[str, Any]                 # a point, or a part of one
CORNERS = 20_000                        # more corners than these are checked two domains at a time


def count(space: Space) -> int:
    return math.prod(_count(domain) for domain in space.values())


def corners(space: Space) -> Iterator[Corner]:
    """Every combination, or, where that is more than CORNERS, every combination of any two domains with the others at
    their first corner."""
    if count(space) <= CORNERS:
        yield from _all(space, "")
        return
    every = {key: list(_of(domain, key)) for key, domain in space.items()}
    first = {key: found[0] for key, found in every.items()}
    for one, other in itertools.combinations(every, 2):
        for here, there in itertools.product(every[one], every[other]):
            yield {name: value for part in (first | {one: here, other: there}).values()
                   for name, value in part.items()}


def around(space: Space, point: Point) -> Iterator[Corner]:
    """Points that differ from `point` in one domain, and in what hangs under it: at its ends, or other options."""
    for key, domain in space.items():
        others = {name: value for name, value in point.items() if name != key and not name.startswith(f"{key}[")}
        for corner in _of(domain, key):
            yield others | corner


def check(space: Space, trial: Any) -> None:
    """ConfigError, with the path and the corner"""
    for corner in corners(space):
        try:
            override(trial, space.changes(corner))
        except ConfigError as error:
            raise ConfigError(error.path, f"{error.problem} [at the corner {spell(corner)}]") from None
    space.point(trial)


def spell(point: Point) -> str:
    """A point for people."""
    return ", ".join(f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
                     for name, value in point.items())


def _all(space: Space, prefix: str) -> Iterator[Corner]:
    parts = [list(_of(domain, prefix + key)) for key, domain in space.items()]
    for combination in itertools.product(*parts):
        yield {name: value for part in combination for name, value in part.items()}


def _of(domain: Domain, name: str) -> Iterator[Corner]:
    if isinstance(domain, Choice):
        for option in domain.options:
            for inner in _all(option.space, f"{name}[{option.name}]."):
                yield {name: option.name} | inner
    else:
        yield from ({name: domain.low}, {name: domain.high})


def _count(domain: Domain) -> int:
    return sum(count(option.space) for option in domain.options) if isinstance(domain, Choice) else 2
