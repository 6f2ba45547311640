"""The bound of a discrete diffusion on -ln p(text), said in units that can be compared.

    texts --system.estimate, `draws` times--> nats given the length  + system.length_cost --> nats of a text

    bound_per_text, _token, _piece, _word    nats; a token is a piece or the end of a text, a word stands between blanks
    bound_perplexity_per_token, ...          their exponentials
    bound_length_per_text                    what of bound_per_text the length cost, where lengths are drawn
    bound_error                              standard error of bound_per_text over texts and draws
    bound_calls, bound_seed                  network calls for each text, and the seed of their noise

Published perplexities mix units: DiffusionBERT's are per word, MDLM's and SEDD's per piece of BERT's, and 110 nats a
sentence are 69 per word but 39 per piece.  And the number of steps is part of the number: fewer steps are another,
mostly looser, bound, and continuous time (steps 0) is one, too.
"""

import math
from collections import Counter
from typing import Protocol

import torch
from torch import Tensor

from trainables.config import config
from trainables.randomness import Rng, step_rng
from trainables.system import Batch
from trainables.training.batches import Batches

ROWS = 64                # of one estimate, so that its noise does not depend on the memory there is


@config
class BoundEstimate:
    """How the bound is estimated: `draws` calls of the network for each of the first `texts` texts of a split.

    steps: of the chain that is bounded, the sampler's; 0: continuous time.
    """

    steps: int = 0
    texts: int = 256
    draws: int = 8
    seed: int = 0

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps must be 0 (continuous time) or more, not {self.steps}")
        for name in ("texts", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


class Bounded(Protocol):
    """A system whose likelihood can be bounded."""

    def estimate(self, batch: Batch, steps: int, rng: Rng) -> Tensor:
        """An unbiased estimate [B] of the bound on -ln p(text | its length), from one call of the network."""
        ...

    def length_cost(self, batch: Batch) -> Tensor:
        """-ln p(length) [B]"""
        ...

    def count(self, batch: Batch) -> dict[str, int]:
        """How many tokens, pieces and words these texts have."""
        ...


@torch.no_grad()
def text_bound(system: Bounded, rows: Batches, cfg: BoundEstimate, device: torch.device) -> dict[str, Tensor]:
    """What the page above names, by name."""
    texts = min(len(rows), cfg.texts)
    nats, cost, numbers = [], [], Counter[str]()
    for first in range(0, texts, ROWS):
        batch = rows.take(torch.arange(first, min(first + ROWS, texts))).to(device)
        rng = step_rng(cfg.seed, f"bound {first}", device)
        nats.append(torch.stack([system.estimate(batch, cfg.steps, rng) for _ in range(cfg.draws)]).mean(0))
        cost.append(system.length_cost(batch))
        numbers.update(system.count(batch))
    whole = torch.cat(nats) + torch.cat(cost)                                               # [texts]
    found = {"bound_per_text": whole.mean(), "bound_length_per_text": torch.cat(cost).mean(),
             "bound_error": whole.std() / math.sqrt(texts) if texts > 1 else torch.zeros(())}
    for unit, number in numbers.items():
        found[f"bound_per_{unit}"] = whole.sum() / max(number, 1)
        found[f"bound_perplexity_per_{unit}"] = found[f"bound_per_{unit}"].exp()
    return found | {"bound_calls": torch.tensor(float(cfg.draws)), "bound_seed": torch.tensor(float(cfg.seed))}
