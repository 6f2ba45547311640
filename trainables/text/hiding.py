"""Hiding: which words of a text disappear, and what bringing them back costs.

    ids [B, L], t  --hide-->  x_t                    the process' chances, a spindle's by the words' information
    log p(x_0) at the n hidden places  --term-->     their share of the bound on -ln p(text), [n] nats
                                       --mixture-->  D3PM's, where the mask is an answer among others

A spindle's weights are the corpus' (word_information.py), so that a sampler, which does not know the sentence, can use
them too.  As published they are centred on each sentence: a way of training, and no bound (diffusion/objectives.py).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.diffusion.absorbing import PUBLISHED_CAP, Absorbing, mixture_term
from trainables.diffusion.objectives import D3pm, Mdlm, bound_term
from trainables.randomness import Rng
from trainables.text.word_information import Measure, sentence_weights


class Hiding(nn.Module):
    """An absorbing process that knows the words, and an objective.   V words of the model

    A module, so that it moves with the system that owns it; it has no parameters and leaves nothing in checkpoints.
    """

    weights: Tensor                    # [V] of the spindle
    value: Tensor                      # [V] what a word tells

    def __init__(self, process: Absorbing, objective: Mdlm | D3pm, measure: Measure, mask: int, vocabulary: int,
                 known: dict[str, Tensor]):
        """known: what a WordInformation stage found; its words may be fewer than `vocabulary`, which may be padded."""
        super().__init__()
        self.process, self.mask = process, mask
        self.measure: Measure = measure
        self.published = isinstance(objective, D3pm) and objective.as_published
        room = (0, vocabulary - len(known["weight"]))
        self.register_buffer("weights", F.pad(known["weight"], room), persistent=False)
        self.register_buffer("value", F.pad(known["value"], room), persistent=False)

    def hide(self, ids: Tensor, able: Tensor, t: Tensor, rng: Rng, published: bool = False) -> Tensor:
        """x_t [B, L]; what is not able to be hidden stays."""
        weights = self.published_weights(ids, able) if published else self.weights[ids]
        x_t = self.process.corrupt(ids, t, self.mask, rng, weights, PUBLISHED_CAP if published else 1.0)
        return torch.where(able, x_t, ids)

    def published_weights(self, ids: Tensor, able: Tensor) -> Tensor:
        """The spindle's weights [B, L] as published: centred on the sentence."""
        return sentence_weights(self.value[ids], able, self.measure)

    def term(self, log_p: Tensor, ids: Tensor, hidden: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
        """The bound's estimate from one time, [n] nats at the n `hidden` places.   ids [B, L], t, s [B, 1]"""
        late = at_rows(t, hidden, ids.shape[1])[:, None]
        early = None if s is None else at_rows(s, hidden, ids.shape[1])[:, None]
        return bound_term(self.process, log_p, at_places(ids, hidden), late, early, self.weights)

    def mixture(self, log_p: Tensor, ids: Tensor, able: Tensor, hidden: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
        """The same of D3PM's mixture, the mask being among log_p's words.   ids, able [B, L]"""
        assert s is not None
        weights, L = self.published_weights(ids, able) if self.published else None, ids.shape[1]
        keep = self.process.keep(s, weights, PUBLISHED_CAP if self.published else 1.0).expand(ids.shape)
        base = at_rows(self.process.base_reveal(t, s), hidden, L)
        term = mixture_term(log_p, at_places(ids, hidden), self.mask, at_places(keep, hidden), base)
        return term / at_rows(t - s, hidden, L)


# ---------------------------------------------------------------- places

# A place is its number in [B, L], counted row by row.  A mask that chooses would make a GPU say how many it chooses,
# and the host wait for the answer, each time; counted once, they are only looked up.


def where(which: Tensor) -> Tensor:
    """The n true places of [B, L], [n] int64.   How many there are, a GPU has to be asked."""
    return which.flatten().nonzero()[:, 0]


def at_places(values: Tensor, where: Tensor) -> Tensor:
    """values [B, L, ...] at n places -> [n, ...]"""
    return values.flatten(0, 1).index_select(0, where)


def at_rows(values: Tensor, where: Tensor, length: int) -> Tensor:
    """values [B, 1] of rows of `length` places, at n places -> [n]"""
    return values[where // length, 0]


def row_sums(where: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """The sum [B] over each row of values [n] at n places of `shape` [B, L]."""
    total = torch.zeros(shape[0], dtype=torch.float64, device=values.device)
    return total.index_add(0, where // shape[1], values.double())
