"""Laws of LD4LG: its latents, its loss, its hints and conditions, its way back to words; on a small world, quickly."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.config import ConfigError, fingerprint, from_dict, override, to_dict
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.sampler import Sampling, guided, sample
from trainables.diffusion.schedules import Cosine as CosineNoise
from trainables.diffusion.steppers import Ddpm, DpmPlusPlus2M, Heun, LinearGrid, LogSnrGrid, Posterior
from trainables.diffusion.times import Exposure, Times
from trainables.evaluation.bleu import Bleu
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.oracle import OracleScores
from trainables.ld4lg import (
    CLASS_CONDITIONAL,
    FLAN_T5,
    SEQUENCE_TO_SEQUENCE,
    Ld4lg,
    Ld4lgSystem,
    NoSource,
    Source,
    ld4lg,
    ld4lg_laptop,
)
from trainables.networks.latent_transformer import LatentTransformer
from trainables.networks.perceiver import Perceiver
from trainables.randomness import step_rng
from trainables.stages import Context, Store, upstream
from trainables.system import Batch, Prediction
from trainables.text.autoencoder import AutoencoderTraining, Cached
from trainables.text.corpora import Stories, read_rows
from trainables.text.families import T5, Bart, Bert, Folder, Small
from trainables.text.language_model import Decoding, Greedy, Nucleus
from trainables.text.latents import LatentStatistics, LengthHistogram, PerceiverLatents, RawEncodings
from trainables.training.average import Ema, NoAverage, PowerEma
from trainables.training.learning_rate import Constant, Cosine
from trainables.training.optimizers import AdamW
from trainables.training.train import Training, load_weights, set_training
from trainables.trial import Trained, Trial, read_lines, run

DATA = Stories(size=300)
SHORT = Training(optimizer=AdamW(lr=1e-2), schedule=Constant(), ema=NoAverage(), steps=200, batch=32,
                 precision="float32")
MODEL = Bart(weights=Small(layers=1, width=32, heads=2, feedforward=64, dropout=0.02, vocabulary=500, length=16,
                           training=SHORT))
PLAIN = Ld4lg(
    representation=PerceiverLatents(
        model=MODEL, perceiver=Perceiver(latents=4, width=8, layers=1, heads=2, deviation=0.0),
        training=AutoencoderTraining(features=Cached(noise=0.1), training=dataclasses.replace(SHORT, steps=300))),
    length=16, times=Times(low=0.05),
    network=LatentTransformer(layers=2, width=32, heads=2, positions=16, dropout=0.0, dense=1),
    decoding=Decoding(by=Greedy(), longest=16, shortest=0, unrepeated=0, repetition_penalty=1.0))
RAW = override(PLAIN, {"representation": RawEncodings(model=MODEL), "process.predicts": "x0", "loss": "l1"})
CLASSES = override(PLAIN, {"classes": True, "class_dropout": 0.2})
READS = override(PLAIN, {"source": Source(length=8, dropout=0.2, encoder=MODEL)})
ALL = [PLAIN, RAW, CLASSES, READS]
NAMES = ["latents", "raw", "classes", "sources"]
QUICK = Sampling(stepper=DpmPlusPlus2M(), grid=LogSnrGrid(), steps=5, count=8, batch=8)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


def system_of(cfg: Ld4lg, context: Context, awake: bool = True) -> Ld4lgSystem:
    """Fresh weights; awake: none of them zero, so that everything that is connected has an effect."""
    torch.manual_seed(0)
    system = cfg.build(DATA, context)
    if awake:
        with torch.no_grad():
            for parameter in system.network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
    return system


def rows(system: Ld4lgSystem, count: int = 8, first: int = 0, split: str = "train") -> Batch:
    return system.batches(split).take(torch.arange(first, first + count))


class Told(nn.Module):
    """A network that answers what it is told to, and remembers what it was asked."""

    classes = 6

    def __init__(self, answer: Callable[[Tensor], Tensor]):
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, x_t, t, signal, mask, **known):
        self.asked.append(known | {"x_t": x_t, "t": t, "signal": signal, "mask": mask, "grad": torch.is_grad_enabled()})
        return self.answer(x_t)


def tell(system: Ld4lgSystem, answer: Callable[[Tensor], Tensor]) -> Told:
    told = Told(answer)
    setattr(system, "network", told)                                              # noqa: B010
    return told


# ---------------------------------------------------------------- latents


def test_latents_have_the_norm_and_raw_encodings_the_statistics_of_the_whole_split(context):
    latents = system_of(PLAIN, context)
    x0 = latents.space.encode(rows(latents, 300))
    assert x0.shape == (300, 4, 8)
    torch.testing.assert_close(x0.norm(dim=-1), torch.full((300, 4), 8 ** 0.5))
    raw = system_of(RAW, context)
    batch = rows(raw, 300)
    x0 = raw.space.encode(batch)
    assert x0.shape == (300, 16, 32)
    real = x0[batch.mask]
    torch.testing.assert_close(real.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    assert float(real.square().mean()) == pytest.approx(1, abs=1e-3)               # one scale for all features
    assert float(real.std(0).max() / real.std(0).min()) > 1.05
    torch.testing.assert_close(raw.space.denormalise(x0), batch.encodings)
    known = load_file(context.get(LatentStatistics(texts=raw.space.texts)) / "statistics.safetensors")
    assert int(known["count"]) == int(batch.mask.sum()) and known["mean"].dtype == torch.float64


def test_latents_without_a_fixed_norm_are_normalised_too(context):
    cfg = override(PLAIN, {"representation.perceiver.norm": False,
                           "representation.training.training.steps": 5})
    system = system_of(cfg, context)
    batch = rows(system, 300)
    x0 = system.space.encode(batch)
    torch.testing.assert_close(x0.flatten(0, 1).mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    assert float(x0.square().mean()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(system.space.denormalise(x0), batch.encodings)
    assert torch.equal(system.space.renorm(x0), x0)


def test_lengths_are_drawn_as_training_texts_have_them(context):
    system = RAW.build_to_sample(DATA, context)
    mask = np.load(context.get(system.space.texts) / "train.mask.npy").sum(1)
    share = np.bincount(mask, minlength=17) / 300
    drawn = system.draw_mask(20_000, step_rng(0, 0))
    assert drawn.shape == (20_000, 16) and (drawn[:, :-1] >= drawn[:, 1:]).all()
    assert np.abs(np.bincount(drawn.sum(1).numpy(), minlength=17) / 20_000 - share).max() < 0.02
    assert torch.equal(drawn, system.draw_mask(20_000, step_rng(0, 0)))
    assert set(drawn.sum(1).tolist()) == set(mask.tolist())
    fixed = PLAIN.build_to_sample(DATA, context)
    assert fixed.draw_mask(3, step_rng(0, 0)).shape == (3, 4) and fixed.draw_mask(3, step_rng(0, 0)).all()
    with pytest.raises(ValueError, match="built to train"):
        system_of(RAW, context).draw_mask(3, step_rng(0, 0))


@pytest.mark.parametrize("cfg", [PLAIN, RAW], ids=["latents", "raw"])
def test_clean_latents_are_written_as_their_texts(cfg, context):
    system = cfg.build_to_sample(DATA, context).eval()
    batch = rows(system, 15, split="valid")
    real = [row["text"] for row in read_rows(context.get(DATA), "valid")]
    written = system.decode(system.space.encode(batch), Prediction(torch.empty(0)), batch)
    pairs = [(a, b) for one, two in zip(written, real, strict=True)
             for a, b in zip(one.split() + [""] * 9, two.split(), strict=False)]
    assert sum(a == b for a, b in pairs) / len(pairs) > (0.95 if cfg is PLAIN else 0.6)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", ["l2", "l1", "smooth_l1"])
def test_the_loss_is_the_mean_of_each_texts_valid_places(kind, context):
    system = system_of(override(RAW, {"self_conditioning": 0.0, "loss": kind}), context)
    batch = rows(system)
    x0 = system.space.encode(batch)
    off = 3.0 * batch.mask + 100.0 * ~batch.mask                                  # wrong everywhere, worse at pads
    off[0] = torch.where(batch.mask[0], 0.5, 100.0)
    tell(system, lambda x_t: x0 + off[..., None])
    far = {"l2": (0.25, 9.0), "l1": (0.5, 3.0), "smooth_l1": (0.125, 2.5)}[kind]
    loss = float(system.loss(batch, 0.0, step_rng(0, 0))["loss"])
    assert loss == pytest.approx((far[0] + 7 * far[1]) / 8, rel=1e-5)


def test_masked_places_change_neither_loss_nor_gradient(context):
    system = system_of(override(RAW, {"self_conditioning": 0.5}), context)
    batch = rows(system)
    assert batch.encodings is not None and not batch.mask.all()
    spoilt = dataclasses.replace(batch, encodings=batch.encodings.masked_fill(~batch.mask[..., None], 5.0))

    def gradient(batch: Batch) -> tuple[Tensor, Tensor]:
        system.zero_grad()
        loss = system.loss(batch, 0.0, step_rng(0, 0))["loss"]
        loss.backward()
        return loss.detach(), torch.cat([weight.grad.flatten() for weight in system.network.parameters()
                                         if weight.grad is not None])

    torch.testing.assert_close(gradient(spoilt), gradient(batch))


@pytest.mark.parametrize("predicts", ["x0", "v", "noise"])
def test_the_network_is_asked_for_what_the_process_says(predicts, context):
    """A network that answers what is asked has no loss, and its first guess is the latents themselves."""
    system = system_of(override(PLAIN, {"process.predicts": predicts, "self_conditioning": 1.0}), context)
    batch, process = rows(system), system.cfg.process
    x0 = system.space.encode(batch)
    t = system.cfg.times.draw(torch.ones(8, 4).bool(), 0.0, rng := step_rng(0, 0), process.schedule)
    _, noise = process.corrupt(x0, t, rng)
    told = tell(system, lambda x_t: process.target(x0, noise, t))
    assert float(system.loss(batch, 0.0, step_rng(0, 0))["loss"]) == 0
    torch.testing.assert_close(told.asked[1]["hint"], x0, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(told.asked[1]["signal"], process.at(t)[0][..., 0] ** 2)


def test_an_error_in_v_weighs_as_one_in_x0_over_the_noise(context):
    """1 / (1 - abar): 40.8635 at t = .1, 2 at .5, 1.02509 at .9."""
    for time, weight in ((0.1, 40.8635), (0.5, 2.0), (0.9, 1.02509)):
        process, t = Gaussian(schedule=CosineNoise(), predicts="v"), torch.full((1, 1), time, dtype=torch.float64)
        x0, noise = torch.randn(2, 1, 3, 5, dtype=torch.float64).unbind()
        alpha, sigma = process.at(t)
        x_t = alpha * x0 + sigma * noise
        said = process.target(x0, noise, t) + 0.1
        error = (process.to_x0(said, x_t, t) - x0).square().mean()
        assert float(0.1 ** 2 / error) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("cfg", ALL, ids=NAMES)
def test_the_loss_is_a_function_of_its_noise_and_can_be_dealt_to_workers(cfg, context):
    """Two halves, dealt like cards, see the noise, the hints and the conditions that the whole batch sees."""
    system = system_of(cfg, context).train()
    batch = rows(system)
    whole = system.loss(batch, 0.0, step_rng(3, 5))["loss"]
    assert torch.equal(system.loss(batch, 0.0, step_rng(3, 5))["loss"], whole)
    assert not torch.equal(system.loss(batch, 0.0, step_rng(3, 6))["loss"], whole)
    halves = [system.loss(system.batches("train").take(torch.arange(part, 8, 2)), 0.0,
                          step_rng(3, 5, part=part, parts=2))["loss"] for part in (0, 1)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


# ---------------------------------------------------------------- hints


@pytest.mark.parametrize(("share", "count", "parts"), [
    (0.0, 8, 1), (0.5, 8, 1), (1.0, 8, 1), (0.5, 4, 2), (0.25, 2, 4), (0.01, 8, 1)])
def test_a_share_of_the_global_batch_sees_its_own_first_guess(share, count, parts, context):
    system = system_of(override(PLAIN, {"self_conditioning": share}), context)
    hinted = torch.zeros(count * parts, dtype=torch.bool)
    for part in range(parts):
        told = tell(system, lambda x_t: torch.ones_like(x_t))
        system.loss(rows(system, count), 0.0, step_rng(0, 0, part=part, parts=parts))
        *first, last = told.asked
        seen = last.get("hinted", torch.zeros(count, dtype=torch.bool))
        hinted[part::parts] = seen
        assert len(first) == bool(seen.any()) and last["grad"]
        for asked in first:
            assert not asked["grad"] and "hint" not in asked and len(asked["x_t"]) == int(seen.sum())
            assert torch.equal(asked["x_t"], last["x_t"][:len(asked["x_t"])])
            norms = last["hint"][seen].norm(dim=-1)                               # hints have the latents' norm
            torch.testing.assert_close(norms, torch.full_like(norms, 8 ** 0.5))
    assert torch.equal(hinted, torch.arange(count * parts) < share * count * parts)


@pytest.mark.parametrize("as_published", [False, True])
def test_the_sampler_hands_on_each_guess_with_the_latents_norm_unless_as_published(as_published, context):
    """The published code rescales hints while training and forgets it in unconditional sampling."""
    system = system_of(override(PLAIN, {"as_published": as_published, "process.predicts": "x0"}), context).eval()
    told = tell(system, lambda x_t: torch.full_like(x_t, 0.25))
    sample(system, override(QUICK, {"steps": 3}), (2, 4), step_rng(0, 0))
    assert told.asked[0]["hint"] is None
    for asked in told.asked[1:]:
        assert float(asked["hint"].unique()) == pytest.approx(0.25 if as_published else 1.0)
    system = system_of(override(PLAIN, {"self_conditioning": 0.0}), context).eval()
    told = tell(system, lambda x_t: x_t)
    sample(system, override(QUICK, {"steps": 3}), (2, 4), step_rng(0, 0))
    assert all(asked["hint"] is None for asked in told.asked)


@pytest.mark.parametrize("stepper", [DpmPlusPlus2M(), Heun()], ids=["2m", "heun"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_what_is_guided_is_put_to_the_norm_once_for_steps_past_second_looks_and_hints(rescaled, stepper, context):
    """The guesses with and without a source differ in direction and norm, and from time to time: what the network says
    is guided, and the result, not its halves, gets the norm that is asked for."""
    system = system_of(override(READS, {"rescale_steps": rescaled, "process.predicts": "x0", "as_published": True}),
                       context).eval()
    early, late, without = 3 * torch.randn(3, 3, 4, 8, generator=torch.Generator().manual_seed(0))

    class Reader(Told):
        def forward(self, x_t, t, signal, mask, **known):
            super().forward(x_t, t, signal, mask, **known)
            return t[..., None] * early + (1 - t[..., None]) * late if "source" in known else without

    def guess(t: Tensor) -> Tensor:
        said = t[..., None] * early + (1 - t[..., None]) * late
        guided = said + 1.5 * (said - without)
        return guided / guided.norm(dim=-1, keepdim=True) * 8 ** 0.5 if rescaled else guided

    setattr(system, "network", told := Reader(lambda x_t: x_t))                   # noqa: B010
    reverse, walked = system.reverse, []

    def watched(x_t, hat, t, s, walk):
        torch.testing.assert_close(hat.x0, guess(t))
        for then, past in walk.past:
            torch.testing.assert_close(past.x0, guess(then))
        walked.append((t, len(walk.past)))
        second, look = [], walk.denoise
        walk.denoise = lambda x, t: second.append((t, look(x, t).x0)) or Prediction(second[-1][1])
        x_s = reverse(x_t, hat, t, s, walk)
        walk.denoise = look
        for then, again in second:
            torch.testing.assert_close(again, guess(then))
        return x_s

    system.reverse = watched                                                      # type: ignore[method-assign]
    sampling = override(QUICK, {"guidance": 1.5, "steps": 4, "stepper": stepper})
    x, _ = sample(system, sampling, (3, 4), step_rng(0, 0), rows(system, 3))
    torch.testing.assert_close(x, guess(walked[-1][0]))
    assert [past for _, past in walked] == [0] + [stepper.remembers] * 3
    hints = [asked for asked in told.asked if torch.equal(asked["t"], walked[2][0])][-2:]       # of the third look
    for asked in hints:
        torch.testing.assert_close(asked["hint"], guess(walked[1][0]))


@pytest.mark.parametrize("cfg", ALL, ids=NAMES)
def test_the_error_at_a_time_is_that_of_the_guess_whatever_times_are_trained_on(cfg, context):
    """Of a perfect guess it is 0, and 0.01 where every number is off by 0.1; the law of the times plays no part."""
    system = system_of(cfg, context).eval()
    held_out = system.batches("valid")
    x0 = system.space.encode(held_out.take(torch.arange(min(64, len(held_out)))))
    for off in (0.0, 0.1):
        system.denoise = lambda x_t, t, off=off, **_: Prediction(x0 + off)        # type: ignore[method-assign]
        told = system.diagnose()
        assert told.keys() == {"error_at_25", "error_at_50", "error_at_75"}
        assert all(float(value) == pytest.approx(off ** 2, abs=1e-6) for value in told.values())
    mild = system_of(override(cfg, {"times": Times(low=0.05, law=Exposure())}), context).eval()
    assert system_of(cfg, context).eval().diagnose() == mild.diagnose()


# ---------------------------------------------------------------- conditions


def test_labels_are_the_classes_of_the_texts(context):
    system = system_of(CLASSES, context)
    classes, real = system.space.classes, read_rows(context.get(DATA), "test")
    assert classes == sorted({row["class"] for row in read_rows(context.get(DATA), "train")}) and len(classes) == 6
    batch = rows(system, 15, split="test")
    assert batch.label is not None
    assert [classes[label] for label in batch.label.tolist()] == [row["class"] for row in real[:15]]
    assert system.network.classes == 6 and system.network.label.weight.shape == (7, 32)


@pytest.mark.parametrize(("cfg", "dropped"), [
    (override(CLASSES, {"class_dropout": 0.3}), lambda asked, _: asked["label"] == 6),
    (override(READS, {"source.dropout": 0.3}), lambda asked, _: ~asked["read"])], ids=["classes", "sources"])
def test_conditions_are_dropped_example_by_example_and_only_in_training(cfg, dropped, context):
    system = system_of(cfg, context)
    batch, (told) = rows(system, 300), tell(system, lambda x_t: x_t)
    system.train().loss(batch, 0.0, step_rng(0, 0))
    assert 0.2 < float(dropped(told.asked[-1], batch).float().mean()) < 0.4
    system.eval().loss(batch, 0.0, step_rng(0, 0))
    asked = told.asked[-1]
    assert asked.get("read") is None
    if cfg.classes:
        assert batch.label is not None and torch.equal(asked["label"], batch.label)
    else:
        assert torch.equal(asked["source"], batch.source.encodings)              # type: ignore[union-attr]


@pytest.mark.parametrize("cfg", [CLASSES, READS], ids=["classes", "sources"])
@torch.no_grad()
def test_another_condition_gives_another_guess_and_guidance_goes_further(cfg, context):
    system = system_of(cfg, context).eval()
    batch = rows(system, 8, split="test")
    x_t, t = torch.randn(8, 4, 8), torch.full((8, 1), 0.8)
    order = torch.arange(8).roll(1)
    other = system.batches("test").take(order)
    previous = Prediction(torch.randn(8, 4, 8))
    own, swapped, without = (system.denoise(x_t, t, previous=previous, batch=each).x0 for each in (batch, other, None))
    differ = (batch.label != other.label) if cfg.classes else \
        (batch.source.ids != other.source.ids).any(1)                             # type: ignore[union-attr]
    apart = (own - swapped).abs().amax((1, 2))
    assert differ.any() and (apart[differ] > 1e-4).all() and ((own - without).abs().amax((1, 2)) > 1e-4).all()
    none = dataclasses.replace(batch, source=None, label=None)
    assert torch.equal(system.denoise(x_t, t, previous=previous, batch=none).x0, without)
    assert torch.equal(guided(system, x_t, t, previous, batch, 0.0).x0, own)
    torch.testing.assert_close(guided(system, x_t, t, previous, batch, 1.0).x0, 2 * own - without)


@torch.no_grad()
def test_what_is_not_read_does_not_matter(context):
    system = system_of(PLAIN, context).eval()
    batch = rows(system)
    x_t, t = torch.randn(8, 4, 8), torch.full((8, 1), 0.8)
    more = dataclasses.replace(batch, source=batch, label=torch.zeros(8, dtype=torch.long))
    assert torch.equal(system.denoise(x_t, t, previous=None, batch=more).x0, system.denoise(x_t, t, previous=None).x0)


def test_a_source_may_be_read_by_another_encoder(context):
    bert = Bert(weights=Small(layers=1, width=24, heads=2, feedforward=32, dropout=0.0, vocabulary=300, length=16,
                              training=dataclasses.replace(SHORT, steps=5)))
    system = system_of(override(READS, {"source.encoder": bert}), context)
    assert system.space.source_width == 24 and system.network.enter_source.weight.shape == (32, 24)
    own = override(PLAIN, {"source": Source(length=8)})
    assert own.language_model(DATA).sources and not READS.language_model(DATA).sources
    assert own.sources(DATA).encoder == own.language_model(DATA)                  # type: ignore[union-attr]


def test_sources_read_at_each_step_are_those_of_the_cache(context):
    """The encoder is then part of the system, frozen, and part of no checkpoint."""
    cached, live = (system_of(override(READS, {"source.cached": cached}), context) for cached in (True, False))
    batches = [rows(system, 8, split="test") for system in (cached, live)]
    assert batches[0].source is not None and batches[1].source is not None and batches[1].source.encodings is None
    states = [system.space.read(batch.source) for system, batch in zip((cached, live), batches, strict=True)
              if batch.source is not None]
    mask = batches[0].source.mask
    torch.testing.assert_close(states[0][mask], states[1][mask], atol=1e-5, rtol=1e-4)
    for system in (cached, live):
        set_training(system)
    losses = [system.loss(batch, 0.0, step_rng(0, 0))["loss"] for system, batch
              in zip((cached, live), batches, strict=True)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-4)
    assert {name for name, weight in live.named_parameters() if weight.requires_grad} == \
        {name for name, weight in cached.named_parameters()}


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("cfg", ALL, ids=NAMES)
@pytest.mark.parametrize("sampling", [
    QUICK, Sampling(stepper=Ddpm(variance="large"), grid=LinearGrid(), steps=5, count=8, batch=8),
    Sampling(stepper=Posterior(eta=0.0), grid=LinearGrid(), steps=5, count=8, batch=8)], ids=["2m", "ddpm", "ddim"])
def test_from_noise_to_texts(cfg, sampling, context):
    system = system_of(cfg, context).eval()
    system.space.open_to_decode(context)
    batch = rows(system, split="test")
    shape = (8, cfg.state_length)
    x, hat = sample(system, sampling, shape, step_rng(0, "samples"), batch)
    assert x.shape == hat.x0.shape == (*shape, system.space.width) and x.isfinite().all() and not x.requires_grad
    assert torch.equal(x, sample(system, sampling, shape, step_rng(0, "samples"), batch)[0])
    assert not torch.equal(x, sample(system, sampling, shape, step_rng(1, "samples"), batch)[0])
    texts = system.decode(x, hat, batch)
    assert len(texts) == 8 and all(isinstance(text, str) and "<" not in text for text in texts)


def test_a_sampler_that_knows_the_answer_returns_it(context):
    system = system_of(PLAIN, context).eval()
    x0 = system.space.encode(rows(system))
    for stepper in (Ddpm(variance="large"), Posterior(eta=0.0), DpmPlusPlus2M()):
        process = system.cfg.process
        tell(system, lambda x_t: torch.zeros(1))
        system.denoise = lambda x_t, t, **_: Prediction(x0)                       # type: ignore[method-assign]
        x, _ = sample(system, override(QUICK, {"stepper": stepper}), (8, 4), step_rng(0, 0))
        torch.testing.assert_close(x, x0)
        assert process.predicts == "v"


def tiny(system: Ld4lg, **sampling: Any) -> Trial:
    return Trial(
        system=system, data=DATA,
        training=Training(optimizer=AdamW(lr=5e-3), schedule=Cosine(warmup=3), ema=Ema(decay=0.9), steps=10, batch=16,
                          accumulate=2, record_every=2, validate_every=5, save_every=100, validate_on=15,
                          precision="float32"),
        sampling=override(QUICK, {"count": 14, "batch": 7, **sampling}),
        evaluation=Evaluation(metrics=(OracleScores(), Bleu()), references=12))


@pytest.mark.parametrize(("cfg", "sampling", "asked"), [
    (PLAIN, {}, set()), (RAW, {}, set()), (CLASSES, {"guidance": 0.5}, {"class"}),
    (READS, {"guidance": 1.0, "candidates": 2}, {"source"}),
    (override(READS, {"classes": True, "decoding.by": Nucleus(p=0.9)}), {}, {"source", "class"})],
    ids=[*NAMES, "both"])
def test_a_trial_from_corpus_to_scores(cfg, sampling, asked, context):
    trial = tiny(cfg, **sampling)
    scores = run(trial, context)
    assert 0 <= scores["test/illegal"] <= 1 and np.isfinite(scores["valid/loss"])
    assert ("test/bleu" in scores) == ("source" in asked)
    assert ("test/wrong_class" in scores) == ("valid/wrong_class" in trial.scores()) == ("class" in asked)
    assert scores["test/illegal"] <= scores.get("test/wrong_class", 1.0) <= 1.0
    lines = read_lines(context.get(trial.samples()) / "samples.jsonl")
    assert len(lines) == 14 and all(line.keys() == {"text"} | asked for line in lines)


def test_a_checkpoint_holds_the_network_and_nothing_else(context):
    stage = tiny(READS).checkpoint()
    stored = load_file(context.get(stage) / "model.safetensors")
    system = READS.build_to_sample(DATA, context)
    assert stored.keys() == {name for name, _ in system.named_parameters() if name.startswith("network.")}
    load_weights(system, context.get(stage))
    assert not any(parameter.requires_grad for parameter in system.space.parameters())


def test_other_ways_to_write_find_the_same_checkpoint():
    other = override(PLAIN, {"decoding.by": Nucleus(), "rescale_steps": True, "as_published": True})
    assert tiny(other).checkpoint() == tiny(PLAIN).checkpoint() != tiny(RAW).checkpoint()
    assert PLAIN.learned() != override(PLAIN, {"network.as_published": True}).learned()


def test_conditions_share_what_they_can():
    """Classes change neither language model nor autoencoder; sources of a pretrained model neither."""
    plain, classes = (set(upstream(*cfg.needs_to_train(DATA))) for cfg in (PLAIN, CLASSES))
    assert plain < classes and len(classes - plain) == 1
    paper = ld4lg().system
    reads = override(paper, {"source": Source()})
    assert paper.texts(DATA) == reads.texts(DATA)                                # type: ignore[union-attr]
    lengths = [stage for stage in upstream(*RAW.needs_to_sample(DATA)) if isinstance(stage, LengthHistogram)]
    assert len(lengths) == 1 and not [stage for stage in upstream(*PLAIN.needs_to_sample(DATA))
                                      if isinstance(stage, LengthHistogram)]


# ---------------------------------------------------------------- what is refused, and the recipes


@pytest.mark.parametrize(("changes", "words"), [
    ({"self_conditioning": 1.5}, "share in"), ({"class_dropout": 1.0}, "class_dropout is a share"),
    ({"source": Source(), "source.dropout": 1.0}, "dropout is a share"),
    ({"source": Source(), "source.length": 2}, "at least 3 tokens"),
    ({"length": 3}, "at least 4"), ({"representation.perceiver.latents": 17}, "at least the 17 places"),
    ({"representation.perceiver.heads": 5}, "must divide the language model's width of 32"),
    ({"representation": RawEncodings(model=MODEL), "rescale_steps": True}, "fixed norm"),
    ({"representation.model": Bert()}, "model")])
def test_nonsense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        override(PLAIN, changes)


def test_texts_without_classes_are_refused(context, tmp_path):
    from trainables.text.corpora import choose_data

    (tmp_path / "plain.txt").write_text("\n".join(f"this is text number {i} ." for i in range(200)))
    data = choose_data(str(tmp_path / "plain.txt"), None, context.store)
    with pytest.raises(ConfigError, match="classes: texts of train have no class"):
        context.get(CLASSES.labels(data))                                        # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="source: the texts of train have no sources"):
        context.get(dataclasses.replace(READS.sources(data),                     # type: ignore[type-var]
                                        encoder=PLAIN.language_model(DATA)))


def test_folders_are_settled_wherever_they_are_named(tmp_path, context):
    """The language model's and the source encoder's."""
    import shutil

    from trainables.text.families import Pretrained

    shutil.copytree(context.get(PLAIN.language_model(DATA)), tmp_path / "bart")
    named = Bart(weights=Pretrained(name=str(tmp_path / "bart")))
    trial = tiny(override(READS, {"representation.model": named, "source.encoder": named}))
    settled = trial.settled(context.store).system
    assert isinstance(settled, Ld4lg) and isinstance(settled.source, Source)
    for model in (settled.representation.model, settled.source.encoder):
        assert isinstance(model, Bart) and isinstance(model.weights, Folder)
    (tmp_path / "bart" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="type 'gpt2'") as error:
        trial.settled(context.store)
    assert error.value.path == "system.representation.model.weights.name"


def test_the_papers_recipe_is_the_papers():
    trial = ld4lg()
    system, training = trial.system, trial.training
    assert isinstance(system, Ld4lg) and isinstance(system.representation, PerceiverLatents)
    assert system.process == Gaussian(schedule=CosineNoise(scale=1.0), predicts="v") and system.loss == "l2"
    assert (system.state_length, system.length, system.self_conditioning) == (32, 64, 0.5)
    assert isinstance(training.optimizer, AdamW) and isinstance(training.ema, PowerEma)
    assert (training.optimizer.lr, training.optimizer.weight_decay, training.optimizer.eps) == (2e-4, 1e-6, 1e-8)
    assert (training.optimizer.betas, training.batch, training.steps) == ((0.9, 0.999), 128, 250_000)
    assert trial.sampling.steps == 250 and trial.sampling.stepper == Ddpm(variance="large")
    share = training.schedule.share
    assert (share(0, 250_000), share(500, 250_000), share(125_500, 250_000)) == (0.0, 0.5, pytest.approx(0.5))
    assert share(200_000, 250_000) == pytest.approx(0.096234, abs=1e-6)
    decay = training.ema.decay_at
    for n, kept in ((101, 0.0), (102, 0.405396), (110, 0.822172), (200, 0.968377), (1_100, 0.994377), (10_100, 0.999),
                    (100_000, 0.999822), (215_544, 0.9999)):
        assert decay(n) == pytest.approx(kept, abs=1e-6)
    assert decay(215_542) < 0.9999 == decay(215_544)
    autoencoder = system.representation.training.training
    assert isinstance(autoencoder.optimizer, AdamW) and autoencoder.optimizer.lr == 1e-4
    assert (autoencoder.steps, autoencoder.batch, autoencoder.clip) == (50_000, 256, 1.0)
    assert [autoencoder.schedule.share(step, 50_000) for step in (0, 500, 1_000, 25_500)] == [0.0, 0.5, 1.0, 0.5]


@pytest.mark.parametrize("recipe", [ld4lg, ld4lg_laptop])
@pytest.mark.parametrize(("changes", "reads"), [
    ({}, (False, False)), (CLASS_CONDITIONAL, (False, True)), (SEQUENCE_TO_SEQUENCE, (True, False)),
    (FLAN_T5, (False, False)), (SEQUENCE_TO_SEQUENCE | FLAN_T5, (True, False))],
    ids=["unconditional", "class", "source", "flan", "flan source"])
def test_recipes_in_all_their_kinds(recipe, changes, reads):
    trial = override(recipe(), changes)
    assert (trial.system.reads_source, trial.system.reads_class) == reads
    assert from_dict(Trial, to_dict(trial)) == trial and fingerprint(trial)
    assert isinstance(trial.system.source, Source if reads[0] else NoSource)
    if FLAN_T5.items() <= changes.items():
        assert isinstance(trial.system.representation.model, T5)


def test_the_laptop_recipe_learns(context):
    """A hundred steps of the laptop's own network on a small corpus and small latents: the loss falls by a tenth."""
    laptop = ld4lg_laptop().system
    assert isinstance(laptop, Ld4lg)
    cfg = override(PLAIN, {"network": laptop.network})
    stage = Trained(system=cfg.learned(), data=DATA, seed=0, training=dataclasses.replace(
        SHORT, steps=100, validate_every=10, optimizer=AdamW(lr=5e-3)))
    seen: list[float] = []
    inner = dataclasses.replace(context, record=lambda step, said: seen.append(said["valid/loss"])
                                if "valid/loss" in said else None)
    inner.get(stage)
    assert seen[-1] < 0.9 * seen[0]
