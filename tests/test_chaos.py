"""A study whose driver is killed again and again, at random, ends as if nothing had happened."""

import random

import chaos
import pytest

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


def test_a_driver_that_is_killed_at_random_points(tmp_path):
    chance = random.Random(20)
    for _ in range(3):
        chaos.disturb(tmp_path, chance)
    chaos.finish(tmp_path)
    chaos.verify(tmp_path)
