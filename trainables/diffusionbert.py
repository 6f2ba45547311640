"""DiffusionBERT and masked diffusion: texts disappear word by word behind the mask, and a masked language model
brings them back.                                                            arXiv 2211.15029, 2406.07524, 2107.03006

    words --tokenizer--> x_0 [B, L] ids                                     text/word_information.py
    x_t: tokens hidden with the process' probability at t ~ (0, 1]          diffusion/absorbing.py, text/hiding.py
    log p(x_0) = masked LM(x_t)        told the time, or not                text/masked_lm.py
    loss = the bound's term at t, over hidden tokens
    all hidden --Ancestral--> a word here and there --> ... --> text        diffusion/unmasking.py

One layout in training, bound and sampling (text/layout.py): what is read in front, the start token or the source, is
always visible and not part of the state; the state is the text, its end and padding.  Lengths are drawn from those of
the training texts, or written by the model.

Objectives: Mdlm (the mask is no answer, visible tokens are kept, continuous time or T steps; a bound, spindle
included) and D3pm (the mask is an answer among others; as_published with the published spindle, which is no bound).

Reported, whatever the objective: the bound on -log p(text) for the sampler as it is, on the validation texts, in nats
per token (pieces and the end token), per piece and per word between blanks, each with its perplexity.

Stages: corpus -> masked LM -> ids -> word information -> checkpoint -> samples -> metrics.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.config import ConfigError, config, override
from trainables.diffusion.absorbing import Absorbing
from trainables.diffusion.objectives import D3pm, Mdlm, step_of
from trainables.diffusion.sampler import Sampling
from trainables.diffusion.steppers import Grid
from trainables.diffusion.times import Times, stratified
from trainables.diffusion.unmasking import Ancestral
from trainables.evaluation.bleu import Bleu
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.frechet import Frechet
from trainables.evaluation.judge import JudgeNll
from trainables.evaluation.memorisation import Memorisation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.perplexity import Perplexity
from trainables.evaluation.text_bound import BoundEstimate, text_bound
from trainables.evaluation.variety import Variety
from trainables.randomness import Rng
from trainables.stages import Context, Stage
from trainables.system import Batch, Prediction, Walk
from trainables.text.corpora import PARQUET, Data, HubTexts, Stories
from trainables.text.encoders import Bert, Pretrained, Roberta, Small
from trainables.text.hiding import Hiding, at_places, at_rows, row_sums, where
from trainables.text.layout import Layout, Lengths, Places
from trainables.text.masked_lm import MaskedLm, MaskedLmFolder, MaskedLmNetwork, Told
from trainables.text.prompts import filled
from trainables.text.word_information import (
    Measure,
    Spindle,
    TokenSplit,
    TokenTexts,
    WordInformation,
    read_information,
)
from trainables.training.average import Ema, NoAverage
from trainables.training.batches import Batches
from trainables.training.learning_rate import Constant, Cosine
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

if TYPE_CHECKING:
    from trainables.trial import Trial

NEVER = -1e4           # log p of what cannot be: its exponential is 0, and guidance may subtract it from itself
NEARLY = -1e-30        # log p of what is all but certain: 0 itself is for what is known
LAST = 1e-3            # continuous time ends with one step from here to 0: rates have no bound there


# ---------------------------------------------------------------- config


@config
class DiffusionBert:
    """What is hidden when, the model that brings it back, and what it is trained for."""

    lm: MaskedLm = Bert()
    pretrained: bool = True                              # False: the model's size and words, with fresh weights
    length: int = 128                                    # tokens of a text, its end one of them; longer texts are cut
    process: Absorbing = Absorbing()
    measure: Measure = "frequency"                       # what of a word the spindle looks at
    objective: Mdlm | D3pm = Mdlm()
    told: Told = "nothing"                               # how the model learns the time
    times: Times = Times(low=0.0)                        # from 0 on: a floor would leave out a chain's first steps
    lengths: Lengths = "drawn"                           # where a text ends: see text/layout.py
    source_length: int = 0                               # tokens of a source; 0: unconditional, sources are not read
    source_dropout: float = 0.0                          # share of sources replaced by the empty text, for guidance
    bound: BoundEstimate = BoundEstimate()

    def __post_init__(self):
        if self.length < 3:
            raise ValueError(f"length must be at least 3 tokens, the end one of them, not {self.length}")
        if self.source_length < 0 or 0 < self.source_length < 3:
            raise ValueError(f"source_length must be 0 (no sources) or at least 3 tokens, not {self.source_length}")
        if not 0 <= self.source_dropout < 1:
            raise ValueError(f"source_dropout is a share in [0, 1), not {self.source_dropout}")
        if self.times.per_token:
            raise ConfigError("times.per_token", "must be false: the bound has one time for a text")
        if isinstance(self.objective, D3pm) and self.process.spindle and not self.objective.as_published:
            raise ConfigError("objective.as_published", "must be true for D3pm with a spindle, which is then a way of "
                              "training and no bound; Mdlm's term bounds with a spindle too")

    steppers: ClassVar[tuple] = (Ancestral,)
    dropouts: ClassVar[dict[str, str]] = {"source": "source_dropout"}        # see trial.check_guidance
    losses: ClassVar[tuple[str, ...]] = ("loss", "bound", "cross_entropy")
    reads_class: ClassVar[bool] = False

    @property
    def reads_source(self) -> bool:
        return self.source_length > 0

    @property
    def state_length(self) -> int:
        """Positions of what is diffused."""
        return self.length

    def folder(self, data: Data) -> MaskedLmFolder:
        return self.texts(data).folder()

    def texts(self, data: Data) -> TokenTexts:
        return TokenTexts(data=data, lm=self.lm, length=self.length, source_length=self.source_length)

    def information(self, data: Data) -> WordInformation:
        return WordInformation(texts=self.texts(data), measure=self.measure)

    def spindle(self, data: Data) -> tuple[Spindle, ...]:
        """How strong the spindle is, if there is one."""
        return (Spindle(information=self.information(data), process=self.process),) if self.process.spindle else ()

    def diagnoses(self, data: Data) -> tuple[str, ...]:
        """Names of what the system says of itself at each validation."""
        per = (f"{what}_per_{unit}" for what in ("bound", "bound_perplexity") for unit in ("token", "piece", "word"))
        return ("bound_per_text", "bound_length_per_text", "bound_error", *per, "bound_calls", "bound_seed",
                "bound_own_per_token")

    def learned(self) -> "DiffusionBert":
        return self

    def released(self) -> "DiffusionBert":
        """This config for a generator, which has no corpus, and whose weights are all in its checkpoint."""
        return dataclasses.replace(self, pretrained=False)

    def needs_to_train(self, data: Data) -> tuple[Stage, ...]:
        return self.folder(data), self.texts(data), self.information(data), *self.spindle(data)

    def needs_to_sample(self, data: Data) -> tuple[Stage, ...]:
        return self.needs_to_train(data)

    def build(self, data: Data, context: Context) -> "DiffusionBertSystem":
        """The system as training finds it, on the CPU; what is not pretrained comes from torch's global generator."""
        with torch.random.fork_rng(devices=[]):              # a stage that is made only now must not change the weights
            for stage in self.needs_to_train(data):
                context.get(stage)
        network = MaskedLmNetwork.load(context.get(self.folder(data)), self.told, untrained=not self.pretrained)
        needed = self.length + (self.source_length or len(network.words.start))
        if needed > network.positions:
            raise ConfigError("system.length", f"the model reads {network.positions} tokens at most, and text and "
                                               f"source would be {needed}")
        return DiffusionBertSystem(self, network, self.texts(data), context)

    build_to_sample = build


