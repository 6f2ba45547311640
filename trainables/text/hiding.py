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

    def term(self, log_p: Tensor, words: Tensor, hidden: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
        """The bound's estimate from one time, [n] nats at the n hidden positions of [B, L].   t, s [B, 1]"""
        late, early = at_places(t, hidden)[:, None], None if s is None else at_places(s, hidden)[:, None]
        return bound_term(self.process, log_p, words, late, early, self.weights)

    def mixture(self, log_p: Tensor, ids: Tensor, able: Tensor, hidden: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
        """The same of D3PM's mixture, the mask being among log_p's words.   ids, able, hidden [B, L]"""
        assert s is not None
        weights = self.published_weights(ids, able) if self.published else None
        keep = self.process.keep(s, weights, PUBLISHED_CAP if self.published else 1.0).expand(ids.shape)
        term = mixture_term(log_p, ids[hidden], self.mask, keep[hidden],
                            at_places(self.process.base_reveal(t, s), hidden))
        return term / at_places(t - s, hidden)


def at_places(values: Tensor, which: Tensor) -> Tensor:
    """values [B, 1] at the n true places of [B, L] -> [n]"""
    return values.expand(which.shape)[which]


def shares(which: Tensor) -> Tensor:
    """1 / B for each of the true places of [B, L]: what makes a sum over them a mean over rows."""
    return torch.full((int(which.sum()),), 1.0 / len(which), device=which.device)


def row_sums(which: Tensor, values: Tensor) -> Tensor:
    """The sum [B] over each row of values [n] at the n true places of [B, L]."""
    return torch.zeros(len(which), dtype=torch.float64, device=values.device).index_add(
        0, which.nonzero()[:, 0], values.double())
