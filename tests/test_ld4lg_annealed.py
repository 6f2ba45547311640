"""Annealed LD4LG: the thesis' numbers, as values of LD4LG's config, without the defects that its code has."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.config import ConfigError, differences, override
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.ranges import FullRange, PolynomialRange, Range, open_levels
from trainables.diffusion.sampler import sample
from trainables.diffusion.schedules import CosineBeta, LinearBeta
from trainables.diffusion.steppers import LinearGrid, Posterior
from trainables.diffusion.times import Exposure, InTime, Times
from trainables.ld4lg import Ld4lg, Ld4lgSystem, ld4lg, ld4lg_laptop
from trainables.ld4lg_annealed import ld4lg_annealed, ld4lg_annealed_laptop
from trainables.randomness import step_rng
from trainables.stages import Context, Store
from trainables.system import Batch, Prediction
from trainables.tencdm import tencdm
from trainables.text.corpora import RocStories, Stories, read_rows
from trainables.text.latents import LengthHistogram, RawEncodings
from trainables.training.average import PowerEma
from trainables.training.learning_rate import Cosine
from trainables.training.optimizers import Lion, Optimizer
from trainables.training.train import Stopped, train
from trainables.trial import Trained, Trial

SHAPES: list[Range] = [*(member() for member in get_args(Range)), PolynomialRange(power=2.5)]
OPTIMIZERS = [member() for member in get_args(Optimizer)]


def small(**changes) -> Trial:
    """The laptop's recipe, hardly trained."""
    hardly = {"training__steps": 40, "training__schedule__warmup": 5, "training__batch": 16}
    return override(ld4lg_annealed_laptop(), {
        path.replace("__", "."): value for path, value in (hardly | changes).items()})


def system_of(trial: Trial) -> Ld4lg:
    assert isinstance(trial.system, Ld4lg)
    return trial.system


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("stages")))


def build(context: Context, trial: Trial | None = None, *, to_sample: bool = False, seed: int = 0) -> Ld4lgSystem:
    trial = trial or small()
    torch.manual_seed(seed)
    return (system_of(trial).build_to_sample if to_sample else system_of(trial).build)(trial.data, context)


def rows(system: Ld4lgSystem, count: int = 16, split: str = "train") -> Batch:
    return system.batches(split).take(torch.arange(count))


class Heard(nn.Module):
    """A network that guesses zeros and writes down the times that it was asked about."""

    def __init__(self, system: Ld4lgSystem):
        super().__init__()
        self.times: list[Tensor] = []
        system.network = self                                # type: ignore[assignment]

    def forward(self, x_t: Tensor, t: Tensor, *others: Tensor, **known: Tensor) -> Tensor:
        self.times.append(t)
        return torch.zeros_like(x_t)


# ---------------------------------------------------------------- the recipes


def test_it_is_ld4lg_with_other_values():
    for base, annealed in ((ld4lg, ld4lg_annealed), (ld4lg_laptop, ld4lg_annealed_laptop)):
        said = differences(base(), annealed())
        assert type(annealed().system) is type(base().system) is Ld4lg
        assert {path.split(".")[0] for path in said} <= {"system", "training", "sampling"}
        assert {"system.representation", "system.process.schedule", "system.process.predicts", "system.loss",
                "system.times.range", "training.optimizer"} <= said.keys()


def test_the_recipe_has_the_thesis_numbers():
    """spec/latent_systems.md 3.2 to 3.5."""
    trial = ld4lg_annealed(Stories())                        # not ROCStories: as for E2E
    system, training, sampling = system_of(trial), trial.training, trial.sampling
    assert isinstance(system.representation, RawEncodings) and system.length == 64
    assert system.process == Gaussian(schedule=LinearBeta(steps=1000), predicts="x0") and system.loss == "l1"
    assert system.times.range == PolynomialRange(start=0.2, until=0.5, power=2.0) and system.times.law == InTime()
    assert system.self_conditioning == 0.5 and system.class_dropout == 0.1
    network = system.network
    assert (network.layers, network.width, network.heads, network.dense) == (12, 768, 12, 0)
    assert network.relative and network.scale_shift and network.reads == "attended" and network.clock == "index"
    assert training.optimizer == Lion(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, decays="matrices")
    assert training.schedule == Cosine(warmup=1_000) and training.ema == PowerEma(decay=0.9999)
    assert (training.steps, training.batch, training.clip, training.precision) == (80_000, 64, 1.0, "float32")
    assert (sampling.stepper, sampling.grid, sampling.steps) == (Posterior(eta=1.0), LinearGrid(), 250)
    stories = ld4lg_annealed(RocStories())
    assert (stories.training.steps, system_of(stories).network.dropout) == (500_000, 0.0)
    assert stories.training.optimizer.weight_decay == 1e-6 and network.dropout == 0.1


