"""Laws of TEncDM: its loss, its self-conditioning, its sources, its way back to words; on a small world, quickly."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainables.config import override
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.sampler import Sampling, guided, sample
from trainables.diffusion.schedules import Tangent
from trainables.diffusion.steppers import DpmPlusPlus2M, EulerMaruyama, LinearGrid, LogSnrGrid
from trainables.diffusion.times import Times
from trainables.evaluation.context_gain import ContextGain, bounds
from trainables.networks.transformer import Transformer
from trainables.randomness import Rng, step_rng
from trainables.stages import Context, Store
from trainables.system import Batch, Prediction
from trainables.tencdm import TEncDM, TEncDMSystem, tencdm_laptop
from trainables.text.corpora import Stories, read_texts
from trainables.text.decoder import DecoderTraining, load_reader
from trainables.text.encoders import Bert, Embeddings, Small
from trainables.text.encodings import Encodings
from trainables.text.stories import Oracle, all_stories
from trainables.training.average import Ema, NoAverage
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Training, load_weights, train
from trainables.trial import Trained

DATA = Stories(size=300)
SHORT = Training(optimizer=AdamW(lr=5e-3), schedule=Constant(), ema=NoAverage(), steps=60, batch=32,
                 precision="float32")
ENCODER = Bert(weights=Small(layers=1, width=32, heads=2, feedforward=64, dropout=0.0, vocabulary=300, length=16,
                             training=SHORT))
PLAIN = TEncDM(
    encoder=ENCODER, length=13, process=Gaussian(schedule=Tangent(d=3.0)), times=Times(low=0.05),
    network=Transformer(layers=2, width=32, heads=2, feedforward=64, positions=16, dropout=0.0, norm="pre",
                        time_scale=1_000.0),
    decoder=DecoderTraining(layers=1, heads=2, feedforward=64, dropout=0.0, noise_up_to=0.2,
                            training=override(SHORT, {"steps": 150})))
READS = override(PLAIN, {"source_length": 6, "source_dropout": 0.2})
QUICK = Sampling(stepper=DpmPlusPlus2M(), grid=LogSnrGrid(), steps=5, count=8, batch=8)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


def system_of(cfg: TEncDM, context: Context, seed: int = 0) -> TEncDMSystem:
    """Fresh weights; without the context gain, whose bounds take a second."""
    torch.manual_seed(seed)
    return TEncDMSystem(cfg, Encodings.of(cfg.encoded(DATA), context), None)


def rows(system: TEncDMSystem, count: int = 8, first: int = 0, split: str = "train") -> Batch:
    return system.batches(split).take(torch.arange(first, first + count))


class Told(nn.Module):
    """A network that answers what it is told to, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Tensor], Tensor]):
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, x_t, t, guess, source=None, source_mask=None):
        self.asked.append((x_t, t, guess.clone(), source, source_mask, torch.is_grad_enabled()))
        return self.answer(x_t)


def tell(system: TEncDMSystem, answer: Callable[[Tensor], Tensor]) -> Told:
    """The system with such a network."""
    told = Told(answer)
    setattr(system, "network", told)                                              # noqa: B010
    return told


# ---------------------------------------------------------------- the loss


def test_the_loss_is_a_mean_over_all_positions_pads_included(context):
    system = system_of(override(PLAIN, {"self_conditioning": 0.0}), context)
    batch = rows(system)
    x0 = system.encodings.encode(batch)
    assert not batch.mask.all() and not x0[~batch.mask].any()
    tell(system, lambda x_t: torch.where(batch.mask[..., None], x0, 3.0))        # wrong at pads, by 3
    loss = system.loss(batch, 0.0, step_rng(0, 0))["loss"]
    assert float(loss) == pytest.approx(9 * float((~batch.mask).float().mean()), rel=1e-5)
    tell(system, lambda x_t: torch.zeros_like(x0))                               # right at pads: they count
    assert float(system.loss(batch, 0.0, step_rng(0, 0))["loss"]) == pytest.approx(float(x0.square().mean()), rel=1e-5)


@pytest.mark.parametrize("predicts", ["x0", "v", "noise"])
def test_the_network_is_asked_for_what_the_process_says(predicts, context):
    """A network that answers what is asked has no loss, and its first guess, through to_x0, is the text itself."""
    system = system_of(override(PLAIN, {"process.predicts": predicts, "self_conditioning": 1.0}), context)
    batch, process = rows(system), system.cfg.process
    x0 = system.encodings.encode(batch)
    t = system.cfg.times.draw(batch.mask, 0.0, rng := step_rng(0, 0), process.schedule)
    _, noise = process.corrupt(x0, t, rng)
    told = tell(system, lambda x_t: process.target(x0, noise, t))
    assert float(system.loss(batch, 0.0, step_rng(0, 0))["loss"]) == 0
    torch.testing.assert_close(told.asked[1][2], x0, atol=1e-3, rtol=1e-3)


