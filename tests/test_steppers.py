"""Laws of the steppers and grids, over all of them, and the published single steps."""

import math
import typing
from itertools import pairwise

import pytest
import torch
from fake_system import Oracle, constant, normal
from torch import Tensor

from trainables.config import from_dict, override, to_dict
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.schedules import (
    Cosine,
    CosineBeta,
    Karras,
    LinearBeta,
    Schedule,
    SimpleLinear,
    Sqrt,
    Tangent,
    VpLinear,
)
from trainables.diffusion.steppers import (
    Ddpm,
    DpmPlusPlus2M,
    EulerMaruyama,
    EulerOde,
    Grid,
    Heun,
    LinearGrid,
    LogSnrGrid,
    Posterior,
    Stepper,
)
from trainables.randomness import step_rng
from trainables.system import Prediction, Walk

SCHEDULES = [member() for member in typing.get_args(Schedule)]
STEPPERS = [member() for member in typing.get_args(Stepper)] + [
    Posterior(eta=0.5), Posterior(eta=1.0), Ddpm(variance="small")]
PAIRS = [(schedule, stepper) for schedule in SCHEDULES for stepper in STEPPERS] + [(Karras(), Heun(average="noise"))]
GRIDS = [member() for member in typing.get_args(Grid)] + [LinearGrid(end=0.01), LogSnrGrid(low=-30.0, high=30.0)]
DETERMINISTIC = (EulerOde, Heun, DpmPlusPlus2M)


def named(value: object) -> str:
    return repr(value)