@pytest.mark.parametrize("hint, count", [(0.5, 214_342_272), (0.0, 185_420_928)])
def test_parameter_counts_are_the_thesis(hint, count):
    system = system_of(override(ld4lg_annealed(), {"system.self_conditioning": hint}))
    with torch.device("meta"):
        network = system.network.build(768, hint=system.self_conditioning > 0)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("range", SHAPES, ids=repr)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_every_shape_and_every_optimizer_are_values(range, optimizer):
    trial = override(ld4lg_annealed(), {"system.times.range": range, "training.optimizer": optimizer})
    assert system_of(trial).times.range == range and trial.training.optimizer == optimizer


@pytest.mark.parametrize("path, value", [
    ("system.times.range.start", 0.0), ("system.times.range.until", 1.5), ("system.times.range.power", -1.0),
    ("system.loss", "l3"), ("system.network.clock", "hours"), ("training.optimizer.lr", 0.0)])
def test_nonsense_is_refused_by_path(path, value):
    with pytest.raises(ValueError, match=path):
        override(ld4lg_annealed(), {path: value})


@pytest.mark.parametrize("times", [Times(range=PolynomialRange()), Times(law=Exposure(range=PolynomialRange()))],
                         ids=["annealed", "control"])
@pytest.mark.parametrize("recipe", [ld4lg_annealed, ld4lg_annealed_laptop, tencdm])
def test_a_range_that_opens_with_no_level_of_a_discrete_schedule_is_refused(recipe, times):
    """The thesis crashes below five levels, a fifth of which would be none.  Four are no fault where all are open."""
    def of(steps: int, times: Times) -> Trial:
        return override(recipe(), {"system.times": times, "system.process.schedule": CosineBeta(steps=steps)})

    for few in (4, 1):
        with pytest.raises(ConfigError, match=f"noise levels must be at least 5, .* not {few}") as error:
            of(few, times)
        assert error.value.path == "system.process.schedule.steps"
    of(5, times)
    of(4, Times())
    with pytest.raises(ConfigError, match="at least 20"):
        of(19, override(times, {"law.range.start" if isinstance(times.law, Exposure) else "range.start": 0.05}))


# ---------------------------------------------------------------- annealed times


@pytest.mark.parametrize("range", SHAPES, ids=repr)
def test_training_sees_what_is_open_and_validation_everything(context, range):
    """By step, the times that reach the network are those of the thesis' open levels; A5: start and end are values."""
    system, steps = build(context, small(system__times__range=range)), 100
    heard, batch = Heard(system), rows(system, 256)
    for step in (0, 10, 25, 40, 49, 51, 100):
        heard.times.clear()
        system.loss(batch, step / steps, step_rng(0, step))
        t = torch.cat(heard.times)
        ceiling = open_levels(range, step, steps, levels=1000) / 1000
        assert float(t.max()) <= ceiling + 1.001e-3 and float(t.max()) > 0.95 * ceiling and float(t.min()) < 0.03
    assert system.cfg.times.ceiling(1.0) == 1.0                      # at which validation looks


def test_the_control_has_the_totals_and_no_order(context):
    trial = small(system__times__range=FullRange(), system__times__law=Exposure(range=PolynomialRange(power=2.0)))
    annealed, control = build(context), build(context, trial)
    drawn = []
    for system in (annealed, control):
        heard = Heard(system)
        for step in range(100):
            system.loss(rows(system, 64), step / 100, step_rng(0, step))
        drawn.append(torch.cat(heard.times))
    for low in torch.arange(0, 1, 0.2).tolist():
        first, more = ((t >= low) & (t < low + 0.2) for t in drawn)
        assert float(first.double().mean()) == pytest.approx(float(more.double().mean()), abs=0.01)
    assert float(drawn[0][:96].max()) < 0.21 and float(drawn[1][:96].max()) > 0.9        # the first step's draws


def test_the_sampler_visits_the_thesis_levels_and_the_clock_tells_them(context):
    """999, 995, ..., 3 of 1,000 levels; -1 is clean."""
    system = build(context, override(small(), {"system.network.clock": "index"}))
    t = system.times(LinearGrid(), 250)
    torch.testing.assert_close(1000 * t - 1, torch.arange(999, -2, -4).double(), rtol=0, atol=1e-9)
    heard = Heard(system)
    sampling = replace(small().sampling, stepper=Posterior(eta=1.0), grid=LinearGrid(), steps=250)
    system.space.open_to_decode(context)
    mask = system.draw_mask(4, step_rng(0, 0))
    sample(system, sampling, (4, system.cfg.state_length), step_rng(0, 1), Batch(ids=mask.long(), mask=mask))
    asked = torch.stack(heard.times)[:, 0, 0]
    torch.testing.assert_close(1000 * asked - 1, torch.arange(999, 2, -4).float(), rtol=0, atol=1e-3)


# ---------------------------------------------------------------- states, masks, lengths


def test_states_are_normalised_over_the_whole_train_split(context):
    """A9: not over the first batch."""
    system = build(context)
    split = system.batches("train")
    batch = split.take(torch.arange(len(split)))
    z = system.space.encode(batch)[batch.mask].double()
    assert float(z.mean(0).abs().max()) < 1e-4 and float(z.square().mean()) == pytest.approx(1.0, abs=1e-3)


