"""Laws of training times: the published annealing table, and what stratified, per-token and log-SNR draws promise."""

import typing

import pytest
import torch

from trainables.config import override
from trainables.diffusion.ranges import (
    CosineRange,
    FullRange,
    LinearRange,
    PolynomialRange,
    Range,
    StepwiseRange,
    ceiling,
    open_levels,
)
from trainables.diffusion.schedules import Schedule, Tangent
from trainables.diffusion.times import Exposure, InLogSnr, InTime, Law, Times, clean_where, stratified
from trainables.randomness import step_rng

STEPS = 80_000
EVERY = torch.arange(STEPS + 1).tolist()
TABLE_STEPS = [0, 100, 4000, 5000, 10000, 15000, 20000, 25000, 30000, 35000, 39000, 39999, 40000]
TABLE = [
    (LinearRange(), "200 202 280 300 400 500 600 700 800 900 980 999 1000", 799.75, ".301 .253 .187 .145 .113"),
    (PolynomialRange(), "200 200 208 212 250 312 400 512 650 812 960 999 1000", 733.09, ".377 .234 .157 .126 .107"),
    (PolynomialRange(power=3.0), "200 200 200 201 212 242 300 395 537 735 941 999 1000", 699.76,
     ".424 .212 .141 .118 .105"),
    (CosineRange(), "200 200 219 230 317 446 600 753 882 969 998 999 1000", 799.75, ".324 .231 .175 .148 .123"),
    (StepwiseRange(), "200 200 200 200 200 400 400 600 600 800 800 800 800", 749.99, ".360 .235 .173 .131 .100"),
    (FullRange(), " ".join(["1000"] * 13), 1000.0, ".2 .2 .2 .2 .2"),
]
RANGES = [member() for member in typing.get_args(Range)] + [
    PolynomialRange(power=0.5), LinearRange(start=0.05, until=1.0), StepwiseRange(stages=9, until=0.25)]
TIMES = [Times(range=range, law=law) for range in RANGES for law in (InTime(), InLogSnr(), InLogSnr(share=0.4))]
TIMES += [Times(law=Exposure(range=range)) for range in RANGES]
MASK = torch.ones(64, 12, dtype=torch.bool)


def named(value: object) -> str:
    return repr(value)


@pytest.mark.parametrize("range, printed, mean, shares", TABLE, ids=named)
def test_annealing_table(range, printed, mean, shares):
    """The thesis' integers, their mean over every step of training, and where its draws fall."""
    assert [open_levels(range, step, STEPS) for step in TABLE_STEPS] == [int(text) for text in printed.split()]
    levels = torch.tensor([open_levels(range, step, STEPS) for step in EVERY], dtype=torch.float64)
    assert (levels.diff() >= 0).all() and levels[0] == int(1000 * range.start) and levels[-1] == 1000
    assert float(levels.mean()) == pytest.approx(mean, abs=0.005)
    for fifth, share in enumerate(shares.split()):
        inside = ((levels - 200 * fifth).clamp(0, 200) / levels).mean()
        assert float(inside) == pytest.approx(float(share), abs=6e-4)


@pytest.mark.parametrize("range", RANGES, ids=named)
def test_a_range_opens_once_and_whole(range):
    levels = [open_levels(range, step, 1000) for step in torch.arange(1001).tolist()]
    assert levels == sorted(levels) and levels[-1] == 1000 and levels[0] == int(1000 * range.start)
    ceilings = [Times(range=range).ceiling(step / 1000) for step in torch.arange(1001).tolist()]
    assert ceilings == sorted(ceilings) and ceilings[0] == range.start and ceilings[-1] == 1
    assert all(abs(1000 * ceiling - level) < 1 + 1e-9 for ceiling, level in zip(ceilings, levels, strict=True))


def test_first_power_is_linear():
    assert [open_levels(PolynomialRange(power=1.0), step, STEPS) for step in EVERY] == [
        open_levels(LinearRange(), step, STEPS) for step in EVERY]


def test_edges_of_the_annealing_table():
    assert open_levels(CosineRange(), 2, 6, levels=1000) == 799          # u = 2/3; 800 exactly, truncated as published
    for range, *_ in TABLE:
        assert open_levels(range, 0, 1) == 1000                          # a run of one step has nothing to anneal


