"""TEncDM: diffusion over the encodings of a frozen language model.                          arXiv 2402.19097

    words --encoder--> encodings --normalise--> x_0 [B, L, D]              text/encoders.py, text/encodings.py
    x_t = alpha_t x_0 + sigma_t noise,  t ~ U[0, 1]                        diffusion/gaussian.py, times.py
    x0_hat = network(x_t, t, previous x0_hat)      loss = |x0_hat - x_0|^2         networks/transformer.py
    words <--decoder-- denormalise <-- x_0         trained on slightly noised encodings    text/decoder.py

Why encodings and not embeddings: in context a word's vector also tells of its neighbours, so one position's error is
mended by the others, and the decoder, which reads whole encodings, mends the rest.

Self-conditioning: a share of each batch first guesses x_0 without a hint, and is then shown that guess.  Sampling hands
each step's guess to the next.  Conditional: every layer also reads the encoded source; dropping it now and then teaches
the unconditional guess that guidance pushes away from.

Stages: corpus -> encoder -> encoded texts -> statistics -> decoder -> checkpoint -> samples -> metrics.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from trainables.config import config
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.sampler import Sampling
from trainables.diffusion.schedules import Tangent
from trainables.diffusion.steppers import DpmPlusPlus2M, EulerMaruyama, Grid, LinearGrid, LogSnrGrid, Stepper
from trainables.diffusion.times import Times, check_levels
from trainables.evaluation.bleu import Bleu
from trainables.evaluation.context_gain import ContextBounds, ContextGain
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.features import Pooled
from trainables.evaluation.frechet import Frechet
from trainables.evaluation.judge import JudgeNll
from trainables.evaluation.mauve import Mauve
from trainables.evaluation.memorisation import Memorisation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.perplexity import Perplexity
from trainables.evaluation.variety import Variety
from trainables.networks.transformer import Transformer, WordReader
from trainables.randomness import Rng
from trainables.stages import Context, Stage
from trainables.system import Batch, Prediction, Walk
from trainables.text.corpora import Data, RocStories, Stories
from trainables.text.decoder import DecoderTraining, TrainedDecoder, load_reader, source_of
from trainables.text.encoders import Bert, Embeddings, Encoder, Small
from trainables.text.encodings import EncodedTexts, Encodings, EncodingStatistics
from trainables.training.average import Ema, NoAverage
from trainables.training.batches import Batches
from trainables.training.learning_rate import Constant, Cosine, Linear
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

if TYPE_CHECKING:
    from trainables.trial import Trial


@config
class TEncDM:
    """What is diffused, how it is noised, and the network that undoes it."""

    encoder: Encoder = Bert()
    length: int = 64                                     # tokens of a text, special ones included; longer texts are cut
    process: Gaussian = Gaussian(schedule=Tangent(d=9.0), predicts="x0")
    times: Times = Times()
    self_conditioning: float = 0.5                       # share of a batch that sees its own first guess
    network: Transformer = Transformer()
    decoder: DecoderTraining = DecoderTraining()
    source_length: int = 0                               # tokens of a source; 0: unconditional, sources are not read
    source_dropout: float = 0.1                          # share of sources replaced by the empty text, if any are read

    def __post_init__(self):
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"self_conditioning is a share in [0, 1], not {self.self_conditioning}")
        if not 0 <= self.source_dropout < 1:
            raise ValueError(f"source_dropout is a share in [0, 1), not {self.source_dropout}")
        if not 4 <= self.length <= self.network.positions:
            raise ValueError(f"length must lie in 4..{self.network.positions} (network.positions), not {self.length}")
        check_levels(self.times, self.process.schedule)

    steppers: ClassVar[tuple] = get_args(Stepper)        # how a sampler may walk
    dropouts: ClassVar[dict[str, str]] = {"source": "source_dropout"}        # see trial.check_guidance
    losses: ClassVar[tuple[str, ...]] = ("loss",)        # that training records
    reads_class: ClassVar[bool] = False

    @property
    def reads_source(self) -> bool:
        return self.source_length > 0

    @property
    def state_length(self) -> int:
        """Positions of what is diffused."""
        return self.length

    def encoded(self, data: Data) -> EncodedTexts:
        return EncodedTexts(data=data, encoder=self.encoder, length=self.length, source_length=self.source_length)

    def trained_decoder(self, data: Data) -> TrainedDecoder:
        return TrainedDecoder(encoded=self.encoded(data), process=self.process, decoder=self.decoder,
                              reads_source=self.reads_source)

    def context_bounds(self, data: Data) -> tuple[ContextBounds, ...]:
        """What can be known from context is known exactly where the texts can be enumerated."""
        known = isinstance(data, Stories) and not self.reads_source and not self.times.per_token
        return (ContextBounds(encoded=self.encoded(data), process=self.process, times=self.times),) if known else ()

    def diagnoses(self, data: Data) -> tuple[str, ...]:
        """Names of what the system says of itself at each validation."""
        return ("context_gain",) if self.context_bounds(data) else ()

    def learned(self) -> "TEncDM":
        """The part of this config that training depends on: another decoder finds the same checkpoint."""
        return dataclasses.replace(self, decoder=DecoderTraining())

    def released(self) -> "TEncDM":
        """This config for a generator, which has no corpus."""
        return self

    def needs_to_train(self, data: Data) -> tuple[Stage, ...]:
        """No value is written twice, so the graph of stages follows from the fields."""
        encoded = self.encoded(data)
        return encoded, EncodingStatistics(encoded=encoded), *self.context_bounds(data)

    def needs_to_sample(self, data: Data) -> tuple[Stage, ...]:
        return *self.needs_to_train(data), self.trained_decoder(data)

    def build(self, data: Data, context: Context) -> "TEncDMSystem":
        """The system with fresh weights from torch's global generator, on the CPU, to be trained."""
        gain = [ContextGain(context.get(bounds)) for bounds in self.context_bounds(data)]
        return TEncDMSystem(self, Encodings.of(self.encoded(data), context), gain[0] if gain else None)

    def build_to_sample(self, data: Data, context: Context) -> "TEncDMSystem":
        """The same, and able to decode."""
        system = self.build(data, context)
        system.reader = load_reader(self.trained_decoder(data), system.encodings, context)
        return system


