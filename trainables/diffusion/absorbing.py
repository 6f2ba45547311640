"""The absorbing process: a token is itself until it is hidden behind the mask, and then it stays hidden.

    u(t) = share hidden by the schedule          Mutual: t          CosineSurvival: 1 - cos(...)         0 at 0, 1 at 1
    hidden(t, d) = u - lambda sin(pi u) d        the spindle: a word of weight d > 0 is hidden later, so written earlier
    keep(t, d)   = 1 - hidden(t, d)

    q(x_s | x_t, x_0), s < t:   a visible token stays; a hidden one is revealed with r = 1 - hidden(s) / hidden(t)
    p(x_s | x_t):               P(reveal v) = p_v r_v,   P(stay) = 1 - sum_v p_v r_v            p: the model's guess

The model's guess never says the mask and keeps what is visible (MDLM's substitution, arXiv 2406.07524); so only hidden
positions cost anything, and the bound on -log p(x_0) is a sum over them of

    step(t, s)    -r_x log p_x + (1 - r_x) log((1 - r_x) / (1 - sum_v p_v r_v))          one of T terms
    density(t)    rho_x (-log p_x) - rho_x + sum_v p_v rho_v,    rho = hidden' / hidden   the limit, per unit of time

With r and rho of every word v, not of the true one alone: a bound that gives the model the true word's rate is none.
Without a spindle rho = u'/u for all words, and the density is MDLM's weighted cross-entropy, -log(p_x) / t for Mutual.

`mixture` is D3PM's term as DiffusionBERT computes it (arXiv 2107.03006, 2211.15029): the mask is an answer among
others, and the schedule's own rate stands in for the token's.  With lambda = 0 it bounds too, less tightly; with a
spindle it does not.

The spindle bends the schedule's own clock u, so it is the published one for Mutual and the same for any other, and the
rates are positive everywhere exactly if lambda pi |d| <= 1 for every weight that hides: as published, the sentences' as
well.  How large lambda may be, the words say (text/spindle.py), and it can be given as a share of that (`relative`).
Shapes: t and s [B, 1] or [B, L]; weights d [B, L], or
[n, V] at n hidden positions.  All in float64 but the model's guesses: they are B numbers, or V for a hidden position.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from trainables.config import config
from trainables.randomness import Rng

COSINE_OFFSET = 0.008          # iDDPM's, which DiffusionBERT took over
PUBLISHED_CAP = 0.999          # DiffusionBERT keeps no token with more than this probability, once t > 0

# ---------------------------------------------------------------- schedules: how much is hidden by now


@config
class Mutual:
    """Hidden in proportion to time, which is beta = 1 / (T - t): MDLM's log-linear schedule."""

    def hidden(self, t: Tensor) -> Tensor:
        """u(t), 0 at 0 and 1 at 1."""
        return t

    def slope(self, t: Tensor) -> Tensor:
        """u'(t)"""
        return torch.ones_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """log of visible over hidden, so that a grid may be even in it."""
        return torch.log1p(-t) - torch.log(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr)


@config
class CosineSurvival:
    """keep(t) = c(t) / c(0), c(t) = cos((t + .008) / 1.008 pi / 2): hides little at first."""

    def hidden(self, t: Tensor) -> Tensor:
        """u(t), 0 at 0 and 1 at 1."""
        # 1 - c(t) / c(0) as a product of sines: next to 0 the difference would cancel
        start, angle = _angle(torch.zeros_like(t)), _angle(t)
        share = 2 * torch.sin((angle + start) / 2) * torch.sin((angle - start) / 2) / torch.cos(start)
        return torch.where(t >= 1, 1.0, share)

    def slope(self, t: Tensor) -> Tensor:
        """u'(t)"""
        return torch.sin(_angle(t)) / torch.cos(_angle(torch.zeros_like(t))) * math.pi / 2 / (1 + COSINE_OFFSET)

    def log_snr(self, t: Tensor) -> Tensor:
        """log of visible over hidden, so that a grid may be even in it."""
        return torch.log1p(-self.hidden(t)) - torch.log(self.hidden(t))

    def time(self, log_snr: Tensor) -> Tensor:
        start = _angle(torch.zeros_like(log_snr))
        angle = torch.acos(torch.sigmoid(log_snr) * torch.cos(start))
        return (angle / (math.pi / 2) * (1 + COSINE_OFFSET) - COSINE_OFFSET).clamp(0, 1)


