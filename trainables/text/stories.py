"""The built-in corpus: two-sentence stories from a hidden Markov model, and an oracle that judges texts exactly.

    anna found a small cat . she was very happy .
    bob lost a red ball . he missed it .

A story has a *world* that never changes while it is told: who (girl, boy), what happened (good, bad), and to what kind
of thing (animal, food, toy).  Given the world, the story walks through *slots*; each slot says one word.

    world ~ uniform          slot_1 -> slot_2 -> ... -> END          word_i ~ emission[world, slot_i]

So (world, slot) is the hidden state of an HMM with 12 worlds x 15 slots, and the forward algorithm gives the exact
probability of any text.  A model that has learned only which word follows which word tells stories in which anna is a
he, a lost toy makes her happy and a cake is brown: the oracle calls them illegal, for no path of states says them.

Stories(size, seed)   the corpus as a stage: train, judge, valid and test splits; every story with its class (the world)
                      and a source (name, verb, thing and place: notes from which the story could be written)
Oracle(escape)        log_likelihood(texts)   nats per text; -inf for an illegal one, unless `escape` allows slips
                      illegal(texts)          share of texts that the grammar cannot say
                      wrong_class(texts, classes)     ... in a world of the class that each was asked for
                      total_variation(texts)  between the texts' bigrams and the grammar's own, 0..1
                      entropy, entropy_rate   of the grammar: nats per text, nats per word
"""

import functools
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from trainables.config import config
from trainables.randomness import seed_of
from trainables.stages import Context, Stage

WHO = {"girl": "anna mary lucy rose", "boy": "bob tom sam jack"}
PRONOUN = {"girl": "she", "boy": "he"}
EVENTS = {"good": "found got bought", "bad": "lost dropped forgot"}
FEELING = {"good": "happy glad proud", "bad": "sad upset sorry"}
THINGS = {"animal": "cat dog bird", "food": "cake pie bun", "toy": "ball kite doll"}
LOOKS = {"animal": "small brown", "food": "sweet warm", "toy": "red new"}
ACTS = {"good": "kept liked hugged", "bad": "missed wanted sought"}


@config
class World:
    """What a story is about; it decides the words of most slots."""

    who: str
    event: str
    thing: str

    @property
    def classed(self) -> str:
        """The class of its stories: who they are about is left open."""
        return f"{self.event} {self.thing}"

    def words(self) -> dict[str, str]:
        """Slot -> the words it may say, equally likely."""
        return {
            "NAME": WHO[self.who], "VERB": EVENTS[self.event], "A": "a",
            "LOOK": LOOKS[self.thing], "THING": THINGS[self.thing], "STOP": ".",
            "PRONOUN": PRONOUN[self.who], "WAS": "was felt", "VERY": "very so",
            "FEELING": FEELING[self.event], "PRONOUN2": PRONOUN[self.who],
            "ACT": ACTS[self.event], "IT": "it", "STOP2": ".",
        }


# Which slot follows which, and how often; the story ends after STOP2.
NEXT: dict[str, dict[str, float]] = {
    "START": {"NAME": 1.0}, "NAME": {"VERB": 1.0}, "VERB": {"A": 1.0}, "A": {"LOOK": 0.5, "THING": 0.5},
    "LOOK": {"THING": 1.0}, "THING": {"STOP": 1.0}, "STOP": {"PRONOUN": 0.5, "PRONOUN2": 0.5},
    "PRONOUN": {"WAS": 1.0}, "WAS": {"VERY": 0.4, "FEELING": 0.6}, "VERY": {"FEELING": 1.0}, "FEELING": {"STOP2": 1.0},
    "PRONOUN2": {"ACT": 1.0}, "ACT": {"IT": 1.0}, "IT": {"STOP2": 1.0}, "STOP2": {"END": 1.0},
}
WORLDS = tuple(World(who=who, event=event, thing=thing) for who, event, thing in itertools.product(WHO, EVENTS, THINGS))


SPLITS = {"train": 1.0, "judge": 0.1, "valid": 0.05, "test": 0.05}     # sizes, as shares of `size`


def tell(world: World, rng: random.Random) -> dict[str, str]:
    """One story of this world: its text, its class, and the notes it could be written from."""
    words, slot, said = world.words(), "START", {}
    while (slot := rng.choices(list(NEXT[slot]), list(NEXT[slot].values()))[0]) != "END":
        said[slot] = rng.choice(words[slot].split())
    return {"text": " ".join(said.values()), "class": world.classed,
            "source": " ".join(said[slot] for slot in ("NAME", "VERB", "THING"))}


@config
class Stories:
    """The built-in corpus, `size` training stories long; the same seed tells the same stories everywhere."""

    size: int = 20_000
    seed: int = 0

    version: ClassVar[int] = 1

    def __post_init__(self):
        if self.size < 100:
            raise ValueError(f"size must be at least 100 stories, not {self.size}")

    def needs(self) -> tuple[Stage, ...]:
        return ()

    def make(self, out: Path, context: Context) -> None:
        for split, share in SPLITS.items():
            rng = random.Random(seed_of(self.seed, split))
            with open(out / f"{split}.jsonl", "w", encoding="utf-8") as file:
                for _ in range(math.ceil(self.size * share)):
                    file.write(json.dumps(tell(rng.choice(WORLDS), rng)) + "\n")


