"""A study whose driver is killed again and again, at random, ends as if nothing had happened."""

import random

import disturbed
import pytest

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


def test_a_driver_that_is_killed_at_random_points(tmp_path):
    chance = random.Random(20)
    for _ in range(3):
        disturbed.disturb(tmp_path, chance)
    disturbed.settled(tmp_path)
    disturbed.finish(tmp_path)
    disturbed.verify(tmp_path)
