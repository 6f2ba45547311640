"""Laws of the Gaussian process, over every schedule, and the published single steps that concern it."""

import typing

import pytest
import torch

from trainables.config import override
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.schedules import Cosine, CosineBeta, Karras, LinearBeta, Schedule, Tangent
from trainables.randomness import step_rng

SCHEDULES = [member() for member in typing.get_args(Schedule)] + [Tangent(d=1.0), Karras(low=0.1, high=80.0, rho=7.0)]
PREDICTIONS = ["x0", "v", "noise"]


def named(value: object) -> str:
    return repr(value)


def time(value: float, rows: int = 1) -> torch.Tensor:
    return torch.full((rows, 1), value, dtype=torch.float64)


def state(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1), value, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_nothing_happens_at_time_zero(schedule):
    """t = 0 is clean text, per place: that is what makes a prompt."""
    x0 = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    t = torch.full((3, 5), 0.6)
    t[:, :2] = 0
    x_t, _ = Gaussian(schedule=schedule).corrupt(x0, t, step_rng(0, 0))
    assert torch.equal(x_t[:, :2], x0[:, :2]) and not torch.isclose(x_t[:, 2:], x0[:, 2:], atol=1e-3).any(-1).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_corrupt_says_which_noise_it_added(schedule):
    process, x0 = Gaussian(schedule=schedule), torch.full((200, 10, 8), 0.3)
    t = torch.full((200, 1), 0.4)
    x_t, noise = process.corrupt(x0, t, step_rng(0, 0))
    alpha, sigma = process.at(t)
    torch.testing.assert_close(x_t, alpha * x0 + sigma * noise)
    torch.testing.assert_close(process.noise(x_t, x0, t), noise, rtol=1e-4, atol=1e-4)
    assert noise.mean().abs() < 0.03 and (noise.std() - 1).abs() < 0.03


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_to_x0_inverts_target(schedule, predicts):
    """x0, v and noise are three names of one thing: to 1e-6 in float32 while some signal is left."""
    process = Gaussian(schedule=schedule, predicts=predicts)
    x0 = torch.randn(64, 3, 4, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.01, 0.2, 64)[:, None]
    x_t, noise = process.corrupt(x0, t, step_rng(0, 1))
    back = process.to_x0(process.target(x0, noise, t), x_t, t)
    alpha, sigma = process.at(t)
    scale = 1 + sigma / alpha if predicts == "noise" else 1 + sigma
    assert ((back - x0).abs() / scale).max() < 1e-6


