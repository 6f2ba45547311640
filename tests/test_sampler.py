"""Laws of the one sampling loop: oracles, self-conditioning, prompts, guidance; what each solver costs and gives."""

import typing

import pytest
import torch
from fake_system import MODES, SHARES, Oracle, constant, mixture, transport

from trainables.config import override
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.sampler import Sampling, sample
from trainables.diffusion.schedules import Cosine, Karras, LinearBeta, Schedule, Tangent
from trainables.diffusion.steppers import (
    Ddpm,
    DpmPlusPlus2M,
    EulerMaruyama,
    Grid,
    Heun,
    LinearGrid,
    LogSnrGrid,
    Posterior,
    Stepper,
)
from trainables.randomness import Rng, step_rng
from trainables.system import Batch, System

STEPPERS = [member() for member in typing.get_args(Stepper)] + [Posterior(eta=1.0)]


def named(value: object) -> str:
    return repr(value)


class Silent(Rng):
    """No noise anywhere: a linear sampler then walks its own mean."""

    def normal(self, shape):
        return torch.zeros(tuple(shape))


def silent() -> Rng:
    return Silent(torch.Generator())


class EvenStart(Rng):
    """The first draw (the prior) is spread evenly over the normal's quantiles, in a random order: less noise here."""

    def normal(self, shape):
        if self.generator.get_state().equal(torch.Generator().manual_seed(0).get_state()):
            even = (torch.randperm(shape[0], generator=self.generator) + 0.5) / shape[0]
            return torch.special.ndtri(even.double()).float().reshape(tuple(shape))
        return super().normal(shape)


def even_start() -> Rng:
    return EvenStart(torch.Generator().manual_seed(0))


def batch_of(rows: int, length: int, **parts) -> Batch:
    ids = torch.zeros(rows, length, dtype=torch.int64)
    return Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), **parts)


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("grid", [member() for member in typing.get_args(Grid)], ids=named)
@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
@pytest.mark.parametrize("schedule", [member() for member in typing.get_args(Schedule)], ids=named)
def test_a_sure_denoiser_gets_what_it_says(schedule, stepper, grid):
    system: System = Oracle(Gaussian(schedule=schedule), constant(-0.8))
    x, hat = sample(system, Sampling(stepper=stepper, grid=grid, steps=7), (3, 2), step_rng(0, 0))
    torch.testing.assert_close(x, torch.full((3, 2, 1), -0.8), rtol=0, atol=1e-5)
    torch.testing.assert_close(hat.x0, torch.full((3, 2, 1), -0.8))
    assert system.decode(x, hat) == ["-0.80 -0.80"] * 3


@pytest.mark.parametrize("steps, mean", [(25, 1.050300), (50, 1.014163), (100, 0.997984)])
def test_tencdm_overshoots_a_constant(steps, mean):
    """Ideal is alpha(.01) = .990153."""
    sampling = Sampling(stepper=EulerMaruyama(), grid=LinearGrid(end=0.01), steps=steps)
    x, _ = sample(Oracle(Gaussian(), constant(1.0)), sampling, (1, 1), silent())
    assert float(x) == pytest.approx(mean, abs=1.5e-6)          # in float32
    assert float(Gaussian().at(torch.tensor([[0.01]]))[0]) == pytest.approx(0.990153, abs=5e-7)


@pytest.mark.parametrize("schedule, stepper", [
    (Cosine(), Ddpm(variance="large")), (LinearBeta(), Posterior(eta=1.0))], ids=named)
def test_ld4lg_and_the_thesis_return_a_constant(schedule, stepper):
    system = Oracle(Gaussian(schedule=schedule), constant(1.0))
    x, _ = sample(system, Sampling(stepper=stepper, steps=250), (4, 1), step_rng(0, 0))
    assert (x == 1).all()


