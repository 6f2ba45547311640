"""Words, for all metrics that count them: one pattern, lower case, so that neither case nor spacing hides a copy."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and punctuation marks, in order.   "Bob's cat, it sat." -> bob's cat , it sat ."""
    return WORD.findall(text.lower())


def ngrams(said: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of n words, in order."""
    return zip(*(said[start:] for start in range(n)), strict=False)


class Hashes:
    """64-bit hashes of runs of words, the same in every process; a word is hashed once."""

    def __init__(self):
        self._words: dict[str, int] = {}

    def of_words(self, said: Iterable[str]) -> np.ndarray:
        """[words] uint64"""
        return np.array([self._word(word) for word in said], np.uint64)

    def of_ngrams(self, said: Sequence[str], n: int) -> np.ndarray:
        """[words - n + 1] uint64: a polynomial in an odd number, mixed, so that order matters."""
        hashed = self.of_words(said)
        runs = max(len(said) - n + 1, 0)
        total = np.zeros(runs, np.uint64)
        for place in range(n):
            total = total * np.uint64(0x9E3779B97F4A7C15) + hashed[place:place + runs]
            total ^= total >> np.uint64(29)
        return total

    def of_text(self, said: Sequence[str]) -> int:
        """A whole text."""
        return _hash(" ".join(said))

    def _word(self, word: str) -> int:
        if word not in self._words:
            self._words[word] = _hash(word)
        return self._words[word]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
