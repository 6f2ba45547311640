"""Texts as ids, and what can be counted of them: how frequent a word is, how much it tells, how long a text will be.

    corpus --tokenizer--> TokenTexts          every split as ids; the start token is not part of the state
           --count-->     WordInformation     float64, over the whole train split
                          Spindle             how strong the words let it be; asked before anything is trained

    frequency     f_v = ln(1 + count) / the largest          weight_v = f_v - E f              as DiffusionBERT's code
    information   H_v = -ln p_v                              weight_v = E H / H_v - 1          as its paper, eq. 10

A weight says how much later than others a word is hidden (absorbing.py's spindle): frequent words, which tell little,
later.  E is over the corpus, so a word's weight does not hang on the sentence, which a sampler does not know; with the
sentence's own mean (`sentence_weights`) it is what was published, and no bound.  Special tokens weigh nothing.

The length of a text, in tokens, follows the counts of texts whose source is as long, eased towards the counts of all.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.config import ConfigError, config
from trainables.diffusion.absorbing import Absorbing
from trainables.stages import Context, Stage
from trainables.system import Batch
from trainables.text.corpora import Data, Imported, Stories, read_rows
from trainables.text.families import Small
from trainables.text.masked_lm import MASK, MaskedLm, MaskedLmFolder, save_words
from trainables.text.rows import count_rows, row_blocks
from trainables.text.tokenizers import TOKENS, Words

SPLITS = ("train", "valid", "test")
ROWS_AT_ONCE = 65_536
EASE = 4.0                    # texts' worth of the counts of all lengths, beside those of the same source length
Measure = Literal["frequency", "information"]


@config
class TokenTexts:
    """train, valid and test as ids: `length` tokens of a text, the end token one of them and the start token not;
    its source, in a frame of special tokens, cut at `source_length` tokens (0: sources are not read).

    <split>.ids.npy int32 [N, L] · <split>.mask.npy bool [N, L], again as <split>.source; <split>.words.npy int32 [N],
    words between blanks of what is kept of a text; tokenizer.json, tokens.json

    Made ROWS_AT_ONCE texts at a time, in memory maps: the billion words are 24 million texts.
    """

    data: Data
    lm: MaskedLm
    length: int
    source_length: int = 0

    version: ClassVar[int] = 2

    def folder(self) -> MaskedLmFolder:
        """The stage of the language model, whose tokenizer it is."""
        learns = self.source_length > 0 and isinstance(self.lm.weights, Small)
        return MaskedLmFolder(data=self.data, lm=self.lm, sources=learns)

    def needs(self) -> tuple[Stage, ...]:
        return self.data, self.folder()

    def make(self, out: Path, context: Context) -> None:
        corpus, folder = context.get(self.data), context.get(self.folder())
        words = Words.load(folder)
        start = len(words.start)
        for split in SPLITS:
            many = count_rows(corpus, split)
            text = Columns(out, split, many, self.length)
            source = Columns(out, f"{split}.source", many, self.source_length) if self.source_length else None
            count = np.lib.format.open_memmap(out / f"{split}.words.npy", "w+", np.int32, (many,))
            first = 0
            for rows in row_blocks(corpus, split, ROWS_AT_ONCE):
                ids, mask, said = words.read([row["text"] for row in rows], self.length + start)
                text.put(first, ids[:, start:], mask[:, start:])
                count[first:first + len(rows)] = said.numpy()
                if source is not None:
                    if not all(row.get("source") for row in rows):
                        raise ConfigError("source_length", f"the texts of {split} have no sources to read")
                    source.put(first, *words.ids([row["source"] for row in rows], self.source_length))
                first += len(rows)
            count.flush()
        for name in ("tokenizer.json", TOKENS, MASK):
            shutil.copyfile(folder / name, out / name)


class Columns:
    """<name>.ids.npy and <name>.mask.npy of `many` rows, on disk from the start."""

    def __init__(self, out: Path, name: str, many: int, length: int):
        self.ids, self.mask = (np.lib.format.open_memmap(out / f"{name}.{part}.npy", "w+", kind, (many, length))
                               for part, kind in (("ids", np.int32), ("mask", np.bool_)))

    def put(self, first: int, ids: Tensor, mask: Tensor) -> None:
        """These rows [n, L], from number `first` on, and out of memory."""
        for column, rows in ((self.ids, ids), (self.mask, mask)):
            column[first:first + len(rows)] = rows.numpy()
            column.flush()


class TokenSplit:
    """One split of a TokenTexts folder: examples by number, as Batches wants them."""

    def __init__(self, folder: Path, split: str):
        if not (folder / f"{split}.ids.npy").exists():
            raise ValueError(f"no split {split!r} was tokenised (there are: {', '.join(SPLITS)})")
        self.ids, self.mask = (np.load(folder / f"{split}.{part}.npy", mmap_mode="r") for part in ("ids", "mask"))
        words = folder / f"{split}.words.npy"
        self.words = np.load(words, mmap_mode="r") if words.exists() else None               # of sources nobody asks
        source = f"{split}.source"
        self.source = TokenSplit(folder, source) if (folder / f"{source}.ids.npy").exists() else None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        """The examples `indices` [B]: ids and mask [B, L], how many words they have, and their sources."""
        rows = indices.numpy()
        return Batch(ids=torch.from_numpy(self.ids[rows]).long(), mask=torch.from_numpy(np.asarray(self.mask[rows])),
                     words=None if self.words is None else torch.from_numpy(self.words[rows]).long(),
                     source=self.source.take(indices) if self.source is not None else None)


@config
class WordInformation:
    """information.safetensors: counts [V] int64 of the words of all training texts, value [V] (f or H) and weight [V]
    float64, lengths [S + 1, L + 1] int64: how many texts of how many tokens have a source of how many."""

    texts: TokenTexts
    measure: Measure = "frequency"

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.texts,)

    def make(self, out: Path, context: Context) -> None:
        folder = context.get(self.texts)
        words, split = Words.load(folder), TokenSplit(folder, "train")
        special = unsaid(folder, words)
        counts = torch.zeros(words.vocabulary, dtype=torch.long)
        L, S = self.texts.length, self.texts.source_length
        lengths = torch.zeros((S + 1) * (L + 1), dtype=torch.long)
        for first in range(0, len(split), ROWS_AT_ONCE):
            batch = split.take(torch.arange(first, min(first + ROWS_AT_ONCE, len(split))))
            counts += torch.bincount(batch.ids[batch.mask], minlength=words.vocabulary)
            read = torch.zeros(len(batch), dtype=torch.long) if batch.source is None else batch.source.mask.sum(1)
            lengths += torch.bincount(read * (L + 1) + batch.mask.sum(1), minlength=len(lengths))
        value, weight = weighed(counts, special, self.measure)
        save_file({"counts": counts, "value": value, "weight": weight, "lengths": lengths.view(S + 1, L + 1)},
                  out / "information.safetensors")


def unsaid(folder: Path, words: Words) -> list[int]:
    """The special tokens that are no words; what stands for unknown words is one."""
    unknown = json.loads((folder / MASK).read_text())["unknown"]
    return [i for i in words.special if i != unknown]


def weighed(counts: Tensor, special: list[int], measure: Measure) -> tuple[Tensor, Tensor]:
    """`weigh`, special tokens counting for nothing; their counts [V] become 0.   ConfigError: no word is left"""
    counts[special] = 0
    if int(counts.sum()) == 0:
        raise ConfigError("data", "the training texts have no word besides special tokens")
    value, weight = weigh(counts, measure)
    weight[special] = 0.0
    return value, weight


@config
class Spindle:
    """spindle.json: lambda, and the largest that these words allow.   ConfigError: lambda is larger

    Where the words are learned here, they are learned once more to be asked before anything starts: it takes seconds,
    and the language model that they come with takes much longer.
    """

    information: WordInformation
    process: Absorbing

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.information,)

    def check(self, context: Context) -> None:
        """ConfigError for a lambda that these words do not allow, where their weights can be known by now."""
        texts, data = self.information.texts, self.information.texts.data
        if self.process.relative:
            return
        if context.store.has(self.information):
            self.settled(read_information(context.get(self.information))["weight"])
        elif isinstance(texts.lm.weights, Small) and (isinstance(data, (Stories, Imported)) or context.store.has(data)):
            self.settled(self.foreseen(context))

    def foreseen(self, context: Context) -> Tensor:
        """The weights [V], without a language model."""
        texts = self.information.texts
        small, rows = texts.lm.weights, read_rows(context.get(texts.data), "train")
        assert isinstance(small, Small)
        learned = [row["text"] for row in rows] + [row.get("source", "") for row in rows if texts.folder().sources]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_words(texts.lm.tokenizer(learned, small.vocabulary), folder, texts=learned)
            words = Words.load(folder)
            ids, mask = words.ids([row["text"] for row in rows], texts.length + len(words.start))
            counts = torch.bincount(ids[mask], minlength=words.vocabulary)
            return weighed(counts, unsaid(folder, words), self.information.measure)[1]

    def settled(self, weights: Tensor) -> Absorbing:
        """The process with lambda itself.   ConfigError"""
        try:
            return self.process.settled(weights)
        except ValueError as error:
            raise ConfigError("system.process.spindle", str(error)) from None

    def make(self, out: Path, context: Context) -> None:
        weights = read_information(context.get(self.information))["weight"]
        most = Absorbing(spindle=1.0, relative=True).settled(weights).spindle
        (out / "spindle.json").write_text(json.dumps({"spindle": self.settled(weights).spindle, "most": most}))


def weigh(counts: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """(f or H, its weight centred over the corpus), both [V] float64, of words said so often [V].

    A word that was never said tells as much as one that was said once.
    """
    share = counts.double() / counts.sum()
    if measure == "frequency":
        value = (counts.double() + 1).log() / (counts.max().double() + 1).log()
        return value, value - (share * value).sum()
    value = -(counts.double().clamp(min=1) / counts.sum()).log()
    mean = -torch.special.xlogy(share, share).sum()
    return value, mean / value - 1


def sentence_weights(value: Tensor, mask: Tensor, measure: Measure) -> Tensor:
    """The published weights [B, L]: against the mean of the sentence.   value [B, L]: f or H of its words; 0 at pads"""
    mean = (value * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, value - mean if measure == "frequency" else mean / value - 1, 0.0)


def read_information(folder: Path) -> dict[str, Tensor]:
    """What a WordInformation stage found, by name."""
    return load_file(folder / "information.safetensors")


def length_law(lengths: Tensor) -> Tensor:
    """P(text has n tokens | source has k) [S + 1, L + 1] float64 from the counts; every n from 1 on is possible."""
    able = torch.ones(lengths.shape[1], dtype=torch.float64)
    able[0] = 0.0
    overall = lengths.double().sum(0) + able / able.sum()
    eased = lengths.double() + EASE * overall / overall.sum()
    return eased * able / (eased * able).sum(1, keepdim=True)
