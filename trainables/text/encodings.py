"""Encodings: texts as the states that diffusion starts from, and back.            TEncDM, arXiv 2402.19097

    words --tokenizer--> ids --frozen encoder--> h [B, L, D] --normalise--> z = (h - m) / s
                                        pad -> 0;  any other special token -> its static embedding, norm sqrt(D)

    EncodedTexts(data, encoder, length)    every text of every split encoded once; memory-mapped, read by random gather
    EncodingStatistics(encoded)            m and s per dimension, float64, over the words of the whole train split
    Encodings.of(encoded, context)
        .batches("train").take(indices) -> Batch(ids, mask, encodings=h, source=...)
        .encode(batch) -> z [B, L, D]      .denormalise(z) -> h      .texts(ids) -> words

With Embeddings nothing depends on context: h is a row of the encoder's token table, m and s are over the table's rows,
and special tokens and pads are rows like any other.

What is stored is raw h, so that one cache serves every treatment: float32 for small encoders, float16 for pretrained
ones.  Not bfloat16, of the same size: dimensions may lie far from zero (in MiniLM one lies 19 deviations away), and its
rounding there is 2.4 % of the deviation, float16's .04 %.  Statistics are taken of what is stored.
"""

import copy
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import ConfigError, config
from trainables.stages import Context, Stage
from trainables.system import Batch
from trainables.text.corpora import Data, read_rows
from trainables.text.encoders import Embeddings, Encoder, EncoderFolder, FrozenEncoder, Small, contextual
from trainables.text.tokenizers import TOKENS, Words

SPLITS = ("train", "valid", "test")
TOKENS_AT_ONCE = {"cpu": 4_096, "cuda": 65_536}             # of one pass through the encoder
EXAMPLES_AT_ONCE = 4_096                                    # of one pass through the cache
DEAD = 1e-6                                                 # a deviation, as a share of the middle dimension's


@config
class EncodedTexts:
    """All texts of train, valid and test, encoded: `length` tokens each, and their sources, cut at `source_length`
    tokens (0: sources are not read).

    In the folder, per split, and again as <split>.source (as long as the longest source):
    <split>.ids.npy int32 [N, L] · <split>.mask.npy bool [N, L] · <split>.encodings.npy [N, L, D] (not for Embeddings);
    table.safetensors: the token embeddings [V, D]; tokenizer.json and tokens.json.
    """

    data: Data
    encoder: Encoder
    length: int
    source_length: int = 0

    version: ClassVar[int] = 1

    def __post_init__(self):
        if self.length < 3:
            raise ValueError(f"length must be at least 3 tokens (two of them special), not {self.length}")
        if self.source_length < 0 or 0 < self.source_length < 3:
            raise ValueError(f"source_length must be 0 (no sources) or at least 3 tokens, not {self.source_length}")

    def folder(self) -> EncoderFolder:
        """The encoder's stage.  A model trained here must have met sources too, if it is to read them."""
        encoder = contextual(self.encoder)
        learns = self.source_length > 0 and isinstance(encoder.weights, Small)
        return EncoderFolder(data=self.data, encoder=encoder, sources=learns)

    def needs(self) -> tuple[Stage, ...]:
        return (self.data, self.folder())

    def make(self, out: Path, context: Context) -> None:
        corpus, folder = context.get(self.data), context.get(self.folder())
        encoder = FrozenEncoder.load(folder, context.device)
        dtype = None if isinstance(self.encoder, Embeddings) else np.dtype(contextual(self.encoder).weights.storage)
        for split in SPLITS:
            rows = read_rows(corpus, split)
            self._write(out, split, *encoder.words.ids([row["text"] for row in rows], self.length), encoder, dtype)
            if self.source_length:
                if not all("source" in row for row in rows):
                    raise ConfigError("source_length", f"the texts of {split} have no sources to read")
                ids, mask = encoder.words.ids([row["source"] for row in rows], self.source_length)
                longest = int(mask.sum(1).max())
                self._write(out, f"{split}.source", ids[:, :longest], mask[:, :longest], encoder, dtype)
        save_file({"table": encoder.table.float().cpu().contiguous()}, out / "table.safetensors")
        for name in ("tokenizer.json", TOKENS):
            shutil.copyfile(folder / name, out / name)

    def _write(self, out: Path, name: str, ids: Tensor, mask: Tensor, encoder: FrozenEncoder,
               dtype: np.dtype | None) -> None:
        np.save(out / f"{name}.ids.npy", ids.numpy().astype(np.int32))
        np.save(out / f"{name}.mask.npy", mask.numpy())
        if dtype is not None:
            if int(mask.sum(1).max()) > encoder.positions:
                raise ConfigError(
                    "length", f"the encoder reads {encoder.positions} tokens at most, and {name} has longer texts")
            write_encodings(out / f"{name}.encodings.npy", ids, mask, encoder, dtype)


