"""The Gaussian process: x_t = alpha x_0 + sigma noise, and the one formula that walks it backwards.

    words' encodings x_0 --corrupt--> x_t --network--> output --to_x0--> x0_hat --reverse--> x_s, s < t

    span = log SNR(s) - log SNR(t)
    keep = sigma_s / sigma_t  sqrt(1 - eta^2 (1 - exp(-span)))
    x_s  = keep x_t  +  (alpha_s - keep alpha_t) x0_hat  +  eta sigma_s sqrt(1 - exp(-span)) z

carries four systems: VP and VE alike, eta = 1 the exact posterior q(x_s | x_t, x_0) (DDPM), eta = 0 DDIM.  It is the
usual r = alpha_t / alpha_s form, written with log-SNRs so that nothing cancels when t is close to s, to 0 or to 1.

t = 0 is clean text for every process, also where the schedule's own limit is not quite clean (sqrt's is 1 % noise,
Karras' is sigma = low): a prompt is a place where t = 0, and the last step to 0 returns the guess.  Stepping from t to
t changes nothing.

Shapes: x [B, L, D]; t and s [B, 1] or [B, L]; what comes from times has a trailing axis: [B, 1, 1] or [B, L, 1].
Coefficients are computed in float64 (they are B numbers) and cast to the state's dtype.
"""

from typing import Literal

import torch
from torch import Tensor

from trainables.config import config
from trainables.diffusion.schedules import Schedule, Tangent
from trainables.randomness import Rng


@config
class Gaussian:
    """A schedule, and what the network is asked for: the data, the noise, or v = alpha noise - sigma x_0."""

    schedule: Schedule = Tangent()
    predicts: Literal["x0", "v", "noise"] = "x0"

    # ---------------------------------------------------------------- forwards

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) [B, 1 or L, 1] in t's dtype; exactly (1, 0) where t = 0."""
        alpha, sigma = self.schedule.at(t)
        clean = t <= 0
        return alpha.masked_fill(clean, 1)[..., None], sigma.masked_fill(clean, 0)[..., None]

    def log_snr(self, t: Tensor) -> Tensor:
        """[B, 1 or L, 1], in t's dtype; infinite where t = 0."""
        return self.schedule.log_snr(t).masked_fill(t <= 0, torch.inf)[..., None]

    def span(self, t: Tensor, s: Tensor) -> Tensor:
        """log SNR(s) - log SNR(t) >= 0, [B, 1 or L, 1] float64; 0 where t = s, at the infinite ends too."""
        early, late = self.log_snr(s.double()), self.log_snr(t.double())
        return torch.where(early == late, 0.0, early - late)

    def prior(self, shape: tuple[int, ...], rng: Rng) -> Tensor:
        """x_1 [B, L, D], where sampling starts: noise alone, the data's share of x_1 being lost in it."""
        noise = rng.normal(shape)
        return noise * float(self.schedule.at(torch.ones((), dtype=torch.float64))[1])

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """A draw of q(x_t | x_0), and the noise in it."""
        alpha, sigma = self.at(t)
        noise = rng.normal(x0.shape).to(x0.dtype)
        return alpha.to(x0.dtype) * x0 + sigma.to(x0.dtype) * noise, noise

    # ---------------------------------------------------------------- what the network is asked for

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should output."""
        if self.predicts == "x0":
            return x0
        if self.predicts == "noise":
            return noise
        alpha, sigma = self.at(t)
        return alpha * noise - sigma * x0

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The guess of x_0 that the network's output amounts to; the inverse of `target`."""
        if self.predicts == "x0":
            return output
        alpha, sigma = self.at(t)
        if self.predicts == "noise":
            return (x_t - sigma * output) / alpha.clamp(min=1e-8)
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)

    def noise(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise that x_t holds if x_0 is x0; nothing where t = 0."""
        alpha, sigma = self.at(t)
        return torch.where(sigma > 0, (x_t - alpha * x0) / torch.where(sigma > 0, sigma, 1.0), 0.0)

    # ---------------------------------------------------------------- backwards

    def posterior(self, x_t: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mean [B, L, D] and standard deviation [B, 1 or L, 1] of x_s; eta in [0, 1] scales the fresh noise."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.at(t.double()), self.at(s.double())
        renewed = -torch.expm1(-self.span(t, s))                                   # 1 - SNR(t) / SNR(s)
        ratio = torch.where(sigma_t > sigma_s, sigma_s / sigma_t, 1.0)             # 1 where t = s, 0 / 0 included
        keep = ratio * (1 - eta**2 * renewed).clamp(min=0).sqrt()
        mean = keep.to(x_t.dtype) * x_t + (alpha_s - keep * alpha_t).to(x_t.dtype) * x0_hat
        return mean, (eta * sigma_s * renewed.sqrt()).to(x_t.dtype)

    def reverse(self, x_t: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, rng: Rng, eta: float = 1.0) -> Tensor:
        """A draw of p(x_s | x_t, x0_hat) for s <= t.  eta = 1: posterior (DDPM); eta = 0: DDIM, which draws nothing."""
        mean, deviation = self.posterior(x_t, x0_hat, t, s, eta)
        return mean if eta == 0 else mean + deviation * rng.normal(mean.shape).to(mean.dtype)