class TEncDMSystem(nn.Module):
    """TEncDM with weights: a System (system.py)."""

    def __init__(self, cfg: TEncDM, encodings: Encodings, gain: ContextGain | None):
        super().__init__()
        self.cfg, self.encodings, self.gain = cfg, encodings, gain
        self.network = cfg.network.build(encodings.width, cfg.reads_source)
        self.reader: WordReader | None = None               # frozen; only sampling needs it

    # ---------------------------------------------------------------- training

    def loss(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Tensor]:
        """Mean squared error of the guess, over all positions, pads included: where a text ends is part of it."""
        x0 = self.encodings.encode(batch)                                              # [B, L, D]
        t = self.cfg.times.draw(batch.mask, progress, rng, self.cfg.process.schedule)
        x_t, noise = self.cfg.process.corrupt(x0, t, rng)
        source = self.source(batch, len(x0), rng if self.training else None)
        guess = self.first_guess(x_t, t, source, rng)
        output = self.network(x_t, t, guess, *source)
        return {"loss": (output - self.cfg.process.target(x0, noise, t)).square().mean()}

    @torch.no_grad()
    def first_guess(self, x_t: Tensor, t: Tensor, source: tuple, rng: Rng) -> Tensor:
        """x0_hat [B, L, D] for the first rows of the global batch, zeros for the others."""
        guess = torch.zeros_like(x_t)
        hinted = rng.leading(len(x_t), self.cfg.self_conditioning)
        if hinted:
            x_t, t, source = x_t[:hinted], t[:hinted], tuple(s if s is None else s[:hinted] for s in source)
            guess[:hinted] = self.cfg.process.to_x0(self.network(x_t, t, guess[:hinted], *source), x_t, t)
        return guess

    def diagnose(self) -> dict[str, Tensor]:
        """Of the averaged weights, at each validation: how much of what context tells they know."""
        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            first = self.denoise(x_t, t, previous=None)
            return self.denoise(x_t, t, previous=first).x0 if self.cfg.self_conditioning else first.x0

        return {"context_gain": self.gain(denoise, self.encodings.mean.device)} if self.gain else {}

    def source(self, batch: Batch | None, rows: int, dropout: Rng | None = None) -> tuple[Tensor | None, Tensor | None]:
        """What the network reads: encoded source [B, S, D] and its mask [B, S]; the empty text where there is none."""
        if not self.cfg.reads_source:
            return None, None
        if batch is None or batch.source is None:
            return self.nothing(rows)
        source, mask = self.encodings.encode(batch.source), batch.source.mask
        if dropout is not None:
            nothing, seen = self.nothing(rows, source.shape[1])
            dropped = dropout.uniform((rows, 1)) < self.cfg.source_dropout
            source, mask = torch.where(dropped[..., None], nothing, source), torch.where(dropped, seen, mask)
        return source, mask

    def nothing(self, rows: int, length: int | None = None) -> tuple[Tensor, Tensor]:
        """The empty text, encoded, and its mask: what is read where no source is."""
        empty = self.encodings.empty(rows, length or self.cfg.source_length)
        return self.encodings.encode(empty), empty.mask

    # ---------------------------------------------------------------- sampling

    def times(self, grid: Grid, steps: int) -> Tensor:
        return grid.times(self.cfg.process.schedule, steps)

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        return self.cfg.process.prior((*shape, self.encodings.width), rng)

    def denoise(self, x_t: Tensor, t: Tensor, *, previous: Prediction | None, batch: Batch | None = None) -> Prediction:
        guess = torch.zeros_like(x_t) if previous is None or not self.cfg.self_conditioning else previous.x0
        output = self.network(x_t, t, guess, *self.source(batch, len(x_t)))
        return Prediction(self.cfg.process.to_x0(output, x_t, t))

    def reverse(self, x_t: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        return walk.stepper.step(self.cfg.process, x_t, hat, t, s, walk)

    def decode(self, x: Tensor, hat: Prediction, batch: Batch | None = None, rng: Rng | None = None) -> list[str]:
        """The likeliest word at each position, up to the first end token."""
        assert self.reader is not None, "built to train, not to sample"
        logits = self.reader(self.encodings.denormalise(x), *source_of(self.cfg.reads_source, batch))
        return self.encodings.texts(logits.argmax(-1))

    def compilable(self) -> list[nn.Module]:
        """The network."""
        return [self.network]

    # ---------------------------------------------------------------- data

    def batches(self, split: str) -> Batches:
        return self.encodings.batches(split)

    def read_sources(self, texts: list[str], context: Context) -> Batch:
        """Sources that are in no cache, in its precision."""
        batch = self.encodings.read(texts, self.cfg.source_length)
        assert batch.encodings is not None
        if isinstance(self.cfg.encoder, Embeddings) or self.cfg.encoder.weights.storage == "float32":
            return batch
        return dataclasses.replace(batch, encodings=batch.encodings.half().float())


# ---------------------------------------------------------------- recipes

# What differs, as changes for `override`, where texts are written from sources (the published weight of guidance).
SEQUENCE_TO_SEQUENCE: dict[str, Any] = {
    "system.source_length": 64, "sampling.guidance": 0.5,
    "evaluation.metrics": (Bleu(), JudgeNll(), Variety(), Memorisation())}


def tencdm(data: Data = RocStories()) -> "Trial":
    """The paper's recipe, to the number: ROCStories, bert-base-cased, tan-9, 200,000 steps of 512."""
    from trainables.trial import Trial  # a trial names the systems, so the recipe names it late

    return Trial(
        system=TEncDM(),
        data=data,
        training=Training(
            optimizer=AdamW(lr=2e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, decays="all"),
            schedule=Constant(warmup=5_000, start=5e-5), ema=Ema(decay=0.9999),
            steps=200_000, batch=512, clip=1.0, record_every=100, validate_every=5_000, save_every=5_000),
        sampling=Sampling(stepper=EulerMaruyama(), grid=LinearGrid(end=0.01), steps=50, count=1_000, batch=1_000),
        evaluation=Evaluation(
            metrics=(Mauve(features=Pooled(name="gpt2-large"), buckets=100), Perplexity(name="gpt2-large"), JudgeNll(),
                     Variety(), Memorisation()),
            references=1_000))


def tencdm_laptop(data: Data = Stories()) -> "Trial":
    """A recipe that learns the built-in corpus in about a minute on one core; other texts get longer sequences.

    What differs from the paper, and why: few narrow layers with norms in front, which learn faster when steps are few;
    a tangent of 2 instead of 9, since a word in 32 dimensions drowns at less noise than one in 768; no times so early
    that each word is plain by itself; AdamW with 65 times the rate, which falls to nothing; 20 steps of DPM-Solver++
    evenly spread over log-SNR in place of 50 Euler steps, down to where training begins (log-SNR .4 at time .25).
    """
    from trainables.trial import Trial

    stories = isinstance(data, Stories)
    return Trial(
        system=TEncDM(
            encoder=Bert(weights=small_encoder(width=32 if stories else 64, length=48 if stories else 64)),
            length=13 if stories else 48,
            process=Gaussian(schedule=Tangent(d=2.0), predicts="x0"),
            times=Times(low=0.25 if stories else 0.05),
            network=Transformer(layers=3, width=64, heads=2, feedforward=256, positions=64, dropout=0.0, skips=False,
                                norm="pre", time_scale=1_000.0, silent=True),
            decoder=DecoderTraining(
                layers=2, heads=2, feedforward=256, dropout=0.0, noise_up_to=0.3,
                training=Training(optimizer=AdamW(lr=5e-3), schedule=Linear(warmup=20), ema=NoAverage(), steps=700,
                                  batch=64))),
        data=data,
        training=Training(
            optimizer=AdamW(lr=1.3e-2, betas=(0.9, 0.95)), schedule=Linear(warmup=100), ema=Ema(decay=0.99),
            steps=1_700 if stories else 1_200, batch=64 if stories else 32, record_every=50, validate_every=500,
            save_every=500, validate_on=512),
        sampling=Sampling(stepper=DpmPlusPlus2M(), grid=LogSnrGrid(low=-8.0, high=0.4 if stories else 4.0), steps=20,
                          count=500, batch=500),
        evaluation=Evaluation(
            metrics=(OracleScores(), Variety(), Memorisation()) if stories else
            (Frechet(), JudgeNll(), Variety(), Memorisation()),
            references=500))


def small_encoder(width: int, length: int) -> Small:
    """A language model small enough to be trained before breakfast; it hides more of a text than the published 15 %,
    which of ten words would be one or two."""
    return Small(layers=2, width=width, heads=2, feedforward=4 * width, dropout=0.0, vocabulary=1_000, hidden=0.3,
                 length=length, training=Training(optimizer=AdamW(lr=3e-3), schedule=Cosine(warmup=50), ema=NoAverage(),
                                                  steps=600, batch=64))