def write_encodings(path: Path, ids: Tensor, mask: Tensor, encoder: FrozenEncoder, dtype: np.dtype) -> None:
    """Encode ids [N, L] into a memory map [N, L, D], zero at pads; texts of like length go together."""
    device = encoder.table.device
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(*ids.shape, encoder.width))
    lengths = mask.sum(1)
    order = lengths.argsort()
    first = 0
    while first < len(order):
        # Sorted by length, so the last of these rows is the longest: as many rows as fit beside it.
        budget = TOKENS_AT_ONCE.get(device.type, TOKENS_AT_ONCE["cpu"])
        count = max(1, budget // int(lengths[order[min(first + budget, len(order)) - 1]]))
        rows = order[first:first + count]
        width = int(lengths[rows[-1]])
        real = mask[rows, :width].to(device)
        h = encoder.encode(ids[rows, :width].to(device), real) * real[:, :, None]
        largest = float(h.abs().max())
        if not largest < float(np.finfo(dtype).max):
            raise ConfigError("encoder", f"encodings as large as {largest:g} cannot be stored as {dtype}")
        array[rows.numpy(), :width] = h.cpu().numpy()
        first += count
    array.flush()


@config
class EncodingStatistics:
    """statistics.safetensors: mean and std [D] float64, count [1] of the vectors they are over.

    Contextual: over the words (no special tokens) of the whole train split, biased std.  Embeddings: over the used rows
    of the token table, each once, unbiased std.
    """

    encoded: EncodedTexts

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.encoded,)

    def make(self, out: Path, context: Context) -> None:
        folder = context.get(self.encoded)
        words = Words.load(folder)
        if isinstance(self.encoded.encoder, Embeddings):
            used = torch.ones(words.vocabulary, dtype=torch.bool)
            used[list(words.unused)] = False
            vectors = load_file(folder / "table.safetensors")["table"][:words.vocabulary][used].double()
            count, mean, variance = len(vectors), vectors.mean(0), vectors.var(0, unbiased=True)
        else:
            count, mean, variance = moments(EncodedSplit(folder, "train"), words)
        # A dead dimension has no scale (MiniLM has three, with deviations of 1e-9 and 1e-32): it stays at zero.
        std = variance.sqrt()
        std = torch.where(std > DEAD * std.median(), std, 1.0)
        save_file({"mean": mean, "std": std, "count": torch.tensor([count])}, out / "statistics.safetensors")


def moments(split: "EncodedSplit", words: Words) -> tuple[int, Tensor, Tensor]:
    """Count, mean [D] and biased variance [D] of the split's words, summed in float64."""
    special = torch.zeros(words.vocabulary, dtype=torch.bool)
    special[list(words.special)] = True
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for first in range(0, len(split), EXAMPLES_AT_ONCE):
        batch = split.take(torch.arange(first, min(first + EXAMPLES_AT_ONCE, len(split))))
        assert batch.encodings is not None
        h = batch.encodings[batch.mask & ~special[batch.ids]].double()                    # [words, D]
        count, total, squares = count + len(h), total + h.sum(0), squares + h.square().sum(0)
    if count == 0:
        raise ConfigError("data", "the training texts have no word besides special tokens")
    mean = total / count
    return count, mean, (squares / count - mean.square()).clamp(min=0)