def _angle(t: Tensor) -> Tensor:
    return (t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2


Survival = Mutual | CosineSurvival


# ---------------------------------------------------------------- the process


@config
class Absorbing:
    """A schedule, and the strength of the spindle: `spindle` is lambda, 0 hides all words alike.

    relative: it is the share in [0, 1] of the largest lambda that the words allow, which is valid whatever the words
    """

    schedule: Survival = Mutual()
    spindle: float = 0.0
    relative: bool = False

    def __post_init__(self):
        if self.spindle < 0:
            raise ValueError(f"spindle must be 0 (all words alike) or more, not {self.spindle}")
        if self.relative and self.spindle > 1:
            raise ValueError("a relative spindle is a share in [0, 1] of the largest that the words allow, not "
                             f"{self.spindle}")

    def settled(self, weights: Tensor) -> "Absorbing":
        """The same with lambda itself, for words of these weights.

        ValueError unless it has every word hidden at a positive rate throughout
        """
        largest = max(float(weights.abs().max()), 1e-9)
        limit = 1 / math.pi / largest
        if self.relative:
            return replace(self, spindle=self.spindle * limit, relative=False)
        if self.spindle > limit * (1 + 1e-12):
            raise ValueError(f"spindle {self.spindle} would have some words come back before they are hidden: their "
                             f"weights reach {largest:.3g}, so it may be at most 1 / (pi {largest:.3g}) = {limit:.3g}")
        return self

    # ---------------------------------------------------------------- forwards

    def hidden(self, t: Tensor, weights: Tensor | None = None, cap: float = 1.0) -> Tensor:
        """P(hidden at t), float64; `weights` broadcast against t.   1 - cap: the least of it where t > 0"""
        u = self.schedule.hidden(t.double())
        share = u
        if self.spindle and weights is not None:
            share = torch.where(u >= 1, 1.0, u - self.spindle * torch.sin(math.pi * u) * weights.double())
        return torch.where(t <= 0, 0.0, share.clamp(1 - cap, 1.0))

    def keep(self, t: Tensor, weights: Tensor | None = None, cap: float = 1.0) -> Tensor:
        """P(visible at t), float64."""
        return 1 - self.hidden(t, weights, cap)

    def corrupt(self, ids: Tensor, t: Tensor, mask: int, rng: Rng, weights: Tensor | None = None,
                cap: float = 1.0) -> Tensor:
        """A draw of q(x_t | x_0): ids [B, L] with the mask where a token is hidden.   weights [B, L]"""
        chance = rng.uniform(tuple(ids.shape)).double()                     # one number a token, not one a word
        return torch.where(chance < self.hidden(t, weights, cap), mask, ids)

    # ---------------------------------------------------------------- backwards

    def reveal(self, t: Tensor, s: Tensor, weights: Tensor | None = None) -> Tensor:
        """r: P(visible at s | hidden at t), s <= t; exactly 1 where s = 0 < t.   float64"""
        late, early = self.hidden(t, weights), self.hidden(s, weights)
        return torch.where(late > 0, 1 - early / torch.where(late > 0, late, 1.0), 0.0)

    def rate(self, t: Tensor, weights: Tensor | None = None) -> Tensor:
        """rho: the density of being revealed when time goes down past t, for a hidden token.   float64"""
        late, slope = t.double(), self.schedule.slope(t.double())
        if self.spindle and weights is not None:
            slope = slope * (1 - self.spindle * math.pi * torch.cos(math.pi * self.schedule.hidden(late))
                             * weights.double())
        return slope / self.hidden(t, weights)

    def base_reveal(self, t: Tensor, s: Tensor) -> Tensor:
        """b: P(hidden at t | visible at s) by the schedule alone, which `mixture` takes for every token's."""
        keep = self.keep(s)
        return (self.hidden(t) - self.hidden(s)) / keep


# ---------------------------------------------------------------- terms of the bound, at hidden positions


def step_term(log_p: Tensor, words: Tensor, r: Tensor) -> Tensor:
    """Nats [n] of one step at n hidden positions that are `words` [n].

    log_p [n, V] normalised, without the mask; r [n, 1] where all words have one rate, or [n, V].
    """
    said = -_of(log_p, words)
    if r.shape[-1] == 1:
        return r[:, 0].to(said.dtype) * said
    r_x = _of(r, words)
    stay = ((1 - r) * log_p.double().exp()).sum(-1)                           # 1 - sum_v p_v r_v, without cancelling
    return r_x * said + torch.special.xlogy(1 - r_x, 1 - r_x) - (1 - r_x) * stay.clamp(min=1e-300).log()


def density_term(log_p: Tensor, words: Tensor, rho: Tensor) -> Tensor:
    """Nats per unit of time [n], the limit of many steps; rho [n, 1] or [n, V]."""
    said = -_of(log_p, words)
    if rho.shape[-1] == 1:
        return rho[:, 0].to(said.dtype) * said
    rho_x = _of(rho, words)
    return rho_x * said - rho_x + (rho * log_p.double().exp()).sum(-1)


def mixture_term(log_p: Tensor, words: Tensor, mask: int, a: Tensor, b: Tensor) -> Tensor:
    """D3PM's term [n]: KL of the exact mixture of reveal and stay and the model's; where s = 0, cross-entropy.

    log_p [n, V] with the mask among its words; a [n] = keep(s) of the token, b [n] = base_reveal(t, s).
    """
    p_mask = _of(log_p, torch.full_like(words, mask)).double().exp()
    stay = (1 - a) + a * p_mask
    total = b * a * (1 - p_mask) + stay
    r = b * a / (b * a + 1 - a)
    log_reveal = (b * a).log() + _of(log_p, words).double() - total.log()
    log_stay = stay.clamp(min=1e-300).log() - total.log()
    return (torch.special.xlogy(r, r) - r * log_reveal + torch.special.xlogy(1 - r, 1 - r) - (1 - r) * log_stay
            ).clamp(min=0)


def _of(values: Tensor, words: Tensor) -> Tensor:
    """values [n, V] at words [n] -> [n]"""
    return values.gather(1, words[:, None]).squeeze(1)
