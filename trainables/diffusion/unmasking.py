"""The stepper of masked diffusion: which hidden positions are written in a step, and with what.

    Ancestral(temperature, top_k, top_p, order)

    at each hidden position      P(written now) = sum_v p_v r_v          r_v = process.reveal(t, s): the process decides
    where something is written   word ~ p_v r_v, p sharpened by temperature, top-k and top-p

Temperature and its like are about words and never about when they are written: applied to the mixture of writing and
staying hidden, as DiffusionBERT does, a temperature of .1 leaves everything hidden until the last step and then writes
it at once.  So at any temperature the share that is hidden at t is the process's.

As published (arXiv 2211.15029's code) it is that mixture all the same, an option to measure what it does:

    word v ~ b a p_v,   stays hidden ~ 1 - a (1 - p_mask)        a = keep(s), b the schedule's rate, whatever the word's

sharpened as a whole, the model's p_mask included where it has learned to say the mask (D3pm), so masks may be left.

order "random" writes where the dice fall; "confidence" writes as many positions of a text, the ones whose drawn words
the model is surest of.  Draws are in float64: float32's Gumbel noise is a lower temperature in disguise (2409.02908).

Shapes: x [B, L] ids, log_p [B, L, V] log p(x_0).  A position whose log_p is exactly 0 for a word is known (a visible
token, a place that the layout fixes) and is written at once.  What a model gives to the mask itself does not count.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from trainables.config import config
from trainables.diffusion.absorbing import PUBLISHED_CAP, Absorbing
from trainables.randomness import Rng


@config
class Ancestral:
    """Draws of p(x_s | x_t); `top_k` 0 and `top_p` 1 leave all words, temperature 0 takes the likeliest."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    order: Literal["random", "confidence"] = "random"
    as_published: bool = False

    remembers: ClassVar[int] = 0

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be a number of words, or 0 for all, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is a share in (0, 1], not {self.top_p}")
        if self.as_published and self.order != "random":
            raise ValueError("as_published knows no order of confidence: order must be 'random'")

    def step(self, process: Absorbing, x: Tensor, log_p: Tensor, t: Tensor, s: Tensor, mask: int, rng: Rng,
             weights: Tensor | None = None) -> Tensor:
        """x_s from x_t, both [B, L].   log_p [B, L, V], as normalised as guidance leaves it; weights [V], or as
        published [B, L], of the word that is likeliest at each place"""
        dice = rng.uniform((*x.shape, 3)).double()
        best, word = log_p.max(-1)
        known = best == 0
        x = torch.where((x == mask) & known, word, x)
        rows, places = (x == mask).nonzero(as_tuple=True)                                # n positions
        hidden = rows, places
        if not len(hidden[0]):
            return x
        late, early = (time.expand(x.shape)[hidden][:, None] for time in (t, s))
        turn, coarse, fine = dice[hidden].unbind(-1)
        pick = coarse + fine * 2.0 ** -24                                                # two float32 make a float64
        if self.as_published:
            both = mixture(process, log_p[hidden].double(), late, early, mask,
                           None if weights is None else weights[hidden][:, None])
            x = x.clone()
            x[hidden] = self.draw(both, torch.ones_like(late), pick)
            return x
        rates = process.reveal(late, early, weights)                                     # [n, 1] or [n, V]
        chance = rates.squeeze(1) if rates.shape[1] == 1 else \
            (substituted(log_p[hidden], mask).exp() * rates).sum(-1)
        written = turn < torch.where((early <= 0).squeeze(1), 2.0, chance)               # at 0 nothing stays hidden
        if self.order == "random":                                                       # the others need no word
            hidden = hidden[0][written], hidden[1][written]
            pick, rates = pick[written], rates[written]
        some = substituted(log_p[hidden], mask)                                          # [n, V]
        words = self.draw(some, rates, pick)
        if self.order == "confidence":
            sure = some.gather(1, words[:, None]).squeeze(1)
            written = most_sure(x.shape, hidden, written, sure)
            hidden, words = (hidden[0][written], hidden[1][written]), words[written]
        x = x.clone()
        x[hidden] = words
        return x

    def draw(self, log_p: Tensor, rates: Tensor, uniform: Tensor) -> Tensor:
        """Words [n] from p_v r_v, p being log_p [n, V] made sharper; uniform [n] decides."""
        if self.temperature == 0:
            return (log_p + rates.clamp(min=1e-300).log()).argmax(-1)
        share = (self.sharper(log_p) + rates.clamp(min=1e-300).log()).softmax(-1)
        below = share.cumsum(-1)
        words = torch.searchsorted(below, (uniform * below[:, -1])[:, None], right=True).squeeze(1)
        return torch.minimum(words, share.shape[-1] - 1 - (share.flip(-1) > 0).int().argmax(-1))

    def sharper(self, log_p: Tensor) -> Tensor:
        """log_p [n, V] by temperature, top-k and top-p; what they leave out is -inf."""
        log_p = (log_p / self.temperature).log_softmax(-1)
        if self.top_k:
            least = log_p.topk(min(self.top_k, log_p.shape[-1])).values[:, -1:]
            log_p = log_p.masked_fill(log_p < least, -torch.inf)
        if self.top_p < 1:
            fall, order = log_p.softmax(-1).sort(-1, descending=True)
            beyond = fall.cumsum(-1) - fall >= self.top_p                                # the first always stays
            log_p = log_p.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
        return log_p


def substituted(log_p: Tensor, mask: int) -> Tensor:
    """log p [n, V] float64 with the mask no answer."""
    no_answer = torch.arange(log_p.shape[-1], device=log_p.device) == mask
    return log_p.double().masked_fill(no_answer, -torch.inf).log_softmax(-1)


def mixture(process: Absorbing, log_p: Tensor, t: Tensor, s: Tensor, mask: int, weights: Tensor | None) -> Tensor:
    """ln P [n, V] of writing each word now, and, at the mask's place, of staying hidden: as published.

    log_p [n, V] float64, with the mask among its words or not; t, s and weights [n, 1]
    """
    log_p = log_p.log_softmax(-1)
    a, b = process.keep(s, weights, PUBLISHED_CAP), process.base_reveal(t, s)
    stay = 1 - a * (1 - log_p[:, mask:mask + 1].exp())
    both = (a * b).log() + log_p
    both[:, mask:mask + 1] = stay.clamp(min=1e-300).log()
    return both.log_softmax(-1)


def most_sure(shape: torch.Size, hidden: tuple[Tensor, Tensor], written: Tensor, sure: Tensor) -> Tensor:
    """As many per row as `written` [n] says, but the surest.   sure [n]: log p of the drawn words; -> [n] bool"""
    count = torch.zeros(shape[0], dtype=torch.long, device=sure.device).index_add(0, hidden[0], written.long())
    score = torch.full(shape, -torch.inf, dtype=sure.dtype, device=sure.device)
    score[hidden] = sure
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank[hidden] < count[hidden[0]]
