"""LD4LG: latent diffusion for language.                                                            arXiv 2212.09462

    words --frozen encoder--> states --compress--> x_0 [B, 32, 64], norms fixed       text/autoencoder.py, latents.py
    x_t = alpha_t x_0 + sigma_t noise,  t ~ U[0, 1]                                   diffusion/gaussian.py, times.py
    v_hat = network(x_t, t, previous x0_hat, class, source)    loss = |v_hat - v|^2   networks/latent_transformer.py
    words <--frozen decoder-- states <--expand-- x_0           by beams, or a nucleus     text/language_model.py

Why compress: diffusion then has few, equally long, smooth vectors to make, and a language model, which knows how words
go together, writes the text out of them.

Conditions: a class is added to the time's embedding; a source is read by cross-attention, as a frozen encoder's states.
Each is now and then replaced by a learned nothing, example by example, so that guidance has a guess without it.
RawEncodings in the representation's place is the same system without an autoencoder, with lengths.

Stages: corpus -> language model -> autoencoder -> latents -> statistics -> checkpoint -> samples -> metrics.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import config
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.sampler import Sampling
from trainables.diffusion.schedules import Cosine as CosineNoise
from trainables.diffusion.steppers import Ddpm, DpmPlusPlus2M, Grid, LinearGrid, LogSnrGrid, Stepper
from trainables.diffusion.times import Times, check_levels
from trainables.evaluation.bleu import Bleu
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.features import Pooled
from trainables.evaluation.frechet import Frechet
from trainables.evaluation.judge import JudgeNll
from trainables.evaluation.mauve import Mauve
from trainables.evaluation.memorisation import Memorisation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.perplexity import Perplexity
from trainables.evaluation.rouge import Rouge
from trainables.evaluation.variety import Variety
from trainables.networks.latent_transformer import LatentTransformer
from trainables.networks.perceiver import Perceiver
from trainables.randomness import Rng, step_rng
from trainables.stages import Context, Stage
from trainables.system import Batch, Prediction, Walk
from trainables.text.autoencoder import AutoencoderTraining, Cached
from trainables.text.conditions import EncodedSources, Labels, NoSource, OwnEncoder, Source
from trainables.text.corpora import Data, RocStories, Stories
from trainables.text.encoders import EncoderFolder
from trainables.text.families import T5, Bart, Pretrained, Small
from trainables.text.language_model import Decoding, Greedy, LanguageModelFolder, LanguageModelStates
from trainables.text.latents import (
    LatentSpace,
    LatentSplit,
    LatentStatistics,
    LengthHistogram,
    PerceiverLatents,
    Representation,
    Texts,
)
from trainables.training.average import Ema, NoAverage, PowerEma
from trainables.training.learning_rate import Cosine, Linear
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

if TYPE_CHECKING:
    from trainables.trial import Trial

ASKED = 64                    # held-out texts that are asked how well they are guessed at each time


@config
class Ld4lg:
    """What is diffused, how it is noised, what it hangs on, and the network that undoes the noise."""

    representation: Representation = PerceiverLatents()
    length: int = 64                                     # tokens of a text, special ones included; longer texts are cut
    process: Gaussian = Gaussian(schedule=CosineNoise(), predicts="v")
    times: Times = Times()
    loss: Literal["l2", "l1", "smooth_l1"] = "l2"
    self_conditioning: float = 0.5                       # share of a batch that sees its own first guess
    network: LatentTransformer = LatentTransformer()
    classes: bool = False                                # whether it is told the texts' classes
    class_dropout: float = 0.1                           # share of classes it is not told while training
    source: NoSource | Source = NoSource()
    decoding: Decoding = Decoding()
    rescale_steps: bool = False                          # put each step's guess to the latents' norm (seq2seq recipe)
    as_published: bool = False                           # hints have that norm while training only

    steppers: ClassVar[tuple] = get_args(Stepper)        # how a sampler may walk
    dropouts: ClassVar[dict[str, str]] = {"source": "source.dropout", "class": "class_dropout"}     # see check_guidance
    losses: ClassVar[tuple[str, ...]] = ("loss",)        # that training records

    def __post_init__(self):
        _share(class_dropout=self.class_dropout)
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"self_conditioning is a share in [0, 1], not {self.self_conditioning}")
        if self.length < 4:
            raise ValueError(f"length must be at least 4 tokens, not {self.length}")
        if self.state_length > self.network.positions:
            raise ValueError(f"network.positions must be at least the {self.state_length} places of a state, "
                             f"not {self.network.positions}")
        if self.rescale_steps and not self.representation.fixed_norm:
            raise ValueError("rescale_steps needs latents of a fixed norm; it must be False")
        check_levels(self.times, self.process.schedule)

    @property
    def reads_source(self) -> bool:
        return isinstance(self.source, Source)

    @property
    def reads_class(self) -> bool:
        return self.classes

    @property
    def state_length(self) -> int:
        """Positions of what is diffused."""
        return self.representation.state_length(self.length)

    # ---------------------------------------------------------------- stages: no value is written twice

    def language_model(self, data: Data) -> LanguageModelFolder:
        """A model trained here on the corpus must have met sources too, if it is to read them."""
        model = self.representation.model
        learns = isinstance(model.weights, Small) and isinstance(self.source, Source) \
            and isinstance(self.source.encoder, OwnEncoder)
        return LanguageModelFolder(data=data, model=model, sources=learns)

    def texts(self, data: Data) -> Texts:
        return self.representation.texts(self.language_model(data), self.length)

    def sources(self, data: Data) -> EncodedSources | None:
        if not isinstance(self.source, Source):
            return None
        reader = self.source.encoder
        encoder = self.language_model(data) if isinstance(reader, OwnEncoder) else \
            EncoderFolder(data=data, encoder=reader, sources=isinstance(reader.weights, Small))
        return EncodedSources(data=data, encoder=encoder, length=self.source.length, cached=self.source.cached)

    def labels(self, data: Data) -> Labels | None:
        return Labels(data=data) if self.classes else None

    def diagnoses(self, data: Data) -> tuple[str, ...]:
        """Names of what the system says of itself at each validation."""
        return tuple(f"error_at_{share}" for share in (25, 50, 75))

    def learned(self) -> "Ld4lg":
        """The part of this config that training depends on: another decoding finds the same checkpoint."""
        return dataclasses.replace(self, decoding=Decoding(), rescale_steps=False, as_published=False)

    def released(self) -> "Ld4lg":
        """This config for a generator, which has no corpus: sources are read when they come."""
        if not isinstance(self.source, Source):
            return self
        return dataclasses.replace(self, source=dataclasses.replace(self.source, cached=False))

    def needs_to_train(self, data: Data) -> tuple[Stage, ...]:
        texts = self.texts(data)
        conditions = [stage for stage in (self.sources(data), self.labels(data)) if stage is not None]
        return texts, LatentStatistics(texts=texts), *conditions

    def needs_to_sample(self, data: Data) -> tuple[Stage, ...]:
        texts = self.texts(data)
        lengths = (LengthHistogram(texts=texts),) if isinstance(texts, LanguageModelStates) else ()
        return *self.needs_to_train(data), self.language_model(data), *lengths

    def build(self, data: Data, context: Context) -> "Ld4lgSystem":
        """The system with fresh weights from torch's global generator, on the CPU, to be trained."""
        return Ld4lgSystem(self, LatentSpace(self.representation, self.texts(data), self.sources(data),
                                             self.labels(data), context))

    def build_to_sample(self, data: Data, context: Context) -> "Ld4lgSystem":
        """The same, and able to write."""
        system = self.build(data, context)
        system.space.open_to_decode(context)
        return system


