"""Discrete schedules, given by betas at T steps, as schedules in continuous time.

Index i is time (i + 1) / T and t = 0 is clean data; between two indices beta is constant, so ln abar is linear there.
So a grid linear in t with N steps visits the indices T - 1, T - 1 - T / N, ..., -1, and any other time is a
level between.
"""

import functools
import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import config
from trainables.diffusion.curves import BETA_UNTIL, from_decay, positive, preserve_variance, to_decay

ROUNDING = 1.2e-7           # float32's relative precision


@config
class LinearBeta:
    """DDPM's: beta_i = linspace(1e-4, .02) times 1000 / steps.   arXiv 2006.11239; the annealing thesis"""

    steps: int = 1000

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        if self.steps <= 20:
            raise ValueError(f"steps must be above 20 (the last beta is 20 / steps), not {self.steps}")

    def log_snr(self, t: Tensor) -> Tensor:
        return from_decay(_interpolate(t, _linear_decay(self.steps, t.device)))

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return _invert(to_decay(log_snr), _linear_decay(self.steps, log_snr.device))

    def beta(self, t: Tensor) -> Tensor:
        return _slope(t, _linear_decay(self.steps, t.device))


@config
class CosineBeta:
    """iDDPM's: the betas of abar ~ cos^2((t + .008) / 1.008 pi / 2), clipped to .999.   arXiv 2102.09672"""

    steps: int = 1000

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        positive(steps=self.steps)

    def log_snr(self, t: Tensor) -> Tensor:
        return from_decay(_interpolate(t, _cosine_decay(self.steps, t.device)))

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return _invert(to_decay(log_snr), _cosine_decay(self.steps, log_snr.device))

    def beta(self, t: Tensor) -> Tensor:
        return _slope(t.clamp(max=BETA_UNTIL), _cosine_decay(self.steps, t.device))


Discrete = LinearBeta | CosineBeta


# ---------------------------------------------------------------- -ln abar at t = 0, 1/T, ..., 1


@functools.cache
def _linear_decay(steps: int, device: torch.device) -> Tensor:
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    return _accumulate(betas).to(device)


@functools.cache
def _cosine_decay(steps: int, device: torch.device) -> Tensor:
    edges = torch.arange(steps + 1, dtype=torch.float64) / steps
    power = ((edges + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return _accumulate((1 - power[1:] / power[:-1]).clamp(max=0.999)).to(device)


def _accumulate(betas: Tensor) -> Tensor:
    return F.pad(-torch.log1p(-betas).cumsum(0), (1, 0))


def _place(t: Tensor, knots: Tensor) -> Tensor:
    """t in knots; a float32 such as (i + 1) / 1000 lies beside its index by rounding only, and is that index."""
    place = (t.double() * (len(knots) - 1)).clamp(0, len(knots) - 1)
    return torch.where((place - place.round()).abs() <= ROUNDING * place, place.round(), place)


def _interpolate(t: Tensor, knots: Tensor) -> Tensor:
    place = _place(t, knots)
    left = place.floor().long().clamp(max=len(knots) - 2)
    return torch.lerp(knots[left], knots[left + 1], place - left).to(t.dtype)


def _invert(decay: Tensor, knots: Tensor) -> Tensor:
    level = decay.double().clamp(max=float(knots[-1]))
    left = torch.searchsorted(knots, level).clamp(1, len(knots) - 1) - 1
    share = (level - knots[left]) / (knots[left + 1] - knots[left])
    return ((left + share) / (len(knots) - 1)).to(decay.dtype)


def _slope(t: Tensor, knots: Tensor) -> Tensor:
    """The rate within t's step; at an index, of the step that ends there, which is the one a sampler takes from it."""
    last = _place(t, knots).ceil().long().clamp(min=1)
    return ((knots[last] - knots[last - 1]) * (len(knots) - 1)).to(t.dtype)