class Oracle:
    """Exact judge of stories.  With `escape` > 0 every transition and every word may slip to a uniform one with that
    probability, so that each text has a finite likelihood and a worse one has a lower."""

    def __init__(self, escape: float = 0.0):
        self.slots = [slot for slot in NEXT if slot != "START"]
        self.words = sorted({word for world in WORLDS for said in world.words().values() for word in said.split()})
        self._index = {word: i for i, word in enumerate(self.words)}
        S, V = len(self.slots), len(self.words) + 1                            # the last word is "any other word"
        self.start = np.array([NEXT["START"].get(slot, 0.0) for slot in self.slots])
        self.step = np.array([[NEXT[a].get(b, 0.0) for b in self.slots] for a in self.slots])        # [S, S]
        self.stop = np.array([NEXT[slot].get("END", 0.0) for slot in self.slots])
        self.emission = np.zeros((len(WORLDS), S, V))                          # [worlds, S, V]
        for w, world in enumerate(WORLDS):
            for s, slot in enumerate(self.slots):
                said = world.words()[slot].split()
                self.emission[w, s, [self._index[word] for word in said]] = 1 / len(said)
        if escape:
            slip = lambda p, n: (1 - escape) * p + escape / n                  # noqa: E731
            self.start, self.step, self.stop = slip(self.start, S), slip(self.step, S + 1), slip(self.stop, S + 1)
            self.emission = slip(self.emission, V)

    def log_likelihood(self, texts: list[str], worlds: Sequence[World] = WORLDS) -> np.ndarray:
        """ln P(text), told of one of these worlds, by the forward algorithm.   [texts] nats; -inf where no path of
        states says the text"""
        emission = self.emission[[WORLDS.index(world) for world in worlds]]
        said = [[self._index.get(word, len(self.words)) for word in text.split()] for text in texts]
        result = np.full(len(texts), -np.inf)
        for length in {len(words) for words in said if words}:
            rows = [row for row, words in enumerate(said) if len(words) == length]
            words = np.array([said[row] for row in rows])                      # [n, length]
            alpha = self.start * np.moveaxis(emission[:, :, words[:, 0]], 2, 0)             # [n, worlds, S]
            log_scale = np.zeros(len(rows))
            for position in range(1, length):
                scale = alpha.sum((1, 2))
                alpha = alpha / np.where(scale > 0, scale, 1)[:, None, None]
                log_scale += np.log(np.where(scale > 0, scale, 1))
                alpha = alpha @ self.step * np.moveaxis(emission[:, :, words[:, position]], 2, 0)
            with np.errstate(divide="ignore"):
                result[rows] = np.log((alpha @ self.stop).sum(1) / len(worlds)) + log_scale
        return result

    def illegal(self, texts: list[str]) -> float:
        """Share of texts of probability zero."""
        return float(np.isinf(self.log_likelihood(texts)).mean())

    def wrong_class(self, texts: list[str], classes: Sequence[str]) -> float:
        """Share of texts of probability zero in every world of the class that each was asked for."""
        asked: dict[str, list[str]] = {}
        for text, name in zip(texts, classes, strict=True):
            asked.setdefault(name, []).append(text)
        worlds = {name: [world for world in WORLDS if world.classed == name] for name in asked}
        return sum(int(np.isinf(self.log_likelihood(said, worlds[name])).sum()) if worlds[name] else len(said)
                   for name, said in asked.items()) / len(texts)

    @functools.cached_property
    def visits(self) -> np.ndarray:
        """How often a story passes through each slot.   [S]   The slots come in order, so one sweep suffices."""
        visits = self.start.copy()
        for slot in range(len(self.slots)):
            visits += visits[slot] * self.step[slot]
        return visits

    @property
    def entropy(self) -> float:
        """Nats per story, exactly: a story tells its world and its walk, so the entropies of all choices add up."""
        walk = np.concatenate([self.step, self.stop[:, None]], 1)
        said = _entropy(self.emission).mean(0)                                 # [S], over worlds
        return float(math.log(len(WORLDS)) + _entropy(self.start) + self.visits @ (_entropy(walk) + said))

    @property
    def entropy_rate(self) -> float:
        """Nats per word."""
        return self.entropy / float(self.visits.sum())

    @functools.cached_property
    def bigrams(self) -> dict[tuple[str, str], float]:
        """The grammar's own distribution over neighbouring words, exactly."""
        expected = np.einsum("s,st,wsa,wtb->ab", self.visits, self.step, self.emission, self.emission) / len(WORLDS)
        total = expected.sum()
        pairs = np.argwhere(expected[:-1, :-1] > 0)
        return {(self.words[a], self.words[b]): float(expected[a, b] / total) for a, b in pairs}

    def total_variation(self, texts: list[str]) -> float:
        """Half the L1 distance between the texts' bigrams and the grammar's.   0 equal, 1 disjoint; 1 for no bigrams"""
        counts = Counter(pair for text in texts for pair in itertools.pairwise(text.split()))
        total = sum(counts.values())
        if total == 0:
            return 1.0
        pairs = counts.keys() | self.bigrams
        return 0.5 * sum(abs(counts[pair] / total - self.bigrams.get(pair, 0.0)) for pair in pairs)


def _entropy(p: np.ndarray) -> np.ndarray:
    """Nats, over the last axis."""
    return -(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(-1)


def all_stories() -> list[str]:
    """Every story of the grammar, each once."""

    def walks(slot: str):
        for following in NEXT[slot]:
            if following == "END":
                yield ()
            else:
                yield from ((following, *rest) for rest in walks(following))

    texts = [" ".join(said) for world in WORLDS for walk in walks("START")
             for said in itertools.product(*(world.words()[slot].split() for slot in walk))]
    return list(dict.fromkeys(texts))
