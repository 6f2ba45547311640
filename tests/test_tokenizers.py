"""Laws of the tokenizers: a word is a token, and texts come back."""

import json
import random

import pytest
import torch

from trainables.text.stories import WORLDS, tell
from trainables.text.tokenizers import Words, byte_level_bpe, unigram, wordpiece

KINDS = [wordpiece, byte_level_bpe, unigram]
RESTAURANTS = [
    "The Vaults is a family-friendly pub near Café Adriatic, in the city centre.", "It's cheap (£20-25); don't go!",
    "Is the Blue Spice a coffee shop? It is not family-friendly, and it isn't cheap.", "The pub is near the Vaults.",
] * 5


@pytest.fixture(scope="module")
def stories() -> list[str]:
    rng = random.Random(0)
    return [tell(rng.choice(WORLDS), rng)["text"] for _ in range(2_000)]


def words_of(kind, texts, vocabulary, folder) -> Words:
    Words.save(kind(texts, vocabulary), folder, texts)
    return Words.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_small_corpus_every_word_is_one_token_and_every_text_comes_back(kind, stories, tmp_path):
    words = words_of(kind, stories, 2_000, tmp_path)
    for word in {word for text in stories for word in text.split()}:
        said = words.tokenizer.encode(f"{word} {word}")
        inside = [i for i in said.ids if i not in words.special]
        assert len(inside) == 2 and inside[0] == inside[1], said.tokens
    ids, mask = words.ids(stories, 24)
    assert mask.sum() == sum(len(text.split()) + len(words.start) + 1 for text in stories)
    assert words.texts(ids) == stories


@pytest.mark.parametrize("kind", KINDS)
def test_punctuation_cases_and_accents_come_back(kind, tmp_path):
    words = words_of(kind, RESTAURANTS, 400, tmp_path)
    texts = RESTAURANTS[:4]
    ids, mask = words.ids(texts, 80)
    assert words.texts(ids) == texts
    assert mask.sum() > sum(len(text.split()) for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_tokenizer_is_the_trained_one_and_transformers_can_read_it(kind, stories, tmp_path):
    from transformers import AutoTokenizer

    trained = kind(stories, 2_000)
    Words.save(trained, tmp_path, stories)
    words, again = Words.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert words.vocabulary == len(trained) == len(again)
    assert words.special == tuple(sorted(trained.all_special_ids)) == tuple(sorted(again.all_special_ids))
    ids = words.ids(stories[:50], 24)[0]
    assert again(stories[:50], padding="max_length", max_length=24)["input_ids"] == ids.tolist()
    assert again.batch_decode(ids, skip_special_tokens=True) == stories[:50]


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_cut_and_still_end(kind, stories, tmp_path):
    words = words_of(kind, stories, 2_000, tmp_path)
    ids, mask = words.ids([stories[0], "bob"], 6)
    assert ids.shape == mask.shape == (2, 6)
    assert mask[0].all() and int(ids[0, -1]) in words.end
    assert int(mask[1].sum()) == len(words.start) + 2 and (ids[1][~mask[1]] == words.pad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_what_stands_before_the_first_end(kind, stories, tmp_path):
    words = words_of(kind, stories, 2_000, tmp_path)
    said = words.ids(["bob saw a dog", "anna"], 8)[0]
    after = torch.cat([said, words.ids(["tom tom", "tom"], 8)[0]], 1)
    assert words.texts(after) == ["bob saw a dog", "anna"]
    assert words.texts(torch.full((1, 5), words.end[0])) == [""]


@pytest.mark.parametrize("kind", KINDS)
def test_unused_pieces_are_those_of_no_training_text(kind, stories, tmp_path):
    words = words_of(kind, stories, 2_000, tmp_path)
    seen = set(words.ids(stories, 24)[0].unique().tolist())
    assert not seen & set(words.unused)
    assert seen | set(words.unused) | set(words.special) == set(range(words.vocabulary))


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_and_keeps_to_its_vocabulary(kind):
    a, b = kind(RESTAURANTS, 320), kind(RESTAURANTS, 320)
    assert a.get_vocab() == b.get_vocab()
    assert len(a) <= 320 + (100 if kind is unigram else 0)


def test_unigram_pieces_are_scored_by_how_often_they_are_said():
    trained = unigram(["low newest widest low low newest widest"] * 10 + ["low lower lower x"] * 10, 40)
    pieces = json.loads(trained.backend_tokenizer.to_str())["model"]["vocab"]
    assert [piece for piece, _ in pieces[:3]] == ["<pad>", "</s>", "<unk>"]
    scores = dict(pieces[3:])
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert {"▁low", "▁lower", "▁newest", "▁widest", "▁x", *"lowernstidx▁"} <= scores.keys()
    assert 0 > scores["▁low"] > scores["▁newest"] > scores["▁x"] > scores["x"]


def test_a_vocabulary_smaller_than_the_alphabet_is_refused():
    with pytest.raises(ValueError, match="too small for 27 different characters"):
        unigram(["abcdefghijklmnopqrstuvwxyz"], 29)
    assert len(unigram(["abcdefghijklmnopqrstuvwxyz"], 30)) == 30 + 100