@pytest.mark.parametrize("range", [range for range, *_ in TABLE if range.start < 1], ids=named)
def test_too_few_levels_are_refused(range):
    """The thesis crashes below five."""
    assert open_levels(range, 0, 100, levels=5) == 1
    with pytest.raises(ValueError, match="levels must be at least 5"):
        open_levels(range, 0, 100, levels=4)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("times", TIMES, ids=named)
def test_draws_stay_between_floor_and_ceiling(times, spread, per_token):
    assert {type(each.law) for each in TIMES} == set(typing.get_args(Law))
    times = override(times, {"stratified": spread, "per_token": per_token, "low": 0.01})
    for progress in (0.0, 0.1, 0.5, 1.0):
        t = times.draw(MASK, progress, step_rng(0, 0), Tangent())
        assert t.shape == ((64, 12) if per_token else (64, 1)) and t.dtype == torch.float32
        assert float(t.min()) >= 0.01 - 1e-9 and float(t.max()) <= times.ceiling(progress) + 1e-7
        assert float(t.max() - t.min()) > 0.5 * (times.ceiling(progress) - 0.01) or isinstance(times.law, InLogSnr)


def test_high_bounds_the_ceiling():
    times = Times(low=0.1, high=0.3, range=LinearRange(start=0.2))
    assert times.ceiling(0.0) == 0.2 and times.ceiling(0.4) == 0.3 and times.ceiling(1.0) == 0.3


# ---------------------------------------------------------------- the exposure: an annealing's total without its order


@pytest.mark.parametrize("range, levels, mean, shares", TABLE, ids=named)
def test_an_exposure_has_the_shares_of_the_annealing_table(range, levels, mean, shares):
    t = Times(law=Exposure(range=range), low=0.0).quantiles(200_001)
    assert float(t.mean()) == pytest.approx(mean / 2000, abs=3e-4)       # the table truncates to a thousandth
    for fifth, share in enumerate(shares.split()):
        inside = ((t >= fifth / 5) & (t < (fifth + 1) / 5)).double().mean()
        assert float(inside) == pytest.approx(float(share), abs=6e-4)


@pytest.mark.parametrize("bounds", [{}, {"low": 0.04, "high": 0.7}], ids=str)
@pytest.mark.parametrize("range", RANGES, ids=named)
def test_an_exposure_is_what_an_annealed_training_draws(range, bounds):
    """The draws of 500 steps under the range, all together, against even quantiles of the law."""
    annealed = Times(range=range, **bounds)
    drawn = torch.cat([annealed.draw(MASK, step / 500, step_rng(0, step)) for step in torch.arange(500).tolist()])
    even = Times(law=Exposure(range=range), **bounds).quantiles(len(drawn))
    assert (drawn.flatten().sort().values - even).abs().max() < 0.02
    assert float(drawn.mean()) == pytest.approx(float(even.mean()), abs=1e-3)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_an_exposure_does_not_change_with_progress(spread, per_token):
    times = Times(law=Exposure(range=LinearRange()), stratified=spread, per_token=per_token)
    first, last = (times.draw(MASK, progress, step_rng(0, 0)) for progress in (0.0, 1.0))
    assert torch.equal(first, last)


@pytest.mark.parametrize("range", [*RANGES, PolynomialRange(power=30.0), PolynomialRange(start=1.1e-5)], ids=named)
def test_an_exposure_rises_and_keeps_its_ends(range):
    t = Times(law=Exposure(range=range)).quantiles(100_001)
    assert torch.isfinite(t).all() and (t.diff() >= 0).all()
    assert float(t[0]) == pytest.approx(1e-5) and float(t[-1]) == pytest.approx(ceiling(range, 1.0), abs=1e-4)


def test_a_whole_range_exposes_evenly():
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = Exposure(range=FullRange()).quantile(u, 0.1, 0.9, None)
    torch.testing.assert_close(t, InTime().quantile(u, 0.1, 0.9, None), rtol=0, atol=1e-12)


def test_an_exposure_is_not_annealed_again():
    with pytest.raises(ValueError, match="has its range already"):
        Times(law=Exposure(), range=LinearRange())
    with pytest.raises(ValueError, match="not above low = 0.3"):
        Times(law=Exposure(), low=0.3)


# ---------------------------------------------------------------- laws and draws


