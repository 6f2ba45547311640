"""Randomness is an argument, made from (seed, step) and nothing else.

    rng = step_rng(seed, step)                       resuming, evaluating in between, another machine: the same noise
    rng = step_rng(seed, step, part=1, parts=4)      rows 1, 5, 9, ... of the global batch: the rows this worker holds
    rng = step_rng(seed, step, whole=500)            the first rows of a batch of 500, however few of them are asked for

A worker (or a micro-batch) draws for the whole global batch and keeps its own rows, so the noise of an example does not
depend on how many workers share the batch.  Rows are dealt like cards, so "the first half of my rows" is this worker's
part of "the first half of the batch".
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


def seed_of(*words: object) -> int:
    """A 63-bit seed from anything that has a name: seed_of(seed, "order", epoch)."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Rng:
    """Draws for the rows `part, part + parts, part + 2 parts, ...` of a global batch."""

    generator: Generator
    part: int = 0
    parts: int = 1
    whole: int = 0                      # rows of the global batch; 0: as many as all parts ask for together

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal; shape[0] counts this part's rows."""
        whole = torch.randn(self._whole(shape), generator=self.generator, device=self.generator.device)
        return self._mine(whole, shape[0])

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform in [0, 1); shape[0] counts this part's rows."""
        whole = torch.rand(self._whole(shape), generator=self.generator, device=self.generator.device)
        return self._mine(whole, shape[0])

    def rows(self, count: int) -> Tensor:
        """The global index of each of this part's rows.   [count] int64"""
        return torch.arange(self.part, count * self.parts, self.parts, device=self.generator.device)

    def leading(self, rows: int, share: float) -> int:
        """How many of this part's `rows` rows are among the first `share` of the global batch: its first ones.

        Counted on the CPU, so that no GPU is asked and waited for."""
        return int((torch.arange(self.part, rows * self.parts, self.parts) < share * rows * self.parts).sum())

    def _whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (max(self.whole, shape[0] * self.parts), *shape[1:])

    def _mine(self, drawn: Tensor, count: int) -> Tensor:
        return drawn[self.part::self.parts][:count]


def step_rng(seed: int, step: int | str, device: torch.device | str = "cpu", part: int = 0, parts: int = 1,
             whole: int = 0) -> Rng:
    """The noise of a training step (or of a named purpose) depends on (seed, step) and nothing else."""
    return Rng(Generator(device).manual_seed(seed_of(seed, step)), part, parts, whole)
