"""Conditions: what a text hangs on, besides itself.

    Source(length, encoder)      sequence-to-sequence: the states of a frozen encoder, which cross-attention reads
    NoSource()                   nothing is read

    EncodedSources(data, encoder, length)     every source's states, cached
    Labels(data)                              every text's class, as a number
"""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from trainables.config import ConfigError, config
from trainables.stages import Context, Stage
from trainables.text.corpora import Data, read_rows
from trainables.text.encoders import EncoderFolder, FrozenEncoder, TokenRows
from trainables.text.encodings import SPLITS, EncodedSplit
from trainables.text.families import Contextual
from trainables.text.language_model import FrozenLanguageModel, LanguageModelFolder, copy_words, write_states


@config
class NoSource:
    """Nothing is read."""


@config
class OwnEncoder:
    """The encoder half of the language model whose latents are diffused."""


@config
class Source:
    """Sequence-to-sequence: `length` tokens of a source, as the states of a frozen `encoder`."""

    length: int = 64
    encoder: OwnEncoder | Contextual = OwnEncoder()
    dropout: float = 0.1                 # share of sources that are not read while training
    cached: bool = True                  # their states are; XSum's 204,045 of 256 tokens would be 80 GB

    def __post_init__(self):
        if self.length < 3:
            raise ValueError(f"length must be at least 3 tokens (two of them special), not {self.length}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share in [0, 1), not {self.dropout}")


@config
class EncodedSources:
    """The source of every text of train, valid and test as encoder states; laid out as LanguageModelStates' texts.

    Not `cached`: tokens and masks only; who reads them runs the encoder.
    """

    data: Data
    encoder: LanguageModelFolder | EncoderFolder
    length: int
    cached: bool = True

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.data, self.encoder)

    def make(self, out: Path, context: Context) -> None:
        encoder = self.reader(context)
        of = self.encoder.model if isinstance(self.encoder, LanguageModelFolder) else self.encoder.encoder
        for split in SPLITS:
            rows = read_rows(context.get(self.data), split)
            if not all(row.get("source") for row in rows):
                raise ConfigError("source", f"the texts of {split} have no sources to read")
            write_states(out, split, [row["source"] for row in rows], self.length, encoder, of.weights.storage,
                         trimmed=True, states=self.cached)
        copy_words(context.get(self.encoder), out)

    def reader(self, context: Context) -> FrozenEncoder:
        """The encoder that reads."""
        folder = context.get(self.encoder)
        if isinstance(self.encoder, LanguageModelFolder):
            return FrozenLanguageModel.load(folder).to(context.device).encoder()
        return FrozenEncoder.load(folder, context.device)

    @staticmethod
    def split(folder: Path, split: str) -> EncodedSplit | TokenRows:
        """The sources of a split by number, with their states if those are cached."""
        if (folder / f"{split}.encodings.npy").exists():
            return EncodedSplit(folder, split)
        ids, mask = (torch.from_numpy(np.load(folder / f"{split}.{part}.npy")) for part in ("ids", "mask"))
        return TokenRows(ids.long(), mask)


@config
class Labels:
    """Per split <split>.label.npy int64 [N], and classes.json: the classes of the train split, in order."""

    data: Data

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.data,)

    def make(self, out: Path, context: Context) -> None:
        said = {split: [row.get("class", "") for row in read_rows(context.get(self.data), split)] for split in SPLITS}
        classes = sorted(set(said["train"]))
        for split, names in said.items():
            strange = sorted(set(names) - set(classes))
            if "" in names or strange:
                raise ConfigError("classes", f"texts of {split} have no class" if "" in names else
                                  f"{split} has the class {strange[0]!r}, and train has not")
            np.save(out / f"{split}.label.npy", np.array([classes.index(name) for name in names], dtype=np.int64))
        (out / "classes.json").write_text(json.dumps(classes, ensure_ascii=False))
