"""Noise schedules: how much signal is left at time t, said as a log signal-to-noise ratio.

    t in [0, 1], any shape --log_snr--> lambda = ln(alpha^2 / sigma^2)      falls from data (t = 0) to noise (t = 1)
    x_t = alpha x_0 + sigma noise       (alpha, sigma) = schedule.at(t)
    t = schedule.time(lambda)           for grids and draws that are uniform in log-SNR
    g^2 = schedule.beta(t)              the rate at which fresh noise enters, for Euler steps in t

Variance preserving schedules (alpha^2 + sigma^2 = 1) differ in nothing but lambda: alpha^2 = sigmoid(lambda) and
sigma^2 = sigmoid(-lambda), which loses no digits at either end, where sqrt(1 - alpha^2) in float32 is 0 (TEncDM's
tan-9 below t = 3e-5).  Karras' is variance exploding: alpha = 1.  Every method keeps the shape and the dtype of its
argument.  In the formulas below abar is alpha^2, the signal power.

`beta` is -d ln abar / dt where abar is exact, but many schedules destroy the last of the signal at an unbounded rate,
and an Euler step cannot take that: those hold t at BETA_UNTIL inside beta, and there only, as TEncDM does for tan-d.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import config

BETA_UNTIL = 0.95
ROUNDING = 1.2e-7         # float32's relative precision


def preserve_variance(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1."""
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def from_decay(decay: Tensor) -> Tensor:
    """log-SNR where abar = exp(-decay), without forming 1 - abar."""
    return -decay.expm1().log()


def to_decay(log_snr: Tensor) -> Tensor:
    """-ln abar: the inverse of `from_decay`."""
    return torch.logaddexp(torch.zeros_like(log_snr), -log_snr)


def log_cotangent(t: Tensor) -> Tensor:
    """2 ln cot(pi t / 2): the log-SNR of abar = cos^2(pi t / 2).  (abs: float32's pi / 2 is past the zero of cos.)"""
    angle = t * (math.pi / 2)
    return 2 * (angle.cos().abs().log() - angle.sin().log())


def arc_cotangent(log_snr: Tensor) -> Tensor:
    """The inverse of `log_cotangent`."""
    return torch.atan((-log_snr / 2).exp()) * (2 / math.pi)


def positive(**values: float) -> None:
    """Refuse what is not > 0."""
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, not {value}")


@config
class Tangent:
    """tan-d: abar = 1 / (1 + d^2 tan^2(pi t / 2)); larger d, heavier noise.   TEncDM, arXiv 2402.19097

    The shifted cosine with scale 1/d.  Half of the power is gone at t = (2/pi) atan(1/d): .07 for d = 9.
    """

    d: float = 9.0

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        positive(d=self.d)

    def log_snr(self, t: Tensor) -> Tensor:
        return log_cotangent(t) - 2 * math.log(self.d)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return arc_cotangent(log_snr + 2 * math.log(self.d))

    def beta(self, t: Tensor) -> Tensor:
        angle = t.clamp(max=BETA_UNTIL) * (math.pi / 2)
        cos, sin = angle.cos(), angle.sin()
        return math.pi * self.d**2 * sin / (cos * (cos**2 + self.d**2 * sin**2))


@config
class Cosine:
    """abar = cos^2(pi t / 2), SNR times scale^2; `clamp` bounds |log-SNR| before the shift, 0 does not.   LD4LG, 2212.09462"""

    scale: float = 1.0
    clamp: float = 15.0

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        _check_shift(self.scale, self.clamp)

    def log_snr(self, t: Tensor) -> Tensor:
        return _shift(log_cotangent(t), self.scale, self.clamp)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return _unshift(log_snr, self.scale, self.clamp, arc_cotangent)

    def beta(self, t: Tensor) -> Tensor:
        return Tangent(d=1 / self.scale).beta(t)


@config
class SimpleLinear:
    """abar = 1 - t, SNR times scale^2.   LD4LG's "simple_linear" """

    scale: float = 1.0
    clamp: float = 15.0

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        _check_shift(self.scale, self.clamp)

    def log_snr(self, t: Tensor) -> Tensor:
        return _shift((1 - t).log() - t.log(), self.scale, self.clamp)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return _unshift(log_snr, self.scale, self.clamp, lambda raw: (-raw).sigmoid())

    def beta(self, t: Tensor) -> Tensor:
        t = t.clamp(max=BETA_UNTIL)         # sigma^2 / (t (1 - t)), with sigma^2 = t / (t + scale^2 (1 - t))
        return 1 / ((1 - t) * (t + self.scale**2 * (1 - t)))


@config
class Sigmoid:
    """abar = (S(3) - S(6t - 3)) / (S(3) - S(-3)), S the logistic function; SNR times scale^2.   LD4LG's "sigmoid"

    A difference of two logistics is a sinh over two coshs, so abar / (1 - abar) = sinh(3 - 3t) / sinh(3t).
    """

    scale: float = 1.0
    clamp: float = 15.0

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        _check_shift(self.scale, self.clamp)

    def log_snr(self, t: Tensor) -> Tensor:
        return _shift((3 * (1 - t)).sinh().log() - (3 * t).sinh().log(), self.scale, self.clamp)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return _unshift(log_snr, self.scale, self.clamp,
                        lambda raw: torch.atanh(math.sinh(3) / (raw.exp() + math.cosh(3))) / 3)

    def beta(self, t: Tensor) -> Tensor:
        t = t.clamp(max=BETA_UNTIL)
        signal, noise = (3 * (1 - t)).sinh(), (3 * t).sinh()
        # sigma^2 (3 coth(3 - 3t) + 3 coth(3t)), and the two coths add up to sinh 3 / (signal noise)
        return 3 * math.sinh(3) / (signal * (noise + self.scale**2 * signal))


