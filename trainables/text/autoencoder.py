"""The language autoencoder: a text in a few short vectors out of which a frozen language model writes it again.

    words --frozen encoder--> h [B, L, E] --compress--> Z [B, 32, 64]
    words <--frozen decoder-- h_hat [B, 32, E] <--expand-- Z
    loss = cross-entropy of the text, the decoder being told each token after it was to say it

Only the Perceiver between the halves is trained (networks/perceiver.py).  What makes it robust, and Z smooth, is noise:

    Live(dropout=True)     h is computed at every step, by a language model that drops as it did when it was trained;
                           its decoder drops too.  As published.
    Cached(noise=.2)       h comes from the cache, and gets Gaussian noise instead; many times faster

`latent_noise` makes Z itself noisy before it is expanded, as TEncDM's decoder is shown noisy encodings; published: 0.
arXiv 2212.09462
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.config import ConfigError, config
from trainables.networks.perceiver import Perceiver, PerceiverAutoencoder
from trainables.randomness import Rng, seed_of
from trainables.stages import Context, Stage
from trainables.system import Batch
from trainables.text.corpora import read_texts
from trainables.text.encoders import TokenRows
from trainables.text.encodings import EncodedSplit
from trainables.text.language_model import FrozenLanguageModel, LanguageModelFolder, LanguageModelStates, said_right
from trainables.training.average import NoAverage
from trainables.training.batches import Batches
from trainables.training.learning_rate import Linear
from trainables.training.optimizers import AdamW
from trainables.training.train import Training, load_weights, train


@config
class Live:
    """The frozen language model runs at every step; with `dropout`, as it did while it was trained itself."""

    dropout: bool = True


@config
class Cached:
    """Encoder states from the cache, plus Gaussian noise of `noise` times each state's own deviation.

    The frozen decoder drops while training, if it ever did (`dropout`).
    """

    noise: float = 0.2
    dropout: bool = True

    def __post_init__(self):
        if self.noise < 0:
            raise ValueError(f"noise must be 0 or more, not {self.noise}")


@config
class AutoencoderTraining:
    """What is read, what is noised, and how the Perceiver is trained."""

    features: Live | Cached = Live()
    latent_noise: float = 0.0            # deviation of Gaussian noise on the latents; a fixed norm makes theirs 1
    training: Training = Training(optimizer=AdamW(lr=1e-4, weight_decay=1e-2), schedule=Linear(warmup=1_000),
                                  ema=NoAverage(), steps=50_000, batch=256, precision="float32",
                                  validate_every=1_000)

    def __post_init__(self):
        if self.latent_noise < 0:
            raise ValueError(f"latent_noise must be 0 or more, not {self.latent_noise}")


@config
class TrainedAutoencoder:
    """The trained Perceiver's weights."""

    language_model: LanguageModelFolder
    length: int
    perceiver: Perceiver
    autoencoder: AutoencoderTraining

    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True
    curve: ClassVar[str] = "autoencoder"

    def states(self) -> LanguageModelStates:
        return LanguageModelStates(language_model=self.language_model, length=self.length)

    def needs(self) -> tuple[Stage, ...]:
        cached = (self.states(),) if isinstance(self.autoencoder.features, Cached) else ()
        return (self.language_model.data, self.language_model, *cached)

    def check(self, context: Context) -> None:
        """ConfigError where the width of a language model that is there already does not split into the heads."""
        width = self.language_model.width(context)
        if width is not None and width % self.perceiver.heads:
            raise ConfigError("perceiver.heads", f"must divide the language model's width of {width}, and "
                                                 f"{self.perceiver.heads} do not")

    def make(self, out: Path, context: Context) -> None:
        torch.manual_seed(seed_of("autoencoder"))             # one autoencoder for all seeds of a study
        model = AutoencoderLoss(self, FrozenLanguageModel.load(context.get(self.language_model)))
        train(model, self.rows("train", model, context), self.autoencoder.training, seed=0, out=out, context=context,
              validate=self.rows("valid", model, context))

    def rows(self, split: str, model: "AutoencoderLoss", context: Context) -> Batches:
        if isinstance(self.autoencoder.features, Cached):
            return EncodedSplit(context.get(self.states()), split)
        texts = read_texts(context.get(self.language_model.data), split)
        return TokenRows.of(texts, model.language_model.words, self.length)


def load_autoencoder(stage: TrainedAutoencoder, language_model: FrozenLanguageModel,
                     context: Context) -> PerceiverAutoencoder:
    """The trained Perceiver, frozen."""
    loss = AutoencoderLoss(stage, language_model)
    load_weights(loss, context.get(stage))
    return loss.perceiver.requires_grad_(False).eval()


class AutoencoderLoss(nn.Module):
    """The Perceiver between the halves of a frozen language model, with its loss, for the trainer."""

    def __init__(self, stage: TrainedAutoencoder, language_model: FrozenLanguageModel):
        super().__init__()
        self.stage, self.language_model = stage, language_model
        try:
            self.perceiver = stage.perceiver.build(language_model.width, stage.length)
        except ValueError as error:
            raise ConfigError("perceiver", str(error)) from None

    def loss(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Tensor]:
        """Cross-entropy of the tokens in nats, the mean of each text's mean, and `accuracy` of saying them."""
        cfg = self.stage.autoencoder
        self.language_model.train(self.training and cfg.features.dropout)
        Z = self.perceiver.compress(self.states(batch, rng), batch.mask)
        if self.training and cfg.latent_noise:
            Z = Z + cfg.latent_noise * rng.normal(Z.shape).to(Z.dtype)
        logits = self.language_model.logits(self.perceiver.expand(Z), None, batch.ids)
        loss, accuracy = said_right(logits, batch.ids, batch.mask)
        return {"loss": loss, "accuracy": accuracy}

    def states(self, batch: Batch, rng: Rng) -> Tensor:
        """What the compressor reads, [B, L, E]: computed, or cached and noised."""
        features = self.stage.autoencoder.features
        if batch.encodings is None or isinstance(features, Live):
            return self.language_model.encode(batch.ids, batch.mask)
        h = batch.encodings
        if not self.training or not features.noise:
            return h
        return h + features.noise * h.std(-1, keepdim=True) * rng.normal(h.shape).to(h.dtype)
