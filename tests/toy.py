"""A model with everything that training must cope with, and examples for it; small enough to train in a blink.

Tied weights, a frozen module with dropout, a buffer, a first guess without gradient (self-conditioning), and a
parameter that only some rows use.
"""

import torch
from torch import Tensor, nn

from trainables.randomness import Rng
from trainables.system import Batch
from trainables.training.average import Ema
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

WORDS, LENGTH, WIDTH = 11, 6, 8


class Rows:
    """`count` texts of random words."""

    def __init__(self, count: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(WORDS, (count, LENGTH), generator=generator)
        self.taken: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        self.taken += indices.tolist()
        return Batch(ids=self.ids[indices], mask=torch.ones(len(indices), LENGTH, dtype=torch.bool))


class Toy(nn.Module):
    """Denoises embeddings; its loss is a mean over rows."""

    def __init__(self, dropout: float = 0.0, seed: int = 0, poison: int = -1):
        super().__init__()
        torch.manual_seed(0)                                   # the "pretrained" part is always the same
        self.language_model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(LENGTH), nn.Dropout(0.5))
        self.language_model.requires_grad_(False)
        torch.manual_seed(seed)
        self.read = nn.Embedding(WORDS, WIDTH)
        self.network = nn.Sequential(
            nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(dropout), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.seldom = nn.Parameter(torch.zeros(WIDTH))
        self.write = nn.Linear(WIDTH, WORDS, bias=False)
        self.write.weight = self.read.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.poison, self.calls = poison, 0

    def loss(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Tensor]:
        x0 = self.language_model(self.read(batch.ids)) * self.scale                     # [B, L, WIDTH]
        x_t = x0 + rng.normal(x0.shape)
        with torch.no_grad():
            guess = self.network(torch.cat([x_t, torch.zeros_like(x_t)], -1))
        first = rng.rows(len(batch)) == 0                          # row 0 of the global batch: only one worker's
        if first.any():
            guess = guess + first[:, None, None] * self.seldom
        logits = self.write(self.network(torch.cat([x_t, guess], -1)))
        rows = nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids, reduction="none").mean(1)
        if self.training:
            self.calls += 1
        bad = self.training and self.calls == self.poison
        return {"loss": rows.mean() * (float("nan") if bad else 1.0), "rows": torch.tensor(float(len(batch)))}


def recipe(**changes: object) -> Training:
    """A short training that exercises everything."""
    return Training(**{"optimizer": AdamW(lr=1e-2), "ema": Ema(decay=0.9), "steps": 20, "batch": 8, "record_every": 4,
                       "validate_every": 5, "save_every": 6, **changes})
