"""Real texts, to compare with: a fixed number, drawn once, from a split that no model learned from."""

import random
from typing import Protocol

from trainables.config import ConfigError, config
from trainables.stages import Context, Stage
from trainables.text.corpora import Data, read_texts

OTHER = {"valid": "test", "test": "valid"}


@config
class Real:
    """`count` texts of a held-out split."""

    data: Data
    split: str
    count: int

    def __post_init__(self):
        if self.split not in OTHER:
            raise ConfigError("split", f"must be valid or test, not {self.split!r}")

    def texts(self, context: Context) -> list[str]:
        """The texts; fewer than `count` where the split has fewer."""
        texts = read_texts(context.get(self.data), self.split)
        random.Random(0).shuffle(texts)
        return texts[:self.count]

    def other(self) -> "Real":
        """As many real texts from the other held-out split: what a perfect model would bring."""
        return Real(data=self.data, split=OTHER[self.split], count=self.count)


class Metric(Protocol):
    """What every metric of the union in evaluation.py does, besides saying which direction is better."""

    def needs(self, real: Real) -> tuple[Stage, ...]:
        """The stages that scoring asks for."""
        ...

    def score(self, samples: list[str], real: Real, context: Context) -> dict[str, float | str]:
        """Values by name; a value that cannot be had is the reason, in words."""
        ...


def shortage(samples: list[str], real: Real, references: int) -> str:
    """Why values that depend on the number of texts cannot be had, or ''.  They compare only at equal numbers."""
    if len(samples) < real.count:
        return f"needs {real.count} samples, there are {len(samples)}"
    if references < real.count:
        return f"needs {real.count} real texts, {real.split} has {references}"
    return ""