def time(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


def state(value: float) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def walk_of(stepper: typing.Any, process: Gaussian, guess: typing.Any) -> Walk:
    """A walk whose second looks go to the guess."""
    system = Oracle(process, guess)
    return Walk(stepper, step_rng(0, "walk"), lambda x, t: system.denoise(x, t, previous=None), past=[])


def go(stepper: typing.Any, process: Gaussian, guess: typing.Any, x: Tensor, times: list[float]) -> Tensor:
    """Step x along `times` with exact guesses, in x's dtype."""
    walk = walk_of(stepper, process, guess)
    for now, then in pairwise(times):
        t, s = (torch.full((len(x), 1), value, dtype=torch.float64) for value in (now, then))
        hat = walk.denoise(x, t)
        x, walk.past = stepper.step(process, x, hat, t, s, walk), [*walk.past, (t, hat)]
    return x


# ---------------------------------------------------------------- laws of every stepper


@pytest.mark.parametrize("schedule, stepper", PAIRS, ids=named)
def test_a_step_to_zero_is_the_guess(schedule, stepper):
    """Also where the schedule itself ends short of clean, and although large variances or Euler steps would miss it."""
    process = Gaussian(schedule=schedule)
    x = go(stepper, process, constant(0.7), torch.randn(5, 3, 1, dtype=torch.float64), [1.0, 0.7, 0.2, 0.0])
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule, stepper", PAIRS, ids=named)
def test_a_place_whose_time_stands_still_does_not_move(schedule, stepper):
    """In float32, at 0 (a prompt) and elsewhere, and with a past; its neighbours move."""
    process = Gaussian(schedule=schedule)
    walk = walk_of(stepper, process, constant(0.7))
    x = torch.randn(1, 4, 1, generator=torch.Generator().manual_seed(0))
    for now, then in pairwise([0.95, 0.9, 0.5, 0.0]):
        t, s = torch.tensor([[0.0, 0.4, now, now]]), torch.tensor([[0.0, 0.4, then, now]])
        hat = walk.denoise(x, t)
        moved = stepper.step(process, x, hat, t, s, walk)
        assert torch.isfinite(moved).all()
        still = [0, 1, 3]
        torch.testing.assert_close(moved[:, still], x[:, still], rtol=0, atol=1e-6)
        assert not torch.isclose(moved[0, 2], x[0, 2]).any()
        x, walk.past = moved, [*walk.past, (t, hat)]


@pytest.mark.parametrize("schedule, stepper", PAIRS, ids=named)
def test_fine_steps_follow_the_exact_process(schedule, stepper):
    """x_t drawn from q(x_t | x_0), with the guess x_0, ends as a draw of q(x_s | x_0): Euler too, in fine steps."""
    process = Gaussian(schedule=schedule)
    times = torch.linspace(0.8, 0.4, 101, dtype=torch.float64).tolist()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.at(time(0.8)), process.at(time(0.4))
    noise = torch.randn(2000, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean()) / noise.std()
    x = go(stepper, process, constant(1.7), alpha_t * 1.7 + sigma_t * noise, times)
    random = not isinstance(stepper, DETERMINISTIC) and stepper != Posterior(eta=0.0)
    slack = 4 / len(x) ** 0.5 * float(sigma_s) if random else 1e-9
    euler = 0.03 * max(1.0, float(sigma_s)) if isinstance(stepper, (EulerMaruyama, EulerOde)) else 0.0
    coarse = 0.03 * float(sigma_s) if stepper == Ddpm(variance="large") else 0.0           # too wide by a step's share
    assert abs(float(x.mean() - alpha_s * 1.7)) < slack + euler
    assert abs(float(x.std() - sigma_s)) < slack + euler + coarse


@pytest.mark.parametrize("stepper", [Posterior(eta=0.0), Heun(), DpmPlusPlus2M()], ids=named)
def test_exact_steppers_see_noise_levels_only(stepper):
    """Along the same log-SNRs, every variance preserving schedule gives the same samples."""
    ends = []
    for schedule in (Tangent(), Tangent(d=2.0), VpLinear(), LinearBeta(), SimpleLinear(), Sqrt()):
        times = schedule.time(torch.linspace(-5, 4, 12, dtype=torch.float64)).tolist()
        ends.append(go(stepper, Gaussian(schedule=schedule), normal(0.25), state(1.3), times))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
@pytest.mark.parametrize("stepper, order", [
    (Posterior(eta=0.0), 1), (EulerOde(), 1), (Heun(), 2), (DpmPlusPlus2M(), 2)], ids=named)
def test_halving_the_steps_divides_the_error(schedule, stepper, order):
    """By 2 for a first-order method, by 4 for a second-order one; the flow of N(0, 1/4) data is known."""
    if isinstance(schedule, (LinearBeta, CosineBeta)):
        schedule = override(schedule, {"steps": 100_000})           # stairs too small for Euler in t to feel
    process = Gaussian(schedule=schedule)

    def error(steps: int) -> float:
        times = torch.linspace(0.7, 0.3, steps + 1, dtype=torch.float64)
        first, last = ((alpha**2 / 4 + sigma**2).sqrt() for alpha, sigma in map(process.at, (time(0.7), time(0.3))))
        return abs(float(go(stepper, process, normal(0.25), state(1.3), times.tolist()) - 1.3 * last / first))

    coarse, fine = error(40), error(80)
    assert coarse / fine == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_only_random_steppers_draw(stepper):
    walk = walk_of(stepper, Gaussian(), constant(0.0))
    before = walk.rng.generator.get_state()
    stepper.step(Gaussian(), state(1.0), Prediction(state(1.0)), time(0.5), time(0.4), walk)
    drew = not torch.equal(before, walk.rng.generator.get_state())
    assert drew == (not isinstance(stepper, DETERMINISTIC) and stepper != Posterior(eta=0.0))


@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_a_stepper_reads_as_much_of_the_past_as_it_says(stepper):
    past = [(time(t), Prediction(state(guess))) for t, guess in ((0.9, -3.0), (0.8, 2.0), (0.7, 1.0))]

    def step(past: list) -> Tensor:
        process = Gaussian(schedule=Cosine())
        walk = walk_of(stepper, process, constant(5.0))
        walk.past = past
        return stepper.step(process, state(1.3), Prediction(state(0.25)), time(0.5), time(0.3), walk)

    enough = len(past) - stepper.remembers
    assert torch.equal(step(past), step(past[enough:]))
    assert not stepper.remembers or not torch.equal(step(past), step(past[enough + 1:]))


# ---------------------------------------------------------------- steppers among each other


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_small_variance_ddpm_is_the_posterior(schedule):
    """q(x_s | x_t, x_0) by Bayes' rule: the precisions of q(x_s | x_0) and of q(x_t | x_s) add up."""
    process = Gaussian(schedule=schedule)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.at(time(0.6)), process.at(time(0.5))
    ratio = alpha_t / alpha_s
    fresh = sigma_t**2 - ratio**2 * sigma_s**2                                     # the variance of q(x_t | x_s)
    variance = 1 / (1 / sigma_s**2 + ratio**2 / fresh)
    mean = variance * (alpha_s * 0.3 / sigma_s**2 + ratio * 1.2 / fresh)
    got = Ddpm(variance="small").moments(process, state(1.2), state(0.3), time(0.6), time(0.5))
    torch.testing.assert_close(got, (mean, variance.sqrt()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_large_variance_is_that_of_one_step_forwards(schedule):
    """sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, which is 1 - r where variance is preserved."""
    process = Gaussian(schedule=schedule)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.at(time(0.6)), process.at(time(0.5))
    deviation = Ddpm(variance="large").moments(process, state(1.0), state(0.0), time(0.6), time(0.5))[1]
    torch.testing.assert_close(deviation**2, sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)


def test_second_order_steppers_are_ddim_when_the_guess_does_not_change():
    process, times = Gaussian(), [1.0, 0.6, 0.3, 0.1]
    ddim = go(Posterior(eta=0.0), process, constant(0.4), state(-1.0), times)
    for stepper in (Heun(), DpmPlusPlus2M()):
        torch.testing.assert_close(go(stepper, process, constant(0.4), state(-1.0), times), ddim)


def test_multistep_uses_its_history():
    """Against the published form, with h the half log-SNR differences: D = x0 + (x0 - older) h / (2 h_before)."""
    for schedule in (Tangent(), Karras()):
        process = Gaussian(schedule=schedule)
        half = [float(process.log_snr(time(t))) / 2 for t in (0.6, 0.5, 0.42)]
        h, before = half[2] - half[1], half[1] - half[0]
        blend = 0.9 + (0.9 - 0.5) * h / (2 * before)
        alpha, sigma = (float(part) for part in process.at(time(0.42)))
        expected = sigma / float(process.at(time(0.5))[1]) * 1.3 - alpha * math.expm1(-h) * blend
        walk = walk_of(DpmPlusPlus2M(), process, constant(0.0))
        walk.past = [(time(0.7), Prediction(state(9.0))), (time(0.6), Prediction(state(0.5)))]
        got = DpmPlusPlus2M().step(process, state(1.3), Prediction(state(0.9)), time(0.5), time(0.42), walk)
        assert float(got) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_places_may_arrive_at_different_times(stepper):
    """Where s = 0 the guess of this look is the end, whatever a second look, taken for the other places, says there."""
    process = Gaussian(schedule=Cosine())
    walk = walk_of(stepper, process, constant(5.0))
    walk.past = [(torch.tensor([[0.9, 0.9]]), Prediction(torch.full((1, 2, 1), -3.0)))]
    t, s = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 0.3]])
    moved = stepper.step(process, torch.ones(1, 2, 1), Prediction(torch.full((1, 2, 1), 0.25)), t, s, walk)
    assert float(moved[0, 0]) == 0.25 and float(moved[0, 1]) != 0.25