@pytest.mark.parametrize("t, weight", [(0.1, 40.8635), (0.5, 2.0), (0.9, 1.02509)])
def test_an_error_in_v_is_an_error_in_x0_weighted(t, weight):
    """v-MSE is x0-MSE weighted by 1 / (1 - abar)."""
    process = Gaussian(schedule=Cosine(), predicts="v")
    apart = process.to_x0(state(1.0), state(0.7), time(t)) - process.to_x0(state(0.0), state(0.7), time(t))
    assert 1 / float(apart) ** 2 == pytest.approx(weight, rel=5e-6)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_reverse_keeps_the_marginal(schedule, eta):
    """If x_t is a draw of q(x_t | x_0) and the guess is x_0, then x_s is a draw of q(x_s | x_0).

    x_t = alpha_t x_0 + sigma_t z goes to mean keep x_t + ..., so both moments can be read off exactly.
    """
    process = Gaussian(schedule=schedule)
    t, s = torch.meshgrid(torch.linspace(0.001, 1, 60), torch.linspace(0, 1, 60), indexing="ij")
    pairs = (s <= t).reshape(-1)
    t, s = (grid.reshape(-1)[pairs][:, None].double() for grid in (t, s))
    x0 = torch.full((len(t), 1, 1), 1.7, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.at(t), process.at(s)
    mean, deviation = process.posterior(alpha_t * x0, x0, t, s, eta)
    torch.testing.assert_close(mean, alpha_s * x0, rtol=1e-9, atol=1e-9)
    carried = process.posterior(alpha_t * x0 + sigma_t, x0, t, s, eta)[0] - mean
    torch.testing.assert_close(carried**2 + deviation**2, sigma_s**2, rtol=1e-9, atol=1e-9)


def test_reverse_draws_from_what_posterior_says():
    process, x0 = Gaussian(schedule=Tangent(d=3.0)), torch.full((50_000, 1, 1), 1.7)
    t, s = torch.full((len(x0), 1), 0.7), torch.full((len(x0), 1), 0.3)
    x_t, _ = process.corrupt(x0, t, step_rng(0, 0))
    for eta in (0.0, 1.0):
        x_s = process.reverse(x_t, x0, t, s, step_rng(0, 1), eta=eta)
        alpha, sigma = process.at(s[:1])
        torch.testing.assert_close(x_s.mean(), (alpha * 1.7).squeeze(), atol=0.02, rtol=0)
        torch.testing.assert_close(x_s.std(), sigma.squeeze(), atol=0.02, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_full_eta_is_the_exact_posterior(schedule):
    """Against Bayes' rule written with precisions: q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0)."""
    process = Gaussian(schedule=schedule)
    for t, s in [(0.9, 0.85), (0.5, 0.3), (0.06, 0.02)]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.at(time(t)), process.at(time(s))
        r = alpha_t / alpha_s
        within = sigma_t**2 - r**2 * sigma_s**2
        precision = 1 / sigma_s**2 + r**2 / within
        expected = (alpha_s * 0.2 / sigma_s**2 + r * 1.3 / within) / precision
        mean, deviation = process.posterior(state(1.3), state(0.2), time(t), time(s))
        torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(deviation, precision**-0.5, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_a_chain_of_posterior_steps_is_one_step(schedule):
    """The coefficients of t -> r -> s compose to those of t -> s: means, and variances too."""
    process = Gaussian(schedule=schedule)
    first, first_deviation = process.posterior(state(1.3), state(0.2), time(0.8), time(0.5))
    mean, deviation = process.posterior(first, state(0.2), time(0.5), time(0.3))
    keep = process.posterior(first + 1, state(0.2), time(0.5), time(0.3))[0] - mean
    whole, whole_deviation = process.posterior(state(1.3), state(0.2), time(0.8), time(0.3))
    torch.testing.assert_close(mean, whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close((keep * first_deviation) ** 2 + deviation**2, whole_deviation**2, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_standing_still_and_arriving(schedule, eta):
    """t -> t changes nothing, at 0 and at 1 as well; t -> 0 is the guess.  In float32, without a stray nan."""
    process = Gaussian(schedule=schedule)
    x, guess = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.full((2, 4, 3), 0.25)
    t = torch.tensor([[0.0, 0.3, 1.0, 1.0], [0.0, 0.0, 0.02, 1.0]])
    s = torch.tensor([[0.0, 0.3, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    x_s = process.reverse(x, guess, t, s, step_rng(0, 0), eta)
    torch.testing.assert_close(x_s, torch.where((t == s)[..., None], x, guess), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_small_steps_do_not_cancel_in_float32(schedule):
    """The fresh noise of a thousandth-step: the r form loses it near t = 0, the log-SNR form keeps every digit."""
    process = Gaussian(schedule=schedule)
    t = torch.linspace(0.002, 0.99, 300)[:, None]
    s = t - 0.001
    x = torch.ones(300, 1, 1)
    single = process.posterior(x, x, t, s)[1]
    exact = process.posterior(x.double(), x.double(), t.double(), s.double())[1]
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_prior_is_the_noise_at_time_one(schedule):
    x = Gaussian(schedule=schedule).prior((400, 5, 10), step_rng(0, 0))
    sigma = schedule.high if isinstance(schedule, Karras) else 1.0
    assert x.shape == (400, 5, 10) and float(x.std()) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("schedule, index, variance", [
    (LinearBeta(), 0, 0.0), (LinearBeta(), 1, 5.45319e-5), (LinearBeta(), 499, 0.0100314), (LinearBeta(), 999, 0.02),
    (CosineBeta(), 0, 0.0), (CosineBeta(), 1, 2.17895e-5), (CosineBeta(), 499, 0.0031362),
    (CosineBeta(), 999, 0.998998)])
def test_discrete_posterior_variance(schedule, index, variance):
    t, s = time((index + 1) / 1000), time(index / 1000)
    deviation = Gaussian(schedule=schedule).posterior(state(0.0), state(0.0), t, s)[1]
    assert float(deviation) ** 2 == pytest.approx(variance, rel=5e-6)


@pytest.mark.parametrize("schedule, beta", [
    (CosineBeta(), {0: 4.12842e-5, 999: 0.999}), (LinearBeta(), {0: 1e-4, 999: 0.02})])
def test_discrete_betas(schedule, beta):
    for index, value in beta.items():
        now, before = (float(Gaussian(schedule=schedule).at(time((index + step) / 1000))[0]) for step in (1, 0))
        assert 1 - (now / before) ** 2 == pytest.approx(value, rel=5e-6)


def test_noise_needs_no_division_by_a_lost_signal():
    """At t = 1 the guess from a noise prediction is finite in float32."""
    process = Gaussian(predicts="noise")
    assert torch.isfinite(process.to_x0(torch.ones(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1))).all()


def test_a_clean_place_holds_no_noise():
    t = torch.tensor([[0.0, 0.5]])
    noise = Gaussian().noise(torch.ones(1, 2, 1), torch.zeros(1, 2, 1), t)
    assert float(noise[0, 0]) == 0 and float(noise[0, 1]) > 0.9


def test_state_keeps_its_dtype():
    process, t, s = Gaussian(), torch.full((2, 1), 0.5), torch.full((2, 1), 0.4)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(2, 3, 4, dtype=dtype)
        assert process.corrupt(x, t, step_rng(0, 0))[0].dtype == dtype
        assert process.reverse(x, x, t, s, step_rng(0, 0)).dtype == dtype


def test_a_gaussian_is_a_config():
    process = override(Gaussian(), {"schedule": Karras(low=0.5), "predicts": "noise"})
    assert process == Gaussian(schedule=Karras(low=0.5), predicts="noise") and hash(process)
    with pytest.raises(ValueError, match="predicts"):
        Gaussian(predicts="epsilon")        # type: ignore[arg-type]
