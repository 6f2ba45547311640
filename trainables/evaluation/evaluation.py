"""Evaluation: samples against real texts, by a set of metrics, since each alone can be cheated.

    samples ------------\\
    real texts (split) --+--> metric --> {"mauve": .81, ...}
    other real texts ---/          \\--> {"mauve_real": .96, ...}      what a perfect model would score: the same code,
                                                                       run once, on real texts in place of samples

    cheat                        who sees it                       who does not
    repeats what is likely       entropy, diversity, MAUVE         judge NLL and perplexity (they like it)
    copies training texts        memorisation, copied              everything else
    shuffled words               judge NLL                         entropy, memorisation; MAUVE half
    few texts, many times        diversity, duplicates, MAUVE      judge NLL, entropy
    n-gram chains                MAUVE, judge NLL                  entropy, diversity

So the smallest set is a cloud metric (MAUVE or Frechet), the judge, entropy, diversity and memorisation: the default.

    values = evaluation.score(samples, "test", data, context)     {"mauve": ..., "mauve_real": ..., ...}, finite floats
    values, absent = evaluation.measure(...)                      and why one is missing: {"mauve": "needs 500 ..."}
    BETTER["mauve"] == "higher"                                   which direction is better, for every value
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, get_args

from trainables.config import config
from trainables.evaluation.bleu import Bleu
from trainables.evaluation.frechet import Frechet
from trainables.evaluation.judge import JudgeNll
from trainables.evaluation.mauve import Mauve
from trainables.evaluation.memorisation import Memorisation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.perplexity import Perplexity
from trainables.evaluation.pretrained import held
from trainables.evaluation.real import ReadsClasses, ReadsSources, Real
from trainables.evaluation.rouge import Rouge
from trainables.evaluation.variety import Variety
from trainables.stages import Context, Stage, upstream
from trainables.text.corpora import Data

Metric = OracleScores | Mauve | Frechet | JudgeNll | Variety | Memorisation | Perplexity | Bleu | Rouge

# Which direction is better: "lower", "higher", or "neither", where the real texts' own value is best.
BETTER: dict[str, str] = {name: better for metric in get_args(Metric) for name, better in metric.better.items()}
BETTER |= {f"{name}_real": "neither" for name in BETTER} | OracleScores.of_classes


class Scores(NamedTuple):
    """Values, all finite, and the reason for each value that is missing."""

    values: dict[str, float]
    absent: dict[str, str]


@config
class Evaluation:
    """`references` real texts, compared with as many samples: what depends on n is read at this n or not at all."""

    metrics: tuple[Metric, ...] = (Mauve(), Frechet(), JudgeNll(), Variety(), Memorisation())
    references: int = 500

    def __post_init__(self):
        if self.references < 2:
            raise ValueError(f"references must be at least 2 texts, not {self.references}")
        names = Counter(name for metric in self.metrics for name in metric.better)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ValueError(f"metrics give these values twice: {', '.join(twice)}")
        for metric in self.metrics:
            if isinstance(metric, Mauve) and metric.buckets > self.references:
                raise ValueError(f"references {self.references} cannot fill MAUVE's {metric.buckets} buckets")

    def needs(self, data: Data, splits: tuple[str, ...] = ("valid", "test")) -> tuple[Stage, ...]:
        """The stages that scoring on these splits asks for, each once."""
        return tuple(upstream(*(self.baseline(split, data) for split in splits)))

    def baseline(self, split: str, data: Data) -> "RealScores":
        """The scores of real texts in place of samples."""
        return RealScores(metrics=self.metrics, real=Real(data=data, split=split, count=self.references))

    def score(self, samples: list[str], split: str, data: Data, context: Context) -> dict[str, float]:
        """Every value that can be had, finite, with its `_real` beside it."""
        return self.measure(samples, split, data, context).values

    def measure(self, samples: list[str], split: str, data: Data, context: Context,
                sources: Sequence[str] = (), classes: Sequence[str] = ()) -> Scores:
        """`score`, and why a value is missing.  `sources` and `classes`: what each sample was asked for, if it was."""
        baseline = self.baseline(split, data)
        with held():
            values, absent = scores(self.metrics, samples, sources, baseline.real, context, classes)
            real = context.get(baseline)
        for name, value in json.loads((real / "real.json").read_text()).items():
            if isinstance(value, str):
                absent[f"{name}_real"] = value
            else:
                values[f"{name}_real"] = value
        return Scores(values, absent)


@config
class RealScores:
    """What real texts score against other real texts: real.json, {name: value or reason}."""

    metrics: tuple[Metric, ...]
    real: Real

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        both = (self.real, self.real.other())
        return (self.real.data, *(stage for metric in self.metrics for real in both for stage in metric.needs(real)))

    def make(self, out: Path, context: Context) -> None:
        rows = self.real.other().rows(context)
        sources = [row["source"] for row in rows] if all("source" in row for row in rows) else []
        with held():
            values, absent = scores(self.metrics, [row["text"] for row in rows], sources, self.real, context)
        (out / "real.json").write_text(json.dumps(values | absent, indent=1))


def scores(metrics: tuple[Metric, ...], samples: list[str], sources: Sequence[str], real: Real,
           context: Context, classes: Sequence[str] = ()) -> Scores:
    """All metrics of some texts."""
    values: dict[str, float] = {}
    absent: dict[str, str] = {}
    for metric in metrics:
        of_classes = metric.of_classes if classes and isinstance(metric, ReadsClasses) else {}
        if not any(text.strip() for text in samples):
            why = "there are no samples" if not samples else "all samples are empty"
            said = dict.fromkeys((*metric.better, *of_classes), why)
        elif isinstance(metric, ReadsSources):
            said = metric.score_pairs(samples, sources, real, context)
        else:
            said = metric.score(samples, real, context)
            if of_classes and isinstance(metric, ReadsClasses):
                said |= metric.score_classes(samples, classes, real, context)
        for name, value in said.items():
            if isinstance(value, str):
                absent[name] = value
            elif math.isfinite(value):
                values[name] = value
            else:
                absent[name] = f"not finite: {value}"
    return Scores(values, absent)
