"""The built-in corpus and its oracle: what the grammar says is legal, and its probabilities are the true ones."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest

from trainables.stages import Context, Store
from trainables.text.stories import NEXT, WORLDS, Oracle, Stories, tell


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(1)
    return [tell(rng.choice(WORLDS), rng)["text"] for _ in range(4000)]


def test_every_story_is_legal(texts):
    assert Oracle().illegal(texts) == 0.0


@pytest.mark.parametrize("text", [
    "anna found a cat in the garden . he fed it .",             # the wrong pronoun
    "anna found a cat in the school . she fed it .",            # no animal is found there
    "anna lost a cat in the garden . she was happy .",          # nobody is happy about that
    "anna found a cat in the garden . she fed it",              # no end
    "anna found a cat cat in the garden . she fed it .", "she", "", "zebra",
])
def test_broken_agreement_is_illegal(text):
    assert Oracle().log_likelihood([text])[0] == -math.inf
    assert Oracle(escape=0.01).log_likelihood([text])[0] > -math.inf or not text


def test_likelihood_of_one_story_by_hand():
    """1/12 world x .6 NAME x 1/5 x 1/4 x .5 THING x 1/4 x 1/2 x 1/3 x .5 PRONOUN2 x 1/2"""
    by_hand = 1 / 12 * 0.6 / 5 / 4 * 0.5 / 4 / 2 / 3 * 0.5 / 2
    assert Oracle().log_likelihood(["anna found a cat in the garden . she fed it ."])[0] == pytest.approx(math.log(by_hand))


def test_probabilities_sum_to_one():
    """All stories of one world, enumerated."""
    oracle = Oracle()

    def continuations(slot):
        for following in NEXT[slot]:
            if following == "END":
                yield []
            else:
                for rest in continuations(following):
                    yield [following, *rest]

    total, world = 0.0, WORLDS[0]
    for slots in continuations("START"):
        # words of one slot are equally likely, so one text stands for all that share its slots
        choices = [world.words()[slot].split() for slot in slots]
        text = " ".join(words[0] for words in choices)
        total += math.exp(oracle.log_likelihood([text])[0]) * math.prod(len(words) for words in choices)
    assert total == pytest.approx(1 / len(WORLDS))


def test_slips_lower_the_likelihood(texts):
    oracle, rng = Oracle(escape=0.01), np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(text.split())) for text in texts[:200]]
    assert oracle.log_likelihood(shuffled).mean() < oracle.log_likelihood(texts[:200]).mean() - 10


def test_bigrams_and_entropy_agree_with_samples(texts):
    oracle = Oracle()
    assert sum(oracle.bigrams.values()) == pytest.approx(1)
    assert oracle.total_variation(texts) < 0.03 < 0.3 < oracle.total_variation(texts[:1])
    assert -oracle.log_likelihood(texts).mean() == pytest.approx(oracle.entropy, rel=0.01)
    assert float(oracle.visits.sum()) == pytest.approx(np.mean([len(text.split()) for text in texts]), rel=0.01)
    assert oracle.total_variation([]) == 1.0


def test_the_corpus_is_deterministic_and_its_splits_differ(tmp_path):
    one = Context(Store(tmp_path / "one")).get(Stories(size=200))
    two = Context(Store(tmp_path / "two")).get(Stories(size=200))
    lines = {path.name: path.read_text().splitlines() for path in sorted(one.glob("*.jsonl"))}
    assert lines == {path.name: path.read_text().splitlines() for path in sorted(two.glob("*.jsonl"))}
    assert {name: len(rows) for name, rows in lines.items()} == {
        "judge.jsonl": 50, "test.jsonl": 20, "train.jsonl": 200, "valid.jsonl": 10}
    assert lines["train.jsonl"][:10] != lines["valid.jsonl"]
    row = json.loads(lines["train.jsonl"][0])
    assert set(row["source"].split()) <= set(row["text"].split())
    assert len(Counter(json.loads(line)["class"] for line in lines["train.jsonl"])) == 6
