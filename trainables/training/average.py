"""Averages of the weights: a smoother model for validation and for keeps.

    mean <- mean + (1 - decay_n) (weights - mean)          after step n = 1, 2, ...

    Ema(decay=.9999)        decay_n = min(decay, (1 + n) / (10 + n))                                  TEncDM
    PowerEma(decay=.9999)   decay_n = 0 while n <= 101, then min(decay, 1 - (n - 100) ** -.75)        LD4LG
    NoAverage()             the weights themselves

Only what is trained is averaged: frozen parts are not copied, and nothing but parameters has a mean.  Both kinds
forget where they began, so a short run is not held back by its initial weights.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from trainables.config import config


class Average(Protocol):
    """The running average of some parameters."""

    means: list[Tensor]          # one for each parameter; empty where the parameters are their own average

    def update(self, n: int) -> None:
        """Take in the weights after step n, counted from 1."""
        ...

    def swap(self) -> None:
        """Exchange weights and means; a second swap undoes it."""
        ...


@config
class Ema:
    """Exponential average whose decay rises as (1 + n) / (10 + n) until it reaches `decay`."""

    decay: float = 0.9999

    def __post_init__(self):
        _check_decay(self.decay)

    def decay_at(self, n: int) -> float:
        """The share of the old mean that is kept after step n = 1, 2, ..."""
        return min(self.decay, (1 + n) / (10 + n))

    def build(self, parameters: Sequence[nn.Parameter]) -> Average:
        """The average, starting at the parameters as they are."""
        return _Means(parameters, self.decay_at)


@config
class PowerEma:
    """ema-pytorch's average: copies for `after` + 1 steps, then 1 - (n - after) ** -power until it reaches `decay`."""

    decay: float = 0.9999
    power: float = 0.75
    after: int = 100

    def __post_init__(self):
        _check_decay(self.decay)
        if self.power <= 0:
            raise ValueError(f"power must be positive, not {self.power}")
        if self.after < 0:
            raise ValueError(f"after must be a number of steps, 0 or more, not {self.after}")

    def decay_at(self, n: int) -> float:
        """The share of the old mean that is kept after step n = 1, 2, ..."""
        return min(self.decay, 1.0 - max(1, n - self.after) ** -self.power)

    def build(self, parameters: Sequence[nn.Parameter]) -> Average:
        """The average, starting at the parameters as they are."""
        return _Means(parameters, self.decay_at)


@config
class NoAverage:
    """The newest weights, unaveraged; costs nothing."""

    def build(self, parameters: Sequence[nn.Parameter]) -> Average:
        """An average that is always the parameters themselves."""
        return _Newest()


@contextmanager
def averaged(average: Average) -> Iterator[None]:
    """Inside, the model holds the averaged weights."""
    average.swap()
    try:
        yield
    finally:
        average.swap()


class _Means:
    def __init__(self, parameters: Sequence[nn.Parameter], decay_at: Callable[[int], float]):
        self.parameters: list[Tensor] = list(parameters)
        self.decay_at = decay_at
        self.means = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, n: int) -> None:
        torch._foreach_lerp_(self.means, self.parameters, 1.0 - self.decay_at(n))

    @torch.no_grad()
    def swap(self) -> None:
        # Storage changes hands and nothing is copied; the Parameter objects, which optimizer and DDP hold, stay.
        for i, parameter in enumerate(self.parameters):
            parameter.data, self.means[i] = self.means[i], parameter.data


class _Newest:
    means: list[Tensor] = []

    def update(self, n: int) -> None:
        pass

    def swap(self) -> None:
        pass


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must lie in [0, 1), not {decay}")
