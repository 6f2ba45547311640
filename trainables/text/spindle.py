"""The spindle's strength: how much of it the words allow.                    the process itself: diffusion/absorbing.py

    lambda pi |d| <= 1 for the weight d of every word, or some words would come back before they are hidden

    Spindle              d against the corpus' mean, which is what a bound and its sampler hide by
    SentenceSpindle      d against the sentence's mean too, which is what hides as published (arXiv 2211.15029)

Sentences are not counted, they are bounded: a word's weight in a sentence of n words is largest where the word tells
least (most) of all and all others most (least), so two sentences say what holds for every text, a sampler's own too.

Both are asked before anything is trained.  Where the words are learned here, they are learned once more for that: it
takes seconds, and the language model that they come with takes much longer.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from trainables.config import ConfigError, config
from trainables.diffusion.absorbing import Absorbing
from trainables.stages import Context, Stage
from trainables.text.corpora import Imported, Stories, read_rows
from trainables.text.families import Small
from trainables.text.masked_lm import save_words
from trainables.text.tokenizers import Words
from trainables.text.word_information import (
    Measure,
    TokenTexts,
    WordInformation,
    read_information,
    sentence_weights,
    unsaid,
    weighed,
)

IN_SENTENCES = " (as published a word weighs against the mean of its sentence, and in some sentence that is so much)"


@config
class Spindle:
    """spindle.json: lambda, and the largest that these words allow.   ConfigError: lambda is larger"""

    information: WordInformation
    process: Absorbing

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.information,)

    def check(self, context: Context) -> None:
        """ConfigError for a lambda that these words do not allow, where their weights can be known by now."""
        if not self.process.relative and (known := told(self.information, context)) is not None:
            settled(self.process, known["weight"])

    def make(self, out: Path, context: Context) -> None:
        weights = read_information(context.get(self.information))["weight"]
        write(out, settled(self.process, weights), weights)


@config
class SentenceSpindle:
    """The same, valid in sentences as well: what is trained hides by their weights, and its bound by the corpus'."""

    information: WordInformation
    process: Absorbing
    written: bool                        # whether ends and pads are words of a sentence: see layout.py's lengths

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return self.information.texts, self.information

    def check(self, context: Context) -> None:
        """ConfigError for a lambda that some sentence does not allow, where the words can be known by now."""
        if not self.process.relative and (known := told(self.information, context)) is not None:
            settled(self.process, self.weights(known), IN_SENTENCES)

    def weights(self, known: dict[str, Tensor]) -> Tensor:
        """[V + 2 n] a set of weights with the largest and the smallest that any word has anywhere.   known: see told"""
        value, n = known["value"], self.information.texts.length - (not self.written)
        said = value if self.written else value[known["sayable"]]
        return torch.cat([known["weight"], extremes(said, n, self.information.measure).flatten()])

    def make(self, out: Path, context: Context) -> None:
        known = told(self.information, context, read=True)
        assert known is not None
        weights = self.weights(known)
        write(out, settled(self.process, weights, IN_SENTENCES), weights)


def settled(process: Absorbing, weights: Tensor, where: str = "") -> Absorbing:
    """The process with lambda itself, for words of these weights.   ConfigError"""
    try:
        return process.settled(weights)
    except ValueError as error:
        raise ConfigError("system.process.spindle", f"{error}{where}") from None


def write(out: Path, process: Absorbing, weights: Tensor) -> None:
    most = Absorbing(spindle=1.0, relative=True).settled(weights).spindle
    (out / "spindle.json").write_text(json.dumps({"spindle": process.spindle, "most": most}))


def extremes(value: Tensor, n: int, measure: Measure) -> Tensor:
    """The published weights [2, n] of two sentences of n of these words; no word has larger ones in any of n or less.

    value [V]: f or H
    """
    low, high = value.min(), value.max()
    alone = torch.arange(n) == 0
    sentences = torch.stack([torch.where(alone, low, high), torch.where(alone, high, low)])
    return sentence_weights(sentences, torch.ones_like(sentences, dtype=torch.bool), measure)


# ---------------------------------------------------------------- what is known of the words by now


def told(information: WordInformation, context: Context, read: bool = False) -> dict[str, Tensor] | None:
    """value and weight [V] of words, and which may be said [V]; None where they cannot be known in seconds.

    `read`: from the finished stage, whatever it takes
    """
    texts, data = information.texts, information.texts.data
    if read or context.store.has(information):
        known, folder = read_information(context.get(information)), context.get(texts)
        return {"value": known["value"], "weight": known["weight"], "sayable": sayable(folder, Words.load(folder))}
    if isinstance(texts.lm.weights, Small) and (isinstance(data, (Stories, Imported)) or context.store.has(data)):
        counts, said = foreseen(texts, context)
        value, weight = weighed(counts.clone(), (~said).nonzero()[:, 0].tolist(), information.measure)
        return {"value": value, "weight": weight, "sayable": said}
    return None


@functools.lru_cache(maxsize=8)                      # arms and seeds of a study ask one by one
def foreseen(texts: TokenTexts, context: Context) -> tuple[Tensor, Tensor]:
    """How often each word is said [V] and whether it may be [V], without a language model."""
    small, rows = texts.lm.weights, read_rows(context.get(texts.data), "train")
    assert isinstance(small, Small)
    learned = [row["text"] for row in rows] + [row.get("source", "") for row in rows if texts.folder().sources]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_words(texts.lm.tokenizer(learned, small.vocabulary), folder, texts=learned)
        words = Words.load(folder)
        ids, mask = words.ids([row["text"] for row in rows], texts.length + len(words.start))
        return torch.bincount(ids[mask], minlength=words.vocabulary), sayable(folder, words)


def sayable(folder: Path, words: Words) -> Tensor:
    """[V] bool: all but special tokens that are no words."""
    may = torch.ones(words.vocabulary, dtype=torch.bool)
    may[unsaid(folder, words)] = False
    return may