def test_the_loss_is_a_function_of_its_noise_and_can_be_dealt_to_workers(context):
    """Two halves, dealt like cards, see the noise and the hints that the whole batch sees."""
    system = system_of(READS, context).train()
    batch = rows(system)
    whole = system.loss(batch, 0.0, step_rng(3, 5))["loss"]
    assert torch.equal(system.loss(batch, 0.0, step_rng(3, 5))["loss"], whole)
    assert not torch.equal(system.loss(batch, 0.0, step_rng(3, 6))["loss"], whole)
    halves = [system.loss(system.batches("train").take(torch.arange(part, 8, 2)), 0.0,
                          step_rng(3, 5, part=part, parts=2))["loss"] for part in (0, 1)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


# ---------------------------------------------------------------- self-conditioning


@pytest.mark.parametrize(("share", "count", "parts"), [
    (0.0, 8, 1), (0.5, 8, 1), (1.0, 8, 1), (0.5, 4, 2), (0.25, 2, 4), (0.3, 5, 2), (1.0, 1, 3), (0.01, 8, 1)])
def test_a_share_of_the_global_batch_sees_its_own_first_guess(share, count, parts, context):
    system = system_of(override(PLAIN, {"self_conditioning": share}), context)
    hinted = torch.zeros(count * parts)
    for part in range(parts):
        told = tell(system, lambda x_t: torch.ones_like(x_t))
        system.loss(rows(system, count), 0.0, step_rng(0, 0, part=part, parts=parts))
        *first, last = told.asked
        guess = last[2]
        assert guess.shape == last[0].shape and guess.unique().tolist() in ([0.0], [1.0], [0.0, 1.0])
        hinted[part::parts] = guess.flatten(1).amax(1)
        assert not any(asked[5] for asked in first) and last[5]                   # no gradient through the first guess
        assert [not asked[2].any() for asked in first] == [True] * len(first)     # which is made without a hint
        assert [len(asked[0]) for asked in first] == [int(hinted[part::parts].sum())] * len(first)
        for asked in first:                                                       # at the same noise
            assert torch.equal(asked[0], last[0][:len(asked[0])]) and torch.equal(asked[1], last[1][:len(asked[0])])
    expected = torch.arange(count * parts) < share * count * parts
    assert torch.equal(hinted.bool(), expected)


def gradient(system: TEncDMSystem, loss: Tensor) -> Tensor:
    system.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in system.network.parameters()
                      if parameter.grad is not None])


def test_the_gradient_stops_at_the_first_guess(context):
    system = system_of(override(PLAIN, {"self_conditioning": 1.0}), context)
    batch, cfg = rows(system), system.cfg
    x0 = system.encodings.encode(batch)
    t = cfg.times.draw(batch.mask, 0.0, rng := step_rng(0, 0), cfg.process.schedule)
    x_t, _ = cfg.process.corrupt(x0, t, rng)
    first = system.network(x_t, t, torch.zeros_like(x_t))
    stopped = (system.network(x_t, t, first.detach()) - x0).square().mean()
    through = (system.network(x_t, t, first) - x0).square().mean()
    given = system.loss(batch, 0.0, step_rng(0, 0))["loss"]
    torch.testing.assert_close(given, stopped)
    found = gradient(system, given)
    torch.testing.assert_close(found, gradient(system, stopped))
    assert (found - gradient(system, through)).norm() > 1e-4 * found.norm()


def test_the_sampler_hands_each_guess_to_the_next_look_unless_there_is_no_self_conditioning(context):
    for share in (0.5, 0.0):
        system = system_of(override(PLAIN, {"self_conditioning": share}), context).eval()
        calls = iter(range(1, 100))
        told = tell(system, lambda x_t, calls=calls: torch.full_like(x_t, float(next(calls))))
        stepping = Sampling(stepper=EulerMaruyama(), grid=LinearGrid(end=0.01), steps=4, count=2, batch=2)
        sample(system, stepping, (2, 13), step_rng(0, 0))
        assert [float(asked[2].unique()) for asked in told.asked] == ([0.0, 1.0, 2.0, 3.0] if share else [0.0] * 4)


# ---------------------------------------------------------------- reading a source


