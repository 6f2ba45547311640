"""Minimum Bayes risk: of several texts written from one source, the one that the others agree with most.

DiffuSeq's (arXiv 2210.08933) and DiffusionBERT's: the utility of a text is its mean sentence BLEU against the others,
smoothed by NLTK's method 4.  A text is not compared with itself: that would punish texts of two or three words, whose
smoothed BLEU with themselves is below 1.
"""

from collections.abc import Sequence
from typing import Any

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu


def agreed(texts: Sequence[str]) -> str:
    """The text of the highest utility, the first of equals."""
    utilities = [sum(bleu(text, other) for j, other in enumerate(texts) if j != i) for i, text in enumerate(texts)]
    return texts[utilities.index(max(utilities))]


def bleu(reference: str, hypothesis: str) -> float:
    """Sentence BLEU-4 over blank-separated words, smoothed by method 4 (Chen & Cherry 2014); 0..1, 0 for no words."""
    said = hypothesis.split()
    if not said or not reference.split():
        return 0.0
    score: Any = sentence_bleu([reference.split()], said, smoothing_function=SmoothingFunction().method4)
    return float(score)