def test_second_order_in_twenty_steps_beats_euler_in_a_hundred():
    """Samples of a narrow mixture with the exact denoiser, under TEncDM's noise.  (Both run over all times.)"""
    def error(sampling: Sampling) -> float:
        x, _ = sample(Oracle(Gaussian(), mixture), sampling, (20_000, 1), even_start())
        return transport(x)

    wide = LogSnrGrid(low=-9.0, high=9.0)
    euler = error(Sampling(stepper=EulerMaruyama(), steps=100))
    second = error(Sampling(stepper=DpmPlusPlus2M(), grid=wide, steps=20))
    ddim = error(Sampling(stepper=Posterior(eta=0.0), grid=wide, steps=20))
    heun = error(Sampling(stepper=Heun(), grid=wide, steps=20))
    assert second <= euler and second < 0.5 * ddim and heun < 0.5 * ddim


@pytest.mark.parametrize("schedule", [Tangent(d=3.0), Karras(low=0.05, high=20.0, rho=7.0)], ids=named)
@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_every_stepper_draws_the_mixture(stepper, schedule):
    """With enough steps, each lands in the modes in their shares."""
    euler = type(stepper).__name__.startswith("Euler")
    sampling = Sampling(stepper=stepper, grid=LinearGrid() if euler else LogSnrGrid(low=-9.0, high=9.0), steps=100)
    x, _ = sample(Oracle(Gaussian(schedule=schedule), mixture), sampling, (3000, 1), even_start())
    nearest = (x[..., 0].double() - MODES).abs().argmin(-1)
    shares = torch.bincount(nearest, minlength=3).double() / len(x)
    slack = 2 if euler else 1
    assert (shares - SHARES).abs().max() < 0.02 * slack and transport(x) < 0.03 * slack


# ---------------------------------------------------------------- what a look is told


@pytest.mark.parametrize("stepper, looks", [(Posterior(), 5), (DpmPlusPlus2M(), 5), (Heun(), 9)], ids=named)
def test_each_step_costs_what_it_should(stepper, looks):
    """One network call a step; Heun a second one, save on the last."""
    system = Oracle(Gaussian(), mixture)
    sample(system, Sampling(stepper=stepper, steps=5), (2, 1), step_rng(0, 0))
    assert len(system.looks) == looks


def test_a_look_is_shown_the_guess_before():
    system = Oracle(Gaussian(), mixture)
    _, last = sample(system, Sampling(stepper=Posterior(eta=1.0), steps=4), (2, 3), step_rng(0, 0))
    assert system.looks[0][2] is None and system.looks[-1][4] is last
    for (*_, hat), (_, _, previous, _, _) in zip(system.looks, system.looks[1:], strict=False):
        assert previous is hat
    assert [float(t[0, 0]) for _, t, *_ in system.looks] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert all(t.shape == (2, 1) for _, t, *_ in system.looks)


@pytest.mark.parametrize("schedule", [Tangent(), Karras()], ids=named)
@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_a_prompt_is_never_touched(stepper, schedule):
    """Every look, second ones too, sees the prompt clean and is told t = 0 there, and nowhere else."""
    given = torch.tensor([[True, True, False, False], [True, False, False, True]])
    clean = torch.arange(8.0).reshape(2, 4, 1)
    system = Oracle(Gaussian(schedule=schedule), constant(0.5))
    batch = batch_of(2, 4, given=given)
    x, _ = sample(system, Sampling(stepper=stepper, steps=6), (2, 4), step_rng(0, 0), batch, clean)
    assert torch.equal(x[given], clean[given])
    torch.testing.assert_close(x[~given], torch.full((4, 1), 0.5), rtol=0, atol=1e-5)
    for x_t, t, *_ in system.looks:
        assert torch.equal(x_t[given], clean[given]) and torch.equal(t == 0, given) and torch.isfinite(x_t).all()


def test_a_prompt_of_words():
    """States without a feature axis, as ids, take a prompt as well."""
    class Copier(Oracle):
        def prior(self, shape, rng):
            return torch.full(shape, 9)

        def reverse(self, x_t, hat, t, s, walk):
            return x_t

    given = torch.tensor([[True, False]])
    x, _ = sample(Copier(Gaussian(), lambda process, x_t, t: x_t), Sampling(steps=2), (1, 2), step_rng(0, 0),
                  batch_of(1, 2, given=given), torch.tensor([[4, 5]]))
    assert x.tolist() == [[4, 9]]


# ---------------------------------------------------------------- guidance


