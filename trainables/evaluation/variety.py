"""Variety: how much the samples repeat themselves, inside a text and among each other.

entropy        of the words inside a text, nats, mean over texts      falls when a model writes at a low temperature
distinct_n     different n-grams / all n-grams, over all samples
diversity      product over n = 2, 3, 4 of distinct_n                 arXiv 2202.06417, as TEncDM and LD4LG report it
self_bleu      corpus BLEU-4 (0..1) of samples against other samples  arXiv 1802.01886
duplicates     share of samples that say what an earlier sample said
words          per text; words_spread is the standard deviation

All but `entropy` and `words` depend on how many samples there are: they are read at `real.count` of them or not at all.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from trainables.config import config
from trainables.evaluation.real import Real, shortage
from trainables.evaluation.words import ngrams, words
from trainables.stages import Context, Stage


@config
class Variety:
    """`hypotheses` samples, each against `references` others, make self-BLEU."""

    hypotheses: int = 200
    references: int = 50

    better: ClassVar[dict[str, str]] = {
        "entropy": "neither", "words": "neither", "words_spread": "neither", "distinct_1": "higher",
        "distinct_2": "higher", "diversity": "higher", "self_bleu": "lower", "duplicates": "lower"}

    def __post_init__(self):
        if self.hypotheses < 1 or self.references < 1:
            raise ValueError("hypotheses and references must be positive")

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return ()

    def score(self, samples: list[str], real: Real, context: Context) -> dict[str, float | str]:
        said = [words(text) for text in samples]
        lengths = np.array([len(text) for text in said])
        values: dict[str, float | str] = {
            "entropy": float(np.mean([entropy(text) for text in said])),
            "words": float(lengths.mean()), "words_spread": float(lengths.std())}
        reason = shortage(samples, real, real.count)
        said = said[:real.count]
        counted = {
            "distinct_1": lambda: distinct(said, 1), "distinct_2": lambda: distinct(said, 2),
            "diversity": lambda: math.prod(distinct(said, n) for n in (2, 3, 4)),
            "self_bleu": lambda: self_bleu(said, self.hypotheses, self.references),
            "duplicates": lambda: 1 - len({tuple(text) for text in said}) / len(said)}
        return values | {name: reason or value() for name, value in counted.items()}


def entropy(said: Sequence[str]) -> float:
    """Of the words inside one text, nats; 0 for an empty text."""
    return -sum(count / len(said) * math.log(count / len(said)) for count in Counter(said).values())


def distinct(said: list[list[str]], n: int) -> float:
    """Different n-grams / all n-grams; 0 when there are none, for texts without n-grams have no variety."""
    all_runs = [run for text in said for run in ngrams(text, n)]
    return len(set(all_runs)) / len(all_runs) if all_runs else 0.0


def self_bleu(said: list[list[str]], hypotheses: int, references: int) -> float:
    """Corpus BLEU-4 of some texts, each against the `references` texts that follow it in a fixed random order; 0..1."""
    texts = [" ".join(text) for text in said]
    random.Random(0).shuffle(texts)
    references = min(references, len(texts) - 1)
    if references < 1:
        return 0.0
    hypotheses = min(hypotheses, len(texts))
    streams = [[texts[(row + shift) % len(texts)] for row in range(hypotheses)] for shift in range(1, references + 1)]
    return BLEU(tokenize="none", force=True).corpus_score(texts[:hypotheses], streams).score / 100
