"""Training times: which noise levels a batch is trained on.

    mask [B, L], progress --range--> highest time so far --u in [0, 1), law--> t [B, 1], or [B, L] per token

    Times()                                                       uniform in [1e-5, 1], stratified over the global batch
    Times(range=PolynomialRange(power=2.0))                       annealed: mild noise first, all of it at half-way
    Times(law=InLogSnr(low=-6.0, high=4.0, share=0.5))            half of the times where words hang on their context

Drawing times where there is something to learn does what a weighted loss does, without the weights and with less
gradient noise: at each t the minimiser of the loss is the same conditional expectation, whatever the density of t.

Stratified means that the N times of a global batch fall one into each N-th of [0, 1): t_i = frac(offset + i k / N) with
one offset for all workers and k, coprime to N, nearest to N / golden ratio.  So the first half of the rows (those that
self-condition), or every second one (those of one worker), are spread over all times as well.
"""

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from trainables.config import config
from trainables.diffusion.schedules import Schedule
from trainables.randomness import Rng

# ---------------------------------------------------------------- the range: how high may t be by now


def _check_range(start: float, until: float) -> None:
    if not 0 < start <= 1:
        raise ValueError(f"start must be in (0, 1], not {start}")
    if not 0 < until <= 1:
        raise ValueError(f"until must be in (0, 1], not {until}")


class Annealed(Protocol):
    """A range that opens from `start` to all of time while progress goes from 0 to `until`."""

    @property
    def start(self) -> float: ...
    @property
    def until(self) -> float: ...

    def opened(self, u: float) -> float:
        """The share of [start, 1] that is open at u = progress / until; 0 at u = 0, 1 once u > 1."""
        ...


@config
class FullRange:
    """All of time from the first step."""

    start: ClassVar[float] = 1.0
    until: ClassVar[float] = 1.0

    def opened(self, u: float) -> float:
        return 1.0


@config
class LinearRange:
    start: float = 0.2
    until: float = 0.5

    def __post_init__(self):
        _check_range(self.start, self.until)

    def opened(self, u: float) -> float:
        return min(u, 1.0)


@config
class PolynomialRange:
    """u^power: the larger the power (any positive real), the longer it stays with mild noise."""

    start: float = 0.2
    until: float = 0.5
    power: float = 2.0

    def __post_init__(self):
        _check_range(self.start, self.until)
        if self.power <= 0:
            raise ValueError(f"power must be positive, not {self.power}")

    def opened(self, u: float) -> float:
        return min(u, 1.0) ** self.power


@config
class CosineRange:
    """sin^2(pi u / 2): slow at both ends."""

    start: float = 0.2
    until: float = 0.5

    def __post_init__(self):
        _check_range(self.start, self.until)

    def opened(self, u: float) -> float:
        return 1 - (1 + math.cos(math.pi * min(u, 1.0))) / 2        # in the thesis' form, to truncate as it does


@config
class StepwiseRange:
    """`stages` equal stairs, each including its upper end; all of time only past `until`.   The thesis' "unsmooth" """

    start: float = 0.2
    until: float = 0.5
    stages: int = 4

    def __post_init__(self):
        _check_range(self.start, self.until)
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, not {self.stages}")

    def opened(self, u: float) -> float:
        return 1.0 if u > 1 else max(math.ceil(u * self.stages) - 1, 0) / self.stages


Range = FullRange | LinearRange | PolynomialRange | CosineRange | StepwiseRange


def open_levels(range: Annealed, step: int, steps: int, levels: int = 1000) -> int:
    """How many of `levels` discrete noise levels are open at `step` of `steps`, truncated as in the annealing thesis.

    ValueError where the range would be empty at the start (the thesis crashes for fewer than 5 levels).
    """
    first, end = int(levels * range.start), int(steps * range.until)
    if first < 1:
        raise ValueError(f"{levels} levels from {range.start} of them on: none would be open at first")
    u = step / end if end else math.inf
    return int(first + range.opened(u) * (levels - first))


# ---------------------------------------------------------------- the law: where in the range


