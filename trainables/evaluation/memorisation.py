"""Memorisation: how much of what a model says stood in its training texts.  The only metric that catches a copyist.

memorisation   share of the samples' 4-grams, each as often as it is said, that stand in a training text
copied         share of the samples that are, word for word, a training text
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from trainables.config import config
from trainables.evaluation.real import Real
from trainables.evaluation.words import Hashes, words
from trainables.stages import Context, Stage
from trainables.text.corpora import Data, read_texts


@config
class TrainingRuns:
    """The hashes of all n-grams and of all whole texts of the train split, sorted: runs.npy, texts.npy, uint64."""

    data: Data
    n: int

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.data,)

    def make(self, out: Path, context: Context) -> None:
        hashes = Hashes()
        said = [words(text) for text in read_texts(context.get(self.data), "train")]
        np.save(out / "runs.npy", np.unique(np.concatenate([hashes.of_ngrams(text, self.n) for text in said])))
        np.save(out / "texts.npy", np.unique(np.array([hashes.of_text(text) for text in said if text], np.uint64)))


@config
class Memorisation:
    """`n` is the length of the runs of words that are looked up."""

    n: int = 4

    better: ClassVar[dict[str, str]] = {"memorisation": "lower", "copied": "lower"}

    def __post_init__(self):
        if self.n < 1:
            raise ValueError(f"n must be positive, not {self.n}")

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return (TrainingRuns(data=real.data, n=self.n),)

    def score(self, samples: list[str], real: Real, context: Context) -> dict[str, float | str]:
        hashes, folder = Hashes(), context.get(TrainingRuns(data=real.data, n=self.n))
        said = [words(text) for text in samples]
        runs = np.concatenate([hashes.of_ngrams(text, self.n) for text in said])
        whole = np.array([hashes.of_text(text) for text in said if text], np.uint64)
        memorised = float(found(runs, np.load(folder / "runs.npy", mmap_mode="r")).mean()) if len(runs) else 0.0
        return {
            "memorisation": memorised if len(runs) else f"no sample has {self.n} words",
            "copied": float(found(whole, np.load(folder / "texts.npy", mmap_mode="r")).sum() / len(samples)),
        }


def found(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each of `wanted` is in the sorted `known`.   [wanted] bool"""
    if not len(known):
        return np.zeros(len(wanted), bool)
    places = np.searchsorted(known, wanted)
    return known[np.minimum(places, len(known) - 1)] == wanted
