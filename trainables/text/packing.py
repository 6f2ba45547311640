"""Packing: several documents in one row, apart from each other.

    documents (60, 10, 20, 30, 5, 55, 34)  --first fit decreasing, capacity 60-->  rows [0] [5 4] [6 2] [3 1]

    row       a a a a a b b b c c c c .      ids [R, C]
    segment   0 0 0 0 0 1 1 1 2 2 2 2 0      which document of the row; pads are outside `mask`
    given     1 1 0 0 0 1 0 0 1 1 0 0 0      a document's source stands before it, and is never noised

Which documents share a row is decided once over the whole data set (Johnson 1973: at most 11/9 of the fewest rows), so
rows have numbers and one shape, and an epoch sees every document once.  What keeps documents apart (attention, places
that restart, a noise level for each) is the network's and the system's part, and reads `segment` alone: lengths may
be equal without anything leaking.

Packing(lengths).  Efficiency is real tokens over slots; `padded_efficiency` and `bucketed_efficiency` say what the two
usual alternatives have: every row as long as the longest, and batches of like lengths as long as their own longest.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainables.config import config
from trainables.randomness import seed_of
from trainables.system import Batch

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


# ---------------------------------------------------------------- documents, and rows of them


@dataclass
class Documents:
    """Documents of any lengths, one after the other.   N documents, T tokens"""

    ids: np.ndarray                    # [T] int32
    lengths: np.ndarray                # [N] int64
    sources: np.ndarray                # [N] int64, how many tokens at a document's start are its source

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], sources: Sequence[Sequence[int]] | None = None) -> "Documents":
        """From lists of ids, each behind its source's."""
        whole = rows if sources is None else [[*source, *row] for source, row in zip(sources, rows, strict=True)]
        before = [0] * len(rows) if sources is None else [len(source) for source in sources]
        flat = np.fromiter((i for row in whole for i in row), dtype=np.int32)
        return cls(flat, np.array([len(row) for row in whole], dtype=np.int64), np.array(before, dtype=np.int64))

    def save(self, folder: Path, name: str) -> None:
        for part in ("ids", "lengths", "sources"):
            np.save(folder / f"{name}.{part}.npy", getattr(self, part))

    @classmethod
    def load(cls, folder: Path, name: str) -> "Documents":
        """ValueError: no such split"""
        if not (folder / f"{name}.ids.npy").exists():
            raise ValueError(f"no split {name!r} was tokenised")
        return cls(*(np.load(folder / f"{name}.{part}.npy") for part in ("ids", "lengths", "sources")))

    @property
    def targets(self) -> np.ndarray:
        """Tokens of each document that are not its source.   [N]"""
        return self.lengths - self.sources

    def target_ids(self) -> np.ndarray:
        """The ids of all documents without their sources."""
        return self.ids[self.places() >= np.repeat(self.sources, self.lengths)]

    def places(self) -> np.ndarray:
        """Each token's place in its document.   [T]"""
        return np.arange(len(self.ids)) - np.repeat(self.lengths.cumsum() - self.lengths, self.lengths)

    def lengthened(self, to: np.ndarray, pad: int) -> "Documents":
        """The same with pads behind them, which then count as text, so that their targets have `to` [N] tokens."""
        further = np.maximum(to - self.targets, 0)
        lengths = self.lengths + further
        longer = Documents(np.full(int(lengths.sum()), pad, dtype=np.int32), lengths, self.sources)
        longer.ids[longer.places() < np.repeat(self.lengths, lengths)] = self.ids
        return longer


class PackedRows:
    """Rows of documents that can be taken by number.   R rows of C slots"""

    def __init__(self, documents: Documents, packing: Packing, longest: int, pad: int):
        rows, slots = packing.rows(documents.lengths.tolist()), packing.slots(longest)
        self.counts = np.array([len(row) for row in rows])
        order = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        lengths = documents.lengths[order]
        row = np.repeat(np.arange(len(rows)), self.counts)
        number = np.arange(len(order)) - np.repeat(self.counts.cumsum() - self.counts, self.counts)
        before = lengths.cumsum() - lengths                                        # tokens before it, over all rows
        offset = before - before[np.arange(len(order)) - number]                   # ... and in its own row
        place = np.arange(lengths.sum()) - np.repeat(before, lengths)
        source = np.repeat((documents.lengths.cumsum() - documents.lengths)[order], lengths) + place
        target = np.repeat(row * slots + offset, lengths) + place
        shape = (len(rows), slots)
        self.ids = np.full(shape, pad, dtype=np.int32)
        self.mask, self.given = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        self.segment = np.zeros(shape, dtype=np.int16)
        self.ids.reshape(-1)[target] = documents.ids[source]
        self.mask.reshape(-1)[target] = True
        self.given.reshape(-1)[target] = place < np.repeat(documents.sources[order], lengths)
        self.segment.reshape(-1)[target] = np.repeat(number, lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        """ids, mask, segment [B, C]; given [B, C] are the sources."""
        rows = indices.numpy()
        return Batch(ids=torch.from_numpy(self.ids[rows]).long(), mask=torch.from_numpy(self.mask[rows]),
                     segment=torch.from_numpy(self.segment[rows]).long(), given=torch.from_numpy(self.given[rows]))

    @property
    def efficiency(self) -> float:
        """Real tokens over slots."""
        return float(self.mask.mean())


class SingleDocuments:
    """Documents apart from their sources, one a row: what a sampler is asked for.   L = length, S = source_length"""

    def __init__(self, documents: Documents, length: int, source_length: int, pad: int):
        self.documents, self.length, self.source_length, self.pad = documents, length, source_length, pad
        self.starts = documents.lengths.cumsum() - documents.lengths

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, indices: Tensor) -> Batch:
        """ids and mask [B, L], and the same of sources [B, S] where there are any."""
        rows, documents = indices.numpy(), self.documents
        middle, ends = self.starts[rows] + documents.sources[rows], self.starts[rows] + documents.lengths[rows]
        batch = self._stack(middle, ends, self.length)
        if self.source_length:
            batch.source = self._stack(self.starts[rows], middle, self.source_length)
        return batch

    def _stack(self, first: np.ndarray, last: np.ndarray, length: int) -> Batch:
        place = first[:, None] + np.arange(length)
        mask = place < last[:, None]
        ids = np.where(mask, self.documents.ids[np.minimum(place, len(self.documents.ids) - 1)], self.pad)
        return Batch(ids=torch.from_numpy(ids).long(), mask=torch.from_numpy(mask))