@pytest.fixture(scope="module")
def reads(context) -> TEncDMSystem:
    """A conditional system after two hundred steps, able to decode."""
    training = override(SHORT, {"steps": 200, "optimizer.lr": 8e-3, "ema": Ema(decay=0.9)})
    system = system_of(READS, context)
    stage = Trained(system=READS.learned(), data=DATA, training=training, seed=0)
    built = READS.build_to_sample(DATA, context)
    assert built.gain is None and isinstance(built.network, type(system.network))
    load_weights(built, context.get(stage))
    return built.eval()


def noised(system: TEncDMSystem, batch: Batch, time: float = 0.8) -> tuple[Tensor, Tensor]:
    t = torch.full((len(batch), 1), time)
    return system.cfg.process.corrupt(system.encodings.encode(batch), t, step_rng(0, "noise"))[0], t


def swapped(batch: Batch) -> Batch:
    """Every text with its neighbour's source."""
    source = batch.source
    assert source is not None and source.encodings is not None
    return dataclasses.replace(batch, source=Batch(ids=source.ids.roll(1, 0), mask=source.mask.roll(1, 0),
                                                   encodings=source.encodings.roll(1, 0)))


@torch.no_grad()
def test_another_source_gives_another_guess_and_other_texts(reads):
    batch = rows(reads, 12, split="test")
    x_t, t = noised(reads, batch)
    own, other = (reads.denoise(x_t, t, previous=None, batch=each).x0 for each in (batch, swapped(batch)))
    assert batch.source is not None
    differ = (batch.source.ids != batch.source.ids.roll(1, 0)).any(1)
    assert differ.any() and ((own - other).abs().amax((1, 2)) > 0.05)[differ].all()
    stepping = override(QUICK, {"count": 12, "batch": 12})
    texts = [reads.decode(*sample(reads, stepping, (12, 13), step_rng(0, "samples"), each), each)
             for each in (batch, swapped(batch))]
    assert sum(one != two for one, two in zip(*texts, strict=True)) >= 6


@torch.no_grad()
def test_what_was_read_helps(reads):
    """The right source makes a better guess than a wrong one, and than none."""
    batch = rows(reads, 15, split="test")
    x_t, t = noised(reads, batch)
    x0 = reads.encodings.encode(batch)
    right, wrong, none = (float((reads.denoise(x_t, t, previous=None, batch=each).x0 - x0).square().mean())
                          for each in (batch, swapped(batch), dataclasses.replace(batch, source=None)))
    assert right < 0.97 * wrong and right < 0.97 * none


@torch.no_grad()
def test_a_dropped_source_is_the_empty_text(reads):
    """All dropped: what the network says is the unconditional guess, which guidance pushes away from."""
    always = TEncDMSystem(override(READS, {"source_dropout": 1 - 1e-9}), reads.encodings, None)
    always.network = reads.network
    batch = rows(reads, 8, split="test")
    x_t, t = noised(reads, batch)
    dropped = always.source(batch, 8, step_rng(0, 0))
    said = always.network(x_t, t, torch.zeros_like(x_t), *dropped)
    nothing = reads.denoise(x_t, t, previous=None, batch=dataclasses.replace(batch, source=None)).x0
    torch.testing.assert_close(said, nothing, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reads.denoise(x_t, t, previous=None).x0, nothing)
    read = reads.encodings.read([""] * 8, 6)                                      # and the encoder's own "" is it
    torch.testing.assert_close(
        reads.denoise(x_t, t, previous=None, batch=dataclasses.replace(batch, source=read)).x0, nothing,
        atol=1e-4, rtol=1e-3)


def test_sources_are_dropped_at_their_rate_and_only_in_training(context):
    system = system_of(override(READS, {"source_dropout": 0.3}), context)
    batch = rows(system, 300)
    own = system.encodings.encode(batch.source)                                   # type: ignore[arg-type]
    source, mask = system.source(batch, 300, step_rng(0, 0))
    assert source is not None and mask is not None and batch.source is not None
    dropped = (source != own).flatten(1).any(1)
    assert 0.2 < dropped.float().mean() < 0.4
    assert torch.equal(mask[~dropped], batch.source.mask[~dropped])
    assert (mask[dropped].sum(1) == 2).all()                                      # its two special tokens
    for training in (True, False):
        told = tell(system, lambda x_t: x_t)
        system.train(training)
        system.loss(batch, 0.0, step_rng(0, 0))
        assert torch.equal(told.asked[-1][3], own) != training