# ---------------------------------------------------------------- system


class DiffusionBertSystem(nn.Module):
    """DiffusionBert with weights: a System (system.py) that draws lengths."""

    def __init__(self, cfg: DiffusionBert, network: MaskedLmNetwork, texts: TokenTexts, context: Context):
        super().__init__()
        self.cfg, self.network, self.words, self.mask = cfg, network, network.words, network.mask
        self.split_folder = context.get(texts)
        known = read_information(context.get(cfg.information(texts.data)))
        self.process = cfg.process                                           # with lambda itself, whatever was said
        for stage in cfg.spindle(texts.data):
            strength = json.loads((context.get(stage) / "spindle.json").read_text())["spindle"]
            self.process = dataclasses.replace(cfg.process, spindle=strength, relative=False)
        lengths = known["lengths"]
        self.layout = Layout(network, cfg.length, cfg.source_length, cfg.lengths, lengths)
        counted = lengths.double() @ torch.arange(lengths.shape[1], dtype=torch.float64)
        typical = float(counted.sum() / lengths.sum()) - 1                   # words of a text, without the end
        self.typical = float(cfg.length) if cfg.lengths == "written" else max(typical, 1.0)
        self.hiding = Hiding(self.process, cfg.objective, cfg.measure, network.mask, network.vocabulary, known)

    # ---------------------------------------------------------------- training

    def loss(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Tensor]:
        """Nats per token that is to be said, weighted as the objective says; `bound` alone, without other terms."""
        cfg, objective = self.cfg, self.cfg.objective
        able = self.layout.able(batch)
        schedule: Any = cfg.process.schedule
        u = cfg.times.draw(batch.mask, progress, rng, schedule).double()
        t, s = moment(u, objective.steps)
        x_t = self.hiding.hide(batch.ids, able, t, rng, self.hiding.published)
        places = self.layout.places(batch, len(t), cfg.source_dropout, rng if self.training else None)
        hidden = where(able & (x_t == self.mask))
        asked = where(able) if isinstance(objective, D3pm) else hidden
        log_p = self.log_p(at_places(self.states(x_t, t, places), asked), mask_too=isinstance(objective, D3pm))
        crossed = -log_p.gather(1, at_places(batch.ids, asked)[:, None]).squeeze(1)
        if isinstance(objective, D3pm):
            number = able.flatten().cumsum(0) - 1                            # of each place among those that are asked
            term = self.hiding.mixture(log_p[number[hidden]], batch.ids, able, hidden, t, s)
        else:
            term = self.term(log_p, batch.ids, hidden, u, t, s)
        share = torch.full((), 1.0 / len(batch), device=t.device)            # a sum over places is a mean over rows
        bound, cross_entropy = ((nats * share).sum() / self.typical for nats in (term, crossed))
        return {"loss": (objective.bound * bound + objective.cross_entropy * cross_entropy).float(),
                "bound": bound.detach().float(), "cross_entropy": cross_entropy.detach().float()}

    # ---------------------------------------------------------------- the bound

    def diagnose(self) -> dict[str, Tensor]:
        """The bound on the validation texts, at each validation, on the averaged weights (evaluation/text_bound.py).

        bound_own_per_token: beside it, what the objective itself sums to; D3pm's as published bounds nothing.
        """
        rows, device = self.batches("valid"), self.hiding.weights.device
        found = text_bound(self, rows, self.cfg.bound, device)
        mixture = isinstance(self.cfg.objective, D3pm)
        own = text_bound(Mixture(self), rows, self.cfg.bound, device) if mixture else found
        return found | {"bound_own_per_token": own["bound_per_token"]}

    def estimate(self, batch: Batch, steps: int, rng: Rng) -> Tensor:
        """An unbiased estimate [B] of the bound on -ln p(x_0 | its length), from one call."""
        u = 1 - stratified(len(batch), 1, rng)                                               # in (0, 1]
        t, s = moment(u, steps)
        able = self.layout.able(batch)
        x_t = self.hiding.hide(batch.ids, able, t, rng)
        hidden = where(able & (x_t == self.mask))
        log_p = self.log_p(at_places(self.states(x_t, t, self.layout.places(batch, len(t))), hidden))
        return row_sums(hidden, self.term(log_p, batch.ids, hidden, u, t, s), able.shape)

    def term(self, log_p: Tensor, ids: Tensor, hidden: Tensor, u: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
        """The bound's estimate from the moment (t, s) of u, [n] nats at the n hidden places."""
        term = self.hiding.term(log_p, ids, hidden, t, s)
        if s is not None:
            return term
        said = -log_p.gather(1, at_places(ids, hidden)[:, None]).squeeze(1)       # to 0 everything is revealed, surely
        return torch.where(at_rows(u, hidden, self.cfg.length) < LAST, said.double() / LAST, term)

    def length_cost(self, batch: Batch) -> Tensor:
        """-ln P(the texts' lengths) [B]"""
        return self.layout.length_cost(batch)

    def count(self, batch: Batch) -> dict[str, int]:
        """Tokens, pieces and words."""
        return self.layout.count(batch)

    # ---------------------------------------------------------------- the network

    def states(self, x_t: Tensor, t: Tensor, places: Places) -> Tensor:
        """The states [B, L, D] of the text's places."""
        ids = torch.cat([places.front, x_t], 1)
        S = places.front.shape[1]
        kind = None
        if self.cfg.reads_source:
            kind = (torch.arange(ids.shape[1], device=ids.device) >= S).long().expand(ids.shape)
        told = t.amax(1, keepdim=True).float()                               # a prompt's time is 0: the others' counts
        return self.network.states(ids, torch.cat([places.front_mask, places.read], 1), told, kind)[:, S:]

    def log_p(self, h: Tensor, mask_too: bool = False) -> Tensor:
        """log p(x_0) [n, V] float32 at states [n, D], without what a text never holds."""
        never = self.layout.never
        if mask_too:
            never = never.clone()
            never[self.mask] = False
        return self.network.head(h).float().masked_fill(never, -torch.inf).log_softmax(-1).clamp(NEVER, NEARLY)

    # ---------------------------------------------------------------- sampling

    def times(self, grid: Grid, steps: int) -> Tensor:
        return grid.times(self.cfg.process.schedule, steps)              # type: ignore[arg-type]

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        """Everything hidden."""
        return torch.full(shape, self.mask, device=self.hiding.weights.device)

    def draw_mask(self, rows: int, rng: Rng, batch: Batch | None = None) -> Tensor:
        """Lengths from the training texts' law, given how long the sources are where the batch has them."""
        return self.layout.draw_mask(rows, rng, batch)

    def denoise(self, x_t: Tensor, t: Tensor, *, previous: Prediction | None, batch: Batch | None = None) -> Prediction:
        """log p(x_0) [B, L, V]: exactly 0 for what is known, the visible tokens and what the layout fixes.

        With D3pm the mask is among the words; that it is none of the text's, the stepper sees to, or does not.
        """
        places = self.layout.places(batch, len(x_t))
        x_t = torch.where(places.known & (x_t == self.mask), places.ids, x_t)
        hidden = x_t == self.mask
        h = self.states(x_t, t, places)
        log_p = torch.full((*x_t.shape, self.network.vocabulary), NEVER, device=x_t.device)
        log_p.scatter_(2, x_t[..., None], 0.0)
        log_p[hidden] = self.log_p(h[hidden], mask_too=isinstance(self.cfg.objective, D3pm))
        return Prediction(log_p)

    def reverse(self, x_t: Tensor, hat: Prediction, t: Tensor, s: Tensor, walk: Walk) -> Tensor:
        s = torch.zeros_like(s) if walk.last else s                          # the last step leaves nothing hidden
        weights = self.hiding.weights if self.process.spindle else None
        if weights is not None and walk.stepper.as_published:                # of the words that are likeliest by now
            ids = hat.x0.argmax(-1)
            weights = self.hiding.published_weights(ids, ~self.layout.never[ids])
        return walk.stepper.step(self.process, x_t, hat.x0, t, s, self.mask, walk.rng, weights)

    def decode(self, x: Tensor, hat: Prediction, batch: Batch | None = None, rng: Rng | None = None) -> list[str]:
        """Words up to the first end token."""
        return self.words.texts(x)

    def compilable(self) -> list[nn.Module]:
        """The language model without its head, which is asked about another number of places each time."""
        return [self.network.model.base_model]

    # ---------------------------------------------------------------- data

    def prompt(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids [L] and which are given [L]; what the layout fixes is not among them."""
        words, special = self.words, {*self.words.start, *self.words.end}
        parts = [[i for i in row[mask].tolist() if i not in special]
                 for row, mask in zip(*words.ids(texts, self.cfg.length + 2), strict=True)]
        return filled([], parts, self.cfg.length, words.pad)

    def clean(self, ids: Tensor) -> Tensor:
        """The state is ids."""
        return ids

    def batches(self, split: str) -> Batches:
        return TokenSplit(self.split_folder, split)

    def read_sources(self, texts: list[str], context: Context) -> Batch:
        """Sources that are in no split."""
        ids, mask = self.words.ids(texts, self.cfg.source_length)
        return Batch(ids=ids, mask=mask)


def moment(u: Tensor, steps: int) -> tuple[Tensor, Tensor | None]:
    """The step (t, s) of a chain in which u falls; in continuous time u itself, or the start of the last step."""
    return step_of(u if steps else u.clamp(min=LAST), steps)


class Mixture:
    """The sum of D3PM's terms; as published, with the spindle centred on each sentence, it is no bound."""

    def __init__(self, system: DiffusionBertSystem):
        self.system, self.length_cost, self.count = system, system.length_cost, system.count

    def estimate(self, batch: Batch, steps: int, rng: Rng) -> Tensor:
        """Of the objective's own number of steps, whatever `steps`.   [B]"""
        system, hiding = self.system, self.system.hiding
        t, s = step_of(1 - stratified(len(batch), 1, rng), system.cfg.objective.steps)
        able = system.layout.able(batch)
        x_t = hiding.hide(batch.ids, able, t, rng, hiding.published)
        hidden = where(able & (x_t == system.mask))
        h = at_places(system.states(x_t, t, system.layout.places(batch, len(t))), hidden)
        term = hiding.mixture(system.log_p(h, mask_too=True), batch.ids, able, hidden, t, s)
        return row_sums(hidden, term, able.shape)


# ---------------------------------------------------------------- recipes

# What differs, as changes for `override`, where texts are written from sources: as published without a spindle; and
# the surest words first, unlikely ones hardly ever (BLEU on E2E after 2,400 laptop steps: .51, and .22 without).
SEQUENCE_TO_SEQUENCE: dict[str, Any] = {
    "system.source_length": 64, "system.source_dropout": 0.1, "system.process.spindle": 0.0,
    "sampling.stepper": Ancestral(temperature=0.5, order="confidence"), "sampling.candidates": 3,
    "evaluation.metrics": (Bleu(), JudgeNll(), Variety(), Memorisation())}
# The paper's own numbers of it, which are for 100,000 questions and more.
SEQUENCE_TO_SEQUENCE_PAPER: dict[str, Any] = SEQUENCE_TO_SEQUENCE | {
    "system.lm": Roberta(), "system.source_length": 129, "system.source_dropout": 0.0,
    "system.objective": D3pm(steps=2000, cross_entropy=0.6),                          # hybrid_lambda 3e-4
    "training.optimizer.lr": 5e-5, "training.schedule": Constant(warmup=10_000, start=1 / 3),
    "training.batch": 256, "training.accumulate": 4,
    "sampling.stepper": Ancestral(top_k=15), "sampling.steps": 200, "sampling.batch": 32}


def diffusionbert(data: Data = HubTexts(name="billion-word-benchmark/lm1b", revision=PARQUET)) -> "Trial":
    """The paper's recipe: LM1B, bert-base-uncased, the published spindle and hybrid loss, in its numbers.

    What is not as published: gradients are clipped to a norm of 5 (there: each value to 5); every text has a time of
    its own (there: a batch has); a text's end stands where it ends (there: behind the padding); and the sampler keeps
    temperature and top-k to words (there: see Ancestral.as_published).
    """
    from trainables.trial import Trial  # a trial names the systems, so the recipe names it late

    return Trial(
        system=DiffusionBert(
            lm=Bert(weights=Pretrained(name="google-bert/bert-base-uncased")),
            length=129,                                                               # 128 pieces and the end
            process=Absorbing(spindle=0.3),
            objective=D3pm(steps=2048, cross_entropy=20.48, as_published=True),       # hybrid_lambda 1e-2
            bound=BoundEstimate(steps=128, texts=1_024, draws=16)),
        data=data,
        training=Training(
            optimizer=AdamW(lr=3e-6, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, decays="all"),
            schedule=Constant(warmup=10_000, start=1e-8 / 3e-6), ema=NoAverage(),
            steps=1_900_000, batch=32, clip=5.0, record_every=1_000, validate_every=15_000, save_every=15_000),
        sampling=Sampling(stepper=Ancestral(top_k=30), steps=128, count=1_000, batch=50),
        evaluation=Evaluation(
            metrics=(Perplexity(name="gpt2-large"), JudgeNll(), Variety(), Memorisation()), references=1_000))


def diffusionbert_laptop(data: Data = Stories()) -> "Trial":
    """A recipe that learns the built-in corpus in about a minute on one core; other texts get longer sequences."""
    from trainables.trial import Trial

    stories = isinstance(data, Stories)
    return Trial(
        system=DiffusionBert(
            lm=Bert(weights=small_lm(width=64) if stories else override(small_lm(width=96), {
                "training.steps": 600, "training.batch": 32})),
            length=12 if stories else 64),
        data=data,
        training=Training(
            optimizer=AdamW(lr=3e-3, betas=(0.9, 0.98)), schedule=Cosine(warmup=100), ema=Ema(decay=0.99),
            steps=1_500 if stories else 1_200, batch=64 if stories else 32, record_every=50, validate_every=500,
            save_every=500, validate_on=512),
        sampling=Sampling(stepper=Ancestral(), steps=64, count=500, batch=250),
        evaluation=Evaluation(
            metrics=(OracleScores(), Variety(), Memorisation()) if stories else
            (Frechet(), JudgeNll(), Variety(), Memorisation()),
            references=500))


def small_lm(width: int) -> Small:
    """A masked language model small enough to be trained before breakfast; diffusion hides more than 15 % of a text, so
    it does too."""
    return Small(layers=3, width=width, heads=2, feedforward=4 * width, dropout=0.0, vocabulary=1_000, hidden=0.45,
                 length=64, training=Training(optimizer=AdamW(lr=3e-3, betas=(0.9, 0.98)), schedule=Cosine(warmup=50),
                                              ema=NoAverage(), steps=1_000, batch=64))
