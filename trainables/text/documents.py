"""Documents: texts as ids, whatever their lengths, and the rows of them that a system reads.

    corpus --pieces--> TokenisedTexts          every split as Documents: ids one after the other, sources in front
                       DocumentLengths         how long texts are by how long their sources are, for a sampler
    Documents --Packing--> PackedRows          to learn from: several documents in one row, apart from each other
              -----------> SingleDocuments     to be asked for: one a row, apart from its source

    row       a a a a a b b b c c c c .      ids [R, C]
    segment   0 0 0 0 0 1 1 1 2 2 2 2 0      which document of the row; pads are outside `mask`
    given     1 1 0 0 0 1 0 0 1 1 0 0 0      a document's source stands before it, and is never noised

What keeps the documents of a row apart (attention, places that restart, a noise level for each) is the network's and
the system's part, and reads `segment` alone: lengths may be equal without anything leaking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.config import ConfigError, config
from trainables.randomness import seed_of
from trainables.stages import Context, Stage
from trainables.system import Batch
from trainables.text.corpora import Data, read_rows
from trainables.text.lengths import count_lengths, save_lengths
from trainables.text.packing import Packing
from trainables.text.pieces import MODEL, PieceModel, Pieces, PieceTokenizer
from trainables.training.batches import Batches

SPLITS = ("train", "valid", "test")
USE = "use.safetensors"       # of a released folder: counts [V] of each piece in the training texts, their lengths [N]
Lengths = Literal["drawn", "padded", "expanded"]      # what counts as a text: itself, or pads behind it too

# ---------------------------------------------------------------- the stage


@config
class TokenisedTexts:
    """All texts of train, valid and test as ids, each behind its source's ids (source_length 0: sources are not read).

    In the folder, per split: the parts of Documents; and pieces.model.
    """

    data: Data
    tokenizer: PieceTokenizer
    length: int
    source_length: int = 0

    version: ClassVar[int] = 1

    def model(self) -> PieceModel:
        """The stage of the tokenizer."""
        return PieceModel(data=self.data, tokenizer=self.tokenizer, reads_source=self.source_length > 0)

    def needs(self) -> tuple[Stage, ...]:
        return (self.data, self.model())

    def make(self, out: Path, context: Context) -> None:
        corpus, folder = context.get(self.data), context.get(self.model())
        pieces = Pieces.load(folder)
        for split in SPLITS:
            rows = read_rows(corpus, split)
            sources = None
            if self.source_length:
                if not all("source" in row for row in rows):
                    raise ConfigError("source_length", f"the texts of {split} have no sources to read")
                sources = pieces.ids([row["source"] for row in rows], self.source_length, start=False)
            Documents.of(pieces.ids([row["text"] for row in rows], self.length), sources).save(out, split)
        (out / MODEL).write_bytes((folder / MODEL).read_bytes())

    def release(self, folder: Path, out: Path) -> None:
        """What a generator needs of the finished folder: the pieces, and how training texts use them (USE)."""
        counts, lengths = counted(folder, Pieces.load(folder).vocabulary)
        save_file({"counts": torch.from_numpy(counts), "lengths": torch.from_numpy(lengths)}, out / USE)
        (out / MODEL).write_bytes((folder / MODEL).read_bytes())


@config
class DocumentLengths:
    """lengths.json: how many training texts of 0, 1, ... tokens (columns) have a source of 0, 1, ... (rows)."""

    texts: TokenisedTexts

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.texts,)

    def make(self, out: Path, context: Context) -> None:
        documents = Documents.load(context.get(self.texts), "train")
        sources, texts = (torch.from_numpy(each) for each in (documents.sources, documents.targets))
        save_lengths(count_lengths(sources, texts, (self.texts.source_length, self.texts.length)), out)


def counted(folder: Path, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """How often the training texts of a TokenisedTexts folder say each piece [V], and how long they are [N]; int64"""
    documents = Documents.load(folder, "train")
    return np.bincount(documents.target_ids(), minlength=vocabulary), documents.targets


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


@dataclass(frozen=True)
class Rows:
    """What a TokenisedTexts folder holds, as the rows that a system reads."""

    folder: Path
    packing: Packing
    length: int                        # most tokens of a text
    source_length: int
    lengths: Lengths                   # padded: all texts are `length` long; expanded: a random number of pads longer
    pad: int

    def documents(self, split: str) -> Documents:
        """The documents of train, valid or test, with pads behind them where those are learned."""
        documents = Documents.load(self.folder, split)
        if self.lengths == "drawn":
            return documents
        return documents.lengthened(self.reached(documents.targets, split), self.pad)

    def reached(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """How long texts of these lengths [N] are with their learned pads."""
        if self.lengths == "drawn":
            return lengths
        if self.lengths == "padded":
            return np.full(len(lengths), self.length)
        draws = np.random.default_rng(seed_of("expansion", split)).random(len(lengths))
        return lengths + np.floor(draws * (self.length - lengths + 1)).astype(np.int64)

    def use(self, vocabulary: int) -> tuple[Tensor, np.ndarray]:
        """How often the training texts say each word [V] float64, and how long they are [N]; learned pads count."""
        if (self.folder / USE).exists():
            counts, lengths = (load_file(self.folder / USE)[name].numpy() for name in ("counts", "lengths"))
        else:
            counts, lengths = counted(self.folder, vocabulary)
        to = self.reached(lengths, "train")
        counts[self.pad] += (to - lengths).sum()
        return torch.from_numpy(counts).double(), to

    def packed(self, split: str) -> PackedRows:
        return PackedRows(self.documents(split), self.packing, self.length + self.source_length, self.pad)

    def batches(self, split: str) -> Batches:
        """Packed rows to learn from; held-out documents one by one, apart from their sources."""
        if split == "train":
            return self.packed(split)
        return SingleDocuments(self.documents(split), self.length, self.source_length, self.pad)


# ---------------------------------------------------------------- batches of rows


def joined(batch: Batch) -> Batch:
    """The batch with its sources before its texts, as packed rows have them."""
    if batch.source is None:
        return batch
    own, source = batch.given if batch.given is not None else torch.zeros_like(batch.mask), batch.source
    return Batch(ids=torch.cat([source.ids, batch.ids], 1), mask=torch.cat([source.mask, batch.mask], 1),
                 given=torch.cat([torch.ones_like(source.mask), own], 1))


def segments(batch: Batch) -> Tensor:
    """Which document of its row a token is of; one document a row where the batch does not say.   [B, L] int64"""
    return torch.zeros_like(batch.ids) if batch.segment is None else batch.segment
