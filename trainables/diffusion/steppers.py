"""Steppers: from x_t and the guess of x_0 to x_s, s < t; and the grids of times they walk on.

    Posterior(eta)         the exact formula of gaussian.py: eta = 0 DDIM, eta = 1 DDPM's posterior
    Ddpm(variance)         DDPM with its smaller (posterior) or larger (1 - r, as LD4LG) variance
    EulerMaruyama          Euler on the reverse SDE in t, as TEncDM; biased at few steps, kept for parity
    EulerOde               Euler on the probability-flow ODE in t
    Heun                   DDIM, a second look at its end, and the step again with the mean of both
    DpmPlusPlus2M          second order from the last guess but one, at one look a step   arXiv 2211.01095

Posterior, Ddpm, Heun and DpmPlusPlus2M solve the linear part exactly, so they see noise levels only and do not care how
the schedule spends its time.  The two Euler steppers live in t and need a grid that is even in it.  Whatever the
stepper, a step to 0 returns the guess (0 is clean), and a place where t = s stays as it is.

A stepper is a config with `step(process, x, hat, t, s, walk) -> x_s`; x [B, L, D], t and s [B, 1] or [B, L].  It says
how many guesses before this one it `remembers`: so many of them are in walk.past.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from trainables.config import config
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.schedules import Schedule
from trainables.system import Prediction, Walk

CLOSEST = 1e-5          # the smallest time that TEncDM trains on


@config
class Posterior:
    """q(x_s | x_t, x_0) at the guess, its fresh noise scaled by eta: 0 is DDIM, 1 is DDPM."""

    eta: float = 0.0

    remembers: ClassVar[int] = 0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], not {self.eta}")

    def step(self, process: Gaussian, x: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        return process.reverse(x, hat.x0, t, s, walk.rng, self.eta)


@config
class Ddpm:
    """The posterior's mean; the variance is the posterior's ("small") or that of q(x_t | x_s) ("large")."""

    variance: Literal["small", "large"] = "large"

    remembers: ClassVar[int] = 0

    def step(self, process: Gaussian, x: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        mean, deviation = self.moments(process, x, hat.x0, t, s)
        return mean + deviation * walk.rng.normal(x.shape).to(x.dtype)

    def moments(self, process: Gaussian, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, L, D] and standard deviation [B, 1 or L, 1] of x_s."""
        mean, deviation = process.posterior(x, x0, t, s)
        if self.variance == "large":
            sigma = process.at(t.double())[1]
            large = sigma * (-torch.expm1(-process.span(t, s))).sqrt()
            deviation = large.masked_fill(s[..., None] <= 0, 0.0).to(x.dtype)
        return mean, deviation