def _share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} is a share in [0, 1), not {value}")


class Ld4lgSystem(nn.Module):
    """LD4LG with weights: a System (system.py), of which only `network` is trained.

    `hint` is the guess that the network sees of its own.  Latents of a fixed norm are hinted at with that norm, in
    training and in sampling alike; the published code forgets it in unconditional sampling (`as_published`).
    """

    def __init__(self, cfg: Ld4lg, space: LatentSpace):
        super().__init__()
        self.cfg, self.space = cfg, space
        self.network = cfg.network.build(space.width, hint=cfg.self_conditioning > 0, classes=len(space.classes),
                                         source=space.source_width)

    # ---------------------------------------------------------------- training

    def loss(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Tensor]:
        """The mean over a text's valid places and their features, then over texts."""
        x0, mask = self.space.encode(batch), self.space.valid(batch, len(batch))         # [B, L', D], [B, L']
        t = self.cfg.times.draw(mask, progress, rng, self.cfg.process.schedule)
        x_t, noise = self.cfg.process.corrupt(x0, t, rng)
        known = self.known(batch, mask, rng if self.training else None)
        output = self.network(x_t, t, self.signal(t), mask, **self.first_guess(x_t, t, mask, known, rng), **known)
        errors = distances(output, self.cfg.process.target(x0, noise, t), self.cfg.loss).mean(-1)
        return {"loss": ((errors * mask).sum(1) / mask.sum(1)).mean()}

    @torch.no_grad()
    def first_guess(self, x_t: Tensor, t: Tensor, mask: Tensor, known: dict[str, Any], rng: Rng) -> dict[str, Tensor]:
        """A hint [B, L', D] for the first rows of the global batch, and which rows those are."""
        count = rng.leading(len(x_t), self.cfg.self_conditioning)
        hinted = torch.arange(len(x_t), device=x_t.device) < count
        if not count:
            return {}
        some = {name: value if value is None else value[:count] for name, value in known.items()}
        x_t, t, hint = x_t[:count], t[:count], torch.zeros_like(x_t)
        output = self.network(x_t, t, self.signal(t), mask[:count], **some)
        hint[:count] = self.space.renorm(self.cfg.process.to_x0(output, x_t, t))
        return {"hint": hint, "hinted": hinted}

    def known(self, batch: Batch | None, mask: Tensor, dropout: Rng | None = None) -> dict[str, Tensor | None]:
        """What the network is told of class and source; with `dropout`, some rows less than there is to tell."""
        told: dict[str, Tensor | None] = {}
        label = None if batch is None else batch.label
        if self.cfg.classes:
            nothing = torch.full(mask.shape[:1], self.network.classes, device=mask.device)
            label = nothing if label is None else label
            if dropout is not None:
                label = torch.where(dropout.uniform(mask.shape[:1]) < self.cfg.class_dropout, nothing, label)
            told["label"] = label
        source = None if batch is None else batch.source
        if isinstance(self.cfg.source, Source) and source is not None:
            told |= {"source": self.space.read(source), "source_mask": source.mask}
            if dropout is not None:
                told["read"] = dropout.uniform(mask.shape[:1]) >= self.cfg.source.dropout
        return told

    def signal(self, t: Tensor) -> Tensor:
        """The share of the power that is signal, abar.   [B, 1] or [B, L'], as t"""
        alpha, sigma = self.cfg.process.at(t)
        return (alpha**2 / (alpha**2 + sigma**2)).squeeze(-1)

    def diagnose(self) -> dict[str, Tensor]:
        """Of the averaged weights: the mean square error of the guess at a quarter, half and three quarters of time.

        A loss is a mean over the times that training draws, so under other times it is another quantity; this is the
        same one, on the same noised texts, for all that share the latents and the process.
        """
        rows, told = self.batches("valid"), {}
        batch = rows.take(torch.arange(min(ASKED, len(rows)))).to(self.space.mean.device)
        x0, mask = self.space.encode(batch), self.space.valid(batch, len(batch))
        for share in (25, 50, 75):
            t = torch.full((len(batch), 1), share / 100, device=x0.device)
            x_t, _ = self.cfg.process.corrupt(x0, t, step_rng(0, f"noise {share}", x0.device))
            hat = self.denoise(x_t, t, previous=None, batch=batch)
            if self.cfg.self_conditioning:
                hat = self.denoise(x_t, t, previous=hat, batch=batch)
            told[f"error_at_{share}"] = (hat.x0 - x0)[mask].square().mean()
        return told

    # ---------------------------------------------------------------- sampling

    def times(self, grid: Grid, steps: int) -> Tensor:
        return grid.times(self.cfg.process.schedule, steps)

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        return self.cfg.process.prior((*shape, self.space.width), rng)

    def draw_mask(self, rows: int, rng: Rng, batch: Batch | None = None) -> Tensor:
        return self.space.draw_mask(rows, rng)

    def denoise(self, x_t: Tensor, t: Tensor, *, previous: Prediction | None, batch: Batch | None = None) -> Prediction:
        mask = self.space.valid(batch, len(x_t))
        hint = None
        if previous is not None and self.cfg.self_conditioning:
            hint = previous.x0 if self.cfg.as_published else self.space.renorm(previous.x0)
        output = self.network(x_t, t, self.signal(t), mask, hint=hint, **self.known(batch, mask))
        return Prediction(self.cfg.process.to_x0(output, x_t, t))

    def settle(self, hat: Prediction) -> Prediction:
        """With the latents' norm, if steps are to go to such: guidance moves what the network says, and then off it."""
        return dataclasses.replace(hat, x0=self.space.renorm(hat.x0)) if self.cfg.rescale_steps else hat

    def reverse(self, x_t: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        return walk.stepper.step(self.cfg.process, x_t, hat, t, s, walk)

    def decode(self, x: Tensor, hat: Prediction, batch: Batch | None = None, rng: Rng | None = None) -> list[str]:
        """What the language model writes, having read the last state."""
        return self.space.write(x, self.space.valid(batch, len(x)), self.cfg.decoding, rng)

    def compilable(self) -> list[nn.Module]:
        """The network."""
        return [self.network]

    # ---------------------------------------------------------------- data

    def batches(self, split: str) -> LatentSplit:
        return self.space.batches(split)

    def read_sources(self, texts: list[str], context: Context) -> Batch:
        """Sources that are in no cache; only who reads them when they come can (`cached` is False)."""
        assert isinstance(self.cfg.source, Source) and self.space.reads is not None
        ids, mask = self.space.reads.words.ids(texts, self.cfg.source.length)
        return Batch(ids=ids, mask=mask)


def distances(output: Tensor, target: Tensor, kind: str) -> Tensor:
    """How far apart they are, number by number."""
    if kind == "l2":
        return (output - target).square()
    return F.l1_loss(output, target, reduction="none") if kind == "l1" else \
        F.smooth_l1_loss(output, target, reduction="none")


# ---------------------------------------------------------------- recipes

# What differs, as changes for `override`.  Guidance 1 is the paper's 2, where 1 is off.
CLASS_CONDITIONAL: dict[str, Any] = {"system.classes": True}
SEQUENCE_TO_SEQUENCE: dict[str, Any] = {
    "system.source": Source(), "system.loss": "l1", "system.rescale_steps": True, "sampling.guidance": 1.0,
    "sampling.candidates": 5, "sampling.consensus": "rouge2",
    "evaluation.metrics": (Bleu(), Rouge(), JudgeNll(), Variety(), Memorisation())}
# Its latents have no norm, to which nothing can be put: where it reads sources, it comes last.
FLAN_T5: dict[str, Any] = {
    "system.representation.model": T5(weights=Pretrained(name="google/flan-t5-base")),
    "system.representation.perceiver.norm": False, "system.representation.perceiver.deviation": 0.0,
    "system.rescale_steps": False}


def ld4lg(data: Data = RocStories()) -> "Trial":
    """The paper's recipe, to the number: ROCStories, BART-base, 32 latents of 64, v, 250,000 steps of 128, 250 of DDPM.

    Others of the paper's are `override(ld4lg(data), CLASS_CONDITIONAL)`, SEQUENCE_TO_SEQUENCE, FLAN_T5, or
    SEQUENCE_TO_SEQUENCE | FLAN_T5.
    """
    from trainables.trial import Trial  # a trial names the systems, so the recipe names it late

    return Trial(
        system=Ld4lg(),
        data=data,
        training=Training(
            optimizer=AdamW(lr=2e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-6), schedule=Cosine(warmup=1_000),
            ema=PowerEma(decay=0.9999), steps=250_000, batch=128, clip=1.0, precision="float32", record_every=100,
            validate_every=5_000, save_every=5_000),
        sampling=Sampling(stepper=Ddpm(variance="large"), grid=LinearGrid(), steps=250, count=1_000, batch=250),
        evaluation=Evaluation(
            metrics=(Mauve(features=Pooled(name="gpt2-large"), buckets=100), Perplexity(name="gpt2-large"), JudgeNll(),
                     Variety(), Memorisation()),
            references=1_000))


def ld4lg_laptop(data: Data = Stories()) -> "Trial":
    """A recipe that learns the built-in corpus on one core in minutes, language model and autoencoder included.

    Class-conditional and sequence-to-sequence by the same config values as the paper's recipe.  On real texts the
    language model hides little and reads much: it must say what it has read, for one that is used to guessing writes
    what nobody said; and there is a latent for every token but the longest texts' last ones.
    """
    from trainables.trial import Trial

    stories = isinstance(data, Stories)
    width, length = (64, 16) if stories else (96, 56)
    hidden, steps, autoencoder_steps = (0.15, 500, 500) if stories else (0.05, 1_000, 1_500)
    return Trial(
        system=Ld4lg(
            representation=PerceiverLatents(
                model=Bart(weights=small_language_model(width, 16 if stories else 66, hidden, steps)),
                perceiver=Perceiver(latents=8 if stories else 32, width=16 if stories else 32, layers=1, heads=4,
                                    deviation=0.0),
                training=AutoencoderTraining(
                    features=Cached(noise=0.2), latent_noise=0.2,
                    training=Training(optimizer=AdamW(lr=3e-3, betas=(0.9, 0.98)), schedule=Linear(warmup=50),
                                      ema=NoAverage(), steps=autoencoder_steps, batch=64))),
            length=length,
            times=Times(low=0.01),
            network=LatentTransformer(layers=4, width=width, heads=2, positions=64, dropout=0.0, dense=1),
            decoding=Decoding(by=Greedy(), longest=length, shortest=0, unrepeated=0, repetition_penalty=1.0)),
        data=data,
        training=Training(
            optimizer=AdamW(lr=5e-3 if stories else 3e-3, betas=(0.9, 0.98)), schedule=Cosine(warmup=100),
            ema=Ema(decay=0.99), steps=2_000, batch=64, record_every=50, validate_every=500, save_every=500,
            validate_on=512),
        sampling=Sampling(stepper=DpmPlusPlus2M(), grid=LogSnrGrid(low=-8.0, high=6.0), steps=20, count=500, batch=500),
        evaluation=Evaluation(
            metrics=(OracleScores(), Variety(), Memorisation()) if stories else
            (Frechet(), JudgeNll(), Variety(), Memorisation()),
            references=500))


def small_language_model(width: int, length: int, hidden: float, steps: int) -> Small:
    """A language model small enough to be trained before breakfast."""
    return Small(layers=2, decoder_layers=1, width=width, heads=4, feedforward=4 * width, dropout=0.0,
                 vocabulary=1_000, hidden=hidden, length=length,
                 training=Training(optimizer=AdamW(lr=3e-3), schedule=Cosine(warmup=50), ema=NoAverage(), steps=steps,
                                   batch=64))
