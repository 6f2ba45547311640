"""BLEU: how close samples are to the real texts of the same source, where texts are written from sources.

bleu    corpus BLEU-4, 0..1: every sample against all real texts of its source       Papineni et al. 2002; sacrebleu

A source may stand in the split many times, once with each of its texts: they are all references.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from sacrebleu.metrics.bleu import BLEU

from trainables.config import config
from trainables.evaluation.real import Real, references_of
from trainables.stages import Context, Stage


@config
class Bleu:
    """Case counts only where `lowercase` is false."""

    lowercase: bool = False

    better: ClassVar[dict[str, str]] = {"bleu": "higher"}

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return ()

    def score_pairs(self, samples: list[str], sources: Sequence[str], real: Real,
                    context: Context) -> dict[str, float | str]:
        """Of the samples whose source the split knows."""
        known = references_of(samples, sources, real, context)
        if isinstance(known, str):
            return {"bleu": known}
        most = max(len(beside) for _, beside in known)
        streams: Any = [[beside[place] if place < len(beside) else None for _, beside in known]
                        for place in range(most)]                        # None: this sample has no further reference
        return {"bleu": BLEU(lowercase=self.lowercase).corpus_score([text for text, _ in known], streams).score / 100}