@config
class SquaredDecay:
    """abar = exp(-1e-4 - 10 t^2), SNR times scale^2.   LD4LG's "beta_linear" """

    scale: float = 1.0
    clamp: float = 15.0

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        _check_shift(self.scale, self.clamp)

    def log_snr(self, t: Tensor) -> Tensor:
        return _shift(from_decay(1e-4 + 10 * t**2), self.scale, self.clamp)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return _unshift(log_snr, self.scale, self.clamp, lambda raw: ((to_decay(raw) - 1e-4) / 10).clamp(0, 1).sqrt())

    def beta(self, t: Tensor) -> Tensor:
        signal, noise = (-1e-4 - 10 * t**2).exp(), -(-1e-4 - 10 * t**2).expm1()
        return 20 * t / (noise + self.scale**2 * signal)


@config
class VpLinear:
    """The VP-SDE: beta = low + (high - low) t, abar = exp(-integral).   arXiv 2011.13456; TEncDM calls it "cosine" """

    low: float = 0.1
    high: float = 20.0

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        positive(low=self.low)
        if self.high < self.low:
            raise ValueError(f"high must be at least low = {self.low}, not {self.high}")

    def log_snr(self, t: Tensor) -> Tensor:
        return from_decay((self.high - self.low) / 2 * t**2 + self.low * t)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        decay = to_decay(log_snr)           # the quadratic's root in the form that does not cancel
        return (2 * decay / (self.low + (self.low**2 + 2 * (self.high - self.low) * decay).sqrt())).clamp(max=1)

    def beta(self, t: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * t


@config
class Sqrt:
    """abar = 1 - sqrt(t + 1e-4), so .99 at t = 0 and nothing at t = 1.   Diffusion-LM, arXiv 2205.14217; TEncDM's "sqrt"

    beta is clipped to [0, 1000] as TEncDM has it; at t = 1 that makes it 0.
    """

    preserves_variance: ClassVar[bool] = True

    def log_snr(self, t: Tensor) -> Tensor:
        noise = (t + 1e-4).sqrt().clamp(max=1)
        return (1 - noise).log() - noise.log()

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr).sigmoid() ** 2 - 1e-4).clamp(0, 1)

    def beta(self, t: Tensor) -> Tensor:
        noise = (t + 1e-4).sqrt()
        return (1 / (2 * noise * (1 - noise))).clamp(0, 1000)


@config
class LinearBeta:
    """DDPM's discrete schedule: beta_i = linspace(1e-4, .02) times 1000 / steps.   arXiv 2006.11239; the annealing thesis

    Index i is time (i + 1) / steps and t = 0 is clean data; between two indices beta is constant, so ln abar is linear.
    """

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
    """iDDPM's discrete cosine: betas of cos^2((t + .008) / 1.008 pi / 2), clipped to .999.   arXiv 2102.09672

    Time and index as in LinearBeta.
    """

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


@config
class Karras:
    """Variance exploding: alpha = 1, sigma^(1/rho) rises linearly from `low` to `high`.   arXiv 2206.00364; the score LM

    The signal is never removed, only drowned, so a sampler starts from high * noise.
    """

    low: float = 1.0
    high: float = 10.0
    rho: float = 1.0

    preserves_variance: ClassVar[bool] = False

    def __post_init__(self):
        positive(low=self.low, rho=self.rho)
        if self.high <= self.low:
            raise ValueError(f"high must be above low = {self.low}, not {self.high}")

    def sigma(self, t: Tensor) -> Tensor:
        first, last = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (first + t * (last - first)) ** self.rho

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self.sigma(t).log()

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma(t)

    def time(self, log_snr: Tensor) -> Tensor:
        first, last = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (((-log_snr / (2 * self.rho)).exp() - first) / (last - first)).clamp(0, 1)

    def beta(self, t: Tensor) -> Tensor:
        first, last = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return 2 * self.rho * (last - first) * self.sigma(t) ** (2 - 1 / self.rho)


Schedule = (Tangent | Cosine | SimpleLinear | Sigmoid | SquaredDecay | VpLinear | Sqrt
            | LinearBeta | CosineBeta | Karras)


# ---------------------------------------------------------------- LD4LG's clamp and shift


def _check_shift(scale: float, clamp: float) -> None:
    positive(scale=scale)
    if clamp < 0:
        raise ValueError(f"clamp must be positive, or 0 for none, not {clamp}")


def _shift(raw: Tensor, scale: float, clamp: float) -> Tensor:
    return (raw.clamp(-clamp, clamp) if clamp else raw) + 2 * math.log(scale)


def _unshift(log_snr: Tensor, scale: float, clamp: float, time: Callable[[Tensor], Tensor]) -> Tensor:
    raw = log_snr - 2 * math.log(scale)
    return time(raw.clamp(-clamp, clamp) if clamp else raw)


# ---------------------------------------------------------------- discrete schedules: -ln abar at t = 0, 1/T, ..., 1


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
