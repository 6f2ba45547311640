"""Latents: what LD4LG diffuses, and the way back to words.                                       arXiv 2212.09462

    PerceiverLatents(model=Bart(), ...)   words -> encoder states -> 32 x 64, norms fixed;  back: expand, then write
    RawEncodings(model=Bart())            words -> encoder states [L, E], z = (h - mean) / scale;  back: write

    CompressedTexts(autoencoder)          every text's latents, cached     (raw states: LanguageModelStates)
    LatentStatistics(texts)               mean per feature and one scale, over the whole train split
    LengthHistogram(texts)                how many tokens the training texts have
    LengthsBySource(texts, sources)       ... and their sources, where those are read

    LatentSpace.of(...)  .batches("train").take(indices) -> Batch(ids, mask, encodings=latents, source, label)
                         .encode(batch) -> x_0 [B, L', D]    .valid(batch, ...) -> [B, L']    .draw_mask(rows, rng, ...)
                         .write(x_0, mask, decoding) -> words, once `open_to_decode` was called

Perceiver latents fill all their places, so nothing is padded.  Raw encodings are as long as their text: the loss sees
the text's places only, and a sampler draws the length first, of a text that is written from a source by the source's.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainables.config import config
from trainables.networks.perceiver import Perceiver, PerceiverAutoencoder, fixed_norm
from trainables.randomness import Rng
from trainables.stages import Context, Stage
from trainables.system import Batch
from trainables.text.autoencoder import AutoencoderTraining, TrainedAutoencoder, load_autoencoder
from trainables.text.conditions import EncodedSources, Labels
from trainables.text.corpora import read_rows
from trainables.text.encodings import EXAMPLES_AT_ONCE, SPLITS, EncodedSplit
from trainables.text.families import Bart, Small
from trainables.text.language_model import (
    Decoding,
    FrozenLanguageModel,
    LanguageModel,
    LanguageModelFolder,
    LanguageModelStates,
    copy_words,
    write_ids,
)
from trainables.text.lengths import count_lengths, draw_lengths, length_law, load_lengths, save_lengths

CPU = torch.device("cpu")
TEXTS_AT_ONCE = {"cpu": 64, "cuda": 512}                    # of one pass through the encoder and the compressor

# ---------------------------------------------------------------- what may be diffused


@config
class PerceiverLatents:
    """Perceiver-compressed encoder states, 32 x 64 as published."""

    model: LanguageModel = Bart()
    perceiver: Perceiver = Perceiver()
    training: AutoencoderTraining = AutoencoderTraining()

    def __post_init__(self):
        weights = self.model.weights
        if isinstance(weights, Small) and weights.width % self.perceiver.heads:
            raise ValueError(f"perceiver.heads must divide the language model's width of {weights.width}, and "
                             f"{self.perceiver.heads} do not")

    @property
    def fixed_norm(self) -> bool:
        return self.perceiver.norm

    def state_length(self, length: int) -> int:
        return self.perceiver.latents

    def texts(self, language_model: LanguageModelFolder, length: int) -> "CompressedTexts":
        return CompressedTexts(autoencoder=TrainedAutoencoder(
            language_model=language_model, length=length, perceiver=self.perceiver, autoencoder=self.training))


@config
class RawEncodings:
    """The encoder's last states themselves: LD4LG's baseline without an autoencoder, and its first release."""

    model: LanguageModel = Bart()

    fixed_norm: ClassVar[bool] = False

    def state_length(self, length: int) -> int:
        return length

    def texts(self, language_model: LanguageModelFolder, length: int) -> LanguageModelStates:
        return LanguageModelStates(language_model=language_model, length=length)


@config
class CompressedTexts:
    """All texts of train, valid and test as latents.

    In the folder, per split: <split>.ids.npy int32 [N, L], <split>.mask.npy bool [N, L], <split>.encodings.npy
    [N, latents, D]; tokenizer.json and tokens.json.
    """

    autoencoder: TrainedAutoencoder

    version: ClassVar[int] = 1

    @property
    def language_model(self) -> LanguageModelFolder:
        return self.autoencoder.language_model

    @property
    def length(self) -> int:
        return self.autoencoder.length

    def needs(self) -> tuple[Stage, ...]:
        return (self.language_model.data, self.language_model, self.autoencoder)

    def make(self, out: Path, context: Context) -> None:
        folder = context.get(self.language_model)
        model = FrozenLanguageModel.load(folder)
        compress = load_autoencoder(self.autoencoder, model, context).compress.to(context.device)
        model.to(context.device)
        perceiver, storage = self.autoencoder.perceiver, np.dtype(self.language_model.model.weights.storage)
        at_once = TEXTS_AT_ONCE.get(context.device.type, TEXTS_AT_ONCE["cpu"])
        for split in SPLITS:
            texts = [row["text"] for row in read_rows(context.get(self.language_model.data), split)]
            ids, mask = write_ids(out, split, texts, self.length, model.words)
            latents = np.lib.format.open_memmap(out / f"{split}.encodings.npy", mode="w+", dtype=storage,
                                                shape=(len(ids), perceiver.latents, perceiver.width))
            for first in range(0, len(ids), at_once):
                some, real = (part[first:first + at_once].to(context.device) for part in (ids, mask))
                with torch.no_grad():
                    Z = compress(model.encode(some, real), real)
                latents[first:first + len(some)] = Z.float().cpu().numpy()
            latents.flush()
        copy_words(folder, out)


Representation = PerceiverLatents | RawEncodings
Texts = CompressedTexts | LanguageModelStates


# ---------------------------------------------------------------- statistics


@config
class LatentStatistics:
    """statistics.safetensors: mean [D] and scale [1] float64, count [1] of the vectors they are over.

    Over every vector of the whole train split, special tokens' included and pads' not; scale is the root mean square
    of what is left when the mean is taken away, one number for all features.
    """

    texts: Texts

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.texts,)

    def make(self, out: Path, context: Context) -> None:
        split = EncodedSplit(context.get(self.texts), "train")
        padded = isinstance(self.texts, LanguageModelStates)
        count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for first in range(0, len(split), EXAMPLES_AT_ONCE):
            batch = split.take(torch.arange(first, min(first + EXAMPLES_AT_ONCE, len(split))))
            assert batch.encodings is not None
            h = (batch.encodings[batch.mask] if padded else batch.encodings.flatten(0, 1)).double()     # [vectors, D]
            count, total, squares = count + len(h), total + h.sum(0), squares + h.square().sum(0)
        mean = total / count
        scale = (squares / count - mean.square()).mean().clamp(min=0).sqrt().reshape(1)
        save_file({"mean": mean, "scale": scale, "count": torch.tensor([count])}, out / "statistics.safetensors")


@config
class LengthHistogram:
    """lengths.json: how many training texts have 0, 1, ... tokens, special ones included, `length` at most."""

    texts: LanguageModelStates

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.texts,)

    def make(self, out: Path, context: Context) -> None:
        mask = np.load(context.get(self.texts) / "train.mask.npy", mmap_mode="r")
        counts = np.bincount(mask.sum(1), minlength=self.texts.length + 1)
        (out / "lengths.json").write_text(json.dumps(counts.tolist()))


@config
class LengthsBySource:
    """lengths.json: how many training texts of 0, 1, ... tokens (columns) have a source of 0, 1, ... (rows)."""

    texts: LanguageModelStates
    sources: EncodedSources

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return self.texts, self.sources

    def make(self, out: Path, context: Context) -> None:
        texts, sources = (torch.from_numpy(np.load(context.get(stage) / "train.mask.npy", mmap_mode="r").sum(1))
                          for stage in self.needs())
        save_lengths(count_lengths(sources, texts, (self.sources.length, self.texts.length)), out)


# ---------------------------------------------------------------- the space


class LatentSplit:
    """One split: examples by number, with their sources and labels where those are read."""

    def __init__(self, texts: Path, split: str, sources: Path | None, labels: Path | None):
        self.texts = EncodedSplit(texts, split)
        self.sources = None if sources is None else EncodedSources.split(sources, split)
        self.labels = None if labels is None else torch.from_numpy(np.load(labels / f"{split}.label.npy"))

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Tensor) -> Batch:
        """The examples `indices` [B]: ids, mask [B, L], latents [B, L', D]; source [B, S], label [B]."""
        return replace(self.texts.take(indices), source=None if self.sources is None else self.sources.take(indices),
                       label=None if self.labels is None else self.labels[indices])

    def size(self) -> int:
        """Bytes of all examples."""
        return self.texts.size() + (0 if self.sources is None else self.sources.size()) \
            + (0 if self.labels is None else self.labels.nbytes)

    def on(self, device: torch.device) -> "LatentSplit":
        """The same examples, held by a device."""
        there = copy.copy(self)
        there.texts = self.texts.on(device)
        there.sources = None if self.sources is None else self.sources.on(device)
        there.labels = None if self.labels is None else self.labels.to(device)
        return there


class LatentSpace(nn.Module):
    """The space that is diffused: L' = `places` vectors of D = `width` features.

    A module, so that it moves with the system that owns it; it has no trained parameters and leaves nothing in
    checkpoints.  What writes (`language_model`, `perceiver`) is there once `open_to_decode` was called.
    """

    mean: Tensor
    scale: Tensor
    lengths: Tensor                     # [L + 1] cumulated, or [S + 1, L + 1] by source

    def __init__(self, representation: Representation, texts: Texts, sources: EncodedSources | None,
                 labels: Labels | None, context: Context):
        super().__init__()
        self.representation, self.texts, self.sources = representation, texts, sources
        self.folder = context.get(texts)
        self.source_folder = None if sources is None else context.get(sources)
        self.reads = None if sources is None or sources.cached else sources.reader(replace(context, device=CPU))
        self.reader = None if self.reads is None else self.reads.model                   # so that it moves with us
        self.label_folder = None if labels is None else context.get(labels)
        self.places, self.padded = representation.state_length(texts.length), isinstance(representation, RawEncodings)
        statistics = load_file(context.get(LatentStatistics(texts=texts)) / "statistics.safetensors")
        self.width = len(statistics["mean"])
        self.register_buffer("mean", statistics["mean"].float(), persistent=False)
        self.register_buffer("scale", statistics["scale"].float().clamp(min=1e-5), persistent=False)
        self.register_buffer("lengths", torch.empty(0), persistent=False)
        self.language_model: FrozenLanguageModel | None = None
        self.perceiver: PerceiverAutoencoder | None = None

    def open_to_decode(self, context: Context) -> None:
        """Load what writes, and how long texts are."""
        model = FrozenLanguageModel.load(context.get(self.texts.language_model))
        self.language_model = model
        if isinstance(self.texts, CompressedTexts):
            self.perceiver = load_autoencoder(self.texts.autoencoder, model, context)
        elif self.sources is not None:
            counts = load_lengths(context.get(LengthsBySource(texts=self.texts, sources=self.sources)))
            self.lengths = length_law(counts, unseen=0.0).to(self.mean.device)
        else:
            said = (context.get(LengthHistogram(texts=self.texts)) / "lengths.json").read_text()
            counts = torch.tensor(json.loads(said), dtype=torch.float64)
            self.lengths = (counts.cumsum(0) / counts.sum()).to(self.mean.device)

    # ---------------------------------------------------------------- examples

    def batches(self, split: str) -> LatentSplit:
        """The examples of train, valid or test; opened here, so that no copy of this module drags a cache along."""
        return LatentSplit(self.folder, split, self.source_folder, self.label_folder)

    @property
    def classes(self) -> list[str]:
        """The classes' names, by label; none where they are not read."""
        if self.label_folder is None:
            return []
        return json.loads((self.label_folder / "classes.json").read_text(encoding="utf-8"))

    @property
    def source_width(self) -> int:
        """Features of a source's states; 0 where none is read."""
        if self.source_folder is None:
            return 0
        return self.reads.width if self.reads else np.load(self.source_folder / "test.encodings.npy", mmap_mode="r"
                                                           ).shape[2]

    def read(self, source: Batch) -> Tensor:
        """The states of sources [B, S, E], from their cache or from their encoder."""
        if source.encodings is not None or self.reads is None:
            assert source.encodings is not None, "sources come with their states, or with an encoder"
            return source.encodings
        return self.reads.encode(source.ids, source.mask)

    # ---------------------------------------------------------------- texts to states

    def encode(self, batch: Batch) -> Tensor:
        """x_0 of a batch that carries its latents.   [B, L', D]"""
        if batch.encodings is None:
            raise ValueError("the batch carries no latents; they come with the batches of `batches`")
        return batch.encodings if self.representation.fixed_norm else (batch.encodings - self.mean) / self.scale

    def denormalise(self, z: Tensor) -> Tensor:
        """Latents [B, L', D] as the language model knows them."""
        return z if self.representation.fixed_norm else z * self.scale + self.mean

    def valid(self, batch: Batch | None, rows: int) -> Tensor:
        """[B, L'] bool, the places that stand for text."""
        if self.padded and batch is not None:
            return batch.mask
        return torch.ones(rows, self.places, dtype=torch.bool, device=self.mean.device)

    def renorm(self, z: Tensor) -> Tensor:
        """z with the norms that latents have, where they are fixed."""
        return fixed_norm(z) if self.representation.fixed_norm else z

    # ---------------------------------------------------------------- and back

    def draw_mask(self, rows: int, rng: Rng, source: Batch | None = None) -> Tensor:
        """[rows, L'] bool: lengths as the training texts have them, whose sources are as long where they are read; all
        of it where nothing is padded."""
        if not self.padded:
            return torch.ones(rows, self.places, dtype=torch.bool, device=self.mean.device)
        if not len(self.lengths):
            raise ValueError("built to train, not to sample: the lengths of texts are not known")
        place = torch.arange(self.places, device=self.mean.device)
        if self.sources is not None:
            assert source is not None, "texts that are written from sources are as long as those of such sources"
            return place < draw_lengths(self.lengths[source.mask.sum(1)], rng)
        uniform = rng.uniform((rows,)).double()
        length = torch.searchsorted(self.lengths, uniform.to(self.lengths.device), right=True)
        return place < length[:, None].clamp(max=self.places)

    def write(self, x0: Tensor, mask: Tensor, decoding: Decoding, rng: Rng | None = None) -> list[str]:
        """B texts of states x0 [B, L', D], valid where mask [B, L'] says so; by `rng`, where words are drawn."""
        if self.language_model is None:
            raise ValueError("built to train, not to sample")
        h = self.denormalise(x0)
        if self.perceiver is not None:
            return self.language_model.write(self.perceiver.expand(h), None, decoding, rng)
        return self.language_model.write(h, mask, decoding, rng)
