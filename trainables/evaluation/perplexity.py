"""Perplexity under a large pretrained language model: what the papers report, and easily cheated.

perplexity            mean over texts of exp(nats per token), as LD4LG reports it       arXiv 2212.09462
perplexity_trimmed    the mean of the middle 90 % of texts, as TEncDM's code computes   arXiv 2402.19097

A model that repeats what is likely scores better than real text (one sentence, over and over, has a perplexity of a few
units), so it is read beside `entropy` and `diversity`, and lower than perplexity_real is no praise.
"""

from typing import ClassVar

import numpy as np

from trainables.config import config
from trainables.evaluation.pretrained import nats
from trainables.evaluation.real import Real
from trainables.stages import Context, Stage


@config
class Perplexity:
    """`name`: a causal language model, by hub name or folder.  Texts are cut at `length` tokens."""

    name: str = "gpt2-large"
    length: int = 256

    better: ClassVar[dict[str, str]] = {"perplexity": "lower", "perplexity_trimmed": "lower"}

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length must be positive, not {self.length}")

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return ()

    def score(self, samples: list[str], real: Real, context: Context) -> dict[str, float | str]:
        texts = [text for text in samples if text.strip()]
        if not texts:
            return dict.fromkeys(self.better, "all samples are empty")
        said = nats(self.name, texts, self.length, context.device)
        perplexities = np.sort(np.exp(np.minimum(said.nats / said.tokens, 700.0)))      # e^700 is nearly the largest
        tail = len(perplexities) // 20
        return {"perplexity": float(perplexities.mean()),
                "perplexity_trimmed": float(perplexities[tail:len(perplexities) - tail].mean())}