def test_pads_change_neither_loss_nor_gradients(context):
    system = build(context).eval()
    with torch.no_grad():
        for parameter in system.network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)                   # awake, so that whatever is connected has an effect
    batch, results = rows(system), []
    assert batch.encodings is not None and not batch.mask.all()
    for noise in (0.0, 100.0):
        fill = noise * torch.randn(batch.encodings.shape, generator=torch.Generator().manual_seed(0))
        encodings = torch.where(batch.mask[..., None], batch.encodings.float(), fill)
        system.zero_grad()
        loss = system.loss(replace(batch, encodings=encodings), 1.0, step_rng(0, 0))["loss"]
        loss.backward()
        results.append((loss.detach(), [parameter.grad.clone() for parameter in system.network.parameters()
                                        if parameter.grad is not None]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_a_loss_is_l1_over_words_then_texts(context):
    """Before training the network says nothing, so the loss is the mean size of what there is to say (A8: of x_0)."""
    system = build(context)
    batch = rows(system)
    z = system.space.encode(batch).abs().mean(-1)
    expected = ((z * batch.mask).sum(1) / batch.mask.sum(1)).mean()
    torch.testing.assert_close(system.loss(batch, 0.3, step_rng(0, 0))["loss"], expected)


def test_lengths_are_drawn_as_the_training_texts_have_them(context):
    system = build(context, to_sample=True)
    length = system.draw_mask(20_000, step_rng(0, 0)).sum(1)
    split = system.batches("train")
    real = split.take(torch.arange(len(split))).mask.sum(1)
    assert set(length.tolist()) <= set(real.tolist())
    for tokens in set(real.tolist()):
        drawn, found = (float((some == tokens).float().mean()) for some in (length, real))
        assert drawn == pytest.approx(found, abs=0.015)
    assert isinstance(small().system.needs_to_sample(small().data)[-1], LengthHistogram)


def test_what_was_read_is_written_word_for_word(context):
    """No autoencoder mends what the language model gets wrong; and diffusion ends near the states, not on them."""
    system = build(context, to_sample=True)
    batch = rows(system, 200, "test")
    said = [row["text"] for row in read_rows(context.get(small().data), "test")[:200]]
    z = system.space.encode(batch)
    for noise in (0.0, 0.3):
        near = z + noise * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        written = system.decode(near, Prediction(near), batch)
        assert sum(a == b for a, b in zip(written, said, strict=True)) >= 196


# ---------------------------------------------------------------- training and texts


def stop_at(step: int):
    asked = iter(range(1, 1_000))
    return lambda: next(asked) == step


@pytest.mark.parametrize("optimizer", [replace(optimizer, lr=1e-3) for optimizer in OPTIMIZERS], ids=repr)
def test_a_resumed_training_learns_on_as_if_nothing_had_happened(context, tmp_path, optimizer):
    """A1, A2, A10: Lion steps, and optimizer, rate and annealing go on where they were, half-way up the range."""
    trial = small(training__optimizer=optimizer, training__steps=12)

    def work(out: Path, seed: int = 0, **more) -> None:
        system = build(context, trial, seed=seed)
        out.mkdir(exist_ok=True)
        train(system, system.batches("train"), trial.training, seed=0, out=out, context=replace(context, **more))

    work(tmp_path / "whole")
    with pytest.raises(Stopped):
        work(tmp_path / "parts", should_stop=stop_at(4))
    work(tmp_path / "parts", seed=9)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    fresh = build(context, trial).network.state_dict()
    assert any(not torch.equal(whole[f"network.{name}"], fresh[name]) for name in fresh)


def test_a_seed_fixes_the_initial_weights(context, tmp_path):
    """A7: seeded before the network is built; two trainings of a seed are one, of two seeds two."""
    made = []
    for number, seed in enumerate((0, 0, 1)):
        trial = override(small(training__steps=5), {"seed": seed})
        (out := tmp_path / str(number)).mkdir()
        trial.checkpoint().make(out, context)
        made.append(load_file(out / "model.safetensors"))
    name = next(name for name in made[0] if name.endswith("enter.weight"))
    assert torch.equal(made[0][name], made[1][name]) and not torch.equal(made[0][name], made[2][name])


def test_training_learns_and_texts_come_out(context):
    trial = small(training__steps=150, training__batch=32, sampling__count=8, sampling__steps=4)
    curve: list[float] = []
    watched = replace(context, record=lambda step, metrics: curve.extend(
        value for name, value in metrics.items() if name == "valid/loss"))
    assert isinstance(trial.checkpoint(), Trained)
    folder = watched.get(trial.samples())
    texts = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    untrained = build(context, trial)
    before = untrained.loss(rows(untrained, 256, "valid"), 1.0, step_rng(0, 0))["loss"]
    assert curve[-1] < 0.9 * float(before.detach()) and len(texts) == 8
