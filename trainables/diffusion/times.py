"""Training times: which noise levels a batch is trained on.

    mask [B, L], progress --range--> highest time so far --u in [0, 1), law--> t [B, 1], or [B, L] per token

    Times()                                                       uniform in [1e-5, 1], stratified over the global batch
    Times(range=PolynomialRange(power=2.0))                       annealed: mild noise first, all of it at half-way
    Times(law=InLogSnr(low=-6.0, high=4.0, share=0.5))            half of the times where words hang on their context
    Times(law=Exposure(range=PolynomialRange(power=2.0)))         what that annealing draws in all, in no order

Drawing times where there is something to learn does what a weighted loss does, without the weights and with less
gradient noise: at each t the minimiser of the loss is the same conditional expectation, whatever the density of t.

Stratified means that the N times of a global batch fall one into each N-th of [0, 1): t_i = frac(offset + i k / N) with
one offset for all workers and k, coprime to N, nearest to N / golden ratio.  So the first half of the rows (those that
self-condition), or every second one (those of one worker), are spread over all times as well.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import ConfigError, config
from trainables.diffusion.discrete import Discrete
from trainables.diffusion.ranges import FullRange, PolynomialRange, Range, ceiling, open_levels
from trainables.diffusion.schedules import Schedule
from trainables.randomness import Rng

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


@config
class Exposure:
    """All the times that training under `range` draws, drawn from the first step on in the same shares.

    The control of an annealing: its total without its order.  A range that opens from `start` to 1 shows mild noise
    more often than a uniform t does, for good; what it gains on this law, and only that, it owes to the order.
    """

    range: Range = PolynomialRange()

    def quantile(self, u: Tensor, low: float, high: float, schedule: Schedule | None) -> Tensor:
        reached, times = (knots.to(u.device) for knots in _exposure(self.range, low, high))
        right = torch.searchsorted(reached, u.double().contiguous(), right=True).clamp(1, len(reached) - 1)
        left = right - 1
        share = ((u - reached[left]) / (reached[right] - reached[left]).clamp(min=1e-300)).clamp(max=1)
        return torch.lerp(times[left], times[right], share).to(u.dtype)


MOMENTS = 2**14         # of a training that `Exposure` sums over; more than its draws could tell apart


@functools.cache
def _exposure(annealed: Range, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The distribution function of t over a whole training: its values at some times, and these times, both [K + 1].

    At each moment t is uniform in [low, ceiling], so the mean over moments is a straight line between the ceilings.
    """
    every = [min(high, ceiling(annealed, (moment + 0.5) / MOMENTS)) for moment in range(MOMENTS)]
    ceilings, counts = torch.tensor(every, dtype=torch.float64).unique(return_counts=True)        # rising
    weights = counts / MOMENTS
    times = F.pad(ceilings, (1, 0), value=low)
    below = F.pad(weights.cumsum(0), (1, 0))                          # moments that end at or before each of `times`
    density = F.pad((weights / (ceilings - low)).flip(0).cumsum(0).flip(0), (0, 1))            # of those that go on
    return (below + (times - low) * density).cummax(0).values, times


Law = InTime | InLogSnr | Exposure


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
        if isinstance(self.law, Exposure) and not isinstance(self.range, FullRange):
            raise ValueError(f"an Exposure has its range already, so range must be FullRange(), not {self.range}")
        opens = self.law.range.start if isinstance(self.law, Exposure) else self.ceiling(0.0)
        if opens <= self.low:
            raise ValueError(f"the range opens at {opens}, which is not above low = {self.low}")

    def ceiling(self, progress: float) -> float:
        """The highest time at progress = step / steps."""
        return min(self.high, ceiling(self.range, progress))

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


def check_levels(times: Times, schedule: Schedule) -> None:
    """ConfigError, by its path in a system that has both: the range opens with none of a discrete schedule's levels."""
    if isinstance(schedule, Discrete):
        try:
            open_levels(times.law.range if isinstance(times.law, Exposure) else times.range, 0, 1, schedule.steps)
        except ValueError as error:
            raise ConfigError("process.schedule.steps", str(error)) from None


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