@config
class EulerMaruyama:
    """dx = (f x - g^2 score) dt + g dw backwards, f and g taken at t.  The last step of a walk returns its mean."""

    remembers: ClassVar[int] = 0

    def step(self, process: Gaussian, x: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        mean, deviation = self.moments(process, x, hat.x0, t, s)
        return mean if walk.last else mean + deviation * walk.rng.normal(x.shape).to(x.dtype)

    def moments(self, process: Gaussian, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, L, D] and standard deviation [B, 1 or L, 1] of x_s."""
        lapse = (t.double() - s.double())[..., None]
        deviation = (process.schedule.beta(t.double())[..., None] * lapse).sqrt().masked_fill(s[..., None] <= 0, 0.0)
        return _euler(process, x, x0, t, s, churn=1.0), deviation.to(x.dtype)


@config
class EulerOde:
    """dx = (f x - g^2 score / 2) dt backwards, f and g taken at t."""

    remembers: ClassVar[int] = 0

    def step(self, process: Gaussian, x: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        return _euler(process, x, hat.x0, t, s, churn=0.5)


@config
class Heun:
    """Second order from a second look: two network calls a step, one on the step to 0.

    average = "x0" repeats the DDIM step with the mean of both guesses; it holds from pure noise on.  "noise" averages
    the two noises instead: EDM's and the score LM's form, for a process whose alpha is 1.
    """

    average: Literal["x0", "noise"] = "x0"

    remembers: ClassVar[int] = 0

    def step(self, process: Gaussian, x: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        if self.average == "noise" and process.schedule.preserves_variance:
            raise ValueError("Heun(average='noise') needs a variance-exploding schedule (Karras): alpha is 0 at t = 1")
        ahead = process.reverse(x, hat.x0, t, s, walk.rng, eta=0.0)
        if not bool((s > 0).any()):
            return ahead
        again = walk.denoise(ahead, s).x0
        if self.average == "noise":
            fall = (process.at(s)[1] - process.at(t)[1]).to(x.dtype)
            corrected = x + fall * (process.noise(x, hat.x0, t) + process.noise(ahead, again, s)) / 2
        else:
            corrected = process.reverse(x, (hat.x0 + again) / 2, t, s, walk.rng, eta=0.0)
        return torch.where(s[..., None] > 0, corrected, ahead)


@config
class DpmPlusPlus2M:
    """DPM-Solver++(2M): the guess is carried on along log-SNR from the last two, then a DDIM step with that.

    The first step and the step to 0 are of first order.
    """

    remembers: ClassVar[int] = 1

    def step(self, process: Gaussian, x: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        x0 = hat.x0
        if walk.past:
            before, older = walk.past[-1]
            ahead, behind = process.span(t, s), process.span(before, t)
            usable = (behind > 0) & torch.isfinite(ahead)
            slope = torch.where(usable, ahead / (2 * torch.where(usable, behind, 1.0)), 0.0).to(x.dtype)
            x0 = x0 + slope * (x0 - older.x0)
        return process.reverse(x, x0, t, s, walk.rng, eta=0.0)


Stepper = Posterior | Ddpm | EulerMaruyama | EulerOde | Heun | DpmPlusPlus2M


def _euler(process: Gaussian, x: Tensor, x0: Tensor, t: Tensor, s: Tensor, churn: float) -> Tensor:
    """x + (f x - churn g^2 score) (s - t), with score = -(x - alpha x0) / sigma^2; the guess itself where s = 0 < t."""
    late = t.double()
    alpha, sigma = process.at(late)
    rate = process.schedule.beta(late)[..., None]
    shrink = rate / 2 if process.schedule.preserves_variance else torch.zeros_like(rate)
    noisy = sigma > 0
    pull = torch.where(noisy, churn * rate / torch.where(noisy, sigma, 1.0) ** 2, 0.0)
    lapse = s.double()[..., None] - late[..., None]
    keep, take = 1 + lapse * (pull - shrink), -lapse * pull * alpha
    arrives = (s <= 0)[..., None] & noisy
    keep, take = keep.masked_fill(arrives, 0.0), take.masked_fill(arrives, 1.0)
    return keep.to(x.dtype) * x + take.to(x.dtype) * x0


# ---------------------------------------------------------------- grids: 1 = t_0 > t_1 > ... > t_steps


@config
class LinearGrid:
    """Even in t, from 1 to `end` (TEncDM: 0.01)."""

    end: float = 0.0

    def __post_init__(self):
        if not 0 <= self.end < 1:
            raise ValueError(f"end must be in [0, 1), not {self.end}")

    def times(self, schedule: Schedule, steps: int) -> Tensor:
        """[steps + 1] float64, falling."""
        return 1 - torch.arange(steps + 1, dtype=torch.float64) / steps * (1 - self.end)


@config
class LogSnrGrid:
    """Even in log-SNR (natural log) from `low` to `high`, as far as the schedule goes; its ends are times 1 and 0."""

    low: float = -7.0
    high: float = 5.0

    def __post_init__(self):
        if self.high <= self.low:
            raise ValueError(f"high must be above low = {self.low}, not {self.high}")

    def times(self, schedule: Schedule, steps: int) -> Tensor:
        """[steps + 1] float64, falling."""
        # 0 is clean text by definition, so the cleanest level to look at is that of a time just above it
        reach = schedule.log_snr(torch.tensor([1.0, CLOSEST], dtype=torch.float64))
        low, high = reach.clamp(self.low, self.high).tolist()
        inner = schedule.time(torch.linspace(low, high, steps, dtype=torch.float64))
        return torch.cat([torch.ones_like(inner[:1]), inner[1:], torch.zeros_like(inner[:1])])


Grid = LinearGrid | LogSnrGrid
