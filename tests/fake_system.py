"""A system whose denoiser is exact, so that what is left is the sampler's own error.

    Oracle(process, constant(1.0))       the guess is always the same
    Oracle(process, mixture)             one feature, three narrow modes: the guess is E[x_0 | x_t]
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.diffusion.gaussian import Gaussian
from trainables.randomness import Rng
from trainables.system import Batch, Prediction, Walk

Guess = Callable[[Gaussian, Tensor, Tensor], Tensor]           # (process, x_t [B, L, 1], t) -> x0_hat [B, L, 1]

MODES = torch.tensor([-1.5, 0.3, 1.0], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
WIDTH = 0.1


class Oracle:
    """A system over [B, L, 1] states that writes down every look at one."""

    def __init__(self, process: Gaussian, guess: Guess):
        self.process, self.guess = process, guess
        self.looks: list[tuple[Tensor, Tensor, Prediction | None, Batch | None, Prediction]] = []

    def times(self, grid: Any, steps: int) -> Tensor:
        return grid.times(self.process.schedule, steps)

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        return self.process.prior((*shape, 1), rng)

    def denoise(self, x_t: Tensor, t: Tensor, *, previous: Prediction | None, batch: Batch | None = None) -> Prediction:
        guess = self.guess(self.process, x_t, t).to(x_t.dtype)
        if batch is not None and batch.source is not None:
            guess = guess + batch.source.ids[..., None]            # what is read moves the guess
        hat = Prediction(guess, logits=2 * guess)
        self.looks.append((x_t, t, previous, batch, hat))
        return hat

    def reverse(self, x_t: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        return walk.stepper.step(self.process, x_t, hat, t, s, walk)

    def decode(self, x: Tensor, hat: Prediction, batch: Batch | None = None, rng: Rng | None = None) -> list[str]:
        return [" ".join(f"{value:.2f}" for value in row) for row in x[..., 0].tolist()]

    def loss(self, batch: Batch, progress: float, rng: Rng) -> Mapping[str, Tensor]:
        return {"loss": torch.zeros(())}


def constant(value: float) -> Guess:
    return lambda process, x_t, t: torch.full_like(x_t, value)


def normal(variance: float) -> Guess:
    """E[x_0 | x_t] of N(0, variance) data."""
    def guess(process: Gaussian, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.at(t.double())
        return alpha * variance / (alpha**2 * variance + sigma**2) * x_t

    return guess


def mixture(process: Gaussian, x_t: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t] of data in three modes, each N(mode, WIDTH^2)."""
    alpha, sigma = process.at(t.double())
    variance = alpha**2 * WIDTH**2 + sigma**2
    apart = x_t.double() - alpha * MODES
    weights = (SHARES.log() - apart**2 / (2 * variance)).softmax(-1)
    return (weights * (MODES + alpha * WIDTH**2 / variance * apart)).sum(-1, keepdim=True)


def transport(x: Tensor) -> float:
    """The mean distance that samples x of the mixture would have to move (Wasserstein-1)."""
    grid = torch.linspace(-2.5, 2.0, 20_001, dtype=torch.float64)
    reached = (SHARES * torch.special.ndtr((grid[:, None] - MODES) / WIDTH)).sum(-1)
    ordered = x.double().flatten().sort().values
    even = (torch.arange(len(ordered), dtype=torch.float64) + 0.5) / len(ordered)
    return float((ordered - grid[torch.searchsorted(reached, even)]).abs().mean())
