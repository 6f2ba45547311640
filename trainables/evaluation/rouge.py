"""ROUGE: which of a real text's words and word pairs a sample has, where texts are written from sources.

rouge1, rouge2    F measure of shared words, and of shared pairs of neighbours, 0..1, mean over samples
rouge_l           F measure of the longest common run of words, gaps allowed              Lin 2004; torchmetrics

Lower case, letters and digits only, no stemming, as the ROUGE of the papers' code.  Where a source stands in the split
with several texts, a sample is held against each, and the best counts.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from trainables.config import config
from trainables.evaluation.real import Real, references_of
from trainables.stages import Context, Stage

NAMES = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}                       # ours -> the library's


@config
class Rouge:
    """ROUGE-1, ROUGE-2 and ROUGE-L against the real texts of the same source."""

    better: ClassVar[dict[str, str]] = dict.fromkeys(NAMES, "higher")

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return ()

    def score_pairs(self, samples: list[str], sources: Sequence[str], real: Real,
                    context: Context) -> dict[str, float | str]:
        """Of the samples whose source the split knows."""
        known = references_of(samples, sources, real, context)
        if isinstance(known, str):
            return dict.fromkeys(NAMES, known)
        said = measured([text for text, _ in known], [beside for _, beside in known])
        return {name: float(said[f"{theirs}_fmeasure"]) for name, theirs in NAMES.items()}


def rouge2(reference: str, hypothesis: str) -> float:
    """The F measure of shared word pairs, 0..1; 0 where either has none."""
    return float(measured([hypothesis], [[reference]], ("rouge2",))["rouge2_fmeasure"])


def measured(samples: Sequence[str], references: Sequence[Sequence[str]],
             keys: Sequence[str] = tuple(NAMES.values())) -> Mapping[str, Any]:
    """What torchmetrics says of samples, each against its own references: <key>_fmeasure and others, means."""
    return _library()(list(samples), [list(beside) for beside in references], accumulate="best", rouge_keys=tuple(keys))


@functools.cache
def _library() -> Any:
    """The library, imported at its first use: that takes a second."""
    from torchmetrics.functional.text.rouge import rouge_score

    return rouge_score
