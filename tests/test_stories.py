"""The built-in corpus and its oracle: what the grammar says is legal, and its probabilities are the true ones."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest

from trainables.stages import Context, Store
from trainables.text.stories import WORLDS, Oracle, Stories, all_stories, tell


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(1)
    return [tell(rng.choice(WORLDS), rng)["text"] for _ in range(4000)]


def test_every_story_is_legal(texts):
    assert Oracle().illegal(texts) == 0.0


@pytest.mark.parametrize("text", [
    "anna found a cat . he kept it .",             # the wrong pronoun
    "anna found a sweet cat . she kept it .",                   # food is sweet
    "anna lost a cat . she was happy .",          # nobody is happy about that
    "anna found a cat . she kept it",              # no end
    "anna found a cat cat . she kept it .", "she", "", "zebra",
])
def test_broken_agreement_is_illegal(text):
    assert Oracle().log_likelihood([text])[0] == -math.inf
    assert Oracle(escape=0.01).log_likelihood([text])[0] > -math.inf or not text


def test_likelihood_of_one_story_by_hand():
    """1/12 world, 1/4 name, 1/3 verb, .5 no look, 1/3 thing, .5 it goes on with an act, 1/3 which"""
    by_hand = 1 / 12 / 4 / 3 * 0.5 / 3 * 0.5 / 3
    assert Oracle().log_likelihood(["anna found a cat . she kept it ."])[0] == pytest.approx(math.log(by_hand))


def test_all_stories_are_legal_and_their_probabilities_sum_to_one():
    texts = all_stories()
    assert len(texts) == len(set(texts))
    assert np.exp(Oracle().log_likelihood(texts)).sum() == pytest.approx(1)


def test_a_story_is_of_its_own_class_and_of_no_other():
    """Asked for its own class no story is wrong; asked for another each is; and what is illegal always is."""
    rng = random.Random(2)
    rows = [tell(rng.choice(WORLDS), rng) for _ in range(300)]
    texts, classes = [row["text"] for row in rows], [row["class"] for row in rows]
    names = sorted({world.classed for world in WORLDS})
    assert len(names) == 6 and set(classes) == set(names)
    oracle = Oracle()
    assert oracle.wrong_class(texts, classes) == 0.0
    assert oracle.wrong_class(texts, [names[names.index(name) - 1] for name in classes]) == 1.0
    assert oracle.wrong_class([*texts[:3], "she was she"], [*classes[:3], classes[0]]) == 0.25
    assert oracle.wrong_class(texts, ["no such thing"] * 300) == 1.0


def test_told_of_some_worlds_a_text_is_as_likely_as_there(texts):
    """P(text) is the mean over worlds of P(text | world)."""
    oracle = Oracle(escape=0.01)
    each = np.stack([oracle.log_likelihood(texts[:50], [world]) for world in WORLDS])
    assert oracle.log_likelihood(texts[:50]) == pytest.approx(np.logaddexp.reduce(each) - math.log(len(WORLDS)))


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
        "judge.jsonl": 20, "test.jsonl": 10, "train.jsonl": 200, "valid.jsonl": 10}
    assert lines["train.jsonl"][:10] != lines["valid.jsonl"]
    row = json.loads(lines["train.jsonl"][0])
    assert set(row["source"].split()) <= set(row["text"].split())
    assert len(Counter(json.loads(line)["class"] for line in lines["train.jsonl"])) == 6
