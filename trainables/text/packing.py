"""Packing: which documents share a row.

    documents (60, 10, 20, 30, 5, 55, 34)  --first fit decreasing, capacity 60-->  rows [0] [5 4] [6 2] [3 1]

It is decided once over the whole data set (Johnson 1973: at most 11/9 of the fewest rows), so rows have numbers and one
shape, and an epoch sees every document once.  What rows look like, and what keeps their documents apart, documents.py
says.

Efficiency is real tokens over slots; `padded_efficiency` and `bucketed_efficiency` say what the two usual alternatives
have: every row as long as the longest, and batches of like lengths as long as their own longest.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from trainables.config import config
from trainables.randomness import seed_of

# ---------------------------------------------------------------- which documents share a row


@config
class Packed:
    """Rows of `capacity` tokens, filled by first fit decreasing; documents of one length go in an order by `seed`."""

    capacity: int = 64
    seed: int = 0

    def __post_init__(self):
        if self.capacity < 4:
            raise ValueError(f"capacity must be at least 4 tokens, not {self.capacity}")

    def slots(self, longest: int) -> int:
        """Tokens a row has room for."""
        return self.capacity

    def rows(self, lengths: Sequence[int]) -> list[list[int]]:
        """The documents of each row, by number."""
        order = np.random.default_rng(seed_of(self.seed, "packing")).permutation(len(lengths))
        shuffled = first_fit_decreasing([lengths[i] for i in order], self.capacity)
        return [[int(order[i]) for i in row] for row in shuffled]


@config
class Padded:
    """One document a row."""

    def slots(self, longest: int) -> int:
        """Tokens a row has room for: those of the longest document that there may be."""
        return longest

    def rows(self, lengths: Sequence[int]) -> list[list[int]]:
        """The documents of each row, by number."""
        return [[i] for i in range(len(lengths))]


Packing = Packed | Padded


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of document numbers: longest documents first, each into the first row that has room for it.

    ValueError for a document that fits into no row.
    """
    if lengths and (max(lengths) > capacity or min(lengths) < 1):
        raise ValueError(f"documents must have 1..{capacity} tokens; these have {min(lengths)}..{max(lengths)}")
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]        # heaps of row numbers, by the room left
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        needed = lengths[document]
        fits = [(heap[0], room) for room, heap in enumerate(with_room[needed:], needed) if heap]
        if fits:
            row, room = min(fits)
            heapq.heappop(with_room[room])
        else:
            row, room = len(rows), capacity
            rows.append([])
        rows[row].append(document)
        heapq.heappush(with_room[room - needed], row)
    return rows


# ---------------------------------------------------------------- how much of the rows is text


def padded_efficiency(lengths: Sequence[int], longest: int = 0) -> float:
    """Real tokens over slots where every row is as long as `longest` (0: the longest document)."""
    return sum(lengths) / (len(lengths) * (longest or max(lengths)))


def bucketed_efficiency(lengths: Sequence[int], batch: int) -> float:
    """The same where documents of like length share a batch, which is as long as its longest."""
    ordered = sorted(lengths)
    slots = sum(ordered[min(first + batch, len(ordered)) - 1] * len(ordered[first:first + batch])
                for first in range(0, len(ordered), batch))
    return sum(lengths) / slots


def packed_efficiency(lengths: Sequence[int], packing: Packing, longest: int = 0) -> float:
    """The same for rows of several documents."""
    return sum(lengths) / (len(packing.rows(lengths)) * packing.slots(longest or max(lengths)))
