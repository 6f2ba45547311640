"""The unigram language model over pieces of words, as SentencePiece trains it (Kudo 2018, arXiv 1804.10959, 3.2).

    words and counts -> all substrings -> EM -> drop the quarter that is least missed -> EM -> ... -> pieces

Ours, because the tokenizers library's trainer takes its candidates from repeats *between* words that differ in what
follows: on a corpus of a hundred words no whole word is ever a candidate, and texts fall apart into letters.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping

LONGEST = 16                         # characters of a piece, SentencePiece's default


def unigram_pieces(words: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """At most `size` pieces and their log probabilities, likeliest first.   ValueError: more characters than `size`

    `words` says how often each word occurs.  Single characters always stay.
    """
    letters = sorted({letter for word in words for letter in word})
    if len(letters) > size:
        raise ValueError(f"a vocabulary of {size} pieces is too small for {len(letters)} different characters")
    words = {word[:64]: count for word, count in words.items()}                # no piece of a word is nearly that long
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for i, j in _spans(word):
            counts[word[i:j]] += count
    seeds = sorted((p for p in counts if len(p) > 1 and counts[p] > 1), key=lambda p: (-counts[p] * len(p), p))
    p = _normalised({piece: counts[piece] + 1.0 for piece in letters + seeds[:10 * size]})
    while True:
        _, p = _improved(words, p)
        expected, p = _improved(words, p)
        if len(p) <= size:
            return sorted(((piece, math.log(p[piece])) for piece in p), key=lambda item: (-item[1], item[0]))
        missed = {piece: expected[piece] * (math.log(p[piece]) - _best_without(piece, p))
                  for piece in p if len(piece) > 1}
        kept = max(size - len(letters), int(0.75 * len(missed)))
        survivors = sorted(missed, key=lambda piece: (-missed[piece], piece))[:kept]
        p = _normalised({piece: p[piece] for piece in letters + survivors})


def _improved(words: Mapping[str, int], p: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """One round of EM: expected counts, and the probabilities they give.

    exp(digamma(c)) is about c - 1/2: the variational M step, under which rare pieces die out; letters do not.
    """
    expected = _expected(words, p)
    return expected, _normalised({piece: max(expected[piece] - 0.5, 1e-3 if len(piece) == 1 else 0.0) for piece in p})


def _spans(word: str) -> Iterator[tuple[int, int]]:
    """Every (start, end) of a possible piece, by start."""
    return ((i, j) for i in range(len(word)) for j in range(i + 1, min(i + LONGEST, len(word)) + 1))


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {piece: weight / total for piece, weight in weights.items() if weight > 0}


def _expected(words: Mapping[str, int], p: Mapping[str, float]) -> dict[str, float]:
    """How often each piece is used, over all segmentations of all words (forward-backward)."""
    expected = dict.fromkeys(p, 0.0)
    for word, count in words.items():
        edges = [(i, j, word[i:j]) for i, j in _spans(word) if word[i:j] in p]
        forward, backward = [1.0] + [0.0] * len(word), [0.0] * len(word) + [1.0]
        for i, j, piece in edges:
            forward[j] += forward[i] * p[piece]
        for i, j, piece in reversed(edges):
            backward[i] += p[piece] * backward[j]
        for i, j, piece in edges:
            expected[piece] += count * forward[i] * p[piece] * backward[j] / forward[-1]
    return expected


def _best_without(piece: str, p: Mapping[str, float]) -> float:
    """Log probability of the best way to say `piece` without it."""
    best = [0.0] + [-math.inf] * len(piece)
    for i, j in _spans(piece):
        if j - i < len(piece) and piece[i:j] in p:
            best[j] = max(best[j], best[i] + math.log(p[piece[i:j]]))
    return best[-1]