class EncodedSplit:
    """One split of an EncodedTexts folder: examples by number, as Batches wants them."""

    def __init__(self, folder: Path, split: str):
        if not (folder / f"{split}.ids.npy").exists():
            raise ValueError(f"no split {split!r} was encoded (there are: {', '.join(SPLITS)})")
        self.ids, self.mask = (Column.read(folder / f"{split}.{part}.npy") for part in ("ids", "mask"))
        cached = (folder / f"{split}.encodings.npy").exists()
        self.encodings = Column.read(folder / f"{split}.encodings.npy") if cached else None
        self.table = None if cached else load_file(folder / "table.safetensors")["table"]
        source = f"{split}.source"
        self.source = EncodedSplit(folder, source) if (folder / f"{source}.ids.npy").exists() else None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        """The examples `indices` [B]: ids, mask [B, L] and raw encodings [B, L, D] float32, and their sources."""
        ids = self.ids.take(indices).long()
        if self.encodings is not None:
            h = self.encodings.take(indices).float()
        else:
            assert self.table is not None
            h = F.embedding(ids, self.table)
        source = self.source.take(indices) if self.source is not None else None
        return Batch(ids=ids, mask=self.mask.take(indices), encodings=h, source=source)

    def size(self) -> int:
        """Bytes of all examples."""
        own = sum(column.size() for column in (self.ids, self.mask, self.encodings) if column is not None)
        return own + (self.source.size() if self.source is not None else 0)

    def on(self, device: torch.device) -> "EncodedSplit":
        """The same examples, held by a device."""
        there = copy.copy(self)
        there.ids, there.mask = self.ids.on(device), self.mask.on(device)
        there.encodings = None if self.encodings is None else self.encodings.on(device)
        there.table = None if self.table is None else self.table.to(device)
        there.source = None if self.source is None else self.source.on(device)
        return there


class Column:
    """One number or vector for each example, [N, ...]: memory-mapped, or held by a device."""

    def __init__(self, values: np.ndarray | Tensor):
        self.values = values

    @classmethod
    def read(cls, path: Path) -> "Column":
        return cls(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: Tensor) -> Tensor:
        """Those of the examples `indices` [B], on the indices' device."""
        if isinstance(self.values, Tensor):
            return self.values[indices]
        return torch.from_numpy(np.asarray(self.values[indices.numpy()]))

    def size(self) -> int:
        """Bytes of all of it."""
        return self.values.nbytes

    def on(self, device: torch.device) -> "Column":
        """The same, held by a device; it goes there in parts, so that the host need not hold it whole."""
        first = self.take(torch.arange(min(1, len(self))))
        there = torch.empty((len(self), *first.shape[1:]), dtype=first.dtype, device=device)
        for some in torch.arange(len(self)).split(EXAMPLES_AT_ONCE):
            there[some[0]:some[-1] + 1] = self.take(some).to(device)
        return Column(there)


