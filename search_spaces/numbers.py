"""Numbers that may vary: a range, and how values lie in it.

    Uniform(0, 1)   LogUniform(1e-4, 1e-2)   Integers(2, 10)

    at(share) -> value      share(value) -> 0 at the lower end, 1 at the upper      beyond(end) -> a value past it
"""

import math
from dataclasses import dataclass
from typing import Any

from trainables.config import ConfigError

EDGE = 0.05                             # this near to an end, as a share of the range, a best point is "at the edge"


@dataclass(frozen=True)
class Uniform:
    """A number in [low, high], uniform."""

    low: float
    high: float

    def __post_init__(self):
        _check(self)

    def at(self, share: float) -> float:
        """The value below which `share` in [0, 1] of the range lies."""
        return self.low + share * (self.high - self.low)

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def beyond(self, end: str) -> float:
        """A value a little way past the "lower" or the "upper" end."""
        return self.at(-EDGE if end == "lower" else 1 + EDGE)


@dataclass(frozen=True)
class LogUniform:
    """A positive number in [low, high], uniform in its logarithm."""

    low: float
    high: float

    def __post_init__(self):
        _check(self)
        if self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {self.low}")

    @classmethod
    def around(cls, value: float, below: float, above: float | None = None) -> "LogUniform":
        """From value / below to value * above (where None: `below`)."""
        return cls(value / below, value * (above or below))

    def at(self, share: float) -> float:
        return min(max(self.low * (self.high / self.low) ** share, self.low), self.high)

    def share(self, value: float) -> float:
        return math.log(value / self.low) / math.log(self.high / self.low)

    def beyond(self, end: str) -> float:
        past = (self.high / self.low) ** EDGE
        return self.low / past if end == "lower" else self.high * past


@dataclass(frozen=True)
class Integers:
    """A whole number in low..high, both included; `log`: uniform in its logarithm."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self):
        _check(self)
        if self.low != int(self.low) or self.high != int(self.high):
            raise ValueError(f"whole numbers have whole ends, not {self.low} and {self.high}")
        if self.log and self.low < 1:
            raise ValueError(f"a logarithmic range of whole numbers starts at 1 or above, not at {self.low}")

    def at(self, share: float) -> int:
        low, high = self.low - 0.5, self.high + 0.5
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        return min(max(math.floor(value + 0.5), self.low), self.high)

    def share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def beyond(self, end: str) -> int:
        return self.low - 1 if end == "lower" else self.high + 1


Number = Uniform | LogUniform | Integers


def _check(domain: Number) -> None:
    if not (math.isfinite(domain.low) and math.isfinite(domain.high) and domain.low < domain.high):
        raise ValueError(f"a range goes from a number to a larger one, not from {domain.low} to {domain.high}")


def inside(name: str, domain: Number, value: Any) -> Any:
    """The value, as the domain has it.   ConfigError: it lies outside"""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(name, f"is {value!r}, and {domain} is a range of numbers")
    if not domain.low <= value <= domain.high or isinstance(domain, Integers) and value != int(value):
        raise ConfigError(name, f"is {value}, which lies outside of {domain}; the trial's own value is tried first, so "
                                "it must lie inside")
    return int(value) if isinstance(domain, Integers) else float(value)
