"""Minimum Bayes risk: of several texts written from one source, the one that the others agree with most.

    bleu      DiffuSeq's (arXiv 2210.08933) and DiffusionBERT's: sentence BLEU, smoothed by NLTK's method 4
    rouge2    LD4LG's (arXiv 2212.09462): the F measure of shared pairs of words         rouge.py

The utility of a text is its mean likeness to the others.  It is not compared with itself: that would punish texts of
two or three words, whose smoothed BLEU with themselves is below 1.
"""

from collections.abc import Sequence
from typing import Any, Literal

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from trainables.evaluation.rouge import rouge2

Likeness = Literal["bleu", "rouge2"]


def agreed(texts: Sequence[str], likeness: Likeness = "bleu") -> str:
    """The text of the highest utility, the first of equals; an only one is that."""
    like = bleu if likeness == "bleu" else rouge2
    utilities = [sum(like(text, other) for j, other in enumerate(texts) if j != i) for i, text in enumerate(texts)]
    return texts[utilities.index(max(utilities))]


def bleu(reference: str, hypothesis: str) -> float:
    """Sentence BLEU-4 over blank-separated words, smoothed by method 4 (Chen & Cherry 2014); 0..1, 0 for no words."""
    said = hypothesis.split()
    if not said or not reference.split():
        return 0.0
    score: Any = sentence_bleu([reference.split()], said, smoothing_function=SmoothingFunction().method4)
    return float(score)