@config
class InTime:
    """Uniform in t."""

    def quantile(self, u: Tensor, low: float, high: float, schedule: Schedule | None) -> Tensor:
        return low + u * (high - low)


@config
class InLogSnr:
    """A `share` of the draws uniform in log-SNR between `low` and `high` (natural log), the others uniform in t.

    Bounds beyond what the schedule has in [low, high] of time are cut back to that.
    """

    low: float = -6.0
    high: float = 4.0
    share: float = 1.0

    def __post_init__(self):
        if self.high <= self.low:
            raise ValueError(f"high must be above low = {self.low}, not {self.high}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], not {self.share}")

    def quantile(self, u: Tensor, low: float, high: float, schedule: Schedule | None) -> Tensor:
        if schedule is None:
            raise ValueError("times uniform in log-SNR need the schedule: draw(..., schedule=process.schedule)")
        ends = schedule.log_snr(torch.tensor([high, low], dtype=u.dtype, device=u.device))
        first, last = ends.clamp(self.low, self.high)
        informed = schedule.time(first + (u / self.share).clamp(max=1) * (last - first)).clamp(low, high)
        if self.share == 1:
            return informed
        return torch.where(u < self.share, informed, low + (u - self.share) / (1 - self.share) * (high - low))


Law = InTime | InLogSnr


# ---------------------------------------------------------------- the draw


@config
class Times:
    """Training times in [low, high], of which the range opens a part.  `low` is a floor: t = 0 would be no task."""

    law: Law = InTime()
    range: Range = FullRange()
    low: float = 1e-5
    high: float = 1.0
    per_token: bool = False
    stratified: bool = True

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low and high must be 0 <= low < high <= 1, not {self.low} and {self.high}")
        if self.ceiling(0.0) <= self.low:
            raise ValueError(f"the range opens at {self.ceiling(0.0)}, which is not above low = {self.low}")

    def ceiling(self, progress: float) -> float:
        """The highest time at progress = step / steps."""
        start = self.range.start
        return min(self.high, start + self.range.opened(progress / self.range.until) * (1 - start))

    def draw(self, mask: Tensor, progress: float, rng: Rng, schedule: Schedule | None = None) -> Tensor:
        """t for a batch with mask [B, L]: [B, 1], or [B, L] per token; float32, on the generator's device."""
        rows, columns = mask.shape[0], mask.shape[1] if self.per_token else 1
        u = stratified(rows, columns, rng) if self.stratified else rng.uniform((rows, columns)).double()
        high = self.ceiling(progress)
        return self.law.quantile(u, self.low, high, schedule).float()

    def quantiles(self, count: int, schedule: Schedule | None = None) -> Tensor:
        """`count` times [count] float32, even in probability over the whole range, both ends included."""
        u = torch.linspace(0, 1, count, dtype=torch.float64)
        return self.law.quantile(u, self.low, self.high, schedule).float().clamp(self.low, self.high)


def stratified(rows: int, columns: int, rng: Rng) -> Tensor:
    """Uniforms [rows, columns] float64, one in each N-th of [0, 1) over the N = rows x columns of all parts."""
    device = rng.generator.device
    count = rows * rng.parts * columns
    index = rng.rows(rows)[:, None] * columns + torch.arange(columns, device=device)
    # drawn past Rng's dealing of rows: every part must see the same one
    offset = torch.rand((), generator=rng.generator, device=device, dtype=torch.float64)
    return ((index * _stride(count) % count).double() / count + offset) % 1.0


def _stride(count: int) -> int:
    """The integer coprime to `count` that is nearest to count / golden ratio."""
    ideal = round(count * (math.sqrt(5) - 1) / 2)
    return next(near for distance in range(count + 1) for near in (ideal + distance, ideal - distance)
                if near > 0 and math.gcd(near, count) == 1)


def clean_where(given: Tensor | None, t: Tensor) -> Tensor:
    """t with 0 at the prompt's places: [B, 1] without a prompt, [B, L] with one.   given [B, L] bool"""
    return t if given is None else torch.where(given, 0.0, t)
