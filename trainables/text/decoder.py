"""From encodings back to words: a small transformer trained on slightly noised encodings of real text.

    z_t = alpha(t) z + sigma(t) noise,  t ~ U[.001, noise_up_to]      the diffusion's own schedule, mild noise only
    logits = reader(denormalise(z_t), source)       loss = cross-entropy over all positions, pads included

Diffusion ends near the encodings, not on them: a decoder that has seen mild noise forgives the last error (Table 2 of
arXiv 2402.19097).  Pads are targets, because where a text ends is for the decoder to say.
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import config
from trainables.diffusion.gaussian import Gaussian
from trainables.networks.transformer import WordReader
from trainables.randomness import Rng, seed_of
from trainables.stages import Context, Stage
from trainables.system import Batch
from trainables.text.encodings import EncodedTexts, Encodings, EncodingStatistics
from trainables.training.average import NoAverage
from trainables.training.optimizers import AdamW
from trainables.training.train import Training, load_weights, train


@config
class DecoderTraining:
    """The reader's size, the noise it is trained on, and its training.  Its width is the encodings'."""

    layers: int = 3
    heads: int = 12
    feedforward: int = 3072
    dropout: float = 0.1
    noise_from: float = 0.001
    noise_up_to: float = 0.15            # a time of the diffusion's schedule; tan-9 keeps 18 % of the power there
    training: Training = Training(optimizer=AdamW(lr=1e-4, betas=(0.9, 0.98), weight_decay=1e-3),
                                  ema=NoAverage(), batch=64, steps=1_378)        # one epoch of ROCStories' 88,161 texts

    def __post_init__(self):
        if not 0 <= self.noise_from <= self.noise_up_to <= 1:
            raise ValueError("noise must satisfy 0 <= noise_from <= noise_up_to <= 1, "
                             f"not {self.noise_from} and {self.noise_up_to}")
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, not {self.layers}")


@config
class TrainedDecoder:
    """The trained reader's weights.  The process is the diffusion's: its schedule says what noise is mild."""

    encoded: EncodedTexts
    process: Gaussian
    decoder: DecoderTraining
    reads_source: bool = False

    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True
    curve: ClassVar[str] = "decoder"

    def needs(self) -> tuple[Stage, ...]:
        return self.encoded, EncodingStatistics(encoded=self.encoded)

    def make(self, out: Path, context: Context) -> None:
        torch.manual_seed(seed_of("decoder"))                 # one decoder for all seeds of a study
        model = DecoderLoss(self, Encodings.of(self.encoded, context))
        train(model, model.encodings.batches("train"), self.decoder.training, seed=0, out=out, context=context,
              validate=model.encodings.batches("valid"))


def load_reader(stage: TrainedDecoder, encodings: Encodings, context: Context) -> WordReader:
    """The trained reader, frozen."""
    loss = DecoderLoss(stage, encodings)
    load_weights(loss, context.get(stage))
    return loss.reader.requires_grad_(False).eval()


class DecoderLoss(nn.Module):
    """The reader with its loss, for the trainer."""

    def __init__(self, stage: TrainedDecoder, encodings: Encodings):
        super().__init__()
        self.stage, self.encodings = stage, encodings
        cfg = stage.decoder
        self.reader = WordReader(cfg.layers, encodings.width, cfg.heads, cfg.feedforward, cfg.dropout,
                                 encodings.vocabulary, stage.reads_source)

    def loss(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Tensor]:
        cfg = self.stage.decoder
        z = self.encodings.encode(batch)                                                       # [B, L, D]
        if self.training:                                                                      # held out: clean
            t = cfg.noise_from + (cfg.noise_up_to - cfg.noise_from) * rng.uniform((len(z), 1))
            z, _ = self.stage.process.corrupt(z, t, rng)
        logits = self.reader(self.encodings.denormalise(z), *source_of(self.stage.reads_source, batch))
        right = (logits.argmax(-1) == batch.ids).float()
        return {"loss": F.cross_entropy(logits.flatten(0, 1).float(), batch.ids.flatten()),
                "accuracy": (right * batch.mask).sum() / batch.mask.sum()}


def source_of(reads_source: bool, batch: Batch | None) -> tuple[Tensor | None, Tensor | None]:
    """What the reader reads beside the encodings: the source's raw encodings [B, S, D] and mask [B, S]."""
    if not reads_source:
        return None, None
    if batch is None or batch.source is None:
        raise ValueError("this decoder reads a source, and the batch has none")
    return batch.source.encodings, batch.source.mask
