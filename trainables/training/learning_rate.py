"""Learning rates by step: a linear warm-up to the peak, then a shape.

    peak            ________________            Constant:  stays there
                   /                \\           Linear:    a straight line to `end`, reached after the last step
    start * peak  /                  \\          Cosine:    half a cosine to `end`
                  0   warmup          steps

Rates are shares of the optimizer's `lr`, so that tuning `lr` moves the whole curve.  Steps count from 0: the rate of
the first step is `start * lr`.

    TEncDM   Constant(warmup=5_000, start=5e-5)      1e-8 -> 2e-4, and stays        arXiv 2402.19097
    LD4LG    Cosine(warmup=1_000)                    0 -> 2e-4 -> 0                 arXiv 2212.09462
"""

import math

from trainables.config import config


@config
class Constant:
    """Warm-up over `warmup` steps from `start` (a share of the peak), then the peak for good."""

    warmup: int = 0
    start: float = 0.0

    def __post_init__(self):
        _check(self.warmup, self.start)

    def share(self, step: int, steps: int) -> float:
        """The rate of step `step` (0 is the first of `steps`), as a share of the peak."""
        return _rise(step, self.warmup, self.start) if step < self.warmup else 1.0


@config
class Linear:
    """Warm-up over `warmup` steps, then a straight line down to `end`; `start` and `end` are shares of the peak."""

    warmup: int = 0
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self):
        _check(self.warmup, self.start, self.end)

    def share(self, step: int, steps: int) -> float:
        """The rate of step `step` (0 is the first of `steps`), as a share of the peak."""
        if step < self.warmup:
            return _rise(step, self.warmup, self.start)
        return 1.0 - (1.0 - self.end) * _passed(step, self.warmup, steps)


@config
class Cosine:
    """Warm-up over `warmup` steps, then half a cosine down to `end`; `start` and `end` are shares of the peak."""

    warmup: int = 0
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self):
        _check(self.warmup, self.start, self.end)

    def share(self, step: int, steps: int) -> float:
        """The rate of step `step` (0 is the first of `steps`), as a share of the peak."""
        if step < self.warmup:
            return _rise(step, self.warmup, self.start)
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * _passed(step, self.warmup, steps))) / 2


Schedule = Constant | Linear | Cosine


def _rise(step: int, warmup: int, start: float) -> float:
    return start + (1.0 - start) * step / warmup


def _passed(step: int, warmup: int, steps: int) -> float:
    """How much of the way from the end of the warm-up to the end of training lies behind, 0 to 1."""
    return min(1.0, (step - warmup) / max(1, steps - warmup))


def _check(warmup: int, *shares: float) -> None:
    if warmup < 0:
        raise ValueError(f"warmup must be a number of steps, 0 or more, not {warmup}")
    for share in shares:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"start and end must be shares of the peak, 0 to 1, not {share}")
