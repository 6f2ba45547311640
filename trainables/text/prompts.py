"""Prompts: which tokens of a training document are given, and so never noised.

    NoPrompts()          nothing is given
    Spans()              the score LM: a span of uniform length anywhere, half of the time scattered over the document
    Prefixes()           CDCD: the beginning, or tokens anywhere; sometimes nothing      arXiv 2211.15089

A given token has noise 0 and no loss.  Each document of a row has its own prompt, and at least one token is never
given.   n = tokens of a document, s = given ones ~ U{0..n-1}
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.config import ConfigError, config
from trainables.randomness import Rng


@config
class NoPrompts:
    """Unconditional training."""

    def share(self) -> float:
        """Share of documents that have a prompt."""
        return 0.0

    def draw(self, place: Tensor, size: Tensor, document: Tensor, rng: Rng) -> Tensor:
        """given [B, L] bool; see Spans."""
        return torch.zeros_like(place, dtype=torch.bool)


@config
class Spans:
    """s tokens in one piece, which starts anywhere; or, `scattered` of the time, s tokens anywhere."""

    prompted: float = 1.0                 # share of documents that have a prompt
    scattered: float = 0.5

    def __post_init__(self):
        _shares(prompted=self.prompted, scattered=self.scattered)

    def share(self) -> float:
        """Share of documents that have a prompt."""
        return self.prompted

    def draw(self, place: Tensor, size: Tensor, document: Tensor, rng: Rng) -> Tensor:
        """given [B, L] bool.  place, size: each token's place in its document and that document's length, int64, with
        size 0 for what is no text; document: its number in the row [B, L]."""
        given, start = _drawn(place, size, document, rng)
        rank = _rank(place, size, document, rng)
        u = _of_document(document, rng)
        place = torch.where(_of_document(document, rng) < self.scattered, rank, place - start)
        return (place >= 0) & (place < given) & (u < self.prompted)


@config
class Prefixes:
    """The first s tokens; or, `scattered` of the time, s tokens anywhere."""

    prompted: float = 0.9
    scattered: float = 0.5

    def __post_init__(self):
        _shares(prompted=self.prompted, scattered=self.scattered)

    def share(self) -> float:
        """Share of documents that have a prompt."""
        return self.prompted

    def draw(self, place: Tensor, size: Tensor, document: Tensor, rng: Rng) -> Tensor:
        """given [B, L] bool; see Spans."""
        given, _ = _drawn(place, size, document, rng)
        rank = _rank(place, size, document, rng)
        u = _of_document(document, rng)
        place = torch.where(_of_document(document, rng) < self.scattered, rank, place)
        return (place < given) & (u < self.prompted)


Prompts = NoPrompts | Spans | Prefixes


def filled(start: list[int], parts: Sequence[Sequence[int]], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """A sampler's prompt: ids [length] of these parts with one place to be written between two of them, and which are
    given [length] bool.   ConfigError: no place is left for an end"""
    row: list[int | None] = [*start]
    for number, part in enumerate(parts):
        row += [*([None] if number else []), *part]
    if len(row) >= length:
        raise ConfigError("--prompt", f"is too long: texts have {length} tokens, one of them the end")
    ids, given = torch.full((length,), pad), torch.zeros(length, dtype=torch.bool)
    for place, i in enumerate(row):
        if i is not None:
            ids[place], given[place] = i, True
    return ids, given


def _shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share in [0, 1], not {share}")


def _of_document(document: Tensor, rng: Rng) -> Tensor:
    """A uniform [B, L] that all tokens of a document share."""
    return rng.uniform(document.shape).gather(1, document)


def _drawn(place: Tensor, size: Tensor, document: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """s ~ U{0..n-1} and start ~ U{0..n-s}, for each token's document.   [B, L] int64"""
    given = (_of_document(document, rng) * size).long()
    return given, (_of_document(document, rng) * (size - given + 1)).long()


def _rank(place: Tensor, size: Tensor, document: Tensor, rng: Rng) -> Tensor:
    """Each token's place in its document, shuffled.   [B, L] int64"""
    key = document + rng.uniform(place.shape)
    key = torch.where(size > 0, key, key.shape[1] + 1.0)                           # what is no text comes last
    order = key.argsort(1).argsort(1)
    first = torch.full_like(order, order.shape[1]).scatter_reduce(1, document, torch.where(
        size > 0, order, order.shape[1]), "amin")
    return torch.where(size > 0, order - first.gather(1, document), 0)
