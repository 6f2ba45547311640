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

import math
from typing import ClassVar

import torch
from torch import Tensor

from trainables.config import config
from trainables.diffusion.curves import (
    BETA_UNTIL,
    arc_cotangent,
    check_shift,
    from_decay,
    log_cotangent,
    positive,
    preserve_variance,
    shift,
    to_decay,
    unshift,
)
from trainables.diffusion.discrete import CosineBeta, LinearBeta


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
    """abar = cos^2(pi t / 2), SNR times scale^2.   LD4LG, arXiv 2212.09462

    `clamp` bounds the log-SNR on both sides before the shift; 0 does not.
    """

    scale: float = 1.0
    clamp: float = 15.0

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        check_shift(self.scale, self.clamp)

    def log_snr(self, t: Tensor) -> Tensor:
        return shift(log_cotangent(t), self.scale, self.clamp)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return unshift(log_snr, self.scale, self.clamp, arc_cotangent)

    def beta(self, t: Tensor) -> Tensor:
        return Tangent(d=1 / self.scale).beta(t)


@config
class SimpleLinear:
    """abar = 1 - t, SNR times scale^2.   LD4LG's "simple_linear" """

    scale: float = 1.0
    clamp: float = 15.0

    preserves_variance: ClassVar[bool] = True

    def __post_init__(self):
        check_shift(self.scale, self.clamp)

    def log_snr(self, t: Tensor) -> Tensor:
        return shift((1 - t).log() - t.log(), self.scale, self.clamp)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return unshift(log_snr, self.scale, self.clamp, lambda raw: (-raw).sigmoid())

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
        check_shift(self.scale, self.clamp)

    def log_snr(self, t: Tensor) -> Tensor:
        return shift((3 * (1 - t)).sinh().log() - (3 * t).sinh().log(), self.scale, self.clamp)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return unshift(log_snr, self.scale, self.clamp,
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
        check_shift(self.scale, self.clamp)

    def log_snr(self, t: Tensor) -> Tensor:
        return shift(from_decay(1e-4 + 10 * t**2), self.scale, self.clamp)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return preserve_variance(self.log_snr(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return unshift(log_snr, self.scale, self.clamp, lambda raw: ((to_decay(raw) - 1e-4) / 10).clamp(0, 1).sqrt())

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
    """abar = 1 - sqrt(t + 1e-4): .99 at t = 0, nothing at t = 1.   Diffusion-LM, arXiv 2205.14217; TEncDM's "sqrt"

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
class Karras:
    """Variance exploding: alpha = 1, sigma^(1/rho) linear from `low` to `high`.   arXiv 2206.00364; the score LM

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


Schedule = Tangent | Cosine | SimpleLinear | Sigmoid | SquaredDecay | VpLinear | Sqrt | LinearBeta | CosineBeta | Karras