def test_guidance_moves_away_from_the_guess_without_a_source():
    """x0 + w (x0 - x0_without), logits likewise; both looks are shown the same guided guess."""
    batch = batch_of(2, 3, source=batch_of(2, 3))
    assert batch.source is not None
    batch.source.ids += 2
    system = Oracle(Gaussian(), constant(0.5))
    x, hat = sample(system, Sampling(stepper=Posterior(), steps=3, guidance=0.5), (2, 3), step_rng(0, 0), batch)
    torch.testing.assert_close(x, torch.full((2, 3, 1), 2.5 + 0.5 * 2))
    assert hat.logits is not None
    torch.testing.assert_close(hat.logits, torch.full((2, 3, 1), 2 * 3.5))
    assert len(system.looks) == 6
    for (_, _, previous, seen, _), (_, _, same, unseen, _) in zip(system.looks[::2], system.looks[1::2], strict=True):
        assert seen is batch and unseen is not None and unseen.source is None and same is previous


def test_no_guidance_is_the_identity_and_costs_nothing():
    batch = batch_of(2, 3, source=batch_of(2, 3))
    plain, off = Oracle(Gaussian(), mixture), Oracle(Gaussian(), mixture)
    sampling = Sampling(stepper=Posterior(eta=1.0), steps=4)
    x, _ = sample(plain, sampling, (2, 3), step_rng(0, 0), batch)
    y, _ = sample(off, override(sampling, {"guidance": 0.0}), (2, 3), step_rng(0, 0), batch)
    assert torch.equal(x, y) and len(off.looks) == 4


# ---------------------------------------------------------------- repeatable, lean, and refusing nonsense


@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_the_same_seed_gives_the_same_samples(stepper):
    def draw(step: int) -> torch.Tensor:
        return sample(Oracle(Gaussian(), mixture), Sampling(stepper=stepper, steps=5), (4, 2), step_rng(0, step))[0]

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_a_few_rows_of_a_batch_are_its_first(stepper):
    """Noise is drawn for the whole batch, so who asks for three of its texts gets the first three."""
    system, sampling = Oracle(Gaussian(schedule=Cosine()), mixture), Sampling(stepper=stepper, steps=5)
    whole, _ = sample(system, sampling, (50, 3), step_rng(0, 0))
    few, _ = sample(system, sampling, (3, 3), step_rng(0, 0, whole=50))
    assert torch.equal(whole[:3], few)
    alone, _ = sample(system, sampling, (3, 3), step_rng(0, 0))
    assert not torch.equal(alone, few)


@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_no_more_guesses_are_kept_than_the_stepper_remembers(stepper):
    """A walk of 50 steps must not hold 50 states; it tracks no gradients; and it says which step is its last."""
    kept, last = [], []

    class Watcher(Oracle):
        def reverse(self, x_t, hat, t, s, walk):
            kept.append(len(walk.past))
            last.append(walk.last)
            assert all(guess.logits is None for _, guess in walk.past)
            return super().reverse(x_t, hat, t, s, walk)

    parameter = torch.ones((), requires_grad=True)
    system = Watcher(Gaussian(), lambda process, x_t, t: x_t * parameter)
    x, _ = sample(system, Sampling(stepper=stepper, steps=9), (1, 1), step_rng(0, 0))
    assert kept == [min(step, stepper.remembers) for step in range(9)] and not x.requires_grad
    assert last == [False] * 8 + [True]


def test_a_prompt_without_its_state_and_guidance_without_a_source_are_refused():
    system, given = Oracle(Gaussian(), mixture), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="prompt"):
        sample(system, Sampling(steps=2), (1, 1), step_rng(0, 0), batch_of(1, 1, given=given))
    with pytest.raises(ValueError, match="prompt"):
        sample(system, Sampling(steps=2), (1, 1), step_rng(0, 0), clean=torch.ones(1, 1, 1))
    for batch in (None, batch_of(1, 1)):
        with pytest.raises(ValueError, match="source"):
            sample(system, Sampling(steps=2, guidance=1.0), (1, 1), step_rng(0, 0), batch)


@pytest.mark.parametrize("name", ["steps", "count", "batch"])
def test_nonsense_is_refused(name):
    with pytest.raises(ValueError, match=name):
        override(Sampling(), {name: 0})