def test_heun_on_noise_is_edms():
    """x + (sigma_s - sigma_t) (d + d') / 2 with d = (x - x0_hat) / sigma."""
    process = Gaussian(schedule=Karras())
    sigma_t, sigma_s = 10.0, 5.5
    first = (4.0 - 4.0 / 101) / sigma_t
    ahead = 4.0 + (sigma_s - sigma_t) * first
    second = (ahead - ahead / (1 + sigma_s**2)) / sigma_s
    got = go(Heun(average="noise"), process, normal(1.0), state(4.0), [1.0, 0.5])
    assert float(got) == pytest.approx(4.0 + (sigma_s - sigma_t) * (first + second) / 2, rel=1e-12)
    with pytest.raises(ValueError, match="variance-exploding"):
        go(Heun(average="noise"), Gaussian(), normal(1.0), state(4.0), [1.0, 0.5])


def test_ddim_on_karras_is_the_score_lms_euler():
    """x + (x - x0_hat) / sigma (sigma' - sigma); and so is Euler in t when sigma is linear in t."""
    for stepper in (Posterior(eta=0.0), EulerOde()):
        got = go(stepper, Gaussian(schedule=Karras()), constant(0.2), state(4.0), [1.0, 0.9])
        assert float(got) == pytest.approx(4.0 + (4.0 - 0.2) / 10 * (9.1 - 10), rel=1e-12)


def test_euler_returns_its_mean_last():
    process, walk = Gaussian(), walk_of(EulerMaruyama(), Gaussian(), constant(0.2))
    inputs = (process, state(1.0), Prediction(state(0.2)), time(0.0298), time(0.01))
    assert float(EulerMaruyama().step(*inputs, walk)) != pytest.approx(0.014874, abs=1e-3)
    walk.last = True
    assert float(EulerMaruyama().step(*inputs, walk)) == pytest.approx(0.014874, abs=5e-7)


# ---------------------------------------------------------------- published numbers


@pytest.mark.parametrize("t, s, mean, deviation", [
    (1.0, 0.9802, 0.602397, 0.891743), (0.505, 0.4852, 0.939759, 0.350644), (0.0298, 0.01, 0.014874, 0.448154)])
def test_tencdm_euler_steps(t, s, mean, deviation):
    got = EulerMaruyama().moments(Gaussian(), state(1.0), state(0.2), time(t), time(s))
    assert [float(value) for value in got] == pytest.approx([mean, deviation], abs=5.1e-7)


@pytest.mark.parametrize("t, s, x0, noise, mean, deviation, ddim", [
    (1.0, 0.996, -0.299447, 1.000166, 0.086156, 0.996118, 0.998265),
    (0.5, 0.496, 0.494975, 0.919239, 0.990029, 0.111401, 0.998095),
    (0.008, 0.004, 0.996151, 0.312542, 0.997113, 0.010883, 0.998095)])
