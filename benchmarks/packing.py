"""How full rows are: documents padded, in buckets of like length, and packed.

    python benchmarks/packing.py                                      the built-in corpus
    python benchmarks/packing.py --data stories --data devset.csv:ref
    python benchmarks/packing.py --data texts.txt --capacity 128 --length 64

Texts of the train split become pieces as the score LM's do (SentencePiece learned on them; start and end count, texts
are cut at --length).  All is real tokens over slots, nothing is trained:

    padded      a document a row, every row --length slots long
    longest     ... as long as the longest document
    bucketed    batches of --batch documents of like length, each as long as its longest
    packed      rows of --capacity slots by first fit decreasing, documents kept apart by number; and tokens a row
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainables.config import ConfigError  # noqa: E402
from trainables.stages import Context, Store  # noqa: E402
from trainables.text.corpora import choose_data, read_texts  # noqa: E402
from trainables.text.packing import (  # noqa: E402
    Packed,
    bucketed_efficiency,
    packed_efficiency,
    padded_efficiency,
)
from trainables.text.pieces import Pieces, SentencePiece  # noqa: E402


def efficiencies(lengths: Sequence[int], *, capacity: int, length: int, batch: int) -> dict[str, float]:
    """By name, for documents of these lengths."""
    packed = packed_efficiency(lengths, Packed(capacity=capacity))
    return {"documents": len(lengths), "padded": padded_efficiency(lengths, length),
            "padded_to_longest": padded_efficiency(lengths), "bucketed": bucketed_efficiency(lengths, batch),
            "packed": packed, "per_row": packed * capacity}


def lengths_of(data: str, vocabulary: int, length: int) -> list[int]:
    """Tokens of each training text.   ConfigError"""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        texts = read_texts(Context(store).get(choose_data(data, None, store)), "train")
    pieces = Pieces(SentencePiece(vocabulary=vocabulary, coverage=1.0).train(texts))
    return [len(row) for row in pieces.ids(texts, length)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", help="as a study's --data; again for more")
    parser.add_argument("--capacity", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=1_000)
    asked = parser.parse_args(arguments)
    print("| texts | documents | tokens each | padded | longest | bucketed | packed | tokens a row |")
    print("|---|---|---|---|---|---|---|---|")
    for data in asked.data or ["stories"]:
        try:
            lengths = lengths_of(data, asked.vocabulary, asked.length)
            found = efficiencies(lengths, capacity=asked.capacity, length=asked.length, batch=asked.batch)
        except (ConfigError, ValueError) as error:
            parser.error(str(error))
        shares = " | ".join(f"{found[name]:.3f}" for name in ("padded", "padded_to_longest", "bucketed", "packed"))
        print(f"| {Path(data).name} | {len(lengths):,} | {sum(lengths) / len(lengths):.1f} | {shares} | "
              f"{found['per_row']:.1f} of {asked.capacity} |", flush=True)


if __name__ == "__main__":
    main()
