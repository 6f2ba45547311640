"""How long texts are: P(a text has n tokens | its source has k), as the training texts have it.

    counts [S + 1, L + 1] of (k, n)  --length_law-->  [S + 1, L + 1]  --draw_lengths, at each text's own k-->  [B]

A source of a length that few training texts have says little, so each k's counts are eased towards those of all.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from trainables.randomness import Rng

EASE = 4.0                    # texts' worth of the counts of all lengths, beside those of the same source length
NAME = "lengths.json"


def count_lengths(sources: Tensor, texts: Tensor, most: tuple[int, int]) -> Tensor:
    """How many texts of n tokens have a source of k, [S + 1, L + 1] int64.   sources, texts [N], most: (S, L)"""
    S, L = most
    return torch.bincount(sources * (L + 1) + texts, minlength=(S + 1) * (L + 1)).view(S + 1, L + 1)


def length_law(lengths: Tensor, unseen: float = 1.0) -> Tensor:
    """P(text has n tokens | source has k) [S + 1, L + 1] float64 from the counts.

    unseen: as many texts stand for all lengths from 1 on, so that each is possible; 0: what no training text has, none
    has
    """
    able = torch.ones(lengths.shape[1], dtype=torch.float64)
    able[0] = 0.0
    overall = lengths.double().sum(0) + unseen * able / able.sum()
    eased = lengths.double() + EASE * overall / overall.sum()
    return eased * able / (eased * able).sum(1, keepdim=True)


def draw_lengths(law: Tensor, rng: Rng) -> Tensor:
    """A length [B, 1] from each row of law [B, L + 1]."""
    below = law.cumsum(1)
    return torch.searchsorted(below, rng.uniform((len(law), 1)).double() * below[:, -1:], right=True
                              ).clamp(1, law.shape[1] - 1)


def save_lengths(counts: Tensor, folder: Path) -> None:
    (folder / NAME).write_text(json.dumps(counts.tolist()))


def load_lengths(folder: Path) -> Tensor:
    return torch.tensor(json.loads((folder / NAME).read_text()))