def test_ld4lg_ddpm_steps(t, s, x0, noise, mean, deviation, ddim):
    process = Gaussian(schedule=Cosine(), predicts="v")
    guess = process.to_x0(state(0.3), state(1.0), time(t))
    got = [guess, process.noise(state(1.0), guess, time(t)),
           *Ddpm(variance="large").moments(process, state(1.0), guess, time(t), time(s)),
           process.posterior(state(1.0), guess, time(t), time(s), eta=0.0)[0]]
    assert [float(value) for value in got] == pytest.approx([x0, noise, mean, deviation, ddim], abs=5.1e-7)


def test_ld4lg_signal_powers_of_those_steps():
    alpha = Cosine().at(torch.tensor([1.0, 0.996, 0.496], dtype=torch.float64))[0]
    assert (alpha**2).tolist() == pytest.approx([3.0590223e-7, 3.9477898e-5, 0.50628302], rel=2e-8)


@pytest.mark.parametrize("index, end, noise, mean, deviation", [
    (999, 995, 0.998750, 0.960558, 0.278422), (499, 495, 0.983364, 0.979096, 0.198256)])
def test_thesis_ddim_steps(index, end, noise, mean, deviation):
    process, t, s = Gaussian(schedule=LinearBeta()), time((index + 1) / 1000), time((end + 1) / 1000)
    got = [process.noise(state(1.0), state(0.2), t), *process.posterior(state(1.0), state(0.2), t, s, eta=1.0)]
    assert [float(value) for value in got] == pytest.approx([noise, mean, deviation], abs=5.1e-7)


@pytest.mark.parametrize("steps, variance", [(25, 0.6147), (50, 0.8632), (100, 0.9573), (200, 0.9865), (1000, 0.9987)])
def test_tencdm_euler_is_biased_at_few_steps(steps, variance):
    """Unit Gaussian data with the exact guess should stay at variance 1; the steps shrink it, finer ones less."""
    process, spread = Gaussian(), 1.0
    times = LinearGrid(end=0.01).times(process.schedule, steps).tolist()
    for now, then in pairwise(times):
        keep, deviation = EulerMaruyama().moments(
            process, state(1.0), normal(1.0)(process, state(1.0), time(now)), time(now), time(then))
        spread = float(keep) ** 2 * spread + float(deviation) ** 2
    spread -= float(deviation) ** 2                         # the last step returns its mean
    assert spread == pytest.approx(variance, abs=5.1e-5)


def test_last_euler_step_overshoots():
    """A point mass is contracted by -.2304: through the point and out on the other side."""
    process = Gaussian()
    step = [EulerMaruyama().moments(process, state(x), state(0.0), time(0.0298), time(0.01))[0] for x in (1.0, 0.0)]
    assert float(step[0] - step[1]) == pytest.approx(-0.2304, abs=5e-5)


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize("steps", [1, 2, 50, 250])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
@pytest.mark.parametrize("grid", GRIDS, ids=named)
def test_a_grid_falls_from_one_to_its_end(grid, schedule, steps):
    times = grid.times(schedule, steps)
    assert times.shape == (steps + 1,) and times.dtype == torch.float64
    assert times[0] == 1 and float(times[-1]) == pytest.approx(getattr(grid, "end", 0.0), abs=1e-15)
    assert (times.diff() < 0).all() and (times[:-1] >= 1e-5 - 1e-12).all()


def test_tencdm_grid():
    times = LinearGrid(end=0.01).times(Tangent(), 50)
    assert times[[1, 25, 49, 50]].tolist() == pytest.approx([0.9802, 0.505, 0.0298, 0.01], abs=1e-12)


@pytest.mark.parametrize("steps, indices", [(250, [999, 995, 991, 7, 3, -1]), (100, [999, 989, 979, 19, 9, -1])])
def test_thesis_grid(steps, indices):
    times = LinearGrid().times(LinearBeta(), steps) * 1000 - 1
    assert times[[0, 1, 2, -3, -2, -1]].tolist() == pytest.approx(indices, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_log_snr_grid_is_even_in_log_snr(schedule):
    levels = schedule.log_snr(LogSnrGrid(low=-4.0, high=3.0).times(schedule, 20)[1:-1]).diff()
    torch.testing.assert_close(levels[:-1], levels[:1].expand(len(levels) - 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cfg, changes", [
    (Posterior(), {"eta": 1.5}), (Ddpm(), {"variance": "huge"}), (LinearGrid(), {"end": 1.0}),
    (LogSnrGrid(), {"high": -9.0})])
def test_nonsense_is_refused_by_path(cfg, changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}"):
        override(cfg, changes)


@pytest.mark.parametrize("cfg", STEPPERS + GRIDS, ids=named)
def test_steppers_and_grids_are_configs(cfg):
    assert from_dict(type(cfg), to_dict(cfg)) == cfg
