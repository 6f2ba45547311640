"""The built-in corpus has an exact judge: its own grammar."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from trainables.config import config
from trainables.evaluation.real import Real, shortage
from trainables.evaluation.words import words
from trainables.stages import Context, Stage
from trainables.text.corpora import Stories
from trainables.text.stories import Oracle


@config
class OracleScores:
    """Real texts score illegal 0, and an oracle_nll a little above the entropy rate.

    illegal          share of texts that the grammar cannot say
    oracle_nll       nats per word under a grammar whose every choice may slip with probability `escape`, so that it
                     is finite and sees how wrong an illegal text is
    total_variation  of the bigrams, 0..1; it depends on the number of texts
    wrong_class      where classes were asked for: share of texts that the grammar cannot say of the class asked for,
                     the illegal ones among them.  Stories that mind no class, of six that are asked alike often: 5/6
    """

    escape: float = 0.01

    better: ClassVar[dict[str, str]] = {"illegal": "lower", "oracle_nll": "lower", "total_variation": "lower"}
    of_classes: ClassVar[dict[str, str]] = {"wrong_class": "lower"}

    def __post_init__(self):
        if not 0 < self.escape < 1:
            raise ValueError(f"escape must be between 0 and 1, not {self.escape}")

    def needs(self, real: Real) -> tuple[Stage, ...]:
        return ()

    def score(self, samples: list[str], real: Real, context: Context) -> dict[str, float | str]:
        if not isinstance(real.data, Stories):
            return dict.fromkeys(self.better, f"{type(real.data).__name__} has no oracle; only Stories has")
        texts = plain(samples)
        slipping = Oracle(escape=self.escape)
        said = sum(max(len(text.split()), 1) for text in texts)
        return {
            "illegal": Oracle().illegal(texts),
            "oracle_nll": float(-np.sum(slipping.log_likelihood([text or "?" for text in texts]))) / said,
            "total_variation": shortage(samples, real, real.count) or Oracle().total_variation(texts[:real.count]),
        }

    def score_classes(self, samples: list[str], classes: Sequence[str], real: Real,
                      context: Context) -> dict[str, float | str]:
        if not isinstance(real.data, Stories):
            return dict.fromkeys(self.of_classes, f"{type(real.data).__name__} has no oracle; only Stories has")
        return {"wrong_class": Oracle().wrong_class(plain(samples), classes)}


def plain(samples: Sequence[str]) -> list[str]:
    """As the grammar spells them: a decoder's own spacing is no mistake."""
    return [" ".join(words(text)) for text in samples]