@torch.no_grad()
def test_guidance_zero_is_the_identity_and_more_goes_further(reads):
    batch = rows(reads, 8, split="test")
    x_t, t = noised(reads, batch)
    previous = Prediction(torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0)))
    plain = reads.denoise(x_t, t, previous=previous, batch=batch).x0
    without = reads.denoise(x_t, t, previous=previous, batch=None).x0
    assert torch.equal(guided(reads, x_t, t, previous, batch, 0.0).x0, plain)
    torch.testing.assert_close(guided(reads, x_t, t, previous, batch, 0.5).x0, plain + 0.5 * (plain - without))
    torch.testing.assert_close(guided(reads, x_t, t, previous, batch, -1.0).x0, without)


@torch.no_grad()
def test_what_is_not_read_does_not_matter(context):
    system = system_of(PLAIN, context).eval()
    batch = rows(system)
    x_t, t = noised(system, batch)
    with_source = dataclasses.replace(batch, source=batch)
    assert torch.equal(system.denoise(x_t, t, previous=None, batch=with_source).x0,
                       system.denoise(x_t, t, previous=None).x0)


# ---------------------------------------------------------------- sampling and words


@pytest.fixture(scope="module")
def speaks(context) -> TEncDMSystem:
    """An unconditional system, hardly trained, with a decoder."""
    built = system_of(PLAIN, context)
    built.reader = load_reader(PLAIN.trained_decoder(DATA), built.encodings, context)
    return built.eval()


@pytest.mark.parametrize("sampling", [
    QUICK, Sampling(stepper=EulerMaruyama(), grid=LinearGrid(end=0.01), steps=5, count=8, batch=8)])
def test_from_noise_to_texts(sampling, speaks):
    x, hat = sample(speaks, sampling, (8, 13), step_rng(0, "samples"))
    assert x.shape == hat.x0.shape == (8, 13, 32) and x.isfinite().all() and not x.requires_grad
    texts = speaks.decode(x, hat)
    assert len(texts) == 8 and all(isinstance(text, str) and "[" not in text for text in texts)
    again, _ = sample(speaks, sampling, (8, 13), step_rng(0, "samples"))
    assert torch.equal(x, again)
    assert not torch.equal(x, sample(speaks, sampling, (8, 13), step_rng(1, "samples"))[0])


@pytest.mark.parametrize("encoder", [ENCODER, Embeddings(of=ENCODER)], ids=["contextual", "embeddings"])
def test_clean_encodings_decode_to_their_own_words(encoder, context):
    cfg = override(PLAIN, {"encoder": encoder})
    system = system_of(cfg, context)
    system.reader = load_reader(cfg.trained_decoder(DATA), system.encodings, context)
    batch = system.batches("valid").take(torch.arange(15))
    texts = system.decode(system.encodings.encode(batch), Prediction(torch.empty(0)))
    real = read_texts(context.get(DATA), "valid")
    pairs = [pair for one, two in zip(texts, real, strict=True) for pair in zip(one.split(), two.split(), strict=True)]
    assert sum(a == b for a, b in pairs) / len(pairs) > 0.99


class Reads(nn.Module):
    """A reader that reads these ids out of anything, and remembers what it was shown."""

    def __init__(self, ids: Tensor, words: int):
        super().__init__()
        self.ids, self.words, self.shown = ids, words, torch.empty(0)

    def forward(self, h, source=None, source_mask=None):
        self.shown = h
        return nn.functional.one_hot(self.ids, self.words).float()


def test_the_reader_is_shown_encodings_as_the_encoder_gave_them_and_a_text_ends_at_its_first_end(context):
    system = system_of(PLAIN, context)
    ids, _ = system.encodings.words.ids(["anna found a cat . she kept it ."], 13)
    ids[0, 6] = system.encodings.words.end[0]
    reader = Reads(ids, system.encodings.vocabulary)
    setattr(system, "reader", reader)                                             # noqa: B010
    z = torch.randn(1, 13, 32, generator=torch.Generator().manual_seed(0))
    assert system.decode(z, Prediction(torch.empty(0))) == ["anna found a cat ."]
    assert torch.equal(reader.shown, z * system.encodings.std + system.encodings.mean)
    assert not torch.allclose(reader.shown, z, atol=0.05)


def test_a_checkpoint_holds_the_network_and_nothing_else(context, reads):
    stage = next(path for path in context.store.folder.glob("Trained-*") if path.is_dir())
    stored = load_file(stage / "model.safetensors")
    assert stored.keys() == {name for name, _ in reads.named_parameters() if name.startswith("network.")}
    assert all(not parameter.requires_grad for parameter in reads.reader.parameters())      # type: ignore[union-attr]


# ---------------------------------------------------------------- context gain