@pytest.mark.parametrize("law", [InTime(), InLogSnr(), InLogSnr(low=-3.0, high=1.0, share=0.3)], ids=named)
@pytest.mark.parametrize("schedule", [member() for member in typing.get_args(Schedule)], ids=named)
def test_a_law_has_its_density(law, schedule):
    """On a fine even grid of u: uniform in t, or the one share uniform in log-SNR and the other in t."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t = law.quantile(u, 1e-5, 1.0, schedule)
    if isinstance(law, InTime):
        torch.testing.assert_close(t, u, rtol=0, atol=2e-5)
        return
    informed = t[u < law.share]
    reach = schedule.log_snr(torch.tensor([1.0, 1e-5], dtype=torch.float64)).clamp(law.low, law.high)
    level = schedule.log_snr(informed).sort().values
    even = torch.linspace(float(reach[0]), float(reach[1]), len(level), dtype=torch.float64)
    assert (level - even).abs().max() < 0.01 * float(reach[1] - reach[0])
    others = t[u >= law.share]
    if len(others):
        assert float(others.mean()) == pytest.approx(0.5, abs=1e-3)


def test_log_snr_draws_need_a_schedule():
    with pytest.raises(ValueError, match="schedule"):
        Times(law=InLogSnr()).draw(MASK, 0.0, step_rng(0, 0))


@pytest.mark.parametrize("rows, columns", [(64, 1), (7, 5), (1, 1), (100, 3)])
def test_stratified_puts_one_draw_into_each_part(rows, columns):
    for step in range(5):
        u = stratified(rows, columns, step_rng(0, step)).reshape(-1).sort().values
        assert (u >= 0).all() and (u < 1).all()
        gaps = torch.cat([u.diff(), u[:1] + 1 - u[-1:]])
        torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / (rows * columns)), rtol=0, atol=1e-9)


def test_stratified_spreads_every_half_and_every_worker():
    """Those that self-condition, and those of one worker, see all times too: no gap wider than 3 even ones."""
    u = stratified(128, 1, step_rng(0, 0))[:, 0]
    for part in (u[:64], u[64:], u[::2], u[1::2], u[::4]):
        ordered = part.sort().values
        gaps = torch.cat([ordered.diff(), ordered[:1] + 1 - ordered[-1:]])
        assert float(gaps.max()) <= 3 / len(part)


def test_stratified_draws_of_a_row_are_uniform():
    draws = torch.stack([stratified(8, 1, step_rng(0, step))[3, 0] for step in range(2000)]).sort().values
    even = (torch.arange(2000) + 0.5) / 2000
    assert (draws - even).abs().max() < 0.036            # Kolmogorov-Smirnov at the 1 % level


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("spread", [False, True])
def test_workers_deal_out_the_draws_of_one_worker(spread, per_token):
    times = Times(stratified=spread, per_token=per_token)
    whole_rng = step_rng(0, 3)
    whole, after = times.draw(MASK, 1.0, whole_rng), whole_rng.normal((64, 2))
    for parts in (2, 4):
        for part in range(parts):
            rng = step_rng(0, 3, part=part, parts=parts)
            assert torch.equal(times.draw(MASK[part::parts], 1.0, rng), whole[part::parts])
            assert torch.equal(rng.normal((64 // parts, 2)), after[part::parts])      # so does the noise after it


def test_time_is_zero_in_a_prompt():
    t, given = torch.full((2, 1), 0.7), torch.tensor([[True, False, False], [False, False, True]])
    assert clean_where(None, t) is t
    assert torch.equal(clean_where(given, t) == 0, given)


@pytest.mark.parametrize("changes", [
    {"low": 1.0}, {"high": 1.5}, {"low": -0.1}, {"range": LinearRange(start=0.001), "low": 0.01}, {"range.power": 0.0},
    {"range.start": 0.0}, {"range.until": 1.1}, {"law": "uniform"}])
def test_nonsense_is_refused(changes):
    with pytest.raises(ValueError):
        override(Times(range=PolynomialRange()), changes)
    for bad in ({"low": 3.0}, {"share": 0.0}):
        with pytest.raises(ValueError):
            override(InLogSnr(high=2.0), bad)
    with pytest.raises(TypeError):
        FullRange(start=0.5)            # type: ignore[call-arg]
