"""Real texts, to compare with: a fixed number, drawn once, from a split that no model learned from."""

import random
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from trainables.config import ConfigError, config
from trainables.stages import Context, Stage
from trainables.text.corpora import Data, read_rows
from trainables.text.rows import Row

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

    def rows(self, context: Context) -> list[Row]:
        """The texts with their sources and classes; fewer than `count` where the split has fewer."""
        rows = read_rows(context.get(self.data), self.split)
        random.Random(0).shuffle(rows)
        return rows[:self.count]

    def texts(self, context: Context) -> list[str]:
        """The texts alone."""
        return [row["text"] for row in self.rows(context)]

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


@runtime_checkable
class ReadsSources(Protocol):
    """A metric that compares a sample with the real texts of the same source; it stands in for `score`."""

    def score_pairs(self, samples: list[str], sources: Sequence[str], real: Real,
                    context: Context) -> dict[str, float | str]:
        """Values by name, or reasons; `sources` has one for each sample, or none at all."""
        ...


@runtime_checkable
class ReadsClasses(Protocol):
    """A metric that also says whether samples are of the classes they were asked for; it adds to `score`."""

    of_classes: ClassVar[dict[str, str]]         # which direction is better, for each value that it adds

    def score_classes(self, samples: list[str], classes: Sequence[str], real: Real,
                      context: Context) -> dict[str, float | str]:
        """Values by name, or reasons; `classes` has one for each sample."""
        ...


def references_of(samples: Sequence[str], sources: Sequence[str], real: Real,
                  context: Context) -> list[tuple[str, list[str]]] | str:
    """The samples whose source the split knows, each with all real texts of that source; or why there are none."""
    if not sources:
        return "the samples were not written from sources"
    texts: dict[str, list[str]] = {}
    for row in read_rows(context.get(real.data), real.split):
        texts.setdefault(row.get("source", ""), []).append(row["text"])
    known = [(text, texts[source]) for text, source in zip(samples, sources, strict=True) if source in texts]
    return known or f"{real.split} has no text of these samples' sources"


def shortage(samples: list[str], real: Real, references: int) -> str:
    """Why values that depend on the number of texts cannot be had, or ''.  They compare only at equal numbers."""
    if len(samples) < real.count:
        return f"needs {real.count} samples, there are {len(samples)}"
    if references < real.count:
        return f"needs {real.count} real texts, {real.split} has {references}"
    return ""
