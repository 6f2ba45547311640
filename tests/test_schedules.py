"""Laws of the noise schedules, and the published values of each (abar and beta at fixed times)."""

import typing

import pytest
import torch

from trainables.config import override
from trainables.diffusion.schedules import (
    BETA_UNTIL,
    Cosine,
    CosineBeta,
    Karras,
    LinearBeta,
    Schedule,
    Sigmoid,
    SimpleLinear,
    Sqrt,
    SquaredDecay,
    Tangent,
    VpLinear,
)

ALL = [member() for member in typing.get_args(Schedule)] + [
    Tangent(d=1.0), Cosine(scale=0.1), Cosine(clamp=0.0), SimpleLinear(scale=0.1), Sigmoid(scale=0.5),
    SquaredDecay(scale=2.0), LinearBeta(steps=100), CosineBeta(steps=50), Karras(low=0.1, high=100.0, rho=7.0)]
CLAMPED = (Cosine, SimpleLinear, Sigmoid, SquaredDecay)

TIMES = [0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
ABAR = [
    (VpLinear(), "1 .999890 .998007 .896282 .523680 .0790638 .00344141 2.88880e-4 4.31857e-5"),
    (Tangent(d=1.0), "1 .999998 .999753 .975528 .853553 .500000 .146447 .0244717 3.7e-33"),
    (Tangent(d=5.0), "1 .999938 .993868 .614575 .189060 .0384615 .00681614 .00100242 1.5e-34"),
    (Tangent(d=7.0), "1 .999879 .988052 .448592 .106303 .0200000 .00348927 5.11690e-4 7.7e-35"),
    (Tangent(d=9.0), "1 .999800 .980403 .329822 .0671258 .0121951 .00211371 3.09603e-4 4.6e-35"),
    (Tangent(d=11.0), "1 .999702 .971005 .247809 .0459552 .00819672 .00141595 2.07276e-4 3.1e-35"),
    (Sqrt(), ".990000 .966834 .899501 .683614 .499900 .292823 .133917 .0512640 0"),
    (Cosine(), ".999999694 .999998 .999753 .975528 .853553 .500000 .146447 .0244717 3.05902e-7"),
    (SimpleLinear(), ".999999694 .999000 .990000 .900000 .750000 .500000 .250000 .100000 3.05902e-7"),
    (SquaredDecay(), ".999900 .999890 .998901 .904747 .535208 .0820768 .00360620 3.03509e-4 4.53954e-5"),
    (Sigmoid(), ".999999694 .999700 .996923 .960507 .850854 .500000 .149146 .0394928 3.05902e-7"),
    (Cosine(scale=0.1), ".999969 .999753 .975916 .285017 .0550743 .00990099 .00171279 2.50793e-4 3.05902e-9"),
    (SimpleLinear(scale=0.1), ".999969 .909008 .497487 .0825688 .0291262 .00990099 .00332226 .00110988 3.05902e-9"),
]
INDICES = [0, 1, 9, 99, 199, 249, 499, 599, 749, 899, 998, 999]
DISCRETE = [
    (LinearBeta(), ".9999 .999780 .998105 .897018 .659039 .524085 "
                   ".0785872 .0258794 .00335055 2.75206e-4 4.11819e-5 4.03583e-5"),
    (CosineBeta(), ".999959 .999913 .999369 .972093 .898706 .847012 "
                   ".493844 .340810 .144272 .0240917 2.42877e-6 2.42877e-9"),
]
BETA_TIMES = [0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1]
BETA = [
    (Tangent(d=9.0), "0 .399640 3.920144 13.626600 8.289302 6.206561 8.866984 20.326520 40.161897 40.161897 40.161897"),
    (Sqrt(), "50.505051 15.592719 5.531050 2.311756 2.000000 2.414555 4.310972 10.280450 20.299843 101.261973 0"),
    (VpLinear(), ".1 .119900 .299000 2.090000 5.075000 10.050000 15.025000 18.010000 19.005000 19.801000 20"),
]


def equal_as_printed(values: torch.Tensor, printed: str) -> None:
    """Each value rounds to the digits printed: half a unit of the last one."""
    for value, text in zip(values.tolist(), printed.split(), strict=True):
        mantissa, _, exponent = text.partition("e")
        half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        assert abs(value - float(text)) <= half * (1 + 1e-6), f"{value!r} is not {text}"


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def named(value: object) -> str:
    return repr(value)


@pytest.mark.parametrize("schedule, printed", ABAR, ids=named)
def test_signal_power(schedule, printed):
    equal_as_printed(schedule.at(double(*TIMES))[0] ** 2, printed)


def test_signal_power_of_tangent_at_more_times():
    equal_as_printed(Tangent().at(double(0.05, 0.15, 0.95, 0.99))[0] ** 2, ".665907 .176408 7.64628e-5 3.04667e-6")


def test_tangent_in_float32_keeps_a_trace_of_the_signal_at_one():
    equal_as_printed(Tangent(d=1.0).at(torch.ones(1))[0] ** 2, "1.9e-15")
    equal_as_printed(Tangent(d=9.0).at(torch.ones(1))[0] ** 2, "2.4e-17")


@pytest.mark.parametrize("schedule, printed", DISCRETE, ids=named)
def test_signal_power_at_the_indices(schedule, printed):
    """Index i is time (i + 1) / T."""
    equal_as_printed(schedule.at((double(*INDICES) + 1) / 1000)[0] ** 2, printed)


@pytest.mark.parametrize("schedule", [LinearBeta(), CosineBeta(), LinearBeta(steps=100)], ids=named)
def test_an_index_is_met_whichever_way_its_time_is_rounded(schedule):
    """The discrete rate jumps at an index, so a time off by a rounding error would show in it."""
    exact = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    single = exact.float()
    torch.testing.assert_close(schedule.beta(single).double(), schedule.beta(exact), rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.log_snr(single).double(), schedule.log_snr(exact), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule, printed", BETA, ids=named)
def test_beta(schedule, printed):
    equal_as_printed(schedule.beta(double(*BETA_TIMES)), printed)


def test_beta_of_tangent_has_the_published_extremes():
    t = torch.linspace(0, 0.95, 95_001, dtype=torch.float64)
    beta = Tangent().beta(t)
    top, bottom = beta[t < 0.3].argmax(), beta[(t > 0.3) & (t < 0.8)].argmin() + int((t <= 0.3).sum())
    equal_as_printed(torch.stack([beta[top], beta[bottom]]), "14.316177 6.204620")
    equal_as_printed(torch.stack([t[top].round(decimals=4), t[bottom].round(decimals=4)]), ".0723 .4918")


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_beta_is_the_rate_at_which_signal_is_lost(schedule):
    """g^2 = -d ln abar / dt, and d sigma^2 / dt where alpha is 1.   At midpoints: a discrete beta jumps at indices."""
    steps = getattr(schedule, "steps", 64)
    t = (torch.arange(steps * 9 // 10, dtype=torch.float64) + 0.5) / steps
    h = 1e-5 / steps
    late, early = schedule.at(t + h), schedule.at(t - h)
    if schedule.preserves_variance:
        change = 2 * (early[0].log() - late[0].log())
    else:
        change = late[1] ** 2 - early[1] ** 2
    torch.testing.assert_close(schedule.beta(t), change / (2 * h), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_beta_is_finite_and_not_negative_everywhere(schedule):
    beta = schedule.beta(torch.linspace(0, 1, 1001))
    assert torch.isfinite(beta).all() and (beta >= 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_noise_only_ever_grows(schedule):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    log_snr, (alpha, sigma) = schedule.log_snr(t), schedule.at(t)
    fall = log_snr[:-1] - log_snr[1:]
    if isinstance(schedule, CLAMPED):                  # level at the clamped ends, falling between them
        assert (fall >= 0).all() and (fall[10:-40] > 0).all()
    elif isinstance(schedule, Sqrt):                   # nothing is left from t = 1 - 1e-4 on
        assert (fall[:-1] > 0).all()
    else:
        assert (fall > 0).all()
    assert (alpha.diff() <= 0).all() and (sigma.diff() >= 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_alpha_and_sigma_say_the_log_snr(schedule):
    t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    alpha, sigma = schedule.at(t)
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), schedule.log_snr(t), rtol=1e-12, atol=1e-12)
    if schedule.preserves_variance:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-15)
    else:
        assert (alpha == 1).all()


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_time_inverts_log_snr(schedule):
    t = torch.linspace(0.01, 0.95, 500, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_time_of_a_level_beyond_the_schedule_is_an_end(schedule):
    t = schedule.time(double(1e4, 300.0, -300.0, -1e4))
    assert (t[:2] < 0.002).all() and (t[2:] > 0.998).all() and (t >= 0).all() and (t <= 1).all()


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_float32_is_as_good_as_float64_down_to_the_smallest_times(schedule):
    """Nothing underflows or cancels: sqrt(1 - alpha^2) would give sigma = 0 below t = 3e-5."""
    t = torch.cat([torch.logspace(-7, -1, 200), torch.linspace(0.1, 0.99, 200)])
    for single, exact in zip(schedule.at(t), schedule.at(t.double()), strict=True):
        assert single.dtype == torch.float32 and (single > 0).all()
        torch.testing.assert_close(single.double(), exact, rtol=2e-5, atol=0)


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_shape_and_dtype_are_kept(schedule):
    for dtype in (torch.float32, torch.float64):
        t = torch.full((2, 3), 0.4, dtype=dtype)
        for value in (schedule.log_snr(t), *schedule.at(t), schedule.time(schedule.log_snr(t)), schedule.beta(t)):
            assert value.shape == (2, 3) and value.dtype == dtype


@pytest.mark.parametrize("d", [1.0, 5.0, 9.0])
def test_tangent_is_the_shifted_cosine(d):
    t = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    for a, b in zip(Tangent(d=d).at(t), Cosine(scale=1 / d, clamp=0.0).at(t), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("d, t", [(1.0, 0.5), (7.0, 0.090334), (9.0, 0.070447), (11.0, 0.057716)])
def test_tangent_loses_half_of_the_power_where_it_says(d, t):
    assert float(Tangent(d=d).time(double(0.0))) == pytest.approx(t, abs=5e-7)


@pytest.mark.parametrize("kind", CLAMPED[:3])
def test_clamp_bounds_both_ends(kind):
    log_snr = kind(clamp=15.0, scale=0.1).log_snr(double(0.0, 1.0))
    shift = double(0.1).log() * 2
    torch.testing.assert_close(log_snr, double(15.0, -15.0) + shift)
    assert kind(clamp=0.0).log_snr(double(1e-9)) > 15


def test_discrete_times_between_indices_lie_between_them():
    for schedule in (LinearBeta(), CosineBeta()):
        low, middle, high = schedule.log_snr(double(0.5, 0.5005, 0.501)).tolist()
        assert low > middle > high


def test_karras_ramp():
    """The score LM's sigma, uniform between 1 and 10; and EDM's with rho = 7."""
    torch.testing.assert_close(Karras().at(double(0.0, 0.5, 1.0))[1], double(1.0, 5.5, 10.0))
    torch.testing.assert_close(Karras(low=0.1, high=100.0, rho=7.0).at(double(0.0, 1.0))[1], double(0.1, 100.0))


@pytest.mark.parametrize("schedule", [Tangent(d=9.0), Cosine(), SimpleLinear(), Sigmoid()], ids=named)
def test_an_unbounded_rate_is_held_at_its_clip(schedule):
    assert schedule.beta(double(1.0)) == schedule.beta(double(BETA_UNTIL))


def test_sqrt_clips_its_rate_where_it_bursts():
    assert Sqrt().beta(double(0.9990, 0.9995)).tolist() == [1000.0, 1000.0] and 900 < Sqrt().beta(double(0.9988)) < 1000


@pytest.mark.parametrize("cfg, changes", [
    (Tangent(), {"d": -1.0}), (Cosine(), {"scale": 0.0}), (Cosine(), {"clamp": -1.0}), (VpLinear(), {"low": 0.0}),
    (VpLinear(), {"high": 0.01}), (LinearBeta(), {"steps": 20}), (CosineBeta(), {"steps": 0}), (Karras(), {"low": 0.0}),
    (Karras(), {"high": 1.0}), (Karras(), {"rho": -1.0})])
def test_nonsense_is_refused_by_path(cfg, changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}"):
        override(cfg, changes)