class Encodings(nn.Module):
    """The space of normalised encodings.   V words, D features, texts of L = `length` tokens

    A module, so that it moves with the system that owns it; it has no parameters and leaves nothing in checkpoints.
    """

    mean: Tensor
    std: Tensor
    place: Tensor
    fixed: Tensor
    frame: Tensor
    frame_rows: Tensor

    def __init__(self, encoded: EncodedTexts, folder: Path, encoder_folder: Path, statistics: dict[str, Tensor]):
        super().__init__()
        self.encoded, self.folder, self.encoder_folder = encoded, folder, encoder_folder
        self.contextual = not isinstance(encoded.encoder, Embeddings)
        self.words, self.length = Words.load(folder), encoded.length
        self.vocabulary, self.width = self.words.vocabulary, len(statistics["mean"])
        self.count = int(statistics["count"])               # of vectors behind mean and std
        table = load_file(folder / "table.safetensors")["table"]
        # What a special token is in z-space: row 0 of `fixed` is no special token, row 1 is the pad.
        pad = self.words.pad
        special = [pad, *(i for i in self.words.special if i != pad)] if self.contextual else []
        place = torch.zeros(max(self.vocabulary, len(table)), dtype=torch.long)
        place[special] = torch.arange(1, len(special) + 1)
        fixed = F.pad(F.normalize(table[special], dim=1) * self.width ** 0.5, (0, 0, 1, 0))
        fixed[1:2] = 0.0
        frame = torch.tensor([*self.words.tokenizer.encode("").ids, self.words.pad])
        for name, value in {"mean": statistics["mean"].float(), "std": statistics["std"].float(), "place": place,
                            "fixed": fixed, "frame": frame, "frame_rows": table[frame]}.items():
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def of(cls, encoded: EncodedTexts, context: Context) -> "Encodings":
        """The encodings of those texts; what is missing of them is made."""
        statistics = context.get(EncodingStatistics(encoded=encoded)) / "statistics.safetensors"
        return cls(encoded, context.get(encoded), context.get(encoded.folder()), load_file(statistics))

    def batches(self, split: str) -> EncodedSplit:
        """The examples of train, valid or test; opened here, so that no copy of this module drags a cache along."""
        return EncodedSplit(self.folder, split)

    def encode(self, batch: Batch) -> Tensor:
        """x_0 of a batch that carries its encodings.   [B, L, D]"""
        if batch.encodings is None:
            raise ValueError("the batch carries no encodings; `read` encodes texts that are not in the cache")
        return self.normalise(batch.encodings, batch.ids, batch.mask)

    def normalise(self, h: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """z [B, L, D] of raw encodings h [B, L, D] of ids [B, L]."""
        z = (h - self.mean) / self.std
        if not self.contextual:
            return z
        place = torch.where(mask, self.place[ids], 1)
        return torch.where((place > 0)[:, :, None], self.fixed[place], z)

    def denormalise(self, z: Tensor) -> Tensor:
        """h = m + s z, any [..., D]; at special tokens not what the encoder said, for z was put there."""
        return z * self.std + self.mean

    def texts(self, ids: Tensor) -> list[str]:
        """ids [B, L] -> B texts, each up to its end token."""
        return self.words.texts(ids)

    def read(self, texts: list[str], length: int | None = None) -> Batch:
        """A batch of texts that are not in the cache (prompts, sources), encoded now."""
        device = self.mean.device
        ids, mask = (value.to(device) for value in self.words.ids(texts, length or self.length))
        encoder = FrozenEncoder.load(self.encoder_folder, device)
        if not self.contextual:
            return Batch(ids=ids, mask=mask, encodings=F.embedding(ids, encoder.table.float()))
        rows = max(1, TOKENS_AT_ONCE.get(device.type, TOKENS_AT_ONCE["cpu"]) // ids.shape[1])
        parts = zip(ids.split(rows), mask.split(rows), strict=True)
        h = torch.cat([encoder.encode(some, real) * real[:, :, None] for some, real in parts])
        return Batch(ids=ids, mask=mask, encodings=h)

    def empty(self, count: int, length: int | None = None) -> Batch:
        """`count` empty texts: what is read where a condition was dropped.  Special tokens alone need no encoder."""
        framed = len(self.frame) - 1                                                      # its last entry is the pad
        place = torch.arange(length or self.length, device=self.frame.device).clamp(max=framed)
        return Batch(ids=self.frame[place].expand(count, -1), mask=(place < framed).expand(count, -1),
                     encodings=self.frame_rows[place].expand(count, -1, -1))