@pytest.fixture(scope="module")
def world(context, tmp_path_factory):
    """A world of 60 stories: their encodings, probabilities, and noised ones with their bounds."""
    encodings = Encodings.of(PLAIN.encoded(DATA), context)
    texts = all_stories()[::450]
    log_p = torch.from_numpy(Oracle().log_likelihood(texts)).log_softmax(0).float()
    table = encodings.encode(encodings.read(texts))                               # [N, L, D]
    process, rng = PLAIN.process, Rng(torch.Generator().manual_seed(0))
    x0 = table[torch.multinomial(log_p.exp(), 64, True, generator=rng.generator)]
    times = torch.tensor([0.1, 0.3, 0.5, 0.8])
    x_t = torch.stack([process.corrupt(x0, t.expand(64, 1), rng)[0] for t in times])
    oracle, alone = torch.tensor([bounds(table, log_p, x0, x, *process.at(t.expand(64, 1)))
                                  for x, t in zip(x_t, times, strict=True)]).T.contiguous()
    folder = tmp_path_factory.mktemp("bounds")
    save_file({"x0": x0, "x_t": x_t, "t": times, "oracle": oracle, "alone": alone.clone()},
              folder / "bounds.safetensors")
    return table, log_p, ContextGain(folder)


def posterior_mean(table: Tensor, log_p: Tensor, x_t: Tensor, t: Tensor, together: bool) -> Tensor:
    """E[x_0 | x_t] over the world's stories, by distances in float64; or of each position by itself."""
    alpha, sigma = (float(part.flatten()[0]) for part in PLAIN.process.at(t.double()))
    apart = (x_t[:, None].double() - alpha * table[None].double()).square().sum(-1)          # [B, N, L]
    energy = apart.sum(-1, keepdim=True).expand_as(apart) if together else apart
    weights = (log_p.double()[None, :, None] - energy / (2 * sigma**2)).softmax(1)
    return torch.einsum("bnl,nld->bld", weights, table.double()).float()


def test_the_oracle_gains_all_and_a_context_free_denoiser_nothing(world):
    table, log_p, gain = world
    cpu = torch.device("cpu")

    def of(together: bool):
        return lambda x_t, t: posterior_mean(table, log_p, x_t, t, together)

    assert float(gain(of(True), cpu)) == pytest.approx(1, abs=1e-3)
    assert float(gain(of(False), cpu)) == pytest.approx(0, abs=1e-3)
    half = float(gain(lambda x, t: (of(True)(x, t) + of(False)(x, t)) / 2, cpu))
    assert 0.3 < half < 0.99
    assert float(gain(lambda x, t: of(True)(x, t) + 0.3, cpu)) < 0.99
    assert float(gain(lambda x, t: torch.zeros_like(x), cpu)) < 0


def test_what_context_tells_is_worth_something_at_every_time(world):
    _, _, gain = world
    assert (gain.known["oracle"] < gain.known["alone"]).all()
    assert (gain.known["alone"][1:] > gain.known["alone"][:-1]).all()             # and the more so, the more the noise


# ---------------------------------------------------------------- what is refused, and the recipes


@pytest.mark.parametrize(("changes", "words"), [
    ({"self_conditioning": 1.5}, "share in"), ({"source_dropout": 1.0}, "share in"), ({"length": 3}, "length must lie"),
    ({"length": 17}, "length must lie in 4..16"), ({"decoder.noise_from": 0.5}, "noise must satisfy")])
def test_nonsense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        override(PLAIN, changes)


def test_another_decoder_finds_the_same_checkpoint():
    assert override(PLAIN, {"decoder.layers": 2}).learned() == PLAIN.learned() != READS.learned()
    assert not READS.context_bounds(DATA) and PLAIN.context_bounds(DATA)
    assert not override(PLAIN, {"times.per_token": True}).context_bounds(DATA)


def test_the_laptop_recipe_learns(context):
    """Eighty steps of the laptop's own network on a small corpus: the loss falls by a quarter and more."""
    laptop = tencdm_laptop().system
    assert isinstance(laptop, TEncDM)
    network = laptop.network
    system = system_of(override(PLAIN, {"network": network}), context)
    losses: list[float] = []
    inner = dataclasses.replace(context, record=lambda step, said: losses.append(said["valid/loss"])
                                if "valid/loss" in said else None)
    train(system, system.batches("train"), override(SHORT, {"steps": 80, "validate_every": 10}), seed=0,
          out=context.store.folder.parent / "alone", context=inner, validate=system.batches("valid"))
    assert losses[-1] < 0.75 * losses[0]
