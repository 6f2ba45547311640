"""Learning rates: the sequences of the published systems, and what all shapes have in common."""

import itertools
from typing import get_args

import pytest

from trainables.config import fields
from trainables.training.learning_rate import Constant, Cosine, Schedule

SHAPES = list(get_args(Schedule))
ENDING = [shape for shape in SHAPES if "end" in fields(shape)]


def test_tencdm_warms_up_and_stays():
    """spec 1.8: step k (from 1) uses 1e-8 + (k - 1)(2e-4 - 1e-8) / 5000 while k - 1 < 5000, then 2e-4."""
    schedule = Constant(warmup=5_000, start=5e-5)
    for k in (1, 2, 100, 4_999, 5_000):
        expected = 1e-8 + (k - 1) * (2e-4 - 1e-8) / 5_000
        assert 2e-4 * schedule.share(k - 1, 200_000) == pytest.approx(expected, rel=1e-12)
    for k in (5_001, 100_000, 200_000):
        assert 2e-4 * schedule.share(k - 1, 200_000) == 2e-4


def test_ld4lg_is_a_cosine_whose_first_step_does_nothing():
    """spec 2.6: k / 1000, then (1 + cos(pi (k - 1000) / 249000)) / 2."""
    schedule = Cosine(warmup=1_000)
    for k, share in {0: 0.0, 500: 0.5, 1_000: 1.0, 125_500: 0.5, 200_000: 0.096234}.items():
        assert schedule.share(k, 250_000) == pytest.approx(share, abs=5e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_rise_to_the_peak_and_do_not_rise_again(shape):
    schedule = shape(warmup=10, start=0.2)
    shares = [schedule.share(step, 100) for step in range(101)]
    assert shares[0] == 0.2 and shares[10] == 1.0
    assert all(a < b for a, b in itertools.pairwise(shares[:11]))
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


@pytest.mark.parametrize("shape", ENDING)
def test_shapes_land_at_their_end_symmetrically(shape):
    schedule = shape(warmup=20, end=0.1)
    assert schedule.share(100, 100) == pytest.approx(0.1)
    assert schedule.share(60, 100) == pytest.approx(0.55)
    assert schedule.share(20, 20) == 1.0                             # nothing but warm-up


@pytest.mark.parametrize("shape", SHAPES)
def test_nonsense_is_refused(shape):
    with pytest.raises(ValueError, match="warmup"):
        shape(warmup=-1)
    with pytest.raises(ValueError, match="shares of the peak"):
        shape(start=1.5)
